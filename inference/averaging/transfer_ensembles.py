"""Ensembles of fine-tuned networks, and priors centered at pretrained networks."""

import copy
from abc import abstractmethod
from collections import OrderedDict
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, Self, TypedDict

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

from pyro_ext._lib import checks
from pyro_ext.inference.averaging.soups import greedy_soup
from pyro_ext.inference.averaging.weight_averages import SWAG, swag_distribution
from pyro_ext.inference.optimization import BatchOptimizer, minibatches_of
from pyro_ext.posterior.independent_draws import IndependentDraws
from pyro_ext.potential import Backend, Regularizer, WeightedFunction, check_backend
from pyro_ext.random import chain_keys, fresh_seed, spawn_seed

_BACKBONE = "backbone."
_HEAD = "head."
_LEAST_VARIANCE = 1e-3  # since steps of a descent have to be smaller than any variance


class L2SP:
    r"""Independent normal priors around the pretrained parameters, and around zero in the head [1].

    .. math:: -\log p(\phi, W) = \frac{|\phi - \phi^*|^2}{2 s^2} + \frac{|W|^2}{2 s'^2}
              + \text{const}

    Called with parameters by name, named as in :class:`~pyro_ext.inference.NPTL`, it returns this
    number without the constant.

    :param torch.nn.Module backbone: the pretrained network, with :math:`\phi^*`.
    :param float scale: :math:`s`.
    :param float head_scale: :math:`s'`.

    Example::

        >>> prior = L2SP(torch.nn.Linear(2, 2), scale=0.1, head_scale=1.0)
        >>> head = {"head.weight": torch.ones(1, 2)}
        >>> backbone = torch.nn.Linear(2, 2).requires_grad_(False)
        >>> moved = {f"backbone.{n}": p for n, p in backbone.named_parameters()}
        >>> prior({**moved, **head}).shape
        torch.Size([])
    """

    def __init__(self, backbone: nn.Module, scale: float, head_scale: float = 1.0) -> None:
        checks.instance("backbone", backbone, nn.Module, "a torch.nn.Module")
        self.center = {
            _BACKBONE + name: value.detach().clone() for name, value in backbone.named_parameters()
        }
        self.scale = checks.number("scale", scale, above=0)
        self.head_scale = checks.number("head_scale", head_scale, above=0)

    def __call__(self, params: Mapping[str, Tensor]) -> Tensor:
        """Negative log density, but for a constant.

        :param Mapping params: parameters by name. **Shape:** ``(*event)`` each.
        :returns: a scalar.
        """
        _check_names(params, self.center)
        terms = []
        for name, value in params.items():
            if name in self.center:
                terms.append(((value - self.center[name]) / self.scale).square().sum())
            else:
                terms.append((value / self.head_scale).square().sum())
        return 0.5 * torch.stack(terms).sum()


