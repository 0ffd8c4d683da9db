"""Parameter-expanded stochastic-gradient MCMC: draws that differ more, and cyclical step sizes."""

# %% [markdown]
# # Parameter-expanded SGMCMC
#
# Draws that stochastic-gradient MCMC takes from the posterior of a network are too much alike. H.
# Kim, G. Nam, C. Yun, H. Yang, J. Lee (2025), Parameter expanded stochastic gradient Markov chain
# Monte Carlo, write each weight as a product of matrices and run the same sampler on the factors.
# Draws of the product differ more, and predict better together, while each alone is as good as
# before; the network that predicts is no larger. They use a cyclical step size, after R. Zhang, C.
# Li, J. Zhang, C. Chen, A. G. Wilson (2020), Cyclical stochastic gradient MCMC for Bayesian deep
# learning, which falls to zero again and again, with a draw at the end of each cycle. `pyro-ext
# reproduce px-sgmcmc` runs the page.

# %%
from statistics import fmean
from typing import Any

import matplotlib.pyplot as plt
import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer import Predictive
from torch import Tensor

from pyro_ext.datasets import load_digits
from pyro_ext.diagnostics import diversity, metrics
from pyro_ext.inference import MCMC, SGHMC, SGLD, CyclicalSchedule, PolynomialSchedule, Schedule
from pyro_ext.nn import MLP, BayesianClassifier, BayesianModule
from pyro_ext.potential import init_to_suggested
from pyro_ext.random import seeded
from pyro_ext.reparam import ExpandedModule, ExpansionReparam, expand_module
from pyro_ext.reproduction import Page

page = Page(
    "px-sgmcmc",
    paper="H. Kim, G. Nam, C. Yun, H. Yang, J. Lee (2025), Parameter expanded stochastic gradient "
    "Markov chain Monte Carlo",
)
SEEDS = page.seeds

# %% [markdown]
# ## Expanded weights as a Pyro program
#
# `ExpansionReparam` replaces a site of a matrix by a middle factor `V` with the site's prior and
# square factors, `P` on the side of the output and `Q` on that of the input, which start at the
# identity. The model stays as it is. Square factors get less friction. The sampler moves the
# factors, but draws also hold their products, so `Predictive` needs no factors.


# %%
def network_model(x: Tensor, y: Tensor | None = None, batch_size: int | None = None) -> None:
    """A network with 20 hidden units for two classes."""
    first = pyro.sample("first", dist.Normal(0.0, 1.0).expand([20, 2]).to_event(2))
    last = pyro.sample("last", dist.Normal(0.0, 0.5).expand([2, 20]).to_event(2))
    logits = pyro.deterministic("logits", (x @ first.mT).tanh() @ last.mT, event_dim=2)
    with pyro.plate("data", len(x), batch_size) as index:
        labels = dist.Categorical(logits=logits[index])
        pyro.sample("y", labels, obs=None if y is None else y[index])


with seeded(0):
    x = 1.5 * torch.randn(1100, 2)
    y = dist.Bernoulli(logits=4.0 * ((2.0 * x[:, 0]).sin() - x[:, 1])).sample().long()
factors: dict[str, Any] = {"first": ExpansionReparam(right=0), "last": ExpansionReparam(left=0)}
friction = {"*.[PQ]?": 1.0, "default": 20.0}
cycle = page.length(50, smoke=5)
for name, expanded in {"SGHMC": {}, "PX-SGHMC": factors}.items():
    program = poutine.reparam(network_model, config=expanded)
    schedule = CyclicalSchedule(0.02, 24, 24 * cycle)
    own = SGHMC(program, step_size=schedule, friction=friction if expanded else 20.0)
    own_mcmc = MCMC(own, 18, 6 * cycle, thinning=cycle, num_chains=2, seed=0, progress=False)
    draws = own_mcmc.run(x[:100], y[:100], 50).get_samples()
    kept = {"first": draws["first"], "last": draws["last"]}
    probs = Predictive(network_model, kept)(x[100:])["logits"].reshape(-1, 1000, 2).softmax(-1)
    loss, gain = metrics.nll(probs, y[100:]), metrics.ambiguity(probs, y[100:])
    print(f"{name}, new points: NLL {loss:.3f}, gain of the average over one draw {gain:.3f}")

