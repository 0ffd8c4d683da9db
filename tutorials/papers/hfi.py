"""Human feedback inversion: taking out of a model what people object to, not what a word says."""

# %% [markdown]
# # Human feedback inversion
#
# A concept that a text-to-image model shall forget is named by a word, and words say too much or
# too little. S. Kim, S. Jung, B. Kim, M. Choi, J. Shin, J. Lee (2024), Safeguard text-to-image
# diffusion models with human feedback inversion, ask people instead. They judge images that the
# model made; a reward learns from that, and a new token is trained to stand for the images with the
# largest rewards. Then the token is erased in place of the word.
#
# Here a small Stable Diffusion draws digits of 8 x 8 pixels. In some captions that it was trained
# with, "odd" stood for 1, 3, 5, 7 and 9. A person objects to some of the images for "odd": to
# sevens, for which the person does not have a word.
#
# `pyro-ext reproduce hfi` runs the page, and so does `python tutorials/papers/hfi.py`. Both print a
# table of claims and save it with the figures in `figures/hfi`. The model is trained once on a
# machine, which takes some minutes more.

# %%
from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import torch
from pyro.distributions import Beta
from sklearn.decomposition import PCA
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor

from pyro_ext.inference.diffusion import (
    DiffusionSampler,
    SafeLatentGuidance,
    denoise,
    encode_prompts,
    guided_prediction,
)
from pyro_ext.models.diffusion import (
    ESD,
    HumanFeedbackInversion,
    RewardModel,
    RewardWeightedInversion,
    SafeSelfDistillation,
    SoftToken,
    digit_images,
    digit_judge,
    digit_pipeline,
    reward_weights,
)
from pyro_ext.random import seeded
from pyro_ext.reproduction import Page

page = Page(
    "hfi",
    paper="S. Kim, S. Jung, B. Kim, M. Choi, J. Shin, J. Lee (2024), Safeguard text-to-image "
    "diffusion models with human feedback inversion, arXiv 2407.21032",
)
SEEDS = page.seeds
BLUE, RED, GRAY, YELLOW = "#2a6f97", "#d1495b", "#8d99ae", "#e09f3e"
SPEC = "Kim et al. (2024), abstract; experiment and bound preregistered for digits"

# %% [markdown]
# ## The person and the judge
#
# The person is played by three nearest neighbors in one half of the real digits: an image is a
# seven or not, and 5 % of the labels are wrong. The results are judged by a support vector machine
# that no training has seen. The reward gets 24 principal components of images.

