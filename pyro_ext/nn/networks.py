"""Small networks for classification and regression, and a batch-independent normalization."""

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from pyro_ext._lib import checks


class FilterResponseNorm(nn.Module):
    r"""Filter response normalization [1], without its thresholded linear unit.

    .. math:: y = w \, \frac{x}{\sqrt{\nu^2 + \epsilon}} + b, \qquad \nu^2 = \text{mean of } x^2

    where the mean is over the positions of each channel of each sample. Samples do not affect each
    other. In batch normalization they do, so that a minibatch has no proper likelihood.

    :param int num_channels: number of channels.
    :param float epsilon: :math:`\epsilon`.
    :raises ValueError: for arguments out of range, or an input of another shape.

    [1] S. Singh, S. Krishnan (2020),
    Filter response normalization layer: eliminating batch dependence in the training of deep neural
    networks.

    Example::

        >>> FilterResponseNorm(1)(torch.tensor([[[3.0, -3.0]]]))
        tensor([[[ 1.0000, -1.0000]]], grad_fn=<AddBackward0>)
    """

    def __init__(self, num_channels: int, epsilon: float = 1e-6) -> None:
        super().__init__()
        self.num_channels = checks.integer("num_channels", num_channels, 1)
        self.epsilon = checks.number("epsilon", epsilon, above=0.0)
        self.weight = nn.Parameter(torch.ones(num_channels))
        self.bias = nn.Parameter(torch.zeros(num_channels))

    def forward(self, inputs: Tensor) -> Tensor:
        """Normalize.

        :param Tensor inputs: **Shape:** ``(batch, channels, *spatial)``.
        :returns: **Shape:** that of the inputs.
        """
        if inputs.dim() < 3 or inputs.shape[1] != self.num_channels:
            raise ValueError(
                f"inputs must have the shape (batch, {self.num_channels}, *spatial), got "
                f"{tuple(inputs.shape)}"
            )
        spatial = tuple(range(2, inputs.dim()))
        mean_square = inputs.square().mean(spatial, keepdim=True)
        shape = (-1, *[1] * len(spatial))
        normalized = inputs * torch.rsqrt(mean_square + self.epsilon)
        return self.weight.reshape(shape) * normalized + self.bias.reshape(shape)

    def extra_repr(self) -> str:
        """Return the settings for the module's ``repr``."""
        return f"{self.num_channels}, epsilon={self.epsilon:g}"


class MLP(nn.Sequential):
    """A multilayer perceptron: linear layers with activations between them.

    Parameters are named as in a :class:`torch.nn.Sequential`, ``"0.weight"``, ``"0.bias"``,
    ``"2.weight"`` and so on.

    :param int in_features: number of features of an input.
    :param hidden_features: width of each hidden layer; an empty list gives a linear model.
    :param int out_features: number of outputs, such as classes.
    :param activation: a class or function that creates the module between two layers.

    Example::

        >>> network = MLP(64, [16, 16], 10)
        >>> network(torch.zeros(5, 64)).shape
        torch.Size([5, 10])
        >>> [name for name, _ in network.named_parameters()]
        ['0.weight', '0.bias', '2.weight', '2.bias', '4.weight', '4.bias']
    """

    def __init__(
        self,
        in_features: int,
        hidden_features: Sequence[int],
        out_features: int,
        activation: Callable[[], nn.Module] = nn.SiLU,
    ) -> None:
        checks.function("activation", activation, "a class of modules or a function that makes one")
        widths = [checks.integer("in_features", in_features, 1)]
        widths += _widths("hidden_features", hidden_features)
        widths.append(checks.integer("out_features", out_features, 1))
        layers: list[nn.Module] = []
        for start, end in pairwise(widths):
            layers += [nn.Linear(start, end), activation()]
        super().__init__(*layers[:-1])


class ResNet(nn.Module):
    """A residual network for small images [1], with the norms and activations of [2].

    It has a 3 x 3 convolution, stages of basic blocks with two such convolutions each, the mean
    over the image, and a linear layer. Every stage but the first begins with a stride of two.
    Filter response normalization and SiLU replace batch normalization and ReLU.

    :param int in_channels: number of channels of an image.
    :param int num_classes: number of outputs.
    :param channels: width of each stage.
    :param int num_blocks: number of blocks in a stage; ``channels=(16, 32, 64)`` with 3 blocks is
        the 20-layer network of [1].

    [1] K. He, X. Zhang, S. Ren, J. Sun (2016),
    Deep residual learning for image recognition.

    [2] P. Izmailov, S. Vikram, M. D. Hoffman, A. G. Wilson (2021),
    What are Bayesian neural network posteriors really like?

    Example::

        >>> network = ResNet(1, 10)
        >>> network(torch.zeros(5, 1, 8, 8)).shape, network(torch.zeros(5, 1, 28, 28)).shape
        (torch.Size([5, 10]), torch.Size([5, 10]))
        >>> sum(parameter.numel() for parameter in network.parameters())
        19810
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        channels: Sequence[int] = (8, 16, 32),
        num_blocks: int = 1,
    ) -> None:
        super().__init__()
        checks.integer("in_channels", in_channels, 1)
        checks.integer("num_classes", num_classes, 1)
        checks.integer("num_blocks", num_blocks, 1)
        widths = _widths("channels", channels)
        if not widths:
            raise ValueError("channels must contain at least one width, got none")
        self.stem = _convolution(in_channels, widths[0], 3)
        self.stem_norm = FilterResponseNorm(widths[0])
        blocks: list[nn.Module] = []
        for stage, (start, end) in enumerate(pairwise([widths[0], *widths])):
            blocks.append(_Block(start, end, 1 if stage == 0 else 2))
            blocks += [_Block(end, end, 1) for _ in range(num_blocks - 1)]
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(widths[-1], num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Run the network.

        :param Tensor images: **Shape:** ``(batch, in_channels, height, width)``.
        :returns: **Shape:** ``(batch, num_classes)``.
        """
        shape = f"(batch, {self.stem.in_channels}, height, width)"
        checks.as_tensor("images", images, shape, allow_empty=True)
        hidden = functional.silu(self.stem_norm(self.stem(images)))
        outputs: Tensor = self.head(self.blocks(hidden).mean((-2, -1)))
        return outputs


class _Block(nn.Module):
    """Two convolutions and a shortcut around them."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.first = _convolution(in_channels, out_channels, 3, stride)
        self.first_norm = FilterResponseNorm(out_channels)
        self.second = _convolution(out_channels, out_channels, 3)
        self.second_norm = FilterResponseNorm(out_channels)
        self.shortcut = nn.Sequential()
        if stride != 1 or in_channels != out_channels:
            convolution = _convolution(in_channels, out_channels, 1, stride)
            self.shortcut.extend([convolution, FilterResponseNorm(out_channels)])

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = functional.silu(self.first_norm(self.first(inputs)))
        hidden = self.second_norm(self.second(hidden))
        return functional.silu(hidden + self.shortcut(inputs))


def _convolution(in_channels: int, out_channels: int, size: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, size, stride, padding=size // 2, bias=False)


def _widths(argument: str, widths: Sequence[int]) -> list[int]:
    widths = checks.sequence(argument, widths, "a list of widths", 0)
    return [checks.integer(f"{argument}[{i}]", width, 1) for i, width in enumerate(widths)]
