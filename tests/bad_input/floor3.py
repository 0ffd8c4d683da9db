"""Valid calls of what floor 3 offers, for :mod:`walk` to spoil."""

from functools import partial
from typing import Any

import networkx
import pyro
import pyro.distributions as dist
import torch

from pyro_ext.distributions import GaussianCluster
from pyro_ext.models.graphs import EquivariantSplineFlow, GraphEmbeddingVAE, pad_graphs
from pyro_ext.models.language import BigramModel
from pyro_ext.models.neural_processes import (
    CNP,
    MPNP,
    NP,
    Batch,
    CrossAttentionEncoder,
    GPTasks,
    ImageTasks,
    PoolingEncoder,
    PredatorPreyTasks,
)
from pyro_ext.models.nonparametric import (
    EdgeOdds,
    FrequencyModel,
    GraphGuide,
    GraphModel,
    MixedMembership,
    NRMMixture,
    NRMModelMixture,
    SimpleGraph,
    bfry_weights,
    degree_odds,
    pitman_yor_prior,
)
from pyro_ext.models.sets import (
    ABMIL,
    AmortizedClusterer,
    FilteringNetwork,
    FilterOutput,
    SetTransformer,
    SlotMIL,
    gaussian_mixtures,
)
from pyro_ext.models.wide_networks import (
    AsymmetricNetwork,
    EqualJumps,
    beta_variances,
    horseshoe_variances,
)
from pyro_ext.random_measures import DirichletProcess, GeneralizedBFRYProcess
from tests.bad_input.walk import Call, call, of

X = torch.linspace(-1.0, 1.0, 8)
POINTS = torch.stack([X, X.cos()], -1)


def ensembles() -> dict[str, Call]:
    return {
        "base_networks": call(num_networks=1, num_epochs=0),
        "classification_task": call(
            inputs=torch.randn(9, 2),
            labels=torch.arange(9) % 3,
            num_training=6,
            hidden_features=(3,),
            prior_scale=1.0,
        ),
        "load_reference_posterior": call(name="digits"),
    }


def graphs() -> dict[str, Call]:
    paths = [networkx.path_graph(3), networkx.path_graph(4)]
    adjacency, mask = pad_graphs(paths)
    torch.manual_seed(0)
    vae = GraphEmbeddingVAE(width=4, num_blocks=1, flow_width=4, num_bins=2)
    data: dict[str, Any] = dict(adjacency=adjacency, mask=mask)
    sizes: dict[str, Any] = dict(num_bins=2, width=4, num_blocks=1)
    return {
        "EquivariantSplineFlow": call(dim=2, num_layers=1, mean_scale=20.0, **sizes),
        "EquivariantSplineFlow.condition": of(EquivariantSplineFlow(2, 1), context=mask),
        "GraphEmbeddingVAE": call(
            dim=2, num_layers=1, link="logit", width=4, num_blocks=1, flow_width=4, num_bins=2
        ),
        "GraphEmbeddingVAE.model": of(vae, **data),
        "GraphEmbeddingVAE.guide": of(vae, **data),
        "GraphEmbeddingVAE.prior": of(vae, mask=mask),
        "GraphEmbeddingVAE.decode": of(vae, embedding=torch.randn(2, 4, 4), mask=mask),
        "GraphEmbeddingVAE.loss": of(vae, **data),
        "GraphEmbeddingVAE.fit": of(vae, **data, num_steps=1, batch_size=2, progress=False),
        "GraphEmbeddingVAE.log_likelihood": of(vae, **data, num_particles=2),
        "GraphEmbeddingVAE.sample": of(vae, sizes=[3, 4]),
        "pad_graphs": call(graphs=paths, num_nodes=4, dtype=torch.float32),
        "spectral_embedding": call(adjacency=adjacency, mask=mask, dim=2),
    }


def language() -> dict[str, Call]:
    half = torch.tensor([0.5, 0.5])
    return {
        "BigramModel": call(init=half, trans=half.expand(2, 2)),
        "BigramModel.from_words": call(words=["ab", "ba"]),
        "ResidualLanguageModel": call(fixed=BigramModel(half, half.expand(2, 2))),
        "encode_words": call(words=["ab"]),
        "decode_words": call(tokens=torch.tensor([[0, 1]])),
    }


