"""Early exit: schedules, which blocks run, and what comes out, on networks of diffusers."""

import copy
import pickle

import pytest
import torch
from torch import nn

pytest.importorskip("diffusers")

from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DiTPipeline,
    DiTTransformer2DModel,
    FluxTransformer2DModel,
    PNDMScheduler,
    SD3Transformer2DModel,
    UNet2DConditionModel,
    UNet2DModel,
)

from pyro_ext.models.diffusion import (
    EarlyExit,
    ExitSchedule,
    digit_transformer_pipeline,
)

ASE = [8, 8, 7, 7, 6, 6, 5, 5, 4, 4]
TIMES = torch.tensor([999, 0, 450, 620])  # of four samples


SMALL = dict(num_attention_heads=2, attention_head_dim=4, in_channels=1, sample_size=4)
UNET = dict(
    sample_size=8,
    in_channels=1,
    out_channels=1,
    layers_per_block=1,
    block_out_channels=(8, 16),
    norm_num_groups=4,
    attention_head_dim=4,
)


def dit(num_layers=8):
    return DiTTransformer2DModel(
        **SMALL, out_channels=1, num_layers=num_layers, norm_elementwise_affine=False
    )


def sd3():
    options = dict(joint_attention_dim=6, caption_projection_dim=8, pooled_projection_dim=5)
    return SD3Transformer2DModel(
        **SMALL, out_channels=1, num_layers=4, pos_embed_max_size=4, **options
    )


def flux():
    return FluxTransformer2DModel(
        patch_size=1,
        in_channels=4,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=1,
        joint_attention_dim=6,
        pooled_projection_dim=5,
        axes_dims_rope=(4, 4, 8),
    )


def unet():
    down, up = ("DownBlock2D", "AttnDownBlock2D"), ("AttnUpBlock2D", "UpBlock2D")
    return UNet2DModel(**UNET, down_block_types=down, up_block_types=up)


def conditional_unet():
    down, up = ("DownBlock2D", "CrossAttnDownBlock2D"), ("CrossAttnUpBlock2D", "UpBlock2D")
    return UNet2DConditionModel(
        **UNET, down_block_types=down, up_block_types=up, cross_attention_dim=6
    )


class UViT(nn.Module):
    """As its authors name its parts."""

    class Block(nn.Module):
        def __init__(self, merges):
            super().__init__()
            self.skip_linear = nn.Linear(12, 6) if merges else None
            self.skip_norm = nn.LayerNorm(12)  # of HunyuanDiT
            self.mlp = nn.Linear(6, 6)

        def merged(self, x, skip):
            return self.skip_linear(self.skip_norm(torch.cat([x, skip], -1)))

        def forward(self, x, skip=None):
            if self.skip_linear is not None:
                x = self.merged(x, skip)
            return x + self.mlp(x).tanh()

    def __init__(self):
        super().__init__()
        self.in_blocks = nn.ModuleList(self.Block(False) for _ in range(2))
        self.mid_block = self.Block(False)
        self.out_blocks = nn.ModuleList(self.Block(True) for _ in range(2))

    def forward(self, x, timesteps):
        skips = []
        for block in self.in_blocks:
            x = block(x)
            skips.append(x)
        x = self.mid_block(x)
        for block in self.out_blocks:
            x = block(x, skips.pop())
        return x


def images(*shape):
    return torch.randn(4, *shape, generator=torch.Generator().manual_seed(1))


PROMPTS = images(3, 6)
TEXT = {"encoder_hidden_states": PROMPTS, "pooled_projections": images(5)}
# What makes the network, names and number of its blocks, and conditioning.
NETWORKS = {
    "DiT": (dit, "transformer_blocks", 8, {"class_labels": torch.tensor([3, 1, 4, 1])}),
    "SD3": (sd3, "transformer_blocks", 4, TEXT),
    "Flux": (
        flux,
        ("transformer_blocks", "single_transformer_blocks"),
        4,
        TEXT | {"img_ids": torch.zeros(16, 3), "txt_ids": torch.zeros(3, 3)},
    ),
    "UNet2DModel": (unet, "up_blocks", 3, {}),
    "UNet2DConditionModel": (conditional_unet, "up_blocks", 3, {"encoder_hidden_states": PROMPTS}),
}


class Case:
    """A network at random, with what it is called with."""

    def __init__(self, name):
        make, self.blocks, self.num_blocks, self.conditions = NETWORKS[name]
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.network = make().eval()
            for parameter in self.network.parameters():  # nothing is zero
                parameter.data.add_(0.1 * torch.randn_like(parameter))
        self.last = 1 if name == "Flux" else 1000
        self.t = TIMES / 1000 if name == "Flux" else TIMES
        self.x = {"F": images(16, 4), "U": images(1, 8, 8)}.get(name[0], images(1, 4, 4))

    def wrap(self, depths):
        return EarlyExit.wrap(self.network, ExitSchedule(depths, self.last), self.blocks)

    def __call__(self, network, rows=slice(None)):
        kept = {
            key: value[rows] if torch.is_tensor(value) and len(value) == 4 else value
            for key, value in self.conditions.items()
        }
        return network(self.x[rows], timestep=self.t[rows], **kept)[0]


