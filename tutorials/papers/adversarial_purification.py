"""Adversarial purification: attacked digits go up a learned score before they are classified."""

# %% [markdown]
# # Adversarial purification
#
# A classifier can be made wrong by changes of an image that nobody sees. J. Yoon, S. J. Hwang,
# J. Lee (2021), Adversarial purification with score-based generative models, leave the classifier
# as it is and clean the image: noise drowns the change, and then a few steps go up the score of
# noisy images, a network trained by denoising. How far each step goes follows from how the score
# changes along it, and predictions of several runs are averaged. The paper says that this takes a
# few steps, where purification by Langevin dynamics takes long chains.
#
# **This is no security.** Attacks that were found later and know the purifier break most of it:
# F. Croce et al. (2022), Evaluating the adversarial robustness of adaptive test-time defenses,
# leave about 33 % of CIFAR-10 right. One such attack is at the end of this page.
#
# `pyro-ext reproduce adversarial-purification` runs the page.

# %%
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import matplotlib.pyplot as plt
import pyro
import pyro.distributions as dist
import torch
from pyro.infer import Predictive
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim.lr_scheduler import CosineAnnealingLR

from pyro_ext.datasets import load_digits
from pyro_ext.handlers import purify
from pyro_ext.inference import Trainer, bpda_eot, pgd
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

# %% [markdown]
# ## A classifier, and a score
#
# Digits of 8 x 8 pixels, of which each seed holds out 300. The classifier is a small convolutional
# network, the score a multilayer perceptron at ten noise levels from 1 to 0.05, of which the
# purifier takes the second. The attack, projected gradients (PGD), knows only of the classifier: in
# 40 steps it changes each pixel by 0.12 at most, four times the 8/255 of color images, as digits
# have few pixels and much contrast.

# %%
EPS, NOISE, STEP = 0.12, 0.15, 0.1
NUM_STEPS, NUM_RUNS = page.length((20, 8), smoke=(3, 2))
NUM_CLASSIFIER_STEPS, NUM_SCORE_STEPS = page.length((600, 3000), smoke=(60, 30))
# Half of the images meet attacks that go through the purifier.
NUM_IMAGES, NUM_ATTACKED, NUM_ATTACK_STEPS = page.length((300, 150, 15), smoke=(40, 10, 2))
Predict = Callable[[Tensor], Tensor]


def setting(seed: int) -> SimpleNamespace:
    """A classifier, a score, and images held out, as they are and attacked."""
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
    trainer.run(score.loss, NUM_SCORE_STEPS, batches, progress=False)
    own = SimpleNamespace(images=test[:NUM_IMAGES], labels=data.test_targets[:NUM_IMAGES])
    own.classifier, own.score = (x.eval().requires_grad_(False) for x in (classifier, score))
    own.attacked = pgd(classifier, own.images, own.labels, eps=EPS, seed=seed, progress=False)
    return own


settings = {seed: setting(seed) for seed in SEEDS}


def purifier(own: SimpleNamespace, noise: float = NOISE) -> AdaptiveScorePurifier:
    """Adaptive steps along the score, with bounds that do not bind."""
    score, num_runs = partial(own.score.score, level=1), NUM_RUNS if noise else 1
    bounds: dict[str, Any] = {"max_iter": NUM_STEPS, "tau": 0.0, "clamp": (1e-7, 10.0)}
    return AdaptiveScorePurifier(score, noise, STEP, **bounds, num_runs=num_runs)


# %% [markdown]
# ## Purification as a Pyro program
#
# A classifier that is a Pyro model gets its purifier from outside, by the handler `purify` and the
# name of the input. The labels that `Predictive` draws then vote.


# %%
def classify(x: Tensor) -> Tensor:
    """A Pyro model of labels given images."""
    with pyro.plate("images", len(x)):
        x = pyro.deterministic("x", x, event_dim=3)
        return pyro.sample("label", dist.Categorical(logits=first.classifier(x)))


first = settings[SEEDS[0]]
purified = purify(purifier(first), ["x"])(classify)
for name, program in (("as it is", classify), ("purified", purified)):
    with seeded(0):
        draws = Predictive(program, num_samples=NUM_RUNS)(first.attacked)["label"]
    right = (draws.mode(0).values == first.labels).double().mean()
    print(f"{name}: {right:.3f} of attacked images right")

# %% [markdown]
# ## What is compared
#
# All but the first add the same noise and average as many predictions. Langevin dynamics and fixed
# steps get as many evaluations of the score as adaptive steps, which take two each, and the best of
# several step sizes, chosen by the attacked test images. Without noise a single run is enough.


