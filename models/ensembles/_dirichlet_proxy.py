"""A Dirichlet distribution that stands for an ensemble, and a loss that teaches it.

M. Ryabinin, A. Malinin, M. Gales (2021), Scaling ensemble distribution distillation to many classes
with proxy targets.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributions import Dirichlet, kl_divergence


class DirichletProxy(NamedTuple):
    """Mean and precision of members' probabilities: ``(*batch, K)`` and ``(*batch, 1)``."""

    mean: Tensor
    precision: Tensor

    @property
    def concentration(self) -> Tensor:
        """Concentration of the Dirichlet distribution: one, and the precision times the mean."""
        return 1.0 + self.precision * self.mean


def dirichlet_proxy(log_probs: Tensor) -> DirichletProxy:
    r"""The proxy of members' log probabilities, **Shape:** ``(num_members, *batch, K)``.

    .. math:: \frac{(K - 1) / 2}{\sum_k \bar p_k (\log \bar p_k - \frac1M \sum_m \log p_{mk})}

    is its precision. Members that agree up to rounding make it large and finite.
    """
    mean = log_probs.exp().mean(0)
    spread = (torch.xlogy(mean, mean) - mean * log_probs.mean(0)).sum(-1, keepdim=True)
    spread = spread.clamp(min=torch.finfo(spread.dtype).eps)
    return DirichletProxy(mean, 0.5 * (log_probs.shape[-1] - 1) / spread)


def student_concentration(logits: Tensor, temperature: float = 2.0) -> Tensor:
    """Concentration of the Dirichlet distribution that a student's logits stand for."""
    return 1.0 + (logits / temperature).exp()


def dirichlet_proxy_loss(logits: Tensor, log_probs: Tensor, temperature: float = 2.0) -> Tensor:
    """The loss of a student's logits, **Shape:** ``(*batch, K)``, in each row of the batch.

    Reverse Kullback-Leibler divergence from the proxy of members' log probabilities, divided by the
    sum of its concentration and without what the student does not change.
    """
    proxy = dirichlet_proxy(log_probs)
    concentration = student_concentration(logits, temperature)
    student = Dirichlet(concentration)
    expected_log = concentration.digamma() - concentration.sum(-1, keepdim=True).digamma()
    flat = Dirichlet(torch.ones_like(concentration))
    fit = -(proxy.mean * expected_log).sum(-1)
    return fit + kl_divergence(student, flat) / proxy.concentration.sum(-1)
