"""Networks for series at irregular times, and a module that fills their gaps."""

import torch
from pyro.nn import PyroModule
from torch import Tensor, nn
from torch.nn import functional

from pyro_ext._lib import checks

NUM_HEADS = 2  # of attention
_LONGEST = 100.0


def time_encoding(times: Tensor, width: int) -> Tensor:
    """Encode times by alternating sines and cosines, at ``width`` timescales from 1 to 100."""
    exponent = torch.linspace(0.0, 1.0, width, device=times.device, dtype=times.dtype)
    angle = times[..., None] / _LONGEST**exponent
    is_even = torch.arange(width, device=times.device) % 2 == 0
    return torch.where(is_even, angle.sin(), angle.cos())


class SeriesTransformer(nn.Module):
    """A convolution along steps and layers of attention between them."""

    def __init__(
        self,
        num_features: int,
        width: int,
        num_layers: int,
        kernel_size: int,
        *,
        causal: bool,
    ) -> None:
        super().__init__()
        self.causal = causal
        reach = kernel_size - 1
        self.padding = (reach, 0) if causal else (reach // 2, reach - reach // 2)
        self.convolution = nn.Conv1d(num_features, width, kernel_size)
        layer = nn.TransformerEncoderLayer(
            width, NUM_HEADS, 2 * width, dropout=0.0, batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(
            layer, num_layers, norm=nn.LayerNorm(width), enable_nested_tensor=False
        )
        for parameter in self.layers.parameters():
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)  # or all layers would start as copies of one

    def forward(
        self, inputs: Tensor, times: Tensor, valid: Tensor, first: Tensor | None = None
    ) -> Tensor:
        """Features of each step; inputs are zero at padding.

        **Shape:** inputs ``(*sample, num_series, num_steps, num_features)``, times and valid
        ``(num_series, num_steps)``, a first step ``(num_series, width)``.
        """
        outer = inputs.shape[:-2]
        padded = functional.pad(inputs.flatten(0, -3).mT, self.padding)
        hidden = self.convolution(padded).mT.tanh().unflatten(0, outer)
        hidden = hidden + time_encoding(times, hidden.shape[-1])
        if first is not None:
            hidden = torch.cat([first[:, None].expand(*outer, 1, -1), hidden], -2)
            valid = functional.pad(valid, (1, 0), value=True)
        size = hidden.shape[-2]
        mask = padding = None
        if self.causal:  # padding comes last, and nothing that counts looks at it
            mask = nn.Transformer.generate_square_subsequent_mask(
                size, device=hidden.device, dtype=hidden.dtype
            )
        else:
            padding = torch.where(valid, 0.0, -torch.inf).to(hidden)
            padding = padding.expand(*outer, size).flatten(0, -2)
        found = self.layers(hidden.flatten(0, -3), mask, padding, is_causal=self.causal)
        features: Tensor = found.unflatten(0, outer)
        return features


class DecayImputer(PyroModule):
    r"""Fills gaps with the last value, which decays toward a generated one [1, 2].

    Let :math:`s` be the mask, :math:`\Delta` the time since the last observed value of the channel
    (before the first one, the value zero at time zero), and :math:`\tilde x` the generated values.
    Then

    .. math:: x' = s\, x + (1 - s) \bigl(\gamma\, x_\text{last} + (1 - \gamma)\, \tilde x\bigr),
              \qquad \gamma = \exp(-\max(0, w \Delta + |b|)),

    where :math:`w` and :math:`b` are learned for each channel.

    :param int num_channels: number of channels.
    :param float bias: initial value of :math:`b`; :math:`w` starts at zero.

    [1] Z. Che, S. Purushotham, K. Cho, D. Sontag, Y. Liu (2018),
    Recurrent neural networks for multivariate time series with missing values.

    [2] S. Kim, H. Kim, E. Yun, H. Lee, J. Lee, J. Lee (2023), Probabilistic imputation for
    time-series classification with missing data.

    Example::

        >>> imputer = DecayImputer(1)
        >>> x, mask = torch.tensor([[[2.0], [0.0]]]), torch.tensor([[[True], [False]]])
        >>> imputer(x, mask, torch.zeros(1, 2, 1), torch.tensor([[0.0, 1.0]])).flatten()
        tensor([2.0000, 1.9025], grad_fn=<ViewBackward0>)
    """

    def __init__(self, num_channels: int, bias: float = 0.05) -> None:
        super().__init__()
        self.num_channels = checks.integer("num_channels", num_channels, 1)
        start = torch.full((num_channels,), checks.number("bias", bias, least=0))
        self.weight = nn.Parameter(torch.zeros(num_channels))
        self.bias = nn.Parameter(start)

    def gamma(self, elapsed: Tensor) -> Tensor:
        r"""Return the decay factor of the last observed value.

        :param Tensor elapsed: :math:`\Delta`. **Shape:** ``(*batch, num_channels)``.
        :returns: **Shape:** as ``elapsed``.
        """
        elapsed = checks.as_tensor(
            "elapsed", elapsed, f"(*batch, {self.num_channels})", like=self.weight
        )
        return (-(self.weight * elapsed + self.bias.abs()).relu()).exp()

    def forward(self, x: Tensor, mask: Tensor, generated: Tensor, times: Tensor) -> Tensor:
        """Fill the gaps. Leading dimensions broadcast.

        :param Tensor x: **Shape:** ``(*batch, num_steps, num_channels)``.
        :param Tensor mask: booleans, true for values of ``x`` to use. **Shape:** as ``x``.
        :param Tensor generated: values for gaps. **Shape:** as ``x``.
        :param Tensor times: times of the steps, increasing. **Shape:** ``(*batch, num_steps)``.
        :returns: **Shape:** as ``x``.
        """
        shape = f"(*batch, num_steps, {self.num_channels})"
        x, mask = (
            checks.as_tensor("x", x, shape),
            checks.as_tensor("mask", mask, shape, kind="booleans"),
        )
        generated = checks.as_tensor("generated", generated, shape)
        times = checks.as_tensor("times", times, f"(*batch, {x.shape[-2]})")
        try:
            size = torch.broadcast_shapes(
                x.shape, mask.shape, generated.shape, (*times.shape, self.num_channels)
            )
        except RuntimeError:
            raise ValueError(
                "x, mask, generated and times must broadcast, got the shapes "
                f"{tuple(x.shape)}, {tuple(mask.shape)}, {tuple(generated.shape)} and "
                f"{tuple(times.shape)}"
            ) from None
        try:
            falls = bool((times[..., 1:] < times[..., :-1]).any())
        except RuntimeError:  # a graph that is recorded knows no values
            falls = False
        if falls:
            raise ValueError("times must rise from step to step, got times that fall")
        return fade(self, x, mask, generated, times).expand(size)


def fade(
    imputer: DecayImputer, x: Tensor, mask: Tensor, generated: Tensor, times: Tensor
) -> Tensor:
    """Impute the missing values of series; times may drop back to zero in the padding."""
    generated = torch.where(mask, 0.0, generated)  # or NaN there would be in the gradients
    last, elapsed = last_observed(x, mask, times)
    gamma = imputer.gamma(elapsed)
    return torch.where(mask, x, gamma * last + (1.0 - gamma) * generated)


def last_observed(x: Tensor, mask: Tensor, times: Tensor) -> tuple[Tensor, Tensor]:
    """The last observed value of each channel, at the step itself or before, and its age."""
    size = torch.broadcast_shapes(x.shape, mask.shape, (*times.shape, 1))
    number = torch.arange(1, size[-2] + 1, device=mask.device)[:, None]
    index = (mask * number).cummax(-2).values.expand(size)  # zero before the first
    index, first = index - 1, index == 0
    last = x.expand(size).gather(-2, index.clamp(min=0))
    times = times[..., None].expand(size)
    age = times - torch.where(first, 0.0, times.gather(-2, index.clamp(min=0)))
    return torch.where(first, 0.0, last), age
