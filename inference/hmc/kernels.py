"""HMC and NUTS for many chains at once, adapted by gradients or as in Stan, as kernels."""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from math import isqrt
from typing import Any, Unpack

import numpy as np
import numpy.typing as npt
import torch
from pyro.infer.autoguide.initialization import init_to_uniform
from torch import Tensor

from pyro_ext._lib import checks
from pyro_ext.inference.hmc.adaptation import averaged, restarted
from pyro_ext.inference.hmc.loop import TransitionLoop
from pyro_ext.inference.hmc.masses import (
    FullMass,
    HamiltonianState,
    Lengths,
    Masses,
    SharedMasses,
    checked_full_mass,
)
from pyro_ext.inference.hmc.trajectories import (
    MicrocanonicalPaths,
    Outcome,
    Paths,
    Point,
    Trajectories,
    Trees,
    leapfrog,
)
from pyro_ext.inference.vectorized import Chains, Draws, VectorizedKernel, VectorizedOptions
from pyro_ext.posterior.paths import find_paths
from pyro_ext.potential import InitStrategy, Potential
from pyro_ext.random import normal, spawn_seed, uniform

__all__ = ["HMC", "MAMS", "NUTS", "HamiltonianState"]

_FIRST_STEP_SIZE = 1.0
_STREAM_OF_TRIALS = 2
_STREAM_OF_JITTER = 3
_STREAM_OF_PATHS = 5
_NUM_DOUBLINGS = 50
_LENGTH = 1.5
_JITTER = 0.1
_FISHER_WARMUP = 400
_NUM_STEPS = 8
_EDGES_OF_LENGTHS = (0.1, 0.2, 0.3, 0.45, 0.6, 0.75, 0.92)
_LEAST_WINDOW = 10


class SharedOptions(VectorizedOptions, total=False):
    """Keyword arguments of all of these kernels; :class:`NUTS` says what they are."""

    step_size: float
    adapt_step_size: bool
    adapt_mass_matrix: bool
    full_mass: FullMass | None
    init_strategy: InitStrategy


class HamiltonianOptions(SharedOptions, total=False):
    """Keyword arguments of HMC and NUTS alike."""

    share_mass_matrix: bool
    target_accept_prob: float


def check_warmup(kernel: VectorizedKernel, warmup_steps: int, adapts: bool) -> int:
    """Check the length of a warm-up, in which step sizes may have to be found."""
    checks.integer("warmup_steps", warmup_steps, 0)
    if adapts and not warmup_steps:
        raise ValueError(
            f"warmup_steps must be >= 1 for {type(kernel).__name__}, which finds its step size in "
            "the warm-up, got 0: pass a few hundred, or a step_size that is known to work and "
            "adapt_step_size=False"
        )
    return warmup_steps


def check_directions(kernel: VectorizedKernel) -> None:
    """Check that momenta have more than two directions."""
    if kernel.layout.size < 2:
        raise ValueError(
            f"model must have at least two unknowns for {type(kernel).__name__}, whose momenta are "
            f"directions, got {kernel.layout.size}; use NUTS"
        )


def starts_of_paths(
    kernel: VectorizedKernel, params: Mapping[str, Tensor], numbers: Sequence[int], seed: int
) -> dict[str, Tensor]:
    """Draw starts along paths of an optimizer: at constant speed the way from afar is long.

    Shapes: params (num_chains, *event) each, where a chain without such a path starts.
    """
    potential = kernel.potential
    assert isinstance(potential, Potential)  # others have no starts
    rows = potential.layout.flatten(params)
    for row, number in enumerate(numbers):
        own = spawn_seed(seed, number, _STREAM_OF_PATHS)
        with contextlib.suppress(ValueError):  # no path has a normal approximation
            paths = find_paths(potential, own, kernel.init_strategy, num_paths=1, num_samples=1)
            rows[row] = paths.positions[0]
    return potential.layout.unflatten(rows)


