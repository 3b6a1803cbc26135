// Rows of factors in a group of neighbouring lanes of a warp, four numbers a pack, in float32 whatever they are stored as.
//
// A lane has packs lane, lane + LANES, … of a row. Rows may be changed by other warps at the same time: they are read and
// written in the second-level cache, past the first, in which nobody else's numbers would appear.
#pragma once
#include "packs.cuh"

namespace dml {

template <class T>
struct Bits;
template <>
struct Bits<float> {
    using type = uint4;
};
template <>
struct Bits<half> {
    using type = uint2;
};

template <class T, int LANES, int PACKS>
struct FactorRow {
    float at[PACKS][4];

    __device__ __forceinline__ void clear() {
#pragma unroll
        for (int j = 0; j < PACKS; ++j)
#pragma unroll
            for (int i = 0; i < 4; ++i) at[j][i] = 0.f;
    }

    // A row of `packs` packs, by lane `lane` of the group; packs behind the row's end are 0.
    __device__ __forceinline__ void load(const T* row, int lane, int packs) {
        union {
            typename Bits<T>::type bits;
            Pack<T, 4> pack;
        };
#pragma unroll
        for (int j = 0; j < PACKS; ++j) {
            const int number = lane + j * LANES;
            if (number >= packs) continue;
            bits = __ldcg(reinterpret_cast<const typename Bits<T>::type*>(row) + number);
#pragma unroll
            for (int i = 0; i < 4; ++i) at[j][i] = converted<float>(pack.at[i]);
        }
    }

    __device__ __forceinline__ void store(T* row, int lane, int packs) const {
        union {
            typename Bits<T>::type bits;
            Pack<T, 4> pack;
        };
#pragma unroll
        for (int j = 0; j < PACKS; ++j) {
            const int number = lane + j * LANES;
            if (number >= packs) continue;
#pragma unroll
            for (int i = 0; i < 4; ++i) pack.at[i] = converted<T>(at[j][i]);
            __stcg(reinterpret_cast<typename Bits<T>::type*>(row) + number, bits);
        }
    }

    // This lane's part of the scalar product with another row.
    __device__ __forceinline__ float times(const FactorRow& other) const {
        float sum = 0.f;
#pragma unroll
        for (int j = 0; j < PACKS; ++j)
#pragma unroll
            for (int i = 0; i < 4; ++i) sum += at[j][i] * other.at[j][i];
        return sum;
    }
};

// The sum over the lanes of a group, in a fixed order, the same on each of them. All lanes of the warp take part.
template <int LANES>
__device__ __forceinline__ float group_sum(float value) {
#pragma unroll
    for (int offset = LANES / 2; offset > 0; offset /= 2) value += __shfl_xor_sync(ALL_LANES, value, offset);
    return value;
}

}  // namespace dml
