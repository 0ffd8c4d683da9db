"""Adapters with names: additive, independent, removable to the last bit, and files of pipelines."""

import copy
import json
from functools import partial

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

pytest.importorskip("peft")
pytest.importorskip("diffusers")

from pyro_ext.checkpoint import CheckpointError
from pyro_ext.inference.diffusion import encode_prompts
from pyro_ext.inference.training import TrainingDiverged
from pyro_ext.models.diffusion import ModularLoRA, digit_images, fine_tune

CROSS = ["attn2.to_q", "attn2.to_k", "attn2.to_v", "attn2.to_out.0"]
FILE = "pytorch_lora_weights.safetensors"


class Tree(nn.Module):
    """Linear layers and convolutions, nested, and one whose name is the end of another's."""

    def __init__(self):
        super().__init__()
        self.key = nn.Linear(6, 8)
        self.conv = nn.Conv2d(1, 3, 3, padding=1)
        self.block = nn.ModuleDict({"key": nn.Linear(24, 4), "norm": nn.LayerNorm(4)})

    def forward(self, x):
        hidden = self.conv(self.key(x).tanh()[:, None, None]).flatten(1)
        return self.block["norm"](self.block["key"](hidden))


def fill(lora, *names, scale=1.0):
    """Give adapters factors as if they were trained."""
    for seed, name in enumerate(names):
        generator = torch.Generator().manual_seed(seed)
        with lora.only(name) as factors, torch.no_grad():
            for factor in factors:
                factor.normal_(0.0, scale, generator=generator)


def inputs(size=5):
    return torch.randn(size, 6, generator=torch.Generator().manual_seed(9))


@pytest.fixture
def network():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Tree()


@pytest.fixture
def lora(network):
    """Two adapters that overlap, filled."""
    lora = ModularLoRA(network)
    lora.add("safety", 2, 4.0, ["block.key", "conv"])
    lora.add("task", 3)
    fill(lora, "safety", "task")
    return lora


def state(module):
    return {name: one.detach().clone() for name, one in module.state_dict().items()}


def is_same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


# Switching


def test_new_adapters_change_nothing(network):
    """Switched off or on, since B is zero; and the network stays as it was."""
    before = state(network)
    lora = ModularLoRA(network)
    lora.add("safety", targets=["conv"])
    lora.add("task")
    assert lora.weights == {"safety": 0.0, "task": 0.0}
    for weights in ({}, {"safety": 1.0}, {"safety": 1.0, "task": 2.0}):
        lora.weights = weights
        assert torch.equal(lora.module(inputs()), network(inputs()))
    assert is_same(state(network), before)
    assert all(parameter.requires_grad for parameter in network.parameters())


@pytest.mark.parametrize("weights", [(1.0, 1.0), (0.3, -2.0)])
def test_adapters_add_up(network, lora, float64, weights):
    """As weights of the network that are set by hand, and so does a merged copy."""
    lora.module.double()
    network.double()
    lora.weights = dict(zip(("safety", "task"), weights, strict=True))
    with torch.no_grad():
        for name, weight in lora.weights.items():
            for layer, delta in lora.deltas(name).items():
                network.get_submodule(layer).weight += weight * delta
    torch.testing.assert_close(lora.module(inputs()), network(inputs()))
    merged = lora.merge()
    torch.testing.assert_close(merged(inputs()), network(inputs()))
    assert merged.state_dict().keys() == network.state_dict().keys()
    assert all(parameter.requires_grad for parameter in merged.parameters())


def test_delta_is_alpha_over_rank_times_the_product(lora):
    """At any weight; and norm and cosine are those over the layers of both."""
    lora.weights = {"safety": 0.1}
    layer = lora.module.get_submodule("block.key")
    product = layer.lora_B["safety"].weight @ layer.lora_A["safety"].weight
    safety, task = lora.deltas("safety"), lora.deltas("task")
    torch.testing.assert_close(safety["block.key"], 2.0 * product)
    assert {name: one.shape for name, one in safety.items()} == {
        "conv": (3, 1, 3, 3),
        "block.key": (4, 24),
    }
    assert list(task) == ["key", "block.key"]
    flat = torch.cat([one.flatten() for one in safety.values()])
    assert lora.norm("safety") == pytest.approx(float(flat.norm()))
    cosine = torch.cosine_similarity(
        safety["block.key"].flatten(), task["block.key"].flatten(), dim=0
    )
    assert lora.cosine("safety", "task") == pytest.approx(float(cosine), abs=1e-6)
    assert lora.cosine("task", "task") == pytest.approx(1.0)


