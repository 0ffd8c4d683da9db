"""Ranking metrics: the ranks of positives among negatives."""

from torch import Tensor

from pyro_ext._lib import checks
from pyro_ext.diagnostics.metrics import ArrayLike, as_numbers

__all__ = ["hits_at", "mean_reciprocal_rank", "ranks"]


def ranks(scores: ArrayLike, negatives: ArrayLike) -> Tensor:
    """Rank of each positive's score among those of its negatives; one is the best.

    Equal scores share the mean of their ranks, so that a constant score gains nothing.

    :param scores: scores of the positives, without NaN. **Shape:** ``(n,)``.
    :param negatives: scores of the negatives of each positive, without NaN. **Shape:**
        ``(n, num_negatives)``.
    :returns: ranks, in double precision. **Shape:** ``(n,)``.

    Example::

        >>> ranks(torch.tensor([2.0, 0.0]), torch.tensor([[1.0, 0.0], [0.0, 0.0]]))
        tensor([1., 2.], dtype=torch.float64)
    """
    own = as_numbers("scores", scores)
    if own.dim() != 1 or not len(own):
        raise ValueError(f"scores must have the shape (n,), got {tuple(own.shape)}")
    others = as_numbers("negatives", negatives).to(own.device)
    if others.dim() != 2 or len(others) != len(own) or not others.shape[1]:
        raise ValueError(
            f"negatives must have the shape ({len(own)}, num_negatives), got {tuple(others.shape)}"
        )
    for name, values in (("scores", own), ("negatives", others)):
        if bool(values.isnan().any()):
            raise ValueError(f"{name} must not be NaN, got {int(values.isnan().sum())} NaN")
    above = (others > own[:, None]).double().sum(1)
    return 1.0 + above + 0.5 * (others == own[:, None]).double().sum(1)


def mean_reciprocal_rank(scores: ArrayLike, negatives: ArrayLike) -> float:
    """Mean of the reciprocals of :func:`ranks`.

    :param scores: scores of the positives, without NaN. **Shape:** ``(n,)``.
    :param negatives: scores of the negatives of each positive, without NaN. **Shape:**
        ``(n, num_negatives)``.

    Example::

        >>> mean_reciprocal_rank([2.0, 0.0], [[1.0, 0.0], [1.0, -1.0]])
        0.75
    """
    return float(ranks(scores, negatives).reciprocal().mean())


def hits_at(scores: ArrayLike, negatives: ArrayLike, k: int = 10) -> float:
    """Fraction of :func:`ranks` that are at most ``k``.

    :param scores: scores of the positives, without NaN. **Shape:** ``(n,)``.
    :param negatives: scores of the negatives of each positive, without NaN. **Shape:**
        ``(n, num_negatives)``.
    :param int k: the largest rank that counts.

    Example::

        >>> hits_at([2.0, 0.0], [[1.0, 0.0], [1.0, -1.0]], k=1)
        0.5
    """
    checks.integer("k", k, 1)
    return float((ranks(scores, negatives) <= k).double().mean())
