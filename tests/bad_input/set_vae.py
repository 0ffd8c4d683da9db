"""Valid calls of distances between sets and of SetVAE, for :mod:`walk` to spoil."""

from typing import Any

import torch

from pyro_ext.models.sets import GaussianMixtureSet, SetVAE
from tests.bad_input.walk import Call, call, of


def distances() -> dict[str, Call]:
    mask = torch.tensor([[True, True, False], [True, True, True]])
    two: dict[str, Any] = dict(a=torch.rand(2, 3, 2), b=torch.rand(2, 3, 2))
    two |= dict(mask_a=mask, mask_b=mask)
    gaps = torch.rand(4, 5)
    return {
        "chamfer_distance": call(**two),
        "earth_mover_distance": call(**two),
        "coverage": call(distances=gaps),
        "minimum_matching_distance": call(distances=gaps),
        "one_nearest_neighbor_accuracy": call(
            generated=torch.rand(4, 4), real=torch.rand(5, 5), between=gaps
        ),
        "occupancy_divergence": call(
            generated=two["a"],
            real=two["b"],
            generated_mask=mask,
            real_mask=mask,
            low=0.1,
            high=0.9,
        ),
    }


def autoencoder() -> dict[str, Call]:
    torch.manual_seed(0)
    vae = SetVAE(2, (1, 2), 8, 3, 2, initial_set=GaussianMixtureSet(4, 2))
    x, mask = torch.rand(2, 3, 2), torch.tensor([[True, True, False], [True, True, True]])
    return {
        "SetVAE": call(input_size=2, scales=(1, 2), initial_set=GaussianMixtureSet(4, 2)),
        "SetVAE.model": of(vae, x=x, mask=mask, beta=0.5),
        "SetVAE.guide": of(vae, x=x, mask=mask, beta=0.5),
        "SetVAE.terms": of(vae, x=x, mask=mask),
        "SetVAE.sample": of(vae, sizes=[3, 4]),
        "SetVAE.reconstruct": of(vae, x=x, mask=mask),
        "SetVAE.partition": of(vae, x=x, mask=mask),
        "GaussianMixtureSet": call(),
    }


TABLES = {"pyro_ext.diagnostics.sets": distances, "pyro_ext.models.sets (SetVAE)": autoencoder}
