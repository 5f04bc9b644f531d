/* Fixed-point filtering of 8-bit RGB pictures, and patches from them: the inner loops of `exact.py` and `patches.py`.

   Optional: where no compiler was at hand, Pillow and numpy do the same work with the same result.
   Written for GCC and Clang; on x86 the widest vectors that the processor has are chosen when the module is loaded. */

#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030B0000
#include <Python.h>
#include <stdint.h>
#include <string.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#define BITS 22 /* of the fraction of a weight */
#define HALF (1 << (BITS - 1))
#define BLOCK 64 /* values of a row that are summed together */
#define TILE 4  /* rows that are filtered together, and pixels that are taken together */

static inline __attribute__((always_inline)) uint8_t level(int32_t sum) {
    sum >>= BITS;
    return (uint8_t)(sum < 0 ? 0 : sum > 255 ? 255 : sum);
}

/* dst[y][x][c] = sum over t of weights[x][t] * src[y][starts[x] + t][c], for TILE rows. `taps` is a multiple of TILE.
   `rows[r]` has 4 readable bytes after its last pixel. */
static void rows_plain(const uint8_t *const *rows, uint8_t *const *out, const int32_t *starts, const int32_t *weights,
                       Py_ssize_t width, Py_ssize_t taps) {
    for (Py_ssize_t x = 0; x < width; x++)
        for (int r = 0; r < TILE; r++) {
            const uint8_t *from = rows[r] + 3 * starts[x];
            int32_t sums[3] = {HALF, HALF, HALF};
            for (Py_ssize_t t = 0; t < taps; t++)
                for (int c = 0; c < 3; c++) sums[c] += weights[x * taps + t] * from[3 * t + c];
            for (int c = 0; c < 3; c++) out[r][3 * x + c] = level(sums[c]);
        }
}

#if defined(__x86_64__)
#define AVX2 __attribute__((target("avx2")))
#define AVX512 __attribute__((target("avx2,avx512f,avx512bw,avx512vl,avx512dq,prefer-vector-width=512")))

/* Four pixels of three bytes, each with a byte to spare: what is in it is never used. */
#define SPREAD _mm_setr_epi8(0, 1, 2, 2, 3, 4, 5, 5, 6, 7, 8, 8, 9, 10, 11, 11)

static inline AVX2 void put(uint8_t *to, __m128i sum) {
    sum = _mm_srai_epi32(_mm_add_epi32(sum, _mm_set1_epi32(HALF)), BITS);
    uint32_t pixel = (uint32_t)_mm_cvtsi128_si32(_mm_packus_epi16(_mm_packs_epi32(sum, sum), sum));
    memcpy(to, &pixel, 3);
}

AVX2 static void rows_avx2(const uint8_t *const *rows, uint8_t *const *out, const int32_t *starts,
                           const int32_t *weights, Py_ssize_t width, Py_ssize_t taps) {
    for (Py_ssize_t x = 0; x < width; x++, weights += taps) {
        __m256i sums[TILE] = {_mm256_setzero_si256()};
        for (int r = 1; r < TILE; r++) sums[r] = sums[0];
        for (Py_ssize_t t = 0; t < taps; t += TILE) {
            __m256i four = _mm256_castsi128_si256(_mm_loadu_si128((const __m128i *)(weights + t)));
            __m256i low = _mm256_permutevar8x32_epi32(four, _mm256_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1));
            __m256i high = _mm256_permutevar8x32_epi32(four, _mm256_setr_epi32(2, 2, 2, 2, 3, 3, 3, 3));
            for (int r = 0; r < TILE; r++) {
                __m128i p = _mm_loadu_si128((const __m128i *)(rows[r] + 3 * (starts[x] + t)));
                p = _mm_shuffle_epi8(p, SPREAD);
                __m256i a = _mm256_mullo_epi32(_mm256_cvtepu8_epi32(p), low);
                __m256i b = _mm256_mullo_epi32(_mm256_cvtepu8_epi32(_mm_srli_si128(p, 8)), high);
                sums[r] = _mm256_add_epi32(sums[r], _mm256_add_epi32(a, b));
            }
        }
        for (int r = 0; r < TILE; r++)
            put(out[r] + 3 * x, _mm_add_epi32(_mm256_castsi256_si128(sums[r]), _mm256_extracti128_si256(sums[r], 1)));
    }
}

