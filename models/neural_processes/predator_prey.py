"""Tasks of two populations, of which one eats the other."""

from dataclasses import KW_ONLY, dataclass

import numpy as np
import numpy.typing as npt
import torch

from pyro_ext._checks import check_integer, check_number, check_sequence, shown
from pyro_ext.models.neural_processes.batch import Batch
from pyro_ext.models.neural_processes.splits import number_between, split_batch
from pyro_ext.random import fresh_seed

__all__ = ["PredatorPreyTasks"]

Floats = npt.NDArray[np.float64]

_MAX_TRIALS = 1000


@dataclass(frozen=True)
class PredatorPreyTasks:
    r"""Courses of the Lotka-Volterra process, which is simulated exactly [1], as in [2].

    With :math:`X` predators and :math:`Y` prey, events are births and deaths of predators with the
    rates :math:`0.01 XY` and :math:`0.5 X`, and of prey with :math:`Y` and :math:`0.01 XY`. Inputs
    are times, outputs are both populations, predators first. Points are events drawn uniformly
    out of a course. Courses on which a population dies out are drawn again.

    :param int num_tasks: number of courses in a batch.
    :param int num_events: length of a course.
    :param float duration: length of the piece of the course, beginning at a random time, out of
        which points are drawn, with its times from zero on; by default the whole course.
    :param int num_context: number of points that are given; by default drawn uniformly, at least
        15.
    :param int num_target: number of points that are asked for; by default drawn uniformly, at least
        15.
    :param int max_points: number of all points, at most.
    :param tuple rates: of the four events.
    :param tuple start: predators and prey at the start, to which a rounded standard normal number
        is added.
    :param float time_scale: what times are multiplied by.
    :param float population_scale: what populations are multiplied by.
    :param torch.dtype dtype: floating type of the tasks.
    :raises ValueError: for arguments out of range.

    [1] D. T. Gillespie (1977), Exact stochastic simulation of coupled chemical reactions.

    [2] J. Lee, Y. Lee, J. Kim, E. Yang, S. J. Hwang, Y. W. Teh (2020),
    Bootstrapping neural processes.

    Example::

        >>> tasks = PredatorPreyTasks(num_tasks=2, num_context=20, num_target=30)
        >>> batch = tasks(seed=0)
        >>> batch.context_inputs.shape, batch.target_outputs.shape
        (torch.Size([2, 20, 1]), torch.Size([2, 30, 2]))
    """

    _: KW_ONLY
    num_tasks: int = 16
    num_events: int = 20_000
    duration: float | None = None
    num_context: int | None = None
    num_target: int | None = None
    max_points: int = 100
    rates: tuple[float, float, float, float] = (0.01, 0.5, 1.0, 0.01)
    start: tuple[int, int] = (50, 100)
    time_scale: float = 0.1
    population_scale: float = 0.01
    dtype: torch.dtype = torch.float32

    def __post_init__(self) -> None:
        """Check the arguments."""
        if self.dtype not in (torch.float32, torch.float64):
            raise ValueError(
                f"dtype must be torch.float32 or torch.float64, got {shown(self.dtype)}"
            )
        check_integer("num_tasks", self.num_tasks, 1)
        check_integer("max_points", self.max_points, 30)
        check_integer("num_events", self.num_events, self.max_points)
        for argument in ("num_context", "num_target"):
            if getattr(self, argument) is not None:
                check_integer(argument, getattr(self, argument), 1)
        if self.duration is not None:
            check_number("duration", self.duration, above=0)
        for argument, length in (("rates", 4), ("start", 2)):
            values = getattr(self, argument)
            if len(check_sequence(argument, values, f"{length} numbers")) != length:
                raise ValueError(f"{argument} must be {length} numbers, got {values!r:.80}")
            for i, value in enumerate(values):
                check_number(f"{argument}[{i}]", value, above=0)
        check_number("time_scale", self.time_scale, above=0)
        check_number("population_scale", self.population_scale, above=0)

    def __call__(self, seed: int | None = None) -> Batch:
        """Draw a batch of tasks.

        :param int seed: the same seed gives the same tasks; ``None`` takes one from PyTorch's
            generator.
        """
        generator = np.random.default_rng(fresh_seed(seed))
        num_context = self.num_context
        if num_context is None:
            num_context = number_between(generator, 15, self.max_points - 15)
        num_target = self.num_target
        if num_target is None:
            num_target = number_between(generator, 15, self.max_points - num_context)
        number = num_context + num_target
        pieces = [self._piece(generator, number) for _ in range(self.num_tasks)]
        inputs, outputs = (
            torch.tensor(np.stack(parts), dtype=self.dtype) for parts in zip(*pieces, strict=True)
        )
        return split_batch(
            inputs[..., None] * self.time_scale, outputs * self.population_scale, num_context
        )

    def course(self, generator: np.random.Generator) -> tuple[Floats, Floats]:
        """Simulate one course, until a population dies out at the latest.

        :param numpy.random.Generator generator: of the draws.
        :returns: times of the events, and predators and prey after them. **Shape:**
            ``(num_events,)`` and ``(num_events, 2)``.
        """
        from pyro_ext.models.neural_processes._predator_prey_loops import simulate

        noise = np.rint(generator.standard_normal(2)).astype(int)
        predators, prey = (max(int(a + b), 1) for a, b in zip(self.start, noise, strict=True))
        times, populations = simulate(
            predators,
            prey,
            np.asarray(self.rates),
            generator.standard_exponential(self.num_events),
            generator.random(self.num_events),
        )
        gone = (populations == 0).any(1)
        length = int(gone.argmax()) if gone.any() else len(times)
        return times[:length], populations[:length]

    def _piece(self, generator: np.random.Generator, number: int) -> tuple[Floats, Floats]:
        for _ in range(_MAX_TRIALS):
            times, populations = self.course(generator)
            if len(times) < self.num_events:
                continue
            begin = 0.0
            if self.duration is not None:
                begin = generator.uniform(0, max(times[-1] - self.duration, 0))
                inside = (times >= begin) & (times <= begin + self.duration)
                times, populations = times[inside], populations[inside]
            if len(times) >= number:
                chosen = generator.choice(len(times), number, replace=False)
                return times[chosen] - begin, populations[chosen]
        raise ValueError(
            f"rates and start must let both populations live for {self.num_events} events, of "
            f"which {number} are in the piece of the duration; none of {_MAX_TRIALS} courses did, "
            f"with rates={self.rates}, start={self.start} and duration={self.duration}"
        )
