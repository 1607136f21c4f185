// Attention files in C++: run them, check them, read their errors.
//
//   attention FOLDER                      FOLDER/model.onnx: its test vectors, masks, errors
//   attention --catalogue MODELS          every model of a folder against its test vectors
//   attention MODEL SET OUT [SET OUT ...] the inputs SET/input_N.pb to OUT/output_N.pb
//   attention --version                   which ONNX Runtime runs
#include <onnxruntime_cxx_api.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <functional>
#include <iostream>
#include <map>
#include <sstream>

#include "vectors.hpp"

namespace fs = std::filesystem;

namespace {

/// The process's one environment. Errors are thrown: without FATAL they are logged as well.
Ort::Env& environment() {
  static Ort::Env env{ORT_LOGGING_LEVEL_FATAL, "attention"};
  return env;
}

/// Tensors by the names of the file.
using Feeds = std::map<std::string, Ort::Value>;

struct Port {
  std::string name, type;
  int element;
  std::vector<std::int64_t> dims;
};

Port port(Ort::AllocatedStringPtr name, const Ort::TypeInfo& info) {
  const auto tensor = info.GetTensorTypeAndShapeInfo();
  Port port{name.get(), "", tensor.GetElementType(), tensor.GetShape()};
  std::vector<const char*> symbols(port.dims.size());
  tensor.GetSymbolicDimensions(symbols.data(), symbols.size());
  port.type = std::string(name_of(port.element)) + "[";
  for (std::size_t d = 0; d < port.dims.size(); ++d) {
    port.type += d ? ", " : "";
    port.type += port.dims[d] < 0 ? symbols[d] : std::to_string(port.dims[d]);
  }
  port.type += "]";
  return port;
}

class Model {
 public:
  explicit Model(const fs::path& path)
      : session_{environment(), path.c_str(), Ort::SessionOptions{}} {
    Ort::AllocatorWithDefaultOptions allocator;
    for (std::size_t n = 0; n < session_.GetInputCount(); ++n) {
      inputs.push_back(port(session_.GetInputNameAllocated(n, allocator), session_.GetInputTypeInfo(n)));
    }
    // Inputs that may be left out, in files exported with inputs="optional".
    for (std::size_t n = 0; n < session_.GetOverridableInitializerCount(); ++n) {
      inputs.push_back(port(session_.GetOverridableInitializerNameAllocated(n, allocator),
                            session_.GetOverridableInitializerTypeInfo(n)));
    }
    for (std::size_t n = 0; n < session_.GetOutputCount(); ++n) {
      outputs.push_back(port(session_.GetOutputNameAllocated(n, allocator), session_.GetOutputTypeInfo(n)));
    }
  }

  bool has(const std::string& name) const {
    return std::any_of(inputs.begin(), inputs.end(), [&](auto& port) { return port.name == name; });
  }

  std::vector<Ort::Value> run(const Feeds& feeds, const std::vector<std::string>& wanted) {
    std::vector<const char*> names, wanted_names;
    std::vector<OrtValue*> values;
    for (const auto& [name, value] : feeds) {
      names.push_back(name.c_str());
      values.push_back(value);
    }
    for (const auto& name : wanted) wanted_names.push_back(name.c_str());
    std::vector<Ort::Value> results(wanted.size());
    // The C call, since Feeds own their values; Session::Run takes an array of Ort::Value.
    Ort::ThrowOnError(Ort::GetApi().Run(session_, nullptr, names.data(), values.data(), names.size(),
                                        wanted_names.data(), wanted_names.size(),
                                        reinterpret_cast<OrtValue**>(results.data())));
    return results;
  }

  std::vector<Port> inputs, outputs;

