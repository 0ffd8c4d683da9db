"""The examples of Pyro with discrete sites, which Pyro's NUTS sums out."""

import math
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer import config_enumerate
from pyro.ops.indexing import Vindex
from torch import Tensor, nn

from tests.zoo.examples import (
    EXAMPLES,
    Example,
    counts,
    example,
    example_of,
    normals,
    uniforms,
)

__all__ = ["NAMES"]

_OTHERS = set(EXAMPLES)

# Mixtures -----------------------------------------------------------------------------------------


@example_of(lambda: (5, torch.tensor([0.0, 1.0, 10.0, 11.0, 12.0])), "y")
@config_enumerate
def gaussian_mixture(number: int, y: Tensor | None) -> None:
    weights = pyro.sample("weights", dist.Dirichlet(torch.full((2,), 0.5)))
    scale = pyro.sample("scale", dist.LogNormal(torch.tensor(0.0), 2.0))
    with pyro.plate("component", 2):
        loc = pyro.sample("loc", dist.Normal(0.0, 10.0))
    with pyro.plate("data", number):
        kind = pyro.sample("kind", dist.Categorical(weights))
        pyro.sample("y", dist.Normal(loc[kind], scale), obs=y)


@example_of(lambda: (8, normals(8, 2) + 3.0 * counts(2, 8, 1)), "y")
@config_enumerate
def dirichlet_process_mixture(number: int, y: Tensor | None) -> None:
    """Sticks broken a few times, and normal clusters in the plane."""
    concentration = pyro.sample("concentration", dist.Gamma(torch.tensor(2.0), 1.0))
    with pyro.plate("stick", 3):
        part = pyro.sample("part", dist.Beta(1.0, concentration))
    with pyro.plate("cluster", 4):
        loc = pyro.sample("loc", dist.Normal(torch.zeros(2), 3.0).to_event(1))
    rest = (1.0 - part).cumprod(-1)
    ends = torch.ones(1)
    weights = torch.cat([part, ends]) * torch.cat([ends, rest])
    with pyro.plate("data", number):
        kind = pyro.sample("kind", dist.Categorical(weights))
        pyro.sample("y", dist.Normal(loc[kind], 1.0).to_event(1), obs=y)


@example_of(lambda: ((5, 3), counts(4, 5, 3)), "words")
@config_enumerate
def latent_dirichlet_allocation(shape: tuple[int, int], words: Tensor | None) -> None:
    """Topics of words, documents along one plate and their words along another."""
    with pyro.plate("topic", 2):
        weight = pyro.sample("weight", dist.Gamma(torch.tensor(2.0), 1.0))
        vocabulary = pyro.sample("vocabulary", dist.Dirichlet(torch.ones(4)))
    with pyro.plate("document", shape[1]):
        share = pyro.sample("share", dist.Dirichlet(weight))
        with pyro.plate("position", shape[0]):
            topic = pyro.sample("topic_of_word", dist.Categorical(share))
            chances = Vindex(vocabulary)[topic]
            pyro.sample("words", dist.Categorical(chances), obs=words)


# Hidden Markov models of music --------------------------------------------------------------------

_LENGTHS = torch.tensor([4, 3, 2])
_TONES = 2


def _transitions(name: str, size: int) -> Tensor:
    concentration = 0.9 * torch.eye(size) + 0.1
    chances: Tensor = pyro.sample(name, dist.Dirichlet(concentration).to_event(1))
    return chances


def _notes(name: str, *shape: int) -> Tensor:
    prior = dist.Beta(torch.tensor(0.5), 0.9).expand(shape).to_event(len(shape))
    chances: Tensor = pyro.sample(name, prior)
    return chances


def _music() -> Tensor:
    return (uniforms(3, 4, _TONES) < 0.4).to(normals(1))


def _observed(notes: Tensor | None, time: int) -> Tensor | None:
    return None if notes is None else notes[:, time]


def _play(
    tones: pyro.plate, chances: Tensor, state: tuple[Any, ...], time: int, notes: Tensor | None
) -> Tensor:
    """The tones of all sequences at a time, whose chances depend on a hidden state."""
    with tones as tone:
        fn = dist.Bernoulli(Vindex(chances)[(*state, tone)])
        played: Tensor = pyro.sample(f"note_{time}", fn, obs=_observed(notes, time))
        return played


