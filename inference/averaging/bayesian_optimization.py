"""Bayesian optimization of one or two objectives, by asking for a point and telling its values.

A search depends only on its seed and the evaluations it was given: these suffice to continue it
elsewhere.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.quasirandom import SobolEngine

from pyro_ext._lib import checks
from pyro_ext.inference.averaging.hypervolumes import (
    expected_hypervolume_improvement,
    hypervolume,
    pareto_mask,
)
from pyro_ext.inference.optimization import BatchLBFGS
from pyro_ext.random import fresh_seed, seeded, spawn_seed

_JITTER = 1e-6
_NUM_RAW = 512
_NUM_RESTARTS = 10
_NUM_GOOD = 5
_NUM_NEAR = 64
_NEAR = 0.05


class BayesianOptimizer:
    r"""Maximizes one function or finds the Pareto front of two, by expected improvement.

    The first points form a scrambled Sobol sequence. Then each objective gets a Gaussian process on
    inputs scaled to the unit box and standardized values, with a Matern kernel of smoothness 5/2
    and a noise term, since metrics are step functions. Length scales and noise maximize the
    posterior density under the priors of [1]. The next point maximizes the expected improvement:
    for one objective, over the best posterior mean at the evaluated points; for two,
    :func:`~pyro_ext.inference.averaging.expected_hypervolume_improvement` over the front of these
    means.

    A failed evaluation, whose value is NaN or infinite, counts as the worst of the successful ones,
    so that the search moves elsewhere.

    :param Tensor bounds: lower and upper bounds of the inputs. **Shape:** ``(2, num_inputs)``.
    :param Tensor reference: values at which both of two objectives are worthless; ``None`` for a
        single objective. **Shape:** ``(2,)``.
    :param int num_initial: number of points of the Sobol sequence, including points that were added
        before the first query; by default the number of inputs, but at least two.
    :param int seed: seed of all that is random; ``None`` takes one from PyTorch's generator.
    :raises ValueError: for bounds out of order, shapes that do not fit, numbers that are not
        finite, or other numbers of objectives.

    [1] C. Hvarfner, E. O. Hellsten, L. Nardi (2024),
    Vanilla Bayesian optimization performs great in high dimensions.

    Example::

        >>> search = BayesianOptimizer([[-2.0], [2.0]], seed=0)
        >>> for _ in range(10):
        ...     x = search.ask()
        ...     search.tell(x, -(x - 1.0).square().sum())
        >>> bool((search.best() - 1.0).abs() < 0.02)
        True
    """

    def __init__(
        self,
        bounds: Tensor,
        reference: Tensor | None = None,
        *,
        num_initial: int | None = None,
        seed: int | None = None,
    ) -> None:
        self.bounds = checks.as_tensor(
            "bounds", bounds, "(2, num_inputs)", finite=True, dtype=torch.float64
        )
        if not bool((self.bounds[0] < self.bounds[1]).all()):
            raise ValueError(
                f"bounds must be (2, num_inputs), the first row below the second, got {bounds!r}"
            )
        num_inputs = self.bounds.shape[-1]
        self.reference: Tensor | None = checks.optional(
            checks.as_tensor,
            "reference",
            reference,
            "(num_objectives,)",
            like=self.bounds,
            finite=True,
        )
        if self.reference is not None:
            self.reference = self.reference.double()
            if len(self.reference) != 2:
                raise ValueError(
                    "reference must have the shape (2,), or be None for one objective, got "
                    f"{len(self.reference)} numbers: BoTorch takes more"
                )
        self.num_initial = (
            max(num_inputs, 2)
            if num_initial is None
            else checks.integer("num_initial", num_initial, 2)
        )
        self.seed = fresh_seed(seed)
        self.x = self.bounds.new_empty(0, num_inputs)
        """Evaluated points. **Shape:** ``(num_points, num_inputs)``."""
        self.y = self.bounds.new_empty(0, self.num_objectives)
        """Their values. **Shape:** ``(num_points, num_objectives)``."""

    @property
    def num_objectives(self) -> int:
        """Number of objectives."""
        return 1 if self.reference is None else len(self.reference)

    def ask(self) -> Tensor:
        """Return the point to evaluate next; it stays the same until new values are told.

        :returns: the point in float64. **Shape:** ``(num_inputs,)``.
        """
        number = len(self.x)
        low, high = self.bounds
        if number < self.num_initial:
            inside = _sobol(number + 1, len(low), spawn_seed(self.seed, 0))[number].to(low)
        else:
            with seeded(spawn_seed(self.seed, 1, number)):
                inside = self._propose((self.x - low) / (high - low), _filled(self.y))
        return torch.clamp(low + (high - low) * inside, low, high)

    def tell(self, x: Tensor, y: Tensor | float) -> None:
        """Record the values at one or several points, which need not have been asked for.

        :param Tensor x: **Shape:** ``(num_inputs,)`` or ``(num_points, num_inputs)``.
        :param Tensor y: larger is better; NaN if an evaluation failed. **Shape:**
            ``(num_objectives,)`` or ``(num_points, num_objectives)``; for one point and one
            objective, a number suffices.
        :raises ValueError: for shapes that do not fit, or points that are not finite.
        """
        points = checks.as_tensor(
            "x", x, f"(*num_points, {self.x.shape[1]})", like=self.x, finite=True
        )
        points = points.double().reshape(-1, self.x.shape[1])
        values = checks.as_tensor("y", y, like=self.y).double().detach()
        if values.numel() != len(points) * self.num_objectives or values.dim() > 2:
            raise ValueError(
                f"y must have the shape ({len(points)}, {self.num_objectives}), the values of "
                f"{len(points)} points, got {tuple(values.shape)}"
            )
        self.x = torch.cat([self.x, points.detach()])
        self.y = torch.cat([self.y, values.reshape(len(points), -1)])

    def best(self) -> Tensor:
        """The point with the largest value of the first objective.

        :returns: **Shape:** ``(num_inputs,)``.
        :raises ValueError: if no evaluation so far is finite.
        """
        is_good = _is_good(self.y)
        if not bool(is_good.any()):
            raise ValueError(f"best needs a point with finite values, got {len(self.x)} points")
        return self.x[self.y[:, 0].where(is_good, -torch.inf).argmax()]

    def hypervolumes(self) -> Tensor:
        """Hypervolume after each point; for one objective, the best value so far.

        :returns: for one objective, minus infinity until the first successful evaluation.
            **Shape:** ``(num_points,)``.
        """
        is_good = _is_good(self.y)
        if self.reference is None:
            return self.y[:, 0].where(is_good, -torch.inf).cummax(0).values
        y = self.y.where(is_good[:, None], self.reference)
        volumes = [hypervolume(y[: n + 1], self.reference) for n in range(len(y))]
        # None is less than the one before, but for rounding.
        return torch.stack(volumes).cummax(0).values if volumes else self.y[:, 0]

    def _propose(self, x: Tensor, y: Tensor) -> Tensor:
        """The next point, in the unit box."""
        surrogate = _fit(x, y)
        if self.reference is None:
            # Of one objective the gain is the area of a strip of height one.
            front = x.new_empty(0, 2)
            reference = torch.stack([y.max(), x.new_zeros(())])
            good = x[y[:, 0].argsort(descending=True)[:_NUM_GOOD]]
        else:
            is_good = pareto_mask(y)
            front, reference, good = y[is_good], self.reference, x[is_good]

        def gain(point: Tensor) -> Tensor:
            mean, sd = surrogate.predict(point)
            if self.reference is None:
                mean = torch.cat([mean, torch.ones_like(mean)], -1)
                sd = torch.cat([sd, torch.zeros_like(sd)], -1)
            return expected_hypervolume_improvement(mean, sd, front, reference)

        return _maximize(gain, good)


def _is_good(y: Tensor) -> Tensor:
    """Return a mask of the evaluations that did not fail."""
    return y.isfinite().all(-1)


def _filled(y: Tensor) -> Tensor:
    """Values in which those of evaluations that failed are the worst of the others."""
    is_good = _is_good(y)
    if not bool(is_good.any()):
        return torch.zeros_like(y)
    return y.where(is_good[:, None], y[is_good].amin(0))


class _Surrogate(NamedTuple):
    """Gaussian processes of some objectives, given values at the same inputs."""

    x: Tensor
    lengthscale: Tensor
    factor: Tensor
    weights: Tensor
    loc: Tensor
    scale: Tensor

    def predict(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation without noise, each ``(num_points, num_objectives)``."""
        cross = _matern(x, self.x, self.lengthscale)
        mean = (cross @ self.weights)[..., 0]
        explained = torch.linalg.solve_triangular(self.factor, cross.mT, upper=False)
        variance = (1.0 - explained.square().sum(-2)).clamp(min=1e-12)
        return self.loc + self.scale * mean.mT, self.scale * variance.sqrt().mT


