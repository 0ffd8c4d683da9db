"""Federated training of low-rank adapters with privacy: FedSVD [1] and the methods it improves on.

[1] S. Lee, S. Park, D. B. Lee, D. Wagner, H. Seong, T. Bocklet, J. Lee, S. J. Hwang (2025), FedSVD:
adaptive orthogonalization for private federated learning with LoRA.
"""

from pyro_ext.models.federated.server import FederatedRound, FederatedServer
from pyro_ext.models.federated.splits import dirichlet_split
from pyro_ext.models.federated.strategies import STRATEGIES, Strategy

__all__ = ["STRATEGIES", "FederatedRound", "FederatedServer", "Strategy", "dirichlet_split"]
