"""Baselines: classifiers of series with gaps that impute a single value, or none."""

from functools import partial
from typing import Any, Literal, Unpack, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

from pyro_ext._lib import checks
from pyro_ext.models.time_series.networks import (
    NUM_HEADS,
    DecayImputer,
    SeriesTransformer,
    fade,
    last_observed,
)
from pyro_ext.models.time_series.series import Series, as_series, check_labels
from pyro_ext.models.time_series.training import SeriesTraining, train
from pyro_ext.nn.attention import check_heads

Fill = Literal["zero", "mean", "last"]


def fill_gaps(x: Tensor, mask: Tensor, how: Fill = "mean") -> Tensor:
    """Fill gaps of series with one value each.

    :param Tensor x: values; those in gaps have no influence. **Shape:** ``(*batch, num_steps,
        num_channels)``.
    :param Tensor mask: booleans, true for observed values. **Shape:** as ``x``.
    :param str how: ``"zero"``; ``"mean"``, of the channel's observed values in the series; or
        ``"last"``, the last observed value. Gaps without such a value get zero.
    :returns: **Shape:** as ``x``.

    Example::

        >>> x = torch.tensor([[1.0], [0.0], [4.0], [0.0]])
        >>> mask = torch.tensor([[True], [False], [True], [False]])
        >>> fill_gaps(x, mask, "mean").flatten(), fill_gaps(x, mask, "last").flatten()
        (tensor([1.0000, 2.5000, 4.0000, 2.5000]), tensor([1., 1., 4., 4.]))
    """
    checks.choice("how", how, get_args(Fill))
    x = checks.as_tensor("x", x, "(*batch, num_steps, num_channels)")
    mask = checks.as_tensor("mask", mask, str(tuple(x.shape)), kind="booleans")
    x = torch.where(mask, x, 0.0)
    checks.all_finite("x", x)
    if how == "zero":
        return x
    if how == "last":
        return last_observed(x, mask, torch.zeros_like(x[..., 0]))[0]
    mean = x.sum(-2, keepdim=True) / mask.sum(-2, keepdim=True).clamp(min=1)
    return torch.where(mask, x, mean)


class _Classifier(nn.Module):
    """Base class of classifiers of series; a subclass returns the logits of checked series."""

    def __init__(self, num_channels: int, num_classes: int, width: int) -> None:
        super().__init__()
        self.num_channels = checks.integer("num_channels", num_channels, 1)
        self.num_classes = checks.integer("num_classes", num_classes, 2)
        self.to_classes = nn.Linear(checks.integer("width", width, 2), num_classes)

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        times: Tensor | None = None,
        lengths: Tensor | None = None,
    ) -> Tensor:
        """Logits of the classes.

        :param Tensor x: **Shape:** ``(num_series, num_steps, num_channels)``.
        :param Tensor mask: bool, true where a value is observed; by default all are.
            **Shape:** as ``x``.
        :param Tensor times: of the steps, ``>= 0`` and rising; by default they count from zero.
            **Shape:** ``(num_series, num_steps)``.
        :param Tensor lengths: number of steps of each series without padding; by default all.
            **Shape:** ``(num_series,)``.
        :returns: **Shape:** ``(num_series, num_classes)``.
        """
        return self._logits(self._series(x, mask, times, lengths))

    @torch.no_grad()
    def predict(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        times: Tensor | None = None,
        lengths: Tensor | None = None,
    ) -> Tensor:
        """Probabilities of the classes; arguments as of :meth:`forward`."""
        probs: Tensor = self(x, mask, times, lengths).softmax(-1)
        return probs

    def fit(
        self,
        x: Tensor,
        y: Tensor,
        mask: Tensor | None = None,
        times: Tensor | None = None,
        lengths: Tensor | None = None,
        **training: Unpack[SeriesTraining],
    ) -> list[float]:
        """Train by cross entropy, as :meth:`SupervisedNotMIWAE.fit` does by its bound.

        :param Tensor x: as of :meth:`forward`, as are the next arguments.
        :param Tensor y: classes. **Shape:** ``(num_series,)``.
        :param Tensor mask: where values are observed.
        :param Tensor times: of the steps.
        :param Tensor lengths: of the series.
        :param training: options of :class:`SeriesTraining`.
        :returns: the loss of every step.
        :raises TrainingDiverged: where loss or gradient are not finite.
        :raises CheckpointError: where the checkpoint is damaged or of another training.
        """
        series = self._series(x, mask, times, lengths)
        y = check_labels(y, series, self.num_classes, online=False)

        def loss(part: Series, labels: Tensor, reduction: str = "mean") -> Tensor:
            return functional.cross_entropy(self._logits(part), labels, reduction=reduction)

        return train(self, loss, partial(loss, reduction="sum"), series, y, **training)

    def _logits(self, series: Series) -> Tensor:
        """Logits of checked series."""
        raise NotImplementedError

    def _series(self, x: Any, mask: Any, times: Any, lengths: Any) -> Series:
        return as_series(
            x,
            mask,
            times,
            lengths,
            None,
            num_channels=self.num_channels,
            num_static=0,
            duration=None,
            like=self.to_classes.weight,
        )


