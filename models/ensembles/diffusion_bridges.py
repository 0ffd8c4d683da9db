"""Diffusion bridges from the logits of one network to those of an ensemble.

[1] H. Kim, J. Yoon, J. Lee (2024), Fast ensembling with diffusion Schrödinger bridge.
"""

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import astuple
from functools import partial
from typing import Any, Unpack

import pyro
import pyro.distributions as dist
import torch
from pyro.nn import PyroModule
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR

from pyro_ext._lib import checks
from pyro_ext._lib.modes import in_mode
from pyro_ext.inference.training import ShuffledBatches, Trainer, TrainingOptions
from pyro_ext.inference.training.checkpoints import seed_of
from pyro_ext.inference.training.trainer import Optimizer
from pyro_ext.models.ensembles.bridge_schedule import BridgeSchedule
from pyro_ext.models.ensembles.bridge_sources import BridgeSource, as_input
from pyro_ext.models.ensembles.score_networks import ScoreConvNet, ScoreMLP
from pyro_ext.random import seeded

_ADAM = partial(torch.optim.Adam, lr=1e-3)
_FIVE_STEPS = BridgeSchedule(0.01, 0.01, 5)
_SLOW_ADAM = partial(torch.optim.Adam, lr=1e-4)


def ensemble_logits(logits: Tensor) -> Tensor:
    r"""Logits of the members' mean probabilities, normalized to mean zero over classes [1].

    :param Tensor logits: **Shape:** ``(num_members, *batch, num_classes)``.
    :returns: **Shape:** ``(*batch, num_classes)``.

    [1] H. Kim, J. Yoon, J. Lee (2024),
    Fast ensembling with diffusion Schrödinger bridge.

    Example::

        >>> probs = torch.tensor([[0.9, 0.1], [0.5, 0.5]])
        >>> ensemble_logits(probs.log()).softmax(-1)
        tensor([0.7000, 0.3000])
    """
    logits = checks.as_tensor("logits", logits, finite=True)
    if logits.dim() < 2:
        raise ValueError(
            "logits must have the shape (num_members, *batch, num_classes), got "
            f"{tuple(logits.shape)}"
        )
    total = logits.log_softmax(-1).logsumexp(0) - math.log(len(logits))
    return total - total.mean(-1, keepdim=True)