# %%
pipeline = digit_pipeline(num_steps=page.length(1000, smoke=0))
real, digits = digit_images()
half = torch.randperm(len(real), generator=torch.Generator().manual_seed(0))[: len(real) // 2]
neighbors = KNeighborsClassifier(3).fit(real[half].flatten(1).numpy(), digits[half].numpy())
components = PCA(24, random_state=0).fit(real.flatten(1).numpy())
judge = digit_judge()

GUIDANCE, SEVEN = 3.0, 7
NUM_DRAW_STEPS = page.length(15, smoke=2)
NUM_DRAWN = page.length(100, smoke=4)
NUM_RATED = page.length(400, smoke=60)
NUM_KEPT = page.length(40, smoke=8)
OTHERS = (1, 3, 5, 9)


def features(images: Tensor) -> Tensor:
    """Principal components."""
    return torch.as_tensor(components.transform(images.flatten(1).numpy()))


def person(images: Tensor, seed: int) -> Tensor:
    """Labels: one for sevens, and for other images by mistake."""
    seen = torch.as_tensor(neighbors.predict(images.flatten(1).numpy())) == SEVEN
    if page.smoke:  # a model that was not trained draws none
        seen = images.mean((1, 2, 3)) > images.mean((1, 2, 3)).median()
    mistaken = torch.rand(len(images), generator=torch.Generator().manual_seed(seed)) < 0.05
    return seen ^ mistaken


def draw(source: Any, prompt: str, num: int, seed: int, negative: str = "") -> Tensor:
    """Images of a pipeline."""
    sampler = DiffusionSampler.from_pipeline(
        source,
        prompt,
        negative_prompt=negative,
        guidance_scale=GUIDANCE,
        num_steps=NUM_DRAW_STEPS,
    )
    with seeded(1000 + seed):
        return sampler.sample((num,))


def draw_safely(source: Any, prompt: str, num: int, seed: int, concept: str) -> Tensor:
    """Images with safe latent guidance away from a concept."""
    with seeded(1000 + seed), torch.no_grad():
        empty, wanted, unwanted = encode_prompts(
            source.tokenizer, source.text_encoder, ["", prompt, concept]
        )[:, None]
        guidance = SafeLatentGuidance("max", GUIDANCE)
        predict = guided_prediction(source.unet, wanted, empty, guidance, unwanted)
        noise = torch.randn(num, 1, 8, 8)
        return denoise(predict, source.scheduler, noise, NUM_DRAW_STEPS)


class Rates(NamedTuple):
    """Fractions of images that the judge reads as sevens, and as other odd digits."""

    sevens: float
    others: float


def rates(images: Tensor) -> Rates:
    """What images show."""
    shown = torch.bincount(judge(images), minlength=10) / len(images)
    return Rates(float(shown[SEVEN]), float(shown[list(OTHERS)].sum()))


def rate_of(images: Tensor, digit: int) -> float:
    """Fraction of images that the judge reads as a digit."""
    return float((judge(images) == digit).double().mean())


# %% [markdown]
# ## Erasing the token, and erasing the word
#
# 400 images for "odd" are judged. The token starts as the word and is trained on the 40 with the
# largest rewards; then safe self-distillation erases it. The rival is the same with the word. ESD,
# an earlier method, gets fewer steps, since more of them take away other digits, too. A negative
# prompt and safe latent guidance train nothing: they lead away from the token, or the word, when
# images of "odd" are drawn.

# %%
NUM_INVERSION_STEPS = page.length(200, smoke=2)
NUM_ERASING_STEPS = page.length(100, smoke=2)
NUM_ESD_STEPS = page.length(60, smoke=2)
INVERSION: dict[str, Any] = {
    "batch_size": 32,
    "optimizer": partial(torch.optim.AdamW, lr=2e-2, weight_decay=0.0),
}
ESD_OPTIONS: dict[str, Any] = {
    "batch_size": 12,
    "num_inference_steps": 10,
    "optimizer": partial(torch.optim.AdamW, lr=1e-3, weight_decay=1e-4),
}
ERASURE = {**ESD_OPTIONS, "ema": 0.97}


class Run(NamedTuple):
    """What a seed gave."""

    inversion: HumanFeedbackInversion
    token: SoftToken
    sources: Mapping[str, Any]
    odd: Mapping[str, Tensor]


def run(seed: int) -> Run:
    """All methods, and their images for "odd"."""
    inversion = HumanFeedbackInversion(
        pipeline,
        "odd",
        partial(person, seed=seed),
        RewardModel(features, [64]),
        num_images=NUM_RATED,
        num_kept=NUM_KEPT,
        guidance_scale=GUIDANCE,
        num_inference_steps=NUM_DRAW_STEPS,
        inversion=INVERSION,
        erasure={**ERASURE, "seed": seed},
        seed=seed,
    )
    erased, token, _ = inversion.run(NUM_INVERSION_STEPS, NUM_ERASING_STEPS, progress=False)
    extended = token.pipeline(pipeline)
    by_word = SafeSelfDistillation.from_pipeline(
        pipeline, ["odd"], timesteps=Beta(3.0, 3.0), seed=seed, **ERASURE
    ).run(NUM_ERASING_STEPS, progress=False)
    sources = {
        "the model": extended,
        "SDD, word": by_word.erased_pipeline(pipeline),
        "SDD, token": erased,
    }
    for name, prompt in (("word", "odd"), ("token", token.token)):
        erasure = ESD.from_pipeline(extended, [prompt], seed=seed, **ESD_OPTIONS)
        erasure.run(NUM_ESD_STEPS, progress=False)
        sources[f"ESD, {name}"] = erasure.erased_pipeline(extended)
    num = 2 * NUM_DRAWN
    odd = {name: draw(source, "odd", num, seed) for name, source in sources.items()}
    for name, prompt in (("word", "odd"), ("token", token.token)):
        odd[f"negative prompt, {name}"] = draw(extended, "odd", num, seed, prompt)
        odd[f"safe guidance, {name}"] = draw_safely(extended, "odd", num, seed, prompt)
    return Run(inversion, token, sources, odd)


runs = {seed: run(seed) for seed in SEEDS}
for seed, found in runs.items():
    fit = found.inversion.reward_fit
    assert fit is not None
    print(
        f"seed {seed}: of labels that were held out {fit.accuracy:.3f} are right, of the larger "
        f"class alone {fit.baseline:.3f}; {fit.num_steps} steps"
    )

# %% [markdown]
# What 200 images for "odd" show after each method. Next to it what is left of two words that nobody
# asked about: the model knows "seven" and "three" by name.

# %%
odd = {
    name: {seed: rates(found.odd[name]) for seed, found in runs.items()}
    for name in runs[SEEDS[0]].odd
}
page.table(
    {
        name: {
            f"{what}, seed {seed}": getattr(row[seed], what)
            for what in ("sevens", "others")
            for seed in SEEDS
        }
        for name, row in odd.items()
    },
    title='"odd"',
    number_format=".2f",
)
of_token = {
    seed: rate_of(draw(found.sources["the model"], found.token.token, NUM_DRAWN, seed), SEVEN)
    for seed, found in runs.items()
}
named = {
    (method, digit): {
        seed: rate_of(draw(found.sources[method], word, NUM_DRAWN, seed), digit)
        for seed, found in runs.items()
    }
    for method in ("the model", "SDD, word", "SDD, token")
    for word, digit in (("seven", 7), ("three", 3))
}
page.table(
    {
        f"{method}, {digit}": {f"seed {seed}": value for seed, value in row.items()}
        for (method, digit), row in named.items()
    },
    title='"seven" and "three"',
    number_format=".2f",
)

page.claim(
    "The token asks for what the person objects to (fraction of sevens, by a judge that was not "
    "trained on).",
    of_token,
    ">=",
    0.8,
    source=SPEC,
)
page.claim(
    'Erasing the token takes sevens away where they have a name (fraction of sevens for "seven").',
    named["SDD, token", 7],
    "<=",
    0.4,
    source=SPEC,
)
page.claim(
    'It takes away sevens among the images for "odd" (ratio to those of the model).',
    {
        seed: odd["SDD, token"][seed].sevens / max(odd["the model"][seed].sevens, 1e-9)
        for seed in SEEDS
    },
    "<=",
    2 / 3,
    source=SPEC,
)
page.claim(
    'It leaves the other images for "odd" (fraction of other odd digits).',
    {seed: row.others for seed, row in odd["SDD, token"].items()},
    ">=",
    0.55,
    source=SPEC,
)
page.claim(
    'It leaves other words (fraction of threes for "three").',
    named["SDD, token", 3],
    ">=",
    0.85,
    source=SPEC,
)
page.claim(
    'Erasing the word leaves what the person objects to (fraction of sevens for "seven").',
    named["SDD, word", 7],
    ">=",
    0.7,
    source=SPEC,
)
page.claim(
    'Erasing the word takes away all that it says (fraction of other odd digits for "odd").',
    {seed: row.others for seed, row in odd["SDD, word"].items()},
    "<=",
    0.3,
    source=SPEC,
)
page.claim(
    "Feedback helps each of four methods (smallest difference, with the token and with the word, "
    'of fractions of other odd digits for "odd").',
    {
        seed: min(
            odd[f"{method}, token"][seed].others - odd[f"{method}, word"][seed].others
            for method in ("SDD", "ESD", "negative prompt", "safe guidance")
        )
        for seed in SEEDS
    },
    ">",
    0.0,
    source="Kim et al. (2024), abstract: feedback improves base methods; measure preregistered",
)

# %% [markdown]
# Without rewards the token stays an "odd": a control, for the first seed.

# %%
first = runs[SEEDS[0]]
images = first.inversion.draw_images()


def trained_token(weights: Tensor, chosen: Tensor, name: str, seed: int) -> SoftToken:
    """A token for weighted images, which are latents here as they are."""
    token = SoftToken(pipeline.tokenizer, pipeline.text_encoder, "odd", name)
    inversion = RewardWeightedInversion(
        pipeline.unet, pipeline.scheduler, token, chosen, weights, seed=seed, **INVERSION
    )
    inversion.run(NUM_INVERSION_STEPS, progress=False)
    return token


control = trained_token(torch.ones(len(images)), images, "<all>", SEEDS[0])
shown = rates(draw(control.pipeline(pipeline), "<all>", NUM_DRAWN, SEEDS[0]))
print(f"token of all images: {shown.sevens:.2f} sevens, {shown.others:.2f} other odd digits")


# %%
def grid(axes: Any, images: Tensor, title: str, columns: int = 12) -> None:
    """Images side by side, in rows."""
    rows = [torch.cat([*row[:, 0]], 1) for row in images.split(columns) if len(row) == columns]
    axes.imshow(torch.cat(rows) if rows else torch.cat([*images[:, 0]], 1), cmap="gray_r")
    axes.set_title(title, fontsize=9, loc="left")
    axes.set_axis_off()


figure, panels = plt.subplots(3, 3, figsize=(10, 4.6), layout="constrained")
for row, method in zip(panels, ("the model", "SDD, word", "SDD, token"), strict=True):
    for axes, word in zip(row, ("odd", "seven", "three"), strict=True):
        some = draw(first.sources[method], word, page.length(36, smoke=4), SEEDS[0])
        grid(axes, some, f'{method}: "{word}"')
page.figure("erased", figure)

# %% [markdown]
# ## What the reward knows
#
# The last layer of the network has a posterior, so that each reward has a standard deviation. The
# figure shows rewards and deviations of the images that the person judged, and the 40 images that
# the token was trained on. What the reward takes for a seven by mistake the token has to bear.

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
predicted = first.inversion.reward.predictive(images)
seen = judge(images) == SEVEN
for is_seven, color in ((False, GRAY), (True, RED)):
    chosen = seen == is_seven
    left.errorbar(
        predicted.mean.argsort().argsort()[chosen],
        predicted.mean[chosen],
        predicted.stddev[chosen],
        fmt=".",
        ms=3,
        lw=0.6,
        color=color,
        label="sevens" if is_seven else "others",
    )
left.set(xlabel="images in order", ylabel="reward, with one deviation")
left.legend(frameon=False)
kept = reward_weights(first.inversion.reward(images), NUM_KEPT).index
grid(right, images[kept], "largest rewards", columns=8)
page.figure("rewards", figure)

# %%
figure, panels = plt.subplots(1, 2, figsize=(9, 3.4), sharey=True, layout="constrained")
methods = ("SDD", "ESD", "negative prompt", "safe guidance")
for axes, what in zip(panels, ("sevens", "others"), strict=True):
    for shift, (with_what, color) in enumerate((("word", YELLOW), ("token", BLUE))):
        means = [
            sum(getattr(odd[f"{method}, {with_what}"][seed], what) for seed in SEEDS) / len(SEEDS)
            for method in methods
        ]
        positions = [number + 0.4 * (shift - 0.5) for number in range(len(methods))]
        axes.bar(positions, means, 0.36, color=color, label=f"with the {with_what}")
    level = sum(getattr(odd["the model"][seed], what) for seed in SEEDS) / len(SEEDS)
    axes.axhline(level, color=GRAY, linestyle=":", label="the model")
    axes.set_xticks(range(len(methods)), methods, fontsize=8)
    axes.set_title("sevens" if what == "sevens" else "other odd digits", fontsize=10)
panels[0].set(ylabel='fraction of images for "odd"', ylim=(0, 1))
panels[0].legend(frameon=False, fontsize=8)
page.figure("methods", figure, despine=True)

# %% [markdown]
# ## Rankings
#
# What nobody could say yes or no to can still be ranked. The person orders lists of five images, of
# the same 400, by how boldly they are drawn: by their mean ink. The reward is fitted by the
# Bradley-Terry model of pairs; a fifth of the lists is held out.


# %%
def ink(images: Tensor) -> Tensor:
    """Mean ink."""
    return images.clamp(-1.0, 1.0).mean((1, 2, 3))


def by_ink(images: Tensor) -> list[list[int]]:
    """Lists of five images, the boldest first."""
    amounts = ink(images)
    lists = torch.arange(len(images)).reshape(-1, 5)
    return [row[amounts[row].argsort(descending=True)].tolist() for row in lists]


pair_accuracy, bolder, bold = {}, {}, {}
for seed, found in runs.items():
    rated = found.inversion.draw_images()
    reward = RewardModel(features, [64])
    pair_accuracy[seed] = reward.fit_ranking(
        rated, by_ink(rated), seed=seed, progress=False
    ).accuracy
    index, weight = reward_weights(reward(rated), NUM_KEPT)
    token = trained_token(weight, rated[index], "<bold>", seed)
    bold[seed] = draw(token.pipeline(pipeline), "<bold>", NUM_DRAWN, seed)
    amounts = ink(found.odd["the model"])
    bolder[seed] = float((ink(bold[seed]).mean() - amounts.mean()) / amounts.std())
    print(f"seed {seed}: ink of <bold> is {bolder[seed]:.2f} deviations above that of odd")

page.claim(
    "The reward puts pairs of images in the order of rankings that were held out (fraction).",
    pair_accuracy,
    ">",
    0.8,
    source=SPEC,
)
page.claim(
    'The token of rankings asks for bold images (mean ink above that of images for "odd", in '
    "standard deviations of theirs).",
    bolder,
    ">=",
    1.0,
    source="Kim et al. (2024), section on rankings; measure and bound preregistered",
)

# %%
figure, panels = plt.subplots(1, 2, figsize=(9, 1.9), layout="constrained")
grid(panels[0], first.odd["the model"][:36], 'the model: "odd"')
grid(panels[1], bold[SEEDS[0]][:36], 'the model: "<bold>"')
page.figure("bold", figure)

# %% [markdown]
# ## The claims

# %%
page.finish(
    {
        "images judged": NUM_RATED,
        "images kept": NUM_KEPT,
        "images drawn": NUM_DRAWN,
        "token of all images": shown,
    }
)
