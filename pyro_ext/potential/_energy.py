"""A potential for samplers that differentiate a function themselves."""

import torch
from torch import Tensor

from pyro_ext.potential._potential import Potential

__all__ = ["energy"]


def energy(flat: Tensor, potential: Potential) -> Tensor:
    """Potential of one chain, whose gradient comes with it rather than from another pass.

    :param Tensor flat: unconstrained. **Shape:** ``(size,)``.
    :param Potential potential: of a model without minibatches.
    :returns: a scalar.

    Example::

        >>> def model():
        ...     pyro.sample("loc", dist.Normal(0.0, 1.0))
        >>> from pyro_ext.potential import Potential
        >>> place = torch.tensor([2.0], requires_grad=True)
        >>> torch.autograd.grad(energy(place, Potential(model)), place)
        (tensor([2.]),)
    """
    value: Tensor = _Energy.apply(flat, potential)  # type: ignore[no-untyped-call]
    return value


class _Energy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, flat: Tensor, of: Potential) -> Tensor:
        value, gradient = of.gradient(flat.detach().unsqueeze(0))
        ctx.save_for_backward(gradient[0])
        result: Tensor = value[0]
        return result

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *outer: Tensor) -> tuple[Tensor, None]:
        (gradient,) = ctx.saved_tensors  # type: ignore[attr-defined]
        return outer[0] * gradient, None
