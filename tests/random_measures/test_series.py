"""Series of weights: with what comes later they have the distribution of the measure."""

import math

import mpmath
import pytest
import torch
from scipy import stats

from pyro_ext.random_measures import (
    DeterministicArrivals,
    ExponentialArrivals,
    GammaArrivals,
    LomaxArrivals,
    Superposition,
)
from pyro_ext.random_measures.series import series_method
from tests.random_measures.references import (
    BETA_PRIME,
    GAMMA,
    GENERALIZED_BFRY,
    PARETO_MIXTURE,
    STABLE_BETA,
    gamma,
    generalized_bfry,
    pareto,
    stable_beta,
)
from tests.random_measures.series_methods import (
    CLOSED,
    FEWER,
    SEARCHED,
    gamma_law,
    identify,
    lomax_law,
)

pytestmark = pytest.mark.usefixtures("float64")

NUM_ERRORS = 5.0


def check_mean(draws, expected, unit=1.0):
    """Fails for one seed in 1.7 million."""
    error = draws.std() / math.sqrt(draws.numel())
    assert abs(draws.mean() - expected) < NUM_ERRORS * error + 1e-9 * unit


@pytest.mark.slow
@pytest.mark.statistical
@pytest.mark.parametrize("reference, method", CLOSED, ids=identify)
def test_transforms(reference, method):
    """Long series against the Laplace transform, at three places.

    What is lost moves the transform at t by less than t times the lost mass, which is allowed. Any
    of 51 transforms fails for one seed in 33,000.
    """
    number, length = FEWER.get(method, 3000), 50 if method == "inverse_levy" else 200
    measure = reference.measure()
    weights, _, lost = measure.series(length, method, seed=0, sample_shape=(number,))
    for t in (0.1, 0.5, 2.0):
        terms = torch.exp(-t * weights.sum(-1))
        error = NUM_ERRORS * terms.std() / math.sqrt(number)
        expected = math.exp(-reference.exponent(t))
        slack = t * float((terms * lost).mean())
        assert -error - 1e-9 < terms.mean() - expected < error + slack + 1e-9


@pytest.mark.statistical
def test_size_biased_remainder():
    r"""Given the last time T, the rest has the exponent psi(t + T) - psi(T): an exact identity.

    Any of nine transforms fails for one seed in 190,000.
    """
    for reference in (GAMMA, gamma(2.0, 0.0, 1.5), generalized_bfry(1.5, 0.4, 2.3, 1.2)):
        measure = reference.measure()
        number = 50_000 if reference.make is GAMMA.make else 300
        weights, times, _ = measure.series(3, seed=0, sample_shape=(number,))
        for t in (0.1, 0.5, 2.0):
            last = times[:, -1]
            rest = measure.laplace_exponent(t + last) - measure.laplace_exponent(last)
            check_mean(torch.exp(-t * weights.sum(-1) - rest), math.exp(-reference.exponent(t)))


@pytest.mark.slow
@pytest.mark.statistical
@pytest.mark.parametrize("reference", [GAMMA, STABLE_BETA, BETA_PRIME], ids=identify)
def test_largest_weights(reference):
    """Tails at weights in falling order are points of a Poisson process: gamma variables.

    Any of six tests fails for one seed in 160,000.
    """
    weights, _, _ = reference.measure().series(3, "inverse_levy", seed=0, sample_shape=(60,))
    assert (weights.diff(dim=-1) < 0).all()
    for order in (0, 2):
        counts = [math.exp(reference.log_tail(float(w))) for w in weights[:, order]]
        assert stats.kstest(counts, stats.gamma(order + 1).cdf).pvalue > 1e-6


def test_loss_falls_with_the_concentration():
    measure = GAMMA.measure()
    families = (
        DeterministicArrivals(),
        GammaArrivals(10.0),
        GammaArrivals(3.0),
        ExponentialArrivals(),
    )
    for number in (5, 20, 200):
        lost = [measure.lost_mass(number, family).item() for family in families]
        assert lost == sorted(lost) and lost[0] < 0.99 * lost[1]
        assert measure.lost_mass(number, "inverse_levy").item() == lost[0]
        assert measure.lost_mass(number).item() == lost[-1]


