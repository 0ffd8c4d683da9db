"""Causal language models from Hugging Face as base models and twists."""

import inspect
from typing import Any

from torch import Tensor, nn
from torch.nn.functional import pad

from pyro_ext._lib import checks
from pyro_ext._lib.optional import optional_module


class CausalLM(nn.Module):
    """A causal language model from Hugging Face, read token by token with its cache.

    The cache of keys and values follows the particles when they are resampled. If the model has
    dropout, put it into evaluation mode (``model.eval()``).

    :param model: for example ``AutoModelForCausalLM.from_pretrained(...)``.
    :param bool normalize: whether to return log probabilities, as a base model must, or the logits
        themselves, for a twist.
    :param int start_token: a token to put before everything that the model reads, such as
        ``model.config.bos_token_id``. Without it, a prompt is required.
    :raises TypeError: for a model that is not from Hugging Face.
    :raises ValueError: for a model with an encoder.
    :raises ImportError: if transformers is not installed; the message names the extra to install.

    Example::

        >>> from transformers import GPT2Config, GPT2LMHeadModel
        >>> from pyro_ext.inference import TwistedSMC
        >>> tokens = {"vocab_size": 11, "bos_token_id": 0, "eos_token_id": 0}
        >>> config = GPT2Config(n_embd=8, n_layer=1, n_head=1, **tokens)
        >>> base = CausalLM(GPT2LMHeadModel(config).eval())
        >>> def number_of_threes(tokens):
        ...     return (tokens == 3).float().sum(-1)
        >>> smc = TwistedSMC(base, None, number_of_threes, num_particles=4, length=5)
        >>> smc.run(prompt=torch.tensor([7, 2]), seed=0).sequences.shape
        torch.Size([4, 5])
    """

    def __init__(
        self, model: Any, *, normalize: bool = True, start_token: int | None = None
    ) -> None:
        super().__init__()
        kind = optional_module("transformers", "CausalLM", "transformers", "language")
        checks.instance("model", model, kind.PreTrainedModel, "a causal model of transformers")
        checks.instance("normalize", normalize, bool, "True or False")
        if model.config.is_encoder_decoder or not model.can_generate():
            raise ValueError(
                "model must be a causal language model with a head, such as one from "
                f"AutoModelForCausalLM, got {type(model).__name__}"
            )
        self.model, self.normalize = model, normalize
        # Its name from transformers 5 on, and before.
        names = inspect.signature(model.forward).parameters
        self._cache = "cache" if "cache" in names else "past_key_values"
        self.start_token = checks.optional(checks.integer, "start_token", start_token, 0)

    def forward(self, prefix: Tensor) -> Tensor:
        """Compute the outputs for each next token, without a cache.

        :param Tensor prefix: tokens. **Shape:** ``(num_rows, num_tokens)``.
        :returns: **Shape:** ``(num_rows, vocabulary_size)``.
        """
        found = self.model(input_ids=self._started(prefix), use_cache=False)
        return self._outputs(found.logits[:, -1])

    def begin(self, prompt: Tensor) -> tuple[Tensor, Any]:
        """See :class:`~pyro_ext.inference.smc.IncrementalModel`."""
        found = self.model(input_ids=self._started(prompt), use_cache=True)
        return self._outputs(found.logits[:, -1]), found[self._cache]

    def advance(self, state: Any, tokens: Tensor) -> tuple[Tensor, Any]:
        """See :class:`~pyro_ext.inference.smc.IncrementalModel`."""
        found = self.model(input_ids=tokens[:, None], use_cache=True, **{self._cache: state})
        return self._outputs(found.logits[:, -1]), found[self._cache]

    def select(self, state: Any, index: Tensor) -> Any:
        """See :class:`~pyro_ext.inference.smc.IncrementalModel`."""
        state.reorder_cache(index)
        return state

    def all_log_probs(self, tokens: Tensor, num_prompt: int = 0) -> Tensor:
        """Compute the outputs at all steps after the prompt.

        :param Tensor tokens: prompts followed by sequences. **Shape:** ``(num_rows, num_tokens)``.
        :param int num_prompt: number of tokens of the prompt.
        :returns: **Shape:** ``(num_rows, num_tokens - num_prompt, vocabulary_size)``.
        """
        found = self.model(input_ids=self._started(tokens[:, :-1], num_prompt), use_cache=False)
        return self._outputs(found.logits[:, num_prompt - tokens.shape[1] :])

    def _started(self, prefix: Tensor, num_prompt: int | None = None) -> Tensor:
        """The prefix after the start."""
        if self.start_token is not None:
            return pad(prefix, (1, 0), value=self.start_token)
        if (prefix.shape[1] if num_prompt is None else num_prompt) == 0:
            raise ValueError(
                "prompt must have at least one token if there is no start_token, got none"
            )
        return prefix

    def _outputs(self, logits: Tensor) -> Tensor:
        return logits.log_softmax(-1) if self.normalize else logits
