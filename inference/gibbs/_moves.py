"""Moves of the blocks of :class:`Gibbs`, for many chains side by side."""

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import pyro.poutine as poutine
import torch
from pyro.poutine.util import site_is_subsample
from pyro.util import set_rng_seed
from torch import Tensor
from torch.utils import _pytree as pytree

from pyro_ext.inference.driver.numbers import State, read_state, write_state
from pyro_ext.inference.driver.pyro_kernels import own_generators, stepping
from pyro_ext.inference.gibbs.conditional_updates import (
    NUM_UNIFORMS,
    ConditionalUpdate,
    LogJoint,
    Model,
    RandomWalk,
    Values,
    check_mask,
    elliptical_slice,
    normal_prior,
    support_of,
)
from pyro_ext.inference.partitions import ConjugateKernel
from pyro_ext.inference.vectorized import Chains, VectorizedKernel
from pyro_ext.inference.vectorized.chains import saved
from pyro_ext.potential import BatchedFunction, Layout, Potential
from pyro_ext.potential.enumeration import full_conditional
from pyro_ext.potential.evaluation import retried
from pyro_ext.potential.graph_capture import Fallback, PickedByNumber
from pyro_ext.random import chain_keys, normal, spawn_seed, uniform

_STREAM_OF_CHOICES = 1


class Sweep(NamedTuple):
    """A sweep of some chains.

    :param Sequence numbers: of the chains.
    :param int seed: of the run.
    :param int step: number of sweeps before.
    :param dict errors: collects the exceptions of single chains, by index; ``None`` to raise them.
    """

    numbers: Sequence[int]
    seed: int
    step: int
    errors: dict[int, Exception] | None = None


class Joint:
    """A model at its data, as functions of the values of all of its latent sites.

    :param model: a Pyro model.
    :param tuple args: its arguments.
    :param dict kwargs: its keyword arguments.
    :param Mapping start: values to begin with, of all sites or of none, which are drawn then.
    :raises ValueError: where a value is outside of the support of its site.
    """

    def __init__(
        self,
        model: Model,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        start: Mapping[str, Tensor],
    ) -> None:
        self.model, self.args, self.kwargs = model, args, kwargs
        self.log_joint = LogJoint(model, args, kwargs)
        self.values = self.drawn(start)
        """Values of one chain, which conditional models read."""
        self.layout = Layout.of(self.values)
        self.fallback = Fallback(is_quiet=True)
        self._num_examples = 0
        leaves = pytree.tree_leaves((args, kwargs))
        self._data = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        self._density = self.function(
            lambda values: self.log_joint.density(self.log_joint.trace(values))
        )

    def drawn(self, given: Mapping[str, Tensor]) -> Values:
        """Values of the latent sites, from their prior where they are not given."""
        trace = self.log_joint.trace(given, validate=True)
        return {
            name: node["value"].detach()
            for name, node in trace.nodes.items()
            if node["type"] == "sample"
            and not node["infer"].get("_deterministic")
            and (not node["is_observed"] or name in given)
            and not site_is_subsample(node)
        }

    def density(self, flat: Tensor) -> Tensor:
        """Log joint density. Shapes: flat (num_rows, size); returns (num_rows,)."""
        value: Tensor = self._density.interpreted(flat)
        return value

    def example(self) -> Values:
        """Other values of the latent sites, at which records are compared with the model."""
        self._num_examples += 1
        with own_generators():
            _set_seed(self._num_examples)
            try:
                return self.drawn({})
            except NotImplementedError:  # a prior that does not sample
                return self.values

    def function(
        self, function: Callable[..., Tensor], *others: Callable[[], Tensor]
    ) -> BatchedFunction:
        """Record a function of values and of further tensors, of which examples are drawn."""

        def of_flat(flat: Tensor, *tensors: Tensor) -> Tensor:
            with PickedByNumber():
                return function(self.layout.unflatten(flat), *tensors)

        def example() -> list[Tensor]:
            flat = self.layout.flatten(self.example())
            with own_generators():
                _set_seed(self._num_examples)
                return [flat, *(draw() for draw in others)]

        return BatchedFunction(of_flat, example, "trace", self._data, self.fallback)

    def conditional(self, sites: Sequence[str]) -> Model:
        """The model in which all other sites have the values of one chain."""

        def conditional(*args: Any, **kwargs: Any) -> Any:
            others = {name: v for name, v in self.values.items() if name not in sites}
            return poutine.condition(self.model, data=others)(*args, **kwargs)

        return conditional


