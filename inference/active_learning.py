"""Active learning: choose the points to label next by the disagreement of an ensemble."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pyro_ext._lib import checks


def mixture_moments(means: Any, variances: Any, event_dim: int = 0) -> tuple[Tensor, Tensor]:
    r"""Mean and variance of an equal mixture of normal distributions.

    .. math:: \mu = \tfrac1M \sum_m \mu_m, \qquad
              \Sigma = \tfrac1M \sum_m \Sigma_m
              + \tfrac1M \sum_m (\mu_m - \mu)(\mu_m - \mu)^\top

    :param Tensor means: means of the members. **Shape:** ``(M, *batch)``, or ``(M, *batch, d)``
        with ``event_dim=1``.
    :param Tensor variances: variances of the members. **Shape:** ``(M, *batch)``, or covariances
        ``(M, *batch, d, d)``.
    :param int event_dim: zero for numbers, one for vectors.
    :returns: mean and variance, or mean and covariance, without the first dimension.
    :raises ValueError: for shapes that do not fit, negative variances, or covariances that are not
        symmetric or have negative eigenvalues.

    Example::

        >>> mixture_moments(torch.tensor([0.0, 1.0, 2.0]), torch.tensor([1.0, 2.0, 0.5]))
        (tensor(1.), tensor(1.8333))
    """
    mean, spread = _checked(means, variances, event_dim)
    center = mean.mean(0)
    apart = mean - center
    between = apart[..., :, None] * apart[..., None, :] if event_dim else apart.square()
    return center, spread.mean(0) + between.mean(0)


def bald(means: Any, variances: Any, event_dim: int = 0) -> Tensor:
    r"""Compute the BALD acquisition score of an ensemble of normal predictions [1].

    .. math:: \alpha = \tfrac12 \Bigl(\log |\Sigma| - \tfrac1M \sum_m \log |\Sigma_m|\Bigr)

    with :math:`\Sigma` of the mixture, as in :func:`mixture_moments`. If the mixture is taken to be
    normal, too, it is the mutual information of label and member. It is never negative, and zero if
    all members agree.

    :param Tensor means: as for :func:`mixture_moments`, like the other arguments.
    :returns: **Shape:** ``batch``; average the scores of forces over the atoms afterwards.
    :raises ValueError: for shapes that do not fit, variances that are not positive, or covariances
        that are not positive definite.

    [1] N. Houlsby, F. Huszár, Z. Ghahramani, M. Lengyel (2011),
    Bayesian active learning for classification and preference learning.

    Example::

        >>> bald(torch.tensor([0.0, 1.0, 2.0]), torch.tensor([1.0, 2.0, 0.5]))
        tensor(0.3031)
    """
    _, total = mixture_moments(means, variances, event_dim)
    _, spread = _checked(means, variances, event_dim)
    if event_dim:
        whole, own = torch.linalg.slogdet(total).logabsdet, torch.linalg.slogdet(spread)
        is_positive, own = own.sign > 0, own.logabsdet
    else:
        whole, own, is_positive = total.log(), spread.log(), spread > 0
    if not bool(is_positive.all()):
        wanted = "positive definite" if event_dim else "positive"
        raise ValueError(
            f"variances must be {wanted}, got {int((~is_positive).sum())} that are not"
        )
    found: Tensor = 0.5 * (whole - own.mean(0))
    if not bool(found.isfinite().all()):
        raise ValueError("means must not be so far apart that their squares overflow")
    return found.clamp(min=0.0)


def farthest_points(points: Any, num_points: int, chosen: Any = None) -> Tensor:
    """Choose points that are far from each other: each one is the farthest from all before it.

    :param Tensor points: **Shape:** ``(n, d)``; for a molecule, use its sorted distances between
        atoms.
    :param int num_points: number of points to choose, at most as many as there are.
    :param Tensor chosen: points that count as already chosen. **Shape:** ``(m, d)``. Without them,
        the first point is the one farthest from the mean.
    :returns: indices of the points, in order of choice. **Shape:** ``(num_points,)``.
    :raises ValueError: for more points than there are, or shapes that do not fit.

    Example::

        >>> farthest_points(torch.tensor([[0.0], [1.0], [5.0], [9.0]]), 3)
        tensor([3, 0, 2])
    """
    points = checks.as_tensor("points", points, "(n, d)", finite=True)
    number = checks.integer("num_points", num_points, 1)
    if number > len(points):
        raise ValueError(f"num_points must be at most the {len(points)} points, got {num_points}")
    points = points.double()
    if chosen is None:
        first = int((points - points.mean(0)).square().sum(-1).argmax())
        order, distances = [first], torch.cdist(points, points[[first]])[:, 0]
    else:
        taken = checks.as_tensor(
            "chosen", chosen, f"(m, {points.shape[1]})", like=points, finite=True
        ).to(points)
        order, distances = [], torch.cdist(points, taken).amin(1)
    while len(order) < number:
        if order:
            distances[order] = -1.0
        order.append(int(distances.argmax()))
        distances = torch.minimum(distances, torch.cdist(points, points[[order[-1]]])[:, 0])
    return torch.tensor(order)


def best_by_turns(scores: Sequence[Any], num_points: int) -> Tensor:
    """Select the best points by several scores, which take turns choosing from those left.

    With two scores, each chooses half of the points, as energies and forces do in BALD-EF [2].

    :param scores: scores for which larger is better. **Shape:** ``(n,)`` each.
    :param int num_points: total number of points to choose, at most as many as there are.
    :returns: indices of the points, in order of choice. **Shape:** ``(num_points,)``.
    :raises ValueError: for more points than there are, or shapes that do not fit.

    [2] S. Y. Willow and others (2025), Bayesian E(3)-equivariant interatomic potential with
    iterative restratification of many-body message passing, arXiv 2510.03046.

    Example::

        >>> best_by_turns([torch.tensor([3.0, 2.0, 1.0]), torch.tensor([3.0, 1.0, 2.0])], 2)
        tensor([0, 2])
    """
    found = checks.sequence("scores", scores, "a list of tensors")
    first = checks.as_tensor("scores[0]", found[0], "(n,)", finite=True)
    ranked = [
        checks.as_tensor(f"scores[{k}]", one, f"({len(first)},)", finite=True)
        .argsort(descending=True, stable=True)
        .tolist()
        for k, one in enumerate(found)
    ]
    number = checks.integer("num_points", num_points, 1)
    if number > len(first):
        raise ValueError(f"num_points must be at most the {len(first)} points, got {num_points}")
    order: list[int] = []
    while len(order) < number:
        turn = ranked[len(order) % len(ranked)]
        order.append(next(one for one in turn if one not in order))
    return torch.tensor(order)


def _checked(means: Any, variances: Any, event_dim: int) -> tuple[Tensor, Tensor]:
    """Means and variances of members whose shapes fit."""
    if event_dim not in (0, 1) or isinstance(event_dim, bool):
        raise ValueError(f"event_dim must be 0 or 1, got {event_dim!r:.80}")
    mean = _as_floats("means", means)
    spread = _as_floats("variances", variances)
    if mean.dim() < 1 + event_dim:
        raise ValueError(f"means must have the shape (M, *batch, d), got {checks.shown(mean)}")
    wanted = (*mean.shape, *mean.shape[-1:]) if event_dim else mean.shape
    if spread.shape != wanted:
        raise ValueError(
            f"variances must have the shape {tuple(wanted)}, got {checks.shown(spread)}"
        )
    diagonal = spread.diagonal(dim1=-2, dim2=-1) if event_dim else spread
    if not bool((diagonal >= 0).all()):
        raise ValueError(f"variances must not be negative, got {float(diagonal.min()):g}")
    if event_dim:
        _check_covariances(spread)
    return mean, spread


def _as_floats(argument: str, values: Any) -> Tensor:
    """Numbers of members, of which integers become floating-point numbers."""
    found = checks.as_tensor(argument, values, "(M, ...)", finite=True)
    return found if found.is_floating_point() else found.to(torch.get_default_dtype())


def _check_covariances(matrices: Tensor) -> None:
    """Check that matrices are symmetric without negative eigenvalues, up to rounding."""
    matrices = matrices.detach()
    size = matrices.diagonal(dim1=-2, dim2=-1).amax(-1)[..., None, None]
    if bool(((matrices - matrices.mT).abs() > 1e-4 * size).any()):
        raise ValueError("variances must be symmetric matrices, got one that is not")
    eye = torch.eye(matrices.shape[-1], dtype=matrices.dtype, device=matrices.device)
    lifted = matrices + (1e-5 * size + torch.finfo(matrices.dtype).tiny) * eye
    if wrong := int((torch.linalg.cholesky_ex(lifted)[1] > 0).sum()):
        raise ValueError(f"variances must have no negative eigenvalues, got {wrong} that have")
