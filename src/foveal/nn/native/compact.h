// Weights of bfloat16 in 12 bits each, without loss: sign and mantissa as they are, the exponent as a number in a table.
//
// Trained weights use few of the 256 exponents. A strip of 32 rows has a table of its 15 most frequent ones; what has
// another exponent, about 1 in 5000, is an outlier and stands in a list, whole. Three quarters of the bytes are read.
//
//   body     strip after strip: the table, 32 words (16 exponents in their place of a bfloat16, twice), then tiles of 32
//            rows and 32 columns; of a tile 8 lines, each four rows a, b, c, d in three times 32 words, one for every column:
//            numbers of exponents (a in the lowest 4 bits); sign of a, mantissa of b, sign of b, mantissa of a; and
//            the same of c and d
//   starts   [strips + 1]: where a strip's outliers begin in the list
//   outliers in order of their places: place << 16 | value; a place is 1024 * tile + 32 * row + column
//
// Rows and columns are filled up with zeros.
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace compact {

constexpr int64_t kRows = 32;
constexpr int64_t kDeep = 32;
constexpr int64_t kTile = 1024;  // values
constexpr int64_t kTileBytes = 1536;
constexpr int64_t kLineBytes = 192;  // of four rows
constexpr int64_t kTableBytes = 64;
constexpr int kOther = 15;  // the number of an exponent that the table does not have

struct Weight {
    const uint8_t* body;
    const int64_t* starts;
    const int64_t* outliers;
    int64_t tiles;  // of a strip

    const uint8_t* strip(int64_t number) const { return body + number * (kTableBytes + tiles * kTileBytes); }
};

inline __m512i table_of(const uint8_t* strip) { return _mm512_load_si512(strip); }

// The bytes of every word change places.
inline __m512i swapped(__m512i x) {
#if defined(__AVX512VBMI2__)
    return _mm512_shldi_epi16(x, x, 8);
#else
    return _mm512_or_si512(_mm512_slli_epi16(x, 8), _mm512_srli_epi16(x, 8));
#endif
}

// Four rows of a tile, 32 values each, outliers apart.
inline void line(const uint8_t* from, __m512i table, uint16_t* to) {
    const __m512i rest = _mm512_set1_epi16(static_cast<int16_t>(0x807f));
    const __m512i numbers = _mm512_load_si512(from);
    const auto row = [&](int number, __m512i words) {
        const __m512i of_row = number ? _mm512_srli_epi16(numbers, 4 * number) : numbers;
        // Looks at 5 bits: that is why the table is there twice.
        const __m512i exponents = _mm512_permutexvar_epi16(of_row, table);
        _mm512_storeu_si512(to + number * kDeep, _mm512_ternarylogic_epi32(words, rest, exponents, 0xea));  // w & r | e
    };
    const __m512i first = _mm512_load_si512(from + 64), second = _mm512_load_si512(from + 128);
    row(0, first);
    row(1, swapped(first));
    row(2, second);
    row(3, swapped(second));
}

inline int64_t place(int64_t outlier) { return outlier >> 16; }

// Reads a strip from its beginning on, so many tiles at a time.
class Reader {
  public:
    Reader(const Weight& w, int64_t strip, int64_t tile = 0)
        : table_(table_of(w.strip(strip))),
          from_(w.strip(strip) + kTableBytes + tile * kTileBytes),
          next_(w.outliers + w.starts[strip]),
          last_(w.outliers + w.starts[strip + 1]),
          at_(tile * kTile) {
        while (next_ < last_ && place(*next_) < at_) ++next_;
    }

    // The next tiles, end to end, each [32, 32].
    void tiles(int64_t count, uint16_t* to) {
        const uint8_t* from = from_;
        const __m512i table = table_;  // as a member it would be read again for every line
        for (int64_t i = 0; i < 8 * count; ++i, from += kLineBytes) {
            for (int part = 0; part < 3; ++part)
                _mm_prefetch(reinterpret_cast<const char*>(from + kAhead + part * 64), _MM_HINT_T1);
            line(from, table, to + i * 4 * kDeep);
        }
        from_ = from;
        outliers(count, to);
    }

    // Only the outliers of the next tiles.
    void outliers(int64_t count, uint16_t* to) {
        const int64_t begin = at_;
        at_ += count * kTile;
        for (; next_ < last_ && place(*next_) < at_; ++next_) to[place(*next_) - begin] = static_cast<uint16_t>(*next_);
    }

  private:
    static constexpr int kAhead = 6144;  // bytes

    __m512i table_;
    const uint8_t* from_;
    const int64_t *next_, *last_;
    int64_t at_;
};

}  // namespace compact
