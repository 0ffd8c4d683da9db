"""Time of attention in sets by their size, and of the Set Transformer beside one by hand.

A forward and backward pass of the induced block, ours, takes linear time in the number of elements,
and one of the block of all to all quadratic time: quality says how much longer than for a quarter
of the elements. Then a forward pass of the whole network, with parameters that the one by hand
shares. Times are CPU milliseconds of one thread. Prints one line of JSON.
"""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from _common import OURS, Case, Timings, arguments, cpu_seconds, in_turn, report, single_thread
from _plain_set_transformer import plain_set_transformer
from torch import Tensor, nn

from pyro_ext.models.sets import SetTransformer
from pyro_ext.nn import ISAB, SAB

LIMIT = 1.1  # how much longer than by hand our network may take
WIDTH, NUM_HEADS, NUM_INDUCING = 128, 4, 32
GROWTH = (1000, 4000, 16000)
BATCHES = ((128, 10), (10, 300), (10, 1000))  # data sets, and elements of each
NUM_PASSES = 5


def main() -> None:
    """Measure in turn and print."""
    options = arguments(__doc__, rounds=9)
    single_thread()
    torch.manual_seed(0)
    cases = [*growth((10, 40) if options.smoke else GROWTH, min(options.rounds, 3))]
    for batch in ((2, 5),) if options.smoke else BATCHES:
        cases.append(beside_plain(*batch, 1 if options.smoke else NUM_PASSES, options.rounds))
    sizes = {"width": WIDTH, "num_heads": NUM_HEADS, "num_inducing": NUM_INDUCING}
    report("set_attention", "CPU ms", cases, limit=LIMIT, **sizes)


def growth(sizes: Sequence[int], rounds: int) -> list[Case]:
    """Passes of both blocks over single sets, each four times as large as the one before."""
    blocks = {
        OURS: ISAB(WIDTH, WIDTH, NUM_INDUCING, NUM_HEADS, bias=True, layer_norm=False),
        "SAB": SAB(WIDTH, WIDTH, NUM_HEADS, bias=True, layer_norm=False),
    }
    cases: list[Case] = []
    before: dict[str, float] = {}
    for size in sizes:
        x = torch.randn(1, size, WIDTH, requires_grad=True)

        def one_pass(block: nn.Module, x: Tensor = x) -> None:
            block(x).sum().backward()

        timings = measured(
            {side: partial(one_pass, block) for side, block in blocks.items()}, 1, rounds
        )
        medians = timings.medians()
        quality = {side: {"growth": medians[side] / time} for side, time in before.items()}
        cases.append(Case(f"block, {size:,} elements", timings, quality=quality))
        before = medians
    return cases


def beside_plain(num_sets: int, size: int, num_passes: int, rounds: int) -> Case:
    """Forward passes of the network and of the one by hand."""
    network = SetTransformer(2, 4, 5, WIDTH, NUM_HEADS, NUM_INDUCING)
    parameters = dict(network.named_parameters())
    x = torch.randn(num_sets, size, 2)
    by_hand = partial(plain_set_transformer, parameters, x, NUM_HEADS)
    with torch.no_grad():
        torch.testing.assert_close(network(x), by_hand(), rtol=1e-4, atol=1e-5)
        timings = measured({OURS: partial(network, x), "by hand": by_hand}, num_passes, rounds)
    return Case(f"network, {num_sets} sets of {size:,}", timings)


def measured(sides: dict[str, Callable[[], object]], num_calls: int, rounds: int) -> Timings:
    """Milliseconds of a call of each side, after a first one that is not measured."""
    for side in sides.values():
        side()

    def milliseconds(side: Callable[[], object]) -> float:
        return cpu_seconds(lambda: [side() for _ in range(num_calls)]) * 1000 / num_calls

    return in_turn({name: partial(milliseconds, side) for name, side in sides.items()}, rounds)


if __name__ == "__main__":
    main()
