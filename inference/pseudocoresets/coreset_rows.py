"""The rows of a coreset: data as tensors, initial pseudo rows, and models of rows."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.distributions.constraints import Constraint, boolean
from torch.utils import _pytree as pytree

from pyro_ext._lib import checks
from pyro_ext.handlers import data_weights
from pyro_ext.potential import Potential
from pyro_ext.potential.arguments import arguments_by_name
from pyro_ext.potential.rows import RowArguments, WeightedModel, has_rows


def data_arguments(
    model: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Arguments of a model with tensors instead of NumPy arrays and lists of numbers."""
    named = arguments_by_name(model, args, kwargs)
    trees = [pytree.tree_flatten(value, is_leaf=_is_list_of_numbers) for _, value in named]
    most = max((len(part) for parts, _ in trees for part in parts if _has_length(part)), default=0)
    filled = []
    for (name, _), (parts, tree) in zip(named, trees, strict=True):
        leaves = [_as_tensor(part, most) for part in parts]
        for leaf in leaves:
            if has_rows(leaf, most):
                checks.all_finite(name, leaf)
        filled.append(pytree.tree_unflatten(leaves, tree))
    return tuple(filled[: len(args)]), dict(zip(kwargs, filled[len(args) :], strict=True))


def row_arguments(
    model: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any], size: int
) -> RowArguments:
    """The arguments of a model, some of which must have a row for each observation."""
    arguments = RowArguments(model, args, kwargs, size)
    if not arguments.rows:
        raise ValueError(
            f"args must hold a tensor with a row for each of the {size} observations, got none"
        )
    return arguments


class CoresetModel:
    """A model without arguments whose observations are weighted pseudo rows.

    :param model: the model of weighted rows.
    :param Sequence rows: the pseudo rows. **Shape:** ``(size, *event)`` each.
    :param Tensor weights: weights of the rows. **Shape:** ``(size,)``.
    """

    def __init__(self, model: WeightedModel, rows: Sequence[Tensor], weights: Tensor) -> None:
        # Not the model of weighted rows, which holds the data.
        self.model, self.plate, self.weights = model.model, model.plate, weights
        self.args, self.kwargs = model.arguments.fill(rows)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the model."""
        if args or kwargs:
            raise TypeError(
                "args must be none: a model that condition() gives takes no arguments, since it "
                f"holds the pseudo-observations instead, got {len(args) + len(kwargs)}. To "
                "predict at other inputs, pass the draws to the model itself, such as "
                "Predictive(model, draws)(x)"
            )
        return data_weights(self.plate, self.weights)(self.model)(*self.args, **self.kwargs)


def _is_list_of_numbers(value: object) -> bool:
    """Tell whether a value is a list of numbers, or a nested one whose lists have one shape."""
    if not isinstance(value, list | tuple) or not value:
        return False
    if all(isinstance(entry, bool | int | float | np.number) for entry in value):
        return True
    return all(map(_is_list_of_numbers, value)) and len({np.shape(entry) for entry in value}) == 1


def _has_length(value: object) -> bool:
    if isinstance(value, Tensor | np.ndarray):
        return value.ndim > 0
    return isinstance(value, list | tuple)


def _as_tensor(value: Any, length: int) -> Any:
    """A NumPy array of numbers, or a list of the length of the data, as a tensor."""
    is_array = isinstance(value, np.ndarray) and value.dtype.kind in "biuf"
    if not is_array and not (_is_list_of_numbers(value) and len(value) == length):
        return value
    tensor = torch.from_numpy(np.array(value))
    return tensor.to(torch.get_default_dtype()) if tensor.is_floating_point() else tensor


def observed_supports(potential: Potential, rows: Sequence[Tensor]) -> list[Constraint | None]:
    """Support of the observed site that a row argument is the value of, if any is."""
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
    """Numbers of random rows, as many of each class as can be."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(num_points, generator=generator, device="cpu")
    if labels is None:
        return order[:size]
    classes = labels.cpu()[order].unique(return_inverse=True)[1]
    turns = torch.empty(num_points, dtype=torch.long, device="cpu")
    for number in range(int(classes.max()) + 1):
        index = (classes == number).nonzero()[:, 0]
        turns[index] = torch.arange(len(index), device="cpu")
    # Each class has a turn in each round, until its rows are used up.
    return order[turns.argsort(stable=True)[:size]]


def initial_rows(
    rows: Sequence[Tensor], supports: Sequence[Constraint | None], size: int, init: Any, seed: int
) -> tuple[Tensor, ...]:
    """Pseudo rows to start with."""
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
    """Tell whether a support is one of class labels, rather than of unbounded counts."""
    return (
        support is not None
        and (support is boolean or hasattr(support, "upper_bound"))
        and bool(support.is_discrete)
    )
