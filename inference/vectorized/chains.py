"""Inputs and outputs of a step, the state of a group of chains, and recorded draws."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pyro_ext.potential.control_variates import Anchor

ValueAndGradient = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Maps positions ``(..., size)`` to potentials ``(...)`` and gradients ``(..., size)``."""


class Info(NamedTuple):
    """Observations of a step.

    :param Tensor potential_energy: the stochastic potential at the position where the step started.
    """

    potential_energy: Tensor


@dataclass(frozen=True)
class Chains:
    """State of a group of chains: everything that later steps depend on.

    :param Sequence numbers: numbers of the chains.
    :param int seed: the seed of the run.
    :param Tensor keys: keys of the chains' random streams. **Shape:** ``(num_chains, 2)``.
    :param int step: number of steps taken.
    :param tuple state: state of the sampler, a named tuple of tensors.
    :param Tensor potential_energy: potential at the last step. **Shape:** ``(num_chains,)``.
    :param Anchor anchor: anchor of the control variates, or ``None`` without them.
    """

    numbers: Sequence[int]
    seed: int
    keys: Tensor
    step: int
    state: Any
    potential_energy: Tensor
    anchor: Anchor | None = None

    @property
    def position(self) -> Tensor:
        """Flat unconstrained parameters. **Shape:** ``(num_chains, size)``."""
        position: Tensor = self.state.position
        return position


@dataclass(frozen=True)
class Draws:
    """States of a group of chains after some of their steps.

    :param steps: numbers of steps taken before each draw. **Shape:** ``(num_draws,)``.
    :param tuple state: states of the sampler, as in :class:`Chains`, with a leading draw dimension.
    :param Tensor potential_energy: potentials at the steps before the draws.
        **Shape:** ``(num_draws, num_chains)``.
    """

    steps: npt.NDArray[np.int64]
    state: Any
    potential_energy: Tensor

    @property
    def position(self) -> Tensor:
        """Flat unconstrained parameters. **Shape:** ``(num_draws, num_chains, size)``."""
        position: Tensor = self.state.position
        return position


def joined(parts: Sequence[Draws]) -> Draws | None:
    """Draws one after the other, ``None`` of none."""
    if not parts:
        return None
    leaves = [torch.cat(pieces) for pieces in zip(*(part.state for part in parts), strict=True)]
    return Draws(
        np.concatenate([part.steps for part in parts]),
        type(parts[0].state)(*leaves),
        torch.cat([part.potential_energy for part in parts]),
    )


def saved(chains: Chains) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Express chains as tensors and plain values; ``VectorizedKernel.restored`` takes them back."""
    tensors = named("state", chains.state) | named("anchor", chains.anchor or ())
    return {**tensors, "potential_energy": chains.potential_energy}, {"step": chains.step}


def named(name: str, value: Any) -> dict[str, Tensor]:
    """Tensors of nested named tuples by dotted name; :func:`filled` takes them back."""
    if isinstance(value, Tensor):
        return {name: value}
    fields = zip(getattr(value, "_fields", ()), value, strict=True)
    return {k: v for field, part in fields for k, v in named(f"{name}.{field}", part).items()}


def filled(name: str, like: Any, tensors: Mapping[str, Tensor]) -> Any:
    """Named tuples like given ones, with tensors by name."""
    if isinstance(like, Tensor):
        return tensors[name].to(like.device)
    fields = zip(like._fields, like, strict=True)
    return type(like)(*(filled(f"{name}.{field}", part, tensors) for field, part in fields))
