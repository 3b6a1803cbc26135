"""What leads out of the data's folder is refused before anything there is opened; what stays inside is read."""

from __future__ import annotations

import ctypes
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np
import pytest
from data_support import write_dataset

from dml_hpc.data.dataset import open_dataset
from dml_hpc.data.importing import MatrixKeys, import_data
from dml_hpc.data.links import find, open_file, own
from dml_hpc.data.shard import Keys
from dml_hpc.data.verification.examine import examine
from dml_hpc.data.verification.findings import Expected
from dml_hpc.errors import AgreedError, UserError
from dml_hpc.mpi import Alone
from dml_hpc.store.factors import Factors, read_factors, write_factors
from dml_hpc.store.model import Model, read_model, write_model

X = np.arange(24.0).reshape(8, 3)
Y = np.arange(8.0) % 2


class Watched:
    """Counts how often a file is opened, by anybody."""

    def __init__(self, path: Path):
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._handle = self._libc.inotify_init1(os.O_NONBLOCK)
        assert self._libc.inotify_add_watch(self._handle, str(path).encode(), 0x20) > 0  # IN_OPEN

    def opened(self) -> bool:
        try:
            return bool(os.read(self._handle, 1 << 12))
        except BlockingIOError:
            return False


@pytest.fixture
def secret(tmp_path: Path) -> Iterator[Path]:
    """A file outside the data's folder that nobody may open in the test."""
    (tmp_path / "outside").mkdir()
    path = tmp_path / "outside" / "secret.h5"
    with h5py.File(path, "w") as file:
        file["X"], file["y"] = X, Y
        group = file.create_group("rows")
        group["X"] = X
    (tmp_path / "outside" / "raw").write_bytes(X.tobytes())
    watched = [Watched(path), Watched(path.with_name("raw"))]
    yield path
    assert not any(one.opened() for one in watched)


def virtual(source: str, name: str = "X", shape: tuple[int, ...] = (8, 3)) -> h5py.VirtualLayout:
    layout = h5py.VirtualLayout(shape, "f8")
    layout[...] = h5py.VirtualSource(source, name, shape=shape)
    return layout


def endless(source: str) -> h5py.VirtualLayout:
    layout = h5py.VirtualLayout((8, 3), "f8", maxshape=(None, 3))
    end = h5py.h5s.UNLIMITED
    rows = h5py.VirtualSource(source, "X", shape=(1, 3) if "%" in source else (8, 3), maxshape=(None, 3))
    layout[:end] = rows if "%" in source else rows[:end]
    return layout


def attacked(folder: Path, how: str, secret: Path) -> tuple[Path, str]:
    """Write a file that leads to ``secret`` and return it with the key of its X."""
    folder.mkdir(exist_ok=True)
    path, key = folder / "data.h5", "X"
    with h5py.File(path, "w") as file:
        file["y"] = Y
        if how == "an external link":
            file["X"] = h5py.ExternalLink(str(secret), "/X")
        elif how == "a relative external link":
            file["X"] = h5py.ExternalLink(f"../{secret.parent.name}/{secret.name}", "/X")
        elif how == "a group on the way":
            file["a"] = h5py.ExternalLink(str(secret), "/rows")
            key = "a/X"
        elif how == "a soft link to an external link":
            file["there"] = h5py.ExternalLink(str(secret), "/")
            file["X"] = h5py.SoftLink("/there/X")
        elif how == "a link on the file system":
            os.symlink(secret, folder / "inside.h5")
            file["X"] = h5py.ExternalLink("inside.h5", "/X")
        elif how == "an external link in the other file":
            with h5py.File(folder / "other.h5", "w") as other:
                other["X"] = h5py.ExternalLink(str(secret), "/X")
            file["X"] = h5py.ExternalLink("other.h5", "/X")
        elif how == "external storage":
            file.create_dataset("X", X.shape, "f8", external=[(str(secret.with_name("raw")), 0, X.nbytes)])
        elif how == "a virtual dataset":
            file.create_virtual_dataset("X", virtual(str(secret)))
        elif how == "a virtual dataset without end":
            file.create_virtual_dataset("X", endless(str(secret)))
        elif how == "a virtual dataset of a virtual one":
            with h5py.File(folder / "other.h5", "w") as other:
                other.create_virtual_dataset("X", virtual(str(secret)))
            file.create_virtual_dataset("X", virtual("other.h5"))
        elif how == "a virtual dataset of a link":
            with h5py.File(folder / "other.h5", "w") as other:
                other["X"] = h5py.ExternalLink(str(secret), "/X")
            file.create_virtual_dataset("X", virtual("other.h5"))
        else:
            group = file.create_group("X")
            group.attrs["shape"] = (8, 3)
            group["indptr"], group["indices"] = np.arange(9), np.zeros(8, int)
            group["data"] = h5py.ExternalLink(str(secret), "/y")
    return path, key


ATTACKS = ["an external link", "a relative external link", "a group on the way", "a soft link to an external link",
           "a link on the file system", "an external link in the other file", "external storage", "a virtual dataset",
           "a virtual dataset without end",
           "a virtual dataset of a virtual one", "a virtual dataset of a link", "a part of sparse rows"]


