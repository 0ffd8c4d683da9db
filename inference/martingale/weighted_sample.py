"""Populations of weighted points, and points that represent other populations."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyro_ext._lib import checks

_ROUNDING = 1e-7  # what probabilities in float32 lose


@dataclass(frozen=True)
class WeightedSample:
    """Distributions on weighted points, one distribution for each draw.

    A point is a row of each of the ``values``: a number, a vector, or covariates and a response.

    :param tuple values: the points. **Shape:** ``(num_points, *event)`` each if the draws share
        their points, or ``(num_draws, num_points, *event)`` if each draw has its own.
    :param Tensor weights: weights of the points, which sum to one for each draw. **Shape:**
        ``(num_draws, num_points)``.
    :param bool is_shared: whether the draws share their points.

    Example::

        >>> values = torch.tensor([0.0, 1.0, 4.0])
        >>> weights = torch.tensor([[0.5, 0.25, 0.25], [0.0, 0.0, 1.0]])
        >>> population = WeightedSample((values,), weights)
        >>> population.mean, population.icdf(0.6)
        (tensor([1.2500, 4.0000]), tensor([1., 4.]))
    """

    values: tuple[Tensor, ...]
    weights: Tensor
    is_shared: bool = True

    def __post_init__(self) -> None:
        weights = checks.as_tensor("weights", self.weights, "(num_draws, num_points)")
        object.__setattr__(self, "weights", weights)
        if not isinstance(self.values, tuple) or not self.values:
            raise ValueError(f"values must be a tuple of tensors, got {self.values!r:.80}")
        leading = tuple(self.weights.shape)[1 if self.is_shared else 0 :]
        for index, value in enumerate(self.values):
            if tuple(value.shape[: len(leading)]) != leading:
                raise ValueError(
                    f"values[{index}] must have the leading dimensions {leading}, as the weights "
                    f"do, got the shape {tuple(value.shape)}"
                )

    @property
    def batch_shape(self) -> torch.Size:
        """``(num_draws,)``."""
        return self.weights.shape[:1]

    @property
    def num_draws(self) -> int:
        """Number of distributions."""
        return self.weights.shape[0]

    @property
    def num_points(self) -> int:
        """Number of points of each distribution."""
        return self.weights.shape[1]

    @property
    def mean(self) -> Tensor:
        """Mean of each distribution, for points that are a single tensor.

        **Shape:** ``(num_draws, *event)``.
        """
        return self._weighted(_floating(self._points("mean")))

    @property
    def variance(self) -> Tensor:
        """Variance of each distribution, element by element, without a correction for sample size.

        **Shape:** ``(num_draws, *event)``.
        """
        points = _floating(self._points("variance"))
        # Near the mean little precision is lost.
        dim = 0 if self.is_shared else 1
        centered = points - points.mean(dim, keepdim=True)
        return (self._weighted(centered**2) - self._weighted(centered) ** 2).clamp(min=0.0)

    def cdf(self, value: Tensor) -> Tensor:
        """Return the weight of the points less than or equal to ``value``, element by element.

        :param Tensor value: **Shape:** broadcasts to ``(num_draws, *event)``.
        :returns: **Shape:** ``(num_draws, *event)``.
        """
        points = self._points("cdf")
        points = points[None] if self.is_shared else points
        value = checks.as_tensor("value", value, allow_empty=True, like=points).to(points)
        value = _expanded("value", value, (self.num_draws, *points.shape[2:]))
        return self._weighted((points <= value[:, None]).to(self.weights.dtype), is_shared=False)

    def icdf(self, value: Tensor | float) -> Tensor:
        """Quantiles of each distribution, element by element.

        A quantile is the smallest point such that the points up to it have the given weight.

        :param Tensor value: probabilities. **Shape:** broadcasts to ``(num_draws, *event)``.
        :returns: **Shape:** ``(num_draws, *event)``.
        """
        points = self._points("icdf")
        event = points.shape[1:] if self.is_shared else points.shape[2:]
        flat = points.reshape(*points.shape[: points.dim() - len(event)], -1).movedim(-1, 0)
        value = checks.as_tensor("value", value, allow_empty=True, dtype=torch.float64).to(
            points.device
        )
        wanted = _expanded("value", value, (self.num_draws, *event)).reshape(self.num_draws, -1)
        weights = self.weights.double()
        columns = []
        for column, probability in zip(flat, wanted.unbind(1), strict=True):
            # One element of the event at a time, so that memory holds few sorted copies.
            ordered, order = column.sort(-1)
            if self.is_shared:
                reached = weights[:, order].cumsum(-1)
                ordered = ordered.expand(self.num_draws, -1)
            else:
                reached = weights.gather(1, order).cumsum(-1)
            least = probability[:, None] * reached[:, -1:] - _ROUNDING
            index = torch.searchsorted(reached, least).clamp(max=self.num_points - 1)
            columns.append(ordered.gather(1, index)[:, 0])
        return torch.stack(columns, 1).reshape(self.num_draws, *event)

    def expectation(self, function: Callable[..., Tensor]) -> Tensor:
        """Mean of a function of a point under each distribution.

        :param function: a function of the ``values``, point by point. Its arguments and its result
            have the leading dimensions ``(num_points,)`` or ``(num_draws, num_points)``.
        :returns: **Shape:** ``(num_draws, *result)``.
        """
        result = function(*self.values)
        leading = tuple(self.weights.shape)[1 if self.is_shared else 0 :]
        if not isinstance(result, Tensor) or tuple(result.shape[: len(leading)]) != leading:
            got = tuple(result.shape) if isinstance(result, Tensor) else type(result).__name__
            raise ValueError(
                f"function must return a tensor with the leading dimensions {leading}, one value "
                f"for each point, got {got}"
            )
        return self._weighted(_floating(result))

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor | tuple[Tensor, ...]:
        """Draw points with PyTorch's generator.

        :param Sequence sample_shape: shape of the draws from each distribution.
        :returns: rows of ``values``, in a tuple if it holds several tensors.
            **Shape:** ``(*sample_shape, num_draws, *event)`` each.
        """
        number = torch.Size(sample_shape).numel()
        index = torch.multinomial(self.weights, number, replacement=True).T
        draws = torch.arange(self.num_draws, device=index.device)
        rows = tuple(
            (value[index] if self.is_shared else value[draws, index]).reshape(
                *sample_shape, self.num_draws, *value.shape[1 if self.is_shared else 2 :]
            )
            for value in self.values
        )
        return rows[0] if len(rows) == 1 else rows

    def _points(self, wanted: str) -> Tensor:
        if len(self.values) != 1:
            raise ValueError(
                f"{wanted} is that of a single tensor of points, but these are rows of "
                f"{len(self.values)} tensors; use expectation(...) of a function of them"
            )
        return self.values[0]

    def _weighted(self, points: Tensor, is_shared: bool | None = None) -> Tensor:
        is_shared = self.is_shared if is_shared is None else is_shared
        weights = self.weights.to(points.dtype)
        if is_shared:
            flat = weights @ points.reshape(self.num_points, -1)
            return flat.reshape(self.num_draws, *points.shape[1:])
        flat = torch.bmm(weights[:, None], points.reshape(self.num_draws, self.num_points, -1))
        return flat.reshape(self.num_draws, *points.shape[2:])


def _floating(points: Tensor) -> Tensor:
    return points if points.is_floating_point() else points.to(torch.get_default_dtype())


def _expanded(argument: str, value: Tensor, shape: tuple[int, ...]) -> Tensor:
    try:
        return value.expand(shape)
    except RuntimeError:
        raise ValueError(
            f"{argument} must broadcast to the shape {shape}, got {tuple(value.shape)}"
        ) from None


def points_of(population: Any, num_points: int) -> WeightedSample:
    """A weighted sample for each population: itself, its own choice of points, or quantiles."""
    if isinstance(population, WeightedSample):
        return population
    event_shape = tuple(getattr(population, "event_shape", ()))
    if event_shape and hasattr(population, "weighted_points"):
        found: WeightedSample = population.weighted_points(num_points)
        return found
    batch_shape = tuple(getattr(population, "batch_shape", ()))
    if event_shape or len(batch_shape) != 1 or not hasattr(population, "icdf"):
        raise TypeError(
            "population must be a WeightedSample, or a distribution of numbers with icdf and the "
            f"batch shape (num_draws,), got {type(population).__name__} of batch shape "
            f"{batch_shape} and event shape {event_shape}"
        )
    device = population.icdf(torch.tensor(0.5)).device
    levels = (torch.arange(num_points, device=device) + 0.5) / num_points
    values = population.icdf(levels[:, None].expand(-1, *batch_shape)).mT.contiguous()
    weights = torch.full_like(values, 1.0 / num_points)
    return WeightedSample((values,), weights, is_shared=False)
