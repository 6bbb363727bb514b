// What stands between the products of a transformer's layers, each in one pass over its values:
// root mean square norms, gated activations and rotary positions, bfloat16 in and out, float in
// between.
//
// Results are rounded where the models' own code rounds them, so that they are the same numbers.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#include <omp.h>

#include "vectors.h"

namespace {

inline float sum(vec x) {
    float total = 0;
    for (int64_t j = 0; j < WIDTH; j++)
        total += x[j];
    return total;
}

inline vec rounded_float(vec x) { return (vec)rounded(x); }

// Rows first to last of a thread.
struct Share {
    Share(int64_t rows) {
        int64_t threads = omp_get_num_threads(), thread = omp_get_thread_num();
        first = rows * thread / threads;
        last = rows * (thread + 1) / threads;
    }
    int64_t first, last;
};

enum { SILU = 0, GELU_TANH = 1 };

// 1 / (1 + e^-x); 0 where that is less than float has numbers for.
inline vec sigmoid(vec x) {
    vec y = x > 87.0f ? all(87.0f) : x;
    return y < -87.0f ? vec{} : 1.0f / (1.0f + exp_(-y));
}

// The activation of x, and its derivative. 1 + tanh(u) is 2 sigmoid(2 u), which stays exact where
// tanh is nearly -1.
template <int KIND> inline void activation(vec x, vec &value, vec &slope) {
    constexpr float TWICE_ROOT = 1.5957691216057308f, CUBE = 0.044715f; // 2 sqrt(2 / pi)
    vec square = x * x;
    vec s = sigmoid(KIND == SILU ? x : TWICE_ROOT * (x + CUBE * square * x));
    vec inner = KIND == SILU ? all(1.0f) : TWICE_ROOT * (1.0f + 3.0f * CUBE * square);
    value = x * s;
    slope = s + x * s * (1.0f - s) * inner;
}

template <int KIND>
void gated_forward(const bf16 *gate, const bf16 *up, int64_t vectors, int threads, bf16 *out) {
#pragma omp parallel num_threads(threads)
    {
        Share share(vectors);
        for (int64_t i = share.first * WIDTH; i < share.last * WIDTH; i += WIDTH) {
            vec value, slope;
            activation<KIND>(widen(gate + i), value, slope);
            narrow(out + i, rounded_float(value) * widen(up + i));
        }
    }
}

template <int KIND>
void gated_backward(const bf16 *grad, const bf16 *gate, const bf16 *up, int64_t vectors,
                    int threads, bf16 *d_gate, bf16 *d_up) {
#pragma omp parallel num_threads(threads)
    {
        Share share(vectors);
        for (int64_t i = share.first * WIDTH; i < share.last * WIDTH; i += WIDTH) {
            vec g = widen(grad + i), value, slope;
            activation<KIND>(widen(gate + i), value, slope);
            narrow(d_up + i, g * rounded_float(value));
            narrow(d_gate + i, rounded_float(g * widen(up + i)) * slope);
        }
    }
}

// The sum of two products, each rounded, or their difference.
template <bool MINUS> void sum_of_products(const bf16 *a, vec b, const bf16 *c, vec d, bf16 *out) {
    vec first = rounded_float(widen(a) * b), second = rounded_float(widen(c) * d);
    narrow(out, MINUS ? first - second : first + second);
}

} // namespace

