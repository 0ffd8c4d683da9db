"""Networks that find one cluster at a time in a set of points, and their losses.

[1] J. Lee, Y. Lee, Y. W. Teh (2019), Deep amortized clustering.
"""

from collections.abc import Callable
from typing import NamedTuple, cast

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.nn import functional

from pyro_ext._lib import checks
from pyro_ext.nn import ISAB, MAB, PMA

_LEAST_SCALE = 1e-6


# Densities do not check what a network predicts: where it is not finite, the loss says so.


class DiagonalNormal(nn.Module):
    """Normal distributions with independent features.

    :param int num_features: number of features of a point.

    Example::

        >>> DiagonalNormal(2)(torch.zeros(5, 4)).batch_shape
        torch.Size([5])
    """

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_parameters = 2 * checks.integer("num_features", num_features, 1)

    def forward(self, parameters: Tensor) -> dist.TorchDistribution:
        """Return distributions with these means and, before a softplus, standard deviations.

        :param Tensor parameters: **Shape:** ``(*batch, num_parameters)``.
        """
        loc, scale = _parameters(self, parameters).chunk(2, -1)
        normal = dist.Normal(loc, _positive(scale), validate_args=False)
        return cast(dist.TorchDistribution, normal.to_event(1))


class RankOneNormal(nn.Module):
    r"""Normal distributions with covariance :math:`v I + w w^\top`.

    :param int num_features: number of features of a point.

    Example::

        >>> RankOneNormal(2)(torch.zeros(5, 5)).event_shape
        torch.Size([2])
    """

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = checks.integer("num_features", num_features, 1)
        self.num_parameters = 2 * num_features + 1

    def forward(self, parameters: Tensor) -> dist.TorchDistribution:
        """Return distributions with this mean, vector and, before a softplus, variance.

        :param Tensor parameters: **Shape:** ``(*batch, num_parameters)``.
        """
        sizes = (self.num_features, self.num_features, 1)
        loc, vector, variance = _parameters(self, parameters).split(sizes, -1)
        diagonal = _positive(variance).expand_as(loc)
        return dist.LowRankMultivariateNormal(loc, vector[..., None], diagonal, validate_args=False)


_DENSITIES: dict[str, Callable[[int], nn.Module]] = {
    "diagonal": DiagonalNormal,
    "rank_one": RankOneNormal,
}


class FilterOutput(NamedTuple):
    """Output of a :class:`FilteringNetwork` for one cluster of each set.

    :param Tensor logits: logit of each point to be in the cluster. **Shape:** ``(*batch, n)``.
    :param Tensor parameters: parameters of the cluster's density; ``None`` without one. **Shape:**
        ``(*batch, num_parameters)``.
    :param Tensor log_prob: log density of each point in the cluster; ``None`` without a density.
        **Shape:** ``(*batch, n)``.
    """

    logits: Tensor
    parameters: Tensor | None
    log_prob: Tensor | None


