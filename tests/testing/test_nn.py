"""The checks of networks refuse modules and blocks that are wrong."""

import pytest
import torch
from torch import nn

from pyro_ext.testing.nn import check_module, check_set_block


class Linear(nn.Linear):
    def __init__(self):
        super().__init__(3, 2)


class RowsSeeEachOther(Linear):
    def forward(self, x):
        return super().forward(x - x.mean(0))


class SingleInside(Linear):
    def forward(self, x):
        return nn.functional.linear(x.float(), self.weight.float(), self.bias.float())


class RoundedInside(Linear):
    def forward(self, x):
        return super().forward(x.bfloat16().to(x))


class NoGradient(Linear):
    def forward(self, x):
        return super().forward(x) + x.detach().sum(-1, keepdim=True)


class HiddenState(Linear):
    def __init__(self):
        super().__init__()
        self.scale = float(torch.rand(()))

    def forward(self, x):
        return self.scale * super().forward(x)


class Random(Linear):
    def forward(self, x):
        return super().forward(x) + torch.rand(())


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (RowsSeeEachOther, "row 0 alone and among others differ by"),
        (SingleInside, "outputs are torch.float32 of a module in float64"),
        (RoundedInside, "slope and finite difference differ by|float32 and float64 differ by"),
        (NoGradient, "slope and finite difference differ by"),
        (HiddenState, "a module of the same state differ by"),
        (Random, "outputs of two calls differ by"),
    ],
)
def test_modules_that_are_wrong(module, message):
    x = torch.randn(4, 3)
    check_module(Linear, x)
    with pytest.raises(AssertionError, match=message):
        check_module(module, x)


def mean(x, mask=None):
    """The mean of the elements that are present, zero of none."""
    if mask is None:
        mask = torch.ones(x.shape[:2], dtype=torch.bool)
    total = x.masked_fill(~mask[..., None], 0).sum(1)
    return total / mask.sum(1, keepdim=True).clamp(min=1)


def looks_at_padding(x, mask=None):
    return x.nan_to_num(1.0, posinf=1.0).mean(1) if x.shape[1] else mean(x)


def counts_padding(x, mask=None):
    return mean(x, mask) + 0.1 * x.shape[1]


def multiplies_by_the_mask(x, mask=None):
    return mean(x, mask) if mask is None else (x * mask[..., None]).sum(1) / mask.sum(1)[:, None]


def learns_from_padding(x, mask=None):
    return mean(x, mask) + 0.0 * x.detach().nan_to_num(1.0, posinf=1.0).sum() + leak(x)


def leak(x):
    """Zero, with a gradient in every element."""
    filled = x.nan_to_num(1.0, posinf=1.0)
    return filled.sum() - filled.sum().detach()


def of_no_elements(x, mask=None):
    return x.mean(1) if mask is None else mean(x, mask)


def sees_the_order(x, mask=None):
    return mean(x, mask) + x[:, :1].sum(1)


def sees_no_element(x, mask=None):
    return 0.0 * mean(x, mask)


def centered(x, mask=None):
    return x - mean(x, mask)[:, None]


def numbered(x, mask=None):
    return centered(x, mask) + torch.arange(x.shape[1])[:, None]


@pytest.mark.parametrize(
    ("block", "equivariant", "message"),
    [
        (looks_at_padding, False, "outputs with padding of 7.0 differ by"),
        (counts_padding, False, "outputs with padding of 7.0 differ by 0.3"),
        (multiplies_by_the_mask, False, "outputs with padding of nan: (?s:.*) is not finite"),
        (learns_from_padding, False, "padding of 7.0: the gradient in the padding is not 0"),
        (of_no_elements, False, "outputs of empty sets are .*nan"),
        (sees_the_order, False, "invariance: outputs of permuted elements differ by"),
        (sees_no_element, False, "outputs do not depend on other elements"),
        (numbered, True, "equivariance: outputs of permuted elements differ by"),
    ],
)
def test_blocks_that_are_wrong(block, equivariant, message):
    check_set_block(lambda: mean, 3, equivariant=False)
    check_set_block(lambda: centered, 3, equivariant=True)
    with pytest.raises(AssertionError, match=message):
        check_set_block(lambda: block, 3, equivariant=equivariant)
