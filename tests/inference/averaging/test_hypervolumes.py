"""Hypervolumes and their expected improvement: exact numbers, draws, and BoTorch's volumes."""

import pytest
import torch

from pyro_ext.inference.averaging import expected_hypervolume_improvement, hypervolume, pareto_mask

pytestmark = pytest.mark.usefixtures("float64")
FRONT = ((0.3, 0.8), (0.6, 0.5), (0.9, 0.1))
ORIGIN = torch.zeros(2)


def test_noted_volumes():
    front = torch.tensor(FRONT)
    assert float(hypervolume(front, ORIGIN)) == pytest.approx(0.24 + 0.15 + 0.03)
    for more, volume in (((0.5, 0.4), 0.42), ((-3.0, 5.0), 0.42), ((1.0, 1.0), 1.0)):
        points = torch.cat([front, torch.tensor([more])])
        assert float(hypervolume(points, ORIGIN)) == pytest.approx(volume)
    assert float(hypervolume(front - 2.0, ORIGIN)) == 0.0
    assert float(hypervolume(torch.tensor([[0.3], [0.7]]), torch.tensor([0.2]))) == pytest.approx(
        0.5
    )


def test_noted_improvement():
    mean, sd = torch.tensor([0.7, 0.6]), torch.tensor([0.2, 0.15])
    front = torch.tensor(FRONT)
    found = expected_hypervolume_improvement(mean, sd, front, ORIGIN)
    assert float(found) == pytest.approx(0.105501, abs=5e-7)
    for shrunk in (1e-3, 1e-9, 0.0):
        found = expected_hypervolume_improvement(mean, sd * shrunk, front, ORIGIN)
        assert float(found) == pytest.approx(0.08, abs=1e-6)


def test_improvement_is_that_of_draws():
    """Points at random, some of them dominated or below the reference; 1e-9 by six sd."""
    generator = torch.Generator().manual_seed(0)
    points = torch.rand(6, 2, generator=generator)
    reference = torch.tensor([0.3, 0.2])
    mean, sd = torch.rand(5, 2, generator=generator), 0.3 * torch.rand(5, 2, generator=generator)
    found = expected_hypervolume_improvement(mean, sd, points, reference)
    draws = mean + sd * torch.randn(20_000, 5, 2, generator=generator)
    several = torch.cat([points.expand(*draws.shape[:2], 6, 2), draws[..., None, :]], -2)
    gains = hypervolume(several, reference) - hypervolume(points, reference)
    error = gains.std(0) / len(gains) ** 0.5
    assert bool(((gains.mean(0) - found).abs() < 6.0 * error + 1e-12).all())


def test_improvement_has_gradients():
    mean = torch.tensor([[0.7, 0.6], [0.1, 0.2], [0.3, 0.8]], requires_grad=True)
    sd = torch.tensor([[0.2, 0.15], [0.3, 0.1], [0.1, 0.1]], requires_grad=True)
    front = torch.tensor(FRONT)
    assert torch.autograd.gradcheck(
        lambda m, s: expected_hypervolume_improvement(m, s, front, ORIGIN), (mean, sd)
    )
    known = torch.zeros(3, 2, requires_grad=True)
    expected_hypervolume_improvement(mean, known, front, ORIGIN).sum().backward()
    assert known.grad is not None and bool(known.grad.isfinite().all())


def test_batches_and_single_precision():
    points = torch.rand(3, 4, 7, 3)
    mask, volume = pareto_mask(points), hypervolume(points, torch.full((3,), 0.1))
    for row in range(3):
        for column in range(4):
            one = points[row, column]
            assert torch.equal(mask[row, column], pareto_mask(one))
            of_front = hypervolume(one[pareto_mask(one)], torch.full((3,), 0.1))
            torch.testing.assert_close(volume[row, column], of_front)
    low = hypervolume(points.float(), ORIGIN.new_full((3,), 0.1))
    assert low.dtype == torch.float32
    torch.testing.assert_close(low.double(), volume, rtol=1e-5, atol=1e-5)
    mean = torch.rand(5, 4, 2)
    several = expected_hypervolume_improvement(mean, 0.1 + mean, torch.tensor(FRONT), ORIGIN)
    one = expected_hypervolume_improvement(
        mean[2, 3], 0.1 + mean[2, 3], torch.tensor(FRONT), ORIGIN
    )
    torch.testing.assert_close(several[2, 3], one)


def test_equal_points_and_no_points():
    same = torch.ones(2, 2)
    assert pareto_mask(same).tolist() == [True, True]
    assert float(hypervolume(same, ORIGIN)) == 1.0
    mean, sd = torch.tensor([0.5, -0.2]), torch.tensor([0.1, 0.4])
    found = expected_hypervolume_improvement(mean, sd, torch.empty(0, 2), ORIGIN)
    draws = torch.randn(100_000, 2, generator=torch.Generator().manual_seed(0)) * sd + mean
    assert float(found) == pytest.approx(float(draws.clamp(min=0).prod(-1).mean()), rel=0.02)
    twice = torch.tensor([*FRONT, *FRONT])
    torch.testing.assert_close(
        expected_hypervolume_improvement(mean, sd, twice, ORIGIN),
        expected_hypervolume_improvement(mean, sd, torch.tensor(FRONT), ORIGIN),
    )


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_botorch_has_the_same_volumes():
    """Of two to four objectives."""
    pytest.importorskip("botorch")
    from botorch.utils.multi_objective.hypervolume import Hypervolume
    from botorch.utils.multi_objective.pareto import is_non_dominated

    generator = torch.Generator().manual_seed(1)
    for size in (2, 3, 4):
        points = torch.rand(15, size, generator=generator)
        reference = torch.full((size,), 0.2)
        mask = is_non_dominated(points)
        assert torch.equal(pareto_mask(points), mask)
        theirs = Hypervolume(reference).compute(points[mask])
        assert float(hypervolume(points, reference)) == pytest.approx(theirs)
