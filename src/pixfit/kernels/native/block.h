// A block of a convolutional prior: a convolution, a norm and a leaky ReLU, with the gradients of all three.

#ifndef PIXFIT_BLOCK_H
#define PIXFIT_BLOCK_H

#include <stdint.h>
#include <string.h>

#include "convolution.h"
#include "convolution_bf16.h"
#include "norm.h"

namespace {

inline Rows inside(const Field &f) { return {f.at(0, 0), f.height, f.width * f.features, f.row()}; }

// Floats that a block needs on either way.
inline int64_t scratch_floats(const Shapes &s) {
#if defined(__AVX512BF16__)
  if (s.b.products != PIXFIT_FLOAT32) return s.back() + s.slope() + Rounding(s).floats();
#endif
  return s.floats();
}

inline void block_forward(const PixfitBlock &block, const Field &x, const float *weight, const float *gain,
                          const float *shift, float *map, const Field &y, float *mean, float *rate, float *scratch) {
  const Shapes s(block);
#if defined(__AVX512BF16__)
  if (block.products != PIXFIT_FLOAT32) convolve(Rounding(s), x, weight, scratch, map);
  else
#endif
    packed_forward(s, weight, scratch), convolve(s, x, scratch, map);
  const auto bend = static_cast<float>(block.slope);
  norm_forward(map, s.rows * s.columns, block.outputs, gain, shift, block.eps, bend, inside(y), mean, rate);
  frame(y, block.reflect);
}

inline void block_backward(const PixfitBlock &block, const float *dy, const Field &x, const float *map,
                           const float *weight, const float *gain, const float *shift, const float *mean,
                           const float *rate, float *dx, float *dweight, float *dgain, float *dshift, float *scratch) {
  const Shapes s(block);
  float *slope = scratch, *back = slope + s.slope(), *rest = back + s.back();
  float *bordered = s.border ? back : dx;
  emptied_around(s, slope);
  const int64_t row = s.slope_wide * block.outputs;
  const Rows inner{slope + s.before * (row + block.outputs), s.rows, s.columns * block.outputs, row};
  norm_backward(dy, map, s.rows * s.columns, block.outputs, gain, shift, mean, rate, static_cast<float>(block.slope),
                inner, dgain, dshift);
#if defined(__AVX512BF16__)
  if (block.products != PIXFIT_FLOAT32) {
    const Rounding r(s);
    taps_back(r, x, slope, rest, dweight);
    if (dx) convolve_back(r, slope, weight, rest, bordered);
  } else
#endif
  {
    taps_back(s, x, slope, rest);
    unpacked(s, rest, dweight);
    if (dx) convolve_back(s, slope, weight, rest, bordered);
  }
  if (dx && s.border) folded(s, back, dx);
}

}  // namespace
#endif