class DiffusionBridgeNetwork(PyroModule):
    r"""Logits of an ensemble, drawn in a few cheap steps from those of one of its networks [1].

    As a Pyro program, ``network(x)`` has sites ``"l_5"``, ..., ``"l_0"`` of logits for five steps,
    which form a Markov chain, and ``"obs"``, the class. The first site, which is the source's
    logits divided by a temperature, and the last are deterministic given the previous ones.

    During training, the temperature is :math:`a + c B` with a beta variable :math:`B` that is drawn
    for each minibatch; otherwise it is the mean.

    :param BridgeSource source: the network to start from; several bridges may share it.
    :param BridgeSchedule schedule: steps and noise; by default five steps and 0.01 at both ends.
    :param torch.nn.Module score: maps logits, features and time, like :class:`ScoreMLP`, to the
        difference between the logits and those at time zero. By default a :class:`ScoreConvNet` for
        feature maps, and otherwise a :class:`ScoreMLP`.
    :param Sequence annealing: :math:`a`, :math:`c` and the two concentrations of :math:`B`.

    [1] H. Kim, J. Yoon, J. Lee (2024),
    Fast ensembling with diffusion Schrödinger bridge.

    Example::

        >>> from pyro_ext.models.ensembles import BridgeSource
        >>> from pyro_ext.nn import MLP
        >>> x = torch.randn(64, 4)
        >>> members = [MLP(4, [8], 3) for _ in range(3)]  # which are to be trained
        >>> bridge = DiffusionBridgeNetwork(BridgeSource(members[0], x[:2]))
        >>> losses = bridge.fit(x, members, 10, batch_size=32, seed=0, progress=False)
        >>> bridge.sample(x, num_samples=2).shape, bridge.probs(x).shape
        (torch.Size([2, 64, 3]), torch.Size([64, 3]))
        >>> one_step = bridge.distill(x, members, 10, batch_size=32, seed=0, progress=False)
        >>> sorted(pyro.infer.Predictive(one_step, num_samples=2)(x))
        ['l_0', 'l_1', 'obs']
    """

    def __init__(
        self,
        source: BridgeSource,
        schedule: BridgeSchedule = _FIVE_STEPS,
        score: nn.Module | None = None,
        *,
        annealing: Sequence[float] = (2.0, 0.4, 1.0, 5.0),
    ) -> None:
        super().__init__()
        checks.instance("source", source, BridgeSource, "a BridgeSource")
        checks.instance("schedule", schedule, BridgeSchedule, "a BridgeSchedule")
        annealing = checks.sequence("annealing", annealing, "four numbers")
        if len(annealing) != 4:
            raise ValueError(f"annealing must be four numbers, got {annealing!r:.80}")
        low, width, *shapes = annealing
        checks.number("annealing[0]", low, above=0)
        checks.number("annealing[1]", width, least=0)
        for number, shape in enumerate(shapes, 2):
            checks.number(f"annealing[{number}]", shape, above=0)
        self.schedule = schedule
        self.annealing = tuple(annealing)
        self.source = source
        if score is None:
            shape = source.feature_shape
            if len(shape) == 3:
                score = ScoreConvNet(source.num_classes, shape[0])
            else:
                score = ScoreMLP(source.num_classes, shape.numel())
            if (first := next(source.network.parameters(), None)) is not None:
                score.to(first.device, first.dtype)
        checks.instance("score", score, nn.Module, "a module or None")
        self.score = score

    # Draws ---------------------------------------------------------------------------------------

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """Run the Pyro program.

        :param Tensor x: inputs. **Shape:** ``(batch, *input)``.
        :param Tensor y: classes, or ``None`` to draw them. **Shape:** ``(batch,)``.
        :returns: classes.
        """
        logits, feature = self._start(x)
        if y is not None:
            y = checks.as_tensor("y", y, f"({len(logits)},)", kind="integers")
        with pyro.plate("data", len(logits)):
            logits = self._chain(logits, feature)
            classes: Tensor = pyro.sample("obs", dist.Categorical(logits=logits), obs=y)
        return classes

    @torch.no_grad()
    def sample(self, x: Tensor, num_samples: int = 1, *, seed: int | None = None) -> Tensor:
        """Draw logits of the ensemble.

        :param Tensor x: inputs. **Shape:** ``(batch, *input)``.
        :param int num_samples: number of draws for each input; the source runs once.
        :param int seed: seed of the noise; ``None`` uses PyTorch's global generator.
        :returns: **Shape:** ``(num_samples, batch, num_classes)``.
        """
        checks.integer("num_samples", num_samples, 1)
        with seeded(seed):
            return self._draw(*self._start(x), num_samples)

    def probs(self, x: Tensor, num_samples: int = 1, *, seed: int | None = None) -> Tensor:
        """Average the probabilities over draws; arguments are as for :meth:`sample`.

        :returns: **Shape:** ``(batch, num_classes)``.
        """
        return self.sample(x, num_samples, seed=seed).softmax(-1).mean(0)

    def estimate(self, logits: Tensor, feature: Tensor, n: int | Tensor) -> Tensor:
        """Estimate the logits at time zero.

        :param Tensor logits: the bridge after some steps. **Shape:** ``(*sample, batch, K)``.
        :param Tensor feature: features of the source. **Shape:** ``(batch, *feature)``.
        :param n: number of the step, or one number for each element of the batch.
        :returns: **Shape:** as the logits.
        """
        outer = logits.shape[:-1]
        time = (torch.as_tensor(n, device=logits.device) / self.schedule.num_steps).to(logits)
        feature = feature.expand(*outer, *feature.shape[1:]).flatten(0, len(outer) - 1)
        # The paper's network gives (l_n - l_0) / sigma_n: hundreds with its noise. Here it gives
        # l_n - l_0, as large as logits are at every step and whatever the noise.
        change: Tensor = self.score(logits.flatten(0, -2), feature, time.expand(outer).flatten())
        return logits - change.reshape(logits.shape)

    def _start(self, x: Tensor, *, is_random: bool = False) -> tuple[Tensor, Tensor]:
        """Logits at time one, and features."""
        logits, feature = self.source(x)
        low, width, alpha, beta = self.annealing
        fraction = alpha / (alpha + beta)
        if is_random:
            fraction = float(torch.distributions.Beta(alpha, beta).sample())
        return logits / (low + width * fraction), feature

    def _draw(self, logits: Tensor, feature: Tensor, num_samples: int) -> Tensor:
        """Draw from the chain, hiding its sites from an enclosing Pyro program."""
        with pyro.poutine.block():
            return self._chain(logits.expand(num_samples, *logits.shape), feature)

    def _chain(self, logits: Tensor, feature: Tensor) -> Tensor:
        """Logits at time zero, by draws of each step."""
        num_steps = self.schedule.num_steps
        logits = pyro.deterministic(f"l_{num_steps}", logits, event_dim=1)
        for n in pyro.markov(range(num_steps, 0, -1)):
            estimate = self.estimate(logits, feature, n)
            if n > 1:
                step = self.schedule.posterior(n, estimate, logits)
                logits = pyro.sample(f"l_{n - 1}", step)
        return pyro.deterministic("l_0", estimate, event_dim=1)

    # Training ------------------------------------------------------------------------------------

    def loss(
        self,
        x: Tensor,
        members: Sequence[Callable[[Tensor], Tensor]],
        *,
        teacher: "DiffusionBridgeNetwork | None" = None,
        alpha: float = 0.5,
    ) -> Tensor:
        r"""Compute the denoising loss at a random step of each bridge.

        .. math:: E \frac{S}{\sigma^2_n} \|\hat l_0(l_n, z, t_n) - l_0\|^2

        This is the paper's squared error of scores, times the constant :math:`S`. Steps, noise and
        the temperature are drawn from PyTorch's generator.

        :param Tensor x: inputs. **Shape:** ``(batch, *input)``.
        :param Sequence members: networks of the ensemble, from inputs to logits.
        :param DiffusionBridgeNetwork teacher: a bridge whose draws are also targets.
        :param float alpha: weight of the squared error from the teacher; that from the ensemble has
            the remaining weight.
        """
        self._check_targets(members, teacher, alpha)
        x = as_input(x, self.source)
        with torch.no_grad():
            start, feature = self._start(x, is_random=True)
            target = ensemble_logits(torch.stack([member(x) for member in members]))
            if teacher is not None:
                # Squared errors from two targets are one from the point between, up to a constant.
                target = target.lerp(teacher._draw(start, feature, 1)[0], alpha)
            n = torch.randint(1, self.schedule.num_steps + 1, start.shape[:1])
            noisy = self.schedule.marginal(n, target, start).sample()
        variances = self.schedule.variances
        weight = (variances[-1] / variances[n]).to(start)
        error = self.estimate(noisy, feature, n) - target
        return (weight * error.square().sum(-1)).mean()

    def fit(
        self,
        x: Tensor,
        members: Sequence[Callable[[Tensor], Tensor]],
        num_steps: int,
        *,
        batch_size: int = 128,
        augment: Callable[[Tensor], Tensor] | None = None,
        mixup: float = 0.4,
        teacher: "DiffusionBridgeNetwork | None" = None,
        alpha: float = 0.5,
        optimizer: Optimizer = _ADAM,
        ema_decay: float = 0.99,
        seed: int | None = None,
        **training: Unpack[TrainingOptions],
    ) -> list[float]:
        """Train the score; members and source do not change.

        Members agree on their training data. To learn where they differ, the bridge uses augmented
        and mixed inputs, which need no labels. The learning rate falls to zero along a cosine. The
        final score is the average of the weights during training.

        :param Tensor x: inputs. **Shape:** ``(n, *input)``.
        :param Sequence members: networks of the ensemble, from inputs to logits; the source only
            counts if it is one of them. Modules are used in evaluation mode.
        :param int num_steps: number of optimizer steps.
        :param int batch_size: number of inputs of a step.
        :param Callable augment: changes a minibatch at random.
        :param float mixup: concentration of the beta variable, one for each minibatch, by which
            inputs are mixed in pairs; zero does not mix.
        :param DiffusionBridgeNetwork teacher: see :meth:`loss`.
        :param float alpha: see :meth:`loss`.
        :param Callable optimizer: makes an optimizer from a list of parameters.
        :param float ema_decay: decay of the average. The paper's 0.9999 is for 300,000 steps.
        :param int seed: seed of all draws; ``None`` takes the seed of the checkpoint if it exists,
            and otherwise one from PyTorch's generator.
        :param training: options of :class:`~pyro_ext.inference.training.TrainingOptions`.
        :returns: the loss of each step.
        :raises TrainingDiverged: if loss or gradient are not finite.
        """
        x = as_input(x, self.source)
        self._check_targets(members, teacher, alpha)
        checks.integer("num_steps", num_steps, 0)
        checks.number("mixup", mixup, least=0)
        checks.number("ema_decay", ema_decay, least=0, below=1)
        checks.optional(checks.function, "augment", augment, "a function of a minibatch")
        if mixup and not x.is_floating_point():
            raise ValueError(f"mixup must be 0 for inputs of {x.dtype}, got {mixup!r}")
        batches = ShuffledBatches(x, batch_size=batch_size)
        trainer = Trainer(
            self.score,
            optimizer,
            scheduler=partial(CosineAnnealingLR, T_max=max(num_steps, 1)),
            ema_decay=ema_decay,
            identity={
                "num_steps": num_steps,
                "mixup": mixup,
                "alpha": alpha,
                "annealing": list(self.annealing),
                "schedule": list(astuple(self.schedule)),
            },
            seed=seed_of(seed, training.get("checkpoint")),
        )

        def loss(batch: Tensor) -> Tensor:
            if augment is not None:
                batch = augment(batch)
            if mixup:
                weight = float(torch.distributions.Beta(mixup, mixup).sample())
                batch = batch.lerp(batch[torch.randperm(len(batch))], weight)
            return self.loss(batch, members, teacher=teacher, alpha=alpha)

        with in_mode(False, *members):
            self._check_logits(x[:2], members)
            try:
                return trainer.run(loss, num_steps, batches, **training)
            finally:
                self.score.load_state_dict(trainer.average.state_dict())

    def distill(
        self,
        x: Tensor,
        members: Sequence[Callable[[Tensor], Tensor]],
        num_steps: int,
        *,
        optimizer: Optimizer = _SLOW_ADAM,
        **options: Any,
    ) -> "DiffusionBridgeNetwork":
        """Make a one-step bridge, trained on this one and on the ensemble.

        :param Tensor x: as for :meth:`fit`.
        :param Sequence members: as for :meth:`fit`.
        :param int num_steps: number of optimizer steps.
        :param Callable optimizer: as for :meth:`fit`.
        :param options: further arguments of :meth:`fit`.
        :returns: the new bridge, with the same source. Its score starts with the weights of this
            one.
        """
        schedule = BridgeSchedule(self.schedule.b1, self.schedule.b2, 1, self.schedule.kind)
        score = copy.deepcopy(self.score)
        student = DiffusionBridgeNetwork(self.source, schedule, score, annealing=self.annealing)
        student.fit(x, members, num_steps, teacher=self, optimizer=optimizer, **options)
        return student

    def _check_targets(self, members: Any, teacher: Any, alpha: float) -> None:
        for member in checks.sequence("members", members, "networks, from inputs to logits"):
            checks.function("members", member, "networks, from inputs to logits", or_class=False)
        checks.number("alpha", alpha, least=0, most=1)
        if teacher is None:
            return
        checks.instance("teacher", teacher, DiffusionBridgeNetwork, "a bridge or None")
        if teacher.source is not self.source:
            raise ValueError("teacher must have the same source, got one with another")

    @torch.no_grad()
    def _check_logits(self, x: Tensor, members: Sequence[Callable[[Tensor], Tensor]]) -> None:
        shape = (len(x), self.source.num_classes)
        for number, member in enumerate(members):
            found = getattr(member(x), "shape", None)
            if found != shape:
                raise ValueError(
                    f"members[{number}] must give logits of shape {shape}, got {found}"
                )


