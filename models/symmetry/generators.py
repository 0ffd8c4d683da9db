"""Generators of continuous symmetries, learned from data [1].

[1] G. Ko, H. Kim, J. Lee (2024), Learning infinitesimal generators of continuous symmetries from
data.
"""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Unpack, cast

import torch
from torch import Tensor
from torch.func import jvp
from torch.nn import functional

from pyro_ext._lib import checks
from pyro_ext._lib.hints import refuses_moved
from pyro_ext.checkpoint.files import digest_of
from pyro_ext.inference.training import ShuffledBatches, Trainer, TrainingOptions
from pyro_ext.inference.training.checkpoints import seed_of
from pyro_ext.inference.training.outcome import warn_of_validation
from pyro_ext.inference.training.trainer import Optimizer
from pyro_ext.nn.flows import flow
from pyro_ext.nn.generators import (
    VectorField,
    as_floating,
    field_values,
    image_grid,
    inner_products,
)
from pyro_ext.random import seeded

Features = Callable[[Tensor], Tensor]
Validity = Callable[..., Tensor]

_ADAM = partial(torch.optim.Adam, lr=1e-3)
_LEAST_STEPS, _LEAST_GAIN = 100, 0.3  # part of a score by which fields at random may differ
_MARGIN = 1e-6  # between a cosine and one, where the angle has no gradient


# Losses ------------------------------------------------------------------------------------------


def ortho_loss(values: Tensor, weights: Tensor | None = None) -> Tensor:
    r"""Penalize fields that are not orthogonal; of two fields, only the later gets a gradient [1].

    .. math:: \sum_{a<b} \frac{\pi}{2} - \arccos |\langle \tilde V_a, \tilde V_b \rangle|

    No gradient goes through :math:`\tilde V_a`. Cosines are at most :math:`1 - 10^{-6}`.

    :param Tensor values: fields at points. **Shape:** ``(n, *grid, dim)``.
    :param Tensor weights: weights of the points, see :func:`~pyro_ext.nn.inner_products`.
        **Shape:** ``(*grid)``.

    [1] G. Ko, H. Kim, J. Lee (2024),
    Learning infinitesimal generators of continuous symmetries from data.

    Example::

        >>> ortho_loss(torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]]]))
        tensor(0.)
    """
    values = field_values(values)
    # By powers of two, which are exact, so that no square is too small or too large.
    size = values.detach().abs().flatten(1).amax(1).clamp(min=2.0**-120)
    power = (size.frexp()[0] / size).reshape(-1, *[1] * (values.dim() - 1))
    norms = inner_products(power * values.detach(), weights).diagonal().sqrt()
    if not bool((norms > 0).all()):
        raise ValueError(
            "values must hold fields that are not zero, got norms "
            f"{(norms / power.flatten()).tolist()}"
        )
    total = values.new_zeros(())
    for later in range(1, len(values)):
        for earlier in range(later):
            pair = torch.stack([values[earlier].detach(), values[later]])
            products = inner_products(power[[earlier, later]] * pair, weights)
            cosine = products[0, 1].abs() / products.diagonal().prod().sqrt()
            total = total + math.pi / 2 - cosine.clamp(max=1 - _MARGIN).acos()
    return total


