"""Variances of nodes, and the limit of their sum in a layer of infinite width.

Numbers in brackets refer to the papers in the docstring of the package.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistribution, TorchDistributionMixin
from torch import Tensor

from pyro_ext._lib import checks
from pyro_ext.distributions.supports import InverseGamma
from pyro_ext.models.wide_networks._variance_distributions import (
    affine,
    bounded,
    resolved,
    squared_cauchy,
)
from pyro_ext.random import fresh_seed
from pyro_ext.random_measures import (
    CompletelyRandomMeasure,
    GeneralizedGammaProcess,
    StableBetaProcess,
)
from pyro_ext.random_measures.arrivals import check_family


class EqualJumps:
    r"""Poisson process of jumps of a single size, :math:`\rho = r \delta_s`.

    It has no Lévy density, but provides what limits of networks need of a completely random
    measure, under the same names.

    :param float rate: :math:`r > 0`, the mean number of jumps.
    :param float size: :math:`s > 0`.

    Example::

        >>> jumps = EqualJumps(2.0, 0.5)
        >>> jumps.mean, jumps.laplace_exponent(torch.tensor(1.0))
        (tensor(1.), tensor(0.7869))
    """

    def __init__(self, rate: float, size: float = 1.0) -> None:
        self.rate = checks.number("rate", rate, above=0.0)
        self.size = checks.number("size", size, above=0.0)

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

        :param Tensor num_jumps: mean number of the first jumps.
        :param method: unused, since all jumps are equal.
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

        :param int num_jumps: largest number of jumps.
        :param method: unused, since all jumps are equal.
        :param int seed: seed of the draws; by default drawn from PyTorch's generator.
        :param sample_shape: shape of the draws.
        :returns: ``(weights, arrivals, lost_mass)``: jumps, with zeros after the last; their
            arrival times; and the expected mass of all later jumps. **Shape:**
            ``(*sample_shape, num_jumps)``, the same, and without the last axis.
        """
        checks.integer("num_jumps", num_jumps, 1)
        generator = torch.Generator().manual_seed(fresh_seed(seed))
        gaps = torch.rand((*sample_shape, num_jumps), generator=generator, device="cpu")
        gaps = gaps.to(torch.get_default_device())
        arrivals = (-torch.log1p(-gaps)).cumsum(-1)
        weights = self.size * (arrivals < self.rate).to(arrivals.dtype)
        return weights, arrivals, self.lost_mass(arrivals[..., -1])


