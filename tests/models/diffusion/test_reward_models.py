"""Rewards from labels and rankings: exact losses and posteriors, when training ends, refusals."""

import math
from functools import partial

import pyro
import pytest
import torch

from pyro_ext.inference.training import TrainingWarning
from pyro_ext.models.diffusion import RewardModel, bradley_terry_loss
from pyro_ext.models.diffusion.reward_models import is_ranking
from pyro_ext.potential import Potential
from tests.inference.models import nuts_at_the_mode

ADAM = partial(torch.optim.Adam, lr=0.05)


def pixels(images):
    return images.flatten(1)


def units_of(reward, images):
    return reward.network[:-1](pixels(images)).double()


def some_images(num=100, size=4):
    return torch.randn(num, 1, 1, size, generator=torch.Generator().manual_seed(0))


def rankings_of(score, num_lists, length):
    lists = torch.arange(num_lists * length).reshape(num_lists, length)
    return [sorted(row.tolist(), key=lambda i: -float(score[i])) for row in lists]


def test_bradley_terry_loss_is_exact(float64):
    rewards = torch.tensor([2.0, 1.0, 0.0])
    value = bradley_terry_loss(rewards, [[0, 1, 2]])
    assert float(9 * value) == pytest.approx(0.753451, abs=5e-7)
    assert float(value) == pytest.approx(0.083717, abs=5e-7)
    assert float(bradley_terry_loss(rewards + 7.0, [[0, 1, 2]])) == pytest.approx(float(value))
    for length in (2, 5):
        factor = (length - 1) / (2 * length)
        constant = bradley_terry_loss(torch.full((9,), 0.3), [range(length)] * 4)
        assert float(constant) == pytest.approx(factor * math.log(2.0))
    # Lists of different lengths count alike.
    both = bradley_terry_loss(rewards, [[0, 1, 2], [2, 0]])
    parts = [float(bradley_terry_loss(rewards, [one])) for one in ([0, 1, 2], [2, 0])]
    assert float(both) == pytest.approx(sum(parts) / 2)


def test_best_constant_reward_is_the_mean_label():
    reward = RewardModel(lambda x: x.new_zeros(len(x), 1), hidden=[], optimizer=ADAM)
    images, labels = some_images(), torch.arange(100) < 30
    fit = reward.fit_binary(images, labels, seed=0, progress=False)
    torch.testing.assert_close(reward(images), torch.full((100,), 0.3), atol=2e-3, rtol=0)
    assert (fit.accuracy, fit.baseline) == pytest.approx((0.7, 0.7))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_both_kinds_of_feedback_are_learned(dtype):
    images = some_images(200).to(dtype)
    score = images[:, 0, 0, 0]
    reward = RewardModel(pixels, hidden=[8], optimizer=ADAM)
    fit = reward.fit_binary(images, (score > 0).tolist(), seed=0, progress=False)
    assert fit.accuracy >= 0.9 and fit.baseline < 0.6
    assert reward(images).dtype == dtype
    lists = rankings_of(score, 40, 5)
    fit = reward.fit_ranking(images, lists, seed=0, progress=False)
    assert fit.accuracy >= 0.9 and fit.baseline == 0.5
    order = torch.stack([reward(images), score]).corrcoef()[0, 1]
    assert order > 0.9


def test_it_ends_at_the_best_network_and_leaves_generators_alone():
    """Labels at random: what is held out soon gets worse."""
    images = some_images()
    labels = torch.rand(100, generator=torch.Generator().manual_seed(1)) < 0.5
    state = torch.get_rng_state()
    fits, rewards = [], []
    for _ in range(2):
        reward = RewardModel(pixels, hidden=[16], optimizer=ADAM, patience=30)
        with pytest.warns(TrainingWarning, match="on labels .* of a constant reward"):
            fits.append(reward.fit_binary(images, labels, seed=0, progress=False))
        rewards.append(reward(images))
    fit = fits[0]
    assert fit.num_steps == 10 * fit.losses.index(min(fit.losses[1:]))
    assert len(fit.losses) - 1 == (fit.num_steps + 30) / 10
    assert fits[0] == fits[1] and torch.equal(*rewards)
    short = RewardModel(pixels, hidden=[16], optimizer=ADAM, num_steps=fit.num_steps)
    with pytest.warns(TrainingWarning):
        short.fit_binary(images, labels, seed=0, progress=False)
    assert torch.equal(short(images), rewards[0])
    assert torch.equal(torch.get_rng_state(), state)


def test_posterior_with_labels_is_that_of_linear_regression():
    images = some_images()
    labels = (images[:, 0, 0, 0] > 0.5).double()
    reward = RewardModel(pixels, hidden=[], optimizer=ADAM)
    reward.fit_binary(images, labels, seed=0, progress=False)
    trace = pyro.poutine.trace(reward.last_layer(images, labels)).get_trace()
    noise = float(trace.nodes["label"]["fn"].scale[0])
    x = pixels(images).double()
    x = (x - x.mean(0)) / x.std(0, correction=0)
    design = torch.cat([x, torch.ones(100, 1).double()], 1)
    prior = torch.tensor([4.0] * 4 + [1.0]).double().diag()  # of width four
    covariance = torch.linalg.inv(prior + design.mT @ design / noise**2)
    mean = covariance @ design.mT @ labels / noise**2
    found = reward.predictive(images)
    torch.testing.assert_close(found.mean, design @ mean, atol=1e-5, rtol=1e-4)
    variance = ((design @ covariance) * design).sum(1)
    torch.testing.assert_close(found.variance, variance, atol=0, rtol=1e-4)


