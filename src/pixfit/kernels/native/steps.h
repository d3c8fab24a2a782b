// Whole steps: batches, loss, gradient, update; threads; the C interface.
//
// A batch is cut into parts by a rule of its shape alone. Each part sums its own gradient, and the parts are added in
// order, so that the numbers do not depend on how many threads there are.

#ifndef PIXFIT_STEPS_H
#define PIXFIT_STEPS_H

#include <algorithm>
#include <atomic>
#include <cmath>
#include <memory>
#include <utility>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "network.h"
#include "threads.h"

namespace {

// The caller's memory, handed out piece by piece, each aligned to a cache line.
class Arena {
 public:
  Arena(void *scratch, int64_t bytes) : next_(static_cast<char *>(scratch)), end_(next_ + bytes) {
    const uintptr_t at = reinterpret_cast<uintptr_t>(next_);
    next_ += static_cast<size_t>(round_up(static_cast<int64_t>(at), 64)) - at;
#if defined(__linux__)
    // Huge pages mean fewer entries in the tables of addresses; a wish that may fail.
    const int64_t page = 1 << 21;
    char *first = next_ + (round_up(static_cast<int64_t>(reinterpret_cast<uintptr_t>(next_)), page) -
                           static_cast<int64_t>(reinterpret_cast<uintptr_t>(next_)));
    if (end_ - first >= page) madvise(first, static_cast<size_t>((end_ - first) / page * page), MADV_HUGEPAGE);
#endif
  }
  // Not cleared; null where the memory does not suffice.
  float *take(int64_t floats) {
    char *here = next_;
    const int64_t bytes = round_up(std::max<int64_t>(floats, 1) * 4, 64);
    if (end_ - here < bytes) return nullptr;
    next_ += bytes;
    return reinterpret_cast<float *>(here);
  }

 private:
  char *next_, *end_;
};

inline int64_t taken(int64_t floats) { return round_up(std::max<int64_t>(floats, 1) * 4, 64); }

// Threads that meet between the phases of a step.
class Team {
 public:
  void meet(int64_t size) {
    if (size == 1) return;
    const uint64_t round = round_.load(std::memory_order_acquire);
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == size) {
      arrived_.store(0, std::memory_order_relaxed);
      round_.store(round + 1, std::memory_order_release);
      return;
    }
    for (int spins = 0; round_.load(std::memory_order_acquire) == round; spins++)
      if (spins > 2000) std::this_thread::yield();  // a core may be busy with something else
  }

 private:
  std::atomic<int64_t> arrived_{0};
  std::atomic<uint64_t> round_{0};
};

inline std::pair<int64_t, int64_t> share(int64_t n, int64_t index, int64_t of, int64_t grain = 1) {
  const int64_t grains = (n + grain - 1) / grain;
  return {std::min(n, grains * index / of * grain), std::min(n, grains * (index + 1) / of * grain)};
}

// How many parts a batch is cut into: enough for threads where a part is worth one, and few enough for their sums.
inline int64_t parts_of(int64_t samples, const PixfitPlan &plan) {
  int64_t products = 0;
  for (int64_t i = 0; i < plan.layer_count; i++) products += plan.layers[i].inputs * plan.layers[i].outputs;
  const double work = static_cast<double>(samples) * static_cast<double>(products);
  const int64_t worth = static_cast<int64_t>(std::min(work / (1 << 25), 1e6));
  const int64_t most = std::max(std::min<int64_t>(samples / 512, 16), std::min<int64_t>(samples / 4096, 64));
  return std::max<int64_t>(1, std::min(worth, most));
}

struct Call {
  const PixfitUpdate &update;
  int64_t loss;
  float delta;
  int64_t samples, steps;
  const volatile int32_t *stop;
  bool stopped() const { return stop && *stop; }
};

// The memory of one fit in training.
struct Memory {
  Memory(const Network &net, int64_t samples, int64_t parts, int64_t threads, Arena &arena)
      : packed(arena.take(net.packed)), sums(arena.take(net.gradient * parts)), losses(parts), sizes(parts) {
    whole = packed && sums;
    for (int64_t t = 0; t < threads; t++) {
      work.push_back(arena.take(net.workspace));
      whole = whole && work.back();
      // Lanes without a feature are read by vectors too: they must never hold what is not a number.
      if (whole) memset(work.back(), 0, sizeof(float) * net.workspace);
    }
    if (!net.grid) return;
    slopes = arena.take(samples * net.slope_pitch());
    points = arena.take(samples * net.plan.in_features);
    order = reinterpret_cast<int64_t *>(arena.take(2 * samples));
    whole = whole && slopes && points && order;
  }
  static int64_t bytes(const Network &net, int64_t samples, int64_t parts, int64_t threads) {
    int64_t total = taken(net.packed) + taken(net.gradient * parts) + threads * taken(net.workspace);
    if (net.grid)
      total += taken(samples * net.slope_pitch()) + taken(samples * net.plan.in_features) + taken(2 * samples);
    return total;
  }
  float *packed, *sums, *slopes = nullptr, *points = nullptr;
  int64_t *order = nullptr;  // of a step's rows
  std::vector<float *> work;
  std::vector<double> losses, sizes;
  double factor = 1.0;
  std::atomic<bool> aborted{false};
  bool whole;  // the arena had enough
};

