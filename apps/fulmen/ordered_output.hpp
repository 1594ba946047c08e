// Answers in the order of their prompts, each as soon as those before it are complete: the first unfinished one streams.
#pragma once

#include "terminal.hpp"

#include "engine/engine.hpp"

#include <optional>
#include <string>
#include <vector>

namespace fulmen::command {

class OrderedOutput {
 public:
  enum class Form { kText, kJson };
  /// With `headings` each answer stands under its prompt.
  OrderedOutput(const engine::Engine& engine, Form form, bool headings);

  void add(std::string prompt, const engine::Request* request);
  /// Prints what can be printed. Requests must stay until all are done.
  void update();

 private:
  struct Entry {
    std::string prompt;
    const engine::Request* request;
    size_t printed = 0;
  };
  void update_text(Entry& entry);
  void write(std::string_view text);

  const engine::Engine& engine_;
  Form form_;
  bool headings_;
  std::vector<Entry> entries_;
  size_t current_ = 0;
  bool heading_printed_ = false;
  std::optional<WordWrap> wrap_;  // on a terminal
};

/// "> " before each line of a prompt.
std::string as_heading(const std::string& prompt);

}  // namespace fulmen::command
