// CUDA C++ for a host's compiler, as far as kernels/*.cu use it: keywords, indices, barriers, warps, atomics, vectors.
//
// A test's translation unit includes this, then a kernel file, then launches its kernels through `host::launch`.
// The kernels themselves are unchanged; only common.cuh asks for DML_HOST.
#pragma once
#define DML_HOST

#include <float.h>
#include <limits.h>
#include <math.h>
#include <stdint.h>
#include <stdio.h>

#include <string>
#include <tuple>
#include <type_traits>
#include <utility>

#include "host_block.hpp"

#define __global__
#define __device__
#define __host__
#define __constant__ static const
#define __shared__ static
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)
#define __align__(bytes) __attribute__((aligned(bytes)))
#define __grid_constant__
#define DML_DYNAMIC_SHARED(name) unsigned char* const name = ::host::block->shared
#define threadIdx (::host::self->thread)
#define blockIdx (::host::self->block)
#define blockDim (::host::block->launch.block)
#define gridDim (::host::block->launch.grid)

using dim3 = host::Index;
using uint3 = host::Index;
constexpr int warpSize = 32;

#define DML_VECTORS(T, name, two, four)                                                      \
    struct alignas(two) name##2 { T x, y; };                                                 \
    struct name##3 { T x, y, z; };                                                           \
    struct alignas(four) name##4 { T x, y, z, w; };                                          \
    inline name##2 make_##name##2(T x, T y) { return {x, y}; }                               \
    inline name##3 make_##name##3(T x, T y, T z) { return {x, y, z}; }                       \
    inline name##4 make_##name##4(T x, T y, T z, T w) { return {x, y, z, w}; }
DML_VECTORS(float, float, 8, 16)
DML_VECTORS(double, double, 16, 16)
DML_VECTORS(int, int, 8, 16)
DML_VECTORS(signed char, char, 2, 4)
DML_VECTORS(unsigned char, uchar, 2, 4)
DML_VECTORS(short, short, 4, 8)
DML_VECTORS(unsigned short, ushort, 4, 8)
DML_VECTORS(long long, longlong, 16, 16)
DML_VECTORS(unsigned long long, ulonglong, 16, 16)
#undef DML_VECTORS
struct alignas(8) uint2 { unsigned x, y; };
struct alignas(16) uint4 { unsigned x, y, z, w; };
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }

// Bits.
namespace host {
template <class To, class From>
inline To bits_as(From from) {
    static_assert(sizeof(To) == sizeof(From));
    To to;
    memcpy(&to, &from, sizeof(To));
    return to;
}

inline float bits_to_float(unsigned bits) { return bits_as<float>(bits); }
inline unsigned float_to_bits(float value) { return bits_as<unsigned>(value); }

inline float half_to_float(unsigned short bits) {
    unsigned sign = unsigned(bits & 0x8000u) << 16, exponent = bits >> 10 & 31, fraction = bits & 0x3ffu;
    if (exponent == 31) return bits_to_float(sign | 0x7f800000u | (fraction << 13) | (fraction ? 0x400000u : 0));
    float size = exponent ? bits_to_float((exponent + 112) << 23 | fraction << 13) : float(fraction) * 0x1p-24f;
    return bits_to_float(sign | float_to_bits(size));
}

inline unsigned short float_to_half(float value) {  // to nearest, ties to even
    unsigned bits = float_to_bits(value), size = bits & 0x7fffffffu;
    unsigned short sign = (unsigned short)(bits >> 16 & 0x8000u);
    if (size > 0x7f800000u) return 0x7fff;  // as the device's conversion does
    if (size >= 0x47800000u) return (unsigned short)(sign | 0x7c00u);
    if (size < 0x38800000u) {  // below the normal numbers: adding 0.5 leaves the fraction's bits, rounded
        return (unsigned short)(sign | (float_to_bits(bits_to_float(size) + 0.5f) - 0x3f000000u));
    }
    size += 0xc8000fffu + (size >> 13 & 1u);
    return (unsigned short)(sign | size >> 13);
}
}  // namespace host

inline unsigned __float_as_uint(float x) { return host::bits_as<unsigned>(x); }
inline int __float_as_int(float x) { return host::bits_as<int>(x); }
inline float __uint_as_float(unsigned x) { return host::bits_as<float>(x); }
inline float __int_as_float(int x) { return host::bits_as<float>(x); }
inline long long __double_as_longlong(double x) { return host::bits_as<long long>(x); }
inline double __longlong_as_double(long long x) { return host::bits_as<double>(x); }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
inline int __clz(int x) { return x ? __builtin_clz(unsigned(x)) : 32; }
inline int __clzll(long long x) { return x ? __builtin_clzll((unsigned long long)x) : 64; }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __ffsll(long long x) { return __builtin_ffsll(x); }
inline unsigned __umulhi(unsigned a, unsigned b) { return unsigned((unsigned long long)a * b >> 32); }
inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
    return (unsigned long long)((unsigned __int128)a * b >> 64);
}

