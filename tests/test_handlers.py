"""Handlers change what a model observes, whatever runs the model."""

from contextlib import ExitStack

import hypothesis.strategies as st
import pyro
import pyro.distributions as dist
import pytest
import torch
from hypothesis import given
from pyro import poutine
from pyro.infer import NUTS, SVI, Trace_ELBO
from pyro.infer.autoguide import AutoNormal
from pyro.infer.reparam import LocScaleReparam
from torch import Tensor

from pyro_ext.handlers import data_weights, replace_observations, subsample_instances
from pyro_ext.inference import MCMC, SGLD
from pyro_ext.potential import Potential

BACKENDS = ("eager", "trace", "compile")


def crossed(x: Tensor, size: int | None = None) -> None:
    """Two subsampled plates, one inside the other, a local latent variable and an event."""
    loc = pyro.sample("loc", dist.Normal(torch.zeros(4), 1.0).to_event(1))
    with pyro.plate("rows", 10, subsample_size=size and 3, dim=-1) as row:
        shift = pyro.sample("shift", dist.Normal(0.0, 1.0))
        with pyro.plate("columns", 6, subsample_size=size and 2, dim=-2) as column:
            normal = dist.Normal(loc + shift[..., None], 1.0).to_event(1)
            pyro.sample("x", normal, obs=x[column][:, row])


def plain(x: Tensor, size: int | None = None) -> None:
    loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x), subsample_size=size) as index:
        pyro.sample("x", dist.Normal(loc, 1.0), obs=x[index])


@pytest.fixture
def pair() -> tuple[Tensor, Tensor]:
    return torch.randn(6, 10, 4), torch.randn(6, 10, 4)


@pytest.mark.parametrize(
    "backend", [*BACKENDS[:2], pytest.param("compile", marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("size", [None, 3])
def test_potential_is_that_of_the_other_data(pair, size, backend):
    own, other = pair
    replaced = Potential(replace_observations(crossed, {"x": other}), own, size, backend=backend)
    wanted = Potential(crossed, other, size, backend=backend)
    z = wanted.init(3, seed=0)
    subsample = {
        plate.name: torch.stack([torch.randperm(plate.size) for _ in range(3)])[
            :, : plate.subsample_size
        ]
        for plate in wanted.subsampled_plates
    }
    torch.testing.assert_close(replaced(z, subsample), wanted(z, subsample))
    torch.testing.assert_close(replaced.full(z), wanted.full(z))
    assert not torch.allclose(replaced.full(z), Potential(crossed, own, size).full(z))
    gradients = replaced.value_and_grad(z, subsample)[1], wanted.value_and_grad(z, subsample)[1]
    torch.testing.assert_close(*gradients)
    torch.testing.assert_close(replaced.observations()["x"], other)


def test_each_subsample_gets_its_own_elements():
    """A plate that is sampled by Pyro itself, run by run."""
    data = torch.arange(20.0)
    model = replace_observations(plain, {"x": data})
    seen = set()
    for _ in range(10):
        trace = poutine.trace(model).get_trace(torch.zeros(20), 5)
        index, value = trace.nodes["data"]["value"], trace.nodes["x"]["value"]
        torch.testing.assert_close(value, data[index])
        seen.update(index.tolist())
    assert len(seen) > 10


@given(
    plates=st.lists(
        st.integers(1, 4).flatmap(
            lambda size: st.tuples(st.just(size), st.integers(1, size), st.booleans())
        ),
        max_size=3,
    ),
    event_shape=st.sampled_from([(), (2,), (2, 3)]),
)
def test_any_nest_of_plates_sees_its_elements(plates, event_shape):
    """Of plates that subsample and of data that broadcast along some of them."""
    names = [f"plate_{number}" for number in range(len(plates))]

    def model() -> Tensor:
        with ExitStack() as stack:
            for number, (size, subsample_size, _) in enumerate(plates):
                dim = number - len(plates)
                stack.enter_context(pyro.plate(names[number], size, subsample_size, dim=dim))
            distribution = dist.Normal(torch.zeros(event_shape), 1.0).to_event(len(event_shape))
            return pyro.sample("x", distribution)

    full = [size for size, _, _ in plates]
    data = torch.randn([1 if is_shared else size for size, _, is_shared in plates] + [*event_shape])
    nodes = poutine.trace(replace_observations(model, {"x": data})).get_trace().nodes
    wanted = data.expand([*full, *event_shape])
    for number, name in enumerate(names):
        wanted = wanted.index_select(number, torch.as_tensor(nodes[name]["value"]))
    value = nodes["x"]["value"]
    assert torch.equal(value.expand(wanted.shape), wanted)
    assert nodes["x"]["fn"].batch_shape == wanted.shape[: len(plates)]


def test_svi_with_minibatches_finds_the_other_data():
    torch.manual_seed(0)
    model = replace_observations(plain, {"x": torch.full((50,), 5.0)})
    guide = AutoNormal(model)
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.05}), Trace_ELBO())
    for _ in range(400):
        svi.step(torch.zeros(50), size=10)
    assert float(guide.median(torch.zeros(50), size=10)["loc"]) == pytest.approx(4.9, abs=0.3)


