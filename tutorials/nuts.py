"""NUTS on three models that users ask for, beside Pyro's: schools, seeds, and the Nile."""

# %% [markdown]
# # NUTS
#
# `NUTS` needs no step size, no minibatches and no tuning: give it a model that sees all of its
# data, and its draws are nearly independent. Ours runs chains side by side, and no chain waits for
# a longer trajectory of another. Long runs are compiled to machine code. This page runs it on three
# models and compares its draws with those of Pyro's NUTS.
#
# `python tutorials/nuts.py` prints the numbers and saves the figures in `figures/nuts`.

# %%
import time
from collections.abc import Callable

import arviz as az
import matplotlib.pyplot as plt
import pyro
import pyro.distributions as dist
import torch
from pyro.ops.stats import effective_sample_size, split_gelman_rubin
from torch import Tensor

from pyro_ext.diagnostics import to_arviz
from pyro_ext.inference import MCMC, NUTS
from pyro_ext.reproduction import Page

page = Page("nuts")
torch.set_default_dtype(torch.float64)

# %% [markdown]
# ## Eight schools
#
# How much does coaching for a test help, in eight schools? Each estimate has a known standard
# error, and the effects have a common mean. Their spread may be near zero, where the effects move
# together: a funnel. There is none if effects are written in units of the spread.


# %%
def eight_schools(estimates: Tensor, errors: Tensor) -> None:
    """Effects around a common mean, in units of their spread."""
    mean = pyro.sample("mean", dist.Normal(0.0, 5.0))
    spread = pyro.sample("spread", dist.HalfCauchy(5.0))
    with pyro.plate("schools", len(estimates)):
        standard = pyro.sample("standard", dist.Normal(0.0, 1.0))
        effect = pyro.deterministic("effect", mean + spread * standard)
        pyro.sample("estimate", dist.Normal(effect, errors), obs=estimates)


