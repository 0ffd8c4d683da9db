"""Learned labels: each pseudo row has a probability for each class in place of a class."""

from typing import NamedTuple

import torch
from pyro.nn import PyroParam
from torch import Tensor
from torch.distributions import constraints
from torch.distributions.constraints import Constraint

from pyro_ext.inference.pseudocoresets.posteriors import Coreset

__all__ = ["LabelArgument", "class_values", "label_parameter", "with_all_labels"]

_CONFIDENCE = 0.9


class LabelArgument(NamedTuple):
    """The row argument whose classes are learned.

    :param int place: its number among the row arguments.
    :param Tensor values: the classes. **Shape:** ``(num_classes, *event)``.
    """

    place: int
    values: Tensor


def class_values(support: Constraint | None, row: Tensor) -> Tensor | None:
    """The values that an observation can have, ``None`` where they are not finitely many.

    :param Constraint support: of the observed site, ``None`` for no observations.
    :param Tensor row: some values. **Shape:** ``(num_rows, *event)``.
    :returns: **Shape:** ``(num_classes, *event)``.

    Example::

        >>> class_values(dist.Categorical(torch.ones(3)).support, torch.tensor([2, 0]))
        tensor([0, 1, 2])
    """
    if row[0].numel() != 1:
        return None
    if support is constraints.boolean:
        bounds = [0.0, 1.0]
    elif support is not None and support.is_discrete and hasattr(support, "upper_bound"):
        ends = (torch.as_tensor(getattr(support, f"{end}_bound")) for end in ("lower", "upper"))
        extremes = [end.unique() for end in ends]
        if any(len(end) != 1 for end in extremes):
            return None
        bounds = [float(end) for end in extremes]
    else:
        return None
    values = torch.arange(bounds[0], bounds[1] + 1.0, device=row.device).to(row.dtype)
    return values.reshape(-1, *row.shape[1:])


def label_parameter(name: str, row: Tensor, values: Tensor, dtype: torch.dtype) -> PyroParam:
    """A parameter of probabilities of classes, near to those that pseudo rows start with.

    :param str name: of the argument.
    :param Tensor row: the classes to start with. **Shape:** ``(num_rows, *event)``.
    :param Tensor values: all classes. **Shape:** ``(num_classes, *event)``.
    :param torch.dtype dtype: of the probabilities.
    :raises ValueError: where a row is none of the classes.
    """
    is_own = row.reshape(-1, 1) == values.reshape(1, -1)
    if not bool(is_own.any(1).all()):
        raise ValueError(
            f"the argument {name!r} must start with classes among {values.flatten().tolist()!r:.80}"
        )
    rest = (1.0 - _CONFIDENCE) / max(len(values) - 1, 1)
    probabilities = torch.where(is_own, _CONFIDENCE, rest).to(dtype)
    return PyroParam(probabilities / probabilities.sum(-1, keepdim=True), constraints.simplex)


def with_all_labels(coreset: Coreset, label: LabelArgument) -> Coreset:
    """Each pseudo row once with each class, weighted by the probability of the class.

    :param Coreset coreset: pseudo rows, of which those of the label argument are probabilities.
        **Shape:** ``(size, num_classes)`` for these.
    :param LabelArgument label: the label argument.
    :returns: rows of the same pseudo row follow one another. **Shape:** ``(size * num_classes,
        *event)`` each.
    """
    probabilities = coreset.rows[label.place]
    size, num_classes = probabilities.shape
    rows = [row.repeat_interleave(num_classes, 0) for row in coreset.rows]
    rows[label.place] = label.values.repeat(size, *[1] * (label.values.dim() - 1))
    return Coreset(tuple(rows), (coreset.weights[:, None] * probabilities).flatten())
