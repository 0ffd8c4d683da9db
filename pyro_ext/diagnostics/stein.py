r"""Kernel Stein discrepancy: how far draws are from a density known up to its constant.

It needs only the gradients of the log density at the draws. Unlike effective sample sizes, it also
detects the bias of a sampler that accepts every step. With the inverse multiquadric kernel, it
controls weak convergence [1]; in more than two dimensions, kernels with lighter tails do not.

[1] J. Gorham, L. Mackey (2017), Measuring sample quality with kernels.
"""

import torch
from torch import Tensor

from pyro_ext._lib import checks


def kernel_stein_discrepancy(
    samples: Tensor, gradients: Tensor, *, scale: float | Tensor = 1.0, exponent: float = -0.5
) -> Tensor:
    r"""Kernel Stein discrepancy with the inverse multiquadric kernel [1].

    .. math:: S = \Big[ \frac{1}{n^2} \sum_{i, j} k_0(x_i, x_j) \Big]^{1/2} , \quad
              k_0(x, y) = \nabla_x \cdot \nabla_y k + \nabla_x k \cdot s(y)
              + \nabla_y k \cdot s(x) + k \, s(x) \cdot s(y)

    with the gradients :math:`s = \nabla \log p` and
    :math:`k(x, y) = (1 + \sum_d (x_d - y_d)^2 / c_d^2)^\beta`, in coordinates :math:`x_d / c_d`.
    For :math:`n` exact independent draws, it is about :math:`[E\, k_0(X, X) / n]^{1/2}`, not zero.
    """
    samples = checks.as_tensor("samples", samples, "(num_draws, size)")
    gradients = checks.as_tensor("gradients", gradients, "(num_draws, size)", like=samples)
    checks.number("exponent", exponent, above=-1, below=0)
    scale = torch.as_tensor(checks.as_parameter("scale", scale))
    if samples.shape != gradients.shape:
        raise ValueError(
            "samples and gradients must have the same shape (num_draws, size), got "
            f"{tuple(samples.shape)} and {tuple(gradients.shape)}"
        )
    scale = scale.to(samples)
    if not (scale > 0).all():
        raise ValueError(f"scale must be positive, got {scale!r:.80}")
    points, scores = (samples / scale).double(), (gradients * scale).double()
    squares = torch.cdist(points, points, compute_mode="donot_use_mm_for_euclid_dist").square()
    base = 1.0 + squares
    # With x - y = d: d . s(x) for all pairs, and that of y with the other sign.
    along = (points * scores).sum(-1, keepdim=True) - scores @ points.T
    first = 2.0 * exponent * base ** (exponent - 1.0)
    second = 4.0 * exponent * (exponent - 1.0) * base ** (exponent - 2.0)
    stein = (
        -first * samples.shape[-1]
        - second * squares
        - first * (along + along.T)
        + base**exponent * (scores @ scores.T)
    )
    # The mean of a positive definite function, but for rounding.
    return stein.mean().clamp(min=0.0).sqrt()
