// What the demo shows on a terminal, through a pseudo-terminal of 80 columns.
#include <gtest/gtest.h>
#include <pty.h>
#include <sys/wait.h>
#include <unistd.h>
#include <utf8proc.h>

#include <algorithm>
#include <cctype>
#include <cstdlib>
#include <sstream>
#include <string>
#include <vector>

#include "apps/model_file.hpp"
#include "apps/small_model.hpp"

namespace fulmen {
namespace {

constexpr int kColumns = 80;

std::string output_of(bool on_terminal, const std::string& model, const char* max_tokens) {
  const winsize size{24, kColumns, 0, 0};
  int out = -1;
  pid_t child = -1;
  int ends[2] = {-1, -1};
  if (on_terminal) {
    child = forkpty(&out, nullptr, nullptr, &size);
  } else {
    EXPECT_EQ(pipe(ends), 0);
    child = fork();
    out = ends[0];
  }
  if (child == 0) {
    if (!on_terminal) dup2(ends[1], STDOUT_FILENO), close(ends[0]), close(ends[1]);
    setenv("TERM", "xterm", 1);
    unsetenv("NO_COLOR");
    execl(FULMEN_COMMAND, "fulmen", "demo", "--model", model.c_str(), "--max-tokens", max_tokens, "--threads", "2",
          static_cast<char*>(nullptr));
    _exit(99);
  }
  if (!on_terminal) close(ends[1]);
  std::string text;
  char block[4096];
  for (ssize_t n; (n = read(out, block, sizeof block)) > 0;) text.append(block, static_cast<size_t>(n));
  close(out);
  int status = 0;
  waitpid(child, &status, 0);
  EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0) << text;
  return text;
}

int columns_of(const std::string& line) {
  int columns = 0;
  const auto* p = reinterpret_cast<const utf8proc_uint8_t*>(line.data());
  for (auto left = static_cast<utf8proc_ssize_t>(line.size()); left > 0;) {
    utf8proc_int32_t c = -1;
    const utf8proc_ssize_t n = std::max<utf8proc_ssize_t>(1, utf8proc_iterate(p, left, &c));
    columns += c < 0 ? 1 : std::max(0, utf8proc_charwidth(c));
    p += n, left -= n;
  }
  return columns;
}

/// The lines of a terminal's output without what steers it.
std::vector<std::string> lines_of(const std::string& text) {
  std::vector<std::string> lines(1);
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] == '\x1b') {
      while (i < text.size() && !std::isalpha(static_cast<unsigned char>(text[i]))) ++i;
    } else if (text[i] == '\n' || text[i] == '\r') {
      lines.emplace_back();
    } else {
      lines.back() += text[i];
    }
  }
  return lines;
}

std::vector<std::string> words_of(const std::string& text) {
  std::istringstream stream(text);
  std::vector<std::string> words;
  for (std::string word; stream >> word;) words.push_back(word);
  return words;
}

/// The terminal breaks nothing but a word that is longer than a line.
void expect_fits(const std::string& text) {
  for (const std::string& line : lines_of(text)) {
    EXPECT_TRUE(columns_of(line) <= kColumns || line.find(' ') == std::string::npos) << line;
  }
}

TEST(LiveView, FitsEightyColumns) {
  const test::TemporaryFile file(test::SmallModel::smollm().gguf().text(), ".gguf");
  const std::string text = output_of(true, file.path(), "40");
  expect_fits(text);
  const size_t view = text.find("KV pages [");
  ASSERT_NE(view, std::string::npos) << text;
  for (const std::string& line : lines_of(text.substr(0, text.rfind("\x1b[J")))) EXPECT_LE(columns_of(line), kColumns) << line;
  for (const char* part : {"  1  ", "  6  ", " used, ", " free", "tok/s in all"}) {
    EXPECT_NE(text.find(part), std::string::npos) << part;
  }
}

TEST(LiveView, AnswersWrapBetweenWords) {
  FULMEN_NEED_MODEL();
  const std::string shown = output_of(true, test::model_path(), "32"), piped = output_of(false, test::model_path(), "32");
  expect_fits(shown);
  const size_t cleared = shown.rfind("\x1b[J");
  ASSERT_NE(cleared, std::string::npos);
  const std::vector<std::string> words = words_of(piped), on_terminal = words_of(shown.substr(cleared + 3));
  ASSERT_GE(on_terminal.size(), words.size());
  for (size_t i = 0; i < words.size(); ++i) ASSERT_EQ(on_terminal[i], words[i]) << "word " << i;
  const std::vector<std::string> lines = lines_of(shown.substr(cleared + 3));
  EXPECT_TRUE(std::any_of(lines.begin(), lines.end(), [](const auto& line) { return columns_of(line) > 50; }));
}

}  // namespace
}  // namespace fulmen
