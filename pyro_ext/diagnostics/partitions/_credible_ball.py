"""How far a posterior over partitions spreads."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_ext._checks import check_number
from pyro_ext.diagnostics.partitions._labels import Labels, check_draws, check_partition
from pyro_ext.diagnostics.partitions._losses import Loss, check_loss, distances_to

__all__ = ["CredibleBall", "credible_ball"]

_ROUNDING = 1e-9


class CredibleBall(NamedTuple):
    """The smallest ball around a partition that holds a share of the posterior, and its bounds.

    Each bound is all the different partitions for which it is attained, in the order of first
    occurrence. **Shape:** ``(num_partitions, n)``.

    :param float radius: of the ball.
    :param float probability: share of the draws in it, the level or more.
    :param Tensor vertical_upper: of the draws in the ball with the fewest clusters, the most
        distant from the center.
    :param Tensor vertical_lower: of those with the most clusters, the most distant.
    :param Tensor horizontal: of all of them, the most distant.
    """

    radius: float
    probability: float
    vertical_upper: Tensor
    vertical_lower: Tensor
    horizontal: Tensor


def credible_ball(
    labels: Labels,
    center: Labels,
    level: float = 0.95,
    loss: Loss = "variation_of_information",
) -> CredibleBall:
    """Find the smallest ball around a partition that holds a share of the posterior [1].

    :param labels: draws of labels. **Shape:** ``(num_draws, n)`` or
        ``(num_chains, num_draws, n)``.
    :param center: a partition, such as :func:`point_estimate` finds. **Shape:** ``(n,)``.
    :param float level: the share, above 0 and at most 1.
    :param str loss: the distance, ``"variation_of_information"`` or ``"binder"``.
    :returns: the radius and the bounds.
    :raises TypeError: where labels are no integers.
    :raises ValueError: names the argument, what it got and what it wants.

    [1] S. Wade, Z. Ghahramani (2018), *Bayesian cluster analysis: point estimation and credible
    balls*, Bayesian Analysis 13, 559-626.

    Example::

        >>> draws = torch.tensor([[0, 0, 1, 1], [0, 0, 1, 1], [0, 0, 0, 0], [0, 1, 2, 3]])
        >>> ball = credible_ball(draws, draws[0], level=0.9, loss="binder")
        >>> ball.radius, ball.vertical_upper.tolist(), ball.vertical_lower.tolist()
        (0.5, [[0, 0, 0, 0]], [[0, 1, 2, 3]])
    """
    check_loss(loss)
    level = check_number("level", level, above=0.0, most=1.0)
    draws = check_draws("labels", labels).flatten(0, -2)
    middle = check_partition("center", center, draws.shape[-1])
    distances = torch.from_numpy(distances_to(middle.numpy(), draws.numpy(), loss))
    # Rounding up 0.07 * 100 would give 8.
    num_inside = max(math.ceil(level * len(draws) - _ROUNDING), 1)
    radius = float(distances.kthvalue(num_inside).values)
    is_inside = distances <= radius + _ROUNDING
    inside, distances = draws[is_inside], distances[is_inside]
    numbers = inside.amax(-1)
    fewest, most = numbers == numbers.min(), numbers == numbers.max()
    return CredibleBall(
        radius,
        float(is_inside.double().mean()),
        _most_distant(inside[fewest], distances[fewest]),
        _most_distant(inside[most], distances[most]),
        _most_distant(inside, distances),
    )


def _most_distant(draws: Tensor, distances: Tensor) -> Tensor:
    different: Tensor = draws[distances >= distances.max() - _ROUNDING].unique(dim=0)
    return different
