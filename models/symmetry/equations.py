"""Partial differential equations: residuals at moved points, known symmetries, simulated data [1].

Solutions are graphs: points ``(x, t, u)`` in a tensor ``(*batch, num_t, num_x, 3)``, with ``x``
periodic. A transformation moves the points off the rectangular grid.

[1] G. Ko, H. Kim, J. Lee (2024), Learning infinitesimal generators of continuous symmetries from
data.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyro_ext._lib import checks
from pyro_ext.nn.generators import FunctionField, as_floating
from pyro_ext.random import seeded

_FLOOR = 1e-4  # of residuals, below which they are rounding
_LARGEST = 1e9  # of coefficients and of roughness


@dataclass(frozen=True)
class Equation:
    r"""An equation :math:`u_t + c(t)\, u u_x = L(t) u` on a circle.

    :ivar float length: of the circle.
    :ivar float duration: of solutions.
    :ivar tuple orders: of the derivatives in ``x`` that it has, besides the first.
    :ivar float scale: typical size of solutions.
    :ivar Callable residual: of the derivatives by name and the points, whose shapes are
        ``(*batch)`` and ``(*batch, 3)``.
    :ivar Callable propagator: :math:`\int_0^t L` in Fourier space, of frequencies and a time.
    :ivar Callable transport: :math:`c(t)`.
    :ivar tuple waves: the least and the largest number of waves at the start.
    :ivar int num_waves: number of sines at the start.
    """

    length: float
    duration: float
    orders: tuple[int, ...]
    scale: float
    residual: Callable[[dict[str, Tensor], Tensor], Tensor]
    propagator: Callable[[Tensor, float], Tensor]
    transport: Callable[[float], float] = lambda t: 1.0
    waves: tuple[int, int] = (1, 2)
    num_waves: int = 10


EQUATIONS = {
    "kdv": Equation(
        128.0,
        20.0,
        (3,),
        0.35,
        lambda d, z: d["t"] + z[..., 2] * d["x"] + d["xxx"],
        lambda k, t: 1j * k**3 * t,
    ),
    "ks": Equation(
        64.0,
        40.0,
        (2, 4),
        1.0,
        lambda d, z: d["t"] + d["xx"] + d["xxxx"] + z[..., 2] * d["x"],
        lambda k, t: (k**2 - k**4) * t + 0j,
    ),
    "burgers": Equation(
        2 * math.pi,
        20.0,
        (2,),
        0.19,
        lambda d, z: d["t"] + z[..., 2] * d["x"] - 0.01 * d["xx"],
        lambda k, t: -0.01 * k**2 * t + 0j,
        waves=(1, 6),
        num_waves=20,
    ),
    "nkdv": Equation(
        128.0,
        20.0,
        (3,),
        0.35,
        lambda d, z: (-z[..., 1] / 50).exp() * d["t"] + z[..., 2] * d["x"] + d["xxx"],
        lambda k, t: 1j * k**3 * 50 * math.expm1(t / 50),
        transport=lambda t: math.exp(t / 50),
        waves=(1, 1),
    ),
    "ckdv": Equation(
        128.0,
        20.0,
        (3,),
        0.16,
        lambda d, z: d["t"] + z[..., 2] * d["x"] + d["xxx"] + z[..., 2] / (2 * z[..., 1] + 2),
        lambda k, t: 1j * k**3 * t - 0.5 * math.log1p(t),
    ),
}
"""The equations of Korteweg and de Vries (``"kdv"``, ``"nkdv"`` and ``"ckdv"`` with coefficients
that depend on time), Kuramoto and Sivashinsky (``"ks"``), and Burgers."""


def simulate(
    equation: str,
    num_solutions: int,
    *,
    num_x: int = 256,
    num_t: int = 140,
    substeps: int = 10,
    seed: int | None = None,
) -> Tensor:
    r"""Simulate solutions, from random sines :math:`\sum A \sin(2\pi l x / L + \phi)`.

    The linear part is solved exactly in Fourier space, the rest by Runge-Kutta steps, without the
    upper third of frequencies.

    :param str equation: a name in ``EQUATIONS``.
    :param int num_solutions: number of solutions.
    :param int num_x: number of points on the circle, more than three for each initial wave.
    :param int num_t: number of times, from zero to the equation's duration.
    :param int substeps: number of steps between two times.
    :param int seed: seed of the initial states; ``None`` uses PyTorch's global generator.
    :returns: points ``(x, t, u)`` in float64. **Shape:** ``(num_solutions, num_t, num_x, 3)``.
    :raises ValueError: for steps that are too long for the equation, or numbers out of range.

    Example::

        >>> simulate("kdv", 2, num_x=32, num_t=5, seed=0).shape
        torch.Size([2, 5, 32, 3])
    """
    checks.choice("equation", equation, EQUATIONS)
    law = EQUATIONS[equation]
    checks.integer("num_solutions", num_solutions, 1)
    if checks.integer("num_x", num_x, 8) // 3 <= law.waves[1]:
        least = 3 * law.waves[1] + 3
        raise ValueError(f"num_x must be at least {least} for this equation's waves, got {num_x}")
    checks.integer("num_t", num_t, 2)
    checks.integer("substeps", substeps, 1)
    x = torch.arange(num_x, dtype=torch.float64) * (law.length / num_x)
    shape, (low, high) = (num_solutions, law.num_waves, 1), law.waves
    with seeded(seed):
        amplitude = torch.rand(shape, dtype=torch.float64) - 0.5
        phase = 2 * math.pi * torch.rand(shape, dtype=torch.float64)
        number = torch.randint(low, high + 1, shape)
    start = (amplitude * (2 * math.pi * number * x / law.length + phase).sin()).sum(1)
    k = 2 * math.pi * torch.fft.rfftfreq(num_x, law.length / num_x, dtype=torch.float64)
    keep = torch.arange(len(k)) < num_x // 3

    def slope(t: float, spectrum: Tensor) -> Tensor:
        """Of the spectrum, without the linear part."""
        square: Tensor = torch.fft.rfft(torch.fft.irfft(spectrum, num_x).square())
        factor: Tensor = -0.5j * law.transport(t) * k * keep
        return factor * square

    times = torch.linspace(0.0, law.duration, num_t, dtype=torch.float64)
    h = law.duration / ((num_t - 1) * substeps)
    spectrum = torch.fft.rfft(start)
    found = [start]
    for step in range((num_t - 1) * substeps):
        t = step * h
        # In the frame of the linear part: half a step and a whole one.
        at = [law.propagator(k, time) for time in (t, t + h / 2, t + h)]
        half, second, whole = (at[1] - at[0]).exp(), (at[2] - at[1]).exp(), (at[2] - at[0]).exp()
        first = slope(t, spectrum)
        mid = slope(t + h / 2, half * (spectrum + h / 2 * first))
        again = slope(t + h / 2, half * spectrum + h / 2 * mid)
        last = slope(t + h, whole * spectrum + h * second * again)
        spectrum = (
            whole * (spectrum + h / 6 * first) + h / 3 * second * (mid + again) + h / 6 * last
        )
        if (step + 1) % substeps == 0:
            found.append(torch.fft.irfft(spectrum, num_x))
    u = torch.stack(found, 1)
    if not bool(u.isfinite().all()):
        raise ValueError(
            f"substeps must be more than {substeps} with num_t={num_t}: the solution of steps of "
            f"{h:g} is not finite"
        )
    return torch.stack([x.expand_as(u), times[:, None].expand_as(u), u], -1)


def scattered_derivatives(
    points: Tensor, orders: Sequence[int], length: float | None = None
) -> dict[str, Tensor]:
    r"""Return derivatives of a graph off the rectangular grid, by polynomials on stencils [1].

    Around a point, each stencil of :math:`(k + 1) \times 2` of its neighbors on the grid has one
    polynomial of degree :math:`k` in ``x`` and 1 in ``t`` through it, which gives
    :math:`\partial_x^k u`. Those of several stencils are averaged by weights that favor the
    smoothest ones, and central ones. As points come closer derivatives converge where neighbors in
    ``x`` have the same time; where rows tilt by a slope :math:`b`, an error of the order of
    :math:`b^2` remains in those of second and higher order.

    :param Tensor points: ``(x, t, u)``. **Shape:** ``(*batch, num_t, num_x, 3)``, with 3 times and
        5 points at least.
    :param Sequence orders: of derivatives in ``x`` besides the first, from 2 to 4.
    :param float length: of the circle, where ``x`` is periodic.
    :returns: derivatives by the names ``"t"``, ``"x"``, ``"xx"``, ..., without the first and last
        time, and the first and last two points. **Shape:** ``(*batch, num_t - 2, num_x - 4)`` each.
    """
    if points.dim() < 3 or points.shape[-3] < 3 or points.shape[-2] < 5:
        raise ValueError(
            "points must have 3 times and 5 points in x at least, got the shape "
            f"{tuple(points.shape)}"
        )
    windows = points.unfold(-3, 3, 1).unfold(-3, 5, 1)  # (*batch, rows, columns, 3, times, x)
    windows = windows.movedim(-3, -1)
    place = windows[..., :2] - windows[..., 1:2, 2:3, :2]
    if length is not None:
        x = place[..., 0] - length * (place[..., 0].detach() / length).round()
        place = torch.stack([x, place[..., 1]], -1)
    spacing = [
        _spacing(place[..., 0].diff(dim=-1)),
        _spacing(place[..., 1].diff(dim=-2)),
    ]
    place = place / torch.stack(spacing)
    found: dict[str, Tensor] = {}
    for k in (1, *orders):
        inner = slice(1, -1) if k == 1 else slice(None)
        terms = _stencil_terms(place[..., inner, :], windows[..., inner, 2], k, spacing)
        if k == 1:
            found["x"], found["t"] = terms[..., 2], terms[..., 1]
        else:
            found["x" * k] = terms[..., 2 * k]
    return found


def _graph(points: Any) -> Tensor:
    """Points of a graph as floating-point numbers."""
    return as_floating(checks.as_tensor("points", points, "(*batch, num_t, num_x, 3)", finite=True))


def _spacing(differences: Tensor) -> Tensor:
    """Typical size of differences, at least where there are some."""
    return differences.detach().abs().mean().clamp(min=torch.finfo(differences.dtype).tiny)


def _stencil_terms(place: Tensor, u: Tensor, k: int, spacing: list[Tensor]) -> Tensor:
    """Derivatives of all terms ``X**i T**j``, ``i <= k, j <= 1``, with ``j`` running first."""
    columns = place.shape[-2] - k
    corners = [(a, b) for a in range(columns) for b in range(2)]
    i = torch.arange(k + 1, device=place.device).repeat_interleave(2)
    j = torch.arange(2, device=place.device).repeat(k + 1)
    stencils = [(..., slice(b, b + 2), slice(a, a + k + 1)) for a, b in corners]
    chosen = torch.stack([place[(*s, slice(None))].flatten(-3, -2) for s in stencils], -3)
    values = torch.stack([u[s].flatten(-2) for s in stencils], -2)
    powers = torch.stack([chosen[..., 0] ** n for n in range(k + 1)], -1)
    steps = torch.stack([torch.ones_like(chosen[..., 1]), chosen[..., 1]], -1)
    matrix = (powers.unsqueeze(-1) * steps.unsqueeze(-2)).flatten(-2)
    solved, info = torch.linalg.solve_ex(matrix, values)
    is_flat = (info != 0) | ~(solved.detach().abs() < _LARGEST).all(-1)
    if bool(is_flat.any()):  # points on a line; such a stencil counts where there is no other
        eye = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
        matrix = torch.where(is_flat[..., None, None], eye, matrix)
        solved, _ = torch.linalg.solve_ex(matrix, values)
    factorial = torch.tensor([math.factorial(n) for n in range(k + 1)]).to(solved)
    dx, dt = spacing
    terms = factorial[i] / (dx**i * dt**j) * solved
    with torch.no_grad():
        roughness = ((terms * (dt * dx) ** (i + j - 1)) ** 4)[..., 1:].sum(-1)
        middle = [abs(2 * a - columns + 1) for a, _ in corners]
        central = torch.tensor([100.0 if m == min(middle) else 1.0 for m in middle])
        roughness = roughness.masked_fill(is_flat, _LARGEST).clamp(max=_LARGEST)
        weights = (central.to(terms).log() - 2 * (roughness + 1e-6).log()).softmax(-1)
    result: Tensor = (weights.unsqueeze(-1) * terms).sum(-2)
    return result


def validity_pde(equation: str, points: Tensor) -> Tensor:
    r"""Mean of :math:`\log \max(|\Delta|, 10^{-4})` for the residual of moved points [1].

    :param str equation: a name in ``EQUATIONS``.
    :param Tensor points: ``(x, t, u)``, in the units of the equation.
        **Shape:** ``(*batch, num_t, num_x, 3)``.
    :returns: **Shape:** ``(*batch)``.

    [1] G. Ko, H. Kim, J. Lee (2024),
    Learning infinitesimal generators of continuous symmetries from data.

    Example::

        >>> points = simulate("kdv", 1, num_x=64, num_t=20, seed=0)
        >>> louder = points * torch.tensor([1.0, 1.0, 2.0])
        >>> validity_pde("kdv", points) < validity_pde("kdv", louder)
        tensor([True])
    """
    checks.choice("equation", equation, EQUATIONS)
    law, points = EQUATIONS[equation], _graph(points)
    found = scattered_derivatives(points, law.orders, law.length)
    residual = law.residual(found, points[..., 1:-1, 2:-2, :])
    return residual.abs().clamp(min=_FLOOR).log().mean((-2, -1))


def lie_generators(equation: str) -> FunctionField:
    """Known symmetries of an equation: three fields on points ``(x, t, u)``.

    They are a shift in ``x``, a shift in ``t`` (in a modified form if coefficients depend on time)
    and the Galilean one. The shift in ``t`` of ``"ckdv"`` is only approximate.

    :param str equation: a name in ``EQUATIONS``.

    Example::

        >>> lie_generators("kdv")(torch.tensor([0.0, 5.0, 1.0]))
        tensor([[1., 0., 0.],
                [0., 1., 0.],
                [5., 0., 1.]])
    """
    checks.choice("equation", equation, EQUATIONS)

    def fields(z: Tensor) -> Tensor:
        t = z[..., 1]
        one, zero = torch.ones_like(t), torch.zeros_like(t)
        clock, drift, kick = one, t, one
        if equation == "nkdv":
            clock, drift = (-t / 50).exp(), 50 * (t / 50).exp()
        elif equation == "ckdv":
            drift, kick = 2 * (t + 1).sqrt(), (t + 1).rsqrt()
        rows = [[one, zero, zero], [zero, clock, zero], [drift, zero, kick]]
        return torch.stack([torch.stack(row, -1) for row in rows], -2)

    return FunctionField(fields, 3, 3)
