"""Vector fields defined by networks or functions, and the generators of affine maps.

[1] G. Ko, H. Kim, J. Lee (2024), Learning infinitesimal generators of continuous symmetries from
data.
"""

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from pyro_ext._lib import checks

Field = Callable[[Tensor], Tensor]


class VectorField(nn.Module):
    """Base class of sets of vector fields on a space.

    A subclass defines :meth:`each`, and :meth:`forward` if there is a faster way.

    :param int dim: dimension of the space.
    :param int n: number of fields.
    """

    def __init__(self, dim: int, n: int) -> None:
        super().__init__()
        self.dim = checks.integer("dim", dim, 1)
        self.n = checks.integer("n", n, 1)

    def each(self, z: Tensor) -> Tensor:
        """Evaluate each field at its own points.

        :param Tensor z: **Shape:** ``(n, *batch, dim)``.
        :returns: **Shape:** ``(n, *batch, dim)``.
        """
        raise NotImplementedError

    def forward(self, z: Tensor) -> Tensor:
        """Evaluate all fields at the same points.

        :param Tensor z: **Shape:** ``(*batch, dim)``.
        :returns: **Shape:** ``(*batch, n, dim)``.
        """
        z = self._points(z)
        return self.each(z.expand(self.n, *z.shape)).movedim(0, -2)

    def combination(self, weights: Tensor) -> nn.Module:
        r"""Return the field :math:`\sum_j u_j V_j`.

        :param Tensor weights: :math:`u`; its batch shape broadcasts against that of the points.
            **Shape:** ``(*batch, n)``.
        :returns: a module from points to velocities, both of shape ``(*batch, dim)``, with the
            attributes ``field`` and ``weights``. The weights are a parameter if you pass one.

        Example::

            >>> shift = AffineField(2).combination(torch.tensor([1.0, 0, 0, 0, 0, 0]))
            >>> shift(torch.zeros(2))
            tensor([1., 0.])
        """
        return _Combination(self, weights)

    def normalized(self, points: Tensor, weights: Tensor | None = None) -> "ScaledField":
        r"""Return the fields divided by their norms over given points.

        .. math:: \tilde V_j = V_j / \sqrt{\langle V_j, V_j \rangle}

        No gradient flows through the norms.

        :param Tensor points: the points. **Shape:** ``(*grid, dim)``.
        :param Tensor weights: weights of the points, see :func:`inner_products`. **Shape:**
            ``(*grid)``.
        :raises ValueError: if a field is zero at all points.

        Example::

            >>> grid = image_grid(32, 32)
            >>> fields = AffineField(2).normalized(grid)
            >>> inner_products(fields(grid).movedim(-2, 0)).diagonal().round(decimals=3)
            tensor([1., 1., 1., 1., 1., 1.])
        """
        return ScaledField(self, self._inverse_norms(points, weights))

    def _inverse_norms(self, points: Tensor, weights: Tensor | None) -> Tensor:
        """Compute the factors that normalize the fields, with their gradient."""
        points = checks.as_tensor("points", points, f"(*grid, {self.dim})", finite=True)
        if points.dim() < 2:
            raise ValueError(
                f"points must have the shape (*grid, {self.dim}), at least one axis in grid, got "
                f"{tuple(points.shape)}"
            )
        norms = inner_products(self(points).movedim(-2, 0), weights).diagonal().sqrt()
        if not bool((norms > 0).all()):
            raise ValueError(
                f"points must be such that no field is zero at all of them, got norms "
                f"{norms.tolist()}"
            )
        return 1.0 / norms

    def _points(self, z: Tensor, *, each: bool = False) -> Tensor:
        """Points as floating-point numbers, of each field's own or of all."""
        z = checks.as_tensor("z", z, f"(*batch, {self.dim})", allow_empty=True)
        if each and (z.dim() < 2 or len(z) != self.n):
            raise ValueError(
                f"z must have the shape ({self.n}, *batch, {self.dim}), got {tuple(z.shape)}"
            )
        return as_floating(z)


class _Combination(nn.Module):
    """The sum of fields times weights."""

    weights: Tensor

    def __init__(self, field: VectorField, weights: Tensor) -> None:
        super().__init__()
        self.field = field
        weights = checks.as_tensor("weights", weights, f"(*batch, {field.n})")
        if is_given(weights):
            checks.all_finite("weights", weights)
        hold(self, "weights", weights)

    def forward(self, z: Tensor) -> Tensor:
        values: Tensor = self.field(z)
        return (self.weights.to(values).unsqueeze(-1) * values).sum(-2)


