"""Hamiltonian Monte Carlo in the coordinates of a Laplace approximation, as a kernel."""

import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Unpack

import torch
from torch import Tensor

from pyro_ext._lib import checks
from pyro_ext.inference.hmc.transitions import hamiltonian_transition
from pyro_ext.inference.vectorized import (
    Info,
    ValueAndGradient,
    VectorizedKernel,
    VectorizedOptions,
)
from pyro_ext.posterior.modes import finite_starts, minimum, whitening_factor
from pyro_ext.potential import InitStrategy, Potential, init_to_suggested
from pyro_ext.random import chain_keys, normal, uniform

_FIRST_NUMBER = 3
_MOST_STEPS = 48
_ENOUGH = 0.8
_FEW = 0.3
_PILOT_CHAINS = 16
_PILOT_TRANSITIONS = 10
_JITTER = 0.2
_STREAM_OF_STARTS, _STREAM_OF_CHOICES = 2, 1


class HMCState(NamedTuple):
    """State of chains.

    :param Tensor position: **Shape:** ``(num_chains, size)``.
    :param Tensor keys: keys of the chains' random streams. **Shape:** ``(num_chains, 2)``.
    :param Tensor num_transitions: number of transitions taken. **Shape:** ``(num_chains,)``.
    :param Tensor is_taken: one where the last proposal was taken. **Shape:** ``(num_chains,)``.
    """

    position: Tensor
    keys: Tensor
    num_transitions: Tensor
    is_taken: Tensor


class _Preparation(NamedTuple):
    """Preparation for sampling: the mode, the covariance factor and the trajectory length.

    :param Tensor mode: **Shape:** ``(size,)``.
    :param Tensor factor: of the covariance there. **Shape:** ``(size, size)``.
    :param int num_steps: leapfrog steps of a trajectory.
    """

    mode: Tensor
    factor: Tensor
    num_steps: int


