"""Importance weights of a guide, which measure its distance from the posterior and correct draws.

[1] Y. Yao, A. Vehtari, D. Simpson, A. Gelman (2018), Yes, but did it work?: evaluating variational
inference.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from pyro import poutine
from pyro.poutine import Trace
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from pyro_ext._lib import checks
from pyro_ext.posterior.importance import smoothed_weights
from pyro_ext.potential import sum_out
from pyro_ext.potential.arguments import named_arguments
from pyro_ext.random import fresh_seed, seeded

__all__ = ["GuideWeights", "psis"]


class GuideWeights(NamedTuple):
    """Draws from a guide with their importance weights.

    :param dict samples: draws by latent site. **Shape:** ``(num_samples, *event)`` each.
    :param Tensor log_weights: logarithms of the smoothed weights, which sum to one. **Shape:**
        ``(num_samples,)``.
    :param float k_hat: the Pareto shape of the tail of the weights. Up to 0.5, the guide is close
        to the posterior; up to 0.7, you can trust the weighted draws; above 0.7, neither holds.
    :param float effective_sample_size: the effective sample size of the weighted draws.
    :param float log_evidence: an estimate of the log marginal likelihood.
    """

    samples: dict[str, Tensor]
    log_weights: Tensor
    k_hat: float
    effective_sample_size: float
    log_evidence: float


def psis(
    guide: Callable[..., Any],
    model: Callable[..., Any],
    *args: Any,
    num_samples: int = 1000,
    seed: int | None = None,
    **kwargs: Any,
) -> GuideWeights:
    """Measure how far a guide is from the posterior, by Pareto-smoothed importance weights [1].

    The model and the guide run once for each draw. So the guide can be any Pyro program that
    samples the latent sites, trained or not. A good ``k_hat`` cannot rule out a mode that the guide
    never reaches.

    :param guide: a guide from Pyro or this package.
    :param model: its model; discrete sites that the guide lacks are summed out.
    :param args: arguments of both.
    :param int num_samples: number of draws.
    :param int seed: seed of the draws; ``None`` takes one from PyTorch's generator.
    :param kwargs: keyword arguments of both.
    :returns: the draws and their weights.
    :raises ValueError: if a plate subsamples, the guide lacks one of the model's latent sites, or
        all draws have zero density.

    Example::

        >>> def model(x):
        ...     loc = pyro.sample("loc", dist.Normal(0.0, 10.0))
        ...     pyro.sample("x", dist.Normal(loc, 1.0).expand([len(x)]).to_event(1), obs=x)
        >>> def guide(x):
        ...     pyro.sample("loc", dist.Normal(x.mean(), len(x) ** -0.5))
        >>> found = psis(guide, model, torch.linspace(-1.0, 3.0, 20), num_samples=200, seed=0)
        >>> found.k_hat < 0.5
        True
    """
    checks.function("guide", guide)
    checks.integer("num_samples", num_samples, 1)
    summed = sum_out(model, *args, **kwargs)
    rows: list[dict[str, Any]] = []
    log_weights = []
    named = named_arguments(model, args, kwargs)
    with named, seeded(fresh_seed(seed)), torch.no_grad():
        for _ in range(num_samples):
            drawn = poutine.trace(guide).get_trace(*args, **kwargs)
            replayed = poutine.trace(poutine.replay(summed, drawn)).get_trace(*args, **kwargs)
            names = _latents(replayed)
            _check(names, drawn, replayed)
            log_weights.append(replayed.log_prob_sum() - drawn.log_prob_sum())
            rows.append({name: drawn.nodes[name]["value"] for name in names})
    weights = torch.stack([torch.as_tensor(each) for each in log_weights])
    found = smoothed_weights(weights)
    evidence = weights.double().nan_to_num(nan=-torch.inf).logsumexp(0).item()
    return GuideWeights(
        {name: torch.stack([row[name] for row in rows]) for name in rows[0]},
        found.log_weights,
        found.k_hat,
        found.effective_sample_size,
        evidence - torch.tensor(float(num_samples)).log().item(),
    )


def _latents(trace: Trace) -> list[str]:
    """Names of the latent sites of a run."""
    return [name for name in trace.stochastic_nodes if not site_is_subsample(trace.nodes[name])]


def _check(names: list[str], drawn: Trace, replayed: Trace) -> None:
    """Raise where the weight of a draw is not known."""
    if lacking := [name for name in names if name not in drawn.nodes]:
        raise ValueError(f"guide must sample all latent sites of the model, but it lacks {lacking}")
    for trace in (drawn, replayed):
        for node in trace.nodes.values():
            for frame in node.get("cond_indep_stack", ()):
                if frame.size < (frame.full_size or frame.size):
                    raise ValueError(
                        f"model and guide must see all of the data, but the plate {frame.name!r} "
                        "subsamples: weights on minibatches do not describe the posterior"
                    )
