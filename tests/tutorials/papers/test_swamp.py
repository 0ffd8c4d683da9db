"""The page on SWAMP: its parts, a short run, and in full its claims."""

import pytest
import torch

pytest.importorskip("sklearn")

PAGE = "swamp"
pytestmark = pytest.mark.slow


def test_data_are_gray_levels_of_300_and_900_images(names):
    task = names["tasks"][0]
    images, labels = task.batches.rows
    assert images.shape == (300, 64) and task.images.shape == (900, 64) and len(labels) == 300
    levels = 16 * torch.cat([images, task.images])
    torch.testing.assert_close(levels, levels.round(), atol=1e-4, rtol=0)
    assert float(levels.min().round()) == 0 and float(levels.max().round()) == 16


def test_sparsities(names):
    assert list(map(float, names["levels"])) == pytest.approx(
        [1 - 0.6**c for c in range(3)], abs=1e-3
    )


def test_barriers(names):
    """None from a network to itself, and some to one with other weights."""
    task, other = names["tasks"][0], names["tasks"][2].network.state_dict()
    state = names["runs"]["SWAMP", 0][0].state
    assert names["barrier"](task, state, state) == pytest.approx(0.0, abs=1e-6)
    middle = {name: (value + other[name]) / 2 for name, value in state.items()}
    ends = (names["score"](task, one)[1] for one in (state, other))
    assert names["barrier"](task, state, other) >= names["score"](task, middle)[1] - sum(ends) / 2


def test_scores_of_synflow_prune_to_the_density(names):
    pruner = names["synflow_pruner"](names["tasks"][0])
    assert 1 - pruner.sparsity() == pytest.approx(names["DENSITY"], abs=1e-3)


@pytest.mark.page
def test_full_run_meets_its_claims(full_run):
    assert full_run.report.holds
    assert full_run.report.settings["accuracy"]["SWAMP"][-1] > 0.9
