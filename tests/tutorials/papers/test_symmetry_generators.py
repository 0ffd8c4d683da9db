"""The page on symmetry generators: its parts, a short run, and in full its claims."""

import pytest
import torch

from pyro_ext.models.symmetry import FunctionField

pytest.importorskip("mlxtend")

PAGE = "symmetry-generators"
pytestmark = pytest.mark.slow


def test_tangency_of_known_fields(names):
    tangent = FunctionField(lambda z: torch.stack([-2 * z[..., 1:], z[..., :1]], -1), 2, 1)
    across = FunctionField(lambda z: torch.stack([z[..., :1], 2 * z[..., 1:]], -1), 2, 1)
    assert names["tangency"](tangent) == pytest.approx(0.0, abs=1e-6)
    assert names["tangency"](across) == pytest.approx(1.0, abs=1e-5)


def test_digits_are_gray_levels_on_a_background_of_zero(names):
    data = names["data"][0]
    images, test_images = data.train_inputs, data.test_inputs
    assert images.shape == (3000, 1, 28, 28) and len(test_images) == 1500
    assert float(images.min()) == 0 and float(images.max()) == 1
    assert float((images == 0).float().mean()) > 0.5
    others = {tuple(image.flatten().tolist()) for image in test_images[:20]}
    assert not others & {tuple(image.flatten().tolist()) for image in images}


def test_fields_are_compared_as_they_should_be(names):
    scores = names["scores"][0]
    sizes = {"learned": 4, "infinitesimal": 4, "affine": 6, "random": 20}
    assert {name: len(found) for name, found in scores.items()} == sizes
