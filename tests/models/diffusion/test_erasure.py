"""Erasing concepts: what a step does exactly, what stays as it was, and what is refused."""

import copy
from functools import partial

import pytest
import torch
from pyro.distributions import Beta, Normal
from torch import nn

from pyro_ext.checkpoint import CheckpointError
from pyro_ext.inference.diffusion import denoise, encode_prompts
from pyro_ext.inference.training import TrainingDiverged
from pyro_ext.models.diffusion import ESD, ConceptOrder, SafeSelfDistillation

diffusers = pytest.importorskip("diffusers")

REMOVED = ConceptOrder(generate_with="removed")
SGD = partial(torch.optim.SGD, lr=0.1)
SCHEDULER = diffusers.DDIMScheduler(clip_sample=False, set_alpha_to_one=False, steps_offset=1)
WIDTH, OUT = 3, 2


class Linear(nn.Module):
    """Predicts ``W c``, with one parameter that is not of the cross-attention."""

    config = {"sample_size": 1, "in_channels": OUT}

    def __init__(self, weight=None):
        super().__init__()
        self.attn2 = nn.Linear(WIDTH, OUT, bias=False)
        self.scale = nn.Parameter(torch.ones(OUT))
        if weight is not None:
            self.attn2.weight.data = weight.clone()

    def forward(self, sample, timestep, encoder_hidden_states):
        return ((self.scale * self.attn2(encoder_hidden_states[:, 0]))[..., None, None],)


class Shapeless(Linear):
    config = {}


class Blind(Linear):
    """Does not look at the condition."""

    def forward(self, sample, timestep, encoder_hidden_states):
        return (self.attn2.weight.sum() * sample,)


VECTORS = {
    "": [0.5, 0.0, 0.2],
    "a": [1.0, 0.3, 0.0],
    "b": [0.2, 0.1, 0.0],
    "a, b": [0.2, 0.9, 0.1],
}


def encode(prompts):
    return torch.tensor([VECTORS[prompt] for prompt in prompts])[:, None]


def toy(kind=SafeSelfDistillation, unet=None, concepts=("a",), **options):
    torch.manual_seed(0)
    options = {"num_inference_steps": 5, "seed": 0, "optimizer": SGD} | options
    return kind(unet or Linear(), SCHEDULER, encode, concepts, **options)


@pytest.mark.parametrize("kind", [SafeSelfDistillation, ESD])
def test_pipeline_is_read_and_its_copy_is_erased_and_saved(kind, pipeline, tmp_path):
    before = {name: p.clone() for name, p in pipeline.unet.state_dict().items()}
    erasure = kind.from_pipeline(pipeline, ["seven"], num_inference_steps=3, batch_size=2, seed=0)
    erasure.run(2, progress=False)
    erased = erasure.erased_pipeline(pipeline)
    for name, parameter in pipeline.unet.state_dict().items():
        assert torch.equal(parameter, before[name])
    for name, parameter in erased.unet.state_dict().items():
        assert torch.equal(parameter, before[name]) == ("attn2" not in name), name
        assert torch.equal(parameter, erasure.erased.state_dict()[name])
    assert erasure.erased is (erasure.teacher if kind is SafeSelfDistillation else erasure.student)
    other = copy.copy(pipeline)
    other.unet = erased.unet
    with pytest.raises(ValueError, match="pipeline must have the unet that concepts were erased"):
        erasure.erased_pipeline(other)
    erased.save_pretrained(tmp_path)
    saved = diffusers.UNet2DConditionModel.from_pretrained(tmp_path, subfolder="unet")
    for name, parameter in saved.state_dict().items():
        assert torch.equal(parameter, erased.unet.state_dict()[name])


def test_nothing_to_forget_is_no_loss():
    for unet, concepts in ((Linear(), [""]), (Blind(), ["a"])):
        erasure = toy(unet=unet, concepts=concepts).run(3, progress=False)
        assert erasure.losses == [0.0, 0.0, 0.0]
        assert torch.equal(erasure.student.attn2.weight, unet.attn2.weight)
        assert torch.equal(erasure.teacher.attn2.weight, unet.attn2.weight)


# One step ----------------------------------------------------------------------------------------


GROUPS = {
    "xattn": lambda name: "attn2" in name,
    "selfattn": lambda name: "attn1" in name,
    "full": lambda name: True,
    "noxattn": lambda name: not ("attn2" in name or name.startswith("time_emb") or name in LAST),
    "notime": lambda name: not (name.startswith("time_emb") or name in LAST),
    "a function": lambda name: name.endswith("to_q.weight"),
}
LAST = ("conv_out.weight", "conv_out.bias")


