"""The page on stochastic representations: its parts, and in full its claims."""

import pytest
import torch

pytest.importorskip("mlxtend")

PAGE = "long-tailed-srepr"
pytestmark = pytest.mark.slow


def test_splits_are_what_the_page_says(names):
    """Counts of each part, pixels from 0 to 1, and no image in two of them."""
    data = names["split"](0)
    counts = [part[1].bincount(minlength=10).tolist() for part in (data.train, data.test)]
    assert counts == [[300, 179, 107, 64, 38, 23, 13, 8, 5, 3], [150] * 10]
    assert float(names["pixels"].min()) == pytest.approx(0.0, abs=1e-6)
    assert float(names["pixels"].max()) == pytest.approx(1.0)
    rows = torch.cat([data.train[0], data.test[0]]).flatten(1)
    assert len(rows.unique(dim=0)) == len(rows)
    assert torch.equal(names["split"](0).train[0], data.train[0])
    assert not torch.equal(names["split"](1).train[0], data.train[0])


def test_the_rate_falls_and_stays(names):
    rate, last = names["rate"], names["NUM_STEPS"]
    assert rate(0) == 1.0 and rate(int(0.75 * last)) == pytest.approx(0.4)
    assert rate(last) == pytest.approx(0.4) and 0.4 < rate(last // 4) < 1.0


def test_the_average_is_of_the_last_quarter(names):
    for base in names["bases"].values():
        assert base.extractors.num_collected == base.whole.num_collected == 4
        extractor, _ = base.networks["SWA"]
        whole = base.whole.weights()
        torch.testing.assert_close(extractor[1].weight.detach(), whole["0.1.weight"])
        torch.testing.assert_close(whole["0.1.weight"], base.extractors.weights()["1.weight"])


def test_extractors_are_frozen(names):
    """Retraining leaves the networks of the first stage as they are."""
    base = names["bases"][0]
    before = {n: v.clone() for n, v in base.networks["SWA"].state_dict().items()}
    for kind in ("cRT", "LWS"):
        model = names["retrained"](base, "SWA", kind, 0, "kd")
        assert len(model.extractors) == 9
    after = base.networks["SWA"].state_dict()
    assert all(torch.equal(value, before[name]) for name, value in after.items())
