r"""Networks whose weights depend on each other through the variances of the nodes they leave.

[1] H. Lee, F. Ayed, P. Jung, J. Lee, H. Yang, F. Caron (2023), Deep neural networks with dependent
weights: Gaussian process mixture limit, heavy tails, sparsity and compressibility.
"""

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistribution
from pyro.poutine.messenger import Messenger
from torch import nn

from pyro_ext._checks import (
    check_callable,
    check_instance,
    check_integer,
    check_number,
    check_sequence,
)
from pyro_ext.models.wide_networks.variances import NodeVariances
from pyro_ext.nn import BayesianModule, NodeScale, init_unit_variance_

__all__ = ["DependentWeightNetwork"]


class DependentWeightNetwork(BayesianModule):
    r"""A network whose nodes have random variances, as a Pyro model [1].

    .. math::
        Z^{(1)}_k(x) &= \sum_i W_{ki} x_i + B_k , \quad
        W_{ki} \sim \text{Normal}(0, \sigma_v^2 / d), \; B_k \sim \text{Normal}(0, \sigma_b^2) , \\
        Z^{(l+1)}_k(x) &= \sum_j \sqrt{\lambda_j} \, V_{kj} \, \phi(Z^{(l)}_j(x)) + B_k , \quad
        V_{kj} \sim \text{Normal}(0, \sigma_v^2) .

    It is called like a network, inside a Pyro model, and :class:`~pyro_ext.nn.BayesianClassifier`
    takes it. Sites are the parameters of ``module``, by their names there: ``"1.weight"`` and
    ``"1.bias"`` of the first layer, and for each hidden layer ``"3.variances"`` of its nodes and
    ``"4.weight"``, ``"4.bias"`` of the layer behind it. Variances that are all the same are no
    site. A law with most of its mass below the least number, as that of :func:`beta_variances` in a
    wide layer, is for simulation, and samplers that follow gradients refuse it; see
    :class:`NodeVariances`.

    The parameters of ``module`` itself do not matter; :func:`~pyro_ext.nn.init_to_module` makes
    chains start at normal weights and at variances of one over the width.

    :param int in_features: number of inputs :math:`d`.
    :param hidden_features: width of each hidden layer, at least one layer.
    :param int out_features: number of outputs.
    :param variances: law of the variances of the nodes of all hidden layers.
    :param float weight_scale: :math:`\sigma_v`.
    :param float bias_scale: :math:`\sigma_b`; with zero there are no biases.
    :param activation: makes the module :math:`\phi`.
    :raises ValueError: for arguments out of range.

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
        hidden_features = check_sequence("hidden_features", hidden_features, "a list of widths")
        check_instance("variances", variances, NodeVariances, "NodeVariances")
        check_callable("activation", activation, "a class of modules or a function that makes one")
        widths = [check_integer("in_features", in_features, 1)]
        widths += [
            check_integer(f"hidden_features[{i}]", width, 1)
            for i, width in enumerate(hidden_features)
        ]
        widths.append(check_integer("out_features", out_features, 1))
        check_number("weight_scale", weight_scale, above=0.0)
        check_number("bias_scale", bias_scale, least=0.0)
        layers: list[nn.Module] = []
        laws: dict[str, TorchDistribution] = {}
        for layer, (start, end) in enumerate(pairwise(widths)):
            law = dist.Delta(torch.tensor(1.0 / start)) if layer == 0 else variances.law(start)
            is_latent = not isinstance(law, dist.Delta)
            if is_latent:
                laws[f"{len(layers)}.variances"] = law
            scale = torch.full((start,), 1.0 / start)
            layers += [
                NodeScale(scale, learnable=is_latent),
                _StandardLinear(start, end, bias=bias_scale > 0),
                activation(),
            ]
        scales = {"*.weight": weight_scale}
        if bias_scale > 0:
            scales["*.bias"] = bias_scale
        if laws:
            scales["*.variances"] = 1.0  # of no effect, these have laws of their own
        super().__init__(nn.Sequential(*layers[:-1]), scales)
        self.variance_laws = laws

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Sample variances and weights, and run the network with them.

        :param args: arguments of the network.
        :param kwargs: the same by keyword.
        :returns: what the network returns.
        """
        with _Laws(self.variance_laws):
            return super().forward(*args, **kwargs)


class _Laws(Messenger):
    """Laws of some sites, in place of those that the model has for them."""

    def __init__(self, laws: Mapping[str, TorchDistribution]) -> None:
        super().__init__()
        self._laws = laws

    def _pyro_sample(self, msg: Any) -> None:
        if (law := self._laws.get(msg["name"])) is not None:
            msg["fn"] = law.expand(msg["fn"].shape()).to_event(1)


class _StandardLinear(nn.Linear):
    """Linear layer that starts at standard normal weights, since :class:`NodeScale` scales them."""

    def reset_parameters(self) -> None:
        """Draw the weights, and set biases to zero."""
        init_unit_variance_(self)
