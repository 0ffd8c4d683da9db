"""The supervised not-MIWAE: its bound by hand and by Pyro, padding, weights, training."""

import copy
import math
import os
import signal

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import RenyiELBO
from torch.nn.functional import binary_cross_entropy_with_logits

from pyro_ext.checkpoint import CheckpointError
from pyro_ext.handlers import obs_dropout
from pyro_ext.inference.training import TrainingWarning
from pyro_ext.models.time_series import CauchyGP, SupervisedNotMIWAE
from pyro_ext.random import seeded
from tests.killing import Killed, stopping

NUM_SERIES, NUM_STEPS, NUM_CHANNELS, NUM_CLASSES = 6, 7, 3, 4
LENGTHS = torch.tensor([7, 2, 5, 1, 7, 4])
VALID = torch.arange(NUM_STEPS) < LENGTHS[:, None]


def data(seed=0):
    """Series with gaps, one of which has a channel that is never observed."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(NUM_SERIES, NUM_STEPS, NUM_CHANNELS, generator=generator).to(
        torch.get_default_dtype()
    )
    mask = torch.rand(x.shape, generator=generator) < 0.6
    mask[2, :, 1] = False
    times = torch.rand(x.shape[:2], generator=generator).cumsum(1).to(x)
    y = torch.randint(NUM_CLASSES, (NUM_SERIES,), generator=generator)
    return x, y, mask, times, LENGTHS


def small(**options):
    torch.manual_seed(0)
    options = {"latent_size": 2, "width": 8, "num_layers": 1, **options}
    return SupervisedNotMIWAE(NUM_CHANNELS, NUM_CLASSES, **options)


def pyro_loss(model, num_particles, *args, rate=0.0, seed=0, **kwargs):
    """The bound by Pyro, of a series."""
    pyro.set_rng_seed(seed)
    vectorize = num_particles > 1
    elbo = RenyiELBO(
        0, num_particles=num_particles, max_plate_nesting=1, vectorize_particles=vectorize
    )
    program = obs_dropout(["seen"], rate)(model.model) if rate else model.model
    return elbo.loss(program, model.guide, *args, **kwargs) / NUM_SERIES


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"missing_model": False, "decay": False, "prior": None},
        {"num_static": 2},
    ],
    ids=str,
)
@pytest.mark.parametrize("num_latents", [1, 4])
@pytest.mark.usefixtures("float64")
def test_bound_is_that_of_pyro(options, num_latents):
    """The same draws, since both take them in one order."""
    model = small(**options)
    x, y, mask, times, lengths = data()
    static = torch.randn(NUM_SERIES, 2) if "num_static" in options else None
    expected = pyro_loss(model, num_latents, x, mask, times, lengths, static, y, rate=0.3)
    pyro.set_rng_seed(0)
    found = model.loss(x, y, mask, times, lengths, static, num_latents=num_latents)
    torch.testing.assert_close(float(found.detach()), expected)
    other = model.loss(x, y, mask, times, lengths, static, num_latents=num_latents)
    assert not torch.allclose(found, other)


@pytest.mark.usefixtures("float64")
def test_bound_of_one_draw_is_log_likelihood_of_the_label_plus_elbo():
    model = small(missing_model=False, decay=False, dropout_rate=0.0)
    x, y, mask, times, lengths = data()
    series = model._series(x, mask, times, lengths, None)
    pyro.set_rng_seed(0)
    found = model.loss(x, y, mask, times, lengths, num_latents=1)
    pyro.set_rng_seed(0)
    q = model._posterior(series)
    z = q.rsample((1,))[0]
    loc, scale = model._decode(z, series)
    generated = dist.Normal(loc, scale).rsample()
    log_q = torch.where(VALID[:, None], q.log_prob(z), 0.0).sum((1, 2))
    log_x = torch.where(mask & VALID[..., None], dist.Normal(loc, scale).log_prob(x), 0.0)
    log_prior = []
    for z_i, length in zip(z, LENGTHS.tolist(), strict=True):
        gram = CauchyGP().covariance(length)
        prior = dist.MultivariateNormal(torch.zeros(length), gram)
        log_prior.append(prior.log_prob(z_i[:, :length]).sum())
    elbo = log_x.sum((1, 2)) + torch.stack(log_prior) - log_q
    filled = torch.where(mask, x, generated) * VALID[..., None]
    log_y = model._classify(series, filled).log_softmax(-1).gather(1, y[:, None])[:, 0]
    torch.testing.assert_close(found, -(log_y + elbo).mean())


@pytest.mark.parametrize("online", [False, True])
def test_gaps_and_padding_have_no_influence(online):
    model = small(online=online, duration=5.0 if online else None)
    x, y, mask, times, lengths = data()
    y = y[:, None].expand(-1, NUM_STEPS) if online else y
    other = torch.where(mask & VALID[..., None], x, torch.nan)
    late = torch.where(VALID, times, torch.nan)
    for function in (
        lambda *a: model.loss(a[0], y, *a[1:], num_latents=3),
        lambda *a: model.predict(*a, num_latents=3, seed=0).probs[VALID if online else ...],
    ):
        found = []
        for values, stamps in ((x, times), (other, late)):
            pyro.set_rng_seed(0)
            found.append(function(values, mask, stamps, lengths))
        assert torch.equal(*found) and bool(found[0].isfinite().all())


@pytest.mark.usefixtures("float64")
def test_padded_series_are_as_series_alone():
    """But for the latent draws, which are set."""
    model = small(num_static=2)
    x, y, mask, times, lengths = data()
    static = torch.randn(NUM_SERIES, 2)
    series = model._series(x, mask, times, lengths, static)
    posterior = model._posterior(series)
    z = posterior.sample((1,))
    loc, _ = model._decode(z, series)
    log_prior = model._prior(series).log_prob(z)
    logits = model._classify(series, series.x)
    for i, length in enumerate(LENGTHS.tolist()):
        alone = model._series(
            *(t[i : i + 1, :length] for t in (x, mask, times)), None, static[i:][:1]
        )
        torch.testing.assert_close(model._posterior(alone).loc[0], posterior.loc[i, :, :length])
        own = z[:, i : i + 1, :, :length]
        torch.testing.assert_close(model._decode(own, alone)[0][:, 0], loc[:, i, :length])
        torch.testing.assert_close(model._prior(alone).log_prob(own)[:, 0], log_prior[:, i])
        torch.testing.assert_close(model._classify(alone, alone.x)[0], logits[i])


def test_weights_and_effective_number_of_draws():
    model = small()
    x, _, *rest = data()
    found = model.predict(x, *rest, num_latents=5, num_draws=2, seed=0, batch_size=4)
    torch.testing.assert_close(found.weights.sum(0), torch.ones(NUM_SERIES))
    torch.testing.assert_close(found.ess, 1.0 / found.weights.square().sum(0))
    torch.testing.assert_close(found.probs.sum(-1), torch.ones(NUM_SERIES))
    same = model.predict(x, *rest, num_latents=1, seed=0)
    torch.testing.assert_close(same.ess, torch.ones(NUM_SERIES))


def test_probabilities_are_averaged_with_the_weights():
    """One draw of the gaps at a time, of fully observed series, is one classifier's output."""
    model = small()
    x, _, _, times, lengths = data()
    found = model.predict(x, None, times, lengths, num_latents=3, num_draws=2, seed=0)
    series = model._series(x, None, times, lengths, None)
    expected = model._classify(series, series.x).softmax(-1)
    torch.testing.assert_close(found.probs, expected)


