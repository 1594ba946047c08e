// A unit is one kernel made from one config value: what is said about it, and its program text.
//
//   Unit unit = make_unit<AppendParams>("append_kv", {"kernels/append/append_kv.cuh"}, "AppendConfig", config,
//                                       "AppendParams", "append_kv<kConfig>(params);");
//   std::string text = program_text(unit);
#pragma once

#include <concepts>
#include <cstdint>
#include <string>
#include <type_traits>
#include <vector>

#include "kernels/prelude/prelude.hpp"

namespace fulmen {

// Something that host and device must agree on: static_assert(expression == value).
struct SizeAssert {
  std::string expression;
  int64_t value;
  bool operator==(const SizeAssert&) const = default;
};

// An argument of the entry, passed whole as a grid constant.
struct UnitParam {
  std::string type;
  std::string name;
  bool operator==(const UnitParam&) const = default;
};

struct Unit {
  std::string kernel;                 // [a-z0-9_]+: names it in logs, dumps and errors
  std::vector<std::string> includes;  // "kernels/append/append_kv.cuh"
  std::string config_type;            // empty: the kernel has no config
  std::string config;                 // "{.dtype = DType::bf16, .vec_bytes = 16}"
  std::string config_json;
  std::vector<SizeAssert> asserts;
  std::vector<UnitParam> params;
  std::string body;                   // "append_kv<kConfig>(params);"
  int num_threads = 0;                // of a block: the launch bound
  int min_blocks = 1;                 // per SM: with it the compiler knows how many registers it may use
  int cluster_blocks = 1;             // blocks of a cluster (sm_90): the grid is a multiple of it
  int smem_bytes = 0;                 // dynamic shared memory of a launch
  std::string user_source;            // a user's variant, included as <user/variant.hpp> when not empty

  bool operator==(const Unit&) const = default;
};

// The whole translation unit, under twenty lines.
std::string program_text(const Unit& unit);

// --- from a config struct to its text. A config lists its fields once:
//   template <class Visitor> constexpr void visit(Visitor&& field) const { field("dtype", dtype); ... }
// A field is a bool, an integer, a DType, another config, or an enum with `constexpr const char* enumerator(E)` beside
// it in its header, which gives the enumerator as C++ spells it ("Filter::joint").

const char* enumerator(DType dtype);

template <class T>
concept Config = requires(const T& config) { config.visit([](const char*, const auto&) {}); };

template <class T>
std::string literal(const T& value) {
  if constexpr (Config<T>) {
    std::string text;
    value.visit([&](const char* name, const auto& field) {
      text += (text.empty() ? "{." : ", .") + std::string(name) + " = " + literal(field);
    });
    return (text.empty() ? "{" : text) + "}";
  } else if constexpr (std::same_as<T, bool>) {
    return value ? "true" : "false";
  } else if constexpr (std::is_enum_v<T>) {
    return enumerator(value);
  } else {
    static_assert(std::is_integral_v<T>, "a config's fields are bools, integers, enums and configs");
    return std::to_string(value);
  }
}

template <class T>
std::string json(const T& value) {
  if constexpr (Config<T>) {
    std::string text;
    value.visit([&](const char* name, const auto& field) {
      text += (text.empty() ? "{\"" : ", \"") + std::string(name) + "\": " + json(field);
    });
    return (text.empty() ? "{" : text) + "}";
  } else if constexpr (std::is_enum_v<T>) {
    const std::string name = enumerator(value);
    return "\"" + name.substr(name.rfind(':') + 1) + "\"";
  } else {
    return literal(value);
  }
}

// The unit of a kernel with a config and one params struct. Where the config computes num_threads(), min_blocks(),
// cluster_blocks() or smem_bytes(), these become the launch's numbers and what host and device must agree on.
template <class Params, Config C>
Unit make_unit(std::string kernel, std::vector<std::string> includes, std::string config_type, const C& config,
               std::string params_type, std::string body) {
  static_assert(std::is_trivially_copyable_v<Params>, "params are copied to the device byte by byte");
  Unit unit;
  unit.kernel = std::move(kernel);
  unit.includes = std::move(includes);
  unit.config_type = std::move(config_type);
  unit.config = literal(config);
  unit.config_json = json(config);
  unit.body = std::move(body);
  unit.asserts.push_back({"sizeof(" + params_type + ")", static_cast<int64_t>(sizeof(Params))});
  unit.params.push_back({std::move(params_type), "params"});
  if constexpr (requires { config.smem_bytes(); }) {
    unit.smem_bytes = config.smem_bytes();
    unit.asserts.push_back({"kConfig.smem_bytes()", unit.smem_bytes});
  }
  if constexpr (requires { config.min_blocks(); }) {
    unit.min_blocks = config.min_blocks();
    unit.asserts.push_back({"kConfig.min_blocks()", unit.min_blocks});
  }
  if constexpr (requires { config.cluster_blocks(); }) {
    unit.cluster_blocks = config.cluster_blocks();
    unit.asserts.push_back({"kConfig.cluster_blocks()", unit.cluster_blocks});
  }
  unit.num_threads = config.num_threads();
  unit.asserts.push_back({"kConfig.num_threads()", unit.num_threads});
  return unit;
}

}  // namespace fulmen
