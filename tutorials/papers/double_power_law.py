"""Two power laws in one partition: how often words occur, and packages are depended on."""

# %% [markdown]
# # Partitions with two power laws
#
# F. Ayed, J. Lee, F. Caron (2019), Beyond the Chinese restaurant and Pitman-Yor processes:
# statistical models with double power-law behavior. Sizes of clusters, such as how often words
# occur, often follow one power law where they are small and another where they are large. A
# Pitman-Yor process can set the first alone, and so can a normalized generalized gamma process
# (NGGP). The paper normalizes random measures whose Lévy densities have an index at zero, σ, and
# another at infinity, τ: the generalized BFRY process, the beta prime process, and a generalized
# gamma process with Pareto weights beside it. This page fits all five to three sets of counts, and
# to two on which nothing should be gained.
#
# `pyro-ext reproduce double-power-law` runs the page, and so does `python
# tutorials/papers/double_power_law.py`. Both print a table of claims and save it with the figures
# in `figures/double-power-law`.

# %%
import math
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import matplotlib.pyplot as plt
import torch
from torch import Tensor

from pyro_ext.datasets import load_frequencies
from pyro_ext.inference import MCMC, LaplacePosterior, laplace_posterior, nuts_posterior
from pyro_ext.models.nonparametric import (
    FrequencyModel,
    beta_prime_prior,
    generalized_bfry_prior,
    generalized_gamma_prior,
    metropolis_within_gibbs,
    pareto_mixture_prior,
    pitman_yor_prior,
)
from pyro_ext.potential import Potential
from pyro_ext.random_measures import (
    BetaPrimeProcess,
    CompletelyRandomMeasure,
    FrequencyCounts,
    GeneralizedBFRYProcess,
    ParetoMixtureProcess,
    PitmanYor,
    kolmogorov_smirnov,
    reweighted_kolmogorov_smirnov,
    split_frequencies,
)
from pyro_ext.random_measures.frequency_plots import plot_rank_sizes
from pyro_ext.reproduction import Claim, Figure, Report, seeds

STARTED = time.perf_counter()
SMOKE = "PYRO_EXT_SMOKE" in os.environ  # a short run that only shows that the page works
FOLDER = Path(os.environ.get("PYRO_EXT_FIGURES", "figures/double-power-law"))
SEEDS = seeds()
RUNS = {seed: SEEDS[0] if SMOKE else seed for seed in SEEDS}  # the seed whose numbers are shown
DTYPE = torch.get_default_dtype()
torch.set_default_dtype(torch.float64)  # log likelihoods are in the millions, gains in the tens
torch.set_num_threads(1)  # tensors this small gain nothing from threads, and lose on busy machines
COLOURS = {
    "Pitman-Yor": "#d1495b",
    "NGGP": "#e09f3e",
    "generalized BFRY": "#2a6f97",
    "beta prime": "#588157",
    "Pareto mixture": "#7a5195",
}

claims: list[Claim] = []
figures: dict[str, Figure] = {}

# %% [markdown]
# ## Data
#
# Words of 300 news items, words of the King James Bible, and packages of Debian by how many others
# depend on them. All that a partition has to say is in the number of clusters of each size. The
# stems of another collection of texts, without what is frequent, are a control: there is little of
# a second power law in them.

# %%
NEWS, CONTROL = "news_words", "stemmed_words"
NAMES = (NEWS,) if SMOKE else (NEWS, "bible_words", "package_dependencies")
TABLES: dict[str, Tensor] = {}
for name in (*NAMES, CONTROL):
    data = load_frequencies(NEWS if SMOKE else name)
    TABLES[name] = split_frequencies(data.table, 30_000, 0) if SMOKE else data.table
    print(f"{name:22} {data.num_samples:8,} of {data.num_kinds:7,} kinds, {data.source}")


def number_of(table: Tensor) -> int:
    """Number of samples of a table."""
    return int(table.prod(-1).sum())


# %% [markdown]
# ## Two indices
#
# How many weights of a measure exceed `x` falls as `x` to the power -σ for small `x` and -τ for
# large ones. All weights above a level are drawn; between two levels, the logarithm of the ratio of
# their numbers over that of the levels is a slope. Levels near zero and far out, at which the local
# index differs from its limit by less than a fourth of a standard error, give σ and τ.

