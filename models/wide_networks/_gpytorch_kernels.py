"""Kernels of GPyTorch. This module imports it, and is imported where a kernel is wanted."""

from typing import Any

import gpytorch
import torch
from torch import Tensor

from pyro_ext.models.wide_networks.limit import relu_covariance


class NetworkKernel(gpytorch.kernels.Kernel):
    """Kernel of an infinitely wide ReLU network whose nodes have equal variances, to be fitted."""

    has_lengthscale = False

    def __init__(self, num_hidden: int, weight_variance: float, bias_variance: float) -> None:
        super().__init__()
        self.num_hidden = num_hidden
        for name, value in (("weight_variance", weight_variance), ("bias_variance", bias_variance)):
            if value > 0:
                constraint = gpytorch.constraints.Positive()
                start = constraint.inverse_transform(torch.tensor(value))
                self.register_parameter(f"raw_{name}", torch.nn.Parameter(start))
                self.register_constraint(f"raw_{name}", constraint)

    @property
    def weight_variance(self) -> Tensor:
        """Variance of the weights."""
        value: Tensor = self.raw_weight_variance_constraint.transform(self.raw_weight_variance)
        return value

    @property
    def bias_variance(self) -> Tensor:
        """Variance of the biases."""
        raw = getattr(self, "raw_bias_variance", None)
        if raw is None:
            return torch.zeros_like(self.raw_weight_variance)
        value: Tensor = self.raw_bias_variance_constraint.transform(raw)
        return value

    def forward(self, x1: Tensor, x2: Tensor, diag: bool = False, **_: Any) -> Tensor:
        """Covariances of outputs. **Shape:** ``(*batch, n1, n2)``, or ``(*batch, n1)``."""
        weight, bias = self.weight_variance, self.bias_variance
        cross, left, right = (bias + weight * part for part in _products(x1, x2, diag))
        for _layer in range(self.num_hidden):
            cross = bias + weight * relu_covariance(cross, left, right)
            left, right = (bias + weight * part / 2.0 for part in (left, right))
        return cross


class FeatureKernel(gpytorch.kernels.Kernel):
    """Random kernels of infinitely wide networks with one hidden ReLU layer, as a batch.

    :param Tensor jumps: variances of the nodes that stay visible. **Shape:** ``(*batch, j)``.
    :param Tensor weights: theirs, over the root of the number of inputs. **Shape:**
        ``(*batch, j, d)``.
    :param Tensor biases: their biases. **Shape:** ``(*batch, j)``.
    :param Tensor drift: variance of all other nodes. **Shape:** ``batch``.
    """

    has_lengthscale = False

    def __init__(
        self,
        jumps: Tensor,
        weights: Tensor,
        biases: Tensor,
        drift: Tensor,
        weight_variance: float,
        bias_variance: float,
    ) -> None:
        super().__init__(batch_shape=drift.shape)
        self.weight_variance, self.bias_variance = weight_variance, bias_variance
        parts = {"jumps": jumps, "weights": weights, "biases": biases, "drift": drift}
        for name, part in parts.items():
            self.register_buffer(name, part)

    def forward(self, x1: Tensor, x2: Tensor, diag: bool = False, **_: Any) -> Tensor:
        """Covariances of outputs. **Shape:** ``(*batch, n1, n2)``, or ``(*batch, n1)``."""
        weight, bias = self.weight_variance, self.bias_variance
        smooth = relu_covariance(*(bias + weight * part for part in _products(x1, x2, diag)))
        left, right = ((x @ self.weights.mT + self.biases[..., None, :]).relu() for x in (x1, x2))
        left = left * self.jumps[..., None, :]
        inner = (left * right).sum(-1) if diag else left @ right.mT
        drift = self.drift[..., None] if diag else self.drift[..., None, None]
        covariance: Tensor = bias + weight * (inner + drift * smooth)
        return covariance


def _products(x1: Tensor, x2: Tensor, diag: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Mean products of inputs, and the mean squares of either."""
    left, right = x1.square().mean(-1), x2.square().mean(-1)
    if diag:
        return (x1 * x2).mean(-1), left, right
    return x1 @ x2.mT / x1.shape[-1], left[..., :, None], right[..., None, :]
