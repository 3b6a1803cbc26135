// Least squares for one row of factors at a time, a block a row: see normal_equations.py.
//
// A block keeps the lower triangle of Σ a q qᵀ in registers, a tile of TILE × TILE numbers a thread, while the rows q pass
// by in shared memory, STAGE at a time, the next ones on their way. The triangle then goes to shared memory, where it is
// factorised in place with two rows below it: that of the bias, and the right side, which the factorisation turns into the
// solution of the lower system. So each matrix is neither written to the device's memory nor read from it. Only rows of
// more than VERY_LONG entries are cut into parts of PART, whose sums are written there, and added up in their order.
//
// A row's bits depend on its own entries alone.
#include "long_rows.cuh"
#include "packs.cuh"

namespace dml {

constexpr int STAGE = 16, AT_ONCE = 256, MOST_THREADS = 160, MOST_ROWS = 128;
constexpr long long EQUATION_PART = 2048;  // entries; also in cuda/normal_equations.py

// What a half-step is about; null: there are none. See normal_equations.py.
struct Equations {
    const long long* starts;
    const int* columns;
    const float *ratings, *weights, *others, *other_biases, *gram;
    float *x, *biases;
    double* losses;
    const float* penalties;
    long long width;
    float mean, inverse, alpha;

    // ρ of factor j of a row, of its bias where that is `width`; the row's Σ a is `total`.
    __device__ __forceinline__ double ridge(double total, int j) const {
        return double(penalties[j]) * total + double(penalties[width + 1 + j]);
    }
};

// Σ of what the entries add beside the matrix: the factor of the matrix, of the right side, and what is left.
struct Totals {
    double a, t, constant;
};

__device__ __forceinline__ int triangle(int row) { return row * (row + 1) / 2; }

// One block at work on sums of entries. The matrix has `side` tiles a side, of which a thread has the tile (above, beside)
// of the lower triangle; there is a thread for each, and for each of the matrix's rows.
template <int TILE>
struct Triangle {
    static constexpr int LOADS = 4;  // packs of a stage that a thread moves: 4 · 64 and 4 · 160 are enough

    float at[TILE][TILE];
    float right, ones;  // of one column: Σ t q, Σ a q
    Totals totals;
    int rows, tiles, above, beside;

    __device__ __forceinline__ void clear(int side) {
        rows = TILE * side;
        tiles = side * (side + 1) / 2;
#pragma unroll
        for (int i = 0; i < TILE; ++i)
#pragma unroll
            for (int j = 0; j < TILE; ++j) at[i][j] = 0.f;
        right = ones = 0.f;
        totals = {0, 0, 0};
        above = 0;
        int left = threadIdx.x;
        while (left > above) left -= ++above;
        beside = left;
        if (int(threadIdx.x) >= tiles) above = beside = 0;  // of no use, but somewhere
    }

    // Add entries start … stop − 1. `shared` has room for 3·AT_ONCE numbers and STAGE rows.
    __device__ __forceinline__ void add(const Equations& own, long long start, long long stop, unsigned char* shared) {
        int* const columns = reinterpret_cast<int*>(shared);
        float *const as = reinterpret_cast<float*>(shared) + AT_ONCE, *const ts = as + AT_ONCE, *const stage = ts + AT_ONCE;
        const int packs = int(own.width / 4);
        for (int i = threadIdx.x; i < STAGE * rows; i += blockDim.x) stage[i] = 0.f;
        for (long long base = start; base < stop; base += AT_ONCE) {
            const int held = stop - base < AT_ONCE ? int(stop - base) : AT_ONCE;
            __syncthreads();
            for (int n = threadIdx.x; n < (held + STAGE - 1) / STAGE * STAGE; n += blockDim.x) {
                float a = 0.f, t = 0.f, constant = 0.f;
                int column = -1;
                if (n < held) {
                    const long long e = base + n;
                    const float rating = own.ratings[e], v = own.weights ? own.weights[e] : 1.f;
                    column = own.columns[e];
                    if (own.gram) {
                        a = own.alpha * v * rating;
                        t = rating > 0.f ? 1.f + a : 0.f;
                        constant = t;
                    } else {
                        const float target = (rating - own.mean) * own.inverse - (own.other_biases ? own.other_biases[column]
                                                                                                   : 0.f);
                        a = v;
                        t = v * target;
                        constant = t * target;
                    }
                }
                columns[n] = column;
                as[n] = a;
                ts[n] = t;
                totals.a += double(a);
                totals.t += double(t);
                totals.constant += double(constant);
            }
            __syncthreads();
            Pack<float, 4> coming[LOADS];
            fetch(own, columns, packs, coming);
            for (int first = 0; first < held; first += STAGE) {
                __syncthreads();
#pragma unroll
                for (int l = 0; l < LOADS; ++l) {
                    const int number = int(threadIdx.x) + l * int(blockDim.x);
                    if (number < STAGE * packs) store<4>(stage + number / packs * rows + number % packs * 4, coming[l]);
                }
                __syncthreads();
                if (first + STAGE < held) fetch(own, columns + first + STAGE, packs, coming);
                add_stage(as + first, ts + first, stage);
            }
        }
        totals.a = block_sum(totals.a, scratch());
        totals.t = block_sum(totals.t, scratch());
        totals.constant = block_sum(totals.constant, scratch());
    }

