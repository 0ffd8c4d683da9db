"""Bags of instances with one label each: slots, attention pooling, subsampling and mixup."""

from typing import Any, NamedTuple, Unpack

import torch
from torch import Tensor, nn
from torch.nn import functional

from pyro_ext._lib import checks
from pyro_ext.nn import PMA, SAB
from pyro_ext.nn.attention import AttentionOptions, check_heads

_ATTENTION_SIZE = 64  # of the rivals


class SlotMIL(nn.Module):
    r"""Multiple-instance learning through slots, whose number is fixed for bags of any size [1].

    Learned queries :math:`I` attend to the instances :math:`X` of a bag, and a classifier attends
    to the resulting slots,

    .. math::
        Z = \mathrm{PMA}_S(X) = \mathrm{MAB}(I, X), \qquad
        \text{logits} = W\, \mathrm{PMA}_1(\mathrm{SAB}(Z)) + b.

    The order of instances does not matter, nor do copies if each instance has the same number of
    them. Since all bags share the queries, slot :math:`i` of one bag corresponds to slot :math:`i`
    of another, so that they can be mixed: see :func:`slot_mixup`. The paper's code is not public;
    layout and defaults are a reconstruction. A bag without instances has the slots of the queries
    alone.

    Like any network, it can be the likelihood of a Pyro model:
    ``pyro.sample("y", dist.Categorical(logits=network(x, mask)), obs=y)``.

    :param int input_size: number of features of an instance.
    :param int num_classes: number of classes.
    :param int num_slots: :math:`S`.
    :param int hidden_size: number of features of a slot, a multiple of ``num_heads``.
    :param int num_heads: number of heads of all attention.
    :param options: ``scaling``, by default that of a ``"head"``, ``layer_norm``, ``bias``,
        ``dropout`` and other options of :class:`~pyro_ext.nn.MAB`. With ``normalize="queries"``,
        slots compete for instances, as in slot attention; the classifier's attention is still
        normalized over keys.

    [1] S. Keum, S. Kim, S. Lee, J. Lee (2023), Slot-Mixup with subsampling: a simple regularization
    for WSI classification.

    Example::

        >>> network = SlotMIL(input_size=3, num_classes=2, num_slots=4, hidden_size=16)
        >>> bags = torch.randn(5, 20, 3)
        >>> network(bags).shape, network.slots(bags).shape
        (torch.Size([5, 2]), torch.Size([5, 4, 16]))
    """

    def __init__(
        self,
        input_size: int,
        num_classes: int,
        num_slots: int = 16,
        hidden_size: int = 128,
        num_heads: int = 4,
        **options: Unpack[AttentionOptions],
    ) -> None:
        super().__init__()
        self.input_size = checks.integer("input_size", input_size, 1)
        checks.integer("num_classes", num_classes, 1)
        checks.integer("num_slots", num_slots, 1)
        check_heads("hidden_size", hidden_size, num_heads)
        self.hidden_size = hidden_size
        options = AttentionOptions(scaling="head") | options
        self.encoder = PMA(input_size, hidden_size, num_slots, num_heads, **options)
        options = options | AttentionOptions(normalize="keys")
        self.interaction = SAB(hidden_size, hidden_size, num_heads, **options)
        self.pooling = PMA(hidden_size, hidden_size, 1, num_heads, **options)
        self.output = nn.Linear(hidden_size, num_classes)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Compute logits of bags, ``classify(slots(x, mask))``.

        :param Tensor x: instances. **Shape:** ``(*batch, num_instances, input_size)``.
        :param Tensor mask: booleans, true for instances and false for padding.
            **Shape:** ``(*batch, num_instances)``.
        :returns: **Shape:** ``(*batch, num_classes)``.
        """
        return self.classify(self.slots(x, mask))

    def slots(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Compute slots of bags; arguments as for :meth:`forward`.

        :returns: **Shape:** ``(*batch, num_slots, hidden_size)``.
        """
        slots: Tensor = self.encoder(*_checked(x, mask, self.input_size, next(self.parameters())))
        return slots

    def classify(self, slots: Tensor) -> Tensor:
        """Compute logits from slots.

        :param Tensor slots: **Shape:** ``(*batch, num_slots, hidden_size)``.
        :returns: **Shape:** ``(*batch, num_classes)``.
        """
        shape = f"(*batch, num_slots, {self.hidden_size})"
        like = next(self.parameters())
        slots = checks.as_tensor("slots", slots, shape, allow_empty=True, like=like)
        logits: Tensor = self.output(self.pooling(self.interaction(slots)).squeeze(-2))
        return logits

    def attention(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return the attention weights of slots over instances; arguments as for :meth:`forward`.

        :returns: weights that sum to one over the instances of a bag, zero for padding; with
            ``normalize="queries"`` nearly one. **Shape:**
            ``(*batch, num_heads, num_slots, num_instances)``.
        """
        x, mask = _checked(x, mask, self.input_size, next(self.parameters()))
        return self.encoder.block.weights(self.encoder.seeds, x, mask)


class ABMIL(nn.Module):
    r"""Attention-based pooling of a bag, the usual alternative to slots [1].

    .. math::
        h_i = \mathrm{relu}(W x_i + b), \qquad
        a_i \propto \exp\bigl(w^\top \tanh(V h_i)\bigr), \qquad
        \text{logits} = C \sum_i a_i h_i + c.

    A bag without instances has the logits :math:`c`. :math:`V` has 64 rows.

    :param int input_size: number of features of an instance.
    :param int num_classes: number of classes.
    :param int hidden_size: number of features of :math:`h_i`.

    [1] M. Ilse, J. M. Tomczak, M. Welling (2018), Attention-based deep multiple instance learning.

    Example::

        >>> network = ABMIL(input_size=3, num_classes=2)
        >>> bags = torch.randn(5, 20, 3)
        >>> network(bags).shape, network.attention(bags).shape
        (torch.Size([5, 2]), torch.Size([5, 20]))
    """

    def __init__(self, input_size: int, num_classes: int, hidden_size: int = 128) -> None:
        super().__init__()
        self.input_size = checks.integer("input_size", input_size, 1)
        checks.integer("num_classes", num_classes, 1)
        checks.integer("hidden_size", hidden_size, 1)
        self.encoder = nn.Sequential(nn.Linear(input_size, hidden_size), nn.ReLU())
        self.projection = nn.Linear(hidden_size, _ATTENTION_SIZE)
        self.score = nn.Linear(_ATTENTION_SIZE, 1, bias=False)
        self.output = nn.Linear(hidden_size, num_classes)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Compute logits of bags; arguments and result as for :meth:`SlotMIL.forward`."""
        hidden, weights = self._attend(x, mask)
        logits: Tensor = self.output((weights[..., None, :] @ hidden).squeeze(-2))
        return logits

    def attention(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Compute weights of instances; arguments as for :meth:`SlotMIL.forward`.

        :returns: weights that sum to one over the instances of a bag, zero for padding. **Shape:**
            ``(*batch, num_instances)``.
        """
        return self._attend(x, mask)[1]

    def _attend(self, x: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        x, mask = _checked(x, mask, self.input_size, next(self.parameters()))
        if mask is None:
            hidden = self.encoder(x)
            return hidden, self._scores(hidden).softmax(-1)
        hidden = self.encoder(x.masked_fill(~mask[..., None], 0))
        scores = self._scores(hidden)
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
        return hidden, scores.softmax(-1) * mask  # without instances zero, and no NaN

    def _scores(self, hidden: Tensor) -> Tensor:
        scores: Tensor = self.score(self.projection(hidden).tanh())
        return scores.squeeze(-1)


class GatedABMIL(ABMIL):
    r"""Gated attention-based pooling, an :class:`ABMIL` with another score [1].

    .. math:: a_i \propto \exp\bigl(w^\top (\tanh(V h_i) \odot \sigma(U h_i))\bigr).

    :param int input_size: as for :class:`ABMIL`, like the other parameters.

    [1] See :class:`ABMIL`.

    Example::

        >>> GatedABMIL(input_size=3, num_classes=2)(torch.randn(5, 20, 3)).shape
        torch.Size([5, 2])
    """

    def __init__(self, input_size: int, num_classes: int, hidden_size: int = 128) -> None:
        super().__init__(input_size, num_classes, hidden_size)
        self.gate = nn.Linear(hidden_size, _ATTENTION_SIZE)

    def _scores(self, hidden: Tensor) -> Tensor:
        gated = self.projection(hidden).tanh() * self.gate(hidden).sigmoid()
        scores: Tensor = self.score(gated)
        return scores.squeeze(-1)


class MixedSlots(NamedTuple):
    """Result of :func:`slot_mixup`.

    :param Tensor slots: mixed slots. **Shape:** ``(num_bags, num_slots, hidden_size)``.
    :param Tensor labels: labels of a bag and of its partner. **Shape:** ``(num_bags, 2)``.
    :param Tensor weights: weights of both labels, which sum to one. **Shape:** ``(num_bags, 2)``.
    """

    slots: Tensor
    labels: Tensor
    weights: Tensor

    def cross_entropy(self, logits: Tensor) -> Tensor:
        r"""Return :math:`\lambda \mathrm{CE}(y_1) + (1 - \lambda) \mathrm{CE}(y_2)`, averaged.

        :param Tensor logits: logits of the mixed slots. **Shape:** ``(num_bags, num_classes)``.
        """
        log_probs = logits.log_softmax(-1).gather(-1, self.labels)
        return -(self.weights * log_probs).sum(-1).mean()


def slot_mixup(
    slots: Tensor, labels: Tensor, alpha: float = 1.0, generator: torch.Generator | None = None
) -> MixedSlots:
    r"""Mix the slots of each bag with those of a random partner, slot by slot [1].

    .. math:: \tilde Z = \lambda Z_1 + (1 - \lambda) Z_2, \qquad
        \lambda \sim \mathrm{Beta}(\alpha, \alpha).

    A permutation of the bags determines the partners; a bag can be its own partner. Each pair has
    its own :math:`\lambda`.

    :param Tensor slots: slots that correspond to each other. **Shape:**
        ``(num_bags, num_slots, hidden_size)``.
    :param Tensor labels: integer classes. **Shape:** ``(num_bags,)``.
    :param float alpha: :math:`\alpha > 0`; small values hardly mix.
    :param generator: generator for partners and weights; by default PyTorch's global one.
    :returns: mixed slots, and both labels of each with their weights.
    :raises ValueError: for shapes that do not fit, or a number out of range.

    [1] See :class:`SlotMIL`.

    Example::

        >>> mixed = slot_mixup(torch.randn(4, 8, 16), torch.tensor([0, 1, 0, 1]))
        >>> mixed.slots.shape, mixed.labels.shape, mixed.weights.sum(-1)
        (torch.Size([4, 8, 16]), torch.Size([4, 2]), tensor([1., 1., 1., 1.]))
    """
    slots = checks.as_tensor("slots", slots, "(num_bags, num_slots, hidden_size)")
    labels = checks.as_tensor("labels", labels, f"({len(slots)},)", kind="integers")
    alpha = checks.number("alpha", alpha, above=0.0)
    device = _device(generator, slots)
    partners = torch.randperm(len(slots), generator=generator, device=device).to(slots.device)
    # Gamma variables in logarithms: with a small concentration they underflow.
    shape = torch.full((len(slots), 2), alpha + 1.0, dtype=torch.float64, device=device)
    log_gamma = torch._standard_gamma(shape, generator).log()
    log_gamma = log_gamma - torch.empty_like(shape).exponential_(generator=generator) / alpha
    weights = log_gamma.softmax(-1).to(slots)
    first, second = weights[:, 0, None, None], weights[:, 1, None, None]
    return MixedSlots(
        first * slots + second * slots[partners],
        torch.stack([labels, labels[partners.to(labels.device)]], -1),
        weights,
    )


def subsample_bags(
    x: Tensor,
    mask: Tensor | None = None,
    rate: float = 0.5,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """Keep a random part of the instances of each bag [1].

    From a bag of size ``n``, it keeps ``max(1, round(rate * n))`` instances, drawn without
    replacement. The handler :func:`~pyro_ext.handlers.subsample_instances` does the same for a
    plate of a Pyro model.

    :param Tensor x: instances. **Shape:** ``(*batch, num_instances, input_size)``.
    :param Tensor mask: booleans, false for padding. **Shape:** ``(*batch, num_instances)``.
    :param float rate: fraction of instances to keep, in ``(0, 1]``.
    :param generator: generator for the draws; by default PyTorch's global one.
    :returns: the kept instances, in random order, and their mask; padding comes last.
        **Shape:** ``(*batch, num_kept, input_size)`` and ``(*batch, num_kept)``.
    :raises ValueError: for shapes that do not fit, an empty bag, or a rate out of range.

    [1] See :class:`SlotMIL`.

    Example::

        >>> mask = torch.arange(10) < torch.tensor([[10], [4], [1]])
        >>> kept, present = subsample_bags(torch.randn(3, 10, 2), mask, rate=0.5)
        >>> kept.shape, present.sum(-1)
        (torch.Size([3, 5, 2]), tensor([5, 2, 1]))
    """
    x, mask = _filled_bags(x, mask)
    rate = checks.number("rate", rate, above=0.0, most=1.0)
    if mask is None:
        mask = x.new_ones(x.shape[:-1], dtype=torch.bool)
    device = _device(generator, x)
    order = torch.rand(mask.shape, generator=generator, device=device, dtype=torch.float64)
    index = order.to(x.device).masked_fill(~mask, 2.0).argsort(-1)
    num_kept = max(1, round(rate * mask.shape[-1]))  # at most, whatever the bags hold
    sizes = (rate * mask.sum(-1, keepdim=True).double()).round().clamp(min=1)
    kept = mask.take_along_dim(index[..., :num_kept], -1)
    kept = kept & (torch.arange(kept.shape[-1], device=x.device) < sizes)
    return x.take_along_dim(index[..., :num_kept, None], -2), kept


def submix_loss(
    network: Any,
    x: Tensor,
    labels: Tensor,
    mask: Tensor | None = None,
    *,
    rate: float = 1.0,
    alpha: float | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Cross-entropy of bags that are subsampled and then mixed by their slots [1].

    Use it in training only: to predict, call the network with all instances. Mixing from the first
    step on underfits; [1] starts it late.

    :param network: returns logits, ``network(x, mask)``; to be mixed, it must have ``slots`` and
        ``classify``, as :class:`SlotMIL` does.
    :param Tensor x: instances. **Shape:** ``(num_bags, num_instances, input_size)``.
    :param Tensor labels: integer classes. **Shape:** ``(num_bags,)``.
    :param Tensor mask: booleans, false for padding. **Shape:** ``(num_bags, num_instances)``.
    :param float rate: rate of :func:`subsample_bags`; 1 keeps all instances.
    :param float alpha: parameter of :func:`slot_mixup`, or ``None`` for no mixup.
    :param generator: generator for subsets and mixtures; by default PyTorch's global one.
    :returns: the mean over bags, a scalar.
    :raises TypeError: for a network that cannot be mixed.
    :raises ValueError: for labels that are not classes of the network, shapes that do not fit, an
        empty bag, or numbers out of range.

    [1] See :class:`SlotMIL`.

    Example::

        >>> from pyro_ext.inference import Trainer
        >>> network = SlotMIL(input_size=3, num_classes=2, num_slots=4, hidden_size=16)
        >>> x, labels = torch.randn(6, 20, 3), torch.arange(6) % 2
        >>> def loss():
        ...     return submix_loss(network, x, labels, rate=0.5, alpha=1.0)
        >>> losses = Trainer(network, seed=0).run(loss, 3, progress=False)
    """
    checks.function("network", network, "a network of bags", or_class=False)
    labels = checks.as_tensor("labels", labels, "(num_bags,)", kind="integers")
    x, mask = _filled_bags(x, mask)
    if checks.number("rate", rate, above=0.0, most=1.0) < 1.0:
        x, mask = subsample_bags(x, mask, rate, generator)
    if alpha is None:
        logits = network(x, mask)
        _check_classes(labels, logits)
        return functional.cross_entropy(logits, labels)
    if not (hasattr(network, "slots") and hasattr(network, "classify")):
        raise TypeError(
            "network must have slots and classify to be mixed, as SlotMIL has; got "
            + checks.shown(network)
        )
    mixed = slot_mixup(network.slots(x, mask), labels, alpha, generator)
    logits = network.classify(mixed.slots)
    _check_classes(labels, logits)
    return mixed.cross_entropy(logits)


def attention_concentration(weights: Tensor, mask: Tensor | None = None) -> Tensor:
    """Sum of the largest weights of a bag: on how few instances attention concentrates [1].

    For a bag of size ``n``, it sums ``max(1, round(n / 10))`` weights. Uniform weights give a
    tenth; attention to no more instances than that gives one.

    :param Tensor weights: weights of the instances of bags, which sum to one. **Shape:**
        ``(*batch, num_instances)``.
    :param Tensor mask: booleans, false for padding. **Shape:** ``(*batch, num_instances)``.
    :returns: **Shape:** ``(*batch,)``.
    :raises ValueError: for weights that are not finite or shapes that do not fit.

    [1] See :class:`SlotMIL`.

    Example::

        >>> attention_concentration(torch.tensor([[0.7, 0.1, 0.1, 0.1], [0.25, 0.25, 0.25, 0.25]]))
        tensor([0.7000, 0.2500])
    """
    weights = checks.as_tensor("weights", weights, "(*batch, num_instances)")
    checks.all_finite("weights", weights)
    mask = _checked_mask(mask, weights.shape)
    mask = torch.ones_like(weights, dtype=torch.bool) if mask is None else mask
    sizes = (0.1 * mask.sum(-1, keepdim=True).double()).round().clamp(min=1)
    largest = weights.masked_fill(~mask, 0).sort(-1, descending=True).values
    counted = torch.arange(weights.shape[-1], device=weights.device) < sizes
    return (largest * counted).sum(-1)


def _checked(
    x: Tensor, mask: Tensor | None, input_size: int | None = None, like: Tensor | None = None
) -> tuple[Tensor, Tensor | None]:
    shape = f"(*batch, num_instances, {input_size or 'input_size'})"
    x = checks.as_tensor("x", x, shape, allow_empty=True, like=like)
    mask = _checked_mask(mask, x.shape[:-1])
    checks.all_finite("x", x if mask is None else x.masked_fill(~mask[..., None], 0))
    return x, mask


def _filled_bags(x: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Check bags to learn from, of which none is empty."""
    x, mask = _checked(x, mask)
    is_filled = torch.tensor(x.shape[-2] > 0) if mask is None else mask.any(-1)
    if not bool(is_filled.all()):
        argument = "x" if mask is None else "mask"
        raise ValueError(
            f"{argument} must leave at least one instance in each bag, got "
            f"{int((~is_filled).sum())} without any"
        )
    return x, mask


def _checked_mask(mask: Tensor | None, shape: torch.Size) -> Tensor | None:
    checked: Tensor | None = checks.optional(
        checks.as_tensor, "mask", mask, str(tuple(shape)), kind="booleans", allow_empty=True
    )
    return checked


def _check_classes(labels: Tensor, logits: Tensor) -> None:
    if bool((labels < 0).any() | (labels >= logits.shape[-1]).any()):
        raise ValueError(
            f"labels must be classes below {logits.shape[-1]}, got {labels.tolist()!r:.80}"
        )


def _device(generator: torch.Generator | None, tensor: Tensor) -> torch.device:
    """Return the device on which a generator draws, by default that of the tensor."""
    checks.optional(
        checks.instance, "generator", generator, torch.Generator, "a torch.Generator or None"
    )
    return tensor.device if generator is None else generator.device
