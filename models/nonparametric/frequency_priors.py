r"""Priors of partitions of which only the sizes of clusters are seen, with one power law or two.

Each is a Pyro model of no arguments that returns a random probability measure, for
:class:`~pyro_ext.models.nonparametric.FrequencyModel` and whatever else takes a prior over
partitions. A common scale of all weights has no effect once they are normalized, so that cutoff,
rate and tilt of the measures are one.

[1] F. Ayed, J. Lee, F. Caron (2019), Beyond the Chinese restaurant and Pitman-Yor processes:
statistical models with double power-law behavior.
"""

from collections.abc import Callable
from functools import partial

import pyro
import pyro.distributions as dist
from pyro.distributions.torch_distribution import TorchDistribution, TorchDistributionMixin
from torch import Tensor

from pyro_ext._checks import check_instance
from pyro_ext.random_measures import (
    BetaPrimeProcess,
    GeneralizedBFRYProcess,
    GeneralizedGammaProcess,
    NormalizedRandomMeasure,
    ParetoMixtureProcess,
    PitmanYor,
)

__all__ = [
    "beta_prime_prior",
    "generalized_bfry_prior",
    "generalized_gamma_prior",
    "pareto_mixture_prior",
    "pitman_yor_prior",
]


def generalized_bfry_prior(
    mass: TorchDistribution | None = None,
    discount: TorchDistribution | None = None,
    excess: TorchDistribution | None = None,
) -> Callable[[], NormalizedRandomMeasure]:
    r"""Prior of a normalized generalized BFRY process, with two power laws [1].

    The index at infinity exceeds the discount: it is ``discount + excess``.

    :param mass: law of :math:`\eta`, by default log-normal with median 150 and a factor of
        :math:`e^3`.
    :param discount: law of :math:`\sigma`, by default uniform.
    :param excess: law of :math:`\tau - \sigma`, by default log-normal with median 1 and a factor of
        :math:`e`, as in [1].
    :returns: a model with the sites ``"mass"``, ``"discount"`` and ``"excess"``.

    Example::

        >>> prior = generalized_bfry_prior(mass=dist.Gamma(2.0, 0.1))
        >>> prior().index_at_zero < 1.0
        tensor(True)
    """
    _check_laws(mass=mass, discount=discount, excess=excess)
    return partial(_two_laws, GeneralizedBFRYProcess, mass, discount, excess)


def beta_prime_prior(
    mass: TorchDistribution | None = None,
    discount: TorchDistribution | None = None,
    excess: TorchDistribution | None = None,
) -> Callable[[], NormalizedRandomMeasure]:
    r"""Prior of a normalized beta prime process, with two power laws [1].

    :param mass: law of :math:`\eta`, as of :func:`generalized_bfry_prior`.
    :param discount: law of :math:`\sigma`.
    :param excess: law of :math:`\tau - \sigma`.
    :returns: a model with the sites ``"mass"``, ``"discount"`` and ``"excess"``.

    Example::

        >>> beta_prime_prior()().log_eppf([1])
        tensor(0.)
    """
    _check_laws(mass=mass, discount=discount, excess=excess)
    return partial(_two_laws, BetaPrimeProcess, mass, discount, excess)


def pareto_mixture_prior(
    mass: TorchDistribution | None = None,
    discount: TorchDistribution | None = None,
    excess: TorchDistribution | None = None,
    pareto_mass: TorchDistribution | None = None,
    pareto_scale: TorchDistribution | None = None,
) -> Callable[[], NormalizedRandomMeasure]:
    r"""Prior of a normalized generalized gamma process with Pareto weights beside it [1].

    :param mass: law of :math:`\eta`, as of :func:`generalized_bfry_prior`.
    :param discount: law of :math:`\sigma`.
    :param excess: law of :math:`\tau - \sigma`.
    :param pareto_mass: law of :math:`\beta`, by default that of the mass.
    :param pareto_scale: law of :math:`w_0`, by default log-normal with median 1 and a factor of
        :math:`e`.
    :returns: a model with the sites ``"mass"``, ``"discount"``, ``"excess"``, ``"pareto_mass"`` and
        ``"pareto_scale"``.

    Example::

        >>> round(float(pareto_mixture_prior()().log_eppf([1])), 9)
        0.0
    """
    _check_laws(
        mass=mass,
        discount=discount,
        excess=excess,
        pareto_mass=pareto_mass,
        pareto_scale=pareto_scale,
    )
    return partial(_pareto_mixture, mass, discount, excess, pareto_mass, pareto_scale)


