"""Compare the posterior of a coreset with that of the data, in place and width, by Gaussians."""

import warnings

import torch
from torch import Tensor

from pyro_ext.inference.optimization import BatchLBFGS
from pyro_ext.inference.pseudocoresets.posteriors import CoresetGuide, Posteriors
from pyro_ext.inference.pseudocoresets.surrogates import GaussianSurrogate

MOST_DIFFERENCE = 2.0
"""Threshold for a warning: ratio of standard deviations, or standardized distance of means."""

_NUM_STEPS = 100
_BARRIER = 1.0
"""Differences in log density below this count neither as a barrier nor as different heights."""


class SpreadCheck:
    """Compares Laplace approximations of the posteriors of a coreset and of the data."""

    def __init__(self, most_latents: int) -> None:
        self._most_latents = most_latents
        self._own = GaussianSurrogate()
        self._is_single: bool | None = None

    def __call__(
        self, guide: CoresetGuide, surrogate: object, stacklevel: int
    ) -> dict[str, Tensor] | None:
        """Warn where they differ.

        Returns ratios of standard deviations by site, or ``None`` where Gaussians mean nothing.
        """
        layout = guide.posterior.layout
        if layout.size > self._most_latents or not self._has_one_mode(guide):
            return None
        known = surrogate if isinstance(surrogate, GaussianSurrogate) else self._own
        try:
            mean, covariance = known.data_gaussian(guide)
        except ValueError:  # no Gaussian near its mode
            return None
        with torch.no_grad():
            own_mean, own_covariance = known.coreset_gaussian(guide)
        if not bool(own_covariance.isfinite().all()):
            return None
        scale, own_scale = covariance.diagonal().sqrt(), own_covariance.diagonal().sqrt()
        ratio, distance = own_scale / scale, (own_mean - mean) / scale
        sites = [name for name in layout.shapes for _ in layout.columns(name)]
        worst = int(ratio.log().abs().argmax())
        farthest = int(distance.abs().argmax())
        found = []
        if not 1.0 / MOST_DIFFERENCE <= float(ratio[worst]) <= MOST_DIFFERENCE:
            found.append(
                f"the standard deviation of {sites[worst]!r} is {own_scale[worst]:.3g} where that "
                f"of the data is {scale[worst]:.3g}"
            )
        if float(distance[farthest].abs()) > MOST_DIFFERENCE:
            found.append(
                f"the mean of {sites[farthest]!r} is {own_mean[farthest]:.4g} where that of the "
                f"data is {mean[farthest]:.4g}, with a standard deviation of {scale[farthest]:.3g}"
            )
        if found:
            advice = "more steps, a larger learning rate or more pseudo observations may help"
            if guide.weighting == "uniform":
                advice = (
                    f"with weights of one {guide.size} pseudo observations know no more than as "
                    f"many of the {guide.data.num_points} data: take weights='learned'"
                )
            warnings.warn(
                "the posterior of the coreset is not that of the data. In unconstrained space, by "
                f"Laplace approximations, {', and '.join(found)}; {advice}",
                stacklevel=stacklevel,
            )
        return layout.unflatten(ratio)

    def _has_one_mode(self, guide: Posteriors) -> bool:
        """Tell whether searches from two starts reach the same mode of the full-data posterior."""
        if self._is_single is None:
            data, potential = guide.data, guide.posterior.potential
            found = BatchLBFGS(_NUM_STEPS).minimize(
                lambda flat, rows: data.value_and_gradient(flat),
                guide.posterior.layout.flatten(potential.init(2, seed=0)),
            )
            between, _ = data.value_and_gradient(found.position.mean(0, keepdim=True))
            heights = torch.cat([found.value, between])
            slack = _BARRIER + 4.0 * torch.finfo(heights.dtype).eps * float(heights.abs().max())
            self._is_single = float(heights.max() - heights.min()) <= slack
        return self._is_single
