"""In jitted functions: products of rows of float32 by tiles that stay in registers, and a Cholesky factorisation by such.

All arrays are 1-D, contiguous, float32; places are elements. A row, here, is a multiple of `LANES` elements; with
AVX-512 these are one register. Loops over rows keep their sums in registers, and each sum is always added up in the
same order.
"""

from __future__ import annotations

from llvmlite import binding, ir
from numba.core import cgutils, types
from numba.extending import intrinsic

LANES = 16
_WORD, _LONG, _FLOAT = ir.IntType(32), ir.IntType(64), ir.FloatType()
_VECTOR = ir.VectorType(_FLOAT, LANES)
_WIDE = bool(binding.get_host_cpu_features().get("avx512f"))
TILE_ROWS, TILE_VECTORS = (8, 2) if _WIDE else (4, 1)
"""What is summed at a time: as much as there are registers for."""
COMBINED = 4
"""Sixteens that `combine` sums at a time."""


def _place(context, builder, signature, arguments, array, index):
    return builder.gep(context.make_array(signature.args[array])(context, builder, arguments[array]).data, [index])


def _vector(builder, place, lanes=0):
    return builder.bitcast(builder.gep(place, [_LONG(lanes)]), _VECTOR.as_pointer())


def _load(builder, place, lanes=0):
    return builder.load(_vector(builder, place, lanes), align=4)


def _store(builder, value, place, lanes=0):
    builder.store(value, _vector(builder, place, lanes), align=4)


def _everywhere(builder, value):
    none = ir.Constant(_VECTOR, ir.Undefined)
    one = builder.insert_element(none, value, _WORD(0))
    return builder.shuffle_vector(one, none, ir.Constant(ir.VectorType(_WORD, LANES), None))


def _lane(builder, vector, lane):
    """Return a lane of a vector, in every lane."""
    return builder.shuffle_vector(vector, ir.Constant(_VECTOR, ir.Undefined),
                                  ir.Constant(ir.VectorType(_WORD, LANES), [lane] * LANES))


def _fma(builder, a, b, c):
    kind = a.type
    name = "llvm.fma.f32" if kind == _FLOAT else f"llvm.fma.v{kind.count}f32"
    return builder.call(cgutils.get_or_insert_function(builder.module, ir.FunctionType(kind, [kind] * 3), name),
                        [a, b, c])


def _root(builder, value):
    return builder.call(cgutils.get_or_insert_function(
        builder.module, ir.FunctionType(_FLOAT, [_FLOAT]), "llvm.sqrt.f32"), [value])


def _tile(vectors, subtract):
    """Return the intrinsic for tiles of so many sixteens; see `add_tile`."""

    @intrinsic
    def tile(typing_context, left, row, right, column, stride, count, out, at, out_stride):
        def emit(context, builder, signature, arguments):
            rows = _place(context, builder, signature, arguments, 0, arguments[1])
            columns = _place(context, builder, signature, arguments, 2, arguments[3])
            target = _place(context, builder, signature, arguments, 6, arguments[7])
            stride, count, out_stride = arguments[4], arguments[5], arguments[8]
            zero = ir.Constant(_VECTOR, None)
            sums = [[cgutils.alloca_once_value(builder, zero) for _ in range(vectors)] for _ in range(TILE_ROWS)]
            with cgutils.for_range(builder, count, intp=_LONG) as loop:
                first = builder.mul(loop.index, stride)
                row_place, column_place = builder.gep(rows, [first]), builder.gep(columns, [first])
                others = [_load(builder, column_place, vector * LANES) for vector in range(vectors)]
                for row in range(TILE_ROWS):
                    own = _everywhere(builder, builder.load(builder.gep(row_place, [_LONG(row)])))
                    for vector, other in enumerate(others):
                        place = sums[row][vector]
                        builder.store(_fma(builder, own, other, builder.load(place)), place)
            for row in range(TILE_ROWS):
                place = builder.gep(target, [builder.mul(_LONG(row), out_stride)])
                for vector in range(vectors):
                    before, found = _load(builder, place, vector * LANES), builder.load(sums[row][vector])
                    after = builder.fsub(before, found) if subtract else builder.fadd(before, found)
                    _store(builder, after, place, vector * LANES)
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
def factor_block(typing_context, A, at, stride, least, least_at, inverses, inverses_at):
    """Replace the `LANES` × `LANES` block of symmetric A at ``at`` by its Cholesky factor U, UᵀU = A, 0 left of it.

    ``inverses`` get 1/U_jj. A pivot U_jj² that is not above ``least[least_at + j]`` makes row j of U, and its inverse,
    0.
    """

    def emit(context, builder, signature, arguments):
        start = _place(context, builder, signature, arguments, 0, arguments[1])
        least = _load(builder, _place(context, builder, signature, arguments, 3, arguments[4]))
        places = [builder.gep(start, [builder.mul(_LONG(row), arguments[2])]) for row in range(LANES)]
        rows = [_load(builder, place) for place in places]
        zero, none = ir.Constant(_VECTOR, None), _FLOAT(0)
        found = zero
        for j in range(LANES):
            pivot = builder.extract_element(rows[j], _WORD(j))
            good = builder.fcmp_ordered(">", pivot, builder.extract_element(least, _WORD(j)))
            inverse = builder.select(good, builder.fdiv(_FLOAT(1), _root(builder, pivot)), none)
            found = builder.insert_element(found, inverse, _WORD(j))
            rows[j] = builder.fmul(rows[j], _everywhere(builder, inverse))
            negative = builder.fsub(zero, rows[j])
            for i in range(j + 1, LANES):
                rows[i] = _fma(builder, _lane(builder, negative, i), rows[j], rows[i])
        for j, (row, place) in enumerate(zip(rows, places, strict=True)):
            kept = [lane if lane >= j else LANES + lane for lane in range(LANES)]
            _store(builder, builder.shuffle_vector(row, zero, ir.Constant(ir.VectorType(_WORD, LANES), kept)), place)
        _store(builder, found, _place(context, builder, signature, arguments, 5, arguments[6]))
        return context.get_dummy_value()

    long = types.int64
    return types.void(A, long, long, least, long, inverses, long), emit


