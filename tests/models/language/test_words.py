"""Models of words: counts, what a network adds, states against whole prefixes."""

import pytest
import torch

from pyro_ext.models.language import BigramModel, ResidualLanguageModel, decode_words, encode_words

WORDS = ["jazz", "quiz", "abba", "exact"]


def test_words_and_integers():
    encoded = encode_words(["abz", "q"])
    assert [word.tolist() for word in encoded] == [[0, 1, 25], [16]]
    assert decode_words(torch.stack(encode_words(WORDS[:3]))) == WORDS[:3]
    with pytest.raises(ValueError, match="words must have letters from a to z only, got 'Ab'"):
        encode_words(["Ab"])


def test_bigram_counts(float64):
    model = BigramModel.from_words(WORDS, smoothing=0.1)
    row = model(torch.tensor([[25]]))[0].exp()  # z is followed by z once
    assert float(row[25]) == pytest.approx(1.1 / 3.6)
    first = model(torch.zeros(1, 0, dtype=torch.int64))[0].exp()
    assert float(first[0]) == pytest.approx(1.1 / 6.6) and float(first[1]) == pytest.approx(
        0.1 / 6.6
    )
    assert float(model.log_trans.exp().sum()) == pytest.approx(26.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("num_prompt", [0, 2])
def test_three_ways_to_the_same_probabilities(dtype, num_prompt):
    fixed = BigramModel.from_words(WORDS).to(dtype)
    residual = ResidualLanguageModel(fixed, 8).to(dtype)
    torch.nn.init.normal_(residual.head.weight)
    tokens = torch.tensor([[9, 0, 25, 25], [0, 1, 1, 0]])
    for model in (fixed, residual):
        whole = model.all_log_probs(tokens, num_prompt)
        assert whole.dtype == dtype and whole.shape == (2, 4 - num_prompt, 26)
        for number in range(num_prompt, 4):
            torch.testing.assert_close(model(tokens[:, :number]), whole[:, number - num_prompt])
        torch.testing.assert_close(
            whole.logsumexp(-1), torch.zeros_like(whole[..., 0]), atol=1e-5, rtol=0
        )
    outputs, state = residual.begin(tokens[:, :num_prompt])
    for number in range(num_prompt, 4):
        torch.testing.assert_close(outputs, residual(tokens[:, :number]))
        outputs, state = residual.advance(state, tokens[:, number])
    assert float((residual(tokens) - fixed(tokens)).detach().abs().max()) > 0.1


def test_residual_starts_at_the_fixed_model_and_trains_only_itself():
    fixed = BigramModel.from_words(WORDS)
    model = ResidualLanguageModel(fixed, 8)
    tokens = torch.tensor([[9, 0, 25, 25]])
    torch.testing.assert_close(model(tokens), fixed(tokens))
    assert not list(fixed.parameters())
    assert {name.split(".")[0] for name, _ in model.named_parameters()} == {
        "embedding",
        "recurrence",
        "head",
    }
