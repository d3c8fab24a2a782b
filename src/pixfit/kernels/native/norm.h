// A norm by the statistics of one map, with a leaky ReLU behind it, and its gradient.

#ifndef PIXFIT_NORM_H
#define PIXFIT_NORM_H

#include <math.h>
#include <stdint.h>

#include <algorithm>
#include <numeric>
#include <vector>

#include "vec.h"

namespace {

constexpr int GROUP = 4;             // vectors that are summed side by side
constexpr int64_t STRETCH = 1 << 15;  // floats that are summed in single precision before they join the total: 128 kB

// Sums read a map as one long row of floats. Whatever the number of features is, their pattern over lanes comes again
// after so many vectors, a period, so that no lane is ever idle and one loop serves every number.
struct Pattern {
  int64_t features, period;  // floats; a multiple of GROUP * W
  explicit Pattern(int64_t k) : features(k), period(GROUP * k * W / std::gcd(k, static_cast<int64_t>(W))) {}

  // What every lane of a period has of one number a feature.
  template <typename T>
  void spread(const T *each, float *lanes) const {
    for (int64_t i = 0; i < period; i++) lanes[i] = static_cast<float>(each[i % features]);
  }
};

// totals[s][feature] = sum over all floats i of the map of term(i, lane)[s], where lane is i's place in the period:
// `vectors(i, lane, out)` gives S vectors from float i on, `single(i, lane, out)` S floats.
template <int S, typename Vectors, typename Single>
inline void sums_by_feature(const Pattern &pattern, int64_t floats, Vectors vectors, Single single,
                            std::vector<double> (&totals)[S]) {
  const int64_t period = pattern.period, whole = floats / period * period;
  const int64_t block = std::max<int64_t>(1, STRETCH / period) * period;
  for (auto &total : totals) total.assign(pattern.features, 0.0);
  for (int64_t from = 0; from < whole; from += block) {
    const int64_t to = std::min(from + block, whole);
    for (int64_t lane = 0; lane < period; lane += GROUP * W) {
      vf c[S][GROUP] = {};
      for (int64_t i = from + lane; i < to; i += period)
#pragma GCC unroll 4
        for (int g = 0; g < GROUP; g++) {
          vf terms[S];
          vectors(i + g * W, lane + g * W, terms);
          for (int s = 0; s < S; s++) c[s][g] += terms[s];
        }
      for (int s = 0; s < S; s++) {
        float lanes[GROUP * W];
        for (int g = 0; g < GROUP; g++) store(lanes + g * W, c[s][g]);
        int64_t k = lane % pattern.features;
        for (int j = 0; j < GROUP * W; j++) {
          totals[s][k] += lanes[j];
          k = k + 1 == pattern.features ? 0 : k + 1;
        }
      }
    }
  }
  for (int64_t i = whole; i < floats; i++) {
    float terms[S];
    single(i, i - whole, terms);
    for (int s = 0; s < S; s++) totals[s][(i - whole) % pattern.features] += terms[s];
  }
}

PIXFIT_INLINE vf leaky(vf z, float slope) { return z > vf{} ? z : z * slope; }

// Where the rows of a map go, of `run` floats each, `step` from one to the next.
struct Rows {
  float *first;
  int64_t count, run, step;
};

// vectors(i, lane) to every place of the rows, where i counts floats and lane is the place in the period, which begins
// with each row; single(i, lane) where a row's rest is less than a vector.
template <typename Vectors, typename Single>
inline void row_by_row(const Rows &rows, int64_t period, Vectors vectors, Single single) {
  const int64_t whole = rows.run / W * W;
  for (int64_t r = 0; r < rows.count; r++) {
    float *to = rows.first + r * rows.step;
    const int64_t start = r * rows.run;
    for (int64_t from = 0; from < whole; from += period)
      for (int64_t lane = 0, most = std::min(period, whole - from); lane < most; lane += W)
        store(to + from + lane, vectors(start + from + lane, lane));
    for (int64_t j = whole; j < rows.run; j++) to[j] = single(start + j, j % period);
  }
}

// y = leaky(gain * (x - mean) * rate + shift), where rate is 1 / sqrt(variance + eps); x is (points, features).
inline void norm_forward(const float *x, int64_t points, int64_t features, const float *gain, const float *shift,
                         double eps, float slope, const Rows &y, float *mean, float *rate) {
  const Pattern pattern(features);
  const int64_t floats = points * features, period = pattern.period;
  std::vector<float> table(2 * period);
  float *a = table.data(), *b = a + period, *first = a;
  pattern.spread(x, first);  // sums are taken about the first point, so that large means cost no digits
  std::vector<double> totals[2];
  sums_by_feature<2>(
      pattern, floats,
      [&](int64_t i, int64_t lane, vf *out) {
        const vf d = load(x + i) - load(first + lane);
        out[0] = d, out[1] = d * d;
      },
      [&](int64_t i, int64_t lane, float *out) {
        const float d = x[i] - first[lane];
        out[0] = d, out[1] = d * d;
      },
      totals);
  std::vector<double> factor(features), offset(features);
  for (int64_t k = 0; k < features; k++) {
    const double away = totals[0][k] / points, variance = std::max(0.0, totals[1][k] / points - away * away);
    const double m = x[k] + away, r = 1.0 / sqrt(variance + eps);
    mean[k] = static_cast<float>(m), rate[k] = static_cast<float>(r);
    factor[k] = gain[k] * r, offset[k] = shift[k] - m * factor[k];
  }
  pattern.spread(factor.data(), a), pattern.spread(offset.data(), b);
  row_by_row(
      y, period, [&](int64_t i, int64_t lane) { return leaky(load(x + i) * load(a + lane) + load(b + lane), slope); },
      [&](int64_t i, int64_t lane) {
        const float z = x[i] * a[lane] + b[lane];
        return z > 0.0f ? z : z * slope;
      });
}

// From the slope dy of the result those of x, gain and shift.
inline void norm_backward(const float *dy, const float *x, int64_t points, int64_t features, const float *gain,
                          const float *shift, const float *mean, const float *rate, float slope, const Rows &dx,
                          float *dgain, float *dshift) {
  const Pattern pattern(features);
  const int64_t floats = points * features, period = pattern.period;
  std::vector<float> table(5 * period);
  float *a = table.data(), *b = a + period, *centre = b + period, *inner = centre + period, *outer = inner + period;
  std::vector<double> factor(features), offset(features);
  for (int64_t k = 0; k < features; k++) {
    factor[k] = static_cast<double>(gain[k]) * rate[k];
    offset[k] = shift[k] - mean[k] * factor[k];
  }
  pattern.spread(factor.data(), a), pattern.spread(offset.data(), b), pattern.spread(mean, centre);
  auto bent = [&](int64_t i, int64_t lane) {
    const vf z = load(x + i) * load(a + lane) + load(b + lane), d = load(dy + i);
    return z > vf{} ? d : d * slope;
  };
  auto bent_one = [&](int64_t i, int64_t lane) { return x[i] * a[lane] + b[lane] > 0.0f ? dy[i] : dy[i] * slope; };
  std::vector<double> totals[2];
  sums_by_feature<2>(
      pattern, floats,
      [&](int64_t i, int64_t lane, vf *out) {
        out[0] = bent(i, lane), out[1] = out[0] * (load(x + i) - load(centre + lane));
      },
      [&](int64_t i, int64_t lane, float *out) {
        out[0] = bent_one(i, lane), out[1] = out[0] * (x[i] - centre[lane]);
      },
      totals);
  // dx = gain rate (d - mean(d) - n mean(d n)), with n = (x - mean) rate; written as a d - inner (x - mean) - outer.
  for (int64_t k = 0; k < features; k++) {
    dshift[k] = static_cast<float>(totals[0][k]), dgain[k] = static_cast<float>(totals[1][k] * rate[k]);
    offset[k] = factor[k] * totals[0][k] / points;
  }
  pattern.spread(offset.data(), outer);
  for (int64_t k = 0; k < features; k++) offset[k] = factor[k] * rate[k] * rate[k] * totals[1][k] / points;
  pattern.spread(offset.data(), inner);
  row_by_row(
      dx, period,
      [&](int64_t i, int64_t lane) {
        return load(a + lane) * bent(i, lane) - load(inner + lane) * (load(x + i) - load(centre + lane)) -
               load(outer + lane);
      },
      [&](int64_t i, int64_t lane) {
        return a[lane] * bent_one(i, lane) - inner[lane] * (x[i] - centre[lane]) - outer[lane];
      });
}

}  // namespace
#endif
