// From the C structs of rope and append_kv to their plain ones, with every check: rope_append is both.
#pragma once

#include <kernels/append_kv/append_kv.params.hpp>
#include <kernels/rope/rope_append.params.hpp>

#include "core/context.hpp"
#include "fulmen/fulmen.h"

namespace fulmen {

RopeParams read_rope(const char* op, const fulmen_context& context, fulmen_rope_args args);
AppendKvParams read_append_kv(const char* op, const fulmen_context& context, const fulmen_append_kv_args& args);

}  // namespace fulmen
