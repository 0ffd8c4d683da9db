"""Constraints of attacks, one by one, and the assignment that spreads fake events."""

from itertools import pairwise

import networkx
import pytest
import scipy.optimize
import torch

from pyro_ext.models.temporal_graphs import (
    EventStream,
    StructuralAttack,
    TSpear,
    attacks,
    spread_pairs,
)
from tests.models.temporal_graphs.helpers import network_for, random_stream

KINDS = ("random", "preference", "jaccard", "degree", "pagerank")


def attack_on(stream, kind, **options):
    if kind == "spear":
        return TSpear(network_for(stream), **options)
    return StructuralAttack(kind, **options)


def spread_out(*sizes):
    """A stream of which no two batches meet."""
    stream = random_stream(*sizes)
    stream.times = torch.arange(float(len(stream)), dtype=torch.float64) ** 1.5
    return stream


def parts(stream, poisoned, batch_size):
    """Batches of the real stream, the one before, and the fake events between its times."""
    fakes = poisoned[poisoned.fake]
    batches = stream.batches(batch_size)
    for before, batch in pairwise(batches):
        within = (fakes.times >= batch.times[0]) & (fakes.times <= batch.times[-1])
        yield before, batch, fakes[within]


@pytest.mark.parametrize("kind", ["spear", *KINDS])
def test_constraints(kind):
    stream = spread_out(95, 9, 2)
    options = dict(batch_size=20, resolution=1.0, bandwidth=0.1)
    poisoned = attack_on(stream, kind, **options).perturb(stream, seed=0)
    assert torch.equal(poisoned.real.times, stream.times) and not stream.fake.any()
    assert int(poisoned.fake.sum()) == 3 * 6 + 4  # floor(.3 * 20), three times, and floor(.3 * 15)
    assert poisoned.fake[: len(stream.batches(20)[0])].sum() == 0
    assert bool((poisoned.times.diff() >= 0).all())
    for before, batch, fake in parts(stream, poisoned, 20):
        assert len(fake) == int(0.3 * len(batch))
        active = set(torch.cat([before.sources, before.destinations]).tolist())
        assert {*fake.sources.tolist(), *fake.destinations.tolist()} <= active
        assert not bool((fake.sources == fake.destinations).any())
        # Six pairs of nine nodes or so are one round: each node is in one on either side.
        assert len(active) > len(fake)
        assert len(set(fake.sources.tolist())) == len(fake) == len(set(fake.destinations.tolist()))
        gaps = (fake.times[:, None] - batch.times).abs().amin(1)
        assert bool((gaps < 1.5).all())  # within a unit and five bandwidths
        whole = (fake.times == fake.times.floor()) | (fake.times == batch.times[0])
        assert bool((whole | (fake.times == batch.times[-1])).all())
        spread = (fake.features[:, None] - before.features).norm(dim=-1).amin(1)
        assert bool((spread < 0.6).all()) and bool((spread > 0).all())


