"""Predictive metrics against answers by hand and independent loops."""

import math

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings

from pyro_ext.diagnostics.metrics import (
    accuracy,
    agreement,
    ambiguity,
    brier,
    calibration_bins,
    ece,
    nll,
    quantile_calibration_error,
    total_variation,
)

OF_LABELS = [nll, brier, accuracy, ece, ambiguity, calibration_bins]
OF_PAIRS = [agreement, total_variation]

# Two draws, three points, three classes; the averages are exact in binary.
DRAWS = np.array(
    [
        [[0.5, 0.25, 0.25], [0.0, 1.0, 0.0], [0.25, 0.5, 0.25]],
        [[0.25, 0.5, 0.25], [0.0, 0.5, 0.5], [0.75, 0.0, 0.25]],
    ]
)
AVERAGE = np.array([[0.375, 0.375, 0.25], [0.0, 0.75, 0.25], [0.5, 0.25, 0.25]])
LABELS = np.array([1, 1, 0])
TINY = 5e-324


def softmax(logits):
    exponentials = np.exp(logits - logits.max(-1, keepdims=True))
    return exponentials / exponentials.sum(-1, keepdims=True)


@st.composite
def ensembles(draw, min_draws=1):
    """Logits of an ensemble, ``(num_draws, n, classes)``, and labels."""
    num_draws = draw(st.integers(min_draws, 5))
    num_points, num_classes = draw(st.integers(1, 12)), draw(st.integers(2, 6))
    random = np.random.RandomState(draw(st.integers(0, 2**32 - 1)))
    scale = draw(st.sampled_from([0.0, 0.1, 1.0, 5.0, 30.0]))
    logits = scale * random.randn(num_draws, num_points, num_classes)
    return logits, random.randint(num_classes, size=num_points)


def clear_cut(probabilities, num_bins=15):
    """Say whether no rounding of the average can change a likeliest class or a bin."""
    ordered = np.sort(probabilities.mean(0), -1)
    position = ordered[:, -1] * num_bins
    return (np.diff(ordered)[:, -1] > 1e-9).all() and (
        abs(position - position.round()) > 1e-9
    ).all()


class TestByHand:
    """Answers worked out on paper."""

    def test_accuracy_counts_the_first_of_equals(self):
        assert accuracy(DRAWS, LABELS) == pytest.approx(2 / 3, rel=1e-14)
        assert accuracy(DRAWS, np.array([0, 1, 0])) == 1.0

    def test_ambiguity(self):
        p = np.array([[[0.9, 0.1]], [[0.1, 0.9]]])
        assert ambiguity(p, np.array([0])) == pytest.approx(-math.log(0.6), rel=1e-14)
        # three draws, two points: at the second all draws agree
        p = np.array(
            [
                [[0.5, 0.25, 0.25], [0.2, 0.3, 0.5]],
                [[0.25, 0.5, 0.25], [0.2, 0.3, 0.5]],
                [[0.25, 0.25, 0.5], [0.2, 0.3, 0.5]],
            ]
        )
        first = -math.log(3 * (0.5 * 0.25 * 0.25) ** (1 / 3))
        assert ambiguity(p, np.array([0, 0])) == pytest.approx(first / 2, rel=1e-13)

    def test_agreement(self):
        # likeliest of the first ensemble: 0 (tie with 1), 1, 0
        other = np.array([[0.1, 0.8, 0.1], [0.1, 0.8, 0.1], [0.4, 0.35, 0.25]])
        assert agreement(DRAWS, other) == pytest.approx(2 / 3, rel=1e-14)
        other[0] = [0.4, 0.4, 0.2]
        assert agreement(DRAWS, other) == 1.0

    def test_total_variation(self):
        other = np.array([[0.25, 0.5, 0.25], [0.0, 0.75, 0.25], [0.0, 0.0, 1.0]])
        assert total_variation(DRAWS, other) == pytest.approx((0.125 + 0.0 + 0.75) / 3, rel=1e-14)
        disjoint = np.array([[1.0, 0.0], [0.0, 1.0]])
        assert total_variation(disjoint, disjoint[:, ::-1]) == 1.0

    def test_calibration_bins(self):
        bins = calibration_bins(DRAWS, LABELS, num_bins=4)
        assert bins.edges.tolist() == [0.0, 0.25, 0.5, 0.75, 1.0]
        assert bins.counts.tolist() == [0, 2, 1, 0]  # 0.5 and 0.75 belong to the bins they close
        assert bins.counts.dtype == torch.int64
        np.testing.assert_equal(bins.accuracy.numpy(), [np.nan, 0.5, 1.0, np.nan])
        np.testing.assert_equal(bins.confidence.numpy(), [np.nan, 0.4375, 0.75, np.nan])
        assert bins.expected_calibration_error == ece(DRAWS, LABELS, num_bins=4)


