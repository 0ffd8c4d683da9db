"""Training of learned samplers: common random numbers, checkpoints, and whether it learns."""

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_ext.checkpoint.files import CheckpointError
from pyro_ext.inference import (
    L2E,
    SGHMC,
    MetaSGMCMC,
    MetaTrainer,
    Task,
    ensemble_loss,
    single_draw_loss,
)
from pyro_ext.inference.sgmcmc import LearnedDiffusion, ResidualKinetics
from tests.killing import stopping


def classes(num_points, seed):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(3, (num_points,), generator=generator)
    centers = torch.tensor([[2.0, 0, 0, 0], [0, 2.0, 0, 0], [0, 0, 2.0, 0]])
    return centers[labels] + torch.randn(num_points, 4, generator=generator), labels


def network(x, y, width=6):
    weight0 = pyro.sample("weight0", dist.Normal(torch.zeros(4, width), 0.7).to_event(2))
    weight1 = pyro.sample("weight1", dist.Normal(torch.zeros(width, 3), 0.7).to_event(2))
    with pyro.plate("data", len(x), subsample_size=20) as index:
        logits = torch.tanh(x[index] @ weight0) @ weight1
        pyro.sample("y", dist.Categorical(logits=logits), obs=y[index])


X, Y = classes(100, 0)
NEW_X, NEW_Y = classes(200, 1)


def log_likelihood(samples):
    logits = torch.tanh(NEW_X @ samples["weight0"]) @ samples["weight1"]
    return logits.log_softmax(-1)[..., torch.arange(200), NEW_Y]


TASK = Task(network, (X, Y), log_likelihood, name="three classes")


def with_kinetics(model, module):
    return L2E(model, kinetics=module)


def trainer(tasks=(TASK,), module=None, kernel=with_kinetics, **options):
    options = {
        "num_steps": 20,
        "num_samples": 3,
        "thinning": 4,
        "num_pairs": 3,
        "seed": 5,
    } | options
    return MetaTrainer(module or ResidualKinetics((4,)), tasks, kernel, **options)


def test_losses_by_hand():
    log = torch.tensor([[[0.5, 0.1], [0.25, 0.3]], [[0.5, 0.5], [0.5, 0.5]]]).log()
    expected = -(torch.tensor([0.375, 0.2]).log()).mean()
    torch.testing.assert_close(
        ensemble_loss(log), torch.stack([expected, -torch.tensor(0.5).log()])
    )
    torch.testing.assert_close(single_draw_loss(log), -log.mean((1, 2)))
    assert (ensemble_loss(log) <= single_draw_loss(log) + 1e-6).all()
    torch.testing.assert_close(ensemble_loss(log[:, :1]), single_draw_loss(log[:, :1]))


def test_both_of_a_pair_see_the_same_numbers():
    """With perturbations of nothing all pairs are two equal chains, to the last bit."""
    one = trainer()
    points = one._parameters.detach().repeat(6, 1)
    losses = one._losses(0, points, [0, 1, 2, 0, 1, 2], seed=9)
    assert torch.equal(losses[:3], losses[3:])
    assert len(losses.unique()) == 3


def test_an_iteration_compares_chains_with_the_same_numbers():
    """Chains that do not listen to the parameters make no difference, to the last bit."""
    one = trainer(kernel=lambda model, _: SGHMC(model, step_size=0.01))
    before = one._parameters.detach().clone()
    one.step()
    assert torch.equal(one._parameters.grad, torch.zeros_like(before))
    assert torch.equal(one._parameters.detach(), before)


def test_chains_have_parameters_of_their_own():
    """Chains with perturbed parameters are those of kernels with these parameters."""
    one = trainer()
    generator = torch.Generator().manual_seed(0)
    points = one._parameters.detach() + 0.3 * torch.randn(
        6, one._parameters.numel(), generator=generator
    )
    losses = one._losses(0, points, [0, 1, 2, 0, 1, 2], seed=9)
    for row, number in enumerate([0, 1, 2, 0, 1, 2]):
        alone = one._losses(0, points[row], [number], seed=9)
        torch.testing.assert_close(alone[0], losses[row], rtol=1e-4, atol=1e-5)


def test_the_draws_are_the_last_ones():
    seen = []

    def watch(samples):
        seen.append(samples["weight0"])
        return log_likelihood(samples)

    one = trainer([Task(network, (X, Y), watch)])
    one.evaluate(one.tasks[0], num_chains=2, seed=3)
    kernel = with_kinetics(network, one.module)
    kernel.setup(0, X, Y)
    chains = kernel.begin(range(2), 3)
    for row, step in enumerate((12, 16, 20)):
        chains = kernel.advance(chains, step - chains.step)
        weights = kernel.potential.layout.unflatten(chains.position)["weight0"]
        torch.testing.assert_close(seen[0][:, row], weights)


