"""Models of words letter by letter: a Markov chain, and a network added to it."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from pyro_ext._lib import checks

_ALPHABET = "abcdefghijklmnopqrstuvwxyz"


def encode_words(words: Iterable[str]) -> list[Tensor]:
    """Convert words to integers, from 0 for a to 25 for z.

    :param words: words with letters from a to z.
    :raises ValueError: for other letters.

    Example::

        >>> encode_words(["cab"])
        [tensor([2, 0, 1])]
    """
    words = checks.sequence("words", words, "a list of words", 0, str)
    for word in words:
        if not word or set(word) - set(_ALPHABET):
            raise ValueError(f"words must have letters from a to z only, got {word!r}")
    return [torch.tensor([ord(letter) - ord("a") for letter in word]) for word in words]


def decode_words(tokens: Tensor) -> list[str]:
    """Convert rows of integers to words, the inverse of :func:`encode_words`.

    :param Tensor tokens: integers from 0 to 25. **Shape:** ``(num_words, length)``.

    Example::

        >>> decode_words(torch.tensor([[2, 0, 1]]))
        ['cab']
    """
    tokens = checks.as_tensor("tokens", tokens, "(num_words, length)", kind="integers")
    if bool((tokens < 0).any()) or bool((tokens >= len(_ALPHABET)).any()):
        raise ValueError(f"tokens must be integers from 0 to 25, got {tokens.tolist()!r:.80}")
    return ["".join(_ALPHABET[number] for number in row) for row in tokens.tolist()]


class BigramModel(nn.Module):
    r"""A Markov chain of tokens, with nothing to train.

    :param Tensor init: probabilities of the first token. **Shape:** ``(vocabulary_size,)``.
    :param Tensor trans: probabilities of the next token, one row for each last token. **Shape:**
        ``(vocabulary_size, vocabulary_size)``.

    Example::

        >>> model = BigramModel.from_words(["abba", "baba"])
        >>> model.vocabulary_size, model(torch.tensor([[0, 1]])).exp()[0, :2]
        (26, tensor([0.5755, 0.1981]))
    """

    log_init: Tensor
    log_trans: Tensor

    def __init__(self, init: Tensor, trans: Tensor) -> None:
        super().__init__()
        init = checks.as_tensor("init", init, "(vocabulary_size,)", finite=True)
        trans = checks.as_tensor(
            "trans", trans, f"({len(init)}, {len(init)})", finite=True, like=init
        )
        for name, value in (("init", init), ("trans", trans)):
            if bool((value < 0).any()) or bool((value.sum(-1) - 1.0).abs().max() > 1e-4):
                raise ValueError(f"{name} must hold probabilities with the sum 1, got others")
        self.register_buffer("log_init", init.log())
        self.register_buffer("log_trans", trans.log())

    @classmethod
    def from_words(cls, words: Sequence[str], smoothing: float = 0.05) -> "BigramModel":
        """Estimate the probabilities by counting first letters and pairs of letters.

        :param Sequence words: words with letters from a to z.
        :param float smoothing: number added to each count.
        """
        words = checks.sequence("words", words, "a list of words", 1, str)
        smoothing = checks.number("smoothing", smoothing, above=0)
        encoded = encode_words(words)
        size = len(_ALPHABET)
        first = torch.stack([word[0] for word in encoded])
        pairs = torch.cat([word[:-1] * size + word[1:] for word in encoded])
        init = torch.bincount(first, minlength=size).double() + smoothing
        trans = torch.bincount(pairs, minlength=size * size).double().reshape(size, size)
        trans = trans + smoothing
        model = cls(init / init.sum(), trans / trans.sum(-1, keepdim=True))
        return model.to(torch.get_default_dtype())

    @property
    def vocabulary_size(self) -> int:
        """Number of tokens to choose from."""
        return len(self.log_init)

    def forward(self, prefix: Tensor) -> Tensor:
        """Compute log probabilities of each next token.

        :param Tensor prefix: tokens. **Shape:** ``(num_rows, num_tokens)``.
        :returns: **Shape:** ``(num_rows, vocabulary_size)``.
        """
        if not prefix.shape[1]:
            return self.log_init.expand(len(prefix), -1)
        return self.log_trans[prefix[:, -1]]

    def all_log_probs(self, tokens: Tensor, num_prompt: int = 0) -> Tensor:
        """Compute log probabilities at all steps after the prompt.

        :param Tensor tokens: prompts followed by sequences. **Shape:** ``(num_rows, num_tokens)``.
        :param int num_prompt: number of tokens of the prompt.
        :returns: **Shape:** ``(num_rows, num_tokens - num_prompt, vocabulary_size)``.
        """
        first = self.log_init.expand(len(tokens), 1, -1)
        return torch.cat([first, self.log_trans[tokens[:, :-1]]], 1)[:, num_prompt:]


class ResidualLanguageModel(nn.Module):
    r"""A recurrent network whose logits are added to the log probabilities of a fixed model.

    It starts out as the fixed model, and cannot easily lose its support.

    :param BigramModel fixed: the fixed model.
    :param int hidden_size: number of units of the recurrent network.

    Example::

        >>> fixed = BigramModel.from_words(["abba", "baba"])
        >>> model = ResidualLanguageModel(fixed, hidden_size=8)
        >>> prefix = torch.tensor([[0, 1, 1]])
        >>> torch.allclose(model(prefix), fixed(prefix), atol=1e-6)
        True
    """

    def __init__(self, fixed: BigramModel, hidden_size: int = 64) -> None:
        super().__init__()
        checks.instance("fixed", fixed, BigramModel, "a BigramModel")
        hidden_size = checks.integer("hidden_size", hidden_size, 1)
        size = fixed.vocabulary_size
        self.fixed = fixed
        self.embedding = nn.Embedding(size + 1, hidden_size)  # the last stands for the start
        self.recurrence = nn.GRU(hidden_size, hidden_size, batch_first=True)
        self.head = nn.Linear(hidden_size, size)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, prefix: Tensor) -> Tensor:
        """Compute log probabilities of each next token.

        :param Tensor prefix: tokens. **Shape:** ``(num_rows, num_tokens)``.
        :returns: **Shape:** ``(num_rows, vocabulary_size)``.
        """
        return self.begin(prefix)[0]

    def begin(self, prompt: Tensor) -> tuple[Tensor, Tensor]:
        """See :class:`~pyro_ext.inference.smc.IncrementalModel`."""
        hidden, last = self.recurrence(self.embedding(self._shifted(prompt)))
        return self._outputs(self.fixed(prompt), hidden[:, -1]), last[0]

    def advance(self, state: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """See :class:`~pyro_ext.inference.smc.IncrementalModel`."""
        _, last = self.recurrence(self.embedding(tokens[:, None]), state[None])
        return self._outputs(self.fixed(tokens[:, None]), last[0]), last[0]

    def select(self, state: Tensor, index: Tensor) -> Tensor:
        """See :class:`~pyro_ext.inference.smc.IncrementalModel`."""
        return state[index]

    def all_log_probs(self, tokens: Tensor, num_prompt: int = 0) -> Tensor:
        """See :meth:`BigramModel.all_log_probs`."""
        hidden, _ = self.recurrence(self.embedding(self._shifted(tokens[:, :-1])))
        fixed = self.fixed.all_log_probs(tokens, num_prompt)
        return self._outputs(fixed, hidden[:, num_prompt:])

    def _shifted(self, tokens: Tensor) -> Tensor:
        start = tokens.new_full((len(tokens), 1), self.fixed.vocabulary_size)
        return torch.cat([start, tokens], -1)

    def _outputs(self, fixed: Tensor, hidden: Tensor) -> Tensor:
        logits: Tensor = fixed + self.head(hidden)
        return logits.log_softmax(-1)
