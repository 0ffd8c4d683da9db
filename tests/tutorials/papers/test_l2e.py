"""The page on learning to explore: its parts, a short run, and in full its claims."""

import pytest
import torch

PAGE = "l2e"
pytestmark = pytest.mark.slow


def test_samplers_that_are_compared_have_seen_mnist_alone(names):
    assert all(task.args[0].shape == (800, 49) for task in names["TASKS"])
    for trainer in (*names["trainers"].values(), names["meta"]):
        assert trainer.tasks == names["TASKS"]


def test_sghmc_has_the_learning_rate_that_it_says(names):
    task = names["EVALUATION_TASKS"][1]
    kernel = names["sghmc"](0.2)(task.model, 90, 0)
    assert kernel.schedule.max_step_size == pytest.approx((0.2 / 90) ** 0.5)
    assert kernel.momentum_decay == 0.1


def test_the_best_sghmc_is_that_of_the_least_mean_loss(names):
    for task, best in names["best"].items():
        losses = {n: x for n, x in names["means"][task].items() if "SGHMC" in n}
        assert losses[best] == min(losses.values())


def test_losses_are_means_over_chains(names):
    """Those of the page against the task's own log likelihoods."""
    task = names["EVALUATION_TASKS"][1]
    average = names["loss_on"](task, lambda model, *_: names["l2e"](model), seed=2)
    options = names["lengths"] | {"num_chains": names["NUM_CHAINS"], "seed": 1002}
    log_likelihood = task.evaluate(names["l2e"](task.model), **options)
    expected = -log_likelihood.double().exp().mean(1).log().mean()
    assert average == pytest.approx(float(expected), rel=1e-4)
    assert torch.isfinite(log_likelihood).all()
