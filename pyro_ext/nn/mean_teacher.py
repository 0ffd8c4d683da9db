"""Mean teachers: averages of a network during training, and their effect on its gradients."""

import copy
import math
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn
from torch.nn.utils import get_total_norm
from torch.optim.swa_utils import get_ema_multi_avg_fn

from pyro_ext._lib import checks

Schedule = Literal["cosine", "constant"]


class MeanTeacher(nn.Module):
    r"""A copy of a module whose parameters are an exponential moving average of the module's [1].

    After each step of the optimizer,

    .. math:: \xi \leftarrow m_t \xi + (1 - m_t) \theta.

    The copy starts equal to the module, stays in evaluation mode and has no gradient. Its buffers,
    such as batch normalization statistics, are those of the module. Averages of half-precision
    parameters are kept in single precision, and rounded in the copy.

    The teacher is itself a module. Pass ``stateful=[teacher]`` to a
    :class:`~pyro_ext.inference.Trainer` to include it in checkpoints. If the loss does not use the
    average, the trainer's ``ema_decay`` is enough. The module that the teacher follows is not part
    of its state.

    :param module: any module; it is not changed. A PyroModule keeps the names of its sites and
        parameters, so run its teacher with :func:`pyro_ext.handlers.consistency`, or in another
        parameter store.
    :param float momentum: :math:`m_0`, from 0, which copies the module, to 1, which keeps the
        initial copy.
    :param str schedule: ``"cosine"`` raises the momentum to one by the end of training, as in [2];
        ``"constant"`` does not.
    :param int num_steps: the number of training steps, after which ``"cosine"`` reaches one.
        Without it, the momentum is constant.
    :raises TypeError: for anything that is not a module.
    :raises ValueError: if numbers are out of range.

    [1] A. Tarvainen, H. Valpola (2017), Mean teachers are better role models.

    [2] Y. Lee, J. Willette, J. Kim, J. Lee, S. J. Hwang (2023), Exploring the role of mean teachers
    in self-supervised masked auto-encoders.

    Example::

        >>> network = torch.nn.Linear(2, 1)
        >>> teacher = MeanTeacher(network, momentum=0.75)
        >>> before = network.bias.item()
        >>> with torch.no_grad():
        ...     network.bias += 1.0
        >>> teacher.update()
        >>> round(teacher.teacher.bias.item() - before, 4)
        0.25
    """

    num_updates: Tensor

    def __init__(
        self,
        module: nn.Module,
        momentum: float = 0.996,
        schedule: Schedule = "cosine",
        num_steps: int | None = None,
    ) -> None:
        super().__init__()
        checks.instance("module", module, nn.Module, "a module")
        self.momentum = checks.number("momentum", momentum, least=0, most=1)
        checks.choice("schedule", schedule, get_args(Schedule))
        self.schedule = schedule
        self.num_steps = checks.optional(checks.integer, "num_steps", num_steps, 1)
        self._student = (module,)  # in a tuple, so that it is not registered as a submodule
        self.teacher = copy.deepcopy(module).requires_grad_(False).eval()
        """The copy whose parameters are averages."""
        for number, parameter in enumerate(self.teacher.parameters()):
            if parameter.is_floating_point() and torch.finfo(parameter.dtype).bits < 32:
                self.register_buffer(f"_average_{number}", parameter.detach().float())
        self.register_buffer("num_updates", torch.tensor(0))

    @property
    def student(self) -> nn.Module:
        """The module that is averaged."""
        return self._student[0]

    def momentum_at(self, step: int) -> float:
        """Return the momentum of the update after a step.

        :param int step: index of the step, from zero.
        """
        step = checks.integer("step", step, 0)
        if self.schedule == "constant" or self.num_steps is None:
            return self.momentum
        rest = 0.5 + 0.5 * math.cos(math.pi * min(step / self.num_steps, 1.0))
        return 1.0 - (1.0 - self.momentum) * rest

    @torch.no_grad()
    def update(self, step: int | None = None) -> None:
        """Update the average with the parameters of the module, after a step of its optimizer.

        :param int step: index of the step, from zero. Default: the number of updates so far.
        :raises ValueError: if a parameter is not finite, which would spoil the average for good, or
            if the names or shapes of the parameters have changed.
        """
        step = int(self.num_updates) if step is None else step
        average = get_ema_multi_avg_fn(self.momentum_at(step))
        own, student = dict(self.teacher.named_parameters()), dict(self.student.named_parameters())
        if [(n, p.shape) for n, p in own.items()] != [(n, p.shape) for n, p in student.items()]:
            raise ValueError("module must keep the names and shapes of its parameters")
        _check_finite(student)
        kept = [getattr(self, f"_average_{k}", p) for k, p in enumerate(own.values())]
        by_type: dict[torch.dtype, list[int]] = {}
        for number, one in enumerate(kept):
            by_type.setdefault(one.dtype, []).append(number)
        current = [p.to(one) for p, one in zip(student.values(), kept, strict=True)]
        for chosen in by_type.values():
            average([kept[k] for k in chosen], [current[k] for k in chosen], 0)
        for parameter, one in zip(own.values(), kept, strict=True):
            if one is not parameter:
                parameter.copy_(one)
        for buffer, other in zip(self.teacher.buffers(), self.student.buffers(), strict=True):
            buffer.copy_(other)
        self.num_updates += 1

    @torch.no_grad()
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Apply the teacher to inputs, without a gradient."""
        return self.teacher(*args, **kwargs)

    def train(self, mode: bool = True) -> "MeanTeacher":
        """Stay in evaluation mode, whatever the mode of the enclosing module."""
        del mode
        return super().train(False)

    def extra_repr(self) -> str:
        """Return the settings for the module's ``repr``."""
        return f"momentum={self.momentum}, schedule={self.schedule!r}, num_steps={self.num_steps}"