def neural_processes() -> dict[str, Call]:
    sizes: dict[str, Any] = dict(x_dim=1, y_dim=1, width=8)
    pseudo: dict[str, Any] = dict(**sizes, num_pseudo=2)
    torch.manual_seed(0)
    x, y = torch.randn(2, 6, 1), torch.randn(2, 6, 1)
    parts: dict[str, Any] = dict(
        context_inputs=x[:, :2],
        context_outputs=y[:, :2],
        target_inputs=x[:, 2:],
        target_outputs=y[:, 2:],
        context_mask=torch.ones(2, 2, dtype=torch.bool),
        target_mask=torch.ones(2, 4, dtype=torch.bool),
    )
    batch = Batch(**parts)
    context = dict(context_inputs=x[:, :2], context_outputs=y[:, :2], target_inputs=x)
    process = CNP(width=8)
    encoder = PoolingEncoder(1, 1, width=8)
    cross = CrossAttentionEncoder(1, 1, width=8)
    tasks = GPTasks("rbf", num_tasks=2, num_context=3, num_target=3)
    images = torch.rand(5, 4, 4)
    numbers = dict(num_context=2, num_target=3)
    grid = torch.linspace(-2.0, 2.0, 9).expand(2, 9)[..., None]

    def objective(chosen):
        return grid[torch.arange(2), chosen, 0]

    return {
        "ANP": call(**sizes),
        "BANP": call(**sizes),
        "BNP": call(**sizes),
        "CANP": call(**sizes),
        "CNP": call(**sizes),
        "NP": call(**sizes),
        "MPANP": call(**pseudo),
        "MPNP": call(**pseudo),
        "CNP.predict": of(process, **context),
        "NP.predict": of(NP(width=8), **context),
        "MPNP.predict": of(MPNP(width=8, num_pseudo=2), **context),
        "CNP.posterior_predictive": of(process, **context),
        "CNP.loss": of(process, batch=batch),
        "Batch": call(**parts),
        "BootstrapProcess": call(encoder=encoder),
        "ConditionalProcess": call(encoder=encoder),
        "CrossAttentionEncoder": call(**sizes, num_heads=2),
        "Decoder": call(representation_features=8, **sizes),
        "GPTasks": call(**numbers, lengthscale=(0.1, 0.6)),
        "GPTasks.__call__": of(tasks),
        "ImageTasks.__call__": of(ImageTasks(images, num_tasks=2, num_context=(2, 3))),
        "PredatorPreyTasks.__call__": of(PredatorPreyTasks(num_tasks=2, num_events=2000)),
        "ImageTasks": call(images=images, num_context=(2, 3), num_target=3),
        "JointEncoder": call(encoders=[encoder, cross]),
        "LatentProcess": call(encoder=encoder, latent_encoder=encoder),
        "MartingalePosteriorProcess": call(encoder=encoder),
        "PoolingEncoder": call(**sizes, out_features=8),
        "PredatorPreyTasks": call(**numbers),
        "RepresentationGenerator": call(encoder=encoder),
        "expected_improvement": call(
            prediction=dist.Normal(torch.zeros(1, 1), 1.0), best=torch.zeros(1)
        ),
        "fit": call(process=process, tasks=tasks, num_steps=1, num_samples=1, progress=False),
        "log_likelihoods": call(process=process, batches=[batch]),
        "minimize": call(process=process, objective=objective, candidates=grid, num_steps=1),
    }


