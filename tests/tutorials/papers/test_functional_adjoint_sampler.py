"""The page on adjoint samplers: its parts, a short run, and in full its claims."""

import pytest
import torch

from pyro_ext.inference.adjoint import DoubleWell1D
from pyro_ext.tutorials.papers._transition_paths import dynamics, shooting

PAGE = "functional-adjoint-sampler"
pytestmark = pytest.mark.slow


def test_all_kinds_of_paths_are_measured_alike(names):
    exact = names["exact"]
    assert names["distance"](exact) == 0.0
    assert names["distance"](exact + 0.25) == pytest.approx(0.25, abs=1e-5)
    surface, path = names["SURFACE"], names["curved_bridge"]
    found = names["on_surface"]["Brownian bridge"]
    assert found["arrive"] == 1.0
    assert found["ETS"] == pytest.approx(float(surface(path).amax(1).mean()), rel=1e-5)


@pytest.mark.statistical
def test_dynamics_have_the_stationary_distribution_of_a_well():
    r"""In :math:`V = x^2 / 2` with noise one: a variance of 1 / (2 - step) after a long time.

    Of 20,000 paths within 4.5 standard errors: false-alarm rate 7e-6.
    """

    class Well(DoubleWell1D):
        def gradient(self, x):
            return x

    torch.manual_seed(0)
    path = dynamics(Well(), torch.zeros(20_000, 1), 1.0, 0.1, 100)
    assert path.shape == (20_000, 101, 1) and not path[:, 0].any()
    exact = 1.0 / 1.9
    assert float(path[:, -1].var()) == pytest.approx(exact, abs=4.5 * exact * (2 / 20_000) ** 0.5)
    pulled = dynamics(Well(), torch.zeros(100, 1), 0.1, 0.01, 100, 50.0, torch.ones(1))
    assert float((pulled[:, -1] - 1.0).abs().mean()) < 0.1


def test_shooting_keeps_what_arrives():
    torch.manual_seed(0)
    grid = torch.linspace(0.0, 2.0, 21)
    start, end = torch.tensor([-1.0]), torch.ones(1)
    path = shooting(DoubleWell1D(), start, end, grid, 50, 30)
    assert path.shape == (50, 21, 1)
    assert bool(((path[:, 0] - start).abs() < 0.5).all() & ((path[:, -1] - end).abs() < 0.5).all())
    straight = torch.linspace(-1.0, 1.0, 21)[:, None]
    assert float((path == straight).all((1, 2)).double().mean()) < 0.5
