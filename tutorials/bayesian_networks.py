"""Bayesian networks: which sampler to choose, measured against a long run of HMC."""

# %% [markdown]
# # Bayesian networks
#
# What a sampler is good for depends on what is asked of it: the posterior itself, or an ensemble
# that predicts well. This page measures both. A small network on handwritten digits comes with what
# a long run of HMC predicts, so that it can be seen how near each sampler gets, and what it costs.
# Then a residual network shows how the same is done for a network of one's own. `python
# tutorials/bayesian_networks.py` runs the page.

# %%
import math
import time
from dataclasses import dataclass
from typing import Any

import matplotlib.pyplot as plt
import pyro
import torch
from pyro.infer.mcmc.mcmc_kernel import MCMCKernel
from torch import Tensor

from pyro_ext.datasets import load_mnist_5k
from pyro_ext.diagnostics import metrics
from pyro_ext.diagnostics.diversity_plots import plot_predictive_rhat
from pyro_ext.diagnostics.function_space import fractions_below, predictive_rhat
from pyro_ext.inference import (
    L2E,
    MCMC,
    NUTS,
    PSGLD,
    SGHMC,
    SGLD,
    SGNHT,
    CyclicalSchedule,
    MetaSGMCMC,
)
from pyro_ext.models.ensembles import load_reference_posterior
from pyro_ext.nn import MLP, BayesianClassifier, BayesianModule, ResNet, init_to_module
from pyro_ext.reparam import expand_module
from pyro_ext.reproduction import Page

page = Page("bayesian-networks")

# %% [markdown]
# ## A network as a Pyro model
#
# `BayesianModule` puts a normal prior on the parameters of any `torch.nn.Module`, and
# `BayesianClassifier` makes a Pyro model of it: labels in a plate that takes minibatches. The
# reference posterior is that of such a network, with 8 hidden units, given 600 images.

# %%
reference = load_reference_posterior("digits")
data = reference.dataset
classifier = reference.model(batch_size=60)
print(classifier.network)
print(
    f"{reference.num_chains} chains of HMC: R-hat of predictions at most "
    f"{float(reference.r_hat.max()):.4f}, NLL of their mean {reference.nll:.4f}"
)

# %% [markdown]
# Parameter expansion is the same network with its weights as products of matrices. The prior is on
# the factors, and so its posterior is another one; it is compared here by what it predicts.

# %%
network = MLP(64, reference.hidden_features, 10)
expanded = BayesianClassifier(expand_module(network, reference.prior_scale), batch_size=60)

# %% [markdown]
# ## Samplers side by side
#
# Four chains of each sampler take 20,000 steps of minibatches, and leave 50 draws each from the
# last half; two of them also run for 200 steps only. All start as networks do for training. NUTS
# takes gradients over all of the data, as many of them as it likes, and 50 transitions of warm-up.
# A deep ensemble is 20 runs to a mode from different starts: SGHMC at temperature zero.
#
# Step sizes of SGHMC are given as learning rates on the mean loss, `step_size**2 * N`. What a
# finite step leaves of bias falls with it, and so does how far a chain gets.


# %%
@dataclass
class Contestant:
    """A sampler of a table.

    :param str name: what it is called.
    :param MCMCKernel kernel: the kernel.
    :param BayesianClassifier model: what its draws predict with.
    :param int num_chains: number of chains.
    :param int num_samples: draws of each.
    :param int num_steps: steps of a chain; those of NUTS are up to itself.
    :param bool has_chains: whether R-hat over the chains means something.
    """

    name: str
    kernel: MCMCKernel
    model: BayesianClassifier
    num_chains: int = 4
    num_samples: int = 4 if page.smoke else 50
    num_steps: int = 24 if page.smoke else 20_000
    has_chains: bool = True


NUM_NUTS = page.length(50, smoke=4)
SHORT = page.length((4, 20, 200), smoke=(4, 2, 12))  # chains, draws of each, steps
start = init_to_module(module=network)


def step_size(learning_rate: float) -> float:
    """Step size of a learning rate on the mean loss."""
    return math.sqrt(learning_rate / len(data.train_inputs))


def sghmc(learning_rate: float, model: Any = classifier, **options: Any) -> SGHMC:
    """SGHMC whose momentum decays by a tenth in each step."""
    options = {"momentum_decay": 0.1, "init_strategy": start} | options
    return SGHMC(model, step_size=step_size(learning_rate), **options)


