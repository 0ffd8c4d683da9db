"""Prompts as the conditioning of a text-to-image pipeline."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from pyro_ext._lib import checks


def encode_prompts(tokenizer: Any, text_encoder: Any, prompts: Sequence[str]) -> Tensor:
    """Encode prompts as a pipeline of diffusers does, but never truncate them.

    :param tokenizer: ``pipeline.tokenizer``.
    :param text_encoder: ``pipeline.text_encoder``. Gradients flow through it if its parameters
        require them.
    :param Sequence prompts: strings; the empty string stands for no prompt.
    :returns: the last hidden states of all tokens, including padding.
        **Shape:** ``(num_prompts, model_max_length, width)``.
    :raises TypeError: for anything but strings.
    :raises ValueError: for a prompt that is longer than the tokenizer allows, or that has parts the
        tokenizer does not know.

    Example::

        >>> from pyro_ext.models.diffusion import digit_pipeline
        >>> pipeline = digit_pipeline(num_steps=0)
        >>> encode_prompts(pipeline.tokenizer, pipeline.text_encoder, ["seven", ""]).shape
        torch.Size([2, 8, 32])
    """
    checks.function("tokenizer", tokenizer, "a tokenizer of transformers", or_class=False)
    checks.function("text_encoder", text_encoder, "a network of transformers", or_class=False)
    if not hasattr(tokenizer, "model_max_length"):
        raise TypeError(f"tokenizer must be one of transformers, got {checks.shown(tokenizer)}")
    checks.instance("text_encoder", text_encoder, nn.Module, "a network of transformers")
    prompts = checks.sequence("prompts", prompts, "a list of strings", kind=str)
    length = tokenizer.model_max_length
    found = tokenizer(prompts, add_special_tokens=False, verbose=False)["input_ids"]
    num_special = tokenizer.num_special_tokens_to_add()
    for prompt, ids in zip(prompts, found, strict=True):
        if len(ids) + num_special > length:
            raise ValueError(
                f"prompts must have at most {length - num_special} tokens, got {len(ids)} of "
                f"{prompt!r}"
            )
        if tokenizer.unk_token_id is not None and tokenizer.unk_token_id in ids:
            raise ValueError(
                f"prompts must be of words that the tokenizer knows, got {prompt!r}, of which it "
                f"makes {tokenizer.convert_ids_to_tokens(ids)}"
            )
    tokens = tokenizer(prompts, padding="max_length", max_length=length, return_tensors="pt")
    tokens = tokens.to(next(text_encoder.parameters()).device)
    masks = getattr(getattr(text_encoder, "config", None), "use_attention_mask", False)
    options = {"attention_mask": tokens.attention_mask} if masks else {}
    states: Tensor = text_encoder(tokens.input_ids, **options)[0]
    return states
