// Elementary functions on vectors. Coefficients: weighted least squares towards the least maximal error, in float64.

#ifndef PIXFIT_MATHS_H
#define PIXFIT_MATHS_H

#include <math.h>

#include "vec.h"

namespace {

constexpr float SINCOS_LIMIT = 2.0e5f;  // above it the range reduction loses float32 accuracy

// Sine and cosine from one reduction to [-pi/2, pi/2]: both change sign with every odd multiple of pi.
// Absolute error below 1.5e-7 up to SINCOS_LIMIT.
PIXFIT_INLINE void sincos(vf x, vf &sine, vf &cosine) {
  const float magic = 12582912.0f;  // 1.5 x 2^23: adding it rounds to a whole number, seen in the low bits
  vf shifted = x * 0.318309886183790672f + magic;
  vi odd = as_int(shifted) << 31;
  vf n = shifted - magic;
#if defined(__FMA__) || defined(__aarch64__)
  vf r = x - n * 3.1415927410125732f;
  r = r - n * -8.742277657347586e-08f;
#else
  vf r = x - n * 3.140625f;  // pieces of few bits, whose products with n are exact
  r = r - n * 0.0009675025939941406f;
  r = r - n * 1.509957990978376e-07f;
#endif
  vf s = r * r;
  vf p = s * 2.6000245023e-06f + -1.9806601602e-04f;
  p = p * s + 8.3330171046e-03f;
  p = p * s + -1.6666657089e-01f;
  vf q = s * -2.6076820739e-07f + 2.4761870880e-05f;
  q = q * s + -1.3888403226e-03f;
  q = q * s + 4.1666640708e-02f;
  q = q * s + -4.9999999549e-01f;
  sine = as_float(as_int(r + r * s * p) ^ odd);
  cosine = as_float(as_int(q * s + 1.0f) ^ odd);
}

// Relative error below 2e-7 for x in [-87, 88], and nothing sensible outside.
PIXFIT_INLINE vf exponential_inside(vf x) {
  const float magic = 12582912.0f;
  vf shifted = x * 1.44269504088896341f + magic;
  vf n = shifted - magic;
  vf r = x - n * 0.693359375f;
  r = r - n * -2.12194440e-4f;
  vf p = r * 1.3950489158e-03f + 8.3688895584e-03f;
  p = p * r + 4.1666205829e-02f;
  p = p * r + 1.6666518837e-01f;
  p = p * r + 5.0000000952e-01f;
  vf y = p * r * r + r + 1.0f;
  return as_float(as_int(y) + (as_int(shifted) << 23));  // only the low bits of the whole number survive
}

// The same, clamped outside. Not a number stays so.
PIXFIT_INLINE vf exponential(vf x) {
  x = x < -87.3f ? splat(-87.3f) : x;
  x = x > 88.7f ? splat(88.7f) : x;
  return exponential_inside(x);
}

PIXFIT_INLINE vf logistic(vf x) { return 1.0f / (1.0f + exponential(-x)); }

// The normal distribution function and its density, absolute error about 2e-7: with a = |x| / sqrt 2 the tail is
// exp(-a^2) p(a) / 2, where p is a polynomial for erfcx, close where exp(-a^2) is not small.
PIXFIT_INLINE void normal(vf x, vf &distribution, vf &density) {
  vf a = minimum(absolute(x) * 0.70710678118654752f, splat(9.0f));
  vf e = exponential_inside(-a * a);
  vf p = a * 1.0442292972e-04f + -1.5932622700e-03f;
  p = p * a + 1.0871341870e-02f;
  p = p * a + -4.4679966910e-02f;
  p = p * a + 1.2702909422e-01f;
  p = p * a + -2.7507963722e-01f;
  p = p * a + 4.8923848817e-01f;
  p = p * a + -7.4961105291e-01f;
  p = p * a + 9.9966714337e-01f;
  p = p * a + -1.1283628576e+00f;
  p = p * a + 9.9999986819e-01f;
  vf tail = 0.5f * e * p;
  distribution = x < 0.0f ? tail : 1.0f - tail;
  density = e * 0.39894228040143268f;
}

}  // namespace
#endif
