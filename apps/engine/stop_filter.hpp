// Text as a reader may see it: held back while it could still become a stop string, cut where one is found.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace fulmen::engine {

class StopFilter {
 public:
  explicit StopFilter(std::vector<std::string> stops);

  /// Text that is safe to show. Empty once stopped().
  std::string push(std::string_view text);
  /// What was held back, when no more text comes.
  std::string finish();
  bool stopped() const { return stopped_; }

 private:
  std::vector<std::string> stops_;
  std::string held_;
  bool stopped_ = false;
};

}  // namespace fulmen::engine
