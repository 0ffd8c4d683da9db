"""Training and evaluation of networks on streams, with defenses and without."""

import copy
import signal
from functools import partial

import pytest
import torch
from torch.nn import functional

from pyro_ext.diagnostics.ranking import mean_reciprocal_rank
from pyro_ext.inference.training import TrainingDiverged
from pyro_ext.models.temporal_graphs import (
    CosineFilter,
    Defense,
    EventStream,
    StructuralAttack,
    TShield,
    evaluate_links,
    fit_links,
)
from tests.models.temporal_graphs.helpers import network_for, random_stream


def fitted(stream, defense=None, num_epochs=2, seed=0, **options):
    network = network_for(stream)
    fit = fit_links(
        network,
        stream,
        num_epochs,
        batch_size=20,
        defense=defense,
        seed=seed,
        progress=False,
        **options,
    )
    return network, fit


def test_a_shield_that_is_off_is_plain_training_bit_for_bit():
    stream = random_stream()
    plain, fit = fitted(stream)
    shielded, other = fitted(stream, TShield(0.0, 0.0, eta=0.0))
    assert fit.losses == other.losses and other.kept.all()
    for a, b in zip(plain.parameters(), shielded.parameters(), strict=True):
        assert torch.equal(a, b)
    _, smooth = fitted(stream, TShield(0.0, 0.0, eta=0.1))
    assert smooth.losses[0] == fit.losses[0] and smooth.losses[1:] != fit.losses[1:]


def test_losses_are_those_of_the_walk():
    """Without dropout and steps: cross-entropies, and smoothness from the second batch on."""
    stream = random_stream()
    network = network_for(stream, dropout=0.0)
    shield = TShield(0.0, 0.0, eta=0.5, theta=0.01)
    still = lambda parameters: torch.optim.SGD(parameters, lr=0.0)  # noqa: E731
    torch.manual_seed(3)
    fit = fit_links(
        network, stream, 2, batch_size=20, defense=shield, optimizer=still, progress=False
    )
    torch.manual_seed(3)
    state, last = network.reset(), {}
    for batch, found in zip(stream.batches(20), fit.losses, strict=False):
        negatives = batch.negatives(1)[0]
        positive = network.score(state, batch.sources, batch.destinations, batch.times)
        negative = network.score(state, batch.sources, negatives, batch.times)
        loss = (functional.softplus(-positive) + functional.softplus(negative)).mean()
        terms, now = [], {}
        for u, v, t in zip(batch.sources, batch.destinations, batch.times, strict=True):
            for node in (int(u), int(v)):
                h = network.embed(state, torch.tensor([node]), t[None])[0]
                if node in last:
                    before, when = last[node]
                    decay = torch.exp(-0.01 * (t - when))
                    terms.append(decay * functional.cosine_similarity(h, before, dim=0))
                now[node] = h, t
        last |= now
        if terms:
            loss = loss - 0.5 * torch.stack(terms).mean()
        assert found == pytest.approx(loss.item(), rel=1e-5)
        state = network.update(state, batch)
    probabilities = fit.probabilities[0, -20:]
    torch.testing.assert_close(probabilities, positive.sigmoid())


def test_what_is_filtered_is_gone_for_the_epoch_and_back_in_the_next():
    class First(Defense):
        """Keeps the first half of each batch, and in the second epoch all."""

        filters = True

        def keep(self, logits, embeddings, progress=1.0):
            return torch.arange(len(logits)) < (10 if progress == 0.0 else 99)

    stream = random_stream()
    _, fit = fitted(stream, First())
    assert fit.kept[0].sum() == 30 and fit.kept[1].all()
    # As if the rest had never been: the same probabilities on a stream without it.
    still = lambda parameters: torch.optim.SGD(parameters, lr=0.0)  # noqa: E731
    _, fit = fitted(stream, First(), 1, optimizer=still)
    less = stream[fit.kept[0]]
    network = network_for(stream)
    alone = fit_links(
        network, less, 1, batch_size=10, defense=TShield(0.0, 0.0), optimizer=still, progress=False
    )
    torch.testing.assert_close(alone.probabilities[0], fit.probabilities[0][fit.kept[0]])


