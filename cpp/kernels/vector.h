// The vector of the instruction set that this file is compiled for, with the compilers' vector extensions.
#pragma once

#include <cstdint>
#include <cstring>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#if !defined(UPSCORE_ISA) || !defined(UPSCORE_VECTOR_BYTES) || !defined(UPSCORE_REGISTERS)
#error "kernels are compiled with UPSCORE_ISA, UPSCORE_VECTOR_BYTES and UPSCORE_REGISTERS defined"
#endif

namespace upscore::UPSCORE_ISA {

template <typename T>
struct VectorOf;
template <>
struct VectorOf<float> {
  typedef float type __attribute__((vector_size(UPSCORE_VECTOR_BYTES)));
  typedef std::int32_t index __attribute__((vector_size(UPSCORE_VECTOR_BYTES)));
};
template <>
struct VectorOf<double> {
  typedef double type __attribute__((vector_size(UPSCORE_VECTOR_BYTES)));
  typedef std::int64_t index __attribute__((vector_size(UPSCORE_VECTOR_BYTES)));
};

template <typename T>
using Vector = typename VectorOf<T>::type;
template <typename T>
using Index = typename VectorOf<T>::index;
template <typename T>
constexpr int kLanes = UPSCORE_VECTOR_BYTES / static_cast<int>(sizeof(T));

template <typename T>
inline Index<T> lane_numbers() {
  Index<T> lane{};
  for (int l = 0; l < kLanes<T>; ++l) lane[l] = l;
  return lane;
}

template <typename T>
inline Vector<T> load(const T* p) {
  Vector<T> v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
// For so many products: compilers would load what two or three share again for each of them.
template <typename T, int Products>
inline Vector<T> load_for(const T* p) {
  Vector<T> v = load(p);
#if defined(__x86_64__)
  if constexpr (Products == 2 || Products == 3) asm("" : "+v"(v));
#endif
  return v;
}

template <typename T>
inline void store(T* p, Vector<T> v) {
  std::memcpy(p, &v, sizeof v);
}
// `p` lies on a vector.
template <typename T>
inline void store_past_caches(T* p, Vector<T> v) {
#if defined(__AVX512F__)
  _mm512_stream_si512(reinterpret_cast<__m512i*>(p), reinterpret_cast<__m512i>(v));
#elif defined(__AVX2__)
  _mm256_stream_si256(reinterpret_cast<__m256i*>(p), reinterpret_cast<__m256i>(v));
#elif defined(__x86_64__)
  _mm_stream_si128(reinterpret_cast<__m128i*>(p), reinterpret_cast<__m128i>(v));
#else
  store(p, v);
#endif
}

}  // namespace upscore::UPSCORE_ISA
