"""NumPy's arrays as a device's: they do not mix with the host's, as CuPy's do not."""

from __future__ import annotations

import types
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

_CAPTURING: list[bool] = []


@contextmanager
def only_captured() -> Iterator[None]:
    """Within it, operations on arrays of a device are refused: work is captured, of which they would be no part."""
    _CAPTURING.append(True)
    try:
        yield
    finally:
        _CAPTURING.pop()


class DeviceArray(np.ndarray):
    """An array that stands for one in a device's memory."""

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, out: Any = (), **named: Any) -> Any:
        _refuse_captured(ufunc.__name__)
        _refuse_host([*inputs, *out], ufunc.__name__)
        plain = {"out": tuple(map(_plain, out))} if out else {}
        result = getattr(ufunc, method)(*map(_plain, inputs), **plain, **named)
        return out[0] if len(out) == 1 else _wrapped(result)

    def __array_function__(self, function: Any, kinds: Any, arguments: Any, named: Any) -> Any:
        return _called(function, arguments, named)

    def max(self, axis: Any = None, out: Any = None, keepdims: bool = False) -> Any:
        return _called(np.max, (self, axis, out, keepdims), {})

    def dot(self, other: Any, out: Any = None) -> Any:
        return _called(np.dot, (self, other), {"out": out})

    def __getitem__(self, key: Any) -> Any:
        return _wrapped(super().__getitem__(_plain_key(key)))

    def fill(self, value: Any) -> None:
        _refuse_captured("fill")
        super().fill(value)

    def copy(self, order: Any = "C") -> Any:
        _refuse_captured("copy")
        return super().copy(order)

    def astype(self, *arguments: Any, **named: Any) -> Any:
        _refuse_captured("astype")
        return super().astype(*arguments, **named)

    def __setitem__(self, key: Any, value: Any) -> None:
        _refuse_captured("assignment")
        _refuse_host([value], "assignment")
        super().__setitem__(_plain_key(key), _plain(value))


class _Module:
    """A module of NumPy's, whose functions return arrays of the device."""

    def __init__(self, module: types.ModuleType) -> None:
        self._module = module

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._module, name)
        if isinstance(found, types.ModuleType):
            return _Module(found)
        if isinstance(found, type | np.ufunc) or not callable(found):
            return found
        return lambda *arguments, **named: _called(found, arguments, named)


xp = _Module(np)


def _refuse_captured(what: str) -> None:
    if _CAPTURING:
        raise RuntimeError(f"{what} of a device's array cannot be captured: launch a kernel, or use the device's calls")


def _called(function: Any, arguments: Any, named: Any) -> Any:
    _refuse_captured(function.__name__)
    if {"initial", "where"} & set(named):
        raise TypeError(f"CuPy's {function.__name__} takes neither `initial` nor `where`")
    given = [*arguments, *named.values()]
    if function.__name__ not in ("asarray", "array"):
        _refuse_host(given, function.__name__)
    result = function(*map(_plain, arguments), **{name: _plain(value) for name, value in named.items()})
    out = named.get("out")
    return out if isinstance(out, DeviceArray) else _wrapped(result)


def _plain(value: Any) -> Any:
    if isinstance(value, DeviceArray):
        return value.view(np.ndarray)
    if type(value) in (list, tuple):
        return type(value)(map(_plain, value))
    return value


def _plain_key(key: Any) -> Any:
    return tuple(map(_plain, key)) if isinstance(key, tuple) else _plain(key)


def _wrapped(value: Any) -> Any:
    if isinstance(value, np.ndarray | np.generic):
        return np.asarray(value).view(DeviceArray)
    if isinstance(value, tuple):
        parts = [_wrapped(part) for part in value]
        return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)
    return [_wrapped(part) for part in value] if isinstance(value, list) else value


def _refuse_host(values: Any, where: str) -> None:
    for value in values:
        if isinstance(value, list | tuple):
            _refuse_host(value, where)
        elif isinstance(value, np.ndarray) and not isinstance(value, DeviceArray):
            raise TypeError(f"{where}: an array of the host among the device's")
