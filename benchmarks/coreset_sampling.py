"""Sampling a logistic regression on many data: NUTS on all of them, beside a coreset of a hundred.

``pyro_ext`` draws from the posterior of 100 pseudo observations whose inputs and labels a forward
divergence has taught, by ``guide.sample_posterior`` with 16 chains. Pyro's NUTS runs on the model
with all data, as a user would run it, and ours with four chains, compiled. Covariates are
correlated. Times are CPU time of one thread for an effective draw, by the smallest effective sample
size, in a run with warm-up, set-up and compilation; beside them stand the negative log likelihood
of 20,000 test points, the largest distance of a posterior mean from that of a long run on all data,
in its standard deviations, and the ratios of standard deviations. ``first_call_s`` has the training
of the coreset, and ``ratio_with_building`` counts it.
"""

import warnings
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import arviz as az
import pyro
import pyro.distributions as dist
import pyro.infer
import torch
from _common import OURS, Case, Options, cpu_seconds, in_turn, main
from torch import Tensor

from pyro_ext.diagnostics import metrics
from pyro_ext.inference import MCMC, NUTS, LaplaceHMC
from pyro_ext.inference.pseudocoresets import (
    AutoPseudocoreset,
    ForwardKL,
    predictive_probabilities,
    standard_deviation_ratios,
    standardized_mean_differences,
)

PYRO_ALL, OURS_ALL = "Pyro, NUTS on all", f"{OURS}, NUTS on all"
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
        self.seconds = 0.0

    def __call__(self) -> float:
        """CPU milliseconds of an effective draw in one more run."""
        self.seconds = cpu_seconds(self._keep)
        return 1e3 * self.seconds / self.effective()

    def effective(self) -> float:
        """Smallest effective sample size of the last run."""
        effective = az.ess(az.convert_to_dataset({"weight": self.draws.numpy()}))["weight"]
        return float(effective.min())

    def _keep(self) -> None:
        self.draws = self._run().get_samples(group_by_chain=True)["weight"]

    def quality(self, x: Tensor, y: Tensor, reference: Tensor) -> dict[str, float]:
        """Measure the cost, the effective sample size and the accuracy of the last run's draws."""
        samples = {"weight": self.draws.flatten(0, 1)}
        others = {"weight": reference.flatten(0, 1)}
        stride = max(1, len(samples["weight"]) // NUM_PREDICTED)
        some = {"weight": samples["weight"][::stride]}
        ratios = standard_deviation_ratios(samples, others)["weight"]
        distance = standardized_mean_differences(samples, others)["weight"].abs().max()
        return {
            "cpu_s": self.seconds,
            "ess": self.effective(),
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

    def pyro_nuts() -> Any:
        pyro.set_rng_seed(1)
        start = {"weight": torch.zeros(x.shape[1], dtype=dtype)}
        mcmc = pyro.infer.MCMC(
            pyro.infer.NUTS(model),
            num_samples,
            warmup_steps,
            initial_params=start,
            disable_progbar=True,
        )
        mcmc.run(x, y)
        return mcmc

    def our_nuts() -> Any:
        start = {"weight": torch.zeros(4, x.shape[1], dtype=dtype)}
        mcmc = MCMC(
            NUTS(model, backend="compile"),
            num_samples // 4,
            warmup_steps // 2,
            num_chains=4,
            initial_params=start,
            seed=1,
            progress=False,
        )
        return mcmc.run(x, y)

    runs = {OURS: Draws(coreset), PYRO_ALL: Draws(pyro_nuts), OURS_ALL: Draws(our_nuts)}
    timings = in_turn(runs, rounds)
    long = MCMC(LaplaceHMC(model), num_samples, 20, num_chains=4, seed=2, progress=False)
    reference = long.run(x, y).get_samples(group_by_chain=True)["weight"]
    quality = {side: run.quality(*test, reference) for side, run in runs.items()}
    medians = timings.medians()
    with_building = medians[OURS] + 1e3 * first_call[OURS] / quality[OURS]["ess"]
    for side in (PYRO_ALL, OURS_ALL):
        quality[side]["ratio_with_building"] = medians[side] / with_building
    words = f"{num_points:,} points x {num_covariates}, {size} pseudo points, {dtype}"
    return Case(words.replace("torch.", ""), timings, first_call, quality)


def cases(options: Options) -> Iterator[Case]:
    """Each type of numbers."""
    warnings.filterwarnings("ignore", "The parameter 'dims'")
    if options.smoke:
        sizes = {"size": 10, "num_steps": 30, "num_samples": 40, "warmup_steps": 20}
        yield measure(2000, 3, torch.float32, 1, **sizes)
        return
    for dtype in (torch.float32, torch.float64):
        yield measure(100_000, 20, dtype, options.rounds)


if __name__ == "__main__":
    main(cases, "ms per effective draw", rounds=1, packages=("arviz",))
