"""Valid calls of what floor 1 offers, for :mod:`walk` to spoil."""

import math
from typing import Any

import matplotlib.pyplot as plt
import networkx
import numpy as np
import pyro
import pyro.distributions as dist
import torch

from pyro_ext.diagnostics import SBCResult
from pyro_ext.distributions import (
    BernoulliCluster,
    BernoulliExponentialGraph,
    BlockDirichlet,
    GaussianCluster,
    MultinomialCluster,
    TiltedBFRY,
)
from pyro_ext.nn import MLP, BayesianClassifier, BayesianModule, NodeScale
from pyro_ext.potential import Potential
from pyro_ext.random_measures import (
    BetaPrimeProcess,
    DirichletProcess,
    GammaArrivals,
    GeneralizedGammaProcess,
    PitmanYor,
    frequency_table,
)
from tests.bad_input.walk import Call, call, of

X = torch.linspace(-1.0, 1.0, 8)
POINTS = torch.stack([X, X.cos()], -1)
LABELS = torch.arange(8) % 3


def model(x):
    loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(loc, 1.0), obs=x)


def datasets() -> dict[str, Call]:
    options = dict(num_train=20, num_test=10, split_seed=0, dtype=torch.float32)
    return {
        "load": call(name="wine", **options),
        "load_wine": call(**options),
        "load_breast_cancer": call(**options),
        "load_diabetes": call(**options),
        "load_digits": call(**options),
        "load_frequencies": call(name="news_words"),
        "load_graph": call(name="new_testament_names"),
        "load_mnist_5k": call(num_train=20, num_test=10, split_seed=0),
        "load_words": call(),
        "names": call(),
        "random_shifts": call(images=torch.rand(3, 4, 4), max_shift=1, generator=torch.Generator()),
    }


def diagnostics() -> dict[str, Call]:
    ranks = np.random.default_rng(0).integers(0, 100, size=(50, 2))
    result = SBCResult({"loc": ranks}, num_draws=99)
    draws = {"loc": 0.1 * torch.randn(10)}

    def run_inference(model, x):
        return {"loc": torch.randn(9)}

    def normal_guide(x):
        pyro.sample("loc", dist.Normal(0.0, 1.0))

    paths = [networkx.path_graph(3), networkx.path_graph(4)]
    return {
        "graph_mmd": call(reference=paths, generated=paths),
        "SBCResult": call(ranks={"loc": ranks}, num_draws=99),
        "SBCResult.coverage": of(result, probs=[0.5, 0.9]),
        "SBCResult.uniformity": of(result),
        "SBCResult.is_calibrated": of(result),
        "sbc": call(
            {"x": torch.zeros(3)},
            model=model,
            run_inference=run_inference,
            num_simulations=2,
            quantities={"square": lambda values: values["loc"] ** 2},
            num_draws=9,
        ),
        "nested_rhat": call(draws=torch.randn(8, 3), num_superchains=2),
        "psis": call({"x": torch.randn(5)}, guide=normal_guide, model=model, num_samples=20),
        "to_arviz": call(
            {"x": torch.randn(5)},
            posterior=draws,
            model=model,
            num_samples=5,
            coords={"kind": [0]},
            dims={"loc": []},
        ),
    }


def diversity() -> dict[str, Call]:
    ends = {"w": torch.tensor([-1.0])}, {"w": torch.tensor([1.0])}
    return {
        "consecutive_distances": call(samples={"loc": torch.randn(2, 5, 3)}),
        "path_values": call(
            function=lambda samples: samples["w"].square().sum(-1), start=ends[0], end=ends[1]
        ),
        "pairwise_kl": call(probabilities=torch.randn(4, 3, 2).softmax(-1)),
        "weight_singular_values": call(weight=torch.randn(4, 3)),
    }


def diversity_plots() -> dict[str, Call]:
    ax = plt.figure().subplots()
    return {
        "plot_predictive_ess": call(
            effective_sample_sizes=100.0 * torch.rand(5), thresholds=(400.0,), ax=ax
        ),
        "plot_predictive_rhat": call(r_hat=1.0 + torch.rand(5), thresholds=(1.05,), ax=ax),
    }


