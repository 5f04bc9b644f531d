// Entry points of linear layers of bfloat16: products, and the compact form of weights.

#include <omp.h>

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "bfloat.h"
#include "dense.h"

namespace {

using bf::parts, bf::Room;
using compact::kDeep, compact::kLineBytes, compact::kOther, compact::kRows, compact::kTableBytes, compact::kTile;

// What a compact strip is made of: rows of w and columns, of which those outside w count as zeros.
struct Strip {
    const uint16_t* w;
    int64_t rows, columns;  // inside
    int64_t stride;
};

uint8_t exponent(uint32_t value) { return static_cast<uint8_t>(value >> 7); }

// Numbers of the exponents: the 15 most frequent ones, and kOther for all others. What lies outside w gets some exponent of
// the table: products of such columns are with zeros of x, and such rows are not stored.
void numbers_of(const Strip& s, uint8_t numbers[256], uint16_t table[32]) {
    uint32_t found[4][256] = {};
    for (int64_t r = 0; r < s.rows; ++r)
        for (int64_t k = 0; k < s.columns; ++k) ++found[k % 4][exponent(s.w[r * s.stride + k])];
    for (int e = 0; e < 256; ++e) found[0][e] += found[1][e] + found[2][e] + found[3][e];
    std::memset(numbers, kOther, 256);
    std::fill_n(table, 32, uint16_t{0});
    for (int number = 0; number < kOther; ++number) {
        const auto most = std::max_element(found[0], found[0] + 256);
        if (*most == 0) return;
        const auto e = static_cast<uint16_t>(most - found[0]);
        numbers[e] = static_cast<uint8_t>(number);
        table[number] = table[number + 16] = static_cast<uint16_t>(e << 7);
        *most = 0;
    }
}

// Writes a strip, and its outliers to `outliers` while there are fewer than `most`; tells how many there are.
int64_t pack_strip(const Strip& s, int64_t tiles, uint8_t* to, int64_t* outliers, int64_t most) {
    uint8_t numbers[256];
    uint16_t table[32];
    numbers_of(s, numbers, table);
    std::memcpy(to, table, kTableBytes);
    to += kTableBytes;
    int64_t count = 0;
    for (int64_t tile = 0; tile < tiles; ++tile)
        for (int64_t first = 0; first < kRows; first += 4, to += kLineBytes)
            for (int64_t i = 0; i < kDeep; ++i) {
                uint32_t words[3] = {};
                for (int64_t r = 0; r < 4; ++r) {
                    const int64_t row = first + r, column = tile * kDeep + i;
                    const bool inside = row < s.rows && column < s.columns;
                    const uint32_t value = inside ? s.w[row * s.stride + column] : 0;
                    const uint32_t number = inside ? numbers[exponent(value)] : 0;
                    words[0] |= number << 4 * r;
                    words[1 + r / 2] |= r % 2 ? (value & 0x7f) << 8 | (value & 0x8000) >> 8 : value & 0x807f;
                    if (number != kOther) continue;
                    if (count < most) outliers[count] = (tile * kTile + row * kDeep + i) << 16 | value;
                    ++count;
                }
                for (int part = 0; part < 3; ++part) {
                    const auto word = static_cast<uint16_t>(words[part]);
                    std::memcpy(to + part * 64 + i * 2, &word, 2);
                }
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