class LaplaceHMC(VectorizedKernel):
    r"""Hamiltonian Monte Carlo in coordinates that make the posterior nearly a unit Gaussian [1].

    The coordinates come from the mode and the second derivatives there. Trajectories of nearly a
    quarter of a period then give draws that are hardly correlated, and chains run side by side. A
    Metropolis step accepts or rejects each proposal, so that draws are from the exact posterior,
    whatever its shape. The farther it is from a Gaussian, the more proposals are rejected; see the
    sample statistic ``acceptance_rate``. Chains start at draws from the Laplace approximation, and
    hardly need a warm-up.

    Use it for posteriors of moderate size with a single relevant mode, such as those of a coreset:
    the second derivatives for a thousand latent values take a thousand gradients. A model must see
    all of its data. For several modes or a difficult shape, use
    :class:`~pyro_ext.inference.NUTS`.

    :param model: a Pyro model, or ``None`` with a ``potential_fn``.
    :param potential_fn: maps one chain's dict of unconstrained parameters to a scalar. It requires
        initial parameters, from which the search for the mode also starts.
    :param int num_steps: number of leapfrog steps of a trajectory. By default, the smallest of 3,
        6, 12, 24 and 48 for which at least 80% of trial proposals are accepted, or else 48.
    :param float trajectory_length: in standard deviations. Lengths vary at random by up to a fifth.
    :param init_strategy: where the search for the mode starts, one of
        :mod:`pyro.infer.autoguide.initialization`.
    :param options: ``backend``, as for :class:`~pyro_ext.inference.VectorizedKernel`, and
        ``steps_per_sample``, the number of transitions that one call of ``sample`` takes under
        Pyro's driver.
    :raises ValueError: for numbers out of range, or a model that subsamples.

    [1] R. M. Neal (2011), MCMC using Hamiltonian dynamics, section 4.1.

    Example::

        >>> from pyro_ext.inference import MCMC
        >>> def model(x):
        ...     scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("x", dist.Normal(0.0, scale), obs=x)
        >>> mcmc = MCMC(LaplaceHMC(model), 100, num_chains=10, seed=0, progress=False)
        >>> draws = mcmc.run(torch.linspace(-2.0, 2.0, 50)).get_samples()["scale"]
        >>> draws.shape, round(float(draws.mean()), 1)
        (torch.Size([1000]), 1.2)
    """

    num_steps: int | None = None

    def __init__(
        self,
        model: Callable[..., Any] | None = None,
        *,
        num_steps: int | None = None,
        trajectory_length: float = 1.5,
        init_strategy: InitStrategy = init_to_suggested,
        **options: Unpack[VectorizedOptions],
    ) -> None:
        super().__init__(model, init_strategy=init_strategy, **options)
        if num_steps is not None:
            num_steps = checks.integer("num_steps", num_steps, 1)
        self.num_steps = num_steps
        self.trajectory_length = checks.number("trajectory_length", trajectory_length, above=0)
        self._known: _Preparation | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_known": None}

    @property
    def _preparation(self) -> _Preparation:
        return self._made(self._known)

    def _prepare(self) -> None:
        potential = self.potential
        layout, density = potential.layout, self.potential_fn
        if isinstance(potential, Potential):
            density = potential.potential
            values = potential.init_chains(range(1), 0, self.init_strategy)
        else:
            values = {name: value[None] for name, value in self.initial_params.items()}
        assert density is not None
        value: Callable[[dict[str, Tensor]], Tensor] = density
        mode = minimum(potential, layout.flatten(values)[0].detach())
        factor = _factor(lambda flat: value(layout.unflatten(flat)), mode)
        number = self.num_steps or _FIRST_NUMBER
        self._known = made = _Preparation(mode, factor, number)
        if self.num_steps is not None:
            return
        rate = self._trial()
        while rate < _ENOUGH and number < _MOST_STEPS:
            number *= 2
            self._known = made = made._replace(num_steps=number)
            rate = self._trial()
        if rate < _FEW:
            warnings.warn(
                f"only {rate:.0%} of trial proposals are accepted: the posterior is far from a "
                "Gaussian. NUTS may do better",
                stacklevel=2,
            )

    def _trial(self) -> float:
        """Fraction of proposals that are taken, from draws of the Laplace approximation."""
        potential, made = self.potential, self._preparation
        keys = chain_keys(0, range(_PILOT_CHAINS), made.mode.device)
        starts = potential.layout.flatten(self._starts(range(_PILOT_CHAINS), 0))
        state = self._init(starts, keys)
        steps = torch.arange(_PILOT_TRANSITIONS, device=keys.device)
        noise = normal(keys, steps, len(made.mode), dtype=made.mode.dtype)
        length = made.mode.new_tensor(self.trajectory_length)
        taken = []
        for number in range(_PILOT_TRANSITIONS):
            with torch.no_grad():
                state, _ = self._step(
                    state,
                    potential.gradient.over_any,
                    noise[number],
                    step_size=length,
                    temperature=torch.ones_like(length),
                )
            taken.append(state.is_taken.mean())
        return float(torch.stack(taken).mean())

    def _starts(self, numbers: Sequence[int], seed: int) -> dict[str, Tensor]:
        """Draws of the Laplace approximation at which the potential is finite."""
        mode, factor, _ = self._preparation
        keys = chain_keys(seed, numbers, mode.device)
        step = torch.zeros((), dtype=torch.int64, device=keys.device)
        noise = normal(keys, step, len(mode), stream=_STREAM_OF_STARTS, dtype=mode.dtype)
        starts = mode + noise @ factor.mT
        finite = finite_starts(starts, self.potential.gradient.over_any, mode)[0]
        return self.potential.layout.unflatten(finite)

    def _init(self, position: Tensor, keys: Tensor) -> HMCState:
        count = torch.zeros(len(position), dtype=torch.int64, device=position.device)
        return HMCState(position, keys, count, position.new_ones(len(position)))

    def _step(
        self,
        state: HMCState,
        function: ValueAndGradient,
        noise: Tensor,
        **schedules: Tensor,
    ) -> tuple[HMCState, Info]:
        made = self._preparation
        choices = uniform(
            state.keys, state.num_transitions[0], 2, stream=_STREAM_OF_CHOICES, dtype=noise.dtype
        )
        jitter = 1.0 + _JITTER * (2.0 * choices[:, :1] - 1.0)
        value, gradient = function(state.position)
        after = hamiltonian_transition(
            state.position,
            value,
            gradient,
            noise,
            choices[:, 1].log(),
            function,
            made.factor,
            step_size=jitter * (self.trajectory_length / made.num_steps),
            num_steps=made.num_steps,
        )
        is_taken = after.is_taken.to(noise.dtype)
        number = state.num_transitions + 1
        return HMCState(after.position, state.keys, number, is_taken), Info(value)

    def _statistics(self, state: HMCState) -> dict[str, Tensor]:
        length = self.trajectory_length / self._preparation.num_steps
        return {
            "acceptance_rate": state.is_taken,
            "step_size": torch.full_like(state.is_taken, length),
        }


def _factor(value: Callable[[Tensor], Tensor], mode: Tensor) -> Tensor:
    """Factor of a covariance: the inverse of the second derivatives, whose signs do not matter."""
    hessian = torch.autograd.functional.hessian(value, mode)
    assert isinstance(hessian, Tensor)
    if not bool(hessian.isfinite().all()):
        raise ValueError("model has no finite second derivatives at its mode; use NUTS")
    return whitening_factor(hessian, len(mode) * torch.finfo(mode.dtype).eps)
