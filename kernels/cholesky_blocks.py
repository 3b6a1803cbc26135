"""In jitted functions: steps of a Cholesky factorisation UᵀU = A, a block of sixteen rows and columns at a time.

All arrays are 1-D, contiguous, float32; places are elements, ``stride`` is from a row of A to the next. What is right
of or above a block on the diagonal is made of `dml_hpc.kernels.tiles`.
"""

from __future__ import annotations

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from dml_hpc.kernels.tiles import (
    FLOAT,
    LANES,
    LONG,
    SIXTEEN,
    WORD,
    everywhere,
    fused,
    load_sixteen,
    place_of,
    store_sixteen,
)


def _shuffled(builder, a, b, lanes):
    """Return lanes of a, and of b those from `LANES` on."""
    return builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(WORD, LANES), lanes))


def _lane(builder, vector, lane):
    """Return a lane of a vector, in every lane."""
    return _shuffled(builder, vector, vector, [lane] * LANES)


def _transposed(builder, rows):
    """Return the columns of `LANES` rows: each of four times, the numbers of rows and lanes turn by a bit."""
    half = LANES // 2
    for _ in range(4):
        pairs = [(rows[i], rows[i + half]) for i in range(half)]
        rows = [_shuffled(builder, a, b, [first + lane // 2 + (LANES if lane % 2 else 0) for lane in range(LANES)])
                for a, b in pairs for first in (0, half)]
    return rows


def _root(builder, value):
    return builder.call(cgutils.get_or_insert_function(
        builder.module, ir.FunctionType(FLOAT, [FLOAT]), "llvm.sqrt.f32"), [value])


@intrinsic
def factor_block(typing_context, A, at, stride, least, least_at, inverses, inverses_at):
    """Replace the block (`LANES`, `LANES`) of A at ``at``, symmetric, by its factor U, UᵀU = A, and left of it Uᵀ.

    ``inverses`` get 1/U_jj. A pivot U_jj² that is not above ``least[least_at + j]`` makes row j of U, and its inverse,
    0.
    """

    def emit(context, builder, signature, arguments):
        start = place_of(context, builder, signature, arguments, 0, arguments[1])
        least = load_sixteen(builder, place_of(context, builder, signature, arguments, 3, arguments[4]))
        places = [builder.gep(start, [builder.mul(LONG(row), arguments[2])]) for row in range(LANES)]
        rows = [load_sixteen(builder, place) for place in places]
        zero, none = ir.Constant(SIXTEEN, None), FLOAT(0)
        found = zero
        for j in range(LANES):
            pivot = builder.extract_element(rows[j], WORD(j))
            good = builder.fcmp_ordered(">", pivot, builder.extract_element(least, WORD(j)))
            inverse = builder.select(good, builder.fdiv(FLOAT(1), _root(builder, pivot)), none)
            found = builder.insert_element(found, inverse, WORD(j))
            rows[j] = builder.fmul(rows[j], everywhere(builder, inverse))
            negative = builder.fsub(zero, rows[j])
            for i in range(j + 1, LANES):
                rows[i] = fused(builder, _lane(builder, negative, i), rows[j], rows[i])
        for j, (row, column, place) in enumerate(zip(rows, _transposed(builder, rows), places, strict=True)):
            store_sixteen(builder, _shuffled(builder, row, column, [
                lane if lane >= j else LANES + lane for lane in range(LANES)]), place)
        store_sixteen(builder, found, place_of(context, builder, signature, arguments, 5, arguments[6]))
        return context.get_dummy_value()

    long = types.int64
    return types.void(A, long, long, least, long, inverses, long), emit


@intrinsic
def solve_block(typing_context, A, block_at, at, stride, inverses, inverses_at):
    """Replace the block B of A at ``at`` by U⁻ᵀB, U being what `factor_block` left at ``block_at``."""

    def emit(context, builder, signature, arguments):
        block, start = (place_of(context, builder, signature, arguments, 0, arguments[place]) for place in (1, 2))
        inverses = place_of(context, builder, signature, arguments, 4, arguments[5])
        offsets = [builder.mul(LONG(row), arguments[3]) for row in range(LANES)]
        rows = [load_sixteen(builder, builder.gep(start, [offset])) for offset in offsets]
        zero = ir.Constant(SIXTEEN, None)
        for j in range(LANES):
            inverse = builder.load(builder.gep(inverses, [LONG(j)]))
            rows[j] = builder.fmul(rows[j], everywhere(builder, inverse))
            negative = builder.fsub(zero, rows[j])
            own = builder.gep(block, [offsets[j]])
            for i in range(j + 1, LANES):
                factor = builder.load(builder.gep(own, [LONG(i)]))
                rows[i] = fused(builder, everywhere(builder, factor), negative, rows[i])
        for row, offset in zip(rows, offsets, strict=True):
            store_sixteen(builder, row, builder.gep(start, [offset]))
        return context.get_dummy_value()

    long = types.int64
    return types.void(A, long, long, long, inverses, long), emit


@intrinsic
def substitute_block(typing_context, A, block_at, stride, inverses, inverses_at, b, at):
    """Replace b[at …] (`LANES`,) by U⁻¹b, U being what `factor_block` left at ``block_at``."""

    def emit(context, builder, signature, arguments):
        block = place_of(context, builder, signature, arguments, 0, arguments[1])
        inverses = place_of(context, builder, signature, arguments, 3, arguments[4])
        target = place_of(context, builder, signature, arguments, 5, arguments[6])
        left, found = load_sixteen(builder, target), ir.Constant(SIXTEEN, None)
        for j in reversed(range(LANES)):
            inverse = builder.load(builder.gep(inverses, [LONG(j)]))
            own = builder.fmul(builder.extract_element(left, WORD(j)), inverse)
            found = builder.insert_element(found, own, WORD(j))
            column = load_sixteen(builder, builder.gep(block, [builder.mul(LONG(j), arguments[2])]))
            left = fused(builder, everywhere(builder, builder.fneg(own)), column, left)
        store_sixteen(builder, found, target)
        return context.get_dummy_value()

    long = types.int64
    return types.void(A, long, long, inverses, long, b, long), emit
