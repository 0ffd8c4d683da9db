"""Quotients and logarithms that stay precise when numerator and denominator vanish."""

import math

import torch
from torch import Tensor

from pyro_ext._lib import checks

_NUM_TERMS = 16
_EXPREL = tuple(1.0 / math.factorial(order + 1) for order in range(_NUM_TERMS))
_LOG1PREL = tuple((-1.0) ** order / (order + 1) for order in range(_NUM_TERMS))
_EXPM1MX = tuple(1.0 / math.factorial(order + 2) for order in range(_NUM_TERMS))
# Riemann's zeta at the even numbers, which the powers of pi below turn into Taylor coefficients.
_ZETA = (1.6449340668482264, 1.0823232337111382, 1.0173430619844491, 1.0040773561979443)
_LOG_SINC = tuple(
    -(_ZETA[order - 1] if order <= len(_ZETA) else sum(k ** (-2.0 * order) for k in range(1, 60)))
    / (order * math.pi ** (2 * order))
    for order in range(1, _NUM_TERMS + 1)
)
_EXPREL_RADIUS = 0.5
_LOG1PREL_RADIUS = 0.09
_LOG_SINC_RADIUS = 0.9
_LOG1MEXP_RADIUS = 1e-3
_TINY_LOG = -36.0
_LARGEST_LOG = 80.0  # of x whose exp(-x) is indistinguishable from zero


def exprel(x: Tensor) -> Tensor:
    r"""Relative error exponential, :math:`(e^x - 1) / x`, and 1 at zero.

    :param Tensor x: any real numbers.
    :returns: the quotient. **Shape:** that of ``x``.

    Example::

        >>> exprel(torch.tensor([0.0, 1.0]))
        tensor([1.0000, 1.7183])
    """
    x = checks.as_tensor("x", x, allow_empty=True)
    near = x.abs() < _EXPREL_RADIUS
    far = torch.where(near, torch.ones_like(x), x)
    return torch.where(near, _polynomial(_EXPREL, x, near), torch.expm1(far) / far)


def log_exprel(x: Tensor) -> Tensor:
    r"""Logarithm of the relative error exponential, which itself would overflow.

    :param Tensor x: any real numbers.
    :returns: :math:`\log\{(e^x - 1) / x\}`. **Shape:** that of ``x``.

    Example::

        >>> log_exprel(torch.tensor([-1e4, 0.0, 1e4]))
        tensor([-9.2103e+00,  0.0000e+00,  9.9908e+03])
    """
    x = checks.as_tensor("x", x, allow_empty=True)
    near = x.abs() < _EXPREL_RADIUS
    far = torch.where(near, torch.ones_like(x), x)
    size = far.abs()
    log_far = far.clamp(min=0.0) + torch.log(-torch.expm1(-size)) - size.log()
    inside = torch.where(near, x, torch.zeros_like(x))
    log_near = torch.log1p(inside * _polynomial(_EXPM1MX, x, near))
    return torch.where(near, log_near, log_far)


def expm1mx(x: Tensor) -> Tensor:
    r""":math:`e^x - 1 - x`.

    :param Tensor x: any real numbers.
    :returns: the difference. **Shape:** that of ``x``.

    Example::

        >>> expm1mx(torch.tensor([-1e-4, 0.0, 1.0]))
        tensor([4.9998e-09, 0.0000e+00, 7.1828e-01])
    """
    x = checks.as_tensor("x", x, allow_empty=True)
    near = x.abs() < _EXPREL_RADIUS
    far = torch.where(near, torch.ones_like(x), x)
    return torch.where(near, x * x * _polynomial(_EXPM1MX, x, near), torch.expm1(far) - far)


def log_sinc(x: Tensor, rest: Tensor) -> Tensor:
    r""":math:`\log (\sin x / x)` between zero and :math:`\pi`.

    :param Tensor x: numbers in :math:`[0, \pi)`.
    :param Tensor rest: :math:`\pi - x`, which cannot be computed precisely from ``x`` near
        :math:`\pi`.
    :returns: the logarithm. **Shape:** that of ``x``.

    Example::

        >>> x = torch.tensor([1.0, 3.0])
        >>> log_sinc(x, math.pi - x)
        tensor([-0.1726, -3.0568])
    """
    x, rest = checks.as_parameters("log_sinc", {"x": x, "rest": rest})
    near = x < _LOG_SINC_RADIUS
    square = torch.where(near, x * x, torch.zeros_like(x))
    inner = torch.where(near, torch.ones_like(x), x)
    small = torch.minimum(inner, torch.where(near, torch.ones_like(x), rest))
    far = small.sin().log() - inner.log()
    return torch.where(near, square * _polynomial(_LOG_SINC, square, near), far)


def log1prel(x: Tensor) -> Tensor:
    r""":math:`\log(1 + x) / x`, and 1 at zero.

    :param Tensor x: numbers greater than -1.
    :returns: the quotient. **Shape:** that of ``x``.

    Example::

        >>> log1prel(torch.tensor([0.0, 1.0]))
        tensor([1.0000, 0.6931])
    """
    x = checks.as_tensor("x", x, allow_empty=True)
    near = x.abs() < _LOG1PREL_RADIUS
    far = torch.where(near, torch.ones_like(x), x)
    return torch.where(near, _polynomial(_LOG1PREL, x, near), torch.log1p(far) / far)


def log1mexp(x: Tensor) -> Tensor:
    r""":math:`\log(1 - e^{-x})` of positive numbers.

    :param Tensor x: positive numbers.
    :returns: the logarithm. **Shape:** that of ``x``.

    Example::

        >>> log1mexp(torch.tensor([1e-12, 1.0, 80.0]))
        tensor([-2.7631e+01, -4.5868e-01, -1.8049e-35])
    """
    x = checks.as_tensor("x", x, allow_empty=True)
    # A compiled graph may know expm1 to an absolute precision only, so small numbers go without it.
    is_small, is_large = x < _LOG1MEXP_RADIUS, x >= math.log(2.0)
    small = torch.where(is_small, x, 1.0)
    middle = torch.where(is_small | is_large, 1.0, x)
    large = torch.where(is_large, x, 1.0)
    series = small.log() - small / 2.0 + small * small / 24.0
    inner = torch.log(-torch.expm1(-middle))
    return torch.where(
        is_small, series, torch.where(is_large, torch.log1p(-torch.exp(-large)), inner)
    )


def log1mexp_at_log(log_x: Tensor) -> Tensor:
    r""":math:`\log(1 - e^{-x})` at :math:`\log x`, also where :math:`x` itself underflows.

    :param Tensor log_x: any real numbers.
    :returns: the logarithm. **Shape:** that of ``log_x``.

    Example::

        >>> log1mexp_at_log(torch.tensor([-1e4, 0.0]))
        tensor([-1.0000e+04, -4.5868e-01])
    """
    log_x = checks.as_tensor("log_x", log_x, allow_empty=True)
    is_tiny = log_x < _TINY_LOG
    x = torch.where(is_tiny, 0.0, log_x).clamp(max=_LARGEST_LOG).exp()
    return torch.where(is_tiny, log_x, log1mexp(x))


def _polynomial(coefficients: tuple[float, ...], x: Tensor, near: Tensor) -> Tensor:
    inside = torch.where(near, x, torch.zeros_like(x))
    value = torch.full_like(inside, coefficients[-1])
    for coefficient in reversed(coefficients[:-1]):
        value = value * inside + coefficient
    return value
