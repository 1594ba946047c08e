add_library(fake_driver SHARED ${CMAKE_CURRENT_LIST_DIR}/fake_driver.c)
set_target_properties(fake_driver PROPERTIES C_VISIBILITY_PRESET default PREFIX "" NO_SONAME ON
  LIBRARY_OUTPUT_DIRECTORY ${CMAKE_CURRENT_BINARY_DIR})
target_link_options(fake_driver PRIVATE -Wl,-soname,libcuda.so.1)  # whoever asks for the driver gets it once it is loaded
add_dependencies(test_jit_kernels fake_driver)
target_compile_definitions(test_jit_kernels PRIVATE FULMEN_FAKE_DRIVER="$<TARGET_FILE:fake_driver>")
