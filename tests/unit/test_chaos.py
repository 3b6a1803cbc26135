"""Jobs that are struck at random are not lost: a sample of what scripts/chaos.py does, and that it would notice."""

from __future__ import annotations

import functools
import importlib
import shutil
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))

import chaos
from chaos_runs import faults, strikes
from chaos_runs.jobs import ALGORITHMS, folder_for_runs, launchers, marked, run
from chaos_runs.shop import Case, Shop

SEED = 1


@pytest.fixture(scope="module")
def shop() -> Iterator[Shop]:
    if shutil.which("mpirun") is None and not Path(sys.executable).with_name("mpirun").exists():
        pytest.skip("there is no mpirun")
    with folder_for_runs() as folder:
        yield Shop(launchers([]), folder)


@pytest.mark.job
@pytest.mark.parametrize(("kind", "number"), [
    ("kills", 2), ("elastic", 1), pytest.param("files", 1, marks=pytest.mark.maths)])
def test_a_struck_run_is_not_lost(shop: Shop, kind: str, number: int) -> None:
    if kind == "elastic" and shop.launchers[0].name != "openmpi":
        pytest.skip("other libraries' ranks do not survive one another")
    case = chaos.run_case(shop, SEED, kind, number)
    assert not case.hung
    assert not case.wrong_model
    # How long a recovery takes on a machine busy with other tests says nothing.
    assert not [fault for fault in case.faults if "to the next step" not in fault], case.said
    assert case.struck > 0
    assert case.same_digest > 0


@pytest.mark.maths
@pytest.mark.job
def test_a_hang_is_noticed_and_ended(shop: Shop) -> None:
    case = Case("kills", 0)
    with shop.job(Random(0), algorithm="sync", ranks=2) as job:
        ended = run(replace(job, steps=10**8), limit_s=3)
        shop.check_death(case, job, ended)
        assert case.hung
        assert "most recent call first" in ended.err, "it does not say where"
        assert marked(str(job.folder)) == []


@pytest.mark.maths
@pytest.mark.job
def test_another_model_and_a_death_in_silence_are_noticed(shop: Shop) -> None:
    with shop.job(Random(0), algorithm="sync", ranks=1) as job:
        ended = run(job)
        case = Case("kills", 0)
        assert shop.check_result(case, job, ended)
        job.model.write_bytes(job.model.read_bytes()[:-100])
        assert not shop.check_result(case, job, ended)
        assert case.wrong_model
        silent = Case("kills", 1)
        ended.code, ended.strikes, ended.err = 1, [ended.began], ""
        shop.check_death(silent, job, ended)
        assert silent.wrong_model
        assert "nothing says why it ended" in silent.faults


@pytest.mark.parametrize("place", sorted({place for moment in strikes.MOMENTS.values() for places in moment.values()
                                          for place in places} - {"clock"} | {faults._BEGIN, faults._STREAMED}))
def test_every_place_that_is_struck_exists(place: str) -> None:
    module, path = place.split(":")
    assert callable(functools.reduce(getattr, path.split("."), importlib.import_module(module)))


def test_a_case_depends_on_the_seed_alone() -> None:
    def draw() -> list[strikes.Strike]:
        rng = Random("5 kills 7")
        return [strikes.drawn(rng, "0", moment, algorithm, how, 4, 1000) for algorithm in ALGORITHMS
                for moment in strikes.MOMENTS for how in strikes.HOWS if moment != "any" or how in ("kill", "stop")]

    drawn = draw()
    assert drawn == draw()
    assert len({(strike.place, strike.rank, strike.call) for strike in drawn}) > len(drawn) // 2


def test_the_table_and_the_results_tell_what_was_bad(tmp_path: Path) -> None:
    good = Case("kills", 0, {"how": "kill", "moment": "training"}, struck=1, resumed=1, same_digest=1, ended_s=0.5)
    bad = Case("kills", 1, {"how": "kill", "moment": "training"}, ["it hung"], struck=1, hung=True)
    summary = chaos.summarised([good, bad])
    assert summary["kills, all"] == {"cases": 2, "skipped": 0, "struck": 2, "hangs": 1, "wrong_models": 0, "resumed": 1,
                                     "same_digest": 1, "bad": 1, "ended_s": {"median": 0.5, "max": 0.5},
                                     "recovery_s": None}
    assert any("kill in training" in line for line in chaos.table(summary))
    chaos.write_results(tmp_path / "chaos.json", 0, [good, bad], summary)
    assert "it hung" in (tmp_path / "chaos.json").read_text()
