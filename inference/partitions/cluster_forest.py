"""Trees over the points of the clusters of a partition."""

from dataclasses import dataclass

from torch import Tensor

from pyro_ext.inference.partitions.dendrogram import Dendrogram

__all__ = ["ClusterForest"]


@dataclass(frozen=True, eq=False, repr=False)
class ClusterForest:
    """A partition, with a tree over each of its clusters.

    :param Tensor labels: clusters of the points, from zero, in the order of first occurrence.
        **Shape:** ``(n,)``.
    :param tuple trees: the tree of each cluster. The names of its leaves are the numbers of points.
    :param tuple points: of each tree, which points its leaves are. **Shape** of each:
        ``(num_leaves,)``.
    :param float log_joint: log density of the partition and the data, and of the auxiliary variable
        where there is one.
    :param float tilt: the auxiliary variable.

    Example::

        >>> from pyro_ext.inference.partitions import Dendrogram
        >>> pair = Dendrogram(torch.tensor([[0, 1]]), torch.tensor([-2.0]), labels=("0", "2"))
        >>> single = Dendrogram(torch.empty(0, 2).long(), torch.empty(0), labels=("1",))
        >>> labels, points = torch.tensor([0, 1, 0]), (torch.tensor([0, 2]), torch.tensor([1]))
        >>> forest = ClusterForest(labels, (pair, single), points, log_joint=-3.5)
        >>> forest, forest.trees[0].to_newick()
        (ClusterForest(3 points, 2 clusters, log_joint -3.5), '(0:0,2:0);')
    """

    labels: Tensor
    trees: tuple[Dendrogram, ...]
    points: tuple[Tensor, ...]
    log_joint: float
    tilt: float | None = None

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