@example_of(lambda: (_LENGTHS.tolist(), _music()), "sequence_joint")
def hmm_model_0(lengths: list[int], notes: Tensor | None) -> None:
    """Sequences of their own lengths, one after the other."""
    move, play = _transitions("move", 3), _notes("play", 3, _TONES)
    tones = pyro.plate("tone", _TONES, dim=-1)
    for i in pyro.plate("sequence", len(lengths)):
        state: Any = 0
        for t in pyro.markov(range(lengths[i])):
            state = pyro.sample(
                f"state_{i}_{t}", dist.Categorical(move[state]), infer={"enumerate": "parallel"}
            )
            with tones:
                chance = play[state.squeeze(-1)]
                note = None if notes is None else notes[i, t]
                pyro.sample(f"note_{i}_{t}", dist.Bernoulli(chance), obs=note)


@example_of(lambda: (_LENGTHS, _music()), "sequence_joint", num_masked=3**3)
@config_enumerate
def hmm_model_1(lengths: Tensor, notes: Tensor | None) -> None:
    """Tones that depend on a hidden state."""
    move, play = _transitions("move", 3), _notes("play", 3, _TONES)
    tones = pyro.plate("tone", _TONES, dim=-1)
    with pyro.plate("sequence", len(lengths), dim=-2):
        state: Any = 0
        for t in pyro.markov(range(int(lengths.max()))):
            with poutine.mask(mask=(t < lengths)[:, None]):
                state = pyro.sample(f"state_{t}", dist.Categorical(move[state]))
                _play(tones, play, (state,), t, notes)


@example_of(lambda: (_LENGTHS, _music()), "sequence_joint", num_masked=3**3)
@config_enumerate
def hmm_model_2(lengths: Tensor, notes: Tensor | None) -> None:
    """Tones that depend on a hidden state, and on whether they sounded before."""
    move, play = _transitions("move", 3), _notes("play", 3, 2, _TONES)
    tones = pyro.plate("tone", _TONES, dim=-1)
    with pyro.plate("sequence", len(lengths), dim=-2):
        state = note = torch.tensor(0)
        for t in pyro.markov(range(int(lengths.max()))):
            with poutine.mask(mask=(t < lengths)[:, None]):
                state = pyro.sample(f"state_{t}", dist.Categorical(move[state]))
                note = _play(tones, play, (state, note), t, notes).long()


@example_of(lambda: (_LENGTHS, _music()), "sequence_joint", num_masked=4**3)
@config_enumerate
def hmm_model_3(lengths: Tensor, notes: Tensor | None) -> None:
    """Tones that depend on two hidden states, each with a chain of its own."""
    first, second = _transitions("first", 2), _transitions("second", 2)
    play = _notes("play", 2, 2, _TONES)
    tones = pyro.plate("tone", _TONES, dim=-1)
    with pyro.plate("sequence", len(lengths), dim=-2):
        one = two = torch.tensor(0)
        for t in pyro.markov(range(int(lengths.max()))):
            with poutine.mask(mask=(t < lengths)[:, None]):
                one = pyro.sample(f"one_{t}", dist.Categorical(first[one]))
                two = pyro.sample(f"two_{t}", dist.Categorical(second[two]))
                _play(tones, play, (one, two), t, notes)


@example_of(lambda: (_LENGTHS, _music()), "sequence_joint", num_masked=4**3)
@config_enumerate
def hmm_model_4(lengths: Tensor, notes: Tensor | None) -> None:
    """Tones that depend on two hidden states, of which one drives the other."""
    first = _transitions("first", 2)
    prior = dist.Dirichlet(0.9 * torch.eye(2) + 0.1).expand_by([2]).to_event(2)
    second, play = pyro.sample("second", prior), _notes("play", 2, 2, _TONES)
    tones = pyro.plate("tone", _TONES, dim=-1)
    with pyro.plate("sequence", len(lengths), dim=-2):
        one = two = torch.tensor(0)
        for t in pyro.markov(range(int(lengths.max()))):
            with poutine.mask(mask=(t < lengths)[:, None]):
                one = pyro.sample(f"one_{t}", dist.Categorical(first[one]))
                two = pyro.sample(f"two_{t}", dist.Categorical(Vindex(second)[one, two]))
                _play(tones, play, (one, two), t, notes)


