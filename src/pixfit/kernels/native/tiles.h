// Pairs of bfloat16 numbers, and the matrix units (AMX) of processors that have them.

#ifndef PIXFIT_TILES_H
#define PIXFIT_TILES_H

#include <stdint.h>

#include "vec.h"

#if defined(__AVX512BF16__)
#include <immintrin.h>
#endif

#if defined(__AVX512BF16__) && defined(__linux__) && __has_include(<amxbf16intrin.h>)
#define PIXFIT_HAS_TILES
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#define PIXFIT_WITH_TILES __attribute__((target("amx-tile,amx-bf16")))
#endif

namespace {

constexpr int64_t DEEP = 32;  // numbers that a tile sums at once; sums are filled up with zeros to a multiple
constexpr int64_t TALL = 16;  // rows of a tile, and lanes of 32 bits of one of its rows

// Whether this processor has matrix units and the system lets this process use them. Linux wants to be asked once.
inline bool has_tiles() {
#if defined(PIXFIT_HAS_TILES)
  static const bool found = [] {
    unsigned a, b, c, d;
    constexpr unsigned bfloat16 = 1u << 22, tiles = 1u << 24;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || !(d & bfloat16) || !(d & tiles)) return false;
    constexpr long ask = 0x1023, tile_data = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
    return syscall(SYS_arch_prctl, ask, tile_data) == 0;
  }();
  return found;
#else
  return false;
#endif
}

#if defined(__AVX512BF16__)

// Lanes of a and b by turns, in bfloat16.
PIXFIT_INLINE __m512i paired(vf a, vf b) {
  alignas(64) static constexpr uint16_t order[2 * W] = {0,  16, 1,  17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
                                                        8,  24, 9,  25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
  const __m512i both = (__m512i)_mm512_cvtne2ps_pbh((__m512)b, (__m512)a);
  return _mm512_permutexvar_epi16(_mm512_load_si512(order), both);
}

#endif

#if defined(PIXFIT_HAS_TILES)

// The compiler does not know that tiles are read from memory and written there.
PIXFIT_INLINE void settled() { __asm__ volatile("" ::: "memory"); }

// Tiles 0 to 3 are sums, 4 and 5 the left factors, which have as many rows as they; 6 and 7 the right ones.
class TilesInUse {
 public:
  PIXFIT_WITH_TILES explicit TilesInUse(int64_t rows) {
    struct alignas(64) {
      uint8_t palette = 1, start = 0, none[14] = {};
      uint16_t bytes[16] = {};
      uint8_t rows[16] = {};
    } shape;
    for (int i = 0; i < 8; i++) shape.bytes[i] = 64, shape.rows[i] = static_cast<uint8_t>(i < 6 ? rows : TALL);
    settled();
    _tile_loadconfig(&shape);
    settled();
  }
  PIXFIT_WITH_TILES ~TilesInUse() { _tile_release(); }
  TilesInUse(const TilesInUse &) = delete;
  TilesInUse &operator=(const TilesInUse &) = delete;
};

// A sum of A tiles of 16 rows by B tiles of 16 lanes is cleared, grows by 32 products in each place at a time, and is
// put where it belongs. Rows are so many bytes apart.
template <int A, int B>
PIXFIT_WITH_TILES PIXFIT_INLINE void clear_tiles() {
  _tile_zero(0);
  if (B == 2) _tile_zero(1);
  if (A == 2) _tile_zero(2);
  if (A == 2 && B == 2) _tile_zero(3);
  settled();
}

template <int A, int B>
PIXFIT_WITH_TILES PIXFIT_INLINE void add_tiles(const void *a, int64_t a_bytes, const void *b, int64_t b_bytes) {
  _tile_loadd(4, a, a_bytes);
  _tile_loadd(6, b, b_bytes);
  _tile_dpbf16ps(0, 4, 6);
  if (B == 2) {
    _tile_loadd(7, static_cast<const char *>(b) + TALL * sizeof(float), b_bytes);
    _tile_dpbf16ps(1, 4, 7);
  }
  if (A == 2) {
    _tile_loadd(5, static_cast<const char *>(a) + TALL * a_bytes, a_bytes);
    _tile_dpbf16ps(2, 5, 6);
    if (B == 2) _tile_dpbf16ps(3, 5, 7);
  }
}

enum class Into { Store, Multiply, Add };

// To the first `rows` and `lanes` of a matrix: in the place of what is there, multiplied by it, or added to it.
template <Into I, int A, int B>
PIXFIT_WITH_TILES PIXFIT_INLINE void put_tiles(float *out, int64_t stride, int64_t rows, int64_t lanes) {
  alignas(64) float sums[A * TALL][B * TALL];
  const bool direct = I == Into::Store && rows >= A * TALL && lanes >= B * TALL;
  const int64_t step = direct ? stride : B * TALL, bytes = step * static_cast<int64_t>(sizeof(float));
  float *to = direct ? out : sums[0];
  _tile_stored(0, to, bytes);
  if (B == 2) _tile_stored(1, to + TALL, bytes);
  if (A == 2) _tile_stored(2, to + TALL * step, bytes);
  if (A == 2 && B == 2) _tile_stored(3, to + TALL * step + TALL, bytes);
  settled();
  if (direct) return;
  rows = rows < A * TALL ? rows : A * TALL;
  for (int64_t r = 0; r < rows; r++, out += stride)
    for (int64_t lane = 0; lane < B * TALL && lane < lanes; lane += W) {
      const vf c = load(sums[r] + lane);
      const __mmask16 own = static_cast<__mmask16>(lanes - lane >= W ? 0xffff : (1 << (lanes - lane)) - 1);
      const vf before = I == Into::Store ? vf{} : (vf)_mm512_maskz_loadu_ps(own, out + lane);
      _mm512_mask_storeu_ps(out + lane, own, (__m512)(I == Into::Store ? c : I == Into::Add ? before + c : before * c));
    }
}

#endif

}  // namespace
#endif
