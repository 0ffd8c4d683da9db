"""Samplers of vectors and of paths, trained by adjoint matching."""

import math
from collections.abc import Callable
from typing import Any, Unpack

import torch
from torch import Tensor, nn

from pyro_ext._lib import checks
from pyro_ext.distributions import DirichletOU
from pyro_ext.inference.adjoint.control import state_shape
from pyro_ext.inference.adjoint.matching import (
    AdjointMatching,
    Control,
    MatchingOptions,
    Transition,
)
from pyro_ext.inference.adjoint.noise import NoiseSchedule
from pyro_ext.random import seeded


class AdjointSampler(AdjointMatching):
    r"""Samples a density of vectors, given only its energy and the gradient of the energy [1].

    It learns the control :math:`u` of a diffusion from zero,

    .. math:: d X_t = \sigma_t u(t, X_t) \, dt + \sigma_t \, dW_t ,

    such that :math:`X_1` has the density :math:`\pi(x) \propto e^{-E(x) / \tau}`. Training does not
    differentiate through the simulation, and needs no draws from :math:`\pi`. Each draw has an
    importance weight that corrects for what has not been learned. The mean weight is the normalizer
    :math:`\int e^{-E(x) / \tau} dx`.

    If modes lie far apart, their weights are hardly learned, and a mode may be lost. Use a schedule
    with enough noise for the modes to overlap on the way, and many draws, and check
    :meth:`evaluate`, which only knows modes that draws have reached.

    :param energy: :math:`E`, a function of states ``(n, *event)`` that returns ``(n,)``.
    :param control: :math:`u`, trained in place. It maps times ``(n,)`` and states ``(n, *event)``
        to ``(n, *event)``. A plain function can be sampled with, but not trained.
    :param NoiseSchedule schedule: :math:`\sigma_t`, such as
        :class:`~pyro_ext.inference.adjoint.ConstantNoise`. Its variance at time one must cover the
        density.
    :param float temperature: :math:`\tau`.
    :param event_shape: shape of a state, or the size of a vector; by default
        ``control.event_shape``.
    :param options: ``num_time_steps`` of a simulation (40), ``num_draws`` of a round (1024),
        ``steps_per_round`` of the optimizer (50), ``batch_size`` of a step (512),
        ``num_rounds_kept`` in the buffer (8) and ``clip_norm`` of the gradient at each draw; and
        ``optimizer`` (Adam with learning rate 0.003), ``scheduler``, ``max_norm``, ``ema_decay``
        and ``seed``, as for :class:`~pyro_ext.inference.Trainer`.
    :raises ValueError: for numbers out of range, or an unknown shape.

    [1] A. Havens et al. (2025),
    Adjoint sampling: highly scalable diffusion samplers via adjoint matching.

    Example::

        >>> from pyro_ext.inference.adjoint import ConstantNoise, ControlNetwork
        >>> schedule = ConstantNoise(1.0)
        >>> sampler = AdjointSampler(
        ...     lambda x: 2.0 * (x - 0.5).square().sum(-1),
        ...     ControlNetwork(2, hidden_features=(16,), scale=schedule.scale),
        ...     schedule, num_draws=64, batch_size=64, seed=0)
        >>> draws, log_weight = sampler.fit(100, progress=False).sample(5, return_log_weight=True)
        >>> draws.shape, log_weight.shape
        (torch.Size([5, 2]), torch.Size([5]))
    """

    def __init__(
        self,
        energy: Callable[[Tensor], Tensor],
        control: Control,
        schedule: NoiseSchedule,
        *,
        temperature: float = 1.0,
        event_shape: int | tuple[int, ...] | None = None,
        **options: Unpack[MatchingOptions],
    ) -> None:
        checks.function("energy", energy, "a function of states", or_class=False)
        checks.instance("schedule", schedule, NoiseSchedule, "one such as ConstantNoise(1.0)")
        self.energy, self.schedule = energy, schedule
        self.temperature = checks.number("temperature", temperature, above=0)
        if event_shape is None:
            event_shape = getattr(control, "event_shape", None)
        if event_shape is None:
            raise ValueError(
                "event_shape must be given for a control that has no event_shape, got None"
            )
        settings = {"schedule": repr(schedule), "temperature": temperature}
        self.control = control
        super().__init__(control, state_shape(event_shape), settings, **options)

    def sample(
        self,
        num_samples: int,
        *,
        return_log_weight: bool = False,
        num_time_steps: int | None = None,
        seed: int | None = None,
    ) -> Any:
        """Draw samples.

        :param int num_samples: number of draws.
        :param bool return_log_weight: whether to return log importance weights, too.
        :param int num_time_steps: number of steps of the simulation; by default as in training.
        :param int seed: seed of the draws.
        :returns: draws, **Shape:** ``(num_samples, *event)``, or a pair of these and log weights,
            **Shape:** ``(num_samples,)``.
        """
        checks.instance("return_log_weight", return_log_weight, bool, "True or False")
        with torch.no_grad(), seeded(seed):
            x, log_ratio = self.simulate(num_samples, num_time_steps)
            return (x, -self._cost(x) - log_ratio) if return_log_weight else x

    def reference_log_prob(self, x: Tensor) -> Tensor:
        """Log density of the uncontrolled diffusion at time one.

        :param Tensor x: **Shape:** ``(n, *event)``.
        :returns: **Shape:** ``(n,)``.
        """
        variance = self._variance(0.0, 1.0)
        size = self._zero.numel()
        square = x.flatten(1).square().sum(-1)
        constant: Tensor = size * torch.log(2.0 * math.pi * variance)
        return -0.5 * (square / variance + constant)

    def _like(self) -> Tensor:
        parameters = self.control.parameters() if isinstance(self.control, nn.Module) else ()
        return next(iter(parameters), torch.zeros(()))

    def _variance(self, start: Any, end: Any) -> Tensor:
        like = self._zero
        return self.schedule.variance(
            torch.as_tensor(start).to(like), torch.as_tensor(end).to(like)
        )

    def _transition(self, start: Tensor, end: Tensor) -> Transition:
        variance = self._variance(start, end)
        # What stands still is u / sigma, so that the step is exact for any schedule.
        gain = variance / self.schedule.scale(start)
        return Transition(torch.ones_like(start), gain, variance.sqrt())

    def _between(self, t: Tensor, end: Tensor) -> Tensor:
        before, after = self._variance(0.0, t), self._variance(t, 1.0)
        whole = self._variance(0.0, 1.0)
        loc = _rows(before / whole, end) * end
        return loc + _rows((before * after / whole).sqrt(), end) * torch.randn_like(end)

    def _pull(self, t: Tensor) -> Tensor:
        return _rows(self.schedule.scale(t), self._zero[None])

    def _weight(self, t: Tensor) -> Tensor:
        return self.schedule.scale(t).square().reciprocal()

    def _cost(self, x: Tensor) -> Tensor:
        energy = _checked("energy", self.energy(x), x)
        return energy / self.temperature + self.reference_log_prob(x)


