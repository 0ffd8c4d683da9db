"""The README: its example, what the rows of its table say to write, its links."""

import importlib
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine

from pyro_ext.distributions import GaussianCluster
from pyro_ext.groups import O, TensorRep
from pyro_ext.inference import MCMC, NUTS, SGHMC, SGLD
from pyro_ext.inference.averaging import SWAG
from pyro_ext.inference.training import ShuffledBatches
from pyro_ext.models.diffusion import digit_pipeline, digit_transformer_pipeline
from pyro_ext.models.sets import DeepSet
from pyro_ext.models.temporal_graphs import EventStream, TemporalGraphNetwork
from pyro_ext.nn import MLP, BayesianClassifier, BayesianModule
from pyro_ext.nn.axial import SXCNN
from pyro_ext.random_measures import DirichletProcess, GeneralizedGammaProcess, frequency_table

README = Path(__file__).parents[1] / "README.md"
CELLS = re.findall(r"^\| .+? \| (.+) \|$", README.read_text("utf-8"), re.MULTILINE)
# Spans of code in a row, and the module that they are from.
NAMES_FROM = re.compile(r"((?:`[^`]+`[ ,.]*(?:also |and )?)+)from `(pyro_ext[\w.]*)`")

X = (
    torch.randn(40, 2, generator=torch.Generator().manual_seed(0))
    + 4.0 * (torch.arange(40) % 2)[:, None]
)
LABELS = torch.arange(40) % 2


def regression(x, y):
    weight = pyro.sample("weight", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    with pyro.plate("data", len(x), subsample_size=20) as index:
        pyro.sample("y", dist.Normal(x[index] @ weight, 1.0), obs=y[index])


def line(x, y):
    slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(slope * x[:, 0], 1.0), obs=y)


def location(y):
    loc = pyro.sample("loc", dist.Normal(0.0, 5.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(loc, 1.0), obs=y)


def random_walk(y):
    x = torch.tensor(0.0)
    for t in pyro.markov(range(len(y))):
        x = pyro.sample(f"x_{t}", dist.Normal(x, 1.0))
        pyro.sample(f"y_{t}", dist.Normal(x, 1.0), obs=y[t])


def two_means(x, y):
    with pyro.plate("data", len(x)):
        pyro.sample("obs", dist.Normal(x[:, 0], 1.0), obs=y)


def two_kinds(y):
    loc = pyro.sample("loc", dist.Normal(torch.zeros(2), 3.0).to_event(1))
    with pyro.plate("data", len(y)):
        kind = pyro.sample("kind", dist.Categorical(torch.ones(2)))
        pyro.sample("y", dist.Normal(loc[kind], 1.0), obs=y)


def two_groups(y):
    weights = pyro.sample("weights", dist.Dirichlet(torch.ones(2)))
    with pyro.plate("groups", 2):
        loc = pyro.sample("loc", dist.Normal(0.0, 5.0).expand([2]).to_event(1))
        scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0).expand([2]).to_event(1))
    groups = dist.Normal(loc, scale).to_event(1)
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.MixtureSameFamily(dist.Categorical(weights), groups), obs=y)


def run_inference(model):
    return {"loc": torch.randn(100)}


def run(kernel, *data, **settings):
    return MCMC(kernel, num_samples=4, warmup_steps=2, progress=False, **settings).run(*data)


def run_model(model, *data):
    return run(SGLD(model, step_size=1e-4), *data)


Y = X[:, 0]
KERNEL = SGHMC(regression, step_size=1e-3)
PROCESS = DirichletProcess(1.0)
CLASSIFIER = BayesianClassifier(BayesianModule(MLP(2, [4], 2)))
CLUSTER = GaussianCluster.from_data(X)
MEASURE = GeneralizedGammaProcess(1.0, 0.5, 1.0)
TABLE = frequency_table([40, 9, 3, 2, 1, 1, 1])
EXTRACTOR = torch.nn.Linear(2, 4)
OF_EXTRACTOR = SWAG().collect(EXTRACTOR).collect(EXTRACTOR)


def pipeline():
    return {"pipeline": digit_pipeline(num_steps=0)}


