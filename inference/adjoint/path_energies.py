"""Potentials of molecular dynamics, and the energy of paths in them."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pyro_ext._lib import checks


class PathPotential(ABC):
    """Base class of potentials of positions, with first and summed second derivatives."""

    dim: int
    """Number of coordinates."""

    @abstractmethod
    def __call__(self, x: Tensor) -> Tensor:
        """Potential. **Shape:** ``(*batch, dim)`` to ``(*batch)``."""

    @abstractmethod
    def gradient(self, x: Tensor) -> Tensor:
        """Gradient. **Shape:** ``(*batch, dim)`` to ``(*batch, dim)``."""

    @abstractmethod
    def laplacian(self, x: Tensor) -> Tensor:
        """Sum of second derivatives. **Shape:** ``(*batch, dim)`` to ``(*batch)``."""

    def _points(self, x: Any) -> Tensor:
        return checks.as_tensor("x", x, f"(*batch, {self.dim})")


class DoubleWell1D(PathPotential):
    r"""Two wells on a line: :math:`V(x) = h (x^2 - 1)^2`.

    :param float height: :math:`h`, height of the barrier at zero between the wells at -1 and 1.
    :raises ValueError: for a number that is not positive.

    Example::

        >>> from pyro_ext.inference.adjoint import DoubleWell1D
        >>> DoubleWell1D(height=2.0)(torch.tensor([[-1.0], [0.0], [1.0]]))
        tensor([0., 2., 0.])
    """

    dim = 1

    def __init__(self, height: float = 1.0) -> None:
        self.height = checks.number("height", height, above=0)

    def __call__(self, x: Tensor) -> Tensor:
        """Potential."""
        return self.height * (self._points(x)[..., 0].square() - 1.0).square()

    def gradient(self, x: Tensor) -> Tensor:
        """Gradient."""
        return 4.0 * self.height * x * (x.square() - 1.0)

    def laplacian(self, x: Tensor) -> Tensor:
        """Second derivative."""
        return self.height * (12.0 * x[..., 0].square() - 4.0)


class DoubleWell2D(PathPotential):
    r"""Two wells in the plane, with two ways between them.

    .. math:: V = \tfrac16 [4 (1 - x^2 - y^2)^2 + 2 (x^2 - 2)^2 + ((x + y)^2 - 1)^2
              + ((x - y)^2 - 1)^2 - 2]

    The wells are at :math:`(\pm 1.118, 0)`, the saddles at :math:`(0, \pm 1)`, 1.083 above them.

    Example::

        >>> from pyro_ext.inference.adjoint import DoubleWell2D
        >>> DoubleWell2D()(torch.tensor([[0.0, 1.0], [0.0, 0.0]]))
        tensor([1., 2.])
    """

    dim = 2

    def __call__(self, x: Tensor) -> Tensor:
        """Potential."""
        first, second = self._points(x).square().unbind(-1)
        cross = 2.0 * x[..., 0] * x[..., 1]
        radius = first + second
        terms = 4.0 * (1.0 - radius).square() + 2.0 * (first - 2.0).square()
        sides = (radius + cross - 1.0).square() + (radius - cross - 1.0).square()
        return (terms + sides - 2.0) / 6.0

    def gradient(self, x: Tensor) -> Tensor:
        """Gradient."""
        first, second = x.square().unbind(-1)
        slopes = (4.0 * first + 5.0 * second - 5.0, 5.0 * first + 3.0 * second - 3.0)
        return 4.0 / 3.0 * x * torch.stack(slopes, -1)

    def laplacian(self, x: Tensor) -> Tensor:
        """Sum of second derivatives."""
        first, second = x.square().unbind(-1)
        return 4.0 / 3.0 * (17.0 * first + 14.0 * second - 8.0)


class MullerBrown(PathPotential):
    """The potential of Müller and Brown [1]: three wells along a curved path.

    :ivar Tensor first: the deepest well. **Shape:** ``(2,)``.
    :ivar Tensor last: the well at the other end. **Shape:** ``(2,)``.

    [1] K. Müller, L. D. Brown (1979),
    Location of saddle points and minimum energy paths by a constrained simplex optimization
    procedure.

    Example::

        >>> from pyro_ext.inference.adjoint import MullerBrown
        >>> potential = MullerBrown()
        >>> potential(torch.stack([potential.first, potential.last]))
        tensor([-146.6995, -108.1667])
    """

    dim = 2
    _HEIGHTS = (-200.0, -100.0, -170.0, 15.0)
    _XX = (-1.0, -1.0, -6.5, 0.7)
    _XY = (0.0, 0.0, 11.0, 0.6)
    _YY = (-10.0, -10.0, -6.5, 0.7)
    _CENTERS = ((1.0, 0.0), (0.0, 0.5), (-0.5, 1.5), (-1.0, 1.0))

    def __init__(self) -> None:
        self.first = torch.tensor([-0.558224, 1.441726])
        self.last = torch.tensor([0.623499, 0.028038])

    def _parts(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Terms, and derivatives of their exponents along both coordinates."""
        like: Any = {"dtype": x.dtype, "device": x.device}
        xx, xy, yy = (torch.tensor(row, **like) for row in (self._XX, self._XY, self._YY))
        away = x[..., None, :] - torch.tensor(self._CENTERS, **like)
        right, up = away.unbind(-1)
        terms = torch.exp(xx * right.square() + xy * right * up + yy * up.square())
        terms = torch.tensor(self._HEIGHTS, **like) * terms
        return terms, 2.0 * xx * right + xy * up, xy * right + 2.0 * yy * up

    def __call__(self, x: Tensor) -> Tensor:
        """Potential."""
        return self._parts(self._points(x))[0].sum(-1)

    def gradient(self, x: Tensor) -> Tensor:
        """Gradient."""
        terms, right, up = self._parts(x)
        return torch.stack([(terms * right).sum(-1), (terms * up).sum(-1)], -1)

    def laplacian(self, x: Tensor) -> Tensor:
        """Sum of second derivatives."""
        terms, right, up = self._parts(x)
        curvature = 2.0 * (x.new_tensor(self._XX) + x.new_tensor(self._YY))
        return (terms * (right.square() + up.square() + curvature)).sum(-1)


