// Attention over prefix trees that lie one after another in a row, in blocks that see one another.
//
// Keys run down and queries run across a block, as words and tokens do in head.cpp: softmax goes
// over vectors of queries. What is hidden is not made: a block of keys that no query of a block
// sees is left out, and a mask is taken only where a block is seen in part. Blocks begin where a
// tree does, so that its numbers do not depend on what stands beside it in the row.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#include <omp.h>

#include "products.h"
#include "vectors.h"

// [heads, tokens, size], the last one dense; strides in values.
struct View {
    const bf16 *data;
    int64_t by_head, by_token;
    const bf16 *row(int64_t head, int64_t token) const {
        return data + head * by_head + token * by_token;
    }
};

struct AttentionArgs {
    View query, key, value;
    const int64_t *until, *position; // [tokens]; until is 0 for what is in no tree
    int64_t window;                  // 0: none
    int64_t tokens, heads, key_heads, size;
    float scale;
};

namespace {

constexpr int64_t BLOCK = 64;

struct Tree {
    int64_t start, stop;
    int64_t blocks() const { return ceil_div(stop - start, BLOCK); }
};

std::vector<Tree> trees_of(const AttentionArgs &a) {
    std::vector<Tree> trees;
    for (int64_t at = 0; at < a.tokens && a.until[at] > at; at = a.until[at])
        trees.push_back({at, a.until[at]});
    return trees;
}

// One block of queries of one head.
struct Task {
    int64_t tree, head, block;
};

std::vector<Task> tasks_of(const AttentionArgs &a, const std::vector<Tree> &trees) {
    std::vector<Task> tasks;
    for (int64_t t = 0; t < int64_t(trees.size()); t++)
        // The last blocks see most: they are dealt out first.
        for (int64_t b = trees[t].blocks() - 1; b >= 0; b--)
            for (int64_t h = 0; h < a.heads; h++)
                tasks.push_back({t, h, b});
    return tasks;
}

// How much of a block of keys a block of queries sees.
enum Sight { NOTHING, PART, ALL };

Sight sight(const AttentionArgs &a, int64_t q0, int64_t q1, int64_t k0, int64_t k1) {
    int64_t low = a.tokens, high = 0;
    for (int64_t j = k0; j < k1; j++) {
        low = std::min(low, a.until[j]);
        high = std::max(high, a.until[j]);
    }
    if (high <= q0 || k0 >= q1)
        return NOTHING;
    bool all = low >= q1 && k1 <= q0 + 1;
    if (a.window > 0) {
        auto [first_q, last_q] = std::minmax_element(a.position + q0, a.position + q1);
        auto [first_k, last_k] = std::minmax_element(a.position + k0, a.position + k1);
        if (*first_q - *last_k >= a.window)
            return NOTHING;
        all = all && *last_q - *first_k < a.window;
    }
    return all ? ALL : PART;
}

// The places of a block of queries in the row, and their positions.
struct Queries {
    Queries(const AttentionArgs &a, int64_t q0, int64_t q1) : stop(q1) {
        for (int64_t l = 0; l < BLOCK; l++) {
            place[l / WIDTH][l % WIDTH] = int32_t(q0 + l);
            position[l / WIDTH][l % WIDTH] = q0 + l < q1 ? int32_t(a.position[q0 + l]) : 0;
        }
    }
    // Which of 16 queries see key j, as a mask of lanes; those past the block's end see nothing.
    ivec see(const AttentionArgs &a, int64_t part, int64_t j) const {
        int32_t last = int32_t(std::min(a.until[j], stop));
        ivec mask = (place[part] >= int32_t(j)) & (place[part] < last);
        if (a.window > 0)
            mask &= position[part] - int32_t(a.position[j]) < int32_t(a.window);
        return mask;
    }
    int64_t stop;
    ivec place[BLOCK / WIDTH], position[BLOCK / WIDTH];
};

// [size / 2][BLOCK][2] of rows q0 to q1: queries across.
void pack_across(const View &view, int64_t head, int64_t q0, int64_t q1, int64_t size,
                 uint32_t *out) {
    for (int64_t l = 0; l < BLOCK; l++) {
        const bf16 *row = q0 + l < q1 ? view.row(head, q0 + l) : nullptr;
        for (int64_t k = 0; k < size / 2; k++) {
            uint32_t pair = 0;
            if (row != nullptr)
                std::memcpy(&pair, row + 2 * k, sizeof pair);
            out[k * BLOCK + l] = pair;
        }
    }
}

// [BLOCK / 2][size][2] of rows q0 to q1: queries down.
void pack_down(const View &view, int64_t head, int64_t q0, int64_t q1, int64_t size,
               uint32_t *out) {
    for (int64_t l = 0; l < BLOCK; l += 2) {
        const bf16 *even = q0 + l < q1 ? view.row(head, q0 + l) : nullptr;
        const bf16 *odd = q0 + l + 1 < q1 ? view.row(head, q0 + l + 1) : nullptr;
        for (int64_t k = 0; k < size; k++)
            out[l / 2 * size + k] =
                (even ? uint32_t(even[k]) : 0) | (odd ? uint32_t(odd[k]) << 16 : 0);
    }
}

// The keys or values of all trees in whole blocks: rows [BLOCK][size], and columns [size][BLOCK].
struct Blocks {
    Blocks(const AttentionArgs &a, const View &view, const std::vector<Tree> &trees, bool rows,
           bool columns, int threads)
        : size(a.size), first(1, 0), row_data(0), column_data(0) {
        for (const Tree &tree : trees)
            first.push_back(first.back() + tree.blocks());
        total = first.back();
        if (rows)
            row_data.resize(a.key_heads * total * BLOCK * size);
        if (columns)
            column_data.resize(a.key_heads * total * BLOCK * size);
#pragma omp parallel for collapse(2) num_threads(threads)
        for (int64_t h = 0; h < a.key_heads; h++)
            for (int64_t n = 0; n < total; n++) {
                int64_t t = std::upper_bound(first.begin(), first.end(), n) - first.begin() - 1;
                int64_t k0 = trees[t].start + (n - first[t]) * BLOCK;
                for (int64_t i = 0; i < BLOCK; i++) {
                    const bf16 *row = k0 + i < trees[t].stop ? view.row(h, k0 + i) : nullptr;
                    if (rows) {
                        bf16 *out = row_data.data() + ((h * total + n) * BLOCK + i) * size;
                        if (row != nullptr)
                            std::memcpy(out, row, size * sizeof(bf16));
                        else
                            std::fill(out, out + size, 0);
                    }
                    if (columns) {
                        bf16 *out = column_data.data() + (h * total + n) * BLOCK * size + i;
                        for (int64_t k = 0; k < size; k++)
                            out[k * BLOCK] = row != nullptr ? row[k] : 0;
                    }
                }
            }
    }
    const bf16 *rows(int64_t head, int64_t tree, int64_t block) const {
        return row_data.data() + (head * total + first[tree] + block) * BLOCK * size;
    }
    const bf16 *columns(int64_t head, int64_t tree, int64_t block) const {
        return column_data.data() + (head * total + first[tree] + block) * BLOCK * size;
    }