def _matern(one: Tensor, other: Tensor, lengthscale: Tensor) -> Tensor:
    """Covariances of smoothness 5/2 for each row of length scales."""
    one, other = one / lengthscale[:, None], other / lengthscale[:, None]
    mode = "donot_use_mm_for_euclid_dist"
    scaled = math.sqrt(5.0) * torch.cdist(one, other, compute_mode=mode)
    return (1.0 + scaled + scaled.square() / 3.0) * torch.exp(-scaled)


def _factor(x: Tensor, position: Tensor) -> Tensor:
    """Cholesky factors of the covariances of noisy values, from logarithms of scales and noise."""
    noise = position[:, -1:].exp() + _JITTER
    covariance = _matern(x, x, position[:, :-1].exp())
    factor: Tensor = torch.linalg.cholesky(covariance + torch.diag_embed(noise.expand(-1, len(x))))
    return factor


def _fit(x: Tensor, y: Tensor) -> _Surrogate:
    """Gaussian processes with the scales and noise of largest posterior density."""
    loc = y.mean(0)
    scale = y.std(0)
    scale = torch.where(scale > 1e-12 * (1.0 + loc.abs()), scale, 1.0)
    targets = ((y - loc) / scale).mT
    num_inputs = x.shape[-1]
    # Logarithms of length scales and of the noise; the densities are those of LogNormal values.
    prior_loc = x.new_tensor([2.0**0.5 + 0.5 * math.log(num_inputs)] * num_inputs + [-4.0])
    prior_sd = x.new_tensor([3.0**0.5] * num_inputs + [1.0])

    def objective(position: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            position = position.detach().requires_grad_()
            factor = _factor(x, position.clamp(-12.0, 12.0))
            residual = targets[rows, :, None] - _mean(targets[rows], factor)[:, None, None]
            white = torch.linalg.solve_triangular(factor, residual, upper=False)
            value = 0.5 * white.square().sum((-2, -1))
            value = value + factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
            value = value + (0.5 * ((position - prior_loc) / prior_sd).square() + position).sum(-1)
            (gradient,) = torch.autograd.grad(value.sum(), position)
        return value.detach(), gradient

    start = (prior_loc - prior_sd.square()).repeat(len(targets), 1)
    position = BatchLBFGS(200, 1e-4).minimize(objective, start).position.clamp(-12.0, 12.0)
    factor = _factor(x, position)
    mean = _mean(targets, factor)
    weights = torch.cholesky_solve((targets - mean[:, None])[..., None], factor)
    return _Surrogate(x, position[:, :-1].exp(), factor, weights, loc + scale * mean, scale)


def _mean(targets: Tensor, factor: Tensor) -> Tensor:
    """The constant mean of largest likelihood, in which a Gaussian process is linear."""
    ones = torch.cholesky_solve(torch.ones_like(targets)[..., None], factor)[..., 0]
    return (targets * ones).sum(-1) / ones.sum(-1)


def _sobol(number: int, num_inputs: int, seed: int) -> Tensor:
    return SobolEngine(num_inputs, scramble=True, seed=seed).draw(number, dtype=torch.float64)


def _maximize(gain: Callable[[Tensor], Tensor], good: Tensor) -> Tensor:
    """Maximize in the unit box, from the best of many points and of some near good ones."""
    from scipy.optimize import minimize

    shape = _NUM_NEAR, good.shape[-1]
    near = good[torch.randint(len(good), shape[:1], device=good.device)]
    near = (near + _NEAR * torch.randn(shape).to(good)).clamp(0.0, 1.0)
    raw = _sobol(_NUM_RAW, shape[1], int(torch.randint(2**31, ()))).to(good)
    points = torch.cat([raw, near])
    with torch.no_grad():
        starts = points[gain(points).topk(_NUM_RESTARTS).indices]
    tiny = torch.finfo(starts.dtype).tiny

    def objective(flat: Any) -> tuple[float, Any]:
        point = starts.new_tensor(flat).reshape(starts.shape).requires_grad_()
        # The logarithm has a slope where the gain is next to nothing.
        value = -gain(point).clamp(min=tiny).log().sum()
        (gradient,) = torch.autograd.grad(value, point)
        return float(value.detach()), gradient.cpu().numpy().ravel()

    found = minimize(
        objective,
        starts.cpu().numpy().ravel(),
        jac=True,
        method="L-BFGS-B",
        bounds=[(0.0, 1.0)] * starts.numel(),
        options={"maxiter": 200},
    )
    ends = torch.cat([starts, starts.new_tensor(found.x).reshape(starts.shape)])
    with torch.no_grad():
        return ends[gain(ends).argmax()]
