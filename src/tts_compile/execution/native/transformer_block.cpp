// A pre-norm transformer block over all positions of each sequence: attention without a mask, then an MLP with GELU.
//
// It has two parallel phases. The first processes one head of one sequence at a time: it computes queries, keys and
// values and uses them at once, while they are in the L2 cache. The second takes a few rows at a time through the
// output projection, the residual, the norm and the MLP, whose hidden activations stay in that cache too. Writing these
// to memory and reading them back would take a fifth of the time.

#include "gemm_tile.h"

// The weights; matrices are panels, see gemm_tile.h.
struct Block {
  const float *attention_norm, *attention_norm_bias;
  const float *query, *key, *value;   // (heads * 64, width)
  const float *output, *output_bias;  // (width, heads * 64)
  const float *mlp_norm, *mlp_norm_bias;
  const float *up, *up_bias;          // (inner, width)
  const float *down, *down_bias;      // (width, inner)
};

// The arguments that operators.py passes.
struct TransformerBlock {
  const Block *block;
  const float *x;          // (sequences, capacity, width)
  const int64_t *lengths;  // (sequences,)
  float *y;                // (sequences, capacity, width); rows from a sequence's length on are 0
  int64_t sequences, capacity, width, heads, inner, threads;
  double eps;
};

namespace {

constexpr long HEAD = 64, HEAD_VECTORS = HEAD / LANES;
constexpr long QUERIES = 16 * ROWS;  // queries for which keys and values are read once
constexpr long KEYS = 4 * PANEL;     // keys whose scores are computed before the sums are rescaled
constexpr long CHUNK = 16 * ROWS;    // rows that the second phase processes together
constexpr long HIDDEN = 4 * PANEL;   // hidden features of the MLP that are in memory at a time

inline long padded(long n, long multiple) { return (n + multiple - 1) / multiple * multiple; }

inline float largest(Floats v) {
#if defined(__AVX512F__)
  return _mm512_reduce_max_ps(reinterpret_cast<__m512>(v));
#else
  float result = v[0];
  for (long i = 1; i < LANES; i++) result = std::max(result, v[i]);
  return result;
#endif
}

// Returns 1 / x for normal numbers; a division would take as long as eight multiplications.
inline Floats reciprocal(Floats x) {
#if defined(__AVX512F__)
  Floats rough = reinterpret_cast<Floats>(_mm512_rcp14_ps(reinterpret_cast<__m512>(x)));
  return rough * (2 - x * rough);  // one step of Newton's method, from 14 bits to 23
#else
  return 1 / x;
#endif
}

// Returns x * (1 + erf(x / sqrt 2)) / 2, with erf from Abramowitz and Stegun, 7.1.26 (absolute error under 1.5e-7).
inline Floats gelu(Floats x) {
  Floats z = (x > 0 ? x : -x) * 0.70710678f;
  Floats t = reciprocal(1 + 0.3275911f * z);
  Floats p = ((((1.061405429f * t - 1.453152027f) * t + 1.421413741f) * t - 0.284496736f) * t + 0.254829592f) * t;
  Floats tail = p * exponential(-z * z);  // 1 - erf(z)
  return 0.5f * x * (x > 0 ? 2 - tail : tail);
}

void layer_norm(const float *x, const float *weight, const float *bias, float eps, long width, float *out) {
  Floats total{};
  for (long i = 0; i < width; i += LANES) total += load(x + i);
  const float mean = sum(total) / width;
  Floats squares{};
  for (long i = 0; i < width; i += LANES) {
    Floats d = load(x + i) - mean;
    squares += d * d;
  }
  const float inverse = 1 / std::sqrt(sum(squares) / width + eps);
  for (long i = 0; i < width; i += LANES)
    store(out + i, (load(x + i) - mean) * inverse * load(weight + i) + load(bias + i));
}

// Pointers to six consecutive rows from `first` on; the last row takes the place of missing ones.
struct Rows {
  const float *at[ROWS];
  Rows(const float *base, long stride, long first, long rows) {
    for (int r = 0; r < ROWS; r++) at[r] = base + std::min(first + r, rows - 1) * stride;
  }
};

// Returns the largest of `count` scores and sets the rest of the last vector to -infinity.
inline float most(float *scores, long count) {
  const long whole = padded(count, LANES);
  for (long i = count; i < whole; i++) scores[i] = -INFINITY;
  Floats result = load(scores);
  for (long i = LANES; i < whole; i += LANES) {
    Floats s = load(scores + i);
    result = result > s ? result : s;
  }
  return largest(result);
}

// A softmax over blocks of keys; a larger score than before rescales the sums so far.
struct Softmax {
  float maximum = -INFINITY;
  Floats total{};
  // Replaces scores by weights and returns the factor for sums that were made with earlier weights.
  float add(float *scores, long count, float found) {
    float factor = 1;
    if (!(found <= maximum)) {
      factor = std::exp(maximum - found);
      maximum = found;
      total *= factor;
    }
    for (long i = 0; i < padded(count, LANES); i += LANES) {
      Floats weight = exponential(load(scores + i) - maximum);
      store(scores + i, weight);
      total += weight;
    }
    return factor;
  }
};

// Computes the attention of one head of one sequence: from normalised rows (length, width) to (length, 64), which lie
// `stride` numbers apart.
void attend(const TransformerBlock &p, const float *normed, long length, long head, float *out, long stride) {
  const Block &b = *p.block;
  const long k = p.width, offset = head * HEAD * k, keys_padded = padded(length, KEYS);
  thread_local Scratch scratch;
  scratch.reserve((padded(length, ROWS) + 2 * keys_padded) * HEAD_VECTORS);
  float *query = reinterpret_cast<float *>(scratch.take(padded(length, ROWS) * HEAD_VECTORS));
  float *keys = reinterpret_cast<float *>(scratch.take(keys_padded * HEAD_VECTORS));  // panels [64 features][64 keys]
  float *values = reinterpret_cast<float *>(scratch.take(keys_padded * HEAD_VECTORS));
  const float scale = 1 / std::sqrt(static_cast<float>(HEAD));
  for (long row = 0; row < length; row += ROWS) {
    const long count = std::min<long>(ROWS, length - row);
    alignas(VECTOR_BYTES) float key[ROWS * HEAD];
    const Rows rows(normed, k, row, length);
    multiply(rows.at, b.query + offset, 1, k, query + row * HEAD, HEAD, false, count);
    multiply(rows.at, b.key + offset, 1, k, key, HEAD, false, count);
    multiply(rows.at, b.value + offset, 1, k, values + row * HEAD, HEAD, false, count);
    for (long i = 0; i < count * HEAD; i += LANES) {
      float *q = query + row * HEAD + i;
      store(q, load(q) * scale);
    }
    for (long r = 0; r < count; r++) {
      float *column = keys + (row + r) / PANEL * PANEL * HEAD + (row + r) % PANEL;
      for (long d = 0; d < HEAD; d++) column[d * PANEL] = key[r * HEAD + d];
    }
  }
  std::memset(values + length * HEAD, 0, (keys_padded - length) * HEAD * sizeof(float));  // their weights are 0
  alignas(VECTOR_BYTES) float scores[ROWS * KEYS], sums[QUERIES * HEAD];
  for (long first = 0; first < length; first += QUERIES) {
    const long count = std::min(QUERIES, length - first);
    Softmax softmax[QUERIES];
    for (long from = 0; from < length; from += KEYS) {
      const long seen = std::min(KEYS, length - from);
      for (long row = 0; row < count; row += ROWS) {
        const Rows rows(query + first * HEAD, HEAD, row, count);
        for (long column = 0; column < seen; column += PANEL)
          multiply(rows.at, keys + (from + column) * HEAD, 1, HEAD, scores + column, KEYS, false, ROWS);
        float found[ROWS];  // in a loop of its own: below, each row would wait for its maximum
        for (long r = 0; r < ROWS; r++) found[r] = most(scores + r * KEYS, seen);
        for (long r = 0; r < ROWS && row + r < count; r++) {
          const float factor = softmax[row + r].add(scores + r * KEYS, seen, found[r]);
          float *sum = sums + (row + r) * HEAD;
          if (from && factor != 1)
            for (long d = 0; d < HEAD; d += LANES) store(sum + d, load(sum + d) * factor);
        }
        multiply(Rows(scores, KEYS, 0, ROWS).at, values + from * HEAD, 1, padded(seen, LANES), sums + row * HEAD, HEAD,
                 from != 0, ROWS);
      }
    }
    for (long row = 0; row < count; row++) {
      const float inverse = 1 / sum(softmax[row].total);
      for (long d = 0; d < HEAD; d += LANES)
        store(out + (first + row) * stride + d, load(sums + row * HEAD + d) * inverse);
    }
  }
}

// Computes output projection, residual and MLP of `count` rows.
void project_and_mlp(const TransformerBlock &p, const float *attended, const float *x, float *y, long count) {
  const Block &b = *p.block;
  const long width = p.width, mixed = p.heads * HEAD;
  thread_local Scratch scratch;
  scratch.reserve((width * CHUNK + HIDDEN * CHUNK + mixed * ROWS) / LANES);
  float *near = reinterpret_cast<float *>(scratch.take(mixed * ROWS / LANES));
  float *normed = reinterpret_cast<float *>(scratch.take(width * CHUNK / LANES));
  float *hidden = reinterpret_cast<float *>(scratch.take(HIDDEN * CHUNK / LANES));
  for (long row = 0; row < count; row += ROWS) {
    const long rows = std::min<long>(ROWS, count - row);
    std::memcpy(near, attended + row * mixed, rows * mixed * sizeof(float));
    for (long column = 0; column < width; column += PANEL)
      multiply(Rows(near, mixed, 0, rows).at, b.output + column * mixed, 1, mixed, y + row * width + column, width,
               false, rows);
  }
  for (long row = 0; row < count; row++) {
    for (long i = 0; i < width; i += LANES) {
      float *target = y + row * width + i;
      store(target, load(target) + load(b.output_bias + i) + load(x + row * width + i));
    }
    layer_norm(y + row * width, b.mlp_norm, b.mlp_norm_bias, p.eps, width, normed + row * width);
  }
  for (long from = 0; from < p.inner; from += HIDDEN) {
    const long features = std::min(HIDDEN, p.inner - from);
    for (long column = 0; column < features; column += PANEL)
      for (long row = 0; row < count; row += ROWS) {
        float *target = hidden + row * HIDDEN + column;
        multiply(Rows(normed, width, row, count).at, b.up + (from + column) * width, 1, width, target, HIDDEN, false,
                 ROWS);
        for (long r = 0; r < ROWS; r++)
          for (long i = 0; i < PANEL; i += LANES) {
            float *h = target + r * HIDDEN + i;
            store(h, gelu(load(h) + load(b.up_bias + from + column + i)));
          }
      }
    for (long column = 0; column < width; column += PANEL)
      for (long row = 0; row < count; row += ROWS)
        multiply(Rows(hidden, HIDDEN, row, count).at, b.down + column * p.inner + from * PANEL, 1, features,
                 y + row * width + column, width, true, std::min<long>(ROWS, count - row));
  }
  for (long row = 0; row < count; row++)
    for (long i = 0; i < width; i += LANES) {
      float *target = y + row * width + i;
      store(target, load(target) + load(b.down_bias + i));
    }
}

}  // namespace

