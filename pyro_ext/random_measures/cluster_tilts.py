r"""Tilts of the clusters of a normalized measure that is a mixture over tilts.

[1] F. Ayed, J. Lee, F. Caron (2019), Beyond the Chinese restaurant and Pitman-Yor processes:
statistical models with double power-law behavior.
"""

from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor
from torch.distributions import AffineTransform, constraints

from pyro_ext._checks import as_tensor
from pyro_ext.distributions.supports import Gamma, open_interval
from pyro_ext.random_measures._counts import check_counts
from pyro_ext.random_measures._roots import may_hold_everywhere
from pyro_ext.random_measures.beta_prime import BetaPrimeProcess
from pyro_ext.random_measures.generalized_bfry import GeneralizedBFRYProcess

__all__ = ["cluster_tilt_law", "log_joint_given_cluster_tilts"]

MixtureOverTilts = GeneralizedBFRYProcess | BetaPrimeProcess


def cluster_tilt_law(measure: MixtureOverTilts) -> TorchDistribution:
    r"""Law of a tilt before there are data: the mixing density of the measure, normalized.

    Without the weights' own factor it is proportional to :math:`x^{\tau-\sigma-1}` on
    :math:`(0, c)` for a generalized BFRY process, :math:`c` times a Beta variable, and to
    :math:`x^{\tau-\sigma-1} e^{-cx}` for a beta prime process, a Gamma variable.

    :param measure: a generalized BFRY or a beta prime process.
    :raises TypeError: for another measure.

    Example::

        >>> from pyro_ext.random_measures import BetaPrimeProcess
        >>> cluster_tilt_law(BetaPrimeProcess(2.0, 0.4, 2.4, 1.0)).mean
        tensor(2.)
    """
    _check_measure(measure)
    power = measure.tail_index - measure.discount
    if isinstance(measure, BetaPrimeProcess):
        return Gamma(power, measure.rate)
    share = dist.Beta(power, torch.ones_like(power))
    zero = torch.zeros_like(power)
    return _ScaledBeta(share, [AffineTransform(zero, measure.cutoff)])


def log_joint_given_cluster_tilts(
    measure: MixtureOverTilts, counts: Any, tilt: Tensor, cluster_tilts: Tensor
) -> Tensor:
    r"""Log density of a partition and its auxiliary variable, given tilts of the clusters [1].

    The Lévy density is a mixture of those of generalized gamma processes over a tilt :math:`x`.
    With the tilt :math:`y_j` of the :math:`j`-th cluster from its law before there are data, the
    density of the partition and of :math:`u` is

    .. math:: \frac{u^{n-1}}{\Gamma(n)} e^{-\psi(u)} \prod_{j=1}^K \frac{\eta Z}{\Gamma(1 - \sigma)}
              \frac{\Gamma(n_j - \sigma)}{(y_j + u)^{n_j - \sigma}} ,

    where :math:`Z` normalizes the mixing density. Its mean over the tilts is
    :meth:`log_joint <pyro_ext.random_measures.NormalizedRandomMeasure.log_joint>` of the normalized
    measure, and no integral but that of :math:`\psi` is left in it.

    :param measure: a generalized BFRY or a beta prime process, without batch shape.
    :param Tensor counts: sizes of clusters. **Shape:** ``(num_clusters,)``.
    :param Tensor tilt: :math:`u > 0`, a scalar.
    :param Tensor cluster_tilts: :math:`y_j > 0`. **Shape:** ``(num_clusters,)``.
    :returns: a scalar.
    :raises TypeError: for another measure.
    :raises ValueError: where counts are no nonnegative integers.

    Example::

        >>> from pyro_ext.random_measures import GeneralizedBFRYProcess
        >>> measure = GeneralizedBFRYProcess(1.5, 0.4, 2.3)
        >>> tilts = cluster_tilt_law(measure).sample((2,))
        >>> log_joint_given_cluster_tilts(measure, [2, 1], torch.tensor(0.7), tilts).shape
        torch.Size([])
    """
    _check_measure(measure)
    tilt = as_tensor("tilt", tilt, "()")
    own = measure._double
    sizes, log_tilt = check_counts(counts), tilt.double().log()
    if sizes.dim() != 1 or not sizes.numel():
        raise ValueError(f"counts must have the shape (num_clusters,), got {tuple(sizes.shape)}")
    cluster_tilts = as_tensor("cluster_tilts", cluster_tilts, f"({len(sizes)},)")
    for name, value in (("tilt", tilt), ("cluster_tilts", cluster_tilts)):
        if not may_hold_everywhere(value > 0):
            raise ValueError(f"{name} must be > 0, got {value.tolist()!r:.80}")
    total = sizes.sum()
    power, end = own.tail_index - own.discount, measure._log_end()
    normalizer = power * end - power.log()
    if isinstance(measure, BetaPrimeProcess):
        normalizer = power * end + power.lgamma()
    order = sizes - own.discount
    rates = cluster_tilts.double() + tilt.double() + own.tilt
    clusters = measure._log_scale() + normalizer + order.lgamma() - order * rates.log()
    exponent = measure._log_exponent(log_tilt).exp()
    value = (total - 1.0) * log_tilt - total.lgamma() - exponent + clusters.sum(-1)
    return measure._result(value, tilt, cluster_tilts)


class _ScaledBeta(dist.TransformedDistribution):
    """A Beta variable times a positive number, with its support."""

    arg_constraints: dict[str, Any] = {}

    @constraints.dependent_property(is_discrete=False, event_dim=0)
    def support(self) -> Any:
        return open_interval(0.0, self.transforms[0].scale)


def _check_measure(measure: object) -> None:
    if not isinstance(measure, MixtureOverTilts) or measure.batch_shape:
        raise TypeError(
            "measure must be a generalized BFRY or a beta prime process without batch shape, got "
            f"{measure!r:.80}"
        )
