"""Effective sample sizes and R-hat of the sites of a run, and their table."""

import math
from collections.abc import Mapping
from itertools import product

from pyro.infer.mcmc.util import summary
from pyro.ops import stats
from torch import Tensor

__all__ = ["effective_sample_size", "print_summary", "site_diagnostics"]


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
        name: {"n_eff": effective_sample_size(draws), "r_hat": stats.split_gelman_rubin(draws)}
        for name, draws in samples.items()
    }


def print_summary(samples: Mapping[str, Tensor], prob: float) -> None:
    """Print a table as Pyro does, with effective sample sizes that are positive.

    Shapes: samples (num_chains, num_draws, *event) each.
    """
    rows: dict[str, dict[str, float]] = {}
    for name, columns in summary(dict(samples), prob).items():
        columns["n_eff"] = effective_sample_size(samples[name])
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
