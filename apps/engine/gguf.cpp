#include "engine/gguf.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <concepts>
#include <cstring>
#include <limits>
#include <unordered_map>
#include <utility>

#include "engine/file_bytes.hpp"
#include "engine/input_error.hpp"

static_assert(std::endian::native == std::endian::little,
              "the reader copies little-endian words as they are");

namespace fulmen::engine {
namespace {

// Far above what real models hold; they bound the work that a hostile file can ask for.
constexpr uint64_t kMaxMetadata = 65536;
constexpr uint64_t kMaxTensors = 65536;
constexpr uint64_t kMaxKeyBytes = 65535;  // the format's own limit
constexpr uint64_t kMaxNameBytes = 255;
constexpr uint64_t kMaxAlignment = 1 << 20;
constexpr int kMaxArrayDepth = 4;
constexpr int kMaxRank = 4;

enum class ValueType : uint32_t { u8, i8, u16, i16, u32, i32, f32, boolean, string, array, u64, i64, f64 };
constexpr uint32_t kNumValueTypes = 13;
constexpr std::string_view kValueTypeNames[kNumValueTypes] = {
    "u8", "i8", "u16", "i16", "u32", "i32", "f32", "bool", "string", "array", "u64", "i64", "f64"};
constexpr uint64_t kValueBytes[kNumValueTypes] = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};  // 0: has a length

std::string_view type_name(ValueType type) { return kValueTypeNames[static_cast<uint32_t>(type)]; }
uint64_t type_bytes(ValueType type) { return kValueBytes[static_cast<uint32_t>(type)]; }

struct DtypeRow {
  GgufDtype dtype;
  std::string_view name;
  GgufBlock block;
};
constexpr DtypeRow kDtypes[] = {
    {GgufDtype::f32, "F32", {1, 4}},     {GgufDtype::f16, "F16", {1, 2}},
    {GgufDtype::bf16, "BF16", {1, 2}},   {GgufDtype::q4_0, "Q4_0", {32, 18}},
    {GgufDtype::q4_1, "Q4_1", {32, 20}}, {GgufDtype::q8_0, "Q8_0", {32, 34}},
};

const DtypeRow* find_dtype(uint32_t code) {
  for (const DtypeRow& row : kDtypes) {
    if (static_cast<uint32_t>(row.dtype) == code) return &row;
  }
  return nullptr;
}

/// Names of dtypes that exist but aren't read here, for the error.
std::string foreign_dtype(uint32_t code) {
  constexpr std::pair<uint32_t, std::string_view> kForeign[] = {
      {6, "Q5_0"},   {7, "Q5_1"},    {9, "Q8_1"},   {10, "Q2_K"},    {11, "Q3_K"},   {12, "Q4_K"},
      {13, "Q5_K"},  {14, "Q6_K"},   {15, "Q8_K"},  {16, "IQ2_XXS"}, {17, "IQ2_XS"}, {18, "IQ3_XXS"},
      {19, "IQ1_S"}, {20, "IQ4_NL"}, {21, "IQ3_S"}, {22, "IQ2_S"},   {23, "IQ4_XS"}, {24, "I8"},
      {25, "I16"},   {26, "I32"},    {27, "I64"},   {28, "F64"},     {29, "IQ1_M"},  {34, "TQ1_0"},
      {35, "TQ2_0"}, {39, "MXFP4"}};
  for (const auto& [number, name] : kForeign) {
    if (number == code) return std::string(name);
  }
  return fmt::format("number {}", code);
}

/// A metadata value as it lies in the file: checked, not decoded.
struct Value {
  ValueType type;
  ValueType element{};  // of an array
  uint64_t count = 0;   // of an array
  uint64_t offset = 0;  // of the payload: the number, the string's length, the array's first element
};

template <class T>
T load(std::span<const std::byte> bytes, uint64_t offset) {
  T out;
  std::memcpy(&out, bytes.data() + offset, sizeof(T));
  return out;
}

/// Reads forward through the file; every step is checked against its end.
class Cursor {
 public:
  Cursor(std::span<const std::byte> bytes, const std::string& path) : bytes_(bytes), path_(path) {}

  uint64_t offset() const { return offset_; }
  uint64_t left() const { return bytes_.size() - offset_; }

  template <class T>
  T number(std::string_view what) {
    need(sizeof(T), what);
    const T out = load<T>(bytes_, offset_);
    offset_ += sizeof(T);
    return out;
  }

