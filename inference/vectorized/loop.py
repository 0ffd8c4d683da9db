"""Many steps of a sampler over many chains: a Python loop, or a loop inside one compiled graph."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Generic, NamedTuple, TypeVar

import torch
from torch import Tensor

from pyro_ext.inference.vectorized.chains import Info
from pyro_ext.inference.vectorized.compiled_loop import CompiledLoop, compiled_loop
from pyro_ext.potential import BatchedFunction, agree_but_for_rounding
from pyro_ext.potential.control_variates import Anchor, control
from pyro_ext.random import normal

State = TypeVar("State", bound=tuple[Tensor, ...])
Step = Callable[..., tuple[State, Info]]

_NOISE_PER_CALL = 1 << 16
_INDICES_PER_CALL = 1 << 21
_MAX_COMPILED_STEPS = 256
_MAX_COMPILED_ROWS = 32
_ROWS_TIMES_COPIES = 1 << 19


class Plan(NamedTuple):
    """Inputs of the steps of a call besides the state.

    :param Tensor keys: **Shape:** ``(num_chains, 2)``.
    :param Tensor steps: step numbers. **Shape:** ``(num_steps,)``.
    :param Tensor step_sizes: **Shape:** ``(num_steps,)``.
    :param Tensor temperatures: **Shape:** ``(num_steps,)``.
    :param Tensor rows: number of the draw that each step leads to, from zero on; the last step that
        leads to it makes it. **Shape:** ``(num_steps,)``.
    :param Sequence indices: a tensor for each subsampled plate.
        **Shape:** ``(num_steps, num_chains, subsample_size)``.
    :param Anchor anchor: anchor of the control variates, empty without them.
    :param Sequence given: what the gradient takes besides positions and minibatches.
    """

    keys: Tensor
    steps: Tensor
    step_sizes: Tensor
    temperatures: Tensor
    rows: Tensor
    indices: Sequence[Tensor]
    anchor: Anchor | tuple[()] = ()  # ``None`` would be a leaf of the inputs of a compiled loop
    given: Sequence[Tensor] = ()

    @property
    def num_rows(self) -> int:
        """Number of draws that the steps lead to."""
        return int(self.rows[-1]) + 1

    def map_steps(self, function: Callable[[Tensor], Tensor]) -> "Plan":
        """Apply a function to each tensor whose first dimension is that of the steps."""
        tensors = (self.steps, self.step_sizes, self.temperatures, self.rows)
        steps, step_sizes, temperatures, rows = map(function, tensors)
        indices = [function(index) for index in self.indices]
        return Plan(
            self.keys, steps, step_sizes, temperatures, rows, indices, self.anchor, self.given
        )


class Run(NamedTuple, Generic[State]):
    """Result of the steps of a call.

    :param tuple state: the state after the last of them.
    :param tuple draws: states after the last step of each row, with another leading dimension.
    :param Tensor potential_energy: potentials that these steps saw.
        **Shape:** ``(num_rows, num_chains)``.
    """

    state: State
    draws: State
    potential_energy: Tensor


class _Carried(NamedTuple, Generic[State]):
    """State that a compiled step receives and returns, and the draws of its call."""

    number: Tensor
    state: State
    draws: tuple[Tensor, ...]


class StepLoop(Generic[State]):
    """Runs steps of a sampler; the same numbers on every backend but for rounding.

    Compiled, the gather of the minibatch, the gradient, the noise, the update and the loop over
    steps are one graph, so that no Python runs between two steps.

    :param step: pure step of the sampler; takes state, potential and gradient, noise, and the
        keywords ``step_size`` and ``temperature``.
    :param BatchedFunction gradient: potential and gradient over chains, or the potential alone for
        a step that needs no more.
    :param int batch_elements: elements of a minibatch over all plates, which bounds the steps of a
        call.
    :ivar dict errors: set to a dict, it takes what the model raised for single chains, by index,
        where the chains run one by one in Python; such a chain then goes on with NaN.
    """

    def __init__(
        self, step: Step[State], gradient: BatchedFunction, batch_elements: int = 0
    ) -> None:
        self.errors: dict[int, Exception] | None = None
        self._step = step
        self._gradient = gradient
        self._batch_elements = batch_elements
        self._compiled: tuple[Any, CompiledLoop[Any, Any] | None] | None = None
        self._drawn: tuple[Tensor, int, Tensor] | None = None

    def max_steps(self, num_chains: int, num_parameters: int) -> int:
        """Number of steps that one call takes at most."""
        if self._gradient.backend == "compile":
            elements = max(1, num_chains * self._batch_elements)
            return max(1, min(_MAX_COMPILED_STEPS, _INDICES_PER_CALL // elements))
        return max(1, _NOISE_PER_CALL // (num_chains * num_parameters))

    def max_rows(self, num_chains: int, num_parameters: int) -> int:
        """Number of draws that one call makes at most."""
        if self._gradient.backend != "compile":
            return self.max_steps(num_chains, num_parameters)
        # A compiled step copies all rows; this many balance the copies with the cost of a call.
        balance = math.isqrt(_ROWS_TIMES_COPIES // (num_chains * num_parameters))
        return max(1, min(_MAX_COMPILED_ROWS, balance))

    def __call__(self, state: State, plan: Plan) -> Run[State]:
        """Take the planned steps, within :meth:`max_steps` and :meth:`max_rows`."""
        if self._gradient.backend == "compile":
            compiled = self._compiled_loop(state, plan)
            if compiled is not None:
                return self._call_compiled(compiled, state, plan)
        return self._run(state, plan)

    def _run(self, state: State, plan: Plan, num_ahead: int = 0) -> Run[State]:
        gradient = self._gradient.graph(_num_points(state, plan)) or partial(
            self._gradient.one_by_one, errors=self.errors
        )
        draws: dict[int, tuple[Tensor, ...]] = {}
        for number, (step, row) in enumerate(
            zip(plan.steps.tolist(), plan.rows.tolist(), strict=True)
        ):
            with torch.no_grad():
                state, info = self._step(
                    state,
                    _at(
                        gradient,
                        [*(index[number] for index in plan.indices), *plan.given],
                        plan.anchor,
                    ),
                    self._noise(plan.keys, step, state[0], num_ahead),
                    step_size=plan.step_sizes[number],
                    temperature=plan.temperatures[number],
                )
            draws[row] = (*state, info.potential_energy)
        *leaves, energy = (torch.stack(parts) for parts in zip(*draws.values(), strict=True))
        return Run(state, type(state)(*leaves), energy)

    def _noise(self, keys: Tensor, step: int, position: Tensor, num_ahead: int) -> Tensor:
        """Noise of a step, from a block drawn ahead: one step's alone costs as much."""
        known = self._drawn
        if known is None or known[0] is not keys or not 0 <= step - known[1] < len(known[2]):
            ahead = num_ahead or max(1, _NOISE_PER_CALL // position.numel())
            steps = torch.arange(step, step + ahead, device=position.device)
            block = normal(keys, steps, position.shape[-1], dtype=position.dtype)
            self._drawn = known = (keys, step, block)
        return known[2][step - known[1]]

    def _compiled_loop(self, state: State, plan: Plan) -> CompiledLoop[Any, Any] | None:
        # Asking for the graph first also notices changed data, which makes it anew.
        graph = self._gradient.graph(_num_points(state, plan))
        if graph is None:
            return None
        if self._compiled is None or self._compiled[0] is not graph:
            self._compiled = (graph, self._compile(graph, state, plan))
        return self._compiled[1]

    def _compile(
        self, graph: Callable[..., Any], state: State, plan: Plan
    ) -> CompiledLoop[Any, Any] | None:
        def body(carried: _Carried[State], inputs: tuple[Tensor, Plan]) -> _Carried[State]:
            pick, plan = carried.number.reshape(1), inputs[1]
            step, step_size, temperature = (
                each.index_select(0, pick)[0]
                for each in (plan.steps, plan.step_sizes, plan.temperatures)
            )
            position: Tensor = carried.state[0]
            state, info = self._step(
                carried.state,
                _at(
                    graph,
                    [*(each.index_select(0, pick)[0] for each in plan.indices), *plan.given],
                    plan.anchor,
                ),
                normal(plan.keys, step, position.shape[-1], dtype=position.dtype),
                step_size=step_size,
                temperature=temperature,
            )
            row = plan.rows.index_select(0, pick)
            draws = tuple(
                draw.index_copy(0, row, part[None])
                for draw, part in zip(carried.draws, (*state, info.potential_energy), strict=True)
            )
            return _Carried(carried.number + 1, state, draws)

        def is_right(loop: CompiledLoop[Any, Any]) -> bool:
            check = plan.map_steps(lambda each: each[:2])
            compiled = self._call_compiled(loop, state, check)
            # The noise that it draws ahead serves the runs after it, which are of the same steps.
            stepped = self._run(state, check, num_ahead=len(check.steps))
            verdict = agree_but_for_rounding(lambda: self._run(state, check), compiled, stepped)
            return verdict is not False

        return compiled_loop(
            "steps",
            lambda carried, inputs: carried.number < inputs[0],
            body,
            *self._padded(state, plan),
            is_right,
        )

    def _call_compiled(self, loop: CompiledLoop[Any, Any], state: State, plan: Plan) -> Run[State]:
        after = loop(*self._padded(state, plan))
        *draws, energy = (part[: plan.num_rows] for part in after.draws)
        return Run(after.state, type(state)(*draws), energy)

    def _padded(self, state: State, plan: Plan) -> tuple[_Carried[State], tuple[Tensor, Plan]]:
        """Arguments of the compiled loop; per-step tensors are padded to a fixed number."""
        capacity = self.max_steps(*state[0].shape)
        num_rows = self.max_rows(*state[0].shape)
        number = torch.tensor(len(plan.steps), device=plan.keys.device)
        recorded = (*state, state[0][:, 0])  # the last one stands for the potential
        draws = tuple(leaf.new_zeros(num_rows, *leaf.shape) for leaf in recorded)
        padded = plan.map_steps(lambda each: _pad(each, capacity))
        return _Carried(torch.zeros_like(number), state, draws), (number, padded)


def _num_points(state: tuple[Tensor, ...], plan: Plan) -> int:
    """Number of points at which a step takes the gradient."""
    return len(state[0]) * (2 if plan.anchor else 1)


def _at(
    function: Callable[..., Any], others: Sequence[Tensor], anchor: Anchor | tuple[()]
) -> Callable[[Tensor], Any]:
    """Bind minibatches to what a step calls, as a function of the position."""
    controlled = control(function, anchor) if anchor else function
    return lambda position: controlled(position, *others)


def _pad(tensor: Tensor, length: int) -> Tensor:
    if len(tensor) == length:
        return tensor
    padded = tensor.new_zeros((length, *tensor.shape[1:]))
    padded[: len(tensor)] = tensor
    return padded
