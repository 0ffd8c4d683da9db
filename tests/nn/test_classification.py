"""Classifiers: the model under every backend and kernel, and predictions against a loop."""

import pickle

import pyro.poutine as poutine
import pytest
import torch
from pyro.infer import Predictive

from pyro_ext.inference import MCMC, SGHMC
from pyro_ext.nn import MLP, BayesianClassifier, BayesianModule, ResNet, bayesian
from pyro_ext.potential import Potential
from pyro_ext.reparam import expand_module
from pyro_ext.testing.potential import check_potential

X = torch.randn(12, 4, generator=torch.Generator().manual_seed(0))
IMAGES = torch.randn(12, 1, 8, 8, generator=torch.Generator().manual_seed(1))
Y = torch.arange(12) % 3


def mlp():
    return MLP(4, [5], 3)


def resnet():
    return ResNet(1, 3, (2, 4))


CASES = {
    "mlp": (lambda: BayesianModule(mlp(), 0.5), X),
    "resnet": (lambda: BayesianModule(resnet(), 0.5), IMAGES),
    "expanded-mlp": (lambda: expand_module(mlp(), 0.5), X),
    "expanded-resnet": (lambda: expand_module(resnet(), 0.5), IMAGES),
}
each_network = pytest.mark.parametrize(("make", "x"), CASES.values(), ids=CASES)
# Recording all convolutions takes its time.
each_recorded_network = pytest.mark.parametrize(
    ("make", "x"),
    [
        pytest.param(*case, id=name, marks=[pytest.mark.slow] * ("resnet" in name))
        for name, case in CASES.items()
    ],
)


def prior_draws(classifier, x, *leading):
    """Draws of all sites, deterministic ones too."""
    rows = []
    for _ in range(torch.Size(leading).numel()):
        trace = poutine.trace(classifier).get_trace(x)
        rows.append({n: node["value"] for n, node in trace.iter_stochastic_nodes()})
        rows[-1] |= {n: trace.nodes[n]["value"] for n in trace.observation_nodes}
    return {n: torch.stack([row[n] for row in rows]).unflatten(0, leading) for n in rows[0]}


@each_network
def test_density_by_hand(make, x, device):
    classifier = BayesianClassifier(make())
    x, y = x.to(device), Y.to(device)
    trace = poutine.trace(classifier).get_trace(x, y)
    assert trace.nodes["label"]["cond_indep_stack"][0].name == "data"
    weights = [name for name in trace.stochastic_nodes if name != "label"]
    assert not any(trace.nodes[name]["cond_indep_stack"] for name in weights)
    values = {name: trace.nodes[name]["value"] for name in weights}
    with poutine.condition(data=values):
        logits = classifier.network(x)
    wanted = logits.log_softmax(-1)[torch.arange(12), y].sum()
    trace.compute_log_prob()
    torch.testing.assert_close(trace.nodes["label"]["log_prob_sum"], wanted)
    assert all(value.device == device for value in values.values())


