// The whole library; each instruction set compiles it once, with PIXFIT_ISA and PIXFIT_SOURCE_HASH defined.

#ifndef PIXFIT_KERNEL_H
#define PIXFIT_KERNEL_H

#include <chrono>

#include "hourglass.h"
#include "steps.h"

namespace {

bool sound(const PixfitPlan *plan) {
  if (!plan || plan->abi != PIXFIT_ABI || plan->layer_count < 1 || !plan->layers) return false;
  if (plan->backward != PIXFIT_FLOAT32 && plan->backward != PIXFIT_BFLOAT16 &&
      !(plan->backward == PIXFIT_TILES && has_tiles()))
    return false;
  if (plan->in_features < 1 || plan->out_features < 1 || plan->lift_features < 1) return false;
  int64_t inputs = plan->lift_features;
  auto inside = [&](int64_t at, int64_t n) { return at == -1 || (at >= 0 && at + n <= plan->parameters); };
  for (int64_t i = 0; i < plan->layer_count; i++) {
    const PixfitLayer &l = plan->layers[i];
    if (l.inputs != inputs || l.outputs < 1 || l.weight < 0 || !inside(l.weight, l.inputs * l.outputs)) return false;
    if (!inside(l.bias, l.outputs) || !inside(l.gain, l.outputs) || !inside(l.shift, l.outputs)) return false;
    if (l.activation < PIXFIT_NONE || l.activation > PIXFIT_GAUSS || l.norm < 0 || l.norm > PIXFIT_RMS_NORM) return false;
    if (l.skip && (i == 0 || l.inputs != l.outputs)) return false;
    if (i + 1 == plan->layer_count && (l.activation != PIXFIT_NONE || l.norm || l.skip)) return false;
    inputs = l.outputs;
  }
  if (plan->lift == PIXFIT_GRID) {
    int64_t features = 0;
    for (int64_t k = 0; k < plan->level_count; k++) {
      const PixfitLevel &level = plan->levels[k];
      if (level.rows < 1 || level.columns < 1 || level.features < 1 || level.entries < 1 || level.table < 0) return false;
      if (!inside(level.table, level.entries * level.features)) return false;
      if (!level.hashed && level.entries != level.rows * level.columns) return false;
      features += level.features;
    }
    if (plan->in_features != 2 || features != plan->lift_features) return false;
  }
  if (plan->lift == PIXFIT_GRID && plan->row_axis != 0 && plan->row_axis != 1) return false;
  if ((plan->lift == PIXFIT_FOURIER || plan->lift == PIXFIT_GABOR) && (plan->frequencies < 0 || plan->lift_features % 2))
    return false;
  if (plan->lift == PIXFIT_GABOR && plan->centres < 0) return false;
  if (plan->lift == PIXFIT_RAW && plan->lift_features != plan->in_features) return false;
  return inputs == plan->out_features;
}

template <typename F>
double timed(double seconds, F f) {  // runs a second, of f(), which tells how many units it did
  using clock = std::chrono::steady_clock;
  double best = 0.0;
  const auto begin = clock::now();
  do {
    const auto from = clock::now();
    const double units = f();
    best = std::max(best, units / std::chrono::duration<double>(clock::now() - from).count());
  } while (std::chrono::duration<double>(clock::now() - begin).count() < seconds);
  return best;
}

}  // namespace

#define PIXFIT_PUBLIC extern "C" __attribute__((visibility("default")))

PIXFIT_PUBLIC int64_t pixfit_abi(void) { return PIXFIT_ABI; }
PIXFIT_PUBLIC const char *pixfit_source_hash(void) { return PIXFIT_SOURCE_HASH; }
PIXFIT_PUBLIC const char *pixfit_isa(void) { return PIXFIT_ISA; }
PIXFIT_PUBLIC const char *pixfit_compiler(void) { return __VERSION__; }

PIXFIT_PUBLIC int64_t pixfit_supported(void) {
#if defined(__x86_64__)
  __builtin_cpu_init();
#if defined(__AVX512BF16__)
  if (!__builtin_cpu_supports("avx512bf16")) return 0;
#endif
#if defined(__AVX512F__)
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("fma");
#elif defined(__AVX2__)
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#endif
#endif
  return 1;
}

PIXFIT_PUBLIC int64_t pixfit_products(void) {
  for (const int64_t products : {PIXFIT_TILES, PIXFIT_BFLOAT16})
    if (can_multiply(products)) return products;
  return PIXFIT_FLOAT32;
}

