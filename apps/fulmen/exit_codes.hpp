// What the command returns; `fulmen --help`, docs/cli.md and the man page list the same.
#pragma once

namespace fulmen::command {

enum ExitCode : int {
  kSuccess = 0,
  kSomeFailed = 1,     // at least one request couldn't be answered, the others were
  kUsage = 2,          // the command line
  kBadInput = 3,       // model, prompt file or setting that can't be used
  kNoDevice = 4,       // --device cuda, and there is none
  kOutputFailed = 5,   // results couldn't be written
  kInternal = 70,      // a fault of Fulmen's own
  kInterrupted = 130,  // Ctrl-C; what was made has been printed
};

constexpr const char* kExitCodeHelp =
    "Exit codes: 0 success; 1 some requests failed; 2 wrong command line; 3 a model, file or setting that\n"
    "can't be used; 4 no such device; 5 results couldn't be written; 70 a fault of Fulmen's own; 130 Ctrl-C.";

}  // namespace fulmen::command
