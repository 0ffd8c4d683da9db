"""The operations that a function does on its arguments, as data."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, islice, pairwise
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

_aten = torch.ops.aten
_VIEWS = {_aten.view.default, _aten._unsafe_view.default, _aten._reshape_alias.default}
_INDEX, SELECT, SLICE = _aten.index.Tensor, _aten.select.int, _aten.slice.Tensor
_PARTED = {  # with the number of their settings where a dimension is among them
    _aten.unbind.int: 1,
    _aten.split.Tensor: 2,
    _aten.split_with_sizes.default: 2,
}
_MASKS = (torch.bool, torch.uint8)
_MAX_COMPARED = 64  # elements of constants that are told apart by their numbers


class Unsuited(Exception):
    """A function that cannot be noted like this."""


@dataclass(frozen=True, slots=True)
class Ref:
    """A result of a step, or one row of it."""

    step: int
    output: int
    row: int | None = None


@dataclass(frozen=True, slots=True)
class Rows:
    """Tensors along a leading dimension."""

    refs: tuple[Ref, ...]


@dataclass(frozen=True, slots=True)
class Stacked:
    """Constants along a leading dimension."""

    value: Tensor


@dataclass(frozen=True, slots=True)
class Step:
    """An operation; ``leaves`` are those of its arguments in the structure ``spec``."""

    target: Any
    leaves: tuple[Any, ...]
    spec: Any
    kinds: tuple[tuple[torch.Size, torch.dtype, torch.device], ...]
    is_batched: bool = False

    def refs(self) -> Iterator[Ref]:
        for leaf in self.leaves:
            if isinstance(leaf, Ref):
                yield leaf
            elif isinstance(leaf, Rows):
                yield from leaf.refs


class Recorder(TorchDispatchMode):
    """Notes operations on what depends on the arguments; results of all others are constants.

    :param example: the arguments.
    """

    def __init__(self, *example: Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.steps = [Step(None, (), None, (kind_of(tensor),)) for tensor in example]
        self.roots: dict[int, Tensor] = {}
        """Tensors that were there before, by identity."""
        self._refs = {id(tensor): Ref(i, 0) for i, tensor in enumerate(example)}
        self._made: set[int] = set()
        self._kept: list[Tensor] = []  # as long as their identities count
        self._places: Counter[int] = Counter()  # tensors that have their numbers there
        self._keep(*example)
        self._known: dict[Any, int] = {}
        self._contents: dict[int, Any] = {}
        self._first: dict[Any, Tensor] = {}  # of constants that are equal

    def ref(self, value: Any) -> Any:
        """Return the step that computes a tensor; other values stand for themselves."""
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
            self._keep(args[0])
            return args[0]
        if torch.Tag.nondeterministic_seeded in function.tags:
            raise Unsuited(f"{function} draws")
        if function._schema.is_mutable:
            return self._write(function, types, args, kwargs)
        leaves, spec = _flat(args, kwargs)
        result = function(*args, **kwargs)
        results = list(result) if isinstance(result, tuple | list) else [result]
        self._keep(*(each for each in results if isinstance(each, Tensor)))
        refs = [self.ref(leaf) for leaf in leaves]
        for ref in refs:
            if isinstance(ref, Tensor) and id(ref) not in self._made:
                self.roots[id(ref)] = ref
        if not any(isinstance(ref, Ref) for ref in refs):
            self._made.update(map(id, results))
            return result
        is_shaped = torch.Tag.dynamic_output_shape in function.tags
        masks = [leaf for leaf in leaves[1:] if isinstance(leaf, Tensor) and leaf.dtype in _MASKS]
        if is_shaped and (function is not _INDEX or masks):
            raise Unsuited(f"the shape of what {function} gives depends on values")
        if not all(isinstance(each, Tensor) for each in results):
            raise Unsuited(f"{function} gives a number")
        self._note(function, refs, spec, args, results)
        return result

    def _write(
        self, function: Any, types: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Tensor:
        """Write into a result of a step that shares its numbers with no other tensor."""
        written: Tensor = args[0]
        name = function._schema.name.removeprefix("aten::")
        ref = self.ref(written)
        is_own = isinstance(ref, Ref) and self.steps[ref.step].target is not None
        if not is_own or self._places[_place(written)] > 1 or not name.endswith("_"):
            raise Unsuited(f"{function} writes into a tensor")
        pure = getattr(getattr(_aten, name.removesuffix("_")), function._overloadname)
        result = self.__torch_dispatch__(pure, types, args, kwargs)
        if kind_of(result) != kind_of(written):
            raise Unsuited(f"{function} gives a tensor of another kind")
        self._refs[id(written)] = self._refs[id(result)]
        written = function(*args, **kwargs)
        return written

    def _keep(self, *tensors: Tensor) -> None:
        self._kept += tensors
        self._places.update(map(_place, tensors))

    def _note(
        self, function: Any, leaves: list[Any], spec: Any, args: tuple[Any, ...], results: list[Any]
    ) -> None:
        """Note an operation; those that part a tensor become slices of it."""
        whole = leaves[0]
        parts: list[tuple[Any, ...]]
        settings: tuple[Any, ...] = args[1:]
        if function in _PARTED:
            dim = (settings[-1] if len(settings) == _PARTED[function] else 0) % args[0].dim()
            if function is _aten.unbind.int:
                parts = [(SELECT, dim, i) for i in range(len(results))]
            else:
                ends = list(accumulate(each.shape[dim] for each in results))
                parts = [(SLICE, dim, *part) for part in pairwise([0, *ends])]
        elif function is SELECT:
            dim, index = settings
            parts = [(SELECT, dim % args[0].dim(), index % args[0].shape[dim])]
        elif function is SLICE and settings[3:] in ((), (1,)):
            dim = settings[0] if settings else 0
            first, last = (*settings[1:3], None, None)[:2]
            start, end, _ = slice(first, last).indices(args[0].shape[dim])
            parts = [(SLICE, dim % args[0].dim(), start, max(start, end))]
        else:
            # Strides may differ where it is one for all steps.
            target = _aten.reshape.default if function in _VIEWS else function
            number = self._number(target, leaves, spec, results)
            self._refs |= {id(each): Ref(number, i) for i, each in enumerate(results)}
            return
        for (target, *arguments), each in zip(parts, results, strict=True):
            leaves, spec = _flat((whole, *arguments), {})
            number = self._number(target, leaves, spec, [each])
            self._refs[id(each)] = Ref(number, 0)

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
            self.steps.append(Step(target, tuple(same), spec, tuple(map(kind_of, results))))
        return self._known[key]

    def _identity(self, leaf: Any) -> Any:
        """Return a key that equal leaves share."""
        if not isinstance(leaf, Tensor):
            return type(leaf), leaf
        if id(leaf) not in self._contents:
            content: Any = id(leaf)
            if leaf.numel() <= _MAX_COMPARED and leaf.device.type == "cpu":
                numbers = leaf.detach().contiguous().reshape(-1).view(torch.uint8)
                content = (kind_of(leaf), bytes(numbers.tolist()))
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


def put_back(leaves: Sequence[Any], spec: Any) -> tuple[list[Any], dict[str, Any]]:
    """The inverse of `_flat`."""
    sizes, names = spec
    ahead = iter(leaves)
    every = [next(ahead) if n is None else list(islice(ahead, n)) for n in sizes]
    number = len(every) - len(names)
    return every[:number], dict(zip(names, every[number:], strict=True))


def _place(tensor: Tensor) -> int:
    """Return the address of a tensor's storage, which its views share."""
    return tensor.untyped_storage().data_ptr()


