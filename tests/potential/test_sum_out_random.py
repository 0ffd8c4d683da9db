"""Random models of discrete and continuous sites: densities against brute force, and Pyro's."""

import itertools
import random
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from pyro.infer.mcmc.util import initialize_model
from torch import Tensor

from pyro_ext.potential import Potential, sum_out

pytestmark = pytest.mark.usefixtures("float64")

SIZES = {"a": 2, "b": 2}
DIMS = {"a": -1, "b": -2}
SCOPES = ("", "a", "ab")
MAX_ASSIGNMENTS = 2**7
KINDS = ("bernoulli", "categorical", "normal", "observed", "value", "factor")


@dataclass
class Statement:
    """A site: its kind, plates, and the earlier sites on which its parts depend, with weights."""

    name: str
    kind: str
    scope: str
    parents: dict[str, float]
    mask: str | None = None
    scale: str | None = None
    data: list[float] = field(default_factory=list)
    steps: int = 0


def program(seed: int) -> list[Statement]:
    """Draw statements, of which at least one is a discrete latent site."""
    draw = random.Random(seed)
    statements: list[Statement] = []
    assignments = 1
    while len(statements) < 6:
        name, kind = f"s{len(statements)}", draw.choice(KINDS)
        kind = "categorical" if not statements else kind
        scope = draw.choice(SCOPES)
        before = [s for s in statements if scope.startswith(s.scope) and not s.steps]
        before = [s for s in before if s.kind in ("bernoulli", "categorical", "normal")]
        chosen = draw.sample(before, min(len(before), draw.choice([0, 1, 2, 2])))
        parents = {s.name: draw.uniform(-1.0, 1.0) for s in chosen}
        discrete = [s.name for s in before if s.kind != "normal"]
        steps = 3 if kind == "categorical" and draw.random() < 0.3 else 0
        if kind in ("bernoulli", "categorical"):
            elements = 2 ** len(scope) * max(steps, 1)
            size = (2 if kind == "bernoulli" else 3) ** elements
            if assignments * size > MAX_ASSIGNMENTS:
                continue
            assignments *= size
        options = [None, None, "data", *discrete]
        data = [draw.uniform(-1.0, 1.0) for _ in range(4 * max(steps, 1))]
        mask, scale = draw.choice(options), draw.choice(options)
        statements.append(Statement(name, kind, scope, parents, mask, scale, data, steps))
    return statements


def shaped(numbers: list[float], scope: str) -> Tensor:
    """Numbers of each element of the plates."""
    return torch.tensor(numbers[: 2 ** len(scope)]).reshape([2] * len(scope))


def run(statements: list[Statement]) -> None:
    """Interpret statements as a Pyro program."""
    values: dict[str, Tensor] = {}
    plates = {name: pyro.plate(name, SIZES[name], dim=DIMS[name]) for name in SIZES}
    for s in statements:
        with ExitStack() as stack:
            for name in s.scope:
                stack.enter_context(plates[name])
            if s.mask is not None:
                is_data = s.mask == "data"
                mask = shaped(s.data, s.scope) > -0.3 if is_data else values[s.mask] == 1
                stack.enter_context(poutine.mask(mask=mask))
            if s.scale is not None:
                scale = 1.7 if s.scale == "data" else 0.5 + values[s.scale]
                stack.enter_context(poutine.scale(scale=scale))
            location: Any = torch.tensor(0.2)
            for name, weight in s.parents.items():
                location = location + weight * values[name]
            if s.steps:
                chain(s, location)
            else:
                values[s.name] = site(s, location, values)


def chain(s: Statement, location: Tensor) -> None:
    """A hidden Markov model whose observations depend on its states by parameters and values."""
    state: Any = torch.tensor(0)
    for t in pyro.markov(range(s.steps)):
        parts = location + 0.5 * state, -location, 0.3 * state.double()
        logits = torch.stack(torch.broadcast_tensors(*parts), -1)
        state = pyro.sample(f"{s.name}_{t}", dist.Categorical(logits=logits))
        data = shaped(s.data[4 * t :], s.scope)
        pyro.sample(f"{s.name}_{t}_y", dist.Normal(location + state, 1.0), obs=data)
        chance = torch.sigmoid(data)
        pyro.sample(f"{s.name}_{t}_z", dist.Bernoulli(chance), obs=(state == 1).double())