def function_space() -> dict[str, Call]:
    probabilities = torch.randn(2, 10, 3, 2).softmax(-1)
    return {
        "fractions_below": call(r_hat=1.0 + torch.rand(5), thresholds=(1.05,)),
        "predictive_ess": call(probabilities=probabilities),
        "predictive_rhat": call(probabilities=probabilities),
    }


def metrics() -> dict[str, Call]:
    both = dict(probabilities=torch.randn(4, 3, 2).softmax(-1), labels=torch.tensor([0, 1, 1]))
    pair = dict(p=both["probabilities"], q=torch.randn(5, 3, 2).softmax(-1))
    return {
        "accuracy": call(**both),
        "agreement": call(**pair),
        "ambiguity": call(**both),
        "brier": call(**both),
        "calibration_bins": call(**both),
        "deep_ensemble_equivalent": call(value=0.2, reference=[0.3, 0.25, 0.24]),
        "ece": call(**both),
        "ensemble_mutual_information": call(probabilities=both["probabilities"]),
        "nll": call(**both),
        "quantile_calibration_error": call(cdf_values=torch.rand(4, 3)),
        "temperature_scale": call(**both),
        "TemperatureScaling": call(temperature=2.0),
        "total_variation": call(**pair),
    }


def partitions() -> dict[str, Call]:
    draws = torch.tensor([[0, 1, 0, 1], [0, 1, 0, 0], [0, 0, 1, 1]])
    pair = dict(first=draws, second=draws.flip(0))
    return {
        "variation_of_information": call(**pair),
        "canonical_labels": call(labels=draws),
        "cluster_sizes": call(labels=draws),
        "co_clustering": call(labels=draws),
        "num_clusters": call(labels=draws),
        "num_clusters_distribution": call(labels=draws),
        "partition_quantities": call(labels=draws),
        "credible_ball": call(labels=draws, center=draws[0]),
        "expected_loss": call(candidate=draws[0], labels=draws),
        "point_estimate": call(labels=draws),
    }


def plots() -> dict[str, Call]:
    ax = plt.figure().subplots()
    draws = torch.tensor([[0, 1, 0, 1], [0, 1, 0, 0], [0, 0, 1, 1]])
    result = SBCResult({"loc": np.arange(50)[:, None]}, num_draws=99)
    return {
        "plot_co_clustering": call(labels=draws, order=draws[0], ax=ax),
        "plot_num_clusters": call(labels=draws, ax=ax),
        "plot_reliability": call(
            probabilities=torch.randn(9, 2).softmax(-1), labels=torch.arange(9) % 2, ax=ax
        ),
        "plot_sbc": call(result=result, names=["loc"], prob=0.9, ax=ax),
    }


def temperature() -> dict[str, Call]:
    draws = torch.randn(2, 8, 3)
    return {"configurational_temperature": call(positions=draws, gradients=draws)}


def stein() -> dict[str, Call]:
    return {"kernel_stein_discrepancy": call(samples=POINTS, gradients=-POINTS)}


