// Products of a matrix with a few rows of activations, bound by reading the matrix once.
//
//   y[r][n] = sum_k x[r][k] * w[n][k]          w: n x k, row-major, fp32 or int8 with one scale per row
//
// What makes them fast where general matrix products are not (2 to 8 rows, matrices far larger than the caches):
// several matrix rows at a time share each load of x, x is packed so that its rows do not fight for the same cache
// sets, and the next rows of the matrix are prefetched, since the hardware's prefetcher stops at page boundaries.
// GCC and Clang vector extensions only, so that the same code builds for AVX-512, AVX2 and NEON.

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <omp.h>
#include <vector>

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
void f32(const float *w, const float *x, float *y, long n, long k, int threads) {
  const Floats *xs = packed<ROWS>(x, k);
#pragma omp parallel num_threads(threads)
  {
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

template <int ROWS, int NB>
inline void int8_block(const int8_t *w, const int8_t *ahead, const float *scale, const Floats *x, float *y, long n,
                       long k) {
  Floats total[NB][ROWS];
  for (int b = 0; b < NB; b++)
    for (int r = 0; r < ROWS; r++) total[b][r] = Floats{};
  for (long block = 0; block < k; block += VECTOR_BYTES) {
    const Floats *xs = x + block / LANES * ROWS;
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

template <int ROWS, int NB>
void int8(const int8_t *w, const float *scale, const float *x, float *y, long n, long k, int threads) {
  const Floats *xs = packed_for_int8<ROWS>(x, k);
#pragma omp parallel num_threads(threads)
  {
    Share share(n);
    long row = share.begin;
    for (; row + NB <= share.end; row += NB)  // two blocks ahead: the next one is already on its way
      int8_block<ROWS, NB>(w + row * k, w + std::min(row + 2 * NB, n - NB) * k, scale + row, xs, y + row, n, k);
    for (; row < share.end; row++) int8_block<ROWS, 1>(w + row * k, w + row * k, scale + row, xs, y + row, n, k);
  }
}

}  // namespace

extern "C" {

// Both return 0, or 1 for a number of rows or a k that they are not made for.

int tts_rows_f32(const float *w, const float *x, float *y, long n, long k, int rows, int threads) {
  if (k % LANES || n < 4) return 1;
  switch (rows) {
    case 1: f32<1, 4, 16, 1024>(w, x, y, n, k, threads); return 0;
    case 2: f32<2, 4, 16, 1024>(w, x, y, n, k, threads); return 0;
    case 3: f32<3, 4, 16, 1024>(w, x, y, n, k, threads); return 0;
    case 4: f32<4, 4, 16, 1024>(w, x, y, n, k, threads); return 0;
    case 5: f32<5, 4, 16, 256>(w, x, y, n, k, threads); return 0;
    case 6: f32<6, 4, 16, 256>(w, x, y, n, k, threads); return 0;
    case 7: f32<7, 3, 24, 256>(w, x, y, n, k, threads); return 0;
    case 8: f32<8, 3, 24, 256>(w, x, y, n, k, threads); return 0;
    case 10: f32<10, 2, 16, 512>(w, x, y, n, k, threads); return 0;
    case 12: f32<12, 2, 16, 256>(w, x, y, n, k, threads); return 0;
    default: return 1;
  }
}

int tts_rows_int8(const int8_t *w, const float *scale, const float *x, float *y, long n, long k, int rows,
                  int threads) {
  if (k % VECTOR_BYTES || n < 2) return 1;
  switch (rows) {
    case 1: int8<1, 2>(w, scale, x, y, n, k, threads); return 0;
    case 2: int8<2, 2>(w, scale, x, y, n, k, threads); return 0;
    default: return 1;
  }
}
}
