"""Paths between two ends: the Brownian bridge, the process of their modes, ends and grids."""

import math

import pytest
import torch

from pyro_ext.distributions import DirichletOU

pytestmark = pytest.mark.usefixtures("float64")


def one_mode(rate: float = 2.1, variance: float = 1.3**2 * 0.7 / 4.2) -> DirichletOU:
    """A mode whose invariant variance is the given one."""
    return DirichletOU(math.pi, 1, 1, noise=math.sqrt(variance), rate=rate)


def test_variance_of_a_brownian_bridge():
    reference = DirichletOU(2.0, 32, 1)
    unit = torch.eye(32)[..., None]
    middle = reference.synthesis(unit, torch.tensor([1.0]))[:, 0, 0]
    assert float(middle.square().sum()) == pytest.approx(0.493669, abs=1e-6)
    many = DirichletOU(3.0, 4000, 1, noise=1.5)
    at = torch.tensor([0.4, 1.5, 2.9])
    variance = many.synthesis(torch.eye(4000)[..., None], at)[..., 0].square().sum(0)
    torch.testing.assert_close(variance, 1.5**2 * at * (3.0 - at) / 3.0, atol=2e-3, rtol=0)


def test_variances_of_the_process():
    """Numbers of an Ornstein-Uhlenbeck process with sigma 1.3, q 0.7 and rate 2.1."""
    reference = one_mode()
    scale = reference.synthesis(torch.ones(1, 1), torch.tensor([math.pi / 2])) / math.sqrt(
        2 / math.pi
    )
    assert float(scale.square()) == pytest.approx(0.2816667, abs=1e-7)
    assert float(scale.square() * reference.variance) == pytest.approx(0.2774429, abs=1e-7)


def test_ends_are_exact_on_any_grid():
    for dtype in (torch.float32, torch.float64):
        start, end = torch.tensor([0.1, 1 / 3], dtype=dtype), torch.tensor([-0.7, 0.9], dtype=dtype)
        reference = DirichletOU(0.0275, 50, 2, noise=5.0, start=start, end=end)
        for num_points in (2, 101, 1000):
            grid = torch.linspace(0.0, 1.0, num_points, dtype=dtype) * reference.length
            path = reference.synthesis(100.0 * reference.sample((7,)), grid)
            assert path.dtype == dtype and path.shape == (7, num_points, 2)
            assert bool((path[:, 0] == start).all()) and bool((path[:, -1] == end).all())


def test_analysis_inverts_synthesis():
    reference = DirichletOU(2.0, 6, 3, start=-1.0, end=torch.tensor([1.0, 0.0, 2.0]))
    z = reference.sample((4, 2))
    for num_points in (8, 9, 50):
        path = reference.synthesis(z, torch.linspace(0.0, 2.0, num_points))
        torch.testing.assert_close(reference.analysis(path), z)
    with pytest.raises(ValueError, match="path must have at least 8 points for 6 modes, got 7"):
        reference.analysis(torch.zeros(7, 3))


def test_bridge_is_the_conditional_of_the_process():
    """Bayes' rule of Gaussians: p(z_t) p(z_1 | z_t) = p(z_1) p(z_t | z_1)."""
    rate = torch.tensor([0.3, 1.0, 4.0])
    reference = DirichletOU(2.0, 3, 2, rate=rate)
    state, end = torch.randn(5, 3, 2), torch.randn(5, 3, 2)
    t = torch.tensor([0.1, 0.3, 0.5, 0.8, 0.99])
    decay = torch.exp(-rate * (1.0 - t[:, None]))[..., None]
    step = torch.distributions.Normal(decay * state, (1.0 - decay.square()).sqrt())
    forward = reference.marginal(t).log_prob(state) + step.log_prob(end).sum((-1, -2))
    backward = reference.log_prob(end) + reference.bridge(t, end).log_prob(state)
    torch.testing.assert_close(forward, backward)


def test_density_with_respect_to_the_invariant_one():
    reference = DirichletOU(2.0, 5, 2, rate=torch.linspace(0.1, 3.0, 5))
    z = torch.randn(7, 5, 2)
    expected = reference.log_prob(z) - reference.invariant.log_prob(z)
    torch.testing.assert_close(reference.log_rnd(z), expected)
    mode = one_mode()
    x = torch.tensor([[0.3]])
    v_inf, v = 0.2816666666666667, 0.2774429125288988
    log_q = -0.5 * math.log(v / v_inf) - 0.09 / (2 * v) + 0.09 / (2 * v_inf)
    assert float(mode.log_rnd(x / math.sqrt(v_inf))) == pytest.approx(log_q)


def test_it_stays_finite_as_modes_are_added():
    """With the rates of the heat equation high modes are at their invariant variance."""
    values = []
    for num_modes in (10, 1000):
        rates = torch.arange(1.0, num_modes + 1).square() * (math.pi / 2) ** 2
        z = torch.full((num_modes, 1), 1.3)
        values.append(float(DirichletOU(2.0, num_modes, 1, rate=rates).log_rnd(z)))
    assert values[0] == pytest.approx(values[1], abs=1e-12)


def test_without_a_rate_it_is_a_brownian_motion():
    reference = DirichletOU(2.0, 2, 1, rate=1e-7)
    end, t = torch.randn(3, 2, 1), torch.tensor([0.2, 0.5, 0.9])
    bridge = reference.bridge(t, end)
    torch.testing.assert_close(bridge.mean, t[:, None, None] * end, rtol=1e-5, atol=1e-7)
    variance = 2e-7 * (t * (1.0 - t))[:, None, None].expand(3, 2, 1)
    torch.testing.assert_close(bridge.variance, variance, rtol=1e-5, atol=0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: DirichletOU(1.0, 2, 1).synthesis(torch.zeros(3, 1), torch.zeros(1)), "z must"),
        (lambda: DirichletOU(1.0, 2, 1).synthesis(torch.zeros(2, 1), torch.ones(1) * 2), "grid"),
        (lambda: DirichletOU(1.0, 2, 1).marginal(0.0), r"t must lie in \(0, 1\]"),
        (lambda: DirichletOU(1.0, 2, 1).bridge(1.0, torch.zeros(2, 1)), r"t must lie in \(0, 1\)"),
    ],
)
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()
