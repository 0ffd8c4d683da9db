"""Losses of trajectories against formulas written out; the self-checks 6 to 10 of the spec."""

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from pyro_ext.inference.pseudocoresets import (
    AutoPseudocoreset,
    Coreset,
    ExpertBuffer,
    ForwardKL,
    GaussianSurrogate,
    ReverseKL,
    TrajectorySurrogate,
    Wasserstein,
    descend,
)
from tests.inference.pseudocoresets.coreset_models import (
    FITS_ARE_SHORT,
    labeled,
    location,
    logistic,
    points,
    saved_tensors,
)

pytestmark = [pytest.mark.usefixtures("float64"), FITS_ARE_SHORT]

ALL = [ForwardKL, ReverseKL, Wasserstein]


def logistic_guide(**options: Any) -> AutoPseudocoreset:
    return AutoPseudocoreset(logistic, *labeled(), **{"size": 6, "seed": 0, **options})


def buffer_of(*checkpoints: Tensor) -> ExpertBuffer:
    """One expert with given checkpoints."""
    trajectories = torch.stack(checkpoints)[None]
    shapes = {"weight": trajectories.shape[2:]}
    losses = torch.zeros(1, len(checkpoints) - 1)
    return ExpertBuffer(trajectories, shapes, losses, num_steps=20, learning_rate=0.4)


def somewhere(seed: int, size: int = 3) -> Tensor:
    return 0.5 * torch.randn(size, generator=torch.Generator().manual_seed(seed))


def loss_and_gradient(divergence: Any, guide: AutoPseudocoreset) -> tuple[float, Tensor]:
    """Loss, and its gradient in the pseudo inputs."""
    loss = divergence.differentiable_loss(guide.model, guide)
    (parameter,) = (value for name, value in guide.named_parameters() if "pseudo_x" in name)
    (gradient,) = torch.autograd.grad(loss, parameter)
    return float(loss.detach()), gradient


# Forward -----------------------------------------------------------------------------------------


def test_forward_loss_is_that_of_data_less_that_of_coreset() -> None:
    """The teacher's term is minimized, the student's maximized, and both are means."""
    guide = logistic_guide(weights="learned")
    start, later = somewhere(0), somewhere(1)
    surrogate = TrajectorySurrogate(buffer_of(start, later), 5, 0.4, noise_scale=0.0)
    loss, gradient = loss_and_gradient(ForwardKL(surrogate), guide)
    (end,) = descend(guide.posterior, guide.coreset(), start[None], 5, 0.4)
    u, v = guide.pseudodata
    u.requires_grad_()
    student = binary_cross_entropy_with_logits(u @ end, v)
    expected = binary_cross_entropy_with_logits(u @ later, v) - student
    (by_hand,) = torch.autograd.grad(expected, u)
    assert loss == pytest.approx(float(expected.detach()))
    torch.testing.assert_close(gradient, by_hand)


