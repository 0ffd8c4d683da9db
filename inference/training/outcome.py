"""Errors and warnings of failed training."""

import math
import warnings
from collections.abc import Sequence

import torch
from torch import Tensor

_FRACTION = 10  # of the steps is a window
_LEAST = 10  # losses of a window; a shorter training says nothing
_NUM_ERRORS = 5.0  # standard errors; noise alone exceeds them in one of 20,000 short trainings

_HELP = (
    "Take a smaller learning rate or more steps, standardize the data, or begin anew with another "
    "seed"
)


class TrainingDiverged(FloatingPointError):
    """A loss, a gradient or a parameter is not finite; the message says where, and what helps.

    Parameters and buffers are those at which loss and gradient were last finite.

    :param str message: what happened.
    :param Sequence losses: the losses of the previous steps.
    """

    def __init__(self, message: str, losses: Sequence[float] = ()) -> None:
        super().__init__(message)
        self.losses = list(losses)


class TrainingWarning(UserWarning):
    """Training ended no better than it began; the message says what helps."""


def warn_of_losses(losses: Sequence[float], stacklevel: int = 2) -> None:
    """Warn of a training whose loss has clearly not fallen.

    The mean over the last tenth of the steps has to be above that over the first tenth, by several
    standard errors, and above each single loss there: a loss that is noisy, or of less than a
    hundred steps, is given the benefit of the doubt.
    """
    size = len(losses) // _FRACTION
    if size < _LEAST:
        return
    ends = torch.tensor([losses[:size], losses[-size:]], dtype=torch.float64)
    (first, last), variance = ends.mean(1).tolist(), ends.var(1).sum()
    is_above = last - first >= _NUM_ERRORS * math.sqrt(variance / size)
    if is_above and (last > max(losses[:size]) or last == first):
        warnings.warn(
            f"training brought no improvement: the mean loss of its last {size} steps is "
            f"{last:.6g}, and that of its first {size} was {first:.6g}. {_HELP}",
            TrainingWarning,
            stacklevel + 1,
        )


def warn_of_rows(losses: Tensor, stacklevel: int = 2) -> None:
    """Warn of problems that were solved side by side, some of which are no longer finite."""
    if lost := (~losses.detach().isfinite()).nonzero().flatten().tolist():
        warnings.warn(
            f"{len(lost)} of {losses.numel()} rows ended at a loss that is not finite, the first "
            f"of them row {lost[0]}: use a smaller learning rate for them, or another start",
            TrainingWarning,
            stacklevel + 1,
        )


def warn_of_validation(
    what: str,
    best: float,
    start: float,
    of_start: str = "before it was",
    *,
    least: float = 0.0,
    advice: str = "hold out more of the data",
    stacklevel: int = 2,
) -> None:
    """Warn where what a training was judged by has not fallen, by a fraction of it at least."""
    if not best < start - least * abs(start):
        warnings.warn(
            f"training brought no improvement: {what} is {best:.6g}, {of_start} {start:.6g}. "
            f"{_HELP}, or {advice}",
            TrainingWarning,
            stacklevel + 1,
        )
