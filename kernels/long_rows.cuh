// Sparse rows (CSR) that are so long that one block would still be at one when all others are done: they are cut into
// parts, which any block takes. long_rows.cu lists them; glm_sparse.cu and csr_products.cu take the sums of each part,
// and who needs a row's sum adds up its parts', in an order that depends on the row's length alone.
#pragma once
#include "common.cuh"

namespace dml {

constexpr long long VERY_LONG = 8192;  // entries: longer rows are cut. Also in cuda/long_rows.py.

// A part in the list: which of its row's parts it is. A row's parts stand together and in order.
struct alignas(16) RowPart {
    long long row, number;  // row −1: the list has no room for the row
};

__device__ __forceinline__ long long parts_of(long long entries, long long part) {
    return entries > VERY_LONG ? (entries + part - 1) / part : 1;
}

}  // namespace dml
