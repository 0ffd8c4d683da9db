"""Real data sets as tensors with a fixed split, from installed packages, with source and license.

Most loaders return a :class:`Dataset` and take the same keyword arguments. The exceptions are
:func:`load_frequencies` for frequencies of frequencies, :func:`load_graph` for edges,
:func:`load_words` for words, :func:`load_time_series` for series of different lengths,
:func:`load_scaling_curves` for curves, and :func:`load_contacts` for contacts between people.
Nothing is downloaded.

Example::

    >>> from pyro_ext import datasets
    >>> datasets.names()
    ('breast_cancer', 'diabetes', 'digits', 'mnist_5k', 'wine')
    >>> datasets.load("wine", test_fraction=0.5)
    Dataset('wine', train (89, 13), test (89, 13), 3 classes)
"""

from pyro_ext.datasets._augmentation import random_shifts
from pyro_ext.datasets._contacts import ContactData, load_contacts
from pyro_ext.datasets._dataset import Dataset, Options
from pyro_ext.datasets._records import (
    load,
    load_breast_cancer,
    load_diabetes,
    load_digits,
    load_mnist_5k,
    load_wine,
    names,
)
from pyro_ext.datasets._shipped import (
    FrequencyData,
    GraphData,
    ScalingData,
    TimeSeriesData,
    load_frequencies,
    load_graph,
    load_scaling_curves,
    load_time_series,
)
from pyro_ext.datasets._words import WordData, load_words

__all__ = [
    "ContactData",
    "Dataset",
    "FrequencyData",
    "GraphData",
    "Options",
    "ScalingData",
    "TimeSeriesData",
    "WordData",
    "load",
    "load_breast_cancer",
    "load_contacts",
    "load_diabetes",
    "load_digits",
    "load_frequencies",
    "load_graph",
    "load_mnist_5k",
    "load_scaling_curves",
    "load_time_series",
    "load_wine",
    "load_words",
    "names",
    "random_shifts",
]