# %% [markdown]
# ## Cyclical step sizes
#
# The density has 25 modes, each a Gaussian with variance 0.03, two apart on a grid. The sampler
# sees a noisy gradient, made as minibatches make it: a plate takes one of many tilts of the
# density, which cancel over all of them. One step size decays. The other goes through 30 cycles, of
# which the first 50 steps explore, with no noise and no draws. A mode is found once more than 0.2%
# of all draws lie within three standard deviations.

# %%
PLACES, DEVIATION = 2.0 * torch.arange(-2.0, 3.0), 0.03**0.5
MODES = torch.cartesian_prod(PLACES, PLACES)


def grid(tilts: Tensor) -> None:
    """A grid of 25 Gaussians, seen through a noisy gradient."""
    modes = dist.Normal(PLACES, DEVIATION)
    line = dist.MixtureSameFamily(dist.Categorical(torch.ones(5)), modes)
    x = pyro.sample("x", line.expand([2]).to_event(1))
    with pyro.plate("tilts", len(tilts), subsample_size=1) as index:
        pyro.factor("tilt", tilts[index] @ x / len(tilts))


NUM_STEPS, THINNING = page.length(50_000, smoke=900), 10
BACKEND: Any = page.length("compile", smoke="trace")
schedules: dict[str, Schedule] = {
    "decaying": PolynomialSchedule(0.043, exponent=0.55, start=500),
    "cyclical": CyclicalSchedule(0.07, 30, NUM_STEPS, page.length(50 / 1667, smoke=0.03)),
}


def num_found(draws: Tensor) -> int:
    """Number of modes that draws found."""
    num_at = (torch.cdist(draws, MODES) < 3 * DEVIATION).sum(0)
    return int((num_at > 0.002 * len(draws)).sum())


def walk(schedule: Schedule, seed: int) -> int:
    """Number of modes that one chain finds."""
    generator = torch.Generator().manual_seed(seed)
    tilts = torch.randn(NUM_STEPS, 2, generator=generator)
    start = {"x": 20.0 * torch.rand(1, 2, generator=generator) - 10.0}
    steps = torch.arange(THINNING, NUM_STEPS + 1, THINNING)
    num_samples = int(schedule.is_sampling(steps.numpy() - 1).sum())
    options: Any = {"initial_params": start, "seed": seed, "progress": False}
    kernel = SGLD(grid, step_size=schedule, noise_estimate=1.0, backend=BACKEND)
    mcmc = MCMC(kernel, num_samples, thinning=THINNING, **options)
    return num_found(mcmc.run(tilts - tilts.mean(0)).get_samples()["x"])


found = {name: {s: walk(schedule, s) for s in SEEDS} for name, schedule in schedules.items()}
page.claim(
    "With a cyclical step size one chain finds most of 25 modes.",
    found["cyclical"],
    ">=",
    15,
    source="Zhang et al. (2020), figure 2, here with one chain; bound preregistered",
)
page.claim(
    "With a decaying step size one chain stays at a few of 25 modes.",
    found["decaying"],
    "<=",
    5,
    source="Zhang et al. (2020), figure 2, here with one chain; bound preregistered",
)

# %% [markdown]
# ## Handwritten digits
#
# 600 images are there to learn from, 1,197 to test. The first layer has no `Q`, the last no `P`.
# Both networks have 64-32-32-10 units, and weights, or `V`, a prior variance of 0.05. The entries
# of `P` and `Q` have one over their size, 1/32: with the paper's 1/2, for wide convolutions, chains
# diverged in trials. Chains start as in the paper, weights and `V` from the normal distribution of
# He: at one function for both. Of 12 cycles the last nine leave draws, with noise at every step.

