r"""Purification: images follow a score before a classifier sees them [1].

Later adaptive attacks break most of it: against them, the paper's classifiers of CIFAR-10 are right
about 33 times in 100 [2]. Purification removes noise and weak attacks, but provides no security.
[1] J. Yoon, S. J. Hwang, J. Lee (2021), Adversarial purification with score-based generative
models.

[2] F. Croce, S. Gowal, T. Brunner, E. Shelhamer, M. Hein, T. Cemgil (2022), Evaluating the
adversarial robustness of adaptive test-time defenses.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from pyro_ext._lib import checks
from pyro_ext.random import seeded

Score = Callable[[Tensor], Tensor]


class Purification(NamedTuple):
    """Record of a purification, step by step.

    :param Tensor images: images with noise, and images after each step.
        **Shape:** ``(num_steps + 1, n, *event)``.
    :param Tensor step_sizes: step sizes; zero for finished images. **Shape:** ``(num_steps, n)``.
    """

    images: Tensor
    step_sizes: Tensor


class AdaptiveScorePurifier:
    r"""Purifies images by noise that drowns an attack, and then a few steps up the score [1].

    1. :math:`x \leftarrow \mathrm{clip}(x + \sigma \epsilon)`
    2. at most ``max_iter`` times :math:`x \leftarrow \mathrm{clip}(x + \alpha g)` along the score
       :math:`g = s(x)`. With :math:`g' = s(x + \delta g)`, the step size is

       .. math:: \alpha = \lambda \delta \,
           \frac{\lVert g \rVert^2}{\langle g,\, g - g' \rangle}

       between bounds: the fraction :math:`\lambda` of the way to where, by linear extrapolation,
       the score is orthogonal to :math:`g`. For a Gaussian density with precision :math:`P`, this
       is an exact line search, :math:`\alpha = \lambda\, g^\top g / g^\top P g`. If the density is
       not concave along :math:`g`, the step is the smallest. An image is finished when its
       :math:`\alpha` is at most ``tau``.

    Images do not affect each other. If the score is multiplied by a number, as it is at another
    level of the same network, :math:`\alpha` is divided by it: ``clamp``, ``tau`` and ``delta`` are
    in those units. If most step sizes of :meth:`trajectory` are at a bound, rescale the score.

    It provides no security: **later adaptive attacks break most of it**, down to about 33% of the
    images of CIFAR-10 [2].

    :param Callable score: maps images to scores of the same shape, for example
        :meth:`NoiseConditionalScore.score()
        <pyro_ext.inference.diffusion.NoiseConditionalScore.score>` or a
        :class:`~pyro_ext.inference.diffusion.DiffusersScore`. Its network must be in
        evaluation mode.
    :param noise: :math:`\sigma`; or a function from images to standard deviations that broadcast,
        such as ``lambda x: 0.1 + 0.01 * score(x).abs()`` for more noise where the score is large.
    :param float step: fraction :math:`\lambda` of the way that a step takes. With the default, ten
        steps cover 40% of the way.
    :param float delta: :math:`\delta`.
    :param int max_iter: largest number of steps.
    :param float tau: step size at which an image is finished.
    :param tuple clamp: smallest and largest :math:`\alpha`, in units of the score.
    :param int num_runs: number of purified copies whose predictions are averaged.
    :param tuple bounds: bounds of pixels: ``(-1.0, 1.0)`` for models of ``diffusers``.
    :raises ValueError: for arguments out of range.

    [1] J. Yoon, S. J. Hwang, J. Lee (2021), Adversarial purification with score-based generative
    models.

    [2] F. Croce et al. (2022), Evaluating the adversarial robustness of adaptive test-time
    defenses.

    Example::

        >>> mean = torch.tensor([0.2, 0.7])
        >>> purifier = AdaptiveScorePurifier(lambda x: (mean - x) / 0.1, noise=0.0)
        >>> purifier(torch.tensor([[0.2, 0.2]]))  # .95 ** 10 of the difference is left
        tensor([[0.2000, 0.4006]])
    """

    def __init__(
        self,
        score: Score,
        noise: float | Callable[[Tensor], Tensor] = 0.25,
        step: float = 0.05,
        delta: float = 1e-3,
        max_iter: int = 10,
        tau: float = 1e-3,
        clamp: tuple[float, float] = (1e-5, 1e-1),
        num_runs: int = 10,
        bounds: tuple[float, float] = (0.0, 1.0),
    ) -> None:
        checks.function("score", score, "a function of images", or_class=False)
        if not callable(noise):
            noise = checks.number("noise", noise, least=0.0)
        else:
            checks.function("noise", noise, "a number or a function of images", or_class=False)
        self.score, self.noise = score, noise
        _check_step(step, delta, clamp)
        self.step, self.delta, self.clamp = step, delta, clamp
        self.max_iter = checks.integer("max_iter", max_iter, 0)
        self.tau = checks.number("tau", tau, least=0.0)
        self.num_runs = checks.integer("num_runs", num_runs, 1)
        _check_pair("bounds", bounds)
        self.bounds = bounds

    def __call__(self, x: Tensor, *, seed: int | None = None) -> Tensor:
        """Purify images once.

        There is a gradient in ``x`` if it asks for one.

        :param Tensor x: **Shape:** ``(n, *event)``.
        :param int seed: of the noise; ``None`` for PyTorch's global generator.
        :returns: **Shape:** as ``x``.
        :raises ValueError: where ``x`` or the score is not finite.
        """
        return self.trajectory(x, seed=seed).images[-1]

    def trajectory(self, x: Tensor, *, seed: int | None = None) -> Purification:
        """Purify images once, and keep images and step sizes along the way.

        Arguments are as for a call.
        """
        x = _as_images(x)
        with seeded(seed), torch.set_grad_enabled(torch.is_grad_enabled() and x.requires_grad):
            noise = self.noise(x) if callable(self.noise) else self.noise
            x = (x + noise * torch.randn_like(x)).clamp(*self.bounds)
            images, step_sizes = [x], []
            is_active = torch.ones(len(x), dtype=torch.bool, device=x.device)
            for _ in range(self.max_iter):
                gradient, size = _adaptive_step(self.score, x, self.step, self.delta, self.clamp)
                is_active = is_active & (size > self.tau)
                if not is_active.any():
                    break
                size = torch.where(is_active, size, 0.0)
                x = (x + _per_image(size, x) * gradient).clamp(*self.bounds)
                images.append(x)
                step_sizes.append(size)
            sizes = torch.stack(step_sizes) if step_sizes else x.new_zeros(0, len(x))
            return Purification(torch.stack(images), sizes)

    def predict(
        self,
        classifier: Callable[[Tensor], Tensor],
        x: Tensor,
        reduce: str = "softmax",
        *,
        seed: int | None = None,
    ) -> Tensor:
        """Average a classifier's predictions over ``num_runs`` purified copies of each image.

        For copies with less noise and others with more, average the predictions of two purifiers.

        :param Callable classifier: maps images to logits ``(n, num_classes)``.
        :param Tensor x: **Shape:** ``(n, *event)``.
        :param str reduce: what is averaged: ``"logits"``, ``"softmax"`` or ``"votes"``.
        :param int seed: as for a call.
        :returns: mean logits, probabilities, or fractions of votes. **Shape:** ``(n,
            num_classes)``.
        """
        checks.function("classifier", classifier, "a function of images", or_class=False)
        checks.choice("reduce", reduce, ("logits", "softmax", "votes"))
        x = _as_images(x)
        with torch.set_grad_enabled(torch.is_grad_enabled() and x.requires_grad):
            copies = self(x.repeat(self.num_runs, *[1] * (x.dim() - 1)), seed=seed)
            outputs = classifier(copies)
            checks.all_finite("classifier", outputs)
            if reduce == "softmax":
                outputs = outputs.softmax(-1)
            elif reduce == "votes":
                outputs = one_hot(outputs.argmax(-1), outputs.shape[-1]).to(x)
            mean: Tensor = outputs.unflatten(0, (self.num_runs, len(x))).mean(0)
            return mean

    def detect(self, x: Tensor, threshold: float) -> Tensor:
        """Tell which images look attacked: those whose score has a norm above a threshold.

        :param Tensor x: **Shape:** ``(n, *event)``.
        :param float threshold: threshold for the norm of the score.
        :returns: booleans. **Shape:** ``(n,)``.
        """
        threshold = checks.number("threshold", threshold, least=0.0)
        with torch.no_grad():
            return _norms(self.score, _as_images(x)).gt(threshold)


def _adaptive_step(
    score: Score, x: Tensor, step: float, delta: float, clamp: tuple[float, float]
) -> tuple[Tensor, Tensor]:
    """Score of each image, and how far to go along it."""
    gradient = score(x)
    if gradient.shape != x.shape:
        raise ValueError(
            f"score must keep the shape of images {tuple(x.shape)}, got {checks.shown(gradient)}"
        )
    checks.all_finite("score", gradient)
    change = gradient - score(x + delta * gradient)
    checks.all_finite("score", change)
    # Take the difference first: sums over long vectors lose the precision of the paper's 1 - z.
    curvature = (gradient * change).flatten(1).sum(1)
    length = gradient.square().flatten(1).sum(1)
    is_concave = curvature > 0
    smallest, largest = clamp
    size = step * delta * length / torch.where(is_concave, curvature, 1.0)
    # Along a score that does not change the line search has no end.
    other = torch.where((curvature == 0) & (length > 0), largest, smallest)
    return gradient, torch.where(is_concave, size, other.to(size)).clamp(smallest, largest)


def _norms(score: Score, x: Tensor) -> Tensor:
    norms: Tensor = score(x).flatten(1).norm(dim=1)
    return norms


def _per_image(values: Tensor, x: Tensor) -> Tensor:
    """One value of each image, broadcast over what images hold."""
    return values.to(x).reshape(-1, *[1] * (x.dim() - 1))


def _as_images(x: Any) -> Tensor:
    images = checks.as_tensor("x", x, "(n, ...)", finite=True)
    if not images.is_floating_point() or images.dim() < 2:
        raise TypeError(
            f"x must be images (n, *event) of floating-point numbers, got {checks.shown(x)}"
        )
    return images


def _check_step(step: float, delta: float, clamp: tuple[float, float]) -> None:
    checks.number("step", step, least=0.0)
    checks.number("delta", delta, above=0.0)
    _check_pair("clamp", clamp)
    checks.number("clamp[0]", clamp[0], least=0.0)


def _check_pair(argument: str, pair: Any) -> None:
    """Check a lower and an upper bound."""
    values = checks.sequence(argument, pair, "two numbers, the smaller first")
    for number, value in enumerate(values):
        checks.number(f"{argument}[{number}]", value)
    if len(values) != 2 or values[0] >= values[1]:
        raise ValueError(f"{argument} must be two numbers, the smaller first, got {pair!r}")
