// What runs where: the one function that fulmen_supports, dispatch, the docs' table and the tests ask.
#pragma once

#include <string>

#include "fulmen/fulmen.h"

namespace fulmen {

enum class Backend { cpu, cuda };

// "cpu", "cuda" or "sm_XX"; throws invalid_argument for anything else.
Backend backend_of(const char* target);

// Empty: supported. Else what is missing, as a sentence.
std::string missing(Backend backend, const fulmen_op_spec& spec);
// The same of a target, which may be one that is known by name: its shared memory bounds what fits.
std::string missing(const char* target, const fulmen_op_spec& spec);
std::string missing_attention(Backend backend, const fulmen_attention_spec& spec, const fulmen_attention_limits* limits);

// Bits 1 << fulmen_dtype: what the op's main input may be (attention: q) on the back end.
uint32_t supported_dtypes(Backend backend, fulmen_op op);

// Throws unsupported, led by the op's name, unless missing() is empty.
void require_support(Backend backend, const fulmen_op_spec& spec);

// A caller built on another version has specs of another size.
inline const fulmen_op_spec* nth_spec(const fulmen_op_spec* specs, int32_t i) {
  return reinterpret_cast<const fulmen_op_spec*>(reinterpret_cast<const char*>(specs) + specs->struct_size * static_cast<size_t>(i));
}

}  // namespace fulmen
