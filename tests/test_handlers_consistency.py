"""The handler that draws predictions to a teacher's."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO, TraceEnum_ELBO, config_enumerate
from pyro.infer.autoguide import AutoDelta
from pyro.nn import PyroModule, PyroParam, PyroSample
from torch import nn

from pyro_ext.handlers import consistency
from pyro_ext.nn import MeanTeacher
from pyro_ext.potential import Potential


def normal(loc):
    def model(x, size=None):
        with pyro.plate("data", len(x), subsample_size=size) as index:
            return pyro.sample("x", dist.Normal(loc, 0.5), obs=x[index])

    return model


def factor(model, *args):
    return poutine.trace(model).get_trace(*args).nodes["consistency"]["fn"].log_factor


def test_of_normal_sites_it_is_the_squared_distance():
    found = factor(consistency(normal(1.0), ["x"], 0.3)(normal(3.0)), torch.zeros(7))
    assert float(found) == pytest.approx(-0.3 * 7 * 2.0**2 / (2 * 0.25))


def test_scales_and_masks_of_the_model_count_once():
    x = torch.zeros(8)
    drawn = consistency(normal(1.0), ["x"])(normal(2.0))
    whole = float(factor(drawn, x))
    assert float(factor(drawn, x, 2)) == pytest.approx(whole)

    def masked(loc):
        def model(x):
            with pyro.plate("data", 8), poutine.mask(mask=torch.arange(8) < 2):
                law = dist.Normal(loc, 0.5).expand([8]).mask(torch.arange(8) > 0)
                pyro.sample("x", law, obs=x)

        return model

    found = factor(consistency(masked(1.0), ["x"])(masked(2.0)), x)
    assert float(found) == pytest.approx(whole / 8)
    trace = poutine.trace(poutine.scale(drawn, 3.0)).get_trace(x)
    assert float(trace.log_prob_sum()) == pytest.approx(
        3 * float(poutine.trace(drawn).get_trace(x).log_prob_sum())
    )


@pytest.mark.parametrize("vectorize", [False, True])
def test_each_particle_has_its_own_factor(vectorize):
    """Of a latent value that moves the student away; exact under a guide that is known."""

    def model(x, shift):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(shift * z, 1.0), obs=x)

    def guide(x):
        pyro.sample("z", dist.Normal(0.0, 1.0))

    x, weight = torch.zeros(5), 3.0
    plain, teacher = (lambda x, shift=shift: model(x, shift) for shift in (1.0, 0.0))
    elbo = Trace_ELBO(num_particles=400, vectorize_particles=vectorize, max_plate_nesting=1)
    losses = []
    for drawn in (plain, consistency(teacher, ["x"], weight)(plain)):
        pyro.set_rng_seed(0)
        losses.append(elbo.loss(drawn, guide, x))
    pyro.set_rng_seed(0)
    size = (400,) if vectorize else ()
    z = torch.stack([dist.Normal(0.0, 1.0).sample(size) for _ in range(1 if vectorize else 400)])
    expected = weight * 5 * float(z.square().mean()) / 2
    assert losses[1] - losses[0] == pytest.approx(expected, rel=1e-4)


def test_plates_around_the_model():
    drawn = consistency(normal(1.0), ["x"])(normal(3.0))
    x = torch.zeros(7)
    alone = float(factor(drawn, x))

    def around():
        with pyro.plate("around", 4, dim=-2):
            drawn(x)

    trace = poutine.trace(around).get_trace()
    trace.compute_log_prob()
    assert float(trace.nodes["consistency"]["log_prob_sum"]) == pytest.approx(4 * alone)


def mixture(loc, in_plate):
    @config_enumerate
    def model(x):
        law = dist.Categorical(torch.tensor([0.3, 0.7]))
        k = None if in_plate else pyro.sample("k", law)
        with pyro.plate("data", len(x)):
            k = pyro.sample("k", law) if in_plate else k
            pyro.sample("x", dist.Normal(loc[k], 1.0), obs=x)

    return model


def test_sites_that_are_enumerated():
    x, own, other = torch.randn(6), torch.tensor([0.0, 1.0]), torch.tensor([0.5, -1.0])
    elbo = TraceEnum_ELBO(max_plate_nesting=1)
    drawn = consistency(mixture(other, False), ["x"])(mixture(own, False))
    joint = dist.Normal(own[:, None], 1.0).log_prob(x).sum(1) - 6 * (own - other) ** 2 / 2
    expected = (torch.tensor([0.3, 0.7]).log() + joint).logsumexp(0)
    assert -elbo.loss(drawn, lambda x: None, x) == pytest.approx(float(expected), rel=1e-5)
    with pytest.raises(ValueError, match=r"sites names 'x', which depends on 'k': that is enumer"):
        elbo.loss(consistency(mixture(other, True), ["x"])(mixture(own, True)), lambda x: None, x)


def test_latent_values_and_subsamples_are_shared():
    seen = []

    def model(x):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x), subsample_size=3) as index:
            pyro.sample("x", dist.Normal(z + x[index], 1.0), obs=x[index])
        seen.append((float(z), index.tolist()))

    assert factor(consistency(model, ["x"])(model), torch.randn(20)) == 0.0
    assert seen[0] == seen[1]


def test_no_weight_leaves_the_model_and_nothing_of_the_teacher_is_seen():
    def teacher(x):
        raise AssertionError("it is not run")

    model = normal(1.0)
    assert consistency(teacher, ["x"], 0.0)(model) is model
    trace = poutine.trace(consistency(normal(0.0), ["x"])(model)).get_trace(torch.zeros(2))
    assert [n for n, node in trace.nodes.items() if node["type"] == "sample"] == [
        "data",
        "x",
        "consistency",
    ]


def test_other_families():
    def classes(logits):
        def model(y):
            with pyro.plate("data", len(y)):
                pyro.sample("y", dist.Categorical(logits=logits), obs=y)

        return model

    own, other = torch.randn(5, 3), torch.randn(5, 3)
    found = factor(consistency(classes(other), ["y"])(classes(own)), torch.zeros(5))
    log_own, log_other = own.log_softmax(-1), other.log_softmax(-1)
    torch.testing.assert_close(found, -(log_other.exp() * (log_other - log_own)).sum())


class Line(PyroModule):
    """A model with a parameter of each kind, which the parameter store knows by name."""

    def __init__(self):
        super().__init__()
        self.layer = PyroModule[nn.Linear](2, 1)
        self.scale = PyroParam(torch.tensor(1.0), dist.constraints.positive)
        self.shift = PyroSample(dist.Normal(0.0, 1.0))

    def forward(self, x):
        loc = self.scale * self.layer(x)[:, 0] + self.shift
        with pyro.plate("data", len(x)):
            return pyro.sample("y", dist.Normal(loc, 1.0), obs=x[:, 0])


def test_the_teacher_has_parameters_of_its_own():
    """The store holds the student's under the same names."""
    pyro.clear_param_store()
    torch.manual_seed(0)
    line, x = Line(), torch.randn(30, 2)
    teacher = MeanTeacher(line, 1.0)
    model = consistency(teacher, ["y"])(line)
    guide = AutoDelta(line)
    start = {name: value.clone() for name, value in teacher.teacher.named_parameters()}
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.1}), Trace_ELBO())
    losses = [svi.step(x) for _ in range(5)]
    assert losses[-1] < losses[0]
    for name, value in teacher.teacher.named_parameters():
        assert torch.equal(value, start[name]) and not value.requires_grad and value.grad is None
    assert not torch.equal(line.layer.weight, start["layer.weight"])
    with poutine.condition(data={"shift": torch.tensor(0.0)}):
        found = factor(model, x)
        own = line.scale * nn.functional.linear(x, line.layer.weight, line.layer.bias)[:, 0]
    scale = start["scale_unconstrained"].exp()
    taught = scale * nn.functional.linear(x, start["layer.weight"], start["layer.bias"])[:, 0]
    torch.testing.assert_close(found, -(own - taught).square().sum() / 2)
    assert float(found.detach()) < -1e-3
    pyro.clear_param_store()


