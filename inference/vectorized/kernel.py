"""The contract of kernels that run many chains side by side, for our driver and for Pyro's."""

import math
from abc import abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Self, TypedDict, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from pyro.infer.mcmc.mcmc_kernel import MCMCKernel
from torch import Tensor
from torch.distributions import Transform

from pyro_ext._lib import checks
from pyro_ext._lib.hints import OF_KERNELS, keywords, refuse
from pyro_ext._lib.threads import threads_for
from pyro_ext.inference.vectorized.backends import chosen_backend
from pyro_ext.inference.vectorized.chains import Chains, Draws, Info, filled, saved
from pyro_ext.inference.vectorized.loop import Plan, StepLoop
from pyro_ext.posterior.draws import Context
from pyro_ext.posterior.modes import Laplace, laplace_at
from pyro_ext.posterior.starts import Start, constrained_start, strategy_at, unconstrained_start
from pyro_ext.potential import (
    Backend,
    BatchedFunction,
    FunctionPotential,
    InitStrategy,
    Layout,
    Potential,
    bijection,
    check_backend,
    init_to_suggested,
    sum_out,
)
from pyro_ext.potential.batched import KernelBackend
from pyro_ext.potential.control_variates import Anchor, is_anchor_of
from pyro_ext.random import chain_keys, fresh_seed

Made = TypeVar("Made")

_NOT_SET_UP = "the kernel has no potential yet: call setup(...) first"


class VectorizedOptions(TypedDict, total=False):
    """Keyword arguments that all vectorized kernels take."""

    potential_fn: Callable[[dict[str, Tensor]], Tensor] | None
    backend: KernelBackend
    steps_per_sample: int