 private:
  Ort::Session session_;
};

const Ort::MemoryInfo& cpu_memory() {
  static const auto memory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
  return memory;
}

/// A tensor of a known type. The value borrows `data`: it must live until the run is over.
template <typename T>
Ort::Value tensor(T* data, const std::vector<std::int64_t>& shape) {
  std::size_t count = 1;
  for (const auto dim : shape) count *= static_cast<std::size_t>(dim);
  return Ort::Value::CreateTensor<T>(cpu_memory(), data, count, shape.data(), shape.size());
}

/// A tensor of a type known only at run time: the size is in bytes.
Ort::Value tensor(Tensor& from) {
  return Ort::Value::CreateTensor(cpu_memory(), from.data.data(), from.data.size(), from.dims.data(),
                                  from.dims.size(), static_cast<ONNXTensorElementDataType>(from.type));
}

std::string one_line(const std::exception& error) {
  std::istringstream words(error.what());
  std::string line, word;
  while (words >> word) line += (line.empty() ? "" : " ") + word;
  return line;
}

// Test vectors.

struct Checked {
  double largest = 0;
  bool fine = true;
  int sets = 0;
};

struct Tolerance {
  double rtol = -1, atol = -1;
};

Tolerance read_tolerance(const fs::path& folder) {
  std::istringstream lines(read_bytes(folder / "config.txt"));
  Tolerance tolerance;
  for (std::string key; lines >> key;) {
    if (key == "per_sample_tolerance:") lines >> tolerance.atol;
    if (key == "relative_per_sample_tolerance:") lines >> tolerance.rtol;
  }
  if (tolerance.rtol < 0 || tolerance.atol < 0) {
    throw std::runtime_error((folder / "config.txt").string() + " does not state both tolerances");
  }
  return tolerance;
}

void compare(const Ort::Value& got, const Tensor& wanted, Tolerance tolerance, Checked& checked) {
  const auto info = got.GetTensorTypeAndShapeInfo();
  if (info.GetElementType() != wanted.type || info.GetShape() != wanted.dims) {
    throw std::runtime_error(wanted.name + " has another type or shape than expected");
  }
  for (std::size_t n = 0; n < info.GetElementCount(); ++n) {
    const double a = number_at(wanted.type, got.GetTensorRawData(), n);
    const double b = number_at(wanted.type, wanted.data.data(), n);
    double error = a == b || (std::isnan(a) && std::isnan(b)) ? 0 : std::fabs(a - b);
    if (std::isnan(error)) error = std::numeric_limits<double>::infinity();
    checked.largest = std::max(checked.largest, error);
    checked.fine &= error <= tolerance.atol + tolerance.rtol * std::fabs(b);
  }
}

Feeds feeds_of(std::vector<Tensor>& tensors) {
  Feeds feeds;
  for (auto& each : tensors) feeds.emplace(each.name, tensor(each));
  return feeds;
}

Checked check_sets(Model& model, const fs::path& folder, bool print) {
  const auto tolerance = read_tolerance(folder);
  Checked all;
  for (;; ++all.sets) {
    const auto name = "test_data_set_" + std::to_string(all.sets);
    if (!fs::exists(folder / name)) break;
    auto inputs = read_tensors(folder / name, "input");
    const auto expected = read_tensors(folder / name, "output");
    std::vector<std::string> wanted;
    for (const auto& each : expected) wanted.push_back(each.name);
    const auto results = model.run(feeds_of(inputs), wanted);
    Checked one;
    for (std::size_t n = 0; n < results.size(); ++n) {
      compare(results[n], expected[n], tolerance, one);
    }
    if (print) {
      std::printf("  %s  largest error %.1e  %s\n", name.c_str(), one.largest,
                  one.fine ? "ok" : "TOO LARGE");
    }
    all.largest = std::max(all.largest, one.largest);
    all.fine &= one.fine;
  }
  if (!all.sets) throw std::runtime_error("there is no test_data_set_0 beside the model");
  return all;
}

int catalogue(const fs::path& models) {
  std::vector<fs::path> folders;
  for (const auto& entry : fs::directory_iterator(models)) {
    if (fs::exists(entry.path() / "model.onnx")) folders.push_back(entry.path());
  }
  std::sort(folders.begin(), folders.end());
  if (folders.empty()) throw std::runtime_error(models.string() + " holds no folder with a model.onnx");
  std::printf("ONNX Runtime %s\n", Ort::GetVersionString().c_str());
  bool fine = true;
  for (const auto& folder : folders) {
    const auto name = folder.filename().string();
    try {
      Model model(folder / "model.onnx");
      const auto checked = check_sets(model, folder, false);
      std::printf("  %-22s %-17s %d sets, largest error %.1e\n", name.c_str(),
                  checked.fine ? "ok" : "error too large", checked.sets, checked.largest);
      fine &= checked.fine;
    } catch (const std::exception& error) {
      std::printf("  %-22s failed: %s\n", name.c_str(), one_line(error).c_str());
      fine = false;
    }
  }
  return fine ? 0 : 1;
}

/// Inputs of a folder to outputs of another, by pairs.
void run_sets(const fs::path& path, char** folders, char** end) {
  Model model(path);
  std::vector<std::string> wanted;
  for (const auto& output : model.outputs) wanted.push_back(output.name);
  for (; folders < end; folders += 2) {
    auto inputs = read_tensors(folders[0], "input");
    const auto results = model.run(feeds_of(inputs), wanted);
    for (std::size_t n = 0; n < results.size(); ++n) {
      const auto info = results[n].GetTensorTypeAndShapeInfo();
      const int type = info.GetElementType();
      write_tensor(fs::path(folders[1]) / ("output_" + std::to_string(n) + ".pb"), wanted[n], type,
                   info.GetShape(), results[n].GetTensorRawData(),
                   info.GetElementCount() * size_of(type));
    }
  }
}

// One model, shown.

void show(Model& model, const std::string& title, const Feeds& feeds) {
  const auto results = model.run(feeds, {"output"});
  const auto info = results[0].GetTensorTypeAndShapeInfo();
  const auto shape = info.GetShape();
  std::printf("  %-36s output [", title.c_str());
  for (std::size_t d = 0; d < shape.size(); ++d) std::printf("%s%lld", d ? ", " : "", (long long)shape[d]);
  std::printf("]:");
  const float* output = results[0].GetTensorData<float>();
  for (std::size_t n = 0; n < info.GetElementCount(); ++n) std::printf(" %.4f", output[n]);
  std::printf("\n");
}

/// Whether `attempt` throws; prints what the runtime says, and goes on.
bool refused(const char* title, const std::function<void()>& attempt) {
  try {
    attempt();
  } catch (const Ort::Exception& error) {
    std::printf("  %s: %s\n", title, one_line(error).c_str());
    return true;
  }
  std::printf("  %s: NOT REFUSED\n", title);
  return false;
}

/// The demonstration feeds float32 of rank 3 and knows these names.
bool can_show(const Model& model) {
  static const std::vector<std::string> known{"query", "value", "key", "query_mask", "value_mask",
                                              "training", "scale", "concat_score_weight"};
  const auto& query = model.inputs.front();
  return query.element == FLOAT32 && query.dims.size() == 3 && query.dims[0] < 0 && query.dims[1] < 0 &&
         std::all_of(model.inputs.begin(), model.inputs.end(), [](const auto& port) {
           return std::find(known.begin(), known.end(), port.name) != known.end();
         });
}

bool demonstrate(Model& model, const fs::path& path) {
  const auto fixed = model.inputs.front().dims[2];
  const auto dim = fixed < 0 ? 8 : fixed;  // 8 suits models/additive as well

  // Two queries look at three keys; the values are easy to tell apart.
  std::vector<float> query(2 * dim), key(3 * dim), value{10, 20, 30};
  query[0] = query[dim + 1] = 2;
  key[0] = key[dim + 1] = key[2 * dim] = key[2 * dim + 1] = 1;
  // A mask of shape [1, 1] that holds true is no mask. Not std::vector<bool>: it has no data().
  std::array<bool, 1> none{true};
  std::array<bool, 3> visible{true, true, false};
  std::array<bool, 2> asked{true, false};
  float one = 1, half = 0.5f;
  bool training = false, drop = true;

  // Values borrow their data, so a second set of feeds costs next to nothing.
  const auto feeds = [&] {
    Feeds feeds;
    feeds.emplace("query", tensor(query.data(), {1, 2, dim}));
    if (model.has("key")) {
      feeds.emplace("value", tensor(value.data(), {1, 3, 1}));
      feeds.emplace("key", tensor(key.data(), {1, 3, dim}));
    } else {
      feeds.emplace("value", tensor(key.data(), {1, 3, dim}));
    }
    for (const auto* mask : {"query_mask", "value_mask"}) {
      if (model.has(mask)) feeds.emplace(mask, tensor(none.data(), {1, 1}));
    }
    // Scalars have an empty shape.
    for (const auto* scalar : {"scale", "concat_score_weight"}) {
      if (model.has(scalar)) feeds.emplace(scalar, tensor(&one, {}));
    }
    if (model.has("training")) feeds.emplace("training", tensor(&training, {}));
    return feeds;
  };
  const auto with = [&](const std::string& name, Ort::Value value) {
    auto changed = feeds();
    changed.insert_or_assign(name, std::move(value));
    return changed;
  };

  std::printf("\nMasks and scalars\n");
  show(model, "no mask: value_mask [[true]]", feeds());
  if (model.has("value_mask")) {
    show(model, "value_mask [[true, true, false]]", with("value_mask", tensor(visible.data(), {1, 3})));
  }
  if (model.has("query_mask")) {
    show(model, "query_mask [[true, false]]", with("query_mask", tensor(asked.data(), {1, 2})));
  }
  if (model.has("scale")) show(model, "scale 0.5", with("scale", tensor(&half, {})));
  if (model.has("training")) show(model, "training true", with("training", tensor(&drop, {})));

  std::printf("\nBad input\n");
  const auto bad = [&](const char* title, const Feeds& feeds) {
    return refused(title, [&] { model.run(feeds, {"output"}); });
  };
  std::vector<double> doubles(2 * dim);
  auto without = feeds();
  without.erase("value");
  bool all = bad("no value", without);
  all &= bad("float64 query", with("query", tensor(doubles.data(), {1, 2, dim})));
  if (model.has("value_mask")) {
    all &= bad("mask of 2 for 3 values", with("value_mask", tensor(asked.data(), {1, 2})));
  }
  if (model.has("key")) all &= bad("3 keys, 2 values", with("value", tensor(value.data(), {1, 2, 1})));
  const auto whole = read_bytes(path);
  all &= refused("a file cut in half", [&] {
    Ort::Session(environment(), whole.data(), whole.size() / 2, Ort::SessionOptions{});
  });
  all &= refused("a file that is not there", [] { Model("no_such_model.onnx"); });

  std::printf("\nAnd on it goes\n");
  show(model, "no mask, as before", feeds());
  return all;
}

int one_model(const fs::path& folder) {
  Model model(folder / "model.onnx");
  std::printf("%s\n", folder.c_str());
  for (const auto& [title, ports] : {std::pair{"inputs", &model.inputs}, {"outputs", &model.outputs}}) {
    std::printf("  %s:", title);
    for (const auto& port : *ports) {
      std::printf("%s %s %s", &port == &ports->front() ? "" : ";", port.name.c_str(), port.type.c_str());
    }
    std::printf("\n");
  }
  std::printf("\nTest vectors\n");
  bool fine = check_sets(model, folder, true).fine;
  if (can_show(model)) fine &= demonstrate(model, folder / "model.onnx");
  else std::printf("\nNo demonstration: it feeds float32 [1, 2, dim]\n");
  return fine ? 0 : 1;
}

}  // namespace

int main(int count, char** arguments) {
  const std::string first = count > 1 ? arguments[1] : "";
  if (!OrtGetApiBase()->GetApi(ORT_API_VERSION)) {  // Ort::GetApi() would be a null pointer
    std::cerr << "error: the headers are of ONNX Runtime 1." << ORT_API_VERSION
              << ", the library is " << OrtGetApiBase()->GetVersionString() << ": take older headers\n";
    return 1;
  }
  try {
    if (count == 2 && first == "--version") {
      std::printf("ONNX Runtime %s\n", Ort::GetVersionString().c_str());
      return 0;
    }
    if (count == 3 && first == "--catalogue") return catalogue(arguments[2]);
    if (count >= 4 && count % 2 == 0) {
      run_sets(first, arguments + 2, arguments + count);
      return 0;
    }
    if (count == 2 && first[0] != '-') return one_model(first);
  } catch (const std::exception& error) {
    std::fflush(stdout);
    std::cerr << "error: " << one_line(error) << '\n';
    return 1;
  }
  std::cerr << "usage: attention FOLDER | --catalogue MODELS | MODEL SET OUT [SET OUT ...] | --version\n";
  return 2;
}
