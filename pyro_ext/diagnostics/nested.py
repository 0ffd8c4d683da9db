"""Convergence of many short chains."""

import torch
from torch import Tensor

from pyro_ext._lib import checks


def nested_rhat(draws: Tensor, num_superchains: int) -> Tensor:
    r"""Compute nested R-hat, which checks many short chains [1].

    .. math:: \sqrt{1 + B / W}

    A superchain is a group of chains that start at the same point. :math:`B` is the variance
    between the means of superchains, and :math:`W` the variance within them. If the chains have
    forgotten their starting points, the result is about :math:`\sqrt{1 + 1 / (M n)}`, where
    :math:`M` is the number of chains in a superchain and :math:`n` the number of effective draws
    from each chain. A single draw from each chain is enough.

    :param Tensor draws: draws, with the chains of a superchain next to each other.
        **Shape:** ``(num_chains, num_draws, *event)``.
    :param int num_superchains: the number of superchains, at least two; it must divide the number
        of chains.
    :returns: **Shape:** ``(*event)``.
    :raises ValueError: if the number of superchains does not divide the number of chains, or each
        superchain has one chain with one draw.

    [1] C. C. Margossian, M. D. Hoffman, P. Sountsov, L. Riou-Durand, A. Vehtari, A. Gelman (2024),
    Nested R-hat: assessing the convergence of Markov chain Monte Carlo when running many short
    chains.

    Example::

        >>> generator = torch.Generator().manual_seed(0)
        >>> draws = torch.randn(64, 5, generator=generator)
        >>> round(float(nested_rhat(draws, 4)), 2)
        1.0
        >>> apart = torch.arange(4.0).repeat_interleave(16)[:, None]
        >>> round(float(nested_rhat(draws + apart, 4)), 1)
        1.6
    """
    draws = checks.as_tensor("draws", draws, "(num_chains, num_draws, ...)").double()
    checks.integer("num_superchains", num_superchains, 2)
    num_chains, num_draws = draws.shape[:2]
    if num_chains % num_superchains:
        raise ValueError(
            f"num_superchains must divide the number of chains, {num_chains}, got {num_superchains}"
        )
    nested = draws.reshape(num_superchains, -1, *draws.shape[1:])
    if nested.shape[1] * num_draws < 2:
        raise ValueError(
            "draws must have two chains in each superchain or two draws in each chain, got "
            f"{num_chains} chains of one draw in {num_superchains} superchains"
        )
    means = nested.mean(2)
    within = torch.zeros_like(means[:, 0])
    if nested.shape[1] > 1:
        within = within + means.var(1)
    if num_draws > 1:
        within = within + nested.var(2).mean(1)
    return (1.0 + means.mean(1).var(0) / within.mean(0)).sqrt()