def lipschitz_loss(
    values: Tensor,
    threshold: float = 0.5,
    *,
    points: Tensor | None = None,
    grid_dim: int | None = None,
) -> Tensor:
    r"""Penalize differences between neighbors on a grid that exceed a threshold [1].

    .. math:: \sum_{i \sim j} \max(0, \|V(z_i) - V(z_j)\| - \tau)

    :param Tensor values: fields on a grid. **Shape:** ``(n, *grid, dim)``.
    :param float threshold: :math:`\tau`.
    :param Tensor points: positions of the grid's points. If given, differences are divided by
        distances, and each direction of the grid counts by its mean instead of its sum; neighbors
        at the same place do not count. **Shape:** ``(*grid, dim)``.
    :param int grid_dim: number of axes before the last that belong to the grid; others are batch
        axes. By default all except the first.

    [1] G. Ko, H. Kim, J. Lee (2024),
    Learning infinitesimal generators of continuous symmetries from data.

    Example::

        >>> lipschitz_loss(torch.tensor([[[0.0], [1.0], [1.2]]]))
        tensor(0.5000)
    """
    values = field_values(values)
    checks.number("threshold", threshold, least=0)
    if points is not None:
        shape = str(tuple(values.shape[1:]))
        points = as_floating(checks.as_tensor("points", points, shape, finite=True))
    grid_dim = values.dim() - 2 if grid_dim is None else checks.integer("grid_dim", grid_dim, 1)
    if grid_dim > values.dim() - 2:
        raise ValueError(f"grid_dim must be at most {values.dim() - 2}, got {grid_dim}")
    total = values.new_zeros(())
    for axis in range(-1 - grid_dim, -1):
        size = torch.linalg.vector_norm(values.diff(dim=axis), dim=-1)
        if points is None:
            total = total + (size - threshold).clamp(min=0).sum()
        elif size.numel():
            distance = torch.linalg.vector_norm(points.diff(dim=axis), dim=-1)
            is_apart = distance > 0
            slope = size / torch.where(is_apart, distance, torch.ones_like(distance))
            excess = (slope - threshold).clamp(min=0) * is_apart
            total = total + (excess.flatten(1).sum(1) / is_apart.sum().clamp(min=1)).sum()
    return total


def sobolev_loss(values: Tensor) -> Tensor:
    r"""Penalize the variation of fields along a periodic axis, on a logarithmic scale [1].

    .. math:: \log \frac{1}{K} \sum_k ((1 + k^2)^2 - 1) |\hat V_k|^2, \text{ mean over the rest}

    :param Tensor values: fields on a grid whose last axis is periodic.
        **Shape:** ``(n, *grid, dim)``.

    [1] G. Ko, H. Kim, J. Lee (2024),
    Learning infinitesimal generators of continuous symmetries from data.

    Example::

        >>> angle = torch.arange(8)[None, :, None] * 2 * torch.pi / 8
        >>> sobolev_loss(angle.cos()) < sobolev_loss((2 * angle).cos())
        tensor(True)
    """
    values = field_values(values)
    spectrum = torch.fft.rfft(values, dim=-2, norm="forward").abs().square()
    k = torch.arange(spectrum.shape[-2], dtype=values.dtype, device=values.device)
    size = (((1 + k * k) ** 2 - 1)[:, None] * spectrum).mean(-2)
    result: Tensor = size.clamp(min=torch.finfo(values.dtype).tiny).log().mean()
    return result


# Images ------------------------------------------------------------------------------------------


def warp_images(images: Tensor, grid: Tensor) -> Tensor:
    """Sample all images at the coordinates of each grid; outside of the images, values are zero.

    :param Tensor images: **Shape:** ``(batch, channels, height, width)``.
    :param Tensor grid: coordinates, as from :func:`~pyro_ext.nn.image_grid`.
        **Shape:** ``(*sample, rows, columns, 2)``.
    :returns: **Shape:** ``(*sample, batch, channels, rows, columns)``.

    Example::

        >>> from pyro_ext.nn import image_grid
        >>> images = torch.rand(5, 3, 8, 8)
        >>> torch.allclose(warp_images(images, image_grid(8, 8)), images, atol=1e-6)
        True
    """
    images = _images(images)
    grid = checks.as_tensor("grid", grid, "(*sample, rows, columns, 2)", like=images, finite=True)
    grid = grid.to(images)
    sample, size = grid.shape[:-3], grid.shape[-3:-1]
    grids = grid.reshape(-1, *size, 2)
    as_channels = images.reshape(1, -1, *images.shape[-2:]).expand(len(grids), -1, -1, -1)
    moved = functional.grid_sample(as_channels, grids, align_corners=True)
    return moved.reshape(*sample, *images.shape[:2], *size)


