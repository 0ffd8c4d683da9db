"""The page on modular adapters: its parts, a short run, and in full its claims."""

import pytest
import torch

pytest.importorskip("diffusers")
pytest.importorskip("peft")
pytest.importorskip("sklearn")

PAGE = "modular-lora"
pytestmark = pytest.mark.slow


def test_images_are_harmless(names):
    """None shows or is called a seven; captions are words of digits, their parity, or empty."""
    words, digits, captions = names["WORDS"], names["digits"].tolist(), names["captions"]
    assert len(names["images"]) == len(digits) == len(captions) == 1618
    assert 7 not in digits and "seven" not in captions
    allowed = [{words[digit], ("even", "odd")[digit % 2], ""} for digit in digits]
    assert all(caption in some for caption, some in zip(captions, allowed, strict=True))
    assert sum(caption in ("odd", "even") for caption in captions) == pytest.approx(324, abs=50)
    assert sum(caption == "" for caption in captions) == pytest.approx(162, abs=40)


def test_rivals_start_alike_on_the_same_layers(names):
    """Safety adapters of rank 4 and tasks of rank 16, on the cross-attention alone."""
    lora = names["lora"]
    assert list(lora.layers) == ["SDD", "ESD", "task", "after_SDD", "after_ESD"]
    assert len(set(lora.layers.values())) == 1
    assert all("attn2" in layer for layer in lora.layers["task"])
    assert not any(lora.weights.values())
    assert all(lora.norm(name) > 0.0 for name in lora.layers)


def test_networks_are_those_that_their_names_say(names):
    """The original is the pipeline's; what is added is the sum of updates."""
    lora, networks = names["lora"], names["networks"]
    original = names["pipeline"].unet.state_dict()
    found = networks["original"].state_dict()
    assert original.keys() == found.keys()
    assert all(torch.equal(original[name], found[name]) for name in original)
    layer = lora.layers["task"][0]
    weight = original[f"{layer}.weight"]
    safe, task, after = (lora.deltas(name)[layer] for name in ("SDD", "task", "after_SDD"))
    for name, expected in {
        "SDD + task": weight + safe + task,
        "SDD, then task": weight + safe + after,
    }.items():
        torch.testing.assert_close(networks[name].get_submodule(layer).weight.detach(), expected)
