"""Parameters by name, their gradients, and checks of what a trainer is given."""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from pyro_ext._lib import checks


def named_tensors(values: Any) -> dict[str, Tensor]:
    """Tensors by name."""
    if isinstance(values, nn.Module):
        named: dict[str, Tensor] = {
            name: parameter
            for name, parameter in values.named_parameters()
            if parameter.requires_grad
        }
        if not named:
            raise ValueError(
                "parameters must hold what requires a gradient, got a module without: a guide "
                "makes its own at its first call"
            )
        return named
    pairs = dict(values) if isinstance(values, Mapping) else None
    if pairs is None:
        items = as_list("parameters", values)
        pairs = {f"parameters[{number}]": value for number, value in enumerate(items)}
    if not pairs or not all(isinstance(value, Tensor) for value in pairs.values()):
        raise TypeError(
            f"parameters must be a module, or tensors in a dict or list, got {checks.shown(values)}"
        )
    return pairs


def as_list(argument: str, values: Any) -> list[Any]:
    """A copy of a list."""
    if isinstance(values, Tensor | str) or not isinstance(values, Sequence):
        raise TypeError(f"{argument} must be a list, got {checks.shown(values)}")
    return list(values)


def check_methods(argument: str, value: Any, wanted: str, *names: str) -> None:
    """Check that a value has all of some methods."""
    if inspect.isclass(value) or not all(callable(getattr(value, n, None)) for n in names):
        raise TypeError(f"{argument} must {wanted}, got {checks.shown(value)}")


def check_no_closure(optimizer: Any) -> None:
    """Check that an optimizer takes a step without a closure."""
    closure = inspect.signature(optimizer.step).parameters.get("closure")
    if closure is not None and closure.default is inspect.Parameter.empty:
        kind = optimizer if inspect.isclass(optimizer) else type(optimizer)
        raise ValueError(
            "optimizer must take a step after one evaluation of the loss, got "
            f"{kind.__name__}, which needs a closure"
        )


def gradients_of(gradients: Any, named: Mapping[str, Tensor]) -> list[Tensor | None]:
    """Gradients that a loss has returned, in the order of the parameters."""
    if isinstance(gradients, Mapping):
        if set(gradients) != set(named):
            raise ValueError(
                f"gradients must have the names {list(named)}, got {list(gradients)!r:.80}"
            )
        gradients = [gradients[name] for name in named]
    if isinstance(gradients, Tensor | str) or not isinstance(gradients, Sequence):
        raise TypeError(
            "gradients, which the loss returns beside its value, must be tensors in a dict or "
            f"list, got {checks.shown(gradients)}"
        )
    if len(gradients) != len(named):
        raise ValueError(
            f"gradients must be as many as the {len(named)} parameters, got {len(gradients)}"
        )
    for (name, parameter), gradient in zip(named.items(), gradients, strict=True):
        if gradient is not None and not (
            isinstance(gradient, Tensor)
            and gradient.shape == parameter.shape
            and gradient.dtype == parameter.dtype
        ):
            raise ValueError(
                f"gradients must hold for {name!r} {checks.shown(parameter.detach())}, got "
                f"{checks.shown(gradient)}"
            )
    return list(gradients)


def entries(tensor: Tensor) -> Tensor:
    """The numbers of a dense or coalesced sparse tensor, with the same memory."""
    return tensor._values() if tensor.is_sparse else tensor


def coalesce_gradients(parameters: Sequence[Tensor]) -> list[Tensor]:
    """Make each number of a sparse gradient stand for one element; the numbers of all."""
    found = []
    for parameter in parameters:
        if parameter.grad is not None:
            if parameter.grad.is_sparse:
                parameter.grad = parameter.grad.coalesce()
            found.append(entries(parameter.grad))
    return found


def worst_of(named: Mapping[str, Tensor | None]) -> str:
    """Describe the first tensor that is not finite, or the one with the largest number."""
    largest, name_of_largest = 0.0, ""
    for name, tensor in named.items():
        if tensor is None or not (numbers := entries(tensor.detach())).numel():
            continue
        is_bad = ~numbers.isfinite()
        if number := int(is_bad.sum()):
            first = float(numbers[is_bad].flatten()[0])
            return f"{name!r} is {first} in {number} of {tensor.numel()} elements"
        if (size := float(numbers.abs().max())) > largest:
            largest, name_of_largest = size, name
    return f"{name_of_largest!r} is as large as {largest:.3g}, and the norm overflows"


def are_finite(tensors: Sequence[Tensor]) -> bool:
    """Tell whether all elements of the tensors are finite."""
    return all(bool(tensor.isfinite().all()) for tensor in tensors)


def copied(into: list[Tensor], tensors: Sequence[Tensor]) -> list[Tensor]:
    """Copies of tensors, in the memory of others where they fit."""
    if [(t.shape, t.dtype) for t in into] != [(t.shape, t.dtype) for t in tensors]:
        return [tensor.detach().clone() for tensor in tensors]
    for kept, tensor in zip(into, tensors, strict=True):
        kept.copy_(tensor.detach())
    return into


def forms_of(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Types and shapes by name."""
    return {name: [str(one.dtype), list(one.shape)] for name, one in tensors.items()}
