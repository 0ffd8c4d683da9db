"""Divergences against the closed forms of the location model, and their gradients."""

from functools import partial
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import NUTS, SVI
from torch import Tensor

from pyro_ext.inference.pseudocoresets import (
    AutoPseudocoreset,
    Coreset,
    Divergence,
    ForwardKL,
    GaussianSurrogate,
    MCMCSurrogate,
    ReverseKL,
    Wasserstein,
    forward_kl_loss,
    reverse_kl_loss,
)
from tests.inference.models import assert_mean
from tests.inference.pseudocoresets.coreset_models import (
    FITS_ARE_SHORT,
    gamma,
    labeled,
    location,
    location_answers,
    logistic,
    points,
)

pytestmark = [pytest.mark.usefixtures("float64"), FITS_ARE_SHORT]

ALL = [ForwardKL, ReverseKL, Wasserstein]


def value_and_gradients(divergence: Divergence, guide: AutoPseudocoreset) -> tuple[float, Any]:
    coreset = guide.coreset()
    parts = [*coreset.rows, coreset.weights]
    fixed = [part.detach().clone() for part in parts]
    leaves = [part.requires_grad_(part.is_floating_point()) for part in fixed]
    loss = divergence.surrogate.compare(divergence, guide, Coreset(tuple(leaves[:-1]), leaves[-1]))
    return float(loss.detach()), torch.autograd.grad(loss, leaves)


def location_guide(**options: Any) -> tuple[Tensor, AutoPseudocoreset]:
    x = points()
    return x, AutoPseudocoreset(
        location, x, **{"size": 5, "seed": 0, "weights": "uniform", **options}
    )


# Closed forms of the location model --------------------------------------------------------------


def test_gradients_of_location_model() -> None:
    """Self-checks 1, 2 and 3 of the spec, without weights."""
    x, guide = location_guide()
    (u,) = guide.pseudodata
    n, m = len(x), len(u)
    (mean_x, var_x), (mean_u, var_u) = location_answers(x), location_answers(u)
    gap = mean_u - mean_x
    expected = {
        ForwardKL: gap,
        ReverseKL: (n + 1) / (m + 1) * gap,
        Wasserstein: 2.0 * gap / (m + 1),
    }
    for divergence, gradient in expected.items():
        _, (rows, _) = value_and_gradients(divergence(), guide)
        torch.testing.assert_close(rows, gradient.expand(m, 2), rtol=1e-8, atol=1e-10)
    distance, _ = value_and_gradients(Wasserstein(), guide)
    roots = var_x.sqrt() - var_u.sqrt()
    assert distance == pytest.approx(float(gap.square().sum() + 2 * roots.square()), rel=1e-8)


@pytest.mark.parametrize("divergence", ALL)
def test_zero_where_moments_agree(divergence: Any) -> None:
    """Self-check 4: all divergences vanish where weights and weighted sums agree."""
    x = points()

    def init(size: int, rows: Tensor) -> Tensor:
        return rows[:size] - rows[:size].mean(0) + rows.mean(0)

    guide = AutoPseudocoreset(location, x, size=5, weights="scaled", init=init, seed=0)
    value, (rows, weights) = value_and_gradients(divergence(), guide)
    assert value == pytest.approx(0.0, abs=1e-10)
    torch.testing.assert_close(rows, torch.zeros(5, 2), rtol=0, atol=1e-7)
    torch.testing.assert_close(weights, torch.zeros(5), rtol=0, atol=1e-7)


# Gradients of other models -----------------------------------------------------------------------


