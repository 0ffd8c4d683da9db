"""The tuner of strengths by its formula, and networks that it trains."""

import os
import signal

import pytest
import torch

from pyro_ext.models.symmetry import EquivarianceTuner, SoftEMLP
from pyro_ext.nn import equivariance_error, equivariance_residuals, project_weights_
from pyro_ext.nn.equivariant import SO, EmbeddedO2, O, Scale, TensorRep

GROUPS = [O(3), EmbeddedO2(0, 1), EmbeddedO2(1, 2)]
IN, OUT = TensorRep({0: 2, 1: 2}), TensorRep({2: 1})


def tuned(strengths, *residuals, power=2.0):
    tuner = EquivarianceTuner(strengths)
    for each in residuals:
        tuner.update(each)
    return tuner.adjust(power).tolist()


def test_tuner():
    assert tuned([10.0] * 3, [1.0, 2.0, 4.0]) == pytest.approx([10.0, 2.5, 0.625])
    assert tuned([10.0] * 3, [1.0, 2.0, 4.0], power=0.0) == [10.0] * 3
    assert tuned([7, 7], [3, 3]) == [7.0, 7.0]
    assert tuned([0.0, 5.0, 5.0], [0.5, 1.0, 2.0]) == [0.0, 5.0, 1.25]  # zeros have no say
    assert tuned([5.0, 5.0, 5.0], [0.0, 0.0, 2.0]) == [5.0, 5.0, 0.0]


def test_residuals_are_those_of_one_time():
    tuner = EquivarianceTuner([1.0, 1.0])
    for residuals, kept in (
        ([2.0, 2.0], [2.0, 2.0]),
        ([3.0, 1.0], [3.0, 1.0]),  # one is smaller, and all are taken
        ([3.0, 1.5], [3.0, 1.0]),
        ([2.9, 4.0], [2.9, 4.0]),
    ):
        tuner.update(torch.tensor(residuals))
        torch.testing.assert_close(tuner.residuals, torch.tensor(kept))
    first = tuner.adjust()
    assert torch.equal(tuner.adjust(), first)  # from the first strengths, not from these


def test_tuner_changes_nothing_of_the_caller():
    strengths = torch.tensor([1.0, 1.0])
    tuner = EquivarianceTuner(strengths)
    residuals = torch.tensor([1.0, 2.0])
    tuner.update(residuals)
    residuals.zero_()
    tuner.adjust()
    assert strengths.tolist() == [1.0, 1.0] and tuner.residuals.tolist() == [1.0, 2.0]


def test_tuner_errors():
    with pytest.raises(ValueError, match="strengths must be >= 0 and not all zero"):
        EquivarianceTuner([0.0, 0.0])
    with pytest.raises(ValueError, match="adjust needs residuals, got none"):
        EquivarianceTuner([1.0]).adjust()


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
def test_projected_networks_are_equivariant(dtype, bound):
    torch.manual_seed(0)
    network = SoftEMLP(IN, OUT, GROUPS, 40, soft_gates=False).to(dtype)
    x = torch.randn(50, 8, dtype=dtype)
    for number in (1, 0):
        project_weights_(network, number)
        assert equivariance_error(network, IN, OUT, GROUPS[number], x) < bound
    assert float(equivariance_residuals(network).detach().max()) < 1e-9


def test_training():
    """The loss falls, the seed decides, the first group has no strength."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(60, 8, generator=generator)
    y = (x[:, 2:5, None] * x[:, None, 5:]).flatten(1)
    fits = []
    for _ in range(2):
        torch.manual_seed(1)
        network = SoftEMLP(IN, OUT, GROUPS, TensorRep({0: 4, 1: 4, 2: 2}), num_blocks=1)
        state = torch.get_rng_state()
        fits.append(
            network.fit(x, y, num_steps=20, learning_rate=0.03, batch_size=60, progress=False)
        )
        assert torch.equal(torch.get_rng_state(), state)
    assert fits[0].losses == fits[1].losses and len(fits[0].losses) == 20
    assert fits[0].losses[-1] < 0.7 * fits[0].losses[0]
    variance = float(y.var(0, correction=0).mean())
    assert fits[0].strengths[0] == 0.0
    assert float(fits[0].strengths[1:].max()) == pytest.approx(variance)
    assert fits[0].residuals.shape == (3,)


def test_a_single_group_has_a_strength():
    network = SoftEMLP(IN, OUT, GROUPS[:1], 20, num_blocks=1)
    y = torch.randn(5, 9)
    fit = network.fit(torch.randn(5, 8), y, num_steps=2, progress=False)
    assert fit.strengths.tolist() == pytest.approx([float(y.var(0, correction=0).mean())])


@pytest.mark.parametrize(("step", "is_tuned"), [(12, False), (20, False), (25, True)])
def test_ctrl_c_stops_the_training(step, is_tuned):
    """Before the strengths are set, in the last step before that, and after."""
    torch.manual_seed(0)
    network = SoftEMLP(IN, OUT, GROUPS, 20, num_blocks=1)
    calls = []

    def hook(*_):
        calls.append(None)
        if len(calls) == step:
            os.kill(os.getpid(), signal.SIGINT)

    network.register_forward_pre_hook(hook)
    with pytest.warns(UserWarning, match=f"stopped after {step} of"):
        strengths = [0.0, 1.0, 1.0]
        data = torch.randn(5, 8), torch.randn(5, 9), strengths
        fit = network.fit(*data, num_steps=80, progress=False)
    assert len(fit.losses) == step and (fit.strengths.tolist() != strengths) == is_tuned


def test_the_first_group_holds_the_others():
    """Or none of them is to be without a strength."""
    x, y = torch.randn(3, 8), torch.randn(3, 9)
    for groups in ([GROUPS[1], O(3)], GROUPS[1:], [SO(3), O(3)], [O(3), SO(3) | Scale(3)]):
        network = SoftEMLP(IN, OUT, groups, 20, num_blocks=1)
        with pytest.raises(ValueError, match="groups must begin with one that holds the others"):
            network.fit(x, y, num_steps=2, progress=False)
    network.fit(x, y, [1.0, 1.0], num_steps=2, progress=False)
    for groups in ([O(3), SO(3)], [SO(3) | Scale(3), SO(3), Scale(3)]):
        SoftEMLP(IN, OUT, groups, 20, num_blocks=1).fit(x, y, num_steps=2, progress=False)


def test_network_errors():
    with pytest.raises(ValueError, match=r"groups\[1\] must act on 3 .* got O\(2\)"):
        SoftEMLP(IN, OUT, [O(3), O(2)])