// How a call's fits are shared out: threads inside a fit, or a fit a thread.
struct Division {
  Division(const PixfitPlan &plan, int64_t samples, int64_t fits, int64_t threads) : parts(parts_of(samples, plan)) {
    const int64_t inside = std::min(threads, parts);
    together = fits < inside;
    size = together ? inside : 1;
    teams = together ? 1 : std::min(threads, fits);
  }
  int64_t parts, size, teams;
  bool together;
};

// Lifted features of n points, and zeros up to `padded`. `row(t)`: which row of the tables point t is.
template <typename Row>
inline void lift(const Network &net, const PixfitFit &fit, Row row, int64_t n, int64_t padded, float *work,
                 float *places) {
  const PixfitPlan &plan = net.plan;
  const int64_t d = plan.in_features, f = plan.lift_features, tile = net.tile;
  float *x = work + net.lift, *features = work + net.features;
  if (plan.lift == PIXFIT_RAW && d <= NR) {
    for (int64_t t = 0; t < n; t++) {
      const float *from = fit.coordinates + row(t) * d;
      for (int64_t a = 0; a < d; a++) x[t * NR + a] = from[a];
    }
    for (int64_t t = n; t < padded; t++)
      for (int64_t a = 0; a < d; a++) x[t * NR + a] = 0.0f;
    return;
  }
  if (net.grid) {
    for (int64_t t = 0; t < n; t++) memcpy(places + 2 * t, fit.coordinates + 2 * row(t), 2 * sizeof(float));
    const bool direct = f <= NR;  // a panel's rows hold all features
    float *to = direct ? x : features;
    const int64_t stride = direct ? NR : f;
    pixfit::grid_forward(plan, fit.parameters, places, n, to, stride);
    memset(to + n * stride, 0, sizeof(float) * (padded - n) * stride);
    if (direct) return;
  }
  for (int64_t t = 0; t < padded; t++) {
    if (net.grid) {
      if (t) features += f;
    } else if (t >= n) {
      memset(features, 0, sizeof(float) * f);
    } else if (plan.lift == PIXFIT_RAW) {
      memcpy(features, fit.coordinates + row(t) * d, sizeof(float) * d);
    } else {
      lift_point(plan, fit.fixed, fit.coordinates + row(t) * d, features);
    }
    for (int64_t p = 0; p * NR < f; p++) {
      float *to = x + p * tile * NR + t * NR;
      if (f - p * NR >= NR) {
        store(to, load(features + p * NR));
        store(to + W, load(features + p * NR + W));
      } else {
        memcpy(to, features + p * NR, sizeof(float) * (f - p * NR));
      }
    }
  }
}

// The loss of n points, summed, and its gradient dU at the output layer's map, in place of U. Rows up to `padded` are 0.
template <typename Row>
inline double loss_of(const Network &net, const PixfitFit &fit, const Call &call, Row row, int64_t n, int64_t padded,
                      float *u, double &size) {
  const int64_t channels = net.plan.out_features, tile = net.tile, numbers = fit.rows * channels;
  const bool sigmoid = net.plan.output == PIXFIT_SIGMOID, weighted = fit.weights != nullptr;
  const float delta = call.delta;
  vf total{}, used{};
  auto numbers_at = [&](const float *table, int64_t at, int lanes) {
    if (at + W <= numbers) return load(table + at);  // what follows is other points', and is masked
    float row_end[W] = {};
    for (int i = 0; i < lanes; i++) row_end[i] = table[at + i];
    return load(row_end);
  };
  for (int64_t c = 0; c < round_up(channels, NR); c += W) {
    float *panel = u + (c / NR) * tile * NR + c % NR;
    const int lanes = static_cast<int>(std::min<int64_t>(W, std::max<int64_t>(0, channels - c)));
    const vf mask = lanes_below(lanes);
    for (int64_t t = 0; t < padded; t++) {
      float *to = panel + t * NR;
      if (t >= n || lanes == 0) {
        store(to, vf{});
        continue;
      }
      const int64_t at = row(t) * channels + c;
      const vf wanted = numbers_at(fit.targets, at, lanes);
      const vf scale = weighted ? numbers_at(fit.weights, at, lanes) * mask : mask;
      vf y = load(to), slope = splat(1.0f), value, gradient;
      if (sigmoid) {
        y = logistic(y);
        slope = y * (1.0f - y);
      }
      const vf e = (y - wanted) * mask;
      if (call.loss == PIXFIT_MSE) {
        value = e * e;
        gradient = e * 2.0f;
      } else {
        const vf a = absolute(e), sign = e > 0.0f ? splat(1.0f) : (e < 0.0f ? splat(-1.0f) : e);
        const bool huber = call.loss == PIXFIT_HUBER;
        value = huber ? (a <= delta ? e * e * 0.5f : (a - 0.5f * delta) * delta) : a;
        gradient = huber ? (a <= delta ? e : sign * delta) : sign;
      }
      total += value * scale;
      used += scale;
      store(to, gradient * slope * scale);
    }
  }
  size += sum(used);
  return sum(total);
}