# %%
INDICES = (0.4, 2.3)
STEEP: dict[str, tuple[Callable[[float], CompletelyRandomMeasure], float, float]] = {
    # measure by its mass, and the levels between which the slopes at zero and at infinity are taken
    "generalized BFRY": (lambda mass: GeneralizedBFRYProcess(mass, *INDICES), 1e-9, 20.0),
    "beta prime": (lambda mass: BetaPrimeProcess(mass, *INDICES), 1e-9, 3e3),
    "Pareto mixture": (
        lambda mass: ParetoMixtureProcess(mass, 0.4, 1.0, mass, 2.0, 2.3),
        1e-9,
        40.0,
    ),
}
NUM_WEIGHTS = 200 if SMOKE else 4_000


def slope_errors(name: str, seed: int) -> tuple[float, float]:
    """Errors of the two slopes of drawn weights, in standard errors."""
    measure_of, small, large = STEEP[name]
    errors = []
    # The same seed would have the same places in the tails of all measures.
    torch.manual_seed(10 * seed + list(STEEP).index(name))
    for level, ratio, index in ((small / 1e3, 1e3, INDICES[0]), (large, 2.0, INDICES[1])):
        mass = NUM_WEIGHTS / float(measure_of(1.0).tail(level))
        weights, mask = measure_of(mass).jumps_above(level)
        beyond = int((weights[mask] > level * ratio).sum())
        share = beyond / int(mask.sum())
        # Given the number above the first level, that above the second is binomial.
        deviation = math.sqrt((1.0 - share) / beyond)
        errors.append((-math.log(share) - index * math.log(ratio)) / deviation)
    return errors[0], errors[1]


slopes = dict.fromkeys(SEEDS, 0.0)
for name in STEEP:
    for seed in SEEDS:
        pair = slope_errors(name, seed)
        slopes[seed] = max(slopes[seed], *(abs(error) for error in pair))
        print(f"{name:18} seed {seed}: at zero {pair[0]:5.2f}, at infinity {pair[1]:5.2f}")
claims.append(
    Claim(
        "Slopes of drawn weights are the indices at zero and at infinity of all three measures "
        "(largest error of six, in standard errors).",
        values=slopes,
        comparison="<",
        bound=4,
        source="Ayed et al. (2019), regular variation at both ends; bound laid down beforehand",
    )
)

# %% [markdown]
# ## Fits
#
# A scale common to all weights does not matter, so that the generalized BFRY and the beta prime
# process have three parameters and an auxiliary variable, the mixture five and the variable. The
# likelihood given the variable takes some milliseconds. The posterior is narrow and its coordinates
# are strongly correlated: NUTS runs in those of the Gaussian at its mode. That Gaussian also gives
# the evidence, which is the sum of the log probabilities of each sample given those before it.

# %%
MODELS = {
    "Pitman-Yor": FrequencyModel(pitman_yor_prior()),
    "NGGP": FrequencyModel(generalized_gamma_prior()),
    "generalized BFRY": FrequencyModel(generalized_bfry_prior()),
    "beta prime": FrequencyModel(beta_prime_prior()),
    "Pareto mixture": FrequencyModel(pareto_mixture_prior()),
}
TWO_LAWS = ("generalized BFRY", "beta prime", "Pareto mixture")
NUM_DRAWS = 2 if SMOKE else 8
NUM_WARMUP = 1 if SMOKE else 3
STEP_SIZES = {"beta prime": 0.2, "Pareto mixture": 0.15}  # their posteriors are less Gaussian
NUM_PREDICTIVE, NUM_REPLICATES = (2, 2) if SMOKE else (4, 6)
STARTS = {
    "concentration": 400.0,
    "mass": 1_000.0,
    "discount": 0.25,
    "excess": 0.8,
    "pareto_mass": 500.0,
    "pareto_scale": 2.0,
    "tilt": 5.0,
}


class Fit(NamedTuple):
    """Potential of a model at its data, and the Gaussian at its mode."""

    potential: Potential
    laplace: LaplacePosterior


def fit(model: str, table: Tensor, start: Mapping[str, float] | None = None) -> Fit:
    """Find the mode of a model."""
    # To record a graph takes longer than it saves in some hundred gradients.
    potential = Potential(MODELS[model].with_tilt, table, backend="eager")
    chosen = STARTS | dict(start or {})
    values = {name: torch.tensor(chosen[name]) for name in potential.sites}
    return Fit(potential, laplace_posterior(potential, [values]))


