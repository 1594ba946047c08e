#include "terminal.hpp"

#include "engine/utf8.hpp"

#include <fmt/format.h>

#include <sys/ioctl.h>
#include <unistd.h>
#include <utf8proc.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

namespace fulmen::command {
namespace {

std::atomic<bool> interrupt_flag{false};
bool quiet_flag = false;

void on_signal(int signal) {
  if (interrupt_flag.exchange(true)) {  // asked twice: at once
    std::signal(signal, SIG_DFL);
    std::raise(signal);
  }
}

bool steers(uint32_t c) {
  if (c == '\n' || c == '\t') return false;
  if (c < 0x20 || (c >= 0x7f && c <= 0x9f)) return true;
  return (c >= 0x202a && c <= 0x202e) || (c >= 0x2066 && c <= 0x2069) || c == 0x200e || c == 0x200f || c == 0x061c;
}

/// Calls f(code point, its bytes) for each character; bytes that are no UTF-8 come as U+FFFD.
template <class F>
void for_each_character(std::string_view text, const F& f) {
  while (!text.empty()) {
    const engine::Utf8Step step = engine::utf8_step(text);
    const bool good = step.kind == engine::Utf8Step::Kind::code_point;
    f(good ? step.code_point : 0xfffdu, good ? text.substr(0, step.bytes) : std::string_view("\xef\xbf\xbd"));
    text.remove_prefix(step.bytes);
  }
}

struct Character {
  std::string bytes;
  int columns;
};

std::vector<Character> one_line_of(std::string_view text) {
  std::vector<Character> characters;
  for_each_character(escape_controls(text), [&](uint32_t c, std::string_view bytes) {
    if (c == '\n' || c == '\t') characters.push_back({" ", 1});
    else characters.push_back({std::string(bytes), std::max(0, utf8proc_charwidth(static_cast<int32_t>(c)))});
  });
  return characters;
}

}  // namespace

bool is_terminal(int fd) { return isatty(fd) == 1; }

bool wants_live_view() {
  const char* no_color = std::getenv("NO_COLOR");
  const char* term = std::getenv("TERM");
  if (no_color && *no_color) return false;
  return is_terminal(STDOUT_FILENO) && term && *term && std::strcmp(term, "dumb") != 0;
}

int terminal_width() {
  winsize size{};
  if (ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) != 0 || size.ws_col == 0) return 80;
  return std::clamp<int>(size.ws_col, 40, 80);
}

std::string escape_controls(std::string_view text) {
  std::string out;
  for_each_character(text, [&](uint32_t c, std::string_view bytes) {
    if (!steers(c)) out += bytes;
    else if (c < 0x80) out += fmt::format("\\x{:02x}", c);
    else out += fmt::format("\\u{{{:04x}}}", c);
  });
  return out;
}

int display_width(std::string_view text) {
  int columns = 0;
  for (const Character& c : one_line_of(text)) columns += c.columns;
  return columns;
}

std::string last_columns(std::string_view text, int columns) {
  // A character takes at most 4 bytes and one that is escaped shows as 8: the end is enough.
  const size_t enough = static_cast<size_t>(std::max(columns, 0)) * 8;
  if (text.size() > enough) text.remove_prefix(text.size() - enough);
  const std::vector<Character> characters = one_line_of(text);
  size_t first = characters.size();
  for (int left = columns; first > 0 && characters[first - 1].columns <= left; --first)
    left -= characters[first - 1].columns;
  std::string out;
  for (size_t i = first; i < characters.size(); ++i) out += characters[i].bytes;
  return out;
}

std::string first_columns(std::string_view text, int columns) {
  std::string out;
  for (const Character& c : one_line_of(text)) {
    columns -= c.columns;
    if (columns < 0) break;
    out += c.bytes;
  }
  return out;
}

void WordWrap::end_word(std::string& out) {
  if (word_.empty()) return;
  if (column_ > 0 && column_ + spaces_ + word_columns_ > width_) {
    out += '\n';
    column_ = 0;
  } else {
    out.append(static_cast<size_t>(spaces_), ' ');
    column_ += spaces_;
  }
  out += word_;
  column_ += word_columns_;
  word_.clear();
  spaces_ = word_columns_ = 0;
}

std::string WordWrap::add(std::string_view text) {
  constexpr int kTab = 8;
  std::string out;
  for_each_character(escape_controls(text), [&](uint32_t c, std::string_view bytes) {
    if (c == ' ' || c == '\t' || c == '\n') end_word(out);
    if (c == '\n') {
      out += '\n';
      column_ = spaces_ = 0;
    } else if (c == ' ' || c == '\t') {
      spaces_ += c == ' ' ? 1 : kTab - (column_ + spaces_) % kTab;
    } else {
      word_ += bytes;
      word_columns_ += std::max(0, utf8proc_charwidth(static_cast<int32_t>(c)));
    }
  });
  return out;
}

std::string WordWrap::finish() {
  std::string out;
  end_word(out);
  spaces_ = 0;
  return out;
}

void catch_interrupts() {
  struct sigaction action {};
  action.sa_handler = on_signal;
  sigemptyset(&action.sa_mask);
  action.sa_flags = 0;  // no SA_RESTART: waiting for a line of input ends
  sigaction(SIGINT, &action, nullptr);
  sigaction(SIGTERM, &action, nullptr);
}

bool interrupted() { return interrupt_flag.load(); }
void clear_interrupt() { interrupt_flag.store(false); }

void write_result(std::string_view text) {
  const std::string shown = is_terminal(STDOUT_FILENO) ? escape_controls(text) : std::string(text);
  if (std::fwrite(shown.data(), 1, shown.size(), stdout) != shown.size())
    throw OutputError{fmt::format("standard output: {}", std::strerror(errno))};
}

void flush_results() {
  while (std::fflush(stdout) != 0) {
    if (errno == EINTR) continue;
    throw OutputError{fmt::format("standard output: {}", std::strerror(errno))};
  }
}

void set_quiet(bool quiet) { quiet_flag = quiet; }

void note(std::string_view text) {
  if (!quiet_flag) fmt::print(stderr, "fulmen: {}\n", escape_controls(text));
}

void error_line(std::string_view text) {
  std::fflush(stdout);
  fmt::print(stderr, "fulmen: error: {}\n", escape_controls(text));
}

}  // namespace fulmen::command
