"""Vector fields and their flows: exact flows, determinants, inner products, sites."""

import copy
import math
import pickle

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import MCMC, NUTS, SVI, Predictive, Trace_ELBO
from torch.func import jacrev, vmap

from pyro_ext.nn import (
    AffineField,
    FlowTransform,
    FunctionField,
    GeneratorField,
    OneParameterGroupAugmentation,
    ScaledField,
    flow,
    image_grid,
    inner_products,
)


def rotation(z):
    return torch.stack([-z[..., 1], z[..., 0]], -1)


def turned(z, s):
    s = torch.as_tensor(s, dtype=z.dtype)
    x, y = z.unbind(-1)
    return torch.stack([s.cos() * x - s.sin() * y, s.sin() * x + s.cos() * y], -1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_flow_of_the_rotation_field_is_a_rotation(dtype):
    z = torch.randn(4, 5, 2, dtype=dtype)
    s = torch.linspace(-1.0, 1.0, 5, dtype=dtype)
    torch.testing.assert_close(flow(rotation, z, s), turned(z, s), atol=1e-6, rtol=0)
    torch.testing.assert_close(flow(rotation, z, 0.0), z, atol=0, rtol=0)


def test_flows_are_a_group(float64):
    field = GeneratorField(3, 1, 16, 8)
    z = torch.randn(7, 1, 3)[None]
    both = flow(field.each, flow(field.each, z, 0.3), 0.5)
    torch.testing.assert_close(both, flow(field.each, z, 0.8), atol=1e-8, rtol=0)
    back = flow(field.each, flow(field.each, z, 0.7), -0.7)
    torch.testing.assert_close(back, z, atol=1e-8, rtol=0)


def test_fourth_order(float64):
    z = torch.tensor([1.0, 0.0])
    errors = [
        float((flow(rotation, z, 1.0, num_steps=n) - turned(z, 1.0)).norm()) for n in (4, 8, 16)
    ]
    assert errors[0] / errors[1] == pytest.approx(16, rel=0.1)
    assert errors[1] / errors[2] == pytest.approx(16, rel=0.1)


def test_fields_go_along_at_once(float64):
    field, z = GeneratorField(2, 3, 16, 8), torch.randn(6, 2)
    s = torch.tensor([0.2, -0.4, 0.9])
    together = flow(field.each, z.expand(3, 6, 2), s[:, None])
    for j in range(3):
        unit = torch.nn.functional.one_hot(torch.tensor(j), 3).double()
        alone = flow(field.combination(unit), z, s[j])
        torch.testing.assert_close(together[j], alone)
        torch.testing.assert_close(field.each(z.expand(3, 6, 2))[j], field(z)[:, j])


def test_periodic_fields(float64):
    field, z = GeneratorField(2, 3, 16, 8, periods={1: 2.0}), torch.randn(6, 2)
    torch.testing.assert_close(field(z), field(z + torch.tensor([0.0, 2.0])))
    assert not torch.allclose(field(z), field(z + torch.tensor([2.0, 0.0])))
    torch.testing.assert_close(field.each(z.expand(3, 6, 2)).movedim(0, -2), field(z))


def test_gradients_of_a_flow(float64):
    field = GeneratorField(2, 1, 2, 2)

    def end(z, s, *parameters):
        named = dict(zip(dict(field.named_parameters()), parameters, strict=True))
        moved = flow(
            lambda y: torch.func.functional_call(field, named, (y,))[..., 0, :], z, s, num_steps=2
        )
        return moved

    inputs = [torch.randn(2, 2), torch.tensor(0.6), *[p.detach() for p in field.parameters()]]
    assert torch.autograd.gradcheck(end, [x.requires_grad_() for x in inputs])


def test_determinant_of_the_transform(float64):
    for dim in (1, 3):
        field = GeneratorField(dim, 1, 16, 8)
        transform = FlowTransform(field, torch.tensor(0.8), num_steps=5)
        z = torch.randn(5, dim)
        jacobian = vmap(jacrev(lambda x, t=transform: t(x[None])[0]))(z)
        expected = torch.linalg.slogdet(jacobian)
        y = transform(z)
        found = transform.log_abs_det_jacobian(z, y)
        assert bool((expected.sign == 1).all()) and float(found.detach().abs().max()) > 1e-3
        torch.testing.assert_close(found, expected.logabsdet, atol=1e-6, rtol=0)
        torch.testing.assert_close(transform.inv(y), z, atol=1e-7, rtol=0)
        torch.testing.assert_close(transform.inv.log_abs_det_jacobian(y, z), -found)


def test_transform_of_a_scaling(float64):
    transform = FlowTransform(lambda z: z, torch.tensor([0.5, -1.0]))
    z = torch.randn(2, 3)
    torch.testing.assert_close(
        transform(z), z * torch.tensor([[math.exp(0.5)], [math.exp(-1.0)]]), atol=1e-6, rtol=0
    )
    found = transform.log_abs_det_jacobian(z, transform(z))
    torch.testing.assert_close(found, torch.tensor([1.5, -3.0]))
    law = dist.TransformedDistribution(dist.Normal(torch.zeros(1), 1.0).to_event(1),
                                       [FlowTransform(lambda z: z, 0.5)])  # fmt: skip
    exact = dist.Normal(torch.zeros(1), math.exp(0.5)).to_event(1)
    value = torch.randn(4, 1)
    torch.testing.assert_close(law.log_prob(value), exact.log_prob(value), atol=1e-6, rtol=0)


def test_transform_learns_in_a_guide(float64):
    """A parameter of the time, by SVI: the exact posterior is twice as wide as its base."""
    pyro.set_rng_seed(0)
    time = torch.nn.Parameter(torch.tensor(0.0))
    transform = FlowTransform(lambda z: z, time, num_steps=2)
    base = dist.Normal(torch.zeros(2), 1.0).to_event(1)

    def model():
        pyro.sample("z", dist.Normal(torch.zeros(2), 2.0).to_event(1))

    def guide():
        pyro.module("transform", transform)
        pyro.sample("z", dist.TransformedDistribution(base, [transform]))

    elbo = Trace_ELBO(num_particles=32, vectorize_particles=True, max_plate_nesting=0)
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.1}), elbo)
    for _ in range(20):
        svi.step()
    pyro.clear_param_store()
    assert float(time.detach().exp()) == pytest.approx(2.0, rel=0.15)


