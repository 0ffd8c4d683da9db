"""The page on the Set Transformer: its parts, and in full its claims."""

import pytest
import torch

from tests.pages import check_short_report

PAGE = "set-transformer"
pytestmark = pytest.mark.slow


def test_short_run_saves_a_report_and_figures(short_run):
    _, folder = short_run
    check_short_report(folder, PAGE, 5, {"mixtures"})


def test_oracle_of_the_generator(short_run):
    """The truth has the density of the paper's oracle, and a step of EM raises it."""
    names, _ = short_run
    guide = names["guides"]["rFF + mean"][0]
    found = []
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for size in range(100, 501, 20):
            x, truth, label = names["generator"](50, size)
            assert x.shape == (50, size, 2) and label.shape == (50, size)
            before = guide.log_likelihood(x, values=truth)
            after = guide.log_likelihood(x, values=guide.em_step(x, values=truth))
            assert bool((after >= before - 1e-5).all())
            found.append(before.mean())
    assert -1.50 < float(torch.stack(found).mean()) < -1.45


def test_labels_of_the_generator(short_run):
    names, _ = short_run
    x, truth, label = names["generator"](5, 200)
    own = truth["locs"][torch.arange(5)[:, None], label]
    assert float((x - own).std()) == pytest.approx(0.3, abs=0.03)


def test_sets_of_digits(short_run):
    names, _ = short_run
    x, labels = names["digit_sets"](names["test_features"], names["digits"].test_targets, 6, 90)
    assert x.shape == (6, 90, 9)
    assert all(len(row.unique()) == 4 for row in labels)