class TestZeros:
    """Probability zero gives infinity where it should and NaN nowhere."""

    @pytest.mark.parametrize(
        ("metric", "p", "labels", "expected"),
        [
            (nll, DRAWS, [1, 0, 0], math.inf),  # every draw excludes the second label
            (nll, [[1.0, 0.0]], [1], math.inf),
            (nll, [[[1.0, 0.0]], [[0.0, 1.0]], [[0.5, 0.5]]], [1], math.log(2.0)),
            # A third of the smallest number is none.
            (nll, [[[1.0, TINY]], [[1.0, 0.0]], [[1.0, 0.0]]], [1], math.log(3.0) - math.log(TINY)),
            *[  # excluded classes do not count, whatever the label
                (ambiguity, [[[0.5, 0.5, 0.0]], [[0.5, 0.0, 0.5]]], [label], math.log(2.0))
                for label in range(3)
            ],
            (ambiguity, [[[1.0, 0.0]], [[0.0, 1.0]]], [0], math.inf),  # nothing is left
            (ambiguity, [[[0.0, 1.0], [0.5, 0.5]]] * 3, [0, 0], 0.0),
        ],
    )
    def test_values(self, metric, p, labels, expected):
        found = metric(np.array(p), np.array(labels))
        assert found == pytest.approx(expected, rel=1e-14, abs=1e-15)

    def test_nll_of_certainty_is_plus_zero(self):
        assert math.copysign(1.0, nll(np.array([[1.0, 0.0]]), np.array([0]))) == 1.0


class TestAgainstOthers:
    """Independent loops."""

    @given(ensembles(), st.integers(1, 20))
    @settings(deadline=None, max_examples=100)
    def test_loops(self, ensemble, num_bins):
        logits, labels = ensemble
        p = softmax(logits)
        assume(clear_cut(p, num_bins))
        num_draws, num_points, num_classes = p.shape
        surprise = score = right = 0.0
        in_bin = {}
        for i in range(num_points):
            average = [
                sum(p[s, i, c] for s in range(num_draws)) / num_draws for c in range(num_classes)
            ]
            surprise -= math.log(average[labels[i]])
            score += sum((average[c] - (c == labels[i])) ** 2 for c in range(num_classes))
            confidence = max(average)
            hit = average.index(confidence) == labels[i]
            right += hit
            number = next(b for b in range(num_bins) if confidence <= (b + 1) / num_bins)
            in_bin.setdefault(number, []).append(hit - confidence)
        gap = sum(abs(sum(members)) for members in in_bin.values())
        assert nll(p, labels) == pytest.approx(surprise / num_points, rel=1e-10)
        assert brier(p, labels) == pytest.approx(score / num_points, rel=1e-10, abs=1e-14)
        assert accuracy(p, labels) == pytest.approx(right / num_points)
        assert ece(p, labels, num_bins) == pytest.approx(gap / num_points, rel=1e-10, abs=1e-12)

    @given(ensembles())
    @settings(deadline=None, max_examples=100)
    def test_ambiguity_is_the_difference_of_two_nlls_of_logits(self, ensemble):
        logits, labels = ensemble
        singles = np.mean([nll(softmax(one), labels) for one in logits])
        joint = nll(softmax(logits.mean(0)), labels)
        value = ambiguity(softmax(logits), labels)
        assert value == pytest.approx(singles - joint, rel=1e-8, abs=1e-10)


