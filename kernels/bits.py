"""In jitted functions: floats as their bits and back, and sixteen of them compared at a time."""

from __future__ import annotations

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

LANES = 16
_FLOAT, _HALF, _WORD, _SHORT = ir.FloatType(), ir.HalfType(), ir.IntType(32), ir.IntType(16)
_VECTOR = ir.VectorType(_FLOAT, LANES)


@intrinsic
def float_bits(typing_context, value):
    """Return the bits (uint32) of a float32."""

    def emit(context, builder, signature, arguments):
        return builder.bitcast(arguments[0], _WORD)

    return types.uint32(types.float32), emit


@intrinsic
def float_of(typing_context, bits):
    """Return the float32 that has these bits (uint32)."""

    def emit(context, builder, signature, arguments):
        return builder.bitcast(arguments[0], _FLOAT)

    return types.float32(types.uint32), emit


@intrinsic
def float16_bits(typing_context, value):
    """Return the bits (uint16) of the float16 nearest to a float32: one instruction on CPUs since 2012 (F16C)."""

    def emit(context, builder, signature, arguments):
        return builder.bitcast(builder.fptrunc(arguments[0], _HALF), _SHORT)

    return types.uint16(types.float32), emit


@intrinsic
def float_of_float16(typing_context, bits):
    """Return as float32 the float16 that has these bits (uint16)."""

    def emit(context, builder, signature, arguments):
        return builder.fpext(builder.bitcast(arguments[0], _HALF), _FLOAT)

    return types.float32(types.uint16), emit


@intrinsic
def add_and_find(typing_context, addend, target, index, threshold):
    """Add `LANES` elements of ``addend`` from ``index`` on to ``target``; return which sums are large.

    Both are 1-D, contiguous, float32. Bit i (of a uint32) says that |target[index + i]| >= ``threshold``, or that it
    is NaN.
    """

    def emit(context, builder, signature, arguments):
        places = []
        for kind, array in zip(signature.args[:2], arguments[:2], strict=True):
            data = context.make_array(kind)(context, builder, array).data
            places.append(builder.bitcast(builder.gep(data, [arguments[2]]), _VECTOR.as_pointer()))
        total = builder.fadd(*(builder.load(place, align=4) for place in places))
        builder.store(total, places[1], align=4)
        none = ir.Constant(_VECTOR, ir.Undefined)
        one = builder.insert_element(none, arguments[3], _WORD(0))
        bar = builder.shuffle_vector(one, none, ir.Constant(ir.VectorType(_WORD, LANES), None))  # in every lane
        magnitude = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(_VECTOR, [_VECTOR]), f"llvm.fabs.v{LANES}f32")
        large = builder.fcmp_unordered(">=", builder.call(magnitude, [total]), bar)
        return builder.zext(builder.bitcast(large, ir.IntType(LANES)), _WORD)

    return types.uint32(addend, target, types.int64, types.float32), emit


@intrinsic
def lowest_bit(typing_context, mask):
    """Return the number of the lowest bit that is set in ``mask`` (uint32, not 0)."""

    def emit(context, builder, signature, arguments):
        return builder.zext(builder.cttz(arguments[0], ir.IntType(1)(1)), ir.IntType(64))

    return types.int64(types.uint32), emit
