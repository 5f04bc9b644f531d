// Linear layers of bfloat16: y[m, n] = bias[n] + sum over k of x[m, k] * w[n, k], with sums in float32.
//
// Weights are read as they lie, row by row [N, K]; nothing is put in another order beforehand. With tiles (AMX) 16 rows
// of w are one factor and x, which is put in the order of tiles at every call, the other: few rows of x are as fast as
// memory gives w, many nearly as fast as from a packed w. Without tiles dot products of rows do the same.
//
// Every y[m, n] is summed in one order, whatever rows of x come with it: a token's result is the same bits alone, in a
// batch, and in a long prompt. The two ways sum in different orders.

#include <immintrin.h>
#include <omp.h>

#include <algorithm>
#include <cstdint>

#include "bfloat.h"
#include "tiles.h"

namespace {

using bf::across, bf::lanes16, bf::lanes32, bf::parts, bf::Room, bf::up, bf::widen;

constexpr int64_t kDeep = 32;        // columns of a tile of w
constexpr int64_t kFew = 64;         // rows of x that pass all of w at once
constexpr int64_t kColumns = 1536;   // of more rows about as many columns are in the order of tiles at a time
constexpr int64_t kTokens = 352;     // and as many rows: 1 MB, half of a core's cache
constexpr int64_t kSmall = 1 << 16;  // weights that one thread multiplies before two can meet

enum Way : int { kDots = 1, kTiles = 2 };

struct Call {
    const uint16_t* w;
    const uint16_t* bias;  // nullptr: none
    const uint16_t* x;
    uint16_t* y;
    int64_t rows, columns;  // of w
    int64_t count;          // rows of x
};

// bfloat16, nearest and even, in the low halves of 16 words.
__m512i nearest(__m512 x) { return _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(x)); }

#if defined(__AMX_BF16__)

// Tiles 0 to 3 hold sums [16 rows of w, 16 rows of x]; 4 and 5 w [16, 32]; 6 and 7 x as [16 pairs of k, 16 rows of x]. The
// tiles named by a bit of `narrow` have `count` rows of x.
void shape(unsigned narrow, int64_t count) {
    TileConfig config;
    for (int t = 0; t < 8; ++t) {
        config.rows[t] = 16;
        config.bytes[t] = narrow >> t & 1 ? static_cast<uint16_t>(4 * count) : 64;
    }
    config.load();
}

// Rows and columns of 16 x 16 words change places.
void transpose(__m512i r[16]) {
    __m512i t[16];
    for (int i = 0; i < 16; i += 2) {
        t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
        t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
    }
    for (int i = 0; i < 16; i += 4) {
        r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
        r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
        r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
        r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
    }
    for (int i = 0; i < 4; ++i) {
        t[i] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0x88);
        t[i + 4] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0xdd);
        t[i + 8] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0x88);
        t[i + 12] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0xdd);
    }
    for (int i = 0; i < 4; ++i) {
        r[i] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0x88);
        r[i + 8] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0xdd);
        r[i + 4] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0x88);
        r[i + 12] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0xdd);
    }
}

// x [count, columns] as tiles [columns / 32, 16 pairs, wide], count <= wide <= 16; zeros where there is no x.
void pack_x(const uint16_t* x, int64_t stride, int64_t count, int64_t wide, int64_t columns, uint32_t* to) {
    for (int64_t k = 0; k < columns; k += kDeep, to += 16 * wide) {
        const __mmask32 some = lanes32(columns - k);
        if (wide == 1) {
            _mm512_storeu_si512(to, _mm512_maskz_loadu_epi16(some, x + k));
            continue;
        }
        __m512i rows[16];
        for (int64_t r = 0; r < 16; ++r)
            rows[r] = r < count ? _mm512_maskz_loadu_epi16(some, x + r * stride + k) : _mm512_setzero_si512();
        transpose(rows);
        for (int64_t r = 0; r < 16; ++r) _mm512_mask_storeu_epi32(to + r * wide, lanes16(wide), rows[r]);
    }
}

