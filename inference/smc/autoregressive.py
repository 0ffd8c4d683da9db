"""Autoregressive models step by step, and tokens drawn from them under a twist."""

import inspect
import math
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, TypeAlias, runtime_checkable

import torch
from torch import Tensor, nn

from pyro_ext._lib import checks
from pyro_ext.inference.smc.particles import draw_index


@runtime_checkable
class IncrementalModel(Protocol):
    """A next-token model that keeps a state, such as a cache of keys and values.

    The state saves reading the whole prefix again at each step.
    """

    def begin(self, prompt: Tensor) -> tuple[Tensor, Any]:
        """Read a prompt.

        :param Tensor prompt: integers. **Shape:** ``(num_rows, num_tokens)``; there may be no
            tokens.
        :returns: outputs for each next token, **shape** ``(num_rows, vocabulary_size)``, and the
            state.
        """

    def advance(self, state: Any, tokens: Tensor) -> tuple[Tensor, Any]:
        """Read one more token.

        :param state: the previous state, which may be modified.
        :param Tensor tokens: integers. **Shape:** ``(num_rows,)``.
        :returns: as for :meth:`begin`.
        """

    def select(self, state: Any, index: Tensor) -> Any:
        """Select rows of the state.

        :param state: the previous state, which may be modified.
        :param Tensor index: integers. **Shape:** ``(num_rows,)``.
        :returns: the state whose rows are copies of those that the index names.
        """


AutoregressiveModel: TypeAlias = Callable[[Tensor], Tensor] | IncrementalModel


