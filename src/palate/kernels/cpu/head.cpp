// The vocabulary head on CPUs with bfloat16 products: tiles of logits that never leave the cache.
//
// A tile is TILE rows of the head's weight times LANES tokens, multiplied by the brgemm of
// libtorch_cpu from bfloat16 into float32. Words run down and tokens run across, so that the
// weight is read as it lies in memory, and maxima, exponentials and sums go over vectors of tokens.
// Running sums are kept in double from tile to tile: a float sum of 262,144 terms has a bias.
//
// Threads share the tiles of the vocabulary. Where a result is a sum over the vocabulary with a
// value for each of the hidden state's components (gradients, expected rows), that would take a
// copy of the result for each thread; there the vocabulary goes by in blocks instead: first every
// thread makes its tiles of the block, then each thread adds them all up for its own tokens.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <vector>

#include <omp.h>

#include "products.h"
#include "vectors.h"

namespace {

constexpr int64_t TILE = 128, LANES = 64;
// Tokens that the weight's gradient sums in one product. A kernel is compiled for every size and
// stride that a product has; with whole steps as one product each step would have its own.
constexpr int64_t STRETCH = 512;
constexpr float HEADROOM = 40.0f; // as in frozen.py

} // namespace

// One model's head and hidden states, as Python hands them over.
struct HeadArgs {
    const bf16 *hidden; // [n, width]
    const bf16 *weight; // [vocabulary, width]
    const float *bias;  // [vocabulary] or null
    int64_t n, width;
    float scale, softcap; // softcap 0: none
};

namespace {

// A model's side of a tile: hidden states packed once, logits made tile by tile.
class Side {
  public:
    Side(const HeadArgs &args, int64_t tokens, int threads)
        : args_(args), even_(args.width + args.width % 2), tokens_(tokens),
          chunks_(ceil_div(tokens, LANES)), packed_(chunks_ * even_ / 2 * LANES) {
#pragma omp parallel for num_threads(threads)
        for (int64_t c = 0; c < chunks_; c++)
            for (int64_t k = 0; k < even_ / 2; k++)
                for (int64_t j = 0; j < LANES; j++) {
                    int64_t n = c * LANES + j;
                    uint32_t pair = 0;
                    if (n < args_.n) {
                        const bf16 *row = args_.hidden + n * args_.width;
                        pair = row[2 * k];
                        if (2 * k + 1 < args_.width)
                            pair |= uint32_t(row[2 * k + 1]) << 16;
                    }
                    packed_.data[(c * (even_ / 2) + k) * LANES + j] = pair;
                }
    }

    // Weight rows of an odd width are copied to an even one: products take them in pairs.
    const bf16 *rows(int64_t first, int64_t count, bf16 *space) const {
        const bf16 *rows = args_.weight + first * args_.width;
        if (even_ == args_.width)
            return rows;
        for (int64_t i = 0; i < count; i++) {
            std::memcpy(space + i * even_, rows + i * args_.width, args_.width * sizeof(bf16));
            space[i * even_ + args_.width] = 0;
        }
        return space;
    }
    int64_t space() const { return even_ == args_.width ? 0 : TILE * even_; }

    // z [count, LANES]: finished logits.
    void logits(const bf16 *rows, int64_t first, int64_t count, int64_t chunk, float *z) const {
        make(rows, first, count, chunk * LANES, lanes(chunk), z);
    }
    // The same of the WIDTH tokens from `at` on, a multiple of WIDTH.
    void logits_of(const bf16 *rows, int64_t first, int64_t count, int64_t at, float *z) const {
        make(rows, first, count, at, WIDTH, z);
    }

    int64_t chunks() const { return chunks_; }
    // Tokens of a chunk, in whole vectors: no more of the last one is worked on than there is.
    int64_t lanes(int64_t chunk) const {
        return std::min(LANES, ceil_div(tokens_, WIDTH) * WIDTH - chunk * LANES);
    }

