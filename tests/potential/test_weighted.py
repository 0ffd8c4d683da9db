"""Weighted losses: values and gradients against the model's own densities."""

from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from pyro_ext.potential import WeightedFunction, WeightedPotential

pytestmark = pytest.mark.usefixtures("float64")

BACKENDS = ("eager", "trace")


def regression(x: Tensor, y: Tensor, size: int | None = None) -> None:
    slope = pyro.sample("slope", dist.Normal(0.0, 2.0).expand([2]).to_event(1))
    scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
    with pyro.plate("data", len(x), subsample_size=size) as index:
        pyro.sample("y", dist.Normal(x[index] @ slope, scale), obs=y[index])


@pytest.fixture
def data() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(12, 2, generator=generator), torch.randn(12, generator=generator)


def by_hand(flat: Tensor, weights: Tensor, x: Tensor, y: Tensor, prior_weight: float) -> Tensor:
    slope, scale = flat[:2], flat[2].exp()
    loss = -(weights * dist.Normal(x @ slope, scale).log_prob(y)).sum()
    prior = dist.Normal(0.0, 2.0).log_prob(slope).sum() + dist.LogNormal(0.0, 1.0).log_prob(scale)
    return loss - prior_weight * prior


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("capacity", [None, 3, 20])
@pytest.mark.parametrize("prior_weight", [0.0, 0.25])
def test_values_and_gradients(data: Any, backend: Any, capacity: Any, prior_weight: float) -> None:
    """No log-Jacobian of the positive scale is in them."""
    loss = WeightedPotential(regression, data, prior_weight=prior_weight, backend=backend)
    flat, weights = torch.randn(3, 3), torch.rand(3, 12)
    value, gradient = loss(flat, weights, capacity=capacity)
    for row in range(3):
        leaf = flat[row].clone().requires_grad_()
        expected = by_hand(leaf, weights[row], *data, prior_weight)
        torch.testing.assert_close(value[row], expected.detach())
        torch.testing.assert_close(gradient[row], torch.autograd.grad(expected, leaf)[0])
    assert list(loss.constrain(flat)) == ["slope", "scale"]
    torch.testing.assert_close(loss.constrain(flat)["scale"], flat[:, 2].exp())


def test_loss_of_one_draw_can_be_differentiated(data: Any) -> None:
    """In parameters, weights and observations, and over draws at once."""
    loss = WeightedPotential(regression, data)
    leaves = [part.requires_grad_() for part in (torch.randn(3), torch.rand(12), *data)]
    value, expected = loss.value(*leaves), by_hand(*leaves, 0.0)
    torch.testing.assert_close(value, expected)
    gradients, by_formula = (torch.autograd.grad(one, leaves) for one in (value, expected))
    for found, wanted in zip(gradients, by_formula, strict=True):
        torch.testing.assert_close(found, wanted)
    with pytest.raises(ValueError, match="takes minibatches of 4 of 12 observations"):
        WeightedPotential(regression, (*data, 4)).value(*leaves)


@pytest.mark.parametrize("backend", BACKENDS)
def test_minibatches_scale_the_likelihood_alone(data: Any, backend: Any) -> None:
    loss = WeightedPotential(regression, (*data, 4), prior_weight=0.5, backend=backend)
    flat, weights = torch.randn(2, 3), torch.rand(2, 12)
    index = torch.tensor([[0, 3, 3, 7], [11, 2, 5, 1]])
    value, _ = loss(flat, weights, index)
    for row in range(2):
        chosen = index[row]
        likelihood = by_hand(flat[row], weights[row, chosen], data[0][chosen], data[1][chosen], 0.0)
        prior = by_hand(flat[row], torch.zeros(12), *data, 0.5)
        torch.testing.assert_close(value[row], 12 / 4 * likelihood + prior)


def test_rows_of_each_draw(data: Any) -> None:
    loss = WeightedPotential(regression, data)
    flat, weights = torch.randn(2, 3), torch.rand(2, 12)
    rows = [torch.randn(2, 12, 2), torch.randn(2, 12)]
    value, _ = loss(flat, weights, rows=rows)
    for row in range(2):
        expected = by_hand(flat[row], weights[row], rows[0][row], rows[1][row], 0.0)
        torch.testing.assert_close(value[row], expected)


def test_more_observations(data: Any) -> None:
    loss = WeightedPotential(regression, data, regularizer=lambda p: 3.0 * p["scale"])
    longer = loss.with_rows([torch.randn(15, 2), torch.randn(15)])
    assert longer.num_points == 15
    flat, weights = torch.randn(1, 3), torch.rand(1, 15)
    value, _ = longer(flat, weights)
    expected = by_hand(flat[0], weights[0], *longer.rows, 0.0) + 3.0 * flat[0, 2].exp()
    torch.testing.assert_close(value[0], expected)


