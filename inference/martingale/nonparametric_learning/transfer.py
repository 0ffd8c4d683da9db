"""Networks that were trained before, fine-tuned many times over: what all such ensembles share."""

import copy
from abc import abstractmethod
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

from pyro_ext._checks import as_tensor, check_callable, check_integer, check_number, shown
from pyro_ext.inference.martingale.nonparametric_learning._minibatches import minibatches_of
from pyro_ext.inference.optimization import BatchOptimizer
from pyro_ext.posterior.independent_draws import IndependentDraws
from pyro_ext.potential import Backend, Regularizer, WeightedFunction, check_backend
from pyro_ext.random import chain_keys, fresh_seed

__all__ = [
    "Soup",
    "TransferEnsemble",
    "average_losses",
    "check_labels",
    "nll",
    "soft_cross_entropy",
]

_DRAWS_PER_CALL = 64


class Soup(NamedTuple):
    """A single network, whose parameters are an average of some members'.

    :param torch.nn.Module network: maps inputs to logits.
    :param list members: numbers of the members in the average, the best first.
    :param float loss: its mean negative log likelihood on the data that chose them.
    """

    network: nn.Module
    members: list[int]
    loss: float


class _Network(nn.Module):
    """A backbone and a head."""

    def __init__(self, backbone: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits."""
        logits: Tensor = self.head(self.backbone(inputs))
        return logits


class TransferEnsemble(IndependentDraws):
    """Members that are fine-tuned side by side from a pretrained backbone, each with a fresh head.

    Networks run in evaluation mode: without dropout, and with the statistics that layers of batch
    normalization have.
    """

    def __init__(
        self,
        backbone: nn.Module,
        head: nn.Module,
        num_samples: int = 10,
        *,
        optimizer: BatchOptimizer | None = None,
        weight_decay: float = 1e-3,
        regularizer: Regularizer | None = None,
        head_scale: float = 0.05,
        subsample_size: int | None = None,
        backend: Backend = "trace",
        seed: int | None = None,
    ) -> None:
        super().__init__()
        for name, module in (("backbone", backbone), ("head", head)):
            if not isinstance(module, nn.Module):
                raise TypeError(f"{name} must be a torch.nn.Module, got {module!r:.80}")
        if not list(head.parameters()):
            raise ValueError("head must have parameters, got none")
        if optimizer is not None and not isinstance(optimizer, BatchOptimizer):
            raise TypeError(f"optimizer must be a BatchOptimizer, got {optimizer!r:.80}")
        if regularizer is not None:
            check_callable("regularizer", regularizer)
        check_backend(backend)
        if subsample_size is not None:
            check_integer("subsample_size", subsample_size, 1)
        if seed is not None:
            fresh_seed(seed)
        self.num_samples = check_integer("num_samples", num_samples, 1)
        self.network = _Network(copy.deepcopy(backbone), copy.deepcopy(head)).eval()
        self.network.requires_grad_(False)
        self.optimizer = optimizer or BatchOptimizer(
            partial(torch.optim.SGD, lr=0.05, momentum=0.9), 200
        )
        self.weight_decay = check_number("weight_decay", weight_decay, least=0)
        self.regularizer = regularizer
        self.head_scale = check_number("head_scale", head_scale, least=0)
        self.subsample_size = subsample_size
        self.backend: Backend = backend
        self.seed = seed

    @abstractmethod
    def run(self, inputs: Tensor, labels: Tensor) -> Self:
        """Fine-tune all members.

        :param Tensor inputs: **Shape:** ``(n, *event)``.
        :param Tensor labels: classes. **Shape:** ``(n,)``.
        :returns: the ensemble itself.
        """

    def log_probabilities(self, inputs: Tensor) -> Tensor:
        """Log predictive probabilities of each member.

        :param Tensor inputs: **Shape:** ``(n, *event)``.
        :returns: **Shape:** ``(num_samples, n, classes)``.
        :raises RuntimeError: before a run.
        """
        like = next(self.network.parameters())
        inputs = as_tensor("inputs", inputs, "(n, ...)", finite=True, like=like)
        return self._predict(self.get_samples(), inputs)

    def probabilities(self, inputs: Tensor) -> Tensor:
        """Predictive probabilities of each member, whose mean over members is the prediction.

        :param Tensor inputs: **Shape:** ``(n, *event)``.
        :returns: **Shape:** ``(num_samples, n, classes)``.
        """
        return self.log_probabilities(inputs).exp()

    def soup(self, inputs: Tensor, labels: Tensor) -> Soup:
        """Average parameters of members as long as that does no harm, the best member first.

        :param Tensor inputs: data that decide, other than those of the members. **Shape:** ``(n,
            *event)``.
        :param Tensor labels: their classes. **Shape:** ``(n,)``.
        :returns: the average, as one network.
        :raises RuntimeError: before a run.
        """
        samples = self.get_samples()

        def loss(params: dict[str, Tensor]) -> float:
            return float(nll(self._predict(params, inputs), labels)[0])

        order = nll(self._predict(samples, inputs), labels).argsort().tolist()
        chosen, best = order[:1], loss({name: part[order[:1]] for name, part in samples.items()})
        for number in order[1:]:
            trial = [*chosen, number]
            mean = {name: part[trial].mean(0, keepdim=True) for name, part in samples.items()}
            if (found := loss(mean)) <= best:
                chosen, best = trial, found
        network = copy.deepcopy(self.network)
        mean = {name: part[chosen].mean(0) for name, part in samples.items()}
        network.load_state_dict(mean, strict=False)
        return Soup(network, chosen, best)

    # How members are trained ---------------------------------------------------------------------

    def _train(self, inputs: Tensor, targets: Tensor, numbers: Sequence[int], seed: int) -> Any:
        """Fine-tune members to soft targets of their own.

        :param Tensor inputs: **Shape:** ``(n, *event)``.
        :param Tensor targets: how much each class weighs for each input. **Shape:** ``(num_members,
            n, classes)``.
        :param Sequence numbers: of the members, on which their heads and minibatches depend.
        :param int seed: of all.
        :returns: parameters by name. **Shape:** ``(num_members, *event)`` each.
        """
        params = {name: value.detach() for name, value in self.network.named_parameters()}
        num_points = len(inputs)
        size = min(self.subsample_size or num_points, num_points)

        def losses_of_all(params: dict[str, Tensor], targets: Tensor) -> Tensor:
            return self._loss_of_each(params, inputs, targets)

        # Members share all of the inputs, and have minibatches of their own.
        is_whole = size == num_points
        loss = WeightedFunction(
            losses_of_all if is_whole else self._loss_of_each,
            (targets[0],) if is_whole else (inputs[:size], targets[0, :size]),
            params,
            regularizer=self._penalty,
            backend=self.backend,
        )
        starts = torch.stack([self._start(loss, params, number, seed) for number in numbers])
        minibatches = minibatches_of(chain_keys(seed, numbers, starts.device), size, num_points)
        # The targets hold the weights of the data.
        weights = starts.new_full((len(numbers), size), num_points / size)

        def objective(flat: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
            if is_whole:
                own = [targets[rows]]
            else:
                index = minibatches(rows)
                own = [inputs[index], targets[rows[:, None], index]]
            return loss(flat, weights[rows], None, own, len(numbers))

        found = self.optimizer.minimize(objective, starts)
        return loss.constrain(torch.where(found.converged[:, None], found.position, torch.nan))

    def _loss_of_each(self, params: dict[str, Tensor], inputs: Tensor, targets: Tensor) -> Tensor:
        logits = torch.func.functional_call(self.network, params, (inputs,))
        return soft_cross_entropy(logits, targets)

    def _start(
        self, loss: WeightedFunction, params: dict[str, Tensor], number: int, seed: int
    ) -> Tensor:
        """The backbone as it was, and a small random head."""
        words = np.random.SeedSequence(seed, spawn_key=(number, 4)).generate_state(1)
        generator = torch.Generator().manual_seed(int(words[0]))
        values = dict(params)
        for name, value in params.items():
            if name.startswith("head."):
                noise = torch.randn(value.shape, generator=generator, dtype=value.dtype)
                values[name] = self.head_scale * noise.to(value.device)
        return loss.layout.flatten(values)

    def _penalty(self, params: dict[str, Tensor]) -> Tensor:
        total = torch.stack([value.square().sum() for value in params.values()]).sum()
        penalty = 0.5 * self.weight_decay * total
        return penalty if self.regularizer is None else penalty + self.regularizer(params)

    def _predict(self, params: dict[str, Tensor], inputs: Tensor) -> Tensor:
        def one(values: dict[str, Tensor]) -> Tensor:
            logits: Tensor = torch.func.functional_call(self.network, values, (inputs,))
            return logits.log_softmax(-1)

        with torch.no_grad():
            return torch.vmap(one, chunk_size=_DRAWS_PER_CALL)(params)

    def _keep(self, samples: dict[str, Tensor]) -> None:
        """Keep the members that are finite."""
        flat = torch.cat([part.flatten(1) for part in samples.values()], 1)
        finite = flat.isfinite().all(1)
        self._left_out = (~finite).nonzero()[:, 0].tolist()
        kept = {name: part[finite] for name, part in samples.items()}
        self._samples = kept if bool(finite.any()) else {}
        self._warn_of_left_out("the network", "take a smaller learning rate")


def soft_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    r"""Cross entropy with soft targets, :math:`-\sum_c t_c \log \operatorname{softmax}(f)_c`.

    :param Tensor logits: **Shape:** ``(*batch, classes)``.
    :param Tensor targets: they need not sum to one. **Shape:** ``(*batch, classes)``.
    :returns: **Shape:** ``(*batch)``.

    Example::

        >>> soft_cross_entropy(torch.zeros(3), torch.tensor([0.5, 0.5, 0.0]))
        tensor(1.0986)
    """
    logits = as_tensor("logits", logits, "(*batch, classes)")
    targets = as_tensor("targets", targets, f"(*batch, {logits.shape[-1]})")
    return -(targets * logits.log_softmax(-1)).sum(-1)


def nll(log_probabilities: Tensor, labels: Tensor) -> Tensor:
    """Mean negative log likelihood of each member.

    :param Tensor log_probabilities: **Shape:** ``(members, n, classes)``.
    :param Tensor labels: **Shape:** ``(n,)``.
    :returns: **Shape:** ``(members,)``.
    """
    places = labels.expand(log_probabilities.shape[:-1]).unsqueeze(-1)
    return -log_probabilities.gather(-1, places)[..., 0].mean(-1)


def average_losses(log_probabilities: Tensor, labels: Tensor) -> Tensor:
    """Negative log likelihood of each label under the average of members. **Shape:** ``(n,)``."""
    average = log_probabilities.logsumexp(0) - np.log(len(log_probabilities))
    losses: Tensor = -average.gather(-1, labels[:, None])[:, 0]
    return losses


def as_data(
    inputs: Any, labels: Any, network: nn.Module, suffix: str = ""
) -> tuple[Tensor, Tensor]:
    """Take finite inputs, in the type of the network, and as many labels."""
    like = next(network.parameters())
    rows = as_tensor(f"inputs{suffix}", inputs, "(n, ...)", finite=True, like=like)
    return rows, as_tensor(f"labels{suffix}", labels, f"({len(rows)},)", kind="integers")


def check_labels(inputs: Tensor, labels: Tensor, network: nn.Module) -> Tensor:
    """Labels as vectors with a one for their class.

    :raises ValueError: where numbers or classes do not fit.
    """
    with torch.no_grad():
        try:
            logits = network(inputs[:1])
        except RuntimeError as error:
            raise ValueError(
                f"inputs must be what the network takes, got {shown(inputs)} and {error}"
            ) from error
    if logits.dim() != 2 or not bool(((labels >= 0) & (labels < logits.shape[-1])).all()):
        raise ValueError(
            "labels must be less than the number of logits of the network, which returns the "
            f"shape {tuple(logits.shape)} for one input; got labels from {int(labels.min())} to "
            f"{int(labels.max())}"
        )
    return one_hot(labels, logits.shape[-1]).to(logits.dtype)
