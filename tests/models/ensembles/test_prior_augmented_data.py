"""Prior augmented data: weights, divergences, streams of their own, and what becomes of a model."""

from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO, TraceMeanField_ELBO
from pyro.infer.autoguide import AutoDelta, AutoNormal
from pyro.nn import PyroModule, PyroSample
from torch import nn
from torch.distributions import kl_divergence

from pyro_ext.inference.training import ShuffledBatches, Trainer, TrainingDiverged
from pyro_ext.models.ensembles import PriorAugmentedELBO, PseudoInputGenerator, prior_weight
from pyro_ext.nn import MLP

X = torch.randn(24, 3, generator=torch.Generator().manual_seed(0))
Y = X.sum(1).sin()


def elbo(generator=None, prior=None, **options):
    torch.manual_seed(5)
    generator = generator or PseudoInputGenerator(3, 8)
    return PriorAugmentedELBO(generator, prior or dist.Normal(0.0, 1.0), **{"seed": 1, **options})


def network(*extra, seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 16), *extra, nn.ReLU(), nn.Linear(16, 2))


class Regression(PyroModule):
    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x, y=None):
        loc, log_variance = self.net(x).unbind(-1)
        with pyro.plate("data", len(x)):
            return pyro.sample("obs", dist.Normal(loc, (log_variance / 2).exp()), obs=y)


def no_guide(*args, **kwargs):
    pass


def trained(module, loss, num_steps=8, guide=no_guide, **options):
    """Parameters of a model after some steps."""
    options = {"seed": 2, **options}
    trainer = Trainer(module, partial(torch.optim.Adam, lr=0.01), **options)
    trainer.run(
        lambda x, y: loss.differentiable_loss(module, guide, x, y),
        num_steps,
        ShuffledBatches(X, Y, batch_size=10),
        progress=False,
    )
    return torch.cat([tensor.double().flatten() for tensor in module.state_dict().values()])


def test_weights():
    data = torch.zeros(3, 10)
    data[1:] += 100.0
    points = torch.zeros(4, 10)
    points[:, 0] = torch.tensor([0.0, 2.5, 10.0, 40.0]).sqrt()
    found = prior_weight(points, data, 0.5)
    assert found[:3].tolist() == pytest.approx([0.0, 0.39347, 0.86466], abs=5.1e-6)
    assert found[0] == 0.0 and (found.diff() > 0).all()


@pytest.mark.parametrize("option", [{"weight": 0.0}, {"lengthscale": 1e30}])
def test_without_weight_it_is_the_baseline(option):
    """Bit for bit, with dropout, buffers and minibatches: it draws from a stream of its own."""

    def module():
        return Regression(network(nn.BatchNorm1d(16), nn.Dropout(0.3)))

    plain = trained(module(), Trace_ELBO())
    assert torch.equal(trained(module(), elbo(**option)), plain)
    assert not torch.equal(trained(module(), elbo()), plain)


def test_without_weight_svi_is_the_baseline():
    """With draws of a guide, by loss_and_grads of the elbo within."""
    losses = []
    for loss in (Trace_ELBO(), elbo(weight=0.0), elbo()):
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        model = bayesian()
        guide = AutoNormal(model)
        svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), loss)
        losses.append([svi.step(X, Y) for _ in range(5)])
    assert losses[0] == losses[1] and losses[0] != losses[2]


def bayesian():
    torch.manual_seed(0)
    net = PyroModule[nn.Linear](3, 2)
    net.weight = PyroSample(dist.Normal(0.0, 1.0).expand([2, 3]).to_event(2))
    return Regression(net)


@pytest.mark.parametrize(
    ("guide", "kind"), [(AutoNormal, TraceMeanField_ELBO), (AutoDelta, Trace_ELBO)]
)
def test_guides(guide, kind):
    pyro.clear_param_store()
    model = bayesian()
    found = elbo(elbo=kind())
    svi = SVI(model, guide(model), pyro.optim.Adam({"lr": 0.02}), found)
    losses = [svi.step(X, Y) for _ in range(20)]
    assert sum(losses[-5:]) < sum(losses[:5]) and svi.evaluate_loss(X, Y) < losses[0]


