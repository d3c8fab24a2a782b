// A whole hourglass: the maps of every level on the way down and up, the colours, and the gradients of all its weights.
// Agrees with the module in src/pixfit/models/conv_networks.py, whose parameters come here in its own order.

#ifndef PIXFIT_HOURGLASS_H
#define PIXFIT_HOURGLASS_H

#include "block.h"
#include "maths.h"

namespace {

// A block of an hourglass: its settings, where its numbers are, and what it made of its input.
struct Part {
  PixfitBlock block{};
  int64_t weight = -1;  // number of its first parameter: weight, bias, gain, shift
  float *map = nullptr, *mean = nullptr, *rate = nullptr;
  Field out;
};

struct Stage {
  int64_t height, width, features, skip, below;  // features: of the input; below: of the maps that come up
  int64_t small_height, small_width;
  bool has_skip = false, has_mix = false;
  Part across, halve, deepen, merge, mix;
  int64_t join = -1;  // number of the gain of the norm over what is put side by side
  Field joined;
  float *side = nullptr, *mean = nullptr, *rate = nullptr, *across_slope = nullptr;
};

// Where everything lies in one piece of memory that the caller keeps from the way forward to the way back.
class Hourglass {
 public:
  std::vector<Stage> stages;
  Field code;
  int64_t parameters = 0;
  PixfitBlock colours{};        // without a norm
  int64_t colours_weight = -1;  // number of its weight; its bias comes next
  float *pixels = nullptr;
  float *scratch = nullptr, *left = nullptr, *right = nullptr;  // left and right: gradients of maps, by turns

  Hourglass(const PixfitHourglass &net, float *memory) : memory_(memory) {
    int64_t height = net.height, width = net.width, features = net.inputs, work = 0, widest = 0;
    for (const int64_t kernel : {net.down_kernel, net.up_kernel, net.skip_kernel})
      if (kernel < 1 || kernel % 2 == 0) throw PIXFIT_BAD_ARGUMENT;
    const int64_t down_edge = net.down_kernel / 2, in_edge = std::max(down_edge, net.skip_kernel / 2);
    auto part = [&](int64_t inputs, int64_t outputs, int64_t kernel, int64_t stride, int64_t h, int64_t w,
                    int64_t edge) {
      Part p;
      p.block = {h, w, inputs, outputs, kernel, stride, net.reflect, net.threads, net.products, net.eps, net.slope};
      if (!sound(&p.block)) throw PIXFIT_BAD_ARGUMENT;
      const Shapes s(p.block);
      work = std::max(work, scratch_floats(s)), widest = std::max({widest, s.map(), h * w * inputs});
      p.weight = parameters, parameters += 4;
      p.map = take(s.map()), p.out = field(s.rows, s.columns, outputs, edge);
      p.mean = take(outputs), p.rate = take(outputs);
      return p;
    };
    code = field(height, width, features, in_edge);
    for (int64_t i = 0; i < net.level_count; i++) {
      const PixfitLevelOfMaps &level = net.levels[i];
      if (level.down < 1 || level.up < 1 || level.skip < 0) throw PIXFIT_BAD_ARGUMENT;
      Stage s;
      s.height = height, s.width = width, s.features = features, s.skip = level.skip;
      s.below = i + 1 < net.level_count ? net.levels[i + 1].up : level.down;
      s.small_height = (height + 1) / 2, s.small_width = (width + 1) / 2;
      s.has_skip = level.skip > 0, s.has_mix = net.mix;
      const int64_t side = s.skip + s.below, pixels = height * width;
      const bool last = i + 1 == net.level_count;
      if (s.has_skip) s.across = part(features, s.skip, net.skip_kernel, 1, height, width, 0);
      s.halve = part(features, level.down, net.down_kernel, 2, height, width, down_edge);
      s.deepen = part(level.down, level.down, net.down_kernel, 1, s.small_height, s.small_width, last ? 0 : in_edge);
      s.join = parameters, parameters += 2;
      s.side = take(pixels * side), s.joined = field(height, width, side, net.up_kernel / 2);
      s.mean = take(side), s.rate = take(side);
      s.across_slope = take(pixels * s.skip);
      widest = std::max({widest, pixels * side, (s.small_height + 1) * s.small_width * s.below});
      s.merge = part(side, level.up, net.up_kernel, 1, height, width, 0);
      if (s.has_mix) s.mix = part(level.up, level.up, 1, 1, height, width, 0);
      stages.push_back(s);
      height = s.small_height, width = s.small_width, features = level.down;
    }
    colours = {net.height, net.width, net.levels[0].up, net.outputs, 1, 1, 0, net.threads, 0, 0.0, 1.0};
    if (!sound(&colours)) throw PIXFIT_BAD_ARGUMENT;
    const Shapes s(colours);
    work = std::max(work, s.floats()), pixels = take(s.map());
    colours_weight = parameters, parameters += 2;
    scratch = take(work), left = take(widest), right = take(widest);
  }

