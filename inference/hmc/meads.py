"""Hamiltonian Monte Carlo that many chains tune for each other, as a kernel."""

import contextlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Unpack

import torch
from pyro.infer.autoguide.initialization import init_to_uniform
from torch import Tensor

from pyro_ext._lib import checks
from pyro_ext.inference.vectorized import (
    Info,
    ValueAndGradient,
    VectorizedKernel,
    VectorizedOptions,
)
from pyro_ext.posterior.paths import find_paths
from pyro_ext.potential import InitStrategy, Potential
from pyro_ext.random import normal, spawn_seed, uniform

_NUM_FOLDS = 4
_LEAST_CHAINS = 4 * _NUM_FOLDS
_STREAM_OF_STARTS, _STREAM_OF_FOLDS, _STREAM_OF_PATHS = 3, 2, 5
_NUM_PATHS = 8


class MEADSState(NamedTuple):
    """State of chains.

    :param Tensor position: **Shape:** ``(num_chains, size)``, as momentum and gradient.
    :param Tensor momentum: standard normal, in units of the fold's standard deviations.
    :param Tensor gradient: of the potential at the position.
    :param Tensor value: the potential there. **Shape:** ``(num_chains,)``, as those below.
    :param Tensor slice: a number in [-1, 1]; the logarithm of its size is what a ratio is compared
        with.
    :param Tensor keys: keys of the chains' random streams. **Shape:** ``(num_chains, 2)``.
    :param Tensor num_transitions: number of steps taken.
    :param Tensor is_taken: one where the last proposal was taken.
    :param Tensor step_size: of the last step.
    """

    position: Tensor
    momentum: Tensor
    gradient: Tensor
    value: Tensor
    slice: Tensor
    keys: Tensor
    num_transitions: Tensor
    is_taken: Tensor
    step_size: Tensor


