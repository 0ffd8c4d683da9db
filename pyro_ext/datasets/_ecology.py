"""Pelts of hares and lynxes, which are few numbers and written here."""

from typing import Unpack

import numpy as np

from pyro_ext.datasets._dataset import Dataset, Options, Settings, assemble

_FIRST_YEAR = 1900
# Thousands of pelts in 1900, 1901, ..., 1920.
_HARES = (
    *(30.0, 47.2, 70.2, 77.4, 36.3, 20.6, 18.1, 21.4, 22.0, 25.4, 27.1),
    *(40.3, 57.0, 76.6, 52.3, 19.5, 11.2, 7.6, 14.6, 16.2, 24.7),
)
_LYNXES = (
    *(4.0, 6.1, 9.8, 35.2, 59.4, 41.7, 19.0, 13.0, 8.3, 9.1, 7.4),
    *(8.0, 12.3, 19.5, 45.7, 51.1, 29.7, 15.8, 9.7, 10.1, 8.6),
)


def load_hare_lynx(**options: Unpack[Options]) -> Dataset:
    """Load 21 years of pelts of snowshoe hares and of lynxes, which eat them, in Canada.

    A regression with two responses, thousands of pelts of hares and of lynxes. Inputs are years
    since 1900. The default split is 17 and 4 years.

    Shape: inputs ``(n, 1)``, targets ``(n, 2)``.

    :param options: keyword arguments that all loaders take, see :class:`Options`.
    :raises ValueError: names the argument, what it got and what it allows.

    Reference: C. G. Hewitt (1921), *The Conservation of the Wild Life of Canada*; as read off by
    P. Howard (2009), *Modeling Basics*, and used by B. Carpenter (2018), *Predator-Prey Population
    Dynamics: the Lotka-Volterra Model in Stan*.

    Example::

        >>> from pyro_ext.datasets import load_hare_lynx
        >>> load_hare_lynx()
        Dataset('hare_lynx', train (17, 1), test (4, 1), regression)
    """
    settings = Settings(**options)
    targets = np.column_stack([_HARES, _LYNXES])
    years = _FIRST_YEAR + np.arange(len(targets), dtype=np.float64)[:, None]
    return assemble(
        settings,
        settings.split(len(targets)),
        years,
        targets,
        np.array([float(_FIRST_YEAR)]),
        np.ones(1),
        name="hare_lynx",
        description=(
            "Pelts collected by the Hudson's Bay Company, 1900 to 1920; input: the year; targets: "
            "thousands of pelts of hares, and of lynxes."
        ),
        source="C. G. Hewitt (1921), as read off by P. Howard (2009)",
        licence="Facts, in the public domain",
        feature_names=("year",),
    )
