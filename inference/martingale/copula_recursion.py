r"""The copula recursion for densities, as functions of tensors [1, 2].

A distribution :math:`P_{i-1}` with the density :math:`p_{i-1}` takes in an observation, of which it
needs only :math:`v = P_{i-1}(y_i)`. With the bivariate normal copula of correlation :math:`\rho`,
its density :math:`c_\rho` and its conditional distribution function :math:`H_\rho`,

.. math:: p_i(y) = p_{i-1}(y) [1 - \alpha_i + \alpha_i c_\rho(P_{i-1}(y), v)], \quad
          P_i(y) = (1 - \alpha_i) P_{i-1}(y) + \alpha_i H_\rho(P_{i-1}(y), v) .

In several dimensions the same is done with the distribution function of each coordinate given those
before it. Normal scores are those of probabilities clipped to :math:`[10^{-6}, 1 - 10^{-6}]`;
beyond, :math:`H_\rho` is linear, so that distribution functions reach zero and one.

[1] P. R. Hahn, R. Martin, S. G. Walker (2018), On recursive Bayesian predictive distributions.

[2] E. Fong, C. Holmes, S. G. Walker (2023), Martingale posterior distributions.
"""

import math
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pyro_ext._lib import checks

_SMALLEST = 1e-6
_LEAST_RATE = 1e-5
_AT_ONCE, _FEW = 8, 2  # points


class Prequential(NamedTuple):
    """Observations as predicted from those before them, in several orders."""

    log_density: Tensor  # (num_orders, n)
    gradient: Tensor  # of the sum, in each direction (num_orders, num_directions)
    uniforms: Tensor  # (conditional) distribution functions there (num_orders, n, dimension)

    @property
    def mean(self) -> float:
        """Mean log density over orders and observations."""
        return float(self.log_density.mean())

    @property
    def mean_gradient(self) -> Tensor:
        """That of the mean."""
        return self.gradient.sum(0) / self.log_density.numel()


def rates(first: int, last: int) -> Tensor:
    r"""Rates of updates, :math:`\alpha_i = (2 - 1/i) / (i + 1)`."""
    number = torch.arange(first, last + 1, dtype=torch.float64)
    return (2.0 - 1.0 / number) / (number + 1.0)


def log_copula_density(u: Tensor, v: Tensor, bandwidth: Tensor) -> Tensor:
    r"""Log density of the normal copula at probabilities, :math:`\log c_\rho(u, v)`."""
    return log_covariate_kernel(_scores(u), _scores(v), bandwidth)


def copula_cdf(u: Tensor, v: Tensor, bandwidth: Tensor) -> Tensor:
    r"""Conditional distribution function of the normal copula, :math:`H_\rho(u, v)`."""
    value: Tensor = torch.special.ndtr(
        (_scores(u) - bandwidth * _scores(v)) / (1 - bandwidth**2).sqrt()
    )
    value = value * (u / _SMALLEST).clamp(max=1.0)
    return 1.0 - (1.0 - value) * ((1.0 - u) / _SMALLEST).clamp(max=1.0)


def log_covariate_kernel(x: Tensor, other: Tensor, bandwidth: Tensor) -> Tensor:
    r"""The same at normal scores, :math:`\log c_\rho(\Phi(x), \Phi(x'))`."""
    variance = 1.0 - bandwidth**2
    log_kernel: Tensor = 0.5 * (x**2 - (x - bandwidth * other) ** 2 / variance - variance.log())
    return log_kernel


def copula_step(
    cdfs: Tensor, log_density: Tensor, observed: Tensor, rate: Tensor, bandwidth: Tensor
) -> tuple[Tensor, Tensor]:
    """Take one observation into distributions, with gradients.

    Shapes: cdfs (*points, dimension); log_density as cdfs; observed broadcasts to that of cdfs;
    rate broadcasts to (*points); bandwidth (dimension,).
    """
    copula = log_copula_density(cdfs, observed, bandwidth).cumsum(-1).exp()
    before = torch.cat([torch.ones_like(copula[..., :1]), copula[..., :-1]], -1)
    rate = rate[..., None]
    fraction = rate * before / (1.0 - rate + rate * before)
    cdfs = cdfs + fraction * (copula_cdf(cdfs, observed, bandwidth) - cdfs)
    return cdfs, log_density + (1.0 - rate + rate * copula).log()


def normal_start(points: Tensor) -> tuple[Tensor, Tensor]:
    """The distribution before any observation, independent standard normal numbers."""
    log_density = -0.5 * (points**2 + math.log(2.0 * math.pi)).cumsum(-1)
    return torch.special.ndtr(points), log_density


