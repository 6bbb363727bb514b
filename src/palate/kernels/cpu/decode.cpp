// One more token for each of several rows through all layers of a decoder: Llama and its like.
//
// Features run down and rows across, as in head.cpp: weights are read as they lie in memory, where
// they are, so that there is no copy to go stale, and what stands between products goes over
// vectors of rows. What layers keep of a prompt lies there once for all rows that continue it; each
// row has its own keys and values behind it. Values are rounded where the models' own code rounds
// them.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#include <omp.h>

#include "products.h"
#include "vectors.h"

// y = weight x + bias + scale * up (down x), the last term float32: an adapter of low rank.
struct LinearArgs {
    const bf16 *weight; // [out, in]
    const bf16 *bias;   // [out] or null
    const float *down;  // [rank, in] or null
    const float *up;    // [out, rank]
    int64_t out, in, rank;
    float scale;
};

// x / rms(x) * (offset + weight), as in layers.cpp; weight null: left out.
struct NormArgs {
    const bf16 *weight;
    float epsilon, offset;
    int32_t early;
};

struct LayerArgs {
    LinearArgs query, key, value, out, gate, up, down;
    NormArgs before_attention, query_norm, key_norm, after_attention, before_feed, after_feed;
    const bf16 *cos, *sin; // [positions, size]
    int64_t window;        // 0: none
    float scale;           // of attention scores
};

// The rows of one prompt, which follow one another.
struct GroupArgs {
    const bf16 *keys;   // [layers, key heads, blocks, BLOCK, size], zero past the end
    const bf16 *values; // [layers, key heads, blocks, size, BLOCK]
    int64_t length, blocks, first, count;
};

struct DecodeArgs {
    const LayerArgs *layers;
    const GroupArgs *groups;
    const int64_t *slot;     // [rows] where a row's own keys and values lie
    const int64_t *past;     // [rows] how many it has, the new ones not counted
    const int64_t *position; // [rows] in the tables of cos and sin
    bf16 *keys;              // [layers, slots, key heads, size, capacity]
    bf16 *values;            // [layers, slots, key heads, capacity, size]
    int64_t n_layers, n_groups, rows, slots, capacity;
    int64_t width, heads, key_heads, size, feed;
    int32_t gelu; // 0: SiLU, 1: GELU by tanh
};

