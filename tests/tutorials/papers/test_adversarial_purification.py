"""The page on adversarial purification: its parts, and in full its claims."""

from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("sklearn")

PAGE = "adversarial-purification"
pytestmark = pytest.mark.slow


def test_images_are_digits_that_were_held_out(names):
    first, other = names["settings"][0], names["settings"][1]
    assert first.images.shape == (names["NUM_IMAGES"], 1, 8, 8)
    assert 0.0 <= float(first.images.min()) and float(first.images.max()) <= 1.0
    torch.testing.assert_close(16 * first.images, (16 * first.images).round(), atol=1e-4, rtol=0)
    assert not torch.equal(first.images, other.images)
    assert torch.equal(names["setting"](0).images, first.images)


def test_attacks_stay_in_the_ball(names):
    for own in names["settings"].values():
        change = (own.attacked - own.images).abs()
        assert 0.05 < float(change.max()) < 0.12 + 1e-6
    change = (names["made"]["full gradient"] - names["x"]).abs().max()
    assert 0.0 < float(change) < 0.12 + 1e-6


def test_rivals_have_as_many_evaluations_of_the_score(names):
    own, x = names["settings"][0], names["settings"][0].images[:2]
    seen = []

    class Counted:
        levels = own.score.levels

        def score(self, x, level):
            seen.append(level)
            return own.score.score(x, level)

    counted, twice = SimpleNamespace(**{**vars(own), "score": Counted()}), 2 * names["NUM_STEPS"]
    for predict, wanted in (
        (names["adaptive"](counted), [1] * twice),
        (names["averaged"](counted, names["fixed"](counted, 0.01)), [1] * twice),
        (names["averaged"](counted, names["langevin"](counted, 1e-3)), [6] * twice),  # .136
        (names["averaged"](counted, names["fixed"](counted, 0.0), num_steps=0), []),
    ):
        seen.clear()
        assert predict(x).shape == (2, 10) and seen == wanted


def test_rivals_are_the_best_of_their_sizes(names):
    own = names["settings"][0]
    wrong = lambda x: torch.nn.functional.one_hot((own.labels + 1) % 10, 10).float()  # noqa: E731
    right = lambda x: torch.nn.functional.one_hot(own.labels, 10).float()  # noqa: E731
    found = names["accuracies"](own, wrong, right, wrong)
    assert found == {"natural": 1.0, "robust": 1.0}
