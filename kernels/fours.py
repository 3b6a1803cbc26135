"""In jitted functions: four float32 as one value, with + − · / and `root`, of which each is one instruction.

What there is a number of for each of four rows is gathered into one value, computed at once and scattered again. Every
operation rounds as IEEE 754 says, but that a product may be added without being rounded first.
"""

from __future__ import annotations

import operator

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.datamodel import models
from numba.extending import intrinsic, overload, register_model

COUNT = 4
_LONG, _WORD, _FLOAT = ir.IntType(64), ir.IntType(32), ir.FloatType()
FOUR_FLOATS = ir.VectorType(_FLOAT, COUNT)
_FLAGS = ("contract",)


class Four(types.Type):
    """The type of such a value."""

    def __init__(self):
        super().__init__(name="Four")


@register_model(Four)
class _FourModel(models.PrimitiveModel):
    def __init__(self, manager, kind):
        super().__init__(manager, kind, FOUR_FLOATS)


FOUR = Four()
PLACES = types.UniTuple(types.int64, COUNT)


def numbers(*places):
    """Return constants that say which lanes a shuffle takes."""
    return ir.Constant(ir.VectorType(_WORD, len(places)), places)


def address(context, builder, signature, arguments, array, place):
    """Return the address of an element of the 1-D, contiguous array that is argument number ``array``."""
    return builder.gep(context.make_array(signature.args[array])(context, builder, arguments[array]).data, [place])


@intrinsic
def places(typing_context, array, first):
    """Return the four elements (int32) of ``array`` from ``first`` on, as a tuple of int64."""

    def emit(context, builder, signature, arguments):
        start = address(context, builder, signature, arguments, 0, arguments[1])
        return cgutils.pack_array(builder, [builder.sext(builder.load(builder.gep(start, [_LONG(lane)])), _LONG)
                                            for lane in range(COUNT)])

    return PLACES(array, first), emit


