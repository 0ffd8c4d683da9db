"""Sparse weight averages: particles, cycles, and runs that go on."""

from functools import partial

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.optim.lr_scheduler import CosineAnnealingLR

from pyro_ext.checkpoint.files import CheckpointError
from pyro_ext.inference.averaging import MagnitudePruner, SparseWeightAveraging, sparse_averages
from pyro_ext.inference.training import ShuffledBatches, Trainer, TrainingDiverged
from pyro_ext.random import spawn_seed
from tests.killing import stopping

SGD = partial(torch.optim.SGD, lr=0.1, momentum=0.9, weight_decay=1e-3)
IMP = dict(num_particles=1, swa_start=1.0, swa_lr=0.0)


def network(*extra, seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(5, 12), *extra, nn.ReLU(), nn.Linear(12, 3))


def batches(batch_size=16):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(60, 5, generator=generator)
    return ShuffledBatches(x, x[:, :3].argmax(1), batch_size=batch_size)


def averaging(module=None, **options):
    settings = dict(ticket_epochs=1, cycle_epochs=4, swa_start=0.5, optimizer=SGD, seed=3)
    return SparseWeightAveraging(module or network(), **{**settings, **options})


def values(state):
    return torch.cat([tensor.double().flatten() for tensor in state.values()])


class Recorded(torch.optim.SGD):
    """Keeps the weights that each step begins at."""

    def __init__(self, params):
        super().__init__(params, lr=0.1, momentum=0.9)
        self.before = []
        seen.append(self.before)

    def step(self, closure=None):
        self.before.append([p.detach().clone() for p in self.param_groups[0]["params"]])
        super().step(closure)


seen = []


def test_support_and_rewinding():
    """Zero where the mask is, at every step; the rest starts cycles at the ticket, bit for bit."""
    seen.clear()
    swamp = averaging(optimizer=Recorded, pruner=MagnitudePruner(0.5))
    cycles = swamp.run(batches(), 3, progress=False)
    ticket = swamp.ticket(batches(), progress=False)
    runs = [steps for steps in seen if steps]  # one is made to look at its settings
    for cycle, steps in zip(cycles, runs[1:4], strict=True):
        assert len(steps) == 16
        for position, (name, tensor) in enumerate(ticket.items()):
            mask = cycle.masks.get(name, torch.ones_like(tensor, dtype=torch.bool))
            assert all(torch.equal(one, tensor * mask) for one in steps[0][position])
            assert not any(weights[position][:, ~mask].any() for weights in steps)
            assert not cycle.state[name][~mask].any()
    assert [cycle.sparsity for cycle in cycles] == pytest.approx([0.0, 0.5, 0.75])
    assert not cycles[0].masks and cycles[1].masks.keys() == {"0.weight", "2.weight"}


def test_one_particle_without_averages_is_iterative_magnitude_pruning(float64):
    """Against a loop of its own: the same masks, and weights to rounding of batched products."""
    data, pruner = batches(), MagnitudePruner(0.4)
    cycles = averaging(pruner=pruner, **IMP).run(data, 4, progress=False)

    def trained(module, key, num_epochs, masks, **scheduler):
        trainer = Trainer(module, SGD, **scheduler)
        for number in range(num_epochs * len(data)):
            x, y = data.batch(number, spawn_seed(3, key, 0))
            trainer.step(lambda x=x, y=y: cross_entropy(module(x), y))
            for name, mask in masks.items():
                with torch.no_grad():
                    module.get_parameter(name).mul_(mask)
        return module

    ticket = trained(network(), 0, 1, {}).state_dict()
    masks, pruner = {}, MagnitudePruner(0.4)
    for number, cycle in enumerate(cycles):
        module = network()
        module.load_state_dict({n: w * masks.get(n, 1) for n, w in ticket.items()})
        trained(module, number + 1, 4, masks, scheduler=partial(CosineAnnealingLR, T_max=16))
        torch.testing.assert_close(cycle.state, dict(module.state_dict()), rtol=1e-9, atol=1e-12)
        assert all(torch.equal(cycle.masks[name], mask) for name, mask in masks.items())
        masks = pruner.step(module)


def test_equal_particles_are_one(monkeypatch):
    monkeypatch.setattr(sparse_averages, "spawn_seed", lambda seed, key, *_: spawn_seed(seed, key))
    several, single = (
        averaging(num_particles=number).run(batches(), 3, progress=False) for number in (4, 1)
    )
    for one, other in zip(several, single, strict=True):
        assert float((values(one.state) - values(other.state)).abs().max()) <= 1e-6


def test_particles_differ_in_orders_and_their_mean_is_the_average():
    """Which does not depend on the order of samples: all particles have as many."""
    swamp = averaging(num_particles=3)
    ticket = swamp.ticket(batches(), progress=False)
    particles = swamp.particles(batches(), ticket, progress=False)
    (cycle,) = swamp.run(batches(), 1, progress=False)
    for name, tensor in particles.items():
        assert not torch.equal(tensor[0], tensor[1])
        torch.testing.assert_close(cycle.state[name], tensor.mean(0))
    alone = averaging(num_particles=1).particles(batches(), ticket, progress=False)
    torch.testing.assert_close(alone["0.weight"][0], particles["0.weight"][0])
    other = swamp.particles(batches(), ticket, cycle=1, progress=False)
    assert not torch.equal(other["0.weight"], particles["0.weight"])


