"""The guide: what it learns, its conditioned model, draws, files, training and errors."""

import pickle
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import MCMC as PyroMCMC
from pyro.infer import NUTS, SVI, Predictive, Trace_ELBO
from pyro.infer.autoguide import AutoNormal
from torch import Tensor, nn

from pyro_ext.checkpoint import CheckpointError
from pyro_ext.diagnostics import to_arviz
from pyro_ext.inference import SGLD
from pyro_ext.inference.pseudocoresets import AutoPseudocoreset, ForwardKL, MCMCSurrogate, ReverseKL
from pyro_ext.inference.training import TrainingDiverged
from pyro_ext.nn import MLP, BayesianClassifier, BayesianModule
from pyro_ext.potential import Potential
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


# What is learned ---------------------------------------------------------------------------------


def test_labels_are_fixed_and_balanced() -> None:
    x, y = labeled()
    guide = AutoPseudocoreset(logistic, x, y, size=10, seed=0)
    assert guide.learnable == ("x",)
    inputs, labels = guide.pseudodata
    assert float(labels.sum()) == 5.0
    assert "pseudo_y_unconstrained" not in dict(guide.named_parameters())
    for row, label in zip(inputs, labels, strict=True):
        assert bool(((x == row).all(-1) & (y == label)).any())
    guide.fit(ForwardKL(), 3, progress=False)
    assert torch.equal(guide.pseudodata[1], labels)
    assert not torch.equal(guide.pseudodata[0], inputs)


def test_classes_of_a_network() -> None:
    generator = torch.Generator().manual_seed(0)
    inputs, labels = torch.randn(90, 4, generator=generator), torch.arange(90) % 3
    classifier = BayesianClassifier(BayesianModule(MLP(4, [3], 3), 0.5), batch_size=30)
    guide = AutoPseudocoreset(classifier, inputs, labels, size=6, weights="scaled", seed=0)
    assert guide.pseudodata[1].bincount().tolist() == [2, 2, 2]
    assert guide.data.block_size == 30
    torch.manual_seed(0)
    first = guide.coreset()
    guide.fit(ReverseKL(MCMCSurrogate(num_samples=4, batch_size=30)), 2, seed=0, progress=False)
    assert guide.weights.tolist() == [15.0] * 6
    assert first.rows[0].shape == (6, 4)


def test_observations_stay_in_their_support() -> None:
    x, y = labeled()
    x, y = x[:, 0], y + 0.5
    guide = AutoPseudocoreset(gamma, x, y, size=8, weights="learned", seed=0)
    assert guide.learnable == ("x", "y")
    guide.fit(ForwardKL(), 100, progress=False)
    assert bool((guide.pseudodata[1] > 0).all())
    assert bool((guide.weights > 0).all())
    assert guide.losses[-1] < 0.1 * guide.losses[0]


@pytest.mark.parametrize("learnable", [["y"], [1]])
def test_chosen_arguments(learnable: Any) -> None:
    x, y = labeled()
    guide = AutoPseudocoreset(gamma, x[:, 0], y + 0.5, size=8, learnable=learnable, seed=0)
    before = guide.pseudodata
    guide.fit(ForwardKL(), 3, progress=False)
    assert guide.learnable == ("y",)
    assert torch.equal(guide.pseudodata[0], before[0])
    assert not torch.equal(guide.pseudodata[1], before[1])


def test_keywords_and_other_arguments() -> None:
    def model(scale: float, *, data: dict[str, Tensor], prior: Tensor) -> None:
        loc = pyro.sample("loc", dist.Normal(0.0, prior))
        with pyro.plate("data", len(data["x"])):
            pyro.sample("y", dist.Normal(loc * data["x"], scale), obs=data["y"])

    x = torch.linspace(0.0, 1.0, 20)
    guide = AutoPseudocoreset(
        model, 0.5, data={"x": x, "y": 2 * x}, prior=torch.tensor(3.0), size=4, seed=0
    )
    guide.fit(ForwardKL(), 3, progress=False)
    assert Potential(guide.condition()).data_size == 4


