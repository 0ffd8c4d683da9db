"""Networks that estimate the origin of a noisy bridge of logits from logits, features and time."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pyro_ext._lib import checks
from pyro_ext.nn import MLP, FilterResponseNorm

_NUM_TIMES = 32
_LOGIT_SCALE = 3.0


class ScoreMLP(nn.Module):
    """A multilayer perceptron of logits, a vector of features and time, as in [1].

    :param int num_classes: number of logits.
    :param int num_features: length of the features of an input, which are flattened.
    :param Sequence hidden_features: width of each hidden layer.

    [1] H. Kim, J. Yoon, J. Lee (2024), Fast ensembling with diffusion Schrödinger bridge.

    Example::

        >>> score = ScoreMLP(10, 100)
        >>> score(torch.randn(5, 10), torch.randn(5, 100), torch.rand(5)).shape
        torch.Size([5, 10])
    """

    def __init__(
        self, num_classes: int, num_features: int, hidden_features: Sequence[int] = (128, 128)
    ) -> None:
        super().__init__()
        checks.integer("num_classes", num_classes, 1)
        checks.integer("num_features", num_features, 1)
        self.layers = MLP(num_classes + num_features + _NUM_TIMES, hidden_features, num_classes)

    def forward(self, logits: Tensor, feature: Tensor, time: Tensor) -> Tensor:
        """Run the network.

        :param Tensor logits: **Shape:** ``(batch, num_classes)``.
        :param Tensor feature: **Shape:** ``(batch, *feature)``.
        :param Tensor time: from zero to one. **Shape:** ``(batch,)``.
        :returns: the difference to the logits at time zero. **Shape:** as the logits.
        """
        parts = (logits / _LOGIT_SCALE, feature.flatten(1), _waves(time))
        outputs: Tensor = self.layers(torch.cat(parts, -1))
        return outputs


class ScoreConvNet(nn.Module):
    """A small network of inverted residual blocks [2] over a feature map.

    The network of [1] is of the same kind, but larger. Logits and time are added to each channel
    after the first convolution, and the last layer sees the logits again.

    :param int num_classes: number of logits.
    :param int in_channels: number of channels of the feature map.

    [1] H. Kim, J. Yoon, J. Lee (2024), Fast ensembling with diffusion Schrödinger bridge.

    [2] M. Sandler, A. Howard, M. Zhu, A. Zhmoginov, L.-C. Chen (2018),
    MobileNetV2: inverted residuals and linear bottlenecks.

    Example::

        >>> score = ScoreConvNet(10, 16)
        >>> score(torch.randn(5, 10), torch.randn(5, 16, 8, 8), torch.rand(5)).shape
        torch.Size([5, 10])
    """

    def __init__(self, num_classes: int, in_channels: int) -> None:
        super().__init__()
        checks.integer("num_classes", num_classes, 1)
        checks.integer("in_channels", in_channels, 1)
        self.stem = nn.Conv2d(in_channels, 32, 3, padding=1, bias=False)
        self.embedding = nn.Linear(num_classes + _NUM_TIMES, 32)
        sizes = ((32, 32, 1), (32, 48, 2), (48, 64, 2))
        self.blocks = nn.ModuleList(_inverted(*each) for each in sizes)
        self.head = nn.Linear(64 + num_classes, num_classes)

    def forward(self, logits: Tensor, feature: Tensor, time: Tensor) -> Tensor:
        """Run the network; arguments and result are as for :class:`ScoreMLP`.

        :param Tensor logits: **Shape:** ``(batch, num_classes)``.
        :param Tensor feature: **Shape:** ``(batch, in_channels, height, width)``.
        :param Tensor time: **Shape:** ``(batch,)``.
        """
        scaled = logits / _LOGIT_SCALE
        embedded = self.embedding(torch.cat([scaled, _waves(time)], -1))
        hidden = self.stem(feature) + embedded[..., None, None]
        for block in self.blocks:
            made = block(hidden)
            hidden = made + hidden if made.shape == hidden.shape else made
        outputs: Tensor = self.head(torch.cat([hidden.mean((-2, -1)), scaled], -1))
        return outputs


def _inverted(start: int, end: int, stride: int) -> nn.Sequential:
    """Expand channels, convolve each by itself, and project."""
    wide = 2 * start
    return nn.Sequential(
        nn.Conv2d(start, wide, 1, bias=False),
        FilterResponseNorm(wide),
        nn.SiLU(),
        nn.Conv2d(wide, wide, 3, stride, padding=1, groups=wide, bias=False),
        FilterResponseNorm(wide),
        nn.SiLU(),
        nn.Conv2d(wide, end, 1, bias=False),
    )


def _waves(time: Tensor) -> Tensor:
    """Cosines and sines of a thousand times the time, with periods of up to ten thousand."""
    powers = torch.arange(_NUM_TIMES // 2, device=time.device) / (_NUM_TIMES // 2)
    angles = 1000.0 * time[:, None] * torch.exp(-math.log(1e4) * powers).to(time)
    return torch.cat([angles.cos(), angles.sin()], -1)
