"""Expected improvement against quadrature, and minimization of known functions."""

import math

import pytest
import torch
from pyro.distributions import Normal
from scipy.integrate import quad

from pyro_ext.models.neural_processes import CNP, NeuralProcess, expected_improvement, minimize


def test_expected_improvement_is_the_integral(float64):
    mean, scale = torch.tensor([[0.3], [-0.5]]), torch.tensor([[0.7], [0.2]])
    best = torch.tensor([-0.1])
    found = expected_improvement(Normal(mean, scale), best)

    def density(y):
        parts = [
            math.exp(-0.5 * ((y - float(m)) / float(s)) ** 2) / (float(s) * math.sqrt(2 * math.pi))
            for m, s in zip(mean[:, 0], scale[:, 0], strict=True)
        ]
        return sum(parts) / 2

    expected, _ = quad(lambda y: (-0.1 - y) * density(y), -8, -0.1, epsabs=1e-10)
    assert float(found) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_expected_improvement_far_from_the_best(dtype):
    """Positive and in order, where single precision would round it away."""
    mean = torch.tensor([[5.0, 5.5, 8.0]], dtype=dtype)
    found = expected_improvement(Normal(mean, 1.0), torch.zeros(3, dtype=dtype))
    expected = [
        quad(lambda y, m=m: -y * math.exp(-0.5 * (y - m) ** 2) / math.sqrt(2 * math.pi), -9, 0)[0]
        for m in (5.0, 5.5, 8.0)
    ]
    assert found.dtype == dtype and found.tolist() == pytest.approx(expected, rel=1e-4)


class Oracle(NeuralProcess):
    """Knows the function."""

    def __init__(self, function):
        super().__init__(1, 1)
        self.function = function

    def _condition(self, context, target_inputs, drawn):
        return Normal(self.function(target_inputs), 0.1)


def grid(num_tasks=3, number=101):
    return torch.linspace(-2, 2, number).expand(num_tasks, number)[..., None]


def test_an_oracle_goes_to_the_minimum_at_once():
    points = torch.tensor([[-1.2], [0.4], [1.9]])
    candidates = grid()
    values = (candidates[..., 0] - points) ** 2
    seen = []

    def objective(chosen):
        seen.append(chosen)
        return values[torch.arange(3), chosen]

    rows = torch.arange(3)
    oracle = Oracle(lambda x: (x - points[:, None]) ** 2)
    course = minimize(oracle, objective, candidates, num_initial=2, num_steps=4, seed=0)
    assert course.inputs.shape == (3, 6, 1) and course.outputs.shape == (3, 6)
    torch.testing.assert_close(course.inputs[:, 2], points, atol=0.021, rtol=0)
    torch.testing.assert_close(course.best[:, -1], values.min(-1).values)
    assert (course.best.diff() <= 0).all()
    chosen = torch.stack(seen, -1)
    assert all(len(chosen[row].unique()) == 6 for row in rows)


def test_what_users_may_get_wrong():
    with pytest.raises(ValueError, match="candidates must be at least the 23 .*, got 10"):
        minimize(CNP(width=16), lambda chosen: chosen.float(), grid(number=10))
    with pytest.raises(ValueError, match="process must have one output, got y_dim=2"):
        minimize(CNP(1, 2, 16), lambda chosen: chosen.float(), grid())
