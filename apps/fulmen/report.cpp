#include "report.hpp"

#include "terminal.hpp"

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include <algorithm>
#include <numeric>

namespace fulmen::command {
namespace {

using engine::Request;

double seconds(engine::Clock::time_point from, engine::Clock::time_point to) {
  return from == engine::Clock::time_point{} ? 0 : std::chrono::duration<double>(to - from).count();
}

std::string mb(double bytes) { return fmt::format("{:.1f} MB", bytes / 1e6); }

std::string time_text(double s) { return s < 1 ? fmt::format("{:.0f} ms", s * 1e3) : fmt::format("{:.2f} s", s); }

/// Tokens that all prompts begin with.
int64_t common_prefix(const std::vector<const Request*>& requests) {
  const std::vector<int32_t>& first = requests.front()->options.prompt;
  size_t common = first.size();
  for (const Request* r : requests) {
    const auto [a, b] = std::mismatch(first.begin(), first.begin() + static_cast<ptrdiff_t>(common),
                                      r->options.prompt.begin(), r->options.prompt.end());
    common = static_cast<size_t>(a - first.begin());
  }
  return static_cast<int64_t>(common);
}

std::string time_shares(engine::Executor& executor) {
  const engine::PartSeconds parts = executor.seconds();
  const double total = std::accumulate(parts.begin(), parts.end(), 0.0);
  std::vector<size_t> order(parts.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::sort(order.begin(), order.end(), [&](size_t a, size_t b) { return parts[a] > parts[b]; });
  std::string text;
  for (const size_t i : order)
    if (parts[i] > 0.0005 * total)
      text += fmt::format("{}{} {:.1f}%", text.empty() ? "" : ", ", engine::kPartNames[i], 100 * parts[i] / total);
  return text;
}

}  // namespace

std::string request_json(const engine::Engine& engine, int64_t index, std::string_view prompt, const Request& r) {
  using Json = nlohmann::ordered_json;
  Json object;
  object["version"] = 1;
  object["index"] = index;
  object["prompt"] = prompt;
  object["prompt_tokens"] = r.options.prompt;
  object["tokens"] = std::vector<int32_t>(r.made().begin(), r.made().end());
  object["text"] = r.text;
  object["finish"] = engine::finish_name(r.finish);
  if (r.finish == engine::Finish::kError) object["error"] = r.error;
  const double prompt_seconds = r.first_token == engine::Clock::time_point{} ? 0 : seconds(r.started, r.first_token);
  object["timings"] = {
      {"queued_s", r.started == engine::Clock::time_point{} ? 0 : seconds(r.submitted, r.started)},
      {"first_token_s", r.seconds_to_first_token()},
      {"total_s", seconds(r.submitted, r.finished)},
      {"prefill_tokens_per_s",
       prompt_seconds > 0 ? static_cast<double>(r.sequence.prompt_tokens - r.sequence.shared_tokens) / prompt_seconds : 0},
      {"decode_tokens_per_s", r.decode_tokens_per_second()},
      {"shared_prompt_tokens", r.sequence.shared_tokens},
      {"preemptions", r.sequence.preemptions}};
  object["model"] = engine.model().name;
  // Prompts that are not UTF-8 are shown with U+FFFD.
  return object.dump(-1, ' ', false, Json::error_handler_t::replace);
}

std::vector<Row> batch_report(engine::Engine& engine, const std::vector<const Request*>& requests) {
  const engine::EngineStats& s = engine.stats();
  engine::Executor& executor = engine.executor();
  std::vector<Row> rows;
  std::vector<double> first;
  for (const Request* r : requests)
    if (r->first_token != engine::Clock::time_point{}) first.push_back(r->seconds_to_first_token());
  rows.push_back({"model", fmt::format("{}, {:.0f} M parameters, loaded in {}", engine.model().name,
                                       static_cast<double>(engine.model().parameters()) / 1e6, time_text(s.load_seconds))});
  rows.push_back({"device", std::string(executor.description())});
  if (!first.empty()) {
    const auto [least, most] = std::minmax_element(first.begin(), first.end());
    const std::string low = time_text(*least), high = time_text(*most);
    rows.push_back({"first token", low == high ? low + " after it was asked"
                                               : fmt::format("{} to {} after they were asked", low, high)});
  }
  if (s.prompt_seconds > 0)
    rows.push_back({"prefill", fmt::format("{} prompt tokens, {:.0f} tokens/s", s.prompt_tokens,
                                           static_cast<double>(s.prompt_tokens) / s.prompt_seconds)});
  if (s.decode_seconds > 0)
    rows.push_back({"decode", fmt::format("{} tokens made, {:.0f} tokens/s in all", s.made_tokens,
                                          static_cast<double>(s.decode_tokens) / s.decode_seconds)});
  if (const std::string step = executor.step_summary(); !step.empty()) rows.push_back({"step", step});
  rows.push_back({"time", time_shares(executor)});
  if (const std::string device = executor.device_summary(); !device.empty()) rows.push_back({"GPU", device});

  const auto use = engine.scheduler().page_use();
  const double page_bytes = static_cast<double>(executor.kv_bytes_per_token() * engine.scheduler().options().page_size);
  rows.push_back({"KV pages", fmt::format("{} of {} used at most, {} shared; {} tokens and {:.2f} MB a page",
                                          s.most_pages_used, use.total, s.most_pages_shared,
                                          engine.scheduler().options().page_size, page_bytes / 1e6)});
  const int64_t preemptions = std::accumulate(requests.begin(), requests.end(), int64_t{0},
                                              [](int64_t n, const Request* r) { return n + r->sequence.preemptions; });
  if (preemptions > 0) rows.push_back({"preempted", fmt::format("{} times, pages ran out", preemptions)});

  // What sharing saved: the pages of the common beginning, held once.
  const auto served = std::count_if(requests.begin(), requests.end(),
                                    [](const Request* r) { return r->started != engine::Clock::time_point{}; });
  if (served > 1 && s.shared_tokens > 0) {
    const int64_t common = common_prefix(requests), page = engine.scheduler().options().page_size;
    const int64_t held = common / page * page;
    const double bytes = static_cast<double>(held * executor.kv_bytes_per_token());
    if (held > 0)
      rows.push_back({"sharing", fmt::format("common prompt of {} tokens: {} in whole pages held once for {} requests, "
                                             "{} instead of {}",
                                             common, held, served, mb(bytes), mb(bytes * static_cast<double>(served)))});
    std::string also = fmt::format("{} prompt tokens not computed again", s.shared_tokens);
    if (s.keys_read_once > 0)
      also += fmt::format(", {} keys less to read in attention", s.keys_read_once);
    rows.push_back({"", also});
  }
  return rows;
}

std::string format_table(const std::vector<Row>& rows) {
  constexpr int kNameColumns = 13, kColumns = 80;
  std::string out;
  for (const Row& row : rows) {
    std::string line = fmt::format("{:<{}}", row.name, kNameColumns);
    size_t at = 0;
    while (at < row.value.size()) {  // wrapped between words
      size_t end = row.value.find(' ', at);
      if (end == std::string::npos) end = row.value.size();
      const std::string word = row.value.substr(at, end - at);
      if (display_width(line) + 1 + display_width(word) > kColumns) {
        out += line.substr(0, line.find_last_not_of(' ') + 1) + "\n";
        line = std::string(kNameColumns, ' ');
      }
      line += word + " ";
      at = end + 1;
    }
    out += line.substr(0, line.find_last_not_of(' ') + 1) + "\n";
  }
  return out;
}

}  // namespace fulmen::command
