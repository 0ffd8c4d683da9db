"""Functionals of a population for martingale posteriors: moments, quantiles and best fits."""

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyro_ext._lib import checks
from pyro_ext.inference.martingale.weighted_sample import points_of
from pyro_ext.inference.optimization import BatchLBFGS, Minimizer, center_of
from pyro_ext.potential import Regularizer, WeightedFunction, WeightedLoss, WeightedPotential

_NUM_POINTS = 500


@dataclass(frozen=True)
class Mean:
    """The mean of a population.

    Example::

        >>> Mean()(dist.Normal(torch.tensor([0.0, 1.0]), 1.0))
        tensor([0., 1.])
    """

    def __call__(self, population: Any) -> Tensor:
        """Mean of each distribution. **Shape:** ``(num_draws, *event)``."""
        mean: Tensor = _with_moments(population).mean
        return mean


@dataclass(frozen=True)
class Variance:
    """The variance of a population, element by element.

    Example::

        >>> Variance()(dist.Normal(torch.zeros(2), 3.0))
        tensor([9., 9.])
    """

    def __call__(self, population: Any) -> Tensor:
        """Variance of each distribution. **Shape:** ``(num_draws, *event)``."""
        variance: Tensor = _with_moments(population).variance
        return variance


@dataclass(frozen=True)
class Quantile:
    """Quantiles of a population, element by element.

    :param probability: a probability, or several of them, which become the last dimension.

    Example::

        >>> Quantile(0.5)(dist.Normal(torch.tensor([0.0, 1.0]), 1.0))
        tensor([0., 1.])
        >>> Quantile((0.1, 0.9))(dist.Normal(torch.zeros(2), 1.0)).shape
        torch.Size([2, 2])
    """

    probability: float | Sequence[float]

    def __post_init__(self) -> None:
        several = isinstance(self.probability, Sequence)
        values: Any = self.probability if several else [self.probability]
        for value in values:
            checks.number("probability", value, above=0.0, below=1.0)
        if not values:
            raise ValueError("probability must be a number or a sequence of some, got an empty one")

    def __call__(self, population: Any) -> Tensor:
        """Quantiles of each distribution.

        **Shape:** ``(num_draws, *event)``, or ``(num_draws, *event, num_probabilities)``.
        """
        if isinstance(self.probability, Sequence):
            return torch.stack([Quantile(value)(population) for value in self.probability], -1)
        population = _with_moments(population)
        try:
            value: Tensor = population.icdf(torch.tensor(self.probability, dtype=torch.float64))
        except NotImplementedError as error:
            raise TypeError(
                "Quantile takes points, or distributions that have quantiles, which "
                f"{type(population).__name__} does not"
            ) from error
        return value


@dataclass(frozen=True)
class Expectation:
    """The mean of a function of an observation.

    :param function: maps an observation (or its parts, if the data are several tensors) to a value,
        point by point: its arguments and its result have leading dimensions for points and draws.
    :param int num_points: number of points at which the function is evaluated if the population is
        a continuous distribution. For numbers, the points are quantiles, and the error of the mean
        is at most the variation of the function over ``2 * num_points``.

    Example::

        >>> population = dist.Normal(torch.zeros(2), 1.0)
        >>> Expectation(lambda y: (y > 0.0).float())(population)
        tensor([0.5000, 0.5000])
    """

    function: Callable[..., Tensor]
    num_points: int = 1000

    def __post_init__(self) -> None:
        checks.function("function", self.function)
        checks.integer("num_points", self.num_points, 1)

    def __call__(self, population: Any) -> Tensor:
        """Mean of the function under each distribution. **Shape:** ``(num_draws, *result)``."""
        return points_of(population, self.num_points).expectation(self.function)


def _with_moments(population: Any) -> Any:
    """The population, or points for vectors whose distribution has no moments in closed form."""
    if getattr(population, "event_shape", ()) and hasattr(population, "weighted_points"):
        return points_of(population, _NUM_POINTS)
    return population


_MOST_KEPT = 8


