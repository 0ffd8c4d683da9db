"""Numbers of kinds by how often they occur, in texts and in a graph: files of the package."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from pyro_ext.datasets._shipped import ShippedFiles

__all__ = [
    "FrequencyData",
    "frequency_names",
    "load_frequencies",
    "save_frequencies",
]

_FILES = ShippedFiles("frequency_counts")
_TABLE = "table"


@dataclass(frozen=True, eq=False, repr=False)
class FrequencyData:
    """How many kinds occur how often.

    :param str name: the name that :func:`load_frequencies` knows it by.
    :param Tensor table: rows of a size and the number of kinds that occur so often, integers, by
        rising size. **Shape:** ``(num_sizes, 2)``.
    :param str description: what kinds and occurrences are.
    :param str source: where the counts come from.
    :param str licence: the terms of the source.
    """

    name: str
    table: Tensor
    description: str
    source: str
    licence: str

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


def frequency_names() -> tuple[str, ...]:
    """Return the names that :func:`load_frequencies` knows, sorted.

    Example::

        >>> from pyro_ext.datasets import frequency_names
        >>> frequency_names()
        ('bible_words', 'news_words', 'package_dependencies', 'stemmed_words')
    """
    return _FILES.names()


def load_frequencies(name: str) -> FrequencyData:
    """Load how many words, or packages, occur how often.

    * ``"bible_words"``: words of the King James Bible.
    * ``"news_words"``: words of 300 news items of the Australian Broadcasting Corporation.
    * ``"package_dependencies"``: packages of Debian by how many others depend on them.
    * ``"stemmed_words"``: stems of words of a collection of texts, without stop words, which leaves
        out what is frequent.

    ``python -m pyro_ext.datasets.make_frequencies`` made the files from the sources.

    :param str name: one of :func:`frequency_names`.
    :raises ValueError: names the argument, what it got and what it allows.
    :raises CheckpointError: where the file is missing, cut or changed.

    Reference: F. Ayed, J. Lee, F. Caron (2019), *Beyond the Chinese restaurant and Pitman-Yor
    processes: statistical models with double power-law behavior*, on data of this kind.

    Example::

        >>> from pyro_ext.datasets import load_frequencies
        >>> words = load_frequencies("news_words")
        >>> words
        FrequencyData('news_words', 59,576 of 7,188 kinds)
        >>> words.table[:2].tolist(), words.table[-1].tolist()
        ([[1, 3147], [2, 1239]], [4135, 1])
    """
    tensors, facts = _FILES.read(name)
    return FrequencyData(name, tensors[_TABLE], **facts)


def save_frequencies(data: FrequencyData, folder: str | Path | None = None) -> Path:
    """Write a data set as :func:`load_frequencies` reads it.

    :param FrequencyData data: what to write.
    :param folder: where to, by default among those of the package.
    :returns: the file.
    :raises CheckpointError: where it cannot be written.
    """
    facts = {"description": data.description, "source": data.source, "licence": data.licence}
    return _FILES.write(data.name, {_TABLE: data.table.to(torch.int64)}, facts, folder)