def nonparametric() -> dict[str, Call]:
    edges = torch.tensor([[0, 1], [0, 2], [1, 2], [3, 4], [3, 5], [4, 5], [2, 3]])
    graph = SimpleGraph(6, edges)
    train, test = graph.hold_out(0.5, seed=0)
    model = GraphModel(bfry_weights(6))
    guide = GraphGuide(model, graph, seed=0).fit(1, progress=False)
    odds = EdgeOdds(torch.tensor([1.0, 2.0, 0.5, 1.0, 2.0, 0.5]))
    first, second = torch.tensor([0, 1]), torch.tensor([2, 3])
    frequencies = FrequencyModel(pitman_yor_prior)
    prior, cluster = DirichletProcess(1.0), GaussianCluster.from_data(POINTS)
    mixture = NRMMixture(prior, cluster)
    labels = torch.arange(8) % 2

    def latent(x):
        loc = pyro.sample("loc", dist.Normal(0.0, 5.0))
        with pyro.plate("points", len(x)):
            pyro.sample("x", dist.StudentT(5.0, loc, 1.0), obs=x)

    draws = {"concentration": torch.rand(2) + 0.5, "discount": torch.rand(2)}
    return {
        "FrequencyModel": call(prior=pitman_yor_prior),
        "FrequencyModel.predictive": of(frequencies, samples=draws, num_samples=4),
        "GraphGuide": call(model=model, graph=graph),
        "GraphGuide.fit": of(guide, num_steps=1, num_edges=2, num_pairs=2),
        "GraphGuide.sample": of(guide, num_samples=2),
        "GraphGuide.odds": of(guide, num_samples=2),
        "GraphModel": call(prior=bfry_weights(6), communities=MixedMembership(2)),
        "HeldOutPairs": call(fraction=0.2, seed=1),
        "MixedMembership": call(num_communities=2),
        "NRMMixture": call(prior=prior, cluster=cluster),
        "NRMMixture.log_joint": of(mixture, x=POINTS, assignment=labels),
        "NRMMixture.predict_clusters": of(
            mixture, x_new=POINTS[:2], x=POINTS, samples={"assignment": labels[None]}, labels=labels
        ),
        "NRMMixture.predictive_log_prob": of(
            mixture, x_new=POINTS, x=POINTS, samples={"assignment": labels[None]}
        ),
        "NRMModelMixture": call(prior=prior, cluster=latent, shared=()),
        "NRMModelMixture.predictive_log_prob": of(
            NRMModelMixture(prior, latent),
            {"x": X},
            samples={"assignment": labels[None], "loc": torch.randn(1, 8)},
            num_prior_draws=2,
        ),
        "SimpleGraph": call(num_nodes=6, edges=edges, held_out=None),
        "SimpleGraph.hold_out": of(graph, fraction=0.3, seed=0),
        "beta_prime_prior": call(),
        "generalized_bfry_prior": call(),
        "generalized_gamma_prior": call(),
        "pareto_mixture_prior": call(),
        "pitman_yor_prior": call(),
        "bfry_weights": call(num_nodes=6),
        "gamma_weights": call(),
        "EdgeOdds": call(weights=torch.tensor([1.0, 2.0, 0.5])),
        "EdgeOdds.log": of(odds, first=first, second=second),
        "degree_odds": call(graph=graph),
        "erdos_renyi_odds": call(graph=graph),
        "graph_log_likelihood": call(odds=odds, graph=graph),
        "log_link_probabilities": call(odds=[odds], first=first, second=second),
        "sample_graph": call(odds=odds),
        "score_links": call(odds=[degree_odds(train)], test=test),
        "simulate_graphs": call(guide=guide, num_graphs=1),
        "spectral_memberships": call(graph=graph, num_communities=2),
    }


def bags() -> dict[str, Call]:
    network = SlotMIL(2, 2, num_slots=3, hidden_size=4)
    attention = ABMIL(2, 2, hidden_size=4)
    x, mask, labels = torch.randn(3, 5, 2), torch.ones(3, 5, dtype=torch.bool), torch.arange(3) % 2
    sizes: dict[str, Any] = dict(input_size=2, num_classes=2)
    generator = torch.Generator()
    return {
        "ABMIL": call(**sizes),
        "ABMIL.forward": of(attention, x=x, mask=mask),
        "ABMIL.attention": of(attention, x=x, mask=mask),
        "GatedABMIL": call(**sizes),
        "SlotMIL": call(**sizes, normalize="queries"),
        "SlotMIL.forward": of(network, x=x, mask=mask),
        "SlotMIL.slots": of(network, x=x, mask=mask),
        "SlotMIL.attention": of(network, x=x, mask=mask),
        "SlotMIL.classify": of(network, slots=torch.randn(3, 2, 4)),
        "attention_concentration": call(weights=torch.rand(3, 5), mask=mask),
        "slot_mixup": call(slots=torch.randn(3, 2, 4), labels=labels, generator=generator),
        "submix_loss": call(
            network=network, x=x, labels=labels, mask=mask, alpha=1.0, generator=generator
        ),
        "subsample_bags": call(x=x, mask=mask, generator=generator),
    }


