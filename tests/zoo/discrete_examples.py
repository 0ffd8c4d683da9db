"""The examples of Pyro with discrete sites, which Pyro's NUTS sums out."""

from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer import config_enumerate
from pyro.ops.indexing import Vindex
from torch import Tensor
from torch.nn.functional import one_hot

from tests.zoo.examples import EXAMPLES, Example, counts, example, normals, uniforms

__all__ = ["NAMES"]

_OTHERS = set(EXAMPLES)

# Mixtures -----------------------------------------------------------------------------------------


@example
def gaussian_mixture() -> Example:
    @config_enumerate
    def model(number: int, y: Tensor | None) -> None:
        weights = pyro.sample("weights", dist.Dirichlet(torch.full((2,), 0.5)))
        scale = pyro.sample("scale", dist.LogNormal(torch.tensor(0.0), 2.0))
        with pyro.plate("component", 2):
            loc = pyro.sample("loc", dist.Normal(0.0, 10.0))
        with pyro.plate("data", number):
            kind = pyro.sample("kind", dist.Categorical(weights))
            pyro.sample("y", dist.Normal(loc[kind], scale), obs=y)

    return Example(model, (5, torch.tensor([0.0, 1.0, 10.0, 11.0, 12.0])), ("y",))


@example
def dirichlet_process_mixture() -> Example:
    """Sticks broken a few times, and normal clusters in the plane."""

    @config_enumerate
    def model(number: int, y: Tensor | None) -> None:
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

    return Example(model, (8, normals(8, 2) + 3.0 * counts(2, 8, 1)), ("y",))


@example
def latent_dirichlet_allocation() -> Example:
    """Topics of words, documents along one plate and their words along another."""

    @config_enumerate
    def model(shape: tuple[int, int], words: Tensor | None) -> None:
        with pyro.plate("topic", 2):
            weight = pyro.sample("weight", dist.Gamma(torch.tensor(2.0), 1.0))
            vocabulary = pyro.sample("vocabulary", dist.Dirichlet(torch.ones(4)))
        with pyro.plate("document", shape[1]):
            share = pyro.sample("share", dist.Dirichlet(weight))
            with pyro.plate("position", shape[0]):
                topic = pyro.sample("topic_of_word", dist.Categorical(share))
                chances = Vindex(vocabulary)[topic]
                pyro.sample("words", dist.Categorical(chances), obs=words)

    return Example(model, ((5, 3), counts(4, 5, 3)), ("words",))


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


@example
def hmm_model_1() -> Example:
    """Tones that depend on a hidden state."""

    @config_enumerate
    def model(lengths: Tensor, notes: Tensor | None) -> None:
        move, play = _transitions("move", 3), _notes("play", 3, _TONES)
        tones = pyro.plate("tone", _TONES, dim=-1)
        with pyro.plate("sequence", len(lengths), dim=-2):
            state: Any = 0
            for t in pyro.markov(range(4)):
                with poutine.mask(mask=(t < lengths)[:, None]):
                    state = pyro.sample(f"state_{t}", dist.Categorical(move[state]))
                    with tones as tone:
                        chance = Vindex(play)[state, tone]
                        pyro.sample(f"note_{t}", dist.Bernoulli(chance), obs=_observed(notes, t))

    return Example(model, (_LENGTHS, _music()), ("sequence_joint",), 3**3)


@example
def hmm_model_2() -> Example:
    """Tones that depend on a hidden state, and on whether they sounded before."""

    @config_enumerate
    def model(lengths: Tensor, notes: Tensor | None) -> None:
        move, play = _transitions("move", 3), _notes("play", 3, 2, _TONES)
        tones = pyro.plate("tone", _TONES, dim=-1)
        with pyro.plate("sequence", len(lengths), dim=-2):
            state: Any = 0
            note: Any = 0
            for t in pyro.markov(range(4)):
                with poutine.mask(mask=(t < lengths)[:, None]):
                    state = pyro.sample(f"state_{t}", dist.Categorical(move[state]))
                    with tones as tone:
                        chance = Vindex(play)[state, note, tone]
                        fn = dist.Bernoulli(chance)
                        note = pyro.sample(f"note_{t}", fn, obs=_observed(notes, t)).long()

    return Example(model, (_LENGTHS, _music()), ("sequence_joint",), 3**3)