def validity_images(features: Features, images: Tensor, grid: Tensor) -> Tensor:
    r"""Mean angle between features of images before and after a warp; smaller is better [1].

    .. math:: S = E \arccos \cos(H(\phi(x)), H(x))

    :param Callable features: :math:`H`, for example all but the last layer of a classifier in
        evaluation mode. Train it *without* augmentation, which would hide the symmetries to be
        learned. It maps images to the shape ``(batch, num_features)``.
    :param Tensor images: **Shape:** ``(batch, channels, height, width)``.
    :param Tensor grid: sampling coordinates of each field. **Shape:** ``(n, height, width, 2)``.
    :returns: angles in radians. **Shape:** ``(n,)``.

    [1] G. Ko, H. Kim, J. Lee (2024),
    Learning infinitesimal generators of continuous symmetries from data.

    Example::

        >>> from pyro_ext.nn import image_grid
        >>> grids = torch.stack([image_grid(8, 8), -image_grid(8, 8)])
        >>> angles = validity_images(lambda x: x.flatten(1), torch.rand(5, 1, 8, 8), grids)
        >>> angles[0] < angles[1]
        tensor(True)
    """
    checks.function("features", features, "a function of images")
    images = _images(images)
    grid = checks.as_tensor("grid", grid, "(n, rows, columns, 2)", finite=True)
    moved = warp_images(images, grid)
    with torch.no_grad():
        before = _features(features, images)
    after = _features(features, moved.flatten(0, 1)).unflatten(0, moved.shape[:2])
    cosine = functional.cosine_similarity(after, before, dim=-1)
    return cosine.clamp(-1 + _MARGIN, 1 - _MARGIN).acos().mean(-1)


def validity_images_tangent(features: Features, images: Tensor, velocity: Tensor) -> Tensor:
    r"""Logarithm of how fast unit features change along fields, without a flow [1].

    This is the paper's infinitesimal variant of :func:`validity_images`, for ``flow_steps=0`` in
    :func:`train_generators`.

    :param Callable features: see :func:`validity_images`; must support forward-mode derivatives.
    :param Tensor images: **Shape:** ``(batch, channels, height, width)``.
    :param Tensor velocity: velocity of the pixels. **Shape:** ``(n, height, width, 2)``.
    :returns: :math:`\log E \|\partial H / \|H\|\|^2`. **Shape:** ``(n,)``.

    [1] G. Ko, H. Kim, J. Lee (2024),
    Learning infinitesimal generators of continuous symmetries from data.

    Example::

        >>> still = torch.full((1, 8, 8, 2), 1e-3)
        >>> validity_images_tangent(lambda x: x.flatten(1), torch.rand(5, 1, 8, 8), still).shape
        torch.Size([1])
    """
    checks.function("features", features, "a function of images")
    images = _images(images)
    velocity = checks.as_tensor(
        "velocity", velocity, "(n, height, width, 2)", like=images, finite=True
    )
    velocity = velocity.to(images)
    if velocity.shape[1:-1] != images.shape[-2:]:
        raise ValueError(
            f"velocity must be of the images' {tuple(images.shape[-2:])} pixels, got the shape "
            f"{tuple(velocity.shape)}"
        )
    slopes = _image_slopes(images)
    change = sum(slopes[axis] * velocity[:, None, None, ..., axis] for axis in range(2))
    change = cast(Tensor, change)
    _, moved, *_ = jvp(
        lambda x: functional.normalize(_features(features, x), dim=-1),
        (images.expand_as(change).flatten(0, 1).contiguous(),),
        (change.flatten(0, 1),),
    )
    size = moved.square().sum(-1).unflatten(0, change.shape[:2]).mean(-1)
    result: Tensor = size.clamp(min=1e-12).log()
    return result


