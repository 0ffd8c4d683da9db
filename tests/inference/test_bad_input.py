"""Bad input gets an error that names the argument or the site, before any step is taken."""

import math
import re

import pyro
import pyro.distributions as dist
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyro.infer import NUTS
from pyro.infer.autoguide import AutoNormal

from pyro_ext.inference import (
    MCMC,
    PSGLD,
    SGHMC,
    SGLD,
    SGNHT,
    CyclicalSchedule,
    EarlyStopping,
    PolynomialSchedule,
    StreamingMCMC,
)

X = torch.linspace(-1.0, 1.0, 20)


def model(x, size=5):
    loc = pyro.sample("loc", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    scale = pyro.sample("scale", dist.HalfNormal(1.0))
    with pyro.plate("data", len(x), subsample_size=size) as index:
        pyro.sample("x", dist.Normal(loc.sum(), scale), obs=x[index])


def discrete_latent(x):
    with pyro.plate("data", len(x), subsample_size=5) as index:
        flag = pyro.sample("flag", dist.Bernoulli(0.5))
        pyro.sample("x", dist.Normal(flag, 1.0), obs=x[index])


def empty_plate(x):
    loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
    with pyro.plate("data", 0):
        pyro.sample("x", dist.Normal(loc, 1.0), obs=x[:0])


def too_large_minibatch(x):
    loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x), subsample_size=50) as index:
        pyro.sample("x", dist.Normal(loc, 1.0), obs=x[index])


def wrong_plate_size(x):
    loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
    with pyro.plate("data", 30, subsample_size=5) as index:
        pyro.sample("x", dist.Normal(loc, 1.0), obs=x[index])


def ungathered_data(x):
    loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x), subsample_size=5):
        pyro.sample("x", dist.Normal(loc, 1.0), obs=x)


def nothing_sampled(x):
    return x.sum()


def nothing_latent(x):
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(0.0, 1.0), obs=x)


def outside_the_support(x):
    rate = pyro.sample("rate", dist.Gamma(1.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Exponential(rate), obs=x)


def negative_scale(x):
    loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(loc, -1.0), obs=x)


def duplicate_site(x):
    pyro.sample("loc", dist.Normal(0.0, 1.0))
    pyro.sample("loc", dist.Normal(0.0, 1.0))


def run(kernel=None, *args, num_samples=2, **options):
    kernel = SGLD(model) if kernel is None else kernel
    return MCMC(kernel, num_samples, progress=False, **options).run(*(args or (X,)))


def start(num_chains=2, **values):
    default = {"loc": torch.zeros(num_chains, 2), "scale": torch.ones(num_chains)}
    return {**default, **values}


