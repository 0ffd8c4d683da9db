"""Prior-data fitted networks: what their attention sees, and an exact posterior predictive."""

import json

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine

from pyro_ext.checkpoint.files import CheckpointError
from pyro_ext.inference import PriorDataFittedNetwork, PriorFittedTransformer
from pyro_ext.inference.amortized import prior_fitted
from tests.killing import Killed, stopping

LOC, NOISE = 1.0, 0.5


def conjugate(x):
    mean = pyro.sample("mean", dist.Normal(0.0, LOC))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(mean, NOISE))


def line(x):
    slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
    return pyro.sample("y", dist.Normal(slope * x, 0.1).to_event(1))


def branching(x):
    if pyro.sample("sign", dist.Bernoulli(0.5)) > 0:
        return pyro.sample("y", dist.Normal(x, 0.1).to_event(1))
    return pyro.sample("y", dist.Normal(-x, 0.1).to_event(1))


def exact_predictive(y):
    precision = 1 / LOC**2 + y.shape[-1] / NOISE**2
    mean = y.sum(-1) / NOISE**2 / precision
    return dist.Normal(mean[:, None], (1 / precision + NOISE**2) ** 0.5)


def network(prior=line, **options):
    settings = dict(num_bars=20, num_points=(6, 12), num_for_borders=300, seed=0) | options
    return PriorDataFittedNetwork(prior, **settings)


@pytest.fixture
def moved():
    """A network whose weights are anything, so that everything matters that can."""
    torch.manual_seed(0)
    net = PriorFittedTransformer(8, width=16, num_layers=2, num_heads=2)
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return net.requires_grad_(False)


def test_at_first_the_context_does_not_matter():
    net = PriorFittedTransformer(8, width=16)
    xq = torch.rand(3, 5, 1)
    one, other = (net(torch.rand(3, 4, 1), torch.rand(3, 4), xq) for _ in range(2))
    assert torch.equal(one, other)


def test_neither_order_nor_other_queries_matter(moved):
    xc, yc, xq = torch.rand(3, 6, 1), torch.rand(3, 6), torch.rand(3, 5, 1)
    logits = moved(xc, yc, xq)
    order = torch.tensor([3, 1, 5, 0, 2, 4])
    torch.testing.assert_close(moved(xc[:, order], yc[:, order], xq), logits, atol=1e-5, rtol=0)
    torch.testing.assert_close(moved(xc, yc, xq[:, :2]), logits[:, :2], atol=1e-5, rtol=0)
    assert float((moved(xc, yc + 1.0, xq) - logits).abs().max()) > 0.1
    assert float((moved(xc, yc, xq + 1.0) - logits).abs().max()) > 0.1


def test_attention_is_that_of_a_masked_encoder(moved):
    """All tokens see the given points, and queries themselves: against PyTorch's own layer."""
    block = moved.blocks[0]
    layer = torch.nn.TransformerEncoderLayer(
        16, 2, 32, 0.0, "gelu", batch_first=True, norm_first=False
    )
    own = {
        "self_attn.in_proj_weight": block.project.weight,
        "self_attn.in_proj_bias": block.project.bias,
        "self_attn.out_proj.weight": block.output.weight,
        "self_attn.out_proj.bias": block.output.bias,
    }
    parts = {
        "linear1": block.inner,
        "linear2": block.outer,
        "norm1": block.attention_norm,
        "norm2": block.output_norm,
    }
    for name, part in parts.items():
        own |= {f"{name}.weight": part.weight, f"{name}.bias": part.bias}
    layer.load_state_dict(own)
    tokens, number = torch.randn(3, 9, 16), 4
    is_hidden = torch.arange(9)[None] >= number
    is_hidden = is_hidden & ~torch.eye(9, dtype=torch.bool)
    torch.testing.assert_close(
        block(tokens, number), layer(tokens, src_mask=is_hidden), atol=2e-5, rtol=1e-5
    )


