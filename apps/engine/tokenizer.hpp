#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "engine/gguf.hpp"

namespace fulmen::engine {

/// What a tokenizer is made from; the views need to live only while it is made.
struct TokenizerData {
  /// Values of the GGUF key tokenizer.ggml.token_type.
  enum class Type : int32_t { normal = 1, unknown = 2, control = 3, user_defined = 4, unused = 5, byte = 6 };

  std::vector<std::string_view> tokens;  // by id; normal ones in the byte-level alphabet ("Ġthe" for " the")
  std::vector<Type> types;               // as many as tokens
  std::vector<std::string_view> merges;  // "left right", best first
  std::string_view pre;                  // name of the pre-tokenizer
  std::optional<int32_t> bos, eos, eot;
  bool add_bos = false;
};

/// Reads the keys tokenizer.ggml.*; throws InputError for a tokenizer that isn't a byte-level BPE.
TokenizerData read_tokenizer_data(const GgufFile& file);

/// Text in which some parts are special tokens and the rest is plain, whatever it looks like.
struct TextPart {
  std::string text;
  bool special = false;  // text is exactly one token of the vocabulary
};

/// A byte-level BPE. Immutable; all functions may be called from several threads.
class Tokenizer {
 public:
  explicit Tokenizer(const TokenizerData& data);
  explicit Tokenizer(const GgufFile& file) : Tokenizer(read_tokenizer_data(file)) {}
  Tokenizer(Tokenizer&&) noexcept;
  ~Tokenizer();

  struct EncodeOptions {
    /// Take the names of control tokens in the text ("<|im_end|>") for the tokens. Off: they are plain text.
    /// User-defined tokens, which a model treats as words, are always found.
    bool parse_special = false;
  };
  /// Tokens of a text; no BOS is added. Throws InputError naming the byte where text stops being valid UTF-8.
  /// A byte that has no token (SmolLM2 lacks some control characters) is left out, as the models' own
  /// tokenizers do.
  std::vector<int32_t> encode(std::string_view text, EncodeOptions options) const;
  std::vector<int32_t> encode(std::string_view text) const { return encode(text, EncodeOptions{}); }
  /// Tokens of parts; neighbouring plain parts are cut as one text. Throws InputError for a special part that
  /// isn't a token.
  std::vector<int32_t> encode(std::span<const TextPart> parts) const;

  /// Bytes of a token, which may be part of a character (see Utf8Stream); of a control token its name.
  /// Throws std::out_of_range for an id outside the vocabulary.
  std::string_view decode(int32_t token) const;
  std::string decode(std::span<const int32_t> tokens) const;

  int32_t vocab_size() const;
  std::optional<int32_t> find(std::string_view bytes) const;  // the token with exactly these bytes
  bool is_control(int32_t token) const;
  bool ends_generation(int32_t token) const;  // EOS, end of turn
  std::optional<int32_t> bos() const;
  std::optional<int32_t> eos() const;
  bool add_bos() const;  // the model expects BOS before every text

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace fulmen::engine