@pytest.mark.parametrize(
    "reference, method",
    [*CLOSED[:7], *CLOSED[7:9], *SEARCHED[:2], (GENERALIZED_BFRY, "size_biased")],
    ids=identify,
)
def test_number_of_jumps(reference, method):
    measure = reference.measure()
    number = measure.num_jumps(0.05, method)
    allowed = 0.05 * measure.mean
    assert measure.lost_mass(number, method) <= allowed
    assert number == 1 or measure.lost_mass(number - 1, method) > allowed


@pytest.mark.parametrize(
    "reference, family, log_cdf, log_survival",
    [
        (STABLE_BETA, GammaArrivals(1.4), *gamma_law(1.4)),
        (GENERALIZED_BFRY, GammaArrivals(2.0), *gamma_law(2.0)),
        (GAMMA, GammaArrivals(2.5), *gamma_law(2.5)),
        (GAMMA, LomaxArrivals(1.7), *lomax_law(1.7)),
        (BETA_PRIME, LomaxArrivals(1.7), *lomax_law(1.7)),
        (stable_beta(2.0, 0.4, 1.5, 3.0, 2.5), LomaxArrivals(0.7), *lomax_law(0.7)),
    ],
    ids=identify,
)
def test_lost_mass(reference, family, log_cdf, log_survival):
    """Both the time and what arrives later by quadrature over sizes."""
    low, high = -20.0, 30.0
    for _ in range(45):
        middle = 0.5 * (low + high)
        count = reference.log_integral(lambda v, t=middle: log_cdf(v + t), (-middle,))
        low, high = (middle, high) if count < math.log(7.0) else (low, middle)
    expected = reference.log_integral(lambda v: v + log_survival(v + low), (-low,), 1.0, 1.0)
    value = reference.measure().lost_mass(7, family)
    assert value.log().item() == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(
    "reference, method",
    CLOSED[:-1],  # the last counts rejected weights as lost
    ids=identify,
)
def test_everything_comes_later_than_nothing(reference, method):
    """The moments of what comes after a point near zero are those of all weights."""
    measure = reference.measure()
    way = series_method(measure, method)
    for order, whole in ((1, measure.mean), (2, measure.variance)):
        later = way.log_later(torch.tensor(1e-9), order).exp()
        assert later.item() == pytest.approx(whole.item(), rel=1e-3)


@pytest.mark.parametrize("order", [1, 2])
def test_what_comes_later_within_a_round(order):
    """A round has beta weights, of which every point takes the same mean away."""
    mass, discount, concentration = 2.0, 0.4, 1.5
    measure = stable_beta(mass, discount, concentration).measure()
    all_rounds = (measure.mean if order == 1 else measure.variance).item()
    first, second = (
        stats.beta(1 - discount, point + concentration + discount).moment(order) for point in (0, 1)
    )
    number = mass * (concentration + discount) / (concentration + 1)  # in the second round
    way = series_method(measure, "rounds")
    for share in (0.1, 0.25, 0.9):
        within = way.log_later(torch.tensor(share * mass), order).exp()
        expected = all_rounds - share * mass * first
        assert within.item() == pytest.approx(expected, rel=1e-9)
        within = way.log_later(torch.tensor(mass + share * number), order).exp()
        expected = all_rounds - mass * first - share * number * second
        assert within.item() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("discount", [0.1, 0.4, 0.8])
def test_late_rounds(discount):
    """The mean number of weights until a round by mpmath, on both sides of a million rounds."""
    mass, concentration = 2.0, 1.5
    way = series_method(stable_beta(mass, discount, concentration).measure(), "rounds")
    for rounds in (1e3, 9e5, 2e6, 1e9, 1e12):
        with mpmath.workdps(40):
            s, c, point = mpmath.mpf(discount), mpmath.mpf(concentration), mpmath.mpf(rounds)
            quotient = mpmath.gammaprod([point + c + s, c], [point + c, c + s]) - 1
            number = mass * mpmath.gamma(1 + c) / (s * mpmath.gamma(c)) * quotient
        _, log_round = way.sample(torch.tensor([float(number)]))
        assert log_round.item() == pytest.approx(math.log(rounds), abs=2.0 / rounds + 1e-9)