class TestLaws:
    """Properties that hold for every ensemble."""

    @given(ensembles(min_draws=2))
    @settings(deadline=None, max_examples=100)
    def test_ambiguity_is_not_negative_and_zero_without_diversity(self, ensemble):
        logits, labels = ensemble
        assert ambiguity(softmax(logits), labels) >= 0.0
        same = np.repeat(softmax(logits[:1]), 4, axis=0)
        for alike in (same, same.astype(np.float32), same[:1]):
            assert 0.0 <= ambiguity(alike, labels) <= 1e-13

    @given(ensembles(), st.integers(0, 2**32 - 1))
    @settings(deadline=None, max_examples=50)
    def test_order_of_draws_points_and_classes_is_irrelevant(self, ensemble, seed):
        logits, labels = ensemble
        p, random = softmax(logits), np.random.RandomState(seed)
        draws, points, classes = (random.permutation(size) for size in p.shape)
        shuffled = p[draws][:, points][:, :, classes]
        relabelled = np.argsort(classes)[labels[points]]
        for metric in (nll, brier, ambiguity):
            expected = pytest.approx(metric(p, labels), rel=1e-10, abs=1e-11)
            assert metric(shuffled, relabelled) == expected
        moved = p[draws][:, points]
        assume(clear_cut(p))
        for metric in (ece, accuracy):
            assert metric(moved, labels[points]) == pytest.approx(metric(p, labels), abs=1e-11)
        other = softmax(random.randn(*p.shape))
        there = other[:, points]
        for metric in OF_PAIRS:
            assert metric(moved, there) == pytest.approx(metric(p, other), abs=1e-11)

    @given(ensembles())
    @settings(deadline=None, max_examples=50)
    def test_distances(self, ensemble):
        logits, labels = ensemble
        p = softmax(logits)
        q = softmax(logits[:, ::-1])
        assert total_variation(p, p) == 0.0 and agreement(p, p) == 1.0
        assert 0.0 <= total_variation(p, q) <= 1.0 + 1e-12
        assert total_variation(p, q) == total_variation(q, p)
        assert agreement(p, q) == agreement(q, p)
        assert 0.0 <= ece(p, labels) <= 1.0 and 0.0 <= brier(p, labels) <= 2.0


class TestBorders:
    """Which bin a confidence on a border belongs to."""

    def test_bins_hold_their_right_border(self, subtests):
        for num_bins in [1, 2, 7, 10, 15, 30]:
            for dtype in [np.float32, np.float64]:
                with subtests.test(dtype=dtype, num_bins=num_bins):
                    for b in range(num_bins):
                        confidence = (b + 1) / num_bins
                        if confidence >= 0.5:  # the larger of two
                            p = np.array([[confidence, 1 - confidence]], dtype=dtype)
                            counts = calibration_bins(p, np.array([0]), num_bins).counts.tolist()
                            assert counts == [int(c == b) for c in range(num_bins)]

    def test_beside_a_border(self):
        for confidence, number in ((np.nextafter(0.6, 1), 3), (1.0 + 1e-6, 4)):
            p = np.array([[confidence, max(1.0 - confidence, 0.0)]])
            counts = calibration_bins(p, np.array([0]), 5).counts.tolist()
            assert counts == [int(b == number) for b in range(5)]


class TestKinds:
    """Kinds of arrays: all give the same float."""

    @pytest.mark.parametrize("metric", [nll, brier, accuracy, ece, ambiguity])
    def test_of_labels(self, metric):
        expected = metric(DRAWS, LABELS)
        assert type(expected) is float
        unusual = DRAWS.astype(">f8")[:, :, ::-1].copy()[:, :, ::-1]
        unusual.setflags(write=False)
        single = torch.tensor(DRAWS, dtype=torch.float32, requires_grad=True)
        unusual_labels = LABELS.astype(">i4")[::-1].copy()[::-1]
        for p in (DRAWS.astype(np.float32), torch.tensor(DRAWS), single, unusual):
            for labels in (
                LABELS.astype(np.uint8),
                LABELS.astype(np.uint64),
                unusual_labels,
                torch.tensor(LABELS, dtype=torch.int32),
            ):
                value = metric(p, labels)  # the numbers are exact in float32
                assert type(value) is float and value == pytest.approx(expected, rel=1e-14)

    @pytest.mark.parametrize("metric", OF_PAIRS)
    def test_of_pairs(self, metric):
        other = AVERAGE[::-1]
        expected = metric(DRAWS, other)
        assert type(expected) is float
        for q in (other.astype(np.float32), torch.tensor(other.copy()), np.stack([other] * 5)):
            assert metric(DRAWS, q) == pytest.approx(expected, rel=1e-14)
            assert metric(torch.tensor(DRAWS), q) == pytest.approx(expected, rel=1e-14)

    def test_float32_loses_nothing_over_many_draws(self):
        p = torch.full((100_000, 1, 2), 0.1)
        p[..., 1] = 0.9
        assert nll(p, torch.tensor([0])) == pytest.approx(-math.log(0.1), rel=1e-7)
        assert brier(p, torch.tensor([0])) == pytest.approx(2 * 0.81, rel=1e-7)


