"""Flows of vector fields, as transforms and as random transformations.

[1] G. Ko, H. Kim, J. Lee (2024), Learning infinitesimal generators of continuous symmetries from
data.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions.torch_transform import TransformModule
from torch import Tensor, nn
from torch.distributions import constraints
from torch.func import jvp
from torch.nn import functional

from pyro_ext._lib import checks
from pyro_ext.nn.generators import Field, VectorField, hold, image_grid, is_given


def flow(field: Field, z: Tensor, s: float | Tensor = 1.0, *, num_steps: int = 20) -> Tensor:
    r"""Move points along a vector field, by equal steps of the Runge-Kutta method.

    .. math:: \frac{d}{ds} \phi_s(z) = V(\phi_s(z)), \qquad \phi_0(z) = z

    Gradients flow through the steps. Times may be negative: :math:`\phi_{-s}` is the inverse of
    :math:`\phi_s`, up to the error of the solver. To follow all fields of a :class:`VectorField` at
    once, pass ``field.each`` and points of shape ``(n, *batch, dim)``.

    :param Callable field: :math:`V`, a function from points to velocities of the same shape, or a
        :class:`VectorField` with a single field.
    :param Tensor z: points. **Shape:** ``(*batch, dim)``.
    :param s: times, a number or a tensor that broadcasts against ``(*batch)``.
    :param int num_steps: number of steps.
    :returns: points. **Shape:** that of ``z``, broadcast against the times.
    :raises ValueError: if the velocities have a different shape from the points, or the field moves
        points to infinity.

    Example::

        >>> rotation = lambda z: torch.stack([-z[..., 1], z[..., 0]], -1)
        >>> flow(rotation, torch.tensor([1.0, 0.0]), torch.pi / 2).abs().round(decimals=4)
        tensor([0., 1.])
    """
    _check_field(field)
    z = checks.as_tensor("z", z, allow_empty=True, finite=True)
    z, s = _start(z, _times(s, finite=True))
    checks.integer("num_steps", num_steps, 1)
    moved: Tensor = _integrate(lambda y: s * _velocity(field, y), z, num_steps)
    checks.all_finite("points along field", moved)
    return moved


class FlowTransform(TransformModule):
    r"""The flow of a vector field as a bijection, with the log determinant of its Jacobian.

    .. math:: \log |\det D\phi_s(z)| = \int_0^s \operatorname{div} V(\phi_r(z))\, dr

    The inverse is the flow backward in time. The divergence is exact and takes one forward-mode
    derivative of the field for each dimension.

    :param Callable field: a function from points to velocities of the same shape, row by row. If it
        is a module, its parameters are those of the transform. It can be a :class:`VectorField`
        with a single field; if there are several, pass ``field.combination(weights)``.
    :param s: the time: a number, a tensor with one time for each element of the batch, or a
        parameter.
    :param int num_steps: as in :func:`flow`.

    Example::

        >>> from pyro_ext.nn import GeneratorField
        >>> transform = FlowTransform(GeneratorField(2, 1), 0.5)
        >>> law = dist.TransformedDistribution(dist.Normal(torch.zeros(2), 1.0).to_event(1),
        ...                                    [transform])
        >>> x = law.sample((5,))
        >>> law.log_prob(x).shape, torch.allclose(transform(transform.inv(x)), x, atol=1e-5)
        (torch.Size([5]), True)
    """

    domain = constraints.real_vector
    codomain = constraints.real_vector
    bijective = True
    s: float | Tensor

    def __init__(self, field: Field, s: float | Tensor = 1.0, *, num_steps: int = 20) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        _check_field(field)
        s = _times(s, finite=not isinstance(s, Tensor) or is_given(s))
        hold(self, "s", s)
        self.field, self.num_steps = field, checks.integer("num_steps", num_steps, 1)

    def forward_shape(self, shape: Sequence[int]) -> torch.Size:
        """Shape of moved points, broadcast against the times."""
        batch = torch.broadcast_shapes(shape[:-1], torch.as_tensor(self.s).shape)
        return torch.Size([*batch, *shape[-1:]])

    inverse_shape = forward_shape

    def _call(self, x: Tensor) -> Tensor:
        return self._flow(x, self.s)

    def _inverse(self, y: Tensor) -> Tensor:
        return self._flow(y, -self.s)

    def _flow(self, z: Tensor, s: float | Tensor) -> Tensor:
        # Values may be infinite in a sampler, which then refuses the step: no check here.
        z, s = _start(z, s)
        moved: Tensor = _integrate(lambda y: s * _velocity(self.field, y), z, self.num_steps)
        return moved

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """Integrate the divergence along the path from ``x`` to ``y``.

        :param Tensor x: points. **Shape:** ``(*batch, dim)``.
        :param Tensor y: their images, which are not used.
        :returns: **Shape:** ``(*batch)``.
        """
        x, s = _start(x, self.s)
        field, directions = partial(_velocity, self.field), torch.eye(x.shape[-1]).to(x)

        def slope(state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
            z = state[0]
            divergence = torch.zeros_like(z[..., 0])
            for axis, direction in enumerate(directions):
                value, change, *_ = jvp(field, (z,), (direction.expand_as(z),))
                divergence = divergence + change[..., axis]
            return s * value, s[..., 0] * divergence

        x = x.contiguous()  # forward derivatives want no expanded memory
        begin = (x, torch.zeros_like(x[..., 0]))
        log_determinant: Tensor = _integrate(slope, begin, self.num_steps)[1]
        return log_determinant


class OneParameterGroupAugmentation(nn.Module):
    r"""Random transformations of images along vector fields, as a stochastic function [1].

    A call draws :math:`u_j \sim \mathrm{Uniform}(-c_j, c_j)` at a Pyro site and moves the sampling
    coordinates of the images, those of :func:`image_grid`, along the field :math:`\sum_j u_j V_j`
    for one unit of time.

    :param VectorField field: fields in two dimensions, usually normalized.
    :param scale: :math:`c > 0`, one number, or one for each field. **Shape:** ``(n,)``.
    :param str name: the name of the site.
    :param bool shared: whether all images of a batch share one transformation, which is faster.
        Otherwise each has its own, in a plate.
    :param int num_steps: number of steps of the solver.

    [1] G. Ko, H. Kim, J. Lee (2024),
    Learning infinitesimal generators of continuous symmetries from data.

    Example::

        >>> from pyro_ext.nn import AffineField
        >>> augment = OneParameterGroupAugmentation(AffineField(2), 0.1)
        >>> images = torch.rand(5, 1, 8, 8)
        >>> augment(images).shape
        torch.Size([5, 1, 8, 8])
        >>> trace = pyro.poutine.trace(augment).get_trace(images)
        >>> trace.nodes["s"]["value"].shape
        torch.Size([5, 6])
    """

    scale: Tensor

    def __init__(
        self,
        field: VectorField,
        scale: float | Tensor = 0.1,
        *,
        name: str = "s",
        shared: bool = False,
        num_steps: int = 8,
    ) -> None:
        super().__init__()
        checks.instance("field", field, VectorField, "a VectorField")
        scale = checks.as_tensor("scale", scale, finite=True)
        if scale.shape not in ((), (field.n,)) or not bool((scale > 0).all()):
            raise ValueError(f"scale must be numbers > 0, one or {field.n}, got {scale!r:.80}")
        if field.dim != 2:
            raise ValueError(f"field must have dim = 2 to act on images, got {field.dim}")
        checks.instance("name", name, str, "a name")
        if not name:
            raise ValueError("name must not be empty, got ''")
        self.field, self.name = field, name
        self.register_buffer("scale", scale.expand(field.n).clone())
        self.shared = checks.boolean("shared", shared)
        self.num_steps = checks.integer("num_steps", num_steps, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Transform images at random.

        :param Tensor x: images. **Shape:** ``(batch, channels, height, width)``.
        :returns: transformed images. **Shape:** that of ``x``, after the dimensions of other plates
            around the call.
        """
        x = checks.as_tensor("x", x, "(batch, channels, height, width)", finite=True)
        if not x.is_floating_point():
            raise TypeError(f"x must be floating-point numbers, got {checks.shown(x)}")
        points = image_grid(*x.shape[-2:], dtype=x.dtype, device=x.device)
        points = points.expand(1 if self.shared else len(x), *points.shape)
        scale = self.scale.to(x)
        law = dist.Uniform(-scale, scale).to_event(1)
        if self.shared:
            weights = pyro.sample(self.name, law).unsqueeze(-2)
        else:
            plate = pyro.plate(f"{self.name}_plate", len(x))
            with plate:
                dim: int = plate.dim  # type: ignore[assignment]  # known as it is entered
                weights = pyro.sample(self.name, law).movedim(dim - 1, -2)
        outer = weights.shape[:-2]  # of other plates
        weights = weights.reshape(*weights.shape[:-1], *[1] * (points.dim() - 2), self.field.n)
        points = points.expand(*outer, *points.shape)
        moved = flow(self.field.combination(weights), points, num_steps=self.num_steps)
        images = x.expand(*outer, *x.shape)
        moved = moved.expand(*images.shape[:-3], *moved.shape[-3:]).flatten(0, -4)
        found = functional.grid_sample(images.flatten(0, -4), moved, align_corners=True)
        return found.view_as(images)


