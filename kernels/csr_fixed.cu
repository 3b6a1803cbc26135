// Products of sparse rows in fixed point, whose bits depend on no order: see cuda/csr_fixed.py.
//
// A warp takes some entries at a time, whatever the rows they are in, so that a row with most of them costs no more than
// others. Neighbouring lanes take neighbouring columns of Y, so that what they add goes to neighbouring addresses in one
// request. Whole numbers are added by atomics: their sum is the same in any order, and a product, taken in float64, is
// rounded once, so that neither the grid nor the rows beside it show in a bit.
#include "common.cuh"

namespace dml {

constexpr int ENTRIES_AT_ONCE = 256;  // by a warp; also in cuda/csr_fixed.py

// The row that entry k of X is in: the last that begins at it or before.
__device__ __forceinline__ long long row_of(const long long* __restrict__ indptr, long long rows, long long k) {
    long long low = 0, high = rows;  // indptr[low] ≤ k < indptr[high]
    while (high - low > 1) {
        const long long middle = (low + high) / 2;
        if (indptr[middle] <= k) low = middle;
        else high = middle;
    }
    return low;
}

// sums += Xᵀ·Y with element (i, j) counted in units: each entry adds x·y·per_unit·worth[i], rounded to the nearest whole
// number (halves to even); worth may be null: ones. Y (rows, columns), sums (features, columns). `lanes`, a power of
// two, share an entry. An element's additions may pass what 63 bits hold on the way, but not in the end.
template <class T, class I, class F>
__global__ void __launch_bounds__(256, 1) scatter_fixed(const T* __restrict__ data, const I* __restrict__ indices,
                                                        const long long* __restrict__ indptr, const F* __restrict__ Y,
                                                        const double* __restrict__ worth, double per_unit,
                                                        long long* sums, long long rows, long long columns,
                                                        long long lanes) {
    const int lane = threadIdx.x % WARP, group = int(lanes), turn = lane / group, turns = WARP / group;
    const long long warps = gridDim.x * (long long)(blockDim.x / WARP), all = indptr[rows];
    long long first = indptr[0] + (blockIdx.x * (long long)(blockDim.x / WARP) + threadIdx.x / WARP) * ENTRIES_AT_ONCE;
    for (; first < all; first += warps * ENTRIES_AT_ONCE) {
        const long long last = first + ENTRIES_AT_ONCE < all ? first + ENTRIES_AT_ONCE : all;
        long long row = row_of(indptr, rows, first);
        for (long long start = first; start < last; ++row) {
            const long long end = indptr[row + 1], stop = end < last ? end : last;
            for (long long column = lane % group; column < columns; column += group) {
                const double y = double(Y[row * columns + column]) * per_unit;
#pragma unroll 4
                for (long long k = start + turn; k < stop; k += turns) {
                    const long long feature = indices[k];
                    const double x = double(data[k]) * (worth ? worth[feature] : 1.0);
                    atomicAdd(reinterpret_cast<unsigned long long*>(sums + feature * columns + column),
                              (unsigned long long)(long long)rint(x * y));  // the same bits as signed
                }
            }
            start = stop;
        }
    }
}

// out += (sums·unit[i] − shift[i]·taken[j])·per_unit, rounded to the nearest whole number, then sums = 0: element (i, j)
// of (features, columns), of which sums is counted in unit[i]. A thread an element.
__global__ void __launch_bounds__(256) settle_shifted(long long* __restrict__ sums, const double* __restrict__ unit,
                                                      const double* __restrict__ shift,
                                                      const double* __restrict__ taken, double per_unit,
                                                      long long* __restrict__ out, long long features,
                                                      long long columns) {
    const long long count = features * columns, step = gridDim.x * (long long)blockDim.x;
#pragma unroll 2
    for (long long e = blockIdx.x * (long long)blockDim.x + threadIdx.x; e < count; e += step) {
        const long long feature = e / columns;
        const double exact = double(sums[e]) * unit[feature] - shift[feature] * taken[e - feature * columns];
        out[e] += (long long)rint(exact * per_unit);
        sums[e] = 0;
    }
}

}  // namespace dml
