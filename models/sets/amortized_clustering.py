"""Clustering by a network that removes one cluster after the other from a set.

[1] J. Lee, Y. Lee, Y. W. Teh (2019), Deep amortized clustering.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple, TypeAlias, Unpack

import torch
from torch import Tensor
from torch.nn import functional
from torch.optim.lr_scheduler import CosineAnnealingLR

from pyro_ext._lib import checks
from pyro_ext._lib.modes import in_mode
from pyro_ext.inference.training import Trainer, TrainingOptions
from pyro_ext.inference.training.checkpoints import seed_of
from pyro_ext.inference.training.trainer import Optimizer
from pyro_ext.models.sets.filtering import (
    FilteringNetwork,
    anchored_filtering_loss,
    minimum_filtering_loss,
)
from pyro_ext.random import seeded

Generator: TypeAlias = Callable[[], tuple[Tensor, Tensor]]

_ADAM = partial(torch.optim.Adam, lr=5e-4)


class Clustering(NamedTuple):
    """Clusters of sets.

    :param Tensor labels: clusters of the points, in the order of first occurrence, -1 for padding.
        **Shape:** ``(*batch, n)``.
    :param Tensor parameters: parameters of the densities of clusters, for points minus ``loc``
        divided by ``scale``, in the order of labels, zero for clusters that a set does not have;
        ``None`` without a density. **Shape:** ``(*batch, K, num_parameters)``.
    :param Tensor log_likelihood: log density of a point in the mixture of the clusters, weighted by
        size, averaged over points; ``None`` without a density. **Shape:** ``(*batch,)``.
    :param Tensor num_passes: number of passes of the network. **Shape:** ``(*batch,)``.
    :param Tensor failed: whether a pass found no point, or points remained after the last pass, so
        that the network did not determine some of the labels. **Shape:** ``(*batch,)``.
    """

    labels: Tensor
    parameters: Tensor | None
    log_likelihood: Tensor | None
    num_passes: Tensor
    failed: Tensor
    loc: Tensor
    scale: Tensor


class AmortizedClusterer:
    """Clusters sets by passes of a filtering network, each of which removes one cluster [1].

    The number of clusters need not be known, and may be larger than in training. Each set is
    centered and scaled to a standard deviation of one over all features, in training and in use, so
    that clusters do not depend on the scale. Convert features in different units to a common unit
    first.

    :param FilteringNetwork network: the network, which :meth:`fit` changes.
    :param bool standardize: whether to center and scale sets. Without it, the network only works
        for points in the units of its training.

    Example::

        >>> from functools import partial
        >>> from pyro_ext.models.sets import FilteringNetwork, gaussian_mixtures
        >>> network = FilteringNetwork(2, width=16, num_blocks=1, num_inducing=4)
        >>> clusterer = AmortizedClusterer(network)
        >>> tasks = partial(gaussian_mixtures, num_sets=8, num_points=(20, 40))
        >>> losses = clusterer.fit(tasks, num_steps=5, seed=0, progress=False)
        >>> clusterer.cluster(torch.randn(100, 2)).labels.shape
        torch.Size([100])
    """

    def __init__(self, network: FilteringNetwork, *, standardize: bool = True) -> None:
        checks.instance("network", network, FilteringNetwork, "a FilteringNetwork")
        self.network = network
        self.standardize = checks.boolean("standardize", standardize)

    def fit(
        self,
        generator: Generator,
        num_steps: int,
        *,
        optimizer: Optimizer = _ADAM,
        max_norm: float | None = 10.0,
        density_weight: float = 1.0,
        seed: int | None = None,
        **training: Unpack[TrainingOptions],
    ) -> list[float]:
        """Train on sets with known clusters.

        The learning rate falls to zero along a cosine. Ctrl-C keeps whole steps.

        :param Callable generator: draws sets from PyTorch's or Pyro's generator and returns their
            points and labels, **Shape:** ``(num_sets, n, in_features)`` and ``(num_sets, n)``, for
            example a Pyro model such as a partial :func:`gaussian_mixtures`.
        :param int num_steps: number of steps, each on new sets.
        :param Callable optimizer: makes an optimizer from a list of parameters.
        :param float max_norm: norm to which the gradient is clipped.
        :param float density_weight: weight of densities in the loss.
        :param int seed: seed of sets and anchors; ``None`` takes the seed of the checkpoint if it
            exists, and otherwise one from PyTorch's generator.
        :param training: options of :class:`~pyro_ext.inference.training.TrainingOptions`.
        :returns: the loss of every step.
        :raises TrainingDiverged: if loss or gradient are not finite.
        """
        checks.function("generator", generator, "a function that returns points and labels")
        checks.integer("num_steps", num_steps, 0)
        checks.number("density_weight", density_weight, least=0)
        network = self.network
        trainer = Trainer(
            network,
            optimizer,
            scheduler=partial(CosineAnnealingLR, T_max=max(num_steps, 1)),
            max_norm=max_norm,
            identity={
                "density_weight": density_weight,
                "num_steps": num_steps,
                "standardize": self.standardize,
            },
            seed=seed_of(seed, training.get("checkpoint")),
        )

        def loss() -> Tensor:
            x, labels = _drawn(generator)
            x, _, _ = self._standardized(x, torch.ones_like(labels, dtype=torch.bool))
            if not network.anchored:
                return minimum_filtering_loss(network(x), labels, density_weight=density_weight)
            anchor = torch.randint(x.shape[1], x.shape[:1])
            output = network(x, anchor=anchor)
            return anchored_filtering_loss(output, labels, anchor, density_weight=density_weight)

        with in_mode(True, network):
            return trainer.run(loss, num_steps, description="Clustering", **training)

    @torch.no_grad()
    def cluster(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        *,
        max_passes: int = 50,
        seed: int | None = None,
    ) -> Clustering:
        """Cluster sets.

        A pass takes those of the remaining points that have positive logits. An anchored network
        draws an anchor from the remaining points, and the pass also takes the anchor. If no logit
        is positive, it takes the point with the largest logit, and the last pass takes all points,
        so that the passes always end.

        :param Tensor x: the points. **Shape:** ``(*batch, n, in_features)``.
        :param Tensor mask: booleans, true for points and false for padding of sets of different
            sizes. **Shape:** ``(*batch, n)``.
        :param int max_passes: largest number of passes, and hence of clusters.
        :param int seed: seed of anchors; ``None`` uses PyTorch's global generator.
        :returns: labels, parameters of clusters, and information about the passes.
        :raises ValueError: names the argument, what it got and what it wants, such as finite
            numbers and at least one point in each set.
        """
        checks.integer("max_passes", max_passes, 1)
        x = checks.as_tensor("x", x, f"(*batch, n, {self.network.in_features})")
        x = x.to(next(self.network.parameters()).device)
        batch_shape = x.shape[:-2]
        if mask is None:
            mask = torch.ones(x.shape[:-1], dtype=torch.bool, device=x.device)
        mask = checks.as_tensor("mask", mask, str(tuple(x.shape[:-1])), kind="booleans").to(
            x.device
        )
        if not bool(mask.any(-1).all()):
            raise ValueError(f"mask must leave a point in each set, got {checks.shown(mask)}")
        x = checks.as_tensor("x", x.masked_fill(~mask[..., None], 0), finite=True)
        x, mask = x.reshape(-1, *x.shape[-2:]), mask.reshape(-1, x.shape[-2])
        x, loc, scale = self._standardized(x, mask)
        with in_mode(False, self.network), seeded(seed):
            labels, parameters, log_likelihood, num_passes, failed = self._cluster(
                x, mask, max_passes
            )
        if log_likelihood is not None:
            log_likelihood = log_likelihood - x.shape[-1] * scale.log()
        flat = (labels, parameters, log_likelihood, num_passes, failed, loc, scale)
        return Clustering._make(
            None if one is None else one.reshape(batch_shape + one.shape[1:]) for one in flat
        )

    def _standardized(self, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Sets of the shape (B, n, d) as the network sees them, and what was taken from them."""
        like = next(self.network.parameters())
        points, present = x.double(), mask.to(x.device)[..., None].double()
        loc, scale = points.new_zeros(len(x), x.shape[-1]), points.new_ones(len(x))
        if self.standardize:
            number = present.sum(1)
            loc = (points * present).sum(1) / number
            centered = (points - loc[:, None]) * present
            scale = (centered.square().sum(1) / number).mean(-1).sqrt()
            scale = torch.where(scale > 0, scale, 1.0)
            points = centered / scale[:, None, None]
        return points.to(like), loc.to(like), scale.to(like)

    def _cluster(
        self, x: Tensor, mask: Tensor, max_passes: int
    ) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor, Tensor]:
        """Cluster sets of the shape (B, n, d)."""
        by_pass = torch.full(mask.shape, -1, device=x.device)
        num_passes = torch.zeros(len(x), dtype=torch.long, device=x.device)
        failed = torch.zeros(len(x), dtype=torch.bool, device=x.device)
        passes: list[Tensor | None] = []
        left = mask
        while bool(left.any()):
            is_active = left.any(-1)
            # Points that are not seen by others need not be looked at either.
            rows = left.int().argsort(dim=-1, descending=True)[:, : int(left.sum(-1).max())]
            rest = left.gather(1, rows)
            anchor = None
            if self.network.anchored:
                anchor = (rest | ~is_active[:, None]).double().multinomial(1)[:, 0]
            points = x.gather(1, rows[..., None].expand(*rows.shape, x.shape[-1]))
            logits, parameters, _ = self.network(points, rest, anchor)
            if bool(logits[rest].isnan().any()):
                raise ValueError("network must have logits that are numbers, got NaN")
            found = (logits > 0) & rest
            is_empty = is_active & ~found.any(-1)
            failed |= is_empty
            nearest = logits.masked_fill(~rest, -torch.inf).argmax(-1) if anchor is None else anchor
            forced = functional.one_hot(nearest, rows.shape[1]).bool() & rest
            found |= forced & (is_empty if anchor is None else is_active)[:, None]
            if len(passes) == max_passes - 1:
                failed |= (found != rest).any(-1)
                found = rest
            found = torch.zeros_like(left).scatter(1, rows, found)
            by_pass = by_pass.masked_fill(found, len(passes))
            passes.append(parameters)
            num_passes += is_active
            left = left & ~found
        return self._summary(x, mask, by_pass, passes, num_passes, failed)

    def _summary(
        self,
        x: Tensor,
        mask: Tensor,
        by_pass: Tensor,
        passes: list[Tensor | None],
        num_passes: Tensor,
        failed: Tensor,
    ) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor, Tensor]:
        """Clusters in the order of first occurrence, from the pass that has found each point."""
        members = functional.one_hot(by_pass.clamp(min=0), len(passes)) * mask[..., None]
        sizes = members.sum(1)
        first = members.argmax(1).masked_fill(sizes == 0, mask.shape[1])
        order = first.argsort(dim=-1, stable=True)
        labels = order.argsort(-1).gather(-1, by_pass.clamp(min=0)).masked_fill(~mask, -1)
        known = [parameters for parameters in passes if parameters is not None]
        if not known or self.network.density is None:
            return labels, None, None, num_passes, failed
        weights = sizes.gather(1, order) / mask.sum(-1, keepdim=True)
        parameters = torch.stack(known, 1)
        parameters = parameters.gather(1, order[..., None].expand_as(parameters))
        parameters = parameters.masked_fill((weights == 0)[..., None], 0.0)
        by_cluster = [
            self.network.density(one[:, None]).log_prob(x) for one in parameters.unbind(1)
        ]
        mixture = (torch.stack(by_cluster, -1) + weights.log()[:, None]).logsumexp(-1)
        log_likelihood = mixture.masked_fill(~mask, 0.0).sum(-1) / mask.sum(-1)
        return labels, parameters, log_likelihood, num_passes, failed


def _drawn(generator: Generator) -> tuple[Tensor, Tensor]:
    """Points and labels of some sets."""
    drawn = generator()
    if not isinstance(drawn, tuple) or len(drawn) != 2:
        raise ValueError(f"generator must return points and labels, got {checks.shown(drawn)}")
    x = checks.as_tensor(
        "the points of generator", drawn[0], "(num_sets, n, in_features)", finite=True
    )
    return x, checks.as_tensor("the labels of generator", drawn[1], kind="integers")