def test_tokens_that_know_logarithms(tmp_path):
    """Their units are those of draws; a network that sees logarithms only knows no scale."""
    net = PriorFittedTransformer(20, width=16, num_layers=1, log_inputs=True)
    pfn = PriorDataFittedNetwork(line, net, num_points=(6, 12), num_for_borders=300, seed=0)
    pfn.fit(2, progress=False)
    x = pfn.draw(400, 9, 3, seed=1)[0].reshape(-1, 1)
    seen = (torch.cat([x, x.log()], -1) - net.x_loc) / net.x_scale
    torch.testing.assert_close(seen.mean(0), torch.zeros(2), atol=0.1, rtol=0)
    torch.testing.assert_close(seen.std(0), torch.ones(2), atol=0.1, rtol=0)
    pfn.save(tmp_path / "pfn.safetensors")
    again = PriorDataFittedNetwork.load(tmp_path / "pfn.safetensors")
    x = 0.8 * torch.rand(5) + 0.1
    assert torch.equal(pfn.predictive(x, x, x).logits, again.predictive(x, x, x).logits)
    with pytest.raises(ValueError, match=r"xq must be positive .* got -0\.5"):
        pfn.predictive(x, x, [0.5, -0.5])
    with pytest.raises(ValueError, match="x must be positive"):
        net.take_units(-x[:, None], x)
    with torch.no_grad():
        net.from_x.weight[:, 0] = 0.0
        net.x_loc[1] = 0.0
        net.from_x.weight[:, 1] = net.x_scale[1]
        net.from_x.bias.zero_()
        one, other = net(x[:, None], x, x[:, None]), net(3 * x[:, None], x, 3 * x[:, None])
        assert not torch.allclose(one, other)
        net.from_x.bias -= torch.tensor(3.0).log()
        torch.testing.assert_close(
            net(3 * x[:, None], x, 3 * x[:, None]), one, atol=1e-5, rtol=1e-4
        )


def test_draws_are_those_of_the_prior():
    """Vectorized where that works, one by one where the model branches, or by a sampler."""
    for prior, is_vectorized in ((line, True), (conjugate, True), (branching, False)):
        one = network(prior)
        x, y = one.draw(400, 8, 3, seed=0)
        assert one._is_vectorized is is_vectorized and x.shape == y.shape == (400, 8)
        assert torch.equal(y, one.draw(400, 8, 3, seed=0)[1])
    slope = (x * y).sum(-1) / x.square().sum(-1)
    assert {round(float(value)) for value in slope} == {-1, 1}
    x, y = network(line).draw(2_000, 8, 3, seed=0)
    assert float(((x * y).sum(-1) / x.square().sum(-1)).std()) == pytest.approx(1.0, rel=0.1)
    given = network(line, sampler=lambda x, num_context: x + num_context).draw(2, 8, 3)
    torch.testing.assert_close(given[1], given[0] + 3.0)


def test_the_prior_may_be_told_how_many_points_are_given():
    def told(x, num_context):
        return pyro.sample("y", dist.Delta(x + num_context).to_event(1))

    x, y = network(told).draw(3, 8, 5)
    torch.testing.assert_close(y, x + 5.0)


def test_training_leaves_generators_alone_and_repeats():
    torch.manual_seed(7)
    state = torch.get_rng_state()
    one, other = (network().fit(3, progress=False) for _ in range(2))
    assert torch.equal(state, torch.get_rng_state()) and one.losses == other.losses
    x = torch.rand(4)
    ours, theirs = (pfn.predictive(x, x, x).logits for pfn in (one, other))
    assert torch.equal(ours, theirs)
    assert len(one.fit(2, progress=False).losses) == 5 and one.losses[:3] == other.losses
    assert network(regress_context=True).fit(1, progress=False).losses != one.losses[:1]


def test_the_learning_rate_rises_evenly_and_falls_with_the_cosine():
    rates = [prior_fitted._rise_and_fall(step, num_steps=100, warm_up=0.2) for step in range(101)]
    assert rates[:20] == pytest.approx([(step + 1) / 21 for step in range(20)])
    assert rates[20] == 1.0 and rates[60] == pytest.approx(0.5) and abs(rates[100]) < 1e-12
    assert rates[40] == pytest.approx(0.5 + 0.5**1.5)
    assert prior_fitted._rise_and_fall(0, num_steps=100, warm_up=0.0) == 0.5


def test_loss_is_of_all_points_or_of_those_that_are_not_given():
    pfn = network().fit(2, progress=False)
    curves = pfn._curves(0)
    x, y, number = curves
    density = pfn.predictive(x[:, :number], y[:, :number], x).log_prob(y)
    assert pfn._loss(curves).item() == pytest.approx(-float(density[:, number:].mean()), rel=1e-5)
    pfn.regress_context = True
    assert pfn._loss(curves).item() == pytest.approx(-float(density.mean()), rel=1e-5)


def test_files(tmp_path):
    pfn = network().fit(2, progress=False)
    path = tmp_path / "pfn.safetensors"
    pfn.save(path, made="here")
    with pytest.raises(TypeError, match="facts must be plain values"):
        pfn.save(path, made=torch.ones(2))
    again = PriorDataFittedNetwork.load(path, line)
    x = torch.rand(4)
    assert torch.equal(pfn.predictive(x, x, x).logits, again.predictive(x, x, x).logits)
    assert again.num_points == (6, 12) and again.borders.equal(pfn.borders)
    again.fit(1, progress=False)
    with pytest.raises(ValueError, match="prior must be a Pyro model"):
        PriorDataFittedNetwork.load(path).fit(1, progress=False)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match="changed"):
        PriorDataFittedNetwork.load(path)
    (tmp_path / "other").write_text(json.dumps({}))
    with pytest.raises(CheckpointError):
        PriorDataFittedNetwork.load(tmp_path / "other")


