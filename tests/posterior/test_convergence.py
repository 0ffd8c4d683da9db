"""R-hat, effective sample sizes and energies are those of ArviZ, of all kinds of draws."""

import pytest
import torch
from torch import Tensor

from pyro_ext.posterior.convergence import energy_fractions, lasting_r_hat, rank_diagnostics
from tests.diagnostics.arviz_models import arviz


def draws_of_kinds() -> dict[str, Tensor]:
    """Independent, heavy-tailed, slow, apart, of integers, and of an odd number."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(4, 401, generator=generator, dtype=torch.float64)
    slow = torch.zeros_like(noise)
    for step in range(1, 401):
        slow[:, step] = 0.9 * slow[:, step - 1] + noise[:, step]
    return {
        "independent": noise[:, :400],
        "heavy tails": noise.sinh().pow(3),
        "slow": slow,
        "apart": noise + 0.3 * torch.arange(4.0)[:, None],
        "other scales": noise * torch.tensor([1.0, 1.0, 1.0, 2.0])[:, None],
        "integers": (3.0 * noise).round(),
        "one chain": noise[:1],
    }


@pytest.mark.parametrize("kind", draws_of_kinds())
def test_rank_diagnostics_are_arvizs(kind: str) -> None:
    draws = draws_of_kinds()[kind]
    found = rank_diagnostics(torch.stack([draws, -draws], -1))
    values = draws.numpy()
    assert found.r_hat.shape == (2,)
    torch.testing.assert_close(found.r_hat[0], found.r_hat[1])
    if len(draws) > 1:  # ArviZ has none for a single chain, whose halves can be compared
        assert float(found.r_hat[0]) == pytest.approx(float(arviz().rhat(values)), rel=1e-9)
    for size, options in (
        (found.bulk, {"method": "bulk"}),
        (found.tail, {"method": "tail", "prob": (0.05, 0.95)}),
    ):
        expected = float(arviz().ess(values, **options))
        assert float(size[0]) == pytest.approx(expected, rel=0.02)
    alone = rank_diagnostics(draws)
    assert alone.r_hat.shape == () and float(alone.bulk) == pytest.approx(float(found.bulk[0]))


def test_energies_are_arvizs() -> None:
    energies = draws_of_kinds()["slow"]
    expected = torch.from_numpy(arviz().bfmi(energies.numpy()))
    torch.testing.assert_close(energy_fractions(energies), expected)


def chains(number: int, length: int, decay: float) -> Tensor:
    """Return stationary chains of 50 elements whose neighbors have that correlation."""
    generator = torch.Generator().manual_seed(1)
    noise = torch.randn(number, length, 50, generator=generator, dtype=torch.float64)
    steps = [noise[:, 0]]
    for step in range(1, length):
        steps.append(decay * steps[-1] + (1.0 - decay**2) ** 0.5 * noise[:, step])
    return torch.stack(steps, 1)


@pytest.mark.statistical
@pytest.mark.parametrize("number", [16, 256])
def test_r_hat_of_many_short_chains_counts_what_lasts(number: int) -> None:
    """A false alarm has a probability of 3e-5 for each of 200 tests of a run, by the threshold."""
    good = chains(number, 20, 0.5)
    assert (lasting_r_hat(good) == 1.0).all()
    assert rank_diagnostics(good).r_hat.median() > 1.03  # which would be false alarms
    faults = {
        "a chain of its own": good + 9.0 * (torch.arange(number) == 3)[:, None, None],
        "two modes": good + 5.0 * (torch.arange(number) % 2)[:, None, None],
        "other scales": good * (1.0 + 9.0 * (torch.arange(number) % 2))[:, None, None],
        "a warm-up too short": good + 9.0 * (torch.arange(20) < 5)[:, None],
        "slow": chains(number, 20, 0.995),
    }
    for name, draws in faults.items():
        assert (lasting_r_hat(draws) > 1.01).double().mean() > 0.95, name
    stuck = torch.arange(float(number))[:, None, None].expand(number, 20, 1)
    assert lasting_r_hat(stuck) > 1e3