def test_terms_of_the_loss():
    """The divergences, each with its weight, in the scale of the likelihood."""
    net = network()

    def model(x, y=None):
        loc, log_scale = net(x).unbind(-1)
        with pyro.plate("data", len(x)), pyro.poutine.scale(scale=2.5):
            pyro.sample("obs", dist.Normal(loc, log_scale.exp()), obs=y)

    options = dict(optimizer=partial(torch.optim.SGD, lr=1e-30))
    first, second = elbo(**options), elbo(**options)
    found = first.differentiable_loss(model, no_guide, X, Y)
    found = float((found - Trace_ELBO().differentiable_loss(model, no_guide, X, Y)).detach())
    with second._undisturbed():
        torch.randn(24, 8)  # those of the generator's step
        made = second._made(X)
    made = made.detach()
    loc, log_scale = net(made).detach().unbind(-1)
    divergence = kl_divergence(dist.Normal(loc, log_scale.exp()), dist.Normal(0.0, 1.0))
    expected = 2.5 * (prior_weight(made, X, 0.5) * divergence).sum()
    assert found == pytest.approx(float(expected), rel=1e-4)


def test_gradients_stay_apart():
    """The generator gets none of the model's loss, and the model none of the generator's."""
    module, found = Regression(network()), elbo(weight=0.0)
    loss = found.differentiable_loss(module, no_guide, X, Y)
    assert all(p.grad is None for p in module.parameters())
    before = [p.detach().clone() for p in found.generator.parameters()]
    grads = [p.grad.clone() for p in found.generator.parameters()]
    loss.backward()
    for p, b, g in zip(found.generator.parameters(), before, grads, strict=True):
        assert torch.equal(p.grad, g) and torch.equal(p, b)
    value = found.loss(module, no_guide, X, Y)
    after = list(found.generator.parameters())
    assert all(torch.equal(p, b) for p, b in zip(after, before, strict=True))
    assert value == pytest.approx(float(loss.detach()))


def test_generator_takes_a_set():
    generator = PseudoInputGenerator(3, 8)
    noise, order = torch.randn(24, 8), torch.randperm(24)
    torch.testing.assert_close(generator(X[order], noise), generator(X, noise))
    image = PseudoInputGenerator((1, 4, 4), bounds=(-1.0, 2.0))
    made = image(torch.randn(5, 1, 4, 4), 100 * torch.randn(7, 64))
    assert made.shape == (7, 1, 4, 4) and made.min() >= -1 and made.max() <= 2


def test_generator_seeks_confidence_away_from_the_data():
    """Where one side of a line is confident, and data are on it."""

    def model(x, y=None):
        with pyro.plate("data", len(x)):
            pyro.sample("obs", dist.Normal(0.0, (-x[:, 0]).exp()), obs=y)

    data = torch.linspace(-2.0, 2.0, 20)[:, None]
    found = elbo(
        PseudoInputGenerator(1, 16, box_slope=5.0),
        repulsion=0.0,
        optimizer=partial(torch.optim.Adam, lr=0.02),
    )
    for _ in range(80):
        found.differentiable_loss(model, no_guide, data, data[:, 0])
    made = found.generator(data, torch.randn(20, 16)).detach()
    assert 3.0 < float(made.mean()) < 4.5 and prior_weight(made, data, 0.5).mean() > 0.9


def test_a_stopped_training_goes_on(tmp_path):
    """With the generator, its optimizer and its stream in the trainer's checkpoint."""
    whole = trained(Regression(network()), found := elbo(), stateful=found.stateful)
    for num_steps in (5, 8):
        found, module = elbo(), Regression(network())
        trainer = Trainer(
            module, partial(torch.optim.Adam, lr=0.01), seed=2, stateful=found.stateful
        )
        trainer.run(
            lambda x, y, f=found, m=module: f.differentiable_loss(m, no_guide, x, y),
            num_steps,
            ShuffledBatches(X, Y, batch_size=10),
            checkpoint=tmp_path / "training",
            progress=False,
        )
    end = torch.cat([tensor.double().flatten() for tensor in module.state_dict().values()])
    assert torch.equal(end, whole)


@pytest.mark.parametrize(
    ("prior", "scale", "message"),
    [
        (dist.Normal(0.0, 1.0), 0.0, "the elbo is inf"),
        (dist.Uniform(0.0, 1.0), 1.0, "the divergence from the prior Uniform.* is inf"),
    ],
)
def test_an_infinite_loss_ends_the_training(prior, scale, message):
    """The model takes no step, and the next one is as if it had not been."""
    module, loss = Regression(network()), elbo(prior=prior)

    def model(x, y):
        pyro.module("net", module)
        module(x, y)
        pyro.factor("impossible", torch.tensor(scale).log())

    svi = SVI(model, no_guide, pyro.optim.Adam({"lr": 0.01}), loss)
    before = [parameter.clone() for parameter in module.parameters()]
    for _ in range(2):
        with pytest.raises(TrainingDiverged, match=message):
            svi.step(X, Y)
    for parameter, value in zip(module.parameters(), before, strict=True):
        assert torch.equal(parameter, value) and parameter.grad is None
    with pytest.raises(TrainingDiverged, match="no step is taken"):
        loss.differentiable_loss(model, no_guide, X, Y)


