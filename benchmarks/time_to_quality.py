"""Time to a given predictive loss against NUTS, on 100,000 rows.

Logistic regression on synthetic data: 100,000 rows of 20 autocorrelated inputs, 20,000 more to test
on. The posterior is nearly normal, and its mode comes from scikit-learn, which is not part of the
comparison. A side has arrived when the loss of the mean of its predictions is within 1e-4 nats of
the mode's. We run the driver with one chain of SGNHT on minibatches of 500, with the default
backend and compiled, and with one of NUTS on all of the data, compiled, after 100 warm-up steps,
with twice as many draws each time it has not arrived; the time is that of the last run, set-up and
compilation included. Pyro's NUTS runs as its users call it, eagerly and with ``jit_compile=True``,
after 100 warm-up steps; its time ends at the draw with which it has arrived. Beside the time stand
errors of mean and standard deviation next to the normal approximation, which say that the target is
met by far fewer draws than describe the posterior.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np
import pyro
import pyro.infer
from _common import OURS, Array, Case, Options, in_turn, main
from _problems import (
    Draws,
    logistic_regression,
    logits,
    synthetic_regression,
    whole_logistic_regression,
)
from torch import Tensor

from pyro_ext.inference import MCMC, NUTS, SGNHT
from pyro_ext.potential import Backend

NUM_FEATURES = 20
TOLERANCE = 1e-4


@dataclass(frozen=True)
class Target:
    """Data, and the posterior's normal approximation.

    :param int num_rows: rows to learn from; a fifth as many to test on.
    """

    num_rows: int

    @cached_property
    def _data(self) -> tuple[Tensor, Tensor]:
        return synthetic_regression(self.num_rows * 6 // 5, NUM_FEATURES)

    @property
    def train(self) -> tuple[Tensor, Tensor]:
        """Inputs and labels to learn from."""
        inputs, labels = self._data
        return inputs[: self.num_rows], labels[: self.num_rows]

    @cached_property
    def mode(self) -> dict[str, Array]:
        """Posterior mode, as one draw."""
        from sklearn.linear_model import LogisticRegression

        fit = LogisticRegression(tol=1e-8)
        inputs, labels = (part.double().numpy() for part in self.train)
        fit.fit(inputs, labels)
        return {"weight": fit.coef_, "bias": fit.intercept_}

    @cached_property
    def scale(self) -> Array:
        """Posterior standard deviations of the normal approximation, the bias last."""
        inputs = self.train[0].double().numpy()
        success = _success(self.mode, inputs)[0]
        columns = np.concatenate([inputs, np.ones((len(inputs), 1))], 1)
        precision = (columns.T * (success * (1 - success))) @ columns + np.eye(columns.shape[1])
        return np.asarray(np.sqrt(np.diag(np.linalg.inv(precision))))

    def nll(self, draws: Draws) -> float:
        """Loss of the mean of the draws' predictions at the test rows."""
        inputs, labels = (part[self.num_rows :].numpy() for part in self._data)
        success = _success(draws, inputs).mean(0)
        return float(-np.log(np.where(labels == 1, success, 1 - success)).mean())

    def has_arrived(self, draws: Draws) -> bool:
        """Tell whether the draws predict as well as the mode, up to a tolerance."""
        return self.nll(draws) < self.nll(self.mode) + TOLERANCE

    def quality(self, draws: Draws) -> dict[str, float]:
        """Excess loss, and errors of the moments in standard deviations."""
        values, center = (
            np.concatenate([part["weight"], part["bias"][:, None]], 1)
            for part in (draws, self.mode)
        )
        errors = (values.mean(0) - center[0]) / self.scale
        return {
            "excess_nll": self.nll(draws) - self.nll(self.mode),
            "mean_error": float(np.sqrt(np.square(errors).mean())),
            "sd_ratio": float((values.std(0) / self.scale).mean()),
        }


class Clock:
    """CPU and wall time that can be stopped while results are looked at."""

    def __init__(self) -> None:
        self.cpu = self.wall = 0.0
        self.go()

    def go(self) -> None:
        """Go on."""
        self._start = time.process_time(), time.perf_counter()

    def stop(self) -> None:
        """Stop."""
        self.cpu += time.process_time() - self._start[0]
        self.wall += time.perf_counter() - self._start[1]


class Arrived(Exception):
    """Ends a run of NUTS that has arrived."""


