"""The loop of training: by hand, resumed, interrupted, and where something is not finite."""

import copy
import math
import os
import signal
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO
from pyro.infer.autoguide import AutoNormal
from torch.nn.functional import dropout, mse_loss
from torch.optim.lr_scheduler import CosineAnnealingLR, OneCycleLR, ReduceLROnPlateau, StepLR

from pyro_ext.inference.training import ShuffledBatches, Trainer, TrainingDiverged
from tests.inference.training.runs import X, Y, assert_same, network, run, state

NUM_LIVE = 9  # parameters and buffers of the network


# Steps by hand -----------------------------------------------------------------------------------


def test_steps_are_those_of_a_plain_loop():
    ours, plain = network(), network()
    trainer = Trainer(
        ours,
        partial(torch.optim.SGD, lr=0.1, momentum=0.9),
        scheduler=partial(StepLR, step_size=2, gamma=0.5),
        max_norm=0.05,
    )
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.1, momentum=0.9)
    scheduler = StepLR(optimizer, 2, 0.5)
    losses = []
    plain(X), ours(X)
    for _ in range(5):
        optimizer.zero_grad()
        loss = mse_loss(plain(X), Y)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(plain.parameters(), 0.05)
        assert norm > 0.05
        optimizer.step()
        scheduler.step()
        losses.append(loss.item())
    assert trainer.run(lambda: mse_loss(ours(X), Y), 5, progress=False) == losses
    assert trainer.num_steps == 5
    for one, other in zip(ours.state_dict().values(), plain.state_dict().values(), strict=True):
        assert torch.equal(one, other)


def test_average_in_closed_form(float64):
    """Descent from 1 by the factor 0.8 a step, averaged: a sum of two geometric series."""
    x = torch.ones(2, requires_grad=True)
    for form in (lambda: {"x": x}, lambda: [x]):
        with torch.no_grad():
            x.fill_(1.0)
        trainer = Trainer(form(), partial(torch.optim.SGD, lr=0.1), ema_decay=0.9)
        trainer.run(lambda: x.square().sum(), 7, progress=False)
        values = [0.8**step for step in range(8)]
        expected = 0.9**7 * values[0] + sum(0.1 * 0.9 ** (7 - s) * values[s] for s in range(1, 8))
        average = trainer.average
        found = average["x"] if isinstance(average, dict) else average[0]
        torch.testing.assert_close(found, torch.full((2,), expected))
        torch.testing.assert_close(x.detach(), torch.full((2,), values[7]))
    assert Trainer([x]).average is None


def test_average_of_a_module_has_the_buffers_of_the_last_step():
    module = network()
    trainer = Trainer(module, ema_decay=0.5)
    trainer.run(lambda: mse_loss(module(X), Y), 3, progress=False)
    average = trainer.average
    assert type(average) is type(module) and average is not module
    assert torch.equal(average[1].running_mean, module[1].running_mean)
    assert not torch.equal(average[0].weight, module[0].weight)


@pytest.mark.parametrize("form", [lambda x: {"x": x}, lambda x: [x]])
def test_gradients_may_come_with_the_value(form):
    x = torch.tensor([3.0, 1.0])
    trainer = Trainer(form(x), partial(torch.optim.SGD, lr=0.1))
    assert trainer.step(lambda: (x.square().sum(), form(2 * x))) == 10.0
    torch.testing.assert_close(x, torch.tensor([2.4, 0.8]))


def test_frozen_parameters_are_left_alone():
    module = network()
    module[0].requires_grad_(False)
    before = module[0].weight.clone()
    trainer = Trainer(module, partial(torch.optim.SGD, lr=0.1, weight_decay=0.1))
    trainer.run(lambda: mse_loss(module(X), Y), 2, progress=False)
    assert torch.equal(module[0].weight, before) and len(trainer._named) == 4


