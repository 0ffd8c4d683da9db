"""Default steps of a coreset: Adam in units of the columns of the data."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

__all__ = ["StandardizedAdam", "column_spreads"]

_FRACTION = 0.005


class StandardizedAdam(torch.optim.Adam):
    """Adam on parameters in units of their spreads.

    :param Sequence parameters: what is learned.
    :param Sequence spreads: how far each spreads. **Shape:** of the parameter, without its first
        dimension or none.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], spreads: Sequence[Tensor]) -> None:
        # Its own parameters are the moves of a step: next to a large value rounding would eat them.
        self._parts = [
            (p, spread, torch.zeros_like(p)) for p, spread in zip(parameters, spreads, strict=True)
        ]
        super().__init__([move for _, _, move in self._parts], lr=_FRACTION)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Take a step."""
        for parameter, spread, move in self._parts:
            move.zero_()
            move.grad = None if parameter.grad is None else spread * parameter.grad
        super().step(closure)
        for parameter, spread, move in self._parts:
            parameter.add_(spread * move)


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
