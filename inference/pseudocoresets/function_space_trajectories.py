"""Snapshots of parameters on the way of gradient descent, on the data and on a coreset."""

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from pyro_ext._checks import check_callable, check_integer, check_number
from pyro_ext.inference.pseudocoresets.descent import descend, descent_snapshots
from pyro_ext.inference.pseudocoresets.experts import ExpertBuffer
from pyro_ext.inference.pseudocoresets.posteriors import Coreset, Posteriors
from pyro_ext.potential import InitStrategy, init_to_prior

__all__ = ["SnapshotPair", "TrajectorySnapshots"]

_INNER = ("fresh", "expert")


class SnapshotPair(NamedTuple):
    """Snapshots of unconstrained latent values, the last one where the descent ends.

    :param Tensor data: of a descent on the data. **Shape:** ``(num_snapshots, size)``.
    :param Tensor coreset: of a descent on the coreset. **Shape:** ``(num_snapshots, size)``.
    """

    data: Tensor
    coreset: Tensor


class TrajectorySnapshots:
    """Late snapshots of an expert, and of gradient descent on a coreset [1].

    Each time one expert is picked at random, and its last checkpoints stand for the posterior of
    the data. That of the coreset is seen in a descent on the mean negative log likelihood of its
    rows, with snapshots at its end. No gradient flows through either, and the memory does not grow
    with the number of steps.

    :param ExpertBuffer buffer: experts of the model.
    :param int num_snapshots: number of snapshots of each.
    :param int thinning: steps on the coreset from one snapshot to the next.
    :param int num_steps: steps on the coreset. The loss of the coreset should have converged before
        the first snapshot: early ones are far apart.
    :param float learning_rate: of the steps on the coreset.
    :param str inner: where they start: ``"fresh"``, at random latent values, each time other ones;
        or ``"expert"``, at an early checkpoint of the expert.
    :param init_strategy: fresh latent values, a function of a site as in
        :mod:`pyro.infer.autoguide.initialization`; draws from the prior without it.
    :param int max_start: number of the first checkpoints of which ``"expert"`` picks one.
    :raises TypeError: for a buffer that is none.
    :raises ValueError: for numbers out of range, or fewer checkpoints than these need.

    [1] B. Kim, H. Lee, J. Lee (2023), Function space Bayesian pseudocoreset for Bayesian neural
    networks.

    Example::

        >>> from pyro_ext.inference import AutoPseudocoreset
        >>> def model(x):
        ...     loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("x", dist.Normal(loc, 1.0), obs=x)
        >>> x = torch.linspace(0.0, 4.0, 99)
        >>> buffer = ExpertBuffer.collect(
        ...     model, x, num_experts=3, num_epochs=6, seed=0, progress=False)
        >>> guide = AutoPseudocoreset(model, x, size=9, seed=0)
        >>> pair = TrajectorySnapshots(buffer, 4).draw(guide, guide.coreset())
        >>> pair.data.shape, pair.coreset.shape
        (torch.Size([4, 1]), torch.Size([4, 1]))
    """

    def __init__(
        self,
        buffer: ExpertBuffer,
        num_snapshots: int = 5,
        *,
        thinning: int = 3,
        num_steps: int = 60,
        learning_rate: float = 0.1,
        inner: Literal["fresh", "expert"] = "fresh",
        init_strategy: InitStrategy | None = None,
        max_start: int = 5,
    ) -> None:
        if init_strategy is not None:
            check_callable("init_strategy", init_strategy)
        if not isinstance(buffer, ExpertBuffer):
            raise TypeError(f"buffer must be an ExpertBuffer, got {buffer!r:.80}")
        if inner not in _INNER:
            raise ValueError(f"inner must be one of {_INNER}, got {inner!r:.80}")
        self.buffer = buffer
        self.num_snapshots = check_integer("num_snapshots", num_snapshots, 1)
        self.thinning = check_integer("thinning", thinning, 1)
        # The first snapshot comes after one step at least.
        self.num_steps = check_integer("num_steps", num_steps, 1 + thinning * (num_snapshots - 1))
        self.learning_rate = check_number("learning_rate", learning_rate, above=0)
        self.inner = inner
        self.init_strategy = init_strategy or init_to_prior
        self.max_start = check_integer("max_start", max_start, 1)
        num_epochs = buffer.num_checkpoints - 1
        if self.num_snapshots > num_epochs:
            raise ValueError(
                f"num_snapshots must be at most the {num_epochs} epochs of the experts, got "
                f"{num_snapshots}"
            )
        if inner == "expert" and self.max_start > num_epochs:
            raise ValueError(
                f"max_start must be at most the {num_epochs} epochs of the experts, got {max_start}"
            )

    def __repr__(self) -> str:
        return (
            f"TrajectorySnapshots({self.buffer!r}, {self.num_snapshots}, thinning={self.thinning}, "
            f"num_steps={self.num_steps}, learning_rate={self.learning_rate}, "
            f"inner={self.inner!r})"
        )

    def draw(self, guide: Posteriors, coreset: Coreset) -> SnapshotPair:
        """Snapshots of an expert and of a new descent on a coreset.

        :param AutoPseudocoreset guide: knows the model.
        :param Coreset coreset: pseudo rows and weights.
        :raises ValueError: where the experts are of another model.
        """
        posterior = guide.posterior
        self.buffer.check(posterior.layout)
        number = int(torch.randint(self.buffer.num_experts, ()))
        layout = posterior.layout
        expert = self.buffer.trajectories[number].to(layout.device, layout.dtype)
        if self.inner == "fresh":
            values = posterior.potential.init(init_strategy=self.init_strategy)
            position = layout.flatten(values)
        else:
            position = expert[torch.randint(self.max_start, (1,))]
        between = self.thinning * (self.num_snapshots - 1)
        first = self.num_steps - between
        position = descend(posterior, coreset, position, first, self.learning_rate)
        snapshots = [position]
        if between:
            snapshots += descent_snapshots(
                posterior, coreset, position, between, self.learning_rate, self.thinning
            )
        return SnapshotPair(expert[-self.num_snapshots :], torch.cat(snapshots))
