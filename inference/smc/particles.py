"""Weights of particles: the arithmetic that every sequential Monte Carlo sampler here shares."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_ext._lib import checks

_ROUNDING = 1e-6  # weights that are equal but for rounding are left as they are


class Particles(NamedTuple):
    """Weights of the particles of several independent runs.

    :ivar Tensor log_weights: normalized in each run. **Shape:** ``(*runs, num_particles)``.
    :ivar Tensor log_Z: logarithm of the estimated normalizing constant so far. **Shape:**
        ``(*runs)``.
    """

    log_weights: Tensor
    log_Z: Tensor

    @property
    def proper_log_weights(self) -> Tensor:
        """Weights whose mean in each run is the estimate of the normalizing constant."""
        num_particles = self.log_weights.shape[-1]
        return self.log_weights + (self.log_Z + math.log(num_particles))[..., None]


def initial_particles(num_runs: int, num_particles: int, like: Tensor) -> Particles:
    """Equal weights."""
    log_weight = -math.log(num_particles)
    return Particles(like.new_full((num_runs, num_particles), log_weight), like.new_zeros(num_runs))


def check_twist(twist: object, num_particles: int) -> None:
    """Check what a twist has returned."""
    if not isinstance(twist, Tensor) or twist.shape != (num_particles,):
        raise ValueError(
            f"twist must return a tensor of the shape ({num_particles},), got {checks.shown(twist)}"
        )


def reweight(particles: Particles, increments: Tensor) -> Particles:
    r"""Multiply weights, and the estimate of the normalizing constant by their new sum.

    A run all of whose particles have weight zero goes on with equal weights and an estimate of
    zero.

    :param Particles particles: weights before.
    :param Tensor increments: logarithms of the factors. **Shape:** ``(*runs, num_particles)``.

    Example::

        >>> before = initial_particles(1, 2, torch.zeros(()))
        >>> after = reweight(before, torch.tensor([[3.0, 1.0]]).log())
        >>> after.log_weights.exp()
        tensor([[0.7500, 0.2500]])
        >>> round(float(after.log_Z.exp()), 4)
        2.0
    """
    total = particles.log_weights + increments
    gain = total.logsumexp(-1)
    is_lost = gain == -math.inf
    equal = torch.full_like(total, -math.log(total.shape[-1]))
    log_weights = torch.where(is_lost[..., None], equal, total - gain[..., None])
    return Particles(log_weights, particles.log_Z + gain)


def effective_sample_size(log_weights: Tensor) -> Tensor:
    r"""Effective sample size :math:`(\sum_k w_k)^2 / \sum_k w_k^2` of weights.

    :param Tensor log_weights: logarithms of the weights, up to a constant. **Shape:**
        ``(*batch, num_particles)``.
    :returns: **Shape:** ``(*batch)``; 0 if all weights are zero.

    Example::

        >>> effective_sample_size(torch.tensor([1.0, 1.0, 2.0]).log())
        tensor(2.6667)
    """
    log_weights = checks.as_tensor("log_weights", log_weights, "(*batch, num_particles)")
    scaled = log_weights - log_weights.amax(-1, keepdim=True).clamp(min=-1e30)
    weights = scaled.exp()
    total = weights.sum(-1)
    return torch.where(total > 0, total.square() / weights.square().sum(-1), total)


def resample(
    particles: Particles, uniforms: Tensor, ess_threshold: float = 1.0, *, keep_first: bool = False
) -> tuple[Tensor, Particles]:
    """Draw ancestors in proportion to the weights, in the runs where these are uneven.

    :param Particles particles: the weights.
    :param Tensor uniforms: random numbers between 0 and 1. **Shape:** ``(*runs, num_particles)``.
    :param float ess_threshold: a run is resampled where its effective sample size is below this
        fraction of the number of particles.
    :param bool keep_first: whether the first particle has itself as its ancestor, as in
        conditional sequential Monte Carlo.
    :returns: index of the ancestor of each particle within its run, and the weights after.

    Example::

        >>> weights = torch.tensor([[1e-9, 1.0]]).log()
        >>> index, after = resample(Particles(weights, torch.zeros(1)), torch.rand(1, 2))
        >>> index, after.log_weights.exp()
        (tensor([[1, 1]]), tensor([[0.5000, 0.5000]]))
    """
    log_weights = particles.log_weights
    num_particles = log_weights.shape[-1]
    own = torch.arange(num_particles, device=log_weights.device).expand_as(log_weights)
    size = effective_sample_size(log_weights)
    is_uneven = size < ess_threshold * num_particles * (1.0 - _ROUNDING)
    if not bool(is_uneven.any()):
        return own, particles
    drawn = draw_index(log_weights, uniforms)
    if keep_first:
        drawn[..., 0] = 0
    index = torch.where(is_uneven[..., None], drawn, own)
    equal = torch.full_like(log_weights, -math.log(num_particles))
    after = torch.where(is_uneven[..., None], equal, log_weights)
    return index, Particles(after, particles.log_Z)


def check_weights(log_weights: Tensor) -> None:
    """Check that each run has a particle to draw, before it draws what has no probability."""
    is_lost = (log_weights == -math.inf).all(-1)
    if bool(is_lost.any()):
        raise ValueError(
            "log_weights must have a particle with a positive weight to draw from, got "
            f"{int(is_lost.sum())} of {is_lost.numel()} runs with none: use more particles, or "
            "proposals that lead to where the target is positive"
        )


def draw_index(log_weights: Tensor, uniforms: Tensor) -> Tensor:
    """Draw categories by inversion: one for each uniform number of a row."""
    # In double precision, so that rounding does not favor what comes late in a large vocabulary.
    cumulative = log_weights.double().softmax(-1).cumsum(-1)
    target = uniforms.double() * cumulative[..., -1:]
    index = torch.searchsorted(cumulative, target.contiguous(), right=True)
    return index.clamp(max=log_weights.shape[-1] - 1)
