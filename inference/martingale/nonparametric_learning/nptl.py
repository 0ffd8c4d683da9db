r"""Nonparametric transfer learning.

[1] H. Lee, G. Nam, E. Fong, J. Lee (2024), Enhancing transfer learning with flexible nonparametric
posterior sampling.

[2] L. Breiman, J. Friedman, R. Olshen, C. Stone (1984), Classification and regression trees.
"""

from collections.abc import Sequence
from typing import Any, Self, Unpack, get_args

import torch
from torch import Tensor, nn

from pyro_ext._lib import checks
from pyro_ext.inference.averaging.transfer_ensembles import (
    TransferEnsemble,
    TransferOptions,
    as_data,
    average_losses,
    check_labels,
    nll,
    soft_cross_entropy,
)
from pyro_ext.inference.martingale.nonparametric_learning.dirichlet_weights import (
    BlockConcentration,
    DirichletWeights,
)
from pyro_ext.inference.optimization import BatchLBFGS
from pyro_ext.potential import WeightedFunction
from pyro_ext.random import fresh_seed

_GRID = (0.01, 0.1, 1.0 / 3.0, 1.0, 3.0)


class NPTL(TransferEnsemble):
    r"""Nonparametric transfer learning: members fitted to random weights of data and guesses [1].

    The prior is about the data, not the network: a Dirichlet process with concentration
    :math:`\alpha`, whose base measure has the inputs of the task with the soft labels :math:`q_i`
    that a linear probe of the pretrained features predicts. A member minimizes

    .. math:: \sum_i w_i \, \text{CE}(y_i, f_\theta(x_i)) + \sum_i \tilde w_i \, \text{CE}(q_i,
              f_\theta(x_i)) , \quad (w, \tilde w) \sim \text{Dirichlet}(1, \ldots, 1, \alpha / n,
              \ldots, \alpha / n) ,

    and a penalty of weight decay, from the pretrained backbone and a fresh small head. All members
    are trained side by side. With :math:`\alpha = 0` it is the Bayesian bootstrap.

    :param torch.nn.Module backbone: the pretrained network, from inputs to features.
    :param torch.nn.Module head: from features to logits; its own parameters do not matter.
    :param int num_samples: number of members.
    :param concentration: :math:`\alpha`; or several, of which one is chosen by the validation loss
        of the average (empirical Bayes); without one these are 0.01, 0.1, 1/3, 1 and 3 times the
        number of inputs.
    :param float num_standard_errors: of the concentrations whose validation loss is above the least
        by at most so many standard errors of the difference, the smallest is taken [2]. With zero
        that of the least loss is, as in the paper.
    :param float validation_fraction: of the data, which is held out to choose by, where there are
        several and ``run`` is given no validation data.
    :param int num_blocks: number of blocks of inputs that share weights, for many of them.
    :param str block_concentration: ``"aggregate"`` or ``"unit"``; see
        :class:`~pyro_ext.inference.martingale.DirichletWeights`.
    :param probe_penalty: :math:`\lambda` of a penalty :math:`\lambda |W|^2 / 2` beside the mean
        loss of the probe; or several, of which that with the least validation loss of the probe is
        taken.
    :param options: ``optimizer``, ``weight_decay``, beside a loss whose weights sum to one,
        ``regularizer``, ``head_scale``, ``subsample_size``, ``backend`` and ``seed`` as of
        :class:`~pyro_ext.inference.averaging.FineTunedEnsemble`.

    Example::

        >>> backbone, head = torch.nn.Linear(4, 8), torch.nn.Linear(8, 3)
        >>> inputs, labels = torch.randn(30, 4), torch.arange(30) % 3
        >>> posterior = NPTL(backbone, head, num_samples=5, concentration=10.0, seed=0)
        >>> posterior.run(inputs, labels).probabilities(inputs).shape
        torch.Size([5, 30, 3])
        >>> posterior.soup(inputs, labels).network(inputs).shape
        torch.Size([30, 3])
    """

    def __init__(
        self,
        backbone: nn.Module,
        head: nn.Module,
        num_samples: int = 10,
        concentration: float | Sequence[float] | None = None,
        *,
        num_standard_errors: float = 1.0,
        validation_fraction: float = 0.1,
        num_blocks: int | None = None,
        block_concentration: BlockConcentration = "aggregate",
        probe_penalty: float | Sequence[float] = 1e-2,
        **options: Unpack[TransferOptions],
    ) -> None:
        super().__init__(backbone, head, num_samples, **options)
        if isinstance(concentration, Sequence):
            for index, value in enumerate(concentration):
                checks.number(f"concentration[{index}]", value, least=0)
            if not concentration:
                raise ValueError("concentration must be a number or several, got none of them")
        else:
            checks.optional(checks.number, "concentration", concentration, least=0)
        self.concentration = concentration
        self.num_standard_errors = checks.number(
            "num_standard_errors", num_standard_errors, least=0
        )
        self.validation_fraction = checks.number(
            "validation_fraction", validation_fraction, above=0, below=1
        )
        checks.choice("block_concentration", block_concentration, get_args(BlockConcentration))
        self.num_blocks = checks.optional(checks.integer, "num_blocks", num_blocks, 1)
        self.block_concentration = block_concentration
        penalties = probe_penalty if isinstance(probe_penalty, Sequence) else [probe_penalty]
        if not penalties:
            raise ValueError("probe_penalty must be a number or several, got none of them")
        self.probe_penalty = [checks.number("probe_penalty", value, above=0) for value in penalties]
        self._chosen: float | None = None
        self._penalty_of_probe: float | None = None
        self._losses: dict[float, float] = {}
        self._soft_labels: Tensor | None = None

    @property
    def soft_labels(self) -> Tensor:
        """Predictions of the linear probe for the inputs of the members.

        **Shape:** ``(n, classes)``.
        """
        if self._soft_labels is None:
            raise RuntimeError("there is no probe yet: call run(...) first")
        return self._soft_labels

    def run(
        self, inputs: Tensor, labels: Tensor, validation: tuple[Tensor, Tensor] | None = None
    ) -> Self:
        """Fit the probe, then all members, and choose a concentration where there are several.

        A member that is not finite is left out, with a warning.

        :param Tensor inputs: **Shape:** ``(n, *event)``.
        :param Tensor labels: classes. **Shape:** ``(n,)``.
        :param tuple validation: inputs and labels to choose the concentration by; without them a
            part of the data is held out for it, where it is needed.
        :returns: the posterior itself.
        """
        inputs, labels = as_data(inputs, labels, self.network)
        self.args = (inputs, labels)
        seed = fresh_seed(self.seed)
        hard = check_labels(inputs, labels, self.network)
        if validation is not None:
            pair = checks.sequence("validation", validation, "a pair of inputs and labels", 2)
            if len(pair) != 2:
                raise ValueError(f"validation must be a pair of inputs and labels, got {len(pair)}")
            validation = as_data(pair[0], pair[1], self.network, " of validation")
            check_labels(*validation, self.network)
        grid = self._grid(len(inputs))
        if max(len(grid), len(self.probe_penalty)) > 1 and validation is None:
            order = torch.randperm(
                len(inputs), generator=torch.Generator().manual_seed(seed), device="cpu"
            )
            number = max(1, round(self.validation_fraction * len(inputs)))
            if number >= len(inputs):
                raise ValueError(
                    "inputs must be more than one, for some of them to be held out, got "
                    f"{len(inputs)}"
                )
            held_out, kept = order[:number].to(inputs.device), order[number:].to(inputs.device)
            validation = inputs[held_out], labels[held_out]
            inputs, hard = inputs[kept], hard[kept]
        soft = self._probe(inputs, hard, validation)
        number = self.num_samples
        targets = torch.cat([self._targets(hard, soft, value, seed) for value in grid])
        # Members of all concentrations have the same heads and minibatches, for a fair choice.
        params = self._train(inputs, targets, [*range(number)] * len(grid), seed)
        parts = [
            {name: value[first : first + number] for name, value in params.items()}
            for first in range(0, len(targets), number)
        ]
        best, self._losses = 0, {}
        if validation is not None:
            predicted = (self._predict(part, validation[0]) for part in parts)
            losses = torch.stack([average_losses(logs, validation[1]) for logs in predicted])
            self._losses = dict(zip(grid, losses.mean(1).tolist(), strict=True))
            best = self._choose(grid, losses)
        self._chosen = grid[best]
        self._soft_labels = soft
        self._keep(parts[best])
        return self

    def diagnostics(self) -> dict[str, Any]:
        """Report what was chosen, and how.

        :returns: ``"concentration"`` and ``"probe_penalty"``; ``"validation_loss"`` of the average
            by concentration, where there were several; ``"left_out"``, the numbers of members that
            were not finite.
        """
        self.get_samples()
        return {
            "concentration": self._chosen,
            "probe_penalty": self._penalty_of_probe,
            "validation_loss": dict(self._losses),
            "left_out": list(self._left_out),
        }

    def _probe(
        self, inputs: Tensor, hard: Tensor, validation: tuple[Tensor, Tensor] | None
    ) -> Tensor:
        """Labels that the probe predicts which is best on the validation data."""
        with torch.no_grad():
            features = self.network.backbone(inputs)
            unseen = features[:0] if validation is None else self.network.backbone(validation[0])
        found = [
            linear_probe(features, hard, self.network.head, penalty, torch.cat([features, unseen]))
            for penalty in self.probe_penalty
        ]
        index = 0
        if validation is not None:
            losses = [nll(rows[None, len(hard) :].log(), validation[1]) for rows in found]
            index = int(torch.cat(losses).nan_to_num(torch.inf).argmin())
        self._penalty_of_probe = self.probe_penalty[index]
        return found[index][: len(hard)]

    def _grid(self, number: int) -> list[float]:
        given = self.concentration
        if given is None:
            return [fraction * number for fraction in _GRID]
        return [float(value) for value in (given if isinstance(given, Sequence) else [given])]

    def _choose(self, grid: list[float], losses: Tensor) -> int:
        """Index of the concentration to take, by losses ``(len(grid), n)`` of validation data."""
        losses = losses.double().nan_to_num(torch.inf)
        best = int(losses.mean(1).argmin())
        excess = losses - losses[best]
        errors = excess.std(1, correction=0) / max(losses.shape[1] - 1, 1) ** 0.5
        is_near = excess.mean(1) <= self.num_standard_errors * errors
        near: list[int] = is_near.nonzero()[:, 0].tolist()
        return min([best, *near], key=grid.__getitem__)

    def _targets(self, hard: Tensor, soft: Tensor, concentration: float, seed: int) -> Tensor:
        """Weighted labels ``(num_samples, n, classes)``, true and guessed ones together."""
        size = len(hard)
        blocks = self.num_blocks, self.block_concentration
        weights = DirichletWeights(size, size, concentration, *blocks)
        drawn = weights.draw(range(self.num_samples), seed).to(hard)
        return drawn[:, :size, None] * hard + drawn[:, size:, None] * soft


