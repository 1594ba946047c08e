#include "jit/unit.hpp"

#include <fmt/format.h>

#include <iterator>

namespace fulmen {

const char* enumerator(DType dtype) {
  switch (dtype) {
    case DType::f32: return "DType::f32";
    case DType::f16: return "DType::f16";
    case DType::bf16: return "DType::bf16";
    case DType::f8_e4m3: return "DType::f8_e4m3";
    case DType::f8_e5m2: return "DType::f8_e5m2";
    case DType::i32: return "DType::i32";
    case DType::i64: return "DType::i64";
    case DType::u8: return "DType::u8";
    case DType::u32: return "DType::u32";
    case DType::u64: return "DType::u64";
  }
  return "DType(-1)";
}

std::string program_text(const Unit& unit) {
  std::string text = fmt::format("// {} {}\n", unit.kernel, unit.config_json);
  const auto out = std::back_inserter(text);
  for (const std::string& name : unit.includes) fmt::format_to(out, "#include <{}>\n", name);
  if (!unit.user_source.empty()) fmt::format_to(out, "#include <user/variant.hpp>\n");
  fmt::format_to(out, "using namespace fulmen;\n");
  if (!unit.config_type.empty()) fmt::format_to(out, "constexpr {} kConfig{};\n", unit.config_type, unit.config);
  for (const auto& [expression, value] : unit.asserts)
    fmt::format_to(out, "static_assert({} == {}, \"host and device disagree\");\n", expression, value);
  const std::string cluster = unit.cluster_blocks > 1 ? fmt::format("__cluster_dims__({}, 1, 1) ", unit.cluster_blocks) : "";
  fmt::format_to(out, "extern \"C\" __global__ void {}__launch_bounds__({}, {})\nfulmen_entry(", cluster, unit.num_threads,
                 unit.min_blocks);
  for (const UnitParam& param : unit.params)
    fmt::format_to(out, "{}const __grid_constant__ {} {}", &param == &unit.params[0] ? "" : ", ", param.type,
                   param.name);
  fmt::format_to(out, ") {{ {} }}\n", unit.body);
  return text;
}

}  // namespace fulmen
