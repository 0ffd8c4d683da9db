"""Small language models of words, letter by letter."""

from pyro_ext.models.language.words import (
    BigramModel,
    ResidualLanguageModel,
    decode_words,
    encode_words,
)

__all__ = ["BigramModel", "ResidualLanguageModel", "decode_words", "encode_words"]
