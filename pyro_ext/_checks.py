"""Checks of arguments, with errors that name the argument, what it got and what it wants."""

import inspect
import math
import numbers
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.distributions.utils import broadcast_all

__all__ = [
    "as_parameter",
    "as_parameters",
    "as_size",
    "as_tensor",
    "check_callable",
    "check_choice",
    "check_finite",
    "check_instance",
    "check_integer",
    "check_mapping",
    "check_number",
    "check_sequence",
    "check_tensors",
    "shown",
]

_NUM_ROWS_NAMED = 3


def check_integer(argument: str, value: object, least: int) -> int:
    """Check an integer.

    :param str argument: name of the argument.
    :param value: what the caller got.
    :param int least: the smallest allowed.
    :returns: the integer.
    :raises ValueError: where it is none, or smaller.

    Example::

        >>> check_integer("num_chains", 0, 1)
        Traceback (most recent call last):
        ValueError: num_chains must be an integer >= 1, got 0
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < least:
        raise ValueError(f"{argument} must be an integer >= {least}, got {value!r:.80}")
    return int(value)


def check_number(
    argument: str,
    value: object,
    *,
    above: float | None = None,
    least: float | None = None,
    below: float | None = None,
    most: float | None = None,
) -> float:
    """Check a finite real number.

    :param str argument: name of the argument.
    :param value: what the caller got.
    :param float above: what it has to exceed.
    :param float least: the smallest allowed.
    :param float below: what it has to stay below.
    :param float most: the largest allowed.
    :returns: the number.
    :raises ValueError: where it is none, or out of range.

    Example::

        >>> check_number("decay", 1.0, least=0, below=1)
        Traceback (most recent call last):
        ValueError: decay must be a finite number >= 0 and < 1, got 1.0
    """
    is_real = not isinstance(value, bool) and isinstance(value, numbers.Real)
    number = float(value) if is_real else math.nan  # type: ignore[arg-type]
    in_range = math.isfinite(number) and (
        (above is None or number > above)
        and (least is None or number >= least)
        and (below is None or number < below)
        and (most is None or number <= most)
    )
    if not in_range:
        bounds = [(">", above), (">=", least), ("<", below), ("<=", most)]
        wanted = " and ".join(f"{sign} {bound:g}" for sign, bound in bounds if bound is not None)
        raise ValueError(
            f"{argument} must be a finite number{' ' if wanted else ''}{wanted}, got {value!r:.80}"
        )
    return number


def shown(value: object) -> str:
    """Say what the caller gave: a shape for a tensor or an array, otherwise the value.

    Example::

        >>> shown(torch.zeros(3, 2)), shown(float), shown("abc")
        ('a torch.float32 tensor of shape (3, 2)', 'the class float', "'abc'")
    """
    if isinstance(value, Tensor) and value.dim():
        return f"a {value.dtype} tensor of shape {tuple(value.shape)}"
    if isinstance(value, np.ndarray) and value.ndim:
        return f"a {value.dtype} array of shape {value.shape}"
    if inspect.isclass(value):
        return f"the class {value.__name__}"
    return f"{value!r:.80}"


def check_instance(
    argument: str, value: object, kind: type[Any] | tuple[type[Any], ...], wanted: str
) -> None:
    """Check that a value is an instance of one class or of several.

    :param str argument: name of the argument.
    :param value: what the caller got.
    :param kind: as of :func:`isinstance`.
    :param str wanted: what it has to be, in words.
    :raises TypeError: where it is none.

    Example::

        >>> check_instance("cluster", torch.nn.Linear, torch.nn.Module, "a torch.nn.Module")
        Traceback (most recent call last):
        TypeError: cluster must be a torch.nn.Module, got the class Linear
    """
    if not isinstance(value, kind):
        raise TypeError(f"{argument} must be {wanted}, got {shown(value)}")


def check_callable(
    argument: str, value: object, wanted: str = "a function", *, or_class: bool = True
) -> None:
    """Check that a value can be called.

    :param str argument: name of the argument.
    :param value: what the caller got.
    :param str wanted: what it has to be, in words.
    :param bool or_class: whether it may be a class, which makes an instance when it is called.
    :raises TypeError: where it cannot.

    Example::

        >>> check_callable("loss_fn", 3.0)
        Traceback (most recent call last):
        TypeError: loss_fn must be a function, got 3.0
    """
    if not callable(value) or not (or_class or not inspect.isclass(value)):
        raise TypeError(f"{argument} must be {wanted}, got {shown(value)}")


def check_choice(argument: str, value: object, allowed: Collection[str]) -> None:
    """Check that a value is one of several words.

    :param str argument: name of the argument.
    :param value: what the caller got.
    :param allowed: the words.
    :raises ValueError: where it is none of them.

    Example::

        >>> check_choice("mean", "median", ("last", "average"))
        Traceback (most recent call last):
        ValueError: mean must be one of 'last', 'average', got 'median'
    """
    if not isinstance(value, str) or value not in allowed:
        raise ValueError(
            f"{argument} must be one of {', '.join(map(repr, allowed))}, got {shown(value)}"
        )


def check_sequence(
    argument: str, value: Any, wanted: str, least: int = 1, kind: Any = object
) -> list[Any]:
    """Check that a value is a list or another finite collection that is no text.

    :param str argument: name of the argument.
    :param value: what the caller got.
    :param str wanted: what it has to be, in words.
    :param int least: how many there have to be.
    :param kind: the class of each.
    :returns: a list of what it holds.
    :raises TypeError: where it is none.
    :raises ValueError: where it holds too few.

    Example::

        >>> check_sequence("names", "loc", "a list of names of sites")
        Traceback (most recent call last):
        TypeError: names must be a list of names of sites, got 'loc'
    """
    is_text = isinstance(value, str | bytes)
    is_scalar = isinstance(value, Tensor | np.ndarray) and value.ndim == 0
    if is_text or is_scalar or inspect.isclass(value) or not isinstance(value, Iterable):
        raise TypeError(f"{argument} must be {wanted}, got {shown(value)}")
    values = list(value)
    if len(values) < least:
        raise ValueError(f"{argument} must be {wanted}, at least {least}, got {shown(value)}")
    for entry in values:
        check_instance(argument, entry, kind, wanted)
    return values


def check_mapping(argument: str, value: object, wanted: str) -> None:
    """Check that a value is a dict or another mapping.

    :param str argument: name of the argument.
    :param value: what the caller got.
    :param str wanted: what it has to be, in words.
    :raises TypeError: where it is none.

    Example::

        >>> check_mapping("quantities", 3, "a dict of functions by name")
        Traceback (most recent call last):
        TypeError: quantities must be a dict of functions by name, got 3
    """
    check_instance(argument, value, Mapping, wanted)


def check_tensors(
    argument: str, value: Any, names: Collection[str] = (), *, finite: bool = False
) -> dict[str, Tensor]:
    """Take a dict of tensors by name; arrays and lists become tensors.

    :param str argument: name of the argument.
    :param value: what the caller got.
    :param names: which have to be there; there may be others.
    :param bool finite: whether to look for NaN and infinities.
    :returns: the tensors.
    :raises TypeError: where it is no dict, or holds something else than numbers.
    :raises ValueError: where one is missing, or none is there.

    Example::

        >>> check_tensors("samples", {"loc": [0.5, 1.0]}, ["loc", "scale"])
        Traceback (most recent call last):
        ValueError: samples must be a dict of tensors with the names ['loc', 'scale'], got ['loc']
    """
    check_mapping(argument, value, "a dict of tensors by name")
    if not value or not set(names) <= set(value):
        wanted = f" with the names {sorted(names)}" if names else " by name, at least one"
        raise ValueError(f"{argument} must be a dict of tensors{wanted}, got {sorted(value)}")
    return {
        name: as_tensor(f"{argument}[{name!r}]", entry, allow_empty=True, finite=finite)
        for name, entry in value.items()
    }


def as_tensor(
    argument: str,
    value: Any,
    shape: str | None = None,
    *,
    kind: str = "numbers",
    allow_empty: bool = False,
    finite: bool = False,
    like: Tensor | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Take a tensor, a NumPy array or a list of real numbers as a tensor.

    :param str argument: name of the argument.
    :param value: what the caller got.
    :param str shape: in words, such as ``"(n, d)"``: as many dimensions, or at least so many where
        it begins with ``*`` or ends with dots. A name that is a number has to be that size.
    :param str kind: ``"integers"`` where floating-point numbers, and ``"booleans"`` where all
        numbers are refused.
    :param bool allow_empty: whether there may be no numbers.
    :param bool finite: whether to look for NaN and infinities.
    :param Tensor like: of the type that floating-point numbers get, and the device.
    :param torch.dtype dtype: of the result.
    :returns: the tensor, the same object where it fits.
    :raises TypeError: where it holds something else.
    :raises ValueError: where the shape is another, or a number is not finite.

    Example::

        >>> as_tensor("x", [[0.0, 1.0], [2.0, 3.0]], "(n, d)").shape
        torch.Size([2, 2])
        >>> as_tensor("x", [0.0, float("nan")], "(n,)", finite=True)
        Traceback (most recent call last):
        ValueError: x must be finite, got nan in row 1
    """
    wanted = f"a tensor, a NumPy array or a list of {kind}"
    if shape is not None:
        wanted += f" of the shape {shape}"
    if isinstance(value, Tensor):
        tensor = value
    else:
        try:
            tensor = torch.as_tensor(value, dtype=dtype)
        except (TypeError, ValueError, RuntimeError, OverflowError):
            raise TypeError(f"{argument} must be {wanted}, got {shown(value)}") from None
        if not tensor.numel() and not tensor.is_floating_point() and kind == "numbers":
            tensor = tensor.to(torch.get_default_dtype())
    is_whole = not (tensor.is_floating_point() or tensor.is_complex())
    fits = {
        "numbers": not tensor.is_complex(),
        "integers": is_whole,
        "booleans": tensor.dtype == torch.bool,
    }
    if not fits[kind]:
        raise TypeError(f"{argument} must be {wanted}, got {shown(value)}")
    if not _has_shape(tensor, shape):
        raise ValueError(f"{argument} must have the shape {shape}, got {tuple(tensor.shape)}")
    if not (allow_empty or tensor.numel()):
        raise ValueError(f"{argument} must not be empty, got the shape {tuple(tensor.shape)}")
    if like is not None:
        dtype = like.dtype if tensor.is_floating_point() else tensor.dtype
        tensor = tensor.to(device=like.device, dtype=dtype)
    if dtype is not None:
        tensor = tensor.to(dtype)
    if finite:
        check_finite(argument, tensor)
    return tensor


