"""How graphs are made, compared, remade and given up."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import Tensor, nn

from pyro_ext.potential import BatchedFunction, FunctionPotential, Potential, outputs_agree
from pyro_ext.potential.batched import RandomPoints
from pyro_ext.potential.graph_capture import Fallback
from tests.potential.test_recordable import compare


def normal(x: Tensor, size: int | None = None) -> None:
    loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x), subsample_size=size) as index:
        pyro.sample("x", dist.Normal(loc, 1.0), obs=x[index])


def branching(x: Tensor) -> None:
    """A branch on a latent value: no graph holds both sides."""
    loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
    scale = 1.0 if loc > 0 else 2.0
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(loc, scale), obs=x)


def branching_in_silence(x: Tensor) -> None:
    """The same, behind the back of whoever records."""
    loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
    scale = 1.0 if loc.detach().numpy() > 0 else 2.0
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(loc, scale), obs=x)


class Square(torch.autograd.Function):
    """Computes outside of PyTorch, and says what the derivative is."""

    @staticmethod
    def forward(context: Any, loc: Tensor) -> Tensor:
        context.save_for_backward(loc)
        return torch.tensor(float(loc.detach().numpy()) ** 2)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> Tensor:
        (loc,) = context.saved_tensors
        return 2.0 * loc * gradients[0]


def number_taken_out(x: Tensor) -> None:
    loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(Square.apply(loc), 1.0), obs=x)
        pyro.factor("loc_again", -loc * x)


def strided(x: Tensor) -> None:
    """An operation that has no vectorized form."""
    loc = pyro.sample("loc", dist.Normal(torch.zeros(3), 1.0).to_event(1))
    pair = torch.as_strided_scatter(torch.zeros(3), loc[:2], (2,), (1,), 1)
    pyro.sample("x", dist.Normal(pair.sum() + loc[2], 1.0), obs=x[0])


@contextmanager
def given_warnings() -> Iterator[list[str]]:
    messages: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield messages
    messages += [str(warning.message) for warning in caught]


def use(potential: Potential) -> None:
    """Call all functions that are recorded, twice."""
    for _ in range(2):
        params = potential.init(2, seed=0)
        potential(params), potential.value_and_grad(params), potential.full(params)
        samples = potential.constrain(params)
        potential.log_likelihood(samples), potential.deterministic(samples)


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (branching, "Reason: in `scale = 1.0 if loc > 0 else 2.0`, line 31 of test_backends.py: "),
        (branching_in_silence, "a Python branch or a number taken out of a tensor was frozen"),
        (number_taken_out, "a Python branch or a number taken out of a tensor was frozen"),
    ],
)
def test_what_cannot_be_recorded(model: Any, reason: str) -> None:
    """One warning in all, and the right numbers, on both sides of the branch."""
    x = torch.linspace(-1.0, 2.0, 5)
    potential, eager = Potential(model, x), Potential(model, x, backend="eager")
    with given_warnings() as messages:
        use(potential)
    assert len(messages) == 1, messages
    assert "cannot be recorded as a graph; its chains run one by one" in messages[0]
    assert reason in messages[0]
    params = {"loc": torch.tensor([-1.5, -0.1, 0.1, 1.5])}
    actual, expected = potential.value_and_grad(params), eager.value_and_grad(params)
    assert torch.equal(actual[0], expected[0])
    assert torch.equal(actual[1]["loc"], expected[1]["loc"])


def test_eager_backend_gives_no_warning() -> None:
    with given_warnings() as messages:
        use(Potential(branching, torch.zeros(3), backend="eager"))
    assert not messages


def test_what_cannot_be_vectorized() -> None:
    x = torch.ones(1)
    potential, eager = Potential(strided, x), Potential(strided, x, backend="eager")
    params = potential.init(3, seed=0)
    with given_warnings() as messages:
        use(potential)
        actual = potential.value_and_grad(params)
    assert len(messages) == 1, messages
    assert "an operation cannot be vectorized; running chains one by one" in messages[0]
    expected = eager.value_and_grad(params)
    torch.testing.assert_close(actual[0], expected[0])
    torch.testing.assert_close(actual[1]["loc"], expected[1]["loc"])


@pytest.mark.parametrize("backend", ["trace", pytest.param("compile", marks=pytest.mark.slow)])
def test_data_changed_in_place(backend: Any) -> None:
    x = torch.zeros(3)
    potential = Potential(normal, x, backend=backend)
    params = {"loc": torch.tensor([0.0, 1.0])}
    before = potential(params)
    x += 1.0
    expected = Potential(normal, torch.ones(3), backend="eager")
    assert not torch.allclose(potential(params), before)
    torch.testing.assert_close(potential(params), expected(params))
    torch.testing.assert_close(
        potential.value_and_grad(params)[1]["loc"], expected.value_and_grad(params)[1]["loc"]
    )


def test_parameters_of_a_closed_over_module() -> None:
    """An optimizer's step on what the model uses is noticed, though it is no argument."""
    layer = nn.Linear(1, 1)

    def model(x: Tensor) -> None:
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(layer(loc[None])[0], 1.0), obs=x)

    x = torch.zeros(3)
    potential, eager = Potential(model, x), Potential(model, x, backend="eager")
    params = {"loc": torch.tensor([0.0, 1.0])}
    value, gradient = potential.value_and_grad(params)
    assert not value.requires_grad and not gradient["loc"].requires_grad
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    potential.potential({"loc": torch.tensor(1.0)}).backward()
    optimizer.step()
    assert not torch.allclose(potential(params), value)
    torch.testing.assert_close(potential(params), eager(params))


