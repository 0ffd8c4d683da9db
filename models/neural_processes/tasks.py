"""Generators of tasks: Gaussian processes, images, and populations of predators and prey.

Numbers in brackets refer to the papers in the docstring of the package.
"""

from dataclasses import KW_ONLY, dataclass
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pyro_ext._lib import checks
from pyro_ext._lib.optional import optional_module
from pyro_ext.models.neural_processes.batch import Batch, check_range, number_between, split_batch
from pyro_ext.random import fresh_seed

Kernel = Literal["rbf", "matern", "periodic"]

_MATERN_SMOOTHNESS = 2.5
_AMPLITUDES, _PERIODS = (0.1, 1.0), (0.1, 0.5)
_STUDENT_DEGREES = 2.1


@dataclass(frozen=True)
class GPTasks:
    r"""Functions from Gaussian processes with random kernels, as in [4].

    Each task has its own length scale :math:`\ell`, amplitude :math:`a` and period :math:`p`, drawn
    uniformly, the latter two from (0.1, 1) and (0.1, 0.5); inputs are between -2 and 2. The
    kernels, from GPyTorch, are with the distance :math:`d`

    - ``"rbf"``: :math:`a^2 \exp(-d^2 / 2 \ell^2)`,
    - ``"matern"``: the Matern kernel of smoothness 5/2,
    - ``"periodic"``: :math:`a^2 \exp(-2 \sum_k \sin^2(\pi d_k / p) / \ell^2)`, with the distance
      :math:`d_k` in each feature.

    Outputs have normal noise plus Student t noise with 2.1 degrees of freedom, whose scale is drawn
    uniformly for each point. A batch has between 3 and 46 context points, and targets such that the
    total is at most 50; all numbers are drawn uniformly.

    :param str kernel: ``"rbf"``, ``"matern"`` or ``"periodic"``.
    :param int num_tasks: number of functions in a batch.
    :param int x_dim: number of features of an input.
    :param int num_context: number of given points; by default drawn.
    :param int num_target: number of points to predict; by default drawn.
    :param int max_points: largest total number of points, if the number of targets is drawn.
    :param tuple lengthscale: range of :math:`\ell`.
    :param float noise: standard deviation of the normal noise.
    :param float student_noise: largest scale of the Student t noise.
    :raises ImportError: if GPyTorch is not installed when tasks are drawn; the message names the
        extra to install.

    Example::

        >>> tasks = GPTasks("rbf", num_tasks=4, num_context=5, num_target=7)
        >>> batch = tasks(seed=0)
        >>> batch.context_inputs.shape, batch.target_outputs.shape
        (torch.Size([4, 5, 1]), torch.Size([4, 7, 1]))
    """

    kernel: Kernel = "rbf"
    _: KW_ONLY
    num_tasks: int = 16
    x_dim: int = 1
    num_context: int | None = None
    num_target: int | None = None
    max_points: int = 50
    lengthscale: tuple[float, float] = (0.1, 0.6)
    noise: float = 0.02
    student_noise: float = 0.0

    def __post_init__(self) -> None:
        """Check the arguments."""
        checks.choice("kernel", self.kernel, get_args(Kernel))
        checks.integer("num_tasks", self.num_tasks, 1)
        checks.integer("x_dim", self.x_dim, 1)
        checks.integer("max_points", self.max_points, 7)
        given = checks.optional(checks.integer, "num_context", self.num_context, 0) or 0
        if self.num_target is None and given > self.max_points - 4:
            raise ValueError(
                f"num_context must leave at least 4 of max_points={self.max_points} for the "
                f"targets, whose number is drawn; got {given}"
            )
        checks.optional(checks.integer, "num_target", self.num_target, 1)
        check_range("lengthscale", self.lengthscale, above=0)
        checks.number("noise", self.noise, above=0)
        checks.number("student_noise", self.student_noise, least=0)

    def __call__(self, seed: int | None = None) -> Batch:
        """Draw a batch of tasks.

        :param int seed: the same seed gives the same tasks; ``None`` takes one from PyTorch's
            generator.
        """
        generator = np.random.default_rng(fresh_seed(seed))
        num_context, num_target = self.num_context, self.num_target
        if num_context is None:
            num_context = number_between(generator, 3, self.max_points - 4)
        if num_target is None:
            num_target = number_between(generator, 3, self.max_points - num_context - 1)
        shape = (self.num_tasks, num_context + num_target, self.x_dim)
        inputs = torch.from_numpy(generator.uniform(-2.0, 2.0, size=shape))
        outputs = self._functions(inputs, generator)
        return split_batch(inputs.float(), outputs.float(), num_context)

    def functions(self, inputs: Tensor, seed: int | None = None) -> Tensor:
        """Draw functions at given inputs, with noise.

        :param Tensor inputs: **Shape:** ``(num_tasks, n, x_dim)``.
        :param int seed: seed of the draws; the same seed gives the same functions.
        :returns: **Shape:** ``(num_tasks, n, 1)``.
        """
        generator = np.random.default_rng(fresh_seed(seed))
        return self._functions(inputs.double().cpu(), generator).float()

    @torch.no_grad()
    def covariance(
        self, inputs: Tensor, lengthscale: Tensor, amplitude: Tensor, period: Tensor
    ) -> Tensor:
        """Compute the covariance of functions without noise.

        :param Tensor inputs: **Shape:** ``(num_tasks, n, x_dim)``.
        :param Tensor lengthscale: **Shape:** ``(num_tasks,)``.
        :param Tensor amplitude: **Shape:** ``(num_tasks,)``.
        :param Tensor period: period of the periodic kernel. **Shape:** ``(num_tasks,)``.
        :returns: **Shape:** ``(num_tasks, n, n)``.
        """
        kernels = optional_module("gpytorch.kernels", "GPTasks", "GPyTorch", "gp")
        batch_shape = lengthscale.shape
        if self.kernel == "rbf":
            base = kernels.RBFKernel(batch_shape=batch_shape)
        elif self.kernel == "matern":
            base = kernels.MaternKernel(nu=_MATERN_SMOOTHNESS, batch_shape=batch_shape)
        else:
            base = kernels.PeriodicKernel(batch_shape=batch_shape)
            base.double().initialize(period_length=period[:, None, None])
            lengthscale = lengthscale**2  # GPyTorch leaves it without its square
        base.double().initialize(lengthscale=lengthscale[:, None, None])
        kernel = kernels.ScaleKernel(base, batch_shape=batch_shape).double()
        kernel.initialize(outputscale=amplitude**2)
        covariance: Tensor = kernel(inputs).to_dense()
        return covariance

    def _functions(self, inputs: Tensor, generator: np.random.Generator) -> Tensor:
        def drawn(bounds: tuple[float, float]) -> Tensor:
            return torch.from_numpy(generator.uniform(*bounds, size=len(inputs)))

        hyperparameters = [drawn(b) for b in (self.lengthscale, _AMPLITUDES, _PERIODS)]
        covariance = self.covariance(inputs, *hyperparameters)
        covariance.diagonal(dim1=-2, dim2=-1).add_(self.noise**2)
        shape = (*inputs.shape[:2], 1)
        normal = torch.from_numpy(generator.standard_normal(shape))
        outputs: Tensor = torch.linalg.cholesky(covariance) @ normal
        if self.student_noise:
            scale = generator.uniform(0, self.student_noise, shape)
            outputs += torch.from_numpy(scale * generator.standard_t(_STUDENT_DEGREES, shape))
        return outputs


