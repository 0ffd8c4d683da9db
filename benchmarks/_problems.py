"""The two problems of the comparisons, and how good draws from their posteriors are."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyro
import pyro.distributions as dist
import torch
from _common import Chains
from scipy.special import expit, softmax
from torch import Tensor

from pyro_ext import datasets
from pyro_ext.datasets import Dataset
from pyro_ext.inference import MCMC, NUTS

__all__ = [
    "BATCH_SIZE",
    "FRICTION",
    "PROBLEMS",
    "OurChains",
    "Problem",
    "draws_of",
    "logits",
    "moment_errors",
    "network",
    "network_shapes",
    "predictive_nll",
    "reference_draws",
    "start",
    "synthetic_regression",
    "whole_logistic_regression",
]

BATCH_SIZE = 32
FRICTION = 10.0

Array = npt.NDArray[Any]
Draws = Mapping[str, Array]


def logistic_regression(inputs: Tensor, labels: Tensor, subsample_size: int = BATCH_SIZE) -> None:
    """Logistic regression with standard normal priors, on minibatches."""
    weight, bias = _prior(inputs.shape[1])
    with pyro.plate("rows", len(inputs), subsample_size=subsample_size) as batch:
        fn = dist.Bernoulli(logits=inputs[batch] @ weight + bias)
        pyro.sample("label", fn, obs=labels[batch].to(inputs.dtype))


def whole_logistic_regression(inputs: Tensor, labels: Tensor) -> None:
    """The same on all of the data: what samplers without minibatches take."""
    weight, bias = _prior(inputs.shape[1])
    with pyro.plate("rows", len(inputs)):
        fn = dist.Bernoulli(logits=inputs @ weight + bias)
        pyro.sample("label", fn, obs=labels.to(inputs.dtype))


def _prior(num_features: int) -> tuple[Tensor, Tensor]:
    weight = pyro.sample("weight", dist.Normal(torch.zeros(num_features), 1.0).to_event(1))
    bias = pyro.sample("bias", dist.Normal(0.0, 1.0))
    return weight, bias


def network(
    inputs: Tensor, labels: Tensor, width: int = 50, subsample_size: int = BATCH_SIZE
) -> None:
    """Bayesian network 64-width-10 with standard normal priors."""
    weight0 = pyro.sample("weight0", dist.Normal(torch.zeros(64, width), 1.0).to_event(2))
    bias0 = pyro.sample("bias0", dist.Normal(torch.zeros(width), 1.0).to_event(1))
    weight1 = pyro.sample("weight1", dist.Normal(torch.zeros(width, 10), 1.0).to_event(2))
    bias1 = pyro.sample("bias1", dist.Normal(torch.zeros(10), 1.0).to_event(1))
    with pyro.plate("images", len(inputs), subsample_size=subsample_size) as batch:
        hidden = torch.tanh(inputs[batch] @ weight0 + bias0)
        fn = dist.Categorical(logits=hidden @ weight1 + bias1)
        pyro.sample("label", fn, obs=labels[batch])


def network_shapes(width: int) -> dict[str, tuple[int, ...]]:
    """Shape of each parameter of such a network."""
    return {"weight0": (64, width), "bias0": (width,), "weight1": (width, 10), "bias1": (10,)}


def logits(draws: Draws, inputs: Array) -> Array:
    """Logits of the logistic regression. **Shape:** ``(*draws, n)``."""
    return np.asarray(draws["weight"] @ inputs.T + draws["bias"][..., None])


def _logistic_probabilities(draws: Draws, inputs: Array) -> Array:
    success = expit(logits(draws, inputs))
    return np.stack([1.0 - success, success], -1)


def _network_probabilities(draws: Draws, inputs: Array) -> Array:
    hidden = np.tanh(inputs @ draws["weight0"] + draws["bias0"][:, None])
    return np.asarray(softmax(hidden @ draws["weight1"] + draws["bias1"][:, None], -1))


@dataclass(frozen=True)
class Problem:
    """A posterior to sample from, for all sides the same.

    :param str name: its name.
    :param model: the Pyro model; the peers' modules hold it in their own words.
    :param Callable load: loads the data.
    :param dict shapes: shape of each parameter.
    :param float step_size: of Langevin dynamics; Hamiltonian steps take its root.
    :param probabilities: class probabilities ``(num_draws, n, classes)`` of draws at inputs.
    :param torch.device device: where the data are.
    """

    name: str
    model: Callable[..., None]
    load: Callable[[], Dataset]
    shapes: dict[str, tuple[int, ...]]
    step_size: float
    probabilities: Callable[[Draws, Array], Array]

    device: torch.device = torch.device("cpu")

    @property
    def arguments(self) -> tuple[Tensor, Tensor]:
        """Training inputs and labels, the arguments of the model."""
        data = self.load()
        return data.train_inputs.to(self.device), data.train_targets.to(self.device)

    def on(self, device: torch.device) -> "Problem":
        """The same problem with its data on a device."""
        return replace(self, device=device)


PROBLEMS = {
    problem.name: problem
    for problem in (
        Problem(
            "logistic regression",
            logistic_regression,
            datasets.load_breast_cancer,
            {"weight": (30,), "bias": ()},
            2e-4,
            _logistic_probabilities,
        ),
        Problem(
            "network",
            network,
            lambda: datasets.load_digits(test_fraction=0.2),
            network_shapes(50),
            1e-5,
            _network_probabilities,
        ),
    )
}


def start(problem: Problem, num_chains: int) -> dict[str, Array]:
    """Draw initial parameters shared by all samplers. **Shape:** ``(num_chains, *event)`` each."""
    generator = np.random.default_rng(0)
    return {
        name: 0.1 * generator.standard_normal((num_chains, *shape), dtype=np.float32)
        for name, shape in problem.shapes.items()
    }


class OurChains:
    """Chains of a compiled kernel.

    :param kernel: a kernel of :mod:`pyro_ext.inference`.
    :param arguments: arguments of its model.
    :param params: where the chains start.
    """

    def __init__(self, kernel: Any, arguments: tuple[Tensor, ...], params: Draws) -> None:
        kernel.setup(0, *arguments)
        tensors = {
            name: torch.from_numpy(np.asarray(value)).to(arguments[0].device)
            for name, value in params.items()
        }
        num_chains = len(next(iter(tensors.values())))
        self._kernel = kernel
        self._chains = kernel.begin(range(num_chains), seed=0, params=tensors)

    def advance(self, num_steps: int) -> None:
        """Take steps."""
        self._chains = self._kernel.advance(self._chains, num_steps)

    def params(self) -> dict[str, Array]:
        """Return the current parameters of the chains."""
        values = self._kernel.potential.layout.unflatten(self._chains.position)
        return {name: value.cpu().numpy().copy() for name, value in values.items()}


def draws_of(chains: Chains, warmup_blocks: int, num_blocks: int, block: int) -> dict[str, Array]:
    """Draws of all chains, one at the end of each block of steps."""
    for _ in range(warmup_blocks):
        chains.advance(block)
    kept = []
    for _ in range(num_blocks):
        chains.advance(block)
        kept.append(chains.params())
    return {name: np.concatenate([params[name] for params in kept]) for name in kept[0]}


def reference_draws(
    num_samples: int, warmup_steps: int, arguments: tuple[Tensor, Tensor]
) -> dict[str, Array]:
    """Draws of four chains of NUTS from the logistic regression on all of the data."""
    kernel = NUTS(whole_logistic_regression, backend="compile")
    mcmc = MCMC(kernel, num_samples, warmup_steps, num_chains=4, seed=0, progress=False)
    mcmc.run(*arguments)
    return {name: value.numpy(force=True) for name, value in mcmc.get_samples().items()}


def predictive_nll(problem: Problem, draws: Draws) -> float:
    """Negative log likelihood of a test label under the mean of the draws' predictions."""
    data = problem.load()
    mean = problem.probabilities(draws, data.test_inputs.numpy()).mean(0)
    return float(-np.log(mean[np.arange(len(mean)), data.test_targets.numpy()]).mean())


