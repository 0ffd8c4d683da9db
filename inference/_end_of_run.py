"""What a run warns of at its end: chains that do not agree, and draws too wide or too narrow."""

import math
import warnings
from collections.abc import Sequence

import torch
from pyro.infer.mcmc.mcmc_kernel import MCMCKernel
from pyro.ops.stats import split_gelman_rubin
from torch import Tensor

from pyro_ext.checkpoint.chains import Reader, gather_chains, thinned
from pyro_ext.inference._temperature import temperature_warning
from pyro_ext.inference.sgmcmc import SGMCMCKernel

__all__ = ["warn_at_end"]

_MOST_DRAWS = 1000
_FEWEST_DRAWS = 40
_MOST_R_HAT = 1.1
_FALSE_ALARMS = 1e-3
_MOST_NAMES = 3


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
    if isinstance(kernel, SGMCMCKernel):
        found.append(temperature_warning(kernel, groups, numbers, num_draws, num_steps))
    lines = [line for line in found if line is not None]
    if lines:
        warnings.warn("\n".join(lines), stacklevel=3)


def _r_hat_warning(
    groups: Sequence[tuple[range, Reader]], numbers: Sequence[int], num_draws: int
) -> str | None:
    """What to warn of where R-hat is larger than 1.1, and than independent draws would have it."""
    if num_draws < _FEWEST_DRAWS or not numbers:
        return None
    most = min(num_draws, _MOST_DRAWS)
    chosen = torch.linspace(0, num_draws - 1, most).long()
    values, _ = gather_chains(thinned(groups, chosen), numbers, most)
    r_hats = {name: _largest_r_hat(draws) for name, draws in values.items() if draws.numel()}
    if not r_hats:
        return None
    num_elements = sum(draws[0, 0].numel() for draws in values.values())
    limit = max(_MOST_R_HAT, _r_hat_of_noise(2 * len(numbers), most // 2, num_elements))
    high = sorted((name for name in r_hats if r_hats[name] > limit), key=r_hats.__getitem__)[::-1]
    if not high:
        return None
    worst = ", ".join(f"{r_hats[name]:.3g} at {name!r}" for name in high[:_MOST_NAMES])
    more = f" and high at {len(high) - _MOST_NAMES} more sites" if len(high) > _MOST_NAMES else ""
    return (
        f"the chains do not agree: R-hat is {worst}{more}, where 1 is right; take more "
        "warmup_steps and thinning, or other starts (initial_params)"
    )


def _largest_r_hat(draws: Tensor) -> float:
    """Largest R-hat of a site, one for elements that do not change but for rounding."""
    flat = draws.reshape(*draws.shape[:2], -1).double()
    resolution = 16.0 * torch.finfo(draws.dtype).eps
    moves = flat.std((0, 1)) > resolution * flat.abs().amax((0, 1))
    if not moves.any():
        return 1.0
    return float(split_gelman_rubin(flat[..., moves]).nan_to_num(nan=1.0).max())


def _r_hat_of_noise(num_chains: int, num_draws: int, num_elements: int) -> float:
    """R-hat that one of so many elements of independent draws exceeds once in a thousand runs."""
    from scipy.special import fdtri

    degrees = num_chains * (num_draws - 1)
    ratio = float(fdtri(num_chains - 1, degrees, 1.0 - _FALSE_ALARMS / num_elements))
    return math.sqrt((num_draws - 1 + ratio) / num_draws)
