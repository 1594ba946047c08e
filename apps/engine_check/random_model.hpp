// A model of random bf16 weights in a memory file: the shape of a real one without its gigabytes on disk.
#pragma once

#include "engine/gguf.hpp"
#include "engine/model.hpp"
#include "engine/pool.hpp"

#include <string>

namespace fulmen::engine_check {

/// llama-3-8b or smollm2-135m. Throws InputError for another name.
engine::ModelConfig named_shape(const std::string& name);

/// The same seedless weights every time, scaled so that activations keep their size from layer to layer.
engine::GgufFile random_model(const engine::ModelConfig& shape, engine::Pool& pool);

}  // namespace fulmen::engine_check