namespace {

constexpr int64_t BLOCK = 32, TILE = 32, LANES = 64;

inline vec rounded_float(vec x) { return (vec)rounded(x); }
inline vec even_of(uvec pair) { return (vec)(pair << 16); }
inline vec odd_of(uvec pair) { return (vec)(pair & 0xffff0000); }
inline uvec load_pair(const uint32_t *p) {
    uvec v;
    std::memcpy(&v, p, sizeof v);
    return v;
}
inline void store_pair(uint32_t *p, vec even, vec odd) {
    uvec pairs = rounded(even) >> 16 | rounded(odd);
    std::memcpy(p, &pairs, sizeof pairs);
}

inline vec sigmoid(vec x) {
    vec y = x > 87.0f ? all(87.0f) : x;
    return y < -87.0f ? vec{} : 1.0f / (1.0f + exp_(-y));
}
inline vec activated(vec x, bool gelu) {
    return x * sigmoid(gelu ? 1.5957691216057308f * (x + 0.044715f * x * x * x) : x);
}

// Rows in chunks of LANES; values [feature][stride], operands of products [chunk][feature / 2][LANES]
// in pairs of features.
struct Shape {
    Shape(int64_t rows) : rows(rows), chunks(ceil_div(rows, LANES)), stride(chunks * LANES) {}
    int64_t lanes(int64_t chunk) const {
        return std::min(LANES, ceil_div(rows, WIDTH) * WIDTH - chunk * LANES);
    }
    int64_t vectors() const { return ceil_div(rows, WIDTH); }
    int64_t rows, chunks, stride;
};

uint32_t *pair_at(uint32_t *packed, int64_t features, int64_t feature, int64_t lane) {
    return packed + (lane / LANES * (features / 2) + feature / 2) * LANES + lane % LANES;
}
const uint32_t *pair_at(const uint32_t *packed, int64_t features, int64_t feature, int64_t lane) {
    return pair_at(const_cast<uint32_t *>(packed), features, feature, lane);
}

// The functions below are called by all threads of a team, which share the work and wait for one
// another at the end of each.

// low [rank][stride] = down x, of an adapter.
void adapted(const Shape &s, const LinearArgs &w, const uint32_t *packed, float *low) {
    if (w.down == nullptr)
        return;
#pragma omp for collapse(2)
    for (int64_t r = 0; r < w.rank; r++)
        for (int64_t v = 0; v < s.vectors(); v++) {
            const float *row = w.down + r * w.in;
            vec sum{};
            for (int64_t k = 0; k < w.in; k += 2) {
                uvec pair = load_pair(pair_at(packed, w.in, k, v * WIDTH));
                sum += row[k] * even_of(pair) + row[k + 1] * odd_of(pair);
            }
            store(low + r * s.stride + v * WIDTH, sum);
        }
}

// z [count][LANES]: rows first to first + count of a product, rounded.
void tile(const Shape &s, const LinearArgs &w, const uint32_t *packed, const float *low,
          int64_t chunk, int64_t first, int64_t count, float *z) {
    multiply(count, s.lanes(chunk), w.in, w.in, LANES, LANES, false, w.weight + first * w.in,
             packed + chunk * (w.in / 2) * LANES, z);
    for (int64_t i = 0; i < count; i++)
        for (int64_t l = 0; l < s.lanes(chunk); l += WIDTH) {
            vec y = load(z + i * LANES + l);
            if (w.bias != nullptr)
                y += widen(w.bias[first + i]);
            y = rounded_float(y);
            if (w.down != nullptr) {
                vec more{};
                const float *row = w.up + (first + i) * w.rank;
                for (int64_t r = 0; r < w.rank; r++)
                    more += row[r] * load(low + r * s.stride + chunk * LANES + l);
                y = rounded_float(y + w.scale * more);
            }
            store(z + i * LANES + l, y);
        }
}

// A product, the room for its adapter, and where it goes: [out][stride].
struct Product {
    const LinearArgs *linear;
    float *low, *y;
};

// Products of one operand.
template <size_t N>
void multiply_all(const Shape &s, const Product (&products)[N], const uint32_t *packed, float *z) {
    int64_t tiles = 0;
    for (const Product &p : products) {
        adapted(s, *p.linear, packed, p.low);
        tiles += ceil_div(p.linear->out, TILE);
    }
#pragma omp for collapse(2) schedule(dynamic)
    for (int64_t t = 0; t < tiles; t++)
        for (int64_t c = 0; c < s.chunks; c++) {
            const Product *p = products;
            int64_t first = t * TILE;
            for (; first >= ceil_div(p->linear->out, TILE) * TILE; p++)
                first -= ceil_div(p->linear->out, TILE) * TILE;
            int64_t count = std::min(TILE, p->linear->out - first);
            tile(s, *p->linear, packed, p->low, c, first, count, z);
            for (int64_t i = 0; i < count; i++)
                std::memcpy(p->y + (first + i) * s.stride + c * LANES, z + i * LANES,
                            s.lanes(c) * sizeof(float));
        }
}

// 1 / rms of 16 lanes of x [width][stride].
vec scale_of(const float *x, int64_t width, int64_t stride, float epsilon) {
    vec squares{};
    for (int64_t k = 0; k < width; k++) {
        vec v = load(x + k * stride);
        squares += v * v;
    }
    vec mean = squares / float(width) + epsilon, scale;
    for (int64_t j = 0; j < WIDTH; j++)
        scale[j] = 1.0f / std::sqrt(mean[j]);
    return scale;
}
inline vec normed(const NormArgs &n, vec x, vec scale, int64_t k) {
    vec v = x * scale;
    if (n.early)
        v = rounded_float(v);
    return rounded_float(v * (n.offset + widen(n.weight[k])));
}

// x += y or norm(y), then the operand of the next product: norm(x).
void next_operand(const Shape &s, int64_t width, float *x, const float *y, const NormArgs &after,
                  const NormArgs *before, uint32_t *packed) {
#pragma omp for
    for (int64_t v = 0; v < s.vectors(); v++) {
        float *at = x + v * WIDTH;
        if (y != nullptr) {
            const float *from = y + v * WIDTH;
            bool norm = after.weight != nullptr;
            vec scale = norm ? scale_of(from, width, s.stride, after.epsilon) : vec{};
            for (int64_t k = 0; k < width; k++) {
                vec more = load(from + k * s.stride);
                if (norm)
                    more = normed(after, more, scale, k);
                store(at + k * s.stride, rounded_float(load(at + k * s.stride) + more));
            }
        }
        if (before == nullptr)
            continue;
        vec scale = scale_of(at, width, s.stride, before->epsilon);
        for (int64_t k = 0; k < width; k += 2)
            store_pair(pair_at(packed, width, k, v * WIDTH),
                       normed(*before, load(at + k * s.stride), scale, k),
                       normed(*before, load(at + (k + 1) * s.stride), scale, k + 1));
    }
}

// Norms and turns one head of 16 lanes: x [size][stride].
void turn(const Shape &s, const NormArgs &norm, const float *cos, const float *sin, int64_t size,
          float *x) {
    if (norm.weight != nullptr) {
        vec scale = scale_of(x, size, s.stride, norm.epsilon);
        for (int64_t k = 0; k < size; k++)
            store(x + k * s.stride, normed(norm, load(x + k * s.stride), scale, k));
    }
    int64_t half = size / 2;
    for (int64_t k = 0; k < half; k++) {
        vec x1 = load(x + k * s.stride), x2 = load(x + (half + k) * s.stride);
        vec c1 = load(cos + k * s.stride), c2 = load(cos + (half + k) * s.stride);
        vec s1 = load(sin + k * s.stride), s2 = load(sin + (half + k) * s.stride);
        store(x + k * s.stride, rounded_float(rounded_float(x1 * c1) - rounded_float(x2 * s1)));
        store(x + (half + k) * s.stride,
              rounded_float(rounded_float(x2 * c2) + rounded_float(x1 * s2)));
    }
}

// Room of one thread for the attention of a group: grows with the longest prompt.
struct Room {
    std::vector<float> scores, later, sums, values;
    std::vector<uint32_t> queries, shares;
};

// Attention of a group's rows by the query heads that share key head `h`, LANES queries at a time.
void attend(const DecodeArgs &a, const Shape &s, const LayerArgs &layer, int64_t number,
            const GroupArgs &g, int64_t h, const float *query, Room &room, uint32_t *out) {
    int64_t size = a.size, shared = a.heads / a.key_heads, capacity = a.capacity;
    const bf16 *keys = g.keys + (number * a.key_heads + h) * g.blocks * BLOCK * size;
    const bf16 *values = g.values + (number * a.key_heads + h) * g.blocks * BLOCK * size;
    room.scores.resize(std::max<size_t>(room.scores.size(), g.blocks * BLOCK * LANES));
    room.shares.resize(std::max<size_t>(room.shares.size(), g.blocks * BLOCK / 2 * LANES));
    room.later.resize(LANES * (capacity + WIDTH));
    room.sums.resize(size * LANES);
    room.values.resize(size);
    room.queries.assign(size / 2 * LANES, 0);
    for (int64_t from = 0; from < g.count * shared; from += LANES) {
        int64_t n = std::min(LANES, g.count * shared - from), lanes = ceil_div(n, WIDTH) * WIDTH;
        ivec first[LANES / WIDTH]; // the first token of the prompt that a query sees
        int64_t nearest = g.length;
        bf16 *packed = reinterpret_cast<bf16 *>(room.queries.data());
        for (int64_t l = 0; l < LANES; l++) {
            int64_t row = g.first + std::min(from + l, g.count * shared - 1) / shared;
            int64_t begin = 0;
            if (layer.window > 0)
                begin = std::max<int64_t>(0, g.length + a.past[row] - layer.window + 1);
            first[l / WIDTH][l % WIDTH] = int32_t(begin);
            nearest = std::min(nearest, begin);
            if (l >= n)
                continue;
            const float *q = query + ((h * shared + (from + l) % shared) * size) * s.stride + row;
            for (int64_t k = 0; k < size; k++)
                packed[((k / 2) * LANES + l) * 2 + k % 2] = narrow(q[k * s.stride]);
        }
        // Blocks that no query sees are left out.
        int64_t skipped = nearest / BLOCK;
        vec top[LANES / WIDTH], total[LANES / WIDTH];
        for (auto &t : top)
            t = all(-1.0e30f);
        for (int64_t b = skipped; b < g.blocks; b++) {
            float *z = room.scores.data() + b * BLOCK * LANES;
            multiply(BLOCK, lanes, size, size, LANES, LANES, false, keys + b * BLOCK * size,
                     room.queries.data(), z);
            for (int64_t i = 0; i < BLOCK; i++)
                for (int64_t v = 0; v < lanes / WIDTH; v++) {
                    float *at = z + i * LANES + v * WIDTH;
                    int32_t token = int32_t(b * BLOCK + i);
                    vec x = load(at) * layer.scale;
                    x = first[v] <= token ? x : all(-INFINITY);
                    if (token >= g.length)
                        x = all(-INFINITY);
                    store(at, x);
                    top[v] = x > top[v] ? x : top[v];
                }
        }
        // The row's own tokens, the new one among them.
        for (int64_t l = 0; l < n; l++) {
            int64_t row = g.first + (from + l) / shared, count = a.past[row] + 1;
            const bf16 *own =
                a.keys +
                ((number * a.slots + a.slot[row]) * a.key_heads + h) * size * capacity;
            const float *q = query + ((h * shared + (from + l) % shared) * size) * s.stride + row;
            float *z = room.later.data() + l * (capacity + WIDTH);
            int64_t hidden = layer.window > 0 ? std::max<int64_t>(0, count - layer.window) : 0;
            float highest = -1.0e30f;
            for (int64_t t = 0; t < count; t += WIDTH) {
                vec sum{};
                for (int64_t k = 0; k < size; k++)
                    sum += q[k * s.stride] * widen(own + k * capacity + t);
                sum *= layer.scale;
                for (int64_t j = 0; j < WIDTH; j++) {
                    bool sees = t + j < count && t + j >= hidden;
                    z[t + j] = sees ? sum[j] : -INFINITY;
                    highest = std::max(highest, z[t + j]);
                }
            }
            float &t = reinterpret_cast<float *>(top)[l];
            t = std::max(t, highest);
        }
        for (int64_t v = 0; v < lanes / WIDTH; v++) {
            vec sum{};
            for (int64_t b = skipped; b < g.blocks; b++)
                for (int64_t i = 0; i < BLOCK; i += 2) {
                    const float *z = room.scores.data() + (b * BLOCK + i) * LANES + v * WIDTH;
                    vec even = exp_(load(z) - top[v]), odd = exp_(load(z + LANES) - top[v]);
                    sum += even + odd;
                    store_pair(room.shares.data() + (b * BLOCK + i) / 2 * LANES + v * WIDTH, even,
                               odd);
                }
            total[v] = sum;
        }
        std::fill(room.sums.begin(), room.sums.end(), 0.0f);
        for (int64_t b = skipped; b < g.blocks; b++)
            multiply(size, lanes, BLOCK, BLOCK, LANES, LANES, true, values + b * BLOCK * size,
                     room.shares.data() + b * BLOCK / 2 * LANES, room.sums.data());
        for (int64_t l = 0; l < n; l++) {
            int64_t row = g.first + (from + l) / shared, count = a.past[row] + 1;
            const bf16 *own =
                a.values +
                ((number * a.slots + a.slot[row]) * a.key_heads + h) * capacity * size;
            float *z = room.later.data() + l * (capacity + WIDTH), *sums = room.values.data();
            float highest = reinterpret_cast<float *>(top)[l];
            float all_of = reinterpret_cast<float *>(total)[l];
            std::fill(sums, sums + size, 0.0f);
            for (int64_t t = 0; t < count; t += WIDTH)
                store(z + t, exp_(load(z + t) - highest));
            for (int64_t t = 0; t < count; t++) {
                if (z[t] == 0.0f)
                    continue;
                all_of += z[t];
                for (int64_t k = 0; k < size; k += WIDTH)
                    store(sums + k, load(sums + k) + z[t] * widen(own + t * size + k));
            }
            int64_t feature = (h * shared + (from + l) % shared) * size;
            for (int64_t k = 0; k < size; k++) {
                float value = (room.sums[k * LANES + l] + sums[k]) / all_of;
                uint32_t *pair = pair_at(out, a.heads * size, feature + k, row);
                reinterpret_cast<bf16 *>(pair)[k % 2] = narrow(value);
            }
        }
    }
}

} // namespace

