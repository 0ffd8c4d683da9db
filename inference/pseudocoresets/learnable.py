"""Learned parameters of rows and labels, and default step sizes in their units."""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import pyro
import torch
from pyro.nn import PyroParam
from torch import Tensor, nn
from torch.distributions import constraints, transform_to
from torch.distributions.constraints import Constraint, MixtureSameFamilyConstraint

from pyro_ext.inference.pseudocoresets.posteriors import Coreset
from pyro_ext.potential import Potential
from pyro_ext.potential.rows import WeightedModel

_NUDGE = 0.01
_CONFIDENCE = 0.9
_FRACTION = 0.005


class LabelArgument(NamedTuple):
    """The row argument whose classes are learned."""

    position: int  # its number among the row arguments
    values: Tensor  # the classes, (num_classes, *event)


def row_parameters(
    learnable: Sequence[str | int] | None,
    names: Sequence[str],
    supports: Sequence[Constraint | None],
    rows: Sequence[Tensor],
    dtype: torch.dtype,
) -> dict[str, PyroParam]:
    """Parameters of the row arguments that are learned."""
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
                "finite support, and stays as it is"
            )
    return parameters


def label_argument(
    chosen: Sequence[str],
    names: Sequence[str],
    supports: Sequence[Constraint | None],
    rows: Sequence[Tensor],
) -> LabelArgument | None:
    """The learned argument that holds labels, if any does."""
    found = [
        LabelArgument(index, values)
        for index, (name, row, support) in enumerate(zip(names, rows, supports, strict=True))
        if name in chosen
        and not _is_continuous(row, support)
        and (values := class_values(support, row)) is not None
    ]
    if len(found) > 1:
        labels = [names[label.position] for label in found]
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
    """Raise where a learned argument may not change, such as totals, which are integers."""
    latents = {name: v[0] for name, v in potential.constrain(potential.init(seed=0)).items()}
    conditioned = pyro.condition(model, latents)
    generator = torch.Generator().manual_seed(0)

    def error_at(*rows: Tensor) -> Exception | None:
        try:
            with (
                pyro.poutine.block(),
                torch.no_grad(),
                torch.random.fork_rng(),
                pyro.validation_enabled(True),
                warnings.catch_warnings(action="ignore"),
            ):
                pyro.poutine.trace(conditioned).get_trace(weights, *rows).compute_log_prob()
        except Exception as error:  # whatever the model raises
            return error
        return None

    if error_at(*rows) is not None:
        return  # the checks have something against the rows as they are
    for index, name in enumerate(model.arguments.names):
        if name not in parameters or (label is not None and index == label.position):
            continue
        transform = transform_to(parameters[name].constraint)
        unconstrained = transform.inv(rows[index])
        noise = torch.randn(unconstrained.shape, generator=generator, device="cpu").to(
            unconstrained
        )
        moved = list(rows)
        moved[index] = transform(unconstrained + _NUDGE * column_spreads(unconstrained) * noise)
        error = error_at(*moved)
        if error is not None:
            rest = [other for other in parameters if other != name]
            raise ValueError(
                f"the argument {name!r} cannot be learned: if its values change a little, the "
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
            f"{support} of their site. Leave it out of learnable, or pass other rows by init"
        )
    return PyroParam(row, constraint)


def class_values(support: Constraint | None, row: Tensor) -> Tensor | None:
    """The values that an observation can have, ``None`` where they are not finitely many."""
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
    """A parameter of probabilities of classes, near to those that pseudo rows start with."""
    is_own = row.reshape(-1, 1) == values.reshape(1, -1)
    if not bool(is_own.any(1).all()):
        raise ValueError(
            f"the argument {name!r} must start with classes among {values.flatten().tolist()!r:.80}"
        )
    rest = (1.0 - _CONFIDENCE) / max(len(values) - 1, 1)
    probabilities = torch.where(is_own, _CONFIDENCE, rest).to(dtype)
    return PyroParam(probabilities / probabilities.sum(-1, keepdim=True), constraints.simplex)


def with_all_labels(coreset: Coreset, label: LabelArgument) -> Coreset:
    """Each pseudo row once with each class, weighted by the probability of the class."""
    probabilities = coreset.rows[label.position]
    size, num_classes = probabilities.shape
    rows = [row.repeat_interleave(num_classes, 0) for row in coreset.rows]
    rows[label.position] = label.values.repeat(size, *[1] * (label.values.dim() - 1))
    return Coreset(tuple(rows), (coreset.weights[:, None] * probabilities).flatten())


class StandardizedAdam(torch.optim.Adam):
    """Adam on parameters in units of their spreads."""

    def __init__(self, parameters: Sequence[nn.Parameter], spreads: Sequence[Tensor]) -> None:
        # Its own parameters are the moves of a step: next to a large value rounding would eat them.
        self._parts = [
            (p, spread, torch.zeros_like(p)) for p, spread in zip(parameters, spreads, strict=True)
        ]
        super().__init__([move for _, _, move in self._parts], lr=_FRACTION)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Take a step."""
        for parameter, spread, move in self._parts:
            move.zero_()
            move.grad = None if parameter.grad is None else spread * parameter.grad
        super().step(closure)
        for parameter, spread, move in self._parts:
            parameter.add_(spread * move)


def column_spreads(rows: Tensor) -> Tensor:
    """Standard deviation of each column of some rows.

    That of a constant column is the absolute value of the constant, and of a column of zeros the
    median of the other columns, or one where there is no other.
    """
    spreads = rows.std(0) if len(rows) > 1 else torch.zeros_like(rows[0])
    spreads = torch.where(spreads > 0, spreads, rows.mean(0).abs())
    known = spreads[spreads > 0]
    rest = known.median() if known.numel() else torch.ones_like(spreads).amax()
    return torch.where(spreads > 0, spreads, rest)
