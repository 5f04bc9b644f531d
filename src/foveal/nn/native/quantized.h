// Products of activations with 4- and 8-bit weights, both sides as small integers (AVX-512 VNNI, AMX where there is).
//
//   y[m, n] = bias[n] + sum over groups g of  sx[m, g] * sw[n, g] * sum over k in g of  xq[m, k] * (w[n, k] - zero[n, g])
//
// x is rounded to 8 bits with one scale for every row and `step` neighbours. Sums of products are exact integers and the
// groups are added in one order, so that a row's result is the same bits whatever rows come with it and whatever
// instructions compute it.
//
// Layout of w: blocks of 64 rows; in each, for 4 columns (8 bits) or 8 (4 bits), 4 lines of 64 bytes; a line has 16 rows
// of 4 columns. With 4 bits the low halves are columns 0 to 3 and the high halves 4 to 7. Codes are unsigned.
// Layout of sw and zero: [block, group, 64].

#pragma once

#include <immintrin.h>
#include <omp.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>

#include "tiles.h"

namespace quantized {

constexpr int kRows = 64;  // rows of a block of weights
constexpr int kTile = 32;  // rows of x that the AMX kernel takes at a time
constexpr int64_t kSmall = 1 << 20;  // products of numbers that one thread computes before two can meet
constexpr int kAhead = 1024;  // bytes that weights are asked for ahead of their use

enum Type : int { kF32 = 0, kBF16 = 1, kF16 = 2 };

struct Weight {
    const uint8_t* codes;
    const void* scales;
    const uint8_t* zeros;  // nullptr: all are 8 (4 bits) or 128 (8 bits)
    const float* bias;     // nullptr: none
    int64_t rows, columns;
    int bits, group, step, scale_type;
};

struct Inputs {
    int8_t* q;      // [rows, columns]
    float* scales;  // [rows, columns / step]
    int32_t* sums;  // [rows, columns / step]
};

inline __m512 widen(__m256i x) { return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(x), 16)); }

inline __m512 load16(const void* from, int64_t at, int type) {
    if (type == kF32) return _mm512_loadu_ps(static_cast<const float*>(from) + at);
    const __m256i half = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(static_cast<const uint16_t*>(from) + at));
    return type == kBF16 ? widen(half) : _mm512_cvtph_ps(half);
}

// Round to nearest, ties to even, as torch does.
inline __m256i narrow(__m512 x) {
    const __m512i bits = _mm512_castps_si512(x);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const __m512i up = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    const __mmask16 nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
    const __m512i quiet = _mm512_mask_blend_epi32(nan, up, _mm512_set1_epi32(0x7fc00000));
    return _mm512_cvtepi32_epi16(_mm512_srli_epi32(quiet, 16));
}

inline void store16(void* to, int64_t at, __m512 value, int type, __mmask16 mask) {
    if (type == kF32) {
        _mm512_mask_storeu_ps(static_cast<float*>(to) + at, mask, value);
    } else {
        _mm256_mask_storeu_epi16(static_cast<uint16_t*>(to) + at, mask, narrow(value));
    }
}

// `step` neighbours of x as 8-bit integers. Where one is not finite the scale is NaN.
inline void quantize_step(const void* x, int type, int64_t at, int step, int8_t* q, float* scale, int32_t* total) {
    const __m512i sign = _mm512_set1_epi32(0x7fffffff);
    __m512i most = _mm512_setzero_si512();  // largest absolute value; as integers, so that NaN counts as largest
    for (int i = 0; i < step; i += 16) {
        const __m512i bits = _mm512_castps_si512(load16(x, at + i, type));
        most = _mm512_max_epi32(most, _mm512_and_si512(bits, sign));
    }
    const int32_t top = _mm512_reduce_max_epi32(most);
    float largest;
    std::memcpy(&largest, &top, 4);
    const bool finite = std::isfinite(largest);
    const __m512 factor = _mm512_set1_ps(finite && largest > 0 ? 127.0f / largest : 0.0f);
    __m512i sum = _mm512_setzero_si512();
    for (int i = 0; i < step; i += 16) {
        const __m512 value = load16(x, at + i, type);
        const __m512i whole = finite ? _mm512_cvtps_epi32(_mm512_mul_ps(value, factor)) : _mm512_setzero_si512();
        sum = _mm512_add_epi32(sum, whole);
        _mm_storeu_si128(reinterpret_cast<__m128i*>(q + i), _mm512_cvtsepi32_epi8(whole));
    }
    *scale = finite ? largest / 127.0f : NAN;
    *total = _mm512_reduce_add_epi32(sum);
}

