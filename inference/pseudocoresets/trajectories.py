r"""Gradient descent on a coreset: trajectories, whose ends replace posteriors, and snapshots.

The loss is the mean negative log likelihood of the pseudo rows, with their weights,

.. math:: l(z) = - \sum_j w_j \log p(u_j | \theta(z)) \Big/ \sum_j w_j ,

at unconstrained latent values :math:`z`. The prior is left out.
"""

import warnings
from typing import Any, Literal, NamedTuple, TypeVar

import torch
from torch import Tensor

from pyro_ext._lib import checks
from pyro_ext.inference.pseudocoresets.experts import ExpertBuffer
from pyro_ext.inference.pseudocoresets.posteriors import (
    Coreset,
    CoresetGuide,
    Posteriors,
    WeightedPosterior,
)
from pyro_ext.inference.pseudocoresets.surrogates import Surrogate
from pyro_ext.potential import InitStrategy, init_to_prior


def descend(
    posterior: WeightedPosterior,
    coreset: Coreset,
    start: Tensor,
    num_steps: int,
    learning_rate: float | Tensor,
) -> Tensor:
    """Take steps of gradient descent; no gradient flows through them.

    :param posterior: has the model; a guide has it as ``guide.posterior``.
    :param Coreset coreset: pseudo rows and weights.
    :param Tensor start: unconstrained latent values. **Shape:** ``(num_starts, size)``.
    :param int num_steps: number of steps.
    :param learning_rate: a number or a scalar tensor.
    :returns: the end points. **Shape:** as the start.

    Example::

        >>> from pyro_ext.inference.pseudocoresets import AutoPseudocoreset
        >>> def model(x):
        ...     loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("x", dist.Normal(loc, 1.0), obs=x)
        >>> guide = AutoPseudocoreset(model, torch.ones(99), size=9, seed=0)
        >>> descend(guide.posterior, guide.coreset(), torch.zeros(2, 1), 2, 0.5)
        tensor([[0.7500],
                [0.7500]])
    """
    checks.instance("posterior", posterior, WeightedPosterior, "the posterior of a guide")
    checks.instance("coreset", coreset, Coreset, "a Coreset, as coreset() of a guide gives it")
    checks.instance("start", start, Tensor, "a tensor")
    checks.as_tensor("start", start, f"(*batch, {posterior.layout.size})")
    if not start.is_floating_point():
        raise TypeError(f"start must have a floating-point type, got {checks.shown(start)}")
    num_steps = checks.integer("num_steps", num_steps, 1)
    if not isinstance(learning_rate, Tensor):
        checks.number("learning_rate", learning_rate, least=0)
    return _descent_snapshots(posterior, coreset, start, num_steps, learning_rate, num_steps)[-1]


def _descent_snapshots(
    posterior: WeightedPosterior,
    coreset: Coreset,
    start: Tensor,
    num_steps: int,
    learning_rate: float | Tensor,
    thinning: int,
) -> list[Tensor]:
    """Points on the way of a descent, one after each ``thinning`` steps, without the start."""
    fixed, position = coreset.detached(), start.detach()
    if isinstance(learning_rate, Tensor):
        learning_rate = learning_rate.detach()
    rate = learning_rate / fixed.weights.sum()
    kept = []
    for number in range(1, num_steps + 1):
        position = position - rate * posterior.likelihood.value_and_gradient(position, fixed)[1]
        if number % thinning == 0:
            kept.append(position)
    return kept


def _unrolled_descent(
    posterior: WeightedPosterior,
    coreset: Coreset,
    start: Tensor,
    num_steps: int,
    learning_rate: float | Tensor,
) -> Tensor:
    """Take steps of gradient descent that can be differentiated.

    Gradients flow into rows, weights, start and learning rate, through second derivatives of the
    model. The memory grows with the number of steps.
    """
    rate = learning_rate / coreset.weights.sum()
    position = start
    for _ in range(num_steps):
        gradient = posterior.likelihood.differentiable_gradient(position, coreset)
        position = position - rate * gradient
    return position


_MAX_START = 10
_FARTHER = 2.0

Number = TypeVar("Number", int, float)


