// What happens to rows of bfloat16 between linear layers, and attention of single new tokens to what their sequences hold, by
// all threads of a team.
//
// Each row is computed by itself and in one order, so its result is the same bits whatever rows come with it.
#pragma once

#include <immintrin.h>
#include <omp.h>

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "bfloat.h"

namespace rows {

using bf::across, bf::lanes16, bf::load, bf::parts, bf::rounded, bf::store, bf::up, bf::widen;

constexpr int64_t kChunk = 256;  // keys that a thread takes at a time
constexpr int64_t kAsked = 16;   // values that are asked for at a time

// e^x for x <= 0: 2^n e^r with |r| <= ln(2) / 2, and e^r by its series to the seventh power (error below 1e-8).
inline __m512 exponential(__m512 x) {
    x = _mm512_max_ps(_mm512_set1_ps(-104.0f), x);  // in this order what is no number stays none
    const __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504f)), 0);
    __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693359375f), x);  // ln(2) in two parts, the first exact
    r = _mm512_fnmadd_ps(n, _mm512_set1_ps(-2.12194440e-4f), r);
    __m512 sum = _mm512_set1_ps(1.0f / 5040);
    for (const float factor : {1.0f / 720, 1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f})
        sum = _mm512_fmadd_ps(sum, r, _mm512_set1_ps(factor));
    return _mm512_scalef_ps(sum, n);
}

// 1 / (1 + e^-x), or e^x / (1 + e^x) below 0.
inline __m512 sigmoid(__m512 x, __m512 one, __m512 sign) {
    const __m512 small = exponential(_mm512_or_ps(x, sign));  // e^-|x|
    const __mmask16 below = _mm512_cmp_ps_mask(x, _mm512_setzero_ps(), _CMP_LT_OQ);
    return _mm512_div_ps(_mm512_mask_mov_ps(one, below, small), _mm512_add_ps(one, small));
}

// y = x / sqrt(mean(x^2) + eps) * weight, one row; y may be x.
inline void rms_norm(const uint16_t* x, const uint16_t* weight, uint16_t* y, int64_t width, float eps) {
    __m512 squares = _mm512_setzero_ps();
    for (int64_t i = 0; i < width; i += 16) {
        const __m512 value = load(x + i, lanes16(width - i));
        squares = _mm512_fmadd_ps(value, value, squares);
    }
    const __m512 inverse = _mm512_set1_ps(1.0f / std::sqrt(_mm512_reduce_add_ps(squares) / width + eps));
    for (int64_t i = 0; i < width; i += 16) {
        const __mmask16 some = lanes16(width - i);
        const __m512 normal = _mm512_mul_ps(load(x + i, some), inverse);
        store(y + i, _mm512_mul_ps(normal, load(weight + i, some)), some);
    }
}

// y = silu(gate) * up, rounded after silu as two operators are, of 16 values or fewer; y may be gate or up.
inline void gate(const uint16_t* gate, const uint16_t* up, uint16_t* y, __mmask16 some) {
    const __m512 one = _mm512_set1_ps(1.0f), sign = _mm512_set1_ps(-0.0f);
    const __m512 x = load(gate, some);
    const __m512 silu = _mm512_mul_ps(x, sigmoid(x, one, sign));
    store(y, _mm512_mul_ps(rounded(silu), load(up, some)), some);
}

// x += y, count values.
inline void add(uint16_t* x, const uint16_t* y, int64_t count) {
    for (int64_t i = 0; i < count; i += 16) {
        const __mmask16 some = lanes16(count - i);
        store(x + i, _mm512_add_ps(load(x + i, some), load(y + i, some)), some);
    }
}

// Where the largest of `count` values is, the first of equals; -1 where one of them is not finite.
inline int64_t largest(const uint16_t* x, int64_t count) {
    __m512 most = _mm512_set1_ps(-INFINITY), sum = _mm512_setzero_ps();
    __m512i index = _mm512_setzero_si512(), here = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    for (int64_t i = 0; i < count; i += 16) {
        const __mmask16 some = lanes16(count - i);
        const __m512 value = load(x + i, some);
        const __mmask16 more = _mm512_mask_cmp_ps_mask(some, value, most, _CMP_GT_OQ);
        most = _mm512_mask_mov_ps(most, more, value);
        index = _mm512_mask_mov_epi32(index, more, here);
        sum = _mm512_fmadd_ps(value, _mm512_setzero_ps(), sum);  // 0, and what is no number from infinities too
        here = _mm512_add_epi32(here, _mm512_set1_epi32(16));
    }
    if (_mm512_reduce_add_ps(sum) != 0.0f) return -1;
    const __m512 top = _mm512_set1_ps(_mm512_reduce_max_ps(most));
    return _mm512_mask_reduce_min_epi32(_mm512_cmp_ps_mask(most, top, _CMP_EQ_OQ), index);
}