  std::string_view text(std::string_view what, uint64_t max_bytes) {
    const auto length = number<uint64_t>(what);
    if (length > max_bytes) {
      fail(offset_ - 8,
           fmt::format("{}: expected at most {} bytes, found a length of {}", what, max_bytes, length));
    }
    need(length, what);
    const auto* start = reinterpret_cast<const char*>(bytes_.data() + offset_);
    offset_ += length;
    return {start, length};
  }

  void skip(uint64_t count, uint64_t bytes_each, std::string_view what) {
    if (count > left() / bytes_each) {  // a division, since the product may overflow
      fail(offset_, fmt::format("{}: expected {} x {} bytes, {} are left in the file", what, count,
                                bytes_each, left()));
    }
    offset_ += count * bytes_each;
  }

  void need(uint64_t bytes, std::string_view what) {
    if (bytes > left())
      fail(offset_, fmt::format("{}: expected {} bytes, {} are left in the file", what, bytes, left()));
  }

  [[noreturn]] void fail(uint64_t at, std::string_view message) const {
    throw InputError(fmt::format("{}: damaged GGUF file: {} (at byte {})", path_, message, at));
  }

 private:
  std::span<const std::byte> bytes_;
  const std::string& path_;
  uint64_t offset_ = 0;
};

ValueType read_type(Cursor& in, std::string_view what) {
  const auto code = in.number<uint32_t>(what);
  if (code >= kNumValueTypes) {
    in.fail(in.offset() - 4,
            fmt::format("{}: expected a value type below {}, found {}", what, kNumValueTypes, code));
  }
  return static_cast<ValueType>(code);
}

void skip_payload(Cursor& in, ValueType type, std::string_view what, int depth);

/// Steps over the elements of an array whose type and count are given.
void skip_elements(Cursor& in, ValueType element, uint64_t count, std::string_view what, int depth) {
  if (element != ValueType::string && element != ValueType::array)
    return in.skip(count, type_bytes(element), what);
  // A string takes at least its length, an array its type and count: a larger count can't be true.
  const uint64_t least = element == ValueType::string ? 8 : 12;
  if (count > in.left() / least) {
    in.fail(in.offset(),
            fmt::format("{}: {} elements don't fit into the {} bytes left", what, count, in.left()));
  }
  for (uint64_t i = 0; i < count; ++i) skip_payload(in, element, what, depth);
}

void skip_payload(Cursor& in, ValueType type, std::string_view what, int depth) {
  if (type == ValueType::string) {
    in.text(what, std::numeric_limits<uint64_t>::max());
  } else if (type == ValueType::array) {
    if (depth == kMaxArrayDepth)
      in.fail(in.offset(), fmt::format("{}: arrays nest deeper than {}", what, kMaxArrayDepth));
    const ValueType element = read_type(in, what);
    const auto count = in.number<uint64_t>(what);
    skip_elements(in, element, count, what, depth + 1);
  } else {
    in.skip(1, type_bytes(type), what);
  }
}

Value read_value(Cursor& in, std::string_view what) {
  Value value{.type = read_type(in, what)};
  if (value.type == ValueType::array) {
    value.element = read_type(in, what);
    value.count = in.number<uint64_t>(what);
    value.offset = in.offset();
    skip_elements(in, value.element, value.count, what, 1);
  } else {
    value.offset = in.offset();
    skip_payload(in, value.type, what, 0);
  }
  return value;
}

uint64_t align_up(uint64_t offset, uint64_t alignment) {
  return (offset + alignment - 1) / alignment * alignment;
}

/// Dimensions, their product and the bytes they take, all within int64 and the file.
uint64_t read_dims(Cursor& in, GgufTensor& tensor, uint64_t file_bytes) {
  const std::string what = fmt::format("tensor {}", quoted(tensor.name));
  const uint64_t start = in.offset();
  const auto rank = in.number<uint32_t>(what);
  if (rank < 1 || rank > kMaxRank)
    in.fail(start, fmt::format("{}: expected 1 to {} dimensions, found {}", what, kMaxRank, rank));
  tensor.rank = static_cast<int>(rank);
  // No element takes less than half a byte, so a product beyond twice the file's size can't be inside it.
  const uint64_t max_elements = 2 * file_bytes;
  uint64_t elements = 1;
  for (int i = 0; i < kMaxRank; ++i) {
    const uint64_t dim = i < tensor.rank ? in.number<uint64_t>(what) : 1;
    if (dim == 0 || dim > max_elements / elements) {
      in.fail(start, fmt::format("{}: dimension {} is {}, but the file has {} bytes; it may be cut short",
                                 what, i, dim, file_bytes));
    }
    elements *= dim;
    tensor.dims[i] = static_cast<int64_t>(dim);
  }
  const auto code = in.number<uint32_t>(what);
  const DtypeRow* row = find_dtype(code);
  if (!row) {
    in.fail(in.offset() - 4, fmt::format("{}: expected one of F32, F16, BF16, Q8_0, Q4_0, Q4_1, found {}",
                                         what, foreign_dtype(code)));
  }
  tensor.dtype = row->dtype;
  if (tensor.dims[0] % row->block.elements != 0) {
    in.fail(start, fmt::format("{}: expected rows of a multiple of {} elements for {}, found {}", what,
                               row->block.elements, row->name, tensor.dims[0]));
  }
  // elements <= 2 * file_bytes and at most 4 bytes each: no overflow for any file below 2^60 bytes.
  return elements / static_cast<uint64_t>(row->block.elements) * static_cast<uint64_t>(row->block.bytes);
}

}  // namespace