@pytest.fixture(params=NETWORKS)
def case(request):
    return Case(request.param)


# Networks of diffusers ----------------------------------------------------------------------------


def test_at_full_depth_nothing_changes_a_bit(case):
    wrapped = case.wrap([case.num_blocks])
    assert wrapped.early_exit.num_blocks == case.num_blocks
    assert type(wrapped) is type(case.network)
    assert wrapped.state_dict().keys() == case.network.state_dict().keys()
    for mode in (False, True):
        torch.manual_seed(0)
        expected = case(case.network.train(mode))
        torch.manual_seed(0)
        assert torch.equal(case(wrapped.train(mode)), expected)
    assert wrapped.early_exit.num_block_calls == 2 * case.num_blocks


def test_samples_of_a_batch_are_those_alone(case):
    wrapped = case.wrap([case.num_blocks, 3, 2, 1])
    together = case(wrapped)
    assert wrapped.early_exit.num_block_calls == case.num_blocks
    together.square().sum().backward()
    gradients = {name: p.grad for name, p in wrapped.named_parameters()}
    alone = copy.deepcopy(wrapped)
    alone.zero_grad()
    alone.early_exit.num_block_calls = 0
    outputs = torch.cat([case(alone, [row]) for row in range(4)])
    depths = wrapped.early_exit.schedule(case.t)
    assert alone.early_exit.num_block_calls == int(depths.sum())
    torch.testing.assert_close(outputs, together, atol=1e-5, rtol=1e-4)
    outputs.square().sum().backward()
    for name, parameter in alone.named_parameters():
        if gradients[name] is not None:
            torch.testing.assert_close(parameter.grad, gradients[name], atol=1e-4, rtol=1e-4)


def test_what_is_beyond_the_exit_does_not_matter(case):
    """Blocks get no gradient, and with weights that are not numbers do not spoil the output."""
    wrapped = case.wrap([2])
    case(wrapped).sum().backward()
    left_out = [gate.module for gate in wrapped.early_exit._gates if gate.index >= 2]
    merging = ("conv_shortcut.weight", "conv_shortcut.bias")
    names = [(m, name) for m in left_out for name, _ in m.named_parameters() if name not in merging]
    assert names and all(module.get_parameter(name).grad is None for module, name in names)
    expected = case(wrapped)
    for module, name in names:
        module.get_parameter(name).data.fill_(torch.nan)
    assert torch.equal(case(wrapped), expected)


# DiT ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("solver", [DDIMScheduler, DDPMScheduler, PNDMScheduler])
def test_a_real_pipeline_counts_its_blocks(solver):
    pipeline = digit_transformer_pipeline(num_steps=0)
    pipeline.scheduler = solver(beta_schedule="linear")
    plain = pipeline(
        [3, 7], num_inference_steps=10, output_type="np", generator=torch.manual_seed(0)
    )
    network, schedule = pipeline.transformer, ExitSchedule(ASE)
    pipeline.transformer = EarlyExit.wrap(network, ExitSchedule.uniform(8))
    full = pipeline(
        [3, 7], num_inference_steps=10, output_type="np", generator=torch.manual_seed(0)
    )
    assert (full.images == plain.images).all()
    pipeline.transformer = EarlyExit.wrap(network, schedule)
    pipeline([3, 7], num_inference_steps=10)
    expected = int(schedule(pipeline.scheduler.timesteps).sum())
    assert pipeline.transformer.early_exit.num_block_calls == expected


def test_pipelines_are_saved_and_loaded_as_ever(tmp_path):
    pipeline = digit_transformer_pipeline(num_steps=0)
    pipeline.transformer = EarlyExit.wrap(pipeline.transformer, ExitSchedule(ASE))
    pipeline.save_pretrained(tmp_path)
    loaded = DiTPipeline.from_pretrained(tmp_path, vae=pipeline.vae)
    config = {key: x for key, x in loaded.transformer.config.items() if not key.startswith("_")}
    assert config.items() <= pipeline.transformer.config.items()
    x, t, labels = images(1, 8, 8), TIMES, torch.arange(4)
    again = EarlyExit.wrap(loaded.transformer, ExitSchedule(ASE))
    assert torch.equal(again(x, t, labels)[0], pipeline.transformer(x, t, labels)[0])


def test_copies_and_pickles_have_exits_of_their_own():
    case = Case("DiT")
    wrapped = case.wrap(ASE)
    expected = case(wrapped)
    for copied in (copy.deepcopy(wrapped), pickle.loads(pickle.dumps(wrapped))):
        assert torch.equal(case(copied), expected)
        assert copied.early_exit.num_block_calls == 16
        assert all(gate.exits is copied.early_exit for gate in copied.early_exit._gates)
    assert wrapped.early_exit.num_block_calls == 8