# %%
NUM_NETWORK_STEPS, NUM_CHAINS = page.length((2_400, 4), smoke=(24, 2))
NUM_INNER, PRIOR_SCALE = 480, 0.05**0.5
digits = load_digits()
network = MLP(64, [32, 32], 10)
methods: dict[str, BayesianModule | ExpandedModule] = {
    "SGHMC": BayesianModule(network, PRIOR_SCALE),
    "PX-SGHMC": expand_module(network, PRIOR_SCALE),
}
classifier = BayesianClassifier(methods["SGHMC"])  # for the draws of all methods


def he_normal(site: dict[str, Any]) -> Tensor:
    """Start weights, or middle factors, as He has it, biases at zero, factors where they ask."""
    name, shape = site["name"].removesuffix(".V"), site["fn"].shape()
    if name.endswith("weight"):
        return torch.nn.init.kaiming_normal_(torch.empty(shape), nonlinearity="relu")
    return torch.zeros(shape) if name.endswith("bias") else init_to_suggested(site)


def sample(
    bayesian: BayesianModule | ExpandedModule, step_size: float, seed: int, num_train: int = 600
) -> dict[str, Tensor]:
    """Draws of the weights by chain; of the chains that stay finite, and none where none does."""
    is_expanded, cycle = isinstance(bayesian, ExpandedModule), NUM_NETWORK_STEPS // 12
    kernel = SGHMC(
        BayesianClassifier(bayesian, batch_size=64),
        step_size=CyclicalSchedule(step_size, 12, NUM_NETWORK_STEPS),
        friction={"*.[PQ]?": 1.0, "default": 100.0} if is_expanded else 100.0,
        init_strategy=he_normal,
    )
    options: Any = {"num_chains": NUM_CHAINS, "thinning": cycle, "seed": seed, "progress": False}
    mcmc = MCMC(kernel, 9, 3 * cycle, **options)
    try:
        mcmc.run(digits.train_inputs[:num_train], digits.train_targets[:num_train])
    except RuntimeError as stop:
        if "diverged" not in str(stop):
            raise
        return {}
    draws = mcmc.get_samples(group_by_chain=True)
    return {name: draws[name] for name, _ in network.named_parameters()}


def predict(draws: dict[str, Tensor], inputs: Tensor) -> Tensor:
    """Probabilities of the classes, `(num_chains, num_draws, n, 10)`."""
    return classifier.log_probabilities(draws, inputs).double().softmax(-1)


def losses(probabilities: Tensor, labels: Tensor) -> Tensor:
    """Negative log likelihood of each chain's averaged prediction, or of each draw's own."""
    return torch.tensor([metrics.nll(one, labels) for one in probabilities])


# %% [markdown]
# Each method gets the step size whose averaged prediction is best on 120 of the training images
# after learning from the other 480. One at which a chain diverges is out.

# %%
outer, outer_labels = digits.train_inputs[NUM_INNER:], digits.train_targets[NUM_INNER:]
chosen: dict[str, float] = {}
for name, bayesian in methods.items():
    tried = {}
    for size in page.length((1e-3, 2e-3, 3e-3, 6e-3, 1e-2), smoke=(1e-3,)):
        weights, tried[size] = sample(bayesian, size, SEEDS[0], NUM_INNER), float("inf")
        if weights and len(weights["0.weight"]) == NUM_CHAINS:
            tried[size] = float(losses(predict(weights, outer), outer_labels).mean())
    chosen[name] = min(tried, key=tried.__getitem__)

# %% [markdown]
# On the test images each method runs with this step size, with the one preregistered for it, and
# with 0.001. `NLL` is the loss of the average of a chain's nine draws, `one draw` that of a single
# one. `ambiguity` is what averaging logits gains over a single draw; `distance` is that of a draw's
# weights to those of the draw before, relative to their norm, and `divergence` is Kullback and
# Leibler's, between the predictions of two draws of a chain.


