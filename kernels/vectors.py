"""In jitted functions: neighbouring elements of an array as one value, of any number that is a power of two.

As `dml_hpc.kernels.lanes`, whose ``store``, ``multiply_add`` and ``added`` take these values too, but from one element
to `MOST_BYTES`, so that rows of a matrix with a few columns, or an odd number of them, go in few pieces.
"""

from __future__ import annotations

from llvmlite import ir
from numba.core import types
from numba.core.datamodel import models
from numba.extending import intrinsic, register_model

from dml_hpc.kernels.lanes import Lanes

MOST_BYTES = 128
"""Two registers of AVX-512, four of AVX2. More would take a compiler longer, and gain little."""


class Vector(Lanes):
    """The type of such a value: `count` floats of one kind."""

    def __init__(self, kind, count):
        self.kind, self.count = kind, count
        types.Type.__init__(self, f"Vector({kind}, {count})")


@register_model(Vector)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, manager, vector):
        element = ir.DoubleType() if vector.kind == types.float64 else ir.FloatType()
        super().__init__(manager, vector, ir.VectorType(element, vector.count))


@intrinsic(prefer_literal=True)
def zeros(typing_context, like, part):
    """Return zeros of the kind of float that ``like`` is, `MOST_BYTES` / ``part`` (a literal) of them, at least one."""
    if not isinstance(part, types.IntegerLiteral):
        return None
    vector = Vector(like, max(8 * MOST_BYTES // like.bitwidth // part.literal_value, 1))

    def emit(context, builder, signature, arguments):
        return ir.Constant(context.get_value_type(vector), None)

    return vector(like, part), emit


@intrinsic
def width(typing_context, vector):
    """Return how many elements ``vector`` has: a constant to the compiler."""

    def emit(context, builder, signature, arguments):
        return ir.Constant(ir.IntType(64), vector.count)

    return types.int64(vector), emit


@intrinsic
def load(typing_context, array, index, vector):
    """Return elements of ``array`` (C-contiguous, counted as if it were flat) from ``index`` on, as many as ``vector``.

    The array is of the kind of ``vector``, whose own value does not matter.
    """
    if array.layout != "C" or array.dtype != vector.kind:
        return None

    def emit(context, builder, signature, arguments):
        data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        place = builder.bitcast(builder.gep(data, [arguments[1]]), arguments[2].type.as_pointer())
        return builder.load(place, align=vector.kind.bitwidth // 8)

    return vector(array, types.int64, vector), emit


@intrinsic
def filled(typing_context, value, vector):
    """Return ``value`` in every element of a value like ``vector``."""
    if value != vector.kind:
        return None

    def emit(context, builder, signature, arguments):
        kind = arguments[1].type
        none = ir.Constant(kind, ir.Undefined)
        first = builder.insert_element(none, arguments[0], ir.Constant(ir.IntType(32), 0))
        order = ir.Constant(ir.VectorType(ir.IntType(32), vector.count), [0] * vector.count)
        return builder.shuffle_vector(first, none, order)

    return vector(value, vector), emit
