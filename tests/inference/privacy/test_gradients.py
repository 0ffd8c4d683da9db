"""DP-SGD: gradients of examples, their clipping, noise, Poisson samples, and what has none."""

from functools import partial

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from pyro_ext.inference import Trainer
from pyro_ext.inference.privacy import (
    PoissonBatches,
    PrivateLoss,
    clipped_sum,
    example_gradients,
    example_loss,
)
from pyro_ext.nn import MLP

X, Y = torch.randn(12, 4, generator=torch.Generator().manual_seed(0)), torch.arange(12) % 3


def network():
    torch.manual_seed(0)
    return MLP(4, [5], 3)


def of_rows(module):
    """Losses and gradients by one backward pass for each row."""
    losses, gradients = [], {name: [] for name, _ in module.named_parameters()}
    for x, y in zip(X, Y, strict=True):
        loss = cross_entropy(module(x[None]), y[None])
        for name, one in zip(
            gradients, torch.autograd.grad(loss, list(module.parameters())), strict=True
        ):
            gradients[name].append(one)
        losses.append(loss.detach())
    return torch.stack(losses), {name: torch.stack(rows) for name, rows in gradients.items()}


def private(module, **options):
    options = {"max_norm": 0.7, "noise_multiplier": 0.0, "expected_batch_size": 5.0, **options}
    return PrivateLoss(example_loss(module), dict(module.named_parameters()), **options)


def test_gradients_of_examples_are_those_of_a_loop():
    module = network()
    values = dict(module.named_parameters())
    losses, gradients = example_gradients(example_loss(module), values, X, Y)
    expected_losses, expected = of_rows(module)
    torch.testing.assert_close(losses, expected_losses)
    torch.testing.assert_close(gradients, expected)


def test_examples_are_clipped_in_all_tensors_together():
    """As by a loop; and a gradient of zero stays."""
    module = network()
    _, gradients = of_rows(module)
    gradients = {
        name: torch.cat([one, torch.zeros_like(one[:1])]) for name, one in gradients.items()
    }
    _, norms = clipped_sum(gradients, 1.0)
    limit = float(norms.median())
    sums, norms = clipped_sum(gradients, limit)
    expected = {name: torch.zeros_like(p) for name, p in module.named_parameters()}
    for row in range(13):
        whole = torch.cat([one[row].flatten() for one in gradients.values()]).norm()
        torch.testing.assert_close(norms[row], whole)
        for name, one in gradients.items():
            expected[name] += one[row] * (1.0 if whole <= limit else limit / whole)
    torch.testing.assert_close(sums, {name: value.detach() for name, value in expected.items()})
    assert int((norms > limit).sum()) >= 3 and int(((norms > 0) & (norms < limit)).sum()) >= 3


@pytest.mark.parametrize("chunk_size", [None, 5])
def test_loss_divides_by_the_expected_size(chunk_size):
    module = network()
    losses, gradients = of_rows(module)
    value, found = private(module, chunk_size=chunk_size)((X, Y))
    torch.testing.assert_close(value, losses.sum() / 5)
    sums, _ = clipped_sum(gradients, 0.7)
    torch.testing.assert_close(found, {name: total / 5 for name, total in sums.items()})


def test_an_empty_batch_is_noise_alone(float64):
    module = network()
    value, found = private(module)((X[:0], Y[:0]))
    assert float(value) == 0 and not any(bool(one.any()) for one in found.values())
    _, found = private(module, noise_multiplier=1.0)((X[:0], Y[:0]))
    assert all(bool(one.all()) for one in found.values())


@pytest.mark.statistical
def test_noise_has_its_scale():
    """Of 2,000,000 numbers; the ratio has a standard error of 5e-4, so 1e-9 are beyond 3e-3."""
    values = {"a": torch.zeros(1_000_000), "b": torch.zeros(1000, 1000)}
    loss = PrivateLoss(
        lambda values, x: x * (values["a"].sum() + values["b"].sum()),
        values,
        max_norm=0.5,
        noise_multiplier=3.0,
        expected_batch_size=6.0,
    )
    torch.manual_seed(0)
    _, found = loss((torch.zeros(0),))
    both = torch.cat([one.flatten() for one in found.values()])
    assert float(both.std()) / (0.5 * 3.0 / 6.0) == pytest.approx(1.0, abs=3e-3)


def test_trainer_takes_its_steps():
    """The same from the same seed, and one more of a checkpoint."""

    def run(num_steps, **options):
        module = network()
        values = dict(module.named_parameters())
        trainer = Trainer(values, partial(torch.optim.SGD, lr=0.1), seed=1)
        batches = PoissonBatches(X, Y, sampling_rate=0.4)
        loss = private(module, noise_multiplier=1.0)
        trainer.run(loss, num_steps, batches, progress=False, **options)
        return torch.cat([p.detach().flatten() for p in module.parameters()])

    first = run(4)
    assert torch.equal(run(4), first) and not torch.equal(run(5), first)


def test_poisson_samples(float64):
    """Each row as often as it should; 4 standard errors of 4,000 samples in all of 12 rows."""
    batches = PoissonBatches(torch.arange(12), sampling_rate=0.3)
    counts = torch.zeros(12)
    for seed in range(4000):
        counts[batches(seed)[0]] += 1
    assert bool(((counts / 4000 - 0.3).abs() < 4 * (0.21 / 4000) ** 0.5).all())
    assert batches.expected_size == pytest.approx(3.6)
    everything = PoissonBatches(torch.arange(12), sampling_rate=1.0)
    assert len(everything(0)[0]) == 12


def test_batch_norm_has_no_gradients_of_examples():
    module = nn.Sequential(nn.Conv1d(1, 2, 1), nn.BatchNorm1d(2), nn.Flatten(), nn.Linear(8, 3))
    with pytest.raises(ValueError, match=r"batch norm '1' \(BatchNorm1d\).*module.eval\(\)"):
        example_loss(module)
    module.eval()
    value, _ = private(module)((X[:, None], Y))
    torch.testing.assert_close(value, cross_entropy(module(X[:, None]), Y) * 12 / 5)
    without = nn.BatchNorm1d(2, track_running_stats=False).eval()
    with pytest.raises(ValueError, match="batch norm"):
        example_loss(nn.Sequential(without))


def test_examples_drop_units_of_their_own():
    module = nn.Sequential(nn.Dropout(0.5), nn.Linear(4, 3))
    values = dict(module.named_parameters())
    _, gradients = example_gradients(example_loss(module), values, torch.ones(8, 4), Y[:8] * 0)
    dropped = (gradients["1.weight"] == 0).all(1)
    assert len(dropped.unique(dim=0)) > 1
