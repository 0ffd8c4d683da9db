"""What a run is of: another density or quantity is told apart, and rounding is not."""

import json
import math
import sys
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import HMC, NUTS

from pyro_ext.checkpoint import Checkpoint, CheckpointError
from pyro_ext.diagnostics import to_arviz
from pyro_ext.distributions import GaussianCluster
from pyro_ext.inference import (
    MCMC,
    SGHMC,
    SGLD,
    AuxiliaryGibbs,
    LaplaceHMC,
    MarginalGibbs,
    StreamingMCMC,
    TreeGuided,
)
from pyro_ext.posterior import fixed_points
from pyro_ext.posterior.identity import (
    density_identity,
    differences,
    function_identity,
    kernel_at,
    model_identity,
)
from pyro_ext.potential import Potential
from pyro_ext.random_measures import DirichletProcess, GeneralizedGammaProcess, PitmanYor

X = torch.randn(40, generator=torch.Generator().manual_seed(0))
ROWS = torch.randn(20, 2, generator=torch.Generator().manual_seed(1))
CLUSTER = GaussianCluster.from_data(ROWS)


def normal(loc=0.0, scale=10.0, noise=1.0, data=None, batch=None):
    def model(x):
        center = pyro.sample("center", dist.Normal(loc, scale))
        pyro.deterministic("twice", 2.0 * center)
        with pyro.plate("data", len(x), subsample_size=batch) as index:
            seen = x if data is None else data
            pyro.sample("x", dist.Normal(center, noise), obs=seen[index])

    return model


def labels(rate=0.5, scale=5.0):
    """With a discrete latent site, which NUTS sums out."""

    def model(x):
        center = pyro.sample("center", dist.Normal(torch.zeros(2), scale).to_event(1))
        with pyro.plate("data", len(x)):
            kind = pyro.sample("kind", dist.Bernoulli(rate), infer={"enumerate": "parallel"})
            pyro.sample("x", dist.Normal(center[kind.long()], 1.0), obs=x)

    return model


def measure(shape=1.0, discount=0.3):
    def prior():
        mass = pyro.sample("mass", dist.Gamma(shape, 1.0))
        return GeneralizedGammaProcess(mass, discount, 1.0).normalize()

    return prior


def gaussian(precision=1.0):
    def cluster():
        spread = pyro.sample("spread", dist.LogNormal(0.0, precision))
        return GaussianCluster(torch.zeros(2), 0.1, 5.0, spread * torch.eye(2))

    return cluster


def points(scale=5.0, dof=5.0):
    def cluster(x):
        center = pyro.sample("center", dist.Normal(0.0, scale))
        with pyro.plate("points", len(x)):
            pyro.sample("x", dist.StudentT(dof, center, 1.0), obs=x)

    return cluster


def square(factor=1.0):
    return lambda z: factor * z["z"].square().sum()


OTHER = X.clone()
OTHER[7] += 0.1

PARTITION = partial(MarginalGibbs, cluster=CLUSTER)
NORMAL = partial(MarginalGibbs, DirichletProcess(1.0))
POINTS = partial(AuxiliaryGibbs, DirichletProcess(1.0))

# What takes a model, models of two runs, their data, and what of them differs.
DENSITIES = {
    "prior of SGLD": (SGLD, normal(), normal(scale=10.1), X, "center"),
    "prior under minibatches": (SGHMC, normal(batch=5), normal(loc=0.1, batch=5), X, "center"),
    "noise of LaplaceHMC": (LaplaceHMC, normal(), normal(noise=1.01), X, "x"),
    "prior of NUTS": (NUTS, normal(), normal(scale=0.01), X, "center"),
    "hidden data": (NUTS, normal(data=X), normal(data=OTHER), X, "x"),
    "noise of HMC": (HMC, normal(), normal(noise=1.01), X, "x"),
    "rate of labels": (NUTS, labels(), labels(rate=0.51), X, "kind"),
    "hyperprior": (PARTITION, measure(), measure(shape=1.01), ROWS, "sites of prior"),
    "discount": (
        partial(TreeGuided, cluster=CLUSTER),
        measure(),
        measure(discount=0.301),
        ROWS,
        "partition",
    ),
    "concentration": (PARTITION, DirichletProcess(1.0), DirichletProcess(1.01), ROWS, "partition"),
    "kind of process": (PARTITION, DirichletProcess(1.0), PitmanYor(0.01, 1.0), ROWS, "partition"),
    "hyperprior of clusters": (NORMAL, gaussian(), gaussian(1.01), ROWS, "clusters and data"),
    "clusters": (POINTS, points(), points(scale=5.1), X, "clusters and data"),
    "noise of clusters": (POINTS, points(), points(dof=5.1), X, "clusters and data"),
    "function of SGLD": (SGLD, square(), square(1.001), None, "potential_fn"),
    "function of NUTS": (NUTS, square(), square(1.001), None, "potential_fn"),
}


