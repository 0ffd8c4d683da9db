"""Shapes, types and errors of all measures."""

import math

import pytest
import torch

from pyro_ext.random_measures import (
    ArrivalFamily,
    BetaPrimeProcess,
    DirichletProcess,
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

WRONG = [
    (
        GeneralizedGammaProcess,
        (0.0, 0.4, 1.0),
        "mass of GeneralizedGammaProcess must be > 0, got 0",
    ),
    (GeneralizedGammaProcess, (1.0, 1.0, 1.0), "discount of .* must be < 1, got 1"),
    (GeneralizedGammaProcess, (1.0, 0.4, -0.1), "tilt of .* must be >= 0, got -0.1"),
    (GeneralizedGammaProcess, (1.0, 0.0, 0.0), "tilt of .* must be > 0 where the discount is not"),
    (GeneralizedGammaProcess, (1.0, math.nan, 1.0), "discount of .* must be finite, got nan"),
    (StableBetaProcess, (-1.0, 0.4, 1.0), "mass of .* must be > 0, got -1"),
    (StableBetaProcess, (1.0, -0.1, 1.0), r"discount of .* must be in \[0, 1\), got -0.1"),
    (StableBetaProcess, (1.0, 1.0, 1.0), r"discount of .* must be in \[0, 1\), got 1"),
    (StableBetaProcess, (1.0, 0.4, -0.4), "concentration of .* must be > -discount, got -0.4"),
    (BetaPrimeProcess, (math.inf, 0.4, 1.5, 1.0), "mass of .* must be finite, got inf"),
    (BetaPrimeProcess, (1.0, -0.4, 1.5, 1.0), r"discount of .* must be in \[0, 1\), got -0.4"),
    (BetaPrimeProcess, (1.0, 0.4, 0.4, 1.0), "tail_index of .* must be > discount, got 0.4"),
    (BetaPrimeProcess, (1.0, 0.4, 1.4, 0.0), "rate of .* must be > 0, got 0"),
    (GeneralizedBFRYProcess, (0.0, 0.4, 1.4, 1.0), "mass of .* must be > 0, got 0"),
    (GeneralizedBFRYProcess, (1.0, 1.0, 1.4, 1.0), r"discount of .* must be in \[0, 1\), got 1"),
    (GeneralizedBFRYProcess, (1.0, 0.4, 0.3, 1.0), "tail_index of .* must be > discount, got 0.3"),
    (GeneralizedBFRYProcess, (1.0, 0.4, 1.4, -2.0), "cutoff of .* must be > 0, got -2"),
    (ParetoProcess, (0.0, 1.0, 1.0), "mass of .* must be > 0, got 0"),
    (ParetoProcess, (1.0, 0.0, 1.0), "scale of .* must be > 0, got 0"),
    (ParetoProcess, (1.0, 1.0, -1.0), "tail_index of .* must be > 0, got -1"),
    (ParetoMixtureProcess, (1.0, 0.4, 1.0, 1.0, 1.0, 0.0), "tail_index of .* must be > 0, got 0"),
    (PitmanYor, (1.0, 1.0), r"discount of PitmanYor must be in \[0, 1\), got 1"),
    (PitmanYor, (0.4, -0.4), "concentration of PitmanYor must be finite and > -discount, got -0.4"),
    (DirichletProcess, (0.0,), "concentration of DirichletProcess must be"),
    (GammaArrivals, (0.0,), "concentration must be"),
    (InverseGammaArrivals, (-1.0,), "concentration must be"),
    (LomaxArrivals, (math.nan,), "concentration must be"),
]
WRONG_OPTIONS = [
    (StableBetaProcess, (1.0, 0.4, 1.0), {"tilt": -1.0}, "tilt of .* must be >= 0, got -1"),
    (StableBetaProcess, (1.0, 0.4, 1.0), {"scale": 0.0}, "scale of .* must be > 0, got 0"),
    (BetaPrimeProcess, (1.0, 0.4, 1.0), {"tilt": -1.0}, "tilt of .* must be >= 0, got -1"),
    (GeneralizedBFRYProcess, (1.0, 0.4, 1.0), {"tilt": -1.0}, "tilt of .* must be >= 0, got -1"),
    (ParetoProcess, (1.0, 0.4, 1.0), {"tilt": -1.0}, "tilt of .* must be >= 0, got -1"),
]


def test_parameters_are_checked():
    for make, arguments, *options, message in [*WRONG, *WRONG_OPTIONS]:
        with pytest.raises(ValueError, match=message):
            make(*arguments, **(options[0] if options else {}))


def test_one_wrong_parameter_of_a_batch():
    measure = GeneralizedGammaProcess(torch.tensor([1.0, -2.0]), 0.4, 1.0, validate_args=False)
    assert measure.mass[1] == -2.0


WRONG_CALLS = [
    (lambda m: m.laplace_exponent(-1.0), "value must be >= 0, got -1"),
    (lambda m: m.inverse_laplace_exponent(0.0), "value must be > 0, got 0"),
    (lambda m: m.log_levy_density(0.0), "value must be > 0, got 0"),
    (lambda m: m.tail(-2.0), "value must be > 0, got -2"),
    (lambda m: m.inverse_tail(0.0), "value must be > 0, got 0"),
    (lambda m: m.log_kappa(0, 1.0), "order must be >= 1, got 0"),
    (lambda m: m.log_kappa(1, math.nan), "tilt must be >= 0, got nan"),
    (lambda m: m.exponential_tilt(-0.5), "tilt must be >= 0, got -0.5"),
    (lambda m: m.rescale(0.0), "scale must be > 0, got 0"),
    (lambda m: m.lost_mass(0.0), "num_jumps must be > 0, got 0"),
    (lambda m: m.series(0), "num_jumps must be"),
    (lambda m: m.series(), "exactly one of num_jumps and tolerance"),
    (lambda m: m.series(3, tolerance=0.1), "exactly one of num_jumps and tolerance"),
    (lambda m: m.series(tolerance=1.0), "tolerance must be"),
    (lambda m: m.series(3, "smallest_first"), "method must be 'size_biased'.*got 'smallest"),
    (lambda m: m.series(3, seed=-1), "seed must be"),
    (lambda m: m.jumps_above(0.0), "level must be > 0, got 0"),
    (lambda m: m.finite(0), "num_atoms must be"),
    (lambda m: m.finite_error(3, 0.0), "value must be > 0, got 0"),
]


@pytest.mark.parametrize("reference", KINDS, ids=str)
def test_arguments_are_checked(reference):
    measure = reference.measure()
    for call, message in WRONG_CALLS:
        with pytest.raises(ValueError, match=message):
            call(measure)


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


@pytest.mark.parametrize("reference", KINDS, ids=str)
def test_expand(reference):
    wide = reference.measure().expand((2, 1))
    assert wide.mean.shape == wide.variance.shape == (2, 1)
    assert wide.index_at_zero.shape == wide.index_at_infinity.shape == (2, 1)
    assert wide.exponential_tilt(torch.ones(2, 4)).batch_shape == (2, 4)
    assert wide.rescale(2.0).batch_shape == (2, 1)


def test_support():
    assert GeneralizedGammaProcess(1, 0.4, 1).support.lower_bound == 0.0
    assert StableBetaProcess(1, 0.4, 1, scale=2.0).support.upper_bound == 2.0
    assert ParetoProcess(1.0, 2.0, 1.0).support.lower_bound == 2.0


def test_user_density_is_checked():
    def power(w, index):
        return -(1.0 + index) * w.log()

    with pytest.raises(ValueError, match="must rise slower than w [*][*] -2 at zero, .* 1.2"):
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
