"""Encoders and the decoder against the networks of their papers, written out."""

import pytest
import torch
from torch.nn import functional

from pyro_ext.models.neural_processes import (
    CNP,
    CrossAttentionEncoder,
    Decoder,
    JointEncoder,
    PoolingEncoder,
)


def through(network, hidden):
    for layer in network:
        hidden = layer(hidden)
    return hidden


def test_cnp_is_the_network_written_out():
    """On one task at a time, with the decoder's first layer on representation and input at once."""
    process = CNP(2, 3, 16)
    x, y, new = torch.randn(4, 5, 2), torch.randn(4, 5, 3), torch.randn(4, 7, 2)
    prediction = process.predict(x, y, new, 1)
    for task in range(4):
        pairs = torch.cat([x[task], y[task]], -1)
        parts = [
            through(part.after, through(part.before, pairs).mean(0))
            for part in process.encoder.parts
        ]
        inputs = torch.cat([torch.cat(parts).expand(7, -1), new[task]], -1)
        hidden = torch.relu(process.decoder.first(inputs))
        raw = process.decoder.rest(hidden)
        torch.testing.assert_close(prediction.mean[0, task], raw[:, :3])
        scale = 0.1 + 0.9 * functional.softplus(raw[:, 3:])
        torch.testing.assert_close(prediction.stddev[0, task], scale)


@pytest.mark.parametrize("attention", [False, True])
def test_pooling_encoder_has_the_layers_of_the_paper(attention):
    encoder = PoolingEncoder(1, 1, 16, self_attention=attention)
    linear = [layer for layer in encoder.before if isinstance(layer, torch.nn.Linear)]
    assert len(linear) == (2 if attention else 4)
    assert (encoder.attention is None) != attention
    assert len([layer for layer in encoder.after if isinstance(layer, torch.nn.Linear)]) == 2


def test_cross_attention_written_out():
    encoder = CrossAttentionEncoder(2, 3, 16)
    x, y, new = torch.randn(4, 5, 2), torch.randn(4, 5, 3), torch.randn(4, 7, 2)
    values = encoder.self_attention(through(encoder.values, torch.cat([x, y], -1)))
    keys, queries = through(encoder.keys, x), through(encoder.keys, new)
    expected = encoder.cross_attention(queries, keys, values)
    torch.testing.assert_close(encoder(x, y, new), expected)
    # Keys see no outputs.
    features = encoder.features(x, y)
    assert torch.equal(features[..., :16], encoder.features(x, y + 1)[..., :16])


def test_joint_encoder_is_its_parts_side_by_side():
    parts = [PoolingEncoder(1, 1, 16), CrossAttentionEncoder(1, 1, 24)]
    encoder = JointEncoder(parts)
    x, y, new = torch.randn(4, 5, 1), torch.randn(4, 5, 1), torch.randn(4, 7, 1)
    assert (encoder.num_features, encoder.width) == (16 + 48, 16 + 24)
    found = encoder(x, y, new)
    torch.testing.assert_close(found[..., :16], parts[0](x, y, new).expand(4, 7, 16))
    torch.testing.assert_close(found[..., 16:], parts[1](x, y, new))
    assert encoder(x, y, new[:, :0]).shape == (4, 0, 40)


def test_encoders_that_differ_are_refused():
    with pytest.raises(ValueError, match="encoders must have the same x_dim and y_dim"):
        JointEncoder([PoolingEncoder(1, 1, 16), PoolingEncoder(2, 1, 16)])


def test_decoder_adds_without_a_bias():
    decoder = Decoder(16, 1, 1, 8, with_addition=True)
    representation, x = torch.randn(4, 1, 16), torch.randn(4, 7, 1)
    alone = decoder(representation, x)
    nothing = decoder(representation, x, torch.zeros(4, 1, 16))
    torch.testing.assert_close(nothing.mean, alone.mean)
    something = decoder(representation, x, torch.ones(4, 1, 16))
    assert (something.mean - alone.mean).abs().max() > 1e-3
