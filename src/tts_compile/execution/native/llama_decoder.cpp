// One pass of a Llama decoder over a few new positions of each sequence, with a cache of keys and values: every layer,
// the final norm and the head.
//
// With 1 to 16 rows of activations a pass is bound by reading the weights. Three things make this one faster than
// general matrix products: several matrix rows at a time use each load of the activations, which stay in the L1 cache;
// the next rows of the matrix are prefetched, since the hardware's prefetcher stops at page boundaries; and all layers
// run in one parallel region, with nothing but barriers between the products.
//
// Activations are stored as [features / LANES][ROWS] vectors.

#include "simd.h"

struct Matrix {  // (out, in): int8 values with one scale per row, or float32 without scales
  const void *values;
  const float *scales;
};

struct Layer {
  const float *attention_norm;
  Matrix query, key, value, output;
  const float *mlp_norm;
  Matrix gate, up, down;
};

// The arguments that llama_decoder.py passes.
struct LlamaDecoder {
  const Layer *layers;
  const float *final_norm;
  Matrix head;
  const float *embeddings;  // (sequences, count, width)
  const float *cos, *sin;   // (sequences, count, 64)
  const int64_t *starts;    // (sequences,), the first new position of each sequence
  float *keys, *values;     // (layers, room, heads, capacity, 64), of which the first `sequences` are used
  float *logits;            // (sequences, count, vocabulary)
  int64_t layer_count, sequences, count, width, heads, inner, vocabulary, capacity, room, threads;
  double eps;
};

namespace {

constexpr long HEAD = 64, HEAD_VECTORS = HEAD / LANES;
constexpr long QUERIES = 4;  // new positions for which the cache is read once

// Multiplies a matrix with ROWS rows of activations, one tile of matrix rows at a time.
template <int ROWS, class T>
struct Product {
  // Matrix rows processed together: their sums, their own vectors and one vector of x fill the registers.
  static constexpr int GROUP = std::clamp((REGISTERS - 2) / (ROWS + 1), 1, 4);
  static constexpr long TILE = GROUP == 3 ? 48 : 32;  // whole groups and whole vectors
  // Columns of a tile processed before the next ones, so that this much of x stays in the L1 cache.
  static constexpr long COLUMNS = ROWS <= 4 ? 1024 : 256;

  alignas(VECTOR_BYTES) float result[ROWS][TILE];

  // Multiplies rows `first` to `first + count` of the (n, k) matrix with x.
  void compute(const Matrix &matrix, long n, long k, long first, long count, const Floats *x) {
    const T *w = static_cast<const T *>(matrix.values);
    Floats partial[TILE][ROWS];
    for (long from = 0; from < k; from += COLUMNS) {
      long to = std::min(from + COLUMNS, k), row = 0;
      for (; row + GROUP <= count; row += GROUP) {
        const T *ahead = w + std::min(first + row + 2 * GROUP, n - GROUP) * k;
        block<GROUP>(w + (first + row) * k, ahead, x, partial + row, k, from, to);
      }
      for (; row < count; row++) block<1>(w + (first + row) * k, w + (first + row) * k, x, partial + row, k, from, to);
    }
    for (int r = 0; r < ROWS; r++)
      for (long row = 0; row < count; row++)
        result[r][row] = sum(partial[row][r]) * (matrix.scales ? matrix.scales[first + row] : 1);
  }

  Floats lanes(int row, long from) const { return *reinterpret_cast<const Floats *>(&result[row][from]); }

