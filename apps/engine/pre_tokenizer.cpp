#define PCRE2_CODE_UNIT_WIDTH 8
#include "engine/pre_tokenizer.hpp"

#include <fmt/format.h>
#include <pcre2.h>
#include <utf8proc.h>

#include <algorithm>
#include <cstdlib>
#include <new>
#include <stdexcept>

#include "engine/input_error.hpp"

namespace fulmen::engine {
namespace {

// The published patterns of the models, with possessive repeats where giving back could not help a match:
// they keep a megabyte of letters from needing a megabyte of backtracking state.
constexpr std::string_view kGpt2 =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s+(?!\S)|\s++)";
// Cuts at every digit first and runs GPT-2's pattern on the parts. In one pattern: a digit is a word, and
// spaces before a digit stand at the end of a part, so none of them is kept for the next word.
constexpr std::string_view kDigitsThenGpt2 =
    R"('s|'t|'re|'ve|'m|'ll|'d|\p{N}| ?\p{L}++| ?[^\s\p{L}\p{N}]++|\s+(?![^\s\p{N}])|\s++)";
constexpr std::string_view kLlama3 =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}++|\p{N}{1,3}| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s*[\r\n]+|\s+(?!\S)|\s++)";
constexpr std::string_view kQwen2 =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}++|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s*[\r\n]+|\s+(?!\S)|\s++)";

struct Row {
  std::string_view name;
  std::string_view pattern;
  bool nfc;
  bool whole_words_first;
};
constexpr Row kRows[] = {
    {"smollm", kDigitsThenGpt2, false, false},
    {"starcoder", kDigitsThenGpt2, false, false},
    {"gpt2", kGpt2, false, false},
    {"gpt-2", kGpt2, false, false},
    {"llama-bpe", kLlama3, false, true},
    {"llama3", kLlama3, false, true},
    {"llama-v3", kLlama3, false, true},
    {"qwen2", kQwen2, true, false},
};

const Row& find_row(std::string_view name) {
  const auto* row =
      std::find_if(std::begin(kRows), std::end(kRows), [&](const Row& r) { return r.name == name; });
  if (row != std::end(kRows)) return *row;
  std::string known;
  for (const Row& r : kRows) known += fmt::format("{}{}", known.empty() ? "" : ", ", r.name);
  throw InputError(fmt::format("'tokenizer.ggml.pre': expected one of {}; found {}", known, quoted(name)));
}

/// Writes out \s and \S as Unicode's White_Space: PCRE2's own \s also takes U+180E, the models' doesn't.
std::string with_unicode_spaces(std::string_view pattern) {
  constexpr std::string_view kSpaces =
      R"(\x09-\x0d\x20\x85\xa0\x{1680}\x{2000}-\x{200a}\x{2028}\x{2029}\x{202f}\x{205f}\x{3000})";
  std::string out;
  bool in_class = false;
  for (size_t i = 0; i < pattern.size(); ++i) {
    const char c = pattern[i];
    if (c == '\\' && (pattern[i + 1] == 's' || pattern[i + 1] == 'S')) {
      out +=
          in_class ? std::string(kSpaces) : fmt::format("[{}{}]", pattern[i + 1] == 'S' ? "^" : "", kSpaces);
      ++i;
      continue;
    }
    if (c == '[') in_class = true;
    if (c == ']') in_class = false;
    out += c;
  }
  return out;
}

struct FreePattern {
  void operator()(pcre2_code* code) const { pcre2_code_free(code); }
};
struct FreeMatch {
  void operator()(pcre2_match_data* match) const { pcre2_match_data_free(match); }
};

std::string pcre_message(int code) {
  PCRE2_UCHAR buffer[160];
  pcre2_get_error_message(code, buffer, sizeof(buffer));
  return reinterpret_cast<const char*>(buffer);
}

}  // namespace

struct PreTokenizer::State {
  const Row& row;
  std::unique_ptr<pcre2_code, FreePattern> pattern;

  explicit State(std::string_view name) : row(find_row(name)) {
    const std::string text = with_unicode_spaces(row.pattern);
    int error = 0;
    PCRE2_SIZE at = 0;
    pattern.reset(pcre2_compile(reinterpret_cast<PCRE2_SPTR>(text.data()), text.size(),
                                PCRE2_UTF | PCRE2_UCP | PCRE2_ANCHORED, &error, &at, nullptr));
    if (!pattern)
      throw std::logic_error(fmt::format("pattern of {}: {} at {}", row.name, pcre_message(error), at));
    // Without it (a system that forbids writable code) the interpreter serves, more slowly.
    pcre2_jit_compile(pattern.get(), PCRE2_JIT_COMPLETE);
  }
};

PreTokenizer::PreTokenizer(std::string_view name) : state_(std::make_unique<State>(name)) {}
PreTokenizer::PreTokenizer(PreTokenizer&&) noexcept = default;
PreTokenizer::~PreTokenizer() = default;

bool PreTokenizer::whole_words_first() const { return state_->row.whole_words_first; }

std::string PreTokenizer::normalized(std::string_view text) const {
  const bool ascii =
      std::all_of(text.begin(), text.end(), [](char c) { return static_cast<unsigned char>(c) < 0x80; });
  if (!state_->row.nfc || ascii) return std::string(text);
  utf8proc_uint8_t* buffer = nullptr;
  const utf8proc_ssize_t bytes = utf8proc_map(
      reinterpret_cast<const utf8proc_uint8_t*>(text.data()), static_cast<utf8proc_ssize_t>(text.size()),
      &buffer, static_cast<utf8proc_option_t>(UTF8PROC_STABLE | UTF8PROC_COMPOSE));
  if (bytes == UTF8PROC_ERROR_NOMEM) throw std::bad_alloc();
  if (bytes < 0) throw InputError(fmt::format("text can't be normalized: {}", utf8proc_errmsg(bytes)));
  const std::unique_ptr<utf8proc_uint8_t, decltype(&std::free)> owner(buffer, &std::free);
  return {reinterpret_cast<const char*>(buffer), static_cast<size_t>(bytes)};
}

void PreTokenizer::split(std::string_view text, const std::function<void(std::string_view)>& word) const {
  const std::unique_ptr<pcre2_match_data, FreeMatch> match(pcre2_match_data_create(1, nullptr));
  if (!match) throw std::bad_alloc();
  for (size_t offset = 0; offset < text.size();) {
    const int found = pcre2_match(state_->pattern.get(), reinterpret_cast<PCRE2_SPTR>(text.data()),
                                  text.size(), offset, PCRE2_NO_UTF_CHECK, match.get(), nullptr);
    if (found < 0) {  // every character belongs to one of the alternatives
      throw std::runtime_error(
          fmt::format("pre-tokenizer {} at byte {}: {}", state_->row.name, offset, pcre_message(found)));
    }
    const size_t end = pcre2_get_ovector_pointer(match.get())[1];
    word(text.substr(offset, end - offset));
    offset = end;
  }
}

}  // namespace fulmen::engine
