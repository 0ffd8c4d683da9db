r"""Configurational temperature: whether draws are as spread out as their density requires.

It needs only the gradients of the potential at the draws, which may be unbiased estimates from
minibatches. For a density :math:`\exp(-U / T)` whose tails vanish, integration by parts gives

.. math:: E[(\theta - c) \cdot \nabla U(\theta)] = d \, T

for :math:`d` parameters and any constant :math:`c`. Draws whose standard deviations are :math:`a`
times those of a normal posterior have :math:`T = a^2`.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_ext._lib import checks

__all__ = ["Temperature", "configurational_temperature"]

BATCHES = 10
"""Parts of chains whose means give the standard error."""


class Temperature(NamedTuple):
    """An estimate of a temperature.

    :param float value: the estimate.
    :param float standard_error: its standard error, which counts autocorrelation.
    """

    value: float
    standard_error: float


def configurational_temperature(positions: Tensor, gradients: Tensor) -> Temperature:
    r"""Estimate the temperature of draws; it is one for draws from the posterior.

    The constant :math:`c` for a chain is the mean of all other chains, so that it is independent of
    the draws that it is subtracted from. With a single chain, each half uses the mean of the other.
    The standard error is computed from the means of tenths of chains, or from the means of whole
    chains if that is larger, as when chains are in different modes.

    :param Tensor positions: draws in unconstrained space. **Shape:** ``(num_chains, num_draws,
        size)``.
    :param Tensor gradients: gradients of the potential, the negative log density, at the positions.
        **Shape:** that of the positions.
    :returns: the temperature and its standard error.
    :raises ValueError: if shapes do not match, or a chain has fewer than four draws.

    Example::

        >>> x = torch.randn(4, 1000, 3, generator=torch.Generator().manual_seed(0))
        >>> found = configurational_temperature(x, x / 2.0**2)  # the posterior is twice as wide
        >>> round(found.value, 2), found.standard_error < 0.02
        (0.25, True)
    """
    positions = checks.as_tensor("positions", positions, finite=True)
    gradients = checks.as_tensor("gradients", gradients, finite=True)
    if positions.dim() != 3 or positions.shape != gradients.shape or positions.shape[1] < 4:
        raise ValueError(
            "positions and gradients must have the same shape (num_chains, num_draws >= 4, size), "
            "got "
            f"{tuple(positions.shape)} and {tuple(gradients.shape)}"
        )
    positions, gradients = positions.double(), gradients.double()
    if len(positions) == 1:
        half = positions.shape[1] // 2
        positions, gradients = (
            torch.cat([part[:, :half], part[:, -half:]]) for part in (positions, gradients)
        )
    means = positions.mean(1, keepdim=True)
    others = (means.sum(0) - means) / (len(means) - 1)
    values = ((positions - others) * gradients).mean(-1)
    by_chain = values.mean(1)
    parts = values.tensor_split(min(BATCHES, values.shape[1]), 1)
    batches = torch.stack([part.mean(1) for part in parts])
    errors = [part.std() / math.sqrt(part.numel()) for part in (by_chain, batches)]
    return Temperature(float(by_chain.mean()), float(torch.stack(errors).max()))
