// `fulmen emulate`: hands over to fulmen-emulate, which is built with the tests and lies beside this program in a build folder.
#include "exit_codes.hpp"
#include "options.hpp"
#include "terminal.hpp"

#include <unistd.h>

#include <filesystem>
#include <string>
#include <system_error>

namespace fulmen::command {

int run_emulate(const std::vector<std::string>& arguments) {
  std::error_code error;
  const std::string program = (std::filesystem::read_symlink("/proc/self/exe", error).parent_path() / "fulmen-emulate").string();
  std::vector<char*> argv = {const_cast<char*>(program.c_str())};
  for (const std::string& argument : arguments) argv.push_back(const_cast<char*>(argument.c_str()));
  argv.push_back(nullptr);
  execv(program.c_str(), argv.data());
  error_line("the emulator is no part of an installation: it is built with -DFULMEN_EMULATOR=ON -DFULMEN_TESTS=ON, see docs/emulator.md");
  return kBadInput;
}

}  // namespace fulmen::command