def test_independent_rows_do_not_stop_each_other():
    x = torch.tensor([[1.0], [math.nan], [2.0]])
    trainer = Trainer([x], partial(torch.optim.SGD, lr=0.25), independent_rows=True)
    losses = [trainer.step(lambda: (x.square().sum(-1), [2 * x])) for _ in range(2)]
    assert losses == [2.5, 2.5 / 4]
    assert x[[0, 2], 0].tolist() == [0.25, 0.5] and x[1].isnan()


def model(x):
    loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(loc, 1.0), obs=x)


OPTIMIZERS = {
    "torch": lambda: partial(torch.optim.Adam, lr=0.1),
    "Pyro": lambda: pyro.optim.Adam({"lr": 0.1}),
    "schedule of Pyro": lambda: pyro.optim.ExponentialLR(
        {"optimizer": torch.optim.Adam, "optim_args": {"lr": 0.1}, "gamma": 0.9}
    ),
}


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_pyro_losses_and_optimizers(kind, tmp_path):
    def trained(num_steps, checkpoint=None):
        pyro.set_rng_seed(0)
        elbo = Trace_ELBO()(model, AutoNormal(model))
        elbo(X[:, 0])
        trainer = Trainer(elbo, OPTIMIZERS[kind](), seed=1)
        trainer.run(lambda: elbo(X[:, 0]), num_steps, checkpoint=checkpoint, progress=False)
        return trainer

    with pyro.settings.context(module_local_params=True):
        whole = trained(12)
        trained(5, tmp_path / "file")
        assert_same(trained(12, tmp_path / "file"), whole)
    if kind == "schedule of Pyro":
        rates = [one.get_last_lr()[0] for one in whole.optimizer._optimizer.optim_objs.values()]
        assert rates == pytest.approx([0.1 * 0.9**12] * 2)


@pytest.mark.parametrize("max_norm", [None, 0.1])
def test_sparse_gradients_are_those_of_a_dense_table(max_norm):
    def trained(is_sparse):
        torch.manual_seed(0)
        table = torch.nn.Embedding(5, 2, sparse=is_sparse)
        trainer = Trainer(table, partial(torch.optim.SGD, lr=0.1), max_norm=max_norm)
        rows = torch.tensor([1, 1, 3])  # one of them twice
        trainer.run(lambda: table(rows).square().sum(), 3, progress=False)
        return table.weight.detach()

    torch.testing.assert_close(trained(True), trained(False))
    table = torch.nn.Embedding(5, 2, sparse=True)
    trainer = Trainer(table, torch.optim.SparseAdam)
    with pytest.raises(TrainingDiverged, match="the gradient of 'weight' is nan in 2 of 10"):
        trainer.step(lambda: (0.0 * table(torch.tensor([1]))).sqrt().sum())


def test_plateaus_see_the_loss():
    x = torch.ones(1, requires_grad=True)
    trainer = Trainer(
        [x], partial(torch.optim.SGD, lr=0.1), scheduler=partial(ReduceLROnPlateau, patience=1)
    )
    trainer.run(lambda: x.sum() * 0.0, 4, progress=False)
    assert trainer.optimizer.param_groups[0]["lr"] == pytest.approx(0.01)


# Batches -----------------------------------------------------------------------------------------


def test_epochs_have_each_row_once_in_new_orders():
    batches = ShuffledBatches(torch.arange(10), torch.arange(10.0) * 2, batch_size=4)
    epochs = []
    for epoch in range(3):
        parts = [batches.batch(3 * epoch + n, seed=5) for n in range(3)]
        rows, others = (torch.cat(column) for column in zip(*parts, strict=True))
        assert sorted(rows.tolist()) == list(range(10)) and torch.equal(rows * 2.0, others)
        epochs.append(rows.tolist())
    assert len({tuple(order) for order in epochs}) == 3
    assert torch.equal(batches.batch(4, seed=5)[0], torch.tensor(epochs[1][4:8]))
    short = ShuffledBatches(torch.arange(10), batch_size=4, drop_last=True)
    assert len(short) == 2 and len(short.batch(1, seed=0)[0]) == 4