def test_finitely_many_weights():
    """After the last there is nothing, which has no gradient."""
    scale = torch.tensor(2.0, requires_grad=True)
    measure = pareto(3.0, 2.0, 1.5).make(3.0, scale, 1.5)
    weights, _, lost = measure.series(40, "inverse_levy", seed=0)
    assert (weights >= 0).all() and (weights[-10:] == 0).all() and lost == 0
    (slope,) = torch.autograd.grad(weights.sum(), scale)
    assert slope.isfinite()


def test_no_number_of_jumps_is_enough():
    with pytest.raises(ValueError, match="mean total mass, which is infinite here"):
        gamma(2.0, 0.4, 0.0).measure().num_jumps(0.1)
    with pytest.raises(ValueError, match="would take more than 10000000 jumps"):
        gamma(2.0, 0.99, 1.0).measure().num_jumps(0.01)


def test_tolerance():
    measure = gamma(2.0, 0.4, 1.5).measure().expand((3,))
    weights, times, lost = measure.series(tolerance=0.02, seed=1, sample_shape=(2,))
    assert weights.shape == times.shape == (2, 3, weights.shape[-1]) and lost.shape == (2, 3)
    assert (lost <= 0.02 * weights.sum(-1)).all()
    half = measure.series(weights.shape[-1] // 2, seed=1, sample_shape=(2,))
    assert (half.lost_mass > 0.02 * half.weights.sum(-1)).any()


def test_methods_that_do_not_apply():
    for method in ("rejection", "rosinski"):
        with pytest.raises(ValueError, match=f"discount must be > 0 for the method '{method}'"):
            gamma(2.0, 0.0, 1.5).measure().series(3, method)
    for method in ("lomax", "rounds"):
        with pytest.raises(ValueError, match="concentration of .* must be > 0 for"):
            stable_beta(2.0, 0.6, -0.3).measure().series(3, method)
        with pytest.raises(ValueError, match="method must be 'size_biased', 'inverse_levy' or an"):
            stable_beta(2.0, 0.4, 1.5, 3.0).measure().series(3, method)
    with pytest.raises(NotImplementedError, match="have no density"):
        DeterministicArrivals().log_density(torch.zeros(()))


@pytest.mark.parametrize(
    "reference, method, names",
    [
        (GAMMA, "inverse_levy", ("mass", "discount", "tilt")),
        (GAMMA, "rosinski", ("mass", "discount", "tilt")),
        (STABLE_BETA, "inverse_levy", ("mass", "discount", "concentration")),
        (STABLE_BETA, "size_biased", ("mass", "discount", "concentration")),
        (GENERALIZED_BFRY, "inverse_levy", ("mass", "discount", "tail_index", "cutoff")),
        (BETA_PRIME, "inverse_levy", ("mass", "discount", "tail_index", "rate")),
        (GAMMA, LomaxArrivals(1.7), ("mass", "discount", "tilt")),
        (GAMMA, "size_biased", ("mass", "tilt")),
        (GENERALIZED_BFRY, "scaled", ("mass", "cutoff")),
        (STABLE_BETA, "lomax", ("mass",)),
        (pareto(300.0, 2.0, 1.5, 0.2), "inverse_levy", ("mass", "scale", "tail_index", "tilt")),
    ],
    ids=identify,
)
def test_gradients(reference, method, names):
    """Against differences of draws with the same seed; shapes of gamma draws stay the same."""
    values = {name: torch.tensor(reference.parameters[name], requires_grad=True) for name in names}
    measure = reference.make(**{**reference.parameters, **values})
    drawn = measure.series(3, method, seed=0)
    total = drawn.weights.log().sum() + drawn.lost_mass.log()
    slopes = torch.autograd.grad(total, tuple(values.values()))

    def draw(name, value):
        other = reference.make(**{**reference.parameters, name: value})
        series = other.series(3, method, seed=0)
        return float(series.weights.log().sum() + series.lost_mass.log())

    for name, slope in zip(names, slopes, strict=True):
        value, step = reference.parameters[name], 1e-5
        expected = (draw(name, value + step) - draw(name, value - step)) / (2 * step)
        assert slope.item() == pytest.approx(expected, rel=1e-5, abs=1e-6), name


@pytest.mark.slow
@pytest.mark.statistical
@pytest.mark.parametrize(
    "reference, level, number, options",
    [(reference, 0.3, 300, {}) for reference in (GAMMA, STABLE_BETA, PARETO_MIXTURE)]
    + [
        (reference, 0.05, 500, {"method": "thinning"})
        for reference in (GAMMA, gamma(2.0, 0.0, 1.5), gamma(1.0, 0.7, 3.0))
    ],
    ids=identify,
)
def test_jumps_above(reference, level, number, options):
    """Poisson counts and weights' distribution; any of 18 tests fails for one seed in 50,000."""
    measure = reference.measure()
    weights, mask = measure.jumps_above(level, seed=0, sample_shape=(number,), **options)
    assert weights.shape == mask.shape and mask.dtype == torch.bool
    assert ((weights > 0) == mask).all() and (options or mask.any(0).all())
    drawn = weights[mask]
    assert (drawn >= level).all() and measure.support.check(drawn).all()
    assert (weights.diff(dim=-1) <= 0).all()
    mean, counts = math.exp(reference.log_tail(level)), mask.sum(-1)
    assert 1e-6 < stats.poisson(number * mean).cdf(int(counts.sum())) < 1 - 1e-6
    spread = counts.double().var().item() / mean * (number - 1)
    assert 1e-6 < stats.chi2(number - 1).cdf(spread) < 1 - 1e-6
    levels = [math.exp(reference.log_tail(float(w))) / mean for w in drawn[:200]]
    assert stats.kstest(levels, "uniform").pvalue > 1e-6


def test_shapes_of_jumps_above():
    measure = gamma(2.0, 0.4, 1.5).measure().expand((2,))
    weights, _ = measure.jumps_above(0.01, seed=1, sample_shape=(4,))
    assert weights.shape[:2] == (4, 2)
    wide, _ = measure.jumps_above(torch.full((3, 1), 0.5), seed=1)
    assert wide.shape[:2] == (3, 2)
    none, mask = measure.jumps_above(1e3, seed=1)
    assert none.shape == mask.shape == (2, 0)


def test_jumps_above_have_gradients():
    tilt = torch.tensor(1.5, requires_grad=True)
    parameters = {**GAMMA.parameters, "tilt": tilt}
    weights, mask = GAMMA.make(**parameters).jumps_above(0.1, seed=2)
    (slope,) = torch.autograd.grad(weights[mask].log().sum(), tilt)

    def draw(value):
        measure = GAMMA.make(**{**parameters, "tilt": value})
        weights, mask = measure.jumps_above(0.1, seed=2)
        return mask.sum().item(), weights[mask].log().sum().item()

    (count, high), (other, low) = draw(1.5 + 1e-5), draw(1.5 - 1e-5)
    assert count == other
    assert slope.item() == pytest.approx((high - low) / 2e-5, rel=1e-5)


def test_batches_and_types():
    measure = stable_beta(2.0, 0.4, 1.5).measure().expand((3, 1))
    for method in ("lomax", "rounds", "inverse_levy", "size_biased"):
        series = measure.series(4, method, seed=0, sample_shape=(2,))
        assert series.weights.shape == series.arrivals.shape == (2, 3, 1, 4)
        assert series.lost_mass.shape == (2, 3, 1)
    lost = measure.lost_mass(torch.tensor([1.0, 10.0]), "lomax")
    assert lost.shape == (3, 2) and (lost[:, 0] > lost[:, 1]).all()
    both = measure + gamma(2.0, 0.4, 1.5).measure()
    assert isinstance(both, Superposition)
    assert both.series(4, seed=0).weights.shape == (3, 1, 4)
    torch.set_default_dtype(torch.float32)
    for result in GAMMA.measure().series(4, seed=0):
        assert result.dtype == torch.float32
