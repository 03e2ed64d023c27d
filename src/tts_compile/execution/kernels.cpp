// The parts of a decode step that are bound by reading memory: products of matrices with a few rows of activations,
// and attention of a few new positions over a long cache.
//
// What makes the products fast where general ones are not (2 to 8 rows, matrices far larger than the caches): several
// matrix rows at a time share each load of x, x is packed so that its rows do not fight for the same cache sets, and
// the next rows of the matrix are prefetched, since the hardware's prefetcher stops at page boundaries.
// GCC and Clang vector extensions, so that the same code builds for AVX-512, AVX2 and NEON; the one exception is the
// int8 dot product instruction, used where the compiler knows it.

#include <algorithm>
#include <cstdint>
#include <cmath>
#include <cstring>
#include <omp.h>
#include <vector>
#if defined(__AVX512VNNI__)
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
typedef float Floats __attribute__((vector_size(VECTOR_BYTES)));
typedef float FloatsAnywhere __attribute__((vector_size(VECTOR_BYTES), aligned(4), may_alias));
typedef int32_t Ints __attribute__((vector_size(VECTOR_BYTES)));
typedef uint32_t Words __attribute__((vector_size(VECTOR_BYTES)));
typedef uint32_t WordsAnywhere __attribute__((vector_size(VECTOR_BYTES), aligned(1), may_alias));

inline float sum(Floats v) {
  float lane[LANES];
  std::memcpy(lane, &v, sizeof lane);
  for (long half = LANES / 2; half; half /= 2)
    for (long i = 0; i < half; i++) lane[i] += lane[i + half];
  return lane[0];
}

// The share of [0, n) that the calling thread works on.
struct Share {
  long begin, end;
  explicit Share(long n) {
    long threads = omp_get_num_threads(), thread = omp_get_thread_num();
    begin = n * thread / threads;
    end = n * (thread + 1) / threads;
  }
};

Floats *scratch(long vectors) {
  thread_local std::vector<float> memory;
  memory.resize(vectors * LANES + LANES);
  auto address = reinterpret_cast<uintptr_t>(memory.data());
  return reinterpret_cast<Floats *>((address + VECTOR_BYTES - 1) / VECTOR_BYTES * VECTOR_BYTES);
}

// x as [k / LANES][ROWS] vectors.
template <int ROWS>
const Floats *packed(const float *x, long k) {
  Floats *out = scratch(k / LANES * ROWS);
  for (long i = 0; i < k / LANES; i++)
    for (int r = 0; r < ROWS; r++) std::memcpy(&out[i * ROWS + r], x + r * k + i * LANES, VECTOR_BYTES);
  return out;
}

// NB rows of w from column `from` to `to`; `partial` carries sums from one column block to the next.
template <int ROWS, int NB>
inline void f32_block(const float *w, const float *ahead, const Floats *x, Floats *partial, float *y, long n, long k,
                      long from, long to) {
  Floats total[NB][ROWS];
  for (int b = 0; b < NB; b++)
    for (int r = 0; r < ROWS; r++) total[b][r] = from ? partial[b * ROWS + r] : Floats{};
  for (long i = from; i < to; i += LANES) {
    const Floats *xs = x + i / LANES * ROWS;
    Floats ws[NB];
    for (int b = 0; b < NB; b++) {
      ws[b] = *reinterpret_cast<const FloatsAnywhere *>(w + b * k + i);
      __builtin_prefetch(ahead + b * k + i, 0, 3);
    }
    for (int r = 0; r < ROWS; r++)
      for (int b = 0; b < NB; b++) total[b][r] += ws[b] * xs[r];
  }
  for (int b = 0; b < NB; b++)
    for (int r = 0; r < ROWS; r++) {
      if (to < k) partial[b * ROWS + r] = total[b][r];
      else y[r * n + b] = sum(total[b][r]);
    }
}

// TILE rows of w are taken through one block of COLUMNS before the next, so that the packed x stays in the L1 cache.
template <int ROWS, int NB, int TILE, int COLUMNS>
void f32(const float *const *matrices, float *const *results, const long *heights, int count, const float *x, long k,
         int threads) {
  const Floats *xs = packed<ROWS>(x, k);
#pragma omp parallel num_threads(threads)
  for (int m = 0; m < count; m++) {
    const float *w = matrices[m];
    float *y = results[m];
    long n = heights[m];
    Share share(n);
    Floats partial[TILE * ROWS];
    for (long tile = share.begin; tile < share.end; tile += TILE) {
      long last = std::min(tile + TILE, share.end);
      for (long from = 0; from < k; from += COLUMNS) {
        long to = std::min(from + COLUMNS, k), row = tile;
        for (; row + NB <= last; row += NB)
          f32_block<ROWS, NB>(w + row * k, w + std::min(row + NB, n - NB) * k, xs, partial + (row - tile) * ROWS,
                              y + row, n, k, from, to);
        for (; row < last; row++)
          f32_block<ROWS, 1>(w + row * k, w + row * k, xs, partial + (row - tile) * ROWS, y + row, n, k, from, to);
      }
    }
  }
}

