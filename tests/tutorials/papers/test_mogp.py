"""The page on networks with dependent weights: its parts, and in full its claims."""

import math

import pytest
import torch
from scipy import stats

pytest.importorskip("gpytorch")

PAGE = "mogp"
NAMED = (("horseshoe", 0.7), ("generalized BFRY", 0.6), ("equal", 0.1))
pytestmark = pytest.mark.slow


def test_generalized_bfry_variances_are_those_of_the_paper(names):
    """Mean one, an index of 5 at infinity, and the constant of the tail in closed form."""
    for discount in (0.2, 0.5, 0.8):
        variances = names["generalized_bfry"](discount)
        assert float(variances.mean) == pytest.approx(1.0, rel=1e-4)
        # Of G / B with gamma and Pareto parts, the scale is (tau - 1) / (tau - sigma).
        scale = 4.0 / (5.0 - discount)
        level = torch.tensor(200.0)
        constant = math.gamma(5.0 - discount) / math.gamma(1.0 - discount) * (5.0 - discount)
        expected = constant / 5.0 * (float(level) / scale) ** -5.0
        assert float(variances.tail(level)) == pytest.approx(expected, rel=1e-3)


def test_pruned_draws_lose_columns_of_both_layers(names):
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


def test_bound_of_distances_is_a_quantile_of_the_noise(names):
    """That of the largest of fifteen distances of samples of 10,000, at a hundredth."""
    beyond = stats.kstwobign.sf(names["NOISE"] / math.sqrt(2.0 / 10_000))
    assert 15 * beyond == pytest.approx(0.01, rel=1e-3)


def test_errors_of_pruning_are_those_of_the_sum(names, monkeypatch):
    """Of nodes of variance 1 and 0.05, the second is below the largest threshold alone."""
    lost = names["lost"]
    sizes = {"NUM_NETWORKS": 20_000, "NUM_NODES": 2}
    for name, value in sizes.items():
        monkeypatch.setitem(lost.__globals__, name, value)
    point = torch.distributions.Categorical(torch.ones(2))

    class Two:
        def distribution(self, num_nodes):
            return self

        def sample(self, size):
            return torch.tensor([1.0, 0.05])[point.sample(size)]

    # One of two nodes, on average, of variance 0.05, and half of the square of a normal.
    errors = lost(Two(), 0)
    assert errors[:3].tolist() == [0.0, 0.0, 0.0]
    assert float(errors[3]) == pytest.approx(0.05 / 2.0, rel=0.02)


def test_laws_with_jumps_are_compared_by_the_worse_of_them(names, monkeypatch):
    rows = {name: {s: [0.9, 0.8, level, 0.1, 0.1] for s in range(3)} for name, level in NAMED}
    monkeypatch.setitem(names["advantage"].__globals__, "curves", rows)
    assert names["advantage"]("equal") == {s: pytest.approx(0.5) for s in range(3)}
