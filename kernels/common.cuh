// What all CUDA kernels share: number types as data sets store them, and sums over a warp or a block.
//
// A kernel file includes this and nothing else, so that NVRTC builds it without any header of the toolkit's. Where a
// host's C++ compiler builds it (to test kernels on a machine without a GPU), DML_HOST is defined.
#pragma once

#ifndef DML_HOST
// A block's dynamic shared memory, as bytes.
#define DML_DYNAMIC_SHARED(name) extern __shared__ __align__(16) unsigned char name[]
#endif

namespace dml {

template <class A, class B>
constexpr bool same = false;
template <class A>
constexpr bool same<A, A> = true;

constexpr int WARP = 32;
constexpr unsigned ALL_LANES = 0xffffffffu;

struct alignas(2) half {  // IEEE binary16
    unsigned short bits;
};

struct alignas(2) bfloat16 {  // the upper half of a float
    unsigned short bits;
};

// converted<To>(x): an element as stored, in the type that is computed in; and back, rounded to nearest even.
template <class To, class From>
__device__ __forceinline__ To converted(From x) {
    if constexpr (same<From, half>) {
#ifdef DML_HOST
        return To(host::half_to_float(x.bits));
#else
        float wide;
        asm("cvt.f32.f16 %0, %1;" : "=f"(wide) : "h"(x.bits));
        return To(wide);
#endif
    } else if constexpr (same<From, bfloat16>) {
#ifdef DML_HOST
        return To(host::bits_to_float(unsigned(x.bits) << 16));
#else
        return To(__uint_as_float(unsigned(x.bits) << 16));
#endif
    } else if constexpr (same<To, half>) {
        half narrow;
#ifdef DML_HOST
        narrow.bits = host::float_to_half(float(x));
#else
        asm("cvt.rn.f16.f32 %0, %1;" : "=h"(narrow.bits) : "f"(float(x)));
#endif
        return narrow;
    } else if constexpr (same<To, bfloat16>) {
        bfloat16 narrow;
#ifdef DML_HOST
        unsigned bits = host::float_to_bits(float(x));
#else
        unsigned bits = __float_as_uint(float(x));
#endif
        bool is_nan = (bits & 0x7fffffffu) > 0x7f800000u;
        narrow.bits = is_nan ? (unsigned short)((bits >> 16) | 0x40u)
                             : (unsigned short)((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
        return narrow;
    } else {
        return To(x);
    }
}

// The sum over a warp's lanes, in a fixed order, the same on every lane.
template <class T>
__device__ __forceinline__ T warp_sum(T value) {
    for (int offset = WARP / 2; offset > 0; offset /= 2) value += __shfl_xor_sync(ALL_LANES, value, offset);
    return value;
}

// The sum over a block of whole warps, in a fixed order, the same on every thread. `scratch` is shared memory for 32
// elements; two barriers, so that it may be used again at once.
template <class T>
__device__ __forceinline__ T block_sum(T value, T* scratch) {
    int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, warps = blockDim.x / WARP;
    value = warp_sum(value);
    if (lane == 0) scratch[warp] = value;
    __syncthreads();
    value = warp_sum(lane < warps ? scratch[lane] : T(0));
    __syncthreads();
    return value;
}

}  // namespace dml
