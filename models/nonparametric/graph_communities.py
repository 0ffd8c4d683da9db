"""A start for the communities of a graph.

[1] T. Qin, K. Rohe (2013),
Regularized spectral clustering under the degree-corrected stochastic blockmodel.
"""

import torch
from torch import Tensor

from pyro_ext._checks import check_instance, check_integer, check_number
from pyro_ext._optional import optional_module
from pyro_ext.models.nonparametric.graph_pairs import SimpleGraph

__all__ = ["spectral_memberships"]


def spectral_memberships(
    graph: SimpleGraph, num_communities: int, *, share: float = 0.9, seed: int = 0
) -> Tensor:
    r"""Memberships from regularized spectral clustering [1].

    Nodes are clustered by the directions of their rows in the largest eigenvectors of
    :math:`D_\tau^{-1/2} A D_\tau^{-1/2}`, with the mean degree added to each degree in
    :math:`D_\tau`, so that neither large nor small degrees decide.

    :param SimpleGraph graph: the graph.
    :param int num_communities: two at least, and fewer than there are nodes.
    :param float share: of a node in its own community; the others share the rest.
    :param int seed: of the start of eigenvectors and clusters.
    :returns: **Shape:** ``(num_nodes, num_communities)``.
    :raises ValueError: for numbers out of range.
    :raises ImportError: without scikit-learn; names the extra.

    Example::

        >>> from pyro_ext.models.nonparametric import SimpleGraph
        >>> triangles = torch.tensor([[0, 1], [0, 2], [1, 2], [3, 4], [3, 5], [4, 5], [2, 3]])
        >>> group = spectral_memberships(SimpleGraph(6, triangles), 2).argmax(-1)
        >>> (group == group[0]).tolist()
        [True, True, True, False, False, False]
    """
    check_instance("graph", graph, SimpleGraph, "a SimpleGraph")
    check_integer("seed", seed, 0)
    import numpy as np
    from scipy.sparse import coo_array
    from scipy.sparse.linalg import eigsh

    cluster = optional_module("sklearn.cluster", "spectral_memberships", "scikit-learn", "data")
    check_integer("num_communities", num_communities, 2)
    if num_communities >= graph.num_nodes:
        raise ValueError(
            f"num_communities must be less than the number of nodes, {graph.num_nodes}, got "
            f"{num_communities}"
        )
    check_number("share", share, above=1 / num_communities, below=1)
    degrees = graph.degrees.cpu().double().numpy()
    root = 1.0 / np.sqrt(degrees + max(degrees.mean(), 1e-12))
    first, second = graph.edges.cpu().numpy().T
    values = root[first] * root[second]
    shape = (graph.num_nodes, graph.num_nodes)
    half = coo_array((values, (first, second)), shape=shape)
    start = np.random.RandomState(seed).standard_normal(graph.num_nodes)
    _, vectors = eigsh((half + half.T).tocsr(), k=num_communities, which="LA", v0=start)
    rows = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    labels = cluster.KMeans(num_communities, n_init=10, random_state=seed).fit(rows).labels_
    rest = (1.0 - share) / (num_communities - 1)
    memberships = torch.full(shape[:1] + (num_communities,), rest)
    memberships[torch.arange(graph.num_nodes), torch.from_numpy(labels).long()] = share
    return memberships.to(graph.edges.device)
