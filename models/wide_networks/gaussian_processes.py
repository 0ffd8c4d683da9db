r"""Kernels of infinitely wide networks for GPyTorch, and regression with a mixture of them.

Numbers in brackets are those of the papers in the docstring of the package.
"""

import math
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from pyro_ext._lib import checks
from pyro_ext._lib.optional import optional_module
from pyro_ext.models.wide_networks.variances import NodeVariances
from pyro_ext.random import fresh_seed


def network_kernel(num_hidden: int = 1, weight_scale: float = 1.0, bias_scale: float = 0.0) -> Any:
    r"""Kernel of an infinitely wide ReLU network with equal variances of nodes.

    It is :func:`network_covariance` as a kernel of GPyTorch, whose parameters
    ``raw_weight_variance`` and, with biases, ``raw_bias_variance`` can be fitted.

    :param int num_hidden: number of hidden layers.
    :param float weight_scale: :math:`\sigma_v`, where it starts.
    :param float bias_scale: :math:`\sigma_b`, where it starts; with zero there are no biases.
    :returns: a ``gpytorch.kernels.Kernel``.
    :raises ImportError: without GPyTorch; names the extra.

    Example::

        >>> kernel = network_kernel(num_hidden=2, bias_scale=0.1)
        >>> kernel(torch.zeros(3, 2)).to_dense().shape
        torch.Size([3, 3])
    """
    checks.integer("num_hidden", num_hidden, 1)
    checks.number("weight_scale", weight_scale, above=0.0)
    checks.number("bias_scale", bias_scale, least=0.0)
    kernels = gpytorch_kernels("network_kernel")
    return kernels.NetworkKernel(num_hidden, weight_scale**2, bias_scale**2)


def mixture_kernel(
    in_features: int,
    variances: NodeVariances,
    num_samples: int,
    *,
    num_jumps: int = 100,
    weight_scale: float = 1.0,
    bias_scale: float = 0.0,
    seed: int | None = None,
) -> Any:
    r"""Draw random kernels of infinitely wide networks with one hidden ReLU layer [1].

    .. math:: K(x, x') = \sigma_b^2 + \sigma_v^2 \Bigl\{ a \, k(x, x')
              + \sum_j \lambda_j \phi(\zeta_j(x)) \phi(\zeta_j(x')) \Bigr\} , \quad
              \zeta_j(x) = w_j^\top x + b_j ,

    with the arc-cosine kernel :math:`k`. Here nodes are known at all inputs, for more layers
    :func:`sample_covariances` knows them at given ones.

    :param int in_features: number of inputs :math:`d`.
    :param variances: distribution of the variances of the nodes.
    :param int num_samples: how many kernels.
    :param int num_jumps: how many jumps are drawn; the mass of the others is added to :math:`a`.
    :param float weight_scale: :math:`\sigma_v`.
    :param float bias_scale: :math:`\sigma_b`.
    :param int seed: of the draws; by default PyTorch's generator gives one.
    :returns: a ``gpytorch.kernels.Kernel`` of batch shape ``(num_samples,)``.
    :raises ImportError: without GPyTorch; names the extra.

    Example::

        >>> from pyro_ext.models.wide_networks import horseshoe_variances
        >>> kernel = mixture_kernel(2, horseshoe_variances(), 5, seed=0)
        >>> kernel(torch.zeros(3, 2)).to_dense().shape
        torch.Size([5, 3, 3])
    """
    checks.instance("variances", variances, NodeVariances, "NodeVariances")
    checks.integer("num_jumps", num_jumps, 1)
    checks.integer("in_features", in_features, 1)
    checks.number("weight_scale", weight_scale, above=0.0)
    checks.number("bias_scale", bias_scale, least=0.0)
    generator = torch.Generator().manual_seed(fresh_seed(seed))
    series_seed = int(torch.randint(2**31 - 1, (), generator=generator, device="cpu"))
    jumps, drift = variances.sample_jumps(num_samples, num_jumps, series_seed)
    normal = torch.randn(*jumps.shape, in_features + 1, generator=generator, device="cpu")
    normal = normal.to(torch.get_default_device())
    weights = weight_scale / math.sqrt(in_features) * normal[..., :-1]
    nodes = jumps.to(weights), weights, bias_scale * normal[..., -1], drift.to(weights)
    kernels = gpytorch_kernels("mixture_kernel")
    return kernels.FeatureKernel(*nodes, weight_scale**2, bias_scale**2)


