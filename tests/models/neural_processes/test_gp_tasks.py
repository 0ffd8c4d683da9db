"""Gaussian processes: covariances by their formulas, and those of what is drawn."""

import math
from functools import partial

import numpy as np
import pytest
import torch

from pyro_ext.models.neural_processes import GPTasks
from pyro_ext.models.neural_processes import tasks as tasks_module

pytest.importorskip("gpytorch")

NUM_DRAWS = 20_000
LENGTH, AMPLITUDE, PERIOD = 0.37, 0.8, 0.43


def by_formula(kernel, x):
    distance = np.abs(x[:, None] - x[None])
    if kernel == "rbf":
        shape = np.exp(-(distance**2) / (2 * LENGTH**2))
    elif kernel == "matern":
        scaled = math.sqrt(5) * distance / LENGTH
        shape = (1 + scaled + scaled**2 / 3) * np.exp(-scaled)
    else:
        shape = np.exp(-2 * np.sin(math.pi * distance / PERIOD) ** 2 / LENGTH**2)
    return AMPLITUDE**2 * shape


@pytest.fixture
def fixed(monkeypatch):
    """Makes tasks whose kernel has known numbers."""
    monkeypatch.setattr(tasks_module, "_AMPLITUDES", (AMPLITUDE, AMPLITUDE))
    monkeypatch.setattr(tasks_module, "_PERIODS", (PERIOD, PERIOD))
    return partial(GPTasks, lengthscale=(LENGTH, LENGTH))


@pytest.mark.parametrize("kernel", ["rbf", "matern", "periodic"])
def test_covariance_is_that_of_the_formula(kernel):
    x = torch.rand(2, 6, 1, dtype=torch.float64)
    numbers = [torch.full((2,), v, dtype=torch.float64) for v in (LENGTH, AMPLITUDE, PERIOD)]
    found = GPTasks(kernel).covariance(x, *numbers)
    for task in range(2):
        np.testing.assert_allclose(found[task], by_formula(kernel, x[task, :, 0].numpy()), 1e-6)


@pytest.mark.statistical
@pytest.mark.parametrize("kernel", ["rbf", "matern", "periodic"])
def test_draws_have_the_covariance(kernel, fixed):
    """21 numbers within 5 standard errors of a product of normals; one seed in 80,000 fails."""
    x = np.array([-1.5, -1.3, -0.2, 0.0, 0.1, 1.9])
    inputs = torch.from_numpy(x)[:, None].expand(NUM_DRAWS, 6, 1)
    tasks = fixed(kernel, noise=0.3)
    draws = tasks.functions(inputs, seed=0)[..., 0].numpy()
    expected = by_formula(kernel, x) + 0.3**2 * np.eye(6)
    found = draws.T @ draws / NUM_DRAWS
    variances = np.outer(np.diag(expected), np.diag(expected)) + expected**2
    assert (np.abs(found - expected) < 5 * np.sqrt(variances / NUM_DRAWS)).all()


@pytest.mark.statistical
def test_student_noise_has_heavy_tails(fixed):
    """Its share beyond a level within 5 standard errors; one seed in 1.7 million fails.

    The scale is uniform, so the share is a mean of tails over a grid of scales.
    """
    from scipy.stats import t

    inputs = torch.zeros(4000, 10, 1)
    quiet, noisy = (fixed("rbf", student_noise=s, noise=1e-4) for s in (0.0, 0.5))
    # All points of a task have the same input, so the function is the same for all but the noise.
    gaps = (noisy.functions(inputs, seed=0) - quiet.functions(inputs, seed=0)).abs().flatten()
    scales = (np.arange(10_000) + 0.5) / 10_000 * 0.5
    for level in (0.2, 1.0):
        share = 2 * t.sf(level / scales, 2.1).mean()
        error = math.sqrt(share * (1 - share) / len(gaps))
        assert abs(float((gaps > level).double().mean()) - share) < 5 * error


def test_sizes_and_ranges():
    tasks = GPTasks("rbf", num_tasks=2)
    sizes = []
    for seed in range(300):
        batch = tasks(seed)
        sizes.append((batch.context_inputs.shape[1], batch.target_inputs.shape[1]))
        assert batch.points.inputs.abs().max() <= 2
    contexts, targets = zip(*sizes, strict=True)
    assert min(contexts) == 3 and max(contexts) == 46 and min(targets) == 3
    assert max(a + b for a, b in sizes) < 50
    wide = GPTasks("matern", x_dim=3, num_context=4, num_target=5)(0)
    assert wide.context_inputs.shape == (16, 4, 3)
    assert GPTasks(num_context=0)(0).context_inputs.shape == (16, 0, 1)


def test_hyperparameters_differ_between_tasks(monkeypatch):
    seen = []
    original = GPTasks.covariance

    def covariance(self, inputs, *numbers):
        seen.append(numbers)
        return original(self, inputs, *numbers)

    monkeypatch.setattr(GPTasks, "covariance", covariance)
    GPTasks("periodic", num_tasks=2000, num_context=1, num_target=1)(0)
    for values, (low, high) in zip(seen[0], [(0.1, 0.6), (0.1, 1.0), (0.1, 0.5)], strict=True):
        assert low <= values.min() < low + 0.01 and high - 0.01 < values.max() <= high


def test_what_users_may_get_wrong():
    with pytest.raises(ValueError, match="lengthscale must be two numbers, the first not above"):
        GPTasks(lengthscale=(0.5, 0.1))
    with pytest.raises(ValueError, match="num_context must leave at least 4 of max_points=50"):
        GPTasks(num_context=47)
