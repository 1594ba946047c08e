#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>
#include <vector>

namespace fulmen::test {

/// Writes GGUF files for tests, right ones and, by its public parts, wrong ones.
class GgufBuilder {
 public:
  enum Type : uint32_t { u8, i8, u16, i16, u32, i32, f32, boolean, string, array, u64, i64, f64 };

  uint32_t version = 3;
  uint64_t alignment = 32;
  int64_t extra_metadata = 0;  // added to the counts in the header
  int64_t extra_tensors = 0;

  template <class T>
  static void put(std::string& out, T value) {
    char bytes[sizeof(T)];
    std::memcpy(bytes, &value, sizeof(T));
    out.append(bytes, sizeof(T));
  }
  static void put_text(std::string& out, std::string_view text) {
    put<uint64_t>(out, text.size());
    out += text;
  }

  GgufBuilder& raw(std::string_view key, uint32_t type, std::string_view payload) {
    put_text(metadata_, key);
    put<uint32_t>(metadata_, type);
    metadata_ += payload;
    ++num_metadata_;
    return *this;
  }
  template <class T>
  GgufBuilder& number(std::string_view key, Type type, T value) {
    std::string payload;
    put(payload, value);
    return raw(key, type, payload);
  }
  GgufBuilder& text(std::string_view key, std::string_view value) {
    std::string payload;
    put_text(payload, value);
    return raw(key, string, payload);
  }
  GgufBuilder& texts(std::string_view key, const std::vector<std::string>& values) {
    std::string payload;
    put<uint32_t>(payload, string);
    put<uint64_t>(payload, values.size());
    for (const std::string& value : values) put_text(payload, value);
    return raw(key, array, payload);
  }
  template <class T>
  GgufBuilder& numbers(std::string_view key, Type element, const std::vector<T>& values) {
    std::string payload;
    put<uint32_t>(payload, element);
    put<uint64_t>(payload, values.size());
    for (const T value : values) put(payload, value);
    return raw(key, array, payload);
  }

  /// A tensor placed after those before it.
  GgufBuilder& tensor(std::string_view name, uint32_t dtype, const std::vector<uint64_t>& dims,
                      std::string_view data) {
    data_.resize((data_.size() + alignment - 1) / alignment * alignment);
    tensor_at(name, dtype, dims, data_.size());
    data_ += data;
    return *this;
  }
  /// Only the description of a tensor.
  GgufBuilder& tensor_at(std::string_view name, uint32_t dtype, const std::vector<uint64_t>& dims,
                         uint64_t offset) {
    put_text(tensors_, name);
    put<uint32_t>(tensors_, static_cast<uint32_t>(dims.size()));
    for (const uint64_t dim : dims) put(tensors_, dim);
    put(tensors_, dtype);
    put(tensors_, offset);
    ++num_tensors_;
    return *this;
  }
  GgufBuilder& data(std::string_view bytes) {
    data_ += bytes;
    return *this;
  }

  std::string text() const {
    std::string out = "GGUF";
    put(out, version);
    put<uint64_t>(out, num_tensors_ + static_cast<uint64_t>(extra_tensors));
    put<uint64_t>(out, num_metadata_ + static_cast<uint64_t>(extra_metadata));
    out += metadata_;
    out += tensors_;
    out.resize((out.size() + alignment - 1) / alignment * alignment);
    return out + data_;
  }
  std::vector<std::byte> bytes() const { return to_bytes(text()); }

  static std::vector<std::byte> to_bytes(std::string_view text) {
    const auto* begin = reinterpret_cast<const std::byte*>(text.data());
    return {begin, begin + text.size()};
  }

 private:
  std::string metadata_, tensors_, data_;
  uint64_t num_metadata_ = 0, num_tensors_ = 0;
};

}  // namespace fulmen::test