def test_groups_of_parameters(pipeline):
    for group, chosen in GROUPS.items():
        params = chosen if group == "a function" else group
        erasure = ESD.from_pipeline(pipeline, ["seven"], params=params)
        for name, parameter in erasure.student.named_parameters():
            assert parameter.requires_grad == chosen(name), (group, name)
        assert not any(parameter.requires_grad for parameter in erasure.teacher.parameters())


@pytest.mark.parametrize("concept", ["a", "b"])  # for which the gap shrinks, and grows
def test_linear_model_shrinks_the_gap_along_the_concept_only(concept, float64):
    lr, num_steps = 0.1, 20
    c, empty = encode([concept, ""]).double()[:, 0]
    before = Linear().double()
    erasure = toy(
        unet=before, concepts=[concept], optimizer=partial(torch.optim.SGD, lr=lr), batch_size=2
    ).run(num_steps, progress=False)
    factor = 1.0 - (2.0 * lr / OUT) * float(c @ (c - empty))
    assert (factor < 1.0) == (concept == "a")
    first, last = before.attn2.weight.detach(), erasure.student.attn2.weight.detach()
    gap = first @ (c - empty)
    torch.testing.assert_close(last @ (c - empty), factor**num_steps * gap)
    torch.testing.assert_close(
        torch.tensor(erasure.losses),
        gap.square().mean() * factor ** (2.0 * torch.arange(num_steps)),
    )
    orthogonal = torch.linalg.svd(c[None]).Vh[1:].T
    torch.testing.assert_close(last @ orthogonal, first @ orthogonal)


def test_esd_target():
    unet = Linear()
    erasure = toy(ESD, unet=unet, negative_guidance=2.0)
    empty, a = (unet.attn2(vector) for vector in encode(["", "a"]))
    target = erasure.target(torch.zeros(1, OUT, 1, 1), torch.tensor(5), encode(["a"])[0])
    torch.testing.assert_close(target[..., 0, 0], empty - 2.0 * (a - empty))


# The teacher -------------------------------------------------------------------------------------


def test_teacher_is_the_moving_average(float64):
    decay, num_steps = 0.9, 7
    first = Linear().double()
    still = partial(torch.optim.SGD, lr=0.0)
    erasure = toy(unet=first, optimizer=still, ema=decay)
    other = torch.randn(OUT, WIDTH)
    erasure.student.attn2.weight.data.copy_(other)
    erasure.run(num_steps, progress=False)
    expected = other + decay**num_steps * (first.attn2.weight - other)
    torch.testing.assert_close(erasure.teacher.attn2.weight, expected.detach())


def test_teacher_with_a_decay_of_one_and_of_zero():
    unet = Linear()
    kept = toy(unet=unet, ema=1.0).run(3, progress=False)
    assert torch.equal(kept.teacher.attn2.weight, unet.attn2.weight)
    same = toy(unet=unet, ema=0.0).run(3, progress=False)
    assert torch.equal(same.teacher.attn2.weight, same.student.attn2.weight)
    assert not torch.equal(same.teacher.attn2.weight, unet.attn2.weight)


# Latents -----------------------------------------------------------------------------------------