class Part(NamedTuple):
    """Part of a model that a block moves.

    :param Sequence sites: names of its sites.
    :param Joint joint: the model.
    :param int warmup_steps: sweeps in which kernels adapt.
    :param int number: of the block, on which its random numbers depend.
    """

    sites: Sequence[str]
    joint: Joint
    warmup_steps: int
    number: int


class Move(ABC):
    """Moves the sites of a block given all others; its state is a value, which is not changed.

    Without methods for it, it has no state.
    """

    def __init__(self, part: Part) -> None:
        self._sites, self._joint, self._warmup_steps, self._number = part

    def begin(self, values: Values, at: Sweep) -> Any:
        """Make the state before the first sweep. Shapes: values (num_chains, *event) each."""
        return None

    @abstractmethod
    def __call__(self, state: Any, values: Values, at: Sweep) -> tuple[Any, Values]:
        """Take a sweep; returns the state after it, and the new values of its sites."""

    def statistics(self, state: Any) -> dict[str, Tensor]:
        """Report numbers of each chain. Shapes: returns (num_chains,) each."""
        return {}

    def saved(self, state: Any) -> State:
        """Express the state as tensors and plain values."""
        return {}, {}

    def restored(
        self, values: Values, at: Sweep, tensors: Mapping[str, Tensor], content: Mapping[str, Any]
    ) -> Any:
        """Make a state of what ``saved`` gave."""
        return None


class KernelMove(Move):
    """Steps of a vectorized kernel on the conditional density, recorded once.

    :param VectorizedKernel block: is copied.
    :param Part part: what it moves.
    """

    def __init__(self, block: VectorizedKernel, part: Part) -> None:
        super().__init__(part)
        sites, joint, warmup_steps, _ = part
        self.kernel = kernel = block.replace()
        self._others = [name for name in joint.values if name not in sites]
        kernel.model = joint.conditional(sites)
        if math.isfinite(joint.log_joint(joint.values)):
            kernel.first_values = {name: joint.values[name] for name in sites}
        warmup_steps *= kernel.steps_per_sample
        kernel.setup(warmup_steps, *joint.args, **joint.kwargs)
        if kernel.anchor is not None:
            raise ValueError(
                f"blocks have {type(kernel).__name__} with a control_variate, whose gradient "
                "would be that at the first values of the other blocks: leave it out"
            )
        potential = kernel.potential
        assert isinstance(potential, Potential)
        self._potential = potential
        backend = "trace" if kernel.backend == "auto" else kernel.backend
        potential.take_given(joint.values, self._others, backend, joint.example)
        kernel._loop = kernel._make_loop()

    def _give(self, values: Values) -> Tensor:
        """Tell the potential of the other sites; unconstrained values of its own."""
        self._potential.give([values[name] for name in self._others])
        own = self._potential.unconstrain({name: values[name] for name in self._sites})
        return self._potential.layout.flatten(own)

    def begin(self, values: Values, at: Sweep) -> Chains:
        start = self._potential.layout.unflatten(self._give(values))
        return self.kernel.begin(at.numbers, spawn_seed(at.seed, self._number), start)

    def __call__(self, state: Chains, values: Values, at: Sweep) -> tuple[Chains, Values]:
        moved = self.kernel._moved(state.state, self._give(values))
        if at.errors is not None:
            self.kernel._loop.errors = at.errors
        state = self.kernel.advance(replace(state, state=moved), self.kernel.steps_per_sample)
        return state, self._potential.constrain(self._potential.layout.unflatten(state.position))

    def statistics(self, state: Chains) -> dict[str, Tensor]:
        return self.kernel._statistics(state.state)

    def saved(self, state: Chains) -> State:
        return saved(state)

    def restored(
        self, values: Values, at: Sweep, tensors: Mapping[str, Tensor], content: Mapping[str, Any]
    ) -> Chains:
        self._give(values)
        seed = spawn_seed(at.seed, self._number)
        return self.kernel.restored(at.numbers, seed, tensors, content)


