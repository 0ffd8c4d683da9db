"""Models of Hugging Face with random weights: with a cache as without."""

import sys

import pytest
import torch

from pyro_ext.inference import TwistedSMC
from pyro_ext.inference.smc import CausalLM, CTLLoss, sequence_log_prob

pytest.importorskip("transformers")
pytestmark = pytest.mark.slow  # which takes seconds to import
TOKENS = {"vocab_size": 11, "bos_token_id": 0, "eos_token_id": 0}


def gpt2():
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(n_positions=32, n_embd=16, n_layer=2, n_head=2, **TOKENS)
    model = GPT2LMHeadModel(config).eval()
    return sharpened(model)


def llama():
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=32,
        **TOKENS,
    )
    return sharpened(LlamaForCausalLM(config).eval())


def sharpened(model):
    """Fresh weights are so small that the past would hardly matter."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(12.0)
    return model


def threes(tokens):
    return 2.0 * (tokens == 3).float().sum(-1)


@pytest.mark.parametrize("make", [gpt2, llama])
@pytest.mark.parametrize("prompt", [None, torch.tensor([4, 1, 9])])
def test_cache_follows_the_particles(make, prompt):
    start = 0 if prompt is None else None
    base = CausalLM(make(), start_token=start)
    twist = CausalLM(make(), normalize=False, start_token=start)
    cached = TwistedSMC(base, twist, threes, num_particles=16, length=8)
    plain = TwistedSMC(lambda p: base(p), lambda p: twist(p), threes, num_particles=16, length=8)
    found, expected = (smc.run(prompt, num_runs=3, seed=0) for smc in (cached, plain))
    assert torch.equal(found.sequences, expected.sequences)
    torch.testing.assert_close(found.log_weights, expected.log_weights, atol=1e-3, rtol=1e-4)
    assert len({tuple(row[:4]) for row in found.sequences[0].tolist()}) < 16  # it was resampled
    # Log probabilities in one pass over what came out, and step by step.
    tokens = found.sequences[0]
    num_prompt = 0
    if prompt is not None:
        tokens, num_prompt = torch.cat([prompt.expand(16, -1), tokens], -1), 3
    with torch.no_grad():
        whole = sequence_log_prob(base, tokens, num_prompt)
        stepwise = sequence_log_prob(lambda p: base(p), tokens, num_prompt)
    torch.testing.assert_close(whole, stepwise, atol=1e-4, rtol=1e-4)
    drawn = cached.proposal_log_prob(found.sequences[0], prompt)
    other = plain.proposal_log_prob(found.sequences[0], prompt)
    torch.testing.assert_close(drawn, other, atol=1e-3, rtol=1e-4)


def test_twist_is_trained_through_its_cache():
    base = CausalLM(gpt2(), start_token=0)
    twist = CausalLM(gpt2(), normalize=False, start_token=0)
    smc = TwistedSMC(base, twist, threes, num_particles=8, length=4)
    before = [parameter.clone() for parameter in base.parameters()]
    smc.fit(CTLLoss(), 2, seed=0, progress=False)
    assert len(smc.losses) == 2
    assert all(map(torch.equal, base.parameters(), before))
    own = list(zip(twist.parameters(), before, strict=True))
    assert any(not torch.equal(one, other) for one, other in own)


def test_models_that_are_refused(monkeypatch):
    from transformers import GPT2Model, T5Config, T5ForConditionalGeneration

    with pytest.raises(TypeError, match="model must be a causal model of transformers, got 'gpt2'"):
        CausalLM("gpt2")
    config = T5Config(
        vocab_size=11,
        d_model=8,
        d_ff=8,
        d_kv=4,
        num_layers=1,
        num_heads=2,
        decoder_start_token_id=0,
    )
    with pytest.raises(ValueError, match="model must be a causal .* got T5ForConditionalGen"):
        CausalLM(T5ForConditionalGeneration(config))
    with pytest.raises(ValueError, match="model must be a causal .* got GPT2Model"):
        CausalLM(GPT2Model(gpt2().config))
    with pytest.raises(ValueError, match="prompt must have at least one token if there is no"):
        TwistedSMC(CausalLM(gpt2()), None, threes, length=2).run(seed=0)
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ImportError, match=r"transformers.*pip install 'pyro-ext\[language\]'"):
        CausalLM(3)
