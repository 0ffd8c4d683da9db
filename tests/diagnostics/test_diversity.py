"""How far draws lie apart, against sums written out."""

import math

import numpy as np
import pytest
import torch

from pyro_ext.diagnostics.diversity import (
    consecutive_distances,
    pairwise_kl,
    path_values,
    weight_singular_values,
)


def test_divergences_are_the_sums():
    generator = torch.Generator().manual_seed(0)
    p = torch.randn(4, 7, 3, generator=generator, dtype=torch.float64).softmax(-1)
    found = pairwise_kl(p)
    for s in range(4):
        for t in range(4):
            wanted = (p[s] * (p[s] / p[t]).log()).sum(-1).mean()
            assert float(found[s, t]) == pytest.approx(float(wanted), abs=1e-14)


def test_divergences_of_many_points():
    p = torch.randn(3, 10_000, 2, generator=torch.Generator().manual_seed(0)).softmax(-1)
    doubles = p.double()
    wanted = (doubles[0] * (doubles[0] / doubles[2]).log()).sum(-1).mean()
    torch.testing.assert_close(pairwise_kl(p)[0, 2], wanted)
    torch.testing.assert_close(pairwise_kl(p.numpy()), pairwise_kl(p))


def test_divergences_where_classes_are_excluded():
    p = torch.tensor([[[1.0, 0.0]], [[0.5, 0.5]], [[1.0, 0.0]]])
    found = pairwise_kl(p)
    assert found[0].tolist() == [0.0, pytest.approx(math.log(2.0)), 0.0]
    assert found[1].tolist() == [math.inf, 0.0, math.inf]


def test_distances_over_all_sites():
    generator = torch.Generator().manual_seed(1)
    samples = {
        "a": torch.randn(2, 5, 3, generator=generator),
        "b": torch.randn(2, 5, generator=generator, dtype=torch.float64).numpy(),
    }
    found = consecutive_distances(samples)
    flat = np.concatenate([samples["a"].double().numpy(), samples["b"][..., None]], -1)
    wanted = np.sqrt((np.diff(flat, axis=1) ** 2).sum(-1))
    np.testing.assert_allclose(found.numpy(), wanted, rtol=1e-12)
    norms = np.sqrt((flat[:, :-1] ** 2).sum(-1))
    relative = consecutive_distances(samples, relative=True)
    np.testing.assert_allclose(relative.numpy(), wanted / norms, rtol=1e-12)


def test_values_along_a_path():
    start = {"w": torch.tensor([0.0, 1.0]), "b": torch.tensor(2.0)}
    end = {"w": torch.tensor([4.0, -1.0]), "b": torch.tensor(0.0)}
    points, values = path_values(lambda s: s["w"].sum(-1) * s["b"], start, end, num_points=5)
    t = np.linspace(0.0, 1.0, 5)
    np.testing.assert_allclose(points.numpy(), t)
    np.testing.assert_allclose(values.numpy(), (4.0 * t + 1.0 - 2.0 * t) * (2.0 - 2.0 * t))


def test_singular_values():
    weight = torch.randn(6, 4, 3, generator=torch.Generator().manual_seed(2))
    found = weight_singular_values(weight)
    wanted = np.linalg.svd(weight.double().numpy(), compute_uv=False)
    np.testing.assert_allclose(found.numpy(), wanted, rtol=1e-10)


def test_what_users_may_get_wrong():
    with pytest.raises(ValueError, match="at least two draws"):
        consecutive_distances({"w": torch.zeros(2, 1, 3)})
    with pytest.raises(ValueError, match="samples\\['b'\\] must have the chains and draws"):
        consecutive_distances({"a": torch.zeros(2, 3), "b": torch.zeros(2, 4)})
    ends = {"w": torch.zeros(2)}
    with pytest.raises(ValueError, match="function must return the shape"):
        path_values(lambda s: s["w"], ends, ends)
