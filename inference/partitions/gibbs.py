"""Marginal Gibbs sampling of partitions, one point after the other.

[1] S. Favaro, Y. W. Teh (2013), MCMC for normalized random measure mixture models.
"""

import torch

from pyro_ext.inference.partitions._conjugate_mixture import Situation
from pyro_ext.inference.partitions._mixture import Integers
from pyro_ext.inference.partitions.conjugate_kernel import ConjugateKernel

__all__ = ["MarginalGibbs", "fresh_word", "sweep"]


def fresh_word() -> int:
    """Seed of a compiled loop, from PyTorch's generator."""
    return int(torch.randint(2**31 - 1, ()))


def sweep(labels: Integers, order: Integers, situation: Situation) -> None:
    """Draw the clusters of some points given all others, in an order."""
    from pyro_ext.inference.partitions._gibbs_loops import gibbs_sweep

    compiled, log_size, log_number, *_ = situation
    gibbs_sweep(*compiled, labels, order, log_size, log_number, fresh_word())


class MarginalGibbs(ConjugateKernel):
    r"""Draws the cluster of each point given those of all others [1].

    The point joins a cluster :math:`c` of the others with probability proportional to
    :math:`p(x | X_c) \, \kappa(|c| + 1, u) / \kappa(|c|, u)`, and a new one to
    :math:`p(x) \, \kappa(1, u)`. A step visits all points in a random order, which takes
    :math:`O(n K d^2)` for Gaussians with full covariance, whose Cholesky factors are updated.

    Further parameters as of :class:`ConjugateKernel`.

    Example::

        >>> from pyro_ext.distributions import GaussianCluster
        >>> from pyro_ext.inference import MCMC
        >>> from pyro_ext.random_measures import GeneralizedGammaProcess
        >>> def prior():
        ...     mass = pyro.sample("mass", dist.Gamma(1.0, 1.0))
        ...     return GeneralizedGammaProcess(mass * 0.5, 0.5, 1.0).normalize()
        >>> x = torch.cat([torch.randn(20, 2) - 4.0, torch.randn(20, 2) + 4.0])
        >>> kernel = MarginalGibbs(prior, GaussianCluster.from_data(x))
        >>> mcmc = MCMC(kernel, num_samples=20, warmup_steps=10, progress=False).run(x)
        >>> mcmc.get_samples()["assignment"].shape
        torch.Size([20, 40])
    """

    def _move(self, labels: Integers, situation: Situation) -> dict[str, float]:
        sweep(labels, torch.randperm(len(labels)).numpy(), situation)
        return {}
