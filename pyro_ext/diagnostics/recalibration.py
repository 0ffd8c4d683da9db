"""Predictive distributions of a regression that are made to keep what they promise."""

import warnings

import numpy as np
import torch
from torch import Tensor

from pyro_ext.diagnostics.metrics import ArrayLike, in_unit_interval


class IsotonicRecalibrator:
    r"""A map of predicted probabilities to the frequencies seen on held-out data [1].

    Where a model says that an observation lies below a value with probability :math:`p`, it does so
    with the frequency :math:`R(p)`, the isotonic regression of the fraction of held-out
    observations whose :math:`F_j(y_j)` is at most :math:`p`. As these fractions rise with :math:`p`
    anyway, the regression goes through them; between them, and to zero and one at the ends,
    :math:`R` is linear. The recalibrated distribution function is :math:`R(F(y))`.

    :param cdf_values: the predictive distribution function at the held-out observations, such as
        ``Normal(loc, scale).cdf(y)``. **Shape:** ``(n,)``.
        Where the distribution function is rounded to exactly zero or one, nothing is known of how
        far out observations are, and :math:`R` passes them by.
    :raises ValueError: for invalid probabilities, or for no values.
    :warns RuntimeWarning: if more than one percent of the values are exactly zero or one.

    [1] V. Kuleshov, N. Fenner, S. Ermon (2018),
    Accurate uncertainties for deep learning using calibrated regression.

    Example::

        >>> from pyro_ext.diagnostics import IsotonicRecalibrator
        >>> u = torch.linspace(0.4, 0.6, 101)  # a model whose intervals are five times too wide
        >>> recalibrate = IsotonicRecalibrator(u)
        >>> round(float(recalibrate(torch.tensor(0.45))), 2)
        0.25
    """

    def __init__(self, cdf_values: ArrayLike) -> None:
        values = in_unit_interval("cdf_values", cdf_values)
        if values.dim() != 1 or not len(values):
            raise ValueError(
                f"cdf_values must have the shape (n,) with n >= 1, got {tuple(values.shape)}"
            )
        levels, counts = values.double().cpu().unique(return_counts=True)
        # The middle of the steps, so that a calibrated model of few data is left as it is.
        fractions = (counts.cumsum(0).double() - 0.5 * counts) / len(values)
        is_inside = (levels > 0) & (levels < 1)
        num_lost = int(counts[~is_inside].sum())
        if num_lost > 0.01 * len(values):
            warnings.warn(
                f"{num_lost} of {len(values)} cdf_values are exactly 0 or 1, so that the tails are "
                "not recalibrated; evaluate the distribution function in float64, or widen the "
                "predictions",
                RuntimeWarning,
                stacklevel=2,
            )
        ends = torch.tensor([0.0, 1.0], dtype=torch.float64)
        self.levels = torch.cat([ends[:1], levels[is_inside], ends[1:]])
        self.fractions = torch.cat([ends[:1], fractions[is_inside], ends[1:]])

    def __call__(self, cdf_values: ArrayLike) -> Tensor:
        """Recalibrated probabilities.

        :param cdf_values: of the model, of any shape.
        :returns: of the same shape, in double precision.
        """
        return self._interpolated(
            in_unit_interval("cdf_values", cdf_values), self.levels, self.fractions
        )

    def inverse(self, probabilities: ArrayLike) -> Tensor:
        """Probabilities whose quantiles of the model are the recalibrated quantiles.

        :param probabilities: of recalibrated quantiles, of any shape.
        :returns: :math:`R^{-1}`, of the same shape, in double precision.
        """
        values = in_unit_interval("probabilities", probabilities)
        return self._interpolated(values, self.fractions, self.levels)

    def _interpolated(self, values: Tensor, start: Tensor, end: Tensor) -> Tensor:
        found = np.interp(values.double().cpu().numpy(), start.numpy(), end.numpy())
        return torch.as_tensor(found, device=values.device)