// Arithmetic. Compiled with -ffp-contract=off, so that products and sums are rounded one by one.
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __frcp_rn(float a) { return 1 / a; }
inline float __fsqrt_rn(float a) { return sqrtf(a); }
inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
inline double __dmul_rn(double a, double b) { return a * b; }
inline double __dadd_rn(double a, double b) { return a + b; }
inline double __dsub_rn(double a, double b) { return a - b; }
inline double __ddiv_rn(double a, double b) { return a / b; }
inline double __dsqrt_rn(double a) { return sqrt(a); }
inline double __fma_rn(double a, double b, double c) { return fma(a, b, c); }
inline float __expf(float x) { return expf(x); }
inline float __logf(float x) { return logf(x); }
inline float __fdividef(float a, float b) { return a / b; }
inline float rsqrtf(float x) { return 1 / sqrtf(x); }
inline float rsqrt(float x) { return 1 / sqrtf(x); }
inline double rsqrt(double x) { return 1 / sqrt(x); }
namespace host {
template <class T>
T to_integer(double x) {  // as the device converts: beyond the range its ends, not a number 0 (or the least int64)
    if (x != x) return sizeof(T) == 8 ? T(1ull << 63) : T(0);
    constexpr T least = std::is_signed_v<T> ? T(1ull << (8 * sizeof(T) - 1)) : T(0), most = T(~least);
    if (x <= double(least)) return least;
    return x >= double(most) ? most : T(x);
}
}  // namespace host
inline int __float2int_rn(float x) { return host::to_integer<int>(rint(double(x))); }
inline int __float2int_rz(float x) { return host::to_integer<int>(trunc(double(x))); }
inline int __float2int_rd(float x) { return host::to_integer<int>(floor(double(x))); }
inline long long __float2ll_rn(float x) { return host::to_integer<long long>(rint(double(x))); }
inline long long __float2ll_rz(float x) { return host::to_integer<long long>(trunc(double(x))); }
inline long long __double2ll_rn(double x) { return host::to_integer<long long>(rint(x)); }
inline long long __double2ll_rz(double x) { return host::to_integer<long long>(trunc(x)); }
inline long long __double2ll_rd(double x) { return host::to_integer<long long>(floor(x)); }
inline int __double2int_rz(double x) { return host::to_integer<int>(trunc(x)); }
inline float __int2float_rn(int x) { return float(x); }
inline float __ll2float_rn(long long x) { return float(x); }
inline double __ll2double_rn(long long x) { return double(x); }
inline float __double2float_rn(double x) { return float(x); }

template <class A, class B>
inline auto min(A a, B b) {
    using T = std::common_type_t<A, B>;
    if constexpr (std::is_floating_point_v<T>) return T(fmin(T(a), T(b)));
    else return T(a) < T(b) ? T(a) : T(b);
}

template <class A, class B>
inline auto max(A a, B b) {
    using T = std::common_type_t<A, B>;
    if constexpr (std::is_floating_point_v<T>) return T(fmax(T(a), T(b)));
    else return T(a) < T(b) ? T(b) : T(a);
}

// Memory.
template <class T> inline T __ldg(const T* address) { return *address; }
template <class T> inline T __ldcs(const T* address) { return *address; }
template <class T> inline T __ldcg(const T* address) { return *address; }
template <class T> inline T __ldca(const T* address) { return *address; }
template <class T> inline T __ldlu(const T* address) { return *address; }
template <class T> inline T __ldcv(const T* address) { return *address; }
template <class T> inline void __stcs(T* address, std::type_identity_t<T> value) { *address = value; }
template <class T> inline void __stcg(T* address, std::type_identity_t<T> value) { *address = value; }
template <class T> inline void __stwb(T* address, std::type_identity_t<T> value) { *address = value; }
template <class T> inline void __stwt(T* address, std::type_identity_t<T> value) { *address = value; }
inline void __threadfence() { std::atomic_thread_fence(std::memory_order_seq_cst); }
inline void __threadfence_block() { std::atomic_thread_fence(std::memory_order_seq_cst); }
inline void __threadfence_system() { std::atomic_thread_fence(std::memory_order_seq_cst); }
[[noreturn]] inline void __trap() { host::fail("__trap()"); }

namespace host {
template <class T, class... Known> constexpr bool one_of = (std::is_same_v<T, Known> || ...);
using ull = unsigned long long;

template <class T, class Change>
T changed(T* address, Change change) {  // the old value; relaxed, as on the device
    T old, wanted;
    __atomic_load(address, &old, __ATOMIC_RELAXED);
    do wanted = change(old);
    while (!__atomic_compare_exchange(address, &old, &wanted, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED));
    return old;
}
}  // namespace host

