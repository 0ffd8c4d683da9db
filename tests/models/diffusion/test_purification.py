"""Purification, against densities whose score and steps are known."""

import pytest
import torch
from torch import Tensor, nn

from pyro_ext.inference.diffusion import DiffusersScore, encode_prompts
from pyro_ext.models.diffusion import AdaptiveScorePurifier, digit_pipeline
from pyro_ext.models.diffusion.purification import _adaptive_step

MEAN = torch.tensor([0.3, 0.5, 0.6])


def gaussian(scale: float, factor: float = 1.0):
    return lambda x: factor * (MEAN.to(x) - x) / scale


@pytest.fixture
def x(float64) -> Tensor:
    return torch.rand(6, 3, generator=torch.Generator().manual_seed(0))


def purifier(score, **options) -> AdaptiveScorePurifier:
    return AdaptiveScorePurifier(score, **{"noise": 0.0, **options})


@pytest.mark.parametrize("delta", [1e-1, 1e-4])
@pytest.mark.parametrize("scale", [0.05, 1.5])
def test_steps_of_a_gaussian_are_exact(x, scale, delta):
    """Ten steps leave .95 ** 10 of the way, whatever its variance; one whole step leaves none."""
    found = purifier(gaussian(scale), delta=delta).trajectory(x)
    torch.testing.assert_close(found.step_sizes, torch.full((10, 6), 0.05 * scale))
    left = found.images[-1] - MEAN.to(x)
    torch.testing.assert_close(left, 0.95**10 * (x - MEAN.to(x)), rtol=1e-9, atol=1e-12)
    one = purifier(gaussian(scale), step=1.0, max_iter=1, clamp=(0.0, 10.0))(x)
    torch.testing.assert_close(one, MEAN.to(x).expand(6, 3))


def test_single_precision_is_enough():
    x = torch.rand(6, 1000, generator=torch.Generator().manual_seed(0))
    found = purifier(lambda x: (0.5 - x) / 2.0).trajectory(x)
    torch.testing.assert_close(found.step_sizes, torch.full((10, 6), 0.1), rtol=1e-3, atol=0)
    left = found.images[-1] - 0.5
    torch.testing.assert_close(left, 0.95**10 * (x - 0.5), rtol=1e-3, atol=1e-6)


def test_step_is_a_fraction_of_a_line_search(x):
    """With any precision it is a Rayleigh quotient: the exact minimum along the score."""
    root = torch.randn(3, 3, generator=torch.Generator().manual_seed(1), dtype=x.dtype)
    precision = root @ root.T + torch.eye(3)
    score, step_size = _adaptive_step(
        lambda x: (MEAN.to(x) - x) @ precision, x, 0.3, 1e-3, (0.0, 10.0)
    )
    curvature = (score @ precision * score).sum(1)
    torch.testing.assert_close(step_size, 0.3 * score.square().sum(1) / curvature)


def test_nothing_is_done_but_clipping():
    wide = torch.tensor([[-0.5, 0.2, 1.5]])
    for options in ({"max_iter": 0}, {"step": 0.0}):
        assert torch.equal(purifier(gaussian(0.5), **options)(wide), wide.clamp(0.0, 1.0))
    wider = purifier(gaussian(0.5), max_iter=0, bounds=(-1.0, 1.0))
    assert wider(wide).tolist() == [pytest.approx([-0.5, 0.2, 1.0])]
    strong = AdaptiveScorePurifier(lambda x: 100.0 * x - 40.0, noise=1.0, tau=0.0, step=5.0)
    images = strong.trajectory(torch.rand(50, 4), seed=0).images
    assert images.min() >= 0.0 and images.max() <= 1.0


def test_images_do_not_see_each_other(x):
    """With the same noise; those that finish early do not stop others, nor go on."""

    def score(x: Tensor) -> Tensor:
        return (MEAN.to(x) - x) * (MEAN.to(x) - x).square().sum(1, keepdim=True) ** -0.3

    together = purifier(score, tau=0.036).trajectory(x)
    num_steps = (together.step_sizes > 0).sum(0)
    assert 0 < num_steps.min() < num_steps.max()
    for number in range(len(x)):
        alone = purifier(score, tau=0.036).trajectory(x[number : number + 1])
        length = len(alone.images)
        assert length == num_steps[number] + 1
        torch.testing.assert_close(alone.images[:, 0], together.images[:length, number])
        kept = together.images[length - 1 :, number]
        assert torch.equal(kept, kept[:1].expand_as(kept))
        assert not together.step_sizes[length - 1 :, number].any()


