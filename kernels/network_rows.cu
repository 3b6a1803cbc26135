// A network's gradient in fixed point; the twin of network_rows.py.
//
// Every row goes through the layers by itself: each number that is made of it is a sum in an order that the widths of
// the layers alone decide, whatever the grid and whichever rows are beside it. What is summed over rows is whole
// numbers, whose sums have no order. So the bits of the result depend on the rows and the parameters alone.
//
// Rows are taken many at a time, as matrices (count, width), one for each layer's values and one for its slopes:
//
//   row_products          A·W + biases → f, or slopes·Wᵀ times f'   tiles of 32 × 32, sums from their first term on
//   row_losses            slopes and loss of each row's scores      a warp takes a row
//   row_squares, sparse_row_squares   ‖z‖² of each row              a warp takes a row
//   row_masses            adds a layer's ‖slopes‖²·max(‖inputs‖², 1) to each row's total      a warp takes a row
//   row_decisions         which rows can be added; adds their losses and masses               a thread takes a row
//   fixed_products        Σ_rows int(inputs·slopes)                 tiles of 32 × 32, some rows each; integer atomics
//   sparse_fixed_products the same of sparse inputs                 a warp takes a row; integer atomics
//
// For sparse rows the first layer's product is sparse_products of network.cu, whose sums have a fixed order too.
#include "common.cuh"