// Rows `first` to `first + 16` of w, `columns` from `k0` on, as tiles [columns / 32] that are `step` values apart; zeros
// where there is no w.
void pack_w(const Call& c, int64_t first, int64_t k0, int64_t columns, uint16_t* to, int64_t step) {
    for (int64_t r = 0; r < 16; ++r) {
        const int64_t here = first + r < c.rows ? c.columns - k0 : 0;
        const uint16_t* const from = c.w + (first + r) * c.columns + k0;
        for (int64_t k = 0; k < columns; k += kDeep)
            _mm512_storeu_si512(to + k / kDeep * step + r * kDeep, _mm512_maskz_loadu_epi16(lanes32(here - k), from + k));
    }
}

// Sums [32 rows of w from `first` on, wide] of the rows `row` to `row + count` of x, with the bias, to y.
void finish(const Call& c, const float* sums, int64_t wide, int64_t count, int64_t first, int64_t row) {
    const int64_t left = c.rows - first;
    __m512i pairs[16];
    for (int64_t i = 0; i < 16; ++i) {
        __m512 low = _mm512_maskz_loadu_ps(lanes16(wide), sums + 2 * i * wide);
        __m512 high = _mm512_maskz_loadu_ps(lanes16(wide), sums + (2 * i + 1) * wide);
        if (c.bias != nullptr) {
            if (2 * i < left) low = _mm512_add_ps(low, _mm512_set1_ps(widen(c.bias[first + 2 * i])));
            if (2 * i + 1 < left) high = _mm512_add_ps(high, _mm512_set1_ps(widen(c.bias[first + 2 * i + 1])));
        }
        pairs[i] = _mm512_or_si512(nearest(low), _mm512_slli_epi32(nearest(high), 16));
    }
    transpose(pairs);
    for (int64_t r = 0; r < count; ++r)
        _mm512_mask_storeu_epi16(c.y + (row + r) * c.rows + first, lanes32(left), pairs[r]);
}

// T tiles of x, of which the last has `last` rows, times the blocks `begin` to `end` of 16 rows of w. `edge` has room for one
// block.
template <int T>
void few_blocks(const Call& c, const uint32_t* x, int64_t last, int64_t begin, int64_t end, uint16_t* edge) {
    const int64_t depth = up(c.columns, kDeep), whole = c.columns / kDeep * kDeep;
    const int64_t words = depth * 8;  // of a full tile of x
    alignas(64) float sums[T][32 * 16];
    shape(1u << (T - 1) | 1u << 7, last);
    for (int64_t block = begin; block < end; ++block) {
        const bool outside = block * 16 + 16 > c.rows;
        const uint16_t* const from = c.w + block * 16 * c.columns;
        if (outside) {
            pack_w(c, block * 16, 0, depth, edge, 512);
        } else if (whole < depth) {
            pack_w(c, block * 16, whole, kDeep, edge, 512);
        }
        _tile_zero(0);
        if constexpr (T > 1) _tile_zero(1);
        if constexpr (T > 2) _tile_zero(2);
        if constexpr (T > 3) _tile_zero(3);
        for (int64_t k = 0; k < depth; k += kDeep) {
            if (outside) {
                _tile_loadd(4, edge + k * 16, 64);
            } else if (k < whole) {
                _tile_loadd(4, from + k, c.columns * 2);
            } else {
                _tile_loadd(4, edge, 64);
            }
            if constexpr (T > 1) {
                _tile_loadd(6, x + k * 8, 64);
                _tile_dpbf16ps(0, 4, 6);
            }
            if constexpr (T > 2) {
                _tile_loadd(6, x + words + k * 8, 64);
                _tile_dpbf16ps(1, 4, 6);
            }
            if constexpr (T > 3) {
                _tile_loadd(6, x + 2 * words + k * 8, 64);
                _tile_dpbf16ps(2, 4, 6);
            }
            _tile_loadd(7, x + (T - 1) * words + k / 2 * last, last * 4);
            if constexpr (T == 1) _tile_dpbf16ps(0, 4, 7);
            if constexpr (T == 2) _tile_dpbf16ps(1, 4, 7);
            if constexpr (T == 3) _tile_dpbf16ps(2, 4, 7);
            if constexpr (T == 4) _tile_dpbf16ps(3, 4, 7);
        }
        const int64_t half = block % 2 * 16;
        _tile_stored(0, sums[0] + half * (T == 1 ? last : 16), (T == 1 ? last : 16) * 4);
        if constexpr (T > 1) _tile_stored(1, sums[1] + half * (T == 2 ? last : 16), (T == 2 ? last : 16) * 4);
        if constexpr (T > 2) _tile_stored(2, sums[2] + half * (T == 3 ? last : 16), (T == 3 ? last : 16) * 4);
        if constexpr (T > 3) _tile_stored(3, sums[3] + half * last, last * 4);
        if (half == 0 && block + 1 < end) continue;
        for (int t = 0; t < T; ++t) {
            const int64_t wide = t == T - 1 ? last : 16;
            finish(c, sums[t], wide, wide, block / 2 * 32, t * 16);
        }
    }
    _tile_release();
}