#if defined(__AVX512VNNI__)

// x rounded to 8 bits with one scale per row, shifted to unsigned as the instruction wants its left operand.
struct Activations {
  const uint8_t *values;
  float scale[8];
};

template <int ROWS>
Activations quantised(const float *x, long k) {
  Activations out;
  uint8_t *values = reinterpret_cast<uint8_t *>(scratch(ROWS * k / 4 / LANES));
  out.values = values;
  for (int r = 0; r < ROWS; r++) {
    const float *row = x + r * k;
    float largest = 0;
    for (long i = 0; i < k; i++) largest = std::max(largest, std::fabs(row[i]));
    float inverse = largest > 0 ? 127 / largest : 0;
    out.scale[r] = largest / 127;
    for (long i = 0; i < k; i++) {
      // Adding and taking away 1.5 * 2^23 rounds to the nearest integer without a function call.
      float rounded = row[i] * inverse + 12582912.0f;
      values[r * k + i] = static_cast<uint8_t>(static_cast<int32_t>(rounded - 12582912.0f) + 128);
    }
  }
  return out;
}

template <int ROWS, int NB>
inline void int8_block(const int8_t *w, const int8_t *ahead, const float *scale, const int32_t *sums,
                       const Activations &x, float *y, long n, long k) {
  __m512i total[NB][ROWS];
  for (int b = 0; b < NB; b++)
    for (int r = 0; r < ROWS; r++) total[b][r] = _mm512_setzero_si512();
  for (long i = 0; i < k; i += 64)
    for (int b = 0; b < NB; b++) {
      __m512i ws = _mm512_loadu_si512(w + b * k + i);
      __builtin_prefetch(ahead + b * k + i, 0, 3);
      for (int r = 0; r < ROWS; r++)
        total[b][r] = _mm512_dpbusd_epi32(total[b][r], _mm512_load_si512(x.values + r * k + i), ws);
    }
  for (int b = 0; b < NB; b++)
    for (int r = 0; r < ROWS; r++)  // 128 times the row's sum undoes the shift to unsigned
      y[r * n + b] = scale[b] * x.scale[r] * static_cast<float>(_mm512_reduce_add_epi32(total[b][r]) - 128 * sums[b]);
}

#else

// Four int8 values share a 32-bit lane, so that lane i of shift j holds column 4 i + j: x is packed in that order.
template <int ROWS>
const Floats *packed_for_int8(const float *x, long k) {
  Floats *out = scratch(k / LANES * ROWS);
  float *lane = reinterpret_cast<float *>(out);
  for (long block = 0; block < k; block += VECTOR_BYTES)
    for (int j = 0; j < 4; j++)
      for (int r = 0; r < ROWS; r++)
        for (long i = 0; i < LANES; i++) *lane++ = x[r * k + block + 4 * i + j];
  return out;
}

struct Activations {
  const Floats *values;
};

template <int ROWS>
Activations quantised(const float *x, long k) {
  return {packed_for_int8<ROWS>(x, k)};
}

template <int ROWS, int NB>
inline void int8_block(const int8_t *w, const int8_t *ahead, const float *scale, const int32_t *,
                       const Activations &x, float *y, long n, long k) {
  Floats total[NB][ROWS];
  for (int b = 0; b < NB; b++)
    for (int r = 0; r < ROWS; r++) total[b][r] = Floats{};
  for (long block = 0; block < k; block += VECTOR_BYTES) {
    const Floats *xs = x.values + block / LANES * ROWS;
    Words ws[NB];
    for (int b = 0; b < NB; b++) {
      ws[b] = *reinterpret_cast<const WordsAnywhere *>(w + b * k + block);
      __builtin_prefetch(ahead + b * k + block, 0, 3);
    }
    for (int j = 0; j < 4; j++)
      for (int b = 0; b < NB; b++) {
        Floats value = __builtin_convertvector(reinterpret_cast<Ints>(ws[b] << (24 - 8 * j)) >> 24, Floats);
        for (int r = 0; r < ROWS; r++) total[b][r] += value * xs[j * ROWS + r];
      }
  }
  for (int b = 0; b < NB; b++)
    for (int r = 0; r < ROWS; r++) y[r * n + b] = scale[b] * sum(total[b][r]);
}