// 16 zeros of weights as integers, times a sum of activations.
inline __m512i shift_of(const Weight& w, int64_t at, int32_t sum) {
    if (w.zeros == nullptr) return _mm512_set1_epi32((w.bits == 4 ? 8 : 128) * sum);
    const __m128i raw = _mm_loadu_si128(reinterpret_cast<const __m128i*>(w.zeros + at));
    return _mm512_mullo_epi32(_mm512_cvtepu8_epi32(raw), _mm512_set1_epi32(sum));
}

// One block of 64 rows of w times R rows of x, L lines of 16 weights at a time.
template <int R, int L, int Bits>
inline void block_vnni(const Weight& w, const Inputs& in, int64_t row, int64_t block, float* out) {
    constexpr int kColumns = Bits == 4 ? 8 : 4;  // of one line
    const int64_t groups = w.columns / w.group, steps = w.columns / w.step;
    const int64_t bytes = w.columns / kColumns * 256;
    const int per_group = w.group / w.step;
    const __m512i low = _mm512_set1_epi8(15);
    for (int line = 0; line < 4; line += L) {
        const uint8_t* codes = w.codes + block * bytes + line * 64;
        __m512 total[R][L];
        for (int r = 0; r < R; ++r)
            for (int l = 0; l < L; ++l) total[r][l] = _mm512_setzero_ps();
        for (int64_t s = 0; s < steps; ++s) {
            const int64_t at = (block * groups + s / per_group) * kRows + line * 16;
            __m512i sum[R][L], more[R][L];
            for (int r = 0; r < R; ++r)
                for (int l = 0; l < L; ++l) {
                    const __m512i shift = shift_of(w, at + l * 16, in.sums[(row + r) * steps + s]);
                    sum[r][l] = _mm512_sub_epi32(_mm512_setzero_si512(), shift);
                    more[r][l] = _mm512_setzero_si512();
                }
            const int8_t* q = in.q + row * w.columns + s * w.step;
            for (int k = 0; k < w.step; k += kColumns) {
                for (int l = 0; l < L; ++l) {
                    _mm_prefetch(reinterpret_cast<const char*>(codes + l * 64 + kAhead), _MM_HINT_T0);
                    const __m512i raw = _mm512_loadu_si512(codes + l * 64);
                    const __m512i one = Bits == 4 ? _mm512_and_si512(raw, low) : raw;
                    const __m512i two = Bits == 4 ? _mm512_and_si512(_mm512_srli_epi16(raw, 4), low) : raw;
                    for (int r = 0; r < R; ++r) {
                        int32_t pair[2];
                        std::memcpy(pair, q + r * w.columns + k, Bits == 4 ? 8 : 4);
                        sum[r][l] = _mm512_dpbusd_epi32(sum[r][l], one, _mm512_set1_epi32(pair[0]));
                        if (Bits == 4) more[r][l] = _mm512_dpbusd_epi32(more[r][l], two, _mm512_set1_epi32(pair[1]));
                    }
                }
                codes += 256;
            }
            for (int l = 0; l < L; ++l) {
                const __m512 scale = load16(w.scales, at + l * 16, w.scale_type);
                for (int r = 0; r < R; ++r) {
                    const __m512 both = _mm512_mul_ps(scale, _mm512_set1_ps(in.scales[(row + r) * steps + s]));
                    const __m512i whole = _mm512_add_epi32(sum[r][l], more[r][l]);
                    total[r][l] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(whole), both, total[r][l]);
                }
            }
        }
        for (int r = 0; r < R; ++r)
            for (int l = 0; l < L; ++l) _mm512_storeu_ps(out + r * kRows + (line + l) * 16, total[r][l]);
    }
}

