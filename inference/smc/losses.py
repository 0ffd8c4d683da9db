r"""Losses that train twists, and one that trains the base model itself.

All but one draw from the proposal of the given sampler, and none differentiates through draws or
weights. Expectations under the target :math:`\sigma` are estimated with self-normalized weights:
a draw :math:`s^k` from the proposal :math:`q` has the weight
:math:`W^k \propto p_0(s^k)\, \phi(s^k) / q(s^k)`. If the potential is zero for all draws, there is
nothing to learn from, and these weights are zero.
"""

import math
from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from pyro_ext._lib import checks
from pyro_ext.inference.smc.autoregressive import (
    AutoregressiveModel,
    check_model,
    sequence_log_prob,
)
from pyro_ext.inference.smc.twisted import ProposalDraws, TwistedSMC


class TwistLoss(ABC):
    """Base class of losses of a twist, estimated with draws.

    :param int num_particles: number of draws; by default that of the sampler's particles.
    """

    def __init__(self, num_particles: int | None = None) -> None:
        self.num_particles = checks.optional(checks.integer, "num_particles", num_particles, 1)

    @abstractmethod
    def differentiable_loss(self, smc: TwistedSMC, prompt: Tensor | None = None) -> Tensor:
        """Return an estimate whose gradient in the parameters of the twist is the one to descend.

        :param TwistedSMC smc: the sampler.
        :param Tensor prompt: tokens that precede the sequences. **Shape:** ``(num_tokens,)``.
        """

    def _draws(
        self, smc: TwistedSMC, prompt: Tensor | None, *, from_base: bool = False
    ) -> ProposalDraws:
        checks.instance("smc", smc, TwistedSMC, "a TwistedSMC")
        number = self.num_particles or smc.num_particles
        return smc.propose(number, prompt, from_base=from_base)


def _weights(log_weights: Tensor) -> Tensor:
    """Normalized over rows; zero where all are. No gradient goes through them."""
    log_weights = log_weights.detach()
    is_lost = log_weights.amax(0, keepdim=True) == -math.inf
    return torch.where(is_lost, 0.0, log_weights.softmax(0))


def _target_weights(draws: ProposalDraws) -> Tensor:
    """Self-normalized weights of draws from the proposal. **Shape:** ``(num_samples,)``."""
    log_ratio = (draws.log_base - draws.log_proposal).sum(-1)
    return _weights(log_ratio + draws.log_potential)


class CTLLoss(TwistLoss):
    r"""Contrastive twist learning: :math:`\sum_t \mathrm{KL}(\sigma(s_{1:t}) \,\|\, \pi_t)` [1].

    Its gradient, averaged over steps, is the difference of two expectations,
    :math:`\mathbb{E}_{\pi_t} \nabla \log \psi_t - \mathbb{E}_\sigma \nabla \log \psi_t`. Both are
    estimated with the same draws, under the weights :math:`W^k` and under
    :math:`W_t^k \propto p_0(s^k_{1:t})\, \psi_t(s^k_{1:t}) / q(s^k_{1:t})`. Only the gradient is
    meaningful, not the value of the loss.

    :param int num_particles: as for :class:`TwistLoss`.

    [1] S. Zhao, R. Brekelmans, A. Makhzani, R. Grosse (2024),
    Probabilistic inference in language models via twisted sequential Monte Carlo.

    Example::

        >>> from functools import partial
        >>> from pyro_ext.inference.smc import TabularTwist
        >>> def coins(prefix):
        ...     return torch.full((len(prefix), 2), 0.5).log()
        >>> def number_of_heads(sequences):
        ...     return sequences.sum(-1).float()
        >>> twist = TabularTwist(length=3, vocabulary_size=2)
        >>> smc = TwistedSMC(coins, twist, number_of_heads, num_particles=64, length=3)
        >>> adam = partial(torch.optim.Adam, lr=0.1)
        >>> _ = smc.fit(CTLLoss(), 100, optimizer=adam, seed=0, progress=False)
        >>> table = twist.table.detach()  # a head is worth one
        >>> bool(((table[:, 1] - table[:, 0] - 1.0).abs() < 0.2).all())
        True
    """

    def differentiable_loss(self, smc: TwistedSMC, prompt: Tensor | None = None) -> Tensor:
        """See :class:`TwistLoss`."""
        draws = self._draws(smc, prompt)
        positive = _target_weights(draws)[:, None]
        log_ratio = (draws.log_base - draws.log_proposal).cumsum(-1)
        negative = _weights(log_ratio + draws.log_twist)
        # Without positives the negatives alone would drive the twist to zero.
        negative = negative * (positive.sum(0) > 0)
        return -((positive - negative) * draws.log_twist).sum(0).mean()


class SoftQLoss(TwistLoss):
    r"""Squared errors of the recursion that the optimal twist satisfies, as in soft Q-learning.

    The target of :math:`\log \psi_t(s_{1:t})` is
    :math:`\log \sum_v p_0(v \mid s_{1:t})\, \psi_{t+1}(s_{1:t}, v)`, held fixed, and that of
    :math:`\log \psi_T` is the log potential. Draws come from the proposal and have equal weights.

    :param int num_particles: as for :class:`TwistLoss`.
    """

    def differentiable_loss(self, smc: TwistedSMC, prompt: Tensor | None = None) -> Tensor:
        """See :class:`TwistLoss`."""
        draws = self._draws(smc, prompt)
        if not bool(draws.log_potential.isfinite().all()):
            raise ValueError(
                "log_potential must be finite for SoftQLoss, got -inf: replace it by a finite "
                "number such as -20"
            )
        later = draws.log_normalizer[:, 1:].detach()
        target = torch.cat([later, draws.log_potential[:, None]], -1)
        return (draws.log_twist - target).square().mean()


