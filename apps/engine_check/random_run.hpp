// Decode steps of a random model on the GPU: their time beside the bandwidth's, and their words beside the CPU's.
#pragma once

#include <nlohmann/json.hpp>

#include <cstdint>
#include <string>
#include <vector>

namespace fulmen::engine_check {

struct RandomRun {
  std::string shape;
  std::vector<int64_t> batches{1, 64};
  int64_t context = 1024;  // keys of each request when its steps are timed
  int64_t tokens = 0;      // to compare with the CPU; 0: none
  bool invariant = false;
  std::string kv_type = "f16";  // of activations and cache, as of `fulmen generate`; weights are stored as bf16
};

nlohmann::ordered_json run_random(const RandomRun& options);

}  // namespace fulmen::engine_check
