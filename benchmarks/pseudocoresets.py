"""Time and memory of a step of each divergence of pseudocoresets, with each surrogate.

Gaussians and Markov chains stand for the posteriors of a logistic regression with 10 coefficients
and 20 weighted pseudo rows, ends of trajectories for those of a perceptron with 2,410 parameters on
10 and on 50 images. The last lines are about the number of steps in a trajectory: what autograd
keeps for the backward pass, in megabytes, grows with it for the Wasserstein distance, whose
gradient flows through all steps, and not for the forward divergence. Times are CPU milliseconds of
one thread, of the loss and its gradient.
"""

import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from _common import OURS, Case, Options, Timings, cpu_seconds, in_turn, main
from torch import Tensor, nn

from pyro_ext.datasets import load_digits
from pyro_ext.inference.pseudocoresets import (
    AutoPseudocoreset,
    Divergence,
    ExpertBuffer,
    ForwardKL,
    GaussianSurrogate,
    MCMCSurrogate,
    ReverseKL,
    Surrogate,
    TrajectorySurrogate,
    Wasserstein,
)
from pyro_ext.nn import MLP, BayesianClassifier, BayesianModule, init_to_module

KINDS: tuple[type[Divergence], ...] = (ForwardKL, ReverseKL, Wasserstein)
NUM_STEPS = 20
LENGTHS = (5, NUM_STEPS, 80)


def logistic(x: Tensor, y: Tensor) -> None:
    """Logistic regression."""
    weight = pyro.sample("weight", dist.Normal(torch.zeros(x.shape[1]), 1.0).to_event(1))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Bernoulli(logits=x @ weight), obs=y)


def regression() -> AutoPseudocoreset:
    """A coreset of 2,000 rows."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2000, 10, generator=generator)
    y = (torch.rand(2000, generator=generator) < x.sum(-1).sigmoid()).float()
    return AutoPseudocoreset(logistic, x, y, size=20, weights="scaled", seed=0)


def perceptron() -> tuple[BayesianClassifier, tuple[Tensor, Tensor], ExpertBuffer]:
    """A network, digits, and experts."""
    digits = load_digits(num_train=1000)
    data = digits.train_inputs, digits.train_targets
    network = MLP(64, [32], 10, activation=nn.ReLU)
    classifier = BayesianClassifier(BayesianModule(network, 0.05**0.5))
    start = init_to_module(module=network)
    buffer = ExpertBuffer.collect(
        classifier, *data, num_experts=2, init_strategy=start, seed=0, progress=False
    )
    return classifier, data, buffer


def step(divergence: Divergence, guide: AutoPseudocoreset) -> Tensor:
    """Take the loss and its gradient."""
    loss = divergence.differentiable_loss(guide.model, guide)
    loss.backward()  # type: ignore[no-untyped-call]
    return loss


def saved_megabytes(run: Callable[[], object]) -> float:
    """Measure the MiB that autograd saves in a call, counting a tensor each time it is saved."""
    kept: list[int] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor.numel() * tensor.element_size())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        run()
    return sum(kept) / 2**20


def measure(
    name: str, kind: type[Divergence], surrogate: Surrogate, guide: AutoPseudocoreset, calls: int
) -> Any:
    """First call of a divergence, and a function that measures a step of it.

    The first one also finds what is found once, such as draws from the posterior of the data.
    """
    divergence = kind(surrogate)
    start = time.perf_counter()
    step(divergence, guide)
    first_call = time.perf_counter() - start
    memory = saved_megabytes(partial(divergence.differentiable_loss, guide.model, guide))

    def milliseconds() -> float:
        def run() -> None:
            for _ in range(calls):
                step(divergence, guide)

        return 1e3 * cpu_seconds(run) / calls

    return name, milliseconds, first_call, memory


def cases(options: Options) -> Iterator[Case]:
    """Each divergence with each surrogate."""
    calls = 1 if options.smoke else 10
    prepared = []
    small = regression()
    for surrogate, kinds in ((GaussianSurrogate(), KINDS), (MCMCSurrogate(), KINDS[:2])):
        for kind in kinds:
            name = f"{kind.__name__}, {type(surrogate).__name__}"
            prepared.append(measure(name, kind, surrogate, small, calls))
    classifier, data, buffer = perceptron()
    for size in (10, 50):
        guide = AutoPseudocoreset(classifier, *data, size=size, weights="scaled", seed=0)
        for kind in KINDS:
            is_long = size == 10 and kind is not ReverseKL and not options.smoke
            for num_steps in LENGTHS if is_long else (NUM_STEPS,):
                trajectories = TrajectorySurrogate(
                    buffer, num_steps, 1.0 / num_steps, batch_size=256
                )
                name = f"{kind.__name__}, {size} images, {num_steps} steps"
                prepared.append(measure(name, kind, trajectories, guide, calls))
    timings = in_turn({name: run for name, run, *_ in prepared}, options.rounds)
    for name, _, first_call, memory in prepared:
        rounds = Timings({OURS: timings.rounds[name]})
        yield Case(name, rounds, {OURS: first_call}, {OURS: {"saved MB": memory}})


if __name__ == "__main__":
    main(cases, "ms per step", rounds=3)
