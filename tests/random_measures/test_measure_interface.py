"""Shapes, types and errors of all measures."""

import pytest
import torch

from pyro_ext.random_measures import (
    ArrivalFamily,
    BetaPrimeProcess,
    ExponentialArrivals,
    GammaArrivals,
    GeneralizedBFRYProcess,
    GeneralizedGammaProcess,
    InverseGammaArrivals,
    LevyDensityProcess,
    LomaxArrivals,
    ParetoMixtureProcess,
    ParetoProcess,
    PitmanYor,
    StableBetaProcess,
    Superposition,
)
from tests.random_measures.references import NOTED, gamma, levy_density, pareto

pytestmark = pytest.mark.usefixtures("float64")

KINDS = [*NOTED, gamma(2.0, -0.7, 1.5), pareto(3.0, 2.0, 1.5), levy_density(2.0, 0.4, 1.5)]


def test_parameters_that_do_not_fit_together():
    """Those that are wrong by themselves are in the walk of bad input."""
    for make, arguments, message in [
        (GeneralizedGammaProcess, (1.0, 0.0, 0.0), "tilt of .* must be > 0 where the discount is"),
        (StableBetaProcess, (1.0, 0.4, -0.4), "concentration of .* must be > -discount, got -0.4"),
        (BetaPrimeProcess, (1.0, 0.4, 0.4, 1.0), "tail_index of .* must be > discount, got 0.4"),
        (GeneralizedBFRYProcess, (1.0, 0.4, 0.3, 1.0), "tail_index of .* must be > discount"),
        (PitmanYor, (0.4, -0.4), "concentration of PitmanYor must be finite and > -discount"),
    ]:
        with pytest.raises(ValueError, match=message):
            make(*arguments)


def test_one_wrong_parameter_of_a_batch():
    measure = GeneralizedGammaProcess(torch.tensor([1.0, -2.0]), 0.4, 1.0, validate_args=False)
    assert measure.mass[1] == -2.0


def test_options_that_do_not_fit_together():
    for options, message in [
        ({}, "exactly one of num_jumps and tolerance"),
        ({"num_jumps": 3, "tolerance": 0.1}, "exactly one of num_jumps and tolerance"),
        ({"num_jumps": 3, "method": "smallest_first"}, "method must be .*got 'smallest"),
    ]:
        with pytest.raises(ValueError, match=message):
            gamma(2.0, 0.4, 1.5).measure().series(**options)


@pytest.mark.parametrize("reference", KINDS, ids=str)
def test_measures_are_values(reference):
    measure = reference.measure()
    with pytest.raises(AttributeError, match="is immutable, mass cannot be set"):
        measure.mass = 2.0
    assert type(measure).__name__ in repr(measure) or isinstance(measure, Superposition)
    assert "=" in repr(measure)


def test_representation():
    assert repr(GeneralizedGammaProcess(2, 0.4, 1.5)) == (
        "GeneralizedGammaProcess(mass=2, discount=0.4, tilt=1.5)"
    )
    measure = StableBetaProcess(torch.ones(3), 0.4, 1.5, tilt=0.5)
    assert repr(measure) == (
        "StableBetaProcess(mass=shape (3,), discount=shape (3,), concentration=shape (3,), "
        "tilt=shape (3,))"
    )
    both = GeneralizedGammaProcess(2, 0.0, 1) + ParetoProcess(1, 2, 3)
    assert repr(both) == (
        "GeneralizedGammaProcess(mass=2, discount=0, tilt=1) + "
        "ParetoProcess(mass=1, scale=2, tail_index=3)"
    )


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    "make",
    [
        lambda mass, s: GeneralizedGammaProcess(mass, s, 1.0),
        lambda mass, s: ParetoMixtureProcess(mass, s, 1.0, mass, 2.0, 1.5 + s),
        pytest.param(lambda mass, s: BetaPrimeProcess(mass, s, 2.0, 1.5), marks=SLOW),
        pytest.param(lambda mass, s: GeneralizedBFRYProcess(mass, s, 2.0, 1.5), marks=SLOW),
        pytest.param(lambda mass, s: StableBetaProcess(mass, s, 1.5), marks=SLOW),
        pytest.param(
            lambda mass, s: (
                StableBetaProcess(mass, s, 1.5) + GeneralizedGammaProcess(1.0, 0.3, 1.0)
            ),
            marks=SLOW,
        ),
    ],
)
def test_batches_are_as_their_elements(make):
    masses, discounts = torch.tensor([[0.5], [3.0]]), torch.tensor([0.0, 0.3, 0.7])
    measure = make(masses, discounts)
    assert measure.batch_shape == (2, 3)
    for function in (
        lambda m: m.laplace_exponent(0.7),
        lambda m: m.log_kappa(3, 0.7),
        lambda m: m.log_tail(0.7),
        lambda m: m.inverse_laplace_exponent(2.0),
        lambda m: m.inverse_tail(0.4),
        lambda m: m.mean,
        lambda m: m.normalize().log_eppf([2, 1]),
        lambda m: m.finite_error(10, 1.0),
    ):
        value = function(measure)
        assert value.shape == (2, 3)
        for i, j in ((0, 0), (1, 2)):
            single = function(make(float(masses[i]), float(discounts[j])))
            torch.testing.assert_close(value[i, j], single, rtol=1e-9, atol=1e-11)


def test_support():
    assert GeneralizedGammaProcess(1, 0.4, 1).support.lower_bound == 0.0
    assert StableBetaProcess(1, 0.4, 1, scale=2.0).support.upper_bound == 2.0
    assert ParetoProcess(1.0, 2.0, 1.0).support.lower_bound == 2.0


def test_user_density_is_checked():
    def power(w, index):
        return -(1.0 + index) * w.log()

    with pytest.raises(ValueError, match="must grow slower than w [*][*] -2 at zero, .* 1.2"):
        LevyDensityProcess(lambda w: power(w, 1.2) - w)
    with pytest.raises(ValueError, match="must fall faster than w [*][*] -1 at infinity"):
        LevyDensityProcess(lambda w: power(w, -0.2))
    measure = LevyDensityProcess(lambda w: power(w, 0.25), high=3.0)
    expected = (1.0 - (3.0 / 0.3) ** -0.25) * 4.0 * 0.3**-0.25
    torch.testing.assert_close(measure.tail(0.3), torch.tensor(expected), rtol=1e-10, atol=0.0)
    torch.testing.assert_close(measure.mean, torch.tensor(3.0**0.75 / 0.75))


def test_arrival_families_are_values():
    assert GammaArrivals(2.0) == GammaArrivals(2.0) != GammaArrivals(3.0)
    assert ExponentialArrivals().concentration == 1.0
    for family in (GammaArrivals(0.7), InverseGammaArrivals(2.0), LomaxArrivals(1.3)):
        typed: ArrivalFamily = family
        point = torch.linspace(-60.0, 6.0, 40, requires_grad=True)
        value = typed.log_cdf(point)
        (slope,) = torch.autograd.grad(value.exp().sum(), point)
        torch.testing.assert_close(slope, typed.log_density(point).exp(), rtol=1e-8, atol=1e-300)
        whole = typed.log_cdf(point).exp() + typed.log_survival(point).exp()
        torch.testing.assert_close(whole, torch.ones(40))
