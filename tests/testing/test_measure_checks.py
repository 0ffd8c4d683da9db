"""The checks of random measures refuse what is wrong with a measure, and say what."""

import pytest

from pyro_ext.random_measures import GeneralizedGammaProcess, PitmanYor
from pyro_ext.testing import random_measures as checks

pytestmark = [pytest.mark.statistical, pytest.mark.usefixtures("float64")]


class WrongExponent(GeneralizedGammaProcess):
    def laplace_exponent(self, value):
        return super().laplace_exponent(value) * (1 + 1e-6)


class WrongMoments(GeneralizedGammaProcess):
    def log_kappa(self, order, tilt):
        return super().log_kappa(order, tilt) + 1e-6


class WrongTail(GeneralizedGammaProcess):
    def log_tail(self, value):
        return super().log_tail(value) + 1e-6


class WrongVariance(GeneralizedGammaProcess):
    @property
    def variance(self):
        return super().variance * 1.001


class WrongInverse(GeneralizedGammaProcess):
    def inverse_laplace_exponent(self, value):
        return super().inverse_laplace_exponent(value) * 1.001


class WrongTilt(GeneralizedGammaProcess):
    def exponential_tilt(self, tilt):
        return super().exponential_tilt(1.001 * tilt)


class WrongScale(GeneralizedGammaProcess):
    def rescale(self, scale):
        return super().rescale(1.001 * scale)


class WrongSeries(GeneralizedGammaProcess):
    def series(self, *args, **kwargs):
        result = super().series(*args, **kwargs)
        return result._replace(weights=1.2 * result.weights)


class WrongError(GeneralizedGammaProcess):
    def finite_error(self, *args, **kwargs):
        return super().finite_error(*args, **kwargs) + 1e-3


class WrongPartitions(PitmanYor):
    def log_eppf(self, counts):
        return super().log_eppf(counts) + 1e-6


class WrongPredictive(PitmanYor):
    def predictive(self, counts):
        return super().predictive(counts).flip(-1)


class WrongDraws(PitmanYor):
    def partition(self, num_samples):
        right, wrong = super().partition(num_samples), PitmanYor(0.1, 1.3).partition(num_samples)
        right.sample = wrong.sample
        return right


@pytest.mark.parametrize(
    "make, message",
    [
        (WrongExponent, "laplace_exponent of WrongExponent and its integral differ"),
        (WrongMoments, "log_kappa of WrongMoments and its integral differ"),
        (WrongTail, "log_tail of WrongTail at 1e-06 and its integral differ"),
        (WrongVariance, "variance of WrongVariance and its integral differ: 1 and"),
        (WrongInverse, "laplace_exponent of WrongInverse at its inverse differ"),
        (WrongTilt, "WrongTilt tilted and rescaled differ"),
        (WrongScale, "WrongScale tilted and rescaled differ"),
    ],
)
def test_wrong_measures_are_refused(make, message):
    with pytest.raises(AssertionError, match=message):
        checks.check_measure(make(2.0, 0.4, 1.5))


def test_wrong_series_and_approximations_are_refused():
    with pytest.raises(AssertionError, match="the mean of series of WrongSeries by size_biased is"):
        checks.check_series(WrongSeries(2.0, 0.4, 1.5))
    with pytest.raises(AssertionError, match="has an expectation 0 of"):
        checks.check_finite_approximation(WrongError(2.0, 0.4, 1.5))


def test_wrong_partitions_are_refused():
    with pytest.raises(AssertionError, match="sum of the EPPF of WrongPartitions for 1 samples"):
        checks.check_partitions(WrongPartitions(0.4, 1.3))
    with pytest.raises(AssertionError, match=r"predictive of WrongPredictive after \[1\] differ"):
        checks.check_partitions(WrongPredictive(0.4, 1.3))
    with pytest.raises(AssertionError, match="partitions of WrongDraws do not have their prob"):
        checks.check_partition_draws(WrongDraws(0.4, 1.3), 2_000)
