// bfloat16 and float32, sixteen at a time, and what kernels share: memory that only grows, masks of lanes.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstdlib>

namespace bf {

inline int64_t parts(int64_t value, int64_t size) { return (value + size - 1) / size; }
inline int64_t up(int64_t value, int64_t step) { return parts(value, step) * step; }

// The first `count` of 32 (16) lanes.
inline __mmask32 lanes32(int64_t count) { return count >= 32 ? ~0u : count <= 0 ? 0 : (1u << count) - 1; }
inline __mmask16 lanes16(int64_t count) { return static_cast<__mmask16>(lanes32(count > 16 ? 16 : count)); }

inline float widen(uint16_t value) { return __builtin_bit_cast(float, static_cast<uint32_t>(value) << 16); }
inline __m512 widen(__m256i values) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(values), 16));
}
inline __m512 load(const uint16_t* from, __mmask16 some = 0xffff) {
    return widen(_mm256_maskz_loadu_epi16(some, from));
}

// Rounded to bfloat16, nearest and even; as float32, and stored.
inline __m512 rounded(__m512 x) { return widen((__m256i)_mm512_cvtneps_pbh(x)); }
inline void store(uint16_t* to, __m512 x, __mmask16 some = 0xffff) {
    _mm256_mask_storeu_epi16(to, some, (__m256i)_mm512_cvtneps_pbh(x));
}

// The sums of the lanes of four vectors.
inline __m128 across(__m512 a, __m512 b, __m512 c, __m512 d) {
    const __m512 ab = _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
    const __m512 cd = _mm512_add_ps(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
    const __m512 all = _mm512_add_ps(_mm512_shuffle_ps(ab, cd, 0x44), _mm512_shuffle_ps(ab, cd, 0xee));
    const __m256 half = _mm256_add_ps(_mm512_castps512_ps256(all), _mm512_extractf32x8_ps(all, 1));
    return _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
}

// Working space of a thread that calls.
class Room {
  public:
    Room() = default;
    Room(const Room&) = delete;
    Room& operator=(const Room&) = delete;
    ~Room() { std::free(space_); }

    // nullptr where there is no memory.
    char* of(int64_t size) {
        if (size > size_) {
            std::free(space_);
            space_ = static_cast<char*>(std::aligned_alloc(64, up(size, 64)));
            size_ = space_ ? size : 0;
        }
        return space_;
    }

  private:
    char* space_ = nullptr;
    int64_t size_ = 0;
};

}  // namespace bf
