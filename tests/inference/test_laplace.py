"""The Gaussian at a mode, against conjugate answers; NUTS in its coordinates."""

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_ext.inference import laplace_posterior
from pyro_ext.potential import Potential

pytestmark = pytest.mark.usefixtures("float64")


def test_laplace_is_exact_for_a_gaussian():
    covariance = torch.tensor([[2.0, 0.5], [0.5, 1.0]])

    def model():
        z = pyro.sample("z", dist.MultivariateNormal(torch.tensor([1.0, -1.0]), covariance))
        pyro.sample("x", dist.Normal(z[0], 2.0), obs=torch.tensor(3.0))

    found = laplace_posterior(Potential(model), [{"z": torch.zeros(2)}])
    gain = covariance[:, 0] / (covariance[0, 0] + 4.0)
    expected = covariance - torch.outer(gain, covariance[0])
    torch.testing.assert_close(found.scale_tril @ found.scale_tril.mT, expected)
    torch.testing.assert_close(
        found.mode, torch.tensor([1.0, -1.0]) + 2.0 * gain, atol=1e-4, rtol=0
    )
    evidence = dist.Normal(1.0, 6.0**0.5).log_prob(torch.tensor(3.0))
    torch.testing.assert_close(found.log_evidence, evidence)