class _Drawing(Move):
    """A move that takes random numbers by counters."""

    def __init__(self, part: Part) -> None:
        super().__init__(part)
        self._known: tuple[Any, Tensor] | None = None

    def _keys(self, at: Sweep) -> Tensor:
        """Keys of the chains' random streams."""
        of = (tuple(at.numbers), at.seed)
        if self._known is None or self._known[0] != of:
            keys = chain_keys(spawn_seed(at.seed, self._number), at.numbers)
            self._known = of, keys.to(self._joint.layout.device)
        return self._known[1]

    def _uniforms(self, at: Sweep, size: int, stream: int = _STREAM_OF_CHOICES) -> Tensor:
        keys = self._keys(at)
        step = torch.tensor(at.step, device=keys.device)
        return uniform(keys, step, size, stream=stream, dtype=torch.float64)


class RandomWalkMove(_Drawing):
    """A :class:`RandomWalk`, recorded."""

    def __init__(self, walk: RandomWalk, part: Part) -> None:
        super().__init__(part)
        sites, joint, *_ = part
        self._own = joint.layout.part(sites)

        def move(values: Values, noise: Tensor, uniforms: Tensor) -> Tensor:
            return self._own.flatten(walk.move(joint.log_joint, values, sites, noise, uniforms))

        size, dtype = self._own.size, self._own.dtype
        self._move = joint.function(
            move,
            lambda: torch.randn(size, dtype=dtype, device=joint.layout.device),
            lambda: torch.rand(len(sites), dtype=torch.float64, device=joint.layout.device),
        )

    def __call__(self, state: None, values: Values, at: Sweep) -> tuple[None, Values]:
        keys = self._keys(at)
        step = torch.tensor(at.step, device=keys.device)
        noise = normal(keys, step, self._own.size, dtype=self._own.dtype)
        flat = self._joint.layout.flatten(values)
        uniforms = self._uniforms(at, len(self._sites))
        return None, self._own.unflatten(self._move.interpreted(flat, noise, uniforms))


class EllipticalMove(_Drawing):
    """An :class:`EllipticalSlice`, recorded."""

    def __init__(self, part: Part) -> None:
        super().__init__(part)
        sites, joint, *_ = part
        nodes = joint.log_joint.trace(joint.values).nodes
        self._priors, self._likelihoods = {}, {}
        for name in sites:
            like = joint.values[name]
            normal_prior(name, nodes[name], torch.zeros_like(like))  # which refuses others
            self._priors[name] = joint.function(
                partial(self._prior, name), partial(torch.randn_like, like.flatten())
            )
            self._likelihoods[name] = joint.function(partial(self._likelihood, name))

    def _prior(self, name: str, values: Values, noise: Tensor) -> Tensor:
        node = self._joint.log_joint.trace(values).nodes[name]
        found = normal_prior(name, node, noise.reshape(values[name].shape))
        return torch.stack([each.flatten() for each in found])

    def _likelihood(self, name: str, values: Values) -> Tensor:
        return self._joint.log_joint.likelihood(values, name)

    def __call__(self, state: None, values: Values, at: Sweep) -> tuple[None, Values]:
        layout = self._joint.layout
        keys = self._keys(at)
        step = torch.tensor(at.step, device=keys.device)
        flat = layout.flatten(values).clone()
        for position, (name, prior) in enumerate(self._priors.items()):
            columns = layout.columns(name)
            own = slice(columns.start, columns.stop)
            stream = 2 * position + _STREAM_OF_CHOICES
            uniforms = self._uniforms(at, NUM_UNIFORMS, stream)
            noise = normal(keys, step, len(columns), stream=stream + 1, dtype=flat.dtype)
            center, draw = prior.interpreted(flat, noise).unbind(1)

            def log_likelihood(
                rows: Tensor, name: str = name, own: slice = own, flat: Tensor = flat
            ) -> Tensor:
                tried = flat.clone()
                tried[:, own] = rows
                found: Tensor = self._likelihoods[name].interpreted(tried)
                return found

            moved = elliptical_slice(log_likelihood, flat[:, own], center, draw, uniforms)
            flat = flat.clone()
            flat[:, own] = moved
        found = layout.unflatten(flat)
        return None, {name: found[name] for name in self._priors}


