"""Adaptation in the warm-up: step sizes by dual averaging, mass matrices in windows."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_ext.inference.hmc.trajectories import where

_SHRINKAGE, _DELAY, _FORGETTING = 0.05, 10.0, 0.75
_MOST_LOG_STEP = math.log(math.pi)  # longer steps are unstable on a standard normal
_EARLY, _LATE = 0.3, 0.15  # fractions of a warm-up
_EARLY_SIZE, _MAIN_SIZE, _GROWTH = 10, 80, 1.5
_MOST_BETWEEN = 10  # draws from one estimate to the next
_LEAST_SCALE, _MOST_SCALE = 1e-20, 1e20
_LEAST_SLOPE = 1e-4  # of the largest one
_ENOUGH_DRAWS = 2  # for each dimension
_NOISE = 2.0  # factor by which eigenvalues of fewer draws are off


class DualAveraging(NamedTuple):
    """Search of each chain for the step size that has a given acceptance rate [1].

    :param Tensor log_step: of the next transition. **Shape:** ``(num_chains,)``, as all.
    :param Tensor log_average: weighted mean of these, which becomes the final step size.
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
    log_step = log_step.clamp(max=_MOST_LOG_STEP)
    weight = number.pow(-_FORGETTING)
    log_average = weight * log_step + (1.0 - weight) * search.log_average
    return DualAveraging(log_step, log_average, error, number, search.center)


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


def new_moments(position: Tensor, is_dense: bool = False) -> Moments:
    """Moments of no draws."""
    shape = (*position.shape, position.shape[-1]) if is_dense else position.shape
    zeros = torch.zeros_like(position)
    return Moments(zeros[:, 0].clone(), zeros, position.new_zeros(shape))


def add_draw(moments: Moments, position: Tensor, is_good: Tensor | None = None) -> Moments:
    """Add a draw of each chain, one at a time: the result then depends on no grouping of draws.

    :param Tensor is_good: of which chains, by default of all. **Shape:** ``(num_chains,)``.
    """
    number = moments.number + 1.0
    before = position - moments.mean
    mean = moments.mean + before / number[:, None]
    after = position - mean
    is_dense = moments.squares.dim() == 3
    product = before[:, :, None] * after[:, None, :] if is_dense else before * after
    added = Moments(number, mean, moments.squares + product)
    if is_good is None:
        return added
    return where(is_good, added, moments)


def estimated_factor(moments: Moments, is_free: Tensor | None = None) -> Tensor:
    """Factor of the covariance of draws, shrunk to a small unit matrix as in Stan.

    :param Moments moments: of the draws of each chain, with products.
    :param Tensor is_free: which entries of covariances are not zero, all by default.
        **Shape:** ``(size, size)``.
    :returns: **Shape:** ``(num_chains, size, size)``, lower triangular.
    """
    number, _, squares = _finite(moments)
    number = number[:, None, None]
    covariance = squares / (number - 1.0).clamp(min=1.0) * (number / (number + 5.0))
    least = 1e-3 * 5.0 / (number + 5.0)
    if is_free is not None:
        covariance = covariance * is_free
    unit = torch.eye(squares.shape[-1], dtype=squares.dtype, device=squares.device)
    factor: Tensor = torch.linalg.cholesky(covariance + least * unit)
    return factor


def pooled(moments: Moments) -> Moments:
    """Moments of the draws of all chains together, with a leading dimension of one."""
    number, mean, squares = _finite(moments)
    center = number @ mean / number.sum().clamp(min=1.0)
    apart = torch.where(number[:, None] > 0, mean - center, 0.0)
    # What is between the means of chains belongs to the spread of all draws together.
    spread = apart[:, :, None] * apart[:, None, :] if squares.dim() == 3 else apart.square()
    squares = (squares + number.reshape(-1, *(1,) * (squares.dim() - 1)) * spread).sum(0, True)
    return Moments(number.sum(0, True), center[None], squares)


