// The device code as text: embedded in the library, or read from a source tree for the edit-run loop.
#pragma once

#include <map>
#include <string>
#include <string_view>

namespace fulmen {

struct SourceFile {
  const char* name;  // as it is included: "kernels/prelude/prelude.hpp"
  const char* text;
};
extern const SourceFile kEmbeddedSources[];  // ends with a null name; written by src/embed.cmake

using Sources = std::map<std::string, std::string, std::less<>>;  // name -> text

const Sources& embedded_sources();

// The files below tree/kernels. Throws io_error.
Sources read_sources(const std::string& tree);

// The files that `text` includes, directly or not: what the compiler gets to see and what the key is made of. Lines
// are taken as written, whether or not a condition hides them. Only <kernels/...> and <user/...> are followed;
// throws invalid_argument where such a file is missing.
Sources reached_sources(std::string_view text, const Sources& sources);

}  // namespace fulmen
