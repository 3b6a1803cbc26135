// Blocks of dense rows on their way into a product, and products on their way into a sum: see blocks.py, their twin.
//
// Rows are row-major and contiguous, (rows, columns). A thread keeps to one pack of neighbouring columns, so that what
// belongs to the columns stays in its registers, and goes down the rows; neighbouring threads read neighbouring packs.
// Sums are taken in an order that depends on the grid alone: a block's in shared memory, then `add_parts` over blocks.
#include "packs.cuh"

namespace dml {

// What is taken off N neighbouring columns, and what they are multiplied by then; null pointers: 0 and 1.
template <int N>
struct Standard {
    double shift[N], inverse[N];

    __device__ __forceinline__ Standard(const double* shifts, const double* inverses, long long column) {
#pragma unroll
        for (int i = 0; i < N; ++i) {
            shift[i] = shifts ? shifts[column + i] : 0.0;
            inverse[i] = inverses ? inverses[column + i] : 1.0;
        }
    }

    template <class X>
    __device__ __forceinline__ double of(X x, int i) const {
        return (converted<double>(x) - shift[i]) * inverse[i];
    }
};

// out = (x − shift)·inverse, computed in float64. blockIdx.y strides over rows, blockIdx.x over packs of N columns.
template <class X, class F, int N>
__global__ void __launch_bounds__(256) prepared(const X* __restrict__ x, const double* __restrict__ shift,
                                                const double* __restrict__ inverse, F* __restrict__ out,
                                                long long rows, long long columns, long long across) {
    const int wide = int(across), down = blockDim.x / wide;
    const long long pack = blockIdx.x * across + threadIdx.x % wide;
    if (threadIdx.x >= wide * down || pack * N >= columns) return;
    const Standard<N> standard(shift, inverse, pack * N);
#pragma unroll 2
    for (long long row = blockIdx.y * (long long)down + threadIdx.x / wide; row < rows; row += gridDim.y * down) {
        const long long place = row * columns + pack * N;
        const Pack<X, N> given = load<N>(x + place);
        Pack<F, N> made;
#pragma unroll
        for (int i = 0; i < N; ++i) made.at[i] = F(standard.of(given.at[i], i));
        store<N>(out + place, made);
    }
}

// parts[c·gridDim.x + b] = Σ ((x − shift)·inverse)² over block b's share of the rows of chunk c = blockIdx.y, in
// float64; chunk c has rows c·chunk_rows … of the array.
template <class X, int N>
__global__ void __launch_bounds__(256) sum_of_squares(const X* __restrict__ x, const double* __restrict__ shift,
                                                      const double* __restrict__ inverse, double* __restrict__ parts,
                                                      long long rows, long long columns, long long chunk_rows,
                                                      long long across) {
    __shared__ double scratch[WARP];
    const int wide = int(across), down = blockDim.x / wide;
    const long long first = blockIdx.y * chunk_rows;
    const long long last = first + chunk_rows < rows ? first + chunk_rows : rows;
    double total = 0;
    if (threadIdx.x < wide * down)
        for (long long pack = threadIdx.x % wide; pack * N < columns; pack += wide) {
            const Standard<N> standard(shift, inverse, pack * N);
#pragma unroll 2
            for (long long row = first + blockIdx.x * (long long)down + threadIdx.x / wide; row < last;
                 row += gridDim.x * down) {
                const Pack<X, N> given = load<N>(x + row * columns + pack * N);
#pragma unroll
                for (int i = 0; i < N; ++i) {
                    const double value = standard.of(given.at[i], i);
                    total += value * value;
                }
            }
        }
    total = block_sum(total, scratch);
    if (threadIdx.x == 0) parts[blockIdx.y * gridDim.x + blockIdx.x] = total;
}

// out[i] += Σ parts[i·count …], in a fixed order; a block an i.
__global__ void __launch_bounds__(256) add_parts(const double* __restrict__ parts, long long count,
                                                 double* __restrict__ out) {
    __shared__ double scratch[WARP];
    double total = 0;
    for (long long i = threadIdx.x; i < count; i += blockDim.x) total += parts[blockIdx.x * count + i];
    total = block_sum(total, scratch);
    if (threadIdx.x == 0) out[blockIdx.x] += total;
}

// out[i] += part[i]·per_unit, rounded to the nearest whole number (halves to even).
template <class F>
__global__ void __launch_bounds__(256) add_fixed(const F* __restrict__ part, double per_unit,
                                                 long long* __restrict__ out, long long count) {
    for (long long i = blockIdx.x * (long long)blockDim.x + threadIdx.x; i < count;
         i += gridDim.x * (long long)blockDim.x)
        out[i] += (long long)rint(double(part[i]) * per_unit);
}

}  // namespace dml
