"""Symmetries of a partial differential equation, learned from its solutions [1].

[1] G. Ko, H. Kim, J. Lee (2024), Learning infinitesimal generators of continuous symmetries from
data.
"""

from functools import partial
from typing import Any, NamedTuple, Unpack

import torch
from torch import Tensor
from torch.optim.lr_scheduler import CosineAnnealingLR

from pyro_ext._lib import checks
from pyro_ext.inference.training import ShuffledBatches, TrainingOptions
from pyro_ext.inference.training.checkpoints import seed_of
from pyro_ext.inference.training.trainer import Optimizer
from pyro_ext.models.symmetry.equations import EQUATIONS, validity_pde
from pyro_ext.models.symmetry.generators import GeneratorLoss, train_generators
from pyro_ext.nn.generators import GeneratorField
from pyro_ext.random import seeded

_ADAM = partial(torch.optim.Adam, lr=1e-3)


class LieSymmetries(NamedTuple):
    """Result of :func:`learn_lie_symmetries`.

    :ivar GeneratorField field: fields on points in units of ``units``.
    :ivar Tensor units: units of ``x``, ``t`` and ``u``: the distance that the size of a solution
        carries in its duration, the duration, and the size.
    :ivar list losses: the loss of each step.
    """

    field: GeneratorField
    units: Tensor
    losses: list[float]

    def __call__(self, points: Tensor) -> Tensor:
        """The fields, each of mean square one over the points.

        :param Tensor points: ``(x, t, u)``. **Shape:** ``(*grid, 3)``.
        :returns: velocities in units of ``units``. **Shape:** ``(n, *grid, 3)``.
        """
        points = checks.as_tensor("points", points, "(*grid, 3)", like=self.units, finite=True).to(
            self.units
        )
        z = points / self.units
        with torch.no_grad():
            values: Tensor = self.field.normalized(z)(z)
        return values.movedim(-2, 0)


def learn_lie_symmetries(
    equation: str,
    solutions: Tensor,
    num_steps: int = 1000,
    *,
    n: int = 4,
    patch: tuple[int, int] = (6, 12),
    batch_size: int = 8,
    num_patches: int = 4096,
    trunk: int = 64,
    sigma: float = 0.4,
    flow_steps: int = 2,
    optimizer: Optimizer = _ADAM,
    seed: int | None = None,
    **training: Unpack[TrainingOptions],
) -> LieSymmetries:
    r"""Learn fields along which solutions of an equation remain solutions [1].

    Weights of the loss are those of the paper. Points are in units in which known symmetries are of
    order one. (The paper uses the length of the circle for ``x``, which makes the Galilean symmetry
    hard to distinguish from a shift of ``u``.) Residuals are computed on small patches of
    solutions, of which each point is moved; the paper uses patches of 64 x 64, which are slower and
    no more informative per point. The learning rate falls to zero along a cosine.

    :param str equation: a name in ``EQUATIONS``.
    :param Tensor solutions: points ``(x, t, u)``, as from :func:`simulate`, equally spaced in ``x``
        around the circle. **Shape:** ``(num_solutions, num_t, num_x, 3)``.
    :param int num_steps: number of optimizer steps.
    :param int n: number of fields.
    :param tuple patch: number of times and of points in ``x`` of a patch, at least 3 and 5.
    :param int batch_size: number of patches of a step.
    :param int num_patches: total number of patches.
    :param int trunk: width of the network.
    :param float sigma: the longest time of a flow.
    :param int flow_steps: number of steps of the solver.
    :param Callable optimizer: makes an optimizer from a list of parameters.
    :param int seed: seed of all draws; ``None`` takes the seed of the checkpoint if it exists, and
        otherwise one from PyTorch's generator.
    :param training: options of :class:`~pyro_ext.inference.training.TrainingOptions`.

    [1] G. Ko, H. Kim, J. Lee (2024),
    Learning infinitesimal generators of continuous symmetries from data.

    Example::

        >>> from pyro_ext.models.symmetry import simulate
        >>> solutions = simulate("kdv", 2, num_x=64, num_t=20, seed=0)
        >>> learned = learn_lie_symmetries(
        ...     "kdv", solutions, 3, num_patches=64, seed=0, progress=False)  # 1,000 are enough
        >>> learned(solutions).shape
        torch.Size([4, 2, 20, 64, 3])
    """
    checks.choice("equation", equation, EQUATIONS)
    law = EQUATIONS[equation]
    solutions = checks.as_tensor(
        "solutions", solutions, "(num_solutions, num_t, num_x, 3)", finite=True
    )
    if not isinstance(patch, tuple | list) or len(patch) != 2:
        raise ValueError(f"patch must be two sizes, of t and x, got {patch!r:.80}")
    for axis, (size, least) in enumerate(zip(patch, (3, 5), strict=True)):
        checks.integer(f"patch[{axis}]", size, least)
        if size > solutions.shape[1 + axis]:
            raise ValueError(
                f"patch[{axis}] must be at most {solutions.shape[1 + axis]}, as solutions have, "
                f"got {size}"
            )
    checks.integer("num_steps", num_steps, 0)
    checks.integer("batch_size", batch_size, 1)
    checks.integer("flow_steps", flow_steps, 1)
    checks.integer("num_patches", num_patches, batch_size)
    seed = seed_of(seed, training.get("checkpoint"))
    units = torch.tensor([law.scale * law.duration, law.duration, law.scale])
    validity = _Residual(equation, units.to(solutions.device))
    with seeded(seed):
        field = GeneratorField(3, n, trunk, periods={0: law.length / float(units[0])})
        num_solutions, num_t, num_x, _ = solutions.shape
        starts = num_solutions, num_t - patch[0] + 1, num_x
        first = [torch.randint(high, (num_patches, 1, 1)) for high in starts]
    field = field.to(solutions.device)
    rows = first[1] + torch.arange(patch[0])[:, None]
    columns = (first[2] + torch.arange(patch[1])) % num_x
    patches = (solutions[first[0], rows, columns] / units.to(solutions)).float()
    batches = ShuffledBatches(patches, batch_size=batch_size)
    losses = train_generators(
        field,
        validity,
        num_steps,
        batches,
        loss=GeneratorLoss(sigma, flow_steps, ortho=3.0, lipschitz=1.0, threshold=3.0),
        optimizer=optimizer,
        scheduler=partial(CosineAnnealingLR, T_max=max(num_steps, 1)),
        max_norm=1.0,
        seed=seed,
        **training,
    )
    return LieSymmetries(field, validity.units, losses)


class _Residual:
    """The validity of patches of solutions, in units."""

    def __init__(self, equation: str, units: Tensor) -> None:
        self.equation, self.units = equation, units

    def __call__(self, moved: Tensor, _: Tensor) -> Tensor:
        return validity_pde(self.equation, moved * self.units).mean(1)

    def identity(self) -> list[Any]:
        """Identify an equation by its name and its numbers."""
        e = EQUATIONS[self.equation]
        return [self.equation, e.length, e.duration, e.scale, *e.orders]