AVX512 static void rows_avx512(const uint8_t *const *rows, uint8_t *const *out, const int32_t *starts,
                               const int32_t *weights, Py_ssize_t width, Py_ssize_t taps) {
    const __m512i spots = _mm512_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3);
    for (Py_ssize_t x = 0; x < width; x++, weights += taps) {
        __m512i sums[TILE] = {_mm512_setzero_si512()};
        for (int r = 1; r < TILE; r++) sums[r] = sums[0];
        for (Py_ssize_t t = 0; t < taps; t += TILE) {
            __m512i four = _mm512_castsi128_si512(_mm_loadu_si128((const __m128i *)(weights + t)));
            four = _mm512_permutexvar_epi32(spots, four);
            for (int r = 0; r < TILE; r++) {
                __m128i p = _mm_loadu_si128((const __m128i *)(rows[r] + 3 * (starts[x] + t)));
                __m512i values = _mm512_cvtepu8_epi32(_mm_shuffle_epi8(p, SPREAD));
                sums[r] = _mm512_add_epi32(sums[r], _mm512_mullo_epi32(values, four));
            }
        }
        for (int r = 0; r < TILE; r++) {
            __m256i half = _mm256_add_epi32(_mm512_castsi512_si256(sums[r]), _mm512_extracti64x4_epi64(sums[r], 1));
            put(out[r] + 3 * x, _mm_add_epi32(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1)));
        }
    }
}
#endif

/* dst[y][i] = sum over t of weights[y][t] * src[starts[y] + t][i], i over all values of a row. */
static inline __attribute__((always_inline)) void columns_body(const uint8_t *src, uint8_t *dst, const int32_t *starts,
                                                               const int32_t *weights, Py_ssize_t height,
                                                               Py_ssize_t taps, Py_ssize_t values) {
    for (Py_ssize_t y = 0; y < height; y++) {
        const uint8_t *from = src + starts[y] * values;
        const int32_t *weight = weights + y * taps;
        uint8_t *to = dst + y * values;
        if (values < BLOCK) {
            for (Py_ssize_t i = 0; i < values; i++) {
                int32_t sum = HALF;
                for (Py_ssize_t t = 0; t < taps; t++) sum += weight[t] * from[t * values + i];
                to[i] = level(sum);
            }
            continue;
        }
        for (Py_ssize_t next = 0; next < values; next += BLOCK) {
            Py_ssize_t i = next + BLOCK <= values ? next : values - BLOCK; /* the last block overlaps its neighbour */
            int32_t sums[BLOCK];
            for (int j = 0; j < BLOCK; j++) sums[j] = HALF;
            for (Py_ssize_t t = 0; t < taps; t++)
                for (int j = 0; j < BLOCK; j++) sums[j] += weight[t] * from[t * values + i + j];
            for (int j = 0; j < BLOCK; j++) to[i + j] = level(sums[j]);
        }
    }
}

static void columns_plain(const uint8_t *src, uint8_t *dst, const int32_t *starts, const int32_t *weights,
                          Py_ssize_t height, Py_ssize_t taps, Py_ssize_t values) {
    columns_body(src, dst, starts, weights, height, taps, values);
}

#if defined(__x86_64__)
AVX2 static void columns_avx2(const uint8_t *src, uint8_t *dst, const int32_t *starts, const int32_t *weights,
                              Py_ssize_t height, Py_ssize_t taps, Py_ssize_t values) {
    columns_body(src, dst, starts, weights, height, taps, values);
}

