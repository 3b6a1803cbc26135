// Lists the parts of very long sparse rows: see long_rows.cuh.
//
// Rows are listed in the order in which threads meet them, which differs from run to run; each row's parts stand
// together and in order, and no sum depends on where.
#include "long_rows.cuh"

namespace dml {

// Lists the parts, of `part` entries and one shorter, of each row of more than VERY_LONG entries: where[i] becomes the
// place of the first one of the i-th row taken, or −1 where they would reach beyond `room`; `used` (0 at first) becomes
// how many places they take, which may be more than there are. Other elements of `where` (count,) are left as they are.
__global__ void __launch_bounds__(256)
find_parts(const long long* __restrict__ indptr, const long long* __restrict__ rows, long long count, long long part,
           long long room, unsigned long long* used, long long* __restrict__ where, RowPart* __restrict__ parts) {
    const long long step = (long long)gridDim.x * blockDim.x;
    for (long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x; i < count; i += step) {
        const long long row = rows ? rows[i] : i, entries = indptr[row + 1] - indptr[row];
        if (entries <= VERY_LONG) continue;
        const long long number = parts_of(entries, part);
        const long long first = (long long)atomicAdd(used, (unsigned long long)number);
        const bool fits = first + number <= room;
        where[i] = fits ? first : -1;
        for (long long p = 0; p < number && first + p < room; ++p) parts[first + p] = {fits ? row : -1, p};
    }
}

}  // namespace dml