class _Tones(nn.Module):
    """Log odds of tones from a hidden state and the tones before."""

    def __init__(self) -> None:
        super().__init__()
        self.state, self.before = nn.Linear(3, 4), nn.Linear(_TONES, 4)
        self.tones = nn.Linear(4, _TONES)
        for number, parameter in enumerate(self.parameters()):
            parameter.data = normals(*parameter.shape, seed=number).to(torch.get_default_dtype())

    def forward(self, state: Tensor, before: Tensor) -> Tensor:
        hidden = self.state(torch.eye(3).to(before)[state]) + self.before(before)
        logits: Tensor = self.tones(hidden.relu())
        return logits


@example
def hmm_model_5() -> Example:
    """Tones from a network of the hidden state and of the tones before."""
    network = _Tones()

    @config_enumerate
    def model(lengths: Tensor, notes: Tensor | None) -> None:
        pyro.module("network", network)
        move = _transitions("move", 3)
        with pyro.plate("sequence", len(lengths), dim=-2):
            state: Any = torch.tensor(0)
            last = torch.zeros(_TONES).to(torch.get_default_dtype())
            for t in pyro.markov(range(int(lengths.max()))):
                with poutine.mask(mask=(t < lengths)[:, None]):
                    state = pyro.sample(f"state_{t}", dist.Categorical(move[state]))
                    logits = network(state.squeeze(-1), last)
                    with pyro.plate(f"tone_{t}", _TONES, dim=-1):
                        fn = dist.Bernoulli(logits=logits)
                        last = pyro.sample(f"note_{t}", fn, obs=_observed(notes, t))

    return Example(model, (_LENGTHS, _music()), ("sequence_joint",), 3**3)


@example_of(lambda: (_LENGTHS, _music()), "sequence_joint", num_masked=3**3)
@config_enumerate
def hmm_model_6(lengths: Tensor, notes: Tensor | None) -> None:
    """A hidden state that depends on the two before it, with a prior on its chances."""
    first, second = _transitions("first", 3), _transitions("second", 3)
    part = pyro.sample("part", dist.Beta(torch.tensor(2.0), 2.0))
    play = _notes("play", 3, _TONES)
    move = part * first + (1.0 - part) * second[:, None]
    tones = pyro.plate("tone", _TONES, dim=-1)
    with pyro.plate("sequence", len(lengths), dim=-2):
        before = state = torch.tensor(0)
        for t in pyro.markov(range(int(lengths.max())), history=2):
            with poutine.mask(mask=(t < lengths)[:, None]):
                chances = Vindex(move)[before, state]
                before, state = state, pyro.sample(f"state_{t}", dist.Categorical(chances))
                _play(tones, play, (state,), t, notes)


@example
def hmm_model_7() -> Example:
    """The network of tones in one site for each sequence, whose states are summed out in it."""
    network, music = _Tones(), _music()

    def model(lengths: Tensor, notes: Tensor | None) -> None:
        pyro.module("network", network)
        move = _transitions("move", 3)
        start = torch.tensor([0.0, -math.inf, -math.inf]).to(move)
        with pyro.plate("sequence", len(lengths), dim=-1):
            before = torch.nn.functional.pad(music[:, :-1], (0, 0, 1, 0))
            logits = network(torch.arange(3), before[:, :, None])
            shown = torch.arange(4) < lengths[:, None]
            fn = dist.Bernoulli(logits=logits).to_event(1).mask(shown[..., None])
            hmm = dist.DiscreteHMM(start, move.log(), fn)
            if notes is None:  # the distribution does not draw
                pyro.deterministic("chances", logits.sigmoid())
            else:
                pyro.sample("notes", hmm, obs=notes)

    return Example(model, (_LENGTHS, music), ("notes",))


