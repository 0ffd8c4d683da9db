r"""Perturbations of inputs toward places where networks disagree.

[1] Y. Tashiro, Y. Song, S. Ermon (2020),
Diversity can be transferred: output diversification for white- and black-box attacks.

[2] G. Nam, J. Yoon, Y. Lee, J. Lee (2021),
Diversity matters when learning from ensembles.

[3] G. Nam, H. Lee, B. Heo, J. Lee (2022),
Improving ensemble distillation with weight averaging and diversifying perturbation.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from pyro_ext._lib import checks
from pyro_ext.nn import BatchEnsemble
from pyro_ext.random import seeded

Teachers = Sequence[nn.Module]
Student = BatchEnsemble | None


def diversify(
    inputs: Tensor,
    teachers: Teachers,
    student: Student = None,
    perturbation: str = "tdiv-sdiv",
    *,
    eta: float = 1 / 255,
    bounds: tuple[float, float] | None = (0.0, 1.0),
    seed: int | None = None,
) -> Tensor:
    r"""Move each input by one step with a root mean square of :math:`\eta` over its numbers.

    The perturbations are

    - ``"gaussian"``: a normal direction;
    - ``"ods"``: the gradient of :math:`w^\top p(x)`, where :math:`p` are the probabilities of a
      random teacher and :math:`w` is uniform on :math:`[-1, 1]` for each input [1];
    - ``"confods"``: the same, times the teacher's confidence, :math:`\max_k p_k(x)` [2];
    - ``"tdiv"``: the gradient of the cross-entropy between two random teachers, :math:`-\sum_k
      p_b(k | x) \log p_a(k | x)`, with :math:`p_b` held fixed [3];
    - ``"tdiv-sdiv"``: that gradient minus the one of the same members of the student, so that
      it does not increase the student's disagreement [3].

    Networks run in their current mode: put them in evaluation mode, so that batch normalization
    uses its running statistics and does not change them.

    :param Tensor inputs: **Shape:** ``(n, *event)``.
    :param teachers: modules that map inputs to logits, ``(n, classes)``.
    :param BatchEnsemble student: has a member for each teacher; only needed for ``"tdiv-sdiv"``.
    :param str perturbation: the direction.
    :param float eta: :math:`\eta`, in units of the inputs.
    :param bounds: bounds to which perturbed inputs are clipped, the valid range of a pixel;
        ``None`` for unbounded inputs, such as standardized features.
    :param int seed: seed of the draws; ``None`` uses PyTorch's global generators.
    :returns: perturbed inputs. Those with a zero gradient do not move.
    :raises ValueError: for a perturbation without the networks that it needs, or inputs outside of
        the bounds.

    Example::

        >>> from pyro_ext.nn import MLP
        >>> x = torch.rand(5, 4)
        >>> moved = diversify(x, [MLP(4, [8], 3), MLP(4, [8], 3)], perturbation="tdiv", eta=0.1)
        >>> bool(((moved - x).square().mean(1) < 0.1**2 + 1e-6).all())
        True
    """
    teachers = checks.sequence("teachers", teachers, "a list of modules", kind=nn.Module)
    like = next(teachers[0].parameters(), None)
    inputs = checks.as_tensor("inputs", inputs, "(n, ...)", finite=True, like=like)
    checks.number("eta", eta, least=0.0)
    bounds = check_bounds(bounds)
    if bounds is not None and not bool(((inputs >= bounds[0]) & (inputs <= bounds[1])).all()):
        raise ValueError(
            f"inputs must lie within bounds={bounds}, to which they would be clipped, got numbers "
            f"from {float(inputs.min()):.4g} to {float(inputs.max()):.4g}: pass the bounds of your "
            "inputs, or None"
        )
    check_perturbation(perturbation, len(teachers))
    if perturbation == "tdiv-sdiv" and getattr(student, "num_members", 0) != len(teachers):
        raise ValueError(
            f"student must be a BatchEnsemble with {len(teachers)} members, one for each teacher, "
            f"got {student!r:.80}"
        )
    with seeded(seed):
        moved = inputs + eta * DIRECTIONS[perturbation](inputs, teachers, student)
    return moved if bounds is None else moved.clamp(*bounds)


def check_bounds(bounds: Any) -> tuple[float, float] | None:
    """Check a lower and an upper bound."""
    if bounds is None:
        return None
    low, high = (*checks.sequence("bounds", bounds, "a lower and an upper bound"), None, None)[:2]
    low = checks.number("bounds[0]", low)
    return low, checks.number("bounds[1]", high, above=low)


def check_perturbation(perturbation: str, num_teachers: int) -> None:
    """Check that a word names a direction, and that there are teachers enough for it."""
    checks.choice("perturbation", perturbation, DIRECTIONS)
    if perturbation.startswith("tdiv") and num_teachers < 2:
        raise ValueError(
            f"teachers must be at least two for perturbation={perturbation!r}, got {num_teachers}"
        )


def _gaussian(inputs: Tensor, teachers: Teachers, student: Student) -> Tensor:
    return _unit_mean_square(torch.randn_like(inputs))


def _ods(inputs: Tensor, teachers: Teachers, student: Student) -> Tensor:
    return _ods_and_confidence(inputs, teachers)[0]


def _confods(inputs: Tensor, teachers: Teachers, student: Student) -> Tensor:
    direction, confidence = _ods_and_confidence(inputs, teachers)
    return direction * confidence.view(-1, *[1] * (inputs.dim() - 1))


def _tdiv(inputs: Tensor, teachers: Teachers, student: Student) -> Tensor:
    first, second = _pair(len(teachers))

    def disagreement(x: Tensor) -> Tensor:
        return _cross_entropy(teachers[first](x), teachers[second](x))

    return _unit_mean_square(_gradient(disagreement, inputs))


def _tdiv_sdiv(inputs: Tensor, teachers: Teachers, student: Student) -> Tensor:
    first, second = _pair(len(teachers))
    assert student is not None

    def difference(x: Tensor) -> Tensor:
        of_students = _cross_entropy(*student(x, members=[first, second]))
        return _cross_entropy(teachers[first](x), teachers[second](x)) - of_students

    return _unit_mean_square(_gradient(difference, inputs))


DIRECTIONS: dict[str, Callable[[Tensor, Teachers, Student], Tensor]] = {
    "gaussian": _gaussian,
    "ods": _ods,
    "confods": _confods,
    "tdiv": _tdiv,
    "tdiv-sdiv": _tdiv_sdiv,
}


def _ods_and_confidence(inputs: Tensor, teachers: Teachers) -> tuple[Tensor, Tensor]:
    """Directions, and confidences of the teacher that was drawn."""
    chosen = teachers[_integer(len(teachers))]
    confidences = []

    def projection(x: Tensor) -> Tensor:
        probabilities: Tensor = chosen(x).softmax(-1)
        confidences.append(probabilities.detach().amax(-1))
        weights = torch.empty_like(probabilities).uniform_(-1.0, 1.0)
        return (weights * probabilities).sum()

    return _unit_mean_square(_gradient(projection, inputs)), confidences[0]


def _pair(size: int) -> tuple[int, int]:
    """Two different numbers below a size."""
    first = _integer(size)
    return first, (first + 1 + _integer(size - 1)) % size


def _integer(size: int) -> int:
    return int(torch.randint(size, ()))


def _cross_entropy(logits: Tensor, fixed: Tensor) -> Tensor:
    """Summed over the inputs: each has a gradient of its own."""
    return -(fixed.detach().softmax(-1) * logits.log_softmax(-1)).sum()


@torch.enable_grad()
def _gradient(function: Callable[[Tensor], Tensor], inputs: Tensor) -> Tensor:
    leaf = inputs.detach().requires_grad_()
    return torch.autograd.grad(function(leaf), leaf)[0]


def _unit_mean_square(direction: Tensor) -> Tensor:
    """Scale the direction of each input; what is zero stays zero."""
    rows = direction.flatten(1)
    scaled: Tensor = math.sqrt(rows.shape[1]) * normalize(rows, dim=1)
    return scaled.view_as(direction)
