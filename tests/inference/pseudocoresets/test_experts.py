"""Experts against closed forms and loops written out, and their files."""

import re
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from pyro_ext.checkpoint import CheckpointError
from pyro_ext.inference.pseudocoresets import (
    AutoPseudocoreset,
    ExpertBuffer,
    ForwardKL,
    TrajectorySurrogate,
    experts,
)
from pyro_ext.nn import MLP, BayesianClassifier, BayesianModule, init_to_module
from tests.inference.pseudocoresets.coreset_models import gamma, labeled, location, logistic, points

pytestmark = pytest.mark.usefixtures("float64")


def collect(model: Any, *args: Tensor, **options: Any) -> ExpertBuffer:
    settings = {"num_experts": 3, "num_epochs": 4, "seed": 0, "progress": False, **options}
    return ExpertBuffer.collect(model, *args, **settings)


def linear(x: Tensor) -> None:
    """A log likelihood whose slope is the datum, as far as descent gets."""
    loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Laplace(loc, 1.0 / x), obs=torch.full_like(x, 1e5))


def cubic(x: Tensor) -> None:
    """Descent from afar goes to infinity."""
    loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(loc**3, 1.0), obs=x)


def starting_at(*values: float) -> Any:
    """A strategy that starts one expert after the other at given values.

    The densities of all data and of a minibatch are looked at before, where the first one starts.
    """
    left = [values[0], values[0], *values]
    return lambda site: torch.full(site["fn"].shape(), left.pop(0))


# The runs ----------------------------------------------------------------------------------------


def test_descent_on_all_data_in_closed_form() -> None:
    x = points()
    buffer = collect(location, x, batch_size=50, learning_rate=0.3)
    start, mean = buffer.trajectories[:, :1], x.mean(0)
    powers = 0.7 ** torch.arange(5.0)
    expected = mean + powers[:, None] * (start - mean)
    torch.testing.assert_close(buffer.trajectories, expected)
    before = buffer.trajectories[:, :-1, None]
    losses = -dist.Normal(before, 1.0).log_prob(x).sum(-1).mean(-1)
    torch.testing.assert_close(buffer.losses, losses)
    assert len(start[:, 0].unique(dim=0)) == 3


def test_loss_has_neither_prior_nor_jacobian() -> None:
    x, y = labeled()
    x, y = x[:, 0], y + 0.5 + x[:, 1].square()
    buffer = collect(gamma, x, y, batch_size=400, learning_rate=0.05)
    assert list(buffer.shapes) == ["slope", "shape"]
    for number in range(3):
        flat = buffer.trajectories[number, 0].clone().requires_grad_()
        for epoch in range(1, 5):
            rate = (flat[0] * x).exp()
            loss = -dist.Gamma(flat[1].exp(), rate).log_prob(y).mean()
            (gradient,) = torch.autograd.grad(loss, flat)
            flat = (flat - 0.05 * gradient).detach().requires_grad_()
            torch.testing.assert_close(buffer.trajectories[number, epoch], flat.detach())


def test_epochs_visit_each_observation_once() -> None:
    """Powers of two add up to a number that tells which were visited, and how often."""
    x = 2.0 ** torch.arange(10)
    buffer = collect(linear, x, batch_size=5, learning_rate=1.0)
    visited = 5.0 * buffer.trajectories.diff(dim=1)[..., 0]
    torch.testing.assert_close(visited, torch.full((3, 4), 1023.0))
    buffer = collect(linear, x, batch_size=3, learning_rate=1.0)
    missed = (1023.0 - 3.0 * buffer.trajectories.diff(dim=1)[..., 0]).log2()
    torch.testing.assert_close(missed, missed.round(), rtol=0, atol=1e-9)
    # Of twelve epochs that each leave out one of ten at random, not all leave out the same.
    assert len(missed.round().unique()) > 2 and len(missed.round().unique(dim=0)) == 3


def test_experts_do_not_depend_on_their_number() -> None:
    x, y = labeled()
    few, many = (collect(logistic, x, y, num_experts=number) for number in (2, 5))
    torch.testing.assert_close(few.trajectories, many.trajectories[:2], rtol=0, atol=1e-13)
    torch.testing.assert_close(few.losses, many.losses[:2], rtol=0, atol=1e-13)
    alone = collect(logistic, x, y, num_experts=1, backend="eager")
    torch.testing.assert_close(alone.trajectories, many.trajectories[:1], rtol=0, atol=1e-13)
    same, other = (collect(logistic, x, y, num_experts=2, seed=seed) for seed in (0, 2))
    assert torch.equal(few.trajectories, same.trajectories)
    assert not torch.isclose(few.trajectories, other.trajectories).any()