// Cosines and sines [tokens, size], of which the first halves count: bfloat16, and then each product is rounded, or float32
// (`wide`).
struct Turn {
    const void *cos, *sin;
    int wide;
    int64_t size;
};

// The halves of one head of a token turn: (a cos - b sin, b cos + a sin); y may be x.
inline void rotate(const Turn& turn, int64_t token, const uint16_t* x, uint16_t* y) {
    const int64_t half = turn.size / 2;
    const auto factor = [&](const void* from, int64_t at, __mmask16 some) {
        return turn.wide ? _mm512_maskz_loadu_ps(some, static_cast<const float*>(from) + at)
                         : load(static_cast<const uint16_t*>(from) + at, some);
    };
    const auto product = [&](__m512 a, __m512 b) {
        const __m512 exact = _mm512_mul_ps(a, b);
        return turn.wide ? exact : rounded(exact);
    };
    for (int64_t i = 0; i < half; i += 16) {
        const __mmask16 some = lanes16(half - i);
        const __m512 c = factor(turn.cos, token * turn.size + i, some), s = factor(turn.sin, token * turn.size + i, some);
        const __m512 a = load(x + i, some), b = load(x + half + i, some);
        store(y + i, _mm512_sub_ps(product(a, c), product(b, s)), some);
        store(y + half + i, _mm512_add_ps(product(b, c), product(a, s)), some);
    }
}

// What a new token attends to: the first `seen` keys [group, seen, size] and values [group, seen, value_size] of a store.
struct Seen {
    uint16_t *keys, *values;
    int64_t key_group, value_group;  // values from one group to the next
    int64_t count;
};

struct Attention {
    const uint16_t* q;             // [rows, heads, size], q_row values from one row to the next
    const uint16_t *new_k, *new_v; // [rows, groups, size], [rows, groups, value_size]; nullptr: the stores have them
    int64_t q_row, k_row, v_row;   // values from one row of these to the next
    uint16_t* out;                 // [rows, heads, value_size]
    const Seen* seen;              // [rows]
    int64_t rows, heads, groups, size;
    int64_t value_size, value_row;  // value_row: values from one token's to the next
    float scale;
};

// What `kChunk` keys or fewer give one row's heads of one group: the largest score, the sum of the exponentials, and the
// values times these, a head each.
struct Part {
    float *most, *total, *values;
};

// The scores of R heads, whose queries are float32 already, and four keys.
template <int R>
void four_scores(const float* q, const uint16_t* const k[4], int64_t size, float* to) {
    __m512 sums[R][4];
    for (int r = 0; r < R; ++r)
        for (int i = 0; i < 4; ++i) sums[r][i] = _mm512_setzero_ps();
    for (int64_t d = 0; d < size; d += 16) {
        const __mmask16 some = lanes16(size - d);
        __m512 keys[4];
        for (int i = 0; i < 4; ++i) keys[i] = load(k[i] + d, some);
        for (int r = 0; r < R; ++r) {
            const __m512 asked = _mm512_load_ps(q + r * up(size, 16) + d);
            for (int i = 0; i < 4; ++i) sums[r][i] = _mm512_fmadd_ps(asked, keys[i], sums[r][i]);
        }
    }
    for (int r = 0; r < R; ++r) _mm_store_ps(to + r * 4, across(sums[r][0], sums[r][1], sums[r][2], sums[r][3]));
}

// Scores [keys / 4, heads, 4] of up to `kChunk` keys; behind the last key stands the last one again.
inline void scores_of(const float* q, const uint16_t* keys, int64_t size, int64_t count, int64_t heads, float* to) {
    const int64_t wide = up(size, 16);
    for (int64_t j = 0; j < count; j += 4, to += 4 * heads) {
        const uint16_t* k[4];
        for (int64_t i = 0; i < 4; ++i) k[i] = keys + std::min(j + i, count - 1) * size;
        int64_t h = 0;
        for (; h + 6 <= heads; h += 6) four_scores<6>(q + h * wide, k, size, to + 4 * h);
        if (heads - h >= 4) four_scores<4>(q + h * wide, k, size, to + 4 * h), h += 4;
        if (heads - h >= 2) four_scores<2>(q + h * wide, k, size, to + 4 * h), h += 2;
        if (heads - h >= 1) four_scores<1>(q + h * wide, k, size, to + 4 * h);
    }
}

