// Elements in packs of 16 bytes, which is what a thread loads and stores best, and sums of several vectors.
#pragma once
#include "common.cuh"

namespace dml {

// N elements, a power of two of them, that lie together and are moved as 16 bytes at a time.
template <class T, int N>
struct alignas(sizeof(T) * N < 16 ? sizeof(T) * N : 16) Pack {
    T at[N];
};

template <int N, class T>
__device__ __forceinline__ Pack<T, N> load(const T* from) {
    return *reinterpret_cast<const Pack<T, N>*>(from);
}

template <int N, class T>
__device__ __forceinline__ void store(T* to, const Pack<T, N>& pack) {
    *reinterpret_cast<Pack<T, N>*>(to) = pack;
}

// Whether packs of N elements can be moved from or to here (a null pointer: nothing is moved).
template <int N, class T>
__device__ __forceinline__ bool aligned(const T* pointer) {
    return reinterpret_cast<unsigned long long>(pointer) % alignof(Pack<T, N>) == 0;
}

// What sums of elements as stored are taken in.
template <class T>
struct Summed {
    using type = T;
};
template <>
struct Summed<half> {
    using type = float;
};
template <>
struct Summed<bfloat16> {
    using type = float;
};

// Vectors that are to be added up: those whose addresses are in `table`, from element `from` of each, or `only` one.
template <class T>
struct Addends {
    const T* only;
    const long long* table;
    long long count, from;

    __device__ __forceinline__ const T* vector(int i) const {
        return table ? reinterpret_cast<const T*>(table[i]) + from : only;
    }

    template <int N>
    __device__ __forceinline__ bool all_aligned() const {
        bool fine = true;
        for (int i = 0; i < (table ? int(count) : 1); ++i) fine = fine && aligned<N>(vector(i));
        return fine;
    }

    // Elements j … j + N − 1 of the sum, added in the table's order whoever asks.
    template <int N>
    __device__ __forceinline__ Pack<typename Summed<T>::type, N> sum(long long j) const {
        using Sum = typename Summed<T>::type;
        Pack<Sum, N> total;
        Pack<T, N> one = load<N>(vector(0) + j);
#pragma unroll
        for (int i = 0; i < N; ++i) total.at[i] = converted<Sum>(one.at[i]);
        if (!table) return total;
#pragma unroll (sizeof(T) > 4 ? 2 : 4)  // so many loads are on their way at a time, 16 bytes and more each
        for (int a = 1; a < int(count); ++a) {
            one = load<N>(vector(a) + j);
#pragma unroll
            for (int i = 0; i < N; ++i) total.at[i] += converted<Sum>(one.at[i]);
        }
        return total;
    }
};

// a · b, rounded: in a sum, the compiler may not contract it to a fused multiply-add.
__device__ __forceinline__ float times(float a, float b) { return __fmul_rn(a, b); }
__device__ __forceinline__ double times(double a, double b) { return __dmul_rn(a, b); }

}  // namespace dml
