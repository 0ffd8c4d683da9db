"""The page on networks with dependent weights: its parts, and in full its claims."""

import math

import pytest
import torch

from tests.pages import check_short_report

pytest.importorskip("gpytorch")

PAGE = "mogp"
pytestmark = pytest.mark.slow


def test_short_run_saves_a_report_and_figures(short_run):
    _, folder = short_run
    figures = {"width-against-limit", "kernels", "pruning-error", "pruned-digits"}
    check_short_report(folder, PAGE, 9, figures)


def test_generalized_bfry_variances_are_those_of_the_paper(short_run):
    """Mean one, an index of 5 at infinity, and the constant of the tail in closed form."""
    names, _ = short_run
    for discount in (0.2, 0.5, 0.8):
        variances = names["generalized_bfry"](discount)
        assert float(variances.mean) == pytest.approx(1.0, rel=1e-4)
        # Of G / B with gamma and Pareto parts, the scale is (tau - 1) / (tau - sigma).
        scale = 4.0 / (5.0 - discount)
        level = torch.tensor(200.0)
        constant = math.gamma(5.0 - discount) / math.gamma(1.0 - discount) * (5.0 - discount)
        expected = constant / 5.0 * (float(level) / scale) ** -5.0
        assert float(variances.tail(level)) == pytest.approx(expected, rel=1e-3)


def test_pruned_draws_lose_columns_of_both_layers(short_run):
    names, _ = short_run
    draws = {
        "3.variances": torch.tensor([[1.0, 3.0, 2.0, 0.5]]),
        "4.weight": torch.ones(1, 4, 4),
        "6.variances": torch.tensor([[0.1, 0.3, 0.2, 0.5]]),
        "7.weight": torch.ones(1, 10, 4),
    }
    changed = names["pruned"](draws, 0.5)
    assert changed["4.weight"][0, 0].tolist() == [0.0, 1.0, 1.0, 0.0]
    assert changed["7.weight"][0, 9].tolist() == [0.0, 1.0, 0.0, 1.0]
    # Without variances it is the weights that leave a node which count.
    del draws["3.variances"]
    draws["4.weight"] = torch.tensor([[[1.0, 0.1, -3.0, 0.5], [0.0, 2.0, 0.0, 0.5]]])
    changed = names["pruned"](draws, 0.5)
    assert changed["4.weight"][0, :, [0, 3]].count_nonzero() == 0
    assert (changed["4.weight"][0, :, 1:3] == draws["4.weight"][0, :, 1:3]).all()
    unchanged = names["pruned"](draws, 0.0)
    assert (unchanged["4.weight"] == draws["4.weight"]).all()


def test_least_step_is_that_in_the_order_of_theory(short_run, monkeypatch):
    names, _ = short_run
    errors = {"0.2": {9: 1.0}, "0.5": {9: 4.0}, "0.8": {9: 6.0}, "equal": {9: 30.0}}
    monkeypatch.setitem(names["least_step"].__globals__, "by_share", errors)
    assert names["least_step"](9) == 1.5


@pytest.mark.page
@pytest.mark.statistical
def test_full_run_meets_its_claims(full_run):
    """Its draws are the same with each run, so it passes always or never.

    Distances to the limit are at most 0.022 of 0.035, with a spread of 0.004; the Cauchy law fails
    for 3 sets of three seeds in 100 by its bound. Errors of pruning have a standard error of about
    3% at the largest threshold, and a bound of 10%. The other claims are far from their bounds.
    """
    assert full_run.passed, full_run.verdict