// Adds the bias and writes `count` rows of one block of results.
inline void finish(const Weight& w, int64_t block, const float* from, int64_t row, int64_t count, void* y, int type) {
    for (int line = 0; line < 4; ++line) {
        const int64_t first = block * kRows + line * 16, left = w.rows - first;
        if (left <= 0) return;
        const __mmask16 mask = left >= 16 ? 0xffff : static_cast<__mmask16>((1 << left) - 1);
        const __m512 bias = w.bias ? _mm512_maskz_loadu_ps(mask, w.bias + first) : _mm512_setzero_ps();
        for (int64_t r = 0; r < count; ++r) {
            const __m512 value = _mm512_add_ps(_mm512_loadu_ps(from + r * kRows + line * 16), bias);
            store16(y, (row + r) * w.rows + first, value, type, mask);
        }
    }
}

template <int Bits>
inline void rows_vnni(const Weight& w, const Inputs& in, int64_t rows, int64_t block, void* y, int type) {
    alignas(64) float out[8 * kRows];
    int64_t row = 0;
    while (row < rows) {
        const int64_t left = rows - row;
        int64_t count;
        if (left >= 8) {
            count = 8, block_vnni<8, 1, Bits>(w, in, row, block, out);
        } else if (left >= 4) {
            count = 4, block_vnni<4, 2, Bits>(w, in, row, block, out);
        } else if (left >= 2) {
            count = 2, block_vnni<2, 4, Bits>(w, in, row, block, out);
        } else {
            count = 1, block_vnni<1, 4, Bits>(w, in, row, block, out);
        }
        finish(w, block, out, row, count, y, type);
        row += count;
    }
}

#if defined(__AMX_INT8__)
// Tiles 0 to 3 hold sums, 4 and 5 have rows of x, 6 and 7 have lines of w.
inline void amx_begin(int step) {
    TileConfig config;
    const int columns = std::min(step, 64);
    for (int t = 0; t < 8; ++t) config.bytes[t] = 64, config.rows[t] = 16;
    for (int t = 4; t < 6; ++t) config.bytes[t] = static_cast<uint16_t>(columns);
    for (int t = 6; t < 8; ++t) config.rows[t] = static_cast<uint8_t>(columns / 4);
    config.load();
}

// Codes of the columns of one block from `first` on as bytes, in the layout of 8-bit ones. Where all zeros are alike they
// are taken off, and the bytes are signed.
inline void spread(const Weight& w, int64_t block, int64_t first, int64_t columns, uint8_t* to) {
    const __m512i low = _mm512_set1_epi8(15), middle = _mm512_set1_epi8(w.bits == 4 ? 8 : -128);
    const bool plain = w.zeros != nullptr;
    if (w.bits == 8) {
        const uint8_t* from = w.codes + block * w.columns * kRows + first * kRows;
        for (int64_t i = 0; i < columns * kRows; i += 64) {
            const __m512i raw = _mm512_loadu_si512(from + i);
            _mm512_storeu_si512(to + i, plain ? raw : _mm512_sub_epi8(raw, middle));
        }
        return;
    }
    const uint8_t* from = w.codes + block * (w.columns * kRows / 2) + first * kRows / 2;
    for (int64_t k = 0; k < columns; k += 8, from += 256, to += 512)
        for (int line = 0; line < 256; line += 64) {
            _mm_prefetch(reinterpret_cast<const char*>(from + line + kAhead), _MM_HINT_T0);
            const __m512i raw = _mm512_loadu_si512(from + line);
            const __m512i one = _mm512_and_si512(raw, low), two = _mm512_and_si512(_mm512_srli_epi16(raw, 4), low);
            _mm512_storeu_si512(to + line, plain ? one : _mm512_sub_epi8(one, middle));
            _mm512_storeu_si512(to + 256 + line, plain ? two : _mm512_sub_epi8(two, middle));
        }
}

