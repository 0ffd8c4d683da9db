"""Simple graphs of texts and packages: files of the package."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from pyro_ext.datasets._shipped import ShippedFiles

__all__ = ["GraphData", "graph_names", "load_graph", "save_graph"]

_FILES = ShippedFiles("graph_edges")
_EDGES = "edges"
_NUM_NODES = "num_nodes"


@dataclass(frozen=True, eq=False, repr=False)
class GraphData:
    """Edges of a real graph.

    :param str name: the name that :func:`load_graph` knows it by.
    :param int num_nodes: number of nodes.
    :param Tensor edges: pairs of different nodes, the smaller one first, each once.
        **Shape:** ``(num_edges, 2)``.
    :param str description: what nodes and edges are.
    :param str source: where they come from.
    :param str licence: the terms of the source.
    """

    name: str
    num_nodes: int
    edges: Tensor
    description: str
    source: str
    licence: str

    def __repr__(self) -> str:
        """Show the name and the sizes; never the edges."""
        return f"GraphData({self.name!r}, {self.num_nodes:,} nodes, {len(self.edges):,} edges)"


def graph_names() -> tuple[str, ...]:
    """Return the names that :func:`load_graph` knows, sorted.

    Example::

        >>> from pyro_ext.datasets import graph_names
        >>> graph_names()
        ('new_testament_names', 'python_packages')
    """
    return _FILES.names()


def load_graph(name: str) -> GraphData:
    """Load the edges of a real graph, without nodes that have none.

    * ``"new_testament_names"``: names, with an edge where a verse has both.
    * ``"python_packages"``: Debian's packages of Python libraries, with an edge where one depends
      on the other.

    ``python -m pyro_ext.datasets.make_graphs`` made the files from the sources.

    :param str name: one of :func:`graph_names`.
    :raises ValueError: names the argument, what it got and what it allows.
    :raises CheckpointError: where the file is missing, cut or changed.

    Example::

        >>> from pyro_ext.datasets import load_graph
        >>> load_graph("new_testament_names")
        GraphData('new_testament_names', 545 nodes, 1,965 edges)
    """
    tensors, facts = _FILES.read(name)
    return GraphData(name, facts.pop(_NUM_NODES), tensors[_EDGES].long(), **facts)


def save_graph(data: GraphData, folder: str | Path | None = None) -> Path:
    """Write a graph as :func:`load_graph` reads it.

    :param GraphData data: what to write.
    :param folder: where to, by default among those of the package.
    :returns: the file.
    :raises CheckpointError: where it cannot be written.
    """
    facts = {"description": data.description, "source": data.source, "licence": data.licence}
    tensors = {_EDGES: data.edges.to(torch.int32)}
    return _FILES.write(data.name, tensors, facts | {_NUM_NODES: data.num_nodes}, folder)
