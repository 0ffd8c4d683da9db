"""Small language models: of the letters of words."""

from pyro_ext.models.language.words import (
    BigramModel,
    ResidualLanguageModel,
    decode_words,
    encode_words,
)

__all__ = ["BigramModel", "ResidualLanguageModel", "decode_words", "encode_words"]
