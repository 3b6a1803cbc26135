// Gradients made small for the wire and large again: the loops of compression.py and half.py, with what they need
// beside the vector on the device too, so that nothing waits for the host.
//
// Every element is computed by itself, with the bits of the CPU; the largest magnitude is found with integer maxima, in
// whatever order. A message is n elements of the wire's type (half or bfloat16), then a place for each rank, with four
// numbers for each float that must arrive exactly: its bytes, from the lowest. Ranks write zeros to places of others.
#include "packs.cuh"

namespace dml {

// Writes gradient + residual, rounded, to wire, and the rest to residual: n elements each.
__global__ void __launch_bounds__(256) encode_bfloat16(const float* __restrict__ gradient, float* residual,
                                                       bfloat16* wire, long long n) {
    constexpr int N = 4;
    const long long thread = blockIdx.x * (long long)blockDim.x + threadIdx.x;
    const long long threads = gridDim.x * (long long)blockDim.x;
    const long long packs = aligned<N>(gradient) && aligned<N>(residual) && aligned<N>(wire) ? n / N : 0;
    for (long long pack = thread; pack < packs; pack += threads) {
        const Pack<float, N> g = load<N>(gradient + pack * N);
        Pack<float, N> rest = load<N>(residual + pack * N);
        Pack<bfloat16, N> sent;
#pragma unroll
        for (int i = 0; i < N; ++i) {
            const float wanted = g.at[i] + rest.at[i];
            sent.at[i] = converted<bfloat16>(wanted);
            rest.at[i] = wanted - converted<float>(sent.at[i]);
        }
        store<N>(wire + pack * N, sent);
        store<N>(residual + pack * N, rest);
    }
    for (long long i = packs * N + thread; i < n; i += threads) {
        const float wanted = gradient[i] + residual[i];
        wire[i] = converted<bfloat16>(wanted);
        residual[i] = wanted - converted<float>(wire[i]);
    }
}

// Writes scale·(gradient + residual), rounded, to wire, and the rest, unscaled, to residual: n elements each. Finite
// sums beyond ±top/scale are cut to it. `peak`, the bits of a float, becomes the largest of it and all
// |gradient + residual| (NaN counts as larger than infinity). The scale is a power of two.
__global__ void __launch_bounds__(256) encode_float16(const float* __restrict__ gradient, float* residual, half* wire,
                                                      long long n, const float* __restrict__ scale_, double top,
                                                      unsigned* peak) {
    constexpr int N = 4;
    const float scale = *scale_, unscale = 1.0f / scale, limit = float(top / scale);
    const long long thread = blockIdx.x * (long long)blockDim.x + threadIdx.x;
    const long long threads = gridDim.x * (long long)blockDim.x;
    unsigned largest = 0;
    auto encode = [&](float g, float& rest, half& sent) {
        const float wanted = g + rest;
        const unsigned magnitude = __float_as_uint(wanted) & 0x7fffffffu;  // in the order of the numbers
        largest = magnitude > largest ? magnitude : largest;
        const bool finite = magnitude < 0x7f800000u;
        const float cut = !finite ? wanted : wanted > limit ? limit : wanted < -limit ? -limit : wanted;
        sent = converted<half>(times(scale, cut));
        rest = wanted - times(unscale, converted<float>(sent));
    };
    const long long packs = aligned<N>(gradient) && aligned<N>(residual) && aligned<N>(wire) ? n / N : 0;
    for (long long pack = thread; pack < packs; pack += threads) {
        const Pack<float, N> g = load<N>(gradient + pack * N);
        Pack<float, N> rest = load<N>(residual + pack * N);
        Pack<half, N> sent;
#pragma unroll
        for (int i = 0; i < N; ++i) encode(g.at[i], rest.at[i], sent.at[i]);
        store<N>(wire + pack * N, sent);
        store<N>(residual + pack * N, rest);
    }
    for (long long i = packs * N + thread; i < n; i += threads) encode(gradient[i], residual[i], wire[i]);
    for (int offset = WARP / 2; offset > 0; offset /= 2) {
        const unsigned other = __shfl_xor_sync(ALL_LANES, largest, offset);
        largest = other > largest ? other : largest;
    }
    if (threadIdx.x % WARP == 0 && largest > 0) atomicMax(peak, largest);
}

// out = halves / scale, n elements; the scale is a power of two.
__global__ void __launch_bounds__(256) widen_float16(const half* __restrict__ halves, float* __restrict__ out,
                                                     long long n, const float* __restrict__ scale) {
    constexpr int N = 4;
    const float factor = 1.0f / *scale;
    const long long thread = blockIdx.x * (long long)blockDim.x + threadIdx.x;
    const long long threads = gridDim.x * (long long)blockDim.x;
    const long long packs = aligned<N>(halves) && aligned<N>(out) ? n / N : 0;
    for (long long pack = thread; pack < packs; pack += threads) {
        const Pack<half, N> narrow = load<N>(halves + pack * N);
        Pack<float, N> wide;
#pragma unroll
        for (int i = 0; i < N; ++i) wide.at[i] = factor * converted<float>(narrow.at[i]);
        store<N>(out + pack * N, wide);
    }
    for (long long i = packs * N + thread; i < n; i += threads) out[i] = factor * converted<float>(halves[i]);
}

// Fills all ranks' places of a message: this rank's with the bytes of exact (count,) and, unless null, of the peak.
template <class T>
__global__ void __launch_bounds__(256) write_exact(const float* __restrict__ exact, long long count,
                                                   const unsigned* __restrict__ peak, long long rank, long long ranks,
                                                   T* __restrict__ places) {
    const long long floats = count + (peak != nullptr), own = 4 * floats * rank;
    const long long threads = gridDim.x * (long long)blockDim.x;
    for (long long i = blockIdx.x * (long long)blockDim.x + threadIdx.x; i < 4 * floats * ranks; i += threads) {
        const long long at = i - own;
        unsigned byte = 0;
        if (at >= 0 && at < 4 * floats) {
            const unsigned bits = at / 4 < count ? __float_as_uint(exact[at / 4]) : *peak;
            byte = bits >> (8 * (at % 4)) & 0xffu;
        }
        places[i] = converted<T>(float(byte));
    }
}

// Reads the places of all ranks: exact (count,) become the sums over the ranks, taken in float64. With a scale there is
// a peak behind them, and the scale of the next message is such that the largest of the finite peaks, if it is not 0,
// is brought below 2^(limit − 2); it stays within 2^±most.
template <class T>
__global__ void __launch_bounds__(256) read_exact(const T* __restrict__ places, long long ranks,
                                                  float* __restrict__ exact, long long count, float* scale,
                                                  long long limit, long long most) {
    const long long floats = count + (scale != nullptr);
    const long long threads = gridDim.x * (long long)blockDim.x;
    auto bits_of = [&](long long rank, long long j) {
        unsigned bits = 0;
        for (int byte = 0; byte < 4; ++byte)
            bits |= unsigned(converted<float>(places[4 * (rank * floats + j) + byte])) << (8 * byte);
        return bits;
    };
    for (long long j = blockIdx.x * (long long)blockDim.x + threadIdx.x; j < floats; j += threads) {
        if (j < count) {
            double sum = 0;
            for (long long rank = 0; rank < ranks; ++rank) sum += __uint_as_float(bits_of(rank, j));
            exact[j] = float(sum);
            continue;
        }
        unsigned peak = 0;
        for (long long rank = 0; rank < ranks; ++rank) {
            const unsigned bits = bits_of(rank, j);
            if (bits < 0x7f800000u && bits > peak) peak = bits;
        }
        if (peak == 0) continue;
        long long exponent = limit - 2 - ((long long)(peak >> 23) - 126);
        exponent = exponent > most ? most : exponent < -most ? -most : exponent;
        *scale = __uint_as_float(unsigned(exponent + 127) << 23);
    }
}

}  // namespace dml
