r"""What networks with dependent weights put out, at any width and in the limit.

[1] H. Lee, F. Ayed, P. Jung, J. Lee, H. Yang, F. Caron (2023), Deep neural networks with dependent
weights: Gaussian process mixture limit, heavy tails, sparsity and compressibility.
"""

import torch
from torch import Tensor

from pyro_ext._checks import as_tensor, check_instance, check_integer, check_number
from pyro_ext.models.wide_networks.recursions import input_covariance, relu_matrix
from pyro_ext.models.wide_networks.variances import NodeVariances
from pyro_ext.random import fresh_seed

__all__ = ["pruning_error", "sample_covariances", "sample_outputs", "square_correlation"]


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
    wide network their covariance is

    .. math:: K^{(l)} = \sigma_b^2 + \sigma_v^2 \Bigl\{ a \, E \, \phi(\zeta) \phi(\zeta)^\top
              + \sum_j \lambda_j \phi(\zeta_j) \phi(\zeta_j)^\top \Bigr\} , \quad
              \zeta, \zeta_j \sim \text{Normal}(0, K^{(l-1)}) ,

    where the :math:`\lambda_j` are the jumps of the limit. The first ``num_jumps`` of a series are
    drawn, and the expected mass of all others is added to :math:`a`, which keeps the mean of the
    covariance. In a network of finite width the :math:`\lambda_j` are the variances of its nodes,
    :math:`a = 0`, and nothing is approximated.

    :param Tensor inputs: **Shape:** ``(n, d)``.
    :param variances: law of the variances of the nodes.
    :param int num_samples: how many covariances.
    :param int width: of the hidden layers; by default infinite.
    :param int num_hidden: number of hidden layers.
    :param int num_jumps: how many jumps are drawn for each layer of infinite width.
    :param float weight_scale: :math:`\sigma_v`.
    :param float bias_scale: :math:`\sigma_b`.
    :param int seed: of the draws; by default PyTorch's generator gives one.
    :returns: **Shape:** ``(num_samples, n, n)``.
    :raises ValueError: for arguments out of range.

    Example::

        >>> from pyro_ext.models.wide_networks import horseshoe_variances
        >>> inputs = torch.linspace(-1.0, 1.0, 5)[:, None]
        >>> sample_covariances(inputs, horseshoe_variances(), 10, num_hidden=2).shape
        torch.Size([10, 5, 5])
    """
    check_instance("variances", variances, NodeVariances, "NodeVariances")
    inputs = as_tensor("inputs", inputs, "(n, d)", finite=True)
    check_integer("num_jumps", num_jumps, 1)
    check_integer("num_samples", num_samples, 1)
    check_integer("num_hidden", num_hidden, 1)
    law = None if width is None else variances.law(width)
    covariance = input_covariance(inputs, weight_scale, bias_scale)
    covariance = covariance.expand(num_samples, *covariance.shape)
    with torch.random.fork_rng():
        torch.manual_seed(fresh_seed(seed))
        for _ in range(num_hidden):
            if law is None or width is None:
                jumps, drift = variances.sample_jumps(num_samples, num_jumps)
            else:
                jumps, drift = law.sample((num_samples, width)), torch.zeros(num_samples)
            jumps, drift = jumps.to(covariance), drift.to(covariance)
            features = _draw(covariance, jumps.shape[1]).relu_()
            inner = (features.mT * jumps[:, None, :]) @ features
            if drift.any():
                inner += drift[:, None, None] * relu_matrix(covariance)
            covariance = bias_scale**2 + weight_scale**2 * inner
    return covariance


def sample_outputs(covariances: Tensor, num_outputs: int, seed: int | None = None) -> Tensor:
    r"""Draw outputs of networks, independent Gaussian processes given their covariance.

    :param Tensor covariances: **Shape:** ``(*batch, n, n)``.
    :param int num_outputs: how many for each covariance.
    :param int seed: of the draws; by default PyTorch's generator gives one.
    :returns: **Shape:** ``(*batch, num_outputs, n)``.

    Example::

        >>> sample_outputs(torch.eye(4).expand(10, 4, 4), 3).shape
        torch.Size([10, 3, 4])
    """
    covariances = as_tensor("covariances", covariances, "(*batch, n, n)", finite=True)
    check_integer("num_outputs", num_outputs, 1)
    with torch.random.fork_rng():
        torch.manual_seed(fresh_seed(seed))
        return _draw(covariances, num_outputs)


def pruning_error(
    variances: NodeVariances, threshold: Tensor, second_moment: float, weight_scale: float = 1.0
) -> Tensor:
    r"""Mean square of what an output loses as nodes of small variance are pruned [1].

    For one hidden layer of infinite width of which the nodes with :math:`\lambda_j \leq \epsilon`
    are pruned,

    .. math:: E (Z - Z^\epsilon)^2 = \sigma_v^2 \, E \phi(\zeta)^2
              \Bigl\{ a + \int_0^\epsilon w \rho(w) dw \Bigr\} .

    It vanishes with :math:`\epsilon` only where :math:`a = 0`, then as
    :math:`\epsilon^{1 - \sigma}` with the index :math:`\sigma` of the jumps at zero.

    :param variances: law of the variances of the nodes.
    :param Tensor threshold: :math:`\epsilon`.
    :param float second_moment: :math:`E \phi(\zeta)^2` of a node.
    :param float weight_scale: :math:`\sigma_v`.
    :returns: **Shape:** that of the threshold.

    Example::

        >>> from pyro_ext.models.wide_networks import horseshoe_variances
        >>> pruning_error(horseshoe_variances(), torch.tensor([0.01, 0.0001]), 0.5)
        tensor([0.0500, 0.0050])
    """
    check_instance("variances", variances, NodeVariances, "NodeVariances")
    threshold = as_tensor("threshold", threshold)
    if not bool((threshold > 0).all()):
        raise ValueError(f"threshold must be > 0, got {threshold.tolist()!r:.80}")
    check_number("second_moment", second_moment, least=0.0)
    check_number("weight_scale", weight_scale, above=0.0)
    return weight_scale**2 * second_moment * variances.mass_below(threshold)


def square_correlation(
    variances: NodeVariances, second_moment: float, fourth_moment: float
) -> Tensor:
    r"""Correlation of the squares of two outputs of a network with one hidden layer [1].

    .. math:: \operatorname{corr}(y_1^2, y_2^2) = \frac{v}{3 v + 2 s^2} , \quad
              s = \Bigl(a + \int w \rho(w) dw\Bigr) E \phi(\zeta)^2 , \quad
              v = \int w^2 \rho(w) dw \; E \phi(\zeta)^4 ,

    in the limit of infinite width and without biases. Outputs are uncorrelated all the same.

    :param variances: law of the variances of the nodes; the sum must have a variance.
    :param float second_moment: :math:`E \phi(\zeta)^2` of a node.
    :param float fourth_moment: :math:`E \phi(\zeta)^4`.
    :returns: a scalar.
    :raises ValueError: where the sum of the variances has no variance.

    Example::

        >>> from pyro_ext.models.wide_networks import beta_variances
        >>> square_correlation(beta_variances(), 0.5, 1.5)
        tensor(0.2857)
    """
    check_instance("variances", variances, NodeVariances, "NodeVariances")
    check_number("second_moment", second_moment, above=0.0)
    check_number("fourth_moment", fourth_moment, above=0.0)
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