// Sums of `count` values with the weights [keys / 4, heads, 4], of R heads from `first` on.
template <int R>
void weigh(const Attention& a, const uint16_t* values, int64_t count, const float* weights, int64_t heads, int64_t first,
           float* to) {
    for (int64_t d = 0; d < a.value_size; d += 16) {
        const __mmask16 some = lanes16(a.value_size - d);
        __m512 sums[R];
        for (int r = 0; r < R; ++r) sums[r] = _mm512_setzero_ps();
        for (int64_t j = 0; j < count; ++j) {
            const __m512 value = load(values + j * a.value_row + d, some);
            const float* const own = weights + (j / 4 * heads + first) * 4 + j % 4;
            for (int r = 0; r < R; ++r) sums[r] = _mm512_fmadd_ps(_mm512_set1_ps(own[r * 4]), value, sums[r]);
        }
        for (int r = 0; r < R; ++r) _mm512_mask_storeu_ps(to + (first + r) * a.value_size + d, some, sums[r]);
    }
}

// A head's scores become e^(score - largest), of which the sum comes back; zeros behind the last key.
inline float exponentials(float* scores, int64_t count, int64_t heads, float* most) {
    const __m128 none = _mm_set1_ps(-INFINITY);
    const int64_t fours = parts(count, 4), step = heads * 4;
    __m512 largest = _mm512_set1_ps(-INFINITY);
    for (int64_t i = 0; i < fours; i += 4) {
        __m512 all = _mm512_castps128_ps512(_mm_load_ps(scores + i * step));
        all = _mm512_insertf32x4(all, i + 1 < fours ? _mm_load_ps(scores + (i + 1) * step) : none, 1);
        all = _mm512_insertf32x4(all, i + 2 < fours ? _mm_load_ps(scores + (i + 2) * step) : none, 2);
        all = _mm512_insertf32x4(all, i + 3 < fours ? _mm_load_ps(scores + (i + 3) * step) : none, 3);
        largest = _mm512_max_ps(largest, all);
    }
    *most = _mm512_reduce_max_ps(largest);
    const __m512 top = _mm512_set1_ps(*most);
    __m512 total = _mm512_setzero_ps();
    for (int64_t i = 0; i < fours; i += 4) {
        __m512 all = _mm512_castps128_ps512(_mm_load_ps(scores + i * step));
        all = _mm512_insertf32x4(all, i + 1 < fours ? _mm_load_ps(scores + (i + 1) * step) : none, 1);
        all = _mm512_insertf32x4(all, i + 2 < fours ? _mm_load_ps(scores + (i + 2) * step) : none, 2);
        all = _mm512_insertf32x4(all, i + 3 < fours ? _mm_load_ps(scores + (i + 3) * step) : none, 3);
        all = _mm512_maskz_mov_ps(lanes16(count - i * 4), exponential(_mm512_sub_ps(all, top)));
        total = _mm512_add_ps(total, all);
        _mm_store_ps(scores + i * step, _mm512_castps512_ps128(all));
        if (i + 1 < fours) _mm_store_ps(scores + (i + 1) * step, _mm512_extractf32x4_ps(all, 1));
        if (i + 2 < fours) _mm_store_ps(scores + (i + 2) * step, _mm512_extractf32x4_ps(all, 2));
        if (i + 3 < fours) _mm_store_ps(scores + (i + 3) * step, _mm512_extractf32x4_ps(all, 3));
    }
    return _mm512_reduce_add_ps(total);
}

