// What this machine can do at most: float32 multiply-adds, and bytes written and read, on N threads.
// Prints one line of JSON. Compiled for the machine it runs on: c++ -std=c++20 -O3 -march=native -pthread roofline.cc
#include <algorithm>
#include <barrier>
#include <chrono>
#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <thread>
#include <vector>
#if defined(__SSE2__)
#include <immintrin.h>
#endif

namespace {

#if defined(__AVX512F__)
constexpr std::size_t kVectorBytes = 64, kAccumulators = 24;
#elif defined(__AVX__)
constexpr std::size_t kVectorBytes = 32, kAccumulators = 12;
#else
constexpr std::size_t kVectorBytes = 16, kAccumulators = 12;
#endif
constexpr std::size_t kLanes = kVectorBytes / sizeof(float);
typedef float Vector __attribute__((vector_size(kVectorBytes), may_alias));

constexpr int kRepeats = 7;
constexpr std::size_t kBufferBytes = std::size_t{256} << 20;  // for each thread: far beyond any cache

using Clock = std::chrono::steady_clock;

// Runs `work(thread)` on all threads at once, several times over; the seconds of the best time. The threads look at the
// clock themselves: a bystander that is scheduled late would measure less than was done.
double best_seconds(int threads, const std::function<void(int)>& work) {
  std::vector<Clock::time_point> starts(threads), ends(threads);
  std::barrier sync(threads);
  double best = 1e30;
  const auto repeat = [&](int t) {
    for (int i = 0; i < kRepeats; ++i) {
      sync.arrive_and_wait();
      starts[t] = Clock::now();
      work(t);
      ends[t] = Clock::now();
      sync.arrive_and_wait();
      if (t == 0) {
        const auto span = *std::max_element(ends.begin(), ends.end()) - *std::min_element(starts.begin(), starts.end());
        best = std::min(best, std::chrono::duration<double>(span).count());
      }
    }
  };
  std::vector<std::jthread> pool;
  for (int t = 1; t < threads; ++t) pool.emplace_back(repeat, t);
  repeat(0);
  return best;
}

// Independent chains of multiply-adds, more of them than one unit's latency times the units.
float multiply_add(long rounds, float seed) {
  Vector sums[kAccumulators];
  for (std::size_t a = 0; a < kAccumulators; ++a) sums[a] = Vector{} + static_cast<float>(a);
  const Vector factor = Vector{} + seed, term = Vector{} + 1e-3f;
  for (long r = 0; r < rounds; ++r) {
#pragma GCC unroll 24
    for (std::size_t a = 0; a < kAccumulators; ++a) sums[a] = sums[a] * factor + term;
  }
  float total = 0;
  for (const Vector& sum : sums)
    for (std::size_t lane = 0; lane < kLanes; ++lane) total += sum[lane];
  return total;
}

void write(float* data, std::size_t count, float value, bool streaming) {
  const Vector v = Vector{} + value;
  auto* out = reinterpret_cast<Vector*>(data);
  for (std::size_t i = 0; i < count / kLanes; ++i) {
#if defined(__AVX512F__)
    if (streaming) {
      _mm512_stream_ps(reinterpret_cast<float*>(out + i), reinterpret_cast<const __m512&>(v));
      continue;
    }
#elif defined(__AVX__)
    if (streaming) {
      _mm256_stream_ps(reinterpret_cast<float*>(out + i), reinterpret_cast<const __m256&>(v));
      continue;
    }
#endif
    out[i] = v;
  }
}

float read(const float* data, std::size_t count) {
  const auto* in = reinterpret_cast<const Vector*>(data);
  Vector sums[8] = {};
  for (std::size_t i = 0; i + 8 <= count / kLanes; i += 8)
    for (std::size_t a = 0; a < 8; ++a) sums[a] += in[i + a];
  float total = 0;
  for (const Vector& sum : sums) total += sum[0];
  return total;
}

}  // namespace

int main(int argc, char** argv) {
  const int threads = argc > 1 ? std::max(1, std::atoi(argv[1])) : 1;
  volatile float sink = 0;
  const float factor = 0.999f + 0.0001f * static_cast<float>(argc);

  constexpr long kRounds = 2'000'000;
  const double fma = best_seconds(threads, [&](int) { sink = multiply_add(kRounds, factor); });

  constexpr std::size_t kCount = kBufferBytes / sizeof(float);
  std::vector<float*> buffers;
  for (int t = 0; t < threads; ++t) buffers.push_back(static_cast<float*>(std::aligned_alloc(4096, kBufferBytes)));
  const double plain = best_seconds(threads, [&](int t) { write(buffers[t], kCount, factor, false); });
  const double streamed = best_seconds(threads, [&](int t) { write(buffers[t], kCount, factor, true); });
  const double reading = best_seconds(threads, [&](int t) { sink = read(buffers[t], kCount); });
  for (float* buffer : buffers) std::free(buffer);

  const double flops = 2.0 * kRounds * kAccumulators * kLanes * threads;
  const double bytes = static_cast<double>(kBufferBytes) * threads;
  std::printf("{\"threads\": %d, \"gflops\": %.1f, \"write_gbs\": %.2f, \"read_gbs\": %.2f, \"vector_bits\": %zu}\n",
              threads, flops / fma / 1e9, bytes / std::min(plain, streamed) / 1e9, bytes / reading / 1e9,
              kVectorBytes * 8);
  return 0;
}
