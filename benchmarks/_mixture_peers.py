"""Dirichlet process mixtures of Gaussians of scikit-learn and of Pyro, as their users fit them."""

from typing import Any

import pyro
import pyro.distributions as dist
import torch
from _common import Array
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoNormal
from torch import Tensor

__all__ = ["DOF_EXCESS", "LOC_PRECISION", "MASS", "SCALE", "StickBreaking", "variational_mixture"]

# The mass of the Dirichlet process, and the normal-Wishart prior of a cluster.
MASS, LOC_PRECISION, DOF_EXCESS, SCALE = 1.0, 0.1, 2.0, 0.5

_NUM_COMPONENTS = 20
_NUM_DRAWS = 300


def variational_mixture(
    points: Array, seed: int, max_iter: int, num_components: int = _NUM_COMPONENTS
) -> Any:
    """scikit-learn's truncated variational mixture, with our prior.

    :param Array points: the data.
    :param int seed: of the first assignment.
    :param int max_iter: most iterations.
    :param int num_components: where the mixture is truncated.
    :returns: the fitted estimator.
    """
    from sklearn.mixture import BayesianGaussianMixture

    size = points.shape[-1]
    return BayesianGaussianMixture(
        n_components=min(num_components, len(points)),
        covariance_type="full",
        weight_concentration_prior_type="dirichlet_process",
        weight_concentration_prior=MASS,
        mean_precision_prior=LOC_PRECISION,
        mean_prior=[0.0] * size,
        degrees_of_freedom_prior=size + DOF_EXCESS,
        covariance_prior=SCALE * torch.eye(size).numpy(),
        max_iter=max_iter,
        tol=1e-4,
        random_state=seed,
    ).fit(points)


class StickBreaking:
    """Pyro's truncated mixture by stochastic variational inference, with diagonal covariances.

    Labels are summed out, and the guide is a normal one of independent coordinates.

    :param Tensor points: the data.
    :param int seed: of the guide and the draws.
    :param int num_steps: of the optimizer.
    :param int num_components: where the mixture is truncated.
    """

    def __init__(
        self, points: Tensor, seed: int, num_steps: int, num_components: int = _NUM_COMPONENTS
    ) -> None:
        self._num_components = num_components
        pyro.set_rng_seed(seed)
        self._guide = AutoNormal(self._model)
        # The store of parameters is put back as it was found.
        with pyro.get_param_store().scope():
            optimizer = pyro.optim.Adam({"lr": 0.02})
            inference = SVI(self._model, self._guide, optimizer, Trace_ELBO())
            for _ in range(num_steps):
                inference.step(points)
            with torch.no_grad():
                self._draws = [self._guide(points) for _ in range(_NUM_DRAWS)]

    def log_density(self, points: Tensor) -> Tensor:
        """Log density of new points, averaged over draws of the guide.

        :param Tensor points: where. **Shape:** ``(n, d)``.
        """
        by_draw = torch.stack([_mixture(draw).log_prob(points) for draw in self._draws])
        return by_draw.logsumexp(0) - torch.tensor(float(_NUM_DRAWS)).log()

    def responsibilities(self, points: Tensor) -> Tensor:
        """Probability of each component for each point at a draw of the guide.

        :param Tensor points: where. **Shape:** ``(n, d)``.
        """
        law = _mixture(self._draws[0])
        by_component = law.component_distribution.log_prob(points.unsqueeze(-2))
        return (law.mixture_distribution.logits + by_component).softmax(-1)

    def _model(self, points: Tensor) -> None:
        size = points.shape[-1]
        like = points.new_ones(size)
        with pyro.plate("sticks", self._num_components - 1):
            sticks = pyro.sample("sticks_broken", dist.Beta(like[0], MASS))
        with pyro.plate("components", self._num_components):
            # Each variance as a diagonal entry under the inverse Wishart law of the others.
            law = dist.InverseGamma((DOF_EXCESS + 1.0) / 2.0 * like, SCALE / 2.0 * like)
            variance = pyro.sample("variance", law.to_event(1))
            spread = (variance / LOC_PRECISION).sqrt()
            loc = pyro.sample("loc", dist.Normal(0.0, spread).to_event(1))
        sites = {"sticks_broken": sticks, "variance": variance, "loc": loc}
        with pyro.plate("points", len(points)):
            pyro.sample("x", _mixture(sites), obs=points)


def _mixture(sites: Any) -> dist.MixtureSameFamily:
    sticks = sites["sticks_broken"]
    one = sticks.new_ones(1)
    weights = torch.cat([sticks, one]) * torch.cat([one, (1.0 - sticks).cumprod(-1)])
    components = dist.Normal(sites["loc"], sites["variance"].sqrt()).to_event(1)
    return dist.MixtureSameFamily(dist.Categorical(weights), components)