PIXFIT_PUBLIC int64_t pixfit_scratch(const PixfitPlan *plan, int64_t fit_count, int64_t samples, int64_t threads) {
  if (!sound(plan) || fit_count < 1 || samples < 1 || threads < 1) return -1;
  try {
    const Network net(*plan, samples, true), shown(*plan, samples, false);
    const Division crew(*plan, samples, fit_count, threads);
    const int64_t steps = crew.teams * Memory::bytes(net, samples, crew.parts, crew.size);
    const int64_t forward = taken(shown.packed) + threads * taken(shown.workspace + shown.tile * plan->in_features);
    return std::max(steps, forward) + (4 << 20);  // so that huge pages fit between the ends
  } catch (...) {
    return -1;
  }
}

PIXFIT_PUBLIC int64_t pixfit_steps(const PixfitPlan *plan, const PixfitUpdate *update, int64_t loss, double loss_delta,
                                   PixfitFit *fits, int64_t fit_count, int64_t samples, int64_t steps, int64_t threads,
                                   void *scratch, int64_t scratch_bytes, const volatile int32_t *stop, int64_t *done) {
  if (!sound(plan) || !scratch || !update || !fits || !done || fit_count < 1 || samples < 1 || steps < 0 || threads < 1)
    return PIXFIT_BAD_ARGUMENT;
  try {
    const Flush flush;
    const Network net(*plan, samples, true);
    const Call call{*update, loss, static_cast<float>(loss_delta), samples, steps, stop};
    const Division crew(*plan, samples, fit_count, threads);
    Arena arena(scratch, scratch_bytes);
    std::vector<std::unique_ptr<Memory>> memories;
    for (int64_t i = 0; i < crew.teams; i++) {
      memories.push_back(std::make_unique<Memory>(net, samples, crew.parts, crew.size, arena));
      if (!memories.back()->whole) return PIXFIT_BAD_ARGUMENT;
    }
    std::atomic<int64_t> next{0};
    Team team;
    side_by_side(crew.together ? crew.size : crew.teams, [&](int64_t thread, int64_t all) {
      if (crew.together) {
        for (int64_t f = 0; f < fit_count; f++) {
          const int64_t made = train(net, call, fits[f], *memories[0], crew.parts, team, thread, all);
          if (thread == 0) done[f] = made;
        }
        return;
      }
      Team alone;
      for (int64_t f = next++; f < fit_count; f = next++)
        done[f] = train(net, call, fits[f], *memories[thread], crew.parts, alone, 0, 1);
    });
    return stop && *stop ? PIXFIT_STOPPED : PIXFIT_OK;
  } catch (...) {
    return PIXFIT_NO_MEMORY;
  }
}

PIXFIT_PUBLIC int64_t pixfit_forward(const PixfitPlan *plan, const PixfitFit *fit, int64_t samples, float *outputs,
                                     int64_t threads, void *scratch, int64_t scratch_bytes,
                                     const volatile int32_t *stop) {
  if (!sound(plan) || !scratch || !fit || samples < 1 || !outputs || threads < 1) return PIXFIT_BAD_ARGUMENT;
  try {
    const Flush flush;
    const Network net(*plan, samples, false);
    Arena arena(scratch, scratch_bytes);
    float *packed = arena.take(net.packed);
    if (!packed) return PIXFIT_BAD_ARGUMENT;
    for (int64_t i = 0; i < net.count(); i++) pack(net, i, fit->parameters, packed);
    const int64_t channels = plan->out_features, tiles = (samples + net.points - 1) / net.points;
    const int64_t all = std::min(threads, tiles);
    const int64_t each = net.workspace + net.tile * plan->in_features;
    std::vector<float *> works;
    for (int64_t t = 0; t < all; t++) {
      works.push_back(arena.take(each));
      if (!works.back()) return PIXFIT_BAD_ARGUMENT;
      memset(works.back(), 0, sizeof(float) * net.workspace);
    }
    std::atomic<int64_t> next{0};
    side_by_side(all, [&](int64_t thread, int64_t) {
      float *work = works[thread], *places = work + net.workspace;
      for (int64_t k = next++; k < tiles && !(stop && *stop); k = next++) {
        const int64_t first = k * net.points, n = std::min(net.points, samples - first), padded = round_up(n, 2 * MR);
        lift(net, *fit, [&](int64_t t) { return first + t; }, n, padded, work, places);
        const float *u = forward<false>(net, fit->parameters, packed, work, padded);
        for (int64_t t = 0; t < n; t++)
          for (int64_t c = 0; c < channels; c++) {
            const float y = u[(c / NR) * net.tile * NR + t * NR + c % NR];
            outputs[(first + t) * channels + c] = plan->output == PIXFIT_SIGMOID ? 1.0f / (1.0f + expf(-y)) : y;
          }
      }
    });
    return stop && *stop ? PIXFIT_STOPPED : PIXFIT_OK;
  } catch (...) {
    return PIXFIT_NO_MEMORY;
  }
}

