"""A hint to the CPU: bring this array element's cache line in, it will be read soon."""

from __future__ import annotations

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

LINE_BYTES = 64


@intrinsic
def prefetch(typing_context, array, index):
    """In a jitted function: prefetch the line of ``array[index]`` (1-D, contiguous) for reading; never faults."""

    def emit(context, builder, signature, arguments):
        data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        byte, word = ir.IntType(8).as_pointer(), ir.IntType(32)
        hint = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(ir.VoidType(), [byte, word, word, word]), "llvm.prefetch.p0")
        address = builder.bitcast(builder.gep(data, [arguments[1]]), byte)
        builder.call(hint, [address, word(0), word(3), word(1)])  # for reading, into every level, data
        return context.get_dummy_value()

    return types.void(array, index), emit
