"""What a run warns of at its end: chains that do not agree, and draws too wide or too narrow."""

import math
import warnings
from collections.abc import Sequence

import torch
from pyro.infer.mcmc.mcmc_kernel import MCMCKernel

from pyro_ext.checkpoint.chains import Reader
from pyro_ext.inference._metropolis import MetropolisKernel
from pyro_ext.inference._running.moments import Moments, merge, moments_of
from pyro_ext.inference._temperature import temperature_warning
from pyro_ext.inference.sgmcmc import SGMCMCKernel

__all__ = ["largest_r_hat", "moments_of_halves", "r_hat_of_noise", "warn_at_end"]

_FEWEST_DRAWS = 40
_MOST_R_HAT = 1.1
_FALSE_ALARMS = 1e-3
_MOST_NAMES = 3
_MANY = 100


def warn_at_end(
    kernel: MCMCKernel,
    groups: Sequence[tuple[range, Reader]],
    numbers: Sequence[int],
    num_draws: int,
    num_steps: int,
) -> None:
    """Give one warning of all that is wrong, a line each.

    :param MCMCKernel kernel: the kernel, as it was set up.
    :param Sequence groups: of each group of chains their numbers and what reads its draws.
    :param Sequence numbers: numbers of the chains that count.
    :param int num_draws: number of draws of each.
    :param int num_steps: number of steps of each.
    """
    if isinstance(kernel, SGMCMCKernel) and kernel.temperature == 0.0:
        return
    found = [_r_hat_warning(groups, numbers, num_draws)]
    # Draws that Metropolis makes exact are neither too wide nor too narrow.
    if isinstance(kernel, SGMCMCKernel) and not isinstance(kernel, MetropolisKernel):
        found.insert(0, temperature_warning(kernel, groups, numbers, num_draws, num_steps))
    lines = [line for line in found if line is not None]
    if lines:
        warnings.warn("\n".join(lines), stacklevel=3)


def _r_hat_warning(
    groups: Sequence[tuple[range, Reader]], numbers: Sequence[int], num_draws: int
) -> str | None:
    """What to warn of where R-hat is larger than 1.1, and than independent draws would have it."""
    if num_draws < _FEWEST_DRAWS or not numbers:
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

    :param Sequence groups: of each group of chains their numbers and what reads its draws.
    :param Sequence numbers: numbers of the chains that count.
    :param int num_draws: number of draws of each.
    :returns: rounded values that do not change have the squares zero.
        **Shape:** ``(2 * num_chains, *event)`` each.
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