cycles = CyclicalSchedule(step_size(0.1), *((8, 24) if page.smoke else (100, 20_000)))
factors = {"*.P1": 0.001, "*.Q1": 0.001, "default": 0.1}
CONTESTANTS = [
    Contestant("SGLD", SGLD(classifier, step_size=2e-4, init_strategy=start), classifier),
    Contestant("PSGLD", PSGLD(classifier, step_size=1e-5, init_strategy=start), classifier),
    Contestant(
        "SGNHT", SGNHT(classifier, step_size=0.004, friction=10.0, init_strategy=start), classifier
    ),
    Contestant("SGHMC, rate 0.01", sghmc(0.01), classifier),
    Contestant("SGHMC, rate 0.05", sghmc(0.05), classifier),
    Contestant("SGHMC, rate 0.2", sghmc(0.2), classifier),
    Contestant(
        "cyclical SGHMC",
        SGHMC(classifier, step_size=cycles, momentum_decay=0.1, init_strategy=start),
        classifier,
    ),
    Contestant("PX-SGHMC, rate 0.01", sghmc(0.01, expanded, momentum_decay=factors), expanded),
    Contestant("L2E", L2E.pretrained(classifier, init_strategy=start), classifier),
    Contestant("MetaSGMCMC", MetaSGMCMC(classifier, init_strategy=start), classifier),
    Contestant("SGHMC 0.1, 200 steps", sghmc(0.1), classifier, *SHORT),
    Contestant(
        "L2E, 200 steps", L2E.pretrained(classifier, init_strategy=start), classifier, *SHORT
    ),
    Contestant(
        "deep ensemble",
        sghmc(0.1, temperature=0.0),
        classifier,
        num_chains=3 if page.smoke else 20,
        num_samples=1,
        num_steps=24 if page.smoke else 4_000,
        has_chains=False,
    ),
    Contestant(
        "NUTS",
        NUTS(reference.model(), init_strategy=start, max_tree_depth=3 if page.smoke else 7),
        classifier,
        num_samples=NUM_NUTS,
    ),
]


