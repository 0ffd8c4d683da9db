r"""Make a file that :func:`~pyro_ext.models.ensembles.load_reference_posterior` reads.

``python -m tools.make_reference_posterior wine`` makes it again, from its seed; ``--help`` lists
what can be changed. Chains run one after the other, on one processor.
"""

import argparse
import math
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from pyro.infer import HMC
from pyro.infer import MCMC as PyroMCMC
from pyro.infer.autoguide.initialization import init_to_sample
from torch import Tensor

from pyro_ext import datasets
from pyro_ext._lib import checks
from pyro_ext.checkpoint.files import write_tensors
from pyro_ext.diagnostics.function_space import fractions_below, predictive_ess, predictive_rhat
from pyro_ext.diagnostics.metrics import nll
from pyro_ext.models.ensembles.reference_posterior import (
    NAMES,
    ReferencePosterior,
    classifier,
    load_reference_posterior,
    path_of,
)
from pyro_ext.nn import BayesianClassifier
from pyro_ext.potential import Backend, Potential
from pyro_ext.potential.potential import energy

__all__ = ["make_reference_posterior"]

_HIDDEN_FEATURES = (8,)
_PRIOR_SCALE = 0.5
_FIRST_STEP_SIZE = 0.01
_POINTS_PER_CALL = 40
_FLAT = "flat"


def make_reference_posterior(
    name: str,
    folder: str | Path | None = None,
    *,
    num_chains: int = 6,
    num_draws: int = 2500,
    warmup_steps: int = 500,
    seed: int = 0,
    backend: Backend = "compile",
    progress: bool = False,
) -> ReferencePosterior:
    """Run HMC on all of the data and write what it predicts.

    :param str name: of the data set.
    :param folder: where to write; by default the folder of the package.
    :param int num_chains: number of chains, at least two.
    :param int num_draws: draws of each, at least four.
    :param int warmup_steps: draws before, which adapt the step size.
    :param int seed: of starts and momenta.
    :param str backend: of the :class:`~pyro_ext.potential.Potential`.
    :param bool progress: whether to print a line after each chain.
    :returns: what was written.
    :raises ValueError: for a name or number out of range.
    """
    path = path_of(name, folder)
    for argument, value, least in (
        ("num_chains", num_chains, 2),
        ("num_draws", num_draws, 4),
        ("warmup_steps", warmup_steps, 1),
        ("seed", seed, 0),
    ):
        checks.integer(argument, value, least)
    data = datasets.load(name, dtype=torch.float64)
    model = classifier(name, _HIDDEN_FEATURES, _PRIOR_SCALE, None).double()
    potential = Potential(model, data.train_inputs, data.train_targets, backend=backend)
    starts = potential.layout.flatten(potential.init(num_chains, seed, init_to_sample))
    trajectory_length = 0.5 * math.pi * _PRIOR_SCALE
    chains, acceptance, num_divergences = [], 0.0, 0
    for chain, start in enumerate(starts):
        begin = time.process_time()
        seeds = np.random.SeedSequence(seed, spawn_key=(chain,)).generate_state(1)
        with torch.random.fork_rng():
            torch.manual_seed(int(seeds[0]))
            mcmc = _run_chain(potential, start, trajectory_length, num_draws, warmup_steps)
        chains.append(mcmc.get_samples()[_FLAT])
        found = mcmc.diagnostics()
        accepted = found["acceptance rate"]["chain 0"]
        acceptance += accepted / num_chains
        num_divergences += len(found["divergences"]["chain 0"])
        if progress:
            print(
                f"chain {chain + 1} of {num_chains}: step size {mcmc.kernel.step_size:.4f}, "
                f"accepted {accepted:.3f}, {time.process_time() - begin:.0f} s of CPU time",
                flush=True,
            )
    samples = potential.layout.unflatten(torch.stack(chains))
    tensors = _predict(model, samples, data.test_inputs)
    mean = tensors["chain_probabilities"].double().mean(0)
    content = {
        "name": name,
        "hidden_features": list(_HIDDEN_FEATURES),
        "prior_scale": _PRIOR_SCALE,
        "num_draws": num_draws,
        "warmup_steps": warmup_steps,
        "trajectory_length": trajectory_length,
        "acceptance_rate": acceptance,
        "num_divergences": num_divergences,
        "seed": seed,
        "nll": nll(mean, data.test_targets),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    write_tensors(path, tensors, content)
    return load_reference_posterior(name, folder)


def _run_chain(
    potential: Potential, start: Tensor, trajectory_length: float, num_draws: int, warmup_steps: int
) -> PyroMCMC:
    """Run a chain of HMC on the flat vector."""
    kernel = HMC(
        potential_fn=lambda values: energy(values[_FLAT], potential),
        step_size=_FIRST_STEP_SIZE,
        trajectory_length=trajectory_length,
        adapt_mass_matrix=False,
    )
    mcmc = PyroMCMC(
        kernel,
        num_draws,
        warmup_steps=warmup_steps,
        initial_params={_FLAT: start},
        disable_progbar=True,
    )
    mcmc.run()
    return mcmc


def _predict(
    model: BayesianClassifier, samples: Mapping[str, Tensor], inputs: Tensor
) -> dict[str, Tensor]:
    """Means of each chain and diagnostics, some test inputs at a time."""
    means, r_hats, sizes = [], [], []
    for some in inputs.split(_POINTS_PER_CALL):
        probabilities = model.probabilities(samples, some)
        means.append(probabilities.mean(1))
        r_hats.append(predictive_rhat(probabilities).amax(-1))
        sizes.append(predictive_ess(probabilities).amin(-1))
    return {
        "chain_probabilities": torch.cat(means, 1).float(),
        "r_hat": torch.cat(r_hats).float(),
        "ess": torch.cat(sizes).float(),
    }


def _main() -> None:
    parser = argparse.ArgumentParser(description="Make the file of a reference posterior.")
    parser.add_argument("name", choices=NAMES)
    parser.add_argument("--folder", help="where to write; by default the folder of the package")
    for option, default in (
        ("num-chains", 6),
        ("num-draws", 2500),
        ("warmup-steps", 500),
        ("seed", 0),
    ):
        parser.add_argument(f"--{option}", type=int, default=default)
    parser.add_argument("--backend", default="compile")
    begin = time.process_time()
    made = make_reference_posterior(**vars(parser.parse_args()), progress=True)
    below = ", ".join(
        f"{fraction:.4f} below {bound}" for bound, fraction in fractions_below(made.r_hat).items()
    )
    print(f"R-hat of predictions: largest {float(made.r_hat.max()):.4f}, {below}")
    print(f"effective sample size: least {made.ess.min():.0f}, median {made.ess.median():.0f}")
    print(f"NLL {made.nll:.4f}, accepted {made.acceptance_rate:.3f}")
    print(f"divergences {made.num_divergences}")
    print(f"between chains: total variation {made.chain_total_variation:.4f}")
    print(f"CPU time {time.process_time() - begin:.0f} s")


if __name__ == "__main__":
    _main()