    __device__ __forceinline__ void fetch(const Equations& own, const int* columns, int packs, Pack<float, 4>* coming) {
#pragma unroll
        for (int l = 0; l < LOADS; ++l) {
            const int number = int(threadIdx.x) + l * int(blockDim.x);
#pragma unroll
            for (int i = 0; i < 4; ++i) coming[l].at[i] = 0.f;
            if (number >= STAGE * packs) continue;
            const int column = columns[number / packs];
            if (column >= 0) coming[l] = load<4>(own.others + column * own.width + number % packs * 4);
        }
    }

    __device__ __forceinline__ void add_stage(const float* as, const float* ts, const float* stage) {
#pragma unroll 2
        for (int e = 0; e < STAGE; ++e) {
            const float* const row = stage + e * rows;
            const float a = as[e];
            if (int(threadIdx.x) < rows) {
                const float q = row[threadIdx.x];
                right += ts[e] * q;
                ones += a * q;
            }
            float up[TILE], side[TILE];
#pragma unroll
            for (int i = 0; i < TILE; i += 4) {
                const Pack<float, 4> p = load<4>(row + above * TILE + i), s = load<4>(row + beside * TILE + i);
#pragma unroll
                for (int k = 0; k < 4; ++k) {
                    up[i + k] = a * p.at[k];
                    side[i + k] = s.at[k];
                }
            }
#pragma unroll
            for (int i = 0; i < TILE; ++i)
#pragma unroll
                for (int j = 0; j < TILE; ++j) at[i][j] += up[i] * side[j];
        }
    }

    // Write the triangle, the bias's row where there is one, and the right side to `matrix`.
    __device__ __forceinline__ void write(float* matrix, int width, bool biased) {
        if (int(threadIdx.x) < tiles) {
#pragma unroll
            for (int i = 0; i < TILE; ++i)
#pragma unroll
                for (int j = 0; j < TILE; ++j) {
                    const int row = above * TILE + i, column = beside * TILE + j;
                    if (row < width && column <= row) matrix[triangle(row) + column] = at[i][j];
                }
        }
        if (int(threadIdx.x) < width) {
            if (biased) matrix[triangle(width) + threadIdx.x] = ones;
            matrix[triangle(width + biased) + threadIdx.x] = right;
        }
        if (biased && threadIdx.x == 0) {
            matrix[triangle(width) + width] = float(totals.a);
            matrix[triangle(width + 1) + width] = float(totals.t);
        }
    }