def test_weights_of_zero_and_one_are_exact(network, lora):
    """One adapter of two is as if it were alone, none the network itself."""
    lora.weights = {}
    assert torch.equal(lora.module(inputs()), network(inputs()))
    alone = ModularLoRA(network)
    alone.add("safety", 2, 4.0, ["block.key", "conv"])
    fill(alone, "safety")
    alone.weights = {"safety": 1.0}
    lora.weights = {"safety": 1.0, "task": 0.0}
    assert torch.equal(lora.module(inputs()), alone.module(inputs()))


def test_only_switches_and_restores(lora):
    """Nested, with another beside, and after an error."""
    trainable = lambda: {n for n, p in lora.module.named_parameters() if p.requires_grad}  # noqa: E731
    lora.weights = {"safety": 0.5}
    assert not trainable()
    with pytest.raises(KeyError), lora.only("task", beside={"safety": 1.0}) as factors:
        assert lora.weights == {"safety": 1.0, "task": 1.0}
        assert len(factors) == 4 and all(".task." in name for name in trainable())
        with lora.only("safety"):
            assert lora.weights == {"safety": 1.0, "task": 0.0}
            assert all(".safety." in name for name in trainable())
        assert all(".task." in name for name in trainable())
        raise KeyError
    assert lora.weights == {"safety": 0.5, "task": 0.0} and not trainable()


def train(lora, name, num_steps=3, **options):
    with lora.only(name, **options) as factors:
        optimizer = torch.optim.AdamW(factors, lr=0.1)
        for _ in range(num_steps):
            optimizer.zero_grad()
            lora.module(inputs()).square().mean().backward()
            optimizer.step()


def test_what_an_adapter_learns_does_not_depend_on_others(network):
    """With and without another one that is there and switched off; on top of it, it does."""
    found = []
    for others, options in (([], {}), (["safety"], {}), (["safety"], {"beside": {"safety": 1.0}})):
        lora = ModularLoRA(network)
        for other in others:
            lora.add(other, 2)
            fill(lora, other)
            lora.weights = {other: 1.0}
        lora.add("task", 3, seed=1)
        train(lora, "task", **options)
        found.append(lora.deltas("task"))
    assert is_same(found[0], found[1]) and not is_same(found[0], found[2])


def test_training_changes_one_adapter(network, lora):
    """Tensors of the other one and of the network are the same bits."""
    before = state(lora.module)
    train(lora, "task", beside={"safety": 1.0})
    after = lora.module.state_dict()
    changed = {name for name in before if not torch.equal(after[name], before[name])}
    factors = {f"{layer}.lora_{f}.task.weight" for layer in lora.layers["task"] for f in "AB"}
    assert changed == factors
    assert is_same(state(lora.merge({})), state(network))


def test_same_seed_same_start(network):
    """Also beside another adapter, and without touching the global generator."""
    lora = ModularLoRA(network)
    before = torch.get_rng_state()
    lora.add("one", 2, seed=3)
    lora.add("two", 2, seed=3)
    lora.add("three", 2, seed=4)
    assert torch.equal(torch.get_rng_state(), before)
    first, second, third = (lora._factors(name).values() for name in lora.layers)
    assert all(map(torch.equal, first, second)) and not all(map(torch.equal, first, third))


def test_copy_from(lora):
    """Factors of one adapter, and no others."""
    module = copy.deepcopy(lora.module)
    fill(lora, "task", "safety")
    before = lora.deltas("task")
    lora.copy_from("safety", module)
    assert is_same(lora.deltas("task"), before)
    train(lora, "safety")
    with pytest.raises(ValueError, match=r"module must be a copy .* without .*lora_A.safety"):
        lora.copy_from("safety", lora.merge())


# Which layers


def test_targets(network):
    """Full names, their ends, and patterns; a name alone does not stand for others that end so."""
    lora = ModularLoRA(network)
    for number, (targets, layers) in enumerate(
        (
            (["key"], ("key", "block.key")),
            (["block.key"], ("block.key",)),
            (["block.*", "conv"], ("conv", "block.key")),
            (None, ("key", "block.key")),
        )
    ):
        lora.add(f"a{number}", targets=targets)
        assert lora.layers[f"a{number}"] == layers
    with pytest.raises(ValueError, match="targets must each name .* got 'norm'; there are 'key', "):
        lora.add("b", targets=["conv", "norm"])
    assert "b" not in lora.layers