def follow(
    cdfs: Tensor,
    log_density: Tensor,
    uniforms: Tensor,
    rate: Tensor,
    bandwidth: Tensor,
    *,
    rows: Tensor | None = None,
    kernel: Tensor | None = None,
    group: int = 1,
) -> tuple[Tensor, Tensor]:
    """Take observations into distributions one after the other, and follow points through them.

    Compiled, in float64 on the processor, unless ``cdfs`` want a gradient. Distributions are shared
    among as many threads as PyTorch has, which changes no number.

    Shapes: cdfs (num_distributions, dimension, num_points); log_density as cdfs; uniforms
    (num_distributions, num_steps, dimension); rate (num_steps,); bandwidth (dimension,); rows
    (num_distributions, num_steps); kernel (num_rows, num_points / group).
    """
    if torch.is_grad_enabled() and cdfs.requires_grad:
        given = cdfs, log_density, uniforms, rate, bandwidth
        return _follow_with_gradient(*given, rows, kernel, group)
    from pyro_ext.inference.martingale._copula_loops import advance_points

    num_points = cdfs.shape[-1]
    if kernel is None or rows is None:
        if num_points > _FEW:
            # Points that remain beside vectors are slow, more so than some that nobody needs.
            padding = (0, -num_points % _AT_ONCE)
            cdfs = torch.nn.functional.pad(cdfs, padding, value=0.5)
            log_density = torch.nn.functional.pad(log_density, padding)
        indices, weights, group = np.zeros((len(cdfs), 1), np.int64), np.ones((1, 1)), 0
    else:
        indices, weights = array_of(rows, torch.int64), array_of(kernel)
    new_cdfs, new_log = array_of(cdfs).copy(), array_of(log_density).copy()
    seen, updates, bandwidths = array_of(uniforms), array_of(rate), array_of(bandwidth)

    def advance(part: slice) -> None:
        state = new_cdfs[part], new_log[part], seen[part]
        advance_points(*state, updates, bandwidths, indices[part], weights, group)

    _split_among_threads(advance, len(new_cdfs))
    done = torch.from_numpy(new_cdfs), torch.from_numpy(new_log)
    return done[0][..., :num_points], done[1][..., :num_points]


def predict_in_turn(
    points: Tensor,
    orders: Tensor,
    bandwidth: Tensor,
    directions: Tensor | None = None,
    *,
    covariates: Tensor | None = None,
    covariate_bandwidth: Tensor | None = None,
    covariate_directions: Tensor | None = None,
) -> Prequential:
    """Predict each observation from those before it, with derivatives in the bandwidths.

    Compiled; in float64 on the processor. Orders are shared among as many threads as PyTorch has.

    Shapes: points (n, dimension); orders (num_orders, n); bandwidth (dimension,); directions
    (num_directions, dimension); covariates (n, num_covariates); covariate_bandwidth
    (num_covariates,); covariate_directions (num_directions, num_covariates).
    """
    from pyro_ext.inference.martingale._copula_loops import prequential

    n, dimension = points.shape
    cdfs, log_density = normal_start(points.double())
    if directions is None:
        directions = points.new_zeros(0, dimension)
    if covariates is None or covariate_bandwidth is None:
        covariates, covariate_bandwidth = points.new_zeros(n, 0), points.new_zeros(0)
    if covariate_directions is None:
        covariate_directions = points.new_zeros(len(directions), len(covariate_bandwidth))
    num_orders = len(orders)
    values, gradient = np.empty((num_orders, n)), np.empty((num_orders, len(directions)))
    uniforms = np.empty((num_orders, n, dimension))
    indices = array_of(orders, torch.int64)
    given = (
        array_of(cdfs.T),
        array_of(log_density[:, -1]),
        array_of(covariates.T),
        array_of(rates(1, n)),
        array_of(bandwidth),
        array_of(covariate_bandwidth),
        array_of(directions),
        array_of(covariate_directions),
    )

    def predict(some: slice) -> None:
        prequential(indices[some], *given, values[some], gradient[some], uniforms[some])

    _split_among_threads(predict, num_orders)
    return Prequential(*(torch.from_numpy(value) for value in (values, gradient, uniforms)))