def test_minibatches():
    classifier = BayesianClassifier(BayesianModule(mlp()), batch_size=5)
    trace = poutine.trace(classifier).get_trace(X, Y)
    index = trace.nodes["data"]["value"]
    assert len(index) == 5 and trace.nodes["label"]["scale"] == 12 / 5
    assert torch.equal(trace.nodes["label"]["value"], Y[index])
    values = {name: trace.nodes[name]["value"] for name in trace.stochastic_nodes[1:]}
    values.pop("data", None)
    with poutine.condition(data=values):
        logits = classifier.network(X[index])
    torch.testing.assert_close(
        trace.nodes["label"]["fn"].logits, logits.log_softmax(-1), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("batch_size", [None, 12, 100])
def test_all_of_the_data(batch_size):
    classifier = BayesianClassifier(BayesianModule(mlp()), batch_size)
    assert not Potential(classifier, X, Y).subsampled_plates
    assert poutine.trace(classifier).get_trace(X, Y).nodes["label"]["scale"] == 1.0


@each_recorded_network
@pytest.mark.parametrize("batch_size", [None, 5])
def test_backends(make, x, batch_size):
    check_potential(BayesianClassifier(make(), batch_size), x, Y)


@pytest.mark.slow
def test_compiled_convolutions_of_one_chain():
    """Which the compiler gets wrong where it may lay out images anew; a warning would tell."""
    images = torch.randn(64, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    classifier = BayesianClassifier(BayesianModule(ResNet(1, 10, channels=(4, 8)), 0.3))
    traced, compiled = (
        Potential(classifier, images, torch.arange(64) % 10, backend=name)
        for name in ("trace", "compile")
    )
    params = traced.init(1, seed=0)
    value, gradient = compiled.value_and_grad(params)
    wanted, slope = traced.value_and_grad(params)
    torch.testing.assert_close(value, wanted, rtol=1e-4, atol=1e-3)
    for name, expected in slope.items():
        scale = float(expected.abs().max())
        torch.testing.assert_close(gradient[name], expected, rtol=0, atol=1e-3 * scale)


@each_recorded_network
def test_chains(make, x):
    classifier = BayesianClassifier(make(), batch_size=6)
    kernel = SGHMC(classifier, step_size=1e-3, friction=10.0)
    mcmc = MCMC(kernel, 3, num_chains=2, thinning=2, seed=0, progress=False).run(x, Y)
    draws = mcmc.get_samples(group_by_chain=True)
    logs = classifier.log_probabilities(draws, x)
    assert logs.shape == (2, 3, 12, 3) and logs.isfinite().all()
    torch.testing.assert_close(logs.exp().sum(-1), torch.ones(2, 3, 12))


@each_network
def test_predictions_against_a_loop(make, x, monkeypatch):
    classifier = BayesianClassifier(make())
    samples = prior_draws(classifier, x, 2, 3)
    assert "label" in samples
    new = x[:7]
    names = [name for name, _ in classifier.network.module.named_parameters()]
    wanted = torch.empty(2, 3, 7, 3)
    for i in range(2):
        for j in range(3):
            values = {name: samples[name][i, j] for name in names}
            logits = torch.func.functional_call(classifier.network.module, values, (new,))
            wanted[i, j] = logits - logits.exp().sum(-1, keepdim=True).log()
    logs = classifier.log_probabilities(samples, new)
    torch.testing.assert_close(logs, wanted, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(classifier.probabilities(samples, new), logs.exp())
    likelihood = classifier.log_likelihood(samples, new, Y[:7])
    assert likelihood.shape == (2, 3, 7)
    assert all(torch.equal(likelihood[..., i], logs[..., i, Y[i]]) for i in range(7))
    for pairs in (1, 4, 16):  # draws and points in pieces
        monkeypatch.setattr(bayesian, "_PAIRS_PER_CALL", pairs)
        torch.testing.assert_close(
            classifier.log_probabilities(samples, new), wanted, rtol=1e-4, atol=1e-4
        )


def test_one_draw():
    classifier = BayesianClassifier(BayesianModule(mlp()))
    samples = {name: value[0] for name, value in prior_draws(classifier, X, 1).items()}
    logs = classifier.log_probabilities(samples, X)
    assert logs.shape == (12, 3)
    assert not logs.requires_grad


@pytest.mark.parametrize("make", [mlp, resnet])
def test_factors_do_in_the_place_of_parameters(make):
    x = X if make is mlp else IMAGES
    classifier = BayesianClassifier(expand_module(make(), 0.5))
    samples = prior_draws(classifier, x, 3)
    latents = Potential(classifier, x, Y).sites
    factors = {name: value for name, value in samples.items() if name in latents}
    assert "head.weight" not in factors and len(factors) > 3
    torch.testing.assert_close(
        classifier.log_probabilities(factors, x), classifier.log_probabilities(samples, x)
    )


@each_network
def test_labels_are_drawn(make, x):
    classifier = BayesianClassifier(make())
    assert classifier(x).shape == (12,)
    draws = Predictive(classifier, num_samples=4)(x)
    assert draws["label"].shape == (4, 12)
    samples = {name: draws[name] for name in Potential(classifier, x, Y).sites}
    drawn = Predictive(classifier, samples)(x)["label"]
    assert drawn.shape == (4, 12) and set(drawn.flatten().tolist()) <= {0, 1, 2}


def test_pickle():
    classifier = BayesianClassifier(BayesianModule(mlp(), 0.5), batch_size=4)
    samples = prior_draws(classifier, X, 2)
    samples.pop("label")
    other = pickle.loads(pickle.dumps(classifier))
    assert other.batch_size == 4
    assert torch.equal(other.probabilities(samples, X), classifier.probabilities(samples, X))


def test_what_users_may_get_wrong():
    network = BayesianModule(mlp())
    classifier = BayesianClassifier(network)
    with pytest.raises(ValueError, match="labels must have the shape \\(12,\\).*got \\(5,\\)"):
        classifier(X, Y[:5])
    flat = BayesianClassifier(BayesianModule(torch.nn.Sequential(mlp(), torch.nn.Flatten(0))))
    with pytest.raises(ValueError, match="network must return the shape \\(12, classes\\)"):
        flat(X, Y)
    samples = prior_draws(classifier, X, 2)
    wrong = samples | {"0.bias": torch.zeros(2, 6)}
    with pytest.raises(ValueError, match="samples\\['0.bias'\\] has shape \\(2, 6\\)"):
        classifier.log_probabilities(wrong, X)
    missing = {name: value for name, value in samples.items() if name != "2.bias"}
    with pytest.raises(ValueError, match="samples lacks the latent sites \\['2.bias'\\]"):
        classifier.log_probabilities(missing, X)
    expanded = BayesianClassifier(expand_module(mlp()))
    with pytest.raises(ValueError, match="samples lacks the sites \\['0.P1', '0.weight.V'\\]"):
        expanded.log_probabilities(missing | {"0.weight": torch.zeros(2)}, X)
