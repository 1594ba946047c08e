#include "engine/tokenizer.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <mutex>
#include <stdexcept>
#include <unordered_map>
#include <utility>

#include "engine/input_error.hpp"
#include "engine/merge_table.hpp"
#include "engine/pre_tokenizer.hpp"
#include "engine/utf8.hpp"

namespace fulmen::engine {
namespace {

using Type = TokenizerData::Type;

/// The byte-level alphabet writes each byte as a printable code point: itself where it is one in Latin-1,
/// else the next from U+0100 on.
struct ByteAlphabet {
  std::array<uint32_t, 256> code_point{};
  std::array<int16_t, 512> byte{};  // -1: none

  ByteAlphabet() {
    byte.fill(-1);
    uint32_t next = 256;
    for (uint32_t b = 0; b < 256; ++b) {
      const bool printable = (b >= 0x21 && b <= 0x7e) || (b >= 0xa1 && b != 0xad);
      code_point[b] = printable ? b : next++;
      byte[code_point[b]] = static_cast<int16_t>(b);
    }
  }

  std::string written(unsigned char b) const {
    std::string out;
    append_utf8(out, code_point[b]);
    return out;
  }

  /// Appends the bytes that text writes; text that isn't in the alphabet stands for itself.
  void append_bytes(std::string& out, std::string_view text) const {
    const size_t start = out.size();
    for (std::string_view rest = text; !rest.empty();) {
      const Utf8Step step = utf8_step(rest);
      const bool known = step.kind == Utf8Step::Kind::code_point && step.code_point < byte.size() &&
                         byte[step.code_point] >= 0;
      if (!known) {
        out.resize(start);
        out += text;
        return;
      }
      out += static_cast<char>(byte[step.code_point]);
      rest.remove_prefix(step.bytes);
    }
  }
};

struct Hash {
  using is_transparent = void;
  size_t operator()(std::string_view text) const { return std::hash<std::string_view>{}(text); }
};

/// Finds the names of tokens in text: the leftmost, of those at one place the longest.
class NameFinder {
 public:
  void add(std::string_view name, int32_t token) {
    if (!name.empty())
      by_first_byte_[static_cast<unsigned char>(name[0])].push_back({std::string(name), token});
  }
  void finish() {
    for (auto& names : by_first_byte_) {
      std::sort(names.begin(), names.end(),
                [](const Name& a, const Name& b) { return a.text.size() > b.text.size(); });
    }
  }

  struct Found {
    size_t offset, bytes;
    int32_t token;
  };
  std::optional<Found> find(std::string_view text, size_t from) const {
    for (size_t offset = from; offset < text.size(); ++offset) {
      for (const Name& name : by_first_byte_[static_cast<unsigned char>(text[offset])]) {
        if (text.substr(offset, name.text.size()) == name.text)
          return Found{offset, name.text.size(), name.token};
      }
    }
    return std::nullopt;
  }

 private:
  struct Name {
    std::string text;
    int32_t token;
  };
  std::array<std::vector<Name>, 256> by_first_byte_;
};

std::optional<int32_t> token_key(const GgufFile& file, std::string_view key, size_t vocab_size) {
  if (!file.has(key)) return std::nullopt;
  const uint64_t id = file.unsigned_integer(key);
  if (id >= vocab_size) {
    throw InputError(fmt::format("{}: metadata key {}: expected a token below {}, found {}", file.path(),
                                 quoted(key), vocab_size, id));
  }
  return static_cast<int32_t>(id);
}

}  // namespace

TokenizerData read_tokenizer_data(const GgufFile& file) {
  const std::string_view model = file.string("tokenizer.ggml.model");
  if (model != "gpt2") {
    throw InputError(
        fmt::format("{}: metadata key 'tokenizer.ggml.model': expected 'gpt2' (byte-level BPE), found {}",
                    file.path(), quoted(model)));
  }
  TokenizerData data;
  data.tokens = file.strings("tokenizer.ggml.tokens");
  data.merges = file.strings("tokenizer.ggml.merges");
  data.pre = file.string("tokenizer.ggml.pre");
  data.types.assign(data.tokens.size(), Type::normal);
  if (file.has("tokenizer.ggml.token_type")) {
    const std::vector<int64_t> types = file.integers("tokenizer.ggml.token_type");
    if (types.size() != data.tokens.size()) {
      throw InputError(fmt::format(
          "{}: metadata key 'tokenizer.ggml.token_type': expected {} entries, one a token, found {}",
          file.path(), data.tokens.size(), types.size()));
    }
    for (size_t i = 0; i < types.size(); ++i) {
      if (types[i] < 1 || types[i] > 6) {
        throw InputError(fmt::format(
            "{}: metadata key 'tokenizer.ggml.token_type': expected 1 to 6, found {} for token {}",
            file.path(), types[i], i));
      }
      data.types[i] = static_cast<Type>(types[i]);
    }
  }
  data.bos = token_key(file, "tokenizer.ggml.bos_token_id", data.tokens.size());
  data.eos = token_key(file, "tokenizer.ggml.eos_token_id", data.tokens.size());
  data.eot = token_key(file, "tokenizer.ggml.eot_token_id", data.tokens.size());
  data.add_bos = file.boolean_or("tokenizer.ggml.add_bos_token", false);
  return data;
}

struct Tokenizer::State {
  PreTokenizer pre;
  MergeTable merges;
  std::vector<Type> types;
  std::string bytes;            // of all tokens, one after the other
  std::vector<size_t> offsets;  // vocab_size + 1
  std::array<int32_t, 256> byte_token;
  std::unordered_map<std::string_view, int32_t> by_bytes;  // views into bytes
  NameFinder user_names, all_names;                        // user-defined; with control tokens
  std::optional<int32_t> bos, eos;
  std::vector<int32_t> ending;
  bool add_bos;

