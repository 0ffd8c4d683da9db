"""The transformer of prior-data fitted networks."""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu

from pyro_ext._lib import checks
from pyro_ext.nn.attention import check_heads


class PriorFittedTransformer(nn.Module):
    """Transformer from given points to logits at query points [1].

    All tokens attend to those of the given points, and a query also attends to itself. Neither the
    order of the points nor other queries matter, and the cost is linear in the number of queries.
    The last layers of all blocks start at zero: at first, a prediction depends on its query alone.

    :param int num_bars: number of logits.
    :param int num_features: number of features of an input.
    :param int width: number of features of a token, a multiple of ``num_heads``.
    :param int num_layers: number of blocks.
    :param int num_heads: number of heads.
    :param bool log_inputs: whether tokens also contain the logarithm of the input; useful for
        positive inputs over many orders of magnitude.

    [1] S. Müller, N. Hollmann, S. Pineda Arango, J. Grabocka, F. Hutter (2022),
    Transformers can do Bayesian inference.

    Example::

        >>> net = PriorFittedTransformer(num_bars=20, width=16, num_layers=2)
        >>> net(torch.rand(8, 5, 1), torch.rand(8, 5), torch.rand(8, 7, 1)).shape
        torch.Size([8, 7, 20])
    """

    x_loc: Tensor
    x_scale: Tensor
    y_loc: Tensor
    y_scale: Tensor

    def __init__(
        self,
        num_bars: int,
        num_features: int = 1,
        *,
        width: int = 64,
        num_layers: int = 3,
        num_heads: int = 4,
        log_inputs: bool = False,
    ) -> None:
        super().__init__()
        self.num_bars = checks.integer("num_bars", num_bars, 2)
        self.num_features = checks.integer("num_features", num_features, 1)
        check_heads("width", width, num_heads)
        self.width, self.num_heads = width, num_heads
        self.num_layers = checks.integer("num_layers", num_layers, 1)
        self.log_inputs = checks.boolean("log_inputs", log_inputs)
        num_seen = 2 * num_features if log_inputs else num_features
        for name, size in (("x", (num_seen,)), ("y", ())):  # those of a uniform number
            self.register_buffer(f"{name}_loc", torch.full(size, 0.5))
            self.register_buffer(f"{name}_scale", torch.full(size, math.sqrt(1.0 / 12.0)))
        self.from_x = nn.Linear(num_seen, width)
        self.from_y = nn.Linear(1, width)
        self.blocks = nn.ModuleList(_Block(width, num_heads) for _ in range(num_layers))
        self.head = nn.Sequential(
            nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, num_bars)
        )

    def settings(self) -> dict[str, int | bool]:
        """Return the arguments of the constructor."""
        names = ("num_bars", "num_features", "width", "num_layers", "num_heads", "log_inputs")
        return {name: getattr(self, name) for name in names}

    @torch.no_grad()
    def take_units(self, x: Any, y: Any) -> None:
        """Standardize inputs and values by their means and standard deviations from now on.

        :param Tensor x: typical inputs. **Shape:** ``(n, num_features)``.
        :param Tensor y: typical values, at least two. **Shape:** any.
        :raises ValueError: for inputs without a logarithm if ``log_inputs`` is set, or for a single
            value.
        """
        x, y = (
            checks.as_tensor("x", x, "(n, num_features)", finite=True),
            checks.as_tensor("y", y, finite=True),
        )
        for name, each in (("x", x), ("y", y)):
            if len(x) < 2 or each.numel() < 2:
                raise ValueError(f"{name} must hold at least two points, got {each!r:.80}")
        y = y.to(self.y_loc)
        self.check_inputs("x", x)
        seen = self._seen(x)
        self.x_loc.copy_(seen.mean(0))
        self.x_scale.copy_(seen.std(0).clamp(min=1e-6))
        self.y_loc.copy_(y.mean())
        self.y_scale.copy_(y.std().clamp(min=1e-6))

    def check_inputs(self, argument: str, x: Tensor) -> None:
        """Check that inputs have logarithms, if these are needed.

        :param str argument: name of the argument.
        :param Tensor x: inputs.
        :raises ValueError: for inputs that are not positive.
        """
        if self.log_inputs and not bool((x > 0).all()):
            raise ValueError(
                f"{argument} must be positive for a network with log_inputs=True, got "
                f"{float(x.min()):g}"
            )

    def _seen(self, x: Tensor) -> Tensor:
        """Return the inputs as tokens see them, with their logarithms if ``log_inputs`` is set."""
        return torch.cat([x, x.log()], -1) if self.log_inputs else x

    def forward(self, xc: Tensor, yc: Tensor, xq: Tensor) -> Tensor:
        """Compute logits at the queries.

        :param Tensor xc: inputs of the given points. **Shape:**
            ``(*batch, num_context, num_features)``.
        :param Tensor yc: values of the given points. **Shape:** ``(*batch, num_context)``.
        :param Tensor xq: inputs of the queries. **Shape:** ``(*batch, num_queries, num_features)``.
        :returns: **Shape:** ``(*batch, num_queries, num_bars)``.
        """
        num_context = xc.shape[-2]
        tokens = self._seen(torch.cat([xc, xq], -2))
        tokens = self.from_x((tokens - self.x_loc) / self.x_scale)
        values = self.from_y(((yc - self.y_loc) / self.y_scale).unsqueeze(-1))
        tokens = torch.cat(
            [tokens[..., :num_context, :] + values, tokens[..., num_context:, :]], -2
        )
        for block in self.blocks:
            tokens = block(tokens, num_context)
        logits: Tensor = self.head(tokens[..., num_context:, :])
        return logits


class _Block(nn.Module):
    """A layer of an encoder, normalized after each of its two parts."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.project = nn.Linear(width, 3 * width)
        self.output = nn.Linear(width, width)
        self.inner, self.outer = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.attention_norm, self.output_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        for layer in (self.output, self.outer):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, tokens: Tensor, num_context: int) -> Tensor:
        """Let each token see the given points, which come first, and itself."""
        heads = self.project(tokens).unflatten(-1, (3 * self.num_heads, -1)).transpose(-2, -3)
        query, key, value = heads.chunk(3, -3)
        query = query / math.sqrt(query.shape[-1])
        given = query @ key[..., :num_context, :].mT
        # The weight of a query in its own attention; that of a given point is among those above.
        own = (query * key).sum(-1, keepdim=True)
        is_given = torch.arange(tokens.shape[-2], device=tokens.device) < num_context
        own = own.masked_fill(is_given[:, None], -torch.inf)
        weights = torch.cat([given, own], -1).softmax(-1)
        mixed = weights[..., :-1] @ value[..., :num_context, :] + weights[..., -1:] * value
        mixed = self.output(mixed.transpose(-2, -3).flatten(-2))
        tokens = self.attention_norm(tokens + mixed)
        normalized: Tensor = self.output_norm(tokens + self.outer(gelu(self.inner(tokens))))
        return normalized