def changed(value, index=(1, 2, 0)):
    p = DRAWS.copy()
    p[index] = value
    return p


class TestErrors:
    """Errors name the argument, what it got and what it wants."""

    def test_probabilities(self, subtests):
        for p, message in [
            (changed(-0.25), r"{} must be non-negative numbers, got -0\.25 at \(1, 2, 0\)"),
            (changed(0.7502), r"{} must sum to one over the classes .*, got 1\.0002 at \(1, 2\)"),
            (changed(0.7498), r"{} must sum to one over the classes .*, got 0\.9998 at \(1, 2\)"),
            (DRAWS[0, 0], r"{} must have the shape \(num_draws, n, classes\).*, got \(3,\)"),
            (DRAWS[None], r"{} must have the shape .*, got \(1, 2, 3, 3\)"),
            (np.ones((1, 3, 1), dtype=int), r"{} must be float32 or float64, got torch\.int64"),
        ]:
            with subtests.test(message):
                for metric in OF_LABELS:
                    with pytest.raises(
                        (TypeError, ValueError), match=message.format("probabilities")
                    ):
                        metric(p, LABELS)
                for metric in OF_PAIRS:
                    with pytest.raises((TypeError, ValueError), match=message.format("^p")):
                        metric(p, DRAWS)
                    with pytest.raises((TypeError, ValueError), match=message.format("^q")):
                        metric(DRAWS, p)

    def test_sums_within_the_tolerance_pass(self):
        assert math.isfinite(nll(changed(0.75009), LABELS))

    @pytest.mark.parametrize("metric", OF_PAIRS)
    def test_pairs_of_different_shape(self, metric):
        with pytest.raises(ValueError, match=r"^q must be .* = \(3, 3\), got \(2, 3\)"):
            metric(DRAWS, DRAWS[:, :2])


class TestQuantileCalibrationError:
    def test_levels(self):
        """Of four levels .2 to .8: fractions of .5, .5, .5 and 1 lie below."""
        values = np.array([0.1, 0.7])
        expected = math.sqrt((0.3**2 + 0.1**2 + 0.1**2 + 0.2**2) / 4)
        assert quantile_calibration_error(values, 4) == pytest.approx(expected, rel=1e-12)

    def test_calibrated_and_too_narrow(self):
        uniform = (torch.arange(1000) + 0.5) / 1000
        assert quantile_calibration_error(uniform) <= 1e-3
        normal = torch.distributions.Normal(0.0, 1.0)
        observed = 3.0 * normal.icdf(uniform)
        levels = torch.arange(1, 20) / 20
        gaps = normal.cdf(normal.icdf(levels) / 3.0) - levels
        expected = float(gaps.square().mean().sqrt())
        found = quantile_calibration_error(normal.cdf(observed))
        assert found == pytest.approx(expected, abs=2e-3)

    def test_rounding(self):
        """Weights of a mixture add up to a little more than one."""
        above = torch.tensor([0.3, 1.0]).nextafter(torch.tensor(2.0))
        assert quantile_calibration_error(above) == quantile_calibration_error(above.clamp(max=1))
        with pytest.raises(ValueError, match="cdf_values must lie between 0 and 1, got 1.001"):
            quantile_calibration_error([0.3, 1.001])

    def test_draws_are_a_mixture(self):
        draws = torch.tensor([[0.0, 1.0, 0.4], [0.4, 0.2, 0.4]])
        assert quantile_calibration_error(draws) == quantile_calibration_error(draws.mean(0))