    int64_t size, total;
    std::vector<int64_t> first;
    std::vector<bf16> row_data, column_data;
};

// Scores, scaled, -inf where hidden.
void scores(const AttentionArgs &a, const bf16 *keys, const uint32_t *packed,
            const Queries &queries, Sight seen, int64_t k0, int64_t k1, float *s) {
    multiply(BLOCK, BLOCK, a.size, a.size, BLOCK, BLOCK, false, keys, packed, s);
    const vec nothing = all(-INFINITY);
    for (int64_t i = 0; i < BLOCK; i++)
        for (int64_t l = 0; l < BLOCK; l += WIDTH) {
            float *at = s + i * BLOCK + l;
            vec x = load(at) * a.scale;
            if (k0 + i >= k1)
                x = nothing;
            else if (seen == PART)
                x = queries.see(a, l / WIDTH, k0 + i) ? x : nothing;
            store(at, x);
        }
}

} // namespace

extern "C" {

// out [tokens, heads, size], zero where there is no tree; lse [heads, tokens].
void palate_attention_forward(const AttentionArgs *args, int threads, bf16 *out, float *lse) {
    const AttentionArgs &a = *args;
    auto trees = trees_of(a);
    auto tasks = tasks_of(a, trees);
    int64_t size = a.size, group = a.heads / a.key_heads;
    Blocks keys(a, a.key, trees, true, false, threads),
        values(a, a.value, trees, false, true, threads);
    int64_t end = trees.empty() ? 0 : trees.back().stop;
    std::fill(out + end * a.heads * size, out + a.tokens * a.heads * size, 0);
#pragma omp parallel num_threads(threads)
    {
        Buffer<float> s(BLOCK * BLOCK), acc(size * BLOCK);
        Buffer<uint32_t> q(size / 2 * BLOCK), p(BLOCK / 2 * BLOCK);
#pragma omp for schedule(dynamic)
        for (size_t n = 0; n < tasks.size(); n++) {
            const Task &task = tasks[n];
            const Tree &tree = trees[task.tree];
            int64_t q0 = tree.start + task.block * BLOCK, q1 = std::min(tree.stop, q0 + BLOCK);
            Queries queries(a, q0, q1);
            pack_across(a.query, task.head, q0, q1, size, q.data);
            std::fill(acc.data, acc.data + size * BLOCK, 0.0f);
            float top[BLOCK], total[BLOCK] = {};
            std::fill(top, top + BLOCK, -1.0e30f);
            for (int64_t b = 0; b <= task.block; b++) {
                int64_t k0 = tree.start + b * BLOCK, k1 = std::min(tree.stop, k0 + BLOCK);
                Sight seen = sight(a, q0, q1, k0, k1);
                if (seen == NOTHING)
                    continue;
                scores(a, keys.rows(task.head / group, task.tree, b), q.data, queries, seen, k0, k1,
                       s.data);
                for (int64_t l = 0; l < BLOCK; l += WIDTH) {
                    vec before = load(top + l), now = before, sum{};
                    for (int64_t i = 0; i < BLOCK; i++) {
                        vec x = load(s.data + i * BLOCK + l);
                        now = x > now ? x : now;
                    }
                    vec fade = exp_(before - now);
                    store(top + l, now);
                    for (int64_t i = 0; i < BLOCK; i += 2) {
                        vec even = exp_(load(s.data + i * BLOCK + l) - now);
                        vec odd = exp_(load(s.data + (i + 1) * BLOCK + l) - now);
                        sum += even + odd;
                        uvec both = rounded(even) >> 16 | rounded(odd);
                        std::memcpy(p.data + i / 2 * BLOCK + l, &both, sizeof both);
                    }
                    store(total + l, load(total + l) * fade + sum);
                    bool faded = false;
                    for (int64_t j = 0; j < WIDTH; j++)
                        faded = faded || fade[j] != 1.0f;
                    for (int64_t k = 0; faded && k < size; k++)
                        store(acc.data + k * BLOCK + l, load(acc.data + k * BLOCK + l) * fade);
                }
                multiply(size, BLOCK, BLOCK, BLOCK, BLOCK, BLOCK, true,
                         values.columns(task.head / group, task.tree, b), p.data, acc.data);
            }
            for (int64_t l = 0; l < q1 - q0; l++) {
                bf16 *row = out + ((q0 + l) * a.heads + task.head) * size;
                float by = 1.0f / total[l];
                for (int64_t k = 0; k < size; k++)
                    row[k] = narrow(acc.data[k * BLOCK + l] * by);
                lse[task.head * a.tokens + q0 + l] = top[l] + std::log(total[l]);
            }
        }
    }
    release(threads);
}

// grad and out [tokens, heads, size]; d_query as out, d_key and d_value [key heads, tokens, size].
void palate_attention_backward(const AttentionArgs *args, const bf16 *grad, const bf16 *out,
                               const float *lse, int threads, bf16 *d_query, bf16 *d_key,
                               bf16 *d_value) {
    const AttentionArgs &a = *args;
    auto trees = trees_of(a);
    auto tasks = tasks_of(a, trees);
    int64_t size = a.size, group = a.heads / a.key_heads, width = a.key_heads * size;
    View up{grad, size, a.heads * size};
    Blocks keys(a, a.key, trees, true, true, threads),
        values(a, a.value, trees, true, false, threads);
    int64_t end = trees.empty() ? 0 : trees.back().stop;
    std::fill(d_query + end * a.heads * size, d_query + a.tokens * a.heads * size, 0);
    // Of each thread, with room for the whole last block.
    int64_t plane = (a.tokens + BLOCK) * width;
    std::vector<float> of_keys(threads * plane, 0.0f), of_values(threads * plane, 0.0f);
#pragma omp parallel num_threads(threads)
    {
        float *dk = of_keys.data() + omp_get_thread_num() * plane;
        float *dv = of_values.data() + omp_get_thread_num() * plane;
        Buffer<float> s(BLOCK * BLOCK), d(BLOCK * BLOCK), dq(size * BLOCK);
        Buffer<uint32_t> q(size / 2 * BLOCK), g(size / 2 * BLOCK), q_down(BLOCK / 2 * size),
            g_down(BLOCK / 2 * size), pairs(BLOCK / 2 * BLOCK);
        Buffer<bf16> shares(BLOCK * BLOCK), slopes(BLOCK * BLOCK);
        // Dealt out in turn and not as they end: the same threads add up the same tasks every time.
#pragma omp for schedule(static, 1)
        for (size_t n = 0; n < tasks.size(); n++) {
            const Task &task = tasks[n];
            const Tree &tree = trees[task.tree];
            int64_t q0 = tree.start + task.block * BLOCK, q1 = std::min(tree.stop, q0 + BLOCK);
            int64_t head = task.head / group;
            Queries queries(a, q0, q1);
            pack_across(a.query, task.head, q0, q1, size, q.data);
            pack_down(a.query, task.head, q0, q1, size, q_down.data);
            pack_across(up, task.head, q0, q1, size, g.data);
            pack_down(up, task.head, q0, q1, size, g_down.data);
            float log_sum[BLOCK], mean[BLOCK] = {};
            for (int64_t l = 0; l < BLOCK; l++) {
                log_sum[l] = q0 + l < q1 ? lse[task.head * a.tokens + q0 + l] : 0.0f;
                if (q0 + l >= q1)
                    continue;
                const bf16 *o = out + ((q0 + l) * a.heads + task.head) * size;
                const bf16 *u = up.row(task.head, q0 + l);
                float dot = 0;
                for (int64_t k = 0; k < size; k++)
                    dot += widen(o[k]) * widen(u[k]);
                mean[l] = dot;
            }
            std::fill(dq.data, dq.data + size * BLOCK, 0.0f);
            for (int64_t b = 0; b <= task.block; b++) {
                int64_t k0 = tree.start + b * BLOCK, k1 = std::min(tree.stop, k0 + BLOCK);
                Sight seen = sight(a, q0, q1, k0, k1);
                if (seen == NOTHING)
                    continue;
                scores(a, keys.rows(head, task.tree, b), q.data, queries, seen, k0, k1, s.data);
                multiply(BLOCK, BLOCK, size, size, BLOCK, BLOCK, false,
                         values.rows(head, task.tree, b), g.data, d.data);
                for (int64_t l = 0; l < BLOCK; l += WIDTH) {
                    vec sum = load(log_sum + l), average = load(mean + l);
                    uvec even{};
                    for (int64_t i = 0; i < BLOCK; i++) {
                        int64_t at = i * BLOCK + l;
                        vec share = exp_(load(s.data + at) - sum);
                        vec slope = share * (load(d.data + at) - average) * a.scale;
                        narrow(shares.data + at, share);
                        narrow(slopes.data + at, slope);
                        uvec bits = rounded(slope);
                        if (i % 2 == 0) {
                            even = bits >> 16;
                            continue;
                        }
                        uvec both = even | bits;
                        std::memcpy(pairs.data + i / 2 * BLOCK + l, &both, sizeof both);
                    }
                }
                int64_t at = k0 * width + head * size;
                multiply(BLOCK, size, BLOCK, BLOCK, size, width, true, shares.data, g_down.data,
                         dv + at);
                multiply(BLOCK, size, BLOCK, BLOCK, size, width, true, slopes.data, q_down.data,
                         dk + at);
                multiply(size, BLOCK, BLOCK, BLOCK, BLOCK, BLOCK, true,
                         keys.columns(head, task.tree, b), pairs.data, dq.data);
            }
            for (int64_t l = 0; l < q1 - q0; l++) {
                bf16 *row = d_query + ((q0 + l) * a.heads + task.head) * size;
                for (int64_t k = 0; k < size; k++)
                    row[k] = narrow(dq.data[k * BLOCK + l]);
            }
        }
#pragma omp for schedule(static)
        for (int64_t t = 0; t < a.tokens; t++)
            for (int64_t h = 0; h < a.key_heads; h++)
                for (int64_t k = 0; k < size; k++) {
                    float key = 0, value = 0;
                    for (int n = 0; n < threads; n++) {
                        key += of_keys[n * plane + t * width + h * size + k];
                        value += of_values[n * plane + t * width + h * size + k];
                    }
                    d_key[(h * a.tokens + t) * size + k] = narrow(key);
                    d_value[(h * a.tokens + t) * size + k] = narrow(value);
                }
    }
    release(threads);
}

} // extern "C"
