"""Classes with few and many examples: profiles, balanced minibatches, balanced classifiers."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pyro_ext._lib import checks
from pyro_ext.inference.training import ShuffledBatches
from pyro_ext.random import spawn_seed


def exponential_profile(num_first: int, num_classes: int, imbalance: float) -> Tensor:
    r"""Numbers of examples that decrease by a constant factor from class to class [1].

    .. math:: n_k = \lfloor n_1 \rho^{-(k - 1) / (K - 1)} \rfloor

    :param int num_first: :math:`n_1`.
    :param int num_classes: :math:`K`, at least two.
    :param float imbalance: :math:`\rho = n_1 / n_K`.
    :returns: integers. **Shape:** ``(num_classes,)``.
    :raises ValueError: if a class is left without an example.

    [1] Y. Cui, M. Jia, T. Lin, Y. Song, S. Belongie (2019),
    Class-balanced loss based on effective number of samples.

    Example::

        >>> exponential_profile(300, 10, 100.0)
        tensor([300, 179, 107,  64,  38,  23,  13,   8,   5,   3])
    """
    num_first = checks.integer("num_first", num_first, 1)
    num_classes = checks.integer("num_classes", num_classes, 2)
    checks.number("imbalance", imbalance, least=1)
    if num_first < imbalance:
        raise ValueError(
            f"imbalance must be at most num_first, {num_first}, or the last class has no example, "
            f"got {imbalance}"
        )
    exponents = -torch.arange(num_classes, dtype=torch.float64) / (num_classes - 1)
    return (num_first * imbalance**exponents + 1e-9).floor().long()  # 50 may come as 49.999...


class BalancedBatches(ShuffledBatches):
    """Minibatches in which all classes are equally likely, however many examples they have.

    Examples are drawn with replacement, so that those of rare classes recur. A
    :class:`~pyro_ext.inference.Trainer` takes these like any
    :class:`~pyro_ext.inference.training.ShuffledBatches`; ``len`` is the number of minibatches in
    an epoch with as many examples as there are.

    :param Tensor inputs: **Shape:** ``(n, *event)``.
    :param Tensor labels: classes from zero on, of at least two kinds. **Shape:** ``(n,)``.
    :param int batch_size: number of examples in a minibatch, which may be more than there are.
    :raises ValueError: for shapes that do not fit, a single class, or a size out of range.

    Example::

        >>> labels = torch.tensor([0] * 90 + [1] * 10)
        >>> batches = BalancedBatches(torch.randn(100, 2), labels, batch_size=50)
        >>> inputs, drawn = batches.batch(0, seed=0)
        >>> inputs.shape, 15 < int((drawn == 1).sum()) < 35
        (torch.Size([50, 2]), True)
    """

    def __init__(self, inputs: Tensor, labels: Tensor, *, batch_size: int) -> None:
        inputs = checks.as_tensor("inputs", inputs, "(n, ...)", finite=True)
        labels = _as_labels(labels, len(inputs))
        batch_size = checks.integer("batch_size", batch_size, 1)
        super().__init__(inputs, labels, batch_size=min(batch_size, len(inputs)))
        self.batch_size = batch_size  # rows come again and again, so that there are enough
        counts = labels.bincount()
        if int((counts > 0).sum()) < 2:
            raise ValueError(
                f"labels must be of at least two classes, got {checks.shown(labels)} of one"
            )
        self._weights = counts.double().reciprocal()[labels].cpu()

    def batch(self, step: int, seed: int) -> tuple[Tensor, ...]:
        """Return the minibatch of a step.

        :param int step: the number of the step, from zero.
        :param int seed: seed of all minibatches.
        :returns: inputs and labels.
        """
        step = checks.integer("step", step, 0)
        generator = torch.Generator().manual_seed(spawn_seed(seed, 3, step))
        index = self._weights.multinomial(self.batch_size, True, generator=generator)
        return tuple(row[index.to(row.device)] for row in self.rows)


# Classifiers -------------------------------------------------------------------------------------


class LearnableScales(nn.Module):
    r"""A fixed classifier with a learned factor for each class: LWS of [2].

    .. math:: \text{logit}_k = s_k \, (W_k^\top z + b_k) , \quad s_k = 1 \text{ at first}

    :param torch.nn.Linear classifier: the last layer of a network; a copy of it is kept fixed.

    [2] B. Kang et al. (2020), Decoupling representation and classifier for long-tailed recognition.

    Example::

        >>> classifier = torch.nn.Linear(4, 3)
        >>> head, features = LearnableScales(classifier), torch.randn(5, 4)
        >>> torch.equal(head(features), classifier(features))
        True
        >>> [name for name, value in head.named_parameters() if value.requires_grad]
        ['scales']
    """

    def __init__(self, classifier: nn.Linear) -> None:
        super().__init__()
        self.classifier = _copied(classifier).requires_grad_(False)
        self.scales = nn.Parameter(torch.ones_like(self.classifier.weight[:, 0]))

    def forward(self, features: Tensor) -> Tensor:
        """Compute logits of each class.

        :param Tensor features: **Shape:** ``(*batch, num_features)``.
        :returns: **Shape:** ``(*batch, num_classes)``.
        """
        logits: Tensor = self.scales * self.classifier(features)
        return logits


def tau_normalized(classifier: nn.Linear, tau: float = 1.0) -> nn.Linear:
    r"""Copy a classifier, with rows :math:`W_k / \|W_k\|^\tau` and unchanged biases [2].

    Rows of frequent classes are longer; nothing is trained.

    :param torch.nn.Linear classifier: the last layer of a network.
    :param float tau: from 0 for no change to 1 for equal lengths; choose it on validation data.

    Example::

        >>> tau_normalized(torch.nn.Linear(4, 3)).weight.norm(dim=1).detach()
        tensor([1.0000, 1.0000, 1.0000])
    """
    new = _copied(classifier)
    tau = checks.number("tau", tau, least=0)
    with torch.no_grad():
        new.weight.div_(new.weight.norm(dim=1, keepdim=True) ** tau)
    return new


def logit_adjusted(classifier: nn.Linear, counts: Tensor) -> nn.Linear:
    r"""Copy a classifier, with :math:`\log (n_k / n)` subtracted from its logits [3].

    In training, the equivalent is to add the logarithm to the logits in the loss.

    :param torch.nn.Linear classifier: the last layer of a network.
    :param Tensor counts: numbers of training examples :math:`n_k`. **Shape:** ``(num_classes,)``.

    [3] A. K. Menon et al. (2021), Long-tail learning via logit adjustment.

    Example::

        >>> classifier, features = torch.nn.Linear(4, 2), torch.randn(5, 4)
        >>> moved = logit_adjusted(classifier, torch.tensor([30, 10]))(features)
        >>> (classifier(features) - moved).detach().exp()[0]
        tensor([0.7500, 0.2500])
    """
    new = _copied(classifier)
    counts = _as_counts(counts)
    if len(counts) != new.out_features:
        raise ValueError(
            f"counts must be of the {new.out_features} classes, got {checks.shown(counts)}"
        )
    step = counts.log().log_softmax(0).to(new.weight)
    bias = step.new_zeros(len(step)) if new.bias is None else new.bias.detach()
    new.bias = nn.Parameter(bias - step)
    return new


def accuracy_by_count(probabilities: Tensor, labels: Tensor, counts: Tensor) -> dict[str, float]:
    """Compute accuracy by the number of training examples, with equal weights for classes.

    :param Tensor probabilities: probabilities or logits of the test data. **Shape:**
        ``(n, num_classes)``.
    :param Tensor labels: classes of the test data. **Shape:** ``(n,)``.
    :param Tensor counts: numbers of training examples. **Shape:** ``(num_classes,)``.
    :returns: mean accuracies of ``"all"`` classes, of those with ``"few"`` examples (fewer than
        20), with ``"many"`` (more than 100), and of the rest, ``"medium"``; NaN for a group without
        test data.

    Example::

        >>> probabilities = torch.eye(3)[[0, 1, 1, 2]]
        >>> labels, counts = torch.tensor([0, 1, 2, 2]), torch.tensor([200, 50, 5])
        >>> accuracy_by_count(probabilities, labels, counts)
        {'all': 0.8333333134651184, 'many': 1.0, 'medium': 1.0, 'few': 0.5}
    """
    counts = _as_counts(counts)
    probabilities = checks.as_tensor(
        "probabilities", probabilities, f"(n, {len(counts)})", finite=True
    )
    labels = _as_labels(labels, len(probabilities), len(counts))
    is_right = (probabilities.argmax(-1) == labels).float()
    totals = labels.bincount(minlength=len(counts))
    of_class = labels.bincount(is_right, minlength=len(counts)) / totals
    groups = {
        "all": counts > 0,
        "many": counts > 100,
        "medium": (counts >= 20) & (counts <= 100),
        "few": counts < 20,
    }
    found = {name: of_class[mask.to(totals.device) & (totals > 0)] for name, mask in groups.items()}
    return {name: float(values.mean()) for name, values in found.items()}


def _copied(classifier: Any) -> nn.Linear:
    checks.instance(
        "classifier", classifier, nn.Linear, "a torch.nn.Linear, the last layer of a network"
    )
    new = nn.Linear(
        classifier.in_features,
        classifier.out_features,
        classifier.bias is not None,
        device=classifier.weight.device,
        dtype=classifier.weight.dtype,
    )
    new.load_state_dict(classifier.state_dict())
    return new


def _as_counts(counts: Any) -> Tensor:
    """Numbers of examples, as floating-point numbers."""
    numbers = checks.as_tensor("counts", counts, "(num_classes,)", kind="integers").double()
    if not bool((numbers > 0).all()):
        raise ValueError(f"counts must be at least one for each class, got {counts!r:.80}")
    return numbers


def _as_labels(labels: Tensor | Sequence[int], size: int, num_classes: int | None = None) -> Tensor:
    labels = checks.as_tensor("labels", labels, f"({size},)", kind="integers")
    most = None if num_classes is None else num_classes - 1
    if int(labels.min()) < 0 or (most is not None and int(labels.max()) > most):
        raise ValueError(
            f"labels must be from 0 to {'the last class' if most is None else most}, got from "
            f"{int(labels.min())} to {int(labels.max())}"
        )
    return labels
