"""Shared parts of the checks: optional methods of distributions, and numeric comparisons."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor

from pyro_ext.random import seeded

Make = Callable[..., TorchDistribution]
Parameters = Mapping[str, Tensor]
Atoms = Callable[[Any], Tensor]

PROBABILITIES = (1e-3, 0.3, 0.6, 0.9)


def supports(distribution: TorchDistribution, value: Tensor) -> Tensor:
    """Check whether values are in the support."""
    support: Any = distribution.support
    is_inside: Tensor = support.check(value)
    return is_inside


def moment(distribution: TorchDistribution, name: str) -> Tensor | None:
    """Mean or variance, where there is one."""
    return _if_there(lambda: getattr(distribution, name))


def has_cdf(distribution: TorchDistribution) -> bool:
    """Tell whether a distribution has a cumulative distribution function."""
    return _if_there(lambda: distribution.cdf(_draw(distribution))) is not None


def quantiles_of(distribution: TorchDistribution) -> Tensor | None:
    """Quantiles of the fractions above, where there are any."""
    fractions = torch.tensor(PROBABILITIES).to(_draw(distribution))
    return _if_there(lambda: distribution.icdf(fractions))


def _draw(distribution: TorchDistribution) -> Tensor:
    with seeded(0):
        return distribution.sample()


def _if_there(call: Callable[[], Tensor]) -> Tensor | None:
    try:
        return call()
    except NotImplementedError:
        return None


def refusal(call: Callable[[], Any]) -> ValueError | None:
    """The error that a call raises."""
    try:
        call()
    except ValueError as error:
        return error
    return None


def require(condition: bool, message: str) -> None:
    """Raise an error with the message unless the condition holds."""
    if not condition:
        raise AssertionError(message)


def same_shape(what: str, shape: Sequence[int], expected: Sequence[int]) -> None:
    """Compare two shapes."""
    require(tuple(shape) == tuple(expected), f"{what}: {tuple(shape)}, not {tuple(expected)}")


def close(what: str, found: Tensor, expected: Tensor, tolerance: float) -> None:
    """Compare with an absolute and relative tolerance; infinite numbers have to agree."""
    is_close = torch.isclose(found, expected, rtol=tolerance, atol=tolerance, equal_nan=True)
    if not bool(is_close.all()):
        found, expected = torch.broadcast_tensors(found, expected)
        error = torch.where(is_close, 0.0, (found - expected).abs()).nan_to_num(torch.inf)
        worst = int(error.flatten().argmax())
        one, other = found.flatten()[worst].item(), expected.flatten()[worst].item()
        raise AssertionError(f"{what} differ: {one:.9g} and {other:.9g} (tolerance {tolerance:g})")
