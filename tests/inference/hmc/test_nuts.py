"""HMC and NUTS: trees against a recursive reference, exact moments, adaptation, runs, errors."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from pyro_ext.diagnostics import to_arviz
from pyro_ext.inference import HMC, MAMS, MCLMC, MCMC, NUTS, ChEES, LaplaceHMC
from pyro_ext.inference.hmc import loop
from pyro_ext.inference.hmc.adaptation import (
    add_draw,
    averaged,
    estimated_factor,
    new_moments,
    restarted,
    stan_windows,
    updated,
)
from pyro_ext.inference.vectorized import compiled_loop
from pyro_ext.potential import Backend, compile_graph
from pyro_ext.random import chain_keys, normal, uniform
from pyro_ext.testing.kernels import check_kernel
from tests.inference.models import assert_mean

pytestmark = pytest.mark.usefixtures("float64")

FIXED = {"adapt_step_size": False}
KERNELS = {
    "HMC": (HMC, {"step_size": 0.04, "trajectory_length": 0.15} | FIXED),
    "HMC steps": (HMC, {"step_size": 0.01, "num_steps": 5} | FIXED),
    "NUTS": (NUTS, {"step_size": 0.05, "max_tree_depth": 4} | FIXED),
    "NUTS full": (NUTS, {"step_size": 0.05, "max_tree_depth": 3, "full_mass": True} | FIXED),
    "LaplaceHMC": (LaplaceHMC, {}),
    "MAMS": (MAMS, {"step_size": 0.03, "num_steps": 3} | FIXED),
    "MCLMC": (MCLMC, {"step_size": 0.03} | FIXED),
}
each_kernel = pytest.mark.parametrize(("kernel_type", "options"), KERNELS.values(), ids=KERNELS)


def regression(x: Tensor, y: Tensor) -> None:
    weight = pyro.sample("weight", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    scale = pyro.sample("scale", dist.HalfNormal(1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(x @ weight, scale), obs=y)


def data() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(30, 2, generator=generator)
    return x, x @ torch.tensor([1.0, -0.5]) + 0.4 * torch.randn(30, generator=generator)


@each_kernel
@pytest.mark.parametrize(
    "check",
    [
        "arguments",
        *(pytest.param(c, marks=pytest.mark.slow) for c in ("settings", "draws", "drivers")),
    ],
)
def test_kernels(kernel_type: Any, options: Any, check: str) -> None:
    check_kernel(kernel_type, regression, *data(), options=options, checks=[check], steps=(1, 2, 6))


def test_draws_on_a_device(device: torch.device) -> None:
    """They stay there, and are those of the processor."""
    backend: Backend = "trace" if device.type == "cuda" else "eager"

    def draws(*arguments: Tensor) -> dict[str, Tensor]:
        kernel = NUTS(regression, backend=backend, step_size=0.05, max_tree_depth=3)
        mcmc = MCMC(kernel, 4, 4, 2, seed=0, progress=False)
        return mcmc.run(*arguments).get_samples()

    with torch.device("cpu"):
        arguments = data()
        expected = draws(*arguments)
    for name, values in draws(*(part.to(device) for part in arguments)).items():
        assert values.device == device
        torch.testing.assert_close(values.cpu(), expected[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["HMC", "NUTS full", "LaplaceHMC", "MAMS", "MCLMC"])
def test_compiled_draws(name: str) -> None:
    """Over enough transitions for many calls of the loop."""
    kernel_type, options = KERNELS[name]
    check_kernel(
        kernel_type,
        regression,
        *data(),
        options=options,
        checks=["draws"],
        backends=("trace", "compile"),
        steps=(1, 2, 70, 71, 90),
        tolerance=1e-6,
    )


# The tree, against one that is built as the papers have it ---------------------------------------


def bent(z: dict[str, Tensor]) -> Tensor:
    """A curved density of two dimensions and its third, of another scale."""
    x = z["x"]
    return 0.5 * x[0] ** 2 + 2.0 * (x[1] - 0.5 * x[0] ** 2) ** 2 + 0.5 * (x[2] / 3.0) ** 2


class Reference:
    """A trajectory that doubles, with all of its points kept and all subtrees looked at."""

    def __init__(self, step_size: float, max_tree_depth: int) -> None:
        self.step_size = step_size
        self.max_tree_depth = max_tree_depth

    def energy(self, q: Any, p: Any) -> float:
        return float(bent({"x": torch.tensor(q)})) + 0.5 * float(p @ p)

    def leapfrog(self, q: Any, p: Any, sign: int) -> tuple[Any, Any]:
        def gradient(q: Any) -> Any:
            x = torch.tensor(q, requires_grad=True)
            return torch.autograd.grad(bent({"x": x}), x)[0].numpy()

        size = sign * self.step_size
        p = p - 0.5 * size * gradient(q)
        q = q + size * p
        return q, p - 0.5 * size * gradient(q)

    def turn_ends(self, points: list[Any]) -> bool:
        """Of points in the order of time."""
        momenta = np.array([p for _, p in points])
        span = momenta.sum(0) - 0.5 * (momenta[0] + momenta[-1])
        return bool(momenta[0] @ span <= 0 or momenta[-1] @ span <= 0)

    def turns(self, points: list[Any]) -> bool:
        """Of all, and of each half with the nearest point of the other."""
        middle = len(points) // 2
        return any(map(self.turn_ends, (points, points[: middle + 1], points[middle - 1 :])))

    def transition(self, q: Any, p: Any, uniforms: Any) -> tuple[Any, int, int]:
        """Draw, depth and number of steps; takes uniform numbers by step."""
        first, points = self.energy(q, p), [(q, p)]
        draw, total, steps = q, 1.0, 0
        for depth in range(self.max_tree_depth):
            sign = 1 if uniforms[steps][1] < 0.5 else -1
            half: list[Any] = []
            weight, candidate, front = 0.0, None, points[-1 if sign == 1 else 0]
            for leaf in range(2**depth):
                front = self.leapfrog(*front, sign)
                half.append(front)
                own = math.exp(first - self.energy(*front))
                weight += own
                if leaf == 0 or uniforms[steps][0] < own / weight:
                    candidate = front[0]
                last = uniforms[steps][2]
                steps += 1
                for size in (2**k for k in range(1, depth + 1)):
                    if (leaf + 1) % size == 0 and self.turns(half[-size:][::sign]):
                        return draw, depth, steps
                    # The other half of a subtree need not be built if this one turns with its leaf.
                    is_halfway = size > 2 and (leaf - size // 2) % size == 0
                    if is_halfway and self.turn_ends(half[-size // 2 - 1 :][::sign]):
                        return draw, depth, steps
            if last < weight / total:
                draw = candidate
            total += weight
            points = points + half if sign == 1 else half[::-1] + points
            if self.turns(points):
                return draw, depth + 1, steps
        return draw, self.max_tree_depth, steps


@pytest.mark.parametrize(
    ("step_size", "number"),
    [(0.15, 12), *(pytest.param(size, 40, marks=pytest.mark.slow) for size in (0.15, 0.3))],
)
def test_trees(step_size: float, number: int) -> None:
    """Draws, depths and numbers of steps are those of the reference, transition by transition."""
    kernel = NUTS(potential_fn=bent, step_size=step_size, max_tree_depth=6, **FIXED)
    kernel.initial_params = {"x": torch.zeros(3)}
    kernel.setup(0)
    start = torch.randn(3, 3, generator=torch.Generator().manual_seed(0))
    _, draws = kernel.record(kernel.begin(range(3), 5, {"x": start}), range(1, number + 1))
    reference = Reference(step_size, 6)
    keys = chain_keys(5, range(3))
    depths = set()
    for chain in range(3):
        q, done = start[chain].numpy(), 0
        for row in range(number):
            key = keys[chain : chain + 1]
            p = normal(key, torch.tensor(row), 3, dtype=torch.float64)[0].numpy()
            numbers = torch.arange(done, done + 64)
            uniforms = uniform(key, numbers, 4, stream=1, dtype=torch.float64)[:, 0].numpy()
            q, depth, steps = reference.transition(q, p, uniforms)
            done += steps
            assert draws.state.tree_depth[row, chain] == depth
            assert draws.state.num_steps[row, chain] == steps
            np.testing.assert_allclose(draws.position[row, chain].numpy(), q, rtol=1e-8)
            depths.add(depth)
    assert {2, 3, 4} <= depths


def test_trajectories_end_before_they_come_back() -> None:
    """With scales all alike, positions return after a period: ends alone would tell no turn."""
    kernel = NUTS(potential_fn=lambda z: 0.5 * z["x"].square().sum(), step_size=0.92, **FIXED)
    kernel.initial_params = {"x": torch.zeros(10)}
    kernel.setup(0)
    start = torch.randn(50, 10, generator=torch.Generator().manual_seed(0))
    _, draws = kernel.record(kernel.begin(range(50), 0, {"x": start}), range(1, 11))
    assert int(draws.state.num_steps.max()) <= 7


# Exact answers ------------------------------------------------------------------------------------


def skewed() -> None:
    """A gamma variable of few degrees, and a curved pair."""
    pyro.sample("gamma", dist.Gamma(2.0, 0.5))
    x = pyro.sample("x", dist.Normal(0.0, 1.0))
    pyro.sample("y", dist.Normal(x**2, 0.5))


EXACT = {
    "gamma": (lambda d: d["gamma"], 4.0),
    "log gamma": (lambda d: d["gamma"].log(), float(np.euler_gamma * -1 + 1 + math.log(2.0))),
    "square": (lambda d: d["gamma"].square(), 24.0),
    "x": (lambda d: d["x"], 0.0),
    "x square": (lambda d: d["x"].square(), 1.0),
    "y": (lambda d: d["y"], 1.0),
    "y square": (lambda d: d["y"].square(), 3.25),
    "product": (lambda d: d["x"].square() * d["y"], 3.0),
}


@pytest.mark.slow
@pytest.mark.statistical
@pytest.mark.parametrize(
    ("kernel_type", "options"),
    [
        (NUTS, {"step_size": 0.4}),
        (NUTS, {"step_size": 0.7, "max_tree_depth": 2}),
        (HMC, {"step_size": 0.5, "trajectory_length": 1.5}),
        (NUTS, {"step_size": 0.3, "full_mass": "low_rank"}),
        (NUTS, {"step_size": 0.3, "full_mass": "low_rank", "share_mass_matrix": True}),
        (MAMS, {"step_size": 0.4, "num_steps": 3}),
        (MAMS, {"step_size": 0.2, "full_mass": "low_rank", "share_mass_matrix": True}),
        (ChEES, {"step_size": 0.45, "trajectory_length": 2.0}),
        (ChEES, {"step_size": 0.3, "full_mass": "low_rank", "trajectory_length": 2.0}),
    ],
)
def test_invariance(kernel_type: Any, options: Any) -> None:
    """Chains that start in equilibrium stay there, with steps that lose many proposals.

    With low rank the factor is one that suits nothing.

    Eight moments of 20,000 independent chains, within 4.5 standard errors: false-alarm rate 6e-5
    each setting.
    """
    kernel = kernel_type(skewed, **options, **FIXED)
    kernel.setup(0)
    generator = torch.Generator().manual_seed(1)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        gamma = dist.Gamma(2.0, 0.5).sample((20_000,))
    x, noise = torch.randn(2, 20_000, generator=generator)
    start = {"gamma": gamma.log(), "x": x, "y": x**2 + 0.5 * noise}
    chains = kernel.begin(range(20_000), 0, start)
    if options.get("full_mass"):
        direction = torch.tensor([0.6, -0.64, 0.48])
        factor = torch.eye(3) + 0.7 * torch.outer(direction, direction)
        factor = torch.tensor([0.5, 1.4, 0.8])[:, None] * factor
        state = chains.state
        if kernel_type is ChEES:
            state = state._replace(chains=state.chains._replace(factor=factor[None]))
        else:
            state = state._replace(factor=factor[None])
        chains = replace(chains, state=state)
    chains = kernel.advance(chains, 4)
    found = kernel.samples(chains.position)
    for function, exact in EXACT.values():
        assert_mean(function(found), exact)
    assert 0.2 < float(kernel.statistics(chains)["acceptance_rate"].mean()) < 0.9


@pytest.mark.slow
@pytest.mark.statistical
@pytest.mark.parametrize("options", [{}, {"full_mass": True}])
def test_adapted_run(options: Any) -> None:
    """The shortest call on scales that differ by a thousand, and correlated."""
    scale = torch.tensor([0.01, 1.0, 10.0])
    correlation = torch.tensor([[1.0, 0.9, 0.0], [0.9, 1.0, 0.0], [0.0, 0.0, 1.0]])
    covariance = scale[:, None] * correlation * scale

    def model() -> None:
        pyro.sample("x", dist.MultivariateNormal(torch.ones(3), covariance))

    kernel = NUTS(model, backend="compile", **options)
    mcmc = MCMC(kernel, 200, 300, num_chains=8, seed=0, progress=False).run()
    draws = mcmc.get_samples(group_by_chain=True)["x"]
    standard = (draws - 1.0) / scale
    assert (standard.mean((0, 1)).abs() < 0.2).all()
    assert (standard.square().mean((0, 1)) - 1.0).abs().max() < 0.25
    assert abs(float((standard[..., 0] * standard[..., 1]).mean()) - 0.9) < 0.2
    statistics = mcmc.sample_statistics()
    assert 0.7 < float(statistics["acceptance_rate"].mean()) < 0.97
    assert not statistics["diverging"].any()


# Adaptation ---------------------------------------------------------------------------------------


def test_windows() -> None:
    """Those of Stan: 75 steps, windows that double from 25 on, 50 steps."""
    for number, edges in ((1000, (75, 100, 150, 250, 450, 950)), (150, (75, 100)), (100, (15, 90))):
        windows = stan_windows(number)
        assert (windows.first, *windows.updates) == edges
        assert windows.switches == windows.searches == windows.updates
    assert stan_windows(19).updates == ()


def test_dual_averaging() -> None:
    """Finds the step size at which a known rate meets the target."""
    search = restarted(torch.tensor([1e-3, 10.0]))
    for _ in range(2000):
        rate = 1.0 / (1.0 + search.log_step.exp())  # .8 at a quarter
        search = updated(search, rate, 0.8)
    found = averaged(search).log_step.exp()
    assert (found - 0.25).abs().max() < 0.01


def test_factors() -> None:
    """Covariances of draws, of each chain."""
    draws = torch.randn(50, 2, 3, generator=torch.Generator().manual_seed(0))
    draws = draws * torch.tensor([1.0, 2.0, 5.0]) + torch.tensor([[0.0], [1.0]])
    moments = new_moments(draws[0], is_dense=True)
    for draw in draws:
        moments = add_draw(moments, draw)
    factor = estimated_factor(moments)
    expected = torch.stack([torch.cov(group.mT) for group in draws.unbind(1)])
    expected = 50 / 55 * expected + 5e-3 / 55 * torch.eye(3)
    torch.testing.assert_close(factor @ factor.mT, expected)


@pytest.mark.slow
def test_full_masses_of_groups() -> None:
    """Matrices are full among the sites of a group, and exact there; zero elsewhere."""
    scale = torch.tensor([0.1, 1.0, 3.0])
    matrix = scale[:, None] * (0.4 * torch.eye(3) + 0.6) * scale

    def model() -> None:
        x = pyro.sample("x", dist.MultivariateNormal(torch.zeros(3), matrix))
        pyro.sample("a", dist.Normal(x[0], 1.0))
        pyro.sample("b", dist.Normal(x[1], 1.0))

    kernel = NUTS(model, full_mass=[("b", "x"), ("a",)], backend="trace")
    kernel.setup(1000)
    (factor,) = kernel.advance(kernel.begin([0], 0), 1000).state.factor
    columns = {name: list(kernel.potential.layout.columns(name)) for name in ("a", "b", "x")}
    order = [*columns["a"], *columns["b"], *columns["x"]]
    found = (factor @ factor.mT)[order][:, order]
    assert not found[0, 1:].any() and not found[1:, 0].any()
    assert abs(float(found[0, 0]) / 1.01 - 1.0) < 0.3
    expected = torch.block_diag(torch.tensor(2.0), matrix)
    expected[0, 1:] = expected[1:, 0] = matrix[1]
    size = expected.diagonal().sqrt()
    assert ((found[1:, 1:] - expected) / (size[:, None] * size)).abs().max() < 0.4


# Runs ---------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_arviz_names() -> None:
    x, y = data()
    kernel = NUTS(regression, step_size=0.1, max_tree_depth=3, **FIXED)
    mcmc = MCMC(kernel, 10, num_chains=2, seed=0, progress=False).run(x, y)
    found = to_arviz(mcmc, x, y, log_likelihood=False).sample_stats
    for name in ("diverging", "energy", "tree_depth", "acceptance_rate", "n_steps", "step_size"):
        assert found[name].shape == (2, 10)
    assert found["diverging"].dtype == bool


@pytest.mark.slow
def test_machine_code_is_used_again(monkeypatch: Any) -> None:
    """In later runs, for other data and by other kernels; not with another model or settings."""
    made = []

    def counting(*args: Any) -> Any:
        made.append(1)
        return compile_graph(*args)

    monkeypatch.setattr(compiled_loop, "compile_graph", counting)
    monkeypatch.setattr(loop, "kept_as", lambda *_: None)  # what another process left
    loop._kept.clear()
    kernel = NUTS(regression, backend="compile", max_tree_depth=4)
    x, y = data()

    def run(kernel: NUTS, *args: Tensor) -> Tensor:
        mcmc = MCMC(kernel, 5, 20, num_chains=2, seed=0, progress=False).run(*args)
        return mcmc.get_samples()["weight"]

    first = run(kernel, x, y)
    again = run(kernel.replace(), x + 1.0, y - 1.0)
    assert len(made) == 1
    loop._kept.clear()
    assert torch.equal(again, run(kernel.replace(), x + 1.0, y - 1.0))
    assert not torch.equal(again, first) and len(made) == 2
    assert torch.equal(first, run(kernel, x, y)) and len(made) == 2
    run(kernel, x[:20], y[:20])
    kernel.max_tree_depth = 3
    run(kernel, x[:20], y[:20])
    assert len(made) == 4


@pytest.mark.slow
def test_machine_code_takes_each_of_two_tensors() -> None:
    """Also after a fit in which both were the same one, which its code takes once."""

    def model(x: Tensor, y: Tensor) -> None:
        loc = pyro.sample("loc", dist.Normal(torch.zeros(2), 10.0).to_event(1))
        pyro.sample("x", dist.Normal(loc[0], 1.0).expand([20]).to_event(1), obs=x)
        pyro.sample("y", dist.Normal(loc[1], 1.0).expand([20]).to_event(1), obs=y)

    low, high = torch.full((20,), -5.0), torch.full((20,), 5.0)
    for data in ((low, low), (low, high), (high, high), (high, low)):
        kernel = NUTS(model, backend="compile", max_tree_depth=5)
        mcmc = MCMC(kernel, 100, 100, num_chains=2, seed=0, progress=False).run(*data)
        found = mcmc.get_samples()["loc"].mean(0)
        expected = torch.stack([each.mean() for each in data])
        assert ((found - expected).abs() < 0.5).all()


@pytest.mark.parametrize("full", [False, True])
def test_a_chain_that_is_not_finite_stops_alone(full: bool) -> None:
    """The masses of the others adapt without it."""
    start = {"x": torch.tensor([[0.0, 0.0], [math.nan, 0.0], [1.0, 1.0]])}
    options = {"full_mass": full, "max_tree_depth": 3}
    kernel = NUTS(potential_fn=lambda z: 0.5 * z["x"].square().sum(), **options)
    with pytest.warns(RuntimeWarning, match=r"chains \[1\] of 3 stopped"):
        mcmc = MCMC(kernel, 20, 40, num_chains=3, initial_params=start, seed=0, progress=False)
        draws = mcmc.run().get_samples(group_by_chain=True)["x"]
    assert draws.shape == (2, 20, 2) and (draws.std(1) > 0.4).all()
    assert (mcmc.sample_statistics()["acceptance_rate"] > 0).all()


@pytest.mark.parametrize(
    ("kernel_type", "wrong", "message"),
    [
        (HMC, {"trajectory_length": 1.0, "num_steps": 3}, "must not be given with num_steps"),
        (NUTS, {"full_mass": "x"}, "must be True, False, 'low_rank' or a list of tuples of names"),
        (NUTS, {"full_mass": [("x", 3)]}, "full_mass must be True, False, 'low_rank' or a list of"),
        (NUTS, {"full_mass": [("x",), ("y", "x")]}, "each in one of them, got "),
        (NUTS, {"full_mass": [("x", "z")]}, r"full_mass has sites \['z'\] that are not among"),
    ],
)
def test_errors(kernel_type: Any, wrong: Any, message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        kernel_type(skewed, **wrong).setup(20)


def test_no_warmup() -> None:
    for options in ({}, {"step_size": 0.1}):
        with pytest.raises(ValueError, match="warmup_steps must be >= 1 for NUTS, .*got 0: pass"):
            NUTS(skewed, **options).setup(0)
