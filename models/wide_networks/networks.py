"""Networks with dependent weights, as Pyro models, and with fixed, unequal scales of nodes.

Numbers in brackets refer to the papers in the docstring of the package.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistribution
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn

from pyro_ext._lib import checks
from pyro_ext.models.wide_networks.limit import step_covariance
from pyro_ext.models.wide_networks.variances import NodeVariances
from pyro_ext.nn import BayesianModule, NodeScale
from pyro_ext.random import fresh_seed


class DependentWeightNetwork(BayesianModule):
    r"""A network whose nodes have random variances, as a Pyro model [1].

    .. math::
        Z^{(1)}_k(x) &= \sum_i W_{ki} x_i + B_k , \quad
        W_{ki} \sim \text{Normal}(0, \sigma_v^2 / d), \; B_k \sim \text{Normal}(0, \sigma_b^2) , \\
        Z^{(l+1)}_k(x) &= \sum_j \sqrt{\lambda_j} \, V_{kj} \, \phi(Z^{(l)}_j(x)) + B_k , \quad
        V_{kj} \sim \text{Normal}(0, \sigma_v^2) .

    Call it like a network, inside a Pyro model, or pass it to
    :class:`~pyro_ext.nn.BayesianClassifier`. Sites are the parameters of ``module``, with their
    names there: ``"1.weight"`` and ``"1.bias"`` of the first layer, and for each hidden layer
    ``"3.variances"`` of its nodes and ``"4.weight"``, ``"4.bias"`` of the next layer. Variances
    that are all the same are not a site. Gradient-based samplers reject some distributions; see
    :class:`NodeVariances`. :func:`~pyro_ext.nn.init_to_module` starts chains at normal weights and
    at variances of one over the width.

    :param int in_features: number of inputs :math:`d`.
    :param hidden_features: width of each hidden layer, at least one layer.
    :param int out_features: number of outputs.
    :param variances: distribution of the variances of the nodes of all hidden layers.
    :param float weight_scale: :math:`\sigma_v`.
    :param float bias_scale: :math:`\sigma_b`; with zero, there are no biases.
    :param activation: makes the module :math:`\phi`.

    Example::

        >>> from pyro_ext.models.wide_networks import horseshoe_variances
        >>> network = DependentWeightNetwork(4, [50], 3, horseshoe_variances())
        >>> trace = pyro.poutine.trace(network).get_trace(torch.zeros(5, 4))
        >>> trace.stochastic_nodes
        ['1.weight', '1.bias', '3.variances', '4.weight', '4.bias']
        >>> trace.nodes["_RETURN"]["value"].shape
        torch.Size([5, 3])
    """

    def __init__(
        self,
        in_features: int,
        hidden_features: Sequence[int],
        out_features: int,
        variances: NodeVariances,
        *,
        weight_scale: float = 1.0,
        bias_scale: float = 1.0,
        activation: Callable[[], nn.Module] = nn.ReLU,
    ) -> None:
        hidden_features = checks.sequence("hidden_features", hidden_features, "a list of widths")
        checks.instance("variances", variances, NodeVariances, "NodeVariances")
        checks.function("activation", activation, "a class of modules or a function that makes one")
        widths = [checks.integer("in_features", in_features, 1)]
        widths += [
            checks.integer(f"hidden_features[{i}]", width, 1)
            for i, width in enumerate(hidden_features)
        ]
        widths.append(checks.integer("out_features", out_features, 1))
        checks.number("weight_scale", weight_scale, above=0.0)
        checks.number("bias_scale", bias_scale, least=0.0)
        layers: list[nn.Module] = []
        distributions: dict[str, TorchDistribution] = {}
        for layer, (start, end) in enumerate(pairwise(widths)):
            distribution = variances.distribution(start) if layer else None
            is_latent = not (distribution is None or isinstance(distribution, dist.Delta))
            if distribution is not None and is_latent:
                distributions[f"{len(layers)}.variances"] = distribution
            scale = NodeScale(torch.full((start,), 1.0 / start), learnable=is_latent)
            layers += [scale, _StandardLinear(start, end, bias=bias_scale > 0), activation()]
        scales = {"*.weight": weight_scale}
        if bias_scale > 0:
            scales["*.bias"] = bias_scale
        if distributions:
            scales["*.variances"] = 1.0  # of no effect, these have distributions of their own
        super().__init__(nn.Sequential(*layers[:-1]), scales)
        self.variance_distributions = distributions

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Sample variances and weights, and run the network with them.

        :param args: arguments of the network.
        :param kwargs: keyword arguments of the network.
        :returns: what the network returns.
        """
        with _SiteDistributions(self.variance_distributions):
            return super().forward(*args, **kwargs)