def densities(kernel, data):
    args = () if data is None else (data,)
    start = {"z": torch.zeros(3)} if data is None else None
    found, _ = density_identity(kernel_at(kernel, args, {}, start), {})
    return json.loads(json.dumps(found))


@pytest.mark.parametrize("name", DENSITIES)
def test_another_density_is_told_apart(name):
    kernel_type, before, after, data, part = DENSITIES[name]

    def of(given):
        if data is None:
            return densities(kernel_type(potential_fn=given), data)
        return densities(kernel_type(given), data)

    assert of(before) and differences(of(before), of(before)) == []
    found = differences(of(before), of(after))
    assert any(text.startswith(f"{part} at a fixed point is ") for text in found), found


def test_all_of_the_data_count_where_a_part_is_seen():
    x = torch.randn(20_000, generator=torch.Generator().manual_seed(0))
    other = x.clone()
    other[7] += 0.5
    one, two, three = (
        model_identity(None, Potential(normal(data=data, noise=noise, batch=1000), x))
        for data, noise in ((x, 1.0), (other, 1.0), (x, 1.001))
    )
    assert differences(one, one) == []
    assert differences(one, two)[0].startswith("observed values: x at a fixed point is ")
    assert differences(one, three)[0].startswith("potential at a fixed point is ")


QUANTITIES = {
    "another sign": (lambda s: s["center"], lambda s: s["center"].abs()),
    "a deterministic site": (lambda s: s["twice"], lambda s: s["center"]),
    "far out": (lambda s: s["center"], lambda s: s["center"].clamp(-1.5, 1.5)),
    "integers": (lambda s: (s["center"] > 0).long(), lambda s: (s["center"] > 1).long()),
    "another shape": (lambda s: s["center"], lambda s: s["center"].expand(2)),
}


@pytest.mark.parametrize("name", QUANTITIES)
def test_another_quantity_of_the_same_name_is_told_apart(name):
    def recorded(function):
        point_of = kernel_at(SGLD(normal()), (X,), {}, None)
        return density_identity(point_of, {"q": function})[1]

    before, after = QUANTITIES[name]
    assert differences(recorded(before), recorded(before)) == []
    (text,) = differences(recorded(before), recorded(after))
    assert text.startswith("q at a fixed point is ")


def network(x, y, off=0.0):
    """Observations are far from zero, so that their residuals have few digits."""
    hidden = x
    for layer, shape in enumerate([(8, 20), (20, 20), (20, 1)]):
        prior = dist.Normal(x.new_zeros(shape), 1.0).to_event(2)
        hidden = (hidden @ pyro.sample(f"weight{layer}", prior)).tanh()
    noise = pyro.sample("noise", dist.HalfCauchy(x.new_ones(())))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.StudentT(4.0, 1e3 + off + hidden[:, 0], noise), obs=y)


def test_rounding_is_no_difference():
    """Single against double precision is more than another machine makes of either."""
    x = torch.randn(2000, 8, generator=torch.Generator().manual_seed(0))
    y = 1e3 + x.sum(-1)

    def prints(*args):
        found = fixed_points.points_of(fixed_points.model_at(network, args, {}))
        epsilon = torch.finfo(torch.float32).eps
        return {
            name: fixed_points.fingerprint([point.terms[name] for point in found], epsilon)
            for name in found[0].terms
        }

    single = prints(x, y)
    assert differences(single, prints(x.double(), y.double())) == []
    (text,) = differences(single, prints(x, y, 1e-2))
    assert text.startswith("y at a fixed point")
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        assert differences(single, prints(x, y)) == []
    finally:
        torch.set_num_threads(threads)


