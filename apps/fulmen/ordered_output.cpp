#include "ordered_output.hpp"

#include "report.hpp"
#include "terminal.hpp"

#include <fmt/format.h>

#include <unistd.h>

namespace fulmen::command {

OrderedOutput::OrderedOutput(const engine::Engine& engine, Form form, bool headings)
    : engine_(engine), form_(form), headings_(headings) {
  if (form == Form::kText && is_terminal(STDOUT_FILENO)) wrap_.emplace(terminal_width());
}

void OrderedOutput::write(std::string_view text) {
  if (wrap_) write_result(wrap_->add(text));
  else write_result(text);
}

void OrderedOutput::add(std::string prompt, const engine::Request* request) {
  entries_.push_back({std::move(prompt), request});
}

std::string as_heading(const std::string& prompt) {
  std::string heading = "> ";
  for (const char c : prompt) heading += c == '\n' ? std::string("\n> ") : std::string(1, c);
  return heading + "\n";
}

void OrderedOutput::update_text(Entry& entry) {
  const engine::Request& request = *entry.request;
  if (headings_ && !heading_printed_) {
    write((current_ > 0 ? "\n" : "") + as_heading(entry.prompt));
    heading_printed_ = true;
  }
  if (entry.printed < request.text.size()) {
    write(std::string_view(request.text).substr(entry.printed));
    entry.printed = request.text.size();
  }
  if (!request.done()) return;
  if (wrap_) write_result(wrap_->finish());
  if (request.text.empty() || request.text.back() != '\n') write("\n");
}

void OrderedOutput::update() {
  for (; current_ < entries_.size(); ++current_, heading_printed_ = false) {
    Entry& entry = entries_[current_];
    if (form_ == Form::kText) update_text(entry);
    if (!entry.request->done()) break;
    if (form_ == Form::kJson)
      write_result(request_json(engine_, static_cast<int64_t>(current_), entry.prompt, *entry.request) + "\n");
  }
  flush_results();
}

}  // namespace fulmen::command
