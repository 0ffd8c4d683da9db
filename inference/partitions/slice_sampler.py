"""Slice sampling of partitions, given the weights of the random measure.

[1] J. E. Griffin, S. G. Walker (2011), Posterior simulation of normalized random measure mixtures.
"""

import torch

from pyro_ext.inference.partitions._conjugate_mixture import Situation
from pyro_ext.inference.partitions._mixture import Integers
from pyro_ext.inference.partitions.conjugate_kernel import ConjugateKernel
from pyro_ext.inference.partitions.gibbs import fresh_word
from pyro_ext.random_measures import NormalizedRandomMeasure

__all__ = ["SliceSampler"]

_MOST_WEIGHTS = 10**6


class SliceSampler(ConjugateKernel):
    r"""Draws the cluster of each point given weights of the random measure and slices [1].

    Given the partition and :math:`u`, the weights of its clusters are drawn, a level
    :math:`v_i \sim U(0, w_{c_i})` for each point, and exactly all other weights of the measure
    above the least level. Then the points move, in a random order, among the clusters whose weight
    exceeds their level, with probabilities proportional to :math:`p(x | X_c)`, and the weights are
    forgotten.

    The number of weights grows as the least level to the power of minus the discount, so that
    discounts above about a half are too large, and a step fails that would take more than a
    million. Points move less far than under :class:`MarginalGibbs`, whose clusters have no
    weights. It is for normalized measures; a Pitman-Yor or a Dirichlet process has no weights in
    this form, but the latter is ``GeneralizedGammaProcess(concentration, 0.0, 1.0).normalize()``.

    Parameters as of :class:`MarginalGibbs`.

    Example::

        >>> from pyro_ext.distributions import GaussianCluster
        >>> from pyro_ext.inference import MCMC
        >>> from pyro_ext.random_measures import GeneralizedGammaProcess
        >>> x = torch.cat([torch.randn(20, 2) - 4.0, torch.randn(20, 2) + 4.0])
        >>> law = GeneralizedGammaProcess(1.0, 0.0, 1.0).normalize()
        >>> kernel = SliceSampler(law, GaussianCluster.from_data(x))
        >>> mcmc = MCMC(kernel, num_samples=20, progress=False).run(x)
        >>> mcmc.get_samples()["assignment"].shape
        torch.Size([20, 40])
    """

    def setup(self, warmup_steps: int, x: torch.Tensor) -> None:
        """Take the data.

        :param int warmup_steps: as of Pyro's kernels.
        :param Tensor x: the data. **Shape:** ``(n, d)``.
        :raises TypeError: for a prior without weights in this form.
        """
        super().setup(warmup_steps, x)
        law, _ = self.mixture.law(self.mixture.prior.draw())
        if not isinstance(law, NormalizedRandomMeasure):
            raise TypeError(f"prior must be a normalized measure for SliceSampler, got {law!r:.80}")

    def _move(self, labels: Integers, situation: Situation) -> dict[str, float]:
        from pyro_ext.inference.partitions._weight_loops import slice_sweep

        law, _ = self.mixture.law(situation.values)
        tilt = situation.values.get("u")
        assert isinstance(law, NormalizedRandomMeasure) and tilt is not None  # by setup
        own = torch.from_numpy(labels)
        with torch.no_grad():
            occupied = law.posterior_jumps(own.bincount(), tilt).double()
            levels = occupied[own] * (1.0 - torch.rand(len(own), dtype=torch.float64))
            rest, level = law.posterior_measure(tilt), levels.min()
            number = float(rest.tail(level))
            if number > _MOST_WEIGHTS:
                raise RuntimeError(
                    f"{number:.3g} weights exceed the least level {float(level):.3g}, more than "
                    f"{_MOST_WEIGHTS}: the discount is too large for slices, take MarginalGibbs"
                )
            others, is_there = rest.jumps_above(level)
        weights = torch.cat([occupied, others[is_there].double()])
        order = weights.argsort(descending=True)
        labels[:] = order.argsort()[own].numpy()
        sequence = torch.randperm(len(labels)).numpy()
        slice_sweep(
            *situation.compiled,
            labels,
            sequence,
            weights[order].numpy(),
            levels.numpy(),
            fresh_word(),
        )
        return {"num_weights": float(len(weights))}