  // Words repeat: a long text is mostly made of few.
  mutable std::mutex mutex;
  mutable std::unordered_map<std::string, std::vector<int32_t>, Hash, std::equal_to<>> words;

  explicit State(const TokenizerData& data)
      : pre(data.pre),
        merges(data.merges.size()),
        types(data.types),
        bos(data.bos),
        eos(data.eos),
        add_bos(data.add_bos) {
    if (data.tokens.empty() || data.tokens.size() > INT32_MAX || data.merges.size() > INT32_MAX ||
        types.size() != data.tokens.size()) {
      throw InputError(
          fmt::format("tokenizer: expected 1 to {} tokens, each with a type, found {} tokens and {} types",
                      INT32_MAX, data.tokens.size(), types.size()));
    }
    read_tokens(data);
    read_merges(data);
    find_endings(data);
  }

  std::string_view token_bytes(int32_t token) const {
    const auto i = static_cast<size_t>(token);
    return std::string_view(bytes).substr(offsets[i], offsets[i + 1] - offsets[i]);
  }

  bool is_word(int32_t token) const { return types[static_cast<size_t>(token)] == Type::normal; }

  void read_tokens(const TokenizerData& data) {
    const ByteAlphabet alphabet;
    for (size_t i = 0; i < data.tokens.size(); ++i) {
      offsets.push_back(bytes.size());
      if (types[i] == Type::normal || types[i] == Type::byte) {
        alphabet.append_bytes(bytes, data.tokens[i]);
      } else {
        bytes += data.tokens[i];
      }
      if (types[i] == Type::user_defined) user_names.add(data.tokens[i], static_cast<int32_t>(i));
      if (types[i] == Type::user_defined || types[i] == Type::control)
        all_names.add(data.tokens[i], static_cast<int32_t>(i));
    }
    offsets.push_back(bytes.size());
    user_names.finish();
    all_names.finish();
    by_bytes.reserve(data.tokens.size());
    // Words first: where a control token has the bytes of a word, text means the word.
    for (const bool words_now : {true, false}) {
      for (int32_t i = 0; i < static_cast<int32_t>(types.size()); ++i) {
        if (is_word(i) == words_now) by_bytes.emplace(token_bytes(i), i);
      }
    }
    for (int b = 0; b < 256; ++b) {
      const char byte = static_cast<char>(b);
      const auto found = by_bytes.find(std::string_view(&byte, 1));
      byte_token[static_cast<size_t>(b)] = found != by_bytes.end() ? found->second : -1;
    }
  }

  void read_merges(const TokenizerData& data) {
    // Looked up as written, not as bytes: a control token could be written like the bytes of a word.
    std::unordered_map<std::string_view, int32_t> as_written;
    as_written.reserve(data.tokens.size());
    for (size_t i = 0; i < data.tokens.size(); ++i) {
      if (!as_written.emplace(data.tokens[i], static_cast<int32_t>(i)).second) {
        throw InputError(
            fmt::format("'tokenizer.ggml.tokens': token {} stands twice, the second time as number {}",
                        quoted(data.tokens[i]), i));
      }
    }
    std::string joined;
    for (size_t i = 0; i < data.merges.size(); ++i) {
      const std::string_view merge = data.merges[i];
      const size_t space = merge.find(' ');
      const auto token_of = [&](std::string_view part) {
        const auto found = as_written.find(part);
        if (found == as_written.end()) {
          throw InputError(fmt::format(
              "'tokenizer.ggml.merges': merge {} ({}): expected tokens of the vocabulary, found {}", i,
              quoted(merge), quoted(part)));
        }
        return found->second;
      };
      if (space == std::string_view::npos || space == 0 || space + 1 == merge.size()) {
        throw InputError(fmt::format(
            "'tokenizer.ggml.merges': merge {}: expected two tokens with a space between, found {}", i,
            quoted(merge)));
      }
      const std::string_view left = merge.substr(0, space), right = merge.substr(space + 1);
      const int32_t left_token = token_of(left), right_token = token_of(right);
      joined.assign(left).append(right);
      if (!merges.add(left_token, right_token, token_of(joined))) {
        throw InputError(
            fmt::format("'tokenizer.ggml.merges': merge {} ({}) stands twice", i, quoted(merge)));
      }
    }
  }