@pytest.mark.parametrize("divergence", ALL)
@pytest.mark.parametrize("model", [logistic, gamma])
def test_gradient_by_differences(model: Any, divergence: Any) -> None:
    """Of Laplace approximations: modes and curvatures move with rows and weights."""
    x, y = labeled()
    if model is gamma:
        x, y = x[:, 0], y + 0.5 + x[:, 1].square()
    guide = AutoPseudocoreset(model, x, y, size=12, weights="scaled", seed=0)
    loss = divergence()
    _, gradients = value_and_gradients(loss, guide)
    generator = torch.Generator().manual_seed(3)
    coreset = [*guide.pseudodata, guide.weights]
    directions = [torch.randn(part.shape, generator=generator) for part in coreset]

    def along(length: float) -> float:
        moved = [a + length * b for a, b in zip(coreset, directions, strict=True)]
        other = Coreset(tuple(moved[:-1]), moved[-1])
        return float(loss.surrogate.compare(loss, guide, other).detach())

    numeric = (along(1e-5) - along(-1e-5)) / 2e-5
    exact = sum(float((g * b).sum()) for g, b in zip(gradients, directions, strict=True))
    assert exact == pytest.approx(numeric, rel=1e-5)


def test_mode_in_unconstrained_space() -> None:
    """The Gaussian sits at the mode of the density with its Jacobian, as Potential has it."""
    x, y = labeled()
    y = 0.5 + x[:, 1].square()
    guide = AutoPseudocoreset(gamma, x[:, 0], y, size=12, seed=0)
    mean, covariance = GaussianSurrogate().data_gaussian(guide)
    potential = guide.data.posterior.potential
    _, gradient = potential.value_and_grad(potential.layout.unflatten(mean[None]))
    assert float(potential.layout.flatten(gradient).abs().max()) < 1e-6
    hessian = torch.autograd.functional.hessian(
        lambda flat: potential.potential(potential.layout.unflatten(flat)), mean
    )
    torch.testing.assert_close(covariance, hessian.inverse(), rtol=1e-6, atol=1e-9)


def test_blocks_of_data_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = labeled()
    whole = AutoPseudocoreset(logistic, x, y, size=12, seed=0)
    monkeypatch.setattr("pyro_ext.inference.pseudocoresets.posteriors._ROWS_PER_BLOCK", 150)
    parts = AutoPseudocoreset(logistic, x, y, size=12, seed=0)
    assert len(parts.data.blocks) == 3
    flat = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    for one, other in zip(
        parts.data.value_and_gradient(flat), whole.data.value_and_gradient(flat), strict=True
    ):
        torch.testing.assert_close(one, other)
    torch.testing.assert_close(parts.data.hessian(flat[0]), whole.data.hessian(flat[0]))
    likelihood = whole.data.log_likelihood(flat)
    torch.testing.assert_close(parts.data.log_likelihood(flat), likelihood)
    index = torch.arange(400).flip(0)
    torch.testing.assert_close(parts.data.estimate(flat, index), likelihood)
    expected = -torch.nn.functional.binary_cross_entropy_with_logits(
        flat @ x.mT, y.expand(4, -1), reduction="none"
    ).sum(-1)
    torch.testing.assert_close(likelihood, expected)


# Estimators from draws ---------------------------------------------------------------------------


@pytest.mark.statistical
def test_estimators_are_unbiased() -> None:
    """Mean of 3,000 gradients from 5 draws each, 10 numbers of each of two estimators.

    Within 4.5 standard errors: false-alarm rate 2e-4.
    """
    x, guide = location_guide()
    (u,) = guide.pseudodata
    n, m = len(x), len(u)
    (mean_x, var_x), (mean_u, var_u) = location_answers(x), location_answers(u)
    generator = torch.Generator().manual_seed(1)

    def likelihood(rows: Tensor, draws: Tensor) -> Tensor:
        return -0.5 * (rows[None] - draws[:, None]).square().sum((-2, -1))

    gradients: dict[str, list[Tensor]] = {"forward": [], "reverse": []}
    for _ in range(3000):
        of_data = mean_x + var_x.sqrt() * torch.randn(5, 2, generator=generator)
        of_coreset = mean_u + var_u.sqrt() * torch.randn(5, 2, generator=generator)
        leaf = u.clone().requires_grad_()
        forward = forward_kl_loss(likelihood(leaf, of_data), likelihood(leaf, of_coreset))
        gradients["forward"].append(torch.autograd.grad(forward, leaf)[0])
        reverse = reverse_kl_loss(likelihood(x, of_coreset), likelihood(leaf, of_coreset))
        gradients["reverse"].append(torch.autograd.grad(reverse, leaf)[0])
    gap = (mean_u - mean_x).expand(m, 2)
    for name, expected in (("forward", gap), ("reverse", (n + 1) / (m + 1) * gap)):
        assert_mean(torch.stack(gradients[name]), expected)


