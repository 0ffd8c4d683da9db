"""Exact predictions of the prior of scaling curves, by importance sampling."""

from unittest import mock

import torch
from torch import Tensor
from torch.special import log_ndtr

from pyro_ext.models.scaling_laws import FAMILIES, prior, sample_scaling_curves


def exact_log_prob(
    x: Tensor, y: Tensor, num_context: int, num_curves: int
) -> tuple[Tensor, Tensor]:
    """Log densities of the last values of curves, given the first ones.

    Curves without noise are drawn from the prior before any is rejected. Their weights are the
    likelihood of the first values, over a grid of standard deviations of the noise, and the
    probability that the values to come are allowed.

    :param Tensor x: sizes, which all curves share. **Shape:** ``(n,)``.
    :param Tensor y: values. **Shape:** ``(num_rows, n)``.
    :param int num_context: number of values that are given.
    :param int num_curves: number of curves to draw.
    :returns: log densities, **Shape:** ``(num_rows, n - num_context)``, and effective numbers of
        curves, which are low where there is little noise, ``(num_rows,)``.
    """
    curves, rises = _without_noise(x, num_context, num_curves)
    found = []
    for row in y:
        distance = (curves[:, :num_context] - row[:num_context]).square().sum(-1)
        near = distance.topk(num_curves // 20, largest=False).indices  # others weigh nothing
        found.append(_predicted(curves[near], rises[near], row, num_context))
    log_probs, sizes = zip(*found, strict=True)
    return torch.stack(log_probs), torch.stack(sizes)


def _without_noise(x: Tensor, num_context: int, num_curves: int) -> tuple[Tensor, Tensor]:
    """Curves of all families, and whether they rise."""
    counts = [round(num_curves * prob) for prob in prior._PROBS]
    with (
        mock.patch.object(prior, "_NOISE_LOC", -60.0),
        mock.patch.object(prior, "is_allowed", lambda y, rises: rises.new_ones(len(y))),
    ):
        curves = [
            sample_scaling_curves(x.expand(count, -1), family, num_context=num_context, seed=seed)
            for seed, (count, family) in enumerate(zip(counts, FAMILIES, strict=True))
        ]
    rises = torch.repeat_interleave(torch.tensor([False, False, True]), torch.tensor(counts))
    return torch.cat(curves), rises


def _predicted(curves: Tensor, rises: Tensor, y: Tensor, num_context: int) -> tuple[Tensor, Tensor]:
    """Log densities of the last values of one row, and the effective number of curves."""
    z = torch.linspace(-3.5, 3.5, 29)
    noise = (prior._NOISE_LOC + prior._NOISE_SCALE * z).exp()
    future = curves[:, num_context:, None]
    rss = (curves[:, :num_context] - y[:num_context]).square().sum(-1, keepdim=True)
    weight = -0.5 * z.square() - num_context * noise.log() - 0.5 * rss / noise.square()
    allowed = log_ndtr(future / noise)
    allowed = allowed + torch.where(rises[:, None, None], log_ndtr((y[0] - future) / noise), 0.0)
    weight = weight + allowed.sum(1)
    normal = torch.distributions.Normal(future, noise)
    density = normal.log_prob(y[num_context:, None]) - allowed + weight[:, None]
    log_prob = density.transpose(0, 1).flatten(1).logsumexp(-1) - weight.logsumexp((0, 1))
    return log_prob, 1.0 / weight.logsumexp(-1).softmax(0).square().sum()
