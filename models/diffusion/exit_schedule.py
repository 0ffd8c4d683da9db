"""Schedules of exits: the number of blocks of a diffusion model that run at each timestep."""

from collections.abc import Sequence
from typing import Any, Self

import torch
from torch import Tensor

from pyro_ext._lib import checks


class ExitSchedule:
    r"""Number of blocks by timestep, constant in bins of equal length.

    .. math:: n(t) = N_{\lfloor K t / T \rfloor}

    with the last bin for :math:`t = T`, where schedulers of flow matching begin. Time zero
    corresponds to data.

    :param Sequence depths: :math:`N_0, \dots, N_{K-1}`, from data to noise: integers of at least
        one that do not increase.
    :param float num_train_timesteps: :math:`T`; one for a network with timesteps from 0 to 1,
        such as Flux.
    :raises ValueError: for depths that increase or are not positive.

    The example is that of the paper for DiT-XL/2.

    Example::

        >>> schedule = ExitSchedule([28, 28, 24, 24, 20, 20, 16, 16, 12, 12])
        >>> schedule(99), schedule(100), schedule(torch.tensor([0, 500, 999]))
        (28, 28, tensor([28, 20, 12]))
        >>> schedule(torch.arange(0, 1000, 20)).double().mean()  # of 28 blocks
        tensor(20., dtype=torch.float64)
    """

    def __init__(self, depths: Sequence[int], num_train_timesteps: float = 1000) -> None:
        wanted = "integers that do not increase from data to noise"
        values = checks.sequence("depths", depths, wanted)
        self.depths = tuple(checks.integer("depths", depth, 1) for depth in values)
        if list(self.depths) != sorted(self.depths, reverse=True):
            raise ValueError(f"depths must be {wanted}, got {self.depths!r:.80}")
        self.num_train_timesteps = checks.number(
            "num_train_timesteps", num_train_timesteps, above=0
        )

    @classmethod
    def linear(cls, num_blocks: int, least: int) -> Self:
        """Go from all blocks at data down to a few at noise, in ten steps as equal as possible.

        :param int num_blocks: number of blocks in the first bin.
        :param int least: number of blocks in the last bin.

        Example::

            >>> ExitSchedule.linear(8, 4).depths
            (8, 8, 7, 7, 6, 6, 5, 5, 4, 4)
        """
        least = checks.integer("least", least, 1)
        num_blocks = checks.integer("num_blocks", num_blocks, least)
        depths = torch.linspace(num_blocks, least, 10, dtype=torch.float64).round()
        return cls(depths.long().tolist())

    @classmethod
    def uniform(cls, depth: int) -> Self:
        """Use the same number of blocks at all times.

        :param int depth: number of blocks.
        """
        return cls([checks.integer("depth", depth, 1)])

    def __repr__(self) -> str:
        return f"ExitSchedule({list(self.depths)}, num_train_timesteps={self.num_train_timesteps})"

    def __call__(self, timesteps: Any) -> Any:
        """Number of blocks at timesteps.

        :param timesteps: a number or a tensor of numbers, from 0 to ``num_train_timesteps``.
        :returns: an integer, or a tensor of integers with the shape of ``timesteps``.
        :raises ValueError: for times out of range, or that are not a number.
        """
        t = checks.as_tensor("timesteps", timesteps)
        if not bool(((t >= 0) & (t <= self.num_train_timesteps)).all()):
            raise ValueError(
                f"timesteps must be from 0 to {self.num_train_timesteps:g}, "
                f"got {checks.shown(timesteps)}"
            )
        num_bins = len(self.depths)
        bins = (t * num_bins / self.num_train_timesteps).long().clamp(max=num_bins - 1)
        depths = torch.tensor(self.depths, device=t.device)[bins]
        return depths if isinstance(timesteps, Tensor) else depths.tolist()
