"""Ways to damage a data set: its bytes, its files, what its HDF5 files hold, its manifest."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from dml_hpc.data.manifest import FILE
from dml_hpc.files import file_sha256

Rng = np.random.Generator


def _victim(rng: Rng, data: Path, ends: str = ".h5") -> Path:
    return sorted(path for path in data.iterdir() if path.name.endswith(ends))[rng.integers(
        sum(path.name.endswith(ends) for path in data.iterdir()))]


def _forge(data: Path) -> None:
    """Make the manifest fit the files' bytes, as if they had been written so."""
    if not (data / FILE).is_file():
        return
    table = json.loads((data / FILE).read_text())
    for entry in table["shards"]:
        path = data / entry["file"]
        if path.is_file():
            entry.update(sha256=file_sha256(path), bytes=path.stat().st_size,
                         head_sha256=file_sha256(path, entry["head_bytes"]))
    (data / FILE).write_text(json.dumps(table))


# Damage to bytes.

def _cut(rng: Rng, content: bytearray) -> bytearray:
    return content[:rng.integers(len(content))] if rng.random() < 0.7 else content[:-int(rng.integers(1, 65))]


def _flip(rng: Rng, content: bytearray, within: int) -> bytearray:
    for _ in range(rng.integers(1, 9)):
        content[rng.integers(min(within, len(content)))] ^= 1 << rng.integers(8)
    return content


def _flip_used(rng: Rng, content: bytearray) -> bytearray:
    """Flip bits of bytes that are not 0, of which most say something."""
    used = np.flatnonzero(np.frombuffer(bytes(content[:1 << 16]), np.uint8))
    for place in rng.choice(used, rng.integers(1, 5)):
        content[place] ^= 1 << rng.integers(8)
    return content


def _overwrite(rng: Rng, content: bytearray) -> bytearray:
    used = np.flatnonzero(np.frombuffer(bytes(content), np.uint8))
    place, length = int(rng.choice(used)), int(rng.choice([1, 2, 4, 8, 64, 4096]))
    filler = [b"\0", b"\xff", b"\x7f", rng.bytes(1)][rng.integers(4)]
    content[place:place + length] = filler * len(content[place:place + length])
    return content