def test_noise_has_its_scale(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draws of both Gaussians, which differ, at the standard deviation asked for."""
    guide = logistic_guide()
    surrogate = TrajectorySurrogate(
        buffer_of(somewhere(0), somewhere(1)), 5, 0.4, noise_scale=0.2, num_particles=7
    )
    (end,) = descend(guide.posterior, guide.coreset(), somewhere(0)[None], 5, 0.4)
    later, seen = somewhere(1), []

    def record(flat: Tensor, coreset: Coreset) -> Tensor:
        seen.append(flat)
        return torch.zeros(len(flat))

    monkeypatch.setattr(guide.posterior, "log_likelihood", record)
    noises = torch.randn(2, 7, 3).unbind()
    given = list(noises)
    monkeypatch.setattr(torch, "randn", lambda *shape, dtype: given.pop(0))
    surrogate.compare(ForwardKL(), guide, guide.coreset())
    own, of_data = sorted(seen, key=lambda flat: float((flat.mean(0) - end).norm()))
    found = [(own - end) / 0.2, (of_data - later) / 0.2]
    assert any(torch.allclose(found[0], noise) for noise in noises)
    assert any(torch.allclose(found[1], noise) for noise in noises)
    assert not torch.allclose(*found)


def test_equal_ends_with_shared_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    """Self-check 6 of the spec: loss and gradient are zero."""
    guide = logistic_guide()
    noise = torch.randn(10, 3)
    monkeypatch.setattr(TrajectorySurrogate, "_draws", lambda self, mean: mean + 0.5 * noise)
    end = descend(guide.posterior, guide.coreset(), somewhere(0)[None], 5, 0.4)[0]
    surrogate = TrajectorySurrogate(buffer_of(somewhere(0), end), 5, 0.4)
    loss, gradient = loss_and_gradient(ForwardKL(surrogate), guide)
    assert loss == 0.0 and not gradient.any()


# Wasserstein -------------------------------------------------------------------------------------


def test_distance_of_ends() -> None:
    """Self-check 7: one where nothing moves, and zero where both ends are one."""
    guide = logistic_guide(weights="scaled")
    start = somewhere(0)
    resting = TrajectorySurrogate(buffer_of(start, somewhere(1)), 3, 0.0)
    assert loss_and_gradient(Wasserstein(resting), guide)[0] == pytest.approx(1.0)
    (end,) = descend(guide.posterior, guide.coreset(), start[None], 3, 0.4)
    meeting = TrajectorySurrogate(buffer_of(start, end), 3, 0.4)
    loss, gradient = loss_and_gradient(Wasserstein(meeting), guide)
    assert loss == pytest.approx(0.0, abs=1e-20) and float(gradient.abs().max()) < 1e-12
    target = somewhere(2)
    other = TrajectorySurrogate(buffer_of(start, target), 3, 0.4)
    expected = (end - target).square().sum() / (start - target).square().sum()
    assert loss_and_gradient(Wasserstein(other), guide)[0] == pytest.approx(float(expected))


def test_gradient_of_the_distance_by_differences() -> None:
    """Self-check 7: through all steps, to 1e-6."""
    guide = logistic_guide()
    surrogate = TrajectorySurrogate(buffer_of(somewhere(0), somewhere(1)), 3, 0.4)
    divergence = Wasserstein(surrogate)
    _, gradient = loss_and_gradient(divergence, guide)
    u, v = guide.pseudodata
    direction = torch.randn(u.shape, generator=torch.Generator().manual_seed(0))

    def along(length: float) -> float:
        coreset = Coreset((u + length * direction, v), guide.weights)
        return float(surrogate.compare(divergence, guide, coreset).detach())  # type: ignore[arg-type]

    numeric = (along(1e-5) - along(-1e-5)) / 2e-5
    assert float((gradient * direction).sum()) == pytest.approx(numeric, rel=1e-6)


def test_learning_rate_can_be_learned() -> None:
    """Its gradient is that of the last loss alone, at each step."""
    guide = logistic_guide()
    rate = torch.tensor(0.4, requires_grad=True)
    surrogate = TrajectorySurrogate(buffer_of(somewhere(0), somewhere(1)), 3, rate)
    divergence = Wasserstein(surrogate)
    (slope,) = torch.autograd.grad(divergence.differentiable_loss(guide.model, guide), rate)

    def optimizer(parameters: list[Any]) -> torch.optim.Optimizer:
        groups = [{"params": parameters, "lr": 0.0}, {"params": [rate], "lr": 1e-6}]
        return torch.optim.SGD(groups)

    guide.fit(divergence, 3, optimizer=optimizer, progress=False)
    assert float(rate.detach()) - 0.4 == pytest.approx(-3e-6 * float(slope), rel=1e-4)
    rate.grad = None
    ForwardKL(surrogate).differentiable_loss(guide.model, guide).backward()
    assert rate.grad is None


# Reverse -----------------------------------------------------------------------------------------


def test_minibatches_of_the_data(monkeypatch: pytest.MonkeyPatch) -> None:
    guide = logistic_guide()
    seen: list[Any] = []
    plain = guide.data.estimate

    def record(flat: Tensor, index: Tensor) -> Tensor:
        seen.append(index)
        return plain(flat, index)

    monkeypatch.setattr(guide.data, "estimate", record)
    buffer = buffer_of(somewhere(0), somewhere(1))
    for size in (None, 400, 50):
        surrogate = TrajectorySurrogate(buffer, 5, 0.4, batch_size=size)
        ReverseKL(surrogate).loss(logistic, guide)
        ForwardKL(surrogate).loss(logistic, guide)
    (batch,) = seen  # without a batch size, or one of all, there is no estimate
    assert len(batch.unique()) == 50 and int(batch.max()) < 400


# All ---------------------------------------------------------------------------------------------


def test_memory_does_not_grow_with_steps() -> None:
    """Self-check 8 of the spec: no graph behind the steps but that of the unrolled distance."""
    guide = logistic_guide()
    buffer = buffer_of(somewhere(0), somewhere(1))
    kept: dict[Any, list[int]] = {}
    for divergence in ALL:
        for num_steps in (1, 4, 16):
            loss = divergence(TrajectorySurrogate(buffer, num_steps, 0.1))
            loss.loss(guide.model, guide)  # records are made
            run = partial(loss.differentiable_loss, guide.model, guide)
            kept.setdefault(divergence, []).append(saved_tensors(run))
    for divergence in (ForwardKL, ReverseKL):
        assert len(set(kept[divergence])) == 1 and kept[divergence][0] > 0
    few, some, many = kept[Wasserstein]
    assert many - some == pytest.approx(4 * (some - few), rel=0.05) and some > 2 * few


def test_segments_are_of_one_expert() -> None:
    trajectories = torch.arange(2 * 7.0).reshape(2, 7, 1).expand(2, 7, 3)
    buffer = ExpertBuffer(trajectories, {"weight": (3,)}, torch.zeros(2, 6), 7, 0.1)
    guide = logistic_guide()
    surrogate = TrajectorySurrogate(buffer, max_start=3, num_epochs=2)
    found = {
        (int(start[0]), int(end[0]))
        for start, end in (surrogate.random_segment(guide) for _ in range(200))
    }
    assert found == {(0, 2), (1, 3), (2, 4), (7, 9), (8, 10), (9, 11)}
    assert TrajectorySurrogate(buffer).max_start == 6


@pytest.mark.parametrize("divergence", ALL)
def test_training_with_experts(divergence: Any) -> None:
    """The posterior mode of the coreset comes nearer to that of the data, with any divergence."""
    x, y = labeled(2000)
    buffer = ExpertBuffer.collect(logistic, x, y, learning_rate=0.3, seed=0, progress=False)
    rate = {ForwardKL: 0.3, ReverseKL: 3000.0, Wasserstein: 0.05}[divergence]
    optimizer = partial(torch.optim.SGD, lr=rate, momentum=0.5)
    surrogate = TrajectorySurrogate(buffer, 20, 0.2, batch_size=200)
    options: Any = {"optimizer": optimizer, "progress": False}
    guides = [AutoPseudocoreset(logistic, x, y, size=8, weights="scaled", seed=1) for _ in range(3)]
    before = ForwardKL(GaussianSurrogate()).loss(logistic, guides[0])
    guides[0].fit(divergence(surrogate), 150, seed=3, **options)
    assert ForwardKL(GaussianSurrogate()).loss(logistic, guides[0]) < 0.5 * before
    for seed, guide in zip((3, 4), guides[1:], strict=True):
        guide.fit(divergence(surrogate), 5, seed=seed, **options)
        assert (guide.losses == guides[0].losses[:5]) == (seed == 3)


def test_arguments_are_checked() -> None:
    buffer = buffer_of(*torch.zeros(5, 3))
    for options, message in (
        ({"learning_rate": torch.ones(2)}, r"scalar tensor, got the shape \(2,\)"),
        ({"max_start": 5}, "max_start=5 and num_epochs=1 need more than the 5 checkpoints"),
        ({"num_epochs": 5}, "num_epochs=5 need more than the 5 checkpoints"),
    ):
        with pytest.raises(ValueError, match=message):
            TrajectorySurrogate(buffer, **options)  # type: ignore[arg-type]
    assert "3 values), 20, 0.4)" in repr(TrajectorySurrogate(buffer))


def test_steps_are_those_of_the_experts() -> None:
    """So many of an epoch, for as many epochs; what goes farther than twice as far is told."""
    x, y = labeled(100)
    options: Any = {"num_experts": 2, "num_epochs": 4, "seed": 0, "progress": False}
    buffer = ExpertBuffer.collect(logistic, x, y, batch_size=32, learning_rate=0.2, **options)
    assert (buffer.num_steps, buffer.learning_rate) == (3, 0.2)
    own = TrajectorySurrogate(buffer, num_epochs=2)
    assert (own.num_steps, own.learning_rate) == (6, 0.2)
    TrajectorySurrogate(buffer, 12, num_epochs=2)
    TrajectorySurrogate(buffer, 1000, torch.tensor(0.2))  # one that is learned finds its way
    told = "num_steps=13 with learning_rate=0.2 .* the experts, which take 6 steps with 0.2"
    with pytest.warns(UserWarning, match=told):
        TrajectorySurrogate(buffer, 13, num_epochs=2)
    with pytest.warns(UserWarning, match="num_steps=3 with learning_rate=0.5"):
        TrajectorySurrogate(buffer, learning_rate=0.5)
    plain = ExpertBuffer(buffer.trajectories, buffer.shapes, buffer.losses)
    TrajectorySurrogate(plain, 1000, 1.0)
    for given, argument in ((({}), "num_steps"), ({"num_steps": 3}, "learning_rate")):
        with pytest.raises(ValueError, match=f"{argument} must be given"):
            TrajectorySurrogate(plain, **given)


def test_divergences_of_gaussians_alone_are_refused() -> None:
    class Other(Wasserstein):
        of_trajectory_ends = None  # type: ignore[assignment]

    with pytest.raises(ValueError, match="surrogate must give Gaussians to Other"):
        Other(TrajectorySurrogate(buffer_of(*torch.zeros(5, 3))))


def test_vectors_of_other_types_are_converted() -> None:
    torch.set_default_dtype(torch.float32)
    guide = AutoPseudocoreset(location, points(), size=4, seed=0)
    trajectories = torch.zeros(1, 2, 2, dtype=torch.float64)
    buffer = ExpertBuffer(trajectories, {"mean": (2,)}, torch.zeros(1, 1), 20, 0.05)
    assert TrajectorySurrogate(buffer).random_segment(guide)[0].dtype == torch.float32
