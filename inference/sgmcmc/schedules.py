"""Schedules of the step size, and which steps of a run sample."""

from dataclasses import dataclass, field, is_dataclass, replace
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from pyro_ext._lib import checks

Steps = npt.NDArray[np.int64]


class Schedule:
    """Base class of step-size schedules. Steps are counted from zero, including the warm-up.

    A subclass implements :meth:`step_sizes`; it may also separate exploring from sampling steps. If
    its steps can exceed ``step_size``, it overrides :attr:`max_step_size`.
    """

    step_size: float

    @property
    def max_step_size(self) -> float:
        """The largest step size of any step, by default ``step_size``."""
        return self.step_size

    @property
    def period(self) -> int:
        """Number of steps after which :meth:`is_sampling` repeats itself."""
        return 1

    def step_sizes(self, steps: Steps) -> npt.NDArray[np.float64]:
        """Step sizes at the given steps."""
        raise NotImplementedError

    def is_sampling(self, steps: Steps) -> npt.NDArray[np.bool_]:
        """Return a mask of the steps that inject noise and after which draws are kept."""
        return np.ones(steps.shape, dtype=np.bool_)

    def rescaled(self, step_size: float) -> Self:
        """Return the same schedule with all step sizes multiplied by one factor.

        :param float step_size: the new ``step_size``.
        :raises TypeError: for a schedule that is not a dataclass and does not override this.

        Example::

            >>> PolynomialSchedule(0.5, exponent=0.6, start=10).rescaled(0.1)
            PolynomialSchedule(step_size=0.1, exponent=0.6, offset=1.0, start=10)
        """
        if not is_dataclass(type(self)):
            raise TypeError(f"{type(self).__name__} cannot be rescaled: it is not a dataclass")
        schedule: Any = self
        rescaled: Self = replace(schedule, step_size=step_size)
        return rescaled


@dataclass(frozen=True)
class ConstantSchedule(Schedule):
    """The same step size at every step.

    :param float step_size: the step size.
    """

    step_size: float

    def __post_init__(self) -> None:
        checks.number("step_size", self.step_size, above=0)

    def step_sizes(self, steps: Steps) -> npt.NDArray[np.float64]:
        """Step sizes at the given steps."""
        return np.full(steps.shape, float(self.step_size))


@dataclass(frozen=True)
class PolynomialSchedule(Schedule):
    r"""A step size that decays as a power of the step, :math:`s_t = s_0 (b + t - t_0)^{-\kappa}`.

    Up to step :math:`t_0` it is :math:`s_0`. With an exponent in (1/2, 1], the step sizes have an
    infinite sum and their squares a finite one, as convergence requires [1].

    :param float step_size: :math:`s_0`.
    :param float exponent: :math:`\kappa`, in (0.5, 1].
    :param float offset: :math:`b`, positive.
    :param int start: :math:`t_0`, the step at which the decay starts.

    [1] M. Welling, Y. W. Teh (2011),
    Bayesian learning via stochastic gradient Langevin dynamics.

    Example::

        >>> PolynomialSchedule(0.5, exponent=1.0).step_sizes(np.array([0, 1, 4]))
        array([0.5 , 0.25, 0.1 ])
    """

    step_size: float
    exponent: float = 0.55
    offset: float = 1.0
    start: int = 0

    def __post_init__(self) -> None:
        checks.number("step_size", self.step_size, above=0)
        checks.number("exponent", self.exponent, above=0.5, most=1)
        checks.number("offset", self.offset, above=0)
        checks.integer("start", self.start, 0)

    @property
    def max_step_size(self) -> float:
        """The largest step size of any step; an offset below one raises it above ``step_size``."""
        first_decayed: float = self.step_size * self.offset**-self.exponent
        return first_decayed if self.start == 0 else max(self.step_size, first_decayed)

    def step_sizes(self, steps: Steps) -> npt.NDArray[np.float64]:
        """Step sizes at the given steps."""
        elapsed = np.maximum(steps - self.start, 0)
        decayed = self.step_size * (self.offset + elapsed) ** -self.exponent
        return np.where(steps < self.start, self.step_size, decayed)


@dataclass(frozen=True)
class CyclicalSchedule(Schedule):
    r"""Cosine cycles of the step size, each with an exploring and a sampling stage [1].

    With :math:`L = \lceil K / M \rceil` steps in a cycle and :math:`r = (t \bmod L) / L`, the step
    size is :math:`s_{min} + (s_0 - s_{min}) (1 + \cos \pi r) / 2`. While :math:`r` is below the
    fraction of exploration, no noise is injected, which is stochastic gradient descent, and no draw
    is kept. With an exploration of zero, noise is injected at every step, as in parameter-expanded
    SGHMC [2]. Cycles continue after the last of the :math:`M`.

    :param float step_size: :math:`s_0`, the step size at the start of a cycle.
    :param int num_cycles: :math:`M`.
    :param int num_steps: :math:`K`, total number of steps of all cycles, including the warm-up.
    :param float exploration: fraction of each cycle that explores, in [0, 1).
    :param float minimum: :math:`s_{min}`, at least zero.

    [1] R. Zhang, C. Li, J. Zhang, C. Chen, A. G. Wilson (2020),
    Cyclical stochastic gradient MCMC for Bayesian deep learning.
    [2] H. Kim, G. Nam, C. Yun, H. Yang, J. Lee (2025),
    Parameter expanded stochastic gradient Markov chain Monte Carlo.

    Example::

        >>> schedule = CyclicalSchedule(0.5, num_cycles=4, num_steps=1000, exploration=0.8)
        >>> schedule.step_sizes(np.array([0, 125, 250]))
        array([0.5 , 0.25, 0.5 ])
        >>> schedule.is_sampling(np.array([199, 200]))
        array([False,  True])
    """

    step_size: float
    num_cycles: int
    num_steps: int
    exploration: float = 0.0
    minimum: float = 0.0
    cycle_length: int = field(init=False)

    def __post_init__(self) -> None:
        checks.number("step_size", self.step_size, above=0)
        checks.integer("num_cycles", self.num_cycles, 1)
        checks.integer("num_steps", self.num_steps, self.num_cycles)
        checks.number("exploration", self.exploration, least=0, below=1)
        checks.number("minimum", self.minimum, least=0, most=self.step_size)
        object.__setattr__(self, "cycle_length", -(-self.num_steps // self.num_cycles))

    @property
    def period(self) -> int:
        """Number of steps in a cycle."""
        return self.cycle_length

    def rescaled(self, step_size: float) -> Self:
        """Return the same schedule with all step sizes multiplied by one factor."""
        checks.number("step_size", step_size, above=0)
        return replace(self, step_size=step_size, minimum=self.minimum * step_size / self.step_size)

    def step_sizes(self, steps: Steps) -> npt.NDArray[np.float64]:
        """Step sizes at the given steps."""
        weight = 0.5 * (1.0 + np.cos(np.pi * self._position(steps)))
        return np.asarray(self.minimum + (self.step_size - self.minimum) * weight)

    def is_sampling(self, steps: Steps) -> npt.NDArray[np.bool_]:
        """Return a mask of the steps in the sampling stage of their cycle."""
        return np.asarray(self._position(steps) >= self.exploration)

    def _position(self, steps: Steps) -> npt.NDArray[np.float64]:
        return np.asarray((steps % self.cycle_length) / self.cycle_length)
