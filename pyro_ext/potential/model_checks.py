"""Checks of a model's records: where its gradient misses what numbers taken out of tensors do."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from pyro_ext.potential.evaluation import Record, factorization_errors, without_validation

Run = Callable[[Mapping[str, Tensor]], Mapping[str, Record]]


# Functions that take shape and type from one argument, by its position, and no numbers.
_ONLY_SHAPE: dict[Any, int] = {
    Tensor.type_as: 1,
    **dict.fromkeys((torch.empty_like, torch.full_like, torch.ones_like, torch.zeros_like), 0),
    **dict.fromkeys((Tensor.new_empty, Tensor.new_full, Tensor.new_ones, Tensor.new_zeros), 0),
    Tensor.new_tensor: 0,
}


class _Cuts(TorchFunctionMode):
    """Notes whether anything may have been computed without the gradient of its arguments."""

    is_found = False

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        result = function(*args, **kwargs)
        if not self.is_found and _lacks_gradient(function, result):
            only_shape = _ONLY_SHAPE.get(function)
            numbers = [each for index, each in enumerate(args) if index != only_shape]
            leaves = pytree.tree_leaves((numbers, kwargs))
            self.is_found = any(isinstance(leaf, Tensor) and leaf.requires_grad for leaf in leaves)
        return result


def _lacks_gradient(function: Any, result: object) -> bool:
    """Tell whether a result holds numbers without a gradient; comparisons do not count."""
    if isinstance(result, Tensor):
        return not result.requires_grad and result.dtype != torch.bool
    is_whole = function in (Tensor.__int__, Tensor.item) and isinstance(result, int)
    return is_whole or isinstance(result, float | list | np.ndarray)


def missed_gradients(run: Run, values: Mapping[str, Tensor]) -> list[tuple[str, str]]:
    """Find latent sites that a density depends on without a gradient."""
    leaves = {name: value.detach().clone().requires_grad_() for name, value in values.items()}
    cuts = _Cuts()
    with torch.enable_grad(), cuts:
        before = _densities(run(leaves))
    if not cuts.is_found:
        return []
    reached = {site: _reached(density, leaves) for site, density in before.items()}
    found = []
    for name, value in values.items():
        moved = {**values, name: value + torch.randn_like(value)}
        try:
            with torch.no_grad():
                after = _densities(run(moved))
        except factorization_errors():
            continue
        found += [
            (site, name)
            for site, density in after.items()
            if name not in reached[site] and not density.allclose(before[site], 0, 0, True)
        ]
    return found


@without_validation()
def _densities(records: Mapping[str, Record]) -> dict[str, Tensor]:
    """Log density of each site in unconstrained space."""
    return {
        name: record.unconstrained_log_prob()
        for name, record in records.items()
        if record.has_density
    }


def _reached(density: Tensor, leaves: Mapping[str, Tensor]) -> set[str]:
    """Names of the leaves that a density has a gradient in."""
    if not density.requires_grad:
        return set()
    gradients = torch.autograd.grad(
        density, list(leaves.values()), retain_graph=True, allow_unused=True
    )
    return {name for name, each in zip(leaves, gradients, strict=True) if each is not None}
