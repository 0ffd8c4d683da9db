"""The adapter that makes a pure sampler a kernel of MCMC drivers, ours and Pyro's."""

import inspect
import math
from abc import abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, Self, TypedDict

import numpy as np
import numpy.typing as npt
import torch
from pyro.infer.mcmc.mcmc_kernel import MCMCKernel
from torch import Tensor
from torch.distributions import Transform

from pyro_ext._checks import check_integer, check_number
from pyro_ext.inference.sgmcmc.chains import Chains, Draws
from pyro_ext.inference.sgmcmc.control_variates import Anchor, anchor_at, is_anchor_of
from pyro_ext.inference.sgmcmc.core import Info, ValueAndGradient
from pyro_ext.inference.sgmcmc.laplace import Laplace, dispersed_starts, laplace_at
from pyro_ext.inference.sgmcmc.loop import Plan, StepLoop
from pyro_ext.inference.sgmcmc.mass import Mass, mass_of
from pyro_ext.inference.sgmcmc.minibatches import IndependentMinibatches, Minibatches
from pyro_ext.inference.sgmcmc.modes import flat_point, minimum
from pyro_ext.inference.sgmcmc.schedules import ConstantSchedule, Schedule
from pyro_ext.potential import (
    Backend,
    BatchedFunction,
    FunctionPotential,
    InitStrategy,
    Potential,
    bijection,
    check_backend,
    init_to_suggested,
)
from pyro_ext.random import chain_keys, fresh_seed

__all__ = ["Chains", "Draws", "KernelOptions", "OptionsButStepSize", "SGMCMCKernel"]


_STEP_SIZE = 1e-3

ControlVariate = Literal["map"] | Mapping[str, Tensor] | None
MinibatchSource = type[Minibatches] | type[IndependentMinibatches]


class OptionsButStepSize(TypedDict, total=False):
    """Keyword arguments that all kernels take; :class:`SGMCMCKernel` documents them."""

    potential_fn: Callable[[dict[str, Tensor]], Tensor] | None
    backend: Backend
    temperature: float
    control_variate: ControlVariate
    minibatches: MinibatchSource
    num_steps: int
    init_strategy: InitStrategy


class KernelOptions(OptionsButStepSize, total=False):
    """The same with the step size."""

    step_size: float | Schedule | None


