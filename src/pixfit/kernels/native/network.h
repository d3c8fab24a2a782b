// One tile of points through a whole network, forward and backward. Everything of a tile stays in the core's cache.
//
// Shape legend: T points of a tile; activations as panels [panel][T][NR] (product.h).

#ifndef PIXFIT_NETWORK_H
#define PIXFIT_NETWORK_H

#include <optional>
#include <vector>

#include "api.h"
#include "grid.h"
#include "maths.h"
#include "product.h"

namespace {

// Where the parts of one layer lie, in floats from the start of each kind of memory.
struct Place {
  int64_t forward, backward, bias;          // packed weights, shared by all threads
  int64_t matrix, stride, shift, gain;      // in a part's gradient: matrix rows, sums of dU, of the norm
  int64_t y, d, normal, spread, kept;       // in a thread's workspace: output, slope (then dU), norm, skip
  bool turned;                              // the gradient matrix is (inputs, outputs)
};

struct Network {
  const PixfitPlan &plan;
  std::vector<Place> places;
  int64_t packed = 0, gradient = 0, workspace = 0;  // sizes in floats
  int64_t points = 0, tile = 0;  // of a tile: how many, and the rows of a panel, which are some more
  int64_t lift = 0, dx = 0, features = 0, pairs_dy = 0, pairs_dt = 0, pairs_xt = 0, turned = 0;
  int64_t widest = 0;
  bool grid;

  const PixfitLayer &layer(int64_t i) const { return plan.layers[i]; }
  int64_t count() const { return plan.layer_count; }
  bool simple(int64_t i) const { return layer(i).norm == PIXFIT_NO_NORM && !layer(i).skip; }
  // Numbers from one point's gradient of a grid's features to the next one's: whole vectors.
  int64_t slope_pitch() const { return round_up(plan.lift_features, W); }
  bool tiles() const { return plan.backward == PIXFIT_TILES; }
  bool bfloat16(int64_t i) const { return plan.backward != PIXFIT_FLOAT32 && !(i == 0 && plan.lift == PIXFIT_RAW); }

