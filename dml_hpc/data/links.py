"""Where a name in an HDF5 file leads: links are followed here, not by HDF5, and none leads out of the data's folder.

A file from elsewhere can name any other file by an external link, by external storage or as the source of a virtual
dataset, and HDF5 would open it. Here a name is looked at before HDF5 may follow it, so that nothing outside is opened.
"""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import NamedTuple

import h5py

from dml_hpc.data.retrying import MissingError, unreadable
from dml_hpc.errors import UserError
from dml_hpc.files import HDF5_ERRORS, first_line

CACHE_BYTES = 1 << 20
"""Of decoded chunks, for each dataset that is open; blocks are read by whole chunks, so little is gained by more."""
MOST_LINKS = 16
"""How many links are followed one after the other, as many as HDF5 does: a circle ends there."""


class Found(NamedTuple):
    """A dataset or group and the file ``path`` that it lies in.

    Of a dataset, ``stored_bytes`` is how much of it is stored, wherever that is, and ``sources`` are other files that
    its numbers lie in.
    """

    path: Path
    node: h5py.Dataset | h5py.Group
    stored_bytes: int = 0
    sources: tuple[Path, ...] = ()


def open_file(path: Path) -> h5py.File:
    """Open an HDF5 file for reading, without locks: shards on network file systems that refuse them stay readable.

    Raises `UserError` when it is missing, or none; see `dml_hpc.data.retrying.UnreadableError`.
    """
    try:
        if not path.is_file():
            raise MissingError(f"{path} is missing, or no file")
        return h5py.File(path, "r", locking=False, rdcc_nbytes=CACHE_BYTES)
    except HDF5_ERRORS as error:
        raise unreadable(error, f"{path} cannot be read as HDF5: {first_line(error)}") from None


def find(path: Path, file: h5py.File, name: str) -> Found | None:
    """Return what ``name`` is in the open file ``path``, None when there is nothing of that name.

    Links within the file are followed, and what leads to files in the folder of ``path`` or below it. Raises
    `UserError`, before any other file is opened, for what leads out of that folder, and for a virtual dataset some of
    whose numbers are missing: HDF5 would take them for zeros.
    """
    try:
        return _find(path, file, name, path.parent.resolve())
    except HDF5_ERRORS as error:
        raise unreadable(error, f"{path}: {name} cannot be read: {first_line(error)}") from None


def own(path: Path, file: h5py.File, name: str) -> h5py.Dataset:
    """Return a dataset of a file that this program writes itself: no link leads to it, and no file but this holds it.

    Raises `KeyError` when there is nothing of that name, `ValueError` for a group, `UserError` for what lies elsewhere.
    """
    dataset: h5py.Group | h5py.Dataset = file
    for part in _parts(name):
        link = dataset.get(part, getlink=True) if isinstance(dataset, h5py.Group) else None
        if link is None:
            raise KeyError(f"{name} is missing")
        if not isinstance(link, h5py.HardLink):
            raise UserError(f"{path}: {name} is a link to {_target(link)}, which dml-hpc never writes; do not trust it")
        dataset = dataset[part]
    if not isinstance(dataset, h5py.Dataset):
        raise ValueError(f"{name} is no dataset")
    if dataset.is_virtual or dataset.external:
        there = dataset.external[0][0] if dataset.external else dataset.virtual_sources()[0].file_name
        raise UserError(f"{path}: {name} lies in {there}, which dml-hpc never writes; do not trust it")
    return dataset


def _find(path: Path, file: h5py.File, name: str, folder: Path) -> Found | None:
    found = _followed(path, file, name, folder, MOST_LINKS)
    if found is None or isinstance(found.node, h5py.Group):
        return found
    path, node, *_ = found
    if node.is_virtual:
        return _virtual(path, node, name, folder)
    if node.external:
        return _external(path, node, name, folder)
    return Found(path, node, node.id.get_storage_size())


def _followed(path: Path, file: h5py.File, name: str, folder: Path, links: int, abroad: bool = True) -> Found | None:
    """Follow at most ``links`` links; without ``abroad`` what other files hold is as if it were not there."""
    node: h5py.Group | h5py.Dataset = file
    parts = _parts(name)
    while parts:
        part = parts.pop(0)
        link = node.get(part, getlink=True) if isinstance(node, h5py.Group) else None
        if isinstance(link, h5py.HardLink):
            node = node[part]
            continue
        if link is None or (isinstance(link, h5py.ExternalLink) and not abroad):
            return None
        if not links:
            raise UserError(f"{path}: {name} is a link to a link, and so on in a circle")
        links -= 1
        if isinstance(link, h5py.SoftLink):
            node = file if link.path.startswith("/") else node
            parts = _parts(link.path) + parts
        else:
            there = _inside(path, folder, f"{name} is a link to {_target(link)}", path.parent / link.filename)
            return _followed(there, open_file(there), "/".join([link.path, *parts]), folder, links)
    return Found(path, node)


