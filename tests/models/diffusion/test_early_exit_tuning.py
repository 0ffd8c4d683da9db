"""Fine-tuning under a schedule of exits."""

from functools import partial

import pytest
import torch
from torch import nn

pytest.importorskip("diffusers")

from diffusers import DDIMScheduler, DiTTransformer2DModel, PixArtTransformer2DModel

from pyro_ext.inference.training import ShuffledBatches
from pyro_ext.models.diffusion import AdaptiveScoreFineTuner, EarlyExit, ExitSchedule

LINEAR = ExitSchedule.linear(4, 1)
SCHEDULER = DDIMScheduler(beta_schedule="linear")
X = torch.randn(12, 1, 4, 4, generator=torch.Generator().manual_seed(0))
Y = torch.arange(12) % 3


def dit(**options):
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return DiTTransformer2DModel(
            num_attention_heads=2,
            attention_head_dim=4,
            in_channels=1,
            out_channels=2,
            num_layers=4,
            sample_size=4,
            num_embeds_ada_norm=3,
            norm_elementwise_affine=False,
            **options,
        ).eval()


def tuner(schedule=LINEAR, **options):
    options = {"optimizer": partial(torch.optim.AdamW, lr=1e-2), "seed": 0, **options}
    return AdaptiveScoreFineTuner(options.pop("module", dit()), SCHEDULER, schedule, **options)


def expected_loss(schedule, power):
    """By hand, with the draws of the tuner: each sample through a network cut at its exit."""
    torch.manual_seed(5)
    t = torch.randint(1000, (12,))
    noise = torch.randn_like(X)
    network, losses = dit(), []
    blocks = network.transformer_blocks
    for row in range(12):
        depth = schedule(int(t[row]))
        network.transformer_blocks = blocks[:depth]
        noised = SCHEDULER.add_noise(X[row : row + 1], noise[row : row + 1], t[row : row + 1])
        output = network(noised, t[row : row + 1], Y[row : row + 1])[0][:, :1]
        losses.append((4 / depth) ** power * (output - noise[row]).square().mean())
    return torch.stack(losses).mean()


@pytest.mark.parametrize("power", [0.0, 1.5])
def test_the_loss_is_that_of_networks_cut_at_the_exits(power):
    one = tuner(weight_power=power)
    torch.manual_seed(5)
    loss = one.loss(X, Y)
    torch.testing.assert_close(loss, expected_loss(LINEAR, power))


def test_what_embeds_the_timestep_is_frozen_and_the_rest_is_trained():
    module = dit()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    one = tuner(module=module, ema_decay=0.5)
    losses = [one.step(X, Y) for _ in range(3)]
    assert one.trainer.losses == losses
    for name, value in one.module.state_dict().items():
        is_buffer = name.startswith("pos_embed.pos")
        is_still = "timestep_embedder" in name or is_buffer
        assert torch.equal(value, before[name]) == is_still, name
        assert torch.equal(module.state_dict()[name], before[name])
    average = one.average
    assert isinstance(average.early_exit, EarlyExit)
    assert average.early_exit is not one.module.early_exit
    name = "proj_out_2.weight"
    assert not torch.equal(average.state_dict()[name], before[name])
    assert not torch.equal(average.state_dict()[name], one.module.state_dict()[name])


def test_runs_with_one_seed_agree_and_learn():
    batches = ShuffledBatches(X, Y, batch_size=12)
    one, other = (tuner(seed=seed).run(batches, 25, progress=False) for seed in (3, 3))
    assert one == other and sum(one[-10:]) < 0.9 * sum(one[:10])
    assert tuner(seed=4).run(batches, 2, progress=False) != one[:2]


def test_a_checkpoint_goes_on_bit_for_bit(tmp_path):
    batches, path = ShuffledBatches(X, Y, batch_size=5), tmp_path / "tuning.safetensors"
    whole = tuner()
    whole.run(batches, 4, progress=False)
    tuner().run(batches, 2, progress=False, checkpoint=path)
    resumed = tuner()
    resumed.run(batches, 4, progress=False, checkpoint=path)
    assert resumed.trainer.losses == whole.trainer.losses
    for name, value in whole.average.state_dict().items():
        assert torch.equal(resumed.average.state_dict()[name], value)


def test_conditions_by_position_and_by_name():
    """Without data and timestep, wherever the timestep stands among the arguments."""
    network = PixArtTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=4,
        in_channels=1,
        out_channels=1,
        num_layers=2,
        cross_attention_dim=8,
        caption_channels=6,
        sample_size=4,
        use_additional_conditions=False,
    ).eval()
    prompts = torch.randn(12, 3, 6)
    losses = []
    for conditions, named in [((prompts,), {}), ((), {"encoder_hidden_states": prompts})]:
        one = tuner(ExitSchedule.uniform(1), module=network)
        losses.append(one.step(X, *conditions, added_cond_kwargs={}, **named))
    assert losses[0] == losses[1]


def test_any_module_with_blocks_and_a_time():
    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList(nn.Linear(3, 3) for _ in range(3))

        def forward(self, x, time):
            for layer in self.layers:
                x = layer(x)
            return x

    one = AdaptiveScoreFineTuner(
        Network(), SCHEDULER, ExitSchedule([3, 1]), "layers", freeze=(), timestep="time", seed=0
    )
    assert one.step(torch.randn(6, 3)) > 0.0


def test_what_is_refused():
    with pytest.raises(ValueError, match="conditions must be at most 3"):
        tuner().step(X, Y, None, True, 3)