@dataclass(frozen=True)
class MixturePrediction:
    """Predictions of a mixture of Gaussian processes.

    :param Tensor log_evidence: log density of the targets under each process. **Shape:**
        ``(num_samples,)``.
    :param Tensor loc: means of each process. **Shape:** ``(num_samples, num_outputs, m)``.
    :param Tensor variance: variances without noise, common to all outputs. **Shape:**
        ``(num_samples, m)``.
    """

    log_evidence: Tensor
    loc: Tensor
    variance: Tensor

    @property
    def weights(self) -> Tensor:
        """Posterior probabilities of the processes. **Shape:** ``(num_samples,)``."""
        return self.log_evidence.softmax(0)

    @property
    def effective_size(self) -> Tensor:
        """Effective number of processes: the mixture is trusted where it is not small."""
        return 1.0 / self.weights.square().sum()

    @property
    def log_marginal(self) -> Tensor:
        """Log density of the targets under the mixture, a scalar."""
        return self.log_evidence.logsumexp(0) - math.log(len(self.log_evidence))

    @property
    def mean(self) -> Tensor:
        """Mean of the mixture. **Shape:** ``(num_outputs, m)``."""
        return (self.weights[:, None, None] * self.loc).sum(0)

    @property
    def total_variance(self) -> Tensor:
        """Variance of the mixture, without noise. **Shape:** ``(num_outputs, m)``."""
        second = self.variance[:, None] + self.loc.square()
        return (self.weights[:, None, None] * second).sum(0) - self.mean.square()


def condition_mixture(
    covariances: Tensor, targets: Tensor, noise_scale: float
) -> MixturePrediction:
    r"""Regression with a mixture of Gaussian processes, by their evidences.

    Draws of a random covariance are reweighted by the density of the targets under each. All
    outputs share the covariance, so that each is informative about the others.

    :param Tensor covariances: at :math:`n` inputs with targets, then :math:`m` without. **Shape:**
        ``(num_samples, n + m, n + m)``.
    :param Tensor targets: **Shape:** ``(num_outputs, n)``.
    :param float noise_scale: standard deviation of the Gaussian noise of the targets.
    :returns: the prediction at the :math:`m` inputs.

    Example::

        >>> prediction = condition_mixture(torch.ones(1, 2, 2), torch.tensor([[2.0]]), 1.0)
        >>> prediction.mean, prediction.total_variance
        (tensor([[1.0000]]), tensor([[0.5000]]))
    """
    checks.number("noise_scale", noise_scale, above=0.0)
    covariances = checks.as_tensor("covariances", covariances, "(num_samples, n, n)", finite=True)
    targets = checks.as_tensor("targets", targets, "(num_outputs, n)", finite=True)
    if covariances.shape[1] != covariances.shape[2]:
        raise ValueError(
            f"covariances must have the shape (num_samples, n, n), got {tuple(covariances.shape)}"
        )
    number = targets.shape[1]
    if number > len(covariances[0]):
        raise ValueError(
            f"targets must have the shape (num_outputs, n) with n from 1 to {len(covariances[0])}, "
            f"got {tuple(targets.shape)}"
        )
    noise = noise_scale**2 * torch.eye(number).to(covariances)
    factor = torch.linalg.cholesky(covariances[:, :number, :number] + noise)
    white = torch.linalg.solve_triangular(factor, targets.mT.to(factor), upper=False)
    cross = torch.linalg.solve_triangular(factor, covariances[:, :number, number:], upper=False)
    log_scale = factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    size = number * math.log(2.0 * math.pi) / 2.0
    evidence = -white.square().sum((-2, -1)) / 2.0 - len(targets) * (log_scale + size)
    prior = covariances[:, number:, number:].diagonal(dim1=-2, dim2=-1)
    return MixturePrediction(evidence, white.mT @ cross, prior - cross.square().sum(-2))


def gpytorch_kernels(user: str) -> ModuleType:
    """The module with the kernels, which needs GPyTorch."""
    name = "pyro_ext.models.wide_networks._gpytorch_kernels"
    return optional_module(name, user, "GPyTorch", "gp")
