"""Coordinates in which second derivatives are near one."""

import torch
from torch import Tensor

__all__ = ["whitening_factor"]

_ROUNDS = 16
"""Each halves the logarithms of what is left; this many balance any scales of double precision."""


def whitening_factor(hessian: Tensor, resolution: float) -> Tensor:
    r"""Factor of the inverse of second derivatives, whose signs do not matter.

    With second derivatives :math:`H = V \operatorname{diag}(c) V^T` it is a :math:`F` with
    :math:`F F^T = V \operatorname{diag}(1 / |c|) V^T`, up to what follows. Coordinates are first
    put on one scale, so that :math:`H` has a unit diagonal where it is positive definite. What is
    flat or merely rounding is told from the scales of the coordinates only after that: a
    coefficient of incomes and one of shares of one have curvatures that are many powers of ten
    apart.

    :param Tensor hessian: symmetric up to rounding, and finite. **Shape:** ``(size, size)``.
    :param float resolution: its relative error. A curvature on one scale that is a smaller share of
        the largest is taken as that share.
    :returns: :math:`F`, with the unit vector of a coordinate that the function does not depend on.
        **Shape:** ``(size, size)``.

    Example::

        >>> whitening_factor(torch.tensor([[1e12, 0.0], [0.0, 4.0]]), 1e-6).abs().sum(1)
        tensor([1.0000e-06, 5.0000e-01])
    """
    hessian = 0.5 * (hessian + hessian.mT)
    unit = torch.ones_like(hessian[0])
    for _ in range(_ROUNDS):
        # The largest entry of each row becomes one; of a positive definite matrix it is then that
        # on the diagonal. The diagonal alone may vanish at a saddle.
        largest = (unit[:, None] * hessian * unit).abs().amax(1)
        unit = unit * torch.where(largest > 0, largest, 1.0).rsqrt()
    balanced = unit[:, None] * hessian * unit
    is_free = (hessian == 0).all(1).to(hessian)
    curvature, directions = torch.linalg.eigh(balanced + is_free.diag())
    curvature = curvature.abs()
    scales = curvature.clamp(min=resolution * float(curvature.max())).rsqrt()
    # The symmetric root: unlike the directions it is a smooth function of the derivatives, so that
    # rounding does not turn the coordinates where some curvatures are equal.
    factor: Tensor = unit[:, None] * ((directions * scales) @ directions.mT)
    return factor
