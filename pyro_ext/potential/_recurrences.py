"""Loops in which each step takes the result of the one before, where that result enters linearly.

Variances of a GARCH model, errors of a moving average, levels and trends of exponential smoothing:
``state[t] = slope[t] @ state[t - 1] + constant[t]``. Two such steps in a row are one of the same
form, so that all states come from a number of rounds that grows with the logarithm of their number.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pyro_ext.potential._recorder import Ref, Rows, Stacked, Step, as_one, is_number, put_back

_aten = torch.ops.aten
_ROOT = _aten.sqrt.default
_LEAST_PERIODS = 16
_MOST_STEPS = 64  # in one period
_MOST_STATES = 4  # whose products grow with the third power


def solve_recurrences(
    steps: Sequence[Step], outputs: Sequence[Any]
) -> tuple[list[Step], list[Any]]:
    """Compute what is passed on from step to step of a loop in few rounds.

    :param steps: of a function, each after those that it takes results of.
    :param outputs: what the function returns.
    :returns: both, with steps that take results of later ones; see :func:`in_order`.
    """
    found = [*steps]
    places: dict[int, Ref] = {}
    for run in _runs(steps):
        for recurrence in _recurrences(steps, run):
            number = len(found)
            found.append(recurrence.step)
            for output, numbers in enumerate(recurrence.numbers):
                places |= {each: Ref(number, output, row) for row, each in enumerate(numbers)}

    def placed(leaf: Any) -> Any:
        if isinstance(leaf, Rows):
            return Rows(tuple(map(placed, leaf.refs)))
        return places.get(leaf.step, leaf) if isinstance(leaf, Ref) else leaf

    moved = [
        Step(step.target, tuple(map(placed, step.leaves)), step.spec, step.kinds) for step in found
    ]
    return moved, list(map(placed, outputs))


# Where a loop repeats ----------------------------------------------------------------------------


class _Run(NamedTuple):
    """Steps from ``start`` to ``end`` that repeat after ``period`` of them."""

    start: int
    end: int
    period: int


def _runs(steps: Sequence[Step]) -> Iterator[_Run]:
    """Parts of a function that do the same again and again, shortest periods first."""
    ids: dict[Any, int] = {}
    kinds = np.array([ids.setdefault(_likeness(step, steps), len(ids)) for step in steps])
    is_free = np.ones(len(steps), dtype=bool)
    for period in range(1, min(_MOST_STEPS, len(steps) // _LEAST_PERIODS) + 1):
        is_same = (kinds[period:] == kinds[:-period]) & is_free[period:] & is_free[:-period]
        edges = np.flatnonzero(np.diff(np.concatenate([[False], is_same, [False]])))
        for start, end in edges.reshape(-1, 2).tolist():
            if end - start >= (_LEAST_PERIODS - 1) * period:
                is_free[start : end + period] = False
                yield _Run(start, end + period, period)


def _likeness(step: Step, steps: Sequence[Step]) -> Any:
    """Return a key shared by steps that apply the same operation to tensors of the same kinds."""
    keys: list[Any] = []
    for leaf in step.leaves:
        if isinstance(leaf, Ref):
            keys.append(steps[leaf.step].kinds[leaf.output])
        elif isinstance(leaf, Tensor):
            keys.append((leaf.shape, leaf.dtype))
        elif isinstance(leaf, Rows):
            return id(step)
        else:
            keys.append(type(leaf) if is_number(leaf) else (type(leaf), leaf))
    return step.target, step.spec, step.kinds, *keys


# What is passed on -------------------------------------------------------------------------------


class _Found(NamedTuple):
    """A recurrence: the step that solves it, and which steps are the rows of its results."""

    step: Step
    numbers: list[list[int]]


class _Edge(NamedTuple):
    """A place of the loop at which a leaf is computed, so many periods before."""

    place: int
    lag: int


def _recurrences(steps: Sequence[Step], run: _Run) -> Iterator[_Found]:
    """Recurrences of a part that repeats."""
    done: set[int] = set()
    for start in range(run.start, run.start + run.period):
        count = (run.end - start) // run.period
        numbers = start + np.arange(count)[:, None] * run.period + np.arange(run.period)
        is_left = False
        for loop, edges in _loops(steps, numbers):
            last = [int(numbers[-1, place]) for place in loop]
            if done.isdisjoint(last):
                found = _solved(steps, numbers, loop, edges)
                if found is not None:
                    done.update(int(n) for rows in numbers[:, loop].tolist() for n in rows)
                    yield found
                # A root and its square may have to stand in the same period.
                has_root = any(steps[number].target is _ROOT for number in last)
                is_left = is_left or (found is None and has_root)
        if not is_left:
            return


def _loops(
    steps: Sequence[Step], numbers: npt.NDArray[np.int64]
) -> Iterator[tuple[tuple[int, ...], dict[tuple[int, int], _Edge]]]:
    """Places that depend on each other, and what each leaf of theirs takes from them."""
    period = numbers.shape[1]
    edges = {
        (place, position): edge
        for place in range(period)
        for position in range(len(steps[numbers[-1, place]].leaves))
        if (edge := _edge(steps, numbers, place, position)) is not None
    }
    reached = np.zeros((period, period), dtype=bool)
    for (place, _), edge in edges.items():
        reached[place, edge.place] = True
    for _ in range(period.bit_length()):
        reached |= reached @ reached
    is_mutual = reached & reached.T
    for loop in {tuple(np.flatnonzero(row).tolist()): None for row in is_mutual if row.any()}:
        yield loop, {key: e for key, e in edges.items() if key[0] in loop and e.place in loop}


def _edge(
    steps: Sequence[Step], numbers: npt.NDArray[np.int64], place: int, position: int
) -> _Edge | None:
    """Find the place in the loop that computes a leaf; ``None`` if it is outside or varies."""
    period = numbers.shape[1]
    leaf = steps[numbers[-1, place]].leaves[position]
    if not isinstance(leaf, Ref) or leaf.step < numbers[0, 0]:
        return None
    offset = int(numbers[-1, place]) - leaf.step
    lag = (offset - place + period - 1) // period
    for number in numbers[lag:, place].tolist():
        if steps[number].leaves[position] != Ref(number - offset, leaf.output):
            return None
    return _Edge((place - offset) % period, lag)


def _solved(
    steps: Sequence[Step],
    numbers: npt.NDArray[np.int64],
    loop: Sequence[int],
    edges: Mapping[tuple[int, int], _Edge],
) -> _Found | None:
    """The recurrence of places that depend on each other, ``None`` where it is not linear."""
    lags = dict.fromkeys(sorted({edge.place for edge in edges.values() if edge.lag}), 1)
    for edge in edges.values():
        if edge.lag:
            lags[edge.place] = max(lags[edge.place], edge.lag)
    states = [(place, lag) for place, most in lags.items() for lag in range(1, most + 1)]
    kinds = {steps[number].kinds for number in numbers[-1, loop]}
    first = max(lags.values())
    if len(states) > _MOST_STATES or len(kinds) > 1 or len(numbers) - first < _LEAST_PERIODS:
        return None
    kind = kinds.pop()
    if len(kind) > 1 or not kind[0][1].is_floating_point:
        return None
    leaves: list[Any] = [Ref(int(numbers[first - lag, place]), 0) for place, lag in states]
    program: list[_Operation] = []
    for place in loop:
        same = as_one([steps[number] for number in numbers[first:, place].tolist()])
        operands: list[tuple[str, int]] = []
        for position, leaf in enumerate(same.leaves):
            inner = edges.get((place, position))
            if inner is None:
                is_row = isinstance(leaf, Rows | Stacked)
                operands.append(("row" if is_row else "same", len(leaves)))
                leaves.append(leaf)
            elif inner.lag:
                operands.append(("state", states.index((inner.place, inner.lag))))
            else:
                operands.append(("value", loop.index(inner.place)))
        program.append(_Operation(same.target, tuple(operands), same.spec))
    results = [loop.index(place) if lag == 1 else None for place, lag in states]
    recurrence = _Recurrence(tuple(program), tuple(results), len(numbers) - first)
    examples = {index: _example(leaf, steps) for index, leaf in enumerate(leaves)}
    own = numbers[first:, loop].ravel().tolist()
    if not recurrence.is_linear(examples) or _is_behind(steps, own, leaves[len(states) :]):
        return None
    step = Step(recurrence, tuple(leaves), ((None,) * len(leaves), ()), kind * len(lags))
    return _Found(step, [numbers[first:, place].tolist() for place in lags])


def _example(leaf: Any, steps: Sequence[Step]) -> Any:
    """A number of the type of a leaf."""
    leaf = leaf.refs[0] if isinstance(leaf, Rows) else leaf
    if isinstance(leaf, Ref):
        return torch.ones((), dtype=steps[leaf.step].kinds[leaf.output][1])
    leaf = leaf.value if isinstance(leaf, Stacked) else leaf
    return torch.ones((), dtype=leaf.dtype) if isinstance(leaf, Tensor) else leaf


def _is_behind(steps: Sequence[Step], inner: Sequence[int], leaves: Sequence[Any]) -> bool:
    """Tell whether what a recurrence takes from outside depends on what it computes."""
    behind = set(inner)
    for number in range(min(inner), max(inner)):
        if any(ref.step in behind for ref in steps[number].refs()):
            behind.add(number)
    refs = [ref for leaf in leaves for ref in (leaf.refs if isinstance(leaf, Rows) else [leaf])]
    return any(isinstance(ref, Ref) and ref.step in behind for ref in refs)


# Linear functions --------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Linear:
    """A constant, and a sum of states times their slopes."""

    constant: Any = 0.0
    slopes: Mapping[int, Any] = field(default_factory=dict)

    def map(self, function: Callable[[Any], Any]) -> "_Linear":
        """Apply a function to the constant and to all slopes."""
        slopes = {state: function(slope) for state, slope in self.slopes.items()}
        return _Linear(function(self.constant), slopes)


@dataclass(frozen=True)
class _Root:
    """Square root of a linear function, of which the square is wanted."""

    square: _Linear


class _NotLinear(Exception):
    """An operation whose result is no linear function of the states."""


def _linear(value: Any) -> _Linear:
    if isinstance(value, _Root):
        raise _NotLinear
    return value if isinstance(value, _Linear) else _Linear(value)


def _add(one: Any, other: Any, alpha: float = 1) -> _Linear:
    one, other = _linear(one), _linear(other)
    slopes = dict(one.slopes)
    for state, slope in other.slopes.items():
        slopes[state] = slopes.get(state, 0.0) + alpha * slope
    return _Linear(one.constant + alpha * other.constant, slopes)


def _subtract(one: Any, other: Any, alpha: float = 1) -> _Linear:
    return _add(one, other, -alpha)


def _multiply(one: Any, other: Any) -> _Linear:
    if isinstance(one, _Root) and one is other:
        return one.square
    first, second = _linear(one), _linear(other)
    if first.slopes and second.slopes:
        raise _NotLinear
    factor, linear = (second, first) if first.slopes else (first, second)
    return linear.map(lambda part: factor.constant * part)


def _divide(one: Any, other: Any) -> _Linear:
    divisor = _linear(other)
    if divisor.slopes:
        raise _NotLinear
    return _linear(one).map(lambda part: part / divisor.constant)


def _power(one: Any, exponent: Any) -> _Linear:
    if not isinstance(one, _Root) or exponent != 2:
        raise _NotLinear
    return one.square


def _where(condition: Any, one: Any, other: Any) -> _Linear:
    one, other = _linear(one), _linear(other)
    if isinstance(condition, _Linear | _Root):
        raise _NotLinear

    def chosen(a: Any, b: Any) -> Tensor:
        return torch.where(condition, a, b)

    slopes = {
        state: chosen(one.slopes.get(state, 0.0), other.slopes.get(state, 0.0))
        for state in {**one.slopes, **other.slopes}
    }
    return _Linear(chosen(one.constant, other.constant), slopes)


_LINEAR: dict[Any, Callable[..., _Linear | _Root]] = {
    _aten.add.Tensor: _add,
    _aten.sub.Tensor: _subtract,
    _aten.rsub.Scalar: lambda one, other, alpha=1: _subtract(other, one, alpha),
    _aten.mul.Tensor: _multiply,
    _aten.div.Tensor: _divide,
    _aten.neg.default: lambda one: _linear(one).map(lambda part: -part),
    _aten.where.self: _where,
    _ROOT: lambda one: _Root(_linear(one)),
    _aten.pow.Tensor_Scalar: _power,
}


# All states at once ------------------------------------------------------------------------------


class _Operation(NamedTuple):
    """An operation of a loop; operands are states, values of the loop, or given from outside."""

    target: Any
    operands: tuple[tuple[str, int], ...]
    spec: Any


@dataclass(frozen=True, eq=False)
class _Recurrence:
    """States of a linear recurrence, as a function of the first ones and of what enters it.

    :param program: operations of one step of the loop.
    :param results: for each state the operation that gives its next value, ``None`` where that is
        the last value of the state before it.
    :param int length: number of steps.
    """

    program: tuple[_Operation, ...]
    results: tuple[int | None, ...]
    length: int

    def is_linear(self, given: Mapping[int, Any]) -> bool:
        """Tell whether the states enter linearly; what is given counts by its type alone."""
        try:
            self._one_step(given)
        except (_NotLinear, KeyError):
            return False
        return True

    def __call__(self, *given: Tensor) -> tuple[Tensor, ...]:
        """States after each step, without those that are other states of the step before."""
        first = torch.stack(given[: len(self.results)])
        rows = {index for op in self.program for kind, index in op.operands if kind == "row"}
        aligned = {i: _aligned(x, first.dim()) if i in rows else x for i, x in enumerate(given)}
        states = self._one_step(aligned)

        def dense(value: Any) -> Tensor:
            row = torch.as_tensor(value, dtype=first.dtype, device=first.device)
            return row.expand(self.length, *first.shape[1:])

        constants = torch.stack([dense(state.constant) for state in states], 1)
        slopes = torch.stack(
            [
                torch.stack([dense(state.slopes.get(i, 0.0)) for i in range(len(states))], 1)
                for state in states
            ],
            1,
        )
        solved: Tensor = _Solve.apply(slopes, constants, first)  # type: ignore[no-untyped-call]
        states_of = zip(solved.unbind(1), self.results, strict=True)
        return tuple(state for state, result in states_of if result is not None)

    def _one_step(self, given: Mapping[int, Any]) -> list[_Linear]:
        """Next states as linear functions of the last ones."""
        values: list[_Linear | _Root] = []
        for target, operands, spec in self.program:
            leaves: list[Any] = []
            for kind, index in operands:
                if kind == "state":
                    leaves.append(_Linear(0.0, {index: 1.0}))
                else:
                    leaves.append(values[index] if kind == "value" else given[index])
            args, kwargs = put_back(leaves, spec)
            values.append(_LINEAR[target](*args, **kwargs))
        return [
            _Linear(0.0, {i - 1: 1.0}) if result is None else _linear(values[result])
            for i, result in enumerate(self.results)
        ]


def _aligned(rows: Tensor, dim: int) -> Tensor:
    """Rows of as many dimensions as others, to be calculated with."""
    return rows.reshape(len(rows), *[1] * (dim - rows.dim()), *rows.shape[1:])


class _Solve(torch.autograd.Function):
    """Solves ``states[t] = slopes[t] @ states[t - 1] + constants[t]``.

    Derivatives are states of a recurrence, too, from the end. To differentiate the rounds would
    take as many operations again, and several times as long to compile.

    Shapes: slopes (length, k, k, ...), constants (length, k, ...), first (k, ...) ->
    (length, k, ...).
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(slopes: Tensor, constants: Tensor, first: Tensor) -> Tensor:
        start = constants[:1] + (slopes[:1] * first).sum(2)
        return _in_rounds(slopes[1:], torch.cat([start, constants[1:]]))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
        slopes, _, first = inputs
        ctx.save_for_backward(slopes, first, output)

    @staticmethod
    def backward(ctx: Any, outer: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        slopes, first, states = ctx.saved_tensors
        back = slopes[1:].transpose(1, 2).flip(0)
        total = _in_rounds(back, outer.flip(0)).flip(0)
        before = torch.cat([first[None], states[:-1]])
        return total[:, :, None] * before[:, None], total, (slopes[0] * total[0, :, None]).sum(0)


def _in_rounds(slopes: Tensor, constants: Tensor) -> Tensor:
    """Add to each constant its slope times the result before, but to the first.

    After each round a result is expressed by one that is twice as far back as before.

    Shapes: slopes (length - 1, k, k, ...), constants (length, k, ...) -> (length, k, ...).
    """
    length, states, back = len(constants), constants, 1
    while back < length:
        later = states[back:] + (slopes * states[: length - back].unsqueeze(1)).sum(2)
        states = torch.cat([states[:back], later])
        if 2 * back < length:
            slopes = (slopes[back:].unsqueeze(3) * slopes[:-back].unsqueeze(1)).sum(2)
        back *= 2
    return states
