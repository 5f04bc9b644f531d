// Products of rows with linear layers of bfloat16, by all threads of a team: y[m, n] = bias[n] + sum over k of
// x[m, k] * w[n, k], with sums in float32.
//
// Weights are read row by row as they lie [N, K], or in their compact form. With tiles (AMX) 16 rows of w are one factor and
// x, which is put in the order of tiles at every call, the other: few rows of x are as fast as memory gives w, many nearly
// as fast as from a packed w. Without tiles dot products of rows do the same.
//
// Every y[m, n] is summed in one order, whatever rows of x come with it, and whatever form w has: a token's result is the
// same bits alone, in a batch, and in a long prompt. The two ways sum in different orders.
#pragma once

#include <immintrin.h>
#include <omp.h>

#include <algorithm>
#include <cstdint>

#include "bfloat.h"
#include "compact.h"
#include "tiles.h"

namespace dense {

using bf::across, bf::lanes16, bf::lanes32, bf::parts, bf::up, bf::widen;

constexpr int64_t kDeep = 32;        // columns of a tile of w
constexpr int64_t kFew = 64;         // rows of x that pass all of w at once,
constexpr int64_t kFewOpened = 32;   // or all of a compact w
constexpr int64_t kColumns = 1536;   // of more rows about as many columns are in the order of tiles at a time
constexpr int64_t kTokens = 352;     // and as many rows: 1 MB, half of a core's cache
constexpr int64_t kSmall = 1 << 16;  // weights that one thread multiplies before two can meet
constexpr int64_t kLead = 2;         // tiles of a compact strip that are opened before they are used

enum Way : int { kDots = 1, kTiles = 2 };

struct Call {
    const uint16_t* w;                 // its rows as they lie; nullptr: compact
    const compact::Weight* compacted;  // for tiles only
    const uint16_t* bias;              // nullptr: none
    const uint16_t* x;
    uint16_t* y;
    int64_t rows, columns;  // of w
    int64_t count;          // rows of x
};

// bfloat16, nearest and even, in the low halves of 16 words.
inline __m512i nearest(__m512 x) { return _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(x)); }

#if defined(__AMX_BF16__)

// Tiles 0 to 3 hold sums [16 rows of w, 16 rows of x]; 4 and 5 w [16, 32]; 6 and 7 x as [16 pairs of k, 16 rows of x]. The
// tiles named by a bit of `narrow` have `count` rows of x.
inline void shape(unsigned narrow, int64_t count) {
    TileConfig config;
    for (int t = 0; t < 8; ++t) {
        config.rows[t] = 16;
        config.bytes[t] = narrow >> t & 1 ? static_cast<uint16_t>(4 * count) : 64;
    }
    config.load();
}

