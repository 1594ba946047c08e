#pragma once

#include <functional>
#include <memory>
#include <string>
#include <string_view>

namespace fulmen::engine {

/// Cuts text into words as the model's own pre-tokenizer does; merges of a byte-level BPE never cross a cut.
class PreTokenizer {
 public:
  /// name as in the GGUF key tokenizer.ggml.pre; an unknown one throws InputError that lists those known.
  explicit PreTokenizer(std::string_view name);
  PreTokenizer(PreTokenizer&&) noexcept;
  ~PreTokenizer();

  /// Text as the model wants it before it is cut (NFC for some); text must be valid UTF-8.
  std::string normalized(std::string_view text) const;
  /// Calls word(piece) for every piece in order; their concatenation is the text. text must be valid UTF-8.
  void split(std::string_view text, const std::function<void(std::string_view)>& word) const;
  /// A word that is a token is that token, whatever the merges would make of it.
  bool whole_words_first() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace fulmen::engine
