"""Words of a language."""

import re
from dataclasses import dataclass

from pyro_ext._lib import optional

_WORD = re.compile("[a-z]{4,}")
_NUM_WORDS = 50_000  # the most frequent, of which many have other letters


@dataclass(frozen=True, eq=False, repr=False)
class WordData:
    """Frequent words.

    :param tuple words: the words, the most frequent first.
    :param str description: which words they are.
    :param str source: where they come from.
    :param str license: the terms of the package that contains them, and of its sources.
    """

    words: tuple[str, ...]
    description: str
    source: str
    license: str

    def __repr__(self) -> str:
        """Show the number of words; never the words."""
        return f"WordData({len(self.words):,} words)"


def load_words() -> WordData:
    """Load frequent English words of at least four letters, all from a to z.

    :raises ImportError: if wordfreq is missing; the message names the extra to install.

    Reference: R. Speer (2022), *rspeer/wordfreq: v3.0*, https://doi.org/10.5281/zenodo.7199437.

    Example::

        >>> from pyro_ext.datasets import load_words
        >>> data = load_words()
        >>> data, data.words[:4]
        (WordData(44,461 words), ('that', 'with', 'this', 'have'))
    """
    wordfreq = optional.optional_module("wordfreq", "this data set", "wordfreq", "language")
    words = wordfreq.top_n_list("en", _NUM_WORDS)
    return WordData(
        tuple(word for word in words if _WORD.fullmatch(word)),
        "English words of the letters from a to z, by falling frequency.",
        "wordfreq top_n_list: R. Speer (2022), from texts of many kinds",
        "Apache-2.0 (wordfreq); its data CC BY-SA 4.0",
    )