def _swap_pages(rng: Rng, content: bytearray) -> bytearray:
    one, other = (int(page) * 512 for page in rng.integers(max(len(content) // 512, 1), size=2))
    content[one:one + 512], content[other:other + 512] = content[other:other + 512], content[one:one + 512]
    return content


def _splice(rng: Rng, content: bytearray) -> bytearray:
    place = rng.integers(len(content))
    return content[:place] + bytearray(rng.bytes(int(rng.integers(1, 200)))) + content[place:]


BYTES: dict[str, Callable[[Rng, bytearray], bytearray]] = {
    "cut": _cut, "flip in the head": lambda rng, content: _flip(rng, content, 8192), "flip what is used": _flip_used,
    "flip anywhere": lambda rng, content: _flip(rng, content, len(content)), "overwrite": _overwrite,
    "swap pages": _swap_pages, "splice": _splice,
    "append": lambda rng, content: content + bytearray(rng.bytes(int(rng.integers(1, 9000)))),
    "empty": lambda rng, content: bytearray()}


def _damage_bytes(how: str) -> Callable[[Rng, Path], None]:
    def damage(rng: Rng, data: Path) -> None:
        path = _victim(rng, data)
        path.write_bytes(BYTES[how](rng, bytearray(path.read_bytes())))
    return damage


# Damage to files.

def _gone(rng: Rng, data: Path) -> Path:
    path = _victim(rng, data, ("", ".h5")[rng.integers(2)])
    path.unlink()
    return path


def _pipe(rng: Rng, data: Path) -> None:
    os.mkfifo(_gone(rng, data))


def _loop(rng: Rng, data: Path) -> None:
    path = _gone(rng, data)
    path.symlink_to(path.name)


def _exchange(rng: Rng, data: Path) -> None:
    one, other = sorted(data.glob("*.h5"))[:2]
    content = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(content)


FILES: dict[str, Callable[[Rng, Path], None]] = {
    "missing": lambda rng, data: _gone(rng, data) and None, "a folder": lambda rng, data: _gone(rng, data).mkdir(),
    "a pipe": _pipe, "a link to itself": _loop, "exchanged": _exchange,
    "a device": lambda rng, data: _gone(rng, data).symlink_to("/dev/zero"),
    "one more": lambda rng, data: shutil.copy(_victim(rng, data), data / "part-00077.h5") and None}


# Damage by HDF5's own means: well-formed files that hold something else. The manifest is made to fit their bytes.

def _arrays(file: h5py.File) -> list[str]:
    names: list[str] = []
    file.visititems(lambda name, found: names.append(name) if isinstance(found, h5py.Dataset) else None)
    return names


def _other(rng: Rng, values: np.ndarray) -> Any:
    kinds = ["S4", "c8", "?", "f2", "f8", ">f4", "u1", "i8", "u8", "f16", h5py.string_dtype(),
             h5py.enum_dtype({"a": 1}),
             np.dtype([("a", "f4"), ("b", "i4")])]
    kind: Any = kinds[rng.integers(len(kinds))]
    if isinstance(kind, np.dtype) and kind.names:
        return np.zeros(values.shape, kind)
    return values.astype(np.int64).astype(object).astype(str) if kind == h5py.string_dtype() else values.astype(kind)


def _reshape(rng: Rng, values: np.ndarray) -> Any:
    forms = [values[None], values[..., None], values[:0], values[:-1], np.concatenate([values, values]),
             values.reshape(-1),
             values.reshape(-1)[:1].reshape(()), h5py.Empty("f4"), values[..., :0], values.T]
    return forms[rng.integers(len(forms))]


def _special(rng: Rng, values: np.ndarray) -> np.ndarray:
    out = np.array(values)
    extreme = [np.nan, np.inf, -np.inf, 3e38, -3e38, 1e-40] if out.dtype.kind == "f" else \
        [np.iinfo(out.dtype).min, np.iinfo(out.dtype).max, -1, 1 << 20, 7]
    for _ in range(rng.integers(1, 4)):
        out.reshape(-1)[rng.integers(out.size)] = extreme[rng.integers(len(extreme))]
    return out


def _replace(change: Callable[[Rng, np.ndarray], Any]) -> Callable[[Rng, h5py.File], None]:
    def damage(rng: Rng, file: h5py.File) -> None:
        names = _arrays(file)
        name = names[rng.integers(len(names))]
        values = file[name][()]
        del file[name]
        file[name] = change(rng, values)
    return damage


def _claim(rng: Rng, file: h5py.File) -> None:
    """Let an array claim to be enormous, which HDF5 grants without a byte written."""
    names = _arrays(file)
    name = names[rng.integers(len(names))]
    old = file[name]
    kind, many = old.dtype, int(rng.choice([1 << 20, 1 << 31, 1 << 40, 1 << 55]))
    shape = (many, *old.shape[1:]) if rng.random() < 0.5 or len(old.shape) < 2 else (old.shape[0], many)
    chunk = tuple(min(size, 1 << int(rng.choice([4, 14]))) for size in shape)
    settings = [{"chunks": chunk}, {"chunks": chunk, "compression": "gzip"}, {"chunks": chunk, "fillvalue": 3},
                {"chunks": tuple(min(size, 1 << 14) for size in shape), "compression": "lzf"}, {}]
    del file[name]
    file.create_dataset(name, shape, kind, **settings[rng.integers(len(settings))])


def _link(rng: Rng, file: h5py.File) -> None:
    names = _arrays(file)
    name = names[rng.integers(len(names))]
    values = file[name][()]
    del file[name]
    how = rng.integers(7)
    if how == 0:
        file[name] = h5py.SoftLink(["/nowhere", f"/{name}", "/y", "/"][rng.integers(4)])
    elif how == 1:
        file[name] = h5py.ExternalLink(["0.h5", "part-00000.h5", "/dev/zero"][rng.integers(3)], "/y")
    elif how == 2:
        layout = h5py.VirtualLayout(values.shape, values.dtype)
        layout[...] = h5py.VirtualSource(["0.h5", ".", "gone.h5"][rng.integers(3)], "y", shape=values.shape)
        file.create_virtual_dataset(name, layout)
    elif how == 3:
        file.create_dataset(name, values.shape, values.dtype,
                            external=[(["/dev/zero", "gone.bin", "/etc/hostname"][rng.integers(3)], 0, values.nbytes)])
    elif how == 4:
        file.require_group(name)["again"] = file["/"]
    elif how == 5:
        file.create_group(name)
    else:
        file[name] = values
        file["more"] = file["/"]


def _exchange_arrays(rng: Rng, file: h5py.File) -> None:
    names = _arrays(file)
    one, other = (names[place] for place in rng.choice(len(names), 2, replace=False))
    file.move(one, "between")
    file.move(other, one)
    file.move("between", other)


def _attributes(rng: Rng, file: h5py.File) -> None:
    values: list[Any] = ["text", -1, [1, 2, 3], [25, 0], [25, -6], [25, 2**62], [25.0, 6.0], np.array([b"a", b"b"]),
                         h5py.Empty("i8"), [[25, 6]], [True, True], np.array([25, 2**64 - 1], np.uint64), [25, 3]]
    target = file.get("X", file)
    if rng.random() < 0.2:
        target.attrs.pop("shape", None)
    else:
        target.attrs["shape"] = values[rng.integers(len(values))]


def _shuffle_pointers(rng: Rng, values: np.ndarray) -> np.ndarray:
    if values.dtype.kind != "i":
        return _special(rng, values)
    out = np.array(values)
    how = rng.integers(4)
    if how == 0:
        rng.shuffle(out)
    elif how == 1:
        out[rng.integers(len(out)):] += rng.integers(-3, 4)
    elif how == 2:
        out[:] = out[rng.integers(len(out))]
    else:
        out[rng.integers(len(out))] += int(rng.choice([-(1 << 40), 1 << 40, 1 << 62, -1, 1]))
    return out


HDF5: dict[str, Callable[[Rng, h5py.File], None]] = {
    "another type": _replace(_other), "another shape": _replace(_reshape), "extreme values": _replace(_special),
    "wrong whole numbers": _replace(_shuffle_pointers), "a hostile claim": _claim, "a link": _link,
    "arrays exchanged": _exchange_arrays, "attributes": _attributes,
    "an array missing": lambda rng, file: file.__delitem__(_arrays(file)[rng.integers(len(_arrays(file)))]),
    "a bad weight": lambda rng, file: file.__setitem__("weight", [-1.0, np.nan])}


def _damage_hdf5(how: str) -> Callable[[Rng, Path], None]:
    def damage(rng: Rng, data: Path) -> None:
        shards = [path for path in sorted(data.glob("*.h5")) if path.name != "statistics.h5"]
        # What HDF5 itself cannot store, or not twice, is left out.
        with h5py.File(shards[rng.integers(len(shards))], "r+") as file, \
                contextlib.suppress(TypeError, ValueError, OSError, KeyError, RuntimeError, OverflowError):
            HDF5[how](rng, file)
        _forge(data)
    return damage


# Damage to the manifest.

VALUES: list[Any] = [None, True, False, -1, 0, 1, 2, 10**15, 2**53, 2**63, 10**400, 0.5, -0.0, 1e308, float("nan"),
                     float("inf"), "", "x", "dense", "csr", "ratings", "float64", "gzip", "part-00000.h5",
                     "../part-00000.h5",
                     "/dev/zero", "\ud800", "a\nb", "\0", [], [0], [[]], {}, {"a": 1}, [None] * 6, [{}]]


def _places(table: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    for key in table if isinstance(table, dict) else range(min(len(table), 3)) if isinstance(table, list) else ():
        yield (*path, key)
        yield from _places(table[key], (*path, key))


def _change_json(rng: Rng, data: Path) -> None:
    table = json.loads((data / FILE).read_text())
    places = list(_places(table))
    for _ in range(rng.integers(1, 3)):
        path = places[rng.integers(len(places))]
        with contextlib.suppress(KeyError, IndexError, TypeError):
            inside = table
            for key in path[:-1]:
                inside = inside[key]
            how = rng.random()
            if how < 0.7:
                inside[path[-1]] = VALUES[rng.integers(len(VALUES))]
            elif how < 0.85:
                del inside[path[-1]]
            else:
                inside[path[-1]] = [inside[path[-1]]]
    if rng.random() < 0.1:
        table["surplus"] = 1
    (data / FILE).write_text(json.dumps(table))


def _change_text(rng: Rng, data: Path) -> None:
    text = (data / FILE).read_bytes()
    forms = [b"", b"[]", b"null", b"{}", b"[" * 100_000, b'{"format":' * 100_000, b"9" * 5000, b"\xff\xfe" + text,
             text.decode().encode("utf-16"), b"\xef\xbb\xbf" + text, b"\0" * 100, b'"\\ud800"',
             text[:rng.integers(len(text))], bytes(_flip(rng, bytearray(text), len(text)))]
    (data / FILE).write_bytes(forms[rng.integers(len(forms))])


def _hostile_counts(rng: Rng, data: Path) -> None:
    """Let manifest and shards agree on numbers that nobody could hold."""
    table = json.loads((data / FILE).read_text())
    many = int(rng.choice([10**9, 10**12, 10**15]))
    how = rng.integers(4)
    if how == 0:
        table["shards"][0]["rows"] += many
        table["rows"] += many
    elif how == 1:
        table.update(features=many, feature_names=None, statistics=None, columns=[], hash_bits=None)
    elif how == 2:
        table["shards"][0]["nonzeros"] += many
        table["nonzeros"] += many
    else:
        table["shards"] *= int(rng.integers(2, 2000))
        for name in ("rows", "nonzeros"):
            table[name] = sum(shard[name] for shard in table["shards"])
    (data / FILE).write_text(json.dumps(table))


MANIFEST: dict[str, Callable[[Rng, Path], None]] = {
    "other JSON": _change_json, "other JSON, again": _change_json, "other text": _change_text,
    "hostile counts": _hostile_counts}


def _forged(damage: Callable[[Rng, Path], None]) -> Callable[[Rng, Path], None]:
    def forge(rng: Rng, data: Path) -> None:
        damage(rng, data)
        _forge(data)
    return forge


KINDS: dict[str, Callable[[Rng, Path], None]] = {
    **{f"bytes: {how}": _damage_bytes(how) for how in BYTES},
    **{f"files: {how}": damage for how, damage in FILES.items()},
    **{f"hdf5: {how}": _damage_hdf5(how) for how in HDF5},
    **{f"manifest: {how}": damage for how, damage in MANIFEST.items()}}
"""What can happen to any data set; "manifest" to those that have one."""
FORGED = {f"forged: {how}": _forged(_damage_bytes(how)) for how in BYTES}
"""Damaged bytes that the manifest confirms, which no accident makes: nothing stands between them and HDF5."""
