"""Bridge networks: small heads that predict the output of the network between two others."""

import copy
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import kl_div
from torch.utils.flop_counter import FlopCounterMode

from pyro_ext._lib import checks
from pyro_ext.inference.averaging import BezierPath

Features = str | Callable[[nn.Module, Tensor], Tensor]


class BridgeNetwork(nn.Module):
    r"""A head on features of one or both ends of a path that predicts the output of its middle [1].

    The middle of a :class:`~pyro_ext.inference.averaging.BezierPath` is a good member of an
    ensemble with the ends, but costs as much as one of them. The bridge only costs the head, since
    the ends have computed the features anyway. It is trained on
    :math:`\text{KL}(p_\text{middle} \,\|\, p_\text{bridge})`, without labels.

    Only its ``head`` is trained; its ``ends`` and its ``target``, the network in the middle, are
    frozen copies in evaluation mode.

    :param BezierPath path: a trained path.
    :param features: name of the submodule of the ends whose output the head takes; or, if there is
        no such submodule, a function of an end and inputs, which is run in addition to the end.
    :param torch.nn.Module head: maps features to logits; for type II, features of both ends are
        joined along dimension 1.
    :param int kind: 1 for type I, with features of the end at :math:`r = 0`; or 2 for type II, with
        features of both.
    :param float r: position on the path of the network that the bridge predicts.
    :param batches: minibatches of inputs for the batch normalization statistics there, as for
        :meth:`~pyro_ext.inference.averaging.BezierPath.module_at`.
    :raises ValueError: for a submodule that the ends lack, or another kind.

    [1] E. Yun, H. Lee, G. Nam, J. Lee (2023),
    Traversing between modes in function space for fast ensembling.

    Example::

        >>> from pyro_ext.inference.averaging import BezierPath
        >>> from pyro_ext.inference.training import Trainer
        >>> from pyro_ext.nn import MLP
        >>> path = BezierPath(MLP(4, [8], 3), MLP(4, [8], 3))
        >>> bridge = BridgeNetwork(path, "1", MLP(16, [4], 3), kind=2)
        >>> x = torch.randn(32, 4)
        >>> losses = Trainer(bridge, seed=0).run(lambda: bridge.loss(x), 10, progress=False)
        >>> bridge.log_prob(x).shape, BridgeEnsemble([bridge]).probabilities(x).shape
        (torch.Size([32, 3]), torch.Size([3, 32, 3]))
    """

    def __init__(
        self,
        path: BezierPath,
        features: Features,
        head: nn.Module,
        kind: int = 1,
        r: float = 0.5,
        batches: Iterable[Any] | None = None,
    ) -> None:
        super().__init__()
        checks.instance("path", path, BezierPath, "a BezierPath")
        if not isinstance(features, str):
            checks.function(
                "features", features, "the name of a submodule, or a function", or_class=False
            )
        checks.instance("head", head, nn.Module, "a torch.nn.Module")
        r = checks.number("r", r, least=0.0, most=1.0)
        if checks.integer("kind", kind, 1) > 2:
            raise ValueError(f"kind must be 1 or 2, got {kind}")
        names = [name for name, _ in path.module_a.named_modules() if name]
        if isinstance(features, str) and features not in names:
            raise ValueError(f"features must be one of {names!r:.400}, got {features!r}")
        self.features = features
        self.head = head
        self.target = path.module_at(r, batches).requires_grad_(False)
        ends = [path.module_a, path.module_b][:kind]
        self.ends = nn.ModuleList([copy.deepcopy(end).eval() for end in ends])

    def train(self, mode: bool = True) -> "BridgeNetwork":
        """Set the mode of the head; ends and target stay in evaluation mode."""
        super().train(mode)
        self.target.eval()
        self.ends.eval()
        return self

    def forward(self, *features: Tensor) -> Tensor:
        """Compute log probabilities from existing features.

        :param Tensor features: features of the ends, one tensor for type I and two for type II.
        :returns: **Shape:** ``(n, classes)``.
        """
        if len(features) != len(self.ends):
            raise ValueError(f"features must be {len(self.ends)} tensors, got {len(features)}")
        logits: Tensor = self.head(torch.cat(features, 1) if len(features) > 1 else features[0])
        return logits.log_softmax(-1)

    def log_prob(self, inputs: Tensor) -> Tensor:
        """Compute log probabilities of the classes.

        :param Tensor inputs: **Shape:** ``(n, *event)``.
        :returns: **Shape:** ``(n, classes)``.
        """
        features, _ = _run(self.ends, self.features, _as_inputs(inputs, self))
        log_prob: Tensor = self(*features)
        return log_prob

    def loss(self, inputs: Tensor, mixup_alpha: float = 0.4, repulsion: float = 0.0) -> Tensor:
        r"""Compute the divergence of the bridge from the target, at mixed pairs of inputs.

        Each input is mixed with another one of the minibatch, with its own weight from
        :math:`\text{Beta}(\alpha, \alpha)`: the target differs more from the ends there.

        :param Tensor inputs: **Shape:** ``(n, *event)``.
        :param float mixup_alpha: :math:`\alpha`; 0 mixes nothing.
        :param float repulsion: :math:`\gamma` in the term
            :math:`-\gamma\, \text{KL}(p_\text{end} \,\|\, p_\text{bridge})`, averaged over the
            ends, which drives the bridge away from them.
        :returns: a scalar.
        """
        inputs = _as_inputs(inputs, self)
        mixup_alpha = checks.number("mixup_alpha", mixup_alpha, least=0.0)
        repulsion = checks.number("repulsion", repulsion, least=0.0)
        if mixup_alpha:
            inputs = _mixed(inputs, mixup_alpha)
        features, logits = _run(self.ends, self.features, inputs)
        log_prob = self(*features)
        with torch.no_grad():
            target = self.target(inputs).log_softmax(-1)
        loss = kl_div(log_prob, target, log_target=True, reduction="batchmean")
        for end in logits if repulsion else []:
            away = kl_div(log_prob, end.log_softmax(-1), log_target=True, reduction="batchmean")
            loss = loss - repulsion / len(logits) * away
        return loss