#define DML_ATOMIC(name, result, ...)                                                          \
    template <class T> inline T name(T* address, std::type_identity_t<T> value) {              \
        static_assert(host::one_of<T, __VA_ARGS__>, "CUDA has no such " #name);               \
        return host::changed(address, [=](T old) { return T(result); });                       \
    }
DML_ATOMIC(atomicAdd, old + value, int, unsigned, host::ull, float, double)
DML_ATOMIC(atomicSub, old - value, int, unsigned)
DML_ATOMIC(atomicExch, ((void)old, value), int, unsigned, host::ull, float)
DML_ATOMIC(atomicMax, old < value ? value : old, int, unsigned, long long, host::ull)
DML_ATOMIC(atomicMin, value < old ? value : old, int, unsigned, long long, host::ull)
DML_ATOMIC(atomicAnd, old & value, int, unsigned, host::ull)
DML_ATOMIC(atomicOr, old | value, int, unsigned, host::ull)
DML_ATOMIC(atomicXor, old ^ value, int, unsigned, host::ull)
#undef DML_ATOMIC
template <class T>
inline T atomicCAS(T* address, std::type_identity_t<T> expected, std::type_identity_t<T> value) {
    static_assert(host::one_of<T, int, unsigned, host::ull, unsigned short>, "CUDA has no such atomicCAS");
    __atomic_compare_exchange(address, &expected, &value, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED);
    return expected;
}

// Barriers and warps.
inline void __syncthreads() { host::meet(host::block->barrier); }
inline int __syncthreads_count(int predicate) {
    __shared__ int count;
    __syncthreads();
    if (host::self->number == 0) count = 0;
    __syncthreads();
    if (predicate) atomicAdd(&count, 1);
    __syncthreads();
    return count;
}
inline int __syncthreads_or(int predicate) { return __syncthreads_count(predicate) > 0; }
inline int __syncthreads_and(int predicate) { return __syncthreads_count(!predicate) == 0; }
inline void __syncwarp(unsigned mask = 0xffffffffu) { host::gather(mask, 0, host::operation("__syncwarp")); }
inline unsigned __activemask() { return 0xffffffffu; }

#define DML_SHUFFLE(name, third, source)                                                              \
    template <class T> inline T name(unsigned mask, T value, third, int width = 32) {                 \
        static_assert(sizeof(T) == 4 || sizeof(T) == 8, "CUDA shuffles 4 or 8 bytes");                \
        const int lane = int(host::self->number % 32), first = lane / width * width;                  \
        const host::Slot* slots = host::gather(mask, value, host::operation(#name));                                   \
        const int from = source;                                                                      \
        return host::given<T>(slots, unsigned(from < first || from >= first + width ? lane : from));  \
    }
DML_SHUFFLE(__shfl_sync, int from_lane, first + (from_lane & (width - 1)))
DML_SHUFFLE(__shfl_up_sync, unsigned delta, lane - int(delta))
DML_SHUFFLE(__shfl_down_sync, unsigned delta, lane + int(delta))
DML_SHUFFLE(__shfl_xor_sync, int bits, lane ^ bits)
#undef DML_SHUFFLE

inline unsigned __ballot_sync(unsigned mask, int predicate) {
    const host::Slot* slots = host::gather(mask, predicate, host::operation("__ballot_sync"));
    unsigned bits = 0;
    for (unsigned lane = 0; lane < 32; ++lane) bits |= unsigned(host::given<int>(slots, lane) != 0) << lane;
    return bits;
}
inline int __any_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) != 0; }
inline int __all_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) == 0xffffffffu; }
template <class T>
inline T __reduce_add_sync(unsigned mask, T value) {
    static_assert(host::one_of<T, int, unsigned>, "CUDA has no such __reduce_add_sync");
    const host::Slot* slots = host::gather(mask, value, host::operation("__reduce_add_sync"));
    T sum = 0;
    for (unsigned lane = 0; lane < 32; ++lane) sum += host::given<T>(slots, lane);
    return sum;
}

// Launches.
namespace dml {
struct half;
struct bfloat16;
}  // namespace dml

namespace host {
template <class T>
std::string described() {  // "f4", "i8", "u2", "b1", "h2" (half), "H2" (bfloat16), "s24" (another type), "p" + pointee
    if constexpr (std::is_pointer_v<T>) {
        using To = std::remove_cv_t<std::remove_pointer_t<T>>;
        if constexpr (std::is_void_v<To>) return "pv";
        else return "p" + described<To>();
    } else if constexpr (std::is_same_v<T, dml::half>) {
        return "h2";
    } else if constexpr (std::is_same_v<T, dml::bfloat16>) {
        return "H2";
    } else {
        const char* kind = std::is_same_v<T, bool>         ? "b"
                           : std::is_floating_point_v<T>   ? "f"
                           : std::is_unsigned_v<T>         ? "u"
                           : std::is_integral_v<T>         ? "i"
                                                           : "s";
        return kind + std::to_string(sizeof(T));
    }
}

template <class... P>
const char* signature(void (*)(P...)) {
    static const std::string text = (std::string() + ... + (described<std::remove_cv_t<P>>() + " "));
    return text.c_str();
}

template <class... P>
void launch(void (*kernel)(P...), const Launch& launch, void** arguments) {
    auto body = [=] {
        [=]<size_t... I>(std::index_sequence<I...>) {
            kernel(*static_cast<std::remove_cv_t<P>*>(arguments[I])...);
        }(std::index_sequence_for<P...>{});
    };
    run(launch, [](void* context) { (*static_cast<decltype(body)*>(context))(); }, &body);
}
}  // namespace host