def feature_weights(
    features: Features,
    images: Tensor,
    num_windows: int = 2000,
    *,
    width: float = 0.1,
    batch_size: int = 100,
    seed: int | None = None,
) -> Tensor:
    """Weight pixels by how much features of images change if the image is shifted there [1].

    Images are shifted in a random direction within Gaussian windows at random places. The weight of
    a pixel is the mean squared change of the features, weighted by the windows' height there. It is
    near zero where images are empty, and fields are unconstrained there.

    :param Callable features: see :func:`validity_images_tangent`.
    :param Tensor images: **Shape:** ``(batch, channels, height, width)``.
    :param int num_windows: number of windows, each on a random image.
    :param float width: standard deviation of a window, in the coordinates of
        :func:`~pyro_ext.nn.image_grid`.
    :param int batch_size: number of windows at a time.
    :param int seed: seed of all draws; ``None`` uses PyTorch's global generator.
    :returns: weights with mean one. **Shape:** ``(height, width)``.

    [1] G. Ko, H. Kim, J. Lee (2024),
    Learning infinitesimal generators of continuous symmetries from data.

    Example::

        >>> images = torch.zeros(4, 1, 8, 8)
        >>> images[..., 2:6, 2:6] = torch.rand(4, 1, 4, 4)
        >>> weights = feature_weights(lambda x: x.flatten(1), images, 100, seed=0)
        >>> weights[0, 0] < weights[3, 3]
        tensor(True)
    """
    checks.function("features", features, "a function of images")
    images = _images(images)
    checks.integer("num_windows", num_windows, 1)
    checks.number("width", width, above=0)
    checks.integer("batch_size", batch_size, 1)
    points = image_grid(*images.shape[-2:], dtype=images.dtype, device=images.device)
    total, mass = torch.zeros_like(points[..., 0]), torch.zeros_like(points[..., 0])
    slopes = _image_slopes(images)
    with seeded(seed), torch.no_grad():
        for start in range(0, num_windows, batch_size):
            size = min(batch_size, num_windows - start)
            chosen = torch.randint(len(images), (size,)).to(images.device)
            center = (2 * torch.rand(size, 1, 1, 2) - 1).to(images)
            angle = 2 * math.pi * torch.rand(size, 1, 1, 1).to(images)
            window = ((points - center).square().sum(-1) / (-2 * width**2)).exp()
            shift = angle.cos() * slopes[0][chosen] + angle.sin() * slopes[1][chosen]
            _, change, *_ = jvp(
                partial(_features, features), (images[chosen],), (window[:, None] * shift,)
            )
            response = change.square().sum(-1)[:, None, None]
            total += (response * window).sum(0)
            mass += window.sum(0)
    weights = total / mass.clamp(min=torch.finfo(mass.dtype).tiny)
    if not bool(weights.any()):
        raise ValueError("images must be such that a shift changes their features, got no change")
    return weights / weights.mean()


def _images(images: Any) -> Tensor:
    """Images as floating-point numbers."""
    shape = "(batch, channels, height, width)"
    return as_floating(checks.as_tensor("images", images, shape, finite=True))


def _features(features: Features, images: Tensor) -> Tensor:
    """Features, checked."""
    values = features(images)
    if not isinstance(values, Tensor) or values.dim() != 2 or len(values) != len(images):
        raise ValueError(
            "features must give the shape (batch, num_features), got "
            f"{tuple(values.shape) if isinstance(values, Tensor) else values!r:.80}"
        )
    return values


def _image_slopes(images: Tensor) -> tuple[Tensor, Tensor]:
    """Derivatives of images in ``x`` and ``y``."""
    height, width = images.shape[-2:]
    if min(height, width) < 2:
        raise ValueError(f"images must have two rows and columns, got {tuple(images.shape)}")
    spacing = (2 / (height - 1), 2 / (width - 1))
    y, x = torch.gradient(images, spacing=spacing, dim=(-2, -1))
    return x, y


# Training ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class GeneratorLoss:
    """The flows of :func:`train_generators`, and the weights of its penalties.

    :param float sigma: longest time of a flow.
    :param int flow_steps: number of steps of the solver. With 0 there is no flow, and the validity
        receives the normalized fields at the points instead of moved points.
    :param float ortho: weight of :func:`ortho_loss`.
    :param float lipschitz: weight of :func:`lipschitz_loss`. Neighboring points of the grid must be
        close to each other; scattered points require zero. For points from a minibatch, differences
        are divided by distances, and by the number of pairs.
    :param float threshold: threshold of :func:`lipschitz_loss`.
    :param float sobolev: weight of :func:`sobolev_loss`, for grids whose last axis is periodic.
    """

    sigma: float = 0.4
    flow_steps: int = 8
    ortho: float = 10.0
    lipschitz: float = 10.0
    threshold: float = 0.5
    sobolev: float = 0.0

    def __post_init__(self) -> None:
        """Check the numbers."""
        checks.number("sigma", self.sigma, above=0)
        checks.integer("flow_steps", self.flow_steps, 0)
        for name in ("ortho", "lipschitz", "threshold", "sobolev"):
            checks.number(name, getattr(self, name), least=0)


_LOSS = GeneratorLoss()


