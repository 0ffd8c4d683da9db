"""Densities whose means, mean squares or evidence are known, in Pyro and in JAX."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from _blackjax_samplers import JaxDensity, tempered
from _common import Array
from _problems import PROBLEMS, whole_logistic_regression
from torch import Tensor

from pyro_ext.inference import MCMC, NUTS
from pyro_ext.potential import Potential

__all__ = [
    "Density",
    "jax_tempered",
    "logistic",
    "normal",
    "positions_of",
    "tempering_errors",
    "two_modes",
]

SIZE = 100
SCALES = np.logspace(-1.0, 1.0, SIZE)
PRIOR_SCALE, MODE_SCALE, MODE, SHARE, NUM_MODE_DIMS = 3.0, 0.5, 2.0, 0.7, 10


@dataclass(frozen=True)
class Density:
    """A density for both sides, and what is known of it.

    :param str name: its name.
    :param model: a Pyro model, and ``arguments`` of it.
    :param JaxDensity log_density: the same in JAX, up to a constant.
    :param ndarray expected: means of positions and of their squares. **Shape:** ``(2, size)``.
    :param ndarray spread: their standard deviations.
    """

    name: str
    model: Callable[..., None]
    arguments: tuple[Tensor, ...]
    log_density: JaxDensity
    expected: Array
    spread: Array

    @property
    def size(self) -> int:
        """Number of parameters."""
        return int(self.expected.shape[1])

    def check(self) -> None:
        """Compare both densities, which are those of the same posterior up to a constant."""
        potential = Potential(self.model, *self.arguments, backend="eager")
        points = np.random.default_rng(0).normal(size=(5, self.size))
        ours = potential.value.over_any(torch.from_numpy(points)).numpy()
        theirs = np.array([float(self.log_density(point)) for point in points])
        np.testing.assert_allclose(ours + theirs, (ours + theirs)[0], rtol=0.0, atol=1e-8)


def positions_of(samples: Mapping[str, Tensor]) -> Array:
    """Draws of all sites side by side. **Shape:** ``(num_chains, num_draws, size)``."""
    parts = [value.reshape(*value.shape[:2], -1) for value in samples.values()]
    return torch.cat(parts, -1).numpy()


def normal() -> Density:
    """Independent normal coordinates of scales that differ by a factor of a hundred."""
    scales = torch.from_numpy(SCALES)

    def model() -> None:
        pyro.sample("x", dist.Normal(torch.zeros(SIZE), scales).to_event(1))

    def log_density(x: Any) -> Any:
        return -0.5 * ((x / SCALES) ** 2).sum()

    variances = SCALES**2
    return Density(
        "normal, 100 scales",
        model,
        (),
        log_density,
        np.stack([np.zeros(SIZE), variances]),
        np.stack([SCALES, math.sqrt(2.0) * variances]),
    )


def logistic(num_samples: int) -> Density:
    """A regression on real data, whose columns are correlated."""
    inputs, labels = (each.double() for each in PROBLEMS["logistic regression"].arguments)
    rows, targets = inputs.numpy(), labels.numpy()

    def log_density(x: Any) -> Any:
        from jax import numpy as jnp

        logits = jnp.asarray(rows) @ x[:-1] + x[-1]
        fit = targets * logits - jnp.logaddexp(0.0, logits)
        return jnp.sum(fit) - 0.5 * jnp.sum(x**2)

    kernel = NUTS(whole_logistic_regression)
    mcmc = MCMC(kernel, num_samples, num_chains=4, seed=0, progress=False)
    flat = positions_of(mcmc.run(inputs, labels).get_samples(group_by_chain=True))
    flat = flat.reshape(-1, flat.shape[-1])
    both = np.stack([flat, flat**2])
    arguments = inputs, labels
    name, model = "logistic regression", whole_logistic_regression
    return Density(name, model, arguments, log_density, both.mean(1), both.std(1))


def two_modes() -> None:
    """Two normal modes under a normal prior, far apart."""
    prior = dist.Normal(torch.zeros(NUM_MODE_DIMS), PRIOR_SCALE).to_event(1)
    x = pyro.sample("x", prior)
    parts = [
        math.log(share) + dist.Normal(sign * MODE, MODE_SCALE).log_prob(x).sum(-1)
        for share, sign in ((SHARE, 1.0), (1.0 - SHARE, -1.0))
    ]
    pyro.factor("likelihood", torch.logaddexp(*parts))


def tempering_errors(found: list[tuple[float, float]]) -> dict[str, float]:
    """Mean squares of errors of the log evidence and of the share of a mode."""
    scale = math.hypot(PRIOR_SCALE, MODE_SCALE)
    exact = -0.5 * (MODE / scale) ** 2 - math.log(scale * math.sqrt(2.0 * math.pi))
    evidences, shares = np.array(found).T
    return {
        "error_of_log_evidence": np.square(evidences - NUM_MODE_DIMS * exact).mean(),
        "error_of_share": np.square(shares - SHARE).mean(),
    }


def jax_tempered(num_particles: int) -> Callable[[int], tuple[float, float]]:
    """Make BlackJAX's sampler of the same two modes."""
    from jax import numpy as jnp
    from jax.scipy.special import logsumexp
    from jax.scipy.stats import norm

    def log_likelihood(x: Any) -> Any:
        at = [norm.logpdf(x, sign * MODE, MODE_SCALE).sum() for sign in (1.0, -1.0)]
        return logsumexp(jnp.stack(at), b=jnp.array([SHARE, 1.0 - SHARE]))

    def log_prior(x: Any) -> Any:
        return norm.logpdf(x, 0.0, PRIOR_SCALE).sum()

    return tempered(log_prior, log_likelihood, PRIOR_SCALE, NUM_MODE_DIMS, num_particles)