# What the reader brings to an expression, and what is done with its value.
TENSORS = {"rep_in": TensorRep({1: 2}), "rep_out": TensorRep({2: 1}), "groups": [O(3)]}
READER = {
    "Potential(model, *args)": ({"model": regression, "args": (X, Y)}, None),
    "MCMC(kernel, num_samples=..., num_chains=...)": ({"kernel": KERNEL}, lambda m: m.run(X, Y)),
    "NUTS(model)": ({"model": line}, lambda k: run(k, X, Y)),
    "HMC(model)": ({"model": line}, lambda k: run(k, X, Y)),
    "MEADS(model)": ({"model": line}, lambda k: run(k, X, Y, num_chains=16)),
    "MarkovSMC(model).run(y)": ({"model": random_walk, "y": Y[:5]}, None),
    "TwistedSMC(base, twist, log_potential, length=20).run()": (
        {
            "base": lambda prefix: torch.full((len(prefix), 2), 0.5).log(),
            "twist": None,
            "log_potential": lambda sequences: sequences.sum(-1).float(),
        },
        None,
    ),
    "extrapolate(sizes, errors)": (
        {"sizes": 10.0 * 2.0 ** torch.arange(8), "errors": 0.9 ** torch.arange(8)},
        lambda found: found.interval(0.9),
    ),
    'ScalingLaw("M2")': (
        {},
        lambda law: law.fit(2.0 ** torch.arange(8), 0.9 ** torch.arange(8)).predict([200.0]),
    ),
    "PriorDataFittedNetwork(model)": (
        {"model": lambda x: pyro.sample("y", dist.Normal(x, 1.0).to_event(1))},
        lambda pfn: pfn.draw(2, 5, 2),
    ),
    'MCMC(..., checkpoint="folder")': ({"kernel": KERNEL}, lambda m: m.run(X, Y)),
    'to_arviz("folder")': ({}, None),
    "MCMC(..., chain_method=executor)": (
        {"kernel": KERNEL, "executor": ThreadPoolExecutor(1)},
        lambda m: m.run(X, Y),
    ),
    "tune(kernel, ...)": ({"kernel": KERNEL}, None),
    "train_generators(GeneratorField(2, 4), validity, num_steps, points=points)": (
        {"validity": lambda moved: moved.abs().mean((1, 2)), "num_steps": 1, "points": X},
        None,
    ),
    "FlowTransform(GeneratorField(2, 1), 0.5)": ({}, lambda transform: transform(X)),
    "OneParameterGroupAugmentation(AffineField(2))": (
        {},
        lambda augment: augment(torch.rand(3, 1, 8, 8)),
    ),
    "EarlyExit.wrap(pipeline.transformer, ExitSchedule.linear(8, 4))": (
        lambda: {"pipeline": digit_transformer_pipeline(num_steps=0)},
        lambda wrapped: wrapped(torch.randn(1, 1, 8, 8), torch.tensor([500]), LABELS[:1]),
    ),
    'DiffusionSampler.from_pipeline(pipeline, "seven")': (
        pipeline,
        lambda d: d.sample(),
    ),
    'SafeSelfDistillation.from_pipeline(pipeline, ["seven"])': (pipeline, lambda e: e.step()),
    'SGHMC(model, mass="laplace")': ({"model": regression}, lambda k: run(k, X, Y)),
    "sbc(model, run_inference)": (
        {"model": partial(location, Y), "run_inference": run_inference},
        None,
    ),
    "SGHMC(potential_fn=f, ...)": (
        {"f": lambda sites: 0.5 * sites["a"].square().sum()},
        lambda k: run(k, initial_params={"a": torch.zeros(1, 2)}),
    ),
    "to_arviz(mcmc)": ({}, None),
    'random_measure("G", measure, base)': (
        {"measure": MEASURE, "base": dist.Normal(0.0, 1.0)},
        None,
    ),
    "measure.normalize()": ({"measure": MEASURE}, None),
    "TreeGuided(prior, GaussianCluster.hyperprior(x))": (
        {"prior": PROCESS, "x": X},
        lambda k: run(k, X),
    ),
    "AuxiliaryGibbs(prior, model)": ({"prior": PROCESS, "model": location}, lambda k: run(k, Y)),
    "FrequencyModel(beta_prime_prior())": ({}, lambda m: run_model(m.with_tilt, TABLE)),
    "GraphModel(bfry_weights(num_nodes))": ({"num_nodes": 30}, None),
    "IndependenceMetropolis(model)": ({"model": location}, lambda k: run(k, Y)),
    'Gibbs([(NUTS(model), ["loc"]), (EnumeratedSites(), ["kind"])])': (
        {"model": two_kinds},
        lambda k: run(k, Y),
    ),
    "bhc(x, cluster)": ({"x": X, "cluster": CLUSTER}, None),
    "ibhc(x, cluster, prior)": ({"x": X, "cluster": CLUSTER, "prior": PROCESS}, None),
    'rbhc(x, "poisson", num_clusters=10)': ({"x": X.abs().round()}, None),
    "SXCNN(1, 10)": ({}, lambda network: network(torch.randn(2, 4, 5, 1))),
    "GXCNN(1, 10)": ({}, lambda network: network(torch.randn(2, 3, 4, 5, 1))),
    "check_axis_equivariance(module, shape)": (
        lambda: {"module": SXCNN(1, channels=4), "shape": (2, 4, 5, 6, 1)},
        None,
    ),
    "XMPP()": ({}, lambda network: network(torch.randn(2, 4, 4, 6, 1))),
    "XCViT()": ({}, lambda network: network(torch.randn(2, 2, 4, 6, 1), torch.rand(3, 2))),
    "BayesianClassifier(BayesianModule(MLP(64, [16], 10), prior_scale=0.5))": (
        {},
        lambda m: run_model(m, torch.randn(20, 64), torch.arange(20) % 10),
    ),
    'load_reference_posterior("digits")': ({}, None),
    "L2E.pretrained(model)": ({"model": CLASSIFIER}, lambda k: run(k, X, LABELS)),
    'poutine.reparam(model, config={"weight": ExpansionReparam()})': (
        {"model": CLASSIFIER},
        lambda m: run_model(m, X, LABELS),
    ),
    "MartingalePosterior(PolyaUrn(), Mean()).run(y)": ({"y": Y}, None),
    "CopulaDensity()": ({}, None),
    "PosteriorPredictive(model, kernel)": ({"model": location, "kernel": NUTS(location)}, None),
    "PosteriorBootstrap(model).run(x, y)": ({"model": line, "x": X, "y": Y}, None),
    "NPTL(backbone, head).run(x, y)": (
        {
            "backbone": torch.nn.Linear(2, 4),
            "head": torch.nn.Linear(4, 2),
            "x": X,
            "y": LABELS,
        },
        None,
    ),
    'ModelFusion(network, checkpoints, evaluate, {"f1": "maximize", "loss": "minimize"}).run(20)': (
        {
            "network": torch.nn.Linear(2, 2),
            "checkpoints": [torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)],
            "evaluate": lambda network: {"f1": network.bias[0], "loss": network.weight.sum()},
        },
        None,
    ),
    "AutoPseudocoreset(model, *data, size=100).fit(ForwardKL())": (
        {"model": line, "data": (X.repeat(10, 1), Y.repeat(10))},
        None,
    ),
    "SWAG(max_rank=20)": ({}, lambda swag: swag.collect(X[0]).collect(X[1]).sample()),
    "SWA()": ({}, lambda swa: swa.collect(EXTRACTOR).module(EXTRACTOR)),
    "AutoSWAG(model)": ({"model": line}, lambda guide: guide(X, Y)),
    "StochasticRepresentations(extractor, swag, head)": (
        {"extractor": EXTRACTOR, "swag": OF_EXTRACTOR, "head": torch.nn.Linear(4, 2)},
        lambda model: model.loss(X, LABELS),
    ),
    "SparseWeightAveraging(network).run(batches)": (
        {
            "network": torch.nn.Linear(2, 2),
            "batches": ShuffledBatches(X, LABELS, batch_size=20),
        },
        None,
    ),
    "PriorAugmentedELBO(PseudoInputGenerator(2), prior)": (
        {"prior": dist.Normal(0.0, 1.0)},
        lambda elbo: elbo.loss(two_means, lambda *_: None, X, Y),
    ),
    "AmortizedMixtureGuide(model, network)": (
        {"model": two_groups, "network": DeepSet(2, 2, 5)},
        lambda guide: guide.median(X),
    ),
    "MaskedAutoencoder((1, 28, 28)).fit(images, num_steps=400)": (
        {"images": torch.rand(2, 1, 28, 28)},
        lambda teacher: teacher.features(torch.rand(3, 1, 28, 28)),
    ),
    "MeanTeacher(network)": (
        {"network": torch.nn.Linear(9, 2)},
        lambda teacher: teacher.update(),
    ),
    "SlotMIL(64, 2)": ({}, lambda network: network(torch.randn(3, 5, 64))),
    "AmortizedClusterer(FilteringNetwork(2))": ({}, lambda clusterer: clusterer.cluster(X)),
    "TreeGuided(..., init=labels)": (
        {"labels": LABELS, "PROCESS": PROCESS, "CLUSTER": CLUSTER},
        lambda k: run(k, X),
    ),
    "SetVAE(2)": ({}, lambda vae: vae.sample([3, 5])),
    "SoftEMLP(rep_in, rep_out, groups)": (TENSORS, lambda network: network(torch.randn(2, 6))),
    "SoftEquivariantNormal(rep_in, rep_out, groups, strengths)": (
        {**TENSORS, "strengths": 10.0},
        lambda prior: prior.sample(),
    ),
    "BernoulliExponentialGraph(rates)": ({"rates": torch.rand(4, 2)}, lambda graph: graph.sample()),
    "SupervisedNotMIWAE(12, 9)": ({}, lambda model: model.impute(torch.randn(2, 4, 12))),
    "GraphEmbeddingVAE()": ({}, lambda vae: vae.sample([5, 7])),
    "RACE([1, 6, 8])": ({}, lambda race: race(torch.randn(3, 3), [8, 1, 1])),
    "IVON(parameters, ess=1000)": ({"parameters": [torch.zeros(2, requires_grad=True)]}, None),
    "fit_links(network, stream, 20, defense=TShield())": (
        {
            "network": TemporalGraphNetwork(4, 8),
            "stream": EventStream([0, 1, 2, 3], [1, 2, 3, 0], [0.0, 1.0, 2.0, 5.0]),
        },
        None,
    ),
    "TSpear(network).perturb(stream)": (
        {
            "network": TemporalGraphNetwork(4, 8),
            "stream": EventStream([0, 1, 2, 3], [1, 2, 3, 0], [0.0, 1.0, 2.0, 5.0]),
        },
        None,
    ),
    "add_lora(network, rank=8)": ({"network": torch.nn.Linear(9, 2)}, None),
    'HumanFeedbackInversion(pipeline, "odd", feedback)': (
        lambda: {**pipeline(), "feedback": lambda images: images.mean((1, 2, 3)) > 0.0},
        None,
    ),
    "ModularLoRA(unet)": ({"unet": torch.nn.Sequential(torch.nn.Linear(9, 2))}, None),
    'FederatedServer(network, "fedsvd")': (
        {"network": torch.nn.Linear(9, 2)},
        lambda server: server.round([(torch.randn(4, 9), LABELS[:4])]),
    ),
    "AdaptiveScorePurifier(score).predict(classifier, x)": (
        {"score": lambda x: 0.5 - x, "classifier": torch.nn.Linear(2, 3), "x": torch.rand(4, 2)},
        None,
    ),
    "early_stopping=EarlyStopping(...)": ({}, lambda settings: run(KERNEL, X, Y, **settings)),
}
# What takes the place of the README's dots.
DOTS = {
    "num_samples=..., num_chains=...": "num_samples=4, num_chains=2, progress=False",
    "MCMC(...": "MCMC(kernel, num_samples=4, progress=False",
    "TreeGuided(...": "TreeGuided(PROCESS, CLUSTER",
    "(kernel, ...": "(kernel, X, Y, num_steps=200, progress=False",
    "potential_fn=f, ...": "potential_fn=f, step_size=0.1",
    "EarlyStopping(...)": "EarlyStopping(r_hat=1.1)",
}


