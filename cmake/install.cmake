# make install: the library, its headers, what find_package and pkg-config read, the examples, and the command.
include(CMakePackageConfigHelpers)
set(config_folder ${CMAKE_INSTALL_LIBDIR}/cmake/fulmen)
set(share_folder ${CMAKE_INSTALL_DATADIR}/fulmen)

set_target_properties(fulmen_headers PROPERTIES EXPORT_NAME headers)
install(TARGETS fulmen fulmen_headers EXPORT fulmen-targets
  LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR}
  INCLUDES DESTINATION ${CMAKE_INSTALL_INCLUDEDIR})
install(DIRECTORY ${PROJECT_SOURCE_DIR}/include/fulmen DESTINATION ${CMAKE_INSTALL_INCLUDEDIR})
install(EXPORT fulmen-targets NAMESPACE fulmen:: FILE fulmen-targets.cmake DESTINATION ${config_folder})

configure_package_config_file(${CMAKE_CURRENT_LIST_DIR}/fulmen-config.cmake.in ${PROJECT_BINARY_DIR}/fulmen-config.cmake
  INSTALL_DESTINATION ${config_folder})
write_basic_package_version_file(${PROJECT_BINARY_DIR}/fulmen-config-version.cmake COMPATIBILITY SameMajorVersion)
install(FILES ${PROJECT_BINARY_DIR}/fulmen-config.cmake ${PROJECT_BINARY_DIR}/fulmen-config-version.cmake
  DESTINATION ${config_folder})

# The folders are relative to the .pc file, so that an installed tree may be moved.
file(RELATIVE_PATH pc_prefix /p/${CMAKE_INSTALL_LIBDIR}/pkgconfig /p)
configure_file(${CMAKE_CURRENT_LIST_DIR}/fulmen.pc.in ${PROJECT_BINARY_DIR}/fulmen.pc @ONLY)
install(FILES ${PROJECT_BINARY_DIR}/fulmen.pc DESTINATION ${CMAKE_INSTALL_LIBDIR}/pkgconfig)

install(DIRECTORY ${PROJECT_SOURCE_DIR}/examples/ DESTINATION ${share_folder}/examples)
install(FILES ${PROJECT_SOURCE_DIR}/LICENSE ${PROJECT_SOURCE_DIR}/NOTICE DESTINATION ${CMAKE_INSTALL_DOCDIR})

if(TARGET fulmen_command)
  file(RELATIVE_PATH bin_to_lib /p/${CMAKE_INSTALL_BINDIR} /p/${CMAKE_INSTALL_LIBDIR})
  set_target_properties(fulmen_command PROPERTIES INSTALL_RPATH "$ORIGIN/${bin_to_lib}")
  install(TARGETS fulmen_command RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR})
  install(FILES ${PROJECT_SOURCE_DIR}/apps/fulmen/fulmen.1 DESTINATION ${CMAKE_INSTALL_MANDIR}/man1)
  set(completion ${PROJECT_SOURCE_DIR}/apps/fulmen/completion)
  install(FILES ${completion}/fulmen.bash DESTINATION ${CMAKE_INSTALL_DATADIR}/bash-completion/completions RENAME fulmen)
  install(FILES ${completion}/_fulmen DESTINATION ${CMAKE_INSTALL_DATADIR}/zsh/site-functions)
  install(FILES ${completion}/fulmen.fish DESTINATION ${CMAKE_INSTALL_DATADIR}/fish/vendor_completions.d)
endif()
