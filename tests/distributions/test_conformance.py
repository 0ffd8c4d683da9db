"""What every distribution does: shapes, expansion, types, gradients, and models of Pyro."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoNormal
from pyro.optim import Adam
from torch.fx.experimental.proxy_tensor import make_fx

from pyro_ext.distributions import (
    BFRY,
    BetaPrimeBFRY,
    GeneralizedBFRY,
    PositiveStable,
    RectifiedGamma,
    StableBetaBFRY,
    TiltedBFRY,
    TiltedStable,
    TruncatedBFRY,
)
from pyro_ext.potential import Potential

PARAMETERS = {
    BFRY: (0.4,),
    BetaPrimeBFRY: (0.4, 2.3, 5.0, 2.0),
    GeneralizedBFRY: (0.4, 2.3, 5.0, 2.0),
    PositiveStable: (0.6,),
    RectifiedGamma: (1.3, 0.7, 5.0),
    StableBetaBFRY: (0.4, 1.5, 5.0),
    TiltedBFRY: (0.4, 3.0, 1.2),
    TiltedStable: (1.3, 0.6, 0.8),
    TruncatedBFRY: (0.4, 5.0),
}
PLACES = [1e-12, 1e-6, 0.3, 1.0, 4.9]
INNER_PLACES = {StableBetaBFRY: [1e-12, 1e-6, 0.3, 0.5, 0.9]}
everything = pytest.mark.parametrize("make", PARAMETERS, ids=lambda make: make.__name__)


@everything
def test_shapes_and_expansion(make):
    first, *others = PARAMETERS[make]
    law = make(torch.full((3, 1), first), *(torch.full((2,), other) for other in others))
    shape = torch.Size((3, 2)) if others else torch.Size((3, 1))
    assert law.batch_shape == shape and law.event_shape == ()
    assert law.sample((4,)).shape == (4, *shape)
    draws = law.sample()
    assert law.log_prob(draws).shape == law.cdf(draws).shape == shape
    assert law.mean.shape == shape
    wide = law.expand((5, *shape))
    assert type(wide) is make and wide.batch_shape == (5, *shape)
    assert wide.sample((4,)).shape == (4, 5, *shape)
    torch.testing.assert_close(wide.log_prob(draws)[2], law.log_prob(draws))
    assert make.arg_constraints.keys() <= {"discount", "tail_index", "level", "scale", "tilt"} | {
        "stability",
        "mass",
        "high",
        "rate",
        "concentration",
    }
    for name, constraint in make.arg_constraints.items():
        assert constraint.check(getattr(wide, name)).all()


@everything
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_types(make, dtype):
    law = make(*(torch.tensor(value, dtype=dtype) for value in PARAMETERS[make]))
    draws = law.sample((1000,))
    assert draws.dtype == dtype and law.support.check(draws).all()
    places = torch.tensor(INNER_PLACES.get(make, PLACES), dtype=dtype)
    single, double = law.log_prob(places), make(*PARAMETERS[make]).log_prob(places.double())
    assert single.dtype == law.cdf(places).dtype == dtype
    torch.testing.assert_close(single.double(), double.double(), rtol=2e-5, atol=2e-5)


@everything
@pytest.mark.usefixtures("float64")
def test_gradients_of_the_density_and_cdf(make):
    parameters = [torch.tensor(value, requires_grad=True) for value in PARAMETERS[make]]
    places = torch.tensor(INNER_PLACES.get(make, PLACES)[2:], requires_grad=True)
    for method in ("log_prob", "cdf"):

        def function(places, *values, method=method):
            return getattr(make(*values, validate_args=False), method)(places)

        assert torch.autograd.gradcheck(
            function, (places, *parameters), eps=1e-5, atol=1e-5, rtol=1e-5
        )


def extreme_law(make, num_laws: int = 500):
    """Laws with parameters from all over what is allowed, and places."""
    generator = torch.Generator().manual_seed(0)

    def uniform():
        return torch.rand(num_laws, generator=generator)

    def positive(low=-12.0, high=12.0):
        return 10.0 ** (low + (high - low) * uniform())

    edge = 0.5 * 10.0 ** (-6.0 * uniform())
    choice = uniform()
    fraction = torch.where(choice < 0.4, edge, torch.where(choice < 0.8, 1 - edge, uniform()))
    parameters = {
        BFRY: lambda: (fraction,),
        BetaPrimeBFRY: lambda: (
            fraction,
            fraction + positive(-3, 2),
            positive(),
            positive(-3, 3),
        ),
        GeneralizedBFRY: lambda: (
            fraction,
            fraction + positive(-3, 2),
            positive(),
            positive(-3, 3),
        ),
        RectifiedGamma: lambda: (positive(), positive(), positive()),
        StableBetaBFRY: lambda: (fraction, positive(-6, 6), positive()),
        PositiveStable: lambda: (fraction,),
        TiltedBFRY: lambda: (fraction, positive(), positive()),
        TiltedStable: lambda: (positive(-6, 6), fraction, positive(-6, 6)),
        TruncatedBFRY: lambda: (fraction, positive()),
    }[make]()
    return make(*parameters), positive()


def law_end(law) -> torch.Tensor:
    """Upper end of the support."""
    return torch.as_tensor(getattr(law.support, "upper_bound", torch.inf))


@everything
@pytest.mark.usefixtures("float64")
def test_finite_at_extremes(make):
    torch.manual_seed(0)
    law, places = extreme_law(make)
    places = torch.minimum(places, law_end(law))
    draws = law.sample()
    assert law.support.check(draws).all() and draws.isfinite().all()
    for values in (places, draws):
        assert law.log_prob(values).isfinite().all()
        cdf = law.cdf(values)
        assert ((cdf >= 0) & (cdf <= 1)).all()


@everything
def test_in_a_model_under_a_plate_and_a_guide(make):
    pyro.clear_param_store()
    pyro.set_rng_seed(0)

    def model():
        with pyro.plate("atoms", 3):
            weight = pyro.sample("weight", make(*PARAMETERS[make]))
            pyro.sample("count", dist.Poisson(weight), obs=torch.tensor([0.0, 1.0, 3.0]))

    svi = SVI(model, AutoNormal(model), Adam({"lr": 0.01}), Trace_ELBO())
    losses = [svi.step() for _ in range(5)]
    assert all(torch.tensor(losses).isfinite())


LEVELED = {
    BetaPrimeBFRY: lambda level: (0.4, 2.3, level, 2.0),
    GeneralizedBFRY: lambda level: (0.4, 2.3, level, 2.0),
    StableBetaBFRY: lambda level: (0.4, 1.5, level),
    TiltedBFRY: lambda level: (0.4, level, 1.2),
}


@pytest.mark.parametrize("make", LEVELED)
def test_a_latent_level_in_a_recorded_potential(make):
    """A branch on its value would give a warning, which is an error here."""

    def model():
        level = pyro.sample("level", dist.Gamma(2.0, 1.0))
        with pyro.plate("atoms", 3):
            pyro.sample("weight", make(*LEVELED[make](level)))

    eager, traced = Potential(model, backend="eager"), Potential(model)
    values = eager.init(num_chains=2, seed=0)
    torch.testing.assert_close(traced(values), eager(values))


LATENT = {PositiveStable: lambda s: (s,), TiltedStable: lambda s: (1.3, s, 0.8)}


@pytest.mark.parametrize("backend", ["trace", pytest.param("compile", marks=pytest.mark.slow)])
@pytest.mark.parametrize("make", LATENT)
def test_a_latent_stability_in_a_recorded_potential(make, backend):
    """The searches for nodes are one operation each; written out they were a hundred times it."""

    def model():
        stability = pyro.sample("stability", dist.Beta(2.0, 2.0))
        with pyro.plate("atoms", 3):
            pyro.sample("weight", make(*LATENT[make](stability)))

    eager, recorded = Potential(model, backend="eager"), Potential(model, backend=backend)
    values = eager.init(num_chains=2, seed=0)
    value, slopes = recorded.value_and_grad(values)
    exact, exact_slopes = eager.value_and_grad(values)
    torch.testing.assert_close(value, exact)
    torch.testing.assert_close(slopes, exact_slopes)

    def density(stability, place):
        return make(*LATENT[make](stability), validate_args=False).log_prob(place).sum()

    graph = make_fx(torch.func.grad(density))(torch.tensor(0.4), torch.tensor([0.3, 2.0]))
    assert len(graph.graph.nodes) < 1_000


@everything
def test_a_value_outside_the_support_is_refused(make):
    with pytest.raises(ValueError, match="support"):
        make(*PARAMETERS[make]).log_prob(torch.tensor(-1.0))
