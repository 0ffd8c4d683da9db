r"""The generalized BFRY process, with one power law near zero and another for large weights.

[1] F. Ayed, J. Lee, F. Caron (2019), Beyond the Chinese restaurant and Pitman-Yor processes:
statistical models with double power-law behavior.
"""

from typing import Any

import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor

from pyro_ext.distributions import GeneralizedBFRY
from pyro_ext.distributions.bases import rsample_log_gamma
from pyro_ext.random_measures._logarithms import log_upper_gamma_at_log, survives
from pyro_ext.random_measures._mixed_tilts import MixedTilts
from pyro_ext.random_measures.generalized_gamma import GeneralizedGammaProcess
from pyro_ext.random_measures.total_mass import compound_poisson
from pyro_ext.special import log_lower_gamma_at_log

__all__ = ["GeneralizedBFRYProcess"]

_LARGEST_LOG = 700.0


class GeneralizedBFRYProcess(MixedTilts):
    r"""Generalized BFRY process [1].

    .. math:: \rho(w) = \frac{\eta}{\Gamma(1 - \sigma)} w^{-1-\tau} e^{-uw}
              \gamma(\tau - \sigma, c w)
              = \frac{\eta}{\Gamma(1 - \sigma)} w^{-1-\sigma} e^{-uw}
              \int_0^c x^{\tau-\sigma-1} e^{-wx} dx .

    Without the tilt :math:`u` its tail falls as :math:`x^{-\sigma}` near zero and as
    :math:`x^{-\tau}` at infinity. Its moments and its Laplace exponent are computed by quadrature,
    draws of its total mass are exact. The weights are those of a generalized gamma process divided
    by independent :math:`\text{Beta}(\tau, 1)` variables, which the series method ``"scaled"`` and
    the finite approximation use; with a tilt there is no such approximation, and the general one is
    taken. Draws of the series ``"size_biased"`` go through a latent tilt, in which they have no
    gradient; those of ``"scaled"`` have all.

    :param mass: :math:`\eta > 0`.
    :param discount: :math:`\sigma`, in [0, 1).
    :param tail_index: :math:`\tau`, greater than the discount. Without tilt the mean total mass is
        infinite for indices up to 1.
    :param cutoff: :math:`c > 0`; weights of about :math:`1/c` are where one power law passes into
        the other.
    :param tilt: :math:`u \geq 0`, an exponential tilt.
    :raises ValueError: where a parameter is out of range.

    Example::

        >>> measure = GeneralizedBFRYProcess(1.5, 0.4, 2.3, 1.2)
        >>> measure.laplace_exponent(0.5), measure.log_kappa(7, 0.7)
        (tensor(0.5857), tensor(4.3478))
    """

    cutoff: Tensor
    _damping = 0.0

    def __init__(
        self,
        mass: Any,
        discount: Any,
        tail_index: Any,
        cutoff: Any = 1.0,
        *,
        tilt: Any = 0.0,
        validate_args: bool | None = None,
    ) -> None:
        parameters = {
            "mass": mass,
            "discount": discount,
            "tail_index": tail_index,
            "cutoff": cutoff,
        }
        super().__init__(parameters, validate_args, {"tilt": (tilt, 0.0)})
        self._check_parameters()
        self._check("cutoff", self.cutoff > 0, "> 0")

    def rescale(self, scale: Any) -> "GeneralizedBFRYProcess":
        r"""Process of mass :math:`\eta a^\tau`, cutoff :math:`c / a` and tilt :math:`u / a`.

        :param scale: :math:`a > 0`.
        """
        factor, own = self._argument("scale", scale, "> 0"), self._double
        mass = own.mass * factor**own.tail_index
        return self._rescaled(scale, factor, mass=mass, cutoff=own.cutoff / factor)

    def _log_end(self) -> Tensor:
        return self._double.cutoff.log()

    def _log_mass(self, place: Tensor) -> Tensor:
        own, lower = self._double, self._log_lower(place + self._log_end())
        return (
            self._log_scale()
            - own.tail_index * place
            - own.tilt * place.clamp(max=_LARGEST_LOG).exp()
            + lower
        )

    def _log_lower(self, log_value: Tensor) -> Tensor:
        r""":math:`\log \gamma(\tau - \sigma, x)` at :math:`\log x`, also where that underflows."""
        return log_lower_gamma_at_log(self._power, log_value)

    def _log_tail(self, log_size: Tensor) -> Tensor:
        if self._has("tilt"):
            return super()._log_tail(log_size)
        own = self._double
        argument = log_size + self._log_end()
        discount, argument = torch.broadcast_tensors(own.discount, argument)
        body = self._log_lower(argument) - own.tail_index * log_size
        rest = log_upper_gamma_at_log(-discount, argument) + own.tail_index * self._log_end()
        return self._log_scale() - own.tail_index.log() + torch.logaddexp(body, rest)

    def _base(self) -> GeneralizedGammaProcess:
        own, power = self._double, self._power
        mass = own.mass * own.cutoff**power / own.tail_index
        return GeneralizedGammaProcess(mass, own.discount, own.cutoff, validate_args=False)

    def _log_divisor(self, shape: torch.Size) -> Tensor:
        uniform = torch.rand(shape, dtype=torch.float64, device=self.mass.device)
        return torch.log1p(-uniform) / self._double.tail_index

    def _log_divisor_moment(self, order: float) -> Tensor:
        tail_index = self._double.tail_index
        return tail_index.log() - (tail_index - order).log()

    def _finite_law(self, num_atoms: int, rule: str) -> TorchDistribution | None:
        if self._has("tilt"):
            return None
        own = self._double
        log_level = self._base()._finite_log_level(num_atoms, rule) - self._log_end()
        return GeneralizedBFRY(
            self.discount,
            self.tail_index,
            scale=(1.0 / own.cutoff).to(self.dtype),
            log_level=log_level.to(self.dtype),
            validate_args=self._validate,
        )

    def _sample_total_mass(self) -> Tensor:
        own, power = self._double, self._power
        main = GeneralizedGammaProcess(
            own.mass * own.cutoff**power / power,
            own.discount,
            own.cutoff + own.tilt,
            validate_args=False,
        )
        number = torch.poisson(own.mass * own.cutoff**own.tail_index / (power * own.tail_index))
        values = torch.broadcast_tensors(own.discount, own.tail_index, own.cutoff, own.tilt)
        parameters = [value.reshape(-1) for value in values]

        def draw(owner: Tensor) -> Tensor:
            discount, tail_index, cutoff, tilt = (value[owner] for value in parameters)
            log_weight = rsample_log_gamma(1.0 - discount) - cutoff.log()
            log_weight = log_weight - torch.rand_like(discount).log() / tail_index
            weight = log_weight.exp()
            return torch.where(survives(weight, tilt), weight, 0.0)

        return main._sample_total_mass() + compound_poisson(number, draw)
