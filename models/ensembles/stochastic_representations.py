r"""Classifiers trained on the representations of several networks along a trajectory.

The method section of the paper was not available. According to the rest of it, the average of
weights (SWA) is the extractor, draws from the trajectory's normal distribution (SWAG) give
each example several representations, and the classifier is trained by self-distillation from
its predictions on them, whose spread counts as uncertainty. The rest is reconstructed: the form of
the loss, the weights of its parts, the temperature, and the number of draws. The loss can therefore
be replaced.
"""

import copy
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, Literal, Unpack

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import Dirichlet, kl_divergence
from torch.nn.functional import cross_entropy

from pyro_ext._lib import checks
from pyro_ext.inference import Trainer
from pyro_ext.inference.averaging import SWAG
from pyro_ext.inference.training import ShuffledBatches, TrainingOptions
from pyro_ext.inference.training.fits import check_fits
from pyro_ext.inference.training.trainer import Optimizer
from pyro_ext.random import fresh_seed

__all__ = [
    "StochasticRepresentations",
    "dirichlet_distillation",
    "distillation",
    "weighted_distillation",
]

Variant = Literal["kd", "kd_weighted", "dirichlet", "none"]
_SGD = partial(torch.optim.SGD, lr=0.02, momentum=0.9, nesterov=True)


def distillation(student: Tensor, teachers: Tensor, temperature: float) -> Tensor:
    r"""Cross-entropy to the mean prediction, :math:`-\tau^2 \sum_k \bar p_k \log q_k` [1].

    :param Tensor student: logits of the student. **Shape:** ``(*batch, num_classes)``.
    :param Tensor teachers: logits of each teacher; no gradient flows through them.
        **Shape:** ``(M, *batch, num_classes)``.
    :param float temperature: :math:`\tau`, by which all logits are divided.
    :returns: **Shape:** ``(*batch)``.

    [1] G. Hinton, O. Vinyals, J. Dean (2015), Distilling the knowledge in a neural network.

    Example::

        >>> distillation(torch.zeros(2), torch.tensor([[4.0, 0.0], [0.0, 4.0]]), 2.0)
        tensor(2.7726)
    """
    student, teachers = _as_logits(student, teachers, temperature)
    mean = (teachers / temperature).softmax(-1).mean(0)
    return -(temperature**2) * (mean * (student / temperature).log_softmax(-1)).sum(-1)


def weighted_distillation(student: Tensor, teachers: Tensor, temperature: float) -> Tensor:
    r""":func:`distillation` with weights :math:`e^{-\mathrm{MI}}`, scaled to mean one.

    The mutual information :math:`H(\bar p) - \tfrac1M \sum_m H(p_m)` measures how much teachers
    differ: examples on which they agree have more weight. Arguments and shapes are as for
    :func:`distillation`, with one dimension of examples.

    Example::

        >>> teachers = torch.tensor([[[9.0, 0.0], [0.0, 0.0]], [[0.0, 9.0], [0.0, 0.0]]])
        >>> weighted_distillation(torch.zeros(2, 2), teachers, 1.0)  # weights .67 and 1.33
        tensor([0.4625, 0.9238])
    """
    student, teachers = _as_logits(student, teachers, temperature)
    each = teachers.softmax(-1)
    entropies = [torch.special.entr(p).sum(-1) for p in (each.mean(0), each)]
    weight: Tensor = (entropies[1].mean(0) - entropies[0]).exp()
    return distillation(student, teachers, temperature) * weight / weight.mean()


def dirichlet_distillation(student: Tensor, teachers: Tensor, temperature: float) -> Tensor:
    r"""Divergence from a Dirichlet distribution with the teachers' predictions as draws [2].

    The concentration of this distribution is :math:`\beta = 1 + s \bar p`, where the precision
    :math:`s` falls as teachers differ, and that of the student is
    :math:`\alpha = 1 + e^{f / \tau}`. The loss is

    .. math:: -\sum_k \bar p_k \bigl(\psi(\alpha_k) - \psi(\alpha_0)\bigr)
              + \mathrm{KL}\bigl(\text{Dir}(\alpha) \,\|\, \text{Dir}(1)\bigr) / \beta_0

    where an index of zero denotes a sum. Arguments and shapes are as for :func:`distillation`.

    [2] M. Ryabinin, A. Malinin, M. Gales (2021),
    Scaling ensemble distribution distillation to many classes with proxy targets.

    Example::

        >>> dirichlet_distillation(torch.zeros(2, 3), torch.randn(4, 2, 3), 1.0).shape
        torch.Size([2])
    """
    student, teachers = _as_logits(student, teachers, temperature)
    log_probs = (teachers / temperature).log_softmax(-1)
    mean = log_probs.exp().mean(0)
    spread = (torch.xlogy(mean, mean) - mean * log_probs.mean(0)).sum(-1)
    # Rounding takes it below zero where all members agree, whose precision is infinite.
    spread = spread.clamp(min=torch.finfo(spread.dtype).eps)
    num_classes = mean.shape[-1]
    total = num_classes + 0.5 * (num_classes - 1) / spread
    concentration = 1.0 + (student / temperature).exp()
    expected_log = concentration.digamma() - concentration.sum(-1, keepdim=True).digamma()
    flat = Dirichlet(torch.ones_like(concentration))
    divergence = kl_divergence(Dirichlet(concentration), flat)
    return divergence / total - (mean * expected_log).sum(-1)


