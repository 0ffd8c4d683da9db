"""A whole process of ours."""

from collections.abc import Callable

import pyro
import pyro.distributions as dist
import torch
from _cold_data import LENGTHS, ORDER, WIDTH, arguments
from torch import Tensor

from pyro_ext.inference import MCMC, NUTS


def eight_schools(effects: Tensor, errors: Tensor) -> None:
    """Effects of coaching in eight schools, in standard deviations from their mean."""
    mean = pyro.sample("mean", dist.Normal(0.0, 5.0))
    spread = pyro.sample("spread", dist.HalfCauchy(5.0))
    with pyro.plate("schools", len(effects)):
        standard = pyro.sample("standard", dist.Normal(0.0, 1.0))
        pyro.sample("effect", dist.Normal(mean + spread * standard, errors), obs=effects)


def network(inputs: Tensor, labels: Tensor) -> None:
    """A network of 985 parameters."""
    weight0 = pyro.sample("weight0", dist.Normal(torch.zeros(64, WIDTH), 1.0).to_event(2))
    bias0 = pyro.sample("bias0", dist.Normal(torch.zeros(WIDTH), 1.0).to_event(1))
    weight1 = pyro.sample("weight1", dist.Normal(torch.zeros(WIDTH, 10), 1.0).to_event(2))
    bias1 = pyro.sample("bias1", dist.Normal(torch.zeros(10), 1.0).to_event(1))
    with pyro.plate("images", len(inputs)):
        logits = torch.tanh(inputs @ weight0 + bias0) @ weight1 + bias1
        pyro.sample("label", dist.Categorical(logits=logits), obs=labels)


def regression(scores: Tensor, school: Tensor, iq: Tensor) -> None:
    """Scores of children by what is known of their mothers, in the units of the data."""
    weight = pyro.sample("weight", dist.Normal(torch.zeros(3), 100.0).to_event(1))
    noise = pyro.sample("noise", dist.HalfCauchy(2.5))
    with pyro.plate("children", len(scores)):
        mean = weight[0] + weight[1] * school + weight[2] * iq
        pyro.sample("score", dist.Normal(mean, noise), obs=scores)


def autoregression(series: Tensor) -> None:
    """A series by the five values before each."""
    level = pyro.sample("level", dist.Normal(0.0, 10.0))
    weight = pyro.sample("weight", dist.Normal(torch.zeros(ORDER), 10.0).to_event(1))
    noise = pyro.sample("noise", dist.HalfCauchy(2.5))
    size = len(series)
    lagged = [weight[k] * series[ORDER - 1 - k : size - 1 - k] for k in range(ORDER)]
    with pyro.plate("steps", size - ORDER):
        pyro.sample("value", dist.Normal(level + sum(lagged), noise), obs=series[ORDER:])


def hierarchy(values: Tensor, group: Tensor, floor: Tensor) -> None:
    """Intercepts of 85 groups, not centered."""
    mean = pyro.sample("mean", dist.Normal(0.0, 5.0))
    spread = pyro.sample("spread", dist.HalfNormal(1.0))
    slope = pyro.sample("slope", dist.Normal(0.0, 5.0))
    noise = pyro.sample("noise", dist.HalfNormal(1.0))
    with pyro.plate("groups", 85):
        standard = pyro.sample("standard", dist.Normal(0.0, 1.0))
    with pyro.plate("rows", len(values)):
        center = mean + spread * standard[group] + slope * floor
        pyro.sample("value", dist.Normal(center, noise), obs=values)


def run(name: str) -> None:
    """Draw by the shortest call."""
    models: dict[str, Callable[..., None]] = {
        "eight schools": eight_schools,
        "regression": regression,
        "autoregression": autoregression,
        "hierarchy": hierarchy,
        "network": network,
    }
    number, depth = LENGTHS.get(name, (1000, 10))
    kernel = NUTS(models[name], max_tree_depth=depth)
    mcmc = MCMC(kernel, number, num_chains=4, seed=0, progress=False)
    mcmc.run(*(torch.from_numpy(each) for each in arguments(name)))
