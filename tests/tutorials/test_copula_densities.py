"""The page on copula densities: its parts against exact answers."""

import math

import pytest
import torch

from tests.pages import check_short_report

PAGE = "copula-densities"
pytestmark = pytest.mark.slow


def test_short_run_saves_a_report_and_figures(short_run):
    check_short_report(short_run[1], PAGE, 6, {"density", "regression-and-classification"})


def test_share_outside_a_band(parts):
    draws = torch.linspace(0, 1, 101)[:, None].expand(-1, 4)
    density = torch.tensor([0.5, 0.01, 0.99, 0.03])
    assert parts["share_outside"](draws, density) == 0.5


def test_usual_width(parts):
    """Of a copula of bandwidth one half, whose steps are about twice as large as of a mean."""
    values, run = parts["x"], parts["run"]
    distribution = parts["CopulaDensity"](0.5).fit(values)
    width, normal = parts["widths"](distribution, values, 60, 0)
    n = len(values)
    assert normal == pytest.approx(math.sqrt(n * (1 / n - 1 / (n + 60))), rel=0.02)
    draws = run(distribution, parts["Mean"](), values, horizon=60, seed=0).get_samples()["theta"]
    usual = float(distribution.variance.sqrt()) / math.sqrt(n)
    assert width == pytest.approx(float(draws.std()) / usual)