@pytest.mark.parametrize("how", ATTACKS)
def test_what_leads_out_of_the_folder_is_refused_unopened(tmp_path: Path, secret: Path, how: str) -> None:
    path, key = attacked(tmp_path / "data", how, secret)
    words = "outside the folder" if "virtual one" not in how and "of a link" not in how else "other.h5"
    with pytest.raises(UserError, match=rf"data/(data|other)\.h5: .*{words}") as raised:
        open_dataset([path], Keys(key))
    assert "\n" not in str(raised.value)
    with pytest.raises(AgreedError, match=words):
        import_data(Alone(), [path], tmp_path / "imported", keys=MatrixKeys(key, "y"))
    faults = examine(path, Expected(x_key=key)).faults
    assert faults and any(words in fault.problem for fault in faults)
    faults = examine(path, Expected("csr", x_key=key)).faults
    assert faults


def test_a_shard_that_leads_out_is_refused_whatever_its_manifest_says(tmp_path: Path, secret: Path) -> None:
    folder = write_dataset(tmp_path / "data", X, Y, [8], "float64")
    (folder / "part-00000.h5").unlink()
    attacked(folder, "an external link", secret)
    (folder / "data.h5").rename(folder / "part-00000.h5")
    dataset = open_dataset(folder)
    dataset.manifest.shards[0].head_bytes = 0  # as a manifest would have it that was written for this shard
    with pytest.raises(UserError, match=r"part-00000\.h5: X is a link to /X of .*secret\.h5, outside the folder"):
        dataset.shard(0)


def test_links_in_circles_end(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["X"] = h5py.SoftLink("/X")
        file["b"] = h5py.ExternalLink("a.h5", "/b")
        file.create_virtual_dataset("v", virtual(".", "v"))
    with open_file(tmp_path / "a.h5") as file:
        for name in ("X", "b"):
            with pytest.raises(UserError, match="in a circle"):
                find(tmp_path / "a.h5", file, name)
        with pytest.raises(UserError, match="does not hold them itself"):
            find(tmp_path / "a.h5", file, "v")


def write_inside(folder: Path) -> Path:
    """Write a file whose arrays are reached by links, or lie in other files, all of them in ``folder``."""
    (folder / "parts").mkdir()
    for number, rows in enumerate((slice(0, 3), slice(3, 8))):
        with h5py.File(folder / "parts" / f"{number}.h5", "w") as file:
            file.create_dataset("X", data=X[rows], chunks=True, compression="gzip")
            file["linked"] = h5py.SoftLink("X")
    (folder / "raw").write_bytes(b"head" + X.tobytes())
    layout = h5py.VirtualLayout(X.shape, "f8")
    layout[:3] = h5py.VirtualSource("parts/0.h5", "X", shape=(3, 3))
    layout[3:] = h5py.VirtualSource("parts/1.h5", "linked", shape=(5, 3))
    with h5py.File(folder / "whole.h5", "w") as file:
        file.create_virtual_dataset("virtual", layout)
        file.create_dataset("external", X.shape, "f8", external=[("raw", 4, 3 * 24), ("raw", 76, h5py.h5s.UNLIMITED)])
        file["plain"] = X
        file["soft"] = h5py.SoftLink("/plain")
        file.create_group("group")["up"] = h5py.SoftLink("/soft")
        file["y"] = Y
    with h5py.File(folder / "data.h5", "w") as file:
        file["away"] = h5py.ExternalLink("whole.h5", "/")
        file["y"] = h5py.ExternalLink("whole.h5", "y")
    return folder / "data.h5"


@pytest.mark.parametrize("key", ["virtual", "external", "plain", "soft", "group/up"])
def test_what_stays_in_the_folder_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    path = write_inside(tmp_path)
    monkeypatch.chdir(tmp_path if key == "external" else "/")
    for name, file in ((f"away/{key}", path), (key, tmp_path / "whole.h5")):
        dataset = open_dataset([file], Keys(name))
        found = [(np.array(piece.X), piece.y) for piece in dataset.pieces(0, 8)]
        np.testing.assert_array_equal(np.concatenate([rows for rows, _ in found]), X)
        np.testing.assert_array_equal(np.concatenate([y for _, y in found]), Y)
        np.testing.assert_array_equal(dataset.row(5).X, X[5])
        assert not examine(file, Expected(x_key=name)).faults
    import_data(Alone(), [path], tmp_path / "imported", keys=MatrixKeys(f"away/{key}", "y"))
    np.testing.assert_array_equal(open_dataset(tmp_path / "imported").shard(0).whole(), X)


@pytest.mark.parametrize(("damage", "words"), [
    (lambda folder: (folder / "parts" / "1.h5").unlink(), "is missing"),
    (lambda folder: h5py.File(folder / "parts" / "1.h5", "w").close(), "not at all"),
    (lambda folder: h5py.File(folder / "parts" / "1.h5", "w").create_dataset("linked", data=X[:4]).file.close(),
     "holds fewer"),
])
def test_a_virtual_dataset_lacks_nothing_that_would_be_read_as_zeros(tmp_path: Path, damage, words: str) -> None:
    write_inside(tmp_path)
    damage(tmp_path)
    with pytest.raises(UserError, match=words):
        open_dataset([tmp_path / "whole.h5"], Keys("virtual"))


@pytest.mark.parametrize("source", ["0.h5", "%b.h5"])
def test_a_virtual_dataset_without_end_is_refused(tmp_path: Path, source: str) -> None:
    with h5py.File(tmp_path / "0.h5", "w") as file:
        file.create_dataset("X", data=X, maxshape=(None, 3), chunks=True)
    with h5py.File(tmp_path / "whole.h5", "w") as file:
        file.create_virtual_dataset("X", endless(source))
        file["y"] = Y
    with pytest.raises(UserError, match=r"has no end|a pattern of names"):
        open_dataset([tmp_path / "whole.h5"], Keys())


def test_a_source_that_goes_while_it_is_read_is_no_row_of_zeros(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("dml_hpc.data.retrying.PAUSES_S", (0.01,))
    write_inside(tmp_path)
    dataset = open_dataset([tmp_path / "whole.h5"], Keys("virtual"))
    shard = dataset.shard(0)
    (tmp_path / "parts" / "1.h5").unlink()
    with pytest.raises(UserError, match=r"1\.h5 is missing"):
        shard.stored.read(0, 8)


def test_external_storage_that_is_cut_short_is_no_row_of_zeros(tmp_path: Path, monkeypatch) -> None:
    write_inside(tmp_path)
    (tmp_path / "raw").write_bytes(bytes(100))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="raw is cut short"):
        open_dataset([tmp_path / "whole.h5"], Keys("external"))


@pytest.mark.parametrize(("variable", "key"), [("HDF5_VDS_PREFIX", "virtual"), ("HDF5_EXTFILE_PREFIX", "external")])
def test_no_variable_leads_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str, key: str) -> None:
    write_inside(tmp_path)
    monkeypatch.setenv(variable, "/elsewhere")
    with pytest.raises(UserError, match=f"unset {variable}"):
        open_dataset([tmp_path / "whole.h5"], Keys(key))


