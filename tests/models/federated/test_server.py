"""Federated training: aggregation and its invariances, privacy, splits, checkpoints."""

import dataclasses
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO, TraceEnum_ELBO
from torch import nn
from torch.nn.functional import cross_entropy

from pyro_ext.checkpoint import CheckpointError
from pyro_ext.inference.privacy import pld_epsilon
from pyro_ext.inference.training import TrainingDiverged
from pyro_ext.models.federated import STRATEGIES, FederatedServer, Strategy, dirichlet_split
from pyro_ext.nn import MLP, LoRALinear, add_lora, lora_layers
from pyro_ext.random import seeded
from tests.killing import stopping

RANK = 3


def network():
    torch.manual_seed(0)
    return MLP(6, [5], 4, nn.Tanh)


def clients_of(*sizes, dtype=None):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(sum(sizes), 6, generator=generator, dtype=dtype)
    y = (x @ torch.randn(6, 4, generator=generator, dtype=dtype)).argmax(1)
    return list(zip(x.split(sizes), y.split(sizes), strict=True))


def server(strategy="fedsvd", module=None, layers=None, **options):
    options = {"num_local_steps": 2, "batch_size": 8, "seed": 0, **options}
    module = network() if module is None else module
    if not lora_layers(module):
        with seeded(options["seed"]):
            module = add_lora(module, layers, RANK)
    return FederatedServer(module, strategy, **options)


def deltas(one):
    return {name: layer.delta().detach() for name, layer in one.adapters.items()}


def least_cosine(A, B):
    """Of the principal angles between two row spaces."""
    bases = [torch.linalg.qr(rows.detach().T).Q for rows in (A, B)]
    return float(torch.linalg.svdvals(bases[0].T @ bases[1]).min())


def mean_loss(one, clients):
    with torch.no_grad():
        return float(sum(cross_entropy(one.module(x), y) for x, y in clients if len(x)))


@pytest.mark.parametrize("elbo", [Trace_ELBO, TraceEnum_ELBO])
def test_the_bound_of_a_pyro_model_is_a_loss(elbo):
    """Its steps are those of the cross entropy that it is."""

    def model(logits, y):
        with pyro.plate("data", len(y)):
            if elbo is TraceEnum_ELBO:
                pyro.sample("coin", dist.Bernoulli(0.5), infer={"enumerate": "parallel"})
            pyro.sample("y", dist.Categorical(logits=logits), obs=y)

    def bound(logits, y):
        loss = elbo(max_plate_nesting=1).differentiable_loss(model, lambda *_: None, logits, y)
        return loss / len(y)

    clients = clients_of(20, 12)
    found, expected = (server(loss=loss) for loss in (bound, cross_entropy))
    for one in (found, expected):
        one.run(clients, 2, progress=False)
    for name, value in deltas(expected).items():
        torch.testing.assert_close(deltas(found)[name], value)


# Aggregation


@pytest.mark.parametrize("name", STRATEGIES)
def test_what_strategies_make_of_clients(name, float64):
    """The weight after, from the factors of three clients; and the user's network stays."""
    torch.manual_seed(0)
    layer = LoRALinear(nn.Linear(5, 4), RANK, 6.0)
    nn.init.normal_(layer.B)
    A, B = torch.randn(3, RANK, 5), torch.randn(3, 4, RANK)
    if not STRATEGIES[name].train_A:
        A = layer.A.detach().expand(3, -1, -1)
    weights, base = torch.tensor([0.5, 0.3, 0.2]), layer.base.weight.detach().clone()
    mean_of_products = sum(w * b @ a for w, a, b in zip(weights, A, B, strict=True))
    product_of_means = torch.tensordot(weights, B, 1) @ torch.tensordot(weights, A, 1)
    with torch.no_grad():
        STRATEGIES[name].aggregate(layer, A, B, weights)
    expected = product_of_means if name == "fedavg" else mean_of_products
    torch.testing.assert_close(layer.weight.detach(), base + 2.0 * expected)
    if name == "flora":
        assert not bool(layer.B.any()) and not torch.equal(layer.A, A[0])
    elif name == "fedex":
        torch.testing.assert_close(layer.delta().detach(), product_of_means)
    else:
        assert torch.equal(layer.base.weight, base)


