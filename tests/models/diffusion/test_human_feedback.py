"""Human feedback inversion as a whole: what it does, what it leaves alone, and what it refuses."""

import pytest
import torch
from torch.distributions import Beta

from pyro_ext.models.diffusion import (
    HumanFeedbackInversion,
    RewardModel,
    RewardWeightedInversion,
    SafeSelfDistillation,
    human_feedback,
    reward_weights,
)
from pyro_ext.random import spawn_seed

# Rewards are trained for so few steps that most are worse than a constant.
pytestmark = pytest.mark.filterwarnings("ignore:training brought no improvement")

pytest.importorskip("diffusers")
ERASURE = {"num_inference_steps": 4, "batch_size": 2, "seed": 5}


def pixels(images):
    return images.flatten(1)


def bright(images):
    brightness = images.mean((1, 2, 3))
    return brightness > brightness.median()


def by_brightness(images):
    order = images.mean((1, 2, 3)).argsort(descending=True).tolist()
    return [order[0::2], order[1::2]]


def inversion_of(pipeline, feedback=bright, **options):
    settings = dict(num_images=12, num_kept=4, num_inference_steps=2, seed=0, erasure=ERASURE)
    settings["reward"] = RewardModel(pixels, num_steps=20)
    return HumanFeedbackInversion(pipeline, "odd", feedback, **(settings | options))


def states(pipeline):
    parts = pipeline.unet, pipeline.text_encoder
    return [tensor.clone() for part in parts for tensor in part.state_dict().values()]


@pytest.mark.parametrize("feedback", [bright, by_brightness])
def test_both_kinds_of_feedback_lead_to_an_erased_pipeline(pipeline, feedback):
    before, seen = states(pipeline), []

    def judge(images):
        seen.append(images)
        return feedback(images)

    inversion = inversion_of(pipeline, judge)
    erased, token, reward = inversion.run(2, 2, progress=False)
    (images,) = seen
    assert images.shape == (12, 1, 8, 8) and images.abs().max() <= 1.0
    assert torch.equal(images, inversion.draw_images())
    assert torch.equal(images, inversion_of(pipeline).draw_images())
    assert reward is inversion.reward and reward(images).shape == (12,)
    assert inversion.reward_fit.baseline == 0.5
    assert all(map(torch.equal, states(pipeline), before))
    assert type(erased) is type(pipeline) and "<hfi>" in erased.tokenizer.get_vocab()
    row = erased.text_encoder.get_input_embeddings().weight[token.row]
    assert torch.equal(row, token.vector)
    own = pipeline.unet.state_dict()
    for name, tensor in erased.unet.state_dict().items():
        assert torch.equal(tensor, own[name]) == ("attn2" not in name), name


def test_token_is_trained_on_the_largest_rewards(pipeline, monkeypatch):
    given = []

    class Recorded(RewardWeightedInversion):
        def __init__(self, unet, scheduler, token, latents, weights=None, **options):
            super().__init__(unet, scheduler, token, latents, weights, **options)
            given.append((latents, weights))

    monkeypatch.setattr(human_feedback, "RewardWeightedInversion", Recorded)
    inversion = inversion_of(pipeline)
    _, _, reward = inversion.run(0, 0, progress=False)
    indices, weights = reward_weights(reward(inversion.draw_images()), 4)
    latents, own = given[-1]  # those before check the options
    assert torch.equal(latents, inversion.draw_images()[indices])  # the autoencoder is the identity
    assert torch.equal(own, weights) and len(weights.unique()) > 1


def test_token_that_is_not_trained_gives_what_erasing_the_word_gives(pipeline):
    erased, _, _ = inversion_of(pipeline).run(0, 3, progress=False)
    erasure = SafeSelfDistillation.from_pipeline(
        pipeline, ["odd"], timesteps=Beta(3.0, 3.0), **ERASURE
    )
    erasure.run(3, progress=False)
    expected = erasure.teacher.state_dict()
    assert all(torch.equal(tensor, expected[n]) for n, tensor in erased.unet.state_dict().items())


def test_labels_of_some_images_are_those_of_the_others_left_out(pipeline):
    """Rewards follow what was rated, and images that were not have one, too."""
    inversion = inversion_of(pipeline, lambda x: dict(enumerate(bright(x)[:9].tolist())))
    _, _, reward = inversion.run(0, 0, progress=False)
    images = inversion.draw_images()
    expected, seed = RewardModel(pixels, num_steps=20), spawn_seed(inversion.seed, 1)
    fit = expected.fit_binary(images[:9], bright(images)[:9], seed=seed, progress=False)
    assert inversion.reward_fit == fit and torch.equal(reward(images), expected(images))
    inversion = inversion_of(pipeline, lambda x: {0: 1, 1: 1, 2: 0, 12: 0})
    with pytest.raises(ValueError, match="feedback must have labels by index from 0 to 11, got 12"):
        inversion.run(0, 0, progress=False)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_kept": 13}, "num_kept must be at most num_images, 12, got 13"),
        ({"inversion": {"batch_sizes": 3}}, "unexpected keyword argument 'batch_sizes'"),
        ({"token": "seven"}, "token must be one that the tokenizer does not have"),
    ],
)
def test_wrong_arguments_are_refused_at_once(pipeline, options, message):
    with pytest.raises((ValueError, TypeError), match=message):
        inversion_of(pipeline, **options)