def average_bridges(
    bridges: Sequence[DiffusionBridgeNetwork],
    x: Tensor,
    num_samples: int = 1,
    *,
    seed: int | None = None,
) -> Tensor:
    """Average the probabilities of several bridges from one source, which runs once.

    Each bridge represents its own ensemble, for example of the source and two other networks.

    :param Sequence bridges: bridges with the same :class:`BridgeSource` and annealing.
    :param Tensor x: inputs. **Shape:** ``(batch, *input)``.
    :param int num_samples: number of draws of each bridge.
    :param int seed: seed of the noise; ``None`` uses PyTorch's global generator.
    :returns: **Shape:** ``(batch, num_classes)``.

    Example::

        >>> from pyro_ext.models.ensembles import BridgeSource
        >>> from pyro_ext.nn import MLP
        >>> source = BridgeSource(MLP(4, [8], 3), torch.zeros(2, 4))
        >>> bridges = [DiffusionBridgeNetwork(source) for _ in range(2)]
        >>> average_bridges(bridges, torch.randn(5, 4)).shape
        torch.Size([5, 3])
    """
    bridges = checks.sequence("bridges", bridges, "bridges", kind=DiffusionBridgeNetwork)
    checks.integer("num_samples", num_samples, 1)
    first = bridges[0]
    for number, bridge in enumerate(bridges):
        if bridge.source is not first.source or bridge.annealing != first.annealing:
            raise ValueError(
                "bridges must have one source, the same object, and one annealing, got others in "
                f"bridges[{number}]"
            )
    with torch.no_grad(), seeded(seed):
        start = first._start(x)
        draws = torch.stack([bridge._draw(*start, num_samples) for bridge in bridges])
    return draws.softmax(-1).mean((0, 1))
