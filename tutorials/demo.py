"""The main job end to end: a Bayesian network on digits, sampled, diagnosed, saved and drawn.

``pyro-ext demo`` runs this page. A small network is an ordinary Pyro model with a subsampled plate;
cyclical SGHMC runs over eight chains at once; ArviZ tells whether the chains agree on what the
network predicts, and the average of its draws is compared with the network at a posterior mode.
"""

# %%
import math
import time
import warnings
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from pyro_ext import datasets
from pyro_ext.diagnostics import metrics, to_arviz
from pyro_ext.diagnostics.plots import plot_reliability
from pyro_ext.inference import MCMC, SGHMC, CyclicalSchedule
from pyro_ext.posterior import ConvergenceWarning

# %% [markdown]
# ## The model
# Two hidden layers with normal priors. The plate takes a minibatch; nothing else is needed for
# stochastic gradients, and the same model works with SVI.

# %%
WIDTHS = (64, 32, 32, 10)
PRIOR_VARIANCE = 0.05
WARMUP_CYCLES = 10


def logits(weights: dict[str, Tensor], inputs: Tensor) -> Tensor:
    """Outputs of the network; weights may have leading dimensions of draws."""
    hidden = inputs
    for layer in range(len(WIDTHS) - 1):
        hidden = hidden @ weights[f"weight{layer}"] + weights[f"bias{layer}"].unsqueeze(-2)
        if layer < len(WIDTHS) - 2:
            hidden = torch.nn.functional.silu(hidden)
    return hidden


def model(inputs: Tensor, labels: Tensor, batch_size: int = 64) -> None:
    """Bayesian network for classification."""
    scale = math.sqrt(PRIOR_VARIANCE)
    weights = {}
    for layer, shape in enumerate(zip(WIDTHS[:-1], WIDTHS[1:], strict=True)):
        for name, event in ((f"weight{layer}", shape), (f"bias{layer}", shape[1:])):
            prior = dist.Normal(inputs.new_zeros(event), scale).to_event(len(event))
            weights[name] = pyro.sample(name, prior)
    with pyro.plate("images", len(inputs), subsample_size=batch_size) as batch:
        outputs = logits(weights, inputs[batch])
        pyro.sample("label", dist.Categorical(logits=outputs), obs=labels[batch])


# %% [markdown]
# ## Sampling
# Each cycle starts with a large step size, to leave the mode it is at, and keeps the draw at its
# end.


# %%
def sample_posterior(
    data: datasets.Dataset, num_chains: int, num_draws: int, cycle_length: int, seed: int
) -> MCMC:
    """Run cyclical SGHMC with one draw a cycle, after some cycles of warm-up."""
    num_cycles = num_draws + WARMUP_CYCLES
    schedule = CyclicalSchedule(6e-3, num_cycles, num_cycles * cycle_length)
    kernel = SGHMC(model, step_size=schedule, friction=100.0, backend="compile")
    mcmc = MCMC(
        kernel,
        num_samples=num_draws,
        warmup_steps=WARMUP_CYCLES * cycle_length,
        num_chains=num_chains,
        thinning=cycle_length,
        seed=seed,
    )
    with warnings.catch_warnings():
        # Weights differ between chains, as the next section says, and predictions are looked at.
        warnings.simplefilter("ignore", ConvergenceWarning)
        return mcmc.run(data.train_inputs, data.train_targets)


def find_mode(data: datasets.Dataset, num_steps: int, seed: int) -> Tensor:
    """Test probabilities at a posterior mode: the same kernel at temperature zero."""
    schedule = CyclicalSchedule(6e-3, 1, num_steps)
    kernel = SGHMC(model, step_size=schedule, friction=100.0, temperature=0.0)
    mcmc = MCMC(kernel, num_samples=1, warmup_steps=num_steps - 1, seed=seed)
    weights = mcmc.run(data.train_inputs, data.train_targets).get_samples()
    return logits(weights, data.test_inputs).softmax(-1)


# %% [markdown]
# ## Diagnosis
# Weights of a network are not identified: many settings of them are the same function. What should
# agree between chains is what the network predicts.


