// Kernels that show what the host's CUDA does: barriers, warps, atomics, shared memory, conversions.
#include "common.cuh"

namespace dml {

// out[i] is the sum of block i's part of x, by way of shared memory, barrier after barrier.
template <class T>
__global__ void block_sums(const T* __restrict__ x, long long n, T* __restrict__ out) {
    __shared__ T scratch[WARP];
    T sum = 0;
    for (long long i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x) sum += x[i];
    sum = block_sum(sum, scratch);
    if (threadIdx.x == 0) out[blockIdx.x] = sum;
}

// out has 8 rows of what each thread of one block saw of its warp.
__global__ void warps(const int* __restrict__ x, int* __restrict__ out) {
    int i = threadIdx.x, n = blockDim.x;
    out[i] = __shfl_sync(ALL_LANES, x[i], 5);
    out[n + i] = __shfl_up_sync(ALL_LANES, x[i], 3);
    out[2 * n + i] = __shfl_down_sync(ALL_LANES, x[i], 3);
    out[3 * n + i] = __shfl_xor_sync(ALL_LANES, x[i], 9);
    out[4 * n + i] = __shfl_sync(ALL_LANES, x[i], 2, 8);
    out[5 * n + i] = int(__ballot_sync(ALL_LANES, x[i] % 2));
    out[6 * n + i] = __any_sync(ALL_LANES, x[i] > 90) * 2 + __all_sync(ALL_LANES, x[i] < 90);
    out[7 * n + i] = int(__shfl_down_sync(ALL_LANES, double(x[i]), 2, 4));
}

// Every thread of every block adds to, and takes the greatest of, the same numbers.
__global__ void atomics(unsigned long long* count, double* sum, float* small, int* most, int* slots, int slots_n) {
    int number = blockIdx.x * blockDim.x + threadIdx.x;
    atomicAdd(count, 1ull);
    atomicAdd(sum, 0.5);
    atomicAdd(small, 1.f);
    atomicMax(most, number);
    for (int i = 0; i < slots_n; ++i)
        if (atomicCAS(&slots[i], -1, number) == -1) break;
}

// The converted numbers, and back.
__global__ void conversions(const half* __restrict__ halves, const bfloat16* __restrict__ brains, long long n,
                            float* __restrict__ from_halves, float* __restrict__ from_brains, half* __restrict__ again,
                            bfloat16* __restrict__ brains_again) {
    for (long long i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x) {
        from_halves[i] = converted<float>(halves[i]);
        from_brains[i] = converted<float>(brains[i]);
        again[i] = converted<half>(from_halves[i]);
        brains_again[i] = converted<bfloat16>(from_brains[i]);
    }
}

__global__ void narrowed(const float* __restrict__ x, long long n, half* __restrict__ halves,
                         bfloat16* __restrict__ brains) {
    for (long long i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x) {
        halves[i] = converted<half>(x[i]);
        brains[i] = converted<bfloat16>(x[i]);
    }
}

// Each block turns its threads' numbers round in dynamic shared memory, in 2 × 2 × 2 blocks of 4 × 4 × 4 threads;
// without the barrier, a race.
template <bool BARRIER>
__global__ void turned(long long* __restrict__ out) {
    DML_DYNAMIC_SHARED(raw);
    long long* numbers = reinterpret_cast<long long*>(raw);
    int n = blockDim.x * blockDim.y * blockDim.z;
    int thread = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
    int block = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
    numbers[thread] = (long long)block * n + thread;
    if (BARRIER) __syncthreads();
    out[block * n + thread] = numbers[n - 1 - thread];
}

enum Fault { NONE, EARLY_LEAVER, LANE_LEAVES, PAST_THE_END, PART_OF_A_WARP, OTHER_OPERATION, DIFFERENT_BARRIERS };

// What must not be done, and ends the process with a line that names it.
template <int FAULT>
__global__ void faulty(int* out) {
    DML_DYNAMIC_SHARED(raw);
    int i = threadIdx.x;
    if (FAULT == EARLY_LEAVER && i >= WARP) return;
    if (FAULT == LANE_LEAVES && i == 7) return;
    if (FAULT == LANE_LEAVES || FAULT == DIFFERENT_BARRIERS) {
        if (FAULT == LANE_LEAVES || i >= WARP) __syncwarp();
    }
    if (FAULT == PART_OF_A_WARP && i < 16) out[i] = __shfl_xor_sync(0xffffu, i, 1);
    if (FAULT == OTHER_OPERATION) out[i] = i % 2 ? __shfl_xor_sync(ALL_LANES, i, 1) : __shfl_up_sync(ALL_LANES, i, 1);
    if (FAULT == DIFFERENT_BARRIERS && i == 3) __syncwarp();
    if (FAULT == PAST_THE_END) reinterpret_cast<int*>(raw)[i] = i;
    __syncthreads();
    out[i] = i;
}

struct Pair {
    long long a;
    double b;
};

__global__ void arguments(long long a, int b, float c, double d, bool e, Pair f, const float* nothing, const void* any,
                          double* out) {
    if (blockIdx.x + threadIdx.x > 0) return;
    out[0] = double(a);
    out[1] = b;
    out[2] = c;
    out[3] = d;
    out[4] = e;
    out[5] = double(f.a) + f.b;
    out[6] = nothing == nullptr;
    out[7] = any != nullptr;
}

}  // namespace dml
