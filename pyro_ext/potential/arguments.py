"""Arguments of a model: arrays that become tensors, and errors that name them."""

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from pyro import poutine
from torch import Tensor

from pyro_ext._lib import checks

# What Python and PyTorch raise where an argument is of the wrong kind.
_UNNAMED = (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError)


def as_tensors(
    model: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Make tensors of arrays and lists of numbers where a model cannot run with them.

    Floating-point numbers get PyTorch's default type. A model that takes arrays gets arrays.
    """
    for name, value in arguments_by_name(model, args, kwargs):
        if isinstance(value, Tensor):
            checks.has_values(name, value)
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
        given = dict(arguments_by_name(model, args, kwargs))
        listed = ", ".join(f"{name}={checks.shown(value)}" for name, value in given.items())
        reason = f"{type(error).__name__}: {error}"
        hint = ""
        if any(isinstance(value, np.ndarray | list) for value in given.values()):
            hint = "; data have to be tensors where the model computes with them: torch.as_tensor"
        elif other := _of_another_type(given) if "dtype" in reason else []:
            hint = (
                f"; the model's own numbers are {torch.get_default_dtype()}: convert "
                f"{' and '.join(other)} with .to({torch.get_default_dtype()}), or call "
                f"torch.set_default_dtype({given[other[0]].dtype}) first"
            )
        named = ValueError(
            f"model must run with its arguments, got {listed or 'none'} and {reason}{hint}"
        )
        for note in getattr(error, "__notes__", ()):
            named.add_note(note)
        raise named from error


def _of_another_type(given: Mapping[str, Any]) -> list[str]:
    """Names of floating-point tensors that are not of the default type."""
    default = torch.get_default_dtype()
    return [
        name
        for name, value in given.items()
        if isinstance(value, Tensor) and value.is_floating_point() and value.dtype != default
    ]


def arguments_by_name(
    model: Callable[..., Any] | None, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> list[tuple[str, Any]]:
    """Each argument with its name in the model's signature, or its position without one."""
    function: Any = model.forward if isinstance(model, torch.nn.Module) else model
    names: list[str] = []
    try:
        for name, parameter in inspect.signature(function).parameters.items():
            if parameter.kind not in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD):
                break
            names.append(name)
    except (TypeError, ValueError):
        pass
    names += [f"argument_{position}" for position in range(len(names), len(args))]
    return [*zip(names[: len(args)], args, strict=True), *kwargs.items()]


def not_finite_in(
    model: Callable[..., Any] | None, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> str:
    """Say which rows of which arguments are not finite, nothing where all are."""
    found = []
    for name, value in arguments_by_name(model, args, kwargs):
        if isinstance(value, Tensor) and (text := not_finite(name, value)):
            found.append(text)
    return "; ".join(found)


def not_finite(argument: str, value: Tensor) -> str:
    """Say which rows of a tensor are not finite, nothing where all are."""
    try:
        checks.all_finite(argument, value)
    except ValueError as error:
        return str(error)
    return ""
