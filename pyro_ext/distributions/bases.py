"""Base classes of the distributions, whose parameters broadcast and expand together.

The module also computes quantiles by bisection and gradients of draws by implicit differentiation,
and keeps draws within the positive numbers of their floating-point type.
"""

import math
from abc import abstractmethod
from collections.abc import Callable, Iterable
from typing import Any

import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor
from torch.distributions import Distribution, constraints

from pyro_ext._lib import checks

_NUM_HALVINGS = 64


def halved(
    is_low: Callable[[Tensor], Tensor], low: Tensor, high: Tensor, number: int
) -> tuple[Tensor, Tensor]:
    """Halve intervals a number of times around the point where a condition begins to fail."""
    for _ in range(number):
        middle = 0.5 * (low + high)
        below = is_low(middle)
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return low, high


@torch.no_grad()
def solve_increasing(
    function: Callable[[Tensor], Tensor], target: Tensor, low: Tensor, high: Tensor
) -> Tensor:
    """Solve an equation with an increasing function by bisection, without gradients."""
    low, high = halved(lambda x: function(x) < target, low, high, _NUM_HALVINGS)
    return 0.5 * (low + high)


def invert_cdf(distribution: TorchDistribution, probability: Tensor) -> Tensor:
    """Quantiles of a positive random number, with gradients by implicit differentiation."""
    if distribution._validate_args and not bool(((probability > 0) & (probability < 1)).all()):
        raise ValueError(f"probabilities must lie in (0, 1), got {probability!r:.80}")
    shape = torch.broadcast_shapes(probability.shape, distribution.batch_shape)
    probability = probability.expand(shape)
    limits = torch.finfo(probability.dtype)
    support = distribution.support
    end = getattr(support, "upper_bound", limits.max)
    end = torch.as_tensor(end, dtype=probability.dtype, device=probability.device).expand(shape)
    low, high = torch.full_like(probability, math.log(limits.tiny)), end.log()
    log_quantile = solve_increasing(
        lambda x: distribution.cdf(torch.minimum(x.exp(), end)), probability, low, high
    )
    quantile = torch.minimum(log_quantile.exp(), end)
    value = distribution.cdf(quantile)
    if not (value.requires_grad or probability.requires_grad):
        return quantile
    density = distribution.log_prob(quantile).exp().detach()
    residual = probability - value
    return quantile + (residual - residual.detach()) / density


discount_constraint = constraints.half_open_interval(0.0, 1.0)


def expanded(
    distribution: TorchDistribution, instance: Any, batch_shape: torch.Size, **values: Any
) -> Any:
    """The distribution over another batch shape, with other values of some attributes."""
    new = distribution._get_checked_instance(type(distribution), instance)
    vars(new).update(vars(distribution), **values)
    TorchDistribution.__init__(new, batch_shape, distribution.event_shape, validate_args=False)
    new._validate_args = distribution._validate_args
    return new


class ParametricDistribution(TorchDistribution):
    """Base class of distributions whose parameters are tensors that expand together."""

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
        """Repeat the distribution over a larger batch shape."""
        shape, values = torch.Size(batch_shape), {}
        for name, event_dim in self._event_dims.items():
            value = getattr(self, name)
            values[name] = value.expand(shape + value.shape[value.dim() - event_dim :])
        return expanded(self, _instance, shape, **values)

    def _validate_sample(self, value: Tensor) -> None:
        """Check the type, which the base class does not say, and what it looks at."""
        if not isinstance(value, Tensor):
            raise TypeError(f"value must be a tensor, got {checks.shown(value)}")
        checks.as_tensor("value", value, allow_empty=True)
        super()._validate_sample(value)

    def _check_parameter(self, name: str, is_valid: Tensor, wanted: str) -> None:
        """Raise an error where a parameter does not fit, if arguments are validated."""
        if self._validate_args and not bool(is_valid.all()):
            value = getattr(self, name)[~is_valid].flatten()[0].item()
            raise ValueError(f"{name} of {type(self).__name__} must be {wanted}, got {value:g}")


class ScalarDistribution(TorchDistribution):
    """Base class of distributions of a real number; subclasses define ``_log_prob`` and so on."""

    has_rsample = True

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density."""
        if self._validate_args:
            self._validate_sample(value)
        return self._log_prob(value)

    def cdf(self, value: Tensor) -> Tensor:
        """Distribution function."""
        if self._validate_args:
            self._validate_sample(value)
        return self._cdf(value)

    def icdf(self, value: Tensor) -> Tensor:
        """Quantiles, by bisection."""
        return invert_cdf(self, value)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Draws with gradients in the parameters."""
        return self._rsample(self._extended_shape(torch.Size(sample_shape)))

    @property
    def mean(self) -> Tensor:
        """Mean, which may be infinite."""
        return self._moment(1)

    @property
    def variance(self) -> Tensor:
        """Variance, which may be infinite."""
        mean, second = self.mean, self._moment(2)
        is_finite = second.isfinite()
        variance = second - torch.where(is_finite, mean, 0.0).square()
        return torch.where(is_finite, variance.clamp(min=0.0), second)

    @abstractmethod
    def _log_prob(self, value: Tensor) -> Tensor: ...

    def _cdf(self, value: Tensor) -> Tensor:
        raise NotImplementedError

    @abstractmethod
    def _rsample(self, shape: torch.Size) -> Tensor: ...

    def _moment(self, order: int) -> Tensor:
        raise NotImplementedError


