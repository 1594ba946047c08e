#include "jit/sources.hpp"

#include <filesystem>
#include <fstream>
#include <sstream>
#include <vector>

#include "core/error.hpp"

namespace fulmen {

const Sources& embedded_sources() {
  static const Sources sources = [] {
    Sources all;
    for (const SourceFile* file = kEmbeddedSources; file->name; ++file) all.emplace(file->name, file->text);
    return all;
  }();
  return sources;
}

Sources read_sources(const std::string& tree) {
  namespace fs = std::filesystem;
  Sources sources;
  std::error_code error;
  for (fs::recursive_directory_iterator it(fs::path(tree) / "kernels", error), end; !error && it != end;
       it.increment(error)) {
    const fs::path& path = it->path();
    if (path.extension() != ".hpp" && path.extension() != ".cuh") continue;
    std::ifstream file(path, std::ios::binary);
    std::ostringstream text;
    text << file.rdbuf();
    if (!file) fail(FULMEN_IO_ERROR, "kernels_dir: cannot read {}", path.string());
    sources.emplace(path.lexically_relative(tree).generic_string(), text.str());
  }
  if (error || sources.empty())
    fail(FULMEN_IO_ERROR, "kernels_dir: expected a source tree with kernels/ in it, found {} ({})", tree,
         error ? error.message() : "no kernel files");
  return sources;
}

namespace {

// The name in `#include <name>`, or empty.
std::string_view included_by(std::string_view line) {
  const auto skip_blanks = [&line] { line.remove_prefix(std::min(line.find_first_not_of(" \t"), line.size())); };
  skip_blanks();
  if (!line.starts_with('#')) return {};
  line.remove_prefix(1);
  skip_blanks();
  if (!line.starts_with("include")) return {};
  line.remove_prefix(7);
  skip_blanks();
  if (!line.starts_with('<')) return {};
  const size_t end = line.find('>');
  return end == line.npos ? std::string_view() : line.substr(1, end - 1);
}

template <class Body>
void for_each_line(std::string_view text, Body body) {
  while (!text.empty()) {
    const size_t end = std::min(text.find('\n'), text.size());
    body(text.substr(0, end));
    text.remove_prefix(std::min(end + 1, text.size()));
  }
}

}  // namespace

Sources reached_sources(std::string_view text, const Sources& sources) {
  Sources reached;
  std::vector<std::string_view> open = {text};
  while (!open.empty()) {
    const std::string_view file = open.back();
    open.pop_back();
    for_each_line(file, [&](std::string_view line) {
      const std::string_view name = included_by(line);
      if (!name.starts_with("kernels/") && !name.starts_with("user/")) return;
      if (reached.contains(name)) return;
      const auto found = sources.find(name);
      require(found != sources.end(), "kernel sources: expected a file {}, found {} other files", name, sources.size());
      reached.insert(*found);
      open.push_back(found->second);
    });
  }
  return reached;
}

}  // namespace fulmen