def _integrate(slope: Callable[[Any], Any], begin: Any, num_steps: int) -> Any:
    """State at time one, of a tensor or a tuple of tensors."""
    # Not by torchdiffeq, which writes into tensors of its own: torch.vmap over chains can't.
    h, state = 1.0 / num_steps, begin
    for _ in range(num_steps):
        first = slope(state)
        second = slope(_ahead(state, first, h / 2))
        third = slope(_ahead(state, second, h / 2))
        last = slope(_ahead(state, third, h))
        for part, weight in ((first, 1), (second, 2), (third, 2), (last, 1)):
            state = _ahead(state, part, weight * h / 6)
    return state


def _ahead(state: Any, slope: Any, h: float) -> Any:
    """A state, a step along a slope further."""
    if isinstance(state, Tensor):
        return torch.add(state, slope, alpha=h)
    return tuple(torch.add(x, v, alpha=h) for x, v in zip(state, slope, strict=True))


def _velocity(field: Field, z: Tensor) -> Tensor:
    """Velocities at points, which a field may not write into."""
    value = field(z.clone())
    if isinstance(field, VectorField):
        value = value.squeeze(-2)
    if not isinstance(value, Tensor) or value.shape != z.shape:
        got = tuple(value.shape) if isinstance(value, Tensor) else checks.shown(value)
        raise ValueError(f"field must give velocities of the shape {tuple(z.shape)}, got {got}")
    return value


