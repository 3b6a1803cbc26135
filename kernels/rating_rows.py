"""In jitted functions: rows of factors, sixteen numbers at a time: the products of two of them, and a step of both.

A row begins at an element of a 1-D, contiguous array of float32, or of uint16, which holds the bits of float16; what is
computed is float32 in either case. ``lanes`` is a tuple of as many zeros as there are sixteens in a row: the number is
part of the tuple's type, so that each has code of its own, without loops.
"""

from __future__ import annotations

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

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


@intrinsic
def row_fetch(typing_context, p, i, lanes):
    """Prefetch the row of ``p`` at element ``i``."""

    def emit(context, builder, signature, arguments):
        row = _Row(context, builder, signature.args[0], *arguments[:2])
        byte, word = ir.IntType(8).as_pointer(), ir.IntType(32)
        hint = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(ir.VoidType(), [byte, word, word, word]), "llvm.prefetch.p0")
        for lane in range(0, len(lanes), 2 if row.half else 1):  # one in a cache line
            # It will be written: as such it is fetched at once, not first to be read.
            builder.call(hint, [builder.bitcast(row.place(lane), byte), word(1), word(3), word(1)])
        return context.get_dummy_value()

    return types.void(p, types.int64, lanes), emit


@intrinsic
def row_step(typing_context, p, i, q, j, keep_p, gain_p, keep_q, gain_q, lanes):
    """p ← keep_p·p + gain_p·q and, with the old p, q ← keep_q·q + gain_q·p, for a row of each (float32 factors)."""

    def emit(context, builder, signature, arguments):
        a, b = (_Row(context, builder, signature.args[at], *arguments[at:at + 2]) for at in (0, 2))
        keep_a, gain_a, keep_b, gain_b = (_everywhere(builder, value) for value in arguments[4:8])
        for lane in range(len(lanes)):
            old_a, old_b = a.load(lane), b.load(lane)
            new = [builder.fadd(builder.fmul(keep, own, flags=_FAST), builder.fmul(gain, other, flags=_FAST),
                                flags=_FAST)
                   for keep, own, gain, other in ((keep_a, old_a, gain_a, old_b), (keep_b, old_b, gain_b, old_a))]
            a.store(lane, new[0])
            b.store(lane, new[1])
        return context.get_dummy_value()

    return types.void(p, types.int64, q, types.int64, *(types.float32,) * 4, lanes), emit