  private:
    void make(const bf16 *rows, int64_t first, int64_t count, int64_t at, int64_t lanes,
              float *z) const {
        multiply(count, lanes, even_, even_, LANES, LANES, false, rows,
                 packed_.data + at / LANES * (even_ / 2) * LANES + at % LANES, z);
        if (args_.bias == nullptr && args_.scale == 1.0f && args_.softcap == 0.0f)
            return;
        for (int64_t i = 0; i < count; i++) {
            float bias = args_.bias == nullptr ? 0.0f : args_.bias[first + i];
            for (int64_t j = 0; j < lanes; j += WIDTH) {
                float *value = z + i * LANES + j;
                vec x = (load(value) + bias) * args_.scale;
                if (args_.softcap != 0.0f)
                    x = tanh_(x / args_.softcap) * args_.softcap;
                store(value, x);
            }
        }
    }

    HeadArgs args_;
    int64_t even_, tokens_, chunks_;
    Buffer<uint32_t> packed_; // [chunk][width / 2][LANES][2]
};

// Running maximum and sums of exp(z - maximum) x something, for one thread.
struct Sums {
    Sums(int64_t tokens, int64_t moments)
        : n(tokens), top(tokens, -3.0e38f), total((1 + moments) * tokens, 0.0) {}

    // Raises the maximum of the lanes from `at` to cover `now`.
    void raise(int64_t at, vec now) {
        vec before = load(&top[at]);
        if (!std::memcmp(&before, &now, sizeof now))
            return;
        store(&top[at], now);
        for (int64_t j = 0; j < WIDTH; j++) {
            double fade = std::exp(double(before[j]) - double(now[j]));
            for (size_t s = at + j; s < total.size(); s += n)
                total[s] *= fade;
        }
    }
    void add(int64_t moment, int64_t at, vec sum) {
        for (int64_t j = 0; j < WIDTH; j++)
            total[moment * n + at + j] += sum[j];
    }

    int64_t n;
    std::vector<float> top;
    std::vector<double> total;
};

// Those of all threads in one: log of the sum, and means, of token t.
struct Joined {
    Joined(const std::vector<std::unique_ptr<Sums>> &parts, int64_t t, int64_t moments) {
        double top = -3.0e38, sums[3] = {0, 0, 0};
        for (auto &part : parts)
            top = std::max(top, double(part->top[t]));
        for (auto &part : parts) {
            double fade = std::exp(double(part->top[t]) - top);
            for (int64_t m = 0; m <= moments; m++)
                sums[m] += fade * part->total[m * part->n + t];
        }
        lse = top + std::log(sums[0]);
        for (int64_t m = 0; m < moments; m++)
            mean[m] = sums[m + 1] / sums[0];
    }
    double lse, mean[2] = {0, 0};
};

inline vec highest(const float *z, int64_t rows, vec top) {
    for (int64_t i = 0; i < rows; i++) {
        vec x = load(z + i * LANES);
        top = x > top ? x : top;
    }
    return top;
}

// Targets by tile: places of tokens in the order of their targets.
struct Targets {
    Targets(const int64_t *targets, int64_t n) : y(targets), order(n) {
        for (int64_t i = 0; i < n; i++)
            order[i] = i;
        std::stable_sort(order.begin(), order.end(),
                         [&](int64_t a, int64_t b) { return y[a] < y[b]; });
    }
    template <typename F> void within(int64_t first, int64_t last, F f) const {
        auto less = [&](int64_t place, int64_t word) { return y[place] < word; };
        auto at = std::lower_bound(order.begin(), order.end(), first, less);
        for (; at != order.end() && y[*at] < last; ++at)
            f(*at);
    }
    const int64_t *y;
    std::vector<int64_t> order;
};

// Rows of the weight, [count, width], as columns: [width][TILE], zeros where there are fewer.
void transpose(const bf16 *rows, int64_t count, int64_t width, int64_t ld, bf16 *out) {
    for (int64_t k0 = 0; k0 < width; k0 += 32)
        for (int64_t k = k0; k < std::min(width, k0 + 32); k++) {
            for (int64_t i = 0; i < count; i++)
                out[k * TILE + i] = rows[i * ld + k];
            for (int64_t i = count; i < TILE; i++)
                out[k * TILE + i] = 0;
        }
}

int64_t tiles_of_block(int64_t tokens, int64_t layouts, int64_t width, int64_t bytes, int threads) {
    int64_t tile = TILE * (tokens * layouts + width) * int64_t(sizeof(bf16));
    return std::max<int64_t>(threads, std::min<int64_t>(8 * threads, bytes / tile));
}

// acc [chunk][width][LANES] += the tiles of a block: transposed weight x weights of tokens. A piece
// of the transposed weight stays in a core's cache while all tokens go by.
void gather(const Side &side, int64_t tiles, int64_t width, const bf16 *transposed,
            const std::vector<const uint32_t *> &weights, float *acc, int threads) {
    int64_t chunks = side.chunks(), pieces = ceil_div(width, TILE);
#pragma omp parallel for collapse(2) num_threads(threads) schedule(static)
    for (int64_t piece = 0; piece < pieces; piece++)
        for (int64_t c = 0; c < chunks; c++)
            for (int64_t t = 0; t < tiles; t++)
                for (const uint32_t *plane : weights)
                    multiply(std::min(TILE, width - piece * TILE), side.lanes(c), TILE, TILE, LANES,
                             LANES, true, transposed + (t * width + piece * TILE) * TILE,
                             plane + (t * chunks + c) * (TILE / 2) * LANES,
                             acc + (c * width + piece * TILE) * LANES);
}

} // namespace

