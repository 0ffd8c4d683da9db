r"""Numbers of clusters of each size, and how well predicted numbers fit the observed ones.

The likelihood of a random partition depends only on these numbers. They are tables of integers with
the columns size and number, as returned by :func:`~pyro_ext.random_measures.frequency_table`; a row
of zeros is padding. The functions that measure fit compare two distributions of the size of a
cluster, with each cluster counted once.

[1] A. Clauset, C. R. Shalizi, M. E. J. Newman (2009), Power-law distributions in empirical data.

[2] F. Ayed, J. Lee, F. Caron (2019), Beyond the Chinese restaurant and Pitman-Yor processes:
statistical models with double power-law behavior.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributions import constraints

from pyro_ext._lib import checks
from pyro_ext.random_measures.cluster_counts import (
    as_table,
    cluster_sizes,
    frequency_table,
    log_num_partitions,
)
from pyro_ext.random_measures.partition import (
    ProbabilityMeasure,
    SampleDistribution,
    check_probability_measure,
)
from pyro_ext.special.operations import may_hold_everywhere


class FrequencyCounts(SampleDistribution):
    r"""Distribution of the numbers of clusters of each size among samples from a random measure.

    With :math:`m_i` clusters of size :math:`i`, so that :math:`\sum_i i \, m_i = n`,

    .. math:: p(m) = \frac{n!}{\prod_i (i!)^{m_i} \, m_i!} \; p(n_1, \dots, n_K) ,

    where :math:`p(n_1, \dots, n_K)` is the exchangeable partition probability function and the
    factor before it counts the partitions with these sizes. Draws are exact, and take time about
    linear in the number of samples.

    :param measure: a normalized measure, a Pitman-Yor or a Dirichlet process.
    :param int num_samples: :math:`n`.
    :param int num_rows: the number of rows of a table, at least the number of distinct sizes.
        Default: the largest possible number of distinct sizes, about :math:`\sqrt{2 n}`.

    Example::

        >>> from pyro_ext.random_measures import DirichletProcess
        >>> counts = FrequencyCounts(DirichletProcess(1.0), 3)
        >>> counts.log_prob(torch.tensor([[1, 1], [2, 1]])).exp()  # a single and a pair
        tensor(0.5000)
    """

    support = constraints.independent(constraints.nonnegative_integer, 2)

    def __init__(
        self,
        measure: ProbabilityMeasure,
        num_samples: int,
        num_rows: int | None = None,
        *,
        validate_args: bool | None = None,
    ) -> None:
        check_probability_measure("measure", measure)
        number = checks.integer("num_samples", num_samples, 1)
        most = (math.isqrt(8 * number + 1) - 1) // 2
        rows = most if num_rows is None else checks.integer("num_rows", num_rows, 1)
        super().__init__(measure, number, (rows, 2), validate_args)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log probability of a table.

        :param Tensor value: rows of a size and the number of clusters of this size. **Shape:**
            ``(*batch, num_rows, 2)``.
        :raises ValueError: if arguments are validated and the table does not contain
            ``num_samples`` samples.
        """
        self._check_table(value)
        sizes, numbers = value.unbind(-1)

        def log_eppf(sizes: Tensor, numbers: Tensor) -> Tensor:
            return self.measure._log_eppf(cluster_sizes(sizes, numbers))

        result = self._log_probs(log_eppf, sizes, numbers)
        result = (result + log_num_partitions(value)).to(self.measure._dtype)
        return result.expand(torch.broadcast_shapes(result.shape, self.batch_shape))

    def _draws(self, measure: ProbabilityMeasure, number: int) -> Tensor:
        sizes = measure._sample_sizes(self.num_samples, number)
        if not sizes:
            return torch.empty((0, *self.event_shape), dtype=torch.long)
        return torch.stack([frequency_table(counts, self.event_shape[0]) for counts in sizes])

    def _check_table(self, value: Tensor) -> None:
        if self._validate_args:
            self._validate_sample(value)
            as_table("value", value)
            total = value.prod(-1).sum(-1)
            if not may_hold_everywhere(total == self.num_samples):
                raise ValueError(
                    f"value must contain num_samples = {self.num_samples} samples, got "
                    f"{total.flatten()[:5].tolist()}"
                )


