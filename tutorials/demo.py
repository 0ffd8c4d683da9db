"""The main job end to end: one model by three kinds of inference, diagnosed, saved and drawn.

``pyro-ext demo`` runs this page. How many different words a collection of texts has is told from
a random hundredth of it: by NUTS, by SGHMC on minibatches, and by a posterior bootstrap, each
in a call. ArviZ puts the three into a table, and the true number is known.
"""

# %%
import time
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from rich.console import Console
from torch import Tensor
from torch.distributions import constraints

from pyro_ext.datasets import load_frequencies
from pyro_ext.diagnostics import to_arviz
from pyro_ext.inference import MCMC, NUTS, SGHMC, PosteriorBootstrap
from pyro_ext.random_measures import CompletelyRandomMeasure, GeneralizedGammaProcess

# %% [markdown]
# ## The data
# How often each word occurs in a collection of texts, and how often it does where only one word in
# a hundred is read. Those that are not met there are what is to be told.

# %%
ONE_IN = 100.0


def read_some() -> tuple[Tensor, int]:
    """Counts of the words in a random part of the texts, and the number of words in all of them."""
    sizes, numbers = load_frequencies("stemmed_words").table.unbind(-1)
    counts = sizes.repeat_interleave(numbers).double()
    generator = torch.Generator().manual_seed(0)  # the data are the same whatever the run's seed
    read = torch.binomial(counts, torch.full_like(counts, 1.0 / ONE_IN), generator=generator)
    return read[read > 0], len(counts)


# %% [markdown]
# ## The model
# The rates of all words are the weights of a random measure, infinitely many, of which most are
# tiny. A word with the rate $w$ occurs $k$ times with the probability $e^{-w} w^k / k!$, so that
# words that occur $k$ times are as many as the integral of this over the measure, which is
# `log_kappa`. Those that occur at all are `laplace_exponent`. That is all a distribution needs.


# %%
class Occurrences(dist.TorchDistribution):
    """Counts of kinds that occur at all, where rates are weights of a random measure."""

    arg_constraints: dict[str, Any] = {}
    support = constraints.positive_integer

    def __init__(self, measure: CompletelyRandomMeasure) -> None:
        self.measure = measure
        super().__init__(measure.batch_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log probability of counts."""
        met = self.measure.laplace_exponent(1.0).log()
        return self.measure.log_kappa(value, 1.0) - (value + 1.0).lgamma() - met


# %% [markdown]
# The discount sets how many words are rare, the tilt cuts frequent ones off. Read on, and the
# number of different words grows like the Laplace exponent. The plate takes a minibatch where
# `size` is given; nothing else is needed for stochastic gradients.


# %%
def model(counts: Tensor, size: int | None = None) -> None:
    """Words by a generalized gamma process."""
    one = counts.new_ones(())
    discount = pyro.sample("discount", dist.Beta(one, one))
    tilt = pyro.sample("tilt", dist.Exponential(one))
    measure = GeneralizedGammaProcess(one, discount, tilt)
    with pyro.plate("words", len(counts), subsample_size=size) as index:
        pyro.sample("count", Occurrences(measure), obs=counts[index])
    growth = measure.laplace_exponent(ONE_IN) / measure.laplace_exponent(1.0)
    pyro.deterministic("vocabulary", len(counts) * growth)


# %% [markdown]
# ## Three kinds of inference
# NUTS looks at all words in each step, and learns how the two parameters are correlated. SGHMC
# looks at 256 of them; a mode of the posterior gives it its scales and takes most of the noise out
# of its gradients. The bootstrap trusts the model less: each draw is the best fit to words with
# random weights. Its draws are independent, and are cut into four chains for the table to have the
# same columns.


# %%
def infer(counts: Tensor, num_samples: int, seed: int) -> dict[str, Any]:
    """The posterior by each method, in ArviZ's data structure."""
    nuts = MCMC(NUTS(model), num_samples, num_chains=4, seed=seed)
    sghmc = MCMC(
        SGHMC(model, mass="laplace", control_variate="map"),
        num_samples,
        num_chains=4,
        thinning=20,
        seed=seed,
    )
    bootstrap = PosteriorBootstrap(model, 2 * num_samples, seed=seed)
    fits = to_arviz(bootstrap.run(counts), log_likelihood=False)["posterior"]
    number = fits.sizes["draw"] // 4
    draws = {
        name: torch.tensor(fits[name].values[0, : 4 * number]).reshape(4, number)
        for name in fits.data_vars
    }
    return {
        "NUTS": to_arviz(nuts.run(counts), log_likelihood=False),
        "SGHMC": to_arviz(sghmc.run(counts, size=256), log_likelihood=False),
        "bootstrap": to_arviz(draws, group_by_chain=True),
    }


# %% [markdown]
# ## A table and a picture
# The largest R-hat over all rows tells whether the chains agree. Whether the methods do is seen in
# their means and standard deviations.


# %%
def tabulate(posteriors: dict[str, Any]) -> Any:
    """ArviZ's summary of each parameter by each method, as a data frame."""
    import arviz
    import pandas

    rows = {name: arviz.summary(one, round_to=3) for name, one in posteriors.items()}
    return pandas.concat(rows).swaplevel().sort_index()


def draw(posteriors: dict[str, Any], truth: int, path: Path) -> None:
    """Posterior densities by each method."""
    import matplotlib
    from matplotlib import pyplot

    matplotlib.use("Agg")
    figure, panels = pyplot.subplots(1, 3, figsize=(12, 3.6), layout="constrained")
    for axes, site in zip(panels, ("discount", "tilt", "vocabulary"), strict=True):
        for name, one in posteriors.items():
            values = one["posterior"][site].values.ravel()
            axes.hist(values, 40, density=True, histtype="step", linewidth=1.5, label=name)
        axes.set(xlabel=site, yticks=[])
        axes.spines[["top", "left", "right"]].set_visible(False)
    axes.axvline(truth, color="black", linestyle="--", label="truth")
    axes.set(xlabel="different words in all of the texts")
    axes.legend(frameon=False)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


# %% [markdown]
# ## All of it


# %%
def run(output: Path, num_samples: int = 1000, seed: int = 0) -> Any:
    """Run the demonstration.

    :param Path output: folder for the posteriors and the picture; made if it is missing.
    :param int num_samples: draws of each chain of NUTS and SGHMC; the bootstrap has half as many.
    :param int seed: seed of all randomness.
    :returns: the table, a data frame with a row for each parameter and method.
    """
    console = Console(highlight=False, soft_wrap=True)

    start = time.perf_counter()
    output.mkdir(parents=True, exist_ok=True)
    counts, truth = read_some()
    console.print(
        f"[bold]How many different words are there?[/] One word in {ONE_IN:g} is read, "
        f"{counts.sum():,.0f} in all, {len(counts):,} different ones."
    )
    posteriors = infer(counts, num_samples, seed)
    table = tabulate(posteriors)
    console.print(table.to_string())
    console.print(f"In truth all of the texts have {truth:,} different words.")
    paths = []
    for name, one in posteriors.items():
        paths.append(output / f"{name.lower()}.nc")
        one.to_netcdf(str(paths[-1]))
    paths.append(output / "posteriors.png")
    draw(posteriors, truth, paths[-1])
    console.print("saved " + ", ".join(str(path) for path in paths))
    console.print(f"{time.perf_counter() - start:.0f} s")
    return table
