"""Distillation into a batch ensemble: its loss, its gradients, and perturbed inputs."""

from copy import deepcopy
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from pyro_ext.inference.training import ShuffledBatches, Trainer
from pyro_ext.models.ensembles import BatchEnsembleDistiller, distillation, diversify
from pyro_ext.models.ensembles.perturbations import DIRECTIONS
from pyro_ext.nn import MLP, BatchEnsemble

SGD = partial(torch.optim.SGD, lr=0.05, momentum=0.9, nesterov=True)


@pytest.fixture(autouse=True)
def seed():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def networks(number):
    return [MLP(4, [6], 3) for _ in range(number)]


@torch.no_grad()
def disperse(ensemble):
    for factor in ensemble.factors().values():
        factor.add_(0.3 * torch.randn_like(factor))


@pytest.mark.usefixtures("float64")
class TestDistiller:
    def test_gradients_are_those_of_the_loss_and_multiplied_for_factors(self):
        teachers, x, y = networks(3), torch.rand(7, 4), torch.arange(7) % 3
        distiller = BatchEnsembleDistiller(
            MLP(4, [5], 3), teachers, tau=2.0, alpha=0.7, weight_decay=0.1
        )
        disperse(distiller.student)
        value, gradients = distiller.loss(x, y)
        logits = distiller.student(x)
        targets = torch.stack([teacher(x) for teacher in teachers])
        expected = 0.7 * distillation(logits, targets[None], 2.0).mean()
        expected = expected + 0.3 * torch.stack([cross_entropy(one, y) for one in logits]).mean()
        names = distiller.student.factors()
        for name, p in distiller.student.network.named_parameters():
            size = (1.0 - p).square().sum() / 3 if name in names else p.square().sum()
            expected = expected + 0.05 * size
        torch.testing.assert_close(value, expected.detach())
        expected.backward()
        for name, p in distiller.student.named_parameters():
            factor = 3.0 if name.removeprefix("network.") in names else 1.0
            torch.testing.assert_close(gradients[name], factor * p.grad)

    def test_members_part_and_teachers_stay(self):
        teachers, x = networks(3), torch.rand(40, 4)
        network = MLP(4, [8], 3)
        before = deepcopy([network, *teachers])
        distiller = BatchEnsembleDistiller(network, teachers, weight_decay=0.0)
        trainer = Trainer(distiller.student, SGD, seed=0)
        losses = trainer.run(distiller.loss, 300, ShuffledBatches(x, batch_size=20), progress=False)
        with torch.no_grad():
            targets = torch.stack([teacher(x) for teacher in teachers])
            members = distiller.student(x)
        least = float(distillation(targets, targets[None], 4.0).mean())
        assert losses[-1] - least < 0.3 * (losses[0] - least)
        assert all(factor.std(0).mean() > 0.01 for factor in distiller.student.factors().values())
        own = distillation(members, targets[None], 4.0).mean()
        assert own < distillation(members, targets.roll(1, 0)[None], 4.0).mean()
        for old, new in zip(before, [network, *teachers], strict=True):
            for one, two in zip(old.parameters(), new.parameters(), strict=True):
                assert torch.equal(one, two) and two.grad is None and two.requires_grad
        assert type(distiller.merge()) is MLP and not distiller.merge().training

    @pytest.mark.parametrize("perturbation", [None, *DIRECTIONS])
    def test_goes_on_from_a_checkpoint(self, perturbation, tmp_path):
        def trained(*stops):
            for stop in stops:
                torch.manual_seed(0)
                distiller = BatchEnsembleDistiller(
                    MLP(4, [5], 3), networks(3), perturbation=perturbation, eta=0.05
                )
                trainer = Trainer(distiller.student, SGD, seed=1)
                batches = ShuffledBatches(x, batch_size=4)
                path = tmp_path / str(len(stops))
                trainer.run(distiller.loss, stop, batches, checkpoint=path, progress=False)
            return distiller.student.state_dict()

        x = torch.rand(12, 4)
        once, twice = trained(6), trained(3, 6)
        assert all(torch.equal(once[name], twice[name]) for name in once)

    def test_batch_statistics_are_of_perturbed_images_alone(self):
        def network():
            return nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, 3))

        teachers, x = [network(), network()], torch.rand(6, 4)
        distiller = BatchEnsembleDistiller(network(), teachers, perturbation="tdiv-sdiv")
        distiller.student.eval()
        with torch.random.fork_rng():
            moved = diversify(x, distiller.teachers, distiller.student)
        distiller.loss(x)
        assert distiller.student.training
        norm = distiller.student.network[1]
        assert norm.num_batches_tracked == 1
        hidden = distiller.student.network[0](moved.repeat(2, 1))
        torch.testing.assert_close(norm.running_mean, 0.1 * hidden.mean(0))
        assert all(teacher[1].num_batches_tracked == 0 for teacher in teachers)

    def test_errors(self):
        with pytest.raises(
            ValueError, match="teachers must be at least two for perturbation='tdiv"
        ):
            BatchEnsembleDistiller(MLP(4, [5], 3), networks(1), perturbation="tdiv")
        with pytest.raises(TypeError, match="labels must be a tensor.* got None"):
            BatchEnsembleDistiller(MLP(4, [5], 3), networks(2), alpha=0.5).loss(torch.rand(2, 4))
        with pytest.raises(
            ValueError, match=r"teachers must map inputs to logits .*\(5, 2\), got \(5, 3\)"
        ):
            BatchEnsembleDistiller(MLP(4, [5], 2), networks(2)).loss(torch.rand(5, 4))