def test_smoothness_is_of_events_that_are_kept():
    """It is what it is on a stream that has no others."""

    class First(Defense):
        """Keeps the first ten of a batch."""

        filters = True
        theta = 0.01

        def __init__(self, eta):
            self.eta = eta

        def keep(self, logits, embeddings, progress=1.0):
            return torch.arange(len(logits)) < 10

    def smoothness(stream, batch_size):
        fits = [
            fit_links(
                network_for(stream),
                stream,
                1,
                batch_size=batch_size,
                defense=First(eta),
                optimizer=partial(torch.optim.SGD, lr=0.0),
                seed=0,
                progress=False,
            )
            for eta in (0.0, 1.0)
        ]
        without, total = (torch.tensor(fit.losses) for fit in fits)
        return total - without

    stream = random_stream()
    found = smoothness(stream, 20)
    torch.testing.assert_close(found, smoothness(stream[torch.arange(60) % 20 < 10], 10))
    assert found[0] == 0.0 and bool((found[1:].abs() > 0.01).all())


def test_weights_of_a_defense_count():
    stream = random_stream()

    class Weighted(Defense):
        def weights(self, stream):
            return torch.linspace(0.5, 1.5, len(stream))

    _, plain = fitted(stream)
    _, weighted = fitted(stream, Weighted())
    assert plain.losses != weighted.losses and weighted.kept.all()


def test_training_learns_who_is_about():
    """Three of ten nodes meet each other; a negative is one of these in one of nine draws."""
    torch.manual_seed(0)
    sources = torch.randint(3, (200,))
    destinations = (sources + torch.randint(1, 3, (200,))) % 3
    stream = EventStream(sources, destinations, torch.arange(200.0), num_nodes=10)
    network = network_for(stream)
    train, test = stream.split(0.8)
    options = dict(num_negatives=4, seed=0)
    before = evaluate_links(network, train, test, **options).mrr
    fit = fit_links(network, train, 5, batch_size=20, seed=0, progress=False)
    scores = evaluate_links(network, train, test, **options)
    assert before < 0.7 and scores.mrr > 0.8 and scores.hits(2) > 0.9
    assert sum(fit.losses[-8:]) < 0.95 * sum(fit.losses[:8])
    assert scores.mrr == mean_reciprocal_rank(scores.events, scores.negatives)


def test_evaluation_scores_real_events_alone_and_takes_in_fake_ones():
    stream = random_stream(100)
    train, test = stream.split(0.6)
    network = network_for(stream)
    attack = StructuralAttack("random", 0.5, batch_size=10)
    poisoned = attack.perturb(test, history=train, seed=0)
    clean = evaluate_links(network, train, test, batch_size=10, num_negatives=3, seed=0)
    found = evaluate_links(network, train, poisoned, batch_size=10, num_negatives=3, seed=0)
    assert clean.events.shape == found.events.shape == (40,)
    assert found.negatives.shape == (40, 3)
    # The first batch of ten has no fakes before it.
    torch.testing.assert_close(found.events[:10], clean.events[:10])
    assert not torch.allclose(found.events[20:], clean.events[20:])

    class Knows(Defense):
        """Keeps the real events, whose numbers it was told."""

        filters = True

        def __init__(self, keeps):
            self.keeps = iter(keeps)

        def keep(self, logits, embeddings, progress=1.0):
            return next(self.keeps)

    keeps = [~batch.fake for batch in (*train.batches(10), *poisoned.batches(10))]
    told = evaluate_links(
        network, train, poisoned, batch_size=10, num_negatives=3, defense=Knows(keeps), seed=0
    )
    assert not torch.allclose(told.events[20:], found.events[20:])
    # Marks are for metrics: another defense does not see them.
    unmarked = copy.copy(poisoned)
    unmarked.fake = torch.zeros_like(poisoned.fake)
    shield = TShield(0.0, 0.6)
    marked = evaluate_links(network, train, poisoned, defense=shield, num_negatives=3, seed=0)
    blind = evaluate_links(network, train, unmarked, defense=shield, num_negatives=3, seed=0)
    torch.testing.assert_close(blind.events[~poisoned.fake], marked.events)


