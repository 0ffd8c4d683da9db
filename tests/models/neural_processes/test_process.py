"""What holds for all eight processes: symmetries, padding, sizes, types, and the Pyro model."""

import math

import pyro
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Predictive, Trace_ELBO

from pyro_ext.models.neural_processes import Batch
from pyro_ext.models.neural_processes.batch import Points
from tests.models.neural_processes.helpers import (
    MAKERS,
    RANDOM,
    fixed_draws,
    is_bootstrap,
    make,
    padded,
    rows,
    tasks,
)

every_process = pytest.mark.parametrize("name", list(MAKERS))


def close(found, expected):
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def moments(prediction):
    return torch.stack([prediction.mean, prediction.stddev])


@every_process
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_predictions_have_shapes_and_scales_above_a_tenth(name, dtype):
    process, batch = make(name).to(dtype), tasks().to(dtype=dtype)
    prediction = process.predict(*batch.context[:2], batch.target_inputs, 6)
    assert prediction.mean.shape == prediction.sample().shape == (6, 4, 7, 3)
    assert prediction.stddev.min() >= 0.1 and prediction.mean.dtype == dtype
    mixture = process.posterior_predictive(*batch.context[:2], batch.target_inputs, 6)
    assert (mixture.batch_shape, mixture.event_shape) == ((4, 7), (3,))
    assert process.loss(batch).shape == () and process.loss(batch).dtype == dtype


@every_process
def test_order_of_context_and_targets(name):
    process, batch = make(name), tasks()
    context, inputs = batch.context, batch.target_inputs
    draws = fixed_draws(process, context)
    expected = moments(process._condition(context, inputs, draws))
    order = torch.randperm(5)
    shuffled = Points(context.inputs[:, order], context.outputs[:, order])
    # Bootstrapped outputs belong to the points of the context.
    moved = draws[..., order, :] if is_bootstrap(process) else draws
    close(moments(process._condition(shuffled, inputs, moved)), expected)
    order = torch.randperm(7)
    found = moments(process._condition(context, inputs[:, order], draws))
    close(found, expected[..., order, :])
    assert not torch.allclose(expected[..., order, :], expected, atol=1e-3)


@every_process
@pytest.mark.parametrize("filling", [5.0, math.nan])
def test_padding_changes_nothing(name, filling, monkeypatch):
    process, batch = make(name), tasks()
    padding = padded(batch, filling)
    draws = fixed_draws(process, batch.context)
    wide = draws
    if is_bootstrap(process):
        wide = draws.new_full((3, 4, 8, 3), 0.0)
        wide[..., rows(5), :] = draws
    prediction = process._condition(batch.context, batch.target_inputs, draws)
    found = process._condition(padding.context, batch.target_inputs, wide)
    close(moments(found), moments(prediction))

    monkeypatch.setattr(type(process), "_draw", lambda *_: draws)
    if name in ("NP", "ANP"):  # they draw otherwise, in numbers that do not depend on padding
        monkeypatch.undo()
    losses = []
    for one, drawn in ((batch, draws), (padding, wide)):
        if is_bootstrap(process):
            monkeypatch.setattr(type(process), "_draw", lambda *_, drawn=drawn: drawn)
        process.zero_grad()
        loss = process.loss(one, 3, generator=torch.Generator().manual_seed(0))
        loss.backward()
        gradients = [p.grad for p in process.parameters() if p.grad is not None]
        losses.append((loss, torch.cat([gradient.flatten() for gradient in gradients])))
    close(losses[1][0], losses[0][0])
    torch.testing.assert_close(losses[1][1], losses[0][1], atol=1e-4, rtol=1e-4)


@every_process
@pytest.mark.parametrize("number", [0, 1])
def test_small_contexts(name, number):
    process, batch = make(name), tasks(num_context=number)
    prediction = process.predict(*batch.context[:2], batch.target_inputs, 3)
    assert moments(prediction).isfinite().all()
    loss = process.loss(batch)
    loss.backward()
    assert loss.isfinite()
    assert all(p.grad.isfinite().all() for p in process.parameters() if p.grad is not None)


@every_process
def test_context_of_padding_is_an_empty_context(name):
    process, batch = make(name), tasks(num_context=0)
    inputs = batch.target_inputs
    empty = process.predict(*batch.context[:2], inputs, 3, seed=0)
    nothing = torch.full((4, 2, 2), math.nan), torch.full((4, 2, 3), math.nan)
    mask = torch.zeros(4, 2, dtype=torch.bool)
    hidden = process.predict(*nothing, inputs, 3, context_mask=mask, seed=0)
    close(moments(hidden), moments(empty))


@every_process
def test_seeds(name):
    process, batch = make(name), tasks()

    def mean(**options):
        return process.predict(*batch.context[:2], batch.target_inputs, 3, **options).mean

    assert torch.equal(mean(seed=1), mean(seed=1))
    generator = torch.Generator().manual_seed(1)
    assert torch.equal(mean(generator=generator), mean(seed=1))
    first = mean(seed=1)
    is_random = name in RANDOM
    assert torch.allclose(first, mean(seed=2), atol=1e-4) != is_random
    assert torch.allclose(first[0], first[1], atol=1e-4) != is_random