def generalized_gamma_prior(
    mass: TorchDistribution | None = None, discount: TorchDistribution | None = None
) -> Callable[[], NormalizedRandomMeasure]:
    r"""Prior of a normalized generalized gamma process, with one power law.

    :param mass: law of :math:`\eta`, as of :func:`generalized_bfry_prior`.
    :param discount: law of :math:`\sigma`.
    :returns: a model with the sites ``"mass"`` and ``"discount"``.

    Example::

        >>> generalized_gamma_prior()().log_eppf([1])
        tensor(0.)
    """
    _check_laws(mass=mass, discount=discount)
    return partial(_generalized_gamma, mass, discount)


def pitman_yor_prior(
    concentration: TorchDistribution | None = None, discount: TorchDistribution | None = None
) -> Callable[[], PitmanYor]:
    r"""Prior of a Pitman-Yor process, with one power law.

    :param concentration: law of :math:`\theta`, by default that of a mass.
    :param discount: law of :math:`\sigma`, by default uniform.
    :returns: a model with the sites ``"concentration"`` and ``"discount"``.

    Example::

        >>> pitman_yor_prior()().log_eppf([1])
        tensor(0.)
    """
    _check_laws(concentration=concentration, discount=discount)
    return partial(_pitman_yor, concentration, discount)


# What priors call is a function of the module each, so that models can be sent to other processes.


def _check_laws(**laws: object) -> None:
    for name, law in laws.items():
        if law is not None:
            check_instance(name, law, TorchDistributionMixin, "a distribution or None")


def _two_laws(
    kind: type[GeneralizedBFRYProcess | BetaPrimeProcess],
    mass: TorchDistribution | None,
    discount: TorchDistribution | None,
    excess: TorchDistribution | None,
) -> NormalizedRandomMeasure:
    return kind(*_two_indices(mass, discount, excess)).normalize()


def _pareto_mixture(
    mass: TorchDistribution | None,
    discount: TorchDistribution | None,
    excess: TorchDistribution | None,
    pareto_mass: TorchDistribution | None,
    pareto_scale: TorchDistribution | None,
) -> NormalizedRandomMeasure:
    own_mass, sigma, tail_index = _two_indices(mass, discount, excess)
    beta = pyro.sample("pareto_mass", pareto_mass or _mass())
    scale = pyro.sample("pareto_scale", pareto_scale or dist.LogNormal(0.0, 1.0))
    return ParetoMixtureProcess(own_mass, sigma, 1.0, beta, scale, tail_index).normalize()


def _generalized_gamma(
    mass: TorchDistribution | None, discount: TorchDistribution | None
) -> NormalizedRandomMeasure:
    own_mass = pyro.sample("mass", mass or _mass())
    sigma = pyro.sample("discount", discount or dist.Beta(1.0, 1.0))
    return GeneralizedGammaProcess(own_mass, sigma, 1.0).normalize()


def _pitman_yor(
    concentration: TorchDistribution | None, discount: TorchDistribution | None
) -> PitmanYor:
    theta = pyro.sample("concentration", concentration or _mass())
    sigma = pyro.sample("discount", discount or dist.Beta(1.0, 1.0))
    return PitmanYor(sigma, theta)


def _two_indices(
    mass: TorchDistribution | None,
    discount: TorchDistribution | None,
    excess: TorchDistribution | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Mass, index at zero and index at infinity."""
    own_mass = pyro.sample("mass", mass or _mass())
    sigma = pyro.sample("discount", discount or dist.Beta(1.0, 1.0))
    difference = pyro.sample("excess", excess or dist.LogNormal(0.0, 1.0))
    return own_mass, sigma, sigma + difference


def _mass() -> TorchDistribution:
    return dist.LogNormal(5.0, 3.0)
