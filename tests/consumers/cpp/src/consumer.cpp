// attention MODEL INPUTS OUTPUTS: runs one attention file, as docs/format.md says it is to be run.
//
// INPUTS holds, for each tensor given, NAME.shape (its dims as text, nothing for a scalar) and
// NAME.bin (its values, little-endian, in the type the file asks for). OUTPUTS gets the same.
#include <onnxruntime_cxx_api.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <functional>
#include <iostream>
#include <iterator>
#include <numeric>
#include <regex>
#include <sstream>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <vector>

namespace fs = std::filesystem;

namespace {

using Dims = std::vector<int64_t>;

struct Input {
  std::string name;
  bool optional;
  ONNXTensorElementDataType type;
  Dims dims;  // -1 where the file leaves the size open
};

// Bytes that a tensor of the runtime looks at: they must live as long as it does.
struct Tensor {
  std::vector<char> data;
  Ort::Value value{nullptr};
};

size_t size_of(const std::string& name, ONNXTensorElementDataType type) {
  switch (type) {
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_BOOL: return sizeof(bool);
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16: return sizeof(Ort::Float16_t);
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16: return sizeof(Ort::BFloat16_t);
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT: return sizeof(float);
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_DOUBLE: return sizeof(double);
    default: throw std::runtime_error(name + " is of a type that no such file has");
  }
}

size_t count(const Dims& dims) {
  return std::accumulate(dims.begin(), dims.end(), size_t{1}, std::multiplies<>());
}

Tensor make_tensor(const Input& input, std::vector<char> data, const Dims& dims) {
  const size_t bytes = count(dims) * size_of(input.name, input.type);
  if (data.size() != bytes)
    throw std::runtime_error(input.name + ".bin has " + std::to_string(data.size()) +
                             " bytes, its shape and type take " + std::to_string(bytes));
  Tensor tensor{std::move(data)};
  static const auto memory = Ort::MemoryInfo::CreateCpu(OrtDeviceAllocator, OrtMemTypeDefault);
  tensor.value = Ort::Value::CreateTensor(memory, tensor.data.data(), bytes, dims.data(),
                                          dims.size(), input.type);
  return tensor;
}

Tensor read_tensor(const fs::path& folder, const Input& input) {
  std::ifstream text(folder / (input.name + ".shape"));
  const Dims dims{std::istream_iterator<int64_t>(text), {}};
  std::ifstream file(folder / (input.name + ".bin"), std::ios::binary);
  if (!file) throw std::runtime_error((folder / (input.name + ".bin")).string() + " is missing");
  return make_tensor(input, {std::istreambuf_iterator<char>(file), {}}, dims);
}

template <typename T>
std::vector<char> as_bytes(const std::vector<double>& numbers) {
  std::vector<char> data(numbers.size() * sizeof(T));
  for (size_t i = 0; i < numbers.size(); ++i) {
    T number{};
    if constexpr (std::is_floating_point_v<T>) number = static_cast<T>(numbers[i]);
    else number = T(static_cast<float>(numbers[i]));
    std::copy_n(reinterpret_cast<const char*>(&number), sizeof(T), data.data() + i * sizeof(T));
  }
  return data;
}

// A trained weight: metadata keep {"scale": 0.5} or, for [dim], {"scale": [0.5, ...]}.
Tensor trained(const Ort::ModelMetadata& metadata, const Input& input) {
  Ort::AllocatorWithDefaultOptions allocator;
  const auto json = metadata.LookupCustomMetadataMapAllocated("onnx_attn.weights", allocator);
  const std::string text = json ? json.get() : "";
  const std::regex key('"' + input.name + R"(":\s*\[?([^\]"}]*))");
  std::smatch found;
  if (!std::regex_search(text, found, key))
    throw std::runtime_error(input.name + " is neither given nor in onnx_attn.weights");
  std::string list = found[1];
  std::replace(list.begin(), list.end(), ',', ' ');
  std::istringstream stream(list);
  const std::vector<double> numbers{std::istream_iterator<double>(stream), {}};
  const Dims dims(input.dims.size(), static_cast<int64_t>(numbers.size()));
  switch (input.type) {
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_DOUBLE:
      return make_tensor(input, as_bytes<double>(numbers), dims);
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16:
      return make_tensor(input, as_bytes<Ort::Float16_t>(numbers), dims);
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16:
      return make_tensor(input, as_bytes<Ort::BFloat16_t>(numbers), dims);
    default: return make_tensor(input, as_bytes<float>(numbers), dims);
  }
}

// What stands for a required input that is not given.
Tensor supply(const Ort::ModelMetadata& metadata, const Input& input) {
  if (input.name == "scale" || input.name == "concat_score_weight")
    return trained(metadata, input);
  Dims dims = input.dims;
  std::replace_if(dims.begin(), dims.end(), [](int64_t dim) { return dim < 0; }, 1);
  const size_t bytes = count(dims) * size_of(input.name, input.type);
  if (input.name == "query_mask" || input.name == "value_mask")
    return make_tensor(input, std::vector<char>(bytes, 1), dims);
  if (input.name == "bias" || input.name == "training")
    return make_tensor(input, std::vector<char>(bytes, 0), dims);
  throw std::runtime_error(input.name + " is required, but not in INPUTS");
}

std::vector<Input> all_inputs(const Ort::Session& session) {
  Ort::AllocatorWithDefaultOptions allocator;
  std::vector<Input> inputs;
  const auto add = [&](std::string name, bool optional, const Ort::TypeInfo& info) {
    const auto tensor = info.GetTensorTypeAndShapeInfo();
    inputs.push_back({std::move(name), optional, tensor.GetElementType(), tensor.GetShape()});
  };
  for (size_t i = 0; i < session.GetInputCount(); ++i)
    add(session.GetInputNameAllocated(i, allocator).get(), false, session.GetInputTypeInfo(i));
  for (size_t i = 0; i < session.GetOverridableInitializerCount(); ++i)
    add(session.GetOverridableInitializerNameAllocated(i, allocator).get(), true,
        session.GetOverridableInitializerTypeInfo(i));
  return inputs;
}

// A tensor under a name that the file does not have would be lost without a word.
void refuse_strangers(const fs::path& folder, const std::vector<Input>& inputs) {
  for (const auto& entry : fs::directory_iterator(folder)) {
    const std::string name = entry.path().stem().string();
    if (std::none_of(inputs.begin(), inputs.end(), [&](auto& input) { return input.name == name; }))
      throw std::runtime_error("the file has no input " + name);
  }
}

void write_output(const fs::path& folder, const std::string& name, const Ort::Value& value) {
  const auto info = value.GetTensorTypeAndShapeInfo();
  std::ofstream text(folder / (name + ".shape"));
  for (const int64_t dim : info.GetShape()) text << dim << ' ';
  std::ofstream file(folder / (name + ".bin"), std::ios::binary);
  file.write(static_cast<const char*>(value.GetTensorRawData()),
             static_cast<std::streamsize>(info.GetElementCount() *
                                          size_of(name, info.GetElementType())));
  if (!text.flush() || !file.flush()) throw std::runtime_error(name + ": not written");
}

void consume(const fs::path& model, const fs::path& folder, const fs::path& outputs) {
  Ort::Env env(ORT_LOGGING_LEVEL_ERROR, "consumer");
  Ort::SessionOptions options;
  options.SetLogSeverityLevel(ORT_LOGGING_LEVEL_FATAL);  // errors are thrown
  Ort::Session session(env, model.c_str(), options);
  const auto metadata = session.GetModelMetadata();

  const std::vector<Input> inputs = all_inputs(session);
  refuse_strangers(folder, inputs);
  std::vector<const char*> names;
  std::vector<std::vector<char>> alive;
  std::vector<Ort::Value> values;
  for (const Input& input : inputs) {
    const bool given = fs::exists(folder / (input.name + ".shape"));
    if (!given && input.optional) continue;
    Tensor tensor = given ? read_tensor(folder, input) : supply(metadata, input);
    names.push_back(input.name.c_str());
    alive.push_back(std::move(tensor.data));
    values.push_back(std::move(tensor.value));
  }

  Ort::AllocatorWithDefaultOptions allocator;
  std::vector<std::string> output_names;
  for (size_t i = 0; i < session.GetOutputCount(); ++i)
    output_names.emplace_back(session.GetOutputNameAllocated(i, allocator).get());
  std::vector<const char*> wanted;
  for (const auto& name : output_names) wanted.push_back(name.c_str());
  const auto results = session.Run(Ort::RunOptions{nullptr}, names.data(), values.data(),
                                   values.size(), wanted.data(), wanted.size());
  for (size_t i = 0; i < results.size(); ++i) write_output(outputs, output_names[i], results[i]);
}

}  // namespace

int main(int argc, char** argv) {
  try {
    if (argc != 4) throw std::invalid_argument("usage: attention MODEL INPUTS OUTPUTS");
    consume(argv[1], argv[2], argv[3]);
  } catch (const std::exception& error) {
    std::string message = error.what();
    std::replace(message.begin(), message.end(), '\n', ' ');
    std::cerr << "error: " << message << '\n';
    return 1;
  }
}