# %%
def adaptive(own: SimpleNamespace, noise: float = NOISE) -> Predict:
    """Predictions with adaptive steps."""
    return partial(purifier(own, noise).predict, own.classifier, seed=0)


def averaged(own: SimpleNamespace, step: Predict, num_steps: int = 2 * NUM_STEPS) -> Predict:
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


def fixed(own: SimpleNamespace, size: float) -> Predict:
    """A step of a fixed size."""
    return lambda x: x + size * own.score.score(x, 1)


def langevin(own: SimpleNamespace, size: float) -> Predict:
    """A step of Langevin dynamics, at the level that is nearest to the noise."""
    level = int((own.score.levels - NOISE).abs().argmin())
    return lambda x: x + size / 2 * own.score.score(x, level) + size**0.5 * torch.randn_like(x)


def accuracy(predict: Predict, x: Tensor, labels: Tensor) -> float:
    """Fraction of images that are classified right."""
    with torch.no_grad():
        return float((predict(x).argmax(-1) == labels[: len(x)]).double().mean())


def accuracies(own: SimpleNamespace, *rivals: Predict) -> dict[str, float]:
    """Of clean and attacked images, by the rival that does best on attacked ones."""
    robust = [accuracy(rival, own.attacked, own.labels) for rival in rivals]
    best = rivals[robust.index(max(robust))]
    return {"natural": accuracy(best, own.images, own.labels), "robust": max(robust)}


LANGEVIN_SIZES, FIXED_SIZES = (3e-4, 1e-3, 3e-3), (0.002, 0.005, 0.01, 0.02)
table = {}
for seed, own in settings.items():
    score = partial(accuracies, own)
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
    """Difference in accuracy on purified images."""
    return {s: rows["adaptive"]["robust"] - rows[rival]["robust"] for s, rows in table.items()}


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
    central=True,
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
# ## Attacks that know of the purifier
#
# BPDA with EOT takes the gradient of the classifier at purified images, and the purifier's own
# Jacobian for the identity. The other attack does what was left out: it takes the gradient through
# noise and steps, as automatic differentiation gives it, and finds more with fewer draws.


# %%
def mean_logits(own: SimpleNamespace, model: AdaptiveScorePurifier, x: Tensor) -> Any:
    """Of two runs, with the gradient through them."""
    return (own.classifier(model(x)) + own.classifier(model(x))) / 2


broken = {}
for seed, own in settings.items():
    model, x, labels = purifier(own), own.images[:NUM_ATTACKED], own.labels[:NUM_ATTACKED]
    logits = partial(mean_logits, own, model)
    through: dict[str, Any] = {"eps": EPS, "step": EPS / 4, "num_steps": NUM_ATTACK_STEPS}
    through |= {"seed": seed, "progress": False}
    made = {
        "none": x,
        "PGD": own.attacked[:NUM_ATTACKED],
        "BPDA and EOT": bpda_eot(own.classifier, model, x, labels, num_draws=5, **through),
        "full gradient": pgd(logits, x, labels, random_start=False, **through),
    }
    broken[seed] = {name: accuracy(adaptive(own), x, labels) for name, x in made.items()}
page.table({f"seed {seed}": row for seed, row in broken.items()}, title="right, purified")
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
# ## Digits of the first seed
#
# Attacked digits look like what they are; the noise hides where they have been changed, and the
# steps take both away.

# %%
path = purifier(first).trajectory(first.attacked[:10], seed=0)
strips = {"clean": first.images[:10], "attacked": first.attacked[:10], "with noise": path.images[0]}
strips |= {f"{k} steps": path.images[min(k, len(path.step_sizes))] for k in (5, 20)}
figure, panels = plt.subplots(len(strips), figsize=(6.0, 5.5), layout="constrained")
for (name, images), axes in zip(strips.items(), panels, strict=True):
    found = ", ".join(map(str, first.classifier(images).argmax(-1).tolist()))
    axes.imshow(torch.cat([*images[:, 0]], 1).numpy(), cmap="gray_r", vmin=0.0, vmax=1.0)
    axes.set_title(f"{name}: taken for {found}", fontsize=9)
    axes.set_axis_off()
page.figure("digits", figure)

# %% [markdown]
# ## In use
#
# `AdaptiveScorePurifier` cleans images for a classifier that stays as it is, without a step size
# to choose, and `purify` puts it in front of a Pyro model. It helps against attacks that do not
# know of it. Where an attacker can take gradients through it, train the classifier for that.

# %%
page.finish({"eps": EPS, "noise": NOISE, "step": STEP, "steps": NUM_STEPS})