class SIXOLoss(TwistLoss):
    r"""Noise-contrastive estimation, which tells prefixes of the target from those of the base [1].

    .. math::
        -\frac1T \sum_t \Big( \mathbb{E}_\sigma \log \mathrm{sigmoid}(\log \psi_t)
        + \mathbb{E}_{p_0} \log \mathrm{sigmoid}(-\log \psi_t) \Big)

    :param int num_particles: as for :class:`TwistLoss`; as many are drawn from each of the two.

    [1] D. Lawson, A. Raventos, A. Warrington, S. Linderman (2022),
    SIXO: Smoothing inference with twisted objectives.
    """

    def differentiable_loss(self, smc: TwistedSMC, prompt: Tensor | None = None) -> Tensor:
        """See :class:`TwistLoss`."""
        draws = self._draws(smc, prompt)
        positive = _target_weights(draws)[:, None] * logsigmoid(draws.log_twist)
        from_base = self._draws(smc, prompt, from_base=True)
        return -positive.sum(0).mean() - logsigmoid(-from_base.log_twist).mean()


class FUDGELoss(TwistLoss):
    r"""Cross-entropy of the twist as a prediction of the potential, on draws from the base [1].

    Twists and potentials must be at most one, as probabilities of a class are: let the twist end
    with :func:`torch.nn.functional.logsigmoid`, and subtract the largest log potential.

    :param int num_particles: as for :class:`TwistLoss`.

    [1] K. Yang, D. Klein (2021),
    FUDGE: Controlled text generation with future discriminators.
    """

    def differentiable_loss(self, smc: TwistedSMC, prompt: Tensor | None = None) -> Tensor:
        """See :class:`TwistLoss`."""
        draws = self._draws(smc, prompt, from_base=True)
        rounding = 1e-6
        for name, values in (("log_potential", draws.log_potential), ("twist", draws.log_twist)):
            if bool((values > rounding).any()):
                raise ValueError(
                    f"{name} must be at most 0 for FUDGELoss, got {float(values.detach().max()):g}"
                )
        potential = draws.log_potential.exp()[:, None]
        log_twist = draws.log_twist.clamp(max=-rounding)
        log_rest = torch.log(-torch.expm1(log_twist))
        return -(potential * log_twist + (1.0 - potential) * log_rest).mean()


class DPGLoss(TwistLoss):
    r"""The divergence :math:`\mathrm{KL}(\sigma \,\|\, q)` of the proposal itself [1].

    :param int num_particles: as for :class:`TwistLoss`.

    [1] T. Parshakova, J.-M. Andreoli, M. Dymetman (2019),
    Distributional reinforcement learning for energy-based sequential models.
    """

    def differentiable_loss(self, smc: TwistedSMC, prompt: Tensor | None = None) -> Tensor:
        """See :class:`TwistLoss`."""
        draws = self._draws(smc, prompt)
        # The base has no gradient.
        log_proposal = (draws.log_twist - draws.log_normalizer).sum(-1)
        return -(_target_weights(draws) * log_proposal).sum()


class PolicyLoss:
    r"""The divergence :math:`\mathrm{KL}(\sigma \,\|\, p_\theta)` of a model without twists.

    Sequences are drawn from the model :math:`p_\theta` itself and weighted in proportion to
    :math:`p_0 \phi / p_\theta`. This is the direct way to tune a model, and the alternative to
    twists.

    :param policy: the model to train, a module like the base of a sampler.
    :param int num_particles: as for :class:`TwistLoss`.

    Example::

        >>> def coins(prefix):
        ...     return torch.full((len(prefix), 2), 0.5).log()
        >>> table = torch.zeros(2, requires_grad=True)
        >>> def policy(prefix):
        ...     return table.log_softmax(-1).expand(len(prefix), 2)
        >>> def number_of_heads(sequences):
        ...     return sequences.sum(-1).float()
        >>> smc = TwistedSMC(coins, None, number_of_heads, num_particles=64, length=3)
        >>> loss = PolicyLoss(policy)
        >>> loss.differentiable_loss(smc).backward()
        >>> bool(table.grad[1] < 0)  # more heads
        True
    """

    def __init__(self, policy: AutoregressiveModel, num_particles: int | None = None) -> None:
        self.num_particles = checks.optional(checks.integer, "num_particles", num_particles, 1)
        check_model("policy", policy)
        self.policy = policy

    def differentiable_loss(self, smc: TwistedSMC, prompt: Tensor | None = None) -> Tensor:
        """Return an estimate whose gradient in the parameters of the model is the one to descend.

        :param TwistedSMC smc: the sampler; its base and potential define the target.
        :param Tensor prompt: tokens that precede the sequences. **Shape:** ``(num_tokens,)``.
        """
        checks.instance("smc", smc, TwistedSMC, "a TwistedSMC")
        number = self.num_particles or smc.num_particles
        own = TwistedSMC(self.policy, None, smc.log_potential, number, smc.length)
        draws = own.propose(number, prompt)
        log_target = smc.target_log_prob(draws.sequences, prompt)
        weights = _weights(log_target - draws.log_base.sum(-1))
        return weighted_cross_entropy(self.policy, draws.sequences, weights, prompt)


def weighted_cross_entropy(
    model: Any, sequences: Tensor, weights: Tensor, prompt: Tensor | None
) -> Tensor:
    """Minus the weighted mean of log probabilities of sequences."""
    num_prompt = 0 if prompt is None else len(prompt)
    if prompt is not None:
        sequences = torch.cat([prompt.expand(len(sequences), -1).to(sequences), sequences], -1)
    return -(weights * sequence_log_prob(model, sequences, num_prompt)).sum()