class _Hamiltonian(VectorizedKernel):
    """Base class of HMC and NUTS: adaptation, and the loop over transitions."""

    _operations_per_evaluation = 250

    def __init__(
        self,
        model: Callable[..., Any] | None = None,
        *,
        step_size: float = _FIRST_STEP_SIZE,
        adapt_step_size: bool = True,
        adapt_mass_matrix: bool = True,
        full_mass: FullMass | None = None,
        share_mass_matrix: bool = False,
        target_accept_prob: float = 0.8,
        init_strategy: InitStrategy = init_to_uniform,
        **options: Unpack[VectorizedOptions],
    ) -> None:
        super().__init__(model, init_strategy=init_strategy, **options)
        self.step_size = checks.number("step_size", step_size, above=0)
        self.adapt_step_size = checks.boolean("adapt_step_size", adapt_step_size)
        self.adapt_mass_matrix = checks.boolean("adapt_mass_matrix", adapt_mass_matrix)
        self.full_mass = checked_full_mass(full_mass)
        self.share_mass_matrix = checks.boolean("share_mass_matrix", share_mass_matrix)
        self.target_accept_prob = checks.number(
            "target_accept_prob", target_accept_prob, above=0, below=1
        )
        self._warmup_steps = 0
        self._known_masses: Masses | None = None
        self._edges_of_lengths: tuple[int, ...] = ()

    @property
    def adapts(self) -> bool:
        """Tell whether it needs a warm-up."""
        return self.adapt_step_size or self.adapt_mass_matrix

    @property
    def most_warmup_steps(self) -> int | None:
        """Steps after which a longer warm-up gains little, ``None`` where that is not known."""
        return _FISHER_WARMUP if self.full_mass in (None, False, "low_rank") else None

    def _trajectories(self) -> Trajectories:
        raise NotImplementedError

    def setup(self, warmup_steps: int, *args: Any, **kwargs: Any) -> None:
        """Build the potential of the model and its data, and plan the warm-up."""
        self._warmup_steps = check_warmup(self, warmup_steps, self.adapt_step_size)
        super().setup(warmup_steps, *args, **kwargs)
        self._known_masses = (SharedMasses if self.share_mass_matrix else Masses)(
            self.full_mass,
            warmup_steps if self.adapt_mass_matrix else 0,
            self.potential.layout,
        )

    @property
    def _masses(self) -> Masses:
        return self._made(self._known_masses)

    def _evaluations_per_step(self) -> int:
        # Trees take 3 to 10 gradients for 10 unknowns, some 15 for 100, and over 100 for 1,000.
        return max(10, 2 * isqrt(self.potential.layout.size))

    def _make_loop(self) -> TransitionLoop:
        return TransitionLoop(
            self._trajectories(), self.potential.gradient, self.target_accept_prob
        )

    def _init(self, position: Tensor, keys: Tensor) -> HamiltonianState:
        value, gradient = self.potential.gradient.over_any(position)
        zero, none = torch.zeros_like(value), torch.zeros_like(keys[:, 0])
        factor, moments = self._masses.first(position, gradient), self._masses.no_draws(position)
        search = restarted(torch.full_like(value, self.step_size))
        counts = (none, none, none > 0)
        outcome = (position, gradient, value, value.clone(), zero, *counts, search.log_step.exp())
        window = position.new_zeros(len(position), 0, 2 * position.shape[-1])
        lengths = Lengths.begun(zero, position)
        adaptation = (search, factor, moments, moments, window, lengths)
        state = HamiltonianState(*outcome, keys, none.clone(), *adaptation)
        return self._with_first_step_size(state, 0)

    def _moved(self, state: HamiltonianState, position: Tensor) -> HamiltonianState:
        value, gradient = self.potential.gradient.over_any(position)
        return state._replace(position=position, value=value, gradient=gradient)

    def _with_first_step_size(self, state: HamiltonianState, step: int) -> HamiltonianState:
        """Start to look for step sizes where one step's acceptance passes through the target.

        The heuristic of M. D. Hoffman and A. Gelman (2014), algorithm 4, for all chains at once.
        """
        if not self.adapt_step_size or self._warmup_steps == 0:
            return state
        size = state.search.log_step.exp()
        noise = normal(
            state.keys,
            torch.tensor(step, device=state.keys.device),
            state.position.shape[-1],
            stream=_STREAM_OF_TRIALS,
            dtype=state.position.dtype,
        )
        origin = Point(state.position, noise, state.gradient)
        energy = state.value + 0.5 * noise.square().sum(-1)
        log_target = np.log(self.target_accept_prob)
        direction = torch.zeros_like(size)
        searching = torch.ones_like(size, dtype=torch.bool)
        for _ in range(_NUM_DOUBLINGS):
            _, _, after = leapfrog(origin, self.potential.gradient.over_any, size, state.factor)
            change = (energy - after).nan_to_num(nan=-torch.inf)
            side = torch.where(change > log_target, 1.0, -1.0).to(size)
            searching = searching & ((direction == 0) | (direction == side))
            direction = torch.where(direction == 0, side, direction)
            if not bool(searching.any()):
                break
            size = torch.where(searching, size * 2.0**side, size)
        return state._replace(search=restarted(size))

    def _record(self, chains: Chains, targets: npt.NDArray[np.int64]) -> tuple[Chains, Draws]:
        loop: TransitionLoop = self._made(self._loop)
        num_rows = loop.max_rows(*chains.position.shape)
        windows = self._masses.windows
        ends = {*windows.updates, *windows.switches, windows.first, windows.symmetric}
        ends |= {*self._edges_of_lengths}
        ends |= {self._warmup_steps, int(targets[-1])}
        parts: list[Outcome] = []
        state: HamiltonianState = chains.state
        step = chains.step
        while step < targets[-1]:
            end = min(step + num_rows, *(each for each in ends if each > step))
            momenta, jitter = (
                make(state, step, num_rows) for make in (self._momenta, self._jitter)
            )
            before = state.position
            state, made = loop(state, momenta, jitter, end - step, self._adapting(step))
            is_wanted = torch.from_numpy(np.isin(np.arange(step, end) + 1, targets))
            rows = is_wanted.nonzero()[:, 0].to(state.position.device)
            parts.append(Outcome(*(part[rows] for part in made)))
            state = self._adapted(state, before, made, step, end)
            step = end
        recorded = Outcome(*(torch.cat(pieces) for pieces in zip(*parts, strict=True)))
        after = replace(chains, step=step, state=state, potential_energy=state.value.clone())
        return after, Draws(targets, recorded, recorded.value)

    def _momenta(self, state: HamiltonianState, step: int, num_rows: int) -> Tensor:
        steps = torch.arange(step, step + num_rows, device=state.keys.device)
        return normal(state.keys, steps, state.position.shape[-1], dtype=state.position.dtype)

    def _jitter(self, state: HamiltonianState, step: int, num_rows: int) -> Tensor:
        """Factors of the step sizes of the next transitions, one where these are given."""
        if not self._masses.takes_gradients or not self.adapt_step_size:
            return torch.ones_like(state.value).expand(num_rows, -1).contiguous()
        steps = torch.arange(step, step + num_rows, device=state.keys.device)
        dtype = state.position.dtype
        uniforms = uniform(state.keys, steps, 1, stream=_STREAM_OF_JITTER, dtype=dtype)[..., 0]
        return 1.0 + _JITTER * (2.0 * uniforms - 1.0)

    def _adapting(self, step: int) -> int:
        """Tell how step sizes adapt, see :class:`~pyro_ext.inference.hmc.loop.Inputs`."""
        if not self.adapt_step_size or step >= self._warmup_steps:
            return 0
        return 1 if step < self._masses.windows.symmetric else 2

    def _adapted(
        self, state: HamiltonianState, before: Tensor, made: Outcome, step: int, end: int
    ) -> HamiltonianState:
        """Take the transitions of a part of the warm-up into account."""
        masses = self._masses
        windows = masses.windows
        if windows.updates and windows.first <= step < windows.updates[-1]:
            state = masses.collected(state, before, made)
        if end in windows.switches:
            state = masses.switched(state, end)
        if end in windows.updates:
            state = state._replace(factor=masses.estimated(state))
        if end in windows.searches:
            state = self._with_first_step_size(state, end)
        if end == self._warmup_steps:
            state = state._replace(window=state.window[:, :0])
        if end == self._warmup_steps and self.adapt_step_size:
            state = state._replace(search=averaged(state.search))
        return state

    def _statistics(self, state: HamiltonianState | Outcome) -> dict[str, Tensor]:
        return {
            "acceptance_rate": state.acceptance_rate,
            "energy": state.energy,
            "diverging": state.diverging,
            "n_steps": state.num_steps,
            "step_size": state.step_size,
        }


