"""Adversarial purification: attacked digits go up a learned score before they are classified."""

# %% [markdown]
# # Adversarial purification
#
# A classifier can be made wrong by changes of an image that nobody sees. J. Yoon, S. J. Hwang,
# J. Lee (2021), Adversarial purification with score-based generative models, leave the classifier
# as it is and clean the image: noise drowns the change, and then a few steps go up the score of
# noisy images, a network trained by denoising. How far each step goes follows from how the score
# changes along it. Predictions are averaged over several such runs.
#
# **This is no security.** Attacks that were found later and know the purifier break most of it:
# F. Croce et al. (2022), Evaluating the adversarial robustness of adaptive test-time defenses,
# leave about 33 % of CIFAR-10 right. One such attack is at the end of this page.
#
# `pyro-ext reproduce adversarial-purification` runs the page, and so does
# `python tutorials/papers/adversarial_purification.py`. Both print a table of claims and save it
# with the figures in `figures/adversarial-purification`.

# %%
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import pyro
import pyro.distributions as dist
import torch
from pyro.infer import Predictive
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, cross_entropy
from torch.optim.lr_scheduler import CosineAnnealingLR

from pyro_ext.datasets import load_digits
from pyro_ext.handlers import purify
from pyro_ext.inference import Trainer, bpda_eot, joint_score_attack, pgd
from pyro_ext.inference.diffusion import NoiseConditionalScore
from pyro_ext.inference.training import ShuffledBatches
from pyro_ext.models.diffusion import AdaptiveScorePurifier
from pyro_ext.nn import MLP
from pyro_ext.random import seeded
from pyro_ext.reproduction import Page

page = Page(
    "adversarial-purification",
    paper="J. Yoon, S. J. Hwang, J. Lee (2021), Adversarial purification with score-based "
    "generative models, arXiv 2106.06041",
)
SEEDS = page.seeds
BLUE, RED, GRAY, YELLOW = "#2a6f97", "#d1495b", "#8d99ae", "#e09f3e"

# %% [markdown]
# ## A classifier, and a score
#
# Digits of 8 x 8 pixels, of which each seed holds out 300. The classifier is a small convolutional
# network. The score is that of a multilayer perceptron at ten noise levels from 1 to 0.05; since
# it is not told the level, another level only multiplies the score by a number. The purifier has
# that of the second level, as in the paper.

# %%
EPS = 0.12
NOISE, STEP = 0.15, 0.1
NUM_STEPS, NUM_RUNS = page.length((20, 8), smoke=(3, 2))
NUM_CLASSIFIER_STEPS = page.length(600, smoke=60)
NUM_SCORE_STEPS = page.length(3000, smoke=30)
NUM_IMAGES = page.length(300, smoke=40)
NUM_ATTACKED = page.length(150, smoke=10)  # by attacks that go through the purifier
Predict = Callable[[Tensor], Tensor]


class Setting(NamedTuple):
    """Images held out, a classifier and a score."""

    images: Tensor
    labels: Tensor
    classifier: nn.Module
    score: NoiseConditionalScore
    loss: float


def setting(seed: int) -> Setting:
    """Train both networks."""
    data = load_digits(num_test=300, split_seed=seed)
    train, test = (
        ((inputs * data.input_scale + data.input_loc) / 16).clamp(0.0, 1.0).reshape(-1, 1, 8, 8)
        for inputs in (data.train_inputs, data.test_inputs)
    )
    torch.manual_seed(seed)
    classifier = nn.Sequential(
        *(nn.Conv2d(1, 32, 3, padding=1), nn.ReLU()),
        *(nn.Conv2d(32, 32, 3, stride=2, padding=1), nn.ReLU()),
        *(nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(1024, 10)),
    )
    batches = ShuffledBatches(train, data.train_targets, batch_size=128)
    Trainer(classifier, seed=seed).run(
        lambda x, y: cross_entropy(classifier(x), y), NUM_CLASSIFIER_STEPS, batches, progress=False
    )
    hidden = MLP(64, [512, 512, 512], 64, nn.SiLU)
    network = nn.Sequential(nn.Flatten(), hidden, nn.Unflatten(1, (1, 8, 8)))
    score = NoiseConditionalScore(network, largest=1.0, smallest=0.05, num_levels=10)
    trainer = Trainer(score, scheduler=partial(CosineAnnealingLR, T_max=NUM_SCORE_STEPS), seed=seed)
    batches = ShuffledBatches(train, batch_size=128)
    losses = trainer.run(score.loss, NUM_SCORE_STEPS, batches, progress=False)
    last = losses[-100:]
    return Setting(
        test[:NUM_IMAGES],
        data.test_targets[:NUM_IMAGES],
        classifier.eval().requires_grad_(False),
        score.eval().requires_grad_(False),
        2 * sum(last) / len(last) / 64,
    )