bool few(const Call& c, int threads, Room& room) {
    const int64_t tiles = parts(c.count, 16), last = c.count - (tiles - 1) * 16, depth = up(c.columns, kDeep);
    const int64_t pairs = parts(c.rows, 32), edge_bytes = depth * 32 + 4096;
    char* const space = room.of(up(c.count, 16) * depth * 2 + threads * edge_bytes);
    if (space == nullptr) return false;
    const bool as_is = c.count == 1 && c.columns % kDeep == 0;  // then x is in the order of tiles already
    auto* const packed = reinterpret_cast<uint32_t*>(space);
#pragma omp parallel num_threads(threads)
    {
        const int64_t thread = omp_get_thread_num(), all = omp_get_num_threads();
        if (!as_is) {
            const int64_t begin = depth / kDeep * thread / all * kDeep, end = depth / kDeep * (thread + 1) / all * kDeep;
            for (int64_t t = 0; t < tiles; ++t) {
                const int64_t own = t + 1 == tiles ? last : 16;
                pack_x(c.x + t * 16 * c.columns + begin, c.columns, own, own, std::min(c.columns, end) - begin,
                       packed + t * depth * 8 + begin / 2 * own);
            }
#pragma omp barrier
        }
        auto* const edge = reinterpret_cast<uint16_t*>(space + up(c.count, 16) * depth * 2 + thread * edge_bytes);
        const uint32_t* const x = as_is ? reinterpret_cast<const uint32_t*>(c.x) : packed;
        const int64_t begin = pairs * thread / all * 2, end = std::min(pairs * (thread + 1) / all * 2, parts(c.rows, 16));
        if (tiles == 1) few_blocks<1>(c, x, last, begin, end, edge);
        if (tiles == 2) few_blocks<2>(c, x, last, begin, end, edge);
        if (tiles == 3) few_blocks<3>(c, x, last, begin, end, edge);
        if (tiles == 4) few_blocks<4>(c, x, last, begin, end, edge);
    }
    return true;
}

// Where 32 rows of w lie: of the tile of columns k the first 16 rows at w + k / 32 * step, `across` bytes apart.
struct Rows {
    const uint16_t* w;
    int64_t step, across;
};

// Rows of w that are asked for meanwhile.
struct Ahead {
    const uint16_t* w;
    int64_t rows, stride;
};

