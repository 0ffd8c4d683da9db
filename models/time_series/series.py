"""Time series with gaps, padded to one length, at regular or irregular times."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyro_ext._lib import checks


class Series(NamedTuple):
    """Checked series: zero where nothing is observed, times scaled, masks false at padding."""

    x: Tensor  # (num_series, num_steps, num_channels)
    mask: Tensor  # bool, as x: true where observed
    times: Tensor  # (num_series, num_steps), in [0, 1] unless there is a duration
    lengths: Tensor  # (num_series,)
    static: Tensor  # (num_series, num_static)

    @property
    def valid(self) -> Tensor:
        """Mask of the steps that are not padding. **Shape:** ``(num_series, num_steps)``."""
        return torch.arange(self.x.shape[1], device=self.x.device) < self.lengths[:, None]

    def rows(self, index: Any) -> "Series":
        """Some of the series."""
        return Series(*(tensor[index] for tensor in self))

    def trimmed(self) -> "Series":
        """The same without steps that are padding in all of them."""
        size = int(self.lengths.max())
        x, mask, times = (tensor[:, :size] for tensor in self[:3])
        return Series(x, mask, times, self.lengths, self.static)


def as_series(
    x: Any,
    mask: Any,
    times: Any,
    lengths: Any,
    static: Any,
    *,
    num_channels: int,
    num_static: int,
    duration: float | None,
    like: Tensor,
) -> Series:
    """Check series and what belongs to them."""
    shape = f"(num_series, num_steps, {num_channels})"
    if isinstance(x, list | tuple) and len({len(one) for one in x if hasattr(one, "__len__")}) > 1:
        raise ValueError(
            f"x must have the shape {shape}, got series of different lengths: pad them with "
            "torch.nn.utils.rnn.pad_sequence, and pass their numbers of steps as lengths"
        )
    x = checks.as_tensor("x", x, shape, like=like).to(like)
    num_series, num_steps = x.shape[:2]
    if lengths is None:
        lengths = torch.full((num_series,), num_steps)
    lengths = checks.as_tensor("lengths", lengths, f"({num_series},)", kind="integers")
    lengths = lengths.to(x.device, torch.int64)
    if bool((lengths < 1).any()) or bool((lengths > num_steps).any()):
        raise ValueError(
            f"lengths must be from 1 to {num_steps}, the number of steps of x, got from "
            f"{int(lengths.min())} to {int(lengths.max())}"
        )
    valid = torch.arange(num_steps, device=x.device) < lengths[:, None]
    if mask is None:
        if bool(x[valid].isnan().any()):
            raise ValueError("x has NaN: pass mask, which is true where x is observed, got None")
        mask = torch.ones_like(x, dtype=torch.bool)
    mask = checks.as_tensor(
        "mask", mask, f"({num_series}, {num_steps}, {num_channels})", kind="booleans"
    )
    mask = mask.to(x.device) & valid[..., None]
    x = torch.where(mask, x, 0.0)
    checks.all_finite("x", x)
    if times is None:
        times = torch.arange(num_steps).expand(num_series, -1)
    # In float64, since seconds of a clock differ by less than float32 can tell.
    times = checks.as_tensor("times", times, f"({num_series}, {num_steps})", dtype=torch.float64)
    times = times.to(x.device)
    times = torch.where(valid, times, 0.0)
    checks.all_finite("times", times)
    is_late = (times[:, 1:] <= times[:, :-1]) & valid[:, 1:]
    if bool(is_late.any()) or bool((times < 0).any()):
        row = int((is_late.any(1) | (times < 0).any(1)).nonzero()[0])
        raise ValueError(
            "times must be >= 0 and rise from step to step, got "
            f"{[round(number, 6) for number in times[row, : lengths[row]].tolist()]!s:.80} in row "
            f"{row}"
        )
    last = times.gather(1, lengths[:, None] - 1)
    unit = torch.where(last > 0, last, 1.0) if duration is None else duration
    scaled = (times / unit).to(x)
    is_late = (scaled[:, 1:] <= scaled[:, :-1]) & valid[:, 1:]
    if bool(is_late.any()):
        raise ValueError(
            "times must be counted from the start of the series, got steps in row "
            f"{int(is_late.any(1).nonzero()[0])} that {x.dtype} cannot tell apart"
        )
    if static is None:
        if num_static:
            raise ValueError(f"static must have the shape (num_series, {num_static}), got None")
        static = x.new_zeros(num_series, 0)
    static = checks.as_tensor(
        "static", static, f"({num_series}, {num_static})", allow_empty=True, finite=True
    )
    return Series(x, mask, scaled, lengths, static.to(x))


def check_labels(y: Any, series: Series, num_classes: int, *, online: bool) -> Tensor:
    """Check classes, of which those at padding may be anything."""
    num_series, num_steps = series.x.shape[:2]
    shape = f"({num_series}, {num_steps})" if online else f"({num_series},)"
    labels = checks.as_tensor("y", y, shape, kind="integers").to(series.x.device, torch.int64)
    labels = torch.where(series.valid, labels, 0) if online else labels
    if bool((labels < 0).any()) or bool((labels >= num_classes).any()):
        raise ValueError(
            f"y must hold classes from 0 to {num_classes - 1}, got from {int(labels.min())} to "
            f"{int(labels.max())}"
        )
    return labels
