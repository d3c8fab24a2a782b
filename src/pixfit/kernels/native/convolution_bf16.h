// The three products of a convolution with operands in bfloat16, summed in float32: by the dot products of AVX-512, or
// by the matrix units (AMX) where the processor has them. Maps stay in float32 and are rounded a few rows at a time.

#ifndef PIXFIT_CONVOLUTION_BF16_H
#define PIXFIT_CONVOLUTION_BF16_H

#include "convolution.h"
#include "tiles.h"

namespace {

inline bool can_multiply(int64_t products) {
#if defined(__AVX512BF16__)
  if (products == PIXFIT_BFLOAT16) return true;
#endif
  return products == PIXFIT_FLOAT32 || (products == PIXFIT_TILES && has_tiles());
}

#if defined(__AVX512BF16__)

typedef uint16_t bf;  // the bits of one

constexpr int64_t BAND = 1 << 18;  // numbers of a band of rows that the gradient of weights is summed over: about 512 kB

PIXFIT_INLINE vf some(const float *p, int64_t count) {  // the others are 0
  if (count >= W) return load(p);
  return count > 0 ? (vf)_mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << count) - 1), p) : vf{};
}

PIXFIT_INLINE void store_some(float *p, int64_t count, vf v) {
  if (count >= W) store(p, v);
  else if (count > 0) _mm512_mask_storeu_ps(p, static_cast<__mmask16>((1u << count) - 1), (__m512)v);
}

PIXFIT_INLINE void store_rounded(bf *p, vf v) {
  _mm256_storeu_si256(reinterpret_cast<__m256i *>(p), (__m256i)_mm512_cvtneps_pbh((__m512)v));
}

PIXFIT_INLINE void store_paired(bf *p, vf a, vf b) { _mm512_storeu_si512(p, paired(a, b)); }

inline void rounded(const float *from, int64_t floats, bf *to) {
  int64_t i = 0;
  for (; i + W <= floats; i += W) store_rounded(to + i, load(from + i));
  if (i == floats) return;
  bf rest[W];
  store_rounded(rest, some(from + i, floats - i));
  memcpy(to + i, rest, sizeof(bf) * (floats - i));
}

// The newest rows of a map in bfloat16, with zeros behind each that a sum may run into.
class Window {
 public:
  Window(const float *map, int64_t row, int64_t floats, int64_t kept, int64_t first, bf *memory)
      : map_(map), row_(row), floats_(floats), kept_(kept), next_(first), memory_(memory) {
    for (int64_t i = 0; i < kept; i++) memset(memory + i * step(floats) + floats, 0, sizeof(bf) * DEEP);
  }
  static int64_t step(int64_t floats) { return round_up(floats + DEEP, DEEP); }
  void upto(int64_t y) {
    for (; next_ <= y; next_++) rounded(map_ + next_ * row_, floats_, memory_ + next_ % kept_ * step(floats_));
  }
  const bf *at(int64_t y) const { return memory_ + y % kept_ * step(floats_); }

 private:
  const float *map_;
  int64_t row_, floats_, kept_, next_;
  bf *memory_;
};

PIXFIT_INLINE __m512bh pair_at(const bf *p) {
  int32_t both;
  memcpy(&both, p, sizeof both);
  return (__m512bh)_mm512_set1_epi32(both);
}
PIXFIT_INLINE __m512bh pairs_at(const bf *p) { return (__m512bh)_mm512_loadu_si512(p); }

// A product C = A B of pixels by lanes. A's rows begin `pixel` apart in each of `rows` pieces of `run` numbers; B is
// [piece][round_up(run, DEEP) / 2][NR][2].
struct Factors {
  const bf *const *pieces;
  int64_t rows, run;
  ptrdiff_t pixel;
  const bf *b;
  float *out;
  ptrdiff_t out_step;
  int64_t lanes;
};

