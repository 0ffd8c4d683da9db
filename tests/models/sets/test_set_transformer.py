"""The Set Transformer and Deep Sets against formulas by hand, and what users may get wrong."""

import numpy as np
import pytest
import torch

from pyro_ext.models.sets import DeepSet, SetTransformer
from pyro_ext.nn import ISAB, SAB

pytestmark = pytest.mark.usefixtures("float64")
CODE = {"bias": True, "layer_norm": False}


def number_of(module):
    return sum(parameter.numel() for parameter in module.parameters())


def size_of_block(queries, keys, width):
    return width * (queries + 1) + 2 * width * (keys + 1) + width * (width + 1)


def test_numbers_of_parameters():
    """Those of the paper's network for the maximum, and of its code's for mixtures."""
    assert number_of(SAB(1, 64, 4, **CODE)) == size_of_block(1, 1, 64) == 4544
    assert number_of(ISAB(64, 64, 16, 4, **CODE)) == 2 * size_of_block(64, 64, 64) + 16 * 64
    assert number_of(SetTransformer(1, 1, 1, 64, 4, encoder="sab")) == 37953
    first = size_of_block(128, 2, 128) + size_of_block(2, 128, 128)
    others = 5 * size_of_block(128, 128, 128)  # a second such, the pooling, two blocks
    official = first + others + (2 * 32 + 4) * 128 + 5 * 129
    assert number_of(SetTransformer(2, 4, 5)) == official
    assert number_of(SetTransformer(2, 4, 5, layer_norm=True)) == official + 7 * 4 * 128


def test_blocks_share_no_parameters():
    network = SetTransformer(2, 4, 5, 8, 2, 3, num_encoder_blocks=3, num_decoder_blocks=2)
    names = [name for name, _ in network.named_parameters()]
    assert len({name.split(".")[1] for name in names if name.startswith("encoder")}) == 3
    assert len({name.split(".")[1] for name in names if name.startswith("decoder")}) == 3


@pytest.mark.parametrize("pooling", ["mean", "sum", "max"])
def test_poolings_of_what_is_there(pooling, device):
    network = DeepSet(3, 2, 4, 8, pooling)
    x, mask = torch.randn(6, 5, 3), torch.rand(6, 5) < 0.6
    mask[0], mask[1] = True, False
    pooled = []
    for elements, present in zip(x, mask, strict=True):
        features = network.encoder[0].layers(elements[present])
        if not len(features):
            pooled.append(torch.zeros(8))
        elif pooling == "max":
            pooled.append(features.max(0).values)
        else:
            pooled.append(features.sum(0) / (len(features) if pooling == "mean" else 1))
    expected = network.decoder(torch.stack(pooled)).view(6, 2, 4)
    torch.testing.assert_close(network(x, mask), expected)
    torch.testing.assert_close(network(x[:1]), expected[:1])
    torch.testing.assert_close(network(x[:, :0])[1], expected[1])


def test_forms_of_data():
    network = SetTransformer(2, 3, 4, 8, 2, 4)
    x, mask = torch.randn(2, 5, 7, 2), torch.rand(2, 5, 7) < 0.5
    outputs = network(x, mask)
    assert outputs.shape == (2, 5, 3, 4)
    for given in (x.numpy(), x.tolist(), x.numpy().astype(">f8")[..., ::1].copy().tolist()):
        torch.testing.assert_close(network(given, mask), outputs)
    torch.testing.assert_close(network(x, mask.tolist()), outputs)
    torch.testing.assert_close(network(x[1, 2], mask[1, 2]), outputs[1, 2])
    assert network.float()(np.zeros((1, 7, 2))).dtype == torch.float32


def test_dropout_is_for_training():
    network = SetTransformer(2, 3, 4, 8, 2, 4, dropout=0.5)
    x = torch.randn(5, 7, 2)
    assert not torch.equal(network(x), network(x))
    network.eval()
    assert torch.equal(network(x), network(x))


def test_wrong_settings():
    with pytest.raises(ValueError, match="hidden_size must be a multiple of num_heads=4, got 10"):
        SetTransformer(2, 1, 1, hidden_size=10)
