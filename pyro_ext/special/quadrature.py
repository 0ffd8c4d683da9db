"""Gaussian quadrature, and integrals of functions with a single peak, in logarithms.

Such a function is given by its logarithm, so that the integral can have any size. Panels end where
the logarithm has fallen by given amounts from its peak, and near the points where its slope
changes, so that an integrand of any width is resolved.
"""

from collections.abc import Callable, Sequence
from functools import cache

import numpy as np
import torch
from torch import Tensor

from pyro_ext._lib import checks

_DROPS = (1.0, 4.0, 10.0, 20.0, 42.0)
_OFFSETS = (-27.0, -9.0, -3.0, -1.0, 0.0, 1.0, 3.0, 9.0, 27.0)
_NUM_NODES = 12
_NUM_POINTS = 17
_NUM_ROUNDS = 9
_NUM_HALVINGS = 9
_NEAREST = 1e-9
_NUM_STEPS = 12
LogIntegrand = Callable[[Tensor], Tensor]


def gauss_legendre(num_nodes: int, device: torch.device | None = None) -> tuple[Tensor, Tensor]:
    r"""Nodes and weights for :math:`\int_0^1 f(x) \, dx`.

    :param int num_nodes: number of nodes.
    :param torch.device device: device of the result.
    :returns: nodes in (0, 1) and positive weights that sum to one, in float64.
        **Shape:** ``(num_nodes,)`` each.

    Example::

        >>> nodes, weights = gauss_legendre(3)
        >>> round(float((weights * nodes**4).sum()), 12)
        0.2
    """
    checks.integer("num_nodes", num_nodes, 1)
    nodes, weights = _legendre(num_nodes)
    return nodes.to(device), weights.to(device)


@cache
def _legendre(num_nodes: int) -> tuple[Tensor, Tensor]:
    nodes, weights = np.polynomial.legendre.leggauss(num_nodes)
    return torch.from_numpy((nodes + 1.0) / 2.0), torch.from_numpy(weights / 2.0)


def panel_edges(
    log_integrand: LogIntegrand,
    low: Tensor,
    high: Tensor,
    corners: Tensor,
    peak: Tensor | None = None,
) -> Tensor:
    """Return the ends of panels that resolve a function with one peak, in increasing order.

    :param log_integrand: maps points of shape ``(*shape, n)`` to logarithms of that shape.
    :param Tensor low: the lower end of the range, finite. **Shape:** ``shape``.
    :param Tensor high: the upper end of the range, finite. **Shape:** ``shape``.
    :param Tensor corners: points where the slope of the logarithm changes over a length of about
        one. **Shape:** ``(*shape, num_corners)``.
    :param Tensor peak: where the function is largest, if known. **Shape:** ``shape``.
    :returns: the ends, without gradient; some may coincide.
        **Shape:** ``(*shape, num_edges(num_corners))``.
    """
    with torch.no_grad():
        if peak is None:
            peak = _find_peak(log_integrand, low, high)
        ends = points_of_fall(log_integrand, peak, low, high, _DROPS)
        offsets = torch.tensor(_OFFSETS, dtype=ends.dtype, device=ends.device)
        bends = (corners[..., None] + offsets).flatten(-2)
        half = len(_DROPS)
        bends = torch.minimum(torch.maximum(bends, ends[..., half - 1 : half]), ends[..., -1:])
        return torch.cat([ends, peak[..., None], bends], -1).sort(-1).values


def num_edges(num_corners: int) -> int:
    """Return how many edges :func:`panel_edges` finds."""
    return 2 * len(_DROPS) + 1 + len(_OFFSETS) * num_corners


def points_of_fall(
    log_integrand: LogIntegrand, peak: Tensor, low: Tensor, high: Tensor, drops: Sequence[float]
) -> Tensor:
    """Find the points on both sides of a peak where a logarithm has fallen by given amounts.

    :param log_integrand: maps points of shape ``(*shape, n)`` to logarithms of that shape.
    :param Tensor peak: where the function is largest. **Shape:** ``shape``.
    :param Tensor low: the lower end of the range. **Shape:** ``shape``.
    :param Tensor high: the upper end of the range. **Shape:** ``shape``.
    :param drops: the amounts.
    :returns: the points on the left of the peak, then those on the right; an end of the range
        replaces a point beyond it. **Shape:** ``(*shape, 2 * len(drops))``.
    """
    peak = torch.minimum(torch.maximum(peak, low), high)[..., None]
    low, high = low[..., None], high[..., None]
    level = log_integrand(peak) - torch.tensor(
        [*drops, *drops], dtype=peak.dtype, device=peak.device
    )
    side = torch.tensor([-1.0] * len(drops) + [1.0] * len(drops)).to(peak)
    reach = torch.where(side < 0, peak - low, high - peak).clamp(min=1e-300)
    # Halving the logarithm of the distance finds near and far points with the same care.
    near, far = reach.clamp(max=_NEAREST).log(), reach.log()
    for _ in range(_NUM_HALVINGS):
        middle = 0.5 * (near + far)
        is_inside = log_integrand(peak + side * middle.exp()) > level
        near, far = torch.where(is_inside, middle, near), torch.where(is_inside, far, middle)
    return torch.minimum(torch.maximum(peak + side * far.exp(), low), high)