class OnsagerMachlup:
    r"""Energy of a path of Langevin dynamics with both ends given.

    The paths of :math:`d\gamma = - \nabla V \, ds + \xi \, dB` with the given end have the
    density :math:`e^{-U}` with respect to a Brownian bridge of diffusivity :math:`\xi^2`, up to a
    constant, with

    .. math:: U(\gamma) = \int_0^L \Big[ \frac{|\nabla V|^2}{2 \xi^2} - \frac12 \Delta V \Big]
              (\gamma(s)) \, ds ,

    which is computed by the trapezoidal rule on the points of the path.

    :param potential: :math:`V`: a :class:`PathPotential`, or any function of one position
        ``(dim,)`` that returns a scalar and can be differentiated three times with
        :mod:`torch.func`, which takes longer.
    :param float noise: :math:`\xi`. The temperature is :math:`\xi^2 / 2`.
    :raises ValueError: for noise that is not positive.

    Example::

        >>> from pyro_ext.inference.adjoint import DoubleWell1D, OnsagerMachlup
        >>> energy = OnsagerMachlup(DoubleWell1D(), noise=1.0)
        >>> grid = torch.linspace(0.0, 2.0, 49)
        >>> round(energy(torch.linspace(-1.0, 1.0, 49)[:, None], grid).item(), 2)
        1.22
    """

    def __init__(self, potential: Callable[[Tensor], Tensor], noise: float = 1.0) -> None:
        checks.function("potential", potential, "a potential of positions", or_class=False)
        self.potential = potential
        self.noise = checks.number("noise", noise, above=0)

    def __call__(self, path: Tensor, grid: Tensor) -> Tensor:
        """Energy of paths.

        :param Tensor path: **Shape:** ``(*batch, num_points, dim)``.
        :param Tensor grid: where the points are. **Shape:** ``(num_points,)``.
        :returns: **Shape:** ``(*batch)``.
        """
        if isinstance(self.potential, PathPotential):
            gradient, laplacian = self.potential.gradient(path), self.potential.laplacian(path)
        else:
            flat = path.reshape(-1, path.shape[-1])
            gradient = torch.func.vmap(torch.func.grad(self.potential))(flat).reshape(path.shape)
            second = torch.func.vmap(torch.func.hessian(self.potential))(flat)
            laplacian = second.diagonal(dim1=-2, dim2=-1).sum(-1).reshape(path.shape[:-1])
        density = gradient.square().sum(-1) / (2.0 * self.noise**2) - 0.5 * laplacian
        return torch.trapezoid(density, grid, dim=-1)