def test_initial_rows_and_weights() -> None:
    x = points()
    start = torch.zeros(5, 2)
    guide = AutoPseudocoreset(location, x, size=5, init=lambda size, rows: start, seed=0)
    assert torch.equal(guide.pseudodata[0], start)
    torch.testing.assert_close(guide.weights, torch.full((5,), 10.0))
    uniform = AutoPseudocoreset(location, x, size=5, weights="uniform", seed=0)
    assert uniform.weights.tolist() == [1.0] * 5
    scaled = AutoPseudocoreset(location, x, size=5, weights="scaled", seed=0)
    learned = AutoPseudocoreset(location, x, size=5, weights="learned", seed=0)
    torch.testing.assert_close(scaled.weights, torch.full((5,), 10.0))
    torch.testing.assert_close(learned.weights, scaled.weights)
    for other in (guide, learned):  # weights are learned unless told otherwise
        assert len([*other.parameters()]) == len([*scaled.parameters()]) + 1


# The conditioned model ---------------------------------------------------------------------------


def weighted_density(guide: AutoPseudocoreset, weight: Tensor) -> Tensor:
    x, y = guide.pseudodata
    prior = dist.Normal(torch.zeros(3), 2.0).log_prob(weight).sum()
    return prior + (guide.weights * dist.Bernoulli(logits=x @ weight).log_prob(y)).sum()


def test_density_by_hand() -> None:
    x, y = labeled()
    guide = AutoPseudocoreset(logistic, x, y, size=10, weights="learned", seed=0)
    guide.fit(ForwardKL(), 5, progress=False)
    conditioned = guide.condition()
    weight = torch.tensor([0.3, -0.2, 0.5])
    expected = weighted_density(guide, weight)
    trace = pyro.poutine.trace(pyro.condition(conditioned, {"weight": weight})).get_trace()
    torch.testing.assert_close(trace.log_prob_sum(), expected)
    potential = Potential(conditioned)
    torch.testing.assert_close(potential({"weight": weight[None]})[0], -expected)
    torch.testing.assert_close(guide.posterior.value(weight, guide.coreset()).detach(), -expected)
    kernel = NUTS(conditioned)
    kernel.setup(0)
    torch.testing.assert_close(kernel.potential_fn({"weight": weight}), -expected)
    copied = pickle.loads(pickle.dumps(conditioned))
    torch.testing.assert_close(Potential(copied)({"weight": weight[None]})[0], -expected)
    guide.fit(ForwardKL(), 2, progress=False)  # the conditioned model has copies
    torch.testing.assert_close(Potential(conditioned)({"weight": weight[None]})[0], -expected)


@pytest.mark.slow
@pytest.mark.statistical
def test_under_pyro() -> None:
    """NUTS of Pyro on the coreset, 600 draws, means within 5 standard errors of 150 draws.

    Two numbers: false-alarm rate below 2e-6 where the draws are worth 150 or more. A guide of Pyro
    trains on it too.
    """
    x = points()
    guide = AutoPseudocoreset(location, x, size=5, weights="scaled", seed=0)
    mean, variance = location_answers(guide.pseudodata[0], guide.weights)
    mcmc = PyroMCMC(NUTS(guide.condition()), 600, warmup_steps=100, disable_progbar=True)
    mcmc.run()
    found = mcmc.get_samples()["mean"].mean(0)
    assert float((found - mean).abs().max()) < 5 * (variance / 150) ** 0.5
    conditioned = guide.condition()
    normal = AutoNormal(conditioned)
    svi = SVI(conditioned, normal, pyro.optim.Adam({"lr": 0.1}), loss=Trace_ELBO())
    losses = [svi.step() for _ in range(50)]
    assert losses[-1] < losses[0]


# Draws -------------------------------------------------------------------------------------------


