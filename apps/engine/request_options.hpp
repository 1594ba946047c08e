// What a user may ask of one request.
#pragma once

#include "engine/executor.hpp"

#include <cstdint>
#include <string>
#include <vector>

namespace fulmen::engine {

struct RequestOptions {
  std::vector<int32_t> prompt;
  int64_t max_tokens = 256;
  Sampling sampling;
  std::vector<std::string> stop;
  bool ignore_end = false;   // go on after the model's end-of-turn token: for tests and benchmarks
  bool keep_logits = false;  // for tests
};

}  // namespace fulmen::engine
