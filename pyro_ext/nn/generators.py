"""Vector fields, their flows, and random transformations along them.

[1] G. Ko, H. Kim, J. Lee (2024), Learning infinitesimal generators of continuous symmetries from
data.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, Literal

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions.torch_transform import TransformModule
from torch import Tensor, nn
from torch.distributions import constraints
from torch.func import jvp
from torch.nn import functional

from pyro_ext._checks import (
    as_tensor,
    check_boolean,
    check_callable,
    check_choice,
    check_instance,
    check_integer,
    check_mapping,
    check_number,
    check_optional,
)
from pyro_ext._optional import optional_module

__all__ = [
    "AffineField",
    "FlowTransform",
    "FunctionField",
    "GeneratorField",
    "OneParameterGroupAugmentation",
    "ScaledField",
    "VectorField",
    "flow",
    "image_grid",
    "inner_products",
]

Field = Callable[[Tensor], Tensor]

_FIXED = ("midpoint", "euler")
_METHODS = ("rk4", *_FIXED, "dopri5", "dopri8", "bosh3")


class VectorField(nn.Module):
    """Some vector fields on a space, the base of the classes below.

    A subclass gives :meth:`each`, and :meth:`forward` where it has a faster way.

    :param int dim: dimension of the space.
    :param int n: number of fields.
    """

    def __init__(self, dim: int, n: int) -> None:
        super().__init__()
        self.dim = check_integer("dim", dim, 1)
        self.n = check_integer("n", n, 1)

    def each(self, z: Tensor) -> Tensor:
        """Each field at points of its own.

        :param Tensor z: **Shape:** ``(n, *batch, dim)``.
        :returns: **Shape:** ``(n, *batch, dim)``.
        """
        raise NotImplementedError

    def forward(self, z: Tensor) -> Tensor:
        """All fields at the same points.

        :param Tensor z: **Shape:** ``(*batch, dim)``.
        :returns: **Shape:** ``(*batch, n, dim)``.
        """
        z = as_tensor("z", z, f"(*batch, {self.dim})", allow_empty=True)
        return self.each(z.expand(self.n, *z.shape)).movedim(0, -2)

    def combination(self, weights: Tensor) -> Field:
        r"""The field :math:`\sum_j u_j V_j`.

        :param Tensor weights: :math:`u`. **Shape:** ``(*batch, n)``; its batch broadcasts against
            that of the points.
        :returns: a function from points to velocities, both of the shape ``(*batch, dim)``.

        Example::

            >>> shift = AffineField(2).combination(torch.tensor([1.0, 0, 0, 0, 0, 0]))
            >>> shift(torch.zeros(2))
            tensor([1., 0.])
        """
        weights = as_tensor("weights", weights, f"(*batch, {self.n})", finite=True)

        def field(z: Tensor) -> Tensor:
            values: Tensor = self(z)
            return (weights.unsqueeze(-1) * values).sum(-2)

        return field

    def normalized(self, points: Tensor, weights: Tensor | None = None) -> "ScaledField":
        r"""The fields divided by their norms over points.

        .. math:: \tilde V_j = V_j / \sqrt{\langle V_j, V_j \rangle}

        :param Tensor points: **Shape:** ``(*grid, dim)``.
        :param Tensor weights: of the points, see :func:`inner_products`. **Shape:** ``(*grid)``.
        :raises ValueError: for a field that is zero at all points.

        Example::

            >>> grid = image_grid(32, 32)
            >>> fields = AffineField(2).normalized(grid)
            >>> inner_products(fields(grid).movedim(-2, 0)).diagonal().round(decimals=3)
            tensor([1., 1., 1., 1., 1., 1.])
        """
        points = as_tensor("points", points, f"(*grid, {self.dim})", finite=True)
        values = self(points).movedim(-2, 0)
        norms = inner_products(values, weights).diagonal().sqrt()
        if not bool((norms > 0).all()):
            raise ValueError(
                f"points must be such that no field is zero at all, got norms {norms.tolist()}"
            )
        return ScaledField(self, 1.0 / norms)


class GeneratorField(VectorField):
    r"""Vector fields by a network, one trunk with a head for each field [1].

    :param int dim: dimension of the space.
    :param int n: number of fields.
    :param int trunk: width of the two layers that fields have in common.
    :param int head: width of the layer of each field.
    :param Mapping periods: of coordinates that are periodic, by their number; fields have these
        periods too.

    [1] G. Ko, H. Kim, J. Lee (2024),
    Learning infinitesimal generators of continuous symmetries from data.

    Example::

        >>> field = GeneratorField(2, 4)
        >>> field(torch.zeros(10, 2)).shape, field.each(torch.zeros(4, 10, 2)).shape
        (torch.Size([10, 4, 2]), torch.Size([4, 10, 2]))
    """

    def __init__(
        self,
        dim: int,
        n: int,
        trunk: int = 256,
        head: int = 32,
        *,
        periods: Mapping[int, float] | None = None,
    ) -> None:
        super().__init__(dim, n)
        check_integer("trunk", trunk, 1)
        check_integer("head", head, 1)
        self.periods = dict(check_optional(_check_periods, "periods", periods, dim) or {})
        self.trunk = nn.Sequential(
            nn.Linear(dim + len(self.periods), trunk), nn.SiLU(), nn.Linear(trunk, trunk), nn.SiLU()
        )
        self.head_weight = _uniform(n, trunk, head, fan_in=trunk)
        self.head_bias = _uniform(n, 1, head, fan_in=trunk)
        self.out_weight = _uniform(n, head, dim, fan_in=head)
        self.out_bias = _uniform(n, 1, dim, fan_in=head)

    def each(self, z: Tensor) -> Tensor:
        """See :meth:`VectorField.each`."""
        as_tensor("z", z, f"(*batch, {self.dim})", allow_empty=True)
        if z.dim() < 2 or len(z) != self.n:
            raise ValueError(
                f"z must have the shape ({self.n}, *batch, {self.dim}), got {tuple(z.shape)}"
            )
        return self._heads(self.trunk(self._features(z)).flatten(1, -2)).view_as(z)

    def forward(self, z: Tensor) -> Tensor:
        """See :meth:`VectorField.forward`."""
        z = as_tensor("z", z, f"(*batch, {self.dim})", allow_empty=True)
        common = self.trunk(self._features(z)).reshape(1, -1, self.trunk[0].out_features)
        values = self._heads(common.expand(self.n, -1, -1))
        return values.movedim(0, 1).reshape(*z.shape[:-1], self.n, self.dim)

    def _heads(self, common: Tensor) -> Tensor:
        """Fields, from what the trunk gives for each."""
        hidden = functional.silu(torch.baddbmm(self.head_bias, common, self.head_weight))
        return torch.baddbmm(self.out_bias, hidden, self.out_weight)

    def _features(self, z: Tensor) -> Tensor:
        """Points as the trunk takes them: periodic coordinates by cosine and sine."""
        if not self.periods:
            return z
        parts = []
        for axis, coordinate in enumerate(z.unbind(-1)):
            if axis in self.periods:
                angle = 2 * math.pi * coordinate / self.periods[axis]
                parts += [angle.cos(), angle.sin()]
            else:
                parts.append(coordinate)
        return torch.stack(parts, -1)


class AffineField(VectorField):
    """The generators of affine maps: translations along each axis, then each entry of a matrix.

    In two dimensions these are two translations, and with the order ``xx``, ``xy``, ``yx``, ``yy``
    of the matrix a scaling, two shears, and the other scaling.

    :param int dim: dimension of the space.

    Example::

        >>> AffineField(2)(torch.tensor([3.0, 5.0]))
        tensor([[1., 0.],
                [0., 1.],
                [3., 0.],
                [5., 0.],
                [0., 3.],
                [0., 5.]])
    """

    maps: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__(dim, check_integer("dim", dim, 1) * (dim + 1))
        maps = torch.zeros(self.n, dim, dim + 1)
        for i in range(dim):
            maps[i, i, dim] = 1.0
            for j in range(dim):
                maps[dim + i * dim + j, i, j] = 1.0
        self.register_buffer("maps", maps)

    def each(self, z: Tensor) -> Tensor:
        """See :meth:`VectorField.each`."""
        as_tensor("z", z, f"(*batch, {self.dim})", allow_empty=True)
        maps = self.maps.to(z)
        shift = maps[:, :, -1].reshape(self.n, *[1] * (z.dim() - 2), self.dim)
        return torch.einsum("nij,n...j->n...i", maps[:, :, :-1], z) + shift


class FunctionField(VectorField):
    """Vector fields that a function gives, such as known symmetries of an equation.

    :param Callable function: from points of the shape ``(*batch, dim)`` to velocities of the shape
        ``(*batch, n, dim)``.
    :param int dim: dimension of the space.
    :param int n: number of fields.

    Example::

        >>> rotation = FunctionField(lambda z: torch.stack([-z[..., 1:], z[..., :1]], -1), 2, 1)
        >>> rotation(torch.tensor([3.0, 5.0]))
        tensor([[-5.,  3.]])
    """

    def __init__(self, function: Field, dim: int, n: int) -> None:
        super().__init__(dim, n)
        check_callable("function", function, "a function of points", or_class=False)
        self.function = function

    def forward(self, z: Tensor) -> Tensor:
        """See :meth:`VectorField.forward`."""
        z = as_tensor("z", z, f"(*batch, {self.dim})", allow_empty=True)
        values = self.function(z)
        wanted = (*z.shape[:-1], self.n, self.dim)
        if not isinstance(values, Tensor) or values.shape != wanted:
            raise ValueError(
                f"function must give velocities of the shape {wanted}, got "
                f"{tuple(values.shape) if isinstance(values, Tensor) else values!r}"
            )
        return values

    def each(self, z: Tensor) -> Tensor:
        """See :meth:`VectorField.each`."""
        return torch.stack([self(points)[..., j, :] for j, points in enumerate(z)])


class ScaledField(VectorField):
    """Vector fields times numbers.

    :param VectorField field: the fields.
    :param Tensor scale: a number for each. **Shape:** ``(n,)``.

    Example::

        >>> ScaledField(AffineField(1), torch.tensor([2.0, 3.0]))(torch.ones(1))
        tensor([[2.],
                [3.]])
    """

    scale: Tensor

    def __init__(self, field: VectorField, scale: Tensor) -> None:
        check_instance("field", field, VectorField, "a VectorField")
        super().__init__(field.dim, field.n)
        self.field = field
        self.register_buffer("scale", as_tensor("scale", scale, f"({field.n},)", finite=True))

    def forward(self, z: Tensor) -> Tensor:
        """See :meth:`VectorField.forward`."""
        values: Tensor = self.field(z)
        return self.scale[:, None] * values

    def each(self, z: Tensor) -> Tensor:
        """See :meth:`VectorField.each`."""
        return self.scale.reshape(-1, *[1] * (z.dim() - 1)) * self.field.each(z)


def inner_products(values: Tensor, weights: Tensor | None = None) -> Tensor:
    r"""Inner products of fields over points [1].

    .. math:: \langle V, W \rangle = \sum_z w(z)\, V(z) \cdot W(z) \Big/ \sum_z w(z)

    :param Tensor values: fields at the points. **Shape:** ``(n, *grid, dim)``.
    :param Tensor weights: :math:`w \ge 0`, by default all alike. **Shape:** ``(*grid)``.
    :returns: **Shape:** ``(n, n)``.

    [1] G. Ko, H. Kim, J. Lee (2024),
    Learning infinitesimal generators of continuous symmetries from data.

    Example::

        >>> rotation = torch.stack([-image_grid(32, 32)[..., 1], image_grid(32, 32)[..., 0]], -1)
        >>> inner_products(rotation[None])
        tensor([[0.7097]])
    """
    values = as_tensor("values", values, "(n, ...)", finite=True)
    if values.dim() < 3:
        raise ValueError(f"values must have the shape (n, *grid, dim), got {tuple(values.shape)}")
    if weights is None:
        weighted = values / values[0, ..., 0].numel()
    else:
        weights = as_tensor("weights", weights, finite=True)
        if weights.shape != values.shape[1:-1] or not bool((weights >= 0).all() & weights.any()):
            raise ValueError(
                f"weights must be numbers >= 0 of the shape {tuple(values.shape[1:-1])}, not all "
                f"zero, got {weights!r:.80}"
            )
        weighted = values * (weights / weights.sum())[..., None]
    return weighted.flatten(1) @ values.flatten(1).mT


def flow(
    field: Field,
    z: Tensor,
    s: float | Tensor = 1.0,
    *,
    method: str = "rk4",
    num_steps: int = 20,
    tolerance: float = 1e-6,
) -> Tensor:
    r"""Move points along a vector field.

    .. math:: \frac{d}{ds} \phi_s(z) = V(\phi_s(z)), \qquad \phi_0(z) = z

    Gradients go through the steps. Times may be negative: :math:`\phi_{-s}` is the inverse of
    :math:`\phi_s`, up to the error of the solver. All fields of a :class:`VectorField` go along at
    once, from points ``(n, *batch, dim)``, with ``field.each``.

    :param Callable field: :math:`V`, from points to velocities of the same shape.
    :param Tensor z: points. **Shape:** ``(*batch, dim)``.
    :param s: times, a number or a tensor that broadcasts against ``(*batch)``.
    :param str method: ``"rk4"``, Runge and Kutta's method with equal steps, which works under
        :func:`torch.vmap`; or a solver of ``torchdiffeq``: ``"midpoint"`` or ``"euler"`` with equal
        steps, ``"dopri5"``, ``"dopri8"`` or ``"bosh3"`` with steps that adapt.
    :param int num_steps: number of equal steps.
    :param float tolerance: of a solver whose steps adapt, absolute and relative.
    :returns: points. **Shape:** as ``z``, broadcast against the times.
    :raises ImportError: for a solver of ``torchdiffeq`` without it; the extra is ``series``.

    Example::

        >>> rotation = lambda z: torch.stack([-z[..., 1], z[..., 0]], -1)
        >>> flow(rotation, torch.tensor([1.0, 0.0]), torch.pi / 2).abs().round(decimals=4)
        tensor([0., 1.])
    """
    z, s = _start(field, z, s)
    _check_solver(method, num_steps, tolerance)
    moved: Tensor = _integrate(lambda y: s * field(y), z, method, num_steps, tolerance)
    return moved


class FlowTransform(TransformModule):
    r"""The flow of a vector field as a bijection, whose log-determinant is that of its Jacobian.

    .. math:: \log |\det D\phi_s(z)| = \int_0^s \operatorname{div} V(\phi_r(z))\, dr

    The inverse is the flow back. The divergence is exact, by one forward derivative of the field
    for each dimension.

    :param Callable field: from points to velocities of the same shape, row by row; a module's
        parameters are those of the transform. Of a :class:`VectorField` with one field that one is
        taken, of another take ``field.combination(weights)``.
    :param s: the time, a number, a tensor of one for each element of the batch, or a parameter.
    :param str method: as of :func:`flow`, as are ``num_steps`` and ``tolerance``.

    Example::

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

    def __init__(
        self,
        field: Field,
        s: float | Tensor = 1.0,
        *,
        method: str = "rk4",
        num_steps: int = 20,
        tolerance: float = 1e-6,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        check_callable("field", field, "a function of points", or_class=False)
        if isinstance(field, VectorField) and field.n != 1:
            raise ValueError(
                f"field must have n = 1 here, got {field.n}: take field.combination(weights)"
            )
        self.s = _times(s)
        _check_solver(method, num_steps, tolerance)
        self.field = field
        self.method, self.num_steps, self.tolerance = method, num_steps, tolerance

    def _velocity(self, z: Tensor) -> Tensor:
        value = self.field(z)
        return value.squeeze(-2) if isinstance(self.field, VectorField) else value

    def _call(self, x: Tensor) -> Tensor:
        return self._flow(x, self.s)

    def _inverse(self, y: Tensor) -> Tensor:
        return self._flow(y, -self.s)

    def _flow(self, z: Tensor, s: float | Tensor) -> Tensor:
        return flow(
            self._velocity,
            z,
            s,
            method=self.method,
            num_steps=self.num_steps,
            tolerance=self.tolerance,
        )

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """The integral of the divergence along the way from ``x`` to ``y``.

        :param Tensor x: points. **Shape:** ``(*batch, dim)``.
        :param Tensor y: where they go; it is not needed.
        :returns: **Shape:** ``(*batch)``.
        """
        x, s = _start(self._velocity, x, self.s)
        directions = torch.eye(x.shape[-1], dtype=x.dtype, device=x.device)

        def slope(state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
            z = state[0]
            divergence = torch.zeros_like(z[..., 0])
            for axis, direction in enumerate(directions):
                value, change, *_ = jvp(self._velocity, (z,), (direction.expand_as(z),))
                divergence = divergence + change[..., axis]
            return s * value, s[..., 0] * divergence

        x = x.contiguous()  # forward derivatives want no expanded memory
        begin = (x, torch.zeros_like(x[..., 0]))
        end = _integrate(slope, begin, self.method, self.num_steps, self.tolerance)
        result: Tensor = end[1]
        return result


class OneParameterGroupAugmentation(nn.Module):
    r"""Random transformations along fields, as a stochastic function [1].

    A call draws :math:`u_j \sim \mathrm{Uniform}(-c_j, c_j)` at a site of Pyro and follows the
    field :math:`\sum_j u_j V_j` for a time of one.

    :param VectorField field: the fields, mostly normalized.
    :param scale: :math:`c > 0`, a number or one for each field. **Shape:** ``(n,)``.
    :param str acts_on: ``"images"``, whose sampling coordinates are moved, in [-1, 1] as those of
        :func:`image_grid`; or ``"points"``, which move themselves.
    :param str name: of the site.
    :param bool shared: whether the elements of a batch have one transformation in common, which is
        faster, instead of one each, in a plate.
    :param int num_steps: steps of the solver.

    [1] G. Ko, H. Kim, J. Lee (2024),
    Learning infinitesimal generators of continuous symmetries from data.

    Example::

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
        acts_on: Literal["images", "points"] = "images",
        name: str = "s",
        shared: bool = False,
        num_steps: int = 8,
    ) -> None:
        super().__init__()
        check_instance("field", field, VectorField, "a VectorField")
        scale = as_tensor("scale", scale, finite=True)
        if scale.shape not in ((), (field.n,)) or not bool((scale > 0).all()):
            raise ValueError(f"scale must be numbers > 0, one or {field.n}, got {scale!r:.80}")
        check_choice("acts_on", acts_on, ("images", "points"))
        if acts_on == "images" and field.dim != 2:
            raise ValueError(f"field must have dim = 2 to act on images, got {field.dim}")
        check_instance("name", name, str, "a name")
        if not name:
            raise ValueError("name must not be empty, got ''")
        self.field, self.name, self.acts_on = field, name, acts_on
        self.register_buffer("scale", scale.expand(field.n).clone())
        self.shared = check_boolean("shared", shared)
        self.num_steps = check_integer("num_steps", num_steps, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Transform at random.

        :param Tensor x: images ``(batch, channels, height, width)``, or points ``(batch, *grid,
            dim)``.
        :returns: **Shape:** as ``x``.
        """
        is_image = self.acts_on == "images"
        shape = "(batch, channels, height, width)" if is_image else "(batch, ...)"
        x = as_tensor("x", x, shape, finite=True)
        points = x
        if is_image:
            grid = image_grid(*x.shape[-2:], dtype=x.dtype, device=x.device)
            points = grid.expand(1 if self.shared else len(x), *grid.shape)
        elif x.dim() < 2 or x.shape[-1] != self.field.dim:
            raise ValueError(
                f"x must have the shape (batch, *grid, {self.field.dim}), got {tuple(x.shape)}"
            )
        scale = self.scale.to(x)
        law = dist.Uniform(-scale, scale).to_event(1)
        if self.shared:
            weights = pyro.sample(self.name, law).expand(1, -1)
        else:
            with pyro.plate(f"{self.name}_plate", len(x)):
                weights = pyro.sample(self.name, law)
        weights = weights.reshape(len(weights), *[1] * (points.dim() - 2), self.field.n)
        moved = flow(self.field.combination(weights), points, num_steps=self.num_steps)
        if not is_image:
            return moved
        moved = moved.expand(len(x), *moved.shape[1:])
        return functional.grid_sample(x, moved, align_corners=True)


def image_grid(
    height: int,
    width: int,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | None = None,
) -> Tensor:
    """Coordinates ``(x, y)`` of the pixels of an image, from -1 at one edge to 1 at the other.

    :param int height: rows of pixels.
    :param int width: columns of pixels.
    :param torch.dtype dtype: of the result.
    :param torch.device device: of the result.
    :returns: **Shape:** ``(height, width, 2)``.

    Example::

        >>> image_grid(2, 3)[0]
        tensor([[-1., -1.],
                [ 0., -1.],
                [ 1., -1.]])
    """
    check_integer("height", height, 2)
    check_integer("width", width, 2)
    y = torch.linspace(-1.0, 1.0, height, dtype=dtype, device=device)
    x = torch.linspace(-1.0, 1.0, width, dtype=dtype, device=device)
    return torch.stack(torch.meshgrid(x, y, indexing="xy"), -1)


def _integrate(
    slope: Callable[[Any], Any], begin: Any, method: str, num_steps: int, tolerance: float
) -> Any:
    """State at time one, of a tensor or a tuple of tensors."""
    if method == "rk4":
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
    solver = optional_module("torchdiffeq", "flow", "torchdiffeq", "series")
    is_fixed = method in _FIXED
    x = begin if isinstance(begin, Tensor) else begin[0]
    times = torch.linspace(0.0, 1.0, num_steps + 1 if is_fixed else 2).to(x)
    options = {} if is_fixed else {"rtol": tolerance, "atol": tolerance}
    path = solver.odeint(lambda _, state: slope(state), begin, times, method=method, **options)
    return path[-1] if isinstance(path, Tensor) else tuple(part[-1] for part in path)


def _ahead(state: Any, slope: Any, h: float) -> Any:
    """A state, a step along a slope further."""
    if isinstance(state, Tensor):
        return torch.add(state, slope, alpha=h)
    return tuple(torch.add(x, v, alpha=h) for x, v in zip(state, slope, strict=True))


def _start(field: Field, z: Tensor, s: float | Tensor) -> tuple[Tensor, Tensor]:
    """Points and times, broadcast against each other, times with a last dimension of one."""
    check_callable("field", field, "a function of points", or_class=False)
    z = as_tensor("z", z, finite=True)
    if not z.is_floating_point() or not z.dim():
        raise ValueError(f"z must be real numbers of the shape (*batch, dim), got {z!r:.80}")
    s = torch.as_tensor(_times(s)).to(z)
    try:
        shape = torch.broadcast_shapes(z.shape[:-1], s.shape)
    except RuntimeError:
        raise ValueError(
            f"s must broadcast against {tuple(z.shape[:-1])}, got the shape {tuple(s.shape)}"
        ) from None
    return z.expand(*shape, z.shape[-1]), s.expand(shape).unsqueeze(-1)


def _times(s: float | Tensor) -> float | Tensor:
    """Check times."""
    if isinstance(s, Tensor):
        return as_tensor("s", s, finite=True)
    return check_number("s", s)


def _check_solver(method: str, num_steps: int, tolerance: float) -> None:
    check_choice("method", method, _METHODS)
    check_integer("num_steps", num_steps, 1)
    check_number("tolerance", tolerance, above=0)


def _check_periods(argument: str, periods: Mapping[int, float], dim: int) -> None:
    check_mapping(argument, periods, "a dict of periods by number of the coordinate")
    for axis, period in periods.items():
        if isinstance(axis, bool) or axis not in range(dim):
            raise ValueError(f"{argument} must be of coordinates below {dim}, got {axis!r}")
        check_number(f"{argument}[{axis}]", period, above=0)


def _uniform(*shape: int, fan_in: int) -> nn.Parameter:
    """A parameter drawn as those of :class:`torch.nn.Linear`."""
    bound = fan_in**-0.5
    return nn.Parameter(torch.empty(shape).uniform_(-bound, bound))
