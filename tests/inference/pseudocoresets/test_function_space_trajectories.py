"""Snapshots of descents: which ones, from where, and that no gradient goes through them."""

from typing import Any

import pytest
import torch
from torch import Tensor

from pyro_ext.inference.pseudocoresets import AutoPseudocoreset, ExpertBuffer, TrajectorySnapshots
from tests.inference.pseudocoresets.function_space_helpers import Classifier, classes

pytestmark = pytest.mark.usefixtures("float64")


def made(num_epochs: int = 4) -> tuple[AutoPseudocoreset, ExpertBuffer]:
    x, y = classes()
    model = Classifier([5])
    guide = AutoPseudocoreset(model, x, y, size=8, weights="scaled", seed=0)
    buffer = ExpertBuffer.collect(
        model, x, y, num_experts=3, num_epochs=num_epochs, batch_size=20, seed=0, progress=False
    )
    return guide, buffer


def descent(guide: AutoPseudocoreset, start: Tensor, num_steps: int, rate: float) -> list[Tensor]:
    """Steps down the mean loss of the coreset by hand, with the start; all weights are equal."""
    x, y = guide.pseudodata
    layout, network = guide.posterior.layout, guide.model.network.module
    path = [start]
    for _ in range(num_steps):
        leaf = path[-1].clone().requires_grad_()
        logits = torch.func.functional_call(network, layout.unflatten(leaf), (x,))
        loss = torch.nn.functional.cross_entropy(logits, y)
        (gradient,) = torch.autograd.grad(loss, leaf)
        path.append((leaf - rate * gradient).detach())
    return path


def test_snapshots_of_the_coreset() -> None:
    """The last one is at the end, the others so many steps before each other."""
    guide, buffer = made()
    settings: Any = {"thinning": 2, "num_steps": 11, "learning_rate": 0.3}
    snapshots = TrajectorySnapshots(buffer, 3, inner="expert", max_start=1, **settings)
    torch.manual_seed(0)
    pair = snapshots.draw(guide, guide.coreset())
    number = [torch.equal(pair.data, expert[-3:]) for expert in buffer.trajectories].index(True)
    path = descent(guide, buffer.trajectories[number, 0], 11, 0.3)
    torch.testing.assert_close(pair.coreset, torch.stack([path[7], path[9], path[11]]))
    assert not pair.coreset.requires_grad and guide.coreset().rows[0].requires_grad
    # One snapshot is at the end, too.
    single = TrajectorySnapshots(buffer, 1, inner="expert", max_start=1, **settings)
    torch.manual_seed(0)
    torch.testing.assert_close(single.draw(guide, guide.coreset()).coreset, path[11][None])


@pytest.mark.statistical
def test_starts() -> None:
    """Fresh ones are new each time, by the strategy; those of experts are early checkpoints.

    The deviation of 1,760 numbers is within six standard errors, and 80 picks miss none of six
    starts: false-alarm rate 3e-6.
    """
    guide, buffer = made()
    coreset = guide.coreset()

    def first_steps(number: int = 40, **options: Any) -> Tensor:
        snapshots = TrajectorySnapshots(buffer, 1, num_steps=1, learning_rate=1e-9, **options)
        torch.manual_seed(0)
        return torch.cat([snapshots.draw(guide, coreset).coreset for _ in range(number)])

    fresh = first_steps()
    assert len(fresh.unique(dim=0)) == 40
    assert float(fresh.std()) == pytest.approx(0.7, rel=0.1)  # the scale of the prior
    torch.testing.assert_close(fresh, first_steps())
    zeros = first_steps(init_strategy=lambda site: torch.zeros(site["fn"].shape()))
    torch.testing.assert_close(zeros, torch.zeros_like(zeros), rtol=0, atol=1e-8)
    starts = first_steps(80, inner="expert", max_start=2)
    early = buffer.trajectories[:, :2].flatten(0, 1)
    distances = torch.cdist(starts, early)
    assert float(distances.amin(1).max()) < 1e-7
    assert len(distances.argmin(1).unique()) == 6


def test_errors() -> None:
    _, buffer = made()
    with pytest.raises(ValueError, match="num_snapshots must be at most the 4 epochs .* got 5"):
        TrajectorySnapshots(buffer)
    with pytest.raises(ValueError, match="max_start must be at most the 4 epochs .* got 5"):
        TrajectorySnapshots(buffer, 3, inner="expert")
    x, y = classes()
    other = AutoPseudocoreset(Classifier([6]), x, y, size=8, seed=0)
    with pytest.raises(ValueError, match="buffer must hold experts of the sites"):
        TrajectorySnapshots(buffer, 3).draw(other, other.coreset())
    assert "inner='fresh'" in repr(TrajectorySnapshots(buffer, 3))
