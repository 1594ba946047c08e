// The command `fulmen`: reads the command line, runs one subcommand, turns errors into one line and an exit code.
#include "exit_codes.hpp"
#include "options.hpp"
#include "terminal.hpp"

#include "engine/input_error.hpp"

#include <CLI/App.hpp>
#include <CLI/Config.hpp>
#include <CLI/Formatter.hpp>
#include <fmt/format.h>
#include <fulmen/fulmen.hpp>

#include <cstdlib>
#include <exception>
#include <functional>
#include <map>
#include <new>

namespace fulmen::command {
namespace {

constexpr int64_t kMostTokens = 1 << 24;

/// "256M" and the like, in bytes.
std::string parse_size(const std::string& text, int64_t& bytes) {
  char* end = nullptr;
  const double number = std::strtod(text.c_str(), &end);  // 0 where there is none
  std::string unit = end;
  if (unit.ends_with("iB")) unit.resize(unit.size() - 2);
  else if (unit.ends_with("B")) unit.resize(unit.size() - 1);
  const std::map<std::string, double> units = {{"", 1}, {"K", 1024.0}, {"M", 1048576.0}, {"G", 1073741824.0}};
  const auto factor = units.find(unit);
  if (!(number > 0 && number < 1e15) || factor == units.end() || number * factor->second > 1e15)
    return fmt::format("expected a size such as 512M or 2G, found {}", engine::quoted(text));
  bytes = static_cast<int64_t>(number * factor->second);
  return {};
}

/// What decides which kernels a model needs, beside the model.
void add_step_options(CLI::App& app, ModelOptions& o) {
  const char* group = "Model and machine";
  app.add_option("--context", o.context, "tokens of a request, prompt and answer; 0: the model's, at most 8192")
      ->check(CLI::Range(int64_t{0}, kMostTokens))->capture_default_str()->group(group);
  app.add_option("--batch", o.batch, "requests that run at once")
      ->check(CLI::Range(1, 4096))->capture_default_str()->group(group);
  app.add_option("--chunk", o.chunk, "prompt tokens of one request in one step")
      ->check(CLI::Range(1, 65536))->capture_default_str()->group(group);
  app.add_option("--kv-type", o.kv_type, "f16, bf16 or f32: how keys and values are stored")
      ->check(CLI::IsMember({"f16", "bf16", "f32"}))->capture_default_str()->group(group);
  app.add_flag("--invariant", o.invariant,
               "an answer doesn't depend on the other requests; always so on the CPU, where it costs nothing")->group(group);
}

void add_model_options(CLI::App& app, ModelOptions& o) {
  const char* group = "Model and machine";
  app.add_option("-m,--model", o.model, "GGUF file; default: FULMEN_MODEL, else the demo's model")->group(group);
  app.add_option("--device", o.device, "cpu, cuda or auto; auto never fails for want of a GPU")
      ->check(CLI::IsMember({"cpu", "cuda", "auto"}))
      ->each([&o](const std::string&) { o.device_given = true; })
      ->capture_default_str()
      ->group(group);
  app.add_option("--threads", o.threads, "CPU threads; 0: FULMEN_NUM_THREADS, else what affinity and cgroup allow")
      ->check(CLI::Range(0, 1024))->capture_default_str()->group(group);
  add_step_options(app, o);
  auto* pages = app.add_option("--pages", o.pages, "pages of the KV cache")
                    ->check(CLI::Range(int64_t{1}, int64_t{1} << 28))->group(group);
  app.add_option_function<std::string>(
         "--kv-memory",
         [&o](const std::string& text) {
           if (const std::string error = parse_size(text, o.kv_memory); !error.empty())
             throw CLI::ValidationError("--kv-memory", error);
         },
         "memory of the KV cache instead, such as 512M; default 256M")
      ->excludes(pages)->group(group);
  app.add_option("--page-size", o.page_size, "tokens of a page")
      ->check(CLI::Range(1, 1024))->capture_default_str()->group(group);
  app.add_flag("--no-prefix-sharing", o.no_prefix_sharing, "compute equal beginnings of prompts for each request")
      ->group(group);
  app.add_flag("--no-mmap", o.no_mmap, "read the model file instead of mapping it")->group(group);
}

void add_generate_options(CLI::App& app, GenerateOptions& o) {
  const char* input = "Prompts";
  app.add_option("-p,--prompt", o.prompts, "a prompt; may be given several times")->allow_extra_args(false)->group(input);
  app.add_option("-f,--file", o.files, "a file of prompts, a line each, or JSONL; - is standard input")
      ->allow_extra_args(false)->group(input);
  app.add_option("input", o.files, "the same without -f")->group(input);
  app.add_option("--format", o.format, "of files: lines, jsonl, text (one prompt) or auto")
      ->check(CLI::IsMember({"lines", "jsonl", "text", "auto"}))->capture_default_str()->group(input);
  app.add_option("--system", o.system, "system message before each prompt")->group(input);
  app.add_flag("--chat", o.chat, "a conversation: each line of standard input is a message")->group(input);
  app.add_option("--chat-template", o.chat_template,
                 "how a conversation is written: auto (the model's), none (plain text), or one of " +
                     engine::ChatTemplate::names())->capture_default_str()->group(input);
  app.add_flag("--special", o.special, "take names of special tokens in prompts for the tokens")->group(input);

  const char* answer = "Answers";
  app.add_option("--max-tokens", o.max_tokens, "tokens of an answer")
      ->check(CLI::Range(int64_t{1}, kMostTokens))->capture_default_str()->group(answer);
  app.add_option("--temperature", o.sampling.temperature, "0: always the most likely token")
      ->check(CLI::Range(0.0, 100.0))->capture_default_str()->group(answer);
  app.add_option("--top-k", o.sampling.top_k, "draw from the k most likely tokens; 0: from all")
      ->check(CLI::Range(0, 1 << 30))->capture_default_str()->group(answer);
  app.add_option("--top-p", o.sampling.top_p, "draw from the most likely tokens that together have probability p")
      ->check(CLI::Range(0.0, 1.0))->capture_default_str()->group(answer);
  app.add_option("--min-p", o.sampling.min_p, "drop tokens less likely than this times the most likely one")
      ->check(CLI::Range(0.0, 1.0))->capture_default_str()->group(answer);
  app.add_option("--seed", o.sampling.seed, "the same seed gives the same answer to the same prompt")
      ->capture_default_str()->group(answer);
  app.add_option("--stop", o.stop, "end an answer before this text; may be given several times")
      ->allow_extra_args(false)->group(answer);
  app.add_flag("--ignore-end", o.ignore_end, "go on after the model's end of turn")->group(answer);
  app.add_flag("--json", o.json, "one JSON object a line and request, see docs/json-output.md")->group(answer);
  app.add_flag("--stats", o.stats, "a table of times and pages on standard error")->group(answer);
}

void set_log_level(const std::string& name) {
  const fulmen_log_level level = name == "debug"     ? FULMEN_LOG_DEBUG
                                 : name == "info"    ? FULMEN_LOG_INFO
                                 : name == "warning" ? FULMEN_LOG_WARNING
                                                     : FULMEN_LOG_ERROR;
  fulmen_set_log([](void*, fulmen_log_level, const char* text) { fmt::print(stderr, "fulmen: {}\n", text); }, nullptr,
                 level);
}

/// Runs a command and turns what it throws into one line and a code.
int guarded(const std::function<int()>& run) {
  try {
    return run();
  } catch (const engine::InputError& error) {
    error_line(error.what());
    return kBadInput;
  } catch (const NoDevice& error) {
    error_line(error.what);
    return kNoDevice;
  } catch (const OutputError& error) {
    error_line(error.what);
    return kOutputFailed;
  } catch (const StatusError& error) {
    error_line(error.what());
    switch (error.status()) {
      case FULMEN_INVALID_ARGUMENT:
      case FULMEN_UNSUPPORTED:
      case FULMEN_IO_ERROR: return kBadInput;
      case FULMEN_NO_DEVICE: return kNoDevice;
      default: return kInternal;
    }
  } catch (const std::bad_alloc&) {
    error_line("not enough memory: a smaller --kv-memory or --context may help");
    return kBadInput;
  } catch (const std::exception& error) {
    error_line(error.what());
    return kInternal;
  }
}

int main(int argc, char** argv) {
  CLI::App app{"Answers prompts with a language model, and tells what Fulmen's kernels do.", "fulmen"};
  app.footer(kExitCodeHelp);
  app.set_version_flag("--version", fmt::format("fulmen {}", fulmen_version()));
  app.require_subcommand(1);
  bool quiet = false;
  std::string log_level = "warning";
  const auto add = [&](const char* name, const char* what) {
    CLI::App* command = app.add_subcommand(name, what);
    command->footer(kExitCodeHelp);
    command->add_flag("-q,--quiet", quiet, "no notes on standard error, only errors");
    command->add_option("--log-level", log_level, "what the library tells on standard error")
        ->check(CLI::IsMember({"error", "warning", "info", "debug"}))->capture_default_str();
    return command;
  };

  std::function<int()> run;
  GenerateOptions generate;
  CLI::App* command = add("generate", "answers prompts");
  add_generate_options(*command, generate);
  add_model_options(*command, generate.model);
  command->callback([&] { run = [&] { return generate.chat ? run_chat(generate) : run_generate(generate); }; });

  DemoOptions demo;
  command = add("demo", "answers six chat requests at once and shows how");
  command->add_option("--max-tokens", demo.max_tokens, "tokens of an answer")
      ->check(CLI::Range(int64_t{1}, kMostTokens))->capture_default_str();
  add_model_options(*command, demo.model);
  command->callback([&] { run = [&] { return run_demo(demo); }; });

  BenchOptions bench;
  command = add("bench", "measures the engine and the CPU ops against this machine's limits");
  command->add_flag("--json", bench.json, "the figures as JSON");
  command->add_flag("--quick", bench.quick, "fewer repetitions");
  command->add_option("--part", bench.part, "engine, ops or all")->check(CLI::IsMember({"engine", "ops", "all"}))->capture_default_str();
  add_model_options(*command, bench.model);
  command->callback([&] { run = [&] { return run_bench(bench); }; });

  PrepareOptions prepare;
  command = add("prepare", "compiles kernels ahead of time, for this GPU or another, into the cache folder");
  command->add_option("--target", prepare.target, "sm_80, sm_86, sm_89, sm_90, sm_90a, sm_100, sm_120: needs no GPU and no driver; "
                                                  "cuda, the default: this machine's GPU");
  command->add_option("-m,--model", prepare.model.model, "GGUF file or config.json: what the engine needs for it; default: all kernels");
  command->add_option("--specs", prepare.specs, "a JSON list of specs, see docs/cli.md");
  command->add_option("--cache", prepare.cache, "cache folder; default: FULMEN_CACHE_DIR, else ~/.cache/fulmen");
  command->add_option("--nvrtc", prepare.nvrtc, "the compiler, an absolute file; default: searched, see `fulmen info`");
  command->add_flag("--list", prepare.list, "only list the kernels and whether they are in the cache");
  command->add_flag("--json", prepare.json, "the result as JSON");
  add_step_options(*command, prepare.model);
  command->callback([&] { run = [&] { return run_prepare(prepare); }; });

  command = add("info", "version, devices, libraries that were looked for, cache folder, as JSON");
  command->callback([&] { run = [] { return run_info(); }; });

  ExplainOptions explain;
  command = add("explain", "which kernel a call would run and why, as JSON");
  command->add_option("--target", explain.target, "cpu, cuda, or a name such as sm_90a")->capture_default_str();
  command->add_option("--op", explain.op, "attention, rope, ...")->capture_default_str();
  command->add_option("--dtype", explain.dtype, "f32, f16 or bf16")
      ->check(CLI::IsMember({"f32", "f16", "bf16"}))->capture_default_str();
  command->add_option("--head-dim", explain.head_dim, "dimension of a head")->capture_default_str();
  command->add_option("--qo-heads", explain.num_qo_heads, "query heads")->capture_default_str();
  command->add_option("--kv-heads", explain.num_kv_heads, "key and value heads")->capture_default_str();
  command->add_option("--requests", explain.requests, "requests in a call")->capture_default_str();
  command->add_option("--rows", explain.rows, "query rows of all requests")->capture_default_str();
  command->add_option("--kv-len", explain.kv_len, "keys of the longest request")->capture_default_str();
  command->add_flag("--invariant", explain.invariant, "results don't depend on the other requests");
  command->callback([&] { run = [&] { return run_explain(explain); }; });

  command = app.add_subcommand("emulate", "runs a case of a GPU kernel on the CPU and prints what it costs; builds with tests only");
  command->prefix_command();
  command->set_help_flag();
  command->callback([command, &run] { run = [command] { return run_emulate(command->remaining()); }; });

  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    if (error.get_exit_code() == 0) return app.exit(error);  // --help, --version
    error_line(error.what());
    note("fulmen --help lists commands, fulmen COMMAND --help their options");
    return kUsage;
  }
  set_quiet(quiet);
  set_log_level(log_level);
  catch_interrupts();
  return guarded(run);
}

}  // namespace
}  // namespace fulmen::command

int main(int argc, char** argv) {
  try {
    return fulmen::command::main(argc, argv);
  } catch (...) {  // not even the error could be told
    return fulmen::command::kInternal;
  }
}
