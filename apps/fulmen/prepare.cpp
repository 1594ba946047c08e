// `fulmen prepare`: fills the cache directory with machine code, for this GPU or for one that isn't here.
#include "exit_codes.hpp"
#include "options.hpp"
#include "terminal.hpp"

#include "engine/gguf.hpp"
#include "engine/input_error.hpp"
#include "engine/kernel_specs.hpp"

#include <fmt/format.h>
#include <fulmen/fulmen.hpp>
#include <nlohmann/json.hpp>

#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <fstream>
#include <list>
#include <memory>
#include <optional>

namespace fulmen::command {
namespace {

using Json = nlohmann::ordered_json;

constexpr int64_t kDefaultContext = 8192;  // the engine's

/// The specs of a file: a list of {"op", "dtype"}, for attention with sizes beside them.
class SpecFile {
 public:
  explicit SpecFile(const std::string& path) : path_(path) {
    std::ifstream file(path);
    if (!file) throw engine::InputError(fmt::format("{}: can't be read", path));
    const Json json = Json::parse(file, nullptr, false);
    if (!json.is_array()) throw engine::InputError(fmt::format("{}: expected a JSON list of specs", path));
    for (const Json& entry : json) add(entry);
  }
  const std::vector<fulmen_op_spec>& all() const { return specs_; }

 private:
  int64_t integer(const Json& entry, const char* name, int64_t fallback) const {
    const auto found = entry.find(name);
    if (found == entry.end()) return fallback;
    if (!found->is_number_integer())
      throw engine::InputError(fmt::format("{}: {}: expected an integer, found {}", path_, name, found->dump()));
    return found->get<int64_t>();
  }
  std::string word(const Json& entry, const char* name, const char* fallback) const {
    const auto found = entry.find(name);
    if (found == entry.end() && fallback) return fallback;
    if (found == entry.end() || !found->is_string())
      throw engine::InputError(fmt::format("{}: expected a word as \"{}\" of {}", path_, name, entry.dump()));
    return found->get<std::string>();
  }
  int32_t dtype(const Json& entry) const {
    const std::string name = word(entry, "dtype", "bf16");
    for (const auto& [known, value] : {std::pair{"f32", FULMEN_F32}, {"f16", FULMEN_F16}, {"bf16", FULMEN_BF16}})
      if (name == known) return value;
    throw engine::InputError(fmt::format("{}: dtype: expected f32, f16 or bf16, found {}", path_, engine::quoted(name)));
  }
  int32_t op(const Json& entry) const {
    const std::string name = word(entry, "op", nullptr);
    for (int32_t op = 0; op < FULMEN_OP_COUNT; ++op)
      if (name == fulmen_op_name(static_cast<fulmen_op>(op))) return op;
    throw engine::InputError(fmt::format("{}: op: found {}, which is none", path_, engine::quoted(name)));
  }
  void add(const Json& entry) {
    if (!entry.is_object()) throw engine::InputError(fmt::format("{}: expected objects, found {}", path_, entry.dump()));
    auto spec = make<fulmen_op_spec>();
    spec.op = op(entry);
    spec.dtype = dtype(entry);
    if (spec.op == FULMEN_OP_ATTENTION) {
      attentions_.push_back(attention(entry, static_cast<fulmen_dtype>(spec.dtype)));
      spec.attention = &attentions_.back().spec;
      spec.limits = entry.contains("max_rows") ? &attentions_.back().limits : nullptr;
    }
    specs_.push_back(spec);
  }
  engine::KernelSpecs::OneAttention attention(const Json& entry, fulmen_dtype dtype) const {
    engine::KernelSpecs::OneAttention a{make<fulmen_attention_spec>(), make<fulmen_attention_limits>()};
    a.spec.q_dtype = a.spec.kv_dtype = a.spec.o_dtype = dtype;
    a.spec.head_dim_qk = static_cast<int32_t>(integer(entry, "head_dim", 128));
    a.spec.head_dim_vo = static_cast<int32_t>(integer(entry, "head_dim_vo", a.spec.head_dim_qk));
    a.spec.features = static_cast<uint32_t>(integer(entry, "features", 0));
    a.spec.batch_invariant = static_cast<int32_t>(integer(entry, "batch_invariant", 0));
    a.limits.max_requests = integer(entry, "max_requests", 1);
    a.limits.max_rows = integer(entry, "max_rows", 1);
    a.limits.max_qo_len = integer(entry, "max_qo_len", 0);
    a.limits.max_kv_len = integer(entry, "max_kv_len", kDefaultContext);
    a.limits.num_levels = static_cast<int32_t>(integer(entry, "num_levels", 1));
    a.limits.num_groups = 1;
    a.limits.groups[0] = make<fulmen_attention_group>();
    a.limits.groups[0].num_qo_heads = static_cast<int32_t>(integer(entry, "num_qo_heads", 32));
    a.limits.groups[0].num_kv_heads = static_cast<int32_t>(integer(entry, "num_kv_heads", 8));
    a.limits.groups[0].causal = static_cast<int32_t>(integer(entry, "causal", 1));
    a.limits.groups[0].window_left = static_cast<int32_t>(integer(entry, "window_left", -1));
    return a;
  }