AVX512 static void columns_avx512(const uint8_t *src, uint8_t *dst, const int32_t *starts, const int32_t *weights,
                                  Py_ssize_t height, Py_ssize_t taps, Py_ssize_t values) {
    columns_body(src, dst, starts, weights, height, taps, values);
}
#endif

typedef void rows_kind(const uint8_t *const *, uint8_t *const *, const int32_t *, const int32_t *, Py_ssize_t,
                       Py_ssize_t);
typedef void columns_kind(const uint8_t *, uint8_t *, const int32_t *, const int32_t *, Py_ssize_t, Py_ssize_t,
                          Py_ssize_t);
static rows_kind *best_rows = rows_plain;
static columns_kind *best_columns = columns_plain;

static void choose(void) {
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
        __builtin_cpu_supports("avx512dq"))
        best_rows = rows_avx512, best_columns = columns_avx512;
    else if (__builtin_cpu_supports("avx2"))
        best_rows = rows_avx2, best_columns = columns_avx2;
#endif
}

/* One frame as patches: out[patch][c][moment .. moment + copies][row][column] = table[c][value]. Patches come in the
   order (group row, group column, row in group, column in group). */
static void patches(const uint8_t *src, const float *table, float *out, Py_ssize_t high, Py_ssize_t wide, Py_ssize_t patch,
                    Py_ssize_t merge, Py_ssize_t temporal, Py_ssize_t moment, Py_ssize_t copies) {
    Py_ssize_t line = 3 * wide * patch, area = patch * patch;
    for (Py_ssize_t band = 0; band < high; band += merge)
        for (Py_ssize_t group = 0; group < wide; group += merge)
            for (Py_ssize_t i = band; i < band + merge; i++)
                for (Py_ssize_t j = group; j < group + merge; j++) {
                    const uint8_t *corner = src + i * patch * line + 3 * j * patch;
                    for (int c = 0; c < 3; c++, out += temporal * area) {
                        float *to = out + moment * area;
                        for (Py_ssize_t y = 0; y < patch; y++) {
                            const uint8_t *from = corner + y * line + c;
                            for (Py_ssize_t x = 0; x < patch; x++) to[y * patch + x] = table[256 * c + from[3 * x]];
                        }
                        for (Py_ssize_t copy = 1; copy < copies; copy++)
                            memcpy(to + copy * area, to, (size_t)area * sizeof(float));
                    }
                }
}

static int fits(const Py_buffer *src, const Py_buffer *dst, const Py_buffer *starts, const Py_buffer *weights,
                Py_ssize_t before, Py_ssize_t after, Py_ssize_t other, Py_ssize_t taps) {
    int right = before > 0 && after > 0 && other > 0 && taps > 0 && taps <= before && src->len == 3 * before * other &&
                dst->len == 3 * after * other && starts->len == 4 * after && weights->len == 4 * after * taps;
    for (Py_ssize_t i = 0; right && i < after; i++) {
        int32_t start = ((const int32_t *)starts->buf)[i];
        right = start >= 0 && start + taps <= before;
    }
    if (!right) PyErr_SetString(PyExc_ValueError, "buffers do not have the sizes that were named");
    return right;
}