#endif

struct Int8Matrix {
  const int8_t *values;
  const float *scales;
  const int32_t *sums;
};

template <int ROWS, int NB>
void int8(const Int8Matrix *matrices, float *const *results, const long *heights, int count, const float *x, long k,
          int threads) {
  const Activations xs = quantised<ROWS>(x, k);
#pragma omp parallel num_threads(threads)
  for (int m = 0; m < count; m++) {
    const Int8Matrix &w = matrices[m];
    long n = heights[m];
    Share share(n);
    long row = share.begin;
    for (; row + NB <= share.end; row += NB)
      int8_block<ROWS, NB>(w.values + row * k, w.values + std::min(row + 4 * NB, n - NB) * k, w.scales + row,
                           w.sums + row, xs, results[m] + row, n, k);
    for (; row < share.end; row++)
      int8_block<ROWS, 1>(w.values + row * k, w.values + row * k, w.scales + row, w.sums + row, xs, results[m] + row,
                          n, k);
  }
}

constexpr long HEAD = 64, HEAD_VECTORS = HEAD / LANES;

// exp(x) for x <= 0, relative error under 1e-6: 2^n times a polynomial for the rest (the Taylor series of 2^f up to
// f^7, |f| <= 1/2). Below -87 it gives 0 instead of subnormal numbers.
inline Floats exponential(Floats x) {
  Floats scaled = x * 1.44269504f;
  Ints whole = __builtin_convertvector(scaled - 0.5f, Ints);  // rounds to nearest for negative numbers
  Floats f = (scaled - __builtin_convertvector(whole, Floats)) * 0.69314718f;
  Floats p = 1.0f / 5040 * f + 1.0f / 720;
  p = p * f + 1.0f / 120;
  p = p * f + 1.0f / 24;
  p = p * f + 1.0f / 6;
  p = p * f + 0.5f;
  p = p * f + 1.0f;
  p = p * f + 1.0f;
  Ints bits;
  std::memcpy(&bits, &p, sizeof bits);
  bits += whole << 23;
  bits &= ~(x < -87.0f);  // written so that nan stays nan
  std::memcpy(&p, &bits, sizeof p);
  return p;
}

// One head: QUERIES positions, each over the cache up to its own position.
template <int QUERIES>
void attend(const float *q, const float *keys, const float *values, float *out, const int64_t *positions,
            std::vector<float> &scores) {
  const long length = positions[QUERIES - 1] + 1, stride = (length + LANES - 1) / LANES * LANES;
  scores.resize(QUERIES * stride);
  const float scale = 1 / std::sqrt(static_cast<float>(HEAD));
  Floats qs[QUERIES][HEAD_VECTORS];
  for (int i = 0; i < QUERIES; i++)
    for (int d = 0; d < HEAD_VECTORS; d++)
      qs[i][d] = *reinterpret_cast<const FloatsAnywhere *>(q + i * HEAD + d * LANES) * scale;
  for (long j = 0; j < length; j++) {
    Floats key[HEAD_VECTORS];
    for (int d = 0; d < HEAD_VECTORS; d++)
      key[d] = *reinterpret_cast<const FloatsAnywhere *>(keys + j * HEAD + d * LANES);
    for (int i = 0; i < QUERIES; i++) {
      Floats product = qs[i][0] * key[0];
      for (int d = 1; d < HEAD_VECTORS; d++) product += qs[i][d] * key[d];
      scores[i * stride + j] = sum(product);
    }
  }
  float total[QUERIES];
  for (int i = 0; i < QUERIES; i++) {
    float *row = scores.data() + i * stride, largest = row[0];
    const long seen = positions[i] + 1;
    for (long j = 1; j < seen; j++) largest = std::max(largest, row[j]);
    for (long j = seen; j < stride; j++) row[j] = -INFINITY;
    Floats all{};
    for (long j = 0; j < stride; j += LANES) {
      FloatsAnywhere &part = *reinterpret_cast<FloatsAnywhere *>(row + j);
      Floats weight = exponential(part - largest);
      part = weight;
      all += weight;
    }
    total[i] = sum(all);
  }
  Floats mixed[QUERIES][HEAD_VECTORS] = {};
  const long seen_by_all = positions[0] + 1;
  for (long j = 0; j < seen_by_all; j++)
    for (int d = 0; d < HEAD_VECTORS; d++) {
      Floats value = *reinterpret_cast<const FloatsAnywhere *>(values + j * HEAD + d * LANES);
      for (int i = 0; i < QUERIES; i++) mixed[i][d] += scores[i * stride + j] * value;
    }
  for (int i = 1; i < QUERIES; i++)  // apart, so that a later position's nan is not multiplied by a weight of 0
    for (long j = seen_by_all; j <= positions[i]; j++)
      for (int d = 0; d < HEAD_VECTORS; d++)
        mixed[i][d] +=
            scores[i * stride + j] * *reinterpret_cast<const FloatsAnywhere *>(values + j * HEAD + d * LANES);
  for (int i = 0; i < QUERIES; i++)
    for (int d = 0; d < HEAD_VECTORS; d++)
      *reinterpret_cast<FloatsAnywhere *>(out + i * HEAD + d * LANES) = mixed[i][d] / total[i];
}

