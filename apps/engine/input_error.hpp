#pragma once

#include <stdexcept>
#include <string>
#include <string_view>

namespace fulmen::engine {

/// What a user gave can't be used: a file, a prompt, a setting. what() is one line for the user: what it is
/// about, what was expected, what was found and where.
class InputError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

/// Text from a file for an error line: quoted, at most 80 bytes, everything but printable ASCII as \xNN.
std::string quoted(std::string_view text);

}  // namespace fulmen::engine