PIXFIT_PUBLIC int64_t pixfit_hourglass_memory(const PixfitHourglass *net, int64_t *parameters) {
  if (!net || !parameters || !net->levels || net->level_count < 1 || !can_multiply(net->products)) return -1;
  try {
    const Hourglass all(*net, nullptr);
    *parameters = all.parameters;
    return all.floats();
  } catch (...) {
    return -1;
  }
}

// Runs the body on an hourglass that was found to be sound and to have its memory.
template <typename Body>
int64_t with_hourglass(const PixfitHourglass *net, float *memory, int64_t floats, Body body) {
  int64_t count;
  const int64_t needed = pixfit_hourglass_memory(net, &count);
  if (needed < 0 || !memory || floats < needed) return PIXFIT_BAD_ARGUMENT;
  try {
    const Flush flush;
    body(Hourglass(*net, memory));
    return PIXFIT_OK;
  } catch (...) {
    return PIXFIT_NO_MEMORY;
  }
}

PIXFIT_PUBLIC int64_t pixfit_hourglass(const PixfitHourglass *net, const float *code, const float *const *parameters,
                                       float *y, float *memory, int64_t floats) {
  if (!code || !parameters || !y) return PIXFIT_BAD_ARGUMENT;
  return with_hourglass(net, memory, floats, [&](const Hourglass &all) {
    const float *found = hourglass_forward(*net, all, code, parameters);
    memcpy(y, found, sizeof(float) * net->height * net->width * net->outputs);
  });
}

PIXFIT_PUBLIC int64_t pixfit_hourglass_back(const PixfitHourglass *net, const float *dy,
                                            const float *const *parameters, float *dcode, float *const *gradients,
                                            float *memory, int64_t floats) {
  if (!dy || !parameters || !gradients) return PIXFIT_BAD_ARGUMENT;
  return with_hourglass(net, memory, floats, [&](const Hourglass &all) {
    hourglass_backward(*net, all, dy, parameters, dcode, gradients);
  });
}

PIXFIT_PUBLIC double pixfit_peak(double seconds, int64_t bfloat16) {
  constexpr int many = 12;  // sums at once: more than the units' latency times their number
  const int64_t rounds = 20000;
  volatile float seed = 0.5f, keep = 0.0f;
  const vf a = splat(seed), b = splat(seed);
#if !defined(__AVX512BF16__)
  if (bfloat16) return 0.0;
#endif
  const double rate = timed(seconds, [&] {
    vf c[many];
    for (int i = 0; i < many; i++) c[i] = splat(seed);
    for (int64_t k = 0; k < rounds; k++) {
#if defined(__AVX512BF16__)
      if (bfloat16) {
#pragma GCC unroll 12
        for (int i = 0; i < many; i++) c[i] = (vf)_mm512_dpbf16_ps((__m512)c[i], (__m512bh)a, (__m512bh)b);
        continue;
      }
#endif
#pragma GCC unroll 12
      for (int i = 0; i < many; i++) c[i] = c[i] * a + b;
    }
    vf total{};
    for (int i = 0; i < many; i++) total += c[i];
    keep = keep + sum(total);
    return static_cast<double>(rounds * many * W * (bfloat16 ? 4 : 2));
  });
  return rate * 1e-9;
}

PIXFIT_PUBLIC double pixfit_sincos_time(double seconds) {
  constexpr int n = 2048;
  alignas(64) static thread_local float x[n], y[n];
  for (int i = 0; i < n; i++) x[i] = 0.03f * static_cast<float>(i) - 30.0f;
  alignas(64) static thread_local float u[n];
  const double rate = timed(seconds, [&] {
    for (int k = 0; k < 100; k++) {
      memcpy(u, x, sizeof x);
      activate<true>(PIXFIT_SINE, 1.0f, u, y, NR, n / NR);
      __asm__ volatile("" ::: "memory");
    }
    return 100.0 * n;
  });
  return 1e9 / rate;
}

#endif
