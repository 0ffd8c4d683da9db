"""Time of a step of a Pyro model: compiled here against eager Pyro, at 1, 16 and 64 chains.

Both sides take SGLD steps of the same Bayesian network (digits, 64-64-10) with minibatches of 64,
in turn, in one process and on one thread. Eager Pyro is what a user writes by hand: a trace of the
conditioned model, its ``log_prob_sum``, autograd, and the update, with Pyro's validation as it is
by default; chains one after the other, since Pyro has no other way. Prints one line of JSON.
"""

from dataclasses import replace
from functools import partial

import pyro
import torch
from _common import OURS, Array, Case, arguments, report, single_thread, step_times
from _comparison import our_chains
from _problems import PROBLEMS, network, network_shapes, start

from pyro_ext import datasets

NETWORK = replace(
    PROBLEMS["network"],
    model=partial(network, width=64, subsample_size=64),
    load=datasets.load_digits,
    shapes=network_shapes(64),
    step_size=1e-6,
)


class EagerPyro:
    """Chains of a Pyro model without any compiler.

    :param int num_chains: number of chains.
    """

    def __init__(self, num_chains: int) -> None:
        self._arguments = NETWORK.arguments
        values = {name: torch.from_numpy(v) for name, v in start(NETWORK, num_chains).items()}
        self._params = [
            {name: value[chain].clone().requires_grad_() for name, value in values.items()}
            for chain in range(num_chains)
        ]

    def advance(self, num_steps: int) -> None:
        """Take steps."""
        for _ in range(num_steps):
            for params in self._params:
                self._step(params)

    def params(self) -> dict[str, Array]:
        """Where the chains are."""
        return {
            name: torch.stack([params[name] for params in self._params]).detach().numpy()
            for name in NETWORK.shapes
        }

    def _step(self, params: dict[str, torch.Tensor]) -> None:
        conditioned = pyro.poutine.condition(NETWORK.model, data=params)
        log_joint = pyro.poutine.trace(conditioned).get_trace(*self._arguments).log_prob_sum()
        gradients = torch.autograd.grad(log_joint, list(params.values()))
        step_size = NETWORK.step_size
        with torch.no_grad():
            for param, gradient in zip(params.values(), gradients, strict=True):
                noise = torch.randn_like(param)
                param += step_size * gradient + (2 * step_size) ** 0.5 * noise


def main() -> None:
    """Measure in turn and print."""
    options = arguments(__doc__, rounds=5)
    single_thread()
    cases = []
    for num_chains in (1,) if options.smoke else (1, 16, 64):
        ours = partial(our_chains, NETWORK, "SGLD", num_chains)
        eager = partial(EagerPyro, num_chains)
        num_steps = {OURS: 4096 // num_chains, "eager_pyro": max(4, 256 // num_chains)}
        if options.smoke:
            num_steps = dict.fromkeys(num_steps, 2)
        timings, first_call = step_times(
            {OURS: ours, "eager_pyro": eager}, num_steps, num_chains, options.rounds
        )
        cases.append(Case(f"{NETWORK.name}, {num_chains} chains", timings, first_call))
    report("step_time", "CPU us per chain and step", cases)


if __name__ == "__main__":
    main()
