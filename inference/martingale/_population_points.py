"""Points that stand for populations which are laws."""

from typing import Any

import torch

from pyro_ext.inference.martingale.weighted_sample import WeightedSample

__all__ = ["points_of"]


def points_of(population: Any, num_points: int) -> WeightedSample:
    """A weighted sample for each population: itself, its own choice of points, or quantiles.

    :param population: a weighted sample; a law with ``weighted_points``, as that of vectors by the
        copula recursion has; or another law of numbers with ``icdf``, one for each draw.
    :param int num_points: how many points stand for a law.
    :raises TypeError: for a population of another kind.
    """
    if isinstance(population, WeightedSample):
        return population
    event_shape = tuple(getattr(population, "event_shape", ()))
    if event_shape and hasattr(population, "weighted_points"):
        found: WeightedSample = population.weighted_points(num_points)
        return found
    batch_shape = tuple(getattr(population, "batch_shape", ()))
    if event_shape or len(batch_shape) != 1 or not hasattr(population, "icdf"):
        raise TypeError(
            "population must be a WeightedSample, or a law of numbers with icdf and the batch "
            f"shape (num_draws,), got {type(population).__name__} of batch shape {batch_shape} and "
            f"event shape {event_shape}"
        )
    device = population.icdf(torch.tensor(0.5)).device
    levels = (torch.arange(num_points, device=device) + 0.5) / num_points
    values = population.icdf(levels[:, None].expand(-1, *batch_shape)).mT.contiguous()
    weights = torch.full_like(values, 1.0 / num_points)
    return WeightedSample((values,), weights, is_shared=False)
