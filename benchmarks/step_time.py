"""Time of a step of SGLD and SGHMC: ours, compiled, beside every way to take one elsewhere.

Logistic regression (breast cancer, 455 rows, 31 parameters) and a network (digits, 64-50-10, 3,760
parameters), standard normal priors, minibatches of 32, every chain with its own. BlackJAX runs as a
jitted scan, posteriors as a Python loop over vectorized updates. Loops by hand in PyTorch keep all
chains in one matrix and run eagerly, or compiled from the draw of the minibatch to the update.
Pyro has no such sampler: beside us is what its user writes by hand, a trace of the conditioned
model, its ``log_prob_sum``, autograd and the update, one chain after the other. All take the same
steps from the same start; with ``--full`` the draws of 16 chains of each side stand beside, their
predictive loss and on the logistic regression their moments next to those of a long run of NUTS.
"""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import product

from _common import OURS, Case, Chains, Options, main, step_times
from _libraries import BlackJAXChains, EagerPyro, PosteriorsChains
from _problems import (
    FRICTION,
    PROBLEMS,
    Draws,
    OurChains,
    Problem,
    draws_of,
    moment_errors,
    predictive_nll,
    reference_draws,
    start,
)
from _torch_loops import TorchLoop

from pyro_ext.inference import SGHMC, SGLD

MakeChains = Callable[[Problem, str, int], Chains]

IN_TABLE = (
    ("logistic regression", "SGLD", 1),
    ("logistic regression", "SGLD", 16),
    ("network", "SGHMC", 16),
)
QUALITY_CHAINS = 16
BLOCK = 256


def our_chains(problem: Problem, algorithm: str, num_chains: int) -> Chains:
    """Chains of a compiled kernel of the Pyro model."""
    kernel = (
        SGLD(problem.model, step_size=problem.step_size, backend="compile")
        if algorithm == "SGLD"
        else SGHMC(
            problem.model,
            step_size=problem.step_size**0.5,
            friction=FRICTION,
            backend="compile",
        )
    )
    return OurChains(kernel, problem.arguments, start(problem, num_chains))


# Each side, and the steps of one chain that a round of it takes.
SIDES: Mapping[str, tuple[MakeChains, int]] = {
    OURS: (our_chains, 4096),
    "BlackJAX": (BlackJAXChains, 4096),
    "PyTorch, compiled": (partial(TorchLoop, True), 2048),
    "PyTorch, eager": (partial(TorchLoop, False), 1024),
    "posteriors": (PosteriorsChains, 128),
    "Pyro, eager": (EagerPyro, 256),
}


def cases(options: Options) -> Iterator[Case]:
    """Each problem and algorithm with each number of chains."""
    chosen = IN_TABLE[:1] if options.smoke else IN_TABLE
    for problem in PROBLEMS.values():
        reference = None
        if options.full and problem.name == "logistic regression":
            reference = reference_draws(1000, 500, problem.on(options.device).arguments)
        for algorithm, num_chains in product(("SGLD", "SGHMC"), (1, 16, 64)):
            if options.full or (problem.name, algorithm, num_chains) in chosen:
                yield measure(problem, algorithm, num_chains, options, reference)


def measure(
    problem: Problem, algorithm: str, num_chains: int, options: Options, reference: Draws | None
) -> Case:
    """All sides in turn."""
    makers = {
        side: partial(make, problem.on(options.device), algorithm, num_chains)
        for side, (make, _) in SIDES.items()
    }
    num_steps = {
        side: 2 if options.smoke else max(4 if "Pyro" in side else 64, count // num_chains)
        for side, (_, count) in SIDES.items()
    }
    timings, first_call = step_times(makers, num_steps, num_chains, options)
    quality = {}
    if options.full and num_chains == QUALITY_CHAINS:
        quality = {side: judge(problem, makers[side](), reference) for side in timings.rounds}
    chains = "1 chain" if num_chains == 1 else f"{num_chains} chains"
    return Case(f"{algorithm}, {problem.name}, {chains}", timings, first_call, quality)


def judge(problem: Problem, chains: Chains, reference: Draws | None) -> dict[str, float]:
    """Measure the predictive accuracy of a longer run, and its moments against a reference."""
    draws = draws_of(chains, warmup_blocks=16, num_blocks=32, block=BLOCK)
    moments = {} if reference is None else moment_errors(draws, reference)
    return {"nll": predictive_nll(problem, draws), **moments}


if __name__ == "__main__":
    main(
        cases,
        "us per chain and step",
        rounds=3,
        packages=("jax", "blackjax", "posteriors", "tensordict"),
        on_devices=True,
    )
