"""Pareto fronts, their hypervolume, and the expected improvement of it by another point."""

import math

import torch
from torch import Tensor

from pyro_ext._lib import checks


def pareto_mask(points: Tensor) -> Tensor:
    """Return a mask of the Pareto-optimal points, with all objectives maximized.

    A point dominates another if it is nowhere smaller and somewhere larger, so that equal points
    are either all in the mask or all outside.

    :param Tensor points: **Shape:** ``(*batch, num_points, num_objectives)``.
    :returns: booleans. **Shape:** ``(*batch, num_points)``.
    :raises ValueError: for another shape, or for numbers that are not finite.

    Example::

        >>> pareto_mask(torch.tensor([[0.3, 0.8], [0.2, 0.7], [0.9, 0.1]]))
        tensor([ True, False,  True])
    """
    points = _points("points", points)
    one, other = points[..., :, None, :], points[..., None, :, :]
    is_dominated = (other >= one).all(-1) & (other > one).any(-1)
    return ~is_dominated.any(-1)


def hypervolume(points: Tensor, reference: Tensor) -> Tensor:
    r"""Volume that the points dominate above a reference point, :math:`HV(Y; r)` [1].

    All objectives are maximized. A point that does not exceed the reference in all of them adds
    nothing. Two objectives take one sort; each further objective multiplies the time by the number
    of points.

    :param Tensor points: :math:`Y`. **Shape:** ``(*batch, num_points, num_objectives)``.
    :param Tensor reference: :math:`r`. **Shape:** ``(num_objectives,)``.
    :returns: the volume, with gradients in the points. **Shape:** ``(*batch,)``.
    :raises ValueError: for shapes that do not fit, or for numbers that are not finite.

    [1] E. Zitzler, L. Thiele (1999), Multiobjective evolutionary algorithms.

    Example::

        >>> points = torch.tensor([[0.3, 0.8], [0.6, 0.5], [0.9, 0.1]])
        >>> hypervolume(points, torch.zeros(2))
        tensor(0.4200)
    """
    points = _points("points", points)
    return _volume((points - _reference(reference, points)).clamp(min=0.0))


def expected_hypervolume_improvement(
    mean: Tensor, sd: Tensor, front: Tensor, reference: Tensor
) -> Tensor:
    r"""Expected gain of hypervolume from one more point with two normal objectives [1].

    Sort the front by its first objective, :math:`(a_1, b_1), \dots, (a_n, b_n)`, and set
    :math:`a_0 = r_1`, :math:`b_{n+1} = r_2` and :math:`a_{n+1} = \infty` from the reference
    :math:`r`. The plane above the reference falls into strips, and

    .. math::

        EHVI = \sum_{i=1}^{n+1} [\psi_1(a_{i-1}) - \psi_1(a_i)]\, \psi_2(b_i), \qquad
        \psi_j(c) = E (Y_j - c)_+ .

    :param Tensor mean: means of the candidates' objectives, which are independent and maximized.
        **Shape:** ``(*batch, 2)``.
    :param Tensor sd: their standard deviations; zero for known values. **Shape:** as the mean.
    :param Tensor front: the existing points; dominated ones do not matter.
        **Shape:** ``(num_points, 2)``.
    :param Tensor reference: :math:`r`. **Shape:** ``(2,)``.
    :returns: the gain, with gradients in mean and standard deviation. **Shape:** ``(*batch,)``.
    :raises ValueError: for shapes that do not fit, negative standard deviations, or numbers that
        are not finite.

    [1] M. Emmerich, K. Yang, A. Deutz, H. Wang, C. M. Fonseca (2016),
    A multicriteria generalization of Bayesian global optimization.

    Example::

        >>> front = torch.tensor([[0.3, 0.8], [0.6, 0.5], [0.9, 0.1]])
        >>> mean, sd = torch.tensor([0.7, 0.6]), torch.tensor([0.2, 0.15])
        >>> expected_hypervolume_improvement(mean, sd, front, torch.zeros(2))
        tensor(0.1055)
    """
    mean = checks.as_tensor("mean", mean, "(*batch, 2)", finite=True)
    sd = checks.as_tensor("sd", sd, "(*batch, 2)", like=mean, finite=True)
    front = checks.as_tensor(
        "front", front, "(num_points, 2)", like=mean, finite=True, allow_empty=True
    )
    reference = _reference(reference, mean)
    if sd.shape != mean.shape:
        raise ValueError(
            f"sd must have the shape of mean, {tuple(mean.shape)}, got {checks.shown(sd)}"
        )
    if bool((sd < 0).any()):
        raise ValueError(f"sd must be >= 0, got {float(sd.detach().min()):g} in {checks.shown(sd)}")
    # Below the reference a point is worth nothing, whichever objective puts it there.
    front = front[(front > reference).all(-1)]
    if len(front):
        front = front[pareto_mask(front)].unique(dim=0)  # sorted by the first objective
    a = torch.cat([reference[:1], front[:, 0]])
    b = torch.cat([front[:, 1], reference[1:]])
    psi_1 = _mean_excess(mean[..., :1], sd[..., :1], a)
    psi_2 = _mean_excess(mean[..., 1:], sd[..., 1:], b)
    widths = psi_1 - torch.cat([psi_1[..., 1:], torch.zeros_like(psi_1[..., :1])], -1)
    return (widths * psi_2).sum(-1)


def _mean_excess(mean: Tensor, sd: Tensor, level: Tensor) -> Tensor:
    r""":math:`E (Y - c)_+` of a normal number."""
    sd = sd.clamp(min=torch.finfo(sd.dtype).tiny ** 0.5)  # zero would have no gradient
    scaled = (mean - level) / sd
    density = torch.exp(-0.5 * scaled.square()) / math.sqrt(2.0 * math.pi)
    excess: Tensor = (mean - level) * torch.special.ndtr(scaled) + sd * density
    return excess.clamp(min=0.0)


def _volume(points: Tensor) -> Tensor:
    """Hypervolume of points that are nowhere negative, above the origin."""
    if not points.shape[-2]:
        return points.sum((-2, -1))
    if points.shape[-1] == 1:
        return points[..., 0].amax(-1)
    order = points[..., -1].argsort(dim=-1, descending=True)
    points = points.gather(-2, order[..., None].expand_as(points))
    heights, others = points[..., -1], points[..., :-1]
    thickness = heights - torch.cat([heights[..., 1:], torch.zeros_like(heights[..., :1])], -1)
    if others.shape[-1] == 1:
        return (thickness * others[..., 0].cummax(-1).values).sum(-1)
    slices = [_volume(others[..., : n + 1, :]) for n in range(others.shape[-2])]
    return (thickness * torch.stack(slices, -1)).sum(-1)


def _points(argument: str, value: Tensor) -> Tensor:
    shape = "(*batch, num_points, num_objectives)"
    points = checks.as_tensor(argument, value, shape, allow_empty=True)
    checks.all_finite(argument, points)
    return points if points.is_floating_point() else points.to(torch.get_default_dtype())


def _reference(value: Tensor, points: Tensor) -> Tensor:
    size = points.shape[-1]
    return checks.as_tensor("reference", value, f"({size},)", like=points, finite=True).to(points)
