r"""Networks whose weights are products of matrices.

[1] H. Kim, G. Nam, C. Yun, H. Yang, J. Lee (2025),
Parameter expanded stochastic gradient Markov chain Monte Carlo.
"""

import copy
from collections.abc import Iterator, Mapping
from typing import Any, Literal, NamedTuple

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyro_ext._lib import checks
from pyro_ext._lib.own_shapes import OwnShapes
from pyro_ext.reparam.expansion import merge_factors, square_factor

_MATRICES = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


class _Layer(NamedTuple):
    """A module with parameters of its own.

    :param str name: of the module, empty for the whole.
    :param dict parameters: its parameters by name.
    :param list left: names of the square factors on the side of the output.
    :param list right: those on the side of the input.
    """

    name: str
    parameters: dict[str, nn.Parameter]
    left: list[str]
    right: list[str]

    def site(self, name: str) -> str:
        """Name of a site of the layer."""
        return f"{self.name}.{name}" if self.name else name


class ExpandedModule(nn.Module):
    r"""A Bayesian network whose weights are products of matrices, as a Pyro model [1].

    A weight is :math:`W = P_1 \cdots P_c \, V \, Q_1 \cdots Q_d`, as in
    :class:`~pyro_ext.reparam.ExpansionReparam`, and the bias of its layer is :math:`b = P_1 \cdots
    P_c \, v` with the same left factors. The first linear or convolutional layer has no right
    factors, which would act on the data, and the last has no left factors. Vectors of other layers,
    such as norms, share the left factors of their layer. All other parameters are unchanged.

    The sites of a layer ``"fc"`` are ``"fc.P1"``, ``"fc.weight.V"``, ``"fc.Q1"`` and
    ``"fc.bias.V"``. The parameters themselves are deterministic sites with their names in the
    module.

    Create one with :func:`expand_module`.
    """

    def __init__(
        self,
        module: nn.Module,
        prior_scale: float,
        left: int,
        right: int,
        strength: float | Literal["width"],
    ) -> None:
        checks.instance("module", module, nn.Module, "a torch.nn.Module")
        super().__init__()
        self.prior_scale = checks.number("prior_scale", prior_scale, above=0.0)
        self.left = checks.integer("left", left, 0)
        self.right = checks.integer("right", right, 0)
        if strength != "width":
            strength = checks.number("strength", strength, above=0.0)
        self.strength = strength
        self.module = copy.deepcopy(module).requires_grad_(False)
        self._gains = gains(self.module)
        self._layers = list(_layers(self.module, self.left, self.right))
        if not self._layers:
            raise ValueError(f"module must have parameters, got {type(module).__name__}")

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Sample the factors, and run the network with their products.

        :param args: arguments of the network.
        :param kwargs: keyword arguments of the network.
        :returns: the output of the network.
        """
        with OwnShapes():
            factors = self._sample()
        merged = self.merge(factors)
        for name, value in merged.items():
            if name not in factors:
                pyro.deterministic(name, value)
        return torch.func.functional_call(self.module, merged, args, kwargs)

    def _sample(self) -> dict[str, Tensor]:
        """Draw all factors, and the parameters that have none."""
        factors: dict[str, Tensor] = {}
        for layer in self._layers:
            weight = next(iter(layer.parameters.values()))
            for names, dim in ((layer.left, 0), (layer.right, 1)):
                for name in names:
                    factors[name] = square_factor(name, weight.shape[dim], weight, self.strength)
            for name, parameter in layer.parameters.items():
                scale = parameter.new_full((), self.prior_scale)
                site = layer.site(name)
                loc = torch.full_like(scale, site in self._gains)
                distribution = dist.Normal(loc, scale).expand(parameter.shape)
                middle = f"{site}.V" if self._has_factors(layer, parameter) else site
                factors[middle] = pyro.sample(middle, distribution.to_event(parameter.dim()))
        return factors

    def merge(self, samples: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Compute the parameters of the network from the factors.

        :param Mapping samples: values of the sites. **Shape:** ``(*batch, *event)`` each.
        :returns: parameters as the network's :meth:`torch.nn.Module.load_state_dict` expects them,
            apart from the batch. **Shape:** ``(*batch, *event)`` each.
        :raises ValueError: if a site is missing.
        """
        merged: dict[str, Tensor] = {}
        for layer in self._layers:
            for name, parameter in layer.parameters.items():
                site = layer.site(name)
                has_factors = self._has_factors(layer, parameter)
                middle = f"{site}.V" if has_factors else site
                needed = [middle]
                if has_factors:
                    needed += layer.left + (layer.right if parameter.dim() > 1 else [])
                if missing := set(needed) - set(samples):
                    raise ValueError(f"samples lacks the sites {sorted(missing)}")
                merged[site] = samples[middle]
                if has_factors:
                    merged[site] = _product(layer, parameter, samples, merged[site])
        return merged

    @staticmethod
    def _has_factors(layer: _Layer, parameter: Tensor) -> bool:
        return bool(layer.left or (layer.right and parameter.dim() > 1))


