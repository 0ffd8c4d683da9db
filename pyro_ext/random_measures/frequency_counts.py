r"""Numbers of clusters of each size: all that the likelihood of a random partition depends on.

They are tables of integers with the columns size and number. A row of zeros is padding.
"""

import math
from typing import Any

import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor
from torch.distributions import constraints

from pyro_ext._checks import as_tensor, check_integer
from pyro_ext.random_measures._arguments import as_table
from pyro_ext.random_measures._counts import cluster_sizes
from pyro_ext.random_measures._frequency_sampling import ClusterCounts
from pyro_ext.random_measures._roots import may_hold_everywhere
from pyro_ext.random_measures.normalized import NormalizedRandomMeasure
from pyro_ext.random_measures.pitman_yor import PitmanYor
from pyro_ext.special.quadrature import integrate_log

__all__ = ["FrequencyCounts", "frequency_table", "log_num_partitions", "split_frequencies"]


class FrequencyCounts(TorchDistribution):
    r"""Law of the numbers of clusters of each size among samples of a random measure.

    With :math:`m_i` clusters of size :math:`i`, so that :math:`\sum_i i \, m_i = n`,

    .. math:: p(m) = \frac{n!}{\prod_i (i!)^{m_i} \, m_i!} \; p(n_1, \dots, n_K) ,

    where :math:`p(n_1, \dots, n_K)` is the exchangeable partition probability function, of which a
    factor counts the partitions with these sizes. A draw is exact, and takes a time that is about
    linear in the number of samples.

    :param law: a normalized measure, a Pitman-Yor or a Dirichlet process.
    :param int num_samples: :math:`n`.
    :param int num_rows: rows of a table, enough for all sizes that differ; by default as many as
        there can be, about :math:`\sqrt{2 n}`.
    :raises TypeError: for another law.

    Example::

        >>> from pyro_ext.random_measures import DirichletProcess
        >>> counts = FrequencyCounts(DirichletProcess(1.0), 3)
        >>> counts.log_prob(torch.tensor([[1, 1], [2, 1]])).exp()  # a single and a pair
        tensor(0.5000)
    """

    arg_constraints: dict[str, Any] = {}
    support = constraints.independent(constraints.nonnegative_integer, 2)

    def __init__(
        self,
        law: NormalizedRandomMeasure | PitmanYor,
        num_samples: int,
        num_rows: int | None = None,
        *,
        validate_args: bool | None = None,
    ) -> None:
        if not isinstance(law, NormalizedRandomMeasure | PitmanYor):
            raise TypeError(
                "law must be a normalized measure, a PitmanYor or a DirichletProcess, got "
                f"{law!r:.80}"
            )
        self.law = law
        self.num_samples = check_integer("num_samples", num_samples, 1)
        most = (math.isqrt(8 * self.num_samples + 1) - 1) // 2
        rows = most if num_rows is None else check_integer("num_rows", num_rows, 1)
        super().__init__(law.batch_shape, torch.Size((rows, 2)), validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> Any:
        """Repeat the distribution over a larger batch shape.

        :param torch.Size batch_shape: the new shape.
        :returns: the distribution of that shape.
        """
        new = self._get_checked_instance(type(self), _instance)  # type: ignore[no-untyped-call]
        new.law, new.num_samples = self.law, self.num_samples
        super(FrequencyCounts, new).__init__(
            torch.Size(batch_shape), self.event_shape, validate_args=False
        )
        new._validate_args = self._validate_args
        return new

    def log_prob(self, value: Tensor) -> Tensor:
        """Log probability of a table.

        :param Tensor value: sizes and numbers of clusters. **Shape:** ``(*batch, num_rows, 2)``.
        :raises ValueError: where it is not of so many samples, if arguments are validated.
        """
        self._check_table(value)
        sizes, numbers = value.unbind(-1)
        if self.law.batch_shape or sizes.dim() == 1:
            result = _log_eppf(self.law, sizes, numbers)
        else:
            rows = zip(sizes.flatten(0, -2), numbers.flatten(0, -2), strict=True)
            result = torch.stack([_log_eppf(self.law, *row) for row in rows])
            result = result.view(sizes.shape[:-1])
        result = (result + log_num_partitions(value)).to(self.law.index_at_zero.dtype)
        return result.expand(torch.broadcast_shapes(result.shape, self.batch_shape))

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draw tables.

        :param torch.Size sample_shape: how many.
        :raises ValueError: where a draw has more sizes than there are rows.
        """
        shape = torch.Size(sample_shape) + self.batch_shape
        own = torch.arange(self.law.batch_shape.numel()).view(self.law.batch_shape)
        chosen = own.expand(shape).flatten()
        tables = torch.zeros((chosen.numel(), *self.event_shape), dtype=torch.long)
        for index in own.flatten().tolist():
            rows = torch.nonzero(chosen == index).squeeze(-1)
            for row, counts in zip(rows, self._draws(index, len(rows)), strict=True):
                tables[row] = frequency_table(counts, self.event_shape[0])
        return tables.view(*shape, *self.event_shape)

    def _draws(self, index: int, number: int) -> list[Tensor]:
        """Sizes of clusters of some draws of a law of the batch."""
        law: Any = self.law._element(index)
        if isinstance(law, NormalizedRandomMeasure):
            sampler = ClusterCounts(law.measure, self.num_samples)
            return [sampler.sample() for _ in range(number)]
        return [law._sample_labels(self.num_samples, 1)[0].bincount() for _ in range(number)]

    def _check_table(self, value: Tensor) -> None:
        if self._validate_args:
            self._validate_sample(value)
            as_table("value", value)
            total = value.prod(-1).sum(-1)
            if not may_hold_everywhere(total == self.num_samples):
                raise ValueError(
                    f"value must be of num_samples = {self.num_samples} samples, got "
                    f"{total.flatten()[:5].tolist()}"
                )


def _log_eppf(law: NormalizedRandomMeasure | PitmanYor, sizes: Tensor, numbers: Tensor) -> Tensor:
    """In float64: of many clusters it nearly cancels with the number of partitions."""
    if isinstance(law, PitmanYor):
        return PitmanYor(law.discount.double(), law.concentration.double()).log_eppf(sizes, numbers)
    value: Tensor = integrate_log(*law._tilt_panels(cluster_sizes(sizes, numbers)))
    return value


def log_num_partitions(table: Tensor) -> Tensor:
    r"""Logarithm of the number of partitions with given sizes of clusters.

    It is :math:`\log (n! / \prod_i (i!)^{m_i} m_i!)` with :math:`m_i` clusters of size :math:`i`.

    :param Tensor table: sizes and numbers of clusters. **Shape:** ``(*batch, num_rows, 2)``.
    :returns: in float64. **Shape:** ``batch``.

    Example::

        >>> log_num_partitions(torch.tensor([[1, 1], [2, 1]])).exp()
        tensor(3.0000, dtype=torch.float64)
    """
    sizes, numbers = as_table("table", table).double().unbind(-1)
    total = (sizes * numbers).sum(-1)
    terms = numbers * (sizes + 1.0).lgamma() + (numbers + 1.0).lgamma()
    return (total + 1.0).lgamma() - terms.sum(-1)


def frequency_table(counts: Any, num_rows: int | None = None) -> Tensor:
    """Count clusters of each size.

    :param counts: sizes of clusters in any order, zeros for padding. **Shape:** ``(n,)``.
    :param int num_rows: number of rows, by default as many as there are sizes.
    :returns: integers by rising size. **Shape:** ``(num_rows, 2)``.
    :raises ValueError: where counts are no nonnegative integers, are all zero, or have more sizes
        than there are rows.

    Example::

        >>> frequency_table([3, 1, 1])
        tensor([[1, 2],
                [3, 1]])
    """
    sizes = as_tensor("counts", counts, "(n,)")
    if not bool(((sizes >= 0) & (sizes == sizes.long())).all()):
        raise ValueError(f"counts must be a vector of nonnegative integers, got {counts!r:.80}")
    if not bool((sizes > 0).any()):
        raise ValueError(f"counts must hold a positive number, got {counts!r:.80}")
    table = torch.stack(sizes[sizes > 0].long().unique(return_counts=True), -1)
    missing = 0 if num_rows is None else check_integer("num_rows", num_rows, 1) - len(table)
    if missing < 0:
        raise ValueError(
            f"num_rows must be at least {len(table)}, the number of different sizes, got {num_rows}"
        )
    return torch.nn.functional.pad(table, (0, 0, 0, missing))


def split_frequencies(table: Tensor, num_samples: int, seed: int | None = None) -> Tensor:
    """Table of some of the samples, which are picked at random without replacement.

    Of an exchangeable partition they are a partition by the same law.

    :param Tensor table: sizes and numbers of clusters. **Shape:** ``(num_rows, 2)``.
    :param int num_samples: how many to pick.
    :param int seed: of the choice; by default PyTorch's generator goes on.
    :returns: their table. **Shape:** ``(num_sizes, 2)``.
    :raises ValueError: where there are not so many samples.

    Example::

        >>> split_frequencies(torch.tensor([[1, 40], [10, 6]]), 50, seed=0).prod(-1).sum()
        tensor(50)
    """
    table = as_tensor("table", as_table("table", table), "(num_rows, 2)").long()
    sizes = table[:, 0].repeat_interleave(table[:, 1])
    total = int(sizes.sum())
    if check_integer("num_samples", num_samples, 1) > total:
        raise ValueError(f"num_samples must be at most {total}, got {num_samples}")
    generator = (
        None
        if seed is None
        else torch.Generator(table.device).manual_seed(check_integer("seed", seed, 0))
    )
    order = torch.randperm(total, generator=generator, device=table.device)
    labels = torch.arange(len(sizes), device=table.device).repeat_interleave(sizes)
    return frequency_table(labels[order[:num_samples]].bincount())