class EnumeratedMove(_Drawing):
    """Draws of discrete sites from their full conditionals.

    Elements that are independent given all else, as those of most plates are, are drawn at once.
    """

    def __init__(self, part: Part) -> None:
        super().__init__(part)
        sites, joint, *_ = part
        nodes = joint.log_joint.trace(joint.values).nodes
        self._supports = {name: support_of(name, nodes[name]["fn"]) for name in sites}
        self._at_once: dict[str, BatchedFunction | None] = {}
        for name, support in self._supports.items():
            check_mask(joint.log_joint, joint.values, name, support)
            hides = nodes[name]["mask"] is not None or joint.values[name].numel() == 1
            self._at_once[name] = None if hides else self._conditional(name)

    def _conditional(self, name: str) -> BatchedFunction | None:
        """Index of the new value of each element, or ``None`` where elements must take turns."""
        joint, size = self._joint, self._joint.values[name].numel()
        try:
            found = full_conditional(joint.conditional([name]), name, joint.args, joint.kwargs)
        except ValueError:
            return None

        def draw(values: Values, uniforms: Tensor) -> Tensor:
            before = dict(joint.values)
            joint.values.update(values)
            try:
                logs = found()
            finally:
                joint.values.update(before)
            return _drawn(logs.flatten(1).mT, uniforms)

        return joint.function(
            draw, lambda: torch.rand(size, dtype=torch.float64, device=joint.layout.device)
        )

    def __call__(self, state: None, values: Values, at: Sweep) -> tuple[None, Values]:
        values = dict(values)
        for position, (name, support) in enumerate(self._supports.items()):
            stream = 2 * position + _STREAM_OF_CHOICES
            uniforms = self._uniforms(at, values[name][0].numel(), stream)
            function = self._at_once[name]
            if function is not None:
                flat = self._joint.layout.flatten(values)
                drawn = support[function.interpreted(flat, uniforms)]
                values[name] = drawn.reshape(values[name].shape)
            else:
                values[name] = self._in_turn(values, name, uniforms, at, stream + 1)
        return None, {name: values[name] for name in self._supports}

    def _in_turn(
        self, values: Values, name: str, uniforms: Tensor, at: Sweep, stream: int
    ) -> Tensor:
        """Draw the elements one after the other, in a random order of each chain."""
        layout, support = self._joint.layout, self._supports[name]
        flat = layout.flatten(values)
        orders = self._uniforms(at, uniforms.shape[1], stream).argsort(-1)
        columns = layout.columns(name).start + orders
        for turn in range(uniforms.shape[1]):
            column = columns[:, turn, None]
            tried = flat.repeat(len(support), 1, 1)
            index = column.expand(len(support), -1, -1)
            tried.scatter_(2, index, support.to(flat)[:, None, None].expand_as(index))
            logs = self._joint.density(tried.flatten(0, 1)).reshape(len(support), -1)
            flat.scatter_(1, column, support.to(flat)[_drawn(logs.mT, uniforms[:, turn])][:, None])
        return layout.unflatten(flat)[name]


def _drawn(logs: Tensor, uniforms: Tensor) -> Tensor:
    """Indices drawn by log probabilities. Shapes: logs (n, num_values); uniforms (n,)."""
    shares = logs.double().softmax(-1).cumsum(-1)
    return (shares < uniforms[:, None]).sum(-1).clamp(max=logs.shape[-1] - 1)