  int64_t floats() const { return at_; }

 private:
  float *memory_;
  int64_t at_ = 0;
  float *take(int64_t n) {
    float *found = memory_ ? memory_ + at_ : nullptr;
    at_ += round_up(n, 16);
    return found;
  }
  Field field(int64_t height, int64_t width, int64_t features, int64_t edge) {
    Field f{height, width, features, edge, nullptr};
    f.memory = take(f.floats());
    return f;
  }
};

inline void part_forward(const Part &p, const Field &x, const float *const *parameters, float *scratch) {
  const float *const *own = parameters + p.weight;
  block_forward(p.block, x, own[0], own[2], own[3], p.map, p.out, p.mean, p.rate, scratch);
}

inline void part_backward(const Part &p, const float *dy, const Field &x, const float *const *parameters, float *dx,
                          float *const *gradients, float *scratch) {
  const float *const *own = parameters + p.weight;
  float *const *to = gradients + p.weight;
  memset(to[1], 0, sizeof(float) * p.block.outputs);  // the norm takes a bias away
  block_backward(p.block, dy, x, p.map, own[0], own[2], own[3], p.mean, p.rate, dx, to[0], to[2], to[3], scratch);
}

// The two rows or columns that one of a doubled map lies between, and their shares.
struct Between {
  int64_t first, second;
  float share, rest;
  Between(int64_t i, int64_t n, bool nearest) : first(i / 2), second(i / 2), share(1.0f), rest(0.0f) {
    if (nearest) return;
    second = i % 2 ? std::min(first + 1, n - 1) : std::max<int64_t>(first - 1, 0);
    share = 0.75f, rest = 0.25f;
  }
};

// A map of half the size beside what came across: the features of both, pixel by pixel.
inline void doubled(const Stage &s, bool nearest, const float *small, float *row) {
  const int64_t k = s.below, side = s.skip + k, n = s.small_width * k;
  for (int64_t y = 0; y < s.height; y++) {
    const Between v(y, s.small_height, nearest);
    const float *a = small + v.first * n, *b = small + v.second * n;
    for (int64_t i = 0; i < n; i++) row[i] = v.share * a[i] + v.rest * b[i];
    for (int64_t x = 0; x < s.width; x++) {
      const Between h(x, s.small_width, nearest);
      const float *one = row + h.first * k, *other = row + h.second * k;
      float *to = s.side + (y * s.width + x) * side;
      if (s.skip) memcpy(to, s.across.out.at(y, x), sizeof(float) * s.skip);
      to += s.skip;
      for (int64_t i = 0; i < k; i++) to[i] = h.share * one[i] + h.rest * other[i];
    }
  }
}

inline void doubled_back(const Stage &s, bool nearest, const float *slope, float *small, float *row) {
  const int64_t k = s.below, side = s.skip + k, n = s.small_width * k;
  memset(small, 0, sizeof(float) * s.small_height * n);
  for (int64_t y = 0; y < s.height; y++) {
    const Between v(y, s.small_height, nearest);
    memset(row, 0, sizeof(float) * n);
    for (int64_t x = 0; x < s.width; x++) {
      const Between h(x, s.small_width, nearest);
      const float *from = slope + (y * s.width + x) * side;
      if (s.skip) memcpy(s.across_slope + (y * s.width + x) * s.skip, from, sizeof(float) * s.skip);
      from += s.skip;
      float *one = row + h.first * k, *other = row + h.second * k;
      for (int64_t i = 0; i < k; i++) one[i] += h.share * from[i];
      if (!nearest)
        for (int64_t i = 0; i < k; i++) other[i] += h.rest * from[i];
    }
    float *a = small + v.first * n, *b = small + v.second * n;
    for (int64_t i = 0; i < n; i++) a[i] += v.share * row[i];
    if (!nearest)
      for (int64_t i = 0; i < n; i++) b[i] += v.rest * row[i];
  }
}

// pixels = bend(x weight + bias), where bend is a sigmoid or nothing.
inline void colours_forward(const PixfitHourglass &net, const Hourglass &all, const Field &x,
                            const float *const *parameters) {
  const Shapes s(all.colours);
  const float *bias = parameters[all.colours_weight + 1];
  packed_forward(s, parameters[all.colours_weight], all.scratch);
  convolve(s, x, all.scratch, all.pixels);
  const Pattern pattern(net.outputs);
  const int64_t floats = s.map();
  std::vector<float> lanes(pattern.period);
  pattern.spread(bias, lanes.data());
  row_by_row(
      {all.pixels, 1, floats, floats}, pattern.period,
      [&](int64_t i, int64_t lane) {
        const vf z = load(all.pixels + i) + load(lanes.data() + lane);
        return net.sigmoid ? logistic(z) : z;
      },
      [&](int64_t i, int64_t lane) {
        const float z = all.pixels[i] + lanes[lane];
        return net.sigmoid ? 1.0f / (1.0f + expf(-z)) : z;
      });
}

inline void colours_backward(const PixfitHourglass &net, const Hourglass &all, const float *dy, const Field &x,
                             const float *const *parameters, float *dx, float *const *gradients) {
  const Shapes s(all.colours);
  const int64_t floats = s.map();
  float *slope = all.scratch, *packed = slope + s.slope();
  for (int64_t i = 0; i < floats; i++) {
    const float y = all.pixels[i];
    slope[i] = net.sigmoid ? dy[i] * y * (1.0f - y) : dy[i];
  }
  memset(slope + floats, 0, sizeof(float) * (s.slope() - floats));
  std::vector<double> totals[1];
  sums_by_feature<1>(
      Pattern(net.outputs), floats, [&](int64_t i, int64_t, vf *out) { out[0] = load(slope + i); },
      [&](int64_t i, int64_t, float *out) { out[0] = slope[i]; }, totals);
  for (int64_t k = 0; k < net.outputs; k++)
    gradients[all.colours_weight + 1][k] = static_cast<float>(totals[0][k]);
  taps_back(s, x, slope, packed);
  unpacked(s, packed, gradients[all.colours_weight]);
  convolve_back(s, slope, parameters[all.colours_weight], packed, dx);
}

inline const float *hourglass_forward(const PixfitHourglass &net, const Hourglass &all, const float *code,
                                      const float *const *parameters) {
  const int64_t run = net.width * net.inputs;
  for (int64_t y = 0; y < net.height; y++) memcpy(all.code.at(y, 0), code + y * run, sizeof(float) * run);
  frame(all.code, net.reflect);
  const Field *x = &all.code;
  for (const Stage &s : all.stages) {
    if (s.has_skip) part_forward(s.across, *x, parameters, all.scratch);
    part_forward(s.halve, *x, parameters, all.scratch);
    part_forward(s.deepen, s.halve.out, parameters, all.scratch);
    x = &s.deepen.out;
  }
  for (auto s = all.stages.rbegin(); s != all.stages.rend(); ++s) {
    doubled(*s, net.nearest, x->memory, all.scratch);
    norm_forward(s->side, s->height * s->width, s->skip + s->below, parameters[s->join], parameters[s->join + 1],
                 net.eps, 1.0f, inside(s->joined), s->mean, s->rate);
    frame(s->joined, net.reflect);
    part_forward(s->merge, s->joined, parameters, all.scratch);
    x = &s->merge.out;
    if (s->has_mix) part_forward(s->mix, *x, parameters, all.scratch), x = &s->mix.out;
  }
  colours_forward(net, all, *x, parameters);
  return all.pixels;
}

inline void hourglass_backward(const PixfitHourglass &net, const Hourglass &all, const float *dy,
                               const float *const *parameters, float *dcode, float *const *gradients) {
  float *d = all.left, *next = all.right;
  const Stage &top = all.stages.front();
  colours_backward(net, all, dy, top.has_mix ? top.mix.out : top.merge.out, parameters, d, gradients);
  for (const Stage &s : all.stages) {
    if (s.has_mix) {
      part_backward(s.mix, d, s.merge.out, parameters, next, gradients, all.scratch);
      std::swap(d, next);
    }
    const int64_t wide = s.height * s.width * (s.skip + s.below);
    part_backward(s.merge, d, s.joined, parameters, next, gradients, all.scratch);
    norm_backward(next, s.side, s.height * s.width, s.skip + s.below, parameters[s.join], parameters[s.join + 1],
                  s.mean, s.rate, 1.0f, {d, 1, wide, wide}, gradients[s.join], gradients[s.join + 1]);
    doubled_back(s, net.nearest, d, next, all.scratch);
    std::swap(d, next);
  }
  for (size_t i = all.stages.size(); i-- > 0;) {
    const Stage &s = all.stages[i];
    const Field &x = i ? all.stages[i - 1].deepen.out : all.code;
    part_backward(s.deepen, d, s.halve.out, parameters, next, gradients, all.scratch);
    std::swap(d, next);
    float *to = i ? next : dcode;
    part_backward(s.halve, d, x, parameters, to, gradients, all.scratch);
    if (s.has_skip) {
      part_backward(s.across, s.across_slope, x, parameters, to ? d : nullptr, gradients, all.scratch);
      if (to)
        for (int64_t j = 0; j < s.height * s.width * s.features; j++) to[j] += d[j];
    }
    std::swap(d, next);
  }
}

}  // namespace
#endif
