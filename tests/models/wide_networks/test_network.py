"""Networks with dependent weights as Pyro models: densities, sites, starts and draws."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import MCMC as PyroMCMC
from pyro.infer import NUTS, Predictive
from scipy import stats
from torch import nn
from torch.distributions import biject_to

from pyro_ext.inference import MCMC, SGHMC
from pyro_ext.models.wide_networks import (
    DependentWeightNetwork,
    bernoulli_variances,
    beta_variances,
    equal_variances,
    horseshoe_variances,
    inverse_gamma_variances,
    measure_variances,
    regularized_horseshoe_variances,
    sample_covariances,
    sample_outputs,
)
from pyro_ext.nn import BayesianClassifier, init_to_module
from pyro_ext.potential import Potential
from pyro_ext.random_measures import BetaPrimeProcess, GeneralizedGammaProcess

INPUTS = torch.tensor([[1.0, -2.0], [0.5, 0.3], [-0.2, 0.1], [3.0, 1.0], [0.0, -1.0]])
LABELS = torch.tensor([0, 1, 2, 1, 0])
SITES = ["1.weight", "1.bias", "3.variances", "4.weight", "4.bias", "6.variances"]
SITES += ["7.weight", "7.bias"]


def network_of(variances, **options):
    return DependentWeightNetwork(2, [4, 5], 3, variances, **options)


def test_outputs_are_those_of_the_formula():
    network = network_of(horseshoe_variances(), weight_scale=1.3, bias_scale=0.4)
    trace = poutine.trace(network).get_trace(INPUTS)
    assert trace.stochastic_nodes == SITES
    value = {name: trace.nodes[name]["value"] for name in SITES}
    hidden = INPUTS @ value["1.weight"].T / math.sqrt(2) + value["1.bias"]
    for scale, layer in (("3", "4"), ("6", "7")):
        weight = value[f"{scale}.variances"].sqrt() * value[f"{layer}.weight"]
        hidden = hidden.relu() @ weight.T + value[f"{layer}.bias"]
    torch.testing.assert_close(trace.nodes["_RETURN"]["value"], hidden)


def test_density_is_that_of_normal_weights_and_of_the_law():
    network = network_of(horseshoe_variances(), weight_scale=1.3, bias_scale=0.4)
    trace = poutine.trace(network).get_trace(INPUTS)
    trace.compute_log_prob()
    expected = torch.zeros(())
    for name in SITES:
        value = trace.nodes[name]["value"]
        if name.endswith("variances"):
            fn = horseshoe_variances().distribution(len(value))
        else:
            fn = dist.Normal(0.0, 1.3 if name.endswith("weight") else 0.4)
        expected = expected + fn.log_prob(value).sum()
    torch.testing.assert_close(trace.log_prob_sum(), expected)


def test_without_biases_and_with_another_activation():
    network = network_of(horseshoe_variances(), bias_scale=0.0, activation=nn.Tanh)
    trace = poutine.trace(network).get_trace(INPUTS)
    assert trace.stochastic_nodes == [name for name in SITES if not name.endswith("bias")]
    assert isinstance(network.module[2], nn.Tanh)


def test_equal_variances_are_no_site():
    network = network_of(equal_variances())
    trace = poutine.trace(network).get_trace(INPUTS)
    assert trace.stochastic_nodes == [name for name in SITES if not name.endswith("variances")]
    assert network.module[3].variances.tolist() == [0.25] * 4


@pytest.mark.parametrize(
    "variances",
    [
        horseshoe_variances(),
        beta_variances(),
        inverse_gamma_variances(),
        regularized_horseshoe_variances(),
        measure_variances(BetaPrimeProcess(1.0, 0.3, 3.0)),
        measure_variances(GeneralizedGammaProcess(1.0, 0.3, 1.0), drift=0.5),
    ],
    ids=["horseshoe", "beta", "inverse gamma", "bounded", "beta prime", "drift"],
)
def test_potentials_know_the_support_of_the_variances(variances):
    """Values leave the unconstrained space inside the support, with the log-Jacobian."""
    network = network_of(variances)
    classifier = BayesianClassifier(network)
    potential = Potential(classifier, INPUTS, LABELS)
    start = potential.init(2, seed=0)
    value, gradient = potential.value_and_grad(start)
    assert value.isfinite().all() and all(part.isfinite().all() for part in gradient.values())
    constrained = potential.constrain(start)
    for scale, width in (("3.variances", 4), ("6.variances", 5)):
        support = variances.distribution(width).support
        assert support.check(constrained[scale]).all()
        # Adding to the logarithm adds its prior, its Jacobian and what the network makes of it.
        transform = biject_to(support)
        torch.testing.assert_close(
            transform(start[scale]), constrained[scale], rtol=1e-4, atol=1e-7
        )
    for chain in range(2):
        draw = {name: part[chain] for name, part in constrained.items()}
        density = poutine.trace(poutine.condition(classifier, draw)).get_trace(INPUTS, LABELS)
        expected = -density.log_prob_sum()
        for scale, width in (("3.variances", 4), ("6.variances", 5)):
            transform = biject_to(variances.distribution(width).support)
            free = start[scale][chain]
            expected = expected - transform.log_abs_det_jacobian(free, transform(free)).sum()
        torch.testing.assert_close(value[chain], expected, rtol=1e-4, atol=1e-3)


def test_chains_start_at_normal_weights_and_equal_variances():
    network = DependentWeightNetwork(50, [60], 40, horseshoe_variances())
    classifier = BayesianClassifier(network)
    potential = Potential(classifier, torch.zeros(3, 50), torch.zeros(3, dtype=torch.long))
    start = potential.init(2, seed=0, init_strategy=init_to_module(module=network.module))
    values = potential.constrain(start)
    torch.testing.assert_close(values["3.variances"], torch.full((2, 60), 1 / 60))
    assert not values["4.bias"].any()
    for layer in ("1.weight", "4.weight"):  # thousands of weights: within six standard errors
        assert float(values[layer].std()) == pytest.approx(1.0, rel=0.1)
        assert (values[layer][0] != values[layer][1]).any()


def test_kernels_run_and_draws_predict():
    network = network_of(horseshoe_variances())
    classifier = BayesianClassifier(network, batch_size=3)
    mcmc = MCMC(SGHMC(classifier, step_size=0.01), 4, num_chains=2, seed=0, progress=False)
    draws = mcmc.run(INPUTS, LABELS).get_samples(group_by_chain=True)
    assert draws["3.variances"].shape == (2, 4, 4) and (draws["3.variances"] > 0).all()
    probabilities = classifier.probabilities(draws, INPUTS)
    assert probabilities.shape == (2, 4, 5, 3)
    # The classifier's network with a draw is the network of the model with it.
    draw = {name: value[1, 3] for name, value in draws.items()}
    logits = poutine.condition(network, draw)(INPUTS)
    torch.testing.assert_close(probabilities[1, 3], logits.softmax(-1))


def test_laws_below_the_least_number_are_refused_by_samplers_alone():
    network = DependentWeightNetwork(2, [400], 3, beta_variances())
    trace = poutine.trace(network).get_trace(INPUTS)
    assert trace.nodes["3.variances"]["value"].shape == (400,)
    classifier = BayesianClassifier(network)
    with pytest.raises(ValueError, match="variances must have at most 1% of"):
        Potential(classifier, INPUTS, LABELS)
    mcmc = PyroMCMC(NUTS(classifier), 1, warmup_steps=1, disable_progbar=True)
    with pytest.raises(ValueError, match="variances must have at most 1% of"):
        mcmc.run(INPUTS, LABELS)


def test_nuts_runs():
    network = DependentWeightNetwork(2, [3], 3, horseshoe_variances())
    classifier = BayesianClassifier(network)
    mcmc = PyroMCMC(NUTS(classifier, max_tree_depth=2), 3, warmup_steps=3, disable_progbar=True)
    mcmc.run(INPUTS, LABELS)
    assert mcmc.get_samples()["3.variances"].shape == (3, 3)


@pytest.mark.slow
@pytest.mark.statistical
def test_outputs_have_the_law_of_their_covariances():
    """A p-value below 1e-4 for 1 seed in 10,000."""
    network = DependentWeightNetwork(
        2, [6, 6], 1, bernoulli_variances(2.0), weight_scale=1.3, bias_scale=0.4
    )

    def model():
        pyro.deterministic("output", network(INPUTS[:2]).squeeze(-1))

    pyro.set_rng_seed(3)
    drawn = Predictive(model, num_samples=2000)()["output"].reshape(2000, 2)
    covariances = sample_covariances(
        INPUTS[:2],
        bernoulli_variances(2.0),
        2000,
        width=6,
        num_hidden=2,
        weight_scale=1.3,
        bias_scale=0.4,
        seed=0,
    )
    direct = sample_outputs(covariances, 1, 1)[:, 0]
    for direction in (torch.tensor([1.0, 0.0]), torch.tensor([1.0, -0.7])):
        ours, other = ((values @ direction).numpy() for values in (drawn, direct))
        assert stats.ks_2samp(ours, other).pvalue > 1e-4
