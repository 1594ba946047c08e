#pragma once

#include <cstdlib>
#include <filesystem>
#include <string>

namespace fulmen::test {

/// Where the tests look for SmolLM2: FULMEN_TEST_MODEL, else where set-up puts it.
inline std::string model_path() {
  const char* chosen = std::getenv("FULMEN_TEST_MODEL");
  return chosen && *chosen ? chosen : FULMEN_SOURCE_DIR "/.fulmen/model/smollm2-135m-instruct.gguf";
}

inline bool model_exists() { return std::filesystem::is_regular_file(model_path()); }

inline bool missing_model_allowed() {
  const char* allowed = std::getenv("FULMEN_ALLOW_MISSING_MODEL");
  return allowed && std::string(allowed) == "1";
}

}  // namespace fulmen::test

/// Ends the test where the model is missing: skipped if FULMEN_ALLOW_MISSING_MODEL=1 says so, else failed.
#define FULMEN_NEED_MODEL()                                                                                  \
  do {                                                                                                       \
    if (fulmen::test::model_exists()) break;                                                                 \
    if (fulmen::test::missing_model_allowed()) GTEST_SKIP() << "no model at " << fulmen::test::model_path(); \
    FAIL() << "no model at " << fulmen::test::model_path()                                                   \
           << ": set it up (make test does), name one in FULMEN_TEST_MODEL, or set "                         \
              "FULMEN_ALLOW_MISSING_MODEL=1";                                                                \
  } while (false)
