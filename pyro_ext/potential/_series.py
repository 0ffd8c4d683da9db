"""Loops over time in Python: operations that are alike at all steps, done once for all of them.

A function is run once, and what depends on its arguments is noted. Of the operations as deep in
it, those alike (the same operation on tensors of the same shapes) become one over a leading
dimension, and long sums of scalars one sum. What is left no longer grows with the series, unless
each step takes the result of the one before.
"""

import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, groupby, islice, pairwise
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["Recorder", "Series", "Unsuited"]

_aten = torch.ops.aten
_VIEWS = {_aten.view.default, _aten._unsafe_view.default, _aten._reshape_alias.default}
_SELECT, _SLICE = _aten.select.int, _aten.slice.Tensor
_ADD, _SUBTRACT = _aten.add.Tensor, _aten.sub.Tensor
_CAT, _STACK = _aten.cat.default, _aten.stack.default
_ARITHMETIC = {_ADD, _SUBTRACT, _aten.mul.Tensor, _aten.div.Tensor}
_PARTED = {  # with the number of their settings where a dimension is among them
    _aten.unbind.int: 1,
    _aten.split.Tensor: 2,
    _aten.split_with_sizes.default: 2,
}
_SUM, _PARTS = "sum", "parts"
_LEAST_STEPS = 500
_LEAST_ALIKE = 2
_LEAST_TERMS = 16
_MAX_COMPARED = 64  # elements of constants that are told apart by their numbers


class Unsuited(Exception):
    """A function that cannot be noted like this."""


@dataclass(frozen=True, slots=True)
class _Ref:
    """A result of a step, or one row of it."""

    step: int
    output: int
    row: int | None = None


@dataclass(frozen=True, slots=True)
class _Rows:
    """Tensors along a leading dimension."""

    refs: tuple[_Ref, ...]


@dataclass(frozen=True, slots=True)
class _Stacked:
    """Constants along a leading dimension."""

    value: Tensor


@dataclass(frozen=True, slots=True)
class _Step:
    """An operation; ``leaves`` are those of its arguments in the structure ``spec``."""

    target: Any
    leaves: tuple[Any, ...]
    spec: Any
    kinds: tuple[tuple[torch.Size, torch.dtype, torch.device], ...]
    is_batched: bool = False

    def refs(self) -> Iterator[_Ref]:
        for leaf in self.leaves:
            if isinstance(leaf, _Ref):
                yield leaf
            elif isinstance(leaf, _Rows):
                yield from leaf.refs