struct GgufFile::State {
  std::string path;
  FileBytes file;
  std::span<const std::byte> bytes;
  uint32_t version = 0;
  std::unordered_map<std::string_view, Value> metadata;
  std::vector<GgufTensor> tensors;
  std::unordered_map<std::string_view, size_t> tensor_index;

  State(std::string path_text, FileBytes content)
      : path(std::move(path_text)), file(std::move(content)), bytes(file.bytes()) {
    parse();
  }

  void parse() {
    Cursor in(bytes, path);
    const auto [tensor_count, metadata_count] = read_header(in);
    read_metadata(in, metadata_count);
    read_tensors(in, tensor_count);
  }

  std::pair<uint64_t, uint64_t> read_header(Cursor& in) {
    if (bytes.size() < 4 || std::memcmp(bytes.data(), "GGUF", 4) != 0) {
      const auto found =
          std::string_view(reinterpret_cast<const char*>(bytes.data()), std::min<size_t>(4, bytes.size()));
      throw InputError(fmt::format("{}: not a GGUF file: expected it to begin with 'GGUF', found {}", path,
                                   quoted(found)));
    }
    in.number<uint32_t>("magic");
    version = in.number<uint32_t>("version");
    if (version != 2 && version != 3) {
      const bool swapped = version == 0x02000000 || version == 0x03000000;
      in.fail(4, fmt::format("expected version 2 or 3, found {}{}", version,
                             swapped ? " (a big-endian file)" : ""));
    }
    const auto tensor_count = in.number<uint64_t>("number of tensors");
    const auto metadata_count = in.number<uint64_t>("number of metadata keys");
    if (tensor_count > kMaxTensors)
      in.fail(8, fmt::format("expected at most {} tensors, found {}", kMaxTensors, tensor_count));
    if (metadata_count > kMaxMetadata)
      in.fail(16, fmt::format("expected at most {} metadata keys, found {}", kMaxMetadata, metadata_count));
    return {tensor_count, metadata_count};
  }

  void read_metadata(Cursor& in, uint64_t count) {
    for (uint64_t i = 0; i < count; ++i) {
      const uint64_t start = in.offset();
      const std::string_view key = in.text("metadata key", kMaxKeyBytes);
      const Value value = read_value(in, quoted(key));
      if (!metadata.emplace(key, value).second)
        in.fail(start, fmt::format("metadata key {} stands twice", quoted(key)));
    }
  }

  void read_tensors(Cursor& in, uint64_t count) {
    struct Extent {
      uint64_t begin, bytes;
      size_t tensor;
    };
    std::vector<Extent> extents;
    for (uint64_t i = 0; i < count; ++i) {
      const uint64_t start = in.offset();
      GgufTensor tensor{};
      tensor.name = in.text("tensor name", kMaxNameBytes);
      const uint64_t tensor_bytes = read_dims(in, tensor, bytes.size());
      const auto begin = in.number<uint64_t>("tensor offset");
      if (!tensor_index.emplace(tensor.name, tensors.size()).second) {
        in.fail(start, fmt::format("tensor {} stands twice", quoted(tensor.name)));
      }
      extents.push_back({begin, tensor_bytes, tensors.size()});
      tensors.push_back(tensor);
    }
    const uint64_t alignment = read_alignment(in);
    const uint64_t data = align_up(in.offset(), alignment);
    const uint64_t room = data < bytes.size() ? bytes.size() - data : 0;
    for (const Extent& extent : extents) {
      GgufTensor& tensor = tensors[extent.tensor];
      if (extent.begin % alignment != 0) {
        in.fail(data, fmt::format("tensor {}: expected an offset that is a multiple of {}, found {}",
                                  quoted(tensor.name), alignment, extent.begin));
      }
      if (extent.begin > room || extent.bytes > room - extent.begin) {
        in.fail(data,
                fmt::format(
                    "tensor {}: expected {} bytes at offset {}, the data has {}; the file may be cut short",
                    quoted(tensor.name), extent.bytes, extent.begin, room));
      }
      tensor.data = bytes.subspan(data + extent.begin, extent.bytes);
    }
    std::sort(extents.begin(), extents.end(),
              [](const Extent& a, const Extent& b) { return a.begin < b.begin; });
    for (size_t i = 1; i < extents.size(); ++i) {
      const Extent& before = extents[i - 1];
      if (extents[i].begin < before.begin + before.bytes) {
        in.fail(data + extents[i].begin,
                fmt::format("tensors {} and {} overlap", quoted(tensors[before.tensor].name),
                            quoted(tensors[extents[i].tensor].name)));
      }
    }
  }