@pytest.mark.parametrize("noise_multiplier", [None, 1.0])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_rounds_of_every_strategy(strategy, noise_multiplier):
    """The user's network and the frozen rest stay, the same seed gives the same."""
    module, clients = network(), clients_of(9, 14, 11)
    state = {name: value.clone() for name, value in module.state_dict().items()}
    one = server(strategy, module, noise_multiplier=noise_multiplier)
    before = one.module(clients[0][0]).detach()
    torch.testing.assert_close(before, module(clients[0][0]).detach())
    one.run(clients, 2, progress=False)
    assert all(torch.equal(value, state[name]) for name, value in module.state_dict().items())
    assert not torch.equal(one.module(clients[0][0]), before)
    for name, layer in one.adapters.items():
        changed = not torch.equal(layer.base.weight, module.get_submodule(name).weight)
        assert changed == (strategy in ("flora", "fedex"))
        assert torch.equal(layer.base.bias, module.get_submodule(name).bias)
    again = server(strategy, noise_multiplier=noise_multiplier)
    assert again.run(clients, 2, progress=False) == one.rounds
    other = server(strategy, noise_multiplier=noise_multiplier, seed=1)
    other.run(clients, 2, progress=False)
    for name, value in one.module.state_dict().items():
        assert torch.equal(value, again.module.state_dict()[name])
    assert not torch.equal(deltas(other)["0"], deltas(one)["0"]) or strategy == "flora"


def test_one_client_is_plain_training(float64):
    """Of a client alone, whose minibatch is all of it: gradient descent on B."""
    clients = clients_of(12, dtype=torch.float64)
    one = server("ffa", batch_size=50, max_norm=1e9, num_local_steps=3)
    module = add_lora(network(), rank=RANK, train_A=False)
    module.load_state_dict(one.module.state_dict())
    one.round(clients)
    optimizer = torch.optim.SGD([p for p in module.parameters() if p.requires_grad], lr=0.5)
    for _ in range(3):
        optimizer.zero_grad()
        cross_entropy(module(clients[0][0]), clients[0][1]).backward()
        optimizer.step()
    for name, value in module.state_dict().items():
        torch.testing.assert_close(one.module.state_dict()[name], value)


# FedSVD


def test_fedsvd_is_a_start_with_orthonormal_rows():
    """Row spaces stay, and products are those of FFA from the same orthonormal rows.

    Over 20 rounds in float32, with clipped norms; 3.7e-6 and 1 - 8e-7 are noted in the spec.
    """
    clients = clients_of(30, 20, 40)
    orthonormal = server("ffa_orth").module
    svd, ffa = server("fedsvd", orthonormal), server("ffa_orth", orthonormal)
    start = {name: layer.A.clone() for name, layer in svd.adapters.items()}
    for _ in range(20):
        svd.round(clients)
        ffa.round(clients)
        for name, delta in deltas(ffa).items():
            assert float((deltas(svd)[name] - delta).norm() / delta.norm()) < 2e-5
    for name, layer in svd.adapters.items():
        assert least_cosine(layer.A, start[name]) > 1 - 1e-5
        torch.testing.assert_close(layer.A @ layer.A.T, torch.eye(RANK), atol=1e-5, rtol=0.0)
        assert not torch.allclose(layer.A.abs(), start[name].abs(), atol=1e-2)


def test_period_and_warmup():
    """Rows are orthonormal after the rounds that are said."""
    later = dataclasses.replace(STRATEGIES["fedsvd"], svd_period=2, svd_warmup=2)
    one, clients = server(later), clients_of(20, 20)
    found = []
    for _ in range(4):
        one.round(clients)
        A = one.adapters["0"].A.detach()
        found.append(torch.allclose(A @ A.T, torch.eye(RANK), atol=1e-5))
    assert found == [False, False, False, True]


# Clients