inline void attend_part(const Attention& a, int64_t row, int64_t group, int64_t chunk, float* scores, const Part& part) {
    const Seen& seen = a.seen[row];
    const int64_t heads = a.heads / a.groups, from = chunk * kChunk, count = std::min(kChunk, seen.count - from);
    const int64_t wide = up(a.size, 16);
    float* const q = scores + kChunk * heads;
    for (int64_t h = 0; h < heads; ++h)
        for (int64_t d = 0; d < a.size; d += 16)
            _mm512_store_ps(q + h * wide + d, _mm512_mul_ps(_mm512_set1_ps(a.scale), load(a.q + row * a.q_row + (group * heads + h) * a.size + d, lanes16(a.size - d))));
    const uint16_t* const values = seen.values + group * seen.value_group + from * a.value_row;
    for (int64_t j = 0; j < count; j += kAsked) {
        const int64_t some = std::min(kAsked, count - j);
        // Values are read column by column, which no processor foresees: they are asked for while keys are read.
        for (int64_t i = 0; i < some; ++i)
            for (int64_t d = 0; d < a.value_size; d += 32)
                _mm_prefetch(reinterpret_cast<const char*>(values + (j + i) * a.value_row + d), _MM_HINT_T1);
        scores_of(q, seen.keys + group * seen.key_group + (from + j) * a.size, a.size, some, heads, scores + j * heads);
    }
    for (int64_t h = 0; h < heads; ++h) part.total[h] = exponentials(scores + h * 4, count, heads, part.most + h);
    int64_t h = 0;
    for (; h + 8 <= heads; h += 8) weigh<8>(a, values, count, scores, heads, h, part.values);
    if (heads - h >= 6) weigh<6>(a, values, count, scores, heads, h, part.values), h += 6;
    if (heads - h >= 4) weigh<4>(a, values, count, scores, heads, h, part.values), h += 4;
    if (heads - h >= 2) weigh<2>(a, values, count, scores, heads, h, part.values), h += 2;
    if (heads - h >= 1) weigh<1>(a, values, count, scores, heads, h, part.values);
}

// Where the parts of `attend` lie, and how many bytes it wants for a team of so many threads.
struct Layout {
    int64_t heads, most, part, scratch, items;

    explicit Layout(const Attention& a) : heads(a.heads / a.groups), most(0) {
        for (int64_t row = 0; row < a.rows; ++row) most = std::max(most, parts(a.seen[row].count, kChunk));
        part = up(heads * (a.value_size + 2) * 4, 64);
        scratch = up(heads * (kChunk + up(a.size, 16)) * 4, 64) + 4096;
        items = a.rows * a.groups * most;
    }

    int64_t room(int64_t threads) const { return items * part + threads * scratch; }
};

// New tokens, one a row, leave keys and values in their stores and attend to all that is there. All threads of a team meet
// here.
inline void attend(const Attention& a, const Layout& layout, char* space) {
    const int64_t heads = layout.heads, most = layout.most;
    const auto place = [&](int64_t item) {
        auto* const at = reinterpret_cast<float*>(space + item * layout.part);
        return Part{at, at + heads, at + 2 * heads};
    };
    if (a.new_k != nullptr) {
#pragma omp for
        for (int64_t item = 0; item < a.rows * a.groups; ++item) {
            const int64_t row = item / a.groups, group = item % a.groups;
            const Seen& seen = a.seen[row];
            std::copy_n(a.new_k + row * a.k_row + group * a.size, a.size,
                        seen.keys + group * seen.key_group + (seen.count - 1) * a.size);
            std::copy_n(a.new_v + row * a.v_row + group * a.value_size, a.value_size,
                        seen.values + group * seen.value_group + (seen.count - 1) * a.value_row);
        }
    }
    auto* const scores = reinterpret_cast<float*>(space + layout.items * layout.part + omp_get_thread_num() * layout.scratch);
#pragma omp for schedule(dynamic)
    for (int64_t item = 0; item < layout.items; ++item) {
        const int64_t row = item / (a.groups * most), group = item / most % a.groups, chunk = item % most;
        if (chunk * kChunk < a.seen[row].count) attend_part(a, row, group, chunk, scores, place(item));
    }
#pragma omp for
    for (int64_t item = 0; item < a.rows * a.groups; ++item) {
        const int64_t row = item / a.groups, group = item % a.groups, chunks = parts(a.seen[row].count, kChunk);
        for (int64_t h = 0; h < heads; ++h) {
            float total = 0, largest = -INFINITY;
            for (int64_t c = 0; c < chunks; ++c) largest = std::max(largest, place(item * most + c).most[h]);
            for (int64_t c = 0; c < chunks; ++c) {
                const Part p = place(item * most + c);
                p.most[h] = std::exp(p.most[h] - largest);  // the part's weight from here on
                total += p.most[h] * p.total[h];
            }
            uint16_t* const to = a.out + (row * a.heads + group * heads + h) * a.value_size;
            for (int64_t d = 0; d < a.value_size; d += 16) {
                const __mmask16 some = lanes16(a.value_size - d);
                __m512 sum = _mm512_setzero_ps();
                for (int64_t c = 0; c < chunks; ++c) {
                    const Part p = place(item * most + c);
                    const __m512 own = _mm512_maskz_loadu_ps(some, p.values + h * a.value_size + d);
                    sum = _mm512_fmadd_ps(_mm512_set1_ps(p.most[h]), own, sum);
                }
                store(to + d, _mm512_div_ps(sum, _mm512_set1_ps(total)), some);
            }
        }
    }
}

}  // namespace rows