def test_reverse_estimator_is_centered() -> None:
    """Self-check 9 of the spec: constants change nothing, and one draw gives no update."""
    generator = torch.Generator().manual_seed(0)
    of_data = torch.randn(7, generator=generator)
    of_coreset = torch.randn(7, generator=generator).requires_grad_()
    (plain,) = torch.autograd.grad(reverse_kl_loss(of_data, of_coreset), of_coreset)
    (moved,) = torch.autograd.grad(reverse_kl_loss(of_data + 5.0, of_coreset), of_coreset)
    torch.testing.assert_close(plain, moved)
    (single,) = torch.autograd.grad(reverse_kl_loss(of_data[:1], of_coreset[:1]), of_coreset)
    assert not bool(single.any())


def test_gradient_matching() -> None:
    """Self-check 10 of the spec, with points whose first three moments are Gaussian.

    The error relative to the gradient of half the squared gap of gradients falls with the square of
    the spread.
    """
    x, y = labeled()
    guide = AutoPseudocoreset(logistic, x, y, size=10, seed=0)
    center = torch.tensor([0.3, -0.2, 0.1])
    u, labels = guide.pseudodata

    def slopes(rows: Tensor, targets: Tensor) -> Tensor:
        return ((targets - (rows @ center).sigmoid())[:, None] * rows).sum(0)

    leaf = u.clone().requires_grad_()
    gap = slopes(x, y) - slopes(leaf, labels)
    (expected,) = torch.autograd.grad(0.5 * gap.square().sum(), leaf)
    signs = torch.cat([torch.eye(3), -torch.eye(3)]) * 3.0**0.5
    errors = []
    for spread in (0.1, 0.05):
        draws = center + spread * signs
        own = guide.posterior.log_likelihood(draws, Coreset((leaf, labels), torch.ones(10)))
        loss = reverse_kl_loss(guide.data.log_likelihood(draws), own) * 5.0 / 6.0
        (found,) = torch.autograd.grad(loss, leaf)
        errors.append(float((found / spread**2 - expected).norm() / expected.norm()))
    assert errors[1] < 0.05
    assert errors[0] / errors[1] == pytest.approx(4.0, rel=0.2)


@pytest.mark.slow
@pytest.mark.statistical
def test_draws_of_the_surrogate() -> None:
    """Means and variances of 4,000 chains of each posterior, within 4.5 standard errors.

    Eight numbers: false-alarm rate 6e-5.
    """
    x, guide = location_guide(weights="scaled", size=10)
    surrogate = MCMCSurrogate(num_samples=4000, warmup_steps=5)
    torch.manual_seed(0)
    coreset = Coreset(guide.pseudodata, guide.weights)
    shifted = Coreset((guide.pseudodata[0] + 1.0,), guide.weights / 4.0)
    answers = [
        (surrogate.data_draws(guide), location_answers(x)),
        (surrogate.coreset_draws(guide, coreset), location_answers(*coreset.rows, coreset.weights)),
    ]
    for draws, (mean, variance) in answers:
        error = (variance / 4000) ** 0.5
        assert float((draws.mean(0) - mean).abs().max()) < 4.5 * error
        error = variance * (2.0 / 3999) ** 0.5
        assert float((draws.var(0) - variance).abs().max()) < 4.5 * error
    # Chains that start at another posterior get to theirs.
    for _ in range(6):
        draws = surrogate.coreset_draws(guide, shifted)
    mean, variance = location_answers(*shifted.rows, shifted.weights)
    assert float((draws.mean(0) - mean).abs().max()) < 4.5 * (variance / 4000) ** 0.5


