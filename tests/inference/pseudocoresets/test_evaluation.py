"""Scores of coresets: by hand, in closed form, with another model, and errors."""

from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.reparam import LocScaleReparam
from torch import Tensor

from pyro_ext.diagnostics import metrics
from pyro_ext.inference.pseudocoresets import (
    AutoPseudocoreset,
    evaluate_coreset,
    evaluate_draws,
    herding_subset,
    predictive_probabilities,
    standard_deviation_ratios,
    standardized_mean_differences,
)
from pyro_ext.nn import MLP, BayesianClassifier, BayesianModule
from tests.inference.pseudocoresets.coreset_models import (
    labeled,
    location,
    location_answers,
    logistic,
    points,
)

pytestmark = pytest.mark.usefixtures("float64")


def draws(number: int = 7, dim: int = 3, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {"weight": torch.randn(number, dim, generator=generator)}


def linear(x: Tensor, y: Tensor | None = None) -> Tensor:
    """Another architecture: an intercept and no third column."""
    intercept = pyro.sample("intercept", dist.Normal(0.0, 1.0))
    slope = pyro.sample("slope", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    logits = pyro.deterministic("logits", intercept + x[:, :2] @ slope)
    with pyro.plate("data", len(x)):
        return pyro.sample("y", dist.Bernoulli(logits=logits), obs=y)


def test_probabilities_of_a_network() -> None:
    inputs, labels = points(12, 4), torch.arange(12) % 3
    classifier = BayesianClassifier(BayesianModule(MLP(4, [3], 3), 0.5))
    samples = {
        name: torch.randn(5, *parameter.shape, generator=torch.Generator().manual_seed(0))
        for name, parameter in classifier.network.module.named_parameters()
    }
    found = predictive_probabilities(classifier, samples, inputs, labels)
    torch.testing.assert_close(found, classifier.probabilities(samples, inputs).mean(0))


def test_scores_of_classes() -> None:
    x, y = labeled(60)
    samples, reference = draws(), draws(9, seed=1)
    scores = evaluate_draws(logistic, samples, x, y, reference=reference)
    own, other = (
        torch.stack([1 - p, p], -1)
        for p in ((x @ s["weight"].mT).sigmoid().mean(1) for s in (samples, reference))
    )
    labels = y.long()
    expected = [f(own, labels) for f in (metrics.nll, metrics.accuracy, metrics.ece)]
    assert [scores.nll, scores.accuracy, scores.ece] == pytest.approx(expected, abs=1e-12)
    assert scores.agreement == metrics.agreement(own, other)
    assert scores.total_variation == pytest.approx(metrics.total_variation(own, other), abs=1e-12)
    assert scores.mean_differences is not None and scores.scale_ratios is not None
    one, two = samples["weight"], reference["weight"]
    difference = (one.mean(0) - two.mean(0)) / two.std(0)
    torch.testing.assert_close(scores.mean_differences["weight"], difference)
    torch.testing.assert_close(scores.scale_ratios["weight"], one.std(0) / two.std(0))
    alone = evaluate_draws(logistic, samples, x, y)
    assert alone.nll == scores.nll
    assert alone.agreement is None and alone.scale_ratios is None


def test_density_of_continuous_observations() -> None:
    x = points(6)
    means = torch.tensor([[0.0, 1.0], [2.0, -1.0], [1.0, 1.0]])
    scores = evaluate_draws(location, {"mean": means}, x)
    densities = dist.Normal(means[:, None], 1.0).log_prob(x).sum(-1).exp()
    assert scores.nll == pytest.approx(-float(densities.mean(0).log().mean()), rel=1e-12)
    assert scores.accuracy is None and scores.ece is None


@pytest.mark.statistical
def test_coreset_by_closed_form() -> None:
    """Test NLL of a coreset of a location model, against the exact predictive.

    2000 draws worth at least 400: the standard error of the NLL is below 0.005; a bound of 0.03
    has a false-alarm rate below 1e-8. Mean and scale have the exact ones within 5 standard errors.
    """
    x, test = points(), points(20, seed=1)
    guide = AutoPseudocoreset(location, x, size=5, weights="scaled", init=herding_subset, seed=0)
    mean, variance = location_answers(guide.pseudodata[0], guide.weights)
    whole_mean, whole_variance = location_answers(x)
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(100_000, 2, generator=generator)
    reference = {"mean": whole_mean + whole_variance.sqrt() * noise}
    scores = evaluate_coreset(
        guide.condition(),
        test,
        reference=reference,
        num_samples=250,
        options={"seed": 0, "num_chains": 8},
    )
    exact = dist.Normal(mean, (1.0 + variance).sqrt()).log_prob(test).sum(-1)
    assert abs(scores.nll + float(exact.mean())) < 0.03
    assert scores.mean_differences is not None and scores.scale_ratios is not None
    shift = (mean - whole_mean) / whole_variance.sqrt()
    assert float((scores.mean_differences["mean"] - shift).abs().max()) < 5 / 400**0.5
    ratio = float((variance / whole_variance).sqrt())
    assert float((scores.scale_ratios["mean"] - ratio).abs().max()) < 5 * ratio / 800**0.5


def test_another_architecture() -> None:
    """A coreset conditions a model with other sites, and both predictives are compared."""
    x, y = labeled()
    guide = AutoPseudocoreset(logistic, x, y, size=20, weights="scaled", seed=0)
    conditioned = guide.condition(linear)
    values = {"intercept": torch.tensor(0.3), "slope": torch.tensor([0.5, -0.5])}
    trace = pyro.poutine.trace(pyro.condition(conditioned, values)).get_trace()
    inputs, labels = guide.pseudodata
    logits = 0.3 + inputs[:, :2] @ values["slope"]
    prior = sum(dist.Normal(0.0, 1.0).log_prob(v).sum() for v in values.values())
    likelihood = guide.weights * dist.Bernoulli(logits=logits).log_prob(labels)
    torch.testing.assert_close(trace.log_prob_sum(), prior + likelihood.sum())
    scores = evaluate_coreset(
        conditioned,
        x,
        y,
        reference=draws(),
        reference_model=logistic,
        num_samples=20,
        warmup_steps=20,
        options={"seed": 0},
    )
    assert scores.samples["slope"].shape == (20, 2)
    other = predictive_probabilities(logistic, draws(), x, y)
    own = predictive_probabilities(linear, scores.samples, x, y)
    assert scores.total_variation == metrics.total_variation(own, other)
    assert scores.mean_differences is None


def two_sites(x: Tensor, y: Tensor) -> None:
    weight = pyro.sample("weight", dist.Normal(torch.zeros(3), 2.0).to_event(1))
    with pyro.plate("data", len(x)):
        pyro.sample("count", dist.Poisson((x @ weight).exp()), obs=y)
        pyro.sample("y", dist.Bernoulli(logits=x @ weight), obs=y)


def test_the_site_that_counts() -> None:
    x, y = labeled(20)
    found = evaluate_draws(two_sites, draws(), x, y, site="y")
    assert found.nll == evaluate_draws(logistic, draws(), x, y).nll
    rates = (x @ draws()["weight"].mT).exp()
    counts = evaluate_draws(two_sites, draws(), x, y, site="count")
    densities = dist.Poisson(rates).log_prob(y[:, None]).exp().mean(1)
    assert counts.nll == pytest.approx(-float(densities.log().mean()), rel=1e-10)
    for site in (None, "weight"):
        with pytest.raises(ValueError, match="site must be one of the observed sites"):
            evaluate_draws(two_sites, draws(), x, y, site=site)


def test_counts_of_differing_totals() -> None:
    def model(x: Tensor, total: Tensor, y: Tensor) -> None:
        weight = pyro.sample("weight", dist.Normal(torch.zeros(3), 2.0).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Binomial(total, logits=x @ weight), obs=y)

    x, y = labeled(20)
    total = 1.0 + torch.arange(20) % 3
    scores = evaluate_draws(model, draws(), x, total, y, reference=draws())
    logits = x @ draws()["weight"].mT
    densities = dist.Binomial(total[:, None], logits=logits).log_prob(y[:, None]).exp()
    assert scores.nll == pytest.approx(-float(densities.mean(1).log().mean()), rel=1e-10)
    assert scores.accuracy is None and scores.agreement is None
    assert scores.mean_differences is not None


@pytest.mark.parametrize("kind", ["event", "plate", "one-hot"])
def test_several_numbers_a_point(kind: str) -> None:
    """Observations that are no class for each point have a density all the same."""

    def model(x: Tensor, y: Tensor) -> None:
        weight = pyro.sample("weight", dist.Normal(torch.zeros(3, 2), 2.0).to_event(2))
        logits = x @ weight
        if kind == "plate":
            with pyro.plate("data", len(x), dim=-2), pyro.plate("labels", 2, dim=-1):
                pyro.sample("y", dist.Bernoulli(logits=logits), obs=y)
        else:
            distribution = dist.Bernoulli(logits=logits).to_event(1)
            with pyro.plate("data", len(x)):
                pyro.sample(
                    "y",
                    dist.OneHotCategorical(logits=logits) if kind == "one-hot" else distribution,
                    obs=y,
                )

    x, y = labeled(20)
    y = torch.stack([y, 1 - y], -1)
    weight = torch.randn(5, 3, 2, generator=torch.Generator().manual_seed(0))
    logits = torch.einsum("nd,sdk->snk", x, weight)
    logs = -torch.nn.functional.binary_cross_entropy_with_logits(
        logits, y.expand_as(logits), reduction="none"
    )
    if kind == "event":
        logs = logs.sum(-1)
    elif kind == "one-hot":
        logs = (logits.log_softmax(-1) * y).sum(-1)
    scores = evaluate_draws(model, {"weight": weight}, x, y)
    assert scores.nll == pytest.approx(-float(logs.exp().mean(0).log().mean()), rel=1e-10)
    assert scores.accuracy is None
    with pytest.raises(ValueError, match="must be a class for each point"):
        predictive_probabilities(model, {"weight": weight}, x, y)


def test_a_reparametrized_model() -> None:
    """The site that a reparameterization makes a function of others is no observation."""

    def plain(x: Tensor, y: Tensor) -> None:
        scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
        weight = pyro.sample("weight", dist.Normal(torch.zeros(3), scale).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Bernoulli(logits=x @ weight), obs=y)

    model = pyro.poutine.reparam(plain, config={"weight": LocScaleReparam(0.0)})
    x, y = labeled(20)
    scale = torch.linspace(0.5, 2.0, 7)
    samples = {"scale": scale, "weight_decentered": draws()["weight"] / scale[:, None]}
    found, expected = (
        evaluate_draws(m, s, x, y) for m, s in ((model, samples), (logistic, draws()))
    )
    assert found.nll == pytest.approx(expected.nll, rel=1e-10)
    assert found.accuracy == expected.accuracy


def test_errors() -> None:
    x, y = labeled(20)
    with pytest.raises(ValueError, match="must be a class for each point"):
        predictive_probabilities(two_sites, draws(), x, y, site="count")
    with pytest.raises(ValueError, match="samples lacks the latent sites"):
        evaluate_draws(logistic, {"other": torch.zeros(3)}, x, y)
    with pytest.raises(ValueError, match="reference must have a site"):
        standardized_mean_differences(draws(), {"other": torch.zeros(3)})
    with pytest.raises(ValueError, match="reference must have the shapes"):
        standard_deviation_ratios(draws(), draws(dim=2))
    with pytest.raises(ValueError, match="samples must have at least two draws"):
        standard_deviation_ratios(draws(1), draws())
    with pytest.raises(TypeError, match="coreset must be a model that condition"):
        wrong: Any = logistic
        evaluate_coreset(wrong, x, y)
    classifier = BayesianClassifier(BayesianModule(MLP(3, [2], 2), 0.5), batch_size=5)
    parameters = classifier.network.module.named_parameters()
    samples = {name: torch.zeros(3, *value.shape) for name, value in parameters}
    with pytest.raises(ValueError, match="model must see all points at once"):
        evaluate_draws(classifier, samples, x, y.long())
