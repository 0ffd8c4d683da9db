"""Kernels that move some sites of a model each, one after the other."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, Self, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from pyro.infer.mcmc.mcmc_kernel import MCMCKernel
from pyro.util import set_rng_seed
from torch import Tensor

from pyro_ext._lib import checks
from pyro_ext.inference.driver.numbers import adapts, has_known_state
from pyro_ext.inference.driver.pyro_kernels import own_generators
from pyro_ext.inference.gibbs._moves import (
    EllipticalMove,
    EnumeratedMove,
    Joint,
    KernelMove,
    Move,
    OneChainMove,
    Part,
    PythonMove,
    RandomWalkMove,
    Sweep,
)
from pyro_ext.inference.gibbs.conditional_updates import (
    ConditionalUpdate,
    EllipticalSlice,
    EnumeratedSites,
    Model,
    RandomWalk,
    Values,
)
from pyro_ext.inference.partitions import ConjugateKernel
from pyro_ext.inference.vectorized import Chains, Draws, VectorizedKernel
from pyro_ext.posterior.draws import Context
from pyro_ext.posterior.identity import kernel_identity
from pyro_ext.posterior.starts import Start, constrained_start
from pyro_ext.potential import Backend, Layout
from pyro_ext.random import spawn_seed

Block: TypeAlias = (
    MCMCKernel | ConditionalUpdate | EnumeratedSites | Callable[[Values], Mapping[str, Tensor]]
)


class SweepState(NamedTuple):
    """State of chains between two sweeps.

    :param Tensor position: values of all sites, NaN of a chain that has stopped.
        **Shape:** ``(num_chains, size)``.
    :param Tensor numbers: statistics of the blocks. **Shape:** ``(num_chains, num_statistics)``.
    :param tuple parts: states of the blocks.
    """

    position: Tensor
    numbers: Tensor
    parts: tuple[Any, ...]


class SweepDraw(NamedTuple):
    """Part of :class:`SweepState` that is recorded with a draw."""

    position: Tensor
    numbers: Tensor


def _identity_of(block: Block) -> Any:
    """Describe a block for checkpoints: by type and settings, or the name of a function."""
    if isinstance(block, MCMCKernel):
        return kernel_identity(block)
    if isinstance(block, ConditionalUpdate):
        return {"type": type(block).__qualname__, **vars(block)}
    return getattr(block, "__qualname__", type(block).__qualname__)


def _runs_alone(block: Block) -> bool:
    """Tell whether a block is an object that belongs to a single chain."""
    has_state = isinstance(block, ConditionalUpdate) and not block.keeps_no_state
    return has_state or isinstance(block, ConjugateKernel)


class Gibbs(VectorizedKernel):
    """Moves the sites of a Pyro model in blocks, each by a kernel of its own.

    A block is a kernel and the names of the sites that it moves given all others:

    * ``NUTS(model)``, ``HMC(model)`` or a stochastic-gradient kernel, for continuous sites; those
      of the latter may not lie in a plate that subsamples.
    * :class:`EnumeratedSites` or :class:`PriorProposals`, for discrete ones,
      :class:`EllipticalSlice` for ones with normal priors, :class:`RandomWalk`, or another
      :class:`ConditionalUpdate`.
    * a kernel over partitions with conjugate clusters, for ``"assignment"`` and those sites of its
      prior and cluster that it is to move; it holds the others fixed. Its auxiliary variable is
      redrawn each time.
    * a function of the values of all sites that returns a draw of its sites given the others.

    Chains run side by side. With blocks of kernels over partitions, or of updates with a state of
    their own they run one after the other. Kernels are copied: those of
    the caller stay as they are, and can be used elsewhere. A run can have a checkpoint, for which
    functions must depend on their arguments alone, and custom updates must declare that they do,
    see :attr:`ConditionalUpdate.keeps_no_state`.

    :param blocks: kernels and names of sites, in the order in which they move.
    :param model: the model, by default that of the first kernel that has one.
    :raises ValueError: where a site is in two blocks, or there is no model; in ``setup`` where the
        blocks do not hold exactly the latent sites of the model.

    Example::

        >>> from pyro_ext.inference import MCMC, NUTS, EnumeratedSites
        >>> def model(x):
        ...     loc = pyro.sample("loc", dist.Normal(torch.zeros(2), 5.0).to_event(1))
        ...     with pyro.plate("data", len(x)):
        ...         kind = pyro.sample("kind", dist.Bernoulli(0.5))
        ...         pyro.sample("x", dist.Normal(loc[kind.long()], 1.0), obs=x)
        >>> kernel = Gibbs([(NUTS(model), ["loc"]), (EnumeratedSites(), ["kind"])])
        >>> mcmc = MCMC(kernel, num_samples=10, warmup_steps=5, progress=False)
        >>> mcmc.run(torch.tensor([-3.0, 3.2])).get_samples()["kind"].shape
        torch.Size([10, 2])
    """

    is_constrained = True

    def __init__(
        self, blocks: Sequence[tuple[Block, Sequence[str]]], *, model: Model | None = None
    ) -> None:
        for entry in checks.sequence("blocks", blocks, "a list of pairs of a kernel and its sites"):
            if not isinstance(entry, list | tuple) or len(entry) != 2:
                raise TypeError(
                    f"blocks must be pairs of a kernel and a list of its sites, got {entry!r:.80}"
                )
            checks.sequence("blocks", entry[1], "pairs of a kernel and a list of its sites")
            if isinstance(entry[0], type):
                raise TypeError(
                    f"blocks must hold kernels, got the class {entry[0].__name__}; make an object "
                    "of it"
                )
        self.blocks = [(block, list(sites)) for block, sites in blocks]
        names = [name for _, sites in self.blocks for name in sites]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"blocks have the sites {twice} twice")
        for block, _ in self.blocks:
            is_known = isinstance(block, VectorizedKernel | ConjugateKernel)
            if isinstance(block, MCMCKernel) and (not is_known or isinstance(block, Gibbs)):
                raise TypeError(
                    "a kernel of blocks must be one of pyro_ext.inference, such as NUTS, or over "
                    f"partitions with conjugate clusters, got {type(block).__module__}."
                    f"{type(block).__name__}"
                )
        if model is not None:
            checks.function("model", model, "a Pyro model")
        known = [model, *(getattr(block, "model", None) for block, _ in self.blocks)]
        found = next((entry for entry in known if entry is not None), None)
        if found is None:
            raise ValueError("model must be given where no kernel of the blocks has one, got None")
        super().__init__(found)
        self._joint: Joint | None = None
        self._moves: list[Move] = []
        self._errors: dict[int, Exception] | None = None
        self._names: list[str] = []

    @property
    def partitions(self) -> tuple[str, ...]:
        """Names of the sites that are label vectors of partitions."""
        return tuple(
            name
            for block, sites in self.blocks
            if isinstance(block, ConjugateKernel)
            for name in block.partitions
            if name in sites
        )

    def settings(self) -> dict[str, Any]:
        """The blocks by names of their sites, kernels with their settings, for checkpoints."""
        return {", ".join(sites): _identity_of(block) for block, sites in self.blocks}

    def replace(self, **changes: Any) -> Self:
        """Return a new kernel of the same blocks; it has no settings that could be changed."""
        if changes:
            raise TypeError(f"Gibbs has no setting {sorted(changes)}; change its blocks")
        return type(self)(self.blocks, model=self.model)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_joint": None, "_moves": []}

    @property
    def has_known_state(self) -> bool:  # type: ignore[override]
        """Tell whether a chain can be stopped between two steps and go on elsewhere."""
        return all(
            has_known_state(block)
            for block, _ in self.blocks
            if isinstance(block, MCMCKernel | ConditionalUpdate)
        )

    @property
    def one_at_a_time(self) -> bool:  # type: ignore[override]
        """Tell whether chains run one by one, since a block is an object of a single chain."""
        return any(_runs_alone(block) for block, _ in self.blocks)

    @property
    def adapts(self) -> bool:
        """Tell whether a kernel of its blocks needs a warm-up."""
        return any(adapts(block) for block, _ in self.blocks)

    @property
    def layout(self) -> Layout:
        """Order of the values of all sites in positions."""
        return self._made(self._joint).layout

    # Before the first sweep ----------------------------------------------------------------------

    def setup(self, warmup_steps: int, *args: Any, **kwargs: Any) -> None:
        """Prepare all blocks.

        :param int warmup_steps: steps in which kernels adapt.
        :param args: arguments of the model.
        :param kwargs: keyword arguments of the model.
        """
        assert self.model is not None
        self._chains, self._num_warmup, self._divergences = None, warmup_steps, []
        start, self.first_values = self.first_values or self._initial_params or {}, None
        self._moves, self._names = [], []
        with own_generators():
            set_rng_seed(0)
            self._joint = joint = Joint(self.model, args, kwargs, start)
            names = {name for _, sites in self.blocks for name in sites}
            if names != set(joint.values):
                raise ValueError(
                    f"blocks have the sites {sorted(names)}, but the model has "
                    f"{sorted(joint.values)}"
                )
            for number, (block, sites) in enumerate(self.blocks):
                part = Part(tuple(sites), joint, warmup_steps, number)
                self._moves.append(_move_of(block, part))

    def choose_backend(self, num_steps: int, known: Any = None) -> Any:
        """Decide for each kernel how its steps run; see :class:`VectorizedKernel`."""
        kernels = [move.kernel for move in self._moves if isinstance(move, KernelMove)]
        before: list[Backend | None] = known.split("+") if known else []
        if len(before) != len(kernels):  # none, or of another run, which is refused later
            before = [None] * len(kernels)
        chosen = [
            kernel.choose_backend(num_steps * kernel.steps_per_sample, backend)
            for kernel, backend in zip(kernels, before, strict=True)
        ]
        self.note = next((kernel.note for kernel in kernels if kernel.note), "")
        return "+".join(chosen)

    def catch_errors(self) -> dict[int, Exception]:
        """Let a chain whose blocks raise stop, where they run one by one in Python.

        :returns: a dict that takes such errors from now on, by index of the chain.
        """
        self._errors = {}
        return self._errors

    def start_from(
        self, start: Start, num_chains: int, seed: int, *args: Any, **kwargs: Any
    ) -> dict[str, Tensor]:
        """Values of all sites from what a user gives, as of ``initial_params``."""
        context = Context(self.model, args, kwargs)
        return constrained_start(start, num_chains, seed, context)

    def _starts(self, numbers: Sequence[int], seed: int) -> dict[str, Tensor]:
        """Draws from the prior."""
        joint, rows = self._made(self._joint), []
        with own_generators():
            for number in numbers:
                set_rng_seed(spawn_seed(seed, number, 1))
                rows.append(joint.drawn({}))
        return {name: torch.stack([row[name] for row in rows]) for name in joint.layout.shapes}

    def _init(self, position: Tensor, keys: Tensor) -> Any:
        raise NotImplementedError("states are made of values of the sites, see begin")

    def begin(
        self, numbers: Sequence[int], seed: int, params: Mapping[str, Tensor] | None = None
    ) -> Chains:
        """Start chains.

        :param Sequence numbers: numbers of the chains.
        :param int seed: a non-negative integer.
        :param Mapping params: values of all sites; by default draws from the prior.
            **Shape:** ``(num_chains, *event)`` each.
        :returns: the chains before their first step.
        """
        joint = self._made(self._joint)
        if params is None:
            params = self._starts(numbers, seed)
        joint.layout.check_leading(params, "initial_params")
        position = joint.layout.flatten(params).detach()
        values, at = joint.layout.unflatten(position), Sweep(numbers, seed, 0)
        with own_generators():
            for row in range(len(position)):
                joint.drawn({name: value[row] for name, value in values.items()})
            parts = tuple(move.begin(values, at) for move in self._moves)
        return self._with_parts(numbers, seed, 0, position, parts)

    def _with_parts(
        self, numbers: Sequence[int], seed: int, step: int, position: Tensor, parts: tuple[Any, ...]
    ) -> Chains:
        energy = position.new_full((len(position),), torch.nan)
        state = SweepState(position, self._numbers_of(parts, len(position)), parts)
        return Chains(numbers, seed, torch.zeros(len(position), 2), step, state, energy)

    # Sweeps ------------------------------------------------------------------------------------

    def _record(self, chains: Chains, targets: npt.NDArray[np.int64]) -> tuple[Chains, Draws]:
        state: SweepState = chains.state
        parts, errors = [*state.parts], self._errors
        is_dead = ~state.position.isfinite().all(-1)
        # Chains that have stopped continue from another chain's position; their draws are ignored.
        alive = int((~is_dead).int().argmax())
        position = torch.where(is_dead[:, None], state.position[alive], state.position)
        wanted, kept, rows = {*targets.tolist()}, list[int](), list[tuple[Tensor, ...]]()
        with own_generators():
            for step in range(chains.step, int(targets[-1])):
                at = Sweep(chains.numbers, chains.seed, step, errors)
                try:
                    position = self._swept(parts, position, at)
                except Exception as error:
                    if errors is None:
                        raise
                    errors.update({i: error for i in range(len(is_dead)) if i not in errors})
                is_dead = is_dead | ~position.isfinite().all(-1)
                for row in errors or ():
                    is_dead[row] = True
                if (step + 1 in wanted) or is_dead.all():
                    shown = torch.where(is_dead[:, None], torch.nan, position)
                    numbers = self._numbers_of(parts, len(shown))
                    rows.append((shown, numbers, self._energy(position, is_dead)))
                    kept.append(step + 1)
                if is_dead.all():
                    break
        positions, all_numbers, energy = map(torch.stack, zip(*rows, strict=True))
        state = SweepState(positions[-1], all_numbers[-1], tuple(parts))
        chains = replace(chains, step=kept[-1], state=state, potential_energy=energy[-1])
        return chains, Draws(np.array(kept), SweepDraw(positions, all_numbers), energy)

    def _swept(self, parts: list[Any], position: Tensor, at: Sweep) -> Tensor:
        """Positions after a sweep, which changes the states of the blocks in the list."""
        layout = self.layout
        values = layout.unflatten(position)
        for index, move in enumerate(self._moves):
            parts[index], moved = move(parts[index], values, at)
            values = values | moved
        return layout.flatten(values)

    def _energy(self, position: Tensor, is_dead: Tensor) -> Tensor:
        """Minus log joint density of chains that go on."""
        return torch.where(is_dead, torch.nan, -self._made(self._joint).density(position))

    def _numbers_of(self, parts: Sequence[Any], num_chains: int) -> Tensor:
        """Statistics of all blocks, in the order of ``_names``."""
        found: dict[str, Tensor] = {}
        for (_, sites), move, part in zip(self.blocks, self._moves, parts, strict=True):
            for name, value in move.statistics(part).items():
                if name == "diverging":
                    found[name] = value.double().maximum(found.get(name, value.double()))
                elif name != "energy":  # of one block alone, which says nothing of the chain
                    found[f"{name} of {', '.join(sites)}" if name in found else name] = value
        self._names = list(found)
        columns = [value.double().expand(num_chains) for value in found.values()]
        return torch.stack(columns, -1) if columns else torch.zeros(num_chains, 0)

    def _statistics(self, state: SweepState | SweepDraw) -> dict[str, Tensor]:
        columns = zip(self._names, state.numbers.unbind(-1), strict=True)
        return {name: value > 0 if name == "diverging" else value for name, value in columns}

    def samples(self, positions: Tensor) -> dict[str, Tensor]:
        """Values of all sites.

        :param Tensor positions: **Shape:** ``(num_rows, size)``.
        :returns: by site. **Shape:** ``(num_rows, *event)`` each.
        """
        return self.layout.unflatten(positions)

    # Checkpoints -------------------------------------------------------------------------------

    def saved(self, chains: Chains) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Express chains and the states of their blocks as tensors and plain values."""
        state: SweepState = chains.state
        tensors = {"position": state.position, "potential_energy": chains.potential_energy}
        content = []
        for number, (move, part) in enumerate(zip(self._moves, state.parts, strict=True)):
            own, plain = move.saved(part)
            tensors |= {f"{number}.{name}": value for name, value in own.items()}
            content.append(plain)
        return tensors, {"step": chains.step, "blocks": content}

    def restored(
        self,
        numbers: Sequence[int],
        seed: int,
        tensors: Mapping[str, Tensor],
        content: Mapping[str, Any],
    ) -> Chains:
        """Make chains of what :meth:`saved` gave of them."""
        position = tensors["position"].to(self.layout.device)
        values, at = self.layout.unflatten(position), Sweep(numbers, seed, content["step"])
        parts = []
        for number, (move, plain) in enumerate(zip(self._moves, content["blocks"], strict=True)):
            prefix = f"{number}."
            own = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
            parts.append(move.restored(values, at, own, plain))
        chains = self._with_parts(numbers, seed, content["step"], position, tuple(parts))
        return replace(chains, potential_energy=tensors["potential_energy"])


def _move_of(block: Block, part: Part) -> Move:
    """Choose how a block is moved."""
    if isinstance(block, ConjugateKernel | ConditionalUpdate) and _runs_alone(block):
        return OneChainMove(block, part)
    if isinstance(block, VectorizedKernel):
        return KernelMove(block, part)
    if isinstance(block, EnumeratedSites):
        return EnumeratedMove(part)
    if type(block) is RandomWalk:  # a subclass may do something else
        return RandomWalkMove(block, part)
    if type(block) is EllipticalSlice:
        return EllipticalMove(part)
    assert not isinstance(block, MCMCKernel)
    return PythonMove(block, part)
