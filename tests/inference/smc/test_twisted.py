"""Twisted SMC against sequences that are listed, and against dynamic programming."""

import math

import pytest
import torch
from torch.distributions import Categorical, kl_divergence

from pyro_ext.inference import TwistedSMC
from pyro_ext.inference.smc import CTLLoss, TabularTwist, exact_markov_twist, sequence_log_prob
from pyro_ext.models.language import BigramModel, ResidualLanguageModel
from tests.inference.smc.toys import (
    EXACT,
    LENGTH,
    SEQUENCES,
    TRANS,
    Z,
    log_target,
    rigid_twist,
    sampler,
)


def check_mean(values, exact, num_errors=4.5):
    error = float(values.std() / len(values) ** 0.5)
    assert abs(float(values.mean()) - exact) < num_errors * error, (values.mean(), exact, error)


# Numbers that were found by listing all sequences, apart from this code.


def test_dynamic_programming():
    assert float(EXACT.log_Z.exp()) == pytest.approx(Z, abs=1e-9)
    first = EXACT(torch.zeros(1, 0, dtype=torch.int64)).exp()[0]
    assert first.tolist() == pytest.approx([1.8625225734, 2.6930998662, 5.3445581473], abs=1e-9)
    second = EXACT(torch.tensor([[0], [2]])).exp()
    assert float(second[0, 0]) == pytest.approx(1.3194528049, abs=1e-9)
    assert float(second[1, 1]) == pytest.approx(4.0028563665, abs=1e-9)
    assert float(second[1, 2]) == pytest.approx(math.exp(2.0), abs=1e-9)


def test_target_and_divergences_of_base_and_twist():
    target = log_target().exp()
    marginal = torch.stack([target[SEQUENCES[:, 0] == token].sum() for token in range(3)])
    assert marginal.tolist() == pytest.approx([0.3316336074, 0.2877138038, 0.3806525888], abs=1e-9)
    sigma = Categorical(target)
    base = Categorical(logits=sequence_log_prob(EXACT.base, SEQUENCES))
    assert float(kl_divergence(sigma, base)) == pytest.approx(0.4568258262, abs=1e-9)
    assert float(kl_divergence(base, sigma)) == pytest.approx(0.4665091222, abs=1e-9)
    event = EXACT.log_potential(SEQUENCES) > 0
    assert float(base.probs[event].sum()) == pytest.approx(0.283, abs=1e-9)
    log_proposal = sampler(rigid_twist()).proposal_log_prob(SEQUENCES).detach()
    assert float(log_proposal.exp().sum()) == pytest.approx(1.0, abs=1e-9)
    proposal = Categorical(logits=log_proposal)
    assert float(kl_divergence(sigma, proposal)) == pytest.approx(0.1830919760, abs=1e-9)
    assert float(kl_divergence(proposal, sigma)) == pytest.approx(0.1909534843, abs=1e-9)


# What is exact for every seed.


@pytest.mark.parametrize("num_particles", [1, 2, 16])
@pytest.mark.parametrize("ess_threshold", [0.0, 0.5, 1.0])
def test_best_twist_has_no_variance(num_particles, ess_threshold):
    smc = sampler(EXACT, num_particles, ess_threshold=ess_threshold)
    result = smc.run(num_runs=20, seed=num_particles)
    torch.testing.assert_close(result.log_Z, EXACT.log_Z.expand(20), atol=1e-12, rtol=0)
    expected = EXACT.log_Z.expand(20, num_particles)
    torch.testing.assert_close(result.log_weights, expected, atol=1e-12, rtol=0)


def test_constants_of_twists_change_nothing():
    twist, scaled = rigid_twist(), rigid_twist()
    with torch.no_grad():
        scaled.table.add_(torch.tensor([[3.0], [-1.0], [0.5], [7.0]]))
    one, other = (sampler(each).run(num_runs=50, seed=0) for each in (twist, scaled))
    assert torch.equal(one.sequences, other.sequences)
    torch.testing.assert_close(one.log_weights, other.log_weights, atol=1e-9, rtol=0)
    torch.testing.assert_close(one.log_Z, other.log_Z, atol=1e-9, rtol=0)