# What is done, the error, and what it has to name.
KINDS = {
    # constructors of kernels
    "model that is none": (lambda: SGLD("model"), TypeError, "model"),
    "neither model nor potential": (lambda: SGLD(), ValueError, "model"),
    "both model and potential": (
        lambda: SGLD(model, potential_fn=lambda z: z["x"].sum()),
        ValueError,
        "potential_fn",
    ),
    "potential that is none": (lambda: SGLD(potential_fn=3.0), TypeError, "potential_fn"),
    "negative step size": (lambda: SGLD(model, step_size=-0.1), ValueError, "step_size"),
    "step size zero": (lambda: SGHMC(model, step_size=0.0), ValueError, "step_size"),
    "NaN step size": (lambda: SGNHT(model, step_size=math.nan), ValueError, "step_size"),
    "infinite step size": (lambda: PSGLD(model, step_size=math.inf), ValueError, "step_size"),
    "step size as text": (lambda: SGLD(model, step_size="0.1"), ValueError, "step_size"),
    "negative temperature": (lambda: SGLD(model, temperature=-1.0), ValueError, "temperature"),
    "temperature as text": (lambda: SGLD(model, temperature="cold"), ValueError, "temperature"),
    "unknown backend": (lambda: SGLD(model, backend="jax"), ValueError, "backend"),
    "no steps": (lambda: SGLD(model, num_steps=0), ValueError, "num_steps"),
    "half a step": (lambda: SGLD(model, num_steps=1.5), ValueError, "num_steps"),
    "strategy that is none": (lambda: SGLD(model, init_strategy=3), TypeError, "init_strategy"),
    "negative friction": (lambda: SGHMC(model, friction=-1.0), ValueError, "friction"),
    "friction too large for the step": (
        lambda: SGHMC(model, step_size=0.1, friction=20.0),
        ValueError,
        "friction",
    ),
    "friction and momentum decay": (
        lambda: SGHMC(model, friction=1.0, momentum_decay=0.1),
        ValueError,
        "friction",
    ),
    "momentum decay above 1": (lambda: SGHMC(model, momentum_decay=2.0), ValueError, "momentum"),
    "no friction at all": (lambda: SGHMC(model, friction={}), ValueError, "friction"),
    "friction as text": (lambda: SGHMC(model, friction="low"), ValueError, "friction"),
    "noise estimate too large": (
        lambda: SGHMC(model, step_size=0.1, friction=1.0, noise_estimate=1e4),
        ValueError,
        "noise_estimate",
    ),
    "negative noise estimate": (
        lambda: SGHMC(model, noise_estimate=-1.0),
        ValueError,
        "noise_estimate",
    ),
    "negative friction of SGNHT": (lambda: SGNHT(model, friction=-1.0), ValueError, "friction"),
    "decay of one": (lambda: PSGLD(model, decay=1.0), ValueError, "decay"),
    "no regularization": (
        lambda: PSGLD(model, regularization=0.0),
        ValueError,
        "regularization",
    ),
    "control variate of another name": (
        lambda: SGLD(model, control_variate="mode"),
        ValueError,
        "control_variate",
    ),
    # schedules
    "exponent of the schedule": (
        lambda: PolynomialSchedule(0.1, exponent=0.4),
        ValueError,
        "exponent",
    ),
    "offset of the schedule": (lambda: PolynomialSchedule(0.1, offset=0.0), ValueError, "offset"),
    "no cycles": (lambda: CyclicalSchedule(0.1, 0, 100), ValueError, "num_cycles"),
    "only exploration": (
        lambda: CyclicalSchedule(0.1, 1, 100, exploration=1.0),
        ValueError,
        "exploration",
    ),
    # drivers
    "kernel that is none": (lambda: MCMC(model, 10), TypeError, "kernel"),
    "no samples": (lambda: MCMC(SGLD(model), 0), ValueError, "num_samples"),
    "samples as a float": (lambda: MCMC(SGLD(model), 10.0), ValueError, "num_samples"),
    "negative warm-up": (lambda: MCMC(SGLD(model), 1, -1), ValueError, "warmup_steps"),
    "no chains": (lambda: MCMC(SGLD(model), 1, num_chains=0), ValueError, "num_chains"),
    "no thinning": (lambda: MCMC(SGLD(model), 1, thinning=0), ValueError, "thinning"),
    "negative seed": (lambda: MCMC(SGLD(model), 1, seed=-1), ValueError, "seed"),
    "seed as a float": (lambda: MCMC(SGLD(model), 1, seed=0.5), ValueError, "seed"),
    "chain method": (
        lambda: MCMC(SGLD(model), 1, chain_method="parallel"),
        ValueError,
        "chain_method",
    ),
    "empty groups": (lambda: MCMC(SGLD(model), 1, group_size=0), ValueError, "group_size"),
    "groups of NUTS": (lambda: MCMC(NUTS(model), 1, group_size=2), ValueError, "group_size"),
    "quantity that is none": (
        lambda: MCMC(SGLD(model), 1, quantities={"sum": 3}),
        TypeError,
        "quantities['sum']",
    ),
    "checkpoint that is no path": (lambda: MCMC(SGLD(model), 1, checkpoint=3), TypeError, "checkp"),
    "extra fields of NUTS": (
        lambda: MCMC(NUTS(model), 1, extra_fields=["momentum"]),
        ValueError,
        "extra_fields",
    ),
    "extra fields as one name": (
        lambda: MCMC(SGHMC(model), 1, extra_fields="momentum"),
        TypeError,
        "extra_fields",
    ),
    "early stopping that is none": (
        lambda: MCMC(SGLD(model), 1, early_stopping=1.01),
        TypeError,
        "early_stopping",
    ),
    "R-hat below one": (lambda: EarlyStopping(r_hat=0.9), ValueError, "r_hat"),
    "no effective sample size": (
        lambda: EarlyStopping(effective_sample_size=0),
        ValueError,
        "effective_sample_size",
    ),
    "start for another number of chains": (
        lambda: MCMC(SGLD(model), 1, num_chains=3, initial_params=start(2)),
        ValueError,
        "initial_params['loc']",
    ),
    "moments of no samples": (lambda: StreamingMCMC(SGLD(model), 0), ValueError, "num_samples"),
    # models and data, known at run
    "unknown site in friction": (
        lambda: run(SGHMC(model, friction={"weight": 1.0})),
        ValueError,
        "friction",
    ),
    "unknown extra field": (
        lambda: run(SGLD(model), extra_fields=["momentum"]),
        ValueError,
        "extra_fields",
    ),
    "unknown name of early stopping": (
        lambda: run(early_stopping=EarlyStopping(names=["weight"], interval=4), num_samples=8),
        ValueError,
        "early_stopping",
    ),
    "start of another shape": (
        lambda: run(num_chains=2, initial_params=start(loc=torch.zeros(2, 3))),
        ValueError,
        "initial_params['loc']",
    ),
    "start that lacks a site": (
        lambda: run(initial_params={"loc": torch.zeros(1, 2)}),
        ValueError,
        "initial_params",
    ),
    "start outside the support": (
        lambda: run(num_chains=2, initial_params=start(scale=-torch.ones(2))),
        ValueError,
        "initial_params['scale']",
    ),
    "NaN in the start": (
        lambda: run(num_chains=2, initial_params=start(loc=torch.full((2, 2), math.nan))),
        ValueError,
        "initial_params['loc']",
    ),
    "start from nowhere": (
        lambda: run(initial_params="no such folder"),
        (FileNotFoundError, ValueError, RuntimeError),
        "no such folder",
    ),
    "start from a guide that has not been trained": (
        lambda: run(initial_params=AutoNormal(nothing_latent)),
        ValueError,
        "initial_params",
    ),
    "quantity that is no tensor": (
        lambda: run(quantities={"sum": lambda z: "text"}),
        ValueError,
        "quantities['sum']",
    ),
    "quantity that takes the name of a site": (
        lambda: run(quantities={"loc": lambda z: z["loc"]}),
        ValueError,
        "quantities['loc']",
    ),
    "anchor that lacks a site": (
        lambda: run(SGLD(model, control_variate={"loc": torch.zeros(2)})),
        ValueError,
        "control_variate",
    ),
    "anchor without minibatches": (
        lambda: run(SGLD(model, control_variate="map"), X, None),
        ValueError,
        "control_variate",
    ),
    "discrete latent": (lambda: run(SGLD(discrete_latent)), ValueError, "'flag'"),
    "empty plate": (lambda: run(SGLD(empty_plate)), ZeroDivisionError, "'data'"),
    "minibatch larger than the plate": (
        lambda: run(SGLD(too_large_minibatch)),
        ValueError,
        "'data'",
    ),
    "plate larger than the data": (
        lambda: run(SGLD(wrong_plate_size)),
        (ValueError, IndexError),
        "'data'",
    ),
    "all data in the place of a minibatch": (
        lambda: run(SGLD(ungathered_data)),
        ValueError,
        "'x'",
    ),
    "a model that samples nothing": (lambda: run(SGLD(nothing_sampled)), ValueError, "no latent"),
    "a model with nothing latent": (lambda: run(SGLD(nothing_latent)), ValueError, "no latent"),
    "two sites of a name": (lambda: run(SGLD(duplicate_site)), ValueError, "'loc'"),
    "NaN in the data": (lambda: run(None, X.clone().fill_(math.nan)), ValueError, "'x'"),
    "data outside the support": (lambda: run(SGLD(outside_the_support)), ValueError, "'x'"),
    "negative scale": (lambda: run(SGLD(negative_scale)), ValueError, "scale"),
    "data of integers where the model wants a matrix": (
        lambda: run(None, torch.tensor(3)),
        (TypeError, ValueError),
        "model",
    ),
}


