r"""Fields with any number of axes and a known truth: transport equations, Gaussian processes.

Fields have the shape ``(num_fields, *spatial, 1)``, as :mod:`pyro_ext.nn.axial` takes them.
"""

import math

import torch
from torch import Tensor

from pyro_ext._lib import checks
from pyro_ext.random import seeded


def transport_step(
    field: Tensor,
    diffusivity: Tensor | float = 0.0,
    velocity: Tensor | float = 0.0,
    time: float = 1.0,
) -> Tensor:
    r"""Solve the heat and advection equation on the unit torus exactly, by Fourier multipliers.

    .. math::
        \partial_t u = \kappa \Delta u - c \sum_i \partial_i u, \qquad
        \hat u_k(t) = e^{-(\kappa |2 \pi k|^2 + 2 \pi i\, c \sum_j k_j) t}\, \hat u_k(0)

    The speed is the same along each axis, so that the solution commutes with permutations of axes.
    It is the solution for the trigonometric polynomial through the field. On an axis of even size,
    the wave that alternates from point to point has no sine at the points: it is partly lost as it
    moves, and two steps equal one step of double length only for fields without such waves.

    :param Tensor field: **Shape:** ``(batch, *spatial, channels)``.
    :param diffusivity: :math:`\kappa \ge 0`, a number, or one for each field.
        **Shape:** ``(batch,)``.
    :param velocity: :math:`c`, likewise.
    :param float time: :math:`t \ge 0`.
    :returns: the field after that time. **Shape:** as the field.
    :raises ValueError: for numbers out of range, or a field that is not finite.

    Example::

        >>> field = torch.eye(4)[:1, :, None]
        >>> transport_step(field, velocity=0.25).flatten().round().abs()
        tensor([0., 1., 0., 0.])
    """
    field = checks.as_tensor("field", field, "(batch, ...)", finite=True)
    if field.dim() < 3 or not field.is_floating_point():
        raise ValueError(f"field must be (batch, *spatial, channels), got {checks.shown(field)}")
    each = []
    for name, value in {"diffusivity": diffusivity, "velocity": velocity}.items():
        tensor = checks.as_tensor(name, value, finite=True, like=field).to(field)
        is_positive = name == "velocity" or bool((tensor >= 0).all())
        if not is_positive or tensor.shape not in ((), field.shape[:1]):
            wanted = " >= 0" * (name == "diffusivity")
            raise ValueError(
                f"{name} must be one number{wanted}, or one for each field, "
                f"got {checks.shown(value)}"
            )
        each.append(tensor.expand(len(field)).reshape(-1, *[1] * (field.dim() - 1)))
    time = checks.number("time", time, least=0)
    axes = range(1, field.dim() - 1)
    square, total = torch.zeros_like(field[:1]), torch.zeros_like(field[:1])
    for axis in axes:
        size = field.shape[axis]
        mode = (
            2 * math.pi * torch.fft.fftfreq(size, 1 / size, dtype=field.dtype, device=field.device)
        )
        mode = mode.reshape(-1, *[1] * (field.dim() - 1 - axis))
        square, total = square + mode.square(), total + mode
    multiplier = torch.polar(torch.exp(-each[0] * square * time), -each[1] * total * time)
    found: Tensor = torch.fft.ifftn(
        torch.fft.fftn(field, dim=list(axes)) * multiplier, dim=list(axes)
    )
    return found.real


