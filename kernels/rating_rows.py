"""In jitted functions: rows of factors, sixteen numbers at a time: the products of two of them, and a step of both.

A row begins at an element of a 1-D, contiguous array of float32, or of uint16, which holds the bits of float16; what is
computed is float32 in either case. ``lanes`` is a tuple of as many zeros as there are sixteens in a row: the number is
part of the tuple's type, so that each has code of its own, without loops.
"""

from __future__ import annotations

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from dml_hpc.kernels.fours import COUNT, FOUR, numbers

LANES = 16
_FLOAT, _HALF = ir.FloatType(), ir.HalfType()
_VECTOR, _HALVES = ir.VectorType(_FLOAT, LANES), ir.VectorType(_HALF, LANES)
_FAST = ("reassoc", "contract", "nsz", "arcp")
"""NaN and infinity keep their meaning: a diverging run must show."""


class _Row:
    """The row of an array that begins at an element."""

    def __init__(self, context, builder, kind, array, first):
        data = context.make_array(kind)(context, builder, array).data
        self._builder, self.half = builder, kind.dtype == types.uint16
        self._start = builder.gep(data, [first])

    def place(self, lane):
        place = self._builder.gep(self._start, [ir.Constant(ir.IntType(64), lane * LANES)])
        return self._builder.bitcast(place, (_HALVES if self.half else _VECTOR).as_pointer())

    def load(self, lane):
        values = self._builder.load(self.place(lane), align=2 if self.half else 4)
        return self._builder.fpext(values, _VECTOR) if self.half else values

    def store(self, lane, values):
        if self.half:
            values = self._builder.fptrunc(values, _HALVES)
        self._builder.store(values, self.place(lane), align=2 if self.half else 4)


def _everywhere(builder, value):
    none = ir.Constant(_VECTOR, ir.Undefined)
    one = builder.insert_element(none, value, ir.IntType(32)(0))
    return builder.shuffle_vector(one, none, ir.Constant(ir.VectorType(ir.IntType(32), LANES), None))


def _product_sum(builder, pairs):
    total = None
    for a, b in pairs:
        product = builder.fmul(a, b, flags=_FAST)
        total = product if total is None else builder.fadd(total, product, flags=_FAST)
    width = LANES
    while width > 1:  # halves are added to halves: always in the same order
        width //= 2
        numbers = ir.VectorType(ir.IntType(32), width)
        low, high = (builder.shuffle_vector(total, total, ir.Constant(numbers, list(range(first, first + width))))
                     for first in (0, width))
        total = builder.fadd(low, high, flags=_FAST)
    return builder.extract_element(total, ir.IntType(32)(0))


@intrinsic
def row_product(typing_context, p, i, q, j, lanes):
    """Return the scalar product (float32) of the row of ``p`` at element ``i`` and that of ``q`` at ``j``."""

    def emit(context, builder, signature, arguments):
        a, b = (_Row(context, builder, signature.args[at], *arguments[at:at + 2]) for at in (0, 2))
        return _product_sum(builder, [(a.load(lane), b.load(lane)) for lane in range(len(lanes))])

    return types.float32(p, types.int64, q, types.int64, lanes), emit


def _fetch(builder, row, lanes):
    byte, word = ir.IntType(8).as_pointer(), ir.IntType(32)
    hint = cgutils.get_or_insert_function(
        builder.module, ir.FunctionType(ir.VoidType(), [byte, word, word, word]), "llvm.prefetch.p0")
    for lane in range(0, lanes, 2 if row.half else 1):  # one in a cache line
        # It will be written: as such it is fetched at once, not first to be read.
        builder.call(hint, [builder.bitcast(row.place(lane), byte), word(1), word(3), word(1)])


@intrinsic
def row_fetch(typing_context, p, i, lanes):
    """Prefetch the row of ``p`` at element ``i``."""

    def emit(context, builder, signature, arguments):
        _fetch(builder, _Row(context, builder, signature.args[0], *arguments[:2]), len(lanes))
        return context.get_dummy_value()

    return types.void(p, types.int64, lanes), emit


