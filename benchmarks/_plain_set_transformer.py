"""The Set Transformer written by hand with the functions of PyTorch."""

from torch import Tensor
from torch.nn.functional import linear, relu, scaled_dot_product_attention

__all__ = ["plain_set_transformer"]


def attend(p: dict[str, Tensor], name: str, queries: Tensor, keys: Tensor, heads: int) -> Tensor:
    """A multihead attention block."""

    def apply(layer: str, inputs: Tensor) -> Tensor:
        return linear(inputs, p[f"{name}.{layer}.weight"], p[f"{name}.{layer}.bias"])

    query = apply("query", queries)
    split = [
        part.unflatten(-1, (heads, -1)).transpose(1, 2)
        for part in (query, apply("key", keys), apply("value", keys))
    ]
    attended = scaled_dot_product_attention(*split, scale=query.shape[-1] ** -0.5)
    hidden = query + attended.transpose(1, 2).flatten(2)
    return hidden + relu(apply("feedforward.0", hidden))


def plain_set_transformer(p: dict[str, Tensor], x: Tensor, heads: int) -> Tensor:
    """Two induced blocks, pooling by attention, two blocks and a linear layer.

    :param dict p: the parameters of ours, by the same names.
    """
    size = len(x)
    for number in range(2):
        name = f"encoder.{number}"
        points = p[f"{name}.inducing_points"].expand(size, -1, -1)
        gathered = attend(p, f"{name}.attention.gather", points, x, heads)
        x = attend(p, f"{name}.attention.spread", x, gathered, heads)
    x = attend(p, "pooling.block", p["pooling.seeds"].expand(size, -1, -1), x, heads)
    for number in range(2):
        x = attend(p, f"decoder.{number}.block", x, x, heads)
    return linear(x, p["decoder.2.weight"], p["decoder.2.bias"])
