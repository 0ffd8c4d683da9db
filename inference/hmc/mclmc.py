"""Microcanonical Langevin Monte Carlo without an accept step, as a kernel."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, Unpack

import numpy as np
import numpy.typing as npt
import torch
from pyro.infer.autoguide.initialization import init_to_uniform
from torch import Tensor

from pyro_ext._lib import checks
from pyro_ext.inference.hmc.adaptation import (
    Moments,
    add_draw,
    first_factor,
    fisher_factor,
    new_moments,
)
from pyro_ext.inference.hmc.kernels import check_directions, check_warmup, starts_of_paths
from pyro_ext.inference.hmc.trajectories import Point, steered, where
from pyro_ext.inference.vectorized import (
    Chains,
    Draws,
    Info,
    ValueAndGradient,
    VectorizedKernel,
    VectorizedOptions,
)
from pyro_ext.potential import InitStrategy
from pyro_ext.random import normal

_STREAM_OF_STARTS = 3
_FIRST_STEP_SIZE = 0.25
_STEPS_PER_UPDATE = 8
_ENDS_OF_WINDOWS = (0.05, 0.1, 0.2, 0.35, 0.6)
_END_OF_SEARCH = 0.7
_NUM_BATCHES = 8
# Weights of energy errors in the search for the step size [1, in the code of its authors].
_KEPT = 149.0 / 151.0
_WIDTH = 9.0
_LEAST_SHARE = 1e-8
_SMALLER = 0.8
_LENGTH_PER_TIME = 0.4


class MicrocanonicalState(NamedTuple):
    """What a step of each chain takes and returns.

    :param Tensor position: **Shape:** ``(num_chains, size)``, as the next four.
    :param Tensor direction: unit vector of the momentum.
    :param Tensor gradient: of the potential at the position.
    :param Tensor scale: standard deviations, in whose units steps are taken.
    :param Tensor value: the potential. **Shape:** ``(num_chains,)``, as those below.
    :param Tensor energy_error: change of the energy in the last step.
    :param Tensor diverging: whether the last step was undone, since it led to no finite energy.
    :param Tensor step_size: of each coordinate, in standard deviations.
    :param Tensor length: over which directions lose their memory, in the same units.
    """

    position: Tensor
    direction: Tensor
    gradient: Tensor
    scale: Tensor
    value: Tensor
    energy_error: Tensor
    diverging: Tensor
    step_size: Tensor
    length: Tensor


class Tuning(NamedTuple):
    """What the warm-up has seen so far.

    :param Tensor errors: weighted sum of energy errors over sixth powers of step sizes.
        **Shape:** ``(num_chains,)``, as the next two.
    :param Tensor weight: sum of the weights.
    :param Tensor most: largest step size that may be tried.
    :param Moments shape: of positions and gradients side by side.
    :param Moments draws: of positions, for their autocorrelation time.
    :param Moments batches: of means of batches of positions.
    :param Tensor batch: sum of the positions of this batch. **Shape:** ``(num_chains, size)``.
    """

    errors: Tensor
    weight: Tensor
    most: Tensor
    shape: Moments
    draws: Moments
    batches: Moments
    batch: Tensor


class MCLMCState(NamedTuple):
    """State of chains between two steps.

    :param Tensor position: **Shape:** ``(num_chains, size)``.
    :param MicrocanonicalState chains: of the steps.
    :param Tuning tuning: of the warm-up.
    """

    position: Tensor
    chains: MicrocanonicalState
    tuning: Tuning


class MCLMC(VectorizedKernel):
    r"""Microcanonical Langevin Monte Carlo [1]: one gradient per step, and biased draws.

    Momenta are unit vectors that turn toward high density and slowly lose their memory. No step is
    ever rejected, so steps can be long in high dimensions. The price is a bias, which the warm-up
    controls through the error of the energy per step and dimension. With the default, variances of
    normal posteriors are too large by about 4%, comparable to the error of 1,500 independent draws.
    :class:`MAMS` has the same dynamics without a bias; if the bias matters, use it or
    :class:`~pyro_ext.inference.NUTS`. Each run ends with a warning that says so.

    Neighboring states are similar: by default :class:`~pyro_ext.inference.MCMC` keeps every tenth.
    In the warm-up, of at least 1,000 steps by default, each chain finds a step size and the
    standard deviations of the posterior (from draws and their gradients, as in
    :class:`~pyro_ext.inference.NUTS`), and in the last third the decoherence length.

    :param model: a Pyro model that sees all of its data and has at least two unknowns, or ``None``
        with a ``potential_fn``.
    :param float step_size: step size of each coordinate, in standard deviations. If it adapts, this
        is the first guess.
    :param float energy_variance: mean squared energy error of a step, per dimension, to which step
        sizes adapt. The bias of variances grows with its cube root.
    :param float decoherence_length: distance, in standard deviations of each coordinate, over which
        directions lose their memory; by default 0.4 times the distance between independent draws.
    :param bool adapt_step_size: whether step sizes adapt in the warm-up.
    :param bool adapt_mass_matrix: whether standard deviations adapt in the warm-up; otherwise they
        are one.
    :param init_strategy: one of :mod:`pyro.infer.autoguide.initialization`. From there, an
        optimizer leads each chain to its start, a draw of :func:`~pyro_ext.posterior.pathfinder`.
    :param options: ``potential_fn`` and ``backend``, as for
        :class:`~pyro_ext.inference.VectorizedKernel`, and ``steps_per_sample``.
    :raises ValueError: for numbers out of range, or a model that subsamples or has one unknown.

    [1] J. Robnik, G. B. De Luca, E. Silverstein, U. Seljak (2023), Microcanonical Hamiltonian
    Monte Carlo.

    Example::

        >>> import warnings
        >>> from pyro_ext.inference import MCMC
        >>> scale = torch.logspace(-1, 1, 20)
        >>> def model():
        ...     pyro.sample("x", dist.Normal(torch.zeros(20), scale).to_event(1))
        >>> mcmc = MCMC(MCLMC(model), 250, num_chains=4, seed=0, progress=False)
        >>> with warnings.catch_warnings(action="ignore"):  # that draws are biased
        ...     draws = mcmc.run().get_samples()["x"]
        >>> bool(((draws / scale).std(0).log().abs() < 0.15).all())
        True
    """

    is_biased = True
    least_warmup_steps = 1000
    usual_thinning = 10
    _operations_per_evaluation = 100

    def __init__(
        self,
        model: Callable[..., Any] | None = None,
        *,
        step_size: float = _FIRST_STEP_SIZE,
        energy_variance: float = 5e-4,
        decoherence_length: float | None = None,
        adapt_step_size: bool = True,
        adapt_mass_matrix: bool = True,
        init_strategy: InitStrategy = init_to_uniform,
        **options: Unpack[VectorizedOptions],
    ) -> None:
        super().__init__(model, init_strategy=init_strategy, **options)
        self.step_size = checks.number("step_size", step_size, above=0)
        self.energy_variance = checks.number("energy_variance", energy_variance, above=0)
        if decoherence_length is not None:
            checks.number("decoherence_length", decoherence_length, above=0)
        self.decoherence_length = decoherence_length
        self.adapt_step_size = checks.boolean("adapt_step_size", adapt_step_size)
        self.adapt_mass_matrix = checks.boolean("adapt_mass_matrix", adapt_mass_matrix)
        self._windows: list[int] = []
        self._end_of_search = self._warmup_steps = 0

    @property
    def adapts(self) -> bool:
        """Tell whether the kernel needs a warm-up."""
        return self.adapt_step_size or self.adapt_mass_matrix or self.decoherence_length is None

    def setup(self, warmup_steps: int, *args: Any, **kwargs: Any) -> None:
        """Build the potential of the model and its data, and plan the warm-up."""
        check_warmup(self, warmup_steps, self.adapt_step_size)
        self._windows = [int(part * warmup_steps) for part in _ENDS_OF_WINDOWS]
        self._end_of_search = int(_END_OF_SEARCH * warmup_steps)
        self._warmup_steps = warmup_steps
        super().setup(warmup_steps, *args, **kwargs)

    def _starts(self, numbers: Sequence[int], seed: int) -> dict[str, Tensor]:
        return starts_of_paths(self, super()._starts(numbers, seed), numbers, seed)

    def _prepare(self) -> None:
        check_directions(self)

    def _init(self, position: Tensor, keys: Tensor) -> MCLMCState:
        value, gradient = self.potential.gradient.over_any(position)
        start = torch.zeros((), dtype=torch.int64, device=keys.device)
        size, zero = position.shape[-1], torch.zeros_like(value)
        noise = normal(keys, start, size, stream=_STREAM_OF_STARTS, dtype=position.dtype)
        scale = torch.ones_like(position)
        if self.adapt_mass_matrix and self._warmup_steps:
            scale = first_factor(gradient)
        chains = MicrocanonicalState(
            position,
            noise / noise.norm(dim=-1, keepdim=True),
            gradient,
            scale,
            value,
            zero,
            zero > 0,
            torch.full_like(value, self.step_size),
            torch.full_like(value, self.decoherence_length or 1.0),
        )
        shape, moments = new_moments(position.repeat(1, 2)), new_moments(position)
        most = torch.full_like(value, math.inf)
        tuning = Tuning(
            zero, zero.clone(), most, shape, moments, moments, torch.zeros_like(position)
        )
        return MCLMCState(position, chains, tuning)

    def _moved(self, state: MCLMCState, position: Tensor) -> MCLMCState:
        value, gradient = self.potential.gradient.over_any(position)
        chains = state.chains._replace(position=position, value=value, gradient=gradient)
        return state._replace(position=position, chains=chains)

    def _step(
        self,
        state: MicrocanonicalState,
        function: ValueAndGradient,
        noise: Tensor,
        **schedules: Tensor,
    ) -> tuple[MicrocanonicalState, Info]:
        renewal = torch.expm1(2.0 * state.step_size / state.length).div(noise.shape[-1]).sqrt()
        direction = state.direction + renewal[:, None] * noise
        direction = direction / direction.norm(dim=-1, keepdim=True)
        before = Point(state.position, direction, state.gradient)
        (position, direction, gradient), value, change = steered(
            before, function, state.step_size, state.scale
        )
        error = change + value - state.value
        is_good = error.isfinite() & gradient.isfinite().all(-1)
        undone = state._replace(direction=noise / noise.norm(dim=-1, keepdim=True))
        moved = state._replace(position=position, direction=direction, gradient=gradient)
        after = where(is_good, moved._replace(value=value, energy_error=error), undone)
        return after._replace(diverging=~is_good), Info(after.value.clone())

    # The warm-up ---------------------------------------------------------------------------------

    def _record(self, chains: Chains, targets: npt.NDArray[np.int64]) -> tuple[Chains, Draws]:
        state: MCLMCState = chains.state
        tuning, inner = state.tuning, replace(chains, state=state.chains)
        parts: list[Draws] = []
        changes = {*self._windows, self._end_of_search, self._warmup_steps}
        while inner.step < targets[-1]:
            step = inner.step
            if step >= self._warmup_steps:
                inner, made = super()._record(inner, targets[targets > step])
                parts.append(made)
                continue
            ahead = step + _STEPS_PER_UPDATE - step % _STEPS_PER_UPDATE
            end = min(ahead, int(targets[-1]), *(each for each in changes if each > step))
            every = np.arange(step, end) + 1
            inner, made = super()._record(inner, every)
            for number, row in enumerate(zip(*made.state, strict=True), step):
                tuning = self._seen(tuning, MicrocanonicalState(*row), number)
            if end == ahead or end in changes:  # and not where a run happens to stop
                settings, tuning = self._tuned(inner.state, tuning, end)
                inner = replace(inner, state=settings)
            is_wanted = np.isin(every, targets)
            rows = torch.from_numpy(is_wanted.nonzero()[0]).to(made.potential_energy.device)
            kept = MicrocanonicalState(*(part[rows] for part in made.state))
            parts.append(Draws(every[is_wanted], kept, made.potential_energy[rows]))
        recorded = MicrocanonicalState(
            *(torch.cat(pieces) for pieces in zip(*(part.state for part in parts), strict=True))
        )
        energy = torch.cat([part.potential_energy for part in parts])
        after = replace(inner, state=MCLMCState(inner.state.position, inner.state, tuning))
        return after, Draws(targets, recorded, energy)

    def _seen(self, tuning: Tuning, made: MicrocanonicalState, step: int) -> Tuning:
        """Take a step of the warm-up into account."""
        is_good = ~made.diverging
        if step < self._end_of_search:
            allowed = made.position.shape[-1] * self.energy_variance
            share = made.energy_error.square() / allowed + _LEAST_SHARE
            weight = torch.exp(-0.5 * (share.log() / _WIDTH).square())
            errors = _KEPT * tuning.errors + weight * share / made.step_size.pow(6)
            most = torch.minimum(tuning.most, _SMALLER * made.step_size)
            pair = torch.cat([made.position, made.gradient], -1)
            return tuning._replace(
                errors=torch.where(is_good, errors, tuning.errors),
                weight=torch.where(is_good, _KEPT * tuning.weight + weight, tuning.weight),
                most=torch.where(is_good, tuning.most, most),
                shape=add_draw(tuning.shape, pair, is_good),
            )
        batches, batch = tuning.batches, tuning.batch + made.position
        if (step + 1 - self._end_of_search) % self._batch_size == 0:
            batches = add_draw(batches, batch / self._batch_size)
            batch = torch.zeros_like(batch)
        draws = add_draw(tuning.draws, made.position)
        return tuning._replace(draws=draws, batches=batches, batch=batch)

    @property
    def _batch_size(self) -> int:
        """Steps in a batch of those from which the decoherence length follows."""
        return max(1, (self._warmup_steps - self._end_of_search) // _NUM_BATCHES)

    def _tuned(
        self, state: MicrocanonicalState, tuning: Tuning, end: int
    ) -> tuple[MicrocanonicalState, Tuning]:
        """Settings after a part of the warm-up."""
        if self.adapt_step_size and end <= self._end_of_search:
            found = (tuning.errors / tuning.weight).pow(-1.0 / 6.0)
            found = torch.where(found.isfinite(), found, state.step_size)
            state = state._replace(step_size=torch.minimum(found, tuning.most))
        if self.adapt_mass_matrix and end in self._windows:
            state = state._replace(scale=fisher_factor(tuning.shape, state.scale))
            tuning = tuning._replace(shape=new_moments(tuning.shape.mean))
            if self.adapt_step_size:  # which is in other units from here on
                zero, one = torch.zeros_like(state.value), torch.ones_like(state.value)
                tuning = tuning._replace(errors=zero, weight=zero, most=math.inf * one)
                state = state._replace(step_size=_FIRST_STEP_SIZE * one)
        if self.decoherence_length is None and end == self._warmup_steps:
            spread, variance = (
                each.squares / (each.number - 1.0)[:, None]
                for each in (tuning.batches, tuning.draws)
            )
            time = (self._batch_size * spread / variance).nanmean(-1)
            length = _LENGTH_PER_TIME * state.step_size * time
            is_known = length.isfinite() & (length > 0)
            state = state._replace(length=torch.where(is_known, length, state.length))
        return state, tuning

    def _statistics(self, state: MCLMCState | MicrocanonicalState) -> dict[str, Tensor]:
        own = state.chains if isinstance(state, MCLMCState) else state
        return {
            "energy_error": own.energy_error,
            "diverging": own.diverging,
            "step_size": own.step_size,
        }