@dataclass(frozen=True)
class ImageTasks:
    """Images with some pixels given and others to predict.

    Inputs are the positions of pixels, with rows and columns from -1 to 1; outputs are the pixel
    values. Pixels and images are drawn without replacement, as long as there are enough images.

    :param Tensor images: **Shape:** ``(num_images, height, width)``, or with a last dimension of
        channels.
    :param int num_tasks: number of images in a batch.
    :param tuple num_context: smallest and largest number of given pixels; the number is drawn
        uniformly for each batch.
    :param int num_target: number of pixels to predict; by default all others.

    Example::

        >>> from pyro_ext.datasets import load_digits
        >>> images = load_digits().train_inputs.reshape(-1, 8, 8)
        >>> tasks = ImageTasks(images, num_tasks=4, num_context=(10, 10))
        >>> batch = tasks(seed=0)
        >>> batch.context_inputs.shape, batch.target_outputs.shape
        (torch.Size([4, 10, 2]), torch.Size([4, 54, 1]))
    """

    images: Tensor
    _: KW_ONLY
    num_tasks: int = 16
    num_context: tuple[int, int] = (3, 30)
    num_target: int | None = None

    def __post_init__(self) -> None:
        """Check the arguments."""
        images = checks.as_tensor(
            "images", self.images, "(num_images, height, width, ...)", finite=True
        )
        object.__setattr__(self, "images", images)
        if not isinstance(self.num_context, tuple) or len(self.num_context) != 2:
            raise TypeError(
                f"num_context must be a pair of integers, got {checks.shown(self.num_context)}"
            )
        if images.dim() > 4:
            raise ValueError(
                "images must have the shape (num_images, height, width) or (num_images, height, "
                f"width, channels), got {tuple(images.shape)}"
            )
        if not images.is_floating_point():
            raise ValueError(f"images must be of a floating type, got {images.dtype}")
        checks.integer("num_tasks", self.num_tasks, 1)
        least, most = self.num_context
        checks.integer("num_context[0]", least, 0)
        checks.integer("num_context[1]", most, least)
        wanted = checks.optional(checks.integer, "num_target", self.num_target, 1) or 1
        if self.num_pixels - most < wanted:
            raise ValueError(
                f"num_context must leave {wanted} of {self.num_pixels} pixels to ask for, got "
                f"{self.num_context}"
            )

    @property
    def num_pixels(self) -> int:
        """Number of pixels of an image."""
        return self.images.shape[1] * self.images.shape[2]

    @property
    def positions(self) -> Tensor:
        """Inputs of all pixels, row by row. **Shape:** ``(num_pixels, 2)``."""
        height, width = self.images.shape[1:3]
        rows, columns = (torch.linspace(-1, 1, size) for size in (height, width))
        return torch.cartesian_prod(rows, columns).to(self.images)

    def __call__(self, seed: int | None = None) -> Batch:
        """Draw a batch of tasks, as :class:`GPTasks` do."""
        generator = np.random.default_rng(fresh_seed(seed))
        num_images = len(self.images)
        chosen = generator.choice(num_images, self.num_tasks, replace=num_images < self.num_tasks)
        num_context = number_between(generator, *self.num_context)
        num_target = self.num_target or self.num_pixels - num_context
        uniform = generator.random((self.num_tasks, self.num_pixels))
        order = torch.from_numpy(uniform.argsort(1)[:, : num_context + num_target])
        return self.batch(torch.from_numpy(chosen), order, num_context)

    def batch(self, chosen: Tensor, pixels: Tensor, num_context: int) -> Batch:
        """Make tasks from given images and pixels.

        :param Tensor chosen: indices of images. **Shape:** ``(num_tasks,)``.
        :param Tensor pixels: indices of pixels, those of the context first. **Shape:**
            ``(num_tasks, n)``.
        :param int num_context: number of given pixels.
        """
        device = self.images.device
        chosen, pixels = chosen.to(device), pixels.to(device)
        values = self.images[chosen].reshape(len(chosen), self.num_pixels, -1)
        outputs = values.gather(1, pixels[..., None].expand(-1, -1, values.shape[-1]))
        return split_batch(self.positions[pixels], outputs, num_context)