// 32 rows of w times T tiles of x, `deep` columns of both, on top of `sums` unless these columns are the first.
template <int T>
void product(const Rows& rows, const uint32_t* x, int64_t deep, bool first, float* sums, const Ahead& ahead) {
    if (first) {
        _tile_zero(0);
        _tile_zero(1);
        if constexpr (T == 2) {
            _tile_zero(2);
            _tile_zero(3);
        }
    } else {
        _tile_loadd(0, sums, 64);
        _tile_loadd(1, sums + 256, 64);
        if constexpr (T == 2) {
            _tile_loadd(2, sums + 512, 64);
            _tile_loadd(3, sums + 768, 64);
        }
    }
    const uint16_t* w = rows.w;
    for (int64_t k = 0; k < deep; k += kDeep, w += rows.step) {
        for (int64_t r = 0; r < ahead.rows; ++r)
            _mm_prefetch(reinterpret_cast<const char*>(ahead.w + r * ahead.stride + k), _MM_HINT_T1);
        _tile_loadd(6, x + k * 8, 64);
        _tile_loadd(4, w, rows.across);
        _tile_dpbf16ps(0, 4, 6);
        _tile_loadd(5, w + rows.across * 8, rows.across);
        _tile_dpbf16ps(1, 5, 6);
        if constexpr (T == 2) {
            _tile_loadd(7, x + (deep + k) * 8, 64);
            _tile_dpbf16ps(2, 4, 7);
            _tile_dpbf16ps(3, 5, 7);
        }
    }
    _tile_stored(0, sums, 64);
    _tile_stored(1, sums + 256, 64);
    if constexpr (T == 2) {
        _tile_stored(2, sums + 512, 64);
        _tile_stored(3, sums + 768, 64);
    }
}

// Parts of x that fit the cache, tokens by columns, times all of w; sums between parts of columns lie in memory.
bool many(const Call& c, int threads, Room& room) {
    const int64_t depth = up(c.columns, kDeep), blocks = parts(c.rows, 32);
    const int64_t columns = up(parts(depth, parts(depth, kColumns)), kDeep);
    const int64_t tokens = up(parts(c.count, parts(c.count, kTokens)), 32);
    const int64_t x_bytes = tokens * columns * 2, edge_bytes = columns * 64 + 4096;
    const int64_t sums_bytes = columns < depth ? blocks * 32 * tokens * 4 : 0;
    char* const space = room.of(x_bytes + sums_bytes + threads * edge_bytes);
    if (space == nullptr) return false;
    auto* const packed = reinterpret_cast<uint32_t*>(space);
    auto* const between = reinterpret_cast<float*>(space + x_bytes);
#pragma omp parallel num_threads(threads)
    {
        const int64_t thread = omp_get_thread_num(), all = omp_get_num_threads();
        const int64_t begin = blocks * thread / all, end = blocks * (thread + 1) / all;
        auto* const edge = reinterpret_cast<uint16_t*>(space + x_bytes + sums_bytes + thread * edge_bytes);
        alignas(64) float own[4 * 256];
        shape(0, 16);
        for (int64_t row = 0; row < c.count; row += tokens) {
            const int64_t here = std::min(tokens, c.count - row), tiles = parts(here, 16);
            for (int64_t k = 0; k < c.columns; k += columns) {
                const int64_t some = std::min(columns, c.columns - k), deep = up(some, kDeep);
                for (int64_t t = thread; t < tiles; t += all)
                    pack_x(c.x + (row + t * 16) * c.columns + k, c.columns, std::min<int64_t>(16, here - t * 16), 16, some,
                           packed + t * deep * 8);
#pragma omp barrier
                for (int64_t block = begin; block < end; ++block) {
                    Rows rows{c.w + block * 32 * c.columns + k, kDeep, c.columns * 2};
                    if (block * 32 + 32 > c.rows || some < deep) {
                        pack_w(c, block * 32, k, deep, edge, 1024);
                        pack_w(c, block * 32 + 16, k, deep, edge + 512, 1024);
                        rows = {edge, 1024, 64};
                    }
                    for (int64_t t = 0; t < tiles; t += 2) {
                        const int64_t from = 32 * t / tiles, to = 32 * std::min(t + 2, tiles) / tiles;
                        const Ahead ahead{c.w + ((block + 1) * 32 + from) * c.columns + k, block + 1 < end ? to - from : 0,
                                          c.columns};
                        float* const sums = sums_bytes ? between + (block * tokens + t * 16) * 32 : own;
                        if (t + 1 < tiles) {
                            product<2>(rows, packed + t * deep * 8, deep, k == 0, sums, ahead);
                        } else {
                            product<1>(rows, packed + t * deep * 8, deep, k == 0, sums, ahead);
                        }
                        if (k + columns < c.columns) continue;
                        for (int64_t i = t; i < std::min(t + 2, tiles); ++i)
                            finish(c, sums + (i - t) * 512, 16, std::min<int64_t>(16, here - i * 16), block * 32,
                                   row + i * 16);
                    }
                }
#pragma omp barrier
            }
        }
        _tile_release();
    }
    return true;
}
#endif

