// What a network of fully connected layers needs beside matrix products; the twin of network.py.
//
// Matrices are C-contiguous. Scores, slopes and activations are (count, outputs) of type T, bias (outputs,), a block of
// parameters (inputs + 1, outputs); X is (·, features) of type S. `rows` are the numbers of rows of X, y and weight, or
// null: 0 … count - 1. `weight` null: each row counts 1.
//
//   gather             rows of X, converted                        a group of threads takes a row
//   activate           f(scores + bias)                            elements dealt to all threads
//   softmax_slopes     cross-entropy and its slopes                some lanes of a warp take a row, held in registers
//   softmax_slopes_wide  the same for many classes                 a warp takes a row, over which it goes three times
//   squared_slopes     half squared error and its slope            a thread takes a row
//   through            slopes times f', and their sums by column   threads take columns, several lines of them the rows
//   add_partials       what blocks left of such sums               a block takes 32 columns, another the loss
//   sparse_products    x·W of sparse rows                          a warp takes a row and up to 128 outputs
//   scatter_slopes     xᵀ·slopes of sparse rows                    a warp takes a row; by atomics
//
// Sums over rows have two phases: each block leaves its partial sum, of the rows that the size of the grid gives it,
// and add_partials adds these up in the order of the blocks. They come out the same whenever the grid is. What
// scatter_slopes adds up does not: floats are added in the order in which warps arrive.
#include "common.cuh"

