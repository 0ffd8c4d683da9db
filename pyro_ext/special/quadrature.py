"""Nodes and weights of Gaussian quadrature as tensors."""

from functools import cache

import numpy as np
import torch
from torch import Tensor

from pyro_ext._checks import check_integer

__all__ = ["gauss_legendre"]


def gauss_legendre(num_nodes: int, device: torch.device | None = None) -> tuple[Tensor, Tensor]:
    r"""Nodes and weights for :math:`\int_0^1 f(x) \, dx`.

    :param int num_nodes: how many.
    :param torch.device device: where they are put.
    :returns: nodes in (0, 1) and positive weights that sum to one, in float64.
        **Shape:** ``(num_nodes,)`` each.

    Example::

        >>> nodes, weights = gauss_legendre(3)
        >>> round(float((weights * nodes**4).sum()), 12)
        0.2
    """
    check_integer("num_nodes", num_nodes, 1)
    nodes, weights = _legendre(num_nodes)
    return nodes.to(device), weights.to(device)


@cache
def _legendre(num_nodes: int) -> tuple[Tensor, Tensor]:
    nodes, weights = np.polynomial.legendre.leggauss(num_nodes)
    return torch.from_numpy((nodes + 1.0) / 2.0), torch.from_numpy(weights / 2.0)