  Network(const PixfitPlan &given, int64_t samples, bool trained) : plan(given), grid(given.lift == PIXFIT_GRID) {
    widest = plan.lift_features;
    for (int64_t i = 0; i < count(); i++) widest = layer(i).outputs > widest ? layer(i).outputs : widest;
    // Wide layers read more weights a point, and training them also writes more sums: larger tiles, so that those come
    // less often from the outer caches.
    points = widest <= 64 ? 64 : widest <= 128 || !trained ? 128 : 256;
    points = round_up(samples < points ? samples : points, 2 * MR);
    // Panels a power of two apart would share few sets of the caches.
    tile = (tiles() ? round_up(points, DEEP) : points) + MR;
    auto floats = [](int64_t &total, int64_t n) {
      int64_t at = total;
      total += round_up(n, 16);
      return at;
    };
    auto panels = [&](int64_t features) { return round_up(features, NR) * tile; };
    lift = floats(workspace, panels(plan.lift_features));
    for (int64_t i = 0; i < count(); i++) {
      const PixfitLayer &l = layer(i);
      Place p{};
      int64_t in = round_up(l.inputs, NR), out = round_up(l.outputs, NR);
      p.forward = floats(packed, l.inputs * out);
      p.backward = floats(packed, std::max(l.outputs, round_up((l.outputs + 1) / 2, W)) * in);
      p.bias = floats(packed, out);
      auto cost = [](int64_t rows, int64_t lanes) { return round_up(rows, 2) * round_up(lanes, W); };
      p.turned = cost(l.inputs, l.outputs) < cost(l.outputs, l.inputs);
      p.stride = p.turned ? out : in;
      p.matrix = floats(gradient, (p.turned ? l.inputs : l.outputs) * p.stride);
      p.shift = floats(gradient, 3 * out);  // sums of dU; of the norm: gain, shift
      p.gain = p.shift + out;
      p.y = floats(workspace, panels(l.outputs));
      p.d = floats(workspace, panels(l.outputs));
      if (l.norm != PIXFIT_NO_NORM) {
        p.normal = floats(workspace, panels(l.outputs));
        p.spread = floats(workspace, tile);
      }
      if (l.skip) p.kept = floats(workspace, panels(l.outputs));
      places.push_back(p);
    }
    dx = floats(workspace, panels(widest));
    features = floats(workspace, round_up(plan.lift_features, NR) * (grid ? tile : 1) + NR);
    if (plan.backward != PIXFIT_FLOAT32) {
      pairs_dy = floats(workspace, panels(widest));
      pairs_dt = floats(workspace, panels(widest));
      pairs_xt = floats(workspace, panels(widest));
      turned = floats(workspace, panels(widest));
    }
  }
};

// Where feature j of point t is in panels of `tile` points.
PIXFIT_INLINE int64_t spot(int64_t j, int64_t t, int64_t tile) { return (j / NR) * tile * NR + t * NR + j % NR; }

// ------------------------------------------------------------------------------------------------------------- packing

// A layer's weights times omega (where the activation has one that can be folded) as panels for both directions.
inline float folded(const PixfitLayer &l) {
  return l.activation == PIXFIT_SINE || l.activation == PIXFIT_GAUSS ? static_cast<float>(l.omega) : 1.0f;
}

inline void pack(const Network &net, int64_t index, const float *parameters, float *packed) {
  const PixfitLayer &l = net.layer(index);
  const Place &place = net.places[index];
  const float scale = folded(l);
  const float *w = parameters + l.weight;
  float *forward = packed + place.forward, *bias = packed + place.bias;
  for (int64_t o = 0; o < round_up(l.outputs, NR); o++)
    bias[o] = o < l.outputs && l.bias >= 0 ? parameters[l.bias + o] * scale : 0.0f;
  for (int64_t o = 0; o < round_up(l.outputs, NR); o += W) {
    float *panel = forward + (o / NR) * l.inputs * NR + o % NR;
    for (int64_t i = 0; i < l.inputs; i += W) {
      if (o + W <= l.outputs && i + W <= l.inputs) {
        transpose(w + o * l.inputs + i, l.inputs, panel + i * NR, NR, scale);
        continue;
      }
      for (int64_t k = i; k < l.inputs && k < i + W; k++)
        for (int j = 0; j < W; j++) panel[k * NR + j] = o + j < l.outputs ? w[(o + j) * l.inputs + k] * scale : 0.0f;
    }
  }
  if (index == 0 && !net.grid) return;  // nobody asks for the gradient at the coordinates
  bool paired = net.bfloat16(index);
#if defined(__AVX512BF16__)
  if (paired) {
    uint32_t *back = reinterpret_cast<uint32_t *>(packed + place.backward);
    const int64_t k = (l.outputs + 1) / 2, deep = round_up(k, W);
    for (int64_t i = 0; i < round_up(l.inputs, NR); i += W) {
      uint32_t *panel = back + (i / NR) * deep * NR + i % NR;
      for (int64_t row = k; row < deep; row++) memset(panel + row * NR, 0, sizeof(vf));
      for (int64_t o = 0; o < l.outputs; o += 2) {
        const float *rows = w + o * l.inputs + i;
        const bool second = o + 1 < l.outputs;
        vf even{}, odd{};
        if (i + W <= l.inputs) {
          __builtin_prefetch(rows + 16 * l.inputs);
          even = load(rows);
          if (second) odd = load(rows + l.inputs);
        } else {
          for (int64_t j = 0; i + j < l.inputs; j++) {
            even[j] = rows[j];
            if (second) odd[j] = rows[l.inputs + j];
          }
        }
        const vi low = as_int(round_bfloat16(even * scale)), high = as_int(round_bfloat16(odd * scale));
        const vu both = ((vu)low >> 16) | (vu)high;
        memcpy(panel + (o / 2) * NR, &both, sizeof both);
      }
    }
    return;
  }
#endif
  float *back = packed + place.backward;
  for (int64_t i = 0; i < round_up(l.inputs, NR); i += W) {
    float *panel = back + (i / NR) * l.outputs * NR + i % NR;
    for (int64_t o = 0; o < l.outputs; o++) {
      const float *row = w + o * l.inputs + i;
      float *to = panel + o * NR;
      __builtin_prefetch(row + 16 * l.inputs);  // rows of wide layers are too far apart for the processor to guess
      if (i + W <= l.inputs) {
        vf v = load(row) * scale;
        store(to, paired ? round_bfloat16(v) : v);
        continue;
      }
      for (int j = 0; j < W; j++) to[j] = i + j < l.inputs ? row[j] * scale : 0.0f;
      if (paired) store(to, round_bfloat16(load(to)));
    }
  }
}

// ---------------------------------------------------------------------------------------------------------------- lift

// Features of one point, contiguous in `row`, whose tail up to a whole panel may be overwritten.
inline void lift_point(const PixfitPlan &plan, const float *fixed, const float *x, float *row) {
  const int64_t d = plan.in_features;
  const float two_pi = 6.283185307179586f;
  if (plan.lift == PIXFIT_POSITIONAL) {
    float *to = row;
    if (plan.include_input)
      for (int64_t a = 0; a < d; a++) *to++ = x[a];
    const int64_t waves = d * plan.octaves;
    for (int64_t a = 0; a < d; a++) {
      float band = 3.14159265358979324f;
      for (int64_t k = 0; k < plan.octaves; k++, band *= 2.0f) to[a * plan.octaves + k] = x[a] * band;
    }
    for (int64_t j = waves - 1; j >= 0; j--) {
      // A few numbers a point: the library's functions, which are right for phases of any size.
      const float phase = to[j];
      to[waves + j] = cosf(phase);
      to[j] = sinf(phase);
    }
    return;
  }
  const int64_t m = plan.lift_features / 2;
  const float *frequencies = fixed + plan.frequencies;
  const bool gabor = plan.lift == PIXFIT_GABOR;
  const float *centres = gabor ? fixed + plan.centres : nullptr;
  const float narrow = gabor ? static_cast<float>(-0.5 / (plan.sigma * plan.sigma)) : 0.0f;
  // The last chunk first, and cosines first: a vector of them may run over into sines that are not there yet.
  float sines[4096 + W];
  for (int64_t begin = (m - 1) / 4096 * 4096; begin >= 0; begin -= 4096) {
    const int64_t end = m - begin < 4096 ? m - begin : 4096;
    for (int64_t j = 0; j < end; j += W) {
      const int lanes = static_cast<int>(end - j < W ? end - j : W);
      vf phase{}, square{};
      for (int64_t a = 0; a < d; a++) {
        vf f{}, c{};
        const float *from = frequencies + a * m + begin + j;
        if (lanes == W) f = load(from);
        else for (int i = 0; i < lanes; i++) f[i] = from[i];
        vf offset = splat(x[a]);
        if (gabor) {
          const float *centre = centres + a * m + begin + j;
          if (lanes == W) c = load(centre);
          else for (int i = 0; i < lanes; i++) c[i] = centre[i];
          offset = offset - c;
          square += offset * offset;
        }
        phase += offset * (f * two_pi);
      }
      vf s, c;
      sincos(phase, s, c);
      if (largest(absolute(phase)) > SINCOS_LIMIT)
        for (int i = 0; i < W; i++) s[i] = sinf(phase[i]), c[i] = cosf(phase[i]);
      if (gabor) {
        vf envelope = exponential(square * narrow);
        s *= envelope;
        c *= envelope;
      }
      store(row + begin + j, c);
      store(sines + j, s);
    }
    memcpy(row + m + begin, sines, sizeof(float) * end);
  }
}

// ---------------------------------------------------------------------------------------------------------- activations

// One panel of n points with `features` in use: y becomes f(u), and u, in place, f'(u) where a backward pass follows.
template <bool Slopes, typename F>
inline void each(float *u, float *y, int64_t features, int64_t n, F f) {
  const bool both = features > W;
  for (int64_t t = 0; t < n * NR; t += NR) {
    vf a, da, b, db;
    f(load(u + t), a, da);
    if (both) f(load(u + t + W), b, db);
    store(y + t, a);
    if (both) store(y + t + W, b);
    if (!Slopes) continue;  // y is u then
    store(u + t, da);
    if (both) store(u + t + W, db);
  }
}

// Returns the largest |argument of a sine|.
template <bool Slopes>
inline float activate(int64_t kind, float omega, float *u, float *y, int64_t features, int64_t n) {
  vf most{};
  const vf w = splat(omega);
  switch (kind) {
    case PIXFIT_SINE:
      each<Slopes>(u, y, features, n, [&](vf x, vf &f, vf &d) {
        most = maximum(absolute(x), most);
        sincos(x, f, d);
      });
      break;
    case PIXFIT_FINER:
    case PIXFIT_FINER_EXACT: {
      const vf slope = splat(kind == PIXFIT_FINER ? 1.0f : 2.0f);
      each<Slopes>(u, y, features, n, [&](vf z, vf &f, vf &d) {
        vf a = absolute(z), x = w * (a + 1.0f) * z, c;
        most = maximum(absolute(x), most);
        sincos(x, f, c);
        d = c * w * (a * slope + 1.0f);
      });
      break;
    }
    case PIXFIT_RELU:
      each<Slopes>(u, y, features, n, [](vf x, vf &f, vf &d) {
        f = x > 0.0f ? x : vf{};
        d = x > 0.0f ? splat(1.0f) : vf{};
        f = x != x ? x : f;  // not a number stays so
      });
      break;
    case PIXFIT_GELU:
      each<Slopes>(u, y, features, n, [](vf x, vf &f, vf &d) {
        vf below, density;
        normal(x, below, density);
        f = x * below;
        d = below + x * density;
      });
      break;
    case PIXFIT_SILU:
      each<Slopes>(u, y, features, n, [](vf x, vf &f, vf &d) {
        vf s = logistic(x);
        f = x * s;
        d = s + f * (1.0f - s);
      });
      break;
    case PIXFIT_GAUSS:  // u carries omega already
      each<Slopes>(u, y, features, n, [](vf x, vf &f, vf &d) {
        f = exponential(-(x * x));
        d = f * x * -2.0f;
      });
      break;
    default:
      each<Slopes>(u, y, features, n, [](vf x, vf &f, vf &d) {
        f = x;
        d = splat(1.0f);
      });
  }
  return largest(most);
}

// Sines of arguments beyond the vector code's range: rare, slow, right.
inline void activate_far(int64_t kind, float omega, float *u, float *y, int64_t features, int64_t tile, int64_t n) {
  for (int64_t j = 0; j < features; j++)
    for (int64_t t = 0; t < n; t++) {
      const int64_t at = spot(j, t, tile);
      const float z = u[at], a = fabsf(z);
      const float x = kind == PIXFIT_SINE ? z : omega * (a + 1.0f) * z;
      const float c = static_cast<float>(cos(static_cast<double>(x)));
      u[at] = kind == PIXFIT_SINE ? c : c * omega * (kind == PIXFIT_FINER ? a + 1.0f : 2.0f * a + 1.0f);
      y[at] = static_cast<float>(sin(static_cast<double>(x)));  // last: y may be u, whose slopes nobody asks for
    }
}

// --------------------------------------------------------------------------------------------------------------- norms

// Numbers [j, j + W) of `features` in a row of parameters; `other` past the end, or where there is no such row.
PIXFIT_INLINE vf parameters_at(const float *parameters, int64_t offset, int64_t j, int64_t features, float other) {
  if (offset < 0) return splat(other);
  if (j + W <= features) return load(parameters + offset + j);
  vf v = splat(other);
  for (int64_t i = 0; j + i < features; i++) v[i] = parameters[offset + j + i];
  return v;
}

// x (features of n points) becomes (x - mean) / deviation in `normal`, and gain * that + shift in `out`. Points go W at
// a time, so that sums over the lanes of W vectors are taken at once.
inline void normalise(const PixfitLayer &l, const float *parameters, const float *x, float *out, float *normal,
                      float *spread, int64_t tile, int64_t n) {
  const int64_t f = l.outputs, whole = f / W * W;
  const float share = 1.0f / static_cast<float>(f);
  const vf rest = lanes_below(static_cast<int>(f - whole));
  for (int64_t first = 0; first < n; first += W) {
    const int64_t count = n - first < W ? n - first : W;
    float means[W] = {}, rates[W];
    vf totals[W] = {}, squares[W] = {};
    if (l.norm == PIXFIT_LAYER_NORM) {
      for (int64_t i = 0; i < count; i++) {
        for (int64_t j = 0; j < whole; j += W) totals[i] += load(x + spot(j, first + i, tile));
        if (whole < f) totals[i] += load(x + spot(whole, first + i, tile)) * rest;
      }
      store(means, sums(totals) * share);
    }
    for (int64_t i = 0; i < count; i++) {
      auto add = [&](vf v) { squares[i] += v * v; };
      for (int64_t j = 0; j < whole; j += W) add(load(x + spot(j, first + i, tile)) - means[i]);
      if (whole < f) add((load(x + spot(whole, first + i, tile)) - means[i]) * rest);
    }
    store(rates, 1.0f / root(sums(squares) * share + static_cast<float>(l.eps)));
    memcpy(spread + first, rates, sizeof(float) * count);
    for (int64_t j = 0; j < f; j += W) {
      const vf gain = parameters_at(parameters, l.gain, j, f, 1.0f), shift = parameters_at(parameters, l.shift, j, f, 0.0f);
      for (int64_t i = 0; i < count; i++) {
        const int64_t at = spot(j, first + i, tile);
        vf v = (load(x + at) - means[i]) * rates[i];
        if (j >= whole) v *= rest;
        store(normal + at, v);
        store(out + at, v * gain + shift);
      }
    }
  }
}

// In place: s, the gradient at the norm's output, becomes that at its input; sums for gain and shift are added up.
inline void normalise_back(const PixfitLayer &l, const float *parameters, float *s, const float *normal,
                           const float *spread, float *gain_sum, float *shift_sum, int64_t tile, int64_t n) {
  const int64_t f = l.outputs, whole = f / W * W;
  const float share = 1.0f / static_cast<float>(f);
  const vf rest = lanes_below(static_cast<int>(f - whole));
  for (int64_t j = 0; j < f; j += W) {
    const vf gain = parameters_at(parameters, l.gain, j, f, 1.0f);
    vf gains{}, shifts{};
    for (int64_t t = 0; t < n; t++) {
      const int64_t at = spot(j, t, tile);
      vf v = load(s + at);
      if (j >= whole) v *= rest;
      gains += v * load(normal + at);
      shifts += v;
      store(s + at, v * gain);
    }
    store(gain_sum + j, load(gain_sum + j) + gains);
    store(shift_sum + j, load(shift_sum + j) + shifts);
  }
  for (int64_t first = 0; first < n; first += W) {
    const int64_t count = n - first < W ? n - first : W;
    float means[W] = {}, along[W];
    vf totals[W] = {}, dots[W] = {};
    for (int64_t i = 0; i < count; i++)
      for (int64_t j = 0; j < f; j += W) {
        const int64_t at = spot(j, first + i, tile);
        const vf v = load(s + at);
        totals[i] += v;
        dots[i] += v * load(normal + at);
      }
    if (l.norm == PIXFIT_LAYER_NORM) store(means, sums(totals) * share);
    store(along, sums(dots) * share);
    for (int64_t i = 0; i < count; i++)
      for (int64_t j = 0; j < f; j += W) {
        const int64_t at = spot(j, first + i, tile);
        store(s + at, spread[first + i] * (load(s + at) - means[i] - load(normal + at) * along[i]));
      }
  }
}

// ------------------------------------------------------------------------------------------------------------- forward

// The activations of `n` points, a multiple of MR, from the lifted features on. Returns the output layer's panel.
template <bool Slopes>
inline float *forward(const Network &net, const float *parameters, const float *packed, float *work, int64_t n) {
  const float *x = work + net.lift;
  for (int64_t i = 0; i < net.count(); i++) {
    const PixfitLayer &l = net.layer(i);
    const Place &p = net.places[i];
    float *u = work + p.d, *y = Slopes ? work + p.y : u, most = 0.0f;  // nobody asks for the slopes: in place
    const float omega = static_cast<float>(l.omega);
    const bool last = i + 1 == net.count(), first_norm = l.norm != PIXFIT_NO_NORM && l.norm_first;
    auto product = [&](auto after) {
      points_product<Finish::Store>(x, l.inputs, packed + p.forward, packed + p.bias, l.outputs, net.tile, n, u, u, after);
      if (first_norm) normalise(l, parameters, u, u, work + p.normal, work + p.spread, net.tile, n);
    };
    auto panel = [&](int64_t q) {
      const int64_t at = q * net.tile * NR;
      const float far = activate<Slopes>(l.activation, omega, u + at, y + at, l.outputs - q * NR, n);
      most = far > most ? far : most;
    };
    auto nothing = [](int64_t) {};
    if (last || first_norm) product(nothing);
    else product(panel);
    if (last) return u;
    if (first_norm)
      for (int64_t q = 0; q * NR < l.outputs; q++) panel(q);
    if (most > SINCOS_LIMIT) {
      product(nothing);
      activate_far(l.activation, omega, u, y, l.outputs, net.tile, n);
    }
    if (l.norm != PIXFIT_NO_NORM && !l.norm_first)
      normalise(l, parameters, y, y, work + p.normal, work + p.spread, net.tile, n);
    if (l.skip)
      for (int64_t q = 0; q < round_up(l.outputs, NR) / NR; q++)
        for (int64_t t = 0; t < n * NR; t += W) {
          const int64_t at = q * net.tile * NR + t;
          store(y + at, (load(y + at) + load(x + at)) * 0.70710678118654752f);
        }
    x = y;
  }
  return nullptr;
}

// ------------------------------------------------------------------------------------------------------------ backward

#if defined(__AVX512BF16__)
// [panel][T][NR] floats as pairs of points [panel][T / 2][NR].
inline void pair_points(const float *x, int64_t features, int64_t tile, int64_t n, uint32_t *out) {
  for (int64_t p = 0; p * NR < features; p++) {
    const float *from = x + p * tile * NR;
    uint32_t *to = out + p * (tile / 2) * NR;
    const bool both = features - p * NR > W;
#pragma GCC unroll 4
    for (int64_t t = 0; t < n * NR; t += 2 * NR, to += NR) {
      _mm512_storeu_si512(to, paired(load(from + t), load(from + t + NR)));
      if (both) _mm512_storeu_si512(to + W, paired(load(from + t + W), load(from + t + NR + W)));
    }
  }
}

// The same, and as pairs of features [panel][T][NR / 2], where missing last features are 0; and adds up all points.
inline void pair_both(const float *x, int64_t features, int64_t tile, int64_t n, uint32_t *points, uint32_t *pairs,
                      float *total) {
  for (int64_t p = 0; p * NR < features; p++) {
    const float *from = x + p * tile * NR;
    uint32_t *to = points + p * (tile / 2) * NR, *across = pairs + p * tile * W;
    const int64_t left = features - p * NR;
    auto mask = [](int64_t lanes) { return static_cast<__mmask16>((1u << std::clamp<int64_t>(lanes, 0, W)) - 1); };
    const __mmask16 low = mask(left), high = mask(left - W);
    auto own = [](__mmask16 lanes, const float *p) { return (vf)_mm512_maskz_loadu_ps(lanes, p); };
    vf sum_low{}, sum_high{};
#pragma GCC unroll 2
    for (int64_t t = 0; t < n * NR; t += 2 * NR, to += NR, across += NR) {
      const vf a = own(low, from + t), b = own(high, from + t + W);
      const vf c = own(low, from + t + NR), d = own(high, from + t + NR + W);
      sum_low += a + c;
      sum_high += b + d;
      _mm512_storeu_si512(to, paired(a, c));
      _mm512_storeu_si512(to + W, paired(b, d));
      _mm512_storeu_si512(across, (__m512i)_mm512_cvtne2ps_pbh((__m512)b, (__m512)a));
      _mm512_storeu_si512(across + W, (__m512i)_mm512_cvtne2ps_pbh((__m512)d, (__m512)c));
    }
    store(total + p * NR, load(total + p * NR) + sum_low);
    store(total + p * NR + W, load(total + p * NR + W) + sum_high);
  }
}
#endif

// Adds the gradient of n points (a multiple of 2 MR), whose loss gradient dU of the output is in the last layer's panel,
// to a part's sums, or (fresh) begins them: only the sums of dU and the norms have to be 0 before. With a grid the
// gradient at the lifted features is left in `work + net.dx`.
inline void backward(const Network &net, const float *parameters, const float *packed, float *work, float *gradient,
                     int64_t n, bool fresh) {
  const int64_t tile = net.tile;
  float *s = work + net.dx;
#if defined(PIXFIT_HAS_TILES)
  std::optional<TilesInUse> in_use;
  if (net.tiles()) in_use.emplace(TALL);
#endif
  for (int64_t i = net.count() - 1; i >= 0; i--) {
    const PixfitLayer &l = net.layer(i);
    const Place &p = net.places[i];
    const float *x = i ? work + net.places[i - 1].y : work + net.lift;
    float *du = work + p.d;
    const bool first = i == 0, paired = net.bfloat16(i);
    const bool direct = i > 0 && net.simple(i - 1) && !l.skip;  // dX times the slope below is dU there: one pass
    float *matrix = gradient + p.matrix;
    float *below = first ? s : work + net.places[i - 1].d;
    auto add_up = [&] {
      for (int64_t j = 0; j < l.outputs; j += W) {
        const float *from = du + (j / NR) * tile * NR + j % NR;
        vf even{}, odd{};
        for (int64_t t = 0; t < n; t += 2) {
          even += load(from + t * NR);
          odd += load(from + (t + 1) * NR);
        }
        float *to = gradient + p.shift + j;
        store(to, load(to) + (even + odd));
      }
    };
#if defined(__AVX512BF16__)
    if (paired) {
      uint32_t *dy = reinterpret_cast<uint32_t *>(work + net.pairs_dy), *dt = reinterpret_cast<uint32_t *>(work + net.pairs_dt);
      uint32_t *xt = reinterpret_cast<uint32_t *>(work + net.pairs_xt);
      pair_both(du, l.outputs, tile, n, dt, dy, gradient + p.shift);
      pair_points(x, l.inputs, tile, n, xt);
      const uint32_t *back = reinterpret_cast<const uint32_t *>(packed + p.backward);
#if defined(PIXFIT_HAS_TILES)
      if (net.tiles()) {
        uint32_t *turned = reinterpret_cast<uint32_t *>(work + net.turned);
        if (p.turned) weights_product_tiles(xt, l.inputs, dt, l.outputs, tile, n, turned, matrix, p.stride, fresh);
        else weights_product_tiles(dt, l.outputs, xt, l.inputs, tile, n, turned, matrix, p.stride, fresh);
        if (first && !net.grid) return;
        if (direct) points_product_tiles<Into::Multiply>(dy, l.outputs, back, l.inputs, tile, n, below);
        else points_product_tiles<Into::Store>(dy, l.outputs, back, l.inputs, tile, n, s);
      } else
#endif
      {
        if (p.turned) weights_product_bf16(xt, l.inputs, dt, l.outputs, tile, n, matrix, p.stride, fresh);
        else weights_product_bf16(dt, l.outputs, xt, l.inputs, tile, n, matrix, p.stride, fresh);
        if (first && !net.grid) return;
        if (direct) points_product_bf16<Finish::Multiply>(dy, l.outputs, back, l.inputs, tile, n, below, s);
        else points_product_bf16<Finish::Store>(dy, l.outputs, back, l.inputs, tile, n, s, s);
      }
    } else
#endif
    {
      add_up();
      const float *left = du, *right = x;
      if (paired) {  // no bfloat16 instructions here: the same operands, rounded
        auto rounded = [&](const float *from, int64_t features, float *to) {
          for (int64_t k = 0; k < round_up(features, NR) / NR * tile * NR; k += W) store(to + k, round_bfloat16(load(from + k)));
          return to;
        };
        left = rounded(du, l.outputs, work + net.pairs_dt);
        right = rounded(x, l.inputs, work + net.pairs_xt);
      }
      if (p.turned) weights_product(right, l.inputs, left, l.outputs, tile, n, matrix, p.stride, fresh);
      else weights_product(left, l.outputs, right, l.inputs, tile, n, matrix, p.stride, fresh);
      if (first && !net.grid) return;
      const float *back = packed + p.backward;
      if (direct) points_product<Finish::Multiply>(left, l.outputs, back, nullptr, l.inputs, tile, n, below, s, [](int64_t) {});
      else points_product<Finish::Store>(left, l.outputs, back, nullptr, l.inputs, tile, n, s, s, [](int64_t) {});
    }
    if (first || direct) continue;
    // s is the gradient at the output of layer i - 1; what its skip passes on is kept for when that layer is done.
    const PixfitLayer &b = net.layer(i - 1);
    const Place &q = net.places[i - 1];
    const int64_t size = round_up(b.outputs, NR) / NR;
    auto over = [&](auto f) {
      for (int64_t k = 0; k < size; k++)
        for (int64_t t = k * tile * NR; t < k * tile * NR + n * NR; t += W) f(t);
    };
    if (l.skip) over([&](int64_t t) { store(s + t, load(s + t) + load(work + p.kept + t)); });
    if (b.skip)
      over([&](int64_t t) {
        vf v = load(s + t) * 0.70710678118654752f;
        store(s + t, v);
        store(work + q.kept + t, v);
      });
    float *gain = gradient + q.gain, *shift = gain + round_up(b.outputs, NR);
    float *d = work + q.d;
    if (b.norm != PIXFIT_NO_NORM && !b.norm_first)
      normalise_back(b, parameters, s, work + q.normal, work + q.spread, gain, shift, tile, n);
    over([&](int64_t t) { store(d + t, load(d + t) * load(s + t)); });
    if (b.norm != PIXFIT_NO_NORM && b.norm_first)
      normalise_back(b, parameters, d, work + q.normal, work + q.spread, gain, shift, tile, n);
  }
}

}  // namespace
#endif