def mode_of(found: Fit) -> dict[str, float]:
    """Parameters at the mode."""
    flat = found.potential.layout.unflatten(found.laplace.mode)
    return {name: float(value) for name, value in found.potential.constrain(flat).items()}


fits = {name: {model: fit(model, TABLES[name]) for model in MODELS} for name in NAMES}
for name in NAMES:
    print(f"\n{name}: log evidence beyond that of a Pitman-Yor process, and the mode")
    for model, found in fits[name].items():
        gain = float(found.laplace.log_evidence - fits[name]["Pitman-Yor"].laplace.log_evidence)
        mode = ", ".join(f"{site} {value:.4g}" for site, value in mode_of(found).items())
        print(f"  {model:18}{gain:9.1f}   {mode}")

# %% [markdown]
# New partitions are drawn from the posterior: of other samples of a new random measure, as many as
# there are data. Their draws are exact. The paper measures fits by a Kolmogorov-Smirnov distance
# that is divided by the standard deviation of the predicted distribution, so that it sees tails.
# Medians are over all draws, since a single heavy weight moves a mean. To tell which end is wrong,
# the same is taken over sizes up to 10 and above.


# %%
class Score(NamedTuple):
    """How far predicted tables are from the data, as medians over them."""

    plain: float
    reweighted: float
    low: float
    high: float
    largest: float


def score(observed: Tensor, tables: list[Tensor]) -> Score:
    """Distances of predicted tables from what was observed."""

    def median(values: list[Tensor]) -> float:
        return float(torch.stack(values).double().median())

    return Score(
        median([kolmogorov_smirnov(observed, table) for table in tables]),
        median([reweighted_kolmogorov_smirnov(observed, table) for table in tables]),
        median([reweighted_kolmogorov_smirnov(observed, table, most=10) for table in tables]),
        median([reweighted_kolmogorov_smirnov(observed, table, least=11) for table in tables]),
        median([table[:, 0].max() for table in tables]),
    )


def predict(model: str, samples: Mapping[str, Tensor], number: int, seed: int) -> list[Tensor]:
    """Tables of new partitions, some for each of some draws at equal distances."""
    rows = torch.linspace(0, NUM_DRAWS - 1, NUM_PREDICTIVE).round().long()
    chosen = {name: value[rows] for name, value in samples.items()}
    return MODELS[model].predictive(chosen, number, num_replicates=NUM_REPLICATES, seed=seed)


posteriors: dict[tuple[str, str, int], dict[str, Tensor]] = {}
predictions: dict[tuple[str, str], list[Tensor]] = {}
scores: dict[tuple[str, str, int], Score] = {}
for name in NAMES:
    for model in MODELS:
        for seed in sorted(set(RUNS.values())):
            samples = nuts_posterior(
                *fits[name][model],
                NUM_DRAWS,
                warmup_steps=NUM_WARMUP,
                step_size=STEP_SIZES.get(model, 0.4),
                seed=seed,
            )
            tables = predict(model, samples, number_of(TABLES[name]), seed)
            posteriors[name, model, seed] = samples
            scores[name, model, seed] = score(TABLES[name], tables)
            if seed == SEEDS[0]:
                predictions[name, model] = tables

for name in NAMES:
    true = int(TABLES[name][:, 0].max())
    print(f"\n{name}: median distances over {NUM_PREDICTIVE * NUM_REPLICATES} new partitions")
    print(f"{'':19}{'KS':>8}{'reweighted':>12}{'low':>8}{'high':>8}{'largest':>9}, true {true}")
    for model in MODELS:
        for seed in SEEDS:
            row = scores[name, model, RUNS[seed]]
            print(
                f"{model if seed == SEEDS[0] else '':19}{row.plain:8.3f}{row.reweighted:12.3f}"
                f"{row.low:8.3f}{row.high:8.3f}{row.largest:9.0f}"
            )

# %% [markdown]
# On news words and packages all three measures with two indices are nearer to the data than the
# two with one, at both ends. On the Bible they gain hundreds of nats of evidence, but only the beta
# prime process comes a little nearer: τ is below one there, the total mass of the measure has no
# mean, and the largest count of a new partition is several times that of the data. What Pitman-Yor
# and the NGGP predict cannot be told apart.

