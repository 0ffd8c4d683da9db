"""Adaptation in the warm-up: step sizes by dual averaging, mass matrices in windows."""

from typing import NamedTuple

import torch
from torch import Tensor

from pyro_ext.inference.hmc.trajectories import where

__all__ = [
    "DualAveraging",
    "Moments",
    "add_draw",
    "averaged",
    "estimated_factor",
    "new_moments",
    "restarted",
    "updated",
    "window_edges",
]

_SHRINKAGE, _DELAY, _FORGETTING = 0.05, 10.0, 0.75


class DualAveraging(NamedTuple):
    """Search of each chain for the step size that has a given acceptance rate [1].

    :param Tensor log_step: of the next transition. **Shape:** ``(num_chains,)``, as all.
    :param Tensor log_average: weighted mean of these, which is taken in the end.
    :param Tensor error: running mean of how much acceptance rates fell short.
    :param Tensor num_updates: number of transitions.
    :param Tensor center: what log step sizes are shrunk to.

    [1] M. D. Hoffman, A. Gelman (2014), The No-U-Turn Sampler, section 3.2.
    """

    log_step: Tensor
    log_average: Tensor
    error: Tensor
    num_updates: Tensor
    center: Tensor


def restarted(step_size: Tensor) -> DualAveraging:
    """Begin a search. **Shape:** ``(num_chains,)``."""
    log_step, zero = step_size.log(), torch.zeros_like(step_size)
    return DualAveraging(log_step, log_step.clone(), zero, zero.clone(), log_step + 2.302585093)


def updated(search: DualAveraging, acceptance_rate: Tensor, target: float) -> DualAveraging:
    """Go on by a transition."""
    number = search.num_updates + 1.0
    new = 1.0 / (number + _DELAY)
    error = (1.0 - new) * search.error + new * (target - acceptance_rate)
    log_step = search.center - number.sqrt() / _SHRINKAGE * error
    weight = number.pow(-_FORGETTING)
    log_average = weight * log_step + (1.0 - weight) * search.log_average
    return DualAveraging(log_step, log_average, error, number, search.center.clone())


def averaged(search: DualAveraging) -> DualAveraging:
    """End a search: the mean is the step size from now on."""
    return search._replace(log_step=search.log_average)


class Moments(NamedTuple):
    """Mean and squares of draws so far.

    :param Tensor number: of draws. **Shape:** ``(num_chains,)``.
    :param Tensor mean: **Shape:** ``(num_chains, size)``.
    :param Tensor squares: sums of squares about the mean, ``(num_chains, size)``, or of products
        ``(num_chains, size, size)``.
    """

    number: Tensor
    mean: Tensor
    squares: Tensor


def new_moments(position: Tensor, is_dense: bool) -> Moments:
    """Moments of no draws."""
    shape = (*position.shape, position.shape[-1]) if is_dense else position.shape
    zeros = torch.zeros_like(position)
    return Moments(zeros[:, 0].clone(), zeros, position.new_zeros(shape))


def add_draw(moments: Moments, position: Tensor) -> Moments:
    """Add a draw of each chain, one at a time: the result then depends on no grouping of draws."""
    number = moments.number + 1.0
    before = position - moments.mean
    mean = moments.mean + before / number[:, None]
    after = position - mean
    is_dense = moments.squares.dim() == 3
    product = before[:, :, None] * after[:, None, :] if is_dense else before * after
    return Moments(number, mean, moments.squares + product)


def estimated_factor(moments: Moments, pooled: bool, is_free: Tensor | None = None) -> Tensor:
    """Factor of the covariance of draws, shrunk to a small unit matrix as in Stan.

    :param Moments moments: of the draws of each chain.
    :param bool pooled: whether to estimate one of all chains.
    :param Tensor is_free: which entries of full covariances are not zero, all by default.
        **Shape:** ``(size, size)``.
    :returns: **Shape:** ``(num_chains or 1, size)`` of a diagonal, else
        ``(num_chains or 1, size, size)``, lower triangular.
    """
    # A chain that is not finite, which stops in any case, shall tell the others nothing.
    is_finite = (moments.mean.isfinite() & moments.squares.flatten(1).isfinite().all(1, True)).all(
        1
    )
    number, mean, squares = (where(is_finite, part, torch.zeros_like(part)) for part in moments)
    if pooled:
        apart = where(is_finite, mean - number @ mean / number.sum().clamp(min=1.0), mean)
        # What is between the means of chains belongs to the spread of all draws together.
        spread = apart[:, :, None] * apart[:, None, :] if squares.dim() == 3 else apart.square()
        squares = (squares + number.reshape(-1, *(1,) * (squares.dim() - 1)) * spread).sum(0, True)
        number = number.sum(0, True)
    number = number.reshape(-1, *(1,) * (squares.dim() - 1))
    covariance = squares / (number - 1.0).clamp(min=1.0) * (number / (number + 5.0))
    least = 1e-3 * 5.0 / (number + 5.0)
    if squares.dim() == 2:
        return (covariance + least).sqrt()
    if is_free is not None:
        covariance = covariance * is_free
    unit = torch.eye(squares.shape[-1], dtype=squares.dtype, device=squares.device)
    factor: Tensor = torch.linalg.cholesky(covariance + least * unit)
    return factor


def window_edges(warmup_steps: int) -> list[int]:
    """Numbers of steps at which windows of mass matrices begin and end, as in Stan.

    The first window begins at the first number; at each other one, mass matrices are those of the
    draws since the number before.
    """
    if warmup_steps < 20:
        return []
    first, last, width = 75, 50, 25
    if warmup_steps < first + width + last:
        first, last = int(0.15 * warmup_steps), int(0.1 * warmup_steps)
        width = warmup_steps - first - last
    edges, end = [first], warmup_steps - last
    while edges[-1] < end:
        edge = edges[-1] + width
        width *= 2
        edges.append(end if edge + width > end else edge)
    return edges
