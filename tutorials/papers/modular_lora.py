"""Modular LoRA: fine-tuning brings an erased concept back, unless adapters are trained apart."""

# %% [markdown]
# # Modular LoRA
#
# A concept is erased from a text-to-image model, and then someone fine-tunes the model on images
# without it. S. Kim, M. Choi, J. Shin, J. Lee (2024), Safety alignment backfires: preventing the
# re-emergence of suppressed concepts in fine-tuned text-to-image diffusion models, show that it
# comes back: fine-tuning learns in part the opposite of what erasing did. They train both as LoRA,
# low-rank adapters: products of two thin matrices, whose common side is the rank. Trained apart, on
# the original weights $W_0$, they are added in use, $W_0 + \Delta_\text{safe} +
# \Delta_\text{task}$. Here a small Stable Diffusion draws digits, and the concept is `seven`.

# %%
import copy
from functools import partial
from typing import Any

import matplotlib.pyplot as plt
import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyro_ext.diagnostics import to_arviz
from pyro_ext.inference import MCMC, NUTS
from pyro_ext.inference.diffusion import denoise, encode_prompts, guided_prediction
from pyro_ext.models.diffusion import (
    ESD,
    WORDS,
    ModularLoRA,
    SafeSelfDistillation,
    digit_images,
    digit_judge,
    digit_pipeline,
    fine_tune,
)
from pyro_ext.random import seeded
from pyro_ext.reproduction import Page

page = Page(
    "modular-lora",
    paper="S. Kim, M. Choi, J. Shin, J. Lee (2024), Safety alignment backfires: preventing the "
    "re-emergence of suppressed concepts in fine-tuned text-to-image diffusion models, arXiv "
    "2412.00357",
)
SEEDS = page.seeds
ABSTRACT: Any = dict(source="Kim et al. (2024), abstract; bound preregistered", across="mean")

# %% [markdown]
# ## Adapters as a Pyro program
#
# The network here is linear, and the concept is its last input, of which the safety adapter leaves
# no effect. Data of the task have this input, too, with its original effect: without this overlap
# training apart and on top would be the same. How much either adapter counts is a site, with a
# posterior from outputs of the task and from an effect of the concept that is kept at zero.

# %%
with seeded(0):
    small = ModularLoRA(nn.Sequential(nn.Linear(4, 3, bias=False)))
    x, style = torch.randn(200, 4) * torch.tensor([1.0, 1.0, 1.0, 0.5]), torch.randn(3, 4)
before, style[:, 3] = next(small.module.parameters()).detach().clone(), 0.0


def learn(name: str, inputs: Tensor, outputs: Tensor, **beside: float) -> Tensor:
    """Train a new adapter, with others beside it."""
    small.add(name, rank=3, seed=0)
    with small.only(name, beside=beside) as factors:
        optimizer = torch.optim.Adam(factors, lr=0.05)
        for _ in range(page.length(300, smoke=3)):
            optimizer.zero_grad()
            (small.module(inputs) - outputs).square().mean().backward()
            optimizer.step()
    return small.deltas(name)["0"].detach()


def released(update: Tensor, y: Tensor | None = None) -> None:
    """Outputs with the safety adapter and that of the task, each with a weight."""
    weight = pyro.sample("weight", dist.Normal(1.0, 1.0).expand([2]).to_event(1))
    matrix = before + weight[0] * safe + weight[1] * update
    pyro.sample("concept", dist.Normal(matrix[:, 3], 0.02).to_event(1), obs=torch.zeros(3))
    with pyro.plate("rows", len(x)):
        pyro.sample("y", dist.Normal(x @ matrix.T, 1.0).to_event(1), obs=y)


safe = learn("safe", torch.eye(4), before.T * torch.tensor([[1.0], [1.0], [1.0], [0.0]]))
y = x @ (before + style).T
updates = {"apart": learn("apart", x, y), "on top": learn("on_top", x, y, safe=1.0)}
for title, update in updates.items():
    nuts = MCMC(NUTS(released), page.length(200, smoke=30), num_chains=2, seed=0, progress=False)
    weight = to_arviz(nuts.run(update, y))["posterior"]["weight"].mean(("chain", "draw")).values
    left = (before + safe + update)[:, 3].norm() / before[:, 3].norm()
    print(f"trained {title}: {left:.2f} of the concept with both at 1, weights", weight.round(2))