class Recorder(TorchDispatchMode):
    """Notes the operations on what depends on the arguments; the results of all others are constants.

    :param example: the arguments.
    """

    def __init__(self, *example: Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.steps = [_Step(None, (), None, (_kind(tensor),)) for tensor in example]
        self.roots: dict[int, Tensor] = {}
        """Tensors that were there before, by identity."""
        self._refs = {id(tensor): _Ref(i, 0) for i, tensor in enumerate(example)}
        self._made: set[int] = set()
        self._kept: list[Any] = [*example]  # as long as their identities count
        self._known: dict[Any, int] = {}
        self._contents: dict[int, Any] = {}
        self._first: dict[Any, Tensor] = {}  # of constants that are equal

    def ref(self, value: Any) -> Any:
        """Where a tensor comes from; constants and other values stand for themselves."""
        return self._refs.get(id(value), value) if isinstance(value, Tensor) else value

    def behind(self, tensor: Tensor) -> list[Tensor | None]:
        """As ``data_behind``; tensors that were there before are noted here."""
        return [None] if id(tensor) in self._refs else []

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if function is _aten.lift_fresh.default:
            self._made.add(id(args[0]))
            self._kept.append(args[0])
            return args[0]
        if function._schema.is_mutable or torch.Tag.nondeterministic_seeded in function.tags:
            raise Unsuited(str(function))
        leaves, spec = _flat(args, kwargs)
        result = function(*args, **kwargs)
        results = list(result) if isinstance(result, tuple | list) else [result]
        self._kept.append(result)
        refs = [self.ref(leaf) for leaf in leaves]
        for ref in refs:
            if isinstance(ref, Tensor) and id(ref) not in self._made:
                self.roots[id(ref)] = ref
        if not any(isinstance(ref, _Ref) for ref in refs):
            self._made.update(map(id, results))
        elif not all(isinstance(each, Tensor) for each in results):
            raise Unsuited(str(function))
        else:
            self._note(function, refs, spec, args, results)
        return result

    def _note(
        self, function: Any, leaves: list[Any], spec: Any, args: tuple[Any, ...], results: list[Any]
    ) -> None:
        """Note an operation; those that part a tensor become slices of it."""
        whole, *others = leaves
        settings: tuple[Any, ...] = args[1:]
        if function in _PARTED:
            dim = (settings[-1] if len(settings) == _PARTED[function] else 0) % args[0].dim()
            if function is _aten.unbind.int:
                parts = [(_SELECT, dim, i) for i in range(len(results))]
            else:
                ends = list(accumulate(each.shape[dim] for each in results))
                parts = [(_SLICE, dim, *part) for part in pairwise([0, *ends])]
        elif function is _SELECT:
            dim, index = settings
            parts = [(_SELECT, dim % args[0].dim(), index % args[0].shape[dim])]
        elif function is _SLICE and settings[3:] in ((), (1,)):
            dim, *bounds = [*settings[:3], *(0, None, None)[len(settings) :]]
            start, end, _ = slice(*bounds).indices(args[0].shape[dim])
            parts = [(_SLICE, dim % args[0].dim(), start, max(start, end))]
        else:
            # Strides may differ where it is one for all steps.
            target = _aten.reshape.default if function in _VIEWS else function
            number = self._number(target, leaves, spec, results)
            self._refs |= {id(each): _Ref(number, i) for i, each in enumerate(results)}
            return
        for (target, *arguments), each in zip(parts, results, strict=True):
            leaves, spec = _flat((whole, *arguments), {})
            number = self._number(target, leaves, spec, [each])
            self._refs[id(each)] = _Ref(number, 0)

    def _number(self, target: Any, leaves: list[Any], spec: Any, results: list[Any]) -> int:
        """Number of a step, which may be there already."""
        identities = [self._identity(leaf) for leaf in leaves]
        key = (target, spec, *identities)
        if key not in self._known:
            self._known[key] = len(self.steps)
            same = [
                self._first.setdefault(identity, leaf) if isinstance(leaf, Tensor) else leaf
                for identity, leaf in zip(identities, leaves, strict=True)
            ]
            self.steps.append(_Step(target, tuple(same), spec, tuple(map(_kind, results))))
        return self._known[key]

    def _identity(self, leaf: Any) -> Any:
        """What equal leaves have in common."""
        if not isinstance(leaf, Tensor):
            return type(leaf), leaf
        if id(leaf) not in self._contents:
            content: Any = id(leaf)
            if leaf.numel() <= _MAX_COMPARED and leaf.device.type == "cpu":
                numbers = leaf.detach().contiguous().reshape(-1).view(torch.uint8)
                content = (_kind(leaf), bytes(numbers.tolist()))
            self._contents[id(leaf)] = content
        return self._contents[id(leaf)]


def _flat(args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[list[Any], Any]:
    """Arguments of an operation with those in lists, and what tells how to put them back."""
    leaves: list[Any] = []
    sizes: list[int | None] = []
    for each in (*args, *kwargs.values()):
        is_list = isinstance(each, list | tuple)
        leaves += each if is_list else [each]
        sizes.append(len(each) if is_list else None)
    return leaves, (tuple(sizes), tuple(kwargs))


def _put_back(leaves: Sequence[Any], spec: Any) -> tuple[list[Any], dict[str, Any]]:
    """The inverse of `_flat`."""
    sizes, names = spec
    ahead = iter(leaves)
    every = [next(ahead) if n is None else list(islice(ahead, n)) for n in sizes]
    number = len(every) - len(names)
    return every[:number], dict(zip(names, every[number:], strict=True))


def _kind(tensor: Tensor) -> tuple[torch.Size, torch.dtype, torch.device]:
    return tensor.shape, tensor.dtype, tensor.device


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
            steps, outputs = _with_sums(steps, outputs)
            # What is as deep is independent, and so is what is as far from the end.
            for levels in (_depths, _heights):
                steps, outputs = _batched(steps, outputs, levels(steps))
        if number < _LEAST_STEPS or 2 * len(steps) > number:
            raise Unsuited("it has few steps, or few that are alike")
        self._steps, self._outputs = steps, outputs

    def __len__(self) -> int:
        return len(self._steps)

    def __call__(self, *arguments: Tensor) -> Any:
        """Call the function."""
        values = _Values()
        for number, step in enumerate(self._steps):
            result = arguments[number] if step.target is None else values.of_step(step)
            values.results.append(pytree.tree_leaves(result))
        return pytree.tree_unflatten([values.of(ref) for ref in self._outputs], self._spec)


# Which operations are one ------------------------------------------------------------------------


def _with_sums(steps: list[_Step], outputs: list[Any]) -> tuple[list[_Step], list[Any]]:
    """Make sums of many terms one step, and drop steps that nothing depends on."""
    uses = Counter(ref.step for step in steps for ref in step.refs())
    uses.update(ref.step for ref in outputs if isinstance(ref, _Ref))
    sums: dict[int, list[tuple[Any, int]]] = {}  # terms with their signs
    for number, step in enumerate(steps):
        if not _is_sum(step, steps):
            continue
        sums[number] = []
        for leaf, sign in zip(step.leaves, (1, 1 if step.target is _ADD else -1), strict=True):
            is_sum = isinstance(leaf, _Ref) and leaf.step in sums and uses[leaf.step] == 1
            terms = sums.pop(leaf.step) if is_sum else [(leaf, 1)]
            sums[number] += [(each, sign * own) for each, own in terms]
    for number, terms in sums.items():
        if len(terms) >= _LEAST_TERMS:
            steps[number] = _sum_of(terms, steps[number])
    needed = {ref.step for ref in outputs if isinstance(ref, _Ref)}
    for number in reversed(range(len(steps))):
        if number in needed:
            needed.update(ref.step for ref in steps[number].refs())
    kept = [n for n, step in enumerate(steps) if n in needed or step.target is None]
    places = {number: (place, None) for place, number in enumerate(kept)}
    moved = [
        replace(steps[n], leaves=tuple(_moved(leaf, places) for leaf in steps[n].leaves))
        for n in kept
    ]
    return moved, [_moved(ref, places) for ref in outputs]


def _is_sum(step: _Step, steps: Sequence[_Step]) -> bool:
    """Whether a step adds or subtracts tensors of the shape of the result, or numbers."""

    def fits(leaf: Any) -> bool:
        if isinstance(leaf, _Ref):
            return steps[leaf.step].kinds[leaf.output] == step.kinds[0]
        return _is_number(leaf) or (isinstance(leaf, Tensor) and _kind(leaf) == step.kinds[0])

    is_known = step.target in (_ADD, _SUBTRACT) and step.kinds[0][1].is_floating_point
    return is_known and len(step.leaves) == 2 and all(map(fits, step.leaves))


def _is_number(leaf: Any) -> bool:
    return isinstance(leaf, int | float) and not isinstance(leaf, bool)


def _sum_of(terms: Sequence[tuple[Any, int]], step: _Step) -> _Step:
    """A sum of many terms, in which those that count as often stand together."""
    constant: Any = 0
    counts: Counter[_Ref] = Counter()
    for leaf, sign in terms:
        if isinstance(leaf, _Ref):
            counts[leaf] += sign
        else:
            constant = constant + sign * leaf
    parts: dict[int, list[_Ref]] = {}
    for ref, count in counts.items():
        parts.setdefault(count, []).append(ref)
    leaves = [each for count, refs in parts.items() for each in (_Rows(tuple(refs)), count)]
    return _Step(_SUM, (*leaves, constant), None, step.kinds)


def _moved(leaf: Any, places: Mapping[int, tuple[int, int | None]]) -> Any:
    """A leaf after steps have moved to other numbers, or to rows of others."""
    if isinstance(leaf, _Rows):
        return _Rows(tuple(_moved(ref, places) for ref in leaf.refs))
    if not isinstance(leaf, _Ref):
        return leaf
    number, row = places[leaf.step]
    return _Ref(number, leaf.output, leaf.row if row is None else row)


def _depths(steps: Sequence[_Step]) -> list[int]:
    depths: list[int] = []
    for step in steps:
        depths.append(1 + max((depths[ref.step] for ref in step.refs()), default=-1))
    return depths


def _heights(steps: Sequence[_Step]) -> list[int]:
    """Distances from the end, with a minus; arguments come first."""
    heights = [0] * len(steps)
    for number in reversed(range(len(steps))):
        for ref in steps[number].refs():
            heights[ref.step] = min(heights[ref.step], heights[number] - 1)
    return [-len(steps) if s.target is None else h for s, h in zip(steps, heights, strict=True)]


def _batched(
    steps: Sequence[_Step], outputs: Sequence[Any], levels: Sequence[int]
) -> tuple[list[_Step], list[Any]]:
    """Make steps of the same level that are alike one; such steps depend on none of each other."""
    uses = Counter(ref for step in steps for ref in step.refs())
    batched: list[_Step] = []
    places: dict[int, tuple[int, int | None]] = {}

    def likeness(number: int) -> Any:
        step = steps[number]
        if step.spec is None or step.is_batched:
            return number
        whole = step.leaves[0]
        if step.target in (_SELECT, _SLICE) and len(step.leaves) < 5 and uses[whole] >= _LEAST_ALIKE:
            place = _moved(whole, places)
            if place.row is None:
                return step.target, place, step.leaves[1], step.kinds
        keys = []
        for position, leaf in enumerate(step.leaves):
            key: Any = (type(leaf), leaf)
            if isinstance(leaf, Tensor):
                key = (Tensor, *_kind(leaf))
            elif isinstance(leaf, _Ref):
                place = _moved(leaf, places)
                if place.row is not None:
                    key = replace(place, row=0)
                elif uses[leaf] < _LEAST_ALIKE:
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
                replace(steps[n], leaves=tuple(_moved(leaf, places) for leaf in steps[n].leaves))
                for n in group
            ]
            is_one = len(group) >= _LEAST_ALIKE
            if is_one:
                is_part = isinstance(key[1], _Ref)
                members = [(_parts if is_part else _as_one)(members)]
            for row, number in enumerate(group):
                places[number] = (len(batched), row) if is_one else (len(batched) + row, None)
            batched += members
    return batched, [_moved(ref, places) for ref in outputs]


def _keeps_type(step: _Step, steps: Sequence[_Step]) -> bool:
    """Whether a number that is calculated with is taken as one of the type of the result."""
    whole, number = step.leaves[:2]
    own = steps[whole.step].kinds[whole.output][1] if isinstance(whole, _Ref) else None
    return _is_number(number) and own == step.kinds[0][1]


def _parts(steps: Sequence[_Step]) -> _Step:
    """Slices of the same length of one tensor in one step."""
    whole, dim, *_ = steps[0].leaves
    leaves = (whole, dim, [step.leaves[2] for step in steps])
    length = None if steps[0].target is _SELECT else steps[0].kinds[0][0][dim]
    return _Step(_PARTS, (*leaves, length), None, steps[0].kinds)


def _as_one(steps: Sequence[_Step]) -> _Step:
    """Steps that are alike in one step, which gives their results along a leading dimension."""
    leaves = []
    for column in zip(*(step.leaves for step in steps), strict=True):
        first = column[0]
        if isinstance(first, _Ref):
            is_same = column.count(first) == len(column)
            leaves.append(first if is_same else _Rows(column))
        elif isinstance(first, Tensor):
            is_same = all(each is first for each in column)
            leaves.append(first if is_same else _Stacked(torch.stack(column)))
        elif _is_number(first) and column.count(first) < len(column):
            _, dtype, device = steps[0].kinds[0]
            leaves.append(_Stacked(torch.tensor(column, dtype=dtype, device=device)))
        else:
            leaves.append(first)
    return replace(steps[0], leaves=tuple(leaves), is_batched=True)


# What calls them ---------------------------------------------------------------------------------


class _Values:
    """Results of the steps of one call."""

    def __init__(self) -> None:
        self.results: list[list[Tensor]] = []
        self._gathered: dict[tuple[_Ref, ...], Tensor] = {}

    def of(self, leaf: Any) -> Any:
        """The tensor, or other value, that a leaf stands for."""
        if isinstance(leaf, _Rows):
            return self._gather(leaf.refs)
        if isinstance(leaf, _Stacked):
            return leaf.value
        if not isinstance(leaf, _Ref):
            return leaf
        whole = self.results[leaf.step][leaf.output]
        return whole if leaf.row is None else whole[leaf.row]

    def of_step(self, step: _Step) -> Any:
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
        args, _ = _put_back(step.leaves, step.spec)
        if step.target is _STACK:
            tensors, dim = args if len(args) > 1 else (*args, 0)
            if all(isinstance(each, _Ref) for each in tensors):
                return self._gather(tuple(tensors)).movedim(0, dim)
        elif step.target is _CAT:
            return self._joined(*args)
        args, kwargs = _put_back([self.of(leaf) for leaf in step.leaves], step.spec)
        return step.target(*args, **kwargs)

    def _at_once(self, step: _Step) -> Any:
        leaves = [self.of(leaf) for leaf in step.leaves]
        places = [i for i, x in enumerate(step.leaves) if isinstance(x, _Rows | _Stacked)]

        def one(*differing: Tensor) -> tuple[Tensor, ...]:
            own = dict(zip(places, differing, strict=True))
            every = [own.get(place, leaf) for place, leaf in enumerate(leaves)]
            args, kwargs = _put_back(every, step.spec)
            return tuple(pytree.tree_leaves(step.target(*args, **kwargs)))

        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="There is a performance drop")
            return torch.func.vmap(one)(*(leaves[place] for place in places))

    def _gather(self, refs: tuple[_Ref, ...]) -> Tensor:
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
            return (leaf.step, leaf.output) if isinstance(leaf, _Ref) else place

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
    return joined.unflatten(dim, (number, length)).movedim(dim, 0)
