"""Independence Metropolis with a proposal fitted to the posterior, as a kernel."""

import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Unpack

import torch
from torch import Tensor

from pyro_ext._lib import checks
from pyro_ext.inference.vectorized import Info, VectorizedKernel, VectorizedOptions
from pyro_ext.potential import BatchedFunction, InitStrategy, Potential, init_to_prior
from pyro_ext.random import chain_keys, seeded, uniform

# Of freedom: many draws are far out, where a population may have missed something.
_DEGREES = 2.0
_NUM_STARTS = 32
_LEAST_ROUNDS, _MOST_ROUNDS, _NUM_POOLED, _NUM_HALVINGS = 10, 20, 4, 30
_ENOUGH, _FEW = 0.1, 0.1  # fractions of the number of points
_STREAM_OF_STARTS, _STREAM_OF_CHOICES = 2, 1


class MetropolisState(NamedTuple):
    """State of chains.

    :param Tensor position: **Shape:** ``(num_chains, size)``.
    :param Tensor energy: the potential there. **Shape:** ``(num_chains,)``.
    :param Tensor keys: keys of the chains' random streams. **Shape:** ``(num_chains, 2)``.
    :param Tensor num_transitions: number of transitions taken. **Shape:** ``(num_chains,)``.
    :param Tensor is_taken: one where the last proposal was taken. **Shape:** ``(num_chains,)``.
    """

    position: Tensor
    energy: Tensor
    keys: Tensor
    num_transitions: Tensor
    is_taken: Tensor


class Population(NamedTuple):
    """Points near the posterior, and the kernel around each of them.

    :param Tensor points: **Shape:** ``(num_points, size)``.
    :param Tensor factor: of the kernel's scale matrix. **Shape:** ``(size, size)``.
    """

    points: Tensor
    factor: Tensor

    def log_density(self, position: Tensor) -> Tensor:
        """Log density of the mixture, but for a constant of all of them. **Shape:** ``(n,)``."""
        size = position.shape[-1]
        inverse = torch.linalg.solve_triangular(
            self.factor, torch.eye(size).to(self.factor), upper=False
        )
        distance = torch.cdist(position @ inverse.mT, self.points @ inverse.mT)
        logs = -0.5 * (_DEGREES + size) * torch.log1p(distance.square() / _DEGREES)
        return logs.logsumexp(-1) - self.factor.diagonal().log().sum()

    def sample(self, number: int) -> Tensor:
        """Draws of the mixture, from PyTorch's generator."""
        size, dtype = self.points.shape[1], self.points.dtype
        noise = torch.randn(number, size, dtype=dtype).to(self.points.device)
        choices = torch.rand(number, 2, dtype=dtype).clamp(min=1e-12).to(self.points.device)
        return self.draw(noise, choices)

    def draw(self, noise: Tensor, choices: Tensor) -> Tensor:
        """Draws of the mixture, from normal numbers and two uniform ones each."""
        size = (-choices[:, 1:].log()).sqrt()
        return self._pick(choices[:, 0]) + (noise / size) @ self.factor.mT

    def difference(self, noise: Tensor, choices: Tensor) -> Tensor:
        """Steps along the difference of two points, from two uniform numbers each."""
        length = 1.2 / math.sqrt(noise.shape[-1])
        apart = self._pick(choices[:, 0]) - self._pick(choices[:, 1])
        return length * apart + 0.1 * noise @ self.factor.mT

    def _pick(self, choice: Tensor) -> Tensor:
        number = len(self.points)
        return self.points[(choice * number).long().clamp(max=number - 1)]


