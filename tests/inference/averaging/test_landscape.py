"""Losses along paths and in planes, and the trace of a Hessian."""

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from pyro_ext.inference.averaging import BezierPath, hutchinson_trace, path_losses, plane_losses
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


def test_losses_in_a_plane(float64):
    """A squared distance from one corner is known everywhere."""
    a, b, c = (MLP(4, [6], 3) for _ in range(3))

    def flat(module):
        return nn.utils.parameters_to_vector(module.parameters()).detach()

    plane = plane_losses(a, b, c, lambda net: (flat(net) - flat(c)).square().sum(), 7)
    distances = torch.stack([flat(m) for m in (a, b, c)])
    torch.testing.assert_close(
        torch.cdist(plane.corners, plane.corners), torch.cdist(*[distances] * 2)
    )
    grid = torch.stack(torch.meshgrid(plane.x, plane.y, indexing="xy"), -1)
    torch.testing.assert_close(plane.losses, (grid - plane.corners[2]).square().sum(-1))
    assert (plane.x[0], plane.y[-1]) == pytest.approx(
        (
            float(
                plane.corners[:, 0].min()
                - 0.2 * (plane.corners[:, 0].max() - plane.corners[:, 0].min())
            ),
            1.2 * float(plane.corners[2, 1]),
        )
    )
    with pytest.raises(ValueError, match="module_c must not lie on the line"):
        plane_losses(a, b, BezierPath(a, b).module_at(0.2), lambda net: 0.0)


def test_batch_normalization_in_a_plane():
    networks = [nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)) for _ in range(3)]
    x = torch.randn(50, 4) + 5.0
    means = plane_losses(*networks, lambda net: net(x).mean().abs(), 3, batches=[x])
    assert float(means.losses.max()) < 1e-5


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
