r"""Covariances through layers of infinite width, random covariances at any width, and pruning.

Numbers in brackets refer to the papers in the docstring of the package.
"""

import math

import torch
from torch import Tensor

from pyro_ext._lib import checks
from pyro_ext.models.wide_networks.variances import NodeVariances
from pyro_ext.random import fresh_seed


def relu_covariance(cross: Tensor, left: Tensor, right: Tensor) -> Tensor:
    r"""Mean of a product of rectified Gaussians, half the arc-cosine kernel of order one [3].

    .. math:: E [z_1]_+ [z_2]_+ = \frac{\sqrt{k_1 k_2}}{2 \pi}
              \{\sin\theta + (\pi - \theta) \cos\theta\} , \quad
              \cos\theta = \frac{k_{12}}{\sqrt{k_1 k_2}} .

    :param Tensor cross: covariance :math:`k_{12}` of two Gaussians with mean zero.
    :param Tensor left: variance :math:`k_1` of the first.
    :param Tensor right: variance :math:`k_2` of the second; all three broadcast.
    :returns: **Shape:** the broadcast shape of the three.

    Example::

        >>> one = torch.tensor(1.0)
        >>> relu_covariance(one, one, one), relu_covariance(0 * one, one, one)
        (tensor(0.5000), tensor(0.1592))
    """
    cross, left, right = checks.as_parameters(
        "the kernel", {"cross": cross, "left": left, "right": right}
    )
    scale = _scale(left, right).to(cross.dtype)
    cosine = _cosine(cross, scale)
    angle = cosine.arccos()
    return scale * ((1.0 - cosine.square()).sqrt() + (math.pi - angle) * cosine) / (2.0 * math.pi)


def step_covariance(cross: Tensor, left: Tensor, right: Tensor) -> Tensor:
    r"""Probability that two Gaussians are both positive, half the kernel of order zero [3].

    .. math:: P(z_1 > 0, z_2 > 0) = \frac{\pi - \theta}{2 \pi} , \quad
              \cos\theta = \frac{k_{12}}{\sqrt{k_1 k_2}} .

    :param Tensor cross: covariance of two Gaussians with mean zero.
    :param Tensor left: variance of the first.
    :param Tensor right: variance of the second.
    :returns: **Shape:** the broadcast shape of the three.

    Example::

        >>> one = torch.tensor(1.0)
        >>> step_covariance(0 * one, one, one)
        tensor(0.2500)
    """
    cross, left, right = checks.as_parameters(
        "the kernel", {"cross": cross, "left": left, "right": right}
    )
    # Near equal nodes the angle is the root of a difference, which leaves half the precision.
    angle = _cosine(cross.double(), _scale(left, right)).arccos()
    return ((math.pi - angle) / (2.0 * math.pi)).to(cross.dtype)


def _relu_matrix(covariance: Tensor) -> Tensor:
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


@torch.no_grad()
def sample_covariances(
    inputs: Tensor,
    variances: NodeVariances,
    num_samples: int,
    *,
    width: int | None = None,
    num_hidden: int = 1,
    num_jumps: int = 100,
    weight_scale: float = 1.0,
    bias_scale: float = 0.0,
    seed: int | None = None,
) -> Tensor:
    r"""Draw the random covariance of the outputs of a ReLU network [1].

    Given the nodes of the last hidden layer, outputs are independent and Gaussian. In an infinitely
    wide network, their covariance is

    .. math:: K^{(l)} = \sigma_b^2 + \sigma_v^2 \Bigl\{ a \, E \, \phi(\zeta) \phi(\zeta)^\top
              + \sum_j \lambda_j \phi(\zeta_j) \phi(\zeta_j)^\top \Bigr\} , \quad
              \zeta, \zeta_j \sim \text{Normal}(0, K^{(l-1)}) ,

    where the :math:`\lambda_j` are the jumps of the limit. The first ``num_jumps`` of a series are
    drawn, and the expected mass of all others is added to :math:`a`, which preserves the mean of
    the covariance. In a network of finite width, the :math:`\lambda_j` are the variances of its
    nodes, :math:`a = 0`, and nothing is approximated.

    :param Tensor inputs: **Shape:** ``(n, d)``.
    :param variances: distribution of the variances of the nodes.
    :param int num_samples: number of covariances.
    :param int width: width of the hidden layers; by default infinite.
    :param int num_hidden: number of hidden layers.
    :param int num_jumps: number of jumps to draw for each layer of infinite width.
    :param float weight_scale: :math:`\sigma_v`.
    :param float bias_scale: :math:`\sigma_b`.
    :param int seed: seed of the draws; by default drawn from PyTorch's generator.

    Example::

        >>> from pyro_ext.models.wide_networks import horseshoe_variances
        >>> inputs = torch.linspace(-1.0, 1.0, 5)[:, None]
        >>> sample_covariances(inputs, horseshoe_variances(), 10, num_hidden=2).shape
        torch.Size([10, 5, 5])
    """
    checks.instance("variances", variances, NodeVariances, "NodeVariances")
    inputs = checks.as_tensor("inputs", inputs, "(n, d)", finite=True)
    checks.integer("num_jumps", num_jumps, 1)
    checks.integer("num_samples", num_samples, 1)
    checks.integer("num_hidden", num_hidden, 1)
    distribution = None if width is None else variances.distribution(width)
    checks.number("weight_scale", weight_scale, above=0.0)
    checks.number("bias_scale", bias_scale, least=0.0)
    covariance = bias_scale**2 + weight_scale**2 * inputs @ inputs.mT / inputs.shape[1]
    covariance = covariance.expand(num_samples, *covariance.shape)
    with torch.random.fork_rng():
        torch.manual_seed(fresh_seed(seed))
        for _ in range(num_hidden):
            if distribution is None or width is None:
                jumps, drift = variances.sample_jumps(num_samples, num_jumps)
            else:
                jumps, drift = distribution.sample((num_samples, width)), torch.zeros(num_samples)
            jumps, drift = jumps.to(covariance), drift.to(covariance)
            features = _draw(covariance, jumps.shape[1]).relu_()
            inner = (features.mT * jumps[:, None, :]) @ features
            if drift.any():
                inner += drift[:, None, None] * _relu_matrix(covariance)
            covariance = bias_scale**2 + weight_scale**2 * inner
    return covariance


