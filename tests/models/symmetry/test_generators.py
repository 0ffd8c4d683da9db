"""Learning generators: losses with known values, validity of images, a field that is known."""

import math
from contextlib import nullcontext
from functools import partial

import pytest
import torch
from torch import nn

from pyro_ext.checkpoint import CheckpointError
from pyro_ext.inference.training import ShuffledBatches, TrainingWarning
from pyro_ext.models.symmetry import (
    AffineField,
    GeneratorField,
    GeneratorLoss,
    feature_weights,
    image_grid,
    inner_products,
    lipschitz_loss,
    ortho_loss,
    sobolev_loss,
    train_generators,
    validity_images,
    validity_images_tangent,
    validity_scores,
    warp_images,
)


def flat(x):
    return x.flatten(1)


def blobs(num=4, size=12):
    """Smooth images."""
    torch.manual_seed(0)
    center = 0.5 * torch.rand(num, 1, 1, 2) - 0.25
    distance = (image_grid(size, size) - center).square().sum(-1)
    return (-distance / 0.1).exp()[:, None]


def test_ortho_loss_of_orthogonal_and_of_equal_fields(float64):
    grid = image_grid(8, 8)
    rotation = torch.stack([-grid[..., 1], grid[..., 0]], -1)
    assert float(ortho_loss(torch.stack([rotation, 3 * grid]))) == pytest.approx(0, abs=1e-12)
    expected = math.pi / 2 - math.acos(1 - 1e-6)
    assert float(ortho_loss(torch.stack([rotation, -2 * rotation]))) == pytest.approx(expected)
    assert float(ortho_loss(torch.stack([rotation] * 3))) == pytest.approx(3 * expected)


def test_ortho_loss_moves_later_fields_alone(float64):
    values = torch.randn(3, 5, 2, requires_grad=True)
    (gradient,) = torch.autograd.grad(ortho_loss(values), values)
    assert bool((gradient[0] == 0).all()) and bool((gradient[1:] != 0).any())
    pair = values[1:].detach().requires_grad_()
    alone = torch.autograd.grad(ortho_loss(pair), pair)[0]
    assert bool((alone[0] == 0).all())

    def of_last(last):
        return ortho_loss(torch.cat([values[:2].detach(), last[None]]))

    assert torch.autograd.gradcheck(of_last, values[2].detach().requires_grad_())
    weights = torch.rand(5)
    gram = inner_products(values[:2].detach(), weights)
    cosine = gram[0, 1].abs() / (gram[0, 0] * gram[1, 1]).sqrt()
    torch.testing.assert_close(
        ortho_loss(values[:2].detach(), weights), math.pi / 2 - cosine.acos()
    )


def test_lipschitz_loss(float64):
    values = torch.zeros(2, 3, 4, 2)
    values[0, 1, 2] = torch.tensor([3.0, 4.0])  # four neighbors that differ by 5, one at no edge
    assert float(lipschitz_loss(values, 0.5)) == pytest.approx(4 * 4.5)
    assert float(lipschitz_loss(values, 0.5, grid_dim=1)) == pytest.approx(2 * 4.5)
    points = torch.stack(
        torch.meshgrid(2.0 * torch.arange(3), torch.arange(4.0), indexing="ij"), -1
    )
    found = lipschitz_loss(values, 0.5, points=points)
    assert float(found) == pytest.approx(2 * (2.5 - 0.5) / 8 + 2 * (5 - 0.5) / 9)


def test_neighbors_at_one_place_do_not_count(float64):
    values = torch.tensor([0.0, 1.0, 5.0])[None, :, None].requires_grad_()
    points = torch.tensor([[0.0], [0.0], [2.0]])
    loss = lipschitz_loss(values, 0.5, points=points)
    assert float(loss.detach()) == pytest.approx(1.5)
    assert torch.autograd.grad(loss, values)[0].isfinite().all()
    assert float(lipschitz_loss(values.detach(), points=torch.zeros(3, 1))) == 0


def test_units_of_fields_do_not_matter():
    values = torch.randn(3, 5, 2, generator=torch.Generator().manual_seed(0))
    for scale in (1e-18, 1e18, torch.tensor([1e-25, 1.0, 1e25])[:, None, None]):
        torch.testing.assert_close(ortho_loss(scale * values), ortho_loss(values))
    weights = torch.arange(5)
    torch.testing.assert_close(ortho_loss(values, weights), ortho_loss(values, weights.float()))


def test_a_checkpoint_knows_points_and_weights(tmp_path):
    train = partial(
        train_generators, validity=lambda moved: moved.mean((1, 2)), num_steps=1, seed=0,
        checkpoint=tmp_path / "f", progress=False,
    )  # fmt: skip
    points = torch.randn(6, 2)
    train(GeneratorField(2, 2, 4, 4), points=points, weights=torch.ones(6, dtype=torch.float64))
    for other in (dict(points=points), dict(points=points + 1, weights=torch.ones(6))):
        with pytest.raises(CheckpointError, match="data"):
            train(GeneratorField(2, 2, 4, 4), **other)
    with pytest.raises(ValueError, match="points must have the shape"):
        train(GeneratorField(2, 1, 4, 4), points=points[0], checkpoint=None)


def test_sobolev_loss(float64):
    angle = torch.arange(16)[None, :, None] * 2 * math.pi / 16
    amplitude = 0.25 * (9 * (2 * angle.cos()) ** 0).mean()  # |V_2|^2 / 9 frequencies
    expected = math.log(((1 + 4) ** 2 - 1) * float(amplitude) / 81)
    assert float(sobolev_loss((2 * angle).cos())) == pytest.approx(expected)


