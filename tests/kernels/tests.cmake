# Every test of this folder holds kernels: its unit is compiled for the emulator.
if(FULMEN_EMULATOR)
  file(GLOB_RECURSE kernel_tests CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/tests/kernels/*_test.cpp)
  foreach(source ${kernel_tests})
    get_filename_component(stem ${source} NAME_WE)
    string(REGEX REPLACE "_test$" "" stem ${stem})
    target_compile_options(test_kernels_${stem} PRIVATE ${FULMEN_EMULATED_FLAGS})
  endforeach()
endif()
