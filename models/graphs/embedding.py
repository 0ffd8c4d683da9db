"""Graphs as padded tensors, and eigenvectors of their Laplacians."""

from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from pyro_ext._lib import checks
from pyro_ext._lib.optional import optional_module

Sign = Literal["cubes", "random"]


def pad_graphs(
    graphs: Sequence[Any], num_nodes: int | None = None, *, dtype: torch.dtype | None = None
) -> tuple[Tensor, Tensor]:
    """Convert networkx graphs to adjacency matrices in one tensor, and a mask of their nodes.

    :param Sequence graphs: undirected graphs without weights and self-loops. Nodes keep the order
        in which a graph lists them.
    :param int num_nodes: number of nodes to which all graphs are padded; by default the largest.
    :param torch.dtype dtype: type of the matrices; by default PyTorch's own.
    :returns: adjacency matrices and a mask, true for nodes. **Shape:** ``(num_graphs, num_nodes,
        num_nodes)`` and ``(num_graphs, num_nodes)``.
    :raises ValueError: for a graph that is directed, weighted or a multigraph, has self-loops, or
        has too many nodes.

    Example::

        >>> import networkx
        >>> adjacency, mask = pad_graphs([networkx.path_graph(2), networkx.path_graph(3)])
        >>> adjacency[0].tolist(), mask[0].tolist()
        ([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 0.0]], [True, True, False])
    """
    networkx = optional_module("networkx", "pad_graphs", "networkx", "graphs")
    wanted = "a list of graphs of networkx"
    found = checks.sequence("graphs", graphs, wanted, kind=networkx.Graph)
    largest = max(max(map(len, found)), 1)
    size = largest if num_nodes is None else checks.integer("num_nodes", num_nodes, largest)
    checks.optional(checks.instance, "dtype", dtype, torch.dtype, "a torch.dtype")
    adjacency = torch.zeros(len(found), size, size, dtype=dtype)
    mask = torch.zeros(len(found), size, dtype=torch.bool)
    for index, graph in enumerate(found):
        for kind, is_wrong in (
            ("undirected", graph.is_directed()),
            ("without parallel edges", graph.is_multigraph()),
            ("without self-loops", networkx.number_of_selfloops(graph) > 0),
            ("unweighted", any(w != 1 for _, _, w in graph.edges.data("weight", default=1))),
        ):
            if is_wrong:
                raise ValueError(f"graphs must be {kind}, got {graph} at index {index}")
        number = len(graph)
        if graph.size():
            matrix = networkx.to_numpy_array(graph, weight=None)
            adjacency[index, :number, :number] = torch.as_tensor(matrix).to(adjacency)
        mask[index, :number] = True
    return adjacency, mask


def spectral_embedding(
    adjacency: Tensor, mask: Tensor | None = None, dim: int = 4, *, sign: Sign = "cubes"
) -> Tensor:
    r"""Eigenvectors of the Laplacian :math:`D - A` for its smallest eigenvalues, except the first.

    The constant vector is left out, and columns have a mean square of one over the nodes. If a
    graph has too few nodes, the missing columns are zero. Relabeled nodes have the same embedding
    if eigenvalues are distinct and no column is symmetric, as in paths, stars and grids.

    :param Tensor adjacency: **Shape:** ``(*batch, num_nodes, num_nodes)``.
    :param Tensor mask: booleans, true for nodes and false for padding, whose embedding is zero.
        **Shape:** ``(*batch, num_nodes)``.
    :param int dim: number of columns.
    :param str sign: sign of each column: ``"cubes"`` makes the sum of cubes positive; ``"random"``
        draws it, so that training sees both signs.
    :returns: **Shape:** ``(*batch, num_nodes, dim)``.

    Example::

        >>> path = torch.tensor([[0.0, 1.0, 0.0], [1.0, 0.0, 1.0], [0.0, 1.0, 0.0]])
        >>> spectral_embedding(path, dim=3)[:, 1:]
        tensor([[-0.7071,  0.0000],
                [ 1.4142,  0.0000],
                [-0.7071,  0.0000]])
    """
    adjacency, mask = check_graphs(adjacency, mask)
    checks.integer("dim", dim, 1)
    checks.choice("sign", sign, get_args(Sign))
    size = adjacency.shape[-1]
    here = mask.double()
    number = here.sum(-1)[..., None, None]
    laplacian = torch.diag_embed(adjacency.double().sum(-1)) - adjacency.double()
    # All eigenvalues are at most the number of nodes: constant vector and padding come last.
    constant = here[..., :, None] * here[..., None, :] / number.clamp(min=1.0)
    above = laplacian + (size + 1.0) * constant + torch.diag_embed((size + 2.0) * (1.0 - here))
    vectors = torch.linalg.eigh(above).eigenvectors[..., :dim]
    vectors = torch.nn.functional.pad(vectors, (0, dim - vectors.shape[-1]))
    vectors = vectors * number.sqrt()
    if sign == "cubes":
        flip = vectors.pow(3).sum(-2, keepdim=True) < 0
    else:
        flip = torch.rand_like(vectors[..., :1, :]) < 0.5
    vectors = torch.where(flip, -vectors, vectors)
    is_there = torch.arange(dim, device=mask.device) < number - 1.0
    return torch.where(is_there & mask[..., None], vectors, 0.0).to(adjacency)


def check_graphs(
    adjacency: Any,
    mask: Any,
    shape: str = "(*batch, num_nodes, num_nodes)",
    like: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Adjacency matrices of a floating type and their mask."""
    adjacency = checks.as_tensor("adjacency", adjacency, shape, finite=True, like=like)
    if adjacency.shape[-2] != (size := adjacency.shape[-1]):
        raise ValueError(f"adjacency must have the shape {shape}, got {checks.shown(adjacency)}")
    if bool((is_directed := adjacency != adjacency.mT).any()):
        *_, row, column = is_directed.nonzero()[0].tolist()
        raise ValueError(
            "adjacency must be symmetric, as that of an undirected graph, got different numbers "
            f"between nodes {row} and {column}"
        )
    if not adjacency.is_floating_point():
        adjacency = adjacency.to(torch.get_default_dtype() if like is None else like.dtype)
    if mask is None:
        mask = torch.ones(size, dtype=torch.bool, device=adjacency.device)
    mask = checks.as_tensor("mask", mask, f"(*batch, {size})", kind="booleans").to(adjacency.device)
    try:
        return adjacency, mask.expand(adjacency.shape[:-1])
    except RuntimeError:
        raise ValueError(
            f"mask must have the shape {tuple(adjacency.shape[:-1])}, got {checks.shown(mask)}"
        ) from None