@intrinsic
def solve_block(typing_context, A, block_at, at, stride, inverses, inverses_at):
    """Replace the `LANES` × `LANES` block B of A at ``at`` by U⁻ᵀB, U being what `factor_block` left at ``block_at``."""

    def emit(context, builder, signature, arguments):
        block, start = (_place(context, builder, signature, arguments, 0, arguments[place]) for place in (1, 2))
        inverses = _place(context, builder, signature, arguments, 4, arguments[5])
        offsets = [builder.mul(_LONG(row), arguments[3]) for row in range(LANES)]
        rows = [_load(builder, builder.gep(start, [offset])) for offset in offsets]
        zero = ir.Constant(_VECTOR, None)
        for j in range(LANES):
            inverse = builder.load(builder.gep(inverses, [_LONG(j)]))
            rows[j] = builder.fmul(rows[j], _everywhere(builder, inverse))
            negative = builder.fsub(zero, rows[j])
            own = builder.gep(block, [offsets[j]])
            for i in range(j + 1, LANES):
                factor = builder.load(builder.gep(own, [_LONG(i)]))
                rows[i] = _fma(builder, _everywhere(builder, factor), negative, rows[i])
        for row, offset in zip(rows, offsets, strict=True):
            _store(builder, row, builder.gep(start, [offset]))
        return context.get_dummy_value()

    long = types.int64
    return types.void(A, long, long, long, inverses, long), emit


@intrinsic
def products(typing_context, rows, at, stride, row, row_at, lanes, out, out_at):
    """out[e] = Σ_j rows[at + e·stride + j]·row[row_at + j] for e < `LANES`, over ``lanes`` sixteens of j."""

    def emit(context, builder, signature, arguments):
        start = _place(context, builder, signature, arguments, 0, arguments[1])
        other = _place(context, builder, signature, arguments, 3, arguments[4])
        sums = [cgutils.alloca_once_value(builder, ir.Constant(_VECTOR, None)) for _ in range(LANES)]
        with cgutils.for_range(builder, arguments[5], intp=_LONG) as loop:
            first = builder.mul(loop.index, _LONG(LANES))
            own = _load(builder, builder.gep(other, [first]))
            for e, place in enumerate(sums):
                offset = builder.add(first, builder.mul(_LONG(e), arguments[2]))
                builder.store(_fma(builder, _load(builder, builder.gep(start, [offset])), own, builder.load(place)),
                              place)
        _store(builder, _sums(builder, [builder.load(place) for place in sums]),
               _place(context, builder, signature, arguments, 6, arguments[7]))
        return context.get_dummy_value()

    long = types.int64
    return types.void(rows, long, long, row, long, long, out, long), emit


def _sums(builder, vectors):
    """Return, lane by lane, the sum of the lanes of each of `LANES` vectors."""
    numbers = ir.VectorType(_WORD, LANES)
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
            start = _place(context, builder, signature, arguments, 0, arguments[1])
            own = _place(context, builder, signature, arguments, 4, arguments[5])
            target = _place(context, builder, signature, arguments, 6, arguments[7])
            sums = [cgutils.alloca_once_value(builder, _load(builder, target, vector * LANES))
                    for vector in range(vectors)]
            with cgutils.for_range(builder, arguments[3], intp=_LONG) as loop:
                factor = _everywhere(builder, builder.load(builder.gep(own, [loop.index])))
                row = builder.gep(start, [builder.mul(loop.index, arguments[2])])
                for vector, place in enumerate(sums):
                    builder.store(_fma(builder, factor, _load(builder, row, vector * LANES), builder.load(place)),
                                  place)
            for vector, place in enumerate(sums):
                _store(builder, builder.load(place), target, vector * LANES)
            return context.get_dummy_value()

        long = types.int64
        return types.void(rows, long, long, long, factors, long, out, long), emit

    return some


combine, narrow_combine = _combine(COMBINED), _combine(1)
"""out[out_at + j] += Σ_e factors[factors_at + e]·rows[at + e·stride + j], e < count, for `COMBINED` sixteens of j, or 1.

``combine(rows, at, stride, count, factors, factors_at, out, out_at)``.
"""
