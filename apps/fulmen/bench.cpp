// `fulmen bench`: how close the engine and the library's ops come to this machine's limits.
#include "bench.hpp"

#include "exit_codes.hpp"
#include "options.hpp"
#include "terminal.hpp"

#include <fmt/chrono.h>
#include <fmt/format.h>
#include <fulmen/fulmen.h>
#include <nlohmann/json.hpp>

#include <ctime>
#include <fstream>

namespace fulmen::command {
namespace {

std::string cpu_name() {
  std::ifstream file("/proc/cpuinfo");
  for (std::string line; std::getline(file, line);)
    if (line.starts_with("model name")) return line.substr(line.find(':') + 2);
  return "unknown";
}

std::string today() { return fmt::format("{:%Y-%m-%d}", fmt::gmtime(std::time(nullptr))); }

nlohmann::ordered_json as_json(const BenchCase& c) {
  nlohmann::ordered_json object = {{"op", c.op}, {"case", c.name}, {"us", c.us}, {"spread", c.spread}};
  if (c.tokens_per_s) object["tokens_per_s"] = *c.tokens_per_s;
  if (c.gbps) object["gbps"] = *c.gbps;
  if (c.tflops) object["tflops"] = *c.tflops;
  object["ratio"] = c.ratio ? nlohmann::ordered_json(*c.ratio) : nlohmann::ordered_json(nullptr);
  object["bar"] = c.bar ? nlohmann::ordered_json(*c.bar) : nlohmann::ordered_json(nullptr);
  if (!c.yardstick.empty()) object["yardstick"] = c.yardstick;
  return object;
}

std::string as_text(const BenchCase& c) {
  std::string line = fmt::format("{:<15} {:<44} {:>9.2f} ms", c.op, c.name, c.us / 1e3);
  if (c.tokens_per_s) line += fmt::format("  {:.0f} tokens/s", *c.tokens_per_s);
  if (c.gbps) line += fmt::format("  {:.1f} GB/s", *c.gbps);
  if (c.tflops) line += fmt::format("  {:.2f} TFLOP/s", *c.tflops);
  if (c.ratio) line += fmt::format("\n{:<15} {:.2f} x {}", "", *c.ratio, c.yardstick);
  if (c.bar) line += fmt::format(" (at least {})", *c.bar);
  return line + "\n";
}

}  // namespace

int run_bench(const BenchOptions& options) {
  const auto engine = make_engine(options.model);
  const double bandwidth = measure_read_bandwidth(engine->pool());
  const int repeats = options.quick ? 3 : 7;
  std::vector<BenchCase> cases;
  if (options.part != "ops") cases = bench_engine(*engine, repeats);
  if (options.part != "engine") {
    for (BenchCase& c : bench_ops(engine->pool(), repeats)) cases.push_back(std::move(c));
  }
  if (options.json) {
    nlohmann::ordered_json result = {{"version", 1},
                                     {"cpu", cpu_name()},
                                     {"device", engine->executor().description()},
                                     {"threads", engine->pool().num_threads()},
                                     {"fulmen", fulmen_version()},
                                     {"date", today()},
                                     {"model", engine->model().name},
                                     {"read_gbps", bandwidth / 1e9}};
    for (const BenchCase& c : cases) result["cases"].push_back(as_json(c));
    write_result(result.dump(1) + "\n");
  } else {
    write_result(fmt::format("{}, {}; a plain loop reads {:.1f} GB/s\n", cpu_name(), engine->executor().description(),
                             bandwidth / 1e9));
    for (const BenchCase& c : cases) write_result(as_text(c));
  }
  flush_results();
  return kSuccess;
}

}  // namespace fulmen::command
