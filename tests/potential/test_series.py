"""Long loops in Python: the same numbers by graphs that do not grow with them."""

import time
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import Tensor

from pyro_ext.potential import (
    CaptureError,
    Potential,
    _recurrences,
    _rounds,
    _series,
    enumeration,
    sum_out,
)
from pyro_ext.potential.batched import BatchedFunction
from pyro_ext.potential.graph_capture import Gradient, capture

pytestmark = pytest.mark.usefixtures("float64")
Function = Callable[..., Any]


@pytest.fixture
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets series of some ten steps count as long."""
    monkeypatch.setattr(_series, "_LEAST_STEPS", 50)


def normals(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def waves(number: int) -> Tensor:
    """Numbers that are all different; a function that draws its own is not rewritten."""
    return (1.7 * torch.arange(number)).cos()


def autoregression(x: Tensor) -> Any:
    """With data, numbers that are those of the steps, and what all steps have in common."""
    y, scale = waves(len(x)), x[0].exp()
    total = x.sum()
    for t in range(2, len(x)):
        loc = x[0] * y[t - 1] + x[1] * y[t - 2] + 0.1 * t * x[2]
        total = total - 0.5 * ((y[t] - loc) / scale).square() - scale.log() - 0.5
    return total


def walk(x: Tensor) -> Any:
    steps = x.split(1)
    return sum(((b - a).tanh() * b).sum() for a, b in zip(steps, steps[1:], strict=False))


def windows(x: Tensor) -> Any:
    """Parts that overlap, and parts that follow each other."""
    overlapping = [x[t : t + 3].exp().sum() for t in range(len(x) - 2)]
    following = [(x[t : t + 2] * waves(2)).sin().sum() for t in range(0, len(x) - 1, 2)]
    return torch.stack(overlapping).square().sum() + torch.stack(following).prod() + x[3:].sum()


def joined(x: Tensor) -> Any:
    rows = [torch.stack([t * each.sin(), each.exp(), x[0]]) for t, each in enumerate(x.unbind())]
    wide = torch.cat([row.sigmoid() for row in rows])
    return (torch.stack(rows, -1) @ waves(len(x))).sum() + wide.std()


def matrices(x: Tensor) -> Any:
    """Factorizations, which have two results, and products in pairs, round by round."""
    parts = []
    for each in x.unbind():
        matrix = torch.eye(2) + 0.1 * torch.outer(each.exp().expand(2), waves(2))
        factor, info = torch.linalg.cholesky_ex(matrix @ matrix.mT)
        parts.append(factor + info)
    while len(parts) > 1:
        parts = [a @ b for a, b in zip(parts[::2], parts[1::2], strict=False)]
    return parts[0].logdet()


def volatility(x: Tensor) -> Any:
    """Each step takes the result of the one before; what it observes is independent."""
    y, variance = waves(len(x)), x[0].exp()
    total = x.square().sum()
    for t in range(1, len(x)):
        variance = 0.1 + 0.2 * y[t - 1].square() + variance * x[t].sigmoid()
        total = total - 0.5 * (y[t].square() / variance + variance.log() + 1.0)
    return total


def garch(x: Tensor) -> Any:
    """As Stan's users write it: roots are passed on, and squared in the next step."""
    y, scales = waves(len(x)), [torch.ones(())]
    shift, new, old = x[:3].sigmoid()
    for t in range(1, len(y)):
        variance = shift + new * (y[t - 1] - x[3]) ** 2 + old * scales[t - 1] ** 2
        scales.append(torch.sqrt(variance))
    scale = torch.stack(scales)
    return (-0.5 * ((y - x[3]) / scale) ** 2 - scale.log()).sum()


def moving_average(x: Tensor) -> Any:
    """Whose errors would grow without bound, and one step that differs from all others."""
    y, errors = waves(len(x)), [torch.zeros(())]
    for t in range(len(y)):
        past = y[t - 1] if t else x[0]
        errors.append(y[t] - (x[0] + x[1] * past + (1.2 + x[2]) * errors[-1]))
    return -0.5 * torch.stack(errors).square().sum()


