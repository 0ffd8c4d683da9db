"""Tasks for samplers, and the training of the kinetics that ship."""

import pytest
import torch

from pyro_ext import datasets
from pyro_ext.inference import MetaTrainer
from pyro_ext.inference.sgmcmc import ResidualKinetics
from pyro_ext.inference.sgmcmc.l2e import pretrained_kinetics
from pyro_ext.models.ensembles import classification_task
from pyro_ext.potential import Potential
from tools import pretrain_l2e

GENERATOR = torch.Generator().manual_seed(0)
INPUTS = 5.0 + 2.0 * torch.randn(60, 4, generator=GENERATOR)
LABELS = torch.arange(60) % 3


def test_features_are_standardized_by_what_there_is_to_learn_from():
    inputs = INPUTS.clone()
    inputs[50] = 1e6
    x, y = classification_task(inputs, LABELS, 40).args
    assert x.shape == (40, 4) and torch.equal(y, LABELS[:40])
    torch.testing.assert_close(x.mean(0), torch.zeros(4), rtol=0, atol=0.05)
    assert x.abs().max() <= 3.0


def test_the_prior_is_that_of_a_weight_decay():
    network = classification_task(INPUTS, LABELS, 40).model.network
    assert list(network.prior_scales.values()) == pytest.approx([0.02**-0.5] * 4)
    network = classification_task(INPUTS, LABELS, 40, prior_scale=0.3).model.network
    assert set(network.prior_scales.values()) == {0.3}


def test_the_likelihood_is_of_rows_that_are_held_out():
    task = classification_task(INPUTS, LABELS, 40, hidden_features=(5,))
    potential = Potential(task.model, *task.args)
    draws = potential.constrain(potential.init(6, seed=0))
    draws = {name: value.reshape(2, 3, *value.shape[1:]) for name, value in draws.items()}
    training = INPUTS[:40]
    new = (INPUTS[40:] - training.mean(0)) / training.std(0)
    hidden = new.clamp(-3, 3) @ draws["0.weight"].mT + draws["0.bias"].unsqueeze(-2)
    logits = hidden * hidden.sigmoid() @ draws["2.weight"].mT + draws["2.bias"].unsqueeze(-2)
    expected = logits.log_softmax(-1)[..., torch.arange(20), LABELS[40:]]
    torch.testing.assert_close(task.log_likelihood(draws), expected)


def test_bad_arguments():
    with pytest.raises(ValueError, match="num_training must leave rows to hold out, got 60 of 60"):
        classification_task(INPUTS, LABELS, 60)


def test_training_tasks_are_of_mnist_alone(monkeypatch):
    """No loader of another data set is called, and the tasks differ."""
    for name in ("load_digits", "load_wine", "load_breast_cancer", "load_diabetes", "load"):
        monkeypatch.setattr(datasets, name, None)
    tasks = pretrain_l2e.training_tasks(8, seed=1)
    assert {task.args[0].shape[1] for task in tasks} <= {13, 16, 49}
    assert len({len(task.args[0]) for task in tasks}) > 2
    for task in tasks:
        classes = int(task.args[1].max()) + 1
        assert sorted(set(task.args[1].tolist())) == list(range(classes))


@pytest.mark.slow
def test_a_short_training_runs():
    stages = []
    kinetics = pretrain_l2e.pretrain_l2e(
        1, num_tasks=2, num_pairs=2, report=lambda number, trainer: stages.append(trainer)
    )
    assert len(stages) == 3 and stages[1].num_steps == 240
    start = ResidualKinetics(kinetics.hidden_sizes, seed=0)
    for one, other in zip(kinetics.parameters(), start.parameters(), strict=True):
        assert not torch.equal(one, other) and torch.isfinite(one).all()


@pytest.mark.slow
def test_what_ships_is_better_than_what_it_started_from():
    """On wine, which it has not seen, by half and with chains on either side the same."""
    wine = datasets.load_wine()
    task = classification_task(wine.train_inputs, wine.train_targets, 90, name="wine")
    losses = []
    for kinetics in (pretrained_kinetics(), ResidualKinetics((16,))):
        trainer = MetaTrainer(kinetics, [task], pretrain_l2e.kernel_of, seed=0)
        losses.append(trainer.evaluate(task, num_chains=20).mean())
    assert losses[0] < 0.7 * losses[1]