class BestFit(ABC):
    """Base class of functionals that minimize a loss over each population.

    :param Minimizer optimizer: as for :class:`MEstimator`.
    :param int num_points: as for :class:`MEstimator`.
    :param regularizer: as for :class:`MEstimator`.
    """

    def __init__(
        self, optimizer: Minimizer | None, num_points: int, regularizer: Regularizer | None = None
    ) -> None:
        self.regularizer = checks.optional(checks.function, "regularizer", regularizer)
        kinds = "a BatchLBFGS, a BatchOptimizer or another Minimizer"
        checks.optional(checks.instance, "optimizer", optimizer, Minimizer, kinds)
        self.optimizer = optimizer or BatchLBFGS()
        self.num_points = checks.integer("num_points", num_points, 1)
        self._known: dict[tuple[Any, ...], WeightedLoss] = {}

    def __call__(self, population: Any) -> dict[str, Tensor]:
        """Best fit to each population, by name of the parameters.

        :param population: a weighted sample, a distribution of numbers with ``icdf``, or the
            distribution of vectors of a :class:`~pyro_ext.inference.CopulaDensity`.
        :returns: **Shape:** ``(num_draws, *event)`` each; NaN where a search diverges.
            There is a warning where searches have not converged.
        """
        sample = points_of(population, self.num_points)
        shared = sample.values if sample.is_shared else tuple(part[0] for part in sample.values)
        loss = self._loss_over(shared, sample.is_shared)
        dtype, device = loss.layout.dtype, loss.layout.device
        weights = sample.weights.to(device, dtype)
        rows = [] if sample.is_shared else [part.to(device) for part in sample.values]
        mean = weights.mean(0, keepdim=True)
        capacity = len(weights)

        def objective(flat: Tensor, numbers: Tensor) -> tuple[Tensor, Tensor]:
            return loss(flat, weights[numbers], None, [part[numbers] for part in rows], capacity)

        def of_the_mean(flat: Tensor, numbers: Tensor) -> tuple[Tensor, Tensor]:
            first = [part[:1].expand(len(flat), *part.shape[1:]) for part in rows]
            return loss(flat, mean.expand(len(flat), -1), None, first, capacity)

        center = center_of(self.optimizer, of_the_mean, loss.start(range(1), 0)[0])
        found = center.search(self.optimizer, objective, capacity)
        is_finite = found.value.isfinite()
        if num_open := int((is_finite & ~found.converged).sum()):
            message = f"{num_open} of {capacity} fits have not converged: give the optimizer more"
            warnings.warn(f"{message} steps", RuntimeWarning, stacklevel=2)
        return loss.constrain(torch.where(is_finite[:, None], found.position, torch.nan))

    @abstractmethod
    def _loss(self, rows: tuple[Tensor, ...]) -> WeightedLoss:
        """The loss over observations."""

    def _loss_over(self, rows: tuple[Tensor, ...], is_shared: bool) -> WeightedLoss:
        """The loss over observations, with the graphs of an earlier call where it can be."""
        # Where each draw has its own rows, their form is all that a graph depends on.
        forms = tuple((tuple(part.shape), part.dtype, part.device) for part in rows)
        key = tuple(map(id, rows)) if is_shared else forms
        if key not in self._known:
            if len(self._known) >= _MOST_KEPT:
                self._known.pop(next(iter(self._known)))
            self._known[key] = self._loss(rows)
        return self._known[key]


class MEstimator(BestFit):
    r"""The parameters with the smallest expected loss, :math:`\arg\min_\theta E\, l(Y, \theta)`.

    :param loss_fn: maps a dict of parameters and the observations, one tensor for each tensor of
        the data, to the loss of each observation, ``(n,)``.
    :param Mapping initial_params: where the first search starts. **Shape:** ``(*event)`` each.
    :param regularizer: a function of the parameters that is added to the loss.
    :param Minimizer optimizer: by default :class:`~pyro_ext.inference.BatchLBFGS`.
    :param int num_points: number of points that represent a population that is a distribution
        rather than a weighted sample; for distributions of numbers, these are quantiles.

    Example::

        >>> from pyro_ext.inference.martingale import MartingalePosterior, PolyaUrn
        >>> def huber(params, y):
        ...     return torch.nn.functional.huber_loss(y, params["center"].expand(len(y)),
        ...                                           reduction="none")
        >>> center = MEstimator(huber, {"center": torch.tensor(0.0)})
        >>> posterior = MartingalePosterior(PolyaUrn(), center, 100, 2000, progress=False)
        >>> posterior.run(torch.randn(30)).get_samples()["center"].shape
        torch.Size([100])
    """

    def __init__(
        self,
        loss_fn: Callable[..., Tensor],
        initial_params: Mapping[str, Tensor],
        *,
        regularizer: Regularizer | None = None,
        optimizer: Minimizer | None = None,
        num_points: int = 200,
    ) -> None:
        checks.function("loss_fn", loss_fn)
        super().__init__(optimizer, num_points, regularizer)
        self.loss_fn = loss_fn
        self.initial_params = checks.tensors("initial_params", initial_params, finite=True)

    def _loss(self, rows: tuple[Tensor, ...]) -> WeightedLoss:
        params = self.initial_params
        return WeightedFunction(self.loss_fn, rows, params, regularizer=self.regularizer)


class WeightedMLE(BestFit):
    """The maximum likelihood estimate of a Pyro model over the population.

    :param model: a Pyro model with its latent sites outside of the plate of the observations. Its
        arguments are the observations, one tensor for each tensor of the data.
    :param str plate: name of the plate of the observations, if the model has several plates.
    :param regularizer: a function of the values of the latent sites that is added to the loss.
    :param Minimizer optimizer: as for :class:`MEstimator`.
    :param int num_points: as for :class:`MEstimator`.

    Example::

        >>> from pyro_ext.inference.martingale import MartingalePosterior, PolyaUrn
        >>> def model(y):
        ...     loc = pyro.sample("loc", dist.Normal(0.0, 10.0))
        ...     scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
        ...     with pyro.plate("data", len(y)):
        ...         pyro.sample("y", dist.Normal(loc, scale), obs=y)
        >>> posterior = MartingalePosterior(PolyaUrn(), WeightedMLE(model), 100, 2000,
        ...                                 progress=False)
        >>> sorted(posterior.run(torch.randn(30)).get_samples())
        ['loc', 'scale']
    """

    def __init__(
        self,
        model: Callable[..., Any],
        *,
        plate: str | None = None,
        regularizer: Regularizer | None = None,
        optimizer: Minimizer | None = None,
        num_points: int = 200,
    ) -> None:
        checks.function("model", model, "a Pyro model")
        super().__init__(optimizer, num_points, regularizer)
        self.model = model
        self.plate = checks.optional(checks.instance, "plate", plate, str, "the name of a plate")

    def _loss(self, rows: tuple[Tensor, ...]) -> WeightedLoss:
        return WeightedPotential(self.model, rows, plate=self.plate, regularizer=self.regularizer)