def smoothing(x: Tensor) -> Any:
    """Two states, level and trend, each of which takes the other."""
    y, level, trend, total = waves(len(x)), x[2], x[3], x[0]
    share, damping = x[0].sigmoid(), x[1].sigmoid()
    for t in range(len(y)):
        total = total - 0.5 * (y[t] - level - trend) ** 2
        last, level = level, share * y[t] + (1 - share) * (level + trend)
        trend = damping * (level - last) + (1 - damping) * trend
    return total


def second_autoregression(x: Tensor) -> Any:
    """States of the two steps before, of several series at once."""
    steps = torch.outer(x, waves(3))
    state = [steps[0], steps[1]]
    for t in range(2, len(x)):
        state.append(x[0].tanh() * state[-1] - 0.4 * state[-2] + steps[t])
    return sum((each - waves(3)).tanh().square().sum() for each in state)


def gaps(x: Tensor) -> Any:
    """States that stay as they are where nothing was observed, divided, and with a minus."""
    level, total = x[0], x[1]
    for t in range(len(x)):
        is_seen = torch.tensor(t % 3 != 1)
        level = torch.where(is_seen, -(level - waves(len(x))[t]) / (1.5 + x[t].exp()), level)
        total = total + level.cos()
    return total


RECURRENCES: list[Function] = [
    volatility,
    garch,
    moving_average,
    smoothing,
    second_autoregression,
    gaps,
]


@pytest.mark.usefixtures("_short")
@pytest.mark.parametrize(
    "function",
    [autoregression, walk, windows, joined, matrices, *RECURRENCES],
    ids=lambda f: f.__name__,
)
def test_functions(function: Function) -> None:
    """Value and gradient stay, and the graph does not grow but by rounds."""
    counts = []
    for number in (20, 40):
        x = 0.3 * normals(number, seed=1)
        graph = capture(Gradient(function), x, series=True)
        assert graph.meta["is_series"]
        torch.testing.assert_close(graph(x), Gradient(function)(x), rtol=1e-9, atol=1e-9)
        counts.append(len(graph.graph.nodes))
    few, many = counts
    growth = {matrices: 1.4} | dict.fromkeys(RECURRENCES, 1.3)
    assert many < growth.get(function, 1.1) * few


def feedback(x: Tensor) -> Any:
    """Nonlinear in what is passed on, but for a part that alone would be linear."""
    state = trend = total = x[0]
    for each in x.unbind():
        state = (state + trend).tanh() * each
        trend = 0.5 * trend + state
        total = total + trend.square() * each.cos()
    return total


