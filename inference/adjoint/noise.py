"""Noise schedules of a diffusion that starts at zero."""

import math
from abc import ABC, abstractmethod

from torch import Tensor

from pyro_ext._lib import checks


class NoiseSchedule(ABC):
    r"""Base class of noise scales :math:`\sigma_t` of a diffusion for times from zero to one."""

    @abstractmethod
    def scale(self, t: Tensor) -> Tensor:
        r"""Scale of the noise, :math:`\sigma_t`.

        :param Tensor t: times. **Shape:** ``(*times)``.
        :returns: **Shape:** ``(*times)``.
        """

    @abstractmethod
    def variance(self, start: Tensor, end: Tensor) -> Tensor:
        r"""Variance of the noise, :math:`\int \sigma_t^2 dt`, from one time to another.

        :param Tensor start: times. **Shape:** ``(*times)``.
        :param Tensor end: later times. **Shape:** ``(*times)``.
        :returns: **Shape:** ``(*times)``.
        """


class ConstantNoise(NoiseSchedule):
    r"""Noise that is the same at all times: :math:`\sigma_t = \sigma`.

    :param float scale: :math:`\sigma`, the standard deviation of the diffusion at time one.
    :raises ValueError: for a number that is not positive.

    Example::

        >>> from pyro_ext.inference.adjoint import ConstantNoise
        >>> ConstantNoise(2.0).variance(torch.tensor(0.0), torch.tensor(0.5))
        tensor(2.)
    """

    def __init__(self, scale: float) -> None:
        self.sigma = checks.number("scale", scale, above=0)

    def __repr__(self) -> str:
        return f"ConstantNoise({self.sigma:g})"

    def scale(self, t: Tensor) -> Tensor:
        r""":math:`\sigma`."""
        return t.new_full(t.shape, self.sigma)

    def variance(self, start: Tensor, end: Tensor) -> Tensor:
        r""":math:`\sigma^2 (t - s)`."""
        return self.sigma**2 * (end - start)


class GeometricNoise(NoiseSchedule):
    r"""Noise that decreases over time [1].

    .. math:: \sigma_t = \sigma_1 r^{1 - t} \sqrt{2 \log r} , \quad r = \sigma_0 / \sigma_1

    Its variance up to time :math:`t` is :math:`\sigma_0^2 (1 - r^{-2t})`.

    :param float low: :math:`\sigma_1`, the size of the finest structures of the density.
    :param float high: :math:`\sigma_0`, about the standard deviation of the diffusion at time one.
    :raises ValueError: unless ``0 < low < high``.

    [1] A. Havens et al. (2025),
    Adjoint sampling: highly scalable diffusion samplers via adjoint matching.

    Example::

        >>> from pyro_ext.inference.adjoint import GeometricNoise
        >>> GeometricNoise(1e-3, 1.0).variance(torch.tensor(0.0), torch.tensor(1.0))
        tensor(1.0000)
    """

    def __init__(self, low: float = 1e-3, high: float = 1.0) -> None:
        self.low = checks.number("low", low, above=0)
        self.high = checks.number("high", high, above=0)
        if not self.low < self.high:
            raise ValueError(f"high must be greater than low = {self.low:g}, got {self.high:g}")
        self._log_ratio = math.log(self.high / self.low)

    def __repr__(self) -> str:
        return f"GeometricNoise({self.low:g}, {self.high:g})"

    def scale(self, t: Tensor) -> Tensor:
        r""":math:`\sigma_t`."""
        return math.sqrt(2.0 * self._log_ratio) * self.low * (self._log_ratio * (1.0 - t)).exp()

    def variance(self, start: Tensor, end: Tensor) -> Tensor:
        """Variance of the noise, computed without subtracting nearly equal numbers."""
        twice = 2.0 * self._log_ratio
        passed: Tensor = (-twice * (end - start)).expm1()
        return -(self.high**2) * (-twice * start).exp() * passed
