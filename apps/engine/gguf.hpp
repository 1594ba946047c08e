#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace fulmen::engine {

/// Storage of a tensor's elements; the values are those of the file format.
enum class GgufDtype : uint32_t { f32 = 0, f16 = 1, q4_0 = 2, q4_1 = 3, q8_0 = 8, bf16 = 30 };

std::string_view dtype_name(GgufDtype dtype);

/// Elements in a block of the dtype (1 when it isn't quantised) and the bytes that store them.
struct GgufBlock {
  int64_t elements;
  int64_t bytes;
};
GgufBlock dtype_block(GgufDtype dtype);

/// A tensor inside an open file. dims are in the file's order: dims[0] is the contiguous one, dims past the
/// tensor's rank are 1. data lives as long as the file object.
struct GgufTensor {
  std::string_view name;
  GgufDtype dtype;
  int rank;
  int64_t dims[4];
  std::span<const std::byte> data;

  int64_t row_elements() const { return dims[0]; }
  int64_t num_rows() const { return dims[1] * dims[2] * dims[3]; }
};

/// A GGUF file (versions 2 and 3, little-endian), checked as a whole when it is opened: afterwards every view
/// it hands out is inside the file. Nothing is allocated by a count that the file's size doesn't cover.
/// All functions throw InputError with one line that names the file, what was expected and what was found.
class GgufFile {
 public:
  struct Options {
    /// Map the file instead of reading it. A mapped file must keep its size: that is checked when it is
    /// opened and whenever a tensor is asked for, but a file cut short in between ends the process (SIGBUS).
    bool mmap = true;
  };

  static GgufFile open(const std::string& path, Options options);
  static GgufFile open(const std::string& path) { return open(path, Options{}); }
  /// Takes bytes that are in memory already; name stands for the path in errors.
  static GgufFile from_memory(std::vector<std::byte> bytes, std::string name);

  GgufFile(GgufFile&&) noexcept;
  GgufFile& operator=(GgufFile&&) noexcept;
  ~GgufFile();

  const std::string& path() const;
  uint32_t version() const;
  size_t num_metadata() const;

  /// Metadata. A missing key and a value of another type are errors that name the key; integers of any width
  /// are accepted where they fit.
  bool has(std::string_view key) const;
  uint64_t unsigned_integer(std::string_view key) const;
  double number(std::string_view key) const;
  bool boolean(std::string_view key) const;
  std::string_view string(std::string_view key) const;
  std::vector<std::string_view> strings(std::string_view key) const;
  std::vector<int64_t> integers(std::string_view key) const;
  std::vector<double> numbers(std::string_view key) const;

  /// The same with a value for a missing key.
  uint64_t unsigned_integer_or(std::string_view key, uint64_t fallback) const;
  double number_or(std::string_view key, double fallback) const;
  bool boolean_or(std::string_view key, bool fallback) const;

  /// All tensors, in the file's order.
  std::span<const GgufTensor> tensors() const;
  bool has_tensor(std::string_view name) const;
  GgufTensor tensor(std::string_view name) const;

 private:
  struct State;
  explicit GgufFile(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

}  // namespace fulmen::engine