def as_parameter(argument: str, value: Any) -> Any:
    """Take a parameter of a distribution or measure: a number as it is, the rest as a tensor.

    :param str argument: name of the argument.
    :param value: what the caller got.
    :returns: the number, or a tensor.
    :raises TypeError: where it is neither numbers nor a tensor of such.
    :raises ValueError: for an empty list.

    Example::

        >>> as_parameter("rate", None)
        Traceback (most recent call last):
        TypeError: rate must be a tensor, a NumPy array or a list of numbers, got None
    """
    if isinstance(value, numbers.Real):
        return value
    return as_tensor(argument, value, allow_empty=isinstance(value, Tensor))


def as_parameters(owner: str, values: Mapping[str, Any]) -> tuple[Tensor, ...]:
    """Take the parameters of a distribution or measure as tensors of one shape.

    :param str owner: what they belong to.
    :param values: by name.
    :returns: the tensors, in their order.
    :raises TypeError: where one is neither numbers nor a tensor of such.
    :raises ValueError: where their shapes do not broadcast.

    Example::

        >>> as_parameters("Normal", {"loc": torch.zeros(2), "scale": [1.0, 2.0, 3.0]})
        Traceback (most recent call last):
        ValueError: loc, scale of Normal must broadcast, got the shapes (2,), (3,)
    """
    parameters = {name: as_parameter(name, value) for name, value in values.items()}
    try:
        tensors: tuple[Tensor, ...] = broadcast_all(*parameters.values())
    except RuntimeError:
        shapes = ", ".join(
            str(tuple(value.shape)) if isinstance(value, Tensor) else "()"
            for value in parameters.values()
        )
        raise ValueError(
            f"{', '.join(parameters)} of {owner} must broadcast, got the shapes {shapes}"
        ) from None
    return tensors


