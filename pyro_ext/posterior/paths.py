"""Pathfinder: importance-weighted normal approximations along the paths of an optimizer.

[1] L. Zhang, B. Carpenter, A. Gelman, A. Vehtari (2022), Pathfinder: parallel quasi-Newton
variational inference.
"""

import math
import warnings
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyro
import pyro.distributions as dist
import torch
from pyro.infer.autoguide.initialization import init_to_uniform
from torch import Tensor

from pyro_ext._lib import checks
from pyro_ext.posterior.convergence import ConvergenceWarning
from pyro_ext.posterior.importance import MOST_K_HAT, SmoothedWeights, smoothed_weights
from pyro_ext.posterior.independent_draws import IndependentDraws
from pyro_ext.posterior.modes import HISTORY, follow
from pyro_ext.potential import InitStrategy, Potential, sum_out
from pyro_ext.random import fresh_seed, spawn_seed

_NUM_PATHS, NUM_SAMPLES, _NUM_ELBO_DRAWS = 4, 1000, 25
_MOST_CURVATURE = 1e12
_NUMBERS_AT_ONCE = 1 << 21
_POINTS_PER_LOOK = 16
# In the neck of a hierarchy the density has no bound: there a path would never end.
_MOST_WORSE = 64

Array = npt.NDArray[np.float64]


class Approximation(NamedTuple):
    r"""A normal distribution whose covariance is the inverse second derivatives at a point.

    The covariance is :math:`D (I + Q (C C^T - I) Q^T) D` with a diagonal :math:`D`.

    :param ndarray mean: **Shape:** ``(size,)``.
    :param ndarray scale: :math:`D`. **Shape:** ``(size,)``.
    :param ndarray basis: :math:`Q`, with orthonormal columns. **Shape:** ``(size, rank)``.
    :param ndarray root: :math:`C`, lower triangular. **Shape:** ``(rank, rank)``.
    """

    mean: Array
    scale: Array
    basis: Array
    root: Array

    def draw(self, noise: Array) -> Array:
        """Turn standard normal numbers into draws. **Shape:** ``(n, size)``."""
        part = noise @ self.basis
        return self.mean + self.scale * (noise + (part @ self.root.T - part) @ self.basis.T)

    def log_prob(self, points: Array) -> Array:
        """Log density. **Shape:** ``(n, size)`` to ``(n,)``."""
        noise = (points - self.mean) / self.scale
        part = noise @ self.basis
        within = np.linalg.solve(self.root, part.T).T
        squares = (noise**2).sum(-1) - (part**2).sum(-1) + (within**2).sum(-1)
        log_volume = np.log(self.scale).sum() + np.log(np.diag(self.root)).sum()
        density: Array = -0.5 * (squares + points.shape[-1] * math.log(2.0 * math.pi)) - log_volume
        return density


class Curvature:
    """Second derivatives of the objective, as estimated from the steps of a search.

    :param int history: number of steps to remember.
    """

    def __init__(self, history: int) -> None:
        self._pairs: deque[tuple[Array, Array]] = deque(maxlen=history)
        self._last: tuple[Array, Array] | None = None
        self._inverse = np.ones(1)

    def take(self, point: Array, gradient: Array) -> Approximation | None:
        """Take the next iterate, and return the approximation there, if there is one.

        Steps along which the curvature is not positive are left out.

        Shapes: point, gradient of the objective (size,).
        """
        before, self._last = self._last, (point, gradient)
        if before is None:
            self._inverse = np.ones_like(point)
            return None
        inverse, step, change = self._inverse, point - before[0], gradient - before[1]
        b = change @ step
        if b > 0 and change @ change <= _MOST_CURVATURE * b:
            a, c = change @ (inverse * change), step @ (step / inverse)
            self._inverse = 1.0 / (
                a / (b * inverse) + change**2 / b - a * step**2 / (b * c * inverse**2)
            )
            self._pairs.append((step, change))
        return _approximation(point, gradient, self._inverse, self._pairs)


