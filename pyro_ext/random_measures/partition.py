"""Random partitions as distributions of label vectors."""

from typing import Any, Protocol

import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor
from torch.distributions import constraints

from pyro_ext._checks import check_integer
from pyro_ext.random_measures._arguments import check_law
from pyro_ext.random_measures._counts import counts_of_labels

__all__ = ["PartitionLaw", "RandomPartition"]


class PartitionLaw(Protocol):
    """What has exchangeable random partitions: a normalized measure."""

    @property
    def batch_shape(self) -> torch.Size:
        """Shape of the parameters."""

    def log_eppf(self, counts: Any, multiplicity: Any = None) -> Tensor:
        """Logarithm of the probability of a partition."""

    def _sample_labels(self, num_samples: int, num_draws: int) -> Tensor: ...

    def _element(self, index: int) -> "PartitionLaw": ...


class RandomPartition(TorchDistribution):
    """Law of the labels of samples of a random probability measure.

    Two samples have the same label where they are equal. Labels are numbers from zero, in the order
    of their first occurrence; the probability of a label vector is that of its partition, whatever
    the labels.

    :param law: a normalized measure, a Pitman-Yor or a Dirichlet process.
    :param int num_samples: how many labels a draw has.

    Example::

        >>> from pyro_ext.random_measures import DirichletProcess
        >>> partition = DirichletProcess(1.0).partition(3)
        >>> partition.log_prob(torch.tensor([0, 1, 0])).exp()
        tensor(0.1667)
    """

    arg_constraints: dict[str, Any] = {}
    support = constraints.independent(constraints.nonnegative_integer, 1)

    def __init__(
        self, law: PartitionLaw, num_samples: int, *, validate_args: bool | None = None
    ) -> None:
        check_law("law", law)
        self.law = law
        self.num_samples = check_integer("num_samples", num_samples, 1)
        super().__init__(law.batch_shape, torch.Size((num_samples,)), validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> Any:
        """Repeat the distribution over a larger batch shape.

        :param torch.Size batch_shape: the new shape.
        :returns: the distribution of that shape.
        """
        new = self._get_checked_instance(type(self), _instance)  # type: ignore[no-untyped-call]
        new.law, new.num_samples = self.law, self.num_samples
        super(RandomPartition, new).__init__(
            torch.Size(batch_shape), self.event_shape, validate_args=False
        )
        new._validate_args = self._validate_args
        return new

    def log_prob(self, value: Tensor) -> Tensor:
        """Log probability of the partition of a label vector.

        :param Tensor value: labels, any integers from zero. **Shape:** ``(*batch, num_samples)``.
        """
        if self._validate_args:
            self._validate_sample(value)
        counts = counts_of_labels(value)
        if self.law.batch_shape or counts.dim() == 1:
            result = self.law.log_eppf(counts)
        else:
            rows = [self.law.log_eppf(row) for row in counts.reshape(-1, self.num_samples)]
            result = torch.stack(rows).view(counts.shape[:-1])
        return result.expand(torch.broadcast_shapes(result.shape, self.batch_shape))

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draw label vectors, each in a time that is about linear in its length.

        :param torch.Size sample_shape: how many.
        """
        shape = torch.Size(sample_shape) + self.batch_shape
        own = torch.arange(self.law.batch_shape.numel()).view(self.law.batch_shape)
        chosen = own.expand(shape).flatten()
        labels = torch.empty((chosen.numel(), self.num_samples), dtype=torch.long)
        for index in own.flatten():
            rows = torch.nonzero(chosen == index).squeeze(-1)
            law = self.law._element(int(index))
            labels[rows] = law._sample_labels(self.num_samples, rows.numel())
        return labels.view(*shape, self.num_samples)
