"""Effective sample sizes and R-hat of the sites of a run, and their table."""

import math
from collections.abc import Mapping
from itertools import product
from typing import NamedTuple

import torch
from pyro.infer.mcmc.util import summary
from pyro.ops import stats
from torch import Tensor
from torch.nn.functional import pad

_ROUNDING = 16.0
_MOST_CORRELATION_BY_CHANCE = 4.0  # in standard errors of its Fisher transform
_MOST_SHIFT_BY_CHANCE = 6.0  # in standard errors, of few degrees of freedom
_FARTHEST_BY_CHANCE = 5.0  # median of both halves of a chain, in standard deviations over chains


class ConvergenceWarning(UserWarning):
    """Warning at the end of a run that its draws may not represent the posterior.

    Filter it for runs that are short on purpose. To rely on the draws, turn it into an error.

    Example::

        >>> import warnings
        >>> warnings.filterwarnings("error", category=ConvergenceWarning)
    """


class RankDiagnostics(NamedTuple):
    """Diagnostics of the draws of each element. **Shape:** ``(*event)`` each.

    :param Tensor r_hat: rank-normalized split R-hat.
    :param Tensor bulk: effective sample size for the middle of the distribution.
    :param Tensor tail: the smaller of the effective sample sizes for the 5% and 95% quantiles.
    """

    r_hat: Tensor
    bulk: Tensor
    tail: Tensor


def rank_diagnostics(draws: Tensor) -> RankDiagnostics:
    """Rank-normalized split R-hat and effective sample sizes [1] of elements that change.

    They equal those of ArviZ, whose import alone takes several seconds.

    Shapes: draws (num_chains, num_draws, *event).

    [1] A. Vehtari, A. Gelman, D. Simpson, B. Carpenter, P.-C. Buerkner (2021),
    Rank-normalization, folding, and localization: an improved R-hat.
    """
    draws = draws.detach().double()
    half = draws.shape[1] // 2
    halves = torch.cat([draws[:, :half], draws[:, -half:]])
    median = halves.flatten(0, 1).quantile(0.5, 0)
    scores = _normal_scores(halves)
    r_hats = [_r_hat(scores), _r_hat(_normal_scores((halves - median).abs()))]
    ends = draws.flatten(0, 1).quantile(draws.new_tensor([0.05, 0.95]), 0)
    tails = [effective_sample_size((halves <= end).double()) for end in ends]
    # An indicator that never changes is of a tail that no draw has left.
    tail = torch.stack([size.nan_to_num(nan=torch.inf) for size in tails]).amin(0)
    return RankDiagnostics(
        torch.stack(r_hats).amax(0).nan_to_num(nan=torch.inf), effective_sample_size(scores), tail
    )


def lasting_r_hat(draws: Tensor) -> Tensor:
    r"""Rank-normalized R-hat of what lasts, for 16 chains or more, however short they are.

    Means of chains of :math:`n` draws differ by :math:`\tau / n` in units of the variance, for an
    autocorrelation time :math:`\tau`, so that R-hat of short chains is above 1.01 however many
    there are and however well they mix. Here differences between chains count only if the means of
    first halves are correlated with those of second halves, or both halves of a chain lie apart
    from those of the others, and a shift from first to second halves counts only if it is beyond
    chance.

    Shapes: draws (num_chains, num_draws, *event); returns (*event).
    """
    draws = draws.detach().double()
    half = draws.shape[1] // 2
    halves = torch.cat([draws[:, :half], draws[:, -half:]])
    median = halves.flatten(0, 1).quantile(0.5, 0)
    values = (halves, (halves - median).abs())
    scores = [_normal_scores(each) for each in values]
    lasting = torch.stack([_lasting(each, len(draws)) for each in scores]).amax(0)
    whole = torch.stack([_r_hat(each) for each in scores]).amax(0)
    is_apart = _is_apart(halves, len(draws))
    return torch.where(is_apart, torch.maximum(whole, lasting), lasting).nan_to_num(nan=torch.inf)


