"""Base of kernels with learned dynamics: their step sizes, and a network for each element."""

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from pyro_ext.inference.sgmcmc.kernel import KernelOptions
from pyro_ext.inference.sgmcmc.sghmc import FrictionKernel

_LEARNING_RATE = 0.05


class LearnedKernelOptions(KernelOptions, total=False):
    """Keyword arguments of both kernels besides their networks."""

    friction: float | Mapping[str, float] | None
    momentum_decay: float | Mapping[str, float] | None


class LearnedKernel(FrictionKernel):
    """Base class of both kernels: by default the step size depends on the number of data."""

    def _default_step_size(self) -> float:
        return math.sqrt(_LEARNING_RATE / self.potential.data_size)

    def _statistics(self, state: Any) -> dict[str, Tensor]:
        return {"kinetic_temperature": state.momentum.square().mean(-1)}


class ElementwiseNetwork(nn.Module):
    """A perceptron that maps features of each element to outputs, perhaps one for each chain."""

    def __init__(self, sizes: Sequence[int], output_scale: float = 1.0, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.weights = nn.ParameterList()
        self.biases = nn.ParameterList()
        for fan_in, fan_out in pairwise(sizes):
            weight = torch.randn(fan_out, fan_in, generator=generator, device="cpu")
            weight = weight.to(torch.get_default_device()) / math.sqrt(fan_in)
            self.weights.append(nn.Parameter(weight))
            self.biases.append(nn.Parameter(torch.zeros(fan_out, 1)))
        self.weights[-1].data *= output_scale

    def forward(self, features: Tensor) -> Tensor:
        """Apply it. **Shape:** ``(..., num_features, size)`` to ``(..., num_outputs, size)``."""
        values = features
        for number, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            if number:
                values = values.relu()
            values = weight.to(features) @ values + bias.to(features)
        return values