# %%
def predictive_quantities(probabilities: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Functions of the prediction, one number for each chain and draw."""
    num_chains, num_draws = probabilities.shape[:2]
    truth = probabilities.gather(-1, labels.expand(num_chains, num_draws, -1)[..., None])[..., 0]
    doubtful = truth.mean((0, 1)).sub(0.5).abs().argsort()[:3]
    quantities = {
        "test_nll": -truth.log().mean(-1),
        "confidence": probabilities.amax(-1).mean(-1),
        "entropy": torch.special.entr(probabilities).sum(-1).mean(-1),
    }
    for number in doubtful.tolist():
        quantities[f"p_label_of_image_{number}"] = truth[..., number]
    return quantities


def score(probabilities: Tensor, labels: Tensor) -> list[str]:
    """Accuracy, NLL and ECE as a row of a table."""
    return [
        f"{metrics.accuracy(probabilities, labels):.3f}",
        f"{metrics.nll(probabilities, labels):.3f}",
        f"{metrics.ece(probabilities, labels):.3f}",
    ]


def save_plots(quantities: Any, probabilities: Tensor, labels: Tensor, output: Path) -> list[Path]:
    """Trace, rank and reliability plots."""
    import arviz
    import matplotlib
    from matplotlib import pyplot

    matplotlib.use("Agg")
    paths = []
    for name in ("trace", "rank"):
        with warnings.catch_warnings():
            # ArviZ's own plots warn of its dependencies' changes.
            warnings.simplefilter("ignore")
            drawn = getattr(arviz, f"plot_{name}")(quantities)
        paths.append(output / f"{name}.png")
        if hasattr(drawn, "savefig"):  # a plot collection of ArviZ 1
            drawn.savefig(paths[-1])
        else:
            figure = drawn.ravel()[0].figure
            figure.tight_layout()
            figure.savefig(paths[-1], dpi=100)
            pyplot.close(figure)
    figure, axes = pyplot.subplots(figsize=(5, 5), layout="constrained")
    plot_reliability(probabilities, labels, ax=axes)
    paths.append(output / "reliability.png")
    figure.savefig(paths[-1], dpi=120)
    pyplot.close(figure)
    return paths


# %% [markdown]
# ## All of it


# %%
def run(
    output: Path,
    num_chains: int = 8,
    num_draws: int = 50,
    cycle_length: int = 200,
    seed: int = 0,
) -> dict[str, float]:
    """Run the demonstration.

    :param Path output: folder for the posterior and the plots; made if it is missing.
    :param int num_chains: number of chains.
    :param int num_draws: draws of each chain, one a cycle.
    :param int cycle_length: steps in a cycle.
    :param int seed: seed of all randomness.
    :returns: NLL and ECE on the test images of the posterior and of the mode.
    """
    import arviz

    console = Console()
    start = time.perf_counter()
    output.mkdir(parents=True, exist_ok=True)
    data = datasets.load_digits()
    console.print(
        f"[bold]Digits[/]: {len(data.train_inputs)} training and {len(data.test_inputs)} test "
        f"images; network {'-'.join(map(str, WIDTHS))}; cyclical SGHMC over {num_chains} chains"
    )
    mcmc = sample_posterior(data, num_chains, num_draws, cycle_length, seed)
    posterior = to_arviz(mcmc, log_likelihood=False)
    saved = output / "posterior.nc"
    posterior.to_netcdf(str(saved))

    with torch.no_grad():
        weights = mcmc.get_samples(group_by_chain=True)
        by_chain = logits(weights, data.test_inputs).softmax(-1)
    probabilities = by_chain.flatten(0, 1)
    quantities = to_arviz(predictive_quantities(by_chain, data.test_targets), group_by_chain=True)
    console.print("\n[bold]Do the chains agree on what the network predicts?[/]")
    console.print(
        arviz.summary(quantities, round_to=3).to_string(), highlight=False, soft_wrap=True
    )

    mode = find_mode(data, num_draws * cycle_length // 3, seed)
    table = Table("on the test images", "accuracy", "NLL", "ECE")
    table.add_row("one network at a posterior mode", *score(mode, data.test_targets))
    table.add_row(
        f"average of {len(probabilities)} draws", *score(probabilities, data.test_targets)
    )
    console.print(table)
    paths = [saved, *save_plots(quantities, probabilities, data.test_targets, output)]
    console.print("saved " + ", ".join(str(path) for path in paths))
    console.print(f"{time.perf_counter() - start:.0f} s")
    return {
        "posterior_nll": metrics.nll(probabilities, data.test_targets),
        "mode_nll": metrics.nll(mode, data.test_targets),
        "posterior_ece": metrics.ece(probabilities, data.test_targets),
        "mode_ece": metrics.ece(mode, data.test_targets),
    }
