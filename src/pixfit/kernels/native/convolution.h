// Convolutions of one map and the gradients of their inputs and weights. A map is (height, width, features) with the
// features together, as torch's channels-last order has it. The way forward and the gradient of the input are the same
// loop over runs of memory that lie together: the taps of one row of a kernel lie beside each other, and their features.

#ifndef PIXFIT_CONVOLUTION_H
#define PIXFIT_CONVOLUTION_H

#include <stdint.h>
#include <string.h>

#include <algorithm>

#include "api.h"
#include "threads.h"
#include "vec.h"

namespace {

constexpr int ROWS = W == 16 ? 12 : MR;  // of a register tile: 12 x 2 accumulators are faster than products' 8 x 2
constexpr int64_t WORTH = 1 << 25;  // multiply-adds that are worth a thread: some times what it takes to begin one

// Runs work(first, last, thread) on parts of [0, count) that are multiples of `grain`, on as many threads as the work is
// worth.
// Whatever is summed is summed within one part, so that numbers do not depend on how many there are.
template <typename Work>
inline void shared(int64_t threads, int64_t products, int64_t count, int64_t grain, Work work) {
  const int64_t pieces = (count + grain - 1) / grain, most = std::min({threads, products / WORTH, pieces});
  if (most <= 1) return work(0, count, 0);
  side_by_side(most, [&](int64_t thread, int64_t all) {
    const int64_t first = pieces * thread / all * grain, last = pieces * (thread + 1) / all * grain;
    work(first, std::min(last, count), thread);
  });
}

// The first `count` lanes of some vectors.
template <int V>
PIXFIT_INLINE void put(const vf (&c)[V], float *to, int64_t count) {
  if (count == V * W) {
    for (int v = 0; v < V; v++) store(to + v * W, c[v]);
    return;
  }
  float lanes[V * W];
  for (int v = 0; v < V; v++) store(lanes + v * W, c[v]);
  for (int64_t j = 0; j < count; j++) to[j] = lanes[j];
}

// out[R pixels][lanes < count] = sum over `rows` runs of A (R pixels, `pixel` floats apart) times B [run][NR].
template <int R, int V>
inline void pixels_tile(const float *a, ptrdiff_t pixel, ptrdiff_t row, int64_t rows, int64_t run, const float *b,
                        float *out, ptrdiff_t out_step, int64_t count) {
  vf c[R][V];
#pragma GCC unroll 16
  for (int r = 0; r < R; r++)
    for (int v = 0; v < V; v++) c[r][v] = vf{};
  for (int64_t y = 0; y < rows; y++) {
    // A pointer and the distances 1, 2 and 3 reach four pixels; a pointer for each would not stay in registers.
    constexpr int FOURS = (R + 3) / 4;
    const float *p[FOURS];
    for (int f = 0; f < FOURS; f++) p[f] = a + y * row + 4 * f * pixel;
    for (int64_t i = 0; i < run; i++, b += NR) {
      vf right[V];
      for (int v = 0; v < V; v++) right[v] = load(b + v * W);
#pragma GCC unroll 16
      for (int r = 0; r < R; r++) {
        const vf x = splat(p[r / 4][r % 4 * pixel]);
        for (int v = 0; v < V; v++) c[r][v] += x * right[v];
      }
      for (int f = 0; f < FOURS; f++) p[f]++;
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < R; r++) put(c[r], out + r * out_step, count);
}

template <int V>
inline void pixels_row(int64_t pixels, const float *a, ptrdiff_t pixel, ptrdiff_t row, int64_t rows, int64_t run,
                       const float *b, float *out, ptrdiff_t out_step, int64_t count) {
  int64_t x = 0;
  for (; x + ROWS <= pixels; x += ROWS)
    pixels_tile<ROWS, V>(a + x * pixel, pixel, row, rows, run, b, out + x * out_step, out_step, count);
  for (; x + 4 <= pixels; x += 4)
    pixels_tile<4, V>(a + x * pixel, pixel, row, rows, run, b, out + x * out_step, out_step, count);
  for (; x + 2 <= pixels; x += 2)
    pixels_tile<2, V>(a + x * pixel, pixel, row, rows, run, b, out + x * out_step, out_step, count);
  if (x < pixels) pixels_tile<1, V>(a + x * pixel, pixel, row, rows, run, b, out + x * out_step, out_step, count);
}

// The same for few lanes, where a panel would be nearly empty: vectors along the runs, B [lane][rows][run], of runs that
// are whole vectors and at least FEW_PIXELS pixels.
constexpr int FEW = 4;
constexpr int FEW_PIXELS = W / FEW;

inline void few_lanes_row(int64_t pixels, const float *a, ptrdiff_t pixel, ptrdiff_t row, int64_t rows, int64_t run,
                          const float *b, float *out, ptrdiff_t out_step, int64_t count) {
  for (int64_t at = 0; at < pixels; at += FEW_PIXELS) {
    const int64_t x = std::min<int64_t>(at, pixels - FEW_PIXELS);  // the last ones twice, where they do not divide
    vf c[W] = {};
    for (int64_t y = 0; y < rows; y++) {
      const float *p = a + x * pixel + y * row, *q = b + y * run;
      for (int64_t i = 0; i < run; i += W) {
        vf right[FEW];
        for (int j = 0; j < FEW; j++) right[j] = load(q + j * rows * run + i);
#pragma GCC unroll 4
        for (int r = 0; r < FEW_PIXELS; r++) {
          const vf left = load(p + r * pixel + i);
          for (int j = 0; j < FEW; j++) c[r * FEW + j] += left * right[j];
        }
      }
    }
    float lanes[W];
    store(lanes, sums(c));
    for (int r = 0; r < FEW_PIXELS; r++)
      for (int64_t j = 0; j < count; j++) out[(x + r) * out_step + j] = lanes[r * FEW + j];
  }
}

// gradient[R inputs][NR] += sum over pixels of a[pixel][input] * b[pixel][lane].
template <int R, int V>
inline void taps_tile(const float *a, ptrdiff_t a_step, const float *b, ptrdiff_t b_step, int64_t pixels, float *out) {
  vf c[R][V];
#pragma GCC unroll 16
  for (int r = 0; r < R; r++)
    for (int v = 0; v < V; v++) c[r][v] = load(out + r * NR + v * W);
#pragma GCC unroll 2
  for (int64_t t = 0; t < pixels; t++, a += a_step, b += b_step) {
    vf right[V];
    for (int v = 0; v < V; v++) right[v] = load(b + v * W);
#pragma GCC unroll 16
    for (int r = 0; r < R; r++) {
      const vf x = splat(a[r]);
      for (int v = 0; v < V; v++) c[r][v] += x * right[v];
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < R; r++)
    for (int v = 0; v < V; v++) store(out + r * NR + v * W, c[r][v]);
}

template <int V>
inline void taps_rows(int64_t inputs, const float *a, ptrdiff_t a_step, const float *b, ptrdiff_t b_step,
                      int64_t pixels, float *out) {
  int64_t i = 0;
  for (; i + ROWS <= inputs; i += ROWS) taps_tile<ROWS, V>(a + i, a_step, b, b_step, pixels, out + i * NR);
  for (; i + 4 <= inputs; i += 4) taps_tile<4, V>(a + i, a_step, b, b_step, pixels, out + i * NR);
  for (; i + 2 <= inputs; i += 2) taps_tile<2, V>(a + i, a_step, b, b_step, pixels, out + i * NR);
  if (i < inputs) taps_tile<1, V>(a + i, a_step, b, b_step, pixels, out + i * NR);
}

inline bool sound(const PixfitBlock *b) {
  if (!b || b->height < 1 || b->width < 1 || b->inputs < 1 || b->outputs < 1 || b->stride < 1) return false;
  if (b->threads < 1) return false;
  const int64_t border = (b->kernel - 1) / 2;
  return b->kernel >= 1 && b->kernel % 2 == 1 && (!b->reflect || std::min(b->height, b->width) > border);
}

// Sizes of all that one block needs. The slope of the convolution lies in a map of its own with zeros around it, so that
// no pixel is special: `before` on the left and above, and what is missing on the right and below.
struct Shapes {
  const PixfitBlock &b;
  int64_t border, high, wide;                  // around the input; the input with it
  int64_t rows, columns;                       // of the output
  int64_t before, slope_high, slope_wide;      // before: taps of a kernel's side that meet one pixel, at most, less one
  int64_t panels, back_panels;
  int64_t products;                            // multiply-adds of the convolution
  explicit Shapes(const PixfitBlock &block) : b(block) {
    border = (b.kernel - 1) / 2, high = b.height + 2 * border, wide = b.width + 2 * border;
    rows = (high - b.kernel) / b.stride + 1, columns = (wide - b.kernel) / b.stride + 1;
    before = (b.kernel - 1) / b.stride;
    slope_high = before + std::max(rows, (high + b.stride - 1) / b.stride);
    slope_wide = before + std::max(columns, (wide + b.stride - 1) / b.stride);
    panels = (b.outputs + NR - 1) / NR, back_panels = (b.inputs + NR - 1) / NR;
    products = rows * columns * b.outputs * b.inputs * b.kernel * b.kernel;
  }
  int64_t back() const { return border ? high * wide * b.inputs : 0; }  // the gradient of the bordered input
  int64_t map() const { return rows * columns * b.outputs; }
  int64_t slope() const { return slope_high * slope_wide * b.outputs + NR; }  // a vector at the end reaches further
  int64_t packed() const { return panels * b.kernel * b.kernel * b.inputs * NR; }
  int64_t packed_back() const { return b.kernel * b.kernel * b.outputs * NR; }
  int64_t floats() const { return back() + slope() + std::max(packed(), packed_back()); }
};

inline int64_t mirrored(int64_t i, int64_t n) { return i < 0 ? -i : i >= n ? 2 * n - 2 - i : i; }

// A map with room for a border around it, wide enough for every convolution that reads it.
struct Field {
  int64_t height = 0, width = 0, features = 0, edge = 0;
  float *memory = nullptr;
  int64_t row() const { return (width + 2 * edge) * features; }  // floats from one row to the next
  int64_t floats() const { return (height + 2 * edge) * row(); }
  float *at(int64_t y, int64_t x) const { return memory + (y + edge) * row() + (x + edge) * features; }
};

// Makes the border of what is inside: zeros, or reflected about the outermost pixels.
inline void frame(const Field &f, bool reflect) {
  const size_t pixel = sizeof(float) * f.features, row = sizeof(float) * f.row();
  for (int64_t y = 0; f.edge && y < f.height; y++)
    for (int64_t i = 1; i <= f.edge; i++) {
      float *left = f.at(y, -i), *right = f.at(y, f.width - 1 + i);
      if (reflect) memcpy(left, f.at(y, i), pixel), memcpy(right, f.at(y, f.width - 1 - i), pixel);
      else memset(left, 0, pixel), memset(right, 0, pixel);
    }
  for (int64_t i = 1; i <= f.edge; i++) {
    float *above = f.at(-i, -f.edge), *below = f.at(f.height - 1 + i, -f.edge);
    if (reflect) memcpy(above, f.at(i, -f.edge), row), memcpy(below, f.at(f.height - 1 - i, -f.edge), row);
    else memset(above, 0, row), memset(below, 0, row);
  }
}

// The zeros around the slope of the output.
inline void emptied_around(const Shapes &s, float *slope) {
  const int64_t o = s.b.outputs, row = s.slope_wide * o, left = s.before * o, right = left + s.columns * o;
  const int64_t first = s.before * row, last = first + s.rows * row;
  memset(slope, 0, sizeof(float) * first);
  for (int64_t at = first; at < last; at += row)
    memset(slope + at, 0, sizeof(float) * left), memset(slope + at + right, 0, sizeof(float) * (row - right));
  memset(slope + last, 0, sizeof(float) * (s.slope() - last));
}

// What the border was made of gets its gradient.
inline void folded(const Shapes &s, const float *from, float *dx) {
  const int64_t k = s.b.inputs;
  for (int64_t y = 0; y < s.b.height; y++)
    memcpy(dx + y * s.b.width * k, from + ((y + s.border) * s.wide + s.border) * k, sizeof(float) * s.b.width * k);
  if (!s.b.reflect || !s.border) return;
  auto add = [&](int64_t y, int64_t x) {
    const float *one = from + (y * s.wide + x) * k;
    float *to = dx + (mirrored(y - s.border, s.b.height) * s.b.width + mirrored(x - s.border, s.b.width)) * k;
    for (int64_t i = 0; i < k; i++) to[i] += one[i];
  };
  for (int64_t y = 0; y < s.high; y++) {
    const bool outside = y < s.border || y >= s.border + s.b.height;
    for (int64_t x = 0; x < s.wide; x++)
      if (outside || x < s.border || x >= s.border + s.b.width) add(y, x);
  }
}

// weight (outputs, inputs, kernel, kernel) as [panel][row][column][input][NR outputs].
inline void packed_forward(const Shapes &s, const float *weight, float *out) {
  const int64_t n = s.b.kernel * s.b.kernel, k = s.b.inputs;
  for (int64_t p = 0; p < s.panels; p++)
    for (int64_t tap = 0; tap < n; tap++)
      for (int64_t i = 0; i < k; i++, out += NR)
        for (int64_t j = 0; j < NR; j++) {
          const int64_t o = p * NR + j;
          out[j] = o < s.b.outputs ? weight[(o * k + i) * n + tap] : 0.0f;
        }
}

inline void unpacked(const Shapes &s, const float *packed, float *weight) {
  const int64_t n = s.b.kernel * s.b.kernel, k = s.b.inputs;
  for (int64_t o = 0; o < s.b.outputs; o++)
    for (int64_t i = 0; i < k; i++)
      for (int64_t tap = 0; tap < n; tap++)
        weight[(o * k + i) * n + tap] = packed[((o / NR * n + tap) * k + i) * NR + o % NR];
}

inline void convolve(const Shapes &s, const Field &x, const float *packed, float *out) {
  const int64_t k = s.b.inputs, run = s.b.kernel * k, row = x.row(), pixel = s.b.stride * k;
  const float *input = x.at(-s.border, -s.border);
  const int64_t panel = s.b.kernel * run * NR;
  shared(s.b.threads, s.products, s.rows, 1, [&](int64_t first, int64_t last, int64_t) {
    for (int64_t p = 0; p < s.panels; p++) {
      const int64_t count = std::min<int64_t>(NR, s.b.outputs - p * NR);
      for (int64_t y = first; y < last; y++) {
        const float *a = input + y * s.b.stride * row;
        float *to = out + y * s.columns * s.b.outputs + p * NR;
        if (count > W)
          pixels_row<2>(s.columns, a, pixel, row, s.b.kernel, run, packed + p * panel, to, s.b.outputs, count);
        else
          pixels_row<1>(s.columns, a, pixel, row, s.b.kernel, run, packed + p * panel, to, s.b.outputs, count);
      }
    }
  });
}

// The gradient of the bordered input, of the slope of the output in its zeros: pixels of one parity of row and column
// are a convolution each, of the taps that meet them.
inline void convolve_back(const Shapes &s, const float *slope, const float *weight, float *packed, float *out) {
  const int64_t n = s.b.kernel, k = s.b.inputs, o = s.b.outputs, row = s.slope_wide * o;
  for (int64_t py = 0; py < std::min(s.b.stride, s.high); py++)
    for (int64_t px = 0; px < std::min(s.b.stride, s.wide); px++) {
      const int64_t down = py < n ? (n - py + s.b.stride - 1) / s.b.stride : 0;
      const int64_t right = px < n ? (n - px + s.b.stride - 1) / s.b.stride : 0;
      const int64_t columns = (s.wide - px + s.b.stride - 1) / s.b.stride, run = right * o;
      for (int64_t p = 0; p < s.back_panels; p++) {
        const int64_t count = std::min<int64_t>(NR, k - p * NR);
        const bool few = count <= FEW && run && run % W == 0 && columns >= FEW_PIXELS;
        const int64_t lanes = few ? FEW : NR;
        float *b = packed;  // taps from the last to the first, as the slope has them from left to right
        for (int64_t ty = down - 1; ty >= 0; ty--)
          for (int64_t tx = right - 1; tx >= 0; tx--)
            for (int64_t c = 0; c < o; c++, b += few ? 1 : NR)
              for (int64_t j = 0; j < lanes; j++) {
                const int64_t at = ((c * k + p * NR + j) * n + py + ty * s.b.stride) * n + px + tx * s.b.stride;
                b[few ? j * down * run : j] = j < count ? weight[at] : 0.0f;
              }
        const int64_t rows = (s.high - py + s.b.stride - 1) / s.b.stride;
        shared(s.b.threads, rows * columns * down * run * count, rows, 1, [&](int64_t first, int64_t last, int64_t) {
          for (int64_t y = first; y < last; y++) {
            const float *a = slope + (s.before + 1 - down + y) * row + (s.before + 1 - right) * o;
            float *to = out + ((py + y * s.b.stride) * s.wide + px) * k + p * NR;
            if (few) few_lanes_row(columns, a, o, row, down, run, packed, to, s.b.stride * k, count);
            else if (count > W) pixels_row<2>(columns, a, o, row, down, run, packed, to, s.b.stride * k, count);
            else pixels_row<1>(columns, a, o, row, down, run, packed, to, s.b.stride * k, count);
          }
        });
      }
    }
}

// The gradient of the weights, as [panel][row][column][input][NR]: a row of pixels at a time, so that it stays near.
inline void taps_back(const Shapes &s, const Field &x, const float *slope, float *packed) {
  const int64_t n = s.b.kernel, k = s.b.inputs, o = s.b.outputs, row = x.row();
  const float *input = x.at(-s.border, -s.border);
  memset(packed, 0, sizeof(float) * s.packed());
  shared(s.b.threads, s.products, n * k, ROWS, [&](int64_t first, int64_t last, int64_t) {
    for (int64_t y = 0; y < s.rows; y++)
      for (int64_t p = 0; p < s.panels; p++) {
        const float *b = slope + ((s.before + y) * s.slope_wide + s.before) * o + p * NR;
        const bool two = o - p * NR > W;  // lanes beyond the outputs see the next pixel, and are left out at the end
        for (int64_t ty = 0; ty < n; ty++) {
          const float *a = input + (y * s.b.stride + ty) * row + first;
          float *out = packed + ((p * n + ty) * n * k + first) * NR;
          if (two) taps_rows<2>(last - first, a, s.b.stride * k, b, o, s.columns, out);
          else taps_rows<1>(last - first, a, s.b.stride * k, b, o, s.columns, out);
        }
      }
  });
}

}  // namespace
#endif
