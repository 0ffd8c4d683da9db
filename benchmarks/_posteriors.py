"""Posteriors to compare samplers on: 44 of posteriordb with their references, and five wider ones.

Data and references are those of posteriordb, release 1.0, https://github.com/stan-dev/posteriordb,
Copyright (c) 2011-2024, Stan Developers and their Assignees, BSD 3-Clause License, whose text
stands with them in ``posteriordb.json.gz``. A reference is a summary of 10,000 draws. The models
stand in ``_posterior_models.py``; the wider ones have data that are simulated here.
"""

import gzip
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import _posterior_models as models
import numpy as np
import torch
from torch import Tensor

__all__ = ["POSTERIORS", "Posterior"]

Draws = Mapping[str, Tensor]
Model = Callable[..., None]
Arguments = tuple[Tensor, ...]


@dataclass(frozen=True)
class Posterior:
    """A model with its data, and what is known of its posterior.

    :param model: the model, in Pyro's words.
    :param Callable make_arguments: gives its arguments.
    :param Mapping reference: by parameter ``mean`` and ``sd``, ``q05``, ``q50`` and ``q95``, and
        ``mean_sq`` and ``sd_sq`` of its square; empty where nothing is known.
    :param Callable values: gives parameters of the reference, without the number of their element,
        from draws of the sites and the arguments of the model; others are sites.
    """

    model: Model
    make_arguments: Callable[[], Arguments]
    reference: Mapping[str, Mapping[str, float]]
    values: Callable[..., Draws]

    @property
    def arguments(self) -> Arguments:
        """Arguments of the model."""
        return self.make_arguments()

    def parameters(self, draws: Draws) -> dict[str, Tensor]:
        """Compute the parameters of the reference, such as ``beta[1]``, from draws.

        :param Mapping draws: values of the sites. **Shape:** ``(*leading, *event)`` each.
        :returns: **Shape:** ``(*leading)`` each.
        """
        values = {**draws, **self.values(draws, *self.arguments)}
        found = {}
        for name in self.reference:
            base, element = re.fullmatch(r"(\w+)(?:\[(\d+)\])?", name).groups()
            found[name] = values[base] if element is None else values[base][..., int(element) - 1]
        return found


def _float(values: Any) -> Tensor:
    return torch.as_tensor(values, dtype=torch.float64)


def _sites(draws: Draws, *arguments: Tensor) -> Draws:
    return draws


def _schools(draws: Draws, *arguments: Tensor) -> Draws:
    return {"theta": draws["mu"][..., None] + draws["tau"][..., None] * draws["theta_trans"]}


def _shares(draws: Draws, *arguments: Tensor) -> Draws:
    return {"alpha1": draws["shares"][..., 0], "beta1": draws["shares"][..., 1]}


def _process(draws: Draws, x: Tensor, counts: Tensor) -> Draws:
    return {"f": models.latent_process(x, draws["alpha"], draws["rho"], draws["f_tilde"])}


def _transitions(draws: Draws, *arguments: Tensor) -> Draws:
    return {"theta1": draws["theta"][..., 0, :], "theta2": draws["theta"][..., 1, :]}


def _design(*columns: Tensor) -> Tensor:
    return torch.stack([torch.ones_like(columns[0]), *columns], -1)


def _product(*columns: Tensor) -> Tensor:
    """Two columns and their product, after an intercept."""
    return _design(*columns, columns[0] * columns[1])


def _levels(values: Tensor, *levels: int) -> list[Tensor]:
    return [_float(values == level) for level in levels]


def _standard(values: Tensor, scales: float = 1.0) -> Tensor:
    """Values from their mean, in so many standard deviations."""
    return (values - values.mean()) / (scales * values.std())


def _lags(d: Any) -> tuple[Tensor, Tensor]:
    windows = d.y.unfold(0, int(d.K) + 1, 1)
    return windows[:, :-1].flip(1), windows[:, -1]


def _mesquite(d: Any) -> list[Tensor]:
    """Logarithms of the volume, the area and the shape of a bush's canopy."""
    area = d.diam1 * d.diam2
    return [(area * d.canopy_height).log(), area.log(), (d.diam1 / d.diam2).log()]


