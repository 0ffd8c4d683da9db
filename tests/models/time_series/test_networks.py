"""Decay imputation, filled gaps, encodings and the classifiers that impute one value."""

import math

import pytest
import torch

from pyro_ext.models.time_series import GRUD, DecayImputer, FilledClassifier, fill_gaps
from pyro_ext.models.time_series.networks import last_observed


def test_decay_to_begin_with():
    imputer = DecayImputer(2)
    gamma = imputer.gamma(torch.tensor([[0.0, 0.3], [2.0, 100.0]]))
    torch.testing.assert_close(gamma, torch.full((2, 2), 0.951229))


def test_series_are_filled():
    """By hand, with a gap before the first value and one after; a channel is never observed."""
    imputer = DecayImputer(2, bias=0.0)
    with torch.no_grad():
        imputer.weight.copy_(torch.tensor([1.0, 2.0]))
    x = torch.tensor([[[7.0, 7.0], [2.0, 7.0], [7.0, 7.0], [7.0, 7.0]]])
    mask = torch.zeros(1, 4, 2, dtype=torch.bool)
    mask[0, 1, 0] = True
    generated, times = torch.full_like(x, 10.0), torch.tensor([[0.1, 0.3, 0.6, 1.0]])
    found = imputer(x, mask, generated, times)[0]
    fresh = [1 - math.exp(-0.1), 0.0, 1 - math.exp(-0.3), 1 - math.exp(-0.7)]
    expected = [10 * fresh[0], 2.0, *(2 * (1 - part) + 10 * part for part in fresh[2:])]
    torch.testing.assert_close(found[:, 0], torch.tensor(expected))
    torch.testing.assert_close(found[:, 1], 10 * (1 - (-2 * times[0]).exp()))


def test_values_that_are_not_used_have_no_gradient():
    imputer = DecayImputer(1)
    x, mask = torch.ones(3, 1), torch.tensor([[True], [False], [True]])
    generated = torch.tensor([[torch.nan], [2.0], [torch.inf]], requires_grad=True)
    imputer(x, mask, generated, torch.arange(3.0)).sum().backward()
    torch.testing.assert_close(generated.grad[:, 0], torch.tensor([0.0, 0.048771, 0.0]))
    assert bool(imputer.bias.grad.isfinite().all())
    with pytest.raises(ValueError, match="times must rise from step to step"):
        imputer(x, mask, x, torch.tensor([0.0, 2.0, 1.0]))


def test_last_values_and_their_age():
    x = torch.tensor([1.0, 2.0, 3.0, 4.0])[:, None]
    mask = torch.tensor([False, True, False, True])[:, None]
    last, age = last_observed(x, mask, torch.tensor([0.5, 1.0, 4.0, 5.0]))
    assert last.flatten().tolist() == [0.0, 2.0, 2.0, 4.0]
    assert age.flatten().tolist() == [0.5, 0.0, 3.0, 0.0]


def test_gaps_are_filled():
    x = torch.tensor([[torch.nan, 1.0, torch.nan, 3.0], [torch.nan] * 4])[..., None]
    mask = x.isfinite()
    expected = {
        "zero": [0.0, 1.0, 0.0, 3.0],
        "mean": [2.0, 1.0, 2.0, 3.0],
        "last": [0.0, 1.0, 1.0, 3.0],
    }
    for how, values in expected.items():
        found = fill_gaps(x, mask, how)[..., 0]
        assert found.tolist() == [values, [0.0] * 4]


@pytest.mark.parametrize(
    "make",
    [
        lambda: GRUD(3, 2, width=8),
        lambda: FilledClassifier(3, 2, "mean", width=8),
        lambda: FilledClassifier(3, 2, "zero", see_mask=True, width=8),
    ],
)
def test_other_classifiers(make):
    """Neither gaps nor padding count, the order of steps does, and they learn."""
    torch.manual_seed(0)
    network = make()
    x, lengths = torch.randn(40, 6, 3), torch.arange(40) % 4 + 3
    mask = torch.rand(40, 6, 3) < 0.7
    valid = torch.arange(6) < lengths[:, None]
    y = (torch.where(mask & valid[..., None], x, 0.0)[..., 0].sum(1) > 0).long()
    found = network(x, mask, None, lengths)
    other = torch.where(mask & valid[..., None], x, torch.nan)
    assert torch.equal(network(other, mask, None, lengths), found)
    longer = torch.nn.functional.pad(x, (0, 0, 0, 2)), torch.nn.functional.pad(mask, (0, 0, 0, 2))
    torch.testing.assert_close(network(*longer, None, lengths), found)
    alone = network(x[:1, : lengths[0]], mask[:1, : lengths[0]])
    torch.testing.assert_close(alone[0], found[0])
    losses = network.fit(
        x,
        y,
        mask,
        lengths=lengths,
        num_epochs=5,
        batch_size=10,
        learning_rate=1e-2,
        validation_fraction=0.1,
        seed=0,
        progress=False,
    )
    assert sum(losses[-4:]) < sum(losses[:4])
    torch.testing.assert_close(network.predict(x, mask).sum(-1), torch.ones(40))


def test_states_fade_between_steps_of_grud():
    """With a decay that is fast, all but the last step is forgotten."""
    torch.manual_seed(0)
    network = GRUD(2, 3, width=4)
    with torch.no_grad():
        network.state_decay.bias.fill_(100.0)
    x = torch.randn(2, 5, 2)
    x[1, -1] = x[0, -1]
    found = network(x)
    torch.testing.assert_close(found[0], found[1])
