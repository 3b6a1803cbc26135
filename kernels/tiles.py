"""In jitted functions: products of rows of float32 by tiles that stay in registers.

All arrays are 1-D, contiguous, float32; places are elements. A row, here, is a multiple of `LANES` elements; with
AVX-512 these are one register. Loops over rows keep their sums in registers, and each sum is always added up in the
same order.
"""

from __future__ import annotations

from llvmlite import binding, ir
from numba.core import cgutils, types
from numba.extending import intrinsic

LANES = 16
WORD, LONG, FLOAT = ir.IntType(32), ir.IntType(64), ir.FloatType()
SIXTEEN = ir.VectorType(FLOAT, LANES)
_WIDE = bool(binding.get_host_cpu_features().get("avx512f"))
TILE_ROWS, TILE_VECTORS = (8, 2) if _WIDE else (4, 1)
"""What is summed at a time: as much as there are registers for."""
COMBINED = 4
"""Sixteens that `combine` sums at a time."""


def place_of(context, builder, signature, arguments, array, index):
    """Return the address of an element of the argument that is number ``array``."""
    return builder.gep(context.make_array(signature.args[array])(context, builder, arguments[array]).data, [index])


def _vector(builder, place, lanes=0):
    return builder.bitcast(builder.gep(place, [LONG(lanes)]), SIXTEEN.as_pointer())


def load_sixteen(builder, place, lanes=0):
    """Return the `LANES` floats that begin ``lanes`` behind a place."""
    return builder.load(_vector(builder, place, lanes), align=4)


def store_sixteen(builder, value, place, lanes=0):
    """Write `LANES` floats there."""
    builder.store(value, _vector(builder, place, lanes), align=4)


def everywhere(builder, value):
    """Return a float in every lane."""
    none = ir.Constant(SIXTEEN, ir.Undefined)
    one = builder.insert_element(none, value, WORD(0))
    return builder.shuffle_vector(one, none, ir.Constant(ir.VectorType(WORD, LANES), None))


def fused(builder, a, b, c):
    """Return a·b + c, lane by lane, rounded once."""
    return builder.call(cgutils.get_or_insert_function(
        builder.module, ir.FunctionType(SIXTEEN, [SIXTEEN] * 3), f"llvm.fma.v{LANES}f32"), [a, b, c])


def _tile(vectors, subtract):
    """Return the intrinsic for tiles of so many sixteens; see `add_tile`."""

    @intrinsic
    def tile(typing_context, left, row, right, column, stride, count, out, at, out_stride):
        def emit(context, builder, signature, arguments):
            rows = place_of(context, builder, signature, arguments, 0, arguments[1])
            columns = place_of(context, builder, signature, arguments, 2, arguments[3])
            target = place_of(context, builder, signature, arguments, 6, arguments[7])
            stride, count, out_stride = arguments[4], arguments[5], arguments[8]
            zero = ir.Constant(SIXTEEN, None)
            sums = [[cgutils.alloca_once_value(builder, zero) for _ in range(vectors)] for _ in range(TILE_ROWS)]
            with cgutils.for_range(builder, count, intp=LONG) as loop:
                first = builder.mul(loop.index, stride)
                row_place, column_place = builder.gep(rows, [first]), builder.gep(columns, [first])
                others = [load_sixteen(builder, column_place, vector * LANES) for vector in range(vectors)]
                for row in range(TILE_ROWS):
                    own = everywhere(builder, builder.load(builder.gep(row_place, [LONG(row)])))
                    for vector, other in enumerate(others):
                        place = sums[row][vector]
                        builder.store(fused(builder, own, other, builder.load(place)), place)
            for row in range(TILE_ROWS):
                place = builder.gep(target, [builder.mul(LONG(row), out_stride)])
                for vector in range(vectors):
                    before, found = load_sixteen(builder, place, vector * LANES), builder.load(sums[row][vector])
                    after = builder.fsub(before, found) if subtract else builder.fadd(before, found)
                    store_sixteen(builder, after, place, vector * LANES)
            return context.get_dummy_value()

        long = types.int64
        return types.void(left, long, right, long, long, long, out, long, long), emit

    return tile