class IndependenceMetropolis(VectorizedKernel):
    r"""Metropolis with proposals from a mixture that was fitted to the posterior beforehand.

    ``setup`` draws a population from the prior and moves it to the posterior by adaptive importance
    sampling [1], through powers of the weights that leave enough effective draws. Each point of the
    last population becomes the center of a Student t distribution. Three quarters of the proposals
    come from the mixture of these distributions, wherever the chain is. The others are steps along
    the difference of two points [2], for regions where the mixture has too little mass. The
    population no longer changes during the run, so that draws are from the exact posterior,
    whatever its shape, and chains run side by side.

    Use it for at most ten parameters whose posterior is skewed, curved or heavy-tailed, and whose
    density is costly for one chain and hardly more so for many: for hyperparameters, such as those
    of a :class:`~pyro_ext.models.nonparametric.FrequencyModel`. Draws are then hardly correlated,
    whereas gradient-based samplers need long trajectories. A model must see all of its data.

    :param model: a Pyro model, or ``None`` with a ``potential_fn``.
    :param potential_fn: maps one chain's dict of unconstrained parameters to a scalar; the
        population then starts around the initial parameters.
    :param int num_points: number of points of the population.
    :param float local_fraction: fraction of proposals that are steps from the chain's position, in
        (0, 1).
    :param init_strategy: where the population starts, one of
        :mod:`pyro.infer.autoguide.initialization`.
    :param options: ``backend``, as for :class:`~pyro_ext.inference.VectorizedKernel`, and
        ``steps_per_sample``, the number of transitions that one call of ``sample`` takes under
        Pyro's driver.
    :raises ValueError: for numbers out of range, or a model that subsamples.

    [1] O. Cappé, A. Guillin, J. M. Marin, C. P. Robert (2004), Population Monte Carlo.

    [2] C. J. F. ter Braak (2006), A Markov chain Monte Carlo version of the genetic algorithm
    differential evolution.

    Example::

        >>> from pyro_ext.inference import MCMC
        >>> def model(x):
        ...     scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("x", dist.Normal(0.0, scale), obs=x)
        >>> kernel = IndependenceMetropolis(model)
        >>> mcmc = MCMC(kernel, 100, num_chains=10, seed=0, progress=False)
        >>> draws = mcmc.run(torch.linspace(-2.0, 2.0, 50)).get_samples()["scale"]
        >>> draws.shape, round(float(draws.mean()), 1)
        (torch.Size([1000]), 1.2)
    """

    def __init__(
        self,
        model: Callable[..., Any] | None = None,
        *,
        num_points: int = 512,
        local_fraction: float = 0.25,
        init_strategy: InitStrategy = init_to_prior,
        **options: Unpack[VectorizedOptions],
    ) -> None:
        super().__init__(model, init_strategy=init_strategy, **options)
        self.num_points = checks.integer("num_points", num_points, 32)
        self.local_fraction = checks.number("local_fraction", local_fraction, above=0, below=1)
        self._known: Population | None = None

    @property
    def population(self) -> Population:
        """Population from which proposals are drawn.

        :raises RuntimeError: before ``setup``.
        """
        return self._made(self._known)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_known": None}

    def _function(self) -> BatchedFunction:
        return self.potential.value

    def _prepare(self) -> None:
        with seeded(0):
            points = self._first_points()
            energy = self._energy(points)
            number = self.num_points
            populations = [_fitted(points, _tempered(-energy, number), number)]
            points, energy = points[:0], energy[:0]
            for round_number in range(1, _MOST_ROUNDS + 1):
                fresh = populations[-1].sample(number)
                # The last few rounds together are draws of the mixture of their populations.
                populations = populations[-_NUM_POOLED:]
                kept = (len(populations) - 1) * number
                points = torch.cat([points[len(points) - kept :], fresh])
                energy = torch.cat([energy[len(energy) - kept :], self._energy(fresh)])
                log_weights = -energy - _log_mixture(populations, points)
                populations.append(_fitted(points, _tempered(log_weights, number), number))
                effective = _effective_number(log_weights)
                # Each round finds more of the tails, which are missing from the weights before.
                if round_number >= _LEAST_ROUNDS and effective > number:
                    break
        self._known = populations[-1]
        if effective < _FEW * self.num_points:
            warnings.warn(
                f"{len(points)} draws for the population are worth {effective:.0f}: the posterior "
                "may have too many parameters. Pass a larger num_points, or use NUTS",
                stacklevel=2,
            )

    def _moved(self, state: MetropolisState, position: Tensor) -> MetropolisState:
        return state._replace(position=position, energy=self._energy(position))

    def _first_points(self) -> Tensor:
        """Draws from the prior, or around the initial parameters, spread out and all different."""
        potential = self.potential
        if isinstance(potential, Potential):
            drawn = potential.init_chains(range(_NUM_STARTS), 0, self.init_strategy)
        else:
            drawn = {name: value[None] for name, value in self.initial_params.items()}
        # Equal ones would have all of the weight together, and the population would stay there.
        flat: Tensor = potential.layout.flatten(drawn).detach().unique(dim=0)
        points = flat[torch.arange(self.num_points) % len(flat)]
        noise = torch.randn(points.shape, dtype=points.dtype).to(points.device)
        return points + torch.where(torch.arange(len(points))[:, None] < len(flat), 0.0, noise)

    def _energy(self, position: Tensor) -> Tensor:
        """Return the potential, with infinity in place of NaN."""
        value = self.potential.value.over_any(position)
        return torch.where(value.isnan(), torch.inf, value)

    def _starts(self, numbers: Sequence[int], seed: int) -> dict[str, Tensor]:
        """Points of the population."""
        points = self.population.points
        keys = chain_keys(seed, numbers, points.device)
        step = torch.zeros((), dtype=torch.int64, device=points.device)
        choices = uniform(keys, step, 1, stream=_STREAM_OF_STARTS, dtype=points.dtype)
        return self.potential.layout.unflatten(self.population._pick(choices[:, 0]))

    def _init(self, position: Tensor, keys: Tensor) -> MetropolisState:
        count = torch.zeros(len(position), dtype=torch.int64, device=position.device)
        energy = self._energy(position)
        return MetropolisState(position, energy, keys, count, position.new_ones(len(position)))

    def _step(
        self,
        state: MetropolisState,
        function: Callable[[Tensor], Any],
        noise: Tensor,
        **schedules: Tensor,
    ) -> tuple[MetropolisState, Info]:
        population, position = self.population, state.position
        choices = uniform(
            state.keys, state.num_transitions[0], 6, stream=_STREAM_OF_CHOICES, dtype=noise.dtype
        )
        is_local = choices[:, 0] < self.local_fraction
        moved = position + population.difference(noise, choices[:, 2:4])
        proposal = torch.where(is_local[:, None], moved, population.draw(noise, choices[:, 4:6]))
        energy = function(proposal)
        return_ratio = population.log_density(position) - population.log_density(proposal)
        log_ratio = state.energy - energy + torch.where(is_local, 0.0, return_ratio)
        is_taken = choices[:, 1].log() < log_ratio  # false if the potential is NaN
        after = MetropolisState(
            torch.where(is_taken[:, None], proposal, position),
            torch.where(is_taken, energy, state.energy),
            state.keys.clone(),  # a compiled loop wants no state that is the one before
            state.num_transitions + 1,
            is_taken.to(noise.dtype),
        )
        return after, Info(state.energy)

    def _statistics(self, state: MetropolisState) -> dict[str, Tensor]:
        return {"acceptance_rate": state.is_taken}