@pytest.mark.filterwarnings("ignore:The parameter .:UserWarning")
@pytest.mark.parametrize("kind", KINDS)
def test_it_is_refused_by_name(kind, monkeypatch):
    attempt, error, named = KINDS[kind]
    steps = []
    for kernel in (SGLD, SGHMC, SGNHT, PSGLD):
        original = kernel.record
        monkeypatch.setattr(
            kernel,
            "record",
            lambda self, *args, original=original: steps.append(1) or original(self, *args),
        )
    with pytest.raises(error, match=re.escape(named)):
        attempt()
    if kind not in ("quantity that is no tensor", "unknown name of early stopping"):
        assert not steps


def test_there_are_forty_kinds():
    assert len(KINDS) >= 40


# Anything a user might pass for a number.
ANYTHING = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 100),
    st.floats(),
    st.text(max_size=3),
    st.just(torch.tensor(0.1)),
    st.just([0.1]),
    st.just({"loc": 0.1}),
    st.just(CyclicalSchedule(0.1, 2, 100)),
)
FUZZED = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow], database=None
)


def names_an_argument(error, arguments):
    return any(name in str(error) for name in arguments)


def build(constructor, *args, **arguments):
    """The object, or nothing where its constructor refuses by the name of an argument."""
    try:
        return constructor(*args, **arguments)
    except (TypeError, ValueError) as error:
        assert names_an_argument(error, arguments), f"{error!r} names none of {list(arguments)}"
        return None


