r"""Logarithms of the incomplete gamma functions, with derivatives in both arguments.

Every method below is a sum over a last axis with a fixed number of terms, so that it runs in a
compiled graph and gradients pass through. The first is quadrature over a window that starts at
:math:`z`,

.. math:: \Gamma(a, z) = z^a e^{-z} \int_0^\infty e^{-(z - a) q - z (e^q - 1 - q)} dq, \quad
          \gamma(a, z) = z^a e^{-z} \int_0^\infty e^{-(a - z) q - z (e^{-q} - 1 + q)} dq,

where the integrand falls on that side of :math:`z`; the other function is the complement. For small
:math:`a` and :math:`z` the integrand has a long tail in place of a bell, and series take over. That
of :math:`e^{-w}` in :math:`\int_z^1 w^{a-1} e^{-w} dw` has no poles where :math:`a` is an integer
or zero.
"""

import torch
from torch import Tensor

from pyro_ext._checks import as_parameters
from pyro_ext.special.elementary import log1mexp, log_exprel
from pyro_ext.special.precision import in_double
from pyro_ext.special.quadrature import gauss_legendre

__all__ = ["log_lower_gamma", "log_upper_gamma"]

_SMALL_SHAPE = 2.0
_NUM_TERMS = 40
_NUM_NODES = 48
_DROP = 40.0  # of the logarithm of an integrand, from its peak to the end of its window


@in_double
def log_upper_gamma(a: Tensor, z: Tensor) -> Tensor:
    r"""Logarithm of the upper incomplete gamma function, :math:`\int_z^\infty w^{a-1} e^{-w} dw`.

    It is not divided by :math:`\Gamma(a)`, so :math:`a` may be zero or negative.

    :param Tensor a: any real numbers.
    :param Tensor z: positive numbers. **Shape:** one that broadcasts with that of ``a``.
    :returns: :math:`\log \Gamma(a, z)`, to a relative error of about 1e-13 in float64.

    Example::

        >>> log_upper_gamma(torch.tensor([-0.5, 0.0, 1.0]), torch.tensor(1.0))
        tensor([-1.7251, -1.5169, -1.0000])
    """
    a, z = as_parameters("log_upper_gamma", {"a": a, "z": z})
    small = a < _SMALL_SHAPE
    start = torch.where(small, 1.0, a)
    beyond = z >= start
    tail = _log_tail(a, torch.where(beyond, z, start))
    near = small & ~beyond
    between = _log_between_one(torch.where(near, a, 1.0), torch.where(near, z, 0.5))
    body = _log_body(torch.where(small, _SMALL_SHAPE, a), torch.where(small | beyond, 1.0, z))
    complement = _log_difference(torch.where(small, _SMALL_SHAPE, a).lgamma(), body)
    value = torch.where(near, torch.logaddexp(between, tail), tail)
    return torch.where(small | beyond, value, complement)


@in_double
def log_lower_gamma(a: Tensor, z: Tensor) -> Tensor:
    r"""Logarithm of the lower incomplete gamma function, :math:`\int_0^z w^{a-1} e^{-w} dw`.

    It is not divided by :math:`\Gamma(a)`.

    :param Tensor a: positive numbers.
    :param Tensor z: positive numbers. **Shape:** one that broadcasts with that of ``a``.
    :returns: :math:`\log \gamma(a, z)`, to a relative error of about 1e-13 in float64.

    Example::

        >>> log_lower_gamma(torch.tensor([0.5, 1.0, 30.0]), torch.tensor(1.0))
        tensor([ 0.4012, -0.4587, -4.3684])
    """
    a, z = as_parameters("log_lower_gamma", {"a": a, "z": z})
    small = a < _SMALL_SHAPE
    start = torch.where(small, a + 2.0, a)
    beyond = z >= start
    complement = _log_difference(a.lgamma(), _log_tail(a, torch.where(beyond, z, start)))
    in_series = small & ~beyond
    series = _log_series(torch.where(in_series, a, 1.0), torch.where(in_series, z, 1.0))
    in_body = ~(small | beyond)
    body = _log_body(torch.where(in_body, a, _SMALL_SHAPE), torch.where(in_body, z, 1.0))
    return torch.where(beyond, complement, torch.where(small, series, body))


def _log_difference(log_whole: Tensor, log_part: Tensor) -> Tensor:
    """Logarithm of the difference of two numbers, the second smaller."""
    return log_whole + log1mexp((log_whole - log_part).clamp(min=torch.finfo(log_whole.dtype).tiny))


def _log_tail(a: Tensor, z: Tensor) -> Tensor:
    """Upper function by quadrature, where z is neither far below a nor small: w = z exp(q)."""
    gap = z - a
    falling = gap.detach().clamp(min=0.0)
    # The exponent is at least gap q + z q^2 / 2.
    end = 2.0 * _DROP / (falling + (falling.square() + 2.0 * _DROP * z.detach()).sqrt())
    nodes, weights = gauss_legendre(_NUM_NODES, a.device)
    q = end[..., None] * nodes
    exponent = -gap[..., None] * q - z[..., None] * (torch.expm1(q) - q)
    return a * z.log() - z + end.log() + (exponent + weights.log()).logsumexp(-1)


def _log_body(a: Tensor, z: Tensor) -> Tensor:
    """Lower function by quadrature, where z is below a, which is not small: w = z exp(-q)."""
    gap = a - z
    # The exponent is at least gap q + z q^2 / (2 + q).
    linear = (2.0 * gap - _DROP).detach()
    shape = a.detach()
    end = ((linear.square() + 8.0 * _DROP * shape).sqrt() - linear) / (2.0 * shape)
    nodes, weights = gauss_legendre(_NUM_NODES, a.device)
    q = end[..., None] * nodes
    exponent = -gap[..., None] * q - z[..., None] * (torch.expm1(-q) + q)
    return a * z.log() - z + end.log() + (exponent + weights.log()).logsumexp(-1)


def _log_between_one(a: Tensor, z: Tensor) -> Tensor:
    """Integral from z to one by the series of the exponential."""
    order = torch.arange(_NUM_TERMS // 2, dtype=a.dtype, device=a.device)
    signs = 1.0 - 2.0 * (order % 2)
    powers, log_z = a[..., None] + order, z.log()[..., None]
    # (1 - z^p) / p is -log(z) z^p exprel(-p log(z)).
    logs = powers * log_z + log_exprel(-powers * log_z)
    first = logs[..., :1]
    total = (signs * torch.exp(logs - first - torch.lgamma(order + 1.0))).sum(-1)
    return torch.log(-log_z.squeeze(-1)) + first.squeeze(-1) + total.log()


def _log_series(a: Tensor, z: Tensor) -> Tensor:
    """Lower function by a series with positive terms, where neither a nor z is large."""
    order = torch.arange(_NUM_TERMS, dtype=a.dtype, device=a.device)
    logs = order * z.log()[..., None] - torch.cumsum(torch.log(a[..., None] + order), -1)
    return a * z.log() - z + logs.logsumexp(-1)