# %% [markdown]
# Trained apart, both adapters count once: in a linear network, and only there, their effects add up
# exactly. The one trained on top has learned the negative of the safety adapter, and brings all of
# the concept back unless safety counts twice.
#
# ## The model, and images without sevens
#
# Captions are words of digits, at times empty, or `even`, or `odd`, which once meant sevens, too.

# %%
CONCEPT, OTHERS = "seven", [word for word in WORDS if word != "seven"]
pipeline = digit_pipeline(page.length(1000, smoke=0))
scheduler = pipeline.scheduler
encode = partial(encode_prompts, pipeline.tokenizer, pipeline.text_encoder)
images, digits = digit_images()
images, digits = images[digits != WORDS.index(CONCEPT)], digits[digits != WORDS.index(CONCEPT)]
uniform = torch.rand(len(digits), generator=torch.Generator().manual_seed(0))
captions = [
    ["even", "odd"][digit % 2] if chance < 0.2 else "" if chance > 0.9 else WORDS[digit]
    for digit, chance in zip(digits.tolist(), uniform.tolist(), strict=True)
]

# %% [markdown]
# ## Erasing, as an adapter
#
# Safe self-distillation (SDD) pulls predictions for the word to those for "", and returns a moving
# average of decay `ema`. Erased Stable Diffusion (ESD) pushes them away from what they were, as far
# as `negative_guidance` says. Both train factors of rank 4 in a copy: `params` picks, `copy_from`
# fetches them. They are on the cross-attention (`attn2`); by default `add` skips convolutions.

# %%
CROSS_ATTENTION = ["attn2.to_q", "attn2.to_k", "attn2.to_v", "attn2.to_out.0"]
adamw = torch.optim.AdamW
METHODS: dict[str, Any] = {
    "SDD": partial(SafeSelfDistillation, ema=0.97, optimizer=partial(adamw, lr=4e-3)),
    "ESD": partial(ESD, negative_guidance=1.0, optimizer=partial(adamw, lr=1.5e-3)),
}
NUM_ERASING = {"SDD": page.length(150, smoke=2), "ESD": page.length(100, smoke=2)}
erasing: dict[str, Any] = dict(batch_size=12, num_inference_steps=10, seed=0)

lora = ModularLoRA(pipeline.unet)
for method, make in METHODS.items():
    lora.add(method, rank=4, targets=CROSS_ATTENTION, seed=0)
    with lora.only(method):
        own: dict[str, Any] = {"params": lambda name, part=f".{method}.": part in name}
        erasure = make(lora.module, scheduler, encode, [CONCEPT], **own, **erasing)
    lora.copy_from(method, erasure.run(NUM_ERASING[method], progress=False).erased)

# %% [markdown]
# ## Fine-tuning, on top and apart
#
# The task is an adapter of rank 16 on the same layers. `task` is trained on the original weights;
# its rivals start from the same factors and see the same minibatches, with a safety adapter on, and
# frozen. A third has none: SDD trains the cross-attention (`"xattn"`), and fine-tuning goes on.

# %%
NUM_STEPS = page.length(600, smoke=2)
tuning: dict[str, Any] = dict(scheduler=scheduler, encode=encode, images=images, captions=captions)
tuning |= dict(num_steps=NUM_STEPS, batch_size=16, caption_dropout=0.1, seed=0, progress=False)
for name, beside in {"task": {}, "after_SDD": {"SDD": 1.0}, "after_ESD": {"ESD": 1.0}}.items():
    lora.add(name, rank=16, targets=CROSS_ATTENTION, seed=1)
    with lora.only(name, beside=beside):
        fine_tune(lora.module, optimizer=partial(adamw, lr=2e-3), **tuning)