// Width and inner width must be multiples of 64.
extern "C" void tts_transformer_block(const TransformerBlock *pass) {
  const TransformerBlock &p = *pass;
  const long capacity = p.capacity, width = p.width, mixed = p.heads * HEAD;
  thread_local Scratch shared;
  shared.reserve(p.sequences * capacity * (width + mixed) / LANES);
  float *normed = reinterpret_cast<float *>(shared.take(p.sequences * capacity * width / LANES));
  float *attended = reinterpret_cast<float *>(shared.take(p.sequences * capacity * mixed / LANES));
#pragma omp parallel num_threads(p.threads)
  {
#pragma omp for schedule(static)
    for (long row = 0; row < p.sequences * capacity; row++)
      layer_norm(p.x + row * width, p.block->attention_norm, p.block->attention_norm_bias, p.eps, width,
                 normed + row * width);
#pragma omp for schedule(dynamic)
    for (long unit = 0; unit < p.sequences * p.heads; unit++) {
      const long sequence = unit / p.heads, head = unit % p.heads;
      attend(p, normed + sequence * capacity * width, p.lengths[sequence], head,
             attended + sequence * capacity * mixed + head * HEAD, mixed);
    }
    const long chunks = (capacity + CHUNK - 1) / CHUNK;
#pragma omp for schedule(dynamic)
    for (long unit = 0; unit < p.sequences * chunks; unit++) {
      const long sequence = unit / chunks, from = unit % chunks * CHUNK;
      const long row = sequence * capacity + from, end = std::min(from + CHUNK, capacity);
      const long filled = std::clamp(p.lengths[sequence] - from, 0L, end - from);
      if (filled) project_and_mlp(p, attended + row * mixed, p.x + row * width, p.y + row * width, filled);
      std::memset(p.y + (row + filled) * width, 0, (end - from - filled) * width * sizeof(float));
    }
  }
}
