"""Networks with unequal scales: tangent Gram matrices, what steps do, and pruning."""

import math

import pytest
import torch

from pyro_ext.models.wide_networks import AsymmetricNetwork, mean_tangent_gram, tangent_gram
from pyro_ext.nn import asymmetric_variances, zipf_weights

pytestmark = pytest.mark.usefixtures("float64")

SHARES = (1.0, 0.5, 0.0)


def points(number, features, seed=0):
    """Points on the unit sphere."""
    generator = torch.Generator().manual_seed(seed)
    draws = torch.randn(number, features, generator=generator, dtype=torch.float64)
    return draws / draws.norm(dim=-1, keepdim=True)


def network_of(num_nodes, share, *, features=5, outputs=1, index=0.5, seed=0):
    variances = asymmetric_variances(zipf_weights(num_nodes, index).double(), share)
    return AsymmetricNetwork(features, outputs, variances, seed=seed)


def test_outputs_are_those_of_the_formula():
    network = network_of(7, 0.3, outputs=2)
    inputs = points(4, 5)
    nodes = (inputs @ network.hidden.weight.T / math.sqrt(5)).relu()
    signs = network.output.weight
    expected = (nodes * network.variances.sqrt()) @ signs.T
    torch.testing.assert_close(network(inputs), expected)
    assert set(signs.unique().tolist()) == {-1.0, 1.0}


def test_only_hidden_weights_are_trained():
    network = network_of(7, 0.3)
    trained = [name for name, part in network.named_parameters() if part.requires_grad]
    assert trained == ["hidden.weight"]


def test_wider_networks_begin_with_the_nodes_of_narrower_ones():
    narrow, wide = network_of(250, 0.3, outputs=2), network_of(1000, 0.3, outputs=2)
    assert (wide.hidden.weight[:250] == narrow.hidden.weight).all()
    assert (wide.output.weight[:, :250] == narrow.output.weight).all()
    for dtype in (torch.float32, torch.float64):  # less than sixteen numbers are drawn otherwise
        few, many = (AsymmetricNetwork(2, 1, torch.ones(m, dtype=dtype), seed=0) for m in (2, 9))
        assert (many.hidden.weight[:2] == few.hidden.weight).all()


def test_starts_are_those_of_the_seed_and_the_scale():
    variances = torch.full((4000,), 1 / 4000, dtype=torch.float64)
    first, again, other = (AsymmetricNetwork(5, 1, variances, 3.0, seed=s) for s in (0, 0, 1))
    assert (first.hidden.weight == again.hidden.weight).all()
    assert (first.output.weight == again.output.weight).all()
    assert (first.hidden.weight != other.hidden.weight).all()
    assert abs(first.output.weight.mean().item()) < 0.1  # more than six standard errors
    # 20,000 weights: within six standard errors.
    assert first.hidden.weight.std().item() == pytest.approx(3.0, rel=0.03)


@pytest.mark.parametrize("share", SHARES)
def test_gram_matrix_is_that_of_gradients(share):
    network = network_of(30, share, outputs=2)
    inputs = points(6, 5)
    parameters = {"hidden.weight": network.hidden.weight.detach()}

    def outputs(values):
        return torch.func.functional_call(network, values, (inputs,))

    jacobian = torch.func.jacrev(outputs)(parameters)["hidden.weight"].flatten(2)
    for output in range(2):
        gram = jacobian[:, output] @ jacobian[:, output].T
        torch.testing.assert_close(tangent_gram(network, inputs), gram)


@pytest.mark.statistical
@pytest.mark.parametrize("share", SHARES)
def test_mean_and_variance_of_the_gram_matrix(share):
    r"""Entries over 1,500 starts within 5 standard errors: less than 1 seed in 1,000 fails.

    A node is active at two points with the probability :math:`q`, independently of others: the
    variance is :math:`(x^\top x' / d)^2 q (1 - q) \sum_j \lambda_j^2`.
    """
    inputs, number = points(3, 5), 1500
    grams = torch.stack(
        [tangent_gram(network_of(40, share, seed=s), inputs) for s in range(number)]
    )
    mean = mean_tangent_gram(inputs)
    products = inputs @ inputs.T / 5
    error = grams.std(0) / math.sqrt(number)
    assert ((grams.mean(0) - mean).abs() <= 5.0 * error).all()
    probability = mean / products
    squares = network_of(40, share).variances.square().sum()
    variance = products.square() * probability * (1 - probability) * squares
    kurtosis = (grams - mean).pow(4).mean(0) / variance**2
    error = variance * ((kurtosis - 1).clamp(min=1.0) / number).sqrt()
    assert ((grams.var(0) - variance).abs() <= 5.0 * error).all()


def test_mean_gram_matrix_has_the_arc_cosine_form():
    inputs = torch.tensor([[1.0, 0.0], [1.0, 1.0], [-2.0, 0.0]], dtype=torch.float64)
    angles = torch.tensor([[0.0, 0.25, 1.0], [0.25, 0.0, 0.75], [1.0, 0.75, 0.0]]) * math.pi
    expected = inputs @ inputs.T / 2 * (math.pi - angles) / (2 * math.pi)
    torch.testing.assert_close(mean_tangent_gram(inputs), expected, atol=1e-7, rtol=1e-7)


def test_the_flow_converges_at_the_rate_of_the_symmetric_part():
    r"""Half the sum of squares falls at least as :math:`e^{-\gamma \kappa_n t / 2}`."""
    share, inputs = 0.5, points(8, 5)
    network = network_of(3000, share)
    targets = inputs[:, :1].sin()
    kappa = float(torch.linalg.eigvalsh(mean_tangent_gram(inputs))[0])
    step, losses = 0.5, []
    for _ in range(400):
        loss = 0.5 * (network(inputs) - targets).square().sum()
        losses.append(loss.item())
        (gradient,) = torch.autograd.grad(loss, network.hidden.weight)
        with torch.no_grad():
            network.hidden.weight -= step * gradient
    time = step * torch.arange(400)
    envelope = losses[0] * (-share * kappa / 2 * time).exp()
    assert (torch.tensor(losses) <= envelope * (1 + 1e-9)).all()
    assert kappa > 1e-3 and losses[-1] < 0.5 * losses[0]


def test_a_pruned_network_is_that_of_the_largest_nodes():
    network, inputs = network_of(20, 0.3, outputs=2), points(4, 5)
    network.prune(0.75)
    small = AsymmetricNetwork(5, 2, network.variances[:5])
    small.hidden.weight.data = network.hidden.weight[:5]
    small.output.weight.data = network.output.weight[:, :5]
    torch.testing.assert_close(network(inputs), small(inputs))


def test_features_are_those_of_the_largest_nodes():
    variances = torch.tensor([0.1, 0.6, 0.3], dtype=torch.float64)
    network, inputs = AsymmetricNetwork(5, 1, variances), points(4, 5)
    nodes = (inputs @ network.hidden.weight.T / math.sqrt(5)).relu()
    torch.testing.assert_close(network.features(inputs, 2), nodes[:, [1, 2]])
    assert network.features(inputs).shape == (4, 3)
    with pytest.raises(ValueError, match="number must be at most 3, .* got 4"):
        network.features(inputs, 4)
