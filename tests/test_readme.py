"""The README and the list of methods: their example, what rows say to write, their links."""

import importlib
import re
import tomllib
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch.utils.data import DataLoader, TensorDataset

from pyro_ext import __version__
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

ROOT = Path(__file__).parents[1]
README, METHODS = ROOT / "README.md", ROOT / "docs" / "methods.md"
# What one wants, which leads to a page; what one writes; where its names are from.
TASK = r"(?:\{doc\}`(?P<task>[^`<]+) <(?P<page>[\w/]+)>`|\[(?P<text>[^]]+)\]\((?P<path>[\w/.]+)\))"
ROW = re.compile(
    rf"^\| {TASK} \| (?P<write>.+?) \| (?P<modules>[^|]*pyro_ext[^|]*) \|$", re.MULTILINE
)


class Row(NamedTuple):
    """A row of a table of tasks."""

    task: str
    spans: list[str]
    modules: list[str]
    page: str

    @property
    def names(self):
        """Names that its spans of code begin with, and classes within them."""
        for span in self.spans:
            code = re.sub(r"'[^']*'|\"[^\"]*\"", "", span)
            if not code.startswith("pyro-ext "):
                yield from re.findall(r"^[a-z]\w+(?=\(|$)|\b(?<!\.)[A-Z]\w*", code)


def rows_of(text):
    for row in ROW.finditer(text):
        spans = re.findall(r"`([^`]+)`", row["write"])
        modules = re.findall(r"pyro_ext[\w.]*", row["modules"])
        yield Row(row["task"] or row["text"], spans, modules, row["page"] or row["path"])


SECTIONS = {
    title: list(rows_of(text))
    for title, text in re.findall(
        r"^## ([^\n]+)$(.+?)(?=^## |\Z)", METHODS.read_text("utf-8"), re.MULTILINE | re.DOTALL
    )
}
IN_README = list(rows_of(README.read_text("utf-8")))
ROWS = [row for rows in SECTIONS.values() for row in rows]

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
NETWORK = torch.nn.Linear(2, 2)
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
    "ChEES(model)": ({"model": line}, lambda k: run(k, X, Y, num_chains=16)),
    "MEADS(model)": ({"model": line}, lambda k: run(k, X, Y, num_chains=16)),
    "pathfinder(model, *args)": ({"model": regression, "args": (X, Y)}, None),
    "TemperedSMC(model).run(*args)": ({"model": line, "args": (X, Y)}, None),
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
    'DiffusionSampler.from_pipeline(pipeline, "seven")': (pipeline, lambda d: d.sample()),
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
    "SGHMC(model, step_size=0.01)": ({"model": regression}, lambda k: run(k, X, Y)),
    'SGHMC(model, step_size=0.01, control_variate="map")': (
        {"model": regression},
        lambda k: run(k, X, Y),
    ),
    "SGHMC(model, step_size=0.01, temperature=0.0)": (
        {"model": regression},
        lambda k: run(k, X, Y),
    ),
    "CyclicalSchedule(0.01, num_cycles=4, num_steps=100)": (
        {},
        lambda schedule: run(SGHMC(regression, step_size=schedule), X, Y),
    ),
    "StreamingMCMC(kernel, num_samples=...)": ({"kernel": KERNEL}, lambda m: m.run(X, Y)),
    "Trainer(network)": (
        {"network": NETWORK},
        lambda trainer: trainer.run(lambda: NETWORK(X).square().mean(), 1, progress=False),
    ),
    'load("breast_cancer")': ({}, None),
    "names()": ({}, None),
    'data_weights("data", weights)': (
        {"weights": torch.ones(40)},
        lambda weighted: weighted(line)(X, Y),
    ),
    "bald(means, variances)": ({"means": torch.randn(3, 5), "variances": torch.rand(3, 5)}, None),
    "BatchEnsembleDistiller(network, teachers)": (
        {"network": NETWORK, "teachers": [torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)]},
        lambda distiller: distiller.loss(X, LABELS),
    ),
    "AutoAdjointSampler(model)": (
        {"model": line},
        lambda guide: guide.fit(X, Y, num_steps=1, progress=False),
    ),
    "TreeGuided(prior, GaussianCluster.hyperprior(x))": (
        {"prior": PROCESS, "x": X},
        lambda k: run(k, X),
    ),
    "AuxiliaryGibbs(prior, model)": ({"prior": PROCESS, "model": location}, lambda k: run(k, Y)),
    "FrequencyModel(beta_prime_prior)": ({}, lambda m: run_model(m.with_scaled_tilt, TABLE)),
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
        {"backbone": torch.nn.Linear(2, 4), "head": torch.nn.Linear(4, 2), "x": X, "y": LABELS},
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
        {"network": torch.nn.Linear(2, 2), "batches": ShuffledBatches(X, LABELS, batch_size=20)},
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
    "MeanTeacher(network)": ({"network": torch.nn.Linear(9, 2)}, lambda teacher: teacher.update()),
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
    "SupervisedNotMIWAE(12, 9)": ({}, lambda model: model.predict(torch.randn(2, 4, 12))),
    "GraphEmbeddingVAE()": ({}, lambda vae: vae.sample([5, 7])),
    "RACE([1, 6, 8])": ({}, lambda race: race(torch.randn(3, 3), [8, 1, 1])),
    "IVON(parameters, ess=1000)": ({"parameters": [torch.zeros(2, requires_grad=True)]}, None),
    'AutoLaplaceGGN(network, loader, "regression")': (
        {
            "network": BayesianModule(torch.nn.Linear(2, 1)),
            "loader": DataLoader(TensorDataset(torch.ones(3, 2), torch.ones(3, 1))),
        },
        None,
    ),
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
    "num_samples=...": "num_samples=4, progress=False",
    "MCMC(...": "MCMC(kernel, num_samples=4, progress=False",
    "TreeGuided(...": "TreeGuided(PROCESS, CLUSTER",
    "(kernel, ...": "(kernel, X, Y, num_steps=200, progress=False",
    "potential_fn=f, ...": "potential_fn=f, step_size=0.1",
    "EarlyStopping(...)": "EarlyStopping(r_hat=1.1)",
}


