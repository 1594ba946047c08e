#pragma once

#include <algorithm>
#include <string>
#include <vector>

#include "engine/tokenizer.hpp"
#include "engine/utf8.hpp"

namespace fulmen::test {

/// A vocabulary of all bytes, a few merges and special tokens; owns what data() points to.
class SmallVocabulary {
 public:
  using Type = engine::TokenizerData::Type;

  explicit SmallVocabulary(std::string pre = "gpt2") : pre_(std::move(pre)) {
    uint32_t next = 256;
    for (uint32_t b = 0; b < 256; ++b) {
      const bool printable = (b >= 0x21 && b <= 0x7e) || (b >= 0xa1 && b != 0xad);
      std::string token;
      engine::append_utf8(token, printable ? b : next++);
      add(token, Type::normal);
    }
  }

  SmallVocabulary& add(std::string token, Type type) {
    tokens_.push_back(std::move(token));
    types_.push_back(type);
    return *this;
  }
  /// Adds the merge and, if it is new, the token it makes.
  SmallVocabulary& merge(const std::string& left, const std::string& right) {
    merges_.push_back(left + " " + right);
    if (std::find(tokens_.begin(), tokens_.end(), left + right) == tokens_.end())
      add(left + right, Type::normal);
    return *this;
  }
  SmallVocabulary& merge_as_is(std::string merge) {
    merges_.push_back(std::move(merge));
    return *this;
  }

  engine::TokenizerData data() const {
    engine::TokenizerData out;
    out.tokens.assign(tokens_.begin(), tokens_.end());
    out.types = types_;
    out.merges.assign(merges_.begin(), merges_.end());
    out.pre = pre_;
    return out;
  }
  engine::Tokenizer tokenizer() const { return engine::Tokenizer(data()); }

  /// With merges for "hello", control tokens like those of chat models and a user-defined one.
  static SmallVocabulary chat(std::string pre = "gpt2") {
    SmallVocabulary out(std::move(pre));
    out.merge("h", "e")
        .merge("l", "l")
        .merge("ll", "o")
        .merge("he", "llo")
        .merge("Ġ", "hello")
        .merge("Ċ", "Ċ");
    out.add("<|im_start|>", Type::control).add("<|im_end|>", Type::control).add("<|im", Type::control);
    out.add("<tool>", Type::user_defined);
    return out;
  }

 private:
  std::string pre_;
  std::vector<std::string> tokens_, merges_;
  std::vector<Type> types_;
};

}  // namespace fulmen::test
