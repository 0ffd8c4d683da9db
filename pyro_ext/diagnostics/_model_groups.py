"""What a model adds to draws of its posterior: likelihood, predictions, prior, observations."""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from pyro_ext.diagnostics._draws import Arrays, Context, to_array
from pyro_ext.potential import Potential, Site

__all__ = [
    "all_sites",
    "check_shapes",
    "log_likelihood_group",
    "observed_group",
    "potential_of",
    "predictive_group",
    "prior_group",
    "split",
    "with_deterministic",
]


def potential_of(context: Context, needs: Mapping[str, bool]) -> Potential | None:
    """Potential of a model, through which all groups are computed.

    :param Context context: the model and its arguments.
    :param Mapping needs: arguments that ask for groups which take a model, by name, and whether
        it is an error if there is none.
    :returns: the potential, or ``None`` without a model.
    :raises ValueError: where a model is needed and missing, or cannot be evaluated.
    """
    if context.potential is not None:
        return context.potential
    if context.model is None:
        if lacking := [name for name, is_strict in needs.items() if is_strict]:
            raise ValueError(f"{' and '.join(lacking)} needs a model: give it as model=...")
        return None
    if needs:
        with _explained(list(needs)):
            return Potential(context.model, *context.args, **context.kwargs)
    try:
        return Potential(context.model, *context.args, **context.kwargs)
    except Exception as error:
        warnings.warn(
            f"model cannot be evaluated ({type(error).__name__}: {error}), so the result holds "
            "neither the observed data nor the names of plates",
            stacklevel=3,
        )
        return None


def all_sites(potential: Potential | None) -> dict[str, Site]:
    """Return latent, deterministic and observed sites by name; none without a potential."""
    if potential is None:
        return {}
    return {**potential.sites, **potential.deterministic_sites, **potential.observed_sites}


def check_shapes(arrays: Arrays, sites: Mapping[str, Site], argument: str) -> None:
    """Raise where draws of a site do not have the shape of the site.

    :param dict arrays: **Shape:** ``(num_chains, num_draws, *event)`` each.
    :param Mapping sites: sites of the model.
    :param str argument: how the caller names the draws.
    :raises ValueError: names the site, its shape and that wanted.
    """
    for name in arrays.keys() & sites.keys():
        event, wanted = arrays[name].shape[2:], tuple(sites[name].shape)
        if event != wanted:
            raise ValueError(
                f"{argument}[{name!r}] has the shape {event} besides chains and draws, but the "
                f"site of the model, over all of the data, {wanted}; wanted draws for the same "
                "arguments of the model, and for whole plates rather than a subsample"
            )


def split(arrays: Arrays, potential: Potential | None) -> tuple[Arrays, Arrays]:
    """Part draws into those of observed sites, which come second, and the rest."""
    observed = {} if potential is None else potential.observed_sites
    return (
        {name: array for name, array in arrays.items() if name not in observed},
        {name: array for name, array in arrays.items() if name in observed},
    )


def with_deterministic(arrays: Arrays, potential: Potential) -> Arrays:
    """Add the deterministic sites that draws of all latent sites lack."""
    missing = [name for name in potential.deterministic_sites if name not in arrays]
    if not missing or any(name not in arrays for name in potential.sites):
        return arrays
    values = potential.deterministic(_latents(arrays, potential, "pyro.deterministic"))
    return arrays | {name: to_array(values[name], name) for name in missing}


def log_likelihood_group(
    arrays: Arrays, potential: Potential, wanted: bool | Sequence[str]
) -> Arrays:
    """Log likelihood of each observation at each draw.

    :param dict arrays: draws of the latent sites.
    :param Potential potential: potential of the model.
    :param wanted: names of observed sites, or ``True`` for all.
    :returns: **Shape:** ``(num_chains, num_draws, *batch)`` each.
    :raises ValueError: for a name of no observed site, and where it cannot be computed.
    """
    names = list(potential.observed_sites) if isinstance(wanted, bool) else list(wanted)
    if unknown := sorted(set(names) - set(potential.observed_sites)):
        raise ValueError(
            f"log_likelihood names {unknown}, but the observed sites of the model are "
            f"{sorted(potential.observed_sites)}"
        )
    if not names:
        return {}
    latents = _latents(arrays, potential, "log_likelihood")
    with _explained(["log_likelihood"]):
        values = potential.log_likelihood(latents)
    return {name: to_array(values[name], name) for name in names}


def predictive_group(arrays: Arrays, potential: Potential, seed: int | None) -> Arrays:
    """New values of the observed sites, one for each draw."""
    latents = _latents(arrays, potential, "posterior_predictive")
    with _explained(["posterior_predictive"]):
        return _as_observed(potential.predictive(latents, seed), potential)


def prior_group(num_samples: int, potential: Potential, seed: int | None) -> Arrays:
    """Draws of all sites from the model, in a single chain."""
    with _explained(["prior"]):
        drawn = potential.prior(num_samples, seed)
    arrays = _as_observed({name: value[None] for name, value in drawn.items()}, potential)
    return with_deterministic(arrays, potential)


def observed_group(potential: Potential) -> Arrays:
    """Observed values over all of the data."""
    return {name: to_array(value, name) for name, value in potential.observations().items()}


def _latents(arrays: Arrays, potential: Potential, purpose: str) -> dict[str, Tensor]:
    sites = potential.sites
    if missing := [name for name in sites if name not in arrays]:
        raise ValueError(
            f"posterior lacks draws of the latent sites {missing}, which {purpose} needs: add "
            f"them, or pass {purpose}=False"
        )
    return {
        name: torch.tensor(arrays[name], dtype=site.dtype, device=site.device)
        for name, site in sites.items()
    }


def _as_observed(values: Mapping[str, Tensor], potential: Potential) -> Arrays:
    """Arrays of draws, integers where a discrete site was observed in integers.

    Pyro draws counts as floating numbers whatever the type of the observations.
    """
    arrays = {}
    for name, value in values.items():
        site = potential.observed_sites.get(name)
        if site is not None and site.support.is_discrete and not site.dtype.is_floating_point:
            value = value.to(site.dtype)
        arrays[name] = to_array(value, name)
    return arrays


@contextmanager
def _explained(needs: Sequence[str]) -> Iterator[None]:
    """Say which arguments ask for the model where it fails."""
    try:
        yield
    except Exception as error:
        alternative = " and ".join(f"{name}=False" for name in needs)
        raise ValueError(
            f"model cannot be evaluated ({type(error).__name__}: {error}); give its arguments "
            f"after posterior as it takes them, or pass {alternative} to convert without"
        ) from error