@example
def mixed_hmm() -> Example:
    """Steps of animals in groups, whose transitions have random effects, with steps of zero."""

    @config_enumerate
    def model(shown: Tensor, steps: Tensor | None) -> None:
        one = torch.ones(2).to(torch.get_default_dtype())
        shape = pyro.sample("shape", dist.LogNormal(0.0 * one, 0.5).to_event(1))
        rests = pyro.sample("rests", dist.Beta(one, 3.0).to_event(1))
        angle = pyro.sample("angle", dist.LogNormal(0.0 * one, 0.5).to_event(1))
        with pyro.plate("group", 2, dim=-1):
            of_group = pyro.sample("of_group", dist.Normal(torch.zeros(4).to(one), 1.0).to_event(1))
            with pyro.plate("animal", 3, dim=-2), poutine.mask(mask=shown[..., 0]):
                own = pyro.sample("own", dist.Normal(torch.zeros(4).to(one), 0.5).to_event(1))
                logits = (of_group + own).reshape(3, 2, 2, 2)
                state = torch.tensor(0)
                for t in pyro.markov(range(3)):
                    with poutine.mask(mask=shown[..., t]):
                        fn = dist.Categorical(logits=Vindex(logits)[..., state, :])
                        state = pyro.sample(f"state_{t}", fn)
                        step = None if steps is None else steps[..., t, 0]
                        is_zero = torch.zeros(3, 2).bool() if step is None else step == 0.0
                        rest = dist.Bernoulli(Vindex(rests)[..., state])
                        pyro.sample(f"rest_{t}", rest, obs=is_zero.to(one))
                        moving = dist.Gamma(Vindex(shape)[..., state], 1.0)
                        fn = dist.MaskedMixture(
                            is_zero, moving, dist.Delta(torch.zeros(()).to(one))
                        )
                        pyro.sample(f"step_{t}", fn, obs=step)
                        turn = dist.VonMises(torch.zeros(()).to(one), Vindex(angle)[..., state])
                        turned = None if steps is None else steps[..., t, 1]
                        pyro.sample(f"turn_{t}", turn, obs=turned)

    shown = torch.arange(3) < torch.tensor([[3, 2], [2, 3], [1, 3]])[..., None]
    steps = torch.stack([normals(3, 2, 3).relu(), normals(3, 2, 3, seed=1)], -1)
    return Example(model, (shown, steps), ("group_joint",), 2**4)


@example_of(lambda: (5, normals(5)))
@config_enumerate
def switching_autoregression(number: int, y: Tensor | None) -> None:
    """A series whose coefficient of autoregression is that of a hidden state."""
    move = _transitions("move", 2)
    with pyro.plate("regime", 2):
        coefficient = pyro.sample("coefficient", dist.Normal(0.0, 1.0))
    scale = pyro.sample("scale", dist.LogNormal(torch.tensor(0.0), 0.5))
    state: Any = 0
    last: Any = torch.tensor(0.0)
    for t in pyro.markov(range(number)):
        state = pyro.sample(f"state_{t}", dist.Categorical(Vindex(move)[state]))
        fn = dist.Normal(coefficient[state] * last, scale)
        last = pyro.sample(f"y_{t}", fn, obs=None if y is None else y[t])


# Ecology and annotation ---------------------------------------------------------------------------


_CAPTURED = torch.tensor([[1, 1, 0, 1], [0, 1, 1, 0], [0, 1, 0, 0], [1, 0, 0, 0]])
_IS_MALE = torch.tensor([1, 0, 0, 1])


def _capture(
    captured: Tensor | None, survival: Callable[[int], Any], recapture: Tensor, outside: bool
) -> None:
    """Histories of animals after their first capture; chances outside of the plate of animals."""
    shown = torch.zeros(4, dtype=torch.bool)
    alive: Any = torch.ones(4).to(recapture)
    animals = pyro.plate("animal", 4, dim=-1)
    with nullcontext() if outside else animals:
        for t in pyro.markov(range(4)):
            chance = survival(t)
            with animals if outside else nullcontext(), poutine.mask(mask=shown):
                known = shown.to(recapture)
                fn = dist.Bernoulli(known * chance * alive + (1.0 - known))
                alive = pyro.sample(f"alive_{t}", fn, infer={"enumerate": "parallel"})
                y = None if captured is None else captured[:, t]
                y = pyro.sample(f"y_{t}", dist.Bernoulli(recapture * alive), obs=y)
            shown = shown | y.bool()


def _chance(name: str) -> Tensor:
    chance: Tensor = pyro.sample(
        name, dist.Uniform(torch.tensor(0.0).to(torch.get_default_dtype()), 1.0)
    )
    return chance


def _cjs(chances: Callable[[], Callable[[int], Any]], outside: bool) -> Example:
    def model(shape: tuple[int, int], captured: Tensor | None) -> None:
        recapture = _chance("recapture")
        _capture(captured, chances(), recapture, outside)

    return Example(
        model, ((4, 4), _CAPTURED.to(torch.get_default_dtype())), ("animal_joint",), math.nan
    )


@example
def cormack_jolly_seber_1() -> Example:
    """Animals that are captured, survive with one chance, and are captured again."""

    def chances() -> Callable[[int], Any]:
        survival = _chance("survival")
        return lambda t: survival

    return _cjs(chances, outside=False)


@example
def cormack_jolly_seber_2() -> Example:
    """A chance to survive for each period."""
    return _cjs(lambda: lambda t: _chance(f"survival_{t}") if t else 1.0, outside=True)


