"""Data in small files of the package: counts, graphs, scaling curves and time series."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pyro_ext._lib import checks
from pyro_ext.checkpoint.files import read_tensors

_FREQUENCIES = Path(__file__).with_name("frequency_counts")
_GRAPHS = Path(__file__).with_name("graph_edges")
_SCALING = Path(__file__).with_name("scaling_curves")
_TIME_SERIES = Path(__file__).with_name("time_series")


@dataclass(frozen=True, eq=False, repr=False)
class FrequencyData:
    """Frequencies of frequencies: how many kinds occur how often.

    :param str name: the name to pass to :func:`load_frequencies`.
    :param Tensor table: rows of a frequency and the number of kinds that occur with it, integers in
        increasing order. **Shape:** ``(num_sizes, 2)``.
    :param str description: what kinds and occurrences are.
    :param str source: where the counts come from.
    :param str license: the terms of the source.
    """

    name: str
    table: Tensor
    description: str
    source: str
    license: str

    @property
    def num_samples(self) -> int:
        """Number of occurrences."""
        return int(self.table.prod(-1).sum())

    @property
    def num_kinds(self) -> int:
        """Number of kinds that occur."""
        return int(self.table[:, 1].sum())

    def __repr__(self) -> str:
        """Show the name and the sizes; never the numbers."""
        return f"FrequencyData({self.name!r}, {self.num_samples:,} of {self.num_kinds:,} kinds)"


def load_frequencies(name: str) -> FrequencyData:
    """Load the numbers of words, or packages, that occur with each frequency.

    * ``"bible_words"``: words of the King James Bible.
    * ``"news_words"``: words of 300 news items of the Australian Broadcasting Corporation.
    * ``"package_dependencies"``: packages of Debian by how many others depend on them.
    * ``"stemmed_words"``: word stems of a collection of texts, without stop words and thus without
        the most frequent words.

    ``python -m tools.make_frequencies`` made the files from the sources.

    :param str name: one of these names.
    :raises CheckpointError: if the file is missing, truncated or changed.

    Reference: F. Ayed, J. Lee, F. Caron (2019), *Beyond the Chinese restaurant and Pitman-Yor
    processes: statistical models with double power-law behavior*, on data of this kind.

    Example::

        >>> words = load_frequencies("news_words")
        >>> words
        FrequencyData('news_words', 59,576 of 7,188 kinds)
        >>> words.table[:2].tolist(), words.table[-1].tolist()
        ([[1, 3147], [2, 1239]], [4135, 1])
    """
    tensors, facts = _read(_FREQUENCIES, name)
    return FrequencyData(name, tensors["table"], **facts)


@dataclass(frozen=True, eq=False, repr=False)
class GraphData:
    """Edges of a real graph.

    :param str name: the name to pass to :func:`load_graph`.
    :param int num_nodes: number of nodes.
    :param Tensor edges: pairs of different nodes, the smaller one first, each once.
        **Shape:** ``(num_edges, 2)``.
    :param str description: what nodes and edges are.
    :param str source: where they come from.
    :param str license: the terms of the source.
    """

    name: str
    num_nodes: int
    edges: Tensor
    description: str
    source: str
    license: str

    def __repr__(self) -> str:
        """Show the name and the sizes; never the edges."""
        return f"GraphData({self.name!r}, {self.num_nodes:,} nodes, {len(self.edges):,} edges)"


def load_graph(name: str) -> GraphData:
    """Load the edges of a real graph, without isolated nodes.

    * ``"new_testament_names"``: names, with an edge if they occur in the same verse.
    * ``"python_packages"``: Debian's packages of Python libraries, with an edge if one depends on
      the other.
    * ``"us_airports"``: airports, with an edge if airlines flew from one to the other in 2008.

    ``python -m tools.make_graphs`` made the files from the sources.

    :param str name: one of these names.
    :raises CheckpointError: if the file is missing, truncated or changed.

    Example::

        >>> load_graph("new_testament_names")
        GraphData('new_testament_names', 545 nodes, 1,965 edges)
    """
    tensors, facts = _read(_GRAPHS, name)
    return GraphData(name, facts.pop("num_nodes"), tensors["edges"].long(), **facts)


@dataclass(frozen=True, eq=False, repr=False)
class TimeSeriesData:
    """Labeled time series with several channels, padded with zeros, with a fixed split.

    :param str name: the name to pass to :func:`load_time_series`.
    :param Tensor train_values: series to train on. **Shape:** ``(num_series, num_steps,
        num_channels)``.
    :param Tensor train_lengths: number of steps of each series without padding.
        **Shape:** ``(num_series,)``.
    :param Tensor train_labels: classes from 0. **Shape:** ``(num_series,)``.
    :param Tensor test_values: series to test on, with equally many steps.
    :param Tensor test_lengths: their lengths.
    :param Tensor test_labels: their classes.
    :param str description: what channels and classes are.
    :param str source: where they come from.
    :param str license: the terms of the source.
    """

    name: str
    train_values: Tensor
    train_lengths: Tensor
    train_labels: Tensor
    test_values: Tensor
    test_lengths: Tensor
    test_labels: Tensor
    description: str
    source: str
    license: str

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return int(self.train_labels.max()) + 1

    def __repr__(self) -> str:
        """Show the name and the sizes; never the numbers."""
        return (
            f"TimeSeriesData({self.name!r}, train {tuple(self.train_values.shape)}, test "
            f"{tuple(self.test_values.shape)}, {self.num_classes} classes)"
        )


def load_time_series(name: str) -> TimeSeriesData:
    """Load labeled time series.

    * ``"japanese_vowels"``: two vowels, spoken by nine speakers, who are the classes; 12 channels
      and 7 to 29 steps.

    ``python -m tools.make_time_series`` made the file from the source. Numbers are those of the
    source, in float32.

    :param str name: one of these names.
    :raises CheckpointError: if the file is missing, truncated or changed.

    Reference: M. Kudo, J. Toyama, M. Shimbo (1999), *Multidimensional curve classification using
    passing-through regions*.

    Example::

        >>> load_time_series("japanese_vowels")
        TimeSeriesData('japanese_vowels', train (270, 29, 12), test (370, 29, 12), 9 classes)
    """
    tensors, facts = _read(_TIME_SERIES, name)
    size = int(max(tensors["train_lengths"].max(), tensors["test_lengths"].max()))
    parts: dict[str, Any] = {}
    for part in ("train", "test"):
        steps, lengths = tensors[f"{part}_steps"], tensors[f"{part}_lengths"]
        values = steps.new_zeros(len(lengths), size, steps.shape[-1])
        values[torch.arange(size) < lengths[:, None]] = steps
        parts |= {f"{part}_values": values, f"{part}_lengths": lengths}
        parts[f"{part}_labels"] = tensors[f"{part}_labels"]
    return TimeSeriesData(name, **parts, **facts)


@dataclass(frozen=True, eq=False, repr=False)
class ScalingData:
    """Several curves of losses or errors against the size of data or model.

    :param str name: the name to pass to :func:`load_scaling_curves`.
    :param Tensor curve: the index of the curve of each point. **Shape:** ``(num_points,)``.
    :param Tensor x: sizes, increasing in each curve. **Shape:** ``(num_points,)``.
    :param Tensor y: losses or errors. **Shape:** ``(num_points,)``.
    :param Tensor given: booleans, true for points to fit to and false for points to predict.
        **Shape:** ``(num_points,)``.
    :param str description: what is measured against what.
    :param str source: where the curves come from.
    :param str license: the terms of the source.
    """

    name: str
    curve: Tensor
    x: Tensor
    y: Tensor
    given: Tensor
    description: str
    source: str
    license: str

    def curves(self) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Return the sizes, the values and the mask of given points of each curve."""
        rows = [self.curve == number for number in range(int(self.curve.max()) + 1)]
        return [(self.x[row], self.y[row], self.given[row]) for row in rows]

    def __repr__(self) -> str:
        """Show the name and the sizes; never the numbers."""
        return f"ScalingData({self.name!r}, {int(self.curve.max()) + 1} curves)"


