r"""Strategies by which a server aggregates the adapters that clients trained.

[1] S. Lee et al. (2025), FedSVD: adaptive orthogonalization for private federated learning with
LoRA.

[2] Y. Sun, Z. Li, Y. Li, B. Ding (2024), Improving LoRA in privacy-preserving federated learning.

[3] Z. Wang, Z. Shen, Y. He, G. Sun, H. Wang, L. Lyu, A. Li (2024), FLoRA: federated fine-tuning
large language models with heterogeneous low-rank adaptations.

[4] R. Singhal, K. Ponkshe, P. Vepakomma (2025), FedEx-LoRA: exact aggregation for federated and
efficient fine-tuning of large language models.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_ext._lib import checks
from pyro_ext.nn import LoRALinear

Aggregate = Callable[[LoRALinear, Tensor, Tensor, Tensor], None]
"""Changes a layer in place, by factors A and B of all clients, and the clients' weights."""


@dataclass(frozen=True)
class Strategy:
    """Parameters that clients train, and their aggregation by the server.

    :param bool train_A: whether clients train both factors; otherwise only ``B``.
    :param Callable aggregate: changes a layer in place, given its
        :class:`~pyro_ext.nn.LoRALinear`, the clients' factors ``A`` **(k, rank, in_features)** and
        ``B`` **(k, out_features, rank)**, and their weights **(k,)**, which sum to one. Draws come
        from PyTorch's generator, which is seeded.
    :param bool orthonormal_start: whether ``A`` gets orthonormal rows before the first round.
    :param int svd_period: number of rounds between singular value decompositions, which replace the
        factors by those of their product; ``None`` for never.
    :param int svd_warmup: number of rounds before the first decomposition.

    Example::

        >>> def largest_client(layer, A, B, weights):
        ...     layer.B.copy_(B[weights.argmax()])
        >>> Strategy(train_A=False, aggregate=largest_client, svd_period=5).train_A
        False
    """

    train_A: bool
    aggregate: Aggregate
    orthonormal_start: bool = False
    svd_period: int | None = None
    svd_warmup: int = 0

    def __post_init__(self) -> None:
        """Check the arguments."""
        checks.function("aggregate", self.aggregate, "a function that changes a layer")
        for name in ("train_A", "orthonormal_start"):
            checks.boolean(name, getattr(self, name))
        checks.optional(checks.integer, "svd_period", self.svd_period, 1)
        checks.integer("svd_warmup", self.svd_warmup, 0)


def average(layer: LoRALinear, A: Tensor, B: Tensor, weights: Tensor) -> None:
    """Average each factor."""
    layer.A.copy_(torch.tensordot(weights, A, 1))
    layer.B.copy_(torch.tensordot(weights, B, 1))


def average_B(layer: LoRALinear, A: Tensor, B: Tensor, weights: Tensor) -> None:
    """Average B, where all have the same A."""
    layer.B.copy_(torch.tensordot(weights, B, 1))


def add_products(layer: LoRALinear, A: Tensor, B: Tensor, weights: Tensor) -> None:
    """Add the average product to the frozen weight, and begin a new adapter [3]."""
    layer.base.weight += layer.scale * torch.einsum("k,kor,kri->oi", weights, B, A)
    layer.reset_parameters()


def average_and_add_residual(layer: LoRALinear, A: Tensor, B: Tensor, weights: Tensor) -> None:
    """Average each factor, and add what their product lacks to the frozen weight [4]."""
    average(layer, A, B, weights)
    products = torch.einsum("k,kor,kri->oi", weights, B, A)
    layer.base.weight += layer.scale * (products - layer.delta())


STRATEGIES = {
    "fedavg": Strategy(train_A=True, aggregate=average),
    "ffa": Strategy(train_A=False, aggregate=average_B),  # [2]
    "flora": Strategy(train_A=True, aggregate=add_products),
    "fedex": Strategy(train_A=True, aggregate=average_and_add_residual),
    "fedsvd": Strategy(train_A=False, aggregate=average_B, svd_period=1),  # [1]
    "ffa_orth": Strategy(train_A=False, aggregate=average_B, orthonormal_start=True),
}
"""Strategies of :class:`~pyro_ext.models.federated.FederatedServer` by name."""
