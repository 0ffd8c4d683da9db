r"""The beta prime process, with one power law near zero and another for large weights.

[1] F. Ayed, J. Lee, F. Caron (2019), Beyond the Chinese restaurant and Pitman-Yor processes:
statistical models with double power-law behavior.
"""

from typing import Any

import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor

from pyro_ext.distributions import BetaPrimeBFRY
from pyro_ext.distributions.bases import rsample_log_gamma
from pyro_ext.random_measures._logarithms import survives
from pyro_ext.random_measures._mixed_tilts import MixedTilts
from pyro_ext.random_measures.generalized_gamma import GeneralizedGammaProcess
from pyro_ext.random_measures.total_mass import compound_poisson
from pyro_ext.special import log1mexp, log_exprel

__all__ = ["BetaPrimeProcess"]

_LARGEST_LOG = 700.0
_TINY_DISCOUNT = 1e-6


class BetaPrimeProcess(MixedTilts):
    r"""Beta prime process [1].

    .. math:: \rho(w) = \frac{\eta \Gamma(\tau - \sigma)}{\Gamma(1 - \sigma)} w^{-1-\sigma}
              (c + w)^{\sigma - \tau} e^{-uw}
              = \frac{\eta}{\Gamma(1 - \sigma)} w^{-1-\sigma} e^{-uw}
              \int_0^\infty x^{\tau-\sigma-1} e^{-cx} e^{-wx} dx .

    Without the tilt :math:`u` its tail falls as :math:`x^{-\sigma}` near zero and as
    :math:`x^{-\tau}` at infinity. Its moments and its Laplace exponent are computed by quadrature,
    draws of its total mass are exact. The weights are those of a generalized gamma process divided
    by independent :math:`\text{Gamma}(\tau, c)` variables, which the series method ``"scaled"`` and
    the finite approximation use; with a tilt there is no such approximation, and the general one is
    taken. Draws of the series ``"size_biased"`` go through a latent tilt, in which they have no
    gradient; those of ``"scaled"`` have all. The mass of one index cannot be compared with that of
    another, for it is multiplied by about :math:`\Gamma(\tau)`.

    :param mass: :math:`\eta > 0`.
    :param discount: :math:`\sigma`, in [0, 1).
    :param tail_index: :math:`\tau`, greater than the discount. Without tilt the mean total mass is
        infinite for indices up to 1.
    :param rate: :math:`c > 0`; weights of about :math:`c` are where one power law passes into the
        other.
    :param tilt: :math:`u \geq 0`, an exponential tilt.
    :raises ValueError: where a parameter is out of range.

    Example::

        >>> measure = BetaPrimeProcess(1.5, 0.4, 2.3, 1.0)
        >>> measure.laplace_exponent(0.5), measure.log_kappa(7, 0.7)
        (tensor(0.5625), tensor(4.0715))
    """

    rate: Tensor
    _damping = 1.0

    def __init__(
        self,
        mass: Any,
        discount: Any,
        tail_index: Any,
        rate: Any = 1.0,
        *,
        tilt: Any = 0.0,
        validate_args: bool | None = None,
    ) -> None:
        parameters = {"mass": mass, "discount": discount, "tail_index": tail_index, "rate": rate}
        super().__init__(parameters, validate_args, {"tilt": (tilt, 0.0)})
        self._check_parameters()
        self._check("rate", self.rate > 0, "> 0")

    def rescale(self, scale: Any) -> "BetaPrimeProcess":
        r"""Process of mass :math:`\eta a^\tau`, rate :math:`c a` and tilt :math:`u / a`.

        :param scale: :math:`a > 0`.
        """
        factor, own = self._argument("scale", scale, "> 0"), self._double
        mass = own.mass * factor**own.tail_index
        return self._rescaled(scale, factor, mass=mass, rate=own.rate * factor)

    def _log_end(self) -> Tensor:
        return -self._double.rate.log()

    def _log_mass(self, place: Tensor) -> Tensor:
        own, power = self._double, self._power
        mixture = power.lgamma() - power * torch.logaddexp(place, own.rate.log())
        return (
            self._log_scale()
            - own.discount * place
            - own.tilt * place.clamp(max=_LARGEST_LOG).exp()
            + mixture
        )

    def _base(self) -> GeneralizedGammaProcess:
        own = self._double
        mass = (own.mass.log() + own.tail_index.lgamma() - own.tail_index * own.rate.log()).exp()
        tilt = torch.ones_like(mass)
        return GeneralizedGammaProcess(mass, own.discount, tilt, validate_args=False)

    def _log_divisor(self, shape: torch.Size) -> Tensor:
        return rsample_log_gamma(self._double.tail_index.expand(shape)) - self._double.rate.log()

    def _log_divisor_moment(self, order: float) -> Tensor:
        own = self._double
        moment = (own.tail_index - order).lgamma() - own.tail_index.lgamma()
        return order * own.rate.log() + moment

    def _finite_law(self, num_atoms: int, rule: str) -> TorchDistribution | None:
        if self._has("tilt"):
            return None
        log_level = self._base()._finite_log_level(num_atoms, rule)
        return BetaPrimeBFRY(
            self.discount,
            self.tail_index,
            rate=self.rate,
            log_level=log_level.to(self.dtype),
            validate_args=self._validate,
        )

    def _sample_total_mass(self) -> Tensor:
        r"""Exact draws, of the process of rate one and rescaled.

        That process is a generalized gamma process of tilt :math:`k`, and independent weights of
        density proportional to :math:`w^{-1-\sigma} [(1 + w)^{-k} - e^{-kw}]`.
        """
        own, power = self._double, self._power
        tilt = own.tilt * own.rate
        log_mass = own.mass.log() - own.tail_index * own.rate.log() + power.lgamma()
        mass = log_mass.exp()
        main = GeneralizedGammaProcess(mass, own.discount, power + tilt, validate_args=False)
        safe = own.discount.clamp(min=_TINY_DISCOUNT)
        growth = power.log() - ((power + safe).lgamma() - power.lgamma()) / safe
        growth = torch.where(
            own.discount < _TINY_DISCOUNT,
            power.log() - torch.digamma(power + 0.5 * own.discount),
            growth,
        )
        number = torch.poisson(
            mass
            * (own.discount * (power.log() - growth)).exp()
            * growth
            * log_exprel(own.discount * growth).exp()
        )
        values = torch.broadcast_tensors(own.discount, power, tilt)
        parameters = [value.reshape(-1) for value in values]

        def draw(owner: Tensor) -> Tensor:
            discount, exponent, removal = (value[owner] for value in parameters)
            weight = _sample_log_excess(discount, exponent).exp()
            return torch.where(survives(weight, removal), weight, 0.0)

        return own.rate * (main._sample_total_mass() + compound_poisson(number, draw))