# %%
print("\nposterior means and standard deviations over all seeds")
for name in NAMES:
    for model in TWO_LAWS:
        draws = [posteriors[name, model, seed] for seed in RUNS.values()]
        discounts = torch.cat([draw["discount"] for draw in draws])
        tails = discounts + torch.cat([draw["excess"] for draw in draws])
        indices = [f"{values.mean():.3f} ± {values.std():.3f}" for values in (discounts, tails)]
        print(f"{name:22}{model:18} σ {indices[0]}   τ {indices[1]}")

# %%
figure, (panels,) = plt.subplots(
    1, len(NAMES), figsize=(12, 3.8), layout="constrained", squeeze=False
)
shown = ("Pitman-Yor", "generalized BFRY", "beta prime")
for axes, name in zip(panels, NAMES, strict=True):
    drawn = {model: predictions[name, model] for model in shown}
    plot_rank_sizes(TABLES[name], drawn, axes, colors=COLOURS)
    axes.set_title(name.replace("_", " "))
figures["rank-sizes"] = figure
plt.close(figure)

# %%
figure, (panels,) = plt.subplots(
    1, len(NAMES), figsize=(12, 3.4), layout="constrained", squeeze=False
)
for axes, name in zip(panels, NAMES, strict=True):
    for place, model in enumerate(MODELS):
        for shift, end in ((-0.12, "low"), (0.12, "high")):
            values = [getattr(scores[name, model, seed], end) for seed in RUNS.values()]
            marker = "o" if end == "low" else "^"
            axes.plot([place + shift] * len(values), values, marker, color=COLOURS[model])
    axes.set_xticks(range(len(MODELS)), [model.replace(" ", "\n") for model in MODELS], fontsize=8)
    axes.set(title=name.replace("_", " "), ylim=(0, None))
    axes.spines[["top", "right"]].set_visible(False)
panels[0].set_ylabel("reweighted KS, ● up to 10, ▲ above")
figures["both-ends"] = figure
plt.close(figure)


# %%
def ratio(name: str, model: str, seed: int) -> float:
    """Distance of a model, in that of the Pitman-Yor process."""
    own, other = (scores[name, kind, RUNS[seed]] for kind in (model, "Pitman-Yor"))
    return own.reweighted / other.reweighted


def evidence(found: Mapping[str, Fit], model: str) -> float:
    """Log evidence beyond that of the Pitman-Yor process."""
    return float(found[model].laplace.log_evidence - found["Pitman-Yor"].laplace.log_evidence)


TRUE_LARGEST = float(TABLES[NEWS][:, 0].max())
claims += [
    Claim(
        "The generalized BFRY and the beta prime process are both nearer than Pitman-Yor by the "
        "paper's reweighted KS on at least two of three real data sets (their number).",
        values={
            seed: sum(
                all(ratio(name, model, seed) < 1.0 for model in TWO_LAWS[:2]) for name in NAMES
            )
            for seed in SEEDS
        },
        comparison=">=",
        bound=2,
        source="Ayed et al. (2019), experiments on real data; bound laid down beforehand",
    ),
    Claim(
        "On news words the reweighted KS of the generalized BFRY process is below 0.65 of that of "
        "Pitman-Yor (ratio).",
        values={seed: ratio(NEWS, "generalized BFRY", seed) for seed in SEEDS},
        comparison="<",
        bound=0.65,
        source="0.054 against 0.129 at maximum likelihood, laid down beforehand",
    ),
    Claim(
        "On news words the reweighted KS of the beta prime process is below 0.65 of that of "
        "Pitman-Yor (ratio).",
        values={seed: ratio(NEWS, "beta prime", seed) for seed in SEEDS},
        comparison="<",
        bound=0.65,
        source="0.053 against 0.129 at maximum likelihood, laid down beforehand",
    ),
    Claim(
        "On news words Pitman-Yor predicts a largest count of less than a third of the true one "
        "(ratio).",
        values={
            seed: scores[NEWS, "Pitman-Yor", run].largest / TRUE_LARGEST
            for seed, run in RUNS.items()
        },
        comparison="<",
        bound=1 / 3,
        source="Ayed et al. (2019), large counts; 575 of 4,135, laid down beforehand",
    ),
    Claim(
        "On news words the generalized BFRY process gains more than 150 nats of evidence on "
        "Pitman-Yor (gain; no seed enters).",
        values=dict.fromkeys(SEEDS, evidence(fits[NEWS], "generalized BFRY")),
        comparison=">",
        bound=150,
        source="193 nats of maximum likelihood, laid down beforehand",
    ),
    Claim(
        "On news words the NGGP and Pitman-Yor are within 5 nats of evidence (difference; no seed "
        "enters).",
        values=dict.fromkeys(SEEDS, abs(evidence(fits[NEWS], "NGGP"))),
        comparison="<",
        bound=5,
        source="Ayed et al. (2019), nearly identical to each other; bound laid down beforehand",
    ),
]

