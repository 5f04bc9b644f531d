// The processor's tiles (AMX): leave to use them, and their shapes.
#pragma once

#include <cstdint>

#if defined(__AMX_TILE__)
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

struct alignas(64) TileConfig {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t bytes[16] = {};  // of a row
    uint8_t rows[16] = {};

    void load() const {
        asm volatile("" : : "m"(*this) : "memory");  // gcc 12 believes that the instruction reads 8 bytes
        _tile_loadconfig(this);
    }
};

// Whether the system lets this process use tiles; asks it once.
inline bool tiles_allowed() {
    static const bool allowed = syscall(SYS_arch_prctl, 0x1023, 18) == 0;  // ARCH_REQ_XCOMP_PERM, tile data
    return allowed;
}
#else
inline bool tiles_allowed() { return false; }
#endif
