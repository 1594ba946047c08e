add_test(NAME python.package COMMAND ${PROJECT_SOURCE_DIR}/scripts/test_python.sh ${PROJECT_BINARY_DIR})
