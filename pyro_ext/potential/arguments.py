"""Arguments of a model: arrays that become tensors, and errors that name them."""

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from pyro import poutine
from torch import Tensor

from pyro_ext._checks import check_finite, shown

__all__ = ["as_tensors", "named_arguments", "names_of", "not_finite", "not_finite_in"]

# What Python and PyTorch raise where an argument is of the wrong kind.
_UNNAMED = (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError)


def as_tensors(
    model: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Make tensors of arrays and lists of numbers where a model cannot run with them.

    Floating-point numbers get PyTorch's default type. A model that takes arrays gets arrays.
    """
    given = (*args, *kwargs.values())
    if not any(isinstance(value, np.ndarray | list) for value in given):
        return args, dict(kwargs)
    try:
        with torch.random.fork_rng(), torch.no_grad(), poutine.block():
            poutine.trace(model).get_trace(*args, **kwargs).compute_log_prob()
    except Exception:  # whatever it is, a later run raises it again
        return tuple(map(_converted, args)), {name: _converted(kwargs[name]) for name in kwargs}
    return args, dict(kwargs)


def _converted(value: Any) -> Any:
    if not isinstance(value, np.ndarray | list):
        return value
    try:
        tensor = torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError):
        return value
    return tensor.to(torch.get_default_dtype()) if tensor.is_floating_point() else tensor


@contextmanager
def named_arguments(
    model: Callable[..., Any] | None, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Iterator[None]:
    """Say in errors of a model what it was run with, and which rows of it are not finite."""
    try:
        yield
    except ValueError as error:
        if rows := not_finite_in(model, args, kwargs):
            raise ValueError(f"{rows}: {error}") from error
        raise
    except _UNNAMED as error:
        if isinstance(error, TypeError) and " must be " in str(error):
            raise  # which names an argument already
        given = names_of(model, args, kwargs)
        listed = ", ".join(f"{name}={shown(value)}" for name, value in given.items())
        reason = f"{type(error).__name__}: {error}"
        hint = ""
        if any(isinstance(value, np.ndarray | list) for value in given.values()):
            hint = "; data have to be tensors where the model computes with them: torch.as_tensor"
        named = ValueError(
            f"model must run with its arguments, got {listed or 'none'} and {reason}{hint}"
        )
        for note in getattr(error, "__notes__", ()):
            named.add_note(note)
        raise named from error


def names_of(
    model: Callable[..., Any] | None, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> dict[str, Any]:
    """Arguments by the names that the model has for them, or by their numbers."""
    try:
        if model is None:
            raise TypeError
        bound = inspect.signature(model).bind(*args, **kwargs)
    except (TypeError, ValueError):
        return {f"args[{i}]": value for i, value in enumerate(args)} | dict(kwargs)
    named: dict[str, Any] = {}
    for name, value in bound.arguments.items():
        kind = bound.signature.parameters[name].kind
        if kind is inspect.Parameter.VAR_POSITIONAL:
            named |= {f"{name}[{i}]": part for i, part in enumerate(value)}
        elif kind is inspect.Parameter.VAR_KEYWORD:
            named |= value
        else:
            named[name] = value
    return named


def not_finite_in(
    model: Callable[..., Any] | None, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> str:
    """Say which rows of which arguments are not finite, nothing where all are."""
    found = []
    for name, value in names_of(model, args, kwargs).items():
        if isinstance(value, Tensor) and (text := not_finite(name, value)):
            found.append(text)
    return "; ".join(found)


def not_finite(argument: str, value: Tensor) -> str:
    """Say which rows of a tensor are not finite, nothing where all are."""
    try:
        check_finite(argument, value)
    except ValueError as error:
        return str(error)
    return ""
