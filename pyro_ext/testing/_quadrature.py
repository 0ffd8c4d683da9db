"""Adaptive quadrature of several functions at once, over a coordinate with exponential ends."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor
from torch.distributions import biject_to
from torch.distributions.transforms import Transform

from pyro_ext.random import seeded
from pyro_ext.special.quadrature import gauss_legendre

LARGEST_LOG = 300.0  # squares of its exponential are numbers, in units of nearly any size
_CLOSEST_LOG = 20.0  # to an end that is not zero, where differences from it still have precision
_NUM_NODES = 16
_NUM_ROUNDS = 30
_TOLERANCE = 1e-11
_NEGLIGIBLE = 1e-30

Integrand = Callable[[Tensor], Tensor]


class Panels:
    """Panels in which Gaussian quadrature has settled: halves of any would give the same."""

    def __init__(self, function: Integrand, edges: Tensor) -> None:
        low, width = edges[:-1], edges.diff()
        whole = integrals(function, low, width)
        settled: list[tuple[Tensor, Tensor, Tensor]] = []
        for _ in range(_NUM_ROUNDS):
            half = (0.5 * width).repeat_interleave(2)
            starts = torch.stack([low, low + 0.5 * width], -1).flatten()
            halves = integrals(function, starts, half)
            pairs = halves.unflatten(-1, (-1, 2)).sum(-1)
            total = sum((parts.abs().sum(-1) for _, _, parts in settled), pairs.abs().sum(-1))
            is_settled = ((pairs - whole).abs() <= _TOLERANCE * total[:, None]).all(0)
            settled.append((low[is_settled], width[is_settled], pairs[:, is_settled]))
            is_left = ~is_settled.repeat_interleave(2)
            low, width, whole = starts[is_left], half[is_left], halves[:, is_left]
            if not len(low):
                break
        else:
            raise AssertionError(f"the integrals do not settle near {low[:3].tolist()}")
        self.low = torch.cat([low for low, _, _ in settled])
        order = self.low.argsort()
        self.low = self.low[order]
        self.width = torch.cat([width for _, width, _ in settled])[order]
        self.parts = torch.cat([parts for _, _, parts in settled], -1)[:, order]
        ends = torch.stack([self.low[0], self.low[-1] + self.width[-1]])
        at, within = function(ends), function(ends + torch.tensor([1.0, -1.0]).to(ends))
        fall = (within / at).log()
        beyond = torch.where(fall > 0, at / fall, torch.inf * at.sign())
        self.before, self.after = torch.where(at.abs() < _NEGLIGIBLE, 0.0, beyond).unbind(-1)

    @property
    def ends(self) -> Tensor:
        """Upper ends of all panels but the last, where the integral up to there is known."""
        return (self.low + self.width)[:-1]

    @property
    def total(self) -> Tensor:
        """Integrals, with those of the exponential functions that go on beyond the ends."""
        return self.before + self.parts.sum(-1) + self.after


def integrals(function: Integrand, low: Tensor, width: Tensor) -> Tensor:
    """Integrals over panels. **Shape:** ``(num_functions, num_panels)``."""
    nodes, weights = gauss_legendre(_NUM_NODES)
    values = function((low[:, None] + width[:, None] * nodes).flatten())
    sums: Tensor = (values.unflatten(-1, (-1, _NUM_NODES)) * weights).sum(-1) * width
    return sums


class Quadrature:
    """Expectations under a distribution of one number, by quadrature and sums over its atoms."""

    def __init__(
        self,
        distribution: TorchDistribution,
        functions: Sequence[Integrand],
        atoms: Callable[[TorchDistribution], Tensor] | None = None,
        jumps: Callable[[TorchDistribution], Tensor] | None = None,
    ) -> None:
        self.distribution, self.functions, self.atoms = distribution, functions, atoms
        transform, low, high = coordinate(distribution.support)
        with seeded(0):
            draws = distribution.sample(torch.Size([400])).double()
        fractions = torch.linspace(0.0, 1.0, 17).to(draws)
        typical = transform.inv(draws).clamp(low, high).quantile(fractions)
        # A density may end steeply next to the outermost draws.
        near = (typical[-1] - typical[0]) * 0.5 ** torch.arange(10.0).to(draws)
        coarse = torch.linspace(low, high, 25).to(draws)
        edges = torch.cat([coarse, typical, typical[0] - near, typical[-1] + near])
        if jumps is not None:
            edges = torch.cat([edges, transform.inv(jumps(distribution)).to(edges)])
        edges = edges.clamp(low, high).unique()
        self.panels = Panels(self.integrand(distribution), edges)

    def integrand(self, distribution: TorchDistribution) -> Integrand:
        """Functions times density over the coordinate."""
        transform, _, _ = coordinate(distribution.support)

        def integrand(x: Tensor) -> Tensor:
            value = transform(x)
            log_slope = transform.log_abs_det_jacobian(x, value)
            density = (distribution.log_prob(value) + log_slope).exp()
            return torch.stack([function(value) * density for function in self.functions])

        return integrand

    def expectations(self, distribution: TorchDistribution | None = None) -> Tensor:
        """Expectations of all functions; for another distribution with the panels of this one."""
        if distribution is None:
            distribution, total = self.distribution, self.panels.total
        else:
            integrand = self.integrand(distribution)
            total = integrals(integrand, self.panels.low, self.panels.width).sum(-1)
        if self.atoms is not None:
            value = self.atoms(distribution)
            mass = distribution.log_prob(value).exp()
            total = total + torch.stack([(mass * f(value)).sum() for f in self.functions])
        return total

    def probabilities(self) -> tuple[Tensor, Tensor]:
        """Values at the ends of panels, and probabilities of what is smaller."""
        transform, _, _ = coordinate(self.distribution.support)
        value = transform(self.panels.ends)
        below = self.panels.before[0] + self.panels.parts[0].cumsum(-1)[:-1]
        if self.atoms is not None:
            atoms = self.atoms(self.distribution).reshape(-1)
            is_below = atoms <= value[:, None]
            below = below + (is_below * self.distribution.log_prob(atoms).exp()).sum(-1)
        return value, below


class _Sinh(Transform):
    """Hyperbolic sine, by which power laws at both ends become exponential ones."""

    domain = torch.distributions.constraints.real
    codomain = torch.distributions.constraints.real
    bijective = True
    sign = 1

    def _call(self, x: Tensor) -> Tensor:
        return x.sinh()

    def _inverse(self, y: Tensor) -> Tensor:
        return y.asinh()

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        return x.cosh().log()


def coordinate(support: Any) -> tuple[Transform, float, float]:
    """Map from the line to a support, and how far up and down the line it is followed."""
    # Beside an atom there is a density.
    transform = biject_to(getattr(support, "inside", support))
    if support is torch.distributions.constraints.real:
        transform = _Sinh()
    is_near = [
        bool(torch.as_tensor(getattr(support, name, 0.0)).abs().max() > 0)
        for name in ("lower_bound", "upper_bound")
    ]
    low, high = (_CLOSEST_LOG if near else LARGEST_LOG for near in is_near)
    return transform, -low, high
