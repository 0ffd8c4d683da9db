"""Ranks among negatives."""

import numpy as np
import pytest
import torch

from pyro_ext.diagnostics.ranking import hits_at, mean_reciprocal_rank, ranks


def test_the_best_has_rank_one_and_ties_share_the_mean():
    negatives = [[1.0, 2.0, 3.0], [5.0, 5.0, 5.0], [5.0, 1.0, 4.0], [7.0, 7.0, 1.0]]
    found = ranks([4.0, 4.0, 4.0, 7.0], negatives)
    assert found.tolist() == [1.0, 4.0, 2.5, 2.0]
    assert mean_reciprocal_rank([4.0, 4.0], negatives[:2]) == pytest.approx((1 + 1 / 4) / 2)
    assert mean_reciprocal_rank([4.0], negatives[:1]) == 1.0
    assert hits_at([4.0, 4.0, 4.0, 7.0], negatives, 2) == 0.5


def test_a_constant_score_is_worth_no_more_than_chance():
    found = mean_reciprocal_rank(torch.zeros(10), torch.zeros(10, 50))
    assert found == pytest.approx(1.0 / 26.0)


def test_ranks_are_those_of_sorting():
    generator = np.random.default_rng(0)
    scores, negatives = generator.normal(size=40), generator.normal(size=(40, 9))
    order = np.argsort(-np.concatenate([scores[:, None], negatives], 1), axis=1)
    expected = (order == 0).argmax(1) + 1
    assert ranks(scores, negatives).tolist() == expected.tolist()