class SWAGPrior:
    r"""A normal prior learned from the trajectory of the pretraining [2].

    .. math:: \phi \sim N\bigl(m, \; s \, (\tfrac12 \operatorname{diag}(v + 2 \epsilon)
              + \tfrac1{2 (R - 1)} D D^\top)\bigr) , \quad W \sim N(0, s'^2)

    with :math:`\epsilon = 0.001`, and moments and deviations as in
    :class:`~pyro_ext.inference.averaging.SWAG`. It is called like :class:`L2SP`.

    :param snapshots: a :class:`~pyro_ext.inference.averaging.SWAG` that collected the parameters of
        the backbone during its training; or several dicts of parameters from this training, without
        the statistics that a ``state_dict()`` also holds. All of these dicts then count for
        :math:`D`.
    :param float scale: :math:`s`, by which the covariance of the trajectory is multiplied.
    :param float head_scale: :math:`s'`.

    Example::

        >>> path = [{"weight": torch.randn(2, 2)} for _ in range(5)]
        >>> prior = SWAGPrior(path, scale=10.0)
        >>> prior({"backbone.weight": torch.zeros(2, 2), "head.bias": torch.zeros(1)}).shape
        torch.Size([])
    """

    def __init__(
        self,
        snapshots: SWAG | Sequence[Mapping[str, Tensor]],
        scale: float = 1.0,
        head_scale: float = 1.0,
    ) -> None:
        checks.number("scale", scale, above=0)
        self.head_scale = checks.number("head_scale", head_scale, above=0)
        if isinstance(snapshots, SWAG):
            swag = snapshots
        else:
            path = checks.sequence("snapshots", snapshots, "a list of dicts of parameters", 2)
            path = [checks.tensors("snapshots", part, path[0], finite=True) for part in path]
            swag = SWAG(len(path))
            for part in path:
                swag.collect({name: part[name] for name in path[0]})
        self._names = list(swag.weights())
        variance = swag.variance + 2 * _LEAST_VARIANCE
        self.distribution = swag_distribution(swag.mean, variance, swag.deviations, scale)

    def __call__(self, params: Mapping[str, Tensor]) -> Tensor:
        """Negative log density, but for a constant, as of :class:`L2SP`."""
        _check_names(params, {_BACKBONE + name for name in self._names})
        heads = [(value / self.head_scale).square().sum()
                 for name, value in params.items() if name.startswith(_HEAD)]  # fmt: skip
        flat = torch.cat([params[_BACKBONE + name].reshape(-1) for name in self._names])
        own: Tensor = -self.distribution.log_prob(flat)
        return own + 0.5 * torch.stack(heads).sum() if heads else own


def _check_names(params: Mapping[str, Tensor], backbone: Collection[str]) -> None:
    own = {name for name in params if not name.startswith(_HEAD)}
    if own != set(backbone):
        raise ValueError(
            f"params must be those of the head (named {_HEAD!r}...) and of the backbone that the "
            f"prior was made of; {sorted(own - set(backbone))} are others, and "
            f"{sorted(set(backbone) - own)} are missing"
        )


_DRAWS_PER_CALL = 64


class Soup(NamedTuple):
    """A single network whose parameters are an average over selected members.

    :param torch.nn.Module network: maps inputs to logits.
    :param list members: numbers of the members in the average, the best first.
    :param float loss: mean negative log likelihood of the network on the data that selected the
        members.
    """

    network: nn.Module
    members: list[int]
    loss: float


class TransferOptions(TypedDict, total=False):
    """Options of how members are fine-tuned, as of :class:`FineTunedEnsemble`."""

    optimizer: BatchOptimizer | None
    weight_decay: float
    regularizer: Regularizer | None
    head_scale: float
    subsample_size: int | None
    backend: Backend
    seed: int | None


