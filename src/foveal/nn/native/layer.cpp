// A layer of a language model, or its half before the MLP, for few tokens: one call instead of fifteen.
//
// The threads meet between the parts of the layer and nowhere else. Every part computes as it does by itself, in the same
// order and with the same roundings, so the result is the same bits.

#include <omp.h>

#include <algorithm>
#include <cstdint>

#include "bfloat.h"
#include "dense.h"
#include "quantized.h"
#include "rows.h"

namespace {

using bf::Room, bf::up;

constexpr int64_t kSmall = 1 << 19;  // weights of a layer that one thread passes before two can meet a dozen times

// A linear layer of one of three kinds.
struct Linear {
    const uint16_t* w;
    const compact::Weight* compacted;
    const quantized::Weight* quantized;
    const uint16_t* bias;  // nullptr: none, or the quantized weight has it
    int64_t rows, columns;
};

struct Layer {
    const uint16_t *norm1, *norm2;    // norm2 is nullptr where the layer ends with attention
    const uint16_t *q_norm, *k_norm;  // nullptr: none
    Linear qkv[3];                    // one for all three, or one each
    Linear out, gate, up, down;
    int64_t parts;  // of qkv
    int64_t heads, groups, size;
    float eps1, eps2, q_eps, k_eps;
    float scale;
};

struct Step {
    uint16_t* x;  // [rows, width], changed
    const void *cos, *sin;
    const rows::Seen* seen;
    int64_t rows, width;
    int64_t amx;  // rows from which on quantized layers use tiles
    int wide, way;
};

dense::Call call_of(const Linear& l, const uint16_t* x, uint16_t* y, int64_t count) {
    return {l.w, l.compacted, l.bias, x, y, l.rows, l.columns, count};
}

int64_t room_of(const Linear& l, const Step& s, int64_t threads) {
    if (l.quantized != nullptr) return quantized::Layout(*l.quantized, s.rows, s.amx).room(*l.quantized, threads);
    return dense::room(call_of(l, nullptr, nullptr, s.rows), s.way, threads);
}

// All threads meet here, before and after.
void multiply(const Linear& l, const Step& s, const uint16_t* x, uint16_t* y, char* space) {
    if (l.quantized != nullptr) {
        const quantized::Layout layout(*l.quantized, s.rows, s.amx);
        quantized::multiply(*l.quantized, layout, x, y, s.rows, quantized::kBF16, reinterpret_cast<uint8_t*>(space));
    } else {
        dense::multiply(call_of(l, x, y, s.rows), s.way, space);
    }
#pragma omp barrier
}

int64_t weights_of(const Layer& l) {
    int64_t sum = l.out.rows * l.out.columns;
    for (int64_t i = 0; i < l.parts; ++i) sum += l.qkv[i].rows * l.qkv[i].columns;
    return l.norm2 == nullptr ? sum : sum + 3 * l.gate.rows * l.gate.columns;
}

// Memory of a call: what lies between the parts, and what a part needs while it runs.
struct Places {
    uint16_t *normal, *q, *k, *v, *attended, *opened, *hidden, *added;
    int64_t q_row, k_row, v_row;  // values from one token to the next
    char* space;
};

}  // namespace

