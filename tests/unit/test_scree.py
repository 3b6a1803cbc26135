"""The figure of singular values."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from dml_hpc.reports.plots import as_svg, save_png, scree_figure

pytestmark = pytest.mark.filterwarnings("error")
SIGMA = np.array([8.0, 4, 2, 1e-15, 0])
ENERGY = np.cumsum(SIGMA**2) / 100
RESIDUALS = np.array([1e-9, 1e-3, 0.5, np.nan, np.nan])


def test_values_are_drawn_on_a_logarithmic_axis_and_energy_beside_them():
    left, right = scree_figure(SIGMA, ENERGY, RESIDUALS).axes
    curve, *_ = left.get_lines()
    assert left.get_yscale() == "log"
    np.testing.assert_array_equal(curve.get_xydata(), [[1, 8], [2, 4], [3, 2]])  # what is zero to rounding is left out
    np.testing.assert_array_equal(right.get_lines()[0].get_xydata(), np.stack([np.arange(1, 6), ENERGY], axis=1))
    assert "84.00%" in [text.get_text() for text in right.texts]
    assert "the largest residual is 0.5 of the largest σ" in left.texts[0].get_text()


def test_bars_reach_as_far_as_a_value_may_be_off_but_not_to_zero():
    left, _ = scree_figure(SIGMA, ENERGY, RESIDUALS).axes
    (bars,) = left.collections
    lengths = [(segment[0][1], segment[1][1]) for segment in bars.get_segments()]
    np.testing.assert_allclose(lengths, [(8 - 8e-9, 8 + 8e-9), (3.992, 4.008), (0.2, 6)])


@pytest.mark.parametrize("sigma", [np.array([3.0]), np.zeros(2), np.full(200, 7.0), np.geomspace(1, 1e-12, 80)])
def test_any_spectrum_can_be_drawn(sigma, tmp_path):
    residuals = np.where(sigma > 0, 1e-15, np.nan)
    figure = scree_figure(sigma, np.linspace(0.1, 1, len(sigma)), residuals)
    save_png(figure, tmp_path / "scree.png")
    assert (tmp_path / "scree.png").read_bytes().startswith(b"\x89PNG")
    assert ElementTree.fromstring(as_svg(figure, "singular values")).get("aria-label") == "singular values"
