"""A warning where the draws of a run are hotter or colder than what was to be sampled."""

import math
import warnings
from collections.abc import Callable, Iterator, Sequence

import torch

from pyro_ext.checkpoint.chains import Chunk, gather_chains
from pyro_ext.diagnostics.temperature import Temperature, configurational_temperature
from pyro_ext.inference.sgmcmc import SGMCMCKernel
from pyro_ext.inference.sgmcmc.minibatches import Minibatches
from pyro_ext.potential import Potential

__all__ = ["temperature_of", "warn_of_temperature"]

Reader = Callable[[], Iterator[Chunk]]

_MOST_DRAWS = 400
_FEWEST_DRAWS = 40
_FEWEST_OF_A_CHAIN = 4
_STEPS_PER_DRAW = 10
_DRAWS_PER_CALL = 50
_MOST_RATIO = 1.5
_STANDARD_ERRORS = 5.0


def temperature_of(
    kernel: SGMCMCKernel,
    groups: Sequence[tuple[range, Reader]],
    numbers: Sequence[int],
    num_draws: int,
    num_steps: int,
) -> Temperature | None:
    """Configurational temperature of the draws of a run, ``None`` where there are too few of them.

    Each draw that is looked at takes the gradient of a minibatch, and there is one for ten steps of
    the run at most, and 400 in all.

    :param SGMCMCKernel kernel: the kernel, as it was set up.
    :param Sequence groups: of each group of chains their numbers and what reads its draws.
    :param Sequence numbers: numbers of the chains that count.
    :param int num_draws: number of draws of each.
    :param int num_steps: number of steps of each.
    """
    num_chains = len(numbers)
    most = min(_MOST_DRAWS // max(num_chains, 1), num_steps // _STEPS_PER_DRAW, num_draws)
    if most < _FEWEST_OF_A_CHAIN or most * num_chains < _FEWEST_DRAWS:
        return None
    potential = kernel.potential
    chosen = torch.linspace(0, num_draws - 1, most).long()
    names = list(potential.layout.shapes)
    thinned = [(members, _thinned(read, chosen, names)) for members, read in groups]
    values, _ = gather_chains(thinned, numbers, most)
    if isinstance(potential, Potential):
        values = potential.unconstrain(values)
    flat = potential.layout.flatten(values).flatten(0, 1)
    # A number that no chain has gives minibatches that no chain has seen.
    minibatches = Minibatches(potential.subsampled_plates, [max(numbers) + 1], 0)
    rows = [index[:, 0].to(flat.device) for index in minibatches(0, len(flat))]
    _, gradients = potential.gradient.over_any(flat, *rows, chunk_size=_DRAWS_PER_CALL)
    if not bool(flat.isfinite().all() & gradients.isfinite().all()):
        return None
    shape = (num_chains, most, -1)
    return configurational_temperature(flat.reshape(shape), gradients.reshape(shape))


def warn_of_temperature(
    kernel: SGMCMCKernel,
    groups: Sequence[tuple[range, Reader]],
    numbers: Sequence[int],
    num_draws: int,
    num_steps: int,
) -> None:
    """Warn where it is off by a half, and by more than its noise; see ``temperature_of``."""
    if kernel.temperature == 0.0:
        return
    found = temperature_of(kernel, groups, numbers, num_draws, num_steps)
    if found is None:
        return
    ratio = found.value / kernel.temperature
    distance = abs(found.value - kernel.temperature)
    if 1.0 / _MOST_RATIO <= ratio <= _MOST_RATIO:
        return
    if distance <= _STANDARD_ERRORS * found.standard_error:
        return
    name = type(kernel).__name__
    if ratio > 1.0:
        what = (
            f"the draws of {name} are too hot: their standard deviations are about "
            f"{math.sqrt(ratio):.2g} times too large"
        )
        advice = "take a smaller step_size, larger minibatches or a control_variate"
    else:
        spread = f"about {math.sqrt(ratio):.2g}" if ratio > 0.01 else "less than 0.1"
        what = (
            f"the draws of {name} are too cold: their standard deviations are {spread} times the "
            "posterior's"
        )
        advice = (
            "the chains have not moved far enough, which more steps mend, or the sampler does not "
            "keep the posterior as it is, as L2E, whose draws are for predictions"
        )
    warnings.warn(
        f"{what}. Their configurational temperature is {found.value:.2g} +- "
        f"{found.standard_error:.1g} where {kernel.temperature:g} is right; {advice}",
        stacklevel=3,
    )


def _thinned(read: Reader, chosen: torch.Tensor, names: Sequence[str]) -> Reader:
    """Read some of the draws, a chunk at a time."""

    def chunks() -> Iterator[Chunk]:
        first = 0
        for chunk in read():
            rows = chosen[(chosen >= first) & (chosen < first + len(chunk))] - first
            first += len(chunk)
            yield Chunk({name: chunk.samples[name][rows] for name in names}, {}, chunk.valid)

    return chunks
