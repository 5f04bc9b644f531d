// Entry points of linear layers of bfloat16: products, and the compact form of weights.

#include <immintrin.h>
#include <omp.h>

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "bfloat.h"
#include "dense.h"

namespace {

using bf::parts, bf::Room;
using compact::kDeep, compact::kLineBytes, compact::kOther, compact::kRows, compact::kTableBytes, compact::kTile;

constexpr int64_t kSampled = 4;  // one row in so many is looked at for the table
constexpr int64_t kLong = 1024;  // where rows have so many columns

// What a compact strip is made of: rows of w and columns that are inside w.
struct Strip {
    const uint16_t* w;
    int64_t rows, columns, stride;
};

// Numbers of exponents: of the 15 most frequent ones, and kOther of all others.
struct Numbers {
    alignas(64) uint8_t of[256];
    alignas(64) uint16_t table[32] = {};

    explicit Numbers(const Strip& s) {
        uint32_t found[4][256] = {};
        for (int64_t r = 0; r < s.rows; r += s.columns < kLong ? 1 : kSampled)
            for (int64_t k = 0; k < s.columns; ++k) ++found[k % 4][s.w[r * s.stride + k] >> 7 & 0xff];
        for (int e = 0; e < 256; ++e) found[0][e] += found[1][e] + found[2][e] + found[3][e];
        std::memset(of, kOther, 256);
        for (int number = 0; number < kOther; ++number) {
            const auto most = std::max_element(found[0], found[0] + 256);
            if (*most == 0) return;
            const auto e = static_cast<uint16_t>(most - found[0]);
            of[e] = static_cast<uint8_t>(number);
            table[number] = table[number + 16] = static_cast<uint16_t>(e << 7);
            *most = 0;
        }
    }

    // Those of 32 values.
    __m512i operator()(__m512i values) const {
        const __m512i exponents = _mm512_and_si512(_mm512_srli_epi16(values, 7), _mm512_set1_epi16(0xff));
#if defined(__AVX512VBMI__)
        const auto part = [this](int at) { return _mm512_load_si512(of + at); };
        const __m512i low = _mm512_permutex2var_epi8(part(0), exponents, part(64));
        const __m512i high = _mm512_permutex2var_epi8(part(128), exponents, part(192));
        const __m512i both = _mm512_mask_mov_epi8(low, _mm512_movepi8_mask(exponents), high);
        return _mm512_and_si512(both, _mm512_set1_epi16(0xff));
#else
        alignas(64) uint16_t words[32];
        _mm512_store_si512(words, exponents);
        for (uint16_t& word : words) word = of[word];
        return _mm512_load_si512(words);
#endif
    }
};

// Writes a strip, and its outliers to `outliers` while there are fewer than `most`; tells how many there are. Outside w
// stand zeros with some exponent of the table: such columns meet zeros of x, and such rows are not stored.
int64_t pack_strip(const Strip& s, int64_t tiles, uint8_t* to, int64_t* outliers, int64_t most) {
    const Numbers numbers(s);
    const __m512i rest = _mm512_set1_epi16(static_cast<int16_t>(0x807f)), other = _mm512_set1_epi16(kOther);
    std::memcpy(to, numbers.table, kTableBytes);
    to += kTableBytes;
    int64_t count = 0;
    for (int64_t tile = 0; tile < tiles; ++tile)
        for (int64_t first = 0; first < kRows; first += 4, to += kLineBytes) {
            __m512i words[3] = {_mm512_setzero_si512(), _mm512_setzero_si512(), _mm512_setzero_si512()};
            for (int64_t r = 0; r < 4 && first + r < s.rows; ++r) {
                const int64_t row = first + r;
                const __mmask32 inside = bf::lanes32(s.columns - tile * kDeep);
                const __m512i values = _mm512_maskz_loadu_epi16(inside, s.w + row * s.stride + tile * kDeep);
                const __m512i number = _mm512_maskz_mov_epi16(inside, numbers(values));
                const __m512i plain = _mm512_and_si512(values, rest);
                words[0] = _mm512_or_si512(words[0], _mm512_sll_epi16(number, _mm_cvtsi64_si128(4 * r)));
                words[1 + r / 2] = _mm512_or_si512(words[1 + r / 2], r % 2 ? compact::swapped(plain) : plain);
                __mmask32 out = _mm512_cmpeq_epi16_mask(number, other);
                if (out == 0) continue;
                alignas(64) uint16_t plainly[32];
                _mm512_store_si512(plainly, values);
                for (; out != 0; out &= out - 1, ++count) {
                    const int i = __builtin_ctz(out);
                    if (count < most) outliers[count] = (tile * kTile + row * kDeep + i) << 16 | plainly[i];
                }
            }
            for (int part = 0; part < 3; ++part) _mm512_store_si512(to + part * 64, words[part]);
        }
    return count;
}

}  // namespace

extern "C" {

// The best way of this processor.
int foveal_dense_way() {
#if defined(__AMX_BF16__)
    if (tiles_allowed()) return dense::kTiles;
#endif
    return dense::kDots;
}

// w [rows, columns] as they lie, or nullptr and `compacted`; bias [rows] or nullptr, x [count, columns] to y [count, rows], all
// bfloat16 and contiguous. 0, or 1 where there is no memory.
int foveal_dense(const uint16_t* w, const compact::Weight* compacted, const uint16_t* bias, const uint16_t* x, uint16_t* y,
                 int64_t rows, int64_t columns, int64_t count, int way) {
    static thread_local Room room;
    const dense::Call call{w, compacted, bias, x, y, rows, columns, count};
    const int threads = rows * columns < dense::kSmall ? 1 : omp_get_max_threads();
    char* const space = room.of(dense::room(call, way, threads));
    if (space == nullptr) return 1;
#pragma omp parallel num_threads(threads)
    dense::multiply(call, way, space);
    return 0;
}

// The compact form of w: the body, and of strip s the outliers from `outliers + s * most` on; `found` has how many a strip has,
// those included for which there was no room.
void foveal_compact(const uint16_t* w, int64_t rows, int64_t columns, uint8_t* body, int64_t* outliers, int64_t* found,
                    int64_t most) {
    const int64_t strips = parts(rows, kRows), tiles = parts(columns, kDeep);
    const compact::Weight shape{nullptr, nullptr, nullptr, tiles};
#pragma omp parallel for
    for (int64_t s = 0; s < strips; ++s) {
        const int64_t inside = std::clamp<int64_t>(rows - s * kRows, 0, kRows);
        const Strip strip{w + s * kRows * columns, inside, columns, columns};
        found[s] = pack_strip(strip, tiles, body + (shape.strip(s) - shape.strip(0)), outliers + s * most, most);
    }
}

// The rows of a compact weight as they were.
void foveal_open(const compact::Weight* w, int64_t rows, int64_t columns, uint16_t* to) {
#pragma omp parallel for
    for (int64_t s = 0; s < parts(rows, kRows); ++s) {
        compact::Reader reader(*w, s);
        alignas(64) uint16_t tile[kTile];
        for (int64_t k = 0; k < columns; k += kDeep) {
            reader.tiles(1, tile);
            for (int64_t r = 0; r < std::min(kRows, rows - s * kRows); ++r)
                std::memcpy(to + (s * kRows + r) * columns + k, tile + r * kDeep, 2 * std::min(kDeep, columns - k));
        }
    }
}
}