// A step's rows of the tables, put in the tables' order but for neighbours: what a batch of random pixels reads and
// writes then lies side by side, which halves the waiting for memory of a feature grid.
inline void arrange(const int64_t *index, int64_t samples, int64_t rows, int64_t *order) {
  constexpr int64_t bins = 1024;
  int64_t at[bins + 1] = {}, shift = 0;
  while ((rows - 1) >> shift >= bins) shift++;
  for (int64_t t = 0; t < samples; t++) at[(index[t] >> shift) + 1]++;
  for (int64_t b = 0; b < bins; b++) at[b + 1] += at[b];
  for (int64_t t = 0; t < samples; t++) order[at[index[t] >> shift]++] = index[t];
}

// One part of a batch, tile by tile.
inline void part(const Network &net, const PixfitFit &fit, const Call &call, Memory &memory, int64_t step, int64_t index,
                 int64_t parts, float *work) {
  const auto [begin, end] = share(call.samples, index, parts, 2 * MR);
  float *gradient = memory.sums + index * net.gradient;
  for (int64_t i = 0; i < net.count(); i++)
    memset(gradient + net.places[i].shift, 0, sizeof(float) * 3 * round_up(net.layer(i).outputs, NR));
  double loss = 0.0, size = 0.0;
  const int64_t tiles = std::max<int64_t>(1, (end - begin + net.points - 1) / net.points);
  for (int64_t k = 0; k < tiles && !call.stopped(); k++) {
    const auto [from, to] = share(end - begin, k, tiles, 2 * MR);
    const int64_t first = begin + from, n = to - from, padded = round_up(n, 2 * MR);
    const int64_t *rows = fit.index ? (net.grid ? memory.order : fit.index + step * call.samples) + first : nullptr;
    auto row = [&](int64_t t) { return rows ? rows[t] : first + t; };
    if (rows)  // random rows of the tables, soon needed
      for (int64_t t = n; t < std::min(2 * n, end - first); t++) {
        __builtin_prefetch(fit.coordinates + rows[t] * net.plan.in_features);
        __builtin_prefetch(fit.targets + rows[t] * net.plan.out_features);
        __builtin_prefetch(fit.targets + rows[t] * net.plan.out_features + W - 1);
      }
    lift(net, fit, row, n, padded, work, net.grid ? memory.points + first * net.plan.in_features : nullptr);
    float *u = forward<true>(net, fit.parameters, memory.packed, work, padded);
    loss += loss_of(net, fit, call, row, n, padded, u, size);
    backward(net, fit.parameters, memory.packed, work, gradient, padded, k == 0);
    if (!net.grid) continue;
    const int64_t pitch = net.slope_pitch();
    for (int64_t t = 0; t < n; t++)
      for (int64_t j = 0; j < pitch; j += W)
        store(memory.slopes + (first + t) * pitch + j, load(work + net.dx + spot(j, t, net.tile)));
  }
  memory.losses[index] = loss;
  memory.sizes[index] = size;
}