def sample_outputs(covariances: Tensor, num_outputs: int, seed: int | None = None) -> Tensor:
    r"""Draw outputs of networks, independent Gaussian processes given their covariance.

    :param Tensor covariances: **Shape:** ``(*batch, n, n)``.
    :param int num_outputs: number of outputs for each covariance.
    :param int seed: seed of the draws; by default drawn from PyTorch's generator.
    :returns: **Shape:** ``(*batch, num_outputs, n)``.

    Example::

        >>> sample_outputs(torch.eye(4).expand(10, 4, 4), 3).shape
        torch.Size([10, 3, 4])
    """
    covariances = checks.as_tensor("covariances", covariances, "(*batch, n, n)", finite=True)
    checks.integer("num_outputs", num_outputs, 1)
    with torch.random.fork_rng():
        torch.manual_seed(fresh_seed(seed))
        return _draw(covariances, num_outputs)


def pruning_error(
    variances: NodeVariances, threshold: Tensor, second_moment: float, weight_scale: float = 1.0
) -> Tensor:
    r"""Mean squared error of an output when nodes of small variance are pruned [1].

    In one hidden layer of infinite width, if the nodes with :math:`\lambda_j \leq \epsilon`
    are pruned,

    .. math:: E (Z - Z^\epsilon)^2 = \sigma_v^2 \, E \phi(\zeta)^2
              \Bigl\{ a + \int_0^\epsilon w \rho(w) dw \Bigr\} .

    It vanishes with :math:`\epsilon` only if :math:`a = 0`, and then as
    :math:`\epsilon^{1 - \sigma}`, with the index :math:`\sigma` of the jumps at zero.

    :param variances: distribution of the variances of the nodes.
    :param Tensor threshold: :math:`\epsilon`.
    :param float second_moment: :math:`E \phi(\zeta)^2` of a node.
    :param float weight_scale: :math:`\sigma_v`.
    :returns: **Shape:** as the threshold.

    Example::

        >>> from pyro_ext.models.wide_networks import horseshoe_variances
        >>> pruning_error(horseshoe_variances(), torch.tensor([0.01, 0.0001]), 0.5)
        tensor([0.0500, 0.0050])
    """
    checks.instance("variances", variances, NodeVariances, "NodeVariances")
    threshold = checks.as_tensor("threshold", threshold)
    if not bool((threshold > 0).all()):
        raise ValueError(f"threshold must be > 0, got {threshold.tolist()!r:.80}")
    checks.number("second_moment", second_moment, least=0.0)
    checks.number("weight_scale", weight_scale, above=0.0)
    return weight_scale**2 * second_moment * variances.mass_below(threshold)


def square_correlation(
    variances: NodeVariances, second_moment: float, fourth_moment: float
) -> Tensor:
    r"""Correlation between the squares of two outputs of a network with one hidden layer [1].

    .. math:: \operatorname{corr}(y_1^2, y_2^2) = \frac{v}{3 v + 2 s^2} , \quad
              s = \Bigl(a + \int w \rho(w) dw\Bigr) E \phi(\zeta)^2 , \quad
              v = \int w^2 \rho(w) dw \; E \phi(\zeta)^4 ,

    in the limit of infinite width and without biases. The outputs themselves are uncorrelated.

    :param variances: distribution of the variances of the nodes; the sum must have a variance.
    :param float second_moment: :math:`E \phi(\zeta)^2` of a node.
    :param float fourth_moment: :math:`E \phi(\zeta)^4`.
    :returns: a scalar.
    :raises ValueError: if the sum of the variances has no variance.

    Example::

        >>> from pyro_ext.models.wide_networks import beta_variances
        >>> square_correlation(beta_variances(), 0.5, 1.5)
        tensor(0.2857)
    """
    checks.instance("variances", variances, NodeVariances, "NodeVariances")
    checks.number("second_moment", second_moment, above=0.0)
    checks.number("fourth_moment", fourth_moment, above=0.0)
    if not bool(variances.variance.isfinite()):
        raise ValueError("variances must have a sum with a finite variance, got an infinite one")
    spread = variances.variance * fourth_moment
    return spread / (3.0 * spread + 2.0 * (variances.mean * second_moment).square())


def _draw(covariances: Tensor, number: int) -> Tensor:
    """Gaussian draws of mean zero, also for singular covariances. **Shape:** (*, number, n)."""
    values, vectors = torch.linalg.eigh(covariances)
    shape = (*covariances.shape[:-2], number, covariances.shape[-1])
    normal = torch.randn(shape, dtype=covariances.dtype, device=covariances.device)
    draws: Tensor = (normal * values.clamp(min=0.0).sqrt()[..., None, :]) @ vectors.mT
    return draws