def _approximation(
    point: Array, gradient: Array, inverse: Array, pairs: Sequence[tuple[Array, Array]]
) -> Approximation | None:
    """Approximation from the diagonal and the last steps; ``None`` where it is not positive."""
    if not pairs or not (np.isfinite(inverse).all() and (inverse > 0).all()):
        return None
    steps, changes = (np.stack(parts, 1) for parts in zip(*pairs, strict=True))
    products = np.triu(steps.T @ changes)
    inner = np.diag(np.diag(products)) + changes.T @ (inverse[:, None] * changes)
    try:
        solved = np.linalg.inv(products)
        zero = np.zeros_like(products)
        core = np.block([[zero, -solved], [-solved.T, solved.T @ inner @ solved]])
        factors = np.concatenate([inverse[:, None] * changes, steps], 1)
        scale = np.sqrt(inverse)
        basis, triangle = np.linalg.qr(factors / scale[:, None])
        root = np.linalg.cholesky(np.eye(len(triangle)) + triangle @ core @ triangle.T)
    except np.linalg.LinAlgError:
        return None
    mean = point - inverse * gradient - factors @ (core @ (factors.T @ gradient))
    return Approximation(mean, scale, basis, root) if np.isfinite(mean).all() else None


class Paths(NamedTuple):
    """Weighted draws from several paths.

    :param Tensor positions: draws in unconstrained space. **Shape:** ``(n, size)``.
    :param Tensor log_densities: log densities of the model there. **Shape:** ``(n,)``.
    :param SmoothedWeights weights: importance weights of the draws.
    :param tuple elbos: lower bound of the log evidence from each path, negative infinity for paths
        that led nowhere.
    :param float log_evidence: estimate of the log evidence from the weights.
    """

    positions: Tensor
    log_densities: Tensor
    weights: SmoothedWeights
    elbos: tuple[float, ...]
    log_evidence: float

    def without_replacement(self, number: int, seed: int) -> Tensor:
        """Pick distinct draws by their weights. **Shape:** ``(number, size)``."""
        generator = torch.Generator().manual_seed(spawn_seed(seed, 0, 2))
        uniforms = torch.rand(len(self.positions), dtype=torch.float64, generator=generator)
        gumbel = self.weights.log_weights.cpu() - (-uniforms.log()).log()
        return self.positions[gumbel.argsort(descending=True)[:number].to(self.positions.device)]


def find_paths(
    potential: Potential,
    seed: int,
    init_strategy: InitStrategy = init_to_uniform,
    *,
    num_paths: int = _NUM_PATHS,
    num_samples: int = NUM_SAMPLES,
) -> Paths:
    """Follow paths of the optimizer, and draw from the best approximation of each."""
    layout = potential.layout
    starts = layout.flatten(potential.init_chains(range(num_paths), seed, init_strategy))
    chosen: list[Approximation] = []
    draws: list[Array] = []
    elbos = []
    for number, start in enumerate(starts):
        generator = np.random.default_rng(spawn_seed(seed, number, 3))
        path = _Path(potential, generator.standard_normal((_NUM_ELBO_DRAWS, layout.size)))
        follow(potential, start, path.take)
        path.look()
        elbos.append(path.elbo)
        if path.best is not None:
            chosen.append(path.best)
            draws.append(path.best.draw(generator.standard_normal((num_samples, layout.size))))
    if not chosen:
        raise ValueError(
            f"none of {num_paths} paths has a normal approximation with a finite density: check "
            "the scale of the prior and the initialization (init_strategy), or compute in float64"
        )
    flat = np.concatenate(draws)
    # As draws of the mixture: a mode to which several paths lead does not count several times.
    log_q = np.logaddexp.reduce([each.log_prob(flat) for each in chosen]) - math.log(len(chosen))
    log_p = _log_densities(potential, flat)
    log_weights = torch.from_numpy(log_p - log_q)
    log_evidence = float(log_weights.nan_to_num(-torch.inf).logsumexp(0)) - math.log(len(flat))
    positions = torch.from_numpy(flat).to(layout.device, layout.dtype)
    return Paths(
        positions,
        torch.from_numpy(log_p).to(positions),
        smoothed_weights(log_weights),
        tuple(elbos),
        log_evidence,
    )


