"""Soups: single networks whose weights are an average of several candidates."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyro_ext._lib import checks
from pyro_ext.inference.training import Trainer
from pyro_ext.inference.training.trainer import Optimizer

Candidates = Mapping[str, Tensor]
_ADAM = partial(torch.optim.Adam, lr=0.1)


class GreedySoup(NamedTuple):
    """The average of a selection of candidates.

    :param dict weights: tensors by name. **Shape:** ``(*event)`` each.
    :param list members: numbers of the candidates in the average, the best one first.
    :param float loss: the loss of the average.
    """

    weights: dict[str, Tensor]
    members: list[int]
    loss: float


class LearnedSoup(NamedTuple):
    """A weighted average of all candidates.

    :param dict weights: tensors by name. **Shape:** ``(*event)`` each.
    :param Tensor coefficients: positive numbers that sum to one. **Shape:** ``(K,)``.
    :param float loss: the loss of the average.
    """

    weights: dict[str, Tensor]
    coefficients: Tensor
    loss: float


def greedy_soup(candidates: Candidates, loss: Callable[[dict[str, Tensor]], Any]) -> GreedySoup:
    """Average candidates, best first, as long as this does not increase the loss [1].

    :param Mapping candidates: weights of all candidates by name. **Shape:** ``(K, *event)`` each.
    :param Callable loss: maps a dict of weights, **Shape:** ``(*event)`` each, to a number, smaller
        is better, on data that the candidates were not trained on. NaN counts as a bad loss.
    :raises ValueError: for candidates that are not finite, or if all of their losses are NaN.

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
            raise ValueError("loss must be a number for at least one candidate, got NaN for each")
        members = order[:1]
        best = of(members)
        for one in order[1:]:
            found = of([*members, one])
            if found[1] <= best[1]:
                members, best = [*members, one], found
    return GreedySoup(best[0], members, best[1])


def learned_soup(
    candidates: Candidates,
    loss: Callable[[dict[str, Tensor]], Tensor],
    num_steps: int = 100,
    *,
    optimizer: Optimizer = _ADAM,
    seed: int | None = None,
    progress: bool = False,
) -> LearnedSoup:
    r"""Average candidates with the coefficients of smallest loss, :math:`\sum_k a_k w_k` [1].

    The coefficients :math:`a = \operatorname{softmax}(b)` start out equal.

    :param Mapping candidates: weights of all candidates by name. **Shape:** ``(K, *event)`` each.
    :param Callable loss: maps a dict of weights, **Shape:** ``(*event)`` each, to a scalar that is
        differentiable in them, on data that the candidates were not trained on.
    :param int num_steps: number of optimizer steps.
    :param optimizer: as for :class:`~pyro_ext.inference.Trainer`.
    :param int seed: seed of what the loss draws.
    :param bool progress: whether to show a progress bar.
    :raises ValueError: for candidates that are not finite.
    :raises TrainingDiverged: if loss or gradient are not finite.

    [1] as in :func:`greedy_soup`, appendix I, without a temperature.

    Example::

        >>> candidates = {"w": torch.tensor([3.0, -1.0])}
        >>> soup = learned_soup(candidates, lambda weights: weights["w"].square(), 200)
        >>> soup.coefficients.round(decimals=2), abs(soup.loss) < 1e-3
        (tensor([0.2500, 0.7500]), True)
    """
    candidates, number = _checked(candidates)
    checks.function("loss", loss)
    checks.integer("num_steps", num_steps, 0)
    first = next(iter(candidates.values()))
    logits = first.new_zeros(number).requires_grad_()

    def average() -> dict[str, Tensor]:
        coefficients = logits.softmax(0)
        return {
            name: torch.tensordot(coefficients.to(part.dtype), part, 1)
            for name, part in candidates.items()
        }

    trainer = Trainer({"logits": logits}, optimizer, seed=seed)
    trainer.run(lambda: loss(average()), num_steps, progress=progress, description="learned soup")
    with torch.no_grad():
        weights = average()
        return LearnedSoup(weights, logits.softmax(0), _number(loss(weights)))


def _checked(candidates: Any) -> tuple[dict[str, Tensor], int]:
    """Finite candidates, detached, and how many they are."""
    stacked = {n: v.detach() for n, v in checks.tensors("candidates", candidates).items()}
    sizes = {len(value) if value.dim() else 0 for value in stacked.values()}
    if len(sizes) != 1 or 0 in sizes:
        raise ValueError(
            "candidates must be equally many for each tensor, at least one, got the shapes "
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
