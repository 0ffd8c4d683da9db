"""The counter-based generator: known answers, independence of how it is asked, and normality."""

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from pyro_ext.random import chain_keys, fresh_seed, normal, philox, uniform

ONES = 0xFFFFFFFF

# Counter, key and output words of Philox-4x32-10, from the generator's own distribution [1].
#
# [1] J. K. Salmon, M. A. Moraes, R. O. Dror, D. E. Shaw (2011), Random123, file kat_vectors.
KNOWN_ANSWERS = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((ONES,) * 4, (ONES,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


def words(*values: int) -> Any:
    return tuple(torch.tensor(value, dtype=torch.int64) for value in values)


def test_known_answers() -> None:
    """Of many keys and counters at once."""
    counters, keys, expected = zip(*KNOWN_ANSWERS, strict=True)
    result = philox(
        tuple(torch.tensor(column) for column in zip(*keys, strict=True)),  # type: ignore[arg-type]
        tuple(torch.tensor(column) for column in zip(*counters, strict=True)),  # type: ignore[arg-type]
    )
    assert torch.stack(result, -1).tolist() == [list(row) for row in expected]


def test_against_another_implementation() -> None:
    """Integers of any size in Python, in which no product overflows."""

    def reference(key: list[int], counter: list[int]) -> list[int]:
        for round_ in range(10):
            high0, low0 = divmod(counter[0] * 0xD2511F53, 2**32)
            high1, low1 = divmod(counter[2] * 0xCD9E8D57, 2**32)
            bump0 = (key[0] + round_ * 0x9E3779B9) % 2**32
            bump1 = (key[1] + round_ * 0xBB67AE85) % 2**32
            counter = [high1 ^ counter[1] ^ bump0, low1, high0 ^ counter[3] ^ bump1, low0]
        return counter

    rng = np.random.default_rng(0)
    for row in rng.integers(0, 2**32, (200, 6)).tolist():
        result = philox(words(*row[:2]), words(*row[2:]))
        assert [int(word) for word in result] == reference(row[:2], row[2:])


def draw(num_chains: int = 1, num_steps: int = 1, num_elements: int = 1, **options: Any) -> Tensor:
    keys = chain_keys(options.pop("seed", 0), range(num_chains))
    return normal(keys, torch.arange(num_steps), num_elements, **options)


def test_independent_of_how_it_is_asked() -> None:
    whole = draw(5, 7, 6)
    assert whole.shape == (7, 5, 6) and whole.dtype == torch.float32
    for chain in range(5):
        keys = chain_keys(0, range(chain, chain + 1))
        assert torch.equal(normal(keys, torch.arange(7), 6)[:, 0], whole[:, chain])
    for step in range(7):
        assert torch.equal(normal(chain_keys(0, range(5)), torch.tensor(step), 6), whole[step])
    assert torch.equal(normal(chain_keys(0, range(5)), torch.tensor([6, 2]), 6), whole[[6, 2]])
    for num_elements in (1, 3, 4, 5):
        assert torch.equal(draw(5, 7, num_elements), whole[..., :num_elements])


def test_nothing_is_used_up() -> None:
    before = torch.get_rng_state()
    assert torch.equal(draw(2, 3, 4), draw(2, 3, 4))
    assert torch.equal(torch.get_rng_state(), before)


def test_seeds_streams_chains_and_steps_differ() -> None:
    base = draw(2, 2, 4)
    assert not torch.equal(draw(2, 2, 4, seed=1), base)
    assert not torch.equal(draw(2, 2, 4, stream=1), base)
    assert not torch.equal(base[0], base[1])
    assert not torch.equal(base[:, 0], base[:, 1])


def test_double_precision() -> None:
    double = draw(3, 4, 5, dtype=torch.float64)
    assert double.dtype == torch.float64
    torch.testing.assert_close(double.float(), draw(3, 4, 5), rtol=1e-4, atol=1e-5)


@pytest.mark.statistical
def test_normality() -> None:
    """Kolmogorov-Smirnov, moments and tails; false-alarm rate 1e-4 each, at a fixed seed."""
    x = draw(10, 1000, 30, seed=1, dtype=torch.float64).flatten().numpy()
    assert stats.kstest(x, "norm").pvalue > 1e-4
    bound = stats.norm.isf(0.5e-4)
    # Mean and variance of the first four powers of a standard normal number.
    for power, mean, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs((x**power).mean() - mean) < bound * (variance / len(x)) ** 0.5
    for level in (2.0, 3.0, 4.0):
        expected = len(x) * stats.norm.sf(level)
        for count in ((x > level).sum(), (x < -level).sum()):
            assert stats.poisson.cdf(count, expected) > 1e-4
            assert stats.poisson.sf(count - 1, expected) > 1e-4


@pytest.mark.statistical
def test_no_correlation() -> None:
    """Between elements, steps, chains, streams and seeds; false-alarm rate 1e-3 in all."""
    x = draw(40, 500, 9, seed=2, dtype=torch.float64)
    pairs = {
        "elements": [(x[..., i], x[..., j]) for i in range(9) for j in range(i)],
        "squares of elements": [
            (x[..., i] ** 2 - 1, x[..., j] ** 2 - 1) for i in range(9) for j in range(i)
        ],
        "steps": [(x[lag:], x[:-lag]) for lag in (1, 2, 3, 10)],
        "chains": [(x[:, lag:], x[:, :-lag]) for lag in (1, 2, 3, 10)],
        "streams": [
            (x, draw(40, 500, 9, seed=2, stream=stream, dtype=torch.float64)) for stream in (1, 2)
        ],
        "seeds": [(x, draw(40, 500, 9, seed=seed, dtype=torch.float64)) for seed in (0, 1, 3)],
    }
    bound = stats.norm.isf(0.5e-3 / sum(map(len, pairs.values())))
    for what, arrays in pairs.items():
        for one, other in arrays:
            scale = float((one**2).mean() * (other**2).mean()) ** 0.5
            score = float((one * other).mean()) / scale * one.numel() ** 0.5
            assert abs(score) < bound, (what, score)


@pytest.mark.slow
def test_compiled() -> None:
    """Inside a compiled graph the words are the same, and the numbers but for rounding."""
    from pyro_ext.potential import capture, compile_graph

    keys, steps = chain_keys(0, range(3)), torch.arange(50)
    graph = capture(lambda keys, steps: normal(keys, steps, 37), keys, steps)
    compiled = compile_graph(graph, keys, steps)
    expected = normal(keys, steps, 37)
    torch.testing.assert_close(graph(keys, steps), expected, rtol=0, atol=0)
    torch.testing.assert_close(compiled(keys, steps), expected, rtol=1e-5, atol=1e-5)
    # A loop without vector instructions, in which products must not overflow.
    single = partial(uniform, num_elements=1, stream=1, dtype=torch.float64)
    keys, step = chain_keys(0, range(9)), torch.tensor(5)
    assert torch.equal(torch.compile(single)(keys, step), single(keys, step))
    rng = torch.Generator().manual_seed(0)
    for size in (1, 3, 1001):
        arguments = [torch.randint(2**32, (size,), generator=rng) for _ in range(6)]
        record = capture(lambda *words: philox(words[:2], words[2:]), *arguments)  # type: ignore[arg-type]
        for one, other in zip(
            compile_graph(record, *arguments)(*arguments),
            philox(arguments[:2], arguments[2:]),  # type: ignore[arg-type]
            strict=True,
        ):
            assert torch.equal(one, other)


def test_chain_keys() -> None:
    keys = chain_keys(7, range(100))
    assert keys.shape == (100, 2) and keys.dtype == torch.int64
    assert int(keys.min()) >= 0 and int(keys.max()) <= ONES
    assert len(keys.unique(dim=0)) == 100
    assert torch.equal(chain_keys(7, range(40, 50)), keys[40:50])
    assert not torch.equal(chain_keys(8, range(100)), keys)
    assert chain_keys(2**80, range(1)).shape == (1, 2)


def test_fresh_seed() -> None:
    assert fresh_seed(0) == 0
    assert fresh_seed(np.int64(5)) == 5 and type(fresh_seed(np.int64(5))) is int
    assert fresh_seed(2**70) == 2**70
    torch.manual_seed(3)
    first, second = fresh_seed(None), fresh_seed(None)
    assert first != second and 0 <= first < 2**31
    torch.manual_seed(3)
    assert fresh_seed(None) == first


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_rounded_single_precision(dtype: torch.dtype) -> None:
    keys, steps = chain_keys(0, range(3)), torch.arange(200)
    half = normal(keys, steps, 50, dtype=dtype)
    assert half.dtype == dtype and torch.isfinite(half).all()
    assert torch.equal(half, normal(keys, steps, 50).to(dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_uniform_numbers(dtype: torch.dtype) -> None:
    """Kolmogorov-Smirnov on 40,000 numbers; false-alarm rate 1e-4 for each type."""
    draws = uniform(chain_keys(11, range(8)), torch.arange(500), 10, dtype=dtype)
    assert draws.shape == (500, 8, 10) and draws.dtype == dtype
    assert float(draws.min()) > 0.0 and float(draws.max()) < 1.0
    assert stats.kstest(draws.flatten().numpy(), "uniform").pvalue > 1e-4


def test_uniform_numbers_stay_off_the_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """The smallest and the largest word give numbers inside of the open interval."""
    for word in (0, ONES):
        monkeypatch.setattr(
            "pyro_ext.random._words",
            lambda *arguments, word=word: [torch.full((1, 1, 1), word)] * 4,
        )
        for dtype in (torch.float32, torch.float64):
            value = uniform(
                chain_keys(0, range(1)), torch.zeros(1, dtype=torch.int64), 4, dtype=dtype
            )
            assert bool(((value > 0) & (value < 1)).all())


def test_uniform_numbers_are_the_same_alone_and_among_others() -> None:
    many = uniform(chain_keys(5, range(4)), torch.arange(6), 5)
    alone = uniform(chain_keys(5, range(2, 3)), torch.arange(3, 4), 5)
    assert torch.equal(many[3:4, 2:3], alone)
    assert not torch.equal(many, uniform(chain_keys(5, range(4)), torch.arange(6), 5, stream=1))


@pytest.mark.parametrize("draw", [normal, uniform])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_recorded_numbers_are_those_drawn_at_once(draw: Any, dtype: torch.dtype) -> None:
    """Operations that a graph can hold, a vectorized call and the compiled loop: the same bits."""
    keys, steps = chain_keys(3, range(3)), torch.tensor([[0, 7], [2**32 - 1, 5]])
    kwargs = {"stream": 9, "dtype": dtype}
    expected = draw(keys, steps, 6, **kwargs)
    graph = make_fx(lambda keys, steps: draw(keys, steps, 6, **kwargs))(keys, steps)
    assert len(graph.graph.nodes) > 100  # they are in the graph, not frozen
    assert torch.equal(graph(keys, steps), expected)
    others = chain_keys(4, range(3))
    assert torch.equal(graph(others, steps), draw(others, steps, 6, **kwargs))
    over_steps = torch.func.vmap(lambda step: draw(keys, step, 6, **kwargs))
    assert torch.equal(over_steps(steps.reshape(-1)).reshape(expected.shape), expected)