class MEADS(VectorizedKernel):
    r"""Generalized Hamiltonian Monte Carlo with many chains that tune each other [1].

    A step is a single leapfrog step, and takes one gradient. It renews only part of the momentum.
    A slowly moving slice variable accepts or rejects it, so that rejections, which reverse the
    chain, come in clusters. Standard deviations, step size and the renewed part of the momentum are
    estimated from the positions and gradients of other chains: the chains form four random folds,
    and each fold is tuned by the one before it. At each step one fold stands still, which makes the
    others' updates conditional, so that the tuning never has to end.

    Use it with 64 chains or more, on a model that sees all of its data. Neighboring states are
    similar: by default :class:`~pyro_ext.inference.MCMC` keeps every tenth, after a warm-up of at
    least 1,000 steps. All chains must run together, and the draws of a chain depend on the others.

    :param model: a Pyro model, or ``None`` with a ``potential_fn``.
    :param float step_size: in units of the largest stable step size, which is estimated from
        gradients.
    :param float damping: at time ``t``, the number of steps times the step size, momenta are
        renewed at a rate of at least ``damping / t``. This matters only early in a run.
    :param init_strategy: one of :mod:`pyro.infer.autoguide.initialization`. From there, an
        optimizer follows eight paths, and chains start at draws from their normal approximations,
        as of :func:`~pyro_ext.posterior.pathfinder`, the same number from each.
    :param options: ``potential_fn``, ``backend``, as for
        :class:`~pyro_ext.inference.VectorizedKernel`, and ``steps_per_sample``.
    :raises ValueError: for numbers out of range, fewer than 16 chains together, or a model that
        subsamples.

    [1] M. D. Hoffman, P. Sountsov (2022), Tuning-free generalized Hamiltonian Monte Carlo,
    algorithm 3.

    Example::

        >>> from pyro_ext.inference import MCMC
        >>> def model():
        ...     pyro.sample("x", dist.Normal(torch.zeros(2), torch.tensor([1.0, 10.0])).to_event(1))
        >>> mcmc = MCMC(MEADS(model), 20, num_chains=64, seed=0, progress=False)
        >>> [round(float(each)) for each in mcmc.run().get_samples()["x"].std(0)]
        [1, 10]
    """

    adapts = True  # the chains' spread, from which settings follow, needs a warm-up
    least_warmup_steps = 1000
    usual_thinning = 10

    def __init__(
        self,
        model: Callable[..., Any] | None = None,
        *,
        step_size: float = 0.5,
        damping: float = 1.0,
        init_strategy: InitStrategy = init_to_uniform,
        **options: Unpack[VectorizedOptions],
    ) -> None:
        super().__init__(model, init_strategy=init_strategy, **options)
        self.step_size = checks.number("step_size", step_size, above=0)
        self.damping = checks.number("damping", damping, above=0)

    def _starts(self, numbers: Sequence[int], seed: int) -> dict[str, Tensor]:
        params, potential = super()._starts(numbers, seed), self.potential
        assert isinstance(potential, Potential)  # others have no starts
        rows = potential.layout.flatten(params)
        # From afar, scales of far chains are those of the way and not of the posterior.
        with contextlib.suppress(ValueError):  # no path has a normal approximation
            paths = find_paths(
                potential,
                spawn_seed(seed, _STREAM_OF_PATHS),
                self.init_strategy,
                num_paths=_NUM_PATHS,
                num_samples=-(-len(numbers) // _NUM_PATHS),
            )
            positions = paths.positions[paths.log_densities.isfinite()]
            rows = positions[torch.linspace(0, len(positions) - 1, len(rows)).long()]
        return potential.layout.unflatten(rows)

    def _init(self, position: Tensor, keys: Tensor) -> MEADSState:
        if len(position) < _LEAST_CHAINS:
            raise ValueError(
                f"num_chains must be >= {_LEAST_CHAINS}, all run together, since chains tune each "
                f"other, got {len(position)}"
            )
        value, gradient = self.potential.gradient.over_any(position)
        start = torch.zeros((), dtype=torch.int64, device=keys.device)
        size, dtype = position.shape[-1], position.dtype
        momentum = normal(keys, start, size, stream=_STREAM_OF_STARTS, dtype=dtype)
        height = 2.0 * uniform(keys, start, 1, stream=_STREAM_OF_FOLDS, dtype=dtype)[:, 0] - 1.0
        count = torch.zeros(len(position), dtype=torch.int64, device=position.device)
        one = torch.ones_like(value)
        return MEADSState(
            position, momentum, gradient, value, height, keys, count, one, one.clone()
        )

    def _moved(self, state: MEADSState, position: Tensor) -> MEADSState:
        value, gradient = self.potential.gradient.over_any(position)
        return state._replace(position=position, value=value, gradient=gradient)

    def _step(
        self,
        state: MEADSState,
        function: ValueAndGradient,
        noise: Tensor,
        **schedules: Tensor,
    ) -> tuple[MEADSState, Info]:
        number = state.num_transitions[0] + 1
        fold = _folds(state.keys, number, noise.dtype)
        scale, step_size, damping = self._tuned(state, fold, number)
        renewed = 1.0 - torch.exp(-2.0 * step_size * damping)
        kept = (1.0 - renewed).sqrt()[:, None]
        momentum = kept * state.momentum + renewed.sqrt()[:, None] * noise
        height = torch.remainder(state.slice + 1.0 + 0.5 * renewed, 2.0) - 1.0

        half = momentum - 0.5 * step_size[:, None] * scale * state.gradient
        proposal = state.position + step_size[:, None] * scale * half
        value, gradient = function(proposal)
        end = half - 0.5 * step_size[:, None] * scale * gradient
        log_ratio = state.value - value + 0.5 * (momentum.square() - end.square()).sum(-1)
        is_taken = height.abs().log() < log_ratio  # false if the potential is NaN
        is_moving = fold != number % _NUM_FOLDS
        taken, rejected = is_taken & is_moving, ~is_taken & is_moving
        column, still = taken[:, None], ~is_moving[:, None]
        after = MEADSState(
            torch.where(column, proposal, state.position),
            torch.where(still, state.momentum, torch.where(column, end, -momentum)),
            torch.where(column, gradient, state.gradient),
            torch.where(taken, value, state.value),
            torch.where(
                taken,
                height * torch.exp(-torch.where(taken, log_ratio, 0.0)),
                torch.where(rejected, height, state.slice),
            ),
            state.keys,
            state.num_transitions + 1,
            torch.where(is_moving, is_taken.to(noise.dtype), state.is_taken),
            step_size,
        )
        return after, Info(after.value.clone())

    def _tuned(
        self, state: MEADSState, fold: Tensor, number: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Scale, step size and damping of each chain, from the fold before its own."""
        folds = torch.arange(_NUM_FOLDS, device=fold.device)
        # A chain that is not finite tells the others nothing.
        is_finite = state.position.isfinite().all(-1) & state.gradient.isfinite().all(-1)
        members = ((folds[:, None] == fold) & is_finite).to(state.position.dtype)
        weights = members / members.sum(-1, keepdim=True).clamp(min=1.0)
        finite = is_finite[:, None]
        position = torch.where(finite, state.position, 0.0)
        gradient = torch.where(finite, state.gradient, 0.0)
        mean = weights @ position
        centered = torch.where(finite, position - mean[fold], 0.0)
        deviation = (weights @ centered.square()).sqrt().clamp(min=1e-10)
        # Gradients have the mean zero, and a larger one early on shortens the steps as it should.
        slope = gradient * deviation[fold]
        step_size = self.step_size * _largest(slope, members, is_centered=False).rsqrt()
        step_size = step_size.clamp(max=1.0)
        damping = torch.maximum(
            _largest(centered / deviation[fold], members, is_centered=True).rsqrt(),
            self.damping / (number * step_size),
        )
        before = (fold - 1) % _NUM_FOLDS
        return deviation[before], step_size[before], damping[before]

    def _statistics(self, state: MEADSState) -> dict[str, Tensor]:
        return {"acceptance_rate": state.is_taken, "step_size": state.step_size}


def _folds(keys: Tensor, number: Tensor, dtype: torch.dtype) -> Tensor:
    """Assign chains to folds at random, again after each of the folds has stood still once."""
    order = uniform(keys, number // _NUM_FOLDS, 1, stream=_STREAM_OF_FOLDS, dtype=dtype)[:, 0]
    # Which of two equal numbers comes first does not matter, but one of them has to.
    index = torch.arange(len(order), device=order.device)
    is_before = (order < order[:, None]) | ((order == order[:, None]) & (index < index[:, None]))
    return is_before.sum(-1) * _NUM_FOLDS // len(order)


def _largest(vectors: Tensor, members: Tensor, *, is_centered: bool) -> Tensor:
    """Largest eigenvalue of each fold's covariance, as the mean weighted by eigenvalues [1].

    Shapes: vectors (num_chains, size); members (num_folds, num_chains), one where a chain counts.
    """
    trace, squares = _traces(vectors, members, is_centered=is_centered)
    trace = trace.clamp(min=1e-30)
    # No mean weighted by eigenvalues is below the one with equal weights.
    return torch.maximum(squares / trace, trace / vectors.shape[-1])


def _traces(vectors: Tensor, members: Tensor, *, is_centered: bool) -> tuple[Tensor, Tensor]:
    """Traces of each fold's covariance and of its square, without bias for any distribution.

    Products of a vector with itself do not count: of n vectors they would add size / n to the mean
    weighted by eigenvalues. Vectors that are centered at their own mean are corrected for that [2].

    [2] T. Himeno, T. Yamada (2014), Estimations for some functions of covariance matrix in high
    dimension under non-normality and its applications.
    """
    products = vectors @ vectors.mT
    own, n = products.diagonal(), members.sum(-1)
    total, fourth = members @ own, members @ own.square()
    apart = ((members @ products.square()) * members).sum(-1) - fourth
    if not is_centered:
        return total / n.clamp(min=1.0), apart / (n * (n - 1.0)).clamp(min=1.0)
    before, two, three = ((n - k).clamp(min=1.0) for k in (1.0, 2.0, 3.0))
    pull = (2.0 * fourth - total.square() / before) / two
    return total / before, (apart - pull) / (n.clamp(min=1.0) * three)
