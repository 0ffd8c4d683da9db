"""Denoising score matching, and scores of diffusion models, against Gaussians."""

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from pyro_ext.inference import Trainer
from pyro_ext.inference.diffusion import DiffusersScore, NoiseConditionalScore
from pyro_ext.inference.training import ShuffledBatches

VARIANCE = 0.49


class Scaled(nn.Module):
    """The best network for N(0, v I) at one level."""

    def __init__(self, sigma: float) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(-sigma / (VARIANCE + sigma**2)))

    def forward(self, x: Tensor) -> Tensor:
        return self.factor * x


def test_levels_are_geometric():
    model = NoiseConditionalScore(nn.Identity(), 50.0, 0.01, 232)
    ratios = model.levels[1:] / model.levels[:-1]
    torch.testing.assert_close(ratios, ratios.mean().expand(231), rtol=1e-5, atol=0)
    assert [float(model.levels[i]) for i in (0, -1)] == pytest.approx([50.0, 0.01])
    assert NoiseConditionalScore(nn.Identity(), 2.0, 1.0, 1).levels.tolist() == [2.0]


def test_score_is_the_network_over_the_level():
    model, x = NoiseConditionalScore(nn.Linear(3, 3), 1.0, 0.25, 3), torch.randn(5, 3)
    for level, sigma in enumerate((1.0, 0.5, 0.25)):
        torch.testing.assert_close(model.score(x, level), model.network(x) / sigma)
    torch.testing.assert_close(model.score(x), model.score(x, 1))
    double = model.double().score(x.double(), 1)
    assert double.dtype == torch.float64


@pytest.mark.statistical  # false-alarm rate 6e-5 a case: four standard errors
@pytest.mark.parametrize("sigma", [0.3, 1.0])
def test_loss_at_the_optimum(sigma, float64):
    """It is v / (v + sigma^2) / 2 a pixel, and has no slope."""
    num, size = 100_000, 4
    x = VARIANCE**0.5 * torch.randn(num, size, generator=torch.Generator().manual_seed(0))
    model = NoiseConditionalScore(Scaled(sigma), sigma, sigma, 1)

    torch.manual_seed(1)
    value = model.loss(x)
    (slope,) = torch.autograd.grad(value, model.network.factor)
    wanted = VARIANCE / (VARIANCE + sigma**2)
    # Errors of pixels are normal with this variance, and independent of what the network is given.
    spread = wanted * (size / (2 * num)) ** 0.5
    assert value.item() == pytest.approx(size * wanted / 2, abs=4 * spread)
    assert abs(slope.item()) < 4 * (VARIANCE * size / num) ** 0.5


def test_training_finds_the_optimum():
    torch.manual_seed(0)
    x = 0.2 + VARIANCE**0.5 * torch.randn(4000, 2)
    model = NoiseConditionalScore(nn.Linear(2, 2), 0.5, 0.5, 1)
    trainer = Trainer(model, lambda p: torch.optim.Adam(p, lr=0.02), ema_decay=0.98, seed=0)
    trainer.run(model.loss, 250, ShuffledBatches(x, batch_size=500), progress=False)
    at = torch.tensor([[1.0, -0.6], [0.2, 0.2]])
    wanted = -(at - 0.2) / (VARIANCE + 0.25)
    torch.testing.assert_close(trainer.average.score(at, 0), wanted, rtol=0, atol=0.1)


@pytest.mark.parametrize("layer", [nn.BatchNorm1d(3), nn.Dropout(0.1)])
def test_rows_must_not_depend_on_others_or_on_chance(layer):
    model, x = NoiseConditionalScore(nn.Sequential(layer, nn.Linear(3, 3))), torch.randn(4, 3)
    with pytest.raises(ValueError, match=r"network must be in evaluation mode, got '0'"):
        model.score(x)
    with pytest.raises(ValueError, match="unet must be in evaluation mode"):
        DiffusersScore(model.network, scheduler(), 3)
    assert model.eval().score(x).shape == (4, 3)


def test_errors_name_the_argument():
    model = NoiseConditionalScore(nn.Identity(), num_levels=3)
    with pytest.raises(ValueError, match="level must be below 3, got 3"):
        model.score(torch.randn(2, 2), 3)
    with pytest.raises(TypeError, match="x must hold floating-point numbers"):
        model.loss(torch.ones(2, 2, dtype=torch.int64))


def scheduler(prediction_type="epsilon"):
    return SimpleNamespace(
        alphas_cumprod=torch.linspace(0.99, 0.1, 10), config={"prediction_type": prediction_type}
    )


class ExactNoise(nn.Module):
    """Predicts the noise in scaled data from N(m, v I), in twice as many channels."""

    def __init__(self, remaining: float) -> None:
        super().__init__()
        self.remaining = remaining

    def forward(self, x: Tensor, timestep: int) -> SimpleNamespace:
        variance = self.remaining * VARIANCE + 1.0 - self.remaining
        noise = (1.0 - self.remaining) ** 0.5 * x / variance
        return SimpleNamespace(sample=torch.cat([noise, torch.ones_like(noise)], 1))


@pytest.mark.parametrize("timestep", [0, 7])
def test_a_diffusion_model_has_the_score_of_scaled_noisy_data(timestep):
    remaining = float(scheduler().alphas_cumprod[timestep])
    x = torch.randn(3, 2, 4, 4)
    score = DiffusersScore(ExactNoise(remaining), scheduler(), timestep)
    wanted = -x / (VARIANCE + score.sigma**2)
    torch.testing.assert_close(remaining**0.5 * score(x), wanted)


def test_schedulers_without_what_is_needed_are_refused():
    with pytest.raises(ValueError, match="must predict 'epsilon', .* is 'v_prediction'"):
        DiffusersScore(nn.Identity(), scheduler("v_prediction"), 3)
    with pytest.raises(ValueError, match="timestep must be below 10"):
        DiffusersScore(nn.Identity(), scheduler(), 10)


def test_models_and_schedulers_of_diffusers():
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    unet = diffusers.UNet2DModel(
        8,
        1,
        1,
        block_out_channels=(4, 4),
        norm_num_groups=2,
        attention_head_dim=2,
        down_block_types=("DownBlock2D",) * 2,
        up_block_types=("UpBlock2D",) * 2,
    )
    own = diffusers.DDIMScheduler()
    before = dict(own.config), own.alphas_cumprod.clone()
    score, x = DiffusersScore(unet, own, 300), torch.rand(3, 1, 8, 8)
    with torch.no_grad():
        found, alone = score(x), score(x[1:2])
        remaining = own.alphas_cumprod[300]
        wanted = -unet(remaining.sqrt() * x, 300).sample / (1 - remaining).sqrt()
    torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(found[1:2], alone, rtol=1e-4, atol=1e-5)
    assert before[0] == dict(own.config) and torch.equal(before[1], own.alphas_cumprod)
    with pytest.raises(TypeError, match="FlowMatchEuler.* without alphas_cumprod"):
        DiffusersScore(unet, diffusers.FlowMatchEulerDiscreteScheduler(), 3)
    with pytest.raises(ValueError, match="'v_prediction'"):
        DiffusersScore(unet, diffusers.DDPMScheduler(prediction_type="v_prediction"), 3)
