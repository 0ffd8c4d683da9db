"""Write moments of five posteriors by NumPyro's NUTS and Pyro's, beside which tests hold ours.

Needs NumPyro (``pip install .[bench]``)::

    PYTHONPATH=. python tools/make_nuts_references.py tests/inference/hmc/posteriors.json
"""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import arviz
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pyro
import torch

from tests.inference.hmc.posteriors import NUM_GROUPS, NUM_LAGS, Posterior, posteriors

NUM_CHAINS, NUM_SAMPLES = 4, 5_000
PYRO_SAMPLES = 800


def eight_schools(effects: Any, errors: Any) -> None:
    """Effects of coaching."""
    mean = numpyro.sample("mean", dist.Normal(0.0, 5.0))
    spread = numpyro.sample("spread", dist.HalfCauchy(5.0))
    with numpyro.plate("schools", len(effects)):
        standard = numpyro.sample("standard", dist.Normal(0.0, 1.0))
        numpyro.sample("effect", dist.Normal(mean + spread * standard, errors), obs=effects)


def kid_scores(school: Any, intelligence: Any, score: Any) -> None:
    """A regression with an interaction."""
    weight = numpyro.sample("weight", dist.Normal(jnp.zeros(4), 100.0).to_event(1))
    scale = numpyro.sample("scale", dist.HalfCauchy(2.5))
    mean = weight[0] + weight[1] * school + weight[2] * intelligence
    mean = mean + weight[3] * school * intelligence
    numpyro.sample("score", dist.Normal(mean, scale).to_event(1), obs=score)


def mixed_counts(group: Any, x: Any, count: Any) -> None:
    """A Poisson regression with intercepts of groups."""
    weight = numpyro.sample("weight", dist.Normal(jnp.zeros(2), 5.0).to_event(1))
    spread = numpyro.sample("spread", dist.HalfCauchy(1.0))
    standard = numpyro.sample("standard", dist.Normal(jnp.zeros(NUM_GROUPS), 1.0).to_event(1))
    logarithm = weight[0] + weight[1] * x + spread * standard[group]
    numpyro.sample("count", dist.Poisson(jnp.exp(logarithm)).to_event(1), obs=count)


def horseshoe(x: Any, y: Any) -> None:
    """A regression that a few columns explain."""
    scale = numpyro.sample("scale", dist.HalfNormal(1.0))
    overall = numpyro.sample("overall", dist.HalfCauchy(0.2))
    ones = jnp.ones(x.shape[1])
    local = numpyro.sample("local", dist.HalfCauchy(ones).to_event(1))
    standard = numpyro.sample("standard", dist.Normal(0.0 * ones, 1.0).to_event(1))
    numpyro.sample("y", dist.Normal(x @ (standard * local * overall), scale).to_event(1), obs=y)


def autoregression(series: Any) -> None:
    """Five lags."""
    level = numpyro.sample("level", dist.Normal(0.0, 10.0))
    lags = numpyro.sample("lags", dist.Normal(jnp.zeros(NUM_LAGS), 10.0).to_event(1))
    scale = numpyro.sample("scale", dist.HalfCauchy(2.5))
    columns = [series[NUM_LAGS - lag : len(series) - lag] for lag in range(1, NUM_LAGS + 1)]
    mean = level + jnp.stack(columns, -1) @ lags
    numpyro.sample("value", dist.Normal(mean, scale).to_event(1), obs=series[NUM_LAGS:])


MODELS = {
    "eight schools": eight_schools,
    "kid scores": kid_scores,
    "mixed counts": mixed_counts,
    "horseshoe": horseshoe,
    "autoregression": autoregression,
}


def moments(draws: Mapping[str, Any]) -> dict[str, dict[str, list[float]]]:
    """Mean, standard deviation and the standard error of the mean of all coordinates.

    Positive sites are on the log scale, since means of heavy tails are uninformative.
    """
    result = {}
    for name, values in draws.items():
        values = np.asarray(values, dtype=float)
        values = np.log(values) if (values > 0).all() else values
        flat = values.reshape(*values.shape[:2], -1)
        size = arviz.ess(arviz.convert_to_dataset({"x": flat}), method="mean")["x"].values
        scale = flat.std((0, 1))
        result[name] = {
            "mean": flat.mean((0, 1)).tolist(),
            "sd": scale.tolist(),
            "error": (scale / np.sqrt(size)).tolist(),
        }
    return result


def by_numpyro(name: str, posterior: Posterior) -> dict[str, dict[str, list[float]]]:
    """Moments by NumPyro."""
    mcmc = numpyro.infer.MCMC(
        numpyro.infer.NUTS(MODELS[name], **posterior.options),
        num_warmup=1000,
        num_samples=NUM_SAMPLES,
        num_chains=NUM_CHAINS,
        chain_method="sequential",
        progress_bar=False,
    )
    mcmc.run(jax.random.PRNGKey(0), *(jnp.asarray(value.numpy()) for value in posterior.data))
    return moments(mcmc.get_samples(group_by_chain=True))


def by_pyro(posterior: Posterior) -> dict[str, dict[str, list[float]]]:
    """Moments by Pyro."""
    pyro.set_rng_seed(0)
    kernel = pyro.infer.NUTS(
        posterior.model, jit_compile=True, ignore_jit_warnings=True, **posterior.options
    )
    mcmc = pyro.infer.MCMC(kernel, PYRO_SAMPLES, 500, disable_progbar=True)
    mcmc.run(*posterior.data)
    return moments(mcmc.get_samples(group_by_chain=True))


def main() -> None:
    """Write the file."""
    jax.config.update("jax_enable_x64", True)
    torch.set_default_dtype(torch.float64)
    found = {
        name: {"NumPyro": by_numpyro(name, posterior), "Pyro": by_pyro(posterior)}
        for name, posterior in posteriors().items()
    }
    for name, sides in found.items():
        worst = max(
            float(
                np.max(
                    np.abs(np.subtract(site["mean"], sides["Pyro"][key]["mean"]))
                    / np.hypot(site["error"], sides["Pyro"][key]["error"])
                )
            )
            for key, site in sides["NumPyro"].items()
        )
        print(f"{name}: NumPyro and Pyro differ by {worst:.1f} standard errors at most")
    Path(sys.argv[1]).write_text(json.dumps(found, indent=None) + "\n")


if __name__ == "__main__":
    main()