def synthetic_regression(num_rows: int, num_features: int) -> tuple[Tensor, Tensor]:
    """Labels of a logistic regression on autocorrelated inputs, correlation one half.

    :returns: inputs ``(num_rows, num_features)`` and labels ``(num_rows,)``; the weights are the
        same for any number of rows.
    """
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(num_features, generator=generator)
    inputs = torch.randn(num_rows, num_features, generator=generator)
    for column in range(1, num_features):
        inputs[:, column] = 0.5 * inputs[:, column - 1] + 0.75**0.5 * inputs[:, column]
    probabilities = torch.sigmoid(inputs @ weight / 2)
    return inputs, torch.bernoulli(probabilities, generator=generator).long()


def moment_errors(draws: Draws, reference: Draws) -> dict[str, float]:
    """Measure the errors of the mean and standard deviation of draws against a reference.

    :returns: ``mean_error``, root mean square over parameters of the errors of the means, in
        standard deviations; ``sd_ratio``, the mean ratio of the standard deviations.
    """
    errors, ratios = [], []
    for name, values in reference.items():
        scale = values.std(0)
        errors.append(np.ravel((draws[name].mean(0) - values.mean(0)) / scale))
        ratios.append(np.ravel(draws[name].std(0) / scale))
    return {
        "mean_error": float(np.sqrt(np.square(np.concatenate(errors)).mean())),
        "sd_ratio": float(np.concatenate(ratios).mean()),
    }
