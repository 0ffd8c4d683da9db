"""Step times and draws of a kernel and of its peers, over problems and numbers of chains."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

from _common import OURS, Case, Chains, arguments, peer_module, report, single_thread, step_times
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

from pyro_ext.inference import SGHMC, SGLD

__all__ = ["compare"]

MakeChains = Callable[[Problem, str, int], Chains]

_NUM_CHAINS = (1, 16, 64)
_QUALITY_CHAINS = 16
_BLOCK = 256


def compare(
    benchmark: str,
    description: str | None,
    peers: Mapping[str, MakeChains],
    num_steps: Mapping[str, int],
    packages: Sequence[str] = (),
) -> None:
    """Run a comparison and print it.

    :param str benchmark: name of the script.
    :param str description: its docstring.
    :param Mapping peers: functions of problem, algorithm and number of chains.
    :param Mapping num_steps: steps of one chain that a round of a peer takes.
    :param Sequence packages: distributions of the peers, whose versions are printed.
    """
    options = arguments(description, rounds=5)
    single_thread()
    for package in packages:  # all of them first: an import may make PyTorch compile once more
        peer_module(package)
    sides: dict[str, MakeChains] = {OURS: our_chains, **peers}
    steps = {OURS: 4096, **num_steps}
    cases = []
    for problem in PROBLEMS.values():
        reference = None
        if problem.name == "logistic regression":
            sizes = (10, 10) if options.smoke else (1000, 500)
            reference = reference_draws(*sizes, problem.load())
        for algorithm in ("SGLD",) if options.smoke else ("SGLD", "SGHMC"):
            for num_chains in (2,) if options.smoke else _NUM_CHAINS:
                makers = {
                    side: partial(make, problem, algorithm, num_chains)
                    for side, make in sides.items()
                }
                per_round = {
                    side: 2 if options.smoke else max(64, count // num_chains)
                    for side, count in steps.items()
                }
                timings, first_call = step_times(makers, per_round, num_chains, options.rounds)
                quality = {}
                if num_chains == _QUALITY_CHAINS:
                    quality = {
                        side: _quality(problem, make(), reference) for side, make in makers.items()
                    }
                name = f"{problem.name}, {algorithm}, {num_chains} chains"
                cases.append(Case(name, timings, first_call, quality))
    report(benchmark, "CPU us per chain and step", cases, packages)


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


def _quality(problem: Problem, chains: Chains, reference: Draws | None) -> dict[str, float]:
    draws = draws_of(chains, warmup_blocks=16, num_blocks=32, block=_BLOCK)
    moments = {} if reference is None else moment_errors(draws, reference)
    return {"nll": predictive_nll(problem, draws), **moments}