@pytest.mark.parametrize("kernel", [NUTS, SGLD])
def test_kernels_take_the_replaced_model(kernel):
    model = replace_observations(plain, {"x": torch.full((50,), 5.0)})
    mcmc = MCMC(kernel(model), 20, warmup_steps=300, seed=0, progress=False).run(torch.zeros(50))
    assert float(mcmc.get_samples()["loc"].mean()) == pytest.approx(4.9, abs=0.3)


def test_only_named_sites_are_replaced():
    def model() -> None:
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(loc, 1.0), obs=torch.tensor(1.0))
        pyro.sample("y", dist.Normal(loc, 1.0), obs=torch.tensor(2.0))

    replaced = replace_observations(model, {"y": torch.tensor(7.0)})
    nodes = poutine.trace(replaced).get_trace().nodes
    assert [float(nodes[name]["value"]) for name in ("x", "y")] == [1.0, 7.0]
    assert nodes["y"]["is_observed"] and not nodes["loc"]["is_observed"]


def test_a_site_without_data_of_its_own_becomes_observed():
    def model() -> Tensor:
        return pyro.sample("x", dist.Normal(pyro.sample("loc", dist.Normal(0.0, 1.0)), 1.0))

    replaced = replace_observations(model, {"x": torch.tensor(3.0)})
    assert float(replaced()) == 3.0
    assert list(Potential(replaced).observed_sites) == ["x"]


def test_what_follows_an_observation_sees_the_new_one():
    def model(x: Tensor) -> None:
        first = pyro.sample(
            "first", dist.Normal(pyro.sample("z", dist.Normal(0.0, 1.0)), 1.0), obs=x
        )
        pyro.deterministic("twice", 2.0 * first)

    replaced = replace_observations(model, {"first": torch.tensor(3.0)})
    assert float(poutine.trace(replaced).get_trace(torch.zeros(())).nodes["twice"]["value"]) == 6.0


def test_under_reparameterization_and_condition(pair):
    own, other = pair
    config = {"shift": LocScaleReparam(0.0)}
    inner = poutine.reparam(poutine.condition(crossed, data={"loc": torch.ones(4)}), config=config)
    outer = poutine.reparam(
        replace_observations(crossed, {"x": other, "loc": torch.ones(4)}), config
    )
    wanted = Potential(inner, other, 3)
    z = wanted.init(2, seed=0)
    for model in (replace_observations(inner, {"x": other}), outer):
        torch.testing.assert_close(Potential(model, own, 3).full(z), wanted.full(z))


def test_masked_observations():
    present = torch.tensor([True, False, True])

    def model(x: Tensor) -> None:
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        with pyro.plate("data", 3), poutine.mask(mask=present):
            pyro.sample("x", dist.Normal(loc, 1.0), obs=x)

    other = torch.tensor([1.0, 50.0, 2.0])
    replaced = Potential(replace_observations(model, {"x": other}), torch.zeros(3))
    z = {"loc": torch.tensor([0.5])}
    torch.testing.assert_close(replaced(z), Potential(model, other)(z))