def test_networks_start_and_learn() -> None:
    x, y = labeled()
    network = MLP(3, [8], 2)
    model = BayesianClassifier(BayesianModule(network), batch_size=40)
    start = init_to_module(module=network)
    buffer = collect(model, x, y.long(), init_strategy=start, learning_rate=0.3)
    assert buffer.shapes["0.weight"] == (8, 3)
    assert float(buffer.trajectories[:, 0].abs().max()) < 0.6  # as Linear starts, not the prior
    assert bool((buffer.losses[:, -1] < buffer.losses[:, 0]).all())
    with pytest.raises(ValueError, match="batch_size must be at most the 40"):
        collect(model, x, y.long(), batch_size=41)


# What goes wrong ---------------------------------------------------------------------------------


def test_diverging_experts_are_named_and_left_out() -> None:
    x = torch.ones(20)
    start = starting_at(0.5, 40.0, 0.4)
    with pytest.warns(RuntimeWarning, match=re.escape("experts [1] did not stay finite")):
        buffer = collect(cubic, x, batch_size=20, learning_rate=0.1, init_strategy=start)
    assert buffer.num_experts == 2 and buffer.losses.shape == (2, 4)
    torch.testing.assert_close(buffer.trajectories[:, 0, 0], torch.tensor([0.5, 0.4]))
    with pytest.raises(ValueError, match=r"learning_rate=0.1 is too large: .* \[0, 1, 2\]"):
        collect(cubic, x, batch_size=20, learning_rate=0.1, init_strategy=starting_at(40, 41, 42))


@pytest.mark.parametrize("done", [0, 2])
def test_interrupt_keeps_finished_epochs(monkeypatch: pytest.MonkeyPatch, done: int) -> None:
    whole = collect(location, points())
    plain, calls = experts._epoch, []

    def epoch(*args: Any) -> Tensor:
        if len(calls) == done:
            args[2].add_(1.0)  # in the midst of an epoch
            raise KeyboardInterrupt
        calls.append(None)
        return plain(*args)

    monkeypatch.setattr(experts, "_epoch", epoch)
    if not done:
        with pytest.raises(KeyboardInterrupt):
            collect(location, points())
        return
    with pytest.warns(UserWarning, match="stopped after 2 of 4 epochs, which are kept"):
        buffer = collect(location, points())
    assert torch.equal(buffer.trajectories, whole.trajectories[:, :3])
    assert torch.equal(buffer.losses, whole.losses[:, :2])


def test_observations_are_checked() -> None:
    x = points()

    def closed() -> None:
        location(x)

    def two(x: Tensor) -> None:
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        pyro.sample("total", dist.Normal(loc, 1.0), obs=torch.tensor(1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(loc, 1.0), obs=x)

    with pytest.raises(ValueError, match="args must hold a tensor with a row for each of the 50"):
        collect(closed)
    with pytest.raises(ValueError, match=r"in the plate 'data',.*\['total'\] do not"):
        collect(two, x[:, 0], plate="data")


def test_pieces_of_different_runs_are_no_expert(subtests: pytest.Subtests) -> None:
    x, y = labeled()
    buffer = collect(logistic, x, y, num_epochs=6, learning_rate=0.01, batch_size=400)
    one, other = buffer.trajectories[:1], buffer.trajectories[1:2]
    for number in (2, 3, 6):
        with subtests.test(number=number):
            spliced = torch.cat([one, torch.cat([one[:, :number], other[:, number:]], 1)])
            with pytest.raises(ValueError, match=f"expert 1 moves in epoch {number - 1} more"):
                ExpertBuffer(spliced, buffer.shapes, buffer.losses[:2])
    ExpertBuffer(torch.cat([one, other]), buffer.shapes, buffer.losses[:2])


# Files -------------------------------------------------------------------------------------------


def test_save_and_load(tmp_path: Any) -> None:
    x, y = labeled()
    buffer = collect(gamma, x[:, 0], y + 0.5)
    buffer.save(tmp_path / "experts")
    read = ExpertBuffer.load(tmp_path / "experts")
    assert torch.equal(read.trajectories, buffer.trajectories)
    assert torch.equal(read.losses, buffer.losses)
    assert (read.num_steps, read.learning_rate) == (buffer.num_steps, buffer.learning_rate)
    assert (read.num_steps, read.learning_rate) == (400 // 64, 0.05)
    assert list(read.shapes.items()) == list(buffer.shapes.items())


def test_other_files_are_refused(tmp_path: Any) -> None:
    path = tmp_path / "experts"
    with pytest.raises(CheckpointError, match="cannot be read"):
        ExpertBuffer.load(path)
    AutoPseudocoreset(location, points(), size=5, seed=0).save(path)
    with pytest.raises(CheckpointError, match="holds no experts"):
        ExpertBuffer.load(path)
    collect(location, points()).save(path)
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(CheckpointError):
        ExpertBuffer.load(path)


def test_experts_of_another_model_are_refused() -> None:
    x, y = labeled()
    buffer = collect(location, points())
    guide = AutoPseudocoreset(logistic, x, y, size=5, seed=0)
    with pytest.raises(ValueError, match=r"sites \{'weight': \(3,\)\} .* got those of \{'mean'"):
        ForwardKL(TrajectorySurrogate(buffer)).loss(logistic, guide)
