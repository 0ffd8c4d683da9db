"""The law of a weight that was met, against moments of the measure and by quadrature."""

import math

import numpy as np
import pytest
import torch
from scipy import integrate

from pyro_ext.random_measures.finite import JumpDistribution
from tests.random_measures.references import BETA_PRIME, GAMMA, GENERALIZED_BFRY, STABLE_BETA

pytestmark = pytest.mark.usefixtures("float64")

EVERY_REFERENCE = pytest.mark.parametrize(
    "reference", [GAMMA, STABLE_BETA, BETA_PRIME, GENERALIZED_BFRY], ids=str
)


@EVERY_REFERENCE
@pytest.mark.parametrize("order, tilt", [(1.0, 0.5), (3.0, 2.0), (2.5, 30.0)])
def test_density_and_moments(reference, order, tilt):
    law = JumpDistribution(reference.measure(), order, tilt)
    constant = reference.log_kappa(order, tilt)
    sizes = 0.9 * np.logspace(-4, 0, 9)
    expected = reference.log_density(sizes) + order * np.log(sizes) - tilt * sizes - constant
    np.testing.assert_allclose(law.log_prob(torch.from_numpy(sizes)), expected, rtol=0, atol=1e-8)
    first, second = (math.exp(reference.log_kappa(order + n, tilt) - constant) for n in (1, 2))
    assert law.mean.item() == pytest.approx(first, rel=1e-9)
    assert law.variance.item() == pytest.approx(second - first**2, rel=1e-8)


def test_density_integrates_to_one():
    law = JumpDistribution(BETA_PRIME.measure(), 2.0, 0.7)

    def density(place):
        return math.exp(law.log_prob(torch.tensor(place).exp()).item() + place)

    whole, _ = integrate.quad(density, -30.0, 8.0, epsabs=0.0, epsrel=1e-9, points=[0.0])
    assert whole == pytest.approx(1.0, abs=1e-8)


@pytest.mark.statistical
@EVERY_REFERENCE
def test_draws(reference):
    """Mean of all draws and of their squares; any of eight fails for one seed in 200,000."""
    torch.manual_seed(0)
    law = JumpDistribution(reference.measure(), 2.0, 0.7)
    draws = law.sample((500 if reference is STABLE_BETA else 5000,))
    for power in (1.0, 2.0):
        values = draws**power
        expected = math.exp(reference.log_kappa(2.0 + power, 0.7) - reference.log_kappa(2.0, 0.7))
        error = values.std() / math.sqrt(len(draws))
        assert abs(values.mean() - expected) < 5.0 * error


def test_batches_and_errors():
    measure = GAMMA.measure()
    law = JumpDistribution(measure, torch.tensor([[1.0], [2.0]]), torch.tensor([0.5, 1.0, 2.0]))
    assert law.batch_shape == (2, 3) and law.rsample((4,)).shape == (4, 2, 3)
    assert law.mean[1, 2].item() == pytest.approx(JumpDistribution(measure, 2.0, 2.0).mean.item())
    assert law.expand((5, 2, 3)).log_prob(torch.tensor(0.3)).shape == (5, 2, 3)
    for order, tilt, wrong in ((0.0, 1.0, "order must be > 0"), (1.0, -1.0, "tilt must be >= 0")):
        with pytest.raises(ValueError, match=wrong):
            JumpDistribution(measure, order, tilt)
