"""Greedy and learned soups on losses whose best averages are known."""

import pytest
import torch

from pyro_ext.inference.averaging import greedy_soup, learned_soup


def distance(target):
    return lambda weights: sum((v - target).square().sum() for v in weights.values())


def test_a_greedy_soup_is_no_worse_than_its_best_member():
    candidates = {"a": torch.randn(6, 3), "b": torch.randn(6)}
    loss = distance(0.1)
    alone = [float(loss({n: v[k] for n, v in candidates.items()})) for k in range(6)]
    soup = greedy_soup(candidates, loss)
    assert soup.members[0] == min(range(6), key=alone.__getitem__)
    assert soup.loss <= min(alone)
    for name, value in soup.weights.items():
        torch.testing.assert_close(value, candidates[name][soup.members].mean(0))
    assert soup.loss == pytest.approx(float(loss(soup.weights)))


def test_a_greedy_soup_tries_members_in_the_order_of_their_losses():
    """1 and -0.5 are nearest to 0 in turn; their mean .25 is better, with 9 it is worse."""
    seen = []

    def loss(weights):
        seen.append(float(weights["w"]))
        return float(weights["w"]) ** 2

    soup = greedy_soup({"w": torch.tensor([1.0, 9.0, -0.5])}, loss)
    assert seen == [1.0, 9.0, -0.5, -0.5, 0.25, pytest.approx(9.5 / 3)]
    assert soup.members == [2, 0] and soup.loss == 0.0625
    single = greedy_soup({"w": torch.tensor([7.0])}, loss)
    assert single.members == [0] and single.weights["w"].item() == 7.0


def test_a_candidate_with_a_bad_loss_stays_out():
    def loss(weights):
        return torch.nan if float(weights["w"]) > 5 else float(weights["w"])

    assert greedy_soup({"w": torch.tensor([9.0, 1.0, 3.0])}, loss).members == [1]


def test_coefficients_are_learned(float64):
    """The point of a triangle's plane: barycentric coordinates (.5, .3, .2)."""
    corners = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    soup = learned_soup(
        {"x": corners}, lambda w: (w["x"] - torch.tensor([0.3, 0.2])).square().sum(), 500
    )
    torch.testing.assert_close(soup.coefficients, torch.tensor([0.5, 0.3, 0.2]), atol=2e-3, rtol=0)
    torch.testing.assert_close(soup.weights["x"], soup.coefficients @ corners)
    start = learned_soup({"x": corners}, distance(0.0), 0)
    torch.testing.assert_close(start.weights["x"], corners.mean(0))


def test_what_is_refused(subtests):
    one = {"w": torch.ones(2)}
    for call, error, message in [
        (lambda: greedy_soup({"a": torch.ones(2), "b": torch.ones(3)}, len), ValueError, "equally"),
        (lambda: greedy_soup(one, lambda w: torch.nan), ValueError, "got NaN for each"),
        (
            lambda: greedy_soup(one, lambda w: torch.ones(2)),
            ValueError,
            "loss must return a number",
        ),
        (lambda: learned_soup({"w": torch.ones(2).long()}, len), TypeError, "floating-point"),
    ]:
        with subtests.test(message), pytest.raises(error, match=message):
            call()