def test_a_density_that_is_not_finite(subtests):
    def half(x, level):
        center = pyro.sample("center", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Uniform(center, center + level), obs=x)

    def failing(x, level):
        center = pyro.sample("center", dist.Normal(0.0, level))
        torch.linalg.cholesky(center * torch.eye(2))

    def nowhere(x, level):
        center = pyro.sample("center", dist.Normal(0.0, level))
        pyro.factor("f", center * math.nan)

    for model in (half, failing, nowhere):
        with subtests.test(model.__name__):
            one, other = (densities(NUTS(partial(model, level=k)), X) for k in (1.0, 1.5))
            assert one and not differences(one, one)
            assert differences(one, other)
            json.dumps(one, allow_nan=False)


def test_points_disturb_no_generator():
    state = torch.get_rng_state()
    densities(NUTS(labels()), X)
    assert torch.equal(state, torch.get_rng_state())


RUNS = {
    "SGLD": (lambda **o: SGLD(normal(**o)), X, "model: log density: center"),
    "NUTS": (lambda **o: NUTS(normal(**o)), X, "model: log density: center"),
    "MarginalGibbs": (
        lambda scale=1.0: MarginalGibbs(measure(shape=scale), CLUSTER),
        ROWS,
        "model: log density: sites of prior",
    ),
}


@pytest.mark.parametrize("name", RUNS)
def test_a_run_does_not_go_on_under_another_density(name, tmp_path):
    make, data, position = RUNS[name]

    def run(num_samples, quantity=lambda s: torch.zeros(()), **changes):
        options = {"seed": 0, "checkpoint": tmp_path, "quantities": {"q": quantity}}
        mcmc = MCMC(make(**changes), num_samples, 2, progress=False, **options)
        return mcmc.run(data).get_samples()

    first = run(3)
    for changes, message in (
        ({"scale": 0.01}, f"another run: {position} at a fixed point is .* there and .* here"),
        ({"quantity": lambda s: torch.ones(())}, "another run: recorded: quantities: q at a fixed"),
    ):
        with pytest.raises(CheckpointError, match=message):
            run(6, **changes)
    again = run(6)
    assert all(torch.equal(value, again[site][:3]) for site, value in first.items())
    kept = Checkpoint(tmp_path).get_samples()
    assert all(torch.equal(value, again[site]) for site, value in kept.items())
    assert list(to_arviz(tmp_path)["posterior"]["chain"].values) == [0]


def test_moments_are_no_draws(tmp_path):
    kernel = SGLD(potential_fn=square())
    options = {"initial_params": {"z": torch.zeros(1, 3)}, "checkpoint": tmp_path}
    StreamingMCMC(kernel, 3, seed=0, progress=False, **options).run()
    with pytest.raises(CheckpointError, match="moments of a StreamingMCMC, no draws"):
        Checkpoint(tmp_path).get_samples()


def test_a_run_that_observes_residuals_goes_on(tmp_path):
    """What it observes is another thing at each draw, and no part of what the run is of."""

    def model(x, y):
        slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x), subsample_size=10) as index:
            pyro.sample("residual", dist.Normal(0.0, 1.0), obs=y[index] - slope * x[index])

    for seed, num_samples in enumerate((2, 4)):
        torch.manual_seed(seed)
        kernel = SGLD(model, step_size=1e-3)
        mcmc = MCMC(kernel, num_samples, checkpoint=tmp_path / "run", progress=False)
        assert mcmc.run(X, X**2).num_draws == num_samples


SCALE = 1.0


def infers(scale=SCALE, step=0.1, off=0.0):
    found = []

    def infer(model, x, thinning=2):
        found.append(x)
        return [helper(model) * step * thinning for _ in range(3)], off

    def helper(model):
        return scale * len(infer.__name__) * SCALE

    return infer


def test_functions_are_told_apart_by_code_and_values(monkeypatch):
    known = function_identity(infers())
    assert known == function_identity(infers()) and known["name"].endswith("infer")
    used = infers()
    used(None, 1.0)
    assert known == function_identity(used)
    others = [infers(step=0.2), infers(scale=2.0), infers(off=torch.zeros(2))]
    others += [partial(infers(), thinning=2), partial(infers(), thinning=3)]
    others += [lambda x: [x * 1 for _ in range(3)], lambda x: [x * 2 for _ in range(3)]]
    others += [infers(off=torch.ones(2)), infers(off=torch.nn.Linear(1, 1))]
    monkeypatch.setattr(sys.modules[__name__], "SCALE", 3.0)
    codes = [function_identity(function)["code"] for function in (*others, infers(scale=1.0))]
    assert len({known["code"], *codes}) == len(codes) + 1
