"""Checks of arguments, with errors that name the argument, what it got and what it wants."""

import inspect
import math
import numbers
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.distributions.utils import broadcast_all

_NUM_ROWS_NAMED = 3
_MOST = 2**63 - 1  # what a tensor of integers can hold
# Types in which arithmetic overflows or is not there, but whose values all others hold exactly.
_SMALL_TYPES = (torch.bool, torch.int8, torch.int16)


def integer(argument: str, value: object, least: int, most: float = _MOST) -> int:
    """Check an integer."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < least:
        raise ValueError(f"{argument} must be an integer >= {least}, got {value!r:.80}")
    if int(value) > most:
        raise ValueError(f"{argument} must be an integer <= {most}, got {value!r:.80}")
    return int(value)


def boolean(argument: str, value: object) -> bool:
    """Return the value, or raise where it is neither ``True`` nor ``False``."""
    if not isinstance(value, bool):
        raise TypeError(f"{argument} must be True or False, got {value!r:.80}")
    return value


def number(
    argument: str,
    value: object,
    *,
    above: float | None = None,
    least: float | None = None,
    below: float | None = None,
    most: float | None = None,
) -> float:
    """Check a finite real number."""
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
    """Say what the caller gave: a shape for a tensor or an array, otherwise the value."""
    if isinstance(value, Tensor) and (value.dim() or value.device.type == "meta"):
        form = "" if value.layout == torch.strided else f"{value.layout} ".removeprefix("torch.")
        place = " on the device meta" if value.device.type == "meta" else ""
        return f"a {form}{value.dtype} tensor of shape {tuple(value.shape)}{place}"
    if isinstance(value, np.ndarray) and value.ndim:
        return f"a {value.dtype} array of shape {value.shape}"
    if inspect.isclass(value):
        return f"the class {value.__name__}"
    return f"{value!r:.80}"


def instance(
    argument: str, value: object, kind: type[Any] | tuple[type[Any], ...], wanted: str
) -> None:
    """Check that a value is an instance of one class or of several."""
    if not isinstance(value, kind):
        raise TypeError(f"{argument} must be {wanted}, got {shown(value)}")


@contextmanager
def named_in_errors(argument: str, value: object) -> Iterator[None]:
    """Name an argument in the error of a network or a loss that it does not fit."""
    try:
        yield
    except (RuntimeError, IndexError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise ValueError(
            f"{argument} must be what the network and its loss take, got {shown(value)}: {reason}"
        ) from error


def function(
    argument: str, value: object, wanted: str = "a function", *, or_class: bool = True
) -> None:
    """Check that a value can be called."""
    if not callable(value) or not (or_class or not inspect.isclass(value)):
        raise TypeError(f"{argument} must be {wanted}, got {shown(value)}")


def choice(argument: str, value: object, allowed: Collection[str]) -> None:
    """Check that a value is one of several words."""
    if not isinstance(value, str) or value not in allowed:
        raise ValueError(
            f"{argument} must be one of {', '.join(map(repr, allowed))}, got {shown(value)}"
        )


def sequence(
    argument: str, value: Any, wanted: str, least: int = 1, kind: Any = object
) -> list[Any]:
    """Check that a value is a list or another finite collection other than text."""
    is_text = isinstance(value, str | bytes)
    is_scalar = isinstance(value, Tensor | np.ndarray) and value.ndim == 0
    if is_text or is_scalar or inspect.isclass(value) or not isinstance(value, Iterable):
        raise TypeError(f"{argument} must be {wanted}, got {shown(value)}")
    values = list(value)
    if len(values) < least:
        raise ValueError(f"{argument} must be {wanted}, at least {least}, got {shown(value)}")
    for entry in values:
        instance(argument, entry, kind, wanted)
    return values


def mapping(argument: str, value: object, wanted: str) -> None:
    """Check that a value is a dict or another mapping."""
    instance(argument, value, Mapping, wanted)


def tensors(
    argument: str, value: Any, names: Collection[str] = (), *, finite: bool = False
) -> dict[str, Tensor]:
    """Take a dict of tensors by name; arrays and lists become tensors."""
    mapping(argument, value, "a dict of tensors by name")
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

    Booleans and small integers become numbers to compute with, or to index by.
    """
    wanted = f"a tensor, a NumPy array or a list of {kind}"
    if shape is not None:
        wanted += f" of the shape {shape}"
    if isinstance(value, Tensor):
        tensor = value
    else:
        try:
            tensor = torch.as_tensor(value, dtype=dtype)
            if like is not None and tensor.is_floating_point() and not hasattr(value, "dtype"):
                # Python's numbers have more digits than a tensor by default.
                tensor = torch.as_tensor(value, dtype=like.dtype)
        except (TypeError, ValueError, RuntimeError, OverflowError):
            raise TypeError(f"{argument} must be {wanted}, got {shown(value)}") from None
        if not tensor.numel() and not tensor.is_floating_point() and kind == "numbers":
            tensor = tensor.to(torch.get_default_dtype())
    has_values(argument, tensor)
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
    if kind != "booleans" and tensor.dtype in _SMALL_TYPES:
        tensor = tensor.to(torch.int64 if kind == "integers" else torch.get_default_dtype())
    if like is not None:
        dtype = like.dtype if tensor.is_floating_point() else tensor.dtype
        tensor = tensor.to(device=like.device, dtype=dtype)
    if dtype is not None:
        tensor = tensor.to(dtype)
    if finite:
        all_finite(argument, tensor)
    return tensor


def has_values(argument: str, tensor: Tensor) -> None:
    """Check that a tensor is neither sparse nor without values."""
    if tensor.layout != torch.strided or tensor.device.type == "meta":
        raise TypeError(f"{argument} must be a dense tensor with values, got {shown(tensor)}")


def as_parameter(argument: str, value: Any) -> Any:
    """Take a parameter of a distribution or measure: a number as it is, the rest as a tensor."""
    if isinstance(value, numbers.Real):
        return value
    return as_tensor(argument, value, allow_empty=isinstance(value, Tensor))


def as_parameters(owner: str, values: Mapping[str, Any]) -> tuple[Tensor, ...]:
    """Take the parameters of a distribution or measure as tensors of one shape."""
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
    """Take a shape."""
    is_tuple = isinstance(value, list | tuple)
    if not is_tuple or not all(isinstance(size, int) and size >= 0 for size in value):
        raise TypeError(f"{argument} must be a tuple of integers >= 0, got {shown(value)}")
    return torch.Size(value)


def all_finite(argument: str, tensor: Tensor) -> None:
    """Check that no number is NaN or infinite; an error says in which rows they are."""
    if not tensor.is_floating_point() or torch.compiler.is_compiling():
        return
    has_values(argument, tensor)
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


def optional(
    check: Callable[..., Any], argument: str, value: Any, *args: Any, **options: Any
) -> Any:
    """Check a value by one of the functions above, unless it is ``None``."""
    if value is None:
        return None
    checked = check(argument, value, *args, **options)
    return value if checked is None else checked


def _has_shape(tensor: Tensor, shape: str | None) -> bool:
    """Tell whether a tensor has a shape such as ``"(n, ...)"``."""
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
