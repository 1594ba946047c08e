// The kernels that Fulmen ships: the rows of `fulmen prepare --list`, which the tests compile for every target.
#pragma once

#include <string>
#include <vector>

#include "jit/unit.hpp"
#include "plan/targets.hpp"

namespace fulmen {

struct ShippedKernel {
  std::string op;
  Unit unit;
};

// A kernel stands here with each config that the tile tables give, its smallest first. Attention's variants are too many
// to stand here: they are made for the specs that name them.
std::vector<ShippedKernel> shipped_kernels(const Target& target);

}  // namespace fulmen
