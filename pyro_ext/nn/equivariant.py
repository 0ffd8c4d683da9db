r"""Layers whose features are tensors and that learn from data how equivariant to be.

[1] H. Kim, H. Lee, H. Yang, J. Lee (2023),
Regularizing towards soft equivariance under mixed symmetries.

[2] M. Finzi, M. Welling, A. G. Wilson (2021), A practical method for constructing equivariant
multilayer perceptrons for arbitrary matrix groups.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from pyro.nn import PyroModule, PyroSample
from torch import Tensor, nn

from pyro_ext._lib import checks
from pyro_ext._lib.own_shapes import OwnShapes
from pyro_ext.distributions import SoftEquivariantNormal
from pyro_ext.groups import SO, EmbeddedO2, EquivariantProjector, Group, O, Scale, TensorRep
from pyro_ext.groups.projector import check_groups, weight_blocks

__all__ = [
    "SO",
    "EmbeddedO2",
    "EquivariantBilinear",
    "EquivariantProjector",
    "GatedNonlinearity",
    "Group",
    "O",
    "Scale",
    "SoftEquivariantLinear",
    "TensorRep",
    "equivariance_error",
    "equivariance_residuals",
    "project_weights_",
]


class SoftEquivariantLinear(PyroModule):
    r"""A linear layer between tensors that measures how far it is from equivariance [1].

    The weight is unrestricted. For each of several groups, :meth:`residuals` measures how far the
    weight and the bias are from the nearest equivariant ones. The sum of the residuals, weighted by
    strengths :math:`\lambda_g`, is the penalty of [1]. Add it to a loss::

        loss = mse_loss(layer(x), y) + layer.penalty(strengths)

    If you pass ``strengths``, the layer is part of a Pyro model instead: weight and bias are sites
    whose prior corresponds to that penalty,
    :class:`~pyro_ext.distributions.SoftEquivariantNormal`, and any guide or kernel applies. Under
    ``AutoDelta``, this gives the penalty again, plus weight decay.

    :param TensorRep rep_in: type of the inputs.
    :param TensorRep rep_out: type of the outputs.
    :param Sequence groups: candidate symmetries, instances of :class:`~pyro_ext.groups.Group`.
    :param strengths: :math:`\lambda_g` of the prior. Without it, weight and bias are parameters.
        **Shape:** ``()`` or ``(num_groups,)``.
    :param base_scale: standard deviation of equivariant weights in the prior. **Shape:** ``()``.
    :param bool bias: whether there is a bias.
    :raises ValueError: if a group does not act on the representations; the message gives its index.

    Example::

        >>> from pyro_ext.nn.equivariant import EmbeddedO2, O, SoftEquivariantLinear, TensorRep
        >>> groups = [O(3), EmbeddedO2(0, 1)]
        >>> layer = SoftEquivariantLinear(TensorRep({1: 2}), TensorRep({0: 1, 1: 1}), groups)
        >>> layer(torch.randn(5, 6)).shape, layer.residuals().shape
        (torch.Size([5, 4]), torch.Size([2]))
        >>> prior = SoftEquivariantLinear(TensorRep({1: 2}), TensorRep({1: 1}), groups, [0.0, 10.0])
        >>> trace = pyro.poutine.trace(prior).get_trace(torch.randn(5, 6))
        >>> trace.stochastic_nodes
        ['weight', 'bias']
    """

    def __init__(
        self,
        rep_in: TensorRep,
        rep_out: TensorRep,
        groups: Sequence[Group],
        strengths: Any = None,
        base_scale: Any = 1.0,
        *,
        bias: bool = True,
    ) -> None:
        super().__init__()
        checks.instance("rep_in", rep_in, TensorRep, "a TensorRep")
        checks.instance("rep_out", rep_out, TensorRep, "a TensorRep")
        checks.boolean("bias", bias)
        self.groups, names = check_groups(groups)
        self.rep_in, self.rep_out = rep_in, rep_out
        self.is_bayesian = strengths is not None
        self.blocks, self.bias_blocks = (
            weight_blocks(rep, rep_out, self.groups, names) for rep in (rep_in, None)
        )
        num_outputs, num_inputs = self.blocks.event_shape
        self.bias: Any = None
        if self.is_bayesian:
            for name, rep in {"weight": rep_in, **({"bias": None} if bias else {})}.items():
                prior = SoftEquivariantNormal(rep, rep_out, self.groups, strengths, base_scale)
                if prior.batch_shape:
                    wrong = "base_scale" if torch.as_tensor(base_scale).dim() else "strengths"
                    raise ValueError(
                        f"{wrong} must be that of one layer, got {tuple(prior.batch_shape)} of them"
                    )
                setattr(self, name, PyroSample(prior))
            return
        self.weight: Any = nn.Parameter(torch.empty(num_outputs, num_inputs))
        if bias:
            self.bias = nn.Parameter(torch.empty(num_outputs))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Reset the parameters to an orthogonal weight and a small bias, as in [1]."""
        if self.is_bayesian:
            return
        nn.init.orthogonal_(self.weight)
        if self.bias is not None:
            nn.init.uniform_(self.bias, 0.0, len(self.bias) ** -0.5)

    def forward(self, x: Tensor) -> Tensor:
        """Map inputs to outputs.

        :param Tensor x: **Shape:** ``(*batch, num_inputs)``.
        :returns: **Shape:** ``(*batch, num_outputs)``.
        """
        size = self.blocks.event_shape[1]
        x = checks.as_tensor("x", x, f"(*batch, {size})", allow_empty=True)
        with OwnShapes():
            weight, bias = self.weight, self.bias
        return nn.functional.linear(x.to(weight), weight, bias)

    def residuals(self, weight: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
        r"""Half the squared distance of weight and bias from equivariance under each group.

        :param Tensor weight: weights, such as posterior draws. Default: the layer's own. **Shape:**
            ``(*batch, num_outputs, num_inputs)``.
        :param Tensor bias: biases. Default: the layer's own. **Shape:** ``(*batch, num_outputs)``.
        :returns: :math:`(\|W - P_g W\|^2 + \|b - P_g b\|^2) / 2`. **Shape:** ``(*batch,
            num_groups)``.
        :raises ValueError: if the weight is a sample site and no weight is given.
        """
        if weight is None:
            if self.is_bayesian:
                raise ValueError("weight must be given if it is a sample site, got None")
            weight, bias = self.weight, self.bias if bias is None else bias
        found = self.blocks.residuals(self.blocks.check("weight", weight))
        if bias is None:
            return found
        return found + self.bias_blocks.residuals(self.bias_blocks.check("bias", bias))

    def penalty(self, strengths: Tensor) -> Tensor:
        r"""Sum of the layer's residuals, weighted by strengths; cheaper than separate residuals.

        :param Tensor strengths: :math:`\lambda_g`. **Shape:** ``(num_groups,)``.
        :returns: **Shape:** ``()``.
        """
        strengths = checks.as_tensor("strengths", strengths, f"({len(self.groups)})", finite=True)
        if self.is_bayesian:
            raise ValueError(
                "penalty needs a layer with parameters, got one with a prior, which includes it"
            )
        found = self.blocks.penalty(self.weight, strengths)
        if self.bias is None:
            return found
        return found + self.bias_blocks.penalty(self.bias, strengths)

    def extra_repr(self) -> str:
        """Return the settings for the module's ``repr``."""
        return f"{self.rep_in} -> {self.rep_out}, groups={list(self.groups)}"


class GatedNonlinearity(nn.Module):
    r"""Multiply each tensor by the sigmoid of a scalar, which preserves equivariance [2].

    Scalars gate themselves, which amounts to a swish. For each other tensor, the input has an
    additional scalar as its gate. With ``soft``, a term :math:`w \circ \operatorname{swish}(x)`
    with a small trainable weight is added, which can break a symmetry, as in [1].

    :param TensorRep rep: type of the outputs. The attribute ``rep_in`` is that of the inputs.
    :param int dim: dimension of the space.
    :param bool soft: whether to add the symmetry-breaking term.

    Example::

        >>> gate = GatedNonlinearity(TensorRep({0: 2, 1: 1}), 3)
        >>> gate.rep_in, gate(torch.randn(4, 6)).shape
        (3T(0) + 1T(1), torch.Size([4, 5]))
    """

    def __init__(self, rep: TensorRep, dim: int, *, soft: bool = True) -> None:
        super().__init__()
        checks.instance("rep", rep, TensorRep, "a TensorRep")
        self.rep, self.dim = rep, checks.integer("dim", dim, 1)
        numbers = rep.multiplicities
        self.rep_in = TensorRep({0: 0, **numbers, **{0: sum(numbers.values())}}, rep.dim)
        self.weight = None
        if checks.boolean("soft", soft):
            self.weight = nn.Parameter(torch.full((rep.size(dim),), 1e-3))

    def forward(self, x: Tensor) -> Tensor:
        """Apply the gates.

        :param Tensor x: inputs of type ``rep_in``. **Shape:** ``(*batch, num_inputs)``.
        :returns: **Shape:** ``(*batch, size)``.
        """
        parts = self.rep_in.split(x, self.dim)
        scalars, numbers = parts[0], self.rep.multiplicities
        values = {rank: parts[rank][..., :number, :] for rank, number in numbers.items()}
        gates, first = dict(values), numbers.get(0, 0)  # scalars are gates of themselves
        for rank, number in numbers.items():
            if rank:
                gates[rank] = scalars[..., first : first + number, :]
                first += number
        flat = torch.cat([value.flatten(-2) for value in values.values()], -1)
        gated = [(values[rank] * torch.sigmoid(gates[rank])).flatten(-2) for rank in numbers]
        found = torch.cat(gated, -1)
        return found if self.weight is None else found + self.weight * nn.functional.silu(flat)


class EquivariantBilinear(nn.Module):
    r"""Products of tensors, contracted over some of their axes, such as scalar and outer products.

    Linear maps that are equivariant under :math:`O(3)` cannot turn vectors into tensors of rank
    two, but products can. Each output tensor is a sum of products of two learned mixtures of input
    tensors, over all pairs of ranks and numbers of contracted axes that give its rank. These
    products are equivariant under all orthogonal matrices. If the matrices of ``group`` are not
    orthogonal, no axes are contracted, and the products are equivariant under any group.

    :param TensorRep rep: type of inputs and outputs.
    :param Group group: the group of the equivariance.

    Example::

        >>> from pyro_ext.nn.equivariant import EquivariantBilinear, O, TensorRep
        >>> EquivariantBilinear(TensorRep({0: 2, 1: 2}), O(3))(torch.randn(4, 8)).shape
        torch.Size([4, 8])
    """

    def __init__(self, rep: TensorRep, group: Group) -> None:
        super().__init__()
        checks.instance("rep", rep, TensorRep, "a TensorRep")
        checks.instance("group", group, Group, "a Group")
        self.rep, self.dim, self.paths = rep, group.dim, []
        numbers = rep.multiplicities
        most = max(numbers) if group.is_orthogonal else 0
        factors: list[nn.Parameter] = []
        for left in numbers:
            for right in numbers:
                for summed in range(min(left, right, most) + 1):
                    rank = left + right - 2 * summed
                    if left <= right and rank in numbers:
                        self.paths.append((left, right, summed, rank))
                        for each in (left, right):
                            scale = numbers[each] ** -0.5
                            factors.append(
                                nn.Parameter(scale * torch.randn(numbers[rank], numbers[each]))
                            )
        self.factors = nn.ParameterList(factors)

    def forward(self, x: Tensor) -> Tensor:
        """Multiply tensors with each other.

        :param Tensor x: **Shape:** ``(*batch, size)``.
        :returns: **Shape:** as the inputs.
        """
        own = next(self.parameters())
        parts = {rank: part.to(own) for rank, part in self.rep.split(x, self.dim).items()}
        found = {rank: torch.zeros_like(part) for rank, part in parts.items()}
        for number, (left, right, summed, rank) in enumerate(self.paths):
            a = self.factors[2 * number] @ parts[left]
            b = self.factors[2 * number + 1] @ parts[right]
            a = a.unflatten(-1, (self.dim ** (left - summed), self.dim**summed))
            b = b.unflatten(-1, (self.dim**summed, self.dim ** (right - summed)))
            found[rank] = found[rank] + (a @ b).flatten(-2)
        return torch.cat([part.flatten(-2) for part in found.values()], -1)


def equivariance_residuals(module: nn.Module) -> Tensor:
    """Sum the residuals of all :class:`SoftEquivariantLinear` layers of a network, for each group.

    :param torch.nn.Module module: the network.
    :returns: the sums, with gradients with respect to the weights. **Shape:** ``(num_groups,)``.
    :raises ValueError: if the network has no such layers, or they have different groups.

    Example::

        >>> from pyro_ext.nn.equivariant import O, Scale
        >>> layer = SoftEquivariantLinear(TensorRep({1: 2}), TensorRep({1: 1}), [O(3), Scale(3)])
        >>> equivariance_residuals(torch.nn.Sequential(layer)).shape
        torch.Size([2])
    """
    return torch.stack([layer.residuals() for layer in _soft_layers(module)]).sum(0)


@torch.no_grad()
def project_weights_(module: nn.Module, group: int, fraction: float = 1.0) -> nn.Module:
    """Move the weights of all :class:`SoftEquivariantLinear` layers towards equivariance, in place.

    :param torch.nn.Module module: the network.
    :param int group: the index of the group.
    :param float fraction: how far to move, from 0 to 1. [1] starts at 0.5 for its motion data.
    :returns: the network.
    :raises ValueError: if numbers are out of range.
    """
    layers = _soft_layers(module)
    if checks.integer("group", group, 0) >= len(layers[0].groups):
        raise ValueError(f"group must be below the {len(layers[0].groups)} of module, got {group}")
    checks.number("fraction", fraction, least=0.0, most=1.0)
    for layer in layers:
        for value, blocks in ((layer.weight, layer.blocks), (layer.bias, layer.bias_blocks)):
            if value is not None:
                value.lerp_(blocks.project(value, group), fraction)
    return module


@torch.no_grad()
def equivariance_error(
    function: Callable[[Tensor], Tensor],
    rep_in: TensorRep,
    rep_out: TensorRep,
    group: Group,
    x: Tensor,
    *,
    seed: int = 0,
) -> float:
    r"""Measure the relative equivariance error of a function, between zero and one [1].

    It is the mean of :math:`\|f(\rho_{in}(g) x) - \rho_{out}(g) f(x)\| / (\|f(\rho_{in}(g) x)\| +
    \|\rho_{out}(g) f(x)\|)` over inputs, with a random element :math:`g` of the group for each.

    :param Callable function: a function from inputs to outputs.
    :param TensorRep rep_in: type of the inputs.
    :param TensorRep rep_out: type of the outputs.
    :param Group group: the group whose elements are drawn.
    :param Tensor x: inputs. **Shape:** ``(n, num_inputs)``.
    :param int seed: seed of the elements.
    :returns: the error; zero if all outputs are zero.

    Example::

        >>> from pyro_ext.nn.equivariant import O, TensorRep, equivariance_error
        >>> vector, x = TensorRep({1: 1}), torch.randn(20, 3)
        >>> equivariance_error(lambda x: 2.0 * x, vector, vector, O(3), x) < 1e-6
        True
        >>> equivariance_error(torch.relu, vector, vector, O(3), x) > 0.1
        True
    """
    checks.function("function", function)
    for name, rep in (("rep_in", rep_in), ("rep_out", rep_out)):
        checks.instance(name, rep, TensorRep, "a TensorRep")
    checks.instance("group", group, Group, "a Group")
    x = checks.as_tensor("x", x, f"(n, {rep_in.size(group.dim)})", finite=True)
    g = group.sample(len(x), seed=seed).to(x)
    outputs = checks.as_tensor("function(x)", function(x))
    if outputs.shape != (len(x), rep_out.size(group.dim)):
        raise ValueError(
            f"function must return ({len(x)}, {rep_out.size(group.dim)}), "
            f"got {checks.shown(outputs)}"
        )
    moved, after = function(rep_in.act(g, x)), rep_out.act(g, outputs)
    size = moved.norm(dim=-1) + after.norm(dim=-1)
    difference = (moved - after).norm(dim=-1)
    return float((difference / size.clamp(min=torch.finfo(size.dtype).tiny)).mean())


def _soft_layers(module: nn.Module) -> list[SoftEquivariantLinear]:
    """The layers of a network that have residuals."""
    checks.instance("module", module, nn.Module, "a torch.nn.Module")
    found = [each for each in module.modules() if isinstance(each, SoftEquivariantLinear)]
    if not found or any(layer.is_bayesian for layer in found):
        raise ValueError("module must have SoftEquivariantLinear layers with parameters")
    kinds = [
        [(g.lie_algebra.tolist(), g.discrete.tolist()) for g in layer.groups] for layer in found
    ]
    if any(kind != kinds[0] for kind in kinds):
        raise ValueError("module must have the same groups in all of its layers")
    return found