def test_parameters_of_the_store() -> None:
    def model(x: Tensor) -> None:
        scale = pyro.param("scale", torch.tensor(1.0), constraint=dist.constraints.positive)
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(loc, scale), obs=x)

    potential = Potential(model, torch.zeros(3))
    params = {"loc": torch.tensor([0.0, 1.0])}
    potential(params)
    with torch.no_grad():
        pyro.param("scale").unconstrained().add_(1.0)
    expected = Potential(model, torch.zeros(3), backend="eager")
    torch.testing.assert_close(potential(params), expected(params))


@pytest.mark.parametrize("backend", ["eager", "trace"])
def test_other_numbers_of_chains(backend: Any) -> None:
    potential = Potential(normal, torch.zeros(3), backend=backend)
    loc = torch.linspace(-1, 1, 5)
    whole = potential({"loc": loc})
    assert whole.shape == (5,)
    for rows in (slice(0, 1), slice(1, 3), slice(0, 5)):
        torch.testing.assert_close(potential({"loc": loc[rows]}), whole[rows])


@pytest.mark.parametrize(
    "backend", ["eager", "trace", pytest.param("compile", marks=pytest.mark.slow)]
)
def test_failed_factorization_is_that_chain_alone(backend: Any) -> None:
    """A matrix that is not positive definite makes one chain NaN, on each backend the same."""

    def model(y: Tensor) -> None:
        shift = pyro.sample("shift", dist.Normal(0.0, 1.0))
        matrix = torch.eye(2) * (1.5 + shift)
        pyro.sample("y", dist.MultivariateNormal(torch.zeros(2), matrix), obs=y)

    params = {"shift": torch.tensor([0.5, -2.0, 1.0])}
    potential = Potential(model, torch.ones(2), backend=backend)
    value, gradient = potential.value_and_grad(params)
    found = [value, gradient["shift"], potential(params)]
    if backend != "eager":
        samples = potential.constrain(params)
        assert torch.equal(samples["shift"], params["shift"])
        found.append(potential.log_likelihood(samples)["y"])
    assert [each.isfinite().tolist() for each in found] == [[True, False, True]] * len(found)


def test_nothing_outside_is_touched() -> None:
    """Outer handlers see nothing, and switches and random numbers stay as they were."""
    potential = Potential(normal, torch.zeros(3))
    params = potential.init(2, seed=0)
    before = torch.get_rng_state()
    for is_on in (True, False):
        with pyro.validation_enabled(is_on):
            with poutine.trace() as trace, poutine.scale(scale=3.0):
                value, _ = potential.value_and_grad(params)
                one = potential.potential({"loc": params["loc"][0]})
                potential.log_likelihood(potential.constrain(params))
            assert not trace.trace.nodes
            assert dist.is_validation_enabled() is is_on
            assert poutine.util.is_validation_enabled() is is_on
    torch.testing.assert_close(value[0], one)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_model_that_raises_leaves_validation_alone() -> None:
    with pytest.raises(ValueError, match="TypeError: .*len"):
        Potential(normal, torch.tensor(0.0))
    assert dist.is_validation_enabled()


