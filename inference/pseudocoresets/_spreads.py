"""How far the columns of rows spread."""

import torch
from torch import Tensor

__all__ = ["column_spreads"]


def column_spreads(rows: Tensor) -> Tensor:
    """Standard deviation of each column of some rows.

    A column that is constant has the absolute value of the constant in its place, and one of zeros
    the median of the other columns, or one where there is no other.

    :param Tensor rows: **Shape:** ``(num_rows, *event)``.
    :returns: positive. **Shape:** ``(*event)``.

    Example::

        >>> column_spreads(torch.tensor([[-1.0, 5.0, 0.0], [1.0, 5.0, 0.0], [0.0, 5.0, 0.0]]))
        tensor([1., 5., 1.])
    """
    spreads = rows.std(0) if len(rows) > 1 else torch.zeros_like(rows[0])
    spreads = torch.where(spreads > 0, spreads, rows.mean(0).abs())
    known = spreads[spreads > 0]
    rest = known.median() if known.numel() else torch.ones_like(spreads).amax()
    return torch.where(spreads > 0, spreads, rest)
