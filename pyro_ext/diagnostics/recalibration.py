"""Recalibration of the predictive distributions of a regression."""

import warnings

import numpy as np
import torch
from torch import Tensor

from pyro_ext.diagnostics.metrics import ArrayLike, in_unit_interval


class IsotonicRecalibrator:
    r"""A map from predicted probabilities to the frequencies observed on held-out data [1].

    If a model predicts that an observation lies below a value with probability :math:`p`, this
    happens with frequency :math:`R(p)`. :math:`R` is the isotonic regression of the fraction of
    held-out observations whose :math:`F_j(y_j)` is at most :math:`p`. These fractions increase with
    :math:`p` anyway, so :math:`R` goes through the middle of each of their steps; it is linear in
    between, and toward zero and one at the ends. The recalibrated distribution function is
    :math:`R(F(y))`.

    :param cdf_values: the predictive distribution function at the held-out observations, such as
        ``Normal(loc, scale).cdf(y)``. Values that are exactly zero or one do not tell how far out
        an observation is, so :math:`R` is not fitted to them. **Shape:** ``(n,)``.
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
        """Return recalibrated probabilities.

        :param cdf_values: the model's probabilities, of any shape.
        :returns: the recalibrated probabilities, of the same shape, in double precision.
        """
        return self._interpolated(
            in_unit_interval("cdf_values", cdf_values), self.levels, self.fractions
        )

    def inverse(self, probabilities: ArrayLike) -> Tensor:
        """Return the probabilities at which the model's quantiles are the recalibrated quantiles.

        :param probabilities: the levels of the recalibrated quantiles, of any shape.
        :returns: :math:`R^{-1}`, of the same shape, in double precision.
        """
        values = in_unit_interval("probabilities", probabilities)
        return self._interpolated(values, self.fractions, self.levels)

    def _interpolated(self, values: Tensor, start: Tensor, end: Tensor) -> Tensor:
        found = np.interp(values.double().cpu().numpy(), start.numpy(), end.numpy())
        return torch.as_tensor(found, device=values.device)
