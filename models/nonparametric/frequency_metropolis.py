r"""Metropolis within Gibbs for sizes of clusters, and where it starts.

Numbers in brackets are those of the papers in the docstring of the package.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from pyro.infer import HMC
from torch import Tensor

from pyro_ext._lib import checks
from pyro_ext.inference import Gibbs, RandomWalk
from pyro_ext.models.nonparametric.frequency_model import FrequencyModel
from pyro_ext.random import seeded
from pyro_ext.random_measures import (
    BetaPrimeProcess,
    CompletelyRandomMeasure,
    GeneralizedBFRYProcess,
    NormalizedRandomMeasure,
    rank_sizes,
)
from pyro_ext.random_measures.cluster_counts import as_table

_TILTS = "cluster_tilts"
_FIRST_RANK, _LAST_RANK = 100, 200
_LEAST_DISCOUNT, _LEAST_EXCESS = 0.01, 0.1
_MASS = 1_000.0
_PARETO_SCALE = 10.0
_LOG_TILTS = (-60.0, 60.0)


def metropolis_within_gibbs(
    model: Callable[..., Any],
    sites: Sequence[str],
    *,
    scale: float = 0.01,
    step_size: float = 0.05,
    num_steps: int = 30,
) -> Gibbs:
    r"""Kernel of [2]: a step of HMC for the tilts of all clusters, then random walks.

    A random walk moves one hyperparameter or the auxiliary variable at a time. Where the model has
    no tilts of clusters, there is no step of HMC. In [2] the variables are the same but for the
    auxiliary one, whose prior there counts twice.

    It is there for comparison: its draws are strongly correlated. Those of
    :class:`~pyro_ext.inference.IndependenceMetropolis` for
    :meth:`~pyro_ext.models.nonparametric.FrequencyModel.with_scaled_tilt` take much less time.

    :param model: a method of a :class:`~pyro_ext.models.nonparametric.FrequencyModel`,
        ``with_cluster_tilts`` or ``with_tilt``.
    :param sites: names of all of its sites.
    :param float scale: standard deviation of the random walks. That of [2], the default, is for
        thousands of clusters.
    :param float step_size: of the leapfrog steps.
    :param int num_steps: how many of them.
    :returns: the kernel, for :class:`~pyro_ext.inference.MCMC`, which needs initial parameters.

    Example::

        >>> from pyro_ext.inference import MCMC
        >>> from pyro_ext.models.nonparametric import FrequencyModel, beta_prime_prior
        >>> model = FrequencyModel(beta_prime_prior())
        >>> table = torch.tensor([[1, 3], [2, 1], [9, 1]])
        >>> start = initial_parameters(model, table, seed=0)
        >>> kernel = metropolis_within_gibbs(model.with_cluster_tilts, list(start), scale=0.3)
        >>> mcmc = MCMC(kernel, 4, initial_params=start, progress=False, seed=0)
        >>> mcmc.run(table).get_samples()["excess"].shape
        torch.Size([4])
    """
    checks.function("model", model, "a method of a FrequencyModel")
    sites = checks.sequence("sites", sites, "a list of names of sites", 1, str)
    checks.integer("num_steps", num_steps, 1)
    checks.number("step_size", step_size, above=0)
    blocks: list[tuple[Any, Sequence[str]]] = []
    if _TILTS in sites:
        steps = {"step_size": step_size, "num_steps": num_steps, "adapt_step_size": False}
        blocks.append((HMC(model, **steps, adapt_mass_matrix=False), [_TILTS]))
    walks = [name for name in sites if name != _TILTS]
    return Gibbs([*blocks, (RandomWalk(scale), walks)], model=model)


def initial_parameters(
    model: FrequencyModel,
    table: Tensor,
    *,
    cluster_tilts: bool = True,
    num_chains: int = 1,
    seed: int | None = None,
) -> dict[str, Tensor]:
    r"""Where chains start in [2], by simple estimates of both indices.

    The discount :math:`\sigma` is the fraction of clusters of size one. The index at infinity
    :math:`\tau = \sigma + \text{excess}` is minus the inverse slope of the least-squares line of
    log sizes over log ranks, over the ranks 100 to 200, or the first half of the ranks where there
    are fewer clusters. Masses and concentrations are drawn around 1,000, tilts of clusters from
    transformed standard normal variables. Where [2] draws the auxiliary variable given a simulated
    total mass, here it is where as many clusters are expected as there are.

    :param FrequencyModel model: with a prior of this package.
    :param Tensor table: sizes and numbers of clusters. **Shape:** ``(num_rows, 2)``.
    :param bool cluster_tilts: whether to start tilts of clusters, for ``with_cluster_tilts``, where
        the measure has them.
    :param int num_chains: how many chains.
    :param int seed: of the draws; by default PyTorch's generator goes on.
    :returns: values by name of the site. **Shape:** ``(num_chains,)``, and of the tilts of clusters
        ``(num_chains, num_clusters)``.
    :raises ValueError: for a prior with other sites.

    Example::

        >>> from pyro_ext.models.nonparametric import generalized_bfry_prior
        >>> table = torch.tensor([[1, 60], [2, 25], [5, 10], [40, 5]])
        >>> start = initial_parameters(FrequencyModel(generalized_bfry_prior()), table, seed=0)
        >>> start["discount"], start["cluster_tilts"].shape
        (tensor([0.6000]), torch.Size([1, 100]))
    """
    checks.instance("model", model, FrequencyModel, "a FrequencyModel")
    table = checks.as_tensor("table", as_table("table", table), "(num_rows, 2)")
    checks.integer("num_chains", num_chains, 1)
    number = int(table[:, 1].sum())
    singletons = float(table[table[:, 0] == 1, 1].sum()) / number
    discount = min(max(singletons, _LEAST_DISCOUNT), 1.0 - _LEAST_DISCOUNT)
    excess = max(_index_at_infinity(table) - discount, _LEAST_EXCESS)
    with seeded(seed):
        mass = torch.distributions.Gamma(torch.tensor(_MASS), 1.0).sample((num_chains,))
        normal = torch.randn(num_chains, number)
        names = model._sites()
    known = {
        "mass": mass,
        "concentration": mass,
        "pareto_mass": mass,
        "discount": torch.full_like(mass, discount),
        "excess": torch.full_like(mass, excess),
        "pareto_scale": torch.full_like(mass, _PARETO_SCALE),
    }
    if other := set(names) - set(known):
        raise ValueError(
            f"model must have sites among {sorted(known)} for its prior, got {sorted(other)}"
        )
    start = {name: known[name] for name in names}
    rows = [{name: value[row] for name, value in start.items()} for row in range(num_chains)]
    processes = [model.process(row) for row in rows]
    measures = [one.measure for one in processes if isinstance(one, NormalizedRandomMeasure)]
    if measures:
        start["tilt"] = torch.stack([_tilt_of(measure, number) for measure in measures]).to(mass)
        if cluster_tilts and isinstance(measures[0], BetaPrimeProcess):
            start[_TILTS] = normal.exp()
        elif cluster_tilts and isinstance(measures[0], GeneralizedBFRYProcess):
            start[_TILTS] = normal.sigmoid()
    return start


def _index_at_infinity(table: Tensor) -> float:
    """Minus the inverse slope of log sizes over log ranks, in the middle of the largest ones."""
    number = int(table[:, 1].sum())
    last = min(_LAST_RANK, max(number // 2, 2))
    first = min(_FIRST_RANK, last - 1) if last == _LAST_RANK else 1
    ranks = torch.arange(first, last + 1)
    x, values = ranks.double().log(), rank_sizes(table, ranks).double().clamp(min=1.0).log()
    x = x - x.mean()
    slope = float((x * values).sum() / x.square().sum())
    return -1.0 / min(slope, -1e-3)


def _tilt_of(measure: CompletelyRandomMeasure, number: int) -> Tensor:
    """Tilt at which the Laplace exponent, the mean number of clusters, is a number."""
    low, high = (torch.tensor(end, dtype=torch.float64) for end in _LOG_TILTS)
    for _ in range(40):
        middle = (low + high) / 2.0
        is_below = bool(measure.laplace_exponent(middle.exp()) < number)
        low, high = (middle, high) if is_below else (low, middle)
    return middle.exp()
