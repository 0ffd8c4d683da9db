"""Checkpoints along a training, and the average of them with the best coefficients."""

import copy
import os
import signal

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy, mse_loss

from pyro_ext.checkpoint import CheckpointError
from pyro_ext.inference import Trainer
from pyro_ext.inference.averaging import BayesianOptimizer, CheckpointCollector, ModelFusion
from pyro_ext.inference.training import ShuffledBatches

BOTH = {"accuracy": "maximize", "loss": "minimize"}
GENERATOR = torch.Generator().manual_seed(0)
X = torch.randn(60, 3, generator=GENERATOR)
LABELS = (X.sum(-1) + 0.5 * torch.randn(60, generator=GENERATOR) > 0).long()


def evaluate(network):
    assert not network.training and not torch.is_grad_enabled()
    logits = network(X)
    accuracy = (logits.argmax(-1) == LABELS).float().mean()
    return {"accuracy": accuracy, "loss": cross_entropy(logits, LABELS), "unused": 1.0}


@pytest.fixture(scope="module")
def trained():
    """A network, and five checkpoints of a training that is too fast to settle."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))
    collector = CheckpointCollector(network, 40, num=5)
    trainer = Trainer(network, lambda p: torch.optim.SGD(p, lr=2.0), stateful=[collector], seed=0)
    collector.watch(trainer.optimizer)
    batches = ShuffledBatches(X, LABELS, batch_size=10)
    trainer.run(lambda x, y: cross_entropy(network(x), y), 40, batches, progress=False)
    return network, collector.weights


def fusion_of(trained, **options):
    return ModelFusion(*trained, evaluate, BOTH, **{"seed": 0, **options})


# Checkpoints -------------------------------------------------------------------------------------


def counting(num_steps, num, start=0.5):
    """A parameter that holds the number of steps, and what collects it."""
    module = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(module.weight)
    collector = CheckpointCollector(module, num_steps, num, start=start)
    trainer = Trainer(module, lambda p: torch.optim.SGD(p, lr=1.0), stateful=[collector], seed=0)
    collector.watch(trainer.optimizer)
    return module, collector, trainer


def test_steps_have_equal_spacing_and_end_with_the_last():
    for start, num, steps in ((0.5, 5, [12, 14, 16, 18, 20]), (0.0, 3, [6, 13, 20])):
        module, collector, trainer = counting(20, num, start)
        trainer.run(lambda m=module: -m.weight.sum(), 20, progress=False)
        assert collector.steps == steps
        assert collector.weights["weight"].flatten().tolist() == steps


def test_a_training_goes_on_with_the_same_checkpoints(tmp_path):
    path = tmp_path / "run"
    for steps in (7, 15, 20):
        module, collector, trainer = counting(20, 5)
        trainer.run(lambda m=module: -m.weight.sum(), steps, checkpoint=path, progress=False)
    assert collector.weights["weight"].flatten().tolist() == collector.steps


def test_copies_are_of_what_is_trained_and_in_single_precision():
    module = nn.Linear(2, 1).to(torch.bfloat16)
    module.bias.requires_grad_(False)
    collector = CheckpointCollector(module, 1, 1)
    with pytest.raises(RuntimeError, match="weights must be collected before"):
        _ = collector.weights
    optimizer = torch.optim.SGD([module.weight], lr=1.0)
    collector.watch(optimizer)
    module(torch.ones(1, 2, dtype=torch.bfloat16)).sum().backward()
    optimizer.step()
    assert set(collector.weights) == {"weight"}
    assert collector.weights["weight"].dtype == torch.float32
    with pytest.raises(ValueError, match="num must be at most the 10 steps"):
        CheckpointCollector(module, 20, 11)
    with pytest.raises(ValueError, match="module must have parameters"):
        CheckpointCollector(nn.ReLU(), 20)


# Fused networks ----------------------------------------------------------------------------------


def test_coefficients_lie_on_the_simplex(trained):
    network, weights = trained
    fusion = fusion_of(trained)
    for k in range(5):
        one = fusion.fuse(torch.eye(5)[k]).state_dict()
        assert all(torch.equal(one[name], weights[name][k]) for name in weights)
    x = torch.tensor([0.3, 0.0, 0.2, 0.9, 0.1])
    for scaled in (0.1, 7.0):
        for name, value in fusion.fuse(scaled * x).state_dict().items():
            torch.testing.assert_close(value, fusion.fuse(x).state_dict()[name])
    for name, value in fusion.fuse(torch.ones(5)).state_dict().items():
        torch.testing.assert_close(value, weights[name].mean(0))
    for wrong in (torch.zeros(5), -torch.ones(5)):
        with pytest.raises(ValueError, match="coefficients must be >= 0"):
            fusion.fuse(wrong)


def test_nothing_of_the_module_changes(trained):
    network, _ = trained
    before = copy.deepcopy(network.state_dict())
    network.train()
    fusion_of(trained).run(1, progress=False).best()
    assert network.training
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())


def test_checkpoints_may_be_modules_or_state_dicts(trained):
    network, weights = trained
    modules = [fusion_of(trained).fuse(one) for one in torch.eye(5)]
    for given in (modules, [module.state_dict() for module in modules]):
        fusion = ModelFusion(network, given, evaluate, BOTH)
        assert all(torch.equal(fusion.weights[name], weights[name]) for name in weights)


def test_factors_of_low_rank_are_averaged_alone():
    """The frozen matrix is not copied; the product of averages is no average of products."""

    class Adapted(nn.Module):
        def __init__(self):
            super().__init__()
            self.frozen = nn.Parameter(torch.zeros(3, 3), requires_grad=False)
            self.a, self.b = nn.Parameter(torch.rand(1, 3)), nn.Parameter(torch.rand(3, 1))

        def forward(self, x):
            return x @ (self.frozen + self.b @ self.a).mT

    checkpoints = [Adapted() for _ in range(2)]
    weights = {"a": torch.stack([one.a for one in checkpoints])}
    with pytest.raises(ValueError, match=r"trained parameters, got none of \['b'\]"):
        ModelFusion(checkpoints[0], weights, evaluate, BOTH)
    weights["b"] = torch.stack([one.b for one in checkpoints])
    seen = []

    def look(module):
        seen.append(module.frozen)
        return evaluate(module)

    fusion = ModelFusion(checkpoints[0], weights, look, {"loss": "minimize"})
    fused = fusion.fuse(torch.ones(2))
    fusion.evaluate(torch.ones(2))
    assert seen[0] is checkpoints[0].frozen and fused.frozen is not checkpoints[0].frozen
    torch.testing.assert_close(fused.b @ fused.a, weights["b"].mean(0) @ weights["a"].mean(0))
    mean_product = (weights["b"] @ weights["a"]).mean(0)
    assert not torch.allclose(fused.b @ fused.a, mean_product, atol=1e-3)


def test_batch_normalization_is_taken_anew():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2))
    others = [copy.deepcopy(network) for _ in range(3)]
    for other in others:
        nn.init.normal_(other[0].weight)
    with pytest.raises(ValueError, match="batches must be minibatches of inputs"):
        ModelFusion(network, others, evaluate, BOTH)
    with pytest.raises(TypeError, match="batches must be minibatches that can be iterated over"):
        ModelFusion(network, others, evaluate, BOTH, batches=iter([X]))
    fused = ModelFusion(network, others, evaluate, BOTH, batches=[X]).fuse(torch.ones(3))
    hidden = fused[0](X)
    torch.testing.assert_close(fused[1].running_mean, hidden.mean(0))
    torch.testing.assert_close(fused[1].running_var, hidden.var(0))


# The search --------------------------------------------------------------------------------------


def test_history(trained):
    fusion = fusion_of(trained).run(8, progress=False)
    history = fusion.history
    assert history.values.shape == (18, 2) and history.coefficients.shape == (18, 5)
    torch.testing.assert_close(history.coefficients.sum(-1), torch.ones(18).double())
    assert torch.equal(history.coefficients[:5], torch.eye(5).double())
    singles = history.normalized[:5]
    assert singles.amin(0).tolist() == [0.0, 0.0] and singles.amax(0).tolist() == [1.0, 1.0]
    low, high = history.values[:5, 1].aminmax()
    normalized = (high - history.values[:, 1]) / (high - low)
    torch.testing.assert_close(history.normalized[:, 1], normalized)
    assert bool((history.hypervolume.diff() >= 0).all())
    best = fusion.evaluate(fusion.best_coefficients)
    assert best["accuracy"] == history.values[:, 0].max()
    assert best["loss"] == history.values[history.values[:, 0] == best["accuracy"], 1].min()
    is_best = (history.coefficients == fusion.best_coefficients).all(-1)
    assert bool(history.is_efficient[is_best].all())


def test_one_objective_and_seeds(trained):
    only = [
        ModelFusion(*trained, evaluate, {"loss": "minimize"}, seed=seed).run(6, progress=False)
        for seed in (0, 0, 1)
    ]
    values = [one.history.values for one in only]
    assert torch.equal(values[0], values[1]) and not torch.equal(values[0], values[2])
    assert float(values[0][-6:].mean()) < float(values[0][:10].mean())
    assert only[0].history.hypervolume[-1] == only[0].history.normalized.max()


def test_evaluations_that_fail(trained):
    """One checkpoint, and every third network after it; the others decide."""
    calls = []

    def fails(network):
        calls.append(None)
        found = evaluate(network)
        return {**found, "loss": torch.nan} if len(calls) % 3 == 2 else found

    fusion = ModelFusion(*trained, fails, BOTH, seed=0)
    with pytest.warns(UserWarning, match="6 of 18 evaluations were not finite"):
        fusion.run(8, progress=False)
    history = fusion.history
    is_good = history.values.isfinite().all(-1)
    assert is_good.tolist() == [n % 3 != 1 for n in range(18)]
    singles = history.normalized[:5][is_good[:5]]
    assert singles.amin(0).tolist() == [0.0, 0.0] and singles.amax(0).tolist() == [1.0, 1.0]
    assert bool((history.hypervolume.diff() >= 0).all()) and history.hypervolume.isfinite().all()
    assert not bool(history.is_efficient[~is_good].any()) and bool(history.is_efficient.any())
    best = history.values[is_good, 0].max()
    assert float(best) == fusion.evaluate(fusion.best_coefficients)["accuracy"]


def test_quadratic_loss_is_brought_to_its_least():
    """A linear model's squared loss is convex in the coefficients; the quadratic program's optimum.

    The two checkpoints that it takes lie on both sides of the target.
    """
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(100, 2, generator=generator)
    y = x @ torch.tensor([[0.5], [0.25]]) + 0.1 * torch.randn(100, 1, generator=generator)
    network = nn.Linear(2, 1, bias=False)
    points = torch.tensor([[[0.0, 0.0]], [[1.0, 0.0]], [[0.0, 1.0]], [[2.0, 2.0]]])

    def loss(module):
        return {"loss": mse_loss(module(x), y)}

    fusion = ModelFusion(network, {"weight": points}, loss, {"loss": "minimize"}, seed=0)
    found = float(fusion.run(20, progress=False).history.values.min())
    residuals = (x @ points[:, 0].mT - y).double()
    gram = residuals.mT @ residuals / len(x)
    delta = torch.full((4,), 0.25).double()
    for _ in range(5000):  # exponentiated gradient, which stays on the simplex
        delta = torch.softmax(delta.clamp(min=1e-300).log() - 0.3 * gram @ delta, 0)
    least = float(delta @ gram @ delta)
    assert least <= found < least + 0.02 * (float(gram.diagonal().min()) - least)
    draws = torch.rand(28, 4, generator=generator)
    assert found < min(fusion.evaluate(one)["loss"] for one in draws)


def test_a_search_goes_on_from_its_file(trained, tmp_path):
    path = tmp_path / "search"
    whole = fusion_of(trained).run(4, progress=False).history
    fusion_of(trained).run(1, checkpoint=path, progress=False)
    later = ModelFusion(*trained, evaluate, BOTH).run(4, checkpoint=path, progress=False)
    assert torch.equal(later.history.values, whole.values)
    assert torch.equal(later.history.coefficients, whole.coefficients)
    for other in (
        fusion_of(trained, seed=1),
        ModelFusion(*trained, evaluate, {"loss": "minimize"}),
    ):
        with pytest.raises(CheckpointError, match="is of another search"):
            other.run(4, checkpoint=path, progress=False)


def test_ctrl_c_keeps_what_was_evaluated(trained):
    calls = []

    def interrupted(network):
        calls.append(0)
        if len(calls) == 8:
            os.kill(os.getpid(), signal.SIGINT)
        return evaluate(network)

    fusion = ModelFusion(*trained, interrupted, BOTH, seed=0)
    with pytest.warns(UserWarning, match="stopped after 7 of 12 evaluations"):
        fusion.run(2, progress=False)
    fusion.run(2, progress=False)
    assert torch.equal(fusion.history.values, fusion_of(trained).run(2, progress=False).history[1])


def test_what_is_wrong_is_named(trained):
    network, weights = trained
    first = {name: value[:1] for name, value in weights.items()}
    nans = {**weights, "0.bias": weights["0.bias"] * torch.nan}
    shapes = {**weights, "0.bias": weights["0.bias"][:, :2]}
    for given, message in (
        (first, "checkpoints must be two or more"),
        (nans, r"checkpoints\['0.bias'\] must be finite"),
        (shapes, "checkpoints must fit the module, got '0.bias'"),
        ({**weights, "more": torch.ones(5)}, "checkpoints must fit the module, got 'more'"),
        ([network, nn.Linear(3, 2)], "checkpoints must have '0.weight' alike"),
    ):
        with pytest.raises(ValueError, match=message):
            ModelFusion(network, given, evaluate, BOTH)
    with pytest.raises(ValueError, match=r"objectives\['f1'\] must be one of"):
        ModelFusion(network, weights, evaluate, {"f1": "max"})
    with pytest.raises(ValueError, match="reference must have the shape .* BoTorch takes more"):
        ModelFusion(network, weights, evaluate, dict.fromkeys("abc", "minimize"))
    with pytest.raises(ValueError, match=r"evaluate must return the objectives \['f1'\]"):
        ModelFusion(network, weights, evaluate, {"f1": "maximize"}).run(progress=False)
    for value in (torch.nan, torch.inf):
        fusion = ModelFusion(network, weights, lambda _, v=value: {"f1": v}, {"f1": "maximize"})
        with pytest.raises(
            ValueError, match="finite numbers for at least one .* first {'f1': (nan|inf)}"
        ):
            fusion.run(progress=False)
    fusion = ModelFusion(network, weights, evaluate, BOTH)
    with pytest.raises(RuntimeError, match="single checkpoints must be evaluated before"):
        _ = fusion.history
    assert isinstance(BayesianOptimizer([[0.0], [1.0]]).seed, int)