class FunctionalAdjointSampler(AdjointMatching):
    r"""Samples paths between two ends whose density is known up to a constant [1].

    The density is with respect to the invariant distribution of the reference, a Brownian bridge:
    :math:`\pi(d\gamma) \propto e^{-U(\gamma)} \nu_\infty(d\gamma)`. The sampler learns the control
    :math:`\alpha` of the modes,

    .. math:: d z_k = - a_k z_k \, dt + \sqrt{2 a_k} \, (\alpha_k dt + dW_k) .

    The ends of paths are exact, whatever has been learned, and paths can be drawn on any grid. Each
    draw has an importance weight; the mean weight is :math:`E_{\nu_\infty}[e^{-U}]`.

    :param DirichletOU reference: the process without control, with the ends of the paths.
    :param path_energy: :math:`U`, a function of paths ``(n, num_points, dim)`` and their grid
        ``(num_points,)`` that returns ``(n,)``, such as
        :class:`~pyro_ext.inference.adjoint.OnsagerMachlup`. An integral must be weighted with the
        distances of the points.
    :param control: :math:`\alpha`, a module that maps times ``(n,)`` and modes
        ``(n, num_modes, dim)`` to ``(n, num_modes, dim)``; trained in place.
    :param Tensor grid: points at which the energy is evaluated; by default evenly spaced points,
        six intervals for each mode. **Shape:** ``(num_points,)``.
    :param options: as for :class:`~pyro_ext.inference.AdjointSampler`.
    :raises ValueError: for numbers out of range, or a reference with a batch shape.

    [1] B. Park, J. Lee, G.-H. Liu (2026),
    Functional adjoint sampler: scalable sampling on infinite dimensional spaces.

    Example::

        >>> from pyro_ext.distributions import DirichletOU
        >>> from pyro_ext.inference.adjoint import ControlNetwork, DoubleWell1D, OnsagerMachlup
        >>> reference = DirichletOU(2.0, num_modes=4, dim=1, start=-1.0, end=1.0)
        >>> sampler = FunctionalAdjointSampler(
        ...     reference, OnsagerMachlup(DoubleWell1D()), ControlNetwork((4, 1), (16,)),
        ...     num_draws=64, batch_size=64, seed=0)
        >>> paths = sampler.fit(50, progress=False).sample(5, torch.linspace(0.0, 2.0, 1001))
        >>> paths.shape, paths[:, -1].unique()
        (torch.Size([5, 1001, 1]), tensor([1.]))
    """

    def __init__(
        self,
        reference: DirichletOU,
        path_energy: Callable[[Tensor, Tensor], Tensor],
        control: Control,
        *,
        grid: Tensor | None = None,
        **options: Unpack[MatchingOptions],
    ) -> None:
        self.grid = path_grid(reference, grid)
        check_path_energy(path_energy)
        self.reference, self.path_energy = reference, path_energy
        settings = {
            "grid": self.grid,
            **{name: getattr(reference, name) for name in ("noise", "rate", "start", "end")},
        }
        super().__init__(control, reference.event_shape, settings, **options)

    def sample(
        self,
        num_samples: int,
        grid: Tensor | None = None,
        *,
        return_log_weight: bool = False,
        num_time_steps: int | None = None,
        seed: int | None = None,
    ) -> Any:
        """Draw paths.

        :param int num_samples: number of draws.
        :param Tensor grid: points of the paths; by default those of the training. Log weights use
            the energy on this grid. **Shape:** ``(num_points,)``.
        :param bool return_log_weight: whether to return log importance weights, too.
        :param int num_time_steps: number of steps of the simulation; by default as in training.
        :param int seed: seed of the draws.
        :returns: paths, **Shape:** ``(num_samples, num_points, dim)``, or a pair of these and log
            weights, **Shape:** ``(num_samples,)``.
        """
        checks.instance("return_log_weight", return_log_weight, bool, "True or False")
        grid = self.grid if grid is None else path_grid(self.reference, grid)
        with torch.no_grad(), seeded(seed):
            z, log_ratio = self.simulate(num_samples, num_time_steps)
            path = self.reference.synthesis(z, grid)
            if not return_log_weight:
                return path
            energy = _checked("path_energy", self.path_energy(path, grid), z)
            return path, -energy - self.reference.log_rnd(z) - log_ratio

    def _like(self) -> Tensor:
        return self.reference.rate

    def _transition(self, start: Tensor, end: Tensor) -> Transition:
        rate = self.reference.rate[:, None]
        passed = rate * (end - start)
        gain = (2.0 * rate).sqrt() * -torch.expm1(-passed) / rate
        return Transition(torch.exp(-passed), gain, (-torch.expm1(-2.0 * passed)).sqrt())

    def _between(self, t: Tensor, end: Tensor) -> Tensor:
        state: Tensor = self.reference.bridge(t, end).sample()
        return state

    def _pull(self, t: Tensor) -> Tensor:
        rate = self.reference.rate[:, None]
        return (2.0 * rate).sqrt() * torch.exp(-rate * (1.0 - t[:, None, None]))

    def _weight(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def _cost(self, x: Tensor) -> Tensor:
        path = self.reference.synthesis(x, self.grid)
        energy = _checked("path_energy", self.path_energy(path, self.grid), x)
        return energy + self.reference.log_rnd(x)


def path_grid(reference: DirichletOU, grid: Any = None) -> Tensor:
    """Points at which paths of a reference are looked at."""
    checks.instance("reference", reference, DirichletOU, "a DirichletOU")
    if reference.batch_shape:
        raise ValueError(
            f"reference must be a single process, got the batch shape {reference.batch_shape}"
        )
    length = reference.length
    if grid is None:
        return length * torch.linspace(
            0.0, 1.0, 6 * reference.num_modes + 1, dtype=length.dtype, device=length.device
        )
    points = checks.as_tensor("grid", grid, "(num_points)", like=length, finite=True).to(length)
    if not bool((points.diff() > 0).all() & (points[0] >= 0) & (points[-1] <= length)):
        raise ValueError(f"grid must increase in [0, {float(length):g}], got {checks.shown(grid)}")
    return points


def check_path_energy(path_energy: Any) -> None:
    """Check that a value can be called as an energy of paths."""
    wanted = "a function of paths and their grid"
    checks.function("path_energy", path_energy, wanted, or_class=False)


def _rows(value: Tensor, like: Tensor) -> Tensor:
    """One number for each row of another tensor."""
    return value.reshape(-1, *[1] * (like.dim() - 1))


def _checked(name: str, value: object, x: Tensor) -> Tensor:
    """An energy, which must be a number for each state."""
    if not isinstance(value, Tensor) or value.shape != x.shape[:1]:
        raise ValueError(
            f"{name} must return a tensor of shape {tuple(x.shape[:1])}, got {checks.shown(value)}"
        )
    return value
