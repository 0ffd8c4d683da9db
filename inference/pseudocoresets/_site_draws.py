"""Draws of latent sites as the draws of a guide."""

from collections.abc import Mapping
from contextlib import ExitStack

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_ext.potential import Site

__all__ = ["pick_draw"]


def pick_draw(draws: Mapping[str, Tensor], sites: Mapping[str, Site]) -> dict[str, Tensor]:
    """Sample latent sites from draws, one of which is picked at random, in a Pyro guide.

    :param Mapping draws: by site. **Shape:** ``(num_draws, *event)`` each.
    :param Mapping sites: the latent sites.
    :returns: values by site.
    """
    number = len(next(iter(draws.values())))
    index = pyro.sample(
        "_pseudocoreset_draw",
        dist.Categorical(logits=torch.zeros(number)),
        infer={"is_auxiliary": True},
    )
    result = {}
    for name, site in sites.items():
        batch = len(site.shape) - site.event_dim
        # A plate of draws stands left of the plates of the site.
        own = index.reshape(index.shape[: max(index.dim() - batch, 0)])
        with ExitStack() as stack:
            for plate in site.plates:
                stack.enter_context(pyro.plate(plate.name, plate.size, dim=plate.dim))
            law = dist.Delta(draws[name][own.to(draws[name].device)], event_dim=site.event_dim)
            result[name] = pyro.sample(name, law)
    return result
