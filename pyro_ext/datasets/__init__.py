"""Real data sets from installed packages, as tensors with a fixed split, source and licence named.

Every loader returns a :class:`Dataset` and takes the same keyword arguments, but for
:func:`load_frequencies`, which returns how many kinds occur how often, and :func:`load_graph`,
which returns edges. Nothing is downloaded.

Example::

    >>> from pyro_ext import datasets
    >>> datasets.names()
    ('breast_cancer', 'diabetes', 'digits', 'hare_lynx', 'mnist_5k', 'wine')
    >>> datasets.load("wine", test_fraction=0.5)
    Dataset('wine', train (89, 13), test (89, 13), 3 classes)
"""

from collections.abc import Callable
from typing import Unpack

from pyro_ext.datasets._dataset import Dataset, Options
from pyro_ext.datasets._ecology import load_hare_lynx
from pyro_ext.datasets._frequencies import FrequencyData, frequency_names, load_frequencies
from pyro_ext.datasets._graphs import GraphData, graph_names, load_graph
from pyro_ext.datasets._mnist import load_mnist_5k
from pyro_ext.datasets._tabular import load_breast_cancer, load_diabetes, load_digits, load_wine

__all__ = [
    "Dataset",
    "FrequencyData",
    "GraphData",
    "Options",
    "frequency_names",
    "graph_names",
    "load",
    "load_breast_cancer",
    "load_diabetes",
    "load_digits",
    "load_frequencies",
    "load_graph",
    "load_hare_lynx",
    "load_mnist_5k",
    "load_wine",
    "names",
]

_LOADERS: dict[str, Callable[..., Dataset]] = {
    "breast_cancer": load_breast_cancer,
    "diabetes": load_diabetes,
    "digits": load_digits,
    "hare_lynx": load_hare_lynx,
    "mnist_5k": load_mnist_5k,
    "wine": load_wine,
}


def names() -> tuple[str, ...]:
    """Return the names that :func:`load` knows, sorted.

    Example::

        >>> from pyro_ext.datasets import names
        >>> "digits" in names()
        True
    """
    return tuple(sorted(_LOADERS))


def load(name: str, **options: Unpack[Options]) -> Dataset:
    """Load a data set by its name.

    :param name: one of :func:`names`.
    :param options: keyword arguments that all loaders take, see :class:`Options`.
    :raises ValueError: names the argument, what it got and what it allows.
    :raises ImportError: without the package that carries the data; names the extra.

    Example::

        >>> import torch
        >>> from pyro_ext.datasets import load
        >>> load("diabetes", dtype=torch.float64).train_targets.dtype
        torch.float64
    """
    if not isinstance(name, str) or name not in _LOADERS:
        raise ValueError(f"name must be one of {', '.join(map(repr, names()))}; got {name!r}")
    return _LOADERS[name](**options)