def test_a_function_of_seeds_makes_batches():
    seeds = []
    x = torch.ones(1, requires_grad=True)
    for num_steps in (3, 5):
        trainer = Trainer([x], seed=3)
        trainer.run(lambda seed: seeds.append(seed) or x.sum(), num_steps, int, progress=False)
    assert seeds[:3] == seeds[3:6] and len(set(seeds)) == 5


# Going on ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["seeded", "global"])
def test_going_on_is_exact(kind, tmp_path):
    """In calls of other lengths, in step, from a checkpoint, or all at once."""
    seed = 4 if kind == "seeded" else None
    whole = run(23, seed=seed)
    parts = run(3, seed=seed)
    run(7, trainer=parts)
    run(23, trainer=parts)
    assert_same(parts, whole)
    path = tmp_path / "file.safetensors"
    for number in (2, 9, 9, 23):
        resumed = run(number, seed=seed, checkpoint=path, start=7 if number == 2 else number)
    assert_same(resumed, whole)
    assert len(run(5, seed=seed, checkpoint=path).losses) == 23


def test_copies_go_on_alike():
    """Of the trainer together with what it trains."""
    trainer = run(5, seed=4)
    copied = copy.deepcopy(trainer)
    assert_same(run(9, trainer=copied), run(9, trainer=trainer))


def test_generators_of_an_interrupted_step_are_put_back():
    x, generator = torch.ones(3, requires_grad=True), torch.Generator().manual_seed(0)
    trainer = Trainer([x], stateful=[generator])

    def loss():
        value = (x * torch.rand(3, generator=generator)).sum()
        if trainer.num_steps == 2:
            raise KeyboardInterrupt
        return value

    with pytest.warns(UserWarning, match="stopped after 2 of 5 steps"):
        trainer.run(loss, 5, progress=False)
    other = torch.Generator().manual_seed(0)
    torch.rand(6, generator=other)
    assert torch.equal(torch.rand(3, generator=generator), torch.rand(3, generator=other))


def test_own_stream_leaves_the_generator_alone():
    trainer = run(2, seed=0)
    torch.manual_seed(9)
    expected = torch.rand(3)
    torch.manual_seed(9)
    run(3, trainer=trainer)
    assert torch.equal(torch.rand(3), expected)


def test_generators_and_modules_beside_it_go_on(tmp_path):
    def trained(num_steps, checkpoint=None):
        x = torch.ones(3, requires_grad=True)
        generator, other = torch.Generator().manual_seed(0), torch.nn.BatchNorm1d(3)
        trainer = Trainer([x], stateful=(generator, other))

        def loss():
            noise = torch.rand(5, 3, generator=generator)
            return (other(noise) * x + noise).square().sum()

        trainer.run(loss, num_steps, checkpoint=checkpoint, progress=False)
        return trainer.losses, x.tolist(), other.running_mean.tolist()

    whole = trained(6)
    trained(4, tmp_path / "file")
    assert trained(6, tmp_path / "file") == whole


# Ctrl-C ------------------------------------------------------------------------------------------


def interrupted_at(step, action):
    calls = []

    def hook():
        calls.append(None)
        if len(calls) == step:
            action()

    return hook


@pytest.mark.parametrize("kind", ["signal", "exception"])
def test_ctrl_c_keeps_whole_steps(kind, tmp_path):
    def action():
        if kind == "exception":
            raise KeyboardInterrupt
        os.kill(os.getpid(), signal.SIGINT)

    path = tmp_path / "file"
    done = 5 if kind == "signal" else 4
    with pytest.warns(UserWarning, match=f"stopped after {done} of 23 steps"):
        trainer = run(23, seed=4, hook=interrupted_at(5, action), checkpoint=path)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    whole = run(23, seed=4)
    assert_same(run(23, seed=4, checkpoint=path), whole)
    assert_same(run(23, trainer=trainer), whole)


def test_a_second_ctrl_c_ends_the_step():
    def twice():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    with pytest.warns(UserWarning, match="stopped after 4 of 23 steps"):
        trainer = run(23, seed=4, hook=interrupted_at(5, twice))
    assert_same(run(23, trainer=trainer), run(23, seed=4))