def _split_among_threads(function: Callable[[slice], None], number: int) -> None:
    """Call a function that lets go of the interpreter for parts of so many rows."""
    num_threads = max(1, min(torch.get_num_threads(), number))
    if num_threads == 1:
        function(slice(None))
        return
    bounds = [number * i // num_threads for i in range(num_threads + 1)]
    with ThreadPoolExecutor(num_threads) as pool:
        list(pool.map(function, map(slice, bounds[:-1], bounds[1:])))


def observation_orders(n: int, num_permutations: int, seed: int) -> Tensor:
    """Draw the orders in which to process observations; for zero, return that of the data."""
    if num_permutations == 0:
        return torch.arange(n)[None]
    generator = torch.Generator().manual_seed(seed)
    return torch.stack(
        [torch.randperm(n, generator=generator, device="cpu") for _ in range(num_permutations)]
    )


def mean_over_orders(cdfs: Tensor, log_density: Tensor) -> tuple[Tensor, Tensor]:
    """The mean over the first axis, of coordinates in the last, each given those before."""
    before = torch.cat([torch.zeros_like(log_density[..., :1]), log_density[..., :-1]], -1)
    number = torch.tensor(float(len(cdfs)), dtype=log_density.dtype)
    return (before.softmax(0) * cdfs).sum(0), log_density.logsumexp(0) - number.log()


def _follow_with_gradient(
    cdfs: Tensor,
    log_density: Tensor,
    uniforms: Tensor,
    rate: Tensor,
    bandwidth: Tensor,
    rows: Tensor | None,
    kernel: Tensor | None,
    group: int,
) -> tuple[Tensor, Tensor]:
    """Run the recursion of ``follow`` step by step in differentiable operations."""
    cdfs, log_density = cdfs.mT, log_density.mT
    for step in range(len(rate)):
        here = rate[step].expand(cdfs.shape[:-1])
        if kernel is not None and rows is not None:
            top = here * kernel[rows[:, step]].repeat_interleave(group, -1)
            here = (top / (1.0 - here + top)).clamp(_LEAST_RATE, 1.0 - _LEAST_RATE)
        observed = uniforms[:, step, None]
        cdfs, log_density = copula_step(cdfs, log_density, observed, here, bandwidth)
    return cdfs.mT, log_density.mT


def _scores(u: Tensor) -> Tensor:
    score: Tensor = torch.special.ndtri(u.clamp(_SMALLEST, 1.0 - _SMALLEST))
    return score


def array_of(value: Tensor, dtype: torch.dtype = torch.float64) -> "np.ndarray[Any, Any]":
    """Convert a tensor to a contiguous array for the compiled loops."""
    array: np.ndarray[Any, Any] = np.ascontiguousarray(value.detach().cpu().to(dtype).numpy())
    return array


_LOWEST, _HIGHEST = -12.0, 6.0  # logits: bandwidths between 6e-6 and 0.9975
_NARROW = 0.1
_TOLERANCE = 1e-7
_SMALL = (0.02, 0.1, 0.3)

_STEEPER = 10.0  # the search starts from a unit curvature, and that of mean log densities is small

Objective = Callable[[Tensor, Tensor], tuple[float, Tensor]]


def checked_bandwidth(argument: str, value: Tensor | float | None) -> Tensor | None:
    """Check a bandwidth, a number or a vector with one for each dimension."""
    if value is None:
        return None
    if not isinstance(value, Tensor):
        number = checks.number(argument, value, above=0.0, below=1.0)
        return torch.tensor(number, dtype=torch.float64)
    if value.dim() > 1 or not bool(((value > 0.0) & (value < 1.0)).all()):
        raise ValueError(
            f"{argument} must be a number in (0, 1) or a vector of them, one for each dimension, "
            f"got {value!r:.80}"
        )
    return value.detach().cpu().double()


def spread(argument: str, value: Tensor, dimension: int) -> Tensor:
    """Give each dimension its bandwidth."""
    if value.dim() and len(value) not in (1, dimension):
        raise ValueError(
            f"{argument} must be a number or a vector of {dimension}, one for each dimension, got "
            f"{len(value)} of them"
        )
    return value.reshape(-1).expand(dimension).clone()


def warn_of_narrow_posterior(bandwidth: float, name: str, stacklevel: int = 3) -> None:
    """Warn where new observations hardly change a distribution, so that populations hardly vary."""
    if bandwidth < _NARROW:
        warnings.warn(
            f"{name} fits the data best with a bandwidth of {bandwidth:.2g}, with which "
            "observations hardly change it: its populations hardly vary, and the posterior is too "
            "narrow; pass a larger bandwidth",
            RuntimeWarning,
            stacklevel=stacklevel,
        )


def maximize_over_bandwidths(objective: Objective, start: Tensor, directions: Tensor) -> Tensor:
    """Maximize over the logits of bandwidths."""
    best, best_value = start, -math.inf

    def look(bandwidth: Tensor, wanted: Tensor) -> tuple[float, Tensor]:
        nonlocal best, best_value
        value, slopes = objective(bandwidth, wanted)
        if value > best_value:
            best, best_value = bandwidth, value
        return value, slopes

    def steepened(logits: npt.NDArray[np.float64]) -> tuple[float, npt.NDArray[np.float64]]:
        bandwidth = torch.sigmoid(torch.from_numpy(np.clip(logits, _LOWEST, _HIGHEST)))
        value, slopes = look(bandwidth, directions)
        return -_STEEPER * value, -_STEEPER * (slopes * bandwidth * (1.0 - bandwidth)).numpy()

    _minimize(steepened, start)
    # There may be a second maximum, where observations hardly change the distribution.
    found = best
    for small in _SMALL:
        look(torch.full_like(start, small), directions[:0])
    if best is not found:
        _minimize(steepened, best)
    return best


def _minimize(function: Callable[..., Any], start: Tensor) -> None:
    from scipy.optimize import minimize

    minimize(
        function,
        torch.logit(start.double()).numpy(),
        jac=True,
        method="SLSQP",
        bounds=[(_LOWEST, _HIGHEST)] * len(start),
        options={"ftol": _STEEPER * _TOLERANCE, "maxiter": 100},
    )