def run(contestant: Contestant) -> tuple[Tensor, float]:
    """Predictive probabilities `(num_chains, num_draws, n, classes)`, and CPU seconds."""
    begin = time.process_time()
    pyro.set_rng_seed(0)
    is_nuts = isinstance(contestant.kernel, NUTS)
    num_steps = 2 * NUM_NUTS if is_nuts else contestant.num_steps
    thinning = max(1, num_steps // (2 * contestant.num_samples))
    warmup = num_steps - thinning * contestant.num_samples
    mcmc = MCMC(
        contestant.kernel,
        contestant.num_samples,
        warmup,
        contestant.num_chains,
        thinning=thinning,
        seed=0,
        progress=False,
    )
    draws = mcmc.run(data.train_inputs, data.train_targets).get_samples(group_by_chain=True)
    seconds = time.process_time() - begin
    return contestant.model.probabilities(draws, data.test_inputs).double(), seconds


# %% [markdown]
# Two columns say how near the average prediction is to that of HMC: `agreement`, the fraction of
# images that get the same class, and `total var.`, the total variation. Three say how good it is on
# the test images: `NLL`, `one draw`, and `ambiguity`, which is what averaging wins over the draws.
# `mixed` is the fraction of predictive probabilities whose R-hat over the chains is below 1.1.
# R-hat of the weights would mean nothing: hidden units can change places, and chains that agree in
# all predictions have their weights elsewhere.

# %%
columns = ("agreement", "total var.", "NLL", "one draw", "ambiguity", "mixed", "CPU s")
print(f"{'':22}" + "".join(f"{column:>11}" for column in columns))
mixing: dict[str, Tensor] = {}
found: dict[str, tuple[float, float]] = {}
for contestant in CONTESTANTS:
    probabilities, seconds = run(contestant)
    draws = probabilities.flatten(0, 1)
    variation = metrics.total_variation(draws, reference.probabilities)
    loss = metrics.nll(draws, data.test_targets)
    singles = [metrics.nll(draw, data.test_targets) for draw in draws]
    mixed = "-"
    if contestant.has_chains and not page.smoke:
        mixing[contestant.name] = predictive_rhat(probabilities[:, :, ::8])
        mixed = f"{fractions_below(mixing[contestant.name], (1.1,))[1.1]:.2f}"
    found[contestant.name] = (variation, loss)
    numbers = (
        f"{metrics.agreement(draws, reference.probabilities):11.3f}{variation:11.4f}{loss:11.4f}"
        f"{sum(singles) / len(singles):11.4f}{metrics.ambiguity(draws, data.test_targets):11.4f}"
    )
    print(f"{contestant.name:22}{numbers}{mixed:>11}{seconds:11.1f}")
print(f"{'HMC, 15,000 draws':22}{1.0:11.3f}{0.0:11.4f}{reference.nll:11.4f}")

# %%
figure, axes = plt.subplots(figsize=(6.5, 4), layout="constrained")
for name, (variation, loss) in found.items():
    axes.plot(variation, loss, "o", ms=7, label=name)
axes.axhline(reference.nll, color="0.5", lw=1, ls=":")
axes.set(xlabel="total variation to HMC", ylabel="NLL of the average prediction")
axes.legend(frameon=False, fontsize=8)
page.figure("posterior-and-prediction", figure, dpi=150, despine=True)
if mixing:
    figure, axes = plt.subplots(figsize=(6.5, 4), layout="constrained")
    plot_predictive_rhat(mixing, thresholds=(1.01, 1.1), ax=axes)
    page.figure("mixing", figure, dpi=150)

# %% [markdown]
# What the numbers say, the full run taken:
#
# - **Nearest to the posterior** is NUTS, whose chains have met in 100 transitions. It needs no
#   choice of a step size, and all of the data in each of its gradients: here 600 images, which are
#   few. Of those that take minibatches SGNHT, MetaSGMCMC (here with networks that are not trained),
#   PSGLD and SGHMC with a step size in the middle come near. With a small one the chains have
#   hardly met, with a large one they have met at a posterior that is too wide: `mixed` alone does
#   not tell.
# - **L2E** is as near after 200 steps, in half a second, as SGLD in ten seconds. A
#   hundred times as many steps change nothing: that is its bias. Its single draws predict better
#   than those of any sampler of the posterior, and differ less.
# - **Parameter expansion** has chains that meet well and draws that differ much. Its posterior is
#   another one, so its total variation has no business to be zero.
# - **The deep ensemble** predicts best of all here, and is about the furthest from the posterior.
#   Whoever wants predictions should look at predictions, and not call them a posterior.
#
# | you want | take |
# |---|---|
# | the posterior of a small model | NUTS |
# | the posterior, from minibatches | SGNHT or SGHMC, with `tune` for the step size |
# | good predictions from a few hundred steps | L2E |
# | draws that differ, from a long run | parameter expansion, and tune its step size too |
# | good predictions, and no posterior | a deep ensemble: `temperature=0.0` |
#
# ## A network of one's own
#
# The same with a residual network: convolutions, filter response normalization in place of batch
# normalization (under which a minibatch has no likelihood), and SiLU. Nothing changes but the
# module. `expand_module` mixes the channels of its convolutions. It gets the images of `mnist_5k`
# at half their resolution, and 1,200 steps, which is not many.

# %%
mnist = load_mnist_5k()
size = page.length(len(mnist.train_inputs), smoke=60)


def images(inputs: Tensor) -> Tensor:
    """Images of 14 x 14 pixels with one channel."""
    return torch.nn.functional.avg_pool2d(inputs.reshape(-1, 1, 28, 28), 2)


train = images(mnist.train_inputs[:size]), mnist.train_targets[:size]
test = images(mnist.test_inputs[:size]), mnist.test_targets[:size]
resnet = ResNet(1, 10, channels=(4, 8) if page.smoke else (8, 16))
plain_model = BayesianClassifier(BayesianModule(resnet, 1.0), batch_size=50)
expanded_model = BayesianClassifier(expand_module(resnet, 1.0), batch_size=50)
start = init_to_module(module=resnet)
factors = {"*P1": 0.001, "*Q1": 0.001, "default": 0.1}
trials: dict[str, tuple[Any, BayesianClassifier]] = {
    "SGHMC": (
        SGHMC(
            plain_model, step_size=math.sqrt(0.1 / size), momentum_decay=0.1, init_strategy=start
        ),
        plain_model,
    ),
    "PX-SGHMC": (
        SGHMC(
            expanded_model,
            step_size=math.sqrt(0.004 / size),
            momentum_decay=factors,
            init_strategy=start,
        ),
        expanded_model,
    ),
    "L2E": (L2E.pretrained(plain_model, init_strategy=start), plain_model),
}
print(f"\n{'':22}{'NLL':>11}{'one draw':>11}{'ambiguity':>11}{'accuracy':>11}{'CPU s':>11}")
for name, (kernel, model) in trials.items():
    begin = time.process_time()
    mcmc = MCMC(
        kernel,
        num_samples=2 if page.smoke else 5,
        warmup_steps=4 if page.smoke else 900,
        num_chains=2,
        thinning=1 if page.smoke else 60,
        seed=0,
        progress=False,
    )
    probabilities = model.probabilities(mcmc.run(*train).get_samples(), test[0]).double()
    singles = [metrics.nll(draw, test[1]) for draw in probabilities]
    print(
        f"{name:22}{metrics.nll(probabilities, test[1]):11.4f}{sum(singles) / len(singles):11.4f}"
        f"{metrics.ambiguity(probabilities, test[1]):11.4f}"
        f"{metrics.accuracy(probabilities, test[1]):11.4f}{time.process_time() - begin:11.1f}"
    )

# %% [markdown]
# L2E was trained on multilayer perceptrons only, and moves a residual network just as well, without
# a step size to choose; the two others have those that were best of a few tries. Parameter
# expansion has not had the time that it needs: on `tutorials/papers/px_sgmcmc.py` it has.