  uint64_t read_alignment(Cursor& in) const {
    const auto found = metadata.find("general.alignment");
    if (found == metadata.end()) return 32;
    const uint64_t alignment = unsigned_at(found->second, found->first);
    if (!std::has_single_bit(alignment) || alignment < 8 || alignment > kMaxAlignment) {
      in.fail(found->second.offset,
              fmt::format("'general.alignment': expected a power of two from 8 to {}, found {}",
                          kMaxAlignment, alignment));
    }
    return alignment;
  }

  [[noreturn]] void wrong_type(std::string_view key, std::string_view expected, const Value& value) const {
    const std::string found = value.type == ValueType::array
                                  ? fmt::format("array of {}", type_name(value.element))
                                  : std::string(type_name(value.type));
    throw InputError(fmt::format("{}: metadata key {}: expected {}, found {} (at byte {})", path, quoted(key),
                                 expected, found, value.offset));
  }

  const Value& value_of(std::string_view key) const {
    const auto found = metadata.find(key);
    if (found == metadata.end())
      throw InputError(fmt::format("{}: metadata key {} is missing", path, quoted(key)));
    return found->second;
  }

  const Value& array_of(std::string_view key, std::string_view expected) const {
    const Value& value = value_of(key);
    if (value.type != ValueType::array) wrong_type(key, expected, value);
    return value;
  }

  /// Calls use(number) with the number of the given type at offset; false if the type isn't a number.
  template <class Use>
  bool with_number(ValueType type, uint64_t offset, Use&& use) const {
    switch (type) {
      case ValueType::u8:
        return use(load<uint8_t>(bytes, offset)), true;
      case ValueType::i8:
        return use(load<int8_t>(bytes, offset)), true;
      case ValueType::u16:
        return use(load<uint16_t>(bytes, offset)), true;
      case ValueType::i16:
        return use(load<int16_t>(bytes, offset)), true;
      case ValueType::u32:
        return use(load<uint32_t>(bytes, offset)), true;
      case ValueType::i32:
        return use(load<int32_t>(bytes, offset)), true;
      case ValueType::u64:
        return use(load<uint64_t>(bytes, offset)), true;
      case ValueType::i64:
        return use(load<int64_t>(bytes, offset)), true;
      case ValueType::f32:
        return use(load<float>(bytes, offset)), true;
      case ValueType::f64:
        return use(load<double>(bytes, offset)), true;
      default:
        return false;
    }
  }

  template <std::integral Integer>
  Integer integer_at(ValueType type, uint64_t offset, std::string_view key, std::string_view expected,
                     const Value& value) const {
    Integer out = 0;
    const bool is_number = with_number(type, offset, [&](auto number) {
      if constexpr (std::integral<decltype(number)>) {
        if (!std::in_range<Integer>(number)) {
          throw InputError(fmt::format("{}: metadata key {}: expected {}, found {} (at byte {})", path,
                                       quoted(key), expected, +number, offset));
        }
        out = static_cast<Integer>(number);
      } else {
        wrong_type(key, expected, value);
      }
    });
    if (!is_number) wrong_type(key, expected, value);
    return out;
  }

  uint64_t unsigned_at(const Value& value, std::string_view key) const {
    return integer_at<uint64_t>(value.type, value.offset, key, "an unsigned integer", value);
  }

  double number_at(ValueType type, uint64_t offset, std::string_view key, std::string_view expected,
                   const Value& value) const {
    double out = 0;
    if (!with_number(type, offset, [&](auto number) { out = static_cast<double>(number); }))
      wrong_type(key, expected, value);
    return out;
  }

  std::string_view text_at(uint64_t offset) const {  // the lengths were checked by parse
    const auto length = load<uint64_t>(bytes, offset);
    return {reinterpret_cast<const char*>(bytes.data() + offset + 8), length};
  }
};

