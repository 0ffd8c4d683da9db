"""CPU time of NUTS: ours, compiled, against that of Pyro and NumPyro, by effective draw.

Logistic regression (breast cancer, 31 parameters), eight schools (not centered, 10) and a network
(digits, 985 parameters), with 4 chains, or with ``--full`` with 1, 4 and 16. All take as many steps
a chain. Pyro's runs one chain after the other: of the first two posteriors one, since more take as
often as long; of that of the network four, since one alone does not show that it has many modes.
Warm-up counts; a first call, compilation above all, does not, and stands beside. An effective draw
is one of the worst coordinate. With ``--full`` the time of a gradient stands beside: that of a run
after the warm-up, over the gradients that its trajectories are made of.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import arviz
import numpy as np
import pyro
import torch
from _cold_data import WIDTH, arguments
from _cold_ours import eight_schools
from _common import OURS, Array, Case, Options, available, first_call_seconds, in_turn, main
from _libraries import jax_on
from _problems import network, whole_logistic_regression
from torch import Tensor

from pyro_ext import datasets
from pyro_ext.inference import MCMC, NUTS


def whole_network(inputs: Tensor, labels: Tensor) -> None:
    """A network of 985 parameters on all of the data."""
    network(inputs, labels, WIDTH, len(inputs))


def numpyro_models() -> dict[str, Callable[..., None]]:
    """The same models in NumPyro's words."""
    import jax.numpy as jnp
    import numpyro
    import numpyro.distributions as d
    from _cold_numpyro import layers, schools

    def logistic(inputs: Any, labels: Any) -> None:
        weight = numpyro.sample("weight", d.Normal(jnp.zeros(30), 1.0).to_event(1))
        bias = numpyro.sample("bias", d.Normal(0.0, 1.0))
        with numpyro.plate("rows", len(inputs)):
            numpyro.sample("label", d.Bernoulli(logits=inputs @ weight + bias), obs=labels)

    return {"logistic regression": logistic, "eight schools": schools, "network": layers}


@dataclass(frozen=True)
class Problem:
    """A posterior, and how long it is sampled.

    :param model: the Pyro model.
    :param tuple arguments: its arguments.
    :param int num_samples: draws a chain, after as many steps of warm-up.
    :param int pyro_chains: of Pyro's NUTS.
    :param int max_tree_depth: of all sides.
    """

    model: Callable[..., None]
    arguments: tuple[Tensor, ...]
    num_samples: int
    pyro_chains: int
    max_tree_depth: int = 10


class Side:
    """Runs of one sampler, and what the last one was worth.

    :param Callable sample: takes a seed, and gives draws by chain after a whole run.
    :param Callable gradients: gives seconds and gradients of a run after the warm-up.
    :param Options options: how time is taken.
    """

    def __init__(
        self,
        sample: Callable[[int], dict[str, Array]],
        gradients: Callable[[], tuple[float, float]],
        options: Options,
    ) -> None:
        self._sample = sample
        self._gradients = gradients
        self._options = options
        self._seed = 0
        self._size = np.nan
        self.first_call = first_call_seconds(partial(sample, 0))

    def __call__(self) -> float:
        """Milliseconds of an effective draw in one more run."""
        self._seed += 1
        draws: dict[str, Array] = {}
        seconds = self._options.seconds(lambda: draws.update(self._sample(self._seed)))
        sizes = arviz.ess(arviz.convert_to_dataset(draws))
        self._size = min(float(sizes[name].min()) for name in draws)
        return 1e3 * seconds / self._size

    def quality(self) -> dict[str, float]:
        """The effective draws of the last run, and microseconds of a gradient."""
        sizes = {"effective_draws_min": self._size}
        if not self._options.full:
            return sizes
        seconds, number = self._gradients()
        return {"us_per_gradient": 1e6 * seconds / number, **sizes}


def ours(problem: Problem, num_chains: int, options: Options) -> Side:
    """Our NUTS, compiled."""
    kernel = NUTS(problem.model, max_tree_depth=problem.max_tree_depth, backend="compile")

    def run(seed: int) -> dict[str, Array]:
        number = problem.num_samples
        mcmc = MCMC(kernel, number, number, num_chains, seed=seed, progress=False)
        draws = mcmc.run(*problem.arguments).get_samples(group_by_chain=True)
        return {name: value.numpy(force=True) for name, value in draws.items()}

    def gradients() -> tuple[float, float]:
        kernel.setup(problem.num_samples, *problem.arguments)
        chains = kernel.advance(kernel.begin(range(num_chains), 0), problem.num_samples)
        taken = int(chains.state.num_leapfrogs.sum())
        found = []
        seconds = options.seconds(lambda: found.append(kernel.advance(chains, 2 * chains.step)))
        return seconds, float(found[0].state.num_leapfrogs.sum()) - taken

    return Side(run, gradients, options)


