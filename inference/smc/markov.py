"""Exact solutions for a Markov chain as base model and an automaton that reads the potential."""

import math

import torch
from torch import Tensor

from pyro_ext._lib import checks
from pyro_ext.inference.smc.particles import draw_index
from pyro_ext.random import seeded


def exact_markov_twist(
    init: Tensor, trans: Tensor, dfa: Tensor, log_potential: Tensor, length: int
) -> "MarkovTwist":
    r"""Compute the optimal twist of a Markov chain by dynamic programming.

    The potential depends on the final state of a deterministic finite automaton that reads the
    sequence, starting in state 0. For example, an automaton that counts tokens has one state for
    each count. Then :math:`\psi^*_t` is a function of the last token and the state, and a backward
    recursion computes :math:`\psi^*_{t-1} = \sum_v p_0(v \mid s_{t-1})\, \psi^*_t`.

    :param Tensor init: probabilities of the first token. **Shape:** ``(vocabulary_size,)``.
    :param Tensor trans: probabilities of the next token, one row for each last token. **Shape:**
        ``(vocabulary_size, vocabulary_size)``.
    :param Tensor dfa: next state of the automaton, by state and token read. **Shape:**
        ``(num_states, vocabulary_size)``.
    :param Tensor log_potential: log potential of each final state. **Shape:** ``(num_states,)``.
    :param int length: number of tokens of a sequence.
    :returns: the twist, with base model and potential for :class:`~pyro_ext.inference.TwistedSMC`,
        the normalizing constant and exact draws.
    :raises ValueError: for shapes that do not fit, or numbers out of range.

    Example::

        >>> from pyro_ext.inference import TwistedSMC
        >>> fair = torch.tensor([0.5, 0.5])
        >>> seen = torch.tensor([[0, 1], [1, 1]])  # whether there has been a 1
        >>> exact = exact_markov_twist(fair, fair.expand(2, 2), seen, torch.tensor([-9.0, 0.0]), 3)
        >>> round(float(exact.log_Z.exp()), 4)  # one minus an eighth
        0.875
        >>> smc = TwistedSMC(exact.base, exact, exact.log_potential, num_particles=4, length=3)
        >>> torch.allclose(smc.run(seed=0).log_Z, exact.log_Z)
        True
    """
    init = _probabilities("init", init, "(vocabulary_size,)")
    trans = _probabilities("trans", trans, "(vocabulary_size, vocabulary_size)")
    dfa = checks.as_tensor("dfa", dfa, "(num_states, vocabulary_size)", kind="integers")
    log_potential = checks.as_tensor("log_potential", log_potential, "(num_states,)", like=init)
    size = len(init)
    if trans.shape != (size, size):
        raise ValueError(f"trans must have the shape ({size}, {size}), got {tuple(trans.shape)}")
    if dfa.shape[1] != size:
        raise ValueError(f"dfa must have {size} columns, got the shape {tuple(dfa.shape)}")
    if bool((dfa < 0).any()) or int(dfa.max()) >= len(dfa):
        raise ValueError(f"dfa must hold states from 0 to {len(dfa) - 1}, got others")
    if len(log_potential) != len(dfa) or not bool((log_potential < math.inf).all()):
        raise ValueError(
            f"log_potential must be below infinity for each of {len(dfa)} states, got "
            f"{log_potential.tolist()!r:.80}"
        )
    checks.integer("length", length, 1)
    # Twists of a token and the state after it.
    tables = [log_potential.expand(size, -1)]
    tokens = torch.arange(size, device=dfa.device)
    for _ in range(length - 1):
        later = tables[0][tokens, dfa]  # (num_states, vocabulary_size)
        tables.insert(0, (trans.log()[:, None] + later).logsumexp(-1))
    return MarkovTwist(init.log(), trans.log(), dfa, log_potential, torch.stack(tables))


class MarkovTwist:
    """A Markov chain as base model, its optimal twist, and exact draws from the target.

    :func:`exact_markov_twist` makes it. Called with prefixes, it returns the log twists.

    :ivar Tensor log_Z: logarithm of the normalizing constant, a scalar.
    :ivar Tensor tables: log twists by step, token and the state after it. **Shape:** ``(length,
        vocabulary_size, num_states)``.
    """

    def __init__(
        self, log_init: Tensor, log_trans: Tensor, dfa: Tensor, at_end: Tensor, tables: Tensor
    ) -> None:
        self.log_init, self.log_trans, self.dfa = log_init, log_trans, dfa
        self._at_end, self.tables = at_end, tables
        self.log_Z = (log_init + self(dfa.new_zeros(1, 0))[0]).logsumexp(-1)

    def states(self, tokens: Tensor) -> Tensor:
        """State of the automaton after sequences of tokens.

        :param Tensor tokens: integers. **Shape:** ``(num_rows, num_tokens)``.
        """
        state = tokens.new_zeros(len(tokens))
        for column in tokens.unbind(-1):
            state = self.dfa[state, column]
        return state

    def __call__(self, prefix: Tensor) -> Tensor:
        """Log twists of each next token. **Shape:** ``(num_rows, vocabulary_size)``."""
        later = self.dfa[self.states(prefix)]
        tokens = torch.arange(self.dfa.shape[1], device=prefix.device)
        return self.tables[prefix.shape[1]][tokens, later]

    def base(self, prefix: Tensor) -> Tensor:
        """Log probabilities of each next token. **Shape:** ``(num_rows, vocabulary_size)``."""
        if not prefix.shape[1]:
            return self.log_init.expand(len(prefix), -1)
        return self.log_trans[prefix[:, -1]]

    def log_potential(self, sequences: Tensor) -> Tensor:
        """Log potentials of whole sequences. **Shape:** ``(num_rows,)``."""
        return self._at_end[self.states(sequences)]

    def sample(self, num_samples: int, seed: int | None = None) -> Tensor:
        """Draw independent sequences from the target, exactly.

        :param int num_samples: number of sequences.
        :param int seed: seed of the draws.
        :returns: **Shape:** ``(num_samples, length)``.
        """
        checks.integer("num_samples", num_samples, 1)
        tokens = self.dfa.new_zeros(num_samples, 0)
        with seeded(seed):
            for _ in range(len(self.tables)):
                uniforms = torch.rand(num_samples, 1, dtype=torch.float64).to(tokens.device)
                drawn = draw_index(self.base(tokens) + self(tokens), uniforms)
                tokens = torch.cat([tokens, drawn], -1)
        return tokens


def _probabilities(name: str, value: Tensor, shape: str) -> Tensor:
    """Probabilities in double precision."""
    tensor = checks.as_tensor(name, value, shape, finite=True, dtype=torch.float64)
    if bool((tensor < 0).any()) or bool((tensor.sum(-1) - 1.0).abs().max() > 1e-5):
        raise ValueError(f"{name} must hold probabilities with the sum 1, got {value!r:.80}")
    return tensor / tensor.sum(-1, keepdim=True)