@pytest.mark.statistical
def test_draws_of_the_guide() -> None:
    """Mean of 400 draws picked from 400, within 5 standard errors of 100: false-alarm rate 2e-6."""
    x = points()
    guide = AutoPseudocoreset(
        location, x, size=5, weights="scaled", num_samples=400, warmup_steps=100, seed=0
    )
    draws = torch.stack([guide(x)["mean"] for _ in range(400)])
    mean, variance = location_answers(guide.pseudodata[0], guide.weights)
    assert float((draws.mean(0) - mean).abs().max()) < 5 * (variance / 100) ** 0.5
    assert len(draws.unique(dim=0)) > 100


def test_draws_follow_the_coreset() -> None:
    x = points()
    kernels = []

    def kernel(model: Any) -> NUTS:
        kernels.append(model)
        return NUTS(model)

    guide = AutoPseudocoreset(
        location, x, size=5, kernel=kernel, num_samples=5, warmup_steps=5, seed=0
    )
    guide(x)
    guide(x)
    assert len(kernels) == 1
    guide.step(ForwardKL())
    guide(x)
    assert len(kernels) == 2


def test_guides_of_one_shape_keep_their_parameters() -> None:
    """Calls leave the parameter store alone, where another guide's parameters have those names."""

    def model(x: Tensor, y: Tensor | None = None) -> None:
        slope = pyro.sample("slope", dist.Normal(0.0, 10.0))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(slope * x, 1.0), obs=y)

    pyro.clear_param_store()
    x = torch.linspace(1.0, 2.0, 500)
    options: dict[str, Any] = {"size": 5, "weights": "scaled", "seed": 0}
    guides = [
        AutoPseudocoreset(model, x, slope * x, num_samples=20, warmup_steps=20, **options)
        for slope in (1.0, -1.0)
    ]
    before = [guide.pseudodata for guide in guides]
    for _ in range(2):
        slopes = [Predictive(model, guide=g, num_samples=20)(x)["slope"].mean() for g in guides]
        assert [round(float(slope)) for slope in slopes] == [1, -1]
        for guide, rows in zip(guides, before, strict=True):
            torch.testing.assert_close(guide.pseudodata, rows)
    assert len(pyro.get_param_store()) == 0
    loss = ForwardKL()
    SVI(model, guides[0], pyro.optim.Adam({"lr": 1e-3}), loss=loss).step(x, x)
    assert float(guides[1]()["slope"]) < 0
    torch.testing.assert_close(guides[1].pseudodata, before[1])
    pyro.clear_param_store()


def test_latent_sites_in_a_plate() -> None:
    def model(x: Tensor, y: Tensor | None = None) -> Tensor:
        with pyro.plate("features", x.shape[-1]):
            weight = pyro.sample("weight", dist.Normal(0.0, 2.0))
        with pyro.plate("data", len(x)):
            return pyro.sample("y", dist.Bernoulli(logits=(weight * x).sum(-1)), obs=y)

    x, y = labeled()
    guide = AutoPseudocoreset(model, x, y, size=10, num_samples=10, warmup_steps=5, seed=0)
    assert guide(x)["weight"].shape == (3,)
    assert Predictive(model, guide=guide, num_samples=4)(x)["y"].shape == (4, 400)
    sites = Predictive(guide, num_samples=4, parallel=True)(x)
    assert sites["weight"].shape == (4, 3)


def test_run_of_a_kernel_of_ours() -> None:
    x, y = labeled()
    guide = AutoPseudocoreset(logistic, x, y, size=10, weights="scaled", seed=0)
    run = guide.sample_posterior(
        10, kernel=partial(SGLD, step_size=1e-3), warmup_steps=5, num_chains=3
    )
    assert run.get_samples(group_by_chain=True)["weight"].shape == (3, 10, 3)
    assert to_arviz(run).posterior["weight"].shape == (3, 10, 3)


