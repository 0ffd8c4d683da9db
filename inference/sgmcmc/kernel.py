"""The adapter that makes a pure sampler a kernel of MCMC drivers, ours and Pyro's."""

import math
from abc import abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypedDict

import numpy as np
import torch
from pyro.infer.autoguide.initialization import init_to_median
from pyro.infer.mcmc.mcmc_kernel import MCMCKernel
from torch import Tensor
from torch.distributions import Transform

from pyro_ext.inference.sgmcmc.core import Info, ValueAndGradient
from pyro_ext.inference.sgmcmc.loop import Plan, StepLoop
from pyro_ext.inference.sgmcmc.minibatches import Minibatches
from pyro_ext.inference.sgmcmc.schedules import ConstantSchedule, Schedule
from pyro_ext.potential import (
    Backend,
    FunctionPotential,
    InitStrategy,
    Potential,
    bijection,
    check_backend,
)
from pyro_ext.random import chain_keys, fresh_seed

__all__ = ["Chains", "KernelOptions", "SGMCMCKernel"]


@dataclass(frozen=True)
class Chains:
    """State of a group of chains, all that a later step depends on.

    :param range numbers: numbers of the chains.
    :param int seed: the seed of the run.
    :param Tensor keys: keys of the chains' random streams. **Shape:** ``(num_chains, 2)``.
    :param int step: number of steps taken.
    :param tuple state: state of the sampler, a named tuple of tensors.
    :param Tensor potential_energy: potential that the last step saw. **Shape:** ``(num_chains,)``.
    """

    numbers: range
    seed: int
    keys: Tensor
    step: int
    state: Any
    potential_energy: Tensor

    @property
    def position(self) -> Tensor:
        """Flat unconstrained parameters. **Shape:** ``(num_chains, size)``."""
        position: Tensor = self.state.position
        return position


class KernelOptions(TypedDict, total=False):
    """Keyword arguments that all kernels take; :class:`SGMCMCKernel` documents them."""

    potential_fn: Callable[[dict[str, Tensor]], Tensor] | None
    backend: Backend
    step_size: float | Schedule
    temperature: float
    num_steps: int
    init_strategy: InitStrategy