def test_moments_of_imputations():
    model = small()
    x, _, mask, times, lengths = data()
    found = model.predict(x, mask, times, lengths, num_latents=3, seed=0, num_draws=1)
    with torch.no_grad(), seeded(0):
        series = model._series(x, mask, times, lengths, None)
        _, loc, scale = model._draw_latents(series, 3)
    mixed = dist.MixtureSameFamily(
        dist.Categorical(found.weights.T[:, None, None].expand(*x.shape, 3)),
        dist.Normal(loc.movedim(0, -1), scale.movedim(0, -1)),
    )
    torch.testing.assert_close(found.loc, mixed.mean)
    torch.testing.assert_close(found.scale, mixed.variance.sqrt())


def test_missing_model_sees_what_is_left():
    """Its term is that of the mask after the dropout, over cells that are no padding."""
    model = small()
    x, y, mask, times, lengths = data()
    pyro.set_rng_seed(0)
    trace = poutine.trace(obs_dropout(["seen"], 0.5)(model.model)).get_trace(
        x, mask, times, lengths, None, y
    )
    seen, filled = trace.nodes["seen"]["value"], trace.nodes["filled"]["value"]
    assert bool((seen <= mask).all()) and not torch.equal(seen, mask & VALID[..., None])
    trace.compute_log_prob()
    logits = model._missing_logits(filled)
    error = binary_cross_entropy_with_logits(logits, seen.float(), reduction="none")
    torch.testing.assert_close(
        trace.nodes["mask"]["log_prob"], -(error * VALID[..., None]).sum((1, 2))
    )
    observed = dist.Normal(
        *model._decode(trace.nodes["z"]["value"], model._series(x, mask, times, lengths, None))
    ).log_prob(x)
    torch.testing.assert_close(
        trace.nodes["x"]["log_prob"], (observed * (mask & VALID[..., None])).sum((1, 2))
    )


