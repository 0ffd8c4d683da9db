"""Loops over time in Python: operations that are alike at all steps, done once for all of them.

Of the operations as deep in a function, those alike (the same operation on tensors of the same
shapes) become one over a leading dimension, and long sums of scalars one sum. Where each step takes
the result of the one before, it may enter linearly (``_recurrences.py``); any other such loop is
all that still grows with the series.
"""

import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from pyro_ext.potential._recorder import (
    SELECT,
    SLICE,
    Recorder,
    Ref,
    Rows,
    Stacked,
    Step,
    Unsuited,
    as_one,
    in_order,
    is_number,
    kind_of,
    moved,
    put_back,
)
from pyro_ext.potential._recurrences import solve_recurrences

_aten = torch.ops.aten
_ADD, _SUBTRACT = _aten.add.Tensor, _aten.sub.Tensor
_CAT, _STACK = _aten.cat.default, _aten.stack.default
_ARITHMETIC = {_ADD, _SUBTRACT, _aten.mul.Tensor, _aten.div.Tensor}
_SUM, _PARTS = "sum", "parts"
_LEAST_STEPS = 500
_LEAST_ALIKE = 2
_LEAST_TERMS = 16
_COMMON = 8  # uses of what steps have in common


class Series:
    """A function whose operations that are alike are done at once.

    :param recorder: of a call of the function.
    :param result: of that call.
    :raises Unsuited: where that makes it no shorter.
    """

    def __init__(self, recorder: Recorder, result: Any) -> None:
        leaves, self._spec = pytree.tree_flatten(result)
        steps, outputs = recorder.steps, [recorder.ref(leaf) for leaf in leaves]
        number = len(steps)
        if number >= _LEAST_STEPS:
            steps, outputs = in_order(*_with_sums(steps, outputs))
            steps, outputs = in_order(*solve_recurrences(steps, outputs))
            # What is as deep is independent, and so is what is as far from the end.
            for levels in (_depths, _heights):
                steps, outputs = _batched(steps, outputs, levels(steps))
        if number < _LEAST_STEPS or 2 * len(steps) > number:
            raise Unsuited("it has few steps, or few that are alike")
        self._steps, self._outputs = steps, outputs

    def __call__(self, *arguments: Tensor) -> Any:
        """Call the function."""
        values = _Values()
        for number, step in enumerate(self._steps):
            result = arguments[number] if step.target is None else values.of_step(step)
            values.results.append(pytree.tree_leaves(result))
        return pytree.tree_unflatten([values.of(ref) for ref in self._outputs], self._spec)


# Which operations are one ------------------------------------------------------------------------


def _with_sums(steps: list[Step], outputs: list[Any]) -> tuple[list[Step], list[Any]]:
    """Make sums of many terms one step."""
    uses = Counter(ref.step for step in steps for ref in step.refs())
    uses.update(ref.step for ref in outputs if isinstance(ref, Ref))
    sums: dict[int, list[tuple[Any, int]]] = {}  # terms with their signs
    for number, step in enumerate(steps):
        if not _is_sum(step, steps):
            continue
        sums[number] = []
        for leaf, sign in zip(step.leaves, (1, 1 if step.target is _ADD else -1), strict=True):
            is_sum = isinstance(leaf, Ref) and leaf.step in sums and uses[leaf.step] == 1
            terms = sums.pop(leaf.step) if is_sum else [(leaf, 1)]
            sums[number] += [(each, sign * own) for each, own in terms]
    for number, terms in sums.items():
        if len(terms) >= _LEAST_TERMS:
            steps[number] = _sum_of(terms, steps[number])
    return steps, outputs


def _is_sum(step: Step, steps: Sequence[Step]) -> bool:
    """Tell whether a step adds or subtracts two tensors of the result's shape, or numbers."""

    def fits(leaf: Any) -> bool:
        if isinstance(leaf, Ref):
            return steps[leaf.step].kinds[leaf.output] == step.kinds[0]
        return is_number(leaf) or (isinstance(leaf, Tensor) and kind_of(leaf) == step.kinds[0])

    is_known = step.target in (_ADD, _SUBTRACT) and step.kinds[0][1].is_floating_point
    return is_known and len(step.leaves) == 2 and all(map(fits, step.leaves))


def _sum_of(terms: Sequence[tuple[Any, int]], step: Step) -> Step:
    """A sum of many terms, in which those that count as often stand together."""
    constant: Any = 0
    counts: Counter[Ref] = Counter()
    for leaf, sign in terms:
        if isinstance(leaf, Ref):
            counts[leaf] += sign
        else:
            constant = constant + sign * leaf
    parts: dict[int, list[Ref]] = {}
    for ref, count in counts.items():
        parts.setdefault(count, []).append(ref)
    leaves = [each for count, refs in parts.items() for each in (Rows(tuple(refs)), count)]
    return Step(_SUM, (*leaves, constant), None, step.kinds)


