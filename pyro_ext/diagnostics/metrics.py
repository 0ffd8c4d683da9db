"""Predictive metrics of an ensemble: pure functions of class probabilities and labels.

All functions take NumPy arrays or torch tensors of ``float32`` or ``float64``, in any mixture and
on any device, and return a Python float computed in double precision; no gradient flows through
them. :func:`calibration_bins` and :func:`temperature_scale` return more than a number.

``probabilities`` has the shape ``(num_draws, n, classes)``: one predictive distribution for each
posterior draw and point. If you have averaged over the draws yourself, pass ``(n, classes)``. Treat
several chains as more draws: ``probabilities.reshape(-1, n, classes)``. ``labels`` has the shape
``(n,)`` and contains integers from 0 to ``classes - 1``.

Probabilities that are negative or NaN, or whose sum over the classes differs from one by more than
1e-4, raise a ``ValueError`` that names the argument.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from pyro_ext._lib import checks

__all__ = [
    "CalibrationBins",
    "TemperatureScaling",
    "accuracy",
    "agreement",
    "ambiguity",
    "brier",
    "calibration_bins",
    "deep_ensemble_equivalent",
    "ece",
    "ensemble_mutual_information",
    "interval_calibration_error",
    "nll",
    "quantile_calibration_error",
    "temperature_scale",
    "total_variation",
]

ArrayLike: TypeAlias = Tensor | npt.NDArray[Any]

_SUM_TOLERANCE = 1e-4
_ROUNDING = 1e-5
_TEMPERATURES = (1e-2, 1e2)


def nll(probabilities: ArrayLike, labels: ArrayLike) -> float:
    """Negative log likelihood of the averaged predictive, per point.

    ``-mean_i log (mean_s p[s, i, y_i])``, by log-sum-exp over the draws. A label to which every
    draw gives probability zero makes it infinite.

    :param probabilities: **Shape:** ``(num_draws, n, classes)``, or averaged ``(n, classes)``.
    :param labels: the observed classes. **Shape:** ``(n,)``.

    Reference: I. Good (1952), *Rational decisions*, Journal of the Royal Statistical Society B 14,
    107-114.

    Example::

        >>> probabilities = torch.tensor([[[0.5, 0.5]], [[1.0, 0.0]]])  # two draws, one point
        >>> round(nll(probabilities, torch.tensor([0])), 4)  # -log 0.75
        0.2877
        >>> nll(probabilities[1:], torch.tensor([1]))
        inf
    """
    draws, observed = checked(probabilities, labels)
    index = observed.expand(draws.shape[0], -1).unsqueeze(-1)
    log_likelihood = draws.gather(-1, index).squeeze(-1).double().log()  # (num_draws, n)
    log_mean = torch.logsumexp(log_likelihood, 0)
    return float((math.log(draws.shape[0]) - log_mean).mean())


def brier(probabilities: ArrayLike, labels: ArrayLike) -> float:
    """Brier score of the averaged predictive, summed over the classes, per point.

    ``mean_i sum_c (mean_s p[s, i, c] - [c = y_i])^2``, between 0 and 2. For two classes it is twice
    the score of the probability of one of them.

    :param probabilities: **Shape:** ``(num_draws, n, classes)``, or averaged ``(n, classes)``.
    :param labels: the observed classes. **Shape:** ``(n,)``.

    Reference: G. Brier (1950), *Verification of forecasts expressed in terms of probability*,
    Monthly Weather Review 78, 1-3.

    Example::

        >>> round(brier(torch.tensor([[0.8, 0.2]]), torch.tensor([0])), 4)
        0.08
    """
    draws, observed = checked(probabilities, labels)
    average = _average(draws)
    one_hot = functional.one_hot(observed, average.shape[-1])
    return float((average - one_hot).square().sum(-1).mean())


def accuracy(probabilities: ArrayLike, labels: ArrayLike) -> float:
    """Fraction of points whose label is the most likely class of the averaged predictive.

    If classes are equally likely, the first of them counts.

    :param probabilities: **Shape:** ``(num_draws, n, classes)``, or averaged ``(n, classes)``.
    :param labels: the observed classes. **Shape:** ``(n,)``.

    Example::

        >>> import numpy as np
        >>> accuracy(np.array([[0.9, 0.1], [0.3, 0.7]]), np.array([0, 0]))
        0.5
    """
    draws, observed = checked(probabilities, labels)
    return float((_average(draws).argmax(-1) == observed).double().mean())


@dataclass(frozen=True, eq=False)
class CalibrationBins:
    """Points grouped by the confidence of their averaged predictive.

    Shape: ``edges (num_bins + 1,)``, the others ``(num_bins,)``.

    :param edges: the edges of the bins, from 0 to 1. A bin includes its right edge only.
    :param counts: points per bin, ``int64``.
    :param accuracy: the fraction of the bin's points classified correctly; NaN for an empty bin.
    :param confidence: the mean confidence of the bin's points; NaN for an empty bin.
    """

    edges: Tensor
    counts: Tensor
    accuracy: Tensor
    confidence: Tensor

    @property
    def expected_calibration_error(self) -> float:
        """Mean over the points of the gap between accuracy and confidence of their bin."""
        filled = self.counts > 0
        gap = (self.accuracy - self.confidence)[filled].abs()
        return float((self.counts[filled] * gap).sum() / self.counts.sum())


def calibration_bins(
    probabilities: ArrayLike, labels: ArrayLike, num_bins: int = 15
) -> CalibrationBins:
    """Group the points by confidence into bins of equal width.

    The confidence is the largest probability of the averaged predictive. Bin ``b`` of ``B`` holds
    confidences in ``(b / B, (b + 1) / B]``, compared in the precision of the probabilities, so that
    0.6 is 0.6 in ``float32`` too.

    :param probabilities: **Shape:** ``(num_draws, n, classes)``, or averaged ``(n, classes)``.
    :param labels: the observed classes. **Shape:** ``(n,)``.
    :param num_bins: number of bins, at least 1.
    :returns: counts, accuracy and confidence per bin, on the CPU.

    Example::

        >>> import numpy as np
        >>> probabilities = np.array([[0.9, 0.1], [0.3, 0.7]])
        >>> bins = calibration_bins(probabilities, np.array([0, 0]), num_bins=2)
        >>> bins.counts.tolist(), bins.accuracy.tolist()
        ([0, 2], [nan, 0.5])
    """
    num_bins = checks.integer("num_bins", num_bins, 1)
    draws, observed = checked(probabilities, labels)
    confidence, predicted = (values.cpu() for values in _average(draws).max(-1))
    correct = (predicted == observed.cpu()).double()
    edges = torch.arange(num_bins + 1, dtype=torch.float64) / num_bins
    borders = edges[1:-1].to(draws.dtype)
    bin_of_point = torch.bucketize(confidence.to(draws.dtype), borders)
    counts = torch.bincount(bin_of_point, minlength=num_bins)
    return CalibrationBins(
        edges=edges,
        counts=counts,
        accuracy=torch.bincount(bin_of_point, correct, num_bins) / counts,
        confidence=torch.bincount(bin_of_point, confidence, num_bins) / counts,
    )


def ece(probabilities: ArrayLike, labels: ArrayLike, num_bins: int = 15) -> float:
    """Expected calibration error of the averaged predictive.

    ``sum_b (n_b / n) |accuracy_b - confidence_b|`` over the bins of :func:`calibration_bins`, which
    have equal width and include their right edge.

    :param probabilities: **Shape:** ``(num_draws, n, classes)``, or averaged ``(n, classes)``.
    :param labels: the observed classes. **Shape:** ``(n,)``.
    :param num_bins: number of bins, at least 1.

    Reference: C. Guo, G. Pleiss, Y. Sun and K. Weinberger (2017), *On calibration of modern neural
    networks*, https://arxiv.org/abs/1706.04599.

    Example::

        >>> import numpy as np
        >>> probabilities = np.array([[0.75, 0.25], [0.25, 0.75], [0.75, 0.25], [0.75, 0.25]])
        >>> ece(probabilities, np.array([0, 1, 0, 1]))  # three of four right, at confidence 0.75
        0.0
    """
    return calibration_bins(probabilities, labels, num_bins).expected_calibration_error


def quantile_calibration_error(cdf_values: ArrayLike, num_levels: int = 19) -> float:
    """Calibration error of the predictive quantiles of a regression.

    This is the root mean square, over the levels ``q = 1 / (K + 1), ..., K / (K + 1)``, of the
    difference between ``q`` and the fraction of observations below the predictive quantile of level
    ``q``. By default, the levels run from 0.05 to 0.95.

    :param cdf_values: the predictive distribution function at the observation of each point, such
        as ``Normal(loc, scale).cdf(y)``; values of several draws are averaged to that of their
        mixture. **Shape:** ``(num_draws, n)`` or ``(n,)``.
    :param num_levels: number of levels ``K``, at least 1.

    Reference: V. Kuleshov, N. Fenner and S. Ermon (2018), *Accurate uncertainties for deep learning
    using calibrated regression*, https://arxiv.org/abs/1807.00263.

    Example::

        >>> quantile_calibration_error(torch.tensor([0.25, 0.75]), num_levels=1)
        0.0
        >>> quantile_calibration_error(torch.tensor([0.1, 0.2]), num_levels=1)
        0.5
    """
    values = _cdf_values(cdf_values)
    levels = _levels(num_levels)
    below = values[:, None] <= levels
    return float((below.double().mean(0) - levels).square().mean().sqrt())


def interval_calibration_error(cdf_values: ArrayLike, num_levels: int = 19) -> float:
    """Calibration error of the central predictive intervals of a regression.

    This is the mean square, over the levels ``p = 1 / (K + 1), ..., K / (K + 1)``, of the
    difference between ``p`` and the fraction of observations in the central interval with this
    probability. It can miss intervals that all lie too high, which
    :func:`quantile_calibration_error` detects.

    :param cdf_values: as in :func:`quantile_calibration_error`. **Shape:** ``(num_draws, n)`` or
        ``(n,)``.
    :param num_levels: number of levels ``K``, at least 1.

    Reference: V. Kuleshov, N. Fenner and S. Ermon (2018), *Accurate uncertainties for deep learning
    using calibrated regression*, https://arxiv.org/abs/1807.00263.

    Example::

        >>> interval_calibration_error(torch.tensor([0.1, 0.4]), num_levels=1)
        0.0
        >>> interval_calibration_error(torch.tensor([0.4, 0.6]), num_levels=1)
        0.25
    """
    values = _cdf_values(cdf_values)
    levels = _levels(num_levels)
    inside = (2.0 * values - 1.0).abs()[:, None] <= levels
    return float((inside.double().mean(0) - levels).square().mean())


def ambiguity(probabilities: ArrayLike, labels: ArrayLike | None = None) -> float:
    """Diversity of an ensemble: the mean NLL of its draws minus the NLL of their averaged logits.

    With logits ``l[s]`` and their mean ``m`` over the draws, it is
    ``mean_s NLL(softmax(l[s])) - NLL(softmax(m))``, averaged over the points. It is zero if all
    draws agree and positive otherwise.

    The logits of the label cancel, so that it equals ``-log sum_c prod_s p[s, c]^(1 / num_draws)``.
    A class that any draw excludes drops out of the sum. The ambiguity of a point is infinite only
    if every class is excluded by some draw.

    :param probabilities: **Shape:** ``(num_draws, n, classes)``.
    :param labels: optional; checked, but the value does not depend on them. **Shape:** ``(n,)``.

    Reference: A. Krogh and J. Vedelsby (1994), *Neural network ensembles, cross validation, and
    active learning*, NIPS 7; T. Heskes (1998), *Bias/variance decompositions for likelihood-based
    estimators*, Neural Computation 10, 1425-1433.

    Example::

        >>> probabilities = torch.tensor([[[0.9, 0.1]], [[0.1, 0.9]]])
        >>> round(ambiguity(probabilities, torch.tensor([0])), 4)  # -log(2 * 0.3)
        0.5108
    """
    draws = as_probabilities("probabilities", probabilities, averaged=False)
    if labels is not None:
        _labels(labels, draws)
    log_probabilities = draws.double().log()
    normalizer = torch.logsumexp(log_probabilities, -1).mean(0)  # zero up to rounding
    common = torch.logsumexp(log_probabilities.mean(0), -1)
    return float((normalizer - common).clamp(min=0.0).mean())


def agreement(p: ArrayLike, q: ArrayLike) -> float:
    """Fraction of points at which two averaged predictives have the same most likely class.

    If classes are equally likely, the first of them counts. The two ensembles may have different
    numbers of draws.

    :param p: predictive probabilities of one ensemble. **Shape:** ``(num_draws, n, classes)``, or
        averaged ``(n, classes)``.
    :param q: those of the other, for the same points and classes. **Shape:** likewise.

    Reference: P. Izmailov, S. Vikram, M. Hoffman and A. Wilson (2021), *What are Bayesian neural
    network posteriors really like?*, https://arxiv.org/abs/2104.14421.

    Example::

        >>> import numpy as np
        >>> agreement(np.array([[0.9, 0.1], [0.4, 0.6]]), np.array([[0.6, 0.4], [0.7, 0.3]]))
        0.5
    """
    first, second = _pair(p, q)
    return float((first.argmax(-1) == second.argmax(-1)).double().mean())


def total_variation(p: ArrayLike, q: ArrayLike) -> float:
    """Total variation distance between two averaged predictives, averaged over the points.

    It is ``0.5 mean_i sum_c |p[i, c] - q[i, c]|``, between 0 and 1. The arguments are those of
    :func:`agreement`.

    Reference: P. Izmailov, S. Vikram, M. Hoffman and A. Wilson (2021), *What are Bayesian neural
    network posteriors really like?*, https://arxiv.org/abs/2104.14421.

    Example::

        >>> import numpy as np
        >>> total_variation(np.array([[0.75, 0.25]]), np.array([[0.5, 0.5]]))
        0.25
    """
    first, second = _pair(p, q)
    return 0.5 * float((first - second).abs().sum(-1).mean())


def ensemble_mutual_information(probabilities: ArrayLike) -> float:
    r"""Mutual information of the class and the draw, which measures how much the draws disagree.

    It is :math:`\frac{1}{n} \sum_i \left( H[\bar p(\cdot | x_i)] - \frac{1}{S} \sum_s
    H[p_s(\cdot | x_i)] \right)`, where :math:`\bar p` is the average of the draws and :math:`H` the
    entropy. It is zero if all draws agree, and at most the logarithm of their number.

    :param probabilities: **Shape:** ``(num_draws, n, classes)``.

    Reference: N. Houlsby, F. Huszár, Z. Ghahramani and M. Lengyel (2011), *Bayesian active learning
    for classification and preference learning*, https://arxiv.org/abs/1112.5745.

    Example::

        >>> certain = torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]]])  # two draws, one point
        >>> round(ensemble_mutual_information(certain), 4)  # log 2
        0.6931
        >>> ensemble_mutual_information(certain[:1])
        0.0
    """
    draws = as_probabilities("probabilities", probabilities, averaged=False)
    of_average = torch.special.entr(_average(draws)).sum(-1)
    of_draws = torch.special.entr(draws.double()).sum(-1).mean(0)
    return float((of_average - of_draws).clamp(min=0.0).mean())


def deep_ensemble_equivalent(
    value: float | Tensor, reference: ArrayLike | Sequence[float]
) -> float:
    """Return the size of the deep ensemble that would be as good, as a real number.

    The size is interpolated linearly between the metrics of deep ensembles of 1, 2, ... networks,
    and extrapolated by the first or the last segment. A result below one is worse than a single
    network; zero or less is much worse.

    :param float value: a metric for which lower is better, such as :func:`nll`.
    :param reference: the metric of deep ensembles of 1, 2, ..., M networks, strictly decreasing.
        **Shape:** ``(M,)`` with ``M >= 2``.
    :raises ValueError: if the reference does not decrease or has fewer than two sizes.

    Reference: A. Ashukha, A. Lyzhov, D. Molchanov and D. Vetrov (2020), *Pitfalls of in-domain
    uncertainty estimation and ensembling in deep learning*, https://arxiv.org/abs/2002.06470.

    Example::

        >>> round(deep_ensemble_equivalent(0.175, [0.20, 0.15, 0.14]), 4)
        1.5
        >>> round(deep_ensemble_equivalent(0.13, [0.20, 0.15, 0.14]), 4)  # beyond the last
        4.0
    """
    if isinstance(value, Tensor) and not value.dim():
        value = value.item()
    value = checks.number("value", value)
    metrics = checks.as_tensor("reference", reference, "(M,)", dtype=torch.float64).detach().cpu()
    checks.all_finite("reference", metrics)
    steps = metrics.diff()
    if not len(steps) or not bool((steps < 0).all()):
        raise ValueError(
            "reference must contain the metrics of ensembles of 1, 2, ... networks, at least two, "
            f"strictly decreasing; got {metrics.tolist()!r:.80}"
        )
    segment = min(max(int((metrics > value).sum()) - 1, 0), len(steps) - 1)
    return segment + 1 + float((value - metrics[segment]) / steps[segment])


@dataclass(frozen=True)
class TemperatureScaling:
    r"""Rescale probabilities to another temperature: ``scaling(probabilities)``.

    The result is :math:`p(c) \propto \bar p(c)^{1/T}`, the softmax of the logits divided by
    :math:`T`. A temperature above one makes predictions less confident.

    :param float temperature: :math:`T > 0`.

    Example::

        >>> TemperatureScaling(0.5)(torch.tensor([[0.25, 0.75]]))
        tensor([[0.1000, 0.9000]], dtype=torch.float64)
    """

    temperature: float

    def __post_init__(self) -> None:
        checks.number("temperature", self.temperature, above=0.0)

    def __float__(self) -> float:
        return float(self.temperature)

    def __call__(self, probabilities: ArrayLike) -> Tensor:
        """Scale the averaged predictive.

        :param probabilities: **Shape:** ``(num_draws, n, classes)``, or averaged ``(n, classes)``.
        :returns: in double precision. **Shape:** ``(n, classes)``.
        """
        average = _average(as_probabilities("probabilities", probabilities))
        return (average.log() / self.temperature).softmax(-1)


def temperature_scale(probabilities: ArrayLike, labels: ArrayLike) -> TemperatureScaling:
    """Find the temperature that minimizes the NLL of the averaged predictive.

    Use points that the model was not trained on, and apply the result to the probabilities of other
    points. The temperature lies between 0.01 and 100. It is near one of these ends if no value in
    between is best, for instance if all points are classified correctly.

    :param probabilities: **Shape:** ``(num_draws, n, classes)``, or averaged ``(n, classes)``.
    :param labels: the observed classes. **Shape:** ``(n,)``.
    :returns: the temperature, as a function of probabilities.
    :raises ValueError: for invalid arguments, or if a label has probability zero, so that no
        temperature helps.

    Reference: C. Guo, G. Pleiss, Y. Sun and K. Weinberger (2017), *On calibration of modern neural
    networks*, https://arxiv.org/abs/1706.04599.

    Example::

        >>> overconfident = torch.tensor([[0.9, 0.1]]).expand(4, -1)
        >>> scaling = temperature_scale(overconfident, torch.tensor([0, 0, 0, 1]))
        >>> round(scaling.temperature, 3)  # log 9 / log 3
        2.0
        >>> scaling(overconfident[:1]).round(decimals=3)
        tensor([[0.7500, 0.2500]], dtype=torch.float64)
    """
    from scipy.optimize import minimize_scalar

    draws, observed = checked(probabilities, labels)
    logits = _average(draws).log()
    own = logits.gather(-1, observed.unsqueeze(-1)).squeeze(-1)
    _check_all("probabilities", own > -torch.inf, own.exp(), "be positive for every label")

    def loss(log_temperature: float) -> float:
        inverse = math.exp(-log_temperature)
        return float((torch.logsumexp(inverse * logits, -1) - inverse * own).mean())

    bounds = tuple(math.log(temperature) for temperature in _TEMPERATURES)
    found = minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": 1e-6})
    return TemperatureScaling(math.exp(found.x))


def _average(draws: Tensor) -> Tensor:
    """Average over the draws in double precision, ``(n, classes)``."""
    return draws.mean(0, dtype=torch.float64)


def checked(probabilities: ArrayLike, labels: ArrayLike) -> tuple[Tensor, Tensor]:
    """Return checked ``(num_draws, n, classes)`` probabilities and labels on the same device."""
    draws = as_probabilities("probabilities", probabilities)
    return draws, _labels(labels, draws)


def _pair(p: ArrayLike, q: ArrayLike) -> tuple[Tensor, Tensor]:
    """Return the checked averages of two ensembles on the same device."""
    first, second = _average(as_probabilities("p", p)), _average(as_probabilities("q", q))
    if first.shape != second.shape:
        raise ValueError(
            "q must be for the same points and classes as p, (n, classes) = "
            f"{tuple(first.shape)}, got {tuple(second.shape)}"
        )
    return first, second.to(first.device)


def as_numbers(argument: str, value: Any, kind: str = "numbers") -> Tensor:
    """Return an array as a tensor that is used and not changed."""
    if isinstance(value, np.ndarray) and value.dtype.kind in "iufb":
        # PyTorch lacks some integers and orders of bytes, and warns of arrays that are read-only.
        dtype = np.int64 if value.dtype.kind in "iu" else value.dtype.newbyteorder("=")
        value = np.require(value, dtype=dtype, requirements=["C", "W"])
    tensor = checks.as_tensor(argument, value, kind=kind, allow_empty=True).detach()
    return tensor.cpu() if tensor.device.type == "mps" else tensor  # it has no double precision


def as_probabilities(argument: str, value: ArrayLike, averaged: bool = True) -> Tensor:
    """Return checked probabilities as ``(num_draws, n, classes)``."""
    tensor = as_numbers(argument, value)
    if averaged and tensor.ndim == 2:
        tensor = tensor[None]
    checks.as_tensor(argument, tensor, "(num_draws, n, classes)")
    if tensor.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"{argument} must be float32 or float64, got {tensor.dtype}")
    _check_all(argument, tensor >= 0, tensor, "be non-negative numbers")
    sums = tensor.sum(-1, dtype=torch.float64)
    wanted = f"sum to one over the classes (within {_SUM_TOLERANCE})"
    _check_all(argument, (sums - 1.0).abs() <= _SUM_TOLERANCE, sums, wanted)
    return tensor


def _labels(value: ArrayLike, draws: Tensor) -> Tensor:
    """Return checked labels, ``(n,)``, on the device of the probabilities."""
    labels = as_numbers("labels", value, "integers")
    _, num_points, num_classes = draws.shape
    if labels.dtype == torch.bool:
        raise TypeError("labels must be integers, got torch.bool")
    checks.as_tensor("labels", labels, f"({num_points},)")
    labels = labels.to(draws.device, torch.int64)
    is_class = (labels >= 0) & (labels < num_classes)
    _check_all("labels", is_class, labels, f"lie in 0 .. {num_classes - 1}")
    return labels


def _check_all(argument: str, is_right: Tensor, values: Tensor, wanted: str) -> None:
    """Check that a condition holds everywhere, which NaN never does."""
    if not is_right.all():
        where = tuple((~is_right).nonzero()[0].tolist())
        raise ValueError(f"{argument} must {wanted}, got {values[where].item():.6g} at {where}")


def in_unit_interval(argument: str, value: ArrayLike) -> Tensor:
    """Numbers between zero and one; sums of weights that rounding has put outside are put back."""
    values = as_numbers(argument, value)
    is_inside = (values >= -_ROUNDING) & (values <= 1.0 + _ROUNDING)
    _check_all(argument, is_inside, values, "lie between 0 and 1")
    return values.clamp(0.0, 1.0)


def _cdf_values(cdf_values: ArrayLike) -> Tensor:
    """Values of a predictive distribution function, averaged over draws, ``(n,)``."""
    values = in_unit_interval("cdf_values", cdf_values)
    values = values[None] if values.dim() == 1 else values
    checks.as_tensor("cdf_values", values, "(num_draws, n)")
    return values.mean(0, dtype=torch.float64).cpu()


def _levels(num_levels: int) -> Tensor:
    """Probabilities between zero and one, evenly."""
    num_levels = checks.integer("num_levels", num_levels, 1)
    return torch.arange(1, num_levels + 1, dtype=torch.float64) / (num_levels + 1)