def _simulate_groups() -> Arguments:
    """Five rows in each of 40 groups."""
    generator = np.random.default_rng(0)
    x = generator.normal(size=(40, 5))
    line = np.array([1.0, 0.5]) + np.array([1.0, 0.3]) * generator.normal(size=(40, 2))
    return _float(x), _float(line[:, :1] + line[:, 1:] * x + generator.normal(size=(40, 5)))


def _simulate_volatility() -> Arguments:
    """100 returns, whose volatility goes up and down slowly."""
    generator = np.random.default_rng(0)
    deviations = [generator.normal() * 0.3 / (1.0 - 0.95**2) ** 0.5]
    for _ in range(99):
        deviations.append(0.95 * deviations[-1] + 0.3 * generator.normal())
    return (_float(np.exp((np.array(deviations) - 1.0) / 2.0) * generator.normal(size=100)),)


def _simulate_answers() -> Arguments:
    """Answers of 60 persons to 20 items."""
    generator = np.random.default_rng(0)
    discrimination = np.exp(0.4 * generator.normal(size=20))
    logits = discrimination * (generator.normal(size=(60, 1)) - generator.normal(size=20))
    return (_float(generator.uniform(size=(60, 20)) < 1.0 / (1.0 + np.exp(-logits))),)


def _simulate_sparse() -> Arguments:
    """100 rows of 49 columns, of which five count."""
    generator = np.random.default_rng(0)
    design = generator.normal(size=(100, 49))
    outcome = design[:, :5] @ np.array([2.0, -1.5, 1.0, 0.7, -0.5]) + generator.normal(size=100)
    return _float(design), _float(outcome)