class HMC(_Hamiltonian):
    r"""Hamiltonian Monte Carlo over many chains, with trajectories of fixed length [1].

    Chains run side by side, but each proceeds through its trajectories at its own pace, so that
    none waits for another. Step sizes and masses adapt in the warm-up. :class:`NUTS` also finds the
    length of trajectories.

    :param model: a Pyro model that sees all of its data, or ``None`` with a ``potential_fn``.
    :param float trajectory_length: length of a trajectory in units of the masses: in standard
        deviations, once these have adapted. 1.5 if ``num_steps`` is not given either. Lengths vary
        at random by up to a fifth.
    :param int num_steps: number of leapfrog steps of a trajectory, instead of its length.
    :param options: ``step_size``, ``full_mass`` and the other options of :class:`NUTS`, except
        ``max_tree_depth``.
    :raises ValueError: for numbers out of range, for both a length and a number of steps, or for a
        model that subsamples.

    [1] R. M. Neal (2011), MCMC using Hamiltonian dynamics.

    Example::

        >>> from pyro_ext.inference import MCMC
        >>> def model():
        ...     pyro.sample("x", dist.Normal(torch.zeros(2), torch.tensor([1.0, 10.0])).to_event(1))
        >>> mcmc = MCMC(HMC(model), 200, 100, num_chains=4, seed=0, progress=False).run()
        >>> [round(float(each)) for each in mcmc.get_samples()["x"].std(0)]
        [1, 10]
    """

    num_steps: int | None = None

    def __init__(
        self,
        model: Callable[..., Any] | None = None,
        *,
        trajectory_length: float | None = None,
        num_steps: int | None = None,
        **options: Unpack[HamiltonianOptions],
    ) -> None:
        if num_steps is not None:
            num_steps = checks.integer("num_steps", num_steps, 1)
            if trajectory_length is not None:
                raise ValueError(
                    "trajectory_length must not be given with num_steps, got "
                    f"{trajectory_length!r:.80} and {num_steps}"
                )
        elif trajectory_length is None:
            trajectory_length = _LENGTH
        if trajectory_length is not None:
            trajectory_length = checks.number("trajectory_length", trajectory_length, above=0)
        super().__init__(model, **options)
        self.trajectory_length = trajectory_length
        self.num_steps = num_steps

    def _trajectories(self) -> Paths:
        return Paths(self.trajectory_length, self.num_steps)