def test_a_part_that_the_model_picks_is_taken_as_it_is():
    def model(x: Tensor) -> None:
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        with pyro.plate("data", 10, subsample=torch.tensor([4, 7])) as index:
            pyro.sample("x", dist.Normal(loc, 1.0), obs=x[index])

    other = torch.tensor([1.0, 2.0])
    replaced = replace_observations(model, {"x": other})
    potential = Potential(replaced, torch.zeros(10))
    torch.testing.assert_close(potential.observations()["x"], other)
    with pytest.raises(ValueError, match=r"data\['x'\] has shape \(10,\), wanted 2 elements"):
        replace_observations(model, {"x": torch.zeros(10)})(torch.zeros(10))


def test_sequential_plate():
    def model(x: Tensor) -> None:
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        for i in pyro.plate("data", 3):
            pyro.sample(f"x_{i}", dist.Normal(loc, 1.0), obs=x[i])

    data = {f"x_{i}": torch.tensor(float(i)) for i in range(3)}
    observed = Potential(replace_observations(model, data), torch.zeros(3)).observations()
    torch.testing.assert_close(observed, data)


def test_errors_name_site_and_plate():
    with pytest.raises(ValueError, match=r"data\['x'\] has shape \(5,\), wanted 20 elements along"):
        replace_observations(plain, {"x": torch.zeros(5)})(torch.zeros(20), 5)
    with pytest.raises(ValueError, match=r"data names \['y'\], which are no sample sites"):
        replace_observations(plain, {"y": torch.zeros(20)})(torch.zeros(20))

    def with_ratio(x: Tensor) -> None:
        pyro.deterministic("ratio", pyro.sample("loc", dist.Normal(0.0, 1.0)) * x)

    with pytest.raises(ValueError, match="'ratio', which is a deterministic site"):
        replace_observations(with_ratio, {"ratio": torch.ones(())})(torch.ones(()))

    plate = pyro.plate("early", 8, subsample_size=2)

    def late(x: Tensor) -> None:
        with plate as index:
            pyro.sample("x", dist.Normal(0.0, 1.0), obs=x[index])

    with pytest.raises(ValueError, match="plate 'early' subsamples and was created outside"):
        replace_observations(late, {"x": torch.zeros(8)})(torch.zeros(8))


def test_errors_of_the_model_come_through():
    def broken() -> None:
        raise RuntimeError("of the model")

    with pytest.raises(RuntimeError, match="of the model"):
        replace_observations(broken, {"x": torch.zeros(())})()


# Weights of observations ------------------------------------------------------------------------


def weighted_by_hand(model, weights, x, size=None):
    """Log joint of a run of ``plain``, with weights put in by hand."""
    trace = poutine.trace(model).get_trace(x, size)
    index = trace.nodes["data"]["value"]
    loc = trace.nodes["loc"]["value"]
    scale = len(x) / len(index)
    likelihood = dist.Normal(loc, 1.0).log_prob(x[index]) * weights[index]
    return trace, dist.Normal(0.0, 1.0).log_prob(loc) + scale * likelihood.sum()


@pytest.mark.parametrize("size", [None, 3])
def test_weighted_density(size):
    x, weights = torch.randn(10), torch.rand(10)
    trace, wanted = weighted_by_hand(data_weights("data", weights)(plain), weights, x, size)
    torch.testing.assert_close(trace.log_prob_sum(), wanted)


@pytest.mark.parametrize("backend", BACKENDS[:2])
@pytest.mark.parametrize("size", [None, 3])
def test_weighted_potential(size, backend):
    """Over all of the data it is the weighted sum, whatever part of it a minibatch sees."""
    x, weights = torch.randn(10), torch.rand(10)
    potential = Potential(data_weights("data", weights)(plain), x, size, backend=backend)
    loc = torch.tensor([0.3, -1.0])
    likelihood = dist.Normal(loc[:, None], 1.0).log_prob(x) @ weights
    wanted = -dist.Normal(0.0, 1.0).log_prob(loc) - likelihood
    torch.testing.assert_close(potential.full({"loc": loc}), wanted)


def test_weights_in_crossed_plates():
    """They follow the dimension of their plate; latent sites in it keep their densities."""
    x, weights = torch.randn(6, 10, 4), torch.rand(6)
    pyro.set_rng_seed(0)
    plain_trace = poutine.trace(crossed).get_trace(x, 1)
    pyro.set_rng_seed(0)
    trace = poutine.trace(data_weights("columns", weights)(crossed)).get_trace(x, 1)
    plain_trace.compute_log_prob()
    trace.compute_log_prob()
    for name in ("loc", "shift"):
        assert torch.equal(trace.nodes[name]["log_prob"], plain_trace.nodes[name]["log_prob"])
    column = trace.nodes["columns"]["value"]
    torch.testing.assert_close(
        trace.nodes["x"]["log_prob"], plain_trace.nodes["x"]["log_prob"] * weights[column][:, None]
    )


