"""The ball against its definition: sorted distances, and bounds by hand."""

import math

import numpy as np
import pytest
import torch

from pyro_ext.diagnostics.partitions import (
    canonical_labels,
    credible_ball,
    point_estimate,
    variation_of_information,
)
from tests.diagnostics.partitions.test_point_estimate import random_draws


@pytest.mark.parametrize("level", [0.07, 0.5, 0.95, 1.0])
def test_smallest_ball_that_holds_the_level(level: float):
    for seed in range(10):
        draws = random_draws(seed, 100, 7, 4)
        center = point_estimate(draws, seed=0).labels
        ball = credible_ball(draws.reshape(4, 25, 7), center, level)
        distances = variation_of_information(draws, center)
        inside = distances <= ball.radius + 1e-9
        assert ball.probability == float(inside.double().mean()) >= level
        assert float((distances < ball.radius - 1e-9).double().mean()) < level
        assert ball.radius == float(distances.sort().values[math.ceil(round(100 * level, 6)) - 1])
        numbers = canonical_labels(draws).amax(-1)
        for bound, chosen in (
            (ball.vertical_upper, inside & (numbers == numbers[inside].min())),
            (ball.vertical_lower, inside & (numbers == numbers[inside].max())),
            (ball.horizontal, inside),
        ):
            farthest = chosen & (distances > distances[chosen].max() - 1e-9)
            wanted = {tuple(row) for row in canonical_labels(draws[farthest]).tolist()}
            assert {tuple(row) for row in bound.tolist()} == wanted
            assert len(bound) == len(wanted)


def test_bounds_by_hand():
    pair, joined, apart = [0, 0, 1, 1], [0, 0, 0, 0], [0, 1, 2, 3]
    draws = torch.tensor([pair] * 6 + [[0, 0, 1, 2]] + [joined, joined, apart])
    half = 0.5 * math.log(2.0)  # of a cluster of two that is parted; two are twice as much
    small = credible_ball(draws, torch.tensor(pair), 0.6)
    assert small[:2] == (0.0, 0.6) and small.horizontal.tolist() == [pair]
    middle = credible_ball(draws, torch.tensor(pair), 0.65)
    assert middle[:2] == (pytest.approx(half), 0.7)
    assert middle.vertical_lower.tolist() == [[0, 0, 1, 2]]
    assert middle.vertical_upper.tolist() == [pair]
    # Ties in the distance are inside, though eight of ten would do.
    large = credible_ball(draws, torch.tensor(pair), 0.8)
    assert large[:2] == (pytest.approx(2.0 * half), 1.0)
    assert large.vertical_upper.tolist() == [joined]
    assert large.horizontal.tolist() == [joined, apart]


def test_equal_draws_have_no_spread():
    ball = credible_ball(torch.tensor([[5, 5, 1]] * 3), np.array([0, 0, 1]))
    assert ball[:2] == (0.0, 1.0)
    for bound in ball[2:]:
        assert bound.tolist() == [[0, 0, 1]]
    assert credible_ball(torch.tensor([[3]]), torch.tensor([1])).radius == 0.0