def transport_fields(
    num_fields: int,
    num_axes: int,
    size: int = 16,
    num_steps: int = 4,
    *,
    equation: str = "heat",
    max_mode: float = 2.0,
    seed: int | None = None,
) -> Tensor:
    r"""Draw histories of fields under the heat or the advection equation, each at its own rate.

    A field starts as Gaussian noise with the spectrum :math:`e^{-|k|^2 / m^2}`, standardized.
    In each step, its modes with :math:`|k| = 1` decay by a factor :math:`e^{-r}` under the heat
    equation, with :math:`r` between 0.05 and 0.3, or it moves by 0.02 to 0.08 of each axis.

    :param int num_fields: number of histories.
    :param int num_axes: number of axes.
    :param int size: size of each axis.
    :param int num_steps: number of times in a history.
    :param str equation: ``"heat"`` or ``"advection"``.
    :param float max_mode: :math:`m`, above which modes are small, at least 0.5.
    :param int seed: seed of the draws.
    :returns: **Shape:** ``(num_fields, num_steps, *spatial, 1)``.
    :raises ValueError: for numbers out of range.

    Example::

        >>> transport_fields(2, num_axes=3, size=8, seed=0).shape
        torch.Size([2, 4, 8, 8, 8, 1])
    """
    num_fields, shape = _shape(num_fields, num_axes, size)
    checks.integer("num_steps", num_steps, 1)
    checks.choice("equation", equation, ("heat", "advection"))
    checks.number("max_mode", max_mode, least=0.5)  # below are rounding errors alone
    with seeded(seed):
        noise, rate = torch.randn(num_fields, *shape, 1), torch.rand(num_fields)
    start = transport_step(noise, 1 / (2 * math.pi * max_mode) ** 2)
    start = _standardized(start)
    rates = {"diffusivity": (0.05 + 0.25 * rate) / (2 * math.pi) ** 2}
    if equation == "advection":
        rates = {"velocity": 0.02 + 0.06 * rate}
    return torch.stack([transport_step(start, **rates, time=t) for t in range(num_steps)], 1)


def kernel_fields(
    num_fields: int, num_axes: int, size: int = 16, *, seed: int | None = None
) -> tuple[Tensor, Tensor]:
    r"""Draw fields from Gaussian processes with one of two kernels, for classification.

    They are on a grid in :math:`[-2, 2]^K`. Every other field has the RBF kernel, with label 1, and
    the rest have the periodic kernel [1]. Both are products over axes, so draws are exact, axis by
    axis. The length scale is uniform in :math:`[0.1, 0.6]`, and the period in :math:`[0.1, 0.5]`.
    Fields are standardized.

    :param int num_fields: number of fields.
    :param int num_axes: :math:`K`.
    :param int size: size of each axis.
    :param int seed: seed of the draws.
    :returns: fields and labels. **Shape:** ``(num_fields, *spatial, 1)`` and ``(num_fields,)``.
    :raises ValueError: for numbers out of range.

    [1] D. J. C. MacKay (1998), Introduction to Gaussian processes.

    Example::

        >>> fields, labels = kernel_fields(4, num_axes=2, seed=0)
        >>> fields.shape, labels
        (torch.Size([4, 16, 16, 1]), tensor([1, 0, 1, 0]))
    """
    num_fields, shape = _shape(num_fields, num_axes, size)
    with seeded(seed):
        length = 0.1 + 0.5 * torch.rand(num_fields, 1, 1, dtype=torch.float64)
        period = 0.1 + 0.4 * torch.rand(num_fields, 1, 1, dtype=torch.float64)
        field = torch.randn(num_fields, *shape, dtype=torch.float64)
    grid = torch.linspace(-2, 2, size, dtype=torch.float64)
    lag = grid[:, None] - grid
    labels = 1 - torch.arange(num_fields) % 2
    periodic = torch.exp(-2 * (math.pi * lag / period).sin().square() / length.square())
    rbf = torch.exp(-lag.square() / (2 * length.square()))
    values, vectors = torch.linalg.eigh(torch.where(labels[:, None, None] == 1, rbf, periodic))
    root = vectors * values.clamp(min=0).sqrt()[:, None]
    for axis in range(1, 1 + num_axes):
        lines = field.movedim(axis, -1)
        field = torch.einsum("nab,n...b->n...a", root, lines).movedim(-1, axis)
    return _standardized(field[..., None]).float(), labels


def _shape(num_fields: int, num_axes: int, size: int) -> tuple[int, list[int]]:
    checks.integer("num_fields", num_fields, 1)
    return num_fields, checks.integer("num_axes", num_axes, 1) * [checks.integer("size", size, 2)]


def _standardized(fields: Tensor) -> Tensor:
    """With mean 0 and standard deviation 1 over the positions of each field."""
    axes = list(range(1, fields.dim() - 1))
    centered = fields - fields.mean(axes, keepdim=True)
    return centered / centered.square().mean(axes, keepdim=True).sqrt().clamp(min=1e-12)