def test_layers_that_would_pass_over_an_adapter_take_none():
    """Attention reads the weights of its last layer, shared layers have two names."""
    shared = nn.Linear(8, 8)
    network = nn.ModuleDict(
        {
            "first": shared,
            "second": shared,
            "attention": nn.MultiheadAttention(8, 2),
            "encoder": nn.TransformerEncoderLayer(8, 2, 16),
            "groups": nn.Conv1d(4, 4, 1, groups=2),
            "last": nn.Linear(8, 8),
        }
    )
    lora = ModularLoRA(network)
    lora.add("task")
    assert lora.layers == {"task": ("last",)}
    with pytest.raises(ValueError, match="targets must each name"):
        lora.add("other", targets=["out_proj"])


@pytest.mark.parametrize("name", ["", "a.b", "keys", "lora_a"])
def test_names_that_peft_cannot_have(network, name):
    with pytest.raises(ValueError, match="name must be a name"):
        ModularLoRA(network).add(name)


def test_wrong_arguments_are_named(lora, tmp_path):
    """Those of methods that change the object, and so are no part of the walk; nothing changes."""
    for argument, value, method in (
        ("name", "other", lambda name: lora.only(name).__enter__()),
        ("beside", {"other": 1.0}, lambda w: lora.only("task", beside=w).__enter__()),
        ("weights", {"task": torch.nan}, lambda w: setattr(lora, "weights", w)),
        ("name", "task", lambda name: lora.add(name)),
        ("name", "task", lambda name: lora.load(name, tmp_path)),
        ("rank", 0, lambda rank: lora.add("new", rank)),
        ("targets", [], lambda targets: lora.add("new", targets=targets)),
        ("seed", -1, lambda seed: lora.add("new", seed=seed)),
        ("component", "", lambda component: lora.load("new", tmp_path, component)),
    ):
        with pytest.raises(ValueError, match=argument):
            method(value)
    assert list(lora.layers) == ["safety", "task"] and not any(lora.weights.values())


def test_modules_with_adapters_are_refused(lora):
    with pytest.raises(ValueError, match="module must have no adapters yet"):
        ModularLoRA(lora.module)
    with pytest.raises(ValueError, match="module must hold a linear layer"):
        ModularLoRA(nn.Sequential(nn.ReLU()))
    lora.add("only_conv", targets=["conv"])
    lora.add("only_key", targets=["block.key"])
    with pytest.raises(ValueError, match="must have a layer in common, got 'only_conv' on conv"):
        lora.cosine("only_conv", "only_key")


# Pipelines


def images_of(pipeline, prompts=("seven", "odd")):
    generator = torch.Generator().manual_seed(0)
    drawn = pipeline([*prompts], num_inference_steps=3, output_type="pt", generator=generator)
    return drawn.images


def with_unet(pipeline, unet):
    components = {**pipeline.components, "unet": unet}
    new = type(pipeline)(**components, requires_safety_checker=False)
    new.set_progress_bar_config(disable=True)
    return new


@pytest.fixture(scope="module")
def released(pipeline):
    """Two adapters on the U-Net, filled."""
    lora = ModularLoRA(pipeline.unet)
    lora.add("safety", 4, 2.0, CROSS)
    lora.add("task", 8, targets=["attn?.to_?", "attn?.to_out.0", "conv1", "conv2"])
    fill(lora, "safety", "task", scale=0.2)
    return lora


def test_adapters_in_a_pipeline(pipeline, released):
    """Of as many layers as the U-Net has; the pipeline draws what the merged U-Net does."""
    assert len(released.layers["safety"]) == 16 and len(released.layers["task"]) == 48
    released.weights = {"safety": 1.0, "task": 1.0}
    drawn = images_of(with_unet(pipeline, released.module))
    assert (drawn - images_of(pipeline)).abs().max() > 0.01
    torch.testing.assert_close(
        drawn, images_of(with_unet(pipeline, released.merge())), atol=1e-4, rtol=0.0
    )
    released.weights = {}
    assert torch.equal(images_of(with_unet(pipeline, released.module)), images_of(pipeline))


def test_the_pipeline_switches_and_fuses(pipeline, released):
    """By the methods of diffusers; what is fused is neither merged nor removed."""
    lora = copy.deepcopy(released)
    mine = with_unet(pipeline, lora.module)
    lora.weights = {"safety": 0.5, "task": 1.0}
    drawn = images_of(mine)
    mine.set_adapters(["task"])
    assert mine.get_active_adapters() == ["task"]
    lora.weights = {"safety": 0.5, "task": 1.0}
    assert torch.equal(images_of(mine), drawn)
    mine.fuse_lora()
    torch.testing.assert_close(images_of(mine), drawn, atol=1e-4, rtol=0.0)
    for method in (lora.merge, partial(lora.add, "new")):
        with pytest.raises(ValueError, match="an adapter that is not fused, got"):
            method()


