"""The page on cyclical schedules and parameter expansion: its parts, and in full its claims."""

import math

import pyro.distributions as dist
import pytest
import torch
from pyro import poutine

from pyro_ext.nn import BayesianClassifier

PAGE = "px-sgmcmc"
pytestmark = [
    pytest.mark.short_page,
    # Of halves of a chain that goes from mode to mode, as is to be seen.
    pytest.mark.filterwarnings("ignore:the (chains|draws)"),
]


def test_grid_is_a_mixture_of_25_gaussians(names):
    """As long as the tilt of the step is zero."""
    x = torch.tensor([[0.1, -0.2], [1.0, 1.0], [4.3, -3.9]])
    centers = 2.0 * torch.cartesian_prod(torch.arange(-2.0, 3.0), torch.arange(-2.0, 3.0))
    modes = dist.MultivariateNormal(centers, 0.03 * torch.eye(2))
    expected = modes.log_prob(x[:, None]).logsumexp(-1) - torch.tensor(25.0).log()
    for point, value in zip(x, expected, strict=True):
        conditioned = poutine.condition(names["grid"], {"x": point})
        density = poutine.trace(conditioned).get_trace(torch.zeros(10, 2)).log_prob_sum()
        torch.testing.assert_close(density, value)


def test_tilts_are_the_noise_of_the_gradient(names):
    """The plate multiplies the tilt by its size, so the gradient moves by the tilt itself."""
    tilts = torch.tensor([[0.5, -2.0]]).repeat(10, 1)
    gradients = []
    for noise in (tilts, torch.zeros(10, 2)):
        x = torch.tensor([0.1, 0.2], requires_grad=True)
        conditioned = poutine.condition(names["grid"], {"x": x})
        density = poutine.trace(conditioned).get_trace(noise).log_prob_sum()
        gradients.append(torch.autograd.grad(density, x)[0])
    torch.testing.assert_close(gradients[0] - gradients[1], tilts[0])


def test_modes_are_found_once_they_have_their_share(names):
    modes = names["MODES"]
    draws = torch.full((1000, 2), 1.0)  # between the modes
    assert names["num_found"](draws) == 0
    draws[:3] = modes[0] + 0.1
    draws[10:12] = modes[7]  # two of a thousand are not more than 0.2%
    assert names["num_found"](draws) == 1
    draws[500:510] = modes[24]
    assert names["num_found"](draws) == 2


def test_chains_start_at_a_network_as_he_has_it(names):
    trace = poutine.trace(names["methods"]["PX-SGHMC"]).get_trace(torch.zeros(2, 64))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        start = {site: names["he_normal"](trace.nodes[site]) for site in trace.stochastic_nodes}
    assert set(start) == {
        *("0.P1", "0.weight.V", "0.bias.V", "2.P1", "2.Q1", "2.weight.V", "2.bias.V"),
        *("4.Q1", "4.weight.V", "4.bias"),
    }
    merged = names["methods"]["PX-SGHMC"].merge(start)
    for layer, inputs in (("0", 64), ("2", 32), ("4", 32)):
        torch.testing.assert_close(merged[f"{layer}.weight"], start[f"{layer}.weight.V"])
        assert not merged[f"{layer}.bias"].any()
        deviation = float(merged[f"{layer}.weight"].std())
        # The standard error is below 4%, that of 320 weights.
        assert deviation == pytest.approx(math.sqrt(2 / inputs), rel=0.16)


def test_only_square_factors_have_less_friction(names, monkeypatch):
    kernels = []

    class Stopped:
        """Keeps the kernel, and stops as where no chain stays finite."""

        def __init__(self, kernel, *_, **__):
            kernels.append(kernel)

        def run(self, *_):
            raise RuntimeError("all 2 chains stopped: chain 0 diverged by step 3")

    monkeypatch.setitem(names["sample"].__globals__, "MCMC", Stopped)
    for method in names["methods"].values():
        assert names["sample"](method, 2e-3, seed=0) == {}
    assert kernels[0].friction == 100.0
    assert kernels[1].friction == {"*.[PQ]?": 1.0, "default": 100.0}
    for kernel in kernels:
        assert isinstance(kernel.model, BayesianClassifier) and kernel.model.batch_size == 64
        assert kernel.schedule.period == names["NUM_NETWORK_STEPS"] // 12


def test_a_difference_is_that_of_the_expanded_network_to_the_other(names):
    tables, differences = names["tables"], names["difference"]("NLL", 1e-3)
    for seed, value in differences.items():
        px, plain = (tables[name][1e-3][seed]["NLL"] for name in ("PX-SGHMC", "SGHMC"))
        assert value == px - plain
