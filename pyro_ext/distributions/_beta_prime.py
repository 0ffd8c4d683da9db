r"""The beta prime BFRY law and its odds as functions of tensors, in logarithms.

Over its scale, a variable :math:`y` has the density, with respect to :math:`z = \log y`,

.. math:: h(z) = \frac{\sigma \Gamma(k)}{\Gamma(1 - \sigma) \Gamma(\tau) D}
          y^{-\sigma} (1 + y)^{-k} \Big[ 1 - \Big( 1 + \frac{t y}{1 + y} \Big)^{-k} \Big] , \quad
          \tau = k + \sigma , \quad D = (1 + t)^\sigma - 1 .

It is a power law but for three knees, at :math:`1 / (t \max(k, 1))`, :math:`1 / \max(k, 1)` and 1.
Integrals run over panels that become longer away from each, so that powers of any length between
them are resolved, and end in the pure power laws on both sides.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from pyro_ext.distributions import _bfry
from pyro_ext.special import gauss_legendre, log1mexp_at_log

__all__ = ["cdf", "expectation", "log_density", "rsample_log"]

_OFFSETS = (1.5, 4.5, 13.5, 40.0, 120.0, 360.0)
_LONG_OFFSETS = (1080.0, 3240.0, 9720.0)
_TAIL = 40.0  # beyond the knees, what deviates from a power law has fallen by exp(-40)
_NUM_NODES = 20
_TINY_LOG = -36.0


def log_density(place: Tensor, discount: Tensor, power: Tensor, log_level: Tensor) -> Tensor:
    r""":math:`\log h(z)`.

    :param Tensor place: :math:`z`, the logarithm of a number.
    :param Tensor discount: :math:`\sigma`.
    :param Tensor power: :math:`k > 0`.
    :param Tensor log_level: :math:`\log t`.
    """
    log_constant = (
        power.lgamma()
        - (power + discount).lgamma()
        - (1.0 - discount).lgamma()
        - _bfry.log_width(discount, log_level, torch.ones_like(discount))
    )
    return log_constant + _log_kernel(place, discount, power, log_level)


def cdf(place: Tensor, discount: Tensor, power: Tensor, log_level: Tensor) -> Tensor:
    """Distribution function of the logarithm."""
    parts = torch.broadcast_tensors(place, discount, power, log_level)
    return _integral(torch.ones_like, *parts).clamp(max=1.0)


def expectation(
    function: Callable[[Tensor], Tensor], discount: Tensor, power: Tensor, log_level: Tensor
) -> Tensor:
    """Expectation of a function of the logarithm, constant beyond 40 from zero on the right.

    :param function: takes places with one axis more than the parameters.
    """
    end = torch.full_like(discount, _TAIL)
    inner = _integral(function, end, discount, power, log_level)
    outer = log_density(end, discount, power, log_level).exp() / (power + discount)
    return inner + outer * function(end[..., None]).squeeze(-1)


def rsample_log(discount: Tensor, power: Tensor, log_level: Tensor) -> Tensor:
    """Logarithms of draws, with gradients; all arguments of one shape."""
    log_gamma = _bfry.rsample_log_gamma(1.0 - discount)
    uniform = torch.rand_like(discount)
    log_rate = _bfry.log_rate(uniform, discount, log_level, torch.ones_like(discount))
    return log_gamma - log_rate - _bfry.rsample_log_gamma(power + discount)


def _log_kernel(place: Tensor, discount: Tensor, power: Tensor, log_level: Tensor) -> Tensor:
    log_more = -logsigmoid(-place)
    # The logarithm of 1 + t y / (1 + y), times the power.
    log_part = log_level + place - log_more
    is_tiny = log_part < _TINY_LOG
    growth = torch.where(is_tiny, log_part, (-logsigmoid(-log_part.clamp(min=_TINY_LOG))).log())
    return log1mexp_at_log(power.log() + growth) - discount * place - power * log_more


def _integral(
    function: Callable[[Tensor], Tensor],
    place: Tensor,
    discount: Tensor,
    power: Tensor,
    log_level: Tensor,
) -> Tensor:
    """Integral of a function of the logarithm up to a place; it is constant on the far left."""
    with torch.no_grad():
        edges = _edges(power, log_level)
    edges = torch.minimum(edges, place[..., None])
    nodes, weights = gauss_legendre(_NUM_NODES, edges.device)
    lengths = edges.diff()[..., None]
    places = (edges[..., :-1, None] + lengths * nodes).flatten(-2)
    weights = (lengths * weights).flatten(-2)
    parts = (discount[..., None], power[..., None], log_level[..., None])
    inner = (log_density(places, *parts).exp() * weights * function(places)).sum(-1)
    start = edges[..., :1]
    outer = log_density(start, *parts).exp() / (1.0 - parts[0]) * function(start)
    return inner + outer.squeeze(-1)


def _edges(power: Tensor, log_level: Tensor) -> Tensor:
    """Ends of the panels in increasing order, in a new last axis."""
    bend = -power.clamp(min=1.0).log()
    knees = torch.stack([bend - log_level, bend, torch.zeros_like(bend)], -1)
    near = torch.tensor(
        [*(-offset for offset in _OFFSETS), 0.0, *_OFFSETS], dtype=bend.dtype, device=bend.device
    )
    far = torch.tensor(_LONG_OFFSETS, dtype=bend.dtype, device=bend.device)
    edges = torch.cat([(knees[..., None] + near).flatten(-2), knees[..., :1] + far], -1)
    start = knees.amin(-1, keepdim=True) - _TAIL
    return torch.cat([start, torch.maximum(edges, start).sort(-1).values], -1)