static PyObject *filter_rows(PyObject *module, PyObject *arguments) {
    (void)module;
    Py_buffer src, dst, starts, weights;
    Py_ssize_t height, before, after, taps;
    if (!PyArg_ParseTuple(arguments, "y*w*y*y*nnnn", &src, &dst, &starts, &weights, &height, &before, &after, &taps))
        return NULL;
    int right = fits(&src, &dst, &starts, &weights, before, after, height, taps);
    if (right && taps % TILE) right = 0, PyErr_SetString(PyExc_ValueError, "the number of weights is not a multiple of 4");
    uint8_t *last = right ? PyMem_Malloc((size_t)(3 * before + 16)) : NULL; /* the last row, and what is read behind it */
    if (right && !last) right = 0, PyErr_NoMemory();
    if (right) {
        const uint8_t *from = src.buf;
        uint8_t *to = dst.buf;
        Py_BEGIN_ALLOW_THREADS
        memset(last + 3 * before, 0, 16);
        memcpy(last, from + 3 * before * (height - 1), (size_t)(3 * before));
        for (Py_ssize_t y = 0; y < height; y += TILE) {
            const uint8_t *rows[TILE];
            uint8_t *out[TILE];
            for (int r = 0; r < TILE; r++) {
                Py_ssize_t row = y + r < height ? y + r : height - 1;
                rows[r] = row == height - 1 ? last : from + 3 * before * row;
                out[r] = to + 3 * after * row;
            }
            best_rows(rows, out, starts.buf, weights.buf, after, taps);
        }
        Py_END_ALLOW_THREADS
    }
    PyMem_Free(last);
    PyBuffer_Release(&src), PyBuffer_Release(&dst), PyBuffer_Release(&starts), PyBuffer_Release(&weights);
    if (!right) return NULL;
    Py_RETURN_NONE;
}

static PyObject *filter_columns(PyObject *module, PyObject *arguments) {
    (void)module;
    Py_buffer src, dst, starts, weights;
    Py_ssize_t width, before, after, taps;
    if (!PyArg_ParseTuple(arguments, "y*w*y*y*nnnn", &src, &dst, &starts, &weights, &width, &before, &after, &taps))
        return NULL;
    int right = fits(&src, &dst, &starts, &weights, before, after, width, taps);
    if (right) {
        Py_BEGIN_ALLOW_THREADS
        best_columns(src.buf, dst.buf, starts.buf, weights.buf, after, taps, 3 * width);
        Py_END_ALLOW_THREADS
    }
    PyBuffer_Release(&src), PyBuffer_Release(&dst), PyBuffer_Release(&starts), PyBuffer_Release(&weights);
    if (!right) return NULL;
    Py_RETURN_NONE;
}

static PyObject *cut(PyObject *module, PyObject *arguments) {
    (void)module;
    Py_buffer src, table, dst;
    Py_ssize_t high, wide, patch, merge, temporal, moment, copies;
    if (!PyArg_ParseTuple(arguments, "y*y*w*nnnnnnn", &src, &table, &dst, &high, &wide, &patch, &merge, &temporal, &moment,
                          &copies))
        return NULL;
    int right = patch > 0 && merge > 0 && high > 0 && wide > 0 && high % merge == 0 && wide % merge == 0 && moment >= 0 &&
                copies > 0 && moment + copies <= temporal && src.len == 3 * high * wide * patch * patch &&
                table.len == 3 * 256 * (Py_ssize_t)sizeof(float) &&
                dst.len == src.len * temporal * (Py_ssize_t)sizeof(float);
    if (right) {
        Py_BEGIN_ALLOW_THREADS
        patches(src.buf, table.buf, dst.buf, high, wide, patch, merge, temporal, moment, copies);
        Py_END_ALLOW_THREADS
    } else
        PyErr_SetString(PyExc_ValueError, "buffers do not have the sizes that were named");
    PyBuffer_Release(&src), PyBuffer_Release(&table), PyBuffer_Release(&dst);
    if (!right) return NULL;
    Py_RETURN_NONE;
}

static PyMethodDef methods[] = {
    {"filter_rows", filter_rows, METH_VARARGS, "filter_rows(src, dst, starts, weights, height, before, after, taps)"},
    {"filter_columns", filter_columns, METH_VARARGS, "filter_columns(src, dst, starts, weights, width, before, after, taps)"},
    {"cut", cut, METH_VARARGS, "cut(src, table, dst, high, wide, patch, merge, temporal, moment, copies)"},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_pixels", NULL, -1, methods, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__pixels(void) {
    choose();
    return PyModule_Create(&definition);
}