# %%
def describe(draws: dict[str, Tensor]) -> dict[str, float]:
    """Measures of the predictions, and of how the draws differ, means over the chains."""
    predicted, labels, num_pairs = predict(draws, digits.test_inputs), digits.test_targets, 9 * 8
    by_chain = {
        "NLL": losses(predicted, labels),
        "one draw": torch.stack([losses(chain, labels) for chain in predicted]),
        "error": torch.tensor([1.0 - metrics.accuracy(chain, labels) for chain in predicted]),
        "ambiguity": torch.tensor([metrics.ambiguity(chain, labels) for chain in predicted]),
        "distance": diversity.consecutive_distances(draws, relative=True),
        "divergence": torch.stack([diversity.pairwise_kl(c).sum() / num_pairs for c in predicted]),
    }
    return {name: float(values.double().mean()) for name, values in by_chain.items()}


preregistered = {"SGHMC": 6e-3, "PX-SGHMC": 2e-3}
tables: dict[str, dict[float, dict[int, dict[str, float]]]] = {name: {} for name in methods}
for name, bayesian in methods.items():
    for size in page.length(sorted({1e-3, preregistered[name], chosen[name]}), smoke=[1e-3]):
        tables[name][size] = {seed: describe(sample(bayesian, size, seed)) for seed in SEEDS}
rows = {
    f"{name}, step size {size:g}, seed {seed}": row
    for name, by_size in tables.items()
    for size, by_seed in by_size.items()
    for seed, row in by_seed.items()
}
page.table(rows, number_format=".4f")


def difference(measure: str, size: float | None = None) -> dict[int, float]:
    """PX-SGHMC minus SGHMC by seed, each at its step size, or both at the one given."""
    px, plain = (tables[name][size or chosen[name]] for name in ("PX-SGHMC", "SGHMC"))
    return {seed: px[seed][measure] - plain[seed][measure] for seed in SEEDS}


page.claim(
    "On digits PX-SGHMC predicts with a smaller loss than SGHMC, each at the step size that "
    "suits it (difference of test NLL).",
    difference("NLL"),
    "<",
    -0.005,
    source="Kim et al. (2025), ensembles on images; bound for this network preregistered",
    across="mean",
    central=True,
)
page.claim(
    "Draws of PX-SGHMC differ more (difference of ambiguities).",
    difference("ambiguity"),
    ">",
    0.02,
    source="Kim et al. (2025), ambiguity on images; bound for this network preregistered",
    across="mean",
)
page.claim(
    "Single draws predict about as well (absolute difference of test NLL).",
    {seed: abs(value) for seed, value in difference("one draw").items()},
    "<",
    0.04,
    source="Kim et al. (2025), single draws on images; bound for this network preregistered",
    across="mean",
)
page.claim(
    "At the same step size of 0.001 PX-SGHMC predicts with a smaller loss (difference of test "
    "NLL).",
    difference("NLL", 1e-3),
    "<",
    0,
    source="comparison preregistered; of it only the sign",
)

# %%
figure, panels = plt.subplots(1, 2, figsize=(8, 3.4), layout="constrained")
for name, by_size in tables.items():
    for measure, axes in (("NLL", panels[0]), ("one draw", panels[0]), ("ambiguity", panels[1])):
        means = [fmean(row[measure] for row in by_seed.values()) for by_seed in by_size.values()]
        axes.plot(list(by_size), means, "o-", ms=4, label=f"{name}, {measure}")
for axes, label in zip(panels, ("test NLL", "ambiguity"), strict=True):
    axes.set(xscale="log", xlabel="step size", ylabel=label)
    axes.legend(frameon=False, fontsize=8)
page.figure("expansion", figure, despine=True)

# %% [markdown]
# ## In use
#
# Put `ExpansionReparam` on matrices, or `expand_module` around a network, and tune the step size
# anew. Compare with SGHMC at less friction, and with more steps: in trials, which this page does
# not run, either brought it nearer. Cyclical steps find modes, but do not weigh them.

# %%
page.finish({"network steps": NUM_NETWORK_STEPS, "step sizes": chosen})
