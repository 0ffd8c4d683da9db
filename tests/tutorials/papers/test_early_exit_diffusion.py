"""The page on early exit: its parts, a short run, and in full its claims."""

import numpy as np
import pytest
import torch

pytest.importorskip("diffusers")
pytest.importorskip("sklearn")

PAGE = "early-exit-diffusion"
pytestmark = pytest.mark.slow


def test_schedules_of_one_cost(names):
    t = torch.arange(0, 1000, 50)
    depths = {name: one(t) for name, one in names["SCHEDULES"].items()}
    assert depths["early exit"].tolist() == [8] * 4 + [7] * 4 + [6] * 4 + [5] * 4 + [4] * 4
    assert depths["reversed"].tolist() == depths["early exit"].flip(0).tolist()
    assert {name: int(one.sum()) for name, one in depths.items()} == {
        "all blocks": 160,
        "early exit": 120,
        "uniform": 120,
        "reversed": 120,
    }


def test_costs_are_block_calls(names):
    costs = {name: {cost for _, cost in row.values()} for name, row in names["runs"].items()}
    for name, found in costs.items():
        expected = {"all blocks, not tuned": 1, "all blocks, tuned": 1, "all blocks, 15 steps": 0.8}
        assert found == {expected.get(name, 0.75)}  # a short run takes 8 of 10 steps


def test_models_start_from_the_same_noise(names):
    """And one that has all its blocks draws what the pipeline draws without exits."""
    pipeline, seed = names["pipeline"], names["SEEDS"][0]
    pipeline.transformer = names["base"]
    plain = pipeline(
        names["ASKED"].tolist(),
        guidance_scale=2.0,
        num_inference_steps=names["NUM_STEPS"],
        output_type="pt",
        generator=torch.Generator().manual_seed(seed),
    ).images
    assert torch.equal(names["runs"]["all blocks, not tuned"][seed][0], 2 * plain - 1)


def test_frechet_distance_in_closed_form(names):
    """Of images moved and stretched along principal components."""
    distance, images, pca = names["frechet_distance"], names["images"], names["pca"]
    assert distance(images, images) == pytest.approx(0.0, abs=1e-4)
    pixels = images.flatten(1).double().numpy()
    kept = pca.inverse_transform(2.0 * pca.transform(pixels))
    stretched = torch.as_tensor(kept).reshape(images.shape)
    assert distance(images, stretched) == pytest.approx(pca.explained_variance_.sum(), rel=1e-3)
    moved = images + 0.1 * torch.as_tensor(pca.components_[0]).reshape(1, 1, 8, 8)
    assert distance(images, moved) == pytest.approx(0.01, rel=1e-3)


def test_a_tenth_of_images_have_no_class(names):
    x, labels = names["batches"].rows
    assert len(x) == 17970
    assert float((labels == names["NO_CLASS"]).double().mean()) == pytest.approx(0.1)
    has_class = labels != names["NO_CLASS"]
    assert torch.equal(labels[has_class], names["digits"].repeat(9))
    assert np.array_equal(x[:1797], x[1797:3594])


@pytest.mark.page
def test_full_run_meets_its_claims(full_run):
    """But for the last one; why, the page says."""
    *claims, last = full_run.report.claims
    assert all(claim.holds for claim in claims)
    assert last.holds or last.reason
