"""Tasks of neural processes: points of functions, given and to predict."""

from dataclasses import dataclass, fields
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from torch import Tensor

from pyro_ext._lib import checks


class Points(NamedTuple):
    """Points of several functions, padded to the same number.

    :param Tensor inputs: **Shape:** ``(num_tasks, n, x_dim)``.
    :param Tensor outputs: **Shape:** ``(num_tasks, n, y_dim)``.
    :param Tensor mask: booleans, true for points and false for padding; ``None`` without padding.
        **Shape:** ``(num_tasks, n)``.
    """

    inputs: Tensor
    outputs: Tensor
    mask: Tensor | None = None

    def __add__(self, other: tuple[object, ...]) -> "Points":
        """The points of both."""
        if not isinstance(other, Points):
            return NotImplemented
        is_whole = self.mask is None and other.mask is None
        mask = None if is_whole else torch.cat([self.presence(), other.presence()], 1)
        inputs, outputs = (torch.cat(pair, 1) for pair in zip(self[:2], other[:2], strict=True))
        return Points(inputs, outputs, mask)

    def presence(self) -> Tensor:
        """The mask, which is all true without padding."""
        if self.mask is not None:
            return self.mask
        return torch.ones(self.inputs.shape[:-1], dtype=torch.bool, device=self.inputs.device)

    def filled(self) -> "Points":
        """The points, with zeros for padding, so that no NaN in it reaches a gradient."""
        if self.mask is None:
            return self
        inputs, outputs = (part.masked_fill(~self.mask[..., None], 0) for part in self[:2])
        return Points(inputs, outputs, self.mask)

    def check(self, name: str, x_dim: int, y_dim: int) -> Self:
        """Check shapes and types.

        :param str name: prefix of the arguments' names, such as ``"context"``.
        :param int x_dim: number of features of an input.
        :param int y_dim: number of features of an output.
        :returns: the points.
        :raises ValueError: names the argument, what it got and what it wants.

        Example::

            >>> Points(torch.zeros(2, 5, 1), torch.zeros(2, 4, 1)).check("context", 1, 1)
            Traceback (most recent call last):
            ValueError: context_outputs must have the shape (2, 5, 1), got (2, 4, 1)
        """
        check_inputs(f"{name}_inputs", self.inputs, x_dim)
        shape = (*self.inputs.shape[:2], y_dim)
        checks.as_tensor(f"{name}_outputs", self.outputs, str(shape), allow_empty=True)
        if self.mask is not None:
            _check_mask(f"{name}_mask", self.mask, shape[:2])
        return self

    def check_finite(self, name: str) -> None:
        """Check that all numbers except padding are finite; an error names task and rows.

        :param str name: prefix of the arguments' names, such as ``"context"``.
        """
        filled = self.filled()
        for argument, part in (("inputs", filled.inputs), ("outputs", filled.outputs)):
            is_wrong = ~part.detach().isfinite().flatten(1).all(1)
            for task in torch.nonzero(is_wrong).flatten()[:1].tolist():
                checks.all_finite(f"{name}_{argument}[{task}]", part[task])