def test_timesteps_belong_to_the_step_where_latents_are():
    erasure = toy(num_inference_steps=50)
    steps = torch.tensor([erasure.steps_before(t) for t in range(1000)])
    assert torch.equal(steps, 49 - torch.arange(1000) // 20)
    scheduler = diffusers.DDIMScheduler(timestep_spacing="leading", steps_offset=1)
    scheduler.set_timesteps(50)
    assert [erasure.steps_before(int(t)) for t in scheduler.timesteps] == list(range(50))
    odd = toy(num_inference_steps=7)
    steps = torch.tensor([odd.steps_before(t) for t in range(1000)])
    assert torch.equal(steps.unique_consecutive(), torch.arange(7).flip(0))


def test_latents_with_guidance_of_one_and_of_zero(pipeline):
    scheduler = pipeline.scheduler
    empty, seven = encode_prompts(pipeline.tokenizer, pipeline.text_encoder, ["", "seven"])
    for guidance, prompt in ((1.0, seven), (0.0, empty)):
        erasure = SafeSelfDistillation.from_pipeline(
            pipeline, ["seven"], guidance=guidance, num_inference_steps=4, batch_size=2
        )
        torch.manual_seed(1)
        found = erasure.latents(400, seven)
        torch.manual_seed(1)
        noise = torch.randn(2, 1, 8, 8)

        def alone(z, t, states=prompt):
            return pipeline.unet(z, t, states.expand(2, -1, -1))[0]

        expected = denoise(alone, scheduler, noise, 4, stop=2)
        torch.testing.assert_close(found, expected)
    assert torch.equal(_noise_of(erasure, 999, seven), _noise_of(erasure, 999, empty))


def _noise_of(erasure, timestep, prompt):
    torch.manual_seed(1)
    return erasure.latents(timestep, prompt)


class Recording(SafeSelfDistillation):
    """Draws no latents, but keeps what they would have been drawn for."""

    def latents(self, timestep, prompt):
        self.calls = [*getattr(self, "calls", []), [timestep, prompt]]
        return torch.zeros(1, OUT)

    def loss(self, noisy, timestep, concept):
        self.calls[-1].append(concept)
        return super().loss(noisy, timestep, concept)

    @property
    def prompts(self):
        """Names of what latents were drawn with, and of what was removed."""
        names = {tuple(vector): name for name, vector in VECTORS.items()}

        def name(c):
            return names[tuple(round(x, 3) for x in c[0].tolist())]

        return [(name(prompt), name(concept)) for _, prompt, concept in self.calls]


def test_which_concept_is_removed_when():
    pair = ("a", "b")
    drawn = {
        ("iterative", "composite"): [("a, b", "a"), ("a, b", "b")] * 2,
        ("iterative", "single"): [("a", "a, b"), ("b", "a, b")] * 2,
        ("iterative", "removed"): [("a", "a"), ("b", "b")] * 2,
        ("sequential", "removed"): [("a", "a")] * 2 + [("b", "b")] * 2,
        ("composite", "removed"): [("a, b", "a, b")] * 4,
    }
    for (order, generate_with), expected in drawn.items():
        erasure = toy(Recording, concepts=pair, concept_order=ConceptOrder(order, generate_with))
        assert erasure.run(4, progress=False).prompts == expected, order
    at_random = ConceptOrder("random")
    erasure = toy(Recording, concepts=pair, concept_order=at_random).run(20, progress=False)
    assert set(erasure.prompts) == {("a, b", "a"), ("a, b", "b")}


@pytest.mark.statistical
def test_timesteps_of_a_distribution():
    """Beyond four standard errors in 1 of 16,000 seeds, each of the two."""
    number = 2_000
    erasure = toy(Recording, timesteps=Beta(3.0, 3.0)).run(number, progress=False)
    fractions = torch.tensor([call[0] / 1000 for call in erasure.calls], dtype=torch.float64)
    assert abs(float(fractions.mean()) - 0.4995) < 4 * (1 / 28 / number) ** 0.5
    inner = float(((fractions >= 0.25) & (fractions < 0.75)).double().mean())
    assert abs(inner - 0.792969) < 4 * (0.792969 * 0.207031 / number) ** 0.5


def test_conditioning_in_place_of_a_prompt(pipeline):
    seven = encode_prompts(pipeline.tokenizer, pipeline.text_encoder, ["seven"])[0]
    losses = [
        SafeSelfDistillation.from_pipeline(pipeline, [concept], num_inference_steps=3, seed=0)
        .run(2, progress=False)
        .losses
        for concept in ("seven", seven)
    ]
    assert losses[0] == losses[1]
    both = toy(concepts=["a", encode(["b"])[0]], concept_order=REMOVED)
    assert both.run(2, progress=False).losses[0] > 0.0


# Runs --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [SafeSelfDistillation, ESD])
def test_goes_on_bit_for_bit(kind, tmp_path):
    options = {"unet": Linear(), "concepts": ["a", "b"], "concept_order": ConceptOrder("random")}
    options["optimizer"] = partial(torch.optim.AdamW, lr=0.1)
    whole = toy(kind, **options).run(7, progress=False)
    path = tmp_path / "erasing.safetensors"
    toy(kind, **options).run(3, checkpoint=path, progress=False)
    rest = toy(kind, **options).run(7, checkpoint=path, progress=False)
    assert rest.losses == whole.losses
    for network in ("student", "teacher"):
        found, expected = (getattr(one, network).attn2.weight for one in (rest, whole))
        assert torch.equal(found, expected)
    other = Linear()
    other.scale.data.mul_(1.01)
    with pytest.raises(CheckpointError, match="unet"):
        toy(kind, **{**options, "unet": other}).run(7, checkpoint=path, progress=False)
    with pytest.raises(CheckpointError, match="guidance"):
        toy(kind, guidance=2.0, **options).run(7, checkpoint=path, progress=False)
    options |= {"concepts": [*encode(["a", "b"])], "concept_order": REMOVED}
    path = tmp_path / "tensors.safetensors"
    first = toy(kind, **options).run(3, checkpoint=path, progress=False)
    assert toy(kind, **options).run(3, checkpoint=path, progress=False).losses == first.losses
    options["concepts"][0] = encode([""])[0]
    with pytest.raises(CheckpointError, match="concepts"):
        toy(kind, **options).run(3, checkpoint=path, progress=False)


def test_what_is_not_finite_stops_it_with_the_last_good_networks():
    erasure = toy(concepts=["b"], optimizer=partial(torch.optim.SGD, lr=1e30))
    with pytest.raises(TrainingDiverged, match="diverged"):
        erasure.run(100, progress=False)
    assert 0 < len(erasure.losses) < 100
    for network in (erasure.student, erasure.teacher):
        assert network.attn2.weight.isfinite().all()


def test_adapters_of_peft(pipeline):
    peft = pytest.importorskip("peft")
    unet = copy.deepcopy(pipeline.unet)
    targets = ["attn2.to_q", "attn2.to_v"]
    unet.add_adapter(peft.LoraConfig(r=2, target_modules=targets), adapter_name="safety")
    erasure = SafeSelfDistillation(
        unet,
        pipeline.scheduler,
        partial(encode_prompts, pipeline.tokenizer, pipeline.text_encoder),
        ["seven"],
        params=lambda name: ".safety." in name,
        num_inference_steps=3,
        optimizer=partial(torch.optim.AdamW, lr=1e-2),
        ema=0.5,
        seed=0,
    ).run(3, progress=False)
    before = dict(unet.named_parameters())
    for name, parameter in erasure.teacher.named_parameters():
        assert torch.equal(parameter, before[name]) == (".safety." not in name), name
    erased = copy.copy(pipeline)
    erased.unet = unet
    assert erasure.erased_pipeline(erased).unet.active_adapters() == ["safety"]
    with pytest.raises(ValueError, match="pipeline must have the unet that"):
        erasure.erased_pipeline(pipeline)


# What is refused ---------------------------------------------------------------------------------


def test_networks_that_take_no_prompt_or_have_no_cross_attention(pipeline):
    small = {"sample_size": 8, "block_out_channels": (8,), "layers_per_block": 1}
    small |= {"norm_num_groups": 4, "in_channels": 1, "out_channels": 1}
    blocks = {"down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",)}
    alone = diffusers.UNet2DModel(**small, **blocks)
    without = diffusers.UNet2DConditionModel(
        **small, **blocks, mid_block_type=None, cross_attention_dim=32
    )
    encode = partial(encode_prompts, pipeline.tokenizer, pipeline.text_encoder)
    with pytest.raises(TypeError, match="encoder_hidden_states, .* got UNet2DModel"):
        ESD(alone, SCHEDULER, encode, ["seven"])
    with pytest.raises(ValueError, match="params .* got 'xattn', .* has no cross-attention"):
        ESD(without, SCHEDULER, encode, ["seven"])


