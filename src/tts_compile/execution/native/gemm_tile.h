// The inner loop of large matrix products: six rows of activations times a panel of 64 output features.
//
// A matrix (out, in) is stored as panels [out / 64][in][64], so that one step over `in` reads consecutive memory. The
// sums of six rows fill the registers, and all six use each load of the panel. This keeps the multiply-add units busy
// as long as panel and rows are in the L2 cache.

#pragma once

#include "simd.h"

namespace {

constexpr long PANEL = 64;
constexpr int ROWS = 6;
constexpr int COLUMNS = REGISTERS == 32 ? 4 : 2;  // vectors; sums, one activation and the panel's vectors must fit

// Sets out[r][0..63] to (add ? out[r][0..63] : 0) + the sum over taps and i < k of rows[tap * ROWS + r][i] times
// w[tap * k + i]. It stores the first `count` rows only, but reads all, which must point to readable memory.
inline void multiply(const float *const *rows, const float *w, long taps, long k, float *out, long stride, bool add,
                     long count) {
  constexpr long AHEAD = 12 * PANEL;  // numbers; the hardware's prefetcher stops at the ends of pages
  for (long column = 0; column < PANEL; column += COLUMNS * LANES) {
    Floats total[ROWS][COLUMNS];
    for (int r = 0; r < ROWS; r++)
      for (int c = 0; c < COLUMNS; c++)
        total[r][c] = add && r < count ? load(out + r * stride + column + c * LANES) : Floats{};
    const float *v = w + column;
    for (long tap = 0; tap < taps; tap++) {
      const float *const *at = rows + tap * ROWS;
      const float *r0 = at[0], *r1 = at[1], *r2 = at[2], *r3 = at[3], *r4 = at[4], *r5 = at[5];
      for (long i = 0; i < k; i++, v += PANEL) {
        Floats ws[COLUMNS];
        for (int c = 0; c < COLUMNS; c++) {
          __builtin_prefetch(v + AHEAD + c * LANES, 0, 3);
          ws[c] = load(v + c * LANES);
        }
        const float xs[ROWS] = {r0[i], r1[i], r2[i], r3[i], r4[i], r5[i]};
        for (int r = 0; r < ROWS; r++)
          for (int c = 0; c < COLUMNS; c++) total[r][c] += xs[r] * ws[c];
      }
    }
    for (int r = 0; r < ROWS; r++)
      if (r < count)
        for (int c = 0; c < COLUMNS; c++) store(out + r * stride + column + c * LANES, total[r][c]);
  }
}

}  // namespace
