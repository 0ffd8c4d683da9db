"""The losses of martingale posterior processes written out, and what their generators do."""

import math

import pyro
import pytest
import torch
from pyro import poutine
from pyro.infer import RenyiELBO

from pyro_ext.models.neural_processes import (
    CANP,
    CNP,
    MPANP,
    MPNP,
    PoolingEncoder,
    RepresentationGenerator,
)
from tests.models.neural_processes.helpers import make, tasks

both = pytest.mark.parametrize("kind", [MPNP, MPANP])


def log_likelihoods(process, batch, pseudo, with_context):
    """Log likelihood of each point, from concatenated features. **Shape:** ``(K, tasks, n)``."""
    points = batch.points
    context = process.encoder.features(*batch.context[:2])
    out = []
    for features in pseudo:
        rows = torch.cat([context, features], 1) if with_context else features
        representation = process.encoder.summarize(rows, points.inputs)
        distribution = process.decoder(representation, points.inputs)
        out.append(distribution.log_prob(points.outputs).sum(-1))
    return torch.stack(out)


@both
def test_losses_written_out(kind, float64):
    process = kind(2, 3, 16, num_pseudo=4, weights=(0.7, 0.3, 0.2))
    batch, number = tasks(), 12
    found = process.losses(batch, 5, generator=torch.Generator().manual_seed(0))
    noise = process._draw(batch.context, 5, torch.Generator().manual_seed(0))
    pseudo = process.generator(noise, process.encoder.features(*batch.context[:2]))
    assert pseudo.shape == (5, 4, 4, process.encoder.num_features)
    joint = log_likelihoods(process, batch, pseudo, True).sum(-1)
    marginal = -(joint.logsumexp(0) - math.log(5)).mean() / number
    alone = -log_likelihoods(process, batch, pseudo, False).mean()
    points = batch.points
    prediction = process.decoder(process.encoder(*batch.context[:2], points.inputs), points.inputs)
    amortized = -prediction.log_prob(points.outputs).sum(-1).mean()
    torch.testing.assert_close(torch.stack(found), torch.stack([marginal, amortized, alone]))
    loss = process.loss(batch, 5, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(loss, 0.7 * marginal + 0.3 * amortized + 0.2 * alone)


@both
@torch.no_grad()
def test_marginal_loss_is_a_bound_of_pyro(kind, float64):
    """By the same draws; noise comes from the model, which is the guide, too."""
    process, batch = make("MPNP" if kind is MPNP else "MPANP"), tasks()
    elbo = RenyiELBO(0, num_particles=5, max_plate_nesting=2, vectorize_particles=True)
    guide = poutine.block(process, hide=["y"])
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    bound = elbo.loss(process, guide, *batch.context[:2], *batch.points[:2])
    pyro.set_rng_seed(0)
    marginal, _, _ = process.losses(batch, 5)
    assert bound == pytest.approx(float(marginal) * batch.points.inputs[..., 0].numel())


@pytest.mark.parametrize(("kind", "plain"), [(MPNP, CNP), (MPANP, CANP)])
def test_without_pseudo_points_it_is_the_conditional_process(kind, plain):
    process, expected = kind(2, 3, 16, num_pseudo=0), plain(2, 3, 16)
    for name in ("encoder", "decoder"):
        getattr(expected, name).load_state_dict(getattr(process, name).state_dict())
    batch = tasks()
    torch.testing.assert_close(process.loss(batch, 1), 2 * expected.loss(batch))
    arguments = (*batch.context[:2], batch.target_inputs, 3)
    torch.testing.assert_close(process.predict(*arguments).mean, expected.predict(*arguments).mean)


@both
def test_gradient_reaches_the_generator(kind):
    process = kind(2, 3, 16, num_pseudo=4, weights=(1, 0, 0))
    process.loss(tasks(), 3).backward()
    gradients = [parameter.grad for parameter in process.generator.parameters()]
    assert all(gradient is not None for gradient in gradients)
    assert sum(float(gradient.abs().max()) > 0 for gradient in gradients) > len(gradients) / 2


@both
def test_order_of_noise_and_context(kind):
    process = kind(2, 3, 16, num_pseudo=6)
    batch = tasks()
    context, inputs = batch.context, batch.target_inputs
    noise = process._draw(context, 3, None)
    expected = process._condition(context, inputs, noise).mean
    order = torch.randperm(6)
    found = process._condition(context, inputs, noise[:, :, order]).mean
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    features = process.encoder.features(*context[:2])
    pseudo = process.generator(noise, features)
    moved = process.generator(noise[:, :, order], features)
    torch.testing.assert_close(moved, pseudo[:, :, order], atol=1e-5, rtol=1e-5)
    order = torch.randperm(5)
    moved = process.generator(noise, features[:, order])
    torch.testing.assert_close(moved, pseudo, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(pseudo[0], pseudo[1], atol=1e-2)


def test_features_of_a_generator_are_two_blocks_of_attention():
    encoder = PoolingEncoder(1, 1, 16)
    generator = RepresentationGenerator(encoder, num_heads=4)
    features, noise = torch.randn(4, 5, 16), torch.randn(4, 6, 16)
    first, second = generator.attention.gather, generator.attention.spread
    expected = second(noise, first(features, noise))
    torch.testing.assert_close(generator(noise, features), expected)


def test_weights_of_zero_are_not_computed():
    process = MPNP(2, 3, 16, weights=(1, 0, 0))
    _, amortized, alone = process.losses(tasks())
    assert amortized == 0 and alone == 0
    assert MPNP(2, 3, 16, weights=(0, 0, 0)).loss(tasks()) == 0


def test_what_users_may_get_wrong():
    with pytest.raises(ValueError, match=r"weights must be three numbers, got \[1, 1\]"):
        MPNP(weights=(1, 1))
