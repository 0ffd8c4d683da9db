"""R-hat, effective sample sizes and energies are those of ArviZ, of all kinds of draws."""

import pytest
import torch
from torch import Tensor

from pyro_ext.posterior.convergence import energy_fractions, rank_diagnostics
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
