"""Equations: derivatives on scattered points, exact symmetries, solutions, and re-gridding."""

import math

import pytest
import torch
from torch.func import grad

from pyro_ext.checkpoint import CheckpointError
from pyro_ext.models.symmetry import (
    EQUATIONS,
    flow,
    learn_lie_symmetries,
    lie_generators,
    simulate,
    validity_pde,
)
from pyro_ext.models.symmetry.equations import scattered_derivatives


def graph(function, num_t=7, num_x=9, noise=0.0, length=4.0):
    x = torch.linspace(0.0, length, num_x + 1)[:-1].expand(num_t, num_x)
    t = torch.linspace(0.0, 1.0, num_t)[:, None].expand(num_t, num_x)
    x = x + noise * (torch.rand(num_t, num_x) - 0.5) * length / num_x
    t = t + noise * (torch.rand(num_t, num_x) - 0.5) / num_t
    return torch.stack([x, t, function(x, t)], -1)


@pytest.mark.parametrize("noise", [0.0, 0.3])
def test_polynomials_have_exact_derivatives(float64, noise):
    """Wherever the points are: of x^i t, for derivatives that have the degree."""
    torch.manual_seed(0)
    for degree in (2, 3, 4):
        points = graph(lambda x, t, i=degree: x**i * (1 + 2 * t) + t, noise=noise)
        x, t = points[..., 1:-1, 2:-2, :2].unbind(-1)
        found = scattered_derivatives(points, [2, 3, 4])
        expected = math.factorial(degree) * (1 + 2 * t)
        torch.testing.assert_close(found["x" * degree], expected, atol=1e-7, rtol=1e-7)
    points = graph(lambda x, t: (3 + 2 * x) * (1 + t), noise=noise)
    x, t = points[..., 1:-1, 2:-2, :2].unbind(-1)
    found = scattered_derivatives(points, [])
    torch.testing.assert_close(found["x"], 2 * (1 + t))
    torch.testing.assert_close(found["t"], 3 + 2 * x)


def test_derivatives_of_a_wave_converge(float64):
    """On points that are moved smoothly; each as the length to its power, times the error."""
    errors = []
    for num in (16, 32, 64):
        points = graph(lambda x, t: 0 * x, num_t=num, num_x=4 * num, length=2 * math.pi)
        x, t = points[..., 0], points[..., 1]
        x, t = x + 0.1 * (x + t).sin(), t + 0.1 * t.sin()
        moved = torch.stack([x, t, (x - t).sin()], -1)
        x, t = moved[..., 1:-1, 2:-2, :2].unbind(-1)
        found = scattered_derivatives(moved, [2, 3], length=2 * math.pi)
        errors.append(
            [
                float((found[name] - exact).abs().mean())
                for name, exact in {
                    "t": -(x - t).cos(),
                    "x": (x - t).cos(),
                    "xx": -(x - t).sin(),
                    "xxx": -(x - t).cos(),
                }.items()
            ]
        )
    first, _, last = torch.tensor(errors)
    assert bool((last < 0.5 * first).all()) and bool((last < 0.06).all())


def test_points_at_one_place_are_no_error(float64):
    points = graph(lambda x, t: x).requires_grad_()
    same = points.clone()
    same[3, 4] = same[3, 5].detach()
    found = scattered_derivatives(same, [3])
    assert all(bool(value.isfinite().all()) for value in found.values())


def derivatives(u, point, order):
    """Exact ones of a function of ``x`` and ``t`` at a point."""
    names = {"t": grad(u, 1)}
    of_x = u
    for k in range(1, order + 1):
        of_x = grad(of_x, 0)
        names["x" * k] = of_x
    return {name: d(point[0], point[1]) for name, d in names.items()}


@pytest.mark.parametrize("name", EQUATIONS)
def test_known_symmetries_keep_the_residual(float64, name):
    """The residual of a moved function, no solution, is that of the function where it came from.

    For the shift in time of cKdV, which is an approximate symmetry, it is not.
    """
    equation, fields = EQUATIONS[name], lie_generators(name)
    start = torch.tensor([0.7, 0.9])

    def u(x, t):
        return 0.4 * (0.8 * x - 0.5 * t).sin() + 0.1 * t * (0.3 * x).cos()

    def residual(function, point):
        z = torch.stack([point[0], point[1], function(point[0], point[1])])
        return equation.residual(derivatives(function, point, max(equation.orders)), z)

    for j in range(3):
        unit = torch.nn.functional.one_hot(torch.tensor(j), 3).double()
        field = fields.combination(unit)

        def moved(x, t, field=field):
            base = flow(
                field, torch.stack([x, t, 0 * x]), -0.3, num_steps=3
            )  # no field's x, t depend on u
            there = torch.stack([base[0], base[1], u(base[0], base[1])])
            return flow(field, there, 0.3, num_steps=3)[2]

        z = torch.stack([start[0], start[1], u(start[0], start[1])])
        end = flow(field, z, 0.3)[:2]
        before, after = residual(u, start), residual(moved, end)
        difference = abs(float(after - before))
        assert difference > 1e-3 if (name, j) == ("ckdv", 1) else difference < 1e-6