def test_model_of_preferences_is_that_of_the_loss():
    images = some_images(6)
    lists = [[0, 3, 1], [4, 2]]
    reward = RewardModel(pixels, hidden=[3])
    with pytest.warns(TrainingWarning):
        reward.fit_ranking(images, lists, seed=0, progress=False)
    weight = torch.tensor([0.5, -2.0, 1.0]).double()
    model = pyro.condition(reward.last_layer(images, lists), {"weight": weight})
    trace = pyro.poutine.trace(model).get_trace()
    trace.compute_log_prob()
    values = units_of(reward, images) @ weight
    expected = sum(len(one) ** 2 * float(bradley_terry_loss(values, [one])) for one in lists)
    assert float(-trace.nodes["preference"]["log_prob_sum"]) == pytest.approx(expected, rel=1e-6)


@pytest.mark.slow
@pytest.mark.statistical
def test_nuts_agrees_with_the_gaussian_of_many_preferences():
    """Means within 0.25 of a deviation, deviations within a fifth.

    Of 1,000 draws with an effective size of some 500 a mean is off by 0.045 and a deviation by
    0.03: false alarms are below 1e-6, and the rest is what a posterior of 400 pairs lacks to a
    Gaussian.
    """
    images = some_images(200, size=2)
    generator = torch.Generator().manual_seed(2)
    noise = 0.5 * torch.randn(200, generator=generator)
    lists = rankings_of(images[:, 0, 0, 0] + noise, 40, 5)
    reward = RewardModel(pixels, hidden=[], optimizer=ADAM)
    reward.fit_ranking(images, lists, seed=0, progress=False)
    potential = Potential(reward.last_layer(images, lists))
    draws = nuts_at_the_mode(potential, {"weight": torch.zeros(2).double()}, 1000)
    units = units_of(reward, images)
    sampled = (units - units.mean(0)) @ draws["weight"].mT
    found = reward.predictive(images)
    assert ((sampled.mean(1) - found.mean) / found.stddev).abs().max() < 0.25
    assert (sampled.std(1) / found.stddev).log().abs().max() < 0.2


def test_feedback_is_told_apart():
    assert is_ranking([[1, 0], [2, 3, 1]]) and is_ranking([torch.tensor([1, 0])])
    assert is_ranking(torch.tensor([[1, 0], [0, 1]]))
    assert not is_ranking([0, 1, True]) and not is_ranking(torch.tensor([0.0, 1.0]))


@pytest.mark.parametrize(
    ("feedback", "message"),
    [
        ([0] * 10, "labels must hold at least two images.* 0 with 1 and 10 with 0"),
        ([1] * 9 + [0], "labels must hold at least two images.* 9 with 1 and 1 with 0"),
        ([[0, 1], [2, 10]], "rankings must hold indices from 0 to 9, got .2, 10."),
        ([[0, 1], [2, 2]], "rankings must each order two or more different images"),
        ([[0, 1, 2]], "rankings must be at least two"),
    ],
)
def test_feedback_that_says_nothing_is_refused_before_training(feedback, message):
    def features(images):
        raise AssertionError("it began")

    reward = RewardModel(features)
    fit = reward.fit_ranking if is_ranking(feedback) else reward.fit_binary
    with pytest.raises((ValueError, TypeError), match=message):
        fit(some_images(10), feedback, progress=False)


def test_what_is_not_ready_is_refused():
    images = some_images(10)
    reward = RewardModel(pixels, num_steps=10)
    for call in (reward, reward.predictive, partial(reward.last_layer, feedback=[0, 1] * 5)):
        with pytest.raises(ValueError, match="reward must be trained first"):
            call(images)
    reward.fit_ranking(images, [[0, 1], [2, 3]], progress=False)
    with pytest.raises(ValueError, match="feedback must be rankings"):
        reward.last_layer(images, [0, 1] * 5)
    wide = RewardModel(lambda x: x)
    with pytest.raises(ValueError, match="features must return the shape"):
        wide.fit_ranking(images, [[0, 1], [2, 3]], progress=False)


def test_a_lucky_start_is_not_kept():
    """Before training this network orders what is held out better than a constant, by luck."""
    torch.manual_seed(0)
    images = torch.randn(30, 1, 64)
    score = images[:, 0, 0]
    lists = [torch.randperm(30)[:3] for _ in range(10)]
    rankings = [rows[score[rows].argsort(descending=True)].tolist() for rows in lists]
    reward = RewardModel(lambda x: x.flatten(1))
    fit = reward.fit_ranking(images, rankings, seed=5, progress=False)
    assert fit.num_steps > 0 and fit.losses[0] < min(fit.losses[1:])
    assert torch.corrcoef(torch.stack([reward(images), score]))[0, 1] > 0
