"""Make the files that :func:`~pyro_ext.datasets.load_graph` reads from their sources.

``python -m tools.make_graphs NAME FILE`` makes one of them. The file is

* for ``new_testament_names``: what the command ``bible -f Gen1:1-Rev22:21`` of the Debian package
  bible-kjv prints;
* for ``python_packages``: the list of packages of a release of Debian, as
  ``/usr/lib/apt/apt-helper cat-file`` prints those of ``/var/lib/apt/lists`` whose names end in
  ``_main_binary-amd64_Packages``;
* for ``us_airports``: ``data/flights-airport.csv`` of the npm package vega-datasets.

Only edges between numbers are kept, and neither names nor texts.
"""

import argparse
import csv
import itertools
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import torch

from pyro_ext import datasets
from pyro_ext._lib import checks
from pyro_ext.checkpoint.files import write_tensors
from tools.package_fields import dependencies

__all__ = ["edges_of_airports", "edges_of_names", "edges_of_packages", "make_graph"]

Edges = set[tuple[str, str]]

_FOLDER = Path(datasets.__file__).with_name("graph_edges")
_FIRST_BOOK = "Mat1:1"
_NAME = re.compile(r"[A-Z][a-z]{2,}")
_WORD = re.compile(r"[A-Za-z]+")
_INSIDE = re.compile(r"(?<=[^.?!:;(\s])\s+([A-Z][a-z]{2,})")
_PREFIX = "python3-"


def edges_of_names(lines: Iterable[str]) -> Edges:
    """Join names that occur in one verse of the New Testament.

    A name is a word with a capital that stands inside a sentence of the New Testament at least
    once, and that never occurs in small letters in the whole Bible.

    :param lines: verses, each after a label such as ``Mat1:1``.

    Example::

        >>> verses = ["Ge1:1 The end.", "Mat1:1 of David and of Mary.", "Mat1:2 End of Mary."]
        >>> sorted(edges_of_names(verses))
        [('David', 'Mary')]
    """
    labels, verses = zip(*(line.partition(" ")[::2] for line in lines), strict=True)
    small = {word for verse in verses for word in _WORD.findall(verse) if word.islower()}
    verses = verses[labels.index(_FIRST_BOOK) :]
    inside = {name for verse in verses for name in _INSIDE.findall(verse)}
    names = {name for name in inside if name.lower() not in small}
    return {
        pair
        for verse in verses
        for pair in itertools.combinations(sorted(names.intersection(_NAME.findall(verse))), 2)
    }


def edges_of_packages(lines: Iterable[str]) -> Edges:
    """Join packages of Python libraries one of which depends on the other, maybe as an alternative.

    :param lines: paragraphs of fields, one for each package.

    Example::

        >>> lines = ["Package: python3-a", "Depends: python3-b (>= 1), c", "", "Package: python3-b"]
        >>> sorted(edges_of_packages(lines))
        [('python3-a', 'python3-b')]
    """
    needs = dict(dependencies(lines))
    known = {name for name in needs if name.startswith(_PREFIX)}
    return {
        (min(name, other), max(name, other))
        for name in known
        for other in needs[name] & known
        if name != other
    }


def edges_of_airports(lines: Iterable[str]) -> Edges:
    """Join airports with a flight from one to the other.

    :param lines: rows of an origin, a destination and a number of flights, below a header.

    Example::

        >>> lines = ["origin,destination,count", "JFK,ATL,9", "ATL,JFK,8", "ATL,ATL,1"]
        >>> sorted(edges_of_airports(lines))
        [('ATL', 'JFK')]
    """
    pairs = {(row["origin"], row["destination"]) for row in csv.DictReader(lines)}
    return {(min(pair), max(pair)) for pair in pairs if pair[0] != pair[1]}


class _Source(NamedTuple):
    edges: Callable[[Iterable[str]], Edges]
    description: str
    source: str
    license: str


_SOURCES = {
    "new_testament_names": _Source(
        edges_of_names,
        "Names of the New Testament, with an edge where a verse has both.",
        "Debian package bible-kjv 4.39",
        "Public domain (the text of 1611)",
    ),
    "python_packages": _Source(
        edges_of_packages,
        "Packages of Debian of libraries of Python 3, with an edge where one depends on the other.",
        "List of packages of Debian 13.7, main, amd64, of 12 September 2026",
        "Free software licenses of the packages; only edges between numbers are here, which are "
        "facts",
    ),
    "us_airports": _Source(
        edges_of_airports,
        "Airports of the United States, with an edge where airlines flew from one to the other in "
        "2008.",
        "npm package vega-datasets 2.7.0, from the Bureau of Transportation Statistics",
        "Public domain (a work of the government of the United States)",
    ),
}


def make_graph(name: str, source: str | Path, folder: str | Path | None = None) -> Path:
    """Read a source and write the file.

    :param str name: of the graph.
    :param source: the file to be read.
    :param folder: where to write, by default among the files of the package.
    :returns: the file that was written.
    :raises ValueError: for another name.
    """
    checks.choice("name", name, tuple(_SOURCES))
    kind = _SOURCES[name]
    with Path(source).open(encoding="utf-8", errors="replace") as lines:
        edges = sorted(kind.edges(line.rstrip("\n") for line in lines))
    numbers = {node: i for i, node in enumerate(sorted(set(itertools.chain(*edges))))}
    pairs = torch.tensor([[numbers[node] for node in edge] for edge in edges])
    path = Path(folder or _FOLDER) / f"{name}.safetensors"
    facts = {"description": kind.description, "source": kind.source, "license": kind.license}
    write_tensors(path, {"edges": pairs.to(torch.int32)}, facts | {"num_nodes": len(numbers)})
    return path


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Make a graph from its source.")
    parser.add_argument("name", choices=sorted(_SOURCES))
    parser.add_argument("source", type=Path)
    parser.add_argument("--folder", type=Path)
    arguments = parser.parse_args()
    print(make_graph(arguments.name, arguments.source, arguments.folder))