class VectorizedKernel(MCMCKernel):
    """Base class of kernels that take each step of many chains at once, by pure functions.

    A subclass implements two methods. ``_init(position, keys)`` makes the state of the chains: a
    named tuple of tensors with a leading chain dimension, whose first field is ``position``, the
    flat unconstrained parameters ``(num_chains, size)``; ``keys`` are the keys of the chains'
    random streams. ``_step(state, function, noise, *, step_size, temperature)`` returns the state
    after a step and an :class:`~pyro_ext.inference.vectorized.Info`. There, ``function`` maps
    positions to potentials and gradients, and ``noise`` is standard normal with the shape of the
    positions. A step draws further random numbers only from keys in its state, and has no Python
    branch on a value. The subclass keeps each keyword argument of its constructor as an attribute
    of the same name.

    Drivers call :meth:`setup` first. Our driver then calls :meth:`begin` and :meth:`record` for
    many chains at once, and Pyro's driver calls :meth:`sample` for one chain at a time. The draws
    of a chain depend only on the seed and the chain's number.

    :param model: a Pyro model, or ``None`` with a ``potential_fn``.
    :param potential_fn: maps one chain's dict of unconstrained parameters to a scalar; it requires
        initial parameters.
    :param str backend: ``"auto"`` compiles runs that are long enough, judged by their numbers of
        steps and operations; the other values are those of :class:`~pyro_ext.potential.Potential`.
    :param int steps_per_sample: number of steps that one call of :meth:`sample` takes. It serves as
        thinning under Pyro's driver, which has none.
    :param init_strategy: where chains start, one of :mod:`pyro.infer.autoguide.initialization`. By
        default, each site starts where it asks to, or else at the median of a few draws from its
        prior.
    :raises ValueError: for arguments out of range.

    Example::

        >>> from typing import NamedTuple
        >>> from pyro_ext.inference import MCMC
        >>> class LangevinState(NamedTuple):
        ...     position: torch.Tensor
        >>> class Langevin(VectorizedKernel):
        ...     def __init__(self, model=None, *, step_size=0.1, **options):
        ...         super().__init__(model, **options)
        ...         self.step_size = step_size
        ...     def _init(self, position, keys):
        ...         return LangevinState(position)
        ...     def _step(self, state, function, noise, **schedules):
        ...         energy, gradient = function(state.position)
        ...         move = (2.0 * self.step_size) ** 0.5 * noise - self.step_size * gradient
        ...         return LangevinState(state.position + move), Info(energy)
        >>> def model():
        ...     pyro.sample("x", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        >>> mcmc = MCMC(Langevin(model), 100, num_chains=4, seed=0, progress=False)
        >>> mcmc.run().get_samples(group_by_chain=True)["x"].shape
        torch.Size([4, 100, 2])
    """

    has_known_state: bool = True
    """Whether a chain can stop between two steps and continue elsewhere."""
    is_constrained: ClassVar[bool] = False
    """Whether positions are values of the sites themselves, without a potential."""
    one_at_a_time: bool = False
    """Whether chains must run one after the other."""
    is_biased: ClassVar[bool] = False
    """Whether draws are biased however long a run is, so that each run ends with a warning."""
    takes_minibatches: ClassVar[bool] = False
    """Whether a model may subsample its plates; otherwise it must see all of its data."""
    _operations_per_evaluation: ClassVar[int] = 30

    def __init__(
        self,
        model: Callable[..., Any] | None = None,
        *,
        potential_fn: Callable[[dict[str, Tensor]], Tensor] | None = None,
        backend: KernelBackend = "auto",
        steps_per_sample: int = 1,
        init_strategy: InitStrategy = init_to_suggested,
        **unknown: Any,
    ) -> None:
        refuse(type(self), unknown, OF_KERNELS)
        if (model is None) == (potential_fn is None):
            raise ValueError(
                "either model or potential_fn must be given, and not both, got "
                f"model={model!r:.80}, potential_fn={potential_fn!r:.80}"
            )
        check_backend(backend, "auto")
        for argument, value in (("model", model), ("potential_fn", potential_fn)):
            if value is not None and not callable(value):
                raise TypeError(f"{argument} must be callable, got {value!r:.80}")
        if not callable(init_strategy):
            raise TypeError(
                "init_strategy must be a strategy of pyro.infer.autoguide.initialization, got "
                f"{init_strategy!r:.80}"
            )
        self.model = model
        self.potential_fn = potential_fn
        self.backend = backend
        self.steps_per_sample = checks.integer("steps_per_sample", steps_per_sample, 1)
        self.init_strategy = init_strategy
        self.anchor: Anchor | None = None
        self.laplace: Laplace | None = None
        self.first_values: Mapping[str, Tensor] | None = None
        """Values of a start, at which the next :meth:`setup` is to check the density."""
        self.note = ""
        """Text of the progress bar before the first step."""
        self._initial_params: dict[str, Tensor] | None = None
        self._potential: Potential | FunctionPotential | None = None
        self._loop: Any = None
        self._chains: Chains | None = None
        self._num_warmup, self._divergences = 0, list[int]()

    # What it was made of -----------------------------------------------------------------------

    def settings(self) -> dict[str, Any]:
        """Keyword arguments of the constructor by name, except the model or potential."""
        names = keywords(type(self))
        if lacking := [name for name in names if not hasattr(self, name)]:
            raise TypeError(
                f"{type(self).__name__} must keep its arguments {lacking} as attributes of these "
                "names, which copies and checkpoints read"
            )
        return {name: getattr(self, name) for name in names}

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
        kernel.laplace = self.laplace
        return kernel

    def __getstate__(self) -> dict[str, Any]:
        # What setup builds holds graphs and machine code, which stay in this process.
        return {**self.__dict__, **dict.fromkeys(("_potential", "_loop", "_chains"))}

    # What a sampler gives ----------------------------------------------------------------------

    @abstractmethod
    def _init(self, position: Tensor, keys: Tensor) -> Any:
        """State of the sampler at the given positions ``(num_chains, size)``."""

    def _step(
        self,
        state: Any,
        function: Callable[[Tensor], Any],
        noise: Tensor,
        *,
        step_size: Tensor,
        temperature: Tensor,
    ) -> tuple[Any, Info]:
        """One step of the sampler, which may call the ``_function`` at positions."""
        raise NotImplementedError

    def _function(self) -> BatchedFunction:
        """Give what steps call at positions: the potential and its gradient."""
        return self.potential.gradient

    def _prepare(self) -> None:
        """Resolve arguments that need the sites of the model; called once these are known."""

    def _starts(self, numbers: Sequence[int], seed: int) -> dict[str, Tensor]:
        """Unconstrained starts of chains for which none are given."""
        potential = self.potential
        if isinstance(potential, FunctionPotential):
            raise ValueError("a kernel with potential_fn needs initial_params")
        return potential.init_chains(numbers, seed, self.init_strategy)

    def _moved(self, state: Any, position: Tensor) -> Any:
        """State at positions where a driver has put the chains, or :class:`Gibbs`.

        The density has changed as well, since other blocks have moved.
        """
        return state._replace(position=position)

    def _statistics(self, state: Any) -> dict[str, Tensor]:
        """Report numbers of each chain, ``(num_chains,)`` each."""
        return {}

    def _schedules(
        self, steps: npt.NDArray[np.int64]
    ) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """Step size and temperature of each step, for samplers that have schedules."""
        return np.ones(len(steps)), np.ones(len(steps))

    def _batches(self, chains: Chains, num_steps: int) -> list[Tensor]:
        """Minibatches of the next steps, a tensor for each subsampled plate."""
        return []

    @property
    def period(self) -> int:
        """Number of steps after which the pattern of sampling steps repeats."""
        return 1

    def is_sampling(self, steps: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        """Tell whether the draw after each of these steps, counted from zero, is to be kept."""
        return np.ones(len(steps), dtype=bool)

    # Many chains at once -----------------------------------------------------------------------

    @property
    def potential(self) -> Potential | FunctionPotential:
        """The potential of the last :meth:`setup`."""
        if self._potential is None:
            raise RuntimeError(_NOT_SET_UP)
        return self._potential

    @property
    def layout(self) -> Layout:
        """Order of the parameters in positions."""
        return self.potential.layout

    def _made(self, value: Made | None) -> Made:
        """Return what setup made, or raise before it."""
        if value is None:
            raise RuntimeError(_NOT_SET_UP)
        return value

    def catch_errors(self) -> dict[int, Exception]:
        """Let a chain whose model raises continue with NaN, if chains run one by one in Python.

        :returns: a dict that collects these errors from now on, by index of the chain.
        """
        errors: dict[int, Exception] = {}
        self._made(self._loop).errors = errors
        return errors

    def setup(self, warmup_steps: int, *args: Any, **kwargs: Any) -> None:
        """Build the potential of the model and its data, for a warm-up of a given length."""
        backend: Backend = "trace" if self.backend == "auto" else self.backend
        if (model := self.model) is not None:
            if not self.takes_minibatches:
                model = sum_out(model, *args, **kwargs)
            strategy = strategy_at(self.first_values, self._initial_params, self.init_strategy)
            self.first_values = None
            self._potential = Potential(
                model, *args, backend=backend, init_strategy=strategy, **kwargs
            )
        else:
            if self._initial_params is None:
                raise ValueError("a kernel with potential_fn needs initial_params")
            assert self.potential_fn is not None
            batched = {name: value[None] for name, value in self._initial_params.items()}
            self._potential = FunctionPotential(self.potential_fn, batched, backend)
        self._chains, self._num_warmup, self._divergences = None, warmup_steps, []
        plates = self._potential.subsampled_plates
        if plates and not self.takes_minibatches:
            names = [plate.name for plate in plates]
            raise ValueError(f"model must see all of its data, but it subsamples in {names}")
        self._prepare()
        self._loop = self._make_loop()

    def choose_backend(self, num_steps: int, known: Backend | None = None) -> Backend:
        """Choose the backend of a run from its numbers of steps and operations.

        Neither the machine's load nor a cache affects the choice, so that draws are reproducible.
        """
        backend, self.note = chosen_backend(
            self.backend,
            self._function(),
            num_steps * self._evaluations_per_step(),
            self._operations_per_evaluation,
            self.potential.layout.device,
            known,
        )
        return backend

    def _evaluations_per_step(self) -> int:
        """Estimate how often a step evaluates the potential."""
        return 1

    def _make_loop(self) -> Any:
        """Make what runs many steps, with the attribute ``errors`` of :class:`StepLoop`."""
        elements = sum(plate.subsample_size for plate in self.potential.subsampled_plates)
        return StepLoop(self._step, self._function(), elements)

    def find_laplace(self, argument: str) -> Laplace:
        """Return the Laplace approximation of the posterior, which is cached for the same data.

        :param str argument: name of the argument that needs it, for error messages.
        :returns: the approximation.
        :raises ValueError: if no Laplace approximation can be found.
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

        :param Sequence numbers: numbers of the chains. Chains with the same number have the same
            start, minibatches and noise.
        :param int seed: a non-negative integer.
        :param Mapping params: unconstrained initial parameters; by default those of the
            initialization strategy. **Shape:** ``(num_chains, *event)`` each.
        :returns: the chains before their first step.
        """
        potential = self.potential
        if params is None:
            params = self._starts(numbers, seed)
        potential.layout.check(params, "initial_params")
        position = potential.layout.flatten(params).detach().contiguous()
        keys = chain_keys(seed, numbers, position.device)
        energy = position.new_full((len(numbers),), math.nan)
        state = self._init(position, keys)
        if getattr(type(state), "_fields", ("",))[0] != "position":
            raise TypeError(
                f"_init of {type(self).__name__} must return a named tuple whose first field is "
                f"position, got {type(state).__name__}"
            )
        return Chains(numbers, seed, keys, 0, state, energy, self.anchor)

    def start_from(
        self, start: Start, num_chains: int, seed: int, *args: Any, **kwargs: Any
    ) -> dict[str, Tensor]:
        """Convert ``initial_params`` of a driver to unconstrained initial parameters.

        :param start: values by site, a run, a guide, ``"laplace"``, ``"pathfinder"``, or a folder.
        :param int num_chains: number of chains.
        :param int seed: seed of draws from a guide or around a mode.
        :returns: **Shape:** ``(num_chains, *event)`` each.
        :raises ValueError: if names, shapes or supports do not fit.
        """
        own = self.potential if isinstance(self.potential, Potential) else None
        context = Context(self.model, args, kwargs)
        values = constrained_start(start, num_chains, seed, context, own, self.find_laplace)
        return unconstrained_start(self.potential, values)

    def saved(self, chains: Chains) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Express chains as tensors and plain values; :meth:`restored` takes them back."""
        return saved(chains)

    def restored(
        self,
        numbers: Sequence[int],
        seed: int,
        tensors: Mapping[str, Tensor],
        content: Mapping[str, Any],
    ) -> Chains:
        """Restore chains from what :meth:`saved` returned."""
        layout = self.potential.layout
        position = tensors["state.position"].to(layout.device)
        start = self.begin(numbers, seed, layout.unflatten(position))
        return replace(
            start,
            step=content["step"],
            state=filled("state", start.state, tensors),
            potential_energy=tensors["potential_energy"].to(layout.device),
            anchor=start.anchor and filled("anchor", start.anchor, tensors),
        )

    def advance(self, chains: Chains, num_steps: int) -> Chains:
        """Take a number of steps, at least one; see :meth:`record`."""
        return self.record(chains, [chains.step + num_steps])[0]

    def record(self, chains: Chains, steps: Sequence[int]) -> tuple[Chains, Draws]:
        """Take steps and record the states after some of them.

        The states equal those that :meth:`advance` would reach, to the last bit, but a single call
        makes many of them.

        :param Chains chains: the chains.
        :param Sequence steps: increasing numbers of steps, counted from the start of the chains,
            after which a state is recorded.
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
        targets = np.asarray(steps, dtype=np.int64)
        if len(targets) < 1 or (np.diff(targets, prepend=chains.step) <= 0).any():
            raise ValueError(
                f"steps must increase from above the {chains.step} steps taken, got {steps!r:.80}"
            )
        # Drawing noise ahead does not make a step's operations larger, so threads do not pay off.
        with threads_for(chains.position.numel()):
            return self._record(chains, targets)

    def _record(self, chains: Chains, targets: npt.NDArray[np.int64]) -> tuple[Chains, Draws]:
        """Take steps one after the other, the same one of all chains."""
        loop: StepLoop[Any] = self._made(self._loop)
        most_steps = loop.max_steps(*chains.position.shape)
        most_rows = loop.max_rows(*chains.position.shape)
        pieces: list[list[Tensor]] = []
        done = 0
        while done < len(targets):
            ahead = targets[done : done + most_rows]
            end = min(chains.step + most_steps, int(ahead[-1]))
            run = loop(chains.state, self._plan(chains, ahead, end))
            count = int(np.searchsorted(ahead, end, side="right"))
            pieces.append([part[:count] for part in (*run.draws, run.potential_energy)])
            done += count
            chains = replace(
                chains, step=end, state=run.state, potential_energy=run.potential_energy[-1]
            )
        *leaves, energy = (torch.cat(parts) for parts in zip(*pieces, strict=True))
        return chains, Draws(targets, type(chains.state)(*leaves), energy)

    def _plan(self, chains: Chains, targets: npt.NDArray[np.int64], end: int) -> Plan:
        position = chains.position
        steps = np.arange(chains.step, end)
        step_sizes, temperatures = self._schedules(steps)
        return Plan(
            chains.keys,
            torch.from_numpy(steps).to(position.device),
            torch.from_numpy(step_sizes).to(position),
            torch.from_numpy(temperatures).to(position),
            torch.from_numpy(np.searchsorted(targets, steps, side="right")).to(position.device),
            [index.to(position.device) for index in self._batches(chains, len(steps))],
            chains.anchor or (),
            [value.expand(len(position), *value.shape[1:]) for value in self._function().given],
        )

    def statistics(self, chains: Chains | Draws) -> dict[str, Tensor]:
        """Statistics of the last step of each chain, or of the step before each draw.

        :param chains: the chains, or draws of them.
        :returns: ``lp``, which is the negative potential at the step, and what the sampler adds.
            **Shape:** ``(num_chains,)`` each, or ``(num_draws, num_chains)`` for draws.
        """
        return {"lp": -chains.potential_energy, **self._statistics(chains.state)}

    def describe(self, chains: Chains) -> OrderedDict[str, str]:
        """One line of diagnostics for a progress bar."""
        statistics = self.statistics(chains)
        statistics.pop("temperature", None)
        return OrderedDict(
            (name.replace("_", " "), f"{float(value.double().nanmean()):.3g}")
            for name, value in statistics.items()
        )

    def samples(self, positions: Tensor) -> dict[str, Tensor]:
        """Constrained values of the sites, and deterministic sites, at unconstrained positions.

        Deterministic sites inside a subsampled plate are left out, since a draw sees only part of
        them.

        :param Tensor positions: **Shape:** ``(num_rows, size)``.
        :returns: by site. **Shape:** ``(num_rows, *event)`` each.
        """
        potential = self.potential
        params = potential.layout.unflatten(positions)
        return potential.samples(params) if isinstance(potential, Potential) else params

    # One chain at a time, as Pyro's driver asks ------------------------------------------------

    @property
    def initial_params(self) -> dict[str, Tensor]:
        """Unconstrained initial parameters of one chain."""
        if self._initial_params is None:
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
        """Take ``steps_per_sample`` steps from the given unconstrained parameters of one chain."""
        layout, batched = self.layout, {k: value[None] for k, value in params.items()}
        if self._chains is None:
            self._chains = self.begin(range(1), fresh_seed(None), batched)
            # Pyro does not pass the number of samples, which by default is that of warm-up steps.
            self.choose_backend(2 * self._num_warmup * self.steps_per_sample)
        position = layout.flatten(batched)
        if not torch.equal(position, self._chains.position):
            state = self._moved(self._chains.state, position)
            self._chains = replace(self._chains, state=state)
        self._chains = self.advance(self._chains, self.steps_per_sample)
        if not torch.isfinite(self._chains.position).all():
            raise RuntimeError(
                f"the chain diverged by step {self._chains.step}: use a smaller step_size"
            )
        draw = self._chains.step // self.steps_per_sample - self._num_warmup - 1
        diverging = self._statistics(self._chains.state).get("diverging")
        if draw >= 0 and diverging is not None and bool(diverging):
            self._divergences.append(draw)
        return {k: value[0] for k, value in layout.unflatten(self._chains.position).items()}

    def logging(self) -> OrderedDict[str, str]:
        """One line of diagnostics for Pyro's progress bar."""
        return OrderedDict() if self._chains is None else self.describe(self._chains)

    def diagnostics(self) -> dict[str, Any]:
        """Numbers of one chain's draws that follow a divergence, for Pyro's driver."""
        return {"divergences": list(self._divergences)}

    def cleanup(self) -> None:
        """Forget the chain that Pyro's driver ran; it may call this twice."""
        self._chains = None
        self._initial_params = None