def test_exits_are_replaced_and_removed():
    case = Case("DiT")
    expected = case(case.network)
    exits = EarlyExit(case.network, ExitSchedule.uniform(2))
    shallow = case(case.network)
    assert exits.num_block_calls == 2 and not torch.equal(shallow, expected)
    case(EarlyExit.wrap(case.network, ExitSchedule.uniform(3)))
    again = EarlyExit(case.network, ExitSchedule.uniform(5))
    case(case.network)
    assert (exits.num_block_calls, again.num_block_calls) == (2, 5)
    network = copy.deepcopy(case.network)
    network.transformer_blocks[2].forward = lambda x: x  # what hooks do
    with pytest.raises(ValueError, match="module must have the forward of its class"):
        EarlyExit.wrap(network, ExitSchedule.uniform(5))
    again.remove()
    assert torch.equal(case(case.network), expected)
    assert not hasattr(case.network, "early_exit")


def test_a_block_on_its_own_always_runs():
    wrapped = Case("DiT").wrap([1])
    block, x = wrapped.transformer_blocks[5], images(4, 8)
    given = dict(timestep=TIMES, class_labels=torch.arange(4))
    assert not torch.equal(block(x, **given), x)
    assert wrapped.early_exit.num_block_calls == 0


# Skip connections ---------------------------------------------------------------------------------


def test_u_vit_merges_in_blocks_that_do_not_run():
    torch.manual_seed(0)
    network, x, t = UViT(), images(3, 6), TIMES
    names = ("in_blocks", "mid_block", "out_blocks")
    wrapped = EarlyExit.wrap(network, ExitSchedule([5, 4, 3]), names, timestep="timesteps")
    assert wrapped.early_exit.num_blocks == 5
    with torch.no_grad():
        first = network.in_blocks[0](x)
        second = network.in_blocks[1](first)
        third = network.mid_block(second)
        fourth = network.out_blocks[0](third, second)
        dropped = network.out_blocks[0].merged(third, second)
        merged = network.out_blocks[1].merged
        expected = [
            merged(dropped, first)[0],  # 3 blocks at 999
            network(x, t)[1],  # all of them at 0
            *merged(fourth, first)[2:],
        ]
        torch.testing.assert_close(wrapped(x, t), torch.stack(expected), atol=1e-6, rtol=1e-5)
    with pytest.raises(ValueError, match="schedule must ask for 3 to 5 blocks, got 2"):
        EarlyExit.wrap(network, ExitSchedule([5, 2]), names, timestep="timesteps")


def test_u_net_keeps_what_merges_channels():
    """A pair without its part beside the shortcut is what is left of it."""
    case = Case("UNet2DConditionModel")
    bare = copy.deepcopy(case.network)
    for resnet in (bare.up_blocks[0].resnets[1], bare.up_blocks[1].resnets[1]):
        nn.init.zeros_(resnet.conv2.weight)
        nn.init.zeros_(resnet.conv2.bias)
    nn.init.zeros_(bare.up_blocks[0].attentions[1].proj_out.weight)
    nn.init.zeros_(bare.up_blocks[0].attentions[1].proj_out.bias)
    wrapped = case.wrap([1])
    torch.testing.assert_close(case(wrapped), case(bare), atol=1e-6, rtol=1e-5)
    assert wrapped.early_exit.num_block_calls == 1


# What is refused ----------------------------------------------------------------------------------


def test_what_is_refused_before_work_begins():
    network = dit(num_layers=3)
    schedule = ExitSchedule.uniform(3)
    for options, wanted in [
        (dict(schedule=ExitSchedule.uniform(4)), "schedule must ask for 1 to 3 blocks, got 4"),
        (dict(schedule=schedule, blocks="norm_out.eps"), "blocks must name a list of modules"),
    ]:
        with pytest.raises(ValueError, match=wanted):
            EarlyExit.wrap(network, **options)
    lists = nn.Module()
    lists.transformer_blocks = nn.ModuleList([nn.ModuleDict({"block": nn.Linear(1, 1)})])
    with pytest.raises(ValueError, match="blocks must be modules that are called"):
        EarlyExit.wrap(lists, schedule, timestep="input")


def test_what_is_refused_in_a_call():
    case = Case("DiT")
    wrapped = case.wrap(ASE)
    with pytest.raises(ValueError, match="timesteps must have one entry for each of 4 samples"):
        uvit = EarlyExit.wrap(UViT(), ExitSchedule([2, 1]), "in_blocks", timestep="timesteps")
        uvit(images(3, 6), torch.tensor([0, 999]))
    with pytest.raises(ValueError, match="schedule must ask for 1 to 8 blocks, got 0"):
        case(EarlyExit.wrap(case.network, torch.zeros_like))
    with pytest.raises(ValueError, match=r"as many integers as timesteps, \(4,\), got \(2,\)"):
        case(EarlyExit.wrap(case.network, lambda t: torch.tensor([3, 4])))
    wrapped.enable_gradient_checkpointing()
    with pytest.raises(ValueError, match="without gradient checkpointing"):
        case(wrapped)
    with torch.no_grad():
        case(wrapped)
