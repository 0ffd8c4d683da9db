r"""Privacy loss of DP-SGD, by the accountants of the package ``dp-accounting``.

All numbers refer to :math:`(\varepsilon, \delta)` privacy for adding or removing one example, after
steps of the Gaussian mechanism on Poisson samples [1]. None of them is below the true value.

[1] M. Abadi, A. Chu, I. Goodfellow, H. B. McMahan, I. Mironov, K. Talwar, L. Zhang (2016), Deep
learning with differential privacy.
"""

import math
from functools import partial
from typing import Any

from pyro_ext._lib import checks
from pyro_ext._lib.optional import optional_module


def pld_epsilon(
    sampling_rate: float, noise_multiplier: float, num_steps: int, delta: float
) -> float:
    r"""Compute :math:`\varepsilon` from the distribution of the privacy loss [1].

    The bound is tighter than one from the moments of that loss.

    :param float sampling_rate: probability with which an example is in a minibatch, independently
        of other examples.
    :param float noise_multiplier: standard deviation of the noise, in units of the norm to which
        gradients of examples are clipped; without noise, :math:`\varepsilon` is infinite.
    :param int num_steps: number of steps.
    :param float delta: :math:`\delta`.
    :raises ImportError: if ``dp-accounting`` is not installed; the message names the extra to
        install.

    [1] J. Doroshenko, B. Ghazi, P. Kamath, R. Kumar, P. Manurangsi (2022), Connect the dots:
    tighter discrete approximations of privacy loss distributions.

    Example::

        >>> round(pld_epsilon(0.25, 4.0, 100, delta=1e-5), 3)
        2.691
    """
    _check(sampling_rate, num_steps, delta)
    checks.number("noise_multiplier", noise_multiplier, least=0.0)
    package = optional_module("dp_accounting.pld", "pld_epsilon", "dp-accounting", "privacy")
    if noise_multiplier == 0.0:
        return math.inf
    accountant = package.PLDAccountant()
    accountant.compose(_event(sampling_rate, noise_multiplier, num_steps))
    return float(accountant.get_epsilon(delta))


def noise_multiplier_for(
    epsilon: float, delta: float, sampling_rate: float, num_steps: int
) -> float:
    r"""Find the smallest noise with which DP-SGD has :math:`(\varepsilon, \delta)` privacy.

    It inverts :func:`pld_epsilon`, up to 0.001.

    :param float epsilon: :math:`\varepsilon`.
    :param float delta: :math:`\delta`.
    :param float sampling_rate: as for :func:`pld_epsilon`.
    :param int num_steps: number of steps.
    :returns: the noise multiplier.
    :raises ImportError: if ``dp-accounting`` is not installed; the message names the extra to
        install.

    Example::

        >>> round(noise_multiplier_for(1.0, 1e-5, sampling_rate=1.0, num_steps=1), 2)
        3.73
    """
    checks.number("epsilon", epsilon, above=0.0)
    _check(sampling_rate, num_steps, delta)
    package = partial(
        optional_module, user="noise_multiplier_for", package="dp-accounting", extra="privacy"
    )
    found = package("dp_accounting").calibrate_dp_mechanism(
        package("dp_accounting.pld").PLDAccountant,
        lambda noise_multiplier: _event(sampling_rate, noise_multiplier, num_steps),
        epsilon,
        delta,
        tol=1e-3,
    )
    return float(found)


def _check(sampling_rate: float, num_steps: int, delta: float) -> None:
    checks.number("sampling_rate", sampling_rate, above=0.0, most=1.0)
    checks.integer("num_steps", num_steps, 1)
    checks.number("delta", delta, above=0.0, below=1.0)


def _event(sampling_rate: float, noise_multiplier: float, num_steps: int) -> Any:
    """Steps on Poisson samples."""
    from dp_accounting import dp_event

    step = dp_event.PoissonSampledDpEvent(sampling_rate, dp_event.GaussianDpEvent(noise_multiplier))
    return dp_event.SelfComposedDpEvent(step, num_steps)
