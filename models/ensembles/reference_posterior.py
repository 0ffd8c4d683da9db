"""Predictions of small Bayesian networks under their exact posterior, from long runs of HMC."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from pyro_ext import datasets
from pyro_ext._lib import checks
from pyro_ext.checkpoint.files import read_tensors
from pyro_ext.diagnostics.metrics import total_variation
from pyro_ext.nn import MLP, BayesianClassifier, BayesianModule

NAMES = ("digits", "wine")


@dataclass(frozen=True, eq=False)
class ReferencePosterior:
    r"""Predictive probabilities of a Bayesian network under its posterior, and their precision.

    The network is a :class:`~pyro_ext.nn.MLP` with SiLU activations and independent normal priors.
    The data are the training part of a data set's default split, all of it at each step, in double
    precision. Each chain of HMC started at its own draw from the prior, and has trajectories of
    length :math:`\pi / 2` times the prior's standard deviation, as in [1]. Its weights do not
    converge, because hidden units can be exchanged; its predictions do, and the diagnostics refer
    to them.

    :param str name: name of the data set.
    :param Tensor chain_probabilities: probabilities at the test inputs, averaged over the draws of
        each chain. **Shape:** ``(num_chains, n_test, classes)``.
    :param Tensor r_hat: rank-normalized split R-hat of the probabilities at each test input, the
        largest over classes. **Shape:** ``(n_test,)``.
    :param Tensor ess: their bulk effective sample size over all chains, the smallest over classes.
        **Shape:** ``(n_test,)``.
    :param tuple hidden_features: width of each hidden layer.
    :param float prior_scale: standard deviation of the prior of each weight and bias.
    :param int num_draws: number of draws of each chain, without warm-up.
    :param int warmup_steps: number of warm-up steps, which adapt the step size.
    :param float trajectory_length: step size times number of steps.
    :param float acceptance_rate: fraction of trajectories that were accepted.
    :param int num_divergences: number of trajectories whose energy diverged.
    :param int seed: seed of the run.
    :param float nll: negative log likelihood of the test labels under ``probabilities``, per point.

    [1] P. Izmailov, S. Vikram, M. D. Hoffman, A. G. Wilson (2021),
    What are Bayesian neural network posteriors really like?
    """

    name: str
    chain_probabilities: Tensor
    r_hat: Tensor
    ess: Tensor
    hidden_features: tuple[int, ...]
    prior_scale: float
    num_draws: int
    warmup_steps: int
    trajectory_length: float
    acceptance_rate: float
    num_divergences: int
    seed: int
    nll: float

    @property
    def num_chains(self) -> int:
        """Number of chains."""
        return len(self.chain_probabilities)

    @property
    def probabilities(self) -> Tensor:
        """Predictive probabilities over all draws, in double precision.

        **Shape:** ``(n_test, classes)``.
        """
        return self.chain_probabilities.double().mean(0)

    @property
    def chain_total_variation(self) -> float:
        """Mean total variation distance between a chain's probabilities and those of all others.

        The reference itself is more precise by about the square root of the number of chains. A
        sampler that is closer to it than this distance cannot be distinguished from the posterior.
        """
        chains = self.chain_probabilities.double()
        others = (chains.sum(0) - chains) / (len(chains) - 1)
        distances = [total_variation(*pair) for pair in zip(chains, others, strict=True)]
        return sum(distances) / len(distances)

    @cached_property
    def dataset(self) -> datasets.Dataset:
        """The data set with its default split; requires the extra ``data``."""
        return datasets.load(self.name)

    def model(self, batch_size: int | None = None) -> BayesianClassifier:
        """Make the Pyro model of inputs and labels.

        :param int batch_size: size of its minibatches; ``None`` uses all of the data.
        :returns: a new model; ``model(dataset.train_inputs, dataset.train_targets)`` runs it.
        """
        return classifier(self.name, self.hidden_features, self.prior_scale, batch_size)

    def __repr__(self) -> str:
        """Show what it is; never the numbers."""
        return (
            f"ReferencePosterior({self.name!r}, hidden_features={self.hidden_features}, "
            f"prior_scale={self.prior_scale:g}, {self.num_chains} chains of {self.num_draws} draws)"
        )


def load_reference_posterior(name: str, folder: str | Path | None = None) -> ReferencePosterior:
    """Load a reference posterior, to measure how close a sampler comes to it.

    :param str name: ``"digits"`` for a 64-8-10 network on 600 images of digits, or ``"wine"`` for a
        13-8-3 network on 142 wines.
    :param folder: folder to which ``python -m tools.make_reference_posterior`` wrote your own
        posterior; by default the one that comes with the package.
    :returns: the posterior.
    :raises CheckpointError: if the file is missing, truncated or changed.

    Example::

        >>> from pyro_ext.diagnostics.metrics import agreement, total_variation
        >>> reference = load_reference_posterior("digits")
        >>> reference
        ReferencePosterior('digits', hidden_features=(8,), prior_scale=0.5, 6 chains of 2500 draws)
        >>> reference.probabilities.shape, bool(reference.r_hat.max() < 1.05)
        (torch.Size([1197, 10]), True)
        >>> uniform = torch.full((1197, 10), 0.1)
        >>> total_variation(uniform, reference.probabilities) > 0.5
        True
    """
    tensors, content, _ = read_tensors(path_of(name, folder), "hidden_features")
    fields: dict[str, Any] = tensors | content
    fields["hidden_features"] = tuple(fields["hidden_features"])
    return ReferencePosterior(**fields)


def path_of(name: str, folder: str | Path | None = None) -> Path:
    """Return the path to the file of a reference posterior."""
    checks.choice("name", name, NAMES)
    checks.optional(checks.instance, "folder", folder, (str, Path), "a path or None")
    default = Path(__file__).with_name("reference_posteriors")
    return Path(default if folder is None else folder) / f"{name}.safetensors"


def classifier(
    name: str, hidden_features: tuple[int, ...], prior_scale: float, batch_size: int | None
) -> BayesianClassifier:
    """Make the Pyro model of a reference posterior."""
    num_features, num_classes = {"digits": (64, 10), "wine": (13, 3)}[name]
    network = MLP(num_features, hidden_features, num_classes)
    return BayesianClassifier(BayesianModule(network, prior_scale), batch_size)
