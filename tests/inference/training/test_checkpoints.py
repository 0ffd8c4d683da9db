"""Checkpoints of training: what is in them, and which are refused."""

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pyro_ext.checkpoint import CheckpointError
from pyro_ext.inference.training import ShuffledBatches, Trainer, TrainingDiverged
from pyro_ext.inference.training.checkpoints import set_random_states
from tests.inference.training.runs import X, Y, assert_same, run, state


def test_an_older_checkpoint_takes_nothing_back(tmp_path):
    path = tmp_path / "file"
    trainer = run(4, seed=4, checkpoint=path)
    run(9, trainer=trainer)
    assert len(run(9, trainer=trainer, checkpoint=path).losses) == 9
    run(12, trainer=trainer, checkpoint=path)
    assert_same(run(12, seed=4, checkpoint=path), run(12, seed=4))


def test_tied_weights_are_saved(tmp_path):
    def trained(num_steps, checkpoint=None):
        torch.manual_seed(0)
        module = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Linear(3, 3))
        module[1].weight = module[0].weight
        trainer = Trainer(module)
        trainer.run(
            lambda: module(X[:, :3]).sum(), num_steps, checkpoint=checkpoint, progress=False
        )
        return trainer

    trained(2, tmp_path / "file")
    assert_same(trained(4, tmp_path / "file"), trained(4))


def test_another_training_is_refused_by_what_differs(tmp_path):
    path = tmp_path / "file"
    run(2, seed=0, checkpoint=path)
    for options, message in [
        ({"seed": 1}, "seed is 0 there and 1 here"),
        ({"seed": 0, "learning_rate": 0.5}, r"optimizer: groups: 0: lr is 0\.05 there and 0\.5"),
        ({"seed": 0, "horizon": 99}, "scheduler: state: T_max is 23 there and 99"),
        ({"seed": 0, "width": 9}, r"parameters: 0\.weight: 1: 0 is 8 there and 9"),
        ({"seed": 0, "ema_decay": None}, "ema_decay is 0.9 there and absent here"),
        ({"seed": 0, "y": Y + 1}, "batches: digest is"),
        ({"seed": 0, "identity": {"note": 2}}, "note is absent there and 2 here"),
    ]:
        with pytest.raises(CheckpointError, match=f"is of another training: .*{message}"):
            run(3, checkpoint=path, **options)
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(CheckpointError):
        run(3, seed=0, checkpoint=path)


@pytest.mark.slow
def test_killed_at_any_moment(tmp_path):
    """Killed again and again, between and inside steps, it ends with the bits of a whole run."""
    whole = run(150, seed=4)
    path = tmp_path / "file.safetensors"
    command = [sys.executable, "-m", "tests.inference.training.runs", str(path)]
    # Sums come out with the same bits where as many threads take them.
    threads = str(torch.get_num_threads())
    environment = {
        **os.environ,
        "PYTHONPATH": str(Path(__file__).parents[3]),
        "OMP_NUM_THREADS": threads,
    }
    num_kills, seconds = 0, 0.02
    while True:
        with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE) as process:
            process.stdout.readline()  # it has begun
            try:
                process.wait(seconds)
                break
            except subprocess.TimeoutExpired:
                process.kill()
                num_kills, seconds = num_kills + 1, 2 * seconds
    assert num_kills >= 2
    assert_same(run(150, seed=4, checkpoint=path), whole)


def test_the_checkpoint_of_a_diverged_training_stays(tmp_path):
    path = tmp_path / "file"
    run(6, seed=4, checkpoint=path)
    before = path.read_bytes()
    with pytest.raises(TrainingDiverged):
        run(9, seed=4, checkpoint=path, hook=lambda: math.nan)
    assert path.read_bytes() == before


class Sums(torch.nn.Linear):
    """A layer with buffers."""

    def __init__(self, **buffers):
        super().__init__(4, 1)
        for name, size in buffers.items():
            self.register_buffer(name, torch.zeros(size))


class Fussy:
    """Takes up no state but a certain one."""

    def __init__(self, kind):
        self.kind = kind

    def state_dict(self):
        return {"kind": self.kind}

    def load_state_dict(self, state):
        if state["kind"] != self.kind:
            raise ValueError(f"kind {state['kind']}")


