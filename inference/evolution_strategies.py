r"""Gradients of black-box functions, by antithetic evolution strategies.

N. Maheswaranathan, L. Metz, G. Tucker, D. Choi, J. Sohl-Dickstein (2019), Guided evolutionary
strategies: augmenting random search with surrogate gradients.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from pyro_ext._lib import checks


def antithetic_gradient(
    function: Callable[[Tensor], Tensor],
    parameters: Tensor,
    *,
    scale: float,
    num_pairs: int,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    r"""Estimate the gradient of a smoothed function from its values at pairs of points.

    .. math:: \frac{1}{2 \sigma^2 P} \sum_{p=1}^P (f(\phi + e_p) - f(\phi - e_p)) \, e_p,
              \quad e_p \sim N(0, \sigma^2 I) .

    Its expectation is the gradient of :math:`E f(\phi + e)`, which for a quadratic function equals
    that of the function itself, at any scale. If the function is random, evaluate both points of a
    pair with the same random numbers; what they have in common then cancels. A pair with a value
    that is not finite counts as having no difference.

    :param Callable function: maps points ``(2 * num_pairs, size)`` to values ``(2 * num_pairs,)``;
        rows ``p`` and ``num_pairs + p`` are a pair.
    :param Tensor parameters: :math:`\phi`. **Shape:** ``(size,)``.
    :param float scale: :math:`\sigma`, positive.
    :param int num_pairs: :math:`P`.
    :param torch.Generator generator: source of the random numbers.
    :returns: the estimate ``(size,)``, and the values at the points ``(2 * num_pairs,)``.
    :raises ValueError: for arguments out of range, or a function that returns another shape.

    Example::

        >>> estimate, _ = antithetic_gradient(
        ...     lambda points: points.square().sum(-1), torch.tensor([1.0, 2.0]), scale=0.1,
        ...     num_pairs=10_000, generator=torch.Generator().manual_seed(0))
        >>> bool(((estimate - torch.tensor([2.0, 4.0])).abs() < 0.2).all())
        True
    """
    checks.function("function", function)
    parameters = checks.as_tensor("parameters", parameters, "(size,)")
    checks.number("scale", scale, above=0)
    checks.integer("num_pairs", num_pairs, 1)
    checks.optional(
        checks.instance, "generator", generator, torch.Generator, "a torch.Generator or None"
    )
    shape = (num_pairs, *parameters.shape)
    device = parameters.device if generator is None else generator.device
    noise = torch.randn(shape, generator=generator, dtype=parameters.dtype, device=device)
    noise = scale * noise.to(parameters)
    values = function(torch.cat([parameters + noise, parameters - noise]))
    if values.shape != (2 * num_pairs,):
        raise ValueError(
            f"function must return the shape ({2 * num_pairs},), one value a point; got "
            f"{tuple(values.shape)}"
        )
    one, other = values.split(num_pairs)
    difference = torch.where(torch.isfinite(one - other), one - other, 0.0)
    return difference @ noise / (2.0 * scale**2 * num_pairs), values