def test_times_have_a_posterior():
    """By NUTS, whose steps may go to infinity first: then the density is, and nothing is raised."""
    pyro.set_rng_seed(1)
    base = dist.Normal(torch.tensor([2.0, 0.0]), 0.3).to_event(1)
    data = turned(base.sample((50,)), 0.6)

    def model():
        s = pyro.sample("s", dist.Normal(0.0, 1.0))
        law = dist.TransformedDistribution(base, [FlowTransform(rotation, s, num_steps=2)])
        with pyro.plate("data", 50):
            pyro.sample("x", law, obs=data)

    mcmc = MCMC(NUTS(model, max_tree_depth=3), num_samples=5, warmup_steps=5, disable_progbar=True)
    mcmc.run()
    assert mcmc.get_samples()["s"].isfinite().all()
    growth = FlowTransform(lambda z: z**3, torch.tensor(100.0, requires_grad=True))
    end = growth(torch.ones(2))
    assert not end.isfinite().any() and not growth.log_abs_det_jacobian(end, end).isfinite()
    field = AffineField(2).combination(torch.full((6,), torch.nan, requires_grad=True))
    assert field(torch.ones(2)).isnan().all()
    with pytest.raises(ValueError, match="points along field must be finite, got inf in row 0"):
        flow(lambda z: z**3, torch.ones(1, 2), 100.0)
    with pytest.raises(ValueError, match="s must be finite"):
        FlowTransform(rotation, torch.tensor(torch.nan))


def test_times_of_a_batch(float64):
    """A base without a batch is expanded, and a law has empty draws."""
    base = dist.Normal(torch.zeros(2), 1.0).to_event(1)
    transform = FlowTransform(lambda z: z, torch.tensor([0.1, 0.2, 0.3]))
    assert "s" in dict(transform.named_buffers())
    law = dist.TransformedDistribution(base, [transform])
    assert law.batch_shape == (3,) and law.sample((0,)).shape == (0, 3, 2)
    draws = law.sample((4,))
    assert len(draws.unique()) == draws.numel()
    exact = dist.Normal(torch.zeros(3, 2), transform.s.exp()[:, None]).to_event(1)
    torch.testing.assert_close(law.log_prob(draws), exact.log_prob(draws), atol=1e-6, rtol=1e-6)