class PythonMove(Move):
    """A function, or an update without a state, for one chain after the other."""

    def __init__(
        self, block: ConditionalUpdate | Callable[[Values], Mapping[str, Tensor]], part: Part
    ) -> None:
        super().__init__(part)
        sites, joint, *_ = part
        self._move: Callable[[Values], Mapping[str, Tensor]]
        if isinstance(block, ConditionalUpdate):
            update = block.update
            self._move = lambda values: update(joint.log_joint, values, sites)
        else:
            self._move = partial(_called, block, sites)

    def __call__(self, state: None, values: Values, at: Sweep) -> tuple[None, Values]:
        rows = []
        for row, number in enumerate(at.numbers):
            before = {name: value[row] for name, value in values.items()}
            _set_seed(at.seed, number, at.step, self._number)
            try:
                rows.append(self._move(before))
            except Exception as error:
                if at.errors is None:
                    raise
                at.errors.setdefault(row, error)
                rows.append(before)
        return None, {
            name: torch.stack([torch.as_tensor(row[name]).to(values[name]) for row in rows])
            for name in self._sites
        }


def _set_seed(seed: int, *key: int) -> None:
    """Seed the generators for a part of what a seed stands for."""
    set_rng_seed(spawn_seed(seed, *key))


def _called(
    block: Callable[[Values], Mapping[str, Tensor]], sites: Sequence[str], values: Values
) -> Mapping[str, Tensor]:
    """Call a function of the user, which returns values of its sites."""
    found = block(dict(values))
    if set(found) != set(sites):
        raise ValueError(f"a function of the block of {sites} returned {sorted(found)}")
    return found


class OneChainMove(Move):
    """A kernel over partitions, or an update with a state, for a single chain.

    It is an object that steps change. The state is all of its numbers, which it is made to have
    where it has others.
    """

    def __init__(self, block: ConjugateKernel | ConditionalUpdate, part: Part) -> None:
        super().__init__(part)
        self._block = block
        self.kernel: Any = None
        self._live: State | None = None

    def _set_up(self, values: Values, at: Sweep) -> None:
        """Make the object anew, for the values of its chain."""
        block, joint = self._block, self._joint
        own = {name: value[0] for name, value in values.items()}
        joint.values.update(own)
        # Models and modules are those of the caller, the rest is its own.
        shared = {id(value): value for value in vars(block).values() if callable(value)}
        self.kernel = copy.deepcopy(block, shared)
        if isinstance(block, ConjugateKernel):
            self.kernel.initial_params = own
            self._seed(at, 0)
            with stepping(True):
                retried(lambda: self.kernel.setup(self._warmup_steps, *joint.args, **joint.kwargs))
            self.kernel.held = frozenset(own) - set(self._sites)

    def _seed(self, at: Sweep, purpose: int = 1) -> None:
        (number,) = at.numbers
        _set_seed(at.seed, number, at.step, self._number, purpose)

    def begin(self, values: Values, at: Sweep) -> State:
        self._set_up(values, at)
        self._live = read_state(self.kernel)
        return self._live

    def restored(
        self, values: Values, at: Sweep, tensors: Mapping[str, Tensor], content: Mapping[str, Any]
    ) -> State:
        return dict(tensors), dict(content["plain"])

    def saved(self, state: State) -> State:
        return state[0], {"plain": state[1]}

    def __call__(self, state: State, values: Values, at: Sweep) -> tuple[State, Values]:
        if state is not self._live:
            self._set_up(values, at)
            write_state(self.kernel, *state)
        own = {name: value[0] for name, value in values.items()}
        self._joint.values.update(own)
        self._live = None  # until the step has ended
        self._seed(at)
        with stepping(True):
            if isinstance(self._block, ConjugateKernel):
                found = self.kernel.sample(own)
            else:
                found = self.kernel.update(self._joint.log_joint, own, self._sites)
        if at.step + 1 == self._warmup_steps and isinstance(self._block, ConjugateKernel):
            self.kernel.end_warmup()
        self._live = read_state(self.kernel)
        return self._live, {name: found[name][None] for name in self._sites}
