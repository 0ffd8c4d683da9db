"""The page on FedSVD: its parts, a short run, and in full its claims."""

import pytest
import torch

pytest.importorskip("mlxtend")
pytest.importorskip("dp_accounting")

PAGE = "fedsvd"
pytestmark = pytest.mark.slow


def test_each_image_is_at_one_client_or_in_the_test(names):
    """Turned images, each at one client or in the test."""
    images = names["images"]
    assert images.shape == (5000, 1, 28, 28)
    assert float(images.min()) == pytest.approx(0, abs=1e-6)
    assert float(images.max()) == pytest.approx(1, abs=1e-6)
    task = names["tasks"][0]
    assert len(task.clients) == 6 and sum(len(x) for x, _ in task.clients) == 3000
    assert len(task.test[0]) == 1000
    seen = torch.cat([x for x, _ in task.clients] + [task.test[0]])
    assert len(seen.unique(dim=0)) == len(seen)
    turned_back = seen.view(-1, 1, 28, 28).rot90(-1, (2, 3)).flatten(1)
    distance = torch.cdist(turned_back[:20], images.flatten(1)).min(1).values
    torch.testing.assert_close(distance, torch.zeros(20), atol=1e-2, rtol=0.0)


def test_strategies_have_the_same_settings(names):
    """But for what clients train; the last layer stays frozen."""
    for name in names["STRATEGIES"]:
        server = names["server"](name, 4.0, 1.0, 0)
        assert list(server.adapters) == ["0", "2"] and server.fraction == 0.5
        assert (server.max_norm, server.noise_multiplier) == (2.0, 4.0)
        trained = {n for n, p in server.module.named_parameters() if p.requires_grad}
        both = {"0.B", "2.B"} | ({"0.A", "2.A"} if server.strategy.train_A else set())
        assert trained == both
    without = names["server"]("ffa", 0.0, 0.5, 0)
    assert (without.max_norm, without.noise_multiplier) == (1.0, None)
