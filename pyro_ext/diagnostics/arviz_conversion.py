"""Conversion of all kinds of posteriors to ArviZ."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pyro_ext._lib import checks
from pyro_ext.checkpoint import Checkpoint
from pyro_ext.diagnostics._labels import label
from pyro_ext.diagnostics._model_groups import ModelGroups, check_shapes, model_of
from pyro_ext.posterior.draws import (
    Arrays,
    check_names,
    context_of,
    draws_of,
    follow_chains,
    statistics_of,
    to_array,
    with_chains,
)
from pyro_ext.potential import Potential
from pyro_ext.random import spawn_seed

_PRIOR_DRAWS = 500


def to_arviz(
    posterior: Any,
    *args: Any,
    model: Callable[..., Any] | Potential | None = None,
    coords: Mapping[str, Any] | None = None,
    dims: Mapping[str, Sequence[str | None]] | None = None,
    log_likelihood: bool | Sequence[str] = True,
    posterior_predictive: bool | Mapping[str, Any] = False,
    prior: bool | int | Mapping[str, Any] = False,
    observed: str | Sequence[str] = (),
    num_samples: int = 1000,
    group_by_chain: bool = False,
    seed: int | None = None,
) -> Any:
    """Convert a posterior to the object that ArviZ summarizes, plots, compares and saves.

    Dimensions are named after the plates of the model. If a plate subsamples, the log likelihood,
    the predictive draws and the observed data still cover all of the data.

    If an observed site ``y`` has a mask, these groups contain only the points that the mask keeps,
    along a single dimension ``y_observation``; the coordinates ``y_data`` and so on give their
    positions along the original dimensions ``data`` and so on. So masked points do not enter LOO.
    Values that ``obs_mask`` imputes are in the posterior, in the sites ``y`` and ``y_unobserved``.

    The label vectors of a sampler over partitions are stored with its statistics. The posterior has
    quantities that do not depend on how clusters are labeled instead, such as
    ``"assignment_num_clusters"``; see
    :func:`pyro_ext.diagnostics.partitions.partition_quantities`.

    If observed sites share discrete sites without draws, such as the steps of a hidden Markov
    model, there is one joint likelihood for each element of the plates around all of these sites.
    In a plate ``series``, it is the variable ``series_joint``.

    :param posterior: the source of the draws:

        - a sampler that has run: :class:`pyro_ext.inference.MCMC`, :class:`pyro.infer.MCMC`, or
          anything else with ``get_samples(group_by_chain=True)``;
        - the folder of a checkpoint, or a :class:`~pyro_ext.checkpoint.Checkpoint`, of a run that
          has ended or is still running in another process. A checkpoint does not contain the model:
          pass ``model=`` for anything that needs it;
        - a dict of tensors or arrays, such as :class:`pyro.infer.Predictive` returns.
          **Shape:** ``(num_draws, *event)`` each. With a ``model``, the observed sites in it become
          the group ``posterior_predictive``; without one, everything belongs to the posterior;
        - a guide trained by :class:`pyro.infer.SVI`, from which ``num_samples`` are drawn.

    :param args: arguments of the model (and the guide), if they differ from those of the sampler's
        run.
    :param model: the model, for a dict or a hand-written guide; the others know theirs. It may also
        be a :class:`~pyro_ext.potential.Potential` of the model, which can hold keyword arguments
        of the model and the guide as well.
    :param Mapping coords: labels along dimensions, by name. Unknown names are ignored.
    :param Mapping dims: for each variable, the names of its dimensions after chain and draw, which
        replace those of the plates; ``None`` instead of a name keeps the existing one.
    :param log_likelihood: whether to compute the log likelihood of each observation, or a list of
        the observed sites to compute it for. It is not computed if the model is not known. Discrete
        sites take the values of their draws; discrete sites without draws, as under NUTS, are
        summed out. By default, sites for which it cannot be computed are left out with a warning.
    :param posterior_predictive: whether to draw new observed sites, once for each draw of the
        posterior; or a dict of such draws. **Shape:** ``(num_chains, num_draws, *event)`` or
        ``(num_chains * num_draws, *event)`` each.
    :param prior: the number of draws from the prior (``True`` for 500), or a dict of such draws.
        **Shape:** ``(num_prior_draws, *event)`` each. The observed sites among them become the
        group ``prior_predictive``.
    :param observed: names of sites that :func:`pyro.condition` fixes and that are observations even
        though other sites depend on them, as in a time series. By default, such sites count as
        constants of the model, in the group ``constant_data``, and have no likelihood.
    :param int num_samples: number of draws from a guide.
    :param bool group_by_chain: whether the arrays of a dict ``posterior`` have the shape
        ``(num_chains, num_draws, *event)``.
    :param int seed: seed of everything drawn here; ``None`` takes one from PyTorch's generator.
    :returns: ``arviz.InferenceData`` with ArviZ 0.x, ``xarray.DataTree`` with ArviZ 1.
    :raises TypeError: if an argument has the wrong type.
    :raises ValueError: if names or shapes do not match the model, or if the model is needed and
        cannot be evaluated.

    Example::

        >>> def model(x):
        ...     loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("x", dist.Normal(loc, 1.0), obs=x)
        >>> draws = {"loc": 0.1 * torch.randn(100)}
        >>> data = to_arviz(draws, torch.randn(20), model=model)
        >>> data["posterior"]["loc"].dims, data["log_likelihood"]["x"].dims
        (('chain', 'draw'), ('chain', 'draw', 'data'))
    """
    _check_types(log_likelihood, posterior_predictive, prior, num_samples)
    observed_names = check_names("observed", observed)
    if isinstance(posterior, str | Path):
        posterior = Checkpoint(posterior)
    if isinstance(posterior, Checkpoint) and model is None:
        dims = _recorded_dims(posterior) | dict(dims or {})
    context = context_of(posterior, model, args)
    partitions: Sequence[str] = getattr(posterior, "partitions", ())
    needs = _needs(log_likelihood, posterior_predictive, prior, observed_names)
    at_data = model_of(context, needs)
    of_model = ModelGroups(at_data, observed_names) if at_data is not None else None
    sites = of_model.sites if of_model is not None else {}
    split = of_model.split if of_model is not None else _all_in_posterior

    draws = draws_of(posterior, context, at_data, num_samples, group_by_chain, _part(seed, 0))
    check_shapes(draws, sites, "posterior")
    num_chains, num_draws = next(iter(draws.values())).shape[:2]
    own, predictive = split(draws)
    groups: dict[str, Arrays] = {"posterior": own, "posterior_predictive": predictive}
    if isinstance(posterior_predictive, Mapping):
        if predictive:
            raise ValueError(
                f"posterior has draws of the observed sites {sorted(predictive)}, and "
                "posterior_predictive has draws too; pass them in one place only"
            )
        for name, value in posterior_predictive.items():
            argument = f"posterior_predictive[{name!r}]"
            array = to_array(value, argument)
            predictive[name] = follow_chains(array, num_chains, num_draws, argument)
        check_shapes(predictive, sites, "posterior_predictive")
    groups["sample_stats"] = statistics_of(posterior, num_chains, num_draws)
    if isinstance(prior, Mapping):
        given = with_chains(prior, False, "prior")
        check_shapes(given, sites, "prior")
        groups["prior"], groups["prior_predictive"] = split(given)
    if of_model is not None:
        latents = of_model.completed(groups["posterior"], _part(seed, 3))
        groups["posterior"] = of_model.with_deterministic(latents)
        of_model.find_masks(latents)
        if posterior_predictive is True and not predictive:
            groups["posterior_predictive"] = of_model.predictive(latents, _part(seed, 1))
        if prior is not False and not isinstance(prior, Mapping):
            size = _PRIOR_DRAWS if prior is True else prior
            groups["prior"], groups["prior_predictive"] = split(
                of_model.prior(size, _part(seed, 2))
            )
        if log_likelihood:
            groups["log_likelihood"] = of_model.log_likelihood(latents, log_likelihood)
        groups["observed_data"], groups["constant_data"] = of_model.observed()
    groups["posterior"], labels = with_partition_quantities(groups["posterior"], partitions)
    groups["sample_stats"] |= labels
    return label(
        groups,
        sites,
        coords,
        dims,
        partitions=partitions,
        points=of_model.points if of_model is not None else {},
        chains=getattr(posterior, "chain_numbers", None),
    )


def _all_in_posterior(arrays: Arrays) -> tuple[Arrays, Arrays]:
    """Split draws into posterior and predictive ones without a model: all are posterior."""
    return dict(arrays), {}


def _needs(
    log_likelihood: object, posterior_predictive: object, prior: object, observed: Sequence[str]
) -> dict[str, bool]:
    """Return the arguments that ask for what takes a model, and whether it has to be there."""
    asked = {
        "log_likelihood": bool(log_likelihood),
        "posterior_predictive": posterior_predictive is True,
        "prior": prior is not False and not isinstance(prior, Mapping),
        "observed": bool(observed),
    }
    return {
        name: log_likelihood is not True or name != "log_likelihood"
        for name in asked
        if asked[name]
    }


def _recorded_dims(checkpoint: Checkpoint) -> dict[str, Any]:
    """Names of dimensions that a checkpoint knows, none of them the name of a variable."""
    sites = checkpoint.description["identity"]["model"].get("sites", {})
    variables = checkpoint.dims.keys() | sites.keys()
    return {
        variable: [f"{name}_dim" if name in variables else name for name in names]
        for variable, names in checkpoint.dims.items()
    }


def _part(seed: int | None, number: int) -> int | None:
    """Seed of one of several independent streams, from the seed of all."""
    return None if seed is None else spawn_seed(seed, number)


def _check_types(
    log_likelihood: object, posterior_predictive: object, prior: object, num_samples: object
) -> None:
    if not isinstance(log_likelihood, bool):
        wanted = "True, False or a list of names"
        checks.sequence("log_likelihood", log_likelihood, wanted, 0, str)
    wanted = "True, False or a dict of draws"
    checks.instance("posterior_predictive", posterior_predictive, (bool, Mapping), wanted)
    if not isinstance(prior, bool | Mapping):
        wanted = "True, False, a dict of draws or a number of draws"
        checks.instance("prior", prior, (int, np.integer), wanted)
        checks.integer("prior", prior, 1)
    checks.integer("num_samples", num_samples, 1)


def with_partition_quantities(arrays: Arrays, partitions: Sequence[str]) -> tuple[Arrays, Arrays]:
    """Part label vectors from the rest, which gets numbers that describe the partitions."""
    labels = {name: arrays[name] for name in partitions}
    rest = {name: array for name, array in arrays.items() if name not in labels}
    for name, array in labels.items():
        from pyro_ext.diagnostics.partitions import partition_quantities
        from pyro_ext.diagnostics.partitions.labels import check_draws

        quantities = partition_quantities(check_draws(f"posterior[{name!r}]", array))
        added = {f"{name}_{quantity}": value.numpy() for quantity, value in quantities.items()}
        if taken := sorted(added.keys() & rest.keys()):
            raise ValueError(
                f"posterior has partitions {name!r}, whose summaries clash with the variables "
                f"{taken}"
            )
        rest |= added
    return rest, labels
