"""What Pyro's driver does and ours must do alike: validation, and the words of its arguments."""

from functools import partial

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import HMC, NUTS
from pyro.infer import MCMC as PyroMCMC
from pyro.infer.reparam import LocScaleReparam
from torch.distributions import biject_to, constraints

from pyro_ext.diagnostics import to_arviz
from pyro_ext.inference import MCMC, SGHMC, SGLD, Gibbs, PosteriorBootstrap, RandomWalk

QUIET = {"seed": 0, "progress": False}
INPUTS = torch.linspace(-1.0, 1.0, 20)
OUTPUTS = (INPUTS + 0.5 * (0.5 + INPUTS).square() * torch.sin(4.0 * INPUTS)).sub(0.1).mul(2.0)


def gaussian_process(x, y):
    variance = pyro.sample("variance", dist.LogNormal(0.0, 10.0))
    noise = pyro.sample("noise", dist.LogNormal(0.0, 10.0))
    length = pyro.sample("length", dist.LogNormal(0.0, 10.0))
    kernel = variance * torch.exp(-0.5 * ((x[:, None] - x) / length).square())
    covariance = kernel + (noise + 1e-6) * torch.eye(len(x))
    pyro.sample("y", dist.MultivariateNormal(torch.zeros(len(x)), covariance), obs=y)


