// Entry points of what happens between linear layers: one call each.

#include "rows.h"

#include <omp.h>

#include <cstdint>

#include "bfloat.h"

namespace {

using namespace rows;
using bf::Room;

constexpr int64_t kSmall = 1 << 15;  // values that one thread passes through before two can meet

int threads_for(int64_t values) { return values < kSmall ? 1 : omp_get_max_threads(); }

}  // namespace

extern "C" {

// [rows, width]
void foveal_rms_norm(const uint16_t* x, const uint16_t* weight, uint16_t* y, int64_t rows, int64_t width, float eps) {
#pragma omp parallel for num_threads(threads_for(rows * width))
    for (int64_t row = 0; row < rows; ++row) rms_norm(x + row * width, weight, y + row * width, width, eps);
}

void foveal_gate(const uint16_t* gate, const uint16_t* up, uint16_t* y, int64_t count) {
#pragma omp parallel for num_threads(threads_for(count))
    for (int64_t i = 0; i < count; i += 16) rows::gate(gate + i, up + i, y + i, lanes16(count - i));
}

// y = x sigmoid(1.702 x), rounded after every step as three operators are; y may be x.
void foveal_quick_gelu(const uint16_t* x, uint16_t* y, int64_t count) {
    const __m512 one = _mm512_set1_ps(1.0f), sign = _mm512_set1_ps(-0.0f);
#pragma omp parallel for num_threads(threads_for(count))
    for (int64_t i = 0; i < count; i += 16) {
        const __mmask16 some = lanes16(count - i);
        const __m512 value = load(x + i, some);
        const __m512 scaled = rounded(_mm512_mul_ps(value, _mm512_set1_ps(1.702f)));
        store(y + i, _mm512_mul_ps(rounded(sigmoid(scaled, one, sign)), value), some);
    }
}

// x [rows, width]: of each row where its largest value is, or -1 where one is not finite.
void foveal_largest(const uint16_t* x, int64_t* to, int64_t rows, int64_t width) {
#pragma omp parallel for num_threads(threads_for(rows * width))
    for (int64_t row = 0; row < rows; ++row) to[row] = largest(x + row * width, width);
}

// x [tokens, heads, size] with `stride` values from a token to the next, y the same without gaps.
void foveal_rotate(const uint16_t* x, int64_t stride, const void* cos, const void* sin, int wide, uint16_t* y, int64_t tokens,
                   int64_t heads, int64_t size) {
    const Turn turn{cos, sin, wide, size};
#pragma omp parallel for num_threads(threads_for(tokens * heads * size))
    for (int64_t t = 0; t < tokens; ++t)
        for (int64_t h = 0; h < heads; ++h) rotate(turn, t, x + t * stride + h * size, y + (t * heads + h) * size);
}

// 0, or 1 where there is no memory.
int foveal_attend(const Attention* attention) {
    static thread_local Room room;
    const Layout layout(*attention);
    int64_t values = 0;
    for (int64_t row = 0; row < attention->rows; ++row)
        values += attention->seen[row].count * attention->groups * attention->size;
    const int threads = threads_for(values);
    char* const space = room.of(layout.room(threads));
    if (space == nullptr) return 1;
#pragma omp parallel num_threads(threads)
    attend(*attention, layout, space);
    return 0;
}
}