def test_weights_follow_the_order_of_a_given_subsample():
    """Of a plate at its full size too."""

    def model():
        with pyro.plate("data", 4, subsample=torch.tensor([3, 2, 1, 0])):
            pyro.sample("x", dist.Normal(0.0, 1.0), obs=torch.zeros(4))

    weighted = data_weights("data", torch.tensor([1.0, 2.0, 3.0, 4.0]))(model)
    scale = poutine.trace(weighted).get_trace().nodes["x"]["scale"]
    assert scale.tolist() == [4.0, 3.0, 2.0, 1.0]


def test_weights_of_a_sequential_plate():
    x, weights = torch.randn(5), torch.rand(5)

    def model():
        for i in pyro.plate("data", 5, subsample_size=3):
            pyro.sample(f"x{int(i)}", dist.Normal(0.0, 1.0), obs=x[i])

    trace = poutine.trace(data_weights("data", weights)(model)).get_trace()
    index = trace.nodes["data"]["value"]
    wanted = (dist.Normal(0.0, 1.0).log_prob(x[index]) * weights[index]).sum() * 5 / 3
    torch.testing.assert_close(trace.log_prob_sum(), wanted)


def test_bad_weights():
    x = torch.randn(4)
    with pytest.raises(ValueError, match="weights must hold 4 numbers.*'data', got 3"):
        data_weights("data", torch.ones(3))(plain)(x)
    with pytest.raises(ValueError, match="no observed site in a plate named 'rows'"):
        data_weights("rows", torch.ones(4))(plain)(x)


# Instances of bags ------------------------------------------------------------------------------


def bag(x: Tensor, label: Tensor) -> Tensor:
    """A label of the largest of some instances, whose latent means have plates of their own."""
    slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
    with pyro.plate("instances", len(x)) as index:
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(loc, 1.0), obs=x[index])
        subsampled = pyro.subsample(x, event_dim=0)
    assert torch.equal(subsampled, x[index])
    pyro.sample("label", dist.Bernoulli(logits=slope * x[index].max()), obs=label)
    return x[index]


@pytest.mark.parametrize("rate", [0.01, 0.3, 0.5, 1.0])
def test_a_part_of_a_bag_is_a_bag(rate):
    """Density and gradient are those of the model of the subset, without a factor."""
    x, label = torch.randn(11), torch.tensor(1.0)
    seeded = [torch.Generator().manual_seed(seed) for seed in (0, 0, 1)]
    handlers = [subsample_instances("instances", rate, generator) for generator in seeded]
    runs = [[handler(bag)(x, label) for _ in range(5)] for handler in handlers]
    assert {len(kept) for kept in runs[0]} == {max(1, round(rate * 11))}
    assert torch.equal(torch.stack(runs[0]), torch.stack(runs[1]))
    assert torch.equal(torch.stack(runs[0]), torch.stack(runs[2])) == (rate == 1.0)
    trace = poutine.trace(handlers[0](bag)).get_trace(x, label)
    kept = x[trace.nodes["instances"]["value"]]
    values = {name: trace.nodes[name]["value"] for name in ("slope", "loc")}
    wanted = poutine.trace(poutine.condition(bag, data=values)).get_trace(kept, label)
    torch.testing.assert_close(trace.log_prob_sum(), wanted.log_prob_sum())
    pyro.set_rng_seed(0)
    first = subsample_instances("instances", rate)(bag)(x, label)
    pyro.set_rng_seed(0)
    assert torch.equal(first, subsample_instances("instances", rate)(bag)(x, label))