def _as_logits(student: Any, teachers: Any, temperature: float) -> tuple[Tensor, Tensor]:
    """Logits of a student, and those of teachers without a gradient."""
    checks.number("temperature", temperature, above=0)
    student = checks.as_tensor("student", student, "(*batch, num_classes)", finite=True)
    teachers = checks.as_tensor("teachers", teachers, finite=True, like=student).detach()
    if not student.dim() or teachers.shape[1:] != student.shape:
        raise ValueError(
            "teachers must have the shape of student and one more dimension before, got "
            f"{checks.shown(teachers)} for {checks.shown(student)}"
        )
    return student, teachers


_DISTILLATIONS: dict[str, Callable[[Tensor, Tensor, float], Tensor] | None] = {
    "kd": distillation,
    "kd_weighted": weighted_distillation,
    "dirichlet": dirichlet_distillation,
    "none": None,
}


class StochasticRepresentations(nn.Module):
    r"""A classifier trained on several representations of each example [3].

    The average of a trajectory is the extractor, with the representation :math:`z_0`; draws from
    its normal distribution give :math:`z_1, \dots, z_M`. All are frozen. With the logits
    :math:`g_m` of the classifier at :math:`z_m`, the loss is

    .. math:: (1 - a) \, \tfrac12 \bigl(\mathrm{CE}(y, g_0)
              + \tfrac1M \sum_m \mathrm{CE}(y, g_m)\bigr) + a \, D(g_0; g_1, \dots, g_M)

    with one of several distillation losses :math:`D`; no gradient flows through its teachers
    :math:`g_1, \dots, g_M`. Prediction only uses :math:`z_0`. Without ``swag``, the classifier is
    retrained on the extractor itself. With balanced minibatches, this is cRT for a new linear
    layer, and LWS for :class:`LearnableScales`.

    The loss, :math:`a`, :math:`\tau` and :math:`M` are reconstructed from the abstract and from
    related code, and may differ from the authors'.

    :param torch.nn.Module extractor: maps inputs to representations; it is copied. To make one,
        split a network, for example by replacing its last layer by a :class:`torch.nn.Identity`.
    :param swag: the object that collected the extractor, and nothing else, during its training; or
        ``None``.
    :param torch.nn.Module head: the classifier, from representations to logits. A copy is trained,
        of which only parameters that require a gradient change.
    :param int num_samples: :math:`M`.
    :param float alpha: :math:`a`.
    :param float tau: temperature of teachers and student.
    :param str variant: ``"kd"`` for :func:`distillation`, ``"kd_weighted"`` or ``"dirichlet"``;
        ``"none"`` disables distillation, whatever ``alpha`` is.
    :param float scale: scale of the draws, as for :class:`~pyro_ext.inference.averaging.SWAG`.
    :param batches: minibatches of inputs for the batch normalization statistics of each draw;
        required for an extractor with batch normalization.
    :param int seed: seed of the draws.
    :raises ValueError: for numbers out of range, or a ``swag`` that collected another module.

    [3] G. Nam, S. Jang, J. Lee (2023),
    Decoupled training for long-tailed classification with stochastic representations.

    Example::

        >>> from pyro_ext.models.ensembles import BalancedBatches, LearnableScales
        >>> inputs, labels = torch.randn(40, 3), torch.tensor([0] * 30 + [1] * 10)
        >>> extractor = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.ReLU())
        >>> swag = SWAG()
        >>> for _ in range(5):  # stands for a training
        ...     weights = {n: p + 0.1 * torch.randn(p.shape) for n, p in
        ...                extractor.named_parameters()}
        ...     _ = swag.collect(weights)
        >>> head = LearnableScales(torch.nn.Linear(8, 2))
        >>> model = StochasticRepresentations(extractor, swag, head, seed=0)
        >>> losses = model.fit(BalancedBatches(inputs, labels, batch_size=20), 30, progress=False)
        >>> model.predictive(inputs).probs.shape
        torch.Size([40, 2])
    """

    def __init__(
        self,
        extractor: nn.Module,
        swag: SWAG | None,
        head: nn.Module,
        num_samples: int = 8,
        alpha: float = 0.5,
        tau: float = 2.0,
        variant: Variant = "kd",
        *,
        scale: float = 1.0,
        batches: Iterable[Any] | None = None,
        seed: int | None = None,
    ) -> None:
        super().__init__()
        checks.instance("extractor", extractor, nn.Module, "a torch.nn.Module")
        checks.optional(
            checks.instance, "swag", swag, SWAG, "what collected the extractor, or None"
        )
        checks.instance("head", head, nn.Module, "a torch.nn.Module")
        if not any(parameter.requires_grad for parameter in head.parameters()):
            raise ValueError("head must have parameters that require a gradient, got none")
        num_samples = checks.integer("num_samples", num_samples, 1)
        self.alpha = checks.number("alpha", alpha, least=0, most=1)
        self.tau = checks.number("tau", tau, above=0)
        checks.number("scale", scale, least=0)
        checks.choice("variant", variant, _DISTILLATIONS)
        self.distillation = _DISTILLATIONS[variant]
        if swag is None:
            extractors = [copy.deepcopy(extractor)]
        else:
            generator = torch.Generator().manual_seed(fresh_seed(seed))
            draws = [swag.sample(scale, generator=generator) for _ in range(num_samples)]
            extractors = [swag.module(extractor, one, batches=batches) for one in [None, *draws]]
        self.extractors = nn.ModuleList(extractors).requires_grad_(False).eval()
        self.head = copy.deepcopy(head)

    def train(self, mode: bool = True) -> "StochasticRepresentations":
        """Set the mode of the head; extractors stay in evaluation mode."""
        super().train(mode)
        self.extractors.eval()
        return self

    @torch.no_grad()
    def representations(self, inputs: Tensor) -> Tensor:
        r"""Compute :math:`z_0, \dots, z_M`. **Shape:** ``(1 + M, n, *event)``.

        :param Tensor inputs: **Shape:** ``(n, *event)``.
        """
        return torch.stack([extractor(inputs) for extractor in self.extractors])

    def loss(self, inputs: Tensor, labels: Tensor) -> Tensor:
        """Compute the loss of a minibatch.

        :param Tensor inputs: **Shape:** ``(n, *event)``.
        :param Tensor labels: classes. **Shape:** ``(n,)``.
        :returns: a scalar.
        """
        logits = self.head(self.representations(inputs))
        if logits.dim() != 3 or logits.shape[1] != len(labels):
            raise ValueError(
                f"head must return logits of the shape ({len(labels)}, num_classes), got "
                f"{checks.shown(logits[0].detach())}"
            )
        each = torch.stack([cross_entropy(one, labels) for one in logits])
        if len(logits) == 1:
            return each[0]
        supervised = 0.5 * (each[0] + each[1:].mean())
        if self.distillation is None:
            return supervised
        distilled = self.distillation(logits[0], logits[1:], self.tau).mean()
        return (1.0 - self.alpha) * supervised + self.alpha * distilled

    def fit(
        self,
        batches: ShuffledBatches,
        num_steps: int = 400,
        *,
        optimizer: Optimizer = _SGD,
        scheduler: Callable[[Any], Any] | None = None,
        augment: Callable[[Tensor], Tensor] | None = None,
        seed: int | None = None,
        **training: Unpack[TrainingOptions],
    ) -> list[float]:
        """Train the head.

        :param ShuffledBatches batches: minibatches of inputs and labels, such as
            :class:`BalancedBatches`.
        :param int num_steps: number of steps.
        :param optimizer: as for :class:`~pyro_ext.inference.Trainer`.
        :param scheduler: as for :class:`~pyro_ext.inference.Trainer`.
        :param augment: changes the inputs of a minibatch at random; useful because rare examples
            recur.
        :param int seed: seed of minibatches and all draws.
        :param training: options of :class:`~pyro_ext.inference.training.TrainingOptions`.
        :returns: the loss of each step.
        :raises TrainingDiverged: if something is not finite.
        """
        checks.instance("batches", batches, ShuffledBatches, "minibatches of inputs and labels")
        checks.optional(checks.function, "augment", augment)
        if len(batches.rows) != 2:
            raise ValueError(f"batches must be of inputs and labels, got {len(batches.rows)} rows")

        def logits(inputs: Tensor) -> Tensor:
            one: Tensor = self.head(self.representations(augment(inputs) if augment else inputs))[0]
            return one

        check_fits("batches", logits, cross_entropy, *batches.rows)
        trainer = Trainer(self.head, optimizer, scheduler=scheduler, seed=seed)

        def loss(inputs: Tensor, labels: Tensor) -> Tensor:
            return self.loss(inputs if augment is None else augment(inputs), labels)

        self.train()
        try:
            return trainer.run(loss, num_steps, batches, description="classifier", **training)
        finally:
            self.eval()

    def forward(self, inputs: Tensor) -> Tensor:
        """Compute logits, from the extractor with average weights.

        :param Tensor inputs: **Shape:** ``(n, *event)``.
        :returns: **Shape:** ``(n, num_classes)``.
        """
        with torch.no_grad():
            representation = self.extractors[0](inputs)
        logits: Tensor = self.head(representation)
        return logits

    def predictive(self, inputs: Tensor) -> dist.Categorical:
        """Return the distribution of the labels.

        :param Tensor inputs: **Shape:** ``(n, *event)``.
        """
        with torch.no_grad():
            return dist.Categorical(logits=self(inputs))