class FilteringNetwork(nn.Module):
    r"""Set Transformer that returns one of the clusters of a set [1].

    Stacks of induced set attention pool the cluster from the set, and then present it to each
    point:

    .. math::
        H = \mathrm{ISAB}_L(X), \quad h = \mathrm{PMA}_1(H), \quad
        \text{parameters} = \mathrm{linear}(h), \quad
        \text{logits} = \mathrm{linear}(\mathrm{ISAB}_L(\mathrm{MAB}(H, h))).

    An anchored network finds the cluster of a given point :math:`x_a`: it uses
    :math:`\mathrm{MAB}(X, x_a)` in place of :math:`X`. Masked points are invisible to the others.

    :param int in_features: number of features of a point.
    :param density: density of the points of a cluster: ``"diagonal"`` (:class:`DiagonalNormal`),
        ``"rank_one"`` (:class:`RankOneNormal`), a module like these, or ``None`` for logits alone.
    :param bool anchored: whether to find the cluster of a given point.
    :param int width: number of hidden features, a multiple of ``num_heads``.
    :param int num_blocks: :math:`L`. Blocks have separate weights, which the code of [1] shares.
    :param int num_inducing: number of inducing points.
    :param int num_heads: number of heads.
    :param embedding: a module that first maps a point to ``width`` features.

    Example::

        >>> network = FilteringNetwork(2, width=16, num_blocks=1, num_inducing=4)
        >>> output = network(torch.randn(3, 50, 2))
        >>> output.logits.shape, output.parameters.shape, output.log_prob.shape
        (torch.Size([3, 50]), torch.Size([3, 4]), torch.Size([3, 50]))
    """

    def __init__(
        self,
        in_features: int,
        density: str | nn.Module | None = "diagonal",
        *,
        anchored: bool = False,
        width: int = 128,
        num_blocks: int = 4,
        num_inducing: int = 32,
        num_heads: int = 4,
        embedding: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.in_features = checks.integer("in_features", in_features, 1)
        self.anchored = checks.boolean("anchored", anchored)
        checks.integer("num_blocks", num_blocks, 1)
        if isinstance(density, str):
            checks.choice("density", density, _DENSITIES)
            density = _DENSITIES[density](in_features)
        if density is not None and not hasattr(density, "num_parameters"):
            raise TypeError(
                "density must be a name, a module with num_parameters such as DiagonalNormal(2), "
                f"or None, got {checks.shown(density)}"
            )
        self.density = density
        if embedding is not None:
            checks.instance("embedding", embedding, nn.Module, "a module or None")
        self.embedding = embedding

        def mab(query_features: int, key_features: int) -> MAB:
            return MAB(query_features, key_features, width, num_heads, bias=True, layer_norm=False)

        def stack(first: int) -> nn.ModuleList:
            return nn.ModuleList(
                ISAB(features, width, num_inducing, num_heads, bias=True, layer_norm=False)
                for features in (first, *[width] * (num_blocks - 1))
            )

        features = in_features if embedding is None else width
        self.anchoring = mab(features, features) if anchored else None
        self.encoder = stack(width if anchored else features)
        self.pooling = PMA(width, width, 1, num_heads, bias=True, layer_norm=False)
        if density is not None:
            self.head = nn.Linear(width, cast(int, density.num_parameters))
        self.conditioning = mab(width, width)
        self.decoder = stack(width)
        self.classifier = nn.Linear(width, 1)

    def forward(
        self, x: Tensor, mask: Tensor | None = None, anchor: Tensor | None = None
    ) -> FilterOutput:
        """Find one cluster of each set.

        :param Tensor x: the points. **Shape:** ``(*batch, n, in_features)``.
        :param Tensor mask: booleans, true for points, false for padding and for points of clusters
            that have been found, whose logits are meaningless. **Shape:** ``(*batch, n)``.
        :param Tensor anchor: index of the point whose cluster to find, for an anchored network.
            **Shape:** ``(*batch,)``.
        :returns: logits, parameters, and log densities.
        :raises ValueError: names the argument, what it got and what it wants.
        """
        x = checks.as_tensor(
            "x", x, f"(*batch, n, {self.in_features})", like=self.classifier.weight
        )
        if mask is not None:
            mask = checks.as_tensor("mask", mask, str(tuple(x.shape[:-1])), kind="booleans").to(
                x.device
            )
            x = x.masked_fill(~mask[..., None], 0.0)
        checks.all_finite("x", x)
        if self.anchored != (anchor is not None):
            wanted = "given to an anchored network" if self.anchored else "None if not anchored"
            raise ValueError(f"anchor must be {wanted}, got {checks.shown(anchor)}")
        hidden = x if self.embedding is None else self.embedding(x)
        if self.anchoring is not None and anchor is not None:
            anchor = _anchor(anchor, x.shape[:-1]).to(x.device)
            index = anchor[..., None, None].expand(*anchor.shape, 1, hidden.shape[-1])
            hidden = self.anchoring(hidden, hidden.gather(-2, index))
        for block in self.encoder:
            hidden = block(hidden, mask)
        pooled = self.pooling(hidden, mask)
        parameters, log_prob = None, None
        if self.density is not None:
            parameters = self.head(pooled)
            log_prob = self.density(parameters).log_prob(x)
            parameters = parameters.squeeze(-2)
        hidden = self.conditioning(hidden, pooled)
        for block in self.decoder:
            hidden = block(hidden, mask)
        return FilterOutput(self.classifier(hidden).squeeze(-1), parameters, log_prob)


def minimum_filtering_loss(
    output: FilterOutput, labels: Tensor, density_weight: float = 1.0
) -> Tensor:
    r"""Loss of the cluster that is closest to what a network found [1].

    With :math:`y_{ik}` for whether point :math:`i` is in cluster :math:`k`, the loss of cluster
    :math:`k` is

    .. math:: \mathcal{L}_k = \frac1n \sum_i \mathrm{BCE}(\text{logit}_i, y_{ik})
        - \lambda \frac{\sum_i y_{ik} \log p(x_i)}{\sum_i y_{ik}}.

    :param FilterOutput output: output of the network.
    :param Tensor labels: integers >= 0. **Shape:** ``(*batch, n)``.
    :param float density_weight: :math:`\lambda`.
    :returns: the smallest loss over clusters, averaged over sets.
    :raises ValueError: names the argument, what it got and what it wants.

    Example::

        >>> output = FilterOutput(torch.tensor([9.0, 9.0, -9.0]), None, None)
        >>> minimum_filtering_loss(output, torch.tensor([1, 1, 0])).item() < 1e-3
        True
    """
    targets = functional.one_hot(_checked(output, labels))
    return _mean_of_least(output, targets, density_weight)


def anchored_filtering_loss(
    output: FilterOutput, labels: Tensor, anchor: Tensor, density_weight: float = 1.0
) -> Tensor:
    r"""Loss of the cluster of the anchor, :math:`\mathcal{L}_k` of :func:`minimum_filtering_loss`.

    :param FilterOutput output: output of the network.
    :param Tensor labels: integers >= 0. **Shape:** ``(*batch, n)``.
    :param Tensor anchor: indices of the anchors. **Shape:** ``(*batch,)``.
    :param float density_weight: :math:`\lambda`.
    :returns: the loss, averaged over sets.
    :raises ValueError: names the argument, what it got and what it wants.

    Example::

        >>> output = FilterOutput(torch.tensor([9.0, 9.0, -9.0]), None, None)
        >>> anchored_filtering_loss(output, torch.tensor([1, 1, 0]), torch.tensor(0)).item() < 1e-3
        True
    """
    labels = _checked(output, labels)
    anchor = _anchor(anchor, labels.shape).to(labels.device)
    targets = labels == labels.gather(-1, anchor[..., None])
    return _mean_of_least(output, targets[..., None], density_weight)


def _mean_of_least(output: FilterOutput, targets: Tensor, density_weight: float) -> Tensor:
    """Mean over sets of the least loss of a cluster; targets are of the shape (*batch, n, K)."""
    checks.number("density_weight", density_weight, least=0)
    logits, targets = output.logits, targets.to(output.logits)
    members = targets.sum(-2)
    costs = functional.softplus(logits).sum(-1, keepdim=True)
    losses = (costs - _total(targets, logits)) / logits.shape[-1]
    if output.log_prob is not None:
        log_prob = _total(targets, output.log_prob)
        losses = losses - density_weight * log_prob / members.clamp(min=1)
    return losses.masked_fill(members == 0, torch.inf).min(-1).values.mean()


def _total(targets: Tensor, values: Tensor) -> Tensor:
    """Sums of values over the points of each cluster. **Shape:** ``(*batch, K)``."""
    return (targets.mT @ values[..., None]).squeeze(-1)


def _checked(output: FilterOutput, labels: Tensor) -> Tensor:
    """Labels of all points."""
    checks.instance("output", output, FilterOutput, "what a FilteringNetwork returns")
    shape = str(tuple(output.logits.shape))
    labels = checks.as_tensor("labels", labels, shape, kind="integers").to(output.logits.device)
    if bool((labels < 0).any()):
        raise ValueError(f"labels must be integers >= 0, got {int(labels.min())}")
    return labels.long()


def _anchor(anchor: Tensor, shape: torch.Size) -> Tensor:
    """Indices of anchors, one for each set of the shape ``(*batch, n)``."""
    wanted = str(tuple(shape[:-1]))
    anchor = checks.as_tensor("anchor", anchor, wanted, kind="integers", allow_empty=True).long()
    if bool(((anchor < 0) | (anchor >= shape[-1])).any()):
        raise ValueError(
            f"anchor must be indices of the {shape[-1]} points, got {anchor.tolist()!r:.80}"
        )
    return anchor


def _parameters(density: nn.Module, parameters: Tensor) -> Tensor:
    return checks.as_tensor("parameters", parameters, f"(*batch, {density.num_parameters})")


def _positive(value: Tensor) -> Tensor:
    return functional.softplus(value) + _LEAST_SCALE
