"""CPU time of an effective draw of predictions: our samplers against Pyro's NUTS.

Two Bayesian networks whose predictions under the posterior are known from long runs of HMC,
``load_reference_posterior``: 64-8-10 on digits and 13-8-3 on wine. What is counted are the
predictive probabilities of the labels of up to a hundred test points; draws are worth the median
over these, and the least stands beside. Our kernels run four chains, compiled: SGHMC, cyclical and
expanded, and L2E on minibatches, NUTS on all of the data. Pyro's NUTS runs one chain with
``jit_compile=True``. Warm-up counts; set-up and compilation are the first call, which does not, but
for Pyro's NUTS, which compiles in each run. Expanded SGHMC has the
same network, but its weights are products, whose prior has the same mean and variance and heavier
tails: another posterior.

A fast sampler of a wrong distribution is useless: the agreement of the mean predictions over all
test points with the reference, and their total variation from it, stand beside the loss. For
``reference``, it is the total variation between its own chains. Step sizes are those whose bias is
about the error of the draws; L2E runs as shipped.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise

import pyro
import pyro.distributions as dist
import pyro.infer
import torch
from _common import OURS, Case, Options, Timings, cpu_seconds, in_turn, main
from torch import Tensor
from torch.nn import functional

from pyro_ext.diagnostics import metrics
from pyro_ext.diagnostics.function_space import predictive_ess
from pyro_ext.inference import L2E, NUTS, SGHMC, CyclicalSchedule
from pyro_ext.inference.sgmcmc import SGMCMCKernel
from pyro_ext.inference.vectorized import VectorizedKernel
from pyro_ext.models.ensembles import ReferencePosterior, load_reference_posterior
from pyro_ext.nn import BayesianClassifier
from pyro_ext.potential import Backend
from pyro_ext.reparam import expand_module

NUM_CHAINS = 4
NUM_POINTS = 100
NUTS_SIDE = "Pyro, NUTS by jit_compile"


@dataclass(frozen=True)
class Problem:
    """A reference posterior, and how our kernels and NUTS run on it.

    :param str name: of the reference posterior.
    :param int batch_size: size of the minibatches.
    :param dict step_sizes: by kernel; L2E has its own.
    :param int num_samples: draws a chain of our kernels but NUTS, ``thinning`` steps apart.
    :param int warmup_steps: of these.
    :param int thinning: of these.
    :param int nuts_samples: draws a chain of NUTS, and half as many warm-up steps.
    :param str backend: of our kernels.
    """

    name: str
    batch_size: int
    step_sizes: Mapping[str, float]
    num_samples: int = 1000
    warmup_steps: int = 5000
    thinning: int = 40
    nuts_samples: int = 300
    backend: Backend = "compile"

    def lengths(self, kernel: str) -> tuple[int, int, int]:
        """Draws a chain, warm-up steps, and steps between draws."""
        if kernel == "NUTS":
            return self.nuts_samples, self.nuts_samples // 2, 1
        return self.num_samples, self.warmup_steps, self.thinning


PROBLEMS: tuple[Problem, ...] = (
    Problem("digits", 64, {"SGHMC": 0.005, "cyclical SGHMC": 0.01, "PX-SGHMC": 0.003}),
    Problem("wine", 32, {"SGHMC": 0.04, "cyclical SGHMC": 0.08, "PX-SGHMC": 0.015}),
)


def sghmc(problem: Problem, model: BayesianClassifier) -> SGMCMCKernel:
    """SGHMC."""
    step_size = problem.step_sizes["SGHMC"]
    return SGHMC(model, step_size=step_size, friction=5.0, backend=problem.backend)


def cyclical_sghmc(problem: Problem, model: BayesianClassifier) -> SGMCMCKernel:
    """SGHMC with ten cycles of the step size in the run, all of which inject noise."""
    num_steps = problem.warmup_steps + problem.num_samples * problem.thinning
    schedule = CyclicalSchedule(problem.step_sizes["cyclical SGHMC"], 10, num_steps)
    return SGHMC(model, step_size=schedule, friction=5.0, backend=problem.backend)


def px_sghmc(problem: Problem, model: BayesianClassifier) -> SGMCMCKernel:
    """SGHMC of the factors, of which the square ones have less friction."""
    step_size = problem.step_sizes["PX-SGHMC"]
    friction = {"*.P?": 1.0, "*.Q?": 1.0, "default": 5.0}
    return SGHMC(model, step_size=step_size, friction=friction, backend=problem.backend)


def l2e(problem: Problem, model: BayesianClassifier) -> SGMCMCKernel:
    """L2E with the kinetics and the step size that come with it."""
    return L2E.pretrained(model, backend=problem.backend)


def nuts(problem: Problem, model: BayesianClassifier) -> VectorizedKernel:
    """Ours, on all of the data."""
    return NUTS(model, backend=problem.backend)


KERNELS: dict[str, Callable[[Problem, BayesianClassifier], VectorizedKernel]] = {
    "SGHMC": sghmc,
    "cyclical SGHMC": cyclical_sghmc,
    "PX-SGHMC": px_sghmc,
    "L2E": l2e,
    "NUTS": nuts,
}


class Predictions:
    """Predictions from the draws of a sampler, compared with the reference.

    :param BayesianClassifier model: the model of the draws.
    :param ReferencePosterior reference: the reference.
    """

    def __init__(self, model: BayesianClassifier, reference: ReferencePosterior) -> None:
        self._model = model
        self._reference = reference
        self._draws: dict[str, Tensor] = {}
        self._sizes = torch.empty(0)
        self._seconds = math.nan

    def judge(self, draws: dict[str, Tensor], seconds: float) -> float:
        """CPU milliseconds of an effective draw.

        :param dict draws: the draws. **Shape:** ``(num_chains, num_draws, *event)`` each.
        :param float seconds: what they took.
        """
        data = self._reference.dataset
        inputs, labels = data.test_inputs[:NUM_POINTS], data.test_targets[:NUM_POINTS]
        right = self._model.log_likelihood(draws, inputs, labels).double().exp()
        found = predictive_ess(torch.stack([right, 1.0 - right], -1))
        self._draws, self._seconds, self._sizes = draws, seconds, found[:, 0]
        return 1e3 * seconds / self._effective_draws()

    def quality(self) -> dict[str, float]:
        """Measure the effective sample size and the predictive accuracy of the last draws."""
        data, target = self._reference.dataset, self._reference.probabilities
        mean = torch.cat(
            [
                self._model.probabilities(self._draws, some).double().mean((0, 1))
                for some in data.test_inputs.split(NUM_POINTS)
            ]
        )
        return {
            "ess_per_s": self._effective_draws() / self._seconds,
            "ess_per_s_min": float(self._sizes.min()) / self._seconds,
            "effective_draws": self._effective_draws(),
            "cpu_s": self._seconds,
            "tv": metrics.total_variation(mean, target),
            "agreement": metrics.agreement(mean, target),
            "nll": metrics.nll(mean, data.test_targets),
        }

    def _effective_draws(self) -> float:
        return float(self._sizes.median())


class OurRuns:
    """Runs of one of our kernels, which is set up and compiled once.

    :param str kernel: its name in ``KERNELS``.
    :param Problem problem: the problem.
    :param ReferencePosterior reference: its reference posterior.
    """

    def __init__(self, kernel: str, problem: Problem, reference: ReferencePosterior) -> None:
        model = reference.model(None if kernel == "NUTS" else problem.batch_size)
        if kernel == "PX-SGHMC":
            network = expand_module(model.network.module, reference.prior_scale)
            model = BayesianClassifier(network, problem.batch_size)
        data = reference.dataset
        self._lengths = problem.lengths(kernel)
        self._kernel = KERNELS[kernel](problem, model)
        self._seed = 0
        self.predictions = Predictions(model, reference)

        def first() -> None:
            _, warmup_steps, thinning = self._lengths
            self._kernel.setup(warmup_steps, data.train_inputs, data.train_targets)
            self._sample(2, thinning)

        self.first_call = cpu_seconds(first)

    def __call__(self) -> float:
        """CPU milliseconds of an effective draw in one more run."""
        kept: dict[str, Tensor] = {}

        def run() -> None:
            kept.update(self._sample(*self._lengths[:2]))

        self._seed += 1
        seconds = cpu_seconds(run)
        return self.predictions.judge(kept, seconds)

    def _sample(self, num_samples: int, warmup_steps: int) -> dict[str, Tensor]:
        chains = self._kernel.begin(range(NUM_CHAINS), seed=self._seed)
        steps = [warmup_steps + self._lengths[2] * (i + 1) for i in range(num_samples)]
        position = self._kernel.record(chains, steps)[1].position.transpose(0, 1)
        return self._kernel.potential.layout.unflatten(position)


def plain_model(reference: ReferencePosterior, inputs: Tensor, labels: Tensor) -> None:
    """The model of a reference posterior in Pyro alone: ``jit_compile`` takes no module."""
    widths = [inputs.shape[1], *reference.hidden_features, reference.probabilities.shape[1]]
    hidden = inputs
    for number, (fan_in, fan_out) in enumerate(pairwise(widths)):
        law = dist.Normal(torch.zeros(fan_out, fan_in), reference.prior_scale)
        weight = pyro.sample(f"{2 * number}.weight", law.to_event(2))
        law = dist.Normal(torch.zeros(fan_out), reference.prior_scale)
        bias = pyro.sample(f"{2 * number}.bias", law.to_event(1))
        hidden = functional.linear(functional.silu(hidden) if number else hidden, weight, bias)
    with pyro.plate("data", len(inputs)):
        pyro.sample("label", dist.Categorical(logits=hidden), obs=labels)


class NUTSRuns:
    """Runs of Pyro's NUTS.

    :param Problem problem: the problem.
    :param ReferencePosterior reference: its reference posterior.
    """

    def __init__(self, problem: Problem, reference: ReferencePosterior) -> None:
        self._num_samples = problem.nuts_samples
        self._data = reference.dataset
        self._model = partial(plain_model, reference)
        self._seed = 0
        self.predictions = Predictions(reference.model(), reference)

    def __call__(self) -> float:
        """CPU milliseconds of an effective draw in one more run."""
        self._seed += 1
        pyro.set_rng_seed(self._seed)
        kernel = pyro.infer.NUTS(self._model, jit_compile=True, ignore_jit_warnings=True)
        mcmc = pyro.infer.MCMC(
            kernel, self._num_samples, self._num_samples // 2, disable_progbar=True
        )
        run = partial(mcmc.run, self._data.train_inputs, self._data.train_targets)
        seconds = cpu_seconds(run)
        return self.predictions.judge(mcmc.get_samples(group_by_chain=True), seconds)


def measure(problem: Problem, kernels: tuple[str, ...], rounds: int) -> Iterator[Case]:
    """Run our kernels and Pyro's NUTS in turn: a case for each kernel."""
    reference = load_reference_posterior(problem.name)
    ours = {name: OurRuns(name, problem, reference) for name in kernels}
    theirs = NUTSRuns(problem, reference)
    times = in_turn({**ours, NUTS_SIDE: theirs}, rounds).rounds
    nuts_quality = theirs.predictions.quality()
    for name, runs in ours.items():
        yield Case(
            f"{problem.name}, {name}",
            Timings({OURS: times[name], NUTS_SIDE: times[NUTS_SIDE]}),
            {OURS: runs.first_call},
            {
                OURS: runs.predictions.quality(),
                NUTS_SIDE: nuts_quality,
                "reference": {"tv": reference.chain_total_variation},
            },
        )


def cases(options: Options) -> Iterator[Case]:
    """Each kernel on each problem."""
    problems, kernels = PROBLEMS, tuple(KERNELS)
    if options.smoke:
        tiny = replace(
            PROBLEMS[1],
            num_samples=8,
            warmup_steps=2,
            thinning=2,
            nuts_samples=8,
            backend="trace",
        )
        problems, kernels = (tiny,), ("SGHMC", "PX-SGHMC", "NUTS")
    for problem in problems:
        yield from measure(problem, kernels, options.rounds)


if __name__ == "__main__":
    main(cases, "ms per effective draw", rounds=3, packages=("arviz",))