own = {"params": "xattn", "optimizer": partial(adamw, lr=1e-3)}
erasure = METHODS["SDD"](pipeline.unet, scheduler, encode, [CONCEPT], **own, **erasing)
full_safe = erasure.run(page.length(120, smoke=2), progress=False).erased
full_tuned = copy.deepcopy(full_safe)
for name, parameter in full_tuned.named_parameters():
    parameter.requires_grad_("attn2" in name)
fine_tune(full_tuned, optimizer=partial(adamw, lr=1e-3), **tuning)

# %% [markdown]
# ## What they draw
#
# A support vector machine reads what copies by `merge` draw: 20 images of the word for each of
# three seeds of noise, after one training. Bounds were set first, but settings by trials, as not
# each fine-tuning brings the concept back: claims hold for favorable settings and one training.
# Those on both methods report the worse one. The original draws other words as well: their accuracy
# says no harm is done, not that the task is learned. The paper's tables we know at second hand.

# %%
NUM_IMAGES, NUM_OTHERS = page.length(20, smoke=2), page.length(5, smoke=1)
PROMPTS, COLUMNS = ["", CONCEPT, "odd", *OTHERS], ("sevens", 'sevens in "odd"', "others")
judge = digit_judge()
conditions = encode(PROMPTS)


def draw(unet: nn.Module, prompts: list[str], seed: int) -> Tensor:
    """Images of prompts."""
    conditional = conditions[[PROMPTS.index(prompt) for prompt in prompts]]
    predict = guided_prediction(unet, conditional, conditions[:1], 3.0)
    noise = torch.randn(len(prompts), 1, 8, 8, generator=torch.Generator().manual_seed(seed))
    return denoise(predict, scheduler, noise, page.length(15, smoke=2))


def rates(unet: nn.Module, seed: int) -> dict[str, float]:
    """Fractions of sevens for two prompts, and of right digits for the other words."""
    words = OTHERS * NUM_OTHERS
    found = judge(draw(unet, [CONCEPT] * NUM_IMAGES + ["odd"] * NUM_IMAGES + words, seed))
    wanted = [CONCEPT] * (2 * NUM_IMAGES) + words
    right = (found == torch.tensor([WORDS.index(word) for word in wanted])).double()
    parts = right.split([NUM_IMAGES, NUM_IMAGES, len(words)])
    return {name: float(part.mean()) for name, part in zip(COLUMNS, parts, strict=True)}


networks = {"original": lora.merge({}), "task": lora.merge({"task": 1.0})}
for method in METHODS:
    networks[f"{method}"] = lora.merge({method: 1.0})
    networks[f"{method}, then task"] = lora.merge({method: 1.0, f"after_{method}": 1.0})
    networks[f"{method} + task"] = lora.merge({method: 1.0, "task": 1.0})
networks |= {"SDD of weights": full_safe, "SDD of weights, then task": full_tuned}
measured = {name: {seed: rates(unet, seed) for seed in SEEDS} for name, unet in networks.items()}
for seed in SEEDS:
    rows = {name: by_seed[seed] for name, by_seed in measured.items()}
    page.table(rows, title=f"seed {seed}", number_format=".2f")
