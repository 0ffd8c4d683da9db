"""Sampling a logistic regression on many data: NUTS on all of them, beside a coreset of a hundred.

``pyro_ext`` draws from the posterior of 100 pseudo observations whose inputs and labels a forward
divergence has taught, by ``guide.sample_posterior`` with 16 chains. Pyro's NUTS runs on the model
with all data, as a user would run it, and a second time on our recorded potential of all data, to
tell what the record alone gains. Covariates are correlated. Times are CPU seconds of one thread for
a run with warm-up; beside them stand the smallest effective sample size of each side, the negative
log likelihood of 20,000 test points, the largest distance of a posterior mean from that of a long
run on all data, in its standard deviations, and the ratios of standard deviations. ``first_call_s``
has the training of the coreset, and ``ratio_with_building`` counts it. Prints one line of JSON.
"""

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import arviz as az
import pyro
import pyro.distributions as dist
import torch
from _common import OURS, Case, arguments, cpu_seconds, in_turn, report, single_thread
from pyro.infer import MCMC as PyroMCMC
from pyro.infer import NUTS
from torch import Tensor

from pyro_ext.diagnostics import metrics
from pyro_ext.inference import MCMC, LaplaceHMC
from pyro_ext.inference.pseudocoresets import (
    AutoPseudocoreset,
    ForwardKL,
    predictive_probabilities,
    standard_deviation_ratios,
    standardized_mean_differences,
)
from pyro_ext.potential import Potential

NUTS_ALL, RECORDED = "pyro_nuts", "recorded_nuts"
NUM_TEST = 20_000
NUM_PREDICTED = 200  # draws behind a prediction
NUM_CHAINS = 16


def model(x: Tensor, y: Tensor) -> None:
    """Logistic regression."""
    prior = dist.Normal(torch.zeros(x.shape[1], dtype=x.dtype), 2.0).to_event(1)
    weight = pyro.sample("weight", prior)
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Bernoulli(logits=x @ weight), obs=y)


def simulated(num_points: int, num_covariates: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Covariates with correlations of a half between neighbours, an intercept, and labels."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(num_points, num_covariates, generator=generator, dtype=torch.float64)
    places = torch.arange(num_covariates)
    covariance = 0.5 ** (places[:, None] - places).abs().double()
    x = torch.cat([torch.ones(num_points, 1), noise @ torch.linalg.cholesky(covariance).mT], 1)
    weight = 0.5 * torch.randn(num_covariates + 1, generator=generator, dtype=torch.float64)
    uniform = torch.rand(num_points, generator=generator, dtype=torch.float64)
    return x.to(dtype), (uniform < (x @ weight).sigmoid()).to(dtype)


class Draws:
    """A run that can be repeated, and its draws.

    :param run: returns what has run.
    """

    def __init__(self, run: Callable[[], Any]) -> None:
        self._run = run
        self.draws = torch.empty(0)

    def __call__(self) -> float:
        """CPU seconds of another run."""
        return cpu_seconds(self._keep)

    def _keep(self) -> None:
        self.draws = self._run().get_samples(group_by_chain=True)["weight"]

    def quality(self, x: Tensor, y: Tensor, reference: Tensor) -> dict[str, float]:
        """What the draws of the last run are worth."""
        samples = {"weight": self.draws.flatten(0, 1)}
        others = {"weight": reference.flatten(0, 1)}
        effective = az.ess(az.convert_to_dataset({"weight": self.draws.numpy()}))["weight"]
        stride = max(1, len(samples["weight"]) // NUM_PREDICTED)
        some = {"weight": samples["weight"][::stride]}
        ratios = standard_deviation_ratios(samples, others)["weight"]
        distance = standardized_mean_differences(samples, others)["weight"].abs().max()
        return {
            "ess": float(effective.min()),
            "nll": metrics.nll(predictive_probabilities(model, some, x, y), y.long()),
            "mean_distance": float(distance),
            "smallest_scale_ratio": float(ratios.min()),
            "largest_scale_ratio": float(ratios.max()),
        }


def measure(
    num_points: int,
    num_covariates: int,
    dtype: torch.dtype,
    rounds: int,
    *,
    size: int = 100,
    num_steps: int = 300,
    num_samples: int = 1000,
    warmup_steps: int = 500,
) -> Case:
    """Measure in turn on one problem."""
    x, y = simulated(num_points + NUM_TEST, num_covariates, dtype)
    test, (x, y) = (x[num_points:], y[num_points:]), (x[:num_points], y[:num_points])
    guides: list[AutoPseudocoreset] = []

    def build() -> None:
        guide = AutoPseudocoreset(
            model, x, y, size=size, weights="scaled", learnable=["x", "y"], seed=0
        )
        optimizer = partial(torch.optim.Adam, lr=0.02)
        guides[:] = [guide.fit(ForwardKL(), num_steps, optimizer=optimizer, progress=False)]

    first_call = {OURS: cpu_seconds(build)}
    (guide,) = guides
    few = max(4, num_samples // 10)

    def coreset() -> Any:
        return guide.sample_posterior(few, warmup_steps=20, num_chains=NUM_CHAINS)

    def nuts(kernel: NUTS, *args: Tensor) -> Any:
        pyro.set_rng_seed(1)
        start = {"weight": torch.zeros(x.shape[1], dtype=dtype)}
        mcmc = PyroMCMC(
            kernel, num_samples, warmup_steps, initial_params=start, disable_progbar=True
        )
        mcmc.run(*args)
        return mcmc

    recorded = _Recorded(Potential(model, x, y))
    runs = {
        OURS: Draws(coreset),
        NUTS_ALL: Draws(lambda: nuts(NUTS(model), x, y)),
        RECORDED: Draws(lambda: nuts(NUTS(potential_fn=recorded))),
    }
    timings = in_turn(runs, rounds)
    long = MCMC(LaplaceHMC(model), num_samples, 20, num_chains=4, seed=2, progress=False)
    reference = long.run(x, y).get_samples(group_by_chain=True)["weight"]
    quality = {side: run.quality(*test, reference) for side, run in runs.items()}
    medians = timings.medians()
    quality[OURS]["ratio_with_building"] = medians[NUTS_ALL] / (medians[OURS] + first_call[OURS])
    words = f"{num_points:,} points x {num_covariates}, {size} pseudo points, {dtype}"
    return Case(words.replace("torch.", ""), timings, first_call, quality)


class _Recorded:
    """The recorded potential as Pyro's kernels take it, with its recorded gradient."""

    def __init__(self, potential: Potential) -> None:
        self._potential = potential

    def __call__(self, params: dict[str, Tensor]) -> Tensor:
        """Potential, whose derivative is the gradient."""
        weight = params["weight"]
        value, gradient = self._potential.gradient(weight.detach()[None])
        linear = gradient[0] @ weight
        result: Tensor = value[0] + linear - linear.detach()
        return result


def main() -> None:
    """Measure in turn and print."""
    options = arguments(__doc__, rounds=1)
    single_thread()
    warnings.filterwarnings("ignore", "The parameter 'dims'")
    if options.smoke:
        cases = [
            measure(
                2000, 3, torch.float32, 1, size=10, num_steps=30, num_samples=40, warmup_steps=20
            )
        ]
    else:
        kinds = (torch.float32, torch.float64)
        cases = [measure(100_000, 20, dtype, options.rounds) for dtype in kinds]
    report("coreset_sampling", "CPU s", cases, ("arviz",), limits={"ratio": 20.0})


if __name__ == "__main__":
    main()