def _depths(steps: Sequence[Step]) -> list[int]:
    depths: list[int] = []
    for step in steps:
        depths.append(1 + max((depths[ref.step] for ref in step.refs()), default=-1))
    return depths


def _heights(steps: Sequence[Step]) -> list[int]:
    """Distances from the end, with a minus; arguments come first."""
    heights = [0] * len(steps)
    for number in reversed(range(len(steps))):
        for ref in steps[number].refs():
            heights[ref.step] = min(heights[ref.step], heights[number] - 1)
    return [-len(steps) if s.target is None else h for s, h in zip(steps, heights, strict=True)]


def _batched(
    steps: Sequence[Step], outputs: Sequence[Any], levels: Sequence[int]
) -> tuple[list[Step], list[Any]]:
    """Make steps of the same level that are alike one; such steps depend on none of each other."""
    uses = Counter(ref for step in steps for ref in step.refs())
    batched: list[Step] = []
    places: dict[int, tuple[int, int | None]] = {}

    def likeness(number: int) -> Any:
        step = steps[number]
        if step.spec is None or step.is_batched:
            return number
        whole = step.leaves[0]
        if step.target in (SELECT, SLICE) and len(step.leaves) < 5 and uses[whole] >= _COMMON:
            place = moved(whole, places)
            if place.row is None:
                return step.target, place, step.leaves[1], step.kinds
        keys = []
        for position, leaf in enumerate(step.leaves):
            key: Any = (type(leaf), leaf)
            if isinstance(leaf, Tensor):
                key = (Tensor, *kind_of(leaf))
            elif isinstance(leaf, Ref):
                place = moved(leaf, places)
                if place.row is not None:
                    key = replace(place, row=0)
                elif uses[leaf] < _COMMON:
                    key = steps[leaf.step].kinds[leaf.output]
            elif position == 1 and step.target in _ARITHMETIC and _keeps_type(step, steps):
                key = float
            keys.append(key)
        return step.target, step.spec, step.kinds, *keys

    order = sorted(range(len(steps)), key=levels.__getitem__)
    for _, level in groupby(order, key=levels.__getitem__):
        groups: dict[Any, list[int]] = {}
        for number in level:
            groups.setdefault(likeness(number), []).append(number)
        for key, group in groups.items():
            members = [
                replace(steps[n], leaves=tuple(moved(leaf, places) for leaf in steps[n].leaves))
                for n in group
            ]
            is_one = len(group) >= _LEAST_ALIKE
            if is_one:
                is_part = isinstance(key[1], Ref)
                members = [(_parts if is_part else as_one)(members)]
            for row, number in enumerate(group):
                places[number] = (len(batched), row) if is_one else (len(batched) + row, None)
            batched += members
    return batched, [moved(ref, places) for ref in outputs]


def _keeps_type(step: Step, steps: Sequence[Step]) -> bool:
    """Tell whether a step combines a tensor of the result's dtype with a number."""
    whole, number = step.leaves[:2]
    own = steps[whole.step].kinds[whole.output][1] if isinstance(whole, Ref) else None
    return is_number(number) and own == step.kinds[0][1]


def _parts(steps: Sequence[Step]) -> Step:
    """Slices of the same length of one tensor in one step."""
    whole, dim, *_ = steps[0].leaves
    leaves = (whole, dim, [step.leaves[2] for step in steps])
    length = None if steps[0].target is SELECT else steps[0].kinds[0][0][dim]
    return Step(_PARTS, (*leaves, length), None, steps[0].kinds)


# What calls them ---------------------------------------------------------------------------------


