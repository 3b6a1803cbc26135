// One pass over memory from the addends of a gradient to new weights: the rules of updates.py, which says what they
// are.
//
// Every element is computed by itself, each operation rounded as the CPU rounds it: the result has the twin's bits, and
// depends neither on how a vector is cut nor on the grid. A gradient may be the sum of several vectors (those of the
// ranks of a node), taken here in their order, so that it is never written. A thread moves packs of 16 bytes of each
// array where all of them are aligned to that, else single elements, which are still coalesced.
#include "packs.cuh"

namespace dml {

enum Rule { PLAIN, MOMENTUM, NESTEROV, ADAGRAD, RMSPROP, ADAM };

// Scalars of a step: see take_step in updates.py.
template <class W>
struct Step {
    long long rule;
    W clip, step_size, momentum, fresh1, fresh2, correct1, correct2, epsilon, l1, l2, decay, pace;
};

// The value brought into ±limit; NaN stays NaN.
template <class W>
__device__ __forceinline__ W clipped(W value, W limit) {
    return value > limit ? limit : value < -limit ? -limit : value;
}

// The gradient in the weights' type.
template <class W, class S>
__device__ __forceinline__ W scaled(S summed, double unit) {
    if constexpr (same<W, S>) return times(summed, W(unit));
    else return W(times(double(summed), unit));
}

// One weight's step; g is its gradient, first and second its state, of which each rule has what it needs.
template <class W>
__device__ __forceinline__ void step(const Step<W>& s, bool penalised, W g, W& weight, W& first, W& second) {
    const W none = W(0), one = W(1);
    const W l1 = penalised ? s.l1 : none, l2 = penalised ? s.l2 : none, decay = penalised ? s.decay : none;
    const W w = weight;
    g = clipped(g, s.clip) + times(l2, w);
    W moved, threshold;
    if (s.rule == PLAIN) {
        moved = w - times(s.step_size, g);
        threshold = times(s.step_size, l1);
    } else if (s.rule == MOMENTUM || s.rule == NESTEROV) {
        // Velocity also gathers the subgradient of l1·|w| at the new weight.
        const W reach = times(s.step_size, s.rule == NESTEROV ? one + s.momentum : one);
        const W inverse = reach > none ? one / reach : none;
        const W u = times(s.momentum, first) + g;
        moved = w - times(s.step_size, s.rule == NESTEROV ? g + times(s.momentum, u) : u);
        threshold = times(reach, l1);
        first = u + times(clipped(moved, threshold), inverse);
    } else {
        W size, along = g, extra = none;
        if (s.rule == ADAGRAD) {
            first += times(g, g);
            size = s.step_size / (sqrt(first) + s.epsilon);
        } else if (s.rule == RMSPROP) {
            first += times(s.fresh2, times(g, g) - first);
            size = s.step_size / (sqrt(first) + s.epsilon);
        } else {
            first += times(s.fresh1, g - first);
            second += times(s.fresh2, times(g, g) - second);
            size = s.step_size / (times(sqrt(second), s.correct2) + s.epsilon);
            along = times(first, s.correct1);
            extra = times(times(s.step_size, decay), w);
        }
        moved = w - times(size, along) - extra;
        threshold = times(size, l1);
    }
    weight = moved - clipped(moved, threshold);
}

// Where an element stands among the runs that `edges` cut a vector into: the second, the fourth … are penalised.
struct Run {
    const long long* edges;
    long long number, next;

    __device__ __forceinline__ explicit Run(const long long* edges) : edges(edges), number(0), next(edges[1]) {}

    // Asked for elements in ascending order.
    __device__ __forceinline__ bool penalised(long long element) {
        while (element >= next) next = edges[++number + 1];
        return number % 2 == 1;
    }
};

template <int N, class W, class S>
__device__ __forceinline__ void step_pack(const Step<W>& s, const Addends<S>& summed, double unit, Run& run,
                                          long long start, long long j, W* weights, W* first, W* second, W* average) {
    Pack<W, N> w = load<N>(weights + j), a = {}, b = {}, mean = {};
    if (s.rule != PLAIN) a = load<N>(first + j);
    if (s.rule == ADAM) b = load<N>(second + j);
    if (average) mean = load<N>(average + j);
    auto g = summed.template sum<N>(j);
#pragma unroll
    for (int i = 0; i < N; ++i) {
        step(s, run.penalised(start + j + i), scaled<W>(g.at[i], unit), w.at[i], a.at[i], b.at[i]);
        mean.at[i] += times(s.pace, w.at[i] - mean.at[i]);
    }
    store<N>(weights + j, w);
    if (s.rule != PLAIN) store<N>(first + j, a);
    if (s.rule == ADAM) store<N>(second + j, b);
    if (average) store<N>(average + j, mean);
}

// Takes a step in place of weights (count,), elements start … of a vector, by the gradient unit·(sum of the addends).
// See take_step in updates.py for the rest; first, second and average are null where there is none. `changing` is null,
// or has {unit, step_size, correct1, correct2, pace} in place of those given: a launch that is replayed step by step
// always has the same arguments. Three blocks a processor have enough loads on their way: what the compiler would do to
// fit more of them costs stores.
template <class W, class S>
__global__ void __launch_bounds__(256, 3) take_step(
        long long rule, long long count, const S* only, const long long* table, long long addends, long long from,
        W* weights, W* first, W* second, W* average, long long start, const long long* edges, double unit, W clip,
        W step_size, W momentum, W fresh1, W fresh2, W correct1, W correct2, W epsilon, W l1, W l2, W decay, W pace,
        const double* changing) {
    constexpr int N = 16 / sizeof(W);
    if (changing) {
        unit = changing[0];
        step_size = W(changing[1]);
        correct1 = W(changing[2]);
        correct2 = W(changing[3]);
        pace = W(changing[4]);
    }
    const Step<W> s = {rule,     clip, step_size, momentum, fresh1, fresh2, correct1,
                       correct2, epsilon, l1,     l2,       decay,  pace};
    const Addends<S> summed = {only, table, addends, from};
    const long long thread = blockIdx.x * (long long)blockDim.x + threadIdx.x;
    const long long threads = gridDim.x * (long long)blockDim.x;
    Run run(edges);
    bool packed = aligned<N>(weights) && aligned<N>(first) && aligned<N>(second) && aligned<N>(average);
    packed = packed && summed.template all_aligned<N>();
    const long long packs = packed ? count / N : 0;
    for (long long pack = thread; pack < packs; pack += threads)
        step_pack<N>(s, summed, unit, run, start, pack * N, weights, first, second, average);
    for (long long j = packs * N + thread; j < count; j += threads)
        step_pack<1>(s, summed, unit, run, start, j, weights, first, second, average);
}

}  // namespace dml
