"""A Poisson number of jumps of one size, the limit of many rare nodes that are alike."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pyro_ext._checks import check_integer, check_number
from pyro_ext.random import fresh_seed

__all__ = ["EqualJumps"]


class EqualJumps:
    r"""Poisson process of jumps of one size, :math:`\rho = r \delta_s`.

    A completely random measure has a Lévy density, which this has not, so it is none; it knows what
    limits of networks ask of a measure, by the same names.

    :param float rate: :math:`r > 0`, the mean number of jumps.
    :param float size: :math:`s > 0`.
    :raises ValueError: for arguments out of range.

    Example::

        >>> jumps = EqualJumps(2.0, 0.5)
        >>> jumps.mean, jumps.laplace_exponent(torch.tensor(1.0))
        (tensor(1.), tensor(0.7869))
    """

    def __init__(self, rate: float, size: float = 1.0) -> None:
        self.rate = check_number("rate", rate, above=0.0)
        self.size = check_number("size", size, above=0.0)

    def __repr__(self) -> str:
        return f"EqualJumps(rate={self.rate:g}, size={self.size:g})"

    @property
    def mean(self) -> Tensor:
        """Mean of the sum of the jumps."""
        return torch.tensor(self.rate * self.size)

    @property
    def variance(self) -> Tensor:
        """Variance of the sum of the jumps."""
        return torch.tensor(self.rate * self.size**2)

    def laplace_exponent(self, value: Any) -> Tensor:
        r""":math:`r (1 - e^{-t s})`.

        :param Tensor value: :math:`t \geq 0`.
        """
        return -self.rate * torch.expm1(-self.size * torch.as_tensor(value))

    def tail(self, value: Any) -> Tensor:
        """Mean number of jumps above a level.

        :param Tensor value: the level.
        """
        return self.rate * (torch.as_tensor(value) < self.size).to(self.mean.dtype)

    def lost_mass(self, num_jumps: Any, method: Any = "inverse_levy") -> Tensor:
        """Expected mass after the first jumps.

        :param Tensor num_jumps: their mean number.
        :param method: of no effect, since jumps are alike.
        """
        return self.size * (self.rate - torch.as_tensor(num_jumps)).clamp(min=0.0)

    def series(
        self,
        num_jumps: int,
        method: Any = "inverse_levy",
        seed: int | None = None,
        *,
        sample_shape: Sequence[int] = (),
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Draw the first jumps.

        :param int num_jumps: how many at most.
        :param method: of no effect, since jumps are alike.
        :param int seed: of the draws; by default PyTorch's generator gives one.
        :param sample_shape: how many times.
        :returns: ``(weights, arrivals, lost_mass)``: jumps, with zeros behind the last; their
            arrival times; and the expected mass of all that arrive later. **Shape:**
            ``(*sample_shape, num_jumps)``, the same, and without the last axis.
        """
        check_integer("num_jumps", num_jumps, 1)
        generator = torch.Generator().manual_seed(fresh_seed(seed))
        gaps = torch.rand((*sample_shape, num_jumps), generator=generator)
        arrivals = (-torch.log1p(-gaps)).cumsum(-1)
        weights = self.size * (arrivals < self.rate).to(arrivals.dtype)
        return weights, arrivals, self.lost_mass(arrivals[..., -1])
