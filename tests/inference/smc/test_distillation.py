"""Self-distillation: the target stays, and training goes on where it was."""

from functools import partial

import pytest
import torch
from torch import nn

from pyro_ext.checkpoint import CheckpointError
from pyro_ext.inference import SelfDistilledTwistedSMC, TwistedSMC
from pyro_ext.inference.smc import TabularTwist, TwistLoss, sequence_log_prob
from pyro_ext.inference.smc.distillation import _effective_potential
from pyro_ext.models.language import BigramModel, ResidualLanguageModel
from tests.inference.smc.toys import EXACT, INIT, LENGTH, SEQUENCES, TRANS, Z, sampler

ADAM = partial(torch.optim.Adam, lr=0.02)


def base(scale=0.0):
    torch.manual_seed(0)
    model = ResidualLanguageModel(BigramModel(INIT, TRANS), 8).double()
    nn.init.normal_(model.head.weight, std=scale)
    return model


def distilled(**options):
    settings = {
        "num_twist_steps": 4,
        "num_distillation_steps": 3,
        "num_distillation_particles": 8,
        "twist_optimizer": ADAM,
        "base_optimizer": ADAM,
        "seed": 0,
    }
    return SelfDistilledTwistedSMC(of(base(), 8), **settings | options)


def of(model, num_particles=16):
    twist = TabularTwist(LENGTH, 3).double()
    return TwistedSMC(model, twist, EXACT.log_potential, num_particles, LENGTH)


def test_effective_potential_keeps_the_normalizing_constant():
    other = base(3.0)
    before = EXACT.log_potential, EXACT.base
    potential = partial(_effective_potential, *before, other, LENGTH)
    log_other = sequence_log_prob(other, SEQUENCES).detach()
    assert float((log_other - sequence_log_prob(EXACT.base, SEQUENCES)).abs().max()) > 1.0
    total = (log_other + potential(SEQUENCES)).logsumexp(0).exp()
    assert float(total) == pytest.approx(Z, abs=1e-6)


def test_target_stays_and_nothing_of_the_user_changes():
    original = base()
    before = {name: value.clone() for name, value in original.state_dict().items()}
    self_distilled = SelfDistilledTwistedSMC(
        of(original),
        num_twist_steps=3,
        num_distillation_steps=5,
        base_optimizer=partial(torch.optim.Adam, lr=0.1),
        seed=0,
    )
    assert self_distilled.generation == -1
    expected = sampler().target_log_prob(SEQUENCES)
    for number in range(3):
        assert self_distilled.step(progress=False)
        assert self_distilled.generation == number
        smc = self_distilled.sampler
        torch.testing.assert_close(smc.target_log_prob(SEQUENCES), expected, atol=1e-6, rtol=0)
        assert not any(parameter.requires_grad for parameter in smc.base.parameters())
    moved = sequence_log_prob(smc.base, SEQUENCES) - sequence_log_prob(EXACT.base, SEQUENCES)
    assert float(moved.abs().max()) > 0.1
    for name, value in original.state_dict().items():
        assert torch.equal(value, before[name])
    assert all(parameter.requires_grad for parameter in original.parameters())
    assert [len(losses) for losses in self_distilled.losses] == [3, 5, 3, 5, 3]


def test_parameters_that_are_fixed_stay_so():
    """As those below an adapter."""
    original = base()
    original.recurrence.requires_grad_(False)
    smc = (
        SelfDistilledTwistedSMC(of(original), num_twist_steps=1, num_distillation_steps=2, seed=0)
        .run(2, progress=False)
        .sampler
    )
    for name, value in smc.base.named_parameters():
        is_same = torch.equal(value, original.get_parameter(name))
        assert is_same == name.startswith("recurrence") or name.startswith("embedding")
    original.requires_grad_(False)
    with pytest.raises(ValueError, match="base must have parameters that require a gradient"):
        SelfDistilledTwistedSMC(of(original))


