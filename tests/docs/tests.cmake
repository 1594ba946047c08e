find_package(Python3 REQUIRED COMPONENTS Interpreter)
add_executable(supports_table ${CMAKE_CURRENT_LIST_DIR}/supports_table.cpp)
target_link_libraries(supports_table PRIVATE fulmen)
add_test(NAME docs.readme COMMAND ${Python3_EXECUTABLE} ${PROJECT_SOURCE_DIR}/scripts/update_readme.py --check
  $<TARGET_FILE:supports_table>)
add_test(NAME docs.pages COMMAND ${Python3_EXECUTABLE} ${CMAKE_CURRENT_LIST_DIR}/docs_test.py ${PROJECT_SOURCE_DIR})
