"""The page on deep amortized clustering: its parts, and in full its claims."""

import pytest
import torch

from tests.pages import check_short_report

pytest.importorskip("mlxtend")

PAGE = "dac"
pytestmark = pytest.mark.slow


def test_short_run_saves_a_report_and_figures(short_run):
    _, folder = short_run
    check_short_report(folder, PAGE, 6, {"clusterings"})


def test_sets_are_new_and_follow_the_seed(short_run):
    names, _ = short_run
    sets, again, other = (names["new_sets"](8, seed) for seed in (0, 0, 1))
    assert all(torch.equal(a[0], b[0]) for a, b in zip(sets, again, strict=True))
    assert not torch.equal(sets[0][0][:20], other[0][0][:20])
    for x, labels in sets:
        assert 72 <= len(x) <= 240 and len(x) == len(labels) and int(labels.max()) < 8


def test_scores_of_a_perfect_and_a_trivial_method(short_run):
    names, _ = short_run
    sets = names["new_sets"](12, 0)
    by_points = {x: labels for x, labels in sets}
    assert names["scores"](lambda x, _: by_points[x], sets) == (1.0, 0.0)
    index, error = names["scores"](lambda x, _: torch.zeros(len(x)).long(), sets)
    numbers = [len(labels.unique()) for _, labels in sets]
    assert index == pytest.approx(0.0, abs=1e-9)
    assert error == pytest.approx(sum(numbers) / len(numbers) - 1.0)


def test_images_of_training_and_test_are_apart(short_run):
    """Even rows train and odd ones test; components are those of even rows."""
    names, _ = short_run
    assert names["is_even"].sum() == 2500 and names["components"].shape == (5000, 64)
    assert names["digits"].bincount().tolist() == [500] * 10
    variances = names["components"][names["is_even"]].var(0)
    assert bool((variances.diff() < 1e-6).all())
    test_rows = names["components"][~names["is_even"] & ~names["is_known"]]
    for x, labels in names["image_sets"](~names["is_known"], 3, 0):
        assert len(labels.unique()) > 1
        assert float(torch.cdist(x.double(), test_rows.double()).min(1).values.max()) < 1e-3