def test_it_is_a_prior_around_the_prediction():
    """The gradient is that of a normal prior, by finite differences."""
    x = torch.randn(6, dtype=torch.float64)

    def value(loc):
        return factor(consistency(normal(torch.tensor(0.7).double()), ["x"])(normal(loc)), x)

    loc = torch.tensor(0.2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(value, loc)


def test_a_potential_of_a_model_with_it():
    x = torch.randn(6)

    def model(x):
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(loc, 0.5), obs=x)

    drawn = consistency(normal(1.0), ["x"])(model)
    at = {"loc": torch.tensor([0.3])}
    added = Potential(drawn, x)(at) - Potential(model, x)(at)
    assert float(added) == pytest.approx(6 * 0.7**2 / (2 * 0.25), rel=1e-4)


def test_wrong_names_and_families_are_refused():
    x = torch.zeros(3)
    with pytest.raises(ValueError, match="sites names 'y', which is no sample site of the model"):
        consistency(normal(0.0), ["y"])(normal(0.0))(x)
    with pytest.raises(ValueError, match="'x', which is no sample site of the teacher"):
        consistency(lambda x: None, ["x"])(normal(0.0))(x)

    def cauchy(x):
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.StudentT(3.0), obs=x)

    with pytest.raises(ValueError, match="divergence of Normal"):
        consistency(cauchy, ["x"])(normal(0.0))(x)

    def vector(size):
        return lambda x: pyro.sample("x", dist.Normal(torch.zeros(size), 1.0).to_event(1))

    with pytest.raises(ValueError, match=r"the shape \(2,\) in the model and \(3,\) in the tea"):
        consistency(poutine.condition(vector(3), {"x": x}), ["x"])(vector(2))(x)
