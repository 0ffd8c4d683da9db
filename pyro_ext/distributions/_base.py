"""What the distributions of this package share: parameters that broadcast and expand together."""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor
from torch.distributions import constraints

from pyro_ext._checks import as_parameters, as_tensor, shown
from pyro_ext.distributions._inversion import invert_cdf

__all__ = [
    "ParametricDistribution",
    "UnivariateDistribution",
    "attach_gradient",
    "clamp_positive",
    "discount_constraint",
    "positive_exp",
    "variance_of",
]

discount_constraint = constraints.half_open_interval(0.0, 1.0)


class ParametricDistribution(TorchDistribution):
    """Distribution whose parameters are tensors that expand together.

    A subclass passes on the values from which all that it computes follows, each with as many
    dimensions of its own behind those of the batch as it says.
    """

    _event_dims: dict[str, int]

    def __init__(
        self,
        parameters: dict[str, Tensor],
        event_dims: dict[str, int],
        batch_shape: torch.Size,
        event_shape: torch.Size,
        validate_args: bool | None = None,
    ) -> None:
        self._event_dims = event_dims
        for name, value in parameters.items():
            setattr(self, name, value)
        super().__init__(batch_shape, event_shape, validate_args=validate_args)
        for name in parameters:
            self._check_parameter(name, getattr(self, name).isfinite(), "finite")

    def expand(self, batch_shape: Any, _instance: Any = None) -> Any:
        """Repeat the distribution over a larger batch shape.

        :param torch.Size batch_shape: the new shape.
        :returns: the distribution of that shape.
        """
        new = self._get_checked_instance(type(self), _instance)  # type: ignore[no-untyped-call]
        batch_shape = torch.Size(batch_shape)
        new._event_dims = self._event_dims
        for name, event_dim in self._event_dims.items():
            value = getattr(self, name)
            own = value.shape[value.dim() - event_dim :]
            setattr(new, name, value.expand(batch_shape + own))
        super(ParametricDistribution, new).__init__(
            batch_shape, self.event_shape, validate_args=False
        )
        new._validate_args = self._validate_args
        return new

    def _validate_sample(self, value: Tensor) -> None:
        """Check the type, which the base class does not say, and what it looks at."""
        if not isinstance(value, Tensor):
            raise TypeError(f"value must be a tensor, got {shown(value)}")
        as_tensor("value", value, allow_empty=True)
        super()._validate_sample(value)

    def _check_parameter(self, name: str, is_valid: Tensor, wanted: str) -> None:
        """Raise an error where a parameter does not fit, if arguments are validated."""
        if self._validate_args and not bool(is_valid.all()):
            value = getattr(self, name)[~is_valid].flatten()[0].item()
            raise ValueError(f"{name} of {type(self).__name__} must be {wanted}, got {value:g}")


class UnivariateDistribution(ParametricDistribution):
    """Distribution of a real number whose parameters are tensors of its batch shape."""

    def __init__(self, parameters: dict[str, Any], validate_args: bool | None = None) -> None:
        values = as_parameters(type(self).__name__, parameters)
        super().__init__(
            dict(zip(parameters, values, strict=True)),
            dict.fromkeys(parameters, 0),
            values[0].shape,
            torch.Size(),
            validate_args,
        )

    def icdf(self, value: Tensor) -> Tensor:
        """Quantiles, by bisection.

        :param Tensor value: probabilities in (0, 1).
        """
        return invert_cdf(self, value)

    def _check_open_interval(self, name: str) -> None:
        value = getattr(self, name)
        self._check_parameter(name, (value > 0) & (value < 1), "in (0, 1)")


def clamp_positive(value: Tensor) -> Tensor:
    """Keep draws of heavy-tailed laws inside the positive numbers of their type."""
    limits = torch.finfo(value.dtype)
    return value.clamp(min=limits.tiny, max=limits.max)


def positive_exp(log_value: Tensor) -> Tensor:
    """Draws from their logarithms, kept inside the positive numbers of their type."""
    limits = torch.finfo(log_value.dtype)
    # Before, since where the exponential overflows it has no gradient; after, for its rounding.
    inside = log_value.clamp(min=math.log(limits.tiny), max=math.log(limits.max))
    return clamp_positive(inside.exp())


def variance_of(mean: Tensor, second: Tensor) -> Tensor:
    """Variance from mean and second moment, infinite where the latter is."""
    is_finite = second.isfinite()
    return torch.where(is_finite, second - torch.where(is_finite, mean, 0.0).square(), second)


def attach_gradient(
    sample: Tensor,
    parameters: Iterable[Tensor],
    cdf: Callable[[Tensor], Tensor],
    log_prob: Callable[[Tensor], Tensor],
) -> Tensor:
    r"""Give a draw the gradient of its quantile by implicit differentiation [1].

    Of :math:`F_\theta(x) = u` follows :math:`dx / d\theta = - (dF_\theta(x) / d\theta) / f(x)`.

    :param Tensor sample: a draw.
    :param parameters: those of the distribution.
    :param cdf: the distribution function, differentiable in its parameters.
    :param log_prob: the log density.
    :returns: the draw, with a gradient in the parameters that want one.

    [1] M. Figurnov, S. Mohamed, A. Mnih (2018), Implicit reparameterization gradients.
    """
    sample = sample.detach()
    if not (torch.is_grad_enabled() and any(value.requires_grad for value in parameters)):
        return sample
    value = cdf(sample)
    with torch.no_grad():
        density = log_prob(sample).exp()
        # Where it underflows, nothing is known of the gradient, and none is given.
        is_known = density > torch.finfo(density.dtype).tiny
        density = torch.where(is_known, density, torch.inf)
    return sample - (value - value.detach()) / density
