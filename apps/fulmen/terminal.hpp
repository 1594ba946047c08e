// What the command needs to know of the terminal and of Ctrl-C.
#pragma once

#include <string>
#include <string_view>

namespace fulmen::command {

bool is_terminal(int fd);
/// Colours and a view that redraws itself: standard output is a terminal that isn't dumb, and NO_COLOR isn't set.
bool wants_live_view();
int terminal_width();  // at most 80

/// Control characters (but line feed and tab) and those that reorder text as \xNN and \u{NNNN}, so that what a model
/// writes can't steer the terminal.
std::string escape_controls(std::string_view text);
/// Columns that the text takes; each line feed and tab counts as one.
int display_width(std::string_view text);
/// The longest end, or beginning, of the text that fits into `columns`; line feeds and tabs become spaces.
std::string last_columns(std::string_view text, int columns);
std::string first_columns(std::string_view text, int columns);

/// Breaks a streamed text into lines of at most `width` columns at white space; a longer word is left to the terminal.
/// Control characters come out escaped.
class WordWrap {
 public:
  explicit WordWrap(int width) : width_(width) {}
  /// What may be shown so far: a word that may go on is held back.
  std::string add(std::string_view text);
  std::string finish();

 private:
  void end_word(std::string& out);
  int width_;
  int column_ = 0, spaces_ = 0, word_columns_ = 0;
  std::string word_;
};

/// From here on Ctrl-C (and SIGTERM) sets a flag; a second one ends the process.
void catch_interrupts();
bool interrupted();
void clear_interrupt();

/// Writes results to standard output, escaped where that is a terminal; throws OutputError when they can't be written.
void write_result(std::string_view text);
void flush_results();
struct OutputError {
  std::string what;
};

/// A line for the user on standard error: "fulmen: ...".
void note(std::string_view text);
void set_quiet(bool quiet);      // notes are dropped, errors stay
void error_line(std::string_view text);

}  // namespace fulmen::command
