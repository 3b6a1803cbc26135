// Products of sparse rows X with matrices of a few columns: X·V, Xᵀ·Y, and both at one reading; and rows with their
// zeros, for products with themselves: see csr_products.py.
//
// A warp takes a row at a time. `lanes` neighbouring lanes, a power of two, hold the columns of one entry's row of V or
// Z, N each (16 bytes), so that a warp reads several entries' rows at once and adds them up by shuffles, in an order
// that is always the same. Y has its bits on any grid. Xᵀ·Y is added to Z by atomics, in any order: in its last bits it
// differs from run to run.
//
// Where there are rows of more than VERY_LONG entries, warps take parts of them, of PART entries, as if they were rows:
// first for the parts' products, which the rows' warps then only add up, and behind that for what the parts add to Z.
#include "long_rows.cuh"
#include "packs.cuh"

namespace dml {

constexpr long long PART = 2048;  // also in cuda/csr_products.py

// Add a pack to N neighbouring elements.
template <int N, class F>
__device__ __forceinline__ void add_atomically(F* to, const Pack<F, N>& pack) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    if constexpr (same<F, float> && N == 4) {  // one request instead of four
        asm volatile("red.global.add.v4.f32 [%0], {%1, %2, %3, %4};" ::"l"(__cvta_generic_to_global(to)),
                     "f"(pack.at[0]), "f"(pack.at[1]), "f"(pack.at[2]), "f"(pack.at[3]) : "memory");
    } else
#endif
    {
#pragma unroll
        for (int i = 0; i < N; ++i) atomicAdd(to + i, pack.at[i]);
    }
}

// Y = X·V − 1·correctionᵀ, unless V is null, then Z += Xᵀ·Y, unless Z is null; correction may be null, too.
// V and Z (features, columns), Y (rows, columns), columns a multiple of N.
//
// CUT: some rows are very long. With `parts` null, for all rows; Y of those is the sum of their parts' products, which
// are in `products` (·, columns) from line where[row] on, and nothing of theirs is added to Z. Else for the parts in
// the list (`used`, at most `rows` of them) as if they were rows; with V, Y has a line for each part, else one for each
// row.
template <class T, class I, class F, int N, bool CUT>
__global__ void __launch_bounds__(256, 1) sweep(const T* __restrict__ data, const I* __restrict__ indices,
                                             const long long* __restrict__ indptr, const F* __restrict__ V,
                                             const F* __restrict__ correction, F* Y, F* Z, long long rows,
                                             long long columns, long long lanes, const RowPart* __restrict__ parts,
                                             const unsigned long long* __restrict__ used,
                                             const long long* __restrict__ where, const F* __restrict__ products) {
    const int lane = threadIdx.x % WARP, group = int(lanes), turn = lane / group, turns = WARP / group;
    const long long warps = gridDim.x * (long long)(blockDim.x / WARP);
    if constexpr (!CUT) parts = nullptr, where = nullptr;
    const long long count = parts && *used < (unsigned long long)rows ? (long long)*used : rows;
    for (long long item = blockIdx.x * (long long)(blockDim.x / WARP) + threadIdx.x / WARP; item < count;
         item += warps) {
        const long long row = parts ? parts[item].row : item, line = V ? item : row;
        if (row < 0) continue;
        const long long start = indptr[row] + (parts ? parts[item].number * PART : 0), end = indptr[row + 1];
        const long long stop = parts && end - start > PART ? start + PART : end;
        const int first = where && stop - start > VERY_LONG ? int(where[row]) : -1;
        for (long long tile = 0; tile < columns; tile += group * N) {
            const long long column = tile + lane % group * N;
            const bool has = column < columns;
            Pack<F, N> y;
#pragma unroll
            for (int i = 0; i < N; ++i) y.at[i] = F(0);
            if (V) {
                if (has && first >= 0) {
#pragma unroll 8
                    for (long long p = turn; p < parts_of(stop - start, PART); p += turns) {
                        const Pack<F, N> part = load<N>(products + (first + p) * columns + column);
#pragma unroll
                        for (int i = 0; i < N; ++i) y.at[i] += part.at[i];
                    }
                } else if (has) {
#pragma unroll 4
                    for (long long k = start + turn; k < stop; k += turns) {
                        const F x = converted<F>(data[k]);
                        const Pack<F, N> v = load<N>(V + (long long)indices[k] * columns + column);
#pragma unroll
                        for (int i = 0; i < N; ++i) y.at[i] += x * v.at[i];
                    }
                }
                for (int offset = group; offset < WARP; offset *= 2)
#pragma unroll
                    for (int i = 0; i < N; ++i) y.at[i] += __shfl_xor_sync(ALL_LANES, y.at[i], offset);
                if (has) {
#pragma unroll
                    for (int i = 0; i < N; ++i) y.at[i] -= correction ? correction[column + i] : F(0);
                    if (turn == 0) store<N>(Y + line * columns + column, y);
                }
            } else if (has) {
                y = load<N>(Y + line * columns + column);
            }
            if (!Z || !has || first >= 0) continue;
#pragma unroll 4
            for (long long k = start + turn; k < stop; k += turns) {
                const F x = converted<F>(data[k]);
                Pack<F, N> z;
#pragma unroll
                for (int i = 0; i < N; ++i) z.at[i] = x * y.at[i];
                add_atomically<N>(Z + (long long)indices[k] * columns + column, z);
            }
        }
    }
}

// out = (X − shift)·inverse with its zeros, (rows, features), computed in float64; null pointers: 0 and 1. A block
// takes a row at a time.
template <class T, class I, class F>
__global__ void __launch_bounds__(256) dense(const T* __restrict__ data, const I* __restrict__ indices,
                                             const long long* __restrict__ indptr, const double* __restrict__ shift,
                                             const double* __restrict__ inverse, F* out, long long rows,
                                             long long features) {
    auto standard = [shift, inverse](double x, long long column) {
        return F((x - (shift ? shift[column] : 0.0)) * (inverse ? inverse[column] : 1.0));
    };
    for (long long row = blockIdx.x; row < rows; row += gridDim.x) {
        F* const line = out + row * features;
        for (long long column = threadIdx.x; column < features; column += blockDim.x)
            line[column] = standard(0, column);
        __syncthreads();
        for (long long k = indptr[row] + threadIdx.x; k < indptr[row + 1]; k += blockDim.x)
            line[indices[k]] = standard(double(data[k]), indices[k]);
    }
}

}  // namespace dml
