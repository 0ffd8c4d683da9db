"""Words of a language."""

import re
from dataclasses import dataclass

from pyro_ext._lib import checks, optional

_WORD = re.compile("[a-z]+")


@dataclass(frozen=True, eq=False, repr=False)
class WordData:
    """Frequent words.

    :param tuple words: the words, the most frequent first.
    :param str description: which words they are.
    :param str source: where they come from.
    :param str license: the terms of the package that carries them, and of its sources.
    """

    words: tuple[str, ...]
    description: str
    source: str
    license: str

    def __repr__(self) -> str:
        """Show the number of words; never the words."""
        return f"WordData({len(self.words):,} words)"


def load_words(num_words: int = 50_000, min_length: int = 4) -> WordData:
    """Load frequent English words that are written with the letters from a to z.

    :param int num_words: how many of the most frequent words are looked through.
    :param int min_length: letters of a word at least.
    :raises ValueError: names the argument, what it got and what it allows.
    :raises ImportError: without wordfreq; names the extra.

    Reference: R. Speer (2022), *rspeer/wordfreq: v3.0*, https://doi.org/10.5281/zenodo.7199437.

    Example::

        >>> from pyro_ext.datasets import load_words
        >>> data = load_words(1000)
        >>> data, data.words[:4]
        (WordData(799 words), ('that', 'with', 'this', 'have'))
    """
    checks.integer("num_words", num_words, 1)
    checks.integer("min_length", min_length, 1)
    wordfreq = optional.optional_module("wordfreq", "this data set", "wordfreq", "language")
    words = wordfreq.top_n_list("en", num_words)
    return WordData(
        tuple(word for word in words if len(word) >= min_length and _WORD.fullmatch(word)),
        "English words of the letters from a to z, by falling frequency.",
        "wordfreq top_n_list: R. Speer (2022), from texts of many kinds",
        "Apache-2.0 (wordfreq); its data CC BY-SA 4.0",
    )