add_tile, add_narrow_tile = _tile(TILE_VECTORS, False), _tile(1, False)
"""out[at + r·out_stride + c] += Σ_e left[row + e·stride + r]·right[column + e·stride + c], e < count.

r < `TILE_ROWS`, c < `LANES`·`TILE_VECTORS`, or `LANES`. ``add_tile(left, row, right, column, stride, count, out, at,
out_stride)``.
"""
subtract_tile, subtract_narrow_tile = _tile(TILE_VECTORS, True), _tile(1, True)
"""The same with −=."""


@intrinsic
def products(typing_context, rows, at, stride, row, row_at, lanes, out, out_at):
    """out[e] = Σ_j rows[at + e·stride + j]·row[row_at + j] for e < `LANES`, over ``lanes`` sixteens of j."""

    def emit(context, builder, signature, arguments):
        start = place_of(context, builder, signature, arguments, 0, arguments[1])
        other = place_of(context, builder, signature, arguments, 3, arguments[4])
        sums = [cgutils.alloca_once_value(builder, ir.Constant(SIXTEEN, None)) for _ in range(LANES)]
        with cgutils.for_range(builder, arguments[5], intp=LONG) as loop:
            first = builder.mul(loop.index, LONG(LANES))
            own = load_sixteen(builder, builder.gep(other, [first]))
            for e, place in enumerate(sums):
                offset = builder.add(first, builder.mul(LONG(e), arguments[2]))
                value = load_sixteen(builder, builder.gep(start, [offset]))
                builder.store(fused(builder, value, own, builder.load(place)), place)
        store_sixteen(builder, _sums(builder, [builder.load(place) for place in sums]),
               place_of(context, builder, signature, arguments, 6, arguments[7]))
        return context.get_dummy_value()

    long = types.int64
    return types.void(rows, long, long, row, long, long, out, long), emit


def _sums(builder, vectors):
    """Return, lane by lane, the sum of the lanes of each of `LANES` vectors."""
    numbers = ir.VectorType(WORD, LANES)
    vectors = [vectors[int(f"{e:04b}"[::-1], 2)] for e in range(LANES)]  # merging them puts the bits of e in reverse
    span = 1
    while len(vectors) > 1:
        # Of two vectors, each of whose runs of 2·span lanes holds sums of span vectors: their halves are added.
        merged = []
        half = len(vectors) // 2
        for a, b in zip(vectors[:half], vectors[half:], strict=True):
            even = [(lane // (2 * span)) * 2 * span + lane % span + (LANES if lane // span % 2 else 0)
                    for lane in range(LANES)]
            odd = [place + span for place in even]
            merged.append(builder.fadd(*(builder.shuffle_vector(a, b, ir.Constant(numbers, order))
                                         for order in (even, odd))))
        vectors, span = merged, 2 * span
    return vectors[0]


def _combine(vectors):
    """Return the intrinsic for so many sixteens; see `combine`."""

    @intrinsic
    def some(typing_context, rows, at, stride, count, factors, factors_at, out, out_at):
        def emit(context, builder, signature, arguments):
            start = place_of(context, builder, signature, arguments, 0, arguments[1])
            own = place_of(context, builder, signature, arguments, 4, arguments[5])
            target = place_of(context, builder, signature, arguments, 6, arguments[7])
            sums = [cgutils.alloca_once_value(builder, load_sixteen(builder, target, vector * LANES))
                    for vector in range(vectors)]
            with cgutils.for_range(builder, arguments[3], intp=LONG) as loop:
                factor = everywhere(builder, builder.load(builder.gep(own, [loop.index])))
                row = builder.gep(start, [builder.mul(loop.index, arguments[2])])
                for vector, place in enumerate(sums):
                    value = load_sixteen(builder, row, vector * LANES)
                    builder.store(fused(builder, factor, value, builder.load(place)), place)
            for vector, place in enumerate(sums):
                store_sixteen(builder, builder.load(place), target, vector * LANES)
            return context.get_dummy_value()

        long = types.int64
        return types.void(rows, long, long, long, factors, long, out, long), emit

    return some


combine, narrow_combine = _combine(COMBINED), _combine(1)
"""out[out_at + j] += Σ_e factors[factors_at + e]·rows[at + e·stride + j], e < count, for `COMBINED` sixteens, or one.

``combine(rows, at, stride, count, factors, factors_at, out, out_at)``.
"""