class _SiteDistributions(Messenger):
    """Distributions of some sites, in place of those that the model has for them."""

    def __init__(self, distributions: Mapping[str, TorchDistribution]) -> None:
        super().__init__()
        self._distributions = distributions

    def _pyro_sample(self, msg: Any) -> None:
        if (distribution := self._distributions.get(msg["name"])) is not None:
            msg["fn"] = distribution.expand(msg["fn"].shape()).to_event(1)


class _StandardLinear(nn.Linear):
    """Linear layer that starts at standard normal weights, since :class:`NodeScale` scales them."""

    def reset_parameters(self) -> None:
        """Draw the weights, and set biases to zero."""
        nn.init.normal_(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)


class AsymmetricNetwork(nn.Module):
    r"""A ReLU network with one hidden layer, of which only the hidden weights are trained [2].

    .. math:: f(x) = \sum_{j=1}^m \sqrt{\lambda_j} \, a_j \, \phi(w_j^\top x / \sqrt{d}) , \quad
              a_j \in \{-1, 1\} , \; w_j \sim \text{Normal}(0, \sigma_w^2 I) .

    The variances :math:`\lambda_j` and the signs, one vector for each output, stay fixed. The only
    trained parameter is ``hidden.weight``. With the same seed, a wider network starts with the
    nodes of a narrower one.

    :param int in_features: number of inputs :math:`d`.
    :param int out_features: number of outputs.
    :param Tensor variances: :math:`\lambda_j`, such as those of
        :func:`~pyro_ext.nn.asymmetric_variances`. **Shape:** ``(num_nodes,)``.
    :param float weight_scale: :math:`\sigma_w`.
    :param int seed: seed of the initial weights; by default drawn from PyTorch's generator.

    Example::

        >>> from pyro_ext.nn import asymmetric_variances, zipf_weights
        >>> variances = asymmetric_variances(zipf_weights(100, 0.5), symmetric_fraction=0.2)
        >>> network = AsymmetricNetwork(4, 3, variances)
        >>> network(torch.zeros(5, 4)).shape
        torch.Size([5, 3])
        >>> [name for name, value in network.named_parameters() if value.requires_grad]
        ['hidden.weight']
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        variances: Tensor,
        weight_scale: float = 1.0,
        seed: int | None = None,
    ) -> None:
        variances = checks.as_tensor("variances", variances, "(num_nodes,)")
        super().__init__()
        checks.integer("in_features", in_features, 1)
        checks.integer("out_features", out_features, 1)
        checks.number("weight_scale", weight_scale, above=0.0)
        self.scale = NodeScale(variances)
        generator = torch.Generator().manual_seed(fresh_seed(seed))
        nodes = _normal_rows(len(variances), in_features + out_features, generator, variances.dtype)
        self.hidden = nn.Linear(in_features, len(variances), bias=False, dtype=variances.dtype)
        self.output = nn.Linear(len(variances), out_features, bias=False, dtype=variances.dtype)
        with torch.no_grad():
            self.hidden.weight.copy_(weight_scale * nodes[:, :in_features])
            self.output.weight.copy_(torch.where(nodes[:, in_features:].mT < 0, -1.0, 1.0))
        self.output.weight.requires_grad_(False)

    @property
    def variances(self) -> Tensor:
        r""":math:`\lambda_j`. **Shape:** ``(num_nodes,)``."""
        return self.scale.variances

    def features(self, inputs: Tensor, number: int | None = None) -> Tensor:
        """Compute hidden nodes without their scales, those of largest variance first.

        :param Tensor inputs: **Shape:** ``(n, in_features)``.
        :param int number: number of nodes; by default all.
        :returns: **Shape:** ``(n, number)``.
        """
        checks.optional(checks.integer, "number", number, 1)
        if number is not None and number > len(self.variances):
            raise ValueError(
                f"number must be at most {len(self.variances)}, that of all nodes, got {number}"
            )
        order = self.variances.argsort(dim=-1, descending=True, stable=True)[:number]
        return self._nodes(inputs).relu()[..., order]

    def forward(self, inputs: Tensor) -> Tensor:
        """Run the network.

        :param Tensor inputs: **Shape:** ``(n, in_features)``.
        :returns: **Shape:** ``(n, out_features)``.
        """
        outputs: Tensor = self.output(self.scale(self._nodes(inputs).relu()))
        return outputs

    def prune(self, fraction: float) -> None:
        """Remove the nodes of smallest variance permanently.

        :param float fraction: fraction of the nodes to remove.
        """
        self.scale.prune(fraction)

    def _nodes(self, inputs: Tensor) -> Tensor:
        nodes: Tensor = self.hidden(inputs / math.sqrt(inputs.shape[-1]))
        return nodes


def _normal_rows(number: int, size: int, generator: torch.Generator, dtype: torch.dtype) -> Tensor:
    """Draw normal numbers such that the first ones do not depend on how many are drawn."""
    # PyTorch draws them in blocks of 16, and redraws the last ones of an incomplete block.
    whole = -(-number * size // 16) * 16
    values = torch.randn(whole, generator=generator, dtype=dtype, device="cpu")
    return values[: number * size].view(number, size)


@torch.no_grad()
def tangent_gram(network: AsymmetricNetwork, inputs: Tensor) -> Tensor:
    r"""Tangent Gram matrix of a network, the same for each output [2].

    .. math:: \Theta_{ii'} = \frac{\langle x_i, x_{i'} \rangle}{d}
              \sum_j \lambda_j 1\{w_j^\top x_i > 0\} 1\{w_j^\top x_{i'} > 0\} .

    Under gradient flow on half the sum of squares, the outputs follow
    :math:`\dot f = -\Theta (f - y)`.

    :param AsymmetricNetwork network: the network.
    :param Tensor inputs: **Shape:** ``(n, in_features)``.
    :returns: **Shape:** ``(n, n)``.

    Example::

        >>> network = AsymmetricNetwork(4, 1, torch.full((50,), 0.02), seed=0)
        >>> tangent_gram(network, torch.randn(3, 4)).shape
        torch.Size([3, 3])
    """
    checks.instance("network", network, AsymmetricNetwork, "an AsymmetricNetwork")
    shape, like = f"(n, {network.hidden.in_features})", network.hidden.weight
    inputs = checks.as_tensor("inputs", inputs, shape, finite=True, like=like)
    active = (inputs @ network.hidden.weight.mT > 0) * network.variances.sqrt()
    return (active @ active.mT) * (inputs @ inputs.mT) / inputs.shape[-1]


def mean_tangent_gram(inputs: Tensor) -> Tensor:
    r"""Mean of :func:`tangent_gram` over initial weights, for any variances that sum to one [2].

    .. math:: \Theta^*_{ii'} = \frac{\langle x_i, x_{i'} \rangle}{d} \,
              \frac{\pi - \arccos \rho_{ii'}}{2 \pi}

    with the cosine :math:`\rho_{ii'}` between two inputs. Its smallest eigenvalue :math:`\kappa_n`,
    times the symmetric fraction of the variances, is a lower bound of the rate at which the loss
    falls.

    :param Tensor inputs: **Shape:** ``(n, d)``.
    :returns: **Shape:** ``(n, n)``.

    Example::

        >>> mean_tangent_gram(torch.eye(2))
        tensor([[0.2500, 0.0000],
                [0.0000, 0.2500]])
    """
    inputs = checks.as_tensor("inputs", inputs, "(n, d)", finite=True)
    products = inputs @ inputs.mT / inputs.shape[-1]
    diagonal = products.diagonal()
    return products * step_covariance(products, diagonal[:, None], diagonal)