class SGMCMCKernel(MCMCKernel):
    """A stochastic-gradient sampler as a kernel.

    A subclass gives the sampler's pure functions through :meth:`_init` and :meth:`_step`. Drivers
    call :meth:`setup`, then either :meth:`begin` and :meth:`advance` for many chains at once, as
    ours does, or :meth:`sample` for one chain at a time, as Pyro's does.

    :param model: a Pyro model; or ``None`` with a ``potential_fn``.
    :param potential_fn: maps one chain's dict of unconstrained parameters to a scalar; it needs
        initial parameters.
    :param str backend: how the potential runs, see :class:`~pyro_ext.potential.Potential`.
    :param step_size: a positive number or a :class:`Schedule`.
    :param float temperature: target is the posterior to the power of its inverse; zero gives
        stochastic gradient descent to a posterior mode.
    :param int num_steps: steps that one call of :meth:`sample` takes, under Pyro's driver, which
        has no thinning.
    :param init_strategy: where chains start, one of :mod:`pyro.infer.autoguide.initialization`; by
        default at the median of a few draws from the prior.
    :raises ValueError: for arguments out of range.
    """

    def __init__(
        self,
        model: Callable[..., Any] | None = None,
        *,
        potential_fn: Callable[[dict[str, Tensor]], Tensor] | None = None,
        backend: Backend = "trace",
        step_size: float | Schedule = 1e-3,
        temperature: float = 1.0,
        num_steps: int = 1,
        init_strategy: InitStrategy = init_to_median,
    ) -> None:
        if (model is None) == (potential_fn is None):
            raise ValueError("give either model or potential_fn, and not both")
        check_backend(backend)
        if not (temperature >= 0 and math.isfinite(temperature)):
            raise ValueError(f"temperature must be a finite number >= 0, got {temperature!r}")
        if num_steps < 1:
            raise ValueError(f"num_steps must be at least 1, got {num_steps!r}")
        self.model = model
        self.potential_fn = potential_fn
        self.backend = backend
        self.schedule = (
            step_size if isinstance(step_size, Schedule) else ConstantSchedule(step_size)
        )
        self.temperature = temperature
        self.num_steps = num_steps
        self.init_strategy = init_strategy
        self._initial_params: dict[str, Tensor] | None = None
        self._potential: Potential | FunctionPotential | None = None
        self._loop: StepLoop[Any] | None = None
        self._minibatches: Minibatches | None = None
        self._chains: Chains | None = None

    # What a sampler gives ----------------------------------------------------------------------

    @abstractmethod
    def _init(self, position: Tensor, keys: Tensor) -> Any:
        """State of the sampler at the given positions ``(num_chains, size)``."""

    @abstractmethod
    def _step(
        self,
        state: Any,
        value_and_gradient: ValueAndGradient,
        noise: Tensor,
        *,
        step_size: Tensor,
        temperature: Tensor,
    ) -> tuple[Any, Info]:
        """One step of the sampler."""

    def _prepare(self) -> None:
        """Resolve arguments that need the sites of the model; called once these are known."""

    def _statistics(self, state: Any) -> dict[str, Tensor]:
        """What the sampler reports of each chain, ``(num_chains,)`` each."""
        return {}

    # Many chains at once -----------------------------------------------------------------------

    @property
    def potential(self) -> Potential | FunctionPotential:
        """The potential of the last :meth:`setup`."""
        if self._potential is None:
            raise RuntimeError("the kernel has no potential yet: call setup(...) first")
        return self._potential

    def setup(self, warmup_steps: int, *args: Any, **kwargs: Any) -> None:
        """Build the potential of the model and its data.

        :param int warmup_steps: number of warm-up steps; nothing is adapted in them.
        :param args: arguments of the model.
        :param kwargs: keyword arguments of the model.
        """
        if self.model is not None:
            self._potential = Potential(self.model, *args, backend=self.backend, **kwargs)
        else:
            if self._initial_params is None:
                raise ValueError("a kernel with potential_fn needs initial_params")
            assert self.potential_fn is not None
            batched = {name: value[None] for name, value in self._initial_params.items()}
            self._potential = FunctionPotential(self.potential_fn, batched, self.backend)
        self._chains = None
        self._minibatches = None
        self._prepare()
        elements = sum(plate.subsample_size for plate in self._potential.subsampled_plates)
        self._loop = StepLoop(self._step, self._potential.gradient, elements)

    def begin(
        self, numbers: range, seed: int, params: Mapping[str, Tensor] | None = None
    ) -> Chains:
        """Start chains.

        :param range numbers: numbers of the chains.
        :param int seed: a non-negative integer.
        :param Mapping params: unconstrained initial parameters; by default the initialization
            strategy gives them. **Shape:** ``(num_chains, *event)`` each.
        :returns: the chains before their first step.
        """
        potential = self.potential
        if params is None:
            if isinstance(potential, FunctionPotential):
                raise ValueError("a kernel with potential_fn needs initial_params")
            params = potential.init_chains(numbers, seed, self.init_strategy)
        potential.layout.check(params, "initial_params")
        position = potential.layout.flatten(params).detach().contiguous()
        keys = chain_keys(seed, numbers, position.device)
        energy = position.new_full((len(numbers),), math.nan)
        return Chains(numbers, seed, keys, 0, self._init(position, keys), energy)

    def advance(self, chains: Chains, num_steps: int) -> Chains:
        """Take steps.

        :param Chains chains: the chains.
        :param int num_steps: number of steps, at least one.
        :returns: the chains after these steps.
        """
        assert self._loop is not None
        largest = self._loop.max_steps(*chains.position.shape)
        end = chains.step + num_steps
        while chains.step < end:
            count = min(largest, end - chains.step)
            state, info = self._loop(chains.state, self._plan(chains, count))
            chains = replace(
                chains,
                step=chains.step + count,
                state=state,
                potential_energy=info.potential_energy,
            )
        return chains

    def _plan(self, chains: Chains, num_steps: int) -> Plan:
        known = self._minibatches
        if known is None or (known.chains, known.seed) != (chains.numbers, chains.seed):
            known = Minibatches(self.potential.subsampled_plates, chains.numbers, chains.seed)
            self._minibatches = known
        position = chains.position
        steps = np.arange(chains.step, chains.step + num_steps)
        temperatures = np.where(self.schedule.is_sampling(steps), self.temperature, 0.0)
        step_sizes = self.schedule.step_sizes(steps)
        return Plan(
            chains.keys,
            torch.from_numpy(steps).to(position.device),
            torch.from_numpy(step_sizes).to(position),
            torch.from_numpy(temperatures).to(position),
            [index.to(position.device) for index in known(chains.step, num_steps)],
        )

    def statistics(self, chains: Chains) -> dict[str, Tensor]:
        """Statistics of the last step of each chain.

        :param Chains chains: the chains.
        :returns: ``lp``, the negative potential that the step saw, its ``step_size`` and
            ``temperature``, and what the sampler adds. **Shape:** ``(num_chains,)`` each.
        """
        last = np.array([chains.step - 1])
        sampling = bool(self.schedule.is_sampling(last)[0])
        energy = chains.potential_energy
        return {
            "lp": -energy,
            "step_size": energy.new_full(energy.shape, float(self.schedule.step_sizes(last)[0])),
            "temperature": energy.new_full(energy.shape, self.temperature * sampling),
            **self._statistics(chains.state),
        }

    def describe(self, chains: Chains) -> OrderedDict[str, str]:
        """One line of diagnostics for a progress bar."""
        statistics = self.statistics(chains)
        statistics.pop("temperature")
        return OrderedDict(
            (name.replace("_", " "), f"{float(value.nanmean()):.3g}")
            for name, value in statistics.items()
        )

    # One chain at a time, as Pyro's driver asks ------------------------------------------------

    @property
    def initial_params(self) -> dict[str, Tensor]:
        """Unconstrained initial parameters of one chain."""
        if self._initial_params is None:
            potential = self.potential
            assert isinstance(potential, Potential)
            batched = potential.init(1, init_strategy=self.init_strategy)
            self._initial_params = {name: value[0] for name, value in batched.items()}
        return self._initial_params

    @initial_params.setter
    def initial_params(self, params: dict[str, Tensor]) -> None:
        self._initial_params = params

    @property
    def transforms(self) -> dict[str, Transform]:
        """Maps from the support of each site to unconstrained space."""
        if isinstance(self._potential, Potential):
            return {name: bijection(s.support).inv for name, s in self._potential.sites.items()}
        return {}

    def sample(self, params: dict[str, Tensor]) -> dict[str, Tensor]:
        """Take ``num_steps`` steps from the given unconstrained parameters of one chain."""
        batched = {name: value[None] for name, value in params.items()}
        if self._chains is None:
            self._chains = self.begin(range(1), fresh_seed(None), batched)
        position = self.potential.layout.flatten(batched)
        if not torch.equal(position, self._chains.position):
            state = self._chains.state._replace(position=position)
            self._chains = replace(self._chains, state=state)
        self._chains = self.advance(self._chains, self.num_steps)
        if not torch.isfinite(self._chains.position).all():
            raise RuntimeError(
                f"the chain left the finite numbers by step {self._chains.step}: take a smaller "
                "step_size"
            )
        unflat = self.potential.layout.unflatten(self._chains.position)
        return {name: value[0] for name, value in unflat.items()}

    def logging(self) -> OrderedDict[str, str]:
        """One line of diagnostics for Pyro's progress bar."""
        return OrderedDict() if self._chains is None else self.describe(self._chains)

    def diagnostics(self) -> dict[str, Any]:
        """Diagnostics of one chain for Pyro's driver; ArviZ's converter looks for this entry."""
        return {"divergences": []}

    def cleanup(self) -> None:
        """Forget the chain that Pyro's driver ran; it may call this twice."""
        self._chains = None
        self._initial_params = None
