// AᵀAV of dense rows, A = (X − 1·shiftᵀ)·diag(inverse), at one reading of X: see cuda/products.py.
//
// A block of threads holds V and takes a tile of R rows after the other into shared memory, as float: first Y = AV of
// the tile, then Z += AᵀY, while the next tile is on its way. Z stays in registers, each thread holding 4·C columns of
// X by L/4 of V, and goes to the block's own float64 sums every `tiles_a_sum` tiles; `add_products` adds these up,
// block after block. So float32 sums are no longer than that many tiles, and every sum has an order that depends on
// the grid alone.
//
// In fixed point a sum's tiles are neighbours and lie in one chunk of rows, whatever the grid. It is rounded to a whole
// number and added by an atomic: the total's bits depend neither on the grid nor on which chunks there are beside one.
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

// The tiles of R rows that a block takes, one after the other: every gridDim.x-th, or, in fixed point, every
// gridDim.x-th run of `tiles_a_sum` in a chunk; the last of a chunk's runs and tiles may be shorter.
template <int R, bool FIXED>
struct Tiles {
    long long rows, chunk_rows, tiles_a_sum, first, stop, summed;

    __device__ __forceinline__ Tiles(long long rows_, long long chunk_rows_, long long tiles_a_sum_)
        : rows(rows_), chunk_rows(chunk_rows_), tiles_a_sum(tiles_a_sum_), first(blockIdx.x * (long long)R),
          stop(rows_), summed(0) {
        if constexpr (FIXED) begin(blockIdx.x);
    }

    __device__ __forceinline__ long long run_rows() const { return tiles_a_sum * R; }
    __device__ __forceinline__ long long runs_a_chunk() const { return (chunk_rows + run_rows() - 1) / run_rows(); }

    // Begin with a run: `first` is at or past `rows` where there is none.
    __device__ __forceinline__ void begin(long long run) {
        const long long chunk = run / runs_a_chunk(), place = run % runs_a_chunk() * run_rows();
        const long long end = place + run_rows() < chunk_rows ? place + run_rows() : chunk_rows;
        first = chunk * chunk_rows + place;
        stop = chunk * chunk_rows + end < rows ? chunk * chunk_rows + end : rows;
    }

    // Go on to the next tile; say whether the one before was a sum's last.
    __device__ __forceinline__ bool next() {
        if constexpr (FIXED) {
            first += R;
            if (first < stop) return false;
            const long long chunk = (stop - 1) / chunk_rows;
            begin(chunk * runs_a_chunk() + (stop - 1 - chunk * chunk_rows) / run_rows() + gridDim.x);
            return true;
        } else {
            first += gridDim.x * (long long)R;
            return ++summed % tiles_a_sum == 0;
        }
    }
};

// sums[b·width·count …] += block b's share of AᵀAV (width, count), count ≤ L, width ≤ C·blockDim.x; Y (rows, count) =
// AV unless it is null. V is (width, count). With S = long long there is one share, which all blocks add to in units of
// 1/per_unit; chunk c has rows c·chunk_rows … of the array.
template <class X, int L, int C, int R, class S>
__global__ void __launch_bounds__(256, 1) fused(const X* __restrict__ x, const double* __restrict__ shift,
                                                const double* __restrict__ inverse, const float* __restrict__ V,
                                                float* __restrict__ Y, S* __restrict__ sums, long long rows,
                                                long long width, long long count, long long tiles_a_sum,
                                                long long chunk_rows, double per_unit) {
    constexpr bool FIXED = same<S, long long>;
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
    auto fetch = [&](long long first, long long stop) {
#pragma unroll
        for (int i = 0; i < RQ; ++i)
#pragma unroll
            for (int p = 0; p < C; ++p) {
                const long long row = first + reading_row + 4 * i;
                const int column = (reading_pack + p * quarter) * 4;
                if (row >= stop || column >= columns) continue;
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
    auto keep = [&](int there_are) {
#pragma unroll
        for (int i = 0; i < RQ; ++i)
#pragma unroll
            for (int p = 0; p < C; ++p) {
                const int row = reading_row + 4 * i, column = (reading_pack + p * quarter) * 4;
                const bool there = row < there_are;
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
            for (int row = reading_row; row < there_are; row += 4) {
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
        S* const to = FIXED ? sums : sums + blockIdx.x * width * count;
#pragma unroll
        for (int p = 0; p < C; ++p)
#pragma unroll
            for (int e = 0; e < 4; ++e)
#pragma unroll
                for (int c = 0; c < LQ; ++c) {
                    const int column = (first_pack + p * quarter) * 4 + e;
                    if (column < columns && group + c < count) {
                        S* const place = to + column * count + group + c;
                        if constexpr (FIXED)
                            atomicAdd(reinterpret_cast<unsigned long long*>(place),  // the same bits as signed
                                      (unsigned long long)(long long)rint(double(z[p][e][c]) * per_unit));
                        else  // no other thread adds to this place, so that the order is fixed; nothing is waited for
                            atomicAdd(place, double(z[p][e][c]));
                    }
                    z[p][e][c] = 0;
                }
    };

    Tiles<R, FIXED> tiles(rows, chunk_rows, tiles_a_sum);
    if (tiles.first < rows) fetch(tiles.first, tiles.stop);
    while (tiles.first < rows) {
        const long long first = tiles.first;
        const int there_are = int(tiles.stop - first < R ? tiles.stop - first : R);
        const bool is_last = tiles.next();
        __syncthreads();
        keep(there_are);
        __syncthreads();
        if (tiles.first < rows) fetch(tiles.first, tiles.stop);

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
            if (Y && e / L < there_are && e % L < count) Y[(first + e / L) * count + e % L] = total;
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
        if (is_last) sum_up();
    }
    if (!FIXED) sum_up();
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