# %% [markdown]
# ## A half that is held out
#
# The news words are split at random, and all models see one half. The log probability of the other
# half given it is the difference of two evidences, but for a number that is the same for all.

# %%
HALF = number_of(TABLES[NEWS]) // 2
JUDGED = ("Pitman-Yor", "NGGP", "generalized BFRY", "beta prime")
held_out: dict[tuple[str, int], float] = {}
for seed in sorted(set(RUNS.values())):
    part = split_frequencies(TABLES[NEWS], HALF, seed)
    for model in JUDGED:
        whole = fits[NEWS][model]
        seen = fit(model, part, mode_of(whole))
        held_out[model, seed] = float(whole.laplace.log_evidence - seen.laplace.log_evidence)
print("log probability of the other half beyond that of a Pitman-Yor process")
for model in JUDGED[1:]:
    gained = [held_out[model, seed] - held_out["Pitman-Yor", seed] for seed in RUNS.values()]
    print(f"  {model:18}" + "".join(f"{gain:9.1f}" for gain in gained))
claims.append(
    Claim(
        "The generalized BFRY process predicts a held-out half of the news words better than "
        "Pitman-Yor (gain in nats).",
        values={
            seed: held_out["generalized BFRY", run] - held_out["Pitman-Yor", run]
            for seed, run in RUNS.items()
        },
        comparison=">",
        bound=0,
        source="Ayed et al. (2019), predictive fit; laid down beforehand",
    )
)

# %% [markdown]
# ## The sampler of the paper
#
# The paper gives each cluster a tilt, moves all tilts by HMC, and the parameters and the auxiliary
# variable by random walks, one at a time. Here it is on 1,000 of the news words, beside NUTS
# without the tilts. The random walks have steps of 0.3, since there are fewer data than in the
# paper, where they have steps of 0.01. Both start at the mode.

# %%
SMALL = split_frequencies(TABLES[NEWS], 1_000, SEEDS[0])
small_fit = fit("generalized BFRY", SMALL, mode_of(fits[NEWS]["generalized BFRY"]))
started = time.perf_counter()
by_nuts = nuts_posterior(
    *small_fit, 5 if SMOKE else 60, warmup_steps=5 if SMOKE else 30, seed=SEEDS[0]
)
nuts_seconds = time.perf_counter() - started
start = {name: torch.tensor([value]) for name, value in mode_of(small_fit).items()}
start["cluster_tilts"] = torch.full((1, int(SMALL[:, 1].sum())), 0.5)
kernel = metropolis_within_gibbs(
    MODELS["generalized BFRY"].with_cluster_tilts, list(start), scale=0.3, num_steps=10
)
started = time.perf_counter()
mcmc = MCMC(
    kernel,
    num_samples=5 if SMOKE else 80,
    warmup_steps=1 if SMOKE else 20,
    initial_params=start,
    seed=SEEDS[0],
    progress=False,
).run(SMALL)
metropolis_seconds = time.perf_counter() - started
by_metropolis = mcmc.get_samples()
for site in ("mass", "discount", "excess"):
    rows = [
        f"{draws[site].mean():8.3f} ± {draws[site].std():.3f}" for draws in (by_nuts, by_metropolis)
    ]
    print(f"{site:10} NUTS {rows[0]}   Metropolis within Gibbs {rows[1]}")
print(f"seconds: NUTS {nuts_seconds:.1f}, Metropolis within Gibbs {metropolis_seconds:.1f}")

