"""Guidance, sampling and losses against closed forms, and the distribution inside of Pyro."""

import copy

import pyro
import pyro.distributions as dist
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    PNDMScheduler,
)

from pyro_ext.inference.diffusion import (
    DiffusionSampler,
    SafeLatentGuidance,
    classifier_free_guidance,
    denoise,
    encode_prompts,
    guided_prediction,
    noise_prediction_loss,
)
from pyro_ext.models.diffusion import digit_pipeline


@pytest.fixture(scope="module")
def pipeline():
    return digit_pipeline(num_steps=0)


def exact(scheduler, mean, variance, kind="epsilon"):
    """The best prediction where data are normal."""
    alphas = scheduler.alphas_cumprod

    def predict(z, t):
        a = alphas[t].double()
        a = a.reshape(-1, *[1] * (z.dim() - 1)) if a.dim() else a
        noise = (1 - a).sqrt() * (z - a.sqrt() * mean) / (variance * a + 1 - a)
        x = (z - (1 - a).sqrt() * noise) / a.sqrt()
        velocity = a.sqrt() * noise - (1 - a).sqrt() * x
        return {"epsilon": noise, "sample": x, "v_prediction": velocity}[kind]

    return predict


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_a_normal_distribution_is_sampled(kind):
    """DDIM draws it without an error but that of its steps."""
    scheduler = DDIMScheduler(clip_sample=False, prediction_type=kind, set_alpha_to_one=True)
    noise = torch.randn(4000, 2, dtype=torch.float64)
    x = denoise(exact(scheduler, 0.5, 0.04, kind), scheduler, noise, 250)
    # It maps each noise to the sample of the same quantile.
    torch.testing.assert_close(x, 0.5 + 0.2 * noise, atol=0.02, rtol=0.0)


def test_all_steps_are_those_of_a_plain_loop_and_the_scheduler_stays_as_it_is():
    scheduler = DDPMScheduler(clip_sample=False)
    noise = torch.randn(5, 2, dtype=torch.float64)
    predict = exact(scheduler, 0.0, 1.0)
    ours = denoise(predict, scheduler, noise, 7, generator=torch.Generator().manual_seed(3))
    assert scheduler.num_inference_steps is None
    scheduler.set_timesteps(7)
    generator, x = torch.Generator().manual_seed(3), noise
    for t in scheduler.timesteps:
        x = scheduler.step(predict(x, t), t, x, generator=generator).prev_sample
    assert torch.equal(ours, x)


@pytest.mark.filterwarnings("ignore:__array__:DeprecationWarning")  # of diffusers with NumPy 2
def test_stopping_on_the_way():
    scheduler = EulerDiscreteScheduler()
    noise, steps = torch.randn(3, 2), []
    zero = lambda z, t: steps.append(t) or torch.zeros_like(z)  # noqa: E731
    start = denoise(zero, scheduler, noise, 10, stop=0)
    assert not steps and start.std() > 5  # of that scheduler's scale
    denoise(zero, scheduler, noise, 10, stop=4)
    assert len(steps) == 4


def test_more_steps_than_there_are():
    with pytest.raises(ValueError, match="stop must be at most the 3 timesteps .* got 4"):
        denoise(lambda z, t: z, DDIMScheduler(), torch.randn(3, 2), 3, stop=4)


def test_what_is_not_finite_is_no_sample():
    with pytest.raises(FloatingPointError, match="not finite after 3 steps"):
        denoise(lambda z, t: z / 0.0, DDIMScheduler(), torch.randn(3, 2), 3)


def test_guidance():
    zero, one = torch.randn(2, 3), torch.randn(2, 3)
    assert torch.equal(classifier_free_guidance(zero, one, 0.0), zero)
    assert torch.equal(classifier_free_guidance(zero, one, 1.0), one)
    expected = zero + 3.0 * (one - zero)
    torch.testing.assert_close(classifier_free_guidance(zero, one, 3.0), expected)


@pytest.mark.parametrize("preset", ["weak", "medium", "strong", "max"])
def test_safe_latent_guidance_is_the_recursion(preset):
    """Against the formula of a single number, written out."""
    warm_up, s, threshold, s_m, beta = {
        "weak": (15, 200, 0, 0, 0),
        "medium": (10, 1000, 0.01, 0.3, 0.4),
        "strong": (7, 2000, 0.025, 0.5, 0.7),
        "max": (0, 5000, 1, 0.5, 0.7),
    }[preset]
    guidance, momentum = SafeLatentGuidance(preset, 3.0), 0.0
    for step in range(20):
        e0, ec, es = torch.randn(3, dtype=torch.float64).mul(1e-3).tolist()
        mu = min(1.0, s * abs(ec - es)) if ec - es < threshold else 0.0
        gamma = mu * (es - e0) + s_m * momentum
        momentum = beta * momentum + (1 - beta) * gamma
        expected = e0 + 3.0 * (ec - e0 - (gamma if step >= warm_up else 0.0))
        ours = guidance(*torch.tensor([[e0], [ec], [es]], dtype=torch.float64))
        assert float(ours) == pytest.approx(expected, rel=1e-12)