def test_checkpoints_go_on_with_the_same_prior_and_settings_alone(tmp_path):
    path = tmp_path / "training"

    def longer(**options):
        return network(**options).fit(6, progress=False, checkpoint=path)

    stopped = network()
    stopped._loss = stopping(stopped._loss, 4, Killed)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        run = prior_fitted.Trainer.run
        patch.setattr(
            prior_fitted.Trainer, "run", lambda *a, **k: run(*a, **{**k, "save_every": 1})
        )
        stopped.fit(6, progress=False, checkpoint=path)
    for option in (
        {"prior": conjugate},
        {"num_points": (6, 13)},
        {"regress_context": True},
        {"inputs": lambda n, m: torch.rand(n, m) + 1.0},
    ):
        with pytest.raises(CheckpointError, match="is of another training"):
            longer(**option)
    assert longer().losses == network().fit(6, progress=False).losses


def test_several_features():
    def plane(x):
        weight = pyro.sample("weight", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("y", dist.Normal(x @ weight, 0.1).to_event(1))

    pfn = network(plane, net=PriorFittedTransformer(20, 2)).fit(2, progress=False)
    assert pfn.predictive(torch.rand(4, 2), torch.rand(4), torch.rand(7, 2)).batch_shape == (7,)


@pytest.mark.parametrize("inputs", [None, lambda sets, n: 0.2 + 0.5 * torch.rand(sets, n)])
def test_what_is_unlike_the_training_is_warned_of(inputs, tmp_path):
    """Inputs, values and numbers of points; also after a file, and not before a training."""
    pfn = network(inputs=inputs).fit(1, progress=False)
    pfn.save(tmp_path / "net")
    low, high = (0.0, 1.0) if inputs is None else (0.2, 0.7)
    x, y = torch.tensor([low, 0.3, 0.6, high]), torch.zeros(4)
    for each in (pfn, PriorDataFittedNetwork.load(tmp_path / "net")):
        each.predictive(x, y, x)
        ends = f"from {low:.1g}.* to {high - 0.001:.1g}.*, where the network was trained"
        with pytest.warns(UserWarning, match=f"xq must be {ends}, got 8.5"):
            each.predictive(x, y, [0.5, 8.5])
        with pytest.warns(UserWarning, match=f"xc must be {ends}, got -3"):
            each.predictive(x.new_tensor([-3.0, 0.3, 0.4, 0.5]), y, x)
        with pytest.warns(UserWarning, match="yc must be from .* got 100"):
            each.predictive(x, y.new_tensor([0.0, 0.0, 0.0, 100.0]), x)
        with pytest.warns(UserWarning, match="the number of points in xc must be from 2 to"):
            each.predictive(x[1:2], y[:1], x)
    PriorDataFittedNetwork(None, pfn.net, pfn.borders).predictive(x, y, [8.5])


def test_wrong_priors():
    with pytest.raises(ValueError, match=r"the site 'y', got the sites \['z'\]"):
        network(lambda x: pyro.sample("z", dist.Normal(x, 1.0).to_event(1))).draw(2, 8, 3)

    def scalar(x):
        pyro.sample("y", dist.Normal(0.0, 1.0))

    with pytest.raises(ValueError, match=r"of the shape \(\d+,\) at 'y'"):
        network(scalar).fit(1, progress=False)
    with pytest.raises(ValueError, match="borders must be given or found"):
        network().predictive([0.1, 0.2], [0.1, 0.2], [0.3])


def test_a_prior_keeps_its_sites_to_itself():
    with poutine.trace() as trace:
        network().draw(2, 8, 3)
    assert not trace.trace.nodes.keys() - {"_INPUT", "_RETURN"}


@pytest.mark.slow
def test_predictions_are_nearly_exact():
    """A mean that is not known: log densities within 0.02 of the exact ones on new data."""
    pfn = PriorDataFittedNetwork(
        conjugate, PriorFittedTransformer(50, width=32, num_layers=2), num_points=(8, 16), seed=0
    )
    pfn.fit(700, progress=False)
    for number in (2, 6):
        x, y = pfn.draw(2_000, 12, number, seed=1)
        prediction = pfn.predictive(x[:, :number], y[:, :number], x[:, number:])
        exact = exact_predictive(y[:, :number])
        future = y[:, number:]
        excess = (exact.log_prob(future) - prediction.log_prob(future)).mean()
        assert -0.005 < float(excess) < 0.03
        error = (prediction.mean - exact.loc).square().mean().sqrt()
        assert float(error) < 0.1
