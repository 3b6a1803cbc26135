"""In jitted functions: neighbouring elements of an array, 64 bytes of float32 or float64, as one value.

What a compiler makes of a plain loop depends on how many arrays the loop touches, as it has to prove that none overlaps
another; these do what they say. On a CPU with AVX-512 a value is one register, elsewhere it is several.
"""

from __future__ import annotations

from llvmlite import ir
from numba.core import cgutils, types
from numba.core.datamodel import models
from numba.extending import intrinsic, register_model

LANE_BYTES = 64
_WORD = ir.IntType(32)
_KINDS = {types.float32: ir.FloatType(), types.float64: ir.DoubleType(), types.uint16: ir.HalfType()}


class Lanes(types.Type):
    """The type of such a value: `count` floats of one kind."""

    def __init__(self, kind):
        self.kind = kind
        self.count = 8 * LANE_BYTES // kind.bitwidth
        super().__init__(name=f"Lanes({kind})")


@register_model(Lanes)
class _LanesModel(models.PrimitiveModel):
    def __init__(self, manager, lanes):
        super().__init__(manager, lanes, ir.VectorType(_KINDS[lanes.kind], lanes.count))


def _constant(numbers):
    return ir.Constant(ir.VectorType(_WORD, len(numbers)), numbers)


def _place(context, builder, signature, arguments, kind):
    """Return the address, as one of ``kind``, of the element of the first argument that the second one counts."""
    data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
    return builder.bitcast(builder.gep(data, [arguments[1]]), kind.as_pointer())


def _converted(builder, value, target):
    """Return an IR float or vector of floats as one of type ``target``: widened, or rounded."""
    width = {ir.HalfType(): 16, ir.FloatType(): 32, ir.DoubleType(): 64}
    before, after = (width[getattr(kind, "element", kind)] for kind in (value.type, target))
    if before == after:
        return value
    return builder.fpext(value, target) if before < after else builder.fptrunc(value, target)


@intrinsic
def converted(typing_context, element, like):
    """Return an element of an array as the kind of float that ``like`` is; a uint16 is the bits of a float16."""
    if element not in _KINDS:
        return None

    def emit(context, builder, signature, arguments):
        return _converted(builder, builder.bitcast(arguments[0], _KINDS[element]), _KINDS[like])

    return like(element, like), emit


@intrinsic
def lane_count(typing_context, like):
    """Return how many floats of the kind of ``like`` make a value: a constant to the compiler."""
    lanes = Lanes(like)

    def emit(context, builder, signature, arguments):
        return ir.Constant(ir.IntType(64), lanes.count)

    return types.int64(like), emit


@intrinsic
def load(typing_context, array, index, like):
    """Return the elements of ``array`` (C-contiguous, counted as if it were flat) from ``index`` on.

    They become the kind of float that ``like`` is, as many as make `LANE_BYTES`; uint16 are the bits of float16.
    """
    if array.layout != "C":
        return None
    lanes, stored = Lanes(like), array.dtype

    def emit(context, builder, signature, arguments):
        place = _place(context, builder, signature, arguments, ir.VectorType(_KINDS[stored], lanes.count))
        value = builder.load(place, align=stored.bitwidth // 8)
        return _converted(builder, value, ir.VectorType(_KINDS[like], lanes.count))

    return lanes(array, types.int64, like), emit


@intrinsic
def store(typing_context, array, index, lanes):
    """Write ``lanes`` to ``array`` (1-D, contiguous, of their kind) from ``index`` on."""
    if array.layout != "C" or array.dtype != lanes.kind:
        return None

    def emit(context, builder, signature, arguments):
        place = _place(context, builder, signature, arguments, arguments[2].type)
        builder.store(arguments[2], place, align=lanes.kind.bitwidth // 8)
        return context.get_dummy_value()

    return types.void(array, types.int64, lanes), emit


@intrinsic
def filled(typing_context, value):
    """Return ``value`` in every lane."""
    lanes = Lanes(value)

    def emit(context, builder, signature, arguments):
        none = ir.Constant(ir.VectorType(arguments[0].type, lanes.count), ir.Undefined)
        first = builder.insert_element(none, arguments[0], _WORD(0))
        return builder.shuffle_vector(first, none, _constant([0] * lanes.count))

    return lanes(value), emit


@intrinsic
def multiply_add(typing_context, a, b, c):
    """Return a·b + c, lane by lane, rounded once."""

    def emit(context, builder, signature, arguments):
        kind = arguments[0].type
        fma = cgutils.get_or_insert_function(builder.module, ir.FunctionType(kind, [kind] * 3),
                                             f"llvm.fma.v{a.count}f{a.kind.bitwidth}")
        return builder.call(fma, arguments)

    return a(a, a, a), emit


@intrinsic
def added(typing_context, a, b):
    """Return a + b, lane by lane."""

    def emit(context, builder, signature, arguments):
        return builder.fadd(*arguments)

    return a(a, a), emit


@intrinsic
def summed(typing_context, lanes):
    """Return the sum of the lanes, always added in the same order."""

    def emit(context, builder, signature, arguments):
        value, none, width = arguments[0], ir.Constant(arguments[0].type, ir.Undefined), lanes.count
        while width > 1:
            width //= 2
            upper = [width + lane if lane < width else 0 for lane in range(lanes.count)]
            value = builder.fadd(value, builder.shuffle_vector(value, none, _constant(upper)))
        return builder.extract_element(value, _WORD(0))

    return lanes.kind(lanes), emit


@intrinsic
def mask_above(typing_context, lanes, value):
    """Return a bit for each lane, the lowest for the first: whether it is greater than ``value``; NaN never is."""

    def emit(context, builder, signature, arguments):
        none = ir.Constant(ir.VectorType(arguments[1].type, lanes.count), ir.Undefined)
        first = builder.insert_element(none, arguments[1], _WORD(0))
        everywhere = builder.shuffle_vector(first, none, _constant([0] * lanes.count))
        bits = builder.bitcast(builder.fcmp_ordered(">", arguments[0], everywhere), ir.IntType(lanes.count))
        return builder.zext(bits, ir.IntType(64))

    return types.int64(lanes, lanes.kind), emit
