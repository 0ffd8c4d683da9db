"""Ranking metrics: the ranks of positives among negatives."""

from torch import Tensor

from pyro_ext._lib import checks
from pyro_ext.diagnostics.metrics import ArrayLike, as_numbers

__all__ = ["hits_at", "mean_reciprocal_rank", "ranks"]


def ranks(scores: ArrayLike, negatives: ArrayLike) -> Tensor:
    """Rank of each score among negatives, one where it is the highest.

    Among equal scores it is the mean of the ranks that they share, so that a constant score gains
    nothing.

    :param scores: of what is true, without NaN. **Shape:** ``(n,)``.
    :param negatives: of what each is compared with, without NaN. **Shape:**
        ``(n, num_negatives)``.
    :returns: **Shape:** ``(n,)``, in double precision.

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
            raise ValueError(f"{name} must not be NaN, got {int(values.isnan().sum())} that are")
    above = (others > own[:, None]).double().sum(1)
    return 1.0 + above + 0.5 * (others == own[:, None]).double().sum(1)


def mean_reciprocal_rank(scores: ArrayLike, negatives: ArrayLike) -> float:
    """Mean of one over the rank; arguments are those of :func:`ranks`.

    :param scores: of what is true, without NaN. **Shape:** ``(n,)``.
    :param negatives: of what each is compared with, without NaN. **Shape:**
        ``(n, num_negatives)``.

    Example::

        >>> mean_reciprocal_rank([2.0, 0.0], [[1.0, 0.0], [1.0, -1.0]])
        0.75
    """
    return float(ranks(scores, negatives).reciprocal().mean())


def hits_at(scores: ArrayLike, negatives: ArrayLike, k: int = 10) -> float:
    """Fraction of ranks that are not above ``k``; other arguments are those of :func:`ranks`.

    :param scores: of what is true, without NaN. **Shape:** ``(n,)``.
    :param negatives: of what each is compared with, without NaN. **Shape:**
        ``(n, num_negatives)``.
    :param int k: the last rank that counts.

    Example::

        >>> hits_at([2.0, 0.0], [[1.0, 0.0], [1.0, -1.0]], k=1)
        0.5
    """
    checks.integer("k", k, 1)
    return float((ranks(scores, negatives) <= k).double().mean())
