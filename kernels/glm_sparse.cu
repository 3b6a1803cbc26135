// Loss and gradient of a linear score over sparse rows (CSR); the twin is glm_sparse.py, which says what each kernel
// computes. T is what entries are stored as, I their column numbers' type, P the parameters': float or double, in which
// all is computed.
//
// Layouts: row r has data[k] at column indices[k] for indptr[r] ≤ k < indptr[r + 1], no column twice; the rest as in
// glm.cu.
//
// Balance: a block takes `at_once` rows at a time, each warp one by itself; rows of more than LONG entries wait until
// the block takes them together, so that no warp is left alone with one. Rows of more than VERY_LONG are cut into parts
// of PART entries: all blocks have taken the parts' sums when a row's block gets to it (sums_of_parts), and add the
// parts to the gradient after it (add_parts). What the row adds to the loss, it adds in its place among the others. A
// row that is not in the list of parts (it was full, as a row was named more than once) is its block's alone.
//
// Order of sums: a row's score by lanes (threads), then as a tree, and so again of its parts' scores, which depends on
// the row's length alone; the loss and the intercept's gradient as in glm.cu. Gradients of features go to the memory by
// atomic additions, as rows meet in them anywhere: in floating point their order, and with it the last bits, is not the
// same each time. In fixed point the terms are integers, and it is.
#include "fixed_point.cuh"
#include "long_rows.cuh"

namespace dml {

// A lambda whose body belongs into the loop: not a call, for which registers would have to be saved.
#define DML_INLINE __attribute__((always_inline))

constexpr int MOST_THREADS = 512, LONG = 1024;
constexpr long long PART = 4096;  // also in cuda/glm_sparse.py

// Threads that share a row: a warp's, or the whole block's. `scratch` is shared memory for 32.
struct Team {
    bool is_block;
    int first, size;
    template <class S>
    __device__ __forceinline__ S sum(S value, S* scratch) const {
        return is_block ? block_sum(value, scratch) : warp_sum(value);
    }
};

struct Span {  // of a row's entries
    long long start, stop;
};

// work(team, i, number, span) for every i < count and the row that it stands for: by whole warps, or whole blocks.
template <class Work>
__device__ __forceinline__ void for_rows(const long long* __restrict__ indptr, const long long* __restrict__ rows,
                                         long long count, long long at_once, Work work) {
    __shared__ int long_rows;
    const int warp = threadIdx.x / WARP, warps = blockDim.x / WARP;
    for (long long from = (long long)blockIdx.x * at_once; from < count; from += (long long)gridDim.x * at_once) {
        __syncthreads();
        if (threadIdx.x == 0) long_rows = 0;
        __syncthreads();
#pragma unroll 1
        for (int turn = 0; turn < 2; ++turn) {
            if (turn == 1 && long_rows == 0) break;
            const Team team{turn == 1, int(turn ? threadIdx.x : threadIdx.x % WARP), turn ? int(blockDim.x) : WARP};
            for (int k = turn ? 0 : warp; k < at_once && from + k < count; k += turn ? 1 : warps) {
                long long number = rows ? rows[from + k] : from + k;
                Span span{indptr[number], indptr[number + 1]};
                bool is_long = span.stop - span.start > LONG;
                if (is_long == team.is_block) work(team, from + k, number, span);
                else if (turn == 0 && threadIdx.x % WARP == 0) atomicAdd(&long_rows, 1);
            }
            __syncthreads();
        }
    }
}

// Sums over a row's entries: of x·parameter, and of the squares of x·scale.
template <class P>
struct RowSums {
    P score, squares;
};

// What all blocks have found of the parts of very long rows, at the places where these are listed; `where` null:
// nothing. `steps` (room,) takes, at a row's first part, by what its entries are multiplied in the gradient.
template <class P>
struct PartsFound {
    const long long* __restrict__ where;
    const RowSums<P>* __restrict__ sums;
    P* __restrict__ steps;

