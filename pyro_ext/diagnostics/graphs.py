"""Distances between sets of graphs: how well generated graphs resemble reference graphs."""

from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.nn.functional import pad

from pyro_ext._lib import checks
from pyro_ext._lib.optional import optional_module

Kind = Literal["degree", "clustering"]

_NUM_BINS = 100  # of clustering coefficients
_WIDTHS = {"degree": (1.0, 1.0), "clustering": (1.0 / _NUM_BINS, 0.1)}  # of a bin, and the kernel's


def graph_mmd(reference: Sequence[Any], generated: Sequence[Any], kind: Kind = "degree") -> float:
    r"""Squared maximum mean discrepancy between histograms of graphs, with the kernels of [1].

    .. math:: k(g, h) = \exp\Bigl(-\frac{W_1(g, h)^2}{2 \sigma^2}\Bigr)

    with the Wasserstein distance :math:`W_1` between normalized histograms, either of degrees, with
    :math:`\sigma = 1`, or of clustering coefficients in 100 bins, with :math:`\sigma = 0.1`. The
    estimate is the biased one, which is zero between a set and itself. [1] also counts orbits,
    which networkx does not support.

    :param Sequence reference: networkx graphs.
    :param Sequence generated: networkx graphs.
    :param str kind: ``"degree"`` or ``"clustering"``.
    :returns: a number from zero to two.
    :raises ValueError: for a graph that is directed or has no nodes.

    [1] J. You, R. Ying, X. Ren, W. L. Hamilton, J. Leskovec (2018),
    GraphRNN: generating realistic graphs with deep auto-regressive models.

    Example::

        >>> import networkx
        >>> from pyro_ext.diagnostics import graph_mmd
        >>> paths = [networkx.path_graph(size) for size in (5, 6)]
        >>> rings = [networkx.cycle_graph(size) for size in (5, 6)]
        >>> graph_mmd(paths, paths), round(graph_mmd(paths, rings), 4)
        (0.0, 0.1298)
    """
    checks.choice("kind", kind, get_args(Kind))
    networkx = optional_module("networkx", "graph_mmd", "networkx", "graphs")
    histogram = {"degree": _degrees, "clustering": _clustering}[kind]
    sets = [
        _cumulative(name, graphs, networkx, histogram)
        for name, graphs in (("reference", reference), ("generated", generated))
    ]
    length = max(found.shape[-1] for found in sets)
    # Past the last bin cumulative histograms are one.
    first, second = (pad(found, (0, length - found.shape[-1]), value=1.0) for found in sets)
    bin_width, width = _WIDTHS[kind]

    def mean_kernel(a: Tensor, b: Tensor) -> Tensor:
        distance = torch.cdist(a, b, p=1.0) * bin_width
        return torch.exp(-0.5 * (distance / width).square()).mean()

    value = mean_kernel(first, first) + mean_kernel(second, second)
    return float(value - 2.0 * mean_kernel(first, second))


def _cumulative(
    argument: str, graphs: Any, networkx: Any, histogram: Callable[[Any, Any], Tensor]
) -> Tensor:
    """Cumulative normalized histograms. **Shape:** ``(num_graphs, num_bins)``."""
    found = checks.sequence(argument, graphs, "a list of graphs of networkx", kind=networkx.Graph)
    for index, graph in enumerate(found):
        if graph.is_directed() or not len(graph):
            raise ValueError(
                f"{argument} must be undirected graphs with nodes, got {graph} at index {index}"
            )
    counts = [histogram(graph, networkx).double() for graph in found]
    length = max(map(len, counts))
    padded = torch.stack([pad(count, (0, length - len(count))) for count in counts])
    return padded.cumsum(-1) / padded.sum(-1, keepdim=True)


def _degrees(graph: Any, networkx: Any) -> Tensor:
    return torch.tensor(networkx.degree_histogram(graph))


def _clustering(graph: Any, networkx: Any) -> Tensor:
    values = torch.tensor(list(networkx.clustering(graph).values()), dtype=torch.float64)
    return values.histc(_NUM_BINS, min=0.0, max=1.0)