  /// EOS and end of turn by number, and by the names that chat models use where a file gives no number.
  void find_endings(const TokenizerData& data) {
    for (const auto& token : {data.eos, data.eot}) {
      if (token) ending.push_back(*token);
    }
    for (const std::string_view name :
         {"<|endoftext|>", "<|im_end|>", "<|eot_id|>", "<|end_of_text|>", "<|eom_id|>"}) {
      const auto found = by_bytes.find(name);
      if (found != by_bytes.end() && types[static_cast<size_t>(found->second)] == Type::control)
        ending.push_back(found->second);
    }
  }

  /// Appends the tokens of one word.
  void encode_word(std::string_view word, std::vector<int32_t>& out) const {
    constexpr size_t kCachedBytes = 64, kCachedWords = 1 << 16;
    if (const auto known = words.find(word); known != words.end()) {
      out.insert(out.end(), known->second.begin(), known->second.end());
      return;
    }
    std::vector<int32_t> tokens;
    const auto whole = pre.whole_words_first() ? by_bytes.find(word) : by_bytes.end();
    if (whole != by_bytes.end() && is_word(whole->second)) {
      tokens.push_back(whole->second);
    } else {
      tokens.reserve(word.size());
      for (const char c : word) {
        const int32_t token = byte_token[static_cast<unsigned char>(c)];
        if (token >= 0) tokens.push_back(token);
      }
      merges.apply(tokens);
    }
    out.insert(out.end(), tokens.begin(), tokens.end());
    if (word.size() > kCachedBytes) return;
    if (words.size() >= kCachedWords) words.clear();
    words.emplace(word, std::move(tokens));
  }

  void encode_plain(std::string_view text, std::vector<int32_t>& out) const {
    const std::string normal = pre.normalized(text);
    const std::lock_guard lock(mutex);
    pre.split(normal, [&](std::string_view word) { encode_word(word, out); });
  }
};

Tokenizer::Tokenizer(const TokenizerData& data) : state_(std::make_unique<State>(data)) {}
Tokenizer::Tokenizer(Tokenizer&&) noexcept = default;
Tokenizer::~Tokenizer() = default;

std::vector<int32_t> Tokenizer::encode(std::string_view text, EncodeOptions options) const {
  if (const auto offset = first_invalid_utf8(text)) {
    throw InputError(fmt::format("text: expected UTF-8, found byte 0x{:02x} at offset {}",
                                 static_cast<unsigned char>(text[*offset]), *offset));
  }
  const NameFinder& names = options.parse_special ? state_->all_names : state_->user_names;
  std::vector<int32_t> out;
  size_t done = 0;
  while (const auto found = names.find(text, done)) {
    state_->encode_plain(text.substr(done, found->offset - done), out);
    out.push_back(found->token);
    done = found->offset + found->bytes;
  }
  state_->encode_plain(text.substr(done), out);
  return out;
}

std::vector<int32_t> Tokenizer::encode(std::span<const TextPart> parts) const {
  std::vector<int32_t> out;
  std::string plain;
  const auto flush = [&] {
    const std::vector<int32_t> tokens = encode(plain);
    out.insert(out.end(), tokens.begin(), tokens.end());
    plain.clear();
  };
  for (const TextPart& part : parts) {
    if (!part.special) {
      plain += part.text;
      continue;
    }
    flush();
    const auto token = find(part.text);
    if (!token)
      throw InputError(
          fmt::format("expected {} to be a token of the model's vocabulary; it isn't", quoted(part.text)));
    out.push_back(*token);
  }
  flush();
  return out;
}

std::string_view Tokenizer::decode(int32_t token) const {
  if (token < 0 || token >= vocab_size()) {
    throw std::out_of_range(fmt::format("token: expected 0 to {}, found {}", vocab_size() - 1, token));
  }
  return state_->token_bytes(token);
}

std::string Tokenizer::decode(std::span<const int32_t> tokens) const {
  std::string out;
  for (const int32_t token : tokens) out += decode(token);
  return out;
}

int32_t Tokenizer::vocab_size() const { return static_cast<int32_t>(state_->types.size()); }

std::optional<int32_t> Tokenizer::find(std::string_view bytes) const {
  const auto found = state_->by_bytes.find(bytes);
  return found != state_->by_bytes.end() ? std::optional(found->second) : std::nullopt;
}

bool Tokenizer::is_control(int32_t token) const {
  return token >= 0 && token < vocab_size() && state_->types[static_cast<size_t>(token)] == Type::control;
}

bool Tokenizer::ends_generation(int32_t token) const {
  return std::find(state_->ending.begin(), state_->ending.end(), token) != state_->ending.end();
}

std::optional<int32_t> Tokenizer::bos() const { return state_->bos; }
std::optional<int32_t> Tokenizer::eos() const { return state_->eos; }
bool Tokenizer::add_bos() const { return state_->add_bos; }

}  // namespace fulmen::engine
