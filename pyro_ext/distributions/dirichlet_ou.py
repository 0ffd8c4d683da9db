"""An Ornstein-Uhlenbeck process over paths with fixed ends, in a sine basis."""

import math
from functools import reduce
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints

from pyro_ext._lib import checks
from pyro_ext.distributions.bases import ParametricDistribution


class DirichletOU(ParametricDistribution):
    r"""Modes of a random path with fixed ends, at the end of an Ornstein-Uhlenbeck process [1].

    A path :math:`\gamma: [0, L] \to R^d` is a straight line plus a sum of sines with whitened
    modes :math:`z_k \in R^d`,

    .. math:: \gamma(s) = a + (b - a) \frac{s}{L} + \sum_{k \le K} \frac{\xi L}{k \pi} z_k
              \sqrt{\frac{2}{L}} \sin \frac{k \pi s}{L} ,

    so that its ends are :math:`a` and :math:`b` whatever the modes are. The process runs over its
    own time :math:`t` from zero to one. The modes start at zero and follow

    .. math:: d z_k = - a_k z_k \, dt + \sqrt{2 a_k} \, dW_k .

    The process leaves standard normal modes invariant. In these, the path is a Brownian bridge of
    diffusivity :math:`\xi^2`, with variance :math:`\xi^2 s (L - s) / L`. The distribution is that
    of the modes at :math:`t = 1`, which are independent and normal with variances
    :math:`1 - e^{-2 a_k}`.

    :param length: :math:`L`, the physical time from one end of a path to the other.
    :param int num_modes: :math:`K`.
    :param int dim: :math:`d`.
    :param noise: :math:`\xi`.
    :param rate: :math:`a_k`, one number for all modes or one for each. The rates of the stochastic
        heat equation grow as :math:`k^2`; constant rates are easier to control, since all modes
        then move at the same time. **Shape:** ``()`` or ``(*batch, num_modes)``.
    :param start: :math:`a`, where the path starts. **Shape:** ``()`` or ``(*batch, dim)``.
    :param end: :math:`b`, where the path ends. **Shape:** ``()`` or ``(*batch, dim)``.
    :raises ValueError: if numbers are out of range or shapes do not match.

    [1] B. Park, J. Lee, G.-H. Liu (2026),
    Functional adjoint sampler: scalable sampling on infinite dimensional spaces.

    Example::

        >>> from pyro_ext.distributions import DirichletOU
        >>> reference = DirichletOU(2.0, num_modes=8, dim=1, start=-1.0, end=1.0)
        >>> modes = reference.sample((5,))
        >>> path = reference.synthesis(modes, torch.linspace(0.0, 2.0, 49))
        >>> path.shape, path[0, 0].item(), path[0, -1].item()
        (torch.Size([5, 49, 1]), -1.0, 1.0)
        >>> torch.allclose(reference.analysis(path), modes, atol=1e-4)
        True
    """

    arg_constraints = {
        "length": constraints.positive,
        "noise": constraints.positive,
        "rate": constraints.independent(constraints.positive, 1),
        "start": constraints.real_vector,
        "end": constraints.real_vector,
    }
    support = constraints.independent(constraints.real, 2)
    has_rsample = True
    length: Tensor
    noise: Tensor
    rate: Tensor
    start: Tensor
    end: Tensor

    def __init__(
        self,
        length: Any,
        num_modes: int,
        dim: int,
        noise: Any = 1.0,
        rate: Any = 1.0,
        *,
        start: Any = 0.0,
        end: Any = 0.0,
        validate_args: bool | None = None,
    ) -> None:
        self.num_modes = checks.integer("num_modes", num_modes, 1)
        self.dim = checks.integer("dim", dim, 1)
        sizes: dict[str, tuple[int, ...]] = dict(
            length=(), noise=(), rate=(num_modes,), start=(dim,), end=(dim,)
        )
        values = dict(length=length, noise=noise, rate=rate, start=start, end=end)
        known = {name: checks.as_parameter(name, value) for name, value in values.items()}
        given = [value for value in known.values() if isinstance(value, Tensor)]
        device = given[0].device if given else None
        found = [value.dtype for value in given if value.is_floating_point()]
        dtype = reduce(torch.promote_types, found) if found else torch.get_default_dtype()
        tensors, batches = {}, []
        for name, value in known.items():
            tensor, size = torch.as_tensor(value, dtype=dtype, device=device), sizes[name]
            if tensor.dim() and size and tensor.shape[-1:] != size:
                raise ValueError(
                    f"{name} must be a number or have a shape that ends in {size}, "
                    f"got {checks.shown(tensor)}"
                )
            tensors[name] = tensor.expand(size) if size and not tensor.dim() else tensor
            batches.append(tensors[name].shape[: tensors[name].dim() - len(size)])
        batch_shape = torch.broadcast_shapes(*batches)
        super().__init__(
            {name: tensor.expand(batch_shape + sizes[name]) for name, tensor in tensors.items()},
            {name: len(size) for name, size in sizes.items()},
            batch_shape,
            torch.Size((num_modes, dim)),
            validate_args,
        )

    def __repr__(self) -> str:
        return f"DirichletOU(num_modes={self.num_modes}, dim={self.dim})"

    # Paths ---------------------------------------------------------------------------------------

    def synthesis(self, z: Tensor, grid: Tensor) -> Tensor:
        """Compute paths from modes, on any grid.

        :param Tensor z: whitened modes. **Shape:** ``(*batch, num_modes, dim)``.
        :param Tensor grid: points in ``[0, length]``. **Shape:** ``(num_points,)``.
        :returns: **Shape:** ``(*batch, num_points, dim)``.
        """
        z = self._modes(z)
        grid = checks.as_tensor("grid", grid, "(num_points)", like=self.rate)
        if self._validate_args and not bool(((grid >= 0) & (grid <= self.length)).all()):
            raise ValueError(
                f"grid must lie in [0, {float(self.length):g}], got {checks.shown(grid)}"
            )
        fraction = grid / self.length
        return self._line(fraction) + self._basis(fraction).mT @ (self._deviations() * z)

    def analysis(self, path: Tensor) -> Tensor:
        """Compute modes of paths on an even grid with both ends, the inverse of ``synthesis``.

        :param Tensor path: values at more than ``num_modes + 1`` points.
            **Shape:** ``(*batch, num_points, dim)``.
        :returns: whitened modes. **Shape:** ``(*batch, num_modes, dim)``.
        """
        path = checks.as_tensor("path", path, f"(*batch, num_points, {self.dim})", like=self.rate)
        checks.all_finite("path", path)
        if (num_points := path.shape[-2]) < self.num_modes + 2:
            raise ValueError(
                f"path must have at least {self.num_modes + 2} points for {self.num_modes} modes, "
                f"got {num_points}"
            )
        fraction = torch.linspace(
            0.0, 1.0, num_points, dtype=self.rate.dtype, device=self.rate.device
        )
        # Sines on an even grid are orthogonal: the sum is the integral, up to rounding.
        projected = self._basis(fraction) @ (path - self._line(fraction))
        return projected * (self.length / (num_points - 1)) / self._deviations()

    def _modes(self, z: Any) -> Tensor:
        return checks.as_tensor("z", z, f"(*batch, {self.num_modes}, {self.dim})", like=self.rate)

    def _deviations(self) -> Tensor:
        """Standard deviations of modes of the bridge. **Shape:** ``(num_modes, 1)``."""
        number = torch.arange(1, self.num_modes + 1).to(self.rate)
        return ((self.noise * self.length / math.pi)[..., None] / number)[..., None]

    def _line(self, fraction: Tensor) -> Tensor:
        return torch.lerp(self.start[..., None, :], self.end[..., None, :], fraction[:, None])

    def _basis(self, fraction: Tensor) -> Tensor:
        """Sines, which vanish exactly at both ends. **Shape:** ``(num_modes, num_points)``."""
        turns = torch.arange(1, self.num_modes + 1).to(fraction)[:, None] * fraction
        whole = turns.floor()
        part = turns - whole
        sine = torch.sin(math.pi * torch.minimum(part, 1.0 - part))
        scale = (2.0 / self.length).sqrt()[..., None, None]
        return scale * torch.where(whole % 2 == 0, sine, -sine)

    # The process ---------------------------------------------------------------------------------

    @property
    def invariant(self) -> Any:
        """The invariant distribution: standard normal modes, those of a Brownian bridge."""
        zero = self.rate.new_zeros(self.batch_shape + self.event_shape)
        return _normal(zero, torch.ones_like(zero))

    def marginal(self, t: Any) -> Any:
        """Distribution of the modes at given times of the process, which starts at zero.

        :param t: times in ``(0, 1]``. **Shape:** ``(*times)``.
        :returns: a distribution with batch shape ``(*times)``.
        """
        variance = self._variance(self._times("t", t, with_one=True))
        scale = variance.sqrt().expand(variance.shape[:-1] + (self.dim,))
        return _normal(torch.zeros_like(scale), scale)

    def bridge(self, t: Any, z: Tensor) -> Any:
        """Distribution of the modes at given times of the process, given the modes at its end.

        :param t: times in ``(0, 1)``. **Shape:** ``(*times)``, which broadcasts with ``(*batch)``.
        :param Tensor z: modes at time one. **Shape:** ``(*batch, num_modes, dim)``.
        :returns: a distribution whose batch shape is that of ``t`` and ``z``, broadcast.
        """
        z, time = self._modes(z), self._times("t", t, with_one=False)
        rate = self.rate[..., None]
        before, after = self._variance(time), self._variance(1.0 - time)
        whole = self._variance(torch.ones_like(time))
        loc = before / whole * torch.exp(-rate * (1.0 - time)) * z
        scale = (before * after / whole).sqrt().expand_as(loc)
        return _normal(loc, scale)

    def log_rnd(self, z: Tensor) -> Tensor:
        r"""Log density of this distribution with respect to the invariant one.

        Unlike the densities themselves, it stays finite as the number of modes grows.

        :param Tensor z: modes. **Shape:** ``(*batch, num_modes, dim)``.
        :returns: **Shape:** ``(*batch)``.
        """
        z = self._modes(z)
        variance = self._variance(self.rate.new_ones(1, 1))
        terms = variance.log() + z.square() * (1.0 / variance - 1.0)
        return -0.5 * terms.sum((-1, -2))

    def _times(self, name: str, t: Any, *, with_one: bool) -> Tensor:
        time = checks.as_tensor(name, t, like=self.rate).to(self.rate)
        below = time <= 1.0 if with_one else time < 1.0
        if self._validate_args and not bool(((time > 0.0) & below).all()):
            end = "1]" if with_one else "1)"
            raise ValueError(f"{name} must lie in (0, {end}, got {checks.shown(time)}")
        return time[..., None, None]

    def _variance(self, time: Tensor) -> Tensor:
        """Variances after some time from a fixed point. **Shape:** ``(*times, num_modes, 1)``."""
        return -torch.expm1(-2.0 * self.rate[..., None] * time)

    # The distribution ----------------------------------------------------------------------------

    @property
    def mean(self) -> Tensor:
        """Zero."""
        return self.rate.new_zeros(self.batch_shape + self.event_shape)

    @property
    def variance(self) -> Tensor:
        """Variances of the modes at the end of the process."""
        return self._variance(self.rate.new_ones(1, 1)).expand(self.batch_shape + self.event_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density of modes."""
        if self._validate_args:
            self._validate_sample(value)
        scale = self.variance.sqrt()
        result: Tensor = _normal(torch.zeros_like(scale), scale).log_prob(value)
        return result

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Draws with gradients with respect to the rates."""
        shape = self._extended_shape(torch.Size(sample_shape))
        return self.variance.sqrt() * torch.randn(
            shape, dtype=self.rate.dtype, device=self.rate.device
        )


def _normal(loc: Tensor, scale: Tensor) -> Any:
    """Independent modes."""
    return dist.Normal(loc, scale, validate_args=False).to_event(2)
