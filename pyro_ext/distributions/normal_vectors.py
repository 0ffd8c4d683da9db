"""Structured normal vectors: random walks, and effects that sum to zero."""

import math
from typing import Any, Self

import torch
from pyro.distributions import Normal
from torch import Tensor
from torch.distributions import biject_to, constraints, transform_to
from torch.distributions.transforms import Transform

from pyro_ext._lib import checks
from pyro_ext.distributions.bases import ParametricDistribution


class GaussianRandomWalk(ParametricDistribution):
    r"""Vector of the positions of a random walk with normal steps.

    .. math:: x_1 \sim N(0, \sigma^2) , \quad x_t \sim N(x_{t-1}, \sigma^2)

    :param scale: :math:`\sigma > 0`.
    :param int num_steps: the number of steps, and so of elements.

    Example::

        >>> walk = GaussianRandomWalk(0.1, num_steps=50)
        >>> walk.sample((3,)).shape, round(float(walk.variance[-1]), 2)
        (torch.Size([3, 50]), 0.5)
    """

    arg_constraints = {"scale": constraints.positive}
    support = constraints.real_vector
    has_rsample = True

    scale: Tensor

    def __init__(self, scale: Any, num_steps: int, *, validate_args: bool | None = None) -> None:
        (scale,) = checks.as_parameters(type(self).__name__, {"scale": scale})
        self.num_steps = checks.integer("num_steps", num_steps, 1)
        super().__init__(
            {"scale": scale}, {"scale": 0}, scale.shape, torch.Size([num_steps]), validate_args
        )

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Draws with gradients in the scale."""
        shape = self._extended_shape(torch.Size(sample_shape))
        return self.of_noise(torch.randn(shape, dtype=self.scale.dtype, device=self.scale.device))

    def of_noise(self, noise: Tensor) -> Tensor:
        """Turn standard normal numbers into walks. **Shape:** ``(..., num_steps)``."""
        return self.scale[..., None] * noise.cumsum(-1)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density."""
        if self._validate_args:
            self._validate_sample(value)
        steps = torch.diff(value, dim=-1, prepend=torch.zeros_like(value[..., :1]))
        density: Tensor = Normal(0.0, self.scale[..., None], validate_args=False).log_prob(steps)
        return density.sum(-1)

    @property
    def mean(self) -> Tensor:
        """Zero."""
        return self.scale.new_zeros(self.batch_shape + self.event_shape)

    @property
    def variance(self) -> Tensor:
        """Variance, which grows by the same amount at each step."""
        number = torch.arange(1, self.num_steps + 1).to(self.scale)
        return self.scale.square()[..., None] * number


class _ZeroSum(constraints.Constraint):
    """Tensors whose sums along each of the last dimensions are zero."""

    def __init__(self, event_dim: int) -> None:
        self.event_dim = event_dim
        super().__init__()

    def check(self, value: Tensor) -> Tensor:
        size = value.abs().flatten(-self.event_dim).sum(-1)
        tolerance = 1e-5 * (1.0 + size)  # numbers may come from single precision
        sums = [value.sum(dim, keepdim=True).abs() for dim in range(-self.event_dim, 0)]
        largest = [each.flatten(-self.event_dim).amax(-1) for each in sums]
        return torch.stack(largest).amax(0) <= tolerance


zero_sum: Any = _ZeroSum