def as_size(argument: str, value: Any) -> torch.Size:
    """Take a shape.

    :param str argument: name of the argument.
    :param value: what the caller got.
    :raises TypeError: where it holds no nonnegative integers.

    Example::

        >>> as_size("sample_shape", 3)
        Traceback (most recent call last):
        TypeError: sample_shape must be a tuple of integers >= 0, got 3
    """
    is_tuple = isinstance(value, list | tuple)
    if not is_tuple or not all(isinstance(size, int) and size >= 0 for size in value):
        raise TypeError(f"{argument} must be a tuple of integers >= 0, got {shown(value)}")
    return torch.Size(value)


def check_finite(argument: str, tensor: Tensor) -> None:
    """Check that no number is NaN or infinite; an error says in which rows they are.

    :param str argument: name of the argument.
    :param Tensor tensor: **Shape:** ``(n, *event)``.
    :raises ValueError: where there is one.

    Example::

        >>> check_finite("x", torch.tensor([[0.0, 1.0], [math.inf, 2.0], [3.0, math.nan]]))
        Traceback (most recent call last):
        ValueError: x must be finite, got inf in row 1, nan in row 2
    """
    if not tensor.is_floating_point():
        return
    is_wrong = ~tensor.detach().isfinite()
    try:
        if not bool(is_wrong.any()):
            return
    except RuntimeError:  # a graph that is recorded knows no values
        return
    if not tensor.dim():
        raise ValueError(f"{argument} must be finite, got {tensor.item():g}")
    rows = is_wrong.reshape(len(tensor), -1).any(1).nonzero().flatten().tolist()
    parts = [
        f"{tensor[row][is_wrong[row]].flatten()[0].item():g} in row {row}"
        for row in rows[:_NUM_ROWS_NAMED]
    ]
    if len(rows) > _NUM_ROWS_NAMED:
        parts.append(f"and in {len(rows) - _NUM_ROWS_NAMED} more of {len(tensor)} rows")
    raise ValueError(f"{argument} must be finite, got {', '.join(parts)}")


def _has_shape(tensor: Tensor, shape: str | None) -> bool:
    """Whether a tensor has the shape of a description."""
    if shape is None:
        return True
    names = [name.strip() for name in shape.strip("()").split(",") if name.strip()]
    has_batch = bool(names) and names[0].startswith("*")
    sizes = tensor.shape
    if names and names[-1] == "...":
        names = names[:-1]
        sizes = sizes[: len(names)]
    elif has_batch:
        names = names[1:]
        sizes = sizes[len(sizes) - len(names) :]
    if len(sizes) != len(names):
        return False
    return all(
        not name.isdigit() or size == int(name) for name, size in zip(names, sizes, strict=True)
    )
