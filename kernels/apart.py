"""A mark for jitted functions that are compiled once, however many others call them."""

from __future__ import annotations

from numba.core import types
from numba.extending import intrinsic


@intrinsic
def apart(typing_context):
    """In a jitted function: have it called, not copied into its callers, which a compiler would take long over."""

    def emit(context, builder, signature, arguments):
        builder.function.attributes.add("noinline")
        return context.get_dummy_value()

    return types.void(), emit
