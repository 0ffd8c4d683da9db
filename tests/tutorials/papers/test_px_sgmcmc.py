"""The page on cyclical schedules and parameter expansion: its parts, and in full its claims."""

import math

import pyro.distributions as dist
import pytest
import torch
from pyro import poutine

from pyro_ext.nn import BayesianClassifier
from pyro_ext.tutorials.papers import _digits_network
from tests.pages import check_short_report

PAGE = "px-sgmcmc"
pytestmark = [
    pytest.mark.short_page,
    # Of halves of a chain that goes from mode to mode, as is to be seen.
    pytest.mark.filterwarnings("ignore:the (chains|draws)"),
]


def test_short_run_saves_a_report_and_figures(short_run):
    _, folder = short_run
    check_short_report(folder, PAGE, 7, {"draws", "modes-over-steps", "expansion"})


def test_grid_is_a_mixture_of_25_gaussians(short_run):
    """As long as the tilt of the step is zero."""
    names, _ = short_run
    x = torch.tensor([[0.1, -0.2], [1.0, 1.0], [4.3, -3.9]])
    centers = 2.0 * torch.cartesian_prod(torch.arange(-2.0, 3.0), torch.arange(-2.0, 3.0))
    modes = dist.MultivariateNormal(centers, 0.03 * torch.eye(2))
    expected = modes.log_prob(x[:, None]).logsumexp(-1) - torch.tensor(25.0).log()
    for point, value in zip(x, expected, strict=True):
        conditioned = poutine.condition(names["grid"], {"x": point})
        density = poutine.trace(conditioned).get_trace(torch.zeros(10, 2)).log_prob_sum()
        torch.testing.assert_close(density, value)


def test_tilts_are_the_noise_of_the_gradient(short_run):
    """The plate multiplies the tilt by its size, so the gradient moves by the tilt itself."""
    names, _ = short_run
    tilts = torch.tensor([[0.5, -2.0]]).repeat(10, 1)
    gradients = []
    for noise in (tilts, torch.zeros(10, 2)):
        x = torch.tensor([0.1, 0.2], requires_grad=True)
        conditioned = poutine.condition(names["grid"], {"x": x})
        density = poutine.trace(conditioned).get_trace(noise).log_prob_sum()
        gradients.append(torch.autograd.grad(density, x)[0])
    torch.testing.assert_close(gradients[0] - gradients[1], tilts[0])


def test_modes_are_found_once_they_have_their_share(short_run):
    names, _ = short_run
    modes = names["MODES"]
    draws = torch.full((1000, 2), 1.0)  # between the modes
    draws[:3] = modes[0] + 0.1
    draws[10:12] = modes[7]  # two of a thousand are not more than 0.2%
    draws[500:510] = modes[24]
    found = names["num_found"](draws)
    assert found[[1, 2, 501, 502, 999]].tolist() == [0, 1, 1, 2, 2]


def test_every_candidate_of_the_network_starts_where_it_says(short_run):
    names, _ = short_run
    for tried in names["candidates"].values():
        for words, schedule in tried:
            first = schedule.step_sizes(torch.arange(1).numpy())[0]
            assert f"starts at {first:g}" in words


def test_scores_are_those_of_chains_and_of_draws(short_run):
    """One draw is sure of the label, one doubts it; the other classes share what is left."""
    names, _ = short_run
    labels = names["digits"].test_targets
    sure = torch.full((len(labels), 10), 0.1 / 9).double()
    doubting = torch.full((len(labels), 10), 0.9 / 9).double()
    sure[range(len(labels)), labels] = 0.9
    doubting[range(len(labels)), labels] = 0.1
    chain = torch.stack([sure, doubting])
    scores = names["scores_of"](torch.stack([chain, chain]))
    one_draw = -(math.log(0.9) + math.log(0.1)) / 2
    logits = math.log(math.sqrt(0.09) + 9 * math.sqrt(0.09) / 9)
    expected = {
        "NLL": -math.log(0.5),
        "one draw": one_draw,
        "error": 0.0,
        "ambiguity": -logits,
    }
    assert scores == pytest.approx(expected)


def test_chains_start_at_a_network_as_he_has_it(short_run):
    names, _ = short_run
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


def test_only_square_factors_have_less_friction(short_run, monkeypatch):
    names, _ = short_run
    kernels = []

    def stop(kernel, *_):
        kernels.append(kernel)
        raise RuntimeError("all 2 chains stopped: chain 0 diverged by step 3")

    monkeypatch.setitem(names["sample"].__globals__, "nine_draws", stop)
    for method in names["methods"].values():
        assert names["sample"](method, 2e-3, seed=0) == {}  # as where no chain stays finite
    assert kernels[0].friction == 100.0
    assert kernels[1].friction == {"*.[PQ]?": 1.0, "default": 100.0}
    for kernel in kernels:
        assert isinstance(kernel.model, BayesianClassifier) and kernel.model.batch_size == 64
        assert kernel.schedule.period == names["NUM_NETWORK_STEPS"] // 12


def test_paths_begin_and_end_at_draws(short_run):
    names, _ = short_run
    draws = names["kept_draws"]["PX-SGHMC"]
    positions, values = names["paths"](draws)
    digits, first = names["digits"], {site: value[0] for site, value in draws.items()}
    likelihoods = names["classifier"].log_likelihood(
        first, digits.train_inputs, digits.train_targets
    )
    losses = -likelihoods.mean(-1).double()
    assert positions[[0, -1]].tolist() == [0.0, 1.0] and values.shape == (8, 21)
    torch.testing.assert_close(values[:, 0], losses[:-1], rtol=1e-5, atol=0)
    torch.testing.assert_close(values[:, -1], losses[1:], rtol=1e-5, atol=0)


def test_a_difference_is_that_of_the_expanded_network_to_the_other(short_run):
    names, _ = short_run
    tables, differences = names["tables"], names["difference"]("NLL", 1e-3)
    for seed, value in differences.items():
        px, plain = (tables[name][1e-3][seed]["NLL"] for name in ("PX-SGHMC", "SGHMC"))
        assert value == px - plain


def test_network_broadcasts_over_draws():
    weights = {}
    for layer, shape in enumerate(
        zip(_digits_network.WIDTHS[:-1], _digits_network.WIDTHS[1:], strict=True)
    ):
        weights[f"weight{layer}"] = torch.randn(2, 3, *shape)
        weights[f"bias{layer}"] = torch.randn(2, 3, shape[1])
    inputs = torch.randn(5, 64)
    outputs = _digits_network.logits(weights, inputs)
    assert outputs.shape == (2, 3, 5, 10)
    one = _digits_network.logits({name: value[1, 2] for name, value in weights.items()}, inputs)
    torch.testing.assert_close(outputs[1, 2], one)