// Rows and columns of 16 x 16 words change places.
inline void transpose(__m512i r[16]) {
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
inline void pack_x(const uint16_t* x, int64_t stride, int64_t count, int64_t wide, int64_t columns, uint32_t* to) {
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
inline void pack_w(const Call& c, int64_t first, int64_t k0, int64_t columns, uint16_t* to, int64_t step) {
    for (int64_t r = 0; r < 16; ++r) {
        const int64_t here = first + r < c.rows ? c.columns - k0 : 0;
        const uint16_t* const from = c.w + (first + r) * c.columns + k0;
        for (int64_t k = 0; k < columns; k += kDeep)
            _mm512_storeu_si512(to + k / kDeep * step + r * kDeep, _mm512_maskz_loadu_epi16(lanes32(here - k), from + k));
    }
}

// Sums [32 rows of w from `first` on, wide] of the rows `row` to `row + count` of x, with the bias, to y.
inline void finish(const Call& c, const float* sums, int64_t wide, int64_t count, int64_t first, int64_t row) {
    const int64_t left = c.rows - first;
    if (wide == 1) {  // they lie as in y
        for (int64_t i = 0; i < std::min<int64_t>(32, left); i += 16) {
            const __mmask16 some = lanes16(left - i);
            __m512 sum = _mm512_loadu_ps(sums + i);
            if (c.bias != nullptr) sum = _mm512_add_ps(sum, bf::load(c.bias + first + i, some));
            bf::store(c.y + row * c.rows + first + i, sum, some);
        }
        return;
    }
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

// Where a tile of w lies: 16 rows, so many bytes apart.
struct Place {
    const uint16_t* w;
    int64_t across;
};

// Blocks of 16 rows of w as they lie, tile by tile. At the edges of w a tile is copied to `space`, one block.
class AsTheyLie {
  public:
    AsTheyLie(const Call& c, uint16_t* space)
        : c_(c), edge_(space), depth_(up(c.columns, kDeep)), whole_(c.columns / kDeep * kDeep) {}

    void open(int64_t block) {
        from_ = c_.w + block * 16 * c_.columns;
        outside_ = block * 16 + 16 > c_.rows;
        if (outside_) {
            pack_w(c_, block * 16, 0, depth_, edge_, 512);
        } else if (whole_ < depth_) {
            pack_w(c_, block * 16, whole_, kDeep, edge_, 512);
        }
    }

    Place at(int64_t k) {
        if (outside_) return {edge_ + k * 16, 64};
        if (k < whole_) return {from_ + k, c_.columns * 2};
        return {edge_, 64};
    }

  private:
    const Call& c_;
    uint16_t* const edge_;
    const int64_t depth_, whole_;
    const uint16_t* from_ = nullptr;
    bool outside_ = false;
};

// Strips of 32 rows of a compact w: tiles are opened `kLead` before they are used, so that what was written is not read at
// once.
class Opened {
  public:
    Opened(const Call& c, uint16_t* space) : w_(*c.compacted), space_(space), reader_(w_, 0) {}

    void open(int64_t strip) {
        reader_ = compact::Reader(w_, strip);
        for (int64_t tile = 0; tile < std::min(kLead, w_.tiles); ++tile) reader_.tiles(1, place(tile));
    }

    // The tile of columns k.
    const uint16_t* at(int64_t k) {
        const int64_t tile = k / kDeep;
        if (tile + kLead < w_.tiles) reader_.tiles(1, place(tile + kLead));
        return place(tile);
    }

  private:
    uint16_t* place(int64_t tile) const { return space_ + tile % (2 * kLead) * compact::kTile; }

    const compact::Weight& w_;
    uint16_t* const space_;
    compact::Reader reader_;
};

// One block of 16 rows of w, whose columns k lie at `place(k)`, times T tiles of x, of which the last has `last` rows; to
// the rows of `sums` from `half` on.
template <int T, class Source>
void block_of_few(Source& source, const uint32_t* x, int64_t depth, int64_t last, int64_t half, float sums[T][32 * 16]) {
    const int64_t words = depth * 8;  // of a full tile of x
    _tile_zero(0);
    if constexpr (T > 1) _tile_zero(1);
    if constexpr (T > 2) _tile_zero(2);
    if constexpr (T > 3) _tile_zero(3);
    for (int64_t k = 0; k < depth; k += kDeep) {
        const Place place = source.at(k);
        _tile_loadd(4, place.w, place.across);
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
    _tile_stored(0, sums[0] + half * (T == 1 ? last : 16), (T == 1 ? last : 16) * 4);
    if constexpr (T > 1) _tile_stored(1, sums[1] + half * (T == 2 ? last : 16), (T == 2 ? last : 16) * 4);
    if constexpr (T > 2) _tile_stored(2, sums[2] + half * (T == 3 ? last : 16), (T == 3 ? last : 16) * 4);
    if constexpr (T > 3) _tile_stored(3, sums[3] + half * last, last * 4);
}

// T tiles of x, of which the last has `last` rows, times the blocks `begin` to `end` of 16 rows of w.
template <int T>
void few_blocks(const Call& c, AsTheyLie source, const uint32_t* x, int64_t last, int64_t begin, int64_t end) {
    alignas(64) float sums[T][32 * 16];
    shape(1u << (T - 1) | 1u << 7, last);
    for (int64_t block = begin; block < end; ++block) {
        source.open(block);
        block_of_few<T>(source, x, up(c.columns, kDeep), last, block % 2 * 16, sums);
        if (block % 2 == 0 && block + 1 < end) continue;
        for (int t = 0; t < T; ++t) finish(c, sums[t], t == T - 1 ? last : 16, t == T - 1 ? last : 16, block / 2 * 32, t * 16);
    }
    _tile_release();
}

// The same with the strips `begin` to `end` of a compact w.
template <int T>
void few_blocks(const Call& c, Opened source, const uint32_t* x, int64_t last, int64_t begin, int64_t end) {
    static_assert(T <= 2);
    const int64_t depth = up(c.columns, kDeep);
    alignas(64) float sums[T][32 * 16];
    shape(T == 1 ? 1u << 0 | 1u << 1 | 1u << 7 : 1u << 2 | 1u << 3 | 1u << 7, last);
    for (int64_t strip = begin; strip < end; ++strip) {
        source.open(strip);
        _tile_zero(0);
        _tile_zero(1);
        if constexpr (T == 2) {
            _tile_zero(2);
            _tile_zero(3);
        }
        for (int64_t k = 0; k < depth; k += kDeep) {
            const uint16_t* const w = source.at(k);
            _tile_loadd(7, x + (T - 1) * depth * 8 + k / 2 * last, last * 4);
            _tile_loadd(4, w, 64);
            _tile_loadd(5, w + compact::kTile / 2, 64);
            if constexpr (T == 1) {
                _tile_dpbf16ps(0, 4, 7);
                _tile_dpbf16ps(1, 5, 7);
            } else {
                _tile_loadd(6, x + k * 8, 64);
                _tile_dpbf16ps(0, 4, 6);
                _tile_dpbf16ps(1, 5, 6);
                _tile_dpbf16ps(2, 4, 7);
                _tile_dpbf16ps(3, 5, 7);
            }
        }
        const int64_t wide = T == 1 ? last : 16;
        _tile_stored(0, sums[0], wide * 4);
        _tile_stored(1, sums[0] + 16 * wide, wide * 4);
        if constexpr (T == 2) {
            _tile_stored(2, sums[1], last * 4);
            _tile_stored(3, sums[1] + 16 * last, last * 4);
        }
        for (int t = 0; t < T; ++t) finish(c, sums[t], t == T - 1 ? last : 16, t == T - 1 ? last : 16, strip * 32, t * 16);
    }
    _tile_release();
}

// Bytes of a thread in `few`, and of all.
inline int64_t few_edge(const Call& c) {
    return (c.w == nullptr ? 2 * kLead * compact::kTile * 2 : up(c.columns, kDeep) * 32) + 4096;
}
inline int64_t few_room(const Call& c, int64_t threads) {
    return up(c.count, 16) * up(c.columns, kDeep) * 2 + threads * few_edge(c);
}

inline void few(const Call& c, char* space) {
    const int64_t thread = omp_get_thread_num(), all = omp_get_num_threads();
    const int64_t tiles = parts(c.count, 16), last = c.count - (tiles - 1) * 16, depth = up(c.columns, kDeep);
    const bool as_is = c.count == 1 && c.columns % kDeep == 0;  // then x is in the order of tiles already
    auto* const packed = reinterpret_cast<uint32_t*>(space);
    if (!as_is) {
        const int64_t begin = depth / kDeep * thread / all * kDeep, end = depth / kDeep * (thread + 1) / all * kDeep;
        for (int64_t t = 0; t < tiles; ++t) {
            const int64_t own = t + 1 == tiles ? last : 16;
            pack_x(c.x + t * 16 * c.columns + begin, c.columns, own, own, std::min(c.columns, end) - begin,
                   packed + t * depth * 8 + begin / 2 * own);
        }
#pragma omp barrier
    }
    auto* const edge = reinterpret_cast<uint16_t*>(space + up(c.count, 16) * depth * 2 + thread * few_edge(c));
    const uint32_t* const x = as_is ? reinterpret_cast<const uint32_t*>(c.x) : packed;
    const int64_t pairs = parts(c.rows, 32);
    const int64_t begin = pairs * thread / all * 2, end = std::min(pairs * (thread + 1) / all * 2, parts(c.rows, 16));
    if (c.w == nullptr) {
        const int64_t first = pairs * thread / all, behind = pairs * (thread + 1) / all;
        if (tiles == 1) few_blocks<1>(c, Opened(c, edge), x, last, first, behind);
        if (tiles == 2) few_blocks<2>(c, Opened(c, edge), x, last, first, behind);
        return;
    }
    const AsTheyLie source(c, edge);
    if (tiles == 1) few_blocks<1>(c, source, x, last, begin, end);
    if (tiles == 2) few_blocks<2>(c, source, x, last, begin, end);
    if (tiles == 3) few_blocks<3>(c, source, x, last, begin, end);
    if (tiles == 4) few_blocks<4>(c, source, x, last, begin, end);
}

// Where 32 rows of w lie: of the tile of columns k the first 16 rows at w + k / 32 * step, `across` bytes apart.
struct Rows {
    const uint16_t* w;
    int64_t step, across;
};

// 32 rows of w times T tiles of x, `deep` columns of both, on top of `sums` unless these columns are the first.
// `meanwhile(k)` is done beside the tile of columns k.
template <int T, class Meanwhile>
void product(const Rows& rows, const uint32_t* x, int64_t deep, bool first, float* sums, const Meanwhile& meanwhile) {
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
        meanwhile(k);
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

// Blocks of 32 rows of w as they lie, some columns at a time. While one block is used the next is asked for, share by share
// (a share is so many 32nds of it).
class BlocksAsTheyLie {
  public:
    BlocksAsTheyLie(const Call& c, uint16_t* space) : c_(c), edge_(space) {}

    static int64_t room(int64_t columns) { return columns * 64; }

    void begin(int64_t, int64_t k, int64_t deep) { k_ = k, deep_ = deep; }

    Rows rows(int64_t block) {
        if (block * 32 + 32 <= c_.rows && c_.columns - k_ >= deep_) return {c_.w + block * 32 * c_.columns + k_, kDeep, c_.columns * 2};
        pack_w(c_, block * 32, k_, deep_, edge_, 1024);
        pack_w(c_, block * 32 + 16, k_, deep_, edge_ + 512, 1024);
        return {edge_, 1024, 64};
    }

    auto share(int64_t block, int64_t from, int64_t to) const {
        const uint16_t* const w = c_.w + (block * 32 + from) * c_.columns + k_;
        return [w, count = to - from, stride = c_.columns](int64_t k) {
            for (int64_t r = 0; r < count; ++r)
                _mm_prefetch(reinterpret_cast<const char*>(w + r * stride + k), _MM_HINT_T1);
        };
    }

    void finish(int64_t) {}

  private:
    const Call& c_;
    uint16_t* const edge_;
    int64_t k_ = 0, deep_ = 0;
};

// The same of a compact w: while one strip is used the next is opened.
class OpenedBlocks {
  public:
    OpenedBlocks(const Call& c, uint16_t* space) : w_(*c.compacted), space_(space) {}

    static int64_t room(int64_t columns) { return 2 * columns * 64; }

    void begin(int64_t strip, int64_t k, int64_t deep) {
        tile_ = k / kDeep, tiles_ = deep / kDeep;
        compact::Reader(w_, strip, tile_).tiles(tiles_, place(strip));
    }

    Rows rows(int64_t strip) { return {place(strip), compact::kTile, 64}; }

    auto share(int64_t strip, int64_t from, int64_t to) const {
        // 8 lines of four rows; a share that ends within a line leaves it to the next. The strip after is asked for.
        const uint8_t *const here = w_.strip(strip), *const after = w_.strip(strip + 1);
        return [=, at = tile_, opened = place(strip), first = from / 4, last = to / 4](int64_t k) {
            const int64_t tile = k / kDeep;
            for (int64_t i = first; i < last; ++i) {
                const int64_t there = compact::kTableBytes + (at + tile) * compact::kTileBytes + i * compact::kLineBytes;
                for (int part = 0; part < 3; ++part)
                    _mm_prefetch(reinterpret_cast<const char*>(after + there + part * 64), _MM_HINT_T1);
                compact::line(here + there, compact::table_of(here), opened + tile * compact::kTile + i * 4 * kDeep);
            }
        };
    }

    // All shares of the strip have been opened.
    void finish(int64_t strip) { compact::Reader(w_, strip, tile_).outliers(tiles_, place(strip)); }

  private:
    uint16_t* place(int64_t strip) const { return space_ + strip % 2 * tiles_ * compact::kTile; }

    const compact::Weight& w_;
    uint16_t* const space_;
    int64_t tile_ = 0, tiles_ = 0;
};

// Parts of x that fit the cache, tokens by columns.
struct Blocking {
    int64_t depth, columns, tokens, blocks, x_bytes, sums_bytes, edge_bytes;

    explicit Blocking(const Call& c)
        : depth(up(c.columns, kDeep)),
          columns(up(parts(depth, parts(depth, kColumns)), kDeep)),
          tokens(up(parts(c.count, parts(c.count, kTokens)), 32)),
          blocks(parts(c.rows, 32)),
          x_bytes(tokens * columns * 2),
          sums_bytes(columns < depth ? blocks * 32 * tokens * 4 : 0),
          edge_bytes((c.w == nullptr ? OpenedBlocks::room(columns) : BlocksAsTheyLie::room(columns)) + 4096) {}
};

inline int64_t many_room(const Call& c, int64_t threads) {
    const Blocking size(c);
    return size.x_bytes + size.sums_bytes + threads * size.edge_bytes;
}

// Parts of x times all of w; sums between parts of columns lie in memory.
template <class Source>
void many_blocks(const Call& c, const Blocking& size, Source source, uint32_t* packed, float* between) {
    const int64_t thread = omp_get_thread_num(), all = omp_get_num_threads();
    const int64_t begin = size.blocks * thread / all, end = size.blocks * (thread + 1) / all;
    alignas(64) float own[4 * 256];
    shape(0, 16);
    for (int64_t row = 0; row < c.count; row += size.tokens) {
        const int64_t here = std::min(size.tokens, c.count - row), tiles = parts(here, 16);
        for (int64_t k = 0; k < c.columns; k += size.columns) {
            const int64_t some = std::min(size.columns, c.columns - k), deep = up(some, kDeep);
            for (int64_t t = thread; t < tiles; t += all)
                pack_x(c.x + (row + t * 16) * c.columns + k, c.columns, std::min<int64_t>(16, here - t * 16), 16, some,
                       packed + t * deep * 8);
#pragma omp barrier
            if (begin < end) source.begin(begin, k, deep);
            for (int64_t block = begin; block < end; ++block) {
                const Rows rows = source.rows(block);
                const bool more = block + 1 < end;
                for (int64_t t = 0; t < tiles; t += 2) {
                    const int64_t from = more ? 32 * t / tiles : 0, to = more ? 32 * std::min(t + 2, tiles) / tiles : 0;
                    const auto share = source.share(block + 1, from, to);
                    float* const sums = size.sums_bytes ? between + (block * size.tokens + t * 16) * 32 : own;
                    if (t + 1 < tiles) {
                        product<2>(rows, packed + t * deep * 8, deep, k == 0, sums, share);
                    } else {
                        product<1>(rows, packed + t * deep * 8, deep, k == 0, sums, share);
                    }
                    if (k + size.columns < c.columns) continue;
                    for (int64_t i = t; i < std::min(t + 2, tiles); ++i)
                        finish(c, sums + (i - t) * 512, 16, std::min<int64_t>(16, here - i * 16), block * 32, row + i * 16);
                }
                if (more) source.finish(block + 1);
            }
#pragma omp barrier
        }
    }
    _tile_release();
}

inline void many(const Call& c, char* space) {
    const Blocking size(c);
    auto* const packed = reinterpret_cast<uint32_t*>(space);
    auto* const between = reinterpret_cast<float*>(space + size.x_bytes);
    auto* const edge = reinterpret_cast<uint16_t*>(space + size.x_bytes + size.sums_bytes + omp_get_thread_num() * size.edge_bytes);
    if (c.w != nullptr) {
        many_blocks(c, size, BlocksAsTheyLie(c, edge), packed, between);
    } else {
        many_blocks(c, size, OpenedBlocks(c, edge), packed, between);
    }
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

inline void dots(const Call& c) {
    const int64_t tokens = std::max<int64_t>(6, (1 << 20) / (2 * c.columns) / 6 * 6);  // of x that stay in the cache
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

inline bool is_few(const Call& c) { return c.count <= (c.w == nullptr ? kFewOpened : kFew); }

// Working space in bytes for a team of so many threads.
inline int64_t room(const Call& c, int way, int64_t threads) {
#if defined(__AMX_BF16__)
    if (way == kTiles) return is_few(c) ? few_room(c, threads) : many_room(c, threads);
#endif
    return 64;
}

// By all threads of a team, which meet here.
inline void multiply(const Call& c, int way, char* space) {
#if defined(__AMX_BF16__)
    if (way == kTiles) return is_few(c) ? few(c, space) : many(c, space);
#endif
    dots(c);
}

}  // namespace dense