class TeacherDecomposition(NamedTuple):
    r"""Result of :func:`teacher_gradient_decomposition`.

    :ivar Tensor differences: :math:`S_t - T_t`. **Shape:**
        ``(num_steps, num_outputs, num_inputs)``.
    :ivar Tensor consistency: gradients of the consistency term. **Shape:** that of the differences.
    :ivar Tensor weights: weights with which the error of step :math:`s` returns at step :math:`t`,
        :math:`-\lambda \alpha^{t-s} \tilde x_s^\top \tilde x_t`, zero for :math:`s \ge t`.
        **Shape:** ``(num_steps, num_steps)``.
    :ivar Tensor undone: the fraction of the previous step that is undone,
        :math:`-\langle \nabla_t, g_{t-1} \rangle / \|g_{t-1}\|^2`, NaN if the denominator is zero.
        **Shape:** ``(num_steps - 1,)``.
    :ivar Tensor similarity: similarity of each input to the previous one,
        :math:`(\tilde x_{t-1}^\top \tilde x_t)^2 / \|\tilde x_{t-1}\|^2`. **Shape:**
        ``(num_steps - 1,)``.
    """

    differences: Tensor
    consistency: Tensor
    weights: Tensor
    undone: Tensor
    similarity: Tensor


def teacher_gradient_decomposition(
    gradients: Tensor, inputs: Tensor, momentum: float, step_size: float
) -> TeacherDecomposition:
    r"""Decompose the gradient of a consistency term, for a linear network with one input per step.

    A student :math:`S` moves by :math:`-\lambda g_t`. A teacher starts equal to the student and
    moves by :math:`T \leftarrow \alpha T + (1 - \alpha) S`. Then, exactly,

    .. math::
        S_t - T_t = -\lambda \sum_{i=1}^t \alpha^i g_{t-i}, \qquad
        \nabla_t = (S_t - T_t)\, \tilde x_t \tilde x_t^\top

    where :math:`\nabla_t` is the gradient of :math:`\tfrac12 \|S \tilde x_t - T \tilde x_t\|^2`.
    If :math:`g_s = e_s \tilde x_s^\top`, each past error returns with the weight
    :math:`-\lambda \alpha^{t-s}\, \tilde x_s^\top \tilde x_t`: a step is undone to the extent that
    inputs are similar, the last one by :math:`\lambda \alpha` times the similarity [1].

    :param Tensor gradients: :math:`g_t`, gradients of the whole loss. **Shape:**
        ``(num_steps, num_outputs, num_inputs)``.
    :param Tensor inputs: :math:`\tilde x_t`. **Shape:** ``(num_steps, num_inputs)``.
    :param float momentum: :math:`\alpha`, in ``[0, 1]``.
    :param float step_size: :math:`\lambda`.
    :returns: a :class:`TeacherDecomposition`.
    :raises ValueError: if shapes do not match or numbers are out of range.

    [1] Y. Lee, J. Willette, J. Kim, J. Lee, S. J. Hwang (2023), Exploring the role of mean teachers
    in self-supervised masked auto-encoders. The equations follow from the updates, and agree with
    its abstract.

    Example::

        >>> parts = teacher_gradient_decomposition(torch.ones(2, 1, 1), torch.ones(2, 1), 0.5, 0.1)
        >>> parts.differences.flatten(), parts.consistency.flatten()
        (tensor([ 0.0000, -0.0500]), tensor([ 0.0000, -0.0500]))
    """
    gradients = checks.as_tensor("gradients", gradients, "(t, n, m)", finite=True)
    if not gradients.is_floating_point():
        gradients = gradients.to(torch.get_default_dtype())
    shape = f"({len(gradients)}, {gradients.shape[-1]})"
    inputs = checks.as_tensor("inputs", inputs, shape, like=gradients, finite=True).to(gradients)
    momentum = checks.number("momentum", momentum, least=0, most=1)
    step_size = checks.number("step_size", step_size, above=0)
    difference = torch.zeros_like(gradients[0])
    found = []
    for gradient in gradients:
        found.append(difference)
        difference = momentum * (difference - step_size * gradient)
    differences = torch.stack(found)
    outputs = torch.einsum("tij,tj->ti", differences, inputs)
    consistency = torch.einsum("ti,tj->tij", outputs, inputs)
    products = inputs @ inputs.mT
    times = torch.arange(len(inputs)).to(inputs)
    ages = (times[:, None] - times).clamp(min=0)
    weights = (-step_size * momentum**ages * products).tril(-1)
    last = gradients[:-1].flatten(1)
    undone = -(consistency[1:].flatten(1) * last).sum(-1) / last.square().sum(-1)
    similarity = products.diagonal(1).square() / products.diagonal()[:-1]
    return TeacherDecomposition(differences, consistency, weights, undone, similarity)


def _check_finite(parameters: dict[str, nn.Parameter]) -> None:
    """Refuse parameters that would spoil an average."""
    numbers = [p.detach() for p in parameters.values() if p.dtype.is_floating_point]
    if bool(get_total_norm(numbers).isfinite()):  # which may overflow, and is fast
        return
    for name, parameter in parameters.items():
        if not bool(parameter.isfinite().all()):
            raise ValueError(f"module must have finite parameters, got {name!r} that are not")