template <bool Signed>
inline void products(int tile) {
    if constexpr (Signed) {
        if (tile == 0) _tile_dpbssd(0, 4, 6);
        if (tile == 1) _tile_dpbssd(1, 4, 7);
        if (tile == 2) _tile_dpbssd(2, 5, 6);
        if (tile == 3) _tile_dpbssd(3, 5, 7);
    } else {
        if (tile == 0) _tile_dpbsud(0, 4, 6);
        if (tile == 1) _tile_dpbsud(1, 4, 7);
        if (tile == 2) _tile_dpbsud(2, 5, 6);
        if (tile == 3) _tile_dpbsud(3, 5, 7);
    }
}

// Columns of one step of a block of w, as bytes, times 16 * T rows of x; added to `out`.
template <int T, bool Signed>
inline void step_amx(const Weight& w, const uint8_t* codes, const Inputs& in, int64_t row, int64_t block, int64_t s,
              float* out) {
    alignas(64) int32_t sums[4][16 * 16];
    const int64_t groups = w.columns / w.group, steps = w.columns / w.step;
    const int64_t at = (block * groups + s * w.step / w.group) * kRows;
    const int8_t* q = in.q + row * w.columns + s * w.step;
    for (int line = 0; line < 4; line += 2) {
        _tile_zero(0);
        _tile_zero(1);
        if (T == 2) {
            _tile_zero(2);
            _tile_zero(3);
        }
        for (int k = 0; k < w.step; k += 64) {
            _tile_loadd(6, codes + k * kRows + line * 64, 256);
            _tile_loadd(4, q + k, w.columns);
            products<Signed>(0);
            _tile_loadd(7, codes + k * kRows + line * 64 + 64, 256);
            products<Signed>(1);
            if (T == 2) {
                _tile_loadd(5, q + 16 * w.columns + k, w.columns);
                products<Signed>(2);
                products<Signed>(3);
            }
        }
        _tile_stored(0, sums[0], 64);
        _tile_stored(1, sums[1], 64);
        if (T == 2) {
            _tile_stored(2, sums[2], 64);
            _tile_stored(3, sums[3], 64);
        }
        const __m512 scale0 = load16(w.scales, at + line * 16, w.scale_type);
        const __m512 scale1 = load16(w.scales, at + line * 16 + 16, w.scale_type);
        for (int r = 0; r < 16 * T; ++r) {
            const int64_t of_row = (row + r) * steps + s;
            const __m512 factor = _mm512_set1_ps(in.scales[of_row]);
            __m512i whole0 = _mm512_load_si512(sums[r / 16 * 2] + r % 16 * 16);
            __m512i whole1 = _mm512_load_si512(sums[r / 16 * 2 + 1] + r % 16 * 16);
            if (!Signed) {
                whole0 = _mm512_sub_epi32(whole0, shift_of(w, at + line * 16, in.sums[of_row]));
                whole1 = _mm512_sub_epi32(whole1, shift_of(w, at + line * 16 + 16, in.sums[of_row]));
            }
            float* const total = out + r * kRows + line * 16;
            const __m512 both0 = _mm512_mul_ps(scale0, factor), both1 = _mm512_mul_ps(scale1, factor);
            _mm512_store_ps(total, _mm512_fmadd_ps(_mm512_cvtepi32_ps(whole0), both0, _mm512_load_ps(total)));
            _mm512_store_ps(total + 16, _mm512_fmadd_ps(_mm512_cvtepi32_ps(whole1), both1, _mm512_load_ps(total + 16)));
        }
    }
}