class NUTS(_Hamiltonian):
    r"""The no-U-turn sampler [1] with multinomial sampling [2], over many chains.

    Chains run side by side, but each proceeds through its trajectories at its own pace, so that
    none waits for another. In long runs, a whole transition is compiled. In the warm-up, step sizes
    adapt by dual averaging, and mass matrices adapt to draws and their gradients in growing
    windows, so that 400 steps are usually enough. Step sizes vary at random by up to a tenth.
    Sample statistics are ``acceptance_rate``, ``energy``, ``diverging``, ``tree_depth``,
    ``n_steps`` and ``step_size``, the names that ArviZ knows. A model must see all of its data;
    discrete sites are summed out if they ask for it, see :class:`~pyro_ext.potential.Potential`.

    :param model: a Pyro model, or ``None`` with a ``potential_fn``.
    :param float step_size: size of a leapfrog step, in units of the masses. If it adapts, this is
        where the search for the initial step size starts.
    :param int max_tree_depth: largest number of doublings of a trajectory.
    :param bool adapt_step_size: whether step sizes adapt in the warm-up.
    :param bool adapt_mass_matrix: whether mass matrices adapt in the warm-up.
    :param full_mass: ``False`` for diagonal matrices, fitted so that the gradients at draws are as
        close as possible to those of a normal distribution [3]; for a normal posterior, they are
        exact after a few draws. ``"low_rank"``, the default for up to 50 parameters, adds the
        directions in which draws and gradients differ from this. ``True`` for full matrices,
        estimated from draws alone in windows that double, as in Stan. A list of groups of sites,
        such as ``[("loc", "scale"), ("weight",)]``, for one full matrix per group.
    :param bool share_mass_matrix: whether chains that run together share a mass matrix, estimated
        from the draws of all of them. With many chains, this shortens the warm-up, but the draws of
        a chain then depend on the others.
    :param float target_accept_prob: acceptance rate to which step sizes adapt. A larger value makes
        smaller steps, which helps if the posterior has narrow regions.
    :param init_strategy: where chains start, one of :mod:`pyro.infer.autoguide.initialization`.
    :param options: ``potential_fn`` and ``backend``, as for
        :class:`~pyro_ext.inference.VectorizedKernel`, and ``steps_per_sample``, the number of
        transitions that one call of ``sample`` takes under Pyro's driver.
    :raises ValueError: for numbers out of range, or a model that subsamples.

    [1] M. D. Hoffman, A. Gelman (2014), The No-U-Turn Sampler.

    [2] M. Betancourt (2017), A conceptual introduction to Hamiltonian Monte Carlo.

    [3] A. Seyboldt, E. Carlson, B. Carpenter (2026), arXiv 2603.18845.

    Example::

        >>> from pyro_ext.inference import MCMC
        >>> def model(x):
        ...     scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("x", dist.Normal(0.0, scale), obs=x)
        >>> mcmc = MCMC(NUTS(model), 100, 100, num_chains=4, seed=0, progress=False)
        >>> draws = mcmc.run(torch.linspace(-2.0, 2.0, 50)).get_samples()["scale"]
        >>> draws.shape, round(float(draws.mean()), 1)
        (torch.Size([400]), 1.2)
    """

    def __init__(
        self,
        model: Callable[..., Any] | None = None,
        *,
        max_tree_depth: int = 10,
        **options: Unpack[HamiltonianOptions],
    ) -> None:
        super().__init__(model, **options)
        self.max_tree_depth = checks.integer("max_tree_depth", max_tree_depth, 1)

    def _trajectories(self) -> Trees:
        return Trees(self.max_tree_depth)

    def _statistics(self, state: HamiltonianState | Outcome) -> dict[str, Tensor]:
        return super()._statistics(state) | {"tree_depth": state.tree_depth}


