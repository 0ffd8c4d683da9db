r"""Logarithms of the incomplete gamma functions, with derivatives in both arguments.

Every method below is a sum over a last axis with a fixed number of terms, so that it works in a
compiled graph and gradients flow through it. The first is quadrature over a window that starts at
:math:`z`,

.. math:: \Gamma(a, z) = z^a e^{-z} \int_0^\infty e^{-(z - a) q - z (e^q - 1 - q)} dq, \quad
          \gamma(a, z) = z^a e^{-z} \int_0^\infty e^{-(a - z) q - z (e^{-q} - 1 + q)} dq,

used if the integrand falls on that side of :math:`z`; the other function is the complement. For
small :math:`a` and :math:`z`, the integrand has a long tail instead of a bell shape, and series
take over. The series of :math:`e^{-w}` in :math:`\int_z^1 w^{a-1} e^{-w} dw` has no poles if
:math:`a` is zero or a negative integer.
"""

import torch
from torch import Tensor

from pyro_ext._lib import checks
from pyro_ext.special.elementary import log1mexp, log_exprel
from pyro_ext.special.operations import in_double, where_needed
from pyro_ext.special.quadrature import gauss_legendre

_SMALL_SHAPE = 2.0
_NUM_TERMS = 40
_NUM_NODES = 48
_TINY_LOG, _LARGEST_LOG = -36.0, 700.0
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
    a, z = checks.as_parameters("log_upper_gamma", {"a": a, "z": z})
    small = a < _SMALL_SHAPE
    near = small & (z < 1.0)
    return where_needed(
        near, _log_upper_near_zero, _log_upper_by_window, [a, z], [1.0, 0.5], [1.0, 1.0]
    )


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
    a, z = checks.as_parameters("log_lower_gamma", {"a": a, "z": z})
    small = a < _SMALL_SHAPE
    in_series = small & (z < a + 2.0)
    return where_needed(
        in_series, _log_series, _log_lower_by_window, [a, z], [1.0, 1.0], [_SMALL_SHAPE, 1.0]
    )


def log_lower_gamma_at_log(a: Tensor, log_z: Tensor) -> Tensor:
    r""":math:`\log \gamma(a, z)` at :math:`\log z`, also where :math:`z` itself underflows.

    :param Tensor a: positive numbers.
    :param Tensor log_z: any real numbers. **Shape:** one that broadcasts with that of ``a``.
    :returns: as in :func:`log_lower_gamma`.

    Example::

        >>> log_lower_gamma_at_log(torch.tensor([0.5, 1.0]), torch.tensor(-1000.0))
        tensor([ -499.3069, -1000.0000])
    """
    a, log_z = checks.as_parameters("log_lower_gamma_at_log", {"a": a, "log_z": log_z})
    is_tiny = log_z < _TINY_LOG
    z = torch.where(is_tiny, 0.0, log_z).clamp(max=_LARGEST_LOG).exp()
    return torch.where(is_tiny, a * log_z - a.log(), log_lower_gamma(a, z))


def _log_upper_near_zero(a: Tensor, z: Tensor) -> Tensor:
    """Upper function where neither is large, by a series up to one."""
    one = torch.ones_like(z)
    return torch.logaddexp(_log_between_one(a, z), _log_window(a, one, one > 0))


def _log_upper_by_window(a: Tensor, z: Tensor) -> Tensor:
    """Upper function from whichever of the two is less."""
    is_direct = (a < _SMALL_SHAPE) | (z >= a)
    window = _log_window(a, z, is_direct)
    whole = torch.where(is_direct, _SMALL_SHAPE, a).lgamma()
    complement = _log_difference(whole, torch.where(is_direct, whole - 1.0, window))
    return torch.where(is_direct, window, complement)


def _log_lower_by_window(a: Tensor, z: Tensor) -> Tensor:
    """Lower function from whichever of the two is less."""
    is_beyond = z >= a
    window, whole = _log_window(a, z, is_beyond), a.lgamma()
    complement = _log_difference(whole, torch.where(is_beyond, window, whole - 1.0))
    return torch.where(is_beyond, complement, window)


def _log_difference(log_whole: Tensor, log_part: Tensor) -> Tensor:
    """Logarithm of the difference of two numbers, the second smaller."""
    return log_whole + log1mexp((log_whole - log_part).clamp(min=torch.finfo(log_whole.dtype).tiny))


def _log_window(a: Tensor, z: Tensor, is_upper: Tensor) -> Tensor:
    """Upper function where z is not far below a nor small, or lower one where z is below a >= 2.

    By quadrature over w = z exp(q) or w = z exp(-q).
    """
    sign = torch.where(is_upper, 1.0, -1.0).to(a)
    gap = sign * (z - a)
    with torch.no_grad():
        falling = gap.clamp(min=0.0)
        # The exponent is at least gap q + z q^2 / 2, or gap q + z q^2 / (2 + q).
        end = 2.0 * _DROP / (falling + (falling.square() + 2.0 * _DROP * z).sqrt())
        linear = 2.0 * gap - _DROP
        lower_end = ((linear.square() + 8.0 * _DROP * a.abs()).sqrt() - linear) / (2.0 * a.abs())
        end = torch.where(is_upper, end, lower_end)
    nodes, weights = gauss_legendre(_NUM_NODES, a.device)
    q = end[..., None] * nodes
    signed = sign[..., None] * q
    exponent = -gap[..., None] * q - z[..., None] * (torch.expm1(signed) - signed)
    return a * z.log() - z + end.log() + (exponent.exp() * weights).sum(-1).log()


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