def _step(builder, a, b, lanes, keep_a, gain_a, keep_b, gain_b):
    for lane in range(lanes):
        old_a, old_b = a.load(lane), b.load(lane)
        new = [builder.fadd(builder.fmul(keep, own, flags=_FAST), builder.fmul(gain, other, flags=_FAST), flags=_FAST)
               for keep, own, gain, other in ((keep_a, old_a, gain_a, old_b), (keep_b, old_b, gain_b, old_a))]
        a.store(lane, new[0])
        b.store(lane, new[1])


@intrinsic
def row_step(typing_context, p, i, q, j, keep_p, gain_p, keep_q, gain_q, lanes):
    """p ← keep_p·p + gain_p·q and, with the old p, q ← keep_q·q + gain_q·p, for a row of each (float32 factors)."""

    def emit(context, builder, signature, arguments):
        a, b = (_Row(context, builder, signature.args[at], *arguments[at:at + 2]) for at in (0, 2))
        _step(builder, a, b, len(lanes), *(_everywhere(builder, value) for value in arguments[4:8]))
        return context.get_dummy_value()

    return types.void(p, types.int64, q, types.int64, *(types.float32,) * 4, lanes), emit


def _added_up(builder, totals):
    """Return the sums of four vectors of sixteen, as one value: always added in the same order."""

    def halved(value):
        count = value.type.count // 2
        return builder.fadd(*(builder.shuffle_vector(value, value, numbers(*range(first, first + count)))
                              for first in (0, count)), flags=_FAST)

    def folded(a, b, low):
        """Add what two vectors have at the places ``low`` to what they have two places further."""
        return builder.fadd(*(builder.shuffle_vector(a, b, numbers(*(place + further for place in low)))
                              for further in (0, 2)), flags=_FAST)

    eights = [halved(total) for total in totals]
    pairs = [folded(eights[first], eights[first + 1], (0, 8, 1, 9, 4, 12, 5, 13)) for first in (0, 2)]
    return halved(folded(pairs[0], pairs[1], (0, 1, 8, 9, 4, 5, 12, 13)))


@intrinsic
def four_products(typing_context, p, u, q, i, width, first, lanes):
    """Return the scalar products of rows ``u`` of ``p`` and ``i`` of ``q``, four each, of ``width`` elements.

    Of the rows the elements count that ``lanes`` are of, from ``first`` on.
    """

    def emit(context, builder, signature, arguments):
        totals = []
        for four in range(COUNT):
            a, b = _rows_of(context, builder, signature, arguments, four)
            total = None
            for lane in range(len(lanes)):
                product = builder.fmul(a.load(lane), b.load(lane), flags=_FAST)
                total = product if total is None else builder.fadd(total, product, flags=_FAST)
            totals.append(total)
        return _added_up(builder, totals)

    return FOUR(p, u, q, i, types.int64, types.int64, lanes), emit


def _rows_of(context, builder, signature, arguments, four):
    width, first = arguments[4:6]
    return [_Row(context, builder, signature.args[at], arguments[at],
                 builder.add(builder.mul(builder.extract_value(arguments[at + 1], four), width), first))
            for at in (0, 2)]


@intrinsic
def four_fetch(typing_context, p, u, q, i, width, lanes):
    """Prefetch rows ``u`` of ``p`` and ``i`` of ``q``, four each."""

    def emit(context, builder, signature, arguments):
        zero = ir.IntType(64)(0)
        for four in range(COUNT):
            for row in _rows_of(context, builder, signature, [*arguments[:5], zero], four):
                _fetch(builder, row, len(lanes))
        return context.get_dummy_value()

    return types.void(p, u, q, i, types.int64, lanes), emit


@intrinsic
def four_steps(typing_context, p, u, q, i, width, first, keep_p, gain_p, keep_q, gain_q, lanes):
    """As `row_step` for rows ``u`` of ``p`` and ``i`` of ``q``, four each and none twice; elements: `four_products`."""

    def emit(context, builder, signature, arguments):
        for four in range(COUNT):
            a, b = _rows_of(context, builder, signature, arguments, four)
            everywhere = [builder.shuffle_vector(value, value, numbers(*[four] * LANES)) for value in arguments[6:10]]
            _step(builder, a, b, len(lanes), *everywhere)
        return context.get_dummy_value()

    return types.void(p, u, q, i, types.int64, types.int64, *(FOUR,) * 4, lanes), emit
