"""Posterior bootstrap of a logistic regression, beside a loop over SciPy's L-BFGS.

Both draw Dirichlet weights for the observations, and minimize the weighted loss with the same ridge
penalty for each draw. SciPy's loop is what a user would write: loss and gradient in NumPy, each
draw from zero. ``pyro_ext`` gets the Pyro model in single precision, as Pyro users have it, and
records it (or compiles it) in the first call, whose time stands beside the others. With its own
tolerances SciPy's draws are a hundred times as far from the minima as ours; it is timed with these
and with tolerances that make its draws as good. The quality is the root mean square distance of 50
draws to those of a search in double precision to the end, in posterior standard deviations.
Times are CPU seconds of one thread.
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pyro
import pyro.distributions as dist
import torch
from _common import OURS, Case, Options, cpu_seconds, in_turn, main
from scipy.optimize import minimize
from torch import Tensor

from pyro_ext import datasets
from pyro_ext.inference import PosteriorBootstrap
from pyro_ext.inference.martingale import DirichletWeights
from pyro_ext.potential import Backend

PRIOR_SCALE = 3.0
NUM_CHECKED = 50
LOOP, ACCURATE = "SciPy, loop", "SciPy, loop as accurate"
TOLERANCES = {"tolerance": 1e-7, "loss_tolerance": 1e-14}

Floats = npt.NDArray[np.float64]


def model(x: Tensor, y: Tensor) -> None:
    """Logistic regression."""
    prior = dist.Normal(torch.zeros(x.shape[1]), PRIOR_SCALE).to_event(1)
    weight = pyro.sample("weight", prior)
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Bernoulli(logits=x @ weight), obs=y)


class Peer:
    """The loop over draws.

    :param Floats x: covariates.
    :param Floats y: labels.
    :param Floats weights: of the observations, by draw.
    """

    def __init__(self, x: Floats, y: Floats, weights: Floats) -> None:
        self.x, self.y, self.weights = x, y, weights
        self.precision = 1.0 / (PRIOR_SCALE**2 * len(x))

    def loss(self, place: Floats, weights: Floats) -> tuple[float, Floats]:
        """Weighted loss and its gradient."""
        logits = self.x @ place
        losses = np.logaddexp(0.0, logits) - self.y * logits
        slopes = weights * (1.0 / (1.0 + np.exp(-logits)) - self.y)
        penalty = 0.5 * self.precision * (place @ place)
        return float(weights @ losses + penalty), self.x.T @ slopes + self.precision * place

    def __call__(self, tolerance: float = 1e-5, loss_tolerance: float | None = None) -> Floats:
        """Fits to all weights."""
        options: dict[str, Any] = {"gtol": tolerance, "maxiter": 10_000, "maxfun": 100_000}
        if loss_tolerance is not None:
            options["ftol"] = loss_tolerance
        start = np.zeros(self.x.shape[1])
        return np.stack(
            [
                minimize(self.loss, start, (row,), "L-BFGS-B", jac=True, options=options).x
                for row in self.weights
            ]
        )


def measure(backend: Backend, num_columns: int, num_draws: int, rounds: int) -> Case:
    """Measure in turn on the first columns of the data."""
    data = datasets.load_breast_cancer()
    inputs = torch.cat([data.train_inputs, data.test_inputs]).float()
    labels = torch.cat([data.train_targets, data.test_targets]).float()
    x = torch.cat([torch.ones(len(inputs), 1), inputs[:, :num_columns]], 1)
    posterior = PosteriorBootstrap(
        model, num_draws, include_prior=True, backend=backend, seed=0, progress=False
    )
    weights = DirichletWeights(len(x)).draw(range(num_draws), seed=0).numpy()
    peer = Peer(x.double().numpy(), labels.double().numpy(), weights)
    sides: dict[str, Callable[[], object]] = {
        OURS: lambda: posterior.run(x, labels),
        LOOP: peer,
        ACCURATE: lambda: peer(**TOLERANCES),
    }
    first_call = {side: cpu_seconds(call) for side, call in sides.items()}
    timed = {side: lambda call=call: cpu_seconds(call) for side, call in sides.items()}
    timings = in_turn(timed, rounds)
    peer.weights = weights[:NUM_CHECKED]
    exact = peer(1e-9, 0.0)
    ours = posterior.get_samples()["weight"][:NUM_CHECKED].double().numpy()
    spread = posterior.get_samples()["weight"].double().std(0).numpy()
    quality = {
        side: {"distance": float(np.sqrt(np.mean(((found - exact) / spread) ** 2)))}
        for side, found in ((OURS, ours), (LOOP, peer()), (ACCURATE, peer(**TOLERANCES)))
    }
    words = f"posterior bootstrap, {num_draws:,} draws, {len(x)} x {x.shape[1]}, {backend}"
    return Case(words, timings, first_call, quality)


def cases(options: Options) -> Iterator[Case]:
    """Each backend on each size; in the table the larger model by the default one."""
    if options.smoke:
        yield measure("trace", 3, 20, options.rounds)
        return
    backends: tuple[Backend, ...] = ("trace", "compile") if options.full else ("trace",)
    sizes = ((10, 1000), (30, 1000), (30, 5000)) if options.full else ((30, 1000),)
    for backend in backends:
        for num_columns, num_draws in sizes:
            yield measure(backend, num_columns, num_draws, options.rounds)


if __name__ == "__main__":
    main(cases, "s", rounds=3, packages=("scipy",))