def test_soliton(float64):
    """A solution of KdV in closed form has no residual, and moves as it should."""
    x = torch.arange(256.0) / 2
    t = torch.linspace(0.0, 4.0, 41)
    c = 0.6

    def soliton(x, t):
        return 3 * c / (0.5 * c**0.5 * (x - 40 - c * t)).cosh() ** 2

    u = soliton(x, t[:, None])
    points = torch.stack([x.expand_as(u), t[:, None].expand_as(u), u], -1)
    found = scattered_derivatives(points, [3], length=128.0)
    residual = EQUATIONS["kdv"].residual(found, points[1:-1, 2:-2])
    assert float(residual.abs().mean()) < 0.25 * float(found["t"].abs().mean())
    with_another = found["t"] + points[1:-1, 2:-2, 2] * found["x"] - found["xxx"]
    assert float(with_another.abs().mean()) > float(found["t"].abs().mean())


@pytest.mark.parametrize("name", EQUATIONS)
def test_simulations(float64, name):
    """Means of u are what the equation says; solutions satisfy it, and another seed differs."""
    points = simulate(name, 2, num_x=128, num_t=61, substeps=6, seed=0)
    assert points.shape == (2, 61, 128, 3) and bool(points.isfinite().all())
    t, u = points[..., 1], points[..., 2]
    torch.testing.assert_close(u.mean(-1), torch.zeros(2, 61), atol=1e-9, rtol=0)
    if name in ("kdv", "nkdv"):  # they conserve energy, cKdV (t + 1) times it
        energy = u.square().mean(-1)
        torch.testing.assert_close(energy, energy[:, :1].expand_as(energy), rtol=2e-3, atol=0)
    if name == "ckdv":
        energy = (u.square() * (1 + t)).mean(-1)
        torch.testing.assert_close(energy, energy[:, :1].expand_as(energy), rtol=2e-3, atol=0)
    if name != "burgers":  # whose waves are too steep for so few points
        louder = points * torch.tensor([1.0, 1.0, 1.5])
        assert bool((validity_pde(name, points) < validity_pde(name, louder) - 0.1).all())
    again = simulate(name, 2, num_x=128, num_t=61, substeps=6, seed=0)
    assert torch.equal(points, again)
    other = simulate(name, 2, num_x=128, num_t=61, substeps=12, seed=1)
    assert not torch.equal(points[:, 0], other[:, 0])


@pytest.mark.parametrize(
    "name, options, argument",
    [
        ("burgers", dict(num_x=256, num_t=10, substeps=2), "substeps must be more than 2"),
        ("burgers", dict(num_x=256, num_t=20, substeps=1), "substeps must be more than 1"),
        ("burgers", dict(num_x=20), "num_x must be at least 21"),
    ],
)
def test_simulations_that_are_too_coarse(name, options, argument):
    with pytest.raises(ValueError, match=argument):
        simulate(name, 1, seed=0, **options)


def test_a_checkpoint_knows_the_equation(tmp_path):
    solutions = simulate("kdv", 1, num_x=16, num_t=8, seed=0)
    options = dict(n=2, patch=(5, 8), batch_size=2, num_patches=4, trunk=4, flow_steps=1)
    options |= dict(seed=0, progress=False, checkpoint=tmp_path / "f")
    learn_lie_symmetries("kdv", solutions, 1, **options)
    with pytest.raises(CheckpointError, match="validity"):
        learn_lie_symmetries("nkdv", solutions, 1, **options)


@pytest.mark.slow
def test_learning_symmetries_of_kdv(tmp_path):
    """A few steps lessen the loss, and go on from a checkpoint bit for bit."""
    solutions = simulate("kdv", 4, num_x=128, num_t=40, seed=0)
    options = dict(n=3, num_patches=256, seed=0, progress=False)
    learned = learn_lie_symmetries("kdv", solutions, 30, **options)
    losses = torch.tensor(learned.losses)
    assert losses[-10:].mean() < losses[:10].mean()
    values = learned(solutions)
    assert values.shape == (3, *solutions.shape)
    torch.testing.assert_close(values.square().sum(-1).mean((1, 2, 3)), torch.ones(3))
    again = learn_lie_symmetries("kdv", solutions, 30, **options, checkpoint=tmp_path / "f")
    assert again.losses == learned.losses


def test_bad_patches_are_named():
    solutions = simulate("kdv", 1, num_x=16, num_t=5, seed=0)
    with pytest.raises(ValueError, match=r"patch\[0\] must be at most 5"):
        learn_lie_symmetries("kdv", solutions, 1, patch=(6, 10))