class FilledClassifier(_Classifier):
    """The classifier of :class:`SupervisedNotMIWAE`, applied to gaps filled with a single value.

    :param int num_channels: number of channels.
    :param int num_classes: number of classes.
    :param str fill: as ``how`` of :func:`fill_gaps`.
    :param bool see_mask: whether the mask is also an input, as in a plain transformer for series
        with gaps.
    :param int width: width of the network, an even number, since attention has two heads.
    :param int num_layers: number of layers of the transformer.
    :raises ValueError: for arguments out of range.

    Example::

        >>> network = FilledClassifier(3, 2, "mean", width=8)
        >>> network(torch.randn(4, 5, 3), torch.rand(4, 5, 3) < 0.5).shape
        torch.Size([4, 2])
    """

    def __init__(
        self,
        num_channels: int,
        num_classes: int,
        fill: Fill = "zero",
        *,
        see_mask: bool = False,
        width: int = 32,
        num_layers: int = 2,
    ) -> None:
        super().__init__(num_channels, num_classes, width)
        checks.choice("fill", fill, get_args(Fill))
        self.fill, self.see_mask = fill, checks.boolean("see_mask", see_mask)
        checks.integer("num_layers", num_layers, 1)
        check_heads("width", width, NUM_HEADS)
        self.network = SeriesTransformer(
            num_channels * (2 if see_mask else 1), width, num_layers, 3, causal=False
        )

    def _logits(self, series: Series) -> Tensor:
        inputs = torch.where(
            series.valid[..., None], fill_gaps(series.x, series.mask, self.fill), 0.0
        )
        if self.see_mask:
            inputs = torch.cat([inputs, series.mask.to(inputs)], -1)
        hidden = self.network(inputs, series.times, series.valid)
        total = torch.where(series.valid[..., None], hidden, 0.0).sum(-2)
        logits: Tensor = self.to_classes(total / series.lengths[:, None])
        return logits


class GRUD(_Classifier):
    r"""GRU-D, a recurrent network whose inputs and states decay in gaps [1].

    Let :math:`\delta` be the time since the last observed value of each channel. Inputs are the
    mask and these values, which decay toward the mean, zero, by the factor
    :math:`\gamma_x = \exp(-\max(0, w \delta + |b|))`. The previous state is multiplied by
    :math:`\gamma_h = \exp(-\max(0, W \delta + b))`.

    :param int num_channels: number of channels.
    :param int num_classes: number of classes.
    :param int width: width of the state.
    :raises ValueError: for arguments out of range.

    [1] Z. Che, S. Purushotham, K. Cho, D. Sontag, Y. Liu (2018),
    Recurrent neural networks for multivariate time series with missing values.

    Example::

        >>> network = GRUD(3, 2, width=8)
        >>> network(torch.randn(4, 5, 3), torch.rand(4, 5, 3) < 0.5).shape
        torch.Size([4, 2])
    """

    def __init__(self, num_channels: int, num_classes: int, *, width: int = 32) -> None:
        super().__init__(num_channels, num_classes, width)
        self.cell = nn.GRUCell(2 * num_channels, width)
        self.state_decay = nn.Linear(num_channels, width)
        self.imputer = DecayImputer(num_channels)

    def _logits(self, series: Series) -> Tensor:
        filled = fade(self.imputer, series.x, series.mask, torch.zeros_like(series.x), series.times)
        inputs = torch.cat([filled, series.mask.to(filled)], -1)
        # Since the last value before the step, or since the beginning.
        before = functional.pad(series.mask[:, :-1], (0, 0, 1, 0))
        stamps = functional.pad(series.times[:, :-1], (1, 0))[..., None].expand(before.shape)
        elapsed = series.times[..., None] - last_observed(stamps, before, series.times)[0]
        state_decay = (-self.state_decay(elapsed).relu()).exp()
        state = inputs.new_zeros(len(inputs), self.to_classes.in_features)
        for step in range(inputs.shape[1]):
            after = self.cell(inputs[:, step], state_decay[:, step] * state)
            state = torch.where(series.valid[:, step, None], after, state)
        logits: Tensor = self.to_classes(state)
        return logits
