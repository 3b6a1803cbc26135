"""``dml-hpc data merge``: several data sets become one, or one gets other shards."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dml_hpc.commands.rewriting import check, chosen, rewrite
from dml_hpc.console import Console
from dml_hpc.errors import UserError
from dml_hpc.mpi import Alone, agreed

if TYPE_CHECKING:
    from mpi4py.MPI import Intracomm

    from dml_hpc.data.sources.source import RowSource


def run(comm: Intracomm | Alone, console: Console, data: Sequence[Path], output: Path, shards: int | None,
        dtype: str | None, compression: str | None, shuffle: bool, seed: int, overwrite: bool,
        x_key: str | None = None, y_key: str | None = None, weight_key: str | None = None) -> dict[str, Any]:
    """Write the rows of ``data`` one after the other; by default as many shards as they have, of their widest type.

    Returns what `rewrite` does, without ``parts``.
    """
    import numpy as np

    from dml_hpc.data.dataset import open_dataset
    from dml_hpc.data.shard import keys_of
    from dml_hpc.data.sources.rearrange import DatasetRows, merged

    check(comm, output, overwrite, data)
    # Folders are data sets, each by itself; files are one together.
    files = [path for path in data if path.is_file()]
    wanted = [[path] for path in data if path not in files] + ([files] if files else [])
    datasets = [open_dataset(paths, keys_of(x_key, y_key, weight_key), comm, ratings=True) for paths in wanted]
    parts: dict[str, RowSource] = {}
    with agreed(comm):
        for dataset in datasets:
            if dataset.kind == "ratings":
                raise UserError(f"{dataset.path} holds ratings, which are not merged; import their files together, or "
                                "again with another --grid")
        parts[""] = merged([DatasetRows(dataset) for dataset in datasets])
    manifests = [dataset.manifest for dataset in datasets]
    result = rewrite(
        comm, console, output, parts, shards=shards or sum(len(manifest.shards) for manifest in manifests),
        dtype=dtype or str(np.result_type(*(manifest.dtype for manifest in manifests))),
        compression=chosen(compression, manifests[0].compression), shuffle=shuffle, seed=seed)
    result.pop("parts")
    return result
