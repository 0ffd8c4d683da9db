r"""Kernels of infinitely wide networks for GPyTorch.

Numbers in brackets refer to the papers in the docstring of the package.
"""

import math
from types import ModuleType
from typing import Any

import torch

from pyro_ext._lib import checks
from pyro_ext._lib.optional import optional_module
from pyro_ext.models.wide_networks.variances import NodeVariances
from pyro_ext.random import fresh_seed


def network_kernel(num_hidden: int = 1, weight_scale: float = 1.0, bias_scale: float = 0.0) -> Any:
    r"""Kernel of an infinitely wide ReLU network with equal variances of nodes.

    .. math:: K^{(l)} = \sigma_b^2 + \sigma_v^2 \, E \, \phi(\zeta) \phi(\zeta)^\top , \quad
              \zeta \sim \text{Normal}(0, K^{(l-1)}) .

    The parameters ``raw_weight_variance`` and, with biases, ``raw_bias_variance`` can be fitted.

    :param int num_hidden: number of hidden layers.
    :param float weight_scale: initial value of :math:`\sigma_v`.
    :param float bias_scale: initial value of :math:`\sigma_b`; with zero, there are no biases.
    :returns: a ``gpytorch.kernels.Kernel``.
    :raises ImportError: if GPyTorch is not installed; the message names the extra to install.

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

    with the arc-cosine kernel :math:`k`. Here, nodes are known at all inputs. For more layers, use
    :func:`sample_covariances`, which evaluates them at given inputs.

    :param int in_features: number of inputs :math:`d`.
    :param variances: distribution of the variances of the nodes.
    :param int num_samples: number of kernels.
    :param int num_jumps: number of jumps to draw; the mass of the others is added to :math:`a`.
    :param float weight_scale: :math:`\sigma_v`.
    :param float bias_scale: :math:`\sigma_b`.
    :param int seed: seed of the draws; by default drawn from PyTorch's generator.
    :returns: a ``gpytorch.kernels.Kernel`` with batch shape ``(num_samples,)``.
    :raises ImportError: if GPyTorch is not installed; the message names the extra to install.

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


def gpytorch_kernels(user: str) -> ModuleType:
    """The module with the kernels, which needs GPyTorch."""
    name = "pyro_ext.models.wide_networks._gpytorch_kernels"
    return optional_module(name, user, "GPyTorch", "gp")