def pyros(problem: Problem, options: Options) -> Side:
    """Pyro's NUTS, one chain after the other."""
    counted: list[int] = []

    def run(seed: int) -> dict[str, Array]:
        pyro.set_rng_seed(seed)
        chains = []
        for _ in range(problem.pyro_chains):
            kernel = pyro.infer.NUTS(problem.model, max_tree_depth=problem.max_tree_depth)
            number = problem.num_samples
            mcmc = pyro.infer.MCMC(kernel, number, number, disable_progbar=True)
            mcmc.run(*problem.arguments)
            chains.append(mcmc.get_samples())
        return {
            name: np.stack([draws[name].numpy(force=True) for draws in chains])
            for name in chains[0]
        }

    def gradients() -> tuple[float, float]:
        from pyro.infer.mcmc import nuts

        original = nuts.velocity_verlet

        def counting(*args: Any, **kwargs: Any) -> Any:
            counted.append(1)
            return original(*args, **kwargs)

        nuts.velocity_verlet = counting
        try:
            seconds = options.seconds(partial(run, 0))
        finally:
            nuts.velocity_verlet = original
        return seconds, float(len(counted))

    return Side(run, gradients, options)


def numpyros(name: str, problem: Problem, num_chains: int, options: Options) -> Side:
    """NumPyro's NUTS, chains together."""
    from jax import random
    from numpyro import infer

    jnp = jax_on(options.device).numpy
    kernel = infer.NUTS(numpyro_models()[name], max_tree_depth=problem.max_tree_depth)
    number = problem.num_samples
    mcmc = infer.MCMC(
        kernel,
        num_warmup=number,
        num_samples=number,
        num_chains=num_chains,
        chain_method="vectorized",
        progress_bar=False,
    )
    data = tuple(jnp.asarray(value.numpy(force=True)) for value in problem.arguments)
    fields = ("num_steps",)

    def run(seed: int) -> dict[str, Array]:
        mcmc.post_warmup_state = None
        mcmc.run(random.PRNGKey(seed), *data, extra_fields=fields)
        return {k: np.asarray(v) for k, v in mcmc.get_samples(group_by_chain=True).items()}

    def gradients() -> tuple[float, float]:
        counted = []

        def whole() -> None:
            # Warm-up and draws as two runs, of which NumPyro compiles each once.
            mcmc.post_warmup_state = None
            mcmc.warmup(random.PRNGKey(0), *data, extra_fields=fields, collect_warmup=True)
            counted.append(float(np.asarray(mcmc.get_extra_fields()["num_steps"]).sum()))
            mcmc.run(random.PRNGKey(1), *data, extra_fields=fields)
            counted.append(float(np.asarray(mcmc.get_extra_fields()["num_steps"]).sum()))

        whole()
        return options.seconds(whole), sum(counted[2:])

    return Side(run, gradients, options)


def problems(options: Options) -> dict[str, Problem]:
    """Choose what is sampled, and for how long."""
    device = options.device
    schools = tuple(torch.from_numpy(each).to(device) for each in arguments("eight schools"))
    if options.smoke:
        return {"eight schools": Problem(eight_schools, schools, 6, 1, 3)}
    cancer = datasets.load_breast_cancer()
    digits = datasets.load_digits(test_fraction=0.2)
    logistic = cancer.train_inputs.to(device), cancer.train_targets.float().to(device)
    images = digits.train_inputs.to(device), digits.train_targets.to(device)
    return {
        "logistic regression": Problem(whole_logistic_regression, logistic, 500, 1),
        "eight schools": Problem(eight_schools, schools, 1000, 1),
        "network": Problem(whole_network, images, 40, 4, 7),
    }


def cases(options: Options) -> Iterator[Case]:
    """Each problem with each number of chains."""
    for name, problem in problems(options).items():
        for num_chains in (1, 4, 16) if options.full else (4,):
            sides, missing = available(
                {
                    OURS: partial(ours, problem, num_chains, options),
                    "NumPyro": partial(numpyros, name, problem, num_chains, options),
                    "Pyro": partial(pyros, problem, options),
                }
            )
            timings = in_turn(sides, options.rounds, missing)
            yield Case(
                f"NUTS, {name}, {num_chains} chains",
                timings,
                {side: sides[side].first_call for side in timings.rounds},
                {side: sides[side].quality() for side in timings.rounds},
            )


if __name__ == "__main__":
    main(
        cases,
        "ms per effective draw of the worst coordinate",
        rounds=3,
        packages=("arviz", "numpyro", "jax"),
        on_devices=True,
    )