@pytest.mark.parametrize("step", [20.0, 20.0 / 86_400.0, 7e-9])
def test_fakes_look_like_real_events_in_any_units(step):
    """Seconds since 1970, days and years: on the same steps as real ones, and as spread out."""
    plain = random_stream(400, 7, 2)
    plain.features[:, 1] = (3.0 * plain.features[:, 1]).round()
    attack, found = StructuralAttack("degree", batch_size=50), {}
    for unit in (1.0, step):
        start = 65_000_000.0 * unit if unit == step else 0.0
        scales = torch.tensor([unit, 0.25 * unit])
        stream = plain[:]
        stream.times, stream.features = start + unit * plain.times, scales * plain.features
        fakes = attack.perturb(stream, seed=0)
        fakes = fakes[fakes.fake]
        steps = (fakes.times - start) / unit
        torch.testing.assert_close(steps, steps.round(), rtol=0.0, atol=1e-4)
        found[unit] = (steps.round(), fakes.sources, fakes.destinations, fakes.features / scales)
    for one, other in zip(*found.values(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=2e-3)
    times, _, _, features = found[1.0]
    assert len(times.unique()) > 80  # of 105
    assert torch.equal(features[:, 1], features[:, 1].round())
    assert bool((features[:, 0] - plain.features[:, 0, None]).abs().amin(0).min() > 0.0)


def test_many_fakes_are_spread_over_as_many_rounds(monkeypatch):
    stream = random_stream(60, 7)
    rounds = []
    solve = scipy.optimize.linear_sum_assignment
    monkeypatch.setattr(
        scipy.optimize, "linear_sum_assignment", lambda c: rounds.append(c) or solve(c)
    )
    poisoned = TSpear(network_for(stream), 0.9, batch_size=30).perturb(stream, seed=0)
    fake = poisoned[poisoned.fake]
    assert len(fake) == 27 and 4 <= len(rounds) <= 6
    for nodes in (fake.sources, fake.destinations):
        assert int(nodes.bincount().max()) <= len(rounds)


def test_three_by_three():
    costs = torch.tensor([[1.0, 2.0, 9.0], [2.0, 4.0, 9.0], [9.0, 9.0, 9.0]])
    rows, columns = spread_pairs(costs, 3)
    assert float(costs[rows, columns].sum()) == 13.0
    assert sorted(rows.tolist()) == sorted(columns.tolist()) == [0, 1, 2]
    top = costs.flatten().sort().values[:3]
    assert top.tolist() == [1.0, 2.0, 2.0]  # which take the first row and column twice
    assert float(costs[rows, columns][0]) == 2.0  # the cheapest first
    rows, columns = spread_pairs(costs, 5)
    assert len({*zip(rows.tolist(), columns.tolist(), strict=True)}) == 5
    # With an extra round there are more to choose from.
    cheap = spread_pairs(costs, 3, extra_rounds=2)
    assert float(costs[cheap].sum()) == 5.0


def test_pairs_that_are_not_allowed_and_pairs_that_run_out():
    inf = float("inf")
    rows, columns = spread_pairs([[inf, 1e9], [-1e9, inf]], 5)
    assert not bool((rows == columns).any()) and len(rows) == 5
    assert sorted(zip(rows.tolist(), columns.tolist(), strict=True)).count((1, 0)) == 3
    with pytest.raises(ValueError, match=r"costs must allow a pair, got inf alone"):
        spread_pairs([[inf]], 1)


def test_spear_takes_what_the_surrogate_finds_least_plausible(monkeypatch):
    """At the earliest fake time, with memories of real events only."""
    stream = spread_out(60)
    surrogate = network_for(stream).train()
    for layer in (surrogate.of_source, surrogate.of_destination):
        torch.nn.init.normal_(layer.weight, std=3.0)
    # Assignments that cost the same but for rounding are not the same pairs: what is compared is
    # the costs that the attack assigns by.
    assigned = []

    def spread(costs, *args, **options):
        assigned.append((costs, spread_pairs(costs, *args, **options)))
        return assigned[-1][1]

    monkeypatch.setattr(attacks, "spread_pairs", spread)
    poisoned = TSpear(surrogate, batch_size=20).perturb(stream, seed=0)
    assert surrogate.training  # it is put back
    surrogate.eval()
    state = surrogate.reset()
    for (before, _, fake), (costs, pairs) in zip(
        parts(stream, poisoned, 20), assigned, strict=True
    ):
        state = surrogate.update(state, before)
        nodes = torch.cat([before.sources, before.destinations]).unique()
        time = fake.times[0].expand(len(nodes))
        expected = torch.stack(
            [surrogate.score(state, u.expand(len(nodes)), nodes, time) for u in nodes]
        ).double()
        torch.testing.assert_close(costs, expected.fill_diagonal_(torch.inf), rtol=1e-4, atol=1e-4)
        chosen = [nodes[places].tolist() for places in pairs]
        found = fake.sources.tolist(), fake.destinations.tolist()
        assert sorted(zip(*found, strict=True)) == sorted(zip(*chosen, strict=True))


def test_costs_of_structures():
    stream = random_stream(12, 8)
    graph = networkx.Graph()
    graph.add_nodes_from(range(8))
    graph.add_edges_from(zip(stream.sources.tolist(), stream.destinations.tolist(), strict=True))
    nodes = torch.arange(8)
    degree, rank = dict(graph.degree), networkx.pagerank(graph)

    def jaccard(u, v):
        first, second = set(graph[u]), set(graph[v])
        return len(first & second) / max(len(first | second), 1)

    for kind, cost in {
        "preference": lambda u, v: degree[u] * degree[v],
        "degree": lambda u, v: degree[u] + degree[v],
        "pagerank": lambda u, v: rank[u] + rank[v],
        "jaccard": jaccard,
    }.items():
        attack = StructuralAttack(kind)
        memory = attack._advance(attack._begin(stream, None), stream)
        found = attack._costs(memory, nodes, nodes, torch.tensor(0.0))
        expected = torch.tensor([[float(cost(u, v)) for v in range(8)] for u in range(8)])
        torch.testing.assert_close(found.float(), expected, rtol=1e-5, atol=1e-6)


def test_times_follow_those_of_the_batch():
    """False alarm 1e-4: a normal of mean 0 and sd .1 around one of two times.

    Rounding down to whole units takes half of those near 100 to 99.
    """
    torch.manual_seed(0)
    times = torch.tensor([100.0] * 3 + [200.0], dtype=torch.float64)[:, None]
    drawn = attacks._near(times, 40_000, 0.1)[:, 0]
    high = drawn > 150.0
    assert float(high.double().mean()) == pytest.approx(0.25, abs=3.9 * (0.1875 / 40_000) ** 0.5)
    spread = (drawn - torch.where(high, 200.0, 100.0)).std()
    assert float(spread) == pytest.approx(0.1, abs=3.9 * 0.1 / 80_000**0.5)


def test_history_goes_before():
    stream = random_stream(90, 7)
    first, second = stream.split(0.5)
    for kind in ("spear", "degree"):
        attack = attack_on(stream, kind, batch_size=15)
        known = attack.perturb(second, history=first, seed=0)
        blind = attack.perturb(second, seed=0)
        assert torch.equal(known.times, blind.times)
        pairs = [torch.stack([x.sources, x.destinations]) for x in (known, blind)]
        assert not torch.equal(*pairs)
    before = torch.get_rng_state()
    attack.perturb(second, seed=1)
    assert torch.equal(torch.get_rng_state(), before)


def test_bipartite_streams_stay_so():
    torch.manual_seed(0)
    stream = EventStream(
        torch.randint(4, (60,)), torch.randint(4, 9, (60,)), torch.arange(60.0), bipartite=True
    )
    poisoned = attack_on(stream, "spear", batch_size=20).perturb(stream, seed=0)
    assert poisoned.bipartite and int(poisoned.fake.sum()) == 12
    assert int(poisoned.sources.max()) < 4 <= int(poisoned.destinations.min())


def test_a_node_alone_has_no_fakes():
    stream = EventStream([0, 0, 0, 0], [0, 0, 1, 1], [0.0, 1.0, 2.0, 3.0])
    with pytest.raises(ValueError, match=r"stream must have two nodes in each batch"):
        StructuralAttack("degree", 0.5, batch_size=2).perturb(stream, seed=0)
    with pytest.raises(ValueError, match=r"stream must have the num_nodes of the surrogate, 7"):
        TSpear(network_for(random_stream())).perturb(stream)


def test_budgets_are_not_rounded_down_by_rounding():
    stream = random_stream(200)
    for budget, number in ((0.29, 29), (0.57, 57), (0.295, 29), (0.005, 0)):
        attack = StructuralAttack("degree", budget, batch_size=100)
        assert int(attack.perturb(stream, seed=0).fake.sum()) == number
