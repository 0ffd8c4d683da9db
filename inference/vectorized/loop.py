"""Many steps of a sampler over many chains: a Python loop, or a loop inside one compiled graph."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Generic, NamedTuple, TypeVar

import torch
from torch import Tensor

from pyro_ext.inference.vectorized.chains import Info
from pyro_ext.potential import (
    BatchedFunction,
    agree_but_for_rounding,
    capture_abstract,
    compile_graph,
    warn_fallback,
)
from pyro_ext.potential.control_variates import Anchor, control
from pyro_ext.random import normal

State = TypeVar("State", bound=tuple[Tensor, ...])
Step = Callable[..., tuple[State, Info]]

_NOISE_PER_CALL = 1 << 16
_INDICES_PER_CALL = 1 << 21
_MAX_COMPILED_STEPS = 256
_MAX_COMPILED_ROWS = 32
_ROWS_TIMES_COPIES = 1 << 19
_NUM_PER_CALL = 6  # arguments of a compiled call before the state


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
    :param Anchor anchor: anchor of the control variates, ``None`` without them.
    :param Sequence given: what the gradient takes besides positions and minibatches.
    """

    keys: Tensor
    steps: Tensor
    step_sizes: Tensor
    temperatures: Tensor
    rows: Tensor
    indices: Sequence[Tensor]
    anchor: Anchor | None = None
    given: Sequence[Tensor] = ()

    @property
    def num_rows(self) -> int:
        """Number of draws that the steps lead to."""
        return int(self.rows[-1]) + 1

    def first(self, num_steps: int) -> "Plan":
        """Plan of the first steps."""
        return self._replace(
            steps=self.steps[:num_steps],
            step_sizes=self.step_sizes[:num_steps],
            temperatures=self.temperatures[:num_steps],
            rows=self.rows[:num_steps],
            indices=[index[:num_steps] for index in self.indices],
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
        self._compiled: tuple[Callable[..., Any], Callable[..., Any] | None] | None = None
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

    def _compiled_loop(self, state: State, plan: Plan) -> Callable[..., Any] | None:
        # Asking for the graph first also notices changed data, which makes it anew.
        graph = self._gradient.graph(_num_points(state, plan))
        if graph is None:
            return None
        if self._compiled is None or self._compiled[0] is not graph:
            self._compiled = (graph, self._compile(graph, state, plan))
        return self._compiled[1]

    def _compile(
        self, graph: Callable[..., Any], state: State, plan: Plan
    ) -> Callable[..., Any] | None:
        arguments = self._flatten(state, plan)
        try:
            loop = compile_graph(
                capture_abstract(self._while_loop(graph, state, plan), *arguments), *arguments
            )
            check = plan.first(2)
            compiled = self._call_compiled(loop, state, check)
            # The noise that it draws ahead serves the runs after it, which are of the same steps.
            stepped = self._run(state, check, num_ahead=len(check.steps))
            verdict = agree_but_for_rounding(lambda: self._run(state, check), compiled, stepped)
        except Exception as error:  # whatever a compiler may raise
            warn_fallback("the steps cannot be compiled", "running them through the graph", error)
            return None
        if verdict is False:
            warn_fallback("the compiled steps disagree", "using the graph", "other numbers")
            return None
        return loop

    def _while_loop(
        self, graph: Callable[..., Any], state: State, plan: Plan
    ) -> Callable[..., Any]:
        make_state, num_leaves = type(state), len(state)
        num_constants = num_leaves + len(plan.anchor or ())
        num_indices = num_constants + len(plan.indices)
        num_rows = self.max_rows(*state[0].shape)

        def run(*arguments: Tensor) -> Any:
            num_arguments = len(arguments)

            def proceed(number: Tensor, *others: Tensor) -> Tensor:
                return number < others[-num_arguments]

            def body(number: Tensor, *others: Tensor) -> tuple[Tensor, ...]:
                carried = others[:-num_arguments]
                _, keys, steps, step_sizes, temperatures, rows, *rest = others[-num_arguments:]
                anchor = Anchor(*rest[num_leaves:num_constants]) if plan.anchor else None
                pick = number.reshape(1)
                indices = rest[num_constants:num_indices]
                batch = [index.index_select(0, pick)[0] for index in indices]
                position, draws = carried[0], carried[num_leaves:]
                noise = normal(
                    keys, steps.index_select(0, pick)[0], position.shape[-1], dtype=position.dtype
                )
                after, info = self._step(
                    make_state(*carried[:num_leaves]),
                    _at(graph, [*batch, *rest[num_indices:]], anchor),
                    noise,
                    step_size=step_sizes.index_select(0, pick)[0],
                    temperature=temperatures.index_select(0, pick)[0],
                )
                row = rows.index_select(0, pick)
                made = (*after, info.potential_energy)
                return (
                    number + 1,
                    *after,
                    *(
                        draw.index_copy(0, row, part[None])
                        for draw, part in zip(draws, made, strict=True)
                    ),
                )

            leaves = arguments[_NUM_PER_CALL : _NUM_PER_CALL + num_leaves]
            recorded = (*leaves, leaves[0][:, 0])  # the last one stands for the potential
            draws = [leaf.new_zeros(num_rows, *leaf.shape) for leaf in recorded]
            start = torch.zeros_like(arguments[0])
            # The function of the same name in torch would trace all once more.
            loop = torch.ops.higher_order.while_loop
            return loop(proceed, body, (start, *leaves, *draws), arguments)[1:]

        return run

    def _call_compiled(self, loop: Callable[..., Any], state: State, plan: Plan) -> Run[State]:
        make_state, num_leaves = type(state), len(state)
        with torch.no_grad():
            results = loop(*self._flatten(state, plan))
        *draws, energy = (part[: plan.num_rows] for part in results[num_leaves:])
        return Run(make_state(*results[:num_leaves]), make_state(*draws), energy)

    def _flatten(self, state: State, plan: Plan) -> list[Tensor]:
        """Arguments of the compiled loop; per-step tensors are padded to a fixed number."""
        capacity = self.max_steps(*state[0].shape)
        per_step = (plan.steps, plan.step_sizes, plan.temperatures, plan.rows)
        return [
            torch.tensor(len(plan.steps), device=plan.keys.device),
            plan.keys,
            *(_pad(part, capacity) for part in per_step),
            # The loop's body has to return the strides it got, those of one chain's column too.
            *(leaf.clone(memory_format=torch.contiguous_format) for leaf in state),
            *(plan.anchor or ()),
            *(_pad(index, capacity) for index in plan.indices),
            *plan.given,
        ]


def _num_points(state: tuple[Tensor, ...], plan: Plan) -> int:
    """Number of points at which a step takes the gradient."""
    return len(state[0]) * (1 if plan.anchor is None else 2)


def _at(
    function: Callable[..., Any], others: Sequence[Tensor], anchor: Anchor | None
) -> Callable[[Tensor], Any]:
    """Bind minibatches to what a step calls, as a function of the position."""
    controlled = function if anchor is None else control(function, anchor)
    return lambda position: controlled(position, *others)


def _pad(tensor: Tensor, length: int) -> Tensor:
    if len(tensor) == length:
        return tensor
    padded = tensor.new_zeros((length, *tensor.shape[1:]))
    padded[: len(tensor)] = tensor
    return padded
