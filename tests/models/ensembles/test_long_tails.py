"""Long tails: counts, balanced minibatches, and classifiers without a change where none is due."""

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from pyro_ext.models.ensembles import (
    BalancedBatches,
    LearnableScales,
    accuracy_by_count,
    exponential_profile,
    logit_adjusted,
    tau_normalized,
)

LABELS = torch.arange(10).repeat_interleave(exponential_profile(300, 10, 100.0))


def test_profiles():
    """Those of CIFAR10-LT and CIFAR100-LT."""
    counts = exponential_profile(5000, 10, 100)
    assert counts.tolist() == [5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50]
    assert int(counts.sum()) == 12_406
    counts = exponential_profile(500, 100, 100)
    assert (int(counts[0]), int(counts[-1]), int(counts.sum())) == (500, 5, 10_847)
    assert exponential_profile(7, 3, 1.0).tolist() == [7, 7, 7]


@pytest.mark.statistical
def test_classes_are_as_likely():
    """Frequencies within 4 standard errors of 1/10: false alarms in 6e-4 of all seeds."""
    batches = BalancedBatches(LABELS[:, None].float(), LABELS, batch_size=64)
    drawn = torch.cat([batches.batch(step, seed=0)[1] for step in range(500)])
    frequencies = drawn.bincount() / len(drawn)
    error = (0.1 * 0.9 / len(drawn)) ** 0.5
    assert float((frequencies - 0.1).abs().max()) < 4 * error
    inputs, labels = batches.batch(3, seed=1)
    assert torch.equal(inputs[:, 0].long(), labels) and inputs.shape == (64, 1)
    again = batches.batch(3, seed=1)[1]
    assert torch.equal(labels, again) and not torch.equal(labels, batches.batch(4, seed=1)[1])
    few = BalancedBatches(torch.zeros(3, 1), torch.tensor([0, 0, 1]), batch_size=1000)
    assert len(few) == 1  # rows come again, so that there may be more than there are
    assert float(few.batch(0, seed=0)[1].double().mean()) == pytest.approx(0.5, abs=0.07)


def test_classifiers_that_change_nothing():
    """Scales of one, rows to the power zero, and classes with as many examples each."""
    classifier, features = nn.Linear(5, 4), torch.randn(6, 5)
    logits = classifier(features)
    assert torch.equal(LearnableScales(classifier)(features), logits)
    assert torch.equal(tau_normalized(classifier, 0.0)(features), logits)
    adjusted = logit_adjusted(classifier, torch.full((4,), 7))(features)
    torch.testing.assert_close(adjusted.softmax(-1), logits.softmax(-1))


def test_classifiers():
    classifier, features = nn.Linear(5, 3), torch.randn(6, 5)
    counts = torch.tensor([70, 20, 10])
    rows = classifier.weight / classifier.weight.norm(dim=1, keepdim=True).sqrt()
    found = tau_normalized(classifier, 0.5)(features)
    torch.testing.assert_close(found, features @ rows.mT + classifier.bias)
    prior = torch.tensor([0.7, 0.2, 0.1]).log()
    found = logit_adjusted(classifier, counts)(features)
    torch.testing.assert_close(found, classifier(features) - prior)
    plain = nn.Linear(5, 3, bias=False)
    torch.testing.assert_close(logit_adjusted(plain, counts)(features), plain(features) - prior)
    scales = LearnableScales(classifier)
    cross_entropy(scales(features), torch.arange(6) % 3).backward()
    assert scales.scales.grad is not None and scales.classifier.weight.grad is None
    assert classifier.weight.grad is None and classifier.weight.requires_grad


def test_accuracy_by_count():
    counts, labels = torch.tensor([101, 100, 20, 19, 5]), torch.tensor([0, 0, 1, 2, 3, 3, 3])
    found = accuracy_by_count(torch.eye(5)[[0, 1, 1, 0, 3, 3, 0]], labels, counts)
    assert found["many"] == 0.5 and found["medium"] == 0.5
    assert found["few"] == pytest.approx(2 / 3)  # the last class has no test data
    assert found["all"] == pytest.approx((0.5 + 1.0 + 0.0 + 2 / 3) / 4)


def test_what_is_refused(subtests):
    layer, x = nn.Linear(2, 3), torch.zeros(4, 2)
    for call, error, message in [
        (lambda: exponential_profile(10, 5, 100.0), ValueError, "imbalance must be at most num_fi"),
        (
            lambda: BalancedBatches(x, torch.ones(4).long(), batch_size=2),
            ValueError,
            "labels must be of at least two classes",
        ),
        (lambda: logit_adjusted(layer, torch.ones(2).long()), ValueError, "of the 3 classes"),
        (
            lambda: accuracy_by_count(x, torch.full((4,), 2), torch.ones(2).long()),
            ValueError,
            "labels must be from 0 to 1, got from 2 to 2",
        ),
    ]:
        with subtests.test(message), pytest.raises(error, match=message):
            call()
