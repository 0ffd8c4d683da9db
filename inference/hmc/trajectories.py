r"""Trajectories of Hamiltonian dynamics, one leapfrog step of many chains at a time.

Positions are :math:`q = L z` with a factor :math:`L` of a covariance, and momenta those of
:math:`z`, standard normal: the energy is :math:`U(q) + |p|^2 / 2`, and plain inner products detect
U-turns whatever the mass matrix. Each chain is on a trajectory of its own; a function extends all
of them by a step.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import linear

ValueAndGradient = Callable[[Tensor], tuple[Tensor, Tensor]]

_MAX_ENERGY_CHANGE = 1000.0
_MAX_PATH_STEPS = 1 << 10


class Point(NamedTuple):
    """Point of each chain's phase space.

    :param Tensor position: **Shape:** ``(num_chains, size)``.
    :param Tensor momentum: **Shape:** ``(num_chains, size)``.
    :param Tensor gradient: of the potential. **Shape:** ``(num_chains, size)``.
    """

    position: Tensor
    momentum: Tensor
    gradient: Tensor


class Outcome(NamedTuple):
    """Outcome of a trajectory: the next draw and statistics.

    :param Tensor position: the next draw. **Shape:** ``(num_chains, size)``.
    :param Tensor gradient: of the potential there. **Shape:** ``(num_chains, size)``.
    :param Tensor value: the potential there. **Shape:** ``(num_chains,)``, as those below.
    :param Tensor energy: of the draw with its momentum.
    :param Tensor acceptance_rate: mean probability of its points to be taken for the first one.
    :param Tensor symmetric_rate: the same, of a ratio and its inverse alike: as large on average,
        and less where energies fall on the way to where the posterior is.
    :param Tensor num_steps: number of leapfrog steps.
    :param Tensor tree_depth: number of doublings.
    :param Tensor diverging: whether the energy went off.
    :param Tensor step_size: of its leapfrog steps.
    """

    position: Tensor
    gradient: Tensor
    value: Tensor
    energy: Tensor
    acceptance_rate: Tensor
    symmetric_rate: Tensor
    num_steps: Tensor
    tree_depth: Tensor
    diverging: Tensor
    step_size: Tensor


def where(condition: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """Choose by chain. Shapes: condition (num_chains,); the others (num_chains, ...)."""
    for _ in range(first.dim() - 1):
        condition = condition.unsqueeze(-1)
    return torch.where(condition, first, second)


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


class Path(NamedTuple):
    """A trajectory of a given number of steps, and where it is.

    :param Tensor position: the point reached. **Shape:** ``(num_chains, size)``.
    :param Tensor momentum: there.
    :param Tensor gradient: there.
    :param Tensor origin: where it began.
    :param Tensor origin_gradient: there.
    :param Tensor origin_value: the potential there. **Shape:** ``(num_chains,)``, as those below.
    :param Tensor origin_energy: the energy there.
    :param Tensor leaf: number of steps taken.
    :param Tensor length: number of steps to take.
    """

    position: Tensor
    momentum: Tensor
    gradient: Tensor
    origin: Tensor
    origin_gradient: Tensor
    origin_value: Tensor
    origin_energy: Tensor
    leaf: Tensor
    length: Tensor


def start_path(position: Tensor, value: Tensor, gradient: Tensor, momentum: Tensor) -> Path:
    """Begin a trajectory of each chain."""
    energy = value + 0.5 * momentum.square().sum(-1)
    none = torch.zeros_like(value, dtype=torch.int64)
    return Path(position, momentum, gradient, position, gradient, value, energy, none, none)


def extend_path(
    path: Path,
    function: ValueAndGradient,
    uniforms: Tensor,
    step_size: Tensor,
    factor: Tensor,
    trajectory_length: float | None,
    num_leapfrog_steps: int | None,
) -> tuple[Path, Tensor, Outcome]:
    """Take a step of each trajectory; returns also which have ended, and what these lead to.

    Trajectories are of a number of steps, or of a length that varies at random by a fifth, since
    ones of a period would lead nowhere. Shapes: uniforms (num_chains, 4).
    """
    if num_leapfrog_steps is None:
        assert trajectory_length is not None
        jittered = trajectory_length * (0.8 + 0.4 * uniforms[:, 1])
        number = (jittered / step_size).ceil().clamp(1, _MAX_PATH_STEPS).to(torch.int64)
    else:
        number = torch.full_like(path.leaf, num_leapfrog_steps)
    length = torch.where(path.leaf == 0, number, path.length)
    point, value, energy = leapfrog(Point(*path[:3]), function, step_size, factor)
    change = _energy_change(energy, path.origin_energy)
    diverging = change > _MAX_ENERGY_CHANGE
    leaf = path.leaf + 1
    is_taken = ~diverging & (uniforms[:, 0].log() < -change)
    rate, symmetric = (torch.where(diverging, 0.0, each) for each in _acceptance(change))
    outcome = Outcome(
        where(is_taken, point.position, path.origin),
        where(is_taken, point.gradient, path.origin_gradient),
        where(is_taken, value, path.origin_value),
        where(is_taken, energy, path.origin_energy),
        rate,
        symmetric,
        leaf,
        torch.zeros_like(leaf),
        diverging,
        step_size,
    )
    path = path._replace(**point._asdict(), leaf=leaf, length=length)
    return path, diverging | (leaf >= length), outcome


class Tree(NamedTuple):
    """A trajectory that doubles, forward or backward in time, until it turns.

    The new half is built leaf by leaf. Momenta of ``log2`` of its leaves are kept, those from which
    a balanced subtree ends at the current leaf [1], so that each subtree's ends are compared, and
    those of the leaves before these.

    :param Tensor position: the last leaf's. **Shape:** ``(num_chains, size)``, as of the ends, the
        draw, the candidate and the sums of momenta.
    :param Tensor origin_energy: energy at the start. **Shape:** ``(num_chains,)``, as log weights,
        depth, number of the leaf in the new half, and what is counted.
    :param Tensor checkpoint_momenta: **Shape:** ``(num_chains, max_tree_depth, size)``.

    [1] D. Phan, N. Pradhan, M. Jankowiak (2019), Composable effects for flexible and accelerated
    probabilistic programming in NumPyro, section 3.1.
    """

    position: Tensor
    momentum: Tensor
    gradient: Tensor
    left_position: Tensor
    left_momentum: Tensor
    left_gradient: Tensor
    right_position: Tensor
    right_momentum: Tensor
    right_gradient: Tensor
    draw: Tensor
    draw_gradient: Tensor
    draw_value: Tensor
    draw_energy: Tensor
    candidate: Tensor
    candidate_gradient: Tensor
    candidate_value: Tensor
    candidate_energy: Tensor
    momentum_sum: Tensor
    half_momentum_sum: Tensor
    checkpoint_momenta: Tensor
    checkpoint_sums: Tensor
    checkpoint_before: Tensor
    origin_energy: Tensor
    log_weight: Tensor
    half_log_weight: Tensor
    sum_acceptance: Tensor
    sum_symmetric: Tensor
    direction: Tensor
    depth: Tensor
    leaf: Tensor
    num_steps: Tensor


def start_tree(
    position: Tensor, value: Tensor, gradient: Tensor, momentum: Tensor, max_tree_depth: int
) -> Tree:
    """Begin a tree of each chain at its only point."""
    energy = value + 0.5 * momentum.square().sum(-1)
    zero, none = torch.zeros_like(value), torch.zeros_like(value, dtype=torch.int64)
    point = (position, momentum, gradient)
    draw = (position, gradient, value, energy)
    checkpoints = position.new_zeros(len(position), max_tree_depth, position.shape[-1])
    sums = (momentum, torch.zeros_like(momentum), checkpoints, checkpoints, checkpoints)
    counts = (energy, zero, zero, zero, zero, none, none, none, none)
    return Tree(*point, *point, *point, *draw, *draw, *sums, *counts)


def extend_tree(
    tree: Tree,
    function: ValueAndGradient,
    uniforms: Tensor,
    step_size: Tensor,
    factor: Tensor,
    max_tree_depth: int,
) -> tuple[Tree, Tensor, Outcome]:
    """Add a leaf to each tree; returns also which have ended, and what these lead to.

    Multinomial sampling within the new half, biased between the halves, and generalized criterion
    of turning, as in M. Betancourt (2017), A conceptual introduction to Hamiltonian Monte Carlo,
    sections A.3 and A.4. The criterion is asked of each half with the nearest point of the other,
    too, as in Stan since 2.21: a trajectory of a whole period ends where it began, and of its
    ends alone nobody could tell that it turned twice. Shapes: uniforms (num_chains, 4).
    """
    # The first leaf of a half says where it goes on.
    is_first = tree.leaf == 0
    direction = torch.where(is_first, (uniforms[:, 1] < 0.5).to(torch.int64), tree.direction)
    forward = direction == 1
    front = Point(
        *(
            where(is_first, where(forward, right, left), last)
            for last, left, right in zip(tree[:3], tree[3:6], tree[6:9], strict=True)
        )
    )
    signed = torch.where(forward, step_size, -step_size)
    point, value, energy = leapfrog(front, function, signed, factor)
    change = _energy_change(energy, tree.origin_energy)
    diverging = change > _MAX_ENERGY_CHANGE

    # Multinomial choice among the leaves of the new half.
    half_log_weight = torch.where(is_first, -change, torch.logaddexp(tree.half_log_weight, -change))
    is_chosen = is_first | (uniforms[:, 0].log() < -change - half_log_weight)
    candidate, candidate_gradient, candidate_value, candidate_energy = (
        where(is_chosen, new, old)
        for new, old in zip(
            (point.position, point.gradient, value, energy), tree[13:17], strict=True
        )
    )

    # Does a subtree that ends here turn?
    half_sum = where(is_first, torch.zeros_like(point.momentum), tree.half_momentum_sum)
    half_sum = half_sum + point.momentum
    bits = torch.arange(max_tree_depth, device=value.device)
    last = (((tree.leaf >> 1)[:, None] >> bits) & 1).sum(-1)
    following = tree.leaf + 1
    num_ending = ((following & -following)[:, None] > (1 << bits)).sum(-1)
    is_kept = (((tree.leaf & 1) == 0)[:, None] & (bits == last[:, None]))[..., None]
    momenta = torch.where(is_kept, point.momentum[:, None], tree.checkpoint_momenta)
    sums = torch.where(is_kept, half_sum[:, None], tree.checkpoint_sums)
    befores = torch.where(is_kept, front.momentum[:, None], tree.checkpoint_before)
    is_ending = (bits <= last[:, None]) & (bits > (last - num_ending)[:, None])
    momentum = point.momentum[:, None]
    spans = half_sum[:, None] - sums + momenta
    is_turning = is_ending & _turns(momenta, momentum, spans)
    # Its second half begins at the next kept leaf.
    middle, middle_spans, before = momenta[:, 1:], spans[:, 1:], befores[:, 1:]
    has_halves = is_ending[:, :-1] & (bits[:-1] < last[:, None])
    first_spans = spans[:, :-1] - middle_spans + middle
    is_turning_halfway = has_halves & (
        _turns(momenta[:, :-1], middle, first_spans)
        | _turns(before, momentum, middle_spans + before)
    )
    turning = is_turning.any(-1) | is_turning_halfway.any(-1)

    # Is the half complete, and does the whole go on?
    is_complete = following == (1 << tree.depth)
    has_ended = turning | diverging
    is_valid = is_complete & ~has_ended
    is_moved = is_valid & (uniforms[:, 2].log() < half_log_weight - tree.log_weight)
    new = (candidate, candidate_gradient, candidate_value, candidate_energy)
    draw = [where(is_moved, n, old) for n, old in zip(new, tree[9:13], strict=True)]
    left = [where(is_valid & ~forward, n, o) for n, o in zip(point, tree[3:6], strict=True)]
    right = [where(is_valid & forward, n, o) for n, o in zip(point, tree[6:9], strict=True)]
    left_end, right_end = tree.left_momentum, tree.right_momentum
    momentum_sum = where(is_valid, tree.momentum_sum + half_sum, tree.momentum_sum)
    depth = tree.depth + is_valid
    near, far = (where(forward, *ends) for ends in ((right_end, left_end), (left_end, right_end)))
    has_ended = has_ended | (
        is_valid
        & (
            (depth == max_tree_depth)
            | _turns(left[1], right[1], momentum_sum)
            | _turns(far, momenta[:, 0], tree.momentum_sum + momenta[:, 0])
            | _turns(near, point.momentum, half_sum + near)
        )
    )
    num_steps = tree.num_steps + 1
    rate, symmetric = _acceptance(change)
    sum_acceptance = tree.sum_acceptance + rate
    sum_symmetric = tree.sum_symmetric + torch.where(diverging, 0.0, symmetric)
    extended = Tree._make(
        (
            *point,
            *left,
            *right,
            *draw,
            *new,
            momentum_sum,
            half_sum,
            momenta,
            sums,
            befores,
            tree.origin_energy.clone(),  # a compiled loop wants none that is the one before
            torch.where(
                is_valid, torch.logaddexp(tree.log_weight, half_log_weight), tree.log_weight
            ),
            half_log_weight,
            sum_acceptance,
            sum_symmetric,
            direction,
            depth,
            torch.where(is_complete, 0, following),
            num_steps,
        )
    )
    rates = (sum_acceptance / num_steps, sum_symmetric / num_steps)
    outcome = Outcome._make((*draw, *rates, num_steps, depth, diverging, step_size))
    return extended, has_ended, outcome


def _turns(first: Tensor, last: Tensor, total: Tensor) -> Tensor:
    """Tell whether a trajectory turns, by the momenta at its ends and their sum over its points."""
    # Half of each end, as in the trapezoid rule of the integral of the momentum.
    span = total - 0.5 * (first + last)
    return ((first * span).sum(-1) <= 0) | ((last * span).sum(-1) <= 0)
