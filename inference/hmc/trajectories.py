r"""Trajectories of Hamiltonian dynamics, one leapfrog step of many chains at a time.

Positions are :math:`q = L z` with a factor :math:`L` of a covariance, and momenta those of
:math:`z`, standard normal: the energy is :math:`U(q) + |p|^2 / 2`, and plain inner products detect
U-turns whatever the mass matrix. Each chain is on a trajectory of its own; a function extends all
of them by a step.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias, TypeVar, cast

import torch
from torch import Tensor
from torch.nn.functional import linear

ValueAndGradient = Callable[[Tensor], tuple[Tensor, Tensor]]
Chosen = TypeVar("Chosen")

_MAX_ENERGY_CHANGE = 1000.0
_MAX_PATH_STEPS = 1 << 10
_LEAST_NORM = 1e-30


class Point(NamedTuple):
    """Point of each chain's phase space.

    :param Tensor position: **Shape:** ``(num_chains, size)``.
    :param Tensor momentum: **Shape:** ``(num_chains, size)``.
    :param Tensor gradient: of the potential. **Shape:** ``(num_chains, size)``.
    """

    position: Tensor
    momentum: Tensor
    gradient: Tensor


class Draw(NamedTuple):
    """Point that a trajectory may lead to, of each chain.

    :param Tensor position: **Shape:** ``(num_chains, size)``.
    :param Tensor gradient: of the potential there. **Shape:** ``(num_chains, size)``.
    :param Tensor value: the potential there. **Shape:** ``(num_chains,)``.
    :param Tensor energy: with its momentum. **Shape:** ``(num_chains,)``.
    """

    position: Tensor
    gradient: Tensor
    value: Tensor
    energy: Tensor


class Settings(NamedTuple):
    """Step size, mass matrix and mean length of a trajectory.

    :param Tensor step_size: of leapfrog steps. **Shape:** ``(num_chains,)``.
    :param Tensor factor: of the inverse mass matrices, as for :func:`scaled`.
    :param Tensor mean_steps: mean number of steps, where chains have one each. **Shape:**
        ``(num_chains,)``.
    """

    step_size: Tensor
    factor: Tensor
    mean_steps: Tensor


class Outcome(NamedTuple):
    """Outcome of a trajectory: the next draw and statistics.

    :param Tensor position: the next draw. **Shape:** ``(num_chains, size)``.
    :param Tensor gradient: of the potential there. **Shape:** ``(num_chains, size)``.
    :param Tensor value: the potential there. **Shape:** ``(num_chains,)``, as those below.
    :param Tensor energy: of the draw with its momentum.
    :param Tensor acceptance_rate: mean probability of its points to be taken for the first one.
    :param Tensor num_steps: number of leapfrog steps.
    :param Tensor tree_depth: number of doublings.
    :param Tensor diverging: whether the energy error exceeded 1,000.
    :param Tensor step_size: of its leapfrog steps.
    """

    position: Tensor
    gradient: Tensor
    value: Tensor
    energy: Tensor
    acceptance_rate: Tensor
    num_steps: Tensor
    tree_depth: Tensor
    diverging: Tensor
    step_size: Tensor


def where(condition: Tensor, first: Chosen, second: Chosen) -> Chosen:
    """Choose by chain among tensors ``(num_chains, ...)``, or named tuples of such."""
    one, other = cast("Any", first), cast("Any", second)
    if isinstance(first, tuple):
        parts = (where(condition, *pair) for pair in zip(one, other, strict=True))
        return cast("Chosen", type(one)(*parts))
    for _ in range(one.dim() - 1):
        condition = condition.unsqueeze(-1)
    return cast("Chosen", torch.where(condition, one, other))


_MOST_SUMMED = 32  # rows of matrices whose products are compiled with what is around them


def scaled(factor: Tensor, vector: Tensor) -> Tensor:
    """Apply the factor of a covariance.

    Shapes: factor (num_chains or 1, size), a diagonal, or (num_chains or 1, size, size).
    """
    if factor.dim() == 2:
        return factor * vector
    if factor.shape[-1] <= _MOST_SUMMED:
        return (factor * vector[:, None, :]).sum(-1)
    if len(factor) == 1:
        return linear(vector, factor[0])
    return torch.bmm(factor, vector[..., None])[..., 0]


def _scaled_back(factor: Tensor, vector: Tensor) -> Tensor:
    """Apply the transposed factor."""
    return scaled(factor if factor.dim() == 2 else factor.mT, vector)


def unscaled(factor: Tensor, vector: Tensor) -> Tensor:
    """Apply the inverse of a factor that all chains share.

    Shapes: factor (1, size) or (1, size, size); vector (num_chains, size).
    """
    if factor.dim() == 2:
        return vector / factor
    solved: Tensor = torch.linalg.solve(factor[0], vector.mT)
    return solved.mT


def leapfrog(
    point: Point, function: ValueAndGradient, step_size: Tensor, factor: Tensor
) -> tuple[Point, Tensor, Tensor]:
    """Take a leapfrog step of each chain; returns the point, its potential and its energy."""
    size = step_size[:, None]
    momentum = point.momentum - 0.5 * size * _scaled_back(factor, point.gradient)
    position = point.position + size * scaled(factor, momentum)
    value, gradient = function(position)
    momentum = momentum - 0.5 * size * _scaled_back(factor, gradient)
    energy = value + 0.5 * momentum.square().sum(-1)
    return Point(position, momentum, gradient), value, energy


def _energy_change(energy: Tensor, first: Tensor) -> Tensor:
    """Energy above that of the first point; infinite where it is not a number."""
    change = energy - first
    return torch.where(change.isnan(), torch.inf, change)


def _acceptance(change: Tensor) -> tuple[Tensor, Tensor]:
    """Probability to take a point for the first one, and its symmetric form."""
    rate = (-change).clamp(max=0.0).exp()
    return rate, 2.0 * rate / (1.0 + (-change).clamp(max=50.0).exp())


Extended: TypeAlias = tuple[Any, Tensor, Outcome, Tensor]
"""Trajectories by a step further, which of them have ended, what these lead to, and the symmetric
acceptance rate: of a ratio and its inverse alike, as large on average as the other one, and less
where energies fall on the way to where the posterior is."""


def end_of_path(
    origin: Draw, reached: Draw, choice: Tensor, num_steps: Tensor, step_size: Tensor
) -> tuple[Outcome, Tensor]:
    """Take the end of each trajectory or its origin, by the error of the energy.

    Returns also the symmetric acceptance rate. Shapes: choice (num_chains,), uniform numbers.
    """
    change = _energy_change(reached.energy, origin.energy)
    diverging = change > _MAX_ENERGY_CHANGE
    draw = where(~diverging & (choice.log() < -change), reached, origin)
    rate, symmetric = (torch.where(diverging, 0.0, each) for each in _acceptance(change))
    depth = torch.zeros_like(num_steps)
    return Outcome(*draw, rate, num_steps, depth, diverging, step_size), symmetric


class Path(NamedTuple):
    """A trajectory of a given number of steps, and where it is.

    :param Point point: the point reached.
    :param Draw origin: where it began.
    :param Tensor leaf: number of steps taken. **Shape:** ``(num_chains,)``.
    :param Tensor length: number of steps to take. **Shape:** ``(num_chains,)``.
    """

    point: Point
    origin: Draw
    leaf: Tensor
    length: Tensor


@dataclass(frozen=True)
class Paths:
    """Trajectories of a number of steps, or of a length.

    Lengths vary at random by a fifth, since trajectories of a period would lead nowhere.

    :param float length: in units of the masses, for trajectories of no given number of steps.
    :param int num_steps: leapfrog steps of a trajectory.
    """

    length: float | None
    num_steps: int | None

    def start(self, position: Tensor, value: Tensor, gradient: Tensor, momentum: Tensor) -> Path:
        """Begin a trajectory of each chain."""
        energy = value + 0.5 * momentum.square().sum(-1)
        none = torch.zeros_like(value, dtype=torch.int64)
        point, origin = Point(position, momentum, gradient), Draw(position, gradient, value, energy)
        return Path(point, origin, none, none)

    def extend(
        self,
        path: Path,
        function: ValueAndGradient,
        uniforms: Tensor,
        settings: Settings,
    ) -> Extended:
        """Take a step of each trajectory. Shapes: uniforms (num_chains, 4)."""
        if self.num_steps is None:
            assert self.length is not None
            jittered = self.length * (0.8 + 0.4 * uniforms[:, 1])
            number = (
                (jittered / settings.step_size).ceil().clamp(1, _MAX_PATH_STEPS).to(torch.int64)
            )
        else:
            number = torch.full_like(path.leaf, self.num_steps)
        length = torch.where(path.leaf == 0, number, path.length)
        step_size = settings.step_size
        point, value, energy = leapfrog(path.point, function, step_size, settings.factor)
        reached, leaf = Draw(point.position, point.gradient, value, energy), path.leaf + 1
        outcome, symmetric = end_of_path(path.origin, reached, uniforms[:, 0], leaf, step_size)
        path = path._replace(point=point, leaf=leaf, length=length)
        return path, outcome.diverging | (leaf >= length), outcome, symmetric


class Checkpoints(NamedTuple):
    """Leaves at which balanced subtrees begin.

    :param Tensor momenta: of these leaves. **Shape:** ``(num_chains, max_tree_depth, size)``.
    :param Tensor sums: of the momenta of the new half up to them.
    :param Tensor before: momenta of the leaves before them.
    """

    momenta: Tensor
    sums: Tensor
    before: Tensor


class Tree(NamedTuple):
    """A trajectory that doubles, forward or backward in time, until it turns.

    The new half is built leaf by leaf. Momenta of ``log2`` of its leaves are kept, those from which
    a balanced subtree ends at the current leaf [1], so that each subtree's ends are compared, and
    those of the leaves before these.

    :param Point last: the last leaf.
    :param Point left: the end in the past.
    :param Point right: the end in the future.
    :param Draw draw: where it leads to if it ends now.
    :param Draw candidate: what the new half has chosen.
    :param Tensor momentum_sum: over its points. **Shape:** ``(num_chains, size)``.
    :param Tensor half_momentum_sum: over those of the new half. **Shape:** ``(num_chains, size)``.
    :param Checkpoints checkpoints: the leaves that are kept.
    :param Tensor origin_energy: energy at the start. **Shape:** ``(num_chains,)``, as log weights,
        depth, number of the leaf in the new half, and what is counted.

    [1] D. Phan, N. Pradhan, M. Jankowiak (2019), Composable effects for flexible and accelerated
    probabilistic programming in NumPyro, section 3.1.
    """

    last: Point
    left: Point
    right: Point
    draw: Draw
    candidate: Draw
    momentum_sum: Tensor
    half_momentum_sum: Tensor
    checkpoints: Checkpoints
    origin_energy: Tensor
    log_weight: Tensor
    half_log_weight: Tensor
    sum_acceptance: Tensor
    sum_symmetric: Tensor
    direction: Tensor
    depth: Tensor
    leaf: Tensor
    num_steps: Tensor


@dataclass(frozen=True)
class Trees:
    """Trajectories that double until they turn.

    Multinomial sampling within the new half, biased between the halves, and generalized criterion
    of turning, as in M. Betancourt (2017), A conceptual introduction to Hamiltonian Monte Carlo,
    sections A.3 and A.4. As in Stan since 2.21, the criterion is also applied to each half together
    with the nearest point of the other: after a whole period a trajectory is back where it began,
    and its ends alone would not show that it has turned. A new half that is known to turn is not
    built any further, since none of its points will be taken.

    :param int max_depth: largest number of doublings.
    """

    max_depth: int

    def start(self, position: Tensor, value: Tensor, gradient: Tensor, momentum: Tensor) -> Tree:
        """Begin a tree of each chain at its only point."""
        energy = value + 0.5 * momentum.square().sum(-1)
        zero, none = torch.zeros_like(value), torch.zeros_like(value, dtype=torch.int64)
        point, draw = Point(position, momentum, gradient), Draw(position, gradient, value, energy)
        unkept = position.new_zeros(len(position), self.max_depth, position.shape[-1])
        sums = (momentum, torch.zeros_like(momentum), Checkpoints(unkept, unkept, unkept))
        counts = (energy, zero, zero, zero, zero, none, none, none, none)
        return Tree(point, point, point, draw, draw, *sums, *counts)

    def extend(
        self,
        tree: Tree,
        function: ValueAndGradient,
        uniforms: Tensor,
        settings: Settings,
    ) -> Extended:
        """Add a leaf to each tree. Shapes: uniforms (num_chains, 4)."""
        # The first leaf of a half says where it goes on.
        is_first = tree.leaf == 0
        direction = torch.where(is_first, (uniforms[:, 1] < 0.5).to(torch.int64), tree.direction)
        forward = direction == 1
        near = where(forward, tree.right, tree.left)
        far_momentum = where(forward, tree.left.momentum, tree.right.momentum)
        front = where(is_first, near, tree.last)
        signed = torch.where(forward, settings.step_size, -settings.step_size)
        point, value, energy = leapfrog(front, function, signed, settings.factor)
        change = _energy_change(energy, tree.origin_energy)
        diverging = change > _MAX_ENERGY_CHANGE

        # Multinomial choice among the leaves of the new half.
        half_log_weight = torch.where(
            is_first, -change, torch.logaddexp(tree.half_log_weight, -change)
        )
        is_chosen = is_first | (uniforms[:, 0].log() < -change - half_log_weight)
        reached = Draw(point.position, point.gradient, value, energy)
        candidate = where(is_chosen, reached, tree.candidate)

        # Does a subtree turn that ends here, or a first half with the leaf that begins a second?
        half_sum = where(is_first, torch.zeros_like(point.momentum), tree.half_momentum_sum)
        half_sum = half_sum + point.momentum
        bits = torch.arange(self.max_depth, device=value.device)
        last = (((tree.leaf >> 1)[:, None] >> bits) & 1).sum(-1)
        following = tree.leaf + 1
        num_ending = ((following & -following)[:, None] > (1 << bits)).sum(-1)
        is_even = ((tree.leaf & 1) == 0)[:, None]
        is_kept = (is_even & (bits == last[:, None]))[..., None]
        leaf = (point.momentum, half_sum, front.momentum)
        checkpoints = Checkpoints(
            *(
                torch.where(is_kept, new[:, None], old)
                for new, old in zip(leaf, tree.checkpoints, strict=True)
            )
        )
        momenta = checkpoints.momenta
        is_ending = (bits <= last[:, None]) & (bits > (last - num_ending)[:, None])
        momentum = point.momentum[:, None]
        spans = half_sum[:, None] - checkpoints.sums + momenta
        is_compared = is_ending | (is_even & (bits == last[:, None] - 1))
        is_turning = is_compared & _turns(momenta, momentum, spans)
        # The second half of a subtree begins at the next kept leaf.
        before, second_spans = checkpoints.before[:, 1:], spans[:, 1:]
        has_halves = is_ending[:, :-1] & (bits[:-1] < last[:, None])
        is_turning_halfway = has_halves & _turns(before, momentum, second_spans + before)
        turning = is_turning.any(-1) | is_turning_halfway.any(-1)

        # Is the half complete, and does the whole go on?
        is_complete = following == (1 << tree.depth)
        has_ended = turning | diverging
        is_valid = is_complete & ~has_ended
        is_moved = is_valid & (uniforms[:, 2].log() < half_log_weight - tree.log_weight)
        draw = where(is_moved, candidate, tree.draw)
        left = where(is_valid & ~forward, point, tree.left)
        right = where(is_valid & forward, point, tree.right)
        momentum_sum = where(is_valid, tree.momentum_sum + half_sum, tree.momentum_sum)
        depth = tree.depth + is_valid
        has_ended = has_ended | (
            is_valid
            & (
                (depth == self.max_depth)
                | _turns(left.momentum, right.momentum, momentum_sum)
                | _turns(far_momentum, momenta[:, 0], tree.momentum_sum + momenta[:, 0])
                | _turns(near.momentum, point.momentum, half_sum + near.momentum)
            )
        )
        num_steps = tree.num_steps + 1
        rate, symmetric = _acceptance(change)
        sum_acceptance = tree.sum_acceptance + rate
        sum_symmetric = tree.sum_symmetric + torch.where(diverging, 0.0, symmetric)
        log_weight = torch.logaddexp(tree.log_weight, half_log_weight)
        extended = Tree(
            point,
            left,
            right,
            draw,
            candidate,
            momentum_sum,
            half_sum,
            checkpoints,
            tree.origin_energy,
            torch.where(is_valid, log_weight, tree.log_weight),
            half_log_weight,
            sum_acceptance,
            sum_symmetric,
            direction,
            depth,
            torch.where(is_complete, 0, following),
            num_steps,
        )
        rate = sum_acceptance / num_steps
        outcome = Outcome(*draw, rate, num_steps, depth, diverging, settings.step_size)
        return extended, has_ended, outcome, sum_symmetric / num_steps


def _turns(first: Tensor, last: Tensor, total: Tensor) -> Tensor:
    """Tell whether a trajectory turns, by the momenta at its ends and their sum over its points."""
    # Half of each end, as in the trapezoid rule of the integral of the momentum.
    span = total - 0.5 * (first + last)
    return ((first * span).sum(-1) <= 0) | ((last * span).sum(-1) <= 0)


# Microcanonical dynamics -------------------------------------------------------------------------


def kick(direction: Tensor, slope: Tensor, step_size: Tensor) -> tuple[Tensor, Tensor]:
    r"""Turn unit vectors toward the gradient of the log density.

    .. math:: \frac{du}{dt} = \frac{(I - u u^T) g}{d - 1}

    :param Tensor direction: :math:`u`. **Shape:** ``(num_chains, size)``, at least two wide.
    :param Tensor slope: :math:`g`. **Shape:** ``(num_chains, size)``.
    :param Tensor step_size: **Shape:** ``(num_chains,)``.
    :returns: the directions, and how much the kinetic energy :math:`(d - 1) \log |p|` changed,
        ``(num_chains,)``.

    Example::

        >>> turned, change = kick(
        ...     torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 5.0]]), torch.ones(1))
        >>> [round(each, 3) for each in turned[0].tolist()], round(float(change), 3)
        ([0.013, 1.0], 4.307)
    """
    norm = slope.norm(dim=-1)
    toward = slope / norm.clamp(min=_LEAST_NORM)[:, None]
    strength = (step_size * norm / (slope.shape[-1] - 1))[:, None]
    shrinkage = (-strength).exp()
    # One plus the cosine, without cancellation where they are opposite.
    nearness = 0.5 * (direction + toward).square().sum(-1, keepdim=True)
    along = (1.0 - shrinkage) * (2.0 * shrinkage + nearness * (1.0 - shrinkage))
    turned = along * toward + 2.0 * shrinkage * direction
    turned = turned / turned.norm(dim=-1, keepdim=True)
    growth = nearness + (2.0 - nearness) * shrinkage.square()
    change = (slope.shape[-1] - 1) * (strength - math.log(2.0) + growth.log())[:, 0]
    return turned, change


def steered(
    point: Point, function: ValueAndGradient, step_size: Tensor, factor: Tensor
) -> tuple[Point, Tensor, Tensor]:
    """Take a leapfrog step at constant speed of each chain.

    :param Point point: where chains are, with unit vectors as momenta.
    :param Tensor step_size: of each coordinate, in units of the masses. **Shape:**
        ``(num_chains,)``.
    :param Tensor factor: of the inverse mass matrices.
    :returns: where they are then, the potential there, and the change of the kinetic energy.
    """
    size = step_size * math.sqrt(point.position.shape[-1])
    direction, first = kick(point.momentum, -_scaled_back(factor, point.gradient), 0.5 * size)
    position = point.position + size[:, None] * scaled(factor, direction)
    value, gradient = function(position)
    direction, second = kick(direction, -_scaled_back(factor, gradient), 0.5 * size)
    return Point(position, direction, gradient), value, first + second


class MicrocanonicalPath(NamedTuple):
    """A trajectory at constant speed of each chain, and where it is.

    :param Point point: the point reached, its momentum a unit vector.
    :param Tensor kinetic: growth of the kinetic energy since it began. **Shape:**
        ``(num_chains,)``, as of the numbers of steps.
    :param Draw origin: where it began.
    :param Tensor leaf: number of steps taken.
    :param Tensor length: number of steps to take.
    """

    point: Point
    kinetic: Tensor
    origin: Draw
    leaf: Tensor
    length: Tensor


class MicrocanonicalPaths:
    """Trajectories at constant speed, of numbers of steps that are uniform with a given mean.

    Step sizes are of each coordinate, in the units of the masses: a unit vector moves one by the
    root of the dimension less.
    """

    def start(
        self, position: Tensor, value: Tensor, gradient: Tensor, momentum: Tensor
    ) -> MicrocanonicalPath:
        """Begin a trajectory of each chain, in the directions of normal momenta."""
        direction = momentum / momentum.norm(dim=-1, keepdim=True)
        none = torch.zeros_like(value, dtype=torch.int64)
        point, origin = Point(position, direction, gradient), Draw(position, gradient, value, value)
        return MicrocanonicalPath(point, torch.zeros_like(value), origin, none, none)

    def extend(
        self,
        path: MicrocanonicalPath,
        function: ValueAndGradient,
        uniforms: Tensor,
        settings: Settings,
    ) -> Extended:
        """Take a leapfrog step of each trajectory. Shapes: uniforms (num_chains, 4)."""
        step_size, factor, mean = settings
        number = (uniforms[:, 1] * (2.0 * mean - 1.0)).ceil().clamp(1, _MAX_PATH_STEPS)
        length = torch.where(path.leaf == 0, number.to(torch.int64), path.length)
        point, value, change = steered(path.point, function, step_size, factor)
        kinetic, leaf = path.kinetic + change, path.leaf + 1
        reached = Draw(point.position, point.gradient, value, value + kinetic)
        outcome, symmetric = end_of_path(path.origin, reached, uniforms[:, 0], leaf, step_size)
        extended = MicrocanonicalPath(point, kinetic, path.origin, leaf, length)
        return extended, outcome.diverging | (leaf >= length), outcome, symmetric


Trajectories: TypeAlias = Paths | Trees | MicrocanonicalPaths