template <int QUERIES>
void attention(const float *q, const float *keys, const float *values, float *out, const int64_t *positions,
               long heads, long capacity, int threads) {
#pragma omp parallel num_threads(threads)
  {
    thread_local std::vector<float> scores;
    Share share(heads);
    for (long h = share.begin; h < share.end; h++)
      attend<QUERIES>(q + h * QUERIES * HEAD, keys + h * capacity * HEAD, values + h * capacity * HEAD,
                      out + h * QUERIES * HEAD, positions, scores);
  }
}

}  // namespace

extern "C" {

// All return 0, or 1 for sizes that they are not made for.

// y[m][r][n] = sum_k x[r][k] * w[m][n][k] for several matrices of the same k.
int tts_rows_f32(const float *const *w, float *const *y, const long *n, int count, const float *x, long k, int rows,
                 int threads) {
  if (k % LANES || *std::min_element(n, n + count) < 4) return 1;
  switch (rows) {
    case 1: f32<1, 4, 16, 1024>(w, y, n, count, x, k, threads); return 0;
    case 2: f32<2, 4, 16, 1024>(w, y, n, count, x, k, threads); return 0;
    case 3: f32<3, 4, 16, 1024>(w, y, n, count, x, k, threads); return 0;
    case 4: f32<4, 4, 16, 1024>(w, y, n, count, x, k, threads); return 0;
    case 5: f32<5, 4, 16, 256>(w, y, n, count, x, k, threads); return 0;
    case 6: f32<6, 4, 16, 256>(w, y, n, count, x, k, threads); return 0;
    case 8: f32<8, 3, 24, 256>(w, y, n, count, x, k, threads); return 0;
    case 10: f32<10, 2, 16, 512>(w, y, n, count, x, k, threads); return 0;
    case 12: f32<12, 2, 16, 256>(w, y, n, count, x, k, threads); return 0;
    default: return 1;
  }
}

// The same for int8 matrices with one scale and the sum of the values for each row.
int tts_rows_int8(const int8_t *const *values, const float *const *scales, const int32_t *const *sums, float *const *y,
                  const long *n, int count, const float *x, long k, int rows, int threads) {
  if (k % 64 || *std::min_element(n, n + count) < 2) return 1;
  std::vector<Int8Matrix> w;
  for (int m = 0; m < count; m++) w.push_back({values[m], scales[m], sums[m]});
  switch (rows) {
    case 1: int8<1, 1>(w.data(), y, n, count, x, k, threads); return 0;
    case 2: int8<2, 1>(w.data(), y, n, count, x, k, threads); return 0;
    default: return 1;
  }
}

// Scaled dot-product attention of `queries` positions over a cache (heads, capacity, 64); each sees the cache up to
// and including its own position.
int tts_attention(const float *q, const float *keys, const float *values, float *out, const int64_t *positions,
                  int queries, long heads, long capacity, long head_dim, int threads) {
  if (head_dim != HEAD) return 1;
  switch (queries) {
    case 1: attention<1>(q, keys, values, out, positions, heads, capacity, threads); return 0;
    case 2: attention<2>(q, keys, values, out, positions, heads, capacity, threads); return 0;
    case 3: attention<3>(q, keys, values, out, positions, heads, capacity, threads); return 0;
    case 4: attention<4>(q, keys, values, out, positions, heads, capacity, threads); return 0;
    case 5: attention<5>(q, keys, values, out, positions, heads, capacity, threads); return 0;
    case 6: attention<6>(q, keys, values, out, positions, heads, capacity, threads); return 0;
    default: return 1;
  }
}
}