def test_a_function_is_as_the_model(data: Any) -> None:
    def losses(params: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return -dist.Normal(x @ params["slope"], params["scale"].exp()).log_prob(y)

    params = {"slope": torch.zeros(2), "scale": torch.tensor(0.0)}
    flat, weights = torch.randn(2, 3), torch.rand(2, 12)
    found = WeightedFunction(losses, data, params)(flat, weights)
    torch.testing.assert_close(found, WeightedPotential(regression, data)(flat, weights))
    index = torch.tensor([[0, 3, 3, 7], [11, 2, 5, 1]])
    part = WeightedFunction(losses, data, params, subsample_size=4)(flat, weights, index)
    wanted = WeightedPotential(regression, (*data, 4))(flat, weights, index)
    torch.testing.assert_close(part, wanted)


def test_starts_of_a_function() -> None:
    y = torch.zeros(4)
    loss = WeightedFunction(lambda p, y: y - p["a"], (y,), {"a": torch.tensor(2.0)})
    assert loss.start(range(3), 0).tolist() == [[2.0]] * 3

    def strategy() -> dict[str, Tensor]:
        return {"a": torch.randn(())}

    starts = loss.start(range(3), 0, strategy)
    assert len(starts.unique()) == 3
    assert torch.equal(loss.start([1], 0, strategy)[0], starts[1])
    with pytest.raises(ValueError, match=r"init_strategy\(\) has the sites \['b'\]"):
        loss.start([0], 0, lambda: {"b": torch.zeros(())})


def local(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(loc, 1.0), obs=x)


def two_plates(x: Tensor) -> None:
    loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
    with pyro.plate("rows", 4, dim=-1), pyro.plate("columns", 3, dim=-2):
        pyro.sample("x", dist.Normal(loc, 1.0), obs=x)


def with_factors(x: Tensor) -> None:
    loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
    pyro.factor("penalty", -3.0 * loc**2)
    with pyro.plate("data", len(x)):
        pyro.factor("point", -(loc**4).expand(len(x)))
        pyro.sample("x", dist.Normal(loc, 1.0), obs=x)


def by_factor(x: Tensor) -> None:
    loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.factor("x", dist.Normal(loc, 1.0).log_prob(x))


def outside(x: Tensor) -> None:
    loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(loc, 1.0), obs=x)
    with pyro.plate("other", 3):
        pyro.sample("z", dist.Normal(loc, 1.0), obs=torch.zeros(3))


def fixed_size(x: Tensor) -> None:
    loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
    with pyro.plate("rows", 4):
        pyro.sample("x", dist.Normal(loc, 1.0), obs=x[:4])


def test_bad_input(subtests: pytest.Subtests) -> None:
    four, plate = (torch.zeros(4),), "data"
    for model, data, options, message in (
        (local, four, {}, "'loc' stands in the plate 'data'"),
        (two_plates, (torch.zeros(3, 4),), {}, r"one of \['columns', 'rows'\], got None"),
        (two_plates, (torch.zeros(3, 4),), {"plate": plate}, "got 'data'"),
        (outside, four, {"plate": plate}, r"must stand in the plate 'data'.*\['z'\] do not"),
        (by_factor, four, {"plate": "points"}, r"one of \['data'\], got 'points'"),
    ):
        with subtests.test(message), pytest.raises(ValueError, match=message):
            WeightedPotential(model, data, **options)
    with pytest.raises(ValueError, match="with 6 rows the plate has 4 elements"):
        WeightedPotential(fixed_size, four).with_rows([torch.zeros(6)])
    start = {"a": torch.zeros(())}
    with pytest.raises(ValueError, match="as many rows each"):
        WeightedFunction(lambda p, x, y: x, (torch.zeros(4), torch.zeros(3)), start)
    with pytest.raises(ValueError, match=r"loss_fn must return the shape \(4,\).*got \(\)"):
        WeightedFunction(lambda p, x: x.sum(), four, start)


def test_the_plate_may_be_one_of_several() -> None:
    x = torch.randn(3, 4)
    loss = WeightedPotential(two_plates, (x,), plate="columns")
    weights = torch.rand(1, 3)
    value, _ = loss(torch.zeros(1, 1), weights)
    expected = -(dist.Normal(0.0, 1.0).log_prob(x) * weights[0][:, None]).sum()
    torch.testing.assert_close(value[0], expected)


@pytest.mark.parametrize("prior_weight", [0.0, 0.25])
def test_a_factor_counts_with_the_data_or_with_the_prior(prior_weight: float) -> None:
    x, weights = torch.randn(4), torch.rand(4)
    loss = WeightedPotential(with_factors, (x,), prior_weight=prior_weight)
    value, gradient = loss(torch.tensor([[0.7]]), weights[None])
    loc = torch.tensor(0.7, requires_grad=True)
    prior = dist.Normal(0.0, 1.0).log_prob(loc) - 3.0 * loc**2
    expected = -(weights * (dist.Normal(loc, 1.0).log_prob(x) - loc**4)).sum()
    expected = expected - prior_weight * prior
    torch.testing.assert_close(value[0], expected.detach())
    torch.testing.assert_close(gradient[0, 0], torch.autograd.grad(expected, loc)[0])


def test_a_likelihood_may_be_a_factor() -> None:
    x, weights = torch.randn(4), torch.rand(1, 4)
    value, _ = WeightedPotential(by_factor, (x,))(torch.tensor([[0.3]]), weights)
    torch.testing.assert_close(value[0], -(weights * dist.Normal(0.3, 1.0).log_prob(x)).sum())