def test_warped_images(float64):
    images, grid = blobs(), image_grid(12, 12)
    torch.testing.assert_close(warp_images(images, grid), images)
    both = warp_images(images, torch.stack([grid, grid * torch.tensor([-1.0, 1.0])]))
    torch.testing.assert_close(both[1], images.flip(-1))
    assert both.shape == (2, 4, 1, 12, 12)


def test_validity_of_images(float64):
    images, grid = blobs(), image_grid(12, 12)
    scores = validity_images(flat, images, torch.stack([grid, grid + 0.1, grid + 0.4]))
    assert float(scores[0]) == pytest.approx(math.acos(1 - 1e-6))
    assert scores[0] < scores[1] < scores[2]
    other = warp_images(images, grid + 0.4).flatten(1)
    cosine = nn.functional.cosine_similarity(images.flatten(1), other)
    torch.testing.assert_close(scores[2], cosine.acos().mean())


def test_tangent_validity_is_the_derivative(float64):
    images, grid = blobs(1, size=60), image_grid(60, 60)
    fields = AffineField(2)(grid).movedim(-2, 0)
    found = validity_images_tangent(flat, images, fields)
    h = 0.01  # smaller than a pixel, and angles are above what they are clamped to
    slope = (validity_images(flat, images, grid + h * fields) / h).square().log()
    torch.testing.assert_close(found, slope, atol=0.2, rtol=0)


def test_weights_are_where_there_is_something(float64):
    images = torch.zeros(3, 1, 16, 16)
    images[..., 4:9, 4:9] = torch.rand(3, 1, 5, 5)
    weights = feature_weights(flat, images, 300, seed=0)
    assert float(weights.mean()) == pytest.approx(1)
    assert weights[6, 6] > 100 * weights[14, 14]


@pytest.mark.parametrize("flow_steps", [0, 2])
def test_training_of_images(flow_steps):
    """It goes on from a checkpoint's seed alike, and weights, threshold and batches reach it."""
    images, grid = blobs(16), image_grid(12, 12)
    batches = ShuffledBatches(images, batch_size=4)
    score = validity_images if flow_steps else validity_images_tangent
    found = []
    for _ in range(2):
        torch.manual_seed(1)
        field = GeneratorField(2, 2, 8, 4)
        losses = train_generators(
            field,
            lambda moved, x: score(flat, x, moved),
            5,
            batches,
            points=grid,
            weights=torch.rand(12, 12, generator=torch.Generator().manual_seed(0)),
            loss=GeneratorLoss(flow_steps=flow_steps),
            seed=3,
            progress=False,
        )
        found.append((losses, field(grid)))
    assert found[0][0] == found[1][0] and torch.equal(found[0][1], found[1][1])


def test_scores_of_known_fields(float64):
    """Of a rotation there is none; of a translation it is what its flow does."""
    points = torch.randn(50, 2)
    size = points.norm(dim=-1)

    def validity(moved):
        return (moved.norm(dim=-1) - size).abs().mean(-1)

    affine = AffineField(2)
    scores = validity_scores(affine, validity, points, num_times=4, flow_steps=20)
    times = torch.tensor([-0.3, -0.1, 0.1, 0.3])
    expected = [validity((points + torch.tensor([t, 0.0]))[None]) for t in times]
    torch.testing.assert_close(scores[0], torch.cat(expected).mean())

    class Rotation(AffineField):
        def __init__(self):
            super().__init__(2)
            self.n, self.maps = 1, torch.tensor([[[0.0, -1, 0], [1, 0, 0]]])

    assert float(validity_scores(Rotation(), validity, points, flow_steps=20)) < 1e-6


def test_a_field_that_is_no_symmetry_is_warned_of():
    """Neighbors in the list of scattered points are far apart, and hold a field constant."""
    points = 2 * torch.rand(40, 2, generator=torch.Generator().manual_seed(0)) - 1
    radius = points.norm(dim=-1)
    sines = []
    for lipschitz in (10.0, 0.0):
        torch.manual_seed(2)
        field = GeneratorField(2, 1, 32)
        with pytest.warns(TrainingWarning, match="lipschitz=0") if lipschitz else nullcontext():
            train_generators(
                field,
                lambda moved: (moved.norm(dim=-1) - radius).abs().mean(-1),
                100,
                points=points,
                loss=GeneratorLoss(flow_steps=2, lipschitz=lipschitz),
                optimizer=partial(torch.optim.Adam, lr=5e-3),
                seed=1,
                progress=False,
            )
        value = field(points)[:, 0].detach()
        sine = (value * points).sum(-1).abs() / (value.norm(dim=-1) * radius)
        sines.append(float(sine.mean()))
    assert sines[0] > 0.4 and sines[1] < 0.2


def test_wrong_functions_are_named():
    grid = image_grid(4, 4)
    with pytest.raises(ValueError, match=r"validity must give a tensor of the shape \(2,\)"):
        train_generators(
            GeneratorField(2, 2, 8, 4), lambda moved: moved.sum(), 1, points=grid, progress=False
        )
    with pytest.raises(ValueError, match=r"features must give the shape \(batch, num_features\)"):
        validity_images(lambda x: x, torch.rand(2, 1, 4, 4), grid[None])
    with pytest.raises(ValueError, match="images must have two rows and columns"):
        validity_images_tangent(flat, torch.rand(2, 1, 1, 4), torch.rand(1, 1, 4, 2))
