// AᵀAV of dense rows, A = (X − 1·shiftᵀ)·diag(inverse), at one reading of X: see cuda/products.py.
//
// A block of threads holds V and takes a tile of R rows after the other into shared memory, as float: first Y = AV of
// the tile, then Z += AᵀY, while the next tile is on its way. Z stays in registers, each thread holding 4·C columns of
// X by L/4 of V, and goes to the block's own float64 sums every `tiles_a_sum` tiles; `add_products` adds these up,
// block after block. So float32 sums are no longer than that many tiles, and every sum has an order that depends on
// the grid alone.
//
// Both products are tiles in registers: a float read from shared memory is used 2 to 8 times, as else reading it would
// take longer than multiplying. Columns are dealt in packs of 4, so that a pack is one access.
#include "packs.cuh"

namespace dml {

// Shared memory, in floats: rows of X, V in packs of 4 rows, the warps' shares of Y, Y. Rows and packs are padded so
// that lanes which read different ones at a time meet in different banks.
template <int L, int R>
struct TileShape {
    int row, pack, packs;

    __device__ __forceinline__ explicit TileShape(int width)
        : row((width + 31) / 32 * 32 + 8), pack(4 * L + 8), packs((width + 3) / 4) {}

    __device__ __forceinline__ int V() const { return R * row; }
    __device__ __forceinline__ int shares() const { return V() + packs * pack; }
    __device__ __forceinline__ int Y(int warps) const { return shares() + warps * R * L; }
};

// sums[b·width·count …] += block b's share of AᵀAV (width, count), count ≤ L, width ≤ C·blockDim.x; Y (rows, count) =
// AV unless it is null. V is (width, count).
template <class X, int L, int C, int R>
__global__ void __launch_bounds__(256, 1) fused(const X* __restrict__ x, const double* __restrict__ shift,
                                                const double* __restrict__ inverse, const float* __restrict__ V,
                                                float* __restrict__ Y, double* __restrict__ sums, long long rows,
                                                long long width, long long count, long long tiles_a_sum) {
    constexpr int LQ = L / 4, RQ = R / 4, N = LQ % 4 == 0 ? 4 : 2;
    DML_DYNAMIC_SHARED(raw);
    float* const shared = reinterpret_cast<float*>(raw);
    const int columns = int(width), thread = threadIdx.x, threads = blockDim.x, warps = threads / WARP;
    const TileShape<L, R> shape(columns);
    float *const tile_X = shared, *const tile_V = shared + shape.V(), *const shares = shared + shape.shares(),
          *const tile_Y = shared + shape.Y(warps);

    for (int e = thread; e < shape.packs * 4 * L; e += threads) {
        const int column = e / L, c = e % L;
        tile_V[column / 4 * shape.pack + column % 4 * L + c] =
            column < columns && c < count ? V[column * count + c] : 0.0f;
    }

    // How a tile is read: a quarter of the threads a row, each C packs of it.
    const int quarter = threads / 4, reading_row = thread / quarter, reading_pack = thread % quarter;
    const bool whole_packs = columns % 4 == 0;
    Pack<X, 4> coming[RQ][C];
    auto fetch = [&](long long tile) {
#pragma unroll
        for (int i = 0; i < RQ; ++i)
#pragma unroll
            for (int p = 0; p < C; ++p) {
                const long long row = tile * R + reading_row + 4 * i;
                const int column = (reading_pack + p * quarter) * 4;
                if (row >= rows || column >= columns) continue;
                const X* const from = x + row * columns + column;
                if (whole_packs) {
                    coming[i][p] = load<4>(from);
                } else {
#pragma unroll
                    for (int e = 0; e < 4; ++e)
                        if (column + e < columns) coming[i][p].at[e] = from[e];
                }
            }
    };
    auto keep = [&](long long tile) {
#pragma unroll
        for (int i = 0; i < RQ; ++i)
#pragma unroll
            for (int p = 0; p < C; ++p) {
                const int row = reading_row + 4 * i, column = (reading_pack + p * quarter) * 4;
                const bool there = tile * R + row < rows;
                if (column >= columns) continue;
                Pack<float, 4> kept;
#pragma unroll
                for (int e = 0; e < 4; ++e)
                    kept.at[e] = there && column + e < columns ? converted<float>(coming[i][p].at[e]) : 0.0f;
                store<4>(tile_X + row * shape.row + column, kept);
            }
        if (!shift && !inverse) return;
        // In a loop of its own over what this thread has just stored: unrolled, it takes more registers than there are.
#pragma unroll 1
        for (int p = 0; p < C; ++p) {
            const int column = (reading_pack + p * quarter) * 4;
            double by[4], per[4];
#pragma unroll
            for (int e = 0; e < 4; ++e) {
                by[e] = shift && column + e < columns ? shift[column + e] : 0.0;
                per[e] = inverse && column + e < columns ? inverse[column + e] : 1.0;
            }
            if (column >= columns) break;
#pragma unroll 1
            for (int row = reading_row; row < R && tile * R + row < rows; row += 4) {
                Pack<float, 4> kept = load<4>(tile_X + row * shape.row + column);
#pragma unroll
                for (int e = 0; e < 4; ++e) kept.at[e] = float((double(kept.at[e]) - by[e]) * per[e]);
                store<4>(tile_X + row * shape.row + column, kept);
            }
        }
    };

    // Y: 4 × 4 lanes have 4 interleaved rows by 4 neighbouring groups of V's columns; both halves of all warps share
    // the columns of X out. Z: neighbouring threads have the 4 groups, each four threads the same columns of X.
    const int lane = thread % WARP, warp = thread / WARP, half_warp = lane / 16, row_group = lane / 4 % 4;
    const int group = thread % 4 * LQ, first_pack = thread / 4;
    float z[C][4][LQ] = {};
    auto sum_up = [&]() {
        double* const to = sums + blockIdx.x * width * count;
#pragma unroll
        for (int p = 0; p < C; ++p)
#pragma unroll
            for (int e = 0; e < 4; ++e)
#pragma unroll
                for (int c = 0; c < LQ; ++c) {
                    const int column = (first_pack + p * quarter) * 4 + e;
                    // No other thread adds to this place, so that the order is fixed; nothing is waited for.
                    if (column < columns && group + c < count)
                        atomicAdd(to + column * count + group + c, double(z[p][e][c]));
                    z[p][e][c] = 0;
                }
    };

    const long long tiles = (rows + R - 1) / R;
    long long summed = 0;
    if (blockIdx.x < tiles) fetch(blockIdx.x);
    for (long long tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
        __syncthreads();
        keep(tile);
        __syncthreads();
        if (tile + gridDim.x < tiles) fetch(tile + gridDim.x);

        float y[RQ][LQ] = {};
        for (int q = 2 * warp + half_warp; q < shape.packs; q += 2 * warps) {
#pragma unroll 1
            for (int half_pack = 0; half_pack < 4; half_pack += 2) {
                Pack<float, 2> a[RQ];
#pragma unroll
                for (int i = 0; i < RQ; ++i)
                    a[i] = load<2>(tile_X + (row_group + 4 * i) * shape.row + 4 * q + half_pack);
#pragma unroll
                for (int e = 0; e < 2; ++e)
#pragma unroll
                    for (int c = 0; c < LQ; c += N) {
                        const Pack<float, N> v = load<N>(tile_V + q * shape.pack + (half_pack + e) * L + group + c);
#pragma unroll
                        for (int i = 0; i < RQ; ++i)
#pragma unroll
                            for (int n = 0; n < N; ++n) y[i][c + n] += a[i].at[e] * v.at[n];
                    }
            }
        }
        // Each half of a warp adds up half of the rows for both.
#pragma unroll
        for (int i = 0; i < RQ / 2; ++i)
#pragma unroll
            for (int c = 0; c < LQ; ++c) {
                const float given = half_warp ? y[i][c] : y[i + RQ / 2][c];
                const float own = half_warp ? y[i + RQ / 2][c] : y[i][c];
                const int row = row_group + 4 * (half_warp ? i + RQ / 2 : i);
                shares[(warp * R + row) * L + group + c] = own + __shfl_xor_sync(ALL_LANES, given, 16);
            }
        __syncthreads();
        for (int e = thread; e < R * L; e += threads) {
            float total = 0;
            for (int w = 0; w < warps; ++w) total += shares[w * R * L + e];
            tile_Y[e] = total;
            const long long row = tile * R + e / L;
            if (Y && row < rows && e % L < count) Y[row * count + e % L] = total;
        }
        __syncthreads();

#pragma unroll 2
        for (int row = 0; row < R; ++row) {
            float b[LQ];
#pragma unroll
            for (int c = 0; c < LQ; c += N) {
                const Pack<float, N> some = load<N>(tile_Y + row * L + group + c);
#pragma unroll
                for (int n = 0; n < N; ++n) b[c + n] = some.at[n];
            }
#pragma unroll
            for (int p = 0; p < C; ++p) {
                const int pack = first_pack + p * quarter;
                const Pack<float, 4> a = load<4>(tile_X + row * shape.row + 4 * (pack < shape.packs ? pack : 0));
#pragma unroll
                for (int e = 0; e < 4; ++e)
#pragma unroll
                    for (int c = 0; c < LQ; ++c) z[p][e][c] += a.at[e] * b[c];
            }
        }
        if (++summed % tiles_a_sum == 0) sum_up();
    }
    sum_up();
}

// out[i] += Σ_b sums[b·size + i], block after block.
__global__ void __launch_bounds__(256) add_products(const double* __restrict__ sums, long long blocks, long long size,
                                                    double* __restrict__ out) {
    for (long long i = blockIdx.x * (long long)blockDim.x + threadIdx.x; i < size;
         i += gridDim.x * (long long)blockDim.x) {
        double total = 0;
#pragma unroll 8
        for (long long block = 0; block < blocks; ++block) total += sums[block * size + i];
        out[i] += total;
    }
}

}  // namespace dml