std::string_view dtype_name(GgufDtype dtype) { return find_dtype(static_cast<uint32_t>(dtype))->name; }
GgufBlock dtype_block(GgufDtype dtype) { return find_dtype(static_cast<uint32_t>(dtype))->block; }

GgufFile::GgufFile(std::unique_ptr<State> state) : state_(std::move(state)) {}
GgufFile::GgufFile(GgufFile&&) noexcept = default;
GgufFile& GgufFile::operator=(GgufFile&&) noexcept = default;
GgufFile::~GgufFile() = default;

GgufFile GgufFile::open(const std::string& path, Options options) {
  return GgufFile(std::make_unique<State>(path, options.mmap ? FileBytes::map(path) : FileBytes::read(path)));
}

GgufFile GgufFile::from_memory(std::vector<std::byte> bytes, std::string name) {
  return GgufFile(std::make_unique<State>(std::move(name), FileBytes::adopt(std::move(bytes))));
}

const std::string& GgufFile::path() const { return state_->path; }
uint32_t GgufFile::version() const { return state_->version; }
size_t GgufFile::num_metadata() const { return state_->metadata.size(); }
bool GgufFile::has(std::string_view key) const { return state_->metadata.contains(key); }

uint64_t GgufFile::unsigned_integer(std::string_view key) const {
  return state_->unsigned_at(state_->value_of(key), key);
}

double GgufFile::number(std::string_view key) const {
  const Value& value = state_->value_of(key);
  return state_->number_at(value.type, value.offset, key, "a number", value);
}

bool GgufFile::boolean(std::string_view key) const {
  const Value& value = state_->value_of(key);
  if (value.type != ValueType::boolean) state_->wrong_type(key, "a bool", value);
  return load<uint8_t>(state_->bytes, value.offset) != 0;
}

std::string_view GgufFile::string(std::string_view key) const {
  const Value& value = state_->value_of(key);
  if (value.type != ValueType::string) state_->wrong_type(key, "a string", value);
  return state_->text_at(value.offset);
}

std::vector<std::string_view> GgufFile::strings(std::string_view key) const {
  const Value& value = state_->array_of(key, "an array of strings");
  if (value.element != ValueType::string) state_->wrong_type(key, "an array of strings", value);
  std::vector<std::string_view> out;
  out.reserve(value.count);
  for (uint64_t i = 0, offset = value.offset; i < value.count; ++i) {
    out.push_back(state_->text_at(offset));
    offset += 8 + out.back().size();
  }
  return out;
}

std::vector<int64_t> GgufFile::integers(std::string_view key) const {
  const Value& value = state_->array_of(key, "an array of integers");
  if (type_bytes(value.element) == 0) state_->wrong_type(key, "an array of integers", value);
  std::vector<int64_t> out;
  out.reserve(value.count);
  for (uint64_t i = 0; i < value.count; ++i) {
    out.push_back(state_->integer_at<int64_t>(value.element, value.offset + i * type_bytes(value.element),
                                              key, "an array of integers", value));
  }
  return out;
}

std::vector<double> GgufFile::numbers(std::string_view key) const {
  const Value& value = state_->array_of(key, "an array of numbers");
  if (type_bytes(value.element) == 0) state_->wrong_type(key, "an array of numbers", value);
  std::vector<double> out;
  out.reserve(value.count);
  for (uint64_t i = 0; i < value.count; ++i) {
    out.push_back(state_->number_at(value.element, value.offset + i * type_bytes(value.element), key,
                                    "an array of numbers", value));
  }
  return out;
}

uint64_t GgufFile::unsigned_integer_or(std::string_view key, uint64_t fallback) const {
  return has(key) ? unsigned_integer(key) : fallback;
}
double GgufFile::number_or(std::string_view key, double fallback) const {
  return has(key) ? number(key) : fallback;
}
bool GgufFile::boolean_or(std::string_view key, bool fallback) const {
  return has(key) ? boolean(key) : fallback;
}

std::span<const GgufTensor> GgufFile::tensors() const { return state_->tensors; }
bool GgufFile::has_tensor(std::string_view name) const { return state_->tensor_index.contains(name); }

GgufTensor GgufFile::tensor(std::string_view name) const {
  state_->file.check_size(state_->path);  // before the look-up: names are read from the map, too
  const auto found = state_->tensor_index.find(name);
  if (found == state_->tensor_index.end())
    throw InputError(fmt::format("{}: tensor {} is missing", state_->path, quoted(name)));
  return state_->tensors[found->second];
}

}  // namespace fulmen::engine
