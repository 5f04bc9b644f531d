// Entry points of products with quantized weights.

#include "quantized.h"

#include <omp.h>

#include <cstdint>

extern "C" {

// Bytes of working space that `foveal_linear` wants for so many rows.
int64_t foveal_room(const quantized::Weight* w, int64_t rows) {
    return quantized::Layout(*w, rows, 0).room(*w, omp_get_max_threads());
}

// y = x times w; AMX is used from `amx` rows on; `room` is aligned to 64 bytes.
void foveal_linear(const quantized::Weight* w, const void* x, void* y, int64_t rows, int type, int64_t amx, uint8_t* room) {
    const quantized::Layout layout(*w, rows, amx);
#pragma omp parallel if (rows * w->rows * w->columns > quantized::kSmall)
    quantized::multiply(*w, layout, x, y, rows, type, room);
}
}
