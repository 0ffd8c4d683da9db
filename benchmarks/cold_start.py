"""Whole processes of NUTS: ours by the shortest call, and NumPyro's, until the last draw.

Each side imports, compiles and samples four chains in a process of its own: ours in a first one,
whose cache of machine code is empty, and in a second one; NumPyro compiles in each. Seconds are CPU
time, that of compilers in child processes included, and by the clock. Posteriors are eight schools,
a regression (434 rows), an autoregression of order five (200 steps), a hierarchy of 85 groups (919
rows) and, with ``--full``, a network (digits, 985 parameters).
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from _common import OURS, Case, Options, Timings, main
from torch import Tensor

LENGTHS = {"network": (40, 7)}
"""Draws, after as many steps of warm-up, and the largest depth of trees."""
POSTERIORS = ("eight schools", "regression", "autoregression", "hierarchy")
ORDER = 5


def regression(scores: Tensor, school: Tensor, iq: Tensor) -> None:
    """Scores of children by what is known of their mothers, in the units of the data."""
    weight = pyro.sample("weight", dist.Normal(torch.zeros(3), 100.0).to_event(1))
    noise = pyro.sample("noise", dist.HalfCauchy(2.5))
    with pyro.plate("children", len(scores)):
        mean = weight[0] + weight[1] * school + weight[2] * iq
        pyro.sample("score", dist.Normal(mean, noise), obs=scores)


def autoregression(series: Tensor) -> None:
    """A series by the five values before each."""
    level = pyro.sample("level", dist.Normal(0.0, 10.0))
    weight = pyro.sample("weight", dist.Normal(torch.zeros(ORDER), 10.0).to_event(1))
    noise = pyro.sample("noise", dist.HalfCauchy(2.5))
    size = len(series)
    lagged = [weight[k] * series[ORDER - 1 - k : size - 1 - k] for k in range(ORDER)]
    with pyro.plate("steps", size - ORDER):
        pyro.sample("value", dist.Normal(level + sum(lagged), noise), obs=series[ORDER:])


def hierarchy(values: Tensor, group: Tensor, floor: Tensor) -> None:
    """Intercepts of 85 groups, not centered."""
    mean = pyro.sample("mean", dist.Normal(0.0, 5.0))
    spread = pyro.sample("spread", dist.HalfNormal(1.0))
    slope = pyro.sample("slope", dist.Normal(0.0, 5.0))
    noise = pyro.sample("noise", dist.HalfNormal(1.0))
    with pyro.plate("groups", 85):
        standard = pyro.sample("standard", dist.Normal(0.0, 1.0))
    with pyro.plate("rows", len(values)):
        center = mean + spread * standard[group] + slope * floor
        pyro.sample("value", dist.Normal(center, noise), obs=values)


def arguments(name: str) -> tuple[np.ndarray[Any, Any], ...]:
    """Data of a posterior, simulated but for eight schools and the network."""
    random = np.random.default_rng(0)
    if name == "regression":
        school, iq = random.binomial(1, 0.8, 434), random.normal(100.0, 15.0, 434)
        scores = 26.0 + 6.0 * school + 0.55 * iq + random.normal(0.0, 18.0, 434)
        return tuple(each.astype(np.float32) for each in (scores, school, iq))
    if name == "autoregression":
        series = list(random.normal(size=ORDER))
        for _ in range(200 - ORDER):
            past = sum(w * series[-1 - k] for k, w in enumerate((0.5, -0.2, 0.1, 0.0, 0.1)))
            series.append(0.3 + past + 0.2 * random.normal())
        return (np.asarray(series, dtype=np.float32),)
    if name == "hierarchy":
        group, floor = random.integers(85, size=919), random.binomial(1, 0.17, 919)
        effects = random.normal(1.5, 0.35, 85)
        values = effects[group] - 0.7 * floor + random.normal(0.0, 0.75, 919)
        return values.astype(np.float32), group, floor.astype(np.float32)
    if name == "eight schools":
        from nuts import EFFECTS, ERRORS

        return np.asarray(EFFECTS, dtype=np.float32), np.asarray(ERRORS, dtype=np.float32)
    from pyro_ext import datasets

    digits = datasets.load_digits(test_fraction=0.2)
    return digits.train_inputs.numpy(), digits.train_targets.numpy()


def run_ours(name: str) -> None:
    """Draw by the shortest call."""
    from nuts import eight_schools, whole_network

    from pyro_ext.inference import MCMC, NUTS

    models: dict[str, Callable[..., None]] = {
        "eight schools": eight_schools,
        "regression": regression,
        "autoregression": autoregression,
        "hierarchy": hierarchy,
        "network": whole_network,
    }
    number, depth = LENGTHS.get(name, (1000, 10))
    kernel = NUTS(models[name], max_tree_depth=depth)
    mcmc = MCMC(kernel, number, num_chains=4, seed=0, progress=False)
    mcmc.run(*(torch.from_numpy(each) for each in arguments(name)))


def run_numpyro(name: str) -> None:
    """Draw by NumPyro, chains together."""
    import jax.numpy as jnp
    import numpyro
    import numpyro.distributions as d
    from jax import random
    from numpyro import infer
    from nuts import numpyro_models

    def linear(scores: Any, school: Any, iq: Any) -> None:
        weight = numpyro.sample("weight", d.Normal(jnp.zeros(3), 100.0).to_event(1))
        noise = numpyro.sample("noise", d.HalfCauchy(2.5))
        with numpyro.plate("children", len(scores)):
            mean = weight[0] + weight[1] * school + weight[2] * iq
            numpyro.sample("score", d.Normal(mean, noise), obs=scores)

    def series_model(series: Any) -> None:
        level = numpyro.sample("level", d.Normal(0.0, 10.0))
        weight = numpyro.sample("weight", d.Normal(jnp.zeros(ORDER), 10.0).to_event(1))
        noise = numpyro.sample("noise", d.HalfCauchy(2.5))
        size = len(series)
        lagged = [weight[k] * series[ORDER - 1 - k : size - 1 - k] for k in range(ORDER)]
        with numpyro.plate("steps", size - ORDER):
            numpyro.sample("value", d.Normal(level + sum(lagged), noise), obs=series[ORDER:])

    def groups(values: Any, group: Any, floor: Any) -> None:
        mean = numpyro.sample("mean", d.Normal(0.0, 5.0))
        spread = numpyro.sample("spread", d.HalfNormal(1.0))
        slope = numpyro.sample("slope", d.Normal(0.0, 5.0))
        noise = numpyro.sample("noise", d.HalfNormal(1.0))
        with numpyro.plate("groups", 85):
            standard = numpyro.sample("standard", d.Normal(0.0, 1.0))
        with numpyro.plate("rows", len(values)):
            center = mean + spread * standard[group] + slope * floor
            numpyro.sample("value", d.Normal(center, noise), obs=values)

    models = numpyro_models()
    models |= {"regression": linear, "autoregression": series_model, "hierarchy": groups}
    number, depth = LENGTHS.get(name, (1000, 10))
    kernel = infer.NUTS(models[name], max_tree_depth=depth)
    options = {"num_chains": 4, "chain_method": "vectorized", "progress_bar": False}
    mcmc = infer.MCMC(kernel, num_warmup=number, num_samples=number, **options)
    mcmc.run(random.PRNGKey(0), *(jnp.asarray(each) for each in arguments(name)))
    for value in mcmc.get_samples().values():
        value.block_until_ready()


def report() -> None:
    """Print the CPU seconds of this process and of its children."""
    print(json.dumps(sum(os.times()[:4])))


def measured(side: str, name: str, cache: str) -> tuple[float, float]:
    """CPU seconds and seconds by the clock of a process."""
    code = f"import cold_start; cold_start.run_{side}({name!r}); cold_start.report()"
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "OMP_NUM_THREADS": "1"}
    environment |= {"XDG_CACHE_HOME": cache, "TORCHINDUCTOR_CACHE_DIR": f"{cache}/torch"}
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        cwd=Path(__file__).parent,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    seconds = time.perf_counter() - start
    if done.returncode:
        raise RuntimeError(done.stderr.strip().rpartition("\n")[2])
    return float(done.stdout.strip().rpartition("\n")[2]), seconds


def cases(options: Options) -> Iterator[Case]:
    """Each posterior in a first and in a second process."""
    names = (*POSTERIORS, "network") if options.full else POSTERIORS
    for name in names[:1] if options.smoke else names:
        rounds: dict[str, list[tuple[float, float]]] = {"first": [], "second": [], "numpyro": []}
        missing = {}
        for _ in range(options.rounds):
            with tempfile.TemporaryDirectory() as cache:
                for which in ("first", "second"):
                    rounds[which].append(measured("ours", name, cache))
                try:
                    rounds["numpyro"].append(measured("numpyro", name, cache))
                except RuntimeError as error:
                    missing["NumPyro"] = str(error)[:200]
        for which in ("first", "second"):
            for index, words in enumerate(("", ", by the clock")):
                sides = {OURS: [pair[index] for pair in rounds[which]]}
                if not missing:
                    sides["NumPyro"] = [pair[index] for pair in rounds["numpyro"]]
                yield Case(f"{name}, {which} process{words}", Timings(sides, missing))


if __name__ == "__main__":
    main(cases, "s", rounds=3, packages=("numpyro", "jax"))