class _Path:
    """The best approximation on a path of the optimizer so far.

    :param Potential potential: of the model.
    :param ndarray noise: for the draws of lower bounds. **Shape:** ``(num_draws, size)``.
    """

    def __init__(self, potential: Potential, noise: Array) -> None:
        self.best: Approximation | None = None
        self.elbo = -math.inf
        self._potential, self._noise = potential, noise
        self._curvature = Curvature(HISTORY)
        self._waiting: list[Approximation] = []
        self._num_worse = 0
        self._most = min(_POINTS_PER_LOOK, max(1, _NUMBERS_AT_ONCE // noise.size))

    def take(self, point: Array, gradient: Array) -> bool:
        """Take the next iterate; returns whether bounds have got no better for long."""
        found = self._curvature.take(point, gradient)
        if found is not None:
            self._waiting.append(found)
        if len(self._waiting) >= self._most:
            self.look()
        return self._num_worse >= _MOST_WORSE

    def look(self) -> None:
        """Compare the iterates that have not been looked at."""
        if not self._waiting:
            return
        drawn = np.stack([each.draw(self._noise) for each in self._waiting])
        log_p = _log_densities(self._potential, drawn.reshape(-1, drawn.shape[-1]))
        by_point = log_p.reshape(len(drawn), -1)
        for each, points, densities in zip(self._waiting, drawn, by_point, strict=True):
            elbo = float((densities - each.log_prob(points)).mean())
            self._num_worse += self.best is not None
            if elbo > self.elbo:  # false where a density is not finite
                self.best, self.elbo, self._num_worse = each, elbo, 0
        self._waiting = []


def log_densities(potential: Potential, flat: Tensor) -> Tensor:
    """Log density over all of the data, as float64. **Shape:** ``(n, size)`` to ``(n,)``."""
    if potential.subsampled_plates:
        energies = potential.full_value_and_grad(potential.layout.unflatten(flat))[0]
    else:
        energies = potential.value.over_any(flat)
    densities = -energies.double()
    return torch.where(densities.isfinite(), densities, -torch.inf)


def _log_densities(potential: Potential, flat: Array) -> Array:
    """Return the same for arrays."""
    points = torch.from_numpy(flat).to(potential.layout.device, potential.layout.dtype)
    densities: Array = log_densities(potential, points).cpu().numpy()
    return densities


class PathfinderPosterior(IndependentDraws):
    """Approximate posterior draws along the paths of an optimizer, made by :func:`pathfinder`.

    Pass it to :func:`~pyro_ext.diagnostics.to_arviz`, to ``MCMC`` as ``initial_params``, or to
    :class:`~pyro.infer.Predictive` as a guide, which picks a draw at random.

    :ivar float k_hat: the shape of the tail of the importance weights. Above 0.7, the draws are
        only useful for starting chains.
    :ivar tuple elbos: the lower bound of the log evidence of each path.
    :ivar float log_evidence: an estimate of the log marginal likelihood; trust it only if
        ``k_hat`` is small.
    :ivar float effective_sample_size: the effective sample size of the weighted draws, before
        resampling.
    :ivar model: the model, with ``args`` and ``kwargs``, and its ``potential``.
    """

    def __init__(
        self,
        model: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        potential: Potential,
        paths: Paths,
        chosen: Tensor,
    ) -> None:
        super().__init__()
        self.model, self.args, self.kwargs, self.potential = model, args, kwargs, potential
        self.k_hat, self.elbos, self.log_evidence = (
            paths.weights.k_hat,
            paths.elbos,
            paths.log_evidence,
        )
        self.effective_sample_size = paths.weights.effective_sample_size
        params = potential.layout.unflatten(paths.positions[chosen])
        self._samples = potential.samples(params)
        self._log_densities = paths.log_densities[chosen]

    def sample_statistics(self) -> dict[str, Tensor]:
        """Log density of each draw in unconstrained space, ``lp``. **Shape:** ``(1, n)``."""
        return {"lp": self._log_densities[None]}

    def __call__(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Set the latent sites to one of the draws at random, as a guide."""
        number = int(torch.randint(len(self._log_densities), ()))
        sites = self.potential.sites
        return {
            name: pyro.sample(name, dist.Delta(value[number], event_dim=value.dim() - 1))
            for name, value in self._samples.items()
            if name in sites
        }


def pathfinder(
    model: Callable[..., Any],
    *args: Any,
    num_samples: int = NUM_SAMPLES,
    num_paths: int = _NUM_PATHS,
    init_strategy: InitStrategy = init_to_uniform,
    seed: int | None = None,
    **kwargs: Any,
) -> PathfinderPosterior:
    r"""Approximate a posterior along the paths of an optimizer [1].

    A quasi-Newton method (L-BFGS) runs from several starting points toward modes. Along its path,
    it approximates second derivatives, which define a normal distribution at each point. From each
    path, draws come from the distribution with the largest lower bound of the evidence. The draws
    of all paths are weighted by the density of the model over that of the mixture of these
    distributions. The weights are smoothed, and the draws are resampled. Instead of the mixture,
    [1] divides by the density of a draw's own path, which counts a mode once for each path that
    leads to it.

    This takes a few hundred gradients, and one density for each draw. If ``k_hat`` is above 0.7,
    which is common in many dimensions and for hierarchical models, there is a warning: the draws
    are then only useful for starting chains. ``MCMC(..., initial_params="pathfinder")`` does this.
    Such starts are close to each other, so R-hat can hardly reveal that chains have missed another
    mode.

    :param model: a Pyro model; discrete sites are summed out.
    :param args: arguments of the model.
    :param int num_samples: the number of draws from each path, and the number of draws kept.
    :param int num_paths: number of paths.
    :param init_strategy: where paths start, one of :mod:`pyro.infer.autoguide.initialization`.
    :param int seed: seed of all random numbers; ``None`` takes one from PyTorch's generator.
    :param kwargs: keyword arguments of the model.
    :returns: the draws.
    :raises ValueError: if numbers are out of range, or no path has an approximation.

    Example::

        >>> def model(x):
        ...     loc = pyro.sample("loc", dist.Normal(0.0, 10.0))
        ...     scale = pyro.sample("scale", dist.HalfNormal(10.0))
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("x", dist.Normal(loc, scale), obs=x)
        >>> posterior = pathfinder(model, torch.linspace(-1.0, 3.0, 50), seed=0)
        >>> posterior.k_hat < 0.7, round(float(posterior.get_samples()["loc"].mean()), 1)
        (True, 1.0)
    """
    checks.integer("num_samples", num_samples, 1)
    checks.integer("num_paths", num_paths, 1)
    checks.function("init_strategy", init_strategy)
    checks.function("model", model, "a Pyro model")
    seed = fresh_seed(seed)
    potential = Potential(
        sum_out(model, *args, **kwargs), *args, init_strategy=init_strategy, **kwargs
    )
    paths = find_paths(potential, seed, init_strategy, num_paths=num_paths, num_samples=num_samples)
    generator = torch.Generator().manual_seed(spawn_seed(seed, 0, 4))
    weights = paths.weights.log_weights.exp().cpu()
    chosen = torch.multinomial(weights, num_samples, replacement=True, generator=generator)
    posterior = PathfinderPosterior(model, args, kwargs, potential, paths, chosen)
    if not posterior.k_hat <= MOST_K_HAT:
        warnings.warn(
            f"k_hat is {posterior.k_hat:.2g}, where at most {MOST_K_HAT} is right: the posterior "
            "is too far from the normal distributions, and these draws are only useful for "
            "starting chains; run MCMC(NUTS(model), initial_params=...) from them",
            ConvergenceWarning,
            stacklevel=2,
        )
    return posterior
