"""What a functional returned, with its names and shapes checked."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

__all__ = ["Values", "named_values"]

Values = dict[str, Tensor]


def named_values(found: Any, name: str, num_draws: int, like: Values | None) -> Values:
    """Return the values of a functional by name.

    :param found: what it returned.
    :param str name: name of a plain tensor.
    :param int num_draws: number of populations that it took.
    :param dict like: earlier values, whose names and shapes these must have.
    :returns: **Shape:** ``(num_draws, *event)`` each.
    :raises TypeError: for anything but tensors.
    :raises ValueError: for other names or shapes.
    """
    values = dict(found) if isinstance(found, Mapping) else {name: found}
    if not values:
        raise ValueError("functional must return a tensor or a dict of some, got an empty dict")
    for key, value in values.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise TypeError(
                f"functional must return a tensor or a dict of tensors by name, got {value!r:.80} "
                f"for {key!r}"
            )
        shape = tuple(value.shape)
        if shape[:1] != (num_draws,):
            raise ValueError(
                "functional must return tensors of the shape (num_draws, *event), got the shape "
                f"{shape} of {key!r} for {num_draws} draws"
            )
    wanted = {key: tuple(value.shape[1:]) for key, value in (like or {}).items()}
    events = {key: tuple(value.shape[1:]) for key, value in values.items()}
    if like is not None and events != wanted:
        raise ValueError(
            "functional must return the names and shapes that it returns for the data alone, which "
            f"are {wanted}, got {events}"
        )
    return {key: value.detach() for key, value in values.items()}