  std::string path_;
  std::list<engine::KernelSpecs::OneAttention> attentions_;  // the specs point at them
  std::vector<fulmen_op_spec> specs_;
};

std::unique_ptr<engine::KernelSpecs> specs_of_model(const PrepareOptions& options) {
  const ModelOptions& m = options.model;
  const bool is_json = m.model.ends_with(".json");
  const engine::ModelConfig config =
      is_json ? engine::read_config_json(m.model) : engine::read_model_config(engine::GgufFile::open(m.model, {.mmap = true}));
  const int64_t context = m.context > 0 ? m.context : std::min(config.context, kDefaultContext);
  const fulmen_dtype dtype = m.kv_type == "bf16" ? FULMEN_BF16 : FULMEN_F16;
  return std::make_unique<engine::KernelSpecs>(
      config, engine::executor_limits(m.batch, m.chunk, m.page_size, context, dtype), m.invariant);
}

struct Progress {
  bool redraws = isatty(STDERR_FILENO) != 0;
  double slowest = 0;
  std::string slowest_kernel;

  static void called(void* user, int32_t done, int32_t total, const char* kernel, double seconds) {
    auto& self = *static_cast<Progress*>(user);
    if (seconds > self.slowest) self.slowest = seconds, self.slowest_kernel = kernel;
    if (self.redraws) fmt::print(stderr, "\r\033[K[{}/{}] {} {:.2f} s{}", done, total, kernel, seconds, done == total ? "\r\033[K" : "");
    std::fflush(stderr);
  }
};

std::string table(const Json& rows) {
  std::string text;
  for (const Json& row : rows)
    text += fmt::format("{:<13} {:<15} {:<6} {}\n", row["op"].get<std::string>(), row["kernel"].get<std::string>(),
                        row["cached"].get<bool>() ? "cached" : "-", row["config"].dump());
  return text;
}

}  // namespace

int run_prepare(const PrepareOptions& options) {
  std::unique_ptr<engine::KernelSpecs> of_model;
  std::optional<SpecFile> of_file;
  std::vector<fulmen_op_spec> specs;
  if (!options.model.model.empty()) specs = (of_model = specs_of_model(options))->all();
  if (!options.specs.empty()) {
    of_file.emplace(options.specs);
    specs.insert(specs.end(), of_file->all().begin(), of_file->all().end());
    if (specs.empty()) throw engine::InputError(fmt::format("{}: no spec in it", options.specs));
  }
  const auto count = static_cast<int32_t>(specs.size());
  auto where = make<fulmen_context_options>();
  where.device_type = FULMEN_CUDA;
  where.cache_dir = options.cache.empty() ? nullptr : options.cache.c_str();
  where.nvrtc_path = options.nvrtc.empty() ? nullptr : options.nvrtc.c_str();
  Progress progress;
  const auto start = std::chrono::steady_clock::now();
  const auto seconds = [&] { return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count(); };

  if (options.target.empty() || options.target == "cuda") {  // this machine's GPU: compiled, and loaded to see that it can be
    if (options.list) throw engine::InputError("--list needs --target with a name such as sm_90a");
    Context context(where);
    context.prepare(specs, Progress::called, &progress);
    const Json stats = Json::parse(context.stats());
    write_result(fmt::format("{} compiled, {} from the cache, in {:.1f} s\n", stats["compiles"].get<int64_t>(),
                             stats["disk_hits"].get<int64_t>(), seconds()));
    flush_results();
    return kSuccess;
  }
  const auto list = [&] {
    char* json = nullptr;
    check(fulmen_prepare_list(options.target.c_str(), &where, specs.data(), count, &json));
    return Json::parse(take_text(json));
  };
  const Json rows = list();
  if (options.list) {
    write_result(options.json ? rows.dump(1) + "\n" : table(rows));
    flush_results();
    return kSuccess;
  }
  const auto cached = std::count_if(rows.begin(), rows.end(), [](const Json& row) { return row["cached"].get<bool>(); });
  check(fulmen_prepare_target(options.target.c_str(), &where, specs.data(), count, Progress::called, &progress));
  const auto compiled = static_cast<int64_t>(rows.size()) - cached;
  const Json result = {{"target", options.target}, {"kernels", rows.size()}, {"compiled", compiled}, {"cached", cached},
                       {"seconds", seconds()}, {"slowest", {{"kernel", progress.slowest_kernel}, {"seconds", progress.slowest}}}};
  write_result(options.json ? result.dump(1) + "\n"
                            : fmt::format("{} kernels for {}: {} compiled, {} from the cache, in {:.1f} s; slowest {} {:.2f} s\n",
                                          rows.size(), options.target, compiled, cached, seconds(), progress.slowest_kernel,
                                          progress.slowest));
  flush_results();
  return kSuccess;
}

}  // namespace fulmen::command