def test_prompts_go_through_the_network_as_one_batch(pipeline):
    states = encode_prompts(pipeline.tokenizer, pipeline.text_encoder, ["six", "", "odd"])
    z, t = torch.randn(4, 1, 8, 8), torch.tensor(400)
    alone = [
        pipeline.unet(z, t, encoder_hidden_states=row.expand(4, -1, -1)).sample for row in states
    ]
    predict = guided_prediction(pipeline.unet, states[:1], states[1:2], 2.5)
    expected = classifier_free_guidance(alone[1], alone[0], 2.5)
    torch.testing.assert_close(predict(z, t), expected, atol=1e-5, rtol=1e-5)
    guidance = SafeLatentGuidance("max", 2.5)
    predict = guided_prediction(pipeline.unet, states[:1], states[1:2], guidance, states[2:])
    expected = SafeLatentGuidance("max", 2.5)(alone[1], alone[0], alone[2])
    torch.testing.assert_close(predict(z, t), expected, atol=1e-4, rtol=1e-4)
    with pytest.raises(TypeError, match="guidance must be a SafeLatentGuidance"):
        guided_prediction(pipeline.unet, states[:1], states[1:2], 2.5, states[2:])


def test_guidance_with_a_memory_starts_anew_with_each_trajectory(pipeline):
    states = encode_prompts(pipeline.tokenizer, pipeline.text_encoder, ["six", "", "odd"]).split(1)
    noise = torch.randn(2, 1, 8, 8)
    guidance = SafeLatentGuidance("max", 2.5)
    predict = guided_prediction(pipeline.unet, states[0], states[1], guidance, states[2])
    first = denoise(predict, pipeline.scheduler, noise, 4)
    assert torch.equal(denoise(predict, pipeline.scheduler, noise, 4), first)


def test_prompts_and_latents_that_do_not_fit(pipeline):
    states = encode_prompts(pipeline.tokenizer, pipeline.text_encoder, ["six", "odd"])
    predict = guided_prediction(pipeline.unet, states, states, 2.0)
    with pytest.raises(ValueError, match="latents must be as many as the prompts, 2, .* got 3"):
        predict(torch.randn(3, 1, 8, 8), torch.tensor(5))
    with pytest.raises(ValueError, match="concept must be given with a SafeLatentGuidance"):
        guided_prediction(pipeline.unet, states, states, SafeLatentGuidance())


def test_masks_of_text_encoders_that_use_them(pipeline):
    encoder = copy.deepcopy(pipeline.text_encoder)
    encoder.config.use_attention_mask = True
    tokens = pipeline.tokenizer(["odd"], padding="max_length", max_length=8, return_tensors="pt")
    expected = encoder(tokens.input_ids, attention_mask=tokens.attention_mask)[0]
    assert torch.equal(encode_prompts(pipeline.tokenizer, encoder, ["odd"]), expected)


def test_prompts_are_encoded_as_by_the_pipeline(pipeline):
    prompts = ["three", "", "a, bc"]
    ours = encode_prompts(pipeline.tokenizer, pipeline.text_encoder, prompts)
    theirs, _ = pipeline.encode_prompt(prompts, "cpu", 1, False)
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize(
    "prompt, message",
    [("7", "words that the tokenizer knows, got '7'"), ("one " * 7, "at most 6 tokens, got 7")],
)
def test_prompts_outside_of_the_tokenizer(pipeline, prompt, message):
    with pytest.raises(ValueError, match=message):
        encode_prompts(pipeline.tokenizer, pipeline.text_encoder, ["one", prompt])


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_the_loss_has_its_least_at_the_best_prediction(kind):
    """For normal data it is the variance that is left, from the formula of the conditional."""
    scheduler = DDIMScheduler(prediction_type=kind)
    x = 0.5 + 0.2 * torch.randn(200_000, 1, dtype=torch.float64)
    t = torch.full((len(x),), 300)
    noise = torch.randn_like(x)
    loss = noise_prediction_loss(exact(scheduler, 0.5, 0.04, kind), scheduler, x, t, noise)
    a = float(scheduler.alphas_cumprod[300])
    left = 0.04 * a / (0.04 * a + 1 - a)  # of the noise
    scale = {"epsilon": 1.0, "sample": (1 - a) / a, "v_prediction": 1.0 / a}[kind]
    assert float(loss) == pytest.approx(left * scale, rel=0.02)


