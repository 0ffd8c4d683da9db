"""Independent normal priors of many sites as one term: most of a small network's step is theirs."""

import math
from collections.abc import Collection, Mapping
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import ExpandedDistribution
from torch import Tensor
from torch.distributions import Independent, Normal

from pyro_ext.potential._evaluation import Record, without_validation
from pyro_ext.potential._layout import Layout

__all__ = ["joint_normal_density"]

_LEAST_SITES = 2
_NORMALS = (dist.Normal, Normal)


@without_validation()
def joint_normal_density(
    flat: Tensor, records: Mapping[str, Record], layout: Layout
) -> tuple[Tensor | None, Collection[str]]:
    """Log density of the sites with normal priors that depend on no latent value, in one term.

    It is a sum over all of the flat vector, in which the elements of other sites count zero.

    :param Tensor flat: unconstrained latent values. **Shape:** ``(size,)``.
    :param Mapping records: of the run at these values.
    :param Layout layout: of the flat vector.
    :returns: the term and the names of its sites, ``None`` and no names where it does not pay.
    """
    sizes = dict(zip(layout.shapes, layout.sizes, strict=True))
    names = {name for name, size in sizes.items() if _joins(records[name], flat, size)}
    if len(names) < _LEAST_SITES:
        return None, ()
    constant = flat.new_zeros(())
    places, factors = [], []
    for name, size in sizes.items():
        if name in names:
            record = records[name]
            law = _normal(record.fn)
            loc, scale = (part.expand(record.value.shape) for part in (law.loc, law.scale))
            places.append(loc.reshape(size))
            factors.append(scale.reciprocal().reshape(size))
            constant = constant - scale.log().sum() - size * 0.5 * math.log(2.0 * math.pi)
        else:
            places.append(flat.new_zeros(size))
            factors.append(flat.new_zeros(size))
    standard = (flat - torch.cat(places)) * torch.cat(factors)
    return constant - 0.5 * (standard * standard).sum(), names


def _normal(fn: Any) -> Any:
    """Normal law inside declared dimensions and expansions, ``None`` for any other law."""
    while isinstance(fn, Independent | ExpandedDistribution):
        fn = fn.base_dist
    return fn if type(fn) in _NORMALS else None


def _joins(record: Record, flat: Tensor, size: int) -> bool:
    """Whether a site's prior is normal, counts once, and is known before all latent values."""
    law = _normal(record.fn)
    return (
        law is not None
        and record.mask is None
        and isinstance(record.scale, int | float)
        and record.scale == 1
        and record.log_jacobian is None
        and not (record.args or record.kwargs)
        and record.value.numel() == size
        and {record.value.dtype, law.loc.dtype, law.scale.dtype} == {flat.dtype}
        and not (law.loc.requires_grad or law.scale.requires_grad)
    )