    // The place of the first part of the i-th row taken, −1: it is in no list.
    __device__ __forceinline__ long long first(long long i, Span span) const {
        return where && span.stop - span.start > VERY_LONG ? where[i] : -1;
    }
};

template <bool SQUARES, class T, class I, class P>
__device__ __forceinline__ RowSums<P> sums_of_span(const Team& team, const T* __restrict__ data,
                                                   const I* __restrict__ indices, Span span,
                                                   const P* __restrict__ parameters, const P* __restrict__ scale,
                                                   P* scratch) {
    P score = P(0), squares = P(0);
#pragma unroll 4
    for (long long k = span.start + team.first; k < span.stop; k += team.size) {
        P x = P(data[k]);
        I column = indices[k];
        score += x * parameters[column];
        if constexpr (SQUARES) {
            P z = x * scale[column];
            squares += z * z;
        }
    }
    score = team.sum(score, scratch);
    if constexpr (SQUARES) squares = team.sum(squares, scratch);
    return {score, squares};
}

__device__ __forceinline__ Span part_of(Span row, long long number) {
    long long start = row.start + number * PART, stop = start + PART;
    return {start, stop < row.stop ? stop : row.stop};
}

// The sums over a row, by its whole block from those of its parts if `first` is not negative.
template <bool SQUARES, class T, class I, class P>
__device__ __forceinline__ RowSums<P> sums_of_row(const Team& team, const T* __restrict__ data,
                                                  const I* __restrict__ indices, Span span,
                                                  const P* __restrict__ parameters, const P* __restrict__ scale,
                                                  const PartsFound<P>& found, long long first, P* scratch) {
    if (first < 0) return sums_of_span<SQUARES>(team, data, indices, span, parameters, scale, scratch);
    const long long parts = parts_of(span.stop - span.start, PART);
    P score = P(0), squares = P(0);
    for (long long p = threadIdx.x; p < parts; p += blockDim.x) {
        score += found.sums[first + p].score;
        if constexpr (SQUARES) squares += found.sums[first + p].squares;
    }
    score = block_sum(score, scratch);
    if constexpr (SQUARES) squares = block_sum(squares, scratch);
    return {score, squares};
}

// work(place, row, number) for every part in the list, by whole blocks.
template <class Work>
__device__ __forceinline__ void for_parts(const RowPart* __restrict__ parts,
                                          const unsigned long long* __restrict__ used, long long room, Work work) {
    const long long count = *used < (unsigned long long)room ? (long long)*used : room;
    for (long long place = blockIdx.x; place < count; place += gridDim.x) {
        const RowPart part = parts[place];
        if (part.row >= 0) work(place, part.row, part.number);
    }
}

// The sums over each part in the list, to its place in `sums` (room,); without squares where `scale` is null.
template <class T, class I, class P>
__global__ void __launch_bounds__(MOST_THREADS, 2)
sums_of_parts(const T* __restrict__ data, const I* __restrict__ indices, const long long* __restrict__ indptr,
              const RowPart* __restrict__ parts, const unsigned long long* __restrict__ used, long long room,
              const P* __restrict__ parameters, const P* __restrict__ scale, RowSums<P>* __restrict__ sums) {
    __shared__ P scratch[WARP];
    const Team block{true, int(threadIdx.x), int(blockDim.x)};
    for_parts(parts, used, room, [&](long long place, long long row, long long number) DML_INLINE {
        Span span = part_of({indptr[row], indptr[row + 1]}, number);
        RowSums<P> found =
            scale ? sums_of_span<true>(block, data, indices, span, parameters, scale, scratch)
                  : sums_of_span<false>(block, data, indices, span, parameters, scale, scratch);
        if (threadIdx.x == 0) sums[place] = found;
    });
}

__device__ __forceinline__ void add_whole(long long* to, long long term) {
    atomicAdd(reinterpret_cast<unsigned long long*>(to), (unsigned long long)term);  // the same bits as signed
}

// Add an entry's part of the gradient: x·step, or x·scale·step in fixed point.
template <class P>
__device__ __forceinline__ void add_entry(P* gradient, const P*, long long column, P x, P step) {
    atomicAdd(&gradient[column], step * x);
}
template <class P>
__device__ __forceinline__ void add_entry(long long* out, const P* __restrict__ scale, long long column, P x, P step) {
    long long term = (long long)(x * scale[column] * step);
    if (term != 0) add_whole(&out[column], term);
}

// What has step 0, as most rows of a hinge have in the end, costs no additions.
template <class T, class I, class P, class S>
__device__ __forceinline__ void add_entries(const Team& team, const T* __restrict__ data, const I* __restrict__ indices,
                                            Span span, const P* __restrict__ scale, P step, S* out) {
    if (step != P(0))
        for (long long k = span.start + team.first; k < span.stop; k += team.size)
            add_entry(out, scale, indices[k], P(data[k]), step);
}

// Adds each part in the list to `out`, by its row's step: a gradient in P, or in fixed point.
template <class T, class I, class P, class S>
__global__ void __launch_bounds__(MOST_THREADS, 2)
add_parts(const T* __restrict__ data, const I* __restrict__ indices, const long long* __restrict__ indptr,
          const RowPart* __restrict__ parts, const unsigned long long* __restrict__ used, long long room,
          const P* __restrict__ scale, const P* __restrict__ steps, S* out) {
    const Team block{true, int(threadIdx.x), int(blockDim.x)};
    for_parts(parts, used, room, [&](long long place, long long row, long long number) DML_INLINE {
        Span span = part_of({indptr[row], indptr[row + 1]}, number);
        add_entries(block, data, indices, span, scale, steps[place - number], out);
    });
}

// The rows' gradient by features is added to `gradient`; each block's gradient by the intercept goes to `biases`
// (blocks,), its loss to `losses` (blocks,).
template <class T, class I, class P>
__global__ void __launch_bounds__(MOST_THREADS, 2)
gradient_of_sparse(long long loss, double delta, const T* __restrict__ data, const I* __restrict__ indices,
                   const long long* __restrict__ indptr, long long features, const P* __restrict__ y,
                   const P* __restrict__ weight, const long long* __restrict__ rows, long long count, long long at_once,
                   const P* __restrict__ parameters, P* gradient, double* __restrict__ biases,
                   double* __restrict__ losses, const long long* __restrict__ where,
                   const RowSums<P>* __restrict__ sums, P* __restrict__ steps) {
    __shared__ P scratch[WARP];
    __shared__ double wide_scratch[WARP];
    const P bias = parameters[features];
    const PartsFound<P> parts{where, sums, steps};
    double total = 0, bias_slope = 0;
    for_rows(indptr, rows, count, at_once, [&](Team team, long long i, long long number, Span span) DML_INLINE {
        const long long first = parts.first(i, span);
        P score = bias + sums_of_row<false>(team, data, indices, span, parameters, parameters, parts, first,
                                            scratch).score;
        auto found = slope_and_loss(int(loss), P(delta), score, y[number], weight ? weight[number] : P(1));
        if (first < 0) add_entries(team, data, indices, span, parameters, found.slope, gradient);
        if (team.first == 0) {
            if (first >= 0) parts.steps[first] = found.slope;
            bias_slope += double(found.slope);
            total += double(found.loss);
        }
    });
    __syncthreads();
    bias_slope = block_sum(bias_slope, wide_scratch);
    total = block_sum(total, wide_scratch);
    if (threadIdx.x > 0) return;
    biases[blockIdx.x] = bias_slope;
    losses[blockIdx.x] = total;
}

// The rows' terms in fixed point are added to `out` (features + 4,).
template <class T, class I, class P>
__global__ void __launch_bounds__(MOST_THREADS, 2)
fixed_point_of_sparse(long long loss, double delta, const T* __restrict__ data, const I* __restrict__ indices,
                      const long long* __restrict__ indptr, long long features, const P* __restrict__ y,
                      const P* __restrict__ weight, const long long* __restrict__ rows, long long count,
                      long long at_once, const P* __restrict__ parameters, const P* __restrict__ scale, double per_unit,
                      double per_loss_unit, long long* out, const long long* __restrict__ where,
                      const RowSums<P>* __restrict__ sums, P* __restrict__ steps) {
    __shared__ P scratch[WARP];
    __shared__ long long whole_scratch[WARP];
    const P bias = parameters[features];
    const PartsFound<P> parts{where, sums, steps};
    long long bias_sum = 0, total = 0, mass = 0, loss_mass = 0;
    for_rows(indptr, rows, count, at_once, [&](Team team, long long i, long long number, Span span) DML_INLINE {
        const long long first = parts.first(i, span);
        RowSums<P> row = sums_of_row<true>(team, data, indices, span, parameters, scale, parts, first, scratch);
        auto found = slope_and_loss(int(loss), P(delta), row.score + bias, y[number], weight ? weight[number] : P(1));
        FixedRow<P> terms(found, row.squares, scale[features], per_unit, per_loss_unit);
        if (first < 0) add_entries(team, data, indices, span, scale, terms.step, out);
        if (team.first == 0) {
            if (first >= 0) parts.steps[first] = terms.step;
            bias_sum += terms.bias;
            total += terms.loss;
            mass += terms.mass;
            loss_mass += terms.loss_mass;
        }
    });
    __syncthreads();
    bias_sum = block_sum(bias_sum, whole_scratch);
    total = block_sum(total, whole_scratch);
    mass = block_sum(mass, whole_scratch);
    loss_mass = block_sum(loss_mass, whole_scratch);
    if (threadIdx.x > 0) return;
    add_whole(&out[features], bias_sum);
    add_whole(&out[features + 1], total);
    add_whole(&out[features + 2], mass);
    add_whole(&out[features + 3], loss_mass);
}

// The rows' scores to `out` (count,), or each block's loss to `losses` (blocks,), whichever is not null.
template <class T, class I, class P>
__global__ void __launch_bounds__(MOST_THREADS, 2)
scores_of_sparse(long long loss, double delta, const T* __restrict__ data, const I* __restrict__ indices,
                 const long long* __restrict__ indptr, long long features, const P* __restrict__ y,
                 const P* __restrict__ weight, const long long* __restrict__ rows, long long count, long long at_once,
                 const P* __restrict__ parameters, P* __restrict__ out, double* __restrict__ losses,
                 const long long* __restrict__ where, const RowSums<P>* __restrict__ sums) {
    __shared__ P scratch[WARP];
    __shared__ double wide_scratch[WARP];
    const P bias = parameters[features];
    const PartsFound<P> parts{where, sums, nullptr};
    double total = 0;
    for_rows(indptr, rows, count, at_once, [&](Team team, long long i, long long number, Span span) DML_INLINE {
        P score = bias + sums_of_row<false>(team, data, indices, span, parameters, parameters, parts,
                                            parts.first(i, span), scratch).score;
        if (team.first > 0) return;
        if (out) out[i] = score;
        if (losses)
            total += double(slope_and_loss(int(loss), P(delta), score, y[number], weight ? weight[number] : P(1)).loss);
    });
    if (!losses) return;
    __syncthreads();
    total = block_sum(total, wide_scratch);
    if (threadIdx.x == 0) losses[blockIdx.x] = total;
}

// One SGD step for each of the rows in turn, by one block, in the lazy form of the twin: the weights are
// factor·S(held, owed − seen), `worth` (2,) = factor and owed. The loss met on the way is added to `total`.
template <class T, class I, class P>
__global__ void __launch_bounds__(MOST_THREADS, 2)
sequential_sparse(long long loss, double delta, const T* __restrict__ data, const I* __restrict__ indices,
                  const long long* __restrict__ indptr, long long features, const P* __restrict__ y,
                  const P* __restrict__ weight, const long long* __restrict__ rows, long long count,
                  const P* __restrict__ scale, P* held, double* seen, double* worth, double step_size, double l1,
                  double l2, double* __restrict__ total) {
    constexpr double LEAST_FACTOR = 1.0 / (1LL << 40);
    __shared__ P scratch[WARP];
    const double keep = 1 / (1 + step_size * l2);
    double factor = worth[0], owed = worth[1], met = 0;
    P bias = held[features];
    const P bias_scale = scale ? scale[features] : P(1);
    for (long long i = 0; i < count; ++i) {
        long long number = rows ? rows[i] : i, start = indptr[number], stop = indptr[number + 1];
        P score = P(0);
        // A column is in a row but once: each thread pays, reads and later changes its own.
        for (long long k = start + threadIdx.x; k < stop; k += blockDim.x) {
            I j = indices[k];
            P w = held[j];
            if (seen) {
                w = shrunk(w, P(owed - seen[j]));
                held[j] = w;
                seen[j] = owed;
            }
            score += (scale ? P(data[k]) * scale[j] : P(data[k])) * w;
        }
        score = P(factor) * block_sum(score, scratch) + bias;
        auto found = slope_and_loss(int(loss), P(delta), score, y[number], weight ? weight[number] : P(1));
        met += double(found.loss);
        const P step = P(step_size * double(found.slope) / factor);
        for (long long k = start + threadIdx.x; k < stop; k += blockDim.x) {
            I j = indices[k];
            held[j] -= step * (scale ? P(data[k]) * scale[j] : P(data[k]));
        }
        bias -= P(step_size * double(found.slope)) * bias_scale;
        owed += step_size * l1 / factor;
        factor *= keep;
        __syncthreads();  // the next row's columns may be other threads'
        if (factor < LEAST_FACTOR) {
            for (long long j = threadIdx.x; j < features; j += blockDim.x) {
                held[j] = (seen ? shrunk(held[j], P(owed - seen[j])) : held[j]) * P(factor);
                if (seen) seen[j] = 0;
            }
            factor = 1;
            owed = 0;
            __syncthreads();
        }
    }
    if (threadIdx.x > 0) return;
    held[features] = bias;
    worth[0] = factor;
    worth[1] = owed;
    *total += met;
}

// Make `held` (weights + biases,) what it is worth; feature j has the `outputs` elements from j·outputs on. What is
// owed is paid by then: `seen` becomes 0. `worth` is for `worth_again` to reset, when all have read it.
template <class P>
__global__ void __launch_bounds__(MOST_THREADS)
settle(P* held, long long features, long long outputs, double* seen, const double* __restrict__ worth) {
    const double factor = worth[0], owed = worth[1];
    long long step = (long long)gridDim.x * blockDim.x;
    for (long long j = (long long)blockIdx.x * blockDim.x + threadIdx.x; j < features; j += step) {
        P threshold = seen ? P(owed - seen[j]) : P(0);
        for (long long k = j * outputs; k < (j + 1) * outputs; ++k)
            held[k] = P(double(seen ? shrunk(held[k], threshold) : held[k]) * factor);
        if (seen) seen[j] = 0;
    }
}

template <class W>
__global__ void __launch_bounds__(WARP)
worth_again(W* worth) {
    if (threadIdx.x == 0) worth[0] = 1;
    if (threadIdx.x == 1) worth[1] = 0;
}

}  // namespace dml
