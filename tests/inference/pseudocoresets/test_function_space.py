"""The divergence in function space: exact gradients, invariances, several architectures."""

from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import NUTS
from torch import Tensor

from pyro_ext.inference.pseudocoresets import (
    AutoPseudocoreset,
    Coreset,
    Divergence,
    ExpertBuffer,
    ForwardKL,
    FunctionSpaceKL,
    FunctionSpaceSurrogate,
    Gaussian,
    GaussianSurrogate,
    MCMCSurrogate,
    ReverseKL,
    TrajectorySnapshots,
    TrajectorySurrogate,
    Wasserstein,
    parameter_distributions,
)
from pyro_ext.inference.training import TrainingDiverged
from tests.inference.models import assert_mean
from tests.inference.pseudocoresets.coreset_models import FITS_ARE_SHORT, labeled, logistic
from tests.inference.pseudocoresets.function_space_helpers import (
    Classifier,
    KnownPosteriors,
    categorical,
    classes,
    use_balanced_noise,
)

pytestmark = [pytest.mark.usefixtures("float64"), FITS_ARE_SHORT]


def loss_and_gradients(divergence: Divergence, guide: AutoPseudocoreset, seed: int = 0) -> Any:
    """Loss, and gradients in rows and weights, with the noise of a seed."""
    coreset = guide.coreset()
    fixed = [part.detach().clone() for part in (*coreset.rows, coreset.weights)]
    leaves = [part.requires_grad_(part.is_floating_point()) for part in fixed]
    torch.manual_seed(seed)
    loss = divergence.surrogate.compare(divergence, guide, Coreset(tuple(leaves[:-1]), leaves[-1]))
    inputs = [leaf for leaf in leaves if leaf.requires_grad]
    return loss.detach(), torch.autograd.grad(loss, inputs)


def slope(x: Tensor, y: Tensor) -> None:
    theta = pyro.sample("theta", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(theta * x, 1.0), obs=y)


def linear(x: Tensor, y: Tensor) -> None:
    weight = pyro.sample("weight", dist.Normal(torch.zeros(x.shape[-1]), 1.0).to_event(1))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(x @ weight, 0.7), obs=y)


def linear_guide(**options: Any) -> AutoPseudocoreset:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(60, 3, generator=generator)
    y = x @ torch.tensor([1.0, -0.5, 0.2]) + 0.7 * torch.randn(60, generator=generator)
    return AutoPseudocoreset(linear, x, y, **{"size": 4, "seed": 0, **options})


def classifier_guide(hidden: int = 5) -> AutoPseudocoreset:
    x, y = classes()
    return AutoPseudocoreset(Classifier([hidden]), x, y, size=8, weights="scaled", seed=0)


def experts_of(guide: AutoPseudocoreset, model: Any = None, num_experts: int = 1) -> ExpertBuffer:
    """Short runs of a classifier, by default of that of the guide."""
    options: Any = {"num_epochs": 3, "batch_size": 20, "seed": 0, "progress": False}
    model = model or guide.model
    return ExpertBuffer.collect(model, *guide.args, num_experts=num_experts, **options)


def of_logits(posteriors: Any, **options: Any) -> FunctionSpaceSurrogate:
    return FunctionSpaceSurrogate(posteriors, function="logits", likelihood=categorical, **options)


# Exact gradients ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["snapshots", "gaussian"])
def test_scalar_example(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Self-check 2 of the spec: 0.8, and 1.0 without the gradient through the variances."""
    use_balanced_noise(monkeypatch)
    x, y = torch.linspace(0.0, 1.0, 10), torch.linspace(0.0, 1.0, 10)
    rows = torch.tensor([2.0]), torch.tensor([1.0])
    init = lambda size, *data: rows  # noqa: E731
    guide = AutoPseudocoreset(slope, x, y, size=1, weights="uniform", init=init, seed=0)
    distributions = []
    for mean, variance in ((1.0, 0.1), (0.5, 0.2)):
        if kind == "gaussian":
            distributions.append(Gaussian(torch.tensor([mean]), torch.tensor([[variance]])))
        else:
            spread = variance**0.5
            distributions.append(torch.tensor([[mean - spread], [mean + spread]]))
    surrogate = FunctionSpaceSurrogate(
        KnownPosteriors(*distributions), mean="average", num_particles=2
    )
    _, (gradient, *_) = loss_and_gradients(FunctionSpaceKL(surrogate), guide)
    torch.testing.assert_close(gradient, torch.tensor([0.8]))


@pytest.mark.parametrize("weights", ["uniform", "scaled"])
def test_gradients_are_those_of_the_divergence_of_weights(
    weights: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A linear model: those of rows, targets and weights, so that all fixed points are the same."""
    use_balanced_noise(monkeypatch)
    guide = linear_guide(weights=weights)
    _, expected = loss_and_gradients(ForwardKL(), guide)
    surrogate = FunctionSpaceSurrogate(GaussianSurrogate(), num_particles=8)
    _, found = loss_and_gradients(FunctionSpaceKL(surrogate), guide)
    assert len(found) == 3 and float(expected[0].abs().max()) > 0.01
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-8)