class TrajectorySurrogate(Surrogate):
    r"""Gaussians around the ends of trajectories that start at the same point [1].

    Use this for networks, whose posteriors can neither be sampled at each step nor represented by
    Gaussians with a covariance. Each loss picks an expert and an early checkpoint of it,
    :math:`z_0`. The data's Gaussian is centered at a later checkpoint of the same expert,
    :math:`z_x`. That of the coreset is centered at :math:`z_u`, where a few steps of gradient
    descent on the coreset lead from :math:`z_0`. Their common start keeps both at one mode.

    * :class:`~pyro_ext.inference.ForwardKL` draws from both Gaussians, whose standard deviation is
      the same small number for all latent values. No gradient flows into :math:`z_u`, so memory
      does not depend on the number of steps.
    * :class:`~pyro_ext.inference.ReverseKL` draws from the coreset's Gaussian, and compares the
      likelihoods of the coreset and of a minibatch of the data there. With little noise, it is
      gradient matching [2] times the variance of the noise, and requires a learning rate for the
      coreset that is larger by the same factor.
    * :class:`~pyro_ext.inference.Wasserstein` is trajectory matching [3]: the squared distance of
      :math:`z_u` and :math:`z_x`, relative to that of :math:`z_0` and :math:`z_x`. Its gradient
      flows through all steps, with second derivatives, and takes memory for each of them.

    Log likelihoods are means, over weights or over a minibatch, not sums: one learning rate fits
    coresets of all sizes, and only the ratios of learned weights matter. A loss is noisy, and no
    loss value is a divergence. Loss and learning rate must fit each other; if pseudo rows drift
    off, use a smaller rate, fewer steps or earlier starts.

    :param ExpertBuffer buffer: experts of the guide's model.
    :param int num_steps: number of steps on the coreset; by default as many as experts take from
        :math:`z_0` to :math:`z_x`.
    :param learning_rate: learning rate of these steps on the mean loss: a number, or a scalar
        tensor into which the gradient of a Wasserstein distance flows; by default that of the
        experts. To learn it, also pass it to the optimizer of the coreset. Steps that go more than
        twice as far as those of the experts make the coreset uninformative, and cause a warning.
    :param float noise_scale: standard deviation of the Gaussians.
    :param int num_particles: number of draws from each Gaussian.
    :param int max_start: number of an expert's earliest checkpoints that may be the start; by
        default 10, or as many as there are.
    :param int num_epochs: number of checkpoints from :math:`z_0` to :math:`z_x`.
    :param int batch_size: number of observations in the minibatch that a reverse divergence uses;
        by default all of them.
    :raises ValueError: for numbers out of range, a buffer that is too short for them, or a buffer
        of unknown steps if these are not given.

    [1] B. Kim, J. Choi, S. Lee, Y. Lee, J.-W. Ha, J. Lee (2022), On divergence measures for
    Bayesian pseudocoresets.

    [2] B. Zhao, K. R. Mopuri, H. Bilen (2021), Dataset condensation with gradient matching.

    [3] G. Cazenavette, T. Wang, A. Torralba, A. A. Efros, J.-Y. Zhu (2022), Dataset distillation by
    matching training trajectories.

    Example::

        >>> from functools import partial
        >>> from pyro_ext.inference.pseudocoresets import AutoPseudocoreset, ForwardKL
        >>> from pyro_ext.inference import ExpertBuffer
        >>> def model(x, y):
        ...     weight = pyro.sample("weight", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("y", dist.Bernoulli(logits=x @ weight), obs=y)
        >>> x = torch.randn(640, 3, generator=torch.Generator().manual_seed(0))
        >>> y = (x.sum(-1) > 0).float()
        >>> buffer = ExpertBuffer.collect(model, x, y, num_experts=5, seed=0, progress=False)
        >>> guide = AutoPseudocoreset(model, x, y, size=4, seed=0)
        >>> divergence = ForwardKL(TrajectorySurrogate(buffer))
        >>> optimizer = partial(torch.optim.SGD, lr=1.0, momentum=0.5)
        >>> losses = [guide.step(divergence, optimizer) for _ in range(20)]
        >>> divergence.surrogate.num_steps, len(losses)
        (10, 20)
    """

    def __init__(
        self,
        buffer: ExpertBuffer,
        num_steps: int | None = None,
        learning_rate: float | Tensor | None = None,
        *,
        noise_scale: float = 0.01,
        num_particles: int = 10,
        max_start: int | None = None,
        num_epochs: int = 1,
        batch_size: int | None = None,
    ) -> None:
        checks.instance("buffer", buffer, ExpertBuffer, "an ExpertBuffer")
        self.buffer = buffer
        self.num_epochs = checks.integer("num_epochs", num_epochs, 1)
        if num_steps is None:
            num_steps = self.num_epochs * _known("num_steps", buffer.num_steps)
        self.num_steps = checks.integer("num_steps", num_steps, 1)
        if learning_rate is None:
            learning_rate = _known("learning_rate", buffer.learning_rate)
        if not isinstance(learning_rate, Tensor):
            checks.number("learning_rate", learning_rate, least=0)
        elif learning_rate.dim():
            raise ValueError(
                "learning_rate must be a number or a scalar tensor, got the shape "
                f"{tuple(learning_rate.shape)}"
            )
        self.learning_rate = learning_rate
        self._warn_of_long_descent()
        self.noise_scale = checks.number("noise_scale", noise_scale, least=0)
        self.num_particles = checks.integer("num_particles", num_particles, 1)
        most = buffer.num_checkpoints - num_epochs
        if max_start is None:
            max_start = min(_MAX_START, most)
        self.max_start = checks.integer("max_start", max_start, 1) if most > 0 else max_start
        if self.max_start > most or most < 1:
            raise ValueError(
                f"max_start={max_start} and num_epochs={num_epochs} need more than the "
                f"{buffer.num_checkpoints} checkpoints of the buffer"
            )
        self.batch_size = checks.optional(checks.integer, "batch_size", batch_size, 1)

    def __repr__(self) -> str:
        return f"TrajectorySurrogate({self.buffer!r}, {self.num_steps}, {self.learning_rate})"

    def _warn_of_long_descent(self) -> None:
        """Warn where steps on the coreset, of a rate that is not learned, go too far."""
        buffer, own = self.buffer, self.learning_rate
        if buffer.num_steps is None or buffer.learning_rate is None or isinstance(own, Tensor):
            return
        wanted = self.num_epochs * buffer.num_steps
        if self.num_steps * own > _FARTHER * wanted * buffer.learning_rate:
            warnings.warn(
                f"num_steps={self.num_steps} with learning_rate={own:g} go more than {_FARTHER:g} "
                f"times as far as the experts, which take {wanted} steps with "
                f"{buffer.learning_rate:g}: the coreset has to stay behind what it imitates. Leave "
                "both out to use those of the experts",
                stacklevel=3,
            )

    def check(self, divergence: object) -> None:
        """Raise for a divergence of neither draws nor ends; see ``Surrogate.check``."""
        kinds = ("of_draws", "of_trajectory_ends")
        if all(getattr(divergence, kind, None) is None for kind in kinds):
            raise ValueError(
                f"surrogate must give Gaussians to {type(divergence).__name__}, which compares "
                f"neither draws nor ends of trajectories, got {self!r}"
            )

    def random_segment(self, guide: CoresetGuide) -> tuple[Tensor, Tensor]:
        """An early checkpoint of a random expert, and a later one of the same expert.

        :param AutoPseudocoreset guide: has the model.
        :returns: unconstrained values. **Shape:** ``(size,)`` each.
        :raises ValueError: if the experts belong to another model.
        """
        expert = self.buffer.pick(guide.posterior.layout)
        first = int(torch.randint(self.max_start, ()))
        return expert[first], expert[first + self.num_epochs]

    def compare(self, divergence: Any, guide: CoresetGuide, coreset: Coreset) -> Tensor:
        """Compute the loss of a random trajectory; see ``Surrogate.compare``."""
        posterior = guide.posterior
        start, of_data = self.random_segment(guide)
        steps = (coreset, start[None], self.num_steps, self.learning_rate)
        if hasattr(divergence, "of_trajectory_ends"):
            (end,) = _unrolled_descent(posterior, *steps)
            loss: Tensor = divergence.of_trajectory_ends(start, of_data, end)
            return loss
        (of_coreset,) = descend(posterior, *steps)
        own = self._draws(of_coreset)
        total, number = coreset.weights.sum(), guide.data.num_points
        loss = divergence.of_draws(
            lambda: posterior.log_likelihood(self._draws(of_data), coreset) / total,
            lambda: posterior.log_likelihood(own, coreset) / total,
            lambda: guide.data.log_likelihood(own, self.batch_size) / number,
        )
        return loss

    def _draws(self, mean: Tensor) -> Tensor:
        """Draws from a Gaussian. **Shape:** ``(size,)`` to ``(num_particles, size)``."""
        noise = torch.randn(self.num_particles, len(mean), dtype=mean.dtype)
        return mean + self.noise_scale * noise.to(mean.device)