@example
def cormack_jolly_seber_3() -> Example:
    """Chances to survive that are random effects of the periods."""

    def chances() -> Callable[[int], Any]:
        mean, scale = _chance("mean").logit(), 2.0 * _chance("scale")
        return lambda t: pyro.sample(f"logit_{t}", dist.Normal(mean, scale)).sigmoid() if t else 0.5

    return _cjs(chances, outside=True)


@example
def cormack_jolly_seber_4() -> Example:
    """Chances to survive of two sexes."""

    def chances() -> Callable[[int], Any]:
        male, female = _chance("male"), _chance("female")
        return lambda t: torch.where(_IS_MALE == 1, male, female)

    return _cjs(chances, outside=False)


@example
def cormack_jolly_seber_5() -> Example:
    """Effects of sex and of the period on the log odds to survive."""

    def chances() -> Callable[[int], Any]:
        scale = torch.tensor(2.0).to(torch.get_default_dtype())
        effect = _IS_MALE * pyro.sample("effect", dist.Normal(0.0, scale))

        def chance(t: int) -> Tensor:
            period = pyro.sample(f"period_{t}", dist.Normal(0.0, scale)) if t else 0.0
            return torch.sigmoid(effect + period)

        return chance

    return _cjs(chances, outside=True)


@example
def tracking_1d() -> Example:
    """Detections that belong to one of three objects, or to none; values depend on that."""

    @config_enumerate
    def model(time: Tensor, seen: Tensor | None) -> None:
        shown = _DETECTIONS[..., 1] > 0.0
        with pyro.plate("object", 3):
            exists = pyro.sample("exists", dist.Bernoulli(torch.tensor(2.0 / 3.0)))
            with poutine.mask(mask=exists.bool()):
                fn = dist.Normal(torch.zeros(2).to(time), 1.0).to_event(1)
                state = pyro.sample("state", fn)
        positions = torch.stack([time.cos(), time.sin()], -1) @ state.T
        with pyro.plate("detection", 2), pyro.plate("time", len(time)):
            with poutine.mask(mask=shown):
                owner = pyro.sample("owner", dist.Categorical(torch.ones(4).to(time)))
            is_spurious = owner == 3
            is_real = shown & ~is_spurious
            number = shown.to(time).sum(-1, True).clamp(min=2.5)
            fn = dist.Bernoulli(2.0 / number)
            pyro.sample("is_real", fn, obs=is_real.to(time))
            pyro.sample("is_spurious", dist.Bernoulli(1.0 / number), obs=is_spurious.to(time))
            with poutine.mask(mask=is_real):
                wide = torch.cat([positions, torch.zeros(len(time), 1).to(time)], -1)
                fn = dist.Normal(Vindex(wide)[torch.arange(len(time))[:, None], owner], 0.5)
                pyro.sample("real", fn, obs=seen)
            with poutine.mask(mask=is_spurious):
                pyro.sample("spurious", dist.Normal(torch.zeros(()).to(time), 1.0), obs=seen)

    time = (torch.arange(3.0) / 4.0).to(torch.get_default_dtype())
    return Example(model, (time, _DETECTIONS[..., 0].to(time)), ("detection_joint",), 4)


_DETECTIONS = torch.stack([normals(3, 2), torch.tensor([[1.0, 1.0], [1.0, 0.0], [1.0, 1.0]])], -1)


@example_of(lambda: ((4, 3), counts(3, 4, 3)), "item_joint")
@config_enumerate
def multi_annotator_competence(shape: tuple[int, int], labels: Tensor | None) -> None:
    """Annotators who know an item's class, or spam by habits of their own."""
    with pyro.plate("annotator", shape[1]):
        habit = pyro.sample("habit", dist.Dirichlet(torch.full((3,), 10.0)))
        trust = pyro.sample("trust", dist.Beta(torch.tensor(0.5), 0.5))
    with pyro.plate("item", shape[0], dim=-2):
        truth = pyro.sample("truth", dist.Categorical(torch.ones(3) / 3.0))
        with pyro.plate("position", shape[1], dim=-1) as who:
            spams = pyro.sample("spams", dist.Bernoulli(1.0 - trust[who]))
            known = torch.eye(3).to(habit)[truth]
            chances = torch.where(spams[..., None] == 1.0, habit[who], known)
            pyro.sample("labels", dist.Categorical(chances), obs=labels)


NAMES = tuple(name for name in EXAMPLES if name not in _OTHERS)
