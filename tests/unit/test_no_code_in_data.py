"""Nothing that is loaded can run code: no pickle, no YAML, no eval, whoever wrote the file."""

from __future__ import annotations

import ast
from pathlib import Path

import numpy as np
import pytest

from dml_hpc.data.sources.array_files import open_array, open_npz
from dml_hpc.errors import UserError

ROOT = Path(__file__).parents[2]
FILES = sorted([*(ROOT / "dml_hpc").rglob("*.py"), *(ROOT / "kernels").rglob("*.py")])
LOADERS = {"pickle", "_pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve", "yaml", "runpy"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_loader_that_runs_code_is_used(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            assert not {alias.name.split(".")[0] for alias in node.names} & LOADERS
        elif isinstance(node, ast.ImportFrom):
            assert (node.module or "").split(".")[0] not in LOADERS
        elif isinstance(node, ast.Call):
            assert not (isinstance(node.func, ast.Name) and node.func.id in ("eval", "exec", "compile", "__import__"))
            for word in node.keywords:
                assert word.arg != "allow_pickle" or (isinstance(word.value, ast.Constant) and not word.value.value)


class Trap:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> tuple:
        return open, (str(self.path), "w")


def test_arrays_of_python_objects_are_refused_and_not_unpickled(tmp_path: Path) -> None:
    array = np.array([[Trap(tmp_path / "sprung")]], object)
    np.save(tmp_path / "a.npy", array)
    np.savez(tmp_path / "a.npz", X=array)
    np.savez(tmp_path / "csr.npz", data=np.ones(1), indices=np.zeros(1, int), indptr=np.arange(2), shape=(1, 1),
             format=array)
    with pytest.raises(UserError, match="Python objects"):
        open_array(tmp_path / "a.npy")
    for name in ("a.npz", "csr.npz"):
        with pytest.raises(UserError):
            open_npz(tmp_path / name, tmp_path / "unpacked", None, None)
    assert not (tmp_path / "sprung").exists()