def _finite(moments: Moments) -> Moments:
    """Moments without the draws of chains that are not finite, which stop anyway."""
    squares = moments.squares.flatten(1)
    is_finite = (moments.mean.isfinite() & squares.isfinite().all(1, True)).all(1)
    return where(is_finite, moments, Moments(*map(torch.zeros_like, moments)))


# Mass matrices of the Fisher divergence ----------------------------------------------------------


def first_factor(gradient: Tensor) -> Tensor:
    r"""Guess scales from the gradient where a chain starts: the square root of :math:`1 / |g|`.

    Near a mode, gradients are mostly rounding errors and carry little information: there all scales
    are one, or at least similar.

    Shapes: gradient (num_chains, size); returns (num_chains, size).
    """
    slope = gradient.abs().clamp(max=_MOST_SCALE)
    slope = slope.clamp(min=_LEAST_SLOPE * slope.amax(-1, True))
    return torch.where(slope > _LEAST_SCALE, slope.rsqrt(), 1.0)


def fisher_factor(moments: Moments, before: Tensor) -> Tensor:
    r"""Scales with which the gradients of draws are most nearly those of a normal distribution.

    The variance of a coordinate is :math:`\sqrt{\mathrm{var}(x) / \mathrm{var}(g)}` [1], which is
    exact after three draws where coordinates are independent and normal, wherever these are from.

    :param Moments moments: of positions and gradients side by side.
        **Shape:** ``(num_chains, 2 * size)``.
    :param Tensor before: scales that stay where there are fewer than three draws, or no finite
        result. **Shape:** ``(num_chains, size)``.
    :returns: as ``before``.

    [1] A. Seyboldt, E. Carlson, B. Carpenter (2026), arXiv 2603.18845.
    """
    number, _, squares = _finite(moments)
    of_draws, of_gradients = squares.double().chunk(2, -1)
    scale = (of_draws / of_gradients).pow(0.25).clamp(_LEAST_SCALE, _MOST_SCALE)
    is_known = scale.isfinite() & (of_draws > 0) & (of_gradients > 0) & (number >= 3)[:, None]
    return torch.where(is_known, scale.to(before), before)


def low_rank_factor(draws: Tensor, gradients: Tensor, gamma: float = 1e-5) -> Tensor | None:
    r"""Factor of a diagonal matrix and some directions, of least Fisher divergence [1].

    With draws and gradients scaled by
    :math:`\sigma_i = (\mathrm{var}(x_i) / \mathrm{var}(g_i))^{1/4}`, the geometric mean of the
    covariance of draws and the inverse of that of gradients is taken in the space that both span.
    Of fewer than twice as many draws as dimensions, its eigenvalues between 1/2 and 2 may be noise
    and become one. Of more all are kept, unlike in [1]: the correlations that would be left cost up
    to half of the effective draws.

    :param Tensor draws: in double precision. **Shape:** ``(num_draws, size)``.
    :param Tensor gradients: at the draws. **Shape:** ``(num_draws, size)``.
    :param float gamma: weight of the unit matrix, for directions that one of the two does not see.
    :returns: **Shape:** ``(size, size)``; ``None`` of fewer than three draws, or where it is not
        finite.

    [1] A. Seyboldt, E. Carlson, B. Carpenter (2026), arXiv 2603.18845.
    """
    if len(draws) < 3:
        return None
    sigma = (draws.var(0, False) / gradients.var(0, False)).pow(0.25)
    sigma = torch.where(sigma.isfinite() & (sigma > 0), sigma, 1.0)
    scaled = (draws - draws.mean(0)) / sigma
    slopes = (gradients - gradients.mean(0)) * sigma
    if not bool(scaled.isfinite().all() & slopes.isfinite().all()):
        return None
    try:
        return _low_rank(scaled, slopes, sigma, gamma)
    except torch.linalg.LinAlgError:  # numbers may be too far apart even for decompositions
        return None


