// A block of a convolutional prior: a convolution, a norm and a leaky ReLU, with the gradients of all three.

#ifndef PIXFIT_BLOCK_H
#define PIXFIT_BLOCK_H

#include <stdint.h>
#include <string.h>

#include "convolution.h"
#include "norm.h"

namespace {

inline void block_forward(const PixfitBlock &block, const float *x, const float *weight, const float *gain,
                          const float *shift, float *map, float *y, float *mean, float *rate, float *scratch) {
  const Shapes s(block);
  const float *input = x;
  if (s.border) bordered(s, x, scratch), input = scratch;
  float *packed = scratch + s.input();
  packed_forward(s, weight, packed);
  convolve(s, input, packed, map);
  const auto bend = static_cast<float>(block.slope);
  norm_forward(map, s.rows * s.columns, block.outputs, gain, shift, block.eps, bend, y, mean, rate);
}

inline void block_backward(const PixfitBlock &block, const float *dy, const float *x, const float *map,
                           const float *weight, const float *gain, const float *shift, const float *mean,
                           const float *rate, float *dx, float *dweight, float *dgain, float *dshift, float *scratch) {
  const Shapes s(block);
  const int64_t row = s.columns * block.outputs;
  float *input = scratch, *back = input + s.input(), *dmap = back + s.input(), *slope = dmap + s.map();
  float *packed = slope + s.slope(), *packed_back = packed + s.packed();
  norm_backward(dy, map, s.rows * s.columns, block.outputs, gain, shift, mean, rate, static_cast<float>(block.slope),
                dmap, dgain, dshift);
  memset(slope, 0, sizeof(float) * s.slope());
  for (int64_t y = 0; y < s.rows; y++)
    memcpy(slope + ((s.before + y) * s.slope_wide + s.before) * block.outputs, dmap + y * row, sizeof(float) * row);
  if (s.border) bordered(s, x, input);
  taps_back(s, s.border ? input : x, slope, packed);
  unpacked(s, packed, dweight);
  if (!dx) return;
  convolve_back(s, slope, weight, packed_back, s.border ? back : dx);
  if (s.border) folded(s, back, dx);
}

}  // namespace
#endif