def test_fresh_minibatches() -> None:
    """Without a subsample each chain gets its own; a generator makes them repeatable."""
    potential = Potential(normal, torch.randn(50), 5)
    params = {"loc": torch.zeros(8)}
    values = [potential(params, generator=torch.Generator().manual_seed(s)) for s in (0, 0, 1)]
    assert torch.equal(values[0], values[1])
    assert not torch.equal(values[0], values[2])
    assert len(set(values[0].tolist())) > 1
    subsample = {"data": torch.arange(5)}
    before = torch.get_rng_state()
    assert len(set(potential(params, subsample).tolist())) == 1
    assert torch.equal(torch.get_rng_state(), before)


def test_other_arguments() -> None:
    """The pure function takes other data, here a minibatch that the caller has picked."""

    def model(y: Tensor, index: Tensor) -> None:
        scale = pyro.sample("scale", dist.HalfNormal(1.0))
        with pyro.plate("data", 9, subsample=index):
            pyro.sample("y", dist.Normal(0.0, scale), obs=y)

    y = torch.randn(9)
    potential = Potential(model, y[:3], torch.arange(3))
    assert not potential.subsampled_plates
    point = {"scale": torch.tensor(0.1)}
    parts = [
        potential.potential(point, None, y[start : start + 3], torch.arange(start, start + 3))
        for start in (0, 3, 6)
    ]
    whole = potential.potential(point, None, y, torch.arange(9))
    torch.testing.assert_close(torch.stack(parts).mean(), whole)


def test_local_latents_and_a_drawn_subsample() -> None:
    """Where a plate draws its subsample, local latents follow it."""

    def model(y: Tensor) -> None:
        with pyro.plate("data", len(y), subsample_size=2) as index:
            loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
            pyro.sample("y", dist.Normal(loc, 1.0), obs=y[index])

    y = torch.arange(5.0)
    potential = Potential(model, y, backend="eager")
    # The likelihood is flat where each local latent is at its own observation.
    values = {round(float(potential.potential({"loc": y})), 3) for _ in range(40)}
    pairs = [(i, j) for i in range(5) for j in range(i)]
    constant = 2.5 * 2 * 2 * 0.5 * torch.log(torch.tensor(2 * torch.pi))
    expected = {round(float(constant + 1.25 * (i**2 + j**2)), 3) for i, j in pairs}
    assert values <= expected


def test_outputs_agree() -> None:
    whole = {"a": torch.tensor([1.0, torch.inf]), "b": torch.tensor([True, False])}
    assert outputs_agree(whole, whole)
    assert not outputs_agree(whole | {"b": torch.tensor([True, True])}, whole)
    assert not outputs_agree(whole | {"a": torch.tensor([1.0, 1.0])}, whole)
    assert not outputs_agree(whole | {"a": torch.tensor([1.1, torch.inf])}, whole)
    assert outputs_agree(whole | {"a": torch.tensor([1.0 + 1e-6, torch.inf])}, whole)


@pytest.mark.parametrize("backend", ["eager", "trace"])
def test_function_without_pyro(backend: Any) -> None:
    params = {"a": torch.randn(3, 2), "b": torch.randn(3)}
    potential = FunctionPotential(lambda z: (z["a"] ** 2).sum() * z["b"].exp(), params, backend)
    flat = potential.layout.flatten(params)
    value, gradient = potential.gradient(flat)
    square = (params["a"] ** 2).sum(-1)
    torch.testing.assert_close(value, square * params["b"].exp())
    expected = {"a": 2 * params["a"] * params["b"].exp()[:, None], "b": value}
    torch.testing.assert_close(gradient, potential.layout.flatten(expected))


def test_random_function() -> None:
    function = BatchedFunction(lambda x: x + torch.rand(()), lambda: [torch.zeros(2)], "trace")
    with pytest.raises(ValueError, match="gives two results at the same point"):
        function(torch.zeros(3, 2))


