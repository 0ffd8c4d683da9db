"""Binary trees of clusters, as agglomerative clustering makes them, and forests of such trees."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pyro_ext._lib import checks
from pyro_ext._lib.pyplot import axes_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_OPENED, _MOST_NAMES, _MOST_PROBABILITIES = "0.55", 60, 30


@dataclass(frozen=True, eq=False, repr=False)
class Dendrogram:
    r"""Merges of points into ever larger clusters, until one is left.

    Nodes are numbered as in SciPy: the ``n`` points are 0 to n - 1, and row ``i`` of the merges
    makes node ``n + i``. Heights may fall from one merge to the next (an inversion), as in greedy
    trees of dissimilarities that are not reducible.

    :param Tensor merges: the two nodes of each merge, after the merges that made them. **Shape:**
        ``(n - 1, 2)``.
    :param Tensor heights: dissimilarity at each merge; for Bayesian hierarchical clustering, the
        log dissimilarity. **Shape:** ``(n - 1,)``.
    :param Tensor merge_probabilities: probability of each merge. **Shape:** ``(n - 1,)``.
    :param float log_evidence_bound: lower bound of the log evidence of the Dirichlet process
        mixture.
    :param float objective: value of the best partition that the tree contains.
    :param float cut_height: where :meth:`cut` cuts by default, the tree's own stopping level.
    :param Sequence labels: names of the points.

    Example::

        >>> tree = Dendrogram(torch.tensor([[0, 1], [2, 3]]), torch.tensor([1.0, 4.0]))
        >>> tree
        Dendrogram(3 leaves, heights 1 to 4)
        >>> tree.cut(height=2.0)
        tensor([0, 0, 1])
    """

    merges: Tensor
    heights: Tensor
    merge_probabilities: Tensor | None = None
    log_evidence_bound: float | None = None
    objective: float | None = None
    cut_height: float | None = None
    labels: Sequence[str] | None = None

    def __post_init__(self) -> None:
        """Check the arguments, and copy what the caller could change."""
        merges = checks.as_tensor("merges", self.merges, allow_empty=True)
        if merges.is_floating_point() or merges.dim() != 2 or merges.shape[-1] != 2:
            raise ValueError(
                "merges must be integers of shape (n - 1, 2), got "
                f"{merges.dtype} of shape {tuple(merges.shape)}"
            )
        heights = self._numbers("heights", self.heights, len(merges))
        merges = merges.detach().cpu().long().clone()
        rows = torch.arange(len(merges))
        if not ((merges >= 0) & (merges <= len(merges) + rows[:, None])).all():
            raise ValueError("merges must name points and nodes of earlier rows")
        if len(merges.unique()) != merges.numel():
            raise ValueError("merges must name each node once")
        object.__setattr__(self, "merges", merges)
        object.__setattr__(self, "heights", heights)
        if self.merge_probabilities is not None:
            values = self._numbers("merge_probabilities", self.merge_probabilities, len(merges))
            if not ((values >= 0.0) & (values <= 1.0)).all():
                raise ValueError(f"merge_probabilities must be from 0 to 1, got {values}")
            object.__setattr__(self, "merge_probabilities", values)
        if self.cut_height is not None:
            object.__setattr__(self, "cut_height", checks.number("cut_height", self.cut_height))
        if self.labels is not None:
            labels = checks.sequence("labels", self.labels, "a list of names of points")
            if len(labels) != self.num_leaves:
                raise ValueError(f"labels must be {self.num_leaves}, got {len(labels)}")
            object.__setattr__(self, "labels", tuple(map(str, self.labels)))

    @staticmethod
    def _numbers(argument: str, values: Any, number: int) -> Tensor:
        options: dict[str, Any] = {"allow_empty": True, "finite": True, "dtype": torch.float64}
        return checks.as_tensor(argument, values, f"({number},)", **options).detach().cpu().clone()

    @property
    def num_leaves(self) -> int:
        """Number of points."""
        return len(self.merges) + 1

    @cached_property
    def sizes(self) -> Tensor:
        """Number of points in each merged cluster. **Shape:** ``(n - 1,)``."""
        sizes = [1] * self.num_leaves
        for left, right in self.merges.tolist():
            sizes.append(sizes[left] + sizes[right])
        return torch.tensor(sizes[self.num_leaves :], dtype=torch.long)

    def cut(self, num_clusters: int | None = None, height: float | None = None) -> Tensor:
        """Cut the tree into clusters, from the root down.

        A cut at a height opens each node that is higher, as long as the nodes above it are open. A
        cut into a number of clusters repeatedly opens the highest of the current nodes. Without
        arguments, the tree is cut at its own ``cut_height``.

        :param int num_clusters: number of clusters, from 1 to the number of points.
        :param float height: height of the cut.
        :returns: labels from zero, in the order of first occurrence. **Shape:** ``(n,)``.
        :raises ValueError: for both arguments, for one out of range, or for none if the tree has no
            stopping level.

        Example::

            >>> tree = Dendrogram(torch.tensor([[0, 2], [1, 3]]), torch.tensor([1.0, 4.0]))
            >>> tree.cut(num_clusters=2)
            tensor([0, 1, 0])
        """
        roots = self._roots(self._is_opened(num_clusters, height))[: self.num_leaves]
        _, first, inverse = np.unique(roots, return_index=True, return_inverse=True)
        ranks = np.empty(len(first), np.int64)
        ranks[first.argsort()] = np.arange(len(first))
        return torch.from_numpy(ranks[inverse])

    def _is_opened(self, num_clusters: int | None, height: float | None) -> npt.NDArray[np.bool_]:
        """Return a mask of the merges that a cut undoes."""
        if num_clusters is not None:
            if height is not None:
                raise ValueError(
                    "num_clusters and height exclude each other, got "
                    f"num_clusters={num_clusters!r} and height={height!r}"
                )
            number = checks.integer("num_clusters", num_clusters, 1)
            if number > self.num_leaves:
                raise ValueError(
                    f"num_clusters must be at most {self.num_leaves}, the number of points, got "
                    f"{number}"
                )
            # Of two nodes with the same level the upper one has the greater number.
            order = np.argsort(-self.opening_levels.numpy()[::-1], kind="stable")
            opened = np.zeros(len(self.merges), bool)
            opened[len(self.merges) - 1 - order[: number - 1]] = True
            return opened
        bound = self.cut_height if height is None else checks.number("height", height)
        if bound is None:
            raise ValueError(
                "num_clusters or height must be given, since the tree has no cut_height, got None"
            )
        return np.asarray(self.opening_levels.numpy() > bound)

    @cached_property
    def opening_levels(self) -> Tensor:
        """Height below which a cut undoes each merge: the lowest height from it to the root.

        **Shape:** ``(n - 1,)``.
        """
        levels = self.heights.tolist()
        for row in range(len(levels) - 1, -1, -1):
            for child in self.merges[row].tolist():
                if child >= self.num_leaves:
                    index = child - self.num_leaves
                    levels[index] = min(levels[index], levels[row])
        return torch.tensor(levels, dtype=torch.float64)

    def _roots(self, opened: npt.NDArray[np.bool_]) -> list[int]:
        """For each node the uppermost one that is not opened on the way to the root."""
        roots = list(range(2 * self.num_leaves - 1))
        pairs = self.merges.tolist()
        for row in range(len(pairs) - 1, -1, -1):
            if not opened[row]:
                for child in pairs[row]:
                    roots[child] = roots[self.num_leaves + row]
        return roots

    def to_scipy_linkage(self) -> npt.NDArray[np.float64]:
        """Linkage matrix of ``scipy.cluster.hierarchy``.

        SciPy does not allow negative heights: if there are any, all heights are shifted so that
        the smallest is zero. Inversions stay and make ``is_monotonic`` false; with them, SciPy's
        ``fcluster`` at a height is not :meth:`cut`, since it cuts above the greatest height below.

        :returns: nodes, heights and sizes of the merges. **Shape:** ``(n - 1, 4)``.
        :raises ValueError: for a tree of one point, which SciPy cannot represent.

        Example::

            >>> Dendrogram(torch.tensor([[0, 1]]), torch.tensor([-2.0])).to_scipy_linkage()
            array([[0., 1., 0., 2.]])
        """
        if self.num_leaves < 2:
            raise ValueError("SciPy has no linkage matrix of one point")
        heights = self.heights - self.heights.min().clamp(max=0.0)
        columns = [self.merges, heights[:, None], self.sizes[:, None]]
        return np.asarray(torch.cat([column.double() for column in columns], -1).numpy())

    def plot(self, ax: "Axes | None" = None) -> "Axes":
        """Plot the tree, with a color for each cluster of its own cut.

        The last thirty merges are annotated with their probabilities, if these are known.

        :param ax: where to draw; by default a new figure.
        :returns: the axes.
        :raises ImportError: if matplotlib is not installed; the message names the extra to install.

        Example::

            >>> tree = Dendrogram(torch.tensor([[0, 1], [2, 3]]), torch.tensor([1.0, 4.0]))
            >>> [text.get_text() for text in tree.plot().get_xticklabels()]
            ['2', '0', '1']
        """
        return _draw(self, ax)

    @property
    def _ground(self) -> float:
        """Height of the points."""
        return float(min([0.0, *self.heights.tolist()]))

    def _name(self, leaf: int) -> str:
        return str(leaf) if self.labels is None else self.labels[leaf]

    def __repr__(self) -> str:
        parts = [f"{self.num_leaves} leaves" if self.num_leaves > 1 else "1 leaf"]
        if len(self.heights):
            parts.append(f"heights {self.heights.min():.4g} to {self.heights.max():.4g}")
        if self.cut_height is not None:
            number = int(self.cut().max()) + 1
            parts.append(f"{number} cluster{'s'[: number > 1]} at {self.cut_height:.4g}")
        return f"Dendrogram({', '.join(parts)})"


@dataclass(frozen=True, eq=False, repr=False)
class ClusterForest:
    """A partition, with a tree over each of its clusters.

    :param Tensor labels: clusters of the points, from zero, in the order of first occurrence.
        **Shape:** ``(n,)``.
    :param tuple trees: the tree of each cluster. The names of its leaves are the numbers of its
        points.
    :param tuple points: the points at the leaves of each tree. **Shape** of each:
        ``(num_leaves,)``.
    :param float log_joint: log density of the partition, the data and, if there is one, the
        auxiliary variable.
    :param float auxiliary: the auxiliary variable.

    Example::

        >>> from pyro_ext.inference.partitions import Dendrogram
        >>> pair = Dendrogram(torch.tensor([[0, 1]]), torch.tensor([-2.0]), labels=("0", "2"))
        >>> single = Dendrogram(torch.empty(0, 2).long(), torch.empty(0), labels=("1",))
        >>> labels, points = torch.tensor([0, 1, 0]), (torch.tensor([0, 2]), torch.tensor([1]))
        >>> forest = ClusterForest(labels, (pair, single), points, log_joint=-3.5)
        >>> forest
        ClusterForest(3 points, 2 clusters, log_joint -3.5)
    """

    labels: Tensor
    trees: tuple[Dendrogram, ...]
    points: tuple[Tensor, ...]
    log_joint: float
    auxiliary: float | None = None

    @property
    def num_clusters(self) -> int:
        """Number of clusters, and of trees."""
        return len(self.trees)

    def __repr__(self) -> str:
        points, clusters = len(self.labels), self.num_clusters
        return (
            f"ClusterForest({points} point{'s'[: points > 1]}, "
            f"{clusters} cluster{'s'[: clusters > 1]}, log_joint {self.log_joint:.6g})"
        )


def _draw(tree: Dendrogram, ax: "Axes | None") -> "Axes":
    """Draw a bracket for each merge, from the left part up, across and down to the right part."""
    ax = axes_of("Dendrogram.plot", ax, (6.4, 3.6))
    leaves = _leaf_order(tree)
    positions = [0.0] * tree.num_leaves
    for position, leaf in enumerate(leaves):
        positions[leaf] = float(position)
    heights = [tree._ground] * tree.num_leaves + tree.heights.tolist()
    brackets = []
    for row, (left, right) in enumerate(tree.merges.tolist()):
        top = heights[tree.num_leaves + row]
        across = (positions[left], positions[right])
        ends = ((across[0], heights[left]), (across[1], heights[right]))
        brackets.append([ends[0], (across[0], top), (across[1], top), ends[1]])
        positions.append(sum(across) / 2.0)
    from matplotlib.collections import LineCollection

    ax.add_collection(LineCollection(brackets, colors=_colors(tree), linewidths=1.2))
    if tree.merge_probabilities is not None:
        probabilities = tree.merge_probabilities.tolist()
        for row in range(len(probabilities))[-_MOST_PROBABILITIES:]:
            node = tree.num_leaves + row
            ax.annotate(
                f"{probabilities[row]:.2f}",
                (positions[node], heights[node]),
                xytext=(0, 1.5),
                textcoords="offset points",
                ha="center",
                va="bottom",
                fontsize=7,
            )
    if tree.cut_height is not None:
        ax.axhline(tree.cut_height, color="black", linestyle=":", linewidth=1)
    names = [tree._name(leaf) for leaf in leaves] if tree.num_leaves <= _MOST_NAMES else []
    rotation = 90 if max(map(len, names), default=0) > 2 else 0
    ax.set_xticks(range(len(names)), names, rotation=rotation)
    span = max(heights) - min(heights) or 1.0
    ax.set_xlim(-0.5, tree.num_leaves - 0.5)
    ax.set_ylim(min(heights), max(heights) + 0.08 * span)
    ax.set_ylabel("height")
    ax.spines[["top", "right", "bottom"]].set_visible(False)
    return ax


def _leaf_order(tree: Dendrogram) -> list[int]:
    """Points from left to right, so that no lines cross."""
    merges = tree.merges.tolist()
    order: list[int] = []
    pending = [2 * tree.num_leaves - 2]
    while pending:
        node = pending.pop()
        if node < tree.num_leaves:
            order.append(node)
        else:
            left, right = merges[node - tree.num_leaves]
            pending += [right, left]
    return order


def _colors(tree: Dendrogram) -> list[str]:
    """Color of each merge: that of its cluster, or gray above the cut."""
    if tree.cut_height is None:
        return ["C0"] * len(tree.merges)
    opened = tree._is_opened(None, None)
    roots = tree._roots(opened)
    of_root = dict(zip(roots, tree.cut().tolist(), strict=False))  # points are the first nodes
    return [
        _OPENED if is_open else f"C{of_root[root] % 10}"
        for root, is_open in zip(roots[tree.num_leaves :], opened, strict=True)
    ]
