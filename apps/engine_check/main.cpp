// The engine on the GPU against the engine on the CPU: greedy tokens of eight prompts, alone and in one batch, must be
// the same wherever the CPU's two best logits are more than kTie apart. Prints one JSON object.
//   fulmen-engine-check MODEL.gguf [tokens]
//   fulmen-engine-check --random SHAPE [--batch 1,64] [--context N] [--tokens N] [--kv-type f16|bf16] [--invariant]
#include "random_run.hpp"

#include "engine/cuda_driver.hpp"
#include "engine/engine.hpp"

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <sstream>

namespace {

using namespace fulmen::engine;
using Json = nlohmann::ordered_json;

constexpr float kTie = 1e-2f;
constexpr const char* kPrompts[] = {
    "The capital of France is", "Water boils at a temperature of", "Once upon a time there was a",
    "def fibonacci(n):", "The largest planet of the solar system is", "List three colours:",
    "In 1969 the first human", "To make bread you need flour,"};

struct Answers {
  std::vector<std::vector<int32_t>> tokens;
  std::vector<std::vector<std::vector<float>>> logits;
  double decode_tokens_per_second = 0, prompt_tokens_per_second = 0;
  std::string device, step;
};

Answers answer(const std::string& model, EngineOptions::Device device, bool invariant, int64_t count, bool together) {
  EngineOptions options;
  options.model_path = model;
  options.device = device;
  options.invariant = invariant;
  options.context = 1024;
  Engine engine(options);
  std::vector<Request*> requests;
  for (const char* prompt : kPrompts) {
    RequestOptions request;
    request.prompt = engine.tokenizer().encode(prompt);
    request.max_tokens = count;
    request.ignore_end = true;
    request.keep_logits = true;
    requests.push_back(&engine.submit(std::move(request)));
    while (!together && engine.step()) {}
  }
  while (engine.step()) {}
  Answers answers;
  for (const Request* r : requests) {
    if (!r->error.empty()) throw std::runtime_error(r->error);
    answers.tokens.emplace_back(r->made().begin(), r->made().end());
    answers.logits.push_back(r->logits);
  }
  const EngineStats& s = engine.stats();
  if (s.decode_seconds > 0) answers.decode_tokens_per_second = static_cast<double>(s.decode_tokens) / s.decode_seconds;
  if (s.prompt_seconds > 0) answers.prompt_tokens_per_second = static_cast<double>(s.prompt_tokens) / s.prompt_seconds;
  answers.device = engine.executor().description();
  answers.step = engine.executor().step_summary();
  return answers;
}

struct Comparison {
  int64_t same = 0, ties = 0, wrong = 0;
  double largest_logit_error = 0;
  Json differences = Json::array();
};

// After two answers part their texts differ, and there is nothing left to compare.
Comparison compare(const Answers& expected, const Answers& found) {
  Comparison c;
  for (size_t p = 0; p < expected.tokens.size(); ++p)
    for (size_t i = 0; i < expected.tokens[p].size(); ++i) {
      const std::vector<float>& logits = expected.logits[p][i];
      for (size_t v = 0; v < logits.size(); ++v)
        c.largest_logit_error =
            std::max(c.largest_logit_error, std::abs(static_cast<double>(logits[v]) - found.logits[p][i][v]));
      if (expected.tokens[p][i] == found.tokens[p][i]) {
        ++c.same;
        continue;
      }
      std::vector<float> sorted = logits;
      std::nth_element(sorted.begin(), sorted.begin() + 1, sorted.end(), std::greater<>());
      const float gap = sorted[0] - sorted[1];
      ++(gap > kTie ? c.wrong : c.ties);
      c.differences.push_back({{"prompt", p}, {"token", i}, {"expected", expected.tokens[p][i]},
                               {"found", found.tokens[p][i]}, {"gap", gap}});
      break;
    }
  return c;
}

Json to_json(const Answers& a, const Comparison& c) {
  return {{"device", a.device}, {"same", c.same}, {"ties", c.ties}, {"wrong", c.wrong},
          {"largest_logit_error", c.largest_logit_error}, {"differences", c.differences}, {"step", a.step},
          {"decode_tokens_per_s", a.decode_tokens_per_second}, {"prompt_tokens_per_s", a.prompt_tokens_per_second}};
}

int check_random(int argc, char** argv) {
  fulmen::engine_check::RandomRun run;
  run.shape = argc > 2 ? argv[2] : "";
  for (int i = 3; i < argc; ++i) {
    const std::string option = argv[i];
    const auto value = [&] { return std::string(i + 1 < argc ? argv[++i] : ""); };
    if (option == "--invariant") {
      run.invariant = true;
    } else if (option == "--batch") {
      run.batches.clear();
      std::istringstream list(value());
      for (std::string one; std::getline(list, one, ',');) run.batches.push_back(std::max(1ll, std::atoll(one.c_str())));
    } else if (option == "--context") {
      run.context = std::max(1ll, std::atoll(value().c_str()));
    } else if (option == "--tokens") {
      run.tokens = std::atoll(value().c_str());
    } else if (option == "--kv-type") {
      run.kv_type = value();
      if (run.kv_type != "f16" && run.kv_type != "bf16") {
        fmt::print(stderr, "fulmen-engine-check: --kv-type: expected f16 or bf16, found {}\n", run.kv_type);
        return 2;
      }
    } else {
      fmt::print(stderr, "fulmen-engine-check: unknown option {}\n", option);
      return 2;
    }
  }
  try {
    const Json result = fulmen::engine_check::run_random(run);
    fmt::print("{}\n", result.dump(1));
    return result["passed"] ? 0 : 1;
  } catch (const std::exception& error) {
    fmt::print("{}\n", Json{{"passed", false}, {"error", error.what()}}.dump(1));
    return 1;
  }
}

int check(int argc, char** argv) {
  if (argc < 2) {
    fmt::print(stderr, "usage: fulmen-engine-check MODEL.gguf [tokens] | --random SHAPE [--batch 1,64] [--context N] [--tokens N] "
                       "[--kv-type f16|bf16] [--invariant]\n");
    return 2;
  }
  if (std::string(argv[1]) == "--random") return check_random(argc, argv);
  const int64_t count = argc > 2 ? std::atoll(argv[2]) : 48;
  try {
    using Device = EngineOptions::Device;
    const Answers cpu = answer(argv[1], Device::kCpu, false, count, true);
    Json result, cases = Json::object();
    result["cpu"] = {{"device", cpu.device}, {"decode_tokens_per_s", cpu.decode_tokens_per_second}};
    int64_t wrong = 0;
    const auto run = [&](const char* name, bool invariant, bool together) {
      Answers gpu = answer(argv[1], Device::kCuda, invariant, count, together);
      const Comparison c = compare(cpu, gpu);
      wrong += c.wrong;
      cases[name] = to_json(gpu, c);
      return gpu;
    };
    const Answers first = run("batch of 8", false, true), again = run("batch of 8, again", false, true);
    const bool repeats = first.tokens == again.tokens && first.logits == again.logits;
    run("one by one", false, false);
    result["equal_bitwise_run_to_run"] = repeats;
    try {
      const Answers together = run("batch of 8, invariant", true, true), alone = run("one by one, invariant", true, false);
      const bool equal = together.tokens == alone.tokens && together.logits == alone.logits;
      result["invariant_answers_equal_bitwise"] = equal;
      wrong += equal ? 0 : 1;
    } catch (const std::exception& error) {
      result["invariant_skipped"] = error.what();
    }
    result["engine"] = cases;
    result["passed"] = wrong == 0 && repeats;
    fmt::print("{}\n", result.dump(1));
    return result["passed"] ? 0 : 1;
  } catch (const std::exception& error) {
    fmt::print("{}\n", Json{{"passed", false}, {"error", error.what()}}.dump(1));
    return 1;
  }
}

}  // namespace

int main(int argc, char** argv) {
  try {
    return check(argc, argv);
  } catch (...) {  // not even the error could be told
    return 1;
  }
}