# By program of Stan: the model, and its arguments from the data.
_PROGRAMS: dict[str, tuple[Model, Callable[[Any], Arguments]]] = {
    "arK": (models.autoregression, _lags),
    "arma11": (models.arma, lambda d: (d.y,)),
    "blr": (models.blr, lambda d: (d.X, d.y)),
    "earn_height": (models.regression, lambda d: (_design(d.height), d.earn)),
    "eight_schools_noncentered": (models.eight_schools, lambda d: (d.y, d.sigma)),
    "garch11": (models.garch, lambda d: (d.y, d.sigma1)),
    "gp_pois_regr": (models.gp_poisson, lambda d: (d.x, d.k)),
    "gp_regr": (models.gp_regression, lambda d: (d.x, d.y)),
    "hmm_drive_0": (models.hmm_drive_0, lambda d: (torch.stack([d.u, d.v], -1), d.alpha)),
    "hmm_drive_1": (
        models.hmm_drive_1,
        lambda d: (torch.stack([d.u, d.v], -1), d.alpha, torch.stack([d.tau, d.rho])),
    ),
    "hmm_example": (models.hmm_example, lambda d: (d.y,)),
    "kidscore_interaction": (
        models.regression_cauchy,
        lambda d: (_product(d.mom_hs, d.mom_iq), d.kid_score),
    ),
    "kidscore_interaction_c": (
        models.regression,
        lambda d: (_product(d.mom_hs - d.mom_hs.mean(), d.mom_iq - d.mom_iq.mean()), d.kid_score),
    ),
    "kidscore_interaction_c2": (
        models.regression,
        lambda d: (_product(d.mom_hs - 0.5, d.mom_iq - 100.0), d.kid_score),
    ),
    "kidscore_interaction_z": (
        models.regression,
        lambda d: (_product(_standard(d.mom_hs, 2.0), _standard(d.mom_iq, 2.0)), d.kid_score),
    ),
    "kidscore_mom_work": (
        models.regression,
        lambda d: (_design(*_levels(d.mom_work, 2, 3, 4)), d.kid_score),
    ),
    "kidscore_momhs": (models.regression_cauchy, lambda d: (_design(d.mom_hs), d.kid_score)),
    "kidscore_momhsiq": (
        models.regression_cauchy,
        lambda d: (_design(d.mom_hs, d.mom_iq), d.kid_score),
    ),
    "kidscore_momiq": (models.regression_cauchy, lambda d: (_design(d.mom_iq), d.kid_score)),
    "kilpisjarvi": (
        models.kilpisjarvi,
        lambda d: (
            d.x,
            d.y,
            torch.stack([d.pmualpha, d.pmubeta]),
            torch.stack([d.psalpha, d.psbeta]),
        ),
    ),
    "log10earn_height": (models.regression, lambda d: (_design(d.height), d.earn.log10())),
    "logearn_height": (models.regression, lambda d: (_design(d.height), d.earn.log())),
    "logearn_height_male": (models.regression, lambda d: (_design(d.height, d.male), d.earn.log())),
    "logearn_interaction": (
        models.regression,
        lambda d: (_product(d.height, d.male), d.earn.log()),
    ),
    "logearn_interaction_z": (
        models.regression,
        lambda d: (_product(_standard(d.height), d.male), d.earn.log()),
    ),
    "logearn_logheight_male": (
        models.regression,
        lambda d: (_design(d.height.log(), d.male), d.earn.log()),
    ),
    "logmesquite": (
        models.regression,
        lambda d: (
            _design(
                d.diam1.log(),
                d.diam2.log(),
                d.canopy_height.log(),
                d.total_height.log(),
                d.density.log(),
                d.group,
            ),
            d.weight.log(),
        ),
    ),
    "logmesquite_logva": (
        models.regression,
        lambda d: (_design(*_mesquite(d)[:2], d.group), d.weight.log()),
    ),
    "logmesquite_logvas": (
        models.regression,
        lambda d: (
            _design(*_mesquite(d), d.total_height.log(), d.density.log(), d.group),
            d.weight.log(),
        ),
    ),
    "logmesquite_logvash": (
        models.regression,
        lambda d: (_design(*_mesquite(d), d.total_height.log(), d.group), d.weight.log()),
    ),
    "logmesquite_logvolume": (
        models.regression,
        lambda d: (_design(_mesquite(d)[0]), d.weight.log()),
    ),
    "lotka_volterra": (models.lotka_volterra, lambda d: (torch.cat([d.y_init[None], d.y]),)),
    "low_dim_gauss_mix": (models.mixture, lambda d: (d.y,)),
    "mesquite": (
        models.regression,
        lambda d: (
            _design(d.diam1, d.diam2, d.canopy_height, d.total_height, d.density, d.group),
            d.weight,
        ),
    ),
    "nes": (
        models.regression,
        lambda d: (
            _design(
                d.real_ideo,
                d.race_adj,
                *_levels(d.age_discrete, 2, 3, 4),
                d.educ1,
                d.gender,
                d.income,
            ),
            d.partyid7,
        ),
    ),
    "one_comp_mm_elim_abs": (models.one_compartment, lambda d: (d.C_hat, d.D, d.V)),
}
_VALUES: dict[str, Callable[..., Draws]] = {
    "eight_schools_noncentered": _schools,
    "garch11": _shares,
    "gp_pois_regr": _process,
    "hmm_drive_0": _transitions,
    "hmm_drive_1": _transitions,
    "hmm_example": _transitions,
}
_SIMULATED: dict[str, tuple[Model, Callable[[], Arguments]]] = {
    "slopes_centered": (models.slopes_centered, _simulate_groups),
    "slopes_noncentered": (models.slopes_noncentered, _simulate_groups),
    "stochastic_volatility": (models.stochastic_volatility, _simulate_volatility),
    "item_response": (models.item_response, _simulate_answers),
    "horseshoe": (models.horseshoe, _simulate_sparse),
}


def _of_posteriordb(entry: Mapping[str, Any]) -> Posterior:
    program = entry["posterior"].split("-")[1]
    model, arguments = _PROGRAMS[program]

    def make_arguments() -> Arguments:
        return arguments(SimpleNamespace(**{k: _float(v) for k, v in entry["data"].items()}))

    return Posterior(model, make_arguments, entry["reference"], _VALUES.get(program, _sites))


def _load() -> dict[str, Posterior]:
    path = Path(__file__).with_name("posteriordb.json.gz")
    entries = json.loads(gzip.decompress(path.read_bytes()))["posteriors"]
    posteriors = {entry["posterior"]: _of_posteriordb(entry) for entry in entries}
    for name, (model, simulate) in _SIMULATED.items():
        posteriors[f"simulated-{name}"] = Posterior(model, simulate, {}, _sites)
    return posteriors


POSTERIORS = _load()