def _is_apart(halves: Tensor, number: int) -> Tensor:
    """Tell which elements have a chain with both halves far from those of the other chains."""
    medians = halves.quantile(0.5, 1)
    centered = medians - medians.quantile(0.5, 0)
    deviation = torch.maximum(
        1.4826 * centered.abs().quantile(0.5, 0),
        (halves.var(1).quantile(0.5, 0) / halves.shape[1]).sqrt(),
    )
    far = (centered / deviation).split(number)
    return (torch.minimum(far[0] * far[1].sign(), far[1].abs()) > _FARTHEST_BY_CHANCE).any(0)


def _lasting(scores: Tensor, number: int) -> Tensor:
    """R-hat of the scores of all first halves, and after them of all second halves."""
    first, second = (part - part.mean(0) for part in scores.mean(1).split(number))
    shift = scores[number:].mean((0, 1)) - scores[:number].mean((0, 1))
    covariance = (first * second).sum(0) / (number - 1)
    correlation = (covariance / (first.var(0) * second.var(0)).sqrt()).clamp(max=1.0)
    is_lasting = correlation.atanh() * math.sqrt(number - 3) > _MOST_CORRELATION_BY_CHANCE
    is_shift = shift.abs() > _MOST_SHIFT_BY_CHANCE * ((second - first).var(0) / number).sqrt()
    lasting = torch.where(is_lasting, covariance, 0.0) + torch.where(is_shift, shift**2 / 2.0, 0.0)
    r_hat: Tensor = (1.0 + lasting / scores.var(1).mean(0)).sqrt()
    return r_hat


def _normal_scores(draws: Tensor) -> Tensor:
    """Quantiles of the normal distribution at the ranks of all draws of an element."""
    rows = draws.flatten(0, 1).flatten(1).mT.contiguous() if draws.dim() > 2 else draws.flatten()
    ordered, order = rows.sort(-1)
    number = rows.shape[-1]
    places, is_new = torch.arange(number, device=rows.device), ordered.diff(dim=-1) != 0
    # Equal draws have the mean of the first and the last of their places.
    first = torch.where(pad(is_new, (1, 0), value=True), places, 0).cummax(-1).values
    last = torch.where(pad(is_new, (0, 1), value=True), places, number - 1)
    last = last.flip(-1).cummin(-1).values.flip(-1)
    ranks = 1.0 + 0.5 * (first + last).to(draws.dtype)
    scores = torch.special.ndtri((ranks - 0.375) / (number + 0.25))
    scores = torch.empty_like(scores).scatter_(-1, order, scores)
    result: Tensor = (scores.mT if draws.dim() > 2 else scores).reshape(draws.shape)
    return result


def _r_hat(draws: Tensor) -> Tensor:
    """R-hat of chains as they are, not a number where none of them moves."""
    number = draws.shape[1]
    r_hat: Tensor = (draws.mean(1).var(0) / draws.var(1).mean(0) + (number - 1) / number).sqrt()
    return r_hat


def energy_fractions(energies: Tensor) -> Tensor:
    """Bayesian fraction of missing information of each chain.

    Shapes: energies (num_chains, num_draws); returns (num_chains,).
    """
    energies = energies.double()
    fractions: Tensor = energies.diff(dim=1).square().mean(1) / energies.var(1)
    return fractions


def is_constant(draws: Tensor) -> Tensor:
    """Return a mask of the elements that are constant up to rounding, so that they have no R-hat.

    Shapes: draws (num_chains, num_draws, *event); returns (*event).
    """
    flat = draws.flatten(0, 1)
    noise = _ROUNDING * torch.finfo(draws.dtype).eps * flat.abs().amax(0)
    constant: Tensor = flat.amax(0) - flat.amin(0) <= noise
    return constant