def kind_of(tensor: Tensor) -> tuple[torch.Size, torch.dtype, torch.device]:
    return tensor.shape, tensor.dtype, tensor.device


# Steps in other places ----------------------------------------------------------------------------


def is_number(leaf: Any) -> bool:
    return isinstance(leaf, int | float) and not isinstance(leaf, bool)


def moved(leaf: Any, places: Mapping[int, tuple[int, int | None]]) -> Any:
    """A leaf after steps have moved to other numbers, or to rows of others."""
    if isinstance(leaf, Rows):
        return Rows(tuple(moved(ref, places) for ref in leaf.refs))
    if not isinstance(leaf, Ref):
        return leaf
    number, row = places[leaf.step]
    return Ref(number, leaf.output, leaf.row if row is None else row)


def as_one(steps: Sequence[Step]) -> Step:
    """Steps that are alike in one step, which gives their results along a leading dimension."""
    leaves: list[Any] = []
    for column in zip(*(step.leaves for step in steps), strict=True):
        first = column[0]
        if isinstance(first, Ref):
            is_same = column.count(first) == len(column)
            leaves.append(first if is_same else Rows(column))
        elif isinstance(first, Tensor):
            is_same = all(each is first for each in column)
            leaves.append(first if is_same else Stacked(torch.stack(column)))
        elif is_number(first) and column.count(first) < len(column):
            _, dtype, device = steps[0].kinds[0]
            leaves.append(Stacked(torch.tensor(column, dtype=dtype, device=device)))
        else:
            leaves.append(first)
    return replace(steps[0], leaves=tuple(leaves), is_batched=True)


def in_order(steps: Sequence[Step], outputs: Sequence[Any]) -> tuple[list[Step], list[Any]]:
    """Put steps behind those that they take results of, and drop what nothing depends on."""
    needed: set[int] = set()
    wanted = [ref.step for ref in outputs if isinstance(ref, Ref)]
    while wanted:
        number = wanted.pop()
        if number not in needed:
            needed.add(number)
            wanted += [ref.step for ref in steps[number].refs()]
    order = [number for number, step in enumerate(steps) if step.target is None]
    done = set(order)
    for first in sorted(needed):
        wanted = [first]
        while wanted:
            number = wanted[-1]
            missing = {ref.step for ref in steps[number].refs()} - done
            wanted += sorted(missing, reverse=True)
            if not missing and number not in done:
                done.add(number)
                order.append(number)
            if not missing:
                wanted.pop()
    places = {number: (place, None) for place, number in enumerate(order)}
    ordered = [
        replace(steps[n], leaves=tuple(moved(leaf, places) for leaf in steps[n].leaves))
        for n in order
    ]
    return ordered, [moved(ref, places) for ref in outputs]
