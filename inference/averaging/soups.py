"""Soups: one network whose weights are an average of several candidates."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyro_ext._lib import checks

Candidates = Mapping[str, Tensor]


class GreedySoup(NamedTuple):
    """The average of some candidates.

    :param dict weights: tensors by name. **Shape:** ``(*event)`` each.
    :param list members: numbers of the candidates in the average, the best one first.
    :param float loss: the loss of the average.
    """

    weights: dict[str, Tensor]
    members: list[int]
    loss: float


def greedy_soup(candidates: Candidates, loss: Callable[[dict[str, Tensor]], Any]) -> GreedySoup:
    """Average candidates as long as that does no harm, the best one first [1].

    :param Mapping candidates: weights of all of them by name. **Shape:** ``(K, *event)`` each.
    :param Callable loss: of weights by name, **Shape:** ``(*event)`` each: a number, the smaller
        the better, on data that the candidates were not trained with. Its NaN is a bad loss.
    :raises ValueError: for candidates that are not finite, or with a NaN loss each.

    [1] M. Wortsman et al. (2022), Model soups: averaging weights of multiple fine-tuned models
    improves accuracy without increasing inference time.

    Example::

        >>> candidates = {"w": torch.tensor([1.0, -0.5, 9.0])}
        >>> soup = greedy_soup(candidates, lambda weights: weights["w"].square())
        >>> soup.members, soup.weights["w"], soup.loss
        ([1, 0], tensor(0.2500), 0.0625)
    """
    candidates, number = _checked(candidates)
    checks.function("loss", loss)

    def of(members: list[int]) -> tuple[dict[str, Tensor], float]:
        average = {name: part[members].mean(0) for name, part in candidates.items()}
        return average, _number(loss(average))

    with torch.no_grad():
        alone = [of([one])[1] for one in range(number)]
        order = sorted(range(number), key=lambda one: (alone[one] != alone[one], alone[one]))
        if alone[order[0]] != alone[order[0]]:
            raise ValueError("loss must be a number for one candidate at least, got NaN for each")
        members = order[:1]
        best = of(members)
        for one in order[1:]:
            found = of([*members, one])
            if found[1] <= best[1]:
                members, best = [*members, one], found
    return GreedySoup(best[0], members, best[1])


def _checked(candidates: Any) -> tuple[dict[str, Tensor], int]:
    """Finite candidates, detached, and how many they are."""
    stacked = {n: v.detach() for n, v in checks.tensors("candidates", candidates).items()}
    sizes = {len(value) if value.dim() else 0 for value in stacked.values()}
    if len(sizes) != 1 or 0 in sizes:
        raise ValueError(
            "candidates must be as many for each tensor, at least one, got the shapes "
            f"{[tuple(value.shape) for value in stacked.values()]}"
        )
    for name, value in stacked.items():
        if not value.is_floating_point():
            raise TypeError(
                f"candidates[{name!r}] must be floating-point numbers, got {checks.shown(value)}"
            )
        checks.all_finite(f"candidates[{name!r}]", value)
    return stacked, sizes.pop()


def _number(value: Any) -> float:
    if isinstance(value, Tensor) and value.numel() == 1 or isinstance(value, float | int):
        return float(value)
    raise ValueError(f"loss must return a number, got {checks.shown(value)}")
