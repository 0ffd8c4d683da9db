"""The handler that purifies what a model observes."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import Tensor

from pyro_ext.handlers import purify


def halved(x: Tensor) -> Tensor:
    return x / 2


def plain(x: Tensor, size: int | None = None) -> None:
    loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x), subsample_size=size) as index:
        pyro.sample("x", dist.Normal(loc, 1.0).expand([3]).to_event(1), obs=x[index])
        pyro.sample("y", dist.Normal(loc, 1.0), obs=x[index, 0])


def classifier(x: Tensor) -> Tensor:
    weight = pyro.sample("weight", dist.Normal(torch.zeros(3), 1.0).to_event(1))
    with pyro.plate("data", len(x)):
        x = pyro.deterministic("x", x, event_dim=1)
        return pyro.sample("label", dist.Bernoulli(logits=x @ weight))


@pytest.mark.parametrize("size", [None, 4])
def test_observed_sites_are_purified_where_the_model_looks(size):
    x, shapes = torch.randn(7, 3), []

    def purifier(x: Tensor) -> Tensor:
        shapes.append(x.shape)
        return halved(x)

    nodes = poutine.trace(purify(purifier, ["x"])(plain)).get_trace(x, size).nodes
    index = nodes["data"]["value"]
    assert torch.equal(nodes["x"]["value"], x[index] / 2) and shapes == [(len(index), 3)]
    assert torch.equal(nodes["y"]["value"], x[index, 0])
    assert nodes["x"]["scale"] == 7 / len(index)


def test_the_density_is_that_of_purified_data():
    x = torch.randn(7, 3)
    purified = purify(halved, ["x"])(plain)
    loc = poutine.trace(purified).get_trace(x).nodes["loc"]["value"]
    given = {"loc": loc}
    found, other = (
        poutine.trace(poutine.condition(model, given)).get_trace(data).nodes["x"]
        for model, data in ((purified, x), (plain, x / 2))
    )
    torch.testing.assert_close(
        found["fn"].log_prob(found["value"]), other["fn"].log_prob(other["value"])
    )


def test_inputs_are_purified_before_the_model_goes_on():
    x, weight = torch.randn(5, 3), torch.tensor([1.0, -2.0, 0.5])
    model = purify(halved, ["x"])(poutine.condition(classifier, {"weight": weight}))
    trace = poutine.trace(model).get_trace(x)
    torch.testing.assert_close(trace.nodes["label"]["fn"].logits, x @ weight / 2)
    assert torch.equal(trace.nodes["x"]["value"], x / 2)
    assert torch.equal(trace.nodes["x"]["fn"].base_dist.v, x / 2)
    trace.compute_log_prob()
    assert trace.nodes["x"]["log_prob_sum"] == 0.0


def test_crossed_plates_become_one_dimension():
    shapes = []

    def model(x: Tensor) -> None:
        with pyro.plate("rows", 2, dim=-2), pyro.plate("columns", 3, dim=-1):
            pyro.sample("x", dist.Normal(0.0, 1.0).expand([1, 4]).to_event(2), obs=x)

    def purifier(x: Tensor) -> Tensor:
        shapes.append(x.shape)
        return x + torch.arange(6.0)[:, None, None]

    x = torch.zeros(2, 3, 1, 4)
    value = poutine.trace(purify(purifier, ["x"])(model)).get_trace(x).nodes["x"]["value"]
    assert shapes == [(6, 1, 4)]
    assert torch.equal(value[..., 0, 0], torch.arange(6.0).reshape(2, 3))


def test_sequential_plates_and_inputs_without_plates_need_event_dim():
    def sequential(x: Tensor) -> None:
        for index in pyro.plate("data", len(x)):
            pyro.sample(f"x_{index}", dist.Normal(torch.zeros(3), 1.0).to_event(1), obs=x[index])

    x = torch.randn(2, 3)
    for model, names in (
        (sequential, ["x_0", "x_1"]),
        (lambda x: pyro.deterministic("x", x), ["x"]),
    ):
        with pytest.raises(ValueError, match="event_dim must say how many dimensions of 'x"):
            purify(halved, names)(model)(x)
        nodes = poutine.trace(purify(halved, names, event_dim=1)(model)).get_trace(x).nodes
        found = torch.cat([nodes[name]["value"].reshape(-1, 3) for name in names])
        assert torch.equal(found, x / 2)
    with pytest.raises(ValueError, match="event_dim must be at most"):
        purify(halved, ["x"], event_dim=3)(model)(x)


def test_errors_name_the_site():
    x = torch.randn(4, 3)
    with pytest.raises(ValueError, match=r"sites names \['z'\], which are no sample sites"):
        purify(halved, ["x", "z"])(plain)(x)
    with pytest.raises(ValueError, match="sites names 'loc', which is a latent site"):
        purify(halved, ["loc"])(plain)(x)
    with pytest.raises(ValueError, match=r"sites names \['data'\]"):
        purify(halved, ["data"])(plain)(x)
    with pytest.raises(ValueError, match=r"purifier must keep the shape of values \(4, 3\)"):
        purify(lambda x: x[:2], ["x"])(plain)(x)
