add_test(NAME packaging.install COMMAND bash ${CMAKE_CURRENT_LIST_DIR}/install_test.sh ${PROJECT_BINARY_DIR})
if(NOT FULMEN_SANITIZE)  # a sanitizer brings libraries of its own
  add_test(NAME packaging.library COMMAND ${CMAKE_CURRENT_LIST_DIR}/library_test.sh ${PROJECT_SOURCE_DIR} $<TARGET_FILE:fulmen>)
endif()
find_package(Python3 REQUIRED COMPONENTS Interpreter)
add_test(NAME packaging.setup COMMAND ${Python3_EXECUTABLE} ${CMAKE_CURRENT_LIST_DIR}/setup_test.py ${PROJECT_SOURCE_DIR})
