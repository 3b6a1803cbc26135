// SGD one example at a time of the softmax; the twin of softmax_steps.py, where the steps are written down.
//
// A step needs the one before, so one block takes all rows in turn. `across` lanes, a power of two, stand side by side,
// a class each (of more than 32 classes, 32 after 32), and such groups of lanes take the features, or a sparse row's
// entries, in turn. A warp's share of the scores goes to `partials` (warps, classes), from which the first warp makes
// the slopes δ (classes,), while the others read the next row. These two lie in `scratch` where shared memory does not
// hold them. The order of all sums depends on the sizes and the block alone.
#include "common.cuh"

namespace dml {

constexpr int MOST_THREADS = 256;  // and the 1 beside it: no register is spilled to have more blocks side by side
constexpr double LEAST_FACTOR = 1.0 / 1099511627776.0;  // 2^-40

// S(w, threshold) = sign(w)·max(|w| − threshold, 0).
template <class T>
__device__ __forceinline__ T soft(T w, T threshold) {
    T above = w - threshold, below = w + threshold;
    return (above < T(0) ? T(0) : above) + (below > T(0) ? T(0) : below);
}

// The sum over a warp's groups of `across` lanes, by lane of a group; to `partial` (classes,) at class `c`.
template <class T>
__device__ __forceinline__ void leave(T sum, int across, long long c, long long classes, T* partial) {
    for (int offset = across; offset < WARP; offset *= 2) sum += __shfl_xor_sync(ALL_LANES, sum, offset);
    if (threadIdx.x % WARP < across && c < classes) partial[c] = sum;
}

// In one warp: turn scores factor·Σ partials + bias into δ = counts·(softmax − e_label); return their loss.
template <class T>
__device__ __forceinline__ T make_slopes(const T* partials, T factor, const T* bias, long long classes, long long label,
                                         T counts, T* slopes) {
    int lane = threadIdx.x % WARP, warps = blockDim.x / WARP;
    T largest = T(0), met = T(0), summed = T(0);
    for (long long c = lane; c < classes; c += WARP) {
        T s = T(0);
        for (int w = 0; w < warps; w++) s += partials[w * classes + c];
        s = factor * s + bias[c];
        slopes[c] = s;
        largest = c == lane || s > largest ? s : largest;
    }
    T first = __shfl_sync(ALL_LANES, largest, 0);  // there is a class 0, not one for every lane
    if (lane >= classes) largest = first;
    for (int offset = WARP / 2; offset > 0; offset /= 2) {
        T other = __shfl_xor_sync(ALL_LANES, largest, offset);
        largest = other > largest ? other : largest;
    }
    for (long long c = lane; c < classes; c += WARP) {
        T below = slopes[c] - largest, e = exp(below);
        if (c == label) met = below;
        slopes[c] = e;
        summed += e;
    }
    summed = warp_sum(summed);
    met = warp_sum(met);
    T share = counts / summed;
    for (long long c = lane; c < classes; c += WARP) slopes[c] = slopes[c] * share - (c == label ? counts : T(0));
    return (log(summed) - met) * counts;
}

// A step for each of the `rows` (null: 0 … count − 1) of dense X (·, features), z_j = (x_j − shift_j)·scale_j, changing
// parameters (features + 1, classes). Dynamic shared memory: partials and slopes, unless in scratch; two rows of
// features where z_held; features + 1 times classes where block_held.
template <class S, class T>
__global__ void __launch_bounds__(MOST_THREADS, 1)
steps(const S* __restrict__ X, const T* __restrict__ y, const T* __restrict__ weight,
      const long long* __restrict__ rows, long long count, long long features, long long classes,
      const T* __restrict__ shift, const T* __restrict__ scale, T* parameters, double step_size, double l1, double l2,
      long long lanes_across, bool z_held, bool block_held, T* scratch, double* __restrict__ loss) {
    DML_DYNAMIC_SHARED(raw);
    T* shared = reinterpret_cast<T*>(raw);
    int across = int(lanes_across), lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, warps = blockDim.x / WARP;
    long long group = threadIdx.x / across, groups = blockDim.x / across, own = threadIdx.x % across;
    T *partials = scratch ? scratch : shared, *slopes = partials + warps * classes;
    T* after = scratch ? shared : slopes + classes;
    T* z = z_held ? after : nullptr;
    T* w = block_held ? after + (z_held ? 2 * features : 0) : parameters;
    T keep = T(1 / (1 + step_size * l2)), threshold = T(step_size * l1), rate = T(step_size);
    double total = 0;
    if (block_held)
        for (long long e = threadIdx.x; e < (features + 1) * classes; e += blockDim.x) w[e] = parameters[e];
    const S* x = count ? X + (rows ? rows[0] : 0) * features : X;
    if (z_held && count)
        for (long long j = threadIdx.x; j < features; j += blockDim.x)
            z[j] = (converted<T>(x[j]) - shift[j]) * scale[j];
    __syncthreads();
    for (long long i = 0; i < count; i++) {
        T* current = z + (i % 2) * features;
        for (long long first = 0; first < classes; first += across) {
            long long c = first + own;
            T sum = T(0);
            if (c < classes) {
#pragma unroll 4
                for (long long j = group; j < features; j += groups)
                    sum += (z_held ? current[j] : (converted<T>(x[j]) - shift[j]) * scale[j]) * w[j * classes + c];
            }
            leave(sum, across, c, classes, partials + warp * classes);
        }
        __syncthreads();
        const S* next = i + 1 < count ? X + (rows ? rows[i + 1] : i + 1) * features : x;
        if (warp == 0) {
            long long row = rows ? rows[i] : i;
            T value = make_slopes(partials, T(1), w + features * classes, classes, (long long)(y[row]),
                                  weight ? weight[row] : T(1), slopes);
            if (lane == 0) total += double(value);
        }
        if (z_held && (warp > 0 || warps == 1)) {
            T* behind = z + ((i + 1) % 2) * features;
            int from = warps == 1 ? threadIdx.x : threadIdx.x - WARP, readers = warps == 1 ? WARP : blockDim.x - WARP;
            for (long long j = from; j < features; j += readers)
                behind[j] = (converted<T>(next[j]) - shift[j]) * scale[j];
        }
        __syncthreads();
        for (long long c = own; c < classes; c += across) {
            T step = slopes[c] * rate;
#pragma unroll 4
            for (long long j = group; j < features; j += groups) {
                T value = z_held ? current[j] : (converted<T>(x[j]) - shift[j]) * scale[j];
                w[j * classes + c] = keep * soft(w[j * classes + c] - value * step, threshold);
            }
            if (group == 0) w[features * classes + c] -= scale[features] * step;
        }
        x = next;
    }
    __syncthreads();
    if (block_held)
        for (long long e = threadIdx.x; e < (features + 1) * classes; e += blockDim.x) parameters[e] = w[e];
    if (threadIdx.x == 0) loss[0] += total;
}

// A step for each of the sparse rows, z_j = x_j·scale_j (null: x_j), touching the weights of their own features alone.
// `held` (features + 1, classes) are the weights in the form of glm_sparse.py, described by worth (2,) and seen
// (features,), null where nothing is owed; last, b itself.
template <class S, class T, class I>
__global__ void __launch_bounds__(MOST_THREADS, 1)
sparse_steps(const S* __restrict__ data, const I* __restrict__ indices, const long long* __restrict__ indptr,
             const T* __restrict__ y, const T* __restrict__ weight, const long long* __restrict__ rows, long long count,
             long long features, long long classes, const T* __restrict__ scale, T* held, double* seen, double* worth,
             double step_size, double l1, double l2, long long lanes_across, T* scratch, double* __restrict__ loss) {
    DML_DYNAMIC_SHARED(raw);
    int across = int(lanes_across), lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, warps = blockDim.x / WARP;
    long long group = threadIdx.x / across, groups = blockDim.x / across, own = threadIdx.x % across;
    T *partials = scratch ? scratch : reinterpret_cast<T*>(raw), *slopes = partials + warps * classes;
    T* bias = held + features * classes;
    double total = 0, factor = worth[0], owed = worth[1], keep = 1 / (1 + step_size * l2);
    for (long long i = 0; i < count; i++) {
        long long row = rows ? rows[i] : i, start = indptr[row], stop = indptr[row + 1];
        for (long long first = 0; first < classes; first += across) {
            long long c = first + own;
            T sum = T(0);
            if (c < classes) {
#pragma unroll 4
                for (long long k = start + group; k < stop; k += groups) {
                    long long j = (long long)indices[k];
                    T z = converted<T>(data[k]), v = held[j * classes + c];
                    if (scale) z *= scale[j];
                    if (seen) {
                        v = soft(v, T(owed - seen[j]));
                        held[j * classes + c] = v;
                    }
                    sum += z * v;
                }
            }
            leave(sum, across, c, classes, partials + warp * classes);
        }
        __syncthreads();
        if (warp == 0) {
            T value = make_slopes(partials, T(factor), bias, classes, (long long)(y[row]),
                                  weight ? weight[row] : T(1), slopes);
            if (lane == 0) total += double(value);
        }
        __syncthreads();
        T of_bias = T(step_size), of_weights = T(step_size / factor);
        if (scale) of_bias *= scale[features];
        for (long long c = own; c < classes; c += across) {
            T step = slopes[c] * of_weights;
#pragma unroll 4
            for (long long k = start + group; k < stop; k += groups) {
                long long j = (long long)indices[k];
                T z = converted<T>(data[k]);
                if (scale) z *= scale[j];
                held[j * classes + c] -= z * step;
                if (seen && c == 0) seen[j] = owed;
            }
            if (group == 0) bias[c] -= of_bias * slopes[c];
        }
        owed += step_size * l1 / factor;
        factor *= keep;
        __syncthreads();  // the next row's entries are dealt otherwise
        if (factor < LEAST_FACTOR) {
            for (long long e = threadIdx.x; e < features * classes; e += blockDim.x) {
                T v = held[e];
                if (seen) v = soft(v, T(owed - seen[e / classes]));
                held[e] = v * T(factor);
            }
            __syncthreads();
            if (seen)
                for (long long j = threadIdx.x; j < features; j += blockDim.x) seen[j] = 0;
            factor = 1, owed = 0;
            __syncthreads();
        }
    }
    __syncthreads();
    if (threadIdx.x == 0) worth[0] = factor, worth[1] = owed, loss[0] += total;
}

}  // namespace dml