def test_reference():
    """Distances from all of the data."""
    made = torch.zeros(1, 3)
    near = elbo(reference=torch.cat([X, made]))
    assert float(prior_weight(made, near._data(X), 0.5)) == 0.0 < prior_weight(made, X, 0.5)


def test_the_only_site_of_the_labels_is_found():
    """Whatever its name; sites of the guide, factors and deterministic ones are no labels."""

    def of_name(name):
        def model(x, y=None):
            loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
            pyro.factor("penalty", -loc.square())
            mean = pyro.deterministic("mean", loc + x.sum(-1))
            with pyro.plate("data", len(x)):
                pyro.sample(name, dist.Normal(mean, 1.0), obs=y)

        return model

    values = []
    for name in ("obs", "label"):
        model = of_name(name)
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        guide = AutoDelta(pyro.poutine.block(model, expose=["loc"]))
        values.append(elbo().differentiable_loss(model, guide, X, Y).item())
    assert values[0] == values[1]


def test_wrong_models():
    module = Regression(network())
    with pytest.raises(ValueError, match="prior must be one that Normal"):
        elbo(prior=dist.Poisson(1.0)).differentiable_loss(module, no_guide, X, Y)
    with pytest.raises(ValueError, match="inputs must have the shape"):
        elbo(PseudoInputGenerator(4)).differentiable_loss(module, no_guide, X, Y)
    with pytest.raises(TypeError, match="args must begin with the inputs"):
        elbo().differentiable_loss(module, no_guide, x=X)

    def multivariate(x, y=None):
        with pyro.plate("features", 2), pyro.plate("data", len(x)):
            pyro.sample("obs", dist.Normal(x[:, :1], 1.0), obs=y)

    def two(x, y):
        with pyro.plate("data", len(x)):
            pyro.sample("one", dist.Normal(x[:, 0], 1.0), obs=y)
            pyro.sample("other", dist.Normal(x[:, 0], 1.0), obs=y)

    with pytest.raises(ValueError, match=r"one of the model's, \['one', 'other'\], got None"):
        elbo().differentiable_loss(two, no_guide, X, Y)

    def flat(x):
        pyro.sample("obs", dist.Normal(x.sum(), 1.0), obs=x.sum())

    with pytest.raises(ValueError, match="site must have the batch shape"):
        elbo().differentiable_loss(flat, no_guide, X)


@pytest.mark.slow
def test_a_gap_in_one_dimension():
    """Figure 1 of the paper in spirit: variance comes back to the prior's away from the data."""
    variances = {}
    for name in ("plain", "augmented"):
        torch.manual_seed(0)
        x = torch.cat([torch.rand(30) * 2 - 3, torch.rand(30) * 2 + 1])[:, None]
        y = (2 * x[:, 0]).sin() + 0.1 * torch.randn(60)
        y = (y - y.mean()) / y.std()
        module = Regression(MLP(1, [64, 64], 2, activation=nn.ReLU))
        loss = Trace_ELBO()
        if name == "augmented":
            loss = elbo(
                PseudoInputGenerator(1, box=6.0, box_slope=5.0),
                optimizer=partial(torch.optim.Adam, lr=3e-3),
            )
        Trainer(module, partial(torch.optim.Adam, lr=2e-3), seed=0).run(
            lambda m=module, f=loss, a=x, b=y: f.differentiable_loss(m, no_guide, a, b) / 60,
            1500,
            progress=False,
        )
        with torch.no_grad():
            loc, log_variance = module.net(torch.tensor([[-5.5], [0.0], [5.5]])).unbind(-1)
            variances[name] = log_variance.exp().tolist()
            inside = module.net(x)[:, 1].exp().mean()
        if name == "augmented":
            assert loc.abs().max() <= 0.7 and float(inside) < 0.1
    assert all(0.6 <= value <= 2.0 for value in variances["augmented"])
    assert min(variances["plain"]) < 0.1