def test_velocities_are_those_of_the_points():
    z = torch.ones(5, 2)
    one = GeneratorField(2, 1, 8, 4)
    torch.testing.assert_close(flow(one, z, 0.3), FlowTransform(one, 0.3)(z))
    torch.testing.assert_close(flow(lambda y: y.neg_(), z), z / math.e, atol=1e-5, rtol=0)
    assert torch.equal(z, torch.ones(5, 2))
    with pytest.raises(ValueError, match=r"field must have n = 1 here, got 3: .* field.each"):
        flow(GeneratorField(2, 3, 8, 4), z)
    for wrong in (lambda y: y[..., :1], lambda y: y[..., None, :]):
        for move in (lambda f: flow(f, z), lambda f: FlowTransform(f, 0.5)(z)):
            with pytest.raises(ValueError, match=r"field must give velocities of the shape \(5, 2"):
                move(wrong)


def test_combinations_are_modules():
    """With parameters of the fields and of weights, pickled, copied and brought to a type."""
    field = GeneratorField(2, 3, 8, 4)
    fixed, learned = (
        FlowTransform(field.combination(w), 0.5)
        for w in (torch.ones(3), torch.nn.Parameter(torch.ones(3)))
    )
    assert len(list(fixed.parameters())) + 1 == len(list(learned.parameters())) == 9
    z = torch.randn(5, 2)
    double = copy.deepcopy(fixed).double()
    torch.testing.assert_close(double(z.double()).float(), fixed(z))
    torch.testing.assert_close(pickle.loads(pickle.dumps(fixed.field))(z), fixed.field(z))


def test_normalized_fields_keep_no_graph():
    """They serve in a model twice, and are copied."""
    pyro.clear_param_store()
    points = image_grid(6, 6)
    transform = FlowTransform(GeneratorField(2, 1, 8, 4).normalized(points), 0.3, num_steps=2)
    assert not copy.deepcopy(transform).field.scale.requires_grad
    scale = torch.nn.Parameter(torch.ones(6))
    assert ScaledField(AffineField(2), scale).scale is scale
    base = dist.Normal(torch.zeros(2), 1.0).to_event(1)

    def model():
        with pyro.plate("data", 5):
            pyro.sample("x", dist.TransformedDistribution(base, [transform]), obs=points[0, :5])

    def guide():
        pyro.module("transform", transform)

    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.1}), Trace_ELBO())
    assert svi.step() != svi.step()


def test_inner_products_of_known_fields(float64):
    grid = image_grid(32, 32)
    x, y = grid.unbind(-1)
    assert float(x.square().mean()) == pytest.approx(33 / 93, abs=1e-12)
    shear = torch.stack([y, torch.zeros_like(y)], -1)
    gram = inner_products(torch.stack([rotation(grid), grid, shear]))
    assert float(gram[0, 0]) == pytest.approx(0.709677, abs=1e-6)
    assert float(gram[0, 1]) == pytest.approx(0, abs=1e-12)
    cosine = gram[0, 2] / (gram[0, 0] * gram[2, 2]).sqrt()
    assert float(cosine) == pytest.approx(-(0.5**0.5), abs=1e-9)
    weights = torch.rand(32, 32)
    expected = (weights * rotation(grid).square().sum(-1)).sum() / weights.sum()
    torch.testing.assert_close(inner_products(rotation(grid)[None], weights)[0, 0], expected)


def test_normalized_fields(float64):
    points, weights = torch.randn(20, 2), torch.rand(20)
    fields = GeneratorField(2, 4, 16, 8).normalized(points, weights)
    values = fields(points).movedim(-2, 0)
    torch.testing.assert_close(inner_products(values, weights).diagonal(), torch.ones(4))
    torch.testing.assert_close(fields.each(points.expand(4, 20, 2)), values)
    with pytest.raises(ValueError, match="points must be such that no field is zero"):
        AffineField(2).normalized(torch.zeros(3, 2))


