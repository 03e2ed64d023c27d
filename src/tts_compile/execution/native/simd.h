// Vectors of float32, a few functions of them, and the division of work among threads.
//
// The vector extensions of GCC and Clang build for AVX-512, AVX2 and NEON.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <omp.h>
#include <vector>
#if defined(__AVX2__)
#include <immintrin.h>
#endif

#if defined(__AVX512F__)
#define VECTOR_BYTES 64
#elif defined(__AVX__)
#define VECTOR_BYTES 32
#else
#define VECTOR_BYTES 16
#endif

namespace {

constexpr long LANES = VECTOR_BYTES / 4;
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int REGISTERS = 32;
#else
constexpr int REGISTERS = 16;
#endif

typedef float Floats __attribute__((vector_size(VECTOR_BYTES), may_alias));
typedef float FloatsAnywhere __attribute__((vector_size(VECTOR_BYTES), aligned(4), may_alias));
typedef int32_t Ints __attribute__((vector_size(VECTOR_BYTES)));
typedef int8_t Bytes __attribute__((vector_size(LANES)));

inline Floats load(const float *p) { return *reinterpret_cast<const FloatsAnywhere *>(p); }

inline Floats load(const int8_t *p) {
#if defined(__AVX512F__)  // GCC 12 converts number by number without the intrinsics
  Ints whole = reinterpret_cast<Ints>(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i *>(p))));
#elif defined(__AVX2__)
  Ints whole = reinterpret_cast<Ints>(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i *>(p))));
#else
  Bytes bytes;
  std::memcpy(&bytes, p, sizeof bytes);
  Ints whole = __builtin_convertvector(bytes, Ints);
#endif
  return __builtin_convertvector(whole, Floats);
}

inline void store(float *p, Floats v) { *reinterpret_cast<FloatsAnywhere *>(p) = v; }

inline float sum(Floats v) {
#if defined(__AVX512F__)
  return _mm512_reduce_add_ps(reinterpret_cast<__m512>(v));
#else
  float lane[LANES];
  std::memcpy(lane, &v, sizeof lane);
  for (long half = LANES / 2; half; half /= 2)
    for (long i = 0; i < half; i++) lane[i] += lane[i + half];
  return lane[0];
#endif
}

// Returns exp(x) for x <= 0, relative error under 1e-6: 2^n times a polynomial for the rest (the Taylor series of 2^f
// up to f^6, |f| <= 1/2). Below -87 the result is 0 instead of a subnormal number.
inline Floats exponential(Floats x) {
  Floats scaled = x * 1.44269504f;
#if defined(__AVX512F__)
  Floats whole = reinterpret_cast<Floats>(_mm512_roundscale_ps(reinterpret_cast<__m512>(scaled), 0));
#else
  Ints exponent = __builtin_convertvector(scaled - 0.5f, Ints);  // rounds to nearest for negative numbers
  Floats whole = __builtin_convertvector(exponent, Floats);
#endif
  Floats f = scaled - whole;
  Floats p = 1.54035304e-4f * f + 1.33335581e-3f;  // ln(2)^k / k!
  p = p * f + 9.61812911e-3f;
  p = p * f + 5.55041087e-2f;
  p = p * f + 2.40226507e-1f;
  p = p * f + 6.93147181e-1f;
  p = p * f + 1.0f;
#if defined(__AVX512F__)
  __mmask16 kept = _mm512_cmp_ps_mask(reinterpret_cast<__m512>(x), _mm512_set1_ps(-87.0f), _CMP_NLT_UQ);  // nan stays
  return reinterpret_cast<Floats>(
      _mm512_maskz_scalef_ps(kept, reinterpret_cast<__m512>(p), reinterpret_cast<__m512>(whole)));
#else
  Ints bits;
  std::memcpy(&bits, &p, sizeof bits);
  bits += exponent << 23;
  bits &= ~(x < -87.0f);  // written so that nan stays nan
  std::memcpy(&p, &bits, sizeof p);
  return p;
#endif
}

inline Floats silu(Floats x) {
  Floats e = exponential(x > 0 ? -x : x);
  return x * (x > 0 ? Floats{} + 1 : e) / (1 + e);
}

// The part of [0, n) that the calling thread works on.
struct Share {
  long begin, end;
  explicit Share(long n) {
    long threads = omp_get_num_threads(), thread = omp_get_thread_num();
    begin = n * thread / threads;
    end = n * (thread + 1) / threads;
  }
};

// Memory for vectors that a thread keeps from one pass to the next.
class Scratch {
 public:
  void reserve(long vectors) {
    memory_.resize(vectors * LANES + LANES);
    auto address = reinterpret_cast<uintptr_t>(memory_.data());
    next_ = reinterpret_cast<Floats *>((address + VECTOR_BYTES - 1) / VECTOR_BYTES * VECTOR_BYTES);
  }
  Floats *take(long vectors) { return (next_ += vectors) - vectors; }

 private:
  std::vector<float> memory_;
  Floats *next_ = nullptr;
};

}  // namespace
