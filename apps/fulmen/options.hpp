// What the command line says, as plain structs. Only main.cpp knows the parser.
#pragma once

#include "engine/engine.hpp"

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace fulmen::command {

struct ModelOptions {  // of every command that runs a model
  std::string model;               // empty: default_model()
  std::string device = "auto";     // cpu | cuda | auto
  bool device_given = false;
  int threads = 0;
  int64_t context = 0;
  int batch = 16;
  int chunk = 256;
  int page_size = 16;
  int64_t pages = 0;
  int64_t kv_memory = 0;
  std::string kv_type = "f16";     // f16 | bf16 | f32
  bool no_mmap = false;
  bool no_prefix_sharing = false;
  bool invariant = false;
};

struct GenerateOptions {
  ModelOptions model;
  std::vector<std::string> prompts;
  std::vector<std::string> files;  // "-": standard input
  std::string format = "auto";     // lines | jsonl | text | auto
  std::string system;
  bool chat = false;
  std::string chat_template = "auto";  // auto: the model's; none: plain text; or a name
  bool special = false;
  std::vector<std::string> stop;
  int64_t max_tokens = 256;
  engine::Sampling sampling;
  bool ignore_end = false;
  bool stats = false;
  bool json = false;
};

struct DemoOptions {
  ModelOptions model;
  int64_t max_tokens = 100;
};

struct BenchOptions {
  ModelOptions model;
  bool json = false;
  bool quick = false;
  std::string part = "all";  // engine, ops, all
};

struct ExplainOptions {
  std::string target = "cpu";
  std::string op = "attention";
  std::string dtype = "f16";
  int head_dim = 128, num_qo_heads = 32, num_kv_heads = 8;
  int64_t requests = 8, rows = 8, kv_len = 4096;
  bool invariant = false;
};

struct PrepareOptions {
  ModelOptions model;   // model: GGUF, or a config.json; empty: every kernel that Fulmen ships
  std::string target;   // empty or cuda: this machine's GPU
  std::string specs;    // a JSON file
  std::string cache, nvrtc;
  bool list = false, json = false;
};

/// FULMEN_MODEL; else .fulmen/model/smollm2-135m-instruct.gguf in the working folder or one above it, or in one above
/// the program; else $XDG_DATA_HOME/fulmen/smollm2-135m-instruct.gguf. Throws InputError naming all places.
std::string default_model();

/// The engine for the options; notes and errors about the device as --device says.
std::unique_ptr<engine::Engine> make_engine(const ModelOptions& options);

struct NoDevice {
  std::string what;
};

int run_generate(const GenerateOptions& options);
int run_chat(const GenerateOptions& options);
int run_demo(const DemoOptions& options);
int run_bench(const BenchOptions& options);
int run_prepare(const PrepareOptions& options);
int run_info();
int run_explain(const ExplainOptions& options);
int run_emulate(const std::vector<std::string>& arguments);

}  // namespace fulmen::command
