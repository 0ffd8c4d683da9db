"""Pixels of images as points of functions."""

import pytest
import torch

from pyro_ext.models.neural_processes import ImageTasks


def numbered(num_images=7, height=3, width=4, channels=None):
    """Images whose numbers say which image, row and column a pixel is from."""
    image, row, column = torch.meshgrid(
        torch.arange(num_images), torch.arange(height), torch.arange(width), indexing="ij"
    )
    values = (100 * image + 10 * row + column).double()
    if channels is None:
        return values
    return values[..., None] + torch.arange(channels).double() / 10


def test_points_are_pixels_with_their_places():
    batch = ImageTasks(numbered(), num_tasks=5, num_context=(2, 6))(seed=0)
    points = batch.points
    assert points.inputs.shape == (5, 12, 2) and points.outputs.shape == (5, 12, 1)
    value = points.outputs[..., 0]
    row, column = value % 100 // 10, value % 10
    torch.testing.assert_close(points.inputs[..., 0], row * 2 / 2 - 1)
    torch.testing.assert_close(points.inputs[..., 1], column * 2 / 3 - 1)
    for task in range(5):
        image = (value[task] // 100).unique()
        assert len(image) == 1 and len(value[task].unique()) == 12
    assert len((value[:, 0] // 100).unique()) == 5
    assert points.inputs.dtype == torch.float64


def test_numbers_of_pixels():
    tasks = ImageTasks(numbered(), num_context=(2, 6), num_target=4)
    sizes = {
        (batch.context_inputs.shape[1], batch.target_inputs.shape[1])
        for batch in map(tasks, range(60))
    }
    assert sizes == {(number, 4) for number in range(2, 7)}


def test_channels():
    batch = ImageTasks(numbered(channels=3), num_context=(2, 2))(seed=0)
    outputs = batch.points.outputs
    assert outputs.shape == (16, 12, 3)
    torch.testing.assert_close(
        outputs[..., 1] - outputs[..., 0], torch.full((16, 12), 0.1).double()
    )


def test_what_users_may_get_wrong():
    with pytest.raises(ValueError, match="images must be of a floating type, got torch.uint8"):
        ImageTasks(torch.zeros(3, 4, 5, dtype=torch.uint8))
    with pytest.raises(ValueError, match="num_context must leave 8 of 12 pixels to ask for, got"):
        ImageTasks(numbered(), num_context=(3, 6), num_target=8)
