"""The page on safe self-distillation: its parts, and in full its claims."""

import pytest
import torch

pytest.importorskip("diffusers")
pytest.importorskip("sklearn")

PAGE = "sdd"
pytestmark = pytest.mark.slow


def test_rates_are_of_the_digit_of_the_prompt(names):
    real, digits = names["digit_images"]()
    assert names["rate_of"](real[digits == 7], 7) == 1.0
    assert names["rate_of"](real[digits == 7], 4) == 0.0
    rates = {word: 1.0 for word in names["WORDS"]} | {"seven": 0.0, "four": 0.1}
    one = names["Drawn"]({}, rates, 0.0)
    assert one.others("seven", "four") == 1.0
    assert one.others("seven") == pytest.approx(1.0 - 0.9 / 9)


def test_methods_draw_from_the_same_noise(names):
    draw, network = names["draw"], names["pipeline"].unet
    first = draw(network, 0)
    for word, images in draw(network, 0).images.items():
        assert torch.equal(images, first.images[word])
    safe = draw(network, 0, "safe guidance")
    torch.testing.assert_close(safe.images["seven"], first.images["seven"])
    assert not torch.allclose(safe.images["four"], first.images["four"])
    negative = draw(network, 0, "negative prompt")
    assert not torch.allclose(negative.images["seven"], first.images["seven"])


def test_predictions_are_compared_at_the_same_digits(names):
    network = names["pipeline"].unet
    assert torch.equal(names["predictions"](network, "one"), names["original"]["one"])
    assert not torch.equal(names["original"]["one"], names["original"]["seven"])