class MAMS(_Hamiltonian):
    r"""Metropolis-adjusted microcanonical sampler [2]: trajectories of constant speed.

    Momenta are unit vectors [1], so trajectories do not speed up where the density is low, and
    they turn slowly. Each proposal is accepted or rejected by its energy error, so that draws are
    from the exact posterior. Step sizes and masses adapt in the warm-up as in :class:`NUTS`.

    Use it for posteriors of a hundred parameters or more; with few, it takes about as many
    gradients as :class:`NUTS`. If scales vary within the posterior, as in a funnel, no single step
    size fits all of it, with either sampler.

    :param model: a Pyro model that sees all of its data and has at least two unknowns, or ``None``
        with a ``potential_fn``.
    :param int num_steps: mean number of leapfrog steps of a trajectory; the number is uniform
        between 1 and ``2 * num_steps - 1``. By default, each chain finds it in the warm-up, so
        that a draw is uncorrelated with the one before it, up to 256.
    :param float target_accept_prob: acceptance rate to which step sizes adapt.
    :param bool share_mass_matrix: as for :class:`NUTS`.
    :param init_strategy: one of :mod:`pyro.infer.autoguide.initialization`. From there, an
        optimizer leads each chain to its start, a draw of :func:`~pyro_ext.posterior.pathfinder`.
        All chains may thus start in one mode, and then R-hat says nothing of others.
    :param options: ``step_size``, ``full_mass`` and the other options of :class:`NUTS`, except
        ``max_tree_depth``.
    :raises ValueError: for numbers out of range, or a model that subsamples or has one unknown.

    [1] J. Robnik, G. B. De Luca, E. Silverstein, U. Seljak (2023), Microcanonical Hamiltonian
    Monte Carlo.

    [2] J. Robnik, R. Cohn-Gordon, U. Seljak (2025), Metropolis adjusted microcanonical Hamiltonian
    Monte Carlo, arXiv 2503.01707.

    Example::

        >>> from pyro_ext.inference import MCMC
        >>> def model():
        ...     pyro.sample("x", dist.Normal(torch.zeros(2), torch.tensor([1.0, 10.0])).to_event(1))
        >>> mcmc = MCMC(MAMS(model), 400, 200, num_chains=4, seed=0, progress=False).run()
        >>> [round(float(each)) for each in mcmc.get_samples()["x"].std(0)]
        [1, 10]
    """

    def __init__(
        self,
        model: Callable[..., Any] | None = None,
        *,
        num_steps: int | None = None,
        share_mass_matrix: bool = False,
        target_accept_prob: float = 0.9,
        **options: Unpack[SharedOptions],
    ) -> None:
        super().__init__(
            model,
            share_mass_matrix=share_mass_matrix,
            target_accept_prob=target_accept_prob,
            **options,
        )
        self.num_steps = checks.optional(checks.integer, "num_steps", num_steps, 1)

    @property
    def adapts(self) -> bool:
        """Tell whether it needs a warm-up."""
        return super().adapts or self.num_steps is None

    def setup(self, warmup_steps: int, *args: Any, **kwargs: Any) -> None:
        """Build the potential of the model and its data, and plan the warm-up."""
        if self.num_steps is None:
            edges = [int(part * warmup_steps) for part in _EDGES_OF_LENGTHS]
            ends = (end for start, end in pairwise(edges) if end - start >= _LEAST_WINDOW)
            self._edges_of_lengths = (edges[0], *ends)
        super().setup(warmup_steps, *args, **kwargs)

    def _starts(self, numbers: Sequence[int], seed: int) -> dict[str, Tensor]:
        return starts_of_paths(self, super()._starts(numbers, seed), numbers, seed)

    def _prepare(self) -> None:
        check_directions(self)

    def _trajectories(self) -> MicrocanonicalPaths:
        return MicrocanonicalPaths()

    def _evaluations_per_step(self) -> int:
        return self.num_steps or _NUM_STEPS

    def _init(self, position: Tensor, keys: Tensor) -> HamiltonianState:
        state = super()._init(position, keys)
        num_steps = torch.full_like(state.value, self.num_steps or _NUM_STEPS)
        return state._replace(lengths=Lengths.begun(num_steps, position))

    def _adapted(
        self, state: HamiltonianState, before: Tensor, made: Outcome, step: int, end: int
    ) -> HamiltonianState:
        """Take the transitions of a part of the warm-up into account."""
        lengths = state.lengths
        edges = self._edges_of_lengths
        if edges and edges[0] <= step < edges[-1]:
            lengths = lengths.with_draws(before, made.position)
        if end in edges[1:]:
            lengths = lengths.adapted(is_late=end in edges[-2:])
        return super()._adapted(state._replace(lengths=lengths), before, made, step, end)

    def _statistics(self, state: HamiltonianState | Outcome) -> dict[str, Tensor]:
        statistics = super()._statistics(state)
        del statistics["energy"]  # which is of normal momenta
        return statistics
