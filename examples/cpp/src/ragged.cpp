// A batch of sequences of different length in one call, as a service runs it:
//
//   ragged MODEL [THREADS]    MODEL: float32, with a key and a value mask, as models/masked
//
// Sequences are padded to the longest; value_mask hides the padding. The result of the one call is
// checked, row by row, against calls of each sequence alone, and both are timed. One call saves the
// cost of many, but pays for the padding: put sequences of like length together.
#include <onnxruntime_cxx_api.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <iostream>
#include <memory>
#include <random>
#include <string>
#include <vector>

namespace {

constexpr std::int64_t DIM = 64, LONGEST = 48;
constexpr int BATCH = 32;

/// What one request brings: [length, DIM], queries, keys and values alike.
struct Sequence {
  std::int64_t length;
  std::vector<float> query, value, key;
};

Ort::SessionOptions service_options(int threads) {
  Ort::SessionOptions options;
  // As many threads as this process may use: by default ONNX Runtime takes one for each core of
  // the machine, also in a container that was granted two.
  options.SetIntraOpNumThreads(threads);
  options.SetExecutionMode(ORT_SEQUENTIAL);  // the nodes of a file wait for one another
  // Threads that spin between calls burn the CPU time of whoever else runs here.
  options.AddConfigEntry("session.intra_op.allow_spinning", "0");
  // Patterns are kept for each combination of shapes; in a service nearly every call brings another.
  options.DisableMemPattern();
  return options;
}

Ort::RunOptions run_options() {
  Ort::RunOptions options;
  // The arena keeps what the longest batch needed for good, unless it is told to give it back.
  options.AddConfigEntry("memory.enable_memory_arena_shrinkage", "cpu:0");
  return options;
}

class Attention {
 public:
  Attention(Ort::Env& env, const char* path, int threads)
      : session_{env, path, service_options(threads)}, run_options_{run_options()} {}

  /// Attends sequences [first, last) in one call; writes each one's [length, DIM].
  void run(const Sequence* first, const Sequence* last, std::vector<std::vector<float>>& outputs) {
    const auto batch = last - first;
    std::int64_t longest = 0;
    for (auto* each = first; each < last; ++each) longest = std::max(longest, each->length);
    // Pads of zeros, and flags in bytes of bool: a std::vector<bool> has no data().
    const auto size = static_cast<std::size_t>(batch * longest);
    query_.assign(size * DIM, 0);
    value_.assign(size * DIM, 0);
    key_.assign(size * DIM, 0);
    visible_ = std::make_unique<bool[]>(size);
    for (std::int64_t row = 0; row < batch; ++row) {
      const auto& from = first[row];
      std::copy(from.query.begin(), from.query.end(), query_.begin() + row * longest * DIM);
      std::copy(from.value.begin(), from.value.end(), value_.begin() + row * longest * DIM);
      std::copy(from.key.begin(), from.key.end(), key_.begin() + row * longest * DIM);
      std::fill_n(visible_.get() + row * longest, from.length, true);
    }

    const std::int64_t shape[] = {batch, longest, DIM}, mask[] = {batch, longest}, one[] = {1, 1};
    bool none = true;  // the rows of padded queries are not read: no query_mask
    std::vector<Ort::Value> feeds;
    for (auto* data : {&query_, &value_, &key_}) {
      feeds.push_back(Ort::Value::CreateTensor<float>(memory_, data->data(), data->size(), shape, 3));
    }
    feeds.push_back(Ort::Value::CreateTensor<bool>(memory_, &none, 1, one, 2));
    feeds.push_back(Ort::Value::CreateTensor<bool>(memory_, visible_.get(), size, mask, 2));
    static const char* const names[] = {"query", "value", "key", "query_mask", "value_mask"};
    static const char* const wanted[] = {"output"};
    const auto results = session_.Run(run_options_, names, feeds.data(), feeds.size(), wanted, 1);
    const float* output = results[0].GetTensorData<float>();
    for (std::int64_t row = 0; row < batch; ++row, output += longest * DIM) {
      outputs.emplace_back(output, output + first[row].length * DIM);
    }
  }

 private:
  Ort::Session session_;
  Ort::RunOptions run_options_;
  Ort::MemoryInfo memory_ = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
  std::vector<float> query_, value_, key_;
  std::unique_ptr<bool[]> visible_;
};

std::vector<Sequence> sequences() {
  std::mt19937 random(17);  // the standard fixes its numbers, not those of distributions
  const auto number = [&] { return static_cast<float>(random() % 4096) / 2048 - 1; };
  std::vector<Sequence> made;
  for (int n = 0; n < BATCH; ++n) {
    const auto length = static_cast<std::int64_t>(1 + random() % LONGEST);
    Sequence sequence{length, {}, {}, {}};
    for (auto* data : {&sequence.query, &sequence.value, &sequence.key}) {
      data->resize(static_cast<std::size_t>(length * DIM));
      std::generate(data->begin(), data->end(), number);
    }
    made.push_back(std::move(sequence));
  }
  return made;
}

template <typename Work>
double milliseconds(const Work& work) {
  constexpr int TURNS = 20;
  std::vector<double> times;
  for (int turn = 0; turn < TURNS; ++turn) {
    const auto start = std::chrono::steady_clock::now();
    work();
    const std::chrono::duration<double, std::milli> took = std::chrono::steady_clock::now() - start;
    times.push_back(took.count());
  }
  std::nth_element(times.begin(), times.begin() + TURNS / 2, times.end());
  return times[TURNS / 2];
}

int run(const char* path, int threads) {
  Ort::Env env{ORT_LOGGING_LEVEL_FATAL, "ragged"};  // one a process, before any session
  Attention attention(env, path, threads);
  const auto batch = sequences();
  const Sequence* const begin = batch.data();
  const Sequence* const end = begin + batch.size();
  std::vector<std::vector<float>> together, alone;
  attention.run(begin, end, together);
  for (const auto* each = begin; each < end; ++each) attention.run(each, each + 1, alone);

  float largest = 0;
  bool fine = true;
  for (std::size_t row = 0; row < batch.size(); ++row) {
    for (std::size_t n = 0; n < alone[row].size(); ++n) {
      const float difference = std::fabs(together[row][n] - alone[row][n]);
      largest = std::max(largest, difference);
      fine &= difference <= 2e-6f;  // false for NaN
    }
  }
  std::printf("%d sequences of 1 to %lld: largest difference from one by one %.1e  %s\n", BATCH,
              (long long)LONGEST, largest, fine ? "ok" : "TOO LARGE");

  const double one_call = milliseconds([&] {
    together.clear();
    attention.run(begin, end, together);
  });
  const double one_by_one = milliseconds([&] {
    alone.clear();
    for (const auto* each = begin; each < end; ++each) attention.run(each, each + 1, alone);
  });
  std::printf("%d threads: together %.2f ms, one by one %.2f ms (medians)\n", threads, one_call,
              one_by_one);
  return fine ? 0 : 1;
}

}  // namespace

int main(int count, char** arguments) {
  const int threads = count == 3 ? std::atoi(arguments[2]) : 2;
  if (count < 2 || count > 3 || threads < 1) {
    std::cerr << "usage: ragged MODEL [THREADS]\n";
    return 2;
  }
  try {
    return run(arguments[1], threads);
  } catch (const std::exception& error) {
    std::cerr << "error: " << error.what() << '\n';
    return 1;
  }
}