def test_interrupted_update_is_undone(monkeypatch):
    trainer = run(3, seed=4)
    before = [tensor.clone() for tensor in state(trainer)[:NUM_LIVE]]

    def half():
        with torch.no_grad():
            trainer.optimizer.param_groups[0]["params"][0].add_(1.0)
        raise KeyboardInterrupt

    monkeypatch.setattr(trainer.optimizer, "step", half)
    with pytest.warns(UserWarning, match="stopped after 3 of 9 steps"):
        run(9, trainer=trainer)
    for tensor, kept in zip(state(trainer)[:NUM_LIVE], before, strict=True):
        assert torch.equal(tensor, kept)


class Failure(Exception):
    pass


@pytest.mark.parametrize("error", [Failure, KeyboardInterrupt])
@pytest.mark.parametrize("call", ["step", "run"])
def test_a_loss_that_raises_leaves_no_trace(call, error):
    """Generators and buffers are put back, and the next steps are those of a whole run."""

    def trained(*fails):
        module, generator = network(), torch.Generator().manual_seed(0)
        trainer = Trainer(module, stateful=[generator], seed=1)

        def loss():
            x = X + torch.rand(X.shape, generator=generator) + torch.rand(X.shape)
            value = mse_loss(module(x), Y)
            if fails and trainer.num_steps == 2:
                raise fails[0]
            return value

        for _ in range(4):
            try:
                if call == "step":
                    trainer.step(loss)
                else:
                    trainer.run(loss, trainer.num_steps + 1, progress=False)
            except (Failure, KeyboardInterrupt):
                fails = ()
        while trainer.num_steps < 4:
            fails = ()
            trainer.step(loss)
        return trainer

    if call == "run" and error is KeyboardInterrupt:
        with pytest.warns(UserWarning, match="stopped after 2 of 3 steps"):
            found = trained(error)
    else:
        found = trained(error)
    assert_same(found, trained())


def test_an_interrupt_before_the_first_step_keeps_the_order_of_batches():
    def trained(hook):
        torch.manual_seed(3)
        x = torch.ones(4, requires_grad=True)
        trainer, batches = Trainer([x]), ShuffledBatches(X, batch_size=4)
        for _ in range(2):
            trainer.run(
                lambda rows: hook() or (dropout(rows, 0.5) @ x).sum(), 4, batches, progress=False
            )
        return trainer.losses

    def raises():
        raise KeyboardInterrupt

    with pytest.warns(UserWarning, match="stopped after 0 of 4 steps"):
        found = trained(interrupted_at(1, raises))
    assert found == trained(lambda: None)


def test_a_scheduler_that_raises_refuses_the_step():
    x = torch.ones(2, requires_grad=True)
    schedule = partial(OneCycleLR, max_lr=0.1, total_steps=3)
    trainer = Trainer([x], partial(torch.optim.SGD, lr=0.1), scheduler=schedule, ema_decay=0.5)
    seen = []
    for number in range(4):
        with pytest.raises(ValueError, match="Tried to step 4 times"):
            trainer.run(lambda: x.square().sum(), 6, progress=False)
        average, schedule = trainer.average[0].tolist(), trainer.scheduler.state_dict()
        seen.append((x.tolist(), average, dict(schedule), trainer.optimizer.param_groups[0]["lr"]))
        assert seen[number] == seen[0] and trainer.num_steps == 3