def linear_probe(
    features: Tensor,
    targets: Tensor,
    head: nn.Module,
    penalty: float,
    new_features: Tensor | None = None,
) -> Tensor:
    r"""Probabilities that a head predicts which is fitted to frozen features.

    :param Tensor features: **Shape:** ``(n, num_features)``.
    :param Tensor targets: a vector for each label, which sums to one. **Shape:** ``(n, classes)``.
    :param torch.nn.Module head: from features to logits; it is not changed.
    :param float penalty: :math:`\lambda` of :math:`\lambda |W|^2 / 2` beside the mean loss.
    :param Tensor new_features: what to predict for, instead of the features. **Shape:**
        ``(number, num_features)``.
    :returns: **Shape:** ``(n, classes)``, or ``(number, classes)``.

    Example::

        >>> features, labels = torch.randn(20, 3), torch.eye(2)[torch.arange(20) % 2]
        >>> linear_probe(features, labels, torch.nn.Linear(3, 2), 0.1).shape
        torch.Size([20, 2])
    """
    checks.instance("head", head, nn.Module, "a torch.nn.Module")
    like = next(head.parameters(), None)
    features = checks.as_tensor("features", features, "(n, num_features)", finite=True, like=like)
    targets = checks.as_tensor(
        "targets", targets, f"({len(features)}, classes)", finite=True, like=like
    )
    checks.number("penalty", penalty, least=0)
    if new_features is not None:
        shape = f"(number, {features.shape[1]})"
        new_features = checks.as_tensor("new_features", new_features, shape, like=like)

    def losses(params: dict[str, Tensor], features: Tensor, targets: Tensor) -> Tensor:
        return soft_cross_entropy(torch.func.functional_call(head, params, (features,)), targets)

    def regularizer(params: dict[str, Tensor]) -> Tensor:
        return 0.5 * penalty * torch.stack([part.square().sum() for part in params.values()]).sum()

    start = {name: torch.zeros_like(value) for name, value in head.named_parameters()}
    loss = WeightedFunction(losses, (features, targets), start, regularizer=regularizer)
    weights = features.new_full((1, len(features)), 1.0 / len(features))
    found = BatchLBFGS().minimize(
        lambda flat, rows: loss(flat, weights.expand(len(flat), -1)), loss.start(range(1), 0)
    )
    params = {name: value[0] for name, value in loss.constrain(found.position).items()}
    with torch.no_grad():
        inputs = features if new_features is None else new_features
        probabilities: Tensor = torch.func.functional_call(head, params, (inputs,)).softmax(-1)
    return probabilities
