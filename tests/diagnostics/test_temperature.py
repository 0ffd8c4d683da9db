"""Configurational temperature, against normal distributions, whose temperature is known."""

import math

import pytest
import torch
from torch import Tensor

from pyro_ext.diagnostics.temperature import configurational_temperature

pytestmark = pytest.mark.usefixtures("float64")

SCALE = torch.tensor([0.1, 1.0, 30.0])
MEAN = torch.tensor([5.0, -300.0, 0.0])


def autoregressive(num_chains: int, num_draws: int, decay: float, seed: int = 0) -> Tensor:
    """Chains with standard normal margins and correlations of powers of the decay."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(num_draws, num_chains, 3, generator=generator)
    state, kept = noise[0], []
    for step in noise:
        state = decay * state + math.sqrt(1.0 - decay**2) * step
        kept.append(state)
    return torch.stack(kept, 1)


@pytest.mark.statistical
@pytest.mark.parametrize("temperature", [0.1, 1.0, 4.0])
@pytest.mark.parametrize(("num_chains", "num_draws"), [(1, 4000), (2, 2000), (8, 500)])
def test_normal_draws(num_chains: int, num_draws: int, temperature: float) -> None:
    """More than 4.5 standard errors come once in a thousand seeds, as of t with 9 degrees."""
    spread = math.sqrt(temperature) * SCALE
    draws = MEAN + spread * autoregressive(num_chains, num_draws, 0.5)
    found = configurational_temperature(draws, (draws - MEAN) / SCALE**2)
    assert abs(found.value - temperature) < 4.5 * found.standard_error
    assert found.standard_error < 0.15 * temperature


@pytest.mark.statistical
@pytest.mark.parametrize("decay", [0.0, 0.9])
def test_standard_error_counts_autocorrelation(decay: float) -> None:
    """Over 200 seeds; the spread of as many has a relative error of a twentieth."""
    pairs = []
    for seed in range(200):
        draws = autoregressive(4, 500, decay, seed)
        pairs.append(configurational_temperature(draws, draws))
    values, errors = torch.tensor(pairs).T
    assert float(values.mean()) == pytest.approx(1.0, abs=4.5 * float(values.std()) / 200**0.5)
    assert 0.8 < float(errors.mean() / values.std()) < 1.6


@pytest.mark.statistical
def test_gradients_of_minibatches_will_do() -> None:
    """Noise of gradients that does not depend on the draws adds to the standard error alone."""
    draws = autoregressive(4, 1000, 0.0)
    noise = 20.0 * autoregressive(4, 1000, 0.0, seed=1)
    exact, noisy = (configurational_temperature(draws, g) for g in (draws, draws + noise))
    assert abs(noisy.value - 1.0) < 4.5 * noisy.standard_error
    assert 5.0 * exact.standard_error < noisy.standard_error < 0.5


def test_chains_at_different_modes_tell_little() -> None:
    """Each is at rest a little off its own mode, which is as far from the others as can be."""
    draws = 0.01 * autoregressive(4, 200, 0.0) + 100.0 * torch.arange(4.0)[:, None, None]
    found = configurational_temperature(draws, autoregressive(4, 200, 0.0, seed=1))
    assert found.standard_error > 1.0


def test_shapes_are_checked() -> None:
    for positions, gradients in (
        (torch.zeros(5, 3), torch.zeros(5, 3)),
        (torch.zeros(2, 5, 3), torch.zeros(2, 5, 2)),
        (torch.zeros(2, 3, 3), torch.zeros(2, 3, 3)),
    ):
        with pytest.raises(ValueError, match="must have the same shape .*, got"):
            configurational_temperature(positions, gradients)
