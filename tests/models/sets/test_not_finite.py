"""NaN in sets and images is refused, and padding may hold anything."""

import math

import pytest
import torch

from pyro_ext.models.sets import (
    ABMIL,
    AmortizedClusterer,
    DeepSet,
    FilteringNetwork,
    SetTransformer,
    SetVAE,
    SlotMIL,
)
from pyro_ext.models.vision import MaskedAutoencoder
from pyro_ext.nn.axial import GXCNN, SXCNN

CLUSTERER = FilteringNetwork(2, width=8, num_heads=2)

SETS = {
    "AmortizedClusterer": lambda x, mask: AmortizedClusterer(CLUSTERER).cluster(x, mask).labels,
    "ABMIL": ABMIL(2, 2, 8),
    "DeepSet": DeepSet(2, 1, 3, 8),
    "FilteringNetwork": lambda x, mask: CLUSTERER(x, mask).logits[mask],
    "SetTransformer": SetTransformer(2, 1, 3, 8, 2, 4),
    "SetVAE": SetVAE(2, (1, 2), hidden_size=8, latent_size=2, num_heads=2).partition,
    "SlotMIL": SlotMIL(2, 2, 8),
}

FIELDS = {
    "GXCNN": (GXCNN(1, 2, 4), (2, 4, 4, 1)),
    "SXCNN": (SXCNN(1, 2, 4), (2, 4, 4, 1)),
    "MaskedAutoencoder": (
        MaskedAutoencoder((1, 4, 4), 2, width=8, num_heads=2).features,
        (2, 1, 4, 4),
    ),
}


@pytest.mark.parametrize("name", SETS)
def test_sets(name):
    run = SETS[name]
    x, mask = torch.randn(3, 5, 2), torch.ones(3, 5, dtype=torch.bool)
    mask[1, 3:] = False
    filled = x.masked_fill(~mask[..., None], math.nan)
    torch.testing.assert_close(run(filled, mask), run(x, mask), rtol=0, atol=0)
    for value in (math.nan, math.inf):
        x[1, 0, 1] = value
        with pytest.raises(ValueError, match=f"x must be finite, got {value} in row 1"):
            run(x, mask)


@pytest.mark.parametrize("name", FIELDS)
def test_fields(name):
    run, shape = FIELDS[name]
    x = torch.rand(shape)
    run(x)
    x[1, 0, 0, 0] = math.nan
    with pytest.raises(ValueError, match="must be finite, got nan in row 1"):
        run(x)


@pytest.mark.slow
@pytest.mark.parametrize("network", [SETS["DeepSet"], FIELDS["SXCNN"][0]])
def test_recorded_and_vectorized_runs_are_not_checked(network):
    """A step of a compiled or vectorized training reads no value."""
    x = torch.rand(3, 5, 2) if network is SETS["DeepSet"] else torch.rand(3, 4, 4, 1)
    whole = network(x)
    found = torch.vmap(lambda one: network(one[None])[0])(x)
    torch.testing.assert_close(found, whole)
    compiled = torch.compile(network, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), whole)
