"""Which row arguments are learned, and the parameters that hold them."""

import warnings
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import pyro
import torch
from pyro.nn import PyroParam
from torch import Tensor
from torch.distributions import constraints, transform_to
from torch.distributions.constraints import Constraint, MixtureSameFamilyConstraint

from pyro_ext.inference.pseudocoresets._labels import LabelArgument, class_values, label_parameter
from pyro_ext.inference.pseudocoresets._standardized_adam import column_spreads
from pyro_ext.potential import Potential
from pyro_ext.potential.rows import WeightedModel

__all__ = ["check_may_change", "label_argument", "row_parameters"]

_NUDGE = 0.01


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


def check_may_change(
    model: WeightedModel,
    potential: Potential,
    parameters: Mapping[str, PyroParam],
    label: LabelArgument | None,
    rows: Sequence[Tensor],
    weights: Tensor,
) -> None:
    """Raise where a learned argument may not change, such as totals, which are integers.

    The model runs with Pyro's checks, once for each argument, whose values change a little then.

    :param WeightedModel model: the model of weighted rows.
    :param Potential potential: of the model; the run is at its initial point.
    :param Mapping parameters: of ``row_parameters``.
    :param LabelArgument label: the argument of labels, if they are learned.
    :param Sequence rows: the pseudo rows to start with. **Shape:** ``(size, *event)`` each.
    :param Tensor weights: their weights. **Shape:** ``(size,)``.
    :raises ValueError: with the name of the argument.
    """
    latents = {name: v[0] for name, v in potential.constrain(potential.init(seed=0)).items()}
    conditioned = pyro.condition(model, latents)
    generator = torch.Generator().manual_seed(0)

    def error_at(*rows: Tensor) -> Exception | None:
        try:
            with ExitStack() as stack:
                for context in (pyro.poutine.block(), torch.no_grad(), torch.random.fork_rng()):
                    stack.enter_context(context)
                stack.enter_context(pyro.validation_enabled(True))
                stack.enter_context(warnings.catch_warnings())
                warnings.simplefilter("ignore")
                pyro.poutine.trace(conditioned).get_trace(weights, *rows).compute_log_prob()
        except Exception as error:  # whatever the model raises
            return error
        return None

    if error_at(*rows) is not None:
        return  # the checks have something against the rows as they are
    for place, name in enumerate(model.arguments.names):
        if name not in parameters or (label is not None and place == label.place):
            continue
        transform = transform_to(parameters[name].constraint)
        unconstrained = transform.inv(rows[place])
        noise = torch.randn(unconstrained.shape, generator=generator).to(unconstrained)
        moved = list(rows)
        moved[place] = transform(unconstrained + _NUDGE * column_spreads(unconstrained) * noise)
        error = error_at(*moved)
        if error is not None:
            rest = [other for other in parameters if other != name]
            raise ValueError(
                f"the argument {name!r} cannot be learned: where its values change a little, the "
                f"model fails with {type(error).__name__}: {error!s:.200}. Leave it out of "
                f"learnable, such as learnable={rest}"
            ) from error


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
    constraint: Constraint = constraints.real if support is None else support
    while isinstance(constraint, MixtureSameFamilyConstraint):
        constraint = constraint.base_constraint
    try:
        transform = transform_to(constraint)
    except NotImplementedError:
        raise ValueError(
            f"the argument {name!r} cannot be learned: there is no map from unconstrained space to "
            f"the support {support} of its site. Leave it out of learnable"
        ) from None
    try:
        unconstrained = transform.inv(row)
        is_inside = bool(unconstrained.isfinite().all()) and torch.allclose(
            transform(unconstrained), row, rtol=1e-3, atol=1e-6
        )
    except RuntimeError:  # bounds of another shape, such as one for each observation of the data
        is_inside = False
    if not is_inside:
        raise ValueError(
            f"the argument {name!r} cannot be learned: its rows must be inside of the support "
            f"{support} of their site. Leave it out of learnable, or give other rows by init"
        )
    return PyroParam(row, constraint)