@pytest.mark.parametrize("rate", [0.0, 1.0])
def test_rates_of_nothing_and_all(rate):
    model = small()
    x, y, *rest = data()
    trace = poutine.trace(obs_dropout(["seen"], rate)(model.model)).get_trace(x, *rest, None, y)
    filled, z = trace.nodes["filled"]["value"], trace.nodes["z"]["value"]
    series = model._series(x, *rest, None)
    if rate:
        loc, scale = model._decode(z, series)
        gamma = math.exp(-0.05)
        generated = loc + scale * trace.nodes["noise"]["value"]
        torch.testing.assert_close(filled, (1 - gamma) * generated * VALID[..., None])
    else:
        plain = poutine.trace(poutine.replay(model.model, trace)).get_trace(x, *rest, None, y)
        assert torch.equal(filled, plain.nodes["filled"]["value"])


@pytest.mark.usefixtures("float64")
def test_online_model_is_causal():
    model = small(online=True, duration=5.0)
    x, _, mask, times, _ = data()
    found = model.predict(x, mask, times, num_latents=3, seed=0)
    assert found.probs.shape == (NUM_SERIES, NUM_STEPS, NUM_CLASSES)
    torch.testing.assert_close(found.weights.sum(0), torch.ones(NUM_SERIES, NUM_STEPS))
    changed = x.clone()
    changed[:, 4:] += 1.0
    other = model.predict(changed, mask, times, num_latents=3, seed=0)
    for first, second in zip(found[:3], other[:3], strict=True):
        torch.testing.assert_close(first[:, :4], second[:, :4])
        assert not torch.allclose(first[:, 4:], second[:, 4:])
    torch.testing.assert_close(found.weights[..., :4], other.weights[..., :4])


@pytest.mark.usefixtures("float64")
def test_online_bound_is_the_mean_of_those_of_beginnings():
    """Each is that of Pyro for the series up to a step."""
    model = small(online=True, duration=5.0, dropout_rate=0.0)
    x, y, mask, times, lengths = data()
    y = torch.randint(NUM_CLASSES, (NUM_SERIES, NUM_STEPS))
    pyro.set_rng_seed(0)
    found = model.loss(x, y, mask, times, lengths, num_latents=1)
    pyro.set_rng_seed(0)
    guide = poutine.trace(model.guide).get_trace(x, mask, times, lengths, None, y)
    total = 0.0
    for i, length in enumerate(LENGTHS.tolist()):
        for end in range(1, length + 1):
            values = {
                "z": guide.nodes["z"]["value"][i : i + 1, :, :end],
                "noise": guide.nodes["noise"]["value"][i : i + 1, :end],
            }
            args = [t[i : i + 1, :end] for t in (x, mask, times)] + [None, None, y[i : i + 1, :end]]
            log_p, log_q = (
                poutine.trace(poutine.condition(program, values)).get_trace(*args).log_prob_sum()
                for program in (model.model, model.guide)
            )
            total -= (log_p - log_q) / length
    torch.testing.assert_close(found, total / NUM_SERIES)


def test_training_and_early_stopping():
    x, y, *rest = data()
    model = small()
    held = copy.deepcopy(model)
    options = {"batch_size": 3, "seed": 0, "progress": False, "learning_rate": 1e-2}
    losses = model.fit(x, y, *rest, num_epochs=4, validation_fraction=0.0, **options)
    assert len(losses) == 8 and sum(losses[-2:]) < sum(losses[:2])
    start = copy.deepcopy(held.state_dict())
    options["learning_rate"] = 0.5  # which makes predictions worse and worse
    options |= dict(num_epochs=50, validation_fraction=0.3, patience=2)
    with pytest.warns(TrainingWarning, match="series that were held out"):
        losses = held.fit(x, y, *rest, **options)
    assert len(losses) < 2 * 50
    assert any(not torch.equal(start[name], value) for name, value in held.state_dict().items())


