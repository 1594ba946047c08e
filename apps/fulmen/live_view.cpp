#include "live_view.hpp"

#include "terminal.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cstdio>

namespace fulmen::command {
namespace {

using engine::Request;
using State = engine::Sequence::State;

std::string state_of(const Request& r) {
  if (r.finish == engine::Finish::kError) return "failed";
  if (r.done()) return "done";
  if (r.sequence.state == State::kWaiting) return "waiting";
  if (r.sequence.state == State::kPrefill || r.sequence.made_tokens() == 0)
    return fmt::format("prefill {}%", 100 * r.sequence.computed / static_cast<int64_t>(r.sequence.tokens.size()));
  return "decode";
}

std::string request_line(size_t number, const Request& r, const std::string& prompt, int width) {
  const double speed = r.decode_tokens_per_second();
  std::string line = fmt::format("{:>3}  {:<12} {:>12}  ", number, state_of(r),
                                 speed > 0 ? fmt::format("{:.1f} tok/s", speed) : "");
  const int room = width - display_width(line);
  return line + (r.text.empty() ? first_columns(prompt, room) : last_columns(r.text, room));
}

std::string page_line(const engine::Scheduler::PageUse& use, int width) {
  const std::string text = fmt::format(" {} used, {} shared, {} cached, {} free", use.used(), use.shared, use.cached,
                                       use.free);
  const std::string name = "KV pages ";
  const int cells = std::max(8, width - static_cast<int>(name.size() + text.size()) - 2);
  // A page that is in use shows, however many there are.
  const auto cells_of = [&](int pages) {
    return pages == 0 ? 0 : std::max(1, static_cast<int>(static_cast<int64_t>(pages) * cells / use.total));
  };
  const int shared = cells_of(use.shared), used = std::max(cells_of(use.used()), shared + (use.used() > use.shared));
  const int cached = std::min(cells_of(use.cached), cells - used);
  std::string bar = std::string(shared, '#') + std::string(used - shared, '=') + std::string(std::max(0, cached), '-');
  bar.resize(static_cast<size_t>(cells), '.');
  return name + "[" + bar + "]" + text;
}

}  // namespace

std::vector<std::string> draw_frame(const engine::Engine& engine, const std::vector<const Request*>& requests,
                                    const std::vector<std::string>& prompts, double seconds, int width) {
  std::vector<std::string> lines;
  int64_t made = 0;
  for (size_t i = 0; i < requests.size(); ++i) {
    lines.push_back(request_line(i + 1, *requests[i], prompts[i], width));
    made += requests[i]->sequence.made_tokens();
  }
  lines.push_back(page_line(engine.scheduler().page_use(), width));
  lines.push_back(fmt::format("{} tokens in {:.1f} s, {:.0f} tok/s in all", made, seconds,
                              seconds > 0 ? static_cast<double>(made) / seconds : 0.0));
  for (std::string& line : lines) line = first_columns(line, width);
  return lines;
}

void LiveView::show(const std::vector<std::string>& frame) {
  std::string out;
  if (lines_ > 0) out += fmt::format("\x1b[{}A", lines_);
  for (const std::string& line : frame) out += "\r" + line + "\x1b[K\n";
  std::fwrite(out.data(), 1, out.size(), stdout);
  std::fflush(stdout);
  lines_ = frame.size();
}

void LiveView::clear() noexcept {
  if (lines_ == 0) return;
  std::printf("\x1b[%zuA\r\x1b[J", lines_);
  std::fflush(stdout);
  lines_ = 0;
}

}  // namespace fulmen::command