COMMON = {
    "step_size": ANYTHING,
    "temperature": ANYTHING,
    "num_steps": ANYTHING,
    "backend": ANYTHING,
}


def some_of(names):
    return st.fixed_dictionaries({}, optional={**COMMON, **names})


@pytest.mark.slow
@FUZZED
@given(some_of({}))
def test_sgld_is_built_or_refused(arguments):
    check_kernel(build(SGLD, model, **arguments))


@FUZZED
@given(some_of({"decay": ANYTHING, "regularization": ANYTHING}))
def test_psgld_is_built_or_refused(arguments):
    check_kernel(build(PSGLD, model, **arguments))


@FUZZED
@given(some_of({"friction": ANYTHING, "momentum_decay": ANYTHING, "noise_estimate": ANYTHING}))
def test_sghmc_is_built_or_refused(arguments):
    check_kernel(build(SGHMC, model, **arguments))


@FUZZED
@given(some_of({"friction": ANYTHING}))
def test_sgnht_is_built_or_refused(arguments):
    check_kernel(build(SGNHT, model, **arguments))


def check_kernel(kernel):
    """What has been built holds numbers in their ranges."""
    if kernel is None:
        return
    assert kernel.temperature >= 0 and math.isfinite(kernel.temperature)
    assert isinstance(kernel.num_steps, int) and kernel.num_steps >= 1
    assert kernel.schedule.step_size > 0 and math.isfinite(kernel.schedule.step_size)
    assert kernel.replace().settings() == kernel.settings()


@FUZZED
@given(
    st.fixed_dictionaries(
        {"num_samples": ANYTHING},
        optional={
            name: ANYTHING
            for name in (
                "warmup_steps",
                "num_chains",
                "thinning",
                "initial_params",
                "chain_method",
                "checkpoint",
                "seed",
                "group_size",
                "quantities",
                "extra_fields",
                "early_stopping",
            )
        },
    ),
    st.sampled_from([MCMC, StreamingMCMC]),
)
def test_drivers_are_built_or_refused(arguments, driver):
    if driver is StreamingMCMC:
        arguments = {
            name: value
            for name, value in arguments.items()
            if name not in ("extra_fields", "early_stopping")
        }
    built = build(driver, SGLD(model), **arguments)
    if built is not None:
        assert built.num_samples >= 1 and built.num_chains >= 1 and built.thinning >= 1


@FUZZED
@given(
    st.fixed_dictionaries(
        {}, optional={name: ANYTHING for name in ("r_hat", "effective_sample_size", "interval")}
    )
)
def test_early_stopping_is_built_or_refused(arguments):
    build(EarlyStopping, **arguments)


@FUZZED
@given(
    st.fixed_dictionaries(
        {"step_size": ANYTHING},
        optional={name: ANYTHING for name in ("exponent", "offset", "start")},
    )
)
def test_polynomial_schedules_are_built_or_refused(arguments):
    build(PolynomialSchedule, **arguments)


@FUZZED
@given(
    st.fixed_dictionaries(
        {"step_size": ANYTHING, "num_cycles": ANYTHING, "num_steps": ANYTHING},
        optional={"exploration": ANYTHING, "minimum": ANYTHING},
    )
)
def test_cyclical_schedules_are_built_or_refused(arguments):
    build(CyclicalSchedule, **arguments)