def scale_of_zeros(x):
    """The scale shrinks until its exponential underflows."""
    scale = pyro.sample("scale", dist.LogNormal(0.0, 10.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(0.0, scale), obs=x)


def far(model):
    """A kernel whose steps overflow."""
    return NUTS(model, step_size=30.0, adapt_step_size=False)


def pyros_own_nuts(x):
    mcmc = PyroMCMC(NUTS(multinomial, max_tree_depth=2), 4, 4, disable_progbar=True)
    mcmc.run(x)
    return mcmc


@pytest.mark.parametrize(
    ("model", "args"),
    [(gaussian_process, (INPUTS, OUTPUTS)), (scale_of_zeros, (torch.zeros(20),))],
    ids=["gaussian process", "scale of zeros"],
)
@pytest.mark.filterwarnings("ignore:Encountered NaN")
def test_steps_are_validated_as_under_pyros_driver(model, args, subtests):
    for seed in range(3):
        with subtests.test(seed=seed):
            mcmc = MCMC(far(model), 5, seed=seed, progress=False).run(*args)
            words = np.random.SeedSequence(seed, spawn_key=(0, 1)).generate_state(1)
            pyro.set_rng_seed(int(words[0]))
            pyros = PyroMCMC(far(model), 5, 0, disable_progbar=True)
            pyros.run(*args)
            for name, draws in pyros.get_samples().items():
                torch.testing.assert_close(mcmc.get_samples()[name], draws, rtol=0.0, atol=0.0)
    for value in (False, None):
        with subtests.test(disable_validation=value):
            mcmc = MCMC(far(model), 5, disable_validation=value, **QUIET)
            with pytest.raises((ValueError, RuntimeError), match="Expected parameter"):
                mcmc.run(*args)
            assert dist.is_validation_enabled()
    with subtests.test("switch"), pyro.validation_enabled(False):
        MCMC(far(model), 5, disable_validation=None, **QUIET).run(*args)


def bernoulli(x):
    logit = pyro.sample("logit", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Bernoulli(logits=logit), obs=x)


def below_a_latent_bound(x):
    bound = pyro.sample("bound", dist.HalfNormal(100.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Uniform(0.0, bound), obs=x)


def enumerated(x):
    number = pyro.sample("number", dist.Categorical(torch.ones(3)))
    probability = pyro.sample("probability", dist.Beta(2.0, 2.0))
    pyro.sample("x", dist.Binomial(number, probability), obs=x)


def test_observed_values_are_checked_before_the_first_step(subtests):
    for value in (True, False, None):
        mcmc = MCMC(NUTS(bernoulli), 2, num_chains=2, disable_validation=value, **QUIET)
        with subtests.test(value), pytest.raises(ValueError, match="'x'|Boolean"):
            mcmc.run(torch.tensor([0.0, 2.0]))
    for model, x in (
        (below_a_latent_bound, torch.tensor([0.1])),
        (enumerated, torch.tensor(2.0)),
        (gaussian_process, INPUTS),
    ):
        with subtests.test(model.__name__):
            args = (x, OUTPUTS) if model is gaussian_process else (x,)
            MCMC(NUTS(model, max_tree_depth=2), 2, **QUIET).run(*args)


def multinomial(x):
    """The number of trials is that of each observation: the density does not use it."""
    logits = pyro.sample("logits", dist.Normal(torch.zeros(3), 1.0).to_event(1))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Multinomial(logits=logits, validate_args=False), obs=x)


def test_values_that_a_plate_would_tie_together(subtests):
    """Pyro starts a site that is reparameterized inside of a plate before the plate expands it."""

    def inside(y):
        scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
        with pyro.plate("data", len(y)), poutine.reparam(config={"loc": LocScaleReparam(0.0)}):
            loc = pyro.sample("loc", dist.Normal(0.0, scale))
        with pyro.plate("again", len(y)):
            pyro.sample("y", dist.Normal(loc, 1.0), obs=y)

    def expanded(y):
        with pyro.plate("data", len(y)), poutine.reparam(config={"loc": LocScaleReparam(0.0)}):
            loc = pyro.sample("loc", dist.Normal(0.0, torch.ones(len(y))))
            pyro.sample("y", dist.Normal(loc, 1.0), obs=y)

    message = r"'loc_decentered' starts .* shape \(\), .* has the shape \(4,\): .*around the plate"
    with pytest.raises(ValueError, match=message):
        MCMC(NUTS(inside), 2, **QUIET).run(torch.randn(4))
    mcmc = MCMC(HMC(expanded), 2, **QUIET).run(torch.randn(4))
    assert mcmc.get_samples()["loc_decentered"].shape == (2, 4)


def test_a_start_at_which_a_matrix_cannot_be_factored():
    """It is tried again, as for the kernels of this package."""

    def model(y):
        correlation = pyro.sample("correlation", dist.Normal(0.0, 5.0))
        matrix = torch.eye(2) + correlation * (1.0 - torch.eye(2))
        pyro.sample("y", dist.MultivariateNormal(torch.zeros(2), matrix), obs=y)

    for seed in range(5):
        mcmc = MCMC(NUTS(model, max_tree_depth=2), 2, seed=seed, progress=False)
        assert mcmc.run(torch.randn(2)).get_samples()["correlation"].abs().max() < 1.0


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_matrix_that_gpytorch_cannot_factor_is_a_divergence():
    errors = pytest.importorskip("linear_operator.utils.errors")

    def model():
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        if x.detach() > 1.0:
            raise errors.NotPSDError("Matrix not positive definite after adding jitter")

    mcmc = MCMC(NUTS(model, step_size=3.0, adapt_step_size=False), 30, **QUIET).run()
    assert mcmc.get_samples()["x"].max() <= 1.0
    assert mcmc.sample_statistics()["diverging"].any()


def walk_of_logits():
    return Gibbs([(RandomWalk(0.5), ["logits"])], model=multinomial)


@pytest.mark.slow  # ArviZ takes seconds to import
@pytest.mark.parametrize(
    "run",
    [
        lambda x: MCMC(SGHMC(multinomial, backend="eager"), 4, **QUIET).run(x),
        lambda x: MCMC(NUTS(multinomial, max_tree_depth=2), 4, **QUIET).run(x),
        lambda x: MCMC(Gibbs([(RandomWalk(0.5), ["logits"])], model=multinomial), 9, **QUIET).run(
            x
        ),
        lambda x: PosteriorBootstrap(multinomial, num_samples=4, progress=False).run(x),
        pyros_own_nuts,
    ],
    ids=["SGHMC", "NUTS", "Gibbs", "PosteriorBootstrap", "Pyro's NUTS"],
)
def test_distributions_that_do_not_validate(run):
    x = torch.tensor([[1.0, 2.0, 3.0], [0.0, 1.0, 2.0]])
    data = to_arviz(run(x), x, model=multinomial)
    logits = torch.as_tensor(data.posterior["logits"].values)
    expected = dist.Multinomial(logits=logits[..., None, :], validate_args=False).log_prob(x)
    found = torch.as_tensor(data.log_likelihood["x"].values)
    torch.testing.assert_close(found, expected)
    assert len(logits[0].unique(dim=0)) > 1
    statistics = data.get("sample_stats", {})
    assert "lp" not in statistics or np.isfinite(statistics["lp"]).all()


def normal_model():
    pyro.sample("loc", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    pyro.sample("scale", dist.HalfNormal(1.0))


def test_hook_fn(subtests):
    for num_chains, ending in ((1, [""]), (2, [" [0]", " [1]"])):
        calls, pyros = [], []
        with subtests.test(num_chains):
            options = QUIET | {"hook_fn": lambda *words, calls=calls: calls.append(words)}
            MCMC(HMC(normal_model, num_steps=1), 3, 2, num_chains, thinning=2, **options).run()
            stages = ["Warmup"] * 2 + ["Sample"] * 6
            assert [call[2] for call in calls] == [s + e for e in ending for s in stages]
            assert [call[3] for call in calls] == [0, 1, 0, 1, 2, 3, 4, 5] * num_chains
            assert all(set(call[1]) == {"loc", "scale"} for call in calls)
        if num_chains == 1:
            hook = {"hook_fn": lambda *words, pyros=pyros: pyros.append(words)}
            PyroMCMC(HMC(normal_model, num_steps=1), 6, 2, disable_progbar=True, **hook).run()
            assert [call[2:] for call in calls] == [call[2:] for call in pyros]

    def stop(kernel, params, stage, number):
        if (stage, number) == ("Sample", 3):
            raise KeyboardInterrupt

    mcmc = MCMC(HMC(normal_model, num_steps=1), 10, 2, hook_fn=stop, **QUIET).run()
    assert mcmc.interrupted and mcmc.num_draws == 4


def test_progress_bar_is_disabled(capsys):
    MCMC(HMC(normal_model, num_steps=1), 2, disable_progbar=True).run()
    assert not capsys.readouterr().err


# Which hardly move.
STILL = {
    "ours": partial(SGLD, step_size=1e-12, temperature=0.0),
    "HMC": partial(HMC, step_size=1e-9, num_steps=1, adapt_step_size=False),
}


@pytest.mark.parametrize("make", STILL.values(), ids=STILL)
def test_save_params(make):
    options = QUIET | {"save_params": ["loc"], "quantities": {"twice": lambda z: 2 * z["scale"]}}
    mcmc = MCMC(make(normal_model), 3, 2, **options).run()
    assert set(mcmc.get_samples()) == {"loc", "twice"}
    with pytest.raises(ValueError, match=r"save_params must be among .*'scale'.*got \['no'\]"):
        MCMC(make(normal_model), 3, num_chains=2, save_params=["no"], **QUIET).run()


def test_transforms_map_draws_back():
    transforms = {"x": biject_to(constraints.positive).inv}
    kernel = HMC(potential_fn=lambda z: 0.5 * z["x"].square().sum(), num_steps=1)
    options = QUIET | {"initial_params": {"x": torch.zeros(3)}}
    plain = MCMC(kernel, 4, **options).run().get_samples()["x"]
    mapped = MCMC(kernel, 4, transforms=transforms, **options).run().get_samples()["x"]
    torch.testing.assert_close(mapped, plain.exp())


@pytest.mark.parametrize("make", STILL.values(), ids=STILL)
def test_initial_params_of_one_chain_need_no_dimension_of_chains(make):
    start = {"loc": torch.tensor([1.0, 2.0]), "scale": torch.tensor(0.5)}
    for given in (start, {name: value[None] for name, value in start.items()}):
        samples = MCMC(make(normal_model), 1, initial_params=given, **QUIET).run().get_samples()
        for name, value in start.items():
            torch.testing.assert_close(samples[name][0], value, rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match=r"initial_params\['loc'\]"):
        MCMC(make(normal_model), 1, initial_params=start | {"loc": torch.ones(3)}, **QUIET).run()
    with pytest.raises(ValueError, match=r"num_chains = 2"):
        MCMC(make(normal_model), 1, num_chains=2, initial_params=start, **QUIET)


def test_number_of_samples():
    mcmc = MCMC(SGLD(normal_model, step_size=0.1), 5, num_chains=2, **QUIET).run()
    samples = mcmc.get_samples()
    few = mcmc.get_samples(num_samples=30)
    assert few["loc"].shape == (30, 2)
    rows = (few["scale"][:, None] == samples["scale"]).int().argmax(1)
    assert torch.equal(few["loc"], samples["loc"][rows]) and len(set(rows.tolist())) > 5
    assert mcmc.get_samples(group_by_chain=True, num_samples=3)["loc"].shape == (2, 3, 2)
    with pytest.raises(TypeError, match="group_by_chain must be .*, got 30.*num_samples"):
        mcmc.get_samples(30)
    with pytest.raises(ValueError, match="num_samples"):
        mcmc.get_samples(num_samples=0)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"mp_context": "spawn"}, "'mp_context': .*chain_method=ProcessPoolExecutor"),
        ({"num_sample": 3}, "'num_sample': did you mean num_samples"),
        ({"hook_fn": print}, "hook_fn takes .* not SGHMC: quantities="),
        ({"transforms": {}}, "transforms takes .* not SGHMC"),
        ({"hook_fn": 3}, "hook_fn must be callable, got 3"),
        ({"transforms": 3}, "transforms must be transforms by site, got 3"),
        ({"save_params": "loc"}, "save_params must be a list of names, got 'loc'"),
        ({"disable_validation": "no"}, "disable_validation must be True, False or None, got 'no'"),
    ],
    ids=lambda case: str(case)[:20],
)
def test_words_that_have_no_meaning(words, message):
    with pytest.raises(TypeError, match=message):
        MCMC(SGHMC(normal_model), 3, **words)
