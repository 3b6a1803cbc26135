// Loss and gradient of a linear score over dense rows, X read from memory once; the twin is glm.py, which says what
// each kernel computes. T is what X is stored as, P the parameters' type: float or double, in which all is computed.
//
// Layouts: X (·, features) in C order; y, weight (·,), weight null: 1 each; rows (count,) numbers of rows of X, null:
// the first `count`; parameters (features + 1,), the last one the intercept. `group` is a power of two.
//
// A row of up to MOST_WIDE·ELEMENTS features is shared by a *group* of threads, each of which keeps its elements of the
// row, of the parameters and of the gradient in registers (row_groups.cuh). It asks for the next row before it looks at
// this one, so that the memory always has requests to serve. Rows that begin where 16 bytes can be read at once are
// read so (VECTOR), others element by element. Groups are lanes of one warp, or, where WIDE, a whole block. Longer rows
// go by blocks of rows that stay in the second-level cache between a pass for the scores and one for the gradient.
//
// Order of sums: a row's score by lanes, then over the lanes as a tree; a thread adds its rows' gradients in their
// order; then come a warp's groups as a tree, a block's warps in turn, and last, in `add_partials`, the blocks, in
// float64, in an order that depends on their number alone. So the same launch gives the same bits. In fixed point the
// terms are integers, and the sum is the same for every launch; a row's own sums depend on `features` alone.
#include "fixed_point.cuh"
#include "row_groups.cuh"

