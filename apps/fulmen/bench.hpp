// Measured cases in the form that the result files have.
#pragma once

#include "engine/engine.hpp"

#include <optional>
#include <string>
#include <vector>

namespace fulmen::command {

struct BenchCase {
  BenchCase(std::string op, std::string name) : op(std::move(op)), name(std::move(name)) {}

  std::string op, name;
  double us = 0;       // of one step, or of what `name` says; the median
  double spread = 0;   // (slowest - fastest) / median
  std::optional<double> tokens_per_s, gbps, tflops;
  std::optional<double> ratio;   // to the yardstick that `yardstick` names
  std::optional<double> bar;     // what the ratio should reach
  std::string yardstick;
};

/// Bytes per second of a plain loop that reads memory far larger than the caches, on all threads.
double measure_read_bandwidth(engine::Pool& pool);

/// Prefill, decode of 1 and 8 requests, and a shared prefix, on the model that the engine holds.
std::vector<BenchCase> bench_engine(engine::Engine& engine, int repeats);

/// The library's row-wise ops on the CPU; `us` is the best of the repeats.
std::vector<BenchCase> bench_ops(engine::Pool& pool, int repeats);

}  // namespace fulmen::command
