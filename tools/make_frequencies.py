"""Make the files that :func:`~pyro_ext.datasets.load_frequencies` reads from their sources.

``python -m tools.make_frequencies NAME FILE`` counts one of them. The file is

* for ``news_words``: ``lee_background.cor`` of the test data of gensim 4.4;
* for ``stemmed_words``: ``head500.noblanks.cor``, from the same place;
* for ``bible_words``: what the command ``bible -f Gen1:1-Rev22:21`` of the Debian package
  bible-kjv prints;
* for ``package_dependencies``: the list of packages of a release of Debian, as
  ``/usr/lib/apt/apt-helper cat-file`` prints those of ``/var/lib/apt/lists`` whose names end in
  ``_main_binary-amd64_Packages``.

Only numbers of kinds of each size are kept, and nothing of the texts.
"""

import argparse
import re
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import torch

from pyro_ext import datasets
from pyro_ext._lib import checks
from pyro_ext.checkpoint.files import write_tensors
from tools.package_fields import dependencies

__all__ = ["count_dependencies", "count_words", "make_frequencies"]

_FOLDER = Path(datasets.__file__).with_name("frequency_counts")
_WORD = re.compile(r"[a-z]+(?:'[a-z]+)?")


def count_words(lines: Iterable[str]) -> Counter[str]:
    """Count words, in small letters, with an apostrophe inside a word as part of it.

    Example::

        >>> sorted(count_words(["It's the", "'The' end."]).items())
        [('end', 1), ("it's", 1), ('the', 2)]
    """
    counts: Counter[str] = Counter()
    for line in lines:
        counts.update(_WORD.findall(line.lower()))
    return counts


def count_verses(lines: Iterable[str]) -> Counter[str]:
    """Count words of verses, each of which follows a label such as ``Ge1:1``."""
    return count_words(line.partition(" ")[2] for line in lines)


def count_dependencies(lines: Iterable[str]) -> Counter[str]:
    """Count, for each package, the packages that depend on it, alternatives as well.

    Example::

        >>> lines = ["Package: a", "Depends: b (>= 1) | c, d:any", "", "Package: b", "Depends: d"]
        >>> sorted(count_dependencies(lines).items())
        [('b', 1), ('c', 1), ('d', 2)]
    """
    counts: Counter[str] = Counter()
    for _, needed in dependencies(lines):
        counts.update(needed)
    return counts


class _Source(NamedTuple):
    counter: Callable[[Iterable[str]], Counter[str]]
    description: str
    source: str
    license: str


_SOURCES = {
    "bible_words": _Source(
        count_verses,
        "Words of the King James Bible, in small letters.",
        "Debian package bible-kjv 4.39",
        "Public domain (the text of 1611)",
    ),
    "news_words": _Source(
        count_words,
        "Words of 300 news items of the Australian Broadcasting Corporation, in small letters.",
        "gensim 4.4, lee_background.cor: M. D. Lee, B. Pincombe, M. Welsh (2005), An empirical "
        "evaluation of models of text document similarity",
        "LGPL-2.1 (gensim, which carries the text); only counts of it are here, which are facts",
    ),
    "package_dependencies": _Source(
        count_dependencies,
        "Packages of Debian, by the number of packages whose Depends or Pre-Depends name them.",
        "List of packages of Debian 13.7, main, amd64, of 12 September 2026",
        "Free software licenses of the packages; only counts of their fields are here, which are "
        "facts",
    ),
    "stemmed_words": _Source(
        count_words,
        "Stems of words of a collection of texts, without stop words.",
        "gensim 4.4, head500.noblanks.cor",
        "LGPL-2.1 (gensim, which carries the text); only counts of it are here, which are facts",
    ),
}


def make_frequencies(name: str, source: str | Path, folder: str | Path | None = None) -> Path:
    """Count a source and write the file.

    :param str name: of the data set.
    :param source: the file to be counted.
    :param folder: where to write, by default among the files of the package.
    :returns: the file that was written.
    :raises ValueError: for another name.
    """
    checks.choice("name", name, tuple(_SOURCES))
    kind = _SOURCES[name]
    with Path(source).open(encoding="utf-8", errors="replace") as lines:
        sizes = torch.tensor(sorted(kind.counter(line.rstrip("\n") for line in lines).values()))
    values, numbers = sizes.unique(return_counts=True)
    path = Path(folder or _FOLDER) / f"{name}.safetensors"
    facts = {"description": kind.description, "source": kind.source, "license": kind.license}
    write_tensors(path, {"table": torch.stack([values, numbers], -1)}, facts)
    return path


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Count a source of frequencies.")
    parser.add_argument("name", choices=sorted(_SOURCES))
    parser.add_argument("source", type=Path)
    parser.add_argument("--folder", type=Path)
    arguments = parser.parse_args()
    print(make_frequencies(arguments.name, arguments.source, arguments.folder))