@dataclass(frozen=True, eq=False)
class NodeVariances:
    r"""Distribution of the variances of the nodes of a layer at every width, and its limit [1].

    In a layer of width :math:`p`, the nodes have independent variances :math:`\lambda_{p,j}`. As
    :math:`p` grows, their sum converges in distribution to an infinitely divisible variable: a
    number :math:`a \geq 0`, plus jumps of a Poisson process with Lévy density :math:`\rho`. Without
    jumps, the infinitely wide network is a Gaussian process; with jumps, a mixture of Gaussian
    processes.

    The functions next to this class make the distributions of [1].

    If the jumps have index zero, most variances of a wide layer are smaller than any floating-point
    number: with :func:`beta_variances` at a width of 400, 90% of them in float32 and 41% in
    float64. Draws set them to the smallest number. Gradient-based samplers, which would have a
    wrong posterior, reject a distribution with more than 1% of its mass there.

    :param finite: maps a width to the distribution of a node's variance. To send the variances to
        other processes, it must be a module-level function, or a ``functools.partial`` of one.
    :param float drift: :math:`a`.
    :param jumps: :math:`\rho`, a completely random measure or :class:`EqualJumps`.
    :param str series_method: method by which ``series`` of the jumps draws them.

    Example::

        >>> variances = horseshoe_variances()
        >>> variances.distribution(100)
        TransformedDistribution()
        >>> variances.tail(torch.tensor(4.0)), variances.laplace_exponent(torch.tensor(1.0))
        (tensor(0.5000), tensor(1.7725))
    """

    finite: Callable[[int], TorchDistribution]
    drift: float = 0.0
    jumps: CompletelyRandomMeasure | EqualJumps | None = None
    series_method: str = "size_biased"

    def __post_init__(self) -> None:
        checks.number("drift", self.drift, least=0.0)
        checks.function("finite", self.finite, "a function of a number of nodes")
        kinds = (CompletelyRandomMeasure, EqualJumps)
        wanted = "a completely random measure, EqualJumps or None"
        checks.optional(checks.instance, "jumps", self.jumps, kinds, wanted)
        method: Any = self.series_method
        if not isinstance(method, str):
            check_family("series_method", method)

    def distribution(self, width: int) -> TorchDistribution:
        """Distribution of the variance of a node in a layer of finite width.

        :param int width: number of nodes of the layer.
        :returns: a distribution without batch shape. If more than 1% of its mass is below the
            smallest number, its support has no bijection, which gradients need.
        """
        return resolved(self.finite(checks.integer("width", width, 1)))

    @property
    def mean(self) -> Tensor:
        """Mean of the sum in the limit, which may be infinite."""
        return self.drift + (torch.zeros(()) if self.jumps is None else self.jumps.mean)

    @property
    def variance(self) -> Tensor:
        """Variance of the sum in the limit, which may be infinite."""
        return torch.zeros(()) if self.jumps is None else self.jumps.variance

    def laplace_exponent(self, value: Tensor) -> Tensor:
        r""":math:`-\log E\, e^{-tS} = a t + \int (1 - e^{-tw}) \rho(w) dw` for the sum :math:`S`.

        :param Tensor value: :math:`t \geq 0`.
        """
        value = checks.as_tensor("value", value, allow_empty=True)
        drift = self.drift * value
        return drift if self.jumps is None else drift + self.jumps.laplace_exponent(value)

    def tail(self, value: Tensor) -> Tensor:
        r"""Mean number of nodes with a variance above a level, in the limit.

        :param Tensor value: the level, positive.
        """
        value = checks.as_tensor("value", value, allow_empty=True)
        return torch.zeros_like(value) if self.jumps is None else self.jumps.tail(value)

    def mass_below(self, value: Tensor) -> Tensor:
        r"""Mean of the sum of all variances up to a level, :math:`a + \int_0^x w \rho(w) dw`.

        :param Tensor value: the level :math:`x > 0`.
        """
        value = checks.as_tensor("value", value, allow_empty=True)
        if self.jumps is None:
            return torch.full_like(value, self.drift)
        num_above = self.jumps.tail(value)
        is_whole = num_above == 0  # beyond the largest jump, where the tail has no inverse
        below = self.jumps.lost_mass(torch.where(is_whole, 1.0, num_above), "inverse_levy")
        below = torch.where(is_whole, self.jumps.mean.to(below), below)
        return self.drift + below.to(value.dtype)

    def sample_jumps(
        self, num_samples: int, num_jumps: int, seed: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """Draw the first jumps of the limit.

        :param int num_samples: number of samples.
        :param int num_jumps: number of jumps in each.
        :param int seed: seed of the draws; by default they come from PyTorch's generator.
        :returns: the jumps, and the drift plus the expected mass of all later jumps. **Shape:**
            ``(num_samples, num_jumps)`` and ``(num_samples,)``.
        """
        checks.integer("num_samples", num_samples, 1)
        if self.jumps is None:
            return torch.zeros(num_samples, 0), torch.full((num_samples,), self.drift)
        weights, _, lost = self.jumps.series(
            num_jumps, self.series_method, seed, sample_shape=(num_samples,)
        )
        return weights, lost + self.drift


def equal_variances() -> NodeVariances:
    r"""Equal variances, :math:`\lambda_{p,j} = 1/p`: the limit is a Gaussian process.

    Example::

        >>> equal_variances().distribution(4).mean
        tensor(0.2500)
    """
    return NodeVariances(_equal, drift=1.0)


def inverse_gamma_variances(concentration: float = 2.0) -> NodeVariances:
    r"""Inverse gamma variances with mean :math:`1/p`, which give weights Student t distributions.

    The limit is the Gaussian process of :func:`equal_variances`.

    :param float concentration: greater than 1.

    Example::

        >>> inverse_gamma_variances().distribution(4).mean
        tensor(0.2500)
    """
    checks.number("concentration", concentration, above=1.0)
    return NodeVariances(partial(_inverse_gamma, concentration), drift=1.0)


def scaled_variances(base: TorchDistribution) -> NodeVariances:
    r"""Variances :math:`Y_j / p` for any :math:`Y_j` with a mean, as in the group lasso.

    By the law of large numbers, the limit is a Gaussian process for every such distribution.

    :param base: distribution of :math:`Y_j \geq 0`, continuous and without batch shape.
    :raises ValueError: if the mean is not finite and positive.

    Example::

        >>> variances = scaled_variances(dist.Gamma(2.0, 1.0))
        >>> variances.distribution(4).sample().shape, variances.mean
        (torch.Size([]), tensor(2.))
    """
    checks.instance("base", base, TorchDistributionMixin, "a distribution of positive numbers")
    mean = checks.number("the mean of base", float(base.mean), above=0.0)
    return NodeVariances(partial(_scaled, base), drift=mean)


def bernoulli_variances(rate: float = 1.0) -> NodeVariances:
    r"""Variances of zero or one, :math:`\lambda_{p,j} \sim \text{Bernoulli}(r / p)`.

    In the limit, the number of active nodes is Poisson. Gradient-based samplers do not support it.

    :param float rate: :math:`r`, the mean number of active nodes.
    :raises ValueError: if it is not positive, or exceeds a width.

    Example::

        >>> bernoulli_variances().distribution(4).mean
        tensor(0.2500)
    """
    checks.number("rate", rate, above=0.0)
    return NodeVariances(partial(_bernoulli, rate), jumps=EqualJumps(rate))


def beta_variances(mass: float = 1.0, concentration: float = 0.5) -> NodeVariances:
    r"""Variances :math:`\lambda_{p,j} \sim \text{Beta}(\eta c / p, c)`.

    The limit has the jumps of a beta process, :math:`\rho(w) = \eta c w^{-1} (1 - w)^{c - 1}`.
    Their index is zero, so that gradient-based samplers reject the distribution unless layers are
    narrow. Stable beta processes, through :func:`measure_variances`, are similar and have a
    positive index.

    :param float mass: :math:`\eta`, the mean of the sum.
    :param float concentration: :math:`c`.

    Example::

        >>> beta_variances().mean, beta_variances().variance
        (tensor(1.), tensor(0.6667))
    """
    checks.number("mass", mass, above=0.0)
    checks.number("concentration", concentration, above=0.0)
    return NodeVariances(
        partial(_beta, mass, concentration),
        jumps=StableBetaProcess(mass, 0.0, concentration),
        series_method="lomax",
    )


def horseshoe_variances(scale: float = math.pi / 2) -> NodeVariances:
    r"""Squares of half-Cauchy variables, :math:`\lambda_{p,j} = (s C_j / p)^2` [4].

    The limit has the jumps of a stable process, :math:`\rho(w) = (s / \pi) w^{-3/2}`, with an
    infinite mean. By default their tail is :math:`x^{-1/2}`.

    :param float scale: :math:`s`.

    Example::

        >>> horseshoe_variances().tail(torch.tensor(100.0))
        tensor(0.1000)
    """
    checks.number("scale", scale, above=0.0)
    return NodeVariances(
        partial(_horseshoe, scale),
        jumps=GeneralizedGammaProcess(scale / math.sqrt(math.pi), 0.5, 0.0),
    )


def regularized_horseshoe_variances(scale: float = 1.0, slab: float = 1.0) -> NodeVariances:
    r"""Bounded variances of the horseshoe, :math:`\lambda = S / (1 + S / b)` [5].

    Here :math:`S = (s C / p)^2` as in :func:`horseshoe_variances`. The limit has the jumps of a
    stable beta process, :math:`\rho(w) = (s / \pi) w^{-3/2} (1 - w / b)^{-1/2}` for
    :math:`w < b`.

    :param float scale: :math:`s`.
    :param float slab: :math:`b`, the largest variance.

    Example::

        >>> regularized_horseshoe_variances().mean
        tensor(1.)
    """
    checks.number("scale", scale, above=0.0)
    checks.number("slab", slab, above=0.0)
    return NodeVariances(
        partial(_regularized_horseshoe, scale, slab),
        jumps=StableBetaProcess(scale / math.sqrt(slab), 0.5, 0.0, scale=slab),
    )


def measure_variances(
    measure: CompletelyRandomMeasure, drift: float = 0.0, series_method: str = "size_biased"
) -> NodeVariances:
    r"""Variances whose sum converges to any infinitely divisible variable.

    They are the weights of the finite approximation of a completely random measure, plus
    :math:`a / p`. Generalized gamma, generalized BFRY and beta prime processes have closed forms.

    :param measure: measure of the jumps, without batch shape. ``measure.rescale(1 / measure.mean)``
        has mean one.
    :param float drift: :math:`a`.
    :param str series_method: method by which ``series`` of the measure draws jumps of the limit;
        ``"scaled"`` is fast for generalized BFRY processes.
    :raises ValueError: for a measure with a batch shape, or a drift out of range.

    Example::

        >>> from pyro_ext.random_measures import GeneralizedBFRYProcess
        >>> measure = GeneralizedBFRYProcess(4.5, 0.5, 5.0)
        >>> variances = measure_variances(measure.rescale(1.0 / measure.mean), drift=0.5)
        >>> variances.mean, variances.distribution(10).sample() > 0.05
        (tensor(1.5000), tensor(True))
    """
    checks.instance("measure", measure, CompletelyRandomMeasure, "a completely random measure")
    if measure.batch_shape:
        raise ValueError(f"measure must have no batch shape, got {tuple(measure.batch_shape)}")

    return NodeVariances(partial(_weights, measure, drift), drift, measure, series_method)


# Functions of the module, so that variances can be sent to other processes.


def _equal(width: int) -> Any:
    return dist.Delta(torch.tensor(1.0 / width))


def _inverse_gamma(concentration: float, width: int) -> Any:
    rate = torch.tensor((concentration - 1.0) / width)
    return InverseGamma(torch.tensor(concentration), rate)  # type: ignore[no-untyped-call]


def _scaled(base: TorchDistribution, width: int) -> TorchDistribution:
    return affine(base, 0.0, 1.0 / width)


def _bernoulli(rate: float, width: int) -> Any:
    checks.number("rate", rate, most=width)
    return dist.Bernoulli(torch.tensor(rate / width))


def _beta(mass: float, concentration: float, width: int) -> Any:
    return dist.Beta(torch.tensor(mass * concentration / width), torch.tensor(concentration))


def _horseshoe(scale: float, width: int) -> TorchDistribution:
    return squared_cauchy(scale / width)


def _regularized_horseshoe(scale: float, slab: float, width: int) -> TorchDistribution:
    return bounded(squared_cauchy(scale / width), slab)


def _weights(measure: CompletelyRandomMeasure, drift: float, width: int) -> TorchDistribution:
    distribution = measure.finite(width)
    return distribution if drift == 0 else affine(distribution, drift / width, 1.0)
