"""Adversarial attacks: small changes of images that make a classifier wrong.

To measure what a defense is worth, attack it with full knowledge of it. A defense that resists
these attacks may still fail against others.
"""

from collections.abc import Callable
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from pyro_ext._lib import checks
from pyro_ext._lib.progress import progress_bar
from pyro_ext.random import seeded

Classifier = Callable[[Tensor], Tensor]
Purifier = Callable[[Tensor], Tensor]
Norm = Literal["linf", "l2"]


def pgd(
    classifier: Classifier,
    x: Tensor,
    labels: Tensor,
    *,
    eps: float = 8 / 255,
    step: float | None = None,
    num_steps: int = 40,
    norm: Norm = "linf",
    random_start: bool = True,
    seed: int | None = None,
    progress: bool = True,
) -> Tensor:
    r"""Projected gradient ascent of the cross entropy [1].

    .. math:: x \leftarrow \Pi\bigl(x + \eta\, u(\nabla_x\, \text{CE}(f(x), y))\bigr)

    where :math:`u` is the sign, or with ``norm="l2"`` the direction of each image's gradient, and
    :math:`\Pi` projects onto the ball around the image and onto pixels from 0 to 1.

    If the classifier is ``lambda x: purifier.predict(f, x, "logits")``, the gradient also goes
    through the purifier, and is averaged over its runs: this attack has full knowledge of the
    defense.

    :param Callable classifier: maps images to logits ``(n, num_classes)``.
    :param Tensor x: images. **Shape:** ``(n, *event)``, from 0 to 1.
    :param Tensor labels: classes of the images. **Shape:** ``(n,)``.
    :param float eps: radius of the ball.
    :param float step: :math:`\eta`, by default a quarter of ``eps``.
    :param int num_steps: number of steps.
    :param str norm: norm of the ball, ``"linf"`` or ``"l2"``.
    :param bool random_start: whether to start at a random point of the ball; otherwise at the
        image.
    :param int seed: seed of all draws; ``None`` uses PyTorch's global generator.
    :param bool progress: whether to show a progress bar.
    :returns: attacked images. **Shape:** as ``x``.
    :raises ValueError: for arguments out of range, or if a gradient is not finite.

    [1] A. Madry, A. Makelov, L. Schmidt, D. Tsipras, A. Vladu (2018), Towards deep learning models
    resistant to adversarial attacks.

    Example::

        >>> classifier = torch.nn.Linear(4, 3)
        >>> x = torch.full((2, 4), 0.5)
        >>> labels = torch.tensor([0, 2])
        >>> attacked = pgd(classifier, x, labels, eps=0.1, num_steps=5, progress=False)
        >>> bool((attacked - x).abs().max() < 0.1001)
        True
    """
    checks.function("classifier", classifier, "a function of images", or_class=False)
    step = checks.number("eps", eps, above=0.0) / 4 if step is None else step
    checks.boolean("random_start", random_start)
    labels = checks.as_tensor("labels", labels, "(n,)")

    def direction(x: Tensor) -> Tensor:
        return _unit(_gradient(classifier, x, labels), norm)

    return _ascend(direction, x, labels, eps, step, num_steps, norm, random_start, seed, progress)


