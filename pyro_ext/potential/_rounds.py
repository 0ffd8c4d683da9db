"""Sums over long chains of discrete sites, in rounds that graphs can do at once."""

import math
import operator
from collections import deque
from collections.abc import Collection, Mapping, Sequence
from functools import reduce
from typing import Any

import torch
from pyro.ops.rings import LogRing
from torch import Tensor

LONG = 16  # variables, from which on chains are summed out in rounds
_MAX_JOINT = 1 << 12  # elements of the product that a variable is summed out of


class RoundsRing(LogRing):
    """Sums long chains of variables out in rounds, of every other one.

    The sums of a round are independent of each other, so that a graph can do them at once.
    """

    def sumproduct(self, terms: Sequence[Any], dims: Collection[str]) -> Any:
        """Multiply terms, and sum over dimensions."""
        if len(terms) == 1 and not dims:
            return terms[0]  # Pyro may go to numbers and back to turn it
        sizes = {d: n for term in terms for d, n in zip(term._pyro_dims, term.shape, strict=True)}
        rounds = _rounds([term._pyro_dims for term in terms], dims, sizes)
        if rounds is None:
            return super().sumproduct(terms, dims)  # type: ignore[no-untyped-call]
        left = dict(enumerate(terms))
        for dims_of_joint, factors in rounds:
            left[len(left)] = _summed([left[number] for number in factors], dims_of_joint)
        used = {number for _, factors in rounds for number in factors}
        rest = [term for number, term in left.items() if number not in used]
        whole: Any = super().sumproduct(rest, set())  # type: ignore[no-untyped-call]
        least = 0.5 * torch.finfo(whole.dtype).min
        result = torch.where(whole > least, whole, -math.inf)
        result._pyro_dims = whole._pyro_dims  # type: ignore[attr-defined]
        return result


def _rounds(
    terms: Sequence[str], dims: Collection[str], sizes: Mapping[str, int]
) -> list[tuple[str, list[int]]] | None:
    """In which order, round by round, a long chain is summed out.

    :returns: for each sum the dimensions of the product, of which the last one is summed out, and
        the numbers of its factors, where results have numbers after those of the terms; ``None``
        for short chains, and where it takes products that are too large.
    """
    if len(dims) < LONG:
        return None
    left = {number: frozenset(term) for number, term in enumerate(terms)}
    number = len(left)
    sums: list[tuple[str, list[int]]] = []
    ranks: dict[str, int] = {}
    while touching := _touching(left, dims):
        joint = {dim: frozenset.union(*(left[n] for n in own)) for dim, own in touching.items()}
        neighbors = {dim: (joint[dim] & touching.keys()) - {dim} for dim in touching}
        ranks = ranks or {dim: rank for rank, dim in enumerate(_along(neighbors))}
        order = sorted(touching, key=ranks.__getitem__)
        taken: set[int] = set()
        first = number
        # Those at an end are another kind of sum, and last.
        for dim in [each for each in order if len(neighbors[each]) > 1] or order:
            size = math.prod(sizes[each] for each in joint[dim])
            if taken.isdisjoint(touching[dim]) and size <= _MAX_JOINT:
                taken.update(touching[dim])
                others = sorted(joint[dim] - {dim}, key=lambda each: (ranks.get(each, -1), each))
                places = {each: place for place, each in enumerate([*others, dim])}
                own = sorted(touching[dim], key=lambda n: sorted(places[each] for each in left[n]))
                sums.append(("".join(places), own))
                number += 1
        if 4 * (number - first) < len(touching):
            return None
        for n in taken:
            del left[n]
        left |= {n: frozenset(sums[n - len(terms)][0][:-1]) for n in range(first, number)}
    return sums


def _touching(terms: Mapping[int, frozenset[str]], dims: Collection[str]) -> dict[str, list[int]]:
    """The terms of each dimension that is to be summed out."""
    touching: dict[str, list[int]] = {}
    for number, term in terms.items():
        for dim in sorted(term.intersection(dims)):
            touching.setdefault(dim, []).append(number)
    return touching


def _along(neighbors: Mapping[str, Collection[str]]) -> list[str]:
    """Variables as they follow each other."""
    order: dict[str, None] = {}
    for start in sorted(neighbors, key=lambda dim: (len(neighbors[dim]), dim)):
        ahead = deque([start])
        while ahead:
            dim = ahead.popleft()
            if dim not in order:
                order[dim] = None
                ahead.extend(sorted(neighbors[dim]))
    return list(order)


def _summed(terms: Sequence[Any], dims: str) -> Any:
    """Log of a sum of products over the last dimension."""
    aligned = []
    for term in terms:
        sizes = dict(zip(term._pyro_dims, term.shape, strict=True))
        order = [term._pyro_dims.index(each) for each in dims if each in sizes]
        turned = term if order == list(range(term.dim())) else term.permute(order)
        aligned.append(turned.reshape([sizes.get(each, 1) for each in dims]))
    joint: Tensor = reduce(operator.add, aligned)
    # The gradient at a sum of impossible terms would be NaN; that of a bound is zero.
    result = joint.clamp(min=torch.finfo(joint.dtype).min).logsumexp(-1)
    result._pyro_dims = dims[:-1]  # type: ignore[attr-defined]
    return result