# %% [markdown]
# In the same time the random walks have hardly left the mode. Given all tilts and the auxiliary
# variable, a parameter is known much better than without them, so that a walk of one at a time is
# slow; the paper made 50,000 steps. On eight clusters, where that does not matter, the tests find
# both samplers in agreement with quadrature.
#
# ## Parameters that are known
#
# A partition of the paper's first setting, η = 2,000, σ = 0.1 and τ = 2, of fewer samples. The true
# values are to lie within four posterior standard deviations of the mean.

# %%
TRUTH = {"mass": 2_000.0, "discount": 0.1, "excess": 1.9}
NUM_KNOWN = 20_000 if SMOKE else 100_000
known_law = MODELS["generalized BFRY"].law(
    {name: torch.tensor(value) for name, value in TRUTH.items()}
)
recovery = {}
for seed in sorted(set(RUNS.values())):
    torch.manual_seed(seed)
    table = FrequencyCounts(known_law, NUM_KNOWN).sample()
    found = fit("generalized BFRY", table[table[:, 1] > 0], TRUTH)
    samples = nuts_posterior(
        *found, 2 if SMOKE else 30, warmup_steps=NUM_WARMUP, step_size=0.4, seed=seed
    )
    errors = {
        name: float((samples[name].log().mean() - math.log(value)) / samples[name].log().std())
        for name, value in TRUTH.items()
    }
    recovery[seed] = max(abs(error) for error in errors.values())
    print(f"seed {seed}: " + ", ".join(f"{name} {error:.2f}" for name, error in errors.items()))
claims.append(
    Claim(
        "The posterior finds the parameters that made the data (largest distance of three, in "
        "posterior standard deviations).",
        values={seed: recovery[run] for seed, run in RUNS.items()},
        comparison="<",
        bound=4,
        source="Ayed et al. (2019), simulated data; bound laid down beforehand",
    )
)

# %% [markdown]
# ## Where nothing is to be gained
#
# Data of a Pitman-Yor process have one power law, and stems of words without what is frequent have
# hardly more. There two indices should gain next to nothing.

# %%
NUM_CONTROL = 2_000 if SMOKE else 20_000
gains: dict[int, float] = {}
for seed in sorted(set(RUNS.values())):
    torch.manual_seed(seed)
    table = FrequencyCounts(PitmanYor(0.5, 100.0), NUM_CONTROL).sample()
    table = table[table[:, 1] > 0]
    simulated = {model: fit(model, table, {"mass": 200.0, "excess": 3.0}) for model in JUDGED[::2]}
    gains[seed] = evidence(simulated, "generalized BFRY")
judged = JUDGED[::3] if SMOKE else JUDGED
stems = {model: fit(model, TABLES[CONTROL], {"excess": 3.0}) for model in judged}
print("gains on data of a Pitman-Yor process:", [round(gain, 1) for gain in gains.values()])
for model in judged[1:]:
    print(f"gain on {CONTROL}: {model} {evidence(stems, model):.1f}")
claims += [
    Claim(
        "On data of a Pitman-Yor process the generalized BFRY process gains less than 5 nats of "
        "evidence.",
        values={seed: gains[run] for seed, run in RUNS.items()},
        comparison="<",
        bound=5,
        source="negative control; bound laid down beforehand",
    ),
    Claim(
        "On stems without frequent words neither the generalized BFRY nor the beta prime process "
        "gains 5 nats of evidence (larger gain; no seed enters).",
        values=dict.fromkeys(
            SEEDS, max(evidence(stems, model) for model in judged if model in TWO_LAWS)
        ),
        comparison="<",
        bound=5,
        source="negative control, 3.1 and 4.5 nats of maximum likelihood, laid down beforehand",
    ),
]
torch.set_default_dtype(DTYPE)

# %% [markdown]
# ## The claims

# %%
report = Report(
    "double-power-law",
    claims=claims,
    paper="F. Ayed, J. Lee, F. Caron (2019), Beyond the Chinese restaurant and Pitman-Yor "
    "processes: statistical models with double power-law behavior, arXiv 1902.04714",
    settings={
        "seeds": SEEDS,
        "draws": NUM_DRAWS,
        "new partitions": NUM_PREDICTIVE * NUM_REPLICATES,
        "weights": NUM_WEIGHTS,
        "data": {name: number_of(table) for name, table in TABLES.items()},
    },
    figures=figures,
    seconds=time.perf_counter() - STARTED,
    smoke=SMOKE,
)
report.print()
report.save(FOLDER)
report.exit()