class GeneratorField(VectorField):
    r"""Vector fields defined by a network with a shared trunk and a head for each field [1].

    :param int dim: dimension of the space.
    :param int n: number of fields.
    :param int trunk: width of the two shared layers.
    :param int head: width of the layer of each field.
    :param Mapping periods: the periods of periodic coordinates, by their index. The fields have the
        same periods.

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
        checks.integer("trunk", trunk, 1)
        checks.integer("head", head, 1)
        self.periods = dict(checks.optional(_check_periods, "periods", periods, dim) or {})
        self.trunk = nn.Sequential(
            nn.Linear(dim + len(self.periods), trunk), nn.SiLU(), nn.Linear(trunk, trunk), nn.SiLU()
        )
        self.head_weight = _uniform(n, trunk, head, fan_in=trunk)
        self.head_bias = _uniform(n, 1, head, fan_in=trunk)
        self.out_weight = _uniform(n, head, dim, fan_in=head)
        self.out_bias = _uniform(n, 1, dim, fan_in=head)

    def each(self, z: Tensor) -> Tensor:
        """See :meth:`VectorField.each`."""
        z = self._points(z, each=True).to(self.head_weight)
        return self._heads(self.trunk(self._features(z)).flatten(1, -2)).view_as(z)

    def forward(self, z: Tensor) -> Tensor:
        """See :meth:`VectorField.forward`."""
        z = self._points(z).to(self.head_weight)
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

    In two dimensions, there are two translations, followed by the matrix entries ``xx``, ``xy``,
    ``yx``, ``yy``: a scaling, two shears, and another scaling.

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
        super().__init__(dim, checks.integer("dim", dim, 1) * (dim + 1))
        maps = torch.zeros(self.n, dim, dim + 1)
        for i in range(dim):
            maps[i, i, dim] = 1.0
            for j in range(dim):
                maps[dim + i * dim + j, i, j] = 1.0
        self.register_buffer("maps", maps)

    def each(self, z: Tensor) -> Tensor:
        """See :meth:`VectorField.each`."""
        z = self._points(z, each=True)
        maps = self.maps.to(z)
        shift = maps[:, :, -1].reshape(self.n, *[1] * (z.dim() - 2), self.dim)
        return torch.einsum("nij,n...j->n...i", maps[:, :, :-1], z) + shift


class FunctionField(VectorField):
    """Vector fields defined by a function, such as known symmetries of an equation.

    :param Callable function: a function from points of shape ``(*batch, dim)`` to velocities of
        shape ``(*batch, n, dim)``.
    :param int dim: dimension of the space.
    :param int n: number of fields.

    Example::

        >>> rotation = FunctionField(lambda z: torch.stack([-z[..., 1:], z[..., :1]], -1), 2, 1)
        >>> rotation(torch.tensor([3.0, 5.0]))
        tensor([[-5.,  3.]])
    """

    def __init__(self, function: Field, dim: int, n: int) -> None:
        super().__init__(dim, n)
        checks.function("function", function, "a function of points", or_class=False)
        self.function = function

    def forward(self, z: Tensor) -> Tensor:
        """See :meth:`VectorField.forward`."""
        z = self._points(z)
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
        z = self._points(z, each=True)
        return torch.stack([self(points)[..., j, :] for j, points in enumerate(z)])


class ScaledField(VectorField):
    """Vector fields multiplied by numbers.

    :param VectorField field: the fields.
    :param Tensor scale: a number for each field. No gradient flows through it unless it is a
        parameter. **Shape:** ``(n,)``.

    Example::

        >>> ScaledField(AffineField(1), torch.tensor([2.0, 3.0]))(torch.ones(1))
        tensor([[2.],
                [3.]])
    """

    scale: Tensor

    def __init__(self, field: VectorField, scale: Tensor) -> None:
        checks.instance("field", field, VectorField, "a VectorField")
        super().__init__(field.dim, field.n)
        self.field = field
        scale = checks.as_tensor("scale", scale, f"({field.n},)", finite=True)
        hold(self, "scale", scale if scale.is_leaf else scale.detach())

    def forward(self, z: Tensor) -> Tensor:
        """See :meth:`VectorField.forward`."""
        values: Tensor = self.field(z)
        return self.scale[:, None] * values

    def each(self, z: Tensor) -> Tensor:
        """See :meth:`VectorField.each`."""
        values = self.field.each(z)
        return self.scale.reshape(-1, *[1] * (values.dim() - 1)) * values


def inner_products(values: Tensor, weights: Tensor | None = None) -> Tensor:
    r"""Inner products of vector fields over points [1].

    .. math:: \langle V, W \rangle = \sum_z w(z)\, V(z) \cdot W(z) \Big/ \sum_z w(z)

    :param Tensor values: values of the fields at the points. **Shape:** ``(n, *grid, dim)``.
    :param Tensor weights: :math:`w \ge 0`. Default: equal weights. **Shape:** ``(*grid)``.
    :returns: **Shape:** ``(n, n)``.

    [1] G. Ko, H. Kim, J. Lee (2024),
    Learning infinitesimal generators of continuous symmetries from data.

    Example::

        >>> rotation = torch.stack([-image_grid(32, 32)[..., 1], image_grid(32, 32)[..., 0]], -1)
        >>> inner_products(rotation[None])
        tensor([[0.7097]])
    """
    values = field_values(values)
    if weights is None:
        weighted = values / values[0, ..., 0].numel()
    else:
        weights = checks.as_tensor("weights", weights, like=values, finite=True).to(values)
        if weights.shape != values.shape[1:-1] or not bool((weights >= 0).all() & weights.any()):
            raise ValueError(
                f"weights must be numbers >= 0 of the shape {tuple(values.shape[1:-1])}, not all "
                f"zero, got {weights!r:.80}"
            )
        weighted = values * (weights / weights.sum())[..., None]
    return weighted.flatten(1) @ values.flatten(1).mT


def field_values(values: Tensor, argument: str = "values") -> Tensor:
    """Check fields at points, which become floating-point numbers."""
    values = checks.as_tensor(argument, values, "(n, ...)", finite=True)
    if values.dim() < 3:
        raise ValueError(
            f"{argument} must have the shape (n, *grid, dim), got {tuple(values.shape)}"
        )
    return as_floating(values)


def as_floating(tensor: Tensor) -> Tensor:
    """Integers as floating-point numbers."""
    return tensor if tensor.is_floating_point() else tensor.to(torch.get_default_dtype())


def is_given(tensor: Tensor) -> bool:
    """Tell whether a tensor is user input, not a value under inference, which may be infinite."""
    return isinstance(tensor, nn.Parameter) or not tensor.requires_grad


def hold(module: nn.Module, name: str, value: float | Tensor) -> None:
    """Keep a parameter as one, another tensor as a buffer, and a number as it is."""
    if isinstance(value, Tensor) and not isinstance(value, nn.Parameter):
        module.register_buffer(name, value)
    else:
        setattr(module, name, value)


def image_grid(
    height: int, width: int, *, dtype: torch.dtype | None = None, device: torch.device | None = None
) -> Tensor:
    """Coordinates ``(x, y)`` of the pixels of an image, from -1 at one edge to 1 at the other.

    :param int height: number of rows of pixels.
    :param int width: number of columns of pixels.
    :param torch.dtype dtype: type of the result.
    :param torch.device device: device of the result.
    :returns: **Shape:** ``(height, width, 2)``.

    Example::

        >>> image_grid(2, 3)[0]
        tensor([[-1., -1.],
                [ 0., -1.],
                [ 1., -1.]])
    """
    checks.integer("height", height, 2)
    checks.integer("width", width, 2)
    y = torch.linspace(-1.0, 1.0, height, dtype=dtype, device=device)
    x = torch.linspace(-1.0, 1.0, width, dtype=dtype, device=device)
    return torch.stack(torch.meshgrid(x, y, indexing="xy"), -1)


def _check_periods(argument: str, periods: Mapping[int, float], dim: int) -> None:
    checks.mapping(argument, periods, "a dict of periods by number of the coordinate")
    for axis, period in periods.items():
        if isinstance(axis, bool) or axis not in range(dim):
            raise ValueError(f"{argument} must be of coordinates below {dim}, got {axis!r}")
        checks.number(f"{argument}[{axis}]", period, above=0)


def _uniform(*shape: int, fan_in: int) -> nn.Parameter:
    """A parameter drawn as those of :class:`torch.nn.Linear`."""
    bound = fan_in**-0.5
    return nn.Parameter(torch.empty(shape).uniform_(-bound, bound))