@intrinsic(prefer_literal=True)
def distinct(typing_context, array, first, count):
    """Return whether the ``count`` (a constant) elements (int32) of ``array`` from ``first`` on all differ."""
    if not isinstance(count, types.IntegerLiteral):
        return None
    lanes = count.literal_value

    def emit(context, builder, signature, arguments):
        place = address(context, builder, signature, arguments, 0, arguments[1])
        own = builder.load(builder.bitcast(place, ir.VectorType(_WORD, lanes).as_pointer()), align=4)
        same = None
        for turn in range(1, lanes // 2 + 1):  # with what is further round, it has been compared from the other side
            turned = builder.shuffle_vector(own, own, numbers(*((lane + turn) % lanes for lane in range(lanes))))
            equal = builder.icmp_signed("==", own, turned)
            same = equal if same is None else builder.or_(same, equal)
        return builder.icmp_unsigned("==", builder.bitcast(same, ir.IntType(lanes)), ir.IntType(lanes)(0))

    return types.boolean(array, first, count), emit


@intrinsic
def loaded(typing_context, array, first):
    """Return the four elements (float32) of ``array`` from ``first`` on."""

    def emit(context, builder, signature, arguments):
        place = address(context, builder, signature, arguments, 0, arguments[1])
        return builder.load(builder.bitcast(place, FOUR_FLOATS.as_pointer()), align=4)

    return FOUR(array, first), emit


@intrinsic
def filled(typing_context, value):
    """Return ``value`` (float32) four times."""

    def emit(context, builder, signature, arguments):
        none = ir.Constant(FOUR_FLOATS, ir.Undefined)
        return builder.shuffle_vector(builder.insert_element(none, arguments[0], _WORD(0)), none, numbers(0, 0, 0, 0))

    return FOUR(types.float32), emit


@intrinsic
def gathered(typing_context, array, where):
    """Return the elements (float32) of ``array`` at ``where``."""

    def emit(context, builder, signature, arguments):
        value = ir.Constant(FOUR_FLOATS, ir.Undefined)
        for lane in range(COUNT):
            place = address(context, builder, signature, arguments, 0, builder.extract_value(arguments[1], lane))
            value = builder.insert_element(value, builder.load(place), _WORD(lane))
        return value

    return FOUR(array, where), emit


@intrinsic
def scattered(typing_context, array, where, value):
    """Write ``value`` to the elements (float32) of ``array`` at ``where``."""

    def emit(context, builder, signature, arguments):
        for lane in range(COUNT):
            place = address(context, builder, signature, arguments, 0, builder.extract_value(arguments[1], lane))
            builder.store(builder.extract_element(arguments[2], _WORD(lane)), place)
        return context.get_dummy_value()

    return types.void(array, where, value), emit


_TWO_FLOATS = ir.VectorType(_FLOAT, 2)


def _pair(context, builder, signature, arguments, lane):
    at = builder.mul(builder.extract_value(arguments[1], lane), _LONG(2))
    return builder.bitcast(address(context, builder, signature, arguments, 0, at), _TWO_FLOATS.as_pointer())


@intrinsic
def gathered_pairs(typing_context, array, where):
    """Return elements 2·``where`` of ``array`` (float32), and those that follow each."""

    def emit(context, builder, signature, arguments):
        pairs = [builder.load(_pair(context, builder, signature, arguments, lane), align=4) for lane in range(COUNT)]
        halves = [builder.shuffle_vector(pairs[lane], pairs[lane + 1], numbers(0, 1, 2, 3)) for lane in (0, 2)]
        found = [builder.shuffle_vector(*halves, numbers(*chosen)) for chosen in ((0, 2, 4, 6), (1, 3, 5, 7))]
        return context.make_tuple(builder, signature.return_type, found)

    return types.UniTuple(FOUR, 2)(array, where), emit


@intrinsic
def scattered_pairs(typing_context, array, where, first, second):
    """Write ``first`` to elements 2·``where`` of ``array`` (float32), and ``second`` to those that follow each."""

    def emit(context, builder, signature, arguments):
        for half, chosen in enumerate(((0, 4, 1, 5), (2, 6, 3, 7))):
            value = builder.shuffle_vector(*arguments[2:], numbers(*chosen))
            for pair in range(2):
                two = builder.shuffle_vector(value, value, numbers(2 * pair, 2 * pair + 1))
                place = _pair(context, builder, signature, arguments, 2 * half + pair)
                builder.store(two, place, align=4)
        return context.get_dummy_value()

    return types.void(array, where, first, second), emit


@intrinsic
def summed(typing_context, value):
    """Return the sum of the four as float64, always added in the same order."""

    def emit(context, builder, signature, arguments):
        wide = builder.fpext(arguments[0], ir.VectorType(ir.DoubleType(), COUNT))
        two = builder.fadd(*(builder.shuffle_vector(wide, wide, numbers(lane, lane + 1)) for lane in (0, 2)))
        return builder.fadd(*(builder.extract_element(two, _WORD(lane)) for lane in range(2)))

    return types.float64(value), emit


@intrinsic
def root(typing_context, value):
    """Return the square root of each."""

    def emit(context, builder, signature, arguments):
        kind = ir.FunctionType(FOUR_FLOATS, [FOUR_FLOATS])
        return builder.call(cgutils.get_or_insert_function(builder.module, kind, f"llvm.sqrt.v{COUNT}f32"), arguments)

    return FOUR(value), emit


@intrinsic
def not_negative(typing_context, value):
    """Return each, 0 instead of those below 0; NaN stays."""

    def emit(context, builder, signature, arguments):
        zero = ir.Constant(FOUR_FLOATS, [0.0] * COUNT)
        return builder.select(builder.fcmp_ordered("<", arguments[0], zero), zero, arguments[0])

    return FOUR(value), emit


def _arithmetic(sign, in_place, name):
    @intrinsic
    def of_fours(typing_context, a, b):
        def emit(context, builder, signature, arguments):
            return getattr(builder, name)(*arguments, flags=_FLAGS)

        return FOUR(FOUR, FOUR), emit

    @overload(in_place)
    @overload(sign)
    def computed(a, b):
        if isinstance(a, Four) and isinstance(b, Four):
            return lambda a, b: of_fours(a, b)
        if isinstance(a, Four):
            return lambda a, b: of_fours(a, filled(b))
        if isinstance(b, Four):
            return lambda a, b: of_fours(filled(a), b)
        return None

    return of_fours


for _sign, _in_place, _name in ((operator.add, operator.iadd, "fadd"), (operator.sub, operator.isub, "fsub"),
                                (operator.mul, operator.imul, "fmul"), (operator.truediv, operator.itruediv, "fdiv")):
    _arithmetic(_sign, _in_place, _name)
