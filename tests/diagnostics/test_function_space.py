"""R-hat and effective sample sizes of predictions are ArviZ's of each point and class."""

import math

import numpy as np
import pytest
import torch

from pyro_ext.diagnostics.function_space import fractions_below, predictive_ess, predictive_rhat


def predictions(num_chains=4, num_draws=100, num_points=3, num_classes=3, shift=0.0, seed=0):
    """Independent draws, the first chain with logits of the first class shifted."""
    generator = torch.Generator().manual_seed(seed)
    shape = (num_chains, num_draws, num_points, num_classes)
    logits = torch.randn(shape, generator=generator, dtype=torch.float64)
    logits[0, ..., 0] += shift
    return logits.softmax(-1)


def binary(first):
    """Probabilities of two classes of one point, from those of the first by chain and draw."""
    values = torch.as_tensor(np.asarray(first, dtype=float))
    return torch.stack([values, 1.0 - values], -1).unsqueeze(2)


@pytest.mark.parametrize("num_draws", [4, 5, 101])
@pytest.mark.parametrize("function", [predictive_rhat, predictive_ess])
def test_values_are_those_of_arviz(function, num_draws):
    import arviz

    alone = arviz.rhat if function is predictive_rhat else arviz.ess
    probabilities = predictions(num_chains=3, num_draws=num_draws, num_points=2)
    found = function(probabilities)
    assert found.shape == (2, 3) and found.dtype == torch.float64
    for point in range(2):
        for label in range(3):
            wanted = float(alone(probabilities[:, :, point, label].contiguous().numpy()))
            assert float(found[point, label]) == pytest.approx(wanted, rel=1e-12)
    torch.testing.assert_close(function(probabilities.numpy()), found, rtol=0.0, atol=0.0)


@pytest.mark.statistical
def test_exchanged_hidden_units_are_not_seen(float64, seed=0):
    """Chains in two copies of a mode; no false alarm was to be seen in 400 seeds."""
    generator = torch.Generator().manual_seed(seed)
    first = torch.randn(2, 400, 1, 2, generator=generator) + torch.tensor([[-3.0, 3.0]])
    second = torch.randn(2, 400, 2, 2, generator=generator)
    order = torch.tensor([1, 0])
    first[1], second[1] = first[1][..., order], second[1][..., order, :]
    inputs = torch.linspace(0.2, 1.0, 5)[:, None]
    probabilities = ((inputs @ first).tanh() @ second).softmax(-1)
    weights = (first.flatten(2) / 20.0).sigmoid()
    assert (predictive_rhat(torch.stack([weights, 1.0 - weights], -1)) > 1.5).all()
    assert (predictive_rhat(probabilities) < 1.05).all()


@pytest.mark.parametrize("num_draws", [4, 7, 50])
def test_the_same_probability_in_all_draws_is_nan(num_draws):
    same = binary(np.full((3, num_draws), 0.3))
    mixed = torch.cat([same, predictions(3, num_draws, num_points=1, num_classes=2)], 2)
    for function in (predictive_rhat, predictive_ess):
        assert function(same).isnan().all()
        assert function(mixed).isnan().tolist() == [[True, True], [False, False]]


def test_chains_that_stay_where_they_are():
    for points in ([0.1, 0.2, 0.3, 0.4], [0.0, 0.0, 1.0], [0.2, 0.7]):
        stuck = binary(np.repeat(np.array(points)[:, None], 40, 1))
        assert predictive_rhat(stuck).tolist() == [[math.inf, math.inf]]
        assert (predictive_ess(stuck) < 10).all()


def test_single_precision():
    probabilities = predictions(shift=0.5)
    for function in (predictive_rhat, predictive_ess):
        found = function(probabilities.float())
        assert found.dtype == torch.float64
        torch.testing.assert_close(found, function(probabilities), rtol=1e-3, atol=0.0)


def test_fractions():
    r_hat = torch.tensor([[1.0, 1.01, math.inf], [1.1, math.nan, 1.3]], dtype=torch.float64)
    assert fractions_below(r_hat) == {1.01: 0.2, 1.05: 0.4, 1.2: 0.6}
    assert fractions_below(r_hat.numpy(), [2.0]) == {2.0: 0.8}
    assert math.isnan(fractions_below(torch.tensor([math.nan]))[1.01])


def test_what_users_may_get_wrong():
    good = predictions()
    for function, least in ((predictive_rhat, 2), (predictive_ess, 1)):
        for wrong in (good[0], good[:, :3], good[: least - 1]):
            with pytest.raises(ValueError, match=f"probabilities must have .* {least} chain"):
                function(wrong)
        broken = good.clone()
        broken[2, 5, 1, 0] = math.nan
        with pytest.raises(ValueError, match=r"\[2\] must be .* got nan at \(5, 1, 0\)"):
            function(broken)
    assert predictive_ess(good[:1]).isfinite().all()