def test_pipelines_read_what_is_saved(pipeline, released, tmp_path):
    """With an alpha that is not the rank, beside another adapter; and so does the class."""
    released.save("safety", tmp_path)
    released.weights = {"safety": 1.0}
    drawn = images_of(with_unet(pipeline, released.module))
    theirs = with_unet(pipeline, copy.deepcopy(pipeline.unet))
    theirs.load_lora_weights(tmp_path, adapter_name="read")
    assert torch.equal(images_of(theirs), drawn)
    lora = ModularLoRA(pipeline.unet)
    lora.load("again", tmp_path)
    lora.weights = {"again": 1.0}
    assert torch.equal(images_of(with_unet(pipeline, lora.module)), drawn)
    assert lora.layers["again"] == released.layers["safety"]


def test_files_of_pipelines_are_read(pipeline, released, tmp_path):
    """Those of `save_lora_weights`, of which alpha is the rank without metadata."""
    from peft import get_peft_model_state_dict

    layers = get_peft_model_state_dict(released.module, adapter_name="task")
    pipeline.save_lora_weights(tmp_path, unet_lora_layers=layers)
    lora = ModularLoRA(pipeline.unet)
    lora.load("read", tmp_path)
    lora.weights, released.weights = {"read": 1.0}, {"task": 1.0}
    assert torch.equal(
        images_of(with_unet(pipeline, lora.module)), images_of(with_unet(pipeline, released.module))
    )


def test_files_that_do_not_fit(network, lora, tmp_path):
    """The error names the file and what is wrong with it, and nothing is added."""
    lora.save("safety", tmp_path)
    tensors = load_file(tmp_path / FILE)
    kind, odd = (
        {"lora_adapter_metadata": json.dumps({f"unet.{name}": value})}
        for name, value in (("use_dora", True), ("alpha_pattern", [1]))
    )
    deep = {"lora_adapter_metadata": '{"unet.r": ' + "[" * 100_000}
    one, *others = tensors
    cases = {
        "kind that is not supported: {'use_dora'": (tensors, kind),
        "with settings that cannot be": (tensors, odd),
        "its JSON is nested too deeply": (tensors, deep),
        "no adapter of 'unet', but": ({"text_encoder.a.lora_A.weight": torch.ones(1, 1)}, {}),
        "no factor of a layer": ({**tensors, "unet.conv.lora_C.weight": torch.ones(1)}, {}),
        "without the other": ({name: tensors[name] for name in others}, {}),
        "which do not fit layer": ({**tensors, one: torch.ones(2, 7, 3, 3)}, {}),
        "that are not finite": ({**tensors, one: tensors[one] * torch.nan}, {}),
        "which the network lacks": (
            {f"unet.no.lora_{factor}.weight": torch.ones(2, 2) for factor in "AB"},
            {},
        ),
    }
    for message, (content, metadata) in cases.items():
        save_file(content, tmp_path / FILE, metadata)
        other = ModularLoRA(network)
        with pytest.raises(CheckpointError, match=message):
            other.load("read", tmp_path)
        assert not other.layers
    (tmp_path / FILE).write_bytes(b"no file of tensors")
    with pytest.raises(CheckpointError, match="cannot be read"):
        ModularLoRA(network).load("read", tmp_path)


# Training, and the closed form


def tune(pipeline, unet, images, captions, **options):
    encode = partial(encode_prompts, pipeline.tokenizer, pipeline.text_encoder)
    settings = {"num_steps": 3, "batch_size": 4, "seed": 0, "progress": False, **options}
    return fine_tune(unet, pipeline.scheduler, encode, images, captions, **settings)


def test_fine_tuning_trains_what_is_switched_on(pipeline):
    images, captions = digit_images()[0][:8], ["odd", "even"] * 4
    lora = ModularLoRA(pipeline.unet)
    lora.add("safety", 4, targets=CROSS)
    lora.add("task", 2, targets=CROSS, seed=0)
    before = state(lora.module)
    with lora.only("task"):
        tune(pipeline, lora.module, images.double(), captions, batch_size=None)
    after = lora.module.state_dict()
    changed = {name for name in before if not torch.equal(after[name], before[name])}
    assert changed and all(".task." in name for name in changed)


