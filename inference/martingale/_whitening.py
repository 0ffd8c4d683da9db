"""Searches of many similar minima, in coordinates in which their mean has unit curvature."""

from typing import NamedTuple

import torch
from torch import Tensor

from pyro_ext.inference.optimization import Minimizer, Minimum, Objective
from pyro_ext.posterior.modes import gradient_differences, whitening_factor

__all__ = ["Center", "Whitening", "center_of", "whitening_at"]

_MOST_WHITENED = 256


class Whitening(NamedTuple):
    """An affine map from coordinates ``z`` to ``center + z @ factor``.

    :param Tensor center: where ``z`` is zero. **Shape:** ``(size,)``.
    :param Tensor factor: **Shape:** ``(size, size)``.
    """

    center: Tensor
    factor: Tensor

    def position(self, coordinates: Tensor) -> Tensor:
        """Positions of coordinates. **Shape:** ``(rows, size)`` both."""
        return self.center + coordinates @ self.factor

    def objective(self, objective: Objective) -> Objective:
        """An objective as a function of the coordinates."""

        def whitened(coordinates: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
            value, gradient = objective(self.position(coordinates), rows)
            return value, gradient @ self.factor.mT

        return whitened


def whitening_at(objective: Objective, center: Tensor) -> Whitening | None:
    """Coordinates in which an objective has unit curvature at a point, up to sign.

    :param objective: maps positions and the numbers of their problems, of which there is one, to
        values and gradients.
    :param Tensor center: the point. **Shape:** ``(size,)``.
    :returns: the map, ``None`` where the curvature is not finite.
    """
    size = len(center)
    step = torch.finfo(center.dtype).eps ** (1.0 / 3.0) * (1.0 + center.abs())
    rows = torch.zeros(2 * size, dtype=torch.int64, device=center.device)
    curvature = gradient_differences(lambda points: objective(points, rows)[1], center, step)
    if not bool(curvature.isfinite().all()):
        return None
    if not bool((curvature != 0).any()):
        return None
    # What a central difference of this step leaves as its relative error.
    resolution = torch.finfo(center.dtype).eps ** (2.0 / 3.0)
    return Whitening(center, whitening_factor(curvature, resolution).mT)


class Center(NamedTuple):
    """A minimum near which others are searched.

    :param Tensor position: **Shape:** ``(size,)``.
    :param Whitening whitening: the coordinates of the searches, where there are any.
    """

    position: Tensor
    whitening: Whitening | None

    def search(self, optimizer: Minimizer, objective: Objective, number: int) -> Minimum:
        """Search the minima of some problems, all from here.

        :param Minimizer optimizer: does it.
        :param objective: of the problems.
        :param int number: of the problems.
        :returns: with gradients in the coordinates of the search.
        """
        if self.whitening is None:
            return optimizer.minimize(objective, self.position.expand(number, -1))
        origin = torch.zeros_like(self.position).expand(number, -1)
        found = optimizer.minimize(self.whitening.objective(objective), origin)
        return found._replace(position=self.whitening.position(found.position))


def center_of(optimizer: Minimizer, objective: Objective, start: Tensor) -> Center:
    """The minimum of a mean objective, or the start where its search meets no finite number.

    :param Minimizer optimizer: searches it.
    :param objective: of a single problem.
    :param Tensor start: **Shape:** ``(size,)``.
    :returns: the place, with coordinates where the optimizer uses curvature and their number is
        moderate.
    """
    found = optimizer.minimize(objective, start[None])
    position = found.position[0]
    if not bool(found.value.isfinite() & position.isfinite().all()):
        position = start
    if optimizer.takes_minibatches or len(start) > _MOST_WHITENED:
        return Center(position, None)
    return Center(position, whitening_at(objective, position))
