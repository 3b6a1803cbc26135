"""Is a data set what its manifest says? Every problem with its file and place; ranks share the files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from dml_hpc.console import Console, Progress
from dml_hpc.data.manifest import FILE, Manifest, ShardEntry, read_manifest
from dml_hpc.data.ratings.ids import FILE as IDS
from dml_hpc.data.shard import WEIGHT, Keys
from dml_hpc.data.statistics import Moments, Statistics
from dml_hpc.data.verification.examine import examine
from dml_hpc.data.verification.examine_ratings import blocks_of, examine_ids
from dml_hpc.data.verification.findings import Expected, Fault, Findings
from dml_hpc.data.verification.untrusted import examine_apart
from dml_hpc.errors import UserError
from dml_hpc.files import file_sha256, first_line
from dml_hpc.mpi import Alone, agreed, on_root

if TYPE_CHECKING:
    from mpi4py.MPI import Intracomm


class Problem(NamedTuple):
    """``where`` is "file", "size", "checksum", "statistics", an array's name, or the first bad place in it."""

    file: str
    where: str
    problem: str


class Verdict(NamedTuple):
    """How many ``files`` with how many ``rows`` were looked at, and what is wrong with them."""

    files: int
    rows: int
    problems: list[Problem]


@dataclass
class _Part:
    """A data set folder, or some files: what each should hold. ``manifest`` None: nobody knows but the files."""

    files: list[tuple[Path, Expected, ShardEntry | None]]
    manifest: Manifest | None = None
    folder: Path | None = None
    """Where all of the data set lies; None: only some of its shards are looked at."""
    problems: list[Problem] = field(default_factory=list)


class _Looked(NamedTuple):
    """What a rank found: findings by the number of the part and of the file, and each part's moments on this rank."""

    findings: dict[tuple[int, int], Findings]
    moments: dict[int, Moments]


def verify(comm: Intracomm | Alone, paths: Sequence[Path], keys: Keys | None = None,
           console: Console | None = None) -> Verdict:
    """Collective: look at all of the data set folders and HDF5 files ``paths``; every rank returns the same.

    ``keys`` name the arrays of files without a manifest. Files whose checksum nobody knows, or is not what it should
    be, are read by a process of their own. Raises `AgreedError` for what is no data set at all.
    """
    parts: list[_Part] = on_root(comm, lambda: _plan(paths, keys))
    work = [(number, place) for number, part in enumerate(parts) for place in range(len(part.files))]
    mine = work[comm.rank::comm.size]
    # The bar counts the files of rank 0.
    bar = (console or Console(progress=False)).bar(len(mine), "checking files")
    with agreed(comm):
        looked = _look(parts, mine, bar)
    bar.close()
    gathered = comm.gather(looked)
    return on_root(comm, lambda: _verdict(parts, gathered or []))


def _plan(paths: Sequence[Path], keys: Keys | None) -> list[_Part]:
    parts = [_folder(path, keys) for path in paths if path.is_dir() or not path.exists()]
    files = [path for path in paths if not path.is_dir() and path.exists()]
    if files and keys is None and len({path.parent for path in files}) == 1 and (files[0].parent / FILE).is_file():
        some = _shards(files[0].parent, files)
        if some is not None:
            return [*parts, some]
    keys = keys or Keys()
    wanted = Expected(x_key=keys.x, y_key=keys.y or "y", weight_key=keys.weight)
    return [*parts, _Part([(path, wanted, None) for path in files])] if files else parts


def _folder(folder: Path, keys: Keys | None) -> _Part:
    try:
        manifest = read_manifest(folder)
    except UserError as error:
        if not (folder / FILE).is_file():
            raise
        # What stands in its files can be looked at all the same.
        problem = Problem(str(folder / FILE), "file", str(error).removeprefix(str(folder / FILE)).lstrip(": "))
        return _Part([(path, Expected(), None) for path in sorted(folder.glob("part-*.h5"))], problems=[problem])
    if keys is not None:
        raise UserError(f"{folder} is a data set with a manifest; --x-key, --y-key and --weight-key are for "
                            "files without one")
    listed = {entry.file for entry in manifest.shards}
    extra = [Problem(str(path), "file", "is not in the manifest")
             for path in sorted(folder.glob("part-*.h5")) if path.name not in listed]
    part = _Part([], manifest, folder, extra)
    part.files += [(folder / entry.file, _expected(manifest, entry), entry) for entry in manifest.shards]
    if manifest.kind == "ratings":
        part.problems += [Problem(str(folder / IDS), *fault) for fault in examine_ids(folder, manifest)]
    return part


def _shards(folder: Path, files: Sequence[Path]) -> _Part | None:
    manifest = read_manifest(folder)
    entries = {entry.file: entry for entry in manifest.shards}
    if any(path.name not in entries for path in files):
        return None
    chosen = [entries[path.name] for path in files]
    part = _Part([], manifest)
    part.files += [(path, _expected(manifest, entry), entry) for path, entry in zip(files, chosen, strict=True)]
    return part