extern "C" {

// Queries or keys turned by their positions, or, backward, gradients turned back:
// (x1 cos1 - x2 sin1, x2 cos2 + x1 sin2) for the halves of a head, and its transpose.
// x and y [rows, heads, tokens, size] with the same strides, in numbers, and heads whole; size a
// multiple of 32; cos and sin [rows, tokens, size], `turn_by_row` 0 where all rows share one.
void palate_rotate(const bf16 *x, const bf16 *cos, const bf16 *sin, int64_t rows, int64_t heads,
                   int64_t tokens, int64_t size, int64_t by_row, int64_t by_head, int64_t by_token,
                   int64_t turn_by_row, int backward, int threads, bf16 *y) {
    int64_t half = size / 2;
#pragma omp parallel num_threads(threads)
    {
        Share share(rows * tokens);
        for (int64_t r = share.first; r < share.last; r++) {
            int64_t row = r / tokens, token = r % tokens;
            const bf16 *c = cos + row * turn_by_row + token * size;
            const bf16 *s = sin + row * turn_by_row + token * size;
            for (int64_t k = 0; k < half; k += WIDTH) {
                vec c1 = widen(c + k), c2 = widen(c + half + k);
                vec s1 = widen(s + k), s2 = widen(s + half + k);
                for (int64_t h = 0; h < heads; h++) {
                    int64_t at = row * by_row + h * by_head + token * by_token + k;
                    const bf16 *x1 = x + at, *x2 = x1 + half;
                    if (backward) {
                        sum_of_products<false>(x1, c1, x2, s2, y + at);
                        sum_of_products<true>(x2, c2, x1, s1, y + at + half);
                    } else {
                        sum_of_products<true>(x1, c1, x2, s1, y + at);
                        sum_of_products<false>(x2, c2, x1, s2, y + at + half);
                    }
                }
            }
        }
    }
}

// y = x / rms(x) * (offset + weight); `early` rounds the normed value before the weight, as Llama
// does. x, y [rows, width], width a multiple of 16; scale [rows]: 1 / rms, for the backward pass.
void palate_norm_forward(const bf16 *x, const bf16 *weight, int64_t rows, int64_t width,
                         float epsilon, float offset, int early, int threads, bf16 *y,
                         float *scale) {
#pragma omp parallel num_threads(threads)
    {
        Share share(rows);
        for (int64_t r = share.first; r < share.last; r++) {
            const bf16 *in = x + r * width;
            vec squares{};
            for (int64_t k = 0; k < width; k += WIDTH) {
                vec v = widen(in + k);
                squares += v * v;
            }
            float s = 1.0f / std::sqrt(sum(squares) / float(width) + epsilon);
            scale[r] = s;
            for (int64_t k = 0; k < width; k += WIDTH) {
                vec v = widen(in + k) * s;
                if (early)
                    v = rounded_float(v);
                narrow(y + r * width + k, v * (offset + widen(weight + k)));
            }
        }
    }
}

// d_weight float [width], or null.
void palate_norm_backward(const bf16 *grad, const bf16 *x, const bf16 *weight, const float *scale,
                          int64_t rows, int64_t width, float offset, int threads, bf16 *d_x,
                          float *d_weight) {
    std::vector<float> parts(d_weight == nullptr ? 0 : threads * width, 0.0f);
#pragma omp parallel num_threads(threads)
    {
        Share share(rows);
        float *part = parts.data() + (d_weight == nullptr ? 0 : omp_get_thread_num() * width);
        for (int64_t r = share.first; r < share.last; r++) {
            const bf16 *in = x + r * width, *g = grad + r * width;
            vec dots{};
            for (int64_t k = 0; k < width; k += WIDTH)
                dots += widen(g + k) * (offset + widen(weight + k)) * widen(in + k);
            float s = scale[r], mean = sum(dots) * s * s / float(width);
            for (int64_t k = 0; k < width; k += WIDTH) {
                vec v = widen(in + k), d = widen(g + k);
                narrow(d_x + r * width + k, s * (d * (offset + widen(weight + k)) - mean * v));
                if (d_weight != nullptr)
                    store(part + k, load(part + k) + d * v * s);
            }
        }
    }
    if (d_weight == nullptr)
        return;
    for (int64_t k = 0; k < width; k++) {
        double total = 0;
        for (int t = 0; t < threads; t++)
            total += parts[t * width + k];
        d_weight[k] = float(total);
    }
}

// out = activation(gate) * up, of 16 x `vectors` values.
void palate_gated_forward(const bf16 *gate, const bf16 *up, int64_t vectors, int kind, int threads,
                          bf16 *out) {
    (kind == SILU ? gated_forward<SILU> : gated_forward<GELU_TANH>)(gate, up, vectors, threads,
                                                                    out);
}

void palate_gated_backward(const bf16 *grad, const bf16 *gate, const bf16 *up, int64_t vectors,
                           int kind, int threads, bf16 *d_gate, bf16 *d_up) {
    (kind == SILU ? gated_backward<SILU> : gated_backward<GELU_TANH>)(grad, gate, up, vectors,
                                                                      threads, d_gate, d_up);
}

} // extern "C"
