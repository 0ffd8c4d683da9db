"""Bad input gets an error that names the argument or the site, before any step is taken."""

import math
import re

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import NUTS
from pyro.infer.autoguide import AutoNormal

from pyro_ext.inference import MCMC, SGHMC, SGLD, EarlyStopping

X = torch.linspace(-1.0, 1.0, 20)
BAD = X.where(torch.arange(20) != 3, math.nan)


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


def regression(x, y):
    slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(slope * x, 1.0), obs=y)


def duplicate_site(x):
    pyro.sample("loc", dist.Normal(0.0, 1.0))
    pyro.sample("loc", dist.Normal(0.0, 1.0))


def run(kernel=None, *args, num_samples=2, **options):
    kernel = SGLD(model) if kernel is None else kernel
    return MCMC(kernel, num_samples, progress=False, **options).run(*(args or (X,)))


def start(num_chains=2, **values):
    default = {"loc": torch.zeros(num_chains, 2), "scale": torch.ones(num_chains)}
    return {**default, **values}


# What an error has to name, what is done, and the error where it is no ValueError.
KINDS = [
    # Constructors: what one argument alone may be, the walk of tests/bad_input asks.
    ("friction", lambda: SGHMC(model, friction=-1.0)),
    ("friction", lambda: SGHMC(model, step_size=0.1, friction=11.0)),
    ("friction", lambda: SGHMC(model, friction=1.0, momentum_decay=0.1)),
    ("noise_estimate", lambda: SGHMC(model, step_size=0.1, friction=1.0, noise_estimate=21.0)),
    ("noise_estimate", lambda: SGLD(model, step_size=0.1, noise_estimate=21.0)),
    ("chain_method", lambda: MCMC(SGLD(model), 1, chain_method="parallel")),
    ("group_size", lambda: MCMC(NUTS(model), 1, group_size=2)),
    ("quantities['sum']", lambda: MCMC(SGLD(model), 1, quantities={"sum": 3}), TypeError),
    ("extra_fields", lambda: MCMC(NUTS(model), 1, extra_fields=["momentum"])),
    ("extra_fields", lambda: MCMC(SGHMC(model), 1, extra_fields="momentum"), TypeError),
    ("early_stopping", lambda: MCMC(SGLD(model), 1, early_stopping=1.01), TypeError),
    ("initial_params['loc']", lambda: MCMC(SGLD(model), 1, num_chains=3, initial_params=start(2))),
    ("initial_params", lambda: MCMC(SGLD(model), 1, initial_params={"loc": 0.0})),
    # models and data, known at run
    ("friction", lambda: run(SGHMC(model, friction={"weight": 1.0}))),
    ("extra_fields", lambda: run(SGLD(model), extra_fields=["momentum"])),
    (
        "initial_params['loc']",
        lambda: run(num_chains=2, initial_params=start(loc=torch.zeros(2, 3))),
    ),
    ("initial_params", lambda: run(initial_params={"loc": torch.zeros(1, 2)})),
    (
        "initial_params['scale']",
        lambda: run(num_chains=2, initial_params=start(scale=-torch.ones(2))),
    ),
    (
        "initial_params['loc']",
        lambda: run(num_chains=2, initial_params=start(loc=torch.full((2, 2), math.nan))),
    ),
    (
        "no such folder",
        lambda: run(initial_params="no such folder"),
        (FileNotFoundError, ValueError, RuntimeError),
    ),
    ("initial_params", lambda: run(initial_params=AutoNormal(nothing_latent))),
    ("quantities['loc']", lambda: run(quantities={"loc": lambda z: z["loc"]})),
    ("control_variate", lambda: run(SGLD(model, control_variate={"loc": torch.zeros(2)}))),
    ("control_variate", lambda: run(SGLD(model, control_variate="map"), X, None)),
    ("'flag'", lambda: run(SGLD(discrete_latent))),
    ("size cannot be zero", lambda: run(SGLD(empty_plate))),
    ("'data'", lambda: run(SGLD(too_large_minibatch))),
    ("'data'", lambda: run(SGLD(wrong_plate_size)), (ValueError, IndexError)),
    ("'x'", lambda: run(SGLD(ungathered_data))),
    ("no latent", lambda: run(SGLD(nothing_sampled))),
    ("no latent", lambda: run(SGLD(nothing_latent))),
    ("'loc'", lambda: run(SGLD(duplicate_site))),
    ("'x'", lambda: run(None, X.clone().fill_(math.nan))),
    ("'x'", lambda: run(SGLD(outside_the_support))),
    ("in the rows [0, 1, 2, 3, 4]", lambda: run(SGLD(outside_the_support))),
    ("x must be finite, got nan in row 3", lambda: run(SGLD(regression), BAD, X)),
    ("x must be finite, got nan in row 3", lambda: run(NUTS(regression), BAD, X)),
    ("y must be finite, got nan in row 3", lambda: run(SGLD(regression), X, BAD)),
    ("got x=3.5", lambda: run(None, 3.5)),
    ("scale", lambda: run(SGLD(negative_scale))),
    ("model", lambda: run(None, torch.tensor(3)), (TypeError, ValueError)),
]
# These are known once there are draws.
LATER = [
    (
        "early_stopping",
        lambda: run(early_stopping=EarlyStopping(names=["weight"], interval=4), num_samples=8),
    ),
    ("quantities['sum']", lambda: run(quantities={"sum": lambda z: "text"})),
]


@pytest.mark.filterwarnings("ignore:The parameter .:UserWarning")
def test_it_is_refused_by_name(monkeypatch, subtests):
    steps, record = [], SGLD.record
    for kernel in (SGLD, SGHMC):
        monkeypatch.setattr(kernel, "record", lambda *args: steps.append(1) or record(*args))
    for number, (named, attempt, *error) in enumerate([*KINDS, *LATER]):
        with subtests.test(named, number=number):
            steps.clear()
            with pytest.raises(*(error or [ValueError]), match=re.escape(named)):
                attempt()
            assert not steps or number >= len(KINDS)


@pytest.mark.parametrize("convert", [torch.Tensor.tolist, torch.Tensor.numpy])
def test_data_are_taken_as_lists_and_arrays(convert):
    draws = [run(SGLD(model), data, seed=0).get_samples()["loc"] for data in (X, convert(X))]
    assert torch.equal(*draws)


def test_a_model_of_arrays_gets_arrays():
    def of_array(x):
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        with pyro.plate("data", x.size):
            pyro.sample("x", dist.Normal(loc, 1.0), obs=torch.as_tensor(x.astype("float32")))

    assert run(SGLD(of_array), X.numpy()).get_samples()["loc"].shape == (2,)
