"""Time of attention in sets by their size, and of the Set Transformer beside one by hand.

A forward and backward pass of the induced block, ours, takes linear time in the number of elements,
and one of the block of all to all quadratic time: quality says how much longer than for a quarter
of the elements. Then a forward pass of the whole network, with parameters that the one by hand
shares, which should take at most 1.1 times as long. Times are
milliseconds of one thread.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from _common import OURS, Case, Options, Timings, in_turn, main
from _plain_set_transformer import plain_set_transformer
from torch import Tensor, nn

from pyro_ext.models.sets import SetTransformer
from pyro_ext.nn import ISAB, SAB

WIDTH, NUM_HEADS, NUM_INDUCING = 128, 4, 32
GROWTH = (1000, 4000, 16000)
BATCHES = ((128, 10), (10, 300), (10, 1000))  # data sets, and elements of each
NUM_PASSES = 5


def cases(options: Options) -> Iterator[Case]:
    """Networks beside one by hand; and how the time of blocks grows, which has no peer."""
    torch.manual_seed(0)
    if options.full or options.smoke:
        yield from growth((10, 40) if options.smoke else GROWTH, options)
    for batch in ((2, 5),) if options.smoke else BATCHES:
        yield beside_plain(*batch, 1 if options.smoke else NUM_PASSES, options)


def growth(sizes: Sequence[int], options: Options) -> Iterator[Case]:
    """Passes of both blocks over single sets, each four times as large as the one before."""
    blocks: dict[str, nn.Module] = {
        OURS: ISAB(WIDTH, WIDTH, NUM_INDUCING, NUM_HEADS, bias=True, layer_norm=False),
        f"{OURS}, SAB": SAB(WIDTH, WIDTH, NUM_HEADS, bias=True, layer_norm=False),
    }
    before: dict[str, float] = {}
    for size in sizes:
        x = torch.randn(1, size, WIDTH, requires_grad=True)

        def one_pass(block: nn.Module, x: Tensor = x) -> None:
            block(x).sum().backward()

        timings = measured(
            {side: partial(one_pass, block) for side, block in blocks.items()}, 1, options
        )
        medians = timings.medians()
        quality = {side: {"growth": medians[side] / time} for side, time in before.items()}
        yield Case(f"attention block, {size:,} elements", timings, quality=quality)
        before = medians


def beside_plain(num_sets: int, size: int, num_passes: int, options: Options) -> Case:
    """Forward passes of the network and of the one by hand."""
    network = SetTransformer(2, 4, 5, WIDTH, NUM_HEADS, NUM_INDUCING)
    parameters = dict(network.named_parameters())
    x = torch.randn(num_sets, size, 2)
    by_hand = partial(plain_set_transformer, parameters, x, NUM_HEADS)
    with torch.no_grad():
        torch.testing.assert_close(network(x), by_hand(), rtol=1e-4, atol=1e-5)
        sides = {OURS: partial(network, x), "PyTorch, by hand": by_hand}
        timings = measured(sides, num_passes, options)
    return Case(f"Set Transformer, {num_sets} sets of {size:,}", timings)


def measured(sides: dict[str, Callable[[], object]], num_calls: int, options: Options) -> Timings:
    """Milliseconds of a call of each side, after a first one that is not measured."""
    for side in sides.values():
        side()

    def milliseconds(side: Callable[[], object]) -> float:
        return options.seconds(lambda: [side() for _ in range(num_calls)]) * 1000 / num_calls

    return in_turn(
        {name: partial(milliseconds, side) for name, side in sides.items()}, options.rounds
    )


if __name__ == "__main__":
    main(cases, "ms", rounds=5, on_devices=True)
