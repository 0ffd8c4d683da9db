"""Checks of a model's records: gradients that numbers taken out of tensors miss, and funnels."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from pyro.distributions.torch_distribution import ExpandedDistribution
from torch import Tensor
from torch.distributions import Independent, constraints
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
    reached = {site: _gradients(density, leaves) for site, density in before.items()}
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


def funnels(run: Run, values: Mapping[str, Tensor]) -> dict[str, list[str]]:
    """Find latent sites that ``LocScaleReparam`` takes and whose scale depends on other sites."""
    leaves = {name: value.detach().clone().requires_grad_() for name, value in values.items()}
    with torch.enable_grad():
        records = run(leaves)
        scales = {name: _scale(each.fn) for name, each in records.items() if each.is_latent}
    found = {}
    for name, scale in scales.items():
        gradients = _gradients(scale.sum(), leaves)
        # Of a site that is reparameterized the gradient is zero.
        if moving := [other for other, each in gradients.items() if bool(each.any())]:
            found[name] = sorted(moving)
    return found


def _scale(fn: Any) -> Tensor:
    """Scale of a distribution on the line that has a location and a scale, empty for others."""
    while isinstance(fn, Independent | ExpandedDistribution):
        fn = fn.base_dist
    arguments = getattr(type(fn), "arg_constraints", None)  # of an instance it may raise
    is_taken = isinstance(arguments, Mapping) and {"loc", "scale"} <= arguments.keys()
    scale: Tensor = fn.scale if is_taken and fn.support is constraints.real else torch.zeros(0)
    return scale


@without_validation()
def _densities(records: Mapping[str, Record]) -> dict[str, Tensor]:
    """Log density of each site in unconstrained space."""
    return {
        name: record.unconstrained_log_prob()
        for name, record in records.items()
        if record.has_density
    }


def _gradients(value: Tensor, leaves: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Gradients of a value in the leaves that it has been computed from, by name."""
    if not value.requires_grad:
        return {}
    gradients = torch.autograd.grad(
        value, list(leaves.values()), retain_graph=True, allow_unused=True
    )
    pairs = zip(leaves, gradients, strict=True)
    return {name: each for name, each in pairs if each is not None}
