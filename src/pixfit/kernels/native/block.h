// A block of a convolutional prior: a convolution, a norm and a leaky ReLU, with the gradients of all three.

#ifndef PIXFIT_BLOCK_H
#define PIXFIT_BLOCK_H

#include <stdint.h>
#include <string.h>

#include "convolution.h"
#include "norm.h"

namespace {

inline Rows inside(const Field &f) { return {f.at(0, 0), f.height, f.width * f.features, f.row()}; }

inline void block_forward(const PixfitBlock &block, const Field &x, const float *weight, const float *gain,
                          const float *shift, float *map, const Field &y, float *mean, float *rate, float *scratch) {
  const Shapes s(block);
  packed_forward(s, weight, scratch);
  convolve(s, x, scratch, map);
  const auto bend = static_cast<float>(block.slope);
  norm_forward(map, s.rows * s.columns, block.outputs, gain, shift, block.eps, bend, inside(y), mean, rate);
  frame(y, block.reflect);
}

inline void block_backward(const PixfitBlock &block, const float *dy, const Field &x, const float *map,
                           const float *weight, const float *gain, const float *shift, const float *mean,
                           const float *rate, float *dx, float *dweight, float *dgain, float *dshift, float *scratch) {
  const Shapes s(block);
  float *slope = scratch, *packed = slope + s.slope(), *packed_back = packed + s.packed();
  float *back = packed_back + s.packed_back();
  emptied_around(s, slope);
  const int64_t row = s.slope_wide * block.outputs;
  const Rows inner{slope + s.before * (row + block.outputs), s.rows, s.columns * block.outputs, row};
  norm_backward(dy, map, s.rows * s.columns, block.outputs, gain, shift, mean, rate, static_cast<float>(block.slope),
                inner, dgain, dshift);
  taps_back(s, x, slope, packed);
  unpacked(s, packed, dweight);
  if (!dx) return;
  convolve_back(s, slope, weight, packed_back, s.border ? back : dx);
  if (s.border) folded(s, back, dx);
}

}  // namespace
#endif