Floats = npt.NDArray[np.float64]

_MAX_TRIALS = 1000
_RATES = (0.01, 0.5, 1.0, 0.01)  # of births and deaths of predators, then of prey
_START = (50, 100)  # predators and prey, to which a rounded standard normal number is added
_TIME_SCALE, _POPULATION_SCALE = 0.1, 0.01


@dataclass(frozen=True)
class PredatorPreyTasks:
    r"""Courses of the Lotka-Volterra process, simulated exactly [6], as in [4].

    With :math:`X` predators and :math:`Y` prey, events are births and deaths of predators, at rates
    :math:`0.01 XY` and :math:`0.5 X`, and of prey, at rates :math:`Y` and :math:`0.01 XY`. Inputs
    are times divided by 10, and outputs are both populations divided by 100, predators first; they
    start at about 50 and 100. Points are events drawn uniformly from a course. Courses on which a
    population dies out are drawn again.

    :param int num_tasks: number of courses in a batch.
    :param int num_events: length of a course.
    :param int num_context: number of given points; by default drawn uniformly, at least 15.
    :param int num_target: number of points to predict; by default drawn uniformly, at least 15.
    :param int max_points: largest total number of points.

    [6] D. T. Gillespie (1977), Exact stochastic simulation of coupled chemical reactions.

    Example::

        >>> tasks = PredatorPreyTasks(num_tasks=2, num_context=20, num_target=30)
        >>> batch = tasks(seed=0)
        >>> batch.context_inputs.shape, batch.target_outputs.shape
        (torch.Size([2, 20, 1]), torch.Size([2, 30, 2]))
    """

    _: KW_ONLY
    num_tasks: int = 16
    num_events: int = 20_000
    num_context: int | None = None
    num_target: int | None = None
    max_points: int = 100

    def __post_init__(self) -> None:
        """Check the arguments."""
        checks.integer("num_tasks", self.num_tasks, 1)
        checks.integer("max_points", self.max_points, 30)
        checks.integer("num_events", self.num_events, self.max_points)
        checks.optional(checks.integer, "num_context", self.num_context, 1)
        checks.optional(checks.integer, "num_target", self.num_target, 1)

    def __call__(self, seed: int | None = None) -> Batch:
        """Draw a batch of tasks, as :class:`GPTasks` do."""
        generator = np.random.default_rng(fresh_seed(seed))
        num_context, num_target = self.num_context, self.num_target
        if num_context is None:
            num_context = number_between(generator, 15, self.max_points - 15)
        if num_target is None:
            num_target = number_between(generator, 15, self.max_points - num_context)
        number = num_context + num_target
        pieces = [self._piece(generator, number) for _ in range(self.num_tasks)]
        inputs, outputs = (
            torch.tensor(np.stack(parts), dtype=torch.float32)
            for parts in zip(*pieces, strict=True)
        )
        return split_batch(
            inputs[..., None] * _TIME_SCALE, outputs * _POPULATION_SCALE, num_context
        )

    def course(self, generator: np.random.Generator) -> tuple[Floats, Floats]:
        """Simulate one course, at most until a population dies out.

        :param numpy.random.Generator generator: generator for the draws.
        :returns: times of the events, and predators and prey after them. **Shape:**
            ``(num_events,)`` and ``(num_events, 2)``.
            ``(num_events,)`` and ``(num_events, 2)``.
        """
        from pyro_ext.models.neural_processes._predator_prey_loops import simulate

        noise = np.rint(generator.standard_normal(2)).astype(int)
        predators, prey = (max(int(a + b), 1) for a, b in zip(_START, noise, strict=True))
        times, populations = simulate(
            predators,
            prey,
            np.asarray(_RATES),
            generator.standard_exponential(self.num_events),
            generator.random(self.num_events),
        )
        gone = (populations == 0).any(1)
        length = int(gone.argmax()) if gone.any() else len(times)
        return times[:length], populations[:length]

    def _piece(self, generator: np.random.Generator, number: int) -> tuple[Floats, Floats]:
        for _ in range(_MAX_TRIALS):
            times, populations = self.course(generator)
            if number <= len(times) == self.num_events:
                chosen = generator.choice(len(times), number, replace=False)
                return times[chosen], populations[chosen]
        raise ValueError(
            f"num_events must be at least the {number} points of a task, and such that both "
            f"populations live so long, got {self.num_events}; none of {_MAX_TRIALS} courses did"
        )