def expand_module(
    module: nn.Module,
    prior_scale: float = 1.0,
    *,
    left: int = 1,
    right: int = 1,
    strength: float | Literal["width"] = "width",
) -> ExpandedModule:
    """Turn a network into a Bayesian network with parameter expansion.

    Call the result like the network, inside a Pyro model. Biases and the vectors of norms share
    their layer's left factors, which thus mix the output of the layer as a whole.
    :class:`~pyro_ext.reparam.ExpansionReparam` expands single sites instead.

    :param torch.nn.Module module: the network. It is copied, and the values of its parameters do
        not matter.
    :param float prior_scale: the standard deviation of all entries of the middle factors, and of
        parameters without factors. Their priors are centered at zero, or at one for the gains of
        normalization layers, as in :class:`~pyro_ext.nn.BayesianModule`.
    :param int left: number of square factors on the output side.
    :param int right: number of square factors on the input side.
    :param strength: the precision of their entries, or ``"width"`` for the size of each factor.
    :returns: the Bayesian network. Its ``merge`` method computes parameters of the original
        network.
    :raises ValueError: if arguments are out of range, or the module has no parameters.

    Example::

        >>> network = torch.nn.Sequential(
        ...     torch.nn.Linear(4, 8), torch.nn.SiLU(), torch.nn.Linear(8, 3)
        ... )
        >>> expanded = expand_module(network, prior_scale=0.2)
        >>> trace = pyro.poutine.trace(expanded).get_trace(torch.zeros(5, 4))
        >>> trace.stochastic_nodes
        ['0.P1', '0.weight.V', '0.bias.V', '2.Q1', '2.weight.V', '2.bias']
        >>> sorted(expanded.merge({name: trace.nodes[name]["value"] for name in trace.nodes
        ...                        if "value" in trace.nodes[name]}))
        ['0.bias', '0.weight', '2.bias', '2.weight']
    """
    return ExpandedModule(module, prior_scale, left, right, strength)


def gains(module: nn.Module) -> frozenset[str]:
    """Return the names of the gains of normalization layers."""
    return frozenset(
        f"{name}.weight" if name else "weight"
        for name, part in module.named_modules()
        if "Norm" in type(part).__name__
    )


def _layers(module: nn.Module, left: int, right: int) -> Iterator[_Layer]:
    matrices = [part for part in module.modules() if isinstance(part, _MATRICES)]
    for name, part in module.named_modules():
        parameters = dict(part.named_parameters(recurse=False))
        if not parameters:
            continue
        is_matrix = isinstance(part, _MATRICES)
        is_vector = all(parameter.dim() == 1 for parameter in parameters.values())
        sizes = {len(parameter) for parameter in parameters.values() if parameter.dim()}
        # Factors on both sides of the network's ends would mix data and logits.
        num_left = left if (is_matrix and part is not matrices[-1]) else 0
        num_right = right if (is_matrix and part is not matrices[0]) else 0
        if not is_matrix and is_vector and len(sizes) == 1:
            num_left = left
        prefix = f"{name}." if name else ""
        yield _Layer(
            name,
            parameters,
            [f"{prefix}P{i + 1}" for i in range(num_left)],
            [f"{prefix}Q{i + 1}" for i in range(num_right)],
        )


def _product(
    layer: _Layer, parameter: Tensor, samples: Mapping[str, Tensor], middle: Tensor
) -> Tensor:
    left = [samples[name] for name in layer.left]
    if parameter.dim() == 1:
        return merge_factors(left, middle.unsqueeze(-1), []).squeeze(-1)
    right = [samples[name] for name in layer.right]
    return merge_factors(left, middle, right, parameter.dim())
