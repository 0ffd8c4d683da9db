"""Quality of a coreset: predictions of its posterior, and distance from that of the data.

Metrics of predictions are those of :mod:`pyro_ext.diagnostics.metrics`. For corrupted inputs, pass
other arguments; for another architecture, pass another model: ``guide.condition(other_model)``.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from pyro.infer.mcmc.mcmc_kernel import MCMCKernel
from torch import Tensor

from pyro_ext._lib import checks
from pyro_ext.diagnostics import metrics
from pyro_ext.inference.hmc.laplace_hmc import LaplaceHMC
from pyro_ext.inference.mcmc import MCMC
from pyro_ext.inference.pseudocoresets.coreset_rows import CoresetModel
from pyro_ext.potential import Potential
from pyro_ext.potential.arguments import as_tensors, named_arguments
from pyro_ext.potential.evaluation import Evaluation, Record, from_constrained
from pyro_ext.potential.runner import run_from_prior
from pyro_ext.potential.structure import structure_of

Samples = Mapping[str, Tensor]


@dataclass(frozen=True, eq=False)
class CoresetScores:
    """Quality of draws from the posterior of a coreset.

    Class scores are ``None`` unless each point is observed as a single class; several labels per
    point or one-hot vectors have none. Comparisons are ``None`` without draws to compare with;
    comparisons of predictive probabilities also require class observations.

    :param dict samples: the draws. **Shape:** ``(num_draws, *event)`` each.
    :param float nll: negative log density of the observations under the averaged predictive
        distribution, averaged over observations.
    :param float accuracy: fraction of points whose most likely class is correct.
    :param float ece: expected calibration error.
    :param float agreement: fraction of points with the same most likely class under the reference
        draws.
    :param float total_variation: total variation distance between both predictive distributions,
        averaged over points.
    :param dict mean_differences: see :func:`standardized_mean_differences`.
    :param dict scale_ratios: see :func:`standard_deviation_ratios`.
    """

    samples: dict[str, Tensor]
    nll: float
    accuracy: float | None = None
    ece: float | None = None
    agreement: float | None = None
    total_variation: float | None = None
    mean_differences: dict[str, Tensor] | None = None
    scale_ratios: dict[str, Tensor] | None = None


def standardized_mean_differences(samples: Samples, reference: Samples) -> dict[str, Tensor]:
    r"""Differences of means from those of a reference, in its standard deviations.

    :param Mapping samples: draws by site. **Shape:** ``(num_draws, *event)`` each.
    :param Mapping reference: other draws, such as those from the posterior of all data. Sites that
        only one of the two has are skipped.
    :returns: :math:`(m - m') / s'` of each element, by site. **Shape:** ``(*event)``.

    Example::

        >>> one, other = {"x": torch.tensor([2.0, 4.0])}, {"x": torch.tensor([-1.0, 0.0, 1.0])}
        >>> standardized_mean_differences(one, other)
        {'x': tensor(3.)}
    """
    return {
        name: (draws.mean(0) - others.mean(0)) / others.std(0)
        for name, draws, others in _pairs(samples, reference)
    }


def standard_deviation_ratios(samples: Samples, reference: Samples) -> dict[str, Tensor]:
    r"""Standard deviations relative to those of a reference; one means the same width.

    :param Mapping samples: draws by site. **Shape:** ``(num_draws, *event)`` each.
    :param Mapping reference: as for :func:`standardized_mean_differences`.
    :returns: :math:`s / s'` of each element, by site. **Shape:** ``(*event)``.

    Example::

        >>> one, other = {"x": torch.tensor([-3.0, 0.0, 3.0])}, {"x": torch.tensor([1.0, 2.0, 3.0])}
        >>> standard_deviation_ratios(one, other)
        {'x': tensor(3.)}
    """
    return {
        name: draws.std(0) / others.std(0) for name, draws, others in _pairs(samples, reference)
    }


def predictive_probabilities(
    model: Callable[..., Any], samples: Samples, *args: Any, site: str | None = None, **kwargs: Any
) -> Tensor:
    """Probability of each class at each point, averaged over posterior draws.

    :param model: a Pyro model with an observed site of finite support, whose elements are points.
    :param Mapping samples: draws of its latent sites. **Shape:** ``(num_draws, *event)`` each.
    :param args: arguments of the model.
    :param str site: the observed site, if there are several.
    :param kwargs: keyword arguments of the model.
    :returns: probabilities in double precision. **Shape:** ``(n, classes)``.

    Example::

        >>> def model(x, y=None):
        ...     slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("y", dist.Bernoulli(logits=slope * x), obs=y)
        >>> draws = {"slope": torch.zeros(5)}
        >>> predictive_probabilities(model, draws, torch.ones(1), torch.ones(1))
        tensor([[0.5000, 0.5000]], dtype=torch.float64)
    """
    samples = checks.tensors("samples", samples)
    args, kwargs = as_tensors(model, args, kwargs)
    name, latents = _sites(model, site, args, kwargs)
    total: Any = 0.0
    for records in _records(model, latents, samples, args, kwargs):
        fn = records[name].fn
        classes = _classes(fn)
        if classes is None:
            raise ValueError(
                f"site {name!r} must be a class for each point, got {fn} of shape "
                f"{tuple(fn.shape())}"
            )
        total = total + fn.log_prob(classes).detach().double().exp()
    probabilities: Tensor = total.mT / len(next(iter(samples.values())))
    return probabilities


def evaluate_draws(
    model: Callable[..., Any],
    samples: Samples,
    *args: Any,
    reference: Samples | None = None,
    reference_model: Callable[..., Any] | None = None,
    site: str | None = None,
    **kwargs: Any,
) -> CoresetScores:
    """Score posterior draws on test data, and compare them with other draws.

    :param model: a Pyro model.
    :param Mapping samples: draws of its latent sites. **Shape:** ``(num_draws, *event)`` each.
    :param args: arguments of the model, with the test data.
    :param Mapping reference: draws to compare with, such as those from the posterior of all data.
    :param reference_model: the model of the reference, if it is another one.
    :param str site: the observed site, if there are several.
    :param kwargs: keyword arguments of the model.

    Example::

        >>> def model(x):
        ...     loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("x", dist.Normal(loc, 1.0), obs=x)
        >>> scores = evaluate_draws(model, {"loc": torch.zeros(9)}, torch.zeros(3))
        >>> round(scores.nll, 4), scores.accuracy
        (0.9189, None)
    """
    samples = checks.tensors("samples", samples)
    reference = checks.optional(checks.tensors, "reference", reference)
    checks.optional(checks.function, "reference_model", reference_model, "a Pyro model")
    comparisons: dict[str, Any] = {}
    if reference is not None and set(samples) & set(reference):
        comparisons["mean_differences"] = standardized_mean_differences(samples, reference)
        comparisons["scale_ratios"] = standard_deviation_ratios(samples, reference)
    args, kwargs = as_tensors(model, args, kwargs)
    name, latents = _sites(model, site, args, kwargs)
    observed = next(_records(model, latents, samples, args, kwargs))[name]
    if _classes(observed.fn) is None:
        values = Potential(model, *args, **kwargs).log_likelihood(samples)[name]
        logs = values.double().logsumexp(0) - math.log(len(values))
        return CoresetScores(dict(samples), float(-logs.mean()), **comparisons)
    own = predictive_probabilities(model, samples, *args, site=site, **kwargs)
    if reference is not None:
        other = predictive_probabilities(
            reference_model or model, reference, *args, site=site, **kwargs
        )
        comparisons["agreement"] = metrics.agreement(own, other)
        comparisons["total_variation"] = metrics.total_variation(own, other)
    labels = torch.as_tensor(observed.value).long()
    return CoresetScores(
        dict(samples),
        metrics.nll(own, labels),
        metrics.accuracy(own, labels),
        metrics.ece(own, labels),
        **comparisons,
    )


def evaluate_coreset(
    coreset: CoresetModel,
    *args: Any,
    reference: Samples | None = None,
    reference_model: Callable[..., Any] | None = None,
    kernel: Callable[[Callable[..., Any]], MCMCKernel] = LaplaceHMC,
    num_samples: int = 500,
    warmup_steps: int = 50,
    options: Mapping[str, Any] | None = None,
    **kwargs: Any,
) -> CoresetScores:
    """Draw from the posterior of a coreset, and score the draws on test data.

    :param CoresetModel coreset: what ``condition`` of a guide returns, for its own model or another
        one. To evaluate a subset of the data, use an untrained guide with ``init=herding_subset``
        or the like.
    :param args: arguments of the model, with the test data.
    :param Mapping reference: draws to compare with, such as those from the posterior of all data.
    :param reference_model: the model of the reference, if it is another one.
    :param kernel: a function that makes a kernel from a model. Pass
        :class:`~pyro_ext.inference.NUTS` for a model with thousands of latent values or several
        modes.
    :param int num_samples: number of draws of each chain.
    :param int warmup_steps: number of steps before the draws.
    :param Mapping options: further arguments of :class:`~pyro_ext.inference.MCMC`, such as
        ``seed``.
    :param kwargs: keyword arguments of the model.

    Example::

        >>> from pyro_ext.inference.pseudocoresets import AutoPseudocoreset
        >>> def model(x, y):
        ...     slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("y", dist.Bernoulli(logits=slope * x), obs=y)
        >>> x = torch.linspace(-2.0, 2.0, 50)
        >>> guide = AutoPseudocoreset(model, x, (x > 0).float(), size=4, seed=0)
        >>> scores = evaluate_coreset(
        ...     guide.condition(), x, (x > 0).float(), num_samples=20, warmup_steps=20,
        ...     options={"seed": 0})
        >>> scores.accuracy
        1.0
    """
    checks.function("kernel", kernel, "a function that makes a kernel of a model")
    checks.optional(checks.mapping, "options", options, "a dict of arguments of MCMC")
    checks.integer("warmup_steps", warmup_steps, 0)
    reference = checks.optional(checks.tensors, "reference", reference)
    checks.instance("coreset", coreset, CoresetModel, "a model that condition() gives")
    args, kwargs = as_tensors(coreset.model, args, kwargs)
    _sites(coreset.model, None, args, kwargs)  # before the chains run
    settings: dict[str, Any] = {"progress": False, **(options or {})}
    run = MCMC(kernel(coreset), num_samples, warmup_steps, **settings).run()
    return evaluate_draws(
        coreset.model,
        run.get_samples(),
        *args,
        reference=reference,
        reference_model=reference_model,
        **kwargs,
    )


def _pairs(samples: Samples, reference: Samples) -> list[tuple[str, Tensor, Tensor]]:
    """Draws of the sites that both have, by name."""
    samples = checks.tensors("samples", samples, finite=True)
    reference = checks.tensors("reference", reference, finite=True)
    names = [name for name in samples if name in reference]
    if not names:
        raise ValueError(
            f"reference must have a site of samples, {sorted(samples)}, got {sorted(reference)}"
        )
    for argument, draws in (("samples", samples), ("reference", reference)):
        if short := [name for name in names if len(draws[name]) < 2]:
            raise ValueError(f"{argument} must have at least two draws of {short}, got fewer")
        wrong = [name for name in names if samples[name].shape[1:] != reference[name].shape[1:]]
        if wrong:
            raise ValueError(
                f"reference must have the shapes of samples, and has others in {wrong}"
            )
    return [(name, samples[name], reference[name]) for name in names]


def _sites(
    model: Callable[..., Any], site: str | None, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> tuple[str, frozenset[str]]:
    """Names of the observed site that counts, and of the latent ones."""
    checks.function("model", model, "a Pyro model")
    with torch.random.fork_rng(), named_arguments(model, args, kwargs):
        run = run_from_prior(model, args, kwargs, validate=True)
        for name, record in run.records.items():
            if record.is_observed and not record.is_deterministic:
                checks.as_tensor(name, record.value, allow_empty=True, finite=True)
        structure = structure_of(run.records, run.given_plates)
    observed = list(structure.observed)
    if (site is None and len(observed) != 1) or (site is not None and site not in observed):
        raise ValueError(f"site must be one of the observed sites, {observed}, got {site!r}")
    name = observed[0] if site is None else site
    for plate in structure.observed[name].plates:
        if plate.subsample_size != plate.size:
            raise ValueError(
                f"model must see all points at once, but its plate {plate.name!r} sees "
                f"{plate.subsample_size} of {plate.size}; pass a model without minibatches"
            )
    return name, frozenset(structure.latents)


def _classes(fn: Any) -> Tensor | None:
    """All classes at each point, ``None`` for observations that are not one of them a point."""
    if not fn.has_enumerate_support or len(fn.batch_shape) != 1 or fn.event_shape:
        return None
    try:
        classes: Tensor = fn.enumerate_support()
    except NotImplementedError:  # points with other numbers of classes, as of a binomial
        return None
    numbers = torch.arange(len(classes), device=classes.device).to(classes)
    return classes if bool((classes == numbers[:, None]).all()) else None


def _records(
    model: Callable[..., Any],
    latents: frozenset[str],
    samples: Samples,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
) -> Iterator[dict[str, Record]]:
    """A run of the model at each of the draws."""
    if missing := latents - set(samples):
        raise ValueError(
            f"samples lacks the latent sites {sorted(missing)} of the model, got {sorted(samples)}"
        )
    for number in range(len(next(iter(samples.values())))):
        values = {name: samples[name][number] for name in latents}
        with torch.no_grad(), named_arguments(model, args, kwargs):
            yield Evaluation(from_constrained(values, {}), {}).run(model, args, kwargs)