// Four rows of w from `first` on times X rows of x from `row` on.
template <int X>
void dot_block(const Call& c, int64_t first, int64_t row) {
    const int64_t left = c.rows - first;
    const uint16_t* w[4];
    for (int i = 0; i < 4; ++i) w[i] = c.w + (first + std::min<int64_t>(i, left - 1)) * c.columns;
    __m512 sums[X][4];
    for (int m = 0; m < X; ++m)
        for (int i = 0; i < 4; ++i) sums[m][i] = _mm512_setzero_ps();
    for (int64_t k = 0; k < c.columns; k += kDeep) {
        const __mmask32 some = lanes32(c.columns - k);
        __m512bh weights[4];
        for (int i = 0; i < 4; ++i) {
            _mm_prefetch(reinterpret_cast<const char*>(w[i] + k) + 512, _MM_HINT_T0);
            weights[i] = (__m512bh)_mm512_maskz_loadu_epi16(some, w[i] + k);
        }
        for (int m = 0; m < X; ++m) {
            const auto x = (__m512bh)_mm512_maskz_loadu_epi16(some, c.x + (row + m) * c.columns + k);
            for (int i = 0; i < 4; ++i) sums[m][i] = _mm512_dpbf16_ps(sums[m][i], weights[i], x);
        }
    }
    alignas(16) float bias[4] = {};
    for (int i = 0; c.bias != nullptr && i < std::min<int64_t>(4, left); ++i) bias[i] = widen(c.bias[first + i]);
    const auto some = static_cast<__mmask8>(lanes16(std::min<int64_t>(4, left)));
    for (int m = 0; m < X; ++m) {
        const __m128 sum = _mm_add_ps(across(sums[m][0], sums[m][1], sums[m][2], sums[m][3]), _mm_load_ps(bias));
        _mm_mask_storeu_epi16(c.y + (row + m) * c.rows + first, some, (__m128i)_mm_cvtneps_pbh(sum));
    }
}

bool dots(const Call& c, int threads) {
    const int64_t tokens = std::max<int64_t>(6, (1 << 20) / (2 * c.columns) / 6 * 6);  // of x that stay in the cache
#pragma omp parallel num_threads(threads)
    {
        const int64_t thread = omp_get_thread_num(), all = omp_get_num_threads(), blocks = parts(c.rows, 4);
        for (int64_t from = 0; from < c.count; from += tokens) {
            const int64_t to = std::min(from + tokens, c.count);
            for (int64_t block = blocks * thread / all; block < blocks * (thread + 1) / all; ++block) {
                int64_t row = from;
                for (; row + 6 <= to; row += 6) dot_block<6>(c, block * 4, row);
                if (to - row >= 4) dot_block<4>(c, block * 4, row), row += 4;
                if (to - row >= 2) dot_block<2>(c, block * 4, row), row += 2;
                if (to - row >= 1) dot_block<1>(c, block * 4, row);
            }
        }
    }
    return true;
}

}  // namespace

extern "C" {

// The best way of this processor.
int foveal_dense_way() {
#if defined(__AMX_BF16__)
    if (tiles_allowed()) return kTiles;
#endif
    return kDots;
}

// w [rows, columns], bias [rows] or nullptr, x [count, columns] to y [count, rows], all bfloat16 and contiguous. 0, or 1
// where there is no memory.
int foveal_dense(const uint16_t* w, const uint16_t* bias, const uint16_t* x, uint16_t* y, int64_t rows, int64_t columns,
                 int64_t count, int way) {
    static thread_local Room room;
    const Call call{w, bias, x, y, rows, columns, count};
    const int threads = rows * columns < kSmall ? 1 : omp_get_max_threads();
#if defined(__AMX_BF16__)
    if (way == kTiles) return !(count <= kFew ? few(call, threads, room) : many(call, threads, room));
#endif
    return !dots(call, threads);
}
}