def test_weights_are_proper_and_runs_do_not_depend_on_each_other():
    smc = sampler(rigid_twist(), 5, ess_threshold=0.5)
    several = smc.run(num_runs=4, seed=3)
    assert several.sequences.shape == (4, 5, LENGTH) and several.log_Z.shape == (4,)
    alone = smc.run(seed=3)
    for one, whole in zip(alone, several, strict=True):
        torch.testing.assert_close(one, whole[0], atol=1e-12, rtol=0)
    mean = several.log_weights.logsumexp(-1) - math.log(5)
    torch.testing.assert_close(mean, several.log_Z, atol=1e-12, rtol=0)
    size = several.effective_sample_size
    assert bool((size >= 1.0).all()) and bool((size <= 5.0).all())
    drawn = several.sample(3, seed=0)
    assert drawn.shape == (4, 3, LENGTH)
    for run in range(4):
        assert {tuple(row) for row in drawn[run].tolist()} <= {
            tuple(row) for row in several.sequences[run].tolist()
        }


def test_what_has_no_weight_is_not_drawn():
    """Also where only one of several runs has found nothing."""
    result = sampler(log_potential=lambda s: torch.full((len(s),), -math.inf)).run(seed=0)
    assert result.log_Z == -math.inf and result.effective_sample_size == 0.0
    with pytest.raises(ValueError, match="log_weights must have .* got 1 of 1 runs with none"):
        result.sample(seed=0)
    several = sampler(rigid_twist()).run(num_runs=3, seed=0)
    several.log_weights[1] = -math.inf
    with pytest.raises(ValueError, match="got 1 of 3 runs with none: use more particles"):
        several.sample(seed=0)
    several.log_weights[1, 5] = 0.0  # one particle is enough
    drawn = several.sample(9, seed=0)[1]
    assert torch.equal(drawn, several.sequences[1, 5].expand(9, -1))


def test_importance_sampling_has_the_weights_of_its_definition():
    smc = sampler(rigid_twist(), 7, ess_threshold=0.0)
    result = smc.run(seed=2)
    log_weights = smc.target_log_prob(result.sequences) - smc.proposal_log_prob(result.sequences)
    torch.testing.assert_close(result.log_weights, log_weights.detach(), atol=1e-12, rtol=0)


def test_twist_may_exclude_tokens_and_the_potential_all():
    never = sampler(None, log_potential=lambda s: torch.full((len(s),), -torch.inf))
    result = never.run(seed=0)
    assert result.log_Z == -torch.inf and bool((result.log_weights == -torch.inf).all())
    # Sequences without token 2 whose last token is 0; a twist that knows, and dies out with the
    # probability that 0 is not drawn.
    allowed = torch.tensor([0.0, 0.0, -torch.inf], dtype=torch.float64)
    twist = rigid_twist()
    with torch.no_grad():
        twist.table.copy_(allowed.expand(LENGTH, 3))

    def hard(sequences):
        fits = (sequences != 2).all(-1) & (sequences[:, -1] == 0)
        return torch.where(fits, 0.0, -torch.inf).double()

    result = sampler(twist, 64, hard).run(num_runs=200, seed=0)
    assert not bool((result.sequences == 2).any())
    exact = float(sequence_log_prob(EXACT.base, SEQUENCES)[hard(SEQUENCES) == 0].exp().sum())
    assert float(result.log_Z.exp().mean()) == pytest.approx(exact, rel=0.05)


# What is true on average: each of some twenty numbers within 4.5 standard errors, rate 2e-4.


@pytest.mark.statistical
@pytest.mark.parametrize("ess_threshold", [0.0, 0.6, 1.0])
@pytest.mark.parametrize("num_particles", [2, 16])
def test_estimate_is_unbiased(num_particles, ess_threshold):
    """Without the last twist in the weights the mean would be off by far more."""
    smc = sampler(rigid_twist((1.0, 0.5, 3.0)), num_particles, ess_threshold=ess_threshold)
    result = smc.run(num_runs=8000, seed=1)
    check_mean(result.log_Z.exp(), Z)
    event = (EXACT.log_potential(result.sequences.flatten(0, 1)) > 0).double()
    mass = (result.log_weights.exp() * event.reshape(8000, num_particles)).mean(-1)
    check_mean(mass, float(log_target()[EXACT.log_potential(SEQUENCES) > 0].exp().sum()) * Z)