def _log_mixture(populations: Sequence[Population], points: Tensor) -> Tensor:
    """Log density of draws of which each population gave as many, but for a constant."""
    return torch.stack([each.log_density(points) for each in populations]).logsumexp(0)


def _effective_number(log_weights: Tensor) -> float:
    """Count how many draws weighted ones are worth."""
    return float(1.0 / log_weights.softmax(0).square().sum())


def _tempered(log_weights: Tensor, number: int) -> Tensor:
    """Log weights to the largest power, one at most, that leaves enough of them."""
    low, high = 0.0, 1.0
    if _effective_number(log_weights) > _ENOUGH * number:
        return log_weights
    for _ in range(_NUM_HALVINGS):
        middle = 0.5 * (low + high)
        is_enough = _effective_number(middle * log_weights) > _ENOUGH * number
        low, high = (middle, high) if is_enough else (low, middle)
    return low * log_weights


def _fitted(points: Tensor, log_weights: Tensor, number: int) -> Population:
    """Return a population drawn from weighted points, with a kernel bandwidth by Scott's rule."""
    size, weights = points.shape[1], log_weights.softmax(0)
    centered = points - weights @ points
    covariance = centered.mT @ (weights[:, None] * centered)
    least = 1e-6 * covariance.diagonal().clamp(min=1e-20)
    factor = torch.linalg.cholesky(covariance + least.diag())
    width = _effective_number(log_weights) ** (-1.0 / (size + 4.0))
    chosen = weights.double().multinomial(number, replacement=True)
    return Population(points[chosen], width * factor)
