# The test of the command runs it.
if(TARGET test_apps_command)
  target_compile_definitions(test_apps_command PRIVATE FULMEN_COMMAND="$<TARGET_FILE:fulmen_command>")
  add_dependencies(test_apps_command fulmen_command)
endif()
