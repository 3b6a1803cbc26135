// How a group of threads shares a row of a dense matrix: what each keeps of it in registers, how a sum over the row is
// taken, and how a block's groups add up what they have by column. See glm.cu.
#pragma once
#include "common.cuh"

namespace dml {

// How many elements of a row a thread keeps: as many as four rows of them fit registers.
template <class T, class P>
constexpr int ELEMENTS = sizeof(T) == 8 || sizeof(P) == 8 ? 8 : 16;

// How many rows it keeps: one, and those that are on their way. Short elements are so few bytes that one of these is
// too little to keep the memory busy.
template <class T, bool VECTOR>
constexpr int ROWS_HELD = VECTOR && sizeof(T) == 2 ? 3 : 2;

// Of a row in fixed point, whose sums take two registers each.
template <class P>
constexpr int FIXED_ELEMENTS = 32 / sizeof(P);

template <class T, int V>
struct Pack {  // V elements that are read at once
    T x[V];
    __device__ __forceinline__ void load(const T* from) {
        if constexpr (V == 1) {
            x[0] = *from;
        } else {
            union {
                uint4 bits;
                T elements[V];
            } both;
            both.bits = *reinterpret_cast<const uint4*>(from);
#pragma unroll
            for (int k = 0; k < V; ++k) x[k] = both.elements[k];
        }
    }
    __device__ __forceinline__ void clear() {
#pragma unroll
        for (int k = 0; k < V; ++k) x[k] = T{};
    }
    __device__ __forceinline__ T element(int k) const { return x[k]; }
};

// Elements of two bytes stay in the words that they are read in until they are used: to take these apart, a thread
// would wait for the memory as soon as it has asked.
template <class T>
struct Pack<T, 8> {
    unsigned words[4];
    __device__ __forceinline__ void load(const T* from) {
        uint4 bits = *reinterpret_cast<const uint4*>(from);
        words[0] = bits.x;
        words[1] = bits.y;
        words[2] = bits.z;
        words[3] = bits.w;
    }
    __device__ __forceinline__ void clear() { words[0] = words[1] = words[2] = words[3] = 0; }
    __device__ __forceinline__ T element(int k) const { return T{(unsigned short)(words[k / 2] >> (k % 2 * 16))}; }
};

// What one thread has of a row: K elements, by packs of V that lie `group` packs apart.
template <class T, class P, int K, int V>
struct Row {
    Pack<T, V> packs[K / V];
    P y, counts;
    bool is_there;

    // Read a thread's part of row `number`; zeros where that is negative.
    __device__ __forceinline__ void fetch(const T* __restrict__ X, int features, const P* __restrict__ labels,
                                          const P* __restrict__ weight, long long number, int place, int group) {
        is_there = number >= 0;
        const T* x = X + (is_there ? number * features : 0);
#pragma unroll
        for (int c = 0; c < K / V; ++c) {
            int column = (place + group * c) * V;
            if (is_there && column < features) packs[c].load(x + column);
            else packs[c].clear();
        }
        y = is_there ? labels[number] : P(0);
        counts = is_there && weight ? weight[number] : P(1);
    }
    __device__ __forceinline__ P element(int k) const { return converted<P>(packs[k / V].element(k % V)); }
};

template <int V>
__device__ __forceinline__ int column_of(int k, int place, int group) {
    return (place + group * (k / V)) * V + k % V;
}

__device__ __forceinline__ long long number_at(const long long* __restrict__ rows, long long i, long long count) {
    return i >= count ? -1 : rows ? rows[i] : i;
}

// The sum over a group within a warp, or over a block. Blocks take turns 0 and 1 so that one barrier is enough.
template <bool WIDE, class P>
__device__ __forceinline__ P group_sum(P value, int group, P (*scratch)[WARP], int turn) {
    if constexpr (WIDE) {
        int lane = threadIdx.x % WARP, warps = blockDim.x / WARP;
        value = warp_sum(value);
        if (lane == 0) scratch[turn][threadIdx.x / WARP] = value;
        __syncthreads();
        return warp_sum(lane < warps ? scratch[turn][lane] : P(0));
    } else {
        for (int offset = group / 2; offset > 0; offset /= 2) value += __shfl_xor_sync(ALL_LANES, value, offset);
        return value;
    }
}

// Write a block's sums by column to `partial`; `columns` is shared memory for WARP·K of them.
template <bool WIDE, int V, class S, int K>
__device__ __forceinline__ void write_partial(S (&sums)[K], int place, int group, int features, S* columns,
                                              S* partial) {
    if constexpr (!WIDE) {
#pragma unroll
        for (int k = 0; k < K; ++k) {
            for (int offset = group; offset < WARP; offset *= 2)
                sums[k] += __shfl_xor_sync(ALL_LANES, sums[k], offset);
        }
        int warp = threadIdx.x / WARP, warps = blockDim.x / WARP;
        bool is_first = int(threadIdx.x % WARP) < group;
        for (int turn = 0; turn < warps; ++turn) {
            if (turn == warp && is_first) {
#pragma unroll
                for (int k = 0; k < K; ++k) {
                    int column = column_of<V>(k, place, group);
                    columns[column] = turn ? columns[column] + sums[k] : sums[k];
                }
            }
            __syncthreads();
        }
        for (int column = threadIdx.x; column < features; column += blockDim.x) partial[column] = columns[column];
    } else {
#pragma unroll
        for (int k = 0; k < K; ++k) {
            int column = column_of<V>(k, place, group);
            if (column < features) partial[column] = sums[k];
        }
    }
}

}  // namespace dml
