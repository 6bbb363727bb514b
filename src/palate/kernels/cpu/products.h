// bfloat16 products into float by the brgemm of libtorch_cpu, and what their callers share.

#pragma once

#include <algorithm>
#include <cstdint>
#include <new>

#include <omp.h>

namespace c10 {
struct BFloat16;
}
// As ATen/native/CPUBlas.h declares them; the header itself takes longer to compile than all else.
namespace at::native::cpublas {
void brgemm(int64_t m, int64_t n, int64_t k, int64_t ld_a, int64_t ld_b, int64_t ld_c, bool add_c,
            const c10::BFloat16 *a, const c10::BFloat16 *b, float *c, bool is_vnni);
void brgemm_release(bool is_vnni);
} // namespace at::native::cpublas

namespace {

template <typename T> struct Buffer {
    explicit Buffer(int64_t n)
        : data(static_cast<T *>(
              ::operator new(std::max<int64_t>(n, 1) * sizeof(T), std::align_val_t(64)))) {}
    ~Buffer() { ::operator delete(data, std::align_val_t(64)); }
    Buffer(const Buffer &) = delete;
    Buffer &operator=(const Buffer &) = delete;
    T *data;
};

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// c [m, n] = a [m, k] b, or c += a b; b in pairs of rows, [k / 2][n][2]. A kernel is compiled for
// every size and stride that is asked for, once a thread.
void multiply(int64_t m, int64_t n, int64_t k, int64_t ld_a, int64_t ld_b, int64_t ld_c, bool add,
              const void *a, const void *b, float *c) {
    at::native::cpublas::brgemm(m, n, k, ld_a, ld_b, ld_c, add,
                                static_cast<const c10::BFloat16 *>(a),
                                static_cast<const c10::BFloat16 *>(b), c, true);
}

// Gives back what the products of every thread hold (tiles of AMX).
void release(int threads) {
#pragma omp parallel num_threads(threads)
    at::native::cpublas::brgemm_release(true);
}

} // namespace