@every_process
def test_mixture_is_the_mean_of_densities_at_each_point(name):
    process, batch = make(name), tasks()
    arguments = (*batch.context[:2], batch.target_inputs, 5)
    prediction = process.predict(*arguments, seed=0)
    mixture = process.posterior_predictive(*arguments, seed=0)
    expected = prediction.log_prob(batch.target_outputs).sum(-1).exp().mean(0).log()
    close(mixture.log_prob(batch.target_outputs), expected)


@every_process
def test_pyro_model_has_plates_and_an_observed_site(name):
    process, batch = make(name), padded(tasks())
    given = poutine.trace(process).get_trace(
        *batch.context[:2],
        *batch.target[:2],
        context_mask=batch.context_mask,
        target_mask=batch.target_mask,
    )
    given.compute_log_prob()
    site = given.nodes["y"]
    assert site["is_observed"]
    assert {frame.name: (frame.dim, frame.size) for frame in site["cond_indep_stack"]} == {
        "task": (-2, 4),
        "point": (-1, 10),
    }
    assert site["log_prob"].shape == (4, 10)
    assert (site["log_prob"][~batch.target_mask] == 0).all()
    rows = {"rows", "residual_rows"}
    latents = dict.fromkeys(("NP", "ANP"), {"z"}) | dict.fromkeys(("MPNP", "MPANP"), {"noise"})
    latents |= dict.fromkeys(("BNP", "BANP"), rows)
    sampled = {key for key, node in given.nodes.items() if node["type"] == "sample"}
    assert sampled - {"task", "point"} == {"y"} | latents.get(name, set())
    free = process(*batch.context[:2], batch.target_inputs.nan_to_num())
    assert free.shape == (4, 10, 3)


@pytest.mark.parametrize("name", ["CNP", "CANP"])
def test_likelihood_of_the_pyro_model_is_the_loss(name):
    process, batch = make(name), tasks()
    points = batch.points
    given = poutine.trace(process).get_trace(*batch.context[:2], *points[:2])
    expected = -given.log_prob_sum() / points.inputs[..., 0].numel()
    close(process.loss(batch), expected)


@every_process
def test_parameters_are_registered_once_and_trained(name):
    process, batch = make(name), tasks()
    guide = getattr(process, "guide", lambda *_: None)
    if name in ("MPNP", "MPANP", "BNP", "BANP"):
        guide = poutine.block(process, hide=["y"])
    svi = SVI(process, guide, pyro.optim.Adam({"lr": 1e-3}), Trace_ELBO())
    before = [parameter.detach().clone() for parameter in process.parameters()]
    svi.step(*batch.context[:2], *batch.target[:2])
    after = list(process.parameters())
    assert len(pyro.get_param_store()) == len(after)
    moved = [not torch.equal(old, new) for old, new in zip(before, after, strict=True)]
    assert sum(moved) > len(moved) / 2


def test_what_users_may_get_wrong(subtests):
    batch = tasks()
    x, y, new = *batch.context[:2], batch.target_inputs
    generator = torch.Generator()
    holes = y.clone()
    holes[2, 3] = torch.nan
    for name in MAKERS:
        for args, options, message in (
            ((x[..., :1], y, new), {}, r"context_inputs must have the shape \(num_tasks, n, 2\)"),
            ((x, holes, new), {}, r"context_outputs\[2\] must be finite, got nan in row 3"),
            ((x, y, new), {"generator": generator, "seed": 3}, "seed must be None beside a gen"),
        ):
            error = pytest.raises((TypeError, ValueError), match=message)
            with subtests.test(name, message=message), error:
                make(name).predict(*args, **options)


def test_batch_of_another_size_is_refused():
    x, y = torch.zeros(4, 3, 1), torch.zeros(4, 3, 1)
    with pytest.raises(ValueError, match="target_inputs must be of the 4 tasks"):
        Batch(x, y, x[:2], y[:2])
    with pytest.raises(ValueError, match=r"target_outputs must have the shape \(4, 3, 1\), got"):
        Batch(x, y, x, y[:, :2])


def test_points_of_a_batch():
    batch = tasks()
    assert batch.points.mask is None
    assert torch.equal(batch.points.inputs[:, :5], batch.context_inputs)
    half = Batch(*batch.context[:2], *batch.target[:2], target_mask=torch.ones(4, 7).bool())
    assert half.points.mask.all() and half.points.mask.shape == (4, 12)
    moved = half.to(dtype=torch.float64)
    assert moved.target_mask.dtype == torch.bool and moved.context_inputs.dtype == torch.float64


@pytest.mark.statistical
@pytest.mark.parametrize("name", ["CNP", "NP", "ANP", "MPNP", "MPANP"])
def test_many_draws_of_the_pyro_model_at_once(name, float64):
    """84 means within 6 standard errors; one seed in six million fails each case."""
    process, batch = make(name), tasks()
    predictive = Predictive(process, num_samples=200, parallel=True)
    found = predictive(*batch.context[:2], batch.target_inputs)["y"]
    assert found.shape == (200, 4, 7, 3)
    with torch.no_grad():
        distribution = process.predict(*batch.context[:2], batch.target_inputs, 200, seed=0)
    spread = (distribution.mean.var(0) + distribution.variance.mean(0)).sqrt()
    gaps = (found.mean(0) - distribution.mean.mean(0)) / spread
    assert gaps.abs().max() < 6 * math.sqrt(2 / 200)