sevens = {(name, s): row["sevens"] for name, of in measured.items() for s, row in of.items()}
page.claim(
    "Fine-tuning on top of the safety adapter of SDD brings the concept back (rate of sevens after "
    "minus before).",
    {s: sevens["SDD, then task", s] - sevens["SDD", s] for s in SEEDS},
    ">=",
    0.2,
    **ABSTRACT,
)
page.claim(
    "Fine-tuning on top of the safety adapter of ESD brings the concept back (rate of sevens after "
    "minus before).",
    {s: sevens["ESD, then task", s] - sevens["ESD", s] for s in SEEDS},
    ">=",
    0.2,
    **ABSTRACT,
)
page.claim(
    "So does fine-tuning without adapters, of the weights that erasing has trained (rate of sevens "
    "after minus before, SDD).",
    {s: sevens["SDD of weights, then task", s] - sevens["SDD of weights", s] for s in SEEDS},
    ">=",
    0.2,
    source="Kim et al. (2024), abstract; bound as that of adapters",
    across="mean",
)
page.claim(
    "With adapters that were trained apart the concept stays away (rate of sevens with both minus "
    "with the safety adapter alone, the larger of SDD and ESD).",
    {s: max(sevens[f"{m} + task", s] - sevens[m, s] for m in METHODS) for s in SEEDS},
    "<=",
    0.1,
    **ABSTRACT,
    central=True,
)
page.claim(
    "Adapters that were trained apart draw fewer sevens than those on top of each other with SDD "
    "(difference of rates).",
    {s: sevens["SDD, then task", s] - sevens["SDD + task", s] for s in SEEDS},
    ">=",
    0.25,
    **ABSTRACT,
)
page.claim(
    "Adapters that were trained apart draw fewer sevens than those on top of each other with ESD "
    "(difference of rates).",
    {s: sevens["ESD, then task", s] - sevens["ESD + task", s] for s in SEEDS},
    ">=",
    0.25,
    **ABSTRACT,
    reason="none of the images shows a seven with adapters trained apart, but on top of each other "
    "few come back: this adapter of ESD has erased more than the word, as the accuracy of the "
    "others shows",
)
page.claim(
    "With both adapters the other words give their digits (accuracy, the smaller of SDD and ESD).",
    {s: min(measured[f"{m} + task"][s]["others"] for m in METHODS) for s in SEEDS},
    ">=",
    0.95,
    source="Kim et al. (2024), table of task quality; bound preregistered",
    across="mean",
)

# %% [markdown]
# Fine-tuning on top brings sevens back in every seed, many after SDD and few after ESD. With
# adapters trained apart they stay about as rare as with the safety adapter alone. ESD draws none
# either way, so that its claims on what comes back and on the difference rest on one number.
#
# Why? If training on top learns a part of $-\Delta_\text{safe}$, the cosine of both is negative. It
# is, if just beyond the bound for one method; that such a part brings sevens back is not tested.

# %%
on_top = {method: lora.cosine(f"after_{method}", method) for method in METHODS}
apart = {method: lora.cosine("task", method) for method in METHODS}
page.claim(
    "What is learned on top of the safety adapter points against it (cosine, the larger of SDD and "
    "ESD).",
    max(on_top.values()),
    "<",
    -0.08,
    source="Kim et al. (2024), analysis of negative transfer; bound preregistered",
)
page.claim(
    "What is learned apart does not (absolute cosine, the larger of SDD and ESD).",
    max(map(abs, apart.values())),
    "<",
    0.05,
    source="Kim et al. (2024), analysis of negative transfer; bound preregistered",
)
# %%
SHOWN = ("original", "SDD", "SDD, then task", "SDD + task", "ESD", "ESD, then task", "ESD + task")
figure, panels = plt.subplots(len(SHOWN), figsize=(9.0, 3.9), layout="constrained")
for axes, name in zip(panels, SHOWN, strict=True):
    drawn = draw(networks[name], [CONCEPT] * 10 + OTHERS, SEEDS[0]).clamp(-1.0, 1.0)
    strip = torch.cat([*nn.functional.pad(drawn[:, 0], (1, 1), value=1.0)], 1)
    axes.imshow(strip.numpy(), cmap="gray_r")
    axes.set(xticks=[], yticks=[])
    axes.set_ylabel(name, rotation=0, ha="right", va="center")
panels[0].set_title("ten images for “seven”, then one for each other word")
page.figure("draws", figure)

# %% [markdown]
# ## In use
#
# Train what shall keep a concept out as an adapter of its own, by `ModularLoRA.add` and `only`, and
# each task on the original weights; add them by `merge`, and look for the concept again. Who has
# the weights can leave the safety adapter out: it protects a service, not a model given away.

# %%
page.finish({"steps of erasing": NUM_ERASING, "steps of fine-tuning": NUM_STEPS})
