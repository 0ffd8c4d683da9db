"""Distributions of positive numbers as latent sites: nothing fails where an exponential does."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import MCMC, NUTS, SVI, Trace_ELBO
from pyro.infer.autoguide import AutoNormal
from pyro.optim import Adam
from torch.distributions import biject_to

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
from pyro_ext.distributions.supports import numbers_above, open_interval
from pyro_ext.models.wide_networks import (
    DependentWeightNetwork,
    horseshoe_variances,
    inverse_gamma_variances,
    measure_variances,
    regularized_horseshoe_variances,
    scaled_variances,
)
from pyro_ext.potential import Potential
from pyro_ext.random_measures import (
    BetaPrimeProcess,
    GammaArrivals,
    GeneralizedBFRYProcess,
    GeneralizedGammaProcess,
    ParetoMixtureProcess,
    StableBetaProcess,
    TruncatedSeries,
    random_measure,
)
from pyro_ext.random_measures.finite import JumpDistribution

FAR = torch.tensor([-1e5, -800.0, -200.0, -95.0, 95.0, 200.0, 800.0, 1e5])
# Each in the default type, and whether both tails are power laws, so that densities are finite.
LAWS = {
    "BFRY": (lambda: BFRY(0.5), True),
    "BFRY with a heavy tail": (lambda: BFRY(0.05), True),
    "TiltedBFRY": (lambda: TiltedBFRY(0.4, 30.0, 1.2), False),
    "GeneralizedBFRY": (lambda: GeneralizedBFRY(0.4, 2.3, 30.0), True),
    "BetaPrimeBFRY": (lambda: BetaPrimeBFRY(0.4, 2.3, 30.0), True),
    "StableBetaBFRY": (lambda: StableBetaBFRY(0.4, 1.5, 30.0), True),
    "TruncatedBFRY": (lambda: TruncatedBFRY(0.4, 1e-3), True),
    "PositiveStable": (lambda: PositiveStable(0.6), False),
    "TiltedStable": (lambda: TiltedStable(1.3, 0.6, 0.8), False),
    "atom, generalized gamma": (lambda: GeneralizedGammaProcess(1.0, 0.5, 1.0).finite(10), False),
    "atom, family": (
        lambda: GeneralizedGammaProcess(1.0, 0.5, 1.0).finite(10, family=GammaArrivals(3.0)),
        False,
    ),
    "atom, beta prime": (lambda: BetaPrimeProcess(1.5, 0.4, 2.3).finite(10), True),
    "atom, generalized BFRY": (lambda: GeneralizedBFRYProcess(4.5, 0.5, 5.0).finite(10), True),
    "atom, stable beta": (lambda: StableBetaProcess(1.0, 0.5, 1.0, scale=1e-3).finite(10), True),
    "atom, Pareto": (lambda: ParetoMixtureProcess(1.0, 0.4, 1.0, 0.3, 2.0, 1.5).finite(4), True),
    "met weight": (lambda: JumpDistribution(BetaPrimeProcess(1.5, 0.4, 2.3), 1.0, 0.5), False),
    "total mass, gamma": (lambda: GeneralizedGammaProcess(1.0, 0.0, 1.0).total_mass(), False),
    "total mass, stable": (lambda: GeneralizedGammaProcess(1.0, 0.5, 1.0).total_mass(), False),
    "variance, horseshoe": (lambda: horseshoe_variances().distribution(20), True),
    "variance, bounded": (lambda: regularized_horseshoe_variances().distribution(20), True),
    "variance, inverse gamma": (lambda: inverse_gamma_variances().distribution(20), False),
    "variance, scaled": (lambda: scaled_variances(dist.Gamma(2.0, 1.0)).distribution(20), False),
    "variance, drift": (
        lambda: measure_variances(BetaPrimeProcess(1.0, 0.3, 3.0), drift=0.5).distribution(20),
        True,
    ),
}


def site(make):
    """A model of three independent numbers."""
    return lambda: pyro.sample("x", make().expand([3]).to_event(1))


def series(normalized):
    """A random measure whose discount is latent, and what is seen of it."""

    def model():
        discount = pyro.sample("discount", dist.Beta(1.5, 1.5))
        measure = GeneralizedGammaProcess(2.0, discount, 1.0)
        measure = measure.normalize() if normalized else measure
        weights = random_measure("G", measure, dist.Normal(0.0, 1.0), TruncatedSeries(5)).weights
        pyro.sample("label", dist.Categorical(weights), obs=torch.tensor(1))

    return model


def network():
    """A network whose nodes have the variances of a generalized BFRY process."""
    measure = GeneralizedBFRYProcess(4.5, 0.5, 5.0)
    variances = measure_variances(measure.rescale(1.0 / measure.mean))
    network = DependentWeightNetwork(1, [5], 1, variances)
    x = torch.linspace(-1.0, 1.0, 4)[:, None]
    return lambda: pyro.sample("y", dist.Normal(network(x), 1.0).to_event(2), obs=x.sin())


@pytest.fixture(params=[torch.float32, torch.float64], ids=["float32", "float64"])
def dtype(request):
    """Each type in turn as the default."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(request.param)
    yield request.param
    torch.set_default_dtype(before)