def test_a_pipe_is_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.h5")  # who opens it waits for ever
    assert stat.S_ISFIFO((tmp_path / "pipe.h5").stat().st_mode)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["X"] = h5py.ExternalLink("pipe.h5", "/X")
        file["y"] = Y
    with pytest.raises(UserError, match=r"pipe\.h5 is missing, or no file"):
        open_dataset([tmp_path / "a.h5"])
    with pytest.raises(UserError, match=r"pipe\.h5 is missing, or no file"):
        open_dataset([tmp_path / "pipe.h5", tmp_path / "a.h5"])


def relinked(path: Path, name: str, secret: Path, how: str) -> None:
    with h5py.File(path, "r+") as file:
        shape, dtype = file[name].shape, file[name].dtype
        del file[name]
        if how == "an external link":
            file[name] = h5py.ExternalLink(str(secret), "/X")
        elif how == "a soft link":
            file[name] = h5py.SoftLink("/there/X")
            file["there"] = h5py.ExternalLink(str(secret), "/")
        elif how == "external storage":
            file.create_dataset(name, shape, dtype, external=[(str(secret.with_name("raw")), 0, 1 << 20)])
        else:
            layout = h5py.VirtualLayout(shape, dtype)
            layout[...] = h5py.VirtualSource(str(secret), "X", shape=shape)
            file.create_virtual_dataset(name, layout)


@pytest.mark.parametrize("how", ["an external link", "a soft link", "external storage", "a virtual dataset"])
def test_models_and_factors_have_no_links(tmp_path: Path, secret: Path, how: str) -> None:
    write_model(tmp_path / "m.h5", Model("linear", {}, (3, 1), np.ones(4), None, "y", None, None, {}))
    write_factors(tmp_path / "f.h5", Factors(np.ones(1), np.ones((3, 1)), np.zeros(1), None, "gram", 5))
    for path, name, read in ((tmp_path / "m.h5", "weights", read_model), (tmp_path / "f.h5", "V", read_factors)):
        relinked(path, name, secret, how)
        with pytest.raises(UserError, match=rf"{path.name}: {name} .*do not trust it"):
            read(path)


def test_own_finds_what_is_in_the_file(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["X"] = X
        file.create_group("g")["X"] = X
        file["h"] = h5py.ExternalLink("b.h5", "/")
        np.testing.assert_array_equal(own(tmp_path / "a.h5", file, "X")[()], X)
        np.testing.assert_array_equal(own(tmp_path / "a.h5", file, "g/X")[()], X)
        for name in ("z", "g/z", "X/z"):
            with pytest.raises(KeyError):
                own(tmp_path / "a.h5", file, name)
        with pytest.raises(UserError, match=r"a link to / of b\.h5"):
            own(tmp_path / "a.h5", file, "h/X")
        with pytest.raises(ValueError, match="no dataset"):
            own(tmp_path / "a.h5", file, "g")