class Side:
    """A sampler on its way to a target.

    :param Callable run: takes the target and gives draws and the clock.
    :param Target target: the target.
    """

    def __init__(
        self, run: Callable[[Target], tuple[dict[str, Array], Clock]], target: Target
    ) -> None:
        self._run = run
        self._target = target
        self._walls: list[float] = []
        self._draws: dict[str, Array] = {}

    def __call__(self) -> float:
        """CPU seconds to the target."""
        self._draws, clock = self._run(self._target)
        self._walls.append(clock.wall)
        return clock.cpu

    def quality(self) -> dict[str, float]:
        """Quality of the last draws, and the median of the wall time."""
        arrived = float(self._target.has_arrived(self._draws))
        return {
            "arrived": arrived,
            "wall_s": float(np.median(self._walls)),
            "num_draws": float(len(self._draws["bias"])),
            **self._target.quality(self._draws),
        }


def sgnht(backend: Backend, num_samples: int, target: Target) -> MCMC:
    """A run of SGNHT on minibatches."""
    kernel = SGNHT(logistic_regression, step_size=3e-4, friction=100.0, backend=backend)
    mcmc = MCMC(kernel, num_samples, 25 * num_samples, thinning=25, seed=0, progress=False)
    return mcmc.run(*target.train, subsample_size=500)


def our_nuts(warmup_steps: int, num_samples: int, target: Target) -> MCMC:
    """A run of our NUTS on all of the data."""
    kernel = NUTS(whole_logistic_regression, backend="compile")
    return MCMC(kernel, num_samples, warmup_steps, seed=0, progress=False).run(*target.train)


def ours(
    run: Callable[[int, Target], MCMC], first_samples: int, target: Target
) -> tuple[dict[str, Array], Clock]:
    """Draws of our driver, of the shortest run that arrives."""
    num_samples = first_samples
    while True:
        clock = Clock()
        mcmc = run(num_samples, target)
        draws = {name: value.numpy() for name, value in mcmc.get_samples().items()}
        clock.stop()
        if target.has_arrived(draws) or num_samples >= 16 * first_samples:
            return draws, clock
        num_samples *= 2


def pyro_nuts(
    jit_compile: bool, num_samples: int, target: Target
) -> tuple[dict[str, Array], Clock]:
    """Draws of Pyro's NUTS until they arrive."""
    pyro.set_rng_seed(0)
    kept: dict[str, list[Array]] = {"weight": [], "bias": []}

    def look(kernel: Any, params: dict[str, Tensor], stage: str, number: int) -> None:
        if not stage.startswith("Sample"):
            return
        clock.stop()
        for name, values in kept.items():
            values.append(params[name].detach().numpy())
        if target.has_arrived({name: np.stack(values) for name, values in kept.items()}):
            raise Arrived
        clock.go()

    kernel = pyro.infer.NUTS(
        whole_logistic_regression, jit_compile=jit_compile, ignore_jit_warnings=True
    )
    mcmc = pyro.infer.MCMC(kernel, num_samples, num_samples, hook_fn=look, disable_progbar=True)
    clock = Clock()
    try:
        mcmc.run(*target.train)
        clock.stop()
    except Arrived:
        pass
    return {name: np.stack(values) for name, values in kept.items()}, clock


def cases(options: Options) -> Iterator[Case]:
    """All sides on their way to one target."""
    target = Target(1_000 if options.smoke else 100_000)
    our_samples = 2 if options.smoke else 10
    nuts_samples = 4 if options.smoke else 100
    runs = {
        OURS: partial(ours, partial(sgnht, "trace"), our_samples),
        "Pyro, NUTS": partial(pyro_nuts, False, nuts_samples),
        "Pyro, NUTS by jit_compile": partial(pyro_nuts, True, nuts_samples),
    }
    if options.full or options.smoke:
        runs |= {
            f"{OURS}, compiled": partial(ours, partial(sgnht, "compile"), our_samples),
            f"{OURS}, NUTS": partial(ours, partial(our_nuts, nuts_samples), our_samples),
        }
    sides = {name: Side(run, target) for name, run in runs.items()}
    timings = in_turn(sides, options.rounds)
    quality = {side: sides[side].quality() for side in timings.rounds}
    name = f"SGNHT to a predictive loss, logistic regression, {target.num_rows:,} rows"
    yield Case(name, timings, quality=quality)


def _success(draws: Draws, inputs: Array) -> Array:
    return 1 / (1 + np.exp(-logits(draws, inputs)))


if __name__ == "__main__":
    main(cases, f"s to within {TOLERANCE:g} nats", rounds=1, packages=("scikit-learn",))
