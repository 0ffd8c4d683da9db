"""The function that a model evaluates at its rows, its likelihood, and its Gaussian marginals."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, get_args

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import ExpandedDistribution
from pyro.distributions.util import scale_and_mask
from torch import Tensor
from torch.distributions import Independent, biject_to
from torch.func import jacrev, vmap

from pyro_ext._lib import checks
from pyro_ext.inference.pseudocoresets.posteriors import Coreset, WeightedPosterior
from pyro_ext.potential import Backend, BatchedFunction
from pyro_ext.potential.evaluation import Evaluation, Record, from_unconstrained, without_validation

Function = Callable[[Tensor], Tensor]
"""Maps a flat vector of parameters to values at all inputs. **Shape:** ``(num_points, *outputs)``.

It is pure, so that it can be vectorized. Inputs that take gradients are in its closure.
"""

SnapshotMean = Literal["last", "average"]
_JITTER = 1e-8  # is added to variances


def diagonal_marginal(
    function: Function, snapshots: Tensor, mean: SnapshotMean = "last"
) -> dist.Independent:
    r"""Independent Gaussians at each input and output, from snapshots of the parameters [1].

    The variance is that of the values :math:`f_k` of :math:`K` snapshots,
    :math:`\tfrac1K \sum_k f_k^2 - ( \tfrac1K \sum_k f_k )^2`, plus a jitter of 1e-8, so that its
    square root has a gradient. Mean and variance are differentiable in everything that the function
    depends on.

    :param function: the function.
    :param Tensor snapshots: parameters. **Shape:** ``(num_snapshots, size)``.
    :param str mean: ``"last"`` for the value of the last snapshot, or ``"average"`` for that of
        all.
    :returns: the distribution of ``num_points * outputs`` independent normal variables. **Event
        shape:** ``(num_points, *outputs)``.
    :raises ValueError: for another ``mean``, or snapshots that are not a matrix.

    [1] B. Kim, H. Lee, J. Lee (2023), Function space Bayesian pseudocoreset for Bayesian neural
    networks.

    Example::

        >>> inputs = torch.tensor([[1.0, 0.0], [1.0, 2.0]])
        >>> snapshots = torch.tensor([[0.0, 1.0], [2.0, 1.0]])
        >>> marginal = diagonal_marginal(lambda flat: inputs @ flat, snapshots)
        >>> marginal.mean, marginal.variance.round(decimals=3)
        (tensor([2., 4.]), tensor([1., 1.]))
    """
    loc, deviations = _moments(function, snapshots, mean)
    scale = (deviations.square().sum(0) + _JITTER).sqrt()
    marginal: dist.Independent = dist.Normal(loc, scale, validate_args=False).to_event(loc.dim())
    return marginal


def full_marginal(
    function: Function, snapshots: Tensor, mean: SnapshotMean = "last"
) -> dist.Independent:
    r"""A Gaussian over the outputs at each input, from snapshots of the parameters.

    The covariance of the :math:`C` outputs at an input is that of the snapshots' values, plus a
    jitter times the unit matrix. There may be fewer snapshots than outputs: the Cholesky factor is
    computed without the matrix itself. Arguments are as for :func:`diagonal_marginal`.

    :param function: the function.
    :param Tensor snapshots: parameters. **Shape:** ``(num_snapshots, size)``.
    :param str mean: ``"last"`` or ``"average"``.
    :returns: the distribution of ``num_points`` independent
        :class:`~pyro.distributions.MultivariateNormal` variables. **Event shape:** ``(num_points,
        C)``, with outputs in one dimension.
    :raises ValueError: for another ``mean``, or snapshots that are not a matrix.

    Example::

        >>> snapshots = torch.tensor([[0.0, 1.0], [2.0, 3.0]])
        >>> x = torch.arange(1.0, 4.0)
        >>> marginal = full_marginal(lambda flat: torch.outer(x, flat), snapshots)
        >>> marginal.event_shape, marginal.base_dist.covariance_matrix[1]
        (torch.Size([3, 2]), tensor([[4.0000, 4.0000],
                [4.0000, 4.0000]]))
    """
    loc, deviations = _moments(function, snapshots, mean)
    factor = deviations.reshape(len(snapshots), len(loc), -1).permute(1, 2, 0)
    marginal: dist.Independent = _normal(loc.reshape(len(loc), -1), factor).to_event(1)
    return marginal


def linearized_marginal(
    function: Function, mean: Tensor, covariance: Tensor
) -> dist.MultivariateNormal:
    r"""The distribution of a function linearized in Gaussian parameters.

    .. math:: f \sim N \left( f(\mu), J \Sigma J^T \right) , \qquad J = \partial f / \partial \mu ,

    at all inputs jointly. It is exact if the function is linear, and differentiable in everything
    that the function depends on. A jitter times the unit matrix is added to the covariance.

    :param function: the function.
    :param Tensor mean: :math:`\mu`. **Shape:** ``(size,)``.
    :param Tensor covariance: :math:`\Sigma`, or its diagonal for independent parameters.
        **Shape:** ``(size, size)`` or ``(size,)``.
    :returns: **Event shape:** ``(num_points * outputs,)``, in the order of the flattened values.
    :raises ValueError: for a covariance of another shape.

    Example::

        >>> inputs = torch.tensor([[1.0, 0.0], [1.0, 2.0]])
        >>> marginal = linearized_marginal(lambda flat: inputs @ flat, torch.ones(2), torch.ones(2))
        >>> marginal.mean, marginal.covariance_matrix
        (tensor([1., 3.]), tensor([[1., 1.],
                [1., 5.]]))
    """
    checks.function("function", function)
    mean = checks.as_tensor("mean", mean, "(size,)")
    covariance = checks.as_tensor("covariance", covariance, like=mean)
    size = mean.shape[0]
    if covariance.shape not in ((size,), (size, size)):
        raise ValueError(
            f"covariance must have the shape {(size,)} or {(size, size)} for a mean of shape "
            f"{(size,)}, got {tuple(covariance.shape)}"
        )
    loc = function(mean).flatten()
    jacobian = jacrev(function)(mean).reshape(len(loc), size)
    if covariance.dim() == 1:
        factor = jacobian * covariance.sqrt()
    else:
        lower, info = torch.linalg.cholesky_ex(covariance)
        factor = jacobian @ torch.where(info == 0, lower, torch.nan)
    return _normal(loc, factor)


def _moments(function: Function, snapshots: Tensor, mean: SnapshotMean) -> tuple[Tensor, Tensor]:
    """Mean, and deviations from the average whose squares add up to the variance."""
    checks.function("function", function)
    snapshots = checks.as_tensor("snapshots", snapshots, "(num_snapshots, size)")
    checks.choice("mean", mean, get_args(SnapshotMean))
    values = vmap(function)(snapshots)
    average = values.mean(0)
    deviations = (values - average) / len(values) ** 0.5
    return values[-1] if mean == "last" else average, deviations


def _normal(loc: Tensor, factor: Tensor) -> dist.MultivariateNormal:
    """A Gaussian whose covariance is a product of a factor with its transpose, plus jitter."""
    unit = torch.eye(factor.shape[-2], dtype=factor.dtype, device=factor.device)
    unit = unit.expand(*factor.shape[:-2], -1, -1)
    upper = torch.linalg.qr(torch.cat([factor, _JITTER**0.5 * unit], -1).mT).R
    signs = torch.where(upper.diagonal(dim1=-2, dim2=-1) < 0, -1.0, 1.0).to(upper)
    # No checks: what is not finite should be found in the loss.
    return dist.MultivariateNormal(
        loc, scale_tril=(signs.unsqueeze(-1) * upper).mT, validate_args=False
    )


Likelihood = Callable[[Tensor], Any]
"""Maps values of the function to a distribution of the observations."""

_PARAMETERS: dict[type, tuple[str, tuple[str, ...]]] = {
    torch.distributions.Bernoulli: ("logits", ()),
    torch.distributions.Binomial: ("logits", ("total_count",)),
    torch.distributions.Categorical: ("logits", ()),
    torch.distributions.Exponential: ("rate", ()),
    torch.distributions.Laplace: ("loc", ("scale",)),
    torch.distributions.Normal: ("loc", ("scale",)),
    torch.distributions.Poisson: ("rate", ()),
    torch.distributions.StudentT: ("loc", ("df", "scale")),
}
"""The parameter that is the function, and those that are kept, by family of the observations."""


class ModelFunction:
    """A model split into a function of its latent values and a likelihood of the function.

    The function is the unconstrained parameter of the observed site's distribution: logits of a
    Bernoulli or binomial, normalized logits of a categorical, the location of a normal, Laplace or
    Student t, or the logarithm of the rate of a Poisson or exponential distribution. The other
    parameters keep the values that the model gives them, and must not depend on latent values.
    Alternatively, the function is a ``pyro.deterministic`` site, with a given likelihood.

    :param posterior: posterior of the model, over as many rows as there will be.
    :param Coreset example: such rows and weights.
    :param str function: name of a deterministic site.
    :param likelihood: maps its values to a distribution of the observed site. **Shape:**
        ``(num_particles, num_rows, *outputs)`` to the batch shape ``(num_particles, num_rows,
        ...)``.
    :param str backend: as for :class:`~pyro_ext.potential.Potential`.
    :ivar torch.Size shape: shape of the values. **Shape:** ``(num_rows, *outputs)``.
    :raises ValueError: if only one of function and likelihood is given; for a model with several
        observed sites, or without a row of values for each observation; for observations of another
        family, or with other parameters that depend on latent values.
    """

    def __init__(
        self,
        posterior: WeightedPosterior,
        example: Coreset,
        function: str | None = None,
        likelihood: Likelihood | None = None,
        backend: Backend = "trace",
    ) -> None:
        if (function is None) != (likelihood is None):
            given = "function" if likelihood is None else "likelihood"
            raise ValueError(
                "function and likelihood must be given together, the name of a deterministic site "
                f"and what maps its values to a distribution; got {given} alone"
            )
        self._potential, self._layout = posterior.potential, posterior.layout
        self._function, self._likelihood = function, likelihood
        rows = [row.detach().clone() for row in example.rows]
        weights = example.weights.detach().clone()
        self._start = start = self._layout.flatten(self._potential.init(seed=0))[0]
        generator = torch.Generator().manual_seed(0)

        def point() -> list[Tensor]:
            noise = torch.randn(start.shape, generator=generator, device="cpu").to(start)
            return [start + 0.5 * noise, weights, *rows]

        records = self._records(*point())
        self._site = _observed_site(records)
        self._observations = None
        if function is None:
            self._observations = _Observations(self._site, records[self._site].fn)
        else:
            known = [name for name, record in records.items() if record.is_deterministic]
            if function not in known:
                raise ValueError(
                    "function must name a pyro.deterministic site of the model, one of "
                    f"{known}, got {function!r:.80}"
                )
        run = self._evaluate(*point())
        self.shape = run.values.shape
        self._check(run, self._evaluate(*point()), len(weights))
        self._run = BatchedFunction(self._evaluate, point, backend)

    def at(self, coreset: Coreset) -> Function:
        """The function of flat unconstrained latent values, at the rows of a coreset.

        It can be vectorized, and is differentiable in the rows.

        :param Coreset coreset: rows and weights.
        """
        # The record is made here, outside of any vectorization.
        run = self._run.single() or self._evaluate

        def function(flat: Tensor) -> Tensor:
            result: _Evaluated = run(flat, coreset.weights, *coreset.rows)
            return result.values

        return function

    def log_likelihood(self, values: Tensor, coreset: Coreset) -> Tensor:
        """Compute the weighted log likelihood of a coreset, given values of the function.

        :param Tensor values: values at the rows. **Shape:**
            ``(num_particles, num_rows, *outputs)``, or with all but the first dimension flattened
            into one or two.
        :param Coreset coreset: rows and weights.
        :returns: **Shape:** ``(num_particles,)``.
        """
        values = values.reshape(len(values), *self.shape)
        # What else the likelihood takes from the model is the same at all latent values.
        function = self._run.single() or self._evaluate
        run: _Evaluated = function(self._start, coreset.weights, *coreset.rows)
        return self._densities(values, run).flatten(1).sum(1)

    def _densities(self, values: Tensor, run: "_Evaluated") -> Tensor:
        """Weighted log density of each observation. **Shape:** ``(num_particles, *batch)``."""
        if self._observations is not None:
            distribution = self._observations.distribution(values, run.kept)
        else:
            assert self._likelihood is not None
            with without_validation():  # what is not finite should be found in the loss
                distribution = self._likelihood(values)
        density: Tensor = scale_and_mask(distribution.log_prob(run.observed), run.scale, run.mask)
        return density

    def _records(self, flat: Tensor, weights: Tensor, *rows: Tensor) -> dict[str, Record]:
        indices = dict(self._potential.whole_indices)
        choice = from_unconstrained(self._layout.unflatten(flat), indices)
        return Evaluation(choice, indices).run(self._potential.model, (weights, *rows), {})

    def _evaluate(self, flat: Tensor, weights: Tensor, *rows: Tensor) -> "_Evaluated":
        records = self._records(flat, weights, *rows)
        record = records[self._site]
        if self._observations is not None:
            values, kept = self._observations.split(record.fn)
        else:
            assert self._function is not None
            values, kept = records[self._function].value, {}
        mask = True if record.mask is None else record.mask
        return _Evaluated(
            values,
            record.value,
            torch.as_tensor(record.scale, dtype=weights.dtype, device=weights.device),
            torch.as_tensor(mask, device=weights.device),
            kept,
        )

    def _check(self, run: "_Evaluated", other: "_Evaluated", size: int) -> None:
        """Raise where the function does not fit the observations, or they need more than it."""
        for name, value in run.kept.items():
            if not torch.equal(value, other.kept[name]):
                raise ValueError(
                    f"{name} of site {self._site!r} depends on latent values and cannot be kept: "
                    "pass as function a deterministic site with all that its distribution needs, "
                    "and a likelihood"
                )
        if run.values.shape[:1] != (size,):
            raise ValueError(
                "function must have a row of values for each observation in its first dimension, "
                f"of size {size}; site {self._function or self._site!r} has the shape "
                f"{tuple(run.values.shape)}"
            )
        shape = self._densities(run.values.expand(2, *run.values.shape), run).shape
        if shape[:2] != (2, size):
            raise ValueError(
                "likelihood must map values of the shape (num_particles, num_rows, *outputs) to a "
                "distribution of the batch shape (num_particles, num_rows, ...): the log densities "
                f"of 2 particles of {size} rows have the shape {tuple(shape)}"
            )


class _Evaluated(NamedTuple):
    """Results of one run of a model."""

    values: Tensor  # of the function, (num_rows, *outputs)
    observed: Tensor  # the observations
    scale: Tensor  # factor of each log density
    mask: Tensor  # which log densities count
    kept: dict[str, Tensor]  # the other parameters of their distribution, by name


class _Observations:
    """The distribution of an observed site as a map from the function."""

    def __init__(self, site: str, fn: Any) -> None:
        base = _base(fn)
        found = [family for family in _PARAMETERS if isinstance(base, family)]
        if not found:
            known = sorted(family.__name__ for family in _PARAMETERS)
            raise ValueError(
                f"site {site!r} has a {type(base).__name__} distribution, and the function is "
                f"known for {known} alone: pass function, the name of a deterministic site, and "
                "likelihood"
            )
        self._family = type(base)
        self._parameter, self._kept = _PARAMETERS[found[0]]
        constraint = base.arg_constraints[self._parameter]
        self._transform = biject_to(constraint)
        self._parameter_dim = constraint.event_dim
        self._event_dims = len(fn.event_shape) - len(base.event_shape)

    def split(self, fn: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """Values of the function, and the other parameters."""
        base = _base(fn)
        values = self._transform.inv(getattr(base, self._parameter))
        outputs = values.shape[values.dim() - self._parameter_dim :]
        shape = fn.batch_shape + fn.event_shape[: self._event_dims] + outputs
        return values.expand(shape), {name: getattr(base, name) for name in self._kept}

    def distribution(self, values: Tensor, kept: dict[str, Tensor]) -> Any:
        """Distribution at other values of the function."""
        parameter = {self._parameter: self._transform(values)}
        return self._family(**parameter, **kept, validate_args=False).to_event(self._event_dims)


def _base(fn: Any) -> Any:
    """Return the base distribution inside expansions and declared event dimensions."""
    while isinstance(fn, Independent | ExpandedDistribution):
        fn = fn.base_dist
    return fn


def _observed_site(records: dict[str, Record]) -> str:
    """Name of the one observed site."""
    names = [
        name
        for name, record in records.items()
        if record.is_observed and not record.is_deterministic
    ]
    if len(names) != 1:
        raise ValueError(f"model must have one observed site, got {names}")
    return names[0]
