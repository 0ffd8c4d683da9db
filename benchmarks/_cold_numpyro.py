"""A whole process of NumPyro, with the models of ours."""

from typing import Any

import jax.numpy as jnp
import numpyro
import numpyro.distributions as d
from _cold_data import LENGTHS, ORDER, WIDTH, arguments
from jax import random
from numpyro import infer


def schools(effects: Any, errors: Any) -> None:
    """Eight schools."""
    mean = numpyro.sample("mean", d.Normal(0.0, 5.0))
    spread = numpyro.sample("spread", d.HalfCauchy(5.0))
    with numpyro.plate("schools", 8):
        standard = numpyro.sample("standard", d.Normal(0.0, 1.0))
        numpyro.sample("effect", d.Normal(mean + spread * standard, errors), obs=effects)


def layers(inputs: Any, labels: Any) -> None:
    """A network."""
    weight0 = numpyro.sample("weight0", d.Normal(jnp.zeros((64, WIDTH)), 1.0).to_event(2))
    bias0 = numpyro.sample("bias0", d.Normal(jnp.zeros(WIDTH), 1.0).to_event(1))
    weight1 = numpyro.sample("weight1", d.Normal(jnp.zeros((WIDTH, 10)), 1.0).to_event(2))
    bias1 = numpyro.sample("bias1", d.Normal(jnp.zeros(10), 1.0).to_event(1))
    with numpyro.plate("images", len(inputs)):
        logits = jnp.tanh(inputs @ weight0 + bias0) @ weight1 + bias1
        numpyro.sample("label", d.Categorical(logits=logits), obs=labels)


def linear(scores: Any, school: Any, iq: Any) -> None:
    """A regression."""
    weight = numpyro.sample("weight", d.Normal(jnp.zeros(3), 100.0).to_event(1))
    noise = numpyro.sample("noise", d.HalfCauchy(2.5))
    with numpyro.plate("children", len(scores)):
        mean = weight[0] + weight[1] * school + weight[2] * iq
        numpyro.sample("score", d.Normal(mean, noise), obs=scores)


def autoregression(series: Any) -> None:
    """A series by the values before each."""
    level = numpyro.sample("level", d.Normal(0.0, 10.0))
    weight = numpyro.sample("weight", d.Normal(jnp.zeros(ORDER), 10.0).to_event(1))
    noise = numpyro.sample("noise", d.HalfCauchy(2.5))
    size = len(series)
    lagged = [weight[k] * series[ORDER - 1 - k : size - 1 - k] for k in range(ORDER)]
    with numpyro.plate("steps", size - ORDER):
        numpyro.sample("value", d.Normal(level + sum(lagged), noise), obs=series[ORDER:])


def groups(values: Any, group: Any, floor: Any) -> None:
    """A hierarchy."""
    mean = numpyro.sample("mean", d.Normal(0.0, 5.0))
    spread = numpyro.sample("spread", d.HalfNormal(1.0))
    slope = numpyro.sample("slope", d.Normal(0.0, 5.0))
    noise = numpyro.sample("noise", d.HalfNormal(1.0))
    with numpyro.plate("groups", 85):
        standard = numpyro.sample("standard", d.Normal(0.0, 1.0))
    with numpyro.plate("rows", len(values)):
        center = mean + spread * standard[group] + slope * floor
        numpyro.sample("value", d.Normal(center, noise), obs=values)


def run(name: str) -> None:
    """Draw, chains together."""
    models = {
        "eight schools": schools,
        "regression": linear,
        "autoregression": autoregression,
        "hierarchy": groups,
        "network": layers,
    }
    number, depth = LENGTHS.get(name, (1000, 10))
    kernel = infer.NUTS(models[name], max_tree_depth=depth)
    options = {"num_chains": 4, "chain_method": "vectorized", "progress_bar": False}
    mcmc = infer.MCMC(kernel, num_warmup=number, num_samples=number, **options)
    mcmc.run(random.PRNGKey(0), *(jnp.asarray(each) for each in arguments(name)))
    for value in mcmc.get_samples().values():
        value.block_until_ready()
