"""Networks whose parameters have a prior, as Pyro models."""

import copy
from collections.abc import Mapping
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyro_ext._checks import check_instance, check_number
from pyro_ext._own_shapes import OwnShapes
from pyro_ext.potential import Layout

__all__ = ["BayesianModule"]


class BayesianModule(nn.Module):
    r"""A network with independent normal priors, :math:`w \sim \text{Normal}(0, \sigma^2)`.

    It is called like the network, inside a Pyro model, and samples every parameter under its name
    in the network. :func:`pyro_ext.reparam.expand_module` is the same with parameter expansion, and
    its draws hold the same names.

    :param torch.nn.Module module: the network; it is copied, its own parameters do not matter.
    :param prior_scale: :math:`\sigma`, a number for all parameters, or numbers by shell-style
        pattern of their names, of which the first that fits counts; ``"default"`` names the rest.
    :raises ValueError: for scales that are not positive, a pattern that fits no parameter, a
        parameter without a scale, or a module without parameters.

    Example::

        >>> from pyro_ext.nn import MLP
        >>> network = BayesianModule(MLP(4, [8], 3), {"*.bias": 1.0, "default": 0.5})
        >>> trace = pyro.poutine.trace(network).get_trace(torch.zeros(5, 4))
        >>> trace.stochastic_nodes
        ['0.weight', '0.bias', '2.weight', '2.bias']
        >>> network.prior_scales["2.weight"], trace.nodes["_RETURN"]["value"].shape
        (0.5, torch.Size([5, 3]))
    """

    def __init__(self, module: nn.Module, prior_scale: float | Mapping[str, float] = 1.0) -> None:
        check_instance("module", module, nn.Module, "a torch.nn.Module")
        super().__init__()
        self.module = copy.deepcopy(module).requires_grad_(False)
        names = [name for name, _ in self.module.named_parameters()]
        if not names:
            raise ValueError(f"module must have parameters, got {type(module).__name__}")
        if isinstance(prior_scale, Mapping):
            for pattern, scale in prior_scale.items():
                check_number(f"prior_scale[{pattern!r}]", scale, above=0.0)
        else:
            prior_scale = check_number("prior_scale", prior_scale, above=0.0)
        scalar = torch.Size([])
        layout = Layout(
            dict.fromkeys(names, scalar), dict.fromkeys(names, torch.float64), torch.device("cpu")
        )
        scales = layout.expand(prior_scale, "prior_scale").tolist()
        self.prior_scales: dict[str, float] = dict(zip(names, scales, strict=True))

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Sample the parameters, and run the network with them.

        :param args: arguments of the network.
        :param kwargs: the same by keyword.
        :returns: what the network returns.
        """
        values: dict[str, Tensor] = {}
        for name, parameter in self.module.named_parameters():
            scale = parameter.new_full((), self.prior_scales[name])
            law = dist.Normal(torch.zeros_like(scale), scale).expand(parameter.shape)
            with OwnShapes():
                values[name] = pyro.sample(name, law.to_event(parameter.dim()))
        return torch.func.functional_call(self.module, values, args, kwargs)