def test_samples_are_those_at_ends_of_epochs():
    """After epochs 3 and 4 of 4, which a run of 5 epochs goes through, too."""
    seen.clear()
    options = dict(optimizer=Recorded, num_particles=2, swa_lr=0.1)
    averaging(cycle_epochs=5, **options).run(batches(), 1, progress=False)
    _, steps = (steps for steps in seen if steps)
    (cycle,) = averaging(**options).run(batches(), 1, progress=False)
    torch.testing.assert_close(cycle.state["0.weight"], (steps[12][0] + steps[16][0]).mean(0) / 2)


def test_batch_norm_statistics_are_those_of_the_average():
    module = network(nn.BatchNorm1d(12))
    (cycle,) = averaging(module).run(batches(60), 1, progress=False)
    module.load_state_dict(cycle.state)
    with torch.no_grad():
        hidden = module[0](batches().rows[0])
    torch.testing.assert_close(cycle.state["1.running_mean"], hidden.mean(0))
    torch.testing.assert_close(cycle.state["1.running_var"], hidden.var(0))


def test_single_until():
    """SWAMP+: one particle, then several."""
    plus, single, several = (
        averaging(**options).run(batches(), 3, progress=False)
        for options in ({"single_until": 0.3}, {"num_particles": 1}, {})
    )
    for number in range(2):
        assert torch.equal(values(plus[number].state), values(single[number].state))
    assert not torch.equal(values(plus[2].state), values(single[2].state))
    assert not torch.equal(values(plus[0].state), values(several[0].state))


def test_masks_that_the_pruner_has_hold_from_the_start():
    pruner = MagnitudePruner(0.8, scope="layer")
    masks = pruner.step(network())
    (cycle,) = averaging(pruner=pruner).run(batches(), 1, progress=False)
    assert cycle.sparsity == pytest.approx(0.8, abs=0.02)
    assert not cycle.state["0.weight"][~masks["0.weight"]].any()


def test_nothing_of_the_users_changes():
    module, pruner = network(nn.BatchNorm1d(12)), MagnitudePruner()
    before, state = values(module.state_dict()), torch.get_rng_state()
    averaging(module, pruner=pruner).run(batches(), 2, progress=False)
    assert torch.equal(values(module.state_dict()), before)
    assert not pruner.masks and torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("stop", [2, 9, 19, 21, 30])
def test_a_stopped_run_goes_on(tmp_path, stop):
    """Whether it stops in the ticket, in a cycle or between two, with dropout and buffers."""

    class Stop(Exception):
        pass

    def module():
        return network(nn.BatchNorm1d(12), nn.Dropout(0.2))

    calls = []

    def loss(output, target):
        calls.append(0)
        if len(calls) == stop:
            raise Stop
        return cross_entropy(output, target)

    options = dict(loss=loss, num_particles=2)
    with pytest.raises(Stop):
        averaging(module(), **options).run(batches(), 2, checkpoint=tmp_path, progress=False)
    resumed = averaging(module(), **options).run(batches(), 3, checkpoint=tmp_path, progress=False)
    whole = averaging(module(), loss=cross_entropy, num_particles=2).run(
        batches(), 3, progress=False
    )
    for one, other in zip(resumed, whole, strict=True):
        assert torch.equal(values(one.state), values(other.state)) and one.losses == other.losses
    num_calls = len(calls)
    again = averaging(module(), **options).run(batches(), 3, checkpoint=tmp_path, progress=False)
    assert len(calls) == num_calls + 1  # which sees whether the data fit
    assert torch.equal(values(again[-1].state), values(whole[-1].state))


@pytest.mark.parametrize(
    "options", [{"seed": 4}, {"cycle_epochs": 5}, {"module": network(seed=1)}, {"swa_lr": 0.01}]
)
def test_another_run_is_not_continued(tmp_path, options):
    averaging().run(batches(), 1, checkpoint=tmp_path, progress=False)
    with pytest.raises(CheckpointError, match="of another run"):
        averaging(**options).run(batches(), 1, checkpoint=tmp_path, progress=False)


def test_collapse_is_told():
    pruner = MagnitudePruner(0.9)
    module = network()
    with torch.no_grad():
        module[0].weight.mul_(1e-6)
    swamp = averaging(module, pruner=pruner, optimizer=partial(torch.optim.SGD, lr=1e-9), swa_lr=0)
    with pytest.warns(UserWarning, match=r"no weight is left in \['0.weight'\] at sparsity 0.8958"):
        cycles = swamp.run(batches(), 2, progress=False)
    assert cycles[0].cut_off == {} and cycles[1].cut_off["0.weight"] == 12


def test_divergence_is_raised():
    with pytest.raises(TrainingDiverged):
        averaging(optimizer=partial(torch.optim.SGD, lr=1e20)).run(batches(), 1, progress=False)


def test_ctrl_c_ends_a_run(tmp_path):
    """What is done is returned, and the rest comes from the folder later."""
    loss = stopping(cross_entropy, 30)
    with pytest.warns(UserWarning, match="stopped after"):
        cycles = averaging(loss=loss).run(batches(), 3, checkpoint=tmp_path, progress=False)
    assert len(cycles) == 1
    resumed = averaging(loss=loss).run(batches(), 3, checkpoint=tmp_path, progress=False)
    whole = averaging().run(batches(), 3, progress=False)
    assert torch.equal(values(resumed[-1].state), values(whole[-1].state))
