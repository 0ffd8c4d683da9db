"""The page on human feedback inversion: its parts, and in full its claims."""

import pytest
import torch

pytest.importorskip("diffusers")

PAGE = "hfi"
pytestmark = [
    pytest.mark.slow,
    # Short runs judge images of a model that was not trained, in which there is nothing to learn.
    pytest.mark.filterwarnings("ignore:training brought no improvement"),
]


def test_person_and_judge_are_not_the_same(names):
    """The person knows one half of the digits; both read real ones, and rarely differ."""
    images, digits = names["real"], names["digits"]
    assert len(names["half"].unique()) == len(images) // 2
    unseen = torch.ones(len(images), dtype=torch.bool)
    unseen[names["half"]] = False
    read = torch.as_tensor(names["neighbors"].predict(images[unseen].flatten(1).numpy()))
    assert (read == digits[unseen]).double().mean() > 0.96
    assert names["rate"](images[digits == 7], 7) > 0.99
    assert names["rate"](images[digits % 2 == 0], 7, *names["OTHERS"]) < 0.01
    assert names["rate"](images[digits % 2 == 1], 7, *names["OTHERS"]) > 0.99


def test_labels_are_wrong_as_often_as_the_page_says(names):
    """Of 1,797 some 5 %, within four standard errors: a false alarm for one seed in 15,000."""
    images = names["real"]
    brightness = images.mean((1, 2, 3))
    clean = brightness > brightness.median()  # as in a short run
    wrong = (names["person"](images, 0) != clean).double().mean()
    assert float(wrong) == pytest.approx(0.05, abs=4 * (0.05 * 0.95 / len(images)) ** 0.5)
    assert torch.equal(names["person"](images, 1), names["person"](images, 1))


def test_methods_start_from_the_same_noise(names):
    pipeline, draw = names["pipeline"], names["draw"]
    images = draw(pipeline, "odd", 0)
    assert torch.equal(images, draw(pipeline, "odd", 0))
    assert not torch.equal(images, draw(pipeline, "odd", 1))
    # A negative prompt that equals the prompt, and the same concept, change nothing: no guidance.
    safe = names["draw_safely"](pipeline, "odd", 0, "odd", "max")
    torch.testing.assert_close(safe, images, atol=1e-4, rtol=1e-4)


def test_each_method_has_a_word_and_a_token(names):
    methods = ("SDD", "ESD", "negative prompt", "strong safe guidance", "max safe guidance")
    expected = {f"{method}, {what}" for method in methods for what in ("word", "token")}
    for drawn in names["odd"].values():
        assert set(drawn) == {"the model", *expected}
        assert {len(images) for images in drawn.values()} == {names["NUM_DRAWN"]}