extern "C" {

// x [rows, width]: embeddings of the new tokens in, states behind the last layer out, before the
// last norm. Widths are multiples of 2, `size` of 16; `capacity` is a multiple of 16.
void palate_decode(const DecodeArgs *args, int threads, bf16 *x) {
    const DecodeArgs &a = *args;
    Shape s(a.rows);
    int64_t size = a.size, queries = a.heads * size, keys = a.key_heads * size, rank = 0;
    std::vector<std::pair<const bf16 *, const bf16 *>> tables;
    std::vector<int64_t> table_of;
    for (int64_t n = 0; n < a.n_layers; n++) {
        const LayerArgs &layer = a.layers[n];
        for (const LinearArgs *w : {&layer.query, &layer.key, &layer.value, &layer.out, &layer.gate,
                                    &layer.up, &layer.down})
            rank = std::max(rank, w->rank);
        std::pair<const bf16 *, const bf16 *> table(layer.cos, layer.sin);
        auto at = std::find(tables.begin(), tables.end(), table);
        table_of.push_back(at - tables.begin());
        if (at == tables.end())
            tables.push_back(table);
    }
    Buffer<float> state(a.width * s.stride), y(a.width * s.stride), query(queries * s.stride),
        key(keys * s.stride), value(keys * s.stride), low(3 * rank * s.stride),
        turns(int64_t(tables.size()) * 2 * size * s.stride);
    Buffer<uint32_t> packed(a.width / 2 * s.stride), attended(queries / 2 * s.stride),
        fed(a.feed / 2 * s.stride);
    // Lanes that are no rows are worked on along with the others, and must be numbers.
    std::fill(state.data, state.data + a.width * s.stride, 0.0f);
    std::fill(turns.data, turns.data + int64_t(tables.size()) * 2 * size * s.stride, 0.0f);
    std::fill(attended.data, attended.data + queries / 2 * s.stride, 0u);
    for (int64_t r = 0; r < a.rows; r++) {
        for (int64_t k = 0; k < a.width; k++)
            state.data[k * s.stride + r] = widen(x[r * a.width + k]);
        for (size_t t = 0; t < tables.size(); t++)
            for (int64_t k = 0; k < size; k++) {
                float *at = turns.data + int64_t(t) * 2 * size * s.stride + k * s.stride + r;
                at[0] = widen(tables[t].first[a.position[r] * size + k]);
                at[size * s.stride] = widen(tables[t].second[a.position[r] * size + k]);
            }
    }
    const NormArgs none{};
#pragma omp parallel num_threads(threads)
    {
        Room room;
        Buffer<float> z(TILE * LANES), z_too(TILE * LANES);
        next_operand(s, a.width, state.data, nullptr, none, &a.layers[0].before_attention,
                     packed.data);
        for (int64_t n = 0; n < a.n_layers; n++) {
            const LayerArgs &layer = a.layers[n];
            multiply_all(s,
                         {Product{&layer.query, low.data, query.data},
                          Product{&layer.key, low.data + rank * s.stride, key.data},
                          Product{&layer.value, low.data + 2 * rank * s.stride, value.data}},
                         packed.data, z.data);
            const float *cos = turns.data + table_of[n] * 2 * size * s.stride;
            const float *sin = cos + size * s.stride;
#pragma omp for collapse(2)
            for (int64_t h = 0; h < a.heads + a.key_heads; h++)
                for (int64_t v = 0; v < s.vectors(); v++) {
                    int64_t at = v * WIDTH, of_key = h - a.heads;
                    if (of_key < 0) {
                        turn(s, layer.query_norm, cos + at, sin + at, size,
                             query.data + h * size * s.stride + at);
                        continue;
                    }
                    float *turned = key.data + of_key * size * s.stride + at;
                    const float *given = value.data + of_key * size * s.stride + at;
                    turn(s, layer.key_norm, cos + at, sin + at, size, turned);
                    for (int64_t l = 0; l < std::min(WIDTH, a.rows - at); l++) {
                        int64_t place = (n * a.slots + a.slot[at + l]) * a.key_heads + of_key;
                        int64_t t = a.past[at + l];
                        bf16 *of_keys = a.keys + place * size * a.capacity + t;
                        bf16 *of_values = a.values + (place * a.capacity + t) * size;
                        for (int64_t k = 0; k < size; k++) {
                            of_keys[k * a.capacity] = narrow(turned[k * s.stride + l]);
                            of_values[k] = narrow(given[k * s.stride + l]);
                        }
                    }
                }
#pragma omp for collapse(2) schedule(dynamic)
            for (int64_t g = 0; g < a.n_groups; g++)
                for (int64_t h = 0; h < a.key_heads; h++)
                    attend(a, s, layer, n, a.groups[g], h, query.data, room, attended.data);
            multiply_all(s, {Product{&layer.out, low.data, y.data}}, attended.data, z.data);
            next_operand(s, a.width, state.data, y.data, layer.after_attention, &layer.before_feed,
                         packed.data);
            adapted(s, layer.gate, packed.data, low.data);
            adapted(s, layer.up, packed.data, low.data + rank * s.stride);
#pragma omp for collapse(2) schedule(dynamic)
            for (int64_t first = 0; first < a.feed; first += TILE)
                for (int64_t c = 0; c < s.chunks; c++) {
                    int64_t count = std::min(TILE, a.feed - first);
                    tile(s, layer.gate, packed.data, low.data, c, first, count, z.data);
                    tile(s, layer.up, packed.data, low.data + rank * s.stride, c, first, count,
                         z_too.data);
                    for (int64_t i = 0; i < count; i += 2)
                        for (int64_t l = 0; l < s.lanes(c); l += WIDTH) {
                            vec pair[2];
                            for (int64_t j = 0; j < 2; j++) {
                                int64_t at = (i + j) * LANES + l;
                                vec gate = activated(load(z.data + at), a.gelu);
                                pair[j] = rounded_float(gate) * load(z_too.data + at);
                            }
                            store_pair(pair_at(fed.data, a.feed, first + i, c * LANES + l), pair[0],
                                       pair[1]);
                        }
                }
            multiply_all(s, {Product{&layer.down, low.data, y.data}}, fed.data, z.data);
            next_operand(s, a.width, state.data, y.data, layer.after_feed,
                         n + 1 < a.n_layers ? &a.layers[n + 1].before_attention : nullptr,
                         packed.data);
        }
    }
    release(threads);
    for (int64_t r = 0; r < a.rows; r++)
        for (int64_t k = 0; k < a.width; k++)
            x[r * a.width + k] = narrow(state.data[k * s.stride + r]);
}

} // extern "C"
