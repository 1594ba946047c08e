#include "cpu/attention_engine.hpp"
namespace fulmen::cpu {
const Engine* bf16_engine() { return nullptr; }
}  // namespace fulmen::cpu