def _known(argument: str, of_experts: Number | None) -> Number:
    """Return a number that the buffer knows of its experts, or raise if it does not know it."""
    if of_experts is None:
        raise ValueError(f"{argument} must be given, since the buffer does not know its {argument}")
    return of_experts


class SnapshotPair(NamedTuple):
    """Snapshots of unconstrained latent values, the last one where the descent ends."""

    data: Tensor  # of a descent on the data, (num_snapshots, size)
    coreset: Tensor  # of a descent on the coreset, (num_snapshots, size)


class TrajectorySnapshots:
    """Late snapshots of an expert, and of gradient descent on a coreset [1].

    Each time, one expert is picked at random, and its last checkpoints represent the posterior of
    the data. The posterior of the coreset is represented by snapshots at the end of a descent on
    the mean negative log likelihood of its rows. No gradient flows through either, and memory does
    not grow with the number of steps.

    :param ExpertBuffer buffer: experts of the model.
    :param int num_snapshots: number of snapshots of each.
    :param int thinning: number of steps on the coreset between two snapshots.
    :param int num_steps: number of steps on the coreset. The loss of the coreset should have
        converged before the first snapshot: early snapshots are far apart.
    :param float learning_rate: learning rate of the steps on the coreset.
    :param str inner: where the steps start: ``"fresh"`` for new random latent values each time, or
        ``"expert"`` for an early checkpoint of the expert.
    :param init_strategy: fresh latent values, a function of a site as in
        :mod:`pyro.infer.autoguide.initialization`; by default draws from the prior.
    :param int max_start: number of first checkpoints from which ``"expert"`` picks.
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
        checks.optional(checks.function, "init_strategy", init_strategy)
        checks.instance("buffer", buffer, ExpertBuffer, "an ExpertBuffer")
        checks.choice("inner", inner, ("fresh", "expert"))
        self.buffer = buffer
        self.num_snapshots = checks.integer("num_snapshots", num_snapshots, 1)
        self.thinning = checks.integer("thinning", thinning, 1)
        # The first snapshot comes after one step at least.
        self.num_steps = checks.integer("num_steps", num_steps, 1 + thinning * (num_snapshots - 1))
        self.learning_rate = checks.number("learning_rate", learning_rate, above=0)
        self.inner = inner
        self.init_strategy = init_strategy or init_to_prior
        self.max_start = checks.integer("max_start", max_start, 1)
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
        """Take snapshots of an expert and of a new descent on a coreset.

        :param AutoPseudocoreset guide: has the model.
        :param Coreset coreset: pseudo rows and weights.
        :raises ValueError: if the experts belong to another model.
        """
        posterior = guide.posterior
        expert = self.buffer.pick(posterior.layout)
        if self.inner == "fresh":
            values = posterior.potential.init(init_strategy=self.init_strategy)
            position = posterior.layout.flatten(values)
        else:
            position = expert[torch.randint(self.max_start, (1,))]
        between = self.thinning * (self.num_snapshots - 1)
        first = self.num_steps - between
        position = descend(posterior, coreset, position, first, self.learning_rate)
        snapshots = [position]
        if between:
            snapshots += _descent_snapshots(
                posterior, coreset, position, between, self.learning_rate, self.thinning
            )
        return SnapshotPair(expert[-self.num_snapshots :], torch.cat(snapshots))