@pytest.mark.usefixtures("float64")
class TestDiversify:
    @pytest.mark.parametrize("perturbation", DIRECTIONS)
    def test_size(self, perturbation):
        teachers, x = networks(3), torch.rand(8, 4)
        student = BatchEnsemble(MLP(4, [5], 3), 3)
        disperse(student)
        run = partial(diversify, x, teachers, student, perturbation, eta=0.3, seed=0)
        moved = run(bounds=None)
        norms = (moved - x).norm(dim=1) / (0.3 * 2.0)
        if perturbation == "confods":
            assert ((norms >= 1.0 / 3.0) & (norms < 1.0)).all()
        else:
            torch.testing.assert_close(norms, torch.ones(8))
        assert torch.equal(run(bounds=(0.0, 1.0)), moved.clamp(0.0, 1.0))
        assert torch.equal(run(bounds=None), moved)

    @pytest.mark.parametrize("perturbation", ["tdiv", "tdiv-sdiv"])
    def test_direction(self, perturbation):
        teachers, x = networks(2), torch.rand(1, 4).requires_grad_()
        student = BatchEnsemble(MLP(4, [5], 3), 2)
        disperse(student)

        def disagreement(first, second):
            return cross_entropy(first, second.detach().softmax(-1))

        expected = []
        for a, b in [(0, 1), (1, 0)]:
            value = disagreement(teachers[a](x), teachers[b](x))
            if perturbation == "tdiv-sdiv":
                members = student(x)
                value = value - disagreement(members[a], members[b])
            (gradient,) = torch.autograd.grad(value, x)
            expected.append(2.0 * gradient / gradient.norm())
        found = set()
        for seed in range(20):
            moved = diversify(x, teachers, student, perturbation, eta=1.0, bounds=None, seed=seed)
            near = [torch.allclose(moved - x, one) for one in expected]
            assert sum(near) == 1
            found.add(near.index(True))
        assert found == {0, 1}

    def test_output_directions(self):
        """With two classes any weights make the gradient of a probability, or its opposite."""
        teacher, x = MLP(4, [6], 2), torch.rand(1, 4).requires_grad_()
        probabilities = teacher(x).softmax(-1)
        (gradient,) = torch.autograd.grad(probabilities[0, 0], x)
        for perturbation, size in [("ods", 1.0), ("confods", float(probabilities.detach().max()))]:
            moved = diversify(x, [teacher], None, perturbation, eta=1.0, bounds=None, seed=1)
            expected = size * 2.0 * gradient / gradient.norm()
            near = [torch.allclose(moved - x, sign * expected) for sign in (-1.0, 1.0)]
            assert sum(near) == 1

    def test_equal_networks_have_nowhere_to_go(self):
        teacher, x = MLP(4, [6], 3), torch.rand(8, 4)
        student = BatchEnsemble(MLP(4, [5], 3), 2)
        moved = diversify(x, [teacher, teacher], student, eta=0.1, bounds=None, seed=0)
        # What is left of the gradient is rounding, scaled or not.
        assert moved.isfinite().all()
        assert ((moved - x).norm(dim=1) <= 0.1 * 2.0 + 1e-9).all()
        with torch.no_grad():
            for parameter in teacher.parameters():
                parameter.zero_()
        assert torch.equal(diversify(x, [teacher, teacher], None, "tdiv", seed=0), x)

    def test_errors(self):
        with pytest.raises(
            ValueError, match=r"inputs must lie within bounds=\(0.0, 1.0\), .* -1 to"
        ):
            diversify(torch.linspace(-1.0, 1.0, 8).view(2, 4), networks(2), None, "gaussian")
