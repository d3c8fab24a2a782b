// Register tiles of the three matrix products. Activations lie in panels: NR features of T points, [panel][T][NR], so
// that forward, dX and dW all read contiguous memory; weights are packed once a step as [panel][k][NR].

#ifndef PIXFIT_PRODUCT_H
#define PIXFIT_PRODUCT_H

#include <algorithm>

#include "tiles.h"
#include "vec.h"

namespace {

enum class Finish { Store, Multiply };

template <Finish F, int V>
PIXFIT_INLINE void finish(float *out, const vf (&c)[MR][2]) {
#pragma GCC unroll 16
  for (int r = 0; r < MR; r++) {
#pragma GCC unroll 2
    for (int v = 0; v < V; v++) {
      float *p = out + r * NR + v * W;
      if (F == Finish::Store) store(p, c[r][v]);
      if (F == Finish::Multiply) store(p, c[r][v] * load(p));
    }
  }
}

// out[MR][NR] = start + A (MR points, k features in panels `step` floats apart) times B [k][NR]. Rows of `start` are
// `start_step` floats apart: 0 for a bias; null: zeros.
template <Finish F, int V>
inline void points_tile(const float *a, ptrdiff_t step, const float *b, int64_t k, const float *start,
                        ptrdiff_t start_step, float *out) {
  vf c[MR][2];
#pragma GCC unroll 16
  for (int r = 0; r < MR; r++) {
    c[r][0] = start ? load(start + r * start_step) : vf{};
    c[r][1] = start && V == 2 ? load(start + r * start_step + W) : vf{};
    if (F != Finish::Store) __builtin_prefetch(out + r * NR), __builtin_prefetch(out + r * NR + W);
  }
  auto multiply = [&](const float *point, const float *row) {
    vf b0 = load(row), b1 = V == 2 ? load(row + W) : vf{};
#pragma GCC unroll 16
    for (int r = 0; r < MR; r++) {
      vf x = splat(point[r * NR]);
      c[r][0] += x * b0;
      if (V == 2) c[r][1] += x * b1;
    }
  };
  for (; k >= NR; k -= NR, a += step, b += NR * NR)
#pragma GCC unroll 4
    for (int i = 0; i < NR; i++) multiply(a + i, b + i * NR);
  for (int i = 0; i < k; i++) multiply(a + i, b + i * NR);
  finish<F, V>(out, c);
}

// out[R rows][NR] += (fresh: =) sum over n points of a[point][row] * b[point][NR].
template <int R, int V>
inline void weights_tile(const float *a, const float *b, int64_t n, float *out, ptrdiff_t out_stride, bool fresh) {
  vf c[R][2];
#pragma GCC unroll 16
  for (int r = 0; r < R; r++) {
    c[r][0] = c[r][1] = vf{};
    __builtin_prefetch(out + r * out_stride, 1), __builtin_prefetch(out + r * out_stride + W, 1);
  }
#pragma GCC unroll 2
  for (int64_t t = 0; t < n; t++, a += NR, b += NR) {
    vf b0 = load(b), b1 = V == 2 ? load(b + W) : vf{};
#pragma GCC unroll 16
    for (int r = 0; r < R; r++) {
      vf x = splat(a[r]);
      c[r][0] += x * b0;
      if (V == 2) c[r][1] += x * b1;
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < R; r++) {
    float *p = out + r * out_stride;
    store(p, fresh ? c[r][0] : load(p) + c[r][0]);
    if (V == 2) store(p + W, fresh ? c[r][1] : load(p + W) + c[r][1]);
  }
}

template <int V>
inline void weights_rows(int rows, const float *a, const float *b, int64_t n, float *out, ptrdiff_t stride, bool fresh) {
  switch (rows) {
    case 1: return weights_tile<1, V>(a, b, n, out, stride, fresh);
    case 2: return weights_tile<2, V>(a, b, n, out, stride, fresh);
    case 3: return weights_tile<3, V>(a, b, n, out, stride, fresh);
    case 4: return weights_tile<4, V>(a, b, n, out, stride, fresh);
#if !defined(__AVX2__) && !defined(__aarch64__)
    default: return weights_tile<4, V>(a, b, n, out, stride, fresh);
#else
    case 5: return weights_tile<5, V>(a, b, n, out, stride, fresh);
    case 6: return weights_tile<6, V>(a, b, n, out, stride, fresh);
    case 7: return weights_tile<7, V>(a, b, n, out, stride, fresh);
    default: return weights_tile<8, V>(a, b, n, out, stride, fresh);
#endif
  }
}

constexpr int64_t DEEPEST = 256;  // rows of B that stay in the first cache with the points that pass by

// The points [0, n) of a T-point tile through one matrix: out = bias + in W, panel by panel. `partial`: a tile of
// memory for sums over more than DEEPEST inputs, which may be `out` unless F reads it. `after(p)`: what to do with a
// panel while it is near.
template <Finish F, typename After>
inline void points_product(const float *in, int64_t inputs, const float *packed, const float *bias, int64_t outputs,
                           int64_t tile, int64_t n, float *out, float *partial, After after) {
  for (int64_t p = 0; p * NR < outputs; p++) {
    const float *b = packed + p * inputs * NR;
    const bool half = outputs - p * NR <= W;
    float *panel = out + p * tile * NR, *sums = partial + p * tile * NR;
    for (int64_t from = 0; from < inputs; from += DEEPEST) {
      const int64_t k = inputs - from < DEEPEST ? inputs - from : DEEPEST;
      const bool last = from + k == inputs;
      for (int64_t t = 0; t < n; t += MR) {
        const float *a = in + (from / NR) * tile * NR + t * NR, *rows = b + from * NR;
        const float *start = from ? sums + t * NR : bias ? bias + p * NR : nullptr;
        const ptrdiff_t step = from ? NR : 0;
        if (last && half) points_tile<F, 1>(a, tile * NR, rows, k, start, step, panel + t * NR);
        else if (last) points_tile<F, 2>(a, tile * NR, rows, k, start, step, panel + t * NR);
        else if (half) points_tile<Finish::Store, 1>(a, tile * NR, rows, k, start, step, sums + t * NR);
        else points_tile<Finish::Store, 2>(a, tile * NR, rows, k, start, step, sums + t * NR);
      }
    }
    after(p);
  }
}

// gradient (rows, lanes; row stride `stride`) += (fresh: =) a^T b over n points; a and b are tiles of T points in panels.
inline void weights_product(const float *a, int64_t rows, const float *b, int64_t lanes, int64_t tile, int64_t n,
                            float *gradient, int64_t stride, bool fresh) {
  constexpr int most = W == 4 && MR == 4 ? 4 : W == 8 ? 6 : 8;
  for (int64_t p = 0; p * NR < lanes; p++) {
    const float *right = b + p * tile * NR;
    bool half = lanes - p * NR <= W;
    for (int64_t q = 0; q * NR < rows; q++) {
      int64_t end = rows - q * NR < NR ? rows - q * NR : NR;
      for (int64_t r = 0; r < end; r += most) {
        const float *left = a + q * tile * NR + r;
        float *out = gradient + (q * NR + r) * stride + p * NR;
        int count = static_cast<int>(end - r < most ? end - r : most);
        if (half) weights_rows<1>(count, left, right, n, out, stride, fresh);
        else weights_rows<2>(count, left, right, n, out, stride, fresh);
      }
    }
  }
}

#if defined(__AVX512BF16__)

// The same two products with bfloat16 operands, accumulated in float32. A 32-bit lane holds two values that follow each
// other along the sum: features (2k, 2k + 1) of a point, or points (2t, 2t + 1) of a feature.

PIXFIT_INLINE __m512bh pair(uint32_t bits) { return (__m512bh)_mm512_set1_epi32(static_cast<int>(bits)); }
PIXFIT_INLINE __m512bh pairs(const uint32_t *p) { return (__m512bh)_mm512_loadu_si512(p); }

template <Finish F, int V>
inline void points_tile_bf16(const uint32_t *a, ptrdiff_t step, const uint32_t *b, int64_t k, const float *start,
                             float *out) {
  vf c[MR][2];
#pragma GCC unroll 16
  for (int r = 0; r < MR; r++) {
    c[r][0] = start ? load(start + r * NR) : vf{};
    c[r][1] = start && V == 2 ? load(start + r * NR + W) : vf{};
    if (F != Finish::Store) __builtin_prefetch(out + r * NR), __builtin_prefetch(out + r * NR + W);
  }
  auto multiply = [&](const uint32_t *point, const uint32_t *row) {
    __m512bh b0 = pairs(row), b1 = pairs(row + (V == 2 ? W : 0));
#pragma GCC unroll 16
    for (int r = 0; r < MR; r++) {
      __m512bh x = pair(point[r * W]);
      c[r][0] = (vf)_mm512_dpbf16_ps((__m512)c[r][0], x, b0);
      if (V == 2) c[r][1] = (vf)_mm512_dpbf16_ps((__m512)c[r][1], x, b1);
    }
  };
  for (; k >= W; k -= W, a += step, b += W * NR)
#pragma GCC unroll 4
    for (int i = 0; i < W; i++) multiply(a + i, b + i * NR);
  for (int i = 0; i < k; i++) multiply(a + i, b + i * NR);
  finish<F, V>(out, c);
}

template <int R, int V>
inline void weights_tile_bf16(const uint32_t *a, const uint32_t *b, int64_t n, float *out, ptrdiff_t out_stride,
                              bool fresh) {
  vf c[R][2];
#pragma GCC unroll 16
  for (int r = 0; r < R; r++) {
    c[r][0] = c[r][1] = vf{};
    __builtin_prefetch(out + r * out_stride, 1), __builtin_prefetch(out + r * out_stride + W, 1);
  }
#pragma GCC unroll 2
  for (int64_t t = 0; t < n; t++, a += NR, b += NR) {
    __m512bh b0 = pairs(b), b1 = pairs(b + (V == 2 ? W : 0));
#pragma GCC unroll 16
    for (int r = 0; r < R; r++) {
      __m512bh x = pair(a[r]);
      c[r][0] = (vf)_mm512_dpbf16_ps((__m512)c[r][0], x, b0);
      if (V == 2) c[r][1] = (vf)_mm512_dpbf16_ps((__m512)c[r][1], x, b1);
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < R; r++) {
    float *p = out + r * out_stride;
    store(p, fresh ? c[r][0] : load(p) + c[r][0]);
    if (V == 2) store(p + W, fresh ? c[r][1] : load(p + W) + c[r][1]);
  }
}

template <int V>
inline void weights_rows_bf16(int rows, const uint32_t *a, const uint32_t *b, int64_t n, float *out, ptrdiff_t stride,
                              bool fresh) {
  switch (rows) {
    case 1: return weights_tile_bf16<1, V>(a, b, n, out, stride, fresh);
    case 2: return weights_tile_bf16<2, V>(a, b, n, out, stride, fresh);
    case 3: return weights_tile_bf16<3, V>(a, b, n, out, stride, fresh);
    case 4: return weights_tile_bf16<4, V>(a, b, n, out, stride, fresh);
    case 5: return weights_tile_bf16<5, V>(a, b, n, out, stride, fresh);
    case 6: return weights_tile_bf16<6, V>(a, b, n, out, stride, fresh);
    case 7: return weights_tile_bf16<7, V>(a, b, n, out, stride, fresh);
    default: return weights_tile_bf16<8, V>(a, b, n, out, stride, fresh);
  }
}

template <Finish F>
inline void points_product_bf16(const uint32_t *in, int64_t inputs, const uint32_t *packed, int64_t outputs,
                                int64_t tile, int64_t n, float *out, float *partial) {
  const int64_t depth = (inputs + 1) / 2;
  for (int64_t p = 0; p * NR < outputs; p++) {
    const uint32_t *b = packed + p * round_up(depth, W) * NR;
    const bool half = outputs - p * NR <= W;
    float *panel = out + p * tile * NR, *sums = partial + p * tile * NR;
    for (int64_t from = 0; from < depth; from += DEEPEST) {
      const int64_t k = depth - from < DEEPEST ? depth - from : DEEPEST;
      const bool last = from + k == depth;
      for (int64_t t = 0; t < n; t += MR) {
        const uint32_t *a = in + (from / W) * tile * W + t * W, *rows = b + from * NR;
        const float *start = from ? sums + t * NR : nullptr;
        if (last && half) points_tile_bf16<F, 1>(a, tile * W, rows, k, start, panel + t * NR);
        else if (last) points_tile_bf16<F, 2>(a, tile * W, rows, k, start, panel + t * NR);
        else if (half) points_tile_bf16<Finish::Store, 1>(a, tile * W, rows, k, start, sums + t * NR);
        else points_tile_bf16<Finish::Store, 2>(a, tile * W, rows, k, start, sums + t * NR);
      }
    }
  }
}

// a, b: [panel][T / 2][NR] pairs of points.
inline void weights_product_bf16(const uint32_t *a, int64_t rows, const uint32_t *b, int64_t lanes, int64_t tile,
                                 int64_t n, float *gradient, int64_t stride, bool fresh) {
  for (int64_t p = 0; p * NR < lanes; p++) {
    const uint32_t *right = b + p * (tile / 2) * NR;
    bool half = lanes - p * NR <= W;
    for (int64_t q = 0; q * NR < rows; q++) {
      int64_t end = rows - q * NR < NR ? rows - q * NR : NR;
      for (int64_t r = 0; r < end; r += 8) {
        const uint32_t *left = a + q * (tile / 2) * NR + r;
        float *out = gradient + (q * NR + r) * stride + p * NR;
        int count = static_cast<int>(end - r < 8 ? end - r : 8);
        if (half) weights_rows_bf16<1>(count, left, right, (n + 1) / 2, out, stride, fresh);
        else weights_rows_bf16<2>(count, left, right, (n + 1) / 2, out, stride, fresh);
      }
    }
  }
}

#endif  // __AVX512BF16__

#if defined(PIXFIT_HAS_TILES)

// The same once more, by the matrix units. Pairs are filled up with zeros to whole tiles on both sides.

// Steps from one row of A to the next and from tile to tile, in pairs.
template <int A, int B>
PIXFIT_WITH_TILES PIXFIT_INLINE void sum_tiles(const uint32_t *a, int64_t a_step, int64_t a_block, const uint32_t *b,
                                               int64_t blocks) {
  const int64_t bytes = a_step * static_cast<int64_t>(sizeof *a);
  clear_tiles<A, B>();
  for (int64_t k = 0; k < blocks; k++, a += a_block, b += W * NR)
    add_tiles<A, B>(a, bytes, b, NR * sizeof *b);
}

template <Into I, int B>
PIXFIT_WITH_TILES inline void points_panel_tiles(const uint32_t *in, const uint32_t *b, int64_t blocks, int64_t tile,
                                                 int64_t n, float *out) {
  int64_t t = 0;
  for (; t + 2 * TALL <= n; t += 2 * TALL) {
    sum_tiles<2, B>(in + t * W, W, tile * W, b, blocks);
    put_tiles<I, 2, B>(out + t * NR, NR, 2 * TALL, B * TALL);
  }
  if (t < n) {  // a multiple of TALL
    sum_tiles<1, B>(in + t * W, W, tile * W, b, blocks);
    put_tiles<I, 1, B>(out + t * NR, NR, TALL, B * TALL);
  }
}

template <Into I>
inline void points_product_tiles(const uint32_t *in, int64_t inputs, const uint32_t *packed, int64_t outputs,
                                 int64_t tile, int64_t n, float *out) {
  const int64_t blocks = (inputs + DEEP - 1) / DEEP;
  for (int64_t p = 0; p * NR < outputs; p++) {
    const uint32_t *b = packed + p * blocks * W * NR;
    if (outputs - p * NR <= W) points_panel_tiles<I, 1>(in, b, blocks, tile, n, out + p * tile * NR);
    else points_panel_tiles<I, 2>(in, b, blocks, tile, n, out + p * tile * NR);
  }
}

template <Into I, int B>
PIXFIT_WITH_TILES inline void weights_panel_tiles(const uint32_t *a, int64_t rows, const uint32_t *b, int64_t blocks,
                                                  float *out, int64_t stride) {
  const int64_t step = blocks * W;
  int64_t r = 0;
  for (; r + TALL < rows; r += 2 * TALL) {
    sum_tiles<2, B>(a + r * step, step, W, b, blocks);
    put_tiles<I, 2, B>(out + r * stride, stride, rows - r, B * TALL);
  }
  if (r < rows) {
    sum_tiles<1, B>(a + r * step, step, W, b, blocks);
    put_tiles<I, 1, B>(out + r * stride, stride, rows - r, B * TALL);
  }
}

// a, b: [panel][T / 2][NR] pairs of points, of which those from n / 2 on are made 0 as far as tiles reach; `turned`:
// memory for a with the pairs of a feature side by side.
inline void weights_product_tiles(const uint32_t *a, int64_t rows, uint32_t *b, int64_t lanes, int64_t tile, int64_t n,
                                  uint32_t *turned, float *gradient, int64_t stride, bool fresh) {
  const int64_t pairs = n / 2, blocks = (n + DEEP - 1) / DEEP, step = blocks * W;
  for (int64_t r = 0; r < rows; r += W)
    for (int64_t t = 0; t < step; t += W) {
      const uint32_t *from = a + (r / NR) * (tile / 2) * NR + t * NR + r % NR;
      vf block[W];
      for (int64_t j = 0; j < W; j++) block[j] = t + j < pairs ? load(reinterpret_cast<const float *>(from + j * NR)) : vf{};
      turn(block);
      for (int64_t j = 0; j < W; j++) store(reinterpret_cast<float *>(turned + (r + j) * step + t), block[j]);
    }
  for (int64_t p = 0; p * NR < lanes; p++) {
    uint32_t *right = b + p * (tile / 2) * NR;
    memset(right + pairs * NR, 0, sizeof *right * (step - pairs) * NR);
    float *out = gradient + p * NR;
    if (lanes - p * NR <= W)
      fresh ? weights_panel_tiles<Into::Store, 1>(turned, rows, right, blocks, out, stride)
            : weights_panel_tiles<Into::Add, 1>(turned, rows, right, blocks, out, stride);
    else
      fresh ? weights_panel_tiles<Into::Store, 2>(turned, rows, right, blocks, out, stride)
            : weights_panel_tiles<Into::Add, 2>(turned, rows, right, blocks, out, stride);
  }
}

#endif  // PIXFIT_HAS_TILES

}  // namespace
#endif