@pytest.mark.parametrize(
    ("one", "other", "message"),
    [
        ({"a": 2}, {"b": 2}, "buffers: a is .* there and absent"),
        ({"a": 2}, {"a": 3}, "buffers: a: 1: 0 is 2 there and 3"),
        ({"stateful": []}, {"stateful": [torch.Generator()]}, "stateful is .* there and"),
        ({"stateful": [Fussy(1)]}, {"stateful": [Fussy(2)]}, "kind 1"),
        ({"independent_rows": True}, {}, "independent_rows is True there and False"),
        ({"identity": {"seed": 0}}, {}, "identity: seed is 0"),
    ],
)
def test_a_checkpoint_of_an_unlike_training_changes_nothing(one, other, message, tmp_path):
    def trainer(stateful=(), identity=None, independent_rows=False, **buffers):
        options = {"stateful": stateful, "identity": identity, "seed": 0}
        return Trainer(Sums(**buffers), independent_rows=independent_rows, **options)

    first, second = trainer(**one), trainer(**other)
    first.step(lambda: first._module(X).sum())
    first.save(tmp_path / "file")
    before = [tensor.clone() for tensor in state(second)]
    with pytest.raises(CheckpointError, match=f"is of another training: .*{message}"):
        second.load(tmp_path / "file")
    assert not second.losses
    assert all(torch.equal(a, b) for a, b in zip(state(second), before, strict=True))


def test_the_identity_of_the_user_hides_no_setting(tmp_path):
    x, stateful = torch.ones(2, requires_grad=True), []
    trainer = Trainer([x], identity={"seed": 3}, stateful=stateful, seed=0)
    stateful.append(torch.Generator())  # the trainer has a list of its own
    trainer.save(tmp_path / "file")
    Trainer([x], identity={"seed": 3}, seed=0).load(tmp_path / "file")
    with pytest.raises(CheckpointError, match="seed is 0 there and 1 here"):
        Trainer([x], identity={"seed": 3}, seed=1).load(tmp_path / "file")


def test_batches_are_compared_where_both_have_them(tmp_path):
    path, x = tmp_path / "file", torch.ones(4, requires_grad=True)
    trainer, batches = Trainer([x]), ShuffledBatches(X, batch_size=4)

    def loss(rows=X):
        return (rows @ x).square().sum()

    trainer.step(loss)
    trainer.save(path)
    trainer.run(loss, 2, batches, checkpoint=path, progress=False)
    trainer.run(loss, 3, checkpoint=path, progress=False)
    trainer.run(loss, 4, batches, checkpoint=path, progress=False)
    with pytest.raises(CheckpointError, match="batches: batch_size is 4 there and 5"):
        trainer.run(loss, 5, ShuffledBatches(X, batch_size=5), checkpoint=path, progress=False)
    trainer.save(path)  # by hand it is of no batches
    trainer.run(loss, 5, ShuffledBatches(X, batch_size=5), checkpoint=path, progress=False)
    assert trainer.num_steps == 5


def test_rows_of_any_type_are_told_apart():
    rows = torch.arange(6).bfloat16()
    digests = [ShuffledBatches(rows + n, batch_size=2).identity()["digest"] for n in (0, 0, 1)]
    assert digests[0] == digests[1] != digests[2]


def test_a_folder_that_is_not_there_is_told_before_any_step(tmp_path):
    x = torch.ones(2, requires_grad=True)
    trainer = Trainer([x])
    with pytest.raises(CheckpointError, match="gone/file cannot be written: the folder .* is not"):
        trainer.run(lambda: x.sum(), 3, checkpoint=tmp_path / "gone" / "file", progress=False)
    assert trainer.num_steps == 0


@pytest.mark.filterwarnings("error")
def test_several_gpus_are_no_reason_to_warn(monkeypatch):
    """Nor are states of some that are not here, which are left."""
    put_back = []
    for module in (torch.cuda, torch.accelerator):
        monkeypatch.setattr(module, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda number: number)
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda _, number: put_back.append(number))
    x = torch.ones(2, requires_grad=True)
    Trainer([x], seed=0).step(lambda: x.sum())
    set_random_states([torch.get_rng_state()] * 5)
    assert put_back == [0, 1, 0, 1]
