"""The flow of sets of nodes: inverses, log determinants, order, padding."""

import pytest
import torch
from pyro.distributions import Normal, TransformedDistribution

from pyro_ext.models.graphs.flow import (
    EquivariantSplineFlow,
    NodeActNorm,
    NodeLinear,
    NodeSplineCoupling,
    SetNetwork,
)
from pyro_ext.testing.nn import check_set_block

LAYERS = {
    "act norm": lambda: NodeActNorm(4, mean_scale=7.0),
    "linear": lambda: NodeLinear(4),
    "coupling": lambda: NodeSplineCoupling(4, width=8),
    "flow": lambda: EquivariantSplineFlow(4, width=8, mean_scale=7.0),
    "no layers": lambda: EquivariantSplineFlow(4, 0, mean_scale=7.0),
}
MASK = torch.tensor([[True] * 5, [True, False, True, True, False]])


def moved(name):
    """A layer with random weights, in which nothing is the identity."""
    torch.manual_seed(0)
    layer = LAYERS[name]()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return layer


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.usefixtures("float64")
def test_inverse(name):
    transform, x = moved(name).condition(MASK), 2.0 * torch.randn(2, 5, 4)
    found = transform.inv(transform(x))
    torch.testing.assert_close(found[MASK], x[MASK], atol=1e-8, rtol=0)


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.usefixtures("float64")
def test_log_determinant(name):
    layer = moved(name)
    for mask, size in ((MASK[0, :3], 3), (MASK[1, :3], 2)):
        transform, x = layer.condition(mask), torch.randn(3, 4)
        jacobian = torch.autograd.functional.jacobian(transform, x)
        jacobian = jacobian[mask][:, :, mask].reshape(4 * size, 4 * size)
        exact = torch.linalg.slogdet(jacobian).logabsdet
        value = transform.log_abs_det_jacobian(x, transform(x))
        torch.testing.assert_close(value, exact, atol=1e-8, rtol=0)


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.usefixtures("float64")
def test_order_and_padding(name):
    """Other orders of nodes move with them, and padding may be anything."""
    layer, x = moved(name), torch.randn(2, 5, 4)
    y = layer.condition(MASK)(x)
    log_det = layer.condition(MASK).log_abs_det_jacobian(x, y)
    order = torch.randperm(5)
    again = layer.condition(MASK[:, order])
    torch.testing.assert_close(again(x[:, order])[MASK[:, order]], y[:, order][MASK[:, order]])
    torch.testing.assert_close(again.log_abs_det_jacobian(x[:, order], None), log_det)
    alone = layer.condition(torch.ones(3, dtype=torch.bool))
    short = x[1, MASK[1]]
    torch.testing.assert_close(alone(short), y[1, MASK[1]])
    torch.testing.assert_close(alone.log_abs_det_jacobian(short, None), log_det[1])
    torch.testing.assert_close(layer.condition(MASK)(x + 9.0 * ~MASK[..., None])[MASK], y[MASK])


def test_couplings_begin_as_the_identity():
    torch.manual_seed(0)
    x = 4.0 * torch.randn(2, 5, 4)
    transform = NodeSplineCoupling(4, width=8).condition(MASK)
    torch.testing.assert_close(transform(x), x, atol=1e-5, rtol=1e-5)
    zero = transform.log_abs_det_jacobian(x, transform(x))
    torch.testing.assert_close(zero, torch.zeros(2), atol=1e-5, rtol=0)


@pytest.mark.usefixtures("float64")
def test_draws_of_a_transformed_distribution_have_its_density():
    """A draw through the inverse, and its density through the flow, with gradients in both."""
    flow = moved("flow")
    base = Normal(torch.zeros(2, 5, 4), 1.0).mask(MASK[..., None]).to_event(2)
    distribution = TransformedDistribution(base, [flow.condition(MASK).inv])
    x = distribution.sample()
    z = flow.condition(MASK)(x)
    exact = base.log_prob(z) + flow.condition(MASK).log_abs_det_jacobian(x, z)
    torch.testing.assert_close(distribution.log_prob(x), exact)
    distribution.log_prob(x).sum().backward()
    assert all(bool(p.grad.isfinite().all()) for p in flow.parameters())


@pytest.mark.parametrize("layer_norm", [True, False])
def test_network(layer_norm):
    """It sees neither order nor padding, whatever is in it."""
    check_set_block(
        lambda: SetNetwork(3, 5, 8, 2, num_heads=2, layer_norm=layer_norm), 3, equivariant=True
    )


def test_bad_arguments():
    with pytest.raises(ValueError, match="dim must be even, got 3"):
        EquivariantSplineFlow(3)
