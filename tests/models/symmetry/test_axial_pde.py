"""X-MPP and X-CViT: any number of axes, equivariance, gradients."""

from itertools import permutations

import pytest
import torch

from pyro_ext.models.symmetry import XMPP, XCViT
from pyro_ext.nn.axial import check_axis_equivariance

SIZES = [(8,), (4, 6), (2, 4, 6), (2, 4, 2, 6)]


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_x_mpp_commutes_with_permutations(sizes, dtype):
    network = XMPP(2, channels=8, num_heads=2).to(dtype)
    tolerance = 1e-5 if dtype == torch.float32 else 1e-12

    def of_last(field):
        return network(torch.stack([field.roll(1, 0), 0.5 * field, field], 1))

    check_axis_equivariance(of_last, (2, *sizes, 2), dtype=dtype, tolerance=tolerance)


@pytest.mark.parametrize("sizes", SIZES)
def test_x_cvit_commutes_with_permutations(sizes):
    network = XCViT(2, channels=8, num_heads=2).double()
    num_axes = len(sizes)
    history = torch.randn(2, 2, *sizes, 1).double()
    points = torch.rand(5, num_axes).double()
    outputs = network(history, points)
    assert outputs.shape == (2, 5, 1)
    for order in permutations(range(num_axes)):
        turned = history.permute(0, 1, *(2 + axis for axis in order), 2 + num_axes)
        torch.testing.assert_close(network(turned, points[:, list(order)]), outputs)
    assert not torch.allclose(network(history, points.flip(0)), outputs)


def test_x_cvit_tells_points_on_both_sides_of_a_diagonal():
    """(a, b) and (b, a) are different points of a field that is not symmetric, and in 3-D, too."""
    network = XCViT(2, channels=8, num_heads=2)
    for num_axes in (2, 3):
        history = torch.randn(2, 2, *[4] * num_axes, 1)
        point = torch.rand(1, num_axes)
        assert not torch.allclose(network(history, point), network(history, point.roll(1, 1)))


def test_units_of_a_field_do_not_matter():
    network = XMPP(1, channels=8, num_heads=2)
    history = torch.randn(3, 2, 4, 6, 1)
    moved = network(5.0 + 10.0 * history)
    torch.testing.assert_close(moved, 5.0 + 10.0 * network(history), atol=1e-3, rtol=1e-4)
    flat = torch.full((3, 2, 4, 6, 1), 2.0)
    assert network(flat).isfinite().all()
    torch.testing.assert_close(network(flat), flat[:, -1], atol=1e-4, rtol=0)


def test_gradients_of_a_constant_channel():
    history = torch.randn(2, 3, 4, 6, 2)
    history[..., 1] = 3.0
    history.requires_grad_()
    XMPP(2, channels=8, num_heads=2)(history).square().sum().backward()
    assert history.grad.isfinite().all()


@pytest.mark.parametrize("padding_mode", ["zeros", "circular"])
def test_ends_of_an_axis_are_one_place_on_a_circle_only(padding_mode):
    network = XCViT(2, channels=8, num_heads=2, padding_mode=padding_mode)
    history = torch.randn(2, 2, 4, 6, 1)
    ends = network(history, torch.tensor([[0.0, 0.3], [1.0, 0.3]]))
    is_same = torch.allclose(ends[:, 0], ends[:, 1], atol=1e-5)
    assert is_same == (padding_mode == "circular")


def test_patches_are_undone():
    for patch_size in (1, 2, 3, 4):
        network = XMPP(1, channels=4, num_blocks=1, num_heads=1, patch_size=patch_size)
        assert network(torch.randn(1, 2, 12, 24, 1)).shape == (1, 12, 24, 1)
        assert network(torch.randn(1, 3, 12, 1)).shape == (1, 12, 1)


def test_states_in_time_matter():
    network = XMPP(1, channels=8, num_heads=2)
    torch.nn.init.normal_(network.blocks[0].along_time.operator.bias)  # they start at zero
    history = torch.randn(2, 3, 4, 6, 1)
    swapped = history[:, [1, 0, 2]]
    assert not torch.allclose(network(history), network(swapped))


def test_wrong_histories_are_refused():
    with pytest.raises(ValueError, match="sizes that patch_size=2 divides"):
        XMPP()(torch.randn(1, 2, 4, 5, 1))
    with pytest.raises(ValueError, match=r"history must have the shape \(batch, 2, \*spatial, 1\)"):
        XCViT(2)(torch.randn(1, 3, 4, 4, 1), torch.rand(1, 2))
