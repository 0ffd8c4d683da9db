"""Many steps of a sampler over many chains: a Python loop, or a loop inside one compiled graph."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Generic, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch._higher_order_ops.while_loop import while_loop

from pyro_ext.inference.sgmcmc.core import Info, ValueAndGradient
from pyro_ext.potential import (
    BatchedFunction,
    capture,
    compile_graph,
    outputs_agree,
    static_shapes,
    warn_fallback,
)
from pyro_ext.random import normal

__all__ = ["StepLoop"]

State = TypeVar("State", bound=tuple[Tensor, ...])
Step = Callable[..., tuple[State, Info]]

_NOISE_PER_CALL = 1 << 16
_ELEMENTS_FOR_THREADS = 1 << 20
_INDICES_PER_CALL = 1 << 21
_MAX_COMPILED_STEPS = 256


class Plan(NamedTuple):
    """What the steps of a call take besides the state.

    :param Tensor keys: **Shape:** ``(num_chains, 2)``.
    :param Tensor steps: step numbers. **Shape:** ``(num_steps,)``.
    :param Tensor step_sizes: **Shape:** ``(num_steps,)``.
    :param Tensor temperatures: **Shape:** ``(num_steps,)``.
    :param Sequence indices: a tensor for each subsampled plate.
        **Shape:** ``(num_steps, num_chains, subsample_size)``.
    """

    keys: Tensor
    steps: Tensor
    step_sizes: Tensor
    temperatures: Tensor
    indices: Sequence[Tensor]


class StepLoop(Generic[State]):
    """Runs steps of a sampler; the same numbers on every backend but for rounding.

    Compiled, the gather of the minibatch, the gradient, the noise, the update and the loop over
    steps are one graph, so that no Python runs between two steps.

    :param step: pure step of the sampler; takes state, potential and gradient, noise, and the
        keywords ``step_size`` and ``temperature``.
    :param BatchedFunction gradient: potential and gradient over chains.
    :param int batch_elements: elements of a minibatch over all plates, which bounds the steps of a
        call.
    """

    def __init__(
        self, step: Step[State], gradient: BatchedFunction, batch_elements: int = 0
    ) -> None:
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

    def __call__(self, state: State, plan: Plan) -> tuple[State, Info]:
        """Take the planned steps; no more than :meth:`max_steps`."""
        num_chains, num_parameters = state[0].shape
        with _threads_for(num_chains * num_parameters):
            if self._gradient.backend == "compile":
                compiled = self._compiled_loop(state, plan)
                if compiled is not None:
                    return self._call_compiled(compiled, state, plan)
            return self._run(state, plan)

    def _run(self, state: State, plan: Plan) -> tuple[State, Info]:
        gradient = self._gradient.graph(len(state[0])) or self._gradient.one_by_one
        for number, step in enumerate(plan.steps.tolist()):
            with torch.no_grad():
                state, info = self._step(
                    state,
                    _at(gradient, [index[number] for index in plan.indices]),
                    self._noise(plan.keys, step, state[0]),
                    step_size=plan.step_sizes[number],
                    temperature=plan.temperatures[number],
                )
        return state, info

    def _noise(self, keys: Tensor, step: int, position: Tensor) -> Tensor:
        """Noise of a step, from a block drawn ahead: one step's alone costs as much."""
        known = self._drawn
        if known is None or known[0] is not keys or not 0 <= step - known[1] < len(known[2]):
            ahead = max(1, _NOISE_PER_CALL // position.numel())
            steps = torch.arange(step, step + ahead, device=position.device)
            block = normal(keys, steps, position.shape[-1], dtype=position.dtype)
            self._drawn = known = (keys, step, block)
        return known[2][step - known[1]]

    def _compiled_loop(self, state: State, plan: Plan) -> Callable[..., Any] | None:
        # Asking for the graph first also notices changed data, which makes it anew.
        graph = self._gradient.graph(len(state[0]))
        if graph is None:
            return None
        if self._compiled is None or self._compiled[0] is not graph:
            self._compiled = (graph, self._compile(graph, state, plan))
        return self._compiled[1]

    def _compile(
        self, graph: Callable[..., Any], state: State, plan: Plan
    ) -> Callable[..., Any] | None:
        arguments = _flatten(state, plan, self.max_steps(*state[0].shape))
        try:
            with torch.no_grad(), static_shapes():
                recorded = capture(self._while_loop(graph, type(state), len(state)), *arguments)
                loop = compile_graph(recorded, *arguments)
            check = Plan(
                plan.keys,
                plan.steps[:2],
                plan.step_sizes[:2],
                plan.temperatures[:2],
                [index[:2] for index in plan.indices],
            )
            agree = outputs_agree(self._call_compiled(loop, state, check), self._run(state, check))
        except Exception as error:  # whatever a compiler may raise
            warn_fallback("the steps cannot be compiled", "running them through the graph", error)
            return None
        if not agree:
            warn_fallback("the compiled steps disagree", "using the graph", "other numbers")
            return None
        return loop

    def _while_loop(
        self, graph: Callable[..., Any], state_type: Callable[..., Any], num_leaves: int
    ) -> Callable[..., Any]:
        def run(
            count: Tensor,
            keys: Tensor,
            steps: Tensor,
            step_sizes: Tensor,
            temperatures: Tensor,
            energy: Tensor,
            *rest: Tensor,
        ) -> Any:
            leaves, indices = rest[:num_leaves], rest[num_leaves:]

            def proceed(number: Tensor, *carried: Tensor) -> Tensor:
                return number < count

            def body(number: Tensor, *carried: Tensor) -> tuple[Tensor, ...]:
                pick = number.reshape(1)
                batch = [index.index_select(0, pick)[0] for index in indices]
                position = carried[0]
                noise = normal(
                    keys, steps.index_select(0, pick)[0], position.shape[-1], dtype=position.dtype
                )
                state, info = self._step(
                    state_type(*carried[:-1]),
                    _at(graph, batch),
                    noise,
                    step_size=step_sizes.index_select(0, pick)[0],
                    temperature=temperatures.index_select(0, pick)[0],
                )
                return (number + 1, *state, info.potential_energy)

            start = torch.zeros_like(count)
            return while_loop(proceed, body, (start, *leaves, energy))[1:]

        return run

    def _call_compiled(
        self, loop: Callable[..., Any], state: State, plan: Plan
    ) -> tuple[State, Info]:
        with torch.no_grad():
            *leaves, energy = loop(*_flatten(state, plan, self.max_steps(*state[0].shape)))
        return type(state)(*leaves), Info(energy)


@contextmanager
def _threads_for(num_elements: int) -> Iterator[None]:
    """Use one thread where a step is too small to share.

    A step is a chain of short operations. Threads that wait for each other between them cost more
    than they give, and on a busy machine a hundred times more.
    """
    before = torch.get_num_threads()
    if num_elements < _ELEMENTS_FOR_THREADS:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _at(gradient: Callable[..., Any], indices: Sequence[Tensor]) -> ValueAndGradient:
    """Potential and gradient on given minibatches, as a function of the position."""

    def value_and_gradient(position: Tensor) -> tuple[Tensor, Tensor]:
        value, slope = gradient(position, *indices)
        return value, slope

    return value_and_gradient


def _flatten(state: tuple[Tensor, ...], plan: Plan, capacity: int) -> list[Tensor]:
    """Arguments of the compiled loop; per-step tensors are padded to a fixed number of steps."""
    return [
        torch.tensor(len(plan.steps), device=plan.keys.device),
        plan.keys,
        *(_pad(part, capacity) for part in (plan.steps, plan.step_sizes, plan.temperatures)),
        state[0].new_zeros(len(state[0])),
        *state,
        *(_pad(index, capacity) for index in plan.indices),
    ]


def _pad(tensor: Tensor, length: int) -> Tensor:
    if len(tensor) == length:
        return tensor
    padded = tensor.new_zeros((length, *tensor.shape[1:]))
    padded[: len(tensor)] = tensor
    return padded
