"""Starting point of a diffusion bridge: a trained network, its logits and one of its layers."""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import TypeIs

from pyro_ext._lib import checks


def as_input(x: Any, network: nn.Module) -> Tensor:
    """Take inputs in the type of a network's parameters, and on their device."""
    return checks.as_tensor(
        "x", x, "(batch, ...)", finite=True, like=next(network.parameters(), None)
    )


class BridgeSource(nn.Module):
    """A trained network that returns its logits and the output of a layer in one pass.

    It keeps a copy of the network, which is frozen and stays in evaluation mode, so that neither
    parameters nor batch statistics change.

    Without a name, it uses the first residual or other block of layers. If there is none, it uses
    the first activation (a module without parameters after one with parameters) or, if activations
    are not modules, the first layer. A layer that returns the logits does not count.

    :param torch.nn.Module network: maps inputs to logits of classes, **Shape:** ``(batch,
        num_classes)``.
    :param Tensor x: a few inputs for a trial run. **Shape:** ``(batch, *input)``.
    :param feature: name of a layer, as in ``network.named_modules()``, whose output is a tensor; or
        a function of the inputs that returns features instead. **Shape:** ``(batch, *feature)``.
    :ivar feature: name of the layer, or the function.
    :ivar int num_classes: number of classes.
    :ivar torch.Size feature_shape: shape of the features of an input.
    :raises ValueError: if the network returns no logits or has no such layer.

    Example::

        >>> network = torch.nn.Sequential(
        ...     torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
        >>> source = BridgeSource(network, torch.zeros(2, 4))
        >>> logits, feature = source(torch.randn(5, 4))
        >>> source.feature, logits.shape, feature.shape
        ('1', torch.Size([5, 3]), torch.Size([5, 8]))
    """

    def __init__(
        self,
        network: nn.Module,
        x: Tensor,
        feature: str | Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__()
        checks.instance("network", network, nn.Module, "a module")
        x = as_input(x, network)
        if not (feature is None or isinstance(feature, str) or callable(feature)):
            raise TypeError(
                f"feature must be the name of a layer or a function of inputs, got {feature!r:.80}"
            )
        self.network = copy.deepcopy(network).eval().requires_grad_(False)
        outputs: dict[str, object] = {}
        handles = [
            layer.register_forward_hook(lambda *call, name=name: outputs.update({name: call[-1]}))
            for name, layer in self.network.named_modules()
            if name
        ]
        try:
            with torch.no_grad():
                logits = self.network(x)
        finally:
            for handle in handles:
                handle.remove()
        if not (isinstance(logits, Tensor) and logits.dim() == 2 and len(logits) == len(x)):
            got = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            raise ValueError(
                f"network must give logits of the shape ({len(x)}, num_classes), got {got}"
            )
        self.num_classes = logits.shape[1]
        self._num_dims = x.dim()
        self.feature = self._early_layer(outputs, logits) if feature is None else feature
        if isinstance(self.feature, str) and self.feature not in outputs:
            raise ValueError(
                f"feature must name a layer that the network uses, one of {list(outputs)}, got "
                f"{self.feature!r}"
            )
        found = outputs[self.feature] if isinstance(self.feature, str) else self.feature(x)
        if not _is_feature(found, len(x)):
            raise ValueError(
                f"feature must give numbers of the shape ({len(x)}, ...), got that of {feature!r}"
            )
        self.feature_shape = found.shape[1:]
        self.train(False)

    def _early_layer(self, outputs: dict[str, object], logits: Tensor) -> str:
        """The first block, or activation, or layer; outputs are in the order of the pass."""
        first: str | None = None
        activation: str | None = None
        for name, output in outputs.items():
            is_last = isinstance(output, Tensor) and output.shape == logits.shape
            if not _is_feature(output, len(logits)) or (is_last and output.equal(logits)):
                continue
            layer = self.network.get_submodule(name)
            has_parameters = next(layer.parameters(), None) is not None
            if has_parameters and next(layer.children(), None) is not None:
                return name
            if has_parameters:
                first = first or name
            elif first is not None:
                activation = activation or name
        if first is None:
            raise ValueError(
                "network must have a layer before the one that gives the logits, got "
                f"{type(self.network).__name__} with none; a function as feature, such as the "
                "inputs themselves, does without"
            )
        return activation or first

    def train(self, mode: bool = True) -> "BridgeSource":
        """Stay in evaluation mode."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Run the network.

        :param Tensor x: **Shape:** ``(batch, *input)``.
        :returns: logits and features.
        """
        x = as_input(x, self.network)
        if x.dim() != self._num_dims:
            raise ValueError(f"x must have {self._num_dims} dimensions, got {tuple(x.shape)}")
        if not isinstance(self.feature, str):
            return self.network(x), self.feature(x)
        found: list[Tensor] = []
        layer = self.network.get_submodule(self.feature)
        # A later layer that works in place would change what is only kept.
        handle = layer.register_forward_hook(lambda *call: found.append(call[-1].clone()))
        try:
            logits: Tensor = self.network(x)
        finally:
            handle.remove()
        return logits, found[0]

    def extra_repr(self) -> str:
        """Return the settings for the module's ``repr``."""
        return f"feature={self.feature!r}, num_classes={self.num_classes}"


def _is_feature(output: object, size: int) -> TypeIs[Tensor]:
    """Tell whether an output is a floating-point tensor with a feature for each input."""
    if not isinstance(output, Tensor):
        return False
    return output.is_floating_point() and output.dim() > 1 and len(output) == size
