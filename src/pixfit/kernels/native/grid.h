// The multi-resolution feature grid: features of points from its tables, and their gradient back into the tables.
// Agrees with src/pixfit/kernels/grid.py. The time goes to waiting for memory, so a block of points first finds its
// vertices and weights, a vector of points at a time, and then visits them with nothing else to wait for.

#ifndef PIXFIT_GRID_H
#define PIXFIT_GRID_H

#include <stdint.h>

#include <type_traits>

#include "api.h"
#include "vec.h"

namespace pixfit {

constexpr int64_t GRID_BLOCK = 128;           // points
constexpr uint32_t GRID_PRIME = 2654435761u;  // of the spatial hash, whose factor of the column is 1

// Along one side, the T neighbours that each point of a block lies between: the first one's number, and all weights.
template <int T>
struct GridAxis {
  alignas(64) int32_t first[GRID_BLOCK];
  alignas(64) float weight[T][GRID_BLOCK];
};

// Neighbour s of a point is in row s / T and column s % T of its T x T.
template <int T>
struct GridBlock {
  GridAxis<T> rows, columns;
  alignas(64) uint32_t entry[T * T][GRID_BLOCK];  // in the table; only where has_rows says no
  alignas(64) int32_t list[GRID_BLOCK * T * T];   // what a part has to visit
};

// F numbers in a row, at any address.
template <int F>
struct GridNumbers {
  typedef float type __attribute__((vector_size(F * 4), aligned(4), may_alias));
};
template <int F>
PIXFIT_INLINE typename GridNumbers<F>::type &numbers(float *p) {
  return *reinterpret_cast<typename GridNumbers<F>::type *>(p);
}
template <int F>
PIXFIT_INLINE const typename GridNumbers<F>::type &numbers(const float *p) {
  return *reinterpret_cast<const typename GridNumbers<F>::type *>(p);
}

// Calls work(F, at) with F = 8, 4, 2 or 1 for the pieces, from `at` on, of the features of a vertex.
template <typename Work>
PIXFIT_INLINE void grid_pieces(int64_t features, Work work) {
  int64_t at = 0;
  for (; features - at >= 8; at += 8) work(std::integral_constant<int, 8>(), at);
  if (features & 4) work(std::integral_constant<int, 4>(), at), at += 4;
  if (features & 2) work(std::integral_constant<int, 2>(), at), at += 2;
  if (features & 1) work(std::integral_constant<int, 1>(), at);
}

// Coordinates lie 2 apart; those outside the range, and what is not a number, come to its ends. All T neighbours exist,
// except on sides of fewer vertices: there the first one is 0, and the weights of those that do not exist are 0.
template <int T>
inline void grid_place(const PixfitPlan &plan, int64_t vertices, const float *coordinates, int64_t count,
                       GridAxis<T> &axis) {
  const int32_t last = (int32_t)vertices - 1, latest = vertices > T ? (int32_t)vertices - T : 0;
  const float low = (float)plan.low;
  const float scale = (float)((plan.corner ? last : vertices) / (plan.high - plan.low));
  const float half = plan.corner ? 0.0f : 0.5f;
  if constexpr (T == 2) {
    const float end = (float)last;
    for (int64_t i = 0; i < count; i++) {
      float p = (coordinates[2 * i] - low) * scale - half;
      p = p > 0.0f ? p : 0.0f;
      p = p < end ? p : end;
      int32_t first = (int32_t)p;
      first = first < latest ? first : latest;
      const float f = p - (float)first;
      axis.first[i] = first;
      axis.weight[0][i] = 1.0f - f;
      axis.weight[1][i] = f;
    }
  } else {
    const bool spline = plan.interpolation == PIXFIT_SPLINE;
    const float end = (float)last + half;
    for (int64_t i = 0; i < count; i++) {
      float p = (coordinates[2 * i] - low) * scale - half;
      p = p > -half ? p : -half;
      p = p < end ? p : end;
      const int32_t whole = (int32_t)(p + 1.0f) - 1;  // the floor, of numbers from -1 on
      const float f = p - (float)whole;
      axis.first[i] = whole - 1;
      if (spline) {
        const float g = 1.0f - f;
        axis.weight[0][i] = g * g * g * (1.0f / 6.0f);
        axis.weight[1][i] = (0.5f * f - 1.0f) * f * f + 2.0f / 3.0f;
        axis.weight[2][i] = (0.5f * g - 1.0f) * g * g + 2.0f / 3.0f;
        axis.weight[3][i] = f * f * f * (1.0f / 6.0f);
      } else {  // Catmull-Rom
        axis.weight[0][i] = ((1.0f - 0.5f * f) * f - 0.5f) * f;
        axis.weight[1][i] = (1.5f * f - 2.5f) * f * f + 1.0f;
        axis.weight[2][i] = ((2.0f - 1.5f * f) * f + 0.5f) * f;
        axis.weight[3][i] = (0.5f * f - 0.5f) * f * f;
      }
    }
    for (int64_t i = 0; i < count; i++) {
      const int32_t first = axis.first[i];
      const int32_t inside = first < 0 ? 0 : first > latest ? latest : first;
      if (first == inside && vertices >= T) continue;
      float weight[T] = {};  // in place of a vertex beyond the edge comes the one on it
      for (int32_t k = 0; k < T; k++) {
        const int32_t vertex = first + k < 0 ? 0 : first + k > last ? last : first + k;
        weight[vertex - inside] += axis.weight[k][i];
      }
      axis.first[i] = inside;
      for (int k = 0; k < T; k++) axis.weight[k][i] = weight[k];
    }
  }
}

// Whether the T x T neighbours of every point are T rows of T vertices side by side in the table.
template <int T>
PIXFIT_INLINE bool has_rows(const PixfitLevel &level) {
  return !level.hashed && level.rows >= T && level.columns >= T;
}

template <int T>
inline void grid_entries(const PixfitLevel &level, int64_t count, GridBlock<T> &block) {
  const uint32_t rows = (uint32_t)level.rows, columns = (uint32_t)level.columns, entries = (uint32_t)level.entries;
  const bool mask = (entries & (entries - 1)) == 0;
  for (uint32_t s = 0; s < T * T; s++) {
    uint32_t *entry = block.entry[s];
    for (int64_t i = 0; i < count; i++) {
      const uint32_t row = (uint32_t)block.rows.first[i] + s / T, column = (uint32_t)block.columns.first[i] + s % T;
      const uint32_t r = row < rows ? row : rows - 1, c = column < columns ? column : columns - 1;
      entry[i] = level.hashed ? (c ^ r * GRID_PRIME) : r * columns + c;
    }
    if (level.hashed && mask)
      for (int64_t i = 0; i < count; i++) entry[i] &= entries - 1;
    else if (level.hashed)
      for (int64_t i = 0; i < count; i++) entry[i] %= entries;
  }
}

// Asks for the vertices of a block ahead of their use, where the level is too large for the inner caches.
template <int T, bool Write>
PIXFIT_INLINE void grid_ask(const float *table, int64_t size, int64_t pitch, int64_t rows, const GridBlock<T> &block,
                            int64_t count) {
  if (rows * pitch < (1 << 15)) return;
  for (int64_t i = 0; i < count; i++) {
    const float *corner = table + block.rows.first[i] * pitch + block.columns.first[i] * size;
#pragma GCC unroll 4
    for (int k = 0; k < T; k++) __builtin_prefetch(corner + k * pitch, Write);
  }
}

// F features of `count` points; a vertex has `size` numbers, a row of vertices `pitch`.
template <int F, int T, bool Rows>
PIXFIT_INLINE void grid_gather(const float *table, int64_t size, int64_t pitch, const GridBlock<T> &block,
                               int64_t count, float *features, int64_t stride) {
  for (int64_t i = 0; i < count; i++) {
    const float *corner = Rows ? table + block.rows.first[i] * pitch + block.columns.first[i] * size : table;
    typename GridNumbers<F>::type sum = {};
#pragma GCC unroll 4
    for (int k = 0; k < T; k++) {
      typename GridNumbers<F>::type row = {};
#pragma GCC unroll 4
      for (int l = 0; l < T; l++) {
        const int64_t at = Rows ? k * pitch + l * size : block.entry[k * T + l][i] * size;
        row += block.columns.weight[l][i] * numbers<F>(corner + at);
      }
      sum += block.rows.weight[k][i] * row;
    }
    numbers<F>(features + i * stride) = sum;
  }
}

template <int F, int T, bool Rows>
PIXFIT_INLINE void grid_scatter(float *table, int64_t size, int64_t pitch, const GridBlock<T> &block, int64_t count,
                                const float *dfeatures, int64_t stride) {
  for (int64_t i = 0; i < count; i++) {
    float *corner = Rows ? table + block.rows.first[i] * pitch + block.columns.first[i] * size : table;
    const typename GridNumbers<F>::type d = numbers<F>(dfeatures + i * stride);
#pragma GCC unroll 4
    for (int k = 0; k < T; k++) {
      const typename GridNumbers<F>::type share = block.rows.weight[k][i] * d;
#pragma GCC unroll 4
      for (int l = 0; l < T; l++) {
        const int64_t at = Rows ? k * pitch + l * size : block.entry[k * T + l][i] * size;
        numbers<F>(corner + at) += block.columns.weight[l][i] * share;
      }
    }
  }
}

// The same for the `count` points of the block's list and the rows from `begin` to `end` alone.
template <int F, int T>
PIXFIT_INLINE void grid_scatter_rows(float *table, int64_t size, int64_t pitch, const GridBlock<T> &block,
                                     int64_t count, const float *dfeatures, int64_t stride, int64_t begin,
                                     int64_t end) {
  for (int64_t j = 0; j < count; j++) {
    const int64_t i = block.list[j], row = block.rows.first[i];
    float *corner = table + row * pitch + block.columns.first[i] * size;
    const typename GridNumbers<F>::type d = numbers<F>(dfeatures + i * stride);
    for (int k = 0; k < T; k++) {
      if (row + k < begin || row + k >= end) continue;
      const typename GridNumbers<F>::type share = block.rows.weight[k][i] * d;
#pragma GCC unroll 4
      for (int l = 0; l < T; l++) numbers<F>(corner + k * pitch + l * size) += block.columns.weight[l][i] * share;
    }
  }
}

// The same for the `count` neighbours of the block's list alone: point * T * T + s.
template <int F, int T>
PIXFIT_INLINE void grid_scatter_list(float *table, int64_t size, const GridBlock<T> &block, int64_t count,
                                     const float *dfeatures, int64_t stride) {
  for (int64_t j = 0; j < count; j++) {
    const int32_t i = block.list[j] / (T * T), s = block.list[j] % (T * T);
    const typename GridNumbers<F>::type share = block.rows.weight[s / T][i] * numbers<F>(dfeatures + i * stride);
    numbers<F>(table + block.entry[s][i] * size) += block.columns.weight[s % T][i] * share;
  }
}

template <int T>
inline void grid_forward_level(const PixfitPlan &plan, const PixfitLevel &level, const float *table,
                               const float *coordinates, int64_t n, float *features, int64_t stride) {
  const int64_t size = level.features, pitch = level.columns * size;
  const bool rows = has_rows<T>(level);
  GridBlock<T> block;
  for (int64_t from = 0; from < n; from += GRID_BLOCK) {
    const int64_t count = n - from < GRID_BLOCK ? n - from : GRID_BLOCK;
    const float *points = coordinates + 2 * from;
    float *out = features + from * stride;
    grid_place<T>(plan, level.rows, points + plan.row_axis, count, block.rows);
    grid_place<T>(plan, level.columns, points + 1 - plan.row_axis, count, block.columns);
    if (!rows) grid_entries<T>(level, count, block);
    else grid_ask<T, false>(table, size, pitch, level.rows, block, count);
    grid_pieces(size, [&](auto f, int64_t at) __attribute__((always_inline)) {
      constexpr int F = decltype(f)::value;
      if (rows)
        grid_gather<F, T, true>(table + at, size, pitch, block, count, out + at, stride);
      else
        grid_gather<F, T, false>(table + at, size, pitch, block, count, out + at, stride);
    });
  }
}

// Adds to the rows of vertices, or the entries of the table, from `begin` to `end` of `all`.
template <int T>
inline void grid_backward_level(const PixfitPlan &plan, const PixfitLevel &level, const float *coordinates, int64_t n,
                                const float *dfeatures, int64_t stride, float *table, int64_t begin, int64_t end,
                                int64_t all) {
  const int64_t size = level.features, pitch = level.columns * size;
  const bool rows = has_rows<T>(level), whole = begin == 0 && end == all;
  GridBlock<T> block;
  for (int64_t from = 0; from < n; from += GRID_BLOCK) {
    const int64_t count = n - from < GRID_BLOCK ? n - from : GRID_BLOCK;
    const float *points = coordinates + 2 * from, *slopes = dfeatures + from * stride;
    int64_t listed = 0;
    grid_place<T>(plan, level.rows, points + plan.row_axis, count, block.rows);
    if (rows && !whole) {
      for (int64_t i = 0; i < count; i++) {
        block.list[listed] = (int32_t)i;
        listed += (block.rows.first[i] + T > begin) & (block.rows.first[i] < end);
      }
      if (listed == 0) continue;
    }
    grid_place<T>(plan, level.columns, points + 1 - plan.row_axis, count, block.columns);
    if (!rows) grid_entries<T>(level, count, block);
    else if (whole) grid_ask<T, true>(table, size, pitch, level.rows, block, count);
    if (!rows && !whole)
      for (int32_t i = 0; i < count; i++)
        for (int32_t s = 0; s < T * T; s++) {
          block.list[listed] = i * T * T + s;
          listed += (block.entry[s][i] >= begin) & (block.entry[s][i] < end);
        }
    grid_pieces(size, [&](auto f, int64_t at) __attribute__((always_inline)) {
      constexpr int F = decltype(f)::value;
      if (rows && whole)
        grid_scatter<F, T, true>(table + at, size, pitch, block, count, slopes + at, stride);
      else if (rows)
        grid_scatter_rows<F, T>(table + at, size, pitch, block, listed, slopes + at, stride, begin, end);
      else if (whole)
        grid_scatter<F, T, false>(table + at, size, pitch, block, count, slopes + at, stride);
      else
        grid_scatter_list<F, T>(table + at, size, block, listed, slopes + at, stride);
    });
  }
}

// Features (n rows, `stride` apart) at coordinates (n, 2), the levels side by side; `parameters` is a fit's row of P.
inline void grid_forward(const PixfitPlan &plan, const float *parameters, const float *coordinates, int64_t n,
                         float *features, int64_t stride) {
  for (int64_t number = 0; number < plan.level_count; number++) {
    const PixfitLevel &level = plan.levels[number];
    (plan.interpolation ? grid_forward_level<4> : grid_forward_level<2>)(plan, level, parameters + level.table, coordinates, n,
                                                                 features, stride);
    features += level.features;
  }
}

// Adds to `gradient`, a fit's row of P, what the gradient of the features makes of the tables in one of `parts` equal
// parts of the levels, one after the other. No two parts share an entry, and what an entry gets is added in the order
// of the points: parts may run side by side, and the sums are the same for any number of them, bit for bit.
inline void grid_backward_part(const PixfitPlan &plan, const float *coordinates, int64_t n, const float *dfeatures,
                               int64_t stride, float *gradient, int64_t part, int64_t parts) {
  for (int64_t number = 0; number < plan.level_count; number++) {
    const PixfitLevel &level = plan.levels[number];
    // With a level as `parts` units, the part has as many units as there are levels: from `first` of this one on.
    const int64_t first = plan.level_count * part - number * parts, last = first + plan.level_count;
    if (last > 0 && first < parts) {
      const bool rows = plan.interpolation ? has_rows<4>(level) : has_rows<2>(level);
      const int64_t all = rows ? level.rows : level.entries;
      const int64_t begin = first < 0 ? 0 : all * first / parts, end = last > parts ? all : all * last / parts;
      if (begin < end)
        (plan.interpolation ? grid_backward_level<4> : grid_backward_level<2>)(plan, level, coordinates, n, dfeatures, stride,
                                                                       gradient + level.table, begin, end, all);
    }
    dfeatures += level.features;
  }
}

inline void grid_backward(const PixfitPlan &plan, const float *coordinates, int64_t n, const float *dfeatures,
                          int64_t stride, float *gradient) {
  grid_backward_part(plan, coordinates, n, dfeatures, stride, gradient, 0, 1);
}

}  // namespace pixfit
#endif