def test_student_does_not_move_the_target(monkeypatch):
    """The potential is that of a frozen copy while the next base model learns."""
    self_distilled = distilled().run(2, progress=False)
    potential = self_distilled.sampler.log_potential
    before = potential(SEQUENCES)
    self_distilled._phase(None, False)  # distils
    assert self_distilled.sampler.log_potential is not potential
    assert torch.equal(potential(SEQUENCES), before)


def test_runs_go_on_bit_for_bit(tmp_path):
    whole = distilled().run(3, progress=False)
    distilled().run(2, checkpoint=tmp_path, progress=False)
    written = sorted(path.stem for path in tmp_path.glob("*.safetensors"))
    assert written == ["base-0", "twist-0", "twist-1"]
    again = distilled().run(3, checkpoint=tmp_path, progress=False)
    assert again.losses == whole.losses
    assert torch.equal(again.sampler.twist.table, whole.sampler.twist.table)
    for one, other in zip(
        again.sampler.base.parameters(), whole.sampler.base.parameters(), strict=True
    ):
        assert torch.equal(one, other)


def test_folders_of_other_runs_are_refused(tmp_path):
    distilled().run(1, checkpoint=tmp_path, progress=False)
    for options, message in (
        ({"num_twist_steps": 9}, "num_twist_steps"),
        ({"seed": 1}, "seed"),
        ({"loss": Interrupted()}, "loss"),
    ):
        with pytest.raises(CheckpointError, match=f"is of another training: .*{message}"):
            distilled(**options).run(1, checkpoint=tmp_path, progress=False)


class Interrupted(TwistLoss):
    """Presses Ctrl-C once."""

    pressed = False

    def differentiable_loss(self, smc, prompt=None):
        if not self.pressed:
            self.pressed = True
            raise KeyboardInterrupt
        return smc.propose(4).log_twist.sum()


def test_interrupted_generations_go_on():
    self_distilled = distilled(loss=Interrupted())
    with pytest.warns(UserWarning, match="stopped after 0 of 4 steps"):
        assert not self_distilled.step(progress=False)
    assert self_distilled.generation == -1
    assert self_distilled.step(progress=False) and self_distilled.generation == 0


def test_distillation_helps():
    """Of a rigid twist: the base model learns what the table cannot say."""
    exact = EXACT.sample(2000, seed=0)

    def divergence(smc):
        with torch.no_grad():
            log_ratio = smc.target_log_prob(exact) - smc.proposal_log_prob(exact)
        return float(log_ratio.mean() - EXACT.log_Z)

    self_distilled = distilled(
        num_twist_steps=40,
        num_distillation_steps=40,
        num_distillation_particles=64,
        twist_optimizer=partial(torch.optim.Adam, lr=0.1),
        base_optimizer=partial(torch.optim.Adam, lr=0.05),
    )
    self_distilled.step(progress=False)
    first = divergence(self_distilled.sampler)
    self_distilled.run(4, progress=False)
    assert divergence(self_distilled.sampler) < 0.6 * first


def test_prompt():
    prompt, twist = torch.tensor([1, 0]), TabularTwist(2, 3, num_prompt=2).double()
    self_distilled = SelfDistilledTwistedSMC(
        TwistedSMC(base(), twist, lambda s: (s == 2).double().sum(-1), length=2),
        num_twist_steps=2,
        num_distillation_steps=2,
        prompt=prompt,
        seed=0,
    ).run(2, progress=False)
    result = self_distilled.sampler.run(prompt, seed=0)
    assert result.sequences.shape == (16, 2)
    plain = TwistedSMC(EXACT.base, None, lambda s: (s == 2).double().sum(-1), length=2)
    pairs = SEQUENCES[::9, :2]
    torch.testing.assert_close(
        self_distilled.sampler.target_log_prob(pairs, prompt),
        plain.target_log_prob(pairs, prompt),
        atol=1e-6,
        rtol=0,
    )