@example
def hmm_model_3() -> Example:
    """Tones that depend on two hidden states, each with a chain of its own."""

    @config_enumerate
    def model(lengths: Tensor, notes: Tensor | None) -> None:
        first, second = _transitions("first", 2), _transitions("second", 2)
        play = _notes("play", 2, 2, _TONES)
        tones = pyro.plate("tone", _TONES, dim=-1)
        with pyro.plate("sequence", len(lengths), dim=-2):
            one: Any = 0
            two: Any = 0
            for t in pyro.markov(range(4)):
                with poutine.mask(mask=(t < lengths)[:, None]):
                    one = pyro.sample(f"one_{t}", dist.Categorical(first[one]))
                    two = pyro.sample(f"two_{t}", dist.Categorical(second[two]))
                    with tones as tone:
                        chance = Vindex(play)[one, two, tone]
                        pyro.sample(f"note_{t}", dist.Bernoulli(chance), obs=_observed(notes, t))

    return Example(model, (_LENGTHS, _music()), ("sequence_joint",), 4**3)


@example
def switching_autoregression() -> Example:
    """A series whose coefficient of autoregression is that of a hidden state."""

    @config_enumerate
    def model(number: int, y: Tensor | None) -> None:
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

    return Example(model, (5, normals(5)))


# Ecology and annotation ---------------------------------------------------------------------------


@example
def cormack_jolly_seber() -> Example:
    """Animals that are captured, survive, and are captured again."""

    @config_enumerate
    def model(shape: tuple[int, int], captured: Tensor | None) -> None:
        survival = pyro.sample("survival", dist.Uniform(torch.tensor(0.0), 1.0))
        recapture = pyro.sample("recapture", dist.Uniform(torch.tensor(0.0), 1.0))
        with pyro.plate("animal", shape[0], dim=-1):
            alive: Any = torch.ones(shape[0])
            seen = torch.zeros(shape[0], dtype=torch.bool)
            for t in pyro.markov(range(shape[1])):
                with poutine.mask(mask=seen):
                    alive = pyro.sample(f"alive_{t}", dist.Bernoulli(survival * alive))
                    y = pyro.sample(
                        f"y_{t}",
                        dist.Bernoulli(recapture * alive),
                        obs=None if captured is None else captured[:, t],
                    )
                seen = seen | y.bool()

    captured = torch.tensor([[1, 1, 0, 1], [0, 1, 1, 0], [0, 1, 0, 0], [1, 0, 0, 0]])
    return Example(model, ((4, 4), captured.to(normals(1))), ("animal_joint",), 2**6)


@example
def multi_annotator_competence() -> Example:
    """Annotators who know an item's class, or spam by habits of their own."""

    @config_enumerate
    def model(shape: tuple[int, int], labels: Tensor | None) -> None:
        with pyro.plate("annotator", shape[1]):
            habit = pyro.sample("habit", dist.Dirichlet(torch.full((3,), 10.0)))
            trust = pyro.sample("trust", dist.Beta(torch.tensor(0.5), 0.5))
        with pyro.plate("item", shape[0], dim=-2):
            truth = pyro.sample("truth", dist.Categorical(torch.ones(3) / 3.0))
            with pyro.plate("position", shape[1], dim=-1) as who:
                spams = pyro.sample("spams", dist.Bernoulli(1.0 - trust[who]))
                known = one_hot(truth, 3).to(habit)
                chances = torch.where(spams[..., None] == 1.0, habit[who], known)
                pyro.sample("labels", dist.Categorical(chances), obs=labels)

    return Example(model, ((4, 3), counts(3, 4, 3)), ("item_joint",))


NAMES = tuple(name for name in EXAMPLES if name not in _OTHERS)
