"""The arguments of a model that have a row for each observation, and models over other rows."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from pyro_ext._checks import check_finite
from pyro_ext.handlers import data_weights

__all__ = ["CoresetModel", "RowArguments", "WeightedModel", "data_arguments"]


def data_arguments(
    model: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Arguments of a model with tensors in the place of NumPy arrays and lists of numbers.

    Real numbers get PyTorch's default type. Lists become tensors where they are as long as the
    longest argument: shorter ones may be sizes, such as those of layers.

    :param model: a Pyro model.
    :param tuple args: its arguments.
    :param Mapping kwargs: its keyword arguments.
    :raises ValueError: where an argument of that length holds NaN or infinite numbers.

    Example::

        >>> data_arguments(lambda x, y, sizes: None, ([1.0, 2.0], torch.ones(2), [4]), {})
        ((tensor([1., 2.]), tensor([1., 1.]), [4]), {})
    """
    named = _named(model, args, kwargs)
    trees = [pytree.tree_flatten(value, is_leaf=_is_list_of_numbers) for _, value in named]
    most = max((len(part) for parts, _ in trees for part in parts if _has_length(part)), default=0)
    filled = []
    for (name, _), (parts, tree) in zip(named, trees, strict=True):
        leaves = [_as_tensor(part, most) for part in parts]
        for leaf in leaves:
            if isinstance(leaf, Tensor) and leaf.dim() and len(leaf) == most:
                check_finite(name, leaf)
        filled.append(pytree.tree_unflatten(leaves, tree))
    return tuple(filled[: len(args)]), dict(zip(kwargs, filled[len(args) :], strict=True))


class RowArguments:
    """Which arguments of a model have a row for each observation.

    :param model: a Pyro model.
    :param tuple args: its arguments.
    :param dict kwargs: its keyword arguments.
    :param int size: number of observations.
    :raises ValueError: where no argument has so many rows.
    """

    def __init__(
        self,
        model: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        size: int,
    ) -> None:
        self._model = model
        self._leaves, self._tree = pytree.tree_flatten((args, dict(kwargs)))
        owners = [
            name for name, value in _named(model, args, kwargs) for _ in pytree.tree_leaves(value)
        ]
        self._places = [
            place
            for place, leaf in enumerate(self._leaves)
            if isinstance(leaf, Tensor) and leaf.dim() > 0 and len(leaf) == size
        ]
        if not self._places:
            raise ValueError(
                f"args must hold a tensor with a row for each of the {size} observations, got none"
            )
        chosen = [owners[place] for place in self._places]
        self.names = [
            name if chosen.count(name) == 1 else f"{name}_{chosen[:number].count(name)}"
            for number, name in enumerate(chosen)
        ]
        self.rows: tuple[Tensor, ...] = tuple(self._leaves[place] for place in self._places)

    @property
    def tensors(self) -> list[Tensor]:
        """All tensors in the arguments."""
        return [leaf for leaf in self._leaves if isinstance(leaf, Tensor)]

    def fill(self, rows: Sequence[Tensor]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments with other rows."""
        leaves = list(self._leaves)
        for place, row in zip(self._places, rows, strict=True):
            leaves[place] = row
        args, kwargs = pytree.tree_unflatten(leaves, self._tree)
        return args, kwargs

    def are(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
        """Whether other arguments are the same ones."""
        args, kwargs = data_arguments(self._model, args, kwargs)
        leaves, tree = pytree.tree_flatten((args, dict(kwargs)))
        return tree == self._tree and all(map(_is_same, leaves, self._leaves))


class WeightedModel:
    """A model as a function of the weights of its observations and of their rows.

    :param model: a Pyro model.
    :param RowArguments arguments: its arguments.
    :param str plate: name of the plate of the observations.
    """

    def __init__(self, model: Callable[..., Any], arguments: RowArguments, plate: str) -> None:
        self.model = model
        self.arguments = arguments
        self.plate = plate

    def __call__(self, weights: Tensor, *rows: Tensor) -> Any:
        """Run the model."""
        args, kwargs = self.arguments.fill(rows)
        return data_weights(self.plate, weights)(self.model)(*args, **kwargs)


class CoresetModel:
    """A model without arguments, whose observations are weighted pseudo rows.

    :param model: the model of weighted rows.
    :param Sequence rows: the pseudo rows. **Shape:** ``(size, *event)`` each.
    :param Tensor weights: their weights. **Shape:** ``(size,)``.
    """

    def __init__(self, model: WeightedModel, rows: Sequence[Tensor], weights: Tensor) -> None:
        self.model = model.model
        self.plate = model.plate
        self.args, self.kwargs = model.arguments.fill(rows)
        self.weights = weights

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the model.

        :raises TypeError: for arguments: the pseudo rows are there already.
        """
        if args or kwargs:
            raise TypeError(
                "args must be none: a model that condition() gives takes no arguments, since it "
                f"holds the pseudo observations in their place, got {len(args) + len(kwargs)}. To "
                "predict at other inputs take the draws to the model itself, such as "
                "Predictive(model, draws)(x)"
            )
        return data_weights(self.plate, self.weights)(self.model)(*self.args, **self.kwargs)


def _named(
    model: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> list[tuple[str, Any]]:
    """Each argument with its name in the model's signature, or its position without one."""
    function = model.forward if isinstance(model, torch.nn.Module) else model
    names: list[str] = []
    try:
        for name, parameter in inspect.signature(function).parameters.items():
            if parameter.kind not in (
                parameter.POSITIONAL_ONLY,
                parameter.POSITIONAL_OR_KEYWORD,
            ):
                break
            names.append(name)
    except (TypeError, ValueError):
        pass
    names += [f"argument_{place}" for place in range(len(names), len(args))]
    return [*zip(names[: len(args)], args, strict=True), *kwargs.items()]


def _is_list_of_numbers(value: object) -> bool:
    """Whether a value is a list of numbers, or of such lists, all of one shape."""
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


def _is_same(one: Any, other: Any) -> bool:
    if one is other:
        return True
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one.shape == other.shape and bool(torch.equal(one, other))
    return not isinstance(one, Tensor) and not isinstance(other, Tensor) and bool(one == other)
