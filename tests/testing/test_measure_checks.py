"""The checks of random measures refuse what is wrong with a measure, and say what."""

import pytest

from pyro_ext.random_measures import GeneralizedGammaProcess, PitmanYor
from pyro_ext.testing import random_measures as checks
from tests.testing.wrong import wrong

pytestmark = [pytest.mark.statistical, pytest.mark.usefixtures("float64")]

GAMMA, PITMAN_YOR = (GeneralizedGammaProcess, 2.0, 0.4, 1.5), (PitmanYor, 0.4, 1.3)


def larger(value):
    return value + 1e-6


def arguments_changed(method):
    """The method of an argument a little larger."""

    def change(self, value):
        return getattr(GeneralizedGammaProcess, method)(self, 1.001 * value)

    return type("Wrong", (GeneralizedGammaProcess,), {method: change})(*GAMMA[1:])


def draws_of_another(partition):
    partition.sample = PitmanYor(0.1, 1.3).partition(partition.num_samples).sample
    return partition


@pytest.mark.parametrize(
    ("method", "change", "message"),
    [
        (
            "laplace_exponent",
            lambda v: v * (1 + 1e-6),
            "laplace_exponent of .* its integral differ",
        ),
        ("log_kappa", larger, "log_kappa of Wrong and its integral differ"),
        ("log_tail", larger, "log_tail of Wrong at 1e-06 and its integral differ"),
        ("variance", lambda v: v * 1.001, "variance of Wrong and its integral differ: 1 and"),
        ("inverse_laplace_exponent", lambda v: v * 1.001, "laplace_exponent of .* inverse differ"),
    ],
)
def test_wrong_measures_are_refused(method, change, message):
    with pytest.raises(AssertionError, match=message):
        checks.check_measure(wrong(*GAMMA, **{method: change}))


@pytest.mark.parametrize("method", ["exponential_tilt", "rescale"])
def test_wrong_tilts_and_scales_are_refused(method):
    with pytest.raises(AssertionError, match="Wrong tilted and rescaled differ"):
        checks.check_measure(arguments_changed(method))


@pytest.mark.parametrize(
    ("check", "of", "method", "change", "message"),
    [
        (
            checks.check_series,
            GAMMA,
            "series",
            lambda series: series._replace(weights=1.2 * series.weights),
            "the mean of series of Wrong by size_biased is",
        ),
        (
            checks.check_finite_approximation,
            GAMMA,
            "finite_error",
            lambda error: error + 1e-3,
            "has an expectation 0 of",
        ),
        (checks.check_partitions, PITMAN_YOR, "log_eppf", larger, "sum of the EPPF of Wrong for 1"),
        (
            checks.check_partitions,
            PITMAN_YOR,
            "predictive",
            lambda shares: shares.flip(-1),
            r"predictive of Wrong after \[1\] differ",
        ),
        (
            lambda measure: checks.check_partition_draws(measure, 2_000),
            PITMAN_YOR,
            "partition",
            draws_of_another,
            "partitions of Wrong do not have their prob",
        ),
    ],
)
def test_wrong_parts_are_refused(check, of, method, change, message):
    with pytest.raises(AssertionError, match=message):
        check(wrong(*of, **{method: change}))