class _ZeroSumTransform(Transform):
    r"""Rotation of free numbers to tensors whose sums along each dimension are zero.

    One along each of the last dimensions, from :math:`n - 1` elements to :math:`n`; distances, and
    so volumes, stay as they are.
    """

    bijective = True
    domain: Any
    codomain: Any

    def __init__(self, event_dim: int, cache_size: int = 0) -> None:
        super().__init__(cache_size)
        self._dims = tuple(range(-event_dim, 0))
        self.domain = constraints.independent(constraints.real, event_dim)
        self.codomain = zero_sum(event_dim)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _ZeroSumTransform) and self._dims == other._dims

    def with_cache(self, cache_size: int = 1) -> Self:
        """The same rotation, which remembers its last value."""
        return self if self._cache_size == cache_size else type(self)(len(self._dims), cache_size)

    def _call(self, x: Tensor) -> Tensor:
        for dim in self._dims:
            root = math.sqrt(x.shape[dim] + 1.0)
            total = x.sum(dim, keepdim=True)
            shift = total / (root * (root + 1.0))
            x = torch.cat([x - shift, -total / root], dim)
        return x

    def _inverse(self, y: Tensor) -> Tensor:
        for dim in self._dims:
            root = math.sqrt(y.shape[dim])
            last = y.narrow(dim, y.shape[dim] - 1, 1)
            y = y.narrow(dim, 0, y.shape[dim] - 1) - last / (root + 1.0)
        return y

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """Zero."""
        return x.new_zeros(x.shape[: x.dim() - len(self._dims)])

    def forward_shape(self, shape: torch.Size) -> torch.Size:
        """Shape of the value: one more along each of the last dimensions."""
        return self._longer(shape, 1)

    def inverse_shape(self, shape: torch.Size) -> torch.Size:
        """Shape of the free numbers: one less along each of the last dimensions."""
        return self._longer(shape, -1)

    def _longer(self, shape: torch.Size, number: int) -> torch.Size:
        start = len(shape) - len(self._dims)
        return torch.Size([*shape[:start], *(size + number for size in shape[start:])])


@biject_to.register(_ZeroSum)  # type: ignore[untyped-decorator]
@transform_to.register(_ZeroSum)  # type: ignore[untyped-decorator]
def _transform_of(constraint: Any) -> _ZeroSumTransform:
    return _ZeroSumTransform(constraint.event_dim)


class ZeroSumNormal(ParametricDistribution):
    r"""Normal tensor whose sums along each of its dimensions are zero.

    A draw consists of independent normal numbers of scale :math:`\sigma`, minus their means along
    each dimension. Use it as a prior for group effects next to an intercept: the effects cannot
    absorb the intercept. The density is over the free coordinates.

    :param scale: :math:`\sigma > 0`.
    :param event_shape: the shape of the tensor, with at least two elements along each dimension.

    Example::

        >>> effects = ZeroSumNormal(1.0, (8,))
        >>> abs(float(effects.sample().sum())) < 1e-5
        True
    """

    arg_constraints = {"scale": constraints.positive}
    has_rsample = True

    scale: Tensor

    def __init__(self, scale: Any, event_shape: Any, *, validate_args: bool | None = None) -> None:
        (scale,) = checks.as_parameters(type(self).__name__, {"scale": scale})
        sizes = checks.sequence("event_shape", event_shape, "numbers of at least 2", kind=int)
        if any(size < 2 for size in sizes):
            raise ValueError(f"event_shape must have sizes >= 2, got {checks.shown(event_shape)}")
        super().__init__(
            {"scale": scale}, {"scale": 0}, scale.shape, torch.Size(sizes), validate_args
        )

    @constraints.dependent_property(is_discrete=False)
    def support(self) -> Any:
        """Tensors whose sums along each dimension are zero."""
        return zero_sum(len(self.event_shape))

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Draws with gradients in the scale."""
        shape = self._extended_shape(torch.Size(sample_shape))
        return self.of_noise(torch.randn(shape, dtype=self.scale.dtype, device=self.scale.device))

    def of_noise(self, noise: Tensor) -> Tensor:
        """Turn standard normal numbers into draws. **Shape:** ``(..., *event_shape)``."""
        for dim in range(-len(self.event_shape), 0):
            noise = noise - noise.mean(dim, keepdim=True)
        return self._whole(self.scale) * noise

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density."""
        if self._validate_args:
            self._validate_sample(value)
        num_free = math.prod(size - 1 for size in self.event_shape)
        square = value.square().flatten(-len(self.event_shape)).sum(-1)
        normalizer = 0.5 * num_free * math.log(2.0 * math.pi) + num_free * self.scale.log()
        return -0.5 * square / self.scale.square() - normalizer

    def _whole(self, scale: Tensor) -> Tensor:
        return scale.reshape(scale.shape + (1,) * len(self.event_shape))

    @property
    def mean(self) -> Tensor:
        """Zero."""
        return self.scale.new_zeros(self.batch_shape + self.event_shape)

    @property
    def variance(self) -> Tensor:
        """Variance of each element."""
        fraction = math.prod(1.0 - 1.0 / size for size in self.event_shape)
        variance = self._whole(self.scale.square() * fraction)
        return variance.expand(self.batch_shape + self.event_shape)
