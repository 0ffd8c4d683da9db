"""The page on soft equivariance: its fits against limits, and in full its claims."""

import pytest
import torch

from pyro_ext.groups import TensorRep

PAGE = "soft-equivariance"
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("float64")]


@pytest.fixture
def points(names):
    return names, *names["inertia"](30, torch.Generator().manual_seed(3), 0.5)


def test_fits_are_those_of_the_normal_equations(points):
    """The gradient of mean squares, decay and penalties vanishes."""
    names, x, y = points
    planes, projectors = names["PLANES"], names["projectors"]
    strengths = dict(zip(planes, (1.0, 0.3, 0.0), strict=True))
    weight = names["fit"](x, y, strengths).requires_grad_()
    loss = (x @ weight.T - y).square().mean() + 5e-4 * weight.square().sum()
    for plane, strength in strengths.items():
        loss = loss + strength * projectors[plane].residual(weight)
    (gradient,) = torch.autograd.grad(loss, weight)
    assert float(gradient.abs().max()) < 1e-10


def test_limits_are_ridge_and_hard_constraints(points):
    names, x, y = points
    free = names["fit"](x, y, {})
    gram = x.T @ x + 1e-3 * len(x) * 9 / 2 * torch.eye(45)
    torch.testing.assert_close(free, torch.linalg.solve(gram, x.T @ y).T)
    hard = names["fit"](x, y, {names["WHOLE"]: names["HARD"]})
    assert float(names["projectors"][names["WHOLE"]].residual(hard)) < 1e-9
    # Within the constraint: coefficients of an orthonormal basis of equivariant weights.
    projector = names["projectors"][names["WHOLE"]]
    flat = projector.project(torch.eye(405).unflatten(-1, (9, 45))).flatten(1)
    basis = torch.linalg.eigh(flat).eigenvectors[:, -15:]
    inputs = torch.kron(torch.eye(9), x) @ basis
    decay = 1e-3 * len(x) * 9 / 2 * torch.eye(15)
    exact = basis @ torch.linalg.solve(inputs.T @ inputs + decay, inputs.T @ y.T.flatten())
    torch.testing.assert_close(hard.flatten(), exact, atol=1e-5, rtol=0)


def test_targets_keep_the_plane_alone(names):
    """The true map is equivariant under the group of the plane xy, and no other candidate."""
    x, y = names["inertia"](200, torch.Generator().manual_seed(0), 0.0)
    weight = (torch.linalg.pinv(x, rtol=1e-10) @ y).T  # the shortest, as features are symmetric
    residuals = {str(g): float(p.residual(weight)) for g, p in names["projectors"].items()}
    assert residuals.pop("O(2) in xy") < 1e-20 and min(residuals.values()) > 0.05
    assert names["REP_IN"] == TensorRep({2: 5})
