"""Which row arguments are learned, and the parameters that hold them."""

from collections.abc import Sequence
from typing import Any

import torch
from pyro.nn import PyroParam
from torch import Tensor
from torch.distributions import constraints, transform_to
from torch.distributions.constraints import Constraint

from pyro_ext.inference.pseudocoresets._labels import LabelArgument, class_values, label_parameter

__all__ = ["label_argument", "row_parameters"]


def row_parameters(
    learnable: Sequence[str | int] | None,
    names: Sequence[str],
    supports: Sequence[Constraint | None],
    rows: Sequence[Tensor],
    dtype: torch.dtype,
) -> dict[str, PyroParam]:
    """Parameters of the row arguments that are learned.

    :param Sequence learnable: what the user asks for, ``None`` for all but labels.
    :param Sequence names: of the row arguments.
    :param Sequence supports: of the observed sites whose values they are, if any.
    :param Sequence rows: the pseudo rows to start with. **Shape:** ``(size, *event)`` each.
    :param torch.dtype dtype: of the probabilities of labels.
    :returns: by name. Values of continuous arguments have the shape of the rows, probabilities of
        labels the shape ``(size, num_classes)``.
    :raises TypeError: where ``learnable`` is no list of names or numbers.
    :raises ValueError: where it names something else, or what cannot be learned.
    """
    parts = {name: (row, support) for name, row, support in zip(names, rows, supports, strict=True)}
    parameters = {}
    for name in _chosen(learnable, parts):
        row, support = parts[name]
        values = class_values(support, row)
        if _is_continuous(row, support):
            parameters[name] = _row_parameter(name, row, support)
        elif values is not None:
            parameters[name] = label_parameter(name, row, values, dtype)
        else:
            raise ValueError(
                f"learnable names {name!r}, which holds integers or a discrete observation without "
                "a finite support, and stays as it is"
            )
    return parameters


def label_argument(
    chosen: Sequence[str],
    names: Sequence[str],
    supports: Sequence[Constraint | None],
    rows: Sequence[Tensor],
) -> LabelArgument | None:
    """The learned argument that holds labels, if any does.

    :param Sequence chosen: names of the arguments that are learned.
    :param Sequence names: of all row arguments.
    :param Sequence supports: as of ``row_parameters``.
    :param Sequence rows: as of ``row_parameters``.
    :raises ValueError: where there are several.
    """
    found = [
        LabelArgument(place, values)
        for place, (name, row, support) in enumerate(zip(names, rows, supports, strict=True))
        if name in chosen
        and not _is_continuous(row, support)
        and (values := class_values(support, row)) is not None
    ]
    if len(found) > 1:
        labels = [names[label.place] for label in found]
        raise ValueError(f"learnable must name one argument of labels, got {labels}")
    return found[0] if found else None


def _chosen(
    learnable: Sequence[str | int] | None, parts: dict[str, tuple[Tensor, Constraint | None]]
) -> list[str]:
    """Names of the arguments that are learned, in the order of the arguments."""
    names = list(parts)
    if learnable is None:
        return [name for name in names if _is_continuous(*parts[name])]
    if isinstance(learnable, str) or not isinstance(learnable, Sequence):
        raise TypeError(f"learnable must be a list of names or numbers, got {learnable!r:.80}")
    chosen: set[str] = set()
    for entry in learnable:
        is_number = isinstance(entry, int) and 0 <= entry < len(names)
        name: Any = names[int(entry)] if is_number else entry
        if name not in names:
            raise ValueError(
                f"learnable must name row arguments of the model, {names} or their numbers, got "
                f"{entry!r:.80}"
            )
        chosen.add(name)
    return [name for name in names if name in chosen]


def _is_continuous(row: Tensor, support: Constraint | None) -> bool:
    return row.is_floating_point() and not (support is not None and support.is_discrete)


def _row_parameter(name: str, row: Tensor, support: Constraint | None) -> PyroParam:
    """A parameter of pseudo rows, in the support of the site whose values they are."""
    constraint = constraints.real if support is None else support
    try:
        is_inside = bool(transform_to(constraint).inv(row).isfinite().all())
    except (NotImplementedError, RuntimeError):
        is_inside = False
    if not is_inside:
        raise ValueError(
            f"the argument {name!r} cannot be learned: its rows must be inside of the support "
            f"{support} of their site. Leave it out of learnable, or give other rows by init"
        )
    return PyroParam(row, constraint)