@pytest.mark.slow
@pytest.mark.statistical
def test_gradient_is_unbiased() -> None:
    """Mean of 1,000 gradients with 5 draws each, within 4.5 standard errors of the closed form.

    Twenty numbers: false-alarm rate 1.4e-4.
    """
    guide = linear_guide()
    _, expected = loss_and_gradients(ForwardKL(), guide)
    distributions = parameter_distributions(GaussianSurrogate(), guide, guide.coreset())
    surrogate = FunctionSpaceSurrogate(KnownPosteriors(*distributions), num_particles=5)
    loss = FunctionSpaceKL(surrogate)
    found = [
        torch.cat([gradient.flatten() for gradient in loss_and_gradients(loss, guide, seed)[1]])
        for seed in range(1000)
    ]
    assert_mean(torch.stack(found), torch.cat([gradient.flatten() for gradient in expected]))


@pytest.mark.parametrize("covariance", ["diagonal", "full", "jacobian"])
def test_zero_where_both_posteriors_are_the_same(
    covariance: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Self-check 3 of the spec, with the same noise for both."""
    use_balanced_noise(monkeypatch)
    guide = classifier_guide()
    draws = torch.randn(5, guide.posterior.layout.size, generator=torch.Generator().manual_seed(0))
    other = torch.randn(5, guide.posterior.layout.size, generator=torch.Generator().manual_seed(1))
    same = FunctionSpaceKL(of_logits(KnownPosteriors(draws, draws), covariance=covariance))
    loss, gradients = loss_and_gradients(same, guide)
    assert float(loss) == 0.0
    for gradient in gradients:
        torch.testing.assert_close(gradient, torch.zeros_like(gradient), rtol=0, atol=1e-12)
    differing = FunctionSpaceKL(of_logits(KnownPosteriors(draws, other), covariance=covariance))
    assert abs(float(loss_and_gradients(differing, guide)[0])) > 0.1


def test_one_snapshot_is_the_deterministic_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    """Self-check 4 of the spec: cross entropy of the data's mode less that of the coreset's."""
    use_balanced_noise(monkeypatch)
    guide = classifier_guide()
    generator = torch.Generator().manual_seed(0)
    ends = torch.randn(2, 1, guide.posterior.layout.size, generator=generator)
    loss, (gradient, _) = loss_and_gradients(
        FunctionSpaceKL(of_logits(KnownPosteriors(ends[0], ends[1]))), guide
    )
    x, y = guide.pseudodata
    leaf = x.clone().requires_grad_()
    network, layout = guide.model.network.module, guide.posterior.layout
    of_data, of_coreset = (
        torch.nn.functional.cross_entropy(
            torch.func.functional_call(network, layout.unflatten(end[0]), (leaf,)),
            y,
            reduction="sum",
        )
        for end in ends
    )
    expected = 10.0 * (of_data - of_coreset)  # each row weighs as much as ten
    torch.testing.assert_close(loss, expected.detach(), rtol=1e-6, atol=1e-6)
    (exact,) = torch.autograd.grad(expected, leaf)
    torch.testing.assert_close(gradient, exact, rtol=1e-5, atol=1e-5)


# Invariance ---------------------------------------------------------------------------------------


def permuted(guide: AutoPseudocoreset, flat: Tensor) -> Tensor:
    """The same function with its hidden units in another order."""
    order = torch.tensor([3, 0, 4, 1, 2])
    values = guide.posterior.layout.unflatten(flat)
    values["0.weight"] = values["0.weight"][..., order, :]
    values["0.bias"] = values["0.bias"][..., order]
    values["2.weight"] = values["2.weight"][..., order]
    return guide.posterior.layout.flatten(values)


@pytest.mark.parametrize("covariance", ["diagonal", "full", "jacobian"])
def test_another_mode_of_the_expert_is_the_same_function(covariance: Any) -> None:
    """Self-check 5 of the spec: hidden units in another order change nothing.

    They do change the Wasserstein distance of latent values.
    """
    guide = classifier_guide()
    buffer = experts_of(guide)
    trajectories = buffer.trajectories.clone()
    trajectories[:, 1:] = permuted(guide, trajectories[:, 1:])
    assert not torch.allclose(trajectories, buffer.trajectories)
    other = ExpertBuffer(trajectories, buffer.shapes, buffer.losses)
    found = []
    for experts in (buffer, other):
        snapshots = TrajectorySnapshots(experts, 3, num_steps=20, inner="expert", max_start=1)
        found.append(
            loss_and_gradients(FunctionSpaceKL(of_logits(snapshots, covariance=covariance)), guide)
        )
    torch.testing.assert_close(*found, rtol=1e-6, atol=1e-6)
    assert float(found[0][1][0].abs().max()) > 1e-3
    distances = [
        Wasserstein(TrajectorySurrogate(experts, 4, 0.05, max_start=1)).loss(guide.model, guide)
        for experts in (buffer, other)
    ]
    assert abs(distances[1] / distances[0] - 1.0) > 0.1


# Several architectures ----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["trajectories", "draws"])
def test_gradients_of_architectures_add_up(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Self-check 7 of the spec."""
    use_balanced_noise(monkeypatch)
    guide = classifier_guide()
    other = Classifier([6, 4], torch.nn.Tanh)
    surrogates = []
    for model in (None, other):
        if kind == "trajectories":
            buffer = experts_of(guide, model)
            zeros = {"init_strategy": lambda site: torch.full(site["fn"].shape(), 0.1)}
            posteriors: Any = TrajectorySnapshots(buffer, 3, **zeros)  # type: ignore[arg-type]
        else:
            size = sum(p.numel() for p in (model or guide.model).network.module.parameters())
            generator = torch.Generator().manual_seed(0)
            posteriors = KnownPosteriors(*torch.randn(2, 4, size, generator=generator))
        surrogates.append(of_logits(posteriors, model=model))
    parts = [loss_and_gradients(FunctionSpaceKL(surrogate), guide) for surrogate in surrogates]
    loss, gradients = loss_and_gradients(FunctionSpaceKL(surrogates), guide)
    torch.testing.assert_close(loss, parts[0][0] + parts[1][0])
    for whole, one, two in zip(gradients, parts[0][1], parts[1][1], strict=True):
        torch.testing.assert_close(whole, one + two)
        assert float(one.abs().max()) > 1e-3 and float(two.abs().max()) > 1e-3
    losses = guide.fit(FunctionSpaceKL(surrogates), 2, seed=0, progress=False).losses
    assert len(losses) == 2


@pytest.mark.parametrize("model", [None, pyro.poutine.scale(linear, scale=0.5)])
def test_kernels_run_on_the_coreset_that_is_given(model: Any) -> None:
    """It may be another one than that which the guide holds."""
    guide = linear_guide(weights="learned")
    seen: list[tuple[Tensor, Tensor]] = []

    def kernel(model: Any) -> NUTS:
        if hasattr(model, "weights"):
            seen.append((model.args[0], model.weights))
        return NUTS(model, step_size=0.3, adapt_step_size=False)

    draws = {"weight": torch.randn(5, 3, generator=torch.Generator().manual_seed(0))}
    posteriors = MCMCSurrogate(kernel, 5, warmup_steps=1, data_samples=draws)
    loss = FunctionSpaceKL(FunctionSpaceSurrogate(posteriors, model=model))
    rows = guide.pseudodata[0] + 1.0
    weights = 2.0 * guide.weights
    loss.surrogate.compare(loss, guide, Coreset((rows, guide.pseudodata[1]), weights))
    assert len(seen) == 1
    torch.testing.assert_close(seen[0], (rows, weights))


# Posteriors that stand for latent values ----------------------------------------------------------


def test_draws_as_snapshots() -> None:
    """Their average is the mean, and each loss has draws of its own."""
    guide = linear_guide()
    surrogate = FunctionSpaceSurrogate(MCMCSurrogate(num_samples=200))
    assert (surrogate.covariance, surrogate.mean) == ("diagonal", "average")
    torch.manual_seed(0)
    coreset = guide.coreset()
    marginals = surrogate.marginals(guide, coreset)
    draws = surrogate.posteriors.data_draws(guide)
    torch.testing.assert_close(marginals.data.mean, coreset.rows[0] @ draws.mean(0))
    losses = guide.fit(FunctionSpaceKL(surrogate), 3, seed=0, progress=False).losses
    assert len(losses) == 3


@pytest.mark.parametrize("covariance", ["diagonal", "full", "jacobian"])
def test_fit_of_a_classifier(covariance: Any) -> None:
    """The same seed gives the same coreset; the labels stay."""
    one, other, before = (classifier_guide() for _ in range(3))
    for guide in (one, other):
        snapshots = TrajectorySnapshots(experts_of(guide, num_experts=2), 3, num_steps=10)
        loss = FunctionSpaceKL(of_logits(snapshots, covariance=covariance))
        guide.fit(loss, 5, seed=3, progress=False)
    torch.testing.assert_close(one.pseudodata, other.pseudodata)
    assert not torch.equal(one.pseudodata[0], before.pseudodata[0])
    assert torch.equal(one.pseudodata[1], before.pseudodata[1])


def test_jacobian_of_snapshots() -> None:
    """Independent parameters around the last snapshot, or around their average."""
    guide = linear_guide()
    generator = torch.Generator().manual_seed(0)
    data, own = torch.randn(2, 6, 3, generator=generator)
    coreset = guide.coreset()
    x = coreset.rows[0]
    for mean, center in (("last", data[-1]), ("average", data.mean(0))):
        surrogate = FunctionSpaceSurrogate(
            KnownPosteriors(data, own), covariance="jacobian", mean=mean
        )
        distribution = surrogate.marginals(guide, coreset).data
        torch.testing.assert_close(distribution.mean, x @ center)
        variances = data.var(0, correction=0)
        torch.testing.assert_close(
            distribution.covariance_matrix, (x * variances) @ x.mT + 1e-8 * torch.eye(4)
        )


def test_mean_over_weights_of_trajectories(monkeypatch: pytest.MonkeyPatch) -> None:
    """One learning rate fits all: twice the weights are the same loss, and the same gradient."""
    use_balanced_noise(monkeypatch)
    guide = classifier_guide()
    buffer = experts_of(guide)
    loss = FunctionSpaceKL(of_logits(TrajectorySnapshots(buffer, 3, num_steps=10)))
    found = []
    for factor in (1.0, 2.0):
        x, y = guide.pseudodata
        leaf = x.requires_grad_()
        torch.manual_seed(0)
        value = loss.surrogate.compare(loss, guide, Coreset((leaf, y), factor * guide.weights))
        found.append((value.detach(), torch.autograd.grad(value, leaf)[0]))
    torch.testing.assert_close(*found)


@pytest.mark.parametrize(
    ("model", "num_points"),
    [(None, 100), *[(pyro.poutine.scale(logistic, scale=0.5), number) for number in (100, 10)]],
)
def test_labels_are_learned(model: Any, num_points: int) -> None:
    """Rows then are there once for each class, twelve of them even with ten data."""
    guide = AutoPseudocoreset(logistic, *labeled(num_points), size=6, learnable=["x", "y"], seed=0)
    before = guide.pseudodata
    loss = FunctionSpaceKL(FunctionSpaceSurrogate(GaussianSurrogate(), model=model))
    guide.fit(loss, 3, seed=0, progress=False)
    for row, moved in zip(before, guide.pseudodata, strict=True):
        assert row.shape == moved.shape and not torch.equal(row, moved)


# Errors -------------------------------------------------------------------------------------------


def test_errors() -> None:
    with pytest.raises(TypeError, match="posteriors must be .*, got 3"):
        parameter_distributions(3, linear_guide(), linear_guide().coreset())
    with pytest.raises(
        ValueError, match="mean of a MCMCSurrogate must be one of 'average', got 'last'"
    ):
        FunctionSpaceSurrogate(MCMCSurrogate(), mean="last")
    surrogate = FunctionSpaceSurrogate(GaussianSurrogate())
    for divergence in (ReverseKL, Wasserstein):
        with pytest.raises(ValueError, match=f"for {divergence.__name__}: in function space"):
            divergence(surrogate)
    text = repr(FunctionSpaceKL([surrogate, surrogate]))
    assert text.count("FunctionSpaceSurrogate") == 2 and "jacobian" in text


def test_diverging_descent_is_reported() -> None:
    """An error, and the coreset as it was."""
    guide = classifier_guide()
    before = guide.pseudodata[0]
    size = guide.posterior.layout.size
    nothing = torch.full((3, size), torch.nan)
    loss = FunctionSpaceKL(of_logits(KnownPosteriors(torch.zeros(3, size), nothing)))
    with pytest.raises(TrainingDiverged, match="diverged at step 1 of 3: the loss is nan"):
        guide.fit(loss, 3, seed=0, progress=False)
    assert torch.equal(guide.pseudodata[0], before)