def test_functions_that_share_a_fallback() -> None:
    """Where one function of a model cannot be recorded, none is, not even one recorded before."""
    fallback = Fallback()

    def function(x: Tensor) -> Tensor:
        return x if x > 0 else 2 * x

    def example() -> list[Tensor]:
        return [torch.ones(())]

    fine = BatchedFunction(torch.sin, example, "trace", fallback=fallback)
    fails = [BatchedFunction(function, example, "trace", fallback=fallback) for _ in range(2)]
    assert fine.graph(2) is not None
    with given_warnings() as messages:
        assert fails[0](torch.tensor([1.0, -1.0])).tolist() == [1.0, -2.0]
        assert fails[1](torch.tensor([1.0, -1.0])).tolist() == [1.0, -2.0]
    assert len(messages) == 1
    assert fine.graph(2) is None and fine.backend == "eager"
    torch.testing.assert_close(fine(torch.ones(2)), torch.ones(2).sin())


def test_random_points_lie_on_both_sides() -> None:
    start = torch.tensor([0.5, -2.0])
    points = RandomPoints(start)
    for sign in (1, -1, 1, -1):
        one, other = points(), points()
        torch.testing.assert_close((one + other) / 2, sign * start)
        assert not torch.equal(one, other)


def test_view_of_what_lies_otherwise_over_chains() -> None:
    """A convolution over chains puts them in the middle; the output of one is in one piece."""

    def model(x: Tensor) -> None:
        kernel = pyro.sample("kernel", dist.Normal(torch.zeros(2, 1, 3), 1.0).to_event(3))
        hidden = nn.functional.conv1d(x, kernel).view(-1)
        pyro.sample("y", dist.Normal(hidden, 1.0).to_event(1), obs=torch.zeros(len(hidden)))

    compare(model, torch.randn(3, 1, 5))


def test_attention_is_written_out() -> None:
    """In one piece it would run chain by chain."""

    def model(x: Tensor) -> None:
        query = pyro.sample("query", dist.Normal(torch.zeros(3, 2), 1.0).to_event(2))
        mixed = nn.functional.scaled_dot_product_attention(query[None], x, x)
        pyro.sample("y", dist.Normal(mixed.sum(), 1.0), obs=torch.tensor(0.0))

    compare(model, torch.randn(1, 4, 2))
    potential = Potential(model, torch.randn(1, 4, 2))
    assert "scaled_dot_product" not in str(potential.gradient.single())


def test_data_made_in_inference_mode() -> None:
    with torch.inference_mode():
        x = torch.zeros(3)
    expected = Potential(normal, torch.zeros(3))
    params = {"loc": torch.tensor([0.0, 1.0])}
    torch.testing.assert_close(Potential(normal, x)(params), expected(params))


@pytest.mark.slow
def test_compiled_loop_of_convolutions() -> None:
    def model(x: Tensor, y: Tensor) -> None:
        hidden = x
        for layer in range(3):
            kernel = pyro.sample(
                f"kernel_{layer}", dist.Normal(torch.zeros(2, 2, 3, 3), 0.5).to_event(4)
            )
            hidden = hidden + torch.relu(nn.functional.conv2d(hidden, kernel, padding=1))
        weight = pyro.sample("weight", dist.Normal(torch.zeros(2, 3), 1.0).to_event(2))
        with pyro.plate("data", len(x)):
            logits = hidden.mean((-1, -2)) @ weight
            pyro.sample("y", dist.Categorical(logits=logits), obs=y)

    data = torch.randn(4, 2, 5, 5), torch.arange(4) % 3
    potential, graph = Potential(model, *data, backend="compile"), Potential(model, *data)
    params = potential.init(2, seed=0)
    value, gradient = potential.value_and_grad(params)
    expected, expected_gradient = graph.value_and_grad(params)
    torch.testing.assert_close(value, expected)
    for name in params:
        torch.testing.assert_close(gradient[name], expected_gradient[name], rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_without_a_compiler(tmp_path: Path) -> None:
    """The graph takes over, with one warning."""
    missing = {"cpp.cxx": (str(tmp_path / "nowhere"),), "force_disable_caches": True}
    potential = Potential(normal, torch.ones(4), backend="compile")
    params = {"loc": torch.tensor([0.0, 1.0])}
    with torch._inductor.config.patch(missing), given_warnings() as messages:
        value, _ = potential.value_and_grad(params)
        torch.testing.assert_close(potential(params), value)
    assert len(messages) == 1, messages
    assert "cannot be compiled; using its graph" in messages[0]
    torch.testing.assert_close(value, Potential(normal, torch.ones(4))(params))