settings = {seed: setting(seed) for seed in SEEDS}
for seed, own in settings.items():
    print(f"seed {seed}: squared error of the predicted noise {own.loss:.3f} a pixel")

# %% [markdown]
# ## What is compared
#
# All but the first add the same noise and average as many predictions. Langevin dynamics and fixed
# steps get as many evaluations of the score as adaptive steps, which take two each, and the best of
# several step sizes, chosen by the attacked test images themselves; adaptive steps are as the
# specification of this page has them. Without noise a single run is enough.


# %%
def purifier(own: Setting, noise: float = NOISE, level: int = 1) -> AdaptiveScorePurifier:
    """Adaptive steps along the score of a level, with bounds that do not bind at any."""
    return AdaptiveScorePurifier(
        partial(own.score.score, level=level),
        noise,
        STEP,
        max_iter=NUM_STEPS,
        tau=0.0,
        clamp=(1e-7, 10.0),
        num_runs=NUM_RUNS if noise else 1,
    )


def adaptive(own: Setting, noise: float = NOISE, level: int = 1) -> Predict:
    """Predictions with adaptive steps."""
    predict = purifier(own, noise, level).predict
    return lambda x: predict(own.classifier, x, seed=0)


def averaged(own: Setting, step: Predict, num_steps: int = 2 * NUM_STEPS) -> Predict:
    """Predictions with noise and then any other steps."""

    def predict(x: Tensor) -> Tensor:
        with seeded(0):
            copies = x.repeat(NUM_RUNS, 1, 1, 1)
            copies = (copies + NOISE * torch.randn_like(copies)).clamp(0.0, 1.0)
            for _ in range(num_steps):
                copies = step(copies).clamp(0.0, 1.0)
        probs = own.classifier(copies).softmax(-1)
        mean: Tensor = probs.unflatten(0, (NUM_RUNS, len(x))).mean(0)
        return mean

    return predict


def fixed(own: Setting, size: float, level: int = 1) -> Predict:
    """A step of a fixed size."""
    return lambda x: x + size * own.score.score(x, level)


def langevin(own: Setting, size: float) -> Predict:
    """A step of Langevin dynamics, at the level that is nearest to the noise."""
    level = int((own.score.levels - NOISE).abs().argmin())
    return lambda x: x + size / 2 * own.score.score(x, level) + size**0.5 * torch.randn_like(x)


def accuracy(predict: Predict, x: Tensor, labels: Tensor) -> float:
    """Fraction of images that are classified right."""
    with torch.no_grad():
        return float((predict(x).argmax(-1) == labels[: len(x)]).double().mean())


def accuracies(own: Setting, attacked: Tensor, *rivals: Predict) -> dict[str, float]:
    """Of clean and attacked images, by the rival that does best on attacked ones."""
    robust = [accuracy(rival, attacked, own.labels) for rival in rivals]
    best = rivals[robust.index(max(robust))]
    return {"natural": accuracy(best, own.images, own.labels), "robust": max(robust)}


def alone_and_purified(own: Setting, sets: dict[str, Tensor]) -> dict[str, dict[str, float]]:
    """Accuracies of the classifier alone and behind the purifier, by name of the images."""
    ways: dict[str, Predict] = {"classifier alone": own.classifier, "purified": adaptive(own)}
    return {
        name: {way: accuracy(predict, images, own.labels) for way, predict in ways.items()}
        for name, images in sets.items()
    }


# %% [markdown]
# ## An attack that does not know of the purifier
#
# Projected gradients on the classifier alone, 40 steps, each pixel changed by 0.12 at most: four
# times the 8/255 of color images, as digits have few pixels and much contrast.

# %%
LANGEVIN_SIZES, FIXED_SIZES = (3e-4, 1e-3, 3e-3), (0.002, 0.005, 0.01, 0.02)
attacked, table = {}, {}
for seed, own in settings.items():
    attacked[seed] = pgd(own.classifier, own.images, own.labels, eps=EPS, seed=seed, progress=False)
    score = partial(accuracies, own, attacked[seed])
    table[seed] = {
        "none": score(own.classifier),
        "noise only": score(averaged(own, fixed(own, 0.0), num_steps=0)),
        "Langevin": score(*[averaged(own, langevin(own, size)) for size in LANGEVIN_SIZES]),
        "fixed steps": score(*[averaged(own, fixed(own, size)) for size in FIXED_SIZES]),
        "adaptive, no noise": score(adaptive(own, noise=0.0)),
        "adaptive": score(adaptive(own)),
    }
    page.table(table[seed], title=f"seed {seed}")


def lead(rival: str) -> dict[int, float]:
    """How much more often purified images are classified right."""
    return {
        seed: rows["adaptive"]["robust"] - rows[rival]["robust"] for seed, rows in table.items()
    }


