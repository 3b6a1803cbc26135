// The scaling of features folded into parameters, and out of a gradient; see dml_hpc/objectives/scaling.py.
//
// The first layer's parameters are (features + 1, outputs) in C order, its biases last; behind it come `rest` others,
// which see no features. `shift` is (features,) or null, for zeros; `scale` is (features + 1,).
#include "common.cuh"

namespace dml {

// out = w·scale, row by row; what follows the first layer is copied. With a shift `fold_biases` has the biases.
template <class Real>
__global__ void __launch_bounds__(1024)
    fold(const Real* __restrict__ w, const Real* __restrict__ scale, Real* __restrict__ out, long long features,
         long long outputs, long long rest) {
    long long layer = (features + 1) * outputs, step = (long long)gridDim.x * blockDim.x;
    for (long long e = (long long)blockIdx.x * blockDim.x + threadIdx.x; e < layer + rest; e += step)
        out[e] = e < layer ? w[e] * scale[e / outputs] : w[e];
}

// out[features, o] = w[features, o]·scale[features] − Σ_j shift[j]·out[j, o], a block for each output o; the sum in
// double, each thread's in the order of j, then over the block.
template <class Real>
__global__ void __launch_bounds__(1024)
    fold_biases(const Real* __restrict__ w, const Real* __restrict__ shift, const Real* __restrict__ scale,
                Real* __restrict__ out, long long features, long long outputs) {
    __shared__ double scratch[WARP];
    long long o = blockIdx.x;
    double total = 0;
    for (long long j = threadIdx.x; j < features; j += blockDim.x)
        total += double(shift[j]) * double(out[j * outputs + o]);
    total = block_sum(total, scratch);
    long long bias = features * outputs + o;
    if (threadIdx.x == 0) out[bias] = Real(double(w[bias]) * double(scale[features]) - total);
}

// g[j, o] = (g[j, o] − shift[j]·g[features, o])·scale[j], in place. Where there is a shift, the biases' scale is 1, and
// they stay as others read them.
template <class Real>
__global__ void __launch_bounds__(1024)
    pull_back(Real* __restrict__ g, const Real* __restrict__ shift, const Real* __restrict__ scale, long long features,
              long long outputs) {
    long long bias = features * outputs, step = (long long)gridDim.x * blockDim.x;
    for (long long e = (long long)blockIdx.x * blockDim.x + threadIdx.x; e < bias + outputs; e += step) {
        long long j = e / outputs;
        if (shift == nullptr)
            g[e] *= scale[j];
        else if (j < features)
            g[e] = (g[e] - shift[j] * g[bias + e % outputs]) * scale[j];
    }
}

}  // namespace dml