# Training ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("divergence", [ForwardKL(), ReverseKL(MCMCSurrogate(num_samples=8))])
def test_same_seed_same_result(divergence: Any) -> None:
    x, y = labeled()

    def fitted(seed: int) -> tuple[list[float], Tensor]:
        loss = type(divergence)(type(divergence.surrogate)())
        guide = AutoPseudocoreset(logistic, x, y, size=10, weights="learned", seed=seed)
        guide.fit(loss, 4, seed=seed, progress=False)
        return guide.losses, guide.pseudodata[0]

    first, again, other = fitted(1), fitted(1), fitted(2)
    assert first[0] == again[0]
    assert torch.equal(first[1], again[1])
    assert not torch.equal(first[1], other[1])


def test_steps_are_those_of_fit() -> None:
    guides = [AutoPseudocoreset(location, points(), size=5, seed=0) for _ in range(2)]
    loss, optimizer = ForwardKL(), partial(torch.optim.Adam, lr=0.1)
    for _ in range(4):
        guides[0].step(loss, optimizer)
    guides[1].fit(ForwardKL(), 4, optimizer=optimizer, progress=False)
    assert guides[0].losses == guides[1].losses
    torch.testing.assert_close(guides[0].pseudodata, guides[1].pseudodata)


def test_bound_methods_are_models() -> None:
    class Regression:
        def model(self, x: Tensor, y: Tensor) -> None:
            logistic(x, y)

    x, y = labeled()
    regression = Regression()
    guide = AutoPseudocoreset(regression.model, x, y, size=5, seed=0)
    pyro.clear_param_store()
    svi = SVI(regression.model, guide, pyro.optim.Adam({"lr": 0.01}), loss=ForwardKL())
    assert svi.step(x, y) > 0
    pyro.clear_param_store()
    with pytest.raises(ValueError, match="model must be that of the guide"):
        ForwardKL().loss(Regression().model, guide)


def test_interruption_keeps_what_is_reached() -> None:
    class Interrupted(ForwardKL):
        def differentiable_loss(self, *args: Any, **kwargs: Any) -> Tensor:
            if len(seen) == 3:
                raise KeyboardInterrupt
            seen.append(guide.pseudodata[0])
            return super().differentiable_loss(*args, **kwargs)

    seen: list[Tensor] = []
    guide = AutoPseudocoreset(location, points(), size=5, seed=0)
    with pytest.warns(UserWarning, match="stopped after 3 of 10 steps"):
        guide.fit(Interrupted(), 10, progress=False)
    assert len(guide.losses) == 3
    assert not torch.equal(guide.pseudodata[0], seen[-1])


@pytest.mark.parametrize("kind", ["value", "gradient"])
def test_nan_keeps_the_last_finite_state(kind: str) -> None:
    class Broken(ForwardKL):
        def differentiable_loss(self, *args: Any, **kwargs: Any) -> Tensor:
            loss = super().differentiable_loss(*args, **kwargs)
            seen.append(guide.pseudodata[0])
            if len(seen) < 4:
                return loss
            return loss * torch.nan if kind == "value" else loss + (0.0 * loss).sqrt()

    seen: list[Tensor] = []
    guide = AutoPseudocoreset(location, points(), size=5, seed=0)
    what = "loss" if kind == "value" else "gradient of 'pseudo_x_unconstrained'"
    with pytest.raises(TrainingDiverged, match=f"at step 4 of 10: the {what} is nan"):
        guide.fit(Broken(), 10, progress=False)
    assert len(guide.losses) == 3
    assert torch.equal(guide.pseudodata[0], seen[2])


# Files -------------------------------------------------------------------------------------------


def test_save_and_load(tmp_path: Path) -> None:
    x, y = labeled()
    x, y = x[:, 0], y + 0.5
    options: dict[str, Any] = {"size": 8, "weights": "learned"}
    guide = AutoPseudocoreset(gamma, x, y, seed=0, **options)
    guide.fit(ForwardKL(), 5, progress=False)
    path = tmp_path / "coreset.safetensors"
    guide.save(path)
    other = AutoPseudocoreset(gamma, x, y, **options)
    assert other.load(path) is other
    for unlike, words in (
        (AutoPseudocoreset(gamma, x, y, seed=1, **options), "seed is 0 there and 1 here"),
        (AutoPseudocoreset(gamma, x, y + 1.0, **options), r"data\[0\]\[1\] is"),
    ):
        with pytest.raises(CheckpointError, match=f"is of another coreset: {words}"):
            unlike.load(path)
    torch.testing.assert_close(other.pseudodata, guide.pseudodata)
    torch.testing.assert_close(other.weights, guide.weights)
    larger = AutoPseudocoreset(gamma, x, y, size=9)
    before = larger.pseudodata
    with pytest.raises(CheckpointError, match="holds no coreset of"):
        larger.load(path)
    torch.testing.assert_close(larger.pseudodata, before)
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(CheckpointError):
        other.load(path)