def _start(z: Tensor, s: float | Tensor) -> tuple[Tensor, Tensor]:
    """Points and times, broadcast against each other, times with a last dimension of one."""
    z = checks.as_tensor("z", z, allow_empty=True)
    if not z.is_floating_point() or not z.dim() or not z.shape[-1]:
        raise ValueError(f"z must be real numbers of the shape (*batch, dim), got {z!r:.80}")
    s = torch.as_tensor(s).to(z)
    try:
        shape = torch.broadcast_shapes(z.shape[:-1], s.shape)
    except RuntimeError:
        raise ValueError(
            f"s must broadcast against {tuple(z.shape[:-1])}, got the shape {tuple(s.shape)}"
        ) from None
    return z.expand(*shape, z.shape[-1]), s.expand(shape).unsqueeze(-1)


def _times(s: float | Tensor, *, finite: bool) -> float | Tensor:
    """Check times."""
    if isinstance(s, Tensor):
        return checks.as_tensor("s", s, finite=finite, allow_empty=True)
    return checks.number("s", s)


def _check_field(field: Field) -> None:
    checks.function("field", field, "a function of points", or_class=False)
    if isinstance(field, VectorField) and field.n != 1:
        raise ValueError(
            f"field must have n = 1 here, got {field.n}: take field.combination(weights), or "
            "field.each"
        )
