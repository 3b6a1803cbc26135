"""The innermost loops: each ``foo.py`` is the CPU kernel (Numba); its CUDA twin, where there is one, is ``foo.cu``."""

from typing import Any


def computable(stored: Any, wanted: Any, sparse: bool = False) -> Any:
    """Return the dtype in which kernels take data stored as ``stored``: itself, or ``wanted`` if it must be widened.

    Kernels widen float16 as they go where rows are dense; that of ``sparse`` rows is widened when it is read.
    """
    known = ("float32", "float64") if sparse else ("float16", "float32", "float64")
    return stored if str(stored) in known else wanted


def plain(X: Any) -> Any:
    """Return the array as kernels take it: float16 as its bits, as Numba does not know that type on the CPU."""
    return X.view("uint16") if X.dtype == "float16" else X


def start_compiler() -> None:
    """Load what Numba loads before its first kernel, a few tenths of a second.

    Ranks that call this at the same time do not wait for one another later, when the first of a node fills the
    cache and the others read it.
    """
    from numba.core.registry import cpu_target

    cpu_target.target_context.refresh()
