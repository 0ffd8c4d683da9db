"""Make the files that :func:`~pyro_ext.datasets.load_time_series` reads from their sources.

``python -m tools.make_time_series japanese_vowels WHEEL`` makes one of them, where the file is the
wheel of the package aeon, 1.6.0, which holds the series as text. The package itself is not needed.
"""

import argparse
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_ext import datasets
from pyro_ext._lib import checks
from pyro_ext.checkpoint.files import write_tensors

__all__ = ["make_time_series", "read_series"]

_FOLDER = Path(datasets.__file__).with_name("time_series")


class _Source(NamedTuple):
    train: str
    test: str
    description: str
    source: str
    license: str


_SOURCES = {
    "japanese_vowels": _Source(
        "aeon/datasets/data/JapaneseVowels/JapaneseVowels_TRAIN.ts",
        "aeon/datasets/data/JapaneseVowels/JapaneseVowels_TEST.ts",
        "Coefficients of linear prediction of two Japanese vowels by nine speakers, who are the "
        "classes; 12 channels and 7 to 29 steps.",
        "Japanese Vowels of the UCI Machine Learning Repository: M. Kudo, J. Toyama, M. Shimbo "
        "(1999), https://doi.org/10.24432/C5NS47, from the wheel of aeon 1.6.0",
        "CC BY 4.0",
    )
}


def read_series(lines: Iterable[str]) -> tuple[list[Tensor], list[str]]:
    """Read series and labels from the lines of a file of the format ``.ts``.

    After the line ``@data`` each line is a series: channels, then the label, with colons between.

    :param lines: the lines.
    :returns: series of the shape ``(num_steps, num_channels)``, and their labels.

    Example::

        >>> series, labels = read_series(["@classLabel true a b", "@data", "1,2,3:4,5,6:a"])
        >>> series[0].tolist(), labels
        ([[1.0, 4.0], [2.0, 5.0], [3.0, 6.0]], ['a'])
    """
    series, labels = [], []
    has_begun = False
    for line in map(str.strip, lines):
        if has_begun and line:
            *channels, label = line.split(":")
            rows = [[float(number) for number in channel.split(",")] for channel in channels]
            series.append(torch.tensor(rows, dtype=torch.float64).mT)
            labels.append(label)
        has_begun = has_begun or line == "@data"
    return series, labels


def make_time_series(name: str, source: str | Path, folder: str | Path | None = None) -> Path:
    """Read a source and write the file.

    Numbers of the source have at most seven digits, which float32 holds: rounded to as many they
    are the same.

    :param str name: of the data.
    :param source: the file to be read.
    :param folder: where to write, by default among the files of the package.
    :returns: the file that was written.
    :raises ValueError: for another name.
    """
    checks.choice("name", name, tuple(_SOURCES))
    kind = _SOURCES[name]
    tensors: dict[str, Tensor] = {}
    classes: dict[str, int] = {}
    with zipfile.ZipFile(source) as archive:
        for part, member in (("train", kind.train), ("test", kind.test)):
            series, labels = read_series(archive.read(member).decode("utf-8").splitlines())
            classes = classes or {label: i for i, label in enumerate(sorted(set(labels)))}
            tensors[f"{part}_steps"] = torch.cat(series).float()
            tensors[f"{part}_lengths"] = torch.tensor([len(one) for one in series])
            tensors[f"{part}_labels"] = torch.tensor([classes[label] for label in labels])
    facts = {"description": kind.description, "source": kind.source, "license": kind.license}
    path = Path(folder or _FOLDER) / f"{name}.safetensors"
    write_tensors(path, tensors, facts)
    return path


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Make a file of time series from its source.")
    parser.add_argument("name", choices=sorted(_SOURCES))
    parser.add_argument("source", type=Path)
    parser.add_argument("--folder", type=Path)
    arguments = parser.parse_args()
    print(make_time_series(arguments.name, arguments.source, arguments.folder))
