"""What a run warns of at its end: chains that do not agree, and draws too wide or too narrow."""

import math
import warnings
from collections.abc import Sequence
from functools import partial

import torch
from pyro.infer.mcmc.mcmc_kernel import MCMCKernel
from torch import Tensor

from pyro_ext.checkpoint.chains import Reader, gather_chains, thinned
from pyro_ext.diagnostics.temperature import BATCHES, Temperature, configurational_temperature
from pyro_ext.inference._running.moments import Moments, merge, moments_of
from pyro_ext.inference.sgmcmc import Minibatches, SGMCMCKernel
from pyro_ext.potential import Potential
from pyro_ext.potential.control_variates import BatchedGradient, anchor_at, control

__all__ = [
    "largest_r_hat",
    "moments_of_halves",
    "r_hat_of_noise",
    "temperature_warning",
    "temperatures_at",
    "temperatures_of",
    "warn_at_end",
]

_FEWEST_FOR_R_HAT = 40
_MOST_R_HAT = 1.1
_FALSE_ALARMS = 1e-3
_MOST_NAMES = 3
_MANY = 100
_MOST_DRAWS = 400
_FEWEST_FOR_TEMPERATURE = 40
_FEWEST_OF_A_CHAIN = 4
_STEPS_PER_DRAW = 10
_DRAWS_PER_CALL = 50
_MOST_RATIO = 1.5
_LEAST_RATIO = 1e-4


def warn_at_end(
    kernel: MCMCKernel,
    groups: Sequence[tuple[range, Reader]],
    numbers: Sequence[int],
    num_draws: int,
    num_steps: int,
) -> None:
    """Give one warning of all that is wrong, a line each."""
    if isinstance(kernel, SGMCMCKernel) and kernel.temperature == 0.0:
        return
    found = [_r_hat_warning(groups, numbers, num_draws)]
    if isinstance(kernel, SGMCMCKernel):
        found.insert(0, temperature_warning(kernel, groups, numbers, num_draws, num_steps))
    lines = [line for line in found if line is not None]
    if lines:
        warnings.warn("\n".join(lines), stacklevel=3)


def _r_hat_warning(
    groups: Sequence[tuple[range, Reader]], numbers: Sequence[int], num_draws: int
) -> str | None:
    """What to warn of where R-hat is larger than 1.1, and than independent draws would have it."""
    if num_draws < _FEWEST_FOR_R_HAT or not numbers:
        return None
    halves = moments_of_halves(groups, numbers, num_draws)
    if not halves:
        return None
    r_hats = {name: largest_r_hat(moments) for name, moments in halves.items()}
    num_elements = sum(moments.mean[0].numel() for moments in halves.values())
    limit = max(_MOST_R_HAT, r_hat_of_noise(2 * len(numbers), num_draws // 2, num_elements))
    high = sorted((name for name in r_hats if r_hats[name] > limit), key=r_hats.__getitem__)[::-1]
    if not high:
        return None
    worst = ", ".join(f"{r_hats[name]:.3g} at {name!r}" for name in high[:_MOST_NAMES])
    more = f" and high at {len(high) - _MOST_NAMES} more sites" if len(high) > _MOST_NAMES else ""
    advice = "take more warmup_steps and thinning, or other starts (initial_params)"
    if num_elements > _MANY:
        advice += "; of weights and atoms that can be exchanged look at what they predict instead"
    return f"the chains do not agree: R-hat is {worst}{more}, where 1 is right; {advice}"


def moments_of_halves(
    groups: Sequence[tuple[range, Reader]], numbers: Sequence[int], num_draws: int
) -> dict[str, Moments]:
    """Moments of both halves of each chain, of sites that hold real numbers, chunk by chunk.

    Shapes: returns (2 * num_chains, *event) each.
    """
    parts: dict[str, list[Moments]] = {}
    half = num_draws // 2
    for members, read in groups:
        columns = [column for column, number in enumerate(members) if number in numbers]
        for start in (0, num_draws - half) if columns else ():
            found: dict[str, Moments] = {}
            first = 0
            for chunk in read():
                rows = range(max(start - first, 0), min(start + half - first, len(chunk)))
                first += len(chunk)
                for name, value in chunk.samples.items() if len(rows) else ():
                    if not value.is_floating_point() or not value.numel():
                        continue
                    kept = value[rows.start : rows.stop, columns]
                    new = moments_of(kept, [len(rows)] * len(columns))
                    noise = (16.0 * torch.finfo(value.dtype).eps * new.mean).square()
                    squares = torch.where(new.squares > noise * len(rows), new.squares, 0.0)
                    new = new._replace(squares=squares)
                    found[name] = merge(found[name], new) if name in found else new
            for name, moments in found.items():
                parts.setdefault(name, []).append(moments)
    return {
        name: Moments(*(torch.cat(tensors) for tensors in zip(*moments, strict=True)))
        for name, moments in parts.items()
    }


def largest_r_hat(halves: Moments) -> float:
    """Largest split R-hat of the elements of a site, one for those that do not change."""
    num_draws = float(halves.num_draws[0])
    between = halves.mean.var(0)
    r_hat = ((num_draws - 1.0) / num_draws + between / halves.variance.mean(0)).sqrt()
    unchanged = between <= (1e-6 * halves.mean.mean(0)).square()
    return float(torch.where((halves.squares == 0).all(0) & unchanged, 1.0, r_hat).max())


def r_hat_of_noise(num_chains: int, num_draws: int, num_elements: int) -> float:
    """R-hat that one of so many elements of independent draws exceeds once in a thousand runs."""
    from scipy.special import fdtri

    degrees = num_chains * (num_draws - 1)
    ratio = float(fdtri(num_chains - 1, degrees, 1.0 - _FALSE_ALARMS / num_elements))
    return math.sqrt((num_draws - 1 + ratio) / num_draws)


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
    """
    num_chains = len(numbers)
    most = min(_MOST_DRAWS // max(num_chains, 1), num_steps // _STEPS_PER_DRAW, num_draws)
    if most < _FEWEST_OF_A_CHAIN or most * num_chains < _FEWEST_FOR_TEMPERATURE:
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

    Shapes: draws (num_chains, num_draws, size).
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
    """Fraction of the temperature that is wanted; estimates may lie below zero."""
    return max(found.value / wanted, _LEAST_RATIO)