@refuses_moved
def train_generators(
    field: VectorField,
    validity: Validity,
    num_steps: int,
    batches: ShuffledBatches | None = None,
    *,
    points: Tensor | None = None,
    weights: Tensor | None = None,
    loss: GeneratorLoss = _LOSS,
    optimizer: Optimizer = _ADAM,
    scheduler: Callable[[Any], Any] | None = None,
    max_norm: float | None = None,
    seed: int | None = None,
    **training: Unpack[TrainingOptions],
) -> list[float]:
    r"""Learn fields whose flows preserve the validity of something [1].

    .. math:: \sum_a S(\phi^a_s) + w_1 L_\text{ortho} + w_2 L_\text{Lipschitz}
        + w_3 L_\text{Sobolev}

    for a time :math:`s` whose size is drawn from :math:`\mathrm{Uniform}(0, \sigma)` at each step,
    with a sign for each field. Fields are first normalized over the points, once for a whole flow,
    so that it is a one-parameter group. (For images, the paper's code normalizes fields again at
    each step of the solver.) Later fields give way to earlier ones, so that those with the lowest
    scores come first. Fields are determined up to sign, and up to mixing among similar scores.

    :param VectorField field: the fields to train, such as a :class:`~pyro_ext.nn.GeneratorField`.
    :param Callable validity: :math:`S` of each field, ``(n,)``: a function of moved points
        ``(n, *grid, dim)`` and then of the tensors of a minibatch. If it has a method ``identity``
        that returns plain values, a checkpoint compares these. Fields that are equally bad should
        get equal values; use an angle or a logarithm, for example.
    :param int num_steps: number of optimizer steps.
    :param ShuffledBatches batches: further arguments of the validity.
    :param Tensor points: the points to move, such as :func:`~pyro_ext.nn.image_grid`; by default
        the first tensor of a minibatch. **Shape:** ``(*grid, dim)``.
    :param Tensor weights: weights of the points, such as :func:`feature_weights`. **Shape:**
        ``(*grid)``.
    :param GeneratorLoss loss: :math:`\sigma` and :math:`w`.
    :param Callable optimizer: makes an optimizer from a list of parameters.
    :param Callable scheduler: as for :class:`~pyro_ext.inference.Trainer`.
    :param float max_norm: norm to which the gradient is clipped.
    :param int seed: seed of all draws; ``None`` takes the seed of the checkpoint if it exists, and
        otherwise one from PyTorch's generator.
    :param training: options of :class:`~pyro_ext.inference.training.TrainingOptions`.
    :returns: the loss of each step.
    :raises TrainingDiverged: if loss or gradient are not finite.

    [1] G. Ko, H. Kim, J. Lee (2024),
    Learning infinitesimal generators of continuous symmetries from data.

    Example::

        >>> from pyro_ext.nn import GeneratorField, image_grid
        >>> points = image_grid(8, 8)
        >>> radius = points.norm(dim=-1)
        >>> losses = train_generators(
        ...     GeneratorField(2, 1),
        ...     lambda moved: (moved.norm(dim=-1) - radius).abs().mean((-1, -2)),
        ...     10, points=points, seed=0, progress=False)
        >>> len(losses)
        10
    """
    checks.instance("field", field, VectorField, "a VectorField")
    checks.function("validity", validity)
    checks.integer("num_steps", num_steps, 0)
    checks.optional(checks.instance, "batches", batches, ShuffledBatches, "ShuffledBatches or None")
    points = checks.optional(
        checks.as_tensor, "points", points, f"(*grid, {field.dim})", finite=True, allow_empty=False
    )
    points = None if points is None else as_floating(points)
    if points is None and batches is None:
        raise ValueError("points must be given if there are no batches, got None")
    if weights is not None:
        shape = None if points is None else str(tuple(points.shape[:-1]))
        weights = checks.as_tensor("weights", weights, shape, finite=True)
    checks.instance("loss", loss, GeneratorLoss, "a GeneratorLoss")
    sigma, flow_steps = loss.sigma, loss.flow_steps
    data = {"points": points, "weights": weights}
    trainer = Trainer(
        field,
        optimizer,
        scheduler=scheduler,
        max_norm=max_norm,
        identity={
            "num_steps": num_steps,
            "loss": asdict(loss),
            "data": digest_of({k: v for k, v in data.items() if v is not None}),
            "validity": validity.identity() if hasattr(validity, "identity") else None,
        },
        seed=seed_of(seed, training.get("checkpoint")),
    )

    def of_batch(*batch: Tensor) -> Tensor:
        z = batch[0] if points is None else points
        values = field(z).movedim(-2, 0)
        scale = field._inverse_norms(z, weights).reshape(-1, *[1] * z.dim())
        values = scale * values
        if flow_steps:
            sign = 2.0 * torch.randint(2, (field.n,)) - 1
            s = (sigma * torch.rand(()) * sign).to(z).reshape(-1, *[1] * (z.dim() - 1))
            moved = flow(
                lambda y: scale * field.each(y),
                z.expand(field.n, *z.shape),
                s,
                num_steps=flow_steps,
            )
        else:
            moved = values
        total = _checked_scores(validity(moved, *batch), field.n).sum()
        if loss.ortho and field.n > 1:
            total = total + loss.ortho * ortho_loss(values, weights)
        if loss.lipschitz:
            between: dict[str, Any] = {}
            if points is None:
                between = {"points": z, "grid_dim": max(z.dim() - 2, 1)}
            total = total + loss.lipschitz * lipschitz_loss(values, loss.threshold, **between)
        if loss.sobolev:
            total = total + loss.sobolev * sobolev_loss(values)
        return total

    batch = () if batches is None else batches.batch(0, 0)
    z = batch[0] if points is None else points
    options: dict[str, Any] = dict(weights=weights, sigma=sigma, flow_steps=flow_steps)
    score = partial(validity_scores, field, validity, z, *batch, **options)
    untrained = float(score().min()) if flow_steps and num_steps >= _LEAST_STEPS else None
    description = "Training generators"
    losses = trainer.run(of_batch, num_steps, batches, description=description, **training)
    if untrained is not None and not trainer.interrupted:
        what, best = "the validity of the best field", float(score().min())
        advice = "take GeneratorLoss(lipschitz=0) for points off a grid"
        warn_of_validation(what, best, untrained, least=_LEAST_GAIN, advice=advice)
    return losses