def test_weights_sum_to_one_and_empty_clients_are_passed_over():
    clients = clients_of(10, 0, 30)
    one = server(fraction=1.0)
    done = one.round(clients)
    assert done.clients == [0, 2] and done.weights == [0.25, 0.75]
    one = server(fraction=0.5)
    rounds = one.run(clients_of(10, 0, 30, 20, 7), 8, progress=False)
    assert all(len(r.clients) == 2 and 1 not in r.clients for r in rounds)
    assert all(sum(r.weights) == pytest.approx(1.0, abs=1e-12) for r in rounds)
    assert len({tuple(r.clients) for r in rounds}) > 2


def test_a_strategy_of_ones_own():
    def largest(layer, A, B, weights):
        layer.B.copy_(B[weights.argmax()])

    one = server(Strategy(train_A=False, aggregate=largest), fraction=1.0)
    alone = server("ffa", fraction=1.0)
    clients = clients_of(10, 30)
    one.round(clients)
    alone.round([(clients[0][0][:0], clients[0][1][:0]), clients[1]])
    for name, delta in deltas(alone).items():
        torch.testing.assert_close(deltas(one)[name], delta)


def test_what_clients_have_spent():
    pytest.importorskip("dp_accounting")
    clients = clients_of(20, 0, 6)
    one = server(noise_multiplier=8.0, fraction=0.5)
    assert one.epsilon() == []
    one.run(clients, 3, progress=False)
    taken = [2 * sum(k in r.clients for r in one.rounds) for k in range(3)]
    assert sum(taken) == 6 and taken[1] == 0
    rates = (0.4, 1.0, 1.0)
    expected = [
        pld_epsilon(rate, 8.0, n, 1e-5) if n else 0.0 for rate, n in zip(rates, taken, strict=True)
    ]
    assert one.epsilon() == expected
    without = server()
    without.run(clients, 1, progress=False)
    assert sorted(without.epsilon()) == [0.0, 0.0, float("inf")]


def test_bad_clients_are_named_before_training(subtests):
    x, y = clients_of(5)[0]
    cases = {
        "no rows": ([(x[:0], y[:0])] * 2, r"clients must have rows.*\[0, 0\]"),
        "unequal": ([(x, y), (x, y[:3])], "as many inputs as targets.*client 1"),
        "no pair": ([(x, y), x], "clients must be pairs.*client 1"),
    }
    for name, (clients, message) in cases.items():
        with subtests.test(name), pytest.raises((ValueError, TypeError), match=message):
            server().round(clients)
    one = server()
    one.round([(x, y), (x, y)])
    with pytest.raises(ValueError, match="clients must be those of earlier rounds"):
        one.round([(x, y)])


def test_what_diverges_leaves_the_adapters(subtests):
    clients = clients_of(10, 12)
    broken = [(x * torch.nan, y) for x, y in clients]
    for noise in (None, 1.0):
        with subtests.test(noise=noise):
            one = server(noise_multiplier=noise)
            one.round(clients)
            before = deltas(one)
            with pytest.raises(TrainingDiverged):
                one.round(broken)
            assert all(torch.equal(delta, before[name]) for name, delta in deltas(one).items())
            assert len(one.rounds) == 1

    def explodes(layer, A, B, weights):
        layer.B.fill_(torch.inf)

    one = server(Strategy(train_A=False, aggregate=explodes))
    with pytest.raises(TrainingDiverged, match="B of layer '0' is not finite after round 1"):
        one.round(clients)
    assert not bool(one.adapters["0"].B.any())


# Networks