def _sample_log_excess(discount: Tensor, power: Tensor) -> Tensor:
    r"""Logarithms of draws with density :math:`\propto w^{-1-\sigma} [(1 + w)^{-k} - e^{-kw}]`.

    By rejection under :math:`k w^{1-\sigma} / 2`, :math:`k w^{-\sigma}` and a Lomax density.
    """
    result = torch.empty_like(discount)
    waiting = torch.arange(discount.numel(), device=discount.device)
    while waiting.numel():
        draw, is_accepted = _propose_log_excess(discount[waiting], power[waiting])
        result[waiting[is_accepted]] = draw[is_accepted]
        waiting = waiting[~is_accepted]
    return result


def _propose_log_excess(discount: Tensor, power: Tensor) -> tuple[Tensor, Tensor]:
    first = torch.where(power > 1.0, power.rsqrt(), 1.0)
    second = first.maximum(1.0 / power)
    near = 0.5 * power * first ** (2.0 - discount) / (2.0 - discount)
    start, stop = first ** (1.0 - discount), second ** (1.0 - discount)
    middle = power * (stop - start) / (1.0 - discount)
    decay = discount + power
    log_far = (1.0 + discount) * torch.log1p(1.0 / second) - decay * torch.log1p(second)
    far = log_far.exp() / decay
    choice, place, height = torch.rand(
        (3, *discount.shape), dtype=discount.dtype, device=discount.device
    )
    choice = choice * (near + middle + far)
    is_near, is_far = choice < near, choice >= near + middle
    place = 1.0 - place
    log_near = first.log() + place.log() / (2.0 - discount)
    log_middle = (start + place * (stop - start)).log() / (1.0 - discount)
    far_draw = torch.expm1(torch.log1p(second) - place.log() / decay)
    draw = torch.where(is_near, log_near, torch.where(is_far, far_draw.log(), log_middle))
    weight = draw.exp()
    log_growth = torch.log1p(weight)
    excess = power * (weight - log_growth)
    log_target = -power * log_growth + log1mexp(excess.clamp(min=1e-300))
    log_bound = torch.where(is_near, (0.5 * power).log() + 2.0 * draw, power.log() + draw)
    lomax = (1.0 + discount) * (torch.log1p(1.0 / second) + draw - log_growth) - power * log_growth
    log_bound = torch.where(is_far, lomax, log_bound)
    return draw, torch.log1p(-height) <= log_target - log_bound
