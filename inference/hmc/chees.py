"""Hamiltonian Monte Carlo over many chains, which choose the length of trajectories together."""

import math
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, NamedTuple, Unpack

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pyro_ext._lib import checks
from pyro_ext.inference.hmc.adaptation import restarted, updated
from pyro_ext.inference.hmc.kernels import SharedOptions, _Hamiltonian
from pyro_ext.inference.hmc.masses import HamiltonianState
from pyro_ext.inference.hmc.trajectories import (
    Draw,
    Outcome,
    Point,
    end_of_path,
    leapfrog,
    unscaled,
    where,
)
from pyro_ext.inference.vectorized import Chains, Draws
from pyro_ext.random import uniform

_LEAST_CHAINS = 8
_FIRST_LENGTH = 1.0
_MAX_STEPS, _MAX_WARMUP_STEPS = 1000, 256
_RATE, _FORGETTING, _MAX_UPDATE = 0.025, 0.95, 0.35
_MAX_ROWS = 64
_STREAM_OF_CHOICES = 1


class LengthSearch(NamedTuple):
    """Search for the length of trajectories, by stochastic gradients of its logarithm.

    :param Tensor log_length: logarithm of the length. **Shape:** ``(1,)``, as all.
    :param Tensor log_average: weighted mean of these, which becomes the final one.
    :param Tensor square: moving average of squared gradients, as of Adam.
    :param Tensor num_updates: number of transitions.
    """

    log_length: Tensor
    log_average: Tensor
    square: Tensor
    num_updates: Tensor


def begun(log_length: Tensor) -> LengthSearch:
    """Begin a search. **Shape:** ``(1,)``."""
    zero = torch.zeros_like(log_length)
    return LengthSearch(log_length, log_length.clone(), zero, zero.clone())


def lengthened(search: LengthSearch, slope: Tensor, step_size: Tensor) -> LengthSearch:
    """Climb the criterion by a step of Adam without momentum; stay where it is not finite."""
    number = search.num_updates + 1.0
    square = _FORGETTING * search.square + (1.0 - _FORGETTING) * slope.square()
    scale = (square / (1.0 - _FORGETTING**number)).sqrt()
    update = (_RATE * slope / scale.clamp(min=1e-30)).clamp(-_MAX_UPDATE, _MAX_UPDATE)
    least = step_size.log()
    log_length = (search.log_length + update).clamp(least, least + math.log(_MAX_STEPS))
    weight = number.rsqrt()
    log_average = weight * log_length + (1.0 - weight) * search.log_average
    is_finite = slope.isfinite() & (scale > 0)
    return where(is_finite, LengthSearch(log_length, log_average, square, number), search)


def criterion_slope(
    before: Tensor, after: Tensor, momentum: Tensor, rate: Tensor, time: Tensor
) -> Tensor:
    r"""Estimate the gradient of the criterion in the logarithm of the length [1].

    .. math:: \tfrac14 E (|x' - m'|^2 - |x - m|^2)^2

    It is the change of the estimator of the squared distance from the center :math:`m` (ChEES).

    :param Tensor before: starts, in units of the masses. **Shape:** ``(num_chains, size)``.
    :param Tensor after: proposals.
    :param Tensor momentum: at the proposals.
    :param Tensor rate: acceptance probabilities, zero of chains that do not count.
        **Shape:** ``(num_chains,)``.
    :param Tensor time: how long the trajectories were. **Shape:** ``(1,)``.
    :returns: **Shape:** ``(1,)``.
    """
    counts = rate > 0
    weights = rate / rate.sum().clamp(min=1e-30)
    # What is not finite has no weight, but zero times infinity would be no number.
    before, after, momentum = (
        where(counts, each, torch.zeros_like(each)) for each in (before, after, momentum)
    )
    apart = where(counts, before - before.sum(0) / counts.sum().clamp(min=1), before)
    gone = where(counts, after - weights @ after, after)
    growth = gone.square().sum(-1) - apart.square().sum(-1)
    return time * (weights @ (growth * (gone * momentum).sum(-1)))


