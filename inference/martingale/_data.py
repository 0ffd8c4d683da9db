"""Checks of the data that predictive rules get."""

import torch
from torch import Tensor

from pyro_ext._checks import as_tensor, check_instance

__all__ = ["check_data", "single_tensor"]


def check_data(data: tuple[Tensor, ...], least: int = 1) -> int:
    """Check that data are tensors with as many rows each.

    :param tuple data: what a predictive rule got.
    :param int least: the smallest number of observations.
    :returns: the number of observations.
    :raises TypeError: where one is no tensor.
    :raises ValueError: where numbers of rows differ or are too small, or a value is not finite.
    """
    if not data:
        raise ValueError("data must be at least one tensor of observations, got none")
    for place, value in enumerate(data):
        check_instance(f"data[{place}]", value, Tensor, "a tensor")
        as_tensor(f"data[{place}]", value, allow_empty=True)
        if value.dim() == 0 or len(value) < least:
            raise ValueError(
                f"data[{place}] must have the shape (n, *event) with n >= {least}, got "
                f"{tuple(value.shape)}"
            )
        if len(value) != len(data[0]):
            raise ValueError(
                f"data[{place}] has {len(value)} rows, but data[0] {len(data[0])}; wanted one row "
                "of each for an observation"
            )
        if not bool(value.isfinite().all()):
            rows = (~value.isfinite()).reshape(len(value), -1).any(1).nonzero()[:, 0].tolist()
            raise ValueError(
                f"data[{place}] must be finite, got NaN or inf in the rows {rows[:10]}"
            )
    return len(data[0])


def single_tensor(data: tuple[Tensor, ...], rule: str, least: int = 1) -> Tensor:
    """Return data that have to be a single tensor of floating numbers.

    :param tuple data: what a predictive rule got.
    :param str rule: its name.
    :param int least: the smallest number of observations.
    :raises ValueError: for several tensors.
    """
    check_data(data, least)
    if len(data) != 1:
        raise ValueError(f"data must be one tensor for {rule}, got {len(data)}")
    (value,) = data
    return value if value.is_floating_point() else value.to(torch.get_default_dtype())
