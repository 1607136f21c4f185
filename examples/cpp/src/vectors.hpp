// Test vectors: TensorProto files, read and written without a protobuf library.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <limits>
#include <stdexcept>
#include <string>
#include <vector>

struct Tensor {
  std::string name;
  int type = 0;  // TensorProto.DataType; ONNXTensorElementDataType has the same numbers
  std::vector<std::int64_t> dims;
  std::vector<char> data;
};

enum Type { FLOAT32 = 1, BOOL = 9, FLOAT16 = 10, FLOAT64 = 11, BFLOAT16 = 16 };

inline std::size_t size_of(int type) {
  switch (type) {
    case BOOL: return 1;
    case FLOAT16:
    case BFLOAT16: return 2;
    case FLOAT32: return 4;
    case FLOAT64: return 8;
    default:
      throw std::runtime_error("data type " + std::to_string(type) +
                               " is not one of an attention file");
  }
}

inline const char* name_of(int type) {
  switch (type) {
    case BOOL: return "bool";
    case FLOAT16: return "float16";
    case BFLOAT16: return "bfloat16";
    case FLOAT32: return "float32";
    case FLOAT64: return "float64";
    default: return "another type";
  }
}

/// An element of a float tensor.
inline double number_at(int type, const void* data, std::size_t index) {
  std::uint16_t bits;
  switch (type) {
    case FLOAT64: return static_cast<const double*>(data)[index];
    case FLOAT32: return static_cast<const float*>(data)[index];
    case FLOAT16: {  // 1 sign bit, 5 of exponent, 10 of fraction
      std::memcpy(&bits, static_cast<const char*>(data) + 2 * index, 2);
      const int exponent = bits >> 10 & 31, fraction = bits & 1023;
      const double size = exponent == 0 ? std::ldexp(fraction, -24)
                          : exponent < 31 ? std::ldexp(1024 + fraction, exponent - 25)
                          : fraction      ? std::numeric_limits<double>::quiet_NaN()
                                          : std::numeric_limits<double>::infinity();
      return bits >> 15 ? -size : size;
    }
    case BFLOAT16: {  // the upper half of a float32
      std::memcpy(&bits, static_cast<const char*>(data) + 2 * index, 2);
      const std::uint32_t whole = std::uint32_t{bits} << 16;
      float number;
      std::memcpy(&number, &whole, sizeof number);
      return number;
    }
    default: return static_cast<const unsigned char*>(data)[index];
  }
}

// The fields of message TensorProto in onnx.proto, and protobuf's wire types.
enum Field { DIMS = 1, DATA_TYPE = 2, NAME = 8, RAW_DATA = 9 };
enum Wire { VARINT = 0, FIXED64 = 1, BYTES = 2, FIXED32 = 5 };

class ProtoReader {
 public:
  explicit ProtoReader(const std::string& bytes) : at_(bytes.data()), end_(at_ + bytes.size()) {}

  Tensor tensor() {
    Tensor tensor;
    while (at_ < end_) {
      const auto tag = varint();
      const auto field = tag >> 3;
      std::uint64_t size;
      switch (tag & 7) {
        case VARINT: {
          const auto value = varint();
          if (field == DIMS) tensor.dims.push_back(static_cast<std::int64_t>(value));
          if (field == DATA_TYPE) tensor.type = static_cast<int>(value);
          continue;
        }
        case FIXED64: size = 8; break;
        case FIXED32: size = 4; break;
        case BYTES: size = varint(); break;
        default: throw cut();
      }
      if (size > static_cast<std::uint64_t>(end_ - at_)) throw cut();
      const char* const content = at_;
      const char* const next = at_ + size;
      if (field == NAME) tensor.name.assign(content, next);
      if (field == RAW_DATA) tensor.data.assign(content, next);
      while (field == DIMS && at_ < next) tensor.dims.push_back(static_cast<std::int64_t>(varint()));
      at_ = next;
    }
    std::size_t bytes = size_of(tensor.type);
    bool fits = true;
    for (const auto dim : tensor.dims) {
      fits = fits && dim >= 0 && (dim == 0 || bytes <= std::size_t(PTRDIFF_MAX) / std::size_t(dim));
      bytes *= static_cast<std::size_t>(dim);
    }
    if (!fits || bytes != tensor.data.size()) {
      throw std::runtime_error("raw_data does not fit the dims");
    }
    return tensor;
  }

 private:
  static std::runtime_error cut() { return std::runtime_error("no TensorProto, or cut short"); }

  std::uint64_t varint() {
    std::uint64_t value = 0;
    for (int shift = 0; shift < 64 && at_ < end_; shift += 7) {
      const auto byte = static_cast<unsigned char>(*at_++);
      value |= std::uint64_t{byte & 127u} << shift;
      if (byte < 128) return value;
    }
    throw cut();
  }

  const char* at_;
  const char* end_;
};

inline std::string read_bytes(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw std::runtime_error(path.string() + " is not there or cannot be read");
  return {std::istreambuf_iterator<char>(file), {}};
}

/// Every KIND_0.pb, KIND_1.pb, ... of a folder, at least one.
inline std::vector<Tensor> read_tensors(const std::filesystem::path& folder,
                                        const std::string& kind) {
  std::vector<Tensor> tensors;
  for (;;) {
    const auto path = folder / (kind + "_" + std::to_string(tensors.size()) + ".pb");
    if (!tensors.empty() && !std::filesystem::exists(path)) return tensors;
    const auto bytes = read_bytes(path);
    try {
      tensors.push_back(ProtoReader(bytes).tensor());
    } catch (const std::runtime_error& error) {
      throw std::runtime_error(path.string() + ": " + error.what());
    }
  }
}

inline void write_tensor(const std::filesystem::path& path, const std::string& name, int type,
                         const std::vector<std::int64_t>& dims, const void* data,
                         std::size_t size) {
  std::ofstream file(path, std::ios::binary);
  const auto varint = [&](std::uint64_t value) {
    for (; value > 127; value >>= 7) file.put(static_cast<char>((value & 127) | 128));
    file.put(static_cast<char>(value));
  };
  const auto bytes = [&](int field, const void* content, std::size_t count) {
    varint(static_cast<std::uint64_t>(field << 3 | BYTES));
    varint(count);
    file.write(static_cast<const char*>(content), static_cast<std::streamsize>(count));
  };
  for (const auto dim : dims) {
    varint(DIMS << 3 | VARINT);
    varint(static_cast<std::uint64_t>(dim));
  }
  varint(DATA_TYPE << 3 | VARINT);
  varint(static_cast<std::uint64_t>(type));
  bytes(NAME, name.data(), name.size());
  bytes(RAW_DATA, data, size);
  if (!file.flush()) throw std::runtime_error(path.string() + " cannot be written");
}