// The gradient in the order of the parameters, for the rows of all layers that fall to one thread.
inline void gather(const Network &net, const PixfitFit &fit, const Memory &memory, int64_t parts, float scale,
                   int64_t thread, int64_t threads) {
  for (int64_t i = 0; i < net.count(); i++) {
    const PixfitLayer &l = net.layer(i);
    const Place &p = net.places[i];
    const float *sums = memory.sums;
    const float by = scale * folded(l);
    const auto [begin, end] = share(l.outputs, thread, threads);
    float *out = fit.gradient + l.weight;
    for (int64_t o = begin; o < end; o++) {
      for (int64_t j = 0; j < l.inputs; j++) {
        if (p.turned) {
          float total = 0.0f;
          for (int64_t k = 0; k < parts; k++) total += sums[k * net.gradient + p.matrix + j * p.stride + o];
          out[o * l.inputs + j] = total * by;
          continue;
        }
        const float *from = sums + p.matrix + o * p.stride + j;
        if (j + W <= l.inputs) {
          vf total = load(from);
          for (int64_t k = 1; k < parts; k++) total += load(from + k * net.gradient);
          store(out + o * l.inputs + j, total * by);
          j += W - 1;
          continue;
        }
        float total = 0.0f;
        for (int64_t k = 0; k < parts; k++) total += from[k * net.gradient];
        out[o * l.inputs + j] = total * by;
      }
      const int64_t width = round_up(l.outputs, NR);
      float shift = 0.0f, gain = 0.0f, after = 0.0f;
      for (int64_t k = 0; k < parts; k++) {
        const float *from = sums + k * net.gradient + p.shift + o;
        shift += from[0], gain += from[width], after += from[2 * width];
      }
      if (l.bias >= 0) fit.gradient[l.bias + o] = shift * by;
      if (l.gain >= 0) fit.gradient[l.gain + o] = gain * scale;
      if (l.shift >= 0) fit.gradient[l.shift + o] = after * scale;
    }
  }
}

// Adam, AdamW and schedule-free AdamW as pixfit.optim has them, on parameters [begin, end); the gradient is left at 0
// where the next step wants it so, while it is at hand.
inline void improve(const Call &call, const PixfitFit &fit, int64_t step, double factor, float clip, bool clear,
                    int64_t begin, int64_t end) {
  const PixfitUpdate &u = call.update;
  const double count = static_cast<double>(fit.count + step + 1);
  const float rate = static_cast<float>(fit.rates[2 * step] * factor);
  // 1 - beta is rounded once: as a difference of float32 it would be off by 1e-5 of itself.
  const float b2 = static_cast<float>(u.beta2), rest1 = static_cast<float>(1.0 - u.beta1);
  const float rest2 = static_cast<float>(1.0 - u.beta2);
  const float unbias = static_cast<float>(std::sqrt(1.0 - std::pow(u.beta2, count))), eps = static_cast<float>(u.eps);
  const bool adam = u.optimiser == PIXFIT_ADAM;
  // m / (sqrt(v) / unbias + eps) with one division, of which processors make few at a time.
  const float floor = eps * unbias;
  const float stride = static_cast<float>(fit.rates[2 * step] * factor / (1.0 - std::pow(u.beta1, count))) * unbias;
  const float keep = static_cast<float>(1.0 - fit.rates[2 * step] * factor * u.weight_decay);
  const float decay = static_cast<float>(u.weight_decay), c = static_cast<float>(fit.rates[2 * step + 1]);
  const float pull = static_cast<float>(rate * (u.beta1 * (1.0 - fit.rates[2 * step + 1]) - 1.0));
  const float slow = static_cast<float>(u.average_decay), fresh = static_cast<float>(1.0 - u.average_decay);
  auto at = [&](auto g, auto &w, auto &m, auto &v, auto &average, auto mask, auto root_of) {
    g = g * clip * mask;
    if (adam) {
      w = w * keep;
      m = m + (g - m) * rest1;
      v = v * b2 + g * g * rest2;
      w = w - m * stride / (root_of(v) + floor);
    } else {  // w is y, m is z
      v = v * b2 + g * g * rest2;
      g = g * unbias / (root_of(v) + floor) + w * decay;
      w = w + (m - w) * c + g * pull;
      m = m - g * rate;
    }
    w = w * mask;
    average = average * slow + w * fresh;
  };
  int64_t i = begin;
  for (; i + W <= end; i += W) {
    vf w = load(fit.parameters + i), m = load(fit.first + i), v = load(fit.second + i);
    vf average = fit.average ? load(fit.average + i) : vf{}, mask = fit.mask ? load(fit.mask + i) : splat(1.0f);
    at(load(fit.gradient + i), w, m, v, average, mask, [](vf x) { return root(x); });
    store(fit.parameters + i, w);
    store(fit.first + i, m);
    store(fit.second + i, v);
    if (clear) store(fit.gradient + i, vf{});
    if (fit.average) store(fit.average + i, average);
  }
  for (; i < end; i++) {
    float average = fit.average ? fit.average[i] : 0.0f;
    at(fit.gradient[i], fit.parameters[i], fit.first[i], fit.second[i], average, fit.mask ? fit.mask[i] : 1.0f,
       [](float x) { return sqrtf(x); });
    if (clear) fit.gradient[i] = 0.0f;
    if (fit.average) fit.average[i] = average;
  }
}

