"""Summaries of a posterior over partitions.

A partition is a vector of integer labels: points with equal labels are in the same cluster, and the
values have no other meaning. All functions take tensors or NumPy arrays of integers, on any device,
and return tensors on the CPU.
Draws have the shape ``(num_draws, n)`` or ``(num_chains, num_draws, n)``.
"""

from pyro_ext.diagnostics.partitions.estimates import (
    CredibleBall,
    PartitionEstimate,
    credible_ball,
    point_estimate,
)
from pyro_ext.diagnostics.partitions.labels import (
    canonical_labels,
    cluster_sizes,
    co_clustering,
    num_clusters,
    num_clusters_distribution,
    partition_quantities,
)
from pyro_ext.diagnostics.partitions.losses import expected_loss, variation_of_information

__all__ = [
    "CredibleBall",
    "PartitionEstimate",
    "canonical_labels",
    "cluster_sizes",
    "co_clustering",
    "credible_ball",
    "expected_loss",
    "num_clusters",
    "num_clusters_distribution",
    "partition_quantities",
    "point_estimate",
    "variation_of_information",
]
