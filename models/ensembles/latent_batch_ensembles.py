r"""Distillation of an ensemble into one network, through a batch ensemble.

[1] G. Nam, H. Lee, B. Heo, J. Lee (2022),
Improving ensemble distillation with weight averaging and diversifying perturbation.
"""

from collections.abc import Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from pyro_ext._lib import checks
from pyro_ext.models.ensembles.perturbations import (
    check_bounds,
    check_perturbation,
    diversify,
)
from pyro_ext.nn import BatchEnsemble


class BatchEnsembleDistiller:
    r"""Distills each of several teachers into a member of a batch ensemble, and these into one [1].

    The student is a :class:`~pyro_ext.nn.BatchEnsemble` of a network, and member :math:`m` learns
    from teacher :math:`m`. :meth:`loss` is

    .. math:: (1 - \alpha) \operatorname{CE} + \alpha \tau^2 L + \lambda \Bigl( \tfrac{1}{2} \lVert
              \theta \rVert^2 + \tfrac{1}{2 M} \sum_m \lVert 1 - r_m \rVert^2 + \lVert 1 - s_m
              \rVert^2 \Bigr)

    where :math:`\operatorname{CE}` is the cross-entropy of the labels, :math:`L` that of the
    teachers' probabilities, with all logits divided by :math:`\tau`, :math:`\theta` are all
    parameters except the factors, and :math:`r_m, s_m` are the factors. The factors of a member see
    only one :math:`M`-th of the rows, so their gradient is multiplied by :math:`M`; otherwise they
    would move that much more slowly than the weights. This is why the loss also returns gradients,
    for :class:`~pyro_ext.inference.Trainer`. The loss includes the weight decay: use an optimizer
    without it.

    Before, inputs may be moved to where the teachers disagree, by
    :func:`~pyro_ext.models.ensembles.diversify`. Its draws come from PyTorch's generators, and are
    thus determined by the seed of the trainer.

    :param torch.nn.Module network: a network with linear layers and convolutions, as for
        :class:`~pyro_ext.nn.BatchEnsemble`; a copy is trained, from its weights.
    :param teachers: modules that map inputs to logits, ``(n, classes)``; copies of them are used,
        in evaluation mode.
    :param float tau: :math:`\tau`, the temperature of the distillation.
    :param float alpha: :math:`\alpha \in [0, 1]`; with one, labels are not used.
    :param float weight_decay: :math:`\lambda`.
    :param str perturbation: as for :func:`~pyro_ext.models.ensembles.diversify`; ``None`` does not
        change inputs.
    :param float eta: root mean square of the perturbation, in units of the inputs.
    :param bounds: bounds to which perturbed inputs are clipped, or ``None``, as for ``diversify``.
    :raises TypeError: for arguments of a wrong type.
    :raises ValueError: for numbers out of range, a network without layers that take factors, or
        fewer teachers than the perturbation needs.

    Example::

        >>> from functools import partial
        >>> from pyro_ext.inference.training import ShuffledBatches, Trainer
        >>> from pyro_ext.nn import MLP
        >>> x, y = torch.rand(60, 4), torch.arange(60) % 3
        >>> teachers = [MLP(4, [16], 3) for _ in range(4)]
        >>> distiller = BatchEnsembleDistiller(MLP(4, [8], 3), teachers, perturbation="tdiv-sdiv")
        >>> sgd = partial(torch.optim.SGD, lr=0.02, momentum=0.9, nesterov=True)
        >>> trainer = Trainer(distiller.student, sgd, max_norm=5.0, seed=0)
        >>> losses = trainer.run(
        ...     distiller.loss, 10, ShuffledBatches(x, y, batch_size=20), progress=False)
        >>> distiller.merge()(x).shape, distiller.student(x).shape
        (torch.Size([60, 3]), torch.Size([4, 60, 3]))
    """

    def __init__(
        self,
        network: nn.Module,
        teachers: Sequence[nn.Module],
        *,
        tau: float = 4.0,
        alpha: float = 1.0,
        weight_decay: float = 5e-4,
        perturbation: str | None = None,
        eta: float = 1 / 255,
        bounds: tuple[float, float] | None = (0.0, 1.0),
    ) -> None:
        checks.instance("network", network, nn.Module, "a torch.nn.Module")
        teachers = checks.sequence("teachers", teachers, "a list of modules", kind=nn.Module)
        self.tau = checks.number("tau", tau, above=0.0)
        self.alpha = checks.number("alpha", alpha, least=0.0, most=1.0)
        self.weight_decay = checks.number("weight_decay", weight_decay, least=0.0)
        self.eta = checks.number("eta", eta, least=0.0)
        self.bounds = check_bounds(bounds)
        if perturbation is not None:
            check_perturbation(perturbation, len(teachers))
        self.perturbation = perturbation
        self.student = BatchEnsemble(network, len(teachers)).train()
        self.teachers = [deepcopy(one).eval().requires_grad_(False) for one in teachers]

    def loss(
        self, inputs: Tensor, labels: Tensor | None = None
    ) -> tuple[Tensor, dict[str, Tensor | None]]:
        """Compute the loss of a minibatch, and its gradients, with those of factors multiplied.

        :param Tensor inputs: **Shape:** ``(n, *event)``.
        :param Tensor labels: classes; not needed if ``alpha`` is one. **Shape:** ``(n,)``.
        :returns: a scalar, and gradients by name of the student's parameters.
        """
        like = next(self.student.parameters())
        inputs = checks.as_tensor("inputs", inputs, "(n, ...)", finite=True, like=like)
        if self.perturbation is not None:
            # Statistics of batch normalization are for the step of the loss to gather.
            self.student.eval()
            inputs = diversify(
                inputs,
                self.teachers,
                self.student,
                self.perturbation,
                eta=self.eta,
                bounds=self.bounds,
            )
        self.student.train()
        logits = self.student(inputs)
        with torch.no_grad():
            of_teachers = [teacher(inputs) for teacher in self.teachers]
        if unlike := [one.shape for one in of_teachers if one.shape != logits.shape[1:]]:
            raise ValueError(
                "teachers must map inputs to logits of the shape of the network's, "
                f"{tuple(logits.shape[1:])}, got {tuple(unlike[0])}"
            )
        targets = (torch.cat(of_teachers) / self.tau).softmax(-1)
        distilled = cross_entropy(logits.flatten(0, 1) / self.tau, targets)
        value = self.alpha * self.tau**2 * distilled
        if self.alpha < 1.0:
            observed = checks.as_tensor("labels", labels, f"({len(inputs)},)", kind="integers")
            wrong = observed[(observed < 0) | (observed >= logits.shape[-1])]
            if len(wrong):
                raise ValueError(f"labels must lie in 0 .. {logits.shape[-1] - 1}, got {wrong[0]}")
            repeated = observed.to(inputs.device, torch.int64).repeat(len(logits))
            value = value + (1.0 - self.alpha) * cross_entropy(logits.flatten(0, 1), repeated)
        parameters = {n: p for n, p in self.student.named_parameters() if p.requires_grad}
        factors = {id(factor) for factor in self.student.factors().values()}
        if self.weight_decay:
            penalties = [
                (1.0 - p).square().sum() / self.student.num_members
                if id(p) in factors
                else p.square().sum()
                for p in parameters.values()
            ]
            value = value + 0.5 * self.weight_decay * sum(penalties)
        gradients = torch.autograd.grad(value, list(parameters.values()), allow_unused=True)
        scaled: dict[str, Tensor | None] = {
            name: gradient * self.student.num_members
            if gradient is not None and id(parameter) in factors
            else gradient
            for (name, parameter), gradient in zip(parameters.items(), gradients, strict=True)
        }
        return value.detach(), scaled

    def merge(self) -> Any:
        """Return the student as one network of the original class, in evaluation mode.

        :returns: the network with the averages of the members' factors.
        """
        return self.student.merge().eval()