extern "C" {

enum { KL = 1, REVERSE_KL = 2, ENTROPY = 4 };

// Results are float [n] each, or null where not wanted: those of the reference, and of the flags.
void palate_head_forward(const HeadArgs *policy, const HeadArgs *reference, const int64_t *targets,
                         int64_t vocabulary, int flags, int threads, float *logp, float *lse,
                         float *target_logit, float *ref_logp, float *ref_lse, float *kl,
                         float *reverse_kl, float *mean_gap, float *entropy, float *mean_logit) {
    int64_t n = policy->n;
    Side p(*policy, n, threads);
    std::unique_ptr<Side> r(reference == nullptr ? nullptr : new Side(*reference, n, threads));
    int64_t tokens = ceil_div(n, WIDTH) * WIDTH;
    Targets by_word(targets, n);
    // Of every thread, also where fewer come than were asked for.
    std::vector<std::unique_ptr<Sums>> policy_sums, ref_sums;
    for (int t = 0; t < threads; t++) {
        policy_sums.push_back(std::make_unique<Sums>(tokens, 2));
        ref_sums.push_back(std::make_unique<Sums>(r ? tokens : 0, 1));
    }
    std::vector<float> ref_target(n, 0.0f);
#pragma omp parallel num_threads(threads)
    {
        int t = omp_get_thread_num();
        Sums &sums = *policy_sums[t], &refs = *ref_sums[t];
        Buffer<float> z(TILE * LANES), x(r ? TILE * LANES : 0);
        Buffer<bf16> space(p.space()), ref_space(r ? r->space() : 0);
#pragma omp for schedule(static)
        for (int64_t first = 0; first < vocabulary; first += TILE) {
            int64_t rows = std::min(TILE, vocabulary - first);
            const bf16 *w = p.rows(first, rows, space.data);
            const bf16 *v = r ? r->rows(first, rows, ref_space.data) : nullptr;
            std::vector<std::vector<int64_t>> wanted(p.chunks());
            by_word.within(first, first + rows, [&](int64_t i) { wanted[i / LANES].push_back(i); });
            for (int64_t c = 0; c < p.chunks(); c++) {
                p.logits(w, first, rows, c, z.data);
                if (r)
                    r->logits(v, first, rows, c, x.data);
                for (int64_t i : wanted[c]) {
                    int64_t place = (targets[i] - first) * LANES + i % LANES;
                    target_logit[i] = z.data[place];
                    if (r)
                        ref_target[i] = x.data[place];
                }
                for (int64_t j = 0; j < p.lanes(c); j += WIDTH) {
                    int64_t at = c * LANES + j;
                    const float *zj = z.data + j, *xj = x.data + j;
                    vec top = highest(zj, rows, load(&sums.top[at]));
                    sums.raise(at, top);
                    vec sum{}, gaps{}, scores{};
                    if (!r && !(flags & ENTROPY)) {
                        for (int64_t i = 0; i < rows; i++)
                            sum += exp_(load(zj + i * LANES) - top);
                        sums.add(0, at, sum);
                        continue;
                    }
                    vec ref_top{}, ref_sum{}, ref_gaps{};
                    if (r) {
                        ref_top = highest(xj, rows, load(&refs.top[at]));
                        refs.raise(at, ref_top);
                    }
                    for (int64_t i = 0; i < rows; i++) {
                        vec a = load(zj + i * LANES), q = exp_(a - top);
                        sum += q;
                        // A word that both leave out has -inf - -inf here, and weighs nothing.
                        if (flags & ENTROPY)
                            scores += q == 0.0f ? vec{} : q * (a - top);
                        if (!r)
                            continue;
                        vec b = load(xj + i * LANES), e = exp_(b - ref_top), gap = a - b;
                        ref_sum += e;
                        if (flags & KL)
                            ref_gaps += e == 0.0f ? vec{} : e * gap;
                        if (flags & REVERSE_KL)
                            gaps += q == 0.0f ? vec{} : q * gap;
                    }
                    sums.add(0, at, sum);
                    if (flags & REVERSE_KL)
                        sums.add(1, at, gaps);
                    if (flags & ENTROPY) {
                        // Scores were taken from the maximum, for their sum's sake.
                        for (int64_t l = 0; l < WIDTH; l++)
                            sums.total[2 * tokens + at + l] +=
                                double(scores[l]) + double(top[l]) * double(sum[l]);
                    }
                    if (r) {
                        refs.add(0, at, ref_sum);
                        if (flags & KL)
                            refs.add(1, at, ref_gaps);
                    }
                }
            }
        }
    }
    release(threads);
    for (int64_t i = 0; i < n; i++) {
        Joined q(policy_sums, i, 2);
        lse[i] = q.lse;
        logp[i] = double(target_logit[i]) - q.lse;
        if (flags & ENTROPY) {
            entropy[i] = q.lse - q.mean[1];
            mean_logit[i] = q.mean[1];
        }
        if (!r)
            continue;
        Joined e(ref_sums, i, 1);
        ref_lse[i] = e.lse;
        ref_logp[i] = double(ref_target[i]) - e.lse;
        if (flags & KL)
            kl[i] = (q.lse - e.lse) - e.mean[0];
        if (flags & REVERSE_KL) {
            mean_gap[i] = q.mean[0];
            reverse_kl[i] = q.mean[0] - (q.lse - e.lse);
        }
    }
}

// Upstream gradients of each token's results, and what the forward pass found.
struct Upstream {
    const float *logp, *kl, *reverse_kl, *entropy;      // [n]; the last two or null
    const float *lse, *ref_lse, *mean_gap, *mean_logit; // [n], [n_ref], [n_ref], [n]
    const float *slope; // [n], of the raw product of the target, without the softmax's part
};

// d_hidden float [n, width]; d_weight bfloat16 [vocabulary, width], d_bias float [vocabulary]; each
// or null. The reference has the first reference->n tokens.
void palate_head_backward(const HeadArgs *policy, const HeadArgs *reference, const Upstream *up,
                          const int64_t *targets, int64_t vocabulary, int64_t bytes, int threads,
                          float *d_hidden, bf16 *d_weight, float *d_bias) {
    int64_t n = policy->n, width = policy->width, n_ref = reference == nullptr ? 0 : reference->n;
    Side p(*policy, n, threads);
    std::unique_ptr<Side> r(n_ref == 0 ? nullptr : new Side(*reference, n, threads));
    int64_t chunks = p.chunks(), tokens = ceil_div(n, WIDTH) * WIDTH;
    Targets by_word(targets, n);
    auto padded = [&](const float *values, int64_t count) {
        std::vector<float> out(tokens, 0.0f);
        if (values != nullptr)
            std::copy(values, values + count, out.begin());
        return out;
    };
    auto c_logp = padded(up->logp, n), c_kl = padded(up->kl, n), c_rkl = padded(up->reverse_kl, n),
         c_ent = padded(up->entropy, n), lse = padded(up->lse, n),
         ref_lse = padded(up->ref_lse, n_ref), mean_gap = padded(up->mean_gap, n_ref),
         mean_logit = padded(up->mean_logit, n);
    bool of_q = up->reverse_kl != nullptr, of_h = up->entropy != nullptr;
    // [tokens / 2][width][2], for the weight's gradient.
    Buffer<uint32_t> pairs(d_weight ? tokens / 2 * width : 0);
    if (d_weight) {
#pragma omp parallel for num_threads(threads)
        for (int64_t i = 0; i < tokens / 2; i++)
            for (int64_t k = 0; k < width; k++) {
                uint32_t even = 2 * i < n ? policy->hidden[2 * i * width + k] : 0;
                uint32_t odd = 2 * i + 1 < n ? policy->hidden[(2 * i + 1) * width + k] : 0;
                pairs.data[i * width + k] = even | odd << 16;
            }
    }
    int64_t block =
        std::min(ceil_div(vocabulary, TILE), tiles_of_block(tokens, 1, width, bytes, threads));
    Buffer<bf16> transposed(d_hidden ? block * width * TILE : 0);
    Buffer<uint32_t> weights(d_hidden ? block * chunks * (TILE / 2) * LANES : 0);
    Buffer<float> acc(d_hidden ? chunks * width * LANES : 0);
    if (d_hidden)
        std::fill(acc.data, acc.data + chunks * width * LANES, 0.0f);
    for (int64_t start = 0; start < vocabulary; start += block * TILE) {
        int64_t tiles = std::min(block, ceil_div(vocabulary - start, TILE));
#pragma omp parallel num_threads(threads)
        {
            Buffer<float> z(TILE * LANES), x(r ? TILE * LANES : 0), dw(d_weight ? TILE * width : 0);
            Buffer<bf16> space(p.space()), ref_space(r ? r->space() : 0),
                g(d_weight ? TILE * ceil_div(tokens, STRETCH) * STRETCH : 0);
#pragma omp for schedule(static)
            for (int64_t t = 0; t < tiles; t++) {
                int64_t first = start + t * TILE, rows = std::min(TILE, vocabulary - first);
                const bf16 *w = p.rows(first, rows, space.data);
                const bf16 *v = r ? r->rows(first, rows, ref_space.data) : nullptr;
                if (d_hidden)
                    transpose(policy->weight + first * width, rows, width, width,
                              transposed.data + t * width * TILE);
                vec bias_sums[TILE] = {};
                for (int64_t c = 0; c < chunks; c++) {
                    bool with_ref = c * LANES < n_ref;
                    p.logits(w, first, rows, c, z.data);
                    if (with_ref)
                        r->logits(v, first, rows, c, x.data);
                    uint32_t *pair =
                        d_hidden ? weights.data + (t * chunks + c) * (TILE / 2) * LANES : nullptr;
                    for (int64_t j = 0; j < p.lanes(c); j += WIDTH) {
                        int64_t at = c * LANES + j;
                        vec l = load(&lse[at]), rl = load(&ref_lse[at]), a = load(&c_logp[at]),
                            b = load(&c_kl[at]), e = load(&c_rkl[at]), h = load(&c_ent[at]),
                            gap = load(&mean_gap[at]), mean = load(&mean_logit[at]);
                        uvec even{};
                        for (int64_t i = 0; i < TILE; i++) {
                            vec d{};
                            if (i < rows) {
                                vec s = load(z.data + i * LANES + j), q = exp_(s - l), f = b - a;
                                if (of_h)
                                    f -= q == 0.0f ? vec{} : h * (s - mean);
                                if (with_ref) {
                                    vec u = load(x.data + i * LANES + j);
                                    if (of_q)
                                        f += q == 0.0f ? vec{} : e * (s - u - gap);
                                    d = f * q - b * exp_(u - rl);
                                } else {
                                    d = f * q;
                                }
                                if (policy->softcap != 0.0f) {
                                    vec part = s / policy->softcap;
                                    d *= 1.0f - part * part;
                                }
                                d *= policy->scale;
                                if (d_bias)
                                    bias_sums[i] += d;
                            }
                            uvec bits = rounded(d);
                            if (d_weight && i < rows) {
                                hvec half = __builtin_convertvector(bits >> 16, hvec);
                                std::memcpy(g.data + (at / STRETCH * TILE + i) * STRETCH +
                                                at % STRETCH,
                                            &half, sizeof half);
                            }
                            if (pair == nullptr)
                                continue;
                            if (i % 2 == 0) {
                                even = bits >> 16;
                            } else {
                                uvec both = even | bits;
                                std::memcpy(pair + i / 2 * LANES + j, &both, sizeof both);
                            }
                        }
                    }
                }
                if (d_weight) {
                    for (int64_t k = 0; k < width; k += TILE)
                        for (int64_t from = 0; from < tokens; from += STRETCH)
                            multiply(rows, std::min(TILE, width - k),
                                     std::min(STRETCH, tokens - from), STRETCH, width, width,
                                     from > 0, g.data + from * TILE,
                                     pairs.data + from / 2 * width + k, dw.data + k);
                    by_word.within(first, first + rows, [&](int64_t i) {
                        float *row = dw.data + (targets[i] - first) * width;
                        for (int64_t k = 0; k < width; k++)
                            row[k] += up->slope[i] * widen(policy->hidden[i * width + k]);
                    });
                    int64_t values = rows * width, at = 0;
                    for (; at + WIDTH <= values; at += WIDTH)
                        narrow(d_weight + first * width + at, load(dw.data + at));
                    for (; at < values; at++)
                        d_weight[first * width + at] = narrow(dw.data[at]);
                }
                if (d_bias) {
                    for (int64_t i = 0; i < rows; i++) {
                        double sum = 0;
                        for (int64_t j = 0; j < WIDTH; j++)
                            sum += bias_sums[i][j];
                        d_bias[first + i] = sum;
                    }
                    by_word.within(first, first + rows,
                                   [&](int64_t i) { d_bias[targets[i]] += up->slope[i]; });
                }
            }
        }
        if (d_hidden)
            gather(p, tiles, width, transposed.data, {weights.data}, acc.data, threads);
    }
    release(threads);
    if (d_hidden) {
#pragma omp parallel for num_threads(threads)
        for (int64_t i = 0; i < n; i++) {
            const bf16 *row = policy->weight + targets[i] * width;
            const float *sum = acc.data + (i / LANES) * width * LANES + i % LANES;
            for (int64_t k = 0; k < width; k++)
                d_hidden[i * width + k] = sum[k * LANES] + up->slope[i] * widen(row[k]);
        }
    }
}

// Logsumexp and the expected row of the weight; `exact` keeps 17 bits of a probability, not 8.
void palate_head_expected(const HeadArgs *head, const int64_t *targets, int64_t vocabulary,
                          int exact, int64_t bytes, int threads, float *logp, float *lse,
                          float *mean) {
    int64_t n = head->n, width = head->width;
    Side p(*head, n, threads);
    int64_t chunks = p.chunks(), tokens = ceil_div(n, WIDTH) * WIDTH, layouts = exact ? 2 : 1;
    Targets by_word(targets, n);
    int64_t block = std::min(ceil_div(vocabulary, TILE),
                             tiles_of_block(tokens, layouts, width, bytes, threads));
    int64_t plane = block * chunks * (TILE / 2) * LANES;
    Buffer<bf16> transposed(block * width * TILE);
    Buffer<uint32_t> weights(layouts * plane);
    Buffer<float> acc(chunks * width * LANES);
    std::fill(acc.data, acc.data + chunks * width * LANES, 0.0f);
    std::vector<float> shift(tokens, -3.0e38f), tops(block * tokens), sums(block * tokens),
        target(n, 0.0f);
    std::vector<double> total(tokens, 0.0);
    std::vector<const uint32_t *> planes{weights.data};
    if (exact)
        planes.push_back(weights.data + plane);
    for (int64_t start = 0; start < vocabulary; start += block * TILE) {
        int64_t tiles = std::min(block, ceil_div(vocabulary - start, TILE));
        for (bool again = true; again;) {
            again = false;
#pragma omp parallel num_threads(threads)
            {
                Buffer<float> z(TILE * LANES);
                Buffer<bf16> space(p.space());
#pragma omp for schedule(static)
                for (int64_t t = 0; t < tiles; t++) {
                    int64_t first = start + t * TILE, rows = std::min(TILE, vocabulary - first);
                    const bf16 *w = p.rows(first, rows, space.data);
                    transpose(head->weight + first * width, rows, width, width,
                              transposed.data + t * width * TILE);
                    std::vector<std::vector<int64_t>> wanted(chunks);
                    by_word.within(first, first + rows,
                                   [&](int64_t i) { wanted[i / LANES].push_back(i); });
                    for (int64_t c = 0; c < chunks; c++) {
                        p.logits(w, first, rows, c, z.data);
                        for (int64_t i : wanted[c])
                            target[i] = z.data[(targets[i] - first) * LANES + i % LANES];
                        for (int64_t j = 0; j < p.lanes(c); j += WIDTH) {
                            int64_t at = c * LANES + j;
                            store(&tops[t * tokens + at], highest(z.data + j, rows, all(-3.0e38f)));
                            vec from = load(&shift[at]), sum{};
                            uvec even{}, even_low{};
                            for (int64_t i = 0; i < TILE; i++) {
                                vec e =
                                    i < rows ? exp_(load(z.data + i * LANES + j) - from) : vec{};
                                sum += e;
                                uvec high = rounded(e), low = rounded(e - (vec)high);
                                uint32_t *pair = weights.data +
                                                 ((t * chunks + c) * (TILE / 2) + i / 2) * LANES +
                                                 j;
                                if (i % 2 == 0) {
                                    even = high >> 16;
                                    even_low = low >> 16;
                                    continue;
                                }
                                uvec both = even | high, both_low = even_low | low;
                                std::memcpy(pair, &both, sizeof both);
                                if (exact)
                                    std::memcpy(pair + plane, &both_low, sizeof both_low);
                            }
                            store(&sums[t * tokens + at], sum);
                        }
                    }
                }
            }
            // Too far above the shift: it is raised, what was summed so far faded, and the block
            // made again.
            for (int64_t i = 0; i < n; i++) {
                float top = -3.0e38f;
                for (int64_t t = 0; t < tiles; t++)
                    top = std::max(top, tops[t * tokens + i]);
                if (!(top > shift[i] + HEADROOM))
                    continue;
                again = true;
                double fade = std::exp(double(shift[i]) - double(top));
                total[i] *= fade;
                float *sum = acc.data + (i / LANES) * width * LANES + i % LANES;
                for (int64_t k = 0; k < width; k++)
                    sum[k * LANES] *= float(fade);
                shift[i] = top;
            }
        }
        for (int64_t t = 0; t < tiles; t++)
            for (int64_t i = 0; i < n; i++)
                total[i] += sums[t * tokens + i];
        gather(p, tiles, width, transposed.data, planes, acc.data, threads);
    }
    release(threads);
#pragma omp parallel for num_threads(threads)
    for (int64_t i = 0; i < n; i++) {
        double all_of = double(shift[i]) + std::log(total[i]);
        lse[i] = all_of;
        logp[i] = double(target[i]) - all_of;
        const float *sum = acc.data + (i / LANES) * width * LANES + i % LANES;
        for (int64_t k = 0; k < width; k++)
            mean[i * width + k] = float(double(sum[k * LANES]) / total[i]);
    }
}

// Draws the token of each row at which the cumulative distribution passes `uniform`, in order of
// token id, and its log-probability. `never` is left out, `ends` in rows that are `early`. Logits
// are made tile by tile, and again where a row's token lies.
void palate_head_draw(const HeadArgs *policy, int64_t vocabulary, const double *uniform,
                      const int64_t *never, int64_t n_never, const int64_t *ends, int64_t n_ends,
                      const uint8_t *early, int threads, int64_t *token, float *logp) {
    int64_t n = policy->n, tiles = ceil_div(vocabulary, TILE);
    Side p(*policy, n, threads);
    int64_t tokens = ceil_div(n, WIDTH) * WIDTH;
    std::vector<float> tops(tiles * tokens), sums(tiles * tokens);
    // z [rows, LANES], of lanes from `at` on.
    auto leave_out = [&](int64_t first, int64_t rows, int64_t at, int64_t lanes, float *z) {
        for (int64_t k = 0; k < n_never; k++)
            if (never[k] >= first && never[k] < first + rows)
                for (int64_t j = 0; j < lanes; j++)
                    z[(never[k] - first) * LANES + j] = -INFINITY;
        for (int64_t k = 0; k < n_ends; k++)
            if (ends[k] >= first && ends[k] < first + rows)
                for (int64_t j = 0; j < lanes; j++)
                    if (at + j < n && early[at + j])
                        z[(ends[k] - first) * LANES + j] = -INFINITY;
    };
#pragma omp parallel num_threads(threads)
    {
        Buffer<float> z(TILE * LANES);
        Buffer<bf16> space(p.space());
#pragma omp for schedule(static)
        for (int64_t t = 0; t < tiles; t++) {
            int64_t first = t * TILE, rows = std::min(TILE, vocabulary - first);
            const bf16 *w = p.rows(first, rows, space.data);
            for (int64_t c = 0; c < p.chunks(); c++) {
                p.logits(w, first, rows, c, z.data);
                leave_out(first, rows, c * LANES, p.lanes(c), z.data);
                for (int64_t j = 0; j < p.lanes(c); j += WIDTH) {
                    vec top = highest(z.data + j, rows, all(-3.0e38f)), sum{};
                    for (int64_t i = 0; i < rows; i++)
                        sum += exp_(load(z.data + i * LANES + j) - top);
                    store(&tops[t * tokens + c * LANES + j], top);
                    store(&sums[t * tokens + c * LANES + j], sum);
                }
            }
        }
#pragma omp for schedule(static)
        for (int64_t r = 0; r < n; r++) {
            float top = -3.0e38f;
            for (int64_t t = 0; t < tiles; t++)
                top = std::max(top, tops[t * tokens + r]);
            auto mass = [&](int64_t t) {
                return double(sums[t * tokens + r]) *
                       std::exp(double(tops[t * tokens + r]) - double(top));
            };
            double total = 0, before = 0;
            for (int64_t t = 0; t < tiles; t++)
                total += mass(t);
            double mark = uniform[r] * total;
            int64_t place = 0, last = 0;
            double before_last = 0;
            for (place = 0; place < tiles; place++) {
                double more = mass(place);
                if (more > 0) {
                    last = place;
                    before_last = before;
                }
                if (before + more > mark)
                    break;
                before += more;
            }
            if (place == tiles) {
                place = last;
                before = before_last;
            }
            int64_t first = place * TILE, rows = std::min(TILE, vocabulary - first);
            int64_t at = r / WIDTH * WIDTH, lane = r % WIDTH;
            p.logits_of(p.rows(first, rows, space.data), first, rows, at, z.data);
            leave_out(first, rows, at, WIDTH, z.data);
            // Where rounding leaves none above the mark, the last that adds anything.
            int64_t drawn = -1;
            double passed = before;
            for (int64_t i = 0; i < rows; i++) {
                double share = std::exp(double(z.data[i * LANES + lane]) - double(top));
                if (!(share > 0))
                    continue;
                drawn = i;
                passed += share;
                if (passed > mark)
                    break;
            }
            drawn = std::max<int64_t>(drawn, 0); // all are NaN
            token[r] = first + drawn;
            logp[r] = float(double(z.data[drawn * LANES + lane]) - double(top) - std::log(total));
        }
    }
    release(threads);
}

// out [n, vocabulary]: logits.
void palate_head_logits(const HeadArgs *policy, int64_t vocabulary, int threads, float *out) {
    Side p(*policy, policy->n, threads);
#pragma omp parallel num_threads(threads)
    {
        Buffer<float> z(TILE * LANES);
        Buffer<bf16> space(p.space());
#pragma omp for schedule(static)
        for (int64_t first = 0; first < vocabulary; first += TILE) {
            int64_t rows = std::min(TILE, vocabulary - first);
            const bf16 *w = p.rows(first, rows, space.data);
            for (int64_t c = 0; c < p.chunks(); c++) {
                p.logits(w, first, rows, c, z.data);
                for (int64_t j = 0; j < LANES && c * LANES + j < policy->n; j++)
                    for (int64_t i = 0; i < rows; i++)
                        out[(c * LANES + j) * vocabulary + first + i] = z.data[i * LANES + j];
            }
        }
    }
    release(threads);
}

} // extern "C"