@dataclass(frozen=True)
class Batch:
    """Tasks: given points (context) and points to predict (targets) of several functions.

    :param Tensor context_inputs: **Shape:** ``(num_tasks, num_context, x_dim)``.
    :param Tensor context_outputs: **Shape:** ``(num_tasks, num_context, y_dim)``.
    :param Tensor target_inputs: **Shape:** ``(num_tasks, num_target, x_dim)``.
    :param Tensor target_outputs: **Shape:** ``(num_tasks, num_target, y_dim)``.
    :param Tensor context_mask: booleans, false for padding, whose values have no influence.
        **Shape:** ``(num_tasks, num_context)``.
    :param Tensor target_mask: the same for the targets.

    Example::

        >>> x, y = torch.randn(4, 10, 1), torch.randn(4, 10, 2)
        >>> batch = Batch(x[:, :3], y[:, :3], x[:, 3:], y[:, 3:])
        >>> batch.num_tasks, batch.points.inputs.shape
        (4, torch.Size([4, 10, 1]))
    """

    context_inputs: Tensor
    context_outputs: Tensor
    target_inputs: Tensor
    target_outputs: Tensor
    context_mask: Tensor | None = None
    target_mask: Tensor | None = None

    def __post_init__(self) -> None:
        """Check the shapes."""
        for field in fields(self):
            given = getattr(self, field.name)
            if given is not None or not field.name.endswith("mask"):
                kind = "booleans" if field.name.endswith("mask") else "numbers"
                found = checks.as_tensor(field.name, given, kind=kind, allow_empty=True)
                object.__setattr__(self, field.name, found)
        sizes = self.context_inputs.shape[-1:], self.context_outputs.shape[-1:]
        x_dim, y_dim = (size[0] if size else 1 for size in sizes)
        for name in ("context", "target"):
            parts = (getattr(self, f"{name}_{part}") for part in ("inputs", "outputs", "mask"))
            Points(*parts).check(name, x_dim, y_dim)
        if len(self.target_inputs) != self.num_tasks:
            raise ValueError(
                f"target_inputs must be of the {self.num_tasks} tasks of the context, got "
                f"{len(self.target_inputs)}"
            )

    @property
    def num_tasks(self) -> int:
        """Number of functions."""
        return len(self.context_inputs)

    @property
    def context(self) -> Points:
        """The given points, with zeros for padding."""
        return Points(self.context_inputs, self.context_outputs, self.context_mask).filled()

    @property
    def target(self) -> Points:
        """The points to predict, with zeros for padding."""
        return Points(self.target_inputs, self.target_outputs, self.target_mask).filled()

    @property
    def points(self) -> Points:
        """All points, context first, with zeros for padding."""
        return self.context + self.target

    def to(
        self, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> "Batch":
        """Move to a device and to a floating-point type.

        :param device: the device; by default the current one.
        :param torch.dtype dtype: the type of inputs and outputs; by default the current one.
        """

        def moved(part: Tensor | None) -> Any:
            if part is None or part.dtype == torch.bool:
                return part if part is None else part.to(device)
            return part.to(device, dtype)

        return Batch(*(moved(getattr(self, field.name)) for field in fields(self)))


def check_inputs(argument: str, inputs: Tensor, x_dim: int) -> None:
    """Check the shape of inputs."""
    checks.instance(argument, inputs, Tensor, "a tensor")
    checks.as_tensor(argument, inputs, f"(num_tasks, n, {x_dim})", allow_empty=True)


def _check_mask(argument: str, mask: Tensor, shape: tuple[int, ...]) -> None:
    checks.instance(argument, mask, Tensor, "a tensor of booleans")
    if mask.dtype != torch.bool or mask.shape != shape:
        raise ValueError(
            f"{argument} must be a bool tensor of the shape {tuple(shape)}, got {mask.dtype} of "
            f"the shape {tuple(mask.shape)}"
        )


def check_range(argument: str, bounds: object, above: float | None = None) -> None:
    """Check a pair of numbers, the first not above the second."""
    if isinstance(bounds, list | tuple) and len(bounds) == 2:
        low = checks.number(f"{argument}[0]", bounds[0], above=above)
        high = checks.number(f"{argument}[1]", bounds[1])
        if low <= high:
            return
    raise ValueError(
        f"{argument} must be two numbers, the first not above the second, got {bounds!r:.80}"
    )


def number_between(generator: np.random.Generator, low: int, high: int) -> int:
    """Draw an integer uniformly, both ends included; return ``low`` if ``high`` is smaller."""
    return int(generator.integers(low, max(low, high), endpoint=True))


def split_batch(inputs: Tensor, outputs: Tensor, num_context: int) -> Batch:
    """Give the first points of each task and ask for the others."""
    given, asked = slice(num_context), slice(num_context, None)
    return Batch(inputs[:, given], outputs[:, given], inputs[:, asked], outputs[:, asked])
