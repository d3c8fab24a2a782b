// Vectors of the width that the compiler's target has, in the portable vector extension of GCC and Clang.

#ifndef PIXFIT_VEC_H
#define PIXFIT_VEC_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if defined(__AVX512BF16__)
#include <immintrin.h>
#endif

namespace {

#if defined(__AVX512F__)
constexpr int W = 16;  // floats of a vector
constexpr int MR = 8;  // rows of a register tile: MR x 2 accumulators, 2 vectors and a broadcast fit the registers
#elif defined(__AVX2__)
constexpr int W = 8;
constexpr int MR = 6;
#elif defined(__ARM_NEON) || defined(__aarch64__)
constexpr int W = 4;
constexpr int MR = 8;
#else
constexpr int W = 4;
constexpr int MR = 4;
#endif
constexpr int NR = 2 * W;  // features of a panel

typedef float vf __attribute__((vector_size(W * 4)));
typedef int32_t vi __attribute__((vector_size(W * 4)));
typedef uint32_t vu __attribute__((vector_size(W * 4)));
typedef float vf_unaligned __attribute__((vector_size(W * 4), aligned(4), may_alias));

#define PIXFIT_INLINE inline __attribute__((always_inline))

PIXFIT_INLINE vf load(const float *p) { return *reinterpret_cast<const vf_unaligned *>(p); }
PIXFIT_INLINE void store(float *p, vf v) { *reinterpret_cast<vf_unaligned *>(p) = v; }
PIXFIT_INLINE vf splat(float x) {  // written out, so that compilers see one broadcast and no addition
#if defined(__AVX512F__)
  return vf{x, x, x, x, x, x, x, x, x, x, x, x, x, x, x, x};
#elif defined(__AVX2__)
  return vf{x, x, x, x, x, x, x, x};
#else
  return vf{x, x, x, x};
#endif
}
PIXFIT_INLINE vi as_int(vf v) { return reinterpret_cast<vi>(v); }
PIXFIT_INLINE vf as_float(vi v) { return reinterpret_cast<vf>(v); }
PIXFIT_INLINE vf maximum(vf a, vf b) { return a > b ? a : b; }
PIXFIT_INLINE vf minimum(vf a, vf b) { return a < b ? a : b; }
PIXFIT_INLINE vf absolute(vf v) { return as_float(as_int(v) & 0x7fffffff); }

PIXFIT_INLINE float sum(vf v) {
  float lanes[W];
  store(lanes, v);
  for (int half = W / 2; half > 0; half /= 2)
    for (int i = 0; i < half; i++) lanes[i] += lanes[i + half];
  return lanes[0];
}

PIXFIT_INLINE float largest(vf v) {
  float lanes[W], most = 0;
  store(lanes, v);
  for (int i = 0; i < W; i++) most = lanes[i] > most ? lanes[i] : most;
  return most;
}

// The first n lanes 1, the others 0.
PIXFIT_INLINE vf lanes_below(int n) {
  vf v;
  for (int i = 0; i < W; i++) v[i] = i < n ? 1.0f : 0.0f;
  return v;
}

// Nearest bfloat16 (ties to even), as a float. Not for NaN with a payload in the low bits alone.
PIXFIT_INLINE vf round_bfloat16(vf v) {
  vi bits = as_int(v);
  vi rounded = (bits + 0x7fff + ((bits >> 16) & 1)) & (int32_t)0xffff0000;
  return as_float(rounded);
}

constexpr int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

// Lanes of a and b by number: b's count from W.
PIXFIT_INLINE vf mixed(vf a, vf b, vi lanes) {
#if defined(__clang__)
  vf r;
  for (int j = 0; j < W; j++) r[j] = lanes[j] < W ? a[lanes[j]] : b[lanes[j] - W];
  return r;
#else
  return __builtin_shuffle(a, b, lanes);
#endif
}

// Lane r of vector c becomes lane c of vector r.
PIXFIT_INLINE void turn(vf (&row)[W]) {
#pragma GCC unroll 4
  for (int step = 1; step < W; step *= 2) {
    vi low, high;
    for (int j = 0; j < W; j++) {
      low[j] = (j & step) == 0 ? j : j - step + W;
      high[j] = (j & step) == 0 ? j + step : j + W;
    }
#pragma GCC unroll 16
    for (int r = 0; r < W; r++) {
      if (r & step) continue;
      vf a = row[r], b = row[r + step];
      row[r] = mixed(a, b, low);
      row[r + step] = mixed(a, b, high);
    }
  }
}

// dst[c * dst_stride + r] = src[r * src_stride + c] * scale of an W x W block.
PIXFIT_INLINE void transpose(const float *src, ptrdiff_t src_stride, float *dst, ptrdiff_t dst_stride, float scale) {
  vf row[W];
  for (int r = 0; r < W; r++) row[r] = load(src + r * src_stride) * scale;
  turn(row);
  for (int r = 0; r < W; r++) store(dst + r * dst_stride, row[r]);
}

// Lane t of the result: the sum of the lanes of v[t].
PIXFIT_INLINE vf sums(const vf (&v)[W]) {
  vf part[W];
  for (int i = 0; i < W; i++) part[i] = v[i];
#pragma GCC unroll 4
  for (int step = 1; step < W; step *= 2) {
    vi low, high;
    for (int j = 0; j < W; j++) {
      low[j] = (j & step) == 0 ? j : j - step + W;
      high[j] = (j & step) == 0 ? j + step : j + W;
    }
#pragma GCC unroll 16
    for (int i = 0; i < W / (2 * step); i++) {
      const vf a = part[2 * i], b = part[2 * i + 1];
      part[i] = mixed(a, b, low) + mixed(a, b, high);
    }
  }
  return part[0];
}

PIXFIT_INLINE vf root(vf x) {
  for (int i = 0; i < W; i++) x[i] = __builtin_sqrtf(x[i]);
  return x;
}

}  // namespace
#endif
