"""Where pseudo rows start: a subset of the data, balanced over classes."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributions.constraints import Constraint, boolean

from pyro_ext.potential import Potential

__all__ = ["balanced_subset", "initial_rows", "observed_supports"]


def observed_supports(potential: Potential, rows: Sequence[Tensor]) -> list[Constraint | None]:
    """Support of the observed site that a row argument is the value of, if any is.

    The model may reshape the rows, such as one column of labels to a vector.

    :param Potential potential: of the model and its data.
    :param Sequence rows: the row arguments.
    """
    values = potential.observations()
    found: list[Constraint | None] = []
    for row in rows:
        supports = [
            site.support
            for name, site in potential.observed_sites.items()
            if name in values and _are_equal_rows(values[name], row)
        ]
        found.append(supports[0] if supports else None)
    return found


def _are_equal_rows(one: Tensor, other: Tensor) -> bool:
    if one.dim() == 0 or len(one) != len(other) or one.numel() != other.numel():
        return False
    return bool((one.flatten() == other.flatten()).all())


def balanced_subset(labels: Tensor | None, num_points: int, size: int, seed: int) -> Tensor:
    """Numbers of random rows, as many of each class as can be.

    :param Tensor labels: class of each row, ``None`` without classes. **Shape:** ``(num_points,)``.
    :param int num_points: number of rows.
    :param int size: number of rows to choose.
    :param int seed: of the choice.
    :returns: **Shape:** ``(size,)``.

    Example::

        >>> labels = torch.tensor([0, 0, 0, 0, 0, 1, 1])
        >>> labels[balanced_subset(labels, 7, 4, seed=0)].sort().values
        tensor([0, 0, 1, 1])
    """
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(num_points, generator=generator)
    if labels is None:
        return order[:size]
    classes = labels.cpu()[order].unique(return_inverse=True)[1]
    turns = torch.empty(num_points, dtype=torch.long)
    for number in range(int(classes.max()) + 1):
        places = (classes == number).nonzero()[:, 0]
        turns[places] = torch.arange(len(places))
    # Each class has a turn in each round, until its rows are used up.
    return order[turns.argsort(stable=True)[:size]]


def initial_rows(
    rows: Sequence[Tensor],
    supports: Sequence[Constraint | None],
    size: int,
    init: Any,
    seed: int,
) -> tuple[Tensor, ...]:
    """Pseudo rows to start with.

    :param Sequence rows: the data. **Shape:** ``(num_points, *event)`` each.
    :param Sequence supports: of ``observed_supports``.
    :param int size: number of pseudo rows.
    :param init: ``"subset"``, or a function of the size and the row arguments.
    :param int seed: of a subset, and of PyTorch's generator while a function runs.
    :raises ValueError: where a function gives rows of other shapes or types.
    """
    if init == "subset":
        index = balanced_subset(_labels(rows, supports, size), len(rows[0]), size, seed)
        return tuple(row[index.to(row.device)].detach().clone() for row in rows)
    chosen: Callable[..., Any] = init
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        given = chosen(size, *rows)
    given = (given,) if isinstance(given, Tensor) else tuple(given)
    wanted = [((size, *row.shape[1:]), row.dtype) for row in rows]
    got = [(tuple(row.shape), row.dtype) for row in given]
    if got != wanted:
        raise ValueError(f"init must return tensors of shapes and types {wanted}, got {got}")
    return tuple(row.detach().clone() for row in given)


def _labels(
    rows: Sequence[Tensor], supports: Sequence[Constraint | None], size: int
) -> Tensor | None:
    """The classes among the row arguments."""
    flat = [row.reshape(len(row)) if row[0].numel() == 1 else None for row in rows]
    pairs = list(zip(flat, supports, strict=True))
    observed = [row for row, support in pairs if row is not None and _is_of_classes(support)]
    whole = [
        row
        for row, support in pairs
        if row is not None and support is None and not row.is_floating_point()
    ]
    for row in observed or whole[:1]:
        if len(row.unique()) <= size:
            return row
    return None


def _is_of_classes(support: Constraint | None) -> bool:
    """Whether values are classes, and no counts without an upper bound."""
    return (
        support is not None
        and (support is boolean or hasattr(support, "upper_bound"))
        and bool(support.is_discrete)
    )
