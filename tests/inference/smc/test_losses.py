"""Gradients of losses against expectations over all sequences, and training."""

from functools import partial

import pytest
import torch
from torch import nn
from torch.distributions import Categorical, kl_divergence
from torch.nn.functional import logsigmoid

from pyro_ext.inference import TwistedSMC
from pyro_ext.inference.smc import (
    CTLLoss,
    DPGLoss,
    FUDGELoss,
    PolicyLoss,
    SIXOLoss,
    SoftQLoss,
    TabularTwist,
    sequence_log_prob,
)
from tests.inference.smc.toys import EXACT, LENGTH, SEQUENCES, log_target, rigid_twist, sampler

LOG_BASE = EXACT.base
ADAM = partial(torch.optim.Adam, lr=0.05)


class Bounded(nn.Module):
    """A twist of at most one."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, prefix):
        return logsigmoid(self.inner(prefix))


def below_zero(sequences):
    return EXACT.log_potential(sequences) - 2.0


# Exact losses: sums over all 81 sequences, with the probabilities of their prefixes.


def log_twists(table):
    return table[torch.arange(LENGTH), SEQUENCES]


def log_base():
    """Log probability of each prefix of each sequence."""
    return torch.stack(
        [sequence_log_prob(LOG_BASE, SEQUENCES[:, : number + 1]) for number in range(LENGTH)], -1
    )


def sum_of_prefixes(values, number):
    """Sum over what follows a prefix, for each prefix."""
    return values.reshape(3 ** (number + 1), -1).sum(-1)


def first_of_prefixes(values, number):
    return values.reshape(3 ** (number + 1), -1)[:, 0]


def contrastive(table):
    """Mean over steps of the divergence of marginals of the target and intermediate targets."""
    target, twists, base = log_target().exp(), log_twists(table), log_base()
    terms = []
    for number in range(LENGTH):
        marginal = sum_of_prefixes(target, number)
        joint = first_of_prefixes(base[:, number] + twists[:, number], number)
        terms.append((marginal * (marginal.log() - joint.log_softmax(0))).sum())
    return torch.stack(terms)


def noise_contrastive(table):
    target, base = log_target().exp(), log_base()[:, -1].exp()
    twists = log_twists(table)
    values = target[:, None] * logsigmoid(twists) + base[:, None] * logsigmoid(-twists)
    return -values.sum(0).mean()


def proposal_divergence(table):
    twist = TabularTwist(LENGTH, 3).double()
    del twist.table
    twist.table = table
    log_proposal = sampler(twist).proposal_log_prob(SEQUENCES)
    return kl_divergence(Categorical(logits=log_target()), Categorical(logits=log_proposal))


def discriminator(table):
    base, potential = log_base()[:, -1].exp(), below_zero(SEQUENCES).exp()[:, None]
    probability = logsigmoid(log_twists(table)).exp()
    values = potential * probability.log() + (1.0 - potential) * torch.log1p(-probability)
    return -(base[:, None] * values).sum(0).mean()


def soft_q(table):
    """Under the proposal, which is held fixed."""
    twists = log_twists(table)
    with torch.no_grad():
        smc = sampler(rigid_twist())
        smc.twist.table.copy_(table)
        draws = smc._walked(torch.zeros(81, 0, dtype=torch.int64), None, SEQUENCES)
        probability = draws.log_proposal.sum(-1).exp()
        target = torch.cat([draws.log_normalizer[:, 1:], draws.log_potential[:, None]], -1)
    return (probability[:, None] * (twists - target).square()).sum(0).mean()


CASES = {
    "ctl": (CTLLoss, lambda table: contrastive(table).mean()),
    "soft-q": (SoftQLoss, soft_q),
    "sixo": (SIXOLoss, noise_contrastive),
    "dpg": (DPGLoss, proposal_divergence),
    "fudge": (FUDGELoss, discriminator),
}


def test_contrastive_objective_in_numbers():
    table = rigid_twist().table.detach()
    expected = [0.0150668, 0.0421558, 0.1573540, 0.3577541]
    assert contrastive(table).tolist() == pytest.approx(expected, abs=1e-7)
    flat = torch.zeros(LENGTH, 3, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(contrastive(flat).sum(), flat)
    first, last = -gradient[0], -gradient[-1]
    assert first.tolist() == pytest.approx([-0.168366, -0.012286, 0.180653], abs=1e-6)
    assert last.tolist() == pytest.approx([-0.109045, -0.105568, 0.214613], abs=1e-6)


def scores(kind, row, seed=0):
    """Standard errors between mean gradients of 25 estimates and the exact one."""
    loss, exact = CASES[kind]
    table = rigid_twist(row).table.detach().requires_grad_()
    (expected,) = torch.autograd.grad(exact(table), table)
    inner = rigid_twist(row)
    if kind == "fudge":
        smc = sampler(Bounded(inner), 10_000, below_zero)
    else:
        smc = sampler(inner, 10_000)
    torch.manual_seed(seed)
    found = []
    for _ in range(25):
        inner.table.grad = None
        loss().differentiable_loss(smc).backward()
        found.append(inner.table.grad)
    gradients = torch.stack(found)
    error = gradients.std(0) / 5.0 + 1e-12
    return (gradients.mean(0) - expected).abs() / error


@pytest.mark.statistical
@pytest.mark.parametrize("row", [(1.0, 1.0, 1.0), (1.0, 1.0, 3.0)])
@pytest.mark.parametrize("kind", list(CASES))
def test_gradients(kind, row):
    """120 numbers within 5.5 standard errors with 24 degrees of freedom: rate 1e-3."""
    assert float(scores(kind, row).max()) < 5.5


def test_soft_q_loss_of_the_best_twist_is_zero():
    loss = SoftQLoss(num_particles=50).differentiable_loss(sampler(EXACT))
    assert float(loss) == pytest.approx(0.0, abs=1e-20)


def test_a_potential_of_zero_teaches_nothing():
    smc = sampler(rigid_twist(), 8, lambda s: torch.full((len(s),), -torch.inf))
    for loss in (CTLLoss(), DPGLoss()):
        smc.twist.table.grad = None
        loss.differentiable_loss(smc).backward()
        assert not bool(smc.twist.table.grad.any())
    with pytest.raises(ValueError, match="log_potential must be finite for SoftQLoss, got -inf"):
        SoftQLoss().differentiable_loss(smc)


def test_discriminators_are_at_most_one():
    with pytest.raises(ValueError, match="log_potential must be at most 0 for FUDGELoss, got 2"):
        FUDGELoss(100).differentiable_loss(sampler(Bounded(rigid_twist())))
    with pytest.raises(ValueError, match="twist must be at most 0 for FUDGELoss, got 1.09"):
        FUDGELoss(100).differentiable_loss(sampler(rigid_twist(), log_potential=below_zero))


class Memory(nn.Module):
    """A twist of the last two tokens and the count, which can be the best one."""

    def __init__(self):
        super().__init__()
        self.table = nn.Parameter(torch.zeros(LENGTH, 3, 3, dtype=torch.float64))

    def forward(self, prefix):
        later = EXACT.dfa[EXACT.states(prefix)]
        return self.table[prefix.shape[1]][torch.arange(3), later]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ctl", "soft-q", "sixo", "dpg", "fudge"])
def test_expressive_twists_learn_the_target(kind):
    """With enough memory each loss leads to a proposal near the target, from .457 to .01."""
    memory = Memory()
    twist = Bounded(memory) if kind == "fudge" else memory
    smc = sampler(twist, 256, below_zero)
    smc.fit(CASES[kind][0](), 600, optimizer=ADAM, seed=0, progress=False)
    log_proposal = smc.proposal_log_prob(SEQUENCES).detach()
    found = kl_divergence(Categorical(logits=log_target()), Categorical(logits=log_proposal))
    assert float(found) < 0.01
    assert len(smc.losses) == 600


def test_training_goes_on_bit_for_bit(tmp_path):
    def fit(num_steps, checkpoint=None):
        smc = sampler(rigid_twist())
        smc.fit(CTLLoss(), num_steps, optimizer=ADAM, seed=1, checkpoint=checkpoint, progress=False)
        return smc.twist.table.detach()

    whole = fit(20)
    fit(8, tmp_path / "training")
    assert torch.equal(fit(20, tmp_path / "training"), whole)


def test_policies_are_tuned_without_twists():
    policy = Memory()

    def model(prefix):
        return (EXACT.base(prefix) + policy(prefix)).log_softmax(-1)

    loss = PolicyLoss(model, num_particles=5000)
    smc = sampler(None)
    torch.manual_seed(0)
    optimizer = torch.optim.Adam(policy.parameters(), lr=0.1)
    for _ in range(60):
        optimizer.zero_grad()
        loss.differentiable_loss(smc).backward()
        optimizer.step()
    log_policy = sequence_log_prob(model, SEQUENCES).detach()
    found = kl_divergence(Categorical(logits=log_target()), Categorical(logits=log_policy))
    assert float(found) < 0.01


def test_policy_with_a_prompt():
    tuned = TwistedSMC(EXACT.base, None, lambda s: (s == 2).double().sum(-1), 16, 2)
    shift = torch.zeros(3, dtype=torch.float64, requires_grad=True)

    def model(prefix):
        return (EXACT.base(prefix) + shift).log_softmax(-1)

    loss = PolicyLoss(model).differentiable_loss(tuned, torch.tensor([0, 1]))
    (gradient,) = torch.autograd.grad(loss, shift)
    assert gradient[2] < 0
