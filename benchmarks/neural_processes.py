"""Time of a training step of neural processes, beside the same networks in plain PyTorch.

Batches of tasks are drawn beforehand. Both sides have the same parameters and the same optimizer.
Times are CPU milliseconds of one thread; ours should take at most 1.1 times as long.
"""

from collections.abc import Callable, Iterator

import torch
from _common import OURS, Case, Options, cpu_seconds, in_turn, main
from _plain_neural_processes import PlainCNP, PlainMPNP, train

from pyro_ext.models.neural_processes import CNP, MPNP, Batch, GPTasks, NeuralProcess, fit

SIZES = {"width": 128, "num_tasks": 32, "num_batches": 20, "num_steps": 40}
TINY = {"width": 16, "num_tasks": 2, "num_batches": 2, "num_steps": 2}
NUM_PSEUDO = 10


def cases(options: Options) -> Iterator[Case]:
    """Each process."""
    torch.manual_seed(0)
    sizes = TINY if options.smoke else SIZES
    tasks = GPTasks("rbf", num_tasks=sizes["num_tasks"], num_context=23, num_target=15)
    batches = [tasks(seed) for seed in range(sizes["num_batches"])]
    for name in ("CNP", "MPNP"):
        process, plain = pair(name, sizes["width"])
        yield measure(name, process, plain, batches, sizes["num_steps"], options.rounds)


def pair(name: str, width: int) -> tuple[NeuralProcess, PlainCNP]:
    """A process of ours and the plain one, with the same parameters."""
    process: NeuralProcess
    plain: PlainCNP
    if name == "CNP":
        process, plain = CNP(width=width), PlainCNP(width)
    else:
        process, plain = MPNP(width=width, num_pseudo=NUM_PSEUDO), PlainMPNP(width, NUM_PSEUDO)
    with torch.no_grad():
        for ours, other in zip(process.parameters(), plain.parameters(), strict=True):
            other.copy_(ours)
    return process, plain


def measure(
    name: str,
    process: NeuralProcess,
    plain: PlainCNP,
    batches: list[Batch],
    num_steps: int,
    rounds: int,
) -> Case:
    """Train each side in turn, after a first training that is not measured."""
    tasks = [(*batch.context[:2], *batch.points[:2]) for batch in batches]
    sides: dict[str, Callable[[], object]] = {
        OURS: lambda: fit(
            process,
            lambda seed: batches[seed % len(batches)],
            num_steps,
            seed=0,
            progress=False,
        ),
        "PyTorch, by hand": lambda: train(plain, lambda step: tasks[step % len(tasks)], num_steps),
    }
    for side in sides.values():
        side()
    timed = {
        name: lambda call=call: 1000 * cpu_seconds(call) / num_steps for name, call in sides.items()
    }
    return Case(f"training step of a {name}", in_turn(timed, rounds))


if __name__ == "__main__":
    main(cases, "ms per step", rounds=3, packages=("gpytorch",))
