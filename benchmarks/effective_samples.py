"""CPU time of an effective draw: SGLD, PSGLD, SGHMC, SGNHT and NUTS against Pyro's NUTS.

Logistic regression (breast cancer, 455 rows, 31 parameters). What is counted are the logits of the
test rows: ArviZ's effective sample size goes by ranks, so that of their probabilities is the same.
Draws are worth the median over test rows; the least stands beside. Our kernels run through the
driver with four chains and minibatches of 32, compiled, NUTS on all of the data; that of Pyro runs
as its users call it, eagerly and with ``jit_compile=True``. Warm-up counts; the first call,
compilation above all, counts in ``ms_with_first_call`` alone. Errors of mean and standard deviation
of the logits are next to a long run of our NUTS, for an effective draw from a wrong distribution is
worth little.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import arviz
import numpy as np
import pyro
import pyro.infer
from _common import OURS, Array, Case, Options, Timings, cpu_seconds, in_turn, main
from _problems import (
    PROBLEMS,
    Draws,
    logits,
    moment_errors,
    predictive_nll,
    reference_draws,
    whole_logistic_regression,
)

from pyro_ext.inference import MCMC, NUTS, PSGLD, SGHMC, SGLD, SGNHT
from pyro_ext.inference.vectorized import VectorizedKernel

PROBLEM = PROBLEMS["logistic regression"]
NUM_CHAINS = 4

# The largest step sizes that keep the errors of the logits near a tenth of a standard deviation.
KERNELS: dict[str, Callable[[], VectorizedKernel]] = {
    "SGLD": partial(SGLD, PROBLEM.model, step_size=1e-3, backend="compile"),
    "PSGLD": partial(PSGLD, PROBLEM.model, step_size=2e-5, backend="compile"),
    "SGHMC": partial(SGHMC, PROBLEM.model, step_size=0.02, friction=5.0, backend="compile"),
    "SGNHT": partial(SGNHT, PROBLEM.model, step_size=0.03, friction=5.0, backend="compile"),
}


@dataclass(frozen=True)
class Sizes:
    """Lengths of the runs.

    :param int num_samples: draws a chain of our kernels, ``thinning`` steps apart.
    :param int warmup_steps: of our kernels.
    :param int thinning: of our kernels.
    :param int nuts_samples: draws a chain of NUTS, and half as many warm-up steps.
    :param int reference_samples: draws of the long run of NUTS, of each of four chains.
    """

    num_samples: int = 2000
    warmup_steps: int = 5000
    thinning: int = 50
    nuts_samples: int = 400
    reference_samples: int = 1000


SMOKE = Sizes(num_samples=8, warmup_steps=2, thinning=2, nuts_samples=8, reference_samples=8)


class Runs:
    """Runs of one sampler, and what became of them.

    :param Callable sample: takes numbers of draws and of warm-up steps, and gives draws by chain.
    :param int num_samples: draws of a run.
    :param int warmup_steps: of a run.
    :param bool compiles: whether a first call has something to compile.
    """

    def __init__(
        self,
        sample: Callable[[int, int], dict[str, Array]],
        num_samples: int,
        warmup_steps: int,
        compiles: bool,
    ) -> None:
        self._sample = partial(sample, num_samples, warmup_steps)
        self._draws: dict[str, Array] = {}
        self._logits = np.empty(0)
        self._whole = 0.0
        self.first_call = cpu_seconds(partial(sample, 4, 0)) if compiles else 0.0

    def __call__(self) -> float:
        """CPU milliseconds of an effective draw in one more run."""

        def run() -> None:
            self._draws = self._sample()

        self._whole = cpu_seconds(run)
        self._logits = logits(self._draws, PROBLEM.load().test_inputs.numpy())
        return 1e3 * (self._whole - self.first_call) / float(np.median(self._sizes()))

    def quality(self, reference: Draws) -> dict[str, float]:
        """Measure the effective sample size and the accuracy of the last run's draws."""
        sizes = self._sizes()
        flat = {name: np.concatenate(value) for name, value in self._draws.items()}
        return {
            "effective_draws": float(np.median(sizes)),
            "effective_draws_min": float(sizes.min()),
            "ms_with_first_call": 1e3 * self._whole / float(np.median(sizes)),
            "nll": predictive_nll(PROBLEM, flat),
            **moment_errors({"logit": np.concatenate(self._logits)}, reference),
        }

    def _sizes(self) -> Array:
        dataset = arviz.convert_to_dataset({"logit": self._logits})
        return np.asarray(arviz.ess(dataset)["logit"])


def driver_draws(
    make: Callable[[], VectorizedKernel], thinning: int, num_samples: int, warmup_steps: int
) -> dict[str, Array]:
    """Draws of our driver by chain."""
    mcmc = MCMC(make(), num_samples, warmup_steps, NUM_CHAINS, thinning, seed=0, progress=False)
    mcmc.run(*PROBLEM.arguments)
    return {name: value.numpy() for name, value in mcmc.get_samples(group_by_chain=True).items()}


def one_nuts_chain(jit_compile: bool, num_samples: int, warmup_steps: int) -> dict[str, Array]:
    """Draws of Pyro's NUTS."""
    pyro.set_rng_seed(1)
    kernel = pyro.infer.NUTS(
        whole_logistic_regression, jit_compile=jit_compile, ignore_jit_warnings=True
    )
    mcmc = pyro.infer.MCMC(kernel, num_samples, warmup_steps, disable_progbar=True)
    mcmc.run(*PROBLEM.arguments)
    return {name: value.numpy() for name, value in mcmc.get_samples(group_by_chain=True).items()}


def cases(options: Options) -> Iterator[Case]:
    """Each of our kernels."""
    sizes = SMOKE if options.smoke else Sizes()
    number = sizes.reference_samples
    long_run = reference_draws(number, number // 2, PROBLEM.arguments)
    reference = {"logit": logits(long_run, PROBLEM.load().test_inputs.numpy())}
    ours = {
        name: Runs(
            partial(driver_draws, make, sizes.thinning),
            sizes.num_samples,
            sizes.warmup_steps,
            compiles=True,
        )
        for name, make in list(KERNELS.items())[: 1 if options.smoke else None]
    }
    nuts = partial(NUTS, whole_logistic_regression, backend="compile")
    ours["NUTS"] = Runs(
        partial(driver_draws, nuts, 1), sizes.nuts_samples, sizes.nuts_samples // 2, compiles=True
    )
    peers = {
        name: Runs(
            partial(one_nuts_chain, jit_compile),
            sizes.nuts_samples,
            sizes.nuts_samples // 2,
            compiles=False,
        )
        for name, jit_compile in (("Pyro, NUTS", False), ("Pyro, NUTS by jit_compile", True))
    }
    rounds = in_turn({**ours, **peers}, options.rounds).rounds
    quality = {name: runs.quality(reference) for name, runs in {**ours, **peers}.items()}
    for name, runs in ours.items():
        yield Case(
            name,
            Timings({OURS: rounds[name], **_only(rounds, peers)}),
            {OURS: runs.first_call},
            {OURS: quality[name], **_only(quality, peers)},
        )


def _only(mapping: Mapping[str, Any], names: Mapping[str, object]) -> dict[str, Any]:
    return {name: mapping[name] for name in names}


if __name__ == "__main__":
    main(cases, "ms per effective draw", rounds=3, packages=("arviz",))