def test_batch_norm(subtests):
    """Its statistics are averaged; with privacy in training mode it is refused."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 4))
    with pytest.raises(ValueError, match=r"batch norm '1' \(BatchNorm1d\)"):
        server(module=module, noise_multiplier=1.0)
    clients = clients_of(10, 30)
    one = server(module=module, fraction=1.0, layers=["3"], num_local_steps=1, batch_size=50)
    one.round(clients)
    hidden = [module[0](x).mean(0) for x, _ in clients]
    expected = 0.1 * (0.25 * hidden[0] + 0.75 * hidden[1]).detach()
    torch.testing.assert_close(one.module[1].running_mean, expected)
    assert not bool(module[1].running_mean.any())
    private = server(module=module.eval(), fraction=1.0, noise_multiplier=1.0)
    private.round(clients)
    assert not bool(private.module[1].running_mean.any())


def test_adapters_that_are_there_are_taken():
    module = add_lora(network(), ["0"], rank=2)
    nn.init.normal_(module[0].B)
    one = server("ffa", module)
    assert list(lora_layers(one.module)) == ["0"] and one.adapters["0"].rank == 2
    assert torch.equal(one.adapters["0"].B, module[0].B) and one.adapters["0"] is not module[0]
    assert not one.adapters["0"].A.requires_grad and module[0].A.requires_grad


# Checkpoints


@pytest.mark.parametrize("strategy", ["fedsvd", "flora"])
def test_a_killed_run_goes_on(strategy, tmp_path):
    """With the same result; and other settings, clients or networks are refused."""
    clients, path = clients_of(10, 20, 9), tmp_path / "server.safetensors"

    def resumed(num_rounds, clients=clients, module=None, **options):
        one = server(strategy, module, noise_multiplier=8.0, **options)
        one.run(clients, num_rounds, checkpoint=path, save_every=2, progress=False)
        return one

    whole = server(strategy, noise_multiplier=8.0)
    whole.run(clients, 5, progress=False)
    resumed(3)
    found = resumed(5)
    assert found.rounds == whole.rounds and found.sizes == whole.sizes
    for name, value in whole.module.state_dict().items():
        assert torch.equal(found.module.state_dict()[name], value)
    assert resumed(2).rounds == whole.rounds  # what is there is taken
    wrong = {
        "seed": lambda: resumed(6, seed=1),
        "optimizer": lambda: resumed(6, optimizer=partial(torch.optim.SGD, lr=0.1)),
        "clients": lambda: resumed(6, clients=[(x + 1, y) for x, y in clients]),
        "adapters": lambda: resumed(6, layers=["0"]),
        "module": lambda: resumed(6, module=MLP(6, [5], 4, nn.Tanh)),
    }
    for name, call in wrong.items():
        with pytest.raises(CheckpointError, match=f"of another server.*{name}"):
            call()


def test_ctrl_c_leaves_whole_rounds(monkeypatch):
    clients = clients_of(10, 20)
    one, expected = server(), server()
    expected.run(clients, 2, progress=False)
    monkeypatch.setattr(one, "_train", stopping(one._train, 3))
    with pytest.warns(UserWarning, match="stopped after 2 of 9 rounds, which are kept"):
        one.run(clients, 9, progress=False)
    for name, delta in deltas(expected).items():
        assert torch.equal(deltas(one)[name], delta)


# Splits


def test_splits_are_partitions():
    labels = torch.arange(600) % 6
    for concentration in (0.01, 0.5, 1000.0):
        parts = dirichlet_split(labels, 5, concentration, seed=0)
        assert torch.equal(torch.cat(parts).sort().values, torch.arange(600))
        assert all(torch.equal(part, part.sort().values) for part in parts)
    assert all(abs(len(part) - 120) < 15 for part in parts)
    with pytest.raises(ValueError, match=r"labels must have at least two classes, got \[3\]"):
        dirichlet_split(torch.full((5,), 3), 2)


@pytest.mark.statistical
def test_parts_of_a_class_follow_the_distribution(float64):
    """Mean and variance of 600 parts of a class, 4 standard errors."""
    labels = torch.cat([torch.zeros(500), torch.ones(500)]).long()
    found = []
    for seed in range(300):
        parts = dirichlet_split(labels, 4, 0.5, seed=seed)
        found += [float((labels[parts[0]] == label).sum()) / 500 for label in (0, 1)]
    found = torch.tensor(found)
    variance = 0.25 * 0.75 / 3.0
    assert float(found.mean()) == pytest.approx(0.25, abs=4 * (variance / 600) ** 0.5)
    spread = (found - 0.25).square()
    assert float(spread.mean()) == pytest.approx(variance, abs=4 * float(spread.std()) / 600**0.5)