@pytest.mark.statistical
@pytest.mark.parametrize(("num_positive", "expected"), [(2, 0.2436), (4, 0.0530)])
def test_positive_instances_get_lost(num_positive, expected):
    """Hypergeometric, 40 instances at a rate of one half; false alarms: 6e-5."""

    def model() -> Tensor:
        with pyro.plate("instances", 40) as index:
            return (index < num_positive).any()

    handler = subsample_instances("instances", 0.5, torch.Generator().manual_seed(0))
    found = torch.stack([handler(model)() for _ in range(4000)])
    error = (expected * (1.0 - expected) / 4000) ** 0.5
    assert float((~found).float().mean()) == pytest.approx(expected, abs=4.0 * error)


def test_other_plates_scale_as_always():
    """Bags are a minibatch that stands for all; a sequential plate of instances, too."""
    x, labels = torch.randn(8, 6), torch.ones(8)

    def model() -> None:
        with pyro.plate("bags", 8, subsample_size=2, dim=-2) as bags:
            with pyro.plate("instances", 6, dim=-1) as index:
                pyro.sample("x", dist.Normal(0.0, 1.0), obs=x[bags][:, index])
            pyro.sample("label", dist.Bernoulli(0.5), obs=labels[bags][:, None])
        for i in pyro.plate("instances again", 6):
            pyro.sample(f"x{int(i)}", dist.Normal(0.0, 1.0), obs=x[0, i])

    handled = subsample_instances("instances again", 0.5)(
        subsample_instances("instances", 0.5)(model)
    )
    nodes = poutine.trace(handled).get_trace().nodes
    assert nodes["x"]["value"].shape == (2, 3)
    assert nodes["x"]["scale"] == pytest.approx(4.0) == nodes["label"]["scale"]
    scales = [node["scale"] for name, node in nodes.items() if name in {f"x{i}" for i in range(6)}]
    assert scales == pytest.approx([1.0, 1.0, 1.0])


def test_svi_trains_a_network_of_bags():
    """The guide has sites in the plate: model and guide look at the same instances."""
    torch.manual_seed(0)
    labels = (torch.arange(20) % 2).float()
    x = torch.randn(20, 8)
    x[labels == 1, :4] += 6.0

    def model(x: Tensor, label: Tensor) -> None:
        slope = pyro.param("slope", torch.tensor(0.0))
        shift = pyro.param("shift", torch.tensor(0.0))
        with pyro.plate("instances", len(x)) as index:
            pyro.sample("noise", dist.Normal(0.0, 1.0))
        logits = slope * x[index].max() + shift
        pyro.sample("label", dist.Bernoulli(logits=logits), obs=label)

    handler = subsample_instances("instances", 0.5, torch.Generator().manual_seed(0))
    guide = AutoNormal(handler(model))
    svi = SVI(handler(model), handler(guide), pyro.optim.Adam({"lr": 0.1}), Trace_ELBO())
    for step in range(100):
        svi.step(x[step % 20], labels[step % 20])
    kept = poutine.trace(handler(guide)).get_trace(x[0], labels[0])
    replayed = poutine.trace(poutine.replay(handler(model), kept)).get_trace(x[0], labels[0])
    for nodes in (kept.nodes, replayed.nodes):
        assert torch.equal(nodes["instances"]["value"], kept.nodes["instances"]["value"])
        assert nodes["noise"]["scale"] == pytest.approx(1.0)
        assert len(nodes["noise"]["value"]) == 4
    with torch.no_grad():
        logits = pyro.param("slope") * x.amax(1) + pyro.param("shift")
    assert float(((logits > 0).float() == labels).float().mean()) > 0.8


def test_what_cannot_be_subsampled():
    x, label = torch.randn(4), torch.tensor(1.0)
    with pytest.raises(ValueError, match="the model makes no plate named 'patches'"):
        subsample_instances("patches", 0.5)(bag)(x, label)
    with pytest.raises(ValueError, match="plate 'instances' must have elements, got none"):
        subsample_instances("instances", 0.5)(bag)(x[:0], label)
    handler = subsample_instances("data", 0.5)
    with pytest.raises(ValueError, match="'data' must not subsample itself, got subsample_size=3"):
        handler(plain)(x, 3)

    def picks() -> None:
        pyro.plate("data", 4, subsample=torch.tensor([1, 2]))

    with pytest.raises(ValueError, match="'data' must not subsample itself, got a subsample of 4"):
        handler(picks)()
    with pytest.raises(ValueError, match="draws random numbers of its own"):
        Potential(handler(plain), x)