class UnivariateDistribution(ParametricDistribution, ScalarDistribution):
    """Base class of distributions of a real number, with parameters of the batch shape."""

    def __init__(self, parameters: dict[str, Any], validate_args: bool | None = None) -> None:
        values = checks.as_parameters(type(self).__name__, parameters)
        super().__init__(
            dict(zip(parameters, values, strict=True)),
            dict.fromkeys(parameters, 0),
            values[0].shape,
            torch.Size(),
            validate_args,
        )

    def _check_open_interval(self, name: str) -> None:
        value = getattr(self, name)
        self._check_parameter(name, (value > 0) & (value < 1), "in (0, 1)")


def by_rejection(propose: Callable[..., tuple[Tensor, Tensor]], *parameters: Tensor) -> Tensor:
    """Draws that are proposed again until they are accepted; parameters and result are vectors."""
    result = parameters[0].new_empty(len(parameters[0]))
    waiting = torch.arange(len(result), device=result.device)
    while waiting.numel():
        draw, is_accepted = propose(*(value[waiting] for value in parameters))
        result[waiting[is_accepted]] = draw[is_accepted]
        waiting = waiting[~is_accepted]
    return result


def clamp_positive(value: Tensor) -> Tensor:
    """Keep draws of heavy-tailed distributions inside the positive numbers of their type."""
    limits = torch.finfo(value.dtype)
    return value.clamp(min=limits.tiny, max=limits.max)


def positive_exp(log_value: Tensor) -> Tensor:
    """Draws from their logarithms, kept inside the positive numbers of their type."""
    limits = torch.finfo(log_value.dtype)
    # Before, since where the exponential overflows it has no gradient; after, for its rounding.
    inside = log_value.clamp(min=math.log(limits.tiny), max=math.log(limits.max))
    return clamp_positive(inside.exp())


def attach_gradient(
    sample: Tensor,
    parameters: Iterable[Tensor],
    cdf: Callable[[Tensor], Tensor],
    log_prob: Callable[[Tensor], Tensor],
) -> Tensor:
    r"""Give a draw the gradient of its quantile by implicit differentiation [1].

    Differentiating :math:`F_\theta(x) = u` gives
    :math:`dx / d\theta = - (dF_\theta(x) / d\theta) / f(x)`.

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


class LevelDistribution(UnivariateDistribution):
    """Base class of distributions that store the logarithm of a level, which may overflow."""

    log_level: Tensor

    def __init__(
        self, parameters: dict[str, Any], level: Any, log_level: Any, validate_args: bool | None
    ) -> None:
        log_level = _log_level_of(level, log_level, validate_args)
        super().__init__({**parameters, "log_level": log_level}, validate_args)

    @property
    def level(self) -> Tensor:
        r""":math:`t`, infinite if it overflows the floating-point type."""
        return self.log_level.exp()


def _log_level_of(level: Any, log_level: Any, validate_args: bool | None) -> Any:
    """The logarithm of a level, whichever of the two is given."""
    if (level is None) == (log_level is None):
        raise ValueError(
            "exactly one of level and log_level must be given, got "
            f"level={checks.shown(level)}, log_level={checks.shown(log_level)}"
        )
    if log_level is not None:
        return log_level
    level = torch.as_tensor(checks.as_parameter("level", level))
    if not level.is_floating_point():
        level = level.to(torch.get_default_dtype())
    # A graph cannot branch on a value, so that it is looked at only if arguments are validated.
    is_valid = (level > 0) & level.isfinite()
    validates = Distribution._validate_args if validate_args is None else validate_args
    if validates and not bool(is_valid.all()):
        bad = level[~is_valid].flatten()[0].item()
        raise ValueError(f"level must be finite and > 0, got {bad:g}")
    return level.log()


def rsample_log_gamma(concentration: Tensor) -> Tensor:
    """Draw logarithms of gamma variables, which themselves may underflow.

    A gamma variable is one whose concentration is greater by one, times a power of a uniform.
    """
    larger = torch._standard_gamma(concentration + 1.0)
    uniform = torch.rand_like(larger).clamp(min=torch.finfo(larger.dtype).tiny)
    return larger.log() + uniform.log() / concentration