namespace dml {

constexpr int PLAIN = 0, RELU = 1, TANH = 2;
constexpr int MOST_THREADS = 256;  // and the 1 beside it: no register is spilled to have more blocks side by side
constexpr int FLIGHT = 4;  // loads that a thread has under way at once
constexpr int HELD = 4;    // classes or outputs that a lane holds

// Some elements, read or written by one access of at most 16 bytes each.
template <class T, int N>
struct alignas(sizeof(T) * N < 16 ? sizeof(T) * N : 16) Pack {
    T at[N];
};

template <class T>
constexpr int PACKED = 16 / int(sizeof(T));

__device__ __forceinline__ bool is_aligned(const void* address) {
    return reinterpret_cast<unsigned long long>(address) % 16 == 0;
}

// Warps take rows in turn: a warp's first row, and how far on its next one is.
__device__ __forceinline__ long long warp_number() {
    return ((long long)blockIdx.x * blockDim.x + threadIdx.x) / WARP;
}

__device__ __forceinline__ long long warp_count() { return (long long)gridDim.x * blockDim.x / WARP; }

template <class T>
__device__ __forceinline__ T lowest() {
    return sizeof(T) == 4 ? T(-3.402823466e38) : T(-1.7976931348623157e308);
}

template <class S, class T, int N>
__device__ __forceinline__ void gather_rows(const S* __restrict__ X, const long long* __restrict__ rows,
                                            long long count, long long features, int group, T* __restrict__ out) {
    long long pieces = features / N, groups = blockDim.x / group, step = gridDim.x * groups;
    for (long long i = blockIdx.x * groups + threadIdx.x / group; i < count; i += step) {
        auto from = reinterpret_cast<const Pack<S, N>*>(X + (rows ? rows[i] : i) * features);
        auto to = reinterpret_cast<Pack<T, N>*>(out + i * features);
        for (long long first = threadIdx.x % group; first < pieces; first += FLIGHT * group) {
            Pack<S, N> read[FLIGHT];
#pragma unroll
            for (int u = 0; u < FLIGHT; u++)
                if (first + u * group < pieces) read[u] = from[first + u * group];
#pragma unroll
            for (int u = 0; u < FLIGHT; u++) {
                if (first + u * group >= pieces) break;
                Pack<T, N> written;
#pragma unroll
                for (int n = 0; n < N; n++) written.at[n] = converted<T>(read[u].at[n]);
                to[first + u * group] = written;
            }
        }
    }
}

// out (count, features) = the rows of X. `group`, a power of two that divides the block, is how many threads take one.
template <class S, class T>
__global__ void __launch_bounds__(MOST_THREADS, 1)
gather(const S* __restrict__ X, const long long* __restrict__ rows, long long count, long long features,
       long long group, T* __restrict__ out) {
    if (is_aligned(X) && is_aligned(out) && features % PACKED<S> == 0)
        gather_rows<S, T, PACKED<S>>(X, rows, count, features, int(group), out);
    else
        gather_rows<S, T, 1>(X, rows, count, features, int(group), out);
}

template <int KIND, class T>
__device__ __forceinline__ T activated(T s) {
    if constexpr (KIND == RELU) return s < T(0) ? T(0) : s;  // NaN stays NaN
    if constexpr (KIND == TANH) return tanh(s);
    return s;
}

template <class T, int N, int KIND>
__device__ __forceinline__ void activate_pieces(T* __restrict__ scores, const T* __restrict__ bias, long long count,
                                                long long outputs) {
    long long pieces = outputs / N, all = count * pieces, step = (long long)gridDim.x * blockDim.x;
    long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    long long column = i % pieces, ahead = step % pieces;  // one division a thread, not one an element
    auto at = reinterpret_cast<Pack<T, N>*>(scores);
    auto biases = reinterpret_cast<const Pack<T, N>*>(bias);
    for (; i < all; i += FLIGHT * step) {
        Pack<T, N> s[FLIGHT], b[FLIGHT];
#pragma unroll
        for (int u = 0; u < FLIGHT; u++) {
            if (i + u * step < all) s[u] = at[i + u * step], b[u] = biases[column];
            column += ahead;
            if (column >= pieces) column -= pieces;
        }
#pragma unroll
        for (int u = 0; u < FLIGHT; u++) {
            if (i + u * step >= all) break;
#pragma unroll
            for (int n = 0; n < N; n++) s[u].at[n] = activated<KIND>(s[u].at[n] + b[u].at[n]);
            at[i + u * step] = s[u];
        }
    }
}

// scores = f(scores + bias), f being the activation KIND; outputs ≥ 1.
template <class T, int KIND>
__global__ void __launch_bounds__(MOST_THREADS, 1)
activate(T* __restrict__ scores, const T* __restrict__ bias, long long count, long long outputs) {
    if (is_aligned(scores) && is_aligned(bias) && outputs % PACKED<T> == 0)
        activate_pieces<T, PACKED<T>, KIND>(scores, bias, count, outputs);
    else
        activate_pieces<T, 1, KIND>(scores, bias, count, outputs);
}

// Largest and sum over `lanes` neighbouring lanes, a power of two: the same on each of them.
template <class T>
__device__ __forceinline__ T lanes_largest(T value, int lanes) {
    for (int offset = lanes / 2; offset > 0; offset /= 2) {
        T other = __shfl_xor_sync(ALL_LANES, value, offset);
        value = other > value ? other : value;
    }
    return value;
}

template <class T>
__device__ __forceinline__ T lanes_sum(T value, int lanes) {
    for (int offset = lanes / 2; offset > 0; offset /= 2) value += __shfl_xor_sync(ALL_LANES, value, offset);
    return value;
}

// Turn scores, without their biases, into the slopes of the weighted cross-entropy Σ weight·(log Σ_c exp(s_c) − s_y) by
// them. `lanes` lanes, a power of two with lanes·HELD ≥ classes, take a row. Each block leaves the sum of its rows'
// slopes in partials (blocks, classes) and of their losses in losses (blocks,). Dynamic shared memory: a T for each of
// lanes·HELD classes and each warp of the block.
template <class T>
__global__ void __launch_bounds__(MOST_THREADS, 1)
softmax_slopes(T* __restrict__ scores, const T* __restrict__ bias, const T* __restrict__ y,
               const T* __restrict__ weight, const long long* __restrict__ rows, long long count, long long classes,
               long long lanes_a_row, T* __restrict__ partials, double* __restrict__ losses) {
    DML_DYNAMIC_SHARED(raw);
    T* shared = reinterpret_cast<T*>(raw);
    __shared__ double scratch[WARP];
    int lanes = int(lanes_a_row), lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, warps = blockDim.x / WARP;
    int own = lane % lanes, rows_a_warp = WARP / lanes;
    T b[HELD], sums[HELD];
#pragma unroll
    for (int k = 0; k < HELD; k++) {
        sums[k] = T(0);
        b[k] = own + k * lanes < classes ? bias[own + k * lanes] : T(0);
    }
    double total = 0;
    long long step = (long long)gridDim.x * warps * rows_a_warp;
    for (long long first = ((long long)blockIdx.x * warps + warp) * rows_a_warp; first < count; first += step) {
        long long i = first + lane / lanes;  // the whole warp stays in the loop while one of its rows is there
        bool there = i < count;
        T* s = scores + i * classes;
        T e[HELD], largest = lowest<T>(), summed = T(0), met = T(0);
#pragma unroll
        for (int k = 0; k < HELD; k++) {
            e[k] = there && own + k * lanes < classes ? s[own + k * lanes] + b[k] : lowest<T>();
            largest = e[k] > largest ? e[k] : largest;
        }
        long long row = there ? (rows ? rows[i] : i) : 0;
        int label = there ? int(y[row]) : -1;
        T counts = there ? (weight ? weight[row] : T(1)) : T(0);
        largest = lanes_largest(largest, lanes);
#pragma unroll
        for (int k = 0; k < HELD; k++) {
            T below = e[k] - largest;  // NaN, which no comparison finds, comes in again here
            if (own + k * lanes == label) met = below;
            e[k] = own + k * lanes < classes ? exp(below) : T(0);
            summed += e[k];
        }
        summed = lanes_sum(summed, lanes);
        met = lanes_sum(met, lanes);
        if (there && own == 0) total += double((log(summed) - met) * counts);
        T share = counts / summed;
#pragma unroll
        for (int k = 0; k < HELD; k++) {
            if (!there || own + k * lanes >= classes) continue;
            T slope = e[k] * share - (own + k * lanes == label ? counts : T(0));
            s[own + k * lanes] = slope;
            sums[k] += slope;
        }
    }
#pragma unroll
    for (int k = 0; k < HELD; k++) {
        for (int offset = lanes; offset < WARP; offset *= 2) sums[k] += __shfl_xor_sync(ALL_LANES, sums[k], offset);
        if (lane < lanes) shared[warp * lanes * HELD + own + k * lanes] = sums[k];
    }
    __syncthreads();
    for (int c = threadIdx.x; c < classes; c += blockDim.x) {
        T sum = T(0);
        for (int w = 0; w < warps; w++) sum += shared[w * lanes * HELD + c];
        partials[blockIdx.x * classes + c] = sum;
    }
    total = block_sum(total, scratch);
    if (threadIdx.x == 0) losses[blockIdx.x] = total;
}

// The same for any number of classes, a warp a row, which stays in the cache; the slopes' sums are left to `through`.
template <class T>
__global__ void __launch_bounds__(MOST_THREADS, 1)
softmax_slopes_wide(T* __restrict__ scores, const T* __restrict__ bias, const T* __restrict__ y,
                    const T* __restrict__ weight, const long long* __restrict__ rows, long long count,
                    long long classes, double* __restrict__ losses) {
    __shared__ double scratch[WARP];
    int lane = threadIdx.x % WARP;
    double total = 0;
    for (long long i = warp_number(); i < count; i += warp_count()) {
        T* s = scores + i * classes;
        long long row = rows ? rows[i] : i, label = (long long)(y[row]);
        T counts = weight ? weight[row] : T(1), largest = lowest<T>(), summed = T(0), met = T(0);
#pragma unroll 8
        for (long long c = lane; c < classes; c += WARP) {
            T value = s[c] + bias[c];
            largest = value > largest ? value : largest;
        }
        largest = lanes_largest(largest, WARP);
#pragma unroll 4
        for (long long c = lane; c < classes; c += WARP) {
            T below = s[c] + bias[c] - largest, e = exp(below);
            if (c == label) met = below;
            s[c] = e;
            summed += e;
        }
        summed = warp_sum(summed);
        met = warp_sum(met);
        if (lane == 0) total += double((log(summed) - met) * counts);
        T share = counts / summed;
#pragma unroll 8
        for (long long c = lane; c < classes; c += WARP) s[c] = s[c] * share - (c == label ? counts : T(0));
    }
    total = block_sum(total, scratch);
    if (threadIdx.x == 0) losses[blockIdx.x] = total;
}

// Turn scores (count, 1), without their bias, into the slopes of Σ weight·½(s − y)²; partials and losses are (blocks,).
template <class T>
__global__ void __launch_bounds__(MOST_THREADS, 1)
squared_slopes(T* __restrict__ scores, const T* __restrict__ bias, const T* __restrict__ y,
               const T* __restrict__ weight, const long long* __restrict__ rows, long long count,
               T* __restrict__ partials, double* __restrict__ losses) {
    __shared__ double scratch[WARP];
    double total = 0, summed = 0;
    T b = bias[0];
    for (long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x; i < count;
         i += (long long)gridDim.x * blockDim.x) {
        long long row = rows ? rows[i] : i;
        T residual = scores[i] + b - y[row], slope = weight ? residual * weight[row] : residual;
        total += double(residual) * double(slope) / 2;
        summed += double(slope);
        scores[i] = slope;
    }
    total = block_sum(total, scratch);
    summed = block_sum(summed, scratch);
    if (threadIdx.x == 0) losses[blockIdx.x] = total, partials[blockIdx.x] = T(summed);
}

template <class T, int N, int KIND>
__device__ __forceinline__ void through_pieces(T* __restrict__ slopes, const T* __restrict__ activations,
                                               long long count, long long outputs, int across,
                                               T* __restrict__ partials, T* shared) {
    long long pieces = outputs / N;
    int column = threadIdx.x % across, line = threadIdx.x / across, lines = blockDim.x / across;
    long long step = (long long)gridDim.y * lines;
    auto s = reinterpret_cast<Pack<T, N>*>(slopes);
    auto a = reinterpret_cast<const Pack<T, N>*>(activations);
    for (long long first = (long long)blockIdx.x * across; first < pieces; first += (long long)gridDim.x * across) {
        long long piece = first + column;
        Pack<T, N> sums{};
        for (long long i = piece < pieces ? (long long)blockIdx.y * lines + line : count; i < count;
             i += FLIGHT * step) {
            Pack<T, N> slope[FLIGHT], value[FLIGHT];
#pragma unroll
            for (int u = 0; u < FLIGHT; u++) {
                if (i + u * step >= count) break;
                slope[u] = s[(i + u * step) * pieces + piece];
                if constexpr (KIND != PLAIN) value[u] = a[(i + u * step) * pieces + piece];
            }
#pragma unroll
            for (int u = 0; u < FLIGHT; u++) {
                if (i + u * step >= count) break;
#pragma unroll
                for (int n = 0; n < N; n++) {
                    T& one = slope[u].at[n];
                    if constexpr (KIND == RELU) one = value[u].at[n] > T(0) ? one : T(0);
                    if constexpr (KIND == TANH) one *= T(1) - value[u].at[n] * value[u].at[n];
                    sums.at[n] += one;
                }
                if constexpr (KIND != PLAIN) s[(i + u * step) * pieces + piece] = slope[u];
            }
        }
#pragma unroll
        for (int n = 0; n < N; n++) shared[(line * across + column) * N + n] = sums.at[n];
        __syncthreads();
        for (int c = threadIdx.x; c < across * N && first * N + c < outputs; c += blockDim.x) {
            T sum = T(0);
            for (int l = 0; l < lines; l++) sum += shared[l * across * N + c];
            partials[blockIdx.y * outputs + first * N + c] = sum;
        }
        __syncthreads();
    }
}

// slopes by the outputs of the activation KIND → those by its inputs, in place, and their sums by column, of each
// blockIdx.y by itself, in partials (gridDim.y, outputs). PLAIN: the sums alone, and `activations` is not read.
// `across`, a power of two that divides the block, is how many threads stand side by side.
template <class T, int KIND>
__global__ void __launch_bounds__(MOST_THREADS, 1)
through(T* __restrict__ slopes, const T* __restrict__ activations, long long count, long long outputs,
        long long across, T* __restrict__ partials) {
    __shared__ __align__(16) unsigned char raw[MOST_THREADS * 16];
    T* shared = reinterpret_cast<T*>(raw);
    if (is_aligned(slopes) && is_aligned(activations) && outputs % PACKED<T> == 0)
        through_pieces<T, PACKED<T>, KIND>(slopes, activations, count, outputs, int(across), partials, shared);
    else
        through_pieces<T, 1, KIND>(slopes, activations, count, outputs, int(across), partials, shared);
}

// sums (columns,) += Σ_b partials (blocks, columns), loss (1,) += Σ_b losses (blocks,), of which either may be null.
// The last block takes the loss, the others 32 columns each.
template <class T>
__global__ void __launch_bounds__(MOST_THREADS, 1)
add_partials(const T* __restrict__ partials, const double* __restrict__ losses, long long blocks, long long columns,
             T* __restrict__ sums, double* __restrict__ loss) {
    __shared__ double scratch[WARP];
    __shared__ double shared[32][WARP + 1];
    if (blockIdx.x + 1 == gridDim.x) {
        double total = 0;
        if (losses)
            for (long long b = threadIdx.x; b < blocks; b += blockDim.x) total += losses[b];
        total = block_sum(total, scratch);
        if (losses && threadIdx.x == 0) loss[0] += total;
        return;
    }
    int lane = threadIdx.x % WARP, line = threadIdx.x / WARP, lines = blockDim.x / WARP;
    long long column = (long long)blockIdx.x * WARP + lane;
    double sum = 0;
    if (column < columns) {
#pragma unroll 8
        for (long long b = line; b < blocks; b += lines) sum += double(partials[b * columns + column]);
    }
    shared[line][lane] = sum;
    __syncthreads();
    if (line > 0 || column >= columns) return;
    for (int l = 1; l < lines; l++) sum += shared[l][lane];
    sums[column] += T(sum);
}

// out (count, outputs) = x·W of the sparse rows, W being the block without its last row. Row r has data[k] at column
// indices[k] for indptr[r] ≤ k < indptr[r + 1]. `lanes` lanes, a power of two, stand side by side, WIDE outputs each;
// blockIdx.y says which outputs. Where they are fewer than a warp, the warp takes several entries at once. A row's
// sum depends on nothing but the row, W and `lanes`.
template <class S, class T, class I, int WIDE>
__global__ void __launch_bounds__(MOST_THREADS, 1)
sparse_products(const S* __restrict__ data, const I* __restrict__ indices, const long long* __restrict__ indptr,
                const long long* __restrict__ rows, long long count, const T* __restrict__ block, long long outputs,
                long long lanes_across, T* __restrict__ out) {
    int lanes = int(lanes_across), lane = threadIdx.x % WARP, together = WARP / lanes;
    long long first = (long long)blockIdx.y * lanes * WIDE + lane % lanes;
    for (long long i = warp_number(); i < count; i += warp_count()) {
        long long row = rows ? rows[i] : i, start = indptr[row], stop = indptr[row + 1];
        T sums[WIDE] = {};
        for (long long from = start; from < stop; from += WARP) {
            // A lane reads an entry, and hands it to those who multiply by it.
            T value = from + lane < stop ? converted<T>(data[from + lane]) : T(0);
            long long place = from + lane < stop ? (long long)indices[from + lane] * outputs : 0;
            int entries = stop - from < WARP ? int(stop - from) : WARP;
#pragma unroll 4
            for (int k = 0; k < entries; k += together) {
                int mine = k + lane / lanes;
                T x = __shfl_sync(ALL_LANES, value, mine);
                long long at = __shfl_sync(ALL_LANES, place, mine);
#pragma unroll
                for (int w = 0; w < WIDE; w++)
                    if (mine < entries && first + w * lanes < outputs) sums[w] += x * block[at + first + w * lanes];
            }
        }
#pragma unroll
        for (int w = 0; w < WIDE; w++) {
            for (int offset = lanes; offset < WARP; offset *= 2) sums[w] += __shfl_xor_sync(ALL_LANES, sums[w], offset);
            if (lane < lanes && first + w * lanes < outputs) out[i * outputs + first + w * lanes] = sums[w];
        }
    }
}

// gradient (features + 1, outputs) += Σ xᵀ·slopes of the sparse rows, all but its last row. By atomics, so in no
// particular order. `lanes` as in sparse_products.
template <class S, class T, class I>
__global__ void __launch_bounds__(MOST_THREADS, 1)
scatter_slopes(const S* __restrict__ data, const I* __restrict__ indices, const long long* __restrict__ indptr,
               const long long* __restrict__ rows, long long count, const T* __restrict__ slopes, long long outputs,
               long long lanes_across, T* __restrict__ gradient) {
    int lanes = int(lanes_across), lane = threadIdx.x % WARP, together = WARP / lanes;
    long long first = (long long)blockIdx.y * lanes + lane % lanes;
    if (first >= outputs) return;
    for (long long i = warp_number(); i < count; i += warp_count()) {
        long long row = rows ? rows[i] : i, stop = indptr[row + 1];
        T slope = slopes[i * outputs + first];
        if (slope == T(0)) continue;  // which many are behind relu
#pragma unroll 4
        for (long long k = indptr[row] + lane / lanes; k < stop; k += together)
            atomicAdd(gradient + (long long)indices[k] * outputs + first, converted<T>(data[k]) * slope);
    }
}

}  // namespace dml
