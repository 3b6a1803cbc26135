"""`auto` takes the fastest reducer, says why, and keeps what it found in a tuning file."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from dml_hpc.comm import auto, open_reducer
from dml_hpc.errors import AgreedError
from dml_hpc.mpi import on_root

pytestmark = pytest.mark.mpi


@pytest.fixture
def tuning(comm, tmp_path_factory):
    """The path of a file that does not exist, the same on all ranks."""
    return Path(on_root(comm, lambda: str(tmp_path_factory.mktemp("shared") / "tuning.json")))


def test_the_choice_works_and_names_every_candidate(comms):
    for size in (0, 1, 70_001):
        with open_reducer("auto", comms, size) as reducer:
            reducer.buffer[:] = comms.rank
            reducer.allreduce()
            np.testing.assert_array_equal(reducer.total, sum(range(comms.size)))
            assert reducer.choice.startswith(reducer.name)
            if comms.size > 1:
                assert all(f"{name} " in reducer.choice for name in auto.CANDIDATES)


def test_the_fastest_is_taken_on_all_ranks(comm, monkeypatch):
    if comm.size == 1:
        pytest.skip("one rank has nothing to choose")
    for winner in auto.CANDIDATES:
        def measure(comm, reducer, fused, to_beat, winner=winner):
            return 1e-6 if reducer.name == winner else 2e-6

        monkeypatch.setattr(auto, "_measure", measure)
        with open_reducer("auto", comm, 100, weights="float32") as reducer:
            assert reducer.name == winner
            assert f"{winner} 1.0 µs" in reducer.choice
            reducer.buffer[:] = 1
            reducer.reduce_update(lambda summed, start, stop: None)


def test_a_choice_is_kept_and_taken_from_the_file(comm, tuning, monkeypatch):
    if comm.size == 1:
        pytest.skip("one rank has nothing to choose")
    with open_reducer("auto", comm, 1000, tuning=tuning) as reducer:
        first = reducer.name
    entry, = json.loads(tuning.read_text())["entries"]
    assert (entry["allreduce"], entry["ranks"], entry["elements_up_to"]) == (first, comm.size, 1024)
    comm.Barrier()
    other = next(name for name in auto.CANDIDATES if name != first)

    def edit():
        tuning.write_text(tuning.read_text().replace(f'"allreduce": "{first}"', f'"allreduce": "{other}"'))

    on_root(comm, edit)
    monkeypatch.setattr(auto, "_measure", None)  # nothing is measured again
    with open_reducer("auto", comm, 700, tuning=tuning) as reducer:
        assert reducer.name == other
        assert f"as {tuning} says" in reducer.choice


@pytest.mark.parametrize(("content", "message"), [
    ("no json", "is no tuning file"), ("{}", "no tuning file of this version"),
    ("[]", "no tuning file of this version"),
    ('{"format": "dml-hpc tuning 1", "entries": [{"allreduce": "rumour"}]}', "an entry without an allreduce"),
])
def test_a_file_that_is_something_else_is_refused_and_left_alone(comm, tuning, content, message):
    if comm.size == 1:
        pytest.skip("one rank has nothing to choose")
    on_root(comm, lambda: tuning.write_text(content) and None)
    with pytest.raises(AgreedError, match=message) as refusal:
        open_reducer("auto", comm, 10, tuning=tuning)
    assert refusal.value.exit_code == 2
    assert tuning.read_text() == content


def test_a_reducer_that_cannot_run_here_is_left_out_with_its_reason(comm, monkeypatch):
    if comm.size == 1:
        pytest.skip("one rank has nothing to choose")
    monkeypatch.delattr("os.memfd_create")
    with open_reducer("auto", comm, 10) as reducer:
        assert reducer.name != "hierarchical"
        assert "hierarchical not here (memory that ranks share needs Linux" in reducer.choice