class SGMCMCKernel(MCMCKernel):
    """A stochastic-gradient sampler as a kernel.

    A subclass gives the sampler's pure functions through :meth:`_init` and :meth:`_step`. Drivers
    call :meth:`setup`, then either :meth:`begin` and :meth:`advance` for many chains at once, as
    ours does, or :meth:`sample` for one chain at a time, as Pyro's does.

    :param model: a Pyro model; or ``None`` with a ``potential_fn``.
    :param potential_fn: maps one chain's dict of unconstrained parameters to a scalar; it needs
        initial parameters.
    :param str backend: how the potential runs, see :class:`~pyro_ext.potential.Potential`.
    :param step_size: a positive number or a :class:`Schedule`; ``None`` takes what the kernel takes
        by default once it knows the data.
    :param float temperature: target is the posterior to the power of its inverse; zero gives
        stochastic gradient descent to a posterior mode.
    :param control_variate: an anchor near a mode, which takes most of the noise out of the
        gradients of minibatches around it, at two gradients a step (see
        :mod:`~pyro_ext.inference.sgmcmc.control_variates`); ``"map"`` searches for it with
        :func:`~pyro_ext.inference.sgmcmc.find_map`, a mapping gives it by site in constrained
        space. ``None`` does without.
    :param minibatches: what chooses them: :class:`~pyro_ext.inference.sgmcmc.Minibatches`, of
        shuffled epochs, or :class:`~pyro_ext.inference.sgmcmc.IndependentMinibatches`.
    :param int num_steps: steps that one call of :meth:`sample` takes, under Pyro's driver, which
        has no thinning.
    :param init_strategy: where chains start, one of :mod:`pyro.infer.autoguide.initialization`; by
        default where a site asks for it, or at the median of a few draws from its prior. Kernels
        with ``mass="laplace"`` start around the mode, where it is not given.
    :raises ValueError: for arguments out of range.
    """

    def __init__(
        self,
        model: Callable[..., Any] | None = None,
        *,
        potential_fn: Callable[[dict[str, Tensor]], Tensor] | None = None,
        backend: Backend = "trace",
        step_size: float | Schedule | None = 1e-3,
        temperature: float = 1.0,
        control_variate: ControlVariate = None,
        minibatches: MinibatchSource = Minibatches,
        num_steps: int = 1,
        init_strategy: InitStrategy = init_to_suggested,
    ) -> None:
        if (model is None) == (potential_fn is None):
            raise ValueError(
                "either model or potential_fn must be given, and not both, got "
                f"model={model!r:.80}, potential_fn={potential_fn!r:.80}"
            )
        check_backend(backend)
        for argument, value in (("model", model), ("potential_fn", potential_fn)):
            if value is not None and not callable(value):
                raise TypeError(f"{argument} must be callable, got {value!r:.80}")
        if not callable(init_strategy):
            raise TypeError(
                "init_strategy must be a strategy of pyro.infer.autoguide.initialization, got "
                f"{init_strategy!r:.80}"
            )
        _check_control_variate(control_variate, potential_fn)
        if minibatches not in (Minibatches, IndependentMinibatches):
            raise ValueError(
                "minibatches must be the class Minibatches or IndependentMinibatches, got "
                f"{minibatches!r:.80}"
            )
        self.minibatches = minibatches
        self.model = model
        self.potential_fn = potential_fn
        self.backend = backend
        self.step_size = step_size
        self.schedule = (
            step_size
            if isinstance(step_size, Schedule)
            else ConstantSchedule(_STEP_SIZE if step_size is None else step_size)
        )
        self.temperature = check_number("temperature", temperature, least=0)
        self.control_variate = control_variate
        self.anchor: Anchor | None = None
        self.laplace: Laplace | None = None
        self.num_steps = check_integer("num_steps", num_steps, 1)
        self.init_strategy = init_strategy
        self._masses: float | Tensor = 1.0
        self._masses_of: Laplace | None = None
        self._initial_params: dict[str, Tensor] | None = None
        self._potential: Potential | FunctionPotential | None = None
        self._loop: StepLoop[Any] | None = None
        self._minibatches: Minibatches | IndependentMinibatches | None = None
        self._chains: Chains | None = None

    # What it was made of -----------------------------------------------------------------------

    def settings(self) -> dict[str, Any]:
        """Keyword arguments of the constructor by name, but for the model or potential.

        Example::

            >>> from pyro_ext.inference import SGLD
            >>> def model():
            ...     pyro.sample("x", dist.Normal(0.0, 1.0))
            >>> SGLD(model, step_size=0.1).settings()["step_size"]
            0.1
        """
        return {name: getattr(self, name) for name in _keywords(type(self))}

    def replace(self, **changes: Any) -> Self:
        """Return a new kernel of the same type and model with other settings.

        :param changes: keyword arguments of the constructor.
        :returns: the kernel, on which :meth:`setup` has not been called.
        :raises TypeError: for a keyword that the constructor does not take.
        :raises ValueError: for arguments out of range.

        Example::

            >>> from pyro_ext.inference import SGLD
            >>> def model():
            ...     pyro.sample("x", dist.Normal(0.0, 1.0))
            >>> SGLD(model, temperature=0.5).replace(step_size=0.1).temperature
            0.5
        """
        settings = self.settings()
        if unknown := set(changes) - set(settings):
            raise TypeError(
                f"{type(self).__name__} has no setting {sorted(unknown)}; it has {list(settings)}"
            )
        kernel = type(self)(self.model, potential_fn=self.potential_fn, **{**settings, **changes})
        if self.potential_fn is not None:
            kernel._initial_params = self._initial_params
        if kernel.control_variate is self.control_variate:
            kernel.anchor = self.anchor
        kernel.laplace = self.laplace
        return kernel

    def __getstate__(self) -> dict[str, Any]:
        # What setup builds holds graphs and machine code, which stay in this process.
        built = dict.fromkeys(("_potential", "_loop", "_minibatches", "_chains"))
        return {**self.__dict__, **built, "_masses": 1.0, "_masses_of": None}

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

    def _function(self) -> BatchedFunction:
        """What steps call at positions: the potential and its gradient."""
        return self.potential.gradient

    def _prepare(self) -> None:
        """Resolve arguments that need the sites of the model; called once these are known."""

    def _starts(self, numbers: Sequence[int], seed: int) -> dict[str, Tensor]:
        """Unconstrained starts of chains for which none are given."""
        potential = self.potential
        if self._masses_of is not None and self.init_strategy is init_to_suggested:
            return dispersed_starts(potential, self._masses_of, numbers, seed)
        if isinstance(potential, FunctionPotential):
            raise ValueError("a kernel with potential_fn needs initial_params")
        return potential.init_chains(numbers, seed, self.init_strategy)

    def _default_step_size(self) -> float:
        """Step size where none is given, of the potential that is set up."""
        return _STEP_SIZE

    def _set_masses(self, mass: Mass) -> None:
        """Keep the mass of each parameter for steps to come."""
        laplace = self.find_laplace("mass='laplace'") if isinstance(mass, str) else None
        self._masses, self._masses_of = mass_of(self.potential, mass, laplace), laplace

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

    def catch_errors(self) -> dict[int, Exception]:
        """Let a chain whose model raises go on with NaN, where chains run one by one in Python.

        :returns: a dict that takes such errors from now on, by place of the chain.
        """
        assert self._loop is not None
        self._loop.errors = {}
        return self._loop.errors

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
        self.anchor = self._find_anchor()
        if self.step_size is None:
            self.schedule = ConstantSchedule(self._default_step_size())
        self._prepare()
        elements = sum(plate.subsample_size for plate in self._potential.subsampled_plates)
        self._loop = StepLoop(self._step, self._function(), elements)

    def _find_anchor(self) -> Anchor | None:
        potential = self.potential
        if self.control_variate is None or isinstance(potential, FunctionPotential):
            return None
        if not potential.subsampled_plates:
            raise ValueError(
                "control_variate needs a plate with a subsample_size: without one every gradient "
                "is over all of the data, and has no noise to control"
            )
        if self.anchor is not None:  # from an earlier setup, here or where the kernel was pickled
            known = Anchor(*(part.to(potential.layout.device) for part in self.anchor))
            if is_anchor_of(potential, known):
                return known
        if isinstance(self.control_variate, Mapping):
            position = flat_point(potential, self.control_variate, "control_variate")
        else:
            start = potential.init_chains(range(1), 0, self.init_strategy)
            position = minimum(potential, potential.layout.flatten(start)[0])
        return anchor_at(potential, position)

    def find_laplace(self, argument: str) -> Laplace:
        """Laplace approximation of the posterior, which the kernel keeps for the same data.

        :param str argument: what asks for it, for errors.
        :returns: the approximation.
        :raises ValueError: where there is none.
        """
        potential = self.potential
        if self.laplace is not None and is_anchor_of(potential, self.laplace.mode):
            return self.laplace
        if self.anchor is not None:
            start = self.anchor.position
        elif isinstance(potential, Potential):
            values = potential.init_chains(range(1), 0, self.init_strategy)
            start = potential.layout.flatten(values)[0]
        else:
            start = potential.layout.flatten(self.initial_params)
        self.laplace = laplace_at(potential, start.detach(), argument)
        return self.laplace

    def begin(
        self, numbers: Sequence[int], seed: int, params: Mapping[str, Tensor] | None = None
    ) -> Chains:
        """Start chains.

        :param Sequence numbers: numbers of the chains; a number that comes twice stands for chains
            with the same start, minibatches and noise.
        :param int seed: a non-negative integer.
        :param Mapping params: unconstrained initial parameters; by default the initialization
            strategy gives them. **Shape:** ``(num_chains, *event)`` each.
        :returns: the chains before their first step.
        """
        potential = self.potential
        if params is None:
            params = self._starts(numbers, seed)
        potential.layout.check(params, "initial_params")
        position = potential.layout.flatten(params).detach().contiguous()
        keys = chain_keys(seed, numbers, position.device)
        energy = position.new_full((len(numbers),), math.nan)
        return Chains(numbers, seed, keys, 0, self._init(position, keys), energy, self.anchor)

    def advance(self, chains: Chains, num_steps: int) -> Chains:
        """Take steps.

        :param Chains chains: the chains.
        :param int num_steps: number of steps, at least one.
        :returns: the chains after these steps.
        """
        return self.record(chains, [chains.step + num_steps])[0]

    def record(self, chains: Chains, steps: Sequence[int]) -> tuple[Chains, Draws]:
        """Take steps and record the states after some of them.

        The states are those that :meth:`advance` would come to, to the last bit, at the cost of a
        call for many of them.

        :param Chains chains: the chains.
        :param Sequence steps: increasing numbers, after how many steps in all of the chains a state
            is recorded.
        :returns: the chains after the last of these steps, and the draws.
        :raises ValueError: for numbers that do not increase.

        Example::

            >>> from pyro_ext.inference import SGLD
            >>> kernel = SGLD(potential_fn=lambda z: z["x"].square().sum(), step_size=0.1)
            >>> kernel.initial_params = {"x": torch.zeros(3)}
            >>> kernel.setup(0)
            >>> chains = kernel.begin(range(4), 0, {"x": torch.zeros(4, 3)})
            >>> chains, draws = kernel.record(chains, [10, 15, 20])
            >>> chains.step, draws.position.shape
            (20, torch.Size([3, 4, 3]))
        """
        assert self._loop is not None
        targets = np.asarray(steps, dtype=np.int64)
        if len(targets) < 1 or (np.diff(targets, prepend=chains.step) <= 0).any():
            raise ValueError(
                f"steps must increase from above the {chains.step} steps taken, got {steps!r:.80}"
            )
        most_steps = self._loop.max_steps(*chains.position.shape)
        most_rows = self._loop.max_rows(*chains.position.shape)
        pieces: list[list[Tensor]] = []
        done = 0
        while done < len(targets):
            ahead = targets[done : done + most_rows]
            end = min(chains.step + most_steps, int(ahead[-1]))
            run = self._loop(chains.state, self._plan(chains, ahead, end))
            count = int(np.searchsorted(ahead, end, side="right"))
            pieces.append([part[:count] for part in (*run.draws, run.potential_energy)])
            done += count
            chains = replace(
                chains, step=end, state=run.state, potential_energy=run.potential_energy[-1]
            )
        *leaves, energy = (torch.cat(parts) for parts in zip(*pieces, strict=True))
        return chains, Draws(targets, type(chains.state)(*leaves), energy)

    def _plan(self, chains: Chains, targets: npt.NDArray[np.int64], end: int) -> Plan:
        known = self._minibatches
        if known is None or (known.chains, known.seed) != (chains.numbers, chains.seed):
            known = self.minibatches(self.potential.subsampled_plates, chains.numbers, chains.seed)
            self._minibatches = known
        position = chains.position
        steps = np.arange(chains.step, end)
        temperatures = np.where(self.schedule.is_sampling(steps), self.temperature, 0.0)
        step_sizes = self.schedule.step_sizes(steps)
        return Plan(
            chains.keys,
            torch.from_numpy(steps).to(position.device),
            torch.from_numpy(step_sizes).to(position),
            torch.from_numpy(temperatures).to(position),
            torch.from_numpy(np.searchsorted(targets, steps, side="right")).to(position.device),
            [index.to(position.device) for index in known(chains.step, len(steps))],
            chains.anchor,
        )

    def statistics(self, chains: Chains | Draws) -> dict[str, Tensor]:
        """Statistics of the last step of each chain, or of the steps before draws.

        :param chains: the chains, or draws of them.
        :returns: ``lp``, the negative potential that the step saw, its ``step_size`` and
            ``temperature``, and what the sampler adds. **Shape:** ``(num_chains,)`` each, of draws
            ``(num_draws, num_chains)``.
        """
        last = np.atleast_1d(chains.step if isinstance(chains, Chains) else chains.steps) - 1
        energy = chains.potential_energy
        temperatures = np.where(self.schedule.is_sampling(last), self.temperature, 0.0)
        return {
            "lp": -energy,
            "step_size": _per_chain(self.schedule.step_sizes(last), energy),
            "temperature": _per_chain(temperatures, energy),
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
            batched = self._starts(range(1), fresh_seed(None))
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
                f"the chain diverged by step {self._chains.step}: take a smaller step_size"
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


def _check_control_variate(value: ControlVariate, potential_fn: object) -> None:
    if not (value is None or value == "map" or isinstance(value, Mapping)):
        raise ValueError(
            f"control_variate must be None, 'map' or a mapping of site names to tensors, got "
            f"{value!r:.80}"
        )
    if value is not None and potential_fn is not None:
        raise ValueError(
            "control_variate needs a model with a subsampled plate: a potential_fn takes no "
            "minibatches"
        )


def _per_chain(values: npt.NDArray[np.float64], like: Tensor) -> Tensor:
    """Numbers of each draw, the same for all chains."""
    return torch.from_numpy(values).to(like)[:, None].expand(-1, like.shape[-1]).reshape(like.shape)


def _keywords(kernel_type: type[SGMCMCKernel]) -> list[str]:
    """Names of the settings that a constructor takes, its own and those it passes on."""
    names: list[str] = []
    for base in kernel_type.__mro__:
        if "__init__" not in vars(base):
            continue
        parameters = inspect.signature(vars(base)["__init__"]).parameters.values()
        variadic = [p for p in parameters if p.kind is p.VAR_KEYWORD]
        positional = {"self", "model", "potential_fn"}
        names += [p.name for p in parameters if p not in variadic and p.name not in positional]
        if not variadic:
            break
    return names