def bpda_eot(
    classifier: Classifier,
    purifier: Purifier,
    x: Tensor,
    labels: Tensor,
    *,
    eps: float = 8 / 255,
    step: float = 2 / 255,
    num_steps: int = 40,
    num_draws: int = 15,
    norm: Norm = "linf",
    seed: int | None = None,
    progress: bool = True,
) -> Tensor:
    r"""Attack a classifier behind a random purifier, with the identity as the purifier's Jacobian.

    This is backward pass differentiable approximation (BPDA) with expectation over transformation
    (EOT) [2]: with purified images :math:`p_j`, drawn anew at each step,

    .. math:: x \leftarrow \Pi\Bigl(x + \eta\, u\Bigl(\sum_j u(\nabla_{p_j} \text{CE}(f(p_j),
              y))\Bigr)\Bigr) ,

    as in :func:`pgd`, starting from the image itself. Images that are already misclassified are
    attacked further.

    :param Callable classifier: maps images to logits ``(n, num_classes)``.
    :param Callable purifier: maps images to images of the same shape, at random.
    :param Tensor x: images. **Shape:** ``(n, *event)``, from 0 to 1.
    :param Tensor labels: classes of the images. **Shape:** ``(n,)``.
    :param float eps: radius of the ball.
    :param float step: :math:`\eta`.
    :param int num_steps: number of steps.
    :param int num_draws: number of purified images in the sum.
    :param str norm: norm of the ball, ``"linf"`` or ``"l2"``.
    :param int seed: seed of all draws, including those of the purifier; ``None`` uses PyTorch's
        global generator.
    :param bool progress: whether to show a progress bar.
    :returns: attacked images. **Shape:** as ``x``.
    :raises ValueError: for arguments out of range, or if a gradient is not finite.

    [2] A. Athalye, N. Carlini, D. Wagner (2018), Obfuscated gradients give a false sense of
    security: circumventing defenses to adversarial examples.

    Example::

        >>> noise = lambda x: (x + 0.1 * torch.randn_like(x)).clamp(0.0, 1.0)
        >>> x, labels = torch.full((2, 4), 0.5), torch.tensor([0, 2])
        >>> bpda_eot(torch.nn.Linear(4, 3), noise, x, labels, num_steps=3, progress=False).shape
        torch.Size([2, 4])
    """
    _check_purified(classifier, purifier, num_draws)
    labels = checks.as_tensor("labels", labels, "(n,)")

    def direction(x: Tensor) -> Tensor:
        total, _ = _through(classifier, purifier, x, labels, num_draws, norm)
        return _unit(total, norm)

    return _ascend(direction, x, labels, eps, step, num_steps, norm, False, seed, progress)


def joint_score_attack(
    classifier: Classifier,
    purifier: Purifier,
    x: Tensor,
    labels: Tensor,
    *,
    eps: float = 8 / 255,
    step: float = 2 / 255,
    num_steps: int = 40,
    num_draws: int = 15,
    norm: Norm = "linf",
    seed: int | None = None,
    progress: bool = True,
) -> Tensor:
    r"""Attack the classifier as :func:`bpda_eot` does, and follow the purifier [3].

    Half of each step is along :math:`u(\sum_j (p_j - x))`, so that the attack finds an image that
    the purifier leaves unchanged. Arguments, result and errors are as for :func:`bpda_eot`.

    :param Callable classifier: maps images to logits.
    :param Callable purifier: maps images to images, at random.
    :param Tensor x: images.
    :param Tensor labels: classes of the images.
    :param float eps: radius of the ball.
    :param float step: length of a step.
    :param int num_steps: number of steps.
    :param int num_draws: number of purified images in each step.
    :param str norm: norm of the ball.
    :param int seed: seed of all draws.
    :param bool progress: whether to show a progress bar.

    [3] J. Yoon, S. J. Hwang, J. Lee (2021), Adversarial purification with score-based generative
    models.

    Example::

        >>> noise = lambda x: (x + 0.1 * torch.randn_like(x)).clamp(0.0, 1.0)
        >>> x, labels = torch.full((2, 4), 0.5), torch.tensor([0, 2])
        >>> attacked = joint_score_attack(
        ...     torch.nn.Linear(4, 3), noise, x, labels, num_steps=3, progress=False)
        >>> attacked.shape
        torch.Size([2, 4])
    """
    _check_purified(classifier, purifier, num_draws)
    labels = checks.as_tensor("labels", labels, "(n,)")

    def direction(x: Tensor) -> Tensor:
        total, moved = _through(classifier, purifier, x, labels, num_draws, norm)
        return (_unit(total, norm) + _unit(moved, norm)) / 2

    return _ascend(direction, x, labels, eps, step, num_steps, norm, False, seed, progress)