class _PrefixModel:
    """A function of a prefix, whose state is the prefix."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        self.function = function

    def begin(self, prompt: Tensor) -> tuple[Tensor, Tensor]:
        return self.function(prompt), prompt

    def advance(self, state: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        prefix = torch.cat([state, tokens[:, None]], -1)
        return self.function(prefix), prefix

    def select(self, state: Tensor, index: Tensor) -> Tensor:
        return state[index]


def incremental(model: Any) -> IncrementalModel:
    """The model itself, or a function of prefixes as one."""
    return model if isinstance(model, IncrementalModel) else _PrefixModel(model)


def check_model(name: str, model: Any) -> None:
    """Check that a value is a model of the next token."""
    if inspect.isclass(model) or not isinstance(model, IncrementalModel):
        checks.function(name, model, "a function of prefixes", or_class=False)


def device_of(*models: Any) -> torch.device | None:
    """Device of the first parameter or buffer of modules."""
    for model in models:
        if isinstance(model, nn.Module):
            for tensor in (*model.parameters(), *model.buffers()):
                return tensor.device
    return None


class Step(NamedTuple):
    """Draws of all rows in one step; each of shape ``(num_rows,)``."""

    tokens: Tensor
    log_base: Tensor
    log_twist: Tensor
    log_normalizer: Tensor  # of base times twist, over the vocabulary

    @property
    def log_proposal(self) -> Tensor:
        """Log probability under the proposal."""
        return self.log_base + self.log_twist - self.log_normalizer


class Walk:
    """Sequences in the course of being drawn from a base model under a twist."""

    def __init__(self, base: Any, twist: Any, prompt: Tensor) -> None:
        self.base = incremental(base)
        self.twist = None if twist is None else incremental(twist)
        self.tokens = prompt
        self.num_steps = 0
        self._size: int | None = None
        self._states: list[Any] = [None, None]

    def step(
        self, uniforms: Tensor | None, forced: Tensor | None = None, *, by_base: bool = False
    ) -> Step:
        """Draw a token for each row, but where it is forced to one that is not negative."""
        log_base = self._outputs(0, "base", self.base)
        joint, twist = log_base, None
        if self.twist is not None:
            twist = self._outputs(1, "twist", self.twist)
            joint = log_base + twist
        log_normalizer = joint.logsumexp(-1)
        if uniforms is not None:
            proposal = log_base if by_base else joint.detach()
            # A row on which the twist leaves nothing gets weight zero, and any token.
            is_lost = (log_normalizer == -math.inf)[:, None]
            chosen = draw_index(torch.where(is_lost, log_base, proposal), uniforms[:, None])[:, 0]
            if forced is not None:
                chosen = torch.where(forced >= 0, forced, chosen)
        else:
            assert forced is not None
            chosen = forced
        if chosen.numel() and int(chosen.max()) >= log_base.shape[-1]:
            raise ValueError(
                f"tokens must be below the vocabulary's size {log_base.shape[-1]}, got "
                f"{int(chosen.max())}"
            )
        own = chosen[:, None]
        at_base = log_base.gather(-1, own)[:, 0]
        at_twist = torch.zeros_like(at_base) if twist is None else twist.gather(-1, own)[:, 0]
        self.tokens = torch.cat([self.tokens, own], -1)
        self.num_steps += 1
        if twist is None:
            log_normalizer = torch.zeros_like(at_base)  # but for rounding
        return Step(chosen, at_base, at_twist, log_normalizer)

    def select(self, index: Tensor) -> None:
        """Let each row be a copy of the one that the index names."""
        self.tokens = self.tokens[index]
        models = (self.base, self.twist)
        for number, model in enumerate(models):
            if model is not None:
                self._states[number] = model.select(self._states[number], index)

    def _outputs(self, number: int, name: str, model: IncrementalModel) -> Tensor:
        with torch.set_grad_enabled(torch.is_grad_enabled() and number == 1):
            if self.num_steps == 0:
                values, state = model.begin(self.tokens)
            else:
                values, state = model.advance(self._states[number], self.tokens[:, -1])
        self._states[number] = state
        num_rows = len(self.tokens)
        if not isinstance(values, Tensor) or values.dim() != 2 or len(values) != num_rows:
            found = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
            raise ValueError(
                f"{name} must return a tensor of the shape ({num_rows}, vocabulary size), got "
                f"{found}"
            )
        self._size = self._size or values.shape[1]
        if values.shape[1] != self._size:
            raise ValueError(
                f"{name} must return values for {self._size} tokens at each step, got "
                f"{values.shape[1]}"
            )
        largest = float(values.detach().amax()) if values.numel() else 0.0
        if math.isnan(largest) or largest == math.inf:  # the largest is NaN where any is
            raise ValueError(
                f"{name} must return log {'probabilities' if number == 0 else 'twists'} that are "
                f"not NaN and not infinite, got {largest:g} at step {self.num_steps + 1}"
            )
        if number == 0 and self.num_steps == 0:
            total = values.logsumexp(-1)
            if bool((total.abs() > 1e-2).any()):
                raise ValueError(
                    "base must return log probabilities, whose exponentials have the sum 1, got "
                    f"{float(total.exp().sub(1.0).abs().max()) + 1.0:.4g}; apply log_softmax"
                )
        return values


def sequence_log_prob(model: Any, tokens: Tensor, num_prompt: int = 0) -> Tensor:
    """Log probability of whole sequences under a model, with its gradient.

    A model with a method ``all_log_probs(tokens, num_prompt)``, which returns the log probabilities
    at all steps, is called once; any other model is called step by step.

    :param model: a model like the base of :class:`~pyro_ext.inference.TwistedSMC`.
    :param Tensor tokens: prompts followed by sequences. **Shape:** ``(num_rows, num_tokens)``.
    :param int num_prompt: number of tokens of the prompt, whose probabilities do not count.
    :returns: **Shape:** ``(num_rows,)``.

    Example::

        >>> def coin(prefix):
        ...     return torch.tensor([0.25, 0.75]).log().expand(len(prefix), 2)
        >>> sequence_log_prob(coin, torch.tensor([[0, 1, 1]])).exp()
        tensor([0.1406])
    """
    tokens = checks.as_tensor("tokens", tokens, "(num_rows, num_tokens)", kind="integers")
    if bool((tokens < 0).any()):
        raise ValueError(f"tokens must be integers >= 0, got {int(tokens.min())}")
    if checks.integer("num_prompt", num_prompt, 0) >= tokens.shape[1]:
        raise ValueError(
            f"num_prompt must be less than the {tokens.shape[1]} tokens, got {num_prompt}"
        )
    drawn = tokens[:, num_prompt:]
    if not inspect.isclass(model) and hasattr(model, "all_log_probs"):
        values: Tensor = model.all_log_probs(tokens, num_prompt)
        return values.gather(-1, drawn[..., None])[..., 0].sum(-1)
    check_model("model", model)
    stepwise = incremental(model)
    outputs, state = stepwise.begin(tokens[:, :num_prompt])
    total: Tensor = outputs.new_zeros(len(tokens))
    for number, column in enumerate(drawn.unbind(-1)):
        total = total + outputs.gather(-1, column[:, None])[:, 0]
        if number < drawn.shape[1] - 1:
            outputs, state = stepwise.advance(state, column)
    return total