def num_clusters(labels: Tensor) -> Tensor:
    """Number of clusters of partitions. **Shape:** ``(*batch, n)`` to ``(*batch)``."""
    ordered = labels.sort(-1).values
    changes = (ordered.diff(dim=-1) != 0).sum(-1)
    return 1.0 + changes.to(torch.get_default_dtype())


def clusters_name(site: str) -> str:
    """Return the name in tables for the number of clusters of a site of labels."""
    return f"clusters of {site}"


def effective_sample_size(draws: Tensor) -> Tensor:
    r"""Return the effective sample size of draws of any number of chains, positive, as in ArviZ.

    The estimate divides the number of draws :math:`S` by an autocorrelation time. If draws
    alternate around their mean, as with steps that are too large, the estimate of that time is near
    zero or negative. As in Stan, :math:`1 / \log_{10} S` then replaces it.

    :param Tensor draws: at least four draws. **Shape:** ``(num_chains, num_draws, *event)``.
    :returns: NaN for values that do not change. **Shape:** ``(*event)``.
    """
    num_chains, length = draws.shape[:2]
    draws = draws.double()
    means = draws.mean(1)
    waves = torch.fft.rfft(draws - means.unsqueeze(1), 2 * length, dim=1)
    covariances = torch.fft.irfft(waves.abs().square(), 2 * length, dim=1)[:, :length].mean(0)
    covariances = covariances / length
    within = covariances[0] * length / (length - 1.0)
    whole = covariances[0] + (means.var(0) if num_chains > 1 else 0.0)
    correlations = 1.0 - (within - covariances) / whole
    correlations[0] = torch.where(whole > 0.0, 1.0, torch.nan)
    even, odd = correlations[: length - length % 2].unflatten(0, (-1, 2)).unbind(1)
    pairs = even + odd  # positive and falling for the chains of reversible kernels
    is_first = (pairs > 0.0).to(draws.dtype).cumprod(0)
    falling = pairs.cummin(0).values
    first_left = (is_first.sum(0).long()).clamp(max=len(even) - 1)
    rest = even.gather(0, first_left[None])[0].clamp(min=0.0)
    rest = torch.where(is_first.sum(0) < len(even), rest, 0.0)
    time = -1.0 + 2.0 * (is_first * falling).sum(0) + rest
    number = num_chains * length
    size: Tensor = number / time.clamp(min=1.0 / max(1.0, math.log10(number)))
    return size


def site_diagnostics(samples: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Effective sample size ``n_eff`` and split R-hat ``r_hat`` of each site.

    Shapes: samples (num_chains, num_draws, *event) each.
    """
    return {
        name: {"n_eff": effective_sample_size(draws), "r_hat": _split_r_hat(draws)}
        for name, draws in samples.items()
    }


def _split_r_hat(draws: Tensor) -> Tensor:
    """Split R-hat, not a number for what does not change. **Shape:** ``(*event)``."""
    r_hat: Tensor = stats.split_gelman_rubin(draws)
    return r_hat.masked_fill(is_constant(draws), torch.nan)


def print_summary(samples: Mapping[str, Tensor], prob: float) -> None:
    """Print a table as Pyro does, with effective sample sizes that are positive.

    Shapes: samples (num_chains, num_draws, *event) each.
    """
    rows: dict[str, dict[str, float]] = {}
    for name, columns in summary(dict(samples), prob).items():
        columns["n_eff"] = effective_sample_size(samples[name])
        columns["r_hat"] = _split_r_hat(samples[name])
        for index in product(*map(range, columns["mean"].shape)):
            label = f"{name}[{','.join(map(str, index))}]" if index else name
            rows[label] = {column: float(value[index]) for column, value in columns.items()}
    if not rows:
        return
    width = max(10, *map(len, rows))
    print("\n" + " " * width + "".join(f" {column:>9}" for column in next(iter(rows.values()))))
    for label, values in rows.items():
        print(f"{label:>{width}}" + "".join(f" {value:>9.2f}" for value in values.values()))
    print()