@pytest.mark.statistical
@pytest.mark.parametrize("ess_threshold", [0.0, 1.0])
def test_conditional_runs(ess_threshold):
    """With a clamp that is drawn from the target the reciprocal is unbiased."""
    smc = sampler(rigid_twist(), 4, ess_threshold=ess_threshold)
    clamp = EXACT.sample(8000, seed=0)
    result = smc.run(clamp=clamp, num_runs=8000, seed=1)
    assert torch.equal(result.sequences[:, 0], clamp)
    check_mean(result.log_Z.neg().exp(), 1.0 / Z)


@pytest.mark.statistical
def test_bounds_enclose():
    """Means are more than 10 standard errors away from what they enclose: rate below 1e-6."""
    bounds = sampler(rigid_twist(), 4).bidirectional_bounds(EXACT.sample(4000, seed=0), seed=0)
    assert bounds.log_Z_lower.mean() < EXACT.log_Z < bounds.log_Z_upper.mean()
    assert bounds.proposal_to_target[0] < 0.1909534843 < bounds.proposal_to_target[1]
    assert bounds.target_to_proposal[0] < 0.1830919760 < bounds.target_to_proposal[1]
    best = sampler(EXACT, 4).bidirectional_bounds(EXACT.sample(10, seed=0), seed=0)
    for values in best[2:]:
        torch.testing.assert_close(values, torch.zeros(2).double(), atol=1e-12, rtol=0)


@pytest.mark.statistical
def test_exact_draws():
    drawn = EXACT.sample(20000, seed=0)
    numbers = (drawn * torch.tensor([27, 9, 3, 1])).sum(-1)
    frequencies = torch.bincount(numbers, minlength=81) / 20000
    target = log_target().exp()
    scores = (frequencies - target) / (target * (1 - target) / 20000).sqrt()
    assert float(scores.square().sum()) < 80 + 4.5 * math.sqrt(160)


# Prompts, states, types.


def test_prompt_stands_before_what_is_drawn():
    """The chain goes on from the last token of the prompt, and all three see it."""

    def twist(prefix):
        assert prefix.shape[1] >= 2 and bool((prefix[:, 0] == 1).all())
        return torch.zeros(len(prefix), 3).double()

    def potential(tokens):
        assert tokens.shape[1] == 5 and bool((tokens[:, :2] == torch.tensor([1, 2])).all())
        return EXACT.log_potential(tokens[:, 2:])

    smc = TwistedSMC(EXACT.base, twist, potential, 8, 3)
    after = exact_markov_twist(TRANS[2], TRANS, EXACT.dfa, torch.tensor([0.0, 0.0, 2.0]), 3)
    other = TwistedSMC(after.base, None, after.log_potential, 8, 3)
    found, expected = smc.run([1, 2], num_runs=3, seed=0), other.run(num_runs=3, seed=0)
    assert torch.equal(found.sequences, expected.sequences)
    torch.testing.assert_close(found.log_Z, expected.log_Z, atol=1e-9, rtol=0)
    several = smc.run(torch.tensor([[1, 2]] * 3), num_runs=3, seed=0)
    assert torch.equal(found.log_weights, several.log_weights)
    sequences = after.sample(6, seed=0)
    for method in ("target_log_prob", "proposal_log_prob"):
        given = getattr(smc, method)(sequences, torch.tensor([1, 2]))
        torch.testing.assert_close(given, getattr(other, method)(sequences), atol=1e-9, rtol=0)
    clamped = smc.run([1, 2], sequences[0], seed=0)
    assert torch.equal(clamped.sequences[0], sequences[0])
    bounds = smc.bidirectional_bounds(sequences, torch.tensor([1, 2]), seed=0)
    assert torch.equal(bounds.log_Z_lower, smc.run([1, 2], num_runs=6, seed=0).log_Z)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_states_follow_their_particles(dtype):
    """A recurrent state that is re-indexed, against the same network on whole prefixes."""
    torch.manual_seed(0)
    fixed = BigramModel.from_words(["quartz", "jazz", "zebra", "exact", "queue"]).to(dtype)
    base, twist = (ResidualLanguageModel(fixed, 8).to(dtype) for _ in range(2))
    for network in (base, twist):
        torch.nn.init.normal_(network.head.weight)

    def potential(sequences):
        return (sequences == 25).to(dtype).sum(-1)

    def log_twist(prefix):
        return 3.0 * twist(prefix)

    cached = TwistedSMC(base, log_twist, potential, 16, 6)
    plain = TwistedSMC(lambda prefix: base(prefix), log_twist, potential, 16, 6)
    found, expected = (smc.run(num_runs=3, seed=0) for smc in (cached, plain))
    assert found.log_Z.dtype == dtype and torch.equal(found.sequences, expected.sequences)
    assert len({tuple(row[:3]) for row in found.sequences[0].tolist()}) < 16  # it was resampled
    torch.testing.assert_close(found.log_weights, expected.log_weights, atol=1e-4, rtol=1e-4)
    tokens = found.sequences[0]
    whole = sequence_log_prob(base, tokens)
    torch.testing.assert_close(whole, sequence_log_prob(lambda p: base(p), tokens))
    torch.testing.assert_close(
        sequence_log_prob(base, tokens, 2), sequence_log_prob(lambda p: base(p), tokens, 2)
    )


