"""The page on latent batch ensembles: a short run."""

import pytest

PAGE = "latent-be"
pytestmark = pytest.mark.slow


def test_students_are_of_one_size(names):
    task = names["tasks"][0]
    sizes = [
        sum(p.numel() for p in network.parameters())
        for network in (task.plain(0), task.latent(0).merge(), task.teachers[0])
    ]
    assert sizes == [89_610] * 3