def site(s: Statement, location: Tensor, values: Mapping[str, Tensor]) -> Any:
    """A statement outside of all loops."""
    data = shaped(s.data, s.scope)
    if s.kind == "bernoulli":
        return pyro.sample(s.name, dist.Bernoulli(logits=location))
    if s.kind == "categorical":
        logits = torch.stack(torch.broadcast_tensors(location, -location, location * 0.5), -1)
        return pyro.sample(s.name, dist.Categorical(logits=logits))
    if s.kind == "normal":
        return pyro.sample(s.name, dist.Normal(location, 1.0))
    if s.kind == "observed":
        return pyro.sample(s.name, dist.Normal(location, 1.0), obs=data)
    if s.kind == "value":  # a fixed distribution of what other sites have come to
        return pyro.sample(s.name, dist.Normal(data, 1.0), obs=location + 0.0 * data)
    return pyro.factor(s.name, torch.sin(location) + data)


def brute_force(model: Callable[[], None], continuous: Mapping[str, Tensor]) -> Tensor:
    """Log density summed over all values of all elements of the discrete sites, one by one."""
    nodes = poutine.trace(poutine.condition(model, dict(continuous))).get_trace().nodes
    discrete = {
        name: node["fn"]
        for name, node in nodes.items()
        if node["type"] == "sample" and not node["is_observed"] and name not in SIZES
    }
    choices = [
        itertools.product(
            range(fn.enumerate_support(expand=False).shape[0]), repeat=fn.batch_shape.numel()
        )
        for fn in discrete.values()
    ]
    totals = []
    for assignment in itertools.product(*choices):
        given = dict(continuous)
        for (name, fn), numbers in zip(discrete.items(), assignment, strict=True):
            support = fn.enumerate_support(expand=False).flatten()
            given[name] = support[torch.tensor(numbers).reshape(fn.batch_shape)]
        trace = poutine.trace(poutine.condition(model, given)).get_trace()
        total = torch.zeros(())
        for name, node in trace.nodes.items():
            if node["type"] == "sample" and name not in SIZES:
                mask = None if name in discrete else node["mask"]
                log_prob = node["fn"].log_prob(node["value"])
                total = total + scale_and_mask(log_prob, node["scale"], mask).sum()
        totals.append(total)
    return torch.stack(totals).logsumexp(0)


def masks_a_discrete_site(statements: list[Statement]) -> bool:
    kinds = ("bernoulli", "categorical")
    return any(s.kind in kinds and s.mask is not None for s in statements)


def check(seed: int) -> None:
    """The density is the sum over all values; where no discrete site is masked it is Pyro's."""
    statements = program(seed)

    def model() -> None:
        pyro.sample("at_least", dist.Normal(0.0, 1.0))
        run(statements)

    with pyro.validation_enabled(False):
        potential = Potential(sum_out(model), backend="eager")
        point = potential.init(1, seed=seed)
        own = -potential(point)[0]
        continuous = {name: value[0] for name, value in point.items()}
        torch.testing.assert_close(own, brute_force(model, continuous), rtol=1e-10, atol=1e-10)
        if not masks_a_discrete_site(statements):
            _, theirs, _, _ = initialize_model(model, (), max_plate_nesting=2)
            torch.testing.assert_close(own, -theirs(continuous), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("seed", range(6))
def test_random_models(seed: int) -> None:
    check(seed)


@pytest.mark.slow
@pytest.mark.parametrize("first", range(10, 130, 20))
def test_many_random_models(first: int, subtests: pytest.Subtests) -> None:
    for seed in range(first, first + 20):
        with subtests.test(seed=seed):
            check(seed)
