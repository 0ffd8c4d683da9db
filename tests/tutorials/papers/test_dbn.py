"""The page on diffusion bridge networks: its parts, and in full its claims."""

import pytest

from pyro_ext.diagnostics.metrics import nll

pytest.importorskip("mlxtend")

PAGE = "dbn"
pytestmark = pytest.mark.slow


def test_ensembles_have_the_source_in_them(names):
    probs, labels = names["members"][0], names["data"][0].test_targets
    means = names["nll_by_size"](probs, labels)
    assert means[0] == pytest.approx(nll(probs[0], labels))
    pairs = [nll(probs[[0, other]], labels) for other in range(1, 5)]
    assert means[1] == pytest.approx(sum(pairs) / 4)
    assert means[4] == pytest.approx(nll(probs, labels))


def test_costs_are_those_of_the_layers(names):
    """Products of a forward pass of the source, and of a step of the score network."""
    source, step = 784 * 100 + 100 * 100 + 100 * 10, 142 * 64 + 64 * 64 + 64 * 10
    for name, num_steps in {
        "source": 0,
        "bridge, 5 steps": 5,
        "bridge, 1 step": 1,
        "2 bridges, 5 steps": 10,
        "2 bridges, 1 step": 2,
    }.items():
        assert names["results"][name]["cost"][0] == pytest.approx(1 + num_steps * step / source)