template <int R, int V>
inline void pixels_tile_bf16(const Factors &f, int64_t x) {
  vf c[R][V];
#pragma GCC unroll 16
  for (int r = 0; r < R; r++)
    for (int v = 0; v < V; v++) c[r][v] = vf{};
  const int64_t deep = round_up(f.run, DEEP);
  for (int64_t y = 0; y < f.rows; y++) {
    constexpr int FOURS = (R + 3) / 4;  // as in pixels_tile
    const bf *p[FOURS], *b = f.b + y * deep * NR;
    for (int i = 0; i < FOURS; i++) p[i] = f.pieces[y] + (x + 4 * i) * f.pixel;
    for (int64_t i = 0; i < f.run; i += 2, b += 2 * NR) {
      __m512bh right[V];
      for (int v = 0; v < V; v++) right[v] = pairs_at(b + 2 * v * W);
#pragma GCC unroll 16
      for (int r = 0; r < R; r++) {
        const __m512bh left = pair_at(p[r / 4] + r % 4 * f.pixel);
        for (int v = 0; v < V; v++) c[r][v] = (vf)_mm512_dpbf16_ps((__m512)c[r][v], left, right[v]);
      }
      for (int j = 0; j < FOURS; j++) p[j] += 2;
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < R; r++) put(c[r], f.out + (x + r) * f.out_step, f.lanes);
}

template <int V>
inline void pixels_row_bf16(const Factors &f, int64_t pixels) {
  int64_t x = 0;
  for (; x + ROWS <= pixels; x += ROWS) pixels_tile_bf16<ROWS, V>(f, x);
  for (; x + 4 <= pixels; x += 4) pixels_tile_bf16<4, V>(f, x);
  for (; x + 2 <= pixels; x += 2) pixels_tile_bf16<2, V>(f, x);
  if (x < pixels) pixels_tile_bf16<1, V>(f, x);
}

// A sum over pairs of pixels: C [R inputs][NR] += A [input][pixel] B [pixel / 2][lane][2], over the rows of a band.
struct Taps {
  const bf *a, *b;
  ptrdiff_t a_row, b_row, a_step, b_step;  // from a row to the next, from an input to the next, from a pair to the next
  int64_t rows, columns;
  float *out;
  bool fresh;
};

template <int R, int V>
inline void taps_tile_bf16(const Taps &t, int64_t input) {
  vf c[R][V];
  float *out = t.out + input * NR;
#pragma GCC unroll 16
  for (int r = 0; r < R; r++)
    for (int v = 0; v < V; v++) c[r][v] = t.fresh ? vf{} : load(out + r * NR + v * W);
  for (int64_t y = 0; y < t.rows; y++) {
    constexpr int FOURS = (R + 3) / 4;
    const bf *p[FOURS], *b = t.b + y * t.b_row;
    for (int i = 0; i < FOURS; i++) p[i] = t.a + y * t.a_row + (input + 4 * i) * t.a_step;
    for (int64_t x = 0; x < t.columns; x += 2, b += t.b_step) {
      __m512bh right[V];
      for (int v = 0; v < V; v++) right[v] = pairs_at(b + 2 * v * W);
#pragma GCC unroll 16
      for (int r = 0; r < R; r++) {
        const __m512bh left = pair_at(p[r / 4] + r % 4 * t.a_step);
        for (int v = 0; v < V; v++) c[r][v] = (vf)_mm512_dpbf16_ps((__m512)c[r][v], left, right[v]);
      }
      for (int j = 0; j < FOURS; j++) p[j] += 2;
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < R; r++)
    for (int v = 0; v < V; v++) store(out + r * NR + v * W, c[r][v]);
}

template <int V>
inline void taps_rows_bf16(const Taps &t, int64_t inputs) {  // a multiple of TALL
  for (int64_t i = 0; i < inputs; i += TALL / 2) taps_tile_bf16<TALL / 2, V>(t, i);
}

#if defined(PIXFIT_HAS_TILES)

// A x B tiles of 16 pixels by 16 lanes, from pixel x on.
template <int A, int B>
PIXFIT_WITH_TILES inline void pixels_tiles(const Factors &f, int64_t x, int64_t pixels) {
  const int64_t deep = round_up(f.run, DEEP), a_bytes = f.pixel * static_cast<int64_t>(sizeof(bf));
  clear_tiles<A, B>();
  for (int64_t y = 0; y < f.rows; y++) {
    const bf *a = f.pieces[y] + x * f.pixel, *b = f.b + y * deep * NR;
    for (int64_t i = 0; i < deep; i += DEEP, b += DEEP * NR)
      add_tiles<A, B>(a + i, a_bytes, b, 2 * NR * sizeof(bf));
  }
  put_tiles<Into::Store, A, B>(f.out + x * f.out_step, f.out_step, pixels, f.lanes);
}

// Where pixels do not divide, some are made twice.
template <int B>
PIXFIT_WITH_TILES inline void pixels_row_tiles(const Factors &f, int64_t pixels) {
  const int64_t rows = std::min(pixels, TALL);
  int64_t x = 0;
  for (; x + 2 * TALL <= pixels; x += 2 * TALL) pixels_tiles<2, B>(f, x, 2 * TALL);
  for (; x < pixels; x += TALL) pixels_tiles<1, B>(f, std::min(x, pixels - rows), rows);
}

template <int A, int B>
PIXFIT_WITH_TILES inline void taps_tiles(const Taps &t, int64_t input) {
  const int64_t a_bytes = t.a_step * static_cast<int64_t>(sizeof(bf));
  clear_tiles<A, B>();
  for (int64_t y = 0; y < t.rows; y++) {
    const bf *a = t.a + y * t.a_row + input * t.a_step, *b = t.b + y * t.b_row;
    for (int64_t x = 0; x < t.columns; x += DEEP, b += DEEP / 2 * t.b_step)
      add_tiles<A, B>(a + x, a_bytes, b, t.b_step * static_cast<int64_t>(sizeof(bf)));
  }
  float *out = t.out + input * NR;
  if (t.fresh) put_tiles<Into::Store, A, B>(out, NR, A * TALL, B * TALL);
  else put_tiles<Into::Add, A, B>(out, NR, A * TALL, B * TALL);
}

template <int B>
PIXFIT_WITH_TILES inline void taps_rows_tiles(const Taps &t, int64_t inputs) {
  int64_t i = 0;
  for (; i + 2 * TALL <= inputs; i += 2 * TALL) taps_tiles<2, B>(t, i);
  if (i < inputs) taps_tiles<1, B>(t, i);
}

#endif  // PIXFIT_HAS_TILES

// Runs the body with the matrix units made ready for tiles of so many rows, if they are to be used.
template <typename Body>
inline void with_tiles(bool tiles, int64_t rows, Body body) {
#if defined(PIXFIT_HAS_TILES)
  if (tiles) {
    const TilesInUse in_use(rows);
    return body();
  }
#endif
  (void)tiles, (void)rows;
  body();
}

inline void pixels_product(bool tiles, const Factors &f, int64_t pixels) {
#if defined(PIXFIT_HAS_TILES)
  if (tiles) return f.lanes > TALL ? pixels_row_tiles<2>(f, pixels) : pixels_row_tiles<1>(f, pixels);
#endif
  (void)tiles;
  return f.lanes > W ? pixels_row_bf16<2>(f, pixels) : pixels_row_bf16<1>(f, pixels);
}

inline void taps_product(bool tiles, const Taps &t, int64_t inputs, bool two) {
#if defined(PIXFIT_HAS_TILES)
  if (tiles) return two ? taps_rows_tiles<2>(t, inputs) : taps_rows_tiles<1>(t, inputs);
#endif
  (void)tiles;
  return two ? taps_rows_bf16<2>(t, inputs) : taps_rows_bf16<1>(t, inputs);
}

// What a convolution needs besides, in numbers of bfloat16 unless said.
struct Rounding {
  const Shapes &s;
  bool tiles;
  int64_t deep, inputs, lanes;  // of one row of the kernel, filled up to whole tiles, as are inputs and outputs
  int64_t across, phase;        // columns of the slope; of the input in one phase of the stride, and where tiles end
  int64_t band;                 // rows of the slope
  explicit Rounding(const Shapes &shapes) : s(shapes), tiles(s.b.products == PIXFIT_TILES) {
    deep = round_up(s.b.kernel * s.b.inputs, DEEP), inputs = round_up(s.b.inputs, TALL), lanes = s.panels * NR;
    across = round_up(s.columns, DEEP), phase = round_up(across + (s.b.kernel - 1) / s.b.stride, DEEP);
    band = std::clamp<int64_t>(BAND / (s.b.stride * input_row() + slope_row()), 1, s.rows);
  }
  int64_t packed() const { return s.panels * s.b.kernel * deep * NR; }
  int64_t deep_back() const { return round_up((s.before + 1) * s.b.outputs, DEEP); }
  int64_t packed_back() const { return s.back_panels * (s.before + 1) * deep_back() * NR; }
  int64_t window() const { return s.b.kernel * Window::step(s.wide * s.b.inputs); }
  int64_t window_back() const { return (s.before + 1) * Window::step(s.slope_wide * s.b.outputs); }
  int64_t input_row() const { return s.b.stride * inputs * phase; }
  int64_t slope_row() const { return across * lanes; }
  int64_t input_rows() const { return (band - 1) * s.b.stride + s.b.kernel; }
  int64_t turned() const { return input_rows() * input_row() + band * slope_row(); }
  int64_t taps() const { return s.panels * s.b.kernel * s.b.kernel * inputs * NR; }  // floats
  int64_t lane_rows() const { return s.b.kernel * s.b.kernel * std::max(s.b.inputs, s.b.outputs) * W; }  // floats
  // Floats of memory that serve one after the other of the three products.
  int64_t floats() const {
    const int64_t threads = s.b.threads;
    return 2 * W + std::max({lane_rows() + (packed() + threads * window()) / 2,
                             lane_rows() + (packed_back() + threads * window_back()) / 2,
                             taps() + threads * turned() / 2});
  }
};

PIXFIT_INLINE float *aligned(float *p) {
  return reinterpret_cast<float *>(round_up(reinterpret_cast<intptr_t>(p), sizeof(vf)));
}

// weight (outputs, inputs, kernel, kernel) as [panel][row][(column, input) / 2][NR outputs][2]. lane_rows: memory.
inline void packed_forward(const Rounding &r, const float *weight, float *lane_rows, bf *out) {
  const int64_t n = r.s.b.kernel, k = r.s.b.inputs, each = k * n * n;
  memset(out, 0, sizeof(bf) * r.packed());
  for (int64_t o = 0; o < r.s.b.outputs; o += W) {
    for (int64_t e = 0; e < each; e += W) {
      vf block[W];
      for (int64_t j = 0; j < W; j++)
        block[j] = o + j < r.s.b.outputs ? some(weight + (o + j) * each + e, each - e) : vf{};
      turn(block);
      for (int64_t j = 0; j < std::min<int64_t>(W, each - e); j++) store(lane_rows + (e + j) * W, block[j]);
    }
    auto lanes = [&](int64_t ty, int64_t at) {
      return at < n * k ? load(lane_rows + ((at % k * n + ty) * n + at / k) * W) : vf{};
    };
    for (int64_t ty = 0; ty < n; ty++) {
      bf *to = out + (o / NR * n + ty) * r.deep * NR + o % NR * 2;
      for (int64_t at = 0; at < n * k; at += 2, to += 2 * NR) store_paired(to, lanes(ty, at), lanes(ty, at + 1));
    }
  }
}

inline void convolve(const Rounding &r, const Field &x, const float *weight, float *memory, float *out) {
  const Shapes &s = r.s;
  float *lane_rows = aligned(memory);
  bf *packed = reinterpret_cast<bf *>(lane_rows + r.lane_rows()), *windows = packed + r.packed();
  packed_forward(r, weight, lane_rows, packed);
  const int64_t n = s.b.kernel, k = s.b.inputs, o = s.b.outputs;
  std::vector<const bf *> all_pieces(s.b.threads * n);  // here, since a thread's error would end the process
  shared(s.b.threads, s.products, s.rows, 1, [&](int64_t first, int64_t last, int64_t thread) {
    const bf **pieces = all_pieces.data() + thread * n;
    Window window(x.at(-s.border, -s.border), x.row(), s.wide * k, n, first * s.b.stride, windows + thread * r.window());
    with_tiles(r.tiles, std::min(s.columns, TALL), [&] {
      for (int64_t y = first; y < last; y++) {
        window.upto(y * s.b.stride + n - 1);
        for (int64_t ty = 0; ty < n; ty++) pieces[ty] = window.at(y * s.b.stride + ty);
        for (int64_t p = 0; p < s.panels; p++) {
          const Factors f{pieces, n, n * k, s.b.stride * k, packed + p * n * r.deep * NR,
                          out + y * s.columns * o + p * NR, o, std::min<int64_t>(NR, o - p * NR)};
          pixels_product(r.tiles, f, s.columns);
        }
      }
    });
  });
}

// As in float32, see there: a convolution for each parity of row and column.
inline void convolve_back(const Rounding &r, const float *slope, const float *weight, float *memory, float *out) {
  const Shapes &s = r.s;
  const int64_t n = s.b.kernel, k = s.b.inputs, o = s.b.outputs, stride = s.b.stride, taps = n * n;
  float *lane_rows = aligned(memory);
  bf *packed = reinterpret_cast<bf *>(lane_rows + r.lane_rows()), *windows = packed + r.packed_back();
  std::vector<const bf *> all_pieces(s.b.threads * n);
  for (int64_t py = 0; py < std::min(stride, s.high); py++)
    for (int64_t px = 0; px < std::min(stride, s.wide); px++) {
      const int64_t down = py < n ? (n - py + stride - 1) / stride : 0;
      const int64_t right = px < n ? (n - px + stride - 1) / stride : 0;
      const int64_t columns = (s.wide - px + stride - 1) / stride, rows = (s.high - py + stride - 1) / stride;
      const int64_t run = right * o, deep = round_up(run, DEEP), panel = down * deep * NR;
      memset(packed, 0, sizeof(bf) * s.back_panels * panel);
      for (int64_t i = 0; i < k; i += W) {
        for (int64_t c = 0; c < o; c++)
          for (int64_t tap = 0; tap < taps; tap += W) {
            vf block[W];
            for (int64_t j = 0; j < W; j++)
              block[j] = i + j < k ? some(weight + (c * k + i + j) * taps + tap, taps - tap) : vf{};
            turn(block);
            for (int64_t j = 0; j < std::min<int64_t>(W, taps - tap); j++)
              store(lane_rows + ((tap + j) * o + c) * W, block[j]);
          }
        auto lanes = [&](int64_t ty, int64_t at) {  // taps from the last to the first
          const int64_t row = py + (down - 1 - ty) * stride, column = px + (right - 1 - at / o) * stride;
          return at < run ? load(lane_rows + ((row * n + column) * o + at % o) * W) : vf{};
        };
        for (int64_t ty = 0; ty < down; ty++) {
          bf *to = packed + i / NR * panel + ty * deep * NR + i % NR * 2;
          for (int64_t at = 0; at < run; at += 2, to += 2 * NR) store_paired(to, lanes(ty, at), lanes(ty, at + 1));
        }
      }
      shared(s.b.threads, rows * columns * down * run * k, rows, 1, [&](int64_t first, int64_t last, int64_t thread) {
        const bf **pieces = all_pieces.data() + thread * n;
        const int64_t above = s.before + 1 - down;
        Window window(slope, s.slope_wide * o, s.slope_wide * o, s.before + 1, above + first,
                      windows + thread * r.window_back());
        with_tiles(r.tiles, std::min(columns, TALL), [&] {
          for (int64_t y = first; y < last; y++) {
            window.upto(above + y + down - 1);
            for (int64_t ty = 0; ty < down; ty++) pieces[ty] = window.at(above + y + ty) + (s.before + 1 - right) * o;
            for (int64_t p = 0; p < s.back_panels; p++) {
              const Factors f{pieces, down, run, o, packed + p * panel,
                              out + ((py + y * stride) * s.wide + px) * k + p * NR, stride * k,
                              std::min<int64_t>(NR, k - p * NR)};
              pixels_product(r.tiles, f, columns);
            }
          }
        });
      });
    }
}

// A row of the input as [phase of the stride][input][column], and one of the slope as [column / 2][output][2].
inline void turned_input(const Rounding &r, const float *from, bf *to) {
  const int64_t stride = r.s.b.stride, k = r.s.b.inputs;
  for (int64_t phase = 0; phase < stride; phase++) {
    const int64_t columns = (r.s.wide - phase + stride - 1) / stride, most = std::min(columns, r.phase);
    for (int64_t i = 0; i < r.inputs; i += W, to += W * r.phase) {
      int64_t x = 0;
      for (; x < most; x += 2 * W) {
        auto pixel = [&](int64_t j) {
          return x + j < columns ? some(from + (phase + (x + j) * stride) * k + i, k - i) : vf{};
        };
        vf block[W];  // of pairs of pixels, which stay together
        for (int64_t j = 0; j < W; j++) block[j] = (vf)paired(pixel(2 * j), pixel(2 * j + 1));
        turn(block);
        for (int64_t j = 0; j < W; j++) _mm512_storeu_si512(to + j * r.phase + x, (__m512i)block[j]);
      }
      if (x < r.phase)
        for (int64_t j = 0; j < W; j++) memset(to + j * r.phase + x, 0, sizeof(bf) * (r.phase - x));
    }
  }
}

inline void paired_slope(const Rounding &r, const float *from, bf *to) {
  const int64_t o = r.s.b.outputs, columns = r.s.columns;
  for (int64_t x = 0; x < r.across; x += 2)
    for (int64_t lane = 0; lane < r.lanes; lane += W, to += 2 * W) {
      const vf a = x < columns ? some(from + x * o + lane, o - lane) : vf{};
      const vf b = x + 1 < columns ? some(from + (x + 1) * o + lane, o - lane) : vf{};
      store_paired(to, a, b);
    }
}

// [panel][row][column][input][NR] to weight (outputs, inputs, kernel, kernel).
inline void unpacked(const Rounding &r, const float *packed, float *weight) {
  const int64_t n = r.s.b.kernel, k = r.s.b.inputs, taps = n * n, each = k * taps;
  for (int64_t o = 0; o < r.s.b.outputs; o += W)
    for (int64_t e = 0; e < each; e += W) {
      vf block[W];
      for (int64_t j = 0; j < W; j++) {
        const int64_t at = std::min(e + j, each - 1);
        block[j] = load(packed + ((o / NR * taps + at % taps) * r.inputs + at / taps) * NR + o % NR);
      }
      turn(block);
      for (int64_t j = 0; j < std::min<int64_t>(W, r.s.b.outputs - o); j++)
        store_some(weight + (o + j) * each + e, each - e, block[j]);
    }
}

// Each thread turns all rows for itself: to meet after each band would take longer.
inline void taps_back(const Rounding &r, const Field &x, const float *slope, float *memory, float *dweight) {
  const Shapes &s = r.s;
  const int64_t n = s.b.kernel, o = s.b.outputs, stride = s.b.stride, blocks = (r.inputs + 2 * TALL - 1) / (2 * TALL);
  float *packed = aligned(memory);
  bf *all = reinterpret_cast<bf *>(packed + r.taps());
  const float *input = x.at(-s.border, -s.border);
  shared(s.b.threads, s.products, n * n * blocks, 1, [&](int64_t first, int64_t last, int64_t thread) {
    bf *left = all + thread * r.turned(), *right = left + r.input_rows() * r.input_row();
    with_tiles(r.tiles, TALL, [&] {
      for (int64_t from = 0; from < s.rows; from += r.band) {
        const int64_t rows = std::min(r.band, s.rows - from);
        for (int64_t i = 0; i < (rows - 1) * stride + n; i++)
          turned_input(r, input + (from * stride + i) * x.row(), left + i * r.input_row());
        for (int64_t i = 0; i < rows; i++)
          paired_slope(r, slope + ((s.before + from + i) * s.slope_wide + s.before) * o, right + i * r.slope_row());
        for (int64_t unit = first; unit < last; unit++) {
          const int64_t tap = unit / blocks, i = unit % blocks * 2 * TALL, ty = tap / n, tx = tap % n;
          const bf *a = left + ty * r.input_row() + (tx % stride * r.inputs + i) * r.phase + tx / stride;
          for (int64_t p = 0; p < s.panels; p++) {
            const Taps t{a, right + 2 * p * NR, stride * r.input_row(), r.slope_row(), r.phase, 2 * r.lanes, rows,
                         s.columns, packed + ((p * n * n + tap) * r.inputs + i) * NR, from == 0};
            taps_product(r.tiles, t, std::min(2 * TALL, r.inputs - i), o - p * NR > W);
          }
        }
      }
    });
  });
  unpacked(r, packed, dweight);
}

#endif  // __AVX512BF16__

}  // namespace
#endif