@torch.no_grad()
def validity_scores(
    field: VectorField,
    validity: Validity,
    points: Tensor,
    *batch: Tensor,
    weights: Tensor | None = None,
    sigma: float = 0.4,
    num_times: int = 8,
    flow_steps: int = 8,
) -> Tensor:
    r"""Mean validity of normalized fields, at times from :math:`-\sigma` to :math:`\sigma`.

    :param VectorField field: the fields.
    :param Callable validity: as for :func:`train_generators`.
    :param Tensor points: the points to move. **Shape:** ``(*grid, dim)``.
    :param Tensor batch: further arguments of the validity.
    :param Tensor weights: weights of the points. **Shape:** ``(*grid)``.
    :param float sigma: the longest time.
    :param int num_times: number of times; they are the midpoints of as many equal intervals.
    :param int flow_steps: number of steps of the solver.
    :returns: **Shape:** ``(n,)``.

    Example::

        >>> from pyro_ext.models.symmetry import AffineField
        >>> points = 2 * torch.rand(100, 2) - 1
        >>> level = points[..., 0]
        >>> scores = validity_scores(
        ...     AffineField(2), lambda moved: (moved[..., 0] - level).abs().mean(-1), points)
        >>> scores[1] == 0, scores[0] > 0
        (tensor(True), tensor(True))
    """
    checks.instance("field", field, VectorField, "a VectorField")
    checks.function("validity", validity)
    points = as_floating(checks.as_tensor("points", points, f"(*grid, {field.dim})", finite=True))
    checks.number("sigma", sigma, above=0)
    checks.integer("num_times", num_times, 1)
    checks.integer("flow_steps", flow_steps, 1)
    normal = field.normalized(points, weights)
    start = points.expand(field.n, *points.shape)
    total = points.new_zeros(field.n)
    for number in range(num_times):
        s = sigma * ((2 * number + 1) / num_times - 1)
        moved = flow(normal.each, start, s, num_steps=flow_steps)
        total += _checked_scores(validity(moved, *batch), field.n)
    return total / num_times


def _checked_scores(scores: Any, n: int) -> Tensor:
    if not isinstance(scores, Tensor) or scores.shape != (n,):
        got = tuple(scores.shape) if isinstance(scores, Tensor) else f"{scores!r:.80}"
        raise ValueError(f"validity must give a tensor of the shape ({n},), got {got}")
    return scores
