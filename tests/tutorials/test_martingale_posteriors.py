"""The page on martingale posteriors: its parts against exact answers."""

import math

import pytest
import torch

from tests.pages import check_short_report

PAGE = "martingale-posteriors"
pytestmark = pytest.mark.short_page


def test_short_run_saves_a_report_and_figures(short_run):
    check_short_report(short_run[1], PAGE, 5, {"bayesian-model", "functionals"})


def test_columns_are_those_of_the_source(parts):
    from sklearn.datasets import load_wine

    source = load_wine()
    position = source.feature_names.index("malic_acid")
    expected = torch.tensor(source.data[:, position])
    torch.testing.assert_close(parts["column"](parts["wine"], "malic_acid"), expected)


def test_exact_variances(parts):
    """At a horizon of one they follow from the distribution of one observation."""
    n, scale = parts["n"], parts["SCALE"]
    spread = float(parts["few"].var(correction=0))
    one = {"Polya urn": spread, "normal": scale**2 * (1 + 1 / n)}
    for name, variance in one.items():
        found = parts["exact_variance"](name, n + 1)
        assert found == pytest.approx(variance / (n + 1) ** 2)


def test_exact_posterior_under_the_model(parts):
    """By the joint normal distribution of the observations, those of the page and those to come."""
    few, scale, horizon = parts["few"], parts["SCALE"], parts["HORIZON"]
    n, total = len(few), len(few) + horizon
    joint = 0.5**2 * torch.ones(total, total) + scale**2 * torch.eye(total)
    gain = torch.linalg.solve(joint[:n, :n], joint[:n, n:]).T
    mean = 12.0 + gain @ (few - 12.0)
    covariance = joint[n:, n:] - gain @ joint[:n, n:]
    assert parts["exact_mean"] == pytest.approx(float(few.sum() + mean.sum()) / total)
    assert parts["exact_sd"] == pytest.approx(math.sqrt(float(covariance.sum())) / total)


def test_distance_of_a_median_from_its_law(parts):
    """Of three values the median is each with the probabilities 1/4, 1/2 and 1/4."""
    values = torch.tensor([5.0, 1.0, 2.0])
    draws = torch.tensor([1.0, 2.0, 2.0, 5.0])
    assert parts["distance_to_exact"](draws, values) == pytest.approx(0.0)
    assert parts["distance_to_exact"](torch.full((4,), 5.0), values) == pytest.approx(0.75)
    # A value that comes twice has the probabilities of both.
    twice = torch.tensor([1.0, 1.0, 2.0])
    assert parts["distance_to_exact"](torch.ones(4), twice) == pytest.approx(0.25)