def panel_nodes(edges: Tensor, num_nodes: int = _NUM_NODES) -> tuple[Tensor, Tensor]:
    """Nodes and log weights of Gaussian quadrature over panels.

    :param Tensor edges: ends of the panels. **Shape:** ``(*shape, m)``.
    :param int num_nodes: number of nodes in each panel.
    :returns: nodes and log weights. **Shape:** ``(*shape, (m - 1) * num_nodes)`` each.
    """
    nodes, weights = gauss_legendre(num_nodes, edges.device)
    lengths = edges.diff()[..., None]
    points = (edges[..., :-1, None] + lengths * nodes).flatten(-2)
    return points, (lengths * weights).clamp(min=1e-300).log().flatten(-2)


def integrate_log(log_integrand: LogIntegrand, edges: Tensor) -> Tensor:
    """Logarithm of an integral over panels, with gradients through the integrand.

    :param log_integrand: maps points of shape ``(*shape, n)`` to logarithms of that shape.
    :param Tensor edges: ends of the panels, from :func:`panel_edges`. **Shape:** ``(*shape, m)``.
    :returns: the logarithm. **Shape:** ``shape``.

    Example::

        >>> log_density = dist.Normal(torch.tensor(3.0).double(), 1e-3).log_prob
        >>> low, high = torch.tensor(-50.0).double(), torch.tensor(50.0).double()
        >>> edges = panel_edges(log_density, low, high, torch.zeros(1).double())
        >>> abs(float(integrate_log(log_density, edges))) < 1e-12
        True
    """
    points, log_weights = panel_nodes(edges)
    return (log_weights + log_integrand(points)).logsumexp(-1)


def sample_from_panels(log_integrand: LogIntegrand, edges: Tensor) -> Tensor:
    """Draw points from a density known up to a constant, by inversion.

    Draws have the gradient of their quantile, by implicit differentiation.

    :param log_integrand: maps points of shape ``(*shape, n)`` to logarithms of that shape.
    :param Tensor edges: ends of the panels, from :func:`panel_edges`. **Shape:** ``(*shape, m)``.
    :returns: the points. **Shape:** ``shape``.
    """
    uniform = torch.rand(edges.shape[:-1], dtype=edges.dtype, device=edges.device)
    with torch.no_grad():
        points, log_weights = panel_nodes(edges)
        logs = log_weights + log_integrand(points)
        masses = (logs - logs.amax(-1, keepdim=True)).exp().unflatten(-1, (-1, _NUM_NODES)).sum(-1)
        ends = masses.cumsum(-1)
        target = uniform[..., None] * ends[..., -1:]
        panel = (ends <= target).sum(-1, keepdim=True).clamp(max=masses.shape[-1] - 1)
        low, high = edges.gather(-1, panel), edges.gather(-1, panel + 1)
        fraction = (target - ends.gather(-1, panel) + masses.gather(-1, panel)).clamp(min=0.0)
        fraction = fraction / masses.gather(-1, panel)
        log_whole = integrate_log(log_integrand, torch.cat([low, high], -1))
        start, x = low, low + fraction * (high - low)
        for _ in range(_NUM_STEPS):
            part = integrate_log(log_integrand, torch.cat([start, x], -1))[..., None]
            residual = (part - log_whole[..., None]).exp() - fraction
            low = torch.where(residual < 0, x, low)
            high = torch.where(residual < 0, high, x)
            density = (log_integrand(x) - log_whole[..., None]).exp()
            newton = x - residual / density
            is_inside = (newton >= low) & (newton <= high)
            x = torch.where(is_inside, newton, 0.5 * (low + high))
        x = x.squeeze(-1)
    return point_with_gradient(log_integrand, edges, x)


def point_with_gradient(log_integrand: LogIntegrand, edges: Tensor, x: Tensor) -> Tensor:
    """Give a draw the gradient of its quantile by implicit differentiation.

    :param log_integrand: logarithm of its density, up to a constant.
    :param Tensor edges: ends of the panels. **Shape:** ``(*shape, m)``.
    :param Tensor x: the draw. **Shape:** ``shape``.
    """
    log_part = integrate_log(log_integrand, torch.minimum(edges, x[..., None]))
    log_whole = integrate_log(log_integrand, edges)
    level = (log_part - log_whole).exp()
    with torch.no_grad():
        density = (log_integrand(x[..., None]).squeeze(-1) - log_whole).exp()
    return x - (level - level.detach()) / density


def _find_peak(log_integrand: LogIntegrand, low: Tensor, high: Tensor) -> Tensor:
    """Find the maximizer of the function on finer and finer grids."""
    grid = torch.linspace(0.0, 1.0, _NUM_POINTS, dtype=low.dtype, device=low.device)
    for _ in range(_NUM_ROUNDS):
        points = low[..., None] + (high - low)[..., None] * grid
        best = log_integrand(points).argmax(-1, keepdim=True)
        low = points.gather(-1, (best - 1).clamp(min=0)).squeeze(-1)
        high = points.gather(-1, (best + 1).clamp(max=_NUM_POINTS - 1)).squeeze(-1)
    return 0.5 * (low + high)