def test_float64_and_no_epochs():
    stream = random_stream()
    network = network_for(stream).double()
    fit = fit_links(network, stream, 1, batch_size=20, defense=TShield(), progress=False)
    assert fit.probabilities.dtype == torch.float64 and network.omega.dtype == torch.float64
    nothing = fit_links(network, stream, 0, progress=False)
    assert nothing.losses == [] and nothing.kept.shape == (0, 60)


@pytest.mark.parametrize("presses", [1, 2])
def test_what_was_done_before_ctrl_c_is_kept(presses):
    """Once, after the step that is under way; twice, before it is over."""
    stream = random_stream()

    class Pressed(Defense):
        """Keeps all, and is interrupted in the fourth step."""

        filters = True
        steps = 0

        def keep(self, logits, embeddings, progress=1.0):
            self.steps += 1
            for _ in range(presses if self.steps == 4 else 0):
                signal.raise_signal(signal.SIGINT)
            return super().keep(logits, embeddings, progress)

    with pytest.warns(UserWarning, match=r"stopped after \d of 6 steps"):
        _, fit = fitted(stream, Pressed())
    num_seen = {1: 80, 2: 60}[presses]
    _, whole = fitted(stream, Defense())
    assert len(fit.losses) == num_seen // 20
    seen = torch.arange(120).reshape(2, 60) < num_seen
    assert torch.equal(fit.kept, seen) and torch.equal(~fit.probabilities.isnan(), seen)
    assert fit.probabilities.shape == whole.probabilities.shape


@pytest.mark.parametrize("rate", [1e18, 1e30])
@pytest.mark.parametrize("defense", [None, TShield(), CosineFilter()])
def test_training_that_diverges_says_so(defense, rate):
    too_far = lambda parameters: torch.optim.SGD(parameters, lr=rate)  # noqa: E731
    with pytest.raises(TrainingDiverged, match=r"use a smaller learning rate"):
        fitted(random_stream(), defense, optimizer=too_far)


def test_modules_keep_their_modes():
    stream = random_stream()
    network = network_for(stream)
    network.norm.train()
    modes = [module.training for module in network.modules()]
    fit_links(network, stream, 1, progress=False)
    evaluate_links(network, *stream.split(0.5))
    assert [module.training for module in network.modules()] == modes


def test_what_does_not_fit_is_refused_by_name():
    stream, network = random_stream(), network_for(random_stream())
    with pytest.raises(ValueError, match=r"stream must have the num_nodes of the network, 7"):
        fit_links(network, random_stream(num_nodes=8), 1)
    one = EventStream([0, 1, 3], [2, 2, 2], [0.0, 1.0, 2.0], num_nodes=7, bipartite=True)
    with pytest.raises(ValueError, match=r"stream must have at least two nodes that events go to"):
        fit_links(network, one, 1)
    with pytest.raises(ValueError, match=r"stream must have at least two nodes that events go to"):
        evaluate_links(network, one[:2], one[2:])
    with pytest.raises(ValueError, match=r"stream must not begin before the history ends"):
        evaluate_links(network, stream[30:], stream[:30])


def test_times_that_all_look_alike_are_warned_of():
    stream = random_stream(30)
    stream.times = stream.times / 86_400.0 / 365.0
    with pytest.warns(UserWarning, match="stream lasts for .* use a smaller unit of time"):
        fit_links(network_for(stream), stream, 0, progress=False)
