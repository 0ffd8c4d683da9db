"""Slots, attention pooling, subsampling and mixup of bags: exact identities."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO
from torch.nn.functional import cross_entropy

from pyro_ext.handlers import subsample_instances
from pyro_ext.inference import Trainer
from pyro_ext.models.sets import (
    ABMIL,
    GatedABMIL,
    SlotMIL,
    attention_concentration,
    slot_mixup,
    submix_loss,
    subsample_bags,
)
from pyro_ext.testing.nn import check_module, check_set_block

NETWORKS = {
    "SlotMIL": lambda: SlotMIL(3, 2, num_slots=4, hidden_size=12, num_heads=3),
    "SlotMIL with competition": lambda: SlotMIL(3, 2, 4, 12, 3, normalize="queries", bias=True),
    "ABMIL": lambda: ABMIL(3, 2, hidden_size=12),
    "GatedABMIL": lambda: GatedABMIL(3, 2, hidden_size=12),
}
POOLED = [name for name in NETWORKS if name != "SlotMIL with competition"]


@pytest.fixture(params=NETWORKS)
def network(request):
    torch.manual_seed(0)
    return NETWORKS[request.param]()


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("make", NETWORKS.values(), ids=NETWORKS)
def test_neither_order_nor_padding_matters(make):
    """To 1e-12 in double precision; and bags may be empty."""
    check_set_block(make, 3, equivariant=False)


# PyTorch maps its attention over parameters one by one.
@pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")
@pytest.mark.slow
@pytest.mark.parametrize("make", NETWORKS.values(), ids=NETWORKS)
def test_networks_are_modules(make):
    check_module(make, torch.randn(3, 4, 3), torch.rand(3, 4) < 0.6)


@pytest.mark.parametrize("name", POOLED)
def test_copies_of_all_instances_change_nothing(name, float64):
    """With competition of queries weights have a least value, so that it holds nearly only."""
    network = NETWORKS[name]()
    x = torch.randn(5, 7, 3)
    twice = torch.cat([x, x], -2)
    torch.testing.assert_close(network(twice), network(x))
    weights = network.attention(x)
    torch.testing.assert_close(network.attention(twice), torch.cat([weights, weights], -1) / 2.0)
    if name == "SlotMIL":
        torch.testing.assert_close(network.slots(twice), network.slots(x))


def test_attention_of_bags(network):
    x, sizes = torch.randn(4, 6, 3), torch.tensor([6, 3, 1, 0])
    mask = torch.arange(6) < sizes[:, None]
    weights = network.attention(x, mask)
    # Entropies are at most those of even weights; a single instance has all of the weight.
    is_single = weights[2, ..., 0]
    torch.testing.assert_close(is_single, torch.ones_like(is_single), atol=1e-4, rtol=0.0)
    assert bool((weights[3] == 0).all()) and bool((weights[1, ..., 3:] == 0).all())
    entropy = torch.special.entr(weights).sum(-1).reshape(4, -1)
    assert bool((entropy <= sizes.clamp(min=1).log()[:, None] + 1e-4).all())
    torch.testing.assert_close(network(x, mask)[1], network(x[1:2, :3])[0])
    assert network(x[:0]).shape == (0, 2) and network(x[0]).shape == (2,)


def test_pooling_is_attention_written_out(float64):
    x = torch.randn(7, 3)
    plain, gated = NETWORKS["ABMIL"](), NETWORKS["GatedABMIL"]()
    for network in (plain, gated):
        first = network.encoder[0]
        pooled, total = torch.zeros(12), 0.0
        for row in x:
            hidden = (first.weight @ row + first.bias).clamp(min=0.0)
            score = torch.tanh(network.projection.weight @ hidden + network.projection.bias)
            if network is gated:
                score = score / (1.0 + torch.exp(-network.gate(hidden)))
            weight = (network.score.weight[0] @ score).exp()
            pooled, total = pooled + weight * hidden, total + weight
        torch.testing.assert_close(network(x), network.output(pooled / total))


# Mixup ------------------------------------------------------------------------------------------


def test_mixture_is_of_pairs():
    slots, labels = torch.randn(9, 4, 6), torch.arange(9)
    mixed = slot_mixup(slots, labels, alpha=0.7, generator=generator())
    first, second = mixed.labels.unbind(-1)
    assert torch.equal(first, labels) and torch.equal(second.sort().values, labels)
    weight = mixed.weights[:, 0, None, None]
    torch.testing.assert_close(mixed.slots, weight * slots + (1.0 - weight) * slots[second])
    again = slot_mixup(slots, labels, alpha=0.7, generator=generator())
    assert all(torch.equal(a, b) for a, b in zip(mixed, again, strict=True))
    other = slot_mixup(slots, labels, alpha=0.7, generator=generator(1))
    assert not torch.equal(other.weights, mixed.weights)


@pytest.mark.statistical
@pytest.mark.parametrize("alpha", [1e-3, 0.1, 1.0, 20.0])
def test_weights_are_beta_variables(alpha, float64):
    """Mean and variance; false alarms: 6e-5 each."""
    number = 20_000
    weight = slot_mixup(
        torch.zeros(number, 1, 1), torch.zeros(number, dtype=torch.int64), alpha, generator()
    ).weights[:, 0]
    variance = 1.0 / (4.0 * (2.0 * alpha + 1.0))
    assert float(weight.mean()) == pytest.approx(0.5, abs=4.0 * (variance / number) ** 0.5)
    square = (weight - 0.5).square()
    error = float(square.std()) / number**0.5
    assert float(square.mean()) == pytest.approx(variance, abs=4.0 * error + 1e-12)
    assert bool(weight.isfinite().all())


def gradients(network, loss):
    return torch.autograd.grad(loss, list(network.parameters()))


def test_weights_of_zero_and_one_do_not_mix(float64):
    """Loss and gradient are those of one of the two bags without mixup."""
    network = NETWORKS["SlotMIL"]()
    x, labels = torch.randn(8, 5, 3), torch.arange(8) % 2
    mixed = slot_mixup(network.slots(x), labels, alpha=1e-6, generator=generator())
    index = slot_mixup(network.slots(x), torch.arange(8), alpha=1e-6, generator=generator()).labels
    picked = mixed.weights.argmax(-1)
    torch.testing.assert_close(mixed.weights.max(-1).values, torch.ones(8))
    assert 0 < int(picked.sum()) < 8
    source = index.gather(-1, picked[:, None])[:, 0]
    wanted = cross_entropy(network(x[source]), labels[source])
    found = mixed.cross_entropy(network.classify(mixed.slots))
    torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(gradients(network, found), gradients(network, wanted))


# Subsampling ------------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [0.01, 0.25, 0.5, 0.99, 1.0])
def test_kept_instances(rate):
    sizes = torch.tensor([10, 7, 5, 1, 2])
    mask = torch.arange(10) < sizes[:, None]
    x = torch.arange(50.0).reshape(5, 10, 1).masked_fill(~mask[..., None], math.nan)
    kept, present = subsample_bags(x, mask, rate, generator())
    wanted = [max(1, round(rate * n)) for n in sizes.tolist()]
    assert present.sum(-1).tolist() == wanted and kept.shape[1] == wanted[0]
    for row in range(5):
        values = kept[row][present[row]].flatten().tolist()
        assert len(set(values)) == len(values) and set(values) <= set(x[row].flatten().tolist())
    again, _ = subsample_bags(x, mask, rate, generator())
    torch.testing.assert_close(kept, again, equal_nan=True)
    if rate == 1.0:
        network = NETWORKS["SlotMIL"]()
        bags = torch.randn(5, 10, 3)
        subsampled = network(*subsample_bags(bags, mask, rate, generator()))
        torch.testing.assert_close(subsampled, network(bags, mask))


@pytest.mark.statistical
@pytest.mark.parametrize(("num_positive", "expected"), [(2, 0.2436), (4, 0.0530)])
def test_positives_are_lost_as_often_as_they_should(num_positive, expected):
    """Hypergeometric, bags of 40 at a rate of one half; false alarms: 6e-5."""
    number = 20_000
    assert math.comb(40 - num_positive, 20) / math.comb(40, 20) == pytest.approx(expected, abs=5e-5)
    x = (torch.arange(40) < num_positive).float()[:, None].expand(number, 40, 1)
    kept, _ = subsample_bags(x, rate=0.5, generator=generator())
    lost = float((kept.sum((1, 2)) == 0).float().mean())
    assert lost == pytest.approx(expected, abs=4.0 * (expected * (1 - expected) / number) ** 0.5)


def test_concentration_of_attention():
    even = torch.full((20,), 0.05)
    assert float(attention_concentration(even)) == pytest.approx(0.1)
    one = torch.zeros(2, 20)
    one[:, 3] = 1.0
    assert attention_concentration(one).tolist() == [1.0, 1.0]
    mask = torch.arange(20) < torch.tensor([[20], [5]])
    weights = mask / mask.sum(-1, keepdim=True)
    torch.testing.assert_close(attention_concentration(weights, mask), torch.tensor([0.1, 0.2]))


# Training ---------------------------------------------------------------------------------------


def bags(num_bags=60):
    """Bags of which those of class one hold an instance unlike the others."""
    torch.manual_seed(0)
    x, labels = torch.randn(num_bags, 12, 3), torch.arange(num_bags) % 2
    x[labels == 1, :3] += 4.0
    return x, labels, torch.arange(12) < torch.randint(6, 13, (num_bags, 1))


@pytest.mark.parametrize("name", ["SlotMIL", "GatedABMIL"])
def test_training_learns_and_repeats(name):
    x, labels, mask = bags()
    losses = []
    for _ in range(2):
        torch.manual_seed(0)
        network, draws = NETWORKS[name](), generator()
        options = {"rate": 0.5, "alpha": 1.0 if name == "SlotMIL" else None, "generator": draws}
        trainer = Trainer(network, lambda p: torch.optim.Adam(p, 0.01), stateful=[draws])
        losses.append(
            trainer.run(
                lambda n=network, o=options: submix_loss(n, x, labels, mask, **o),
                40,
                progress=False,
            )
        )
    assert losses[0] == losses[1]
    assert float((network(x, mask).argmax(-1) == labels).float().mean()) > 0.9


@pytest.mark.parametrize("rate", [1.0, 0.5])
def test_loss_is_minus_the_elbo_of_a_bag(rate):
    """Of the same halves; all bags of a plate have the same one."""
    x, labels, _ = bags(6)
    network = NETWORKS["SlotMIL"]()

    def model():
        with pyro.plate("instances", x.shape[1]) as index:
            kept = x[:, index]
        with pyro.plate("bags", len(x)):
            pyro.sample("y", dist.Categorical(logits=network(kept)), obs=labels)
        return kept

    handled = subsample_instances("instances", rate, generator())(model)
    elbo = Trace_ELBO().differentiable_loss(handled, lambda: None)
    subset = subsample_instances("instances", rate, generator())(model)()
    assert subset.shape == (6, 12 * rate, 3)
    torch.testing.assert_close(submix_loss(network, subset, labels), elbo / 6)


def test_wrong_arguments_are_named():
    network, x = NETWORKS["SlotMIL"](), torch.randn(4, 5, 3)
    labels = torch.arange(4) % 2
    with pytest.raises(ValueError, match="hidden_size must be a multiple of num_heads=3, got 13"):
        SlotMIL(3, 2, hidden_size=13, num_heads=3)
    with pytest.raises(ValueError, match=r"mask must have the shape \(4, 5\), got \(4, 4\)"):
        network(x, torch.ones(4, 4, dtype=torch.bool))
    for alpha in (None, 1.0):
        with pytest.raises(ValueError, match=r"labels must be classes below 2, got \[2, 3, 2, 3\]"):
            submix_loss(network, x, labels + 2, alpha=alpha)
    emptied = torch.ones(4, 5, dtype=torch.bool).index_fill(0, torch.tensor([1, 3]), False)
    for learn in (
        lambda: subsample_bags(x, emptied),
        lambda: submix_loss(network, x, labels, emptied),
    ):
        with pytest.raises(
            ValueError, match="mask must leave at least one instance in .* got 2 wi"
        ):
            learn()
    with pytest.raises(
        ValueError, match="x must leave at least one instance in each bag, got 1 wi"
    ):
        submix_loss(network, x[:, :0], labels)
    with pytest.raises(TypeError, match="network must have slots and classify"):
        submix_loss(NETWORKS["ABMIL"](), x, labels, alpha=1.0)