class BridgeEnsemble(nn.Module):
    """The average of bridges and of all of their ends.

    Bridges of type I from one network turn it into an ensemble at little more than its own cost; a
    bridge of type II joins the ensemble of two networks. Each end is run once, however many bridges
    it has.

    :param Sequence bridges: :class:`BridgeNetwork` s with the same ``features``.
    :raises ValueError: if ``features`` differ.
    """

    def __init__(self, bridges: Iterable[BridgeNetwork]) -> None:
        super().__init__()
        bridges = checks.sequence("bridges", bridges, "a list of bridges", 1, BridgeNetwork)
        if any(bridge.features != bridges[0].features for bridge in bridges):
            names = [bridge.features for bridge in bridges]
            raise ValueError(f"bridges must take the same features, got {names}")
        self.features = bridges[0].features
        self.bridges = nn.ModuleList(bridges)
        self.ends = nn.ModuleList()
        self._ends_of: list[list[int]] = []  # numbers of the ends of each bridge
        for bridge in bridges:
            self._ends_of.append([self._number_of(end) for end in bridge.ends])

    def _number_of(self, end: nn.Module) -> int:
        """Return the index of the end with the same weights, adding a new end if there is none."""
        state = end.state_dict()
        for number, other in enumerate(self.ends):
            others = other.state_dict()
            if state.keys() == others.keys() and all(
                torch.equal(state[n], others[n]) for n in state
            ):
                return number
        self.ends.append(end)
        return len(self.ends) - 1

    @torch.no_grad()
    def probabilities(self, inputs: Tensor) -> Tensor:
        """Compute probabilities of each member, ends first; the ensemble predicts their mean.

        :param Tensor inputs: **Shape:** ``(n, *event)``.
        :returns: probabilities in the form for metrics. **Shape:** ``(num_members, n, classes)``.
        """
        inputs = _as_inputs(inputs, self)
        features, logits = _run(self.ends, self.features, inputs)
        members = [end.softmax(-1) for end in logits]
        for bridge, numbers in zip(self.bridges, self._ends_of, strict=True):
            members.append(bridge(*(features[number] for number in numbers)).exp())
        return torch.stack(members)

    def relative_cost(self, inputs: Tensor) -> float:
        """Floating-point operations of the ensemble divided by those of one end.

        Matrix products and convolutions are counted, as in :mod:`torch.utils.flop_counter`.

        :param Tensor inputs: **Shape:** ``(n, *event)``.
        """
        inputs = _as_inputs(inputs, self)

        def count(run: Callable[[Tensor], Tensor]) -> int:
            with FlopCounterMode(display=False) as counter, torch.no_grad():
                run(inputs)
            total: int = counter.get_total_flops()
            return total

        return count(self.probabilities) / count(self.ends[0])


def _as_inputs(inputs: Any, module: nn.Module) -> Tensor:
    """Take inputs in the type of a module's parameters, and on their device."""
    like = next(module.parameters(), None)
    return checks.as_tensor("inputs", inputs, "(n, ...)", finite=True, like=like)


@torch.no_grad()
def _run(
    modules: Iterable[nn.Module], name: Features, inputs: Tensor
) -> tuple[list[Tensor], list[Tensor]]:
    """Features and logits of each module."""
    features: list[Tensor] = []
    logits: list[Tensor] = []
    for module in modules:
        with checks.named_in_errors("inputs", inputs):
            if not isinstance(name, str):
                features.append(name(module, inputs))
                logits.append(module(inputs))
                continue
            hook = module.get_submodule(name).register_forward_hook(
                lambda _, __, output: features.append(output)
            )
            with hook:
                logits.append(module(inputs))
        if len(features) != len(logits):
            raise ValueError(
                f"features must name a submodule that is run once in each pass, got {name!r}"
            )
    return features, logits


def _mixed(inputs: Tensor, alpha: float) -> Tensor:
    """Mix each row with another one, by a weight of its own."""
    beta = torch.distributions.Beta(inputs.new_tensor(alpha), inputs.new_tensor(alpha))
    weight = beta.sample((len(inputs),)).reshape(-1, *(1 for _ in inputs.shape[1:]))
    other = inputs[torch.randperm(len(inputs), device=inputs.device)]
    return weight * inputs + (1 - weight) * other
