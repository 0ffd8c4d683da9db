"""Pruning: select the weights of a network to keep, by magnitude or by other scores."""

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils import prune

from pyro_ext._lib import checks

_EXCLUDED = ("bias", "norm")


class MagnitudePruner:
    r"""Removes the smallest of the remaining weights, round by round [1].

    Each round removes ``floor(rate * remaining)`` weights, so that a fraction of
    :math:`(1 - \text{rate})^c` of them remains after :math:`c` rounds. Removed weights stay
    removed. A tensor is never pruned if its name contains "bias" or "norm", or, in a module, if the
    class name of its layer does, such as BatchNorm2d.

    :param float rate: fraction of the remaining weights that a round removes, between 0 and 1.
    :param str scope: ``"global"`` removes a fraction of all weights together, ``"layer"`` a
        fraction of each tensor.
    :ivar dict masks: which weights are present, by name; empty before the first round.
    :raises ValueError: for a rate out of range or an unknown scope.

    [1] J. Frankle, G. K. Dziugaite, D. M. Roy, M. Carbin (2020),
    Linear mode connectivity and the lottery ticket hypothesis.

    Example::

        >>> pruner = MagnitudePruner(rate=0.5)
        >>> pruner.step({"weight": torch.tensor([[3.0, -1.0], [0.5, 2.0]])})["weight"].tolist()
        [[True, False], [False, True]]
        >>> pruner.sparsity()
        0.5
    """

    def __init__(self, rate: float = 0.2, scope: str = "global") -> None:
        self.rate = checks.number("rate", rate, above=0, below=1)
        checks.choice("scope", scope, ("global", "layer"))
        self.scope = scope
        self.masks: dict[str, Tensor] = {}

    def __repr__(self) -> str:
        return f"MagnitudePruner(rate={self.rate}, scope={self.scope!r})"

    def step(self, weights: nn.Module | Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Remove the smallest of the remaining weights.

        :param weights: a module or tensors by name, whose absolute values count. Scores other than
            magnitudes, such as :func:`snip_scores`, are passed the same way.
        :returns: ``masks`` after the round: booleans in the shapes of the weights.
        :raises ValueError: for weights that are not finite, that have other names or shapes than in
            the previous round, or of which none can be pruned.
        """
        chosen = self._prunable(weights)
        if not chosen:
            raise ValueError(
                f"weights must have a tensor without {_EXCLUDED} in its name, got none"
            )
        masks = self.masks or {n: torch.ones_like(w, dtype=torch.bool) for n, w in chosen.items()}
        for name, mask in masks.items():
            if name not in chosen or chosen[name].shape != mask.shape:
                found = tuple(chosen[name].shape) if name in chosen else "nothing"
                raise ValueError(
                    f"weights must hold for {name!r} the shape {tuple(mask.shape)} of the round "
                    f"before, got {found}"
                )
            checks.all_finite(f"weights[{name!r}]", chosen[name])
        names = list(masks)
        groups = [names] if self.scope == "global" else [[name] for name in names]
        kept: dict[str, Tensor] = {}
        for group in groups:
            flat = torch.cat([masks[name].flatten() for name in group])
            sizes = torch.cat([chosen[name].flatten().abs() for name in group])
            present = flat.nonzero()[:, 0]
            order = sizes[present].argsort(stable=True)  # ties: the first one goes
            flat[present[order[: int(self.rate * len(present))]]] = False
            parts = flat.split([masks[name].numel() for name in group])
            kept |= {n: p.view_as(masks[n]) for n, p in zip(group, parts, strict=True)}
        self.masks = kept
        return dict(kept)

    def sparsity(self) -> float:
        """Fraction of the prunable weights that have been pruned; 0 before the first round."""
        total = sum(mask.numel() for mask in self.masks.values())
        return 1.0 - sum(int(m.sum()) for m in self.masks.values()) / total if total else 0.0

    def apply(self, module: nn.Module) -> None:
        """Prune a module in place with :mod:`torch.nn.utils.prune`: removed weights stay zero.

        In a training loop that alternates with :meth:`step`, a module that is already pruned gets
        the new masks. Its parameters stay the same objects, so that an optimizer keeps working.

        :param torch.nn.Module module: a module whose parameters have the names of ``masks``.
        :raises ValueError: if they don't, or have other shapes.
        """
        checks.instance("module", module, nn.Module, "a module")
        named = _parameters(module)
        for name, mask in self.masks.items():
            if name not in named or named[name].shape != mask.shape:
                raise ValueError(
                    f"module must have a parameter {name!r} of the shape {tuple(mask.shape)}"
                )
        for name, mask in self.masks.items():
            owner, _, own = name.rpartition(".")
            layer = module.get_submodule(owner)
            if hasattr(layer, f"{own}_orig"):
                prune.remove(layer, own)
            prune.custom_from_mask(layer, own, mask)

    def _prunable(self, weights: Any) -> dict[str, Tensor]:
        """Tensors that have none of the words in their name, or in that of their layer."""
        if not isinstance(weights, nn.Module):
            named = checks.tensors("weights", weights)
            kinds = dict.fromkeys(named, "")
        else:
            named = {n: p for n, p in _parameters(weights).items() if p.requires_grad}
            owners = {name: weights.get_submodule(name.rpartition(".")[0]) for name in named}
            kinds = {name: type(owner).__name__ for name, owner in owners.items()}
        return {
            name: tensor.detach()
            for name, tensor in named.items()
            if not any(word in f"{name} {kinds[name]}".lower() for word in _EXCLUDED)
        }


def _parameters(module: nn.Module) -> dict[str, Tensor]:
    """Parameters by name, pruned ones as what is left of them."""
    named = {}
    for name, parameter in module.named_parameters():
        path = name.removesuffix("_orig")
        owner, _, own = path.rpartition(".")
        mask = getattr(module.get_submodule(owner), f"{own}_mask", None)
        named[name if mask is None else path] = parameter if mask is None else parameter * mask
    return named


def snip_scores(module: nn.Module, loss: Callable[[], Tensor]) -> dict[str, Tensor]:
    r"""Return the SNIP score of each weight, :math:`|w\,\partial L / \partial w|` [1].

    :param torch.nn.Module module: the network, usually before training; its batch normalization
        statistics are not changed.
    :param Callable loss: computes the loss of a minibatch, a function without arguments.
    :returns: scores by name of the parameter, for :meth:`MagnitudePruner.step`.

    [1] N. Lee, T. Ajanthan, P. H. S. Torr (2019),
    SNIP: single-shot network pruning based on connection sensitivity.

    Example::

        >>> network = torch.nn.Linear(2, 1)
        >>> x = torch.tensor([[1.0, 0.0]])
        >>> scores = snip_scores(network, lambda: network(x).square().sum())
        >>> MagnitudePruner(rate=0.5).step(scores)["weight"].tolist()
        [[True, False]]
    """
    checks.instance("module", module, nn.Module, "a module")
    checks.function("loss", loss, "a function without arguments")
    weights = {n: p for n, p in module.named_parameters() if p.requires_grad}
    before = [buffer.clone() for buffer in module.buffers()]
    scores = _products(weights, loss())
    for buffer, value in zip(module.buffers(), before, strict=True):
        buffer.copy_(value)
    return scores


def synflow_scores(module: nn.Module, inputs: Tensor) -> dict[str, Tensor]:
    r"""Return the SynFlow score of each weight, its share in a flow from inputs to outputs [1].

    The flow :math:`R` is the sum of the outputs of the network with absolute weights at an input of
    ones, and scores are :math:`|w|\,\partial R / \partial |w|`. No data are used. Prune in many
    rounds, and compute new scores in each of them, for the network that the masks leave.

    :param torch.nn.Module module: the network; it is evaluated as in ``module.eval()``.
    :param Tensor inputs: any inputs; only their shape and type are used. **Shape:**
        ``(n, *event)``.
    :returns: scores by name of the parameter, for :meth:`MagnitudePruner.step`.

    [1] H. Tanaka, D. Kunin, D. L. K. Yamins, S. Ganguli (2020),
    Pruning neural networks without any data by iteratively conserving synaptic flow.

    Example::

        >>> network = torch.nn.Linear(2, 1, bias=False)
        >>> scores = synflow_scores(network, torch.zeros(5, 2))
        >>> bool((scores["weight"] == network.weight.abs()).all())
        True
    """
    checks.instance("module", module, nn.Module, "a module")
    inputs = checks.as_tensor("inputs", inputs, "(n, ...)", like=next(module.parameters(), None))
    weights = {
        name: parameter.detach().abs().requires_grad_()
        for name, parameter in module.named_parameters()
    }
    own = copy.deepcopy(module).eval()
    return _products(weights, functional_call(own, weights, (torch.ones_like(inputs[:1]),)).sum())


def _products(weights: Mapping[str, Tensor], value: Tensor) -> dict[str, Tensor]:
    """Absolute products of weights and gradients."""
    gradients = torch.autograd.grad(value, list(weights.values()), materialize_grads=True)
    return {
        name: (weight * gradient).detach().abs()
        for (name, weight), gradient in zip(weights.items(), gradients, strict=True)
    }