def kolmogorov_smirnov(
    observed: Tensor, predicted: Tensor, least: float = 1.0, most: float = torch.inf
) -> Tensor:
    """Largest difference between two distributions of sizes.

    :param Tensor observed: table of the observed sizes. **Shape:** ``(num_rows, 2)``.
    :param Tensor predicted: table of the predicted sizes. **Shape:** ``(other_num_rows, 2)``.
    :param float least: the smallest size to compare.
    :param float most: the largest size to compare.
    :returns: a scalar; zero if there is no size between ``least`` and ``most``.
    :raises ValueError: if a table has no clusters or the limits are in the wrong order.

    Example::

        >>> observed, predicted = torch.tensor([[1, 3], [2, 1]]), torch.tensor([[1, 1], [5, 1]])
        >>> kolmogorov_smirnov(observed, predicted)
        tensor(0.5000)
    """
    observed, predicted = _single_table("observed", observed), _single_table("predicted", predicted)
    points = torch.cat([_sizes("observed", observed), _sizes("predicted", predicted)]).unique()
    first, second = _fractions(observed, predicted, _between(points, least, most))
    return _largest((first - second).abs())


def reweighted_kolmogorov_smirnov(
    observed: Tensor, predicted: Tensor, least: float = 1.0, most: float = torch.inf
) -> Tensor:
    r"""Largest difference between two distributions of sizes, equally sensitive in the tails.

    It is :math:`\max_x |F(x) - P(x)| / \sqrt{P(x) (1 - P(x))}`, where :math:`F` is the observed and
    :math:`P` the predicted distribution function [1]. The maximum is over the sizes within the
    ranges of both at which :math:`0 < P < 1`. [2] measures the fit of partitions in this way. The
    arguments are those of :func:`kolmogorov_smirnov`.

    Example::

        >>> observed, predicted = torch.tensor([[1, 1], [2, 1]]), torch.tensor([[1, 1], [2, 3]])
        >>> reweighted_kolmogorov_smirnov(observed, predicted)  # 1/4 over the root of 3/16
        tensor(0.5774)
    """
    observed, predicted = _single_table("observed", observed), _single_table("predicted", predicted)
    seen, foretold = _sizes("observed", observed), _sizes("predicted", predicted)
    low, high = torch.maximum(seen.min(), foretold.min()), torch.minimum(seen.max(), foretold.max())
    points = torch.cat([seen, foretold]).unique()
    points = _between(points[(points >= low) & (points <= high)], least, most)
    first, second = _fractions(observed, predicted, points)
    variance = second * (1.0 - second)
    is_inside = variance > 0
    return _largest((first - second).abs()[is_inside] / variance[is_inside].sqrt())


def rank_sizes(table: Tensor, ranks: Tensor) -> Tensor:
    """Return the cluster sizes at given ranks; the largest cluster has rank one.

    :param Tensor table: rows of a size and the number of clusters of this size. **Shape:**
        ``(num_rows, 2)``.
    :param Tensor ranks: integers from one. **Shape:** any.
    :returns: the sizes, zero at ranks beyond the number of clusters. **Shape:** that of the ranks.

    Example::

        >>> rank_sizes(torch.tensor([[1, 2], [7, 1]]), torch.tensor([1, 2, 3, 4]))
        tensor([7, 1, 1, 0])
    """
    table, ranks = _single_table("table", table), _ranks(ranks)
    order = table[:, 0].argsort(descending=True)
    sizes, numbers = table[order].unbind(-1)
    ends = numbers.cumsum(0)
    x = torch.searchsorted(ends, ranks.to(ends))
    inside = x.clamp(max=len(ends) - 1)
    return torch.where(x < len(ends), sizes[inside], 0)


