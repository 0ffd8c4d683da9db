"""Effective sample sizes and R-hat of the sites of a run, and their table."""

import importlib
import math
import warnings
from collections.abc import Mapping
from itertools import product
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from pyro.infer.mcmc.util import summary
from pyro.ops import stats
from torch import Tensor

__all__ = [
    "ConvergenceWarning",
    "RankDiagnostics",
    "clusters_name",
    "effective_sample_size",
    "energy_fractions",
    "is_constant",
    "num_clusters",
    "print_summary",
    "rank_diagnostics",
    "site_diagnostics",
]

_ROUNDING = 16.0


class ConvergenceWarning(UserWarning):
    """What a run says at its end of draws that may not be those of the posterior.

    Short runs on purpose filter it; where draws are relied on it can be made an error.

    Example::

        >>> import warnings
        >>> warnings.filterwarnings("error", category=ConvergenceWarning)
    """


class RankDiagnostics(NamedTuple):
    """What the draws of one number are worth.

    :param float r_hat: rank-normalized split R-hat.
    :param float bulk: effective sample size for the middle of the distribution.
    :param float tail: the smaller one of those for its quantiles at 5 and 95 percent.
    """

    r_hat: float
    bulk: float
    tail: float


def rank_diagnostics(draws: Tensor) -> RankDiagnostics:
    """Rank-normalized split R-hat and effective sample sizes [1] of one number, as ArviZ has them.

    Shapes: draws (num_chains, num_draws), not all of them the same.

    [1] A. Vehtari, A. Gelman, D. Simpson, B. Carpenter, P.-C. Buerkner (2021),
    Rank-normalization, folding, and localization: an improved R-hat.
    """
    arviz, values = _arviz(), _values(draws)
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of chains that stand still
        r_hat = float(arviz.rhat(values))
        bulk = float(arviz.ess(values, method="bulk"))
        tail = float(arviz.ess(values, method="tail", prob=(0.05, 0.95)))
    return RankDiagnostics(math.inf if math.isnan(r_hat) else r_hat, bulk, tail)


def energy_fractions(energies: Tensor) -> npt.NDArray[np.float64]:
    """Bayesian fraction of missing information of each chain, as ArviZ has it.

    Shapes: energies (num_chains, num_draws); returns (num_chains,).
    """
    fractions: npt.NDArray[np.float64] = np.atleast_1d(_arviz().bfmi(_values(energies)))
    return fractions


def is_constant(draws: Tensor) -> Tensor:
    """Which elements do not change but for rounding, so that they have no R-hat.

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
    """What the number of clusters of a site of labels is called in tables."""
    return f"clusters of {site}"


def _arviz() -> Any:
    """ArviZ, of which the import alone warns."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return importlib.import_module("arviz")


def _values(draws: Tensor) -> npt.NDArray[np.float64]:
    values: npt.NDArray[np.float64] = draws.detach().double().cpu().numpy()
    return values


def effective_sample_size(draws: Tensor) -> Tensor:
    r"""Effective sample size, positive, of draws of any number of chains.

    The usual estimate divides the number of draws :math:`S` by an autocorrelation time. Where draws
    alternate around their mean, as those of steps that are too large do, that time comes out near
    zero or below it. As in Stan it is then taken as :math:`1 / \log_{10} S`.

    :param Tensor draws: **Shape:** ``(num_chains, num_draws, *event)``, at least four draws.
    :returns: NaN for values that do not change. **Shape:** ``(*event)``.
    """
    number = draws.shape[0] * draws.shape[1]
    most = number * max(1.0, math.log10(number))
    size: Tensor = stats.effective_sample_size(draws)
    return size.where((size > 0) | size.isnan(), most).clamp(max=most)


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
