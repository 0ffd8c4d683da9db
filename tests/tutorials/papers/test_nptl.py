"""The page on nonparametric transfer learning: its parts, and in full its claims."""

import pytest
import torch

pytest.importorskip("mlxtend")

PAGE = "nptl"
pytestmark = pytest.mark.slow


def test_parts_of_a_task_share_no_image(names):
    task = names["task"](50, 3)
    assert len(task.inputs) == 50 and len(task.validation[0]) == 50
    parts = (task.inputs, task.validation[0], task.test[0])
    rows = {tuple(row.tolist()) for part in parts for row in part}
    assert len(rows) == sum(len(part) for part in parts)
    assert set(task.labels.tolist()) <= set(range(5))


def test_images_are_pooled_and_scaled(names):
    pooled = names["pooled"] * 0.3 + 0.13
    assert pooled.shape == (5000, 196)
    assert float(pooled.min()) == pytest.approx(0.0, abs=1e-6) and float(pooled.max()) <= 1.0
    blocks = names["images"][7, 0].reshape(14, 2, 14, 2).mean((1, 3)).flatten()
    expected = blocks / names["images"].max()
    torch.testing.assert_close(pooled[7], expected, atol=1e-5, rtol=0)


def test_the_best_of_several_has_the_least_validation_loss(names):

    class Known:
        def __init__(self, value):
            self.value = value

        def run(self, inputs, labels):
            return self

        def probabilities(self, inputs):
            right = torch.nn.functional.one_hot(problem.validation[1], 5).double()
            return (self.value * right + (1 - self.value) / 5)[None]

    problem = names["task"](50, 0)
    chosen, value = names["best_of"](Known, (0.2, 0.9, 0.5), problem)
    assert value == 0.9 and chosen.value == 0.9


def test_gains_have_the_sign_that_the_claims_say(names):
    results = names["results"]
    seed, number = names["SEEDS"][0], names["NUM_IMAGES"][0]
    worse = results["NPTL", number, seed]._replace(loss=5.0, accuracy=0.1)
    better = worse._replace(loss=4.0, accuracy=0.4)
    results["ensemble", number, seed], results["NPTL", number, seed] = worse, better
    assert names["gains"]("ensemble")[seed] == pytest.approx(1.0)
    assert names["least_gain"]("ensemble")[seed] == pytest.approx(1.0)
    assert names["accuracy_change"]("ensemble")[seed] == pytest.approx(0.3)
