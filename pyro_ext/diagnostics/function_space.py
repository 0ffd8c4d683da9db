"""Agreement of chains in the function that they predict with.

The weights of a network have symmetric modes: exchanging hidden units, or flipping the signs around
an odd activation, leaves its predictions unchanged. So R-hat and effective sample sizes of weights
say little: chains in two copies of one mode seem far apart, and a chain that stays in one of the
copies seems to have converged. Predictions are the same in all copies, so their R-hat and effective
sample sizes are meaningful [1].

ArviZ computes rank-normalized split R-hat and bulk effective sample size [2], separately for each
point and class. This takes up to a millisecond each, so pass about a hundred points rather than a
whole test set. The functions take NumPy arrays or torch tensors and return tensors in double
precision, through which no gradient flows.

[1] P. Izmailov, S. Vikram, M. Hoffman, A. Wilson (2021), *What are Bayesian neural network
posteriors really like?*, https://arxiv.org/abs/2104.14421.

[2] A. Vehtari, A. Gelman, D. Simpson, B. Carpenter, P.-C. Bürkner (2021), *Rank-normalization,
folding, and localization: an improved R-hat*, https://arxiv.org/abs/1903.08008.
"""

import importlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from pyro_ext._lib import checks
from pyro_ext.diagnostics.metrics import ArrayLike, as_numbers, as_probabilities

if TYPE_CHECKING:
    import numpy.typing as npt

__all__ = ["fractions_below", "predictive_ess", "predictive_rhat"]

_LEAST_DRAWS = 4  # two in each half of a chain


def predictive_rhat(probabilities: ArrayLike) -> Tensor:
    """R-hat of the predictive probability of each point and class.

    It is near one if the chains agree, NaN if a probability is the same in all draws, and infinite
    if it is constant within each half of a chain but differs between them.

    :param probabilities: predictive probabilities by chain, for at least two chains of four draws.
        **Shape:** ``(num_chains, num_draws, n, classes)``.
    :returns: R-hat. The two classes of a binary problem have the same value, up to rounding.
        **Shape:** ``(n, classes)``.

    Example::

        >>> _ = torch.manual_seed(0)
        >>> logits = torch.randn(4, 100, 1, 2)  # four chains, one point
        >>> bool((predictive_rhat(logits.softmax(-1)) < 1.05).all())
        True
        >>> logits[0, ..., 0] += 4.0  # one of them is elsewhere
        >>> bool((predictive_rhat(logits.softmax(-1)) > 1.2).all())
        True
    """
    series, shape = _series(probabilities, 2)
    low, high = _ranges(series)
    is_same, is_stuck = low.min(1) == high.max(1), (low == high).all(1)
    # ArviZ divides by a variance of zero, or of what rounding leaves of it.
    found = np.where(is_same, np.nan, np.inf)
    found[~is_stuck] = _by_series("rhat", series[~is_stuck])
    return torch.from_numpy(found.reshape(shape))


def predictive_ess(probabilities: ArrayLike) -> Tensor:
    """Bulk effective sample size of the predictive probability of each point and class.

    Like :func:`predictive_rhat`, it is NaN if a probability is the same in all draws.

    :param probabilities: predictive probabilities by chain, with at least four draws each.
        **Shape:** ``(num_chains, num_draws, n, classes)``.
    :returns: the effective sample size of all chains together. **Shape:** ``(n, classes)``.

    Example::

        >>> _ = torch.manual_seed(0)
        >>> probabilities = torch.randn(4, 100, 1, 2).softmax(-1)
        >>> bool((predictive_ess(probabilities) > 200).all())
        True
        >>> repeated = probabilities.repeat_interleave(10, 1)
        >>> bool((predictive_ess(repeated) < 600).all())  # and not ten times as much
        True
    """
    series, shape = _series(probabilities, 1)
    low, high = _ranges(series)
    is_same = low.min(1) == high.max(1)
    found = np.full(len(series), np.nan)
    found[~is_same] = _by_series("ess", series[~is_same])
    return torch.from_numpy(found.reshape(shape))


def fractions_below(
    r_hat: ArrayLike, thresholds: Sequence[float] = (1.01, 1.05, 1.2)
) -> dict[float, float]:
    """Fraction of the quantities whose R-hat is below each threshold.

    Quantities whose R-hat is NaN do not count.

    :param r_hat: values such as :func:`predictive_rhat` returns, of any shape.
    :param Sequence thresholds: [2] recommends 1.01; 1.2 was common before.
    :returns: fractions by threshold; NaN if all values are NaN.
    :raises ValueError: if a threshold is not finite, or ``r_hat`` is empty.

    Example::

        >>> fractions_below(torch.tensor([1.0, 1.02, 1.1, 1.5, float("nan")]))
        {1.01: 0.25, 1.05: 0.5, 1.2: 0.75}
    """
    r_hat = checks.as_tensor("r_hat", r_hat)
    thresholds = checks.sequence("thresholds", thresholds, "a list of numbers", 0)
    values = as_numbers("r_hat", r_hat)
    if values.numel() == 0:
        raise ValueError(
            f"r_hat must contain at least one value; got the shape {tuple(values.shape)}"
        )
    known = values[~values.isnan()]
    numbers = [checks.number("thresholds", threshold) for threshold in thresholds]
    return {number: float((known < number).double().mean()) for number in numbers}


def _series(
    value: ArrayLike, least_chains: int
) -> "tuple[npt.NDArray[np.float64], tuple[int, int]]":
    """Return checked series, ``(n * classes, num_chains, num_draws)``, and ``(n, classes)``."""
    tensor = as_numbers("probabilities", value)
    if tensor.dim() != 4 or tensor.shape[0] < least_chains or tensor.shape[1] < _LEAST_DRAWS:
        chains = "chain" if least_chains == 1 else "chains"
        raise ValueError(
            "probabilities must have the shape (num_chains, num_draws, n, classes) with at least "
            f"{least_chains} {chains} of {_LEAST_DRAWS} draws; got {tuple(tensor.shape)}"
        )
    for index, chain in enumerate(tensor):
        as_probabilities(f"probabilities[{index}]", chain, averaged=False)
    num_chains, num_draws, num_points, num_classes = tensor.shape
    series = tensor.double().cpu().permute(2, 3, 0, 1).reshape(-1, num_chains, num_draws)
    return series.contiguous().numpy(), (num_points, num_classes)


def _ranges(
    series: "npt.NDArray[np.float64]",
) -> "tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]":
    """Least and largest value in each half of each chain, ``(num_series, 2 * num_chains)``."""
    half = series.shape[-1] // 2
    halves = np.concatenate([series[..., :half], series[..., -half:]], 1)
    return halves.min(-1), halves.max(-1)


def _by_series(name: str, series: "npt.NDArray[np.float64]") -> list[float]:
    """Call a function of ArviZ on each series; both lines take one as an array."""
    function: Any = getattr(importlib.import_module("arviz"), name)
    # Where distances from the median, of which R-hat takes ranks as well, are constant.
    with np.errstate(divide="ignore", invalid="ignore"):
        return [float(function(one)) for one in series]