@pytest.mark.slow
@pytest.mark.parametrize("divergence", [ForwardKL, ReverseKL])
def test_fit_from_draws(divergence: Any) -> None:
    """Learning from draws brings the exact divergence down to a tenth."""
    _, guide = location_guide(weights="scaled")
    exact = divergence()
    before = exact.loss(location, guide)
    surrogate = MCMCSurrogate(num_samples=32, batch_size=25)
    optimizer = partial(torch.optim.Adam, lr=0.01)
    guide.fit(divergence(surrogate), 100, optimizer=optimizer, seed=0, progress=False)
    assert exact.loss(location, guide) < 0.1 * before


@pytest.mark.parametrize("given", [False, True])
def test_fit_by_a_kernel(given: bool) -> None:
    x, guide = location_guide()
    mean, variance = location_answers(x)
    samples = {"mean": mean + variance.sqrt() * torch.randn(15, 2)} if given else None
    kernel = partial(NUTS, step_size=0.3, adapt_step_size=False)
    surrogate = MCMCSurrogate(kernel, 15, warmup_steps=2, data_samples=samples)
    before = guide.pseudodata[0]
    guide.fit(ReverseKL(surrogate), 2, seed=0, progress=False)
    assert len(guide.losses) == 2
    assert not torch.equal(before, guide.pseudodata[0])
    if samples is not None:
        torch.testing.assert_close(surrogate.data_draws(guide), samples["mean"])


# Under SVI ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("divergence", ALL)
def test_svi(divergence: Any) -> None:
    x, guide = location_guide(weights="learned")
    svi = SVI(location, guide, pyro.optim.Adam({"lr": 0.05}), loss=divergence())
    losses = [svi.step(x) for _ in range(100)]
    assert losses[-1] < 0.05 * losses[0]
    names = set(pyro.get_param_store().keys())
    assert names == {"AutoPseudocoreset.pseudo_x", "AutoPseudocoreset.coreset_weights"}
    assert svi.evaluate_loss(x) == pytest.approx(divergence().loss(location, guide), rel=1e-6)
    stored = pyro.param("AutoPseudocoreset.pseudo_x").detach()
    torch.testing.assert_close(stored, guide.pseudodata[0])


def test_svi_takes_the_steps_of_fit() -> None:
    x, guide = location_guide()
    _, other = location_guide()
    svi = SVI(location, guide, pyro.optim.Adam({"lr": 0.05}), loss=ForwardKL())
    losses = [svi.step(x) for _ in range(5)]
    other.fit(ForwardKL(), 5, optimizer=partial(torch.optim.Adam, lr=0.05), progress=False)
    assert losses == pytest.approx(other.losses)
    third = location_guide()[1]
    third.fit(ForwardKL(), 5, optimizer=pyro.optim.Adam({"lr": 0.05}), progress=False)
    assert losses == pytest.approx(third.losses)


# Errors ------------------------------------------------------------------------------------------


def test_errors() -> None:
    x, guide = location_guide()
    with pytest.raises(ValueError, match="TrajectorySurrogate for Wasserstein"):
        Wasserstein(MCMCSurrogate())
    with pytest.raises(TypeError, match="guide must be an AutoPseudocoreset"):
        ForwardKL().loss(location, lambda: None)
    with pytest.raises(ValueError, match="model must be that of the guide"):
        ForwardKL().loss(logistic, guide)
    with pytest.raises(ValueError, match="args must be those that the guide was made with"):
        ForwardKL().loss(location, guide, x + 1.0)
    assert ForwardKL().loss(location, guide, x.clone()) > 0
    SVI(location, guide, pyro.optim.Adam({"lr": 0.1}), loss=ForwardKL()).step(x)
    _, other = location_guide()
    with pytest.raises(ValueError, match="pyro.clear_param_store"):
        SVI(location, other, pyro.optim.Adam({"lr": 0.1}), loss=ForwardKL()).step(x)


def test_posterior_without_a_gaussian() -> None:
    def idle(x: Tensor) -> None:
        real = torch.distributions.constraints.real
        pyro.sample("idle", dist.ImproperUniform(real, (), ()))
        location(x)

    guide = AutoPseudocoreset(idle, points(), size=3, seed=0)
    with pytest.raises(ValueError, match="no Gaussian near its mode"):
        ForwardKL().loss(idle, guide)