    __device__ __forceinline__ static double* scratch() {
        __shared__ double room[WARP];
        return room;
    }
};

// Factorise the `size` rows of the triangle in `matrix` in place, and the row below with them. `inverses` (size,) become
// those of the diagonal; 0 where what is left of it is not above `least` (size,): it is rounding then.
__device__ __forceinline__ void factorise(float* matrix, const float* least, float* inverses, int size) {
    for (int column = 0; column < size; ++column) {
        const float* const across = matrix + triangle(column);
        for (int row = column + threadIdx.x; row <= size; row += blockDim.x) {
            float *const own = matrix + triangle(row), rest = own[column];
            float more = 0.f;
            int m = 0;
            for (; m + 1 < column; m += 2) {
                rest -= own[m] * across[m];
                more -= own[m + 1] * across[m + 1];
            }
            if (m < column) rest -= own[m] * across[m];
            own[column] = rest + more;
        }
        __syncthreads();
        const float left = across[column], inverse = left > least[column] ? 1.f / sqrtf(left) : 0.f;
        if (threadIdx.x == 0) inverses[column] = inverse;
        for (int row = column + 1 + threadIdx.x; row <= size; row += blockDim.x) matrix[triangle(row) + column] *= inverse;
        __syncthreads();
    }
}

// Solve the upper system for the row below the triangle, by the first warp: element i is in lane i % 32 of found[i / 32].
template <int PARTS>
__device__ __forceinline__ void substitute(const float* matrix, const float* inverses, int size, float (&found)[PARTS]) {
    const int lane = threadIdx.x;
#pragma unroll
    for (int part = 0; part < PARTS; ++part) {
        const int i = part * WARP + lane;
        found[part] = i < size ? matrix[triangle(size) + i] : 0.f;
    }
#pragma unroll
    for (int part = PARTS - 1; part >= 0; --part) {
        for (int from = WARP - 1; from >= 0; --from) {
            const int j = part * WARP + from;
            if (j >= size) continue;
            const float value = __shfl_sync(ALL_LANES, found[part], from) * inverses[j];
            const float* const row = matrix + triangle(j);
#pragma unroll
            for (int before = 0; before <= part; ++before) {
                const int i = before * WARP + lane;
                if (i < j) found[before] -= row[i] * value;
                if (i == j) found[before] = value;
            }
        }
    }
}

// With `first`, write the sums of entries first[b] … last[b] − 1, for block b, to partial (blocks, triangle(size + 1)) and
// totals. Else solve for row rows[b] (null: row b, unless it has more than VERY_LONG entries), whose sums are those of parts
// where[b] … where[b + 1] − 1 where there is `partial`.
template <int TILE>
__global__ void __launch_bounds__(MOST_THREADS)
solve(const Equations* __restrict__ equations, long long side, const long long* __restrict__ first,
      const long long* __restrict__ last, const long long* __restrict__ rows, const long long* __restrict__ where,
      float* partial, Totals* totals) {
    constexpr int PARTS = MOST_ROWS / WARP + 1;
    DML_DYNAMIC_SHARED(shared);
    __shared__ float inverses[MOST_ROWS + 1], least[MOST_ROWS + 1];
    const Equations own = *equations;
    const long long n = rows ? rows[blockIdx.x] : blockIdx.x;
    const long long start = first ? first[blockIdx.x] : own.starts[n], stop = first ? last[blockIdx.x] : own.starts[n + 1];
    const bool biased = own.biases, sum = first || !partial;
    const int width = int(own.width), size = width + biased;
    if (sum && !first && stop - start > VERY_LONG) return;
    if (start == stop) {
        for (int i = threadIdx.x; i < width; i += blockDim.x) own.x[n * width + i] = 0.f;
        if (biased && threadIdx.x == 0) own.biases[n] = 0.f;
        if (threadIdx.x < 2) own.losses[2 * n + threadIdx.x] = 0;
        return;
    }
    float* const matrix = reinterpret_cast<float*>(shared);
    const long long cells = triangle(size + 1);
    Totals total = {0, 0, 0};
    if (sum) {
        Triangle<TILE> sums;
        sums.clear(int(side));
        sums.add(own, start, stop, shared);
        total = sums.totals;
        __syncthreads();  // the matrix lies where rows were
        sums.write(first ? partial + blockIdx.x * cells : matrix, width, biased);
        if (first) {
            if (threadIdx.x == 0) {
                partial[blockIdx.x * cells + cells - 1] = 0.f;  // of no use
                totals[blockIdx.x] = total;
            }
            return;
        }
    } else {
        for (int i = threadIdx.x; i < cells; i += blockDim.x) {
            double added = 0;
            for (long long p = where[blockIdx.x]; p < where[blockIdx.x + 1]; ++p) added += double(partial[p * cells + i]);
            matrix[i] = float(added);
        }
        for (long long p = where[blockIdx.x]; p < where[blockIdx.x + 1]; ++p) {
            total.a += totals[p].a;
            total.constant += totals[p].constant;
        }
    }
    __syncthreads();
    for (int i = threadIdx.x; own.gram && i < width * width; i += blockDim.x)
        if (i % width <= i / width) matrix[triangle(i / width) + i % width] += own.gram[i];
    __syncthreads();
    for (int row = threadIdx.x; row < size; row += blockDim.x) {
        const float diagonal = matrix[triangle(row) + row] + float(own.ridge(total.a, row));
        matrix[triangle(row) + row] = diagonal;
        least[row] = diagonal * float(width) * 1.2e-7f;
    }
    __syncthreads();
    factorise(matrix, least, inverses, size);
    if (threadIdx.x >= WARP) return;
    float found[PARTS];
    double explained = 0, penalty = 0;
    for (int i = threadIdx.x; i < size; i += WARP) {
        const double y = matrix[triangle(size) + i];
        explained += y * y;
    }
    substitute(matrix, inverses, size, found);
#pragma unroll
    for (int part = 0; part < PARTS; ++part) {
        const int i = part * WARP + int(threadIdx.x);
        if (i >= size) continue;
        penalty += own.ridge(total.a, i) * double(found[part]) * double(found[part]);
        if (i < width) own.x[n * width + i] = found[part];
        else own.biases[n] = found[part];
    }
    explained = warp_sum(explained);
    penalty = warp_sum(penalty);
    if (threadIdx.x == 0) {
        // xᵀAx + Σ ρx² = xᵀt = ‖y‖² of the solution: what is left of the squares follows without another look at them.
        const double fit = total.constant - explained - penalty;
        own.losses[2 * n] = fit < 0 && !own.gram ? 0 : fit;
        own.losses[2 * n + 1] = penalty;
    }
}

}  // namespace dml
