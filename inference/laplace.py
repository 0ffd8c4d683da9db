"""Posteriors of a few parameters that many data determine: a Gaussian, and NUTS in its coordinates.

The posterior of a few hyperparameters of much data is narrow and strongly correlated, and each
gradient takes milliseconds. In the coordinates of the Gaussian at the mode NUTS needs no mass
matrix and few gradients for a draw.
"""

import math
import warnings
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from pyro.infer import MCMC, NUTS
from pyro.util import get_rng_state, set_rng_seed, set_rng_state
from torch import Tensor

from pyro_ext._checks import (
    check_instance,
    check_integer,
    check_number,
    check_sequence,
    check_tensors,
)
from pyro_ext.posterior.modes import find_map, gradient_differences
from pyro_ext.potential import Potential
from pyro_ext.potential.potential import energy
from pyro_ext.random import fresh_seed

__all__ = ["LaplacePosterior", "laplace_posterior", "nuts_posterior"]

_STEP = 1e-3
_STEP_SIZE = 0.4


class LaplacePosterior(NamedTuple):
    """Gaussian at the mode of a posterior, in unconstrained coordinates.

    :param Tensor mode: where the posterior is largest. **Shape:** ``(size,)``.
    :param Tensor scale_tril: the root of the covariance. **Shape:** ``(size, size)``.
    :param Tensor log_evidence: logarithm of the integral of the joint density, approximately.
    """

    mode: Tensor
    scale_tril: Tensor
    log_evidence: Tensor


def laplace_posterior(
    potential: Potential, starts: Sequence[Mapping[str, Tensor]]
) -> LaplacePosterior:
    """Find the highest mode from some starts, and the Gaussian there.

    :param Potential potential: of a model without minibatches, in float64.
    :param starts: values of all sites, in constrained space; one at least.
    :returns: the Gaussian, with the curvature by finite differences of gradients.
    :raises ValueError: without starts, and where the mode has no finite positive curvature.

    Example::

        >>> def model():
        ...     loc = pyro.sample("loc", dist.Normal(torch.tensor(1.0).double(), 2.0))
        >>> start = {"loc": torch.tensor(0.0).double()}
        >>> posterior = laplace_posterior(Potential(model), [start])
        >>> round(float(posterior.scale_tril), 6)
        2.0
    """
    check_instance("potential", potential, Potential, "a Potential")
    starts = check_sequence("starts", starts, "a list of dicts of tensors by site")
    starts = [check_tensors("starts", start, potential.sites) for start in starts]
    layout = potential.layout
    modes = torch.stack(
        [
            layout.flatten(potential.unconstrain(find_map(potential, dict(start))))
            for start in starts
        ]
    )
    values, _ = potential.gradient(modes)
    best = int(values.nan_to_num(torch.inf).argmin())
    mode, energy = modes[best], values[best]
    distances = torch.full_like(mode, _STEP)
    hessian = gradient_differences(lambda flat: potential.gradient(flat)[1], mode, distances)
    precision, failed = torch.linalg.cholesky_ex(0.5 * (hessian + hessian.mT))
    if bool(failed) or not bool(energy.isfinite()):
        names = potential.constrain(layout.unflatten(mode))
        raise ValueError(
            f"starts lead to no maximum with a finite positive curvature, but to {names!s:.200}"
        )
    scale_tril = torch.linalg.cholesky(torch.cholesky_inverse(precision))
    log_volume = 0.5 * len(mode) * math.log(2.0 * math.pi) + scale_tril.diagonal().log().sum()
    return LaplacePosterior(mode, scale_tril, log_volume - energy)


def nuts_posterior(
    potential: Potential,
    laplace: LaplacePosterior,
    num_samples: int,
    *,
    warmup_steps: int = 100,
    step_size: float | None = None,
    seed: int | None = None,
) -> dict[str, Tensor]:
    """Draw from a posterior with NUTS, in coordinates in which it is about standard normal.

    :param Potential potential: of a model without minibatches, in float64.
    :param LaplacePosterior laplace: its Gaussian.
    :param int num_samples: number of draws.
    :param int warmup_steps: steps from the mode that are not kept.
    :param float step_size: of the leapfrog steps, in standard deviations; by default it is adapted
        in the warm-up. Where there are thousands of clusters 0.4 will do, and few steps.
    :param int seed: of the draws; ``None`` takes one from PyTorch's generator.
    :returns: draws of the sites, constrained, with a warning where some diverged.
        **Shape:** ``(num_samples, *event)`` each.
    :raises ValueError: for numbers out of range.

    Example::

        >>> def model():
        ...     loc = pyro.sample("loc", dist.Gamma(torch.tensor(9.0).double(), 3.0))
        >>> potential = Potential(model)
        >>> laplace = laplace_posterior(potential, [{"loc": torch.tensor(1.0).double()}])
        >>> nuts_posterior(potential, laplace, 20, seed=0)["loc"].shape
        torch.Size([20])
    """
    check_instance("potential", potential, Potential, "a Potential")
    check_instance("laplace", laplace, LaplacePosterior, "what laplace_posterior returns")
    check_integer("num_samples", num_samples, 1)
    check_integer("warmup_steps", warmup_steps, 0)
    if step_size is not None:
        check_number("step_size", step_size, above=0)
    chosen = fresh_seed(seed)

    def standardized(params: Mapping[str, Tensor]) -> Tensor:
        return energy(laplace.mode + laplace.scale_tril @ params["z"], potential)

    diverged: set[int] = set()

    def watch(kernel: NUTS, params: object, stage: str, step: int) -> None:
        if stage.startswith("Sample"):
            diverged.update(kernel.diagnostics()["divergences"])

    state = get_rng_state()
    try:
        set_rng_seed(chosen % 2**32)
        kernel = NUTS(
            potential_fn=standardized,
            step_size=_STEP_SIZE if step_size is None else step_size,
            adapt_step_size=step_size is None,
            adapt_mass_matrix=False,
        )
        mcmc = MCMC(
            kernel,
            num_samples,
            warmup_steps=warmup_steps,
            initial_params={"z": torch.zeros_like(laplace.mode)},
            disable_progbar=True,
            hook_fn=watch,
        )
        mcmc.run()
    finally:
        set_rng_state(state)
    if diverged:
        warnings.warn(
            f"{len(diverged)} of {num_samples} draws of NUTS diverged; let step_size be smaller, "
            "or warm up longer where it is adapted",
            RuntimeWarning,
            stacklevel=2,
        )
    flat = laplace.mode + mcmc.get_samples()["z"] @ laplace.scale_tril.mT
    return potential.constrain(potential.layout.unflatten(flat))
