"""Mean teachers against the sums that they are, the decomposition against autograd."""

import copy
import io
import math
import pickle

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.nn import PyroModule, PyroParam
from torch import nn

from pyro_ext.inference.training import Trainer
from pyro_ext.nn import MeanTeacher, teacher_gradient_decomposition


def moved(module):
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 1.0


def linear_run(momentum, num_steps=12, outputs=6, inputs=4, step_size=0.05, seed=0):
    """Gradients, inputs, differences and consistency gradients of a training by PyTorch."""
    torch.manual_seed(seed)
    student = nn.Linear(inputs, outputs, bias=False, dtype=torch.float64)
    teacher = MeanTeacher(student, momentum, "constant")
    optimizer = torch.optim.SGD(student.parameters(), lr=step_size)
    rows = []
    for _ in range(num_steps):
        x, y = torch.randn(inputs).double(), torch.randn(outputs).double()
        consistency = 0.5 * (student(x) - teacher(x)).square().sum()
        (alone,) = torch.autograd.grad(consistency, student.weight, retain_graph=True)
        (consistency + 0.5 * (student(x) - y).square().sum()).backward()
        difference = (student.weight - teacher.teacher.weight).detach()
        rows.append((student.weight.grad.clone(), x, difference, alone))
        optimizer.step()
        optimizer.zero_grad()
        teacher.update()
    return [torch.stack(found) for found in zip(*rows, strict=True)]


class TestMeanTeacher:
    def test_it_is_the_weighted_sum_of_the_past(self):
        student = nn.Linear(3, 2).double()
        teacher = MeanTeacher(student, 0.9, "constant")
        past = [student.weight.detach().clone()]
        for _ in range(5):
            nn.init.normal_(student.weight)
            past.append(student.weight.detach().clone())
            teacher.update()
        expected = 0.9**5 * past[0] + sum(0.1 * 0.9 ** (5 - t) * past[t] for t in range(1, 6))
        torch.testing.assert_close(teacher.teacher.weight, expected, atol=1e-15, rtol=0)

    def test_momentum_rises_along_a_cosine_to_one(self):
        cosine = MeanTeacher(nn.Linear(1, 1), 0.9, num_steps=10)
        found = [cosine.momentum_at(step) for step in (0, 5, 10, 20)]
        assert found == pytest.approx([0.9, 0.95, 1.0, 1.0], abs=1e-15)
        assert cosine.momentum_at(3) == pytest.approx(
            1 - 0.1 * (math.cos(0.3 * math.pi) + 1) / 2, abs=1e-15
        )
        for constant in (
            MeanTeacher(nn.Linear(1, 1), 0.9),
            MeanTeacher(nn.Linear(1, 1), 0.9, "constant", 10),
        ):
            assert constant.momentum_at(7) == 0.9

    def test_steps_are_counted_or_given(self):
        counted, given = (MeanTeacher(nn.Linear(1, 1), 0.5, num_steps=4) for _ in range(2))
        moved(counted.student)
        counted.update()
        counted.update()
        assert int(counted.num_updates) == 2
        start = given.teacher.weight.clone()
        moved(given.student)
        given.update(4)
        assert torch.equal(given.teacher.weight, start)

    def test_no_gradient_no_training_mode_and_buffers_of_the_student(self):
        student = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Dropout(0.5))
        teacher = MeanTeacher(student, 0.9)
        nn.ModuleList([teacher]).train()
        assert not teacher.teacher.training and student.training
        x = torch.randn(8, 3, requires_grad=True)
        student(x)
        teacher.update()
        assert torch.equal(teacher.teacher[1].running_mean, student[1].running_mean)
        assert torch.equal(teacher(x), teacher(x)) and not teacher(x).requires_grad
        assert not any(p.requires_grad for p in teacher.parameters())
        assert all(p.requires_grad for p in student.parameters())

    def test_averages_of_half_precision_are_in_single_precision(self):
        student = nn.Linear(4, 4).half()
        teacher = MeanTeacher(student, 0.999, "constant")
        start = student.weight.detach().float()
        moved(student)
        change = student.weight.detach().float() - start
        for _ in range(100):
            teacher.update()
        assert teacher.teacher.weight.dtype == torch.float16
        wanted = start + (1 - 0.999**100) * change
        torch.testing.assert_close(teacher.teacher.weight.float(), wanted, atol=1e-3, rtol=0)

    def test_what_is_not_finite_stays_out(self):
        student = nn.Linear(2, 2)
        teacher = MeanTeacher(student, 0.9)
        before = copy.deepcopy(teacher.state_dict())
        with torch.no_grad():
            student.bias[0] = math.nan
        with pytest.raises(ValueError, match="module must have finite parameters, got 'bias'"):
            teacher.update()
        assert all(torch.equal(before[name], one) for name, one in teacher.state_dict().items())
        with torch.no_grad():
            student.bias.fill_(1e30)  # whose square overflows
        teacher.update()
        student.bias = nn.Parameter(torch.zeros(3))
        with pytest.raises(ValueError, match="module must keep"):
            teacher.update()

    def test_its_state_is_in_checkpoints_of_a_trainer(self, tmp_path):
        def parts():
            torch.manual_seed(0)
            student = nn.Linear(2, 1)
            teacher = MeanTeacher(student, 0.9, num_steps=6)
            return student, teacher, Trainer(student, stateful=[teacher], seed=0)

        def run(student, teacher, trainer, num_steps):
            def loss():
                if trainer.num_steps > int(teacher.num_updates):
                    teacher.update()
                return student(torch.randn(5, 2)).square().mean()

            trainer.run(loss, num_steps, checkpoint=tmp_path / f"{id(student)}", progress=False)

        whole, cut, rest = parts(), parts(), parts()
        run(*whole, 6)
        run(*cut, 3)
        rest[2].load(tmp_path / f"{id(cut[0])}")
        run(*rest, 6)
        for name, tensor in whole[1].state_dict().items():
            assert torch.equal(tensor, rest[1].state_dict()[name])

    def test_pickles_and_saved_states(self):
        teacher = MeanTeacher(nn.Linear(2, 1), 0.5, "constant")
        moved(teacher.student)
        teacher.update()
        other = pickle.loads(pickle.dumps(teacher))
        file = io.BytesIO()
        torch.save(teacher.state_dict(), file)
        file.seek(0)
        fresh = MeanTeacher(nn.Linear(2, 1), 0.5, "constant")
        fresh.load_state_dict(torch.load(file))
        for one in (other, fresh):
            assert torch.equal(one.teacher.weight, teacher.teacher.weight)
            assert int(one.num_updates) == 1
        moved(other.student)  # which came along
        other.update()
        assert not torch.equal(other.teacher.weight, teacher.teacher.weight)

    def test_a_pyro_module(self):
        class Line(PyroModule):
            def __init__(self):
                super().__init__()
                self.scale = PyroParam(torch.tensor(1.0), dist.constraints.positive)

            def forward(self, x):
                return self.scale * x

        line = Line()
        teacher = MeanTeacher(line, 0.5, "constant")
        with torch.no_grad():
            line.scale_unconstrained += 2.0
        teacher.update()
        with pyro.get_param_store().scope():
            assert float(teacher(torch.tensor(1.0))) == pytest.approx(math.e)


