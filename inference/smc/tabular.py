"""A twist that depends only on the position and the token."""

import torch
from torch import Tensor, nn

from pyro_ext._lib import checks


class TabularTwist(nn.Module):
    r"""Twists :math:`\log \psi_t(s_{1:t}) = b_{t, s_t}` in a table, which starts at zero.

    The table has no memory, so this is the least flexible twist.

    :param int length: number of tokens of a sequence.
    :param int vocabulary_size: number of tokens to choose from.
    :param int num_prompt: number of tokens of the prompt.

    Example::

        >>> twist = TabularTwist(length=3, vocabulary_size=2)
        >>> twist(torch.tensor([[0], [1], [1], [0]])).shape
        torch.Size([4, 2])
    """

    def __init__(self, length: int, vocabulary_size: int, num_prompt: int = 0) -> None:
        super().__init__()
        size = (
            checks.integer("length", length, 1),
            checks.integer("vocabulary_size", vocabulary_size, 1),
        )
        self.num_prompt = checks.integer("num_prompt", num_prompt, 0)
        self.table = nn.Parameter(torch.zeros(size))

    def forward(self, prefix: Tensor) -> Tensor:
        """Log twists of each next token.

        :param Tensor prefix: tokens. **Shape:** ``(num_rows, num_tokens)``.
        :returns: **Shape:** ``(num_rows, vocabulary_size)``.
        """
        return self.table[prefix.shape[1] - self.num_prompt].expand(len(prefix), -1)