// One block of w times all rows of x. `bytes` has room for the block as bytes.
template <bool Signed>
inline void rows_amx(const Weight& w, const Inputs& in, int64_t rows, int64_t block, uint8_t* bytes, void* y, int type) {
    alignas(64) float out[kTile * kRows];
    const int64_t steps = w.columns / w.step;
    if (rows > kTile) spread(w, block, 0, w.columns, bytes);
    for (int64_t row = 0; row < rows; row += kTile) {
        const int64_t count = std::min<int64_t>(kTile, rows - row);
        std::memset(out, 0, sizeof(out));
        for (int64_t s = 0; s < steps; ++s) {
            if (rows <= kTile) spread(w, block, s * w.step, w.step, bytes);
            const uint8_t* codes = bytes + (rows <= kTile ? 0 : s * w.step * kRows);
            if (count <= 16)
                step_amx<1, Signed>(w, codes, in, row, block, s, out);
            else
                step_amx<2, Signed>(w, codes, in, row, block, s, out);
        }
        finish(w, block, out, row, count, y, type);
    }
}
#endif

// Where rows of x lie while they are multiplied, and how many bytes that takes for a team of so many threads.
struct Layout {
    int64_t padded, steps, scales, sums, spare;
    bool tiles;  // AMX, from `amx` rows on

    Layout(const Weight& w, int64_t rows, int64_t amx)
        : padded((rows + kTile - 1) / kTile * kTile), steps(w.columns / w.step), scales((padded * w.columns + 63) / 64 * 64),
          sums(scales + padded * steps * 4), spare((sums + padded * steps * 4 + 63) / 64 * 64), tiles(false) {
#if defined(__AMX_INT8__)
        tiles = rows >= amx && (w.step % 64 == 0 || w.step == 32) && tiles_allowed();
#endif
    }

    int64_t room(const Weight& w, int64_t threads) const { return spare + threads * w.columns * kRows; }
};

// y [rows, w.rows] = x [rows, w.columns] times w, by all threads of a team. x and y are contiguous and of `type` (F32 or
// BF16).
inline void multiply(const Weight& w, const Layout& layout, const void* x, void* y, int64_t rows, int type, uint8_t* room) {
    Inputs in;
    in.q = reinterpret_cast<int8_t*>(room);
    in.scales = reinterpret_cast<float*>(room + layout.scales);
    in.sums = reinterpret_cast<int32_t*>(room + layout.sums);
    const int64_t threads = omp_get_num_threads(), thread = omp_get_thread_num();
    const int64_t parts = rows * layout.steps, all = (layout.tiles ? layout.padded : rows) * layout.steps;
    for (int64_t p = all * thread / threads; p < all * (thread + 1) / threads; ++p) {
        int8_t* const q = in.q + p * w.step;  // rows lie one after the other
        if (p < parts) {
            quantize_step(x, type, p * w.step, w.step, q, in.scales + p, in.sums + p);
        } else {
            std::memset(q, 0, w.step);
            in.scales[p] = 0.0f, in.sums[p] = 0;
        }
    }
#pragma omp barrier
    const int64_t blocks = (w.rows + kRows - 1) / kRows;
    const int64_t first = blocks * thread / threads, last = blocks * (thread + 1) / threads;
#if defined(__AMX_INT8__)
    if (layout.tiles) {
        uint8_t* const spare = room + layout.spare + thread * w.columns * kRows;
        amx_begin(w.step);
        for (int64_t b = first; b < last; ++b)
            w.zeros ? rows_amx<false>(w, in, rows, b, spare, y, type) : rows_amx<true>(w, in, rows, b, spare, y, type);
        _tile_release();
        return;
    }
#endif
    for (int64_t b = first; b < last; ++b)
        w.bits == 4 ? rows_vnni<4>(w, in, rows, b, y, type) : rows_vnni<8>(w, in, rows, b, y, type);
}

}  // namespace quantized
