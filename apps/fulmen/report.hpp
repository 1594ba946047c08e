// What a run tells about itself: the JSON of a request and the table of a whole batch.
#pragma once

#include "engine/engine.hpp"

#include <string>
#include <string_view>
#include <vector>

namespace fulmen::command {

/// One line of JSON, as docs/json-output.md describes it.
std::string request_json(const engine::Engine& engine, int64_t index, std::string_view prompt,
                         const engine::Request& request);

struct Row {
  std::string name, value;
};
/// Time to first token, tokens per second, time per op, pages, what sharing saved.
std::vector<Row> batch_report(engine::Engine& engine, const std::vector<const engine::Request*>& requests);
/// "name   value" lines, at most 80 columns.
std::string format_table(const std::vector<Row>& rows);

}  // namespace fulmen::command