def test_directions_without_a_maximum():
    """Convex along the score: the smallest step. Linear: the largest. No score: finished."""
    x = torch.full((1, 3), 0.5)
    for score, wanted in (
        (lambda x: x, 1e-5),
        (torch.ones_like, 0.1),
        (torch.zeros_like, 1e-5),
    ):
        gradient, size = _adaptive_step(score, x, 0.05, 1e-3, (1e-5, 1e-1))
        assert float(size) == pytest.approx(wanted) and gradient.isfinite().all()
    assert torch.equal(purifier(lambda x: x)(x), x)
    assert len(purifier(torch.zeros_like).trajectory(x).step_sizes) == 0
    assert len(purifier(torch.ones_like).trajectory(x).step_sizes) == 10


def test_noise_is_drawn_once_per_call():
    x = torch.full((20_000, 2), 0.5)
    noisy = AdaptiveScorePurifier(gaussian(1.0), noise=0.1, max_iter=0)
    assert float(noisy(x, seed=3).std()) == pytest.approx(0.1, rel=0.02)
    pixelwise = AdaptiveScorePurifier(gaussian(1.0), lambda x: 0.1 * (x > 0.4), max_iter=0)
    mixed = pixelwise(torch.tensor([[0.3, 0.5]]).expand(1000, 2), seed=0)
    assert torch.equal(mixed[:, 0], torch.full((1000,), 0.3)) and mixed[:, 1].std() > 0.05


def test_detection_by_the_length_of_the_score():
    x = torch.tensor([[0.1, 0.0], [0.3, 0.4]])
    model = AdaptiveScorePurifier(lambda x: -10.0 * x)
    assert model.detect(x, 2.0).tolist() == [False, True]


def test_predictions_are_averages(x):
    model = AdaptiveScorePurifier(gaussian(0.3), noise=0.2, num_runs=4)
    classifier = nn.Linear(3, 5)
    copies = model(x.repeat(4, 1), seed=1)
    logits = classifier(copies).reshape(4, 6, 5)
    votes = torch.stack([(logits.argmax(-1) == k).sum(0) for k in range(5)], -1) / 4
    wanted = {"logits": logits.mean(0), "softmax": logits.softmax(-1).mean(0), "votes": votes}
    for reduce, value in wanted.items():
        found = model.predict(classifier, x, reduce, seed=1)
        torch.testing.assert_close(found, value.to(found))
        assert not found.requires_grad
    assert len(model(x[:2], seed=0)) == 2


def test_gradients_go_through_where_they_are_asked_for(x):
    model = purifier(gaussian(0.3))
    seen = x[:2].clone().requires_grad_()
    (gradient,) = torch.autograd.grad(model(seen).sum(), seen)
    torch.testing.assert_close(gradient, torch.full((2, 3), 0.598737), rtol=1e-5, atol=0)
    assert torch.equal(model(x[:2]), model(seen).detach())


def test_what_is_not_finite_is_reported(x):
    with pytest.raises(ValueError, match="score must be finite, got nan in row 1"):
        purifier(lambda x: torch.where(torch.arange(6)[:, None] == 1, torch.nan, x))(x)
    with pytest.raises(ValueError, match="score must be finite, got nan in row 0"):
        purifier(lambda seen: x if torch.equal(seen, x) else seen * torch.nan)(x)
    with pytest.raises(ValueError, match="classifier must be finite"):
        purifier(lambda x: 0.5 - x, num_runs=2).predict(lambda x: x / 0.0 - x / 0.0, x)
    with pytest.raises(ValueError, match=r"score must keep the shape of images \(6, 3\)"):
        purifier(lambda x: x[:, :1])(x)
    with pytest.raises(ValueError, match=r"clamp must be two numbers, .* got \(0.1, 0.1\)"):
        AdaptiveScorePurifier(gaussian(1.0), clamp=(0.1, 0.1))


def test_a_pipeline_with_prompts_has_a_score():
    """The condition of one image is that of all."""
    pytest.importorskip("diffusers")
    pipeline = digit_pipeline(num_steps=0)

    def encode(*prompts: str) -> Tensor:
        return encode_prompts(pipeline.tokenizer, pipeline.text_encoder, list(prompts))

    prompt = {"encoder_hidden_states": encode("seven")}
    score = DiffusersScore(pipeline.unet, pipeline.scheduler, 200, prompt)
    x = 2.0 * torch.rand(3, 1, 8, 8) - 1.0
    purified = AdaptiveScorePurifier(score, max_iter=2, bounds=(-1.0, 1.0))(x, seed=0)
    assert purified.shape == x.shape and not purified.requires_grad
    prompts = {"encoder_hidden_states": encode("seven", "seven", "seven")}
    other = DiffusersScore(pipeline.unet, pipeline.scheduler, 200, prompts)
    torch.testing.assert_close(score(x), other(x))