class ChEESState(NamedTuple):
    """State of chains between two transitions.

    :param Tensor position: **Shape:** ``(num_chains, size)``.
    :param HamiltonianState chains: of HMC, with one step size and one factor for all.
    :param LengthSearch search: for the length of trajectories.
    """

    position: Tensor
    chains: HamiltonianState
    search: LengthSearch


class ChEES(_Hamiltonian):
    r"""Hamiltonian Monte Carlo whose trajectory length is tuned across many chains [1].

    During the warm-up, all chains together determine the step size, the mass matrix and the
    trajectory length. The length is the one that changes the squared distance from the center the
    most, which makes neighboring draws nearly independent. All chains take the same number of
    leapfrog steps, which varies from one transition to the next; after the warm-up it no longer
    depends on the chains.

    Use it with 16 or more chains that are cheap to run side by side: on a GPU, or with a small
    model. For four chains on a CPU, use :class:`~pyro_ext.inference.NUTS`.

    :param model: a Pyro model that sees all of its data, or ``None`` with a ``potential_fn``.
    :param float trajectory_length: a fixed length, in units of the masses: in standard deviations,
        once these have adapted. Trajectories are uniform fractions of it. By default the length is
        found in the warm-up.
    :param float target_accept_prob: target of the step size: the harmonic mean of the acceptance
        probabilities over chains.
    :param options: ``step_size``, ``adapt_step_size``, ``adapt_mass_matrix``, ``full_mass``,
        ``init_strategy``, ``potential_fn``, ``backend`` and ``steps_per_sample``, as for
        :class:`~pyro_ext.inference.NUTS`.
    :raises ValueError: for numbers out of range, fewer than 8 chains together, or a model that
        subsamples.

    [1] M. D. Hoffman, A. Radul, P. Sountsov (2021), An adaptive-MCMC scheme for setting trajectory
    lengths in Hamiltonian Monte Carlo.

    Example::

        >>> from pyro_ext.inference import MCMC
        >>> def model():
        ...     pyro.sample("x", dist.Normal(torch.zeros(2), torch.tensor([1.0, 10.0])).to_event(1))
        >>> mcmc = MCMC(ChEES(model), 50, 100, num_chains=32, seed=0, progress=False).run()
        >>> [round(float(each)) for each in mcmc.get_samples()["x"].std(0)]
        [1, 10]
    """

    def __init__(
        self,
        model: Callable[..., Any] | None = None,
        *,
        trajectory_length: float | None = None,
        target_accept_prob: float = 0.651,
        **options: Unpack[SharedOptions],
    ) -> None:
        super().__init__(
            model,
            target_accept_prob=target_accept_prob,
            share_mass_matrix=True,
            **options,
        )
        if trajectory_length is not None:
            trajectory_length = checks.number("trajectory_length", trajectory_length, above=0)
        self.trajectory_length = trajectory_length

    def settings(self) -> dict[str, Any]:
        """Keyword arguments of the constructor by name, except the model or potential."""
        found = super().settings()
        del found["share_mass_matrix"]  # which is always so
        return found

    def _make_loop(self) -> Any:
        return SimpleNamespace(errors=None)

    def _evaluate(self, position: Tensor) -> tuple[Tensor, Tensor]:
        """Potential and gradient of all chains."""
        function, errors = self._function(), self._made(self._loop).errors
        if errors is not None and function.single() is None:
            value, gradient = function.one_by_one(position, errors=errors)
        else:
            value, gradient = function(position)
        return value, gradient

    def _init(self, position: Tensor, keys: Tensor) -> ChEESState:  # type: ignore[override]
        if len(position) < _LEAST_CHAINS:
            raise ValueError(
                f"num_chains must be >= {_LEAST_CHAINS}, all run together, since chains tune each "
                f"other, got {len(position)}"
            )
        chains = super()._init(position, keys)
        length = position.new_full((1,), self.trajectory_length or _FIRST_LENGTH).log()
        return ChEESState(position, chains, begun(length))

    def _moved(self, state: ChEESState, position: Tensor) -> ChEESState:  # type: ignore[override]
        return state._replace(position=position, chains=super()._moved(state.chains, position))

    def _with_first_step_size(self, state: HamiltonianState, step: int) -> HamiltonianState:
        found = super()._with_first_step_size(state, step)
        is_finite = found.position.isfinite().all(-1) & found.search.log_step.isfinite()
        log_steps = torch.where(is_finite, found.search.log_step, 0.0)
        mean = log_steps.sum() / is_finite.sum().clamp(min=1)
        return found._replace(search=restarted(mean.exp().expand_as(found.value)))

    def _record(self, chains: Chains, targets: npt.NDArray[np.int64]) -> tuple[Chains, Draws]:
        state: ChEESState = chains.state
        wanted, made = {*targets.tolist()}, list[Outcome]()
        keys = state.chains.keys
        for first in range(chains.step, int(targets[-1]), _MAX_ROWS):
            number = min(_MAX_ROWS, int(targets[-1]) - first)
            momenta = self._momenta(state.chains, first, number)
            steps = torch.arange(first, first + number, device=keys.device)
            uniforms = uniform(keys, steps, 1, stream=_STREAM_OF_CHOICES, dtype=momenta.dtype)
            for step, momentum, choice in zip(
                range(first, first + number), momenta, uniforms[..., 0], strict=True
            ):
                state, drawn = self._transition(state, momentum, choice, step)
                if step + 1 in wanted:
                    made.append(drawn)
        recorded = Outcome(*map(torch.stack, zip(*made, strict=True)))
        after = replace(
            chains, step=int(targets[-1]), state=state, potential_energy=state.chains.value
        )
        return after, Draws(targets, recorded, recorded.value)

    def _transition(
        self, state: ChEESState, momentum: Tensor, choice: Tensor, step: int
    ) -> tuple[ChEESState, Outcome]:
        """Take a trajectory of each chain; returns also the draws."""
        before, search = state.chains, state.search
        step_size, factor = before.search.log_step[:1].exp(), before.factor
        is_warmup = step < self._warmup_steps
        most = _MAX_WARMUP_STEPS if is_warmup else _MAX_STEPS
        length = float(search.log_length.exp()) * van_der_corput(step + 1)
        number = max(1, min(most, math.ceil(length / float(step_size))))
        start = (before.position, before.gradient, before.value)
        origin = Draw(*start, before.value + 0.5 * momentum.square().sum(-1))
        point = Point(before.position, momentum, before.gradient)
        for _ in range(number):
            point, value, energy = leapfrog(point, self._evaluate, step_size, factor)
        reached = Draw(point.position, point.gradient, value, energy)
        counts = torch.full_like(before.num_steps, number)
        outcome, _ = end_of_path(origin, reached, choice, counts, step_size.expand_as(value))
        rate = outcome.acceptance_rate
        after = before._replace(**outcome._asdict(), num_leapfrogs=before.num_leapfrogs + counts)
        if is_warmup:
            is_finite = before.position.isfinite().all(-1)
            if self.adapt_step_size:
                mean = is_finite.sum() / torch.where(is_finite, 1.0 / rate, 0.0).sum()
                pooled = mean.nan_to_num(nan=0.0).expand_as(rate)
                found = updated(after.search, pooled, self.target_accept_prob)
                after = after._replace(search=found)
            if self.trajectory_length is None:
                slope = criterion_slope(
                    unscaled(factor, before.position),
                    unscaled(factor, point.position),
                    point.momentum,
                    rate,
                    step_size * number,
                )
                search = lengthened(search, slope, step_size)
                if step + 1 == self._warmup_steps:
                    search = search._replace(log_length=search.log_average)
                elif step + 1 in self._masses.windows.switches:
                    search = begun(search.log_length)  # other units, and other slopes
            row = Outcome(*(part[None] for part in outcome))
            after = self._adapted(after, before.position, row, step, step + 1)
        return ChEESState(after.position, after, search), outcome

    def _statistics(self, state: ChEESState | HamiltonianState | Outcome) -> dict[str, Tensor]:
        return super()._statistics(state.chains if isinstance(state, ChEESState) else state)


def van_der_corput(number: int) -> float:
    """Return an element of the sequence that fills the unit interval evenly: bits in reverse.

    Example::

        >>> [van_der_corput(number) for number in range(1, 5)]
        [0.5, 0.25, 0.75, 0.125]
    """
    bits = f"{number:b}"[::-1]
    return float(int(bits, 2) / 2 ** len(bits))