class _Values:
    """Results of the steps of one call."""

    def __init__(self) -> None:
        self.results: list[list[Tensor]] = []
        self._gathered: dict[tuple[Ref, ...], Tensor] = {}

    def of(self, leaf: Any) -> Any:
        """The tensor, or other value, that a leaf stands for."""
        if isinstance(leaf, Rows):
            return self._gather(leaf.refs)
        if isinstance(leaf, Stacked):
            return leaf.value
        if not isinstance(leaf, Ref):
            return leaf
        whole = self.results[leaf.step][leaf.output]
        return whole if leaf.row is None else whole[leaf.row]

    def of_step(self, step: Step) -> Any:
        """Results of a step."""
        if step.target is _SUM:
            *parts, total = step.leaves
            for rows, count in zip(parts[::2], parts[1::2], strict=True):
                refs = sorted(rows.refs, key=lambda r: (r.row is None, r.step, r.output, r.row))
                total = total + count * self._gather(tuple(refs)).sum(0)
            return total
        if step.target is _PARTS:
            whole, *place = step.leaves
            return _parted(self.of(whole), *place)
        if step.is_batched:
            return self._at_once(step)
        args, _ = put_back(step.leaves, step.spec)
        if step.target is _STACK:
            tensors, dim = args if len(args) > 1 else (*args, 0)
            pieces = [
                self._gather(tuple(run)) if is_ref else torch.stack(list(run))
                for is_ref, run in groupby(tensors, lambda each: isinstance(each, Ref))
            ]
            return (torch.cat(pieces) if len(pieces) > 1 else pieces[0]).movedim(0, dim)
        elif step.target is _CAT:
            return self._joined(*args)
        args, kwargs = put_back([self.of(leaf) for leaf in step.leaves], step.spec)
        return step.target(*args, **kwargs)

    def _at_once(self, step: Step) -> Any:
        leaves = [self.of(leaf) for leaf in step.leaves]
        places = [i for i, x in enumerate(step.leaves) if isinstance(x, Rows | Stacked)]

        def one(*differing: Tensor) -> tuple[Tensor, ...]:
            own = dict(zip(places, differing, strict=True))
            every = [own.get(place, leaf) for place, leaf in enumerate(leaves)]
            args, kwargs = put_back(every, step.spec)
            return tuple(pytree.tree_leaves(step.target(*args, **kwargs)))

        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="There is a performance drop")
            return torch.func.vmap(one)(*(leaves[place] for place in places))

    def _gather(self, refs: tuple[Ref, ...]) -> Tensor:
        """Tensors along a leading dimension, those that are rows of the same in one piece."""
        if refs not in self._gathered:
            sources: dict[Any, list[int]] = {}
            for place, ref in enumerate(refs):
                source = None if ref.row is None else (ref.step, ref.output)
                sources.setdefault(source, []).append(place)
            pieces, order = [], []
            for source, places in sources.items():
                order += places
                if source is None:
                    distinct = dict.fromkeys(refs[place] for place in places)
                    numbers = {ref: number for number, ref in enumerate(distinct)}
                    stacked = torch.stack([self.of(ref) for ref in distinct])
                    pieces.append(_taken(stacked, [numbers[refs[place]] for place in places]))
                else:
                    rows = [refs[place].row or 0 for place in places]
                    pieces.append(_taken(self.results[source[0]][source[1]], rows))
            joined = torch.cat(pieces) if len(pieces) > 1 else pieces[0]
            inverse = sorted(range(len(order)), key=order.__getitem__)
            self._gathered[refs] = _taken(joined, inverse)
        return self._gathered[refs]

    def _joined(self, leaves: Sequence[Any], dim: int = 0) -> Tensor:
        """Concatenate tensors, those that are rows of the same in one piece."""

        def source(numbered: tuple[int, Any]) -> Any:
            place, leaf = numbered
            return (leaf.step, leaf.output) if isinstance(leaf, Ref) else place

        pieces = []
        for _, run in groupby(enumerate(leaves), source):
            parts = [leaf for _, leaf in run]
            piece = self.of(parts[0])
            if len(parts) > 1:
                place = dim % piece.dim()
                piece = self._gather(tuple(parts)).movedim(0, place).flatten(place, place + 1)
            pieces.append(piece)
        return torch.cat(pieces, dim)


def _taken(whole: Tensor, rows: Sequence[int]) -> Tensor:
    """Rows of a tensor, by a slice where they are evenly spaced."""
    stride = rows[1] - rows[0] if len(rows) > 1 else 1
    if stride == 0 and len(set(rows)) == 1:
        return whole[rows[0]].expand(len(rows), *whole.shape[1:])
    if stride < 1 or list(rows) != list(range(rows[0], rows[-1] + 1, stride)):
        return whole.index_select(0, torch.tensor(rows, device=whole.device))
    if len(rows) == len(whole):
        return whole
    return whole[rows[0] : rows[-1] + 1 : stride]


def _parted(whole: Tensor, dim: int, starts: Sequence[int], length: int | None) -> Tensor:
    """Slices of a tensor along a leading dimension, single elements where they have no length."""
    if length is None:
        return _taken(whole.movedim(dim, 0), starts)
    first, number = starts[0], len(starts)
    if list(starts) == list(range(first, first + number * length, length or 1)):
        joined = whole.narrow(dim, first, number * length)
    else:
        every = [start + i for start in starts for i in range(length)]
        joined = whole.index_select(dim, torch.tensor(every, device=whole.device))
    parts: Tensor = joined.unflatten(dim, (number, length)).movedim(dim, 0)
    return parts