def test_one_iteration_by_hand():
    one, module = trainer(), ResidualKinetics((4,))
    before = torch.nn.utils.parameters_to_vector(module.parameters()).detach()
    loss = one.step()
    after = torch.nn.utils.parameters_to_vector(one.module.parameters()).detach()
    assert [p.shape for p in one.module.parameters()] == [p.shape for p in module.parameters()]
    # The first step of Adam is as long as the learning rate wherever there is a gradient.
    torch.testing.assert_close(
        (after - before).abs(), torch.full_like(before, 0.02), rtol=1e-3, atol=1e-5
    )
    assert one.losses == [loss]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("module", "kernel"),
    [
        (ResidualKinetics((8,)), with_kinetics),
        (LearnedDiffusion(), lambda model, module: MetaSGMCMC(model, diffusion=module)),
    ],
    ids=["L2E", "MetaSGMCMC"],
)
def test_training_lowers_the_loss(module, kernel):
    """On chains with other seeds, by more than three standard errors of the difference."""
    one = trainer(module=module, kernel=kernel, num_pairs=6)
    before = one.evaluate(TASK, num_chains=100, seed=77)
    one.fit(60, progress=False)
    gain = before - one.evaluate(TASK, num_chains=100, seed=77)
    assert float(gain.mean()) > 3 * float(gain.std()) / 10 + 0.02


def test_training_goes_on_from_a_checkpoint(tmp_path):
    whole = trainer().fit(4, progress=False)
    path = tmp_path / "training.safetensors"
    trainer(checkpoint=path).fit(2, progress=False)
    again = trainer(checkpoint=path)
    assert len(again.losses) == 2
    again.fit(4, progress=False)
    assert again.losses == whole.losses
    for one, other in zip(again.module.parameters(), whole.module.parameters(), strict=True):
        assert torch.equal(one, other)
    with pytest.raises(CheckpointError, match="training: identity: num_pairs is 3 there and 2"):
        trainer(checkpoint=path, num_pairs=2)


def test_a_checkpoint_gives_the_seed(tmp_path):
    path = tmp_path / "training"
    first = trainer(checkpoint=path, seed=None).fit(1, progress=False)
    again = trainer(checkpoint=path, seed=None)
    assert again.seed == first.seed and again.losses == first.losses
    with pytest.raises(CheckpointError, match="the folder .* is not there"):
        trainer(checkpoint=tmp_path / "gone" / "file")


def test_ctrl_c_ends_it_after_whole_iterations():
    interrupted = stopping(log_likelihood, 3)
    with pytest.warns(UserWarning, match="stopped after 2 of 10 steps"):
        one = trainer([Task(network, (X, Y), interrupted)]).fit(10, progress=False)
    assert len(one.losses) == 2
    two = trainer().fit(2, progress=False)
    for parameter, other in zip(one.module.parameters(), two.module.parameters(), strict=True):
        assert torch.equal(parameter, other)
    one.fit(3, progress=False)
    assert one.losses == two.fit(3, progress=False).losses


def test_tasks_are_drawn():
    names = []

    def named(name):
        def watched(samples):
            names.append(name)
            return log_likelihood(samples)

        return Task(network, (X, Y), watched, name=name)

    trainer([named("a"), named("b")]).fit(12, progress=False)
    assert 2 <= names.count("a") <= 10 and len(names) == 12


def test_a_chain_that_diverges_has_the_worst_loss():
    def bad(samples):
        log = log_likelihood(samples)
        log[0] = torch.nan
        return log

    one = trainer([Task(network, (X, Y), bad)])
    assert one.evaluate(one.tasks[0], num_chains=2)[0] == 20.0
    one.step()
    assert all(torch.isfinite(parameter).all() for parameter in one.module.parameters())


def test_bad_arguments():
    with pytest.raises(ValueError, match="got 'compile'"):
        trainer(kernel=lambda m, k: L2E(m, kinetics=k, backend="compile")).step()
    with pytest.raises(ValueError, match=r"log_likelihood of 'wrong'.*\(6, 3, n\); got \(6, 3\)"):
        wrong = Task(network, (X, Y), lambda s: log_likelihood(s).sum(-1), name="wrong")
        trainer([wrong]).step()


def test_a_task_evaluates_any_kernel():
    """The same numbers as those of the trainer, for a kernel with the same networks."""
    one = trainer()
    found = TASK.evaluate(
        with_kinetics(network, one.module),
        num_steps=20,
        num_samples=3,
        thinning=4,
        num_chains=4,
        seed=8,
    )
    assert found.shape == (4, 3, 200)
    torch.testing.assert_close(ensemble_loss(found), one.evaluate(TASK, num_chains=4, seed=8))
    assert TASK.evaluate(SGHMC(network, step_size=0.01), num_chains=2).shape == (2, 5, 200)
    with pytest.raises(ValueError, match="num_steps must exceed"):
        TASK.evaluate(SGHMC(network, step_size=0.01), num_steps=3)