namespace dml {

constexpr int MOST_IN_WARPS = 256, MOST_WIDE = 512, MOST_WIDE_SINGLY = 384, MOST_ALONE = 1024;

// Each block's gradient of its rows to `partials` (blocks, features + 1), their loss to `losses` (blocks,).
template <class T, class P, bool VECTOR, bool WIDE>
__global__ void __launch_bounds__(WIDE ? VECTOR ? MOST_WIDE : MOST_WIDE_SINGLY : MOST_IN_WARPS, WIDE ? 1 : 2)
gradient_of_rows(long long loss, double delta, const T* __restrict__ X, long long width, const P* __restrict__ y,
                 const P* __restrict__ weight, const long long* __restrict__ rows, long long count,
                 const P* __restrict__ parameters, long long group_, P* __restrict__ partials,
                 double* __restrict__ losses) {
    constexpr int K = ELEMENTS<T, P>, V = VECTOR ? 16 / sizeof(T) : 1, R = ROWS_HELD<T, VECTOR>;
    __shared__ P columns[WIDE ? 1 : WARP * K];
    __shared__ P scratch[2][WARP];
    __shared__ double wide_scratch[WARP];
    const int features = int(width), group = WIDE ? blockDim.x : int(group_), place = threadIdx.x % group;
    P held[K], sums[K], bias = parameters[features], bias_slope = P(0);
    double total = 0;
#pragma unroll
    for (int k = 0; k < K; ++k) {
        int column = column_of<V>(k, place, group);
        held[k] = column < features ? parameters[column] : P(0);
        sums[k] = P(0);
    }
    const int groups = blockDim.x / group;
    const long long step = (long long)gridDim.x * groups;
    long long i = (long long)blockIdx.x * groups + threadIdx.x / group;
    // A warp's groups go round together, even where some of them have no row left.
    long long first = WIDE ? i : (long long)blockIdx.x * groups + threadIdx.x / WARP * (WARP / group);
    Row<T, P, K, V> held_rows[R];
#pragma unroll
    for (int r = 0; r < R - 1; ++r) {
        held_rows[r].fetch(X, features, y, weight, number_at(rows, i, count), place, group);
        i += step;
    }
    long long number = number_at(rows, i, count);
    int turn = 0;
    while (first < count) {
        // So many rows a round that each has registers of its own, and none waits to be moved.
#pragma unroll
        for (int r = 0; r < R; ++r) {
            if (first >= count) break;
            held_rows[(r + R - 1) % R].fetch(X, features, y, weight, number, place, group);
            i += step;
            number = number_at(rows, i, count);
            const Row<T, P, K, V>& row = held_rows[r];
            P even = P(0), odd = P(0);
#pragma unroll
            for (int k = 0; k < K; k += 2) {
                even += row.element(k) * held[k];
                odd += row.element(k + 1) * held[k + 1];
            }
            P score = group_sum<WIDE>(even + odd, group, scratch, turn) + bias;
            turn ^= 1;
            auto found = slope_and_loss(int(loss), P(delta), score, row.y, row.counts);
            if (row.is_there) {
#pragma unroll
                for (int k = 0; k < K; ++k) sums[k] += found.slope * row.element(k);
                bias_slope += found.slope;
                total += double(found.loss);
            }
            first += step;
        }
    }
    P* partial = partials + blockIdx.x * (width + 1);
    write_partial<WIDE, V>(sums, place, group, features, columns, partial);
    __syncthreads();
    bias_slope = block_sum(place == 0 ? bias_slope : P(0), scratch[0]);
    total = block_sum(place == 0 ? total : 0.0, wide_scratch);
    if (threadIdx.x == 0) {
        partial[features] = bias_slope;
        losses[blockIdx.x] = total;
    }
}

// Add `partials` (parts, columns) up, in float64 or in integers, onto `out` (columns,); blocks of 32 columns, whose
// warps take parts in turn. What the last block adds is `losses` (parts,), onto `total`.
template <class From, class To>
__global__ void __launch_bounds__(MOST_ALONE)
add_partials(const From* __restrict__ partials, long long parts, long long columns, To* __restrict__ out,
             const double* __restrict__ losses, double* __restrict__ total) {
    constexpr bool IS_WHOLE = same<From, long long>;
    __shared__ double sums[WARP][WARP];
    __shared__ long long whole_sums[IS_WHOLE ? WARP : 1][WARP];
    int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, warps = blockDim.x / WARP;
    if (blockIdx.x == gridDim.x - 1) {
        double sum = 0;
        for (long long part = threadIdx.x; losses && part < parts; part += blockDim.x) sum += losses[part];
        sum = block_sum(sum, sums[0]);
        if (losses && threadIdx.x == 0) *total += sum;
        return;
    }
    long long column = (long long)blockIdx.x * WARP + lane;
    if constexpr (IS_WHOLE) {
        long long sum = 0;
        for (long long part = warp; column < columns && part < parts; part += warps)
            sum += partials[part * columns + column];
        whole_sums[warp][lane] = sum;
    } else {
        double sum = 0;
#pragma unroll 4
        for (long long part = warp; column < columns && part < parts; part += warps)
            sum += double(partials[part * columns + column]);
        sums[warp][lane] = sum;
    }
    __syncthreads();
    if (warp > 0 || column >= columns) return;
    if constexpr (IS_WHOLE) {
        long long sum = 0;
        for (int w = 0; w < warps; ++w) sum += whole_sums[w][lane];
        out[column] += sum;
    } else {
        double sum = 0;
        for (int w = 0; w < warps; ++w) sum += sums[w][lane];
        out[column] = To(double(out[column]) + sum);
    }
}

// The score of each row to `out` (count,), its slope to `slopes` (count,), where they are not null; each block's loss
// is added to `losses` (blocks,), where that is not null. Threads of a group, or of a block where `group` is as large,
// stride over the row.
template <class T, class P, bool VECTOR>
__global__ void __launch_bounds__(MOST_IN_WARPS)
scores(long long loss, double delta, const T* __restrict__ X, long long features, const P* __restrict__ y,
       const P* __restrict__ weight, const long long* __restrict__ rows, long long count,
       const P* __restrict__ parameters, long long group_, P* __restrict__ out, P* __restrict__ slopes,
       double* __restrict__ losses) {
    constexpr int V = VECTOR ? 16 / sizeof(T) : 1;
    __shared__ P scratch[WARP];
    __shared__ double wide_scratch[WARP];
    const int group = int(group_), place = threadIdx.x % group, groups = blockDim.x / group;
    long long first = (long long)blockIdx.x * groups + (group > WARP ? 0 : threadIdx.x / WARP * (WARP / group));
    const long long ahead = group > WARP ? 0 : threadIdx.x % WARP / group;
    double total = 0;
    for (; first < count; first += (long long)gridDim.x * groups) {
        long long i = first + ahead, number = number_at(rows, i, count);
        P score = P(0);
        if (number >= 0) {
            const T* x = X + number * features;
#pragma unroll 4
            for (long long column = (long long)place * V; column < features; column += group * V) {
                Pack<T, V> pack;
                pack.load(x + column);
#pragma unroll
                for (int k = 0; k < V; ++k) score += converted<P>(pack.element(k)) * parameters[column + k];
            }
        }
        if (group > WARP) score = block_sum(score, scratch);
        else score = group_sum<false, P>(score, group, nullptr, 0);
        score += parameters[features];
        if (number < 0 || place > 0) continue;
        if (out) out[i] = score;
        if (losses) {
            auto found = slope_and_loss(int(loss), P(delta), score, y[number], weight ? weight[number] : P(1));
            if (slopes) slopes[i] = found.slope;
            total += double(found.loss);
        }
    }
    if (!losses) return;
    total = block_sum(total, wide_scratch);
    if (threadIdx.x == 0) losses[blockIdx.x] += total;
}

// Add the sums over a block of four numbers of each thread to `to` (4,); `scratch` is shared memory for 32.
__device__ __forceinline__ void add_four(long long bias, long long loss, long long mass, long long loss_mass,
                                           long long* scratch, long long* to) {
    bias = block_sum(bias, scratch);
    loss = block_sum(loss, scratch);
    mass = block_sum(mass, scratch);
    loss_mass = block_sum(loss_mass, scratch);
    if (threadIdx.x > 0) return;
    to[0] += bias;
    to[1] += loss;
    to[2] += mass;
    to[3] += loss_mass;
}

// Each block's sums in fixed point to `partials` (blocks, features + 4), which are 0 before.
template <class T, class P, bool WIDE>
__global__ void __launch_bounds__(WIDE ? MOST_WIDE_SINGLY : MOST_IN_WARPS, WIDE ? 1 : 2)
fixed_point_of_rows(long long loss, double delta, const T* __restrict__ X, long long width,
                    const P* __restrict__ y, const P* __restrict__ weight, const long long* __restrict__ rows,
                    long long count, const P* __restrict__ parameters, const P* __restrict__ shift,
                    const P* __restrict__ scale, double per_unit, double per_loss_unit, long long group_,
                    long long* __restrict__ partials) {
    constexpr int K = FIXED_ELEMENTS<P>;
    __shared__ long long columns[WIDE ? 1 : WARP * K];
    __shared__ P scratch[2][WARP], square_scratch[2][WARP];
    __shared__ long long whole_scratch[WARP];
    const int features = int(width), group = WIDE ? blockDim.x : int(group_), place = threadIdx.x % group;
    const int groups = blockDim.x / group;
    long long sums[K], bias = 0, total = 0, mass = 0, loss_mass = 0;
#pragma unroll
    for (int k = 0; k < K; ++k) sums[k] = 0;
    const long long step = (long long)gridDim.x * groups;
    long long i = (long long)blockIdx.x * groups + threadIdx.x / group;
    long long first = WIDE ? i : (long long)blockIdx.x * groups + threadIdx.x / WARP * (WARP / group);
    Row<T, P, K, 1> row, next;
    row.fetch(X, features, y, weight, number_at(rows, i, count), place, group);
    int turn = 0;
    for (; first < count; first += step) {
        i += step;
        next.fetch(X, features, y, weight, number_at(rows, i, count), place, group);
        P score = P(0), squares = P(0), z[K];
#pragma unroll
        for (int k = 0; k < K; ++k) {
            int column = column_of<1>(k, place, group);
            z[k] = P(0);
            if (column < features) {
                P x = row.element(k);
                z[k] = (x - shift[column]) * scale[column];
                score += x * parameters[column];
                squares += z[k] * z[k];
            }
        }
        score = group_sum<WIDE>(score, group, scratch, turn) + parameters[features];
        squares = group_sum<WIDE>(squares, group, square_scratch, turn);
        turn ^= 1;
        FixedRow<P> terms(slope_and_loss(int(loss), P(delta), score, row.y, row.counts), squares, scale[features],
                          per_unit, per_loss_unit);
        if (row.is_there) {
            if (terms.fits) {
#pragma unroll
                for (int k = 0; k < K; ++k) sums[k] += (long long)(z[k] * terms.step);
            }
            bias += terms.bias;
            total += terms.loss;
            mass += terms.mass;
            loss_mass += terms.loss_mass;
        }
        row = next;
    }
    long long* partial = partials + blockIdx.x * (width + 4);
    write_partial<WIDE, 1>(sums, place, group, features, columns, partial);
    __syncthreads();
    if (place > 0) bias = total = mass = loss_mass = 0;
    add_four(bias, total, mass, loss_mass, whole_scratch, partial + features);
}

// Rows beyond what a block holds, in fixed point: a block per row; the factor of its terms, 0 where it cannot be added,
// to `steps` (count,); each block's other sums are added to `others` (blocks, 4).
template <class T, class P>
__global__ void __launch_bounds__(MOST_IN_WARPS)
fixed_point_steps(long long loss, double delta, const T* __restrict__ X, long long features, const P* __restrict__ y,
                  const P* __restrict__ weight, const long long* __restrict__ rows, long long count,
                  const P* __restrict__ parameters, const P* __restrict__ shift, const P* __restrict__ scale,
                  double per_unit, double per_loss_unit, P* __restrict__ steps, long long* __restrict__ others) {
    __shared__ P scratch[WARP];
    __shared__ long long whole_scratch[WARP];
    long long bias = 0, total = 0, mass = 0, loss_mass = 0;
    for (long long i = blockIdx.x; i < count; i += gridDim.x) {
        long long number = number_at(rows, i, count);
        const T* x = X + number * features;
        P score = P(0), squares = P(0);
#pragma unroll 4
        for (long long column = threadIdx.x; column < features; column += blockDim.x) {
            P element = converted<P>(x[column]), z = (element - shift[column]) * scale[column];
            score += element * parameters[column];
            squares += z * z;
        }
        score = block_sum(score, scratch) + parameters[features];
        squares = block_sum(squares, scratch);
        if (threadIdx.x > 0) continue;
        auto found = slope_and_loss(int(loss), P(delta), score, y[number], weight ? weight[number] : P(1));
        FixedRow<P> terms(found, squares, scale[features], per_unit, per_loss_unit);
        steps[i] = terms.step;
        bias += terms.bias;
        total += terms.loss;
        mass += terms.mass;
        loss_mass += terms.loss_mass;
    }
    add_four(bias, total, mass, loss_mass, whole_scratch, others + blockIdx.x * 4);
}

// Add the gradient of rows whose `slopes` (count,) are known to `partials` (gridDim.y, columns): thread per column,
// rows dealt to gridDim.y parts. Column `features`, where `columns` has it, is the intercept's. With S = long long the
// terms are those of fixed point, of rows standardised by `shift` and `scale`.
template <class T, class P, class S>
__global__ void __launch_bounds__(MOST_IN_WARPS)
gradient_of_columns(const T* __restrict__ X, long long features, const long long* __restrict__ rows, long long count,
                    const P* __restrict__ slopes, const P* __restrict__ shift, const P* __restrict__ scale,
                    long long columns, S* __restrict__ partials) {
    long long column = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (column >= columns) return;
    S sum = S(0);
    const bool is_feature = column < features;
    P center = P(0), factor = P(1);
    if constexpr (same<S, long long>) {
        center = shift[column];
        factor = scale[column];
    }
#pragma unroll 8
    for (long long i = blockIdx.y; i < count; i += gridDim.y) {
        long long number = rows ? rows[i] : i;
        P x = is_feature ? converted<P>(X[number * features + column]) : P(1), slope = slopes[i];
        if constexpr (same<S, long long>) {
            if (slope != P(0)) sum += (long long)((x - center) * factor * slope);
        } else {
            sum += slope * x;
        }
    }
    partials[blockIdx.y * columns + column] += sum;
}

// One SGD step for each of the rows in turn, by one block; column j is always thread j mod blockDim.x's. The loss met
// on the way is added to `total`. IN_SHARED: the weights lie in dynamic shared memory meanwhile.
template <class T, class P>
__global__ void __launch_bounds__(MOST_WIDE)
sequential_sgd(long long loss, double delta, const T* __restrict__ X, long long features, const P* __restrict__ y,
               const P* __restrict__ weight, const long long* __restrict__ rows, long long count,
               const P* __restrict__ shift, const P* __restrict__ scale, P* __restrict__ parameters, double step_size,
               double l1, double l2, bool in_shared, double* __restrict__ total) {
    constexpr int AHEAD = 4;  // of a thread's elements of the next row are read before this row's step
    DML_DYNAMIC_SHARED(raw);
    __shared__ P scratch[WARP];
    P* held = in_shared ? reinterpret_cast<P*>(raw) : parameters;
    const P keep = P(1 / (1 + step_size * l2)), threshold = P(step_size * l1), rate = P(step_size);
    const int threads = blockDim.x;
    if (in_shared)
        for (long long j = threadIdx.x; j < features; j += threads) held[j] = parameters[j];
    P bias = parameters[features], now[AHEAD], next[AHEAD];
    double met = 0;
    for (long long i = -1; i < count; ++i) {
        if (i + 1 < count) {
            const T* x = X + number_at(rows, i + 1, count) * features;
#pragma unroll
            for (int k = 0; k < AHEAD; ++k) {
                long long j = threadIdx.x + (long long)k * threads;
                next[k] = j < features ? converted<P>(x[j]) : P(0);
            }
        }
        if (i >= 0) {
            long long number = number_at(rows, i, count);
            const T* x = X + number * features;
            P score = P(0);
#pragma unroll
            for (int k = 0; k < AHEAD; ++k) {
                long long j = threadIdx.x + (long long)k * threads;
                if (j < features) score += (now[k] - shift[j]) * scale[j] * held[j];
            }
            for (long long j = threadIdx.x + (long long)AHEAD * threads; j < features; j += threads)
                score += (converted<P>(x[j]) - shift[j]) * scale[j] * held[j];
            score = block_sum(score, scratch) + bias;
            auto found = slope_and_loss(int(loss), P(delta), score, y[number], weight ? weight[number] : P(1));
            met += double(found.loss);
            const P step = rate * found.slope;
            auto change = [&](long long j, P element) {
                P w = held[j] - step * (element - shift[j]) * scale[j];
                held[j] = keep * (threshold > P(0) ? shrunk(w, threshold) : w);
            };
#pragma unroll
            for (int k = 0; k < AHEAD; ++k) {
                long long j = threadIdx.x + (long long)k * threads;
                if (j < features) change(j, now[k]);
            }
            for (long long j = threadIdx.x + (long long)AHEAD * threads; j < features; j += threads)
                change(j, converted<P>(x[j]));
            bias -= step * scale[features];
        }
#pragma unroll
        for (int k = 0; k < AHEAD; ++k) now[k] = next[k];
    }
    if (in_shared)
        for (long long j = threadIdx.x; j < features; j += threads) parameters[j] = held[j];
    if (threadIdx.x == 0) {
        parameters[features] = bias;
        *total += met;
    }
}

}  // namespace dml