def _parts(name: str) -> list[str]:
    return [part for part in name.split("/") if part not in ("", ".")]


def _target(link: h5py.SoftLink | h5py.ExternalLink) -> str:
    return f"{link.path} of {link.filename}" if isinstance(link, h5py.ExternalLink) else link.path


def _inside(path: Path, folder: Path, what: str, there: Path) -> Path:
    """Return ``there``, which the file ``path`` names; raises `UserError` unless it is a file in ``folder``."""
    if not there.resolve().is_relative_to(folder):
        raise UserError(f"{path}: {what}, outside the folder of the data, {folder}; copy it into one file (h5repack) "
                        "if you trust it")
    if not there.is_file():
        raise UserError(f"{path}: {what}, and {there} is missing, or no file")
    return there


def _no_prefix(path: Path, variable: str) -> None:
    if os.environ.get(variable):
        raise UserError(f"{path} has numbers in other files, and {variable} would have HDF5 look for them elsewhere: "
                        f"unset {variable}")


def _external(path: Path, dataset: h5py.Dataset, name: str, folder: Path) -> Found:
    _no_prefix(path, "HDF5_EXTFILE_PREFIX")  # without it HDF5 looks in the current folder
    sources, left = [], dataset.nbytes
    for file_name, offset, most in dataset.external:
        there = _inside(path, folder, f"{name} lies in {file_name}", Path(file_name))
        sources.append(there)
        needed = min(left, most)
        if there.stat().st_size < offset + needed:
            raise UserError(f"{there} is cut short: it does not hold all that {name} of {path} claims")
        left -= needed
    if left:
        raise UserError(f"{path}: the files that {name} lies in do not hold all of it")
    return Found(path, dataset, dataset.nbytes, tuple(sources))


def _virtual(path: Path, dataset: h5py.Dataset, name: str, folder: Path) -> Found:
    """Check every source of a virtual dataset: HDF5 takes for zeros what it does not find there."""
    _no_prefix(path, "HDF5_VDS_PREFIX")
    shapes: dict[tuple[str, str], tuple[int, ...]] = {}
    stored, sources = 0, []
    for source in dataset.virtual_sources():
        key = source.file_name, source.dset_name
        what = f"{name} takes numbers from {source.dset_name} of {source.file_name}"
        if "%" in source.file_name + source.dset_name:
            raise UserError(f"{path}: {what}, a pattern of names; copy it into one file (h5repack)")
        if key not in shapes:
            there = path if source.file_name == "." else _inside(path, folder, what, path.parent / source.file_name)
            sources.append(there)
            with open_file(there) as other:
                shape, size = _plain(there, other, source.dset_name, folder)
            if shape is None:
                raise UserError(f"{path}: {what}, which does not hold them itself, or not at all; copy them into one "
                                "file (h5repack)")
            shapes[key], stored = shape, stored + size
        if not _covers(shapes[key], source):
            raise UserError(f"{path}: {what}, which holds fewer than that, or has no end; write it anew")
    return Found(path, dataset, stored, tuple(dict.fromkeys(sources)))


def _plain(path: Path, file: h5py.File, name: str, folder: Path) -> tuple[tuple[int, ...] | None, int]:
    """Return a dataset's shape and its bytes in the file; None when there is none, or its numbers lie elsewhere."""
    found = _followed(path, file, name, folder, MOST_LINKS, abroad=False)
    if found is None or not isinstance(found.node, h5py.Dataset) or found.node.is_virtual or found.node.external:
        return None, 0
    return found.node.shape, found.node.id.get_storage_size()


def _covers(shape: tuple[int, ...], source: h5py.VDSmap) -> bool:
    """Say whether a dataset of ``shape`` has all the numbers that a virtual one takes from it."""
    chosen = source.src_space
    if chosen.get_select_type() == h5py.h5s.SEL_ALL:
        return math.prod(shape) == source.vspace.get_select_npoints()
    try:
        _, last = chosen.get_select_bounds()
    except (ValueError, RuntimeError):  # it has no end
        return False
    return len(last) == len(shape) and all(place < size for place, size in zip(last, shape, strict=True))
