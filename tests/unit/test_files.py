"""Outputs: refused before any work where they cannot be, whole or not at all where they can."""

from __future__ import annotations

import os
import shutil
import socket
from pathlib import Path
from types import SimpleNamespace

import h5py
import numpy as np
import pytest
from data_support import ArraySource

from dml_hpc.data.build import build
from dml_hpc.errors import AgreedError, UserError
from dml_hpc.files import check_output, first_line, replaced_file, replaced_folder
from dml_hpc.mpi import Alone, shared_folder


def refused(path: Path, message: str, *, folder: bool = False) -> None:
    with pytest.raises(UserError, match=message) as raised:
        check_output(path, True, folder)
    assert "\n" not in str(raised.value)


def test_what_hdf5_says_of_a_failed_read_is_one_whole_line(tmp_path: Path) -> None:
    with pytest.raises(OSError) as error:
        h5py.File(tmp_path, "r")
    assert "\n" in str(error.value)  # and a few hundred characters of addresses and counts
    line = first_line(error.value)
    assert line.endswith("(file read failed: Is a directory)") and "Unable to" in line
    assert first_line(ValueError("a (b (c\n d))")).count("(") == 2
    assert first_line(ValueError("one (1)\ntwo")) == "one (1)" and first_line(KeyError()) == "KeyError"


def test_what_is_neither_file_nor_folder_is_never_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with socket.socket(socket.AF_UNIX) as server:
        here = os.open(tmp_path, os.O_PATH)
        server.bind(f"/proc/self/fd/{here}/socket")
        os.close(here)
        for path in (Path("/dev/null"), tmp_path / "pipe", tmp_path / "socket"):
            for folder in (False, True):
                refused(path, "is a device, pipe or socket", folder=folder)


def test_a_link_counts_as_what_it_leads_to(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("")
    (tmp_path / "to_folder").symlink_to(tmp_path / "folder")
    (tmp_path / "to_file").symlink_to(tmp_path / "file")
    (tmp_path / "to_itself").symlink_to(tmp_path / "to_itself")
    refused(tmp_path / "to_folder", "is a folder, a file is to be")
    refused(tmp_path / "to_file", "is a file, a folder is to be", folder=True)
    refused(tmp_path / "to_itself", "cannot write .*symbolic links")
    check_output(tmp_path / "to_file", True)
    check_output(tmp_path / "to_folder", True, folder=True)


@pytest.mark.parametrize("name", [".", "..", "../work", "sub/..", "/", "/proc"])
def test_a_folder_that_cannot_be_replaced_is_refused_before_any_work(name: str, tmp_path: Path,
                                                                     monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "work" / "sub").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "work")
    refused(Path(name), "cannot be replaced", folder=True)
    assert os.listdir() == ["sub"] and os.listdir("..") == ["work"]


def test_names_may_be_as_long_as_the_file_system_takes(tmp_path: Path) -> None:
    name = "n" * 255
    check_output(tmp_path / name, False)
    with replaced_file(tmp_path / name) as partial:
        partial.write_text("new")
    assert (tmp_path / name).read_text() == "new"
    (tmp_path / name).unlink()
    for word in ("first", "second"):
        with replaced_folder(tmp_path / name) as partial:
            (partial / word).write_text("")
    assert os.listdir(tmp_path) == [name] and os.listdir(tmp_path / name) == ["second"]
    refused(tmp_path / (name + "n"), "cannot write .*name too long")


FULL = {
    "plain": OSError(28, "No space left on device"),
    "told by HDF5": OSError(28, "Can't write data (file write failed: time = 1\n, errno = 28, error message = 'No')"),
    "told in words": OSError("Can't write data (file write failed: time = 1\n, errno = 28, error message = 'No')"),
    "on closing": RuntimeError("Can't decrement id ref count (file write failed\n, errno = 28, buf = 0x1)"),
}


@pytest.mark.parametrize("how", FULL)
@pytest.mark.parametrize("replaced", [replaced_file, replaced_folder])
def test_a_full_disk_is_one_line_and_leaves_what_was_there(how: str, replaced, tmp_path: Path) -> None:
    target = tmp_path / "out"
    with replaced(target) as partial:
        (partial / "old" if partial.is_dir() else partial).write_text("old")
    with pytest.raises(UserError) as raised, replaced(target) as partial:
        (partial / "new" if partial.is_dir() else partial).write_text("half")
        raise FULL[how]
    assert str(raised.value) == f"cannot write {target}: No space left on device"
    assert os.listdir(tmp_path) == ["out"]
    assert (target / "old" if target.is_dir() else target).read_text() == "old"


@pytest.mark.parametrize("error", [RuntimeError("a bug"), UserError("a mistake"), KeyboardInterrupt()])
def test_other_failures_stay_what_they_are(error: BaseException, tmp_path: Path) -> None:
    for replaced in (replaced_file, replaced_folder):
        with pytest.raises(type(error)) as raised, replaced(tmp_path / "out"):
            raise error
        assert raised.value is error and os.listdir(tmp_path) == []


def test_shards_that_do_not_fit_on_the_disk_are_not_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(total=10**9, free=10**6))
    with pytest.raises(AgreedError, match=r"cannot write the shards: No space left on device$"), \
            shared_folder(Alone(), tmp_path / "out") as folder:
        build(Alone(), folder, {"": ArraySource(np.ones((1000, 1000)), np.ones(1000))}, shards=1, dtype="float32")
    assert os.listdir(tmp_path) == []


def test_a_shard_that_cannot_be_written_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object) -> None:
        raise OSError("Can't synchronously write data (errno = 28, error message = 'No space left on device')")

    monkeypatch.setattr(h5py.Dataset, "__setitem__", full)
    with pytest.raises(AgreedError, match=r"cannot write the shards: No space left on device$"), \
            shared_folder(Alone(), tmp_path / "out") as folder:
        build(Alone(), folder, {"": ArraySource(np.ones((2, 2)), np.ones(2))}, shards=1, dtype="float32")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("failing", [1, 2])
def test_a_folder_that_cannot_be_renamed_stays_where_it_is(failing: int, tmp_path: Path,
                                                           monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old").write_text("old")
    replace, calls = os.replace, []

    def busy(source: Path, target: Path) -> None:
        calls.append(source)
        if len(calls) == failing:
            raise OSError(16, "Device or resource busy")
        replace(source, target)

    monkeypatch.setattr(os, "replace", busy)
    with pytest.raises(UserError, match=r"cannot write .*out: Device or resource busy"), \
            replaced_folder(tmp_path / "out") as partial:
        (partial / "new").write_text("new")
    assert os.listdir(tmp_path) == ["out"] and os.listdir(tmp_path / "out") == ["old"]
