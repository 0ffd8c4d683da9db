"""Models of the kinds that posteriordb holds, with simulated data: what NUTS has to get right."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

EFFECTS = (28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0)
ERRORS = (15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0)
NUM_GROUPS, NUM_LAGS = 20, 5


class Posterior(NamedTuple):
    """A model, its data, and how NUTS is set."""

    model: Callable[..., None]
    data: tuple[Any, ...]
    options: dict[str, Any]


def eight_schools(effects: Tensor, errors: Tensor) -> None:
    mean = pyro.sample("mean", dist.Normal(0.0, 5.0))
    spread = pyro.sample("spread", dist.HalfCauchy(5.0))
    with pyro.plate("schools", len(effects)):
        standard = pyro.sample("standard", dist.Normal(0.0, 1.0))
        pyro.sample("effect", dist.Normal(mean + spread * standard, errors), obs=effects)


def kid_scores(school: Tensor, intelligence: Tensor, score: Tensor) -> None:
    """A regression with an interaction, as of the scores of children on those of their mothers."""
    weight = pyro.sample("weight", dist.Normal(torch.zeros(4), 100.0).to_event(1))
    scale = pyro.sample("scale", dist.HalfCauchy(2.5))
    mean = weight[0] + weight[1] * school + weight[2] * intelligence
    with pyro.plate("children", len(score)):
        pyro.sample(
            "score", dist.Normal(mean + weight[3] * school * intelligence, scale), obs=score
        )


def mixed_counts(group: Tensor, x: Tensor, count: Tensor) -> None:
    """A Poisson regression with intercepts of groups."""
    weight = pyro.sample("weight", dist.Normal(torch.zeros(2), 5.0).to_event(1))
    spread = pyro.sample("spread", dist.HalfCauchy(1.0))
    with pyro.plate("groups", NUM_GROUPS):
        standard = pyro.sample("standard", dist.Normal(0.0, 1.0))
    logarithm = weight[0] + weight[1] * x + spread * standard[group]
    with pyro.plate("rows", len(count)):
        pyro.sample("count", dist.Poisson(logarithm.exp()), obs=count)


def horseshoe(x: Tensor, y: Tensor) -> None:
    """A regression that a few of many columns explain."""
    scale = pyro.sample("scale", dist.HalfNormal(1.0))
    overall = pyro.sample("overall", dist.HalfCauchy(0.2))
    with pyro.plate("columns", x.shape[1]):
        local = pyro.sample("local", dist.HalfCauchy(1.0))
        standard = pyro.sample("standard", dist.Normal(0.0, 1.0))
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Normal(x @ (standard * local * overall), scale), obs=y)


def autoregression(series: Tensor) -> None:
    """Five lags."""
    level = pyro.sample("level", dist.Normal(0.0, 10.0))
    lags = pyro.sample("lags", dist.Normal(torch.zeros(NUM_LAGS), 10.0).to_event(1))
    scale = pyro.sample("scale", dist.HalfCauchy(2.5))
    past = series.unfold(0, NUM_LAGS, 1)[:-1].flip(-1)
    with pyro.plate("times", len(past)):
        pyro.sample("value", dist.Normal(level + past @ lags, scale), obs=series[NUM_LAGS:])


def posteriors() -> dict[str, Posterior]:
    """All of them; the generator is one whose numbers NumPy never changes."""
    random = np.random.RandomState(0)
    school = (random.rand(434) < 0.8).astype(float)
    mother = random.randn(434)
    score = 77.0 + 12.0 * school + 14.0 * mother - 7.0 * school * mother + 18.0 * random.randn(434)
    group = random.randint(0, NUM_GROUPS, 150)
    x = random.randn(150)
    count = random.poisson(np.exp(0.5 + 0.4 * x + 0.6 * random.randn(NUM_GROUPS)[group]))
    columns = random.randn(80, 20)
    y = columns[:, :3] @ np.array([2.0, -1.5, 1.0]) + 0.7 * random.randn(80)
    series = np.zeros(205)
    for t in range(NUM_LAGS, len(series)):
        past = series[t - NUM_LAGS : t][::-1]
        mean = 0.3 + past @ np.array([0.5, -0.3, 0.2, 0.1, -0.1])
        series[t] = mean + 0.8 * random.randn()
    real = torch.get_default_dtype()

    def tensors(*arrays: Any) -> tuple[Tensor, ...]:
        return tuple(torch.as_tensor(array, dtype=real) for array in arrays)

    careful = {"target_accept_prob": 0.95}
    return {
        "eight schools": Posterior(eight_schools, tensors(EFFECTS, ERRORS), {}),
        "kid scores": Posterior(kid_scores, tensors(school, mother, score), {}),
        "mixed counts": Posterior(
            mixed_counts, (torch.as_tensor(group), *tensors(x, count)), careful
        ),
        "horseshoe": Posterior(horseshoe, tensors(columns, y), {"target_accept_prob": 0.99}),
        "autoregression": Posterior(autoregression, tensors(series), {}),
    }
