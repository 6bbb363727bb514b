// Vectors of sixteen floats: loads and stores, bfloat16, exp and tanh to a unit in the last place.

#pragma once

#include <cstdint>
#include <cstring>

namespace {

using bf16 = uint16_t;
constexpr int64_t WIDTH = 16;

typedef float vec __attribute__((vector_size(4 * WIDTH)));
typedef int32_t ivec __attribute__((vector_size(4 * WIDTH)));
typedef uint32_t uvec __attribute__((vector_size(4 * WIDTH)));
typedef uint16_t hvec __attribute__((vector_size(2 * WIDTH)));

inline vec load(const float *p) {
    vec v;
    std::memcpy(&v, p, sizeof v);
    return v;
}
inline void store(float *p, vec v) { std::memcpy(p, &v, sizeof v); }
inline vec all(float x) { return x - vec{}; }

// e^x to a unit in the last place, 0 below -87: whatever is smaller is no part of any sum here.
inline vec exp_(vec x) {
    const vec low = all(-87.0f);
    vec y = x < low ? low : x;
    const vec magic = all(12582912.0f); // 1.5 * 2^23: adding it rounds to an integer
    vec n = (y * 1.44269504f + magic) - magic;
    vec r = y - n * 0.693359375f;
    r = r + n * 2.12194440e-4f;
    vec p = all(1.9875691500e-4f);
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * (r * r) + r + 1.0f;
    uvec power = (uvec)(__builtin_convertvector(n, ivec) + 127) << 23;
    return x < low ? vec{} : p * (vec)power;
}

inline vec tanh_(vec x) {
    vec square = x * x;
    vec p = all(-5.70498872745e-3f);
    p = p * square + 2.06390887954e-2f;
    p = p * square - 5.37397155531e-2f;
    p = p * square + 1.33314422036e-1f;
    p = p * square - 3.33332819422e-1f;
    vec near = p * square * x + x;
    vec size = x < 0.0f ? -x : x;
    size = size > 40.0f ? all(40.0f) : size;
    vec far = 1.0f - 2.0f / (exp_(2.0f * size) + 1.0f);
    far = x < 0.0f ? -far : far;
    return size < 0.625f ? near : far;
}

// Nearest even. What is not a number stays so.
inline uvec rounded(vec x) {
    uvec bits = (uvec)x;
    uvec up = bits + 0x7fff + ((bits >> 16) & 1);
    return (x == x ? up : (uvec)(bits | 0x400000)) & 0xffff0000;
}
inline bf16 narrow(float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, 4);
    return x == x ? (bits + 0x7fff + ((bits >> 16) & 1)) >> 16 : (bits >> 16) | 0x40;
}
inline float widen(bf16 x) {
    uint32_t bits = uint32_t(x) << 16;
    float f;
    std::memcpy(&f, &bits, 4);
    return f;
}

inline vec widen(const bf16 *p) {
    hvec half;
    std::memcpy(&half, p, sizeof half);
    return (vec)(__builtin_convertvector(half, uvec) << 16);
}
inline void narrow(bf16 *p, vec x) {
    hvec half = __builtin_convertvector(rounded(x) >> 16, hvec);
    std::memcpy(p, &half, sizeof half);
}

} // namespace