namespace dml {

constexpr int MOST_THREADS = 256;  // and the 1 beside it: no register is spilled to have more blocks side by side
constexpr int RELU = 1, TANH = 2;
constexpr int TILE = 32, OWN = 4;                      // a block's tile, and a thread's part of it, OWN × OWN
constexpr int APART = TILE / OWN, TILE_THREADS = APART * APART;
constexpr int DEPTH = 16;                              // how much of a sum a tile takes at once
constexpr double TOO_MUCH = 1073741824.0;              // 2^30
constexpr double TWO_32 = 4294967296.0;

// Explicit: a compiler that fuses a product and a sum here and not there would make bits depend on a row's place.
__device__ __forceinline__ float multiply_add(float a, float b, float c) { return fmaf(a, b, c); }
__device__ __forceinline__ double multiply_add(double a, double b, double c) { return fma(a, b, c); }

// Warps take rows in turn: a warp's first row, and how far on its next one is.
__device__ __forceinline__ long long warp_number() {
    return ((long long)blockIdx.x * blockDim.x + threadIdx.x) / WARP;
}

__device__ __forceinline__ long long warp_count() { return (long long)gridDim.x * blockDim.x / WARP; }

__device__ __forceinline__ void add_whole(long long* to, long long value) {
    if (value) atomicAdd(reinterpret_cast<unsigned long long*>(to), (unsigned long long)value);
}

// out (count, columns) = A (count, inner)·B, where B is W (inner, columns) or, BACKWARD, W (columns, inner) transposed.
// Row i of A is row rows[i], or i where rows is null. Forward, the biases are added and `activation` is applied to the
// sum; backward, it is multiplied by the activation's slope where its output was activations (count, columns).
template <class S, class T, bool BACKWARD>
__global__ void __launch_bounds__(TILE_THREADS)
row_products(const S* __restrict__ A, const long long* __restrict__ rows, long long count, long long inner,
             const T* __restrict__ W, const T* __restrict__ biases, const T* __restrict__ activations,
             long long columns, long long activation, T* out) {
    __shared__ T a[DEPTH][TILE + 1], b[DEPTH][TILE + 1];  // odd rows: what is written down a column meets all banks
    long long first_column = (long long)blockIdx.y * TILE;
    int x = threadIdx.x % APART, y = threadIdx.x / APART;
    for (long long first_row = (long long)blockIdx.x * TILE; first_row < count;
         first_row += (long long)gridDim.x * TILE) {
        T sums[OWN][OWN] = {};
        for (long long from = 0; from < inner; from += DEPTH) {
#pragma unroll
            for (int e = threadIdx.x; e < TILE * DEPTH; e += TILE_THREADS) {
                int k = e % DEPTH, i = e / DEPTH;
                bool there = first_row + i < count && from + k < inner;
                long long row = there ? (rows ? rows[first_row + i] : first_row + i) : 0;
                a[k][i] = there ? converted<T>(A[row * inner + from + k]) : T(0);
            }
#pragma unroll
            for (int e = threadIdx.x; e < TILE * DEPTH; e += TILE_THREADS) {
                int k = BACKWARD ? e % DEPTH : e / TILE, c = BACKWARD ? e / DEPTH : e % TILE;
                bool there = first_column + c < columns && from + k < inner;
                long long line = BACKWARD ? first_column + c : from + k, place = BACKWARD ? from + k : first_column + c;
                b[k][c] = there ? W[line * (BACKWARD ? inner : columns) + place] : T(0);
            }
            __syncthreads();
#pragma unroll
            for (int k = 0; k < DEPTH; k++) {
                T left[OWN], right[OWN];
#pragma unroll
                for (int u = 0; u < OWN; u++) left[u] = a[k][y + u * APART], right[u] = b[k][x + u * APART];
#pragma unroll
                for (int u = 0; u < OWN; u++)
#pragma unroll
                    for (int v = 0; v < OWN; v++) sums[u][v] = multiply_add(left[u], right[v], sums[u][v]);
            }
            __syncthreads();
        }
#pragma unroll
        for (int u = 0; u < OWN; u++)
#pragma unroll
            for (int v = 0; v < OWN; v++) {
                long long i = first_row + y + u * APART, c = first_column + x + v * APART;
                if (i >= count || c >= columns) continue;
                out[i * columns + c] = BACKWARD ? sums[u][v] : sums[u][v] + biases[c];
            }
        // One copy of these instructions for all of a thread's elements, so that each is treated alike.
#pragma unroll 1
        for (int e = 0; e < OWN * OWN; e++) {
            long long i = first_row + y + e / OWN * APART, c = first_column + x + e % OWN * APART;
            if (i >= count || c >= columns) continue;
            T s = out[i * columns + c];
            if constexpr (BACKWARD) {
                T f = activations[i * columns + c];
                s = activation == TANH ? s * multiply_add(-f, f, T(1)) : f > T(0) ? s : T(0);
            } else {
                if (activation == TANH) s = tanh(s);
                if (activation == RELU) s = s < T(0) ? T(0) : s;
            }
            out[i * columns + c] = s;
        }
    }
}

// Turn each row's scores (count, outputs), biases added, into slopes, and write its weighted loss to losses (count,):
// ½(s − y)² of one output, the cross-entropy of several.
template <class T>
__global__ void __launch_bounds__(MOST_THREADS, 1)
row_losses(T* __restrict__ scores, const T* __restrict__ y, const T* __restrict__ weight,
           const long long* __restrict__ rows, long long count, long long outputs, double* __restrict__ losses) {
    int lane = threadIdx.x % WARP;
    for (long long i = warp_number(); i < count; i += warp_count()) {
        long long row = rows ? rows[i] : i;
        T* s = scores + i * outputs;
        T counts = weight ? weight[row] : T(1);
        if (outputs == 1) {
            if (lane == 0) {
                T residual = s[0] - y[row];
                s[0] = residual * counts;
                losses[i] = double(residual) * double(residual) * 0.5 * double(counts);
            }
            continue;
        }
        long long label = (long long)(y[row]);
        T largest = s[0], summed = T(0), met = T(0);
        for (long long c = lane; c < outputs; c += WARP) largest = s[c] > largest ? s[c] : largest;
        for (int offset = WARP / 2; offset > 0; offset /= 2) {
            T other = __shfl_xor_sync(ALL_LANES, largest, offset);
            largest = other > largest ? other : largest;
        }
        for (long long c = lane; c < outputs; c += WARP) {
            T below = s[c] - largest, e = exp(below);
            if (c == label) met = below;
            s[c] = e;
            summed += e;
        }
        summed = warp_sum(summed);
        met = warp_sum(met);
        for (long long c = lane; c < outputs; c += WARP) s[c] = s[c] / summed * counts - (c == label ? counts : T(0));
        if (lane == 0) losses[i] = (log(double(summed)) - double(met)) * double(counts);
    }
}

// squares (count,) = ‖z‖² of the rows of X, z_j = (x_j − shift_j)·scale_j.
template <class S, class T>
__global__ void __launch_bounds__(MOST_THREADS, 1)
row_squares(const S* __restrict__ X, const long long* __restrict__ rows, long long count, long long features,
            const T* __restrict__ shift, const T* __restrict__ scale, double* __restrict__ squares) {
    int lane = threadIdx.x % WARP;
    for (long long i = warp_number(); i < count; i += warp_count()) {
        const S* x = X + (rows ? rows[i] : i) * features;
        double sum = 0;
#pragma unroll 4
        for (long long j = lane; j < features; j += WARP) {
            double z = double((converted<T>(x[j]) - shift[j]) * scale[j]);
            sum = multiply_add(z, z, sum);
        }
        sum = warp_sum(sum);
        if (lane == 0) squares[i] = sum;
    }
}

// The same of sparse rows, which are not shifted.
template <class S, class T, class I>
__global__ void __launch_bounds__(MOST_THREADS, 1)
sparse_row_squares(const S* __restrict__ data, const I* __restrict__ indices, const long long* __restrict__ indptr,
                   const long long* __restrict__ rows, long long count, const T* __restrict__ scale,
                   double* __restrict__ squares) {
    int lane = threadIdx.x % WARP;
    for (long long i = warp_number(); i < count; i += warp_count()) {
        long long row = rows ? rows[i] : i, stop = indptr[row + 1];
        double sum = 0;
        for (long long k = indptr[row] + lane; k < stop; k += WARP) {
            double z = double(converted<T>(data[k]) * scale[indices[k]]);
            sum = multiply_add(z, z, sum);
        }
        sum = warp_sum(sum);
        if (lane == 0) squares[i] = sum;
    }
}

// totals (count,) += ‖slopes‖²·max(squares, 1), and squares (count,) = ‖values‖², which go into the next layer; of
// slopes and values (count, outputs). `first`: totals are set.
template <class T>
__global__ void __launch_bounds__(MOST_THREADS, 1)
row_masses(const T* __restrict__ slopes, const T* __restrict__ values, long long count, long long outputs, bool first,
           double* __restrict__ squares, double* __restrict__ totals) {
    int lane = threadIdx.x % WARP;
    for (long long i = warp_number(); i < count; i += warp_count()) {
        double of_slopes = 0, of_values = 0;
        for (long long o = lane; o < outputs; o += WARP) {
            double slope = double(slopes[i * outputs + o]), value = double(values[i * outputs + o]);
            of_slopes = multiply_add(slope, slope, of_slopes);
            of_values = multiply_add(value, value, of_values);
        }
        of_slopes = warp_sum(of_slopes);
        of_values = warp_sum(of_values);
        if (lane > 0) continue;
        double before = squares[i] > 1.0 ? squares[i] : 1.0;
        // max(NaN, 1) may be either: slopes are NaN too where the inputs are, as every score is made of all of them.
        double mass = of_slopes * (squares[i] == squares[i] ? before : squares[i]);
        totals[i] = first ? mass : totals[i] + mass;
        squares[i] = of_values;
    }
}

// Add each row's loss and masses to the last three of `out` (size + 3,), and say in kept (count,) whether its gradient
// may be added too; see network_rows.py. `totals` are the squares of the masses.
template <class T>
__global__ void __launch_bounds__(MOST_THREADS, 1)
row_decisions(const double* __restrict__ totals, const double* __restrict__ losses, long long count, long long size,
              double per_unit, double per_loss_unit, int* __restrict__ kept, long long* __restrict__ out) {
    __shared__ long long scratch[WARP];
    long long sums[3] = {0, 0, 0};
    for (long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x; i < count;
         i += (long long)gridDim.x * blockDim.x) {
        double mass = sqrt(totals[i]) * (per_unit / TWO_32), loss_mass = losses[i] * (per_loss_unit / TWO_32);
        bool fits = mass < TOO_MUCH, loss_fits = loss_mass < TOO_MUCH;
        kept[i] = fits && loss_fits;
        if (fits && loss_fits) {
            sums[0] += (long long)(losses[i] * per_loss_unit);
            sums[1] += 1 + (long long)mass;
            sums[2] += 1 + (long long)loss_mass;
        } else {
            sums[1] += fits ? 1 : (long long)TOO_MUCH;
            sums[2] += loss_fits ? 1 : (long long)TOO_MUCH;
        }
    }
#pragma unroll
    for (int s = 0; s < 3; s++) {
        long long sum = block_sum(sums[s], scratch);
        if (threadIdx.x == 0) add_whole(out + size + s, sum);
    }
}

// out (width + 1, outputs) += Σ_i int(z_ij·step_io) over the rows that are kept, step = slopes·per_unit. z are rows of
// A, standardised unless `scale` is null, and, last, scale[width], or 1. Rows are dealt to gridDim.z.
template <class S, class T>
__global__ void __launch_bounds__(TILE_THREADS)
fixed_products(const S* __restrict__ A, const long long* __restrict__ rows, long long count, long long width,
               const T* __restrict__ shift, const T* __restrict__ scale, const T* __restrict__ slopes,
               long long outputs, double per_unit, const int* __restrict__ kept, long long* __restrict__ out) {
    __shared__ T z[DEPTH][TILE + 1], step[DEPTH][TILE + 1];
    long long first_output = (long long)blockIdx.y * TILE;
    int x = threadIdx.x % APART, y = threadIdx.x / APART;
    for (long long first_input = (long long)blockIdx.x * TILE; first_input <= width;
         first_input += (long long)gridDim.x * TILE) {
        long long sums[OWN][OWN] = {};
        for (long long from = (long long)blockIdx.z * DEPTH; from < count; from += (long long)gridDim.z * DEPTH) {
#pragma unroll
            for (int e = threadIdx.x; e < TILE * DEPTH; e += TILE_THREADS) {
                int k = e / TILE, c = e % TILE;
                long long i = from + k, j = first_input + c, o = first_output + c;
                bool there = i < count && kept[i];  // what is not kept may be NaN, which is no whole number
                T element = T(0);
                if (there && j < width) {
                    element = converted<T>(A[(rows ? rows[i] : i) * width + j]);
                    if (scale) element = (element - shift[j]) * scale[j];
                } else if (there && j == width) {
                    element = scale ? scale[width] : T(1);
                }
                z[k][c] = element;
                step[k][c] = there && o < outputs ? T(double(slopes[i * outputs + o]) * per_unit) : T(0);
            }
            __syncthreads();
#pragma unroll 4
            for (int k = 0; k < DEPTH; k++) {
                T left[OWN], right[OWN];
#pragma unroll
                for (int u = 0; u < OWN; u++) left[u] = z[k][y + u * APART], right[u] = step[k][x + u * APART];
#pragma unroll
                for (int u = 0; u < OWN; u++)
#pragma unroll
                    for (int v = 0; v < OWN; v++) sums[u][v] += (long long)(left[u] * right[v]);
            }
            __syncthreads();
        }
#pragma unroll
        for (int u = 0; u < OWN; u++)
#pragma unroll
            for (int v = 0; v < OWN; v++) {
                long long j = first_input + y + u * APART, o = first_output + x + v * APART;
                if (j <= width && o < outputs) add_whole(out + j * outputs + o, sums[u][v]);
            }
    }
}

// out (features, outputs) += Σ int(z_j·step_o) of the sparse rows that are kept, z_j = x_j·scale_j. `lanes` lanes, a
// power of two, stand side by side, an output each; blockIdx.y says which.
template <class S, class T, class I>
__global__ void __launch_bounds__(MOST_THREADS, 1)
sparse_fixed_products(const S* __restrict__ data, const I* __restrict__ indices, const long long* __restrict__ indptr,
                      const long long* __restrict__ rows, long long count, const T* __restrict__ scale,
                      const T* __restrict__ slopes, long long outputs, long long lanes, double per_unit,
                      const int* __restrict__ kept, long long* __restrict__ out) {
    int lane = threadIdx.x % WARP, across = int(lanes);
    long long o = (long long)blockIdx.y * across + lane % across;
    if (o >= outputs) return;
    for (long long i = warp_number(); i < count; i += warp_count()) {
        if (!kept[i]) continue;
        long long row = rows ? rows[i] : i, stop = indptr[row + 1];
        T step = T(double(slopes[i * outputs + o]) * per_unit);
        if (step == T(0)) continue;
#pragma unroll 4
        for (long long k = indptr[row] + lane / across; k < stop; k += WARP / across) {
            long long j = (long long)indices[k];
            add_whole(out + j * outputs + o, (long long)(converted<T>(data[k]) * scale[j] * step));
        }
    }
}

}  // namespace dml