page.claim(
    "Of attacked images more are classified right after purification than without "
    "(difference of accuracies).",
    lead("none"),
    ">=",
    0.15,
    source="Yoon et al. (2021), table of preprocessor-blind attacks; bound preregistered",
)
page.claim(
    "It is not the noise alone (difference of accuracies from noise and averages without steps).",
    lead("noise only"),
    ">=",
    0.08,
    source="Yoon et al. (2021): noise and then denoising; bound preregistered",
)
page.claim(
    "Clean images are still classified right (accuracy).",
    {seed: rows["adaptive"]["natural"] for seed, rows in table.items()},
    ">=",
    0.90,
    source="Yoon et al. (2021), natural accuracy; bound preregistered",
)
page.claim(
    "Of attacked images more are classified right than after Langevin dynamics with as many "
    "evaluations of the score and its best step size (difference of accuracies).",
    lead("Langevin"),
    ">",
    0.0,
    source="Yoon et al. (2021), abstract: within a few steps, where earlier methods need long "
    "chains",
    across="mean",
)
page.claim(
    "Adaptive steps, whose size nobody chose, come near fixed steps of the best size (difference "
    "of accuracies).",
    lead("fixed steps"),
    ">=",
    -0.03,
    source="Yoon et al. (2021): step sizes that are not tuned; bound preregistered",
    across="mean",
)

# %% [markdown]
# The first digits of the first seed. Attacked digits look like what they are; the noise hides
# where they have been changed, and the steps take both away.

# %%
own = settings[SEEDS[0]]
shown = attacked[SEEDS[0]][:10]
path = purifier(own).trajectory(shown, seed=0)
strips = {"clean": own.images[:10], "attacked": shown, "with noise": path.images[0]}
strips |= {f"{k} steps": path.images[min(k, len(path.step_sizes))] for k in (5, 10, 20)}
figure, panels = plt.subplots(len(strips), 10, figsize=(7.5, 4.8), layout="constrained")
for (name, images), row in zip(strips.items(), panels, strict=True):
    for image, axes, right in zip(images, row, own.labels, strict=False):
        found = int(own.classifier(image[None]).argmax())
        axes.imshow(image[0].numpy(), cmap="gray_r", vmin=0.0, vmax=1.0)
        axes.set_title(found, color=BLUE if found == right else RED, fontsize=9, pad=2)
        axes.set(xticks=[], yticks=[])
    row[0].set_ylabel(name, rotation=0, ha="right", va="center")
figure.suptitle("What the classifier takes each for; red where it is wrong", fontsize=10)
page.figure("digits", figure)

# %% [markdown]
# Against this attack the steps alone do as well as noise and steps, and more than 0.15 hides what
# the attack has left of the digit.

# %%
LEVELS = page.length((0.0, 0.1, 0.15, 0.25, 0.35), smoke=(0.0, 0.15))
by_noise = [accuracies(own, attacked[SEEDS[0]], adaptive(own, noise=level)) for level in LEVELS]
figure, axes = plt.subplots(figsize=(5.6, 3.0), layout="constrained")
for name, color in (("natural", BLUE), ("robust", RED)):
    axes.plot(LEVELS, [row[name] for row in by_noise], "o-", ms=4, color=color, label=name)
axes.set(xlabel="standard deviation of the noise", ylabel="accuracy", ylim=(0.0, 1.0))
axes.legend(frameon=False)
page.figure("noise", figure, despine=True)

# %% [markdown]
# ## The scale of the score
#
# With the score of the last level, which is 14 times as long, adaptive steps go the same way. A
# fixed step, here 0.01 as before, has to be chosen again. These are attacked images.

# %%
rescaled = {}
for seed, own in settings.items():
    ways = {
        "adaptive": adaptive(own, level=9),
        "fixed": averaged(own, fixed(own, FIXED_SIZES[2], level=9)),
    }
    rescaled[seed] = {name: accuracy(x, attacked[seed], own.labels) for name, x in ways.items()}
page.table({f"seed {seed}": row for seed, row in rescaled.items()})
page.claim(
    "Adaptive steps do not depend on the scale of the score (absolute difference of accuracies "
    "on attacked images).",
    {
        seed: abs(row["adaptive"] - table[seed]["adaptive"]["robust"])
        for seed, row in rescaled.items()
    },
    "<=",
    0.02,
    source="Yoon et al. (2021), adaptive step size; bound preregistered",
)
page.claim(
    "Fixed steps do (difference of accuracies on attacked images from adaptive steps).",
    {seed: row["adaptive"] - row["fixed"] for seed, row in rescaled.items()},
    ">=",
    0.10,
    source="Yoon et al. (2021), adaptive step size; bound preregistered",
)

