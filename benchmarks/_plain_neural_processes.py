"""Neural processes and their training in plain PyTorch, as a paper's code has them."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.distributions import Normal
from torch.nn import functional

__all__ = ["PlainCNP", "PlainMPNP", "train"]

Task = tuple[Tensor, Tensor, Tensor, Tensor]  # inputs and outputs of contexts, and of all points


def network(sizes: Sequence[int]) -> nn.Sequential:
    """Linear layers with ReLU between them."""
    layers: list[nn.Module] = []
    for start, end in zip(sizes, sizes[1:], strict=False):
        layers += [nn.Linear(start, end), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


class Encoder(nn.Module):
    """A network for each point, the mean, and a network for that."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.before = network([2, width, width, width, width])
        self.after = network([width, width, width])


class Decoder(nn.Module):
    """A network on representation and input side by side."""

    def __init__(self, features: int, width: int) -> None:
        super().__init__()
        self.layers = network([features + 1, width, width, 2])

    def forward(self, representation: Tensor, inputs: Tensor) -> Normal:
        """Predict."""
        shape = torch.broadcast_shapes(representation.shape[:-2], inputs.shape[:-2])
        number = inputs.shape[-2]
        packed = torch.cat(
            [representation.expand(*shape, number, -1), inputs.expand(*shape, number, -1)], -1
        )
        mean, scale = self.layers(packed).chunk(2, -1)
        return Normal(mean, 0.1 + 0.9 * functional.softplus(scale))


class PlainCNP(nn.Module):
    """Two encoders and a decoder."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = Encoder(width), Encoder(width)
        self.decoder = Decoder(2 * width, width)

    def features(self, x: Tensor, y: Tensor) -> Tensor:
        """Features of the points of a context."""
        pairs = torch.cat([x, y], -1)
        return torch.cat([self.first.before(pairs), self.second.before(pairs)], -1)

    def predict(self, features: Tensor, inputs: Tensor) -> Normal:
        """Predict from features."""
        first, second = features.mean(-2, keepdim=True).chunk(2, -1)
        return self.decoder(
            torch.cat([self.first.after(first), self.second.after(second)], -1), inputs
        )

    def loss(self, task: Task, generator: torch.Generator) -> Tensor:
        """Mean negative log likelihood."""
        x_context, y_context, x, y = task
        return -self.predict(self.features(x_context, y_context), x).log_prob(y).mean()


class Attention(nn.Module):
    """An attention block, head by head along a dimension."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.query = nn.Linear(width, width, bias=False)
        self.key = nn.Linear(width, width, bias=False)
        self.value = nn.Linear(width, width, bias=False)
        self.out = nn.Linear(width, width)

    def split(self, values: Tensor) -> Tensor:
        """As ``(heads, *batch, size, width of a head)``."""
        return torch.stack(values.chunk(self.num_heads, -1))

    def forward(self, queries: Tensor, keys: Tensor) -> Tensor:
        """Let queries look at keys."""
        q, k, v = self.query(queries), self.key(keys), self.value(keys)
        scores = self.split(q) @ self.split(k).mT / math.sqrt(q.shape[-1])
        attended = torch.cat(list(torch.softmax(scores, -1) @ self.split(v)), -1)
        hidden = q + attended
        return hidden + torch.relu(self.out(hidden))


class PlainMPNP(PlainCNP):
    """The same with a generator of pseudo contexts."""

    def __init__(self, width: int, num_pseudo: int) -> None:
        super().__init__(width)
        self.num_pseudo = num_pseudo
        self.gather, self.spread = Attention(2 * width, 8), Attention(2 * width, 8)

    def loss(self, task: Task, generator: torch.Generator) -> Tensor:
        """The three losses, with five draws."""
        x_context, y_context, x, y = task
        num_tasks, number = x.shape[:2]
        context = self.features(x_context, y_context)
        noise = torch.randn(5, num_tasks, self.num_pseudo, context.shape[-1], generator=generator)
        context_draws = context.expand(5, *context.shape)
        pseudo = self.spread(noise, self.gather(context_draws, noise))
        both = self.predict(torch.cat([context_draws, pseudo], -2), x).log_prob(y).sum((-2, -1))
        marginal = -(both.logsumexp(0) - math.log(5)).mean() / number
        amortized = -self.predict(context, x).log_prob(y).mean()
        alone = -self.predict(pseudo, x).log_prob(y).mean()
        return marginal + amortized + alone


def train(
    process: PlainCNP, tasks: Callable[[int], Task], num_steps: int, seed: int = 0
) -> list[float]:
    """Train by Adam with a cosine."""
    optimizer = torch.optim.Adam(process.parameters(), lr=5e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, num_steps)
    generator = torch.Generator().manual_seed(seed)
    losses = []
    for step in range(num_steps):
        optimizer.zero_grad()
        loss = process.loss(tasks(step), generator)
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    return losses