def _expected(manifest: Manifest, entry: ShardEntry) -> Expected:
    return Expected(manifest.kind, entry.rows, manifest.features, entry.nonzeros, manifest.dtype,
                    manifest.label.values, manifest.statistics is not None,
                    compressed=manifest.compression is not None, weight_key=WEIGHT if manifest.weighted else None,
                    blocks=None if manifest.grid is None else blocks_of(manifest, manifest.shards.index(entry)),
                    timed=manifest.grid is not None and manifest.grid["timed"])


def _look(parts: list[_Part], work: list[tuple[int, int]], bar: Progress) -> _Looked:
    looked = _Looked({}, {})
    apart = []
    for number, place in work:
        path, expected, entry = parts[number].files[place]
        changed = None if entry is None else _changed(path, entry)
        if entry is None or changed is not None:
            apart.append((number, place, changed))
            continue
        found = looked.findings[number, place] = examine(path, expected)
        if found.moments is not None:
            whole = looked.moments.setdefault(number, Moments(len(found.moments.mean)))
            whole.merge(found.moments)
            found.moments = Moments(0)  # present, and counted in
        bar.advance(1)
    wanted = [parts[number].files[place][:2] for number, place, _ in apart]
    for (number, place, changed), found in zip(apart, examine_apart(wanted), strict=True):
        if changed is not None and changed not in found.faults:
            found.faults.insert(0, changed)
        looked.findings[number, place] = found
        bar.advance(1)
    return looked


def _changed(path: Path, entry: ShardEntry) -> Fault | None:
    """Return how a file is not, byte by byte, the one that was written; None when it is."""
    try:
        if not path.is_file():
            return Fault("file", "is missing, or no file")
        size = path.stat().st_size
        if size != entry.bytes:
            return Fault("size", f"has {size:,} bytes, the manifest says {entry.bytes:,}")
        if file_sha256(path) != entry.sha256:
            return Fault("checksum", "has changed since it was written; copy it anew or import the data again")
        if file_sha256(path, entry.head_bytes) != entry.head_sha256:
            return Fault("checksum", "has not the head_sha256 that the manifest says; import the data again")
    except OSError as error:
        return Fault("file", f"cannot be read: {first_line(error)}")
    return None


def _verdict(parts: list[_Part], gathered: list[_Looked]) -> Verdict:
    findings: dict[tuple[int, int], Findings] = {}
    for looked in gathered:
        findings.update(looked.findings)
    problems, files, rows = [], 0, 0
    for number, part in enumerate(parts):
        problems += part.problems
        mine = [findings[number, place] for place in range(len(part.files))]
        for (path, _, _), found in zip(part.files, mine, strict=True):
            problems += [Problem(str(path), *fault) for fault in found.faults]
        files, rows = files + len(mine), rows + sum(found.rows or 0 for found in mine)
        if part.manifest is None:
            problems += _together(part, mine)
        elif part.folder is not None and part.manifest.statistics is not None and \
                all(found.moments is not None for found in mine):
            whole = Moments(part.manifest.features)
            for looked in gathered:
                if number in looked.moments:
                    whole.merge(looked.moments[number])
            problems += _compare(part.folder, part.manifest, whole)
    return Verdict(files, rows, problems)


def _together(part: _Part, found: list[Findings]) -> list[Problem]:
    """Return why files without a manifest make no data set: they differ in kind or width from the first."""
    problems = []
    for what in ("kind", "features"):
        known = [(path, getattr(one, what)) for (path, _, _), one in zip(part.files, found, strict=True)
                 if getattr(one, what) is not None]
        problems += [Problem(str(path), "file", f"has {what} {here}, {known[0][0]} has {known[0][1]}")
                     for path, here in known if here != known[0][1]]
    return problems


def _compare(folder: Path, manifest: Manifest, moments: Moments) -> list[Problem]:
    """Return which of the manifest's figures are not those of the rows; sums in another order differ by a little."""
    said = manifest.statistics
    assert said is not None
    here: Statistics = moments.statistics(manifest.rows, None, None)
    scale = np.maximum(np.abs(here.minimum), np.abs(here.maximum))
    problems = []
    for name, tolerance in (("mean", 1e-9), ("deviation", 1e-7), ("minimum", 0), ("maximum", 0)):
        found, promised = getattr(here, name), getattr(said, name)
        wrong = np.flatnonzero(~(np.abs(found - promised) <= tolerance * scale))
        if len(wrong):
            first = int(wrong[0])
            which = f"'{manifest.feature_names[first]}'" if manifest.feature_names else f"{first}"
            problems.append(Problem(str(folder / FILE), "statistics", f"the {name} of feature {which} is "
                                    f"{found[first]:.9g}, the manifest says {promised[first]:.9g}; {len(wrong):,} "
                                    "features differ"))
    return problems