class RankSizeBand(NamedTuple):
    """Pointwise quantiles of cluster sizes at given ranks, over predicted tables.

    :param Tensor ranks: integers from one. **Shape:** ``(num_ranks,)``.
    :param Tensor low: the lower end of the band. **Shape:** the same.
    :param Tensor median: the median. **Shape:** the same.
    :param Tensor high: the upper end of the band. **Shape:** the same.
    """

    ranks: Tensor
    low: Tensor
    median: Tensor
    high: Tensor


def rank_size_band(tables: Sequence[Tensor], ranks: Tensor, prob: float = 0.9) -> RankSizeBand:
    """Compute a pointwise credible band of cluster sizes against ranks.

    :param tables: predicted tables, one for each draw.
    :param Tensor ranks: integers from one. **Shape:** ``(num_ranks,)``.
    :param float prob: the probability of the band at each rank.
    :raises ValueError: if there are no tables or the probability is out of range.

    Example::

        >>> tables = [torch.tensor([[size, 1]]) for size in range(1, 12)]
        >>> rank_size_band(tables, torch.tensor([1]), prob=0.8)[1:]
        (tensor([2.]), tensor([6.]), tensor([10.]))
    """
    checks.number("prob", prob, above=0, below=1)
    tables = checks.sequence("tables", tables, "a list of tables")
    ranks = checks.as_tensor("ranks", _ranks(ranks), "(num_ranks,)")
    tables = [_single_table(f"tables[{i}]", table) for i, table in enumerate(tables)]
    sizes = torch.stack([rank_sizes(table, ranks) for table in tables]).to(
        torch.get_default_dtype()
    )
    tail = 0.5 * (1.0 - prob)
    levels = torch.tensor([tail, 0.5, 1.0 - tail], dtype=sizes.dtype, device=sizes.device)
    return RankSizeBand(ranks, *sizes.quantile(levels, 0))


def _single_table(argument: str, value: Any) -> Tensor:
    return checks.as_tensor(argument, as_table(argument, value), "(num_rows, 2)")


def _ranks(value: Any) -> Tensor:
    ranks = checks.as_tensor("ranks", value, kind="integers")
    if not bool((ranks >= 1).all()):
        raise ValueError(f"ranks must be integers >= 1, got {ranks.tolist()!r:.80}")
    return ranks


def _sizes(name: str, table: Tensor) -> Tensor:
    """Sizes that some cluster has."""
    sizes = table[table.prod(-1) > 0, 0]
    if not len(sizes):
        raise ValueError(f"{name} must contain at least one cluster, got {table!r:.80}")
    return sizes


def _between(points: Tensor, least: float, most: float) -> Tensor:
    for name, limit in (("least", least), ("most", most)):
        if isinstance(limit, bool) or not isinstance(limit, int | float) or math.isnan(limit):
            raise TypeError(f"{name} must be a number, got {checks.shown(limit)}")
    if not least <= most:
        raise ValueError(f"least must be at most most, got least={least!r} and most={most!r}")
    return points[(points >= least) & (points <= most)]


def _fractions(observed: Tensor, predicted: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
    """Fractions of clusters up to the points, by two tables."""
    dtype = torch.get_default_dtype()
    fractions = []
    for table in (observed, predicted):
        order = table[:, 0].argsort()
        sizes, numbers = table[order].unbind(-1)
        numbers = torch.where(sizes > 0, numbers, 0)
        ends = torch.nn.functional.pad(numbers.cumsum(0), (1, 0))
        below = ends[torch.searchsorted(sizes.contiguous(), points, right=True)]
        fractions.append((below.double() / ends[-1]).to(dtype))
    return fractions[0], fractions[1]


def _largest(values: Tensor) -> Tensor:
    return values.max() if len(values) else values.new_zeros(())
