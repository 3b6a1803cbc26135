"""A run that is resumed goes on to the limits it is given, and where it is past them, or at its end, says so."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
from data_support import write_dataset

from dml_hpc.commands import svd, train
from dml_hpc.console import Console
from dml_hpc.errors import AgreedError
from dml_hpc.mpi import Alone, on_root
from dml_hpc.store import checkpoint
from dml_hpc.store.every import Every
from dml_hpc.trainers.lbfgs import Lbfgs

pytestmark = [pytest.mark.mpi, pytest.mark.maths]

ROWS = 300
OPTIONS = {
    "sync": {"batch_size": 30, "epochs": 4, "schedule": "constant"},
    "lbfgs": {"epochs": 4, "tolerance": 0.0},
    "local": {"batch_size": 10, "tau": 5, "steps": 40, "schedule": "constant"},
    "average": {"epochs": 4, "rounds": 4, "step_size": 0.01},
}
STEPS = {"sync": 40, "lbfgs": 4, "local": 8, "average": 4}
SHORTER = {"sync": {"epochs": 2}, "lbfgs": {"epochs": 2}, "local": {"steps": 20}, "average": {"epochs": 2, "rounds": 2}}
LONGER = {"sync": {"epochs": 6}, "lbfgs": {"epochs": 6}, "local": {"steps": 60}, "average": {"epochs": 6, "rounds": 6}}
PAST = {"sync": "has taken 40 steps, and --epochs asks for 2 (20 steps)",
        "lbfgs": "has taken 4 iterations, and --epochs asks for 2",
        "local": "has taken 8 rounds, and --steps asks for 20 (4 rounds)",
        "average": "has taken 4 rounds, and --rounds asks for 2"}


class Said(Console):
    """Keeps what is said."""

    def __init__(self, rank):
        super().__init__(rank)
        self.lines = []

    def say(self, line=""):
        self.lines.append(line)


@pytest.fixture
def fit(comm, folder):
    """Return ``fit(**options)``, which trains and returns the result and what was said."""
    def make():
        rng = np.random.default_rng(3)
        X = rng.standard_normal((ROWS, 6))
        write_dataset(folder / "data", X, (X[:, 0] + rng.standard_normal(ROWS) > 0).astype(float), [100, 200])

    on_root(comm, make)

    def run(**options):
        said = Said(comm.rank)
        if options.setdefault("checkpoint", folder / "kept") is None:
            del options["checkpoint"]
        else:
            options.setdefault("checkpoint_every", Every(steps=1000))
        found = train.run(comm, said, [folder / "data"], folder / "m.h5", True, objective="logistic",
                          allreduce="mpi", **options)
        return found, said.lines

    return run


def kept(comm, folder):
    return on_root(comm, lambda: [path.name for path in checkpoint.found(folder / "kept")])


@pytest.mark.parametrize("algorithm", OPTIONS)
def test_limits(comm, folder, fit, algorithm):
    begin = partial(fit, algorithm=algorithm, **OPTIONS[algorithm])
    first, _ = begin()
    there = kept(comm, folder)
    for _ in range(2):
        again, said = begin(resume=True)
        assert again["weights_digest"] == first["weights_digest"] and again["losses"] == first["losses"]
        assert again["steps"] == first["steps"] and again["resumed_from"] == STEPS[algorithm]
        assert again["examples_per_s"] is None and again["checkpoints"] == 0
        assert sum("nothing is left to do" in line for line in said) == 1
        assert any("(– examples/s)" in line for line in said)
        assert kept(comm, folder) == there
    past = {**OPTIONS[algorithm], **SHORTER[algorithm]}
    with pytest.raises(AgreedError) as error:
        fit(algorithm=algorithm, resume=True, **past)
    assert PAST[algorithm] in str(error.value) and error.value.exit_code == 2 and "\n" not in str(error.value)
    assert kept(comm, folder) == there
    options = {**OPTIONS[algorithm], **LONGER[algorithm]}
    longer, said = fit(algorithm=algorithm, resume=True, **options)
    straight, _ = fit(algorithm=algorithm, checkpoint=None, **options)
    assert longer["weights_digest"] == straight["weights_digest"] and longer["steps"] == straight["steps"]
    assert longer["examples_per_s"] > 0 and not any("nothing is left" in line for line in said)
    assert len(kept(comm, folder)) == len(there) + 1


def test_a_limit_where_the_run_stands_in_mid_epoch_ends_it_as_if_it_had_been_that(comm, folder, fit):
    options = {"algorithm": "sync", "batch_size": 30, "schedule": "constant", "validation": folder / "data"}
    straight, _ = fit(checkpoint=None, steps=25, **options)

    def stop(path):
        for other in checkpoint.found(path)[:-1]:  # the run ended after its checkpoint at step 25
            other.rename(path / f"removed-{other.name}")

    fit(steps=40, checkpoint_every=Every(steps=25), **options)
    on_root(comm, lambda: stop(folder / "kept"))
    resumed, said = fit(steps=25, resume=True, **options)
    assert sum("nothing is left to do" in line for line in said) == 1
    for name in ("weights_digest", "losses", "validation_losses", "steps"):
        assert resumed[name] == straight[name]


def test_the_time_is_a_limit(comm, folder, fit):
    options = {"algorithm": "sync", "batch_size": 30, "schedule": "constant"}
    first, _ = fit(epochs=3, time_budget=0.2, **options)
    seconds = on_root(comm, lambda: checkpoint.newest(Alone(), folder / "kept", None).part("loop").values["seconds"])
    with pytest.raises(AgreedError, match=r"has taken [\d.]+ s, and --time-budget asks for 1e-06") as error:
        fit(epochs=3, time_budget=1e-6, resume=True, **options)
    assert error.value.exit_code == 2 and seconds > 1e-6
    again, said = fit(epochs=3, time_budget=0.2, resume=True, **options)
    if first["stopped"] != "the time is over" or seconds < 0.2:
        assert again["weights_digest"] == first["weights_digest"]
    assert sum("nothing is left to do" in line for line in said) == 1


AVERAGE = {"algorithm": "average", "step_size": 0.01}


def test_rounds_of_an_average_stay_as_long_as_they_were(comm, folder, fit):
    """One round is the whole of a run that names none: it is made longer by another of its length."""
    fit(epochs=2, **AVERAGE)
    for changed, told in (({"epochs": 3}, "--epochs 3 --rounds 1"), ({"epochs": 2, "rounds": 2}, "--epochs 2 --rounds"),
                          ({"steps": 50}, "--steps 50 --rounds 1"), ({"epochs": 1}, "--epochs 1 --rounds 1"),
                          ({"time_budget": 9.0}, "--time-budget 9")):
        with pytest.raises(AgreedError) as error:
            fit(resume=True, **changed, **AVERAGE)
        line = str(error.value)
        assert "was written with --epochs 2 --rounds 1" in line and f"this run has {told}" in line, line
        assert "give --epochs 4 --rounds 2, say" in line and error.value.exit_code == 2
    longer, _ = fit(epochs=4, rounds=2, resume=True, **AVERAGE)
    straight, _ = fit(epochs=4, rounds=2, checkpoint=None, **AVERAGE)
    assert longer["weights_digest"] == straight["weights_digest"] and longer["examples"] == straight["examples"]


def test_an_average_whose_time_was_over_is_its_last(comm, folder, fit, monkeypatch):
    fit(time_budget=1e-6, **AVERAGE)
    again, said = fit(time_budget=1e-6, resume=True, **AVERAGE)
    assert sum("nothing is left to do" in line for line in said) == 1 and again["checkpoints"] == 0
    with pytest.raises(AgreedError, match="has made its last average, as the time was over") as error:
        fit(time_budget=5.0, resume=True, **AVERAGE)
    assert error.value.exit_code == 2


def test_a_minimum_stays_one_whatever_the_limits(comm, folder, fit, monkeypatch):
    """Where L-BFGS finds nothing better, more iterations change nothing, and are not counted."""
    honest = Lbfgs.advance

    def ended(self, step):
        met = honest(self, step)
        if step == 2:
            self._done = "the gradient is zero"
        return met._replace(done=self._done)

    monkeypatch.setattr(Lbfgs, "advance", ended)
    first, _ = fit(algorithm="lbfgs", epochs=5, tolerance=0.0)
    there = kept(comm, folder)
    again, said = fit(algorithm="lbfgs", epochs=9, tolerance=0.0, resume=True)
    assert again["weights_digest"] == first["weights_digest"] and again["losses"] == first["losses"]
    assert again["steps"] == first["steps"] == 3 and again["stopped"] == "the gradient is zero"
    assert sum("nothing is left to do" in line for line in said) == 1 and kept(comm, folder) == there


def test_svd(comm, folder, fit):
    fit(algorithm="sync", epochs=1, checkpoint=None)  # for the data

    def factors(resume):
        said = Said(comm.rank)
        found = svd.run(comm, said, [folder / "data"], None, folder / "s.h5", 3, None, 1e-4, "randomized", None, False,
                        False, None, None, None, False, 0, None, None, True, checkpoint=folder / "kept",
                        checkpoint_every=Every(steps=1000), resume=resume)
        return found, said.lines

    first, _ = factors(False)
    there = kept(comm, folder)
    again, said = factors(True)
    assert again["digest"] == first["digest"] and kept(comm, folder) == there and again["checkpoints"] == 0
    assert sum("nothing is left to do" in line for line in said) == 1


@pytest.mark.parametrize("algorithm", ["sync", "average"])
def test_the_progress_bar_begins_where_the_run_goes_on(comm, fit, monkeypatch, algorithm):
    begun = []
    honest = Console.bar
    monkeypatch.setattr(Console, "bar", lambda self, total, label, done=0: begun.append((total, done)) or honest(
        self, total, label, done))
    fit(algorithm=algorithm, **OPTIONS[algorithm])
    fit(algorithm=algorithm, resume=True, **{**OPTIONS[algorithm], **LONGER[algorithm]})
    (total, nothing), (longer, done) = begun[0], begun[-1]
    assert nothing == 0 and 0 < done == total < longer