def wide_networks() -> dict[str, Call]:
    horseshoe = horseshoe_variances()
    inputs = torch.randn(3, 2)
    scales: dict[str, Any] = dict()
    one = torch.tensor(1.0)
    return {
        "AsymmetricNetwork": call(in_features=2, out_features=1, variances=torch.full((4,), 0.25)),
        "DependentWeightNetwork": call(
            in_features=2,
            hidden_features=[4],
            out_features=1,
            variances=horseshoe,
            activation=torch.nn.ReLU,
            **scales,
        ),
        "EqualJumps": call(rate=1.0),
        "NodeVariances": call(
            finite=lambda width: dist.Gamma(torch.ones(width), 1.0), jumps=EqualJumps(1.0)
        ),
        "NodeVariances.distribution": of(horseshoe, width=4),
        "NodeVariances.tail": of(horseshoe, value=one),
        "NodeVariances.laplace_exponent": of(horseshoe, value=one),
        "bernoulli_variances": call(),
        "beta_variances": call(),
        "equal_variances": call(),
        "horseshoe_variances": call(),
        "inverse_gamma_variances": call(),
        "mean_tangent_gram": call(inputs=inputs),
        "measure_variances": call(measure=GeneralizedBFRYProcess(4.5, 0.5, 5.0)),
        "mixture_kernel": call(in_features=2, variances=horseshoe, num_samples=2, **scales),
        "network_kernel": call(**scales),
        "pruning_error": call(
            variances=horseshoe, threshold=torch.tensor([0.01]), second_moment=0.5
        ),
        "regularized_horseshoe_variances": call(),
        "relu_covariance": call(cross=one, left=one, right=one),
        "step_covariance": call(cross=one, left=one, right=one),
        "sample_covariances": call(
            inputs=inputs, variances=horseshoe, num_samples=2, width=3, **scales
        ),
        "sample_outputs": call(covariances=torch.eye(3).expand(2, 3, 3), num_outputs=1),
        "scaled_variances": call(base=dist.Gamma(2.0, 1.0)),
        "square_correlation": call(
            variances=beta_variances(), second_moment=0.5, fourth_moment=1.5
        ),
        "tangent_gram": call(
            network=AsymmetricNetwork(2, 1, torch.full((4,), 0.25), seed=0), inputs=inputs
        ),
    }


def sets() -> dict[str, Call]:
    sizes: dict[str, Any] = dict(input_size=2, num_outputs=1, output_size=3, hidden_size=8)
    network = SetTransformer(**sizes, num_heads=2, num_inducing=2)
    data: dict[str, Any] = dict(x=torch.randn(2, 5, 2), mask=torch.ones(2, 5, dtype=torch.bool))
    return {
        "DeepSet": call(**sizes),
        "SetTransformer": call(**sizes, num_decoder_blocks=1),
        "SetTransformer.forward": of(network, **data),
    }


def clustering() -> dict[str, Call]:
    torch.manual_seed(0)
    small: dict[str, Any] = dict(width=4, num_blocks=1, num_inducing=2, num_heads=2)
    network, anchored = FilteringNetwork(2, **small), FilteringNetwork(2, anchored=True, **small)
    clusterer = AmortizedClusterer(network)
    mask = torch.ones(8, dtype=torch.bool)
    labels = torch.arange(8) % 3
    partition = dict(num_sets=2, num_points=5, max_clusters=3)
    output = FilterOutput(torch.zeros(8), None, torch.zeros(8))
    losses = dict(output=output, labels=labels)
    return {
        "AmortizedClusterer": call(network=network),
        "AmortizedClusterer.cluster": of(clusterer, x=POINTS, mask=mask, max_passes=3),
        "AmortizedClusterer.fit": of(
            clusterer, generator=partial(gaussian_mixtures, 2, 5), num_steps=1, progress=False
        ),
        "DiagonalNormal": call(num_features=2),
        "FilteringNetwork": call(in_features=2, **small),
        "FilteringNetwork.forward": of(anchored, x=POINTS, mask=mask, anchor=torch.tensor(3)),
        "RankOneNormal": call(num_features=2),
        "anchored_filtering_loss": call(**losses, anchor=torch.tensor(3)),
        "gaussian_mixtures": call(**partition),
        "labeled_mixtures": call(points=POINTS, classes=labels, **partition),
        "minimum_filtering_loss": call(**losses),
        "random_partitions": call(**partition),
    }


TABLES = {
    "pyro_ext.models.graphs": graphs,
    "pyro_ext.models.language": language,
    "pyro_ext.models.ensembles": ensembles,
    "pyro_ext.models.neural_processes": neural_processes,
    "pyro_ext.models.nonparametric": nonparametric,
    "pyro_ext.models.sets (bags)": bags,
    "pyro_ext.models.sets": sets,
    "pyro_ext.models.sets (clustering)": clustering,
    "pyro_ext.models.wide_networks": wide_networks,
}
