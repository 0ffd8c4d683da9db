"""Random changes of images."""

import pytest
import torch

from pyro_ext.datasets import random_shifts


@pytest.mark.parametrize("batch", [(), (2,), (2, 3)])
def test_each_image_is_shifted_as_a_whole(batch):
    images = torch.rand(200, *batch, 5, 6)
    shifted = random_shifts(images, 1, torch.Generator().manual_seed(0))
    assert shifted.shape == images.shape
    padded = torch.nn.functional.pad(images.reshape(200, -1, 5, 6), [1] * 4)
    found = set()
    for image, whole in zip(shifted.reshape(200, -1, 5, 6), padded, strict=True):
        fits = [
            (i, j)
            for i in range(3)
            for j in range(3)
            if torch.equal(image, whole[:, i : i + 5, j : j + 6])
        ]
        assert len(fits) == 1
        found.update(fits)
    assert len(found) == 9


def test_no_shift_and_same_seed():
    images = torch.rand(7, 1, 4, 4, dtype=torch.float64)
    assert torch.equal(random_shifts(images, 0), images)
    first, second = (random_shifts(images, 2, torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(first, second)