def _low_rank(scaled: Tensor, slopes: Tensor, sigma: Tensor, gamma: float) -> Tensor | None:
    """Estimate the factor of :func:`low_rank_factor` from scaled draws and gradients."""
    size = len(sigma)
    basis = torch.eye(size).to(sigma)
    if len(scaled) < size:
        # Directions of unit length, so that small gradients count as much as large draws.
        spans = [torch.linalg.svd(part.mT, full_matrices=False)[0] for part in (scaled, slopes)]
        basis = torch.linalg.qr(torch.cat(spans, 1))[0]
    unit = torch.eye(basis.shape[1]).to(sigma)
    roots = [
        torch.linalg.qr(torch.cat([part @ basis / math.sqrt(gamma), unit]))[1]
        for part in (scaled, slopes)
    ]
    directions, values = axes_of_mean(*roots)
    if len(scaled) < _ENOUGH_DRAWS * size:
        values = torch.where((values > _NOISE) | (values < 1.0 / _NOISE), values, 1.0)
    directions = basis @ directions
    factor = torch.eye(size).to(sigma) + (directions * (values.sqrt() - 1.0)) @ directions.mT
    factor = sigma[:, None] * factor
    return factor if bool(factor.isfinite().all()) else None


def axes_of_mean(covariance: Tensor, precision: Tensor) -> tuple[Tensor, Tensor]:
    """Find eigenvectors and eigenvalues of the positive M for which M B M = A.

    A and B are given by triangular roots R, ``R.mT @ R``, since draws on the way from a far start
    make them so ill-conditioned that their entries would not tell.

    Shapes: covariance, precision (size, size); returns (size, size), columns, and (size,).
    """
    left, values, _ = torch.linalg.svd(precision @ covariance.mT)
    root = torch.linalg.solve_triangular(precision, left * values.sqrt(), upper=True)
    vectors, values, _ = torch.linalg.svd(root)
    return vectors, values.square()


# Windows -----------------------------------------------------------------------------------------


class Windows(NamedTuple):
    """Schedule of a warm-up, in numbers of steps.

    :param int first: steps before draws are collected.
    :param tuple updates: after these the mass matrices are estimated.
    :param tuple switches: after these the draws before the last switch are forgotten.
    :param tuple searches: after these a first step size is looked for, and dual averaging begins
        again.
    :param int symmetric: from this step on step sizes go by the symmetric acceptance rate.
    """

    first: int
    updates: tuple[int, ...]
    switches: tuple[int, ...]
    searches: tuple[int, ...]
    symmetric: int


def growing_windows(warmup_steps: int) -> Windows:
    """Short windows early in the warm-up, then ones that grow by a half [1].

    Between a switch and the next, estimates take the draws since the switch before.

    [1] The nuts-rs library of A. Seyboldt, whose constants these are.
    """
    early, final = int(_EARLY * warmup_steps), warmup_steps - int(_LATE * warmup_steps)
    size, num_since, switches, symmetric = _EARLY_SIZE, 1, list[int](), final
    for step in range(final):
        if step == early:
            size = max(_MAIN_SIZE, num_since)
        is_early = step < early
        following = _EARLY_SIZE if is_early else max(size + 1, round(_GROWTH * size))
        num_since += 1
        is_late = following + step > final
        symmetric = min(symmetric, step) if is_late else symmetric
        if num_since >= (_EARLY_SIZE if is_early else size) and not is_late:
            switches.append(step + 1)
            num_since = 0
            size = size if is_early else following
    updates, step = set(switches), 3
    while step <= final:
        updates.add(step)
        step += min(max(1, step // 4), _MOST_BETWEEN)
    ordered = tuple(sorted(updates))
    # If the first draws were poor, the masses have changed only at the first switch.
    searches = (*ordered[:1], *switches[:1])
    return Windows(0, ordered, tuple(switches), searches, symmetric)


def stan_windows(warmup_steps: int) -> Windows:
    """Windows that double, as in Stan: each estimate is of the draws since the one before."""
    edges = _edges(warmup_steps)
    ends = tuple(edges[1:])
    return Windows(edges[0] if edges else 0, ends, ends, ends, warmup_steps)


def _edges(warmup_steps: int) -> list[int]:
    """Numbers of steps at which Stan's windows begin and end."""
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
