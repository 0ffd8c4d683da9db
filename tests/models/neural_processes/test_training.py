"""Training and evaluation of neural processes."""

import math

import numpy as np
import pytest
import torch

from pyro_ext.checkpoint import CheckpointError
from pyro_ext.inference.training import TrainingDiverged
from pyro_ext.models.neural_processes import CNP, MPNP, Batch, fit, log_likelihoods
from pyro_ext.models.neural_processes.process import task_means
from tests.killing import stopping
from tests.models.neural_processes.helpers import make, padded, tasks


def waves(seed):
    """Sines of random phase."""
    generator = np.random.default_rng(seed)
    x = torch.from_numpy(generator.uniform(-2, 2, (8, 20, 1))).float()
    y = torch.sin(x + torch.from_numpy(generator.uniform(0, 3, (8, 1, 1))).float())
    return Batch(x[:, :6], y[:, :6], x[:, 6:], y[:, 6:])


def trained(num_steps, seed=0, tasks=waves, **options):
    torch.manual_seed(0)
    process = MPNP(width=16, num_pseudo=3)
    return process, fit(process, tasks, num_steps, seed=seed, progress=False, **options)


def test_training_lowers_the_loss_and_follows_the_seed():
    process, losses = trained(60, learning_rate=5e-3)
    assert len(losses) == 60
    assert np.mean(losses[-10:]) < np.mean(losses[:10]) - 0.3
    again, same = trained(60, learning_rate=5e-3)
    assert same == losses
    for one, other in zip(process.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, other)
    _, different = trained(5, seed=1)
    assert different != losses[:5]


def test_learning_rate_falls_along_a_cosine(monkeypatch):
    rates = []
    original = torch.optim.Adam.step

    def step(self, *arguments):
        rates.append(self.param_groups[0]["lr"])
        return original(self, *arguments)

    monkeypatch.setattr(torch.optim.Adam, "step", step)
    trained(8, learning_rate=0.01)
    expected = [0.01 * (1 + math.cos(math.pi * i / 8)) / 2 for i in range(8)]
    assert rates == pytest.approx(expected)


@pytest.mark.parametrize("where", ["targets", "gradient"])
def test_numbers_that_are_not_finite_stop_it(where):
    def spoiled(seed):
        batch = waves(seed)
        if spoiled.calls == 3 and where == "targets":
            batch.target_outputs[0, 0] = math.nan
        if spoiled.calls == 3 and where == "gradient":
            next(iter(process.parameters())).register_hook(lambda gradient: gradient * math.inf)
        spoiled.calls += 1
        return batch

    spoiled.calls = 0
    torch.manual_seed(0)
    process = CNP(width=16)
    what = "loss is nan" if where == "targets" else "gradient of '.*weight' is (inf|nan) in"
    with pytest.raises(TrainingDiverged, match=f"diverged at step 4 of 9: the {what}"):
        fit(process, spoiled, 9, seed=0, progress=False)


def test_training_goes_on_from_a_checkpoint(tmp_path):
    """The draws of the loss and the tasks go on where they were."""
    path = tmp_path / "training"
    with pytest.warns(UserWarning, match="stopped after 4 of 8 steps"):
        trained(8, tasks=stopping(waves, 5), checkpoint=path)
    process, losses = trained(8, checkpoint=path)
    whole, expected = trained(8)
    assert losses == expected
    for one, other in zip(process.parameters(), whole.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_checkpoint_gives_the_seed_and_wants_the_number_of_steps(tmp_path):
    path = tmp_path / "training"
    first = trained(3, seed=None, checkpoint=path)[1]
    assert trained(3, seed=None, checkpoint=path)[1] == first
    with pytest.raises(CheckpointError, match="num_steps is 3 there and 4"):
        trained(4, seed=None, checkpoint=path)


def test_tasks_take_the_type_of_the_process(float64):
    process = CNP(width=16)
    losses = fit(process, waves, 2, seed=0, progress=False)
    assert len(losses) == 2 and next(process.parameters()).dtype == torch.float64
    assert math.isfinite(log_likelihoods(process, [waves(0)]).target)


@pytest.mark.parametrize("name", ["CNP", "NP", "BNP", "MPNP"])
@torch.no_grad()
def test_log_likelihoods_written_out(name):
    process, batch = make(name), tasks()
    found = log_likelihoods(process, [batch], 6, seed=3)
    points = batch.points
    prediction = process.predict(*batch.context[:2], points.inputs, 6, seed=3)
    values = prediction.log_prob(points.outputs).sum(-1).double().exp().mean(0).log()
    assert found.context == pytest.approx(float(values[:, :5].mean()), rel=1e-4)
    assert found.target == pytest.approx(float(values[:, 5:].mean()), rel=1e-4)


@pytest.mark.parametrize("name", ["CNP", "NP", "MPNP"])
def test_log_likelihoods_do_not_see_padding(name):
    process, batch = make(name), tasks()
    expected = log_likelihoods(process, [batch, batch], 4)
    found = log_likelihoods(process, [padded(batch), padded(batch)], 4)
    assert found == pytest.approx(expected, rel=1e-5)


def test_each_task_counts_once():
    process, few, many = make("CNP"), tasks(num_tasks=1), tasks(num_target=30, num_tasks=3)
    apart = [log_likelihoods(process, [one]).target for one in (few, many)]
    together = log_likelihoods(process, [few, many]).target
    assert together == pytest.approx((apart[0] + 3 * apart[1]) / 4)
    values, mask = torch.tensor([[1.0, 0.0], [3.0, 5.0]]), torch.tensor([[True, False], [True] * 2])
    assert task_means(values, mask).tolist() == [1.0, 4.0]


def test_what_lies_beyond_the_training_is_told():
    process = CNP(width=8)
    near, far = torch.zeros(1, 2, 1), torch.full((1, 2, 1), 40.0)
    process.predict(near, near, far)  # untrained, it says nothing
    x = torch.linspace(-1.0, 1.0, 6).expand(2, 6)[..., None]
    fit(process, lambda seed: Batch(x[:, :2], x[:, :2], x, x), 2, seed=0, progress=False)
    process.predict(near, near, near)
    for arguments, name in (
        ((far, near, near), "context_inputs"),
        ((near, far, near), "context_outputs"),
        ((near, near, far), "target_inputs"),
    ):
        with pytest.warns(UserWarning, match=f"{name} must be from .* got 40: .*unreliable"):
            process.predict(*arguments)
    again = CNP(width=8)
    again.load_state_dict(process.state_dict())
    assert torch.equal(again.input_range, process.input_range)
