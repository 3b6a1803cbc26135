"""What the redone papers compute beside the runs: searches, estimates, and the pages they write."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("matplotlib")
BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(autouse=True)
def benchmarks_importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))


@pytest.mark.parametrize("guess", [1, 7, 40, 1000])
@pytest.mark.parametrize("answer", [1, 2, 3, 9, 40, 333, 999, 1000, 1001])
def test_the_least_count_is_found_from_any_guess(answer: int, guess: int) -> None:
    from papers.sparknet import PRECISION, least

    calls = []

    def reaches(count: int) -> bool:
        assert 1 <= count <= 1000
        calls.append(count)
        return count >= answer

    found = least(reaches, guess, 1000)
    if answer > 1000:
        assert found is None
    else:
        assert found is not None and answer <= found <= max(answer, (1 + PRECISION) * answer + 1)
    assert len(calls) == len(set(calls)) <= 35


def test_bias_and_variance_of_averaged_models() -> None:
    from papers.zinkevich import bias_and_variance

    rng = np.random.default_rng(0)
    optimum, mean = np.zeros(20_000), np.full(20_000, 0.01)
    alone = mean + rng.standard_normal((6, 20_000))
    averaged = mean + rng.standard_normal((3, 10, 20_000)).mean(axis=1)
    for models, variance in ((alone, 20_000), (averaged, 2_000)):
        found = bias_and_variance(models, optimum)
        assert found[1] == pytest.approx(variance, rel=0.05)
        assert found[0] == pytest.approx(2.0, abs=6 * variance / len(models) * np.sqrt(2 / 20_000) + 2)


def test_texts_have_length_one_and_both_labels() -> None:
    from papers.zinkevich import FEATURES, Texts

    texts = Texts(100, 500, 20)
    X, y = texts.read(0, 500)
    lengths = np.add.reduceat(X.data.astype(np.float64) ** 2, X.indptr[:-1])
    assert np.allclose(lengths, 1, atol=1e-6)
    assert set(np.unique(y)) == {-1.0, 1.0}
    assert X.features == FEATURES
    part, labels = texts.read(200, 210)
    assert np.array_equal(labels, y[200:210])
    assert np.array_equal(part.data, X.data[X.indptr[200]:X.indptr[210]])


def _case(loss: str, l2: float, last: tuple[float, float, float]) -> dict:
    values = {count: [3.0, end + 0.05, end] for count, end in zip(("1", "10", "100"), last, strict=True)}
    return {"loss": loss, "l2": l2, "examples_a_machine": [256, 512, 1024], "values": values,
            "relative": {"objective": values, "rmse": values}}


def test_the_page_of_averaging_tells_agreement_from_the_numbers(tmp_path: Path) -> None:
    from papers.zinkevich_page import draw, page

    cases = [_case("huber", 1e-3, (1.0, 0.9, 0.89)), _case("huber", 1e-6, (1.0, 0.7, 0.67))]
    halves = [{"machines": k, "runs": 3, "bias": 2.0, "variance": 8.0 / k} for k in (1, 10, 100)]
    text = page(cases, halves, 1024, 30, 0.1)
    assert "does not agree" not in text
    assert "| huber" not in text and "| Huber | 1e-06 | 1.0000 | 0.7000 | 0.6700 |" in text
    halves[2]["variance"] = 8.0
    worse = page([_case("huber", 1e-3, (1.0, 0.9, 0.8)), cases[1]], halves, 1024, 30, 0.1)
    assert worse.count("does not agree") == 2
    draw(cases, tmp_path / "figure.svg")
    assert "machines" in (tmp_path / "figure.svg").read_text(encoding="utf-8")


def test_the_page_of_the_grid_tells_what_it_holds(tmp_path: Path) -> None:
    from papers.sparknet_page import draw, page

    case = {"workers": (1, 2, 3), "tau": (1, 10), "speedup": [[1.0, 1.0], [1.5, 1.4], [2.0, None]], "loss": 0.5,
            "serial_iterations": [100, 120], "batch_size": 8, "hidden": 16, "step_size": 0.1, "rows": 1000,
            "features": 4, "classes": 3}
    text = page(case)
    assert "| 3 | 2.00 | – |" in text
    assert "**does not hold here" in text and "K = 3 and τ = 1" in text
    draw(case, tmp_path / "figure.svg")
    assert "1.40" in (tmp_path / "figure.svg").read_text(encoding="utf-8")
