"""Which chains and draws make a posterior, and how they are joined."""

import pytest
import torch

from pyro_ext.checkpoint.chains import (
    ChainStatus,
    Chunk,
    complete_chains,
    gather_chain,
    gather_chains,
)


@pytest.mark.parametrize(
    ("lengths", "limit", "expected"),
    [
        ([10, 10], 100, ([0, 1], 10)),
        ([10, 10], 4, ([0, 1], 4)),
        ([100, 90, 3], 100, ([0, 1], 90)),
        ([100, 3, 3], 100, ([0], 100)),
        ([0, 0], 100, ([], 0)),
        ([0, 7], 100, ([1], 7)),
    ],
)
def test_most_draws_are_kept(lengths, limit, expected):
    assert complete_chains([ChainStatus(length) for length in lengths], limit) == expected


def test_chains_that_stopped_are_passed_over():
    statuses = [ChainStatus(50, stopped_at=60), ChainStatus(10)]
    assert complete_chains(statuses, 100) == ([1], 10)
    assert complete_chains(statuses[:1], 100) == ([], 0)


def test_gather():
    draws = torch.randn(7, 3, 2)  # of chains 0 to 2
    other = torch.randn(5, 1, 2)  # of chain 3
    chunks = {
        range(3): [Chunk({"x": draws[:4]}, {"lp": draws[:4, :, 0]}, [4, 1, 4])]
        + [Chunk({"x": draws[4:]}, {"lp": draws[4:, :, 0]}, [3, 0, 3])],
        range(3, 4): [Chunk({"x": other}, {"lp": other[..., 0]}, [5])],
    }
    groups = [(members, lambda found=found: iter(found)) for members, found in chunks.items()]
    samples, statistics = gather_chains(groups, [0, 2, 3], 5)
    expected = torch.stack([draws[:5, 0], draws[:5, 2], other[:, 0]])
    assert torch.equal(samples["x"], expected)
    assert torch.equal(statistics["lp"], expected[..., 0])
    assert torch.equal(gather_chain(groups[0][1], 1)["x"], draws[:1, 1])
    assert torch.equal(gather_chain(groups[0][1], 2)["x"], draws[:, 2])
