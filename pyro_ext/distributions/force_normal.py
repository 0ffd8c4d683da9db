"""A normal distribution of the force on an atom, parametrized by six outputs of a network."""

import math
from typing import Any

import torch
from torch import Tensor
from torch.distributions import constraints

from pyro_ext._lib import checks
from pyro_ext.distributions.bases import ParametricDistribution


class ForceNormal(ParametricDistribution):
    r"""Normal distribution of a force, with a covariance built from six unconstrained numbers [1].

    .. math:: \Sigma = L L^\top + \epsilon I, \qquad
              L = \begin{pmatrix} e^{l_1} & 0 & 0 \\ l_6 & e^{l_2} & 0 \\ l_5 & l_4 & e^{l_3}
              \end{pmatrix}

    The Cholesky factor of :math:`\Sigma` has a closed form without differences of large numbers.
    So float32 is accurate enough as long as no square overflows, which holds for
    :math:`l_1, l_2, l_3` up to 44 and the others up to :math:`10^{18}`.

    If the six numbers are rotation invariant, as the scalar outputs of an equivariant network are,
    the covariance does not rotate with the molecule.

    :param Tensor loc: the mean. **Shape:** ``(*batch, 3)``.
    :param Tensor l6: :math:`l_1, \dots, l_6`. **Shape:** ``(*batch, 6)``.
    :param float eps: :math:`\epsilon`, a variance that keeps the covariance away from zero.
    :raises ValueError: for other shapes, numbers that are not finite, or a negative ``eps``.

    [1] S. Y. Willow and others (2025), Bayesian E(3)-equivariant interatomic potential with
    iterative restratification of many-body message passing, arXiv 2510.03046.

    Example::

        >>> from pyro_ext.distributions import ForceNormal
        >>> force = ForceNormal(torch.zeros(5, 3), torch.zeros(5, 6))
        >>> force.batch_shape, force.event_shape
        (torch.Size([5]), torch.Size([3]))
        >>> force.covariance_matrix[0].diagonal()
        tensor([1.0010, 1.0010, 1.0010])
    """

    arg_constraints = {"loc": constraints.real_vector, "l6": constraints.real_vector}
    support = constraints.real_vector
    has_rsample = True
    loc: Tensor
    l6: Tensor

    def __init__(
        self, loc: Any, l6: Any, eps: float = 1e-3, *, validate_args: bool | None = None
    ) -> None:
        loc = checks.as_tensor("loc", loc, "(*batch, 3)")
        l6 = checks.as_tensor("l6", l6, "(*batch, 6)")
        dtype = torch.promote_types(loc.dtype, l6.dtype)
        if not dtype.is_floating_point:
            dtype = torch.get_default_dtype()
        self.eps = checks.number("eps", eps, least=0)
        try:
            batch_shape = torch.broadcast_shapes(loc.shape[:-1], l6.shape[:-1])
        except RuntimeError:
            raise ValueError(
                "loc and l6 must broadcast, apart from the last dimension, "
                f"got {checks.shown(loc)} and {checks.shown(l6)}"
            ) from None
        super().__init__(
            {
                "loc": loc.to(dtype).expand(*batch_shape, 3),
                "l6": l6.to(dtype).expand(*batch_shape, 6),
            },
            {"loc": 1, "l6": 1},
            batch_shape,
            torch.Size((3,)),
            validate_args,
        )

    @property
    def scale_tril(self) -> Tensor:
        """Cholesky factor of the covariance. **Shape:** ``(*batch, 3, 3)``."""
        m11, m21, m22, m31, m32, m33 = self._factor()
        zero = torch.zeros_like(m11)
        rows = [[m11, zero, zero], [m21, m22, zero], [m31, m32, m33]]
        return torch.stack([torch.stack(row, -1) for row in rows], -2)

    @property
    def covariance_matrix(self) -> Tensor:
        """The covariance. **Shape:** ``(*batch, 3, 3)``."""
        factor = self.scale_tril
        return factor @ factor.mT

    @property
    def mean(self) -> Tensor:
        """The mean force."""
        return self.loc

    @property
    def variance(self) -> Tensor:
        """Variances of the three components."""
        return self.scale_tril.square().sum(-1)

    def log_det(self) -> Tensor:
        """Logarithm of the determinant of the covariance. **Shape:** ``batch_shape``."""
        m11, _, m22, _, _, m33 = self._factor()
        return 2.0 * (m11.log() + m22.log() + m33.log())

    def mahalanobis(self, value: Tensor) -> Tensor:
        r""":math:`(y - F)^\top \Sigma^{-1} (y - F)`.

        :param Tensor value: :math:`y`. **Shape:** ``(*sample_shape, *batch, 3)``.
        :returns: **Shape:** ``(*sample_shape, *batch)``.
        """
        value = checks.as_tensor("value", value, "(*batch, 3)")
        m11, m21, m22, m31, m32, m33 = self._factor()
        x, y, z = (value - self.loc).unbind(-1)
        first = x / m11
        second = (y - m21 * first) / m22
        third = (z - m31 * first - m32 * second) / m33
        return first.square() + second.square() + third.square()

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density."""
        if self._validate_args:
            self._validate_sample(value)
        return -0.5 * (self.mahalanobis(value) + self.log_det() + 3.0 * math.log(2.0 * math.pi))

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Draws with gradients with respect to the parameters."""
        shape = self._extended_shape(torch.Size(sample_shape))
        noise = torch.randn(shape, dtype=self.loc.dtype, device=self.loc.device)
        return self.loc + (self.scale_tril @ noise[..., None])[..., 0]

    def entropy(self) -> Tensor:
        """Differential entropy."""
        return 0.5 * (self.log_det() + 3.0 * (1.0 + math.log(2.0 * math.pi)))

    def _factor(self) -> tuple[Tensor, ...]:
        """Entries of the Cholesky factor in the order of rows; those of L itself without eps."""
        l1, l2, l3, b32, b31, b21 = self.l6.unbind(-1)
        a1, a2, a3 = l1.exp(), l2.exp(), l3.exp()
        c11 = a1.square() + self.eps
        m11 = c11.sqrt()
        rest = self.eps / c11
        m21, m31 = b21 * a1 / m11, b31 * a1 / m11
        c22 = a2.square() + self.eps + rest * b21.square()
        m22 = c22.sqrt()
        m32 = (b32 * a2 + rest * b31 * b21) / m22
        # What the first two columns leave of the third row, by Lagrange's identity.
        crossed = self.eps * (rest * b31.square() + b32.square())
        crossed = crossed + rest * (a2 * b31 - b21 * b32).square()
        m33 = (a3.square() + self.eps + crossed / c22).sqrt()
        return m11, m21, m22, m31, m32, m33


def heads_of(factor: Tensor) -> Tensor:
    """Return the six numbers that give lower triangular factors."""
    lower = [(2, 1), (2, 0), (1, 0)]
    return torch.cat(
        [
            factor.diagonal(dim1=-2, dim2=-1).log(),
            torch.stack([factor[..., row, column] for row, column in lower], -1),
        ],
        -1,
    )