 private:
  // Adds the products of COUNT matrix rows and columns `from` to `to` to `partial`.
  template <int COUNT>
  static inline void block(const T *w, const T *ahead, const Floats *x, Floats (*partial)[ROWS], long k, long from,
                           long to) {
    constexpr long LINE = 64 / sizeof(T);  // columns in a cache line
    Floats total[COUNT][ROWS];
    for (int b = 0; b < COUNT; b++)
      for (int r = 0; r < ROWS; r++) total[b][r] = from ? partial[b][r] : Floats{};
    for (long line = from; line < to; line += LINE) {
      for (int b = 0; b < COUNT; b++) __builtin_prefetch(ahead + b * k + line, 0, 3);
      for (long i = line; i < line + LINE; i += LANES) {
        const Floats *xs = x + i / LANES * ROWS;
        Floats ws[COUNT];
        for (int b = 0; b < COUNT; b++) ws[b] = load(w + b * k + i);
        for (int r = 0; r < ROWS; r++)
          for (int b = 0; b < COUNT; b++) total[b][r] += ws[b] * xs[r];
      }
    }
    for (int b = 0; b < COUNT; b++)
      for (int r = 0; r < ROWS; r++) partial[b][r] = total[b][r];
  }
};

// Computes the calling thread's tiles of x times the transposed (n, k) matrix and calls use(first, count, product) for
// each tile.
template <int ROWS, class T, class Use>
void multiply(const Matrix &matrix, long n, long k, const Floats *x, Use use) {
  Product<ROWS, T> product;
  constexpr long TILE = product.TILE;
  Share share((n + TILE - 1) / TILE);
  for (long first = share.begin * TILE; first < std::min(share.end * TILE, n); first += TILE) {
    long count = std::min(TILE, n - first);
    product.compute(matrix, n, k, first, count, x);
    use(first, count, product);
  }
}

// Writes a tile that multiply() has computed to `out`, or adds it there.
template <int ROWS, bool ADD>
struct Put {
  Floats *out;
  template <class P>
  void operator()(long first, long count, const P &product) const {
    for (long i = 0; i < count; i += LANES)
      for (int r = 0; r < ROWS; r++) {
        Floats &target = out[(first + i) / LANES * ROWS + r];
        target = ADD ? target + product.lanes(r, i) : product.lanes(r, i);
      }
  }
};

// Applies an RMS norm over k features to each row.
template <int ROWS>
void normalise(const Floats *x, const float *weight, float eps, long k, Floats *out) {
  for (int r = 0; r < ROWS; r++) {
    Floats squares{};
    for (long i = 0; i < k / LANES; i++) squares += x[i * ROWS + r] * x[i * ROWS + r];
    float inverse = 1 / std::sqrt(sum(squares) / k + eps);
    for (long i = 0; i < k / LANES; i++) out[i * ROWS + r] = x[i * ROWS + r] * inverse * load(weight + i * LANES);
  }
}

// Applies the rotary position embedding to one head; the two numbers of a pair lie half a head apart.
inline void rotate(const Floats *x, long stride, const float *cos, const float *sin, Floats *out) {
  constexpr long HALF = HEAD_VECTORS / 2;
  for (long d = 0; d < HALF; d++) {
    Floats first = x[d * stride], second = x[(d + HALF) * stride];
    out[d] = first * load(cos + d * LANES) - second * load(sin + d * LANES);
    out[d + HALF] = second * load(cos + (d + HALF) * LANES) + first * load(sin + (d + HALF) * LANES);
  }
}

// Computes scaled dot-product attention of COUNT consecutive positions from `start` for one head; each position attends
// to the cache up to its own position. The results overwrite the queries in `mixed`.
template <int COUNT>
void attend(Floats (*mixed)[HEAD_VECTORS], const float *keys, const float *values, long start,
            std::vector<float> &scores) {
  const long length = start + COUNT, stride = (length + LANES - 1) / LANES * LANES;
  scores.resize(COUNT * stride);
  const float scale = 1 / std::sqrt(static_cast<float>(HEAD));
  for (long j = 0; j < length; j++) {
    Floats key[HEAD_VECTORS];
    for (long d = 0; d < HEAD_VECTORS; d++) key[d] = load(keys + j * HEAD + d * LANES);
    for (int i = 0; i < COUNT; i++) {
      Floats product = mixed[i][0] * key[0];
      for (long d = 1; d < HEAD_VECTORS; d++) product += mixed[i][d] * key[d];
      scores[i * stride + j] = sum(product) * scale;
    }
  }
  Floats total[COUNT][HEAD_VECTORS] = {};
  float weights[COUNT];
  for (int i = 0; i < COUNT; i++) {
    float *row = scores.data() + i * stride, largest = row[0];
    const long seen = start + i + 1;
    for (long j = 1; j < seen; j++) largest = std::max(largest, row[j]);
    for (long j = seen; j < stride; j++) row[j] = -INFINITY;
    Floats all{};
    for (long j = 0; j < stride; j += LANES) {
      Floats weight = exponential(load(row + j) - largest);
      store(row + j, weight);
      all += weight;
    }
    weights[i] = sum(all);
  }
  for (long j = 0; j < length; j++)
    for (long d = 0; d < HEAD_VECTORS; d++) {
      Floats value = load(values + j * HEAD + d * LANES);
      // Skips later positions even though their weight is 0: they may hold nan.
      for (int i = std::max(0L, j - start); i < COUNT; i++) total[i][d] += scores[i * stride + j] * value;
    }
  for (int i = 0; i < COUNT; i++)
    for (long d = 0; d < HEAD_VECTORS; d++) mixed[i][d] = total[i][d] / weights[i];
}

// Rotates the new queries and keys, writes keys and values to the cache and computes attention, for the calling
// thread's share of the heads.
template <int ROWS>
void attention(const LlamaDecoder &p, long layer, const Floats *query, const Floats *key, const Floats *value,
               Floats *mixed) {
  thread_local std::vector<float> scores;
  const long caches = p.sequences * p.heads;
  Share share(caches);
  for (long cache = share.begin; cache < share.end; cache++) {
    const long sequence = cache / p.heads, row = sequence * p.count;
    const long at = cache % p.heads * HEAD_VECTORS * ROWS + row;  // this head at the first new position
    const long from = p.starts[sequence];
    float *keys = p.keys + (layer * p.room * p.heads + cache) * p.capacity * HEAD;
    float *values = p.values + (layer * p.room * p.heads + cache) * p.capacity * HEAD;
    const float *cos = p.cos + row * HEAD, *sin = p.sin + row * HEAD;
    for (long i = 0; i < p.count; i++) {
      Floats rotated[HEAD_VECTORS];
      rotate(key + at + i, ROWS, cos + i * HEAD, sin + i * HEAD, rotated);
      for (long d = 0; d < HEAD_VECTORS; d++) {
        store(keys + (from + i) * HEAD + d * LANES, rotated[d]);
        store(values + (from + i) * HEAD + d * LANES, value[at + i + d * ROWS]);
      }
    }
    for (long i = 0; i < p.count; i += QUERIES) {
      Floats block[QUERIES][HEAD_VECTORS];
      const long size = std::min(QUERIES, p.count - i), start = from + i;
      for (long j = 0; j < size; j++)
        rotate(query + at + i + j, ROWS, cos + (i + j) * HEAD, sin + (i + j) * HEAD, block[j]);
      switch (size) {
        case 1: attend<1>(block, keys, values, start, scores); break;
        case 2: attend<2>(block, keys, values, start, scores); break;
        case 3: attend<3>(block, keys, values, start, scores); break;
        default: attend<QUERIES>(block, keys, values, start, scores);
      }
      for (long j = 0; j < size; j++)
        for (long d = 0; d < HEAD_VECTORS; d++) mixed[at + i + j + d * ROWS] = block[j][d];
    }
  }
}

template <int ROWS, class T>
void decode(const LlamaDecoder &p) {
  const long width = p.width, inner = p.inner, rows = p.sequences * p.count;
  const long wide = width / LANES * ROWS;
  thread_local Scratch shared;
  shared.reserve(5 * wide + inner / LANES * ROWS);
  Floats *x = shared.take(wide), *query = shared.take(wide), *key = shared.take(wide), *value = shared.take(wide);
  Floats *mixed = shared.take(wide), *gated = shared.take(inner / LANES * ROWS);
  for (long i = 0; i < width / LANES; i++)
    for (int r = 0; r < ROWS; r++) x[i * ROWS + r] = r < rows ? load(p.embeddings + r * width + i * LANES) : Floats{};

#pragma omp parallel num_threads(p.threads)
  {
    thread_local Scratch own;
    own.reserve(wide);
    Floats *normed = own.take(wide);  // every thread computes all of it: cheaper than a barrier
    using Set = Put<ROWS, false>;
    using Add = Put<ROWS, true>;
    for (long l = 0; l < p.layer_count; l++) {
      const Layer &layer = p.layers[l];
      normalise<ROWS>(x, layer.attention_norm, p.eps, width, normed);
      multiply<ROWS, T>(layer.query, width, width, normed, Set{query});
      multiply<ROWS, T>(layer.key, width, width, normed, Set{key});
      multiply<ROWS, T>(layer.value, width, width, normed, Set{value});
#pragma omp barrier
      attention<ROWS>(p, l, query, key, value, mixed);
#pragma omp barrier
      multiply<ROWS, T>(layer.output, width, width, mixed, Add{x});
#pragma omp barrier
      normalise<ROWS>(x, layer.mlp_norm, p.eps, width, normed);
      Product<ROWS, T> up;
      multiply<ROWS, T>(layer.gate, inner, width, normed, [&](long first, long count, const auto &gate) {
        up.compute(layer.up, inner, width, first, count, normed);
        for (long i = 0; i < count; i += LANES)
          for (int r = 0; r < ROWS; r++)
            gated[(first + i) / LANES * ROWS + r] = silu(gate.lanes(r, i)) * up.lanes(r, i);
      });
#pragma omp barrier
      multiply<ROWS, T>(layer.down, width, inner, gated, Add{x});
#pragma omp barrier
    }
    normalise<ROWS>(x, p.final_norm, p.eps, width, normed);
    multiply<ROWS, T>(p.head, p.vocabulary, width, normed, [&](long first, long count, const auto &product) {
      for (long r = 0; r < rows; r++)
        std::memcpy(p.logits + r * p.vocabulary + first, product.result[r], count * sizeof(float));
    });
  }
}

// Calls the code for this number of rows, or for the next larger one with rows of zeros.
int dispatch(const LlamaDecoder &p) {
  const long rows = p.sequences * p.count;
  if (rows <= 1) decode<1, float>(p);
  else if (rows <= 2) decode<2, float>(p);
  else if (rows <= 3) decode<3, float>(p);
  else if (rows <= 4) decode<4, float>(p);
  else if (rows <= 6) decode<6, float>(p);
  else if (rows <= 8) decode<8, float>(p);
  else if (rows <= 10) decode<10, float>(p);
  else if (rows <= 12) decode<12, float>(p);
  else if (rows <= 16) decode<16, float>(p);
  else return 1;
  return 0;
}

}  // namespace

// Returns 0, or 1 for more than 16 rows (2 with int8 matrices). Widths must be multiples of 64.
extern "C" int tts_llama_decoder(const LlamaDecoder *p) {
  if (!p->head.scales) return dispatch(*p);
  if (p->sequences * p->count == 1) decode<1, int8_t>(*p);
  else if (p->sequences * p->count == 2) decode<2, int8_t>(*p);
  else return 1;
  return 0;
}