def test_affine_and_function_fields(float64):
    z = torch.randn(6, 5, 2)
    affine = AffineField(2)
    by_function = FunctionField(affine, 2, 6)
    torch.testing.assert_close(affine.each(z), by_function.each(z))
    rotated = affine.combination(torch.tensor([0.0, 0, 0, -1, 1, 0]))
    torch.testing.assert_close(rotated(z), rotation(z))
    scaled = ScaledField(affine, torch.arange(6.0))
    torch.testing.assert_close(scaled(z)[..., 3, :], 3 * affine(z)[..., 3, :])
    with pytest.raises(ValueError, match="function must give velocities of the shape"):
        FunctionField(rotation, 2, 1)(torch.randn(5, 2))
    with pytest.raises(ValueError, match="field must have n = 1"):
        FlowTransform(affine)


def test_augmentation_of_images(float64):
    """A translation by whole pixels is one, and each image has its own draw in a plate."""
    images = torch.rand(3, 2, 9, 9)
    augment = OneParameterGroupAugmentation(AffineField(2), 0.3)
    draws = torch.zeros(3, 6)
    draws[1, 0] = 0.25  # one pixel of nine
    draws[2, 1] = -0.5
    moved = pyro.condition(augment, {"s": draws})(images)
    torch.testing.assert_close(moved[0], images[0])
    torch.testing.assert_close(moved[1, :, :, :-1], images[1, :, :, 1:])
    torch.testing.assert_close(moved[2, :, 2:], images[2, :, :-2])
    trace = pyro.poutine.trace(augment).get_trace(images)
    trace.compute_log_prob()
    assert trace.nodes["s"]["log_prob"].shape == (3,)
    assert float(trace.nodes["s"]["value"].abs().max()) <= 0.3
    common = OneParameterGroupAugmentation(AffineField(2), 0.3, shared=True, name="u")
    trace = pyro.poutine.trace(common).get_trace(images)
    assert trace.nodes["u"]["value"].shape == (6,)
    assert trace.nodes["_RETURN"]["value"].shape == images.shape


@pytest.mark.parametrize("shared", [True, False])
def test_augmentation_in_other_plates(shared):
    """Each element of a plate around it, or draw of many, has transformations of its own."""
    x = torch.rand(4, 2, 5, 5)
    augment = OneParameterGroupAugmentation(AffineField(2), shared=shared)

    def outer():
        with pyro.plate("outer", 3):
            return augment(x)

    trace = pyro.poutine.trace(outer).get_trace()
    moved, s = trace.nodes["_RETURN"]["value"], trace.nodes["s"]["value"]
    assert moved.shape == (3, *x.shape)
    for row in range(3):
        alone = pyro.condition(augment, {"s": s[row] if shared else s[:, row]})(x)
        torch.testing.assert_close(moved[row], alone)
    many = Predictive(lambda: pyro.deterministic("y", augment(x)), num_samples=3, parallel=True)()
    assert many["y"].shape[:1] == (3,) and many["y"].numel() == 3 * x.numel()
    with pytest.raises(TypeError, match="x must be floating-point numbers"):
        augment(x.long())


def test_types_of_points_and_weights():
    field, z = GeneratorField(2, 3, 8, 4), torch.randn(5, 2)
    for points in (z.double(), z.numpy(), z.tolist()):
        torch.testing.assert_close(field(points), field(z))
    assert flow(GeneratorField(2, 1, 8, 4), z.double()).dtype == torch.float64
    whole = torch.arange(6).reshape(3, 2)
    for fields in (field, AffineField(2), FunctionField(AffineField(2), 2, 6)):
        torch.testing.assert_close(fields(whole), fields(whole.float()))
        each = torch.ones(fields.n, 4, 2)
        for own in (fields, ScaledField(fields, torch.ones(fields.n))):
            torch.testing.assert_close(own.each(each.tolist()), own.each(each))
        with pytest.raises(ValueError, match=rf"z must have the shape \({fields.n}, \*batch, 2\)"):
            fields.each(torch.ones(2, 4, 2))
    values, weights = torch.randn(2, 5, 2), torch.arange(5)
    expected = inner_products(values, weights.float())
    for same in (weights, weights.double()):
        torch.testing.assert_close(inner_products(values, same), expected)
    torch.testing.assert_close(inner_products(whole[None]), torch.tensor([[55 / 3]]))
    with pytest.raises(ValueError, match=r"points must have the shape \(\*grid, 2\)"):
        field.normalized(z[0])