extern "C" {

// 0, or 1 where there is no memory.
int foveal_layer(const Layer* layer, const Step* step) {
    static thread_local Room room;
    const Layer& l = *layer;
    const Step& s = *step;
    const int threads = weights_of(l) < kSmall ? 1 : omp_get_max_threads();
    const int64_t q_width = l.heads * l.size, k_width = l.groups * l.size, mlp_width = l.norm2 ? l.gate.rows : 0;
    const bool joined = l.parts == 1;

    rows::Attention attention{};
    attention.seen = s.seen, attention.rows = s.rows, attention.scale = l.scale;
    attention.heads = l.heads, attention.groups = l.groups;
    attention.size = attention.value_size = attention.value_row = l.size;
    const rows::Layout layout(attention);
    int64_t most = std::max(layout.room(threads), room_of(l.out, s, threads));
    for (int64_t i = 0; i < l.parts; ++i) most = std::max(most, room_of(l.qkv[i], s, threads));
    if (l.norm2 != nullptr)
        for (const Linear* part : {&l.gate, &l.up, &l.down}) most = std::max(most, room_of(*part, s, threads));

    const auto bytes = [&](int64_t width) { return up(s.rows * width * 2, 64); };
    const int64_t between = 2 * bytes(s.width) + 2 * bytes(q_width) + 2 * bytes(k_width) + 2 * bytes(mlp_width);
    char* next = room.of(between + most);
    if (next == nullptr) return 1;
    const auto take = [&](int64_t width) {
        auto* const taken = reinterpret_cast<uint16_t*>(next);
        next += bytes(width);
        return taken;
    };
    Places at;
    at.normal = take(s.width), at.added = take(s.width);
    at.q = take(q_width + 2 * k_width), at.attended = take(q_width);
    at.opened = take(mlp_width), at.hidden = take(mlp_width);
    at.space = next;
    at.q_row = joined ? q_width + 2 * k_width : q_width;
    at.k_row = at.v_row = joined ? at.q_row : k_width;
    at.k = joined ? at.q + q_width : at.q + s.rows * q_width;
    at.v = joined ? at.k + k_width : at.k + s.rows * k_width;

    attention.q = at.q, attention.q_row = at.q_row;
    attention.new_k = at.k, attention.new_v = at.v, attention.k_row = at.k_row, attention.v_row = at.v_row;
    attention.out = at.attended;
    const rows::Turn turn{s.cos, s.sin, s.wide, l.size};
    const auto head = [&](int64_t token, uint16_t* x, const uint16_t* norm, float eps) {
        if (norm != nullptr) rows::rms_norm(x, norm, x, l.size, eps);
        rows::rotate(turn, token, x, x);
    };
    const int64_t heads = l.heads + l.groups;

#pragma omp parallel num_threads(threads)
    {
#pragma omp for
        for (int64_t r = 0; r < s.rows; ++r) rows::rms_norm(s.x + r * s.width, l.norm1, at.normal + r * s.width, s.width, l.eps1);
        multiply(l.qkv[0], s, at.normal, at.q, at.space);
        if (!joined) {
            multiply(l.qkv[1], s, at.normal, at.k, at.space);
            multiply(l.qkv[2], s, at.normal, at.v, at.space);
        }
#pragma omp for
        for (int64_t i = 0; i < s.rows * heads; ++i) {
            const int64_t r = i / heads, h = i % heads;
            if (h < l.heads) {
                head(r, at.q + r * at.q_row + h * l.size, l.q_norm, l.q_eps);
            } else {
                head(r, at.k + r * at.k_row + (h - l.heads) * l.size, l.k_norm, l.k_eps);
            }
        }
        rows::attend(attention, layout, at.space);
        multiply(l.out, s, at.attended, at.added, at.space);
#pragma omp for
        for (int64_t r = 0; r < s.rows; ++r) {
            uint16_t* const x = s.x + r * s.width;
            rows::add(x, at.added + r * s.width, s.width);
            if (l.norm2 != nullptr) rows::rms_norm(x, l.norm2, at.normal + r * s.width, s.width, l.eps2);
        }
        if (l.norm2 != nullptr) {
            multiply(l.gate, s, at.normal, at.opened, at.space);
            multiply(l.up, s, at.normal, at.hidden, at.space);
            const int64_t values = s.rows * mlp_width;
#pragma omp for
            for (int64_t i = 0; i < values; i += 16)
                rows::gate(at.opened + i, at.hidden + i, at.hidden + i, bf::lanes16(values - i));
            multiply(l.down, s, at.hidden, at.added, at.space);
#pragma omp for
            for (int64_t r = 0; r < s.rows; ++r) rows::add(s.x + r * s.width, at.added + r * s.width, s.width);
        }
    }
    return 0;
}
}
