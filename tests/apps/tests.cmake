# The tests of the command run it.
foreach(name command live_view)
  if(TARGET test_apps_${name})
    target_compile_definitions(test_apps_${name} PRIVATE FULMEN_COMMAND="$<TARGET_FILE:fulmen_command>")
    add_dependencies(test_apps_${name} fulmen_command)
  endif()
endforeach()