class Recorder:
    """A model whose state is the prefix that it has read."""

    def __init__(self, outputs):
        self.outputs = outputs
        self.last = None

    def begin(self, prompt):
        return self.outputs(prompt), prompt

    def advance(self, state, tokens):
        self.last = torch.cat([state, tokens[:, None]], -1)
        return self.outputs(self.last), self.last

    def select(self, state, index):
        return state[index]


def test_models_read_the_particles_that_are_returned():
    base, twist = Recorder(EXACT.base), Recorder(lambda p: 2.0 * EXACT(p))
    smc = TwistedSMC(base, twist, EXACT.log_potential, 16, LENGTH)
    found = smc.run(num_runs=3, seed=0).sequences.flatten(0, 1)
    assert torch.equal(base.last, found[:, :-1]) and torch.equal(twist.last, found[:, :-1])


# Errors.


def wrong_base(kind):
    values = {
        "logits": torch.ones(3),
        "nan": torch.tensor([0.5, math.nan, 0.5]).log(),
        "inf": torch.tensor([0.0, math.inf, -math.inf]),
    }
    return lambda prefix: values[kind].expand(len(prefix), 3)


def test_outputs_that_are_refused(subtests):
    def coin(prefix):
        return torch.full((len(prefix), 3), 1 / 3).log()

    def nan(sequences):
        return torch.full((len(sequences),), torch.nan)

    def column(values):
        return torch.zeros(len(values), 1)

    cases = {
        "base must return log probabilities, whose exponentials": (wrong_base("logits"), None, len),
        "base must return log probabilities that are": (wrong_base("nan"), None, len),
        "base must return log probabilities that are not NaN": (wrong_base("inf"), None, len),
        "base must return a tensor of the shape .16, voc": (lambda p: torch.zeros(3), None, len),
        "twist must return log twists that are": (coin, wrong_base("nan"), len),
        "twist must return values for 3 tokens": (coin, column, len),
        "log_potential must return numbers below infinity, got nan": (coin, None, nan),
        "log_potential must return a tensor of the shape .16,., got .16, 1.": (coin, None, column),
        "log_potential must return a tensor of the shape .16,., got int": (coin, None, len),
    }
    for message, (base, twist, potential) in cases.items():
        with subtests.test(message), pytest.raises(ValueError, match=message):
            TwistedSMC(base, twist, potential, length=2).run(seed=0)


def test_clamps_and_prompts_that_are_refused():
    smc = sampler(rigid_twist())
    with pytest.raises(ValueError, match="clamp must have 4 tokens, got the shape .3,."):
        smc.run(clamp=[0, 1, 2])
    with pytest.raises(ValueError, match="clamp must have the shape .4,. or .2, 4., got .3, 4."):
        smc.run(clamp=SEQUENCES[:3], num_runs=2)
    with pytest.raises(ValueError, match="prompt must hold tokens >= 0, got -1"):
        smc.run([-1])
    with pytest.raises(ValueError, match="tokens must be below the vocabulary's size 3, got 7"):
        smc.run(clamp=[0, 1, 7, 0])
    with torch.no_grad():
        smc.twist.table[2, 1] = -torch.inf
    with pytest.raises(ValueError, match="clamp must have a positive .* zero at token 3"):
        smc.run(clamp=[0, 1, 1, 0])


def test_twists_that_cannot_be_trained():
    with pytest.raises(TypeError, match="twist must be a module to be trained, got None"):
        sampler(None).fit(CTLLoss(), 1)
    with pytest.raises(TypeError, match="loss must be a TwistLoss, got 'ctl'"):
        sampler(TabularTwist(LENGTH, 3)).fit("ctl", 1)
