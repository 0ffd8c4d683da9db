"""Cost of parameter expansion: a step of expanded SGHMC over a step of the network as it is.

Two networks: a multilayer perceptron, 64-32-32-10, on digits, with minibatches of 64 and of 256,
and the small residual network on 28 x 28 images. Products of factors cost the same whatever the
size of a minibatch: with 64 they are 0.8 times the multiplications of the perceptron, with 256 0.2
times. Both sides are ours and run in turn, in one process and on one thread: ``pyro_ext`` has the
prior on the weights themselves, the other has it on the factors of ``expand_module``, so that
the ratio is what a step of expansion costs. It should be at most the limit of each network.
"""

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

from _common import OURS, Array, Case, Options, main, step_times
from torch import nn

from pyro_ext import datasets
from pyro_ext.datasets import Dataset
from pyro_ext.inference import SGHMC
from pyro_ext.nn import MLP, BayesianClassifier, BayesianModule, ResNet, init_to_module
from pyro_ext.potential import Backend
from pyro_ext.reparam import ExpandedModule, expand_module

STEP_SIZE = 1e-4
EXPANDED = f"{OURS}, expanded"


@dataclass(frozen=True)
class Network:
    """A network and its data.

    :param Callable make: makes the network.
    :param Callable load: loads the data.
    :param float limit: what the ratio should be at most.
    :param int num_steps: steps of one chain in a round.
    :param int batch_size: size of the minibatches.
    """

    make: Callable[[], nn.Module]
    load: Callable[[], Dataset]
    limit: float
    num_steps: int
    batch_size: int = 64


NETWORKS = {
    "MLP": Network(lambda: MLP(64, [32, 32], 10), datasets.load_digits, 1.4, 512),
    "MLP on 256": Network(lambda: MLP(64, [32, 32], 10), datasets.load_digits, 1.4, 512, 256),
    "ResNet": Network(lambda: ResNet(1, 10), datasets.load_mnist_5k, 1.25, 16),
}

# The scales of the priors have no part in what a step costs.
SIDES: dict[str, Callable[[nn.Module], BayesianModule | ExpandedModule]] = {
    OURS: lambda module: BayesianModule(module, 0.22),
    EXPANDED: lambda module: expand_module(module, 0.14),
}


class NetworkChains:
    """Chains of SGHMC on a Bayesian network.

    :param Network network: the network and its data.
    :param str side: one of ``SIDES``.
    :param str backend: how the potential runs.
    :param int num_chains: number of chains.
    """

    def __init__(self, network: Network, side: str, backend: Backend, num_chains: int) -> None:
        data = network.load()
        module = network.make()
        self._kernel = SGHMC(
            BayesianClassifier(SIDES[side](module), network.batch_size),
            step_size=STEP_SIZE,
            friction=100.0,
            backend=backend,
            init_strategy=init_to_module(module=module),
        )
        self._kernel.setup(0, data.train_inputs, data.train_targets)
        self._chains = self._kernel.begin(range(num_chains), seed=0)

    def advance(self, num_steps: int) -> None:
        """Take steps."""
        self._chains = self._kernel.advance(self._chains, num_steps)

    def params(self) -> dict[str, Array]:
        """Return the current parameters of the chains."""
        values = self._kernel.potential.layout.unflatten(self._chains.position)
        return {name: value.numpy().copy() for name, value in values.items()}


def cases(options: Options) -> Iterator[Case]:
    """Each network with each backend and number of chains."""
    backends: tuple[Backend, ...] = ("trace",) if options.smoke else ("trace", "compile")
    for name, network in NETWORKS.items():
        if options.smoke and name != "MLP":
            continue
        for backend in backends:
            # To compile the convolutions takes minutes, for each number of chains anew.
            is_long = name == "ResNet" and backend == "compile"
            for num_chains in (1,) if options.smoke or is_long else (1, 8):
                makers = {
                    side: partial(NetworkChains, network, side, backend, num_chains)
                    for side in SIDES
                }
                num_steps = 2 if options.smoke else max(4, network.num_steps // num_chains)
                with warnings.catch_warnings(record=True) as caught:
                    warnings.simplefilter("always")
                    timings, first_call = step_times(
                        makers, dict.fromkeys(makers, num_steps), num_chains, options
                    )
                words = f"{name}, {backend}, {num_chains} chain{'s' if num_chains > 1 else ''}"
                # Functions that failed to compile run as a graph, and do not measure compilation.
                fallbacks = [w.message for w in caught if "graph. Reason:" in str(w.message)]
                words += f", {len(fallbacks)} of 2 sides not compiled" if fallbacks else ""
                quality = {EXPANDED: {"limit": network.limit}}
                yield Case(words, timings, first_call, quality)


if __name__ == "__main__":
    main(cases, "us per chain and step", rounds=7)