def distributions() -> dict[str, Call]:
    cluster = GaussianCluster(torch.zeros(2), 0.1, 4.0, torch.eye(2))
    counts = MultinomialCluster(torch.ones(3), total_count=4)
    two = torch.tensor([0.3, 0.6])
    x = torch.tensor([[1.0, 0.0, 3.0], [2.0, 2.0, 0.0]])
    tilted = TiltedBFRY(0.5, 2.0, 1.0)
    binary = BernoulliCluster(torch.ones(2), torch.ones(2))
    mask = torch.tensor([True, True, False])
    graph = BernoulliExponentialGraph(torch.ones(3, 2), mask)
    adjacency = torch.tensor([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    return {
        "BFRY": call(discount=0.5),
        "BernoulliCluster": call(concentration1=torch.ones(2), concentration0=torch.ones(2)),
        "BernoulliExponentialGraph": call(rates=torch.ones(3, 2), node_mask=mask),
        "BernoulliExponentialGraph.log_prob": of(graph, value=adjacency),
        "BernoulliExponentialGraph.log_prob_edges": of(graph, edges=torch.tensor([[0, 1]])),
        "BetaPrimeBFRY": call(discount=two, tail_index=1.5, level=2.0),
        "BlockDirichlet": call(concentration=torch.ones(6), sizes=[1, 1, 1, 1, 2, 2]),
        "BlockDirichlet.share_out": of(
            BlockDirichlet(torch.ones(3), [2, 2, 2]), totals=torch.full((3,), 1.0 / 3)
        ),
        "ClusterBlock": call(cluster=cluster, num_points=3),
        "DirichletOU": call(
            length=2.0, num_modes=2, dim=1, noise=1.0, rate=torch.ones(2), start=0.0, end=1.0
        ),
        "GaussianCluster": call(loc=torch.zeros(2), loc_precision=0.1, dof=4.0, scale=torch.eye(2)),
        "GaussianCluster.from_data": call(x=POINTS),
        "GaussianCluster.hyperprior": call(x=POINTS),
        "GaussianCluster.log_marginal": of(cluster, x=POINTS, mask=LABELS == 0),
        "GaussianCluster.posterior": of(cluster, x=POINTS),
        "GaussianCluster.log_prob": of(cluster, value=POINTS),
        "GaussianCluster.block": of(cluster, num_points=3),
        "GeneralizedBFRY": call(discount=two, tail_index=1.5, level=2.0),
        "KnownVarianceGaussianCluster": call(loc=torch.zeros(2), loc_scale=2.0, scale=1.0),
        "LogitGraph": call(features=torch.ones(3, 2), node_mask=mask),
        "MultinomialCluster": call(concentration=torch.ones(3)),
        "MultinomialCluster.log_marginal": of(counts, x=x),
        "BernoulliCluster.log_marginal": of(binary, x=torch.eye(2)),
        "PartitionedBlock": call(cluster=cluster, labels=LABELS),
        "PoissonCluster": call(concentration=torch.ones(2), rate=1.0),
        "PositiveStable": call(stability=0.5),
        "RectifiedGamma": call(concentration=2.0, rate=1.0, high=3.0),
        "StableBetaBFRY": call(discount=two, concentration=1.5, level=2.0),
        "TiltedBFRY": call(discount=0.5, level=2.0),
        "TiltedBFRY.log_prob": of(tilted, value=torch.tensor([0.5, 2.0])),
        "TiltedBFRY.cdf": of(tilted, value=torch.tensor([0.5, 2.0])),
        "TiltedStable": call(mass=1.0, stability=0.5, tilt=1.0),
        "TruncatedBFRY": call(discount=0.5, high=3.0),
        "GaussianRandomWalk": call(scale=0.5, num_steps=3),
        "TruncatedDistribution": call(base=dist.Exponential(1.0), low=0.5, high=3.0),
        "ZeroSumNormal": call(scale=0.5, event_shape=(2, 3)),
        "TruncatedNormal": call(loc=0.0, scale=1.0, low=-1.0, high=3.0),
    }


def handlers() -> dict[str, Call]:
    return {
        "data_weights": call(plate="data", weights=torch.ones(8)),
        "replace_observations": call(model=model, data={"x": X}),
        "subsample_instances": call(plate="data", rate=0.5, generator=torch.Generator()),
    }


def random_measures() -> dict[str, Call]:
    measure = GeneralizedGammaProcess(2.0, 0.4, 1.5)
    fn = measure.normalize()
    prime = BetaPrimeProcess(1.5, 0.4, 2.3)
    table = torch.tensor([[1, 3], [2, 1], [9, 1]])
    other = frequency_table([3, 3, 1])
    pitman_yor = PitmanYor(0.4, 1.3)

    def log_density(w, mass):
        return mass.log() - w.log() - w

    return {
        "ApproximateTotalMass": call(measure=measure),
        "BetaPrimeProcess": call(mass=1.5, discount=0.4, tail_index=2.3),
        "DirichletProcess": call(concentration=1.0),
        "ExponentialArrivals": call(),
        "FiniteApproximation": call(num_atoms=5, family=GammaArrivals(1.0)),
        "FrequencyCounts": call(measure=fn, num_samples=5, num_rows=5),
        "GammaArrivals": call(concentration=1.0),
        "GeneralizedBFRYProcess": call(mass=1.5, discount=0.4, tail_index=2.3),
        "GeneralizedGammaProcess": call(mass=2.0, discount=0.4, tilt=1.5),
        "InverseGammaArrivals": call(concentration=1.0),
        "JumpDistribution": call(measure=measure, order=1.0, tilt=0.5),
        "LevyDensityProcess": call(
            log_levy_density=log_density, parameters={"mass": 2.0}, corners=(1.0,), high=math.inf
        ),
        "LomaxArrivals": call(concentration=1.0),
        "NormalizedRandomMeasure": call(measure=measure),
        "NormalizedRandomMeasure.log_eppf": of(fn, counts=torch.tensor([2, 1])),
        "NormalizedRandomMeasure.log_joint": of(fn, counts=torch.tensor([2, 1]), auxiliary=0.5),
        "NormalizedRandomMeasure.predictive": of(fn, counts=torch.tensor([2, 1]), auxiliary=0.5),
        "NormalizedRandomMeasure.sample_auxiliary": of(fn, counts=torch.tensor([2, 1])),
        "NormalizedRandomMeasure.partition": of(fn, num_samples=5),
        "NormalizedRandomMeasure.log_num_clusters": of(fn, num_samples=3),
        "ParetoMixtureProcess": call(
            mass=1.5, discount=0.4, tilt=1.0, pareto_mass=1.5, pareto_scale=2.0, tail_index=2.2
        ),
        "ParetoProcess": call(mass=3.0, scale=2.0, tail_index=1.5),
        "PitmanYor": call(discount=0.4, concentration=1.3),
        "PitmanYor.log_eppf": of(pitman_yor, counts=torch.tensor([2, 1])),
        "PitmanYor.predictive": of(pitman_yor, counts=torch.tensor([2, 1])),
        "PitmanYor.partition": of(pitman_yor, num_samples=5),
        "PitmanYor.sticks": of(pitman_yor, num_sticks=5),
        "PitmanYor.log_num_clusters": of(pitman_yor, num_samples=3),
        "RandomPartition": call(measure=fn, num_samples=5),
        "StableBetaProcess": call(mass=2.0, discount=0.4, concentration=1.5),
        "GeneralizedGammaProcess.finite": of(measure, num_atoms=5),
        "GeneralizedGammaProcess.finite_error": of(measure, num_atoms=5, value=1.0),
        "GeneralizedGammaProcess.series": of(measure, num_jumps=5),
        "GeneralizedGammaProcess.num_jumps": of(measure, tolerance=0.1),
        "GeneralizedGammaProcess.lost_mass": of(measure, num_jumps=5),
        "GeneralizedGammaProcess.jumps_above": of(measure, level=0.1),
        "GeneralizedGammaProcess.tail": of(measure, value=torch.tensor([0.1, 1.0])),
        "GeneralizedGammaProcess.inverse_tail": of(measure, value=torch.tensor([0.1, 1.0])),
        "GeneralizedGammaProcess.log_levy_density": of(measure, value=torch.tensor([0.1, 1.0])),
        "GeneralizedGammaProcess.laplace_exponent": of(measure, value=torch.tensor([0.1, 1.0])),
        "GeneralizedGammaProcess.log_kappa": of(measure, order=1.0, tilt=0.5),
        "GeneralizedGammaProcess.exponential_tilt": of(measure, tilt=0.5),
        "GeneralizedGammaProcess.rescale": of(measure, scale=2.0),
        "Superposition": call({"measures": measure, "measures[1]": prime}),
        "TotalMass": call(measure=measure),
        "TruncatedSeries": call(num_atoms=5),
        "DeterministicArrivals": call(),
        "frequency_table": call(counts=torch.tensor([3, 1, 1]), num_rows=4),
        "kolmogorov_smirnov": call(observed=table, predicted=other),
        "log_num_partitions": call(table=table),
        "random_measure": call(name="G", measure=fn, base=dist.Normal(0.0, 3.0)),
        "rank_size_band": call(tables=[table, other], ranks=torch.tensor([1, 2])),
        "rank_sizes": call(table=table, ranks=torch.tensor([1, 2])),
        "reweighted_kolmogorov_smirnov": call(observed=table, predicted=other),
        "split_frequencies": call(table=table, num_samples=4),
    }


def measure_plots() -> dict[str, Call]:
    ax = plt.figure().subplots()
    labels, observed = DirichletProcess(1.0).partition(10).sample(), torch.tensor([[1, 30], [4, 3]])
    measure = GeneralizedGammaProcess(2.0, 0.4, 1.5)
    observed = torch.tensor([[1, 30], [4, 3], [20, 1]])
    return {
        "plot_cluster_sizes": call(labels=labels, ax=ax),
        "plot_num_clusters": call(labels=labels, ax=ax),
        "plot_rank_sizes": call(
            observed=observed,
            predicted={"same": [observed, observed]},
            ax=ax,
            colors={"same": "C0"},
        ),
        "plot_ranked_weights": call(weights=torch.rand(9), ax=ax),
        "plot_tail": call(measure=measure, weights=torch.rand(9), ax=ax),
    }


def reparam() -> dict[str, Call]:
    network = torch.nn.Sequential(torch.nn.Linear(4, 3))
    options = dict(left=1, right=1, strength=0.5)
    return {
        "ExpandedModule": call(module=network, prior_scale=1.0, **options),
        "ExpansionReparam": call(**options),
        "expand_module": call(module=network, **options),
        "merge_factors": call(
            left=[2.0 * torch.eye(3)], middle=torch.ones(3, 2), right=[torch.eye(2)]
        ),
    }


def nn() -> dict[str, Call]:
    attention: dict[str, Any] = dict(width=8, scaling="width")
    classifier = BayesianClassifier(BayesianModule(MLP(4, [3], 3), 0.5), batch_size=4)
    with pyro.poutine.block(), torch.no_grad():
        trace = pyro.poutine.trace(classifier).get_trace(torch.randn(8, 4), LABELS)
    samples = {name: trace.nodes[name]["value"][None] for name in trace.stochastic_nodes}
    samples = {name: value for name, value in samples.items() if name in classifier_sites(trace)}
    inputs = torch.randn(8, 4)
    return {
        "ISAB": call(in_features=3, num_inducing=2, **attention),
        "MAB": call(query_features=3, key_features=2, **attention),
        "MLP": call(in_features=3, hidden_features=[4], out_features=2, activation=torch.nn.ReLU),
        "PMA": call(in_features=3, **attention),
        "SAB": call(in_features=3, **attention),
        "BayesianClassifier": call(network=BayesianModule(MLP(4, [3], 3), 0.5), batch_size=4),
        "BayesianClassifier.probabilities": of(classifier, samples=samples, inputs=inputs),
        "BayesianClassifier.log_likelihood": of(
            classifier, samples=samples, inputs=inputs, labels=LABELS
        ),
        "BayesianModule": call(module=MLP(4, [3], 3), prior_scale=0.5),
        "FilterResponseNorm": call(num_channels=3),
        "InducedSetAttention": call(in_features=3, inducing_features=2, **attention),
        "NodeScale": call(variances=torch.rand(3)),
        "NodeScale.prune": of(NodeScale(torch.rand(3)), fraction=0.5),
        "ResNet": call(in_channels=1, num_classes=3, channels=(4, 4)),
        "asymmetric_variances": call(weights=torch.rand(3), symmetric_fraction=0.5),
        "init_to_module": call(module=MLP(4, [3], 3)),
        "largest_nodes": call(importance=torch.rand(4), fraction=0.5),
        "zipf_weights": call(num_nodes=4, index=0.5),
    }


def classifier_sites(trace: Any) -> list[str]:
    return [name for name in trace.stochastic_nodes if not name.endswith("data")]


def potential() -> dict[str, Call]:
    made = Potential(model, X)
    params = made.init(2, seed=0)

    def potential_fn(z):
        return z["loc"].square().sum()

    def loss_fn(params, x):
        return (x - params["loc"]).square()

    loc = {"loc": torch.tensor(0.0)}
    chains = {"loc": torch.zeros(2)}
    return {
        "FunctionPotential": call(potential_fn=potential_fn, params=chains),
        "PointPotential": call({"x": X}, model=model, backend="eager"),
        "Potential": call({"x": X}, model=model),
        "sum_out": call({"x": X}, model=model),
        "Potential.__call__": of(made, params=params),
        "Potential.value_and_grad": of(made, params=params),
        "Potential.full": of(made, params=params),
        "Potential.init": of(made),
        "Potential.constrain": of(made, params=params),
        "Potential.samples": of(made, params=params),
        "Potential.unconstrain": of(made, samples=params),
        "Potential.log_likelihood": of(made, samples=params),
        "Potential.predictive": of(made, samples=params),
        "Potential.prior": of(made, num_samples=2),
        "WeightedFunction": call(loss_fn=loss_fn, args=(X,), params=loc, subsample_size=4),
        "WeightedPotential": call(
            model=model, args=(X,), kwargs={}, plate="data", prior_weight=0.5, backend="eager"
        ),
        "check_backend": call(backend="eager"),
    }


def random() -> dict[str, Call]:
    return {
        "chain_keys": call(seed=0, chains=range(2)),
        "fresh_seed": call(seed=0),
        "seeded": call(seed=0),
        "spawn_seed": call(seed=0),
    }


def special() -> dict[str, Call]:
    x = torch.tensor([0.3, 0.6])
    return {
        "expm1mx": call(x=x),
        "exprel": call(x=x),
        "log1prel": call(x=x),
        "log_exprel": call(x=x),
        "log1mexp": call(x=-x),
        "log1mexp_at_log": call(log_x=x),
        "log_sinc": call(x=x, rest=1.0 - x),
        "log_lower_gamma": call(a=x, z=x),
        "log_lower_gamma_at_log": call(a=x, log_z=x),
        "log_upper_gamma": call(a=x, z=x),
        "gauss_legendre": call(num_nodes=4),
    }


def reproduction() -> dict[str, Call]:
    from pyro_ext.reproduction import Claim

    claim: dict[str, Any] = dict(
        statement="less",
        values={0: 1.0, 1: 1.0, 2: 1.0},
        comparison="<",
        bound=2.0,
        source="section 1",
    )
    return {
        "Claim": call(**claim),
        "Page": call(slug="page"),
        "Report": call(slug="page", claims=[Claim(**claim)]),
        "seeds": call(),
    }


TABLES = {
    "pyro_ext.datasets": datasets,
    "pyro_ext.diagnostics": diagnostics,
    "pyro_ext.diagnostics.diversity": diversity,
    "pyro_ext.diagnostics.diversity_plots": diversity_plots,
    "pyro_ext.diagnostics.function_space": function_space,
    "pyro_ext.diagnostics.metrics": metrics,
    "pyro_ext.diagnostics.partitions": partitions,
    "pyro_ext.diagnostics.plots": plots,
    "pyro_ext.diagnostics.stein": stein,
    "pyro_ext.diagnostics.temperature": temperature,
    "pyro_ext.distributions": distributions,
    "pyro_ext.handlers": handlers,
    "pyro_ext.nn": nn,
    "pyro_ext.potential": potential,
    "pyro_ext.random": random,
    "pyro_ext.random_measures": random_measures,
    "pyro_ext.random_measures.plots": measure_plots,
    "pyro_ext.reparam": reparam,
    "pyro_ext.reproduction": reproduction,
    "pyro_ext.special": special,
}
