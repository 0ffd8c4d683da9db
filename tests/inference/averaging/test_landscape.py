"""Losses along paths, and the trace of a Hessian."""

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from pyro_ext.inference.averaging import BezierPath, hutchinson_trace, path_losses
from pyro_ext.nn import MLP


def test_losses_along_a_path(float64):
    path = BezierPath(*(MLP(4, [6], 3) for _ in range(2)))
    nn.init.normal_(path.control[0].weight)
    x, y = torch.randn(20, 4), torch.arange(20) % 3
    positions = torch.tensor([0.0, 0.3, 1.0])
    losses = path_losses(path, lambda net: cross_entropy(net(x), y), positions)
    expected = [cross_entropy(path(x, r), y) for r in positions]
    torch.testing.assert_close(losses, torch.stack(expected).detach())
    with pytest.raises(ValueError, match="loss must be finite, got nan in row 0"):
        path_losses(path, lambda net: torch.tensor(torch.nan), positions)


def test_trace_of_a_quadratic(float64):
    """The mean is the trace, and its variance twice the sum of squares off the diagonal."""
    root = torch.randn(6, 6)
    hessian = root @ root.T

    def loss(w):
        both = torch.cat([w["a"].flatten(), w["b"]])
        return 0.5 * both @ hessian @ both

    weights = {"a": torch.randn(2, 2), "b": torch.randn(2)}
    found = hutchinson_trace(loss, weights, 4000, seed=0)
    variance = 2 * (hessian - hessian.diag().diag()).square().sum()
    exact_error = float((variance / 4000).sqrt())
    assert found.standard_error == pytest.approx(exact_error, rel=0.1)
    assert found.mean == pytest.approx(float(hessian.trace()), abs=4 * exact_error)
    assert found == hutchinson_trace(loss, weights, 4000, seed=0)
    diagonal = hutchinson_trace(lambda w: w["b"].square().sum() / 2, weights, 2, seed=1)
    assert diagonal == (2.0, 0.0)
