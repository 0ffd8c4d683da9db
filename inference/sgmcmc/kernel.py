"""Base of the stochastic gradient kernels: schedules, minibatches, anchors, masses."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Literal, Self, Unpack

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pyro_ext._lib import checks
from pyro_ext.inference.sgmcmc.mass import Mass, mass_of
from pyro_ext.inference.sgmcmc.minibatches import IndependentMinibatches, Minibatches
from pyro_ext.inference.sgmcmc.schedules import ConstantSchedule, Schedule
from pyro_ext.inference.vectorized import Chains, Draws, VectorizedKernel, VectorizedOptions
from pyro_ext.posterior.modes import Laplace, dispersed_starts, flat_point, minimum
from pyro_ext.potential import FunctionPotential, InitStrategy, init_to_suggested
from pyro_ext.potential.control_variates import Anchor, anchor_at, is_anchor_of

_STEP_SIZE = 1e-3  # for a potential over an unknown number of data
HEAT = 0.1
"""Fraction of the temperature that gradient noise may add to it with a default step size."""

ControlVariate = Literal["map"] | Mapping[str, Tensor] | None
MinibatchSource = type[Minibatches] | type[IndependentMinibatches]


class KernelOptions(VectorizedOptions, total=False):
    """Keyword arguments that all kernels take; :class:`SGMCMCKernel` documents them."""

    step_size: float | Schedule | None
    temperature: float
    control_variate: ControlVariate
    minibatches: MinibatchSource
    init_strategy: InitStrategy


class SGMCMCKernel(VectorizedKernel):
    r"""Base class of stochastic-gradient samplers.

    The default step size is chosen for a posterior with standard deviations of :math:`1 / \sqrt N`
    in all directions: its variances then come out too large by at most a tenth or so. :math:`N` is
    the number of data, the size of the largest plate around an observed site. If inputs are
    standardized and priors have unit scale, a potential that sums over the data has about this
    curvature. For minibatches of size :math:`n` and at temperature one, the step size of
    :class:`SGLD` is :math:`\min(0.05, 0.2\, n / N) / N`, and that of :class:`SGHMC`, with its
    default decay, is :math:`\sqrt{\min(0.04, 0.02\, n / N) / N}`. Inputs on other scales need other
    step sizes, or masses in proportion to the curvatures; ``mass="laplace"`` measures the
    curvatures. After :meth:`~pyro_ext.inference.VectorizedKernel.setup`, read the step size from
    ``schedule``, :meth:`diagnostics` or :meth:`statistics`.

    :param model: a Pyro model, or ``None`` with a ``potential_fn``.
    :param potential_fn: maps one chain's dict of unconstrained parameters to a scalar; it requires
        initial parameters.
    :param str backend: as for :class:`~pyro_ext.inference.VectorizedKernel`.
    :param step_size: a positive number or a :class:`Schedule`. The default depends on the number of
        data as above; it is 0.001 for a ``potential_fn`` or a model without a plate around its
        observed sites.
    :param float temperature: the target is the posterior raised to the power of the inverse
        temperature. Zero gives stochastic gradient descent to a posterior mode.
    :param control_variate: an anchor near a mode. Near it, control variates remove most of the
        minibatch noise from the gradients, at a cost of two gradients per step (see
        :mod:`~pyro_ext.potential.control_variates`). ``"map"`` searches for the anchor with
        :func:`~pyro_ext.posterior.find_map`; a mapping gives it by site, in constrained space;
        ``None`` uses no control variates.
    :param minibatches: the class that draws minibatches:
        :class:`~pyro_ext.inference.sgmcmc.Minibatches`, from shuffled epochs, or
        :class:`~pyro_ext.inference.sgmcmc.IndependentMinibatches`.
    :param int steps_per_sample: number of steps that one call of
        :meth:`~pyro_ext.inference.VectorizedKernel.sample` takes. It serves as thinning under
        Pyro's driver, which has none.
    :param init_strategy: where chains start, one of :mod:`pyro.infer.autoguide.initialization`. By
        default, each site starts where it asks to, or else at the median of a few draws from its
        prior; kernels with ``mass="laplace"`` start around the mode.
    :raises ValueError: for arguments out of range.
    """

    takes_minibatches: ClassVar[bool] = True
    mass: Mass = 1.0
    noise_estimate: float = 0.0

    def __init__(
        self,
        model: Callable[..., Any] | None = None,
        *,
        step_size: float | Schedule | None = None,
        temperature: float = 1.0,
        control_variate: ControlVariate = None,
        minibatches: MinibatchSource = Minibatches,
        init_strategy: InitStrategy = init_to_suggested,
        **options: Unpack[VectorizedOptions],
    ) -> None:
        super().__init__(model, init_strategy=init_strategy, **options)
        if not (control_variate in (None, "map") or isinstance(control_variate, Mapping)):
            raise ValueError(
                "control_variate must be None, 'map' or a mapping of site names to tensors, got "
                f"{control_variate!r:.80}"
            )
        if control_variate is not None and self.potential_fn is not None:
            raise ValueError(
                "control_variate needs a model with a subsampled plate: a potential_fn takes no "
                "minibatches"
            )
        if minibatches not in (Minibatches, IndependentMinibatches):
            raise ValueError(
                "minibatches must be the class Minibatches or IndependentMinibatches, got "
                f"{minibatches!r:.80}"
            )
        self.minibatches = minibatches
        self.step_size = step_size
        self.schedule = (
            step_size
            if isinstance(step_size, Schedule)
            else ConstantSchedule(_STEP_SIZE if step_size is None else step_size)
        )
        self.temperature = checks.number("temperature", temperature, least=0)
        self.control_variate = control_variate
        self._masses: float | Tensor = 1.0
        self._masses_of: Laplace | None = None
        self._minibatches: Minibatches | IndependentMinibatches | None = None

    def replace(self, **changes: Any) -> Self:
        """Return a new kernel with other settings; it keeps the anchor if that is still valid.

        See :meth:`~pyro_ext.inference.VectorizedKernel.replace`.
        """
        kernel = super().replace(**changes)
        if kernel.control_variate is self.control_variate:
            kernel.anchor = self.anchor
        return kernel

    def __getstate__(self) -> dict[str, Any]:
        made = {"_minibatches": None, "_masses": 1.0, "_masses_of": None}
        return {**super().__getstate__(), **made}

    # What a sampler gives ----------------------------------------------------------------------

    def _default_step_size(self) -> float:
        """Step size where none is given, of the potential that is set up."""
        curvature = self._expected_curvature()
        if curvature is None:
            return _STEP_SIZE
        noise = self._noise_ratio() / self.temperature if self.temperature > 0 else 0.0
        return self._stable_step_size(curvature, max(noise, HEAT))

    def _stable_step_size(self, curvature: float, noise: float) -> float:
        """Step size at which neither its length nor noise widens the draws much.

        Given second derivatives over mass, and the noise variance of gradients over the former and
        the temperature.
        """
        raise NotImplementedError

    def _expected_curvature(self) -> float | None:
        """Second derivatives of the potential over mass, where something is known of them."""
        if isinstance(self.mass, str):
            return 1.0
        size = self.potential.data_size
        return float(size) if size > 1 else None

    def _prepare(self) -> None:
        self._minibatches = None
        self.anchor = self._find_anchor()
        if self.step_size is None:
            self.schedule = ConstantSchedule(self._default_step_size())
        named = isinstance(self.mass, str)
        self._masses_of = self.find_laplace("mass='laplace'") if named else None
        self._masses = mass_of(self.potential, self.mass, self._masses_of)
        self._check_noise(self._masses)

    def _check_noise(self, mass: Mass) -> None:
        """The noise that a gradient brings along can at most be all of the noise of a step."""
        largest = self._most_noise(mass) * self.temperature
        if self.temperature > 0 and self.noise_estimate > largest:
            raise ValueError(
                f"noise_estimate must be at most {largest:.4g} for this step size and temperature, "
                f"got {self.noise_estimate!r}: the gradient alone would bring more noise than a "
                "step may have"
            )

    def _most_noise(self, mass: Mass) -> float:
        """Variance of gradients that brings all of the noise of a step, at the temperature one."""
        return math.inf

    def _noise_ratio(self) -> float:
        """Variance of the noise of gradients over the curvature of the potential."""
        # In a model that fits its data the gradients of single data vary as much as the potential
        # is curved for each of them: it is the number of minibatches in an epoch.
        if self.control_variate is not None:
            return 0.0
        plates = self.potential.subsampled_plates
        return max((plate.size / plate.subsample_size for plate in plates), default=0.0)

    def _starts(self, numbers: Sequence[int], seed: int) -> dict[str, Tensor]:
        if self._masses_of is not None and self.init_strategy is init_to_suggested:
            return dispersed_starts(self.potential, self._masses_of, numbers, seed)
        return super()._starts(numbers, seed)

    def _find_anchor(self) -> Anchor | None:
        potential = self.potential
        if self.control_variate is None or isinstance(potential, FunctionPotential):
            return None
        if not potential.subsampled_plates:
            raise ValueError(
                "control_variate needs a plate with a subsample_size: without one, every gradient "
                "is over all of the data and has no noise to control"
            )
        if self.anchor is not None:  # from an earlier setup, here or where the kernel was pickled
            known = Anchor(*(part.to(potential.layout.device) for part in self.anchor))
            if is_anchor_of(potential, known):
                return known
        if isinstance(self.control_variate, Mapping):
            position = flat_point(potential, self.control_variate, "control_variate")
        elif isinstance(self.mass, str):
            return self.find_laplace("mass='laplace'").mode
        else:
            start = potential.init_chains(range(1), 0, self.init_strategy)
            position = minimum(potential, potential.layout.flatten(start)[0])
        return anchor_at(potential, position)

    # What steps take besides the state -----------------------------------------------------------

    @property
    def period(self) -> int:
        """Number of steps after which the pattern of sampling steps repeats."""
        return self.schedule.period

    def is_sampling(self, steps: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        """Tell whether the draw after each of these steps, counted from zero, is to be kept."""
        return self.schedule.is_sampling(steps)

    def _schedules(
        self, steps: npt.NDArray[np.int64]
    ) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        temperatures = np.where(self.schedule.is_sampling(steps), self.temperature, 0.0)
        return self.schedule.step_sizes(steps), temperatures

    def _batches(self, chains: Chains, num_steps: int) -> list[Tensor]:
        known = self._minibatches
        if known is None or (known.chains, known.seed) != (chains.numbers, chains.seed):
            known = self.minibatches(self.potential.subsampled_plates, chains.numbers, chains.seed)
            self._minibatches = known
        return list(known(chains.step, num_steps))

    def diagnostics(self) -> dict[str, Any]:
        """Diagnostics of one chain for a driver, with the largest ``step_size``."""
        return {**super().diagnostics(), "step_size": self.schedule.max_step_size}

    def statistics(self, chains: Chains | Draws) -> dict[str, Tensor]:
        """Statistics of the last step of each chain, or of the step before each draw.

        :param chains: the chains, or draws of them.
        :returns: ``lp``, which is the negative potential at the step, its ``step_size`` and
            ``temperature``, and what the sampler adds. **Shape:** ``(num_chains,)`` each, or
            ``(num_draws, num_chains)`` for draws.
        """
        last = np.atleast_1d(chains.step if isinstance(chains, Chains) else chains.steps) - 1
        energy = chains.potential_energy
        step_sizes, temperatures = self._schedules(last)
        return {
            "lp": -energy,
            "step_size": _per_chain(step_sizes, energy),
            "temperature": _per_chain(temperatures, energy),
            **self._statistics(chains.state),
        }


def noise_scale(variance: Tensor) -> Tensor:
    """Standard deviation of the noise to inject, none where the gradient's own is more."""
    return variance.clamp(min=0.0).sqrt()


def _per_chain(values: npt.NDArray[np.float64], like: Tensor) -> Tensor:
    """Numbers of each draw, the same for all chains."""
    return torch.from_numpy(values).to(like)[:, None].expand(-1, like.shape[-1]).reshape(like.shape)