# %% [markdown]
# ## Attacks that know of the purifier
#
# BPDA with EOT takes the gradient of the classifier at purified images, and the purifier's own
# Jacobian for the identity. The joint attack also goes where the purifier goes, which costs it half
# of each step and does not pay here. The last attack does what was left out: it takes the gradient
# through noise and steps, as automatic differentiation gives it, and finds more with fewer draws.

# %%
NUM_ATTACK_STEPS = page.length(15, smoke=2)
options: dict[str, Any] = {
    "eps": EPS,
    "step": EPS / 4,
    "num_steps": NUM_ATTACK_STEPS,
    "progress": False,
}


def mean_logits(model: AdaptiveScorePurifier, classifier: nn.Module, x: Tensor) -> Tensor:
    """Of two runs, with the gradient through them."""
    total: Tensor = classifier(model(x)) + classifier(model(x))
    return total / 2


broken = {}
for seed, own in settings.items():
    x, labels = own.images[:NUM_ATTACKED], own.labels[:NUM_ATTACKED]
    model = purifier(own)
    logits = partial(mean_logits, model, own.classifier)
    through = {"num_draws": 5, "seed": seed, **options}
    made = {
        "none": x,
        "PGD": attacked[seed][:NUM_ATTACKED],
        "joint": joint_score_attack(own.classifier, model, x, labels, **through),
        "BPDA and EOT": bpda_eot(own.classifier, model, x, labels, **through),
        "full gradient": pgd(logits, x, labels, random_start=False, seed=seed, **options),
    }
    rows = alone_and_purified(own, made)
    page.table(rows, title=f"seed {seed}")
    broken[seed] = {name: row["purified"] for name, row in rows.items()}
page.claim(
    "BPDA with EOT breaks more than an attack of the classifier alone (difference of accuracies "
    "after purification).",
    {seed: row["BPDA and EOT"] - row["PGD"] for seed, row in broken.items()},
    "<=",
    0.0,
    source="Yoon et al. (2021), table of strong adaptive attacks; bound preregistered",
    across="mean",
)
page.claim(
    "An attack with the whole gradient breaks more than BPDA with EOT: how much is left depends "
    "on the attack (difference of accuracies after purification).",
    {seed: row["full gradient"] - row["BPDA and EOT"] for seed, row in broken.items()},
    "<",
    0.0,
    source="Croce et al. (2022): adaptive test-time defenses fall to attacks made for them",
)

# %% [markdown]
# ## Other damage, votes and a Pyro model
#
# An attack of another network, noise and blur, on the first seed. Purification helps against the
# first alone; blurred digits go up to other digits.

# %%
own, other = settings[SEEDS[0]], settings[SEEDS[-1]]
with seeded(0):
    noisy = (own.images + 0.3 * torch.randn_like(own.images)).clamp(0.0, 1.0)
damaged = {
    "attack of another network": pgd(
        other.classifier, own.images, own.labels, eps=EPS, seed=0, progress=False
    ),
    "noise of 0.3": noisy,
    "blur": avg_pool2d(own.images, 3, stride=1, padding=1),
}
page.table(alone_and_purified(own, damaged))

# %% [markdown]
# What is averaged, logits, probabilities or votes, and how often attacked images are told by the
# length of the score, with a threshold above 90 % of clean ones.

# %%
model, images = purifier(own), attacked[SEEDS[0]]
for reduce in ("logits", "softmax", "votes"):
    predict = partial(model.predict, own.classifier, reduce=reduce, seed=0)
    print(f"{reduce}: {accuracy(predict, images, own.labels):.3f}")
threshold = float(own.score.score(own.images).flatten(1).norm(dim=1).quantile(0.9))
print(f"detected: {float(model.detect(images, threshold).double().mean()):.3f} of attacked images")

# %% [markdown]
# A classifier that is a Pyro model gets its purifier from outside, by the name of the input.


# %%
def classify(x: Tensor) -> Tensor:
    """A Pyro model of labels given images."""
    with pyro.plate("images", len(x)):
        x = pyro.deterministic("x", x, event_dim=3)
        logits = own.classifier(x)
        return pyro.sample("label", dist.Categorical(logits=logits))


pyro.set_rng_seed(0)
for name, program in (("as it is", classify), ("purified", purify(model, ["x"])(classify))):
    draws = Predictive(program, num_samples=NUM_RUNS)(images)["label"]
    right = float((draws.mode(0).values == own.labels).double().mean())
    print(f"{name}: {right:.3f} of attacked images right")

# %% [markdown]
# ## The claims

# %%
page.finish(
    {
        "eps": EPS,
        "noise": NOISE,
        "step": STEP,
        "steps": NUM_STEPS,
        "accuracies": {str(seed): rows for seed, rows in table.items()},
        "after purification": {str(seed): rows for seed, rows in broken.items()},
    }
)