# Errors ------------------------------------------------------------------------------------------


def test_errors() -> None:
    x, y = labeled()
    make = partial(AutoPseudocoreset, logistic, x, y)
    with pytest.raises(ValueError, match="size must be at most the 400 observations, got 401"):
        make(size=401)
    with pytest.raises(ValueError, match="init must return tensors of shapes"):
        make(size=4, init=lambda size, x, y: (x[:3], y[:3]))
    with pytest.raises(ValueError, match="learnable must name row arguments.*got 'z'"):
        make(size=4, learnable=["z"])

    def model(x: Tensor, size: int | None, as_plate: bool = True) -> None:
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x), subsample_size=size) if as_plate else nullcontext():
            fn = dist.Normal(loc, 1.0)
            pyro.sample("x", fn if as_plate else fn.expand([len(x)]).to_event(1), obs=x[:size])

    with pytest.raises(ValueError, match=r"size=4 .*subsample_size=min\(batch_size, len\(x\)\)"):
        AutoPseudocoreset(model, torch.zeros(9), 6, size=4)
    with pytest.raises(ValueError, match=r"model must have its observed sites \['x'\] in a plate"):
        AutoPseudocoreset(model, torch.zeros(9), None, False, size=4)
    with pytest.raises(ValueError, match="guide has nothing to learn"):
        make(size=4, weights="scaled", learnable=[]).fit(ForwardKL())


def test_errors_of_models() -> None:
    def fixed_size(x: Tensor) -> None:
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        with pyro.plate("data", 50):
            pyro.sample("x", dist.Normal(mean, 1.0), obs=x)

    def subsampling(x: Tensor) -> None:
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x), subsample_size=min(10, len(x))) as index:
            pyro.sample("x", dist.Normal(mean, 1.0), obs=x[index])

    def closure() -> None:
        fixed_size(x)

    x = points()[:, 0]
    with pytest.raises((RuntimeError, ValueError)) as caught:
        AutoPseudocoreset(fixed_size, x, size=5)
    assert "take the size of the plate 'data'" in "".join(caught.value.__notes__)
    with pytest.raises(ValueError, match="size=20 does not fit"):
        AutoPseudocoreset(subsampling, x, size=20)
    assert AutoPseudocoreset(subsampling, x, size=10).data.block_size == 10
    with pytest.raises(ValueError, match="args must hold a tensor with a row for each of the 50"):
        AutoPseudocoreset(closure, size=5)


def test_observation_at_the_edge_of_its_support() -> None:
    x, y = labeled()
    y[:] = 0.5
    y[0] = 0.0

    def model(x: Tensor, y: Tensor) -> None:
        rate = pyro.sample("rate", dist.LogNormal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Exponential(rate * x[:, 0].exp()), obs=y)

    with pytest.raises(ValueError, match="the argument 'y' cannot be learned"):
        AutoPseudocoreset(model, x, y, size=400)


def test_module_models_are_no_part_of_the_guide() -> None:
    inputs, labels = torch.randn(30, 2), torch.arange(30) % 2
    classifier: nn.Module = BayesianClassifier(BayesianModule(MLP(2, [2], 2), 0.5))
    guide = AutoPseudocoreset(classifier, inputs, labels, size=4, seed=0)
    assert sorted(dict(guide.named_parameters())) == [
        "coreset_weights_unconstrained",
        "pseudo_inputs_unconstrained",
    ]
