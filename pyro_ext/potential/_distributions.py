"""Distributions and supports as a potential needs them."""

import copy
from typing import Any

import torch
from pyro.distributions.torch_distribution import ExpandedDistribution, MaskedDistribution
from torch.distributions import Distribution, Independent, biject_to, constraints
from torch.distributions.constraints import Constraint, MixtureSameFamilyConstraint
from torch.distributions.transforms import IndependentTransform

__all__ = [
    "bijection",
    "innermost",
    "is_real",
    "may_validate",
    "near_origin",
    "without_checks",
]


_TRANSPARENT = (Independent, ExpandedDistribution, MaskedDistribution)


def bijection(support: Constraint) -> Any:
    """Bijection from unconstrained space to a support, that of the components for a mixture's."""
    if isinstance(support, constraints.independent):
        base = bijection(support.base_constraint)
        return IndependentTransform(base, support.reinterpreted_batch_ndims)
    if isinstance(support, MixtureSameFamilyConstraint):
        return bijection(support.base_constraint)
    return biject_to(support)


def is_real(support: Constraint) -> bool:
    """Whether a support is unconstrained already."""
    while isinstance(support, constraints.independent | MixtureSameFamilyConstraint):
        support = support.base_constraint
    return support in (constraints.real, constraints.real_vector)


def innermost(fn: Any) -> Any:
    """What masks, expansions and declared dimensions are wrapped around."""
    while hasattr(fn, "base_dist"):
        fn = fn.base_dist
    return fn


def may_validate(fn: Any) -> bool:
    """Whether a distribution was made without ``validate_args=False``.

    One made under a switch that turns validation off has zero or no mark at all.
    """
    while True:
        if vars(fn).get("_validate_args") is False:
            return False
        # These wrappers leave checks to what they wrap; a transformed distribution makes its own.
        if not isinstance(fn, _TRANSPARENT):
            return True
        fn = fn.base_dist


def near_origin(fn: Any, radius: float = 2.0) -> torch.Tensor:
    """A value whose unconstrained image is uniform between ``-radius`` and ``radius``."""
    transform = bijection(fn.support)
    shape = transform.inverse_shape(fn.batch_shape + fn.event_shape)
    value: torch.Tensor = transform(torch.empty(shape).uniform_(-radius, radius))
    return value


def without_checks(fn: Any) -> Any:
    """A distribution that does not check its values, whatever it was told when it was made.

    The checks branch on values. A switch turns them off for distributions that a model makes as it
    runs, but not for those that were made before and expanded, such as priors of a ``PyroSample``.
    """
    if not isinstance(fn, Distribution):
        return fn
    inner = {}
    for name, value in vars(fn).items():
        if isinstance(value, Distribution):
            unchecked = without_checks(value)
            if unchecked is not value:
                inner[name] = unchecked
    if not inner and not fn._validate_args:
        return fn
    unchecked = copy.copy(fn)
    vars(unchecked).update(inner)
    unchecked._validate_args = False
    return unchecked