def _ascend(
    direction: Callable[[Tensor], Tensor],
    x: Tensor,
    labels: Tensor,
    eps: float,
    step: float,
    num_steps: int,
    norm: Norm,
    random_start: bool,
    seed: int | None,
    progress: bool,
) -> Tensor:
    """Steps in a direction, each of them projected."""
    x, labels = (
        checks.as_tensor("x", x, "(n, ...)", finite=True),
        checks.as_tensor("labels", labels, "(n,)"),
    )
    if not x.is_floating_point() or x.dim() < 2 or x.min() < 0 or x.max() > 1:
        raise ValueError(
            f"x must be images (n, *event) with pixels from 0 to 1, got {checks.shown(x)}"
        )
    if labels.dtype != torch.int64 or len(labels) != len(x) or labels.min() < 0:
        raise ValueError(f"labels must be {len(x)} int64 classes >= 0, got {checks.shown(labels)}")
    checks.number("eps", eps, above=0.0)
    checks.number("step", step, above=0.0)
    checks.integer("num_steps", num_steps, 0)
    checks.choice("norm", norm, get_args(Norm))
    checks.boolean("progress", progress)
    x = x.detach()
    with seeded(seed):
        attacked = x.clone()
        if random_start:
            start = 2.0 * torch.rand_like(x) - 1.0
            attacked = _project(x + (eps * start if norm == "linf" else start), x, eps, norm)
        steps = range(num_steps)
        for _ in progress_bar(steps, desc="Attack", unit="step", disable=not progress):
            attacked = _project(attacked + step * direction(attacked), x, eps, norm)
    return attacked


def _gradient(classifier: Classifier, x: Tensor, labels: Tensor) -> Tensor:
    """Of the cross entropy, at each image."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        logits = classifier(x)
        if logits.dim() != 2 or len(logits) != len(x) or logits.shape[1] <= labels.max():
            raise ValueError(
                f"classifier must return logits ({len(x)}, num_classes) for labels up to "
                f"{int(labels.max())}, got {checks.shown(logits)}"
            )
        loss = cross_entropy(logits, labels, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, x)
    checks.all_finite("the gradient of classifier", gradient)
    return gradient


def _through(
    classifier: Classifier,
    purifier: Purifier,
    x: Tensor,
    labels: Tensor,
    num_draws: int,
    norm: Norm,
) -> tuple[Tensor, Tensor]:
    """Sums over purified images of the directions of gradients, and of what purifying changed."""
    copies = x.repeat(num_draws, *[1] * (x.dim() - 1))
    with torch.no_grad():
        purified = purifier(copies)
    if purified.shape != copies.shape:
        raise ValueError(
            f"purifier must keep the shape of images {tuple(copies.shape)}, "
            f"got {checks.shown(purified)}"
        )
    directions = _unit(_gradient(classifier, purified, labels.repeat(num_draws)), norm)
    return (
        directions.unflatten(0, (num_draws, -1)).sum(0),
        (purified - copies).unflatten(0, (num_draws, -1)).sum(0),
    )


def _unit(x: Tensor, norm: Norm) -> Tensor:
    """Direction of the longest step: signs, or each image's vector of length one."""
    if norm == "linf":
        return x.sign()
    return normalize(x.flatten(1), dim=1).reshape(x.shape)


def _project(attacked: Tensor, x: Tensor, eps: float, norm: Norm) -> Tensor:
    """Back into the ball, and then between 0 and 1."""
    change = attacked - x
    if norm == "linf":
        change = change.clamp(-eps, eps)
    else:
        change = torch.renorm(change, 2, 0, eps)
    return (x + change).clamp(0.0, 1.0)


def _check_purified(classifier: Classifier, purifier: Purifier, num_draws: int) -> None:
    checks.function("classifier", classifier, "a function of images", or_class=False)
    checks.function("purifier", purifier, "a function of images", or_class=False)
    checks.integer("num_draws", num_draws, 1)