# What is not finite ------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["loss", "gradient", "update"])
def test_what_is_not_finite_stops_it(where):
    torch.manual_seed(0)
    module = network()
    trainer = Trainer(module, partial(torch.optim.SGD, lr=0.1), ema_decay=0.9)
    seen = []

    def loss():
        seen.append([parameter.detach().clone() for parameter in module.parameters()])
        value = mse_loss(module(X), Y)
        if len(seen) < 4:
            return value
        if where == "loss":
            return mse_loss(module(X * math.nan), Y)  # which reaches the running mean
        if where == "gradient":
            return value + (0.0 * module[2].bias[0]).sqrt()
        trainer.optimizer.param_groups[0] |= {"lr": 1e30, "weight_decay": 1e30}
        return value

    what = {
        "loss": "the loss is nan",
        "gradient": "the gradient of '2.bias' is nan in 1 of 1 elements",
        "update": "after the update '0.weight' is -?(inf|nan) in",
    }[where]
    with pytest.raises(TrainingDiverged, match=f"diverged at step 4 of 9: {what}.*") as caught:
        trainer.run(loss, 9, progress=False)
    assert isinstance(caught.value, ArithmeticError)
    assert caught.value.losses == trainer.losses and len(trainer.losses) == 3
    # Where the update fails, loss and gradient of the fourth step were finite before it.
    step = 3 if where == "update" else 2
    for tensor, expected in zip(module.parameters(), seen[step], strict=True):
        assert torch.equal(tensor, expected)
    assert all(bool(buffer.isfinite().all()) for buffer in module.buffers())
    assert all(bool(p.isfinite().all()) for p in trainer.average.parameters())


def test_norms_that_overflow_are_told():
    x = torch.ones(2, requires_grad=True)
    with pytest.raises(TrainingDiverged, match=r"'parameters\[0\]' is as large as 1e\+30"):
        Trainer([x]).step(lambda: (1e30 * x).sum())
    assert x.tolist() == [1.0, 1.0]


# Arguments ---------------------------------------------------------------------------------------


def test_arguments(subtests):
    x = torch.ones(2, requires_grad=True)
    frozen = torch.nn.Linear(1, 1).requires_grad_(False)

    class Half:
        def load_state_dict(self, state):
            pass

    def returning(result):
        Trainer({"x": x}).step(lambda: result)

    for call, message in [
        (lambda: Trainer(frozen), "parameters must hold what requires a gradient"),
        (lambda: Trainer([]), "parameters must be a module, or tensors in a dict or list"),
        (lambda: Trainer(x), "parameters must be a list"),
        (lambda: Trainer([x], max_norm=1.0, independent_rows=True), "max_norm must be None"),
        (lambda: Trainer([x], stateful=[3]), "stateful must hold what has a state_dict .*, got 3"),
        (lambda: Trainer([x], stateful=[Half()]), "stateful must hold what has a state_dict"),
        (lambda: Trainer([x], lambda tensors: None), "optimizer must make an optimizer, got None"),
        (lambda: Trainer([x], torch.optim.LBFGS), "optimizer must .* got LBFGS, which needs a clo"),
        (lambda: Trainer([x], scheduler=lambda made: 3), "scheduler must make a scheduler, got 3"),
        (
            lambda: Trainer([x], pyro.optim.Adam({}), scheduler=CosineAnnealingLR),
            "scheduler must be None with one of pyro.optim",
        ),
        (lambda: Trainer([x]).step(lambda: x), "loss must return a scalar tensor, got a torch"),
        (lambda: Trainer([x]).step(lambda: x.detach().sum()), "loss must depend on the parameters"),
        (lambda: returning((x.sum(), x)), "gradients, .* must be tensors in a dict or list"),
        (lambda: returning((x.sum(), {"y": x})), r"gradients must have the names \['x'\], got"),
        (lambda: returning((x.sum(), [])), "gradients must be as many as the 1 parameters, got 0"),
        (lambda: returning((x.sum(), [x[:1]])), "gradients must hold for 'x' .*shape .2,., got"),
        (lambda: returning((x.sum(), [x], 3)), r"loss must return a scalar tensor, got \("),
        (lambda: ShuffledBatches(X, Y[:3], batch_size=1), "rows must be tensors with the same"),
        (lambda: ShuffledBatches(X, batch_size=99), "batch_size must be at most the 30 rows"),
    ]:
        with subtests.test(message), pytest.raises((ValueError, TypeError), match=message):
            call()


def test_progress_is_shown(capsys):
    x = torch.ones(2, requires_grad=True)
    Trainer([x]).run(lambda: x.square().sum(), 3, description="Squares")
    shown = capsys.readouterr().err
    assert "Squares" in shown and "loss 1.9" in shown
