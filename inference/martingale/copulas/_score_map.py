"""Increasing maps of normal scores, known at knots: how one law of a number turns into another."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["ScoreMap", "knots", "to_score", "whole"]

_HALVINGS = 45
_LIMIT = 4.75  # about where the scores of the copula are clipped
_LEAST = 1e-300
_AT_ONCE = 8  # points that a processor takes at once
_SHARPEST = 3.0  # times the slope of a chord: up to that, a cubic between two knots increases


def knots(bandwidth: float, per_scale: float) -> Tensor:
    r"""Equidistant normal scores, dense enough for what a bandwidth lets happen between them.

    :param float bandwidth: :math:`\rho` of the copula, which smooths at the scale
        :math:`\sqrt{1 - \rho^2}`.
    :param float per_scale: how many knots there are to that scale.
    :returns: in float64. **Shape:** ``(num_knots,)``.
    """
    number = 2.0 * _LIMIT * per_scale / math.sqrt(1.0 - bandwidth**2)
    return torch.linspace(-_LIMIT, _LIMIT, whole(number), dtype=torch.float64)


def whole(number: float) -> int:
    """A number of points that compiled loops like, at least so many and at least eight."""
    return max(math.ceil(number / _AT_ONCE), 1) * _AT_ONCE


def to_score(probability: Tensor) -> Tensor:
    """Normal scores of probabilities, finite at zero and one."""
    most = 1.0 - torch.finfo(torch.float64).eps / 2
    score: Tensor = torch.special.ndtri(probability.clamp(_LEAST, most))
    return score


class ScoreMap(NamedTuple):
    r"""Increasing maps :math:`g`, cubic between knots.

    A law with the distribution function :math:`F` turns into that with
    :math:`\Phi[g\{\Phi^{-1}(F(y))\}]`. Beyond the knots the maps are linear.
    The cubics increase, since slopes are limited where they must be [1].

    :param Tensor places: the knots, equidistant. **Shape:** ``(num_knots,)``.
    :param Tensor values: of the maps there. **Shape:** ``(num_maps, num_knots)``.
    :param Tensor slopes: of the maps there. **Shape:** ``(num_maps, num_knots)``.

    [1] F. N. Fritsch, R. E. Carlson (1980), Monotone piecewise cubic interpolation.
    """

    places: Tensor
    values: Tensor
    slopes: Tensor

    @staticmethod
    def of_law(places: Tensor, cdfs: Tensor, log_ratio: Tensor) -> "ScoreMap":
        """Maps that turn a law into others.

        :param Tensor places: normal scores of the law. **Shape:** ``(num_knots,)``.
        :param Tensor cdfs: distribution functions of the others where the law has these scores.
            **Shape:** ``(num_maps, num_knots)``.
        :param Tensor log_ratio: logarithms of their densities over that of the law, as ``cdfs``.
        """
        values = to_score(cdfs)
        slopes = (log_ratio + 0.5 * (values**2 - places**2)).exp()
        chords = (values[:, 1:] - values[:, :-1]).clamp(min=0.0) / (places[1] - places[0])
        least = torch.minimum(
            torch.cat([chords[:, :1], chords], 1), torch.cat([chords, chords[:, -1:]], 1)
        )
        return ScoreMap(places, values, torch.minimum(slopes, _SHARPEST * least))

    def forward(self, scores: Tensor) -> tuple[Tensor, Tensor]:
        """Values and slopes of the maps, with gradients in the scores.

        :param Tensor scores: **Shape:** ``(num_maps, num_points)``, or ``(1, num_points)``.
        :returns: **Shape:** ``(num_maps, num_points)`` each.
        """
        scores = scores.expand(len(self.values), -1)
        inside = scores.clamp(self.places[0], self.places[-1])
        cell = self._cells(inside)
        value, slope = self._cubic(cell, (inside - self.places[cell]) / self._step())
        return value + slope * (scores - inside), slope

    def inverse(self, values: Tensor) -> Tensor:
        """Scores at which the maps have values, without gradients.

        :param Tensor values: **Shape:** ``(num_maps, num_points)``.
        """
        values = values.detach().contiguous()
        inside = torch.minimum(torch.maximum(values, self.values[:, :1]), self.values[:, -1:])
        cell = torch.searchsorted(self.values.contiguous(), inside.contiguous(), right=True) - 1
        cell = cell.clamp(0, self.values.shape[1] - 2)
        low, high = torch.zeros_like(values), torch.ones_like(values)
        for _ in range(_HALVINGS):
            middle = 0.5 * (low + high)
            is_below = self._cubic(cell, middle)[0] < inside
            low, high = torch.where(is_below, middle, low), torch.where(is_below, high, middle)
        scores = self.places[cell] + 0.5 * (low + high) * self._step()
        tail = torch.where(values > inside, self.slopes[:, -1:], self.slopes[:, :1])
        return scores + (values - inside) / tail.clamp(min=torch.finfo(values.dtype).tiny)

    def _step(self) -> Tensor:
        return self.places[1] - self.places[0]

    def _cells(self, scores: Tensor) -> Tensor:
        cell = ((scores.detach() - self.places[0]) / self._step()).long()
        return cell.clamp(0, len(self.places) - 2)

    def _cubic(self, cell: Tensor, part: Tensor) -> tuple[Tensor, Tensor]:
        """Values and slopes in cells, at parts of their length."""
        step = self._step()
        left, right = self.values.gather(1, cell), self.values.gather(1, cell + 1)
        first = self.slopes.gather(1, cell) * step
        last = self.slopes.gather(1, cell + 1) * step
        rise = right - left
        quadratic, cubic = 3.0 * rise - 2.0 * first - last, first + last - 2.0 * rise
        value = left + part * (first + part * (quadratic + part * cubic))
        slope = first + part * (2.0 * quadratic + 3.0 * part * cubic)
        return value, slope / step
