// Stochastic gradient descent on blocks of ratings, and predictions of them: see rating_sgd.py.
//
// A group of 8, 16 or 32 lanes takes a rating, with both rows in its registers. Blocks share neither users nor items, but
// the ratings of one block do: groups take steps at the same time without a lock, and where two meet in a row, one step is
// lost (Niu, Recht, Ré and Wright, *Hogwild*, NIPS 2011). A block of threads takes CHUNK ratings that lie together, which
// it has read into shared memory; neighbouring blocks of threads take chunks of different blocks of ratings, so that groups
// that are at work at a time are far from one another (batch-Hogwild of Xie, Tan, Fong and Liang, *CuMF_SGD*, HPDC 2017).
#include "rating_rows.cuh"

namespace dml {

constexpr int CHUNK = 256;  // also in cuda/rating_sgd.py
constexpr float BIAS_STEP = 0.3f;  // of a factor's step; also in rating_sgd.py, which says why

// `count` ratings, of which `sgd` takes number `first` first, and the rows that they are about; null: there are none.
struct alignas(16) RatingBlock {
    long long count, first;
    const int *users, *items;
    const float *ratings, *weights;
    void *p, *q;
    float *b, *c, *p_squares, *q_squares;
};

// A step for each rating of `n_blocks` blocks, of which the longest has `chunks` chunks; only the first `groups` groups of
// a block of threads take ratings. With one group at work, steps are taken in the order of the ratings, block by block a
// chunk in turn. Adds Σ w·e², each from before its step, to losses[blockIdx.x].
template <class T, int LANES, int PACKS>
// So many registers as four blocks of threads on a multiprocessor leave: for one more, numbers would be spilled.
__global__ void __launch_bounds__(256, PACKS == 1 ? 4 : 1)
sgd(const RatingBlock* __restrict__ blocks, long long n_blocks, long long chunks, long long groups, long long width,
    float mean, float inverse, float step_size, float l2, float bias_l2, double* __restrict__ losses) {
    __shared__ int users[CHUNK], items[CHUNK];
    __shared__ float ratings[CHUNK], weights[CHUNK];
    __shared__ double scratch[WARP];
    const int lane = threadIdx.x % LANES, group = threadIdx.x / LANES, packs = int(width / 4);
    const int in_block = blockDim.x / LANES, at_work = groups < in_block ? int(groups) : in_block;
    const float mean_of = 1.f / float(width);
    double total = 0;
    for (long long c = blockIdx.x; c < n_blocks * chunks; c += gridDim.x) {
        const RatingBlock own = blocks[c % n_blocks];
        const long long start = c / n_blocks * CHUNK;
        if (start >= own.count) continue;
        const int held = own.count - start < CHUNK ? int(own.count - start) : CHUNK;
        __syncthreads();
        for (int n = threadIdx.x; n < held; n += blockDim.x) {
            long long from = start + n + own.first;
            if (from >= own.count) from -= own.count;
            users[n] = __ldcs(own.users + from);
            items[n] = __ldcs(own.items + from);
            ratings[n] = (__ldcs(own.ratings + from) - mean) * inverse;
            weights[n] = own.weights ? __ldcs(own.weights + from) : 1.f;
        }
        __syncthreads();
        float loss = 0.f;
        for (int turn = 0; turn < held; turn += at_work) {
            const int n = turn + group;
            const bool active = group < at_work && n < held;
            const long long u = active ? users[n] : 0, i = active ? items[n] : 0;
            T *const row_p = static_cast<T*>(own.p) + u * width, *const row_q = static_cast<T*>(own.q) + i * width;
            FactorRow<T, LANES, PACKS> p, q;
            p.clear();
            q.clear();
            // What there is one of a row, by a lane each, which also writes it back.
            float* mine = nullptr;
            if (own.b && lane < 2) mine = lane == 0 ? own.b + u : own.c + i;
            if (own.p_squares && (lane == 2 || lane == 3)) mine = lane == 2 ? own.p_squares + 2 * u : own.q_squares + 2 * i;
            float value = 0.f;
            if (active) {
                p.load(row_p, lane, packs);
                q.load(row_q, lane, packs);
                if (mine) value = __ldcg(mine);
            }
            const float product = group_sum<LANES>(p.times(q));
            const float b = __shfl_sync(ALL_LANES, value, 0, LANES), c_i = __shfl_sync(ALL_LANES, value, 1, LANES);
            const float weight = active ? weights[n] : 0.f;
            const float e = (active ? ratings[n] : 0.f) - product - (b + c_i);
            float step_p = step_size * weight, step_q = step_p, more_p = 0.f, more_q = 0.f;
            if (own.p_squares) {
                const float pp = group_sum<LANES>(p.times(p)), qq = group_sum<LANES>(q.times(q));
                const float share = weight * weight * mean_of * e * e;
                more_p = share * qq;
                more_q = share * pp;
                step_p *= rsqrtf(1.f + __shfl_sync(ALL_LANES, value, 2, LANES) + more_p);
                step_q *= rsqrtf(1.f + __shfl_sync(ALL_LANES, value, 3, LANES) + more_q);
            }
            if (!active) continue;
            if (lane == 0) loss += weight * e * e;
            const float keep_p = 1.f - step_p * l2, gain_p = step_p * e, keep_q = 1.f - step_q * l2, gain_q = step_q * e;
#pragma unroll
            for (int j = 0; j < PACKS; ++j)
#pragma unroll
                for (int k = 0; k < 4; ++k) {
                    const float old = p.at[j][k];
                    p.at[j][k] = keep_p * old + gain_p * q.at[j][k];
                    q.at[j][k] = keep_q * q.at[j][k] + gain_q * old;
                }
            p.store(row_p, lane, packs);
            q.store(row_q, lane, packs);
            if (mine) {
                const float step = BIAS_STEP * (lane == 0 ? step_p : step_q);
                __stcg(mine, lane < 2 ? value + step * (e - bias_l2 * value) : value + (lane == 2 ? more_p : more_q));
            }
        }
        total += double(loss);
    }
    __syncthreads();
    total = block_sum(total, scratch);
    if (threadIdx.x == 0) losses[blockIdx.x] += total;
}

// Writes what the ratings of `n_blocks` blocks are predicted to be to out[first …] of each; the longest has `chunks` chunks.
// A user or item below 0 is unknown: it has no factors, and its bias is 0.
template <class T, int LANES, int PACKS>
__global__ void __launch_bounds__(256)
predict(const RatingBlock* __restrict__ blocks, long long n_blocks, long long chunks, long long width, float mean,
        float scale, float* __restrict__ out) {
    const int lane = threadIdx.x % LANES, group = threadIdx.x / LANES, packs = int(width / 4);
    for (long long c = blockIdx.x; c < n_blocks * chunks; c += gridDim.x) {
        const RatingBlock own = blocks[c / chunks];
        const long long start = c % chunks * CHUNK, stop = start + CHUNK < own.count ? start + CHUNK : own.count;
        for (long long turn = start; turn < stop; turn += blockDim.x / LANES) {
            const long long n = turn + group;
            const bool active = n < stop;
            const long long u = active ? own.users[n] : -1, i = active ? own.items[n] : -1;
            FactorRow<T, LANES, PACKS> p, q;
            p.clear();
            q.clear();
            if (u >= 0 && i >= 0) {
                p.load(static_cast<const T*>(own.p) + u * width, lane, packs);
                q.load(static_cast<const T*>(own.q) + i * width, lane, packs);
            }
            float score = group_sum<LANES>(p.times(q));
            if (!active || lane) continue;
            if (own.b && u >= 0) score += own.b[u];
            if (own.c && i >= 0) score += own.c[i];
            out[own.first + n] = mean + scale * score;
        }
    }
}

}  // namespace dml