def names() -> Iterator[tuple[str, str]]:
    """Names and the modules that the rows say they are from."""
    for cell in CELLS:
        for spans, module in NAMES_FROM.findall(cell):
            for name in re.findall(r"`([A-Z]\w*(?=\.\w+\()|[A-Za-z_]\w*(?=[(`]))", spans):
                yield name, module


def test_rows_name_what_exists(subtests):
    found = list(names())
    assert len(found) > 40
    for name, module in found:
        with subtests.test(name):
            assert hasattr(importlib.import_module(module), name), f"{name} from {module}"


@pytest.mark.slow
@pytest.mark.filterwarnings(
    "ignore:the draws of",
    "ignore:the best step_size",
    "ignore::DeprecationWarning",
    "ignore::torch.jit.TracerWarning",
)
def test_rows_run_as_written(subtests, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rooms = {module for _, module in names()} | {"pyro_ext.random_measures", "pyro_ext.reparam"}
    modules = [importlib.import_module(room) for room in sorted(rooms)]
    scope = {name: getattr(module, name) for module in modules for name in module.__all__}
    scope |= {"NUTS": NUTS, "poutine": poutine, "X": X, "Y": Y, "mcmc": run(KERNEL, X, Y)}
    spans = [span for cell in CELLS for span in re.findall(r"`([^`]+)`", cell)]
    spans = [span for span in spans if "(" in span and not span.startswith(".")]
    assert set(spans) == set(READER)
    for span in spans:
        brought, use = READER[span]
        brought = brought() if callable(brought) else brought
        code = span
        for dots, words in DOTS.items():
            code = code.replace(dots, words)
        with subtests.test(span):
            pyro.clear_param_store()
            pyro.set_rng_seed(0)
            value = eval(f"dict({code})" if re.match(r"\w+=", code) else code, scope | brought)
            if use is not None:
                use(value)


@pytest.mark.slow
def test_example(capsys):
    (code,) = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    # Fewer draws than the reader takes, so that the test does not take as long.
    code = code.replace("num_samples=500", "num_samples=100").replace("steps=2000", "steps=500")
    scope: dict[str, object] = {}
    exec(compile(code, "README.md", "exec"), scope)
    assert "r_hat" in capsys.readouterr().out
    assert scope["mcmc"].get_samples()["weight"].shape == (400, 30)


def test_links_lead_somewhere():
    targets = re.findall(r"\]\((?!https?:)([^)]+)\)", README.read_text())
    assert targets
    for target in targets:
        assert (README.parent / target).exists(), target
