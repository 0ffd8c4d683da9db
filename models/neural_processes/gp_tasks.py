"""Tasks of functions drawn from Gaussian processes."""

from dataclasses import KW_ONLY, dataclass
from types import ModuleType
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from pyro_ext._checks import check_integer, check_number, shown
from pyro_ext.models.neural_processes.batch import Batch
from pyro_ext.models.neural_processes.splits import check_range, number_between, split_batch
from pyro_ext.random import fresh_seed

__all__ = ["GPTasks", "Kernel"]

Kernel = Literal["rbf", "matern", "periodic"]

_MATERN_SMOOTHNESS = 2.5
_STUDENT_DEGREES = 2.1


@dataclass(frozen=True)
class GPTasks:
    r"""Functions from Gaussian processes whose kernels are random too, as in [1].

    Each task has its own length scale :math:`\ell`, amplitude :math:`a` and period :math:`p`, drawn
    uniformly. The kernels of GPyTorch are, with the distance :math:`d`,

    - ``"rbf"``: :math:`a^2 \exp(-d^2 / 2 \ell^2)`,
    - ``"matern"``: the Matern kernel of smoothness 5/2,
    - ``"periodic"``: :math:`a^2 \exp(-2 \sum_k \sin^2(\pi d_k / p) / \ell^2)`, with the distance
      :math:`d_k` in each feature.

    Outputs have normal noise, and on top of it Student's t noise of 2.1 degrees of freedom, whose
    scale is drawn uniformly for each point. A batch has between 3 and 46 points of context, and
    targets that make at most 50 with them; all numbers are drawn uniformly.

    :param str kernel: ``"rbf"``, ``"matern"`` or ``"periodic"``.
    :param int num_tasks: number of functions in a batch.
    :param int x_dim: number of features of an input.
    :param int num_context: number of points that are given; by default it is drawn.
    :param int num_target: number of points that are asked for; by default it is drawn.
    :param int max_points: number of all points, at most, where that of targets is drawn.
    :param tuple lengthscale: range of :math:`\ell`.
    :param tuple amplitude: range of :math:`a`.
    :param tuple period: range of :math:`p`.
    :param tuple input_range: range of inputs.
    :param float noise: standard deviation of the normal noise.
    :param float student_noise: the largest scale of Student's t noise.
    :param torch.dtype dtype: floating type of the tasks.
    :raises ValueError: for arguments out of range.
    :raises ImportError: without GPyTorch, when tasks are drawn; names the extra.

    [1] J. Lee, Y. Lee, J. Kim, E. Yang, S. J. Hwang, Y. W. Teh (2020),
    Bootstrapping neural processes.

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
    amplitude: tuple[float, float] = (0.1, 1.0)
    period: tuple[float, float] = (0.1, 0.5)
    input_range: tuple[float, float] = (-2.0, 2.0)
    noise: float = 0.02
    student_noise: float = 0.0
    dtype: torch.dtype = torch.float32

    def __post_init__(self) -> None:
        """Check the arguments."""
        if self.dtype not in (torch.float32, torch.float64):
            raise ValueError(
                f"dtype must be torch.float32 or torch.float64, got {shown(self.dtype)}"
            )
        if self.kernel not in get_args(Kernel):
            raise ValueError(f"kernel must be one of {get_args(Kernel)}, got {self.kernel!r:.80}")
        check_integer("num_tasks", self.num_tasks, 1)
        check_integer("x_dim", self.x_dim, 1)
        check_integer("max_points", self.max_points, 7)
        if self.num_context is not None:
            check_integer("num_context", self.num_context, 0)
            if self.num_target is None and self.num_context > self.max_points - 4:
                raise ValueError(
                    f"num_context must leave at least 4 of max_points={self.max_points} for the "
                    f"targets, whose number is drawn; got {self.num_context}"
                )
        if self.num_target is not None:
            check_integer("num_target", self.num_target, 1)
        for argument in ("lengthscale", "amplitude", "period"):
            check_range(argument, getattr(self, argument), above=0)
        check_range("input_range", self.input_range)
        check_number("noise", self.noise, above=0)
        check_number("student_noise", self.student_noise, least=0)

    def __call__(self, seed: int | None = None) -> Batch:
        """Draw a batch of tasks.

        :param int seed: the same seed gives the same tasks; ``None`` takes one from PyTorch's
            generator.
        """
        generator = np.random.default_rng(fresh_seed(seed))
        num_context = self.num_context
        if num_context is None:
            num_context = number_between(generator, 3, self.max_points - 4)
        num_target = self.num_target
        if num_target is None:
            num_target = number_between(generator, 3, self.max_points - num_context - 1)
        shape = (self.num_tasks, num_context + num_target, self.x_dim)
        inputs = torch.from_numpy(generator.uniform(*self.input_range, size=shape))
        outputs = self._functions(inputs, generator)
        return split_batch(inputs.to(self.dtype), outputs.to(self.dtype), num_context)

    def functions(self, inputs: Tensor, seed: int | None = None) -> Tensor:
        """Draw functions at the inputs given, with noise.

        :param Tensor inputs: **Shape:** ``(num_tasks, n, x_dim)``.
        :param int seed: the same seed gives the same functions.
        :returns: **Shape:** ``(num_tasks, n, 1)``.
        """
        generator = np.random.default_rng(fresh_seed(seed))
        return self._functions(inputs.double().cpu(), generator).to(self.dtype)

    @torch.no_grad()
    def covariance(
        self, inputs: Tensor, lengthscale: Tensor, amplitude: Tensor, period: Tensor
    ) -> Tensor:
        """The covariance of functions without noise.

        :param Tensor inputs: **Shape:** ``(num_tasks, n, x_dim)``.
        :param Tensor lengthscale: **Shape:** ``(num_tasks,)``.
        :param Tensor amplitude: **Shape:** ``(num_tasks,)``.
        :param Tensor period: of the periodic kernel. **Shape:** ``(num_tasks,)``.
        :returns: **Shape:** ``(num_tasks, n, n)``.
        """
        kernels = _gpytorch().kernels
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

        hyperparameters = [drawn(b) for b in (self.lengthscale, self.amplitude, self.period)]
        covariance = self.covariance(inputs, *hyperparameters)
        covariance.diagonal(dim1=-2, dim2=-1).add_(self.noise**2)
        shape = (*inputs.shape[:2], 1)
        normal = torch.from_numpy(generator.standard_normal(shape))
        outputs: Tensor = torch.linalg.cholesky(covariance) @ normal
        if self.student_noise:
            scale = generator.uniform(0, self.student_noise, shape)
            outputs += torch.from_numpy(scale * generator.standard_t(_STUDENT_DEGREES, shape))
        return outputs


def _gpytorch() -> ModuleType:
    try:
        import gpytorch
    except ImportError as error:
        raise ImportError(
            "tasks of Gaussian processes need GPyTorch, which could not be imported; install it "
            "with: pip install 'pyro-ext[gp]'"
        ) from error
    module: ModuleType = gpytorch
    return module