class TestDecomposition:
    @pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9, 1.0])
    def test_it_is_that_of_a_training(self, momentum):
        gradients, inputs, differences, alone = linear_run(momentum)
        found = teacher_gradient_decomposition(gradients, inputs, momentum, 0.05)
        torch.testing.assert_close(found.differences, differences, atol=1e-14, rtol=0)
        torch.testing.assert_close(found.consistency, alone, atol=1e-14, rtol=0)

    def test_errors_come_back_with_their_weights(self):
        gradients, inputs, _, _ = linear_run(0.9, num_steps=40)
        found = teacher_gradient_decomposition(gradients, inputs, 0.9, 0.05)
        errors = (gradients @ inputs[..., None])[..., 0] / inputs.square().sum(-1, keepdim=True)
        total = torch.einsum("ts,si,tj->tij", found.weights, errors, inputs)
        torch.testing.assert_close(total, found.consistency, atol=1e-13, rtol=0)
        assert found.weights.dtype == torch.float64 and not found.weights.triu().any()

    def test_similar_inputs_take_a_step_back_and_orthogonal_ones_do_not(self):
        inputs = torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 1.0]]).double()
        gradients = torch.tensor([3.0, -1.0, 1.0]).double()[:, None, None] * inputs[:, None]
        found = teacher_gradient_decomposition(gradients, inputs, 0.5, 0.1)
        assert found.similarity.tolist() == [4.0, 0.0]
        torch.testing.assert_close(found.undone, 0.1 * 0.5 * found.similarity)
