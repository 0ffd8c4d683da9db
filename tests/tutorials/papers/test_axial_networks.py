"""The page on axial networks: its parts, and in full its claims."""

import pytest
import torch
from torch.nn.functional import pad

from pyro_ext.tutorials.papers._axial_rivals import ConvNetwork, ConvSolver, inflated

PAGE = "axial-networks"
pytestmark = pytest.mark.slow


def test_an_image_is_the_first_slice_of_a_cube():
    """What is run on few slices is what the cube of 16 slices of the public code gives."""
    torch.manual_seed(0)
    network = ConvNetwork(3, channels=8)
    images = torch.randn(3, 6, 5, 1)
    cube = pad(images[:, None], [0] * 7 + [15])
    torch.testing.assert_close(network(images), network(cube))
    for image, volume in zip(
        torch.autograd.grad(network(images).square().sum(), list(network.parameters())),
        torch.autograd.grad(network(cube).square().sum(), list(network.parameters())),
        strict=True,
    ):
        torch.testing.assert_close(image, volume, atol=1e-4, rtol=1e-4)


def test_inflated_kernels_do_the_same_on_constant_volumes():
    torch.manual_seed(0)
    solver = ConvSolver(2, 2, channels=4)
    history = torch.randn(3, 2, 5, 6, 1)
    volume = history[:, :, None].expand(-1, -1, 4, -1, -1, -1)
    expected = solver(history)[:, None].expand(-1, 4, -1, -1, -1)
    torch.testing.assert_close(inflated(solver)(volume), expected, atol=1e-5, rtol=1e-4)


def test_relative_errors(names):
    """Half of the way to the next state has half of the error of staying."""
    data = states, following = names["solutions"](3, 2, "heat", 0)

    class Still(torch.nn.Module):
        def forward(self, history):
            return 0.5 * history[:, -1] + 0.5 * following

    change = (states[:, -1] - following).flatten(1).norm(dim=1)
    expected = 0.5 * change / following.flatten(1).norm(dim=1)
    torch.testing.assert_close(names["error"](Still(), data), expected)


def test_networks_see_images_only(names):
    assert names["kernel_fields"](2, 2, seed=0)[0].dim() == 4
    assert len(names["accuracies"]["SXCNN, 3-D"]) == 3