def load_scaling_curves(name: str) -> ScalingData:
    """Load published scaling curves.

    * ``"big_bench"``: loss of a language model on tasks, against examples seen.
    * ``"double_descent"``: test error of a translation model in percent, against its width.
    * ``"language_modeling"``: validation loss of language models, against examples seen.
    * ``"translation"``: log perplexity of translation models, against examples seen.

    ``python -m tools.make_scaling_curves`` made the files from the sources.

    :param str name: one of these names.
    :raises CheckpointError: if the file is missing, truncated or changed.

    Example::

        >>> data = load_scaling_curves("translation")
        >>> data, [len(x) for x, _, _ in data.curves()]
        (ScalingData('translation', 5 curves), [11, 10, 11, 11, 10])
    """
    tensors, facts = _read(_SCALING, name)
    curve, x, y, given = (tensors[part] for part in ("curve", "x", "y", "given"))
    return ScalingData(name, curve, x, y, given, **facts)


def _names(folder: Path) -> tuple[str, ...]:
    """Names of the data in a folder, sorted."""
    return tuple(sorted(path.stem for path in folder.glob("*.safetensors")))


def _read(folder: Path, name: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and facts of a file."""
    checks.choice("name", name, _names(folder))
    tensors, facts, _ = read_tensors(folder / f"{name}.safetensors")
    return tensors, dict(facts)
