"""Whether the draws of a run are hotter or colder than what was to be sampled."""

import math
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from pyro_ext.checkpoint.chains import Reader, gather_chains, thinned
from pyro_ext.diagnostics.temperature import (
    BATCHES,
    Temperature,
    configurational_temperature,
)
from pyro_ext.inference.sgmcmc import SGMCMCKernel
from pyro_ext.inference.sgmcmc.control_variates import BatchedGradient, anchor_at, control
from pyro_ext.inference.sgmcmc.minibatches import Minibatches
from pyro_ext.potential import Potential

__all__ = ["temperature_warning", "temperatures_at", "temperatures_of"]

_MOST_DRAWS = 400
_FEWEST_DRAWS = 40
_FEWEST_OF_A_CHAIN = 4
_STEPS_PER_DRAW = 10
_DRAWS_PER_CALL = 50
_MOST_RATIO = 1.5
_FALSE_ALARMS = 1e-3
_LEAST_RATIO = 1e-4


def temperatures_of(
    kernel: SGMCMCKernel,
    groups: Sequence[tuple[range, Reader]],
    numbers: Sequence[int],
    num_draws: int,
    num_steps: int,
) -> dict[str, Temperature] | None:
    """Configurational temperatures of the draws of a run: of all sites by the name "", and of each.

    Each draw that is looked at takes the gradient of a minibatch there and at the mean of the
    draws, a control variate. There is one for ten steps of the run at most, and 400 in all.

    :param SGMCMCKernel kernel: the kernel, as it was set up.
    :param Sequence groups: of each group of chains their numbers and what reads its draws.
    :param Sequence numbers: numbers of the chains that count.
    :param int num_draws: number of draws of each.
    :param int num_steps: number of steps of each.
    :returns: ``None`` where there are too few draws, or not all sites are recorded.
    """
    num_chains = len(numbers)
    most = min(_MOST_DRAWS // max(num_chains, 1), num_steps // _STEPS_PER_DRAW, num_draws)
    if most < _FEWEST_OF_A_CHAIN or most * num_chains < _FEWEST_DRAWS:
        return None
    potential = kernel.potential
    layout = potential.layout
    chosen = torch.linspace(0, num_draws - 1, most).long()
    names = list(layout.shapes)
    values, _ = gather_chains(thinned(groups, chosen, names), numbers, most)
    if set(values) != set(names):
        return None
    if isinstance(potential, Potential):
        values = potential.unconstrain(values)
    # A number that no chain has gives minibatches that no chain has seen.
    return temperatures_at(kernel, layout.flatten(values), max(numbers) + 1)


def temperatures_at(kernel: SGMCMCKernel, draws: Tensor, number: int) -> dict[str, Temperature]:
    """Configurational temperatures of draws, as ``temperatures_of`` has them.

    :param SGMCMCKernel kernel: the kernel, as it was set up.
    :param Tensor draws: at least four, in unconstrained space.
        **Shape:** ``(num_chains, num_draws, size)``.
    :param int number: of the chain whose minibatches are taken.
    :returns: those that are finite.
    """
    potential = kernel.potential
    layout = potential.layout
    flat = draws.flatten(0, 1)
    minibatches = Minibatches(potential.subsampled_plates, [number], 0)
    rows = [index[:, 0].to(flat.device) for index in minibatches(0, len(flat))]
    gradient: BatchedGradient = partial(potential.gradient.over_any, chunk_size=_DRAWS_PER_CALL)
    if rows:  # less noise, for one gradient over all of the data
        anchor = anchor_at(potential, flat.mean(0))
        if bool(anchor.gradient.isfinite().all()):
            gradient = control(gradient, anchor)
    _, gradients = gradient(flat, *rows)
    is_finite = (flat.isfinite() & gradients.isfinite()).all(0)
    gradients = gradients.reshape(draws.shape)
    names = list(layout.shapes)
    parts = {"": list(range(layout.size)), **{name: list(layout.columns(name)) for name in names}}
    return {
        name: configurational_temperature(draws[..., columns], gradients[..., columns])
        for name, columns in parts.items()
        if columns and bool(is_finite[columns].all())
    }


def temperature_warning(
    kernel: SGMCMCKernel,
    groups: Sequence[tuple[range, Reader]],
    numbers: Sequence[int],
    num_draws: int,
    num_steps: int,
) -> str | None:
    """What to warn of where a temperature is off by a half, and by more than its noise."""
    from scipy.special import stdtrit  # slow to import

    temperatures = temperatures_of(kernel, groups, numbers, num_draws, num_steps)
    if not temperatures:
        return None
    wanted = kernel.temperature
    errors = float(stdtrit(BATCHES - 1, 1.0 - _FALSE_ALARMS / (2 * len(temperatures))))
    off = {
        name: found
        for name, found in temperatures.items()
        if not 1.0 / _MOST_RATIO <= found.value / wanted <= _MOST_RATIO
        and abs(found.value - wanted) > errors * found.standard_error
    }
    if not off:
        return None
    # That of all sites, or else of the one that is off most.
    site = "" if "" in off else max(off, key=lambda each: abs(math.log(_ratio(off[each], wanted))))
    found, ratio = off[site], _ratio(off[site], wanted)
    name = type(kernel).__name__ + (f" at {site!r}" if site else "")
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
    return (
        f"{what}. Their configurational temperature is {found.value:.2g} +- "
        f"{found.standard_error:.1g} where {wanted:g} is right; {advice}"
    )


def _ratio(found: Temperature, wanted: float) -> float:
    """Share of the temperature that is wanted; estimates may lie below zero."""
    return max(found.value / wanted, _LEAST_RATIO)