@pytest.mark.filterwarnings("ignore:__array__:DeprecationWarning")  # of diffusers with NumPy 2
@pytest.mark.parametrize(
    "kind", [DPMSolverMultistepScheduler, EulerDiscreteScheduler, PNDMScheduler, DDIMScheduler]
)
def test_all_schedulers_noise_alike_in_training(kind):
    """Whatever they do in sampling, and whether or not they have been used for it."""
    scheduler, inputs = kind(), []
    x, noise, t = torch.ones(4, 2), torch.randn(4, 2), torch.tensor([3, 333, 777, 999])
    a = DDPMScheduler().alphas_cumprod[t][:, None]
    for _ in range(2):
        noise_prediction_loss(lambda z, t: inputs.append(z) or noise, scheduler, x, t, noise)
        torch.testing.assert_close(inputs[-1], a.sqrt() * x + (1 - a).sqrt() * noise)
        scheduler.set_timesteps(20)
    with pytest.raises(TypeError, match="scheduler must .* without alphas_cumprod"):
        noise_prediction_loss(lambda z, t: z, FlowMatchEulerDiscreteScheduler(), x, t, noise)


def test_weights_of_the_loss():
    scheduler, x = DDIMScheduler(), torch.randn(6, 1, 2, 2, dtype=torch.float64)
    t, noise = torch.randint(1000, (6,)), torch.randn_like(x)
    predict = lambda z, t: 0.3 * z  # noqa: E731
    rows = [
        noise_prediction_loss(predict, scheduler, x[i : i + 1], t[i : i + 1], noise[i : i + 1])
        for i in range(6)
    ]
    weights = torch.rand(6)
    weighted = noise_prediction_loss(predict, scheduler, x, t, noise, weights)
    torch.testing.assert_close(weighted, (torch.stack(rows) * weights).mean())
    with pytest.raises(ValueError, match="predict must return the shape of x"):
        noise_prediction_loss(lambda z, t: z[:1], scheduler, x, t, noise)


def test_the_distribution_draws_what_the_pipeline_draws(pipeline):
    prompts, noise = ["six", "odd"], torch.Generator().manual_seed(7)
    latents = torch.randn(2, 1, 8, 8, generator=noise)
    theirs = pipeline(
        prompts, latents=latents, num_inference_steps=3, guidance_scale=3.0, output_type="pt"
    ).images
    digits = DiffusionSampler.from_pipeline(pipeline, prompts, guidance_scale=3.0, num_steps=3)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        ours = digits.sample()
    torch.testing.assert_close((ours / 2 + 0.5).clamp(0, 1), theirs, atol=1e-4, rtol=1e-4)


def test_the_distribution_in_a_model(pipeline):
    digits = DiffusionSampler.from_pipeline(pipeline, "six", num_steps=2).expand([3])

    def model():
        with pyro.plate("digits", 3):
            x = pyro.sample("image", digits)
            return pyro.sample("ink", dist.Normal(x.mean((-1, -2, -3)), 0.1))

    draws = pyro.infer.Predictive(model, num_samples=4)()
    assert draws["image"].shape == (4, 3, 1, 8, 8) and draws["ink"].shape == (4, 3)
    alone = DiffusionSampler.from_pipeline(pipeline, "six", num_steps=1)
    assert alone.sample().shape == (1, 8, 8) and alone.sample((2, 0)).shape == (2, 0, 1, 8, 8)
    assert digits.batch_shape == (3,) and digits.event_shape == (1, 8, 8)
    with pytest.raises(NotImplementedError, match="no density"):
        digits.log_prob(draws["image"][0])


def test_what_the_distribution_asks_for(pipeline):
    from diffusers import UNet2DModel

    states = torch.zeros(8, 32)
    plain = UNet2DModel(
        sample_size=8,
        block_out_channels=(8,),
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
        norm_num_groups=2,
    )
    with pytest.raises(TypeError, match="unet must be .* with cross-attention"):
        DiffusionSampler(plain, pipeline.scheduler, states, states)
    with pytest.raises(TypeError, match="pipeline must be a StableDiffusionPipeline"):
        DiffusionSampler.from_pipeline(plain, "six")
