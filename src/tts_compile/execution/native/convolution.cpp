// A convolution over time of (sequences, rows, inputs); with one tap it is a linear layer.
//
// The features of a row lie together, and a kernel's taps are read through pointers to rows, so that nothing is copied
// or reordered first. Rows outside of x count as 0.

#include "gemm_tile.h"

// The arguments that operators.py passes.
struct Convolution {
  const float *x;          // (sequences, rows, inputs)
  const float *weight;     // panels of (outputs, taps * inputs), see gemm_tile.h; zeros fill up the last one
  const float *bias;       // (outputs,)
  const float *residual;   // (sequences, out_rows, outputs), added to the result; or null
  float *y;                // (sequences, out_rows, outputs)
  int64_t sequences, rows, inputs, out_rows, outputs, taps, dilation, stride, left, threads;
};

namespace {

constexpr long CHUNK = 16 * ROWS;  // rows of the result for which the weights are read once

// Computes rows `from` to `to` of one sequence of the result.

void convolve(const Convolution &c, long sequence, long from, long to, const float *zeros) {
  const long k = c.taps * c.inputs;
  const float *x = c.x + sequence * c.rows * c.inputs;
  thread_local std::vector<const float *> rows;
  const long tiles = (to - from + ROWS - 1) / ROWS;
  rows.resize(tiles * c.taps * ROWS);
  for (long tile = 0; tile < tiles; tile++)
    for (long tap = 0; tap < c.taps; tap++)
      for (long r = 0; r < ROWS; r++) {
        const long row = std::min(from + tile * ROWS + r, to - 1) * c.stride + tap * c.dilation - c.left;
        rows[(tile * c.taps + tap) * ROWS + r] = 0 <= row && row < c.rows ? x + row * c.inputs : zeros;
      }
  for (long column = 0; column < c.outputs; column += PANEL) {
    const long features = std::min(PANEL, c.outputs - column);
    for (long tile = 0; tile < tiles; tile++) {
      alignas(VECTOR_BYTES) float sums[ROWS * PANEL];
      const long row = from + tile * ROWS, count = std::min<long>(ROWS, to - row);
      multiply(rows.data() + tile * c.taps * ROWS, c.weight + column * k, c.taps, c.inputs, sums, PANEL, false, ROWS);
      for (long r = 0; r < count; r++) {
        const long at = (sequence * c.out_rows + row + r) * c.outputs + column;
        long i = 0;
        for (; i + LANES <= features; i += LANES) {
          Floats value = load(sums + r * PANEL + i) + load(c.bias + column + i);
          store(c.y + at + i, c.residual ? value + load(c.residual + at + i) : value);
        }
        for (; i < features; i++)
          c.y[at + i] = sums[r * PANEL + i] + c.bias[column + i] + (c.residual ? c.residual[at + i] : 0);
      }
    }
  }
}

}  // namespace

extern "C" void tts_convolution(const Convolution *convolution) {
  const Convolution &c = *convolution;
  const std::vector<float> zeros(c.inputs);
  const long chunks = (c.out_rows + CHUNK - 1) / CHUNK;
#pragma omp parallel for schedule(dynamic) num_threads(c.threads)
  for (long unit = 0; unit < c.sequences * chunks; unit++) {
    const long from = unit % chunks * CHUNK;
    convolve(c, unit / chunks, from, std::min(from + CHUNK, c.out_rows), zeros.data());
  }
}
