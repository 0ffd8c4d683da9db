"""The page on Slot-Mixup: its parts, and in full its claims."""

import pyro
import pytest
import torch

from tests.pages import check_short_report

pytest.importorskip("mlxtend")
pytest.importorskip("sklearn")

PAGE = "slot-mixup"
pytestmark = pytest.mark.slow


def test_short_run_saves_a_report_and_figures(short_run):
    _, folder = short_run
    check_short_report(folder, PAGE, 7, {"reliability"})


def test_bags_are_what_the_page_says(short_run):
    """Nines in positive bags alone, as many as they should be, and images of the right half."""
    names, _ = short_run
    images = names["images"]
    assert not set(images.train_indices.tolist()) & set(images.test_indices.tolist())
    for number in (2, 4):
        bags = names["draw_bags"](names["test_x"], images.test_targets, 50, number, seed=0)
        nines = ((images.test_targets[bags.rows] == 9) & bags.mask).sum(1)
        assert nines.tolist() == (bags.labels * number).tolist()
        sizes = bags.mask.sum(1)
        assert bags.labels.sum() == 25 and int(sizes.min()) >= 20 and int(sizes.max()) <= 60
        assert torch.equal(bags.x, names["test_x"][bags.rows])
        again = names["draw_bags"](names["test_x"], images.test_targets, 50, number, seed=0)
        assert torch.equal(again.rows, bags.rows)
    pixels = images.train_inputs.flatten(1)
    left_over = (pixels - pixels.mean(0)).square().sum() - names["train_x"].square().sum()
    assert 0.0 < float(left_over / pixels.var(0).sum()) < 0.2 * len(pixels)
    torch.testing.assert_close(names["train_x"].mean(0), torch.zeros(64), atol=1e-3, rtol=0.0)


def test_training_is_reproducible(short_run):
    names, _ = short_run
    bags = names["draw_bags"](names["train_x"], names["images"].train_targets, 40, 4, seed=0)
    method = names["METHODS"]["slots + sub + mix"]
    before = torch.get_rng_state()
    with torch.random.fork_rng():
        pyro.set_rng_seed(1)
        first = names["train"](method, bags, 3, seed=5)
        pyro.set_rng_seed(2)
        second = names["train"](method, bags, 3, seed=5)
    assert torch.equal(torch.get_rng_state(), before)
    given = bags.x, bags.mask
    assert torch.equal(first(*given), second(*given))
    other = names["train"]((*method[:2], None), bags, 3, seed=5)
    assert not torch.equal(first(*given), other(*given))
