"""Whether two results differ by more than rounding explains."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["agree_but_for_rounding", "outputs_agree"]

_ROUNDINGS = 8.0
_NUM_PERTURBED = 4


def outputs_agree(actual: object, expected: object) -> bool:
    """Whether two results are equal but for rounding; the scale is that of each whole tensor.

    :param actual: tensors in any structure.
    :param expected: the same.
    """
    pairs = zip(pytree.tree_leaves(actual), pytree.tree_leaves(expected), strict=True)
    return all(_leaves_agree(one, other) for one, other in pairs)


def agree_but_for_rounding(
    again: Callable[[], Any], actual: object, expected: object
) -> bool | None:
    """Whether two results are equal but for rounding, as large as the function at hand makes it.

    Results that are near each other agree. Others are measured by how far the function's result
    moves where each number that an operation takes is off by a rounding: as much as conditioning
    makes of it. What a branch does, or a frozen number, is more, unless the point tells nothing.

    :param again: computes one of the two results anew, of the same arguments.
    :param actual: tensors in any structure.
    :param expected: the same.
    :returns: ``None`` where rounding decides whether the result is finite, so that nothing can be
        told.

    Example::

        >>> def difference():
        ...     return (1e6 + torch.tensor(0.3)) - 1e6
        >>> difference(), agree_but_for_rounding(difference, difference(), torch.tensor(0.3))
        (tensor(0.3125), True)
    """
    if outputs_agree(actual, expected):
        return True
    center = pytree.tree_leaves(again())
    spreads = [0.0] * len(center)
    for seed in range(_NUM_PERTURBED):
        with _Perturbation(seed):
            perturbed = pytree.tree_leaves(again())
        for place, (leaf, other) in enumerate(zip(center, perturbed, strict=True)):
            finite = leaf.isfinite()
            if not torch.equal(finite, other.isfinite()):
                return None
            if leaf.is_floating_point() and finite.any():
                spreads[place] = max(spreads[place], float((leaf - other)[finite].abs().max()))
    pairs = zip(pytree.tree_leaves(actual), pytree.tree_leaves(expected), spreads, strict=True)
    return all(_leaves_agree(one, other, _ROUNDINGS * spread) for one, other, spread in pairs)


def _leaves_agree(actual: Tensor, expected: Tensor, rounding: float = 0.0) -> bool:
    """Whether two tensors are equal, but for a share of the largest number, and for rounding."""
    if not expected.is_floating_point():
        return torch.equal(actual, expected)
    finite = torch.isfinite(expected)
    if not torch.equal(torch.isfinite(actual), finite):
        return False
    if not finite.any():
        return True
    tolerance = 1e-3 if expected.dtype != torch.float64 else 1e-8
    allowed = tolerance * (1.0 + expected[finite].abs().max()) + rounding
    return bool(((actual - expected)[finite].abs() <= allowed).all())


class _Perturbation(TorchDispatchMode):
    """Lets each operation take floating-point numbers that are off by a rounding."""

    def __init__(self, seed: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._generator = torch.Generator().manual_seed(seed)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        schema = func._schema
        # Views and writes have to go to the tensor itself; whoever reads it takes other numbers.
        if not schema.is_mutable and all(r.alias_info is None for r in schema.returns):
            args, kwargs = pytree.tree_map_only(Tensor, self._perturbed, (args, kwargs or {}))
        return func(*args, **(kwargs or {}))

    def _perturbed(self, tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point():
            return tensor
        noise = torch.rand(tensor.shape, generator=self._generator, dtype=tensor.dtype)
        eps = torch.finfo(tensor.dtype).eps
        return tensor * (1.0 + eps * (2.0 * noise - 1.0)).to(tensor.device)
