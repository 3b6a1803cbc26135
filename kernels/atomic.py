"""Flags between processes that share memory: loads and stores that are neither cached in a register nor reordered."""

from __future__ import annotations

import platform

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic
from numba.types import ExternalFunction

yield_core = ExternalFunction("sched_yield", types.int32())
"""In a jitted function: let another process of this core run (POSIX ``sched_yield``)."""

_X86 = platform.machine() in ("x86_64", "AMD64")


@intrinsic
def load_acquire(typing_context, array, index):
    """In a jitted function: ``array[index]`` (int64, 1-D, contiguous), read before anything that follows is."""

    def emit(context, builder, signature, arguments):
        data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        return builder.load_atomic(builder.gep(data, [arguments[1]]), "acquire", 8)

    return types.int64(array, types.int64), emit


@intrinsic
def store_release(typing_context, array, index, value):
    """In a jitted function: ``array[index] = value`` (int64), written after all that precedes is."""

    def emit(context, builder, signature, arguments):
        data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        builder.store_atomic(arguments[2], builder.gep(data, [arguments[1]]), "release", 8)
        return context.get_dummy_value()

    return types.void(array, types.int64, types.int64), emit


@intrinsic
def relax(typing_context):
    """In a jitted function: a hint that this loop polls; saves power and leaves the loop sooner."""

    def emit(context, builder, signature, arguments):
        if _X86:
            pause = ir.FunctionType(ir.VoidType(), [])
            builder.call(cgutils.get_or_insert_function(builder.module, pause, "llvm.x86.sse2.pause"), [])
        return context.get_dummy_value()

    return types.void(), emit
