r"""Covariances of layers of infinite width, as functions of the covariances of the layers before.

[1] Y. Cho, L. K. Saul (2009), Kernel methods for deep learning.

[2] H. Lee, F. Ayed, P. Jung, J. Lee, H. Yang, F. Caron (2023), Deep neural networks with dependent
weights: Gaussian process mixture limit, heavy tails, sparsity and compressibility.
"""

import math

import torch
from torch import Tensor

from pyro_ext._checks import as_parameters, as_tensor, check_integer, check_number

__all__ = [
    "input_covariance",
    "network_covariance",
    "propagate",
    "relu_covariance",
    "relu_matrix",
    "step_covariance",
]


def relu_covariance(cross: Tensor, left: Tensor, right: Tensor) -> Tensor:
    r"""Mean of a product of rectified Gaussians, half the arc-cosine kernel of order one [1].

    .. math:: E [z_1]_+ [z_2]_+ = \frac{\sqrt{k_1 k_2}}{2 \pi}
              \{\sin\theta + (\pi - \theta) \cos\theta\} , \quad
              \cos\theta = \frac{k_{12}}{\sqrt{k_1 k_2}} .

    :param Tensor cross: covariance :math:`k_{12}` of two Gaussians of mean zero.
    :param Tensor left: variance :math:`k_1` of the first.
    :param Tensor right: variance :math:`k_2` of the second; all three broadcast.
    :returns: **Shape:** that of the three together.

    Example::

        >>> one = torch.tensor(1.0)
        >>> relu_covariance(one, one, one), relu_covariance(0 * one, one, one)
        (tensor(0.5000), tensor(0.1592))
    """
    cross, left, right = as_parameters("the kernel", {"cross": cross, "left": left, "right": right})
    scale = _scale(left, right).to(cross.dtype)
    cosine = _cosine(cross, scale)
    angle = cosine.arccos()
    return scale * ((1.0 - cosine.square()).sqrt() + (math.pi - angle) * cosine) / (2.0 * math.pi)


def step_covariance(cross: Tensor, left: Tensor, right: Tensor) -> Tensor:
    r"""Probability that two Gaussians are both positive, half the kernel of order zero [1].

    .. math:: P(z_1 > 0, z_2 > 0) = \frac{\pi - \theta}{2 \pi} , \quad
              \cos\theta = \frac{k_{12}}{\sqrt{k_1 k_2}} .

    Arguments as of :func:`relu_covariance`.

    :param Tensor cross: covariance of two Gaussians of mean zero.
    :param Tensor left: variance of the first.
    :param Tensor right: variance of the second.
    :returns: **Shape:** that of the three together.

    Example::

        >>> one = torch.tensor(1.0)
        >>> step_covariance(0 * one, one, one)
        tensor(0.2500)
    """
    cross, left, right = as_parameters("the kernel", {"cross": cross, "left": left, "right": right})
    # Near equal nodes the angle is the root of a difference, which leaves half the digits.
    angle = _cosine(cross.double(), _scale(left, right)).arccos()
    return ((math.pi - angle) / (2.0 * math.pi)).to(cross.dtype)


def input_covariance(inputs: Tensor, weight_scale: float = 1.0, bias_scale: float = 0.0) -> Tensor:
    r"""Covariance of a node of the first layer, :math:`\sigma_b^2 + \sigma_v^2 x^\top x' / d`.

    :param Tensor inputs: **Shape:** ``(n, d)``.
    :param float weight_scale: :math:`\sigma_v`.
    :param float bias_scale: :math:`\sigma_b`.
    :returns: **Shape:** ``(n, n)``.

    Example::

        >>> input_covariance(torch.tensor([[1.0, 1.0], [2.0, 0.0]]), bias_scale=1.0)
        tensor([[2., 2.],
                [2., 3.]])
    """
    inputs = as_tensor("inputs", inputs, "(n, d)", finite=True)
    check_number("weight_scale", weight_scale, above=0.0)
    check_number("bias_scale", bias_scale, least=0.0)
    if inputs.dim() != 2:
        raise ValueError(f"inputs must have the shape (n, d), got {tuple(inputs.shape)}")
    return bias_scale**2 + weight_scale**2 * inputs @ inputs.mT / inputs.shape[1]


def network_covariance(
    inputs: Tensor, num_hidden: int = 1, weight_scale: float = 1.0, bias_scale: float = 0.0
) -> Tensor:
    r"""Covariance of an output of an infinitely wide ReLU network with equal variances of nodes.

    .. math:: K^{(l)} = \sigma_b^2 + \sigma_v^2 \, E \, \phi(\zeta) \phi(\zeta)^\top , \quad
              \zeta \sim \text{Normal}(0, K^{(l-1)}) .

    :param Tensor inputs: **Shape:** ``(n, d)``.
    :param int num_hidden: number of hidden layers.
    :param float weight_scale: :math:`\sigma_v`.
    :param float bias_scale: :math:`\sigma_b`.
    :returns: **Shape:** ``(n, n)``.
    :raises ValueError: for arguments out of range.

    Example::

        >>> network_covariance(torch.tensor([[2.0]]), num_hidden=2)
        tensor([[1.0000]])
    """
    covariance = input_covariance(inputs, weight_scale, bias_scale)
    diagonal = covariance.diagonal()
    return propagate(
        (covariance, diagonal[:, None], diagonal), num_hidden, weight_scale**2, bias_scale**2
    )[0]


def propagate(
    covariances: tuple[Tensor, Tensor, Tensor],
    num_hidden: int,
    weight_variance: float | Tensor,
    bias_variance: float | Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    r"""Pass covariances on through hidden ReLU layers of infinite width.

    :param tuple covariances: of two nodes of the first layer, and the variances of either, which
        broadcast; arguments of :func:`relu_covariance`.
    :param int num_hidden: number of hidden layers.
    :param weight_variance: :math:`\sigma_v^2`.
    :param bias_variance: :math:`\sigma_b^2`.
    :returns: the same of outputs.
    """
    check_integer("num_hidden", num_hidden, 1)
    cross, left, right = covariances
    for _ in range(num_hidden):
        cross = bias_variance + weight_variance * relu_covariance(cross, left, right)
        left, right = (bias_variance + weight_variance * part / 2.0 for part in (left, right))
    return cross, left, right


def relu_matrix(covariance: Tensor) -> Tensor:
    """Covariance of rectified nodes from that of the nodes. **Shape:** ``(*batch, n, n)``."""
    diagonal = covariance.diagonal(dim1=-2, dim2=-1)
    return relu_covariance(covariance, diagonal[..., :, None], diagonal[..., None, :])


def _scale(left: Tensor, right: Tensor) -> Tensor:
    """Root of the product, in float64."""
    # A variance of zero has no direction; a tiny one keeps its gradient finite.
    least = torch.finfo(left.dtype).tiny
    return left.clamp(min=least).double().sqrt() * right.clamp(min=least).double().sqrt()


def _cosine(cross: Tensor, scale: Tensor) -> Tensor:
    # At the ends the derivatives of both summands of the kernel are infinite and cancel.
    end = 1.0 - torch.finfo(cross.dtype).eps
    return (cross / scale).clamp(min=-end, max=end)
