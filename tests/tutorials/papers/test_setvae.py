"""The page on SetVAE: its parts, a short run, and in full its claims."""

import numpy as np
import pytest
import torch

from tests.pages import check_short_report

datasets = pytest.importorskip("sklearn.datasets")

PAGE = "setvae"
pytestmark = pytest.mark.slow


def test_short_run_saves_a_report_and_figures(short_run):
    _, folder = short_run
    check_short_report(folder, PAGE, 5, {"sets"})


def test_points_are_dark_pixels(short_run):
    """Back on the grid they are the pixels of the source above 6, each once."""
    names, _ = short_run
    source = {tuple((image > 6).flatten()) for image in datasets.load_digits().images}
    sets = [names["train"], names["test"]]
    assert [len(x) for x, _ in sets] == [1400, 397]
    assert max(mask.shape[1] for _, mask in sets) == 32
    assert float(sets[0][1].sum(1).float().mean()) == pytest.approx(22, abs=0.5)
    for x, mask in sets:
        for points, there in zip(x[:50], mask[:50], strict=True):
            column, height = (8 * points[there]).floor().long().T
            image = np.zeros((8, 8), dtype=bool)
            image[7 - height, column] = True
            assert image.sum() == there.sum() and tuple(image.flatten()) in source


def test_rivals_have_the_parameters_of_the_comparison(short_run):
    names, _ = short_run
    numbers = {
        name: sum(p.numel() for p in by_seed[0].parameters())
        for name, by_seed in names["networks"].items()
    }
    assert numbers["mean pool"] == 19_586
    assert 5 * numbers["single scale"] < numbers["hierarchical"] < 107_714


def test_mean_pooling_sees_neither_order_nor_padding(short_run):
    names, _ = short_run
    network = names["networks"]["mean pool"][0]
    x, mask = names["test"]
    order = torch.randperm(x.shape[1])
    filled = x.masked_fill(~mask[..., None], 9.0)
    with torch.no_grad():
        expected = network.posterior(x, mask)
        found = network.posterior(filled[:, order], mask[:, order])
    torch.testing.assert_close(found.loc, expected.loc, atol=1e-5, rtol=1e-4)
    sets = network.sample([3, 5], seed=0)
    assert sets.x.shape == (2, 5, 2) and torch.equal(sets.x, network.sample([3, 5], seed=0).x)


def test_half_of_a_larger_set_is_as_large_as_the_first(short_run):
    names, _ = short_run
    network = names["networks"]["hierarchical"][0]
    double, equal = names["changes"](network, 0)
    few = network.sample(names["sizes"], seed=0)
    many = network.sample([2 * size for size in names["sizes"]], few.latents, seed=0)
    before, after = (names["pairwise"]((s.x, s.mask), names["test"]).amin(1) for s in (few, many))
    assert double == pytest.approx(abs(float(after.mean() / before.mean()) - 1), rel=1e-4)
    assert 0.0 < equal < 1.0