def check_ends(make, is_finite, dtype):
    """Finite where the tails are power laws, and nowhere a number that is none; falling outward."""
    fn, free = make(), FAR.to(dtype).clone().requires_grad_()
    transform = biject_to(fn.support)
    value = transform(free)
    assert fn.support.check(value).all() and value.isfinite().all()
    assert (value != fn.support.lower_bound).all()
    density = fn.log_prob(value) + transform.log_abs_det_jacobian(free, value)
    assert (density < torch.inf).all()  # not infinite, and a number
    if is_finite:
        assert density.isfinite().all()
    (gradient,) = torch.autograd.grad(density[density.isfinite()].sum(), free)
    assert gradient.isfinite().all()
    levels = density.double().clamp(min=-1e300)
    assert (levels[:3].diff() >= 0).all() and (levels[5:].diff() <= 0).all()
    assert levels[0] < levels[2] - 1e4 or levels[2] < -1e20
    assert levels[-1] < levels[5] - 1e4 or levels[5] < -1e20


def test_densities_at_the_ends_of_the_transform(dtype, subtests):
    for name, (make, is_finite) in LAWS.items():
        with subtests.test(name):
            check_ends(make, is_finite, dtype)


def test_a_bijection_is_one_inside(subtests):
    """The inverse gives the place back, and the Jacobian is the slope."""
    low, high = torch.tensor([0.5, -2.0]), torch.tensor([1.5, 8.0])
    supports = [numbers_above(0.0), numbers_above(low), open_interval(0.0, 1.0)]
    for support in [*supports, open_interval(low, high)]:
        with subtests.test(repr(support)):
            transform = biject_to(support).with_cache(1).with_cache(0)
            free = torch.tensor([[-3.0, -0.5], [1.0, 4.0]]).double().requires_grad_()
            value = transform(free)
            torch.testing.assert_close(transform.inv(value.detach()), free.detach())
            (slope,) = torch.autograd.grad(value.sum(), free)
            torch.testing.assert_close(transform.log_abs_det_jacobian(free, value), slope.log())


def test_ends_keep_their_digits():
    """Numbers of Python are ends of double precision, not what single precision has of them."""
    far = FAR[[0, -1]].double()
    for support in (open_interval(0.1, 0.3), numbers_above(0.1)):
        low, high = biject_to(support)(far).tolist()
        assert 0.1 < low < 0.1 + 1e-15 and (high > 1e4 or 0.3 - 1e-15 < high < 0.3)


def test_an_atom_has_no_bijection():
    """It would be silently left out."""
    fn = RectifiedGamma(2.0, 1.0, 3.0)
    with pytest.raises(NotImplementedError, match="a distribution with an atom, such as Rect"):
        biject_to(fn.support)
    with pytest.raises(ValueError, match="site 'x' .* has the support .*IntervalWithAtom"):
        Potential(lambda: pyro.sample("x", fn))


def test_potentials_and_guides_at_the_ends(dtype, subtests):
    """A guide far too wide visits them with every draw."""
    names = ("GeneralizedBFRY", "StableBetaBFRY", "TiltedBFRY", "variance, drift")
    models = {name: site(LAWS[name][0]) for name in names}
    for name, model in {**models, "series": series(normalized=True)}.items():
        with subtests.test(name, inference="Potential"):
            potential = Potential(model, backend="eager")
            start = potential.init(len(FAR), seed=0)
            moved = {
                site: FAR.to(dtype).view(-1, *[1] * (value.dim() - 1)).expand_as(value)
                for site, value in start.items()
            }
            assert not potential(moved).isnan().any()
    for name, model in models.items():
        with subtests.test(name, inference="SVI"):
            pyro.clear_param_store()
            pyro.set_rng_seed(0)
            guide = AutoNormal(model, init_scale=300.0)
            svi = SVI(model, guide, Adam({"lr": 0.1}), Trace_ELBO())
            losses = torch.tensor([svi.step() for _ in range(5)])
            assert not losses.isnan().any()


MODELS = {name: site(make) for name, (make, _) in LAWS.items()}
MODELS |= {"series": series(normalized=False), "normalized series": series(normalized=True)}


@pytest.mark.slow
@pytest.mark.parametrize("name", [*MODELS, "network"])
def test_nuts(name, dtype):
    """Twenty seeds, each of which begins with steps that leave the numbers of the type."""
    model = network() if name == "network" else MODELS[name]
    for seed in range(20):
        pyro.set_rng_seed(seed)
        kernel = NUTS(model, step_size=100.0, max_tree_depth=3)
        mcmc = MCMC(kernel, 2, 3, disable_progbar=True, disable_validation=False)
        mcmc.run()
        assert all(draws.isfinite().all() for draws in mcmc.get_samples().values())