estimates = torch.tensor([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
errors = torch.tensor([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])


# %% [markdown]
# ## Seeds
#
# How many of the seeds on each of 21 plates germinate? There are two kinds of seed, two kinds of
# root extract, an interaction, and an effect of each plate: a generalized linear mixed model
# (M. J. Crowder, 1978, Beta-binomial anova for proportions).


# %%
def germination(bean: Tensor, cucumber: Tensor, number: Tensor, germinated: Tensor) -> None:
    """A logistic regression with effects of plates."""
    coefficients = pyro.sample("coefficients", dist.Normal(torch.zeros(4), 3.0).to_event(1))
    spread = pyro.sample("spread", dist.HalfNormal(1.0))
    columns = torch.stack([torch.ones_like(bean), bean, cucumber, bean * cucumber], -1)
    with pyro.plate("plates", len(number)):
        own = pyro.sample("own", dist.Normal(0.0, 1.0))
        logits = columns @ coefficients + spread * own
        pyro.sample("germinated", dist.Binomial(number, logits=logits), obs=germinated)


germinated = torch.tensor(
    [10.0, 23, 23, 26, 17, 5, 53, 55, 32, 46, 10, 8, 10, 8, 23, 0, 3, 22, 15, 32, 3]
)
number = torch.tensor(
    [39.0, 62, 81, 51, 39, 6, 74, 72, 51, 79, 13, 16, 30, 28, 45, 4, 12, 41, 30, 51, 7]
)
bean = torch.tensor([0.0] * 11 + [1.0] * 10)
cucumber = torch.tensor([0.0] * 5 + [1.0] * 6 + [0.0] * 5 + [1.0] * 5)

# %% [markdown]
# ## The Nile
#
# A hundred years of the river's flow at Aswan, as a Gaussian process: how fast does it change, by
# how much, and how large is the noise of a single year?


# %%
def river(year: Tensor, flow: Tensor) -> None:
    """A Gaussian process with an exponential kernel of unknown length, and noise."""
    length = pyro.sample("length", dist.InverseGamma(2.0, 20.0))
    scale = pyro.sample("scale", dist.HalfNormal(1.0))
    noise = pyro.sample("noise", dist.HalfNormal(1.0))
    distance = (year[:, None] - year).abs()
    covariance = scale**2 * torch.exp(-distance / length) + noise**2 * torch.eye(len(year))
    factor = torch.linalg.cholesky(covariance)
    fn = dist.MultivariateNormal(torch.zeros(len(year)), scale_tril=factor)
    pyro.sample("flow", fn, obs=flow)


flow = torch.tensor(
    [1120.0, 1160, 963, 1210, 1160, 1160, 813, 1230, 1370, 1140, 995, 935, 1110, 994, 1020, 960]
    + [1180, 799, 958, 1140, 1100, 1210, 1150, 1250, 1260, 1220, 1030, 1100, 774, 840, 874, 694]
    + [940, 833, 701, 916, 692, 1020, 1050, 969, 831, 726, 456, 824, 702, 1120, 1100, 832, 764]
    + [821, 768, 845, 864, 862, 698, 845, 744, 796, 1040, 759, 781, 865, 845, 944, 984, 897, 822]
    + [1010, 771, 676, 649, 846, 812, 742, 801, 1040, 860, 874, 848, 890, 744, 749, 838, 1050]
    + [918, 986, 797, 923, 975, 815, 1020, 906, 901, 1170, 912, 746, 919, 718, 714, 740]
)
year = torch.arange(1871.0, 1971.0)
standardized = (flow - flow.mean()) / flow.std()

# %% [markdown]
# ## Draws of both
#
# The shortest call of ours, with its warm-up of 400 steps, which is enough since masses are
# estimated from gradients, too. Its seconds include compiling, which a later process does not
# repeat. Pyro's NUTS runs one chain after the other, so it gets one chain.

# %%
MODELS: dict[str, tuple[Callable[..., None], tuple[Tensor, ...], tuple[str, ...]]] = {
    "eight schools": (eight_schools, (estimates, errors), ("mean", "spread")),
    "seeds": (germination, (bean, cucumber, number, germinated), ("coefficients", "spread")),
    "Nile": (river, (year, standardized), ("length", "scale", "noise")),
}
num_samples, theirs_samples = (20, 4) if page.smoke else (1000, 300)
depth = 3 if page.smoke else 10
runs: dict[str, MCMC] = {}
largest_z = largest_r_hat = 0.0
for name, (model, data, sites) in MODELS.items():
    kernel = NUTS(model, max_tree_depth=depth)
    mcmc = MCMC(kernel, num_samples, num_chains=4, seed=0, progress=False)
    started = time.process_time()
    mcmc.run(*data)
    seconds = time.process_time() - started
    runs[name] = mcmc
    pyro.set_rng_seed(0)
    theirs = pyro.infer.MCMC(
        pyro.infer.NUTS(model, max_tree_depth=depth),
        theirs_samples,
        theirs_samples,
        disable_progbar=True,
    )
    started = time.process_time()
    theirs.run(*data)
    their_seconds = time.process_time() - started
    print(f"{name}: {seconds:.1f} CPU seconds for 4 chains; Pyro's {their_seconds:.1f} for one")
    for site in sites:
        draws = [run.get_samples(group_by_chain=True)[site] for run in (mcmc, theirs)]
        ours, own = (value.reshape(*value.shape[:2], -1) for value in draws)
        for element in range(ours.shape[2]):
            pair = (ours[..., element], own[..., element])
            means = [float(x.mean()) for x in pair]
            error = [float(x.std() / effective_sample_size(x) ** 0.5) for x in pair]
            r_hat = float(split_gelman_rubin(pair[0]))
            z = abs(means[0] - means[1]) / (error[0] ** 2 + error[1] ** 2) ** 0.5
            largest_z, largest_r_hat = max(largest_z, z), max(largest_r_hat, r_hat)
            line = f"  {site}[{element}]  {means[0]:8.3f}, Pyro's {means[1]:8.3f}"
            if not page.smoke:  # so few draws tell no errors
                line += f"; {z:.1f} standard errors apart; R-hat {r_hat:.3f}"
            print(line)

# %% [markdown]
# ## ArviZ
#
# Sample statistics have the names that ArviZ's plots look for: energies, divergences, tree depths
# and acceptance rates.

# %%
for name, mcmc in runs.items():
    data_of = to_arviz(mcmc, log_likelihood=False)
    statistics = data_of.sample_stats
    print(
        f"{name}: {int(statistics['diverging'].sum())} divergences, "
        f"{float(statistics['n_steps'].mean()):.1f} steps a draw, acceptance rate "
        f"{float(statistics['acceptance_rate'].mean()):.2f}"
    )
    az.plot_energy(data_of)
    plt.gcf().set_size_inches(6, 3)
    page.figure(f"energy-{name.lower().replace(' ', '-')}", plt.gcf())

# %% [markdown]
# ## Conclusions
#
# - Give NUTS a model that sees all of its data, and leave the rest to the warm-up. If there are
#   divergences, look for a funnel, and write effects in units of their spread.
# - Strong correlations and columns in different units do not matter: up to 50 parameters, masses
#   adapt to correlations, too.
# - Discrete sites are summed out, so mixtures and hidden Markov models run as they are.
# - `python benchmarks/nuts.py` compares its speed with Pyro's and NumPyro's.
#
# What this page claims, checked:

# %%
if not page.smoke:
    assert largest_z < 4.0, largest_z
    assert largest_r_hat < 1.02, largest_r_hat