constexpr int PLATEAU_FACTOR = 2;  // of PixfitFit.plateau

// pixfit.schedules.PlateauState.update for one fit.
inline void watch_plateau(const PixfitUpdate &u, double base, double *state, double loss, bool end_of_epoch) {
  double &best = state[0], &bad = state[1], &factor = state[2], &total = state[3], &count = state[4];
  total += loss;
  count += 1.0;
  if (!end_of_epoch) return;
  const double mean = total / count;
  total = count = 0.0;
  if (mean < best * (1.0 - u.plateau_threshold)) best = mean, bad = 0.0;
  else bad += 1.0;
  if (bad <= static_cast<double>(u.plateau_patience)) return;
  bad = 0.0;
  const double old = factor * base, lower = std::max(old * u.plateau_decay, u.plateau_min_lr);
  if (old - lower > u.plateau_eps) factor = lower / base;
}

// What one thread of a team does for one fit; returns the steps made.
inline int64_t train(const Network &net, const Call &call, PixfitFit &fit, Memory &memory, int64_t parts, Team &team,
                     int64_t thread, int64_t threads) {
  const PixfitPlan &plan = net.plan;
  const auto [low, high] = share(plan.parameters, thread, threads, W);
  const auto [first, last] = share(parts, thread, threads);
  bool cleared = false;
  for (int64_t step = 0; step < call.steps; step++) {
    for (int64_t i = thread; i < net.count(); i += threads) pack(net, i, fit.parameters, memory.packed);
    if (thread == 0) {
      memory.factor = fit.plateau ? fit.plateau[PLATEAU_FACTOR] : 1.0;
      if (net.grid && fit.index) arrange(fit.index + step * call.samples, call.samples, fit.rows, memory.order);
    }
    team.meet(threads);
    for (int64_t k = first; k < last; k++) part(net, fit, call, memory, step, k, parts, memory.work[thread]);
    if (call.stopped()) memory.aborted = true;  // benign: all write the same, and all read it after they met
    team.meet(threads);
    if (memory.aborted) return step;
    double loss = 0.0, size = 0.0;
    for (int64_t k = 0; k < parts; k++) loss += memory.losses[k], size += memory.sizes[k];
    size = fit.weights ? std::max(size, 1.0) : size;
    const float scale = static_cast<float>(1.0 / size);
    gather(net, fit, memory, parts, scale, thread, threads);
    if (net.grid) {
      for (int64_t k = 0; k < plan.level_count && !cleared; k++) {
        const PixfitLevel &level = plan.levels[k];
        const auto [begin, end] = share(level.entries * level.features, thread, threads);
        memset(fit.gradient + level.table + begin, 0, sizeof(float) * (end - begin));
      }
      const auto [begin, end] = share(call.samples * net.slope_pitch(), thread, threads);
      for (int64_t k = begin; k < end; k++) memory.slopes[k] *= scale;
      team.meet(threads);
      pixfit::grid_backward_part(plan, memory.points, call.samples, memory.slopes, net.slope_pitch(),
                                 fit.gradient, thread, threads);
    }
    float clip = 1.0f;
    if (call.update.optimiser != PIXFIT_GRADIENT_ONLY) {
      team.meet(threads);  // rows of the gradient are shared out by layers, updates by numbers
      if (call.update.clip_norm > 0.0) {
        double squares = 0.0;  // each thread by itself, so that the sum's order is one
        for (int64_t i = 0; i < plan.parameters; i++) {
          const double g = fit.gradient[i] * (fit.mask ? fit.mask[i] : 1.0f);
          squares += g * g;
        }
        clip = static_cast<float>(std::min(1.0, call.update.clip_norm / (std::sqrt(squares) + 1e-6)));
      }
      cleared = net.grid && step + 1 < call.steps;
      improve(call, fit, step, memory.factor, clip, cleared, low, high);
    }
    if (thread == 0) {
      fit.losses[step] = loss / size;
      if (fit.plateau)
        watch_plateau(call.update, fit.base_rate, fit.plateau, static_cast<float>(loss / size),
                      (call.update.epoch_step + step + 1) % call.update.steps_per_epoch == 0);
    }
    team.meet(threads);
  }
  return call.steps;
}

}  // namespace
#endif