def looked_up(x: Tensor) -> Any:
    """Linear, but what enters a step is a state from ever further back."""
    states = [x[0], x[1]]
    for t in range(2, len(x)):
        states.append(0.3 * states[-1] + 0.2 * states[t // 2] * x[t])
    return torch.stack(states).square().sum()


def products(x: Tensor) -> Any:
    """A state that is multiplied by itself, and a root that is not squared."""
    state, root, total = x[0], x[1].exp(), x[2]
    for each in x.unbind():
        state = 0.1 * state * state + each
        root = (root + 1.0 + each.square()).sqrt()
        total = total + state.sin() * root
    return total


@pytest.mark.usefixtures("_short")
@pytest.mark.parametrize("function", [feedback, products, looked_up], ids=lambda f: f.__name__)
def test_what_is_not_linear_is_computed_step_by_step(function: Function) -> None:
    x = 0.3 * normals(60, seed=2)
    graph = capture(Gradient(function), x, series=True)
    torch.testing.assert_close(graph(x), Gradient(function)(x), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("length", [1, 2, 7, 17])
def test_linear_recurrences_in_rounds(length: int) -> None:
    """Products of slopes, of any length, take the states of a step to those of another."""
    slopes, constants = 0.4 * normals(length, 3, 3, 2, seed=1), normals(length, 3, 2, seed=2)
    state = first = normals(3, 2, seed=3)
    expected = []
    for slope, constant in zip(slopes, constants, strict=True):
        state = torch.einsum("ijn,jn->in", slope, state) + constant
        expected.append(state)
    arguments = [each.requires_grad_() for each in (slopes, constants, first)]
    solve: Any = _recurrences._Solve.apply
    torch.testing.assert_close(solve(*arguments), torch.stack(expected))
    assert torch.autograd.gradcheck(solve, arguments)
    many = torch.func.vmap(solve)(*(torch.stack([each, 0.5 * each]) for each in arguments))
    torch.testing.assert_close(many[1], solve(*(0.5 * each for each in arguments)))


def test_short_functions_are_recorded_as_before() -> None:
    x = normals(12)
    graph, expected = (capture(Gradient(walk), x, series=series) for series in (True, False))
    assert not graph.meta["is_series"] and graph.code == expected.code


@pytest.mark.usefixtures("_short")
def test_results_in_a_structure() -> None:
    def function(x: Tensor) -> dict[str, Any]:
        parts = [each.exp() + t for t, each in enumerate(x.unbind())]
        return {"parts": parts, "sum": sum(parts), "constant": torch.ones(2)}

    x = normals(40)
    graph = capture(function, x, series=True)
    assert graph.meta["is_series"]
    torch.testing.assert_close(graph(x), function(x))


class _Rounded(torch.autograd.Function):
    """A step function with the gradient of the identity."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Any:
        return x.round()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        return gradient


@pytest.mark.usefixtures("_short")
def test_derivatives_of_the_model_count() -> None:
    """A gradient that is no derivative of the operations is recorded operation by operation."""
    rounded: Any = _Rounded.apply

    def function(x: Tensor) -> Any:
        return sum((rounded(each) * each).sin() for each in x.unbind())

    own = BatchedFunction(Gradient(function), lambda: [3.0 * torch.randn(20)], "trace")
    x = 3.0 * normals(2, 20)
    _, gradient = own(x)
    assert own.backend == "trace"
    torch.testing.assert_close(gradient[1], Gradient(function)(x[1])[1])


@pytest.mark.usefixtures("_short")
def test_data_that_change_are_recorded_anew() -> None:
    y = normals(30)

    def function(x: Tensor) -> Any:
        return sum((x[t] - y[t].exp()).square() for t in range(len(y)))

    own = BatchedFunction(function, lambda: [torch.randn(30)], "trace", [])
    x = normals(3, 30)
    torch.testing.assert_close(own(x)[0], function(x[0]))
    y += 1.0
    torch.testing.assert_close(own(x)[0], function(x[0]))


@pytest.mark.usefixtures("_short")
@pytest.mark.parametrize("is_part", [False, True])
def test_writes(is_part: bool) -> None:
    """Into a tensor of one's own, as Pyro's HalfCauchy does; into a part, step by step."""

    def function(x: Tensor) -> Any:
        parts = []
        for each in x.unbind():
            pair = torch.stack([each.exp(), each])
            before = pair.sum()
            (pair[0] if is_part else pair).mul_(3.0)
            parts.append(before - pair.sin().sum())
        return torch.stack(parts).square().sum()

    x = normals(30)
    graph = capture(Gradient(function), x, series=True)
    assert graph.meta["is_series"] != is_part
    torch.testing.assert_close(graph(x), Gradient(function)(x))
    torch.testing.assert_close(x, normals(30))


@pytest.mark.usefixtures("_short")
def test_branches_are_refused() -> None:
    def function(x: Tensor) -> Any:
        return sum(each.exp() if each > 0.0 else each for each in x.unbind())

    with pytest.raises(CaptureError, match=r"in `return sum"):
        capture(function, normals(60), series=True)


# Models ---------------------------------------------------------------------------------------


def hidden_markov(y: Tensor) -> None:
    rows = pyro.sample("rows", dist.Dirichlet(torch.ones(3, 3)).to_event(1))
    loc = pyro.sample("loc", dist.Normal(torch.arange(3.0), 1.0).to_event(1))
    z: Any = 0
    for t in pyro.markov(range(len(y))):
        z = pyro.sample(f"z_{t}", dist.Categorical(rows[z]))
        pyro.sample(f"y_{t}", dist.Normal(loc[z], 1.0), obs=y[t])


def masked_sequences(y: Tensor) -> None:
    """Chains inside of a plate, of different lengths, with a plate inside of each step."""
    rows = pyro.sample("rows", dist.Dirichlet(torch.ones(3, 3)).to_event(1))
    chance = pyro.sample("chance", dist.Beta(torch.ones(3, 2), 1.0).to_event(2))
    lengths = torch.tensor([len(y), len(y) // 2, 1])
    tones = pyro.plate("tones", 2, dim=-1)
    with pyro.plate("sequences", 3, dim=-2):
        z: Any = torch.tensor(0)
        for t in pyro.markov(range(int(lengths.max()))):
            shown: Any = (t < lengths)[:, None]
            with poutine.mask(mask=shown):
                z = pyro.sample(f"z_{t}", dist.Categorical(rows[z]))
                with tones:
                    own = dist.Beta(1.0 + chance[z.squeeze(-1)], 1.0)
                    pyro.sample(f"y_{t}", own, obs=(y[t] + waves(6).reshape(3, 2)).sigmoid())


def second_order(y: Tensor) -> None:
    rows = pyro.sample("rows", dist.Dirichlet(torch.ones(2, 2, 2)).to_event(2))
    loc = pyro.sample("loc", dist.Normal(torch.arange(2.0), 1.0).to_event(1))
    before: Any = torch.tensor(0)
    z: Any = torch.tensor(0)
    for t in pyro.markov(range(len(y)), history=2):
        before, z = z, pyro.sample(f"z_{t}", dist.Categorical(rows[before, z]))
        pyro.sample(f"y_{t}", dist.Normal(loc[z], 1.0), obs=y[t])


def forbidden(y: Tensor) -> None:
    """Values that are impossible at some steps."""
    loc = pyro.sample("loc", dist.Normal(torch.arange(3.0), 1.0).to_event(1))
    z: Any = None
    for t in pyro.markov(range(len(y))):
        z = pyro.sample(f"z_{t}", dist.Categorical(torch.ones(3) if t == 0 else torch.eye(3)[z]))
        pyro.factor(f"not_{t}", torch.where(z == t % 2, -torch.inf, 0.0))
        pyro.sample(f"y_{t}", dist.Normal(loc[z], 1.0), obs=y[t])


def two_chains(y: Tensor) -> None:
    """Two chains with an observation in common, whose products grow with the rounds."""
    rows = pyro.sample("rows", dist.Dirichlet(torch.ones(3, 3)).to_event(1))
    loc = pyro.sample("loc", dist.Normal(torch.arange(3.0), 1.0).to_event(1))
    a: Any = 0
    b: Any = 0
    for t in pyro.markov(range(len(y))):
        a = pyro.sample(f"a_{t}", dist.Categorical(rows[a]))
        b = pyro.sample(f"b_{t}", dist.Categorical(rows[b]))
        pyro.sample(f"y_{t}", dist.Normal(loc[a] * loc[b], 1.0), obs=y[t])


def random_walk(y: Tensor) -> None:
    """A site at each step."""
    scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
    x: Any = 0.0
    for t in range(len(y)):
        x = pyro.sample(f"x_{t}", dist.Normal(x, scale))
        pyro.sample(f"y_{t}", dist.Normal(x, 1.0), obs=y[t])


def observed_series(y: Tensor) -> None:
    """An autoregression of order two."""
    near, far = (pyro.sample(name, dist.Normal(0.0, 1.0)) for name in ("near", "far"))
    scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
    for t in range(2, len(y)):
        loc = near * y[t - 1] + far * y[t - 2]
        pyro.sample(f"y_{t}", dist.Normal(loc, scale), obs=y[t])


@pytest.mark.slow
@pytest.mark.parametrize(
    "model",
    [hidden_markov, masked_sequences, observed_series, random_walk],
    ids=lambda m: m.__name__,
)
def test_models(model: Callable[[Tensor], None]) -> None:
    """Densities and gradients are those of the model, and graphs do not grow with the series."""
    counts = []
    for number in (50, 500):
        y = normals(number)
        summed = sum_out(model, y)
        recorded, eager = (Potential(summed, y, backend=kind) for kind in ("trace", "eager"))
        points = recorded.init(2, seed=0)
        actual, expected = (each.value_and_grad(points) for each in (recorded, eager))
        torch.testing.assert_close(actual, expected, rtol=1e-8, atol=1e-8)
        graph = recorded.gradient.single()
        assert graph is not None and graph.meta["is_series"]
        counts.append(len(graph.graph.nodes))
    is_in_rounds = model in (hidden_markov, masked_sequences)
    assert counts[1] < (1.6 if is_in_rounds else 1.1) * counts[0]


@pytest.mark.parametrize(
    "model",
    [hidden_markov, masked_sequences, second_order, forbidden, two_chains],
    ids=lambda m: m.__name__,
)
def test_rounds(model: Callable[[Tensor], None], monkeypatch: pytest.MonkeyPatch) -> None:
    """A long chain is summed out in rounds to the same density as in one go."""
    y = normals(8 if model is two_chains else 16)
    summed = sum_out(model, y)
    found = []
    for least in (16, 1000):
        for module in (enumeration, _rounds):
            monkeypatch.setattr(module, "LONG", least)
        potential = Potential(summed, y, backend="eager")
        found.append(potential.value_and_grad(potential.init(2, seed=0)))
    torch.testing.assert_close(*found)
    assert all(gradient.isfinite().all() for gradient in found[0][1].values())


def test_an_impossible_chain_has_no_density() -> None:
    def model(is_possible: bool) -> None:
        scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
        z: Any = torch.tensor(0.0)
        for t in pyro.markov(range(20)):
            z = pyro.sample(f"z_{t}", dist.Bernoulli(0.3 + 0.4 * z))
            bound = -scale if is_possible or t != 7 else torch.tensor(-torch.inf)
            pyro.factor(f"bound_{t}", bound + 0.0 * z)

    for is_possible in (True, False):
        trace = poutine.trace(
            poutine.condition(sum_out(model, is_possible), {"scale": torch.tensor(1.0)})
        )
        total = trace.get_trace(is_possible).log_prob_sum()
        assert bool(torch.as_tensor(total).isfinite()) == is_possible


def variances(y: Tensor) -> None:
    """A GARCH model, whose variances follow from each other."""
    shift, new, old = (pyro.sample(name, dist.Beta(2.0, 2.0)) for name in ("a", "b", "c"))
    scale = torch.ones(())
    for t in range(len(y)):
        pyro.sample(f"y_{t}", dist.Normal(0.0, scale), obs=y[t])
        scale = torch.sqrt(shift + 0.5 * new * y[t] ** 2 + 0.5 * old * scale**2)


@pytest.mark.slow
@pytest.mark.parametrize("model", [hidden_markov, variances], ids=lambda m: m.__name__)
def test_a_chain_of_a_thousand_steps_compiles(
    model: Callable[[Tensor], None], capsys: pytest.CaptureFixture[str]
) -> None:
    y = normals(1000)
    start = time.perf_counter()
    potential = Potential(sum_out(model, y), y, backend="compile")
    points = potential.init(1, seed=0)
    middle = time.perf_counter()
    value, gradient = potential.value_and_grad(points)
    end = time.perf_counter()
    with capsys.disabled():
        print(f"\n1,000 steps: checked in {middle - start:.0f} s, compiled in {end - middle:.0f} s")
    assert potential.gradient.backend == "compile"
    expected = Potential(sum_out(model, y), y, backend="eager").value_and_grad(points)
    torch.testing.assert_close((value, gradient), expected, rtol=1e-8, atol=1e-8)