def test_training_goes_on_from_a_checkpoint(tmp_path, monkeypatch):
    """After a crash in a validation, and after the training has stopped early, no better for it."""
    x, y, *rest = data()
    file, start = tmp_path / "training", small()
    options = dict(batch_size=2, validation_fraction=0.3, patience=2, learning_rate=0.2, seed=0)
    expected = copy.deepcopy(start)
    with pytest.warns(TrainingWarning):
        losses = expected.fit(x, y, *rest, num_epochs=20, progress=False, **options)
    crashed, again = copy.deepcopy(start), copy.deepcopy(start)
    monkeypatch.setattr(crashed, "_predict", stopping(crashed._predict, 4, Killed))
    options |= {"checkpoint": file, "progress": False, "num_epochs": 20}
    with pytest.raises(Killed):
        crashed.fit(x, y, *rest, **options)
    for _ in range(2):
        with pytest.warns(TrainingWarning):
            assert again.fit(x, y, *rest, **options) == losses
        assert all(map(torch.equal, again.state_dict().values(), expected.state_dict().values()))
    with pytest.raises(CheckpointError, match="seed"):
        again.fit(x, y, *rest, **options | {"seed": 1})


@pytest.mark.parametrize("step", [200, 86_400])
def test_times_of_a_clock(step):
    """Scaled in float64, though the network is in float32."""
    x, _, mask, *_ = data()
    stamps = 1_700_000_000 + step * torch.arange(NUM_STEPS).expand(NUM_SERIES, -1)
    for times in (stamps, stamps.double(), stamps.tolist()):
        found = small()._series(x, mask, times, None, None).times
        exact = stamps.double() / stamps[:, -1:]
        assert found.dtype == torch.float32 and torch.equal(found, exact.float())


@pytest.mark.parametrize(
    ("method", "call", "num_losses"), [("_loss", 3, 3), ("_loss", 4, 4), ("_predict", 3, 4)]
)
def test_ctrl_c_leaves_the_best_weights(monkeypatch, method, call, num_losses):
    """In the midst of the second of ten epochs of two steps, in its last step, and after it."""
    model = small()
    x, y, *rest = data()
    own, calls, states = getattr(model, method), [], []

    def interrupted(*args):
        calls.append(None)
        if len(calls) == call:
            os.kill(os.getpid(), signal.SIGINT)
        states.append(copy.deepcopy(model.state_dict()))
        return own(*args)

    monkeypatch.setattr(model, method, interrupted)
    with pytest.warns(UserWarning, match=f"stopped .*after {num_losses} of"):
        options = dict(batch_size=2, validation_fraction=0.3, seed=0, progress=False)
        losses = model.fit(x, y, *rest, num_epochs=10, learning_rate=1.0, **options)
    assert len(losses) == num_losses
    if method == "_predict":  # the weights are those of the validation before
        assert all(map(torch.equal, model.state_dict().values(), states[1].values()))


def test_series_held_out():
    """A tenth of thirty are three; they are judged in batches."""
    model, sizes = small(), []
    x, mask, y = torch.randn(30, 2, NUM_CHANNELS), torch.ones(30, 2, NUM_CHANNELS).bool(), [0] * 30
    own = model._predict

    def counted(part, *args):
        sizes.append(len(part.x))
        return own(part, *args)

    model._predict = counted
    model.fit(x, y, mask, num_epochs=1, batch_size=2, seed=0, progress=False)
    assert sizes == [2, 1] * 2  # before the training and after its epoch


def test_series_are_checked():
    model = small()
    x, y, mask, times, lengths = data()
    unsorted = times.clone()
    unsorted[3:5] = times[3:5].flip(1)
    for call, message in (
        (lambda: model.predict([x[0], x[1, :3]]), "x must have the shape .* different lengths"),
        (lambda: model.predict(torch.where(mask, x, torch.nan)), "x has NaN: pass mask"),
        (lambda: model.predict(x, mask, unsorted, lengths), "times must .* in row 4"),
        (
            lambda: model.predict(x, mask, 1_700_000_000 + torch.arange(7).expand(6, 7)),
            "times must be counted from the start of the series, got steps in row 0",
        ),
        (
            lambda: small(prior=CauchyGP(length=50.0, jitter=1e-8)).predict(
                x.repeat(1, 15, 1), mask.repeat(1, 15, 1)
            ),
            r"prior must have a covariance of 105 .* got CauchyGP.* larger jitter",
        ),
        (lambda: model.predict(x, lengths=lengths + 1), "lengths must be from 1 to 7"),
        (lambda: model.loss(x, y + 1), "y must hold classes from 0 to 3"),
        (lambda: small(online=True), "duration must be a number with online"),
        (lambda: small(width=7), "width must be a multiple"),
    ):
        with pytest.raises((ValueError, TypeError), match=message):
            call()