class TransferEnsemble(IndependentDraws):
    """Members fine-tuned side by side from a pretrained backbone, each with a fresh head.

    Networks run in evaluation mode: without dropout, and with fixed batch normalization statistics.
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
        checks.instance("backbone", backbone, nn.Module, "a torch.nn.Module")
        checks.instance("head", head, nn.Module, "a torch.nn.Module")
        if not list(head.parameters()):
            raise ValueError("head must have parameters, got none")
        checks.optional(checks.instance, "optimizer", optimizer, BatchOptimizer, "a BatchOptimizer")
        check_backend(backend)
        if seed is not None:
            fresh_seed(seed)
        self.num_samples = checks.integer("num_samples", num_samples, 1)
        parts = {"backbone": copy.deepcopy(backbone), "head": copy.deepcopy(head)}
        self.network: Any = nn.Sequential(OrderedDict(parts)).eval().requires_grad_(False)
        self.optimizer = optimizer or BatchOptimizer(
            partial(torch.optim.SGD, lr=0.05, momentum=0.9), 200
        )
        self.weight_decay = checks.number("weight_decay", weight_decay, least=0)
        self.regularizer = checks.optional(checks.function, "regularizer", regularizer)
        self.head_scale = checks.number("head_scale", head_scale, least=0)
        self.subsample_size = checks.optional(checks.integer, "subsample_size", subsample_size, 1)
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
        """Compute log predictive probabilities of each member.

        :param Tensor inputs: **Shape:** ``(n, *event)``.
        :returns: **Shape:** ``(num_samples, n, classes)``.
        """
        like = next(self.network.parameters())
        inputs = checks.as_tensor("inputs", inputs, "(n, ...)", finite=True, like=like)
        return self._predict(self.get_samples(), inputs)

    def probabilities(self, inputs: Tensor) -> Tensor:
        """Compute predictive probabilities of each member; their mean is the prediction.

        Arguments and shapes are as for :meth:`log_probabilities`.
        """
        return self.log_probabilities(inputs).exp()

    def soup(self, inputs: Tensor, labels: Tensor) -> Soup:
        """Average parameters of members, best first, as long as this does not increase the loss.

        This is the :func:`~pyro_ext.inference.averaging.greedy_soup` of the members.

        :param Tensor inputs: data for the selection, other than those of the members. **Shape:**
            ``(n, *event)``.
        :param Tensor labels: classes of the inputs. **Shape:** ``(n,)``.
        :returns: the average, as one network.
        """
        samples = self.get_samples()

        def loss(params: dict[str, Tensor]) -> Tensor:
            alone = {name: value[None] for name, value in params.items()}
            return nll(self._predict(alone, inputs), labels)

        weights, members, best = greedy_soup(samples, loss)
        network = copy.deepcopy(self.network)
        network.load_state_dict(weights, strict=False)
        return Soup(network, members, best)

    # How members are trained ---------------------------------------------------------------------

    def _train(self, inputs: Tensor, targets: Tensor, numbers: Sequence[int], seed: int) -> Any:
        """Fine-tune members to soft targets of their own, ``(num_members, n, classes)``."""
        params = {name: value.detach() for name, value in self.network.named_parameters()}
        num_points = len(inputs)
        size = min(self.subsample_size or num_points, num_points)

        def losses_of_all(params: dict[str, Tensor], targets: Tensor) -> Tensor:
            return self._loss_of_each(params, inputs, targets)

        # Members share all of the inputs, and have minibatches of their own.
        is_whole = size == num_points
        loss_fn = losses_of_all if is_whole else self._loss_of_each
        rows = (targets[0],) if is_whole else (inputs[:size], targets[0, :size])
        loss = WeightedFunction(
            loss_fn, rows, params, regularizer=self._penalty, backend=self.backend
        )
        starts = torch.stack([self._start(loss, params, number, seed) for number in numbers])
        minibatches = minibatches_of(chain_keys(seed, numbers, starts.device), size, num_points)
        # The targets hold the weights of the data.
        weights = starts.new_full((len(numbers), size), num_points / size)

        def objective(flat: Tensor, members: Tensor) -> tuple[Tensor, Tensor]:
            own = [targets[members]]
            if not is_whole:
                index = minibatches(members)
                own = [inputs[index], targets[members[:, None], index]]
            return loss(flat, weights[members], None, own, len(numbers))

        found = self.optimizer.minimize(objective, starts)
        return loss.constrain(torch.where(found.converged[:, None], found.position, torch.nan))

    def _loss_of_each(self, params: dict[str, Tensor], inputs: Tensor, targets: Tensor) -> Tensor:
        logits = torch.func.functional_call(self.network, params, (inputs,))
        return soft_cross_entropy(logits, targets)

    def _start(
        self, loss: WeightedFunction, params: dict[str, Tensor], number: int, seed: int
    ) -> Tensor:
        """The backbone as it was, and a small random head."""
        generator = torch.Generator().manual_seed(spawn_seed(seed, number, 4))
        values = dict(params)
        for name, value in params.items():
            if name.startswith(_HEAD):
                noise = torch.randn(
                    value.shape, generator=generator, dtype=value.dtype, device="cpu"
                )
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


class FineTunedEnsemble(TransferEnsemble):
    r"""Members fine-tuned on the same data, each with its own head.

    With a ``regularizer`` equal to :math:`1 / n` times an
    :class:`~pyro_ext.inference.averaging.L2SP` or a
    :class:`~pyro_ext.inference.averaging.SWAGPrior`, the members are modes of a posterior.

    :param torch.nn.Module backbone: the pretrained network, from inputs to features.
    :param torch.nn.Module head: maps features to logits; its own parameters do not matter.
    :param int num_samples: number of members.
    :param BatchOptimizer optimizer: by default 200 steps of SGD with momentum and a cosine
        schedule.
    :param float weight_decay: :math:`\lambda` in the penalty :math:`\lambda |\theta|^2 / 2`, which
        is added to the mean loss.
    :param regularizer: a function of the parameters by name that is added to the mean loss.
    :param float head_scale: standard deviation of the initial parameters of the heads.
    :param int subsample_size: number of inputs in a minibatch; by default all.
    :param str backend: as for :class:`~pyro_ext.potential.Potential`.
    :param int seed: seed of all that is random; ``None`` takes one from PyTorch's generator.

    Example::

        >>> backbone, head = torch.nn.Linear(4, 8), torch.nn.Linear(8, 3)
        >>> ensemble = FineTunedEnsemble(backbone, head, num_samples=5, seed=0)
        >>> inputs, labels = torch.randn(30, 4), torch.arange(30) % 3
        >>> ensemble.run(inputs, labels).probabilities(inputs).shape
        torch.Size([5, 30, 3])
    """

    def run(self, inputs: Tensor, labels: Tensor) -> Self:
        """Fine-tune all members on the mean loss.

        A member that is not finite is left out, with a warning.

        :param Tensor inputs: **Shape:** ``(n, *event)``.
        :param Tensor labels: classes. **Shape:** ``(n,)``.
        :returns: the ensemble itself.
        """
        inputs, labels = as_data(inputs, labels, self.network)
        self.args = (inputs, labels)
        targets = check_labels(inputs, labels, self.network) / len(inputs)
        numbers = range(self.num_samples)
        every = targets.expand(self.num_samples, *targets.shape)
        self._keep(self._train(inputs, every, numbers, fresh_seed(self.seed)))
        return self


def soft_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    r"""Cross entropy with soft targets, :math:`-\sum_c t_c \log \operatorname{softmax}(f)_c`.

    :param Tensor logits: **Shape:** ``(*batch, classes)``.
    :param Tensor targets: weights of the classes, which need not sum to one. **Shape:**
        ``(*batch, classes)``.
    :returns: **Shape:** ``(*batch)``.

    Example::

        >>> soft_cross_entropy(torch.zeros(3), torch.tensor([0.5, 0.5, 0.0]))
        tensor(1.0986)
    """
    logits = checks.as_tensor("logits", logits, "(*batch, classes)")
    targets = checks.as_tensor("targets", targets, f"(*batch, {logits.shape[-1]})")
    return -(targets * logits.log_softmax(-1)).sum(-1)


def nll(log_probabilities: Tensor, labels: Tensor) -> Tensor:
    """Mean negative log likelihood of each member, from ``(members, n, classes)``."""
    index = labels.expand(log_probabilities.shape[:-1]).unsqueeze(-1)
    return -log_probabilities.gather(-1, index)[..., 0].mean(-1)


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
    rows = checks.as_tensor(f"inputs{suffix}", inputs, "(n, ...)", finite=True, like=like)
    return rows, checks.as_tensor(f"labels{suffix}", labels, f"({len(rows)},)", kind="integers")


def check_labels(inputs: Tensor, labels: Tensor, network: nn.Module) -> Tensor:
    """Labels as vectors with a one for their class."""
    with torch.no_grad(), checks.named_in_errors("inputs", inputs):
        logits = network(inputs[:1])
    if logits.dim() != 2 or not bool(((labels >= 0) & (labels < logits.shape[-1])).all()):
        raise ValueError(
            "labels must be less than the number of logits of the network, which returns the "
            f"shape {tuple(logits.shape)} for one input; got labels from {int(labels.min())} to "
            f"{int(labels.max())}"
        )
    return one_hot(labels, logits.shape[-1]).to(logits.dtype)
