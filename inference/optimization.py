"""Minimization of many functions at once: each row of a matrix is a problem of its own."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from itertools import count
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyro_ext._lib import checks
from pyro_ext.inference.training import Trainer
from pyro_ext.posterior.modes import gradient_differences, whitening_factor
from pyro_ext.random import uniform

Objective = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]

_ARMIJO = 1e-4
_MOST_FAILURES = 25
_CURVATURE = 1e-10
_RESOLUTION = 4.0
_HISTORY_SIZE = 10  # earlier steps that a direction takes into account


def minibatches_of(keys: Tensor, size: int, num_points: int) -> Callable[[Tensor], Tensor]:
    """A function of the numbers of draws that returns their next minibatches, with replacement."""
    steps = count()

    def next_one(numbers: Tensor) -> Tensor:
        # In double precision, in which the product is not rounded up to the number of points.
        at = torch.tensor(next(steps), device=numbers.device)
        return (uniform(keys[numbers], at, size, dtype=torch.float64) * num_points).long()

    return next_one


class Minimum(NamedTuple):
    """Result of a minimization, for each problem.

    :param Tensor position: **Shape:** ``(num_problems, size)``.
    :param Tensor value: value of the function there. **Shape:** ``(num_problems,)``.
    :param Tensor gradient_norm: largest absolute value in the gradient there.
        **Shape:** ``(num_problems,)``.
    :param Tensor converged: whether the search ended by itself. **Shape:** ``(num_problems,)``.
    :param Tensor num_steps: steps taken for each problem. **Shape:** ``(num_problems,)``.
    """

    position: Tensor
    value: Tensor
    gradient_norm: Tensor
    converged: Tensor
    num_steps: Tensor


class Minimizer(ABC):
    """Base class of methods that minimize many functions at once."""

    takes_minibatches: bool
    """Whether the function may change from call to call, as losses of minibatches do."""

    @abstractmethod
    def minimize(self, objective: Objective, start: Tensor) -> Minimum:
        """Minimize the function of each problem.

        :param objective: maps positions ``(rows, size)`` and the numbers of their problems
            ``(rows,)`` to values ``(rows,)`` and gradients ``(rows, size)``.
        :param Tensor start: where the search starts. **Shape:** ``(num_problems, size)``.
        :returns: where the search ends. The value of a problem that diverges is infinite.
        """


class BatchLBFGS(Minimizer):
    """Limited-memory BFGS for many problems at once, each with its own line search [1].

    A problem is done when no element of its gradient exceeds the tolerance, or when no step along
    its direction is acceptable, which rounding brings about eventually. A step is acceptable if it
    decreases the value enough or, where rounding hides the decrease, if the slope flattens enough
    [2]. If a step finds no positive curvature, the next one is twice as long. Problems that are
    done cost nothing more.

    :param int max_steps: largest number of steps per problem.
    :param float tolerance: largest element of a gradient that counts as zero.

    [1] J. Nocedal, S. J. Wright (2006), Numerical optimization, algorithm 7.5.

    [2] W. W. Hager, H. Zhang (2005), A new conjugate gradient method with guaranteed descent and an
    efficient line search.

    Example::

        >>> target = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
        >>> def objective(position, rows):
        ...     difference = position - target[rows]
        ...     return difference.square().sum(-1), 2.0 * difference
        >>> found = BatchLBFGS().minimize(objective, torch.zeros(2, 2))
        >>> bool((found.position - target).abs().max() < 1e-4)
        True
    """

    takes_minibatches = False

    def __init__(self, max_steps: int = 500, tolerance: float = 1e-5) -> None:
        self.max_steps = checks.integer("max_steps", max_steps, 1)
        self.tolerance = checks.number("tolerance", tolerance, above=0)

    def __repr__(self) -> str:
        return f"BatchLBFGS({self.max_steps}, {self.tolerance})"

    def minimize(self, objective: Objective, start: Tensor) -> Minimum:
        """Minimize; see :meth:`Minimizer.minimize`."""
        checks.function("objective", objective)
        start = checks.as_tensor("start", start, "(num_searches, size)")
        position = start.clone()
        rows = torch.arange(len(start), device=start.device)
        value, gradient = objective(position, rows)
        value, norm = value.clone(), _norm(gradient)
        is_done = norm <= self.tolerance
        num_steps = torch.zeros_like(rows)
        # What is done drops out: its rows leave the tensors of those that go on.
        rows = rows[~is_done & value.isfinite()]
        gradient = gradient[rows]
        length = gradient.norm(dim=-1).clamp(min=1.0).reciprocal()  # no earlier step sets a scale
        rays = _Rays(position[rows], value[rows], gradient, -gradient, length, rows)
        num_failures = torch.zeros_like(rows)
        history = _History()
        for _ in range(self.max_steps):
            if not len(rays.rows):
                break
            new, is_good = _trial(objective, rays)
            num_failures = torch.where(is_good, 0, num_failures + 1)
            kept = is_good[:, None]
            new = new._replace(
                position=torch.where(kept, new.position, rays.position),
                value=torch.where(is_good, new.value, rays.value),
                gradient=torch.where(kept, new.gradient, rays.gradient),
            )
            history.add(new.position - rays.position, new.gradient - rays.gradient)
            rows = rays.rows
            position[rows], value[rows], norm[rows] = new.position, new.value, _norm(new.gradient)
            num_steps[rows] += 1
            ended = (norm[rows] <= self.tolerance) | (num_failures >= _MOST_FAILURES)
            is_done[rows] = ended
            # Where the step was no good, half of it is tried next, beside the others' next steps.
            direction = _downhill(history.direction(new.gradient), new.gradient)
            rays = _Rays(
                new.position,
                new.value,
                new.gradient,
                torch.where(kept, direction, rays.direction),
                torch.where(is_good, history.length(rays.length), 0.5 * rays.length),
                rows,
            )
            if bool(ended.any()):
                going = ~ended
                rays = _Rays(*(part[going] for part in rays))
                num_failures = num_failures[going]
                history.keep(going)
        value = torch.where(value.isfinite(), value, torch.inf)
        return Minimum(position, value, norm, is_done, num_steps)


class BatchOptimizer(Minimizer):
    """An optimizer of :mod:`torch.optim` that runs on all problems in a single tensor.

    The optimizer must work element by element, as SGD and Adam do, so that problems don't affect
    each other. The functions may change from call to call, as losses of minibatches do.

    :param optimizer: a function that makes the optimizer from a list of tensors.
    :param int num_steps: number of steps.
    :param scheduler: a function that makes a learning-rate scheduler from the optimizer and the
        number of steps.

    Example::

        >>> from functools import partial
        >>> def objective(position, rows):
        ...     return position.square().sum(-1), 2.0 * position
        >>> descent = BatchOptimizer(partial(torch.optim.SGD, lr=0.1), 200)
        >>> bool((descent.minimize(objective, torch.ones(3, 1)).value < 1e-6).all())
        True
    """

    takes_minibatches = True

    def __init__(
        self,
        optimizer: Callable[[list[Tensor]], torch.optim.Optimizer],
        num_steps: int = 1000,
        scheduler: Callable[[torch.optim.Optimizer, int], Any] | None = (
            torch.optim.lr_scheduler.CosineAnnealingLR
        ),
    ) -> None:
        checks.function("optimizer", optimizer, "a function that makes an optimizer of tensors")
        if scheduler is not None:
            checks.function(
                "scheduler", scheduler, "a function of an optimizer and a number of steps"
            )
        self.optimizer = optimizer
        self.num_steps = checks.integer("num_steps", num_steps, 1)
        self.scheduler = scheduler

    def __repr__(self) -> str:
        return f"BatchOptimizer({self.optimizer!r}, {self.num_steps}, {self.scheduler!r})"

    def minimize(self, objective: Objective, start: Tensor) -> Minimum:
        """Take all steps; see :meth:`Minimizer.minimize`.

        Every problem that stays finite counts as converged. The value is the one at the last
        position; with minibatches, it is computed on a fresh one.
        """
        checks.function("objective", objective)
        start = checks.as_tensor("start", start, "(num_searches, size)")
        rows = torch.arange(len(start), device=start.device)
        position = start.clone()

        def loss() -> tuple[Tensor, list[Tensor]]:
            value, gradient = objective(position, rows)
            return value, [gradient]

        scheduler = self.scheduler
        trainer = Trainer(
            [position],
            self.optimizer,
            scheduler=None if scheduler is None else lambda made: scheduler(made, self.num_steps),
            independent_rows=True,
        )
        for _ in range(self.num_steps):
            trainer.step(loss)
        position.grad = None
        value, gradient = objective(position, rows)
        finite = value.isfinite() & position.isfinite().all(-1)
        return Minimum(
            position,
            torch.where(finite, value, torch.inf),
            _norm(gradient),
            finite,
            torch.full_like(rows, self.num_steps),
        )


class _Point(NamedTuple):
    position: Tensor
    value: Tensor
    gradient: Tensor


class _Rays(NamedTuple):
    """Starting points and steps of some problems."""

    position: Tensor
    value: Tensor
    gradient: Tensor
    direction: Tensor
    length: Tensor
    rows: Tensor


class _History:
    """Earlier steps and changes of the gradient, and the direction that follows from them."""

    def __init__(self) -> None:
        self.pairs: list[tuple[Tensor, Tensor, Tensor]] = []

    def add(self, step: Tensor, change: Tensor) -> None:
        """Take note of a step; one without positive curvature counts for nothing."""
        product = (step * change).sum(-1)
        least = _CURVATURE * step.norm(dim=-1) * change.norm(dim=-1)
        inverse = torch.where(product > least, product.reciprocal(), 0.0)
        self.pairs = [*self.pairs[1 - _HISTORY_SIZE :], (step, change, inverse)]

    def keep(self, chosen: Tensor) -> None:
        """Drop problems."""
        if not bool(chosen.all()):
            self.pairs = [(s[chosen], y[chosen], r[chosen]) for s, y, r in self.pairs]

    def length(self, last: Tensor) -> Tensor:
        """Return the initial step length: one, or without positive curvature twice the last."""
        return torch.where(self.pairs[-1][2] > 0, 1.0, 2.0 * last)

    def direction(self, gradient: Tensor) -> Tensor:
        """The two loops of [1], where the newest pair with curvature sets the scale."""
        result = gradient
        factors = []
        for step, change, inverse in reversed(self.pairs):
            factor = inverse * (step * result).sum(-1)
            factors.append(factor)
            result = result - factor[:, None] * change
        if self.pairs:
            _, change, inverse = self.pairs[-1]
            scale = 1.0 / (inverse * change.square().sum(-1))
            result = torch.where(inverse > 0, scale, 1.0)[:, None] * result
        for (step, change, inverse), factor in zip(self.pairs, reversed(factors), strict=True):
            result = result + (factor - inverse * (change * result).sum(-1))[:, None] * step
        return -result


def _downhill(direction: Tensor, gradient: Tensor) -> Tensor:
    """A direction that leads down: against the gradient where rounding has spoilt it."""
    is_down = (direction * gradient).sum(-1) < 0
    return torch.where(is_down[:, None], direction, -gradient)


def _trial(objective: Objective, rays: _Rays) -> tuple[_Point, Tensor]:
    """Take a step of each problem, and see whether it is a good one."""
    trial = rays.position + rays.length[:, None] * rays.direction
    new, gradient = objective(trial, rays.rows)
    slope = (rays.direction * rays.gradient).sum(-1)
    is_less = new <= rays.value + _ARMIJO * rays.length * slope
    # Where rounding hides what the value changes by, its slope tells: of [2]. The value may have a
    # finer type than the position that it is computed from.
    coarsest = max(torch.finfo(new.dtype).eps, torch.finfo(trial.dtype).eps)
    resolution = _RESOLUTION * coarsest
    is_level = new <= rays.value + resolution * (1.0 + rays.value.abs())
    is_flatter = (gradient * rays.direction).sum(-1) <= (2.0 * _ARMIJO - 1.0) * slope
    # A comparison with NaN is false, and the step counts as no good.
    is_good = (is_less | (is_level & is_flatter)) & gradient.isfinite().all(-1)
    return _Point(trial, new, gradient), is_good


def _norm(gradient: Tensor) -> Tensor:
    return gradient.abs().amax(-1) if gradient.shape[-1] else gradient.new_zeros(len(gradient))


_MOST_WHITENED = 256


class Center(NamedTuple):
    """A minimum near which others are searched, in coordinates ``z`` of ``position + z @ factor``.

    :param Tensor position: **Shape:** ``(size,)``.
    :param Tensor factor: ``None`` for the plain coordinates. **Shape:** ``(size, size)``.
    """

    position: Tensor
    factor: Tensor | None

    def search(self, optimizer: Minimizer, objective: Objective, number: int) -> Minimum:
        """Search the minima of so many problems from here; gradients are in the coordinates."""
        if self.factor is None:
            return optimizer.minimize(objective, self.position.expand(number, -1))
        center, factor = self.position, self.factor

        def whitened(coordinates: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
            value, gradient = objective(center + coordinates @ factor, rows)
            return value, gradient @ factor.mT

        found = optimizer.minimize(whitened, torch.zeros_like(center).expand(number, -1))
        return found._replace(position=center + found.position @ factor)


def center_of(optimizer: Minimizer, objective: Objective, start: Tensor) -> Center:
    """The minimum of a mean objective, or the start where its search diverges.

    It has coordinates where the optimizer uses curvature and their number is moderate.
    """
    found = optimizer.minimize(objective, start[None])
    position = found.position[0]
    if not bool(found.value.isfinite() & position.isfinite().all()):
        position = start
    if optimizer.takes_minibatches or len(start) > _MOST_WHITENED:
        return Center(position, None)
    return Center(position, factor_at(objective, position))


def factor_at(objective: Objective, center: Tensor) -> Tensor | None:
    """Factor of coordinates in which an objective has unit curvature at a point, up to sign.

    It is ``None`` where there is no finite curvature.
    """
    size = len(center)
    step = torch.finfo(center.dtype).eps ** (1.0 / 3.0) * (1.0 + center.abs())
    rows = torch.zeros(2 * size, dtype=torch.int64, device=center.device)
    curvature = gradient_differences(lambda points: objective(points, rows)[1], center, step)
    if not bool(curvature.isfinite().all() & (curvature != 0).any()):
        return None
    # What a central difference of this step leaves as its relative error.
    resolution = torch.finfo(center.dtype).eps ** (2.0 / 3.0)
    return whitening_factor(curvature, resolution).mT
