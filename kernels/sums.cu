// Sums of the vectors of several ranks, and what brings slices of a vector together: see cuda/sums.py.
//
// A sum is taken element by element in the order of the addends, whoever takes it and on whatever grid: 16-bit floats
// in float32, rounded once at the end, all others in their own type. Vectors of other ranks are read where they lie,
// each element once. A thread moves packs of 16 bytes (of the wider type) where all vectors are aligned to that.
#include "packs.cuh"

namespace dml {

// out[j] = finished(Σ addends[j]), for count elements.
template <class From, class To, class Finished>
__device__ __forceinline__ void add_up_to(const Addends<From>& all, To* out, long long count, Finished finished) {
    constexpr int N = 16 / (sizeof(From) > sizeof(To) ? sizeof(From) : sizeof(To));
    const long long thread = blockIdx.x * (long long)blockDim.x + threadIdx.x;
    const long long threads = gridDim.x * (long long)blockDim.x;
    const long long packs = aligned<N>(out) && all.template all_aligned<N>() ? count / N : 0;
    for (long long pack = thread; pack < packs; pack += threads) {
        auto sum = all.template sum<N>(pack * N);
        Pack<To, N> result;
#pragma unroll
        for (int i = 0; i < N; ++i) result.at[i] = finished(sum.at[i]);
        store<N>(out + pack * N, result);
    }
    for (long long j = packs * N + thread; j < count; j += threads) out[j] = finished(all.template sum<1>(j).at[0]);
}

// out[j] = Σ addends[j], for count elements.
template <class From, class To>
__global__ void __launch_bounds__(256) add_up(const From* only, const long long* table, long long addends,
                                              long long from, To* out, long long count) {
    add_up_to(Addends<From>{only, table, addends, from}, out, count, [](auto sum) { return converted<To>(sum); });
}

// out[j] = Σ addends[j] / divisor, the quotient being float64's, for count elements of float32 or float64.
template <class T>
__global__ void __launch_bounds__(256, 4) average(const T* only, const long long* table, long long addends,
                                               long long from, double divisor, T* out, long long count) {
    add_up_to(Addends<T>{only, table, addends, from}, out, count,
              [divisor](T sum) { return T(double(sum) / divisor); });
}

// out[j] = a[j] + b[j], for count elements; out may be a or b.
template <class T>
__global__ void __launch_bounds__(256) add(const T* a, const T* b, T* out, long long count) {
    constexpr int N = 16 / sizeof(T);
    using Sum = typename Summed<T>::type;
    const long long thread = blockIdx.x * (long long)blockDim.x + threadIdx.x;
    const long long threads = gridDim.x * (long long)blockDim.x;
    const long long packs = aligned<N>(a) && aligned<N>(b) && aligned<N>(out) ? count / N : 0;
    for (long long pack = thread; pack < packs; pack += threads) {
        Pack<T, N> one = load<N>(a + pack * N), other = load<N>(b + pack * N);
#pragma unroll
        for (int i = 0; i < N; ++i) one.at[i] = converted<T>(converted<Sum>(one.at[i]) + converted<Sum>(other.at[i]));
        store<N>(out + pack * N, one);
    }
    for (long long j = packs * N + thread; j < count; j += threads)
        out[j] = converted<T>(converted<Sum>(a[j]) + converted<Sum>(b[j]));
}

// Copies elements cuts[v] … cuts[v + 1] − 1 of vector v of the table to the same places of out; grid (blocks, vectors).
// The vector `own` is left out: that is where out has them already. T is an unsigned type as wide as the elements.
template <class T>
__global__ void __launch_bounds__(256) gather(const long long* __restrict__ table, const long long* __restrict__ cuts,
                                              long long own, T* __restrict__ out) {
    constexpr int N = 16 / sizeof(T);
    if (blockIdx.y == own) return;
    const T* vector = reinterpret_cast<const T*>(table[blockIdx.y]);
    const long long first = cuts[blockIdx.y], count = cuts[blockIdx.y + 1] - first;
    const long long thread = blockIdx.x * (long long)blockDim.x + threadIdx.x;
    const long long threads = gridDim.x * (long long)blockDim.x;
    const T* source = vector + first;
    T* target = out + first;
    const long long packs = aligned<N>(source) && aligned<N>(target) ? count / N : 0;
    for (long long pack = thread; pack < packs; pack += threads)
        store<N>(target + pack * N, load<N>(source + pack * N));
    for (long long j = packs * N + thread; j < count; j += threads) target[j] = source[j];
}

}  // namespace dml
