"""Set attention against attention written out, against torch, and under permutation and padding."""

import math

import pytest
import torch
from torch import nn

from pyro_ext.nn import ISAB, MAB, PMA, SAB, InducedSetAttention

WIDTH, HEADS = 12, 3


def written_out(block, queries, keys, values, present):
    """One set at a time and one head at a time; rows that are not present are left out."""
    query = block.query(queries)
    key, value = block.key(keys[present]), block.value(values[present])
    size = WIDTH // HEADS
    scale = math.sqrt(WIDTH if block.scaling == "width" else size)
    attention = torch.zeros_like(query)
    for head in range(HEADS):
        part = slice(head * size, (head + 1) * size)
        logits = query[:, part] @ key[:, part].T / scale
        if present.any() and block.normalize == "keys":
            attention[:, part] = torch.softmax(logits, -1) @ value[:, part]
        elif present.any():
            weights = torch.softmax(logits, 0)
            total = (weights + 1e-5).sum(1, keepdim=True)
            attention[:, part] = weights @ value[:, part] / total
    if block.residual == "input":
        hidden = block.attention_norm(queries + block.output(attention))
        first, _, second = block.feedforward
        return block.output_norm(hidden + second(torch.relu(first(hidden))))
    hidden = block.attention_norm(query + attention)
    return block.output_norm(hidden + torch.relu(block.feedforward[0](hidden)))


@pytest.mark.parametrize("scaling", ["width", "head"])
@pytest.mark.parametrize("normalize", ["keys", "queries"])
@pytest.mark.parametrize(
    ("features", "options"),
    [
        (5, {}),
        (5, {"layer_norm": False, "bias": True}),
        (WIDTH, {"residual": "input"}),
        (WIDTH, {"residual": "input", "layer_norm": False, "bias": True}),
    ],
)
def test_block_is_attention_written_out(features, options, normalize, scaling, float64, device):
    block = MAB(features, 4, WIDTH, HEADS, scaling=scaling, normalize=normalize, **options).double()
    assert isinstance(block.output_norm, nn.LayerNorm) == options.get("layer_norm", True)
    queries, keys, values = torch.randn(6, 3, features), torch.randn(6, 7, 4), torch.randn(6, 7, 4)
    mask = torch.rand(6, 7) < 0.6
    mask[2], mask[3] = False, True
    found = block(queries, keys, values, mask)
    for row in range(6):
        expected = written_out(block, queries[row], keys[row], values[row], mask[row])
        torch.testing.assert_close(found[row], expected)


@pytest.mark.parametrize("normalize", ["keys", "queries"])
def test_weights_are_those_of_values(normalize, float64):
    block = MAB(3, 4, WIDTH, HEADS, normalize=normalize, dropout=0.5).eval()
    queries, keys = torch.randn(6, 3, 3), torch.randn(2, 1, 7, 4)
    mask = torch.rand(2, 6, 7) < 0.6
    mask[0, 2] = False
    weights = block.weights(queries, keys, mask)
    assert weights.shape == (2, 6, HEADS, 3, 7)
    assert bool((weights.movedim(-1, 2)[~mask] == 0).all())
    if normalize == "keys":
        torch.testing.assert_close(
            weights.sum(-1), mask.any(-1).double()[..., None, None].expand(2, 6, 3, 3)
        )
    values = block.value(keys).unflatten(-1, (HEADS, -1)).transpose(-2, -3)
    attended = (weights @ values).transpose(-2, -3).flatten(-2)
    hidden = block.attention_norm(block.query(queries) + attended)
    wanted = block.output_norm(hidden + block.feedforward(hidden))
    torch.testing.assert_close(block(queries, keys, key_mask=mask), wanted)


@pytest.mark.parametrize("normalize", ["keys", "queries"])
def test_dropout_is_for_training(normalize):
    torch.manual_seed(0)
    block = MAB(3, 3, WIDTH, HEADS, dropout=0.5, normalize=normalize)
    queries, keys = torch.randn(20, 4, 3), torch.randn(20, 6, 3)
    assert not torch.equal(block(queries, keys), block(queries, keys))
    block.eval()
    plain = MAB(3, 3, WIDTH, HEADS, normalize=normalize)
    plain.load_state_dict(block.state_dict())
    assert torch.equal(block(queries, keys), plain(queries, keys))


def test_parameters_are_those_of_the_paper():
    names = {name for name, _ in MAB(3, 3, WIDTH, HEADS).named_parameters()}
    assert {"query.weight", "key.weight", "value.weight", "feedforward.0.bias"} <= names
    assert not {"query.bias", "key.bias", "value.bias"} & names


def test_induced_attention_is_two_blocks():
    block = InducedSetAttention(3, 2, WIDTH, HEADS)
    x, points = torch.randn(5, 6, 3), torch.randn(5, 4, 2)
    expected = block.spread(x, block.gather(points, x))
    torch.testing.assert_close(block(x, points), expected)


@pytest.mark.parametrize(
    ("block", "name"),
    [(ISAB(3, WIDTH, 4, HEADS), "inducing_points"), (PMA(3, WIDTH, 2, HEADS), "seeds")],
    ids=["ISAB", "PMA"],
)
def test_learned_points_are_trained(block, name):
    out = block(torch.randn(5, 6, 3))
    (torch.randn_like(out) * out).sum().backward()
    assert dict(block.named_parameters())[name].grad.abs().max() > 0.01


def test_leading_dimensions_broadcast():
    block = MAB(2, 3, WIDTH, HEADS)
    queries, keys = torch.randn(4, 1, 5, 2), torch.randn(3, 6, 3)
    mask = torch.rand(3, 6) < 0.7
    out = block(queries, keys, key_mask=mask)
    assert out.shape == (4, 3, 5, WIDTH)
    one = block(queries[2, 0], keys[1], key_mask=mask[1])
    torch.testing.assert_close(out[2, 1], one)
    assert block(queries[0, 0], keys[0]).shape == (5, WIDTH)


def test_what_users_may_get_wrong():
    with pytest.raises(ValueError, match="width must be a multiple of num_heads=8, got 12"):
        SAB(3, 12)
    with pytest.raises(
        ValueError, match="query_features must be width=8 with residual='input', got"
    ):
        MAB(3, 3, 8, residual="input")
    block = MAB(3, 2, 8)
    with pytest.raises(ValueError, match=r"keys must have the shape \(\*batch, size, 2\), got"):
        block(torch.zeros(4, 3), torch.zeros(4, 3))
    with pytest.raises(ValueError, match="values must be as many as the 5 keys, got 4"):
        block(torch.zeros(4, 3), torch.zeros(5, 2), torch.zeros(4, 2))
    for mask in (torch.ones(5), torch.ones(4, dtype=torch.bool)):
        with pytest.raises(ValueError, match=r"key_mask must be a bool tensor of the shape"):
            block(torch.zeros(4, 3), torch.zeros(5, 2), key_mask=mask)