def test_fine_tuning_leaves_captions_out(pipeline):
    """All of them at a dropout of one, none at zero."""
    images = digit_images()[0][:8]
    losses = {
        (caption, dropout): tune(
            pipeline,
            copy.deepcopy(pipeline.unet).requires_grad_(),
            images,
            [caption] * 8,
            caption_dropout=dropout,
            num_steps=1,
        )[0]
        for caption in ("seven", "")
        for dropout in (0.0, 1.0)
    }
    assert losses["seven", 1.0] == losses["", 1.0] == losses["", 0.0] != losses["seven", 0.0]


def test_bad_fine_tuning(pipeline):
    images = digit_images()[0][:4]
    unet = copy.deepcopy(pipeline.unet)
    with pytest.raises(ValueError, match="unet must have parameters that require a gradient"):
        tune(pipeline, unet, images, ["odd"] * 4)
    unet.requires_grad_()
    for message, wrong in (
        ("captions must be one for each of 4 images, got 3", (images, ["odd"] * 3)),
        ("images must be finite", (images * torch.nan, ["odd"] * 4)),
        ("prompts must be of words that the tokenizer knows", (images, ["ß"] * 4)),
    ):
        with pytest.raises(ValueError, match=message):
            tune(pipeline, unet, *wrong)
    optimizer = partial(torch.optim.SGD, lr=1e30)
    with pytest.raises(TrainingDiverged):
        tune(pipeline, unet, images, ["odd"] * 4, optimizer=optimizer, num_steps=5)


def test_the_regression_that_jailbreaks_itself(float64):
    r"""Sequentially the concept comes back as a closed form says, modularly it stays removed.

    Data :math:`y = (W_0 + D) x` with covariance :math:`S`, a concept :math:`u` that was removed by
    :math:`-W_0 u u^\top`. Gradient descent on :math:`\frac12` mean squared error, on the weights
    themselves, brings back :math:`1 - (1 - \eta s)^k` of it, since :math:`u` is an eigenvector of
    :math:`S` with eigenvalue :math:`s`, however small.
    """
    generator = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(6, 6, generator=generator)).Q
    u, s, rate = basis[:, 0], 0.05, 0.5
    covariance = basis @ torch.diag(torch.tensor([s, 1.0, 0.8, 1.2, 0.7, 0.9])) @ basis.T
    W, D = torch.randn(2, 4, 6, generator=generator)
    D = D - D @ torch.outer(u, u)  # a style that does not touch the concept
    lora = ModularLoRA(nn.Sequential(nn.Linear(6, 4, bias=False)))
    lora.module[0].weight.data = W.clone()
    for name in ("safety", "sequential", "modular"):
        lora.add(name, rank=6)
    layer = lora.module[0]
    with lora.only("safety"), torch.no_grad():
        layer.lora_A["safety"].weight.copy_(torch.eye(6))
        layer.lora_B["safety"].weight.copy_(-torch.outer(W @ u, u))
    for name, beside in (("sequential", {"safety": 1.0}), ("modular", {})):
        with lora.only(name, beside=beside) as (A, B):
            A.data = torch.eye(6)
            A.requires_grad_(False)
            for step in range(1, 2001):
                error = lora.module(torch.eye(6)).T - (W + D)
                B.grad = None
                (0.5 * (error @ covariance * error).sum()).backward()
                B.data -= rate * B.grad
                if step == 10 and name == "sequential":
                    fraction = (lora.deltas(name)["0"] @ u) / (W @ u)
                    expected = 1.0 - (1.0 - rate * s) ** 10
                    torch.testing.assert_close(fraction, torch.full((4,), expected))
    safe, sequential, modular = (lora.deltas(name)["0"] for name in lora.layers)
    torch.testing.assert_close(sequential, D - safe)
    torch.testing.assert_close(modular, D)
    released = {name: lora.merge({"safety": 1.0, name: 1.0})[0].weight for name in lora.layers}
    torch.testing.assert_close(released["sequential"] @ u, W @ u)
    torch.testing.assert_close(released["modular"] @ u, torch.zeros(4))
    doubled = lora.merge({"safety": -1.0})[0].weight
    torch.testing.assert_close(doubled @ u, 2.0 * W @ u)
    arithmetic = lora.merge({"safety": 1.0, "sequential": -1.0})[0].weight
    torch.testing.assert_close(arithmetic, W - 2.0 * torch.outer(W @ u, u) - D)
    assert lora.cosine("sequential", "safety") < -0.2
    assert abs(lora.cosine("modular", "safety")) < 1e-9