def test_tables_are_short_enough_to_read():
    assert 8 <= len(IN_README) <= 12 and len(README.read_text("utf-8").splitlines()) <= 110
    assert len(ROWS) > 80 and all(0 < len(rows) <= 12 for rows in SECTIONS.values())
    # No row is overlooked: each table has a header, a rule and what was read of it.
    lines = [line for line in METHODS.read_text("utf-8").splitlines() if line.startswith("|")]
    assert len(lines) == len(ROWS) + 2 * len(SECTIONS)


def test_no_row_stands_twice():
    for rows in (IN_README, ROWS):
        tasks = [row.task for row in rows]
        spans = [span for row in rows for span in row.spans if "(" in span]
        assert len(set(tasks)) == len(tasks) and len(set(spans)) == len(spans)


def test_rows_of_the_readme_are_rows_of_the_methods():
    """Which run as they are written, below."""
    homes = {span: row.modules for row in ROWS for span in row.spans}
    for row in IN_README:
        assert any("(" in span for span in row.spans)
        for span in row.spans:
            assert set(row.modules) <= set(homes[span]), span


def test_rows_name_what_exists(subtests):
    for row in (*IN_README, *ROWS):
        homes = {name: importlib.import_module(name) for name in row.modules}
        found = set(row.names)
        with subtests.test(row.task):
            for name in found:
                assert any(name in home.__all__ for home in homes.values()), name
            for module, home in homes.items():
                assert found & set(home.__all__), module


def test_rows_lead_to_pages(subtests):
    for row in IN_README:
        with subtests.test(row.task):
            assert (ROOT / row.page).exists()
    for row in ROWS:
        with subtests.test(row.task):
            if row.page.startswith("gallery/"):
                assert (ROOT / f"{row.page.replace('gallery', 'tutorials', 1)}.py").exists()
            else:
                assert list((ROOT / "docs").glob(f"{row.page}.*"))


def test_each_call_has_a_reader():
    assert {span for row in ROWS for span in row.spans if "(" in span} == set(READER)


@pytest.mark.slow
@pytest.mark.filterwarnings(
    "ignore:the draws of",
    "ignore:the best step_size",
    "ignore::DeprecationWarning",
    "ignore::torch.jit.TracerWarning",
)
@pytest.mark.parametrize("section", SECTIONS)
def test_rows_run_as_written(section, subtests, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    given = {"poutine": poutine, "X": X, "Y": Y, "mcmc": run(KERNEL, X, Y)}
    rows = SECTIONS[section]
    for span, modules in ((s, row.modules) for row in rows for s in row.spans if "(" in s):
        brought, use = READER[span]
        brought = brought() if callable(brought) else brought
        homes = [importlib.import_module(module) for module in modules]
        scope = {name: getattr(home, name) for home in homes for name in home.__all__}
        code = span
        for dots, words in DOTS.items():
            code = code.replace(dots, words)
        with subtests.test(span):
            pyro.clear_param_store()
            pyro.set_rng_seed(0)
            code = f"dict({code})" if re.match(r"\w+=", code) else code
            value = eval(code, given | scope | brought)
            if use is not None:
                use(value)


def table_of(text):
    """The numbers of a table that ArviZ prints, by row."""
    return {
        name: [float(number) for number in numbers.split()]
        for name, numbers in re.findall(r"^(weight\[\w+\])((?: +-?[\d.]+)+)$", text, re.MULTILINE)
    }


@pytest.mark.slow
def test_example_prints_what_the_page_says(capsys):
    """Correct code fails with one seed in a thousand: bounds are of 4 standard errors and more."""
    text = README.read_text("utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    exec(compile(code, "README.md", "exec"), {})
    printed = capsys.readouterr().out
    assert re.findall(r"^ +mean .*$", printed, re.MULTILINE)[0] in text
    found, told = table_of(printed), table_of(text)
    assert found.keys() == told.keys() and len(told) == 4
    for name, (mean, sd, *_, r_hat) in found.items():
        assert abs(mean - told[name][0]) < 0.25 * told[name][1]
        assert abs(sd / told[name][1] - 1.0) < 0.15
        assert r_hat < 1.02


def test_links_lead_somewhere():
    targets = re.findall(r"\]\((?!https?:)([^)]+)\)", README.read_text("utf-8"))
    assert len(targets) > 10
    for target in targets:
        assert (ROOT / target).exists(), target


def test_citation_is_of_this_package():
    text = (ROOT / "CITATION.cff").read_text("utf-8")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    fields = dict(re.findall(r"^([\w-]+): (.+)$", text, re.MULTILINE))
    assert fields["version"] == __version__ and fields["license"] == project["license"]
    assert re.findall(r"^  - name: (.+)$", text, re.MULTILINE) == [project["authors"][0]["name"]]
    assert set(re.findall(r"^  - ([^:\n]+)$", text, re.MULTILINE)) == set(project["keywords"])