def test_arguments(subtests, pipeline):
    a = encode(["a"])[0]
    noisy = diffusers.EulerDiscreteScheduler()
    refused = {
        "concepts must have the shape": lambda: toy(concepts=[torch.zeros(2, WIDTH)]),
        "generate_with must be 'removed'": lambda: toy(concepts=["b", a]),
        "concept_order must be another than": lambda: toy(
            concept_order=ConceptOrder("sequential")
        ).step(),
        "params must choose parameters": lambda: toy(params="selfattn"),
        "unet must have sample_size": lambda: toy(unet=Shapeless()),
        "num_inference_steps must be at most": lambda: toy(num_inference_steps=1001),
        "timesteps must be a distribution of one": lambda: toy(timesteps=Normal(0.5, 0.1)),
        "scheduler must take latents as they": lambda: ESD(Linear(), noisy, encode, ["a"]),
        "encode must return the shape": lambda: ESD(Linear(), SCHEDULER, lambda prompts: a, ["a"]),
        "of words that the tokenizer knows": lambda: ESD.from_pipeline(pipeline, ["7"]),
        "at most 6 tokens": lambda: ESD.from_pipeline(pipeline, ["one, two, three, four"]),
    }
    for message, call in refused.items():
        with subtests.test(message), pytest.raises((TypeError, ValueError), match=message):
            call()
