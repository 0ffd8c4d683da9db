"""The ball against its definition: sorted distances, and balls by hand."""

import math

import numpy as np
import pytest
import torch

from pyro_ext.diagnostics.partitions import (
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


def test_balls_by_hand():
    pair, joined, apart = [0, 0, 1, 1], [0, 0, 0, 0], [0, 1, 2, 3]
    draws = torch.tensor([pair] * 6 + [[0, 0, 1, 2]] + [joined, joined, apart])
    half = 0.5 * math.log(2.0)  # of a cluster of two that is parted; two are twice as much
    # Ties in the distance are inside, though eight of ten would do for the last.
    for level, wanted in ((0.6, (0.0, 0.6)), (0.65, (half, 0.7)), (0.8, (2.0 * half, 1.0))):
        assert credible_ball(draws, torch.tensor(pair), level) == pytest.approx(wanted)


def test_equal_draws_have_no_spread():
    ball = credible_ball(torch.tensor([[5, 5, 1]] * 3), np.array([0, 0, 1]))
    assert ball == (0.0, 1.0)
    assert credible_ball(torch.tensor([[3]]), torch.tensor([1])).radius == 0.0
