"""Data under a mixture whose prior and clusters are given, for hierarchical clustering."""

from typing import Any

from torch import Tensor

from pyro_ext._checks import as_tensor
from pyro_ext.distributions import ConjugateCluster
from pyro_ext.inference.partitions._conjugate_mixture import ConjugateMixture
from pyro_ext.inference.partitions._hyperparameters import Hyperparameters
from pyro_ext.inference.partitions._mixture import Law

__all__ = ["known_mixture"]

_LARGEST = 1e100  # squares of more could overflow


def known_mixture(x: Tensor, cluster: ConjugateCluster, prior: Law) -> ConjugateMixture:
    """Prior, clusters and data, checked to fit together.

    :param Tensor x: the data. **Shape:** ``(n, d)``, or ``(n,)`` where ``d`` is one.
    :param cluster: a conjugate cluster.
    :param prior: law of the partition.
    :raises TypeError: where prior or cluster are something else.
    :raises ValueError: where they and the data do not fit together.
    """
    _check_type("cluster", cluster, ConjugateCluster, "a conjugate cluster")
    _check_type("prior", prior, Law, "a normalized measure, a PitmanYor or a DirichletProcess")
    mixture = ConjugateMixture(
        Hyperparameters(prior, "prior"), Hyperparameters(cluster, "cluster"), as_tensor("x", x)
    )
    mixture.law({})
    is_large = (mixture.points.abs() > _LARGEST).any(-1)
    if bool(is_large.any()):
        row = int(is_large.nonzero()[0])
        raise ValueError(
            f"x must hold numbers of at most {_LARGEST:g} in size, got "
            f"{mixture.points[row].tolist()!s:.80} in row {row}"
        )
    return mixture


def _check_type(argument: str, value: Any, kind: Any, wanted: str) -> None:
    if not isinstance(value, kind):
        raise TypeError(f"{argument} must be {wanted}, got {value!r:.80}")
